"""What a study costs, against a count one answer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from pipeline.flops import LLAVA_ONEVISION_7B, chunk_flops, layer_flops, plan_flops, unpruned_flops
from pipeline.layout import Layout
from pipeline.methods import AdaTP, FastV, FewerFrames
from pipeline.plan import pruning_layers
from tests.benchmarks.study_cost import at_7b, driver_time, planned, planned_cost, solved
from tests.tuner.fakes import BASE, SHAPE, FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.evaluation.ad_hoc_loop import AdHocLoop
from tuner.executors.in_process import InProcessExecutor
from tuner.planning.planner import Planner
from tuner.planning.study_cost import StudyCost, study_cost
from tuner.records.schema import noise_table
from tuner.records.store import Store
from tuner.records.values import Pruned, RecordedAnswer
from tuner.statistics.values import Noise
from tuner.study.values import Configuration

STUDY = make_study()
PLANNER = make_planner(STUDY)
# With a text tower, which the fakes leave out.
VISION = replace(SHAPE.vision, text_layers=2, text_width=64, text_mlp_width=128, text_tokens=8, embedding=64)
WITH_TEXT = Planner(PLANNER.questions, replace(SHAPE, vision=VISION), BASE)
LAYOUTS = {question.id: question.layout for question in PLANNER.questions}
TUNE = [index for index, question in enumerate(PLANNER.questions) if question.split == "tune"]

quick = pytest.mark.quick


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A search of six trials, run to its end; as if its noise floor had not been measured."""
    with open_store(tmp_path / "t.db", STUDY) as store:
        InProcessExecutor(FakeEvaluator(STUDY)).run(make_loop(STUDY, store))
        forget_noise(store)
        yield store


def forget_noise(store: Store) -> None:
    """Noise is no part of a plan."""
    with store._engine.begin() as connection:
        connection.execute(delete(noise_table))


def prefix_flops(layers: int, layout: Layout = PLANNER.questions[0].layout) -> int:
    """All of the fake's videos are equally long."""
    return layers * layer_flops(SHAPE, layout.tokens - layout.text_after)


def question_flops(layout: Layout, kept: tuple[int, ...]) -> int:
    """One answer from its prefix on, layer by layer."""
    if not kept:
        return SHAPE.layers * chunk_flops(SHAPE, layout.text_after, layout.tokens - layout.text_after)
    pruned_at = list(pruning_layers(SHAPE.layers))
    flops, tokens = 0, layout.tokens
    for layer in range(SHAPE.layers):
        if layer in pruned_at:
            left = layout.text + kept[pruned_at.index(layer)]
            if left < tokens:  # one query row against the keys of the layer before
                flops += tokens * SHAPE.hidden
            tokens = left
        if layer < pruned_at[0]:
            flops += chunk_flops(SHAPE, layout.text_after, layout.tokens - layout.text_after)
        else:
            flops += layer_flops(SHAPE, tokens)
    return flops


def cost(store: Store, planner: Planner = WITH_TEXT, **other: Any) -> StudyCost:
    seconds = [answer.seconds for answer in store.stored_answers()]
    given: dict[str, Any] = {"answers": len(seconds), "seconds": sum(seconds), "shared": 0} | other
    return study_cost(planner, store.trials(), store.measured(), **given)


def answered(store: Store) -> int:
    """The stored answers' FLOPs, one by one."""
    return sum(question_flops(LAYOUTS[answer.question], answer.kept) for answer in store.stored_answers())


@quick
def test_a_search_costs_what_its_answers_do_one_by_one(store: Store) -> None:
    stored = store.stored_answers()
    assert {bool(name.kept) for name in stored} == {True, False}
    # The baseline's prefixes of all 8 videos, and those before the first pruning.
    expected = answered(store) + 8 * prefix_flops(12) + 8 * prefix_flops(2)
    found = cost(store)
    assert found.spent_language == pytest.approx(expected, rel=1e-9)
    frames, questions = 8 * 16, len(PLANNER.questions)
    encoding = frames * (VISION.frame(SHAPE.hidden) + VISION.frame_embedding())
    encoding += questions * VISION.text_embedding()
    assert found.spent - found.spent_language == pytest.approx(encoding)
    assert found.seconds == pytest.approx(0.001 * len(stored))
    assert found.answers == len(stored) == store.count_answers()
    assert (found.trials, found.pruned, found.spared) == (6, 0, 0)


@quick
def test_a_pass_is_the_unpruned_model_asked_once_with_each_video_encoded_once(store: Store) -> None:
    found = cost(store)
    assert found.pass_language == sum(unpruned_flops(layout, SHAPE) for layout in LAYOUTS.values())
    assert found.pass_flops - found.pass_language == 8 * 16 * VISION.frame(SHAPE.hidden)
    assert found.passes == found.spent / found.pass_flops
    # One question in a pass of its own costs more than from its video's prefix.
    assert found.naive_passes > 2 * found.passes > 0


@quick
def test_naively_every_question_encodes_its_video_and_prefills_in_one_pass(store: Store) -> None:
    found = cost(store)
    language = found.pass_language  # the baseline
    seen = len(LAYOUTS) * 16 * VISION.frame(SHAPE.hidden)
    pruned = 16 * (VISION.frame(SHAPE.hidden) + VISION.frame_embedding()) + VISION.text_embedding()
    asked = [(trial.configuration, "tune") for trial in store.trials()]
    asked += [(item, "held_out") for item in store.measured()]
    for configuration, split in asked:
        method = configuration.build()
        for question in PLANNER.questions:
            if question.split == split:
                plan = method.plan(question.layout, SHAPE.layers)
                language += plan_flops(plan, question.layout, SHAPE)
                seen += pruned
    assert found.naive_language == pytest.approx(language, rel=1e-9)
    # The recorded end-to-end ratios are of the fakes' shape, which has no text tower.
    assert found.naive == pytest.approx(language + seen, rel=0.01)


@quick
def test_answers_that_were_shared_cost_nothing_and_do_not_change_the_naive_study(store: Store) -> None:
    answers = store.count_answers()
    whole, fewer = cost(store), cost(store, answers=answers - 12, shared=12)
    baseline = cost(store, answers=len(LAYOUTS))
    assert (fewer.wanted, fewer.shared, fewer.shared_share) == (6 * 12, 12, 12 / 72)
    assert fewer.naive == whole.naive
    # An answer costs the mean of all that were asked with a pruning; prefixes are built either way.
    mean = (answered(store) - sum(question_flops(layout, ()) for layout in LAYOUTS.values())) / (answers - 24)
    assert whole.spent - fewer.spent == pytest.approx(12 * mean)
    assert baseline.spent == pytest.approx(whole.spent - (answers - 24) * mean - 8 * prefix_flops(2))


@quick
def test_a_pruned_trial_costs_its_share_of_the_videos_and_naively_all_of_them(tmp_path: Path) -> None:
    one = Configuration.from_method(AdaTP(p=0.6))
    with open_store(tmp_path / "t.db", STUDY) as store:
        evaluator = FakeEvaluator(STUDY)
        answer(store, evaluator, None, range(len(PLANNER.questions)))
        baseline = cost(store)
        search = store.search(0.5, 0, "budget", 3)
        ratio = PLANNER.cost(one.build()).compute["tune"].flops_ratio
        store.propose(search, 0, one, ratio)
        answer(store, evaluator, one, TUNE[:6])
        unfinished = cost(store)
        store.record({}, pruned=(0, Pruned(by=9, videos=2)))
        found = cost(store)
    assert (unfinished.spared, unfinished.wanted, unfinished.trials, unfinished.pruned) == (0, 0, 0, 0)
    assert (found.spared, found.wanted, found.trials, found.pruned) == (6, 12, 0, 1)
    assert found.spared_share == 0.5
    plans = [one.build().plan(PLANNER.questions[q].layout, SHAPE.layers) for q in TUNE]
    own = [
        plan_flops(plan, PLANNER.questions[q].layout, SHAPE)
        - 2 * layer_flops(SHAPE, PLANNER.questions[q].layout.tokens)
        + 2 * chunk_flops(SHAPE, PLANNER.questions[q].layout.text_after, before(PLANNER.questions[q].layout))
        for q, plan in zip(TUNE, plans, strict=True)
    ]
    assert found.spent - baseline.spent == pytest.approx(6 * sum(own) / 12 + 8 * prefix_flops(2))
    asked = sum(
        plan_flops(plan, PLANNER.questions[q].layout, SHAPE) for q, plan in zip(TUNE, plans, strict=True)
    )
    assert found.naive_language - baseline.naive_language == pytest.approx(asked)


def before(layout: Layout) -> int:
    return layout.tokens - layout.text_after


def answer(store: Store, evaluator: FakeEvaluator, one: Configuration | None, questions: Any) -> None:
    method = None if one is None else one.build()
    fingerprints = PLANNER.fingerprints(method)
    ids = [PLANNER.questions[q].id for q in questions]
    said = evaluator.answer(None if one is None else one.as_dict(), ids, {})
    pairs = {
        (answer["question"], fingerprints[q]): RecordedAnswer.from_dict(answer)
        for q, answer in zip(questions, said, strict=True)
    }
    store.record(pairs)


@quick
def test_prefixes_cost_as_often_as_they_were_built(store: Store) -> None:
    once, often = cost(store, prefixes=16), cost(store, prefixes=16 + 5)
    assert once == cost(store)
    assert often.spent - once.spent == pytest.approx(5 * prefix_flops(2))
    # Counted by a version that did not count all of them: each video's at least.
    assert cost(store, prefixes=3) == once


@quick
def test_the_noise_floor_is_a_second_baseline_without_its_encoding(store: Store) -> None:
    again = sum(question_flops(layout, ()) for layout in LAYOUTS.values()) + 8 * prefix_flops(12)
    quiet, measured = cost(store), cost(store, noise=Noise(len(LAYOUTS), 8, 0, 0.0, 0.0))
    assert measured.spent - quiet.spent == pytest.approx(again)
    assert measured.spent_language - quiet.spent_language == pytest.approx(again)


@quick
def test_a_method_measured_beside_is_counted_at_its_own_layers(tmp_path: Path) -> None:
    for method in (FastV(keep_ratio=0.5), FewerFrames(keep_ratio=0.5)):
        with open_store(tmp_path / f"{method.name}.db", STUDY) as store:
            measured = [Configuration.from_method(method)]
            InProcessExecutor(FakeEvaluator(STUDY)).run(AdHocLoop(STUDY, store, PLANNER, measure=measured))
            found = cost(store, PLANNER)
            expected = sum(question_flops(layout, ()) for layout in LAYOUTS.values())
            expected += 8 * prefix_flops(12) + 8 * prefix_flops(2)
            for question in PLANNER.questions:
                if question.split == "held_out":
                    layout = question.layout
                    plan = method.plan(layout, SHAPE.layers)
                    stored = plan.layers[0]
                    expected += plan_flops(plan, layout, SHAPE) - stored * layer_flops(SHAPE, layout.tokens)
                    expected += stored * chunk_flops(SHAPE, layout.text_after, before(layout))
            assert found.spent_language == pytest.approx(expected, rel=1e-9)


@quick
def test_a_shape_without_a_vision_tower_is_refused() -> None:
    planner = Planner(PLANNER.questions, replace(SHAPE, vision=None), BASE)
    with pytest.raises(ValueError, match="vision tower"):
        study_cost(planner, (), {}, answers=0, shared=0)


@quick
def test_the_7b_plan_of_a_search_costs_less_where_prefixes_are_held_and_trials_pruned(store: Store) -> None:
    big = at_7b(PLANNER)
    trials, measured = planned(store.trials(), store.measured(), big)
    held = planned_cost(trials, measured, big, all_held=True)
    visited = planned_cost(trials, measured, big)
    layer = layer_flops(LLAVA_ONEVISION_7B, before(big.questions[0].layout))
    # Each trial visits the 4 tune videos, each measurement the 4 held-out ones; 8 prefixes are built anyway.
    visits = 4 * (len(trials) + len(measured)) - 8
    depth = pruning_layers(LLAVA_ONEVISION_7B.layers)[0]
    assert visited.spent - held.spent == pytest.approx(visits * depth * layer)
    pruned = [replace(trial, outcome=None, pruned=Pruned(0, 2)) for trial in trials]
    assert planned_cost(pruned, measured, big).spent < visited.spent
    assert planned_cost(pruned, measured, big).spared_share == 0.5


@quick
def test_the_7b_plan_keeps_the_studys_segments_and_boosts() -> None:
    big, method = at_7b(PLANNER), AdaTP(tau_t=0.3)
    for before, after in zip(PLANNER.questions, big.questions, strict=True):
        small, large = (method.plan(question.layout, 28) for question in (before, after))
        assert after.layout.visual == 32 * 196
        assert large.boosted == small.boosted
        frames = [
            [tokens // question.layout.cells for tokens in plan.groups]
            for plan, question in ((small, before), (large, after))
        ]
        assert frames[1] == [2 * count for count in frames[0]]
    ratio = PLANNER.binding_ratio(AdaTP(p=0.7))
    [found] = solved([(Configuration.from_method(AdaTP(p=0.7)), ratio)], big)
    assert ratio - 0.001 < big.binding_ratio(found.build()) <= ratio


@quick
def test_the_drivers_time_is_taken_without_a_model(store: Store, tmp_path: Path) -> None:
    record = store.find(STUDY.name)
    assert record is not None
    record = replace(record, shape=asdict(SHAPE))
    spent = driver_time(STUDY, record, f"sqlite:///{tmp_path / 'driver.db'}", budget=0.35, trials=3)
    assert len(spent) >= 3
    assert all(item.cpu > 0 and 0 < item.wall < 60 for item in spent)
    with Store.open(f"sqlite:///{tmp_path / 'driver.db'}") as made:
        assert made.find(STUDY.name)
        assert made.count_answers() > len(LAYOUTS)
