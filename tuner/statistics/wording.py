"""What is said of a study's statistics before tuning, while it runs, and after it, in the same words."""

from __future__ import annotations

from tuner.statistics.values import Guessing, Noise

WHAT_TO_CHECK = (
    "Check that model and revision are the ones meant, that scoring (letter or words) suits the model, the "
    "answers and the order of the options in questions.jsonl, and that the videos show what is asked."
)


def provable(drop: float, videos: int) -> str:
    """What so many held-out videos can show. drop: absolute."""
    return f"{videos} held-out videos can prove a drop of about {100 * drop:.1f} points at best."


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
