"""MLflow as a mirror of our records: an experiment per study, a run per search, a child run per trial.

The only module that imports MLflow. Everything is looked up by our own tags before it is created, and
compared by digest before it is written. So mirroring again changes nothing, and mirroring after a crash
completes what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from sqlalchemy import make_url

from tuner.errors import without_user
from tuner.export.mlflow_content import (
    KIND,
    OWNER,
    STUDY,
    TRIAL,
    Content,
    identity,
    knob_params,
    pruned_content,
    search_content,
    tables,
    trial_content,
)
from tuner.export.mlflow_interface import WORKFLOW, links_of, search_name, trial_name, view_id, view_state
from tuner.records.database import sqlite_url
from tuner.reporting.values import Recorded, RunSummary

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

# A bare `mlflow ui` in the same folder looks here.
DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
# The default address of `mlflow ui`.
LOCAL_INTERFACE = "http://127.0.0.1:5000"

# Of a search: it goes on, was interrupted, or came to its end. MLflow's own words.
Status = Literal["RUNNING", "KILLED", "FINISHED"]

_DIGEST, _FILES = "adatp.digest", "adatp.files"
_TABLES = "mlflow.loggedArtifacts"  # the JSON files that the interface shows as tables
_PARENT = "mlflow.parentRunId"
# The kind of experiment, by which the interface sorts; without the tag it guesses.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
# Prefix of the tags in which the interface keeps the views of its menu "Views".
_VIEW = "mlflow.sharedViewState."
_PAGE = 1000
# Limits of a request to a tracking server.
_MOST_METRICS, _MOST_PARAMS, _MOST_TAGS = 1000, 100, 100


class MlflowMirror:
    """Writes to an MLflow server or, by default, to mlflow.db in the working directory."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        # Absolute: MLflow keeps one connection per address for the life of the process, whatever its folder.
        # With the driver's name: at `sqlite:///` MLflow makes the folder of a quoted path, quotes included.
        default = sqlite_url(Path(DATABASE).resolve()).replace("sqlite:", "sqlite+pysqlite:", 1)
        self.tracking_uri = tracking_uri or default

    def record(
        self, summary: RunSummary, files: Sequence[Path] = (), *, status: Status | None = "FINISHED"
    ) -> Recorded:
        """Makes MLflow hold this summary; files and tables are artifacts of the search's run.

        status: None where nobody runs the search and the records alone tell whether it came to its end. Other
        searches of the study that MLflow takes for running are not any more: their program was killed.
        """
        with _quiet_mlflow():
            return _write(_SearchRun.of(self.tracking_uri, summary), summary, files, status)

    def record_files(
        self, study: str, study_hash: str, budget: float, files: Sequence[Path], *, owner: str = ""
    ) -> Recorded:
        """Adds finished files, or replaces those of the same name, as artifacts of the owner's latest search
        with this budget.

        Creates the experiment and a run for the budget if they are missing; the same files again change
        nothing. A JSON file of columns and data, as pandas' orient="split" has it, is shown as a table.
        """
        with _quiet_mlflow():
            name = f"{study} {study_hash[:8]}: budget {budget:g}"
            tags = {"budget": f"{budget:g}"}
            run = _SearchRun(self.tracking_uri, study, study_hash, tags, name, owner=owner)
            contents = _read(files)
            run.log_files(contents, [name for name, content in contents.items() if _is_table(name, content)])
            if run.created:
                run.set_status("FINISHED")
            return run.recorded

    def find(self, summary: RunSummary) -> Recorded | None:
        """Where a search was mirrored before; None if it was not."""
        database = _local_database(self.tracking_uri)
        if database is not None and not database.exists():
            return None  # looking would create it
        with _quiet_mlflow():
            client = _client(self.tracking_uri)
            experiment = client.get_experiment_by_name(experiment_name(summary.study))
            if experiment is None:
                return None
            place = experiment.experiment_id
            run = _find_run(client, place, summary.study_hash, identity(summary), summary.owner)
            return None if run is None else _recorded(self.tracking_uri, run)

    def reach(self) -> None:
        """Asks the server or database for an answer. Errors: MLflow's own where there is none."""
        with _quiet_mlflow():
            _client(self.tracking_uri).search_experiments(max_results=1)


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


class _SearchRun:
    """The run that holds one search of a version of a study, created where it is missing."""

    # Where artifacts lay before the project was moved.
    moved_from: Path | None = None

    def __init__(
        self,
        tracking_uri: str,
        study: str,
        study_hash: str,
        tags: Mapping[str, str],
        name: str,
        seconds: float = 0.0,
        owner: str = "",
    ) -> None:
        """tags: which search it is, of the owner's. seconds: how long it took so far, for the run's
        duration.
        """
        self.uri, self.study, self.study_hash = tracking_uri, study, study_hash
        self.tags, self.name, self.seconds = tags, name, seconds
        self.owner = owner
        self.owned = {OWNER: owner} if owner else {}
        self.client = _client(tracking_uri)
        self.written_runs = self.written_files = 0
        self.experiment = self._find_experiment()
        run = _find_run(self.client, self.experiment, study_hash, tags, owner)
        self.created = run is None
        self.run = run or self._create()
        known: dict[str, str] = json.loads(self.run.data.tags.get(_FILES, "{}"))
        there = {artifact.path for artifact in self.client.list_artifacts(self.id)}
        # Digests of its artifacts, by name. Those that were deleted, or lie where the folder was before it
        # was moved, are written again.
        self.files = {} if self.moved_from else {name: known[name] for name in known if name in there}

    @classmethod
    def of(cls, tracking_uri: str, summary: RunSummary) -> _SearchRun:
        tags, name = identity(summary), search_name(summary)
        study, version = summary.study, summary.study_hash
        return cls(tracking_uri, study, version, tags, name, summary.seconds, summary.owner)

    def _create(self) -> Run:
        identity = {KIND: "study", STUDY: self.study_hash, **self.owned, **self.tags}
        start = _now() - round(1000 * self.seconds)
        return self.client.create_run(self.experiment, start, identity, self.name)

    def begin_anew(self) -> None:
        """Another run from here on. The one until now stays as it is, for parameters cannot be changed, but
        is not found again.
        """
        before, chosen = self.id, self.run.data.tags.get("best_trial", "none")
        self.set_status("FINISHED")
        self.client.update_run(before, name=f"{self.name}, before: trial {chosen}")
        self.run, self.files = self._create(), {}
        self.client.set_tag(before, "superseded_by", self.id)
        self.client.set_tag(before, KIND, "superseded")

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
            known = [table["path"] for table in json.loads(self.run.data.tags.get(_TABLES, "[]"))]
            shown = [{"path": name, "type": "table"} for name in dict.fromkeys((*known, *tables))]
            self.client.set_tag(self.id, _TABLES, json.dumps(shown))
        self.files |= digests
        self.written_files += len(changed)
        self.client.set_tag(self.id, _FILES, json.dumps(self.files, sort_keys=True))

    def save_view(self) -> None:
        """Adds a view of the trials, with suitable columns and charts, to the interface's menu "Views"."""
        key = _VIEW + view_id(self.study_hash)
        view = json.dumps(
            {
                "name": f"{self.study} {self.study_hash[:8]}: trials",
                "createdAt": self.run.info.start_time,  # the same each time
                "state": json.dumps(view_state(self.study_hash)),
            }
        )
        if self.client.get_experiment(self.experiment).tags.get(key) != view:
            self.client.set_experiment_tag(self.experiment, key, view)

    def update(self, run: Run, content: Content) -> None:
        """Writes what one of the study's runs lacks."""
        content = replace(content, tags={**content.tags, **self.owned})
        self.written_runs += _update(self.client, run, content)

    def set_status(self, status: Status) -> None:
        if self.run.info.status == status:
            return
        if status == "RUNNING":
            self.client.update_run(self.id, status=status)
        else:
            self.client.set_terminated(self.id, status)

    def end_others(self) -> None:
        """An owner's study is run by one program at a time: other runs that are still open were left by one
        that was killed.
        """
        wanted = f"tags.`{KIND}` = 'study' AND attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment], wanted, max_results=_PAGE):
            if run.info.run_id != self.id and _is_of(run, self.owner):
                self.client.set_terminated(run.info.run_id, "KILLED")


def _write(search: _SearchRun, summary: RunSummary, files: Sequence[Path], status: Status | None) -> Recorded:
    if status is None:
        found = search.run.info.status
        status = found if found != "RUNNING" else "FINISHED" if summary.ended else "KILLED"
    ended = status == "FINISHED"
    if ended and summary.best is not None:
        chosen, there = knob_params(summary.best.configuration), search.run.data.params
        if any(there.get(name, value) != value for name, value in chosen.items()):
            search.begin_anew()
    _write_trials(search, summary)
    found_tables = {name: table.encode() for name, table in tables(summary).items()}
    search.log_files(_read(files) | found_tables, found_tables)
    search.save_view()
    if search.run.info.run_name != search.name:  # the margin is another one now, or an older version's name
        search.client.update_run(search.id, name=search.name)
    links = links_of(search.experiment, search.id, summary, search.files)
    search.update(search.run, search_content(summary, links, ended=ended))
    search.set_status(status)
    search.end_others()
    return search.recorded


def _write_trials(search: _SearchRun, summary: RunSummary) -> None:
    """Those that the search proposed: a trial has one parent, though other searches may count it, too."""
    known = _trials(search.client, search.experiment, summary.study_hash, search.owner)
    for trial in (*summary.trials, *summary.above, *summary.outside):
        if summary.proposed(trial.number):
            content = trial_content(summary, trial)
            _write_trial(search, trial.number, trial_name(summary, trial), content, known, "FINISHED")
    for pruned in summary.pruned:
        if summary.proposed(pruned.number):
            name = f"trial {pruned.number:03d} (pruned): at {pruned.binding_ratio:.3f}"
            _write_trial(search, pruned.number, name, pruned_content(pruned), known, "KILLED")


def _write_trial(
    search: _SearchRun, number: int, name: str, content: Content, known: Mapping[int, Run], status: Status
) -> None:
    """Takes three requests for a new trial, none for a trial that is there already."""
    content = replace(content, tags={**content.tags, _PARENT: search.id})
    run = known.get(number)
    if run is None:
        # With its owner at once: another owner's mirror would take it for one from before there were owners.
        tags = {KIND: "trial", STUDY: search.study_hash, TRIAL: str(number), _PARENT: search.id}
        tags |= search.owned
        # Its duration would be that of answers at different times and loads: none is told.
        run = search.client.create_run(search.experiment, tags=tags, run_name=name)
    elif run.info.run_name != name:  # another trial is the best one now
        search.client.update_run(run.info.run_id, name=name)
    search.update(run, content)
    # A pruned trial may have been completed since.
    if run.info.status != status:
        search.client.set_terminated(run.info.run_id, status)


def _update(client: MlflowClient, run: Run, content: Content) -> bool:
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


def _recorded(tracking_uri: str, run: Run) -> Recorded:
    remote = tracking_uri.startswith(("http:", "https:"))
    server = without_user(tracking_uri).rstrip("/") if remote else LOCAL_INTERFACE
    page = f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?{WORKFLOW}"
    return Recorded(run.info.run_id, page, served=remote)


def _is_of(run: Run, owner: str) -> bool:
    """Whether a run is this owner's, or was made before there were owners."""
    return bool(run.data.tags.get(OWNER, owner) == owner)


def _find_run(
    client: MlflowClient, experiment: str, study_hash: str, tags: Mapping[str, str], owner: str
) -> Run | None:
    """The run whose tags name this search; or else one that leaves some of them open: of files alone, which
    only have a budget, or of an older version.
    """
    wanted = f"tags.`{KIND}` = 'study' AND tags.`{STUDY}` = '{study_hash}'"
    order = ["attributes.start_time DESC"]
    found = client.search_runs([experiment], wanted, max_results=_PAGE, order_by=order)
    fitting = [
        run
        for run in found
        if _is_of(run, owner) and all(run.data.tags.get(key, tags[key]) == tags[key] for key in tags)
    ]
    return max(fitting, key=lambda run: len(tags.keys() & run.data.tags.keys()), default=None)


def _trials(client: MlflowClient, experiment: str, study_hash: str, owner: str) -> dict[int, Run]:
    """The runs of all trials of this version of the owner's study, by number."""
    trials: dict[int, Run] = {}
    token: str | None = None
    wanted = f"tags.`{KIND}` = 'trial' AND tags.`{STUDY}` = '{study_hash}'"
    while True:
        page = client.search_runs([experiment], wanted, max_results=_PAGE, page_token=token)
        trials |= {
            int(run.data.tags[TRIAL]): run for run in page if TRIAL in run.data.tags and _is_of(run, owner)
        }
        token = page.token
        if not token:
            return trials


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
        for item in loggers:
            # What fails is raised, too, and told in a line; MLflow logs it with a traceback.
            item.setLevel(logging.CRITICAL)
        yield
    finally:
        if printed is None:
            del os.environ[printing]
        else:
            os.environ[printing] = printed
        for item, level in zip(loggers, before, strict=True):
            item.setLevel(level)


def _now() -> int:
    return round(1000 * time.time())
