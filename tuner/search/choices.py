"""Which of AdaTP's discrete choices are shown beside the knobs, and a configuration as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pipeline.methods import KNOBS, AdaTP, choices
from tuner.study.values import Configuration


def worth_showing(listed: Collection[str], configurations: Iterable[Configuration] = ()) -> tuple[str, ...]:
    """The choices that a study lists (`Search.choices`), and those that a configuration of AdaTP makes
    otherwise than by default; in AdaTP's order.
    """
    known = choices(AdaTP)
    differing = {
        name
        for configuration in configurations
        if configuration.method == AdaTP.name
        for name, value in configuration.parameters
        if name in known and value != known[name].default
    }
    return tuple(name for name in known if name in listed or name in differing)


def in_words(configuration: Configuration, listed: Collection[str]) -> str:
    """A configuration of AdaTP as text: its knobs, and the choices worth showing."""
    shown = (*KNOBS, *worth_showing(listed, [configuration]))
    return ", ".join(
        f"{name} {value_text(value)}" for name, value in configuration.parameters if name in shown
    )


def value_text(value: float | str) -> str:
    """A knob's value or a choice's as a person reads it."""
    return value if isinstance(value, str) else f"{value:.4g}"
