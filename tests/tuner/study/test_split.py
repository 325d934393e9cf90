from __future__ import annotations

import pytest

from tuner.study import hold_out

NAMES = [f"{number:03d}.mp4" for number in range(40)]
# Computed once; another answer would move videos between the parts of every study there is.
FOR_EVER = ["a.mp4", "e.mp4", "f.mp4", "h.mp4"]


@pytest.mark.parametrize(
    ("videos", "fraction", "expected"),
    [(40, 0.5, 20), (40, 0.1, 4), (2, 0.5, 1), (2, 0.01, 1), (3, 0.99, 2), (7, 0.3, 2)],
)
def test_the_fraction_is_held_out_and_each_part_has_a_video(
    videos: int, fraction: float, expected: int
) -> None:
    held_out = hold_out(NAMES[:videos], fraction, seed=0)
    assert len(held_out) == expected
    assert held_out < set(NAMES[:videos])


def test_the_split_depends_on_names_and_seed_alone() -> None:
    assert hold_out(NAMES, 0.5, 0) == hold_out(list(reversed(NAMES)), 0.5, 0) == hold_out(set(NAMES), 0.5, 0)
    assert hold_out(NAMES, 0.5, 0) != hold_out(NAMES, 0.5, 1)


def test_the_split_is_the_same_for_ever() -> None:
    assert sorted(hold_out([f"{letter}.mp4" for letter in "abcdefgh"], 0.5, 0)) == FOR_EVER


def test_a_larger_fraction_only_adds() -> None:
    assert hold_out(NAMES, 0.25, 3) < hold_out(NAMES, 0.5, 3)


def test_a_new_video_moves_few_others() -> None:
    before, after = hold_out(NAMES, 0.5, 0), hold_out([*NAMES, "new.mp4"], 0.5, 0)
    assert len(before ^ after - {"new.mp4"}) <= 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_outside_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="the held-out fraction lies between 0 and 1, but got"):
        hold_out(NAMES, fraction, 0)


def test_one_video_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="a split needs at least 2 videos, but got 1"):
        hold_out(NAMES[:1], 0.5, 0)
