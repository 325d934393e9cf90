from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.damaged_videos import COUNT, KINDS, failures, judge, table

# One of each kind, and those that showed what had to be mended.
MENDED = [
    161,
    172,
    194,
    200,
    216,
    233,
    364,
    375,
    474,
    502,
    532,
    541,
    548,
    549,
    565,
    568,
    628,
    663,
    694,
    722,
    729,
]
SAMPLE = sorted({*range(len(KINDS)), *MENDED, *range(900, 906)})


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(SAMPLE, id="sample"),
        pytest.param(range(COUNT), id="all", marks=pytest.mark.soak),
    ],
)
def test_sound_videos_are_read_and_others_refused_in_a_sentence(
    numbers: Sequence[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed: it is the judge of what is sound")
    verdicts = judge(numbers, tmp_path)
    if len(numbers) == COUNT:
        with capsys.disabled():
            print(f"\n{table(verdicts)}")  # noqa: T201
    assert not failures(verdicts)
    assert {verdict.kind for verdict in verdicts} == set(KINDS)
    assert sum(verdict.sound for verdict in verdicts) > len(verdicts) / 3
