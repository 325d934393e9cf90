"""The tables say what the summary holds, fit a terminal, and give the next line to type."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.break_even import Serving
from pipeline.methods import AdaTP
from tests.summaries import make_serving, make_setting, make_summary, make_tags, make_tested, make_trial
from tuner.reporting.summary import (
    MOST_TAGS,
    Row,
    comparison,
    duration,
    headline,
    knob_rows,
    percent,
    remarks,
    render,
    tag_rows,
    worth,
)
from tuner.reporting.values import InfeasibleProposal, PrunedTrial, Recorded
from tuner.statistics.values import Measured, Noise
from tuner.statistics.wording import noise_floor, provable
from tuner.study.values import AnswerCost, Configuration

pytestmark = pytest.mark.quick

NOTHING_FITS = {"best": None, "best_held_out": None, "defaults": None, "defaults_held_out": None}


def _text(summary, width=80, **options):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(summary, **options))
    return console.file.getvalue()


def test_the_comparison_holds_held_out_numbers_with_intervals():
    rows = {row.name.strip(): row for row in comparison(make_summary())}
    assert rows["held-out accuracy"].unpruned == "94.0 [92.0, 95.8]"
    assert rows["held-out accuracy"].best == "89.0 [86.0, 91.5]"
    assert rows["change"].best == "-5.0 [-7.0, -3.0]"
    assert rows["regressions"].defaults == "60"
    assert rows["gained"].defaults == "4"
    assert rows["FLOPs ratio"].best == "0.2970"
    assert rows["end to end"].best == "0.4024"
    # Of one measurement: what the study's answers took was timed at other moments for either.
    assert rows["seconds"] == Row("seconds", "1.01", "0.56", "-")
    assert rows["MiB added"] == Row("MiB added", "6.5", "5.2", "5.2")
    assert rows["tuned - defaults"] == Row("tuned - defaults", "-", "+4.0 [+1.0, +7.0]", "-")


def test_what_tuning_gained_says_at_which_compute():
    (line,) = worth(make_summary())
    assert line.startswith("Tuned minus AdaTP's defaults at the same budget: +4.0 [+1.0, +7.0] points")
    assert line.endswith("tuning helped.")
    # The cheapest that holds has no budget that the defaults could be solved for.
    (line,) = worth(make_summary(goal="max_drop"))
    assert re.search(r"defaults \(FLOPs ratios 0\.\d{3} and 0\.\d{3}\): ", line)


def test_seconds_are_of_one_measurement_or_not_there():
    text = " ".join(_text(make_summary()).split())
    assert "each of 5 questions unpruned and pruned side by side on Example CPU, 1 thread." in text
    # Answers of the study alone: 0.03 s unpruned and 0.021 s pruned, at other moments.
    rows = {row.name: row for row in comparison(make_summary(serving=None))}
    assert rows["seconds"] == Row("seconds", "-", "-", "-")


def test_defaults_that_study_yaml_does_not_allow_say_so():
    summary = make_summary()
    assert not [line for line in remarks(summary) if "as far as study.yaml allows" in line]
    fixed = Configuration.from_method(AdaTP(p=0.7, tau_s=0.9, deduplicate="off"))
    said = remarks(replace(summary, defaults=replace(summary.defaults, configuration=fixed)))
    assert (
        "AdaTP's defaults are taken as far as study.yaml allows: tau_s 0.9 instead of 0.95, deduplicate off "
        "instead of demote."
    ) in said


def test_the_five_knobs_are_there_with_what_they_mean():
    rows = knob_rows(make_summary())
    assert [row.name for row in rows] == ["tau_s", "tau_t", "alpha_boost", "gamma_cap", "p"]
    assert all(row.meaning for row in rows)
    assert rows[4].defaults == "0.82"


def _said_of_serving(**changes):
    return " ".join(remarks(make_summary(serving=make_serving(**changes))))


def test_when_pruning_pays_is_one_sentence():
    assert (
        "On a server that keeps each video's prefix pruning pays for up to 12.5 questions per video (FLOPs), "
        "up to 10 questions per video (seconds on Example CPU, 1 thread); "
        "beyond that keep the unpruned prefix."
    ) in _said_of_serving()
    assert "keeps 12 MiB per video unpruned, 1 MiB pruned." in _said_of_serving()
    assert "over ours, question v1-q2: 1.0000 unpruned, 0.8000 pruned." in _said_of_serving()


def test_pruning_that_always_or_never_pays_is_said_so():
    cheap, dear = Serving(0, 0, 10, 0, 1), Serving(0, 0, 20, 0, 9)
    always = _said_of_serving(baseline=dear, best=cheap, measured=None)
    assert "pays for any number of questions per video (FLOPs)." in always
    never = _said_of_serving(baseline=cheap, best=dear, measured=None)
    assert "pays for no question (FLOPs); keep the unpruned prefix." in never
    assert "MiB per video" not in never


def test_the_verdict_is_one_plain_sentence():
    shown = remarks(make_summary())
    assert (
        "Shown: within 8 points of the unpruned accuracy (--max-drop 0.08); the held-out difference is "
        "-5.0 points, lower bound -6.8."
    ) in shown
    failed = make_tested(4, -0.124, -0.15, margin=0.02)
    said = remarks(make_summary(verdict="not_shown", max_drop="0.02", margin=0.02, tested=(failed,)))
    assert (
        "Not shown: within 2 points of the unpruned accuracy (--max-drop 0.02); the held-out difference is "
        "-12.4 points, lower bound -15.0."
    ) in said
    assert said[-1].endswith("--output best.json --accept-regressions")


def test_candidates_that_failed_before_are_named():
    tested = (
        make_tested(4, -0.03, -0.04, margin=0.02),
        make_tested(9, -0.01, -0.03, margin=0.02, level=0.005),
        make_tested(6, 0.01, -0.01, margin=0.02, level=0.005),
    )
    summary = make_summary(margin=0.02, max_drop="0.02", tested=tested)
    said = " ".join(remarks(replace(summary, best=replace(summary.best, number=6))))
    assert "of trial 6 is +1.0 points, lower bound -1.0. Not shown for trials tested besides: 4, 9." in said
    # The cheapest that holds: dearer ones passed before it, and the next one down did not.
    down = (tested[2], make_tested(8, 0.0, -0.015, margin=0.02), tested[0])
    said = " ".join(remarks(replace(summary, tested=down, best=replace(summary.best, number=8))))
    assert "Shown: within 2 points" in said
    assert "of trial 8 is +0.0 points, lower bound -1.5. Shown for trials tested besides: 6. " in said
    assert "Not shown for trials tested besides: 4." in said
    none = " ".join(remarks(make_summary(margin=0.02, verdict="not_shown", tested=tested[:2])))
    assert "of trial 4 is -3.0 points, lower bound -4.0. Not shown for trials tested besides: 9." in none


def test_without_a_test_nothing_is_claimed():
    said = " ".join(remarks(make_summary(verdict="untested", tested=())))
    assert "Not tested: within 8 points of the unpruned accuracy" in said
    assert "shown" not in " ".join(remarks(make_summary(verdict="untested", tested=(), margin=None))).lower()


def test_what_can_be_proven_and_the_noise_floor_are_said():
    cannot = "With 80 held-out videos, losses below 3.7 points cannot be ruled out"
    assert provable(0.0368, 80) == f"{cannot}."
    assert provable(0.0368, 80, 0.05) == f"{cannot}; you allow 5, which leaves little room for lost answers."
    assert provable(0.0368, 80, 0.08) == f"{cannot}; you allow 8."
    needed = provable(1 - 0.05 ** (1 / 80), 80, 0.02)
    assert needed == f"{cannot}. You allow 2: about 149 are needed, more where answers are lost."
    assert "no number of videos" in provable(0.0368, 80, 0.0)
    assert "a correlation of 0.30 (0: independent" in provable(0.0368, 80, 0.05, 0.3)
    noise = Noise(questions=1000, videos=80, flips=3, logprob_mean=0.0, logprob_max=2.4e-5)
    labelled = noise_floor(noise, 0.02)
    assert "the unpruned model changes 3 of 1000 answers (0.3 points), " in labelled
    assert labelled.endswith("log-probabilities by up to 2e-05.")
    assert labelled in noise_floor(noise, 0.02, labelled=False)
    assert noise_floor(noise, 0.02, labelled=False).endswith(
        "Margin 2.0 points, noise floor 0.3 points (flips)."
    )
    for margin in (0.003, 0.001):
        assert "nothing can be shown" in noise_floor(noise, margin, labelled=False)
    both = remarks(make_summary())
    assert provable(0.0285, 80, make_summary().margin) in both
    assert any(line.startswith("Noise floor: ") and "2 of 600" in line for line in both)


def test_what_pruning_changed_is_one_line():
    assert (
        "Pruning flipped 40 of 600 answers: 36 lost, 4 gained; p 0.012 over videos (McNemar 0.0004); "
        "log-probability -0.060, KL 0.031."
    ) in remarks(make_summary())
    free = replace(make_summary().best_held_out, divergence=None, by_tag=())
    assert "KL" not in " ".join(remarks(make_summary(best_held_out=free)))


def test_the_table_by_tag_keeps_to_the_rows_that_lost_most():
    summary = make_summary()
    assert [row.value for row in tag_rows(summary)] == ["kind0", "kind1", "kind2"]
    assert "type: kind2" in _text(summary)
    many = make_summary(best_held_out=replace(summary.best_held_out, by_tag=make_tags(MOST_TAGS + 5)))
    assert [row.value for row in tag_rows(many)] == [f"kind{index}" for index in range(5, MOST_TAGS + 5)]
    assert "By tag: 5 more rows, which lost less, are in best.json." in remarks(many)
    assert "by tag" not in _text(make_summary(best_held_out=replace(summary.best_held_out, by_tag=())))


def test_trials_that_were_stopped_or_lie_above_the_budget_are_counted_apart():
    pruned = tuple(
        PrunedTrial(number, make_trial(number).configuration, 0.29, by=1, videos=10) for number in (30, 31)
    )
    summary = make_summary(pruned=pruned, above=(make_trial(32, ratio=0.5),))
    assert "24 trials and 2 pruned early, 1 above the budget for the front" in headline(summary)
    cheapest = headline(make_summary(goal="max_drop", budget=1.0, max_drop="1%"))
    assert cheapest.startswith("demo: the cheapest within 1% of the unpruned accuracy, 24 trials")


def test_quarantined_questions_are_named_with_the_reason():
    said = remarks(make_summary(quarantined={"q7": "killed its worker twice"}))
    assert "Left out: question q7 (killed its worker twice)." in said


def test_memory_too_small_to_tell_is_said_so_and_unknown_memory_is_a_dash():
    small = make_summary(baseline_cost=AnswerCost(0.1, 3000.0, 2**20))
    assert {row.name: row.unpruned for row in comparison(small)}["MiB added"] == "< 1"
    unknown = make_summary(baseline_cost=AnswerCost(0.1))
    assert {row.name: row.unpruned for row in comparison(unknown)}["MiB added"] == "-"


def test_without_labels_accuracy_is_called_agreement():
    rows = comparison(make_summary(setting=make_setting(labelled=False)))
    assert rows[0].name == "held-out agreement"
    said = " ".join(remarks(make_summary(setting=make_setting(labelled=False))))
    assert "of the unpruned agreement" in said
    assert "Margin 8.0 points, noise floor 0.3 points (flips)." in said


@pytest.mark.parametrize("binds", ["alpha_boost", "gamma_cap", "none"])
def test_what_binds_is_said(binds):
    said = next(line for line in remarks(make_summary(binds=binds)) if "no effect" in line)
    assert said.startswith("No segment" if binds == "none" else f"{binds} decides")


def test_the_command_that_exports_is_given():
    assert "tuner export --study demo --output best.json" in _text(make_summary())
    assert "tuner export --study ./my/study --output" in _text(make_summary(), study="./my/study")


def test_mlflow_ui_is_told_for_a_local_database_only():
    local = Recorded("abc", "http://127.0.0.1:5000/#/experiments/1/runs/abc")
    assert "type `mlflow ui` and open http://127.0.0.1:5000" in " ".join(
        remarks(make_summary(), recorded=local)
    )
    server = replace(local, served=True)
    assert "mlflow ui" not in " ".join(remarks(make_summary(), recorded=server))


def test_a_study_in_which_nothing_fits_says_so_and_what_would():
    closest = InfeasibleProposal(Configuration.from_method(AdaTP(p=0.4)), 0.12)
    said = _text(make_summary(3, budget=0.05, closest=closest, **NOTHING_FITS), width=300)
    assert "No configuration within the budget 0.05" in said
    assert "closest needs 0.1200 (tau_s 0.95, tau_t 0.5, alpha_boost 1.1, gamma_cap 0.95, p 0.4)" in said
    assert "smallest FLOPs ratio any configuration can reach is 0.0810" in said


def test_skipped_videos_are_named():
    assert "cannot be read: a.mp4, b.mp4." in _text(make_summary(skipped_videos=("a.mp4", "b.mp4")))


def test_eighty_columns_are_enough_for_every_number():
    lines = _text(make_summary()).splitlines()
    assert max(map(len, lines)) <= 80
    for row in comparison(make_summary()):
        assert any(
            all(cell in line for cell in (row.name, row.unpruned, row.best, row.defaults)) for line in lines
        )


def test_a_study_without_a_held_out_result_yet_still_renders():
    assert "trial" in _text(make_summary(best_held_out=None, defaults_held_out=None))


def test_brackets_in_a_name_are_printed_as_they_are():
    summary = replace(make_summary(), study="[bold]odd[/bold]")
    assert "[bold]odd[/bold]" in _text(summary)


def test_the_headline_leaves_out_what_did_not_happen():
    summary = make_summary(infeasible=0, shared_answers=0, seconds=0.2)
    assert headline(summary) == "demo: budget 0.3, 24 trials"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (193, "3 min 13 s"), (7260, "2 h 1 min")]
)
def test_durations_are_said_as_a_person_would(seconds, said):
    assert duration(seconds) == said


def test_what_was_not_measured_is_a_dash():
    assert percent(None) == percent(Measured(float("nan"))) == "-"


def _dropping():
    summary = make_summary()
    method = replace(summary.best.configuration.build(), deduplicate="drop")
    return replace(summary, best=replace(summary.best, configuration=Configuration.from_method(method)))


def test_a_choice_stands_beside_the_knobs_where_it_is_listed_or_not_the_default():
    assert len(knob_rows(make_summary())) == 5
    row = knob_rows(_dropping())[5]
    assert (row.name, row.best, row.defaults) == ("deduplicate", "drop", "demote")
    assert row.meaning
    listed = knob_rows(make_summary(choices=("score_query",)))
    assert [(item.name, item.best) for item in listed[5:]] == [("score_query", "last")]
    text = _text(_dropping())
    assert "deduplicate" in text
    assert "score_query" not in text


def test_the_closest_configuration_names_its_choices():
    closest = InfeasibleProposal(Configuration.from_method(AdaTP(p=0.4, deduplicate="drop")), 0.12)
    (said,) = (
        remark for remark in remarks(make_summary(closest=closest, **NOTHING_FITS)) if "closest" in remark
    )
    assert "p 0.4, deduplicate drop)" in said
