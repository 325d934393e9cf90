"""Between rows and values: what several files of this room write into columns and read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Update, update

from pipeline.methods import KNOBS
from tuner.records.schema import measured_table, trial_table
from tuner.records.values import Derived
from tuner.study.values import Configuration, Outcome, Split


def knob_columns(configuration: Configuration) -> dict[str, Any]:
    """A configuration as columns: a knob each, and the rest in `options`."""
    parameters = dict(configuration.parameters)
    knobs = {name: parameters.pop(name, None) for name in KNOBS}
    return {"method": configuration.method, "options": parameters, **knobs}


def configuration_of(row: Any) -> Configuration:
    """The reverse of `knob_columns`."""
    # The method's own order of fields, so that equal configurations compare equal however they were made.
    knobs = {name: getattr(row, name) for name in KNOBS if getattr(row, name) is not None}
    return Configuration.from_method(
        Configuration.from_dict({"method": row.method, **knobs, **row.options}).build()
    )


def digest(configuration: Configuration) -> str:
    """What rows about a configuration are found by: sha256 of its canonical JSON."""
    return hashlib.sha256(json.dumps(configuration.as_dict(), sort_keys=True).encode()).hexdigest()


def outcome_columns(outcome: Outcome | None) -> dict[str, Any]:
    """An outcome as columns; None empties them."""
    if outcome is None:
        return {field.name: None for field in fields(Outcome) if field.name != "split"}
    values = asdict(outcome)
    del values["split"]
    return values


def outcome_of(row: Any, split: Split) -> Outcome | None:
    """The reverse of `outcome_columns`."""
    if row.accuracy is None:
        return None
    return Outcome(
        split=split,
        **{field.name: getattr(row, field.name) for field in fields(Outcome) if field.name != "split"},
    )


def derived_updates(
    study_id: int,
    trials: Mapping[int, Derived],
    measured: Mapping[Configuration, Outcome | None],
) -> Iterator[Update]:
    """Writes what other questions or labels make of trials (by number), and of what was measured on the
    held-out split. Whether a trial was pruned is then to be found anew.
    """
    for number, derived in trials.items():
        done = {} if derived.outcome is not None else {"completed": None}
        yield (
            update(trial_table)
            .where(trial_table.c.study_id == study_id, trial_table.c.number == number)
            .values(
                binding_ratio=derived.binding_ratio,
                pruned_by=None,
                pruned_videos=None,
                **outcome_columns(derived.outcome),
                **done,
            )
        )
    for configuration, outcome in measured.items():
        yield (
            update(measured_table)
            .where(
                measured_table.c.study_id == study_id, measured_table.c.configuration == digest(configuration)
            )
            .values(**outcome_columns(outcome))
        )
