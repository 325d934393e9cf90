"""`tuner init`: a first study of a folder of videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.created import say_created
from tuner.cli.options import Frames, Model, NewStudy, TextEncoder, Videos


def init(
    name: NewStudy,
    videos: Videos,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            help="Questions as questions.jsonl has them, to be copied. `tuner import` reads other formats.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="Without --questions: a question about each video, label-free. May be given again. "
            "Otherwise four general ones.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    text_encoder: TextEncoder = None,
    frames: Frames = 32,
) -> None:
    """Make a study of your videos: a study.yaml that explains itself, and its questions.

    Without questions the study is label-free: what counts is agreement with the unpruned model.
    """
    from tuner.cli.progress import command_progress
    from tuner.importing.first_study import create_study
    from tuner.importing.study_files import MODEL, Settings

    settings = Settings(videos, model or MODEL, text_encoder, frames)
    with command_progress() as progress:

        def looked_at(done: int, files: int) -> None:
            if done == 1:
                progress.started("videos", files)
            progress.advanced()

        created = create_study(name, settings, questions=questions, prompts=prompt or (), looked_at=looked_at)
    say_created(name, created.study, videos, created.left_out)
