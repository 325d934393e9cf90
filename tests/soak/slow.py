"""The evaluator of `test_nodes`, in a file of its own: workers import it, and little else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from tests.tuner.fakes import FakeEvaluator


@dataclass
class Slow(FakeEvaluator):
    """Takes a while for each batch; cannot be loaded on the node whose id stands in `bad`."""

    seconds: float = 0.3
    bad: Path | None = None
    # What is raised there.
    error: type[Exception] = RuntimeError

    def __call__(self) -> FakeEvaluator:
        here = ray.get_runtime_context().get_node_id()
        if self.bad is not None and self.bad.exists() and self.bad.read_text() == here:
            raise self.error("the model's folder is not there")
        return self

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        time.sleep(self.seconds)
        return super().answer(configuration, questions, references, reshaped=reshaped)
