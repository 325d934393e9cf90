"""What is said before tuning, while it runs, and after it, in the same words."""

from __future__ import annotations

from pipeline.families import FAMILIES, POOLED
from pipeline.trace import Grid
from tuner.results import Noise


def provable(drop: float, videos: int) -> str:
    """What so many held-out videos can show. drop: absolute."""
    return f"{videos} held-out videos can prove a drop of about {100 * drop:.1f} points at best."


def pooled(pooling: str, checkpoint_pooling: str | None, cells: int) -> str:
    """How patches are pooled to so many visual tokens a frame, and where the checkpoint says otherwise."""
    grid = Grid.of(cells)
    line = f"{FAMILIES[POOLED[0]][0]}, {pooling} pooling to {grid.rows} x {grid.columns}"
    if checkpoint_pooling != pooling:
        line += f" (the checkpoint's config says {checkpoint_pooling})"
    return line + "."


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
