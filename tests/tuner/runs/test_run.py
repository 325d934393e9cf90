"""`tuner run` as a function, over a tiny model with random weights and real video files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import packing
from pipeline.errors import NotFiniteError, VideoError
from pipeline.runtime import Runtime
from tests.checkpoints import Size, scenes, write_checkpoints, write_llava_video
from tests.tuner import fakes
from tests.videos import write_video
from tuner.errors import UserError
from tuner.evaluation.loop import Loop
from tuner.planning.planner import fingerprint, fingerprint_base
from tuner.records.database import default_database
from tuner.records.store import Store
from tuner.reporting.from_records import load_summary, make_planner, setting_from, status_of
from tuner.runs.run import InterruptedRunError, RunOptions, Session, prepared, run
from tuner.study import Search, Study, StudyQuestion, Video
from tuner.study.definition import SplitSettings
from tuner.study.values import Outcome, Setting

# What is looked at afterwards has tests of its own: test_inspection.py.
# Random weights do no better than guessing.
OPTIONS = RunOptions(budget=0.5, trials=4, inspect=False, accept_weak_baseline=True)
COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with checkpoints and videos; tests copy it."""
    folder = tmp_path_factory.mktemp("template")
    write_checkpoints(folder)
    (folder / "videos").mkdir()
    for index in range(4):
        write_video(folder / "videos" / f"v{index}.mp4", scenes(16, scene_length=4, seed=index))
    return folder


@pytest.fixture
def study(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return placed(template, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def run_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was run with `OPTIONS`."""
    folder = tmp_path_factory.mktemp("run") / "study"
    shutil.copytree(template, folder)
    with contextlib.chdir(folder):
        run(make_study(folder), OPTIONS)
    return folder


@pytest.fixture
def study_run(run_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return placed(run_template, tmp_path, monkeypatch)


def placed(template: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy of the template's study, in the working directory."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return make_study(folder)


def make_study(folder: Path) -> Study:
    names = [f"v{index}.mp4" for index in range(4)]
    return Study(
        name="tiny",
        folder=folder,
        questions_file=folder / "questions.jsonl",
        model=str(folder / "model"),
        revision=None,
        text_encoder=str(folder / "siglip"),
        frames=8,
        scoring="words",
        max_new_tokens=4,
        videos=tuple(Video(name, folder / "videos" / name) for name in names),
        questions=tuple(
            StudyQuestion(
                id=f"{name}-{place}",
                text=f"what color is the {place} of the {thing}?",
                options=COLORS,
                video=name,
                answer=COLORS[(index + len(place)) % 4],
                tags={"place": place},
            )
            for index, name in enumerate(names)
            for place, thing in (("top", "ring"), ("left", "ball"), ("bottom", "star"))
        ),
        held_out=frozenset({"v1.mp4", "v3.mp4"}),
    )


class Recorder:
    def __init__(self) -> None:
        self.phases: list[tuple[str, int]] = []
        self.messages: list[str] = []
        self.done = 0

    def started(self, phase: str, total: int | None) -> None:
        # Held-out phases name their trials; what is not counted has no steps.
        if total is not None:
            self.phases.append((phase.split(",")[0], total))

    def now(self, text: str) -> None: ...

    def advanced(self, count: int = 1) -> None:
        self.done += count

    def message(self, text: str) -> None:
        self.messages.append(text)


def unmeasured(outcome: Outcome) -> Outcome:
    return replace(outcome, seconds=0, peak_bytes_mean=None, peak_bytes_max=None)


def comparable(summary: Any) -> Any:
    """Without times and memory, which no two runs share."""
    trials = tuple(replace(trial, outcome=unmeasured(trial.outcome)) for trial in summary.trials)
    return [
        trials,
        summary.baseline,
        summary.best and summary.best.number,
        summary.best_held_out and replace(summary.best_held_out, outcome=None),
        summary.regressions,
        summary.study_hash,
    ]


def test_a_run_ends_with_its_summary_and_the_same_again_loads_no_model(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Recorder()
    summary = run(study, OPTIONS, progress)
    phases = ["encoding", "baseline", "noise floor", "search", "above the budget", "held-out", "serving"]
    # Candidates that come after a failed one are asked about in their turn.
    assert list(dict.fromkeys(phase for phase, _ in progress.phases)) == phases
    assert dict(progress.phases)["baseline"] == 12
    assert progress.done == sum(total for _, total in progress.phases)
    assert len(summary.trials) == 4
    assert summary.best is not None
    assert summary.best.within_budget
    assert summary.best_held_out is not None
    assert summary.defaults is not None
    assert summary.defaults.number == 0
    assert summary.defaults_held_out is not None
    assert summary.baseline.keys() == {"tune", "held_out"}
    assert summary.setting is not None
    assert summary.setting.layers == 12
    assert summary.smallest_reachable is not None
    assert summary.smallest_reachable < 0.5
    assert len(summary.regressions) == summary.best_held_out.outcome.regressions
    assert (Path(".tuner/tiny/tuner.db")).is_file()

    monkeypatch.setattr(Runtime, "load", None)
    again = run(study, OPTIONS)
    assert comparable(again) == comparable(summary)
    assert again.serving == summary.serving
    assert again.cache_use == summary.cache_use
    assert comparable(load_summary(study)) == comparable(summary)


def test_what_the_caches_did_is_recorded_from_the_encoding_on(study_run: Study) -> None:
    first = run(study_run, OPTIONS)
    use, noise = first.cache_use, first.noise
    assert use is not None
    assert noise is not None
    # Each of four videos is encoded, and stays in the worker's memory. What is measured for a server
    # afterwards is not counted.
    assert (first.videos, use.features_computed, use.features_read) == (4, 4, 0)
    assert use.prefixes == use.features_in_memory == first.evaluated_answers + noise.questions
    # Unpruned, and up to the first pruning.
    assert use.prefixes_built == 8
    more = run(study_run, replace(OPTIONS, trials=6))
    assert more.cache_use is not None
    assert more.cache_use.features_computed == 4
    assert more.cache_use.prefixes == more.evaluated_answers + noise.questions > use.prefixes
    # Features outlive the records.
    anew = run(study_run, replace(OPTIONS, database="sqlite:///anew.db"))
    assert anew.cache_use == replace(use, features_computed=0, features_read=4)


def test_what_answers_and_a_server_cost_is_recorded(study_run: Study) -> None:
    summary = run(study_run, OPTIONS)
    for cost in (summary.baseline_cost, summary.best_held_out and summary.best_held_out.outcome.per_answer):
        assert cost is not None
        assert cost.seconds > 0
        if sys.platform == "linux":
            assert cost.peak_bytes_mean is not None
            assert cost.peak_bytes_max is not None
            assert 0 <= cost.peak_bytes_mean <= cost.peak_bytes_max
    assert summary.serving is not None
    measured = summary.serving.measured
    assert measured is not None
    assert (measured.questions, measured.value_bytes) == (5, 4)
    assert measured.best.prefix < measured.baseline.prefix
    one = measured.profiled
    assert one is not None
    assert one.counted_baseline == one.planned_baseline
    assert one.counted_best == one.planned_best < one.planned_baseline


def out_of_memory(*_: Any) -> None:
    import torch

    raise torch.OutOfMemoryError


def unreadable(*_: Any) -> None:
    raise VideoError("v1.mp4 is gone", "v1.mp4")


@pytest.mark.parametrize(
    ("failure", "reason"), [(unreadable, "v1.mp4 is gone"), (out_of_memory, "memory does not suffice")]
)
def test_costs_that_cannot_be_measured_end_no_run(
    study: Study, monkeypatch: pytest.MonkeyPatch, failure: Callable[..., None], reason: str
) -> None:
    told: list[str] = []
    progress = Recorder()
    progress.message = told.append  # type: ignore[method-assign]
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.measure.serving_seconds", failure)
        summary = run(study, OPTIONS, progress)
    assert summary.best_held_out is not None
    assert summary.serving is not None
    assert summary.serving.measured is None
    assert f"could not be measured: {reason}" in told[-1]
    measured_later = run(study, OPTIONS)
    assert measured_later.serving is not None
    assert measured_later.serving.measured is not None


def test_ctrl_c_while_costs_are_measured_loses_nothing_else(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.measure.serving_seconds", stopped)
        with pytest.raises(InterruptedRunError, match="the same command measures it"):
            run(study, OPTIONS)
    progress = Recorder()
    summary = run(study, OPTIONS, progress)
    assert summary.serving is not None
    assert summary.serving.measured is not None
    assert {phase for phase, _ in progress.phases} == {"serving"}


def test_a_profile_too_large_for_memory_is_left_out(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.measure.profiled_flops", out_of_memory)
    summary = run(study, replace(OPTIONS, trials=1))
    assert summary.serving is not None
    assert summary.serving.measured is not None
    assert summary.serving.measured.profiled is None


def test_more_trials_and_another_budget_carry_on(study_run: Study) -> None:
    first = run(study_run, OPTIONS)
    more = run(study_run, replace(OPTIONS, trials=6))
    assert more.trials[:4] == first.trials
    assert len(more.trials) == 6
    other = run(study_run, replace(OPTIONS, budget=0.48, trials=2))
    assert other.trials[:6] == tuple(
        replace(trial, within_budget=trial.within_budget and _fits(trial, 0.48)) for trial in more.trials
    )
    assert other.best is not None
    assert other.best.outcome.flops_ratio <= 0.48


def _fits(trial: Any, budget: float) -> bool:
    return bool(trial.outcome.flops_ratio <= budget)


def test_stored_plans_give_the_runtimes_fingerprints(study_run: Study) -> None:
    run(study_run, replace(OPTIONS, trials=1))
    runtime = Runtime.load(study_run.model, text_encoder=study_run.text_encoder, frames=8, max_new_tokens=4)
    with Store.open(default_database("tiny")) as store:
        record = store.find("tiny")
        assert record is not None
        planner = make_planner(record)
        method = store.trials()[0].configuration.build()
        assert record.fingerprint_base == fingerprint_base(runtime.encoding, "words", 4)
        for index, question in enumerate(study_run.questions):
            layout = runtime.layout(runtime.encode(study_run.video_of(question).path), question)
            for item in (None, method, method.with_ratio(1.0)):
                assert planner.fingerprints(item)[index] == runtime.fingerprint(item, layout)[:32]
        assert fingerprint(record.fingerprint_base, None, None) == planner.fingerprints(None)[0]


def test_a_search_bounded_by_the_study_stays_within(study: Study) -> None:
    search = Search(
        fixed=(("alpha_boost", 1.2),), bounds=(("tau_t", (0.2, 0.4)),), choices=(("score_query", ("mean",)),)
    )
    bounded = replace(study, search=search)
    with pytest.raises(UserError, match=r"the closest needs .*p 0\.2, score_query mean\)"):
        run(bounded, replace(OPTIONS, budget=0.01))
    for trial in run(bounded, OPTIONS).trials:
        assert trial.configuration.get("score_query") == "mean"
        assert trial.configuration.get("alpha_boost") == 1.2
        assert 0.2 <= float(trial.configuration.get("tau_t")) <= 0.4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": 0.0}, r"a FLOPs ratio in \(0, 1\], but got 0"),
        ({"budget": 1.5}, r"but got 1\.5"),
        ({"budget": 0.01}, r"the closest needs 0\.\d{4}, the smallest budget .*p 0\.2"),
        ({"trials": -1}, "trials is 0 or more"),
        ({"seed": -1}, "seed is 0 or more"),
        ({"workers": 0}, "workers is 1 or more"),
        ({"timeout": 0.0}, "timeout is a number of seconds above 0"),
        ({"sampler": "nsga2"}, "samplers are tpe, random"),
    ],
)
def test_options_that_will_not_do_are_the_users_mistake(
    study: Study, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(study, replace(OPTIONS, **changed))


def test_a_corrected_label_uses_every_answer_again(study_run: Study) -> None:
    before, recorder = load_summary(study_run), Recorder()
    first, *rest = study_run.questions
    changed = replace(study_run, questions=(replace(first, answer="green", tags={"place": "x"}), *rest))
    summary = run(changed, OPTIONS, recorder)
    assert any(
        "1 question changed (v0.mp4-top): answer. " in text and re.search(r"(\d+) of the \1 answers", text)
        for text in recorder.messages
    )
    # Another trial may be the best now: then it is measured.
    assert {phase for phase, _ in recorder.phases} <= {"held-out", "serving"}
    assert summary.study_hash != before.study_hash
    assert [trial.configuration for trial in summary.trials] == [
        trial.configuration for trial in before.trials
    ]


def test_a_version_that_asks_otherwise_takes_no_old_answer_for_a_new_one(
    study_run: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("pipeline.runtime", "tuner.planning.planner"):
        monkeypatch.setattr(f"{place}.SCORING_VERSION", 99)
    recorder = Recorder()
    summary = run(study_run, OPTIONS, recorder)
    (changed,) = [text for text in recorder.messages if "changed since" in text]
    assert "this version asks the model its questions otherwise. 0 of the" in changed
    assert dict(recorder.phases)["baseline"] == len(study_run.questions)
    assert len(summary.trials) == OPTIONS.trials
    with Store.open(default_database("tiny")) as store:
        assert "/99|" in store.require("tiny").fingerprint_base


def test_a_video_that_tuned_is_never_held_out_again(study_run: Study) -> None:
    recorder = Recorder()
    swapped = replace(study_run, held_out=frozenset({"v0.mp4", "v3.mp4"}))
    run(swapped, OPTIONS, recorder)
    assert any(text.startswith("Kept in the tune split: v0.mp4, for") for text in recorder.messages)
    with Store.open(default_database("tiny")) as store:
        record = store.require("tiny")
        assert {question.video for question in record.questions if question.split == "held_out"} == {"v3.mp4"}
        store.archive("tiny")
    named = replace(swapped, split=SplitSettings(held_out_videos=("v0.mp4", "v3.mp4")))
    with pytest.raises(UserError, match=r"held_out_videos names v0\.mp4, but a video that has tuned"):
        run(named, OPTIONS)
    with pytest.raises(UserError, match="no video is left to hold out"):
        run(replace(study_run, held_out=frozenset({"v0.mp4", "v1.mp4"})), OPTIONS)


def test_a_model_that_is_asked_in_another_way_is_refused_with_the_way_on(study_run: Study) -> None:
    with pytest.raises(UserError, match=r"scoring: words before, letter now\n.*tuner archive --study tiny"):
        run(replace(study_run, scoring="letter"), OPTIONS)
    config = Path(study_run.model, "config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"note": 1}))
    with pytest.raises(UserError, match="the model is another one"):
        run(study_run, OPTIONS)


def test_a_video_that_does_not_decode_is_named_or_skipped(study: Study) -> None:
    bad = study.videos[0]
    bad.path.write_bytes(b"no video at all")
    with pytest.raises(UserError, match=r"v0\.mp4.*\n.*--skip-bad-videos"):
        run(study, OPTIONS)
    skipping = replace(OPTIONS, trials=1, skip_bad_videos=True)
    summary = run(study, skipping)
    assert summary.skipped_videos == ("v0.mp4",)
    assert comparable(run(study, skipping)) == comparable(summary)
    assert comparable(load_summary(study)) == comparable(summary)
    with pytest.raises(UserError, match="--skip-bad-videos"):
        run(study, replace(OPTIONS, trials=1))


def test_a_model_that_is_no_llava_onevision_is_the_users_mistake(study: Study) -> None:
    with pytest.raises(UserError, match="siglip"):
        run(replace(study, model=study.text_encoder), OPTIONS)


def test_ctrl_c_ends_the_rung_and_the_same_command_goes_on(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(study, replace(OPTIONS, database="sqlite:///undisturbed.db"))
    record, batches = Loop.record, 0

    def interrupted(self: Loop, *values: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches in (1, 4, 6):
            signal.raise_signal(signal.SIGINT)
        return record(self, *values)

    monkeypatch.setattr(Loop, "record", interrupted)
    for _ in range(3):
        with pytest.raises(InterruptedRunError, match="the same command goes on") as ended:
            run(study, OPTIONS)
    assert re.search(r"with \d trials complete \(best so far: trial \d, .* % on tune", str(ended.value))
    assert comparable(run(study, OPTIONS)) == comparable(undisturbed)


@pytest.mark.soak  # 40 s; the loop's own tests kill it after every batch and before every write
def test_killed_at_any_moment_it_ends_as_if_undisturbed(study: Study) -> None:
    undisturbed = run(study, replace(OPTIONS, database="sqlite:///undisturbed.db"))
    code = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from tests.tuner.runs.test_run import OPTIONS, make_study
from tuner.runs.run import run
from tuner.records.store import Store

left = int(sys.argv[1])
def dying(name):
    write = getattr(Store, name)
    def once(self, *values, **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, *values, **named)
    setattr(Store, name, once)
for name in ("begin", "record", "propose", "select"):
    dying(name)
run(make_study(Path.cwd()), OPTIONS)
"""
    # Before the study is written, in the baseline, before a trial, between a trial and its answers.
    for writes in (0, 2, 1, 2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(writes)],
            check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert comparable(run(study, OPTIONS)) == comparable(undisturbed)


def test_after_the_timeout_what_is_there_is_measured(study: Study) -> None:
    now = iter(range(0, 10**6, 7))
    summary = run(study, replace(OPTIONS, trials=1000, timeout=60), clock=lambda: float(next(now)))
    assert 0 < len(summary.trials) < 20
    assert summary.best_held_out is not None


def test_status_is_read_from_the_records(study: Study) -> None:
    with pytest.raises(UserError, match="`tuner run` makes them"):
        load_summary(study)
    run(study, OPTIONS)
    with Store.open(default_database(study.name), create=False) as store:
        status = status_of(study, store, store.require(study.name))
    assert (status.baseline_answered, status.baseline_questions) == (12, 12)
    assert (status.trials_completed, status.trials_unfinished) == (4, 0)
    (search,) = status.searches
    assert (search.trials_asked, search.trials_completed) == (4, 4)
    assert search.best is not None
    assert search.held_out is not None


@pytest.mark.quick
@pytest.mark.parametrize(
    ("address", "variable", "name"),
    [
        ("ray://head:10001", None, "--address"),
        ("http://head:8265", None, "--address"),
        (None, "ray://head:10001", "RAY_ADDRESS"),
    ],
)
def test_an_address_for_clients_of_ray_is_refused_by_name_before_anything_is_computed(
    address: str | None,
    variable: str | None,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    with pytest.raises(
        UserError, match=rf"^{name} is auto or HOST:PORT .* `ray job submit --address http://"
    ):
        run(fakes.make_study(), RunOptions(budget=0.3, workers=2, address=address))
    assert list(tmp_path.iterdir()) == []


def test_ray_workers_give_what_this_process_gives(study_run: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    # Workers start in the working directory, from which a checkout that is not installed is not seen.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    alone = run(study_run, OPTIONS)
    shared = run(study_run, replace(OPTIONS, workers=2, trials=2, database="sqlite:///shared.db"))
    assert shared.trials[0].configuration == alone.trials[0].configuration
    assert comparable(shared)[1] == comparable(alone)[1]
    assert unmeasured(shared.trials[0].outcome) == unmeasured(alone.trials[0].outcome)
    assert shared.serving is not None
    assert shared.serving.measured is not None


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, tuner.runs.run, tuner.reporting.from_records, tuner.evaluation.loop; "
        "heavy = ('torch', 'ray', 'optuna', 'mlflow', 'transformers'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("pruned", [False, True], ids=["baseline", "pruned"])
def test_answers_that_are_not_numbers_end_the_run_and_are_not_recorded(
    study: Study, monkeypatch: pytest.MonkeyPatch, pruned: bool
) -> None:
    """At ae20304: NaN in the records, then a traceback of the database's."""
    if pruned:
        row_scores = packing.row_scores
        monkeypatch.setattr(packing, "row_scores", lambda *values: row_scores(*values) * float("nan"))
        expected = (
            r"attention of layer 1 \(counted from 0\) for question 'v\d.mp4-\w+' is not a finite number"
        )
    else:
        weights = study.folder / "model" / "model.safetensors"
        tensors = load_file(weights)
        tensors["language_model.model.norm.weight"][0] = float("nan")
        save_file(tensors, weights, metadata={"format": "pt"})
        expected = r"The model's answer to question 'v\d.mp4-\w+' is not a finite number"
    with pytest.raises(NotFiniteError, match=expected):
        run(study, OPTIONS)
    with Store.open(default_database("tiny")) as store:
        store.require("tiny")
        assert store.count_answers() == (12 if pruned else 0)
        assert (store.noise() is not None) == pruned  # of the baseline
        assert all(trial.outcome is None for trial in store.trials())


class Listener(Recorder):
    def __init__(self) -> None:
        super().__init__()

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_the_pooling_is_said_first_recorded_and_part_of_the_study(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(template / "videos", tmp_path / "videos")
    size = Size(layers=3, image=56)
    write_llava_video(tmp_path, size=size, settings={"mm_spatial_pool_mode": "bilinear"})
    study = replace(make_study(tmp_path), pooling="average")
    options = replace(OPTIONS, budget=1.0)
    said = "LLaVA-Video, average pooling to 3 x 3 (the checkpoint's config says bilinear)."
    for _ in range(2):  # encoding, then from the records
        progress = Listener()
        with prepared(study, options, progress) as session:
            setting = load_setting(session)
        assert progress.messages[0] == said
    assert (setting.pooling, setting.checkpoint_pooling) == ("average", "bilinear")
    assert (setting.dtype, setting.attention, setting.device) == ("float32", "sdpa", "cpu")
    assert setting.encoding == session.record.encoding
    for other in (None, "bilinear"):
        with (
            pytest.raises(UserError, match="pooling: average before, bilinear now"),
            prepared(replace(study, pooling=other), options, progress),
        ):
            pass


def load_setting(session: Session) -> Setting:
    found = setting_from(session.record.setting)
    assert found is not None
    return found


def test_weights_overwritten_since_are_another_model_pickles_too(study: Study) -> None:
    weights = load_file(f"{study.model}/model.safetensors")
    Path(study.model, "model.safetensors").unlink()
    torch.save(weights, f"{study.model}/pytorch_model.bin")
    with (
        pytest.raises(UserError, match=r"are pickles \(pytorch_model\.bin\)"),
        prepared(study, OPTIONS, Recorder()),
    ):
        pass
    study = replace(study, allow_pickle=True)
    with prepared(study, OPTIONS, Recorder()):
        pass
    weights[min(weights)] += 1
    torch.save(weights, f"{study.model}/pytorch_model.bin")
    with pytest.raises(UserError, match="the model is another one"), prepared(study, OPTIONS, Recorder()):
        pass
