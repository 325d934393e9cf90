"""MLflow holds what the summary says, once, whatever happened before; against the real MLflow on SQLite."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import replace

import pytest

from dashboards.pareto.figure import pareto_picture
from dashboards.picture.picture import write
from tests.summaries import make_held_out, make_regressions, make_summary, make_trial
from tuner.records.measurements import CacheUse
from tuner.reporting.values import PrunedTrial
from tuner.statistics.values import Guessing, Measured

mlflow_mirror = pytest.importorskip("tuner.export.mlflow_mirror")
MlflowMirror = mlflow_mirror.MlflowMirror

# Name of the run of a search.
STUDY = "demo 5f2c9d7b: budget 0.3"
KNOBS = {"tau_s", "tau_t", "alpha_boost", "gamma_cap", "p"}


@pytest.fixture
def folder(tmp_path, monkeypatch, empty_database):
    """A working directory with an empty mlflow.db."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runs(folder):
    """All runs in the folder's database."""
    from mlflow import MlflowClient

    def read(study="demo"):
        client = MlflowClient(MlflowMirror().tracking_uri)
        experiment = client.get_experiment_by_name(f"adatp/{study}")
        found = client.search_runs([experiment.experiment_id], max_results=1000)
        return {_short(run.info.run_name): run for run in found}

    return read


def _short(name):
    """A trial's run is known by its number: the rest of its name tells what it came to."""
    return name[: len("trial 000")] if name.startswith("trial ") else name


def _contents(folder):
    """Everything the mirror wrote, with times, so that a second writing shows."""
    import sqlite3

    tables = ("runs", "params", "metrics", "latest_metrics", "tags", "experiments", "experiment_tags")
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = {table: sorted(map(repr, database.execute(f"SELECT * FROM {table}"))) for table in tables}
    files = {
        file: (file.read_bytes(), file.stat().st_mtime_ns)
        for file in (folder / "mlartifacts").rglob("*")
        if file.is_file()
    }
    return rows, files


def test_a_run_per_trial_under_one_run_per_study(runs):
    summary = make_summary(5)
    recorded = MlflowMirror().record(summary)
    found = runs()
    assert set(found) == {STUDY, *(f"trial {number:03d}" for number in range(5))}
    parent = found.pop(STUDY)
    assert recorded.run == parent.info.run_id
    for trial, run in zip(
        summary.trials, sorted(found.values(), key=lambda item: item.info.run_name), strict=True
    ):
        assert run.data.tags["mlflow.parentRunId"] == recorded.run
        assert run.info.status == "FINISHED"
        assert run.data.params.keys() >= KNOBS
        assert float(run.data.params["tau_s"]) == pytest.approx(trial.configuration.get("tau_s"), rel=1e-5)
        for name in (
            "accuracy",
            "flops_ratio",
            "flops_ratio_end_to_end",
            "regressions",
            "gained",
            "logprob_change",
        ):
            assert run.data.metrics[name] == getattr(trial.outcome, name)


def test_the_study_run_tells_the_headline_and_marks_the_best_trial(runs):
    summary = make_summary(8)
    MlflowMirror().record(summary)
    found = runs()
    parent, best = found[STUDY], found[f"trial {summary.best.number:03d}"]
    assert parent.data.metrics["held_out_accuracy"] == summary.best_held_out.accuracy.value
    assert parent.data.metrics["baseline_held_out_accuracy"] == 0.94
    assert parent.data.tags["budget"] == "0.3"
    assert "89.0 % (86.0 to 91.5)" in parent.data.tags["mlflow.note.content"]
    assert best.data.tags["role"] == "best"
    assert best.data.metrics["held_out_accuracy_low"] == pytest.approx(0.86)
    assert found["trial 000"].data.tags["role"] == "defaults"


def test_what_answers_and_a_server_cost_stand_beside_flops(runs):
    summary = make_summary(4)
    MlflowMirror().record(summary)
    found = runs()
    study, trial = found[STUDY].data.metrics, found["trial 000"].data.metrics
    assert (trial["peak_bytes_mean"], trial["peak_bytes_max"]) == (5.25 * 2**20, 9 * 2**20)
    # Answers of different moments are not set side by side; what was timed together is.
    assert [item for item in (*study, *trial) if "seconds_per_answer" in item] == []
    assert study["seconds_per_question_best"] == pytest.approx(0.06)
    assert study["held_out_peak_bytes_max"] == 9 * 2**20
    assert study["shared_answers"] == 1200
    assert study["break_even_questions_flops"] == pytest.approx(12.5)
    assert study["break_even_questions_seconds"] == pytest.approx(10)
    assert (study["profiled_flops_best"], study["planned_flops_best"]) == (800, 1000)
    assert study["stored_bytes_per_video_best"] == 2**20


def test_answers_of_an_older_version_have_no_memory_to_show(runs):
    summary = make_summary(1)
    (trial,) = summary.trials
    old = replace(trial, outcome=replace(trial.outcome, peak_bytes_mean=None, peak_bytes_max=None))
    MlflowMirror().record(replace(summary, trials=(old,), serving=None, baseline_cost=None))
    assert "peak_bytes_mean" not in runs()["trial 000"].data.metrics


def test_writing_again_changes_nothing(folder):
    summary = make_summary(6)
    files = tuple(write(pareto_picture(summary), folder / "figures"))
    first = MlflowMirror().record(summary, files)
    before = _contents(folder)
    assert MlflowMirror().record(summary, files) == first
    assert _contents(folder) == before


def test_artifacts_lie_in_the_working_directory(folder):
    summary = make_summary(3)
    recorded = MlflowMirror().record(summary, tuple(write(pareto_picture(summary), folder / "figures")))
    written = {file.name for file in (folder / "mlartifacts").rglob("*") if file.is_file()}
    assert written == {"pareto.html", "pareto.png", "pareto.csv", "regressions.json", "by_tag.json"}
    assert not (folder / "mlruns").exists()
    assert recorded.page.endswith(f"/runs/{recorded.run}?workflowType=machine_learning")


def test_names_tell_what_a_trial_came_to_and_follow_the_best_one(folder):
    from mlflow import MlflowClient

    def names():
        client = MlflowClient(MlflowMirror().tracking_uri)
        experiment = client.get_experiment_by_name("adatp/demo")
        found = client.search_runs([experiment.experiment_id], order_by=["attributes.run_name ASC"])
        return [run.info.run_name for run in found]

    first, second, third = (make_trial(number, 0.281, 0.5 + number / 8) for number in range(3))
    pruned = PrunedTrial(3, third.configuration, 0.29, by=1, videos=15)
    summary = replace(make_summary(0), trials=(first, second), best=second, defaults=first, pruned=(pruned,))
    MlflowMirror().record(summary)
    assert names() == [
        STUDY,
        "trial 000 (defaults): 50.0 % at 0.281",
        "trial 001 (best): 62.5 % at 0.281",
        "trial 003 (pruned): at 0.290",
    ]
    MlflowMirror().record(replace(summary, trials=(first, second, third), best=third))
    # The run of the search, and the one that holds its choice until now.
    assert names()[:2] == [STUDY, f"{STUDY}, before: trial 1"]
    assert names()[3:5] == ["trial 001: 62.5 % at 0.281", "trial 002 (best): 75.0 % at 0.281"]


def test_a_new_trial_takes_three_requests_and_a_known_one_none(folder, monkeypatch):
    from mlflow import MlflowClient

    calls = []

    def counted(name):
        original = getattr(MlflowClient, name)

        def call(self, *values, **options):
            calls.append(name)
            return original(self, *values, **options)

        return call

    writing = (
        "create_run",
        "log_batch",
        "set_tag",
        "set_terminated",
        "update_run",
        "log_param",
        "log_metric",
    )
    MlflowMirror().record(make_summary(2))
    for name in writing:
        monkeypatch.setattr(MlflowClient, name, counted(name))
    MlflowMirror().record(make_summary(2))
    assert calls == []
    MlflowMirror().record(make_summary(2, study="other"))
    one = len(calls)
    calls.clear()
    MlflowMirror().record(make_summary(4, study="another"))
    assert len(calls) - one == 2 * 3


def test_the_interface_gets_a_view_of_the_trials(folder):
    from mlflow import MlflowClient

    MlflowMirror().record(make_summary(2))
    MlflowMirror().record(make_summary(2, study_hash="aa" * 16))
    tags = MlflowClient(MlflowMirror().tracking_uri).get_experiment_by_name("adatp/demo").tags
    views = {key: json.loads(tags[key]) for key in tags if key.startswith("mlflow.sharedViewState.")}
    assert {view["name"] for view in views.values()} == {"demo 5f2c9d7b: trials", "demo aaaaaaaa: trials"}
    state = json.loads(views["mlflow.sharedViewState.adatp-5f2c9d7b"]["state"])
    assert {f"params.`{name}`" for name in KNOBS} < set(state["selectedColumns"])
    parallel, scatter = state["compareRunCharts"]
    assert set(parallel["selectedParams"]) == KNOBS
    assert parallel["selectedMetrics"] == ["flops_ratio", "accuracy"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("flops_ratio", "accuracy")


def test_the_description_opens_with_links_to_what_there_is(folder, runs):
    report = folder / "report.html"
    report.write_text("<p>all is well</p>")
    recorded = MlflowMirror().record(make_summary(2), [report])
    first, *_ = runs()[STUDY].data.tags["mlflow.note.content"].splitlines()
    trials = "#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=adatp-5f2c9d7b"
    assert f"[trials in a table]({trials})" in first
    assert f"({trials}&compareRunsMode=CHART)" in first
    artifacts = f"#/experiments/1/runs/{recorded.run}/artifacts"
    assert f"[report]({artifacts}/report.html?workflowType=machine_learning)" in first
    assert f"{artifacts}/regressions.json?" in first
    assert "pareto" not in first


def test_files_of_other_commands_join_the_studys_run(folder, runs):
    def written():
        return {file.name for file in (folder / "mlartifacts").rglob("*") if file.is_file()}

    figure = folder / "sensitivity.html"
    figure.write_text("one")
    summary = make_summary(2)
    first = MlflowMirror().record_files("demo", summary.study_hash, 0.3, [figure])
    assert set(runs()) == {STUDY}
    assert runs()[STUDY].info.status == "FINISHED"
    assert MlflowMirror().record(summary) == first
    assert len(runs()) == 3
    before = _contents(folder)
    assert MlflowMirror().record_files("demo", summary.study_hash, 0.3, [figure]) == first
    assert MlflowMirror().record(summary) == first
    assert _contents(folder) == before
    figure.write_text("two")
    MlflowMirror().record_files("demo", summary.study_hash, 0.3, [figure])
    assert written() == {"sensitivity.html", "regressions.json", "by_tag.json"}
    table, other = folder / "comparison.json", folder / "sensitivity-0.3.json"
    table.write_text('{"columns": ["method"], "data": [["FastV"]]}')
    other.write_text('{"study": "demo"}')
    MlflowMirror().record_files("demo", summary.study_hash, 0.3, [table, other])
    shown = json.loads(runs()[STUDY].data.tags["mlflow.loggedArtifacts"])
    assert [frame["path"] for frame in shown] == ["regressions.json", "by_tag.json", "comparison.json"]
    (kept,) = (folder / "mlartifacts").rglob("sensitivity.html")
    assert kept.read_text() == "two"


def test_more_trials_add_to_the_run_of_the_search_and_another_budget_has_its_own(runs):
    longer = make_summary(9, own=frozenset(range(9)))
    fewer = replace(longer, trials=longer.trials[:4], best=None, best_held_out=None)
    first = MlflowMirror().record(fewer)
    assert MlflowMirror().record(longer).run == first.run
    other = replace(
        make_summary(11, budget=0.25), trials=(*longer.trials, make_trial(9)), own=frozenset({9, 10})
    )
    assert MlflowMirror().record(other).run != first.run
    found = runs()
    assert len(found) == 1 + 9 + 1 + 1
    assert found[STUDY].data.tags["budget"] == "0.3"
    assert found[STUDY].data.metrics["trials"] == 9
    second = found["demo 5f2c9d7b: budget 0.25"]
    assert second.data.metrics["trials"] == 10
    # A trial lies below the search that proposed it.
    parents = {name: run.data.tags["mlflow.parentRunId"] for name, run in found.items() if "trial" in name}
    assert [name for name, parent in parents.items() if parent == second.info.run_id] == ["trial 009"]
    assert MlflowMirror().record(longer).runs == 0


def test_the_chosen_knobs_are_parameters_of_the_run_once_the_search_ended(runs):
    summary = make_summary(8)
    first = MlflowMirror().record(summary, status="KILLED")
    assert not KNOBS & runs()[STUDY].data.params.keys()
    assert MlflowMirror().record(summary) == first
    params = runs()[STUDY].data.params
    chosen = summary.best.configuration
    assert {name: float(params[name]) for name in KNOBS} == pytest.approx(
        {name: chosen.get(name) for name in KNOBS}, rel=1e-5
    )
    assert (params["budget"], params["seed"]) == ("0.3", "0")


def test_owners_of_the_same_study_have_runs_of_their_own(folder):
    """On a shared database: the same study, search and numbers of trials, run at the same time."""
    from mlflow import MlflowClient

    anna, ben = make_summary(4, owner="anna"), make_summary(6, owner="ben")
    mirror = MlflowMirror()
    first = mirror.record(anna, status="RUNNING")
    second = mirror.record(ben)
    assert mirror.find(anna).run == first.run != second.run == mirror.find(ben).run
    client = MlflowClient(mirror.tracking_uri)
    assert client.get_run(first.run).info.status == "RUNNING"
    experiment = client.get_experiment_by_name("adatp/demo").experiment_id
    for recorded, trials in ((first, 4), (second, 6)):
        children = f"tags.`mlflow.parentRunId` = '{recorded.run}'"
        assert len(client.search_runs([experiment], children)) == trials
    report = folder / "comparison.json"
    report.write_text('{"columns": [], "data": []}')
    written = mirror.record_files("demo", anna.study_hash, 0.3, [report], owner="anna")
    assert written.run == first.run


def test_a_trial_that_is_being_written_is_not_taken_by_another_owner(folder, monkeypatch):
    from mlflow import MlflowClient

    anna, ben = make_summary(4, owner="anna"), make_summary(4, owner="ben")
    mirror = MlflowMirror()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as just_created:
        just_created.setattr(mlflow_mirror, "_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mirror.record(anna)
    mirror.record(ben)
    client = MlflowClient(mirror.tracking_uri)
    experiment = client.get_experiment_by_name("adatp/demo").experiment_id
    trials = client.search_runs([experiment], "tags.`adatp.kind` = 'trial'")
    assert sorted(run.data.tags["adatp.owner"] for run in trials) == ["anna", *["ben"] * 4]


def test_another_choice_of_the_same_search_is_a_run_of_its_own(folder, runs):
    from mlflow import MlflowClient

    summary = make_summary(8)
    first = MlflowMirror().record(summary)
    other = next(trial for trial in summary.trials if trial.within_budget and trial != summary.best)
    later = MlflowMirror().record(replace(summary, best=other))
    assert later.run != first.run
    assert MlflowMirror().find(summary) == later
    client = MlflowClient(MlflowMirror().tracking_uri)
    before, now = client.get_run(first.run).data, client.get_run(later.run).data
    assert before.tags["superseded_by"] == later.run
    assert (before.params["p"], now.params["p"]) == tuple(
        f"{item.configuration.get('p'):.6g}" for item in (summary.best, other)
    )
    trials = [run for name, run in runs().items() if name.startswith("trial")]
    assert len(trials) == 8
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {later.run}


def test_a_mirror_of_the_version_before_is_carried_on(folder, runs):
    """It had one run for all searches of a study, under another name, with tags for the latest one."""
    from mlflow import MlflowClient

    client = MlflowClient(MlflowMirror().tracking_uri)
    experiment = client.create_experiment("adatp/demo")
    summary = make_summary(3)
    tags = {"adatp.kind": "study", "adatp.study_hash": summary.study_hash}
    latest = {"budget": "0.3", "seed": "0", "goal": "budget", "sampler": "tpe"}
    old = client.create_run(experiment, tags=tags | latest, run_name="demo 5f2c9d7b").info.run_id
    client.log_param(old, "study", "demo")
    for number in range(3):
        below = {"adatp.trial": str(number), "mlflow.parentRunId": old}
        child = client.create_run(experiment, tags=tags | {"adatp.kind": "trial"} | below).info.run_id
        client.set_terminated(child)
    assert MlflowMirror().find(summary).run == old
    other = make_summary(3, budget=0.2, own=frozenset({2}))
    second = MlflowMirror().record(other)
    assert second.run != old
    assert MlflowMirror().record(replace(summary, own=frozenset({0, 1}))).run == old
    found = runs()
    assert set(found) == {STUDY, "demo 5f2c9d7b: budget 0.2", *(f"trial {number:03d}" for number in range(3))}
    assert found["trial 002"].data.tags["mlflow.parentRunId"] == second.run
    assert found["trial 001"].data.tags["mlflow.parentRunId"] == old


def test_a_regression_table_is_replaced_never_appended_to(folder, runs):
    from mlflow import MlflowClient

    recorded = MlflowMirror().record(make_summary(2, regressions=make_regressions(5)))
    MlflowMirror().record(make_summary(2, regressions=make_regressions(3)))
    client = MlflowClient(MlflowMirror().tracking_uri)
    experiment = client.get_run(recorded.run).info.experiment_id
    table = client.load_table(experiment, "regressions.json", [recorded.run])
    assert list(table["question"]) == ["q0", "q1", "q2"]
    assert table["options"][0] == "red | green | blue | white"
    assert table["tag type"][0] == "order"


def test_the_verdict_and_what_it_rests_on_are_mirrored(runs):
    MlflowMirror().record(make_summary(4))
    study = runs()[STUDY].data
    assert (study.tags["verdict"], study.tags["max_drop"]) == ("shown", "0.08")
    assert (study.tags["goal"], study.tags["sampler"]) == ("budget", "tpe")
    wanted = {
        "margin": 0.08,
        "tested_bound": -0.068,
        "tested_candidates": 1,
        "provable_drop": 0.0285,
        "noise_flips": 2,
        "noise_logprob_max": 1.8e-5,
        "held_out_flips": 40,
        "held_out_p_value": 0.012,
        "held_out_mcnemar_p": 0.0004,
        "held_out_divergence": 0.031,
    }
    assert {name: study.metrics[name] for name in wanted} == pytest.approx(wanted)
    assert "Within 0.08 of the unpruned model: shown." in study.tags["mlflow.note.content"]


def test_the_hit_rates_of_the_caches_are_mirrored_where_something_was_asked_for(runs):
    MlflowMirror().record(make_summary(2, cache_use=CacheUse(features_read=3, features_computed=1)))
    metrics = runs()[STUDY].data.metrics
    assert metrics["study_feature_hit_rate"] == 0.75
    assert "study_prefix_hit_rate" not in metrics


def test_without_a_verdict_there_is_nothing_to_chart(runs):
    held_out = replace(make_held_out(make_trial().configuration), mcnemar_p=None, divergence=None, by_tag=())
    changes = {"margin": None, "tested": (), "noise": None, "provable_drop": None, "verdict": "untested"}
    MlflowMirror().record(make_summary(2, best_held_out=held_out, **changes))
    study = runs()[STUDY].data
    assert study.tags["verdict"] == "untested"
    assert not {"margin", "tested_bound", "noise_flips", "held_out_mcnemar_p"} & study.metrics.keys()


def test_a_trial_above_the_budget_is_a_run_that_says_so(runs):
    MlflowMirror().record(make_summary(2, above=(make_trial(7, ratio=0.6),)))
    found = runs()
    assert found["trial 007"].data.tags["role"] == "above"
    assert found[STUDY].data.metrics["trials"] == 2
    assert found[STUDY].data.metrics["trials_above"] == 1


def test_a_stopped_trial_is_a_killed_run_without_an_accuracy_until_it_is_finished(runs):
    whole = make_summary(3)
    last = whole.trials[2]
    pruned = PrunedTrial(last.number, last.configuration, 0.29, by=1, videos=15)
    MlflowMirror().record(replace(whole, trials=whole.trials[:2], pruned=(pruned,)))
    run = runs()["trial 002"]
    assert run.info.status == "KILLED"
    assert run.data.tags["role"] == "stopped"
    assert run.data.tags["stopped_by"] == "trial 001"
    assert run.data.metrics == {"flops_ratio": 0.29, "stopped_videos": 15.0}
    assert run.data.params.keys() >= KNOBS
    MlflowMirror().record(whole)
    run = runs()["trial 002"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == last.outcome.accuracy
    assert run.data.tags["role"] != "stopped"


def test_what_pruning_changed_by_tag_is_a_table(runs):
    from mlflow import MlflowClient

    recorded = MlflowMirror().record(make_summary(2))
    client = MlflowClient(MlflowMirror().tracking_uri)
    table = client.load_table(client.get_run(recorded.run).info.experiment_id, "by_tag.json", [recorded.run])
    assert list(table["value"]) == ["kind0", "kind1", "kind2"]
    assert list(table["lost"]) == [2, 4, 6]
    assert list(table["difference_low"]) == pytest.approx([-0.02, -0.03, -0.04])


def test_a_study_that_changed_is_another_run_of_the_same_experiment(runs):
    MlflowMirror().record(make_summary(2))
    MlflowMirror().record(make_summary(2, study_hash="aa" * 16))
    assert {STUDY, "demo aaaaaaaa: budget 0.3"} <= set(runs())


def test_what_a_crash_left_unfinished_is_completed(runs, monkeypatch):
    from mlflow import MlflowClient

    summary, calls = make_summary(4), []
    original = MlflowClient.log_batch

    def dies_in_the_middle(self, run_id, **content):
        calls.append(run_id)
        if len(calls) == 3:
            original(self, run_id, **(content | {"tags": []}))  # tags are kept last
            raise KeyboardInterrupt
        return original(self, run_id, **content)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", dies_in_the_middle)
        with pytest.raises(KeyboardInterrupt):
            MlflowMirror().record(summary)
    assert 1 < len(runs()) < 5
    MlflowMirror().record(summary)
    found = runs()
    assert len(found) == 5
    assert all(run.info.status == "FINISHED" and "adatp.digest" in run.data.tags for run in found.values())


def test_numbers_that_are_none_are_left_out(runs):
    MlflowMirror().record(make_summary(1, baseline={"tune": Measured(float("nan"))}))
    assert "baseline_tune_accuracy" not in runs()[STUDY].data.metrics


def test_an_experiment_somebody_deleted_comes_back(runs):
    from mlflow import MlflowClient

    MlflowMirror().record(make_summary(1))
    client = MlflowClient(MlflowMirror().tracking_uri)
    client.delete_experiment(client.get_experiment_by_name("adatp/demo").experiment_id)
    MlflowMirror().record(make_summary(2))
    assert client.get_experiment_by_name("adatp/demo").lifecycle_stage == "active"


def test_a_mirrored_study_is_found_again(folder):
    recorded = MlflowMirror().record(make_summary(1))
    assert MlflowMirror().find(make_summary()) == recorded
    assert MlflowMirror().find(make_summary(study_hash="0")) is None
    assert MlflowMirror().find(make_summary(study="other")) is None


def test_looking_for_a_study_makes_no_database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert MlflowMirror().find(make_summary()) is None
    assert list(tmp_path.iterdir()) == []


def test_the_callers_tracking_address_and_logging_stay_as_they_are(folder):
    import mlflow

    before = mlflow.get_tracking_uri(), logging.getLogger("mlflow").level
    MlflowMirror().record(make_summary(1))
    assert (mlflow.get_tracking_uri(), logging.getLogger("mlflow").level) == before
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.fixture
def project(tmp_path, monkeypatch, empty_database):
    """A function that moves the project's folder to a name (makes it, the first time) and goes there."""
    folders = [tmp_path / "first"]
    folders[0].mkdir()
    shutil.copy(empty_database, folders[0] / "mlflow.db")

    def move(name, copy=shutil.move):
        from mlflow.tracking._tracking_service import utils

        folders.append(tmp_path / name)
        copy(folders[-2], folders[-1])
        monkeypatch.chdir(folders[-1])
        utils._artifact_repos_cache.clear()  # another process, which knows no earlier folder
        return folders[-1]

    return move


def _artifacts(folder):
    return {file.name: file.read_text() for file in (folder / "mlartifacts").rglob("*.*") if file.is_file()}


def test_artifacts_follow_a_project_that_was_moved(project):
    from mlflow import MlflowClient

    report = project("one") / "report.html"
    report.write_text("before")
    first = MlflowMirror().record(make_summary(2), [report])
    moved = project("two moved")
    (moved / "report.html").write_text("after")
    recorded = MlflowMirror().record(make_summary(2), [moved / "report.html"])
    assert recorded == first
    assert recorded.moved_from == moved.parent / "one" / "mlartifacts" / "demo"
    assert (recorded.runs, recorded.files) == (0, 3)
    # Not where it was before, outside of the project.
    assert not (moved.parent / "one").exists()
    assert _artifacts(moved)["report.html"] == "after"
    client = MlflowClient(MlflowMirror().tracking_uri)
    assert client.get_run(recorded.run).info.artifact_uri.startswith((moved / "mlartifacts").as_uri() + "/")
    assert {artifact.path for artifact in client.list_artifacts(recorded.run)} == set(_artifacts(moved))
    # New runs, too; and once is enough.
    again = MlflowMirror().record(make_summary(3, study_hash="ab" * 16), [moved / "report.html"])
    assert again.moved_from is None
    assert not (moved.parent / "one").exists()


def test_a_copy_of_a_project_leaves_the_artifacts_of_the_first_one_alone(project):
    report = project("one") / "report.html"
    report.write_text("before")
    MlflowMirror().record(make_summary(2), [report])
    copy = project("copy", shutil.copytree)
    (copy / "report.html").write_text("after")
    MlflowMirror().record(make_summary(2), [copy / "report.html"])
    assert _artifacts(copy)["report.html"] == "after"
    assert _artifacts(copy.parent / "one")["report.html"] == "before"


def test_artifacts_that_lie_elsewhere_on_purpose_stay_there(project, tmp_path):
    from mlflow import MlflowClient

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    project("one")
    client = MlflowClient(MlflowMirror().tracking_uri)
    client.create_experiment("adatp/demo", elsewhere.as_uri())
    client.create_experiment("adatp/other", "s3://bucket/other")
    recorded = MlflowMirror().record(make_summary(2))
    assert recorded.moved_from is None
    assert {file.name for file in elsewhere.rglob("*.json")} == {"regressions.json", "by_tag.json"}
    other = client.get_experiment_by_name("adatp/other")
    moved = mlflow_mirror._move_artifacts(tmp_path / "one" / "mlflow.db", other, tmp_path / "new")
    assert moved is None


def test_artifacts_that_were_deleted_are_written_again_and_counted(folder):
    summary = make_summary(2)
    first = MlflowMirror().record(summary)
    assert (first.runs, first.files) == (3, 2)
    (gone,) = (folder / "mlartifacts").rglob("by_tag.json")
    gone.unlink()
    again = MlflowMirror().record(summary)
    assert (again.runs, again.files) == (0, 1)
    assert gone.exists()
    assert MlflowMirror().record(summary).files == 0


@pytest.mark.parametrize("name", ["what?", "50%20", "a#b", "c%3Fd"])
def test_a_folder_with_a_special_character_in_its_name_holds_its_own_database(project, name):
    folder = project(name)
    MlflowMirror().record(make_summary(1))
    # `sqlite:///what?/mlflow.db` is a file `what` beside the folder.
    assert [file.name for file in folder.parent.iterdir()] == [name]
    assert {file.name for file in folder.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert MlflowMirror().find(make_summary()) is not None


@pytest.mark.timeout(900)
def test_a_bare_mlflow_ui_in_the_folder_serves_runs_and_artifacts(folder, server_environment):
    summary = make_summary(4)
    recorded = MlflowMirror().record(summary, tuple(write(pareto_picture(summary), folder / "figures")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1"]  # of four, three only take time to start
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=server_environment, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, folder / "ui.log")
        base = f"http://127.0.0.1:{port}/api/2.0/mlflow"
        run = _get(f"{base}/runs/get?run_id={recorded.run}")["run"]
        body = {"experiment_ids": [run["info"]["experiment_id"]], "max_results": 100}
        found = _get(f"{base}/runs/search", body)["runs"]
        children = [
            entry
            for entry in found
            if {"key": "mlflow.parentRunId", "value": recorded.run} in entry["data"]["tags"]
        ]
        assert len(children) == 4
        assert {"tau_s", "tau_t", "alpha_boost", "gamma_cap", "p"} <= {
            param["key"] for param in children[0]["data"]["params"]
        }
        listed = _get(f"{base}/artifacts/list?run_id={recorded.run}")["files"]
        assert {"pareto.html", "pareto.png", "regressions.json"} <= {entry["path"] for entry in listed}
        query = urllib.parse.urlencode({"run_uuid": recorded.run, "path": "pareto.html"})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/get-artifact?{query}") as page:
            assert page.read() == (folder / "figures" / "pareto.html").read_bytes()

        # The same server as a tracking server: artifacts travel through it.
        mirror = MlflowMirror(f"http://me:pass-1-word@127.0.0.1:{port}")
        sent = mirror.record(make_summary(2, study="sent"), [folder / "figures" / "pareto.png"])
        assert mirror.find(make_summary(study="sent")) == sent
        assert (
            sent.page
            == f"http://127.0.0.1:{port}/#/experiments/2/runs/{sent.run}?workflowType=machine_learning"
        )
        listed = _get(f"{base}/artifacts/list?run_id={sent.run}")["files"]
        assert {entry["path"] for entry in listed} == {"pareto.png", "regressions.json", "by_tag.json"}
        assert b"pass-1-word" not in b"".join(file.read_bytes() for file in folder.glob("mlflow.db*"))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def _wait_for(url, server, log, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"mlflow ui did not answer:\n{log.read_text()}")


def _get(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def test_a_trial_that_the_study_does_not_allow_any_more_is_not_called_the_best(runs):
    before = make_summary(8)
    MlflowMirror().record(before)
    best = before.best
    left = tuple(trial for trial in before.trials if trial != best)
    other = next(item for item in left if item.within_budget and item != before.defaults)
    summary = replace(
        before, trials=left, outside=(best,), best=other, best_held_out=make_held_out(other.configuration)
    )
    MlflowMirror().record(summary)
    found = runs()
    assert found[f"trial {best.number:03d}"].data.tags["role"] == "outside"
    assert "(outside)" in found[f"trial {best.number:03d}"].info.run_name
    assert found[f"trial {other.number:03d}"].data.tags["role"] == "best"


def test_a_baseline_that_guesses_is_told_on_the_first_page(runs):
    MlflowMirror().record(replace(make_summary(2), guessing=Guessing(24, 8, 4, 0.25, 0.05)))
    study = runs()[STUDY].data
    assert "16.7 % of 24 questions right; guessing gives 25 %" in study.tags["mlflow.note.content"]
    assert study.metrics["baseline_chance"] == 0.25
