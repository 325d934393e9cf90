import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.generation.utils import ALL_CACHE_NAMES

from pipeline import families, packing, video
from pipeline import runtime as runtime_module
from pipeline.cache import FeatureCache
from pipeline.checkpoint import Checkpoint
from pipeline.errors import PipelineError, VideoError
from pipeline.methods import AdaTP, FastV, FewerFrames, RandomTokens
from pipeline.question import Question
from pipeline.runtime import Runtime
from tests.checkpoints import scenes, write_checkpoints
from tests.pipeline.conftest import FRAMES

METHODS = [AdaTP(p=0.6), FastV(keep_ratio=0.3), RandomTokens(keep_ratio=0.3), FewerFrames(keep_ratio=0.4)]


def load(checkpoints, **kwargs) -> Runtime:
    return Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), **({"frames": FRAMES} | kwargs)
    )


def same(a, b):
    """Bit for bit, time and memory aside."""
    aside = {"seconds": 0, "peak_bytes": None}
    return a.__class__(**(vars(a) | aside)) == b.__class__(**(vars(b) | aside))


# -- the unpruned model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["runtime", "eager"])
@pytest.mark.parametrize("method", [None, AdaTP(p=1.0), FastV(keep_ratio=1.0), FewerFrames(keep_ratio=1.0)])
def test_keeping_everything_is_the_untouched_model_called_twice_bit_for_bit(request, which, clip, method):
    runtime = request.getfixturevalue(which)
    question = Question("q", "what color is the ring?", ("red", "blue", "green"))
    ids = runtime.inputs(clip, question)["input_ids"]
    cut = ids.shape[1] - len(runtime.prompt(clip, question).after)
    with torch.inference_mode():
        video_part = runtime.model(
            **(runtime.inputs(clip, question) | {"input_ids": ids[:, :cut]}), use_cache=True, logits_to_keep=1
        )
        logits = runtime.model(
            input_ids=ids[:, cut:], logits_to_keep=1, **{ALL_CACHE_NAMES[0]: video_part[ALL_CACHE_NAMES[0]]}
        ).logits[0, -1]
    untouched = logits.log_softmax(-1)
    answer = runtime.answer(clip, question, method)
    words = [runtime.family.answer_ids(option)[0] for option in question.options]
    assert answer.option_logprobs == tuple(untouched[words].tolist())
    assert answer.kept == ()


# -- nothing twice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, *METHODS], ids=lambda m: m.name if m else "unpruned")
def test_a_stored_prefix_and_a_recomputed_one_give_the_same_bits(runtime, clip, method):
    questions = [
        Question(str(i), f"what {word} is it?", ("red", "dark blue")) for i, word in enumerate("abc")
    ]
    runtime.forget_prefixes()
    stored = [runtime.answer(clip, question, method) for question in questions]
    for question, answer in zip(questions, stored, strict=True):
        runtime.forget_prefixes()
        assert same(runtime.answer(clip, question, method), answer)


def test_prefixes_are_built_once_per_clip_and_depth_within_a_bound(checkpoints, monkeypatch):
    built = []
    build = runtime_module.build_prefix
    monkeypatch.setattr(runtime_module, "build_prefix", lambda *args: built.append(args[4]) or build(*args))
    runtime = load(checkpoints)
    clips = [runtime.encode_frames(scenes(FRAMES, seed=seed), np.arange(FRAMES)) for seed in range(3)]
    question = Question("q", "what color?", ("red", "blue"))
    for _ in range(2):
        for clip in clips:
            runtime.answer(clip, question, AdaTP(p=0.5))
            runtime.answer(clip, question, FastV())
    assert built == [2, 2, 2]  # both prune before layer 2

    built.clear()
    runtime = load(checkpoints, prefix_bytes=1)  # room for one at a time
    for clip in (clips[0], clips[0], clips[1], clips[0]):
        runtime.answer(clip, question, AdaTP(p=0.5))
    assert built == [2, 2, 2]
    assert len(runtime._prefixes) == 1


def test_prefixes_reused_and_built_are_counted(checkpoints):
    clips = [scenes(FRAMES, seed=seed) for seed in range(2)]
    question = Question("q", "what color?", ("red", "blue"))
    counts = {}
    for room in (2**30, 1):
        runtime = load(checkpoints, prefix_bytes=room)
        one, other = (runtime.encode_frames(frames, np.arange(FRAMES)) for frames in clips)
        for clip in (one, one, other, one):
            runtime.answer(clip, question, AdaTP(p=0.5))
        runtime.answer(one, question, None)  # ends behind the last layer: another prefix
        counts[room] = dict(runtime.cache_counts)
    assert counts == {
        2**30: {"prefixes_built": 3, "prefixes_reused": 2},
        1: {"prefixes_built": 4, "prefixes_reused": 1},
    }


@pytest.fixture
def fake_video(tmp_path, monkeypatch):
    """A file that decodes to scenes, and the number of times it was decoded."""
    path = tmp_path / "video.mp4"
    path.write_bytes(b"video")
    decoded = []

    def read_frames(path, frames, timeout, *, size):
        decoded.append(str(path))
        return scenes(frames), np.arange(frames) / 4, frames / 4

    monkeypatch.setattr(video, "read_frames", read_frames)
    return path, decoded


def test_stored_features_and_recomputed_ones_are_the_same_bit_for_bit(checkpoints, tmp_path, fake_video):
    path, decoded = fake_video
    question = Question("q", "what color is the ring?", ("red", "dark blue"))
    answers, counts = [], []
    for cache in (None, FeatureCache(tmp_path / "cache", 2**20), FeatureCache(tmp_path / "cache", 2**20)):
        runtime = load(checkpoints, cache=cache)
        clip = runtime.encode(path)
        answers.append((clip, runtime.answer(clip, question, AdaTP(p=0.6))))
        counts.append((runtime.cache_counts["features_computed"], runtime.cache_counts["features_read"]))
    assert len(decoded) == 2  # the third came from disk
    assert counts == [(1, 0), (1, 0), (0, 1)]
    (first, answer), *others = answers
    for clip, other in others:
        assert clip.features.equal(first.features)
        assert clip.frame_embeddings.equal(first.frame_embeddings)
        assert clip.frame_times.tolist() == first.frame_times.tolist()
        assert same(answer, other)


def test_text_embeddings_are_stored_on_disk_and_in_memory(checkpoints, tmp_path, monkeypatch):
    cache = FeatureCache(tmp_path, 2**20)
    embedded = []
    for _ in range(2):
        runtime = load(checkpoints, cache=cache)
        embed = runtime.encoder.embed_text
        monkeypatch.setattr(
            runtime.encoder, "embed_text", lambda text, embed=embed: embedded.append(text) or embed(text)
        )
        vectors = [runtime.text_embedding(Question(name, "what color?")) for name in ("a", "b")]
        assert (vectors[0] == vectors[1]).all()
    assert embedded == ["what color?"]


def test_features_of_other_frames_or_another_model_are_not_taken(checkpoints, tmp_path, fake_video):
    path, decoded = fake_video
    cache = FeatureCache(tmp_path / "cache", 2**20)
    other = write_checkpoints(tmp_path / "other", seed=1)
    for checkpoint, frames in ((checkpoints, 8), (checkpoints, 4), (other, 8)):
        load(checkpoint, frames=frames, cache=cache).encode(path)
    assert len(decoded) == 3


VIDEOS = Path(__file__).parents[2] / "../shared/videos"


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="the folder of test clips is not there")
def test_real_clips_are_encoded_and_answered_and_the_damaged_one_is_refused(runtime, question):
    clip = runtime.encode(VIDEOS / "nasa_13013.mp4")
    assert clip.frame_times[0] == 0
    assert (np.diff(clip.frame_times) > 0).all()
    assert runtime.answer(clip, question, AdaTP(p=0.6)).option is not None
    with pytest.raises(VideoError, match="decord_corrupted"):
        runtime.encode(VIDEOS / "decord_corrupted.mp4")


# -- identity -----------------------------------------------------------------------------------------------


def test_identity_follows_the_files_not_the_folder(checkpoints, tmp_path, runtime):
    copy = tmp_path / "elsewhere"
    shutil.copytree(checkpoints.model, copy / "model")
    shutil.copytree(checkpoints.siglip, copy / "siglip")
    moved = load(type(checkpoints)(copy / "model", copy / "siglip"))
    assert (moved.identity, moved.encoding) == (runtime.identity, runtime.encoding)
    config = json.loads((copy / "model/preprocessor_config.json").read_text())
    (copy / "model/preprocessor_config.json").write_text(json.dumps(config | {"resample": 2}))
    changed = load(type(checkpoints)(copy / "model", copy / "siglip"))
    assert changed.identity != runtime.identity


def test_fingerprints_are_equal_where_the_same_is_asked_and_only_there(checkpoints, runtime, clip, question):
    layout = runtime.layout(clip, question)
    print_of = runtime.fingerprint
    unpruned = print_of(None, layout)
    assert unpruned == print_of(AdaTP(p=1.0), layout) == print_of(FastV(keep_ratio=1.0), layout)
    # Below every threshold nothing is cut, whatever tau_s is: one plan, one answer.
    assert print_of(AdaTP(tau_s=0.6, p=0.6), layout) == print_of(AdaTP(tau_s=0.6, p=0.6, tau_t=0.4), layout)
    different = [
        unpruned,
        *(print_of(method, layout) for method in METHODS),
        print_of(AdaTP(p=0.6, deduplicate="off"), layout),
        print_of(AdaTP(p=0.6, score_query="mean"), layout),
        print_of(AdaTP(p=0.5), layout),
        print_of(RandomTokens(keep_ratio=0.3, seed=1), layout),
        load(checkpoints, scoring="letter").fingerprint(None, layout),
        load(checkpoints, frames=4).fingerprint(None, layout),
        load(checkpoints, max_new_tokens=3).fingerprint(None, layout),
    ]
    assert len(set(different)) == len(different)


def test_equal_plans_give_equal_answers(runtime, clip, question):
    layout = runtime.layout(clip, question)
    a, b = AdaTP(tau_s=0.90, p=0.6, alpha_boost=1.0), AdaTP(tau_s=0.93, p=0.6, tau_t=2.0)
    assert runtime.fingerprint(a, layout) == runtime.fingerprint(b, layout)
    assert same(runtime.answer(clip, question, a), runtime.answer(clip, question, b))


# -- answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_an_answer_says_what_was_really_kept(runtime, clip, question, method):
    plan = method.plan(runtime.layout(clip, question), runtime.shape.layers)
    answer = runtime.answer(clip, question, method)
    assert answer.kept == tuple(plan.total(j) for j in range(len(plan.layers)))
    assert answer.seconds > 0


def test_keeping_other_than_planned_is_an_error(runtime, clip, question, monkeypatch):
    prune = packing._Sequence._prune

    def lose_one(self, j, *part):
        stage = self.stages[j]
        object.__setattr__(stage, "kept_ranks", stage.kept_ranks[:-1])
        return prune(self, j, *part)

    monkeypatch.setattr(packing._Sequence, "_prune", lose_one)
    with pytest.raises(PipelineError, match=r"The plan keeps .* but the model kept"):
        runtime.answer(clip, question, AdaTP(p=0.5))


def test_letters_are_asked_for_and_scored_as_letters(checkpoints, clip):
    runtime = load(checkpoints, scoring="letter")
    question = Question("q", "what color?", ("dark red", "dark blue", "dark green"))
    answer = runtime.answer(clip, question, AdaTP(p=0.6))
    assert answer.text == question.options[answer.option]
    words = load(checkpoints, scoring="words").answer(clip, question, AdaTP(p=0.6))
    assert answer.option_logprobs != words.option_logprobs


def test_relevance_is_of_the_stem_without_options(runtime, clip):
    plain = Question("q", "what color?")
    with_options = Question("r", "what color?", ("red", "blue"))
    relevance = [runtime.layout(clip, question).frame_relevance for question in (plain, with_options)]
    assert (relevance[0] == relevance[1]).all()


def test_a_control_token_that_the_tokenizer_finds_in_a_text_all_the_same_is_refused(
    runtime, clip, monkeypatch
):
    family, original = runtime.family, runtime.family._tokens
    monkeypatch.setattr(family, "_tokens", lambda text, **_: original(text))
    message = "reads '<video>' as a control token: write it otherwise in"
    with pytest.raises(PipelineError, match=message):
        family.prompt("what is <video>?", clip.shape)
    with pytest.raises(PipelineError, match=message):
        family.answer_ids("a <video>")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 0}, "At least one frame"),
        ({"max_new_tokens": 0}, "At least one token"),
        ({"scoring": "digits"}, "one of letter, words, words_per_token, but got 'digits'"),
        ({"device": "abacus"}, "device is 'auto' or a torch device"),
        ({"dtype": "int3"}, "dtype is 'auto' or one of float32, bfloat16, float16, but got 'int3'"),
    ],
)
def test_wrong_arguments_are_refused(checkpoints, change, message):
    with pytest.raises(ValueError, match=message):
        load(checkpoints, **change)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("asked", "device", "has_bfloat16", "expected", "told"),
    [
        ("auto", "cpu", False, torch.float32, ""),
        ("auto", "cuda", True, torch.bfloat16, ""),
        ("auto", "cuda", False, torch.float16, "this GPU has no bfloat16"),
        ("auto", "mps", False, torch.bfloat16, ""),
        ("float16", "cuda", True, torch.float16, "it was asked for"),
        ("float16", "cpu", False, torch.float16, "it was asked for"),
        ("bfloat16", "cuda", False, torch.bfloat16, ""),
        ("float32", "cuda", True, torch.float32, ""),
    ],
)
def test_float16_is_taken_where_nothing_better_is_and_told(
    asked, device, has_bfloat16, expected, told, monkeypatch, caplog, tmp_path
):
    """Whatever the checkpoint is stored in: at ae20304 a GPU with bfloat16 took a stored float16."""
    loaded = []
    module = SimpleNamespace(load=lambda checkpoint, **options: loaded.append(options["dtype"]))
    monkeypatch.setattr(families, "import_module", lambda name: module)
    # By emulation, which is slow, older GPUs have it too.
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16 or including_emulation
    )
    (tmp_path / "config.json").write_text('{"model_type": "llava_onevision", "torch_dtype": "float16"}')
    checkpoint = Checkpoint("example/model", tmp_path, "identity")
    families.load_family(checkpoint, device=device, dtype=asked, attention="sdpa")
    assert loaded == [expected]
    assert len(caplog.messages) == bool(told)
    assert told in caplog.text


def test_one_frame_is_enough(checkpoints, question):
    runtime = load(checkpoints, frames=1)
    clip = runtime.encode_frames(scenes(1), np.zeros(1))
    for method in (None, *METHODS):
        assert runtime.answer(clip, question, method).option is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_the_planned_tokens(checkpoints, dtype):
    runtime = load(checkpoints, dtype=dtype)
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    assert clip.features.dtype == getattr(torch, dtype)
    assert clip.frame_embeddings.dtype == torch.float32
    for method in (None, *METHODS):
        answer = runtime.answer(clip, Question("q", "what color?", ("red", "dark blue")), method)
        assert all(np.isfinite(answer.option_logprobs))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [None, *METHODS], ids=lambda m: m.name if m else "unpruned")
def test_a_gpu_keeps_the_planned_tokens(checkpoints, dtype, method):
    runtime = load(checkpoints, device="cuda", dtype=dtype)
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    question = Question("q", "what color?", ("red", "dark blue"))
    first = runtime.answer(clip, question, method)
    assert same(runtime.answer(clip, question, method), first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("method", [AdaTP(p=0.6), AdaTP(p=0.6, score_query="mean"), FastV()], ids=repr)
def test_pruning_never_waits_for_the_gpu(checkpoints, monkeypatch, method):
    def without_waiting(function):
        def run(*args):
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    for owner, name in ((packing._Sequence, "_prune"), (packing._Attention, "_attend")):
        monkeypatch.setattr(owner, name, without_waiting(getattr(owner, name)))
    runtime = load(checkpoints, device="cuda")
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    runtime.answer(clip, Question("q", "what color?", ("red", "dark blue", "top left of the scene")), method)
