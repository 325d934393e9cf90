"""A loaded model with its aligned encoder: encodes videos, plans questions, answers them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.answering import Answer, Continuation
from pipeline.checkpoint import find_checkpoint
from pipeline.clip import Clip
from pipeline.encoders import AlignedEncoder, load_encoder
from pipeline.errors import PipelineError
from pipeline.families import load_family
from pipeline.families.base import Family, Prompt
from pipeline.flops import ModelShape
from pipeline.layout import Layout
from pipeline.methods.base import Method
from pipeline.plan import Plan
from pipeline.pruning import Prefix, Pruning, attached, build_prefix
from pipeline.question import Question, Scoring, option_texts, prompt_text

if TYPE_CHECKING:
    from pipeline.cache import FeatureCache

PREFIX_BYTES = 512 * 2**20  # memory for stored prefixes; one is kept whatever its size

# Part of every cache key: raise it when encoding changes, so that features stored before are not taken.
ENCODING_VERSION = 1


class Runtime:
    """Everything needed to ask a model about videos. One question at a time; not for use from several
    threads.
    """

    def __init__(
        self,
        family: Family,
        encoder: AlignedEncoder,
        *,
        identity: str,
        encoder_identity: str,
        frames: int,
        scoring: Scoring = "words",
        max_new_tokens: int = 16,
        cache: FeatureCache | None = None,
        decode_timeout: float = 60.0,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        if frames < 1:
            raise ValueError(f"At least one frame is sampled, but got {frames=}.")
        if max_new_tokens < 1:
            raise ValueError(f"At least one token is generated, but got {max_new_tokens=}.")
        if scoring not in ("letter", "words"):
            raise ValueError(f"scoring is 'letter' or 'words', but got {scoring!r}.")
        self.family = family
        self.identity = identity
        self.encoder_identity = encoder_identity
        self.frames = frames
        self.scoring: Scoring = scoring
        self.max_new_tokens = max_new_tokens
        self.shape: ModelShape = encoder.extend(family.shape)
        dtype = str(family.dtype).removeprefix("torch.")
        self.encoding = _digest(str(ENCODING_VERSION), identity, encoder_identity, str(frames), dtype)
        self._encoder = encoder
        self._cache = cache
        self._decode_timeout = decode_timeout
        self._prefixes = _PrefixStore(prefix_bytes)
        self._prompt = lru_cache(maxsize=4096)(self._make_prompt)
        self._option_ids = lru_cache(maxsize=4096)(family.answer_ids)
        self._text_embedding = lru_cache(maxsize=4096)(self._make_text_embedding)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        text_encoder: str,
        text_encoder_revision: str | None = None,
        frames: int,
        scoring: Scoring = "words",
        max_new_tokens: int = 16,
        device: str = "auto",
        dtype: str = "auto",
        attention: str = "sdpa",
        cache: FeatureCache | None = None,
        decode_timeout: float = 60.0,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> Self:
        """Loads a model and its aligned encoder by Hugging Face id or folder.

        dtype "auto" is float32 on a CPU, half precision on a GPU. decode_timeout: seconds for one video.
        Errors: ModelError when either cannot be loaded or the two do not belong together.
        """
        checkpoint = find_checkpoint(model, revision)
        encoder_checkpoint = find_checkpoint(text_encoder, text_encoder_revision)
        family = load_family(checkpoint, device=device, dtype=dtype, attention=attention)
        return cls(
            family,
            load_encoder(encoder_checkpoint, family),
            identity=checkpoint.identity,
            encoder_identity=encoder_checkpoint.identity,
            frames=frames,
            scoring=scoring,
            max_new_tokens=max_new_tokens,
            cache=cache,
            decode_timeout=decode_timeout,
            prefix_bytes=prefix_bytes,
        )

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.family.model

    # -- encoding ---------------------------------------------------------------------------------------

    def encode(self, path: str | Path) -> Clip:
        """Decodes a video and encodes its frames, or takes both from the disk cache.

        Errors: VideoError when it cannot be read.
        """
        from pipeline import video

        digest = video.content_hash(path)
        key = _digest("clip", self.encoding, digest)
        stored = self._cache.get(key) if self._cache is not None else None
        if stored is None:
            frames, times = video.read_frames(path, self.frames, self._decode_timeout)
            stored = self._encode_frames(frames)
            stored["frame_times"] = torch.from_numpy(np.ascontiguousarray(times, dtype=np.float64))
            if self._cache is not None:
                self._cache.put(key, stored, {"kind": "clip", "video": digest, "encoding": self.encoding})
        return self._clip(str(path), digest, stored)

    def encode_frames(
        self, frames: NDArray[np.uint8], times: NDArray[np.floating], name: str = "frames"
    ) -> Clip:
        """A clip from frames at hand: (n, H, W, 3) RGB, their times in seconds. Nothing is stored on disk."""
        digest = hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
        encoded = self._encode_frames(frames)
        encoded["frame_times"] = torch.from_numpy(np.array(times, dtype=np.float64))
        return self._clip(name, digest, encoded)

    def _encode_frames(self, frames: NDArray[np.uint8]) -> dict[str, torch.Tensor]:
        encoded = self.family.encode_frames(frames)
        embeddings = self._encoder.embed_frames(encoded.tower_features)
        return {"features": encoded.features.cpu(), "frame_embeddings": embeddings.cpu()}

    def _clip(self, path: str, digest: str, tensors: dict[str, torch.Tensor]) -> Clip:
        return Clip(
            path=path,
            content_hash=digest,
            frame_times=tensors["frame_times"].numpy(),
            features=tensors["features"],
            frame_embeddings=tensors["frame_embeddings"],
            cells=self.family.cells,
            trailing=self.family.trailing,
        )

    def text_embedding(self, question: Question) -> NDArray[np.float32]:
        """(E,) embedding of the question's stem in the space of the frame embeddings."""
        return self._text_embedding(question.text)

    def _make_text_embedding(self, text: str) -> NDArray[np.float32]:
        key = _digest("text", self.encoding, text)
        stored = self._cache.get(key) if self._cache is not None else None
        if stored is not None:
            embedding: NDArray[np.float32] = stored["text_embedding"].numpy()
            return embedding
        embedding = self._encoder.embed_text(text)
        if self._cache is not None:
            tensors = {"text_embedding": torch.from_numpy(embedding.copy())}
            self._cache.put(key, tensors, {"kind": "text", "encoding": self.encoding})
        return embedding

    # -- planning ---------------------------------------------------------------------------------------

    def _make_prompt(self, question: Question) -> Prompt:
        return self.family.prompt(prompt_text(question, self.scoring))

    def layout(self, clip: Clip, question: Question) -> Layout:
        """Where the question's tokens sit and how relevant each frame is to it."""
        prompt = self._prompt(question)
        return clip.layout(self.text_embedding(question), len(prompt.before), len(prompt.after))

    def inputs(self, clip: Clip, question: Question) -> dict[str, Any]:
        """Keyword arguments to call `model` on the whole prompt in one pass."""
        return self.family.video_inputs(self._prompt(question), clip.features)

    def fingerprint(self, method: Method | None, layout: Layout) -> str:
        """What, beside the question, was asked of the model: equal fingerprints mean equal answers.

        Covers model and encoding, scoring, method, plan and selection options. A method whose plan keeps
        everything asks what the unpruned model is asked.
        """
        asked = f"{self.encoding}|{self.scoring}|{self.max_new_tokens}"
        plan = None if method is None else method.plan(layout, self.shape.layers)
        if method is None or plan is None or plan.keeps_everything:
            return _digest(asked, "unpruned")
        options = ",".join(f"{name}={value}" for name, value in sorted(method.selection_options().items()))
        return _digest(asked, method.name, plan.key(), options)

    # -- answering --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def answer(
        self, clip: Clip, question: Question, method: Method | None, *, reference: str | None = None
    ) -> Answer:
        """Asks the pruned model, or the unpruned one for `method=None`.

        The prefill is split at the end of the video: system prompt and video first (kept for the clip's next
        question), then the question. reference: for a free answer, the text whose teacher-forced
        log-probability is reported instead of that of the generated text. Errors: PipelineError when the
        tokens kept are not the tokens planned, which would make every FLOPs figure wrong.
        """
        begin = perf_counter()
        layout = self.layout(clip, question)
        plan = None if method is None else method.plan(layout, self.shape.layers)
        if method is None or plan is None or plan.keeps_everything:
            prefix, plan = self._prefix(clip, self.shape.layers), None
            context: Any = nullcontext()
            position = prefix.tokens
        else:
            prefix = self._prefix(clip, plan.layers[0])
            context = attached(self.family, method, layout, seed=question.id, plan=plan, prefix=prefix)
            compact = method.positions == "compact"
            position = layout.text_before + plan.total(0) + layout.trailing if compact else prefix.tokens
        with context as pruning:
            after = self._prompt(question).after
            cache = prefix.cache(self.family)
            hidden = self.family.language_model(
                inputs_embeds=self.family.embed(after),
                position_ids=torch.arange(position, position + len(after), device=self.family.device)[None],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            if plan is not None:
                _check_kept(plan, layout, pruning, cache)
            said = Continuation(self.family, cache, position + len(after), hidden[:, -1:])
            kept = pruning.kept if plan is not None else ()
            return self._read_answer(said, question, reference, kept, begin)

    def _read_answer(
        self,
        said: Continuation,
        question: Question,
        reference: str | None,
        kept: tuple[int, ...],
        begin: float,
    ) -> Answer:
        if question.options is not None:
            texts = option_texts(question, self.scoring)
            scores = said.score([self._option_ids(text) for text in texts])
            best = max(range(len(scores)), key=scores.__getitem__)
            return Answer(
                question.id, question.options[best], best, scores, scores[best], kept, perf_counter() - begin
            )
        asked = said.mark()
        ids, logprob = said.greedy(self.max_new_tokens, self.family.end_ids)
        text = self._decode(ids)
        scored = self._option_ids(text if reference is None else reference)
        if scored != ids:
            # A reference; or the model's own text, where going from text back to tokens gives other tokens:
            # baseline and pruned answers are compared by the probability of the same text.
            said.back_to(asked)
            logprob = said.score([scored])[0] if scored else 0.0
        return Answer(
            question.id, text, None, None, logprob if scored else None, kept, perf_counter() - begin
        )

    def _decode(self, ids: tuple[int, ...]) -> str:
        text: str = self.family.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def _prefix(self, clip: Clip, layers: int) -> Prefix:
        def build() -> Prefix:
            before = self.family.embed(self._system_ids())
            features = clip.features.to(before.device, before.dtype)
            return build_prefix(self.family, torch.cat((before, features[None]), dim=1), layers)

        return self._prefixes.get((clip.content_hash, layers), build)

    def _system_ids(self) -> tuple[int, ...]:
        """Prompt tokens before the video: the same for every question."""
        return self._prompt(Question("", "")).before

    def forget_prefixes(self) -> None:
        """Frees the stored prefixes."""
        self._prefixes.clear()


def _check_kept(plan: Plan, layout: Layout, pruning: Pruning, cache: Any) -> None:
    """Planned against what is really in the cache, layer by layer."""
    planned = plan.tokens_per_layer(len(cache.layers), layout)
    held = tuple(layer.get_seq_length() for layer in cache.layers)
    if held != planned or pruning.kept != tuple(plan.total(j) for j in range(len(plan.layers))):
        raise PipelineError(f"The plan keeps {planned} tokens per layer, but the model kept {held}.")


class _PrefixStore:
    """Least recently used prefixes, within a bound in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[tuple[str, int], Prefix] = OrderedDict()

    def get(self, key: tuple[str, int], build: Callable[[], Prefix]) -> Prefix:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        prefix = build()
        self._held[key] = prefix
        while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > self._max_bytes:
            self._held.popitem(last=False)
        return prefix

    def clear(self) -> None:
        self._held.clear()

    def __len__(self) -> int:
        return len(self._held)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
