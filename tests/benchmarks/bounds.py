"""Bounds of the accuracy that is lost: how often they err and what they can show (docs/statistics.md).

`python -m tests.benchmarks.bounds --output FILE` simulates 20,000 seeded studies a cell and appends one JSON
line per cell; cells that are in the file already are not simulated again. `--table` prints the tables of a
file instead. An error: the true loss is exactly the margin, and a 5 % bound excludes it. Covered: the true
difference (or share of answers lost) lies in its 95 % interval. Shown: the margin that a run's first test
shows in 80 % of (4,000) studies.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit
from scipy.stats import beta as beta_distribution

from tuner.search.selection import level_of
from tuner.statistics import gaffke

Floats = NDArray[np.float64]

STUDIES = 20_000
LEVEL = 0.05
VIDEOS = (15, 30, 80, 160, 320)
QUESTIONS = (1, 4, 8)
DROPS = (0.02, 0.05, 0.2)
MARGINS = (0.02, 0.03, 0.05)


@dataclass(frozen=True)
class Flips:
    """Answers lost and gained (S, V), and the questions of each video (S, V)."""

    lost: Floats
    gained: Floats
    questions: Floats


Model = Callable[[np.random.Generator, tuple[int, int], int, float], Flips]


def copies(correlation: float) -> Model:
    """So many videos lose all questions or none together, the others each question by itself."""

    def simulate(rng: np.random.Generator, shape: tuple[int, int], questions: int, drop: float) -> Flips:
        together = rng.random(shape) < correlation
        whole = questions * (rng.random(shape) < drop)
        return _only_lost(np.where(together, whole, rng.binomial(questions, drop, shape)), questions)

    return simulate


def beta_binomial(correlation: float) -> Model:
    """The share that a video loses is drawn from a beta distribution."""

    def simulate(rng: np.random.Generator, shape: tuple[int, int], questions: int, drop: float) -> Flips:
        size = 1 / correlation - 1
        return _only_lost(rng.binomial(questions, rng.beta(drop * size, (1 - drop) * size, shape)), questions)

    return simulate


def whole_videos(apart: float) -> Model:
    """Some videos lose all; the others lose this share of the answers, each question by itself."""

    def simulate(rng: np.random.Generator, shape: tuple[int, int], questions: int, drop: float) -> Flips:
        fails = rng.random(shape) < (drop - apart) / (1 - apart)
        return _only_lost(np.where(fails, questions, rng.binomial(questions, apart, shape)), questions)

    return simulate


def with_gains(gained: float, correlation: float) -> Model:
    """As many answers more are lost as are gained; the shares of a video are drawn from a Dirichlet
    distribution. A correlation of 1: whole videos are lost or gained.
    """

    def simulate(rng: np.random.Generator, shape: tuple[int, int], questions: int, drop: float) -> Flips:
        shares = np.array([drop + gained, gained, 1 - drop - 2 * gained])
        if correlation == 1:
            counts = questions * rng.multinomial(1, shares, shape)
        else:
            counts = rng.multinomial(questions, rng.dirichlet(shares * (1 / correlation - 1), shape))
        counts = counts.astype(float)
        return Flips(counts[..., 0], counts[..., 1], np.full(shape, float(questions)))

    return simulate


def unequal(rng: np.random.Generator, shape: tuple[int, int], questions: int, drop: float) -> Flips:
    """1 to `questions` questions a video; the more a video has, the likelier it loses all."""
    sizes = rng.integers(1, questions + 1, shape)
    mean, square = (questions + 1) / 2, (questions + 1) * (2 * questions + 1) / 6
    fails = rng.random(shape) < drop * sizes * mean / square
    return Flips((fails * sizes).astype(float), np.zeros(shape), sizes.astype(float))


MODELS: dict[str, Model] = {
    "independent": copies(0),
    "copies .2": copies(0.2),
    "copies .5": copies(0.5),
    "whole videos": copies(1),
    "beta-binomial .2": beta_binomial(0.2),
    "beta-binomial .5": beta_binomial(0.5),
    "whole videos + .5 points": whole_videos(0.005),
    "whole videos + 1 point": whole_videos(0.01),
    "with gains of 3 points, .2": with_gains(0.03, 0.2),
    "with gains of 3 points, 1": with_gains(0.03, 1),
    "1 to 8 questions, whole videos": unequal,
}
# Losses of a tuned configuration; the demo's loses and gains 1.4 points.
PLANNED: dict[str, Model] = {"with gains of 1.5 points, .2": with_gains(0.015, 0.2)}
# Where a video has one question, all models without gains are the same.
ONE_QUESTION = ("independent", "with gains of 3 points, 1")


# Bounds: (S,) whether a loss of `margin` or more is excluded.


def gaffke_shows(flips: Flips, margin: float) -> NDArray[np.bool_]:
    """The product's."""
    return _p_values(flips.lost - flips.gained, flips.questions, margin) <= LEVEL


def _p_values(totals: Floats, questions: Floats, mean: float) -> Floats:
    """(S,) of "the mean over questions is at least `mean`"; totals and questions (S, V)."""
    totals, questions = totals.astype(np.int64), questions.astype(np.int64)
    most = int(questions.max())
    # As `gaffke.with_worst`, without sorting: every pair of total and questions has its place.
    places = (totals + most) * (most + 1) + questions
    width = (2 * most + 1) * (most + 1)
    studies = np.arange(len(totals))
    counts = np.bincount((places + studies[:, None] * width).ravel(), minlength=len(totals) * width)
    counts = counts.reshape(-1, width).astype(float)
    largest = questions.max(axis=-1)
    counts[studies, (largest + most) * (most + 1) + largest] += 1
    used = np.flatnonzero(counts.any(axis=0))
    kinds = np.stack([used // (most + 1) - most, used % (most + 1)], axis=-1).astype(float)
    return gaffke.p_values(kinds, counts[:, used], mean)


def bootstrap_shows(flips: Flips, margin: float) -> NDArray[np.bool_]:
    """The product's until now: t intervals of lost and gained on the logit scale, put together."""
    return _bootstrap_low(flips, LEVEL) >= -margin


def _bootstrap_low(flips: Flips, tail: float) -> Floats:
    """(S,) the lower bound of gained minus lost."""
    (_, lost, lost_high), (gained_low, gained, _) = (
        _logit_t(item, flips.questions, tail) for item in (flips.lost, flips.gained)
    )
    residuals = [
        counts - share[:, None] * flips.questions
        for counts, share in ((flips.lost, lost), (flips.gained, gained))
    ]
    scale = np.sqrt((residuals[0] ** 2).sum(axis=-1) * (residuals[1] ** 2).sum(axis=-1))
    correlation = (residuals[0] * residuals[1]).sum(axis=-1) / np.where(scale > 0, scale, 1)
    one, other = gained - gained_low, lost_high - lost
    reach = np.sqrt(np.maximum(one**2 + other**2 - 2 * correlation * one * other, 0))
    return np.asarray(gained - lost - reach)


def _logit_t(counts: Floats, questions: Floats, tail: float) -> tuple[Floats, Floats, Floats]:
    weight = 0.2 * questions.mean(axis=-1, keepdims=True)
    above = np.concatenate([counts, 0 * weight, weight], axis=-1)
    below = np.concatenate([questions, weight, weight], axis=-1)
    centre = above.sum(axis=-1) / below.sum(axis=-1)
    videos = below.shape[-1]
    # What the bootstrap's standard error comes to, without drawing.
    spread = ((above - centre[:, None] * below) ** 2).sum(axis=-1) * videos / (videos - 1)
    error = np.sqrt(spread) / below.sum(axis=-1)
    reach = stdtrit(videos - 3, 1 - tail) * error / (centre * (1 - centre))
    share = counts.sum(axis=-1) / questions.sum(axis=-1)
    low = np.minimum(expit(logit(centre) - reach), share)
    return low, share, np.maximum(expit(logit(centre) + reach), share)


def clopper_pearson_shows(flips: Flips, margin: float) -> NDArray[np.bool_]:
    """Every video that loses more than it gains counts as lost altogether, by its share of the questions."""
    losing, videos = (flips.lost > flips.gained).sum(axis=-1), flips.lost.shape[-1]
    upper = beta_distribution.ppf(1 - LEVEL, losing + 1, np.maximum(videos - losing, 1))
    return np.asarray(np.where(losing == videos, 1.0, upper) <= margin)


def bernstein_shows(flips: Flips, margin: float) -> NDArray[np.bool_]:
    """Maurer and Pontil's empirical Bernstein bound; changes lie between -1 and 1."""
    changes, videos = _changes(flips), flips.lost.shape[-1]
    logarithm = np.log(2 / LEVEL)
    reach = np.sqrt(2 * changes.var(axis=-1, ddof=1) * logarithm / videos)
    return np.asarray(changes.mean(axis=-1) + reach + 14 * logarithm / (3 * (videos - 1)) <= margin)


def betting_shows(flips: Flips, margin: float) -> NDArray[np.bool_]:
    """Waudby-Smith and Ramdas' capital with predictable plug-in bets, over the videos in their order."""
    kept = 1 - _changes(flips)
    studies, videos = kept.shape
    capital, most = np.ones(studies), np.ones(studies)
    total, square = np.full(studies, 0.5), np.full(studies, 0.25)
    for index in range(videos):
        bet = np.minimum(
            np.sqrt(2 * np.log(1 / LEVEL) * (index + 1) / (videos * square)), 0.75 / (1 - margin)
        )
        capital *= 1 + bet * (kept[:, index] - (1 - margin))
        most = np.maximum(most, capital)
        total += kept[:, index]
        square += (kept[:, index] - total / (index + 2)) ** 2
    return np.asarray(most >= 1 / LEVEL)


BOUNDS: dict[str, Callable[[Flips, float], NDArray[np.bool_]]] = {
    "Gaffke": gaffke_shows,
    "until now": bootstrap_shows,
    "Clopper-Pearson": clopper_pearson_shows,
    "Bernstein": bernstein_shows,
    "betting": betting_shows,
}


# Intervals at 95 %: how often the truth lies in them.


def covered(flips: Flips, drop: float) -> dict[str, float]:
    """Intervals of the difference and, where no answers are gained, of the share lost; before: until now."""
    tail, questions = LEVEL / 2, flips.questions
    change, turned = flips.gained - flips.lost, Flips(flips.gained, flips.lost, questions)
    found = {
        "difference": _inside(change, questions, -drop, -1.0),
        "difference before": (_bootstrap_low(flips, tail) <= -drop) & (_bootstrap_low(turned, tail) <= drop),
    }
    if not flips.gained.any():
        low, _, high = _logit_t(flips.lost, questions, tail)
        found |= {
            "share": _inside(flips.lost, questions, drop, 0.0),
            "share before": (low <= drop) & (drop <= high),
        }
    return {name: float(inside.mean()) for name, inside in found.items()}


def _inside(totals: Floats, questions: Floats, truth: float, least: float) -> NDArray[np.bool_]:
    """Gaffke's interval of a mean between `least` and 1: neither end's test rejects the truth."""
    # What a video lacks to the most it can have; the test is of a mean of at most 1.
    lacking = (totals - questions if least == 0 else totals) * -1.0
    other = 1 - truth if least == 0 else -truth
    tail = LEVEL / 2
    above = _p_values(totals, questions, truth) > tail
    return np.asarray(above & (_p_values(lacking, questions, other) > tail))


def shown_margin(flips: Flips) -> float:
    """The margin that 80 % of studies show in their first test, to a hundredth of a point."""
    low, high, change = 0.0, 1.0, flips.lost - flips.gained
    while high - low > 1e-4:
        margin = (low + high) / 2
        power = (_p_values(change, flips.questions, margin) <= level_of("budget", 1)).mean()
        low, high = (low, margin) if power >= 0.8 else (margin, high)
    return high


def _changes(flips: Flips) -> Floats:
    """What each video loses, in questions of the mean video."""
    mean = flips.questions.mean(axis=-1, keepdims=True)
    return np.asarray((flips.lost - flips.gained) / mean)


def _only_lost(lost: NDArray[np.int64], questions: int) -> Flips:
    lost = lost.astype(float)
    return Flips(lost, np.zeros_like(lost), np.full_like(lost, questions))


@dataclass(frozen=True)
class Cell:
    """One kind of study. kind "error": the true loss is the margin; "power": it is less; "covered": of its
    intervals; "shown": the margin that is shown, not one that is given.
    """

    kind: str
    model: str
    videos: int
    questions: int
    drop: float
    margin: float


def cells() -> Iterator[Cell]:
    """All that are simulated, small studies first."""
    for videos in VIDEOS:
        for questions in QUESTIONS:
            for model in MODELS:
                if (questions == 1 and model not in ONE_QUESTION) or (
                    model == "1 to 8 questions, whole videos" and questions != 8
                ):
                    continue
                for drop in DROPS:
                    yield Cell("error", model, videos, questions, drop, drop)
    for questions in (2, 4):
        for drop in (0.0, 0.005):
            for videos in (80, 160, 320, 640):
                yield Cell("shown", *PLANNED, videos, questions, drop, 0.0)
    yield Cell("shown", *PLANNED, 80, 8, 0.0, 0.0)
    for questions in (4, 1, 8):
        for videos in VIDEOS:
            for model in MODELS:
                if questions == 1 and model not in ONE_QUESTION:
                    continue
                if questions != 8 and model == "1 to 8 questions, whole videos":
                    continue
                for drop in DROPS:
                    yield Cell("covered", model, videos, questions, drop, 0.0)
    for videos in (80, 160, 320):
        for questions in QUESTIONS:
            for model, drop in (
                ("independent", 0.0),
                ("independent", 0.005),
                ("copies .5", 0.005),
                ("with gains of 3 points, .2", 0.0),
            ):
                for margin in MARGINS:
                    yield Cell("power", model, videos, questions, drop, margin)


def shown(cell: Cell, studies: int = STUDIES) -> dict[str, float]:
    """How often each bound excludes a loss of the margin; for the other kinds, what they are about."""
    models = MODELS | PLANNED
    seed = [20261129, cell.videos, cell.questions, round(1000 * cell.drop), list(models).index(cell.model)]
    rng = np.random.default_rng(seed)
    if cell.kind == "shown":
        studies = min(studies, 4000)
    flips = models[cell.model](rng, (studies, cell.videos), cell.questions, cell.drop)
    if cell.kind == "covered":
        return covered(flips, cell.drop)
    if cell.kind == "shown":
        return {"margin": shown_margin(flips)}
    return {name: float(bound(flips, cell.margin).mean()) for name, bound in BOUNDS.items()}


def tables(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: errors and coverage by model and videos, the worst of the cells; power; margins shown."""
    yield from _by_videos(lines, "error", "losses", lambda cells: _worst(cells, BOUNDS, max, 1))
    yield from _by_videos(
        lines,
        "covered",
        "difference, share",
        lambda cells: "; ".join(
            _worst([cell for cell in cells if name in cell], (name, f"{name} before"), min, 1)
            for name in ("difference", "share")
            if name in cells[0]
        ),
    )
    power: dict[tuple[Any, ...], dict[Any, dict[str, float]]] = defaultdict(dict)
    margins: dict[tuple[Any, ...], dict[Any, float]] = defaultdict(dict)
    for line in lines:
        if line["kind"] == "power":
            key = (line["videos"], line["questions"], line["drop"], line["model"])
            power[key][line["margin"]] = line["shown"]
        if line["kind"] == "shown":
            margins[line["drop"], line["questions"]][line["videos"]] = line["shown"]["margin"]
    yield "| videos x questions | lost, model | " + " | ".join(f"margin {100 * m:g}" for m in MARGINS) + " |"
    yield "| --- | --- |" + " --- |" * len(MARGINS)
    for (videos, questions, drop, model), found in power.items():
        cells = (" / ".join(f"{100 * item:.0f}" for item in found[m].values()) for m in MARGINS if m in found)
        yield f"| {videos} x {questions} | {100 * drop:g}, {model} | {' | '.join(cells)} |"
    for (drop, questions), shown_by in margins.items():
        said = ", ".join(f"{videos}: {100 * margin:.1f}" for videos, margin in shown_by.items())
        yield f"shown by 80 %, {questions} questions a video, {100 * drop:g} lost: {said}"


def _by_videos(
    lines: list[dict[str, Any]], kind: str, name: str, said: Callable[[list[dict[str, float]]], str]
) -> Iterator[str]:
    """A row for each model, a column for each number of videos."""
    found: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for line in lines:
        if line["kind"] == kind:
            found[line["model"], line["videos"]].append(line["shown"])
    yield f"| {name} | {' | '.join(f'{n} videos' for n in VIDEOS)} |"
    yield "| --- |" + " --- |" * len(VIDEOS)
    for model in MODELS:
        row = [found[model, videos] for videos in VIDEOS]
        yield f"| {model} | {' | '.join(said(cells) if cells else '-' for cells in row)} |"
    yield ""


def _worst(
    cells: list[dict[str, float]],
    names: Iterable[str],
    worst: Callable[[Iterable[float]], float],
    digits: int,
) -> str:
    return " / ".join(f"{100 * worst([cell[name] for cell in cells]):.{digits}f}" for name in names)


def main() -> None:
    """Simulates what is missing in a file, or prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--kind", choices=("error", "power", "covered", "shown"), help="only these cells")
    options = parser.parse_args()
    text = options.output.read_text() if options.output.exists() else ""
    lines = [json.loads(line) for line in text.splitlines()]
    if options.table:
        print("\n".join(tables(lines)))
        return
    done = [{name: line[name] for name in line if name != "shown"} for line in lines]
    began = time.monotonic()
    for cell in cells():
        if asdict(cell) in done or options.kind not in (None, cell.kind):
            continue
        found = asdict(cell) | {"shown": shown(cell)}
        with options.output.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(f"{time.monotonic() - began:.0f} s", found, flush=True)


if __name__ == "__main__":
    main()
