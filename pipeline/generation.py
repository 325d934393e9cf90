"""A prompt that was read and pruned, from where transformers' own `generate` goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.errors import UnsupportedError
from pipeline.families.base import Family
from pipeline.layout import IntArray
from pipeline.packing import KeysValues, Pack, PackItem, extended


@dataclass(frozen=True, eq=False)
class Prefill:
    """A conversation up to where the model speaks next. It is a value: going on from it leaves it as it is.

        first = runtime.prefill(clip, question, method)
        out = runtime.model.generate(**first.inputs, max_new_tokens=64)  # greedy, sampled, with a streamer
        second = first.follow_up(out, "And what happens then?")
        out = runtime.model.generate(**second.inputs, max_new_tokens=64)

    Follow-up turns see the tokens that were chosen for the first question. M is the number of tokens in the
    decoder's first layer.
    """

    family: Family
    ids: tuple[int, ...]  # (M,) a placeholder for each visual token
    positions: IntArray  # (k, M)
    next_position: int
    keys_values: KeysValues  # by layer, as many tokens as that layer kept
    logits: torch.Tensor  # (vocabulary,) of the next token
    tokens: tuple[torch.Tensor, ...]  # visual tokens left after each pruning, as indices into the video's

    @property
    def kept(self) -> tuple[int, ...]:
        """Visual tokens left after each pruning."""
        return tuple(len(tokens) for tokens in self.tokens)

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for `model.generate`, with a cache of their own at each call.

        The cache holds all tokens but the last, which `generate` reads itself: so the first token of the
        answer, too, is its own choice, by whatever logits processors and sampling it is given. Greedy
        decoding, sampling and streamers decode one sequence token by token and are supported; several
        sequences are refused, because the cache is one sequence's. Errors: UnsupportedError for the eager
        backend, whose masks `generate` makes for the longest layer alone.
        """
        from transformers import DynamicCache
        from transformers.generation.utils import ALL_CACHE_NAMES

        class OneSequence(DynamicCache):
            """Says by name what transformers would say by shapes."""

            def update(self, key_states: torch.Tensor, *rest: Any, **options: Any) -> Any:
                if len(key_states) != 1:
                    raise UnsupportedError(
                        "From a pruned prompt generate() decodes one sequence: num_beams and "
                        "num_return_sequences are 1. Call it again for another sample."
                    )
                return super().update(key_states, *rest, **options)

        if self.family.attention == "eager":
            raise UnsupportedError(
                "generate() goes on from a pruned prompt with the attention backends sdpa and "
                "flash_attention_2, but the model runs eager."
            )
        device = self.family.device
        cache: Any = OneSequence(config=self.family.language_model.config)
        for layer, (keys, values) in sorted(self.keys_values.items()):
            cache.update(keys[:, :, :-1], values[:, :, :-1], layer)
        ids = torch.tensor([self.ids], device=device)
        positions = torch.from_numpy(self.positions).to(device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": positions if len(positions) == 1 else positions[:, None],
            ALL_CACHE_NAMES[0]: cache,  # "past_key_values", from transformers 5.24 on "cache"
        }

    @torch.inference_mode()
    def follow_up(self, said: torch.Tensor | Sequence[int], text: str) -> Prefill:
        """The conversation with an answer and a further question about the same video behind it.

        said: what `generate` returned for `inputs`, (1, M + t) token ids, or the t ids of the answer alone.
        text: the question as the user wrote it; the family's chat template goes around it. Errors: ValueError
        for a text, or more than one sequence.
        """
        if isinstance(said, torch.Tensor):
            if said.ndim != 2 or len(said) != 1:
                raise ValueError(f"One sequence goes on, (1, tokens), but got the shape {tuple(said.shape)}.")
            answer = said[0, len(self.ids) :].tolist()
        else:
            answer = list(said)
            if any(isinstance(token, str) for token in answer):
                raise ValueError(f"What was said is given as token ids, but got the text {said!r}.")
        while answer and answer[-1] in self.family.end_ids:  # the next turn begins with it
            answer.pop()
        ids = [*answer, *self.family.turn(text)]
        keys_values, logits = extended(self.family, self.keys_values, ids, self.next_position)
        end = self.next_position + len(ids)
        more = np.broadcast_to(np.arange(self.next_position, end), (len(self.positions), len(ids)))
        return Prefill(
            self.family,
            (*self.ids, *ids),
            np.concatenate((self.positions, more), axis=1),
            end,
            keys_values,
            logits,
            self.tokens,
        )


def prefill(family: Family, item: PackItem) -> Prefill:
    """Reads one prompt. Errors: as `Pack`; NotFiniteError where tokens were ranked by what is no number."""
    pack = Pack(family, [item])
    tokens, prompt = tuple(pack.tokens(0)), item.prompt
    rows, positions = np.arange(len(prompt.ids)), prompt.positions
    if item.plan is not None and item.plan.layers[0] == 0:  # even the first layer lacks what was dropped
        keep = np.ones(len(rows), dtype=bool)
        keep[np.delete(prompt.visual, tokens[0].cpu().numpy())] = False
        rows = rows[keep]
        compact = item.method is not None and item.method.positions == "compact"
        positions = positions[:, : len(rows)] if compact else positions[:, rows]
    return Prefill(
        family,
        tuple(prompt.ids[row] for row in rows),
        positions,
        pack.next_position(0),
        pack.cache(0),
        pack.logits(0),
        tokens,
    )
