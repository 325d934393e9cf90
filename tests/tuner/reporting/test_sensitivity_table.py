"""The end of `tuner sensitivity`: which knob matters, how far each may drift, in one screen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sensitivities import make_sensitivity
from tuner.reporting.sensitivity_table import render
from tuner.sensitivity.in_short import in_short
from tuner.sensitivity.results import Alternative
from tuner.statistics.values import Interval, Measured

pytestmark = pytest.mark.quick

# After these lines come where the file of all numbers, the report and MLflow are.
MOST_LINES = 25 - 3

BETTER = Alternative("drop", 0.62, 0.29, Measured(0.05, Interval(0.02, 0.08)), 0.975, False)


def shown(found, width=80) -> list[str]:
    return [line.plain for line in render(found, width)]


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize(
    "changes",
    [{}, {"alternatives": (BETTER,)}, {"labelled": False, "trial": None}, {"outputs": ()}],
    ids=["all", "another choice is better", "label-free", "no design"],
)
def test_it_is_one_screen(width, changes):
    lines = shown(make_sensitivity(**changes), width)
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= width


def test_three_sentences_come_first_then_a_line_for_each_knob():
    found = make_sensitivity()
    lines = shown(found)
    assert lines[0] == "demo: trial 4 at budget 0.3; how far each knob may drift"
    text = " ".join(" ".join(lines[2 : lines.index("", 2)]).split())
    assert text == " ".join(f"- {item}" for item in in_short(found))
    rows = {line.split()[0]: line.split() for line in lines if line and line[0] not in " -"}
    chosen = found.curves[0]
    assert rows["tau_s"][:5] == [
        *("tau_s", "0.88", f"{chosen.safe.low:.4g}", "to", f"{chosen.safe.high:.4g}"),
    ]
    # An input of the design that is no knob has its share of the variance and nothing else.
    assert rows["compute"] == ["compute", "-", "-", "-", "-", "0.55"]


def test_a_wide_terminal_shows_more():
    found = make_sensitivity()
    assert "PED-" not in " ".join(shown(found, 80))
    assert "PED-" in " ".join(shown(found, 120))


def test_without_a_good_surrogate_no_shares_are_shown_and_it_is_said():
    found = make_sensitivity()
    poor = replace(found.outputs[0], r2=0.3, good=False, more_runs=64, indices=())
    text = " ".join(" ".join(shown(replace(found, outputs=(poor,)))).split())
    assert "variance" not in text.replace("variance of", "")
    assert "nothing can be said about accuracy" in text
    assert "about 64 more runs (--runs 128)" in text


def test_without_held_out_videos_the_warning_is_another():
    text = " ".join(shown(make_sensitivity(split="tune")))
    assert "the curves use the questions that chose the reference" in text
    assert "Held-out videos judge" not in text
