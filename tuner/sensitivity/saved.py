"""A sensitivity study as a file beside the records, for figures and reports."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

from tuner.sensitivity.results import Sensitivity


def sensitivity_file(study: str, budget: float) -> Path:
    """Where it is kept, from the working directory."""
    return Path(".tuner") / study / f"sensitivity-{budget:g}.json"


def save_sensitivity(found: Sensitivity) -> Path:
    """Writes it whole or not at all, and returns where."""
    path = sensitivity_file(found.study, found.budget)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(json.dumps(asdict(found)), encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return path


def load_sensitivity(study: str, budget: float, study_hash: str | None = None) -> Sensitivity | None:
    """The study's last sensitivity study at this budget; None where there is none, or none that this version
    reads, or it belongs to a study with another hash.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        text = sensitivity_file(study, budget).read_text(encoding="utf-8")
        found = TypeAdapter(Sensitivity).validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    return found if study_hash in (None, found.study_hash) else None
