import numpy as np
import pytest

from pipeline.layout import Layout, Layouts
from pipeline.methods import METHODS, AdaTP, FewerFrames
from pipeline.plan import pruning_layers, unpruned_plan

pytestmark = pytest.mark.quick


def random_layout(random: np.random.Generator, frames: int | None = None) -> Layout:
    frames = frames or int(random.integers(1, 20))
    return Layout(
        frames=frames,
        cells=int(random.integers(1, 17)),
        trailing=int(random.integers(0, 2)),
        text_before=int(random.integers(1, 9)),
        text_after=int(random.integers(1, 30)),
        frame_similarity=random.uniform(0.5, 1, frames - 1),
        frame_relevance=random.uniform(-0.1, 0.2, frames),
    )


@pytest.mark.parametrize(
    ("layers", "first", "last"),
    [(28, 2, 16), (24, 2, 12), (32, 2, 20), (12, 2, 7), (23, 2, 13), (14, 2, 8), (3, 2, 2)],
)
def test_pruning_layers_follow_the_depth_of_the_model(layers, first, last):
    assert list(pruning_layers(layers)) == list(range(first, last + 1))


def test_two_layers_are_too_few_to_prune():
    assert not pruning_layers(2)
    layout = random_layout(np.random.default_rng(0))
    assert AdaTP(p=0.5).plan(layout, 2).keeps_everything


def test_tokens_per_layer_drop_at_the_pruning_layers_only():
    layout = Layout(4, 4, 1, 3, 5, np.ones(3), np.zeros(4))
    plan = AdaTP(p=0.5).plan(layout, 12)
    assert plan.kept == ((8,), (4,), (2,), (1,), (1,), (1,))
    assert plan.tokens_per_layer(12, layout) == (25, 25, 17, 13, 11, 10, 10, 10, 10, 10, 10, 10)


def test_unpruned_plan_keeps_everything():
    layout = random_layout(np.random.default_rng(0))
    plan = unpruned_plan(layout)
    assert plan.keeps_everything
    assert plan.tokens_per_layer(3, layout) == (layout.tokens,) * 3


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ratio", [0.3, 0.99, 1.0])
def test_the_keys_of_a_study_are_those_of_its_plans(name, ratio):
    random = np.random.default_rng(7)
    layouts = [random_layout(random, frames) for frames in (1, 8, 8, 16)] * 2
    plans = METHODS[name]().with_ratio(ratio).plans(Layouts.of(layouts), 28)
    expected = tuple(None if plan.keeps_everything else plan.key() for plan in plans.plans())
    assert plans.keys() == expected
    assert ratio < 1 or set(expected) == {None}


@pytest.mark.parametrize("name", METHODS)
def test_planning_a_study_equals_planning_its_questions_one_by_one(name):
    random = np.random.default_rng(1)
    layouts = [random_layout(random) for _ in range(40)]
    method = METHODS[name]().with_ratio(0.6)
    together = method.plans(Layouts.of(layouts), 12).plans()
    assert together == tuple(method.plan(layout, 12) for layout in layouts)


def test_key_tells_plans_apart_by_what_they_keep_not_by_why():
    layout = Layout(4, 4, 1, 3, 5, np.array([0.5, 1.0, 0.5]), np.array([0.0, 0.1, 0.1, 0.2]))
    alike = (
        AdaTP(tau_s=0.9, tau_t=0.3, p=0.5, alpha_boost=1.0),
        AdaTP(tau_s=0.7, tau_t=0.9, p=0.5, alpha_boost=1.0),
    )
    plans = [method.plan(layout, 12) for method in alike]
    assert plans[0].boosted != plans[1].boosted
    assert plans[0].key() == plans[1].key()
    assert AdaTP(tau_s=0.9, p=0.3).plan(layout, 12).key() != plans[0].key()


def test_fewer_frames_plans_whole_frames_for_the_vision_tower_too():
    layout = Layout(10, 4, 1, 3, 5, np.ones(9), np.zeros(10))
    plan = FewerFrames(keep_ratio=0.25).plan(layout, 12)
    assert (plan.layers, plan.kept, plan.frames_encoded) == ((0,), ((12,),), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_similarity": np.ones(2)}, r"frame_similarity has shape \(3,\)"),
        ({"frame_relevance": np.full(4, np.nan)}, "frame_relevance holds finite numbers"),
        ({"frames": 0}, "at least one frame"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(change, message):
    fields = {
        "frames": 4, "cells": 4, "trailing": 1, "text_before": 3, "text_after": 5,
        "frame_similarity": np.ones(3), "frame_relevance": np.zeros(4),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        Layout(**(fields | change))
