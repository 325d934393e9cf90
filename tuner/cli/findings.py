"""How `tuner check`, `tuner verify` and `tuner doctor` print the outcome of a check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.finding import Finding


def print_finding(finding: Finding, console: Console, *, failed: str = "FAILED") -> None:
    """A line; where the check did not pass (`failed` says so), what is allowed and what to do as well."""
    ok = f"{'ok':<{len(failed)}}"
    mark = f"[green]{ok}[/green]" if finding.passed else f"[bold red]{failed}[/bold red]"
    console.print(f"{mark} [bold]{escape(finding.name)}[/bold]: {escape(finding.found)}", soft_wrap=True)
    if finding.passed:
        return
    for line in (f"allowed: {finding.allowed}", finding.advice):
        if line:
            console.print(f"{' ' * len(failed)} {escape(line)}", soft_wrap=True)
