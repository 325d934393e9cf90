"""Pruning inside the model, by hooks that are gone afterwards; and the stored prefix that pruning starts
from.

Two ways in. `pruned(runtime, method, clip, question)` is for calling the model oneself, on a whole prompt in
a single pass. `attached(...)` with a `Prefix` is what Runtime does: system prompt and video went through the
layers before the first pruning once, and a question starts from there.

One visual token's life: its index in the video's sequence never changes; `Pruning.tokens` holds, after each
pruning, the indices of those that are left. Text, newlines and the rows after them are never dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import UnsupportedError
from pipeline.families.base import Family
from pipeline.layout import Layout
from pipeline.methods.base import Method
from pipeline.plan import Plan
from pipeline.ranking import Stage, stages

if TYPE_CHECKING:
    from pipeline.clip import Clip
    from pipeline.question import Question
    from pipeline.runtime import Runtime

BACKENDS = ("eager", "sdpa", "flash_attention_2")


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

    def cache(self, family: Family) -> Any:
        """A fresh key-value cache that begins with this prefix; the stored tensors are never written to."""
        cache = new_cache(family)
        for index, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(keys, values, index)
        return cache


class _PrefixReady(Exception):  # noqa: N818 -- a signal, not an error
    """Raised before the layer a prefix ends at, so that the layers after it do not run."""


def new_cache(family: Family) -> Any:
    """An empty cache for the family's decoder."""
    from transformers import DynamicCache

    return DynamicCache(config=family.language_model.config)


def build_prefix(family: Family, embeddings: torch.Tensor, layers: int) -> Prefix:
    """Runs system prompt and video, embeddings (1, m, D), through the first `layers` decoder layers."""
    cache = new_cache(family)
    tokens = embeddings.shape[1]
    call = {"inputs_embeds": embeddings, "past_key_values": cache, "use_cache": True}
    if layers == len(family.layers):
        family.language_model(**call)
        hidden = cos = sin = None
    else:
        seen: list[torch.Tensor] = []

        def stop(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.extend((_hidden(args, kwargs), *kwargs["position_embeddings"]))
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


def attention_scores(
    attention: Any,
    hidden: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    columns: slice,
) -> torch.Tensor:
    """Attention of the last rows of a sequence to some of its columns: softmax rows, mean over heads and
    rows.

    hidden: (1, R, D) what the attention module was given for those rows. keys: (1, H, n, head) of the whole
    sequence, rotated, as the cache holds them. Returns (columns,) float32. The softmax runs over all n keys
    in float32, as eager attention's does; its n x n matrix never exists, so any attention backend may be in
    use.
    """
    rows, head = hidden.shape[1], keys.shape[-1]
    kv_heads, n = keys.shape[1], keys.shape[2]
    cos, sin = position_embeddings
    query = attention.q_proj(hidden).view(rows, -1, head).transpose(0, 1)  # (heads, R, head)
    half = head // 2
    turned = torch.cat((-query[..., half:], query[..., :half]), dim=-1)
    query = query * cos[:, -rows:] + turned * sin[:, -rows:]
    # Heads that share keys lie side by side: (heads, R, head) -> (H, heads / H * R, head).
    logits = query.reshape(kv_heads, -1, head) @ keys[0].transpose(1, 2) * attention.scaling
    logits = logits.view(-1, rows, n)
    if rows > 1:
        later = torch.ones(rows, rows, dtype=torch.bool, device=logits.device).triu(1)
        logits[..., n - rows :].masked_fill_(later, float("-inf"))
    scores: torch.Tensor = logits.softmax(dim=-1, dtype=torch.float32)[..., columns].mean(dim=(0, 1))
    return scores


class Pruning:
    """One method at work on one question: attached to the decoder's layers, and the record of what it kept.

    A call that fills an empty cache is a prefill and starts over; any other call continues it (generated
    tokens, options, a follow-up turn) and sees the tokens that were chosen then.
    """

    def __init__(
        self,
        family: Family,
        method: Method,
        plan: Plan,
        layout: Layout,
        seed: str,
        prefix: Prefix | None,
    ) -> None:
        self.plan = plan
        self.layout = layout
        self.tokens: list[torch.Tensor] = []
        self._family = family
        self._method = method
        self._seed = seed
        self._prefix = prefix
        self._stages: tuple[Stage, ...] = stages(plan, layout, family.device)
        self._stage_at = {layer: j for j, layer in enumerate(plan.layers)}
        self._compact = method.positions == "compact"
        self._handles: list[Any] = []
        self._started = False  # whether the prefix was used
        self._prefilling = False
        self._start = layout.text_before  # of the visual tokens in the sequence
        self._text_after = layout.text_after
        self._scores: torch.Tensor | None = None
        self._rotary: tuple[torch.Tensor, torch.Tensor] | None = None
        self._mask: torch.Tensor | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """Visual tokens that really stayed, per pruning layer."""
        return tuple(tokens.shape[0] for tokens in self.tokens)

    def attach(self) -> None:
        """Installs the hooks."""
        decoder, layers = self._family.language_model, self._family.layers
        if any(
            isinstance(getattr(hook, "__self__", None), Pruning)
            for hook in decoder._forward_pre_hooks.values()
        ):
            raise UnsupportedError("This model is already being pruned: one method at a time.")
        backend = decoder.config._attn_implementation
        if backend not in BACKENDS:
            raise UnsupportedError(f"Pruning works with {', '.join(BACKENDS)}, but the model runs {backend}.")
        self._handles.append(decoder.register_forward_pre_hook(self._before_call, with_kwargs=True))
        if not self.plan.layers:
            return
        if self._prefix is None:
            self._handles.append(
                self._family.model.register_forward_pre_hook(self._find_video, with_kwargs=True)
            )
        for j, layer in enumerate(self.plan.layers):
            if self.plan.score_rows != "none" and self.plan.total(j) < self.plan.total(j - 1):
                scored = partial(self._after_attention, layer - 1)
                self._handles.append(
                    layers[layer - 1].self_attn.register_forward_hook(scored, with_kwargs=True)
                )
        for index in range(self.plan.layers[0], len(layers)):
            before = partial(self._before_layer, index)
            self._handles.append(layers[index].register_forward_pre_hook(before, with_kwargs=True))

    def detach(self) -> None:
        """Takes every hook off again."""
        while self._handles:
            self._handles.pop().remove()

    # -- hooks, in the order in which a call meets them -------------------------------------------------

    def _find_video(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Where the video begins in a prompt that somebody else may have written."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None or ids.shape[0] != 1:
            return  # a batch is refused in _before_call
        places = (ids[0] == self._family.video_token_id).nonzero()
        if len(places) == 0:
            return  # a continuation
        expected = self.layout.visual + self.layout.trailing
        if len(places) != expected:
            raise UnsupportedError(f"The clip has {expected} video tokens, but the prompt has {len(places)}.")
        self._start = int(places[0])

    def _before_call(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeddings, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        if embeddings is None:
            raise UnsupportedError(
                "Pruning attaches to the whole model: call that, not its decoder with input_ids."
            )
        if embeddings.shape[0] != 1:
            raise UnsupportedError(
                f"One sequence at a time is pruned, but got a batch of {embeddings.shape[0]} "
                "(beam search and several returned sequences make one)."
            )
        if self._prefix is not None:
            self._prefilling, self._started = not self._started, True
        else:
            self._prefilling = cache is None or cache.get_seq_length() == 0
        if self._prefilling:
            self.tokens.clear()
            self._rotary = self._mask = self._scores = None
            end = self._start + self.layout.visual + self.layout.trailing
            if self._prefix is None:
                self._text_after = embeddings.shape[1] - end
                if self._text_after < 1:
                    raise UnsupportedError(
                        "The prompt ends with its video: pruning needs the question along with it."
                    )
        elif self._compact and self._prefix is None:
            # generate() counts on from the prompt it knows; the decoder itself from its cache, which is as
            # short as the renumbered sequence.
            kwargs["position_ids"] = None
        return args, kwargs

    def _after_attention(
        self, layer: int, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any
    ) -> None:
        if not self._prefilling:
            return
        cache = kwargs.get("past_key_values")
        if cache is None:
            raise UnsupportedError("Pruning reads keys from the cache: call the model with use_cache=True.")
        hidden = _hidden(args, kwargs)
        rows = 1 if self.plan.score_rows == "last" else self._text_after
        count = self.tokens[-1].shape[0] if self.tokens else self.layout.visual
        self._scores = attention_scores(
            attention,
            hidden[:, -rows:],
            kwargs["position_embeddings"],
            cache.layers[layer].keys,
            slice(self._start, self._start + count),
        )

    def _before_layer(self, layer: int, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._prefilling:
            mask = kwargs.get("attention_mask")
            if mask is not None and mask.dim() == 4:
                # Made for layer 0, whose cache is the longest; what was dropped lies at the visible left end.
                seen = kwargs["past_key_values"].get_seq_length(layer) + mask.shape[-2]
                kwargs["attention_mask"] = mask[..., -seen:]
            return args, kwargs
        hidden = _hidden(args, kwargs)
        j = self._stage_at.get(layer)
        if j is not None:
            hidden = self._prune(j, hidden, kwargs)
        kwargs["position_embeddings"] = self._rotary
        kwargs["attention_mask"] = self._mask
        # Positions act through the rotary embeddings alone, and FlashAttention would take a gap in
        # position_ids for the seam of two packed sequences.
        kwargs["position_ids"] = None
        if args:
            return (hidden, *args[1:]), kwargs
        kwargs["hidden_states"] = hidden
        return args, kwargs

    # -- one pruning ------------------------------------------------------------------------------------

    def _prune(self, j: int, hidden: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
        """Drops tokens from the sequence (1, n, D) and from everything that goes along with it."""
        device = hidden.device
        stage, start = self._stages[j], self._start
        tokens = self.tokens[-1] if self.tokens else torch.arange(self.layout.visual, device=device)
        n_visual = tokens.shape[0]
        if stage.total < n_visual:
            chosen = self._method.select(stage, self._scores, tokens, self._seed)
        else:
            chosen = torch.arange(n_visual, device=device)
        self._scores = None
        self.tokens.append(tokens[chosen])
        joined = j == 0 and self._prefix is not None
        source = self._prefix.tokens if joined and self._prefix is not None else hidden.shape[1]
        every = torch.arange(source, device=device)
        rows = torch.cat((every[:start], chosen + start, every[start + n_visual :]))
        if self._rotary is None:  # the first pruning of this call
            self._rotary, self._mask = kwargs["position_embeddings"], kwargs["attention_mask"]
        if joined:
            return self._join(rows, hidden)
        assert self._rotary is not None
        places = every[: rows.shape[0]] if self._compact else rows
        cos, sin = self._rotary
        self._rotary = (cos.index_select(1, places), sin.index_select(1, places))
        if self._mask is not None and self._mask.dim() == 4:
            self._mask = self._mask.index_select(2, rows).index_select(3, rows)
        return hidden.index_select(1, rows)

    def _join(self, rows: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The kept rows of the stored prefix, then the question: one sequence from this layer on."""
        prefix = self._prefix
        assert prefix is not None
        assert prefix.hidden is not None
        assert prefix.cos is not None
        assert prefix.sin is not None
        assert self._rotary is not None
        cos, sin = self._rotary  # of the question's positions
        if self._compact:
            kept = rows.shape[0]
            prefix_cos, prefix_sin = prefix.cos[:, :kept], prefix.sin[:, :kept]
        else:
            prefix_cos, prefix_sin = prefix.cos.index_select(1, rows), prefix.sin.index_select(1, rows)
        self._rotary = (torch.cat((prefix_cos, cos), dim=1), torch.cat((prefix_sin, sin), dim=1))
        sequence = torch.cat((prefix.hidden.index_select(1, rows), hidden), dim=1)
        # From here on the cache is empty and the sequence whole: sdpa and FlashAttention are causal by
        # themselves.
        eager = self._family.language_model.config._attn_implementation == "eager"
        self._mask = causal_mask(sequence.shape[1], sequence) if eager else None
        return sequence


def causal_mask(n: int, like: torch.Tensor) -> torch.Tensor:
    """(1, 1, n, n) additive mask in the dtype and on the device of `like`."""
    hidden = torch.full((n, n), torch.finfo(like.dtype).min, dtype=like.dtype, device=like.device)
    return hidden.triu(1)[None, None]


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


@contextmanager
def attached(
    family: Family,
    method: Method,
    layout: Layout,
    *,
    seed: str = "",
    plan: Plan | None = None,
    prefix: Prefix | None = None,
) -> Iterator[Pruning]:
    """The family's model prunes inside the block and is exactly as before after it.

    seed: the question's id, for methods that draw. plan: the method's plan for this layout, where it is at
    hand. prefix: where it is given, the first call inside the block must be the decoder's, on the question
    part alone, with the prefix's cache. Errors: UnsupportedError for what cannot be pruned correctly.
    """
    plan = method.plan(layout, len(family.layers)) if plan is None else plan
    if plan.layers and plan.layers[0] == 0 and method.positions != "compact":
        raise UnsupportedError("A method that prunes before layer 0 has to renumber positions.")
    if prefix is not None and (not plan.layers or prefix.layers != plan.layers[0]):
        raise ValueError(
            f"The prefix ends before layer {prefix.layers}, but the plan prunes before {plan.layers}."
        )
    pruning = Pruning(family, method, plan, layout, seed, prefix)
    try:
        pruning.attach()
        yield pruning
    finally:
        pruning.detach()


@contextmanager
def pruned(runtime: Runtime, method: Method, clip: Clip, question: Question) -> Iterator[Pruning]:
    """`runtime.model` prunes inside the block: call it (or its generate) on a prompt with this clip and
    question.

        with pruned(runtime, method, clip, question) as pruning:
            output = runtime.model(**runtime.inputs(clip, question))
        pruning.kept  # visual tokens left at each pruning layer

    A follow-up call on the same cache keeps the tokens that were chosen for the first question.
    """
    with attached(runtime.family, method, runtime.layout(clip, question), seed=question.id) as pruning:
        yield pruning
