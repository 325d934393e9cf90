from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tuner.errors import UserError
from tuner.records.values import Look, TrialRecord
from tuner.search.selection import (
    CANDIDATES,
    MOST_CANDIDATES,
    Looks,
    candidates,
    choose,
    choose_best,
    examine,
    hypervolume,
    level_of,
)
from tuner.statistics.margin import MaxDrop
from tuner.study.values import Configuration, Outcome, QuestionResult

pytestmark = pytest.mark.quick

VIDEOS = 40
PER_VIDEO = 5


def trial(number: int, ratio: float, accuracy: float | None, graded: float = 0.0) -> TrialRecord:
    configuration = Configuration("adatp", (("p", 0.5 + number / 1000),))
    outcome = None
    if accuracy is not None:
        values: dict[str, Any] = dict.fromkeys(
            (
                "flops_ratio",
                "flops_ratio_end_to_end",
                "flops_ratio_visual",
                "flops_ratio_p95",
                "flops_ratio_max",
            ),
            ratio,
        )
        outcome = Outcome(
            split="tune",
            questions=200,
            videos=40,
            accuracy=accuracy,
            regressions=0,
            gained=0,
            logprob_change=0.0,
            seconds=1.0,
            graded=graded,
            **values,
        )
    return TrialRecord(number, 1, configuration, ratio, outcome)


def results(wrong: Sequence[int]) -> list[QuestionResult]:
    """Answers of a part: right but for these."""
    bad = set(wrong)
    return [
        QuestionResult(
            f"q{index}",
            f"v{index // PER_VIDEO}",
            "held_out",
            index not in bad,
            None,
            "",
            None,
            None,
            0.0,
        )
        for index in range(VIDEOS * PER_VIDEO)
    ]


def lost(share: float, seed: int = 0) -> list[int]:
    count = VIDEOS * PER_VIDEO
    return np.random.default_rng(seed).choice(count, round(share * count), replace=False).tolist()


class Asked:
    """Held-out answers as they become known."""

    def __init__(self, known: dict[int, list[int]], baseline: Sequence[int] = ()) -> None:
        self._known = known
        self._baseline = baseline

    def __call__(self, configuration: Configuration | None) -> list[QuestionResult] | None:
        if configuration is None:
            return results(self._baseline)
        number = round((float(configuration.get("p")) - 0.5) * 1000)
        return results(self._known[number]) if number in self._known else None


def test_the_first_candidate_that_passes_is_chosen_and_the_rest_are_not_asked() -> None:
    trials = [trial(0, 0.29, 0.80), trial(1, 0.3, 0.90), trial(2, 0.28, 0.85)]
    tune = results(lost(0.1))
    before = choose(trials, "budget", 0.3, MaxDrop(0.15), tune, Asked({}))
    assert before is not None
    assert before.verdict == "untested"
    assert before.pending is not None
    assert before.pending.number == 1
    failed = choose(trials, "budget", 0.3, MaxDrop(0.15), tune, Asked({1: lost(0.2)}))
    assert failed is not None
    assert failed.pending is not None
    assert failed.pending.number == 2
    chosen = choose(trials, "budget", 0.3, MaxDrop(0.15), tune, Asked({1: lost(0.2), 2: []}))
    assert chosen is not None
    assert (chosen.trial.number, chosen.verdict, chosen.pending) == (2, "shown", None)
    assert [(candidate.trial, candidate.shown) for candidate in chosen.tested] == [(1, False), (2, True)]


def test_levels_within_a_budget_add_up_to_no_more_than_the_whole() -> None:
    assert sum(CANDIDATES) <= 1 + 1e-12
    assert sum(level_of("max_drop", look) for look in range(1, 10_000)) <= 0.05
    trials = [trial(number, 0.3, 0.9 - number / 1000) for number in range(6)]
    asked = Asked({n: lost(0.3, n) for n in range(6)})
    chosen = choose(trials, "budget", 0.3, MaxDrop(0.02), results(lost(0.1)), asked)
    assert chosen is not None
    assert chosen.verdict == "not_shown"
    assert chosen.trial.number == 0
    assert [candidate.level for candidate in chosen.tested] == [
        level_of("budget", 1, place) for place in range(3)
    ]


def test_another_candidate_is_asked_about_only_where_the_tune_part_gives_it_a_chance() -> None:
    trials = [trial(0, 0.3, 0.90), trial(1, 0.3, 0.80), trial(2, 0.3, 0.89)]
    assert [candidate.number for candidate in candidates(trials, "budget", 0.3, 0.9, 0.02)] == [0, 2]
    assert [candidate.number for candidate in candidates(trials, "budget", 0.3, 0.99, 0.02)] == [0]


def test_what_is_over_the_budget_or_unfinished_is_no_candidate() -> None:
    trials = [trial(0, 0.4, 0.99), trial(1, 0.2, None), trial(2, 0.25, 0.7)]
    assert [candidate.number for candidate in candidates(trials, "budget", 0.3, 0.95, 0.01)] == [2]
    assert choose_best(trials, 0.1) is None
    assert choose(trials, "budget", 0.1, MaxDrop(0.01), [], Asked({})) is None


def test_the_cheapest_that_holds_is_found_from_the_safe_side() -> None:
    trials = [trial(number, 0.9 - number / 10, 0.95 - number / 1000) for number in range(7)]
    asked = Asked({0: [], 1: [], 2: [], 3: lost(0.3), 4: [], 5: [], 6: []})
    chosen = choose(trials, "max_drop", 1.0, MaxDrop(0.1), results(lost(0.05)), asked)
    assert chosen is not None
    # Trials 4 to 6 would pass too, but nothing below a failure is tested.
    assert (chosen.trial.number, chosen.verdict) == (2, "shown")
    assert [candidate.trial for candidate in chosen.tested] == [0, 1, 2, 3]
    assert {candidate.level for candidate in chosen.tested} == {level_of("max_drop", 1)}


def test_candidates_for_the_cheapest_hold_on_the_tune_part_and_begin_at_the_safe_end() -> None:
    trials = [trial(n, 0.2 + n / 50, 0.80 + n / 100) for n in range(15)]
    trials += [trial(20, 0.5, 0.5), trial(21, 0.9, 0.94)]
    found = candidates(trials, "max_drop", 1.0, 0.95, 0.05)
    # Those within 0.05 of 0.95, from the dearest down, the best one of several that cost alike.
    assert [trial.number for trial in found] == [21, 14, 13]
    many = candidates(trials, "max_drop", 1.0, 0.95, 0.2)
    assert len(many) <= MOST_CANDIDATES
    assert many[0].number == 21
    assert [configuration.binding_ratio for configuration in many] == sorted(
        (configuration.binding_ratio for configuration in many), reverse=True
    )
    nothing = candidates(trials, "max_drop", 1.0, 1.5, 0.05)
    assert [trial.number for trial in nothing] == [14]


def test_a_margin_is_absolute_or_relative() -> None:
    assert MaxDrop.parse("0.01") == MaxDrop(0.01)
    assert MaxDrop.parse(" 1% ") == MaxDrop(0.01, relative=True)
    assert MaxDrop.parse("2.5%").absolute(0.8) == pytest.approx(0.02)
    assert [str(MaxDrop.parse(text)) for text in ("0.01", "1%")] == ["0.01", "1%"]
    for wrong in ("", "one", "-0.1", "1", "100%", "nan", "1e", "0.1.2"):
        with pytest.raises(UserError, match=r"0\.01"):
            MaxDrop.parse(wrong)


def test_the_margin_of_the_choice_is_in_held_out_accuracy() -> None:
    chosen = choose(
        [trial(0, 0.3, 0.9)], "budget", 0.3, MaxDrop(0.1, relative=True), [], Asked({}, baseline=lost(0.2))
    )
    assert chosen is not None
    assert chosen.margin == pytest.approx(0.08)


def test_the_same_tests_again_are_the_same_look_and_others_a_new_one() -> None:
    trials = [trial(0, 0.3, 0.9), trial(1, 0.29, 0.89)]
    asked = Asked({0: [], 1: []})

    def look(looks: Looks, of: Sequence[TrialRecord] = trials) -> tuple[int, bool, float]:
        found = choose(of, "budget", 0.3, MaxDrop(0.15), results(lost(0.1)), asked, looks)
        assert found is not None
        return found.look, found.recorded, found.tested[0].level

    assert look(Looks()) == (1, False, level_of("budget", 1))
    assert look(Looks(4, {2: (0,)})) == (2, True, level_of("budget", 2))
    # Another trial is better on the tune split now.
    better = [*trials, trial(1, 0.29, 0.95)]
    assert look(Looks(4, {2: (0,)}), better[1:]) == (5, False, level_of("budget", 5))
    # Looks of other searches or at other margins.
    assert look(Looks(4)) == (5, False, level_of("budget", 5))


def test_hypervolume() -> None:
    points = [(0.1, 0.5), (0.2, 0.8), (0.3, 0.9), (0.25, 0.7)]
    # By hand: (0.4 - 0.1) 0.1 + (0.4 - 0.2) 0.3 + (0.4 - 0.3) 0.1
    assert hypervolume(points, (0.4, 0.4)) == pytest.approx(0.03 + 0.06 + 0.01)
    assert hypervolume(points, (0.1, 0.4)) == 0
    assert hypervolume([], (1, 0)) == 0


def look(trial: int, *candidates: int, goal: str = "budget", max_drop: str = "0.02") -> Look:
    return Look(goal, 0.3, 0, max_drop, 10, trial, "shown", candidates=candidates)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("looks", "number", "level"),
    [
        ([], 1, 0.04),
        ([(1, look(0, 0))], 2, 0.005),  # it was not among those tested
        ([(1, look(0, 0, 1, 2))], 1, 0.004),  # the third of a look: a tenth of its level
        ([(1, look(0, 0)), (1, look(2, 2, goal="trial"))], 2, 0.005),
        ([(1, look(2, 2, max_drop="0.05"))], 2, 0.005),  # another margin
        ([(9, look(2, 2))], 2, 0.005),  # trial 2 of an archived study is another one
    ],
)
def test_a_trial_that_a_person_chose_is_tested_at_the_level_of_its_look(
    looks: list[tuple[int, Look]], number: int, level: float
) -> None:
    chosen = trial(2, 0.2, 0.9)
    found = examine(chosen, MaxDrop(0.02), lambda _: results([]), looks, {1, 2})
    assert (found.trial, found.look, found.recorded) == (chosen, number, number <= len(looks))
    assert found.tested[0].level == pytest.approx(level)
    assert found.verdict == ("shown" if found.tested[0].bound >= -0.02 else "not_shown")


def test_a_trial_without_held_out_answers_is_untested() -> None:
    def held_out(configuration: Configuration | None) -> list[QuestionResult] | None:
        return results([]) if configuration is None else None

    found = examine(trial(2, 0.2, 0.9), MaxDrop(0.02), held_out, [], {1})
    assert (found.verdict, found.tested, found.look, found.recorded) == ("untested", (), 1, False)
