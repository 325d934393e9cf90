"""Ways to prune side by side: each within the budget, nothing asked twice, the same from the records."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline import measure
from pipeline.errors import PipelineError
from pipeline.methods import METHODS, AdaTP, AdaTPOneShot, FastV, Method
from pipeline.runtime import Runtime
from tests.checkpoints import scenes, write_checkpoints
from tests.summaries import make_held_out
from tests.tuner import fakes
from tests.videos import write_video
from tuner.errors import UserError
from tuner.evaluation.evaluator import PipelineEvaluator
from tuner.evaluation.loop import Loop
from tuner.evaluation.tasks import Task
from tuner.records.database import default_database
from tuner.records.measurements import Timed
from tuner.records.store import Store
from tuner.reporting.comparison_table import remarks, render, table, to_json
from tuner.reporting.values import Compared, Comparison
from tuner.runs.compare import PEERS, compare, line_up, load_comparison
from tuner.runs.run import InterruptedRunError, RunOptions, Session, run
from tuner.search.space import TOLERANCE
from tuner.statistics.values import Interval, Measured
from tuner.study import Search, Study, StudyQuestion, Video
from tuner.study.values import AnswerCost, Configuration

BUDGET = 0.5
COLORS = ("red", "green", "blue", "yellow")
TUNED = AdaTP(tau_s=0.7, tau_t=0.4, alpha_boost=1.2, p=0.6)


def configuration(method: Method) -> Configuration:
    return Configuration.from_method(method)


# What is compared


@pytest.fixture(scope="module")
def planner():
    return fakes.make_planner(fakes.make_study())


@pytest.mark.quick
def test_everything_but_the_tuned_configuration_is_set_to_the_budget(planner):
    found = line_up(planner, Search(), BUDGET, configuration(TUNED))
    names = [name for name, _, _ in found.rows]
    assert names[:2] == ["AdaTP, tuned", "AdaTP, defaults"]
    assert names[5:] == [one.name for one in PEERS]
    assert not found.unreachable
    by_name = {name: one.build() for name, _, one in found.rows}
    assert by_name["AdaTP, tuned"] == TUNED
    for name, method in by_name.items():
        if name != "AdaTP, tuned":
            assert planner.binding_ratio(method) <= BUDGET + TOLERANCE
            # Whole frames are the coarsest step there is: of 16 frames 6 % of the compute.
            assert planner.binding_ratio(method) > BUDGET - 0.07


@pytest.mark.quick
def test_peers_keep_their_papers_defaults_and_have_names_of_their_own():
    assert all(one.method == type(one.method)() for one in PEERS)
    assert len({one.name for one in PEERS}) == len(PEERS)
    adatp = {"adatp", "adatp_one_shot"}
    assert {one.method.name for one in PEERS} == set(METHODS) - adatp


@pytest.mark.quick
def test_an_ablation_changes_one_part_and_p(planner):
    found = line_up(planner, Search(), BUDGET, configuration(TUNED))
    by_name = {name: one.build() for name, _, one in found.rows}
    for name, change in (
        ("AdaTP without the boost", {"alpha_boost": 1.0}),
        ("AdaTP without deduplication", {"deduplicate": "off"}),
    ):
        method = by_name[name]
        assert method == replace(TUNED, p=method.p, **change)
    at_once = by_name["AdaTP in one shot"]
    assert at_once == AdaTPOneShot(**{**asdict(TUNED), "p": at_once.p})
    assert not planner.boosts(by_name["AdaTP without the boost"])


@pytest.mark.quick
def test_choices_go_with_what_was_tuned_and_with_the_studys_defaults(planner):
    tuned = replace(TUNED, deduplicate="drop", score_query="mean")
    search = Search(choices=(("deduplicate", ("drop", "off")),))
    by_name = {
        name: one.build() for name, _, one in line_up(planner, search, BUDGET, configuration(tuned)).rows
    }
    assert by_name["AdaTP, tuned"] == tuned
    assert by_name["AdaTP, defaults"].deduplicate == "drop"
    (about,) = (about for name, about, _ in line_up(planner, search, BUDGET, None).rows if "default" in name)
    assert "as far as study.yaml allows: " in about
    at_once, plain = by_name["AdaTP in one shot"], by_name["AdaTP without the boost"]
    assert at_once == AdaTPOneShot(**{**asdict(tuned), "p": at_once.p})
    assert plain == replace(tuned, p=plain.p, alpha_boost=1.0)
    assert by_name["AdaTP without deduplication"].score_query == "mean"


@pytest.mark.quick
def test_a_part_that_does_nothing_has_no_ablation(planner):
    plain = configuration(replace(TUNED, tau_t=1.5, deduplicate="off"))
    names = [name for name, _, _ in line_up(planner, Search(), BUDGET, plain).rows]
    assert [one for one in names if one.startswith("AdaTP ")] == ["AdaTP in one shot"]


@pytest.mark.quick
def test_without_a_search_the_parts_are_those_of_the_defaults(planner):
    rows = {name: one.build() for name, _, one in line_up(planner, Search(), BUDGET, None).rows}
    assert "AdaTP, tuned" not in rows
    assert rows["AdaTP without deduplication"] == AdaTP(
        p=rows["AdaTP without deduplication"].p, deduplicate="off"
    )


@pytest.mark.quick
def test_what_cannot_reach_the_budget_is_told_with_its_smallest_ratio(planner):
    found = line_up(planner, Search(), 0.27, None)
    assert "PyramidDrop" not in [name for name, _, _ in found.rows]
    assert 0.27 < found.unreachable["PyramidDrop"] < 0.35  # it does a quarter of the layers before it prunes
    assert "FastV" in [name for name, _, _ in found.rows]
    assert line_up(planner, Search(), 0.02, None).rows == ()


# The table


def made_up() -> Comparison:
    timed = Timed("a processor", 12, 0.020, 0.050)
    return Comparison(
        study="demo",
        study_hash="0" * 64,
        budget=0.3,
        baseline=Measured(0.94, Interval(0.92, 0.958)),
        baseline_cost=AnswerCost(0.03),
        rows=(
            Compared("AdaTP, tuned", make_held_out(configuration(TUNED), 0.89), "about it", timed),
            Compared("FastV", make_held_out(configuration(FastV()), 0.8), "[FastV]"),
        ),
        unreachable={"PyramidDrop": 0.3123},
    )


def printed(comparison: Comparison, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(comparison))
    return console.file.getvalue()


@pytest.mark.quick
def test_the_table_has_a_line_for_each_way_and_says_what_it_is_of():
    text = printed(made_up(), 120)
    lines = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    assert "94.0 [92.0, 95.8]" in lines["unpruned"]
    assert lines["unpruned"].split()[-2:] == ["50", "1"]
    assert lines["AdaTP, tuned"].split()[-2:] == ["20", "0.40"]
    assert lines["FastV"].split()[-2:] == ["-", "-"]
    assert "PyramidDrop cannot reach the budget: its smallest FLOPs ratio is 0.3123." in text
    assert "600 questions about 80 videos" in " ".join(text.split())
    assert "a processor" in text


@pytest.mark.quick
def test_the_table_needs_no_wide_terminal():
    assert Console(width=1000).measure(table(made_up())).maximum <= 120


@pytest.mark.quick
def test_without_labels_it_is_agreement():
    text = printed(replace(made_up(), labelled=False), 120)
    assert "agreement" in text
    assert "accuracy" not in text


@pytest.mark.quick
def test_the_table_for_mlflow_holds_the_numbers_and_each_configuration():
    comparison = made_up()
    split = json.loads(to_json(comparison))
    rows = [dict(zip(split["columns"], row, strict=True)) for row in split["data"]]
    assert [row["name"] for row in rows] == ["unpruned", "AdaTP, tuned", "FastV"]
    assert rows[0]["accuracy"] == 0.94
    assert (rows[1]["seconds"], rows[1]["seconds_ratio"]) == (0.02, pytest.approx(0.4))
    assert rows[2]["seconds"] is None
    again = Configuration.from_dict(json.loads(rows[1]["configuration"])).build()
    assert again == comparison.rows[0].held_out.configuration.build()
    assert all(len(row) == len(split["columns"]) for row in split["data"])
    assert json.loads(to_json(replace(comparison, rows=())))["data"][0][0] == "unpruned"
    assert remarks(replace(comparison, rows=(), unreachable={})) == ()


# On a model


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    write_checkpoints(folder)
    (folder / "videos").mkdir()
    for index in range(4):
        write_video(folder / "videos" / f"v{index}.mp4", scenes(16, scene_length=4, seed=index))
    return folder


def make_study(folder: Path, held_out: frozenset[str] = frozenset({"v1.mp4", "v3.mp4"})) -> Study:
    names = [f"v{index}.mp4" for index in range(4)]
    return Study(
        name="tiny",
        folder=folder,
        questions_file=folder / "questions.jsonl",
        model=str(folder / "model"),
        revision=None,
        text_encoder=str(folder / "siglip"),
        frames=8,
        scoring="words",
        max_new_tokens=4,
        videos=tuple(Video(name, folder / "videos" / name) for name in names),
        questions=tuple(
            StudyQuestion(
                id=f"{name}-{place}",
                text=f"what color is the {place}?",
                options=COLORS,
                video=name,
                answer=COLORS[index],
            )
            for index, name in enumerate(names)
            for place in ("top", "left")
        ),
        held_out=held_out,
    )


@pytest.fixture
def study(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return make_study(tmp_path)


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are made up: what is tested is something else."""
    monkeypatch.setattr(measure, "answer_seconds", lambda *given: tuple(1.0 for _ in given[3]))
    monkeypatch.setattr(Session, "measure_serving", lambda *_: None)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a model was loaded")


# Random weights do no better than guessing.
OPTIONS = RunOptions(budget=BUDGET, accept_weak_baseline=True)


def test_a_study_that_was_never_run_is_compared_and_again_it_asks_nothing(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare(study, OPTIONS)
    assert found.rows[0].name == "AdaTP, defaults"
    assert {"FastV", "Fewer frames", "Random tokens", "AdaTP in one shot"} <= {one.name for one in found.rows}
    for one in found.rows:
        assert one.held_out.outcome.split == "held_out"
        assert one.held_out.outcome.questions == 4
        assert one.held_out.outcome.flops_ratio <= BUDGET + TOLERANCE
        assert one.timed is not None
        assert one.timed.seconds > 0
        assert one.timed.questions == 4
    # All of them, and the unpruned model, in the same turns.
    assert len({(one.timed.device, one.timed.baseline_seconds) for one in found.rows if one.timed}) == 1
    monkeypatch.setattr(Runtime, "load", refuse)
    assert compare(study, OPTIONS) == found
    assert load_comparison(study, BUDGET) == found
    with Store.open(default_database("tiny")) as store:
        store.require("tiny")
        assert (store.searches(), store.trials()) == ((), ())


def test_the_searchs_best_is_among_them_and_shares_its_answers(study: Study, no_clock: None) -> None:
    options = replace(OPTIONS, trials=1)
    summary = run(study, options)
    assert load_comparison(study, BUDGET) is None
    found = compare(study, options)
    by_name = {one.name: one.held_out for one in found.rows}
    assert by_name["AdaTP, tuned"] == summary.best_held_out
    assert by_name["AdaTP, defaults"] == summary.defaults_held_out
    assert found.baseline == summary.baseline["held_out"]
    assert load_comparison(study, 0.6) is None
    # A run that goes on finds its search as it was.
    assert run(study, options).trials == summary.trials


def test_times_that_cannot_be_measured_end_nothing(
    study: Study, no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PipelineError("memory does not suffice.")

    with monkeypatch.context() as patch:
        patch.setattr(measure, "answer_seconds", fail)
        found = compare(study, OPTIONS)
    assert all(one.timed is None for one in found.rows)
    # The same command measures them.
    assert all(one.timed is not None for one in compare(study, OPTIONS).rows)


def test_ctrl_c_keeps_what_was_answered_and_the_same_command_goes_on(
    study: Study, no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, seen = Loop.record, []

    def interrupted(self: Loop, task: Task, *given: Any) -> str:
        seen.append(task.kind)
        if seen.count("held_out") == 3:
            self.interrupt()
        return record(self, task, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "record", interrupted)
        with pytest.raises(InterruptedRunError, match=r"^Interrupted\. .*the same command goes on"):
            compare(study, OPTIONS)
    before, asked = answers_of("tiny"), list[str]()
    assert before > len(study.questions)
    answer = PipelineEvaluator.answer

    def counted(self, configuration, questions, references, **options):
        asked.extend(questions)
        return answer(self, configuration, questions, references, **options)

    monkeypatch.setattr(PipelineEvaluator, "answer", counted)
    found = compare(study, OPTIONS)
    assert len(asked) == answers_of("tiny") - before
    assert len(found.rows) + len(found.unreachable) == 4 + len(PEERS)


def answers_of(study: str) -> int:
    with Store.open(default_database(study)) as store:
        store.require(study)
        return store.count_answers()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("budget", "message"),
    [(None, "name --budget"), (0.0, r"in \(0, 1\]"), (1.5, r"in \(0, 1\]"), (float("nan"), r"in \(0, 1\]")],
)
def test_a_budget_that_will_not_do_is_one_message(tmp_path, budget, message):
    with pytest.raises(UserError, match=message):
        compare(make_study(tmp_path), RunOptions(budget=budget))


@pytest.mark.quick
def test_a_study_that_holds_nothing_out_is_one_message(tmp_path):
    with pytest.raises(UserError, match="holds no videos out"):
        compare(make_study(tmp_path, frozenset()), OPTIONS)


def test_a_budget_that_nothing_reaches_names_the_smallest_of_each(study: Study) -> None:
    with pytest.raises(UserError, match=r"down to the budget 0.01; .* \(Fewer frames\), .* \(PyramidDrop\)"):
        compare(study, replace(OPTIONS, budget=0.01))
