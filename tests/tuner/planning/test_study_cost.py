"""What a study costs, against a count one answer at a time, against its plan, and against a real runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete

from pipeline.flops import LLAVA_ONEVISION_7B, chunk_flops, layer_flops, plan_flops, unpruned_flops
from pipeline.layout import Layout
from pipeline.methods import AdaTP, OneShot
from pipeline.plan import pruning_layers
from tests.benchmarks.study_cost import at_7b, driver_time, solved
from tests.tuner.fakes import BASE, SHAPE, FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.evaluation.ad_hoc_loop import AdHocLoop
from tuner.executors.in_process import InProcessExecutor
from tuner.planning.planner import Planner
from tuner.planning.study_cost import Workers, planned_cost, study_cost
from tuner.records.schema import NoiseRow
from tuner.records.store import Store
from tuner.records.values import Pruned, RecordedAnswer, StoredQuestion
from tuner.statistics.values import Noise
from tuner.study.values import Configuration

STUDY = make_study()
PLANNER = make_planner(STUDY)
# With a text tower, which the fakes leave out.
VISION = replace(SHAPE.vision, text_layers=2, text_width=64, text_mlp_width=128, text_tokens=8, embedding=64)
WITH_TEXT = Planner(PLANNER.questions, replace(SHAPE, vision=VISION), BASE)
LAYOUTS = {one.id: one.layout for one in PLANNER.questions}
TUNE = [index for index, one in enumerate(PLANNER.questions) if one.split == "tune"]

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
        connection.execute(delete(NoiseRow))


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
                flops += SHAPE.hidden**2 + tokens * SHAPE.hidden
            tokens = left
        if layer < pruned_at[0]:
            flops += chunk_flops(SHAPE, layout.text_after, layout.tokens - layout.text_after)
        else:
            flops += layer_flops(SHAPE, tokens)
    return flops


@quick
def test_answers_are_counted_from_the_tokens_kept_and_prefixes_once_per_video(store: Store) -> None:
    stored = store.stored_answers()
    assert {bool(one.kept) for one in stored} == {True, False}
    expected = sum(question_flops(LAYOUTS[one.question], one.kept) for one in stored)
    # The baseline's of all 8 videos, and those before the first pruning: tune videos and held-out ones.
    expected += 8 * prefix_flops(12) + 8 * prefix_flops(2)
    found = study_cost(store, WITH_TEXT)
    assert found.spent_language == expected
    frames, questions = 8 * 16, len(PLANNER.questions)
    encoding = frames * (VISION.frame(SHAPE.hidden) + VISION.frame_embedding())
    assert found.spent - expected == encoding + questions * VISION.text_embedding()
    assert found.seconds == pytest.approx(0.001 * len(stored))
    assert found.answers == len(stored) == store.count_answers()
    assert (found.trials, found.stopped, found.raced) == (6, 0, 0)


@quick
def test_a_pass_is_the_unpruned_model_asked_once_with_each_video_encoded_once(store: Store) -> None:
    found = study_cost(store, WITH_TEXT)
    assert found.pass_language == sum(unpruned_flops(layout, SHAPE) for layout in LAYOUTS.values())
    assert found.pass_flops - found.pass_language == 8 * 16 * VISION.frame(SHAPE.hidden)
    assert found.passes == found.spent / found.pass_flops
    # One question in a pass of its own costs more than from its video's prefix.
    assert study_cost(store, WITH_TEXT).naive_passes > 2 * found.passes > 0


@quick
def test_naively_every_question_encodes_its_video_and_prefills_in_one_pass(store: Store) -> None:
    found = study_cost(store, WITH_TEXT)
    language = found.pass_language  # the baseline
    seen = len(LAYOUTS) * 16 * VISION.frame(SHAPE.hidden)
    pruned = 16 * (VISION.frame(SHAPE.hidden) + VISION.frame_embedding()) + VISION.text_embedding()
    asked = [(one.configuration, "tune") for one in store.trials()]
    asked += [(one, "held_out") for one in store.measured()]
    for configuration, split in asked:
        method = configuration.build()
        for question in PLANNER.questions:
            if question.split == split:
                plan = method.plan(question.layout, SHAPE.layers)
                language += plan_flops(plan, question.layout, SHAPE)
                seen += pruned
    assert found.naive_language == language
    assert found.naive == language + seen


@quick
def test_a_study_costs_what_its_plans_say(store: Store) -> None:
    """The order of a run and that of a plan differ; where all prefixes fit, that changes nothing."""
    planned = planned_cost(
        [one.configuration for one in store.trials()], WITH_TEXT, measured=store.measured()
    )
    assert planned == replace(study_cost(store, WITH_TEXT), seconds=None)


@quick
def test_answers_found_through_equal_plans_cost_nothing(store: Store) -> None:
    once = [Configuration.from_method(AdaTP(p=0.6))]
    again = [*once, Configuration.from_method(AdaTP(p=0.6, gamma_cap=0.949999))]
    everything = Configuration.from_method(AdaTP(p=1.0))
    single, double = planned_cost(once, PLANNER), planned_cost([*again, everything], PLANNER)
    assert double.spent == single.spent
    assert (single.shared, double.shared, double.wanted) == (0, 24, 36)
    assert double.shared_share == 2 / 3
    assert double.naive > single.naive


@quick
def test_of_a_stopped_trial_what_it_asked_is_counted_and_naively_all_of_it(tmp_path: Path) -> None:
    method, whole = AdaTP(p=0.6), {}
    with open_store(tmp_path / "t.db", STUDY) as store:
        evaluator = FakeEvaluator(STUDY)
        answer(store, evaluator, None, range(len(PLANNER.questions)))
        baseline = study_cost(store, PLANNER)
        search = store.search(0.5, 0, "budget", 3)
        for number, p in enumerate((0.6, 0.55, 0.5)):
            one = Configuration.from_method(replace(method, p=p))
            whole[number] = one
            store.propose(search, number, one, PLANNER.fingerprints(one.build()), 0.4)
        answer(store, evaluator, whole[0], TUNE[:6])
        store.record({}, stopped=(0, Pruned(by=9, videos=2)))
        answer(store, evaluator, whole[1], TUNE[:3])  # unfinished: neither complete nor raced away
        found = study_cost(store, PLANNER)
        kept = {(one.question, one.fingerprint): one.kept for one in store.stored_answers()}
        more = [
            question_flops(LAYOUTS[PLANNER.questions[q].id], kept[PLANNER.questions[q].id, fingerprints[q]])
            for fingerprints, some in ((PLANNER.fingerprints(method), 6), (store.trials()[1].fingerprints, 3))
            for q in TUNE[:some]
        ]
    assert found.spent - baseline.spent == sum(more) + 2 * prefix_flops(2)  # both asked about two videos
    assert (found.raced, found.wanted, found.stopped, found.trials) == (6, 12 + 3, 1, 0)
    assert found.raced_share == 6 / 15
    planned = planned_cost([whole[0]], PLANNER).naive - planned_cost([], PLANNER).naive
    assert found.naive - baseline.naive > planned


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
def test_the_share_raced_away_is_asked_by_no_trial() -> None:
    configurations = [Configuration.from_method(AdaTP(p=p)) for p in (0.5, 0.55, 0.6)]
    measured = configurations[:1]
    whole = planned_cost(configurations, PLANNER, measured=measured)
    half = planned_cost(configurations, PLANNER, measured=measured, raced=0.5)
    none = planned_cost([], PLANNER, measured=measured)
    assert (half.wanted, half.raced, half.shared) == (36, 18, 0)
    assert half.answers == whole.answers - 18
    assert half.naive == whole.naive
    assert none.spent < half.spent < whole.spent
    # Of equally long videos two of four were asked about; their prefixes are the ones not built either.
    assert (half.spent - none.spent) / (whole.spent - none.spent) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\)"):
        planned_cost(configurations, PLANNER, raced=1.0)


@quick
def test_prefixes_that_do_not_fit_are_built_for_every_trial() -> None:
    """Videos come in turn, so a store that is short of one prefix has lost each when it is wanted again."""
    configurations = [Configuration.from_method(AdaTP(p=p)) for p in (0.5, 0.55, 0.6)]

    def cost(videos: float, **options: Any) -> int:
        return planned_cost(
            configurations, PLANNER, workers=Workers(prefix_bytes=int(videos * one_prefix), **options)
        ).spent_language

    layout = PLANNER.questions[0].layout
    # Two layers' keys and values, hidden states, cosine and sine of one head, 4 bytes each.
    one_prefix = (layout.tokens - layout.text_after) * 4 * (2 * 2 * SHAPE.kv_width + SHAPE.hidden + 2 * 40)
    fits, short = cost(4), cost(3.99)
    assert fits == cost(100)
    assert short - fits == 2 * 4 * prefix_flops(2)
    assert cost(0) == short  # one is held whatever its size
    # Each of two workers may build everything; not more often than it is wanted.
    assert cost(100, count=2) - fits == 4 * prefix_flops(2)
    assert cost(100, count=3) == cost(100, count=9) == cost(0, count=2) == short
    assert cost(2, value_bytes=2) == fits


@quick
def test_the_noise_floor_is_a_second_baseline_without_its_encoding(store: Store) -> None:
    before = study_cost(store, PLANNER)
    store.record_noise(Noise(len(LAYOUTS), 8, 0, 0.0, 0.0))
    after = study_cost(store, PLANNER)
    again = sum(question_flops(layout, ()) for layout in LAYOUTS.values()) + 8 * prefix_flops(12)
    assert after.spent - before.spent == after.spent_language - before.spent_language == again


@quick
def test_an_answer_that_no_record_explains_is_counted_as_adatps(store: Store) -> None:
    before, configuration = study_cost(store, PLANNER), Configuration.from_method(AdaTP(p=0.77))
    answer(store, FakeEvaluator(STUDY), configuration, TUNE[:1])
    last = store.stored_answers()[-1]
    after = study_cost(store, PLANNER)
    assert after.spent - before.spent == question_flops(LAYOUTS[last.question], last.kept)
    assert replace(after, spent=0, spent_language=0, answers=0, seconds=0) == replace(
        before, spent=0, spent_language=0, answers=0, seconds=0
    )


@quick
def test_another_methods_answers_are_counted_at_its_own_layers() -> None:
    method = OneShot(keep_ratio=0.5)
    one, none = (planned_cost([], PLANNER, measured=m) for m in ([Configuration.from_method(method)], []))
    held_out = [question for question in PLANNER.questions if question.split == "held_out"]
    expected = 4 * prefix_flops(2)
    for question in held_out:
        layout = question.layout
        expected += plan_flops(method.plan(layout, SHAPE.layers), layout, SHAPE)
        stored, after = layout.tokens - layout.text_after, layout.text_after
        expected += 2 * (chunk_flops(SHAPE, after, stored) - layer_flops(SHAPE, layout.tokens))
    assert one.spent - none.spent == expected


@quick
def test_a_method_measured_beside_is_counted_from_its_records(tmp_path: Path) -> None:
    measured = [Configuration.from_method(OneShot(keep_ratio=0.5))]
    with open_store(tmp_path / "t.db", STUDY) as store:
        InProcessExecutor(FakeEvaluator(STUDY)).run(AdHocLoop(STUDY, store, PLANNER, measure=measured))
        assert replace(study_cost(store, PLANNER), seconds=None) == planned_cost(
            [], PLANNER, measured=measured
        )


@quick
def test_a_large_study_is_summed_beyond_64_bits() -> None:
    layout = Layout(2048, 196, 1, 6, 14, np.full(2047, 0.5), np.linspace(0, 1, 2048))
    planner = Planner([StoredQuestion("q", "v", "tune", layout)], LLAVA_ONEVISION_7B, BASE)
    few, many = (
        planned_cost([Configuration.from_method(AdaTP(tau_s=-1.0, p=0.99))] * n, planner) for n in (1, 1001)
    )
    one = few.naive - planned_cost([], planner).naive
    assert many.naive == few.naive + 1000 * one > 2**63


@quick
def test_a_shape_without_a_vision_tower_is_refused() -> None:
    planner = Planner(PLANNER.questions, replace(SHAPE, vision=None), BASE)
    with pytest.raises(ValueError, match="vision tower"):
        planned_cost([], planner)


@quick
def test_the_7b_plan_keeps_the_studys_segments_and_boosts() -> None:
    big, method = at_7b(PLANNER), AdaTP(tau_t=0.3)
    for before, after in zip(PLANNER.questions, big.questions, strict=True):
        small, large = (method.plan(one.layout, 28) for one in (before, after))
        assert after.layout.visual == 32 * 196
        assert large.boosted == small.boosted
        frames = [
            [tokens // one.layout.cells for tokens in plan.groups]
            for plan, one in ((small, before), (large, after))
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
    assert all(one.cpu > 0 and 0 < one.wall < 60 for one in spent)
    with Store.open(f"sqlite:///{tmp_path / 'driver.db'}") as made:
        assert made.find(STUDY.name)
        assert study_cost(made, PLANNER).answers > len(LAYOUTS)


def test_prefixes_are_held_and_sized_as_the_runtime_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.runtime as runtime_module
    from pipeline.question import Question
    from pipeline.runtime import Runtime
    from tests.checkpoints import scenes, write_checkpoints
    from tuner.records.values import StoredAnswer

    assert Workers().prefix_bytes == runtime_module.PREFIX_BYTES
    saved = write_checkpoints(tmp_path)
    runtime = Runtime.load(
        str(saved.model), text_encoder=str(saved.siglip), frames=4, scoring="letter", device="cpu"
    )
    built, sizes, builds = [], {}, []
    build = runtime_module.build_prefix

    def counted(family: Any, embeddings: Any, layers: int) -> Any:
        prefix = build(family, embeddings, layers)
        built.append(layers)
        sizes[layers] = prefix.nbytes
        return prefix

    monkeypatch.setattr(runtime_module, "build_prefix", counted)
    clips = [runtime.encode_frames(scenes(4, seed=seed), np.arange(4) / 2) for seed in range(3)]
    question = Question("q", "what color is the ring?", ("red", "blue"))
    layouts = [runtime.layout(clip, question) for clip in clips]
    planner = Planner(
        [StoredQuestion(f"q{i}", f"v{i}", "tune", layout) for i, layout in enumerate(layouts)],
        runtime.shape,
        BASE,
    )
    asked: list[tuple[int, AdaTP | None]] = [
        *((video, None) for video in range(3)),
        *((video, AdaTP(p=p)) for p in (0.5, 0.6) for video in (0, 1, 1, 2)),
        *((video, AdaTP(p=0.7)) for video in (2, 1, 0, 1)),
    ]
    depth = AdaTP().plan(layouts[0], runtime.shape.layers).layers[0]
    for room in (10**9, 2, 0):  # in prefixes of that depth
        limit = room * sizes.get(depth, 1)
        monkeypatch.setattr(runtime, "_prefixes", runtime_module._PrefixStore(limit))
        built.clear()
        stored = [
            StoredAnswer(f"q{video}", "", runtime.answer(clips[video], question, how).kept, 0.0)
            for video, how in asked
        ]
        count = study_cost._Count(planner, Workers(prefix_bytes=limit))
        expected = sum(count._prefix_flops(0, layers) for layers in built)
        assert count._prefixes(count.recorded(stored, {})) == expected
        builds.append(len(built))
    assert {layers: count._prefix_bytes(0, layers) for layers in sizes} == sizes
    # Three and three; with room for two the second turn's three and the last 0; for one, both last 1's too.
    assert builds == [6, 10, 12]
