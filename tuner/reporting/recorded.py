"""The study that a command means, read from the records alone: no video, model or study.yaml is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from tuner.errors import UserError
from tuner.records.database import default_database
from tuner.records.definition import recorded_study
from tuner.records.store import Store
from tuner.records.values import StudyRecord
from tuner.study import Study, load_study
from tuner.study.identity import describe_changes, study_identity
from tuner.study.loading import find_study, study_name


def open_study(name_or_path: str, database: str | None = None, say: Callable[[str], None] = print) -> Study:
    """The study as it was last run: that of the folder's name, or of this name where there is no folder.

    say: is told in one line where the folder's files differ from what is recorded.
    Errors: UserError when no such study is recorded, or the records cannot be read.
    """
    try:
        file = find_study(name_or_path)
    except UserError:
        # On a host without the folder, a name and the database are enough.
        known = database is not None and os.sep not in name_or_path
        if not known and not _recorded_here(name_or_path):
            raise
        name, file = name_or_path, None
    else:
        name = study_name(file)
    with Store.open(database or default_database(name), create=False) as store:
        if name not in (names := store.study_names()) and names:
            raise UserError(
                f"the study {name!r} has no records in {store.url}; there are those of {', '.join(names)}"
            )
        record = store.require(name)
    study = recorded_study(record)
    if file is not None and (what := _differences(str(file), study, record)):
        say(
            f"{file} differs from the records, which are shown as of the last `tuner run`: {'; '.join(what)}."
        )
    return study


def _recorded_here(name: str) -> bool:
    """Whether the working directory has records of a study of this name."""
    if not name or os.sep in name or name.startswith("."):
        return False
    return os.path.isfile(default_database(name).removeprefix("sqlite:///"))  # noqa: PTH113


def _differences(file: str, recorded: Study, record: StudyRecord) -> list[str]:
    """What the study's files say otherwise, as far as they are there."""
    try:
        here = load_study(file, skip_bad_videos=True)
    except UserError as error:
        return [f"its files cannot be read ({str(error).splitlines()[0]})"]
    # Videos that are not on this host say nothing; nor do those that were left out of the records.
    here = here.without_videos({one["name"] for one in record.skipped})
    gone = {one.name for one in here.skipped}
    recorded, contents = recorded.without_videos(gone), record.parts["videos"]
    settings = record.parts["settings"]
    before, now = (
        study_identity(
            one,
            model=settings["model"],
            encoding=settings["encoding"],
            content_hashes={video.name: contents.get(video.name, video.name) for video in one.videos},
        ).parts
        for one in (recorded, here)
    )
    what = describe_changes(before, now)
    if any(here.question(one.id).tags != one.tags for one in recorded.questions if one.id in here):
        what.append("tags")
    if record.definition and here.search != recorded.search:
        what.append("search")
    return what
