"""What runs inside a worker: a loaded model that encodes a study's videos and answers its questions.

Only plain data travels between driver and worker: a specification and calls to the worker, results back.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.cache import FeatureCache, TensorCache
from pipeline.errors import VideoError
from pipeline.measure import machine
from pipeline.question import Question, Scoring
from pipeline.video import TIMEOUT, content_hash
from tuner.errors import without_passwords
from tuner.evaluation.description import Computing, ModelDescription
from tuner.evaluation.memory import free_memory, is_out_of_memory, store_bytes, trim
from tuner.evaluation.storage import (
    DispensableCache,
    DriverFiles,
    ObjectStorage,
    SharedCache,
    copied,
    folder_id,
    is_url,
    machine_cache,
    normal,
    other_bytes,
)
from tuner.evaluation.tasks import Work
from tuner.study import Study

if TYPE_CHECKING:
    from pipeline.answering import Answer
    from pipeline.clip import Clip
    from pipeline.layout import Layout
    from pipeline.memory import WorkerMemory
    from pipeline.runtime import Request, Runtime

# Vision features of recently used clips that stay in memory, in bytes, where nobody says how many.
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

    def expect(self, contents: Mapping[str, str]) -> None:
        """From now on videos must have these bytes: hashes by absolute path; others are not checked."""

    def describe(self) -> list[ModelDescription]:
        """The loaded model: a list of one."""

    def encode(self, video: str, questions: Sequence[str]) -> list[EncodedVideo]:
        """A video by its absolute path, for these questions about it: a list of one."""

    def serve(self, question: str, configuration: Mapping[str, Any], profile: bool) -> list[dict[str, Any]]:
        """See `serving.serve`."""

    def time(self, question: str, configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See `serving.time_answers`."""

    def look(
        self, question: str, configurations: Sequence[Mapping[str, Any]], film: bool
    ) -> list[dict[str, Any]]:
        """See `looking.look`."""


class EncodedVideo(NamedTuple):
    """What planning needs of a video, and what is wrong with one that cannot be read."""

    content_hash: str
    # By question id.
    layouts: dict[str, Layout]
    error: str | None = None


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
    """Runs work on workers. They keep their models from one piece of work to the next, until `close`."""

    def run(self, work: Work[Any]) -> None:
        """Returns when the work is finished; passes on what an evaluation or the work raises."""

    def require(self, computing: Computing) -> None:
        """From now on a worker that computes otherwise is refused when it has loaded its model."""

    def expect(self, contents: Mapping[str, str]) -> None:
        """See `Evaluator.expect`; holds for all workers, later ones too."""

    def close(self) -> None:
        """Ends the workers."""


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
    # Where encoded videos are kept: a folder's absolute path or a URL (`storage`); None: nowhere.
    storage: str | None
    # The bound of a folder, in bytes.
    cache_bytes: int = CACHE_BYTES
    device: str = "auto"
    # Threads of the model on a CPU. With 1, results do not depend on how many workers share the machine.
    threads: int = 1
    # Questions in one packed forward.
    batch: int = 1
    # As in the study.
    pooling: str | None = None
    allow_pickle: bool = False
    decode_timeout: float = TIMEOUT
    # As of `Runtime.load`; a study leaves both to the model and its device.
    dtype: str = "auto"
    attention: str | None = None
    # Bytes of each of a worker's stores (`memory`); None: a share of what is free.
    store_bytes: int | None = None
    # Workers that share the host's memory, and what part of a GPU is each one's.
    workers: int = 1
    gpu_share: float = 1.0
    # In a cluster: what a worker asks for files that its machine does not have, and by what it knows that
    # the folder of encoded videos is the driver's.
    driver: DriverFiles | None = None
    folder_id: str | None = None

    @classmethod
    def of(
        cls,
        study: Study,
        storage: str | Path | None,
        *,
        device: str = "auto",
        threads: int = 1,
        batch: int = 1,
    ) -> EvaluatorSpec:
        """The specification for a study; `storage`: where encoded videos are kept."""
        return cls(
            model=study.model,
            revision=study.revision,
            text_encoder=study.text_encoder,
            frames=study.frames,
            scoring=study.scoring,
            max_new_tokens=study.max_new_tokens,
            questions=tuple(
                Question(question.id, question.text, question.options) for question in study.questions
            ),
            videos={
                question.id: str(study.video_of(question).path.absolute()) for question in study.questions
            },
            storage=None if storage is None else normal(storage),
            device=device,
            threads=threads,
            batch=batch,
            pooling=study.pooling,
            allow_pickle=study.allow_pickle,
            decode_timeout=study.decode_timeout,
        )

    def load(self, dtype: str | None = None) -> Runtime:
        """The model, loaded in this process. dtype: instead of the specification's.

        Errors: ModelError if it cannot be loaded.
        """
        import torch

        from pipeline.runtime import USUAL_ATTENTION, Runtime

        torch.set_num_threads(self.threads)
        cache, clips = self._caches()
        return Runtime.load(
            self.model,
            revision=self.revision,
            text_encoder=self.text_encoder,
            frames=self.frames,
            scoring=self.scoring,
            max_new_tokens=self.max_new_tokens,
            device=self.device,
            dtype=dtype or self.dtype,
            attention=self.attention or USUAL_ATTENTION,
            pooling=self.pooling,
            allow_pickle=self.allow_pickle,
            decode_timeout=self.decode_timeout,
            cache=cache,
            clips=clips,
        )

    def _caches(self) -> tuple[FeatureCache | None, TensorCache | None]:
        """For what each machine computes for itself, and for encoded videos."""
        if self.storage is None:
            return None, None
        if is_url(self.storage):
            local = machine_cache(self.cache_bytes)
            return local, SharedCache(local, ObjectStorage(self.storage))
        if self.driver is not None and (self.folder_id is None or folder_id(self.storage) != self.folder_id):
            local = machine_cache(self.cache_bytes)
            return local, SharedCache(local, self.driver)
        folder = DispensableCache(self.storage, self.cache_bytes)
        return folder, folder

    def __call__(self) -> PipelineEvaluator:
        """A specification is its own factory: the loaded model, with stores as large as memory allows."""
        runtime = self.load()
        room = store_bytes(
            runtime.family.device, workers=self.workers, gpu_share=self.gpu_share, asked=self.store_bytes
        )
        runtime.prefix_bytes = room.prefixes
        _refuse_crowded(runtime, self.gpu_share, self.batch)
        on_cpu = runtime.family.device.type == "cpu"
        return PipelineEvaluator(self, runtime, clip_bytes=room.clips, trims=on_cpu)


def _refuse_crowded(runtime: Runtime, gpu_share: float, batch: int) -> None:
    """Errors: ModelError where this worker and the others with such a share do not fit on the GPU."""
    device = runtime.family.device
    # A fraction of a GPU is of a single GPU. Alone on it, a worker halves its packs where they do not fit.
    workers = int(1 / gpu_share + 1e-9) if gpu_share > 0 else 1
    if device.type != "cuda" or workers < 2:
        return
    import torch

    from pipeline.memory import refuse_crowded

    worker = worker_memory(runtime, torch.cuda.memory_allocated(device), batch)
    refuse_crowded(worker, workers, torch.cuda.get_device_properties(device).total_memory)


def worker_memory(runtime: Runtime, weights: int, batch: int) -> WorkerMemory:
    """What a worker with this model takes of its device at least. weights: bytes that are loaded.

    batch: questions in a pack. The store of prefixes shrinks to what is free; a single prefix, the unpruned
    model's, has to fit.
    """
    from pipeline.memory import WorkerMemory, working_bytes

    family, shape = runtime.family, runtime.shape
    tokens, itemsize = family.video_tokens(runtime.frames) + PROMPT_TOKENS, family.dtype.itemsize
    working = working_bytes(shape, frames=runtime.frames, tokens=tokens, itemsize=itemsize, batch=batch)
    return WorkerMemory(weights, tokens * shape.layers * 2 * shape.kv_width * itemsize, working)


class PipelineEvaluator:
    """A `Runtime` for the study's questions, with recently used clips kept in memory.

    trims: whether freed memory goes back to the system after each batch, as models on a CPU want it.
    """

    def __init__(
        self, spec: EvaluatorSpec, runtime: Runtime, clip_bytes: int = CLIP_BYTES, *, trims: bool = False
    ) -> None:
        self.runtime = runtime
        self._trims = trims
        self._questions = {question.id: question for question in spec.questions}
        self._videos = spec.videos
        self._driver = spec.driver
        self._contents: Mapping[str, str] = {}
        self._threads = spec.threads
        self._batch = spec.batch
        self._clip_bytes = clip_bytes
        self._clips: dict[str, Clip] = {}
        # Which clip makes room is drawn, as in `Runtime`: of videos that are visited in turns and do not all
        # fit, the least recently used is the one that is needed next.
        self._drawn = Random(0)
        self._in_memory = 0
        # The runtime may have been used before.
        self._counted = Counter(runtime.cache_counts)

    def expect(self, contents: Mapping[str, str]) -> None:
        """See `Evaluator.expect`."""
        self._contents = contents

    def describe(self) -> list[ModelDescription]:
        """See `Evaluator.describe`."""
        runtime, family = self.runtime, self.runtime.family
        return [
            ModelDescription(
                host=socket.gethostname(),
                machine=machine(gpu=family.device.type == "cuda", threads=self._threads),
                identity=runtime.identity,
                encoder_identity=runtime.encoder_identity,
                encoding=runtime.encoding,
                dtype=runtime.dtype,
                device=family.device.type,
                attention=family.attention,
                pooling=family.pooling,
                checkpoint_pooling=family.checkpoint_pooling,
                shape=asdict(runtime.shape),
            )
        ]

    def encode(self, video: str, questions: Sequence[str]) -> list[EncodedVideo]:
        """See `Evaluator.encode`. Errors: NotFiniteError when the model makes no numbers of it."""
        try:
            clip = self._clip(video)
        except VideoError as error:
            return [EncodedVideo("", {}, str(error))]
        layouts = {question: self.runtime.layout(clip, self._questions[question]) for question in questions}
        return [EncodedVideo(clip.content_hash, layouts)]

    def serve(self, question: str, configuration: Mapping[str, Any], profile: bool) -> list[dict[str, Any]]:
        """See `Evaluator.serve`."""
        from tuner.evaluation.serving import serve

        return [serve(self.runtime, self.asked, self._file, question, configuration, profile=profile)]

    def time(self, question: str, configurations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """See `Evaluator.time`."""
        from tuner.evaluation.serving import time_answers

        return [time_answers(self.runtime, self.asked, question, configurations)]

    def look(
        self, question: str, configurations: Sequence[Mapping[str, Any]], film: bool
    ) -> list[dict[str, Any]]:
        """See `Evaluator.look`."""
        from tuner.evaluation.looking import look

        return [look(self.runtime, self.asked, self._file, question, configurations, film=film)]

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
            requests = [Request(*self.asked(question), method, references.get(question)) for question in some]
            answers += map(asdict, self._ask(requests))
        if self._trims:
            trim()
        return answers

    def cache_use(self) -> dict[str, int]:
        """See `Evaluator.cache_use`."""
        now = self.runtime.cache_counts + Counter(features_in_memory=self._in_memory)
        use, self._counted = now - self._counted, now
        return dict(use)

    def _ask(self, requests: Sequence[Request], *, alone: bool = False) -> list[Answer]:
        """The answers. If memory does not suffice, stored prefixes give way first; then packs are halved from
        then on.

        alone: whether prefixes have given way already.
        """
        try:
            return self.runtime.answer_many(requests)
        except Exception as error:
            if (alone and len(requests) == 1) or not is_out_of_memory(error):
                raise
        # Outside of the handler, where the failed forward's tensors are released.
        if not alone:
            self.runtime.forget_prefixes()
            free_memory()
            return self._ask(requests, alone=True)
        free_memory()
        half = (len(requests) + 1) // 2
        self._batch = min(self._batch, half)
        return self._ask(requests[:half], alone=True) + self._ask(requests[half:], alone=True)

    def asked(self, question: str) -> tuple[Clip, Question]:
        """A question by its id, with its encoded video.

        Errors: VideoError if the video cannot be read or is not the file that was recorded.
        """
        return self._clip(self._videos[question]), self._questions[question]

    def _clip(self, path: str) -> Clip:
        kept = self._clips.get(path)
        clip = self._encoded(path) if kept is None else kept
        recorded = self._contents.get(path)
        if recorded is not None and clip.content_hash != recorded:
            raise other_bytes(path)
        if kept is not None:
            self._in_memory += 1
            return clip
        size = clip.nbytes + sum(held.nbytes for held in self._clips.values())
        while self._clips and size > self._clip_bytes:
            size -= self._clips.pop(self._drawn.choice(list(self._clips))).nbytes
        self._clips[path] = clip
        return clip

    def _encoded(self, path: str) -> Clip:
        """Errors: VideoError."""
        if self._driver is not None and not self._is_here(path):
            clip = self.runtime.kept(path, self._digest(path, self._driver))
            if clip is not None:
                return clip
        with self._file(path) as file:
            clip = self.runtime.encode(file)
        return clip if file == path else replace(clip, path=path)

    @contextmanager
    def _file(self, path: str) -> Iterator[str]:
        """Where the bytes of the video with this path can be read: the path itself, or a copy of the
        driver's file on a machine that does not have these bytes. Errors: VideoError; DiskFullError.
        """
        if self._driver is None or self._is_here(path):
            yield path
            return
        with copied(self._driver, path, self._digest(path, self._driver)) as copy:
            try:
                yield str(copy)
            except VideoError as error:
                raise VideoError(str(error).replace(str(copy), path), path) from error

    def _is_here(self, path: str) -> bool:
        """Whether this machine has the video, with the bytes that it must have."""
        try:
            found = content_hash(path)
        except VideoError:
            return False
        return found == self._contents.get(path, found)

    def _digest(self, path: str, driver: DriverFiles) -> str:
        """Of the bytes that the video must have, or has on the driver's machine."""
        return self._contents.get(path) or driver.content_hash(path)
