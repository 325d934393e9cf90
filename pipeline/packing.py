"""Several questions in one forward: their tokens lie end to end in one row, so no place is wasted on padding.

Each question keeps its own plan, its own stored prefix and its own keys and values, whatever stands beside
it: all layers work on the whole row, attention and pruning on each question's part of it. One question alone
takes the same way, and so does the prefix itself: this is the only code that runs the decoder.

One visual token's life: its index in the video's sequence never changes; `Pack.tokens` holds, after each
pruning, the indices of those that are left. Text, newlines and what follows the video are never dropped.

N is the number of tokens in the row, D the hidden width, H the number of key-value heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.clip import Saliency
from pipeline.errors import NotFiniteError, PipelineError, UnsupportedError
from pipeline.families.base import Family
from pipeline.layout import IntArray, Layout
from pipeline.merging import VisualTokens
from pipeline.methods.base import Method
from pipeline.plan import Plan
from pipeline.prefix import Prefix
from pipeline.prompt import Prompt
from pipeline.ranking import stages
from pipeline.scores import FiniteCheck, row_scores, without_autocast

# Attention backends of transformers that pruning works with.
BACKENDS = ("eager", "sdpa", "flash_attention_2")

# transformers finds an attention function by its name; this one divides the row among the backend's.
PACKED = "adatp_packed"

# Keys and values of one question, by layer: (1, H, tokens, head). Tensors in it are never written to.
KeysValues = dict[int, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class PackItem:
    """One question, ready for the decoder."""

    prompt: Prompt
    layout: Layout
    # From 0 layers on up to the plan's first pruning layer, or through all for the unpruned model.
    prefix: Prefix
    method: Method | None = None  # None: the unpruned model
    plan: Plan | None = None
    question: str = ""  # its id: methods that draw depend on it, errors name it
    saliency: Saliency | None = None  # of the clip, on the model's device; for methods that merge
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)  # of the clip, on the model's device


@dataclass(eq=False)
class _Part:
    """Neighbouring tokens of the row that belong to one question."""

    cache: KeysValues  # what they attend to beside themselves; grows by them where `grow` says so
    pieces: tuple[int, ...]  # lengths; a piece sees what is cached and itself, not the other pieces
    grow: bool
    owner: torch.Tensor | None = None  # (tokens,) a number for each piece, where there are several
    score_layer: int = -1  # the layer whose attention is wanted next, -1 for none
    # Whose, counted from the end of the part.
    score_rows: slice = field(default_factory=lambda: slice(-1, None))
    score_columns: torch.Tensor | None = None  # (visual,) to which of the tokens that they attend to
    scores: torch.Tensor | None = None
    # Handed what scores are made of, and the scores: for those who check them.
    on_scores: Callable[..., None] | None = None
    # The last mask made, with the numbers of rows and keys that it is for: most layers want the same again.
    mask: tuple[int, int, torch.Tensor] | None = None

    @property
    def tokens(self) -> int:
        return sum(self.pieces)


class _Sequence:
    """One question on its way through the layers."""

    def __init__(self, item: PackItem, device: torch.device, layers: int) -> None:
        prefix, plan, prompt = item.prefix, item.plan, item.prompt
        stored = zip(prefix.keys, prefix.values, strict=True)
        self.item = item
        self.part = _Part(dict(enumerate(stored)), (len(prompt.after),), grow=True)
        self.stages = () if plan is None else stages(plan, item.layout, device)
        self.stage_at = {} if plan is None else {layer: j for j, layer in enumerate(plan.layers)}
        self.joins_at = prefix.layers if prefix.layers < layers else -1
        self.joined = False
        self.tokens: list[torch.Tensor] = []  # visual tokens left after each pruning
        self.finite = FiniteCheck(item.question)
        self.observed: torch.Tensor | None = None  # scores of the layer that somebody wants to see
        self.compact = item.method is not None and item.method.positions == "compact"
        end, ids = prompt.video_end, len(prompt.ids)
        text = np.setdiff1d(np.arange(ids), prompt.visual, assume_unique=True)
        places = torch.from_numpy(np.concatenate((prompt.visual, text))).to(device)
        # Where visual tokens, and where all others, stand in the question's sequence.
        self.visual, self.text = places[: len(prompt.visual)], places[len(prompt.visual) :]
        shift = item.layout.visual - plan.total(0) if plan is not None and self.compact else 0
        if shift and len(prompt.positions) > 1:
            raise UnsupportedError(
                "Methods that renumber positions need a model that counts them in one dimension."
            )
        self.positions: IntArray = prompt.positions[:, end:] - shift  # of the tokens after the video
        self.next_position = prompt.next_position - shift
        self._question = slice(prompt.question.start - ids, prompt.question.stop - ids or None)

    def want_scores(self, layer: int, observed: int) -> None:
        """Asks for the attention of `layer` where the next pruning ranks by it, or somebody observes it."""
        plan, part, j = self.item.plan, self.part, self.stage_at.get(layer + 1)
        part.score_layer = -1
        rows = "none"
        if plan is not None and j is not None and plan.total(j) < plan.total(j - 1):
            rows = plan.score_rows
        if rows != "none" or layer == observed:
            part.score_layer = layer
            part.score_rows = self._question if rows == "question" else slice(-1, None)
            part.score_columns = self.visual

    def before(
        self, layer: int, hidden: torch.Tensor, rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This question's part of the row before `layer`: the stored prefix joins it, or tokens leave."""
        if layer == self.joins_at:
            prefix = self.item.prefix
            assert prefix.hidden is not None
            assert prefix.rotary is not None
            hidden = torch.cat((prefix.hidden, hidden), dim=1)
            rotary = torch.cat((prefix.rotary, rotary), dim=-2)
            self.joined = True
        j = self.stage_at.get(layer)
        if j is not None:
            hidden, rotary = self._prune(j, hidden, rotary)
        self.part.pieces = (hidden.shape[1],)
        return hidden, rotary

    def _prune(self, j: int, hidden: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The j-th pruning: hidden (1, n, D) and its rotary embeddings without the dropped tokens."""
        item, stage, scores = self.item, self.stages[j], self.part.scores
        self.part.scores = None
        assert item.method is not None
        assert item.plan is not None
        visual = self.visual.shape[0]
        left = self.tokens[-1] if self.tokens else torch.arange(visual, device=hidden.device)
        if stage.total >= visual:
            self.tokens.append(left)
            return hidden, rotary
        merged = None
        if item.method.merges:
            if item.saliency is None:
                raise ValueError(f"{item.method.name} merges tokens and needs the clip's saliency.")
            states = hidden[0].index_select(0, self.visual).view(stage.frames, stage.cells, -1)
            with without_autocast(hidden.device):
                chosen, merged = item.method.merge(stage, VisualTokens(states, item.saliency))
        else:
            if scores is not None:
                self.finite.note(item.plan.layers[j] - 1, scores)
            chosen = item.method.select(stage, scores, left, item.question)
        self.tokens.append(left[chosen])
        kept = self.visual[chosen]
        rows, order = torch.cat((self.text, kept)).sort()
        places = rows
        if self.compact:  # positions count up through what is kept of the prefix
            every, after = torch.arange(hidden.shape[1], device=hidden.device), len(item.prompt.after)
            places = torch.cat((every[: rows.shape[0] - after], every[-after:]))
        moved, text = order.argsort(), self.text.shape[0]  # where each of them stands from now on
        self.text, self.visual = moved[:text], moved[text:]
        hidden = hidden.index_select(1, rows)
        if merged is not None:
            hidden.index_copy_(1, self.visual, merged[None])
        return hidden, rotary.index_select(-2, places)


class Pack:
    """Questions after their prefill: what each kept, and the distribution of each one's next token.

    Reading answers changes nothing: scoring and decoding can be done in any order, any number of times.
    observe: a layer whose attention from the last prompt token to the visual tokens is kept in `observed`.
    on_scores: called with all scores that are made, and with what `row_scores` was given for them.
    Errors: PipelineError when the tokens kept are not the tokens planned, which would make every FLOPs figure
    wrong. UnsupportedError for an attention backend that pruning does not know. NotFiniteError, once answers
    or tokens are read, where they are no numbers or follow from none.
    """

    def __init__(
        self,
        family: Family,
        items: Sequence[PackItem],
        *,
        observe: int = -1,
        on_scores: Callable[..., None] | None = None,
    ) -> None:
        if not items:
            raise ValueError("At least one question is needed.")
        for item in items:
            end = item.plan.layers[0] if item.plan is not None else len(family.layers)
            if item.prefix.layers > end:
                raise ValueError(
                    f"The prefix ends before layer {item.prefix.layers}, but the plan begins before {end}."
                )
        self._family = family
        self._sequences = [_Sequence(item, family.device, len(family.layers)) for item in items]
        for sequence in self._sequences:
            sequence.part.on_scores = on_scores
        self._next = self._distribution(self._prefill(observe))  # a row for each question
        for sequence in self._sequences:
            _check_kept(sequence, len(family.layers))

    def kept(self, index: int) -> tuple[int, ...]:
        """Visual tokens that really stayed, per pruning layer."""
        return tuple(tokens.shape[0] for tokens in self._sequences[index].tokens)

    def tokens(self, index: int) -> list[torch.Tensor]:
        """The visual tokens that stayed after each pruning, as indices into the video's sequence.

        Errors: NotFiniteError when they were chosen by attention that is not a number.
        """
        self._sequences[index].finite.check()
        return self._sequences[index].tokens

    def observed(self, index: int) -> torch.Tensor:
        """(visual,) float32: the attention asked for by `observe`, as `row_scores` gives it.

        Errors: NotFiniteError when it is not a number. ValueError when none was observed.
        """
        sequence = self._sequences[index]
        if sequence.observed is None:
            raise ValueError("No layer before the question's first pruning was observed.")
        sequence.finite.check()
        return sequence.observed

    def cache(self, index: int) -> KeysValues:
        """Keys and values of the whole prompt as it was pruned, by layer."""
        return dict(self._sequences[index].part.cache)

    def next_position(self, index: int) -> int:
        """Position of the first token after the prompt."""
        return self._sequences[index].next_position

    def logits(self, index: int) -> torch.Tensor:
        """(vocabulary,) of the first token after the prompt, as the model computes them."""
        return self._next.logits[index]

    # -- forward ----------------------------------------------------------------------------------------

    def _prefill(self, observe: int) -> torch.Tensor:
        """(questions, D) last hidden state of every prompt."""
        family, sequences = self._family, self._sequences
        ids = [token for sequence in sequences for token in sequence.item.prompt.after]
        positions = np.concatenate([sequence.positions for sequence in sequences], axis=1)
        hidden, rotary = _enter(family, ids, positions)
        with packed_attention(family):
            for index, layer in enumerate(family.layers):
                if any(index == sequence.joins_at or index in sequence.stage_at for sequence in sequences):
                    hidden, rotary = self._rearrange(index, hidden, rotary)
                for item in sequences:
                    item.want_scores(index, observe)
                hidden = _layer(layer, hidden, rotary, [sequence.part for sequence in sequences])
                if index in family.adds_after:
                    hidden = self._add(index, hidden)
                if index == observe:
                    for item in sequences:
                        _observe(item, index)
        ends = torch.tensor([sequence.part.tokens for sequence in sequences]).cumsum(0) - 1
        last: torch.Tensor = family.language_model.norm(hidden[0, ends.to(hidden.device)])
        return last

    def _rearrange(
        self, layer: int, hidden: torch.Tensor, rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The row before `layer`, where prefixes join it and tokens leave."""
        parts, begin = [], 0
        for sequence in self._sequences:
            end = begin + sequence.part.tokens
            parts.append(sequence.before(layer, hidden[:, begin:end], rotary[..., begin:end, :]))
            begin = end
        if len(parts) == 1:
            return parts[0]
        states, rotaries = zip(*parts, strict=True)
        return torch.cat(states, dim=1), torch.cat(rotaries, dim=-2)

    def _add(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The row after `layer`, with what the family's decoder adds to visual tokens."""
        parts = list(torch.split(hidden, [sequence.part.tokens for sequence in self._sequences], dim=1))
        for i, item in enumerate(self._sequences):
            if item.joined:
                tokens = (
                    item.tokens[-1] if item.tokens else torch.arange(len(item.visual), device=hidden.device)
                )
                parts[i] = self._family.after_layer(layer, parts[i], item.item.extra, tokens, item.visual)
        return torch.cat(parts, dim=1)

    def _follow(self, ids: Sequence[int], positions: Sequence[int], parts: Sequence[_Part]) -> torch.Tensor:
        return follow(self._family, ids, positions, parts)

    def _distribution(self, hidden: torch.Tensor) -> _Distribution:
        """hidden: (n, D)."""
        logits: torch.Tensor = self._family.lm_head(hidden)
        return _Distribution(hidden, logits, logits.float().log_softmax(dim=-1))

    def _logprobs(self, found: _Distribution, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """(k,) float32 log-probabilities of tokens (k,), each after one of the rows (k,).

        A logit that the model rounded to half precision is computed anew: among logits of 16 to 32 bfloat16
        has steps of an eighth, so different options would be equal, and the first of them chosen.
        """
        logprobs = found.logprobs[rows, tokens]
        if found.logits.dtype == torch.float32:
            return logprobs
        head = self._family.lm_head
        exact: torch.Tensor = (found.hidden[rows].float() * head.weight[tokens].float()).sum(dim=-1)
        if head.bias is not None:
            exact += head.bias[tokens].float()
        return logprobs + (exact - found.logits[rows, tokens].float())

    # -- answers ----------------------------------------------------------------------------------------

    def score(
        self, texts: Mapping[int, Sequence[Sequence[int]]], *, mean: bool = False
    ) -> dict[int, tuple[float, ...]]:
        """Log-probability of each of a question's token sequences as its answer, teacher-forced.

        texts: by the question's place in the pack. mean: over the tokens scored, instead of their sum. Where
        the texts of a question differ in length, the end of the answer is part of each: without it a text
        that begins another could never be the less probable of the two. Texts of one token, all of one
        length, cost no forward; the others of all questions share one, where each sees its prompt and itself.
        Errors: UnsupportedError when an end is to be scored and the model has no token for it.
        """
        if any(len(ids) == 0 for several in texts.values() for ids in several):
            raise ValueError("Every text to score has at least one token.")
        device = self._next.hidden.device
        flat = [(index, ids) for index, several in texts.items() for ids in several]
        logprobs = self._logprobs(
            self._next,
            torch.tensor([index for index, _ in flat], device=device),
            torch.tensor([ids[0] for _, ids in flat], device=device),
        )
        ended = {index for index, several in texts.items() if len({len(ids) for ids in several}) > 1}
        ends = self._family.end_ids
        if ended and not ends:
            raise UnsupportedError("The model names no token that ends an answer, so options cannot end.")
        # (place in `flat`, question, tokens after which something is scored, and after each what counts:
        # any of these tokens).
        followed = [
            (i, index, ids if index in ended else ids[:-1], [*([id_] for id_ in ids[1:]), ends])
            for i, (index, ids) in enumerate(flat)
        ]
        longer = [option for option in followed if option[2]]
        # (text, the tokens of which any counts) for each row of the forward, in its order
        scored = [(i, tokens) for i, _, ids, after in longer for tokens in after[: len(ids)]]
        if longer:
            parts: list[_Part] = []
            inputs: list[int] = []
            positions: list[int] = []
            owner = torch.tensor([i for i, _ in scored], device=device)
            for index in dict.fromkeys(index for _, index, _, _ in longer):
                sequence = self._sequences[index]
                mine = [ids for _, owner, ids, _ in longer if owner == index]
                begin = len(inputs)
                for ids in mine:
                    inputs += ids
                    positions += [sequence.next_position + i for i in range(len(ids))]
                pieces = tuple(len(ids) for ids in mine)
                parts.append(_Part(sequence.part.cache, pieces, grow=False, owner=owner[begin : len(inputs)]))
            found = self._distribution(self._follow(inputs, positions, parts))
            rows = torch.tensor([row for row, (_, few) in enumerate(scored) for _ in few], device=device)
            targets = torch.tensor([token for _, few in scored for token in few], device=device)
            logprobs = torch.cat((logprobs, self._logprobs(found, rows, targets)))
        # Summed here: added up on a GPU by scattering, sums would differ from run to run.
        values = iter(logprobs.tolist())
        total = list(islice(values, len(flat)))
        for i, few in scored:
            total[i] += _log_of_sum(list(islice(values, len(few))))
        if mean:
            total = [
                logprob / (len(ids) + (index in ended))
                for logprob, (index, ids) in zip(total, flat, strict=True)
            ]
        left = iter(total)
        scores = {index: tuple(islice(left, len(several))) for index, several in texts.items()}
        for index, logprobs_of in scores.items():
            self._check(index, logprobs_of)
        return scores

    def greedy(
        self, indices: Sequence[int], max_new_tokens: int, end_ids: Sequence[int]
    ) -> dict[int, tuple[tuple[int, ...], float]]:
        """By question: the most probable tokens up to an end token (left out), and the sum of their
        log-probabilities.
        """
        said: dict[int, list[int]] = {index: [] for index in indices}
        total = dict.fromkeys(indices, 0.0)
        # Growing a copy leaves the prompt's own keys and values as they are.
        parts = {index: _Part(self.cache(index), (1,), grow=True) for index in indices}
        active, found = list(indices), self._next.at(list(indices))
        while active:
            best = found.logprobs.argmax(dim=-1)
            rows = torch.arange(len(active), device=best.device)
            tokens, values = best.tolist(), self._logprobs(found, rows, best).tolist()
            going = []
            for index, token, value in zip(active, tokens, values, strict=True):
                self._check(index, (value,))
                if token in end_ids:
                    continue
                said[index].append(token)
                total[index] += value
                if len(said[index]) < max_new_tokens:
                    going.append(index)
            active = going
            if active:
                positions = [self._sequences[index].next_position + len(said[index]) - 1 for index in active]
                inputs = [said[index][-1] for index in active]
                found = self._distribution(
                    self._follow(inputs, positions, [parts[index] for index in active])
                )
        return {index: (tuple(said[index]), total[index]) for index in indices}

    def _check(self, index: int, values: Iterable[float]) -> None:
        """Errors: NotFiniteError when these log-probabilities are not finite, or follow from what is not.

        Infinity is no answer either: where all logits are finite, so are their log-probabilities.
        """
        sequence = self._sequences[index]
        sequence.finite.check()
        if not all(map(math.isfinite, values)):
            raise NotFiniteError.of(f"The model's answer to question {sequence.item.question!r}")


def _log_of_sum(logprobs: Sequence[float]) -> float:
    """The log-probability of any of these."""
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(logprob - highest) for logprob in logprobs))


class _Distribution(NamedTuple):
    """What comes next, row by row."""

    hidden: torch.Tensor  # (n, D) last hidden states
    logits: torch.Tensor  # (n, vocabulary) as the model computes them
    logprobs: torch.Tensor  # (n, vocabulary) float32

    def at(self, rows: list[int]) -> _Distribution:
        """Some of the rows."""
        return _Distribution(*(part[rows] for part in self))


def _observe(sequence: _Sequence, layer: int) -> None:
    """Keeps the scores of `layer` for somebody to see."""
    if not sequence.tokens and sequence.part.scores is not None:
        sequence.observed = sequence.part.scores
        sequence.finite.note(layer, sequence.part.scores)


def _check_kept(sequence: _Sequence, layers: int) -> None:
    """Planned against what is really held, layer by layer."""
    item = sequence.item
    if item.plan is None:
        return
    planned = item.plan.tokens_per_layer(layers, item.layout)
    held = tuple(sequence.part.cache[layer][0].shape[2] for layer in range(layers))
    kept = tuple(tokens.shape[0] for tokens in sequence.tokens)
    if held != planned or kept != tuple(item.plan.total(j) for j in range(len(item.plan.layers))):
        raise PipelineError(f"The plan keeps {planned} tokens per layer, but the model kept {held}.")


# -- the decoder ----------------------------------------------------------------------------------------


@torch.inference_mode()
def build_prefix(
    family: Family, prompt: Prompt, features: torch.Tensor, extra: Mapping[str, torch.Tensor], layers: int
) -> Prefix:
    """Runs a prompt up to the end of its video through the first `layers` decoder layers.

    features: (F, D) of the clip, and extra: both on the model's device.
    """
    end = prompt.video_end
    hidden, rotary = _enter(family, prompt.ids[:end], prompt.positions[:, :end])
    at, visual = (torch.from_numpy(rows).to(hidden.device) for rows in (prompt.features, prompt.visual))
    hidden = hidden.index_copy(1, at, features.to(hidden.dtype)[None])
    part = _Part({}, (end,), grow=True)
    with packed_attention(family):
        for index, layer in enumerate(family.layers[:layers]):
            hidden = _layer(layer, hidden, rotary, [part])
            if index in family.adds_after:
                tokens = torch.arange(len(visual), device=hidden.device)
                hidden = family.after_layer(index, hidden, extra, tokens, visual)
    keys, values = zip(*(part.cache[i] for i in range(layers)), strict=True) if layers else ((), ())
    if layers == len(family.layers):
        return Prefix(layers, keys, values, None, None, end)
    return Prefix(layers, keys, values, hidden, rotary, end)


def follow(
    family: Family, ids: Sequence[int], positions: Sequence[int], parts: Sequence[_Part]
) -> torch.Tensor:
    """(N, D) last hidden states of tokens that follow what `parts` have cached, one position each."""
    hidden, rotary = _enter(family, ids, np.array(positions)[None])
    with packed_attention(family):
        for layer in family.layers:
            hidden = _layer(layer, hidden, rotary, parts)
    out: torch.Tensor = family.language_model.norm(hidden)[0]
    return out


def extended(
    family: Family, cache: KeysValues, ids: Sequence[int], first_position: int
) -> tuple[KeysValues, torch.Tensor]:
    """A prompt's keys and values with more tokens behind them, and (vocabulary,) logits of the next one."""
    part = _Part(dict(cache), (len(ids),), grow=True)
    hidden = follow(family, ids, range(first_position, first_position + len(ids)), [part])
    logits: torch.Tensor = family.lm_head(hidden[-1])
    return part.cache, logits


def _enter(family: Family, ids: Sequence[int], positions: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (1, N, D) of a row of tokens, and rotary ones (2, ..., N, head) of positions (k, N)."""
    hidden = family.embed(ids)
    return hidden, torch.stack(family.rotary(hidden, torch.from_numpy(positions).to(hidden.device)))


def _layer(layer: Any, hidden: torch.Tensor, rotary: torch.Tensor, parts: Sequence[_Part]) -> torch.Tensor:
    out: torch.Tensor = layer(
        hidden,
        attention_mask=None,
        position_embeddings=(rotary[0], rotary[1]),
        use_cache=False,
        packed_parts=parts,
    )
    return out


# -- attention ------------------------------------------------------------------------------------------


@contextmanager
def packed_attention(family: Family) -> Iterator[None]:
    """The family's decoder layers take packed rows inside the block, and are as before after it."""
    from transformers import AttentionInterface

    config = family.language_model.config
    backend = config._attn_implementation
    if backend not in BACKENDS:
        raise UnsupportedError(f"Pruning works with {', '.join(BACKENDS)}, but the model runs {backend}.")
    AttentionInterface.register(f"{PACKED}_{backend}", _ATTENTION[backend])
    config._attn_implementation = f"{PACKED}_{backend}"
    try:
        yield
    finally:
        config._attn_implementation = backend


class _Attention:
    """Attention over a packed row: each question's part by the backend's own function."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._takes_masks = backend != "flash_attention_2"
        self._splits = not self._takes_masks  # pieces go one by one where no mask can part them

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        packed_parts: Sequence[_Part],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """query: (1, heads, N, head), rotated. Returns (1, N, heads, head)."""
        out, begin, config = [], 0, module.config
        named = config._attn_implementation
        # FlashAttention's function looks its package up by this name.
        config._attn_implementation = self._backend
        try:
            for part in packed_parts:
                end = begin + part.tokens
                here = slice(begin, end)
                own = query[:, :, here], key[:, :, here], value[:, :, here]
                out.append(self._attend(module, *own, part, kwargs))
                begin = end
        finally:
            config._attn_implementation = named
        return (out[0] if len(out) == 1 else torch.cat(out, dim=1)), None

    def _attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        part: _Part,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        layer = int(module.layer_idx)
        past = part.cache.get(layer)
        if len(part.pieces) > 1 and self._splits:
            q, k, v = (torch.split(tensor, list(part.pieces), dim=2) for tensor in (query, key, value))
            outs = [
                self._attend(module, q[i], k[i], v[i], _Part(part.cache, (length,), grow=False), kwargs)
                for i, length in enumerate(part.pieces)
            ]
            return torch.cat(outs, dim=1)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        if part.grow:
            part.cache[layer] = (key, value)
        if part.score_layer == layer:
            rows = part.score_rows
            assert part.score_columns is not None
            given = query[:, :, rows], key, module.scaling, part.score_columns, -(rows.stop or 0)
            part.scores = row_scores(*given)
            if part.on_scores is not None:
                part.on_scores(part.scores, *given)
        mask = self._mask(part, query, key)
        out: torch.Tensor = self._function()(module, query, key, value, mask, **kwargs)[0]
        return out

    def _function(self) -> Any:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

        return ALL_ATTENTION_FUNCTIONS.get_interface(self._backend, eager_attention_forward)

    def _mask(self, part: _Part, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        """(1, 1, rows, keys): causal, and each piece blind to the others. None where the backend's own causal
        rule says the same.
        """
        rows, keys = query.shape[2], key.shape[2]
        if not self._takes_masks or rows == 1:
            return None
        if self._backend == "sdpa" and len(part.pieces) == 1 and rows == keys:
            return None
        if part.mask is not None and part.mask[:2] == (rows, keys):
            return part.mask[2]
        order = torch.arange(rows, device=query.device)
        seen = order[:, None] >= order  # (rows, rows)
        if part.owner is not None:
            seen &= part.owner[:, None] == part.owner
        seen = torch.cat((seen.new_ones(rows, keys - rows), seen), dim=1)[None, None]
        if self._backend == "eager":
            lowest = torch.finfo(query.dtype).min
            seen = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, lowest)
        part.mask = rows, keys, seen
        return seen


_ATTENTION = {backend: _Attention(backend) for backend in BACKENDS}
