"""Simulated studies, seeded and without a model: what the statistics promise is what they keep.

The simulation's own standard error is half a point (error rates) or one point (coverage): two of them are
allowed for. `tests.benchmarks.bounds` is the whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests.benchmarks.bounds import MODELS, Cell, shown
from tuner.search.selection import level_of
from tuner.statistics import gaffke

pytestmark = pytest.mark.quick

STUDIES = 2000
SEED = 20260


@dataclass(frozen=True)
class Simulated:
    """Counts by study and video; `truth` is the difference that pruning really makes."""

    right: np.ndarray
    lost: np.ndarray
    gained: np.ndarray
    questions: np.ndarray
    truth: float


def simulate(videos, accuracy, lost, gained, studies=STUDIES, seed=SEED):
    """lost: share of the right answers that become wrong; gained: of the wrong ones that become right."""
    rng = np.random.default_rng([seed, videos, round(1000 * accuracy), round(1000 * lost)])
    shape = (studies, videos)
    questions = rng.integers(4, 13, shape)
    # Correlation between two questions of a video: 0.15 as to the answer, 0.2 as to whether it flips.
    right = rng.binomial(questions, _rates(rng, accuracy, 5.7, shape))
    losing = rng.binomial(right, _rates(rng, lost, 4.0, shape))
    gaining = rng.binomial(questions - right, _rates(rng, gained, 4.0, shape))
    counts = (tensor.astype(float) for tensor in (right, losing, gaining, questions))
    return Simulated(*counts, (1 - accuracy) * gained - accuracy * lost)


def _rates(rng, mean, concentration, shape):
    return rng.beta(mean * concentration, (1 - mean) * concentration, shape)


def _covered(ends, truth):
    low, high = ends
    return float(np.mean((low <= truth) & (truth <= high)))


def _ends(totals, questions, tail=0.025):
    return -gaffke.upper_mean(-totals, questions, tail), gaffke.upper_mean(totals, questions, tail)


@pytest.mark.parametrize("videos", [15, 80])
@pytest.mark.parametrize("correlation", [0.05, 0.9])
@pytest.mark.parametrize("accuracy", [0.65, 0.98])
def test_nominal_95_percent_intervals_cover_an_accuracy_whatever_the_correlation(
    videos, correlation, accuracy
):
    rng = np.random.default_rng([SEED, videos])
    rates = _rates(rng, accuracy, 1 / correlation - 1, (500, videos))
    right, questions = rng.binomial(4, rates).astype(float), np.full((500, videos), 4.0)
    low = 1 - gaffke.upper_mean(questions - right, questions, 0.025)
    assert _covered((low, gaffke.upper_mean(right, questions, 0.025)), accuracy) >= 0.93


@pytest.mark.parametrize("videos", [15, 80])
@pytest.mark.parametrize("model", ["whole videos", "beta-binomial .5", "with gains of 3 points, 1"])
def test_intervals_of_a_difference_cover_whatever_the_correlation(videos, model):
    flips = MODELS[model](np.random.default_rng(videos), (500, videos), 4, 0.05)
    low, high = _ends(flips.gained - flips.lost, flips.questions)
    assert _covered((low, high), -0.05) >= 0.93


def test_a_percentile_interval_would_not_cover():
    """Why the plain bootstrap was not taken: kept as a test so that nobody simplifies it back."""
    found = simulate(15, 0.9, 0.08, 0.15, studies=1000)
    drawn = np.random.default_rng(0).multinomial(15, np.full(15, 1 / 15), 1000).astype(float).T
    shares = (found.right @ drawn) / (found.questions @ drawn)
    assert _covered(np.quantile(shares, [0.025, 0.975], axis=1), 0.9) < 0.92


# The margin: a small part of `tests.benchmarks.bounds`


@pytest.mark.parametrize("videos", [80, 160])
@pytest.mark.parametrize("model", ["whole videos", "beta-binomial .5"])
def test_a_drop_of_just_the_margin_is_taken_for_less_no_more_often_than_the_level_says(videos, model):
    found = shown(Cell("error", model, videos, 8, 0.05, 0.05), studies=STUDIES)
    assert found["Gaffke"] <= 0.06


def test_the_bound_before_this_one_erred_where_whole_videos_fail():
    """Of 80 videos none fails in every fifth study: it saw no loss then."""
    found = shown(Cell("error", "whole videos", 80, 8, 0.02, 0.02), studies=STUDIES)
    assert found["until now"] > 0.15
    assert found["Gaffke"] == 0


def test_what_is_lost_by_nobody_is_shown_by_160_videos_and_not_by_80():
    for videos, power in ((160, 1.0), (80, 0.0)):
        assert shown(Cell("power", "independent", videos, 4, 0.0, 0.02), studies=50)["Gaffke"] == power


@pytest.mark.parametrize("goal", ["budget", "max_drop"])
def test_ten_looks_at_configurations_that_all_lose_just_the_margin_show_one_in_20_studies_at_most(goal):
    """Independent candidates are the worst case. Within a budget each look tests three."""
    videos, margin, error = 150, 0.05, np.zeros(STUDIES, bool)
    rng = np.random.default_rng(SEED)
    for look in range(1, 11):
        for position in range(3 if goal == "budget" else 1):
            flips = MODELS["whole videos"](rng, (STUDIES, videos), 2, margin)
            kinds, counts = gaffke.with_worst(flips.lost, flips.questions)
            error |= gaffke.p_values(kinds, counts, margin) <= level_of(goal, look, position)
    assert 0.005 < error.mean() <= 0.06


# Choosing


def test_the_winner_is_measured_without_bias_where_it_was_not_chosen():
    """40 configurations of nearly the same worth; 40 tune videos choose one, 40 others measure it."""
    rng = np.random.default_rng(SEED)
    studies, trials, videos = 400, 40, 80
    worth = rng.normal(0.88, 0.01, (studies, trials))
    questions = rng.integers(4, 13, (studies, 1, videos))
    difficulty = rng.normal(0.0, 0.06, (studies, 1, videos))
    rates = np.clip(worth[..., None] + difficulty, 0, 1)
    right = rng.binomial(questions, rates)
    # What each configuration would answer of infinitely many questions about such videos.
    truth = rates.mean(axis=-1)
    parts = {}
    for split, which in (("tune", slice(0, 40)), ("held_out", slice(40, 80))):
        parts[split] = right[..., which].sum(axis=-1) / questions[..., which].sum(axis=-1)
    winner = parts["tune"].argmax(axis=1)[:, None]
    truth_of_winner = np.take_along_axis(truth, winner, axis=1)[:, 0]
    error = {
        split: np.take_along_axis(shares, winner, axis=1)[:, 0] - truth_of_winner
        for split, shares in parts.items()
    }
    standard_error = {split: errors.std(ddof=1) / np.sqrt(studies) for split, errors in error.items()}
    assert error["tune"].mean() > 0.01
    assert error["tune"].mean() > 5 * standard_error["tune"]
    assert abs(error["held_out"].mean()) < 3 * standard_error["held_out"]
    assert standard_error["held_out"] < 0.001
