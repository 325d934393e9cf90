"""From a filled cache to an answer: options by log-probability, or free text by greedy decoding."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pipeline.families.base import Family

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answer:
    """What the model said to one question."""

    question: str  # its id
    text: str  # the chosen option, or the free answer
    option: int | None  # index of the most probable option; None for a free answer
    # Per option, natural log, not normalised over the options; `Pack.score` says when its end is included.
    option_logprobs: tuple[float, ...] | None
    logprob: float | None  # of `text`; of the reference where one was given
    kept: tuple[int, ...]  # visual tokens that really stayed, per pruning layer; empty for the unpruned model
    seconds: float  # from question to answer, encoding of the video not included
    peak_bytes: int | None = None  # memory added meanwhile: see pipeline.meter.PeakMemory


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: SQuAD's way of comparing answers."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def matches(text: str, answer: str) -> bool:
    """Whether two free answers are the same after normalisation."""
    return normalise(text) == normalise(answer)


class Mark(NamedTuple):
    """A point in a continuation."""

    held: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # keys and values per layer
    position: int
    logprobs: torch.Tensor


class Continuation:
    """The model after the question: the next token's distribution, and a cache to go on from.

    Nothing here changes the cache for good except `advance`: scoring puts back what it found.
    """

    def __init__(self, family: Family, cache: Any, position: int, last_hidden: torch.Tensor) -> None:
        self._family = family
        self._cache = cache
        self._position = position  # of the next token
        self._logprobs = self._distribution(last_hidden)[0]  # (vocabulary,)

    @property
    def _takes_masks(self) -> bool:
        """Whether the attention backend takes a mask of one's own; FlashAttention does not."""
        return self._family.language_model.config._attn_implementation in ("eager", "sdpa")

    def _distribution(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: (1, n, D). Returns (n, vocabulary) log-probabilities, float32."""
        logits: torch.Tensor = self._family.lm_head(hidden)
        return logits[0].float().log_softmax(dim=-1)

    def _forward(
        self, ids: Sequence[int], positions: Sequence[int], mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(1, n, D) hidden states of `ids` behind the cache, which grows by them."""
        output = self._family.language_model(
            inputs_embeds=self._family.embed(ids),
            position_ids=torch.tensor([list(positions)], device=self._family.device),
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def score(self, texts: Sequence[Sequence[int]]) -> tuple[float, ...]:
        """Log-probability of each token sequence as the answer, teacher-forced; texts of one token cost no
        forward.

        The longer texts share one forward: each sees the prompt and itself, nothing of the others.
        """
        if any(len(ids) == 0 for ids in texts):
            raise ValueError("Every text to score has at least one token.")
        first = self._logprobs[torch.tensor([ids[0] for ids in texts], device=self._logprobs.device)]
        following = [ids[1:] for ids in texts]
        if not any(following):
            return tuple(first.tolist())
        held = self.mark()
        rest = torch.zeros_like(first)
        inputs = [ids[:-1] for ids in texts]
        try:
            if self._takes_masks:
                rest = self._score_together(inputs, following)
            else:
                for index, (before, after) in enumerate(zip(inputs, following, strict=True)):
                    if after:
                        places = range(self._position, self._position + len(before))
                        rows = self._distribution(self._forward(before, places))
                        rest[index] = rows.gather(1, self._column(after)).sum()
                        self.back_to(held)
        finally:
            self.back_to(held)
        return tuple((first + rest).tolist())

    def _score_together(
        self, inputs: Sequence[Sequence[int]], following: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """(texts,) log-probability of what follows each text's first token, all in one forward."""
        device = self._logprobs.device
        cached = self._cache.get_seq_length()
        owner = torch.tensor([index for index, ids in enumerate(inputs) for _ in ids], device=device)
        offset = [place for ids in inputs for place in range(len(ids))]
        n = len(offset)
        order = torch.arange(n, device=device)
        hidden = (owner[:, None] != owner) | (order > order[:, None])  # (n, n)
        dtype = self._family.dtype
        mask = torch.zeros(1, 1, n, cached + n, dtype=dtype, device=device)
        mask[..., cached:].masked_fill_(hidden, torch.finfo(dtype).min)
        states = self._forward(
            [token for ids in inputs for token in ids], [self._position + place for place in offset], mask
        )
        targets = self._column([token for ids in following for token in ids])
        each = self._distribution(states).gather(1, targets)[:, 0]
        return torch.zeros(len(inputs), device=device).index_add_(0, owner, each)

    def _column(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(list(ids), device=self._logprobs.device)[:, None]

    def mark(self) -> Mark:
        """Where the model stands now, to come back to."""
        held = tuple((layer.keys, layer.values) for layer in self._cache.layers)
        return Mark(held, self._position, self._logprobs)

    def back_to(self, mark: Mark) -> None:
        """Forgets what was said since `mark`."""
        for layer, (keys, values) in zip(self._cache.layers, mark.held, strict=True):
            layer.keys, layer.values = keys, values  # growing a cache makes new tensors: these are untouched
        self._position, self._logprobs = mark.position, mark.logprobs

    def advance(self, token: int) -> None:
        """Takes `token` as said."""
        self._logprobs = self._distribution(self._forward([token], [self._position]))[0]
        self._position += 1

    def greedy(self, max_new_tokens: int, end_ids: Sequence[int]) -> tuple[tuple[int, ...], float]:
        """The most probable tokens up to an end token (left out), and the sum of their log-probabilities."""
        ids: list[int] = []
        total = 0.0
        while True:
            best = self._logprobs.max(dim=-1)
            token = int(best.indices)
            if token in end_ids:
                break
            ids.append(token)
            total += float(best.values)
            if len(ids) == max_new_tokens:
                break
            self.advance(token)
        return tuple(ids), total
