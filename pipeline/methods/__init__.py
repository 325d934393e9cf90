"""Pruning methods, each one file: a method is its class here and its row in the contract tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.methods.adatp import KNOBS, AdaTP
from pipeline.methods.adatp_one_shot import AdaTPOneShot
from pipeline.methods.base import Choice, Knob, Method, choices, json_schema, knobs
from pipeline.methods.fast_vid import FastVid
from pipeline.methods.fastv import FastV
from pipeline.methods.fewer_frames import FewerFrames
from pipeline.methods.pyramid_drop import PyramidDrop
from pipeline.methods.random_tokens import RandomTokens
from pipeline.methods.vision_zip import VisionZip

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        AdaTP,
        AdaTPOneShot,
        FastV,
        PyramidDrop,
        RandomTokens,
        FewerFrames,
        VisionZip,
        FastVid,
    )
}


def to_dict(method: Method) -> dict[str, Any]:
    """A method as plain data: its name under "method", then its fields."""
    return {"method": method.name, **dataclasses.asdict(method)}


def from_dict(data: Mapping[str, Any]) -> Method:
    """A fresh method from `to_dict`'s form; fields that are left out take their defaults.

    Errors: ValueError for an unknown method, an unknown field or a value out of range.
    """
    fields = dict(data)
    name = fields.pop("method", None)
    if name not in METHODS:
        raise ValueError(f"The method is one of {', '.join(METHODS)}, but got {name!r}.")
    known = [item.name for item in dataclasses.fields(METHODS[name])]
    unknown = [key for key in fields if key not in known]
    if unknown:
        raise ValueError(
            f"{name} has the parameters {', '.join(known)}, but got {', '.join(map(repr, unknown))}."
        )
    return METHODS[name](**fields)


__all__ = [
    "KNOBS",
    "METHODS",
    "AdaTP",
    "AdaTPOneShot",
    "Choice",
    "FastVid",
    "FewerFrames",
    "Knob",
    "Method",
    "FastV",
    "PyramidDrop",
    "RandomTokens",
    "VisionZip",
    "choices",
    "from_dict",
    "json_schema",
    "knobs",
    "to_dict",
]
