"""`tuner unquarantine`: questions that were left out are asked again."""

from __future__ import annotations

from typing import Annotated

import typer

from tuner.cli.options import Database, RecordedStudy, warn
from tuner.errors import UserError


def unquarantine(
    study: RecordedStudy,
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[QUESTION]...", help="Ids of the questions; otherwise all of them.", show_default=False
        ),
    ] = None,
    database: Database = None,
) -> None:
    """Take questions back in that were left out because asking them killed workers: the next run asks them.

    Trials that lack their answers are completed then.
    """
    from tuner.evaluation.rederive import rederive
    from tuner.records.database import default_database
    from tuner.records.definition import recorded_study
    from tuner.records.store import Store
    from tuner.reporting.from_records import make_planner
    from tuner.reporting.recorded import open_study

    name = open_study(study, database, warn).name
    with Store.open(database or default_database(name), say=warn) as store, store.held(name):
        record = store.require(name)
        left_out = store.quarantined()
        wanted = list(dict.fromkeys(questions or left_out))
        if unknown := [item for item in wanted if item not in left_out]:
            there = f"those that are: {', '.join(left_out)}" if left_out else "none is"
            raise UserError(
                [f"question {item!r} of the study {name!r} is not quarantined" for item in unknown], there
            )
        if not wanted:
            print(f"No question of the study {name!r} is quarantined.")
            return
        still = [item for item in left_out if item not in wanted]
        found = rederive(recorded_study(record), store, make_planner(record), still)
        store.unquarantine(wanted, found.trials, found.measured)
    incomplete = sum(trial.outcome is None for trial in found.trials.values())
    print(f"Taken back in: {', '.join(wanted)}. The next `tuner run` asks what is missing of them.")
    if incomplete:
        print(f"{incomplete} of {len(found.trials)} trials are incomplete until then.")
