"""The sensitivity study without a model: exact curves, nothing asked twice, safe ranges, its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.methods import AdaTP, from_dict
from tests.tuner import fakes
from tuner.errors import UserError
from tuner.evaluation.ad_hoc_loop import AdHocLoop, AdHocRequest
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.runs import sensitivity as module
from tuner.runs.run import RunOptions
from tuner.runs.sensitivity import sensitivity
from tuner.sensitivity.design import Design
from tuner.sensitivity.results import Alternative, Sensitivity
from tuner.sensitivity.saved import load_sensitivity, save_sensitivity
from tuner.sensitivity.sentences import sentences
from tuner.statistics.values import Interval, Measured
from tuner.study import Search, Study
from tuner.study.values import Configuration, Split

pytestmark = pytest.mark.quick

BUDGET = 0.5


@dataclass
class ByPlan(fakes.FakeEvaluator):
    """Answers that depend on question and plan alone, as a model's do."""

    asked: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, configuration: Any, questions: Any, *arguments: Any, **options: Any) -> Any:
        if configuration is not None:
            self.asked += [configuration] * len(questions)
        return super().answer(configuration, questions, *arguments, **options)

    def _one(self, configuration: Any, question_id: str) -> dict[str, Any]:
        question = self.study.question(question_id)
        right = fakes.OPTIONS.index(question.answer)
        method = None if configuration is None else from_dict(configuration)
        plan = (
            None
            if method is None
            else method.plan(fakes._layout(question.video, question_id), fakes.SHAPE.layers)
        )
        kept = () if plan is None else tuple(plan.total(j) for j in range(len(plan.layers)))
        key = (
            None
            if plan is None or plan.keeps_everything
            else (plan.key(), sorted(method.selection_options().items()))
        )
        luck = fakes._number(question_id, key) / 2**32
        option = right if key is None or luck < 0.8 else (right + 1) % 4
        logprobs = [-2.0] * 4
        logprobs[option] = -1.0 + luck
        return {
            "question": question_id,
            "text": fakes.OPTIONS[option],
            "option": option,
            "option_logprobs": tuple(logprobs),
            "logprob": max(logprobs),
            "kept": kept,
            "seconds": 0.001,
        }


@pytest.fixture
def study() -> Study:
    study = fakes.make_study(videos=8)
    when = ("start", "middle", "end")
    tagged = tuple(
        replace(question, tags={"when": when[index % 3], "size": "small" if index % 2 else "large"})
        for index, question in enumerate(study.questions)
    )
    return replace(study, questions=tagged)


class Bench:
    """A study with an executor in place of workers; counts what is asked."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study = study
        self.options = RunOptions(budget=BUDGET, database=f"sqlite:///{folder / 'records.db'}")
        self.evaluator = ByPlan(study)
        self.planner = fakes.make_planner(study)
        self.designs: list[Design] = []
        with fakes.open_store(folder / "records.db", study):
            pass

    def ask(
        self, study: Study, options: RunOptions, requests: Sequence[AdHocRequest], progress: Any = None
    ) -> None:
        with Store.open(options.database) as store:
            store.require(study.name)
            loop = AdHocLoop(study, store, self.planner, requests=requests, progress=progress)
            InProcessExecutor(lambda: self.evaluator).run(loop)

    def analyse(self, design: Design) -> tuple[tuple, tuple]:
        self.designs.append(design)
        return (), ()

    def run(self, **options: Any) -> Sensitivity:
        return sensitivity(self.study, self.options, analyse=self.analyse, **({"runs": 4} | options))

    def choose(self, reference: AdaTP, monkeypatch: pytest.MonkeyPatch) -> None:
        """As if a search had come to this."""
        with Store.open(self.options.database) as store:
            store.require(self.study.name)
            store.search(BUDGET, 0, "budget", 1)
        trial = SimpleNamespace(configuration=Configuration.from_method(reference), number=7)
        monkeypatch.setattr(module, "chosen", lambda *_: SimpleNamespace(trial=trial))

    def record(self, text: str) -> None:
        """As if this had been found at the budget."""
        with Store.open(self.options.database) as store:
            store.require(self.study.name)
            store.record_sensitivity(BUDGET, text)

    def stored(self) -> int:
        with Store.open(self.options.database) as store:
            store.require(self.study.name)
            return store.count_answers()

    def accuracy(self, method: AdaTP, split: Split = "held_out") -> float:
        """A full evaluation."""
        asked = self.study.questions_of(split)
        answers = (
            self.evaluator._one(Configuration.from_method(method).as_dict(), question.id)
            for question in asked
        )
        return sum(
            answer["text"] == question.answer for answer, question in zip(answers, asked, strict=True)
        ) / len(asked)


@pytest.fixture
def bench(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(study, tmp_path)
    monkeypatch.setattr(module, "ask", made.ask)
    monkeypatch.chdir(tmp_path)
    return made


def test_an_exact_curve_is_what_a_full_evaluation_finds_at_any_value(bench: Bench) -> None:
    found = bench.run()
    reference = found.reference.build()
    assert found.split == "held_out"
    assert found.accuracy.value == bench.accuracy(reference)
    rng = np.random.default_rng(0)
    for curve in found.curves:
        if not curve.exact:
            continue
        assert len({point.accuracy.value for point in curve.points}) > 1
        low, high = curve.points[0].value, curve.points[-1].until
        # Between two points there is nothing, not even a float.
        for item, other in zip(curve.points, curve.points[1:], strict=False):
            assert np.nextafter(item.until, np.inf) == other.value
        # The points' own ends too: there the steps are.
        ends = [value for point in curve.points for value in (point.value, point.until)]
        for value in [*rng.uniform(low, high, 12), *rng.choice(ends, 24)]:
            point = next(point for point in curve.points if point.value <= value <= point.until)
            method = replace(reference, **{curve.knob: float(value)})
            assert point.accuracy.value == bench.accuracy(method)
            assert point.flops_ratio >= bench.planner.binding_ratio(method)


def test_the_budget_holds_where_the_curve_says_so_and_not_a_float_further(bench: Bench) -> None:
    found = bench.run(runs=0)
    reference = found.reference.build()
    checked = 0
    for curve in (curve for curve in found.curves if curve.exact):
        fits = curve.within_budget
        assert fits is not None
        for value, holds in ((fits.low, True), (fits.high, True), (np.nextafter(fits.high, 9), False)):
            if curve.points[0].value <= value <= curve.points[-1].until:
                ratio = bench.planner.binding_ratio(replace(reference, **{curve.knob: float(value)}))
                assert (ratio <= BUDGET) == holds
                checked += 1
    assert checked >= 4


def test_nothing_is_asked_twice_and_a_second_call_asks_nothing(bench: Bench) -> None:
    found = bench.run()
    asked = [question for _, questions in bench.evaluator.calls for question in questions]
    assert len(asked) == bench.stored()
    bench.evaluator.calls.clear()
    again = bench.run()
    assert bench.evaluator.calls == []
    assert again == found
    # More runs of the design keep those that are there.
    bench.run(runs=8)
    assert all(
        set(questions) <= {question.id for question in bench.study.questions_of("tune")}
        for _, questions in bench.evaluator.calls
    )
    assert np.array_equal(bench.designs[-1].unit[:4], bench.designs[0].unit)


def test_an_interrupted_study_goes_on(bench: Bench) -> None:
    answer = bench.evaluator.answer

    def interrupted(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        if len(bench.evaluator.calls) == 30:
            raise KeyboardInterrupt
        return answer(*arguments, **options)

    bench.evaluator.answer = interrupted
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    bench.evaluator.answer = answer
    bench.run()
    # Only the batch that was in flight was asked again.
    extra = sum(len(questions) for _, questions in bench.evaluator.calls) - bench.stored()
    assert 0 <= extra <= len(bench.study.questions_of("held_out"))


def test_a_safe_range_ends_at_the_first_point_that_is_not(bench: Bench) -> None:
    found = bench.run(max_drop="0.3", runs=0)
    assert found.margin == 0.3
    bounded = 0
    for curve in found.curves:
        assert curve.safe is not None
        inside = [
            point
            for point in curve.points
            if curve.safe.low <= point.value and point.until <= curve.safe.high
        ]
        assert all(point.safe for point in inside)
        assert any(point.value <= curve.chosen <= point.until for point in inside)
        below = [point for point in curve.points if point.until < curve.safe.low]
        above = [point for point in curve.points if point.value > curve.safe.high]
        assert not (below and below[-1].safe)
        assert not (above and above[0].safe)
        bounded += bool(below) + bool(above)
    assert bounded


def test_the_design_is_on_tune_questions_and_every_input_moves_alone(bench: Bench) -> None:
    bench.run(runs=16)
    design = bench.designs[-1]
    assert design.inputs == ("tau_s", "tau_t", "alpha_boost", "gamma_cap", "compute")
    assert design.unit.shape == (16, 5)
    assert {name: output.shape for name, output in design.outputs.items()} == dict.fromkeys(
        # No seconds: those of stored answers are of other moments and loads.
        ("accuracy", "logprob", "regressions"),
        (16,),
    )
    assert (np.corrcoef(design.unit.T) - np.eye(5) < 0.5).all()


def test_maps_are_around_the_studys_reference(bench: Bench) -> None:
    found = bench.run()
    reference = found.reference.build()
    over = found.design_compute
    assert over is not None
    plane = bench.designs[-1].plane("compute", "tau_t")
    assert plane.knobs == ("p", "tau_t")
    assert plane.reference == (reference.p, reference.tau_t)
    # The budget is a line of the map, and the reference lies on its side that fits.
    assert plane.flops_ratio.min() < BUDGET < plane.flops_ratio.max()
    assert bench.planner.binding_ratio(reference) <= BUDGET
    assert over.low < BUDGET < over.high


def test_fixed_knobs_have_no_curve_and_are_no_input(bench: Bench) -> None:
    bench.study = replace(bench.study, search=Search(fixed=(("tau_s", 0.9), ("gamma_cap", 1.0))))
    found = bench.run()
    assert [curve.knob for curve in found.curves] == ["tau_t", "alpha_boost", "p"]
    assert found.inputs == ("tau_t", "alpha_boost", "compute")
    bench.study = replace(bench.study, search=Search(fixed=(("p", 0.4),)))
    assert bench.run(runs=0).design_compute is None
    assert found.reference.get("tau_s") == 0.9


def test_it_says_what_it_found(bench: Bench) -> None:
    found = bench.run()
    text = "\n".join(found.sentences)
    assert "Safe ranges (" in text or "No knob has a safe range" in text
    assert found.binds in text
    assert "cannot be detected" in text
    assert [failure.found is None for failure in found.failures] == [False, False]
    assert all("points" in failure.evidence for failure in found.failures)
    tags = {curve.tag for curve in found.by_tag}
    assert ("when", "middle") in tags
    assert (
        sum(curve.questions for curve in found.by_tag if curve.knob == "p" and curve.tag[0] == "when") == 12
    )


def test_without_tags_no_failure_is_looked_for(bench: Bench) -> None:
    plain = tuple(replace(question, tags={}) for question in bench.study.questions)
    bench.study = replace(bench.study, questions=plain)
    found = bench.run(runs=0)
    assert [failure.found for failure in found.failures] == [None, None]
    assert all("tag" in failure.evidence for failure in found.failures)
    assert found.by_tag == ()
    # Whether another choice does better is asked all the same.
    assert {alternative.deduplicate for alternative in found.alternatives} == {"drop", "off"}


def test_a_reference_that_drops_is_studied_as_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ("drop", "mean")
    bench.study = replace(
        bench.study,
        search=Search(choices=(("deduplicate", ("demote", "drop")), ("score_query", ("mean", "last")))),
    )
    reference = bench.planner.solve(AdaTP(deduplicate="drop", score_query="mean", alpha_boost=1.4), BUDGET)
    assert isinstance(reference, AdaTP)
    bench.choose(reference, monkeypatch)
    found = bench.run(runs=4)
    assert found.reference.build() == reference
    assert found.accuracy.value == bench.accuracy(reference)
    alternatives = {alternative.deduplicate for alternative in found.alternatives}
    assert alternatives == {"demote", "off"}
    # Nothing else that was asked is of another choice.
    other = [
        configuration
        for configuration in bench.evaluator.asked
        if (configuration["deduplicate"], configuration["score_query"]) != made
    ]
    kinds = {(entry["deduplicate"], entry["score_query"]) for entry in other}
    assert kinds == {(alternative, "mean") for alternative in alternatives}
    assert len(other) <= len(alternatives) * len(bench.study.questions_of("tune"))
    for curve in found.curves:
        for point in (curve.points[0], curve.points[-1]):
            method = replace(reference, **{curve.knob: point.value})
            assert point.accuracy.value == bench.accuracy(method)
    plane = bench.designs[-1].plane("compute", "tau_t")
    corner = replace(reference, p=float(plane.values[0][0]), tau_t=float(plane.values[1][-1]))
    assert plane.flops_ratio[0, -1] == bench.planner.binding_ratio(corner)


def test_alternatives_need_no_more_compute_and_are_compared_with_the_reference(bench: Bench) -> None:
    found = bench.run(runs=0)
    reference = found.reference.build()
    assert [alternative.level for alternative in found.alternatives] == [0.975, 0.975]
    for item in found.alternatives:
        method = replace(reference, deduplicate=item.deduplicate, p=item.p)
        assert (
            item.flops_ratio == bench.planner.binding_ratio(method) <= bench.planner.binding_ratio(reference)
        )
        # On the tune part: what is recommended there, held-out videos can still judge.
        change = bench.accuracy(method, "tune") - bench.accuracy(reference, "tune")
        assert item.difference.value == pytest.approx(change)
        assert change != pytest.approx(bench.accuracy(method) - bench.accuracy(reference))
    changes = [alternative.difference.value for alternative in found.alternatives]
    assert changes == sorted(changes, reverse=True)
    # One whose p the search may not take is none.
    p = float(found.reference.get("p"))
    bench.study = replace(bench.study, search=Search(fixed=(("p", p),)))
    assert all(alternative.p == p for alternative in bench.run(runs=0).alternatives)


def test_no_held_out_video_is_asked_about_a_choice_that_could_be_recommended(bench: Bench) -> None:
    asked: list[tuple[str, str]] = []
    answer = bench.evaluator.answer

    def told(configuration: Any, questions: Any, *more: Any, **options: Any) -> list[dict[str, Any]]:
        if configuration is not None:
            asked.extend((configuration["deduplicate"], question) for question in questions)
        return answer(configuration, questions, *more, **options)

    bench.evaluator.answer = told
    small = bench.run(runs=0).failures[1]
    tune = {question.id for question in bench.study.questions_of("tune")}
    assert {item for kind, item in asked if kind != "demote"} == tune
    # Nor is deduplication's effect on small things told from them.
    assert "on tune videos" in small.evidence


def test_what_an_older_version_found_on_held_out_videos_is_not_read(bench: Bench) -> None:
    path = save_sensitivity(bench.run(runs=0), bench.options.database)
    older = json.loads(path.read_text())
    del older["tune_questions"]
    bench.record(json.dumps(older))
    assert load_sensitivity("fake", BUDGET, bench.options.database) is None


def test_a_better_alternative_is_told_with_the_way_to_search_it(bench: Bench) -> None:
    found = bench.run(runs=0)

    def told(*changes: tuple[str, float, float, bool]) -> list[str]:
        made = tuple(
            Alternative(name, 0.62, 0.29, Measured(value, Interval(low, value + 0.03)), 0.975, searched)
            for name, value, low, searched in changes
        )
        return [
            sentence
            for sentence in sentences(replace(found, alternatives=made))
            if "Another value of deduplicate" in sentence
        ]

    (sentence,) = told(("drop", 0.05, 0.02, False), ("off", 0.01, -0.02, False))
    assert sentence == (
        "Another value of deduplicate is better than the reference's demote at the same FLOPs or fewer "
        "(points of accuracy over 12 tune questions): drop (with p = 0.62) +5.0 [+2.0, +8.0]; 97.5 % "
        "intervals, corrected for 2 comparisons. To decide, search again with another --seed and "
        "`search: choices: {deduplicate: [demote, drop]}` in study.yaml."
    )
    assert told(("drop", 0.05, -0.001, False), ("off", 0.01, -0.02, False)) == []
    assert told() == []
    (sentence,) = told(("drop", 0.05, 0.02, True))
    assert sentence.endswith("another --seed; the search may already choose these values.")
    # What is listed stays listed.
    (sentence,) = told(("drop", 0.05, 0.02, False), ("off", 0.01, -0.02, True))
    assert "{deduplicate: [demote, drop, off]}" in sentence
    # At the top.
    made = Alternative("drop", 0.62, 0.29, Measured(0.05, Interval(0.02, 0.08)), 0.975, False)
    assert "Another" in sentences(replace(found, alternatives=(made,)))[0]


def test_the_records_bring_back_the_same_values(bench: Bench) -> None:
    found = bench.run(runs=0)
    path = save_sensitivity(found, bench.options.database)
    assert load_sensitivity("fake", BUDGET, bench.options.database) == found
    assert load_sensitivity("fake", 0.4, bench.options.database) is None
    # Recorded before maps were over knobs; and not readable at all.
    values = json.loads(path.read_text())
    del values["design_compute"]
    for text in (json.dumps(values), "{"):
        bench.record(text)
        assert load_sensitivity("fake", BUDGET, bench.options.database) is None


def test_mistakes_are_told(bench: Bench) -> None:
    with pytest.raises(UserError, match="budget"):
        sensitivity(bench.study, replace(bench.options, budget=None), analyse=bench.analyse)
    with pytest.raises(UserError, match="0 runs or more"):
        bench.run(runs=-1)
    with pytest.raises(UserError, match="largest drop"):
        bench.run(max_drop="much")
