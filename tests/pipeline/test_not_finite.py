"""What is not a finite number is no answer and no video: an error says whose it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import pipeline
from pipeline.errors import NotFiniteError
from pipeline.export_format import SCHEMA
from pipeline.methods import AdaTP, FewerFrames
from pipeline.packing import Pack
from pipeline.question import Question
from pipeline.runtime import Request, Runtime
from tests.checkpoints import scenes
from tests.pipeline.conftest import FRAMES
from tests.videos import write_video

OPTIONS = ("red", "dark blue", "top left")


def load(checkpoints, **options):
    return Runtime.load(
        str(checkpoints.model), text_encoder=str(checkpoints.siglip), frames=FRAMES, **options
    )


@pytest.fixture(scope="module")
def broken(checkpoints):
    """One weight of the last norm is not a number: what comes before is, logits are not."""
    runtime = load(checkpoints)
    runtime.family.language_model.norm.weight.data[0] = float("nan")
    return runtime


@pytest.mark.parametrize("method", [None, AdaTP(p=0.6), FewerFrames(0.5)], ids=str)
@pytest.mark.parametrize("options", [OPTIONS, ("red", "blue"), None], ids=["words", "word", "free"])
def test_an_answer_of_nan_names_the_question(broken, clip, options, method):
    """At ae20304: the first option with log-probabilities of NaN, or the free answer ''."""
    question = Question("v1-q3", "what color is the ring?", options)
    message = "answer to question 'v1-q3' is not a finite number.*float16"
    with pytest.raises(NotFiniteError, match=message):
        broken.answer(clip, question, method)
    if options is None:
        with pytest.raises(NotFiniteError, match=message):
            broken.answer(clip, question, method, reference="dark red")


def test_among_several_questions_the_one_to_blame_is_named(runtime, clip, monkeypatch):
    asked = [Request(clip, Question(name, "what color?", OPTIONS), None) for name in "abc"]
    prefill = Pack._prefill

    def second_is_nan(self, observe):
        hidden = prefill(self, observe)
        hidden[1, 0] = float("nan")
        return hidden

    monkeypatch.setattr(Pack, "_prefill", second_is_nan)
    with pytest.raises(NotFiniteError, match="question 'b'"):
        runtime.answer_many(asked)


def test_an_option_whose_logit_overflows_is_not_merely_improbable(checkpoints, clip):
    """Log-probabilities of finite logits are finite: minus infinity is an overflow, too."""
    runtime = load(checkpoints, dtype="float16")
    clip = runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))
    question = Question("q", "what color?", ("red", "blue"))
    with torch.inference_mode():
        hidden = Pack(runtime.family, [runtime.pack_item(Request(clip, question, None))])._next.hidden[0]
    (word,) = runtime.family.answer_ids("blue")
    runtime.family.lm_head.weight.data[word] = -60_000 * hidden.sign()
    with pytest.raises(NotFiniteError, match="answer to question 'q'"):
        runtime.answer(clip, question, None)


def test_a_deployed_model_raises_too(checkpoints, broken, tmp_path, monkeypatch):
    exported = {
        "schema": SCHEMA, "parameters": {"p": 0.6}, "frames": FRAMES, "dtype": "float32", "attention": "sdpa",
        "model": {"id": str(checkpoints.model)}, "text_encoder": {"id": str(checkpoints.siglip)},
        "verdict": "shown",
    }  # fmt: skip
    (tmp_path / "best.json").write_text(json.dumps(exported))
    write_video(tmp_path / "video.mp4", scenes(FRAMES))
    deployed = pipeline.load(tmp_path / "best.json")
    monkeypatch.setattr(deployed, "runtime", broken)
    with pytest.raises(NotFiniteError, match="answer to question 'what color is it"):
        deployed.answer(tmp_path / "video.mp4", "what color is it?", OPTIONS)


@pytest.mark.parametrize("part", ["projector", "pooling head"])
def test_a_video_without_numbers_is_not_encoded(checkpoints, part):
    """At ae20304: stored, and the first plan that needed frame embeddings raised a ValueError of its own."""
    runtime = load(checkpoints)
    broken = runtime.encoder._head.probe
    if part == "projector":
        broken = runtime.model.model.multi_modal_projector.linear_1.bias
    broken.data.view(-1)[0] = float("nan")
    with pytest.raises(NotFiniteError, match="vision tower makes of frames is not a finite number"):
        runtime.encode_frames(scenes(FRAMES), np.arange(FRAMES))


def test_a_question_whose_embedding_is_not_a_number_is_named(checkpoints, clip):
    """At ae20304: stored, then a ValueError that named nothing."""
    runtime = load(checkpoints)
    runtime.encoder._text.head.bias.data[0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"embedding of 'what color\?' is not a finite number"):
        runtime.answer(clip, Question("q", "what color?", OPTIONS), AdaTP(p=0.6))
