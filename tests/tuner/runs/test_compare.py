"""Ways to prune side by side: each within the budget, nothing asked twice, the same from the records."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import measure
from pipeline.errors import PipelineError
from pipeline.methods import METHODS, AdaTP, AdaTPOneShot, FastV, FastVid, Method, PyramidDrop, knobs
from pipeline.runtime import Runtime
from tests.checkpoints import scenes, write_checkpoints
from tests.summaries import make_comparison, make_end_to_end, make_held_out, make_summary
from tests.tuner import fakes
from tests.videos import write_video
from tuner.errors import UserError
from tuner.evaluation.evaluator import PipelineEvaluator
from tuner.evaluation.loop import Loop
from tuner.evaluation.tasks import Task
from tuner.records.database import default_database
from tuner.records.measurements import Timed
from tuner.records.store import Store
from tuner.reporting.comparison_table import remarks, render, to_json
from tuner.reporting.values import Compared, Comparison
from tuner.runs.compare import PEERS, Lineup, compare, line_up, line_up_end_to_end, load_comparison
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
    assert names[5:] == [peer.name for peer in PEERS]
    assert not found.unreachable
    by_name = {name: configuration.build() for name, _, configuration in found.rows}
    assert by_name["AdaTP, tuned"] == TUNED
    for name, method in by_name.items():
        if name != "AdaTP, tuned":
            assert planner.binding_ratio(method) <= BUDGET + TOLERANCE
            # Whole frames are the coarsest step there is: of 16 frames 6 % of the compute.
            assert planner.binding_ratio(method) > BUDGET - 0.07


@pytest.mark.quick
def test_peers_keep_their_papers_defaults_and_have_names_of_their_own():
    assert all(peer.method == type(peer.method)() for peer in PEERS)
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    adatp = {"adatp", "adatp_one_shot"}
    assert {peer.method.name for peer in PEERS} == set(METHODS) - adatp


@pytest.mark.quick
def test_an_ablation_changes_one_part_and_p(planner):
    found = line_up(planner, Search(), BUDGET, configuration(TUNED))
    by_name = {name: configuration.build() for name, _, configuration in found.rows}
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
        name: item.build() for name, _, item in line_up(planner, search, BUDGET, configuration(tuned)).rows
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
    assert [name for name in names if name.startswith("AdaTP ")] == ["AdaTP in one shot"]


@pytest.mark.quick
def test_without_a_search_the_parts_are_those_of_the_defaults(planner):
    rows = {
        name: configuration.build()
        for name, _, configuration in line_up(planner, Search(), BUDGET, None).rows
    }
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


@pytest.mark.quick
def test_peers_are_set_to_the_end_to_end_flops_of_the_tuned_configuration(planner):
    first = line_up(planner, Search(), BUDGET, configuration(TUNED))
    found = line_up_end_to_end(planner, first)
    assert found.rows[0] == first.rows[0]
    assert [name for name, _, _ in found.rows[1:]] == [peer.name for peer in PEERS]
    target = planner.end_to_end_ratio(TUNED)
    at_equal_prefill = {name: configuration.build() for name, _, configuration in first.rows}
    for name, _, item in found.rows[1:]:
        method = item.build()
        assert target - 0.07 < planner.end_to_end_ratio(method) <= target
        assert method == type(method)(**{method.ratio_field: method.ratio})
        # A little more would be too much.
        more = method.with_ratio(min(1.0, method.ratio + 2e-6))
        assert planner.end_to_end_ratio(more) > target
        # They keep more than at equal LLM FLOPs: AdaTP pays for the aligned encoder, fewer frames save the
        # vision tower.
        if not method.aligned:
            assert method.ratio > at_equal_prefill[name].ratio


@pytest.mark.quick
def test_end_to_end_ratios_are_of_the_held_out_part(planner):
    assert planner.end_to_end_ratio(TUNED) == planner.cost(TUNED).compute["held_out"].flops_ratio_end_to_end


@pytest.mark.quick
def test_without_a_search_the_end_to_end_flops_are_those_of_the_defaults(planner):
    first = line_up(planner, Search(), BUDGET, None)
    found = line_up_end_to_end(planner, first)
    assert found.rows[0][0] == "AdaTP, defaults"
    target = planner.end_to_end_ratio(found.rows[0][2].build())
    assert all(
        planner.end_to_end_ratio(configuration.build()) <= target for _, _, configuration in found.rows
    )


@pytest.mark.quick
def test_where_adatp_does_not_reach_the_budget_nothing_is_set_to_its_cost(planner):
    assert line_up_end_to_end(planner, line_up(planner, Search(), 0.02, None)) is None
    first = line_up(planner, Search(), BUDGET, None)
    assert line_up_end_to_end(planner, replace(first, rows=first.rows[1:])) is None


@pytest.mark.quick
def test_a_peer_that_cannot_come_down_to_it_is_told_with_its_smallest_end_to_end_ratio(planner):
    # Cheaper than the aligned encoder and a quarter of the layers together.
    light = configuration(FastV(keep_ratio=0.001))
    found = line_up_end_to_end(planner, Lineup((("AdaTP, tuned", "", light),), {}))
    smallest = {
        name: planner.end_to_end_ratio(method.with_ratio(knobs(method)[method.ratio_field].low))
        for name, method in (("PyramidDrop", PyramidDrop()), ("FastVID", FastVid()))
    }
    assert found.unreachable == smallest
    assert not {"PyramidDrop", "FastVID"} & {name for name, _, _ in found.rows}


@pytest.mark.quick
def test_where_adatp_saves_nothing_end_to_end_its_peers_keep_everything(planner):
    heavy = replace(TUNED, p=1.0, gamma_cap=1.0)
    assert planner.end_to_end_ratio(heavy) > 1
    found = line_up_end_to_end(planner, line_up(planner, Search(), 1.0, configuration(heavy)))
    kept = {name: planner.binding_ratio(configuration.build()) for name, _, configuration in found.rows[1:]}
    assert kept["FastV"] == kept["Fewer frames"] == 1


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


def printed(comparison: Comparison, width: int = 80) -> str:
    return "\n".join(line.plain for line in render(comparison, width))


@pytest.mark.quick
def test_the_table_has_a_line_for_each_way_and_says_what_it_is_of():
    text = printed(made_up(), 120)
    lines = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    assert "94.0 [92.0, 95.8]" in lines["unpruned"]
    assert lines["unpruned"].split()[-2:] == ["1", "50"]
    assert lines["AdaTP, tuned"].split()[-4:] == ["0.40", "20", "about", "it"]
    assert lines["FastV"].split()[-3:] == ["-", "-", "[FastV]"]
    assert "PyramidDrop cannot reach the budget: its smallest FLOPs ratio is 0.3123." in text
    assert "600 questions about 80 videos" in " ".join(text.split())
    assert "a processor" in text


def full() -> Comparison:
    """With the longest names and numbers there are."""
    summary = make_summary()
    comparison = make_comparison(9, own=summary, end_to_end=make_end_to_end(summary))
    timed = Timed("a processor", 12, 0.020, 0.050)
    low = Measured(-0.514, Interval(-0.556, -0.468))
    return replace(
        comparison,
        rows=tuple(
            replace(row, timed=timed, held_out=replace(row.held_out, difference=low))
            for row in comparison.rows
        ),
        labelled=False,
    )


@pytest.mark.quick
@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_line_is_longer_than_the_terminal_and_more_room_shows_more(width):
    text = printed(full(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "-51.4 [-55.6, -46.8]" in text
    assert text.count("interval\n") == 0
    first = next(line for line in text.splitlines() if line.startswith("AdaTP, tuned"))
    assert ("[86.0, 91.5]" in first) == (width > 80)
    assert ("about Fewer frames" in text) == (width > 80)


@pytest.mark.quick
def test_equal_end_to_end_flops_are_a_second_table():
    comparison = full()
    text = printed(comparison)
    _, second = text.split("At equal end-to-end FLOPs, what you pay: those of AdaTP, tuned, a ratio of ")
    assert second.startswith(f"{comparison.end_to_end.flops_ratio:.3f}")
    assert [line.split("  ")[0] for line in second.splitlines()[5:8]] == [
        *("AdaTP, tuned", "Fewer frames", "Random tokens"),
    ]
    joined = " ".join(second.split())
    assert (
        "PyramidDrop cannot come down to the end-to-end FLOPs of AdaTP, tuned: even with everything dropped "
        "that it may drop, its ratio is 0.6100." in joined
    )
    assert "At equal" not in printed(replace(comparison, end_to_end=None))


@pytest.mark.quick
def test_without_labels_it_is_agreement():
    text = printed(replace(made_up(), labelled=False))
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
    assert [row["equal"] for row in rows] == ["", "LLM prefill", "LLM prefill"]
    both = json.loads(to_json(full()))
    assert [row[:2] for row in both["data"]][-2:] == [
        ["Fewer frames", "end to end"],
        ["Random tokens", "end to end"],
    ]
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
    assert {"FastV", "Fewer frames", "Random tokens", "AdaTP in one shot"} <= {row.name for row in found.rows}
    for item in found.rows:
        assert item.held_out.outcome.split == "held_out"
        assert item.held_out.outcome.questions == 4
        assert item.held_out.outcome.flops_ratio <= BUDGET + TOLERANCE
        assert item.timed is not None
        assert item.timed.seconds > 0
        assert item.timed.questions == 4
    # All of them, and the unpruned model, in the same turns.
    assert len({(row.timed.device, row.timed.baseline_seconds) for row in found.rows if row.timed}) == 1
    monkeypatch.setattr(Runtime, "load", refuse)
    assert compare(study, OPTIONS) == found
    assert load_comparison(study, BUDGET) == found
    end_to_end = found.end_to_end
    assert end_to_end.rows[0].held_out == found.rows[0].held_out
    assert len(end_to_end.rows) + len(end_to_end.unreachable) == 1 + len(PEERS)
    for item in end_to_end.rows:
        assert item.held_out.outcome.questions == 4
        assert item.held_out.outcome.flops_ratio_end_to_end <= end_to_end.flops_ratio
    with Store.open(default_database("tiny")) as store:
        store.require("tiny")
        assert (store.searches(), store.trials()) == ((), ())


def test_the_searchs_best_is_among_them_and_shares_its_answers(study: Study, no_clock: None) -> None:
    options = replace(OPTIONS, trials=1)
    summary = run(study, options)
    assert load_comparison(study, BUDGET) is None
    found = compare(study, options)
    by_name = {row.name: row.held_out for row in found.rows}
    assert by_name["AdaTP, tuned"] == summary.best_held_out
    assert by_name["AdaTP, defaults"] == summary.defaults_held_out
    assert found.baseline == summary.baseline["held_out"]
    assert load_comparison(study, 0.6) is None
    # A run that goes on finds its search as it was.
    assert run(study, options).trials == summary.trials


def test_what_an_older_version_compared_still_loads(
    study: Study, no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tuner.runs.compare.line_up_end_to_end", lambda *_: None)
        before = compare(study, OPTIONS)
    assert before.end_to_end is None
    assert load_comparison(study, BUDGET) == before
    asked = list[str]()
    answer = PipelineEvaluator.answer

    def counted(self, configuration, questions, references, **options):
        asked.append(str(configuration))
        return answer(self, configuration, questions, references, **options)

    monkeypatch.setattr(PipelineEvaluator, "answer", counted)
    after = compare(study, OPTIONS)
    assert replace(after, end_to_end=None) == before
    # What the first line-up has is not asked again.
    assert len(set(asked)) <= len(PEERS)
    assert load_comparison(study, BUDGET) == after


def test_times_that_cannot_be_measured_end_nothing(
    study: Study, no_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PipelineError("memory does not suffice.")

    with monkeypatch.context() as patch:
        patch.setattr(measure, "answer_seconds", fail)
        found = compare(study, OPTIONS)
    assert all(row.timed is None for row in found.rows)
    # The same command measures them.
    assert all(row.timed is not None for row in compare(study, OPTIONS).rows)


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
