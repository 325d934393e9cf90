"""`tuner verify`: a file holds where it answers as it says, and not where the model computes otherwise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pipeline.checkpoint import find_checkpoint
from pipeline.finding import Finding
from pipeline.runtime import Runtime
from pipeline.video import content_hash
from tests.checkpoints import scenes, write_checkpoints
from tests.videos import write_video
from tuner.cli.main import app
from tuner.cli.verify import in_markdown
from tuner.errors import UserError
from tuner.evaluation.evaluator import PipelineEvaluator
from tuner.records.values import asked_hash
from tuner.runs.run import InterruptedRunError, RunOptions
from tuner.runs.verify import ChangedAnswer, Verification, verify
from tuner.statistics.values import Measured
from tuner.study import load_study

COLORS = ["red", "green", "blue", "yellow"]
OLD = Path(__file__).parents[2] / "data" / "best-2.json"


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """Each model is loaded once for all tests; nothing of it changes."""
    loaded: dict[str, Runtime] = {}
    load = Runtime.load

    def load_once(model: str, **options: Any) -> Runtime:
        if model not in loaded:
            loaded[model] = load(model, **options)
        return loaded[model]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runtime, "load", load_once)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, loaded_once: None) -> Path:
    """A study of two videos with six questions, and a best.json that says what its model answers."""
    folder = tmp_path_factory.mktemp("verify")
    write_checkpoints(folder)
    (folder / "videos").mkdir()
    lines = []
    for index in range(2):
        write_video(folder / "videos" / f"v{index}.mp4", scenes(16, scene_length=4, seed=index))
        for place in ("top", "left", "bottom"):
            asked = {
                "question": f"what color is the {place} of the ring?",
                "options": COLORS,
                "answer": "red",
            }
            lines.append(json.dumps({"id": f"v{index}-{place}", "video": f"v{index}.mp4", **asked}))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "study.yaml").write_text(
        f"model: {folder}/model\ntext_encoder: {folder}/siglip\nframes: 8\nscoring: words\n"
    )
    best = json.loads(OLD.read_text()) | {"frames": 8, "pooling": None}
    for name, part in (("model", "model"), ("text_encoder", "siglip")):
        identity = find_checkpoint(str(folder / part)).identity
        place = str(folder / part)
        best[name] = {"id": place, "resolved": place, "revision": None, "identity": identity}
    best["parameters"] = {"tau_s": 0.95, "tau_t": 0.5, "alpha_boost": 1.1, "gamma_cap": 0.95, "p": 0.6}
    best["budget"], best["margin"], best["max_drop"] = 0.9, 0.99, "0.99"
    best["tested"][0]["level"] = 0.5
    best["measured"] |= {"questions": 6, "videos": 2}
    best["provenance"]["versions"]["torch"] = "1.0"
    best["answers"] = [
        {"question": f"v{index}-{place}", "asked": "0" * 12, "text": "none", "unpruned": "none"}
        for index in range(2)
        for place in ("top", "left", "bottom")
    ]
    write(folder, best)
    # What nothing was promised of is what the model says.
    found = {answer.question: answer for answer in check(folder).changed}
    study = load_study(folder)
    for item in best["answers"]:
        question = study.question(item["question"])
        item["text"] = found[question.id].now
        item["asked"] = asked_hash(question, content_hash(study.video_of(question).path))
    write(folder, best)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(template, tmp_path / "study", ignore=shutil.ignore_patterns("model", "siglip"))
    )


def write(folder: Path, best: dict[str, Any]) -> None:
    (folder / "best.json").write_text(json.dumps(best))


def content(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "best.json").read_text())
    return values


def check(folder: Path, **options: Any) -> Verification:
    return verify(folder / "best.json", load_study(folder), RunOptions(), **options)


def failed(found: Verification) -> list[str]:
    return [finding.name for finding in found.findings if not finding.passed]


def test_a_file_holds_where_its_model_answers_as_before(folder: Path) -> None:
    found = check(folder)
    assert (found.holds, found.complete, failed(found), found.changed) == (True, True, [], ())
    assert (found.questions, found.videos, found.trial) == (6, 2, 6)
    assert 0 < found.flops_ratio < 0.9
    assert found.environment["torch"] == ("1.0", torch.__version__)
    assert not (folder / ".tuner").exists()  # nothing is kept


def test_a_perturbed_layer_is_found_and_its_answers_are_named(folder: Path) -> None:
    """As a wrong kernel would compute: the same files, other numbers in one layer."""
    best = content(folder)
    runtime = Runtime.load(best["model"]["id"])
    runtime.forget_prefixes()
    layer = runtime.model.model.language_model.layers[1].mlp.down_proj
    other = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    before, layer.weight.data = layer.weight.data, other
    try:
        found = check(folder)
    finally:
        layer.weight.data = before
        runtime.forget_prefixes()
    assert (found.holds, failed(found)) == (False, ["answers"])
    assert len(found.changed) > 1
    promised = {answer["question"]: answer["text"] for answer in content(folder)["answers"]}
    assert all(answer.promised == promised[answer.question] != answer.now for answer in found.changed)
    assert not any(answer.other_input for answer in found.changed)


def test_other_weights_are_named_and_asked_all_the_same(folder: Path) -> None:
    best = content(folder)
    best["model"]["identity"] = "sha256:0"
    write(folder, best)
    found = check(folder)
    assert failed(found) == ["model"]
    assert "is another one: sha256:" in found.findings[0].found


def test_a_study_of_another_model_is_told_that_it_was_not_asked(folder: Path, template: Path) -> None:
    """Another path to the same one, here the text encoder, is as good."""
    for part in ("model", "siglip"):
        shutil.copytree(template / part, folder / part)
    settings = json.loads((folder / "model" / "generation_config.json").read_text())
    (folder / "model" / "generation_config.json").write_text(json.dumps(settings | {"top_k": 1}))
    file = folder / "study.yaml"
    file.write_text(file.read_text().replace(f"{template}/", ""))
    found = check(folder)
    told = f"{template}/model; the study names another one, {folder}/model, which was not asked"
    assert [finding.found for finding in found.findings[:2]] == [told, f"{template}/siglip"]
    assert found.holds


def test_a_sample_asks_about_whole_videos_and_shows_nothing(folder: Path) -> None:
    found = check(folder, questions=2)
    assert (found.questions, found.videos, found.complete, found.holds) == (2, 1, False, True)
    assert [finding.name for finding in found.findings][-1] == "accuracy against the unpruned model"
    assert found == check(folder, questions=2)


def test_the_loss_must_be_shown_again(folder: Path) -> None:
    """Six right answers about two videos show no small loss, whatever the file says."""
    write(folder, content(folder) | {"margin": 0.01})
    assert failed(check(folder)) == ["accuracy against the unpruned model"]
    # Of a file that shows nothing, only a loss that is certain counts.
    not_shown = {"margin": 0.01, "verdict": "not_shown"}
    write(folder, content(folder) | not_shown)
    assert check(folder).holds


def test_more_compute_than_the_budget_does_not_hold(folder: Path) -> None:
    write(folder, content(folder) | {"budget": 0.1})
    assert failed(check(folder)) == ["LLM prefill FLOPs"]


def test_another_video_explains_other_answers(folder: Path) -> None:
    best = content(folder)
    for item in best["answers"]:
        item |= {"text": "none", "asked": "0" * 12}
    write(folder, best)
    found = check(folder)
    assert all(answer.other_input for answer in found.changed)
    assert "6 more where the question or the video's bytes" in found.findings[2].found


def test_questions_that_are_gone_are_named(folder: Path) -> None:
    lines = (folder / "questions.jsonl").read_text().splitlines()
    (folder / "questions.jsonl").write_text("\n".join(lines[1:]) + "\n")
    found = check(folder)
    assert "questions" in failed(found)
    assert "1 of the file's 6 questions are not in the study: v0-top" in found.findings[2].found


def test_an_older_file_is_compared_by_counts(folder: Path) -> None:
    best = content(folder)
    del best["answers"]
    best["provenance"]["study"] = folder.name
    with (folder / "study.yaml").open("a") as file:
        file.write("split:\n  held_out_videos: [v0.mp4]\n")
    study = load_study(folder)
    held_out = [question.id for question in study.questions_of("held_out")]
    best["measured"] |= {"questions": len(held_out), "accuracy": 1.0}
    write(folder, best)
    found = check(folder)
    assert (found.questions, found.videos) == (3, 1)
    assert "an older file lists no answers" in found.findings[2].found
    assert found.findings[2].passed is (round(found.accuracy * 3) >= 2)


def test_what_stands_in_the_way_is_a_mistake(folder: Path) -> None:
    with pytest.raises(UserError, match="1 question or more"):
        check(folder, questions=0)
    with pytest.raises(UserError, match="from 0 to 1, but got 2"):
        check(folder, allow_changed=2)
    (folder / "videos" / "v1.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"v1\.mp4"):
        check(folder)


def test_it_ends_when_it_is_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PipelineEvaluator, "answer", interrupt)
    with pytest.raises(InterruptedRunError, match="not kept"):
        check(folder)


def test_the_command_tells_by_its_exit_code(folder: Path) -> None:
    summary = folder / "summary.md"
    arguments = ["verify", str(folder / "best.json"), "--study", str(folder)]
    done = CliRunner().invoke(app, [*arguments, "--questions", "2", "--markdown", str(summary)])
    assert done.exit_code == 0, done.output
    assert "Nothing against it in 2 questions" in done.stdout
    assert summary.read_text().startswith("## ✅ tuner verify: Nothing against it in 2 questions")
    write(folder, content(folder) | {"budget": 0.1})
    done = CliRunner().invoke(app, [*arguments, "--json", "--markdown", str(summary)])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["holds"] is False
    assert summary.read_text().count("## ") == 2
    assert "❌ | LLM prefill FLOPs" in summary.read_text()


@pytest.mark.quick
def test_text_of_users_is_no_markup() -> None:
    change = ChangedAnswer("q|1", "v.mp4", "a <b>?\n`x` @me #12", "*red*", "blue", "[red]", "lost", False)
    found = Verification(
        file="best.json",
        study="s",
        trial=1,
        findings=(Finding("answers", False, "1 | 2", "none"),),
        changed=(change, *[replace(change, change="gained")] * 25),
        unpruned_changed=(),
        questions=1,
        videos=1,
        labelled=True,
        accuracy=0.0,
        baseline=1.0,
        difference=Measured(-1.0),
        flops_ratio=0.3,
        complete=True,
        environment={"torch": ("1", "2")},
    )
    text = in_markdown(found)
    (row,) = [line for line in text.splitlines() if line.startswith("| lost")]
    assert row.count("|") == 8
    assert "a &lt;b&gt;? &#96;x&#96; &#64;me &#35;12" in row
    assert "and 6 more" in text
    assert "| torch | 1 | 2 |" in text
    assert "0.0 % right, 100.0 % unpruned" in text
    assert "0.0 % agreement with the unpruned model" in in_markdown(replace(found, labelled=False))
