from __future__ import annotations

import os

import pytest

from pipeline.video import Decoder
from tests.tuner.study.conftest import StudyFiles
from tests.videos import moving_frames, truncated, write_audio, write_video
from tuner.errors import UserError
from tuner.study import check_videos, leave_out, load_study


@pytest.fixture
def files_on_disk(files: StudyFiles) -> StudyFiles:
    """Two videos that decode, one that is cut short and one without a picture."""
    folder = files.folder / "videos"
    folder.mkdir(parents=True)
    frames = moving_frames(12)
    for name in ("v0.mp4", "v2.mp4"):
        write_video(folder / name, frames)
    whole = write_video(files.folder / "whole.mp4", frames, container_options={"movflags": "faststart"})
    truncated(whole, folder / "v1.mp4", 0.7)
    write_audio(folder / "v3.mp4")
    files.yaml += "split: {held_out_videos: [v0.mp4, v1.mp4]}\n"
    files.write()
    return files


def test_videos_that_do_not_decode_are_reported_together(files_on_disk: StudyFiles) -> None:
    study = load_study("mine")
    with Decoder() as decoder, pytest.raises(UserError) as caught:
        check_videos(study, decoder)
    first, second = caught.value.problems
    assert f"videos{os.sep}v1.mp4 is truncated: " in first
    assert first.endswith("(questions about it: 2)")
    assert f"videos{os.sep}v3.mp4 holds no video stream" in second
    assert "--skip-bad-videos" in str(caught.value)


def test_videos_that_do_not_decode_are_left_out(files_on_disk: StudyFiles) -> None:
    with Decoder() as decoder:
        study = check_videos(load_study("mine"), decoder, skip=True)
        assert check_videos(study, decoder) is study
    assert [video.name for video in study.videos] == ["v0.mp4", "v2.mp4"]
    assert [question.id for question in study.questions] == ["q0", "q1", "q4", "q5"]
    assert [(skipped.name, skipped.questions) for skipped in study.skipped] == [("v1.mp4", 2), ("v3.mp4", 2)]
    assert study.held_out == {"v0.mp4"}


def test_leaving_out_twice_keeps_both_reasons(files: StudyFiles) -> None:
    files.yaml += "split: {held_out_videos: [v0.mp4, v1.mp4]}\n"
    study = load_study(files.write())
    study = leave_out(study, {"v1.mp4": "first"}, skip=True)
    study = leave_out(study, {"v3.mp4": "second"}, skip=True)
    assert [skipped.reason for skipped in study.skipped] == ["first", "second"]


@pytest.mark.parametrize(
    ("bad", "split"), [({"v0.mp4", "v1.mp4"}, "held out"), ({"v2.mp4", "v3.mp4"}, "to tune on")]
)
def test_each_part_needs_a_video(files: StudyFiles, bad: set[str], split: str) -> None:
    files.yaml += "split: {held_out_videos: [v0.mp4, v1.mp4]}\n"
    study = load_study(files.write())
    with pytest.raises(UserError, match=f"without these 2 videos none is left {split}"):
        leave_out(study, dict.fromkeys(sorted(bad), "bad"), skip=True)
