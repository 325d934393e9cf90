"""The figures that commands leave and hand to MLflow, and the report that holds them: gathered here alone."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dashboards.picture.picture import Picture
    from tuner.reporting.history import History
    from tuner.reporting.inspection import Inspection
    from tuner.reporting.values import Comparison, RunSummary
    from tuner.sensitivity.results import Sensitivity
    from tuner.study import Study

_STAMP = ".drawn.json"


@dataclass(frozen=True)
class _Drawn:
    """What the figures in a folder were drawn from, the files that stand alone, and all figures' names."""

    stamp: str = ""
    files: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> _Drawn:
        """Nothing where the folder does not say."""
        try:
            written = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
            return cls(written["stamp"], tuple(written["files"]), tuple(written["pictures"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()


@dataclass(frozen=True)
class Evidence:
    """What stands beside a search's summary; None: not there (yet)."""

    history: History | None = None
    inspection: Inspection | None = None
    comparison: Comparison | None = None
    sensitivity: Sensitivity | None = None


def gather(
    study: Study,
    summary: RunSummary,
    database: str | None = None,
    *,
    comparison: Comparison | None = None,
) -> Evidence:
    """What is recorded beside this summary of the study; a comparison that is at hand is not solved again."""
    from tuner.reporting.history import load_history
    from tuner.reporting.inspection import load_inspection
    from tuner.runs.compare import load_comparison
    from tuner.sensitivity.saved import load_sensitivity

    best = summary.best
    sensitivity = load_sensitivity(summary.study, summary.budget, database)
    if sensitivity is not None and not _holds(sensitivity, summary):
        sensitivity = None
    return Evidence(
        history=load_history(study, budget=summary.budget, seed=summary.seed, database=database),
        inspection=None if best is None else load_inspection(summary.study, best.configuration, database),
        comparison=comparison or load_comparison(study, summary.budget, database),
        sensitivity=sensitivity,
    )


def _holds(found: Sensitivity, summary: RunSummary) -> bool:
    """Whether a saved sensitivity study is of what the search has come to now, and of the questions that
    count now: more trials, another study.yaml or a quarantine may have come after it.
    """
    if summary.best is None:
        return found.trial is None
    if found.reference != summary.best.configuration:
        return False
    held_out = summary.best_held_out
    if found.split != "held_out" or held_out is None:
        return True
    return all(one.questions == held_out.outcome.questions for one in found.curves)


def pictures(summary: RunSummary, evidence: Evidence) -> tuple[Picture, ...]:
    """A study's figures in the order of the report; those without data are left out."""
    from dashboards.inspection.bias import bias_picture
    from dashboards.inspection.cards import cards_picture
    from dashboards.pareto.figure import pareto_picture
    from dashboards.search.comparison import comparison_picture
    from dashboards.search.health import health_picture
    from dashboards.search.history import history_picture
    from dashboards.sensitivity.figure import sensitivity_pictures

    drawn: list[Picture | None] = [pareto_picture(summary, evidence.comparison)]
    if evidence.comparison is not None:
        drawn.append(comparison_picture(evidence.comparison))
    if evidence.sensitivity is not None:
        drawn += sensitivity_pictures(evidence.sensitivity)
    if evidence.inspection is not None:
        drawn += [cards_picture(evidence.inspection), bias_picture(evidence.inspection)]
    if evidence.history is not None:
        drawn.append(history_picture(evidence.history))
    drawn.append(health_picture(summary, evidence.history))
    return tuple(one for one in drawn if one is not None)


def report(summary: RunSummary, evidence: Evidence) -> str:
    """The report's page."""
    return _report(summary, evidence, pictures(summary, evidence))


def draw(
    study: Study,
    summary: RunSummary,
    database: str | None = None,
    *,
    comparison: Comparison | None = None,
    folder: Path | None = None,
) -> tuple[Path, ...]:
    """Draws the study's figures and its report into .tuner/<study>/figures or this folder, unless they are
    there, and returns the files that stand alone, the report first. comparison: where it is at hand.
    """
    evidence = gather(study, summary, database, comparison=comparison)
    folder = folder or _folder(summary.study)
    stamp = _stamp(summary, evidence)
    before = _Drawn.read(folder)
    files = tuple(folder / name for name in before.files)
    if before.stamp == stamp and all(file.is_file() for file in files):
        return files
    drawn = pictures(summary, evidence)
    # From here on the files are of nothing; should this be ended, the next call still knows which there are.
    _write_stamp(folder, replace(before, stamp=""))
    for name in before.pictures:  # of what is no longer so, too
        for kind in ("html", "png", "csv"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    page = folder / "report.html"
    files = (page, *_write(drawn, folder))
    page.write_text(_report(summary, evidence, drawn), encoding="utf-8")
    written = _Drawn(stamp, tuple(file.name for file in files), tuple(one.name for one in drawn))
    _write_stamp(folder, written)
    return files


def draw_comparison(study: Study, comparison: Comparison, database: str | None = None) -> tuple[Path, ...]:
    """Draws the ways to prune side by side and writes their table; and all that `draw` does, where there was
    a search.
    """
    from tuner.reporting.comparison_table import TABLE, to_json
    from tuner.reporting.from_records import find_summary

    summary = find_summary(study, budget=comparison.budget, database=database)
    if summary is None:
        from dashboards.search.comparison import comparison_picture

        files = _write([comparison_picture(comparison)], _folder(comparison.study))
    else:
        files = draw(study, summary, database, comparison=comparison)
    table = _folder(comparison.study) / TABLE
    table.write_text(to_json(comparison), encoding="utf-8")
    return (*files, table)


def draw_sensitivity(study: Study, found: Sensitivity, database: str | None = None) -> tuple[Path, ...]:
    """Draws a saved sensitivity study; and all that `draw` does, where there was a search."""
    from tuner.reporting.from_records import find_summary

    summary = find_summary(study, budget=found.budget, database=database)
    if summary is None:
        from dashboards.sensitivity.figure import sensitivity_pictures

        return _write(sensitivity_pictures(found), _folder(found.study))
    return draw(study, summary, database)


def _report(summary: RunSummary, evidence: Evidence, drawn: tuple[Picture, ...]) -> str:
    from dashboards.report.page import report_html

    return report_html(summary, drawn, sensitivity=evidence.sensitivity, comparison=evidence.comparison)


def _write(drawn: Iterable[Picture], folder: Path) -> tuple[Path, ...]:
    """MLflow shows a page only if it stands alone, and the report holds all of them: one alone does."""
    from dashboards.picture.picture import write, write_library

    write_library(folder)
    return tuple(
        file for one in drawn for file in write(one, folder, "held" if one.name == "pareto" else "shared")
    )


def _write_stamp(folder: Path, drawn: _Drawn) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _STAMP).write_text(json.dumps(asdict(drawn)), encoding="utf-8")


def _stamp(summary: RunSummary, evidence: Evidence) -> str:
    """Of what is drawn and of what draws it: equal stamps, equal files."""
    shown = io.BytesIO()
    pickler = pickle.Pickler(shown)
    # Without references to what was written before: they tell equal values of different identity apart.
    pickler.fast = True
    # How long the last call took is on no figure.
    pickler.dump((replace(summary, seconds=0.0), evidence))
    digest = hashlib.sha256(shown.getvalue())
    for package in ("dashboards", "tuner", "pipeline"):
        for source in sorted(Path(str(resources.files(package))).rglob("*")):
            if source.is_file() and source.suffix != ".pyc":
                digest.update(source.read_bytes())
    digest.update(repr([version(library) for library in ("plotly", "matplotlib")]).encode())
    return digest.hexdigest()


def _folder(study: str) -> Path:
    return Path(".tuner") / study / "figures"
