"""A name means a file where only one fits."""

from __future__ import annotations

import pytest

from tuner.errors import UserError
from tuner.importing.rows import UnreadableError
from tuner.importing.videos import Videos

pytestmark = pytest.mark.quick


@pytest.fixture
def videos(tmp_path):
    for name in ("1.mp4", "a/1.mp4", "a/b/2.mp4", "c/2.mp4", "3.mkv", "d/4.mp4", "d/4.srt", "e/5.MP4"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return Videos(tmp_path)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("1.mp4", "1.mp4"),  # the file at this very path, though another one ends so
        ("a/1.mp4", "a/1.mp4"),
        ("./a/1.mp4", "a/1.mp4"),
        ("a\\1.mp4", "a/1.mp4"),
        ("/data/videos/a/1.mp4", "a/1.mp4"),
        ("x/1.mp4", "1.mp4"),
        ("b/2.mp4", "a/b/2.mp4"),
        ("3", "3.mkv"),
        ("4", "d/4.mp4"),
        ("5", "e/5.MP4"),
    ],
)
def test_the_one_that_fits_is_found(videos, name, file):
    assert videos.find(name) == file


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("2.mp4", r"'2\.mp4' may be any of a/b/2\.mp4, c/2\.mp4"),
        ("x/2.mp4", "is not in"),
        ("3.mp4", "is not in"),
        ("", "allowed is a path of a file"),
        ("../1.mp4", "allowed is a path of a file"),
    ],
)
def test_none_or_several_are_refused(videos, name, reason):
    with pytest.raises(UnreadableError, match=reason):
        videos.find(name)


def test_a_folder_that_is_none_says_so(tmp_path):
    with pytest.raises(UserError, match="is no folder; --videos names the folder"):
        Videos(tmp_path / "gone")
