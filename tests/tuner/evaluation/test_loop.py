from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.tuner.fakes import OPTIONS, FakeEvaluator, make_loop, make_planner, make_study, open_store
from tuner.evaluation.failures import MOST_FAILURES, EvaluationError
from tuner.evaluation.loop import Loop
from tuner.evaluation.progress import NoProgress
from tuner.evaluation.search_loop import ABOVE_BUDGET, MOST_INFEASIBLE
from tuner.evaluation.tasks import Task
from tuner.executors.in_process import InProcessExecutor
from tuner.records.store import Store
from tuner.records.values import RecordedAnswer
from tuner.search.sampler import Observation
from tuner.search.selection import choose_best, eligible
from tuner.search.space import Point, smallest_reachable
from tuner.study import Search, Study
from tuner.study.values import Configuration

pytestmark = pytest.mark.quick


class Killed(BaseException):
    """Stands for SIGKILL: nothing below catches it."""


def run(loop: Loop, evaluator: FakeEvaluator) -> None:
    InProcessExecutor(evaluator).run(loop)


def answers_to(evaluator: FakeEvaluator, task: Task, batch: int) -> list[RecordedAnswer]:
    configuration = None if task.configuration is None else task.configuration.as_dict()
    return [
        RecordedAnswer.from_dict(item) for item in evaluator.answer(configuration, task.batches[batch], {})
    ]


def table(store: Store) -> list[Any]:
    """Everything that a run leaves behind, but for seconds."""
    trials = [
        replace(trial, search=0, outcome=None if trial.outcome is None else replace(trial.outcome, seconds=0))
        for trial in store.trials()
    ]
    infeasible = [
        (proposal.number, proposal.attempt, proposal.configuration, proposal.proposed)
        for proposal in store.infeasible()
    ]
    measured = {
        configuration: replace(outcome, seconds=0) for configuration, outcome in store.measured().items()
    }
    return [trials, infeasible, measured, store.selections(), store.count_answers()]


@pytest.mark.parametrize("unsolved", [False, True])
def test_a_run_answers_the_baseline_then_trials_then_the_held_out_part(
    tmp_path: Path, unsolved: bool
) -> None:
    study, evaluator = make_study(), FakeEvaluator(make_study())
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store, unsolved=unsolved)
        run(loop, evaluator)
        trials = store.trials()
        assert loop.finished
        assert not loop.interrupted
        assert [trial.number for trial in trials] == list(range(6))
        assert [trial.outcome.questions for trial in trials if trial.outcome is not None] == [12] * 6
        assert all(trial.binding_ratio <= 0.35 for trial in trials)
        assert [asked[0] for asked in evaluator.calls[:4]] == [None] * 4
        best = loop.best()
        assert best is not None
        assert best.configuration in store.measured()
        assert store.selections() == ((1, 6, best.number),)


def test_trial_0_is_the_defaults_of_adatp_solved_for_the_budget(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store, trials=2)
        run(loop, FakeEvaluator(study))
        defaults = loop.trials[0]
        parameters = dict(defaults.configuration.parameters)
        assert (parameters["tau_s"], parameters["tau_t"]) == (0.95, 0.5)
        assert (parameters["alpha_boost"], parameters["gamma_cap"]) == (1.1, 0.95)
        assert 0.33 < defaults.binding_ratio <= 0.35
        assert defaults.configuration in store.measured()


def test_the_same_run_again_evaluates_nothing(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        run(make_loop(study, store), FakeEvaluator(study))
        before = table(store)
        again = FakeEvaluator(study)
        run(make_loop(study, store), again)
        assert again.calls == []
        assert table(store) == before


def test_more_trials_carry_on_from_the_table(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "a.db", study) as store, open_store(tmp_path / "b.db", study) as whole:
        run(make_loop(study, store, trials=4), FakeEvaluator(study))
        run(make_loop(study, store, trials=7), FakeEvaluator(study))
        run(make_loop(study, whole, trials=7), FakeEvaluator(study))
        assert table(store)[0] == table(whole)[0]


def test_another_budget_uses_the_same_table_and_proposes_its_own_trials(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        run(make_loop(study, store, trials=3, budget=0.4), FakeEvaluator(study))
        second = make_loop(study, store, trials=3, budget=0.3)
        run(second, FakeEvaluator(study))
        assert [trial.number for trial in second.trials] == list(range(6))
        assert all(trial.binding_ratio <= 0.3 for trial in second.trials[3:])
        best = second.best()
        assert best is not None
        assert best.binding_ratio <= 0.3


def test_equal_plans_share_their_answers(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store, trials=1)
        run(loop, FakeEvaluator(study))
        first = loop.trials[0]
        # tau_t moved between two relevances of the data: another row of knobs, the same plans.
        twin = Configuration.from_dict(first.configuration.as_dict() | {"tau_t": 0.5 + 1e-9})
        plans, same = (
            make_planner(study).fingerprints(configuration.build())
            for configuration in (first.configuration, twin)
        )
        assert plans == same
        store.propose(store.searches()[0], 1, twin, first.binding_ratio)
        evaluator = FakeEvaluator(study)
        run(make_loop(study, store, trials=2), evaluator)
        assert evaluator.calls == []
        assert store.trials()[1].outcome is not None


@pytest.mark.parametrize("unsolved", [False, True])
def test_killed_after_every_rung_it_ends_as_if_undisturbed(tmp_path: Path, unsolved: bool) -> None:
    study = make_study()
    with open_store(tmp_path / "whole.db", study) as store:
        run(make_loop(study, store, unsolved=unsolved), FakeEvaluator(study))
        undisturbed = table(store)
    batches = 0
    while True:
        with open_store(tmp_path / "killed.db", study) as store:
            loop = make_loop(study, store, unsolved=unsolved)
            task = loop.propose()
            if task is None:
                break
            loop.record(task, 0, answers_to(FakeEvaluator(study), task, 0))
            batches += 1
    assert batches > 15
    with open_store(tmp_path / "killed.db", study) as store:
        assert table(store) == undisturbed


def test_killed_before_every_write_it_ends_as_if_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(videos=4)
    with open_store(tmp_path / "whole.db", study) as store:
        run(make_loop(study, store, trials=4, unsolved=True), FakeEvaluator(study))
        undisturbed = table(store)
    writes = 0

    def dying(name: str) -> None:
        write = getattr(Store, name)

        def once(self: Store, *values: Any, **named: Any) -> Any:
            nonlocal writes
            writes += 1
            # Two writes go through, the third does not, and so on: every kind of write is hit in its turn.
            if writes % 3 == 0:
                raise Killed
            return write(self, *values, **named)

        monkeypatch.setattr(Store, name, once)

    for name in ("record", "propose", "record_infeasible", "select"):
        dying(name)
    for _ in range(1000):
        with open_store(tmp_path / "killed.db", study) as store:
            try:
                run(make_loop(study, store, trials=4, unsolved=True), FakeEvaluator(study))
            except Killed:
                continue
            break
    with open_store(tmp_path / "killed.db", study) as store:
        assert table(store) == undisturbed
    assert writes > 15


def test_an_unfinished_trial_keeps_its_knobs_and_comes_first(tmp_path: Path) -> None:
    study, evaluator = make_study(), FakeEvaluator(make_study())
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        while (task := loop.propose()) is not None and task.kind != "trial":
            loop.record(task, 0, answers_to(evaluator, task, 0))
        assert task is not None
        loop.record(task, 0, answers_to(evaluator, task, 0))
        knobs = store.trials()[0].configuration
    with open_store(tmp_path / "t.db", study) as store:
        resumed = make_loop(study, store).propose()
        assert resumed is not None
        assert (resumed.trial, resumed.configuration) == (0, knobs)
        assert resumed.batches == task.batches[1:]


def test_refused_proposals_are_recorded_and_no_trials(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store, trials=8, budget=0.3, unsolved=True)
        run(loop, FakeEvaluator(study))
        infeasible = store.infeasible()
        assert infeasible
        assert all(proposal.binding_ratio > 0.3 for proposal in infeasible)
        assert [trial.number for trial in store.trials()] == list(range(8))


def test_a_search_gives_up_after_too_many_refusals_and_stays_so(tmp_path: Path) -> None:
    study = make_study()
    budget = smallest_reachable(make_planner(study), study.search) - 0.01
    with open_store(tmp_path / "t.db", study) as store:
        for _ in range(2):
            loop = make_loop(study, store, budget=budget, unsolved=True)
            run(loop, FakeEvaluator(study))
            assert loop.gave_up
            assert loop.finished
            assert loop.best() is None
            assert len(store.infeasible()) == MOST_INFEASIBLE
            assert store.trials() == ()


def test_failed_work_is_proposed_again_with_what_is_missing(tmp_path: Path) -> None:
    study, evaluator = make_study(), FakeEvaluator(make_study())
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        while (task := loop.propose()) is not None and task.kind != "trial":
            loop.record(task, 0, answers_to(evaluator, task, 0))
        assert task is not None
        assert loop.record(task, 0, answers_to(evaluator, task, 0)) == "continue"
        loop.failed(task, "the worker died")
        again = loop.propose()
        assert again is not None
        assert again.id != task.id
        assert (again.trial, again.batches) == (task.trial, task.batches[1:])


def test_the_same_questions_dying_three_times_end_the_run(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        for _ in range(MOST_FAILURES - 1):
            task = loop.propose()
            assert task is not None
            loop.failed(task, "out of memory")
        task = loop.propose()
        assert task is not None
        with pytest.raises(EvaluationError, match=r"baseline failed 3 times .*'v06.mp4-q0'.*out of memory"):
            loop.failed(task, "out of memory")
        assert loop.finished
        assert loop.interrupted


def test_an_interrupt_records_the_rung_in_flight_and_ends(tmp_path: Path) -> None:
    study, evaluator = make_study(), FakeEvaluator(make_study())
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        task = loop.propose()
        assert task is not None
        loop.interrupt()
        assert not loop.finished
        assert loop.propose() is None
        assert loop.record(task, 0, answers_to(evaluator, task, 0)) == "stop"
        assert loop.finished
        assert store.count_answers() == len(task.batches[0])


def test_after_the_timeout_no_trial_begins_and_the_best_is_still_measured(tmp_path: Path) -> None:
    study, evaluator = make_study(), FakeEvaluator(make_study())
    now = 0.0
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store, trials=50, timeout=10, clock=lambda: now)
        while (task := loop.propose()) is not None:
            for batch in range(len(task.batches)):
                loop.record(task, batch, answers_to(evaluator, task, batch))
            now += 3 if task.kind == "trial" else 0
        assert loop.timed_out
        assert len(store.trials()) == 4
        assert store.measured()


def test_works_overlap_where_they_do_not_depend_on_each_other(tmp_path: Path) -> None:
    study, evaluator = make_study(), FakeEvaluator(make_study())
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store, trials=2)
        baseline = []
        while (task := loop.propose()) is not None:
            baseline.append(task)
        assert [task.kind for task in baseline] == ["baseline"] * 4
        assert not loop.finished
        for task in baseline:
            loop.record(task, 0, answers_to(evaluator, task, 0))
        noise = loop.propose()
        assert noise is not None
        assert (noise.kind, loop.propose()) == ("noise", None)
        loop.record(noise, 0, answers_to(evaluator, noise, 0))
        first, second = loop.propose(), loop.propose()
        assert first is not None
        assert second is not None
        assert (first.trial, second.trial, loop.propose()) == (0, 1, None)


def test_without_labels_the_baseline_is_right_by_definition(tmp_path: Path) -> None:
    study = make_study(labelled=False)
    with open_store(tmp_path / "t.db", study) as store:
        run(make_loop(study, store, trials=2), FakeEvaluator(study))
        for trial in store.trials():
            assert trial.outcome is not None
            assert trial.outcome.gained == 0
            assert trial.outcome.regressions == round(12 * (1 - trial.outcome.accuracy))


def test_answers_that_were_not_asked_for_are_refused(tmp_path: Path) -> None:
    study, evaluator = make_study(), FakeEvaluator(make_study())
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(study, store)
        task = loop.propose()
        assert task is not None
        with pytest.raises(ValueError, match="the ones it asked for"):
            loop.record(task, 0, answers_to(evaluator, task, 0)[1:])


# The race


@dataclass
class Ranked(FakeEvaluator):
    """Answers that are better the lower tau_t is, a little in every question, so that the race can tell."""

    asked: int = 0

    def _one(self, configuration: Any, question_id: str) -> dict[str, Any]:
        answer = super()._one(None, question_id)
        if configuration is not None:
            self.asked += 1
            noise = FakeEvaluator._one(self, configuration, question_id)["option_logprobs"][0] / 100
            shift = 2 * configuration["tau_t"] + noise
            right = answer["option"]
            answer["option_logprobs"] = tuple(
                -0.2 - shift if index == right else -3.0 for index in range(len(OPTIONS))
            )
        return answer


@dataclass
class Given:
    """Proposes points with these tau_t."""

    tau_t: list[float]
    told: list[list[Observation]] = field(default_factory=list)

    def propose(self, ranges: Any, observations: Any, seed: int, index: int, attempt: int) -> Point:
        self.told.append(list(observations))
        point = {name: (range_.low + range_.high) / 2 for name, range_ in ranges.items()}
        return point | {"tau_t": self.tau_t[index], "compute": ranges["compute"].high}


def searched(study: Study, store: Store, sampler: Given, **options: Any) -> tuple[Loop, Ranked]:
    loop = make_loop(
        study, store, trials=1 + len(sampler.tau_t), sampler=sampler, **{"race": True, **options}
    )
    evaluator = Ranked(study)
    run(loop, evaluator)
    return loop, evaluator


def test_a_dominated_trial_is_stopped_and_a_better_one_is_not(tmp_path: Path) -> None:
    study, sampler = make_study(videos=40), Given([0.3, 0.9, 0.1])
    with open_store(tmp_path / "t.db", study) as store:
        loop, evaluator = searched(study, store, sampler, batch_videos=5)
        defaults, good, bad, best = store.trials()
        assert good.outcome is not None
        assert best.outcome is not None
        assert defaults.outcome is not None
        assert bad.outcome is None
        assert bad.pruned is not None
        assert (bad.pruned.by, bad.unfinished) == (good.number, False)
        assert bad.pruned.videos in (5, 10, 15)
        assert loop.choice() is not None
        # The sampler hears of it without a value, and of no partial one.
        assert [item.state for item in sampler.told[-1]] == ["completed", "completed", "pruned"]
        saved = 3 * (20 - bad.pruned.videos)
        held_out = 60 * len(store.measured())
        assert evaluator.asked == 4 * 60 - saved + held_out


def test_a_race_that_was_killed_ends_as_if_undisturbed(tmp_path: Path) -> None:
    study = make_study(videos=40)
    with open_store(tmp_path / "whole.db", study) as store:
        searched(study, store, Given([0.3, 0.9, 0.6, 0.1]), batch_videos=5)
        undisturbed = table(store)
        assert any(trial.pruned for trial in store.trials())
    for _ in range(200):
        with open_store(tmp_path / "killed.db", study) as store:
            loop = make_loop(
                study, store, trials=5, sampler=Given([0.3, 0.9, 0.6, 0.1]), race=True, batch_videos=5
            )
            task = loop.propose()
            if task is None:
                break
            loop.record(task, 0, answers_to(Ranked(study), task, 0))
    with open_store(tmp_path / "killed.db", study) as store:
        assert table(store) == undisturbed


def test_without_the_race_stopped_trials_run_to_their_end(tmp_path: Path) -> None:
    study = make_study(videos=40)
    with open_store(tmp_path / "t.db", study) as store:
        searched(study, store, Given([0.3, 0.9]), batch_videos=5)
        assert [trial.pruned is None for trial in store.trials()] == [True, True, False]
        searched(study, store, Given([0.3, 0.9]), race=False)
        assert [trial.outcome is None for trial in store.trials()] == [False] * 3
        assert [trial.pruned for trial in store.trials()] == [None] * 3
    with open_store(tmp_path / "whole.db", study) as whole:
        searched(study, whole, Given([0.3, 0.9]), race=False)
        with open_store(tmp_path / "t.db", study) as store:
            assert table(store)[0] == table(whole)[0]


def test_a_cheaper_trial_is_not_compared_with_dearer_ones(tmp_path: Path) -> None:
    study = make_study(videos=40)

    @dataclass
    class Cheaper(Given):
        def propose(self, ranges: Any, observations: Any, seed: int, index: int, attempt: int) -> Point:
            point = super().propose(ranges, observations, seed, index, attempt)
            return point | ({"compute": 0.2} if index == 1 else {})

    with open_store(tmp_path / "t.db", study) as store:
        searched(study, store, Cheaper([0.3, 0.9]), batch_videos=5)
        cheap = store.trials()[2]
        assert cheap.binding_ratio < 0.3
        assert cheap.outcome is not None


def test_patience_ends_a_search_that_gains_nothing(tmp_path: Path) -> None:
    study = make_study(videos=40)
    with open_store(tmp_path / "t.db", study) as store:
        sampler = Given([0.1] + [0.9] * 20)
        searched(study, store, sampler, batch_videos=5, patience=4)
        # All are equally accurate; the second is cheaper than the first, and none of the next four gains.
        assert len(store.trials()) == 2 + 4
        searched(study, store, sampler, batch_videos=5, patience=4)
        # All are equally accurate; the second is cheaper than the first, and none of the next four gains.
        assert len(store.trials()) == 2 + 4


def test_the_best_is_also_solved_for_more_compute_and_never_chosen_there(tmp_path: Path) -> None:
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        for _ in range(2):
            loop = make_loop(study, store, budget=0.3, above_budget=ABOVE_BUDGET)
            run(loop, FakeEvaluator(study))
        above = [trial for trial in store.trials() if trial.purpose == "above"]
        assert [round(configuration.binding_ratio, 1) for configuration in above] == [0.4, 0.5, 0.6]
        assert all(trial.outcome is not None for trial in above)
        best = loop.best()
        assert best is not None
        assert best.purpose == "search"
        assert len(store.trials()) == 6 + 3


def test_the_noise_floor_is_measured_once_and_no_answer_of_it_is_kept(tmp_path: Path) -> None:
    study = make_study()

    class Restless(FakeEvaluator):
        """Answers the first question otherwise in packs of another size."""

        def answer(
            self, configuration: Any, questions: Any, references: Any, *, reshaped: bool = False
        ) -> list[dict[str, Any]]:
            found = super().answer(configuration, questions, references)
            if reshaped:
                assert configuration is None
                for entry in found[:1]:
                    entry["option"] = (entry["option"] + 1) % 4
                    entry["option_logprobs"] = tuple(value - 0.5 for value in entry["option_logprobs"][::-1])
            return found

    with open_store(tmp_path / "t.db", study) as store:
        evaluator = Restless(study)
        run(make_loop(study, store, trials=1), evaluator)
        noise = store.noise()
        assert noise is not None
        # As many as two batches, of two videos with three questions each.
        assert (noise.questions, noise.videos, noise.flips) == (12, 4, 1)
        assert noise.logprob_max > 0
        asked = [questions for method, questions in evaluator.calls if method is None]
        assert len(asked) == 4 + 1
        again = Restless(study)
        run(make_loop(study, store, trials=1), again)
        assert again.calls == []


def test_without_a_budget_the_cheapest_that_holds_is_sought(tmp_path: Path) -> None:
    study = make_study(videos=70)

    class Sturdy(FakeEvaluator):
        """Loses nothing above a third of the compute, everything below it."""

        def _one(self, configuration: Any, question_id: str) -> dict[str, Any]:
            answer = super()._one(configuration, question_id)
            unpruned = super()._one(None, question_id)
            enough = not answer["kept"] or answer["kept"][-1] > 60
            return (
                answer
                | ({} if enough else {"option": (unpruned["option"] + 1) % 4})
                | ({"option": unpruned["option"]} if enough else {})
            )

    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(
            study, store, trials=25, budget=1.0, goal="max_drop", max_drop="0.1", batch_videos=10
        )
        run(loop, Sturdy(study))
        choice = loop.choice()
        assert choice is not None
        assert choice.verdict == "shown"
        assert choice.pending is None
        ratios = {trial.number: trial.binding_ratio for trial in store.trials()}
        tested = [ratios[candidate.trial] for candidate in choice.tested]
        # From the dearest down, and no further than the first that is not shown.
        assert tested == sorted(tested, reverse=True)
        assert all(candidate.shown for candidate in choice.tested[:-1])
        shown = [ratios[candidate.trial] for candidate in choice.tested if candidate.shown]
        assert choice.trial.binding_ratio == min(shown) < 0.9
        assert store.selections()[-1][2] == choice.trial.number


# Choices

LISTED = Search(choices=(("deduplicate", ("demote", "drop")),))


@pytest.mark.parametrize("unsolved", [False, True])
def test_a_search_over_choices_is_the_same_however_often_it_is_begun_again(
    tmp_path: Path, unsolved: bool
) -> None:
    study = replace(make_study(), search=LISTED)
    found = []
    for name, steps in (("once.db", (8,)), ("again.db", (2, 5, 8))):
        with open_store(tmp_path / name, study) as store:
            for trials in steps:
                run(make_loop(study, store, trials=trials, unsolved=unsolved), FakeEvaluator(study))
            found.append([trial.configuration for trial in store.trials()])
    assert found[0] == found[1]
    assert {item.get("deduplicate") for item in found[0]} == {"demote", "drop"}


def test_a_search_goes_on_when_the_study_lists_a_choice_and_learns_from_what_is_there(tmp_path: Path) -> None:
    """As with bounds that change: trials with a place in the new space count, and infeasible proposals."""
    study = make_study()
    with open_store(tmp_path / "t.db", study) as store:
        run(make_loop(study, store, trials=4, budget=0.3, unsolved=True), FakeEvaluator(study))
        assert store.infeasible()
        for search in (
            LISTED,
            Search(choices=(("deduplicate", ("drop",)),)),
            Search(bounds=(("p", (0.3, 0.6)),)),
        ):
            before = len(store.trials())
            changed = replace(study, search=search)
            counting = len(eligible(store.trials(), search))
            loop = make_loop(changed, store, trials=counting + 3, budget=0.3, unsolved=True)
            told = [observation.point for observation in loop._observations()]
            assert all(point.keys() == loop._space.ranges.keys() for point in told)
            run(loop, FakeEvaluator(changed))
            assert len(store.trials()) == before + 3


def test_another_search_counts_where_it_made_each_choice_in_every_way_that_is_listed(tmp_path: Path) -> None:
    plain, listed = make_study(), replace(make_study(), search=LISTED)
    with open_store(tmp_path / "t.db", plain) as store:
        run(make_loop(plain, store, trials=4), FakeEvaluator(plain))
        assert len(make_loop(plain, store, seed=1)._observations()) == 4
        # It has only ever demoted: that would outweigh all the new search sees of dropping.
        assert make_loop(listed, store, seed=1)._observations() == []
        run(make_loop(listed, store, trials=6, seed=1), FakeEvaluator(listed))
        own = [trial for trial in store.trials() if trial.number >= 4]
        assert {item.configuration.get("deduplicate") for item in own} == {"demote", "drop"}
        assert len(make_loop(listed, store, seed=1)._observations()) == 6
        assert len(make_loop(listed, store, seed=2)._observations()) == 6
        # Its own trials always count.
        assert len(make_loop(listed, store, seed=0)._observations()) == 10


# What the study's search allows

FIXED = Search(fixed=(("alpha_boost", 1.0), ("tau_t", 0.05)), choices=(("deduplicate", ("off",)),))


def keeps_to_fixed(configuration: Configuration) -> bool:
    values = dict(configuration.parameters)
    return (values["alpha_boost"], values["tau_t"], values["deduplicate"]) == (1.0, 0.05, "off")


def test_what_the_study_fixes_since_binds_what_is_chosen_and_measured(tmp_path: Path) -> None:
    """The fake model answers best at tau_t 0.6, so the trials that are not allowed any more are better."""
    study = make_study()
    fixed = replace(study, search=FIXED)
    with open_store(tmp_path / "t.db", study) as store:
        run(make_loop(study, store, trials=6), FakeEvaluator(study))
        before = store.trials()
        (loop := make_loop(fixed, store, trials=5, seed=1)).propose()
        assert loop.best() is None
        assert [observation.state for observation in loop._observations()] == [
            "pending"
        ]  # the one just proposed
        run(loop := make_loop(fixed, store, trials=5, seed=1), FakeEvaluator(fixed))
        best, choice = loop.best(), loop.choice()
        assert best is not None
        assert choice is not None
        assert max(answer.outcome.accuracy for answer in before if answer.outcome) > best.outcome.accuracy  # type: ignore[union-attr]
        assert best.number >= 6
        assert choice.trial.number >= 6
        assert keeps_to_fixed(best.configuration)
        assert all(candidate.trial >= 6 for candidate in choice.tested)
        assert all(keeps_to_fixed(trial.configuration) for trial in store.trials()[6:])
        # They stay in the records; and count again when the study allows them again.
        assert store.trials()[:6] == before
        again = make_loop(study, store, trials=6)
        run(again, FakeEvaluator(study))
        assert again.best() == choose_best(before, 0.35)


def test_the_same_search_goes_on_as_if_trials_that_are_not_allowed_were_not_there(tmp_path: Path) -> None:
    study = make_study()
    fixed = replace(study, search=FIXED)
    with open_store(tmp_path / "t.db", study) as store, open_store(tmp_path / "new.db", study) as new:
        run(make_loop(study, store, trials=4), FakeEvaluator(study))
        run(make_loop(fixed, store, trials=4), FakeEvaluator(fixed))
        run(make_loop(fixed, new, trials=4), FakeEvaluator(fixed))
        alone = [trial.configuration for trial in new.trials()]
        assert [trial.configuration for trial in store.trials()[4:]] == alone


def test_a_search_that_gave_up_tries_again_when_the_study_allows_more(tmp_path: Path) -> None:
    study = make_study()
    # Everything kept, over any budget.
    narrow = replace(study, search=Search(bounds=(("p", (0.98, 1.0)),)))
    with open_store(tmp_path / "t.db", study) as store:
        loop = make_loop(narrow, store, trials=2, budget=0.5, unsolved=True)
        run(loop, FakeEvaluator(study))
        assert loop.gave_up
        loop = make_loop(study, store, trials=2, budget=0.5, unsolved=True)
        run(loop, FakeEvaluator(study))
        assert not loop.gave_up
        assert len(store.trials()) == 2
        assert store.trials()[0].configuration == loop._defaults.configuration


def test_a_trial_that_was_stopped_for_one_not_allowed_any_more_runs_to_its_end(tmp_path: Path) -> None:
    study = make_study(videos=40)
    narrow = replace(study, search=Search(bounds=(("tau_t", (0.85, 1.0)),)))
    with open_store(tmp_path / "t.db", study) as store:
        searched(study, store, Given([0.3, 0.9]), batch_videos=5)
        pruned = store.trials()[2].pruned
        assert pruned is not None
        assert pruned.by == 1
        # No observation of it, nor anything in the race: trials 0 and 1 are not allowed any more.
        assert make_loop(narrow, store, race=True, batch_videos=5)._observations() == []
        searched(narrow, store, Given([]), batch_videos=5)
        assert store.trials()[2].outcome is not None
        assert store.trials()[2].pruned is None
        assert len(store.trials()) == 3


class Told(NoProgress):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_run_says_how_many_unpruned_answers_are_those_of_another_program(tmp_path: Path) -> None:
    study = make_study()
    evaluator, told = FakeEvaluator(study), Told()
    with open_store(tmp_path / "t.db", study) as store:
        run(make_loop(study, store, trials=0, progress=told), evaluator)
        assert not any("another program" in text for text in told.messages)
        ids = [question.id for question in study.questions]
        here = dict(zip(ids, evaluator.answer(None, ids, {}), strict=True))
        brought = tuple(
            replace(question, baseline=OPTIONS[(here[question.id]["option"] + (number == 0)) % len(OPTIONS)])
            for number, question in enumerate(study.questions[:4])
        )
        with_them = replace(study, questions=(*brought, *study.questions[4:]))
        run(make_loop(with_them, store, trials=0, progress=told), evaluator)
    assert told.messages[-1].startswith("3 of 4 unpruned answers (75.0%) are those of another program")
