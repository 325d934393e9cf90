"""The tables: what was asked of the model, what it answered, and which configurations were tried.

What was asked, whatever study asked it; only ever added to:

video       the bytes of a video
prompt      a question about a video, as the model sees it: its text and its options
encoding    how the model is asked: what every fingerprint of a study covers
answer      one per (prompt, fingerprint): studies, and configurations with the same plan, share it
video_use   whether a video ever tuned a study, and whether it was ever looked at as held out

What a team wants to know, a view of the above that may change:

study           the definition of a study; at most one of a name is in use, the others are archived
study_video     a video of the study under its name, and what its plans need
study_question  a question of the study: its label, tags and split, and what its plans need
quarantine      a question that is left out because it kills its workers

What was tried:

search      a budget, a seed, a search space and how many trials were asked for
trial       a row of knobs; its answers are found through the fingerprints of its plans
infeasible  a proposal over the budget: it cost no model time and is no trial
selection   the trial a search chose on the tune split
look        what held-out videos said of a search's candidates
measured    a configuration on the held-out split
noise, serving, timed, cache_use, model_use, inspection, sensitivity: what else was measured of a study
lease       which process may write to a study, with a number that grows with each holder

An outcome (accuracy, FLOPs ratios, ...) is derived from the answers, the labels and the plans, and written in
the same transaction as the last answer it needs, so that SQL and the dashboards need not recompute it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# The last migration in `migrations/versions`: the tables below are what it leaves.
SCHEMA_REVISION = "0005"

# Hexadecimal digits of a fingerprint: 128 bits of the pipeline's sha256, plenty for millions of answers.
FINGERPRINT_DIGITS = 32

# Characters of a study owner's name.
OWNER_LENGTH = 100

metadata = MetaData()

_TIME = DateTime(timezone=True)


def _now() -> datetime:
    return datetime.now(UTC)


def _column(*arguments: Any, **options: Any) -> Column[Any]:
    """A column without empty values."""
    return Column(*arguments, nullable=False, **options)


def _key() -> Column[Any]:
    return Column("id", Integer, primary_key=True)


def _reference(table: str, **options: Any) -> Column[Any]:
    return _column(f"{table}_id", ForeignKey(f"adatp_{table}.id"), **options)


def _owner(**options: Any) -> Column[Any]:
    """Whose study it is, as `tuner.records.ownership` says; "": nobody's in particular."""
    return _column("owner", String(OWNER_LENGTH), server_default="", **options)


def _created() -> Column[Any]:
    return _column("created", _TIME, default=_now)


# The bytes of a video.
video_table = Table(
    "adatp_video",
    metadata,
    _key(),
    # sha256 of the file.
    _column("content", String(64), unique=True),
)

# A question about a video as the model sees it; how it is rendered is part of every fingerprint.
prompt_table = Table(
    "adatp_prompt",
    metadata,
    _key(),
    _reference("video"),
    # `tuner.records.values.prompt_hash` of the two that follow.
    _column("hash", String(64)),
    _column("text", Text),
    # None: a free answer.
    Column("options", JSON(none_as_null=True)),
    UniqueConstraint("video_id", "hash"),
)

# How the model is asked: model, preprocessing, scoring and longest answer.
encoding_table = Table(
    "adatp_encoding",
    metadata,
    _key(),
    # What every fingerprint covers besides the method and its plan.
    _column("fingerprint_base", Text, unique=True),
)

# What the model said to one prompt, asked in one way.
answer_table = Table(
    "adatp_answer",
    metadata,
    _key(),
    _reference("prompt"),
    _column("fingerprint", String(FINGERPRINT_DIGITS)),
    _reference("encoding"),
    _column("text", Text),
    Column("option", Integer),
    Column("option_logprobs", JSON(none_as_null=True)),
    Column("logprob", Double),
    # Visual tokens kept at each pruning.
    _column("kept", JSON),
    _column("seconds", Double),
    Column("peak_bytes", BigInteger),
    UniqueConstraint("prompt_id", "fingerprint"),
)

# When a video first tuned an owner's study of this name, and when it was first looked at as held out; never
# removed or changed, whatever becomes of the study.
video_use_table = Table(
    "adatp_video_use",
    metadata,
    _key(),
    _column("study", String(200)),
    _reference("video"),
    Column("tuned", _TIME),
    Column("held_out", _TIME),
    _owner(),
    UniqueConstraint("study", "owner", "video_id"),
)

# The definition of a study as it was last run. At most one row per name and owner is in use: the others were
# archived.
study_table = Table(
    "adatp_study",
    metadata,
    _key(),
    _column("name", String(200)),
    _column("hash", String(64)),
    # What the hash covers, the questions left out: they are rows of their own.
    _column("parts", JSON),
    # What else study.yaml says, as `tuner.records.values.definition` writes it; empty for a study that was
    # migrated and not run since.
    _column("definition", JSON),
    # How the model is called and its shape: plans, FLOPs and exports need no model after this.
    _column("setting", JSON),
    _column("shape", JSON),
    _reference("encoding"),
    # With the model's identity in `parts`: tells a changed checkpoint without loading it.
    _column("text_encoder_identity", Text),
    # Videos left out because they cannot be read: name, reason and content of each.
    _column("skipped", JSON),
    _created(),
    # When the definition last changed.
    Column("revised", _TIME),
    Column("archived", _TIME),
    _owner(),
    Index(
        "adatp_study_in_use",
        "name",
        "owner",
        unique=True,
        sqlite_where=text("archived IS NULL"),
        postgresql_where=text("archived IS NULL"),
    ),
)

# A video of a study, and what the plans of its questions share.
study_video_table = Table(
    "adatp_study_video",
    metadata,
    _key(),
    _reference("study"),
    _reference("video"),
    _column("name", Text),
    _column("frames", Integer),
    _column("cells", Integer),
    _column("trailing", Integer),
    # float64 (frames - 1,), little-endian
    _column("frame_similarity", LargeBinary),
    UniqueConstraint("study_id", "name"),
)

# A question of a study, and what only its own plan needs.
study_question_table = Table(
    "adatp_study_question",
    metadata,
    _key(),
    _reference("study"),
    _reference("study_video", index=True),
    _reference("prompt"),
    _column("name", Text),
    _column("position", Integer),
    # "tune" or "held_out"
    _column("split", String(8)),
    # The label; None in a study without labels.
    Column("answer", Text),
    _column("tags", JSON),
    _column("text_before", Integer),
    _column("text_after", Integer),
    # Those of text_after that are the question itself; None where that was not recorded yet.
    Column("question_tokens", Integer),
    # float64 (frames,), little-endian
    _column("frame_relevance", LargeBinary),
    UniqueConstraint("study_id", "name"),
    UniqueConstraint("study_id", "position"),
)

# A prompt that a study leaves out from then on, because asking it killed its worker twice.
quarantine_table = Table(
    "adatp_quarantine",
    metadata,
    _key(),
    _reference("study"),
    _reference("prompt"),
    _column("reason", Text),
    _created(),
    UniqueConstraint("study_id", "prompt_id"),
)

# Which process may write to an owner's study of this name; the row stays when the lease is given back.
lease_table = Table(
    "adatp_lease",
    metadata,
    _column("study", String(200), primary_key=True),
    _owner(primary_key=True),
    # Grows with each holder: a process with a smaller one has lost the lease and may write no more.
    _column("token", Integer),
    # JSON of `tuner.records.lease.Holder`; None: nobody.
    Column("holder", Text),
    Column("host", Text),
    # By the server's clock.
    Column("expires", _TIME),
)

# What `tuner run` was asked for.
search_table = Table(
    "adatp_search",
    metadata,
    _key(),
    _reference("study"),
    # "budget": the best within it; "max_drop": the cheapest that holds, and then the budget is 1.
    _column("goal", String(16)),
    _column("budget", Double),
    _column("seed", Integer),
    # What the search space is spanned by: "budget" or "knobs".
    _column("space", String(16)),
    _column("sampler", String(16)),
    # The margin asked for last, as `tuner.statistics.margin.MaxDrop` writes it.
    _column("max_drop", String(32)),
    # The most trials ever asked for.
    _column("trials", Integer),
    _created(),
    _column("used", _TIME, default=_now),
    UniqueConstraint("study_id", "goal", "budget", "seed", "space", "sampler"),
)


def _knobs() -> list[Column[Any]]:
    """AdaTP's five knobs by name; what else the method was told stands in `options`."""
    return [
        _column("method", String(32)),
        Column("tau_s", Double),
        Column("tau_t", Double),
        Column("alpha_boost", Double),
        Column("gamma_cap", Double),
        Column("p", Double),
        _column("options", JSON),
    ]


def _outcome() -> list[Column[Any]]:
    """`tuner.study.values.Outcome`; empty until every answer is there."""
    return [
        Column("questions", Integer),
        Column("videos", Integer),
        Column("accuracy", Double),
        Column("flops_ratio", Double),
        Column("flops_ratio_end_to_end", Double),
        Column("flops_ratio_visual", Double),
        Column("flops_ratio_p95", Double),
        Column("flops_ratio_max", Double),
        Column("regressions", Integer),
        Column("gained", Integer),
        Column("logprob_change", Double),
        Column("seconds", Double),
        Column("peak_bytes_mean", Double),
        Column("peak_bytes_max", BigInteger),
        Column("graded", Double),
    ]


# A configuration on the tune split; without an outcome it is unfinished.
trial_table = Table(
    "adatp_trial",
    metadata,
    _key(),
    _reference("study"),
    _reference("search"),
    _column("number", Integer),
    # The larger of the tune and the held-out split's FLOPs ratio: what the budget binds.
    _column("binding_ratio", Double),
    # Why it was asked for: "search", or "above" for a configuration beyond the budget that the front shows.
    _column("purpose", String(16)),
    # A pruned trial: the completed trial with the largest share in what it was compared with and beaten by,
    # and videos judged until then.
    Column("pruned_by", Integer),
    Column("pruned_videos", Integer),
    _created(),
    Column("completed", _TIME),
    *_knobs(),
    *_outcome(),
    UniqueConstraint("study_id", "number"),
)

# A proposal over the budget.
infeasible_table = Table(
    "adatp_infeasible",
    metadata,
    _key(),
    _reference("search"),
    # The number the trial would have had, and which attempt at it this was.
    _column("number", Integer),
    _column("attempt", Integer),
    # The sampler's own parameters: an unreachable target is not a row of knobs.
    _column("proposed", JSON),
    _column("binding_ratio", Double),
    *_knobs(),
    UniqueConstraint("search_id", "number", "attempt"),
)

# What a search chose after so many completed trials of the study.
selection_table = Table(
    "adatp_selection",
    metadata,
    _key(),
    _reference("search"),
    _column("trials", Integer),
    _reference("trial"),
    _created(),
    UniqueConstraint("search_id", "trials"),
)

# The held-out split asked of what a search came to: every look that was taken, in order; never changed
# or removed. Levels of tests hold for the looks that were planned: who sees one can move the next.
look_table = Table(
    "adatp_look",
    metadata,
    _key(),
    _reference("study", index=True),
    _reference("search"),
    # Of the definition whose held-out split it was.
    _column("study_hash", String(64)),
    _column("goal", String(16)),
    _column("budget", Double),
    _column("seed", Integer),
    _column("max_drop", String(32)),
    # Significance level of the test; None where it was not recorded.
    Column("level", Double),
    # Trial numbers in the order they were tested.
    _column("candidates", JSON),
    # Completed trials of the study then, and the number of the one that was chosen.
    _column("trials", Integer),
    _column("trial", Integer),
    _column("verdict", String(16)),
    _created(),
)

# A configuration on the held-out split, all of it answered.
measured_table = Table(
    "adatp_measured",
    metadata,
    _key(),
    _reference("study"),
    # sha256 of the configuration as canonical JSON.
    _column("configuration", String(64)),
    _created(),
    *_knobs(),
    *_outcome(),
    UniqueConstraint("study_id", "configuration"),
)

# The unpruned model against itself, asked in packs of another size: what no configuration can beat.
noise_table = Table(
    "adatp_noise",
    metadata,
    _key(),
    _reference("study"),
    _column("questions", Integer),
    _column("videos", Integer),
    # Answers that changed.
    _column("flips", Integer),
    # Change of the graded signal's log-probability: mean of its size, and the largest.
    _column("logprob_mean", Double),
    _column("logprob_max", Double),
    _created(),
    UniqueConstraint("study_id"),
)

# What a server pays for a configuration and for the unpruned model beside it, on one machine.
serving_table = Table(
    "adatp_serving",
    metadata,
    _key(),
    _reference("study"),
    # As in `measured_table`.
    _column("configuration", String(64)),
    # By `pipeline.measure.machine`, which is told without loading a model; `device` is what the model ran on.
    _column("machine", String(200)),
    _column("device", Text),
    _column("questions", Integer),
    _column("value_bytes", Integer),
    # Parts of `pipeline.break_even.Serving` in seconds.
    _column("baseline", JSON),
    _column("best", JSON),
    # `tuner.records.measurements.Profiled`; empty where the profiler's pass did not fit into memory.
    _column("profiled", JSON),
    _created(),
    UniqueConstraint("study_id", "configuration", "machine"),
)

# `Timed`: a configuration and the unpruned model, asked in turns on one machine.
timed_table = Table(
    "adatp_timed",
    metadata,
    _key(),
    _reference("study"),
    # As in `measured_table`.
    _column("configuration", String(64)),
    # As in `serving_table`.
    _column("machine", String(200)),
    _column("device", Text),
    _column("questions", Integer),
    _column("seconds", Double),
    _column("baseline_seconds", Double),
    _created(),
    UniqueConstraint("study_id", "configuration", "machine"),
)

# `CacheUse`: sums over the study; of one that is older than this table, since then.
cache_use_table = Table(
    "adatp_cache_use",
    metadata,
    _key(),
    _reference("study"),
    _column("features_in_memory", BigInteger),
    _column("features_read", BigInteger),
    _column("features_computed", BigInteger),
    _column("prefixes_reused", BigInteger),
    _column("prefixes_built", BigInteger),
    UniqueConstraint("study_id"),
)

# `ModelUse`: sums over what was asked for a trial, or of one kind beside the trials.
model_use_table = Table(
    "adatp_model_use",
    metadata,
    _key(),
    _reference("study"),
    # `tuner.evaluation.tasks.Kind`
    _column("kind", String(16)),
    # The trial's number; -1 for other kinds, for no two NULLs are the same.
    _column("trial", Integer),
    _column("answers", BigInteger),
    _column("seconds", Double),
    UniqueConstraint("study_id", "kind", "trial"),
)

# What pruning with a configuration does to the videos, as `tuner.reporting.inspection` packs it.
inspection_table = Table(
    "adatp_inspection",
    metadata,
    _key(),
    _reference("study"),
    # As in `measured_table`.
    _column("configuration", String(64)),
    # Of the definition it was made for.
    _column("study_hash", String(64)),
    _column("content", LargeBinary),
    _created(),
    UniqueConstraint("study_id", "configuration"),
)

# The last sensitivity study at a budget.
sensitivity_table = Table(
    "adatp_sensitivity",
    metadata,
    _key(),
    _reference("study"),
    _column("budget", Double),
    _column("study_hash", String(64)),
    # `tuner.sensitivity.results.Sensitivity` as JSON.
    _column("found", Text),
    _created(),
    UniqueConstraint("study_id", "budget"),
)
