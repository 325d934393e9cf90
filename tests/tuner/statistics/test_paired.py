"""Names and order change nothing, edges are honest, tests agree with listing all flips."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest

from tuner.statistics import gaffke, paired
from tuner.statistics.paired import (
    correlation,
    difference,
    mcnemar_p_value,
    non_inferiority,
    provable_drop,
    share,
    sign_flip_p_value,
)

pytestmark = pytest.mark.quick


def _videos(sizes):
    return [f"video{index}" for index, size in enumerate(sizes) for _ in range(size)]


def _simulated_study(rng, videos, accuracy, lost=0.08, won=0.15):
    """Clustered questions: the share of right answers differs between videos, as does what pruning does."""
    sizes = rng.integers(4, 13, videos)
    skill = rng.beta(accuracy * 5.7, (1 - accuracy) * 5.7, videos)  # correlation of 0.15 within a video
    before = [rng.random(size) < item for size, item in zip(sizes, skill, strict=True)]
    loses, wins = rng.beta(lost * 4, (1 - lost) * 4, videos), rng.beta(won * 4, (1 - won) * 4, videos)
    after = [
        np.where(right, rng.random(right.size) >= lose, rng.random(right.size) < win)
        for right, lose, win in zip(before, loses, wins, strict=True)
    ]
    truth = (1 - accuracy) * won - accuracy * lost
    return np.concatenate(before), np.concatenate(after), _videos(sizes), truth


def test_treating_questions_as_independent_gives_a_shorter_interval():
    rng = np.random.default_rng(0)
    skill = rng.random(40) < 0.5
    correct = np.repeat(skill, 10)
    clustered = share(correct, _videos([10] * 40)).interval
    independent = share(correct, [str(index) for index in range(400)]).interval
    assert clustered.high - clustered.low > 2 * (independent.high - independent.low)


def test_the_mean_weighs_questions_not_videos():
    assert share([1, 1, 1, 0], ["a", "a", "a", "b"]).value == 0.75


def test_the_same_answers_give_the_same_interval_whatever_the_order_and_the_names():
    rng = np.random.default_rng(5)
    before, after, names, _ = _simulated_study(rng, 30, 0.8)
    order = rng.permutation(len(names))
    renamed = [f"other-{names[index][::-1]}" for index in order]
    assert difference(after, before, names) == difference(after[order], before[order], renamed)


@pytest.mark.parametrize("value", [0, 1])
def test_a_part_without_variation_still_has_an_honest_interval(value):
    interval = share(np.full(200, value), _videos([10] * 20)).interval
    assert interval.low <= value <= interval.high
    assert 0.01 < interval.high - interval.low < 0.2


def test_no_flipped_answer_is_no_proof_of_no_difference():
    measured = difference(np.ones(400), np.ones(400), _videos([8] * 50))
    assert measured.value == 0.0
    assert measured.interval.low < 0 < measured.interval.high


def test_intervals_stay_within_what_is_possible():
    correct = np.ones(40)
    correct[0] = 0
    interval = share(correct, _videos([10] * 4)).interval
    assert interval.low >= 0
    assert interval.high <= 1


def test_one_video_has_no_interval():
    assert share([1, 0], ["a", "a"]).interval is None


def test_a_higher_level_gives_a_longer_interval():
    before, _, names, _ = _simulated_study(np.random.default_rng(1), 30, 0.8)
    usual, wide = share(before, names).interval, share(before, names, level=0.99).interval
    assert wide.low < usual.low
    assert wide.high > usual.high


@pytest.mark.parametrize(
    ("values", "videos", "message"),
    [
        ([], [], "At least one question"),
        ([1, 0], ["a"], "needs its video"),
        ([1, float("nan")], ["a", "b"], "0 or 1"),
        ([1, 0.5], ["a", "b"], "0 or 1"),
    ],
)
def test_senseless_input_is_refused(values, videos, message):
    with pytest.raises(ValueError, match=message):
        share(values, videos)


def test_memory_stays_bounded_with_many_studies(monkeypatch):
    rng = np.random.default_rng(2)
    lost = rng.binomial(8, 0.1, (30, 40)).astype(float)
    whole = gaffke.upper_mean(lost, np.full(40, 8.0), 0.05)
    monkeypatch.setattr(gaffke, "_BLOCK", 1)
    assert gaffke.upper_mean(lost, np.full(40, 8.0), 0.05) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("videos", [1, 2, 15, 80, 160])
@pytest.mark.parametrize("level", [0.05, 0.0005])
def test_with_nothing_lost_the_bound_is_the_exact_one(videos, level):
    bound = gaffke.upper_mean(np.zeros((1, videos)), np.full(videos, 8.0), level)
    assert bound[0] == pytest.approx(1 - level ** (1 / videos), abs=3e-6)


def test_where_everything_is_lost_nothing_is_bounded():
    eight = np.full(5, 8.0)
    assert gaffke.upper_mean(np.stack([eight, eight - [0, 0, 0, 0, 8]]), eight, 0.05)[0] == 1


@pytest.mark.parametrize("sizes", [[8] * 30, list(range(1, 31))])
def test_the_integral_agrees_with_drawing_the_weights(sizes):
    """As the definition says: Dirichlet weights, and one video more that loses everything."""
    rng = np.random.default_rng(9)
    questions = np.array(sizes, dtype=float)
    change = rng.integers(-1, 2, 30) * (rng.random(30) < 0.4) + 0.0
    weights = rng.exponential(size=(200_000, 31))
    totals = np.append(change, questions.max())
    drawn = (weights @ totals) / (weights @ np.append(questions, questions.max()))
    for level in (0.05, 0.01):
        bound = gaffke.upper_mean(change[None], questions, level)[0]
        assert np.mean(drawn > bound) == pytest.approx(level, abs=4 * (level / 200_000) ** 0.5)


def test_sign_flips_agree_with_listing_all_of_them():
    after, before = np.array([0, 0, 0, 1, 1, 0, 0, 1.0]), np.array([1, 1, 1, 1, 0, 1, 0, 0.0])
    names = ["a", "a", "b", "b", "c", "d", "e", "f"]
    change = np.array([-2, -1, 1, -1, 1])  # a, b, c, d and f; e does not differ
    flipped = [abs(change @ np.array(signs)) for signs in product([-1, 1], repeat=5)]
    exact = np.mean(np.array(flipped) >= abs(change.sum()))
    assert sign_flip_p_value(after, before, names) == pytest.approx(exact)


@pytest.mark.parametrize(("alternative", "expected"), [("two-sided", 1.0), ("less", 0.5), ("greater", 1.0)])
def test_one_video_that_differs_proves_nothing(alternative, expected):
    assert sign_flip_p_value([0, 1], [1, 1], ["a", "b"], alternative=alternative) == expected


def test_no_difference_at_all_has_p_value_one():
    assert sign_flip_p_value([1, 0], [1, 0], ["a", "b"]) == 1.0


def test_sign_flips_reject_a_true_null_as_often_as_they_say():
    rng = np.random.default_rng(11)
    rejected = 0
    for _ in range(150):
        before, after, names, _ = _simulated_study(rng, 30, 0.5, lost=0.1, won=0.1)
        rejected += sign_flip_p_value(after, before, names) < 0.05
    assert rejected / 150 < 0.1


def test_a_clear_loss_is_found():
    before, after, names, _ = _simulated_study(np.random.default_rng(4), 60, 0.9, lost=0.2, won=0.05)
    assert sign_flip_p_value(after, before, names, alternative="less") < 0.001
    assert difference(after, before, names).interval.high < 0


def test_answers_of_different_questions_are_not_compared():
    with pytest.raises(ValueError, match="in pairs"):
        difference([1, 0], [1], ["a", "b"])


def test_the_bound_of_non_inferiority_is_the_lower_end_of_an_interval():
    before, after, names, _ = _simulated_study(np.random.default_rng(6), 40, 0.9)
    measured = difference(after, before, names, level=0.9)
    test = non_inferiority(after, before, names, 0.02, level=0.05)
    assert (test.margin, test.difference, test.level) == (0.02, measured.value, 0.05)
    assert test.bound == pytest.approx(measured.interval.low)


def test_a_margin_is_shown_exactly_from_the_bound_on():
    before, after, names, _ = _simulated_study(np.random.default_rng(6), 40, 0.9)
    bound = non_inferiority(after, before, names, 0.0).bound
    assert bound < 0
    assert non_inferiority(after, before, names, -bound).shown
    assert not non_inferiority(after, before, names, -bound - 1e-9).shown
    assert non_inferiority(after, before, names, -bound, level=0.01).bound < bound


@pytest.mark.parametrize(("margin", "videos"), [(0.02, 149), (0.03, 99), (0.05, 59)])
def test_so_many_videos_show_a_margin_where_nothing_is_lost(margin, videos):
    for count, shown in ((videos, True), (videos - 1, False)):
        same = np.ones(2 * count)
        assert non_inferiority(same, same, _videos([2] * count), margin).shown is shown


def test_how_alike_the_losses_of_a_video_are():
    before, names = np.ones(80), _videos([8] * 10)
    whole = before.copy()
    whole[:8] = 0
    assert correlation(whole, before, names) == pytest.approx(1)
    spread = before.copy()
    spread[::8] = 0  # each video loses one
    assert correlation(spread, before, names) == 0
    assert correlation(before, before, names) is None
    assert correlation([0, 1], [1, 1], ["a", "b"]) is None


def test_one_video_shows_hardly_anything():
    assert non_inferiority([1, 1], [1, 1], ["a", "a"], 0.9).bound == pytest.approx(-0.95)
    assert provable_drop(["a", "a"]) == pytest.approx(0.95)


def test_more_videos_show_a_smaller_drop_and_more_questions_do_not():
    usual = provable_drop(_videos([8] * 40))
    assert provable_drop(_videos([1] * 40)) == pytest.approx(usual)
    assert provable_drop(_videos([8] * 80)) < 0.6 * usual
    assert provable_drop(_videos([8] * 40), level=0.005) > usual
    # The video that might fail could be the one with the most questions.
    assert provable_drop(_videos([1] * 39 + [20])) > usual


@pytest.mark.parametrize(
    ("lost", "gained", "expected"), [(0, 0, 1.0), (5, 0, 2 / 2**5), (1, 3, 10 / 16), (4, 4, 1.0)]
)
def test_mcnemar_is_the_exact_binomial_test_of_the_flips(lost, gained, expected):
    before = [1] * lost + [0] * gained + [1, 0, 1]
    after = [0] * lost + [1] * gained + [1, 0, 1]
    assert mcnemar_p_value(after, before) == pytest.approx(expected)


def test_mcnemar_takes_the_questions_of_one_video_for_independent():
    before, after = np.ones(80), np.ones(80)
    after[:16] = 0  # all within two videos
    assert mcnemar_p_value(after, before) < 0.001
    assert sign_flip_p_value(after, before, _videos([8] * 10)) == 0.5


def test_a_study_of_hundred_videos_takes_less_than_a_second():
    before, after, names, _ = _simulated_study(np.random.default_rng(4), 100, 0.9)
    begin = time.process_time()
    share(before, names), difference(after, before, names), sign_flip_p_value(after, before, names)
    assert time.process_time() - begin < 1.0


def test_many_rows_at_once_have_the_numbers_of_each_alone() -> None:
    rng = np.random.default_rng(3)
    videos = [f"v{index}" for index in rng.integers(0, 12, 80)]
    before = rng.random(80) < 0.85
    # More than are resampled at once.
    rows = np.array([before ^ (rng.random(80) < share) for share in np.linspace(0, 0.2, 70)])
    shares = paired.shares(rows, videos)
    differences = paired.differences(rows, before, videos, level=0.9)
    bounds = paired.lower_bounds(rows, before, videos)
    assert len(shares) == len(differences) == len(bounds) == 70
    for index in (0, 1, 63, 64, 69):
        alone = paired.share(rows[index], videos)
        assert shares[index].value == alone.value
        assert shares[index].interval.low == pytest.approx(alone.interval.low, abs=1e-12)
        assert shares[index].interval.high == pytest.approx(alone.interval.high, abs=1e-12)
        alone = paired.difference(rows[index], before, videos, level=0.9)
        assert differences[index].value == pytest.approx(alone.value, abs=1e-12)
        assert differences[index].interval.low == pytest.approx(alone.interval.low, abs=1e-12)
        bound = paired.non_inferiority(rows[index], before, videos, 0.02).bound
        assert bounds[index] == pytest.approx(bound, abs=1e-12)
    assert paired.differences(rows[:1], before, ["v"] * 80)[0].interval is None
