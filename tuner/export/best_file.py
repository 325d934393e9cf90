"""best.json: a configuration with what was measured of it, self-contained, read by `pipeline.load`.

The numbers under `measured` come from the held-out videos, which had no part in choosing the configuration.
docs/production.md describes each field; `json_schema()` gives the machine's form.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline import strict_json
from pipeline.break_even import Serving, break_even
from pipeline.export_format import READABLE, SCHEMA, why_unreadable
from tuner.errors import UserError
from tuner.records.measurements import Profiled, ServingCost
from tuner.records.values import Look
from tuner.reporting.values import HeldOut, RunSummary, TagRow
from tuner.search.selection import level_of
from tuner.statistics.values import Guessing, Measured, Noise, Tested, Verdict
from tuner.statistics.wording import weak_baseline
from tuner.study.values import AnswerCost

# Packages that answers or the choice of the configuration depend on.
_VERSIONS_OF = ("adatp-tuner", "torch", "transformers", "numpy", "av", "decord", "optuna", "ray", "mlflow")

# Plans are exact; only the division leaves a rounding error.
_BUDGET_TOLERANCE = 1e-9

Range = tuple[float, float]


@dataclass(frozen=True)
class _Strict:
    """Unknown fields in a file are mistakes.

    Where a class takes its fields from a value of the tuner, the value's fields are the file's: renaming them
    changes the format.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}


@dataclass(frozen=True)
class BaselineNumbers(_Strict):
    """The unpruned model on the held-out split; `intervals` holds 95 % intervals by field."""

    accuracy: float
    intervals: dict[str, Range]
    # Only in files of older versions: measured at another time than the pruned model's.
    seconds_per_answer: float | None = None
    peak_bytes_mean: float | None = None
    peak_bytes_max: int | None = None


@dataclass(frozen=True)
class TagNumbers(_Strict):
    """The held-out questions with the tag `key`: `value`, unpruned (`baseline`) and at the configuration."""

    key: str
    value: str
    questions: int
    videos: int
    baseline: float
    accuracy: float
    difference: float
    interval: Range | None
    lost: int
    gained: int


@dataclass(frozen=True)
class TestedNumbers(_Strict, Tested):
    """A candidate's test; `bound` is a lower bound of the difference, wrong with probability `level`."""


@dataclass(frozen=True)
class LookNumbers(_Strict):
    """A look at the study's held-out videos, in the order they were taken.

    `level`: probability of error of its tests together; `candidates`: trials in the order they were tested.
    Files and looks of older versions have neither.
    """

    goal: str
    budget: float
    seed: int
    max_drop: str
    trials: int
    trial: int
    verdict: Verdict
    level: float | None = None
    candidates: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class WorthNumbers(_Strict):
    """Held-out accuracy of the exported configuration minus that of AdaTP's defaults at the same budget, with
    its 95 % interval; and what the study cost, in baseline passes.
    """

    difference: float
    interval: Range | None
    study_passes: float | None


@dataclass(frozen=True)
class NoiseNumbers(_Strict, Noise):
    """The unpruned model compared with itself in packs of another size: answers that changed, and the size of
    the change in log-probability.
    """


@dataclass(frozen=True)
class GuessingNumbers(_Strict, Guessing):
    """The unpruned model on all labelled questions with options; guessing answers the share `chance` right.

    `bound` is a one-sided 95 % lower bound of the model's accuracy.
    """


@dataclass(frozen=True)
class MeasuredNumbers(_Strict):
    """The exported configuration on the held-out split.

    `difference` is accuracy minus the baseline's on the same questions; `regressions`, `gained` and `flips`
    count questions; ratios are fractions of the unpruned cost.
    """

    # `part` in files of 0.1.0.
    split: Annotated[str, Field(validation_alias=AliasChoices("split", "part"))]
    questions: int
    videos: int
    accuracy: float
    difference: float
    regressions: int
    gained: int
    flops_ratio: float
    flops_ratio_end_to_end: float
    flops_ratio_visual: float
    flops_ratio_p95: float
    flops_ratio_max: float
    logprob_change: float
    intervals: dict[str, Range]
    p_value: float | None
    # Only in files of older versions: measured at another time than the unpruned model's.
    seconds_per_answer: float | None = None
    peak_bytes_mean: float | None = None
    peak_bytes_max: int | None = None
    flips: int | None = None
    mcnemar_p: float | None = None
    divergence: float | None = None
    by_tag: list[TagNumbers] = field(default_factory=list)


@dataclass(frozen=True)
class ServingNumbers(_Strict):
    """What a server that keeps videos pays, once per video and for each question.

    `break_even` is the number of questions per video up to which pruning is cheaper; null: any number.
    """

    break_even: float | None
    per_video_baseline: float
    per_video_best: float
    per_question_baseline: float
    per_question_best: float


@dataclass(frozen=True)
class ProfiledNumbers(_Strict, Profiled):
    """A held-out question's prefill in multiply-adds, as counted by torch.profiler and as planned."""


@dataclass(frozen=True)
class ServingEvidence(_Strict):
    """When pruning pays: in FLOPs as planned (multiply-adds), in seconds as measured on `device`, in bytes
    kept per video. What was not measured is null.
    """

    flops: ServingNumbers
    seconds: ServingNumbers | None
    device: str | None
    stored_bytes_baseline: float | None
    stored_bytes_best: float | None
    profiled: ProfiledNumbers | None


@dataclass(frozen=True)
class Checkpoint(_Strict):
    """A checkpoint, so that production finds it again.

    `id` is a Hugging Face id, a folder relative to best.json if it lies below that file's folder, or an
    absolute folder. `resolved` is where it was at the time of the export; `identity` is compared on loading.
    """

    id: str
    resolved: str
    revision: str | None
    identity: str | None = None


@dataclass(frozen=True)
class AnswerNumbers(_Strict):
    """What was answered to a held-out question; `asked` identifies its text, options and video.

    `unpruned` is the unpruned model's answer; null: the same.
    """

    question: str
    asked: str
    text: str
    unpruned: str | None = None


@dataclass(frozen=True)
class Provenance(_Strict):
    """Where the configuration comes from; nothing here changes an answer."""

    study: str
    study_hash: str
    trial: int
    trials: int
    seed: int
    tune_accuracy: float
    tune_flops_ratio: float
    mlflow_run: str | None
    versions: dict[str, str]
    # Answers that the model gave, and answers that trials shared through equal plans instead.
    evaluated_answers: int | None = None
    shared_answers: int | None = None
    # Whether a person chose the trial, not the search.
    chosen_by_hand: bool = False


@dataclass(frozen=True)
class Best(_Strict):
    """The file: first what to run, then its results, then where it comes from."""

    schema: str
    method: str
    parameters: dict[str, float]
    selection: dict[str, str | int | float]
    binds: str | None
    pruning_layers: list[int]
    layers: int
    model: Checkpoint
    text_encoder: Checkpoint
    frames: int
    scoring: str
    max_new_tokens: int
    labelled: bool
    budget: float
    measured: MeasuredNumbers
    baseline: BaselineNumbers
    provenance: Provenance
    serving: ServingEvidence | None = None
    # How it was measured: number format, attention backend, kind of device, pooling of patches (null if the
    # model has a single way), and the identity of everything that encodes videos. Missing in older files.
    dtype: str | None = None
    attention: str | None = None
    device: str | None = None
    pooling: str | None = None
    encoding: str | None = None
    # Whether the configuration is shown to lose no more than the margin, and whether it was exported although
    # it is not. Older files have no test.
    verdict: Verdict = "untested"
    max_drop: str | None = None
    margin: float | None = None
    tested: list[TestedNumbers] = field(default_factory=list)
    # `look`: which of the study's looks at its held-out videos the verdict is from, counted from 1.
    looks: list[LookNumbers] = field(default_factory=list)
    look: int = 1
    # Whether tuning was worth it; null where AdaTP's defaults do not fit the budget.
    over_defaults: WorthNumbers | None = None
    noise_floor: NoiseNumbers | None = None
    accepted_regressions: bool = False
    # The unpruned model against guessing, and whether the file was written although it does no better.
    guessing: GuessingNumbers | None = None
    accepted_weak_baseline: bool = False
    # Questions that are left out of all numbers, because they killed their workers: reasons by id.
    quarantined: dict[str, str] = field(default_factory=dict)
    # What `tuner verify` compares with; older files have none.
    answers: list[AnswerNumbers] = field(default_factory=list)


def export(
    summary: RunSummary,
    path: Path,
    *,
    mlflow_run: str | None = None,
    accept_regressions: bool = False,
    accept_weak_baseline: bool = False,
) -> Best:
    """Writes best.json for the best trial, completely or not at all; the same summary gives the same file.

    Errors: UserError if no configuration fits the budget, the best one is not shown to lose no more than the
    margin and regressions are not accepted, the unpruned model does no better than guessing and that is not
    accepted, or the file cannot be written.
    """
    best = describe(
        summary,
        path.resolve().parent,
        mlflow_run=mlflow_run,
        accept_regressions=accept_regressions,
        accept_weak_baseline=accept_weak_baseline,
    )
    write(best, path)
    return best


def write(best: Best, path: Path) -> None:
    """Writes the file, completely or not at all. Errors: UserError if it cannot be written."""
    values = dataclasses.asdict(best)
    # Last and a line each: there are thousands of them.
    answers = [
        json.dumps({name: text for name, text in answer.items() if text is not None}, ensure_ascii=False)
        for answer in values.pop("answers")
    ]
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    listed = ",".join(f"\n    {answer}" for answer in answers) + "\n  " if answers else ""
    write_whole(path, f'{text},\n  "answers": [{listed}]\n}}\n')


def describe(
    summary: RunSummary,
    folder: Path,
    *,
    mlflow_run: str | None = None,
    accept_regressions: bool = False,
    accept_weak_baseline: bool = False,
) -> Best:
    """What `export` writes, for a file in `folder`."""
    trial, held_out, setting = summary.best, summary.best_held_out, summary.setting
    if trial is None:
        raise UserError(_nothing_fits(summary))
    if held_out is None and summary.chosen_by_hand:
        raise UserError(_not_shown(summary))
    if held_out is None or setting is None:
        raise UserError(
            f"study {summary.study} is not finished: its best configuration has no held-out result yet."
        )
    largest = max(trial.outcome.flops_ratio, held_out.outcome.flops_ratio)
    # Only a person takes a trial from beyond the search's budget.
    budget = summary.budget if trial.within_budget else largest
    if largest > budget + _BUDGET_TOLERANCE:
        raise ValueError(
            f"An exported configuration must fit the budget {summary.budget}, but needs {largest}."
        )
    problems = []
    guessing = summary.guessing
    weak = guessing is not None and guessing.no_better
    if weak and guessing is not None and not accept_weak_baseline:
        problems.append(
            f"study {summary.study}: {weak_baseline(guessing)} `--accept-weak-baseline` exports all the same."
        )
    if summary.verdict != "shown" and not accept_regressions:
        problems.append(_not_shown(summary))
    if problems:
        raise UserError(problems)
    method = trial.configuration.build()
    selection = method.selection_options()
    return Best(
        schema=SCHEMA,
        method=method.name,
        parameters={
            name: float(value) for name, value in trial.configuration.parameters if name not in selection
        },
        selection=dict(selection),
        binds=summary.binds,
        pruning_layers=list(setting.pruning_layers),
        layers=setting.layers,
        model=_checkpoint(setting.model, setting.model_revision, folder, setting.model_identity),
        text_encoder=_checkpoint(
            setting.text_encoder, setting.text_encoder_revision, folder, setting.text_encoder_identity
        ),
        frames=setting.frames,
        scoring=setting.scoring,
        max_new_tokens=setting.max_new_tokens,
        labelled=setting.labelled,
        budget=budget,
        measured=_measured(held_out),
        baseline=_baseline(summary.baseline["held_out"], summary.baseline_cost),
        serving=None if summary.serving is None else _serving(summary.serving),
        provenance=Provenance(
            study=summary.study,
            study_hash=summary.study_hash,
            trial=trial.number,
            trials=len(summary.trials),
            seed=summary.seed,
            tune_accuracy=trial.outcome.accuracy,
            tune_flops_ratio=trial.outcome.flops_ratio,
            mlflow_run=mlflow_run,
            versions=versions(),
            evaluated_answers=summary.evaluated_answers,
            shared_answers=summary.shared_answers,
            chosen_by_hand=summary.chosen_by_hand,
        ),
        dtype=setting.dtype,
        attention=setting.attention,
        device=setting.device,
        pooling=setting.pooling,
        encoding=setting.encoding,
        verdict=summary.verdict,
        max_drop=summary.max_drop or None,
        margin=summary.margin,
        tested=[TestedNumbers(**dataclasses.asdict(candidate)) for candidate in summary.tested],
        looks=[_look(look) for look in summary.looks],
        look=summary.look,
        over_defaults=_worth(summary) if trial.within_budget else None,
        noise_floor=None if summary.noise is None else NoiseNumbers(**dataclasses.asdict(summary.noise)),
        accepted_regressions=summary.verdict != "shown",
        guessing=None if guessing is None else GuessingNumbers(**dataclasses.asdict(guessing)),
        accepted_weak_baseline=weak,
        quarantined=dict(summary.quarantined),
        answers=[
            AnswerNumbers(
                answer.question,
                answer.asked,
                answer.text,
                None if answer.unpruned == answer.text else answer.unpruned,
            )
            for answer in summary.answers
        ],
    )


def read(path: Path) -> Best:
    """A file that `export` wrote, of this version or an earlier one.

    Errors: UserError with everything that is wrong with it, or with the version alone where that is newer.
    """
    try:
        values = strict_json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid JSON: it is no UTF-8 text.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    unreadable = why_unreadable(values["schema"]) if isinstance(values, dict) and "schema" in values else None
    if unreadable is not None:
        raise UserError(f"{path} {unreadable}")
    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        problems = [
            f"{path}: {'.'.join(map(str, mistake['loc'])) or 'file'}: {mistake['msg']}"
            for mistake in error.errors()
        ]
        raise UserError(problems) from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of best.json in all its formats, the parameters' ranges derived from the methods' own
    fields. `pipeline/best.schema.json` holds it.
    """
    from pipeline.methods import METHODS
    from pipeline.methods import json_schema as method_schema

    schema = _adapter().json_schema()
    schema["$defs"] |= {name: method_schema(method) for name, method in METHODS.items()}
    schema["properties"]["schema"]["enum"] = list(READABLE)
    measured = schema["$defs"]["MeasuredNumbers"]
    measured["properties"]["part"] = {
        "deprecated": True,
        "description": "split, in format 1",
        "type": "string",
    }
    measured["required"].remove("split")
    measured["oneOf"] = [{"required": ["split"]}, {"required": ["part"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:{SCHEMA}", **schema}


def schema_text() -> str:
    """What `pipeline/best.schema.json` holds."""
    return json.dumps(json_schema(), indent=2) + "\n"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that answers or the choice depend on, if installed."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS_OF:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _adapter() -> TypeAdapter[Best]:
    return TypeAdapter(Best)


def _measured(held_out: HeldOut) -> MeasuredNumbers:
    outcome = held_out.outcome
    intervals = _intervals(accuracy=held_out.accuracy, difference=held_out.difference)
    if held_out.regression_rate is not None and held_out.regression_rate.interval is not None:
        rate = held_out.regression_rate.interval
        intervals["regressions"] = (rate.low * outcome.questions, rate.high * outcome.questions)
    return MeasuredNumbers(
        split=outcome.split,
        questions=outcome.questions,
        videos=outcome.videos,
        accuracy=outcome.accuracy,
        difference=held_out.difference.value,
        regressions=outcome.regressions,
        gained=outcome.gained,
        flops_ratio=outcome.flops_ratio,
        flops_ratio_end_to_end=outcome.flops_ratio_end_to_end,
        flops_ratio_visual=outcome.flops_ratio_visual,
        flops_ratio_p95=outcome.flops_ratio_p95,
        flops_ratio_max=outcome.flops_ratio_max,
        logprob_change=outcome.logprob_change,
        intervals=intervals,
        p_value=held_out.p_value,
        flips=held_out.flips,
        mcnemar_p=held_out.mcnemar_p,
        divergence=held_out.divergence,
        by_tag=[_tag(row) for row in held_out.by_tag],
        peak_bytes_mean=outcome.peak_bytes_mean,
        peak_bytes_max=outcome.peak_bytes_max,
    )


def _tag(row: TagRow) -> TagNumbers:
    values = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    interval = row.difference.interval
    values["difference"] = row.difference.value
    return TagNumbers(**values, interval=None if interval is None else (interval.low, interval.high))


def _baseline(accuracy: Measured, cost: AnswerCost | None) -> BaselineNumbers:
    return BaselineNumbers(
        accuracy.value,
        _intervals(accuracy=accuracy),
        peak_bytes_mean=None if cost is None else cost.peak_bytes_mean,
        peak_bytes_max=None if cost is None else cost.peak_bytes_max,
    )


def _serving(serving: ServingCost) -> ServingEvidence:
    measured, stored = serving.measured, serving.stored_bytes
    profiled = None if measured is None else measured.profiled
    return ServingEvidence(
        flops=_serving_numbers(serving.baseline, serving.best),
        seconds=None if measured is None else _serving_numbers(measured.baseline, measured.best),
        device=None if measured is None else measured.device,
        stored_bytes_baseline=None if stored is None else stored[0],
        stored_bytes_best=None if stored is None else stored[1],
        profiled=None if profiled is None else ProfiledNumbers(**dataclasses.asdict(profiled)),
    )


def _serving_numbers(baseline: Serving, best: Serving) -> ServingNumbers:
    questions = break_even(baseline, best)
    return ServingNumbers(
        break_even=questions if math.isfinite(questions) else None,
        per_video_baseline=baseline.per_video,
        per_video_best=best.per_video,
        per_question_baseline=baseline.per_question,
        per_question_best=best.per_question,
    )


def _intervals(**measured: Measured) -> dict[str, Range]:
    return {
        name: (change.interval.low, change.interval.high)
        for name, change in measured.items()
        if change.interval is not None
    }


def _checkpoint(
    reference: str, revision: str | None, folder: Path, identity: str | None = None
) -> Checkpoint:
    path = Path(reference)
    if not path.is_dir():
        return Checkpoint(reference, reference, revision, identity)
    resolved = path.resolve()
    # If the model lies below the file's folder, both can be moved together.
    portable = resolved.relative_to(folder).as_posix() if resolved.is_relative_to(folder) else str(resolved)
    return Checkpoint(portable, str(resolved), revision, identity)


def _nothing_fits(summary: RunSummary) -> str:
    message = f"study {summary.study} has no configuration within the budget {summary.budget:g} to export"
    if summary.smallest_reachable is not None:
        message += (
            f"; the smallest FLOPs ratio any configuration can reach is {summary.smallest_reachable:.4f}"
        )
    if summary.outside:
        message += (
            f"; of {len(summary.outside)} trials study.yaml does not allow the knobs or choices any more: "
            "`tuner run` searches on"
        )
    return message + "."


def _not_shown(summary: RunSummary) -> str:
    if summary.chosen_by_hand and not summary.tested and summary.best is not None:
        return (
            f"trial {summary.best.number} was not tested on the held-out videos: `tuner export --measure` "
            f"asks what is missing and tests it, which is look {summary.look} of this study (level "
            f"{100 * level_of('trial', summary.look):.2g} %)"
        )
    if summary.tested and summary.margin is not None:
        worst = max(summary.tested, key=lambda item: item.bound)
        found = (
            f"no configuration is shown to stay within {100 * summary.margin:.3g} points "
            f"(--max-drop {summary.max_drop}) of the unpruned model on the held-out videos: at trial "
            f"{worst.trial} the difference is {100 * worst.difference:+.1f} points, and it may be "
            f"{100 * worst.bound:+.1f}"
        )
    else:
        found = "no configuration was tested against the unpruned model on held-out videos"
    return (
        f"study {summary.study}: {found}. `tuner export --accept-regressions` exports the best "
        "configuration all the same, and best.json says so; or run again with more videos, a larger "
        "--max-drop or a larger budget."
    )


def write_whole(path: Path, text: str) -> None:
    """Writes a file that the user asked for, completely or not at all.

    Errors: UserError if it cannot be written.
    """
    try:
        _replace(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read; this file gets the usual permissions.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _look(look: Look) -> LookNumbers:
    values = dataclasses.asdict(look) | {"candidates": list(look.candidates)}
    del values["created"]
    return LookNumbers(**values)


def _worth(summary: RunSummary) -> WorthNumbers | None:
    found = summary.over_defaults
    if found is None:
        return None
    interval = None if found.interval is None else (found.interval.low, found.interval.high)
    return WorthNumbers(found.value, interval, None if summary.cost is None else summary.cost.passes)


if __name__ == "__main__":
    print(schema_text(), end="")  # noqa: T201 - the file's content
