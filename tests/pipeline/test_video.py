from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError

from pipeline.errors import PipelineError, VideoError
from pipeline.resizing import FrameSize, resized
from pipeline.video import Decoder, content_hash, read_frames
from tests.videos import (
    TURNS,
    moving_frames,
    real_clip,
    truncated,
    with_display_matrix,
    write_audio,
    write_stamped,
    write_video,
)

CHILD = Path(__file__).parents[2] / "pipeline" / "_decode_child.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as shared:
        yield shared


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 frames of H.264, its index at the front."""
    path = tmp_path_factory.mktemp("videos") / "whole.mp4"
    return write_video(
        path, moving_frames(120), options={"g": "20"}, container_options={"movflags": "faststart"}
    )


def faulty_decoder(folder: Path, fault: str, timeout: float = 60.0) -> Decoder:
    """A decoder whose process was changed by these lines of Python before it began to serve."""
    script = folder / "faulty.py"
    script.write_text(
        "import importlib.util, os, signal, sys, time\n"
        f"spec = importlib.util.spec_from_file_location('child', {str(CHILD)!r})\n"
        "child = importlib.util.module_from_spec(spec)\n"
        "sys.modules['child'] = child\n"
        "spec.loader.exec_module(child)\n"
        "def hang(*_):\n    while True: time.sleep(0.01)\n"
        "def crash(*_):\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
        + textwrap.dedent(fault)
        + "\nchild.main()\n"
    )
    return Decoder(timeout, command=[sys.executable, "-P", str(script)])


def all_frames(path: Path) -> list[np.ndarray]:
    """Every frame from a plain decode of the whole file."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def test_frames_are_sampled_evenly_from_the_first_to_the_last(decoder: Decoder, whole: Path) -> None:
    video = decoder.read_frames(whole, 8)
    indices = np.linspace(0, 119, 8, dtype=int)
    assert video.frames.shape == (8, 48, 64, 3)
    assert video.frames.dtype == np.uint8
    assert video.times == pytest.approx(indices / 24)
    assert video.seconds == pytest.approx(120 / 24)
    assert np.array_equal(video.frames, np.stack(all_frames(whole))[indices])


def test_a_short_video_repeats_frames(decoder: Decoder, tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", moving_frames(3))
    video = decoder.read_frames(path, 8)
    assert np.array_equal(video.frames, np.stack(all_frames(path))[[0, 0, 0, 0, 1, 1, 1, 2]])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("closed.mp4", "libx264", {"g": "20", "bf": "3"}),
        # decord returns neighbours of the frames asked for in all of these
        ("open.mp4", "libx264", {"g": "20", "bf": "3", "x264-params": "open-gop=1"}),
        ("open_hevc.mp4", "libx265", {"x265-params": "keyint=20:open-gop=1:bframes=4:log-level=none"}),
        ("stream.ts", "libx264", {"g": "20", "bf": "3"}),
        ("old.avi", "mpeg4", {"bf": "2"}),
        ("closed.mkv", "libx264", {"g": "20"}),
        ("altref.webm", "libvpx-vp9", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("new.mp4", "libsvtav1", {"svtav1-params": "keyint=20"}),
    ],
)
def test_frames_are_exactly_those_of_a_plain_decode(
    decoder: Decoder, tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = write_video(tmp_path / name, moving_frames(100, 96, 128), codec=codec, options=options)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # an encoder may leave real-time priority behind
    frames = np.stack(all_frames(path))
    video = decoder.read_frames(path, 17)
    indices = np.linspace(0, 99, 17, dtype=int)
    assert np.array_equal(video.frames, frames[indices])
    assert video.times == pytest.approx(indices / 24, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "codec", "pixel_format", "height", "width"),
    [
        ("landscape.mp4", "libx264", "yuv420p", 72, 128),
        ("portrait.mp4", "libx264", "yuv420p", 128, 72),
        ("small.mp4", "libx264", "yuv420p", 16, 24),
        ("ten_bits.mp4", "libx264", "yuv420p10le", 80, 104),
        ("read_by_pyav.ts", "libx264", "yuv420p", 128, 72),
    ],
)
def test_frames_are_resized_where_they_are_decoded(
    decoder: Decoder, tmp_path: Path, name: str, codec: str, pixel_format: str, height: int, width: int
) -> None:
    frames = moving_frames(20, height, width)
    path = write_video(tmp_path / name, frames, codec=codec, pixel_format=pixel_format)
    whole = decoder.read_frames(path, 30)
    small = decoder.read_frames(path, 30, size=FrameSize(32, 3))
    assert whole.frames.shape == (30, height, width, 3)
    assert np.array_equal(small.frames, np.stack([resized(frame, 32, 3) for frame in whole.frames]))
    assert np.array_equal(small.times, whole.times)


def test_a_mirrored_video_is_resized_upright(decoder: Decoder, tmp_path: Path) -> None:
    flat = write_video(tmp_path / "flat.mp4", moving_frames(2))
    path = with_display_matrix(flat, tmp_path / "turned.mp4", (0, 1, 1, 0))
    frames = decoder.read_frames(path, 2, size=FrameSize(32, 2)).frames
    expected = [resized(frame.swapaxes(0, 1), 32, 2) for frame in all_frames(flat)]
    assert np.array_equal(frames, np.stack(expected))


@pytest.mark.parametrize("matrix", TURNS, ids=str)
def test_turned_and_mirrored_videos_come_out_as_players_show_them(
    decoder: Decoder, tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    flat = write_video(tmp_path / "flat.mp4", moving_frames(4))
    frames = decoder.read_frames(with_display_matrix(flat, tmp_path / "turned.mp4", matrix), 4).frames
    assert np.array_equal(frames, np.stack([TURNS[matrix](frame) for frame in all_frames(flat)]))


def test_an_orientation_told_with_the_first_frame_holds_for_all(decoder: Decoder, tmp_path: Path) -> None:
    """H.264 can say it within the stream, where most encoders repeat it with key frames at best."""
    flat = write_video(tmp_path / "flat.mp4", moving_frames(12), options={"bf": "0"})
    path = tmp_path / "turned.mp4"
    with av.open(str(flat)) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        told = BitStreamFilterContext("h264_metadata=display_orientation=insert:rotate=270", stream)
        for packet in source.demux(stream):
            for filtered in told.filter(packet if packet.size else None):
                filtered.stream = copy
                target.mux(filtered)
    frames = decoder.read_frames(path, 12).frames
    assert np.array_equal(frames, np.stack([np.rot90(frame, -1) for frame in all_frames(flat)]))


@pytest.mark.parametrize("matrix", [*TURNS, (2, 0, 0, -1), (1, 0.01, -0.01, 1)], ids=str)
def test_ffmpeg_turns_and_mirrors_alike(
    decoder: Decoder, tmp_path: Path, matrix: tuple[float, float, float, float]
) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    flat = write_video(tmp_path / "flat.mp4", moving_frames(2))
    path = with_display_matrix(flat, tmp_path / "turned.mp4", matrix)
    frame = decoder.read_frames(path, 1).frames[0]
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        path,
        "-frames:v",
        "1",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    shown = np.frombuffer(raw, np.uint8).reshape(frame.shape).astype(int)
    assert np.abs(shown - frame).mean() < 3  # releases differ in rounding colours


GAP = [*range(48), *range(528, 576)]  # 24 a second, with nothing shown for 20 seconds
AT_THE_GAP = [0, 0.458, 0.958, 1.458, 1.958, 22.458, 22.958, 23.458, 23.958]


def in_milliseconds(stamps: Sequence[int]) -> list[int]:
    return [round(stamp * 1000 / 24) for stamp in stamps]


@pytest.mark.parametrize("name", ["gap.mkv", "gap.webm", "gap.ts", "gap.mp4"])
def test_length_and_times_of_a_variable_frame_rate_are_those_of_the_stamps(
    decoder: Decoder, tmp_path: Path, name: str
) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = write_stamped(tmp_path / name, moving_frames(96), in_milliseconds(GAP), codec=codec)
    video = decoder.read_frames(path, 9)
    assert video.times == pytest.approx(AT_THE_GAP, abs=2e-3)
    assert video.seconds == pytest.approx(24.0, abs=5e-3)
    assert decoder.probe(path).seconds == video.seconds


@pytest.mark.parametrize("doubled", [60, 47], ids=["in the middle", "before the gap"])
def test_a_doubled_stamp_leaves_the_others_as_they_are(
    decoder: Decoder, tmp_path: Path, doubled: int
) -> None:
    stamps = in_milliseconds(GAP)
    stamps[doubled] = stamps[doubled - 1]
    path = write_stamped(tmp_path / "doubled.mkv", moving_frames(96), stamps)
    video = decoder.read_frames(path, 96)
    assert video.times == pytest.approx(np.array(GAP) / 24, abs=2e-3)
    assert video.seconds == pytest.approx(24.0, abs=5e-3)
    assert np.array_equal(video.frames, np.stack(all_frames(path)))


def test_a_rate_finer_than_the_stamps_is_told_within_their_resolution(
    decoder: Decoder, tmp_path: Path
) -> None:
    stamps = [(frame + 1) // 2 for frame in range(200)]
    video = decoder.read_frames(
        write_stamped(tmp_path / "fast.mkv", moving_frames(200), stamps, fps=1000), 200
    )
    assert video.times == pytest.approx(np.arange(200) / 2000, abs=1e-3)
    assert np.all(np.diff(video.times) > 0)
    assert video.seconds == pytest.approx(0.1, abs=1.5e-3)
    assert video.times[-1] < video.seconds


def test_frames_dropped_while_recording_are_no_truncation(decoder: Decoder, tmp_path: Path) -> None:
    stamps = [stamp for stamp in range(72) if stamp % 12 != 7]
    path = write_stamped(tmp_path / "dropped.avi", moving_frames(66), in_milliseconds(stamps), codec="mpeg4")
    video = decoder.read_frames(path, 66)
    assert np.array_equal(video.frames, np.stack(all_frames(path)))
    assert video.times == pytest.approx(np.array(stamps) / 24)
    assert video.seconds == pytest.approx(3.0)
    with pytest.raises(VideoError, match=r"is truncated: \d\d of its 72 frames are there"):
        decoder.read_frames(truncated(path, tmp_path / "cut.avi", 0.8), 2)


def test_recordings_put_end_to_end_are_read_one_after_the_other(decoder: Decoder, tmp_path: Path) -> None:
    frames = moving_frames(48)
    parts = [
        write_stamped(tmp_path / "late.ts", frames[:24], in_milliseconds(range(160, 184))),
        write_stamped(tmp_path / "early.ts", frames[24:], in_milliseconds(range(50, 74))),
    ]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = decoder.read_frames(path, 48)
    assert np.array_equal(video.frames, np.concatenate([all_frames(part) for part in parts]))
    assert video.times == pytest.approx(np.arange(48) / 24, abs=2e-3)
    assert video.seconds == pytest.approx(2.0, abs=5e-3)


def test_stamps_in_the_order_of_decoding_do_not_choose_the_frames(decoder: Decoder, tmp_path: Path) -> None:
    """AVI cannot say when reordered frames are shown: frame 23 is not the 24th to be decoded."""
    path = write_video(tmp_path / "reordered.avi", moving_frames(48), options={"bf": "3"})
    assert np.array_equal(decoder.read_frames(path, 3).frames, np.stack(all_frames(path))[[0, 23, 47]])


@pytest.mark.parametrize(
    ("name", "size", "first", "last"),
    [
        ("nasa_13013.mp4", (270, 480), 0.0, 12.98),
        ("big_buck_bunny_0_30.webm", (720, 1280), 0.0, 29.96),
        ("decord_unordered.mov", (50, 50), 0.0, 0.094),
        ("decord_video_90.mov", (568, 320), 0.0, 0.067),
    ],
)
def test_real_clips_decode(
    decoder: Decoder, name: str, size: tuple[int, int], first: float, last: float
) -> None:
    video = decoder.read_frames(real_clip(name), 16)
    assert video.frames.shape == (16, *size, 3)
    assert (video.times[0], video.times[-1]) == (pytest.approx(first), pytest.approx(last, abs=0.01))
    assert np.all(np.diff(video.times) >= 0)


def test_the_damaged_real_clip_is_named_with_its_damage(decoder: Decoder) -> None:
    path = real_clip("decord_corrupted.mp4")
    with pytest.raises(
        VideoError, match=r"decord_corrupted\.mp4 is damaged: it cannot be decoded near second 3\.0"
    ):
        decoder.read_frames(path, 8)


def spoilt_quietly(source: Path, target: Path) -> bool:
    """Damage one byte so that a plain decode raises nothing, and only marks a frame."""
    data = source.read_bytes()
    for place in range(len(data) // 2, len(data), 41):
        target.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        with contextlib.suppress(FFmpegError), av.open(str(target)) as container:
            marks = [frame.is_corrupt for frame in container.decode(video=0)]
            if any(marks):
                return True
    return False


def test_spoilt_frames_are_not_shown_as_whole(decoder: Decoder, whole: Path, tmp_path: Path) -> None:
    """H.264's decoder fills in what it cannot decode, and decord tells of it in its log alone."""
    path = tmp_path / "flipped.mp4"
    assert spoilt_quietly(whole, path)
    with pytest.raises(VideoError, match=r"is damaged: it cannot be decoded near second \d\.\d"):
        decoder.read_frames(path, 120)


def test_an_index_without_key_frames_changes_no_frame(decoder: Decoder, whole: Path, tmp_path: Path) -> None:
    """A lost table of key frames means that every frame is one: seeking would begin anywhere."""
    path = tmp_path / "every_frame_a_key.mp4"
    path.write_bytes(whole.read_bytes().replace(b"stss", b"free"))
    indices = np.linspace(0, 119, 7, dtype=int)
    assert np.array_equal(decoder.read_frames(path, 7).frames, np.stack(all_frames(path))[indices])


def test_ten_bits_of_hevc_keep_their_colours(decoder: Decoder, tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "ten.mp4",
        moving_frames(10),
        codec="libx265",
        pixel_format="yuv420p10le",
        options={"x265-params": "bframes=0:log-level=none"},
    )
    assert np.array_equal(decoder.read_frames(path, 10).frames, np.stack(all_frames(path)))


def broken_files(folder: Path, whole: Path) -> dict[str, Path]:
    """Each kind of file that holds no readable video."""
    frames = moving_frames(120)
    late_index = write_video(folder / "late_index.mp4", frames)
    damaged = bytearray(whole.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 1000] = bytes(1000)
    (folder / "damaged.mp4").write_bytes(damaged)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "text.txt").write_text("this is no video\n" * 50)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    return {
        "missing": folder / "missing.mp4",
        "empty": folder / "empty.mp4",
        "text": folder / "text.mp4",
        "text file": folder / "text.txt",
        "folder": folder / "folder.mp4",
        "pipe": folder / "pipe.mp4",
        "sound": write_audio(folder / "sound.mp4"),
        "no index": truncated(late_index, folder / "no_index.mp4", 0.5),
        "cut": truncated(whole, folder / "cut.mp4", 0.6),
        "cut at the end": truncated(whole, folder / "cut_at_the_end.mp4", 0.99),
        "damaged": folder / "damaged.mp4",
    }


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "is not there"),
        ("empty", "is empty"),
        ("text", "is not a video file"),
        ("text file", "is a text file, not a video"),
        ("folder", "is a folder, not a video file"),
        ("pipe", "is not a regular file"),
        ("sound", "holds no video stream"),
        (
            "no index",
            "is truncated or damaged: it begins like a video, but its header or index cannot be read",
        ),
        ("cut", r"is truncated: \d+ of its 120 frames are there"),
        ("cut at the end", r"is truncated: 11\d of its 120 frames are there"),
        ("damaged", r"is damaged: it cannot be decoded near second \d\.\d"),
    ],
)
def test_a_broken_file_gets_one_clear_sentence(
    decoder: Decoder, whole: Path, tmp_path: Path, kind: str, message: str
) -> None:
    path = broken_files(tmp_path, whole)[kind]
    with pytest.raises(VideoError, match=message) as caught:
        decoder.read_frames(path, 8)
    assert str(caught.value).startswith(f"video {path} ")
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("name", ["cut.mkv", "cut.webm"])
def test_a_recording_that_just_ends_is_read_to_its_end(decoder: Decoder, tmp_path: Path, name: str) -> None:
    """As ffmpeg and PyAV read Matroska: the length in its header proves nothing."""
    codec = "libvpx" if name.endswith("webm") else "libx264"
    source = write_video(tmp_path / f"whole_{name}", moving_frames(96), codec=codec, options={"g": "12"})
    path = truncated(source, tmp_path / name, 0.6)
    video = decoder.read_frames(path, 5)
    frames = all_frames(path)
    assert 12 < len(frames) < 96
    assert np.array_equal(video.frames, np.stack(frames)[np.linspace(0, len(frames) - 1, 5, dtype=int)])
    assert video.seconds == pytest.approx(len(frames) / 24, abs=5e-3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_said_to_be_so(decoder: Decoder, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.mp4"
    path.write_bytes(whole.read_bytes())
    path.chmod(0)
    with pytest.raises(VideoError, match="cannot be read: permission denied"):
        decoder.read_frames(path, 8)


def test_a_refused_permission_is_said_to_be_so(
    decoder: Decoder, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(VideoError, match="cannot be read: permission denied"):
        decoder.read_frames(whole, 8)


def test_an_edit_list_is_not_taken_for_truncation(decoder: Decoder, tmp_path: Path) -> None:
    path = write_video(tmp_path / "edited.mp4", moving_frames(96), options={"bf": "0", "g": "8"})
    data = bytearray(path.read_bytes())
    # elst, version 0: name, version and flags, number of entries, then the duration in ms: 4 s become 2 s.
    start = data.index(b"elst") + 12
    data[start : start + 4] = (2000).to_bytes(4, "big")
    path.write_bytes(data)
    video = decoder.read_frames(path, 5)
    assert video.times[-1] == pytest.approx(2.0, abs=0.1)


def test_names_that_look_like_urls_are_files(decoder: Decoder, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "http:clip one ä.mp4"
    path.write_bytes(whole.read_bytes())
    with contextlib.chdir(tmp_path):
        assert decoder.read_frames(path.name, 2).frames.shape == (2, 48, 64, 3)


def test_the_process_serves_many_videos(whole: Path, tmp_path: Path) -> None:
    with Decoder() as decoder:
        decoder.read_frames(whole, 2)
        first = decoder._process
        with pytest.raises(VideoError):
            decoder.read_frames(write_audio(tmp_path / "sound.mp4"), 2)
        decoder.read_frames(whole, 3)
        assert decoder._process is first


def test_closing_ends_the_process_and_a_later_request_starts_another(whole: Path) -> None:
    decoder = Decoder()
    decoder.read_frames(whole, 2)
    process = decoder._process
    decoder.close()
    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert decoder.read_frames(whole, 2).frames.shape[0] == 2
    decoder.close()


@pytest.mark.parametrize(
    "fault",
    [
        "child.READERS['decord'] = hang",
        "child.READERS['decord'] = crash",
    ],
)
def test_a_reader_that_hangs_or_crashes_is_replaced_by_the_next(
    whole: Path, tmp_path: Path, fault: str
) -> None:
    with Decoder() as sound, faulty_decoder(tmp_path, fault, timeout=1.0) as decoder:
        expected = sound.read_frames(whole, 8)
        read = decoder.read_frames(whole, 8)
        assert np.array_equal(read.frames, expected.frames)
        assert np.array_equal(read.times, expected.times)


def test_a_video_no_reader_comes_back_from_is_said_to_have_timed_out(whole: Path, tmp_path: Path) -> None:
    with faulty_decoder(
        tmp_path, "child.READERS = dict.fromkeys(child.READERS, hang)", timeout=0.2
    ) as decoder:
        with pytest.raises(
            VideoError, match=r"whole\.mp4 could not be decoded: no progress for 0\.2 seconds"
        ):
            decoder.read_frames(whole, 8)
        assert decoder._process is None


def test_a_slow_video_is_read_as_long_as_its_decoding_goes_on(tmp_path: Path) -> None:
    """With one key frame, decord goes through all 120 frames to get the last one: 1.2 seconds here.

    Before, the time for the whole was limited, and what took longer was tried three times.
    """
    path = write_video(tmp_path / "long.mp4", moving_frames(120), options={"g": "1000", "bf": "0"})
    slow = """
        class Slow(child.decord.VideoReader):
            position = 0
            def seek_accurate(self, position):
                time.sleep(0.01 * (position - self.position))
                self.position = position
                super().seek_accurate(position)
        child.decord.VideoReader = Slow
    """
    with faulty_decoder(tmp_path, slow, timeout=0.5) as decoder:
        decoder.probe(path)
        process = decoder._process
        frames = decoder.read_frames(path, 2).frames
        assert decoder._process is process
    assert np.array_equal(frames, np.stack(all_frames(path))[[0, 119]])


def test_a_long_file_and_large_frames_are_given_more_time(whole: Path, tmp_path: Path) -> None:
    slow = """
        child.SLOW_READING, child.SLOW_DECODING = os.path.getsize({path!r}) / 0.6, 32 * 48 * 64 / 0.6
        usual = child.READERS["decord"]
        def slow(*arguments):
            time.sleep(0.8)
            return usual(*arguments)
        child.READERS["decord"] = slow
    """
    with faulty_decoder(tmp_path, slow.format(path=str(whole)), timeout=0.2) as decoder:
        decoder.probe(whole)
        process = decoder._process
        decoder.read_frames(whole, 2)
        assert decoder._process is process


def test_a_container_that_hangs_is_said_to_have_timed_out(whole: Path, tmp_path: Path) -> None:
    with (
        faulty_decoder(
            tmp_path, "hang.cache_clear = lambda: None; child.inspect = hang", timeout=0.2
        ) as decoder,
        pytest.raises(VideoError, match=r"could not be opened: no progress for 0\.2 seconds"),
    ):
        decoder.read_frames(whole, 8)


def test_a_video_that_crashes_every_reader_is_said_to_do_so(whole: Path, tmp_path: Path) -> None:
    with (
        faulty_decoder(tmp_path, "child.READERS = dict.fromkeys(child.READERS, crash)") as decoder,
        pytest.raises(VideoError, match="could not be decoded: the decoder crashed on it"),
    ):
        decoder.read_frames(whole, 8)


def test_without_decord_the_frames_are_the_same(whole: Path, tmp_path: Path) -> None:
    with Decoder() as usual, faulty_decoder(tmp_path, "child.decord = None") as decoder:
        assert np.array_equal(decoder.read_frames(whole, 32).frames, usual.read_frames(whole, 32).frames)


def test_a_process_that_died_between_videos_is_started_again(whole: Path) -> None:
    with Decoder() as decoder:
        decoder.read_frames(whole, 2)
        assert decoder._process is not None
        decoder._process.kill()
        decoder._process.wait()
        assert decoder.read_frames(whole, 2).frames.shape[0] == 2


def test_an_interrupt_in_the_middle_of_a_reply_spoils_no_later_one(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Decoder() as decoder:
        expected = decoder.read_frames(whole, 4).frames

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "_receive_into", interrupt)
            with pytest.raises(KeyboardInterrupt):
                decoder.read_frames(whole, 8)
        assert np.array_equal(decoder.read_frames(whole, 4).frames, expected)


def test_what_libraries_print_does_not_reach_the_frames(whole: Path, tmp_path: Path) -> None:
    fault = """
        usual = child.READERS["decord"]
        def noisy(*arguments):
            os.write(1, b"a remark of some library\\n")
            print("another")
            return usual(*arguments)
        child.READERS["decord"] = noisy
    """
    with faulty_decoder(tmp_path, fault) as decoder:
        assert decoder.read_frames(whole, 2).frames.shape == (2, 48, 64, 3)


def test_a_process_that_cannot_start_is_no_fault_of_the_video(whole: Path) -> None:
    decoder = Decoder(command=[sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(PipelineError, match=r"did not start \(exit code") as caught:
        decoder.read_frames(whole, 2)
    assert not isinstance(caught.value, VideoError)


def test_a_killed_parent_leaves_no_process_behind_even_in_a_decoder_that_hangs(
    whole: Path, tmp_path: Path
) -> None:
    faulty_decoder(tmp_path, "child.READERS = dict.fromkeys(child.READERS, hang)")
    script = (
        "import sys, threading, time\nfrom pipeline.video import Decoder\n"
        f"decoder = Decoder(command=[sys.executable, '-P', {str(tmp_path / 'faulty.py')!r}])\n"
        f"threading.Thread(target=decoder.read_frames, args=({str(whole)!r}, 2), daemon=True).start()\n"
        "while decoder._process is None: time.sleep(0.01)\n"
        "print(decoder._process.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1)  # into the decoder
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def is_running(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_script_needs_no_main_guard_and_the_process_ends_with_it(whole: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import pipeline.video as video\n"
        f"print(video.read_frames({str(whole)!r}, 2).frames.shape)\n"
        "print(video._shared_decoder()._process.pid)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True
    )
    shape, process = result.stdout.splitlines()
    assert shape == "(2, 48, 64, 3)"
    assert result.stderr == ""
    assert not is_running(int(process))


def test_a_fork_decodes_by_itself(whole: Path) -> None:
    # In a script: a fork of the test process would run the rest of the tests twice.
    script = (
        "import os\nfrom pipeline.video import Decoder\n"
        "decoder = Decoder()\n"
        f"decoder.read_frames({str(whole)!r}, 2)\n"
        "if os.fork() == 0:\n"
        f"    decoder.read_frames({str(whole)!r}, 3); decoder.close(); os._exit(0)\n"
        "assert os.wait()[1] == 0\n"
        f"assert decoder.read_frames({str(whole)!r}, 4).frames.shape[0] == 4\n"
        "decoder.close()\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_the_decoding_process_imports_neither_torch_nor_the_package() -> None:
    script = (
        "import runpy, sys\n"
        f"runpy.run_path({str(CHILD)!r})\n"
        "print([name for name in ('torch', 'transformers', 'pipeline') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_probe_tells_count_length_and_codec(decoder: Decoder, whole: Path) -> None:
    assert decoder.probe(whole) == (120, pytest.approx(5.0), "h264")


def test_the_function_reads_like_the_decoder(decoder: Decoder, whole: Path) -> None:
    assert np.array_equal(read_frames(whole, 4).frames, decoder.read_frames(whole, 4).frames)


@pytest.mark.parametrize("arguments", [{"timeout": 0.0}, {"timeout": -1.0}])
def test_a_timeout_is_positive(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="timeout must be positive, but got"):
        Decoder(**arguments)


def test_at_least_one_frame_is_asked_for(decoder: Decoder, whole: Path) -> None:
    with pytest.raises(ValueError, match="frames must be at least 1, but got 0"):
        decoder.read_frames(whole, 0)


def test_the_content_hash_is_the_files_sha256(whole: Path, tmp_path: Path) -> None:
    assert content_hash(whole) == hashlib.sha256(whole.read_bytes()).hexdigest()
    with pytest.raises(VideoError, match="is not there"):
        content_hash(tmp_path / "missing.mp4")


@pytest.mark.quick
def test_a_file_is_read_once_to_be_hashed_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    digest = hashlib.file_digest

    def counting(file: Any, name: Any) -> Any:
        read.append(file)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    path = tmp_path / "video.mp4"
    path.write_bytes(b"one")
    first = content_hash(path)
    assert content_hash(str(path)) == first
    assert len(read) == 1
    path.write_bytes(b"longer")
    assert content_hash(path) != first
    path.write_bytes(b"other.")
    os.utime(path, ns=(1, 1))
    assert content_hash(path) == hashlib.sha256(b"other.").hexdigest()
    assert len(read) == 3


def test_errors_survive_pickling(tmp_path: Path) -> None:
    with pytest.raises(VideoError) as caught:
        content_hash(tmp_path / "missing.mp4")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path) == (str(caught.value), caught.value.path)


@pytest.mark.quick
@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\npart.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile part.ts\n",
        '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>\n',
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
    ],
    ids=["hls", "ffconcat", "dash", "sdp"],
)
def test_a_playlist_is_refused_whatever_its_name(tmp_path: Path, text: str) -> None:
    """Its hash says nothing of the files it names, which decoders would read."""
    path = tmp_path / "video.mp4"
    path.write_text(text)
    with pytest.raises(VideoError, match="is a playlist: the files that it names may change"):
        content_hash(path)
