"""A loaded model with its aligned encoder: encodes videos, plans questions, answers them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.answering import Answer
from pipeline.checkpoint import find_checkpoint
from pipeline.clip import Clip, Saliency
from pipeline.encoders import AlignedEncoder, load_encoder
from pipeline.errors import NotFiniteError
from pipeline.families import load_family
from pipeline.families.base import Family
from pipeline.flops import ModelShape, plan_flops, unpruned_flops
from pipeline.generation import Prefill, prefill
from pipeline.layout import Layout
from pipeline.methods.base import Method
from pipeline.packing import Pack, PackItem, build_prefix
from pipeline.peak_memory import PeakMemory
from pipeline.prefix import Prefix
from pipeline.prompt import Prompt
from pipeline.question import SCORING_VERSION, SCORINGS, Question, Scoring, option_texts, prompt_text

if TYPE_CHECKING:
    from pipeline.cache import TensorCache

PREFIX_BYTES = 512 * 2**20  # memory for stored prefixes; one is kept whatever its size

# Part of every cache key and of what answers are recorded by: raise it when encoding changes, or what a model
# answers, so that neither features nor answers stored before are taken for new ones.
# 5: spoilt frames of damaged videos, VP8, VP9 and more than 8 bits were read otherwise before.
ENCODING_VERSION = 5

USUAL_ATTENTION = "sdpa"  # of transformers' attention implementations

# What a stored clip holds. An entry that lacks some of it was written before that was stored: the others are
# what they were, so neither its key nor any identity made of it changes, and it is computed again.
STORED = frozenset(
    ("features", "frame_embeddings", "frame_times", "seconds", "pooling", "received", "keys"),
)

EXTRA = "extra."  # before the names of what a family stores beside them


class Request(NamedTuple):
    """One question to be asked."""

    clip: Clip
    question: Question
    method: Method | None  # None: the unpruned model
    reference: str | None = None  # see `Runtime.answer`


class Runtime:
    """Everything needed to ask a model about videos. Not for use from several threads."""

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
        cache: TensorCache | None = None,
        clips: TensorCache | None = None,
        decode_timeout: float = 60.0,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        """cache: keeps embeddings of texts and, where no other is given for these, `clips`: encoded
        videos.
        """
        if frames < 1:
            raise ValueError(f"At least one frame is sampled, but got {frames=}.")
        if max_new_tokens < 1:
            raise ValueError(f"At least one token is generated, but got {max_new_tokens=}.")
        if scoring not in SCORINGS:
            raise ValueError(f"scoring is one of {', '.join(SCORINGS)}, but got {scoring!r}.")
        self.family = family
        self.identity = identity
        self.encoder_identity = encoder_identity
        self.frames = frames
        self.scoring: Scoring = scoring
        self.max_new_tokens = max_new_tokens
        self.shape: ModelShape = encoder.extend(family.shape)
        self.dtype = str(family.dtype).removeprefix("torch.")
        self.encoding = _digest(
            str(ENCODING_VERSION),
            identity,
            encoder_identity,
            str(frames),
            self.dtype,
            *((f"pooling {family.pooling}",) if family.pooling is not None else ()),
            # Other backends round otherwise. The usual one is left out, so that what it stored stays.
            *((f"attention {family.attention}",) if family.attention != USUAL_ATTENTION else ()),
        )
        self.encoder = encoder
        self._cache = cache
        self._clips = cache if clips is None else clips
        self.decode_timeout = decode_timeout
        self._prefixes = _PrefixStore(prefix_bytes)
        # Since it was loaded, how often a video's features were read from a cache or computed, and a prefix
        # was reused or built: `features_read`, `features_computed`, `prefixes_reused`,
        # `prefixes_built`.
        self.cache_counts: Counter[str] = Counter()
        self._made_prompt = lru_cache(maxsize=1024)(family.prompt)
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
        attention: str = USUAL_ATTENTION,
        pooling: str | None = None,
        allow_pickle: bool = False,
        cache: TensorCache | None = None,
        clips: TensorCache | None = None,
        decode_timeout: float = 60.0,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> Self:
        """Loads a model and its aligned encoder by Hugging Face id or folder.

        dtype "auto" is float32 on a CPU, half precision on a GPU. pooling: instead of the checkpoint's own,
        for a family that has several. allow_pickle: whether weights stored as pickles may be read where there
        are no others. decode_timeout: seconds without progress after which decoding a video is given up.
        Errors: ModelError when either cannot be loaded or the two do not belong together.
        """
        checkpoint = find_checkpoint(model, revision, allow_pickle=allow_pickle)
        encoder_checkpoint = find_checkpoint(text_encoder, text_encoder_revision, allow_pickle=allow_pickle)
        family = load_family(checkpoint, device=device, dtype=dtype, attention=attention, pooling=pooling)
        return cls(
            family,
            load_encoder(encoder_checkpoint, family),
            identity=checkpoint.identity,
            encoder_identity=encoder_checkpoint.identity,
            frames=frames,
            scoring=scoring,
            max_new_tokens=max_new_tokens,
            cache=cache,
            clips=clips,
            decode_timeout=decode_timeout,
            prefix_bytes=prefix_bytes,
        )

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.family.model

    # -- encoding ---------------------------------------------------------------------------------------

    def encode(self, path: str | Path) -> Clip:
        """Decodes a video and encodes its frames, or takes both from a cache.

        Errors: VideoError when it cannot be read; NotFiniteError when the model makes no numbers of it.
        """
        from pipeline import video

        digest = video.content_hash(path)
        kept = self.kept(path, digest)
        if kept is not None:
            return kept
        frames, times, seconds = video.read_frames(
            path, self.frames, self.decode_timeout, size=self.family.frame_size
        )
        computed = self._encode_frames(frames, times, seconds, str(path))
        if self._clips is not None:
            metadata = {"kind": "clip", "video": digest, "encoding": self.encoding}
            self._clips.put(self._clip_key(digest), computed, metadata)
        self.cache_counts["features_computed"] += 1
        return self._clip(str(path), digest, computed)

    def kept(self, path: str | Path, digest: str) -> Clip | None:
        """The encoded video with this hash of its bytes, if a cache has it; `path` is its name, not read."""
        stored = None if self._clips is None else self._clips.get(self._clip_key(digest))
        if stored is None or not stored.keys() >= STORED:
            return None
        self.cache_counts["features_read"] += 1
        return self._clip(str(path), digest, stored)

    def _clip_key(self, digest: str) -> str:
        return _digest("clip", self.encoding, digest)

    def encode_frames(
        self,
        frames: NDArray[np.uint8],
        times: NDArray[np.floating],
        name: str = "frames",
        *,
        seconds: float | None = None,
    ) -> Clip:
        """A clip from frames at hand: (n, H, W, 3) RGB, their times in seconds. Nothing is stored on disk.

        seconds: length of the video; None for one that ends with the last of these frames.
        """
        digest = hashlib.sha256(np.ascontiguousarray(frames).tobytes()).hexdigest()
        length = float(times[-1]) if seconds is None else seconds
        return self._clip(name, digest, self._encode_frames(frames, times, length, name))

    def _encode_frames(
        self, frames: NDArray[np.uint8], times: NDArray[np.floating], seconds: float, name: str
    ) -> dict[str, torch.Tensor]:
        encoded = self.family.encode_frames(frames)
        embeddings = self.encoder.embed_frames(frames, encoded.tower_features)
        # One pooling for all that is said of a patch: (frames, patches, 1 + 1 + head).
        pooling = self.encoder.pooling_attention(frames, encoded.tower_features)
        attention = (pooling, encoded.received)
        patches = torch.cat((*(scores[..., None] for scores in attention), encoded.keys), dim=-1)
        cells = self.family.pool(patches).cpu()
        stored = {
            "features": encoded.features.cpu(),
            "frame_embeddings": embeddings.cpu(),
            "pooling": cells[..., 0],
            "received": cells[..., 1],
            "keys": cells[..., 2:],
            "frame_times": torch.tensor(np.asarray(times, dtype=np.float64)),
            "seconds": torch.tensor(seconds, dtype=torch.float64),
            **{f"{EXTRA}{name}": tensor.cpu() for name, tensor in encoded.extra.items()},
        }
        # NaN sorts and compares as if it were a number: later on nothing would say that these are none.
        if not all(part.isfinite().all() for part in stored.values()):
            raise NotFiniteError.of(f"What the vision tower makes of {name}")
        return stored

    def _clip(self, path: str, digest: str, tensors: dict[str, torch.Tensor]) -> Clip:
        frames, cells = tensors["pooling"].shape
        return Clip(
            path=path,
            content_hash=digest,
            frame_times=tensors["frame_times"].numpy(),
            features=tensors["features"],
            frame_embeddings=tensors["frame_embeddings"],
            saliency=Saliency(tensors["pooling"], tensors["received"], tensors["keys"]),
            cells=cells,
            trailing=len(tensors["features"]) - frames * cells,
            seconds=float(tensors["seconds"]),
            extra={
                name.removeprefix(EXTRA): tensor for name, tensor in tensors.items() if name.startswith(EXTRA)
            },
        )

    def text_embedding(self, question: Question) -> NDArray[np.float32]:
        """(E,) embedding of the question's stem in the space of the frame embeddings."""
        return self._text_embedding(question.text)

    def _make_text_embedding(self, text: str) -> NDArray[np.float32]:
        key = _digest("text/2", self.encoding, text)  # 2: without control tokens
        stored = self._cache.get(key) if self._cache is not None else None
        if stored is not None:
            embedding: NDArray[np.float32] = stored["text_embedding"].numpy()
            return embedding
        embedding = self.encoder.embed_text(text)
        if not np.isfinite(embedding).all():
            raise NotFiniteError.of(f"The embedding of {text!r}")
        if self._cache is not None:
            tensors = {"text_embedding": torch.from_numpy(embedding.copy())}
            self._cache.put(key, tensors, {"kind": "text", "encoding": self.encoding})
        return embedding

    # -- planning ---------------------------------------------------------------------------------------

    def prompt(self, clip: Clip, question: Question) -> Prompt:
        """What the language model reads for this question about this video."""
        # Kept by all that a prompt depends on: two clips of one shape may share it, two shapes never.
        return self._made_prompt(prompt_text(question, self.scoring), clip.shape)

    def layout(self, clip: Clip, question: Question) -> Layout:
        """Where the question's tokens sit and how relevant each frame is to it."""
        return clip.layout(self.text_embedding(question), self.prompt(clip, question))

    def inputs(self, clip: Clip, question: Question) -> dict[str, Any]:
        """Keyword arguments to call the untouched `model` on the whole prompt in one pass."""
        return self.family.video_inputs(self.prompt(clip, question), clip.features)

    def fingerprint(self, method: Method | None, layout: Layout) -> str:
        """What, beside the question, was asked of the model: equal fingerprints mean equal answers.

        Covers model and encoding, scoring, method, plan and selection options. A method whose plan keeps
        everything asks what the unpruned model is asked.
        """
        asked = f"{self.encoding}|{self.scoring}/{SCORING_VERSION}|{self.max_new_tokens}"
        plan = None if method is None else method.plan(layout, self.shape.layers)
        if method is None or plan is None or plan.keeps_everything:
            return _digest(asked, "unpruned")
        options = ",".join(f"{name}={value}" for name, value in sorted(method.selection_options().items()))
        return _digest(asked, method.name, plan.key(), options)

    # -- answering --------------------------------------------------------------------------------------

    def answer(
        self, clip: Clip, question: Question, method: Method | None, *, reference: str | None = None
    ) -> Answer:
        """Asks the pruned model, or the unpruned one for `method=None`.

        The prefill is split at the end of the video: system prompt and video first (kept for the clip's next
        question), then the question. reference: for a free answer, the text whose teacher-forced
        log-probability is reported instead of that of the generated text. Errors: PipelineError when the
        tokens kept are not the tokens planned, which would make every FLOPs figure wrong; NotFiniteError
        when a log-probability, or the attention that tokens were ranked by, is not a finite number.
        """
        return self.answer_many([Request(clip, question, method, reference)])[0]

    @torch.inference_mode()
    def prefill(self, clip: Clip, question: Question, method: Method | None) -> Prefill:
        """Reads the prompt as `answer` does, for transformers' own `generate` to go on from.

        Errors: as `answer`.
        """
        return prefill(self.family, self.pack_item(Request(clip, question, method)))

    @torch.inference_mode()
    def one_pass(self, clip: Clip, question: Question, method: Method | None) -> Pack:
        """Reads the prompt from the first layer on, without a stored prefix: what FLOPs are counted of."""
        return Pack(self.family, [self.pack_item(Request(clip, question, method), stored=False)])

    @torch.inference_mode()
    def answer_many(self, requests: Sequence[Request]) -> list[Answer]:
        """Asks several questions, of one or several videos, in one packed forward without padding.

        Each is pruned by its own plan. The answers are those of `answer` up to rounding, which changes with
        the shape of the matrices: docs/experiments.md says how far. Their seconds and their memory are equal
        shares of the whole. Errors: as `answer`.
        """
        if not requests:
            return []
        begin = perf_counter()
        with PeakMemory(self.family.device) as peak:
            items = [self.pack_item(request) for request in requests]
            pack = Pack(self.family, items)
            chosen = {
                i: request.question
                for i, request in enumerate(requests)
                if request.question.options is not None
            }
            free = [i for i in range(len(requests)) if i not in chosen]
            texts = {
                i: [self._option_ids(text) for text in option_texts(question, self.scoring)]
                for i, question in chosen.items()
            }
            scores = pack.score(texts, mean=self.scoring == "words_per_token") if texts else {}
            said = pack.greedy(free, self.max_new_tokens, self.family.end_ids) if free else {}
            words = {i: self._decode(ids) for i, (ids, _) in said.items()}
            # A reference; or the model's own text, where going from text back to tokens gives other tokens:
            # baseline and pruned answers are compared by the probability of the same text.
            wanted = {i: self._reference_ids(requests[i].reference, words[i]) for i in free}
            other = {i: [ids] for i, ids in wanted.items() if ids and ids != said[i][0]}
            rescored = pack.score(other) if other else {}
        seconds = (perf_counter() - begin) / len(requests)
        peak_bytes = None if peak.bytes is None else peak.bytes // len(requests)
        answers = []
        for i, (request, item) in enumerate(zip(requests, items, strict=True)):
            question, kept = request.question, pack.kept(i)
            saved = (self._flops_ratio(item), item.layout.visual)
            if question.options is not None:
                best = max(range(len(scores[i])), key=scores[i].__getitem__)
                answers.append(
                    Answer(
                        question.id,
                        question.options[best],
                        best,
                        scores[i],
                        scores[i][best],
                        kept,
                        seconds,
                        peak_bytes,
                        *saved,
                    )
                )
            else:
                known = rescored[i][0] if i in rescored else said[i][1]
                logprob = known if wanted[i] else None
                answers.append(
                    Answer(question.id, words[i], None, None, logprob, kept, seconds, peak_bytes, *saved)
                )
        return answers

    def pack_item(self, request: Request, *, stored: bool = True) -> PackItem:
        """A question as `Pack` takes it. stored: from the stored prefix, or from the first layer on."""
        clip, question, method, _ = request
        device = self.family.device
        layout, prompt = self.layout(clip, question), self.prompt(clip, question)
        plan = None if method is None else method.plan(layout, self.shape.layers)
        if plan is not None and plan.keeps_everything:
            plan = None
        layers = self.shape.layers if plan is None else plan.layers[0]
        prefix = self.prefix(clip, layers) if stored else self._make_prefix(clip, 0)
        merges = method is not None and plan is not None and method.merges
        return PackItem(
            prompt,
            layout,
            prefix,
            None if plan is None else method,
            plan,
            question.id,
            clip.saliency.to(device) if merges else None,
            {name: tensor.to(device) for name, tensor in clip.extra.items()},
        )

    def _flops_ratio(self, item: PackItem) -> float:
        """The question's prefill by its plan over the unpruned one."""
        if item.plan is None:
            return 1.0
        return plan_flops(item.plan, item.layout, self.shape) / unpruned_flops(item.layout, self.shape)

    def _reference_ids(self, reference: str | None, said: str) -> tuple[int, ...]:
        return self._option_ids(said if reference is None else reference)

    def _decode(self, ids: tuple[int, ...]) -> str:
        text: str = self.family.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    def prefix(self, clip: Clip, layers: int) -> Prefix:
        """System prompt and video after so many layers: the stored ones, or made and stored now."""
        key = (clip.content_hash, layers)
        self.cache_counts["prefixes_reused" if key in self._prefixes else "prefixes_built"] += 1
        return self._prefixes.get(key, lambda: self._make_prefix(clip, layers))

    def _make_prefix(self, clip: Clip, layers: int) -> Prefix:
        prompt, device = self.prompt(clip, Question("", "")), self.family.device
        extra = {name: tensor.to(device) for name, tensor in clip.extra.items()}
        return build_prefix(self.family, prompt, clip.features.to(device), extra, layers)

    @property
    def prefix_bytes(self) -> int:
        """Memory for stored prefixes; may be set once it is known what the loaded model leaves free."""
        return self._prefixes.max_bytes

    @prefix_bytes.setter
    def prefix_bytes(self, value: int) -> None:
        self._prefixes.max_bytes = value

    def forget_prefixes(self) -> None:
        """Frees the stored prefixes."""
        self._prefixes.clear()


class _PrefixStore:
    """Prefixes within a bound in bytes. Which one makes room is drawn: of videos that are visited in turns
    and do not all fit, the least recently used is the one that is needed next.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: dict[tuple[str, int], Prefix] = {}
        self._drawn = Random(0)

    def get(self, key: tuple[str, int], build: Callable[[], Prefix]) -> Prefix:
        if key in self._held:
            return self._held[key]
        prefix = build()
        size = prefix.nbytes + sum(held.nbytes for held in self._held.values())
        while self._held and size > self.max_bytes:
            size -= self._held.pop(self._drawn.choice(list(self._held))).nbytes
        self._held[key] = prefix
        return prefix

    def clear(self) -> None:
        self._held.clear()

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
