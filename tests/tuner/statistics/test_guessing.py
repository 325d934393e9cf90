"""An unpruned model that does no better than guessing stops whoever wants to measure against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dashboards.report.answer import answer
from tests.summaries import make_summary
from tests.tuner.fakes import OPTIONS, FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.errors import UserError
from tuner.evaluation.ad_hoc_loop import AdHocLoop
from tuner.executors.in_process import InProcessExecutor
from tuner.export.best_file import describe
from tuner.records.store import Store
from tuner.reporting.from_records import summarise
from tuner.reporting.summary import remarks
from tuner.statistics.guessing import against_guessing
from tuner.statistics.values import Guessing
from tuner.study import Study
from tuner.study.values import QuestionResult

pytestmark = pytest.mark.quick

# What a wrong model gave: 4 of 24 questions with four options.
WEAK = Guessing(questions=24, videos=8, right=4, chance=0.25, bound=0.05)


@dataclass
class Rights(FakeEvaluator):
    """Unpruned, it has the first so many questions of the study right."""

    right: int = 0

    def _one(self, configuration: Mapping[str, Any] | None, question_id: str) -> dict[str, Any]:
        found = super()._one(configuration, question_id)
        place = [question.id for question in self.study.questions].index(question_id)
        expected = OPTIONS.index(self.study.question(question_id).answer)
        option = expected if place < self.right else (expected + 1) % 4
        return found | {"option": option, "text": OPTIONS[option]}


class Told:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def started(self, phase: str, total: int | None) -> None: ...

    def now(self, text: str) -> None: ...

    def advanced(self, count: int = 1) -> None: ...

    def message(self, text: str) -> None:
        self.messages.append(text)


def asked(study: Study, store: Store, right: int, **options: Any) -> Told:
    told = Told()
    InProcessExecutor(Rights(study, right=right)).run(
        make_loop(study, store, trials=1, progress=told, **options)
    )
    return told


@pytest.mark.parametrize("right", [0, 4, 6])
def test_a_baseline_at_or_below_chance_stops_the_run_and_keeps_the_answers(
    right: int, tmp_path: Path
) -> None:
    study = make_study()
    message = rf"{100 * right / 24:.1f} % of 24 questions right; guessing gives 25 %.*\n.*--accept-weak"
    with open_store(tmp_path / "t.db", study) as store:
        with pytest.raises(UserError, match=message) as raised:
            asked(study, store, right)
        for what in ("model", "scoring", "answers", "options", "videos"):
            assert what in str(raised.value)
        assert (store.count_answers(), store.trials()) == (24, ())
        # Whoever comes next is told the same, without asking anything.
        for loop in (make_loop(study, store), AdHocLoop(study, store, make_planner(study))):
            evaluator = FakeEvaluator(study)
            with pytest.raises(UserError, match=message):
                InProcessExecutor(evaluator).run(loop)
            assert evaluator.calls == []
        told = asked(study, store, right, accept_weak_baseline=True)
        assert [trial.outcome is not None for trial in store.trials()] == [True]
        assert told.messages[0].startswith("Noise floor")


def test_few_questions_above_chance_go_on_with_a_warning(tmp_path: Path) -> None:
    study = make_study(videos=3, per_video=1)
    with open_store(tmp_path / "t.db", study) as store:
        told = asked(study, store, right=1)
        assert (
            "33.3 % of 3 questions right; guessing gives 25 %, and 3 videos do not tell" in told.messages[0]
        )
        assert len(store.trials()) == 1
        # It is said once; what the study came to says it too.
        assert not any("guessing" in message for message in asked(study, store, right=1).messages)
        summary = summarise(study, store, store.require("fake"), store.searches()[0])
        assert summary.guessing is not None
        assert (summary.guessing.no_better, summary.guessing.shown_better) == (False, False)
        assert any("guessing gives 25 %" in line for line in remarks(summary))


def test_a_baseline_that_is_clearly_better_is_no_matter(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        told = asked(study, store, right=20)
        summary = summarise(study, store, store.require("fake"), store.searches()[0])
    assert not any("guessing" in line for line in (*told.messages, *remarks(summary)))


def results(study: Study, right: int) -> list[QuestionResult]:
    return [
        QuestionResult(question.id, question.video, "tune", index < right, None, "", 0, None, 0.0)
        for index, question in enumerate(study.questions)
    ]


def test_chance_is_the_mean_over_questions_with_options_and_a_label() -> None:
    study = make_study(videos=3, per_video=2)
    two, three, free, *others = study.questions
    mixed = replace(
        study,
        questions=(
            replace(two, options=("red", "blue"), answer="red"),
            replace(three, options=("red", "blue", "green"), answer="red"),
            replace(free, options=None),
            *others,
        ),
    )
    found = against_guessing(mixed, results(mixed, right=2))
    assert found is not None
    assert (found.questions, found.videos, found.right) == (5, 3, 2)
    assert found.chance == pytest.approx((1 / 2 + 1 / 3 + 3 / 4) / 5)
    assert not found.no_better
    free_answers = replace(
        study, questions=tuple(replace(question, options=None) for question in study.questions)
    )
    assert against_guessing(free_answers, results(study, 0)) is None
    unlabelled = make_study(videos=3, per_video=2, labelled=False)
    assert against_guessing(unlabelled, results(unlabelled, 0)) is None


def test_thirds_add_up_and_one_video_tells_nothing() -> None:
    study = make_study(videos=1, per_video=9)
    thirds = replace(
        study,
        questions=tuple(
            replace(question, options=("a", "b", "c"), answer="a") for question in study.questions
        ),
    )
    found = against_guessing(thirds, results(thirds, right=3))
    assert found is not None
    assert (found.no_better, found.bound) == (True, None)
    better = against_guessing(thirds, results(thirds, right=9))
    assert better is not None
    assert (better.no_better, better.shown_better) == (False, False)


def test_the_export_refuses_it_unless_told_otherwise_and_the_report_does_not_say_yes(tmp_path: Path) -> None:
    summary = replace(make_summary(), verdict="shown", guessing=WEAK)
    with pytest.raises(UserError, match=r"16\.7 % of 24 .*guessing gives 25 %.*--accept-weak-baseline"):
        describe(summary, tmp_path)
    best = describe(summary, tmp_path, accept_weak_baseline=True)
    assert best.accepted_weak_baseline
    assert best.guessing is not None
    assert (best.guessing.right, best.guessing.chance) == (4, 0.25)
    fine = describe(replace(summary, guessing=replace(WEAK, right=20, bound=0.6)), tmp_path)
    assert not fine.accepted_weak_baseline
    said = answer(summary)
    assert (said.state, said.title) == (
        "untested",
        "Not known: the unpruned model does no better than guessing",
    )
    assert said.command is not None
    assert said.command.endswith("--accept-weak-baseline")
