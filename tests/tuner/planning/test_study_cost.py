"""What a study costs, against a count one answer at a time, against its plan, and against a real runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.flops import LLAVA_ONEVISION_7B, chunk_flops, layer_flops, plan_flops, unpruned_flops
from pipeline.layout import Layout
from pipeline.methods import AdaTP, OneShot
from pipeline.plan import pruning_layers
from tests.benchmarks.study_cost import at_7b, driver_time, solved
from tests.tuner.fakes import BASE, SHAPE, FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.evaluation.ad_hoc_loop import AdHocLoop
from tuner.executors.in_process import InProcessExecutor
from tuner.planning import study_cost as study_cost_module
from tuner.planning.planner import Planner
from tuner.planning.study_cost import AnswerFlops, StudyCost, Workers, planned_cost, study_cost
from tuner.records.measurements import ModelUse
from tuner.records.store import Store
from tuner.records.values import Pruned, StoredQuestion
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
    """A search of six trials, run to its end; its noise floor was measured before."""
    with open_store(tmp_path / "t.db", STUDY) as store:
        store.record_noise(Noise(12, 4, 0, 0.0, 0.0))
        InProcessExecutor(FakeEvaluator(STUDY)).run(make_loop(STUDY, store))
        yield store


def cost(store: Store, planner: Planner = PLANNER) -> StudyCost:
    found = study_cost(store, planner)
    assert found is not None
    return found


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


def kept(configuration: Configuration, layout: Layout) -> tuple[int, ...]:
    plan = configuration.build().plan(layout, SHAPE.layers)
    return tuple(plan.total(stage) for stage in range(len(plan.layers)))


@quick
def test_what_is_asked_is_counted_by_its_plan_and_a_prefix_as_often_as_it_is_built(store: Store) -> None:
    unpruned = sum(question_flops(layout, ()) for layout in LAYOUTS.values())
    baseline = store.model_use()["baseline"]
    # A fake worker keeps its prefix for one call, and is asked about two videos at a time.
    assert (baseline.answers, baseline.flops) == (len(LAYOUTS), unpruned + 4 * prefix_flops(12))
    trial = store.trials()[0]
    use = store.trial_use()[trial.number]
    tune = [PLANNER.questions[index].layout for index in TUNE]
    assert use.answers == len(TUNE)
    assert use.flops == sum(
        question_flops(layout, kept(trial.configuration, layout)) for layout in tune
    ) + 2 * prefix_flops(2)
    found = cost(store, WITH_TEXT)
    total = sum(one.flops or 0.0 for one in store.model_use().values())
    assert found.spent_language == total
    frames, questions = 8 * 16, len(PLANNER.questions)
    encoding = frames * (VISION.frame(SHAPE.hidden) + VISION.frame_embedding())
    assert found.spent - found.spent_language == encoding + questions * VISION.text_embedding()
    assert found.answers == store.count_answers()
    assert found.seconds == pytest.approx(0.001 * found.answers)
    assert (found.trials, found.stopped, found.raced) == (6, 0, 0)
    assert found.wanted == 6 * len(TUNE)
    assert found.shared == found.wanted - store.model_use()["trial"].answers


@quick
def test_a_pass_is_the_unpruned_model_asked_once_with_each_video_encoded_once(store: Store) -> None:
    found = cost(store, WITH_TEXT)
    assert found.pass_language == sum(unpruned_flops(layout, SHAPE) for layout in LAYOUTS.values())
    assert found.pass_flops - found.pass_language == 8 * 16 * VISION.frame(SHAPE.hidden)
    assert found.passes == found.spent / found.pass_flops
    # One question in a pass of its own costs more than from its video's prefix.
    assert found.naive_passes > 2 * found.passes > 0


@quick
def test_naively_every_question_encodes_its_video_and_prefills_in_one_pass(store: Store) -> None:
    found = cost(store, WITH_TEXT)
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
    assert found.naive_language == pytest.approx(language, rel=1e-12)
    assert found.naive == pytest.approx(language + seen, rel=1e-12)


@quick
def test_a_study_costs_what_its_plans_say(store: Store) -> None:
    """But for prefixes, which the fake builds for each call and a plan for each video."""
    planned = planned_cost(
        [one.configuration for one in store.trials()], WITH_TEXT, measured=store.measured()
    )
    found = cost(store, WITH_TEXT)
    built = found.spent - planned.spent
    assert built == pytest.approx(-4 * prefix_flops(12), abs=40 * prefix_flops(2))
    same = {"seconds": None, "spent": 0, "spent_language": 0, "naive": 0, "naive_language": 0}
    assert replace(found, **same) == replace(planned, **same)
    assert found.naive == pytest.approx(planned.naive, rel=1e-12)


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
def test_of_a_pruned_trial_what_it_asked_is_counted_and_naively_all_of_it(tmp_path: Path) -> None:
    with open_store(tmp_path / "t.db", STUDY) as store:
        count(store, "baseline", None, None, list(LAYOUTS))
        baseline = cost(store)
        search = store.search(0.5, 0, "budget", 3)
        tune = [PLANNER.questions[index].id for index in TUNE]
        ratio = 0.0
        for number, p in enumerate((0.6, 0.55, 0.5)):
            one = Configuration.from_method(AdaTP(p=p))
            ratio = PLANNER.cost(one.build()).compute["tune"].flops_ratio
            store.propose(search, number, one, PLANNER.fingerprints(one.build()), ratio)
        count(store, "trial", 0, store.trials()[0].configuration, tune[:6])
        store.record({}, stopped=(0, Pruned(by=9, videos=2)))
        # Unfinished: what it was not asked yet is not spared.
        count(store, "trial", 1, store.trials()[1].configuration, tune[:3])
        found = cost(store)
        more = [
            question_flops(LAYOUTS[one], kept(store.trials()[number].configuration, LAYOUTS[one]))
            for number, some in ((0, 6), (1, 3))
            for one in tune[:some]
        ]
    assert found.spent - baseline.spent == sum(more) + 3 * prefix_flops(2)  # of two videos, and of one
    assert (found.raced, found.wanted, found.stopped, found.trials) == (6, 12 + 3, 1, 0)
    assert found.raced_share == 6 / 15
    whole = planned_cost([Configuration.from_method(AdaTP(p=0.6))], PLANNER).naive
    assert found.naive - baseline.naive > whole - planned_cost([], PLANNER).naive


def count(
    store: Store, kind: str, trial: int | None, one: Configuration | None, questions: list[str]
) -> None:
    """As a loop does for a batch that it writes."""
    flops = AnswerFlops(PLANNER).of(one, questions)
    store.count_model_use(kind, trial, ModelUse(len(questions), 0.0, float(flops)))
    store.record({})


@quick
def test_a_study_that_an_older_version_answered_has_no_cost(store: Store) -> None:
    assert study_cost(store, PLANNER) is not None
    store.count_model_use("trial", 0, ModelUse(3, 0.003, None))
    store.record({})
    assert study_cost(store, PLANNER) is None
    # And none in its sums from then on.
    count(store, "trial", 0, store.trials()[0].configuration, [PLANNER.questions[TUNE[0]].id])
    assert store.trial_use()[0].flops is None


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

    def spent(videos: float, **options: Any) -> int:
        return planned_cost(
            configurations, PLANNER, workers=Workers(prefix_bytes=int(videos * one_prefix), **options)
        ).spent_language

    layout = PLANNER.questions[0].layout
    # Two layers' keys and values, hidden states, cosine and sine of one head, 4 bytes each.
    one_prefix = (layout.tokens - layout.text_after) * 4 * (2 * 2 * SHAPE.kv_width + SHAPE.hidden + 2 * 40)
    fits, short = spent(4), spent(3.99)
    assert fits == spent(100)
    assert short - fits == 2 * 4 * prefix_flops(2)
    assert spent(0) == short  # one is held whatever its size
    # Each of two workers may build everything; not more often than it is wanted.
    assert spent(100, count=2) - fits == 4 * prefix_flops(2)
    assert spent(100, count=3) == spent(100, count=9) == spent(0, count=2) == short
    assert spent(2, value_bytes=2) == fits


@quick
def test_the_noise_floor_is_a_second_baseline_without_its_encoding(store: Store) -> None:
    before = cost(store)
    count(store, "noise", None, None, list(LAYOUTS))
    after = cost(store)
    again = sum(question_flops(layout, ()) for layout in LAYOUTS.values()) + 8 * prefix_flops(12)
    assert after.spent - before.spent == after.spent_language - before.spent_language == again
    assert (after.answers, after.seconds) == (before.answers, before.seconds)


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
def test_a_method_measured_beside_is_counted_at_its_own_layers(tmp_path: Path) -> None:
    one = Configuration.from_method(OneShot(keep_ratio=0.5))
    with open_store(tmp_path / "t.db", STUDY) as store:
        InProcessExecutor(FakeEvaluator(STUDY)).run(AdHocLoop(STUDY, store, PLANNER, measure=[one]))
        held_out = [q.id for q in PLANNER.questions if q.split == "held_out"]
        # One call about all four videos.
        assert store.model_use()["held_out"].flops == AnswerFlops(PLANNER).of(one, held_out, built=1)
        planned = planned_cost([], PLANNER, measured=[one])
        assert cost(store).naive == pytest.approx(planned.naive, rel=1e-12)


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
        assert cost(made).answers > len(LAYOUTS)


def test_prefixes_are_held_and_sized_as_the_runtime_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.runtime as runtime_module
    from pipeline.question import Question
    from pipeline.runtime import Runtime
    from tests.checkpoints import scenes, write_checkpoints

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
        count = study_cost_module._Count(planner, Workers(prefix_bytes=limit))
        passes = []
        for video, how in asked:
            runtime.answer(clips[video], question, how)
            passes.append(count.planned(how, np.array([video])))
        expected = sum(count.prefix_flops(0, layers) for layers in built)
        joined = study_cost_module._Passes(*map(np.concatenate, zip(*passes, strict=True)))
        assert count.prefixes(joined) == expected
        builds.append(len(built))
    assert {layers: count._prefix_bytes(0, layers) for layers in sizes} == sizes
    # Three and three; with room for two the second turn's three and the last 0; for one, both last 1's too.
    assert builds == [6, 10, 12]
