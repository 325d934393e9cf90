"""`tuner`: assembles the commands and turns a user's mistake into one message and exit code 2."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, NoReturn

import typer

from pipeline.errors import PipelineError
from tuner.cli import interrupts
from tuner.cli.archive import archive, restore
from tuner.cli.check import check
from tuner.cli.compare import compare
from tuner.cli.doctor import doctor
from tuner.cli.export import export
from tuner.cli.importing import import_
from tuner.cli.init import init
from tuner.cli.listing import list_
from tuner.cli.log_format import json_asked
from tuner.cli.report import report
from tuner.cli.run import run
from tuner.cli.sensitivity import sensitivity
from tuner.cli.show import show
from tuner.cli.status import status
from tuner.cli.sync import sync
from tuner.cli.trials import trials
from tuner.cli.unquarantine import unquarantine
from tuner.cli.verify import verify
from tuner.errors import (
    EXIT_CODE,
    DiskFullError,
    UserError,
    disk_may_be_full,
    files_may_be_refused,
    is_full,
    without_passwords,
)

_INTERRUPTED = "Interrupted. Everything recorded is kept."
# Commands that go on where they were interrupted.
_RESUMABLE = ("run", "compare", "sensitivity")

app = typer.Typer(
    name="tuner",
    help="Tunes AdaTP, visual-token pruning for video language models, on your own videos and questions.",
    epilog="tuner run --study demo --budget 0.3, then tuner export --study demo --output best.json",
    no_args_is_help=True,
    add_completion=False,
    # A traceback is for our mistakes, and then a plain one.
    pretty_exceptions_enable=False,
)
app.command()(init)
app.command("import")(import_)
app.command("list")(list_)
app.command()(check)
app.command()(run)
app.command()(compare)
app.command()(status)
app.command()(show)
app.command()(trials)
app.command()(export)
app.command()(verify)
app.command()(report)
app.command()(sync)
app.command()(sensitivity)
app.command()(archive)
app.command()(restore)
app.command()(unquarantine)
app.command()(doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        import tuner

        typer.echo(f"tuner {tuner.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Runs the command that the arguments name; `tuner.cli.entry` is what a shell calls."""
    _prepare_streams()
    if json_asked(sys.argv[1:]):
        from tuner.cli.logs import write_objects

        write_objects()
    try:
        try:
            _require_folder()
            with disk_may_be_full(), files_may_be_refused():
                _call()
        finally:
            # What does not fit, or nobody reads any more, shows here rather than when Python ends.
            _flush()
    except SystemExit as end:
        # Typer and rich end so after Ctrl-C and where nobody reads any more.
        if end.code == interrupts.INTERRUPTED:
            _end_interrupted(_INTERRUPTED)
        if isinstance(end.__context__, BrokenPipeError):
            _end_without_reader()
        raise
    except KeyboardInterrupt:
        _end_interrupted(_INTERRUPTED)
    except BrokenPipeError:
        _end_without_reader()
    except (UserError, PipelineError) as error:
        _fail(f"Error: {error}", getattr(error, "exit_code", EXIT_CODE))
    except Exception as error:
        # Ends of a run that are nobody's mistake, such as Ctrl-C or a full disk, carry their exit code.
        code = getattr(error, "exit_code", None)
        if code == interrupts.INTERRUPTED:
            _end_interrupted(str(error))
        if isinstance(code, int):
            # Of Typer's errors it names the option.
            told = getattr(error, "format_message", error.__str__)
            _fail(told(), interrupts.exit_code(code))
        if interrupts.received():
            # Some libraries make another error of it while they are imported.
            _end_interrupted(_INTERRUPTED)
        sys.excepthook = _print_traceback
        raise


def _call() -> None:
    """The command. Typer prints a mistake in its arguments and ends the process; for JSON we do."""
    code = app(standalone_mode=not json_asked(sys.argv[1:]))
    if code:
        sys.exit(code)


def _prepare_streams() -> None:
    """Makes every character printable, and gives the number of a closed stream to no file opened later."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As Python does it on stderr: a character that the terminal does not have is told by its number.
        sys.stdout.reconfigure(errors="backslashreplace")


def _require_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working folder was removed; go into one that is there") from None


def _flush() -> None:
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_output()
        if is_full(error):
            raise DiskFullError.of("the output", error.strerror) from error
        raise


def _end_without_reader() -> NoReturn:
    """As a process ends by default that writes into a pipe which nobody reads any more, as after `| head`."""
    _drop_output()
    sys.exit(128 + signal.SIGPIPE)


def _drop_output() -> None:
    """What could not be written is still in a buffer, which Python would try to write at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """As Python does it; but what a library writes into its errors is not ours to know."""
    if json_asked(sys.argv[1:]):
        from tuner.cli.logs import log_end

        log_end(f"{kind.__name__}: {error}", 1, error)
        return
    print(without_passwords("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


def _end_interrupted(message: str) -> NoReturn:
    """Says what is kept, and the command that goes on with it."""
    if len(sys.argv) > 1 and sys.argv[1] in _RESUMABLE:
        message += f"\nNEXT  {shlex.join(['tuner', *sys.argv[1:]])}"
    _fail(message, interrupts.exit_code(interrupts.INTERRUPTED))


def _fail(message: str, code: int) -> NoReturn:
    if json_asked(sys.argv[1:]):
        from tuner.cli.logs import log_end

        log_end(message, code)
        sys.exit(code)
    with suppress(OSError):
        print(without_passwords(message), file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
