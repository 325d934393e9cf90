"""MLflow as a mirror of our records: an experiment per study, a run per study, a child run per trial.

The only module that imports MLflow. Everything is looked up by our own tags before it is created, and
compared by digest before it is written. So mirroring again changes nothing, and mirroring after a crash
completes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import make_url

from pipeline.methods import KNOBS
from tuner.errors import without_user
from tuner.records.database import sqlite_url
from tuner.records.measurements import ServingCost
from tuner.reporting.values import HeldOut, PrunedTrial, Recorded, RegressionRow, RunSummary, TagRow, Trial
from tuner.statistics.values import Measured
from tuner.statistics.wording import weak_baseline
from tuner.study.values import AnswerCost, Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

# A bare `mlflow ui` in the same folder looks here.
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
# The default address of `mlflow ui`.
LOCAL_INTERFACE = "http://127.0.0.1:5000"
REGRESSIONS = "regressions.json"
BY_TAG = "by_tag.json"
REPORT = "report.html"

_KIND, _STUDY, _TRIAL = "adatp.kind", "adatp.study_hash", "adatp.trial"
_DIGEST, _FILES = "adatp.digest", "adatp.files"
_TABLES = "mlflow.loggedArtifacts"  # the JSON files that the interface shows as tables
_PARENT = "mlflow.parentRunId"
# The kind of experiment, by which the interface sorts; without the tag it guesses.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# Prefix of the tags in which the interface keeps the views of its menu "Views".
_VIEW = "mlflow.sharedViewState."
# Without it the interface of MLflow 3 shows every experiment as if it were about prompts.
_WORKFLOW = "workflowType=machine_learning"
_VIEW_METRICS = ("flops_ratio", "accuracy", "regressions", "logprob_change", "held_out_accuracy")
# Files that the run's description links to, beside pages, whose links are named after their files.
_LINKED = {REGRESSIONS: "regressions, question by question", BY_TAG: "what pruning changed by tag"}
_PAGE = 1000
# Limits of a request to a tracking server.
_MOST_METRICS, _MOST_PARAMS, _MOST_TAGS = 1000, 100, 100


@dataclass(frozen=True)
class _Content:
    """Everything that a run should hold."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def digest(self) -> str:
        text = json.dumps([dict(self.params), dict(self.metrics), dict(self.tags)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class MlflowMirror:
    """Writes to an MLflow server or, by default, to mlflow.db in the working directory."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        # Absolute: MLflow keeps one connection per address for the life of the process, whatever its folder.
        # With the driver's name: at `sqlite:///` MLflow makes the folder of a quoted path, quotes included.
        default = sqlite_url(Path(DATABASE).resolve()).replace("sqlite:", "sqlite+pysqlite:", 1)
        self.tracking_uri = tracking_uri or default

    def record(
        self,
        summary: RunSummary,
        files: Sequence[Path] = (),
        *,
        earlier: Sequence[RunSummary] = (),
        running: bool = False,
    ) -> Recorded:
        """Makes MLflow hold this summary; files and tables are artifacts of the study's run.

        earlier: summaries of the study's other searches, whose chosen trials keep their held-out results. All
        are written together: separate calls would change the study's run back and forth. running: whether
        trials are still to come; the study's run then stays open.
        """
        with _quiet_mlflow():
            return _Writer(self.tracking_uri, summary, earlier).write(files, running=running)

    def record_files(self, study: str, study_hash: str, files: Sequence[Path]) -> Recorded:
        """Adds finished files, or replaces those of the same name, as artifacts of the study's run.

        Creates the experiment and the run if they are missing; the same files again change nothing. A JSON
        file of columns and data, as pandas writes it with orient="split", is shown as a table.
        """
        with _quiet_mlflow():
            run = _StudyRun(self.tracking_uri, study, study_hash)
            contents = _read(files)
            run.log_files(contents, [name for name, content in contents.items() if _is_table(name, content)])
            run.finish()
            return run.recorded

    def find(self, study: str, study_hash: str) -> Recorded | None:
        """Where a study was mirrored before; None if it was not."""
        database = _local_database(self.tracking_uri)
        if database is not None and not database.exists():
            return None  # looking would create it
        with _quiet_mlflow():
            client = _client(self.tracking_uri)
            experiment = client.get_experiment_by_name(experiment_name(study))
            run = None if experiment is None else _find_parent(client, experiment.experiment_id, study_hash)
            return None if run is None else _recorded(self.tracking_uri, run)


def _is_table(name: str, content: bytes) -> bool:
    return name.endswith(".json") and set(json.loads(content)) == {"columns", "data"}


def experiment_name(study: str) -> str:
    """The experiment that holds all versions of a study."""
    return f"adatp/{study}"


def _local_database(tracking_uri: str) -> Path | None:
    """The SQLite file behind a tracking address; None for a server or another database."""
    if not tracking_uri.startswith("sqlite"):
        return None
    database = make_url(tracking_uri).database
    return Path(database).resolve() if database else None


def _move_artifacts(database: Path, experiment: Experiment, folder: Path) -> Path | None:
    """Makes an experiment keep its artifacts in `folder`, if that is where they belong.

    MLflow stores absolute addresses and has no call that changes them. After the project's folder was moved
    or copied they name the old place: it is gone, or the artifacts lie beside the database as well. Any
    other place is left as it is. Returns the old folder, or None where nothing was changed.
    """
    address = urlsplit(experiment.artifact_location)
    if address.scheme not in ("", "file"):
        return None
    before = Path(unquote(address.path))
    if before == folder or (before.is_dir() and not folder.is_dir()):
        return None
    old, new, key = experiment.artifact_location, folder.as_uri(), int(experiment.experiment_id)
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, key, len(old), old),
        )
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, key))
    return before


class _StudyRun:
    """The run that holds one version of a study, created where it is missing."""

    # Where artifacts lay before the project was moved.
    moved_from: Path | None = None

    def __init__(self, tracking_uri: str, study: str, study_hash: str) -> None:
        self.uri, self.study, self.study_hash = tracking_uri, study, study_hash
        self.client = _client(tracking_uri)
        self.written_runs = self.written_files = 0
        self.experiment = self._find_experiment()
        run = _find_parent(self.client, self.experiment, study_hash)
        if run is None:
            identity = {_KIND: "study", _STUDY: study_hash}
            name = f"{study} {study_hash[:8]}"
            run = self.client.create_run(self.experiment, tags=identity, run_name=name)
        self.run = run
        known: dict[str, str] = json.loads(run.data.tags.get(_FILES, "{}"))
        there = {one.path for one in self.client.list_artifacts(self.id)}
        # Digests of its artifacts, by name. Those that were deleted, or lie where the folder was before it
        # was moved, are written again.
        self.files = {} if self.moved_from else {name: known[name] for name in known if name in there}

    @property
    def id(self) -> str:
        return str(self.run.info.run_id)

    @property
    def recorded(self) -> Recorded:
        return replace(
            _recorded(self.uri, self.run),
            runs=self.written_runs,
            files=self.written_files,
            moved_from=self.moved_from,
        )

    def _find_experiment(self) -> str:
        name = experiment_name(self.study)
        found = self.client.get_experiment_by_name(name)
        # A server decides where artifacts lie; without one they lie beside the database.
        database = _local_database(self.uri)
        folder = None if database is None else database.parent / ARTIFACTS / self.study
        if found is None:
            location = None if folder is None else folder.as_uri()
            return str(self.client.create_experiment(name, location, _EXPERIMENT_TAGS))
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        if database and folder:
            self.moved_from = _move_artifacts(database, found, folder)
        return str(found.experiment_id)

    def log_files(self, contents: Mapping[str, bytes], tables: Collection[str] = ()) -> None:
        """Files by name, each written only where its content changed; `tables` are those shown as tables."""
        digests = {name: hashlib.sha256(content).hexdigest()[:16] for name, content in contents.items()}
        changed = [name for name, digest in digests.items() if self.files.get(name) != digest]
        if not changed:
            return
        with TemporaryDirectory() as folder:
            for name in changed:
                file = Path(folder) / name
                file.write_bytes(contents[name])
                # Not `log_table`: it would append to the table of an earlier run.
                self.client.log_artifact(self.id, str(file))
        if tables:
            known = [one["path"] for one in json.loads(self.run.data.tags.get(_TABLES, "[]"))]
            shown = [{"path": name, "type": "table"} for name in dict.fromkeys((*known, *tables))]
            self.client.set_tag(self.id, _TABLES, json.dumps(shown))
        self.files |= digests
        self.written_files += len(changed)
        self.client.set_tag(self.id, _FILES, json.dumps(self.files, sort_keys=True))

    def save_view(self) -> None:
        """Adds a view of the trials, with suitable columns and charts, to the interface's menu "Views"."""
        key = _VIEW + _view_id(self.study_hash)
        view = json.dumps(
            {
                "name": f"{self.study} {self.study_hash[:8]}: trials",
                "createdAt": self.run.info.start_time,  # the same each time
                "state": json.dumps(_view_state(self.study_hash)),
            }
        )
        if self.client.get_experiment(self.experiment).tags.get(key) != view:
            self.client.set_experiment_tag(self.experiment, key, view)

    def update(self, run: Run, content: _Content) -> None:
        """Writes what one of the study's runs lacks."""
        self.written_runs += _update(self.client, run, content)

    def go_on(self) -> None:
        if self.run.info.status != "RUNNING":
            self.client.update_run(self.id, status="RUNNING")

    def finish(self) -> None:
        if self.run.info.status == "RUNNING":
            self.client.set_terminated(self.id)


class _Writer:
    def __init__(self, tracking_uri: str, summary: RunSummary, earlier: Sequence[RunSummary]) -> None:
        self.summary = summary
        # Held-out results of earlier searches, by trial number.
        self.measured = {
            number: metrics for one in earlier for number, metrics in _held_out_by_trial(one).items()
        }
        self.study = _StudyRun(tracking_uri, summary.study, summary.study_hash)
        self.client = self.study.client

    def write(self, files: Sequence[Path], *, running: bool) -> Recorded:
        summary, study = self.summary, self.study
        known = _children(self.client, study.experiment, study.id)
        for trial in (*summary.trials, *summary.above, *summary.outside):
            content = _trial_content(summary, trial, self.measured.get(trial.number, {}))
            name = _trial_name(summary, trial)
            run = known.get(trial.number)
            self._trial(trial.number, name, content, run)
        for pruned in summary.pruned:
            name = f"trial {pruned.number:03d} (pruned): at {pruned.binding_ratio:.3f}"
            run = known.get(pruned.number)
            self._trial(pruned.number, name, _pruned_content(pruned), run, status="KILLED")
        tables = {name: table.encode() for name, table in _tables(summary).items()}
        study.log_files(_read(files) | tables, tables)
        study.save_view()
        links = _links(study.experiment, study.id, summary, study.files)
        study.update(study.run, _study_content(summary, links))
        if running:
            study.go_on()
        else:
            study.finish()
        return study.recorded

    def _trial(
        self,
        number: int,
        name: str,
        content: _Content,
        run: Run | None,
        *,
        status: str = "FINISHED",
    ) -> None:
        """Takes three requests for a new trial, none for a trial that is there already."""
        if run is None:
            identity = {
                _PARENT: self.study.id,
                _KIND: "trial",
                _STUDY: self.summary.study_hash,
                _TRIAL: str(number),
            }
            # Its duration would be that of answers at different times and loads: none is told.
            run = self.client.create_run(self.study.experiment, tags=identity, run_name=name)
        elif run.info.run_name != name:  # another trial is the best one now
            self.client.update_run(run.info.run_id, name=name)
        self.study.update(run, content)
        # A pruned trial may have been completed since.
        if run.info.status != status:
            self.client.set_terminated(run.info.run_id, status)


def _update(client: MlflowClient, run: Run, content: _Content) -> bool:
    """Writes what differs, all in one request; returns whether anything did.

    MLflow stores parameters first, then metrics, then all tags at once. So a run without this digest is
    incomplete or has other content, and is written again.
    """
    from mlflow.entities import Metric, Param, RunTag

    if run.data.tags.get(_DIGEST) == content.digest:
        return False
    now = _now()
    known = run.data.metrics
    metrics = [
        Metric(key, value, now, 0) for key, value in content.metrics.items() if known.get(key) != value
    ]
    # A parameter cannot be changed.
    params = [Param(key, value) for key, value in content.params.items() if key not in run.data.params]
    tags = [
        RunTag(key, value)
        for key, value in (*content.tags.items(), (_DIGEST, content.digest))
        if run.data.tags.get(key) != value
    ]
    assert len(metrics) <= _MOST_METRICS
    assert len(params) <= _MOST_PARAMS
    assert len(tags) <= _MOST_TAGS
    client.log_batch(run.info.run_id, metrics=metrics, params=params, tags=tags)
    return True


def _read(files: Sequence[Path]) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in files}


# What the interface shows


def _view_id(study_hash: str) -> str:
    return f"adatp-{study_hash[:8]}"


def _view_state(study_hash: str) -> dict[str, Any]:
    """A view of the runs page: the trials, most accurate first, and two charts beside them.

    It has the form in which MLflow 3.17 stores its own views. Missing fields have their defaults, and an
    interface with other fields ignores unknown ones.
    """
    trials, others = "adatp-trials", "adatp-others"
    parallel = {
        "type": "PARALLEL",
        "uuid": "adatp-parallel",
        "displayName": "Knobs, FLOPs ratio (lower is better) and accuracy (higher is better)",
        "selectedParams": list(KNOBS),
        "selectedMetrics": ["flops_ratio", "accuracy"],  # the last one colours the lines
        "showAllRuns": False,
    }
    scatter = {
        "type": "SCATTER",
        "uuid": "adatp-scatter",
        "displayName": "Accuracy against FLOPs ratio",
        "xaxis": {"key": "flops_ratio", "type": "METRIC"},
        "yaxis": {"key": "accuracy", "type": "METRIC"},
    }
    every = {"metricSectionId": trials, "runsCountToCompare": 300, "deleted": False, "isGenerated": False}
    section = {"isReordered": False, "deleted": False, "isGenerated": False}
    # With the interface's names. It keeps widths only for columns that are in the order.
    metrics = [f"metrics.`{name}`" for name in _VIEW_METRICS]
    knobs = [f"params.`{name}`" for name in KNOBS]
    widths = {"attributes.`Run Name`": 255} | dict.fromkeys(knobs, 92) | dict.fromkeys(metrics, 105)
    return {
        "searchFilter": f"tags.`{_KIND}` = 'trial' AND tags.`{_STUDY}` = '{study_hash}'",
        "orderByKey": "metrics.`accuracy`",
        "orderByAsc": False,
        "selectedColumns": [*metrics, *knobs, "tags.`within_budget`"],
        "columnOrder": [*widths, "tags.`within_budget`", "runDateAndNestInfo", "duration"],
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [parallel | every, scatter | every],
        "compareRunSections": [
            {"uuid": trials, "name": "Trials", "display": True, "columns": 1, "cardHeight": 440} | section,
            # One bar chart per metric, which the interface adds by itself: folded.
            {"uuid": others, "name": "Model metrics", "display": False} | section | {"isGenerated": True},
        ],
    }


def _trial_name(summary: RunSummary, trial: Trial) -> str:
    """A name that sorts by number and shows the trial's result in lists and legends."""
    role = ""
    if summary.best is not None and summary.best.number == trial.number:
        role = " (best)"
    elif summary.defaults is not None and summary.defaults.number == trial.number:
        role = " (defaults)"
    elif trial in summary.outside:
        role = " (outside)"
    outcome = trial.outcome
    return f"trial {trial.number:03d}{role}: {100 * outcome.accuracy:.1f} % at {outcome.flops_ratio:.3f}"


def _links(experiment: str, run: str, summary: RunSummary, artifacts: Collection[str]) -> tuple[str, ...]:
    """Markdown links into the interface; relative, so that they work under any host name."""
    trials = f"#/experiments/{experiment}/runs?{_WORKFLOW}&viewStateShareKey={_view_id(summary.study_hash)}"
    links = [
        f"[trials in a table]({trials})",
        f"[trials as parallel coordinates]({trials}&compareRunsMode=CHART)",
    ]
    # The report first.
    pages = sorted((one for one in artifacts if one.endswith(".html")), key=lambda one: (one != REPORT, one))
    titles = {page: page.removesuffix(".html").replace("-", " ") for page in pages}
    for name, title in (titles | {name: _LINKED[name] for name in _LINKED if name in artifacts}).items():
        links.append(f"[{title}](#/experiments/{experiment}/runs/{run}/artifacts/{quote(name)}?{_WORKFLOW})")
    return tuple(links)


def _held_out_by_trial(summary: RunSummary) -> dict[int, dict[str, float]]:
    chosen = ((summary.best, summary.best_held_out), (summary.defaults, summary.defaults_held_out))
    return {one.number: _held_out_metrics(held_out) for one, held_out in chosen if one is not None}


def _trial_content(summary: RunSummary, trial: Trial, measured: Mapping[str, float]) -> _Content:
    """measured: held-out metrics that another search asked for."""
    outcome = trial.outcome
    metrics = _outcome_metrics(outcome) | dict(measured)
    roles = []
    for role, one, held_out in (
        ("best", summary.best, summary.best_held_out),
        ("defaults", summary.defaults, summary.defaults_held_out),
    ):
        if one is not None and one.number == trial.number:
            roles.append(role)
            metrics |= _held_out_metrics(held_out)
    if any(one.number == trial.number for one in summary.above):
        roles.append("above")
    if trial in summary.outside:
        roles.append("outside")
    return _Content(
        params={"method": trial.configuration.method}
        | {name: _readable(value) for name, value in trial.configuration.parameters},
        metrics=metrics,
        tags={"role": " ".join(roles) or "trial", "within_budget": str(trial.within_budget).lower()},
    )


def _pruned_content(pruned: PrunedTrial) -> _Content:
    """Of a pruned trial: without accuracy, which would be about some of the videos only."""
    configuration = pruned.configuration
    return _Content(
        params={"method": configuration.method}
        | {name: _readable(value) for name, value in configuration.parameters},
        metrics={"flops_ratio": pruned.binding_ratio, "stopped_videos": float(pruned.videos)},
        tags={"role": "stopped", "stopped_by": f"trial {pruned.by:03d}"},
    )


def _study_content(summary: RunSummary, links: Sequence[str] = ()) -> _Content:
    params = {"study": summary.study}
    if summary.setting is not None:
        setting = summary.setting
        params |= {
            "model": setting.model[-500:],
            "text_encoder": setting.text_encoder[-500:],
            "frames": str(setting.frames),
            "scoring": setting.scoring,
        }
        if setting.model_revision is not None:
            params["model_revision"] = setting.model_revision
    metrics = {
        "trials": float(len(summary.trials)),
        "refused": float(summary.infeasible),
        "evaluated_answers": float(summary.evaluated_answers),
        "shared_answers": float(summary.shared_answers),
    }
    for split, accuracy in summary.baseline.items():
        metrics |= _with_interval(f"baseline_{split}_accuracy", accuracy)
    metrics |= _held_out_metrics(summary.best_held_out)
    if summary.baseline_cost is not None:
        metrics |= _memory_metrics("baseline_held_out_", summary.baseline_cost)
    if summary.serving is not None:
        metrics |= _serving_metrics(summary.serving)
    metrics |= _verdict_metrics(summary)
    # Values that another search of the same study changes are tags, because parameters cannot be changed.
    tags = {
        "budget": f"{summary.budget:g}",
        "seed": str(summary.seed),
        "goal": summary.goal,
        "sampler": summary.sampler,
        "max_drop": summary.max_drop or "none",
        "verdict": summary.verdict,
        "best_trial": "none" if summary.best is None else str(summary.best.number),
        "mlflow.note.content": _note(summary, links),
    }
    return _Content(params, _finite(metrics), tags)


def _verdict_metrics(summary: RunSummary) -> dict[str, float]:
    """What the verdict is based on: the margin, the last test and the noise floor; and the study's cost."""
    metrics = {
        "stopped_trials": float(len(summary.pruned)),
        "trials_above": float(len(summary.above)),
        "quarantined_questions": float(len(summary.quarantined)),
    }
    if summary.cost is not None:
        metrics |= {
            "study_passes": summary.cost.passes,
            "study_passes_language": summary.cost.passes_language,
            "study_passes_naive": summary.cost.naive_passes,
            "study_raced_share": summary.cost.spared_share,
            "study_shared_share": summary.cost.shared_share,
        }
    use = summary.cache_use
    if use is not None:
        rates = {"study_feature_hit_rate": use.feature_hit_rate, "study_prefix_hit_rate": use.prefix_hit_rate}
        metrics |= {name: rate for name, rate in rates.items() if rate is not None}
    if summary.margin is not None:
        metrics["margin"] = summary.margin
    if summary.provable_drop is not None:
        metrics["provable_drop"] = summary.provable_drop
    if summary.tested:
        metrics["tested_candidates"] = float(len(summary.tested))
        metrics["tested_bound"] = (summary.test_of_best or summary.tested[0]).bound
    guessing = summary.guessing
    if guessing is not None:
        metrics |= {"baseline_option_accuracy": guessing.accuracy, "baseline_chance": guessing.chance}
    noise = summary.noise
    if noise is not None:
        metrics |= {
            "noise_flips": float(noise.flips),
            "noise_questions": float(noise.questions),
            "noise_logprob_mean": noise.logprob_mean,
            "noise_logprob_max": noise.logprob_max,
        }
    return metrics


def _outcome_metrics(outcome: Outcome) -> dict[str, float]:
    return _finite(
        {
            field.name: float(getattr(outcome, field.name))
            for field in fields(outcome)
            if field.name
            not in ("split", "questions", "videos", "peak_bytes_mean", "peak_bytes_max", "graded")
        }
        | ({} if outcome.graded is None else {"graded": outcome.graded})
        | _memory_metrics("", outcome.per_answer)
    )


def _memory_metrics(prefix: str, cost: AnswerCost) -> dict[str, float]:
    """Without seconds: stored answers were timed at different moments, so their seconds do not compare."""
    metrics: dict[str, float] = {}
    if cost.peak_bytes_mean is not None and cost.peak_bytes_max is not None:
        metrics[f"{prefix}peak_bytes_mean"] = cost.peak_bytes_mean
        metrics[f"{prefix}peak_bytes_max"] = float(cost.peak_bytes_max)
    return metrics


def _serving_metrics(serving: ServingCost) -> dict[str, float]:
    """Without a break-even if pruning pays for any number of questions, because a chart cannot show it."""
    metrics = {
        "break_even_questions_flops": serving.break_even,
        "flops_per_video_baseline": serving.baseline.per_video,
        "flops_per_video_best": serving.best.per_video,
        "flops_per_question_baseline": serving.baseline.per_question,
        "flops_per_question_best": serving.best.per_question,
    }
    measured = serving.measured
    if measured is not None:
        metrics |= {
            "break_even_questions_seconds": measured.break_even,
            "seconds_per_video_baseline": measured.baseline.per_video,
            "seconds_per_video_best": measured.best.per_video,
            "seconds_per_question_baseline": measured.baseline.per_question,
            "seconds_per_question_best": measured.best.per_question,
        }
        if measured.profiled is not None:
            one = measured.profiled
            metrics |= {
                "profiled_flops_baseline": float(one.counted_baseline),
                "profiled_flops_best": float(one.counted_best),
                "planned_flops_baseline": float(one.planned_baseline),
                "planned_flops_best": float(one.planned_best),
            }
    if serving.stored_bytes is not None:
        names = ("stored_bytes_per_video_baseline", "stored_bytes_per_video_best")
        metrics |= dict(zip(names, serving.stored_bytes, strict=True))
    return metrics


def _held_out_metrics(held_out: HeldOut | None) -> dict[str, float]:
    if held_out is None:
        return {}
    outcome = held_out.outcome
    metrics = {
        "held_out_flops_ratio": outcome.flops_ratio,
        "held_out_flops_ratio_end_to_end": outcome.flops_ratio_end_to_end,
        "held_out_regressions": float(outcome.regressions),
        "held_out_gained": float(outcome.gained),
        "held_out_flips": float(held_out.flips),
        "held_out_logprob_change": outcome.logprob_change,
    }
    for name in ("p_value", "mcnemar_p", "divergence"):
        value = getattr(held_out, name)
        if value is not None:
            metrics[f"held_out_{name}"] = value
    metrics |= _memory_metrics("held_out_", outcome.per_answer)
    metrics |= _with_interval("held_out_accuracy", held_out.accuracy)
    metrics |= _with_interval("held_out_difference", held_out.difference)
    return _finite(metrics)


def _with_interval(name: str, measured: Measured) -> dict[str, float]:
    values = {name: measured.value}
    if measured.interval is not None:
        values |= {f"{name}_low": measured.interval.low, f"{name}_high": measured.interval.high}
    return values


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without infinite and undefined values, at which charts stop."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _readable(value: float | str | int) -> str:
    """With six digits, which suffice to read and to plot; best.json and the records have all digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _note(summary: RunSummary, links: Sequence[str]) -> str:
    """The run's description, as Markdown."""
    # The page shows the first lines, and the rest after a click.
    lines = ["Open " + ", ".join(links) + "."] if links else []
    if summary.best is None or summary.best_held_out is None:
        lines.append("No configuration within the budget is measured yet.")
    else:
        outcome = summary.best_held_out.outcome
        lines.append(
            f"Best within the budget: trial {summary.best.number}, "
            f"{_percent(summary.best_held_out.accuracy)} at {100 * outcome.flops_ratio:.1f} % of the prefill "
            f"FLOPs ({100 * outcome.flops_ratio_end_to_end:.1f} % end to end), "
            f"{outcome.regressions} regressions. Within {summary.max_drop or 'any drop'} of the unpruned "
            f"model: {summary.verdict.replace('_', ' ')}."
        )
    if summary.guessing is not None and not summary.guessing.shown_better:
        lines.append(weak_baseline(summary.guessing))
    about = f"Study `{summary.study}`, version `{summary.study_hash[:8]}`, budget {summary.budget:g}."
    unpruned = summary.baseline.get("held_out")
    if unpruned is not None and math.isfinite(unpruned.value):
        about += f" Unpruned accuracy on held-out videos: {_percent(unpruned)}."
    lines.append(about)
    if summary.best is not None:
        knobs = summary.best.configuration.parameters
        rows = "".join(f"\n| {name} | {_readable(value)} |" for name, value in knobs)
        lines.append("| knob | value |\n| --- | --- |" + rows)
    return "\n\n".join(lines)


def _percent(measured: Measured) -> str:
    text = f"{100 * measured.value:.1f} %"
    if measured.interval is not None:
        text += f" ({100 * measured.interval.low:.1f} to {100 * measured.interval.high:.1f})"
    return text


def _tables(summary: RunSummary) -> dict[str, str]:
    """Tables by file name; the table by tag only if questions have tags."""
    tables = {REGRESSIONS: _regressions(summary.regressions)}
    if summary.best_held_out is not None and summary.best_held_out.by_tag:
        tables[BY_TAG] = _by_tag(summary.best_held_out.by_tag)
    return tables


def _regressions(rows: Sequence[RegressionRow]) -> str:
    tags = sorted({tag for row in rows for tag in row.tags})
    columns = [field.name for field in fields(RegressionRow) if field.name != "tags"]
    data = [
        [_cell(getattr(row, name)) for name in columns] + [row.tags.get(tag, "") for tag in tags]
        for row in rows
    ]
    return _table([*columns, *(f"tag {tag}" for tag in tags)], data)


def _by_tag(rows: Sequence[TagRow]) -> str:
    columns = [field.name for field in fields(TagRow)]
    data = []
    for row in rows:
        change = row.difference
        ends = [None, None] if change.interval is None else [change.interval.low, change.interval.high]
        values = [change.value if name == "difference" else getattr(row, name) for name in columns]
        data.append([_cell(value) for value in (*values, *ends)])
    return _table([*columns, "difference_low", "difference_high"], data)


def _table(columns: Sequence[str], data: Sequence[Sequence[Any]]) -> str:
    """In the form that the interface shows as a table: pandas' "split"."""
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return " | ".join(value)
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) else value


def _recorded(tracking_uri: str, run: Run) -> Recorded:
    remote = tracking_uri.startswith(("http:", "https:"))
    server = without_user(tracking_uri).rstrip("/") if remote else LOCAL_INTERFACE
    page = f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?{_WORKFLOW}"
    return Recorded(run.info.run_id, page)


def _find_parent(client: MlflowClient, experiment: str, study_hash: str) -> Run | None:
    wanted = f"tags.`{_KIND}` = 'study' AND tags.`{_STUDY}` = '{study_hash}'"
    found = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def _children(client: MlflowClient, experiment: str, parent_id: str) -> dict[int, Run]:
    """Child runs by trial number."""
    children: dict[int, Run] = {}
    token: str | None = None
    while True:
        wanted = f"tags.`{_PARENT}` = '{parent_id}'"
        page = client.search_runs([experiment], wanted, max_results=_PAGE, page_token=token)
        children |= {int(run.data.tags[_TRIAL]): run for run in page if _TRIAL in run.data.tags}
        token = page.token
        if not token:
            return children


def _client(tracking_uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    # A client of its own leaves the process-wide tracking address of the caller unchanged.
    return MlflowClient(tracking_uri=tracking_uri)


@contextmanager
def _quiet_mlflow() -> Iterator[None]:
    """Silences MLflow, which reports each migration of a new database and each run that ends."""
    # These are read when MLflow is imported, which also sets the levels of its loggers.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # By default MLflow waits four minutes for a server that does not answer; here a quarter of a minute.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    import mlflow  # noqa: F401

    # With a server it prints two lines for every run that ends.
    printing = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
    printed = os.environ.get(printing)
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow")]
    before = [logger.level for logger in loggers]
    try:
        os.environ[printing] = "true"
        for one in loggers:
            # What fails is raised, too, and told in a line; MLflow logs it with a traceback.
            one.setLevel(logging.CRITICAL)
        yield
    finally:
        if printed is None:
            del os.environ[printing]
        else:
            os.environ[printing] = printed
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def _now() -> int:
    return round(1000 * time.time())
