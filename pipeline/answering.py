"""From a filled cache to an answer: options by log-probability, or free text by greedy decoding."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pipeline.families.base import Family

MATCHING_VERSION = 2
"""Raise it when `normalise` changes: it is part of the identity of studies with free answers."""

# An article that belongs to a word after it. A capital A inside the text is a name: vitamin A tablets.
_ARTICLE = re.compile(r"(?:^(?:an?|the)|(?<=\s)(?-i:a|[Aa][Nn]|[Tt][Hh][Ee]))\s+(?=\S)", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# What separates digits or makes a number negative says something: 3.5, 1:30, -5. So does the # of a name: C#.
_SPEAKS = re.compile(r"(?<=\d)[.,:/-](?=\d)|(?<![\w)])-(?=\d)|(?<=\w)#(?!\w)")
_MINUS = str.maketrans("\N{MINUS SIGN}\N{EN DASH}", "--")


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
    """Lower case, no punctuation, no articles, single spaces: SQuAD's way of comparing answers.

    Punctuation is Unicode's, as in MLQA, and stays where it belongs to a number (3.5 is not 35), as in the
    VQA evaluation. Our choice: symbols such as + stay, and an article goes only where a word follows it, so
    that the answer "A" is not an empty one.
    """
    text = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).translate(_MINUS))
    text = _ARTICLE.sub("", " ".join(text.split()))
    speaks = {place for found in _SPEAKS.finditer(text) for place in range(*found.span())}
    kept = (
        char for i, char in enumerate(text) if i in speaks or not unicodedata.category(char).startswith("P")
    )
    return " ".join("".join(kept).casefold().split())


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
