"""`tuner check`: everything that can be wrong before a study costs anything."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from tuner.cli.options import SkipBadVideos, Study, warn
from tuner.statistics.margin import DEFAULT_MAX_DROP

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.finding import Finding
    from tuner.runs.check import Estimate

FAILED = 1  # exit code where a check did not pass; a mistake in the study's files is 2, as everywhere


def check(
    study: Study,
    model: Annotated[
        bool, typer.Option("--model/--no-model", help="Also load the model and check it on this device.")
    ] = False,
    max_drop: Annotated[
        str, typer.Option("--max-drop", help="What held-out accuracy may lose, as in `tuner run`.")
    ] = DEFAULT_MAX_DROP,
    skip_bad_videos: SkipBadVideos = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a study, and with --model its model on this device, before anything is spent.

    Exit code 0: all passed; 1: something did not; 2: the study's files have mistakes.
    """
    from rich.console import Console

    from tuner.cli.findings import print_finding
    from tuner.cli.progress import command_progress
    from tuner.cli.run import quietly_loaded
    from tuner.runs.check import ModelCheck, check_study
    from tuner.statistics.margin import MaxDrop

    margin = MaxDrop.parse(max_drop).value
    loaded = quietly_loaded(study, skip_bad_videos=skip_bad_videos)
    console = Console(highlight=False)
    found: list[Finding] = []
    checked = ModelCheck(loaded)
    with command_progress() as progress:
        findings = check_study(loaded, margin, progress, skip_bad_videos=skip_bad_videos)
        for finding in chain(findings, checked.findings(progress) if model else ()):
            found.append(finding)
            if not as_json:
                print_finding(finding, console)
    failed = [finding for finding in found if not finding.passed]
    estimate = checked.estimate
    if as_json:
        told = None if estimate is None else asdict(estimate) | {"total": estimate.total}
        content = {"passed": not failed, "checks": [asdict(finding) for finding in found], "estimate": told}
        typer.echo(json.dumps(content, indent=2))
    else:
        if estimate is not None:
            _print_estimate(estimate, console)
        console.print(f"{len(found) - len(failed)} of {len(found)} checks passed.")
        if not model:
            warn("The model was not checked: --model loads it and checks it on this device.")
    if failed:
        raise typer.Exit(FAILED)


def _print_estimate(estimate: Estimate, console: Console) -> None:
    from tuner.runs.check import BUDGET, TRIALS

    parts = (
        ("encoding", estimate.encode),
        ("the unpruned answers", estimate.baseline),
        (f"{TRIALS} trials at a budget of {BUDGET:g}, at most", estimate.trials),
        ("held-out answers", estimate.held_out),
    )
    told = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in parts)
    console.print(f"Estimated for one worker like this: {_duration(estimate.total)} ({told}).")
    console.print(f"`tuner sensitivity` after that: {_duration(estimate.sensitivity)}.")
    console.print(f"Smallest budget, going by the first videos: {estimate.smallest_budget:.3f}.")
    console.print(f"A worker takes up to {estimate.worker}; {estimate.workers} fit on this device.")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
