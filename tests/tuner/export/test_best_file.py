"""best.json is whole, self-contained, repeatable and says what production needs."""

from __future__ import annotations

import json
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest

from pipeline.break_even import Serving
from pipeline.export_format import SCHEMA, SCHEMA_FILE, VERSION
from pipeline.methods import AdaTP, from_dict
from pipeline.runtime import Runtime
from tests.summaries import make_held_out, make_outcome, make_serving, make_setting, make_summary, make_tested
from tuner.errors import UserError
from tuner.export import best_file as exporting
from tuner.export.best_file import export, json_schema, read, schema_text
from tuner.reporting.values import HeldOutAnswer
from tuner.study.values import Configuration

pytestmark = pytest.mark.quick

DATA = Path(__file__).parents[2] / "data"


def test_the_file_holds_the_configuration_and_its_evidence(tmp_path):
    summary = make_summary()
    export(summary, tmp_path / "best.json", mlflow_run="abc")
    written = json.loads((tmp_path / "best.json").read_text())
    assert written["schema"] == SCHEMA
    assert list(written["parameters"]) == ["tau_s", "tau_t", "alpha_boost", "gamma_cap", "p"]
    assert written["selection"] == {
        "deduplicate": "demote",
        "relevance_norm": "minmax",
        "score_query": "last",
    }
    assert written["budget"] == 0.3
    how = {name: written[name] for name in ("dtype", "attention", "device", "pooling", "encoding")}
    assert how == {
        "dtype": "bfloat16",
        "attention": "sdpa",
        "device": "cuda",
        "pooling": "average",
        "encoding": "0123abcd",
    }
    measured = written["measured"]
    assert measured["accuracy"] == summary.best_held_out.outcome.accuracy
    assert measured["flops_ratio"] == 0.297
    assert measured["flops_ratio_end_to_end"] > measured["flops_ratio"]
    assert measured["intervals"]["accuracy"] == pytest.approx([0.86, 0.915])
    assert measured["intervals"]["regressions"] == pytest.approx([18, 54])
    assert measured["seconds_per_answer"] is None  # never beside those of another moment
    assert measured["peak_bytes_max"] == 9 * 2**20
    assert written["baseline"] == {
        "accuracy": 0.94,
        "intervals": {"accuracy": [0.92, 0.958]},
        "seconds_per_answer": None,
        "peak_bytes_mean": 6.5 * 2**20,
        "peak_bytes_max": 11 * 2**20,
    }
    assert (written["provenance"]["evaluated_answers"], written["provenance"]["shared_answers"]) == (
        22800,
        1200,
    )
    assert written["pruning_layers"] == [2, 3, 4, 5, 6, 7]
    assert written["provenance"]["mlflow_run"] == "abc"
    assert written["provenance"]["trial"] == summary.best.number
    assert written["provenance"]["versions"]["torch"]


def test_the_file_says_when_pruning_pays(tmp_path):
    serving = export(make_summary(), tmp_path / "best.json").serving
    assert serving.flops.break_even == pytest.approx(12.5)
    assert serving.seconds.break_even == pytest.approx(10)
    assert (serving.seconds.per_video_baseline, serving.seconds.per_video_best) == (1.0, 0.5)
    assert serving.device == "Example CPU, 1 thread"
    assert (serving.stored_bytes_baseline, serving.stored_bytes_best) == (12 * 2**20, 2**20)
    assert (serving.profiled.counted_best, serving.profiled.planned_best) == (800, 1000)


def test_pruning_that_always_pays_and_seconds_that_were_not_measured_are_null(tmp_path):
    always = make_serving(best=Serving(0, 0, 1, 0, 1), measured=None)
    serving = export(make_summary(serving=always), tmp_path / "best.json").serving
    assert serving.flops.break_even is serving.seconds is serving.stored_bytes_best is None


def test_a_file_of_an_older_version_is_still_read(tmp_path):
    path = tmp_path / "best.json"
    export(make_summary(), path)
    values = json.loads(path.read_text())
    del values["serving"], values["provenance"]["shared_answers"], values["baseline"]["peak_bytes_max"]
    for name in ("dtype", "attention", "device", "pooling", "encoding"):
        del values[name]
    path.write_text(json.dumps(values))
    assert read(path).serving is None


def test_a_file_from_before_the_margin_tested_nothing(tmp_path):
    path = tmp_path / "best.json"
    export(make_summary(), path)
    values = json.loads(path.read_text())
    for name in ("verdict", "max_drop", "margin", "tested", "noise_floor", "accepted_regressions"):
        del values[name]
    for name in ("flips", "mcnemar_p", "divergence", "by_tag"):
        del values["measured"][name]
    path.write_text(json.dumps(values))
    old = read(path)
    assert (old.verdict, old.margin, old.tested, old.accepted_regressions) == ("untested", None, [], False)
    assert old.measured.by_tag == []


def test_the_file_holds_the_verdict_its_test_and_the_noise_floor(tmp_path):
    summary = make_summary()
    export(summary, tmp_path / "best.json")
    written = json.loads((tmp_path / "best.json").read_text())
    assert (written["verdict"], written["max_drop"], written["margin"]) == ("shown", "0.08", 0.08)
    assert written["accepted_regressions"] is False
    assert written["tested"] == [
        {
            "trial": summary.best.number,
            "margin": 0.08,
            "difference": -0.05,
            "bound": -0.068,
            "level": 0.04,
            "shown": True,
        }
    ]
    assert written["noise_floor"]["flips"] == 2
    assert (written["measured"]["flips"], written["measured"]["mcnemar_p"]) == (40, 0.0004)
    assert written["measured"]["divergence"] == 0.031
    row = written["measured"]["by_tag"][2]
    assert (row["key"], row["value"], row["questions"], row["lost"]) == ("type", "kind2", 200, 6)
    assert row["interval"] == pytest.approx([-0.04, 0.02])


NOT_SHOWN = {
    "verdict": "not_shown",
    "max_drop": "2%",
    "margin": 0.0188,
    "tested": (
        make_tested(7, -0.124, -0.15, margin=0.0188),
        make_tested(9, -0.11, -0.16, margin=0.0188, level=0.005),
    ),
}


def test_what_is_not_shown_is_exported_only_where_regressions_are_accepted(tmp_path):
    summary, path = make_summary(**NOT_SHOWN), tmp_path / "best.json"
    with pytest.raises(UserError) as caught:
        export(summary, path)
    assert not path.exists()
    said = str(caught.value)
    assert "within 1.88 points (--max-drop 2%)" in said
    assert "at trial 7 the difference is -12.4 points, and it may be -15.0" in said
    assert "--accept-regressions" in said
    assert "more videos, a larger --max-drop or a larger budget" in said
    export(summary, path, accept_regressions=True)
    best = read(path)
    assert (best.verdict, best.accepted_regressions, len(best.tested)) == ("not_shown", True, 2)


def test_accepting_regressions_changes_nothing_where_none_need_be(tmp_path):
    one = export(make_summary(), tmp_path / "one.json")
    assert export(make_summary(), tmp_path / "two.json", accept_regressions=True) == one


def test_what_was_never_tested_is_not_exported_either(tmp_path):
    with pytest.raises(UserError, match="no configuration was tested"):
        export(make_summary(verdict="untested", tested=(), margin=None), tmp_path / "best.json")


def test_the_parameters_and_selection_build_the_method_that_was_measured(tmp_path):
    method = AdaTP(tau_s=0.9, alpha_boost=1.2, deduplicate="drop", score_query="mean")
    summary = make_summary()
    best = replace(summary.best, configuration=Configuration.from_method(method))
    export(replace(summary, best=best), tmp_path / "best.json")
    written = json.loads((tmp_path / "best.json").read_text())
    assert from_dict({"method": written["method"], **written["parameters"], **written["selection"]}) == method


def test_exporting_again_gives_the_same_file(tmp_path):
    export(make_summary(), tmp_path / "one.json")
    export(make_summary(), tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_what_is_written_is_read_back(tmp_path):
    assert export(make_summary(), tmp_path / "best.json") == read(tmp_path / "best.json")


def test_a_file_of_the_first_format_is_read(tmp_path):
    """A file of the demo as version 0.1.0 exported it."""
    best = read(DATA / "best-1.json")
    assert (best.schema, best.verdict, best.provenance.trial) == ("adatp-tuner/best/1", "shown", 6)
    assert best.schema in json_schema()["properties"]["schema"]["enum"]


def test_a_file_of_the_second_format_is_read():
    """A file of the demo from before answers were listed."""
    best = read(DATA / "best-2.json")
    assert (best.schema, best.verdict, best.answers) == ("adatp-tuner/best/2", "shown", [])


def test_the_published_schema_is_that_of_the_code():
    write_it = "python -m tuner.export.best_file > pipeline/best.schema.json"
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), write_it


def test_files_of_all_formats_are_valid_by_the_published_schema(tmp_path):
    jsonschema = pytest.importorskip("jsonschema", reason="comes with other packages")
    check = jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    export(make_summary(answers=ANSWERS), tmp_path / "best.json")
    files = [DATA / "best-1.json", DATA / "best-2.json", tmp_path / "best.json"]
    contents = [json.loads(file.read_text()) for file in files]
    assert [[error.message for error in check.iter_errors(content)] for content in contents] == [[], [], []]
    assert not check.is_valid(contents[2] | {"bugdet": 0.2})
    assert not check.is_valid(contents[2] | {"schema": f"adatp-tuner/best/{VERSION + 1}"})


ANSWERS = (
    HeldOutAnswer("q1", "0123456789ab", "red", "red"),
    HeldOutAnswer("q2", "ba9876543210", "blau", "grün"),
)


def test_answers_stand_in_a_line_each(tmp_path):
    path = tmp_path / "best.json"
    assert export(make_summary(answers=ANSWERS), path) == read(path)
    assert path.read_text(encoding="utf-8").endswith(
        '  "answers": [\n'
        '    {"question": "q1", "asked": "0123456789ab", "text": "red"},\n'
        '    {"question": "q2", "asked": "ba9876543210", "text": "blau", "unpruned": "grün"}\n'
        "  ]\n}\n"
    )


def test_a_trial_that_a_person_chose_is_exported_where_it_was_tested(tmp_path):
    by_hand = make_summary(chosen_by_hand=True)
    assert export(by_hand, tmp_path / "best.json").provenance.chosen_by_hand
    untested = replace(by_hand, verdict="untested", tested=(), look=3)
    with pytest.raises(UserError, match=r"trial \d+ was not tested .*--measure.* look 3 .* 0\.17 %"):
        export(untested, tmp_path / "other.json")
    with pytest.raises(UserError, match="--measure"):
        export(replace(untested, best_held_out=None), tmp_path / "other.json", accept_regressions=True)


def test_a_chosen_trial_beyond_the_budget_brings_its_own(tmp_path):
    summary = make_summary(chosen_by_hand=True)
    best = replace(summary.best, within_budget=False)
    held_out = make_held_out(summary.best.configuration, flops_ratio=0.41)
    exported = export(replace(summary, best=best, best_held_out=held_out), tmp_path / "best.json")
    assert (exported.budget, exported.over_defaults) == (0.41, None)


def test_a_file_of_a_newer_format_is_one_clear_message(tmp_path):
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"schema": f"adatp-tuner/best/{VERSION + 1}", "new": 1}))
    with pytest.raises(UserError) as caught:
        read(path)
    assert len(caught.value.problems) == 1
    assert f"has format {VERSION + 1} of a newer adatp-tuner" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_file_without_a_format_is_told_what_is_wrong_with_it(tmp_path, content):
    path = tmp_path / "best.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"best\.json(: (file|schema): | is not valid JSON: )"):
        read(path)


def test_all_that_a_runtime_is_loaded_with_is_in_the_file(tmp_path):
    """All but where results are kept, how long is waited, and which bytes, hashed anyway, may be read."""
    export(make_summary(), tmp_path / "best.json")
    written = json.loads((tmp_path / "best.json").read_text())
    places = {"revision": ("model", "revision"), "text_encoder_revision": ("text_encoder", "revision")}
    for name in signature(Runtime.load).parameters:
        if name not in ("cache", "clips", "decode_timeout", "prefix_bytes", "allow_pickle"):
            within, key = places.get(name, (None, name))
            assert key in (written if within is None else written[within]), name


def test_a_model_below_the_file_is_named_relative_to_it_and_any_other_absolutely(tmp_path):
    inside, outside = tmp_path / "here" / "studies" / "model", tmp_path / "elsewhere"
    inside.mkdir(parents=True)
    outside.mkdir()
    setting = make_setting(model=str(inside), text_encoder=str(outside))
    best = export(make_summary(setting=setting), tmp_path / "here" / "best.json")
    assert best.model.id == "studies/model"
    assert best.model.resolved == str(inside)
    assert best.text_encoder.id == str(outside)


def test_a_hugging_face_id_stays_as_it_is(tmp_path):
    best = export(make_summary(), tmp_path / "best.json")
    assert (best.model.id, best.model.resolved, best.model.revision) == (
        *["example/llava-onevision"] * 2,
        "main",
    )


def test_nothing_within_the_budget_is_one_clear_message_and_no_file(tmp_path):
    with pytest.raises(UserError, match=r"no configuration within the budget 0.3.*0\.0810"):
        export(make_summary(best=None, best_held_out=None), tmp_path / "best.json")
    assert not list(tmp_path.iterdir())


def test_an_unfinished_study_is_not_exported(tmp_path):
    with pytest.raises(UserError, match="not finished"):
        export(make_summary(best_held_out=None), tmp_path / "best.json")


def test_a_configuration_over_the_budget_on_the_held_out_part_is_never_exported(tmp_path):
    summary = make_summary()
    over = make_held_out(summary.best.configuration, flops_ratio=0.31)
    with pytest.raises(ValueError, match="must fit the budget"):
        export(replace(summary, best_held_out=over), tmp_path / "best.json")


def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "best.json"
    path.write_text("old")
    monkeypatch.setattr(exporting.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match="No space left"):
        export(make_summary(), path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["best.json"]


def test_a_missing_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        export(make_summary(), tmp_path / "nowhere" / "best.json")


def test_unknown_fields_and_wrong_types_are_reported_together(tmp_path):
    path = tmp_path / "best.json"
    export(make_summary(), path)
    values = json.loads(path.read_text()) | {"bugdet": 0.2, "frames": "many"}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        read(path)
    assert {"bugdet", "frames"} <= {word.strip(":") for word in str(caught.value).split()}


def test_the_json_schema_names_the_knobs_ranges():
    schema = json_schema()
    assert schema["properties"]["schema"]["enum"][-1] == SCHEMA
    assert schema["$defs"]["adatp"]["properties"]["tau_t"]["maximum"] == 1.0
    assert schema["additionalProperties"] is False


def test_infinite_numbers_never_reach_the_file(tmp_path):
    summary = make_summary()
    held_out = replace(summary.best_held_out, outcome=make_outcome("held_out", logprob_change=float("-inf")))
    with pytest.raises(ValueError, match="JSON"):
        export(replace(summary, best_held_out=held_out), tmp_path / "best.json")
