"""Attention as a score of visual tokens: in float32, from the model's own queries and keys."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from pipeline.errors import NotFiniteError

# Memory for products of queries and keys at a time; scores of more rows are computed in several steps.
SCORE_BYTES = 16 * 2**20


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, products of float32 are float32, also where the caller lets torch compute in half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def row_scores(
    query: torch.Tensor, keys: torch.Tensor, scaling: float, columns: torch.Tensor, after: int = 0
) -> torch.Tensor:
    """How much R neighbouring tokens attend to others before them: softmax rows, mean over heads and rows.

    query: (1, heads, R, head), rotated. keys: (1, H, n, head) of all tokens, rotated. columns: (c,) the
    tokens whose scores are wanted. after: how many of the n stand behind the R. Returns (c,) float32; the
    n x n matrix never exists.

    Computed in float32 whatever the model computes in, and under autocast too: what all products of a query
    with its keys have in common drops out of the softmax, but Qwen2's biases make it so large that float16
    overflows and bfloat16 has no digits left for the differences. NaN in every column where a product is not
    finite, also in one head alone.
    """
    heads, rows, (kv_heads, n, head) = query.shape[1], query.shape[2], keys.shape[1:]
    step = max(1, SCORE_BYTES // (heads * n * 4))
    with without_autocast(query.device):
        # Heads that share keys lie side by side: (H, heads / H, R, head).
        scaled = (query.float() * scaling).view(kv_heads, -1, rows, head)
        turned = keys[0].float().transpose(1, 2)
        parts = []
        for first in range(0, rows, step):
            some = scaled[:, :, first : first + step]
            logits = (some.reshape(kv_heads, -1, head) @ turned).view(heads, -1, n)
            low, high = logits.aminmax()
            if rows > 1 or after > 0:
                later = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device)
                logits.masked_fill_(later.triu_(n - after - rows + first + 1), float("-inf"))
            weights = logits.softmax(dim=-1).sum(dim=(0, 1))[columns]
            # -inf would be a weight of 0, which looks like a number: 0 times what is not finite is NaN.
            weights = weights + (high - low) * 0
            parts.append(weights)
        return sum(parts[1:], start=parts[0]) / (heads * rows)


class FiniteCheck:
    """Whether the scores by which a question's tokens were ranked are numbers.

    That is noted on the device, and read where the device is waited for anyway.
    """

    def __init__(self, question: str) -> None:
        self._question = question
        self._noted: list[tuple[int, torch.Tensor]] = []

    def note(self, layer: int, scores: torch.Tensor) -> None:
        """Scores that rank tokens, of attention in `layer`, as `row_scores` gives them: all NaN, or none."""
        self._noted.append((layer, scores[0]))

    def check(self) -> None:
        """Waits for the device where anything was noted since. Errors: NotFiniteError."""
        if not self._noted:
            return
        finite = torch.stack([noted for _, noted in self._noted]).isfinite().tolist()
        for (layer, _), fine in zip(self._noted, finite, strict=True):
            if not fine:
                raise NotFiniteError.of(
                    f"The attention of layer {layer} (counted from 0) for question {self._question!r}"
                )
        self._noted.clear()
