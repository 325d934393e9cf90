"""Damaged and odd video files, made from a seed, and what reading each of them must come to.

`python -m tests.damaged_videos [FIRST [LAST]]` reads the videos of these numbers (all 1,000) and prints a
table by kind. Each number is a file of its own, the same on every call: its kind is the number modulo the
count of kinds. The files are made of clips encoded here and of real ones where they lie beside the checkout.

A file is sound when `ffmpeg -xerror -err_detect explode` reads it with exit code 0 and shows a frame, and
PyAV, whose ffmpeg is a newer one, meets no error either. A sound file must be read with the frames of PyAV's
plain decode, every frame in order without seeking, and at their times; any frame is right where PyAV itself
shows another after a seek. Any other file is refused in one sentence, or the frames read are some of a plain
decode that leaves out what an error spoilt. A playlist must be refused.
"""

from __future__ import annotations

import math
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError
from numpy.random import Generator
from numpy.typing import NDArray

from pipeline.errors import VideoError
from pipeline.video import DecodedVideo, Decoder
from tests.videos import (
    REAL_CLIPS,
    TURNS,
    moving_frames,
    with_display_matrix,
    write_audio,
    write_stamped,
    write_video,
)

COUNT = 1000
SEED = 17
FRAMES = 6  # sampled from each
LIMIT = 20.0  # seconds without progress
OUTCOMES = ("read", "refused", "hang", "crash", "traceback", "wrong")

# Encoded here: (name, codec, pixel format, options, options of the container).
ENCODED = [
    ("h264.mp4", "libx264", "yuv420p", {"g": "12", "bf": "2"}, {}),
    ("h264_front.mp4", "libx264", "yuv420p", {"g": "16", "bf": "0"}, {"movflags": "faststart"}),
    ("h264_open.mkv", "libx264", "yuv420p", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}, {}),
    ("h264.ts", "libx264", "yuv420p", {"g": "12", "bf": "2"}, {}),
    ("h264.flv", "libx264", "yuv420p", {"g": "12"}, {}),
    ("h264_parts.mp4", "libx264", "yuv420p", {"g": "12"}, {"movflags": "frag_keyframe+empty_moov"}),
    ("hevc.mp4", "libx265", "yuv420p", {"x265-params": "keyint=16:bframes=3:log-level=none"}, {}),
    ("vp8.webm", "libvpx", "yuv420p", {"g": "16"}, {}),
    ("vp9.webm", "libvpx-vp9", "yuv420p", {"g": "16", "cpu-used": "8", "deadline": "realtime"}, {}),
    ("mpeg4.avi", "mpeg4", "yuv420p", {"g": "12", "bf": "2"}, {}),
    ("mjpeg.avi", "mjpeg", "yuvj420p", {}, {}),
    ("mpeg2.mpg", "mpeg2video", "yuv420p", {"g": "12", "bf": "2"}, {}),
    ("mpeg1.mpg", "mpeg1video", "yuv420p", {"g": "12"}, {}),
    ("wmv2.wmv", "wmv2", "yuv420p", {"g": "12"}, {}),
    ("prores.mov", "prores_ks", "yuv422p10le", {}, {}),
    ("ffv1.mkv", "ffv1", "yuv420p", {"level": "3"}, {}),
    ("moving.gif", "gif", "rgb8", {}, {}),
    ("h264.mov", "libx264", "yuv420p", {"g": "12"}, {}),
]
REAL = [
    "nasa_13013.mp4",
    "big_buck_bunny_0_30.webm",
    "decord_corrupted.mp4",
    "decord_video_90.mov",
    "decord_unordered.mov",
]

PIXEL_FORMATS = [
    ("gray.mkv", "libx264", "gray"),
    ("444.mp4", "libx264", "yuv444p"),
    ("422.mp4", "libx264", "yuv422p"),
    ("ten_bits.mp4", "libx264", "yuv420p10le"),
    ("ten_bits_444.mkv", "libx264", "yuv444p10le"),
    ("full_range.mp4", "libx264", "yuvj420p"),
    ("full_range_444.mp4", "libx264", "yuvj444p"),
    ("twelve_bits.mkv", "ffv1", "yuv420p12le"),
    ("sixteen_bits.mkv", "ffv1", "gray16le"),
    ("rgb.mkv", "ffv1", "bgr0"),
    ("alpha.mkv", "ffv1", "bgra"),
    ("planes.mkv", "ffv1", "gbrp10le"),
    ("palette.avi", "rawvideo", "pal8"),
    ("raw.avi", "rawvideo", "bgr24"),
    ("yuyv.avi", "rawvideo", "yuyv422"),
    ("alpha.mov", "png", "rgba"),
    ("gray_alpha.mov", "png", "ya8"),
    ("deep.mov", "png", "rgb48be"),
    ("one_bit.mov", "png", "monob"),
    ("alpha.webm", "libvpx-vp9", "yuva420p"),
    ("gbr.webm", "libvpx-vp9", "gbrp"),
    ("440.webm", "libvpx-vp9", "yuv440p"),
    ("palette.gif", "gif", "pal8"),
    ("gray.gif", "gif", "gray"),
    ("hevc_ten.mp4", "libx265", "yuv420p10le"),
    ("hevc_gray.mp4", "libx265", "gray"),
    ("hevc_rgb.mkv", "libx265", "gbrp"),
    ("prores_alpha.mov", "prores_ks", "yuva444p10le"),
    ("huffyuv.avi", "huffyuv", "yuv422p"),
    ("ut.avi", "utvideo", "gbrp"),
    ("411.avi", "rawvideo", "yuv411p"),
    ("nine.avi", "rawvideo", "yuv410p"),
    ("runs.mov", "qtrle", "argb"),
]


class Bases:
    """Whole clips to damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        small = moving_frames(48)
        self.encoded = [
            write_video(
                folder / name,
                small,
                codec=codec,
                pixel_format=pixels,
                options=options,
                container_options=more,
            )
            for name, codec, pixels, options, more in ENCODED
            if codec in av.codecs_available
        ]
        self.real = [
            first_packets(REAL_CLIPS / name, folder / f"real_{name}", 20 if "bunny" in name else 60)
            for name in REAL
            if (REAL_CLIPS / name).is_file()
        ]
        self.sound = write_audio(folder / "sound.m4a")

    def pick(self, rng: Generator, *endings: str) -> Path:
        """Any clip with one of these endings; every fourth is a real one."""
        real = [path for path in self.real if not endings or path.suffix in endings]
        if real and rng.random() < 0.25:
            return real[rng.integers(len(real))]
        encoded = [path for path in self.encoded if not endings or path.suffix in endings]
        return encoded[rng.integers(len(encoded))]


def first_packets(source: Path, target: Path, count: int) -> Path:
    """The beginning of a clip's first video stream, copied."""
    return copied(source, target, lambda packets: packets[:count])


def copied(source: Path, target: Path, change: Callable[[list[av.Packet]], Iterable[av.Packet]]) -> Path:
    """The packets of a clip's first video stream, changed, in a container of their own."""
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        packets = [packet for packet in reading.demux(stream) if packet.size]
        for packet in change(packets):
            packet.stream = copy
            writing.mux(packet)
    return target


def flipped(data: bytes, rng: Generator, first: int, last: int, bits: int) -> bytearray:
    """Some bits of the bytes from first to last turned over."""
    changed = bytearray(data)
    for place in rng.integers(first, max(last, first + 1), bits):
        if place < len(changed):
            changed[place] ^= 1 << rng.integers(8)
    return changed


def boxes(data: bytes, name: bytes) -> list[int]:
    """Where boxes of this name begin in an mp4: at their name."""
    return [place for place in range(4, len(data) - 8) if data.startswith(name, place)]


# The kinds. Each makes one file, whose name's ending is its own choice, from a generator of random numbers.
Maker = Callable[[Generator, Bases, Path], Path]


def whole(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng)
    return _written(target, source.suffix, source.read_bytes())


def _written(target: Path, suffix: str, data: bytes) -> Path:
    path = target.with_name(target.name + suffix)
    path.write_bytes(data)
    return path


def bits_in_header(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng)
    return _written(target, source.suffix, flipped(source.read_bytes(), rng, 0, 160, int(rng.integers(1, 4))))


def bits_in_index(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng, ".mp4", ".mov", ".mkv", ".webm", ".avi")
    data = source.read_bytes()
    place = max(data.rfind(name) for name in (b"moov", b"idx1", b"\x1c\x53\xbb\x6b"))
    length = int.from_bytes(data[place - 4 : place]) if data[place : place + 4] == b"moov" else 400
    return _written(target, source.suffix, flipped(data, rng, place, place + length, int(rng.integers(1, 6))))


def bits_in_payload(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng)
    data = source.read_bytes()
    return _written(
        target,
        source.suffix,
        flipped(data, rng, len(data) // 4, len(data) * 3 // 4, int(rng.choice([1, 2, 5, 40]))),
    )


def zeros_in_payload(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng)
    data = bytearray(source.read_bytes())
    place, length = int(rng.integers(len(data) // 5, len(data))), int(rng.choice([4, 64, 512, 4096]))
    data[place : place + length] = bytes(len(data[place : place + length]))
    return _written(target, source.suffix, data)


def cut(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng)
    data = source.read_bytes()
    return _written(target, source.suffix, data[: int(len(data) * rng.choice([rng.random(), 0.9, 0.99]))])


def beginning_lost(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng)
    data = source.read_bytes()
    return _written(target, source.suffix, data[int(len(data) * rng.choice([0.001, 0.05, rng.random()])) :])


def middle_lost(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng)
    data = source.read_bytes()
    place = int(rng.integers(len(data) // 3, len(data)))
    return _written(target, source.suffix, data[:place] + data[place + int(rng.choice([1, 4, 188, 2048])) :])


def rubbish_around(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng)
    rubbish = rng.bytes(int(rng.choice([1, 100, 5000])))
    data = source.read_bytes()
    return _written(target, source.suffix, data + rubbish if rng.random() < 0.6 else rubbish + data)


def wrong_ending(rng: Generator, bases: Bases, target: Path) -> Path:
    endings = [
        "",
        ".mp4",
        ".mkv",
        ".avi",
        ".txt",
        ".jpg",
        ".mp3",
        ".m3u8",
        ".gif",
        ".h264",
        ".ts",
        ".yuv",
        ".MP4 ",
    ]
    return _written(target, str(rng.choice(endings)), bases.pick(rng).read_bytes())


def no_frames(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng, ".mp4", ".mov", ".mkv", ".webm", ".avi")
    path = target.with_name(target.name + source.suffix)
    if rng.random() < 0.5:
        return copied(source, path, lambda _: [])
    data = source.read_bytes()
    # The sizes of all samples; of Matroska and AVI: all from the first frame on.
    for name in (b"stsz", b"\x1f\x43\xb6\x75", b"movi"):
        if name in data:
            place = data.index(name) + 8
            return _written(target, source.suffix, data[:place] + bytes(len(data) - place))
    return _written(target, source.suffix, data[:200])


SIZES = [(2, 2), (2, 4096), (4096, 2), (16, 16), (48, 16), (16, 48), (6, 6), (1280, 2), (34, 18), (1024, 768)]


def odd_sizes(rng: Generator, bases: Bases, target: Path) -> Path:
    """Real frames of unusual sizes, odd ones among them."""
    height, width = SIZES[rng.integers(len(SIZES))]
    odd = rng.random() < 0.4
    name, codec, pixels = [
        (".mkv", "ffv1", "yuv444p"),
        (".mp4", "libx264", "yuv444p" if odd else "yuv420p"),
        (".gif", "gif", "rgb8"),
        (".avi", "mjpeg", "yuvj444p"),
        (".mov", "png", "rgb24"),
    ][rng.integers(5)]
    frames = rng.integers(0, 255, (8, height - odd, width - odd, 3), dtype=np.uint8)
    return write_video(target.with_name(target.name + name), frames, codec=codec, pixel_format=pixels)


def absurd_dimensions(rng: Generator, bases: Bases, target: Path) -> Path:
    """Another width and height in the container, which its frames do not have."""
    source = bases.pick(rng, ".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")
    data = bytearray(source.read_bytes())
    value = int(rng.choice([0, 1, 7, 4097, 16384, 32767, 65535]))
    if source.suffix in (".mp4", ".mov"):
        for name in (b"tkhd", b"avc1", b"hev1", b"apcn"):
            for place in boxes(data, name):
                at = place + (80 if name == b"tkhd" else 28)
                data[at : at + 2] = struct.pack(">H", value)
    elif source.suffix == ".avi":
        place = data.index(b"strf") + 12
        data[place : place + 4] = struct.pack("<i", value * int(rng.choice([1, -1, 65536])) % (1 << 31))
    elif source.suffix == ".gif":
        data[6:8] = struct.pack("<H", value)
    else:
        for width in re.finditer(rb"\xb0[\x81\x82]", bytes(data[:600])):  # Matroska's PixelWidth
            data[width.end()] = value % 256
    return _written(target, source.suffix, data)


def broken_index(rng: Generator, bases: Bases, target: Path) -> Path:
    """A table of the index emptied, lost, or filled with nonsense."""
    source = bases.pick(rng, ".mp4", ".mov", ".mkv", ".webm", ".avi")
    data = bytearray(source.read_bytes())
    names = [
        b"stss",
        b"stco",
        b"stsc",
        b"ctts",
        b"stts",
        b"stsz",
        b"idx1",
        b"\x1c\x53\xbb\x6b",
        b"\x11\x4d\x9b\x74",
    ]
    places = [(name, place) for name in names for place in boxes(data, name)]
    if not places:
        return _written(target, source.suffix, data)
    name, place = places[rng.integers(len(places))]
    match rng.integers(3):
        case 0:
            data[place : place + 4] = b"free" if name.isalnum() else b"\xec\x53\xbb\x6b"
        case 1:
            data[place + 8 : place + 12] = struct.pack(
                ">I", int(rng.choice([0, 1, 5, 1 << 20, (1 << 32) - 1]))
            )
        case _:
            start = place + 12 + 4 * int(rng.integers(4))
            data[start : start + 4] = rng.bytes(4)
    return _written(target, source.suffix, data)


def variable_rate(rng: Generator, bases: Bases, target: Path) -> Path:
    suffix, codec = [(".mkv", "libx264"), (".mp4", "libx264"), (".ts", "libx264"), (".webm", "libvpx")][
        rng.integers(4)
    ]
    count = int(rng.integers(3, 50))
    steps = rng.choice([1, 17, 40, 41, 400, 9000], count, p=[0.1, 0.2, 0.3, 0.3, 0.08, 0.02])
    stamps = (np.cumsum(steps) + rng.integers(0, 5000)).tolist()
    path = target.with_name(target.name + suffix)
    return write_stamped(path, moving_frames(count), [int(stamp) for stamp in stamps], codec=codec)


def odd_stamps(rng: Generator, bases: Bases, target: Path) -> Path:
    """Doubled, negative, missing stamps, and such that run back or jump."""
    source = bases.pick(rng, ".mp4", ".mkv", ".ts", ".webm", ".flv")
    kind = rng.integers(5)
    hit = set(rng.integers(1, 40, 3).tolist())

    def change(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for place, packet in enumerate(packets):
            if kind == 0 and place in hit:
                packet.pts = packets[place - 1].pts
            elif kind == 1 and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - 20000, packet.dts - 20000
            elif kind == 2 and place in hit:
                packet.pts = packet.dts
            elif kind == 3 and packet.pts is not None:
                packet.pts += int(rng.integers(0, 400))
            elif kind == 4 and place > 20 and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts + 9_000_000, packet.dts + 9_000_000
            yield packet

    path = target.with_name(target.name + source.suffix)
    return copied(source, path, change)


def display_matrix(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng, ".mp4", ".mov")
    matrix = list(TURNS)[rng.integers(len(TURNS))]
    return with_display_matrix(source, target.with_name(target.name + source.suffix), matrix)


def odd_display_matrix(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng, ".mp4", ".mov")
    angle = float(rng.uniform(0, 2 * math.pi))
    turned = (math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))
    matrices = [(0, 0, 0, 0), (2, 0, 0, -1), (1, 0.3, 0, 1), (0, 3, -0.5, 0), (32767, 0, 0, 32767), turned]
    matrix = matrices[rng.integers(len(matrices))]
    return with_display_matrix(source, target.with_name(target.name + source.suffix), matrix)


def odd_pixels(rng: Generator, bases: Bases, target: Path) -> Path:
    name, codec, pixels = PIXEL_FORMATS[rng.integers(len(PIXEL_FORMATS))]
    height, width = [(48, 64), (34, 50), (96, 80)][rng.integers(3)]
    frames = moving_frames(10, 96, 128)[:, :height, :width]
    path = target.with_name(f"{target.name}_{name}")
    return write_video(path, np.ascontiguousarray(frames), codec=codec, pixel_format=pixels)


def sound_only(rng: Generator, bases: Bases, target: Path) -> Path:
    suffix, codec = [(".mp4", "aac"), (".mp3", "libmp3lame"), (".wav", "pcm_s16le"), (".mkv", "aac")][
        rng.integers(4)
    ]
    path = target.with_name(target.name + suffix)
    cover = suffix in (".mp4", ".mp3") and rng.random() < 0.5
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="stereo")
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        samples = rng.integers(-3000, 3000, (1, 88200), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate = 44100
        for resampled in av.AudioResampler(stream.codec_context.format, "stereo", 44100).resample(frame):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode())
        if picture is not None:
            image = av.VideoFrame.from_ndarray(moving_frames(1)[0], format="rgb24")
            container.mux([*picture.encode(image), *picture.encode()])
    return _written(target, str(rng.choice([suffix, ".mp4"])), path.read_bytes())


def lying_header(rng: Generator, bases: Bases, target: Path, factor: float) -> Path:
    source = bases.pick(rng, ".mp4", ".mov", ".mkv", ".webm", ".avi", ".flv")
    data = bytearray(source.read_bytes())
    fields = {
        b"avih": [(4 + 4 + 16, "<I")],
        b"strh": [(4 + 4 + 32, "<I")],
        b"mvhd": [(4 + 16, ">I")],
        b"mdhd": [(4 + 16, ">I")],
        b"tkhd": [(4 + 20, ">I")],
        b"elst": [(4 + 8, ">I")],
        b"stsz": [(4 + 4 + 4, ">I")],
        b"\x44\x89\x88": [(3, ">d")],
        b"duration\x00": [(9, ">d")],
    }
    found = [(place, at, how) for name in fields for place in boxes(data, name) for at, how in fields[name]]
    chosen = found if rng.random() < 0.4 else [found[rng.integers(len(found))]] if found else []
    for place, at, how in chosen:
        (value,) = struct.unpack_from(how, data, place + at)
        changed = value * factor
        struct.pack_into(how, data, place + at, changed if how == ">d" else min(int(changed), (1 << 32) - 1))
    return _written(target, source.suffix, data)


def header_claims_more(rng: Generator, bases: Bases, target: Path) -> Path:
    return lying_header(rng, bases, target, float(rng.choice([1.1, 2, 1000])))


def header_claims_less(rng: Generator, bases: Bases, target: Path) -> Path:
    return lying_header(rng, bases, target, float(rng.choice([0, 0.1, 0.5, 0.95])))


def playlist(rng: Generator, bases: Bases, target: Path) -> Path:
    """Names a sound video that lies beside it."""
    part = target.with_name(f"{target.name}_part.ts")
    part.write_bytes((bases.folder / "h264.ts").read_bytes())
    name = rng.choice([part.name, str(part), f"file:{part}"])
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{name}\n#EXT-X-ENDLIST\n"
    text = [
        hls,
        "\ufeff" + hls,
        "\n\n " + hls,
        f"ffconcat version 1.0\nfile '{name}'\n",
        f"# a list\nffconcat version 1.0\nfile {name}\n",
        f"file '{name}'\n",
        (
            f'<?xml version="1.0"?>\n<!-- {"-" * 5000} -->\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
            f'type="static" profiles="urn:mpeg:dash:profile:full:2011">'
            f"<Period><AdaptationSet><Representation "
            f'id="0"><BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>\n'
        ),
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nm=video 5004 RTP/AVP 96\r\n",
        f"[playlist]\nFile1={name}\nNumberOfEntries=1\n",
        f"{name}\n",
        f'<smil><body><video src="{name}"/></body></smil>\n',
        ";FFMETADATA1\ntitle=none\n",
    ][rng.integers(12)]
    suffix = str(rng.choice([".m3u8", ".m3u", ".mp4", ".txt", ".ffconcat", ".mpd", ".sdp", ".pls"]))
    return _written(target, suffix, text.encode())


def no_video_at_all(rng: Generator, bases: Bases, target: Path) -> Path:
    picture = av.VideoFrame.from_ndarray(moving_frames(1)[0], format="rgb24")
    png = av.CodecContext.create("png", "w")
    png.width, png.height, png.pix_fmt, png.time_base = 64, 48, "rgb24", Fraction(1, 24)
    contents: list[bytes] = [
        b"",
        b"\0",
        bytes(100_000),
        rng.bytes(50_000),
        b"this is no video\n" * 100,
        "Это не видео\n".encode() * 50,
        b'{"json": true}\n',
        b"<html><body>404 not found</body></html>\n" * 20,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        zlib.compress(rng.bytes(3000)),
        b"PK\x03\x04" + rng.bytes(2000),
        b"\x00\x00\x00\x18ftypmp42" + bytes(12),
        b"RIFF\xff\xff\xff\xffAVI LIST",
        b"\x1aE\xdf\xa3" + rng.bytes(400),
        b"GIF89a",
        bytes(png.encode(picture)[0]),
    ]
    suffix = str(rng.choice([".mp4", ".mkv", ".avi", ".txt", ""]))
    return _written(target, suffix, contents[rng.integers(len(contents))])


def several_streams(rng: Generator, bases: Bases, target: Path) -> Path:
    """A video with a cover, with a second video, or with sound, in any order."""
    suffix = str(rng.choice([".mp4", ".mkv", ".mov"]))
    path = target.with_name(target.name + suffix)
    plan = [
        ["video", "cover"],
        ["cover", "video"],
        ["sound", "video"],
        ["video", "other"],
        ["other", "video", "sound"],
    ]
    names = plan[rng.integers(len(plan))]
    if suffix == ".mkv":
        names = [name for name in names if name != "cover"]
    with av.open(str(path), "w") as container:
        streams = {}
        for name in names:
            if name == "sound":
                streams[name] = container.add_stream("aac", rate=44100, layout="stereo")
                continue
            stream = container.add_stream("mjpeg" if name == "cover" else "libx264", rate=24)
            stream.height, stream.width = {"video": (48, 64), "other": (32, 32), "cover": (64, 64)}[name]
            stream.pix_fmt = "yuvj420p" if name == "cover" else "yuv420p"
            if name == "cover":
                stream.disposition = av.stream.Disposition.attached_pic
            streams[name] = stream
        for name, stream in streams.items():
            if name == "sound":
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((2, 88200), np.float32), format="fltp", layout="stereo"
                )
                frame.sample_rate = 44100
                container.mux([*stream.encode(frame), *stream.encode()])
                continue
            for image in moving_frames(1 if name == "cover" else 24, stream.height, stream.width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return path


def end_to_end(rng: Generator, bases: Bases, target: Path) -> Path:
    """Files one after the other: recordings of one camera, or of several."""
    first = bases.pick(rng)
    second = first if rng.random() < 0.4 else bases.pick(rng, first.suffix)
    return _written(target, first.suffix, first.read_bytes() + second.read_bytes())


def foreign_payload(rng: Generator, bases: Bases, target: Path) -> Path:
    """The header of one file before the payload of another."""
    first, second = bases.pick(rng), bases.pick(rng)
    place = int(rng.choice([64, 1024, 4096]))
    return _written(target, first.suffix, first.read_bytes()[:place] + second.read_bytes()[place:])


def size_changes(rng: Generator, bases: Bases, target: Path) -> Path:
    suffix, codec = [(".ts", "libx264"), (".mpg", "mpeg2video"), (".h264", "libx264")][rng.integers(3)]
    parts = []
    for number, (height, width) in enumerate([(48, 64), (64, 96), (48, 64)][: rng.integers(2, 4)]):
        part = target.with_name(f"{target.name}_{number}{suffix}")
        parts.append(
            write_video(part, moving_frames(20, height, width), codec=codec, options={"g": "10"}).read_bytes()
        )
    return _written(target, suffix, b"".join(parts))


def edit_list(rng: Generator, bases: Bases, target: Path) -> Path:
    source = bases.pick(rng, ".mp4", ".mov")
    data = bytearray(source.read_bytes())
    for place in boxes(data, b"elst"):
        struct.pack_into(">I", data, place + 12, int(rng.choice([0, 1, 100, 500, 1000, 5000])))
        struct.pack_into(">i", data, place + 16, int(rng.choice([-1, 0, 512, 1024, 3000, 6000, 100000])))
    return _written(target, source.suffix, data)


def packets_lost(rng: Generator, bases: Bases, target: Path) -> Path:
    """Packets left out, perhaps the first key frame."""
    source = bases.pick(rng, ".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts", ".flv", ".mpg")
    lost = {0} if rng.random() < 0.4 else set(rng.integers(0, 48, int(rng.choice([1, 3, 15]))).tolist())
    return copied(
        source,
        target.with_name(target.name + source.suffix),
        lambda packets: [packet for place, packet in enumerate(packets) if place not in lost],
    )


def packets_swapped(rng: Generator, bases: Bases, target: Path) -> Path:
    """Packets doubled, emptied in part, or given the bytes of others."""
    source = bases.pick(rng, ".mp4", ".mkv", ".webm", ".avi", ".mov")
    hit = set(rng.integers(0, 48, 3).tolist())

    def change(packets: list[av.Packet]) -> Iterator[av.Packet]:
        for place, packet in enumerate(packets):
            if place not in hit:
                yield packet
                continue
            data = bytes(packet)
            other = av.Packet(
                bytes(packets[place - 1]) if rng.random() < 0.5 else data[: len(data) // 2] or b"\0"
            )
            other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
            other.is_keyframe = packet.is_keyframe
            yield other

    return copied(source, target.with_name(target.name + source.suffix), change)


def fragments(rng: Generator, bases: Bases, target: Path) -> Path:
    """An mp4 in fragments: whole, cut, or with one of them damaged."""
    data = bytearray((bases.folder / "h264_parts.mp4").read_bytes())
    match rng.integers(4):
        case 0:
            data = data[: int(len(data) * rng.random())]
        case 1:
            data = data[: [*boxes(data, b"moof"), len(data)][rng.integers(1, 4)] - 4]
        case 2:
            place = boxes(data, b"moof")[rng.integers(3)]
            data = flipped(data, rng, place, place + 120, 2)
        case _:
            place = boxes(data, b"tfdt")[rng.integers(3)]
            data[place + 8 : place + 16] = struct.pack(">Q", int(rng.choice([0, 1 << 20, 1 << 40])))
    return _written(target, ".mp4", data)


def scans(rng: Generator, bases: Bases, target: Path) -> Path:
    """Bare streams and stills."""
    suffix, codec, pixels = [
        (".h264", "libx264", "yuv420p"),
        (".hevc", "libx265", "yuv420p"),
        (".m2v", "mpeg2video", "yuv420p"),
        (".mjpeg", "mjpeg", "yuvj420p"),
        (".ivf", "libvpx", "yuv420p"),
        (".apng", "apng", "rgb24"),
        (".y4m", "rawvideo", "yuv420p"),
        (".nut", "mpeg4", "yuv420p"),
        (".3gp", "mpeg4", "yuv420p"),
        (".asf", "mpeg4", "yuv420p"),
        (".vob", "mpeg2video", "yuv420p"),
        (".webp", "libwebp", "yuv420p"),
        (".mxf", "mpeg2video", "yuv420p"),
        (".m2ts", "libx264", "yuv420p"),
    ][rng.integers(14)]
    path = target.with_name(target.name + suffix)
    count = 1 if suffix == ".webp" else int(rng.integers(1, 30))
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    frames = moving_frames(count)
    return write_video(path, frames, 25, codec=codec, pixel_format=pixels, options=options)


KINDS: dict[str, Maker] = {
    "whole": whole,
    "bits turned over in the header": bits_in_header,
    "bits turned over in the index": bits_in_index,
    "bits turned over in the payload": bits_in_payload,
    "zeros in the payload": zeros_in_payload,
    "end cut off": cut,
    "beginning cut off": beginning_lost,
    "bytes left out in the middle": middle_lost,
    "rubbish before or after": rubbish_around,
    "wrong ending of the name": wrong_ending,
    "no frames": no_frames,
    "odd sizes of frames": odd_sizes,
    "absurd dimensions in the header": absurd_dimensions,
    "broken index": broken_index,
    "variable frame rate": variable_rate,
    "odd time stamps": odd_stamps,
    "display matrix of a right angle": display_matrix,
    "odd display matrix": odd_display_matrix,
    "odd pixel formats": odd_pixels,
    "sound only": sound_only,
    "header claims more": header_claims_more,
    "header claims less": header_claims_less,
    "playlist": playlist,
    "no video at all": no_video_at_all,
    "several streams": several_streams,
    "files end to end": end_to_end,
    "payload of another file": foreign_payload,
    "size changes midway": size_changes,
    "edit list": edit_list,
    "packets lost": packets_lost,
    "packets doubled or shortened": packets_swapped,
    "fragmented mp4": fragments,
    "bare streams and rare containers": scans,
}


def make(number: int, bases: Bases, folder: Path) -> tuple[str, Path]:
    """Kind and path of the file of this number."""
    kind = list(KINDS)[number % len(KINDS)]
    try:
        return kind, KINDS[kind](np.random.default_rng([SEED, number]), bases, folder / f"{number:04d}")
    except FFmpegError:  # what a muxer refuses to write ends there
        path = next(folder.glob(f"{number:04d}*"), folder / f"{number:04d}.mp4")
        path.touch()
        return kind, path


Turn = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
UNTURNED: Turn = TURNS[1, 0, 0, 1]


class Verdict(NamedTuple):
    """What came of reading one file."""

    number: int
    kind: str
    name: str
    sound: bool
    overlooked: bool  # sound by ffmpeg, while PyAV meets an error or no video
    outcome: str  # of OUTCOMES
    said: str  # the refusal, or what is wrong
    seconds: float


class Plain(NamedTuple):
    """A plain decode by PyAV: every frame in the order shown that no error spoilt."""

    frames: list[NDArray[np.uint8]]  # (H, W, 3) each, upright
    times: list[float | None]  # seconds after the first
    errors: int  # met on the way
    path: Path
    turn: Turn

    def is_undetermined(self, index: int) -> bool:
        """Whether PyAV shows another frame when it begins at the key frame before.

        Then damage of which the decoder does not tell left a part of the frame as it was in memory.
        """
        with av.open(f"file:{self.path}", metadata_errors="replace") as container:
            stream = container.streams.video[0]
            stamp = [frame.pts for frame in container.decode(stream)][index]
            container.seek(stamp, stream=stream)
            decoded = list(container.decode(stream))
        if not decoded or not decoded[0].key_frame:
            return False
        sought = [frame.to_ndarray(format="rgb24") for frame in decoded if frame.pts == stamp]
        shown = self.turn(sought[0]) if sought else self.frames[index]
        return shown.shape == self.frames[index].shape and not np.array_equal(shown, self.frames[index])


def ffmpeg_calls_sound(path: Path) -> bool:
    """Whether ffmpeg reads the first video stream, covers aside, without an error, and shows a frame."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-xerror", "-err_detect", "explode", "-i", f"file:{path}"]
    command += ["-map", "0:V:0", "-progress", "-", "-f", "null", "-"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return False
    shown = re.findall(rb"^frame=(\d+)", done.stdout, re.MULTILINE)
    return done.returncode == 0 and bool(shown) and int(shown[-1]) > 0


def plain_decode(path: Path) -> Plain:
    """PyAV's frames, going on after errors. Covers and text files, which ffmpeg shows, are no video."""
    frames: list[NDArray[np.uint8]] = []
    stamps: list[float | None] = []
    errors = 0
    turn = UNTURNED
    width = height = 0
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")
    except FFmpegError:
        return Plain([], [], 1, path, turn)
    with container:
        stream = container.streams.best("video")
        if (
            stream is None
            or stream.codec_context is None
            or stream.disposition & av.stream.Disposition.attached_pic
            or container.format.name == "tty"
        ):
            return Plain([], [], 1, path, turn)
        stream.codec_context.options = {"err_detect": "explode"}
        packets = container.demux(stream)
        decoded: list[av.VideoFrame] = []
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except FFmpegError:
                errors += 1
                break
            try:
                decoded = packet.decode()
            except FFmpegError:
                errors += 1
                continue
            for frame in decoded:
                if not frames:
                    turn = nearest_turn(frame.side_data.get("DISPLAYMATRIX"))
                    width, height = frame.width, frame.height
                frames.append(turn(frame.to_ndarray(format="rgb24", width=width, height=height)))
                stamps.append(None if frame.pts is None else float(frame.pts * frame.time_base))
    first = stamps[0] if stamps else None
    times = [None if stamp is None or first is None else stamp - first for stamp in stamps]
    return Plain(frames, times, errors, path, turn)


def nearest_turn(matrix: object) -> Turn:
    """That of the eight right-angled turns and mirrors which is most like this display matrix."""
    if matrix is None:
        return UNTURNED
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)  # type: ignore[call-overload]
    return TURNS[max(TURNS, key=lambda turn: float(np.dot(turn, (a, b, c, d))))]


def judged(number: int, kind: str, path: Path, decoder: Decoder) -> Verdict:
    """Read one file and hold what came of it against ffmpeg's word and a plain decode."""
    started = time.monotonic()
    outcome, said, video = "read", "", None
    try:
        video = decoder.read_frames(path, FRAMES)
    except VideoError as error:
        outcome, said = "refused", str(error)
        if any(sign in said for sign in ("\n", "Traceback", "Stack trace", "Error", ".cc:", 'File "')):
            outcome = "traceback"
    except Exception as error:  # noqa: BLE001 - any other exception would have ended the program
        outcome, said = "crash", repr(error)
    seconds = time.monotonic() - started
    plain = plain_decode(path)
    by_ffmpeg = ffmpeg_calls_sound(path)
    sound = by_ffmpeg and bool(plain.frames) and not plain.errors
    if seconds > 2 * LIMIT:
        outcome, said = "hang", f"{seconds:.0f} seconds"
    elif kind == "playlist":
        if video is not None:
            outcome, said = "wrong", "a playlist was read"
    elif outcome == "refused" and sound:
        outcome, said = "wrong", f"sound, but {said}"
    elif video is not None:
        difference = _difference(video, plain, sound)
        if difference:
            outcome, said = "wrong", difference
    return Verdict(number, kind, path.name, sound, by_ffmpeg and not sound, outcome, said, seconds)


def _difference(video: DecodedVideo, plain: Plain, sound: bool) -> str:
    """What is wrong with these frames; empty: nothing."""
    if not plain.frames:
        return "read, but a plain decode finds no frames"
    if not np.all(np.diff(video.times) >= 0) or video.times[0] != 0 or video.seconds < video.times[-1]:
        return f"times {video.times.tolist()} of {video.seconds} seconds"
    if not sound:
        left = iter(plain.frames)
        newest = None
        for place, frame in enumerate(video.frames):
            if newest is not None and np.array_equal(frame, newest):
                continue
            if not any(np.array_equal(frame, newest := item) for item in left):
                return f"sampled frame {place} is none of the {len(plain.frames)} that are whole"
        return ""
    indices = np.linspace(0, len(plain.frames) - 1, FRAMES, dtype=int)
    for place, index in enumerate(indices):
        if video.frames.shape[1:] != plain.frames[index].shape:
            return f"shape {video.frames.shape[1:]} instead of {plain.frames[index].shape}"
        if not np.array_equal(video.frames[place], plain.frames[index]):
            if plain.is_undetermined(index):
                continue
            off = np.abs(video.frames[place].astype(int) - plain.frames[index]).mean()
            same = [i for i, frame in enumerate(plain.frames) if np.array_equal(frame, video.frames[place])]
            return f"frame {index} of {len(plain.frames)} is {same or 'none'} (off by {off:.2f} on average)"
    times = [plain.times[index] for index in indices]
    known = [time for time in plain.times if time is not None]
    telling = len(set(known)) == len(plain.times) and known == sorted(known)
    if telling and not np.allclose(video.times, np.array(times, float), atol=2e-3):
        return f"times {video.times.tolist()} instead of {times}"
    return ""


def judge(numbers: Sequence[int], folder: Path, threads: int = 2) -> list[Verdict]:
    """The verdicts on the files of these numbers, which are made in this folder and deleted once read."""
    bases = Bases(folder / "bases")

    def one_share(share: Sequence[int]) -> list[Verdict]:
        verdicts = []
        with Decoder(LIMIT) as decoder:
            for number in share:
                kind, path = make(number, bases, folder)
                verdicts.append(judged(number, kind, path, decoder))
                path.unlink(missing_ok=True)
        return verdicts

    with ThreadPoolExecutor(threads) as pool:
        shares = pool.map(one_share, [numbers[first::threads] for first in range(threads)])
        return sorted(verdict for share in shares for verdict in share)


def table(verdicts: Sequence[Verdict]) -> str:
    """The count of outcomes by kind, in Markdown."""
    columns = ("kind", "files", "sound", "by ffmpeg alone", *OUTCOMES)
    lines = [f"| {' | '.join(columns)} |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for kind in [*KINDS, "all"]:
        mine = [verdict for verdict in verdicts if kind in ("all", verdict.kind)]
        outcomes = Counter(verdict.outcome for verdict in mine)
        sound, overlooked = sum(video.sound for video in mine), sum(video.overlooked for video in mine)
        cells = (kind, len(mine), sound, overlooked, *(outcomes[outcome] for outcome in OUTCOMES))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def failures(verdicts: Sequence[Verdict]) -> list[str]:
    """One line for each file that came to something else than it must."""
    return [
        f"{verdict.number} {verdict.name} ({verdict.kind}{', sound' if verdict.sound else ''}): "
        f"{verdict.outcome}: {verdict.said}"
        for verdict in verdicts
        if verdict.outcome not in ("read", "refused")
    ]


if __name__ == "__main__":
    first, last = (int(text) for text in [*sys.argv[1:], *("0", str(COUNT))[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as name:
        found = judge(range(first, last), Path(name))
    sys.stdout.write("\n".join([table(found), *failures(found), ""]))
