"""The demo's own videos and model, disturbed at random moments: it must end as if nothing had happened.

`ADATP_KILLS` scales the kills, for a short look: `ADATP_KILLS=0.1 pytest -m soak tests/soak/test_kills.py`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.small_demo import small_study
from tests.soak.comparing import recorded
from tuner.evaluation.evaluator import EvaluatorSpec, PipelineEvaluator
from tuner.evaluation.scoring import reference
from tuner.records.store import Store
from tuner.records.values import RecordedAnswer
from tuner.reporting.from_records import make_planner
from tuner.study import load_study
from tuner.study.values import Configuration

pytestmark = pytest.mark.soak

VIDEOS = 20
SCALE = float(os.environ.get("ADATP_KILLS", "1"))
# Fifty in all.
KILLS_ONE_WORKER = math.ceil(25 * SCALE)
KILLS_TWO_WORKERS = math.ceil(25 * SCALE)
TRIALS = 40 if SCALE >= 1 else 8
# Answers in packs differ from single ones by rounding; of log-probabilities, natural logarithms.
ROUNDING = 5e-5


def start(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    command = f"run --study ./small --budget 0.3 --trials {TRIALS}".split()
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tuner.cli.entry", *command, *options],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )


def records(folder: Path) -> tuple[list[Any], list[Any]]:
    return recorded(f"sqlite:///{folder}/.tuner/small/tuner.db", "small")


def front(folder: Path) -> set[int]:
    """Numbers of the trials on the front, as `tuner trials` tells them."""
    listed = subprocess.run(
        [sys.executable, "-m", "tuner.cli.entry", "trials", "--study", "./small", "--json"],
        cwd=folder,
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return {row["number"] for row in json.loads(listed.stdout) if row["on_front"]}


def recompute(folder: Path, *, exact: bool) -> int:
    """Asks the model everything again that the records hold, one question at a time, and returns how many.

    Each answer must be there once, belong to a configuration and equal its recomputation: bit for bit where
    `exact`, else with the same option and log-probabilities within rounding. No complete trial lacks one.
    """
    study = load_study(folder / "small")
    evaluator = EvaluatorSpec.of(study, folder / ".tuner" / "small" / "features")()
    assert isinstance(evaluator, PipelineEvaluator)
    with Store.open(f"sqlite:///{folder}/.tuner/small/tuner.db", create=False) as store:
        planner = make_planner(store.require("small"))
        ids = [question.id for question in planner.questions]
        assert store.quarantined() == {}
        wanted: dict[tuple[str, str], Configuration | None] = {}

        def expect(
            configuration: Configuration | None, fingerprints: tuple[str, ...], split: str, *, complete: bool
        ) -> None:
            pairs = [
                (question.id, fingerprint)
                for question, fingerprint in zip(planner.questions, fingerprints, strict=True)
                if split in (question.split, "both")
            ]
            assert not complete or len(store.answers(pairs)) == len(pairs), f"{configuration} lacks answers"
            wanted.update((pair, configuration) for pair in pairs)

        expect(None, planner.fingerprints(None), "both", complete=True)
        for trial in store.trials():
            assert not trial.unfinished
            fingerprints = planner.fingerprints(trial.configuration.build())
            expect(trial.configuration, fingerprints, "tune", complete=trial.outcome is not None)
        for configuration in store.measured():
            expect(configuration, planner.fingerprints(configuration.build()), "held_out", complete=True)
        stored = store.answers(wanted)
        # None belongs to nothing, and none is there twice.
        assert store.count_answers() == len(stored)
        baseline = store.answers(zip(ids, planner.fingerprints(None), strict=True))
        unpruned = {question: answer for (question, _), answer in baseline.items()}
        for (question, fingerprint), answer in stored.items():
            configuration = wanted[question, fingerprint]
            text = reference(study.question(question), None if configuration is None else unpruned[question])
            (again,) = evaluator.answer(
                None if configuration is None else configuration.as_dict(),
                [question],
                {} if text is None else {question: text},
            )
            check(answer, RecordedAnswer.from_dict(again), exact=exact)
    return len(stored)


def check(stored: RecordedAnswer, again: RecordedAnswer, *, exact: bool) -> None:
    first, second = asdict(stored), asdict(again)
    for values in (first, second):
        del values["seconds"], values["peak_bytes"]
        if not exact:
            del values["option_logprobs"], values["logprob"]
    assert first == second
    if not exact:
        assert stored.logprob == pytest.approx(again.logprob, abs=ROUNDING)
        assert stored.option_logprobs == pytest.approx(again.option_logprobs, abs=ROUNDING)


def ray_workers(driver: int) -> list[psutil.Process]:
    """The processes that load a model or evaluate for this driver, and no others; Ray names them so."""
    try:
        below = psutil.Process(driver).children(recursive=True)
        return [item for item in below if item.cmdline()[:1] and "_Inner." in item.cmdline()[0]]
    except psutil.Error:  # one ended while we looked
        return []


def test_killed_at_random_moments_it_ends_as_if_undisturbed(tmp_path: Path) -> None:
    calm, disturbed = small_study(tmp_path / "calm", VIDEOS), small_study(tmp_path / "disturbed", VIDEOS)
    began = time.monotonic()
    assert start(calm, "--workers", "1").wait() == 0
    took = time.monotonic() - began
    chance = random.Random(0)
    killed = 0
    while killed < KILLS_ONE_WORKER:
        process = start(disturbed, "--workers", "1")
        try:
            # From the first imports on, and late enough to come on in the mean.
            process.wait(timeout=chance.uniform(0.5, 4 + 2.5 * took / KILLS_ONE_WORKER))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # Where it had already ended, the next one ends at once: that is a moment, too.
        killed += 1
    assert start(disturbed, "--workers", "1").wait() == 0
    assert records(disturbed) == records(calm)
    assert front(disturbed) == front(calm)
    assert recompute(disturbed, exact=False) > 100 * TRIALS / 4


def test_with_two_workers_every_answer_is_there_once_and_right(tmp_path: Path) -> None:
    """Whether the driver is killed or one of its workers; asked one by one, so that answers are exact."""
    folder = small_study(tmp_path, VIDEOS)
    chance = random.Random(1)
    options = ("--workers", "2", "--batch", "1")
    drivers_killed = workers_killed = 0
    while drivers_killed + workers_killed < KILLS_TWO_WORKERS:
        # A study is over before all kills: then the next, from its beginning.
        for file in folder.glob(".tuner/*/tuner.db*"):
            file.unlink()
        process = start(folder, *options)
        while drivers_killed + workers_killed < KILLS_TWO_WORKERS:
            try:
                # Ray and its workers need about so long to begin.
                if process.wait(timeout=chance.uniform(10, 40)) == 0:
                    break
                # Workers were killed so often before they began that the run gave up.
                process = start(folder, *options)
            except subprocess.TimeoutExpired:
                pass
            if chance.random() < 0.7:
                # On a busy machine they take longer to begin than the wait was.
                while process.poll() is None and not (workers := ray_workers(process.pid)):
                    time.sleep(0.5)
                if process.poll() is None:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        chance.choice(workers).kill()
                        workers_killed += 1
            else:
                process.kill()
                process.wait()
                drivers_killed += 1
                process = start(folder, *options)
        if process.wait():
            assert start(folder, *options).wait() == 0
        assert recompute(folder, exact=True) > 100 * TRIALS / 4
    # A short look may by chance have killed drivers only.
    assert workers_killed or SCALE < 1
    assert "Traceback" not in (folder / "output.txt").read_text()


@pytest.mark.parametrize("kibibytes", [160, 600])
def test_out_of_disk_it_says_so_and_the_same_command_goes_on(kibibytes: int, tmp_path: Path) -> None:
    """No file may grow beyond this: the records break off among their tables, or in the middle of trials."""
    calm, full = small_study(tmp_path / "calm", VIDEOS), small_study(tmp_path / "full", VIDEOS)

    assert start(calm, "--workers", "1").wait() == 0
    process = start(full, "--workers", "1")
    psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (kibibytes * 1024, psutil.RLIM_INFINITY))
    assert process.wait() == 1
    output = (full / "output.txt").read_text()
    assert "There is no room to write the database" in output
    assert "Traceback" not in output
    assert start(full, "--workers", "1").wait() == 0
    assert records(full) == records(calm)
