"""What two runs of the same study have in common, whatever disturbed them: trials and answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tuner.records.store import Store

# What differs between two runs of the same.
UNLIKE: dict[str, Any] = {"seconds": 0.0, "peak_bytes_mean": None, "peak_bytes_max": None}


def recorded(url: str, study: str, owner: str | None = None) -> tuple[list[Any], list[Any]]:
    """Trials and answers, without what may differ: row ids, dates, seconds and memory."""
    with Store.open(url, create=False, owner=owner) as store:
        store.require(study)
        assert store.quarantined() == {}
        trials = [
            replace(trial, search=0, outcome=trial.outcome and replace(trial.outcome, **UNLIKE))
            for trial in store.trials()
        ]
        stored = store.answers((answer.question, answer.fingerprint) for answer in store.stored_answers())
        answers = sorted(
            (pair, replace(answer, seconds=0.0, peak_bytes=None)) for pair, answer in stored.items()
        )
    return trials, answers
