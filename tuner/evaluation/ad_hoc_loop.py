"""What others want to know of a study, asked beside its searches: `tuner compare`, `tuner sensitivity`.

It goes through the loop like a search: the same workers, the same records, nothing asked twice, and questions
that kill a worker left out. It chooses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuner.evaluation.loop import Loop
from tuner.evaluation.progress import Progress
from tuner.evaluation.tasks import Job
from tuner.planning.planner import Planner
from tuner.records.store import Store
from tuner.study import Study
from tuner.study.values import Configuration


@dataclass(frozen=True, eq=False)
class AdHocRequest:
    """Questions to be asked beside any search, each with a configuration of its own.

    Their answers join all others in the records; nothing is derived from them here.
    """

    configurations: Mapping[str, Configuration]  # by question id


class AdHocLoop(Loop):
    """Configurations on the held-out part, and single questions with configurations of their own."""

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
        """As `Loop`. measure: on the whole held-out part, with an outcome each; asks: answers alone."""
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

    def _phases(self) -> Iterator[Job | None]:
        yield from self._held_out_jobs(dict.fromkeys(self._to_measure))
        self._start(
            "asked", sum(len(self._asked_job(ask).missing(ask.configurations)) for ask in self._requests)
        )
        for ask in self._requests:
            # Made when it is due, so that it finds what those before it were answered.
            yield self._asked_job(ask)
        while self._busy():
            yield None

    def _asked_job(self, ask: AdHocRequest) -> Job:
        by_configuration: dict[Configuration, list[str]] = {}
        for question, configuration in ask.configurations.items():
            if question not in self._quarantined:
                by_configuration.setdefault(configuration, []).append(question)
        fingerprints: dict[str, str] = {}
        for configuration, questions in by_configuration.items():
            found = self._planner.fingerprints(configuration.build(), questions)
            fingerprints |= zip(questions, found, strict=True)
        return self._job("asked", None, None, fingerprints, ask.configurations)
