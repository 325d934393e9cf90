"""What `tuner init` and `tuner import` say of the study that they made."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cli.options import warn

if TYPE_CHECKING:
    from tuner.study import Study

# Nobody reads more than this at once.
_MOST_SHOWN = 50


def say_created(
    name: str, study: Study, videos: Path, left_out: Sequence[str], remarks: Iterable[str] = ()
) -> None:
    """name: of the study as the user gave it. left_out: sentences on files or rows that are not in it."""
    for sentence in left_out[:_MOST_SHOWN]:
        warn(f"Left out: {sentence}")
    if len(left_out) > _MOST_SHOWN:
        warn(f"Left out: {len(left_out) - _MOST_SHOWN} more like these")
    print(f"Wrote {study.folder / 'study.yaml'} and {study.questions_file.name} beside it.")
    labels = "with answers" if study.labelled else "label-free"
    print(f"{len(study.questions)} questions about {len(study.videos)} videos, {labels}.")
    print(f"The videos stay in {videos}: study.yaml names the folder, nothing was copied or linked.")
    for remark in remarks:
        print(remark)
    print(f"Next: tuner check --study {shlex.quote(name)}")
