"""What happens in a run, for those who watch it from outside: log records of the logger `tuner.evaluation`.

Nobody needs to listen: without a handler of level INFO nothing is written. `--log-format json` prints them, a
Ray cluster counts them in its metrics (`tuner.executors.metrics`). Each record has its values as attributes:
`event`, `study`, and those of `EVENTS`.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

LOGGER = logging.getLogger("tuner.evaluation")

Event = Literal["answered", "failed", "quarantined", "trial_ended"]

EVENTS: dict[Event, tuple[str, ...]] = {
    # A batch: for what (`kind`), the trial's number or None, ids of the questions, the model's seconds, and
    # how often the caches were asked and had it.
    "answered": ("kind", "trial", "questions", "seconds", "cache_asked", "cache_hits"),
    # An attempt at a batch: `failure` is a `FailureKind`.
    "failed": ("kind", "trial", "questions", "failure", "reason"),
    "quarantined": ("question", "reason"),
    # `end`: complete or pruned.
    "trial_ended": ("trial", "end"),
}
"""The values of each event, beside its name and the study's."""


def tell(event: Event, study: str, **values: Any) -> None:
    """Logs an event; `values` are those of `EVENTS`."""
    if LOGGER.isEnabledFor(logging.INFO):
        LOGGER.info(event.replace("_", " "), extra={"event": event, "study": study, **values})
