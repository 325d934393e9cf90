"""Questions go to the model in packs, in order, and in smaller ones where memory does not suffice."""

import resource
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from pipeline.answering import Answer
from pipeline.errors import ModelError, VideoError
from pipeline.flops import LLAVA_ONEVISION_7B
from pipeline.methods import AdaTP, to_dict
from pipeline.question import Question
from tuner.evaluation.evaluator import (
    EvaluatorSpec,
    PipelineEvaluator,
    _refuse_crowded,
)
from tuner.evaluation.memory import is_out_of_memory
from tuner.evaluation.storage import DispensableCache

QUESTIONS = tuple(Question(f"q{i}", "what is it?") for i in range(7))


class FakeRuntime:
    """Answers with what it was asked; packs above `room` do not fit."""

    def __init__(self, room: int = 100, held: int = 0) -> None:
        self.room = room
        self.held = held  # of the room, by stored prefixes
        self.packs: list[list[str]] = []
        self.cache_counts = Counter({"features_computed": 5})  # for somebody else

    def encode(self, path):
        self.cache_counts["features_read"] += 1
        return SimpleNamespace(path=path, nbytes=8)

    def forget_prefixes(self):
        self.held = 0

    def answer_many(self, requests):
        self.packs.append([request.question.id for request in requests])
        if len(requests) > self.room - self.held:
            raise torch.OutOfMemoryError("out of memory")
        return [
            Answer(
                request.question.id, f"{request.clip.path} {request.reference}", None, None, None, (), 0.0, 0
            )
            for request in requests
        ]


def evaluator(runtime, batch, contents=None, **options):
    spec = EvaluatorSpec(
        model="model",
        revision=None,
        text_encoder="encoder",
        frames=8,
        scoring="words",
        max_new_tokens=4,
        questions=QUESTIONS,
        videos={question.id: f"video {i // 3}" for i, question in enumerate(QUESTIONS)},
        storage=None,
        batch=batch,
    )
    one = PipelineEvaluator(spec, runtime, **options)
    one.expect(contents or {})
    return one


def ids(answers):
    return [answer["question"] for answer in answers]


@pytest.mark.quick
@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (8, [7])])
def test_questions_are_asked_in_packs_and_in_order(batch, sizes):
    runtime = FakeRuntime()
    asked = [question.id for question in QUESTIONS]
    answers = evaluator(runtime, batch).answer(to_dict(AdaTP()), asked, {"q4": "yes"})
    assert ids(answers) == asked
    assert [len(pack) for pack in runtime.packs] == sizes
    assert [answers[i]["text"] for i in (0, 4)] == ["video 0 None", "video 1 yes"]


@pytest.mark.quick
@pytest.mark.parametrize(("batch", "sizes"), [(1, [4, 3]), (3, [1] * 7), (8, [1] * 7)])
def test_the_noise_floor_is_asked_in_packs_of_another_size(batch, sizes):
    runtime = FakeRuntime()
    asked = [question.id for question in QUESTIONS]
    one = evaluator(runtime, batch)
    assert ids(one.answer(None, asked, {}, reshaped=True)) == asked
    assert [len(pack) for pack in runtime.packs] == sizes
    runtime.packs.clear()
    one.answer(None, asked[:batch], {})
    assert [len(pack) for pack in runtime.packs] == [min(batch, 7)]


@pytest.mark.quick
def test_a_pack_that_does_not_fit_is_halved_from_then_on():
    runtime = FakeRuntime(room=2)
    one = evaluator(runtime, 7)
    asked = [question.id for question in QUESTIONS]
    assert ids(one.answer(None, asked, {})) == asked
    runtime.packs.clear()
    assert ids(one.answer(None, asked, {})) == asked
    assert [len(pack) for pack in runtime.packs] == [2, 2, 2, 1]


@pytest.mark.quick
def test_clips_in_memory_are_counted_until_they_are_told():
    one = evaluator(FakeRuntime(), 2)
    assert one.cache_use() == {}
    asked = [question.id for question in QUESTIONS]  # of three videos
    one.answer(None, asked, {})
    assert one.cache_use() == {"features_read": 3, "features_in_memory": 4}
    one.answer(None, asked, {})
    assert one.cache_use() == {"features_in_memory": 7}
    assert one.cache_use() == {}
    small = evaluator(FakeRuntime(), 2, clip_bytes=1)  # room for one
    small.answer(None, ["q0", "q6", "q0", "q1"], {})
    assert small.cache_use() == {"features_read": 3, "features_in_memory": 1}


@pytest.mark.quick
def test_a_video_that_is_not_the_recorded_one_is_refused():
    """A worker's machine may have another file under the same path."""
    runtime = FakeRuntime()
    runtime.encode = lambda path: SimpleNamespace(path=path, content_hash=f"bytes of {path}", nbytes=8)
    one = evaluator(runtime, 2, contents={"video 0": "bytes of video 0", "video 1": "others"})
    assert ids(one.answer(None, ["q0", "q6"], {})) == ["q0", "q6"]
    with pytest.raises(VideoError, match="video 1 is not the file that the study was recorded with"):
        one.answer(None, ["q0", "q3"], {})


@pytest.mark.quick
def test_stored_prefixes_give_way_before_packs_become_smaller_or_a_question_is_given_up():
    """At ae20304: a question for which the stored prefixes left no room was quarantined."""
    asked = [question.id for question in QUESTIONS]
    runtime = FakeRuntime(room=4, held=2)
    assert ids(evaluator(runtime, 4).answer(None, asked, {})) == asked
    assert [len(pack) for pack in runtime.packs] == [4, 4, 3]
    assert ids(evaluator(FakeRuntime(room=1, held=1), 1).answer(None, asked, {})) == asked


@pytest.mark.quick
def test_a_question_that_does_not_fit_alone_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        evaluator(FakeRuntime(room=0), 4).answer(None, ["q0", "q1"], {})


@pytest.mark.quick
@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
        (OSError("Cannot allocate"), False),
    ],
)
def test_want_of_memory_is_known_in_all_its_forms(error, memory):
    assert is_out_of_memory(error) is memory


@pytest.mark.quick
def test_features_without_room_on_the_disk_are_one_warning(tmp_path, caplog):
    """The refusal is the kernel's own."""
    cache = DispensableCache(tmp_path / "features", 10**9)
    small, large = {"a": torch.zeros(8)}, {"a": torch.zeros(10**6)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        for key, tensors in (("small", small), ("large", large), ("larger", large)):
            cache.put(key, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cache.get("small") is not None
    assert cache.get("large") is None
    assert [path.name for path in cache.directory.iterdir()] == ["small.safetensors"]
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith(f"Vision features cannot be stored in {cache.directory}; videos are encoded when")
    assert told.endswith("File too large")
    cache.put("large", large)
    assert cache.get("large") is not None


@pytest.mark.parametrize(("share", "fits"), [(1.0, True), (0.5, True), (1 / 3, True), (0.25, False)])
def test_workers_that_share_a_gpu_must_fit_it(monkeypatch, share, fits):
    """A 7B model in bfloat16 with its encoder, 32 frames, packs of four, on a GPU of 80 GB."""
    loaded, total = 18 * 2**30, 79 * 2**30
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: loaded)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=total)
    )
    family = SimpleNamespace(
        device=torch.device("cuda:0"), dtype=torch.bfloat16, video_tokens=lambda frames: 196 * frames + 1
    )
    runtime = SimpleNamespace(family=family, shape=LLAVA_ONEVISION_7B, frames=32)
    if fits:
        _refuse_crowded(runtime, share, 4)
    else:
        with pytest.raises(
            ModelError, match=r"4 workers share a GPU of 79\.0 GiB, but each takes up to .*: 3 fit"
        ):
            _refuse_crowded(runtime, share, 4)
    family.device = torch.device("cpu")
    _refuse_crowded(runtime, 0.01, 4)
