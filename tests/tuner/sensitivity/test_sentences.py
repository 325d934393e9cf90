"""The surrogate's indices in words: explained once, and not given where it is too poor."""

from __future__ import annotations

import pytest

from tests.sensitivities import make_output, make_sensitivity
from tuner.sensitivity.results import Output
from tuner.sensitivity.sentences import sentences
from tuner.statistics.values import Interval
from tuner.statistics.wording import NOTHING_CHOSEN

pytestmark = pytest.mark.quick

POOR = Output("regressions", r2=0.1, good=False, more_runs=64, indices=())


def told(*outputs: Output, **changes: object) -> list[str]:
    """The sentences about the outputs."""
    found = sentences(make_sensitivity(outputs=outputs, design_runs=64, **changes))
    return [text for text in found if "whole search space" in text or text.startswith("The same for")]


def test_what_the_indices_are_of_is_said_once():
    first, second = told(make_output(), make_output("logprob", r2=0.9), design_compute=Interval(0.1, 0.4))
    assert first.startswith("Over the whole search space, share of the variance of accuracy")
    assert "(R2 0.86, 64 runs): " in first
    assert "Compute ranged between 10 % and 40 % of the unpruned FLOPs" in first
    assert first.endswith("shares are at equal compute.")
    assert second.startswith("The same for logprob (R2 0.90): ")
    assert "whole search space" not in second


def test_curves_of_held_out_videos_say_that_they_choose_nothing():
    assert sentences(make_sensitivity())[-1] == NOTHING_CHOSEN
    assert NOTHING_CHOSEN not in sentences(make_sensitivity(split="tune"))


def test_a_poor_surrogate_claims_nothing_and_what_follows_is_said_in_full():
    poor, full = told(POOR, make_output("logprob"))
    assert "nothing can be said about regressions" in poor
    assert "about 64 more runs (--runs 128) would probably be enough" in poor
    assert full.startswith("Over the whole search space")
    assert "share of the variance of logprob" in full


def test_where_p_is_fixed_nothing_is_said_of_compute():
    (only,) = told(make_output(), design_compute=None)
    assert only.startswith("Over the whole search space, share of the variance of accuracy")
    assert "ompute" not in only.replace("compute 0.", "")
