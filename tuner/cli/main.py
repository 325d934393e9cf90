"""`tuner`: assembles the commands and turns a user's mistake into one message and exit code 2."""

from __future__ import annotations

import sys
import traceback
from types import TracebackType
from typing import Annotated

import typer

from pipeline.errors import PipelineError
from tuner.cli.archive import archive, restore
from tuner.cli.check import check
from tuner.cli.compare import compare
from tuner.cli.export import export
from tuner.cli.report import report
from tuner.cli.run import run
from tuner.cli.sensitivity import sensitivity
from tuner.cli.show import show
from tuner.cli.status import status
from tuner.cli.sync import sync
from tuner.cli.trials import trials
from tuner.errors import EXIT_CODE, UserError, disk_may_be_full, without_passwords

app = typer.Typer(
    name="tuner",
    help="Tunes AdaTP, visual-token pruning for video language models, on your own videos and questions.",
    epilog="tuner run --study demo --budget 0.3, then tuner export --study demo --output best.json",
    no_args_is_help=True,
    add_completion=False,
    # A traceback is for our mistakes, and then a plain one.
    pretty_exceptions_enable=False,
)
app.command()(check)
app.command()(run)
app.command()(compare)
app.command()(status)
app.command()(show)
app.command()(trials)
app.command()(export)
app.command()(report)
app.command()(sync)
app.command()(sensitivity)
app.command()(archive)
app.command()(restore)


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
    """The console script."""
    try:
        with disk_may_be_full():
            app()
    except (UserError, PipelineError) as error:
        _fail(f"Error: {error}", getattr(error, "exit_code", EXIT_CODE))
    except Exception as error:
        # Ends of a run that are nobody's mistake, such as Ctrl-C or a full disk, carry their exit code.
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            sys.excepthook = _print_traceback
            raise
        _fail(str(error), code)


def _print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """As Python does it; but what a library writes into its errors is not ours to know."""
    print(without_passwords("".join(traceback.format_exception(kind, error, where))), end="", file=sys.stderr)


def _fail(message: str, code: int) -> None:
    print(without_passwords(message), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
