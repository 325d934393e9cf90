"""Metrics of a run, at the endpoint of the Ray cluster it uses: each node's, in Prometheus' format."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.util.metrics import Counter, Gauge

from tuner.evaluation.events import LOGGER

# Seconds over which questions per second are counted.
_WINDOW = 60.0


class Metrics(logging.Handler):
    """Counts what `tuner.evaluation.events` tells. All counts are of this run; Ray writes `ray_` before each
    name, and `study` is among the labels of all.
    """

    def __init__(self, gpus_per_worker: float) -> None:
        super().__init__(logging.INFO)
        self._gpus = gpus_per_worker
        self._recent: deque[tuple[float, int]] = deque()
        self.trials = Counter(
            "tuner_trials", "Trials that ended: complete or pruned.", tag_keys=("study", "end")
        )
        self.questions = Counter(
            "tuner_questions",
            "Questions answered by the model, by what they were asked for.",
            ("study", "kind"),
        )
        self.rate = Gauge(
            "tuner_questions_per_second", "Questions answered a second, over the last minute.", ("study",)
        )
        self.cache_asked = Counter(
            "tuner_cache_asked", "Times that kept features or a prefix were asked for.", ("study",)
        )
        self.cache_hits = Counter("tuner_cache_hits", "Times that they were there.", ("study",))
        self.failures = Counter(
            "tuner_failures", "Batches that failed, by what happened.", ("study", "failure")
        )
        self.quarantined = Counter("tuner_quarantined_questions", "Questions left out.", ("study",))
        self.model_seconds = Counter(
            "tuner_model_seconds", "Cost so far: seconds that workers took to answer.", ("study", "kind")
        )
        self.gpu_seconds = Counter(
            "tuner_gpu_seconds", "The same, times the GPUs of a worker.", ("study", "kind")
        )

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        values = record.__dict__
        event, study = values.get("event"), {"study": str(values.get("study"))}
        if event == "answered":
            self._answered(values, study, study | {"kind": values["kind"]})
        elif event == "failed":
            self.failures.inc(1, study | {"failure": values["failure"]})
        elif event == "quarantined":
            self.quarantined.inc(1, study)
        elif event == "trial_ended":
            self.trials.inc(1, study | {"end": values["end"]})

    def _answered(self, values: dict[str, Any], study: dict[str, str], by_kind: dict[str, str]) -> None:
        questions, seconds = len(values["questions"]), float(values["seconds"])
        for counter, value, tags in (
            (self.questions, questions, by_kind),
            (self.model_seconds, seconds, by_kind),
            (self.gpu_seconds, seconds * self._gpus, by_kind),
            (self.cache_asked, values["cache_asked"], study),
            (self.cache_hits, values["cache_hits"], study),
        ):
            # Ray refuses to add nothing.
            if value:
                counter.inc(value, tags)
        now = time.monotonic()
        self._recent.append((now, questions))
        while self._recent[0][0] < now - _WINDOW:
            self._recent.popleft()
        self.rate.set(sum(count for _, count in self._recent) / _WINDOW, study)


@contextmanager
def counted(gpus_per_worker: float) -> Iterator[None]:
    """Metrics of all that happens until the end of the block."""
    metrics, level = Metrics(gpus_per_worker), LOGGER.level
    LOGGER.addHandler(metrics)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(metrics)
        LOGGER.setLevel(level)
