"""Names and order change nothing, edges are honest, tests agree with listing all flips."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest

from tuner.statistics import paired
from tuner.statistics.paired import (
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
    before = [rng.random(size) < one for size, one in zip(sizes, skill, strict=True)]
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


def test_another_seed_moves_the_interval_a_little_and_the_value_not_at_all():
    before, after, names, _ = _simulated_study(np.random.default_rng(5), 80, 0.9)
    one, other = difference(after, before, names, seed=1), difference(after, before, names, seed=2)
    assert one.value == other.value
    assert one.interval != other.interval
    assert abs(one.interval.low - other.interval.low) < 0.005


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


def test_memory_stays_bounded_with_many_videos(monkeypatch):
    before, after, names, _ = _simulated_study(np.random.default_rng(2), 50, 0.8)
    whole = difference(after, before, names)
    monkeypatch.setattr(paired, "_BLOCK", 50 * 100)
    assert difference(after, before, names) == whole


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


def test_the_bound_of_non_inferiority_lies_a_little_below_the_two_sided_interval():
    before, after, names, _ = _simulated_study(np.random.default_rng(6), 40, 0.9)
    measured = difference(after, before, names, level=0.9)
    test = non_inferiority(after, before, names, 0.02, level=0.05)
    assert (test.margin, test.difference, test.level) == (0.02, measured.value, 0.05)
    assert measured.interval.low - 0.01 < test.bound < measured.interval.low


def test_a_margin_is_shown_exactly_from_the_bound_on():
    before, after, names, _ = _simulated_study(np.random.default_rng(6), 40, 0.9)
    bound = non_inferiority(after, before, names, 0.0).bound
    assert bound < 0
    assert non_inferiority(after, before, names, -bound).shown
    assert not non_inferiority(after, before, names, -bound - 1e-9).shown
    assert non_inferiority(after, before, names, -bound, level=0.01).bound < bound


def test_identical_answers_are_shown_within_two_points_by_eighty_videos_and_not_by_ten():
    for videos, shown in ((80, True), (10, False)):
        same = np.ones(8 * videos)
        assert non_inferiority(same, same, _videos([8] * videos), 0.02, level=0.04).shown is shown


def test_one_video_shows_nothing():
    assert not non_inferiority([1, 1], [1, 1], ["a", "a"], 0.99).shown
    assert provable_drop(["a", "a"]) == float("inf")


def test_more_videos_fewer_flips_and_less_power_prove_a_smaller_drop():
    names = _videos([8] * 40)
    usual = provable_drop(names)
    assert usual == provable_drop(names[::-1])
    assert 0.02 < usual < 0.08
    assert provable_drop(_videos([8] * 160)) < 0.6 * usual
    assert provable_drop(names, flips=0.02) < usual
    assert provable_drop(names, power=0.5) < usual
    assert provable_drop(names, level=0.005) > usual


@pytest.mark.parametrize(
    "wrong", [{"flips": 0.0}, {"flips": 1.5}, {"power": 1.0}, {"power": 0.0}, {"level": 1.0}]
)
def test_a_senseless_question_of_what_can_be_proven_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        provable_drop(_videos([4] * 10), **wrong)


def test_what_a_thousand_videos_can_prove_is_told_in_seconds():
    begin = time.process_time()
    assert provable_drop(_videos([6] * 1000)) < 0.01
    assert time.process_time() - begin < 5


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
    assert paired.lower_bounds(rows, before, ["v"] * 80).tolist() == [-1.0] * 70
    assert paired.differences(rows[:1], before, ["v"] * 80)[0].interval is None
