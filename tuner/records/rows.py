"""Between rows and values: what several files of this room write into columns and read back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

from pipeline.methods import KNOBS
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
