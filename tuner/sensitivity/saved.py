"""A sensitivity study in the records, for figures and reports, and as a file of all its numbers."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

from tuner.records.database import default_database
from tuner.records.store import Store
from tuner.sensitivity.results import Sensitivity


def save_sensitivity(found: Sensitivity, database: str | None = None) -> Path:
    """Records it, and writes a file of its numbers whole or not at all; returns where.

    Errors: OSError where the file cannot be written; then it is recorded all the same.
    """
    text = json.dumps(asdict(found))
    with Store.open(database or default_database(found.study)) as store:
        store.require(found.study)
        store.record_sensitivity(found.budget, text)
    path = Path(".tuner") / found.study / f"sensitivity-{found.budget:g}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return path


def load_sensitivity(study: str, budget: float, database: str | None = None) -> Sensitivity | None:
    """The last sensitivity study at this budget of the study as it is now defined; None where there is none,
    or none that this version reads.
    """
    from pydantic import TypeAdapter, ValidationError

    with Store.open(database or default_database(study), create=False) as store:
        store.require(study)
        text = store.sensitivity(budget)
    try:
        return None if text is None else TypeAdapter(Sensitivity).validate_json(text)
    except ValidationError:
        return None
