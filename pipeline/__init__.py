"""The model side: videos, encoders, AdaTP and its peers, plans, FLOPs, answering. Knows nothing of tuning.

Importing this package imports neither torch nor transformers: the names below load their module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.answering import Answer
    from pipeline.clip import Clip
    from pipeline.errors import ModelError, PipelineError, UnsupportedError, VideoError
    from pipeline.generation import Prefill
    from pipeline.layout import Layout
    from pipeline.methods import METHODS, AdaTP, AdaTPOneShot, FastV, FewerFrames, PyramidDrop, RandomTokens
    from pipeline.plan import Plan
    from pipeline.production import Deployed, load
    from pipeline.question import Question
    from pipeline.runtime import Runtime

_HOMES = {
    "Answer": "pipeline.answering",
    "Clip": "pipeline.clip",
    "ModelError": "pipeline.errors",
    "NotFiniteError": "pipeline.errors",
    "PipelineError": "pipeline.errors",
    "UnsupportedError": "pipeline.errors",
    "VideoError": "pipeline.errors",
    "Prefill": "pipeline.generation",
    "Layout": "pipeline.layout",
    "METHODS": "pipeline.methods",
    "AdaTP": "pipeline.methods",
    "AdaTPOneShot": "pipeline.methods",
    "FewerFrames": "pipeline.methods",
    "FastV": "pipeline.methods",
    "PyramidDrop": "pipeline.methods",
    "RandomTokens": "pipeline.methods",
    "Plan": "pipeline.plan",
    "Deployed": "pipeline.production",
    "load": "pipeline.production",
    "Question": "pipeline.question",
    "Runtime": "pipeline.runtime",
}

__all__ = [
    "METHODS",
    "AdaTP",
    "AdaTPOneShot",
    "Answer",
    "Clip",
    "Deployed",
    "FewerFrames",
    "Layout",
    "ModelError",
    "NotFiniteError",
    "FastV",
    "PipelineError",
    "Plan",
    "Prefill",
    "PyramidDrop",
    "Question",
    "RandomTokens",
    "Runtime",
    "UnsupportedError",
    "VideoError",
    "load",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(
            f"module 'pipeline' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}."
        )
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
