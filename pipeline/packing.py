"""Several questions in one forward: their tokens lie end to end in one row, so no place is wasted on padding.

Each question keeps its own plan, its own stored prefix and its own keys and values, whatever stands beside
it: all layers work on the whole row, attention and pruning on each question's part of it. One question alone
takes the same way.

N is the number of tokens in the row, D the hidden width, H the number of key-value heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import torch

from pipeline.clip import Saliency
from pipeline.errors import NotFiniteError, PipelineError, UnsupportedError
from pipeline.families.base import Family
from pipeline.layout import Layout
from pipeline.merging import merge
from pipeline.methods.base import Method
from pipeline.plan import Plan
from pipeline.prefix import Prefix
from pipeline.pruning import BACKENDS, Finite, row_scores
from pipeline.ranking import stages

# transformers finds an attention function by its name; this one divides the row among the backend's.
PACKED = "adatp_packed"

# Keys and values of one question, by layer: (1, H, tokens, head). Tensors in it are never written to.
Held = dict[int, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Asked:
    """One question, ready for the decoder."""

    layout: Layout
    after: tuple[int, ...]  # prompt tokens after the video
    prefix: Prefix  # up to the plan's first pruning layer, or through all layers for the unpruned model
    method: Method | None = None  # None: the unpruned model
    plan: Plan | None = None
    question: str = ""  # its id: methods that draw depend on it, errors name it
    saliency: Saliency | None = None  # of the clip, on the model's device; for methods that merge


@dataclass(eq=False)
class _Run:
    """Neighbouring tokens of the row that belong to one question."""

    held: Held  # what they attend to beside themselves; grows by them where `grow` says so
    pieces: tuple[int, ...]  # lengths; a piece sees what is held and itself, not the other pieces
    grow: bool
    owner: torch.Tensor | None = None  # (tokens,) a number for each piece, where there are several
    score_layer: int = -1  # the layer whose attention is wanted next, -1 for none
    score_rows: int = 1
    score_columns: slice = field(default_factory=lambda: slice(0, 0))
    scores: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return sum(self.pieces)


class _Sequence:
    """One question on its way through the layers."""

    def __init__(self, asked: Asked, device: torch.device) -> None:
        prefix, plan = asked.prefix, asked.plan
        self.asked = asked
        layers = zip(prefix.keys, prefix.values, strict=True)
        self.run = _Run(dict(enumerate(layers)), (len(asked.after),), grow=True)
        self.stages = () if plan is None else stages(plan, asked.layout, device)
        self.stage_at = {} if plan is None else {layer: j for j, layer in enumerate(plan.layers)}
        self.tokens: list[torch.Tensor] = []  # visual tokens left after each pruning
        self.finite = Finite(asked.question)
        self.compact = asked.method is not None and asked.method.positions == "compact"
        self.first_position = prefix.tokens
        if plan is not None and self.compact:
            self.first_position -= asked.layout.visual - plan.total(0)

    @property
    def next_position(self) -> int:
        """Of the first token after the prompt."""
        return self.first_position + len(self.asked.after)

    def want_scores(self, layer: int) -> None:
        """Asks for the attention of `layer` where the pruning after it ranks by it."""
        plan, j = self.asked.plan, self.stage_at.get(layer + 1)
        self.run.score_layer = -1
        if plan is None or j is None or plan.score_rows == "none" or plan.total(j) == plan.total(j - 1):
            return
        start = self.asked.layout.text_before
        self.run.score_layer = layer
        self.run.score_rows = 1 if plan.score_rows == "last" else len(self.asked.after)
        visual = self.tokens[-1].shape[0] if self.tokens else self.asked.layout.visual
        self.run.score_columns = slice(start, start + visual)

    def prune(
        self, j: int, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """This question's part of the row, (1, tokens, D), and its rotary embeddings after its j-th pruning.

        At the first one the kept rows of the stored prefix come in front: from there on the question's
        sequence is whole.
        """
        asked, stage, prefix, scores = self.asked, self.stages[j], self.asked.prefix, self.run.scores
        assert asked.method is not None
        assert asked.plan is not None
        device, start = hidden.device, asked.layout.text_before
        tokens = self.tokens[-1] if self.tokens else torch.arange(asked.layout.visual, device=device)
        visual = tokens.shape[0]
        merged = None
        if stage.total >= visual:
            chosen = torch.arange(visual, device=device)
        elif asked.method.merges:
            assert prefix.hidden is not None
            chosen, merged = merge(asked.method, stage, prefix.hidden, start, asked.saliency)
        else:
            if scores is not None:
                self.finite.note(asked.plan.layers[j] - 1, scores)
            chosen = asked.method.select(stage, scores, tokens, asked.question)
        self.run.scores = None
        self.tokens.append(tokens[chosen])
        length = prefix.tokens if j == 0 else hidden.shape[1]
        every = torch.arange(length, device=device)
        rows = torch.cat((every[:start], chosen + start, every[start + visual :]))
        places = every[: rows.shape[0]] if self.compact else rows
        if j > 0:
            parts = hidden.index_select(1, rows), cos.index_select(1, places), sin.index_select(1, places)
        else:
            assert prefix.hidden is not None
            assert prefix.cos is not None
            assert prefix.sin is not None
            parts = (
                torch.cat((prefix.hidden.index_select(1, rows), hidden), dim=1),
                torch.cat((prefix.cos.index_select(1, places), cos), dim=1),
                torch.cat((prefix.sin.index_select(1, places), sin), dim=1),
            )
        if merged is not None:
            parts[0][0, start : start + stage.total] = merged
        self.run.pieces = (parts[0].shape[1],)
        return parts


class Pack:
    """Questions after their prefill: what each kept, and the distribution of each one's next token.

    Reading answers changes nothing: scoring and decoding can be done in any order, any number of times.
    Errors: PipelineError when the tokens kept are not the tokens planned, which would make every FLOPs figure
    wrong. UnsupportedError for an attention backend nobody tried. NotFiniteError, once answers or tokens are
    read, where they are no numbers or follow from none.
    """

    def __init__(self, family: Family, asked: Sequence[Asked]) -> None:
        if not asked:
            raise ValueError("At least one question is needed.")
        for one in asked:
            end = one.plan.layers[0] if one.plan is not None else len(family.layers)
            if one.prefix.layers != end:
                raise ValueError(
                    f"The prefix ends before layer {one.prefix.layers}, but the plan begins before {end}."
                )
        self._family = family
        self._sequences = [_Sequence(one, family.device) for one in asked]
        self._next = self._distribution(self._prefill())  # a row for each question
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

    # -- forward ----------------------------------------------------------------------------------------

    def _prefill(self) -> torch.Tensor:
        """(questions, D) last hidden state of every prompt."""
        family, sequences = self._family, self._sequences
        ids = [token for one in sequences for token in one.asked.after]
        positions = [one.first_position + i for one in sequences for i in range(len(one.asked.after))]
        hidden, cos, sin = self._enter(ids, positions)
        with packed_attention(family):
            for index, layer in enumerate(family.layers):
                if any(index in one.stage_at for one in sequences):
                    hidden, cos, sin = self._prune(index, hidden, cos, sin)
                for one in sequences:
                    one.want_scores(index)
                hidden = _layer(layer, hidden, (cos, sin), [one.run for one in sequences])
        ends = torch.tensor([one.run.tokens for one in sequences]).cumsum(0) - 1
        last: torch.Tensor = family.language_model.norm(hidden[0, ends.to(hidden.device)])
        return last

    def _prune(
        self, layer: int, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The row before `layer`, each question's part pruned where its plan says so."""
        parts, begin = [], 0
        for one in self._sequences:
            end = begin + one.run.tokens
            part = hidden[:, begin:end], cos[:, begin:end], sin[:, begin:end]
            j = one.stage_at.get(layer)
            parts.append(part if j is None else one.prune(j, *part))
            begin = end
        if len(parts) == 1:
            return parts[0]
        hidden, cos, sin = (torch.cat(column, dim=1) for column in zip(*parts, strict=True))
        return hidden, cos, sin

    def _enter(
        self, ids: Sequence[int], positions: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings of a row of tokens, and the rotary embeddings of their positions."""
        hidden = self._family.embed(ids)
        places = torch.tensor([list(positions)], device=hidden.device)
        cos, sin = self._family.language_model.rotary_emb(hidden, places)
        return hidden, cos, sin

    def _forward(self, ids: Sequence[int], positions: Sequence[int], runs: Sequence[_Run]) -> torch.Tensor:
        """(N, D) last hidden states of tokens that follow prompts."""
        hidden, cos, sin = self._enter(ids, positions)
        with packed_attention(self._family):
            for layer in self._family.layers:
                hidden = _layer(layer, hidden, (cos, sin), runs)
        out: torch.Tensor = self._family.language_model.norm(hidden)[0]
        return out

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

    def score(self, texts: Mapping[int, Sequence[Sequence[int]]]) -> dict[int, tuple[float, ...]]:
        """Log-probability of each of a question's token sequences as its answer, teacher-forced.

        texts: by the question's place in the pack. Where the texts of a question differ in length, the end of
        the answer is part of each: without it a text that begins another could never be the less probable of
        the two. Texts of one token, all of one length, cost no forward; the others of all questions share
        one, where each sees its prompt and itself. Errors: UnsupportedError when an end is to be scored and
        the model has no token for it.
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
            (i, index, ids if index in ended else ids[:-1], [*([one] for one in ids[1:]), ends])
            for i, (index, ids) in enumerate(flat)
        ]
        longer = [one for one in followed if one[2]]
        # (text, the tokens of which any counts) for each row of the forward, in its order
        scored = [(i, tokens) for i, _, ids, after in longer for tokens in after[: len(ids)]]
        if longer:
            runs: list[_Run] = []
            inputs: list[int] = []
            positions: list[int] = []
            owner = torch.tensor([i for i, _ in scored], device=device)
            for index in dict.fromkeys(index for _, index, _, _ in longer):
                sequence = self._sequences[index]
                mine = [ids for _, one, ids, _ in longer if one == index]
                begin = len(inputs)
                for ids in mine:
                    inputs += ids
                    positions += [sequence.next_position + i for i in range(len(ids))]
                pieces = tuple(len(ids) for ids in mine)
                runs.append(_Run(sequence.run.held, pieces, grow=False, owner=owner[begin : len(inputs)]))
            found = self._distribution(self._forward(inputs, positions, runs))
            rows = torch.tensor([row for row, (_, few) in enumerate(scored) for _ in few], device=device)
            targets = torch.tensor([token for _, few in scored for token in few], device=device)
            logprobs = torch.cat((logprobs, self._logprobs(found, rows, targets)))
        # Summed here: added up on a GPU by scattering, sums would differ from run to run.
        values = iter(logprobs.tolist())
        total = list(islice(values, len(flat)))
        for i, few in scored:
            total[i] += _log_of_sum(list(islice(values, len(few))))
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
        runs = {index: _Run(dict(self._sequences[index].run.held), (1,), grow=True) for index in indices}
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
                    self._forward(inputs, positions, [runs[index] for index in active])
                )
        return {index: (tuple(said[index]), total[index]) for index in indices}

    def _check(self, index: int, values: Iterable[float]) -> None:
        """Errors: NotFiniteError when these log-probabilities are not finite, or follow from what is not.

        Infinity is no answer either: where all logits are finite, so are their log-probabilities.
        """
        sequence = self._sequences[index]
        sequence.finite.check()
        if not all(map(math.isfinite, values)):
            raise NotFiniteError.of(f"The model's answer to question {sequence.asked.question!r}")


def _log_of_sum(logprobs: Sequence[float]) -> float:
    """The log-probability of any of these."""
    highest = max(logprobs)
    return highest + math.log(math.fsum(math.exp(one - highest) for one in logprobs))


class _Distribution(NamedTuple):
    """What comes next, row by row."""

    hidden: torch.Tensor  # (n, D) last hidden states
    logits: torch.Tensor  # (n, vocabulary) as the model computes them
    logprobs: torch.Tensor  # (n, vocabulary) float32

    def at(self, rows: list[int]) -> _Distribution:
        """Some of the rows."""
        return _Distribution(*(part[rows] for part in self))


def _layer(
    layer: Any, hidden: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], runs: Sequence[_Run]
) -> torch.Tensor:
    out: torch.Tensor = layer(
        hidden, attention_mask=None, position_embeddings=rotary, use_cache=False, packed_runs=runs
    )
    return out


def _check_kept(sequence: _Sequence, layers: int) -> None:
    """Planned against what is really held, layer by layer."""
    asked = sequence.asked
    if asked.plan is None:
        return
    planned = asked.plan.tokens_per_layer(layers, asked.layout)
    held = tuple(sequence.run.held[layer][0].shape[2] for layer in range(layers))
    kept = tuple(tokens.shape[0] for tokens in sequence.tokens)
    if held != planned or kept != tuple(asked.plan.total(j) for j in range(len(asked.plan.layers))):
        raise PipelineError(f"The plan keeps {planned} tokens per layer, but the model kept {held}.")


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
        packed_runs: Sequence[_Run],
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """query: (1, heads, N, head), rotated. Returns (1, N, heads, head)."""
        out, begin, config = [], 0, module.config
        named = config._attn_implementation
        # FlashAttention's function looks its package up by this name.
        config._attn_implementation = self._backend
        try:
            for run in packed_runs:
                end = begin + run.tokens
                own = query[:, :, begin:end], key[:, :, begin:end], value[:, :, begin:end]
                out.append(self._attend(module, *own, run, kwargs))
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
        run: _Run,
        kwargs: dict[str, Any],
    ) -> torch.Tensor:
        layer = int(module.layer_idx)
        past = run.held.get(layer)
        if len(run.pieces) > 1 and self._splits:
            q, k, v = (torch.split(tensor, list(run.pieces), dim=2) for tensor in (query, key, value))
            outs = [
                self._attend(module, q[i], k[i], v[i], _Run(run.held, (length,), grow=False), kwargs)
                for i, length in enumerate(run.pieces)
            ]
            return torch.cat(outs, dim=1)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        if run.grow:
            run.held[layer] = (key, value)
        if run.score_layer == layer:
            run.scores = row_scores(query[:, :, -run.score_rows :], key, module.scaling, run.score_columns)
        mask = self._mask(run, query, key)
        out: torch.Tensor = self._function()(module, query, key, value, mask, **kwargs)[0]
        return out

    def _function(self) -> Any:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

        return ALL_ATTENTION_FUNCTIONS.get_interface(self._backend, eager_attention_forward)

    def _mask(self, run: _Run, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
        """(1, 1, rows, keys): causal, and each piece blind to the others. None where the backend's own causal
        rule says the same.
        """
        rows, keys = query.shape[2], key.shape[2]
        if not self._takes_masks or rows == 1:
            return None
        if self._backend == "sdpa" and len(run.pieces) == 1 and rows == keys:
            return None
        order = torch.arange(rows, device=query.device)
        seen = order[:, None] >= order  # (rows, rows)
        if run.owner is not None:
            seen &= run.owner[:, None] == run.owner
        seen = torch.cat((seen.new_ones(rows, keys - rows), seen), dim=1)[None, None]
        if self._backend == "sdpa":
            return seen
        lowest = torch.finfo(query.dtype).min
        return torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, lowest)


_ATTENTION = {backend: _Attention(backend) for backend in BACKENDS}
