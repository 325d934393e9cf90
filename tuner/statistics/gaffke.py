"""Gaffke's bound for the mean over videos: it assumes nothing of how questions of one video fail together.

Gaffke (2005), "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
variable", Mathematical Methods of Statistics 14(4); Learned-Miller and Thomas (2020), arXiv 1905.06208. It is
a Bayesian bootstrap over the videos with one video more, on which everything is lost. That it errs no more
often than its level for every distribution is a conjecture, which no simulation has contradicted;
docs/statistics.md has this project's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The integral in `p_values` is a trapezoidal sum in u, where the line is c + c i sinh(u): the error falls
# exponentially with the step. With nothing lost the bound is 1 - level^(1/videos): this one differs by less
# than 3e-6 (1 to 10,000 videos, levels from 5 to 0.05 %).
_NODES = np.arange(0.0, 10.0, 0.1)
_WEIGHTS = np.where(_NODES == 0, 0.5, 1.0) * 0.1 / np.pi
# Complex numbers that are held at once: some hundred MiB.
_BLOCK = 4_000_000


def upper_mean(totals: Floats, questions: Floats, level: float) -> Floats:
    """(S,) one-sided upper confidence bounds, at 1 - level, of sum(totals) / sum(questions) per study.

    totals: (S, V), of each video, each at most its number of questions (S, V) or (V,); they may be negative.

    A video weighs as much as its questions. The hypothesis "the mean is at least m" says that the mean over
    videos of `questions * (total / questions - m)` is not negative, and the largest value a video can have
    there is that of a video with the most questions that loses all: this is the video that is added. The
    bound is the m at which a test of that hypothesis has the p-value `level`.
    """
    from scipy.optimize import elementwise

    kinds, counts = with_worst(totals, questions)
    estimate = totals.sum(axis=-1) / np.broadcast_to(questions, totals.shape).sum(axis=-1)
    bounds = np.ones_like(estimate)
    some = np.flatnonzero(estimate < 1)  # where everything is lost, nothing can be worse
    # A study holds few of the kinds that all studies together have.
    width = int((counts > 0).sum(axis=-1).max())
    used = np.argsort(counts == 0, axis=-1, kind="stable")[:, :width]
    kinds, counts = kinds[used], np.take_along_axis(counts, used, -1)

    def excess(mean: Floats, study: NDArray[np.int64]) -> Floats:
        found = np.empty(len(study))
        rows = max(1, _BLOCK // (width * _NODES.size))
        for start in range(0, len(study), rows):
            part = slice(start, start + rows)
            found[part] = p_values(kinds[study[part]], counts[study[part]], mean[part, None])
        return found - level

    if some.size:
        found = elementwise.find_root(
            excess, (estimate[some], bounds[some]), args=(some,), tolerances={"xatol": 1e-10}
        )
        bounds[some] = found.x
    return np.asarray(bounds)


def with_worst(totals: Floats, questions: Floats) -> tuple[Floats, Floats]:
    """(K, 2) the pairs of total and questions that videos have, and (S, K) how many of a study's have them.

    The video that is added is among them. Names and order of the videos are gone.
    """
    most = np.broadcast_to(questions, totals.shape).max(axis=-1, keepdims=True)
    totals = np.concatenate([totals, most], axis=-1)
    questions = np.concatenate(
        [np.broadcast_to(questions, (len(totals), totals.shape[1] - 1)), most], axis=-1
    )
    # Both are whole numbers, so that one number can name the pair: sorting pairs takes ten times as long.
    _, first, index = np.unique(
        totals * (2 * most.max() + 1) + questions, return_index=True, return_inverse=True
    )
    kinds = np.stack([totals.ravel()[first], questions.ravel()[first]], axis=-1)
    studies = len(totals)
    cells = np.repeat(np.arange(studies), totals.shape[1]) * len(kinds) + index.ravel()
    counts = np.bincount(cells, minlength=studies * len(kinds)).reshape(studies, len(kinds))
    return kinds, counts.astype(np.float64)


def p_values(kinds: Floats, counts: Floats, mean: Floats | float) -> Floats:
    """(S,) the p-values of "the mean is at least `mean`", which is (S, 1) or one number.

    kinds: (S, K, 2) or, the same for all studies, (K, 2); counts: (S, K); both as of `with_worst`.

    Dirichlet weights are standard exponential variables over their sum, which does not change a sign: what is
    sought is the probability that the sum of such variables, weighted by `total - mean * questions`, is
    positive. It is the integral of M(s) / s, M the sum's moment generating function, along a vertical line
    between 0 and M's first pole, over 2 pi i.
    """
    values = kinds[..., 0] - mean * kinds[..., 1]  # (S, K) or (K,)
    spread = (counts * values**2).sum(axis=-1, keepdims=True)  # (S, 1)
    if values.ndim == 1:
        spread = spread.mean(axis=0)  # one line for all: (1,)
    line = 0.5 / np.sqrt(spread)
    s = line * (1 + 1j * np.sinh(_NODES))  # (S, N) or (N,)
    logarithms = np.log(1 - values[..., None] * s[..., None, :])  # (S, K, N) or (K, N)
    # Real and imaginary parts by themselves: a product of complex matrices takes ten times as long.
    size, turn = (
        counts @ part if values.ndim == 1 else np.einsum("sk,skn->sn", counts, part)
        for part in (logarithms.real, logarithms.imag)
    )
    factor = line * np.cosh(_NODES) / s * _WEIGHTS
    return np.asarray(
        (np.exp(-size) * (np.cos(turn) * factor.real + np.sin(turn) * factor.imag)).sum(axis=-1)
    )
