"""System prompt and video after the layers that are the same for every question and configuration: kept, so
that each question starts from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from pipeline.families.base import Family


@dataclass(frozen=True, eq=False)
class Prefix:
    """System prompt and video after the first `layers` decoder layers. m tokens, D hidden, H key-value
    heads.
    """

    layers: int
    keys: tuple[torch.Tensor, ...]  # per layer (1, H, m, head)
    values: tuple[torch.Tensor, ...]
    hidden: torch.Tensor | None  # (1, m, D) before layer `layers`; None where no layer is left
    cos: torch.Tensor | None  # (1, m, head) rotary embeddings of the positions
    sin: torch.Tensor | None
    tokens: int  # m

    @property
    def nbytes(self) -> int:
        """Memory held."""
        tensors = [*self.keys, *self.values, self.hidden, self.cos, self.sin]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class _PrefixReady(Exception):  # noqa: N818 -- a signal, not an error
    """Raised before the layer a prefix ends at, so that the layers after it do not run."""


def build_prefix(family: Family, embeddings: torch.Tensor, layers: int) -> Prefix:
    """Runs system prompt and video, embeddings (1, m, D), through the first `layers` decoder layers."""
    from transformers import DynamicCache

    cache: Any = DynamicCache(config=family.language_model.config)
    tokens = embeddings.shape[1]
    call = {"inputs_embeds": embeddings, "past_key_values": cache, "use_cache": True}
    if layers == len(family.layers):
        family.language_model(**call)
        hidden = cos = sin = None
    else:
        seen: list[torch.Tensor] = []

        def stop(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.extend((args[0] if args else kwargs["hidden_states"], *kwargs["position_embeddings"]))
            raise _PrefixReady

        hook = family.layers[layers].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            family.language_model(**call)
        except _PrefixReady:
            pass
        finally:
            hook.remove()
        hidden, cos, sin = seen
    filled = cache.layers[:layers]
    keys, values = tuple(layer.keys for layer in filled), tuple(layer.values for layer in filled)
    return Prefix(layers, keys, values, hidden, cos, sin, tokens)
