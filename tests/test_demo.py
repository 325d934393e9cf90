"""The demo that ships: its size, its accuracy, and the pipeline's promises on every third of its videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.cache import FeatureCache
from pipeline.clip import Clip
from pipeline.methods import AdaTP
from pipeline.runtime import Answer, Request, Runtime
from tests.videos import real_clip
from tuner.study.definition import Study, StudyQuestion
from tuner.study.loading import load_study

DEMO = Path(__file__).parents[1] / "studies" / "demo"
# A configuration with segments, boosts and strong pruning.
PRUNED = AdaTP(tau_s=0.98, tau_t=0.8, alpha_boost=1.4, gamma_cap=0.9, p=0.5)


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(str(DEMO))


@pytest.fixture(scope="module")
def runtime(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cache = FeatureCache(tmp_path_factory.mktemp("features"), 2**30)
    yield Runtime.load(
        study.model, text_encoder=study.text_encoder, frames=study.frames, scoring=study.scoring, cache=cache
    )
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def asked(study: Study, runtime: Runtime) -> list[tuple[StudyQuestion, Clip]]:
    """All questions of every third video, so that the tests stay short."""
    torch.set_num_threads(2)
    clips = {video.name: runtime.encode(video.path) for video in study.videos[::3]}
    torch.set_num_threads(1)
    return [(question, clips[question.video]) for question in study.questions if question.video in clips]


@pytest.fixture(scope="module")
def packed(runtime: Runtime, asked: list[tuple[StudyQuestion, Clip]]) -> list[Answer]:
    """PRUNED's answers to these questions, several in a row: half the time of one by one."""
    return pack_wise(runtime, asked, PRUNED)


def pack_wise(
    runtime: Runtime, asked: list[tuple[StudyQuestion, Clip]], method: AdaTP | None
) -> list[Answer]:
    packs = [asked[i : i + 8] for i in range(0, len(asked), 8)]
    return [
        answer
        for pack in packs
        for answer in runtime.answer_many([Request(clip, question, method) for question, clip in pack])
    ]


def test_models_and_videos_together_are_at_most_40_mb() -> None:
    parts = ("model", "siglip", "videos", "questions.jsonl", "study.yaml")
    files = [file for part in parts for file in [DEMO / part, *(DEMO / part).rglob("*")] if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40e6


def test_the_builder_still_writes_the_tokenizer_that_ships() -> None:
    """It is written at the very end of a build of hours."""
    from studies.demo.builder.checkpoint import tokenizer

    written = tokenizer().backend_tokenizer.to_str()
    for part in ("model", "siglip"):
        assert json.loads((DEMO / part / "tokenizer.json").read_text()) == json.loads(written)


def test_many_held_out_videos_and_questions_with_four_options_and_tags(study: Study) -> None:
    """Few questions about many videos measure better than many about few."""
    assert len(study.held_out) == 320
    assert len(study.videos_of("tune")) == 80
    assert len(study.questions_of("held_out")) >= 636
    for question in study.questions:
        assert question.options is not None
        assert len(question.options) == 4
        assert set(question.tags) == {"type", "when", "size"}


def test_the_demo_has_as_many_visual_tokens_and_layers_as_pruning_needs(
    runtime: Runtime, asked: list[tuple[StudyQuestion, Clip]]
) -> None:
    """With fewer, hardly a token is left where answers are read, and no configuration is good."""
    question, clip = asked[0]
    assert runtime.layout(clip, question).visual >= 512
    assert runtime.shape.layers == 24


def test_the_unpruned_model_is_right_on_nine_of_ten_held_out_questions(
    study: Study, runtime: Runtime, asked: list[tuple[StudyQuestion, Clip]]
) -> None:
    held_out = [(q, clip) for q, clip in asked if q.video in study.held_out]
    answers = pack_wise(runtime, held_out, None)
    right = [answer.text == question.answer for answer, (question, _) in zip(answers, held_out, strict=True)]
    assert np.mean(right) >= 0.9


def test_kept_tokens_are_the_planned_ones_at_every_layer_on_every_question(
    runtime: Runtime, asked: list[tuple[StudyQuestion, Clip]], packed: list[Answer]
) -> None:
    for (question, clip), answer in zip(asked, packed, strict=True):
        plan = PRUNED.plan(runtime.layout(clip, question), runtime.shape.layers)
        planned = tuple(plan.total(j) for j in range(len(plan.layers)))
        assert answer.kept == planned


@pytest.mark.parametrize("method", [None, PRUNED], ids=["unpruned", "pruned"])
def test_split_and_single_pass_prefill_agree(
    runtime: Runtime, asked: list[tuple[StudyQuestion, Clip]], method: AdaTP | None
) -> None:
    """Log-probabilities within 2e-3 in float32; an answer may change only where its gap is below that."""
    changed = []
    for question, clip in asked[::8]:
        single = runtime.one_pass(clip, question, method).logits(0).log_softmax(-1)
        split = runtime.answer(clip, question, method)
        assert question.options is not None
        assert split.option_logprobs is not None
        words = [runtime.family.answer_ids(option)[0] for option in question.options]
        scores = single[torch.tensor(words)].tolist()
        assert scores == pytest.approx(list(split.option_logprobs), abs=2e-3)
        best = int(np.argmax(scores))
        if best != split.option:
            first, second = sorted(scores, reverse=True)[:2]
            changed.append((question.id, first - second))
    assert all(gap < 2e-3 for _, gap in changed), f"changed answers and their score gaps: {changed}"


@pytest.mark.parametrize("method", [None, PRUNED], ids=["unpruned", "pruned"])
def test_packed_answers_are_those_of_each_question_alone(
    request: pytest.FixtureRequest,
    runtime: Runtime,
    asked: list[tuple[StudyQuestion, Clip]],
    method: AdaTP | None,
) -> None:
    """Log-probabilities within 2e-3 in float32; an answer may change only where its gap is below that."""
    some = asked[:120]
    together = pack_wise(runtime, some, None) if method is None else request.getfixturevalue("packed")[:120]
    for (question, clip), packed in zip(some, together, strict=True):
        alone = runtime.answer(clip, question, method)
        assert packed.kept == alone.kept
        assert packed.option_logprobs == pytest.approx(alone.option_logprobs, abs=2e-3)
        assert alone.option_logprobs is not None
        first, second = sorted(alone.option_logprobs, reverse=True)[:2]
        assert packed.option == alone.option or first - second < 2e-3


@pytest.mark.parametrize(
    "name",
    ["nasa_13013.mp4", "big_buck_bunny_0_30.webm", "decord_unordered.mov", "decord_video_90.mov"],
)
def test_real_clips_are_answered(
    runtime: Runtime, asked: list[tuple[StudyQuestion, Clip]], name: str
) -> None:
    question = asked[0][0]
    answer = runtime.answer(runtime.encode(real_clip(name)), question, PRUNED)
    assert answer.text in (question.options or ())
