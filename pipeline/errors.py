"""What the pipeline raises when the input, not the code, is at fault.

PipelineError
+-- VideoError          a video that cannot be read (its path is in .path)
+-- ModelError          a folder or id that holds no usable checkpoint
+-- UnsupportedError    a request the pipeline refuses rather than answers wrongly
+-- NotFiniteError      the model computed infinity, or something that is not a number

Each message is one sentence a user can act on. Wrong arguments from a programmer are ValueErrors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self


class PipelineError(Exception):
    """Root of the pipeline's errors."""


class VideoError(PipelineError):
    """A video could not be read; `path` says which."""

    def __init__(self, message: str, path: str | Path) -> None:
        super().__init__(message)
        self.path = str(path)

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        # Exceptions with more than one argument do not survive pickling between processes by themselves.
        return type(self), (str(self), self.path)


class ModelError(PipelineError):
    """A checkpoint could not be loaded."""


class UnsupportedError(PipelineError):
    """Something the pruned model cannot do correctly, and therefore does not do."""


class NotFiniteError(PipelineError):
    """The model computed infinity, or something that is not a number: nothing follows from it."""

    @classmethod
    def of(cls, what: str) -> Self:
        """`what`, in words, is not finite."""
        return cls(
            f"{what} is not a finite number. The usual causes are float16 where the model needs the range of "
            "bfloat16 or float32, and damaged weights."
        )
