"""Where attention backends keep different tokens, and whether a near tie explains it.

    python -m tests.benchmarks.backends --questions 60
    python -m tests.benchmarks.backends --shape 0.5b --questions 1
    python -m tests.benchmarks.backends --device cuda

Backends add in different orders, so the same token's score differs a little from one to the other. Kept
tokens may then differ where two scores are nearly equal, and nowhere else.

Once one token differs, every later layer sees other tokens, and comparing scores means nothing any more. So
the second backend is made to keep what the first one kept, its own choice is noted at every pruning, and the
two choices are compared on the same tokens. What the backends do when left alone is told beside: their
answers.

Words used here, for one pruning of one question:
    noise   the largest difference between the two backends' scores of a token
    gap     how far, in the first backend's scores, a token is from being treated otherwise: from the nearest
            token of its group on the other side of the cut among its like (representatives or repeats), or
            from the best other token of its position, which decides what is a representative
Two scores are compared for every decision, and both carry noise: a choice by scores alone can differ only
where the gap is at most twice the noise. Anything beyond has another cause.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.clip import Clip
from pipeline.keep_ratio import Unreachable, solve_keep_ratio
from pipeline.methods import AdaTP, FastV
from pipeline.packing import BACKENDS, Pack
from pipeline.question import Question
from pipeline.ranking import Stage
from pipeline.runtime import Request, Runtime
from tests.benchmarks.demo import Demo
from tests.benchmarks.shapes import SIZES, set_up

Ranked = AdaTP | FastV  # the methods that rank by attention


class Choice(NamedTuple):
    """One pruning that dropped something."""

    places: NDArray[np.int64]  # (n,) group x cells + cell of each visual token still there
    cells: int
    scores: NDArray[np.float64]  # (n,)
    kept: NDArray[np.bool_]  # (n,)


@dataclass(frozen=True)
class Difference:
    """Two choices among the same tokens."""

    tokens: int  # that stood to be chosen
    kept: int
    noise: float
    gaps: tuple[float, ...]  # of the tokens that one keeps and the other does not

    @property
    def within_noise(self) -> int:
        """Differing tokens whose gap is at most the noise."""
        return sum(gap <= self.noise for gap in self.gaps)

    @property
    def explained(self) -> int:
        """Differing tokens whose gap is at most twice the noise: all of them, if scores alone decide."""
        return sum(gap <= 2 * self.noise for gap in self.gaps)


@dataclass
class Recorder:
    """A method that notes its choices; with `forced`, it keeps what another run kept."""

    method: Ranked
    forced: Sequence[Choice] | None = None
    choices: list[Choice] = field(default_factory=list)
    merges = False

    @property
    def positions(self) -> str:
        return self.method.positions

    def select(self, stage: Stage, scores: torch.Tensor, tokens: torch.Tensor, seed: str) -> torch.Tensor:
        chosen = self.method.select(stage, scores, tokens, seed)
        kept = np.zeros(tokens.shape[0], dtype=bool)
        kept[chosen.cpu().numpy()] = True
        places = stage.slot[tokens].cpu().numpy()
        self.choices.append(Choice(places, stage.cells, scores.double().cpu().numpy(), kept))
        if self.forced is None:
            return chosen
        other = self.forced[len(self.choices) - 1]
        return torch.from_numpy(np.flatnonzero(other.kept)).to(tokens.device)


@torch.inference_mode()
def choices(
    runtime: Runtime, clip: Clip, question: Question, method: Ranked, forced: Sequence[Choice] | None = None
) -> list[Choice]:
    """The prunings of one question; with `forced`, each among the tokens that those choices left."""
    asked = runtime.pack_item(Request(clip, question, method))
    recorder: Any = Recorder(method, forced)
    Pack(runtime.family, [replace(asked, method=recorder)])
    noted: list[Choice] = recorder.choices
    return noted


def compare(first: Choice, second: Choice, *, debias: bool) -> Difference:
    """Two choices among the same tokens. debias: representatives rank before repeats.

    Errors: ValueError when the tokens are not the same.
    """
    if not np.array_equal(first.places, second.places):
        raise ValueError("Only choices among the same tokens can be compared.")
    noise = float(np.abs(first.scores - second.scores).max())
    differing = np.flatnonzero(first.kept != second.kept)
    gaps = _gaps(first, differing, debias=debias)
    return Difference(len(first.scores), int(first.kept.sum()), noise, tuple(gaps))


def _gaps(choice: Choice, tokens: NDArray[np.intp], *, debias: bool) -> list[float]:
    scores, groups = choice.scores, choice.places // choice.cells
    representative = np.ones_like(choice.kept)
    if debias:
        by_score = np.argsort(-scores, kind="stable")  # ties go to the earlier token
        best = by_score[np.unique(choice.places[by_score], return_index=True)[1]]
        representative = np.zeros_like(choice.kept)
        representative[best] = True
    gaps = []
    for token in tokens:
        like = (groups == groups[token]) & (representative == representative[token])
        others = like & (choice.kept != choice.kept[token])
        rivals = scores[others]
        if debias:
            position = choice.places == choice.places[token]
            position[token] = False
            rivals = np.append(rivals, scores[position].max(initial=-np.inf))
        gaps.append(float(np.abs(rivals - scores[token]).min(initial=np.inf)))
    return gaps


@dataclass
class Totals:
    """Differences over prunings and questions."""

    differences: list[Difference] = field(default_factory=list)
    answers: int = 0
    answers_differ: int = 0
    logprob: float = 0.0  # largest difference in an option's log-probability

    def add(
        self, runtime: Runtime, clip: Clip, question: Question, method: Ranked, names: tuple[str, str]
    ) -> None:
        """One question by both backends, side by side and left alone."""
        first, second = names
        use(runtime, first)
        wanted, said = choices(runtime, clip, question, method), runtime.answer(clip, question, method)
        use(runtime, second)
        got = choices(runtime, clip, question, method, forced=wanted)
        answer = runtime.answer(clip, question, method)
        debias = isinstance(method, AdaTP) and method.deduplicate != "off"
        self.differences += [compare(*pair, debias=debias) for pair in zip(wanted, got, strict=True)]
        self.answers += 1
        self.answers_differ += said.text != answer.text
        if said.option_logprobs is not None and answer.option_logprobs is not None:
            change = np.abs(np.subtract(said.option_logprobs, answer.option_logprobs)).max()
            self.logprob = max(self.logprob, float(change))

    def row(self, names: tuple[str, str]) -> str:
        """A line of the table."""
        all_gaps = [gap for difference in self.differences for gap in difference.gaps]
        differ, kept = len(all_gaps), sum(difference.kept for difference in self.differences)
        tokens = sum(difference.tokens for difference in self.differences)
        within = sum(difference.within_noise for difference in self.differences)
        explained = sum(difference.explained for difference in self.differences)
        noise = max(difference.noise for difference in self.differences)
        return (
            f"| {names[0]}, {names[1]} | {tokens} | {kept} | {differ} ({differ / tokens:.4%}) | {noise:.1e} "
            f"| {max(all_gaps, default=0.0):.1e} | {within} | {explained} | {differ - explained} "
            f"| {self.answers_differ} of {self.answers} | {self.logprob:.1e} |"
        )


HEADER = (
    "| backends | tokens judged | kept | kept by one only | largest noise | largest gap among them "
    "| gap within noise | within twice | beyond | answers that differ | largest change in log-probability |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def use(runtime: Runtime, backend: str) -> None:
    """Switches the attention of the language model; prefixes stored by another are forgotten."""
    runtime.family.language_model.set_attn_implementation(backend)
    runtime.forget_prefixes()


def available(device: torch.device) -> list[str]:
    """The backends that run here. FlashAttention needs a GPU and its package."""
    from transformers.utils import is_flash_attn_2_available

    flash = device.type == "cuda" and is_flash_attn_2_available()
    return [name for name in BACKENDS if flash or name != "flash_attention_2"]


def demo_questions(
    options: argparse.Namespace, dtype: str
) -> tuple[Runtime, list[tuple[Question, Clip]], Ranked]:
    """The demo's held-out questions, evenly spread, and AdaTP's defaults at the budget."""
    demo = Demo.load(options.cache, device=options.device, dtype=dtype)
    asked = demo.questions("held_out")
    chosen = np.linspace(0, len(asked) - 1, min(options.questions, len(asked)), dtype=int)
    pairs: list[tuple[Question, Clip]] = [asked[i] for i in chosen]
    solved = solve_keep_ratio(AdaTP(), demo.layouts(asked), demo.runtime.shape, options.budget)
    if isinstance(solved, Unreachable):
        raise SystemExit(f"{options.budget} is out of reach; {solved.smallest:.4f} is the smallest.")
    return demo.runtime, pairs, solved


def shape_questions(
    options: argparse.Namespace, folder: Path
) -> tuple[Runtime, list[tuple[Question, Clip]], Ranked]:
    """Questions about one generated video, and AdaTP's defaults at the budget."""
    setup = set_up(options, folder, questions=options.questions)
    clip = setup.runtime.encode(setup.video)
    method = setup.adatp(clip, flops_ratio=options.budget)
    return setup.runtime, [(question, clip) for question in setup.questions], method


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=("demo", *SIZES), default="demo", help="(default: demo, trained)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="by default the device's")
    parser.add_argument("--frames", type=int, default=8, help="of a random model's video (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU (default: 1)")
    parser.add_argument("--questions", type=int, default=60, help="(default: 60)")
    parser.add_argument("--budget", type=float, default=0.3, help="FLOPs ratio (default: 0.3)")
    parser.add_argument("--cache", type=Path, default=Path(".tuner/benchmarks"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.shape == "demo":
            runtime, asked, method = demo_questions(options, options.dtype or "auto")
        else:
            runtime, asked, method = shape_questions(options, Path(folder))
        dtype = str(runtime.family.dtype).removeprefix("torch.")
        print(f"{options.shape}, {dtype}, {len(asked)} questions, FLOPs ratio at most {options.budget}")
        print(HEADER)
        for other in available(runtime.family.device):
            if other == "sdpa":
                continue
            totals, names = Totals(), ("sdpa", other)
            for question, clip in asked:
                totals.add(runtime, clip, question, method, names)
            print(totals.row(names))


if __name__ == "__main__":
    main()
