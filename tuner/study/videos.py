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
    """The study without the videos that cannot be decoded; UserError with all of them unless `skip`.

    Decodes every video. Encoding does so anyway: code that encodes collects the VideoErrors and calls
    `leave_out`.
    """
    bad = {}
    for video in study.videos:
        try:
            decoder.read_frames(video.path, study.frames, study.decode_timeout)
        except VideoError as error:
            bad[video.name] = str(error)
    return leave_out(study, bad, skip=skip)


def leave_out(study: Study, bad: Mapping[str, str], *, skip: bool) -> Study:
    """The study without the videos named in `bad`, which has a sentence for each; UserError unless `skip`.

    The other videos stay in their split: a broken file moves no other video between tuning and measuring.
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
