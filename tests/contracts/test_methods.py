"""One contract for every pruning method: a new method is tested by standing in METHODS."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.clip import Saliency
from pipeline.flops import flops_ratio
from pipeline.layout import Layout, Layouts
from pipeline.merging import VisualTokens
from pipeline.methods import METHODS, choices, from_dict, knobs, to_dict
from pipeline.question import Question
from pipeline.ranking import stages
from pipeline.runtime import Runtime
from tests.checkpoints import scenes, write_checkpoints

FRAMES, LAYERS = 8, 12
RATIOS = (0.2, 0.35, 0.5, 0.75, 0.9, 1.0)

every_method = pytest.mark.parametrize("method", [METHODS[name]() for name in METHODS], ids=list(METHODS))
OPTIONS = {name: METHODS[name]() for name in METHODS} | {
    f"{name}-{value}": from_dict({"method": name, option: value})
    for name, method in METHODS.items()
    for option, choice in choices(method).items()
    for value in choice.values or (1,)
    if value != choice.default
}
every_option = pytest.mark.parametrize("method", OPTIONS.values(), ids=list(OPTIONS))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory) -> Runtime:
    torch.set_num_threads(1)
    paths = write_checkpoints(tmp_path_factory.mktemp("checkpoints"), layers=LAYERS)
    return Runtime.load(str(paths.model), text_encoder=str(paths.siglip), frames=FRAMES)


@pytest.fixture(scope="module")
def clips(runtime):
    return [
        runtime.encode_frames(scenes(FRAMES, length, seed=length), np.arange(FRAMES)) for length in (1, 3, 8)
    ]


QUESTIONS = (
    Question("one", "what color is the ring on brick?", ("red", "dark blue")),
    Question("two", "what is first?"),
)


def random_layouts(count: int = 25) -> list[Layout]:
    random = np.random.default_rng(0)
    layouts = []
    for _ in range(count):
        frames = int(random.integers(1, 14))
        layouts.append(
            Layout(
                frames=frames,
                cells=int(random.integers(1, 12)),
                trailing=1,
                text_before=3,
                text_after=int(random.integers(1, 20)),
                frame_similarity=random.uniform(0.8, 1, frames - 1),
                frame_relevance=random.uniform(0, 0.2, frames),
            )
        )
    return layouts


def random_tokens(layout: Layout) -> VisualTokens:
    """What a method that merges is given."""
    generator = torch.Generator().manual_seed(layout.visual)
    shape = (layout.frames, layout.cells)
    pooling, received, hidden, keys = (
        torch.rand(*shape, *width, generator=generator) for width in ((), (), (8,), (4,))
    )
    return VisualTokens(hidden, Saliency(pooling, received, keys))


@every_option
def test_planning_is_deterministic_and_survives_plain_data(method):
    layouts = random_layouts()
    again = from_dict(to_dict(method))
    assert again == method
    assert [method.plan(layout, LAYERS) for layout in layouts] == [
        again.plan(layout, LAYERS) for layout in layouts
    ]


@every_option
def test_a_plan_is_made_of_whole_groups_and_never_grows(method):
    for layout in random_layouts():
        for ratio in RATIOS:
            plan = method.with_ratio(ratio).plan(layout, LAYERS)
            assert sum(plan.groups) == layout.visual
            assert len(plan.boosted) == len(plan.groups)
            assert list(plan.layers) == sorted(set(plan.layers))
            assert all(0 <= layer < LAYERS for layer in plan.layers)
            before = np.array(plan.groups)
            for kept in plan.kept:
                assert (np.array(kept) >= 1).all()
                assert (np.array(kept) <= before).all()
                before = np.array(kept)


@every_option
def test_a_larger_ratio_keeps_at_least_as_many_tokens_everywhere_and_costs_no_less(runtime, method):
    layouts = Layouts.of(random_layouts())
    plans = [method.with_ratio(ratio).plans(layouts, LAYERS) for ratio in RATIOS]
    for small, large in pairwise(plans):
        assert (small.kept <= large.kept).all()
    ratios = [flops_ratio(plan, runtime.shape) for plan in plans]
    assert ratios == sorted(ratios)


@every_method
def test_a_ratio_of_one_keeps_everything(method):
    for layout in random_layouts():
        plan = method.with_ratio(1.0).plan(layout, LAYERS)
        assert plan.keeps_everything


@every_method
def test_the_partition_does_not_depend_on_the_ratio(method):
    layouts = Layouts.of(random_layouts())
    first, second = (method.with_ratio(ratio).partition(layouts) for ratio in (0.3, 0.9))
    for name in ("layout", "first_group", "size", "boosted"):
        assert (getattr(first, name) == getattr(second, name)).all()


@every_option
def test_selection_is_pure_sorted_unique_and_of_the_planned_size(method):
    random = np.random.default_rng(1)
    for layout in random_layouts(10):
        plan = method.with_ratio(0.5).plan(layout, LAYERS)
        tokens = torch.arange(layout.visual)
        for j, stage in enumerate(stages(plan, layout, torch.device("cpu"))):
            if plan.total(j) == plan.total(j - 1):
                continue
            scores = torch.from_numpy(random.random(len(tokens))).float()
            if method.merges:
                assert plan.layers == (0,)
                visual = random_tokens(layout)
                held = copy.deepcopy(visual)
                (chosen, hidden), again = (method.merge(stage, visual) for _ in range(2))
                assert chosen.equal(again.kept)
                assert hidden.equal(again.hidden)
                assert hidden.shape == (stage.total, visual.hidden.shape[2])
                assert hidden.isfinite().all()
                assert visual.hidden.equal(held.hidden)
                assert visual.saliency.keys.equal(held.saliency.keys)
            else:
                given = scores if plan.score_rows != "none" else None
                held = (scores.clone(), tokens.clone())
                chosen = method.select(stage, given, tokens, "seed")
                assert chosen.equal(method.select(stage, given, tokens, "seed"))
                assert scores.equal(held[0])
                assert tokens.equal(held[1])
            assert chosen.tolist() == sorted(set(chosen.tolist()))
            tokens = tokens[chosen]
            borders = np.cumsum([0, *plan.groups])
            assert np.histogram(tokens, borders)[0].tolist() == list(plan.kept[j])


@every_option
def test_the_model_keeps_what_was_planned_and_answers_the_same_every_time(runtime, clips, method):
    method = method.with_ratio(0.6)
    for clip in clips:
        for question in QUESTIONS:
            plan = method.plan(runtime.layout(clip, question), LAYERS)
            answer = runtime.answer(clip, question, method)
            assert answer.kept == tuple(plan.total(j) for j in range(len(plan.layers)))
            again = runtime.answer(clip, question, method)
            assert (answer.text, answer.option_logprobs, answer.logprob) == (
                again.text, again.option_logprobs, again.logprob,
            )  # fmt: skip


@every_method
def test_the_model_is_as_before_afterwards(runtime, clips, method):
    question, clip = QUESTIONS[0], clips[1]
    with torch.no_grad():
        before = runtime.model(**runtime.inputs(clip, question)).logits
        pack = runtime.one_pass(clip, question, method.with_ratio(0.4))
        after = runtime.model(**runtime.inputs(clip, question)).logits
    assert pack.kept(0)
    assert not pack.logits(0).equal(before[0, -1])
    assert after.equal(before)
    decoder = runtime.family.language_model
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in [runtime.model, *decoder.modules()]
    )


@every_method
def test_every_field_is_a_knob_or_a_choice_with_its_default(method):
    cls = type(method)
    described = {**knobs(cls), **choices(cls)}
    assert set(described) == set(to_dict(method)) - {"method"}
    assert all(getattr(method, name) == item.default for name, item in described.items())
    assert cls.ratio_field in knobs(cls)
