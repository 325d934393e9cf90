"""Options that several commands share, each described once."""

from __future__ import annotations

import os
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tuner.errors import without_passwords


class LogFormat(StrEnum):
    """How a command says on stderr what it does."""

    TEXT = "text"
    JSON = "json"


def parse_budget(text: str) -> float:
    """A FLOPs ratio, from `0.3` or `30%`; whether it is in (0, 1] is told with all else.

    Errors: typer.BadParameter for anything else.
    """
    number, percent = text.strip(), text.strip().endswith("%")
    try:
        # Decimal, so that 33.3% is the very 0.333 that names the same search.
        return float(Decimal(number[:-1]) / 100 if percent else Decimal(number))
    except InvalidOperation:
        raise typer.BadParameter(f"a budget is a FLOPs ratio like 0.3 or 30%, but got {text!r}") from None


def in_bytes(gib: float | None) -> int | None:
    """GiB as bytes."""
    return None if gib is None else int(gib * 2**30)


def given(value: str | None, variable: str) -> str | None:
    """An option's value as a command to type next has to repeat it; None where the environment holds it.

    One with a password is left out: it belongs into the variable.
    """
    if value is None or value == os.environ.get(variable) or without_passwords(value) != value:
        return None
    return value


def warn(text: str) -> None:
    """One line that is no part of what was asked for."""
    typer.echo(text, err=True)


Study = Annotated[
    str,
    typer.Option(
        "--study", help="Name of a study in ./studies/ or of one that ships (demo), or a path to its folder."
    ),
]
RecordedStudy = Annotated[
    str,
    typer.Option(
        "--study",
        help="Name of a study in the records, or a path to its folder. The records are all that is needed: "
        "no videos, model or study.yaml.",
    ),
]
OfBudget = Annotated[
    float | None,
    typer.Option(
        "--budget",
        parser=parse_budget,
        metavar="RATIO",
        help="Of the search with this budget (1: one for --max-drop alone); otherwise of the latest.",
        show_default=False,
    ),
]
OfSeed = Annotated[
    int | None,
    typer.Option("--seed", help="Of the search with this seed; otherwise of the latest.", show_default=False),
]
Database = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="URL of the records, as SQLAlchemy writes it; otherwise an SQLite file in .tuner/. One with a "
        "password belongs into the variable: others see what is on the command line.",
        envvar="TUNER_DATABASE",
        show_default=False,
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="Address of an MLflow server; otherwise mlflow.db in this folder.",
        envvar="MLFLOW_TRACKING_URI",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that evaluate; 1 stays in this process and makes a search repeatable, more "
        "use Ray. Otherwise one per GPU of this machine or cluster, or two per machine where there is none.",
        show_default=False,
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-worker",
        min=0.0,
        help="GPUs for each worker; otherwise this machine's are shared, and in a cluster each has one if "
        "there are any.",
        show_default=False,
    ),
]
WaitForWorkers = Annotated[
    float | None,
    typer.Option(
        "--wait-for-workers",
        metavar="SECONDS",
        help="End after so long without any worker. Otherwise a cluster's are waited for.",
        show_default=False,
    ),
]
BatchTimeout = Annotated[
    float | None,
    typer.Option(
        "--batch-timeout",
        metavar="SECONDS",
        help="How long a worker may take for a batch of videos before it is ended and another is asked. "
        "Otherwise ten times the slowest so far, and at least ten minutes.",
        show_default=False,
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        min=1,
        help="Questions per forward pass. Affects speed; answers match those of 1, as in production, up to "
        "rounding.",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        "--cache",
        metavar="FOLDER|URL",
        help="Where encoded videos are kept, one place for all runs and machines that are to share them: a "
        "folder, or a URL such as s3://bucket/prefix (credentials as its client finds them, not in the URL). "
        "Otherwise .tuner/STUDY/features in this folder.",
        envvar=["TUNER_STORAGE", "TUNER_CACHE"],
        show_default=False,
    ),
]
CacheMemory = Annotated[
    float | None,
    typer.Option(
        "--cache-memory",
        min=0.0,
        metavar="GIB",
        help="GiB of prefixes that each worker keeps on its device, and as many of vision features in host "
        "memory; otherwise half of what is free on a GPU and a quarter of what is free on the host, or a "
        "twentieth each on a CPU.",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster, for example auto (the one this machine is part of) or head:6379.",
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document at the end; progress goes to stderr in any case."),
]
Log = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        help="What stderr gets: text for people, or json, an object a line with study, trial and questions.",
    ),
]
AcceptWeakBaseline = Annotated[
    bool,
    typer.Option(
        "--accept-weak-baseline",
        help="Go on even where the unpruned model answers no more questions right than guessing would.",
    ),
]
SkipBadVideos = Annotated[
    bool, typer.Option("--skip-bad-videos", help="Go on without videos that cannot be read.")
]
NewStudy = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the new study, in ./studies/, or its path.")
]
Videos = Annotated[
    Path, typer.Option("--videos", help="Folder of the videos, with all folders in it.", show_default=False)
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A LLaVA-OneVision or LLaVA-Video checkpoint: Hugging Face id or folder; or demo, the small "
        "model that ships, to try things out. Otherwise LLaVA-OneVision 7B.",
        show_default=False,
    ),
]
TextEncoder = Annotated[
    str | None,
    typer.Option(
        "--text-encoder",
        help="The SigLIP that the model's vision tower was taken from: id or folder. Otherwise the one of "
        "all published checkpoints.",
        show_default=False,
    ),
]
Frames = Annotated[int, typer.Option("--frames", min=2, help="Frames sampled evenly from each video.")]
