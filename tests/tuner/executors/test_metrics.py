"""What a run counts, by the documented names; without a cluster Ray's counters count for nobody."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tuner.evaluation.events import LOGGER, tell
from tuner.executors import metrics

DOC = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text()


class Kept:
    """In the place of Ray's counters and gauges: sums, or the last value, by name and labels."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name, self.labels = name, tag_keys
        self.values: dict[tuple[str, ...], float] = {}

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0  # as Ray
        self.set(self.values.get(tuple(tags.values()), 0) + value, tags)

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.labels)
        self.values[tuple(tags.values())] = value


class Total(Kept):
    """A counter, which Ray shows with this ending."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    found: list[Kept] = []

    def keep(kind: type[Kept]) -> Any:
        def make(*arguments: Any, **named: Any) -> Kept:
            found.append(kind(*arguments, **named))
            return found[-1]

        return make

    monkeypatch.setattr(metrics, "Counter", keep(Total))
    monkeypatch.setattr(metrics, "Gauge", keep(Kept))
    return found


def test_names_and_labels_are_the_documented_ones(made: list[Kept]) -> None:
    metrics.Metrics(0.5)
    rows = re.findall(r"^\| `(ray_tuner_\w+)` \| (.+?) \|", DOC, flags=re.MULTILINE)
    documented = {name: tuple(re.findall(r"\w+", labels)) for name, labels in rows}
    assert documented == {
        f"ray_{item.name}{'_total' if isinstance(item, Total) else ''}": item.labels for item in made
    }


def test_what_is_told_is_counted(made: list[Kept]) -> None:
    answered = {"trial": 0, "questions": ("a", "b"), "cache_asked": 4, "cache_hits": 0}
    with metrics.counted(0.5):
        tell("answered", "s", kind="trial", seconds=3.0, **answered)
        tell("answered", "s", kind="trial", seconds=1.0, **answered)
        tell("failed", "s", kind="trial", trial=0, questions=("a",), failure="killed", reason="")
        tell("quarantined", "s", question="a", reason="")
        tell("trial_ended", "s", trial=0, end="complete")
    tell("trial_ended", "s", trial=1, end="complete")
    assert {item.name: item.values for item in made} == {
        "tuner_trials": {("s", "complete"): 1},
        "tuner_questions": {("s", "trial"): 4},
        "tuner_questions_per_second": {("s",): 4 / 60},
        "tuner_cache_asked": {("s",): 8},
        "tuner_cache_hits": {},
        "tuner_failures": {("s", "killed"): 1},
        "tuner_quarantined_questions": {("s",): 1},
        "tuner_model_seconds": {("s", "trial"): 4},
        "tuner_gpu_seconds": {("s", "trial"): 2},
    }
    assert not LOGGER.handlers
