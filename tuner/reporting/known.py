"""Which studies there are: those with a definition here, and those with records here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import UserError
from tuner.records.database import default_database
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
    owner: str
    """Whose they are in a shared database; "": nobody's in particular."""


def studies_here(database: str | None = None) -> list[KnownStudy]:
    """By name. database: where the records of all lie; otherwise each has its own in .tuner/.

    Files are not checked, which `tuner check` does: what cannot be read is None.
    """
    found = {}
    for name in known_studies():
        with suppress(UserError):
            study_ = _defined(name, database)
            found[study_.name, study_.owner] = study_
    for name, owner in _recorded(database):
        if (name, owner) not in found:
            found[name, owner] = KnownStudy(
                name, None, None, None, None, None, *_records(name, database, owner)
            )
    return [found[key] for key in sorted(found)]


def _defined(name: str, database: str | None) -> KnownStudy:
    file = find_study(name)
    written = parse_study(file, Mistakes()).written
    own = written.get("name")
    called = own if isinstance(own, str) and own else name
    model, questions = written.get("model"), written.get("questions", "questions.jsonl")
    counts: tuple[int | None, int | None, bool | None] = (None, None, None)
    with suppress(OSError, UnicodeDecodeError, TypeError):
        counts = _counted(file.parent / questions)
    return KnownStudy(
        called,
        str(file.parent),
        model if isinstance(model, str) else None,
        *counts,
        *_records(called, database),
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


def _recorded(database: str | None) -> Iterator[tuple[str, str]]:
    if database is None:
        yield from ((file.parent.name, "") for file in Path(".tuner").glob("*/tuner.db"))
        return
    with Store.open(database, create=False) as store:
        yield from ((item.name, item.owner) for item in store.in_use())


def _records(name: str, database: str | None, owner: str | None = None) -> tuple[int | None, str, str]:
    """Completed trials, the state of the records, and their owner; owner: None for this process's own."""
    url = database or default_database(name)
    if database is None and not Path(url.removeprefix("sqlite:///")).is_file():
        return None, "none", ""
    try:
        with Store.open(url, create=False, owner=owner) as store:
            own = {item.name: item for item in store.in_use() if item.owner == store.owner}
            if name not in own:
                there = store.archived(name)
                return None, "archived" if there else "none", store.owner if there else ""
            running = store.holder(name)
            trials = own[name].trials
            return trials, f"{trials} trials" + (f", run by {running}" if running else ""), store.owner
    except UserError:
        return None, "of another version, or not readable", ""
