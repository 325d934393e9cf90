import json
import shutil
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pipeline
from pipeline import video
from pipeline.checkpoint import find_checkpoint
from pipeline.errors import PipelineError, UnsupportedError
from pipeline.export_format import SCHEMA, VERSION
from pipeline.flops import question_ratios
from pipeline.layout import Layouts
from pipeline.methods import AdaTP, from_dict
from pipeline.question import Question
from pipeline.runtime import Runtime
from tests.checkpoints import scenes
from tests.pipeline.conftest import FRAMES


@pytest.fixture
def exported(checkpoints, runtime):
    return {
        "schema": SCHEMA,
        "method": "adatp",
        "parameters": {"tau_s": 0.95, "tau_t": 0.5, "alpha_boost": 1.1, "gamma_cap": 0.95, "p": 0.6},
        "selection": {"deduplicate": "demote", "relevance_norm": "minmax", "score_query": "last"},
        "model": {"id": str(checkpoints.model), "identity": runtime.identity},
        "text_encoder": {"id": str(checkpoints.siglip)},
        "frames": FRAMES,
        "scoring": "words",
        "max_new_tokens": 16,
        "dtype": "float32",
        "attention": "sdpa",
        "device": "cpu",
        "pooling": None,
        "encoding": runtime.encoding,
        "verdict": "shown",
    }


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"video")
    decoded = []

    def read_frames(path, frames, timeout, *, size):
        decoded.append(path)
        return scenes(frames), np.arange(frames) / 4, frames / 4

    monkeypatch.setattr(video, "read_frames", read_frames)
    return path, decoded


def write(tmp_path, exported):
    path = tmp_path / "best.json"
    path.write_text(json.dumps(exported))
    return path


def test_an_export_answers_what_the_study_measured(tmp_path, exported, file, runtime):
    path, decoded = file
    deployed = pipeline.load(write(tmp_path, exported))
    assert deployed.method == AdaTP(p=0.6)
    answer = deployed.answer(path, "what color is the ring?", ["red", "dark blue"])
    clip = runtime.encode(path)
    asked = Question("x", "what color is the ring?", ("red", "dark blue"))
    expected = runtime.answer(clip, asked, AdaTP(p=0.6))
    assert (answer.text, answer.option_logprobs, answer.kept) == (
        expected.text, expected.option_logprobs, expected.kept,
    )  # fmt: skip
    decoded.clear()
    assert deployed.answer(path, "what is on sea?").text
    assert decoded == []  # the second question finds the video encoded
    path.write_bytes(b"another video")
    deployed.answer(path, "what is on sea?")
    assert len(decoded) == 1


def test_the_choices_of_an_export_answer_too(tmp_path, exported, file, runtime):
    exported["selection"] = {"deduplicate": "drop", "relevance_norm": "minmax", "score_query": "mean"}
    deployed = pipeline.load(write(tmp_path, exported))
    method = AdaTP(p=0.6, deduplicate="drop", score_query="mean")
    assert deployed.method == method
    path, _ = file
    answer = deployed.answer(path, "what color is the ring?", ["red", "dark blue"])
    asked = Question("x", "what color is the ring?", ("red", "dark blue"))
    expected, other = (runtime.answer(runtime.encode(path), asked, item) for item in (method, AdaTP(p=0.6)))
    assert (answer.option_logprobs, answer.kept) == (expected.option_logprobs, expected.kept)
    assert answer.option_logprobs != other.option_logprobs


def test_a_text_is_not_taken_for_a_list_of_its_letters(tmp_path, exported, file):
    deployed = pipeline.load(write(tmp_path, exported))
    with pytest.raises(ValueError, match="options is a list of texts, but got the text 'red'"):
        deployed.answer(file[0], "what color is the ring?", "red")


def test_models_are_found_beside_the_exported_file(tmp_path, exported, checkpoints, monkeypatch):
    (tmp_path / "model").symlink_to(checkpoints.model)
    (tmp_path / "siglip").symlink_to(checkpoints.siglip)
    exported["model"]["id"], exported["text_encoder"]["id"] = "model", "siglip"
    path = write(tmp_path, exported)
    monkeypatch.chdir("/")
    assert pipeline.load(path).method == AdaTP(p=0.6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "adatp-tuner/best/0"}, "has the schema 'adatp-tuner/best/0', but this version reads"),
        ({"schema": "other/3"}, "has the schema 'other/3', but this version reads"),
        ({"schema": None}, "has the schema None, but"),
        ({"parameters": {"p": 2}}, r"p lies in \(0, 1\], but got 2"),
        ({"parameters": {"tau": 2}}, "adatp has the parameters tau_s"),
        ({"model": "m"}, "model is an object with an id"),
    ],
)
def test_a_file_that_is_no_export_is_refused(tmp_path, exported, change, message):
    with pytest.raises(PipelineError, match=message):
        pipeline.load(write(tmp_path, exported | change))


def test_a_file_of_a_newer_format_is_refused_by_its_format_alone(tmp_path):
    path = write(tmp_path, {"schema": f"adatp-tuner/best/{VERSION + 1}", "keys": "of another kind"})
    with pytest.raises(PipelineError, match="install the newer one, or export the file again") as caught:
        pipeline.load(path)
    assert f"{path} has format {VERSION + 1} of a newer adatp-tuner" in str(caught.value)


def test_a_file_of_the_first_format_is_loaded_as_it_was_exported(tmp_path, exported, checkpoints):
    """A file of the demo as version 0.1.0 exported it, with other checkpoints of the same kind."""
    old = json.loads((Path(__file__).parents[1] / "data" / "best-1.json").read_text())
    assert old["schema"] == "adatp-tuner/best/1"
    parts = {name: exported[name] for name in ("model", "text_encoder")}
    deployed = pipeline.load(
        write(tmp_path, old | parts | {"encoding": exported["encoding"], "frames": FRAMES})
    )
    assert deployed.method == from_dict({"method": "adatp", **old["parameters"], **old["selection"]})
    assert deployed.method.p == old["parameters"]["p"] != AdaTP().p
    assert deployed.exported["verdict"] == "shown"


@pytest.mark.parametrize("part", ["model", "text_encoder"])
def test_another_checkpoint_than_the_measured_one_is_refused(tmp_path, exported, part):
    exported[part]["identity"] = "sha256:another"
    with pytest.raises(PipelineError, match="was measured with sha256:another, but"):
        pipeline.load(write(tmp_path, exported))


def test_an_identity_that_an_earlier_version_made_of_the_id_goes_on_to_be_known(
    tmp_path, exported, checkpoints, monkeypatch
):
    """By id, checkpoints were identified by their commit: "owner/model@<commit>"."""
    import huggingface_hub

    commit = tmp_path / ("0123456789" * 4)
    commit.symlink_to(checkpoints.model)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(commit))
    by_content = exported["model"]["identity"]
    exported["model"] = {"id": "owner/model", "identity": f"owner/model@{commit.name}"}
    exported["encoding"] = "of another identity"
    runtime = pipeline.load(write(tmp_path, exported)).runtime  # a warning would be an error
    assert runtime.identity == by_content
    exported["model"]["identity"] = "owner/model@another"
    with pytest.raises(PipelineError, match=f"was measured with owner/model@another, but .* is {by_content}"):
        pipeline.load(write(tmp_path, exported))
    # What was tuned by id is served from a mirror.
    exported["model"] = {"id": str(checkpoints.model), "identity": by_content}
    assert pipeline.load(write(tmp_path, exported | {"encoding": None})).runtime.identity == by_content


def test_what_is_missing_is_named(tmp_path, exported):
    del exported["frames"], exported["model"]
    with pytest.raises(PipelineError, match="no exported configuration: it lacks model, frames"):
        pipeline.load(write(tmp_path, exported))


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not valid JSON"), ("[]", "no exported configuration")]
)
def test_a_broken_file_is_refused(tmp_path, content, message):
    path = tmp_path / "best.json"
    path.write_text(content)
    with pytest.raises(PipelineError, match=message):
        pipeline.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="cannot be read: No such file"):
        pipeline.load(tmp_path / "best.json")


def test_an_answer_says_what_pruning_saved(tmp_path, exported, file, runtime):
    answer = pipeline.load(write(tmp_path, exported)).answer(file[0], "what is on sea?")
    clip, asked = runtime.encode(file[0]), Question("x", "what is on sea?")
    layout, method = runtime.layout(clip, asked), AdaTP(p=0.6)
    (ratio,) = question_ratios(method.plans(Layouts.of([layout]), runtime.shape.layers), runtime.shape)
    assert answer.flops_ratio == pytest.approx(ratio)
    assert 0 < answer.flops_ratio < 1
    assert (answer.visual_tokens, answer.tokens_left) == (layout.visual, answer.kept[-1])
    unpruned = runtime.answer(clip, asked, None)
    assert (unpruned.flops_ratio, unpruned.tokens_left) == (1.0, layout.visual)


@pytest.mark.parametrize(
    ("file_says", "message"),
    [
        ({"verdict": None}, None),
        ({"verdict": "untested"}, "was never tested against the unpruned model"),
        (
            {
                "verdict": "not_shown",
                "margin": 0.02,
                "provenance": {"trial": 7},
                "tested": [{"trial": 3}, {"trial": 7, "difference": -0.01, "bound": -0.031}],
            },
            r"lose no more than 2 points .*: the difference is -1\.0 points there, and it may be -3\.1\.",
        ),
        ({"verdict": "not_shown"}, r"no more than its margin on held-out videos\."),
    ],
    ids=["missing", "untested", "tested", "margin unknown"],
)
def test_a_verdict_that_is_not_shown_is_told_once(tmp_path, exported, file_says, message):
    exported |= file_says
    if exported["verdict"] is None:
        del exported["verdict"]
        message = "was never tested"
    with pytest.warns(UserWarning, match=message) as told:
        pipeline.load(write(tmp_path, exported))
    assert len(told) == 1
    assert Path(told[0].filename) == Path(__file__)


# -- as it was measured -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"attention": "eager"}])
def test_number_format_and_attention_backend_are_those_measured_with(tmp_path, exported, checkpoints, change):
    """At ae20304 the file named neither: tuned in half precision on a GPU it answered in float32 on a CPU."""
    exported |= change
    measured = Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES, **change
    )
    exported["encoding"] = measured.encoding
    runtime = pipeline.load(write(tmp_path, exported)).runtime  # a warning would be an error
    assert (runtime.dtype, runtime.family.attention) == (exported["dtype"], exported["attention"])
    assert runtime.model.config._attn_implementation == exported["attention"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "was measured with dtype float32 \\(float16 here\\): answers may differ"),
        ({"attention": "eager"}, "was measured with attention sdpa \\(eager here\\): answers may differ"),
        (
            {"dtype": "bfloat16", "attention": "eager"},
            "was measured with dtype float32 \\(bfloat16 here\\), attention sdpa \\(eager here\\)",
        ),
    ],
)
def test_asking_for_others_than_measured_with_is_done_with_a_warning(tmp_path, exported, options, message):
    with pytest.warns(UserWarning, match=message):
        runtime = pipeline.load(write(tmp_path, exported), **options).runtime
    assert (runtime.dtype, runtime.family.attention) == (
        options.get("dtype", "float32"), options.get("attention", "sdpa"),
    )  # fmt: skip


def test_a_file_of_an_older_version_loads_with_a_warning(tmp_path, exported):
    for name in ("dtype", "attention", "device", "pooling", "encoding"):
        del exported[name]
    with pytest.warns(UserWarning, match="does not say in which number format and with which attention"):
        runtime = pipeline.load(write(tmp_path, exported)).runtime
    assert (runtime.dtype, runtime.family.attention) == ("float32", "sdpa")


def test_an_attention_backend_that_is_not_here_is_refused_and_may_be_replaced(tmp_path, exported):
    exported["attention"] = "no_such_backend"
    path = write(tmp_path, exported)
    with pytest.raises(
        PipelineError, match=r"attention backend no_such_backend, .* load\(\.\.\., attention='sdpa'\)"
    ):
        pipeline.load(path)
    with pytest.warns(UserWarning, match=r"attention no_such_backend \(sdpa here\)"):
        assert pipeline.load(path, attention="sdpa").runtime.family.attention == "sdpa"


def test_a_version_that_encodes_otherwise_says_so(tmp_path, exported, monkeypatch):
    monkeypatch.setattr("pipeline.runtime.ENCODING_VERSION", 0)
    with pytest.warns(UserWarning, match="by a version of this program that encodes videos otherwise"):
        pipeline.load(write(tmp_path, exported))


def test_pickled_weights_need_the_callers_word(tmp_path, exported, checkpoints):
    model = shutil.copytree(checkpoints.model, tmp_path / "pickled")
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    exported["model"] = {
        "id": str(model), "identity": find_checkpoint(str(model), allow_pickle=True).identity,
    }  # fmt: skip
    del exported["encoding"]
    path = write(tmp_path, exported)
    with pytest.raises(PipelineError, match="which may run code when they are read"):
        pipeline.load(path)
    assert pipeline.load(path, allow_pickle=True).runtime.family.attention == "sdpa"
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(PipelineError):
        pipeline.load(path, allow_pickle=True)


# Arguments of `Runtime.load` that change no answer: where results are kept, how long is waited, and whether a
# file may be read whose bytes the identity covers.
WITHOUT_EFFECT = {"cache", "clips", "decode_timeout", "prefix_bytes", "allow_pickle"}


def test_whatever_changes_an_answer_is_taken_from_the_file(tmp_path, exported, monkeypatch):
    """A new argument of `Runtime.load` is exported and passed on, or has no effect."""
    given, original = {}, Runtime.load

    def load(model, **options):
        given.update(options, model=model)
        raise PipelineError("seen")

    monkeypatch.setattr(Runtime, "load", load)
    # Values no argument has by itself.
    exported |= {"max_new_tokens": 7, "dtype": "float16", "attention": "eager", "pooling": "bilinear"}
    exported["model"]["revision"], exported["text_encoder"]["revision"] = "one", "two"
    with pytest.raises(PipelineError, match="seen"):
        pipeline.load(write(tmp_path, exported), device="cpu")
    names = set(signature(original).parameters)
    assert set(given) - WITHOUT_EFFECT == names - WITHOUT_EFFECT
    assert given == {
        "model": exported["model"]["id"],
        "revision": "one",
        "text_encoder": exported["text_encoder"]["id"],
        "text_encoder_revision": "two",
        "frames": FRAMES,
        "scoring": "words",
        "max_new_tokens": 7,
        "device": "cpu",
        "dtype": "float16",
        "attention": "eager",
        "pooling": "bilinear",
        "allow_pickle": False,
    }


def test_several_videos_in_one_prompt_are_refused_by_name(exported, tmp_path):
    deployed = pipeline.load(write(tmp_path, exported))
    with pytest.raises(UnsupportedError, match="A prompt holds one video, but got"):
        deployed.answer(["a.mp4", "b.mp4"], "what color?")


def test_a_mean_over_other_tokens_than_the_question_is_not_passed_off_as_one(exported, tmp_path):
    """Before format 2 the mean went over the chat template and the time instruction as well."""
    exported["selection"] |= {"score_query": "mean"}
    with pytest.raises(PipelineError, match="mean over all tokens after the video"):
        pipeline.load(write(tmp_path, exported | {"schema": "adatp-tuner/best/1"}))
    assert pipeline.load(write(tmp_path, exported)).method.score_query == "mean"


def test_a_question_is_read_for_generate_to_go_on_from(exported, tmp_path, file):
    deployed = pipeline.load(write(tmp_path, exported))
    first = deployed.prefill(file[0], "what color is the ring?")
    out = deployed.runtime.model.generate(**first.inputs, max_new_tokens=16, do_sample=False)
    said = deployed.runtime.family.tokenizer.decode(out[0, len(first.ids) :], skip_special_tokens=True)
    assert said.strip() == deployed.answer(file[0], "what color is the ring?").text
