"""What runs inside a worker: a loaded model that answers a study's questions, one configuration at a time.

Only plain data travels between driver and worker: a specification to the worker, dicts of answers back.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.cache import FeatureCache
from pipeline.errors import VideoError
from pipeline.question import Question, Scoring
from pipeline.video import TIMEOUT
from tuner.errors import without_passwords
from tuner.evaluation.loop import Loop
from tuner.study import Study

if TYPE_CHECKING:
    import torch

    from pipeline.answering import Answer
    from pipeline.clip import Clip
    from pipeline.runtime import Request, Runtime

# Vision features of recently used clips that stay in memory, in bytes; a whole small study fits.
CLIP_BYTES = 512 * 2**20

# The cache of vision features on disk: 1,000 clips of a 7B model in half precision.
CACHE_BYTES = 50 * 2**30


# Tokens of a prompt beside its video, for planning memory: a long question with the times of 64 frames.
PROMPT_TOKENS = 1024

# Questions in a pack for the noise floor where the usual pack holds one question.
RESHAPED = 4


class Evaluator(Protocol):
    """Answers questions; stays alive from batch to batch and from trial to trial."""

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        """The answers to these question ids as plain data; configuration None is the unpruned model.

        reshaped: ask in packs of another size than usual, so that every matrix product has another shape.
        """

    def cache_use(self) -> dict[str, int]:
        """Fields of `CacheUse` counted since the last call, as plain data; zeros are left out."""


EvaluatorFactory = Callable[[], Evaluator]


def refused_address(address: str, name: str) -> str | None:
    """Why this address, given by the option or variable `name`, cannot be used; None if it can.

    Addresses with a scheme are for Ray's clients, which run outside of the cluster; a driver cannot.
    """
    scheme, found, _ = address.partition("://")
    if not found:
        return None
    submit = "`ray job submit --address http://HEAD:8265 -- tuner run ...`"
    return (
        f"{name} is auto or HOST:PORT of a Ray cluster that this machine is part of, such as head:6379, but "
        f"got {without_passwords(address)!r}: {scheme}:// is for Ray's clients. From outside the cluster "
        f"submit the command: {submit}"
    )


class Executor(Protocol):
    """Evaluates what a loop proposes until there is nothing left."""

    def run(self, loop: Loop) -> None:
        """Returns when the loop is finished; passes on what an evaluation or the loop raises."""


@dataclass(frozen=True)
class EvaluatorSpec:
    """Everything a worker needs to load the model and find the videos."""

    model: str
    revision: str | None
    text_encoder: str
    frames: int
    scoring: Scoring
    max_new_tokens: int
    questions: tuple[Question, ...]
    # Absolute path of the video, by question id.
    videos: dict[str, str]
    cache: str | None
    cache_bytes: int = CACHE_BYTES
    device: str = "auto"
    # What the loaded model's encoding must be; None takes any.
    encoding: str | None = None
    # Threads of the model on a CPU. With 1, results do not depend on how many workers share the machine.
    threads: int = 1
    # Questions in one packed forward.
    batch: int = 1
    # What part of a GPU is this worker's.
    gpu_share: float = 1.0
    # As in the study.
    pooling: str | None = None
    allow_pickle: bool = False
    decode_timeout: float = TIMEOUT
    # Hash that the bytes of each video must have, by its path; videos without an entry are not checked.
    contents: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, study: Study, cache: Path | None, *, device: str = "auto", threads: int = 1, batch: int = 1
    ) -> EvaluatorSpec:
        """The specification for a study; `cache` is the folder of vision features."""
        return cls(
            model=study.model,
            revision=study.revision,
            text_encoder=study.text_encoder,
            frames=study.frames,
            scoring=study.scoring,
            max_new_tokens=study.max_new_tokens,
            questions=tuple(Question(one.id, one.text, one.options) for one in study.questions),
            videos={one.id: str(study.video_of(one).path.absolute()) for one in study.questions},
            cache=None if cache is None else str(cache.absolute()),
            device=device,
            threads=threads,
            batch=batch,
            pooling=study.pooling,
            allow_pickle=study.allow_pickle,
            decode_timeout=study.decode_timeout,
        )

    def load(self) -> Runtime:
        """The model, loaded in this process.

        Errors: ModelError if it cannot be loaded, or would encode otherwise than for the study's records.
        """
        import torch

        from pipeline.errors import ModelError
        from pipeline.runtime import Runtime

        torch.set_num_threads(self.threads)
        runtime = Runtime.load(
            self.model,
            revision=self.revision,
            text_encoder=self.text_encoder,
            frames=self.frames,
            scoring=self.scoring,
            max_new_tokens=self.max_new_tokens,
            device=self.device,
            pooling=self.pooling,
            allow_pickle=self.allow_pickle,
            decode_timeout=self.decode_timeout,
            cache=None if self.cache is None else DispensableCache(self.cache, self.cache_bytes),
        )
        if self.encoding not in (None, runtime.encoding):
            raise ModelError(
                f"{self.model} would encode otherwise than for the study's records: another number format "
                "(records from a CPU, a run on a GPU, or the reverse), pooling, text encoder or version. "
                f"Here: {runtime.family.dtype} on {runtime.family.device}."
            )
        _refuse_crowded(runtime, self.gpu_share, self.batch)
        return runtime

    def __call__(self) -> PipelineEvaluator:
        """A specification is its own factory."""
        return PipelineEvaluator(self, self.load())


def _refuse_crowded(runtime: Runtime, gpu_share: float, batch: int) -> None:
    """Errors: ModelError where this worker and the others with such a share do not fit on the GPU."""
    device = runtime.family.device
    # A fraction of a GPU is of a single GPU. Alone on it, a worker halves its packs where they do not fit.
    workers = int(1 / gpu_share + 1e-9)
    if device.type != "cuda" or workers < 2:
        return
    import torch

    from pipeline.memory import WorkerMemory, refuse_crowded, working_bytes
    from pipeline.runtime import PREFIX_BYTES

    family = runtime.family
    working = working_bytes(
        runtime.shape,
        frames=runtime.frames,
        tokens=family.video_tokens(runtime.frames) + PROMPT_TOKENS,
        itemsize=family.dtype.itemsize,
        batch=batch,
    )
    loaded = torch.cuda.memory_allocated(device)
    total = torch.cuda.get_device_properties(device).total_memory
    refuse_crowded(WorkerMemory(loaded, PREFIX_BYTES, working), workers, total)


class PipelineEvaluator:
    """A `Runtime` for the study's questions, with recently used clips kept in memory."""

    def __init__(self, spec: EvaluatorSpec, runtime: Runtime, clip_bytes: int = CLIP_BYTES) -> None:
        self.runtime = runtime
        self._questions = {question.id: question for question in spec.questions}
        self._videos = spec.videos
        self._contents = spec.contents
        self._batch = spec.batch
        self._clip_bytes = clip_bytes
        self._clips: OrderedDict[str, Clip] = OrderedDict()
        self._in_memory = 0
        # The runtime may have been used before.
        self._counted = Counter(runtime.cache_counts)

    def answer(
        self,
        configuration: Mapping[str, Any] | None,
        questions: Sequence[str],
        references: Mapping[str, str],
        *,
        reshaped: bool = False,
    ) -> list[dict[str, Any]]:
        """See `Evaluator.answer`. The other pack size is 1, as in production, or `RESHAPED` if 1 is usual.

        Errors: PipelineError if a video cannot be read or the tokens kept are not the planned ones.
        """
        from pipeline.methods import from_dict
        from pipeline.runtime import Request

        method = None if configuration is None else from_dict(configuration)
        answers: list[dict[str, Any]] = []
        while len(answers) < len(questions):
            # Anew each time: `_ask` may reduce it.
            batch = (1 if self._batch > 1 else RESHAPED) if reshaped else self._batch
            some = questions[len(answers) : len(answers) + batch]
            requests = [Request(*self.asked(one), method, references.get(one)) for one in some]
            answers += map(asdict, self._ask(requests))
        return answers

    def cache_use(self) -> dict[str, int]:
        """See `Evaluator.cache_use`."""
        now = self.runtime.cache_counts + Counter(features_in_memory=self._in_memory)
        use, self._counted = now - self._counted, now
        return dict(use)

    def _ask(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers; if memory does not suffice for so many at once, packs are halved from then on."""
        try:
            return self.runtime.answer_many(requests)
        except Exception as error:
            if len(requests) == 1 or not is_out_of_memory(error):
                raise
        # Outside of the handler, where the failed forward's tensors are released.
        free_memory()
        half = (len(requests) + 1) // 2
        self._batch = min(self._batch, half)
        return self._ask(requests[:half]) + self._ask(requests[half:])

    def asked(self, question: str) -> tuple[Clip, Question]:
        """A question by its id, with its encoded video.

        Errors: VideoError if the video cannot be read or is not the file that was recorded.
        """
        return self._clip(self._videos[question]), self._questions[question]

    def _clip(self, path: str) -> Clip:
        if path in self._clips:
            self._in_memory += 1
        else:
            clip = self.runtime.encode(path)
            recorded = self._contents.get(path)
            if recorded is not None and clip.content_hash != recorded:
                raise VideoError(
                    f"video {path} is not the file that the study was recorded with: its bytes differ.",
                    path,
                )
            self._clips[path] = clip
            while len(self._clips) > 1 and sum(map(_size, self._clips.values())) > self._clip_bytes:
                self._clips.popitem(last=False)
        self._clips.move_to_end(path)
        return self._clips[path]


class DispensableCache(FeatureCache):
    """A cache of features that the study can do without: on a full disk they are computed when needed."""

    _told = False

    def put(
        self, key: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """As `FeatureCache.put`, but a failed write is a warning, given once."""
        try:
            super().put(key, tensors, metadata)
        except OSError as error:
            if not self._told:
                logging.getLogger("tuner").warning(
                    "Vision features cannot be stored in %s; videos are encoded whenever they are needed: %s",
                    self.directory,
                    error,
                )
            self._told = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the GPU or of the machine did not suffice; torch raises it in three ways."""
    names = {one.__name__ for one in type(error).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def free_memory() -> None:
    """Releases the memory that a failed forward left behind."""
    gc.collect()
    # Without torch there is nothing to release, and importing it takes seconds.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _size(clip: Clip) -> int:
    return int(clip.features.nbytes + clip.frame_embeddings.nbytes)
