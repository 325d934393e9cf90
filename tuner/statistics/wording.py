"""What is said of a study's statistics before tuning, while it runs, and after it, in the same words."""

from __future__ import annotations

import math

from tuner.statistics.values import Guessing, Noise

WHAT_TO_CHECK = (
    "Check that model and revision are the ones meant, that scoring (letter or words) suits the model, the "
    "answers and the order of the options in questions.jsonl, and that the videos show what is asked."
)


NOTHING_CHOSEN = (
    "Held-out videos judge what was chosen on the tune videos. A choice by these numbers (another method, "
    "value or trial) is not covered by the verdict's 5 %: only videos that nobody has seen can judge it."
)
"""What voids the guarantee, said wherever answers to held-out videos are shown beside alternatives."""


def provable(drop: float, videos: int, margin: float | None = None, alike: float | None = None) -> str:
    """What so many held-out videos can show, and how many the margin needs, where nothing is lost.

    drop: the smallest margin they can show; margin: absolute, as is drop; alike: the correlation of lost
    answers within a video, where it is known.
    """
    line = f"With {videos} held-out videos, losses below {100 * drop:.1f} points cannot be ruled out"
    if margin is None:
        line += "."
    elif margin >= drop:
        # A tuned configuration that loses as much as it gains typically needs twice the smallest margin.
        room = ", which leaves little room for lost answers" if margin < 2 * drop else ""
        line += f"; you allow {100 * margin:.3g}{room}."
    elif margin <= 0:
        line += ". You allow none: no number of videos shows that."
    else:
        needed = math.ceil(videos * math.log1p(-drop) / math.log1p(-margin) - 1e-6)
        line += f". You allow {100 * margin:.3g}: about {needed} are needed, more where answers are lost."
    if alike is not None:
        line += (
            f" Lost answers of one video have a correlation of {alike:.2f} (0: independent, 1: whole videos)."
        )
    return line


def another_look(look: int, level: float) -> str:
    """The price of having looked before. level: of all tests of this look together."""
    if look == 1:
        return f"This is the study's first look at its held-out videos (level {100 * level:.2g} %)."
    return (
        f"This is look {look} at the study's held-out videos: all its looks together err in at most 5 % of "
        f"studies, and {100 * level:.2g} % are left for this one. That does not cover a trial that was "
        "chosen by what a report showed of the held-out videos."
    )


def looks_before(taken: int, level: float) -> str:
    """Before a run's trials, where the study was looked at before. level: of a look that would come now."""
    times = "once" if taken == 1 else f"{taken} times"
    return (
        f"These held-out videos were looked at {times} before: a new look has {100 * level:.2g} % of the "
        "5 % that all looks share; the same look again costs nothing."
    )


def guesses(found: Guessing) -> str:
    """The unpruned model against guessing."""
    return (
        f"The unpruned model answers {100 * found.accuracy:.1f} % of {found.questions} questions right; "
        f"guessing gives {100 * found.chance:.3g} %"
    )


def weak_baseline(found: Guessing) -> str:
    """What a baseline that is not shown to do better than guessing is worth."""
    if found.no_better:
        return f"{guesses(found)}. No loss can be measured against that. {WHAT_TO_CHECK}"
    return f"{guesses(found)}, and {found.videos} videos do not tell one from the other. {WHAT_TO_CHECK}"


def noise_floor(noise: Noise, margin: float | None = None, *, labelled: bool = True) -> str:
    """What the unpruned model does against itself, and whether the margin is above that.

    margin: absolute. Without labels a margin at or below the noise floor shows nothing.
    """
    rate = 100 * noise.flip_rate
    line = (
        f"Noise floor: asked in packs of another size, the unpruned model changes {noise.flips} of "
        f"{noise.questions} answers ({rate:.1f} points), log-probabilities by up to {noise.logprob_max:.1g}."
    )
    if labelled or margin is None:
        return line
    line += f" Margin {100 * margin:.1f} points, noise floor {rate:.1f} points (flips)"
    return line + ("." if margin > noise.flip_rate else ": nothing can be shown; take a larger --max-drop.")
