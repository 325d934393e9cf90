"""`tuner check` passes on a sound study, and fails at the line that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pipeline import packing, runtime
from pipeline.prefix import Prefix
from tests.checkpoints import Size, build_siglip, build_tokenizer, scenes, write_checkpoints
from tests.tuner.runs.test_run import make_study
from tests.videos import write_video
from tuner.cli.main import app
from tuner.evaluation.progress import NoProgress
from tuner.runs.check import ModelCheck, check_study
from tuner.statistics.margin import DEFAULT_MAX_DROP
from tuner.study import Study

CHECKS = (
    "loading",
    "weights",
    "frame embeddings against the whole SigLIP",
    "prompt",
    "untouched model against p = 1",
    "split against single prefill",
    "scores that rank tokens",
    "tokens kept",
    "generate() against answer()",
    "bfloat16 against float32",
)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("study")
    write_checkpoints(folder, layers=6)
    (folder / "videos").mkdir()
    for index in range(4):
        write_video(folder / "videos" / f"v{index}.mp4", scenes(16, 4, seed=index))
    return folder


@pytest.fixture
def study(material: Path, tmp_path: Path) -> Study:
    return make_study(Path(shutil.copytree(material, tmp_path / "study")))


def failed(study: Study) -> dict[str, str]:
    """What is found of each check of the model that does not pass."""
    findings = list(ModelCheck(study).findings(NoProgress()))
    return {finding.name: finding.found for finding in findings if not finding.passed}


def test_a_sound_model_passes_and_its_study_is_estimated(study: Study) -> None:
    checked = ModelCheck(study)
    findings = list(checked.findings(NoProgress()))
    assert tuple(finding.name for finding in findings) == CHECKS
    assert all(finding.passed for finding in findings), [
        finding for finding in findings if not finding.passed
    ]
    estimate = checked.estimate
    assert estimate is not None
    assert min(estimate.encode, estimate.baseline, estimate.trials, estimate.held_out) > 0
    assert estimate.total == estimate.encode + estimate.baseline + estimate.trials + estimate.held_out
    assert estimate.sensitivity > estimate.trials
    assert 0 < estimate.smallest_budget < 0.9
    assert estimate.workers >= 0


def edit_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), 0.0], ids=["nan", "zeros"])
def test_a_broken_tensor_is_named(study: Study, value: float) -> None:
    def damage(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(weights) if "layers.3.mlp.up_proj" in name)
        weights[name][:] = value

    edit_weights(Path(study.model) / "model.safetensors", damage)
    found = failed(study)
    assert "layers.3.mlp.up_proj.weight" in found["weights"]
    if value != 0.0:
        # Each check that reaches this layer says for itself that numbers are none.
        before = {"frame embeddings against the whole SigLIP", "prompt", "scores that rank tokens"}
        assert set(CHECKS) - set(found) == before | {"loading"}


@pytest.mark.parametrize("wrong", [float("nan"), -1.0], ids=["nan", "reversed"])
def test_scores_that_are_not_those_of_queries_and_keys_fail(
    study: Study, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """NaN compares with nothing: a largest error of 0 would look like none."""
    scores = packing.row_scores
    monkeypatch.setattr(packing, "row_scores", lambda *given: scores(*given) * wrong)
    assert "scores that rank tokens" in failed(study)


def test_ties_that_fall_otherwise_are_told_and_fail_no_split(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in half precision at a real length, where no two ways keep the same of thousands of tokens."""
    scores, drawn = packing.row_scores, torch.Generator().manual_seed(0)

    def noisy(*given: Any) -> torch.Tensor:
        exact = scores(*given)
        return exact * (1 + 0.1 * torch.rand(exact.shape, generator=drawn))

    monkeypatch.setattr(packing, "row_scores", noisy)
    findings = {finding.name: finding for finding in ModelCheck(study).findings(NoProgress())}
    split = findings["split against single prefill"]
    assert split.passed
    assert " 0.00% of them would not be" not in split.found


def test_a_split_that_computes_otherwise_fails(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    build = runtime.build_prefix

    def wrong(*given: Any) -> Prefix:
        prefix = build(*given)
        return replace(prefix, values=tuple(values * 1.01 for values in prefix.values))

    monkeypatch.setattr(runtime, "build_prefix", wrong)
    assert "split against single prefill" in failed(study)


def test_a_video_that_cannot_be_read_does_not_keep_the_model_from_being_checked(study: Study) -> None:
    (study.folder / "videos" / "v0.mp4").write_bytes(b"no video")
    model = ModelCheck(study)
    findings = list(model.findings(NoProgress()))
    assert tuple(finding.name for finding in findings) == CHECKS
    assert all(finding.passed for finding in findings)
    assert model.estimate is not None
    assert all(check.passed for check in check_study(study, 0.9, NoProgress(), skip_bad_videos=True))
    assert list(checked(study)) == ["videos"]
    for video in study.videos:
        video.path.write_bytes(b"no video")
    assert list(failed(study)) == ["encoding"]


def test_another_siglip_fails_at_the_frame_embeddings(study: Study) -> None:
    torch.manual_seed(99)
    other = build_siglip(Size(layers=6), len(build_tokenizer()))
    weights = {name: tensor.contiguous().clone() for name, tensor in other.state_dict().items()}
    save_file(weights, Path(study.text_encoder) / "model.safetensors", {"format": "pt"})
    assert list(failed(study)) == ["frame embeddings against the whole SigLIP"]


def test_a_template_of_another_model_fails_at_the_prompt(study: Study) -> None:
    template = (
        "{% for message in messages %}USER: {% for part in message['content'] %}"
        "{{ '<video>' if part['type'] == 'video' else part['text'] }}{% endfor %}{% endfor %} ASSISTANT:"
    )
    (Path(study.model) / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    found = failed(study)
    assert "no token that ends a turn stands behind the question" in found["prompt"]


def checked(study: Study, max_drop: float = 0.9) -> dict[str, str]:
    """What is found of each check of the files that does not pass."""
    return {
        check.name: check.found for check in check_study(study, max_drop, NoProgress()) if not check.passed
    }


def test_a_sound_study_passes(study: Study) -> None:
    assert checked(study) == {}


def test_all_that_is_wrong_with_the_files_is_told_together(study: Study) -> None:
    videos = study.folder / "videos"
    shutil.copy(videos / "v0.mp4", videos / "v1.mp4")  # one tunes, one measures
    (videos / "v2.mp4").write_bytes(b"no video")
    twice = replace(study.questions[0], id="again")
    found = checked(replace(study, questions=(*study.questions, twice)), 0.02)
    assert list(found) == ["videos", "equal videos", "equal questions", "split"]
    assert "v2.mp4" in found["videos"]
    assert found["equal videos"] == "v0.mp4 = v1.mp4"
    assert twice.text in found["equal questions"]
    assert "2 videos tune, 2 measure" in found["split"]


def test_labels_that_stand_at_one_place_are_seen(study: Study) -> None:
    same = tuple(
        replace(question, id=f"{question.id}-{k}", text=f"{question.text} {k}", answer=question.options[2])
        for question in study.questions
        if question.options
        for k in range(2)
    )
    assert "option 3: 100%" in checked(replace(study, questions=same))["place of right answers"]


def test_the_command_prints_every_check_and_exits_by_them(study: Study) -> None:
    settings = {"name": "tiny", "model": "model", "text_encoder": "siglip", "frames": 8, "scoring": "words"}
    (study.folder / "study.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    lines = (
        {
            "id": question.id,
            "video": question.video,
            "question": question.text,
            "options": question.options,
            "answer": question.answer,
        }
        for question in study.questions
    )
    (study.folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runner, command = CliRunner(), ["check", "--study", str(study.folder)]
    whole = runner.invoke(app, [*command, "--model", "--max-drop", "0.9", "--json"])
    assert whole.exit_code == 0, whole.output
    told = json.loads(whole.stdout)
    assert told["passed"]
    assert told["estimate"]["total"] > 0
    assert tuple(check["name"] for check in told["checks"])[-len(CHECKS) :] == CHECKS
    strict = runner.invoke(app, command)
    assert strict.exit_code == 1
    said = " ".join(strict.stdout.split())
    assert "FAILED split" in said
    assert f"allowed: losses above {100 * float(DEFAULT_MAX_DROP):.3g} points can be ruled out" in said
    assert "5 of 6 checks passed." in said
