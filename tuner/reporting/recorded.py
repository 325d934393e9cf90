"""The study that a command means, read from the records alone: no video, model or study.yaml is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tuner.errors import UserError
from tuner.records.database import default_database
from tuner.records.definition import recorded_study
from tuner.records.store import Store
from tuner.records.values import StudyRecord
from tuner.study import Study
from tuner.study.identity import describe_changes, study_identity
from tuner.study.loading import find_study, load_study, study_name


def open_study(name_or_path: str, database: str | None, say: Callable[[str], None]) -> Study:
    """The study that `opened` finds, the records closed again."""
    with opened(name_or_path, database, say) as (study, _, _):
        return study


@contextmanager
def opened(
    name_or_path: str, database: str | None, say: Callable[[str], None]
) -> Iterator[tuple[Study, Store, StudyRecord]]:
    """The study as it was last run, and its records: the one that this folder defines, or the one of this
    name where there is no such folder.

    say: is told in one line where the folder's files differ from what is recorded.
    Errors: UserError when no such study is recorded, or the records cannot be read.
    """
    file: Path | None = None
    try:
        file = find_study(name_or_path)
    except UserError:
        if not (_is_name(name_or_path) and (database or _has_records(name_or_path))):
            raise
    name = name_or_path if file is None else study_name(file)
    with Store.open(database or default_database(name), create=False) as store:
        record = store.find(name)
        if record is None and (others := store.study_names()):
            raise UserError(
                f"the study {name!r} has no records in {store.url}; the studies there are {', '.join(others)}"
            )
        record = record or store.require(name)
        study = recorded_study(record)
        if file is not None:
            tuned = store.videos_that_tuned(name, set(record.parts["videos"].values()))
            if what := _differences(file, study, record, tuned):
                told = "; ".join(what)
                say(f"{file} differs from the records; this is as of the last `tuner run`: {told}.")
        yield study, store, record


def _is_name(text: str) -> bool:
    return bool(text) and os.sep not in text and not text.startswith(".")


def _has_records(name: str) -> bool:
    """Whether the records are where they lie unless told otherwise."""
    return Path(default_database(name).removeprefix("sqlite:///")).is_file()


def _differences(file: Path, recorded: Study, record: StudyRecord, tuned: Collection[str]) -> list[str]:
    """What the study's files say otherwise, as far as they are here. tuned: contents of videos that stay in
    the tune split whatever the files say.
    """
    try:
        here = load_study(file, skip_bad_videos=True)
    except UserError as error:
        return [f"its files cannot be read ({str(error).splitlines()[0]})"]
    # A video that is not on this host says nothing, and neither does one that the records leave out.
    missing = {video.name for video in here.skipped} | {entry["name"] for entry in record.skipped}
    contents, settings = record.parts["videos"], record.parts["settings"]
    here = replace(
        here, held_out=frozenset(name for name in here.held_out if contents.get(name) not in tuned)
    )
    before, now = (
        study_identity(
            study_,
            model=settings["model"],
            encoding=settings["encoding"],
            content_hashes={video.name: contents.get(video.name, video.name) for video in study_.videos},
        ).parts
        for study_ in (_without_videos(recorded, missing), _without_videos(here, missing))
    )
    what = describe_changes(before, now)
    tags = {question.id: question.tags for question in here.questions}
    if any(tags.get(question.id, question.tags) != question.tags for question in recorded.questions):
        what.append("other tags")
    if record.definition and here.search != recorded.search:
        what.append("another search section")
    return what


def _without_videos(study: Study, names: set[str]) -> Study:
    return study.without({question.id for question in study.questions if question.video in names})
