"""A sensitivity study in three sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sensitivities import make_curve, make_sensitivity, measured
from tuner.sensitivity.in_short import in_short
from tuner.sensitivity.results import Alternative
from tuner.statistics.values import Interval

pytestmark = pytest.mark.quick


def test_the_knob_that_matters_most_comes_first_with_its_safe_range():
    curve = make_curve("p", steep=2.0)
    curve = replace(curve, safe=Interval(0.6, 0.9), within_budget=Interval(0.2, 0.65))
    said = in_short(make_sensitivity(curves=(make_curve("tau_t", steep=0.1), curve), outputs=()))
    assert said[0].startswith("p matters most: moved alone, it changes accuracy by up to -")
    assert "safe from 0.6 to 0.65 (chosen: 0.62)" in said[0]
    unsafe = replace(curve, safe=None)
    assert "No range of it is shown to be safe." in in_short(make_sensitivity(curves=(unsafe,)))[0]


def test_a_better_choice_is_named_where_chance_is_excluded():
    better = Alternative("drop", 0.7, 0.29, measured(0.036, 0.02), 0.975, searched=False)
    found = make_sensitivity(alternatives=(better,))
    assert any(line.startswith("deduplicate drop may be better than") for line in in_short(found))
    unsure = replace(better, difference=measured(0.036, 0.05))
    assert not any("deduplicate" in line for line in in_short(replace(found, alternatives=(unsure,))))


def test_there_are_at_most_three_sentences_and_flat_knobs_are_said_to_be_flat():
    flat = make_curve("tau_s", steep=0.0)
    said = in_short(make_sensitivity(curves=(make_curve("p", steep=2.0), flat), outputs=(), detectable=0.019))
    assert said[1] == (
        "tau_s makes no detectable difference over its whole range (less than 1.9 points of accuracy)."
    )
    assert len(in_short(make_sensitivity())) <= 3
    nothing = in_short(make_sensitivity(curves=(flat,), outputs=(), detectable=0.019))
    assert nothing == ("No knob changes accuracy by more than can be detected (1.9 points).",)
