"""What a run looks at afterwards: over a tiny model with random weights and real video files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, update

from pipeline.errors import VideoError
from tests.checkpoints import scenes, write_checkpoints
from tests.inspections import make_bias, make_card, make_inspection
from tests.tuner.runs.test_run import COLORS, OPTIONS, Recorder, make_study
from tests.videos import write_video
from tuner.evaluation import looking
from tuner.evaluation.evaluator import PipelineEvaluator
from tuner.records.database import default_database
from tuner.records.schema import inspection_table
from tuner.records.store import Store
from tuner.reporting import inspection as module
from tuner.reporting.from_records import Results, flips, make_planner
from tuner.reporting.inspection import (
    Inspection,
    last_frames,
    load_inspection,
    pack,
    relative,
    unpack,
)
from tuner.reporting.values import RunSummary
from tuner.runs.run import InterruptedRunError, run
from tuner.study import Study
from tuner.study.values import Configuration

LOOKING = replace(OPTIONS, trials=2, inspect=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory where a run without an inspection has ended; tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    write_checkpoints(folder)
    (folder / "videos").mkdir()
    for index in range(4):
        write_video(folder / "videos" / f"v{index}.mp4", scenes(16, scene_length=4, seed=index))
    study = make_study(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(PipelineEvaluator, "answer", decided(study, PipelineEvaluator.answer))
        run(study, replace(LOOKING, inspect=False))
    return folder


def decided(study: Study, answer: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, Any]]]:
    """A random model answers the same however it is pruned; here pruning turns each held-out answer."""

    def turned(one: dict[str, Any]) -> dict[str, Any]:
        question = study.question(one["question"])
        right = COLORS.index(str(question.answer))
        if question.video not in study.held_out:
            return one
        option = (right + 1) % 4 if one["option"] == right else right
        logprobs = list(one["option_logprobs"])
        logprobs[option], logprobs[one["option"]] = logprobs[one["option"]], logprobs[option]
        return one | {"option": option, "text": COLORS[option], "option_logprobs": tuple(logprobs)}

    def turning(self: Any, configuration: Any, *asked: Any, **options: Any) -> list[dict[str, Any]]:
        answers = answer(self, configuration, *asked, **options)
        return answers if configuration is None else [turned(answer) for answer in answers]

    return turning


@pytest.fixture
def study(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """In place: the study's model is found by its absolute path. What a test leaves is taken away."""
    monkeypatch.chdir(finished)
    with Store.open(default_database("tiny")) as store, store._engine.begin() as connection:
        connection.execute(delete(inspection_table))
    return make_study(finished)


def load(summary: RunSummary) -> Inspection | None:
    assert summary.best is not None
    return load_inspection(summary.study, summary.best.configuration)


def test_a_run_leaves_what_its_summary_finds_and_the_same_again_loads_no_model(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Recorder()
    summary = run(study, LOOKING, progress)
    found = load(summary)
    assert found is not None
    assert [phase for phase, _ in progress.phases] == ["pictures"]
    assert progress.done == sum(total for _, total in progress.phases)
    assert summary.best_held_out is not None
    assert (found.regressions, found.gains) == (
        summary.best_held_out.outcome.regressions,
        summary.best_held_out.outcome.gained,
    )
    assert len(found.cards) == found.regressions + found.gains == 6
    assert found.regressions > 0
    assert found.questions == 6
    assert (found.frames, found.cells) == (8, 4)
    assert {card.video for card in found.cards} == set(found.films)
    assert found.bias is not None
    assert found.bias.questions == 2  # one of each held-out video
    monkeypatch.setattr("pipeline.runtime.Runtime.load", None)
    run(study, LOOKING)


def test_cards_hold_the_recorded_answers_and_the_planned_counts(study: Study) -> None:
    summary = run(study, LOOKING)
    found = load(summary)
    assert found is not None
    rows = {row.question: row for row in summary.regressions}
    with Store.open(default_database("tiny")) as store:
        planner = make_planner(store.require("tiny"))
        layouts = {question.id: question.layout for question in planner.questions}
        results = Results(study, store, planner)
        lost, gained = flips(results, found.configuration)
    assert lost == summary.regressions
    assert {card.question for card in found.shown("gain")} == {row.question for row in gained}
    for card in found.cards:
        plan = found.configuration.build().plan(layouts[card.question], 12)
        assert card.layers == (2, 4, 7)
        assert [len(tokens) for tokens in card.tokens] == [plan.total(j) for j in (0, 2, 5)]
        assert [segment.boosted for segment in card.segments] == list(plan.boosted)
        assert sum(card.baseline_probabilities) == pytest.approx(1)
        said = card.options[int(np.argmax(card.pruned_probabilities))]
        assert said == card.pruned_text
        if card.kind == "regression":
            row = rows[card.question]
            assert (card.baseline_margin, card.pruned_margin) == (row.baseline_margin, row.pruned_margin)
            assert card.baseline_text == card.answer != card.pruned_text
        else:
            assert card.pruned_text == card.answer != card.baseline_text
    for kind in ("regression", "gain"):
        sure = [abs(card.baseline_margin or 0) for card in found.shown(kind)]
        assert sure == sorted(sure, reverse=True)


def test_maps_are_shares(study: Study) -> None:
    found = load(run(study, LOOKING))
    assert found is not None
    bias = found.bias
    assert bias is not None
    assert bias.attention.shape == bias.kept.shape == (8, 4)
    assert bias.attention.sum() == pytest.approx(1)
    assert 0 < bias.to_video < 1
    assert 0 <= bias.top_in_last <= 1
    assert bias.one_shot is not None
    assert bias.one_shot_ratio is not None
    # ceil: at least the planned share.
    assert bias.one_shot_ratio <= bias.one_shot.mean() <= bias.one_shot_ratio + 1 / 32
    assert set(np.unique(2 * bias.kept)) <= {0, 1, 2}


def test_other_tokens_than_recorded_are_no_picture_but_a_message(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    progress = Recorder()
    progress.message = told.append  # type: ignore[method-assign]
    real = looking.trace

    def fewer(*asked: Any) -> Any:
        seen = real(*asked)
        return replace(seen, tokens=tuple(tokens[1:] for tokens in seen.tokens))

    monkeypatch.setattr(looking, "trace", fewer)
    summary = run(study, LOOKING, progress)
    assert load(summary) is None
    assert "could not be looked at: question v" in told[-1]
    assert "when it was answered" in told[-1]


def out_of_memory(*_: Any) -> None:
    import torch

    raise torch.OutOfMemoryError


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "failure", "reason"),
    [("trace", out_of_memory, "memory does not suffice"), ("_film", full, "No space left")],
)
def test_a_look_that_fails_ends_no_run(
    study: Study, monkeypatch: pytest.MonkeyPatch, name: str, failure: Callable[..., None], reason: str
) -> None:
    told: list[str] = []
    progress = Recorder()
    progress.message = told.append  # type: ignore[method-assign]
    monkeypatch.setattr(looking, name, failure)
    summary = run(study, LOOKING, progress)
    assert summary.best is not None
    assert reason in told[-1]
    assert load(summary) is None


def test_ctrl_c_while_looking_loses_nothing_else(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(looking, "trace", stopped)
        with pytest.raises(InterruptedRunError, match="the same command goes on"):
            run(study, LOOKING)
    assert load(run(study, LOOKING)) is not None


def test_an_unreadable_video_is_left_out_with_a_message(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    progress = Recorder()
    progress.message = told.append  # type: ignore[method-assign]
    real = looking._film

    def gone(path: str, times: Any) -> Any:
        if path.endswith("v1.mp4"):
            raise VideoError("video v1.mp4 is gone", path)
        return real(path, times)

    monkeypatch.setattr(looking, "_film", gone)
    found = load(run(study, LOOKING, progress))
    assert found is not None
    assert {card.video for card in found.cards} == {"v3.mp4"}
    assert told == ["Left out of the pictures: video v1.mp4 is gone"]
    assert set(found.unreadable) == {"v1.mp4"}
    assert found.left_out("regression") + found.left_out("gain") == 3


@pytest.mark.quick
def test_it_reads_back_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    written = make_inspection(frames=20, cards=2, unreadable={"w.mp4": "is gone"})
    written = replace(
        written, cards=(*written.cards, make_card(9, 20, tags={"array": "array0"}, kind="gain"))
    )
    read = unpack(pack(written))
    assert read is not None
    assert read.configuration == written.configuration
    assert read.unreadable == written.unreadable
    for card, other in zip(read.cards, written.cards, strict=True):
        assert card.segments == other.segments
        assert card.tags == other.tags
        assert card.options == other.options
        assert card.baseline_probabilities == other.baseline_probabilities
        assert all((a == b).all() for a, b in zip(card.tokens, other.tokens, strict=True))
    assert read.films["v.mp4"].strips == written.films["v.mp4"].strips
    assert read.bias is not None
    assert (read.bias.attention == make_bias(20).attention).all()
    monkeypatch.setattr(module, "_VERSION", 0)
    assert unpack(pack(make_inspection())) is not None
    older = pack(written)
    monkeypatch.undo()
    assert unpack(older) is None


def test_it_is_of_one_configuration_of_the_study_as_it_is_defined(study: Study) -> None:
    from pipeline.methods import AdaTP

    written = make_inspection(frames=20, cards=2)
    other = Configuration.from_method(AdaTP(p=0.123))
    with Store.open(default_database(study.name)) as store:
        store.require(study.name)
        store.record_inspection(other, pack(written))
    assert load_inspection(study.name, other) is not None
    assert load_inspection(study.name, Configuration.from_method(AdaTP(p=0.124))) is None
    with Store.open(default_database(study.name)) as store, store._engine.begin() as connection:
        connection.execute(update(inspection_table).values(study_hash="another"))
    assert load_inspection(study.name, other) is None


@pytest.mark.quick
def test_profiles_and_the_last_eighth() -> None:
    values = np.array([[1.0, 3.0], [1.0, 3.0]])
    assert relative(values, "position").tolist() == [0.5, 1.5]
    assert relative(values, "frame").tolist() == [1, 1]
    assert [last_frames(frames) for frames in (4, 8, 16, 32, 64)] == [1, 1, 2, 4, 8]
