"""The paper's two failure modes are found where they are planted, and not where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.sensitivity.curves import Compared, Track, curve
from tuner.sensitivity.failures import middle_frames, small_things
from tuner.study.values import QuestionResult

pytestmark = pytest.mark.quick

VIDEOS, PER_VIDEO = 40, 6
WHEN = ("start", "middle", "end")
TAGS = [
    {"when": WHEN[index % 3], "size": ("small", "large")[index % 2]} for index in range(VIDEOS * PER_VIDEO)
]
MIDDLE = np.array([tag["when"] == "middle" for tag in TAGS])
SMALL = np.array([tag["size"] == "small" for tag in TAGS])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture
def split(rng: np.random.Generator) -> Compared:
    videos = tuple(f"v{index // PER_VIDEO}" for index in range(VIDEOS * PER_VIDEO))
    baseline = tuple(
        QuestionResult(str(index), video, "held_out", True, -0.1, "red", 0, None, 0.1)
        for index, video in enumerate(videos)
    )
    return Compared(
        tuple(item.question for item in baseline), videos, baseline, rng.random(len(videos)) < 0.9
    )


def lost(
    answers: np.ndarray, share: float, rng: np.random.Generator, mask: np.ndarray | bool = True
) -> np.ndarray:
    """Some of the answers turn wrong, or right where they are wrong already: flips."""
    return answers & ~(mask & (rng.random(answers.size) < share))


def track(rows: list[np.ndarray], at: int = 0) -> Track:
    values = np.arange(len(rows), dtype=np.float64)
    correct = np.array(rows)
    same = np.array([index == at for index in range(len(rows))])
    return Track(
        "tau_t", True, float(at), at, values, values + 0.5, np.full(len(rows), 0.3), correct, correct,
        np.zeros(correct.shape), same, None,
    )  # fmt: skip


def test_middle_frames_that_lose_more_are_found(split: Compared, rng: np.random.Generator) -> None:
    rows = [split.reference, *(lost(split.reference, share, rng, MIDDLE) for share in (0.05, 0.2, 0.5))]
    found = middle_frames([track(rows)], split, TAGS)
    assert found.found
    assert "tau_t from 3 to 3.5" in found.evidence


def test_losing_everywhere_alike_is_no_failure_of_the_middle(
    split: Compared, rng: np.random.Generator
) -> None:
    rows = [split.reference, *(lost(split.reference, share, rng) for share in np.linspace(0, 0.4, 20))]
    found = middle_frames([track(rows)], split, TAGS)
    assert found.found is False
    assert "No sign" in found.evidence


def test_looking_at_many_values_finds_no_more_by_chance(split: Compared) -> None:
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = [split.reference, *(lost(split.reference, 0.1, rng) for _ in range(30))]
        found += bool(middle_frames([track(rows)], split, TAGS).found)
    assert found <= 5  # 2 are expected at most


def test_small_things_that_deduplication_loses_are_found(split: Compared, rng: np.random.Generator) -> None:
    off = split.reference
    demoted = lost(off, 0.25, rng, SMALL)
    found = small_things({"demote": demoted, "off": off}, split, TAGS, "demote")
    assert found.found
    assert "demote (the reference)" in found.evidence
    alike = small_things({"demote": off, "drop": off, "off": off}, split, TAGS, "demote")
    assert alike.found is False
    assert small_things({"demote": off}, split, TAGS, "demote").found is None


def test_what_is_put_together_for_lack_of_room_is_safe_only_as_a_whole(split: Compared) -> None:
    # One bad step among many harmless ones.
    rows = [split.reference.copy() for _ in range(90)]
    for index, row in enumerate(rows):
        row[index % 2] ^= True
    rows[0] = split.reference
    rows[41] = np.zeros_like(split.reference)
    for most in (1000, 10):
        found = curve(track(rows), split, 0.05, most)
        assert len(found.points) <= most
        assert found.safe is not None
        bad = next(point for point in found.points if point.value <= 41 <= point.until)
        assert not bad.safe
        assert bad.accuracy.value == 0
        assert found.safe.high < 41
