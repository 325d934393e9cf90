"""How the figures of a sensitivity study name things and write numbers."""

from __future__ import annotations

from tuner.sensitivity.results import OutputName, Sensitivity
from tuner.statistics.values import Interval, Measured


def number(value: float) -> str:
    """A knob's value with four significant digits."""
    # A step that begins just above 0 begins at the smallest positive float.
    return f"{0.0 if abs(value) < 1e-9 else value:.4g}"


def range_text(safe: Interval | None) -> str:
    """A safe range in words."""
    return "none shown" if safe is None else f"{number(safe.low)} to {number(safe.high)}"


def with_interval(measured: Measured, scale: float, form: str) -> str:
    """The value and its interval times `scale`, each formatted by `form`."""
    text = f"{scale * measured.value:{form}}"
    if measured.interval is not None:
        text += f" ({scale * measured.interval.low:{form}} to {scale * measured.interval.high:{form}})"
    return text


def ends_of(measured: Measured) -> tuple[float, float | None, float | None]:
    """The value and both ends of its interval: three columns of a table."""
    interval = measured.interval
    return (measured.value, None, None) if interval is None else (measured.value, interval.low, interval.high)


def accuracy_label(found: Sensitivity) -> str:
    """What accuracy means in this study."""
    return "accuracy" if found.labelled else "agreement with the unpruned model"


def split_label(found: Sensitivity) -> str:
    """The videos that the curves are measured on."""
    return "held-out videos" if found.split == "held_out" else "tune videos"


def output_label(name: OutputName, found: Sensitivity) -> str:
    """An output of the design in words."""
    words = {
        "accuracy": accuracy_label(found),
        "logprob": "log-probability of the right answer",
        "regressions": "regressions",
    }
    return words[name]


def input_label(name: str) -> str:
    """An input of the design; with its scale where that is not the knob's own."""
    return {"gamma_cap": "gamma_cap (from p to 1)", "compute": "compute (FLOPs)"}.get(name, name)


def compute_label(found: Sensitivity) -> str | None:
    """The range of compute in the design; None where compute is not an input."""
    over = found.design_compute
    return (
        None if over is None else f"{100 * over.low:.3g} % to {100 * over.high:.3g} % of the unpruned FLOPs"
    )
