"""Transactions that outlive the loss of their connection: they are done again until the server answers.

Whether a transaction was committed is not known where the connection was lost meanwhile. So every method that
is `retried` leaves the same records when it is done twice; none takes an iterator, which the first attempt
would use up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Engine
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from tuner.errors import RecordsLostError
from tuner.records.database import ConnectionLostError, shown

# Seconds. Managed databases fail over to another machine within one or two minutes, a restart takes less;
# beyond that workers with GPUs would wait for a person.
PATIENCE = 300.0
# Seconds between two attempts: a random share of what doubles from the first to the last of these. Drivers
# that lost the same server do not come back all at once.
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0
# Losses that pass unsaid: a connection that was ended is simply opened again.
_UNSAID = 2

P = ParamSpec("P")
T = TypeVar("T")


class _Speaking(Protocol):
    """What is retried: it has an engine, and says what a user should read."""

    _engine: Engine
    _say: Callable[[str], None]


S = TypeVar("S", bound=_Speaking)


def retried(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """The method, done again while the database does not answer; all it does is one transaction.

    Errors: RecordsLostError after `PATIENCE`.
    """

    @wraps(method)
    def until_answered(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        where, minutes = shown(self._engine), f"{PATIENCE / 60:.0f}"

        def say(state: RetryCallState) -> None:
            if state.attempt_number == _UNSAID:
                self._say(f"The database {where} does not answer; trying again for up to {minutes} minutes.")

        attempts = Retrying(
            retry=retry_if_exception_type(ConnectionLostError),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
            stop=stop_after_delay(PATIENCE),
            before_sleep=say,
            reraise=True,
        )
        try:
            result = attempts(method, self, *args, **kwargs)
        except ConnectionLostError as error:
            raise RecordsLostError(
                f"The database {where} did not answer for {minutes} minutes: {error}. Everything "
                "recorded is kept: the same command continues once it answers."
            ) from error
        if attempts.statistics.get("attempt_number", 1) > _UNSAID:
            self._say(f"The database {where} answers again.")
        return result

    return until_answered
