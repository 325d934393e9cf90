"""Encoded videos in a folder, under a URL or on the driver's machine, and copies of the driver's videos."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from pipeline.cache import FeatureCache, pack
from pipeline.clip import Clip
from pipeline.errors import VideoError
from pipeline.question import Question
from tests.object_storage import ObjectServer, object_server
from tuner.errors import DiskFullError, UserError
from tuner.evaluation import storage
from tuner.evaluation.evaluator import EvaluatorSpec, PipelineEvaluator
from tuner.evaluation.storage import (
    ObjectStorage,
    SharedCache,
    check_storage,
    copied,
    folder_id,
    normal,
    try_storage,
)

TENSORS = {"features": torch.arange(6.0).reshape(2, 3)}
URL = "memory://bucket/encoded"


class Driver:
    """Files of another machine: below `root`, under the same paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kept: dict[str, bytes] = {}
        self.parts = 0

    def content_hash(self, video: str) -> str:
        return hashlib.sha256(self._file(video).read_bytes()).hexdigest()

    def part(self, video: str, start: int) -> bytes:
        self.parts += 1
        return self._file(video).read_bytes()[start : start + 1000]

    def read(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def write(self, key: str, data: bytes) -> None:
        self.kept[key] = data

    def _file(self, video: str) -> Path:
        file = self.root / video.lstrip("/")
        if not file.is_file():
            raise VideoError(f"video {video} is not there", video)
        return file


class Encoder:
    """In the place of a runtime: a clip is told by its file's bytes."""

    def __init__(self) -> None:
        self.cache_counts: dict[str, int] = {}
        self.clips: dict[str, Clip] = {}
        self.files: list[str] = []

    def kept(self, path: str, digest: str) -> Clip | None:
        return self.clips.get(digest)

    def encode(self, path: str) -> Clip:
        self.files.append(path)
        data = Path(path).read_bytes()
        if data == b"damaged":
            raise VideoError(f"video {path} is damaged", path)
        return make_clip(path, hashlib.sha256(data).hexdigest())


def make_clip(path: str, digest: str) -> Clip:
    from pipeline.clip import Saliency

    zero = torch.zeros(1, 1)
    saliency = Saliency(zero, zero, torch.zeros(1, 1, 1))
    return Clip(path, digest, torch.zeros(1).double().numpy(), zero, zero, saliency, 1, 0, 1.0)


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path / "driver")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, and the user's cache folder beside it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return folder


def write_video(root: Path, path: str, data: bytes) -> str:
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def make_spec(**options: Any) -> EvaluatorSpec:
    return EvaluatorSpec(
        model="model",
        revision=None,
        text_encoder="encoder",
        frames=8,
        scoring="words",
        max_new_tokens=4,
        questions=(Question("q0", "what is it?"),),
        **{"storage": None, "videos": {}, **options},
    )


def evaluator(driver: Driver, video: str) -> tuple[PipelineEvaluator, Encoder]:
    encoder: Any = Encoder()
    return PipelineEvaluator(make_spec(videos={"q0": video}, driver=driver), encoder), encoder


@pytest.mark.quick
def test_a_video_that_is_not_here_is_copied_and_known_by_its_own_path(
    driver: Driver, tmp_path: Path, temporary: Path
) -> None:
    video = str(tmp_path / "here" / "a.mp4")
    digest = write_video(driver.root, video, b"video" * 1000)
    one, encoder = evaluator(driver, video)
    clip, _ = one.asked("q0")
    assert (clip.path, clip.content_hash) == (video, digest)
    (copy,) = encoder.files
    assert Path(copy).name == "a.mp4"
    assert Path(copy).is_relative_to(temporary)
    assert list(temporary.iterdir()) == []
    assert driver.parts == 6  # of 1,000 bytes, and one to see that there is no more


@pytest.mark.quick
@pytest.mark.parametrize("expected", [False, True])
def test_a_video_that_is_here_is_read_here(driver: Driver, tmp_path: Path, expected: bool) -> None:
    video = str(tmp_path / "here.mp4")
    digest = write_video(Path("/"), video, b"the same")
    one, encoder = evaluator(driver, video)
    one.expect({video: digest} if expected else {})
    assert one.asked("q0")[0].content_hash == digest
    assert encoder.files == [video]
    assert driver.parts == 0


@pytest.mark.quick
def test_other_bytes_under_the_same_path_are_passed_over_for_the_drivers(
    driver: Driver, tmp_path: Path
) -> None:
    video = str(tmp_path / "stale.mp4")
    write_video(Path("/"), video, b"stale")
    digest = write_video(driver.root, video, b"right")
    one, _ = evaluator(driver, video)
    one.expect({video: digest})
    assert one.asked("q0")[0].content_hash == digest


@pytest.mark.quick
def test_a_video_that_is_encoded_already_is_not_copied(driver: Driver, tmp_path: Path) -> None:
    video = str(tmp_path / "a.mp4")
    digest = write_video(driver.root, video, b"video")
    one, encoder = evaluator(driver, video)
    encoder.clips[digest] = make_clip(video, digest)
    assert one.asked("q0")[0] is encoder.clips[digest]
    assert driver.parts == 0


@pytest.mark.quick
def test_what_is_wrong_with_a_copy_names_the_video(driver: Driver, tmp_path: Path, temporary: Path) -> None:
    video = str(tmp_path / "a.mp4")
    write_video(driver.root, video, b"damaged")
    one, _ = evaluator(driver, video)
    with pytest.raises(VideoError, match=f"^video {video} is damaged$"):
        one.asked("q0")
    one.expect({video: "0" * 64})
    with pytest.raises(VideoError, match=f"^video {video} is not the file that the study was recorded with"):
        one.asked("q0")
    (driver.root / video.lstrip("/")).unlink()
    one.expect({})
    with pytest.raises(VideoError, match=f"^video {video} is not there$"):
        one.asked("q0")
    assert list(temporary.iterdir()) == []


@pytest.mark.quick
def test_a_copy_without_room_is_one_message_and_leaves_nothing(
    driver: Driver, tmp_path: Path, temporary: Path
) -> None:
    """The refusal is the kernel's own."""
    video = str(tmp_path / "a.mp4")
    digest = write_video(driver.root, video, b"video" * 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with (
            pytest.raises(DiskFullError, match=f"a copy of the video {video} to {temporary}"),
            copied(driver, video, digest),
        ):
            raise AssertionError("there is no copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(temporary.iterdir()) == []


@pytest.mark.quick
def test_copies_that_killed_workers_left_are_removed(driver: Driver, tmp_path: Path, temporary: Path) -> None:
    old, new = temporary / "adatp-video-old", temporary / "adatp-video-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "b.mp4").write_bytes(b"left")
    os.utime(old, (0, 0))
    digest = write_video(driver.root, str(tmp_path / "a.mp4"), b"video")
    with copied(driver, str(tmp_path / "a.mp4"), digest):
        assert not old.exists()
    assert list(temporary.iterdir()) == [new]


@pytest.mark.quick
def test_what_one_machine_encodes_another_reads_once(driver: Driver, tmp_path: Path) -> None:
    here, there = (SharedCache(FeatureCache(tmp_path / name, 2**20), driver) for name in ("here", "there"))
    assert there.get("a") is None
    here.put("a", TENSORS)
    found = there.get("a")
    assert found is not None
    assert torch.equal(found["features"], TENSORS["features"])
    driver.kept.clear()
    assert there.get("a") is not None
    driver.kept["b"] = pack(TENSORS)[:-1]
    assert there.get("b") is None
    here.put("b", TENSORS)
    assert there.get("b") is not None


@pytest.mark.quick
def test_a_folder_is_used_where_it_is_the_drivers_and_not_where_it_has_the_name_alone(
    driver: Driver, tmp_path: Path
) -> None:
    folder, empty = tmp_path / "features", tmp_path / "others"
    seen = folder_id(folder, create=True)
    assert seen == folder_id(folder, create=True) == folder_id(folder)
    spec = make_spec(storage=str(folder), driver=driver, folder_id=seen)
    cache, clips = spec._caches()
    assert cache is clips
    assert cache is not None
    assert cache.directory == folder
    for create in (False, True):
        assert folder_id(empty, create=create) != seen
        cache, clips = make_spec(storage=str(empty), driver=driver, folder_id=seen)._caches()
        assert isinstance(clips, SharedCache)
        assert cache is not None
        assert cache.directory == tmp_path / "user" / "adatp" / "features"


class Failing:
    """A file system whose first calls fail."""

    def __init__(self, failures: int, error: type[Exception] = ConnectionError) -> None:
        self.failures, self.error, self.calls = failures, error, 0
        self._files = fsspec.filesystem("memory")

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any) -> Any:
            self.calls += 1
            if self.calls <= self.failures:
                raise self.error("no route to host")
            return getattr(self._files, name)(*values)

        return call


@pytest.mark.quick
def test_a_short_outage_goes_unnoticed(caplog: pytest.LogCaptureFixture) -> None:
    found = ObjectStorage(URL)
    found._files = Failing(1)
    found.write("a", b"encoded")
    assert found.read("a") == b"encoded"
    assert found.read("none") is None
    assert caplog.records == []


@pytest.mark.quick
@pytest.mark.parametrize("error", [ConnectionError, PermissionError])
def test_a_storage_that_stays_away_is_told_once_and_left_alone_for_a_while(
    caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    now = 0.0
    found = ObjectStorage(URL, patience=0.0, clock=lambda: now)
    files = found._files = Failing(1, error)
    found.write("b", b"encoded")
    assert found.read("b") is None
    assert files.calls == 1
    (told,) = caplog.messages
    assert told.startswith(f"The storage {URL} does not answer, and videos are encoded where they are needed")
    assert told.endswith("it is asked again in 5 minutes: no route to host")
    now = storage.PAUSE
    found.write("b", b"encoded")
    assert found.read("b") == b"encoded"


@pytest.mark.quick
def test_credentials_that_nobody_gave_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first mistake of a new user: it was told after half a minute."""
    NoCredentialsError = type("NoCredentialsError", (Exception,), {})
    storage, asked = ObjectStorage(URL), []

    def refuse(*_: Any) -> None:
        asked.append(1)
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(storage._files, "pipe_file", refuse)
    with pytest.raises(UserError, match="Unable to locate credentials"):
        storage.check()
    assert len(asked) == 1


class Unlisted:
    """A bucket that may be written and read, but neither listed nor emptied: S3 refuses what is not there."""

    def __init__(self, *, readable: bool = True) -> None:
        self._objects: dict[str, bytes] = {}
        self._readable = readable

    def pipe_file(self, path: str, data: bytes) -> None:
        self._objects[path] = data

    def cat_file(self, path: str) -> bytes:
        if not self._readable or path not in self._objects:
            raise PermissionError("Access Denied")
        return self._objects[path]

    def rm_file(self, path: str) -> None:
        raise PermissionError("Access Denied")

    ls = exists = info = find = rm_file


@pytest.mark.quick
def test_a_bucket_that_may_not_be_listed_will_do(caplog: pytest.LogCaptureFixture) -> None:
    found = ObjectStorage(URL)
    found._files = Unlisted()
    found.check()
    assert found.read("none") is None
    found.write("a", b"encoded")
    assert found.read("a") == b"encoded"
    assert caplog.records == []
    kept = found.check("tried", delete=True)
    assert kept is not None
    assert kept.endswith("/tried.safetensors")
    found._files = Unlisted(readable=False)
    with pytest.raises(UserError, match=r"Access Denied.*may be read and written"):
        found.check()


@pytest.mark.quick
def test_what_cannot_be_a_storage_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert check_storage(None) == check_storage(str(tmp_path)) == check_storage(URL) == []
    assert normal(f"file://{tmp_path}") == str(tmp_path)
    assert normal("there") == str(Path("there").absolute())
    (told,) = check_storage(str(file))
    assert told == f"--storage is a folder or a URL, but {file} is a file"
    (told,) = check_storage("s3://key:secret@bucket/prefix")
    assert "s3://key:***@bucket" in told
    assert "secret" not in told
    # A slash too few, which would be a folder's name.
    assert check_storage("s3:/bucket") == [
        "--storage is a folder or a URL such as s3://bucket/prefix, but got 's3:/bucket'"
    ]
    (told,) = check_storage("nothing://bucket")
    assert told.startswith("--storage nothing://bucket is no folder and no URL that fsspec knows: ")

    def lacking(url: str, **options: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
    (told,) = check_storage("s3://bucket/prefix")
    assert told == (
        "--storage s3://bucket/prefix needs a package that is not installed: pip install 'adatp-tuner[s3]'"
    )


@pytest.mark.quick
@pytest.mark.parametrize("option", ["--storage", "--cache"])
def test_the_command_line_takes_both_names(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tuner.cli.main import main

    file = tmp_path / "file"
    file.touch()
    monkeypatch.chdir(tmp_path)
    command = ["tuner", "run", "--study", "demo", "--budget", "0.3", option, str(file), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert f"{file} is a file" in capsys.readouterr().err


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with object_server() as server:
        yield server


def test_an_s3_server_keeps_what_is_encoded_and_is_missed_for_a_moment_only(
    server: ObjectServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tuner")
    assert check_storage(server.url) == []
    here, there = (
        SharedCache(FeatureCache(tmp_path / name, 2**20), ObjectStorage(server.url)) for name in ("a", "b")
    )
    assert there.get("key") is None
    server.door.shut()
    opening = threading.Timer(0.5, server.door.open)
    opening.start()
    here.put("key", TENSORS)
    opening.join()
    found = there.get("key")
    assert found is not None
    assert torch.equal(found["features"], TENSORS["features"])
    assert server.door.refused > 0
    before = server.objects()
    assert try_storage(server.url) == f"{server.url} can be written and read"
    assert server.objects() == before
    (told,) = check_storage("s3://no-bucket/encoded")
    assert told.startswith("--storage s3://no-bucket/encoded cannot be used: The specified bucket does not")
    assert caplog.messages == []
