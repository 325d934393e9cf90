"""How many tune videos a search needs: what is lost by choosing on few (docs/statistics.md).

    python -m tests.benchmarks.tune_videos

Of the tabulated demo's configurations just within the budget 40 are drawn, the best of them on some videos by
the graded signal is chosen, and other videos say by how many points it beats the mean of the 40.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from tests.benchmarks.table import ALPHA, TAU_S, TAU_T, P, method_at
from tests.benchmarks.tabulated import Tabulated

STUDIES = 1000
TRIALS = 40
JUDGES = 60
VIDEOS = (10, 20, 30, 40, 60, 80)
QUESTIONS = (1, 2, 4)


def main() -> None:
    """One line for each number of questions a video and of tune videos."""
    table = Tabulated.load()
    methods = [method_at(*point) for point in product(TAU_S, TAU_T, ALPHA, P)]
    ratios = np.array([table.planner.binding_ratio(method) for method in methods])
    near = np.flatnonzero((ratios > 0.28) & (ratios <= 0.3))
    rows = table.row.reshape(len(table.row), -1)[:, near]  # (Q, configurations)
    graded = np.maximum(table.logprob[rows].astype(float), -3).T
    right = (table.margin[rows] > 0).T.astype(float)
    names, video_of = np.unique(table.videos, return_inverse=True)
    asked = [np.flatnonzero(video_of == item) for item in range(len(names))]
    sizes = np.array([len(question) for question in asked])
    by_video = np.stack([right[:, question].sum(axis=1) for question in asked], axis=1)  # (configurations, V)
    rng = np.random.default_rng(0)
    for questions, videos in product(QUESTIONS, VIDEOS):
        gained = []
        for _ in range(STUDIES):
            order = rng.permutation(len(names))
            trials = rng.choice(len(near), TRIALS, replace=False)
            seen = np.concatenate(
                [
                    rng.choice(asked[video], min(questions, sizes[video]), replace=False)
                    for video in order[:videos]
                ]
            )
            judges = order[-JUDGES:]
            accuracy = by_video[np.ix_(trials, judges)].sum(axis=1) / sizes[judges].sum()
            best = graded[np.ix_(trials, seen)].sum(axis=1).argmax()
            gained.append(accuracy[best] - accuracy.mean())
        error = np.std(gained) / np.sqrt(STUDIES)
        print(
            f"{questions} x {videos}: {100 * np.mean(gained):.2f} points (standard error {100 * error:.2f})"
        )


if __name__ == "__main__":
    main()
