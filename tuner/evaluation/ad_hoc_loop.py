"""Evaluations outside of any search, for `tuner compare` and `tuner sensitivity`.

They go through the loop as a search does: the same workers and records, no question is asked twice, and
questions that kill their workers are quarantined. Nothing is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuner.evaluation.loop import Loop
from tuner.evaluation.progress import Progress
from tuner.evaluation.tasks import Evaluation
from tuner.planning.planner import Planner
from tuner.records.store import Store
from tuner.study import Study
from tuner.study.values import Configuration


@dataclass(frozen=True, eq=False)
class AdHocRequest:
    """Questions to be asked, each with a configuration of its own; only their answers are recorded."""

    configurations: Mapping[str, Configuration]  # by question id


class AdHocLoop(Loop):
    """Evaluates configurations on the held-out split, and questions with configurations of their own."""

    def __init__(
        self,
        study: Study,
        store: Store,
        planner: Planner,
        *,
        measure: Sequence[Configuration] = (),
        requests: Sequence[AdHocRequest] = (),
        progress: Progress | None = None,
        batch_videos: int | None = None,
        accept_weak_baseline: bool = False,
    ) -> None:
        """As `Loop`. measure: evaluated on the whole held-out split, with an outcome each. requests: only
        their answers are recorded.
        """
        super().__init__(
            study,
            store,
            planner,
            progress=progress,
            batch_videos=batch_videos,
            accept_weak_baseline=accept_weak_baseline,
        )
        self._to_measure = tuple(measure)
        self._requests = tuple(requests)

    def _phases(self) -> Iterator[Evaluation | None]:
        yield from self._held_out_evaluations(dict.fromkeys(self._to_measure))
        self._start(
            "answers",
            sum(
                len(self._ad_hoc_evaluation(request).missing(request.configurations))
                for request in self._requests
            ),
        )
        for request in self._requests:
            # Created when it is due, so that it finds the answers to the requests before it.
            yield self._ad_hoc_evaluation(request)
        while self._busy():
            yield None

    def _ad_hoc_evaluation(self, request: AdHocRequest) -> Evaluation:
        by_configuration: dict[Configuration, list[str]] = {}
        for question, configuration in request.configurations.items():
            if question not in self._quarantined:
                by_configuration.setdefault(configuration, []).append(question)
        fingerprints: dict[str, str] = {}
        for configuration, questions in by_configuration.items():
            found = self._planner.fingerprints(configuration.build(), questions)
            fingerprints |= zip(questions, found, strict=True)
        return self._evaluation("asked", None, None, fingerprints, request.configurations)
