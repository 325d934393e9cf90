"""Videos that turn out to be unreadable: reported together, or left out together with their questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from pipeline.errors import VideoError
from pipeline.video import Decoder
from tuner.errors import UserError
from tuner.study.definition import SkippedVideo, Study

SKIP_HINT = "--skip-bad-videos goes on without the videos that cannot be read, and the report lists them"


def check_videos(study: Study, decoder: Decoder, *, skip: bool = False) -> Study:
    """The study without the videos that do not decode; raises UserError naming all of them unless `skip`.

    Decodes every video, which encoding does anyway: who encodes collects its VideoErrors and calls
    `leave_out`.
    """
    bad = {}
    for video in study.videos:
        try:
            decoder.read_frames(video.path, study.frames)
        except VideoError as error:
            bad[video.name] = str(error)
    return leave_out(study, bad, skip=skip)


def leave_out(study: Study, bad: Mapping[str, str], *, skip: bool) -> Study:
    """The study without the videos named in `bad`, a sentence for each; raises UserError unless `skip`.

    The other videos keep the part they are in: a file that breaks moves no other one between tuning and
    measuring.
    """
    if not bad:
        return study
    questions = Counter(question.video for question in study.questions)
    if not skip:
        raise UserError(
            [f"{sentence} (questions about it: {questions[name]})" for name, sentence in bad.items()],
            SKIP_HINT,
        )
    videos = tuple(video for video in study.videos if video.name not in bad)
    for split, empty in (
        ("to tune on", all(video.name in study.held_out for video in videos)),
        ("held out", not any(video.name in study.held_out for video in videos)),
    ):
        if empty:
            these = "this video" if len(bad) == 1 else f"these {len(bad)} videos"
            raise UserError([*bad.values(), f"without {these} none is left {split}"])
    skipped = tuple(
        SkippedVideo(video.name, video.path, bad[video.name], questions[video.name])
        for video in study.videos
        if video.name in bad
    )
    return replace(
        study,
        videos=videos,
        questions=tuple(question for question in study.questions if question.video not in bad),
        held_out=study.held_out - bad.keys(),
        skipped=study.skipped + skipped,
    )
