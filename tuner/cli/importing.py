"""`tuner import`: a study from a benchmark's, a log's or a data set's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli.created import say_created
from tuner.cli.options import Frames, Model, TextEncoder
from tuner.importing.formats import FORMATS


def import_(
    format_name: Annotated[
        str,
        typer.Argument(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}."),
    ],
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The file, or a folder with several of its kind.")
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="NAME", help="Name of the new study, in ./studies/, or its path.")
    ],
    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos",
            help="Folder of the videos, searched with all folders in it; otherwise the source's.",
            show_default=False,
        ),
    ] = None,
    subtitles: Annotated[
        Path | None,
        typer.Option(
            "--subtitles",
            help="Folder of the subtitles, which are put behind the questions. Without it there are none.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            help="An lmms-eval log about the same questions: its answers are compared with the unpruned "
            "model's here.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    text_encoder: TextEncoder = None,
    frames: Frames = 32,
    skip_bad_rows: Annotated[
        bool,
        typer.Option("--skip-bad-rows", help="Leave out rows that cannot be read or whose video is missing."),
    ] = False,
) -> None:
    """Make a study of questions that are there: nothing is guessed, every doubt is listed with its place."""
    from tuner.importing.importing import import_study
    from tuner.importing.study_files import MODEL, Settings

    folder = videos or (source if source.is_dir() else source.parent)
    imported = import_study(
        to,
        format_name,
        source,
        Settings(folder, model or MODEL, text_encoder, frames),
        subtitles=subtitles,
        baseline=baseline,
        skip_bad_rows=skip_bad_rows,
    )
    remarks = [f"{count} of the questions: {note}." for note, count in imported.notes.items()]
    if imported.baselines:
        remarks.append(
            f"{imported.baselines} bring the unpruned model's answer by another program: `tuner run` says "
            "how many are the same here."
        )
    say_created(to, imported.study, folder, imported.left_out, remarks)
