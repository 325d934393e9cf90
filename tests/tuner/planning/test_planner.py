"""What is planned of serving, and which questions it is measured on, follow from stored layouts alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.flops import pruned_by_question
from pipeline.layout import Layouts
from pipeline.methods import AdaTP
from tests.tuner.fakes import SHAPE, make_planner, make_study

pytestmark = pytest.mark.quick

METHOD = AdaTP(p=0.6)


@pytest.mark.parametrize("size", [1, 3, 5, 7, 101])
def test_measured_questions_are_held_out_and_spread_over_their_flops_from_the_median_on(size: int) -> None:
    planner = make_planner(make_study())
    held_out = [question for question in planner.questions if question.split == "held_out"]
    layouts = Layouts.of([series_.layout for series_ in held_out])
    flops = pruned_by_question(METHOD.plans(layouts, SHAPE.layers), SHAPE)
    by_id = dict(zip([series_.id for series_ in held_out], flops.tolist(), strict=True))
    chosen = [by_id[question.id] for question in planner.spread(METHOD, size)]
    assert chosen[0] == np.quantile(flops, 0.5, method="higher")
    assert len({question.id for question in planner.spread(METHOD, size)}) == len(chosen) == min(size, 12)
    if size >= 5:
        assert min(chosen) <= np.quantile(flops, 0.2)
        assert max(chosen) >= np.quantile(flops, 0.8)
    assert planner.spread(METHOD, size) == planner.spread(METHOD, size)


def test_a_study_without_a_held_out_part_is_measured_on_its_tune_part() -> None:
    planner = make_planner(replace(make_study(), held_out=frozenset()))
    assert {text.split for text in planner.spread(METHOD, 3)} == {"tune"}
    assert planner.serving(METHOD).break_even > 0


def test_serving_is_planned_without_being_measured() -> None:
    serving = make_planner(make_study()).serving(METHOD)
    assert serving.measured is serving.stored_bytes is None
    # Two of twelve layers.
    assert serving.best.prefix == serving.baseline.prefix / 6
    assert serving.best.question > serving.baseline.question
