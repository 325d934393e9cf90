"""A driver of a study without a model, as a process of its own: URL, trials, seconds an answer, owner."""

from __future__ import annotations

import sys
import time
from typing import Any

from tests.tuner.fakes import FakeEvaluator, begin, make_loop, make_study
from tuner.errors import DiskFullError, RecordsLostError, UserError
from tuner.executors.in_process import InProcessExecutor
from tuner.records import lease
from tuner.records.store import Store

# Seconds, so that nobody waits for a minute.
LEASE = 4.0


class Slow(FakeEvaluator):
    seconds = 0.0

    def answer(self, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
        time.sleep(self.seconds)
        return super().answer(*arguments, **options)


def drive(url: str, trials: int, seconds: float, owner: str) -> None:
    study = make_study()
    with Store.open(url, owner=owner, say=say) as store, store.held("fake"):
        say("held")
        begin(store, study)
        evaluator = Slow(study)
        evaluator.seconds = seconds
        InProcessExecutor(evaluator).run(make_loop(study, store, unsolved=True, budget=0.3, trials=trials))


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    lease.LEASE, lease.BEAT = LEASE, 0.5
    try:
        drive(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
    except (UserError, DiskFullError, RecordsLostError) as error:
        say(str(error))
        sys.exit(error.exit_code)
    say("done")
