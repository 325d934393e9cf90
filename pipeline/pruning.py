"""Pruning inside the model, by hooks that are gone afterwards: for calling the model oneself, or its
generate, on a whole prompt in a single pass. `Runtime.answer` starts from a stored prefix (pipeline.packing).

One visual token's life: its index in the video's sequence never changes; `Pruning.tokens` holds, after each
pruning, the indices of those that are left. Text, newlines and the rows after them are never dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import NotFiniteError, UnsupportedError
from pipeline.families.base import Family
from pipeline.layout import Layout
from pipeline.merging import merge, without_autocast
from pipeline.methods.base import Method
from pipeline.plan import Plan
from pipeline.ranking import Stage, stages

if TYPE_CHECKING:
    from pipeline.clip import Clip, Saliency
    from pipeline.question import Question
    from pipeline.runtime import Runtime

BACKENDS = ("eager", "sdpa", "flash_attention_2")

# Memory for products of queries and keys at a time; scores of more rows are computed run by run.
SCORE_BYTES = 16 * 2**20

# What generate() is refused with, and what it may be asked instead.
DECODING = "Inside pruned(...), generate() decodes one sequence, greedily or by sampling, on a dynamic cache"


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
    sequence, rotated, as the cache holds them. Returns (columns,) float32 as `row_scores` does, for any
    attention backend: the n x n matrix never exists.
    """
    rows, head = hidden.shape[1], keys.shape[-1]
    cos, sin = position_embeddings
    query = attention.q_proj(hidden).view(rows, -1, head).transpose(0, 1)  # (heads, R, head)
    half = head // 2
    turned = torch.cat((-query[..., half:], query[..., :half]), dim=-1)
    query = query * cos[:, -rows:] + turned * sin[:, -rows:]
    return row_scores(query[None], keys, attention.scaling, columns)


def row_scores(query: torch.Tensor, keys: torch.Tensor, scaling: float, columns: slice) -> torch.Tensor:
    """As `attention_scores`, from the rotated queries of the last R rows themselves: (1, heads, R, head).

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
        total = torch.zeros(n, dtype=torch.float32, device=keys.device)[columns]
        for first in range(0, rows, step):
            some = scaled[:, :, first : first + step]
            logits = (some.reshape(kv_heads, -1, head) @ turned).view(heads, -1, n)
            low, high = logits.aminmax()
            if rows > 1:
                later = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device)
                logits.masked_fill_(later.triu_(n - rows + first + 1), float("-inf"))
            # -inf would be a weight of 0, which looks like a number.
            finite = (high - low).isfinite()
            weights = logits.softmax(dim=-1)[..., columns].sum(dim=(0, 1))
            total = total + weights.where(finite, float("nan"))
        return total / (heads * rows)


class Finite:
    """Whether the scores by which a question's tokens were ranked are numbers.

    That is noted on the device, and read where the device is waited for anyway.
    """

    def __init__(self, question: str) -> None:
        self._question = question
        self._noted: list[tuple[int, torch.Tensor]] = []

    def note(self, layer: int, scores: torch.Tensor) -> None:
        """Scores that rank tokens, of attention in `layer`."""
        self._noted.append((layer, scores.isfinite().all()))

    def check(self) -> None:
        """Waits for the device where anything was noted since. Errors: NotFiniteError."""
        if not self._noted:
            return
        finite = torch.stack([one for _, one in self._noted]).tolist()
        for (layer, _), fine in zip(self._noted, finite, strict=True):
            if not fine:
                raise NotFiniteError.of(
                    f"The attention of layer {layer} (counted from 0) for question {self._question!r}"
                )
        self._noted.clear()


class Pruning:
    """One method at work on one question: attached to the decoder's layers, and the record of what it kept.

    A call that fills an empty cache is a prefill and starts over; any other call continues it (generated
    tokens, options, a follow-up turn) and sees the tokens that were chosen then. What a prefill holds after
    its video (or after a picture that follows it) is the question.
    """

    def __init__(
        self,
        family: Family,
        method: Method,
        plan: Plan,
        layout: Layout,
        seed: str,
        saliency: Saliency | None,
    ) -> None:
        self.plan = plan
        self.layout = layout
        self.tokens: list[torch.Tensor] = []
        self._family = family
        self._method = method
        self._seed = seed
        self._saliency = None if saliency is None else saliency.to(family.device)
        self._stages: tuple[Stage, ...] = stages(plan, layout, family.device)
        self._stage_at = {layer: j for j, layer in enumerate(plan.layers)}
        self._compact = method.positions == "compact"
        self._shortens_all = plan.layers[:1] == (0,)  # no layer's cache is as long as the prompt
        self._handles: list[Any] = []
        self._prefilling = False
        self._called = self._prefilled = False
        self._found: tuple[int, int] | None = (
            None  # where the video begins in a prompt, where the text after it
        )
        self._start = layout.text_before  # of the visual tokens in the sequence
        self._text_after = layout.text_after
        self._scores: torch.Tensor | None = None
        self._rotary: tuple[torch.Tensor, torch.Tensor] | None = None
        self._mask: torch.Tensor | None = None
        self._finite = Finite(seed)

    @property
    def kept(self) -> tuple[int, ...]:
        """Visual tokens that really stayed, per pruning layer."""
        return tuple(tokens.shape[0] for tokens in self.tokens)

    @property
    def ran(self) -> bool:
        """Whether the model was called since this was attached, and its last prefill pruned to the end."""
        return self._called and (not self._prefilled or len(self.tokens) == len(self.plan.layers))

    def attach(self) -> None:
        """Installs the hooks."""
        decoder, layers = self._family.language_model, self._family.layers
        if any(
            isinstance(getattr(hook, "__self__", None), Pruning)
            for hook in decoder._forward_pre_hooks.values()
        ):
            raise UnsupportedError("This model is already being pruned: one method at a time.")
        _check_backend(decoder)
        if any(_is_compiled(module) for module in self._family.model.modules()):
            raise UnsupportedError("A compiled model passes over the pruning: load it without torch.compile.")
        self._handles.append(decoder.register_forward_pre_hook(self._before_call, with_kwargs=True))
        if not self.plan.layers:
            return
        # The model under the head: it is called whether or not somebody wants logits.
        inner = self._family.model.base_model
        self._handles.append(inner.register_forward_pre_hook(self._find_video, with_kwargs=True))
        self._handles.append(_watch_generate(self._family.model, shortens_all=self._shortens_all))
        for j, layer in enumerate(self.plan.layers):
            if self.plan.score_rows != "none" and self.plan.total(j) < self.plan.total(j - 1):
                scored = partial(self._after_attention, layer - 1)
                self._handles.append(
                    layers[layer - 1].self_attn.register_forward_hook(scored, with_kwargs=True)
                )
        for index in range(self.plan.layers[0], len(layers)):
            before = partial(self._before_layer, index)
            self._handles.append(layers[index].register_forward_pre_hook(before, with_kwargs=True))

    def check(self) -> None:
        """Errors: NotFiniteError when tokens were ranked by what is not a number."""
        self._finite.check()

    def detach(self) -> None:
        """Takes every hook off again."""
        while self._handles:
            self._handles.pop().remove()

    # -- hooks, in the order in which a call meets them -------------------------------------------------

    def _find_video(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Where the video lies in a prompt that somebody else may have written."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            if _begins(kwargs.get("past_key_values")):
                raise UnsupportedError("The video is found by its tokens: pass input_ids, not inputs_embeds.")
            return
        if ids.shape[0] != 1:
            return  # a batch is refused in _before_call
        if not _begins(kwargs.get("past_key_values")):
            encoded = kwargs.get("mm_encoder_outputs") or {}
            if encoded.get("video") is not None or kwargs.get("pixel_values_videos") is not None:
                raise UnsupportedError("A follow-up turn asks about the same video: it cannot bring another.")
            return
        places = (ids[0] == self._family.video_token_id).nonzero()[:, 0]
        if len(places) == 0:
            raise UnsupportedError("The prompt holds no video, and pruning has nothing else to prune.")
        expected = self.layout.visual + self.layout.trailing
        videos = 1 + int((places.diff() > 1).sum())
        if videos > 1:
            raise UnsupportedError(f"One video per prompt is pruned, but the prompt has {videos}.")
        if len(places) != expected:
            raise UnsupportedError(f"The clip has {expected} video tokens, but the prompt has {len(places)}.")
        visual = places
        if self._family.image_token_id is not None:
            pictures = (ids[0] == self._family.image_token_id).nonzero()[:, 0]
            visual = torch.cat((places, pictures))
        self._found = int(places[0]), int(visual.max()) + 1

    def _before_call(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        embeddings, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        found, self._found, self._called = self._found, None, True
        if embeddings is None:
            raise UnsupportedError(
                "Pruning attaches to the whole model: call that, not its decoder with input_ids."
            )
        if embeddings.shape[0] != 1:
            raise UnsupportedError(
                f"One sequence at a time is pruned, but got a batch of {embeddings.shape[0]} "
                "(beam search and several returned sequences make one)."
            )
        _check_backend(self._family.language_model)
        _check_cache(cache)
        _check_mask(kwargs.get("attention_mask"))
        self._prefilling = _begins(cache)
        if self._prefilling:
            if self.plan.layers:
                self._locate(found, embeddings.shape[1])
            self.tokens.clear()
            self._rotary = self._mask = self._scores = None
            self._prefilled = True
        else:
            self.check()  # before a token that follows: the prompt's was waited for
            self._check_lengths(cache)
            if self._compact:
                # generate() counts on from the prompt it knows; the decoder itself from its cache, which is
                # as short as the renumbered sequence.
                kwargs["position_ids"] = None
            elif self._shortens_all and cache is not None:
                # The decoder would count on from its cache, which is shorter than the prompt.
                past = cache.get_seq_length() + self.layout.visual - self.plan.total(0)
                places = torch.arange(past, past + embeddings.shape[1], device=embeddings.device)
                kwargs["position_ids"] = places[None]
        return args, kwargs

    def _locate(self, found: tuple[int, int] | None, tokens: int) -> None:
        """Where this prompt's video begins, and how many tokens ask about it."""
        if found is None:
            # The decoder was called by itself: only the prompt that the layout describes can be followed.
            if tokens != self.layout.tokens:
                raise UnsupportedError("Pruning attaches to the whole model: call that, not its decoder.")
            found = self.layout.text_before, tokens - self.layout.text_after
        self._start, text = found
        self._text_after = tokens - text
        if self._text_after < 1:
            raise UnsupportedError(
                "The prompt ends with its video: pruning needs the question along with it."
            )

    def _check_lengths(self, cache: Any) -> None:
        """Refuses a cache that is not the pruned prompt's, or from which only some layers were cut back."""
        if len(self.tokens) < len(self.plan.layers):
            return  # a conversation that began in another block: its cache says how long each layer is
        dropped, lengths = 0, set()
        for index in range(len(self._family.layers)):
            j = self._stage_at.get(index)
            if j is not None:
                dropped = self.layout.visual - self.tokens[j].shape[0]
            lengths.add(cache.get_seq_length(index) + dropped)
        if len(lengths) > 1:
            raise UnsupportedError("This cache is not the one that the pruned prompt filled.")

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
        merged = None
        if stage.total >= n_visual:
            chosen = torch.arange(n_visual, device=device)
        elif self._method.merges:
            chosen, merged = merge(self._method, stage, hidden, start, self._saliency)
        else:
            if self._scores is not None:
                self._finite.note(self.plan.layers[j] - 1, self._scores)
            chosen = self._method.select(stage, self._scores, tokens, self._seed)
        self._scores = None
        self.tokens.append(tokens[chosen])
        every = torch.arange(hidden.shape[1], device=device)
        rows = torch.cat((every[:start], chosen + start, every[start + n_visual :]))
        if self._rotary is None:  # the first pruning of this call
            self._rotary, self._mask = kwargs["position_embeddings"], kwargs["attention_mask"]
        assert self._rotary is not None
        places = every[: rows.shape[0]] if self._compact else rows
        cos, sin = self._rotary
        self._rotary = (cos.index_select(1, places), sin.index_select(1, places))
        if self._mask is not None and self._mask.dim() == 4:
            self._mask = self._mask.index_select(2, rows).index_select(3, rows)
        hidden = hidden.index_select(1, rows)
        if merged is not None:
            hidden[0, start : start + stage.total] = merged
        return hidden


def _begins(cache: Any) -> bool:
    """Whether a call with this cache is a prefill."""
    return cache is None or cache.get_seq_length() == 0


def _check_backend(decoder: Any) -> None:
    backend = decoder.config._attn_implementation
    if backend not in BACKENDS:
        raise UnsupportedError(f"Pruning works with {', '.join(BACKENDS)}, but the model runs {backend}.")


def _check_mask(mask: Any) -> None:
    """Scores are read from whole rows, and masks are cut on the left: both hold for plain causal masks
    alone.
    """
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2 or not bool(mask.all())):
        raise UnsupportedError(
            "Pruning takes a prompt without padding: leave attention_mask out, or make it all ones."
        )


def _check_cache(cache: Any) -> None:
    """Scores are read from the keys in the cache, which other caches pad, compress or move away."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if cache is None:
        return
    plain = type(cache) is DynamicCache and not cache.offloading
    if not plain or any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise UnsupportedError(
            f"Pruning needs the dynamic cache that generate() makes by default, but got {_describe(cache)}."
        )


def _describe(cache: Any) -> str:
    kinds = {type(layer).__name__ for layer in cache.layers}
    offloaded = ", offloaded" if cache.offloading else ""
    return f"{type(cache).__name__} ({', '.join(sorted(kinds)) or 'empty'}{offloaded})"


def _is_compiled(module: torch.nn.Module) -> bool:
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


class _Watch:
    """Stands before a model's generate() and asks first; `remove` takes it away again."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._before = vars(model).get("generate")

    def remove(self) -> None:
        if self._before is None:
            del self._model.generate
        else:
            self._model.generate = self._before


def _watch_generate(model: Any, *, shortens_all: bool) -> _Watch:
    """Refuses, before anything runs, the ways of decoding that hooks on the model cannot tell apart.

    Assisted decoding checks guesses along with the prompt, and a prefill in chunks shows a part of the
    question: each looks like a question of its own, and other tokens would be kept. shortens_all: whether no
    layer keeps the whole prompt.
    """
    watch, generate = _Watch(model), model.generate
    parameters = signature(generate)

    @wraps(generate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        given = parameters.bind(*args, **kwargs).arguments
        _check_generation(model, {**given, **given.get("kwargs", {})}, shortens_all=shortens_all)
        return generate(*args, **kwargs)

    model.generate = watched
    return watch


def _check_generation(model: Any, given: dict[str, Any], *, shortens_all: bool) -> None:
    """given: the arguments of a call of generate()."""
    from transformers.generation.configuration_utils import GenerationMode

    config = deepcopy(given.get("generation_config") or model.generation_config)
    for name in set(given) & set(vars(config)):
        setattr(config, name, given[name])
    mode = config.get_generation_mode(given.get("assistant_model"))
    refused = {
        f"{mode.value.replace('_', ' ')}": mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE),
        "a custom_generate": given.get("custom_generate") is not None,
        f"{config.num_return_sequences} returned sequences": (config.num_return_sequences or 1) > 1,
        "a prefill in chunks": config.prefill_chunk_size is not None,
        f"the cache implementation {config.cache_implementation}": config.cache_implementation
        not in (None, "dynamic"),
        "classifier-free guidance": config.guidance_scale not in (None, 1),
    }
    wanted = [name for name, asked in refused.items() if asked]
    if wanted:
        raise UnsupportedError(f"{DECODING}, but {' and '.join(wanted)} was asked for.")
    cache = given.get("past_key_values")
    if shortens_all and cache is not None and cache.get_seq_length() > 0:
        # generate() takes as many tokens for said as layer 0 holds, and here that layer was pruned.
        raise UnsupportedError(
            "A method that prunes before layer 0 cannot go on through generate(): call the model with the "
            "new tokens and the cache."
        )


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
    saliency: Saliency | None = None,
) -> Iterator[Pruning]:
    """The family's model prunes inside the block and is exactly as before after it.

    seed: the question's id, for methods that draw. plan: the method's plan for this layout, where it is at
    hand. saliency: the clip's, for methods that merge. Errors: UnsupportedError for what cannot be pruned
    correctly.
    """
    plan = method.plan(layout, len(family.layers)) if plan is None else plan
    pruning = Pruning(family, method, plan, layout, seed, saliency)
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

    A follow-up call on the same cache keeps the tokens that were chosen for the first question. The prompt's
    video must be the clip: another video of the same length cannot be told from it, and would be pruned by
    the clip's plan. Errors: UnsupportedError for what cannot be pruned correctly; also at the end, where the
    model was not called, as happens when a compiled copy of it was. NotFiniteError, at the end or before a
    second token, where the tokens were ranked by attention that is not a number.
    """
    layout = runtime.layout(clip, question)
    with attached(
        runtime.family, method, layout, seed=question.id, saliency=clip.saliency if method.merges else None
    ) as pruning:
        yield pruning
        if not pruning.ran:
            raise UnsupportedError(
                "The model was not called inside pruned(...), or a compiled copy was, which is not pruned."
            )
        pruning.check()
