"""`tuner verify`: whether a best.json still does, here and now, what it promises."""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from tuner.cli.options import (
    Address,
    BatchTimeout,
    CacheMemory,
    GpusPerWorker,
    SkipBadVideos,
    Study,
    WaitForWorkers,
    Workers,
    in_bytes,
    parse_budget,
)

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.runs.verify import ChangedAnswer, Verification

DOES_NOT_HOLD = 1  # exit code; a mistake in a file or option is 2, as everywhere
# Answers that changed, printed and in a summary; --json has all.
MOST_SHOWN = 20


def verify(
    file: Annotated[Path, typer.Argument(help="A file that `tuner export` wrote.", metavar="BEST.JSON")],
    study: Study,
    questions: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ask about so many questions only: a quick sample, the same each time. It can find that the "
            "file does not hold, not that it does.",
            show_default=False,
        ),
    ] = None,
    allow_changed: Annotated[
        float | None,
        typer.Option(
            "--allow-changed",
            parser=parse_budget,
            metavar="SHARE",
            help="Answers that may differ from the file's, as a share of those asked, rounded up: another "
            "device rounds otherwise. 1% unless told otherwise.",
            show_default=False,
        ),
    ] = None,
    workers: Workers = 1,
    gpus_per_worker: GpusPerWorker = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Questions in one packed forward; 1 asks as production does.")
    ] = 1,
    address: Address = None,
    wait_for_workers: WaitForWorkers = None,
    batch_timeout: BatchTimeout = None,
    cache_memory: CacheMemory = None,
    skip_bad_videos: SkipBadVideos = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all digits and answers.")] = False,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            help="Append a summary in GitHub's Markdown to this file, as for $GITHUB_STEP_SUMMARY.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Ask a best.json's held-out questions again, here and now, and compare with what it promises.

    On this device, with the packages that are installed here, of the model that the file names. The records
    are not needed, and nothing is recorded: it chooses nothing, so it is no look at the held-out videos. Exit
    code 0: it holds; 1: it does not; 2: the file, the study or an option has a mistake.
    """
    from rich.console import Console

    from tuner.cli.progress import command_progress
    from tuner.cli.run import quietly_loaded
    from tuner.errors import UserError
    from tuner.runs.run import RunOptions
    from tuner.runs.verify import CHANGED
    from tuner.runs.verify import verify as verify_file

    if markdown is not None and not markdown.absolute().parent.is_dir():
        raise UserError(f"{markdown} cannot be written: its folder does not exist.")
    options = RunOptions(
        workers=1 if workers is None else workers,
        gpus_per_worker=gpus_per_worker,
        batch=batch,
        address=address,
        wait_for_workers=wait_for_workers,
        batch_timeout=batch_timeout,
        cache_memory=in_bytes(cache_memory),
    )
    loaded = quietly_loaded(study, skip_bad_videos=skip_bad_videos)
    with command_progress() as progress:
        found = verify_file(
            file,
            loaded,
            options,
            progress,
            questions=questions,
            allow_changed=CHANGED if allow_changed is None else allow_changed,
        )
    if as_json:
        typer.echo(json.dumps({"holds": found.holds, **asdict(found)}, indent=2))
    else:
        _print(found, Console(highlight=False))
    if markdown is not None:
        try:
            with markdown.open("a", encoding="utf-8") as summary:
                summary.write(in_markdown(found))
        except OSError as error:
            raise UserError(f"{markdown} cannot be written: {error.strerror or error}.") from error
    if not found.holds:
        raise typer.Exit(DOES_NOT_HOLD)


def headline(found: Verification) -> str:
    """The outcome in one sentence."""
    if not found.holds:
        failed = ", ".join(finding.name for finding in found.findings if not finding.passed)
        return f"Does not hold here: {failed}."
    if not found.complete:
        return f"Nothing against it in {found.questions} questions; a sample cannot show that it holds."
    return "Holds here."


def _print(found: Verification, console: Console) -> None:
    from tuner.cli.findings import print_finding

    console.print(f"[bold]{escape(found.file)}[/bold] (trial {found.trial}) on {escape(_asked(found))}")
    for finding in found.findings:
        print_finding(finding, console)
    if found.changed:
        console.print("Answers that changed (question, video: promised -> now; right):")
        for answer in _shown(found):
            answers = f"{answer.promised} -> {answer.now}; {answer.right}"
            other = f"  [{OTHER_INPUT}]" if answer.other_input else ""
            line = f"  {answer.change:<11} {answer.question}, {answer.video}: {answers}{other}"
            console.print(escape(line), soft_wrap=True)
        if (more := len(found.changed) - MOST_SHOWN) > 0:
            console.print(f"  and {more} more: --json lists all")
    if found.unpruned_changed:
        console.print(f"The unpruned model changed {_count(len(found.unpruned_changed), 'answer')}, too.")
    for name, (then, now) in found.environment.items():
        console.print(escape(f"{name}: {then} at the export, {now} here"), soft_wrap=True)
    style = "bold green" if found.holds else "bold red"
    console.print(f"[{style}]{escape(headline(found))}[/{style}]", soft_wrap=True)


OTHER_INPUT = "the question or the video's bytes are not what they were"


def _asked(found: Verification) -> str:
    return f"{found.study}: {_count(found.questions, 'question')} about {_count(found.videos, 'video')}, " + (
        f"{100 * found.accuracy:.1f} % right, {100 * found.baseline:.1f} % unpruned"
        if found.labelled
        else f"{100 * found.accuracy:.1f} % agreement with the unpruned model"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _shown(found: Verification) -> list[ChangedAnswer]:
    """Those that cost accuracy first."""
    order = ("lost", "still wrong", "still right", "gained")
    return sorted(found.changed, key=lambda answer: order.index(answer.change))[:MOST_SHOWN]


def in_markdown(found: Verification) -> str:
    """A summary in GitHub's Markdown."""
    lines = [
        f"## {'✅' if found.holds else '❌'} tuner verify: {_cell(headline(found))}",
        "",
        f"{_cell(found.file)} (trial {found.trial}) on {_cell(_asked(found))}.",
        "",
        "| | check | found | allowed |",
        "| --- | --- | --- | --- |",
    ]
    for finding in found.findings:
        cells = (finding.name, finding.found, finding.allowed)
        lines.append(f"| {'✅' if finding.passed else '❌'} | {' | '.join(map(_cell, cells))} |")
    if found.changed:
        lines += [
            "",
            f"<details><summary>{_count(len(found.changed), 'answer')} changed</summary>",
            "",
            "| change | question | video | asked | promised | now | right |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for changed in _shown(found):
            change = f"{changed.change}{' (other input)' if changed.other_input else ''}"
            question = (changed.question, changed.video, changed.asked)
            row = (change, *question, changed.promised, changed.now, changed.right)
            lines.append(f"| {' | '.join(map(_cell, row))} |")
        if (more := len(found.changed) - MOST_SHOWN) > 0:
            lines.append(f"\nand {more} more: `tuner verify --json` lists all.")
        lines += ["", "</details>"]
    if found.environment:
        lines += ["", "| otherwise than at the export | then | now |", "| --- | --- | --- |"]
        lines += [
            f"| {_cell(name)} | {_cell(then)} | {_cell(now)} |"
            for name, (then, now) in found.environment.items()
        ]
    return "\n".join(lines) + "\n\n"


def _cell(text: str) -> str:
    """Text of a user in one cell of a table: no markup, no line break."""
    text = html.escape(" ".join(text.split()), quote=False)
    # First the number sign, which is in every replacement.
    for sign in "#\\`*_[]|~@":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text
