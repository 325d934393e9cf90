"""`tuner archive` and `tuner restore`: a study's records out of use, and back. Nothing is ever deleted."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from tuner.cli.options import Database, Study, warn
from tuner.errors import UserError


def archive(study: Study, database: Database = None) -> None:
    """Put a study's records aside: the next run begins anew, and `tuner restore` brings them back.

    Answers that fit are used again, and videos that have tuned the study stay in its tune split.
    """
    from tuner.records.database import default_database
    from tuner.records.store import Store

    name = _name(study)
    url = database or default_database(name)
    with Store.open(url, create=False) as store:
        store.require(name)
    with Store.open(url, say=warn) as store, store.held(name):
        store.require(name)  # a reader finds other owners' studies, too
        store.archive(name)
        identifier = store.archived(name)[-1].id
    # The address may hold a password.
    there = "" if database is None else ", with the same --database"
    typer.echo(f"Archived. To bring it back: tuner restore --study {study} --id {identifier}{there}")


def restore(
    study: Study,
    identifier: Annotated[
        int | None,
        typer.Option(
            "--id", help="Which of the archived; the one archived last by default.", show_default=False
        ),
    ] = None,
    database: Database = None,
) -> None:
    """Bring archived records of a study back into use; what is in use then is archived for them."""
    from tuner.records.database import default_database
    from tuner.records.store import Store

    name = _name(study)
    url = database or default_database(name)
    with Store.open(url, create=False) as store:
        found = {study.id: study for study in store.archived(name)}
    if not found:
        raise UserError(f"nothing of the study {name!r} is archived in this database")
    wanted = list(found)[-1] if identifier is None else identifier
    if wanted not in found:
        known = ", ".join(
            f"{study.id} ({study.trials} trials, begun {_day(study.created)}, "
            f"archived {_day(study.archived)})"
            for study in found.values()
        )
        raise UserError(f"the study {name!r} has no archived records {wanted}; it has: {known}")
    with Store.open(url, say=warn) as store, store.held(name):
        replaced = store.restore(name, wanted)
    typer.echo(
        f"Restored {wanted} with {found[wanted].trials} trials."
        + (" What was in use is archived in its place." if replaced else "")
    )


def _name(study: str) -> str:
    """A study's name as its study.yaml has it; where there is no such file, the name that was given."""
    from tuner.study import load_study

    try:
        return load_study(study, skip_bad_videos=True).name
    except UserError:
        return study


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d}"
