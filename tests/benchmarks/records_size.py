"""How long it takes to read a large study's records, by processes of their own.

    python -m tests.benchmarks.records_size                 # 1,000 trials of 5,000 questions on SQLite
    python -m tests.benchmarks.records_size --postgresql postgresql://user@host/name
    python -m tests.benchmarks.records_size --trials 20 --questions 60

Trials, outcomes and answers are made up and written in bulk; the unpruned model's answers, and those of the
configurations that are measured on held-out videos, lie under the fingerprints that a run would give them.
There are as many held-out questions as tune questions, 10 a video. An empty PostgreSQL database is filled
and left that way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np
from sqlalchemy import Connection, Table, select

from pipeline.methods import AdaTP
from tests.tuner.fakes import OPTIONS, begin, make_planner, make_study
from tuner.records.measurements import ModelUse
from tuner.records.schema import answer_table, encoding_table, study_question_table
from tuner.records.store import Store
from tuner.records.values import Pair, RecordedAnswer
from tuner.search.selection import ordered
from tuner.study import Study
from tuner.study.values import Configuration, Outcome

PER_VIDEO = 10
BUDGET = 0.35
LOOKED_UP = 1000

# Milliseconds, seconds, MiB of resident memory at most, seconds.
LOOK_UP_MS, SUMMARY_S, SUMMARY_MIB, TABLE_S = 20.0, 3.0, 500.0, 2.0


def fill(url: str, *, trials: int, questions: int) -> Study:
    """Writes the study: so many complete trials of so many tune questions, all their answers different."""
    rng = np.random.default_rng(0)
    study = make_study(2 * max(2, questions // PER_VIDEO), PER_VIDEO)
    planner = make_planner(study)
    tune, held_out = (
        [question.id for question in planner.questions if question.split == split]
        for split in ("tune", "held_out")
    )
    with Store.open(url) as store:
        begin(store, study)
        search = store.search(BUDGET, 0, "budget", trials)
        for number in range(trials):
            outcome = _outcome(len(tune), rng)
            configuration = Configuration.from_method(AdaTP(p=float(rng.uniform(0.1, 0.4))))
            store.propose(search, number, configuration, outcome.flops_ratio)
            store.count_model_use("trial", number, ModelUse(len(tune), outcome.seconds))
            store.record({}, completed=(number, outcome))
        with store._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA cache_size = -1000000")  # KiB: for the index
            prompts = _prompts(connection)
            encoding = connection.execute(select(encoding_table.c.id)).scalar_one()
            for _ in range(trials):
                _write(connection, encoding, _made_up(rng, [prompts[item] for item in tune]))
        # What is read one by one lies where a run would look for it.
        _record(store, rng, None, [*tune, *held_out], planner.fingerprints(None, [*tune, *held_out]))
        for trial in ordered(store.trials(), BUDGET)[:3]:
            prints = planner.fingerprints(trial.configuration.build(), held_out)
            _record(store, rng, trial.configuration, held_out, prints)
    return study


def _prompts(connection: Connection) -> dict[str, int]:
    query = select(study_question_table.c.name, study_question_table.c.prompt_id)
    return {row.name: row.prompt_id for row in connection.execute(query)}


def _outcome(questions: int, rng: np.random.Generator) -> Outcome:
    accuracy, ratio = float(rng.uniform(0.5, 0.7)), float(rng.uniform(0.2, BUDGET))
    return Outcome(
        split="tune",
        questions=questions,
        videos=questions // PER_VIDEO,
        accuracy=accuracy,
        flops_ratio=ratio,
        flops_ratio_end_to_end=ratio,
        flops_ratio_visual=ratio,
        flops_ratio_p95=ratio,
        flops_ratio_max=ratio,
        regressions=10,
        gained=5,
        logprob_change=-0.1,
        seconds=0.1 * questions,
        graded=accuracy,
    )


def _answer(question: str, rng: np.random.Generator, configuration: Configuration | None) -> RecordedAnswer:
    option = int(rng.integers(len(OPTIONS)))
    logprobs = tuple(rng.uniform(-4, 0, len(OPTIONS)).round(6).tolist())
    kept = () if configuration is None else (120, 60, 30)
    return RecordedAnswer(question, OPTIONS[option], option, logprobs, logprobs[option], kept, 0.1, 2**24)


def _record(
    store: Store,
    rng: np.random.Generator,
    configuration: Configuration | None,
    questions: list[str],
    prints: tuple[str, ...],
) -> None:
    answers: dict[Pair, RecordedAnswer] = {
        pair: _answer(pair[0], rng, configuration) for pair in zip(questions, prints, strict=True)
    }
    measured = None if configuration is None else (configuration, _outcome(len(questions), rng))
    kind = "baseline" if configuration is None else "held_out"
    store.count_model_use(kind, None, ModelUse(len(questions), 0.1 * len(questions)))
    store.record(answers, measured=measured)


def _made_up(rng: np.random.Generator, prompts: list[int]) -> Iterator[tuple[Any, ...]]:
    """(prompt, fingerprint, text, option, option_logprobs, logprob, kept, seconds, peak_bytes) of a trial."""
    options = rng.integers(len(OPTIONS), size=len(prompts))
    logprobs = json.dumps([-1.234567, -2.345678, -0.123456, -3.456789])
    for prompt, option, digest in zip(
        prompts, options.tolist(), (rng.bytes(16).hex() for _ in prompts), strict=True
    ):
        yield prompt, digest, OPTIONS[option], option, logprobs, -0.123456, "[120, 60, 30]", 0.1, 2**24


_COLUMNS = (
    "prompt_id",
    "fingerprint",
    "text",
    "option",
    "option_logprobs",
    "logprob",
    "kept",
    "seconds",
    "peak_bytes",
    "encoding_id",
)


def _write(connection: Connection, encoding: int, rows: Iterator[tuple[Any, ...]]) -> None:
    """As fast as the database takes them."""
    table = answer_table
    assert isinstance(table, Table)
    names = ", ".join(f'"{column}"' for column in _COLUMNS)
    raw = connection.connection.cursor()
    if connection.dialect.name == "sqlite":
        raw.executemany(
            f'INSERT INTO "{table.name}" ({names}) VALUES ({", ".join("?" * len(_COLUMNS))})',
            ((*row, encoding) for row in rows),
        )
        return
    with raw.copy(f'COPY "{table.name}" ({names}) FROM STDIN') as copy:
        for row in rows:
            copy.write_row((*row, encoding))


# What is measured, each in a process of its own


def look_up(url: str) -> dict[str, float]:
    """Milliseconds for 1,000 answers."""
    study = "fake"
    with Store.open(url, create=False) as store:
        record = store.require(study)
        from tuner.reporting.from_records import make_planner as planner_of

        wanted = [question.id for question in record.questions][:LOOKED_UP]
        pairs = list(zip(wanted, planner_of(record).fingerprints(None, wanted), strict=True))
        taken, busy = [], []
        for _ in range(15):
            began, before = perf_counter(), process_time()
            found = store.answers(pairs)
            taken.append(1000 * (perf_counter() - began))
            busy.append(1000 * (process_time() - before))
            assert len(found) == len(pairs)
    return {"first, ms": taken[0], "median, ms": median(taken), "CPU, ms": median(busy)}


def summarised(url: str) -> dict[str, float]:
    """Seconds and MiB of the summary of the latest search, libraries loaded before."""
    import scipy.stats  # noqa: F401

    from tuner.reporting.from_records import load_summary
    from tuner.reporting.recorded import open_study

    before = _most_resident()
    began, busy = perf_counter(), process_time()
    summary = load_summary(open_study("fake", url, print), database=url)
    taken, busy = perf_counter() - began, process_time() - busy
    assert summary.best is not None
    return {"seconds": taken, "CPU": busy, "MiB": _most_resident(), "MiB before": before}


def _most_resident() -> float:
    """MiB of this program alone: what `getrusage` tells may be of the process that started it."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


MEASURED = {"look-up": look_up, "summary": summarised}


def measure(url: str, name: str) -> dict[str, float]:
    """One of `MEASURED` in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.records_size", "--measure", name, "--database", url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def command_seconds(url: str, *arguments: str) -> tuple[float, float]:
    """A `tuner` command from start to end, and its CPU time, in an empty folder with the database alone."""
    with tempfile.TemporaryDirectory() as folder:
        began, before = perf_counter(), os.times()
        subprocess.run(
            [sys.executable, "-m", "tuner.cli.entry", *arguments, "--study", "fake", "--database", url],
            check=True,
            capture_output=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])},
        )
        taken, after = perf_counter() - began, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return taken, busy


def report(url: str) -> None:
    """A row for each figure of the database."""
    # Here, for it loads torch, which the processes that are measured do without.
    from tests.benchmarks.clock import verdict

    print(f"{url.partition(':')[0]}:", flush=True)
    print("| what | found |\n| --- | --- |")
    found = measure(url, "look-up")
    median_ms = found["median, ms"]
    print(
        f"| {LOOKED_UP} answers looked up | {found['first, ms']:.1f} ms the first time, "
        f"{median_ms:.1f} ms then{verdict(median_ms, LOOK_UP_MS)}; {found['CPU, ms']:.1f} ms of a CPU |"
    )
    found = measure(url, "summary")
    print(
        f"| summary | {found['seconds']:.2f} s{verdict(found['seconds'], SUMMARY_S)}; "
        f"{found['CPU']:.2f} s of a CPU |"
    )
    print(
        f"| its process, resident at most | {found['MiB']:.0f} MiB{verdict(found['MiB'], SUMMARY_MIB)}; "
        f"{found['MiB before']:.0f} MiB with its libraries loaded |"
    )
    for name in ("status", "trials"):
        seconds, busy = command_seconds(url, name)
        print(
            f"| `tuner {name}` | {seconds:.2f} s{verdict(seconds, TABLE_S)}; {busy:.2f} s of a CPU |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=5000, help="of the tune split (default: 5000)")
    parser.add_argument("--postgresql", help="URL of an empty database; otherwise an SQLite file")
    parser.add_argument("--keep", type=Path, help="keep the SQLite database in this file")
    parser.add_argument("--again", action="store_true", help="measure a database that was kept")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--database", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(MEASURED[arguments.measure](arguments.database)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.keep or Path(folder) / "records.db"
        url = arguments.postgresql or f"sqlite:///{file.absolute()}"
        if not arguments.again:
            began = perf_counter()
            fill(url, trials=arguments.trials, questions=arguments.questions)
            print(
                f"{arguments.trials} trials of {arguments.questions} questions, "
                f"written in {perf_counter() - began:.0f} s"
            )
        report(url)


if __name__ == "__main__":
    main()
