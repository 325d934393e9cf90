"""What a worker says of its model once it is loaded: all that the driver has to know of it.

A study's answers are comparable only where all of them were computed in the same way. The device of the
workers decides in which, once: the first worker's, or that of the study's records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Computing:
    """What must be the same for all answers of a study."""

    encoding: str  # as `Runtime.encoding`
    # As in `Setting`; None in records of versions that did not say.
    dtype: str | None = None
    device: str | None = None

    def __str__(self) -> str:
        return f"{self.dtype or 'another number format'} on {self.device or 'another device'}"


@dataclass(frozen=True)
class ModelDescription:
    """A loaded model with its text encoder, and where it runs; the fields are plain data."""

    host: str
    # As `pipeline.measure.machine` names it.
    machine: str
    identity: str
    encoder_identity: str
    encoding: str
    dtype: str
    # Kind of device: cpu or cuda.
    device: str
    # transformers' attention implementation.
    attention: str
    # None if the model's family has a single way.
    pooling: str | None
    checkpoint_pooling: str | None
    # Fields of `ModelShape`.
    shape: dict[str, Any]

    @property
    def computing(self) -> Computing:
        """What other workers of the study must have in common with this one."""
        return Computing(self.encoding, self.dtype, self.device)

    def refusal(self, study: Computing) -> str | None:
        """One sentence on why this worker cannot answer for the study; None if it can."""
        here = self.computing
        if here == Computing(here.encoding, study.dtype or here.dtype, study.device or here.device):
            if here.encoding == study.encoding:
                return None
            return (
                f"The worker on {self.host} encodes otherwise than the study's records: with another "
                "version of the program, attention implementation, pooling, model or text encoder."
            )
        return (
            f"The worker on {self.host} computes in {here}, but the study is computed in {study}: its "
            "answers would not compare. Allowed are workers with the study's kind of device and number "
            "format; `tuner archive` lets a study begin anew on others."
        )
