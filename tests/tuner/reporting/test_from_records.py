"""What a run reports, told from the records: verdict, what pruning changed, by tag, which trials count."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.tuner.fakes import SHAPE, FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.records.values import Pruned
from tuner.reporting.from_records import Results, loss_correlation, status_of, summarise
from tuner.reporting.summary import headline, verdict
from tuner.reporting.trial_table import pareto_points
from tuner.reporting.values import RunSummary
from tuner.search.selection import choose_best, level_of
from tuner.statistics import paired
from tuner.statistics.values import Noise
from tuner.study import Search, Study
from tuner.study.values import Configuration

pytestmark = pytest.mark.quick


def tagged(study: Study) -> Study:
    """Kind by the question's place in its video; half of the videos carry a second tag."""
    held_out = sorted(study.held_out)
    questions = tuple(
        replace(
            question,
            tags={"kind": question.id[-1]} | ({"light": "dim"} if question.video in held_out[::2] else {}),
        )
        for question in study.questions
    )
    return replace(study, questions=questions)


def run(study: Study, store: Store, *, max_drop: str = "0.02", **options: Any) -> RunSummary:
    loop = make_loop(study, store, **options)
    InProcessExecutor(FakeEvaluator(study)).run(loop)
    return summary_of(study, store, max_drop)


def summary_of(study: Study, store: Store, max_drop: str = "0.02") -> RunSummary:
    record = store.find(study.name)
    assert record is not None
    search = replace(store.searches()[-1], max_drop=max_drop)
    return summarise(study, store, replace(record, shape=asdict(SHAPE)), search)


@pytest.fixture
def study() -> Study:
    return tagged(make_study(videos=16, per_video=4))


@pytest.fixture
def store(tmp_path: Path, study: Study) -> Any:
    with open_store(tmp_path / "t.db", study) as opened:
        yield opened


def test_the_verdict_is_the_test_of_the_held_out_part(study: Study, store: Store) -> None:
    summary = run(study, store, trials=3)
    assert summary.best is not None
    assert summary.best_held_out is not None
    tested, *others = summary.tested
    assert (tested.trial, tested.margin, tested.level) == (summary.best.number, 0.02, level_of("budget", 1))
    assert tested.difference == pytest.approx(summary.best_held_out.difference.value)
    assert tested.shown is (tested.bound >= -0.02)
    # The best on the tune part stands where none passes; the others do not hold there and are not tested.
    assert summary.verdict == "not_shown"
    assert others == []
    # Another margin is another look, which a run takes and a reader does not.
    assert summary_of(study, store, "0.99").verdict == "untested"
    results = Results(study, store, make_planner(study))
    after, before = results.of(summary.best.configuration, "held_out"), results.of(None, "held_out")
    expected = paired.non_inferiority(
        [answer.correct for answer in after],
        [answer.correct for answer in before],
        [answer.video for answer in after],
        0.02,
        level=level_of("budget", 1),
    )
    assert tested.bound == expected.bound


def test_a_margin_in_per_cent_is_one_of_the_held_out_baseline(study: Study, store: Store) -> None:
    run(study, store, trials=2)
    summary = summary_of(study, store, "10%")
    assert summary.max_drop == "10%"
    assert summary.margin == pytest.approx(0.1 * summary.baseline["held_out"].value)


def test_what_can_be_proven_and_the_noise_floor_stand_in_the_summary(study: Study, store: Store) -> None:
    store.record_noise(noise := Noise(questions=64, videos=16, flips=1, logprob_mean=1e-6, logprob_max=1e-5))
    summary = run(study, store, trials=1)
    assert summary.noise == noise
    videos = [question.video for question in study.questions_of("held_out")]
    assert summary.provable_drop == paired.provable_drop(videos, level=level_of("budget", 1))


def test_what_can_be_proven_is_of_the_questions_that_count(study: Study, store: Store) -> None:
    run(study, store, trials=1)
    gone = min(study.held_out)
    for item in study.questions:
        if item.video == gone:
            store.quarantine(item.id, "it kills its worker")
    videos = [question.video for question in study.questions_of("held_out") if question.video != gone]
    assert summary_of(study, store).provable_drop == paired.provable_drop(videos, level=level_of("budget", 1))


def test_the_unpruned_model_stands_beside_guessing(study: Study, store: Store) -> None:
    guessing = run(study, store, trials=1).guessing
    assert guessing is not None
    assert (guessing.questions, guessing.videos, guessing.chance) == (64, 16, 0.25)
    assert guessing.shown_better
    # The same answers, judged by a file whose right answers belong to other questions.
    rotated = replace(
        study,
        questions=tuple(
            replace(question, answer=question.options[(question.options.index(question.answer) + 1) % 4])
            for question in study.questions
            if question.options is not None and question.answer is not None
        ),
    )
    guessing = summary_of(rotated, store).guessing
    assert guessing is not None
    assert guessing.no_better
    without = replace(study, questions=tuple(replace(question, answer=None) for question in study.questions))
    assert summary_of(without, store).guessing is None


def test_flips_and_divergence_are_those_of_the_answers(study: Study, store: Store) -> None:
    summary = run(study, store, trials=2)
    held_out = summary.best_held_out
    assert held_out is not None
    assert held_out.flips == held_out.outcome.regressions + held_out.outcome.gained
    assert held_out.flips > 0
    assert held_out.divergence is not None
    assert held_out.divergence > 0
    assert held_out.mcnemar_p is not None


def test_every_value_of_every_tag_has_its_row(study: Study, store: Store) -> None:
    held_out = run(study, store, trials=2).best_held_out
    assert held_out is not None
    rows = {(row.key, row.value): row for row in held_out.by_tag}
    assert list(rows) == [("kind", "0"), ("kind", "1"), ("kind", "2"), ("kind", "3"), ("light", "dim")]
    kinds = [row for row in held_out.by_tag if row.key == "kind"]
    assert [row.questions for row in kinds] == [8] * 4
    assert (rows["light", "dim"].questions, rows["light", "dim"].videos) == (16, 4)
    assert sum(row.lost for row in kinds) == held_out.outcome.regressions
    assert sum(row.gained for row in kinds) == held_out.outcome.gained
    for row in held_out.by_tag:
        assert row.accuracy - row.baseline == pytest.approx(row.difference.value)
        assert row.difference.value == pytest.approx((row.gained - row.lost) / row.questions)
        assert row.difference.interval is not None


def test_without_labels_agreement_takes_the_place_of_accuracy(tmp_path: Path) -> None:
    study = tagged(make_study(videos=16, per_video=4, labelled=False))
    with open_store(tmp_path / "t.db", study) as store:
        summary = run(study, store, trials=2, max_drop="2%")
    assert summary.baseline["held_out"].value == 1.0
    assert summary.margin == 0.02
    assert summary.best_held_out is not None
    assert summary.best_held_out.outcome.gained == 0
    assert summary.best_held_out.difference.value == pytest.approx(summary.best_held_out.accuracy.value - 1)


def test_nothing_held_out_is_measured_nothing_is_tested(study: Study, store: Store) -> None:
    summary = run(study, store, trials=0)
    assert (summary.best, summary.verdict, summary.tested) == (None, "untested", ())
    assert (summary.max_drop, summary.margin) == ("0.02", None)


def test_stopped_trials_and_those_above_the_budget_are_no_trials_of_the_search(
    study: Study, store: Store
) -> None:
    run(study, store, trials=2, budget=0.35)
    planner, search = make_planner(study), store.searches()[-1]
    method = store.trials()[0].configuration.build()

    def propose(number: int, p: float, purpose: Any) -> None:
        other = replace(method, p=p)
        ratio = planner.cost(other).compute["tune"].flops_ratio
        store.propose(search, number, Configuration.from_method(other), ratio, purpose)

    done = store.trials()[0].outcome
    assert done is not None
    propose(2, 0.95, "above")
    store.record({}, completed=(2, replace(done, accuracy=1.0)))
    propose(3, 0.5, "search")
    store.record({}, pruned=(3, Pruned(by=1, videos=2)))
    summary = summary_of(study, store)
    assert [trial.number for trial in summary.trials] == [0, 1]
    assert [(trial.number, trial.within_budget) for trial in summary.above] == [(2, False)]
    assert [(trial.number, trial.by, trial.videos) for trial in summary.pruned] == [(3, 1, 2)]
    assert summary.best is not None
    assert summary.best.number != 2
    # Where it fits, what was above another budget is a trial like any other.
    store.search(1.0, 0, "budget", 2)
    wider = summary_of(study, store)
    assert [trial.number for trial in wider.trials] == [0, 1, 2]
    assert wider.above == ()
    assert wider.best is not None
    assert wider.best.number == 2


def test_the_choices_that_the_study_lists_are_named(study: Study, tmp_path: Path) -> None:
    listed = replace(study, search=Search(choices=(("deduplicate", ("drop",)),)))
    with open_store(tmp_path / "t.db", listed) as store:
        summary = run(listed, store, trials=2)
    assert summary.choices == ("deduplicate",)
    assert summary.defaults is not None
    assert summary.defaults.configuration.get("deduplicate") == "drop"


def test_a_trial_that_the_study_does_not_allow_any_more_is_told_as_such_and_no_more(
    study: Study, store: Store
) -> None:
    before = run(study, store, trials=3)
    assert before.best is not None
    # The fake model answers best at tau_t 0.6.
    fixed = replace(study, search=Search(fixed=(("tau_t", 0.05),)))
    summary = run(fixed, store, trials=2)
    assert [trial.number for trial in summary.outside] == [0, 1, 2]
    assert [trial.number for trial in summary.trials] == [3, 4]
    assert "3 left out because study.yaml does not allow them" in headline(summary)
    assert summary.best is not None
    assert summary.best.configuration.get("tau_t") == 0.05
    assert summary.best.outcome.accuracy < before.best.outcome.accuracy
    assert {point.trial for point in pareto_points(summary)} == {None, 3, 4}
    # Nothing that fits: none of the trials that are not allowed takes the place.
    nothing = summary_of(replace(study, search=Search(fixed=(("tau_t", 0.3),))), store)
    assert (nothing.best, nothing.trials, len(nothing.outside)) == (None, (), 5)
    assert nothing.closest is None
    # Allowed again, they count again.
    assert summary_of(study, store).best == before.best


def test_a_margin_that_was_moved_after_the_look_says_what_was_seen_before(study: Study, store: Store) -> None:
    def again(max_drop: str, **options: Any) -> RunSummary:
        InProcessExecutor(FakeEvaluator(study)).run(
            make_loop(study, store, trials=3, max_drop=max_drop, **options)
        )
        return summarise(study, store, store.require("fake"), store.searches()[-1])

    first = again("0.02")
    assert (first.verdict, first.look) == ("not_shown", 1)
    assert "first look" in verdict(first)[1]
    moved = again("0.99")
    assert (moved.verdict, moved.best) == ("shown", first.best)
    assert moved.look == 2
    assert moved.tested[0].level == pytest.approx(level_of("budget", 2))
    said = " ".join(verdict(moved))
    assert "This is look 2 at " in said
    assert "1: budget 0.35, seed 0, --max-drop 0.02, trial " in said
    assert loss_correlation(study, store, make_planner(study)) == moved.loss_correlation is not None
    # The same again are the same looks.
    assert [again(item).look for item in ("0.02", "0.99", "0.02")] == [1, 2, 1]
    # Another search is another choice, and so another look.
    other = again("0.99", seed=1)
    assert other.look == 3
    told = [(look.seed, look.max_drop, look.verdict) for look in other.looks]
    assert told == [(0, "0.02", "not_shown"), (0, "0.99", "shown"), (1, "0.99", "shown")]


def test_status_names_the_trial_that_the_run_and_the_export_name(study: Study, store: Store) -> None:
    """For the cheapest that holds it is not the one that answers best on the tune part."""
    loop = make_loop(study, store, trials=8, goal="max_drop", budget=1.0, max_drop="0.5")
    InProcessExecutor(FakeEvaluator(study)).run(loop)
    run(study, store, trials=3)
    status = status_of(study, store, store.require("fake"))
    told = {(search.goal, search.budget): search for search in status.searches}
    for search in store.searches():
        summary = summarise(study, store, store.require("fake"), search)
        found = told[search.goal, search.budget]
        assert found.best == summary.best
        assert (found.verdict, found.max_drop) == (summary.verdict, summary.max_drop)
    cheapest = told["max_drop", 1.0].best
    best = choose_best(store.trials(), 1.0)
    assert best is not None
    assert cheapest is not None
    assert cheapest.number != best.number


def test_a_search_recorded_with_a_sampler_and_space_of_before_stays_readable(
    study: Study, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = store.search(0.35, 0, "knobs", 3, sampler="nsga2")
    with monkeypatch.context() as patch:
        patch.setattr(store, "search", lambda *_, **__: old)
        summary = run(study, store, trials=3, unsolved=True)
    assert (summary.sampler, len(summary.trials)) == ("nsga2", 3)
    (status,) = status_of(study, store, store.require("fake")).searches
    assert (status.coordinates, status.trials_completed, status.best) == ("knobs", 3, summary.best)
    # A search of today learns from its trials.
    assert len(make_loop(study, store, seed=1)._observations()) == 3
