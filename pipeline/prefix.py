"""System prompt and video after the layers that are the same for every question and configuration: kept, so
that each question starts from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prompt up to the end of its video, after the first `layers` decoder layers.

    m tokens, D hidden, H key-value heads.
    """

    layers: int
    keys: tuple[torch.Tensor, ...]  # per layer (1, H, m, head)
    values: tuple[torch.Tensor, ...]
    hidden: torch.Tensor | None  # (1, m, D) before layer `layers`; None where no layer is left
    rotary: torch.Tensor | None  # (2, ..., m, head) cosines and sines of the positions
    tokens: int  # m

    @property
    def nbytes(self) -> int:
        """Memory held."""
        tensors = [*self.keys, *self.values, self.hidden, self.rotary]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)
