"""Which studies there are: those with a definition here, and those with records here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import UserError
from tuner.records.database import default_database
from tuner.records.lock import holder
from tuner.records.store import Store
from tuner.study import find_study, known_studies
from tuner.study.parsing import Mistakes, parse_study


@dataclass(frozen=True)
class KnownStudy:
    """A study, as far as its files tell without being checked."""

    name: str
    folder: str | None
    """None: there are records, but no study.yaml."""
    model: str | None
    videos: int | None
    questions: int | None
    labelled: bool | None
    trials: int | None
    """Completed; None without records."""
    records: str
    """Their state in words."""


def studies_here(database: str | None = None) -> list[KnownStudy]:
    """By name. database: where the records of all lie; otherwise each has its own in .tuner/.

    Files are not checked, which `tuner check` does: what cannot be read is None.
    """
    found = {}
    for name in known_studies():
        with suppress(UserError):
            one = _defined(name, database)
            found[one.name] = one
    for name in _recorded(database):
        if name not in found:
            trials, state = _records(name, database)
            found[name] = KnownStudy(name, None, None, None, None, None, trials, state)
    return [found[name] for name in sorted(found)]


def _defined(name: str, database: str | None) -> KnownStudy:
    file = find_study(name)
    written = parse_study(file, Mistakes()).written
    own = written.get("name")
    called = own if isinstance(own, str) and own else name
    model, questions = written.get("model"), written.get("questions", "questions.jsonl")
    counts: tuple[int | None, int | None, bool | None] = (None, None, None)
    with suppress(OSError, UnicodeDecodeError, TypeError):
        counts = _counted(file.parent / questions)
    trials, state = _records(called, database)
    return KnownStudy(
        called, str(file.parent), model if isinstance(model, str) else None, *counts, trials, state
    )


def _counted(questions: Path) -> tuple[int, int, bool]:
    """Videos, questions, and whether they have answers; lines that are no questions are not counted."""
    videos, count, labelled = set(), 0, False
    with questions.open(encoding="utf-8-sig") as lines:
        for line in lines:
            with suppress(ValueError, RecursionError, KeyError, TypeError):
                question = json.loads(line)
                videos.add(str(question["video"]))
                count += 1
                labelled = labelled or question.get("answer") is not None
    return len(videos), count, labelled


def _recorded(database: str | None) -> Iterator[str]:
    if database is None:
        yield from (file.parent.name for file in Path(".tuner").glob("*/tuner.db"))
        return
    with Store.open(database, create=False) as store:
        yield from store.study_names()


def _records(name: str, database: str | None) -> tuple[int | None, str]:
    url = database or default_database(name)
    if database is None and not Path(url.removeprefix("sqlite:///")).is_file():
        return None, "none"
    try:
        with Store.open(url, create=False) as store:
            if name not in store.study_names():
                return None, "archived" if store.archived(name) else "none"
            trials = store.completed_trials(name)
            running = holder(url, name)
    except UserError:
        return None, "of another version, or not readable"
    return trials, f"{trials} trials" + (f", run by {running}" if running else "")
