"""The demo's own videos and model, killed at random moments: it must end as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.soak

DEMO = Path(__file__).parents[2] / "studies" / "demo"
VIDEOS = 20
KILLS = 4


def small_study(folder: Path) -> Path:
    """The demo with its first videos only."""
    study = folder / "small"
    (study / "videos").mkdir(parents=True)
    names = sorted(path.name for path in (DEMO / "videos").glob("*.mp4"))[:VIDEOS]
    for name in names:
        shutil.copy(DEMO / "videos" / name, study / "videos")
    for name in ("model", "siglip"):
        (study / name).symlink_to(DEMO / name)
    lines = (DEMO / "questions.jsonl").read_text().splitlines(keepends=True)
    (study / "questions.jsonl").write_text("".join(x for x in lines if json.loads(x)["video"] in names))
    (study / "study.yaml").write_text(
        (DEMO / "study.yaml").read_text().replace("name: demo\n", "name: small\n")
    )
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = "run --study ./small --budget 0.3 --trials 40 --workers 1".split()
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tuner.cli.main", *command],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def records(folder: Path) -> tuple[list[Any], list[Any]]:
    """Trials and answers, without what may differ: row ids, dates and seconds."""
    with sqlite3.connect(folder / ".tuner" / "small" / "tuner.db") as database:
        trials = database.execute(
            "select number, tau_s, tau_t, alpha_boost, gamma_cap, p, accuracy, flops_ratio, regressions, "
            "gained, logprob_change from trial order by number"
        ).fetchall()
        answers = database.execute(
            "select question_id, fingerprint, text, option, option_logprobs, kept from answer "
            "order by question_id, fingerprint"
        ).fetchall()
    return trials, answers


def test_killed_at_random_moments_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    calm, disturbed = small_study(tmp_path / "calm"), small_study(tmp_path / "disturbed")
    assert start(calm).wait() == 0
    seconds = random.Random(0)
    killed = 0
    while True:
        process = start(disturbed)
        if killed == KILLS:
            assert process.wait() == 0
            break
        try:
            process.wait(timeout=seconds.uniform(6, 12))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        killed += 1
    assert records(disturbed) == records(calm)
