"""What ends a command from outside: Ctrl-C (SIGINT), and the signals of a scheduler or a lost terminal.

SIGTERM and SIGHUP do what Ctrl-C does at that moment: a run ends the batch in flight and keeps it. The exit
code is 128 plus the signal's number, as shells tell it: 130, 143 or 129.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from tuner.cli.log_format import json_asked

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
# Seconds after which an interrupt that Python dropped is sent again.
_AGAIN = 0.1

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The first that came.
_received: int | None = None


class _Interrupt(KeyboardInterrupt):
    """Of a class of its own: Python ends itself by SIGINT, whatever the exit code, once a KeyboardInterrupt
    proper has left the evaluation of a string.
    """


def exit_code(otherwise: int) -> int:
    """That of the signal which ended this command; `otherwise` where none came."""
    return otherwise if _received is None else 128 + _received


def received() -> bool:
    """Whether a signal came that a command's own handler did not take."""
    return _received is not None


def end_at_once() -> None:
    """From now on a signal ends the process: nothing was begun yet, or all of it is written."""
    _handle(_end, _end)


def unwind() -> None:
    """From now on a signal raises KeyboardInterrupt in the main thread, or does what a handler of SIGINT that
    was set since then does.
    """
    _handle(_interrupt, _as_interrupt)
    sys.unraisablehook = _send_again


def _handle(interrupt: signal._HANDLER, others: signal._HANDLER) -> None:
    for number in _SIGNALS:
        # Ignored on purpose: by `nohup`, or for what a script runs in the background.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt if number == signal.SIGINT else others)


def _end(number: int, _: FrameType | None) -> NoReturn:
    # Not through `sys.stderr`, which may be what was interrupted.
    told = "Interrupted."
    if json_asked(sys.argv[1:]):
        # By hand: what writes JSON may be what was being imported.
        told = (
            f'{{"time": "{time.strftime("%Y-%m-%dT%H:%M:%S.000+00:00", time.gmtime())}", "level": "error", '
            f'"logger": "tuner.cli", "message": "{told}", "event": "ended", "exit_code": {128 + number}}}'
        )
    os.write(2, f"{told}\n".encode())
    os._exit(128 + number)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    global _received
    _received = _received or number
    raise _Interrupt


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    global _received
    _received = _received or number
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise _Interrupt
    handler(signal.SIGINT, frame)


def _send_again(dropped: sys.UnraisableHookArgs) -> None:
    """Python prints and drops what is raised in a destructor or in a callback of its imports: the handler's
    KeyboardInterrupt, or the SystemExit of the handler of SIGTERM that Ray has while it starts.
    """
    if isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
        number = signal.SIGINT if isinstance(dropped.exc_value, KeyboardInterrupt) else signal.SIGTERM
        threading.Timer(_AGAIN, signal.raise_signal, [number]).start()
    else:
        sys.__unraisablehook__(dropped)
