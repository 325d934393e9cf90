"""What MLflow's runs hold of a search and its trials: parameters, metrics, tags and tables."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tuner.records.measurements import ServingCost
from tuner.reporting.summary import accuracy_name
from tuner.reporting.values import HeldOut, PrunedTrial, RegressionRow, RunSummary, TagRow, Trial
from tuner.statistics.values import Measured
from tuner.statistics.wording import weak_baseline
from tuner.study.values import AnswerCost, Configuration, Outcome

REGRESSIONS = "regressions.json"
BY_TAG = "by_tag.json"
# Tags by which runs are found again. The owner is told of records on a shared database.
KIND, STUDY, TRIAL, OWNER = "adatp.kind", "adatp.study_hash", "adatp.trial", "adatp.owner"


@dataclass(frozen=True)
class Content:
    """Everything that a run should hold."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Of all of it: equal for equal content."""
        text = json.dumps([dict(self.params), dict(self.metrics), dict(self.tags)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(summary: RunSummary) -> dict[str, str]:
    """The tags that tell a search from the others of its study."""
    return {
        "budget": f"{summary.budget:g}",
        "seed": str(summary.seed),
        "goal": summary.goal,
        "sampler": summary.sampler,
        "space": summary.space,
    }


def trial_content(summary: RunSummary, trial: Trial) -> Content:
    """Of a complete trial."""
    outcome = trial.outcome
    metrics = _outcome_metrics(outcome)
    roles = []
    for role, chosen, held_out in (
        ("best", summary.best, summary.best_held_out),
        ("defaults", summary.defaults, summary.defaults_held_out),
    ):
        if chosen is not None and chosen.number == trial.number:
            roles.append(role)
            metrics |= _held_out_metrics(held_out)
    if any(item.number == trial.number for item in summary.above):
        roles.append("above")
    if trial in summary.outside:
        roles.append("outside")
    return Content(
        params=knob_params(trial.configuration),
        metrics=metrics,
        tags={"role": " ".join(roles) or "trial", "within_budget": str(trial.within_budget).lower()},
    )


def knob_params(configuration: Configuration) -> dict[str, str]:
    """The method, its knobs and choices."""
    knobs = {name: _readable(value) for name, value in configuration.parameters}
    return {"method": configuration.method} | knobs


def pruned_content(pruned: PrunedTrial) -> Content:
    """Of a pruned trial: without accuracy, which would be about some of the videos only."""
    return Content(
        params=knob_params(pruned.configuration),
        metrics={"flops_ratio": pruned.binding_ratio, "stopped_videos": float(pruned.videos)},
        tags={"role": "stopped", "stopped_by": f"trial {pruned.by:03d}"},
    )


def search_content(summary: RunSummary, links: Sequence[str], *, ended: bool) -> Content:
    """Of the search's run.

    ended: only then the chosen knobs are among its parameters, which cannot be changed.
    """
    params = {"study": summary.study} | identity(summary)
    if ended and summary.best is not None:
        params |= knob_params(summary.best.configuration)
    if summary.setting is not None:
        setting = summary.setting
        params |= {
            "model": setting.model[-500:],
            "text_encoder": setting.text_encoder[-500:],
            "frames": str(setting.frames),
            "scoring": setting.scoring,
        }
        if setting.model_revision is not None:
            params["model_revision"] = setting.model_revision
    metrics = {
        "trials": float(len(summary.trials)),
        "refused": float(summary.infeasible),
        "evaluated_answers": float(summary.evaluated_answers),
        "shared_answers": float(summary.shared_answers),
    }
    for split, accuracy in summary.baseline.items():
        metrics |= _with_interval(f"baseline_{split}_accuracy", accuracy)
    metrics |= _held_out_metrics(summary.best_held_out)
    if summary.baseline_cost is not None:
        metrics |= _memory_metrics("baseline_held_out_", summary.baseline_cost)
    if summary.serving is not None:
        metrics |= _serving_metrics(summary.serving)
    metrics |= _verdict_metrics(summary)
    tags = identity(summary) | {
        "max_drop": summary.max_drop or "none",
        "verdict": summary.verdict,
        "best_trial": "none" if summary.best is None else str(summary.best.number),
        "mlflow.note.content": _note(summary, links),
    }
    return Content(params, _finite(metrics), tags)


def _verdict_metrics(summary: RunSummary) -> dict[str, float]:
    """What the verdict is based on: the margin, the last test and the noise floor; and the study's cost."""
    metrics = {
        "stopped_trials": float(len(summary.pruned)),
        "trials_above": float(len(summary.above)),
        "quarantined_questions": float(len(summary.quarantined)),
    }
    if summary.cost is not None:
        metrics |= {
            "study_passes": summary.cost.passes,
            "study_passes_language": summary.cost.passes_language,
            "study_passes_naive": summary.cost.naive_passes,
            "study_raced_share": summary.cost.spared_share,
            "study_shared_share": summary.cost.shared_share,
        }
    use = summary.cache_use
    if use is not None:
        rates = {"study_feature_hit_rate": use.feature_hit_rate, "study_prefix_hit_rate": use.prefix_hit_rate}
        metrics |= {name: rate for name, rate in rates.items() if rate is not None}
    if summary.margin is not None:
        metrics["margin"] = summary.margin
    if summary.provable_drop is not None:
        metrics["provable_drop"] = summary.provable_drop
    if summary.tested:
        metrics["tested_candidates"] = float(len(summary.tested))
        metrics["tested_bound"] = (summary.test_of_best or summary.tested[0]).bound
    guessing = summary.guessing
    if guessing is not None:
        metrics |= {"baseline_option_accuracy": guessing.accuracy, "baseline_chance": guessing.chance}
    noise = summary.noise
    if noise is not None:
        metrics |= {
            "noise_flips": float(noise.flips),
            "noise_questions": float(noise.questions),
            "noise_logprob_mean": noise.logprob_mean,
            "noise_logprob_max": noise.logprob_max,
        }
    return metrics


def _outcome_metrics(outcome: Outcome) -> dict[str, float]:
    return _finite(
        {
            field.name: float(getattr(outcome, field.name))
            for field in fields(outcome)
            if field.name
            not in ("split", "questions", "videos", "peak_bytes_mean", "peak_bytes_max", "graded")
        }
        | ({} if outcome.graded is None else {"graded": outcome.graded})
        | _memory_metrics("", outcome.per_answer)
    )


def _memory_metrics(prefix: str, cost: AnswerCost) -> dict[str, float]:
    """Without seconds: stored answers were timed at different moments, so their seconds do not compare."""
    metrics: dict[str, float] = {}
    if cost.peak_bytes_mean is not None and cost.peak_bytes_max is not None:
        metrics[f"{prefix}peak_bytes_mean"] = cost.peak_bytes_mean
        metrics[f"{prefix}peak_bytes_max"] = float(cost.peak_bytes_max)
    return metrics


def _serving_metrics(serving: ServingCost) -> dict[str, float]:
    """Without a break-even if pruning pays for any number of questions, because a chart cannot show it."""
    metrics = {
        "break_even_questions_flops": serving.break_even,
        "flops_per_video_baseline": serving.baseline.per_video,
        "flops_per_video_best": serving.best.per_video,
        "flops_per_question_baseline": serving.baseline.per_question,
        "flops_per_question_best": serving.best.per_question,
    }
    measured = serving.measured
    if measured is not None:
        metrics |= {
            "break_even_questions_seconds": measured.break_even,
            "seconds_per_video_baseline": measured.baseline.per_video,
            "seconds_per_video_best": measured.best.per_video,
            "seconds_per_question_baseline": measured.baseline.per_question,
            "seconds_per_question_best": measured.best.per_question,
        }
        if measured.profiled is not None:
            profile = measured.profiled
            metrics |= {
                "profiled_flops_baseline": float(profile.counted_baseline),
                "profiled_flops_best": float(profile.counted_best),
                "planned_flops_baseline": float(profile.planned_baseline),
                "planned_flops_best": float(profile.planned_best),
            }
    if serving.stored_bytes is not None:
        names = ("stored_bytes_per_video_baseline", "stored_bytes_per_video_best")
        metrics |= dict(zip(names, serving.stored_bytes, strict=True))
    return metrics


def _held_out_metrics(held_out: HeldOut | None) -> dict[str, float]:
    if held_out is None:
        return {}
    outcome = held_out.outcome
    metrics = {
        "held_out_flops_ratio": outcome.flops_ratio,
        "held_out_flops_ratio_end_to_end": outcome.flops_ratio_end_to_end,
        "held_out_regressions": float(outcome.regressions),
        "held_out_gained": float(outcome.gained),
        "held_out_flips": float(held_out.flips),
        "held_out_logprob_change": outcome.logprob_change,
    }
    for name in ("p_value", "mcnemar_p", "divergence"):
        value = getattr(held_out, name)
        if value is not None:
            metrics[f"held_out_{name}"] = value
    metrics |= _memory_metrics("held_out_", outcome.per_answer)
    metrics |= _with_interval("held_out_accuracy", held_out.accuracy)
    metrics |= _with_interval("held_out_difference", held_out.difference)
    return _finite(metrics)


def _with_interval(name: str, measured: Measured) -> dict[str, float]:
    values = {name: measured.value}
    if measured.interval is not None:
        values |= {f"{name}_low": measured.interval.low, f"{name}_high": measured.interval.high}
    return values


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without infinite and undefined values, at which charts stop."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _readable(value: float | str | int) -> str:
    """With six digits, which suffice to read and to plot; best.json and the records have all digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _note(summary: RunSummary, links: Sequence[str]) -> str:
    """The run's description, as Markdown."""
    # The page shows the first lines, and the rest after a click.
    lines = ["Open " + ", ".join(links) + "."] if links else []
    if summary.best is None or summary.best_held_out is None:
        lines.append("No configuration within the budget is measured yet.")
    else:
        outcome = summary.best_held_out.outcome
        lines.append(
            f"Best within the budget: trial {summary.best.number}, "
            f"{accuracy_name(summary)} {_percent(summary.best_held_out.accuracy)} at "
            f"{100 * outcome.flops_ratio:.1f} % of the prefill FLOPs "
            f"({100 * outcome.flops_ratio_end_to_end:.1f} % end to end), "
            f"{outcome.regressions} regressions. Within {summary.max_drop or 'any drop'} of the unpruned "
            f"model: {summary.verdict.replace('_', ' ')}."
        )
    if summary.guessing is not None and not summary.guessing.shown_better:
        lines.append(weak_baseline(summary.guessing))
    about = f"Study `{summary.study}`, version `{summary.study_hash[:8]}`, budget {summary.budget:g}."
    unpruned = summary.baseline.get("held_out")
    labelled = summary.setting is None or summary.setting.labelled
    if labelled and unpruned is not None and math.isfinite(unpruned.value):
        about += f" Unpruned accuracy on held-out videos: {_percent(unpruned)}."
    lines.append(about)
    if summary.best is not None:
        knobs = summary.best.configuration.parameters
        rows = "".join(f"\n| {name} | {_readable(value)} |" for name, value in knobs)
        lines.append("| knob | value |\n| --- | --- |" + rows)
    return "\n\n".join(lines)


def _percent(measured: Measured) -> str:
    text = f"{100 * measured.value:.1f} %"
    if measured.interval is not None:
        text += f" ({100 * measured.interval.low:.1f} to {100 * measured.interval.high:.1f})"
    return text


def tables(summary: RunSummary) -> dict[str, str]:
    """Tables by file name; the table by tag only if questions have tags."""
    found = {REGRESSIONS: _regressions(summary.regressions)}
    if summary.best_held_out is not None and summary.best_held_out.by_tag:
        found[BY_TAG] = _by_tag(summary.best_held_out.by_tag)
    return found


def _regressions(rows: Sequence[RegressionRow]) -> str:
    tags = sorted({tag for row in rows for tag in row.tags})
    # Both answers first: the interface shows six columns at a time.
    first = ["question", "text", "answer", "baseline_text", "pruned_text"]
    others = [field.name for field in fields(RegressionRow)]
    columns = [*first, *(name for name in others if name not in (*first, "tags"))]
    data = [
        [_cell(getattr(row, name)) for name in columns] + [row.tags.get(tag, "") for tag in tags]
        for row in rows
    ]
    return _table([*columns, *(f"tag {tag}" for tag in tags)], data)


def _by_tag(rows: Sequence[TagRow]) -> str:
    columns = [field.name for field in fields(TagRow)]
    data = []
    for row in rows:
        change = row.difference
        ends = [None, None] if change.interval is None else [change.interval.low, change.interval.high]
        values = [change.value if name == "difference" else getattr(row, name) for name in columns]
        data.append([_cell(value) for value in (*values, *ends)])
    return _table([*columns, "difference_low", "difference_high"], data)


def _table(columns: Sequence[str], data: Sequence[Sequence[Any]]) -> str:
    """In the form that the interface shows as a table: pandas' "split"."""
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False)


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        return " | ".join(value)
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) else value
