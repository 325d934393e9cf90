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
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# The last migration in `migrations/versions`: the tables below are what it leaves.
SCHEMA_REVISION = "0004"

# Hexadecimal digits of a fingerprint: 128 bits of the pipeline's sha256, plenty for millions of answers.
FINGERPRINT_DIGITS = 32


def _now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of the tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[Any]: JSON,
        datetime: DateTime(timezone=True),
    }


class VideoRow(Base):
    """The bytes of a video."""

    __tablename__ = "adatp_video"
    id: Mapped[int] = mapped_column(primary_key=True)
    # sha256 of the file.
    content: Mapped[str] = mapped_column(String(64), unique=True)


class PromptRow(Base):
    """A question about a video as the model sees it; how it is rendered is part of every fingerprint."""

    __tablename__ = "adatp_prompt"
    __table_args__ = (UniqueConstraint("video_id", "hash"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    video_id: Mapped[int] = mapped_column(ForeignKey("adatp_video.id"))
    # `tuner.records.values.prompt_hash` of the two that follow.
    hash: Mapped[str] = mapped_column(String(64))
    text: Mapped[str] = mapped_column(Text)
    # None: a free answer.
    options: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))


class EncodingRow(Base):
    """How the model is asked: model, preprocessing, scoring and longest answer."""

    __tablename__ = "adatp_encoding"
    id: Mapped[int] = mapped_column(primary_key=True)
    # What every fingerprint covers besides the method and its plan.
    fingerprint_base: Mapped[str] = mapped_column(Text, unique=True)


class AnswerRow(Base):
    """What the model said to one prompt, asked in one way."""

    __tablename__ = "adatp_answer"
    __table_args__ = (UniqueConstraint("prompt_id", "fingerprint"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("adatp_prompt.id"))
    fingerprint: Mapped[str] = mapped_column(String(FINGERPRINT_DIGITS))
    encoding_id: Mapped[int] = mapped_column(ForeignKey("adatp_encoding.id"))
    text: Mapped[str] = mapped_column(Text)
    option: Mapped[int | None]
    option_logprobs: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    logprob: Mapped[float | None]
    # Visual tokens kept at each pruning.
    kept: Mapped[list[Any]]
    seconds: Mapped[float]
    peak_bytes: Mapped[int | None] = mapped_column(BigInteger)


class VideoUseRow(Base):
    """When a video first tuned a study of this name, and when it was first looked at as held out; never
    removed or changed, whatever becomes of the study.
    """

    __tablename__ = "adatp_video_use"
    __table_args__ = (UniqueConstraint("study", "video_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study: Mapped[str] = mapped_column(String(200))
    video_id: Mapped[int] = mapped_column(ForeignKey("adatp_video.id"))
    tuned: Mapped[datetime | None]
    held_out: Mapped[datetime | None]


class StudyRow(Base):
    """The definition of a study as it was last run. At most one row per name is in use: the others were
    archived.
    """

    __tablename__ = "adatp_study"
    __table_args__ = (
        Index(
            "adatp_study_in_use",
            "name",
            unique=True,
            sqlite_where=text("archived IS NULL"),
            postgresql_where=text("archived IS NULL"),
        ),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    hash: Mapped[str] = mapped_column(String(64))
    # What the hash covers, the questions left out: they are rows of their own.
    parts: Mapped[dict[str, Any]]
    # What else study.yaml says, as `tuner.records.values.definition` writes it; empty for a study that was
    # migrated and not run since.
    definition: Mapped[dict[str, Any]]
    # How the model is called and its shape: plans, FLOPs and exports need no model after this.
    setting: Mapped[dict[str, Any]]
    shape: Mapped[dict[str, Any]]
    encoding_id: Mapped[int] = mapped_column(ForeignKey("adatp_encoding.id"))
    # With the model's identity in `parts`: tells a changed checkpoint without loading it.
    text_encoder_identity: Mapped[str] = mapped_column(Text)
    # Videos left out because they cannot be read: name, reason and content of each.
    skipped: Mapped[list[Any]]
    created: Mapped[datetime] = mapped_column(default=_now)
    # When the definition last changed.
    revised: Mapped[datetime | None]
    archived: Mapped[datetime | None]


class StudyVideoRow(Base):
    """A video of a study, and what the plans of its questions share."""

    __tablename__ = "adatp_study_video"
    __table_args__ = (UniqueConstraint("study_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    video_id: Mapped[int] = mapped_column(ForeignKey("adatp_video.id"))
    name: Mapped[str] = mapped_column(Text)
    frames: Mapped[int]
    cells: Mapped[int]
    trailing: Mapped[int]
    # float64 (frames - 1,), little-endian
    frame_similarity: Mapped[bytes] = mapped_column(LargeBinary)


class StudyQuestionRow(Base):
    """A question of a study, and what only its own plan needs."""

    __tablename__ = "adatp_study_question"
    __table_args__ = (UniqueConstraint("study_id", "name"), UniqueConstraint("study_id", "position"))
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    study_video_id: Mapped[int] = mapped_column(ForeignKey("adatp_study_video.id"), index=True)
    prompt_id: Mapped[int] = mapped_column(ForeignKey("adatp_prompt.id"))
    name: Mapped[str] = mapped_column(Text)
    position: Mapped[int]
    # "tune" or "held_out"
    split: Mapped[str] = mapped_column(String(8))
    # The label; None in a study without labels.
    answer: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[dict[str, Any]]
    text_before: Mapped[int]
    text_after: Mapped[int]
    # Those of text_after that are the question itself; None where that was not recorded yet.
    question_tokens: Mapped[int | None]
    # float64 (frames,), little-endian
    frame_relevance: Mapped[bytes] = mapped_column(LargeBinary)


class QuarantineRow(Base):
    """A prompt that a study leaves out from then on, because asking it killed its worker twice."""

    __tablename__ = "adatp_quarantine"
    __table_args__ = (UniqueConstraint("study_id", "prompt_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    prompt_id: Mapped[int] = mapped_column(ForeignKey("adatp_prompt.id"))
    reason: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(default=_now)


class LeaseRow(Base):
    """Which process may write to the study of this name; the row stays when the lease is given back."""

    __tablename__ = "adatp_lease"
    study: Mapped[str] = mapped_column(String(200), primary_key=True)
    # Grows with each holder: what comes with a smaller one is from a holder that lost the lease.
    token: Mapped[int]
    # None: nobody.
    holder: Mapped[str | None] = mapped_column(Text)
    host: Mapped[str | None] = mapped_column(Text)
    expires: Mapped[datetime | None]


class SearchRow(Base):
    """What `tuner run` was asked for."""

    __tablename__ = "adatp_search"
    __table_args__ = (UniqueConstraint("study_id", "goal", "budget", "seed", "space", "sampler"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    # "budget": the best within it; "max_drop": the cheapest that holds, and then the budget is 1.
    goal: Mapped[str] = mapped_column(String(16))
    budget: Mapped[float]
    seed: Mapped[int]
    # What the search space is spanned by: "budget" or "knobs".
    space: Mapped[str] = mapped_column(String(16))
    sampler: Mapped[str] = mapped_column(String(16))
    # The margin asked for last, as `tuner.statistics.margin.MaxDrop` writes it.
    max_drop: Mapped[str] = mapped_column(String(32))
    # The most trials ever asked for.
    trials: Mapped[int]
    created: Mapped[datetime] = mapped_column(default=_now)
    used: Mapped[datetime] = mapped_column(default=_now)


class KnobColumns:
    """AdaTP's five knobs by name; what else the method was told stands in `options`."""

    method: Mapped[str] = mapped_column(String(32))
    tau_s: Mapped[float | None]
    tau_t: Mapped[float | None]
    alpha_boost: Mapped[float | None]
    gamma_cap: Mapped[float | None]
    p: Mapped[float | None]
    options: Mapped[dict[str, Any]]


class OutcomeColumns:
    """`tuner.study.values.Outcome`; empty until every answer is there."""

    questions: Mapped[int | None]
    videos: Mapped[int | None]
    accuracy: Mapped[float | None]
    flops_ratio: Mapped[float | None]
    flops_ratio_end_to_end: Mapped[float | None]
    flops_ratio_visual: Mapped[float | None]
    flops_ratio_p95: Mapped[float | None]
    flops_ratio_max: Mapped[float | None]
    regressions: Mapped[int | None]
    gained: Mapped[int | None]
    logprob_change: Mapped[float | None]
    seconds: Mapped[float | None]
    peak_bytes_mean: Mapped[float | None]
    peak_bytes_max: Mapped[int | None] = mapped_column(BigInteger)
    graded: Mapped[float | None]


class TrialRow(KnobColumns, OutcomeColumns, Base):
    """A configuration on the tune split; without an outcome it is unfinished."""

    __tablename__ = "adatp_trial"
    __table_args__ = (UniqueConstraint("study_id", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    search_id: Mapped[int] = mapped_column(ForeignKey("adatp_search.id"))
    number: Mapped[int]
    # The larger of the tune and the held-out split's FLOPs ratio: what the budget binds.
    binding_ratio: Mapped[float]
    # Why it was asked for: "search", or "above" for a configuration beyond the budget that the front shows.
    purpose: Mapped[str] = mapped_column(String(16))
    # A pruned trial: the completed trial with the largest share in what it was compared with and beaten by,
    # and videos judged until then.
    pruned_by: Mapped[int | None]
    pruned_videos: Mapped[int | None]
    created: Mapped[datetime] = mapped_column(default=_now)
    completed: Mapped[datetime | None]


class InfeasibleRow(KnobColumns, Base):
    """A proposal over the budget."""

    __tablename__ = "adatp_infeasible"
    __table_args__ = (UniqueConstraint("search_id", "number", "attempt"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("adatp_search.id"))
    # The number the trial would have had, and which attempt at it this was.
    number: Mapped[int]
    attempt: Mapped[int]
    # The sampler's own parameters: an unreachable target is not a row of knobs.
    proposed: Mapped[dict[str, Any]]
    binding_ratio: Mapped[float]


class SelectionRow(Base):
    """What a search chose after so many completed trials of the study."""

    __tablename__ = "adatp_selection"
    __table_args__ = (UniqueConstraint("search_id", "trials"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("adatp_search.id"))
    trials: Mapped[int]
    trial_id: Mapped[int] = mapped_column(ForeignKey("adatp_trial.id"))
    created: Mapped[datetime] = mapped_column(default=_now)


class LookRow(Base):
    """The held-out split asked of what a search came to: every look that was taken, in order; never changed
    or removed. Levels of tests hold for the looks that were planned: who sees one can move the next.
    """

    __tablename__ = "adatp_look"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"), index=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("adatp_search.id"))
    # Of the definition whose held-out split it was.
    study_hash: Mapped[str] = mapped_column(String(64))
    goal: Mapped[str] = mapped_column(String(16))
    budget: Mapped[float]
    seed: Mapped[int]
    max_drop: Mapped[str] = mapped_column(String(32))
    # Significance level of the test; None where it was not recorded.
    level: Mapped[float | None]
    # Trial numbers in the order they were tested.
    candidates: Mapped[list[Any]]
    # Completed trials of the study then, and the number of the one that was chosen.
    trials: Mapped[int]
    trial: Mapped[int]
    verdict: Mapped[str] = mapped_column(String(16))
    created: Mapped[datetime] = mapped_column(default=_now)


class MeasuredRow(KnobColumns, OutcomeColumns, Base):
    """A configuration on the held-out split, all of it answered."""

    __tablename__ = "adatp_measured"
    __table_args__ = (UniqueConstraint("study_id", "configuration"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    # sha256 of the configuration as canonical JSON.
    configuration: Mapped[str] = mapped_column(String(64))
    created: Mapped[datetime] = mapped_column(default=_now)


class NoiseRow(Base):
    """The unpruned model against itself, asked in packs of another size: what no configuration can beat."""

    __tablename__ = "adatp_noise"
    __table_args__ = (UniqueConstraint("study_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    questions: Mapped[int]
    videos: Mapped[int]
    # Answers that changed.
    flips: Mapped[int]
    # Change of the graded signal's log-probability: mean of its size, and the largest.
    logprob_mean: Mapped[float]
    logprob_max: Mapped[float]
    created: Mapped[datetime] = mapped_column(default=_now)


class ServingRow(Base):
    """What a server pays for a configuration and for the unpruned model beside it, on one machine."""

    __tablename__ = "adatp_serving"
    __table_args__ = (UniqueConstraint("study_id", "configuration", "machine"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    # As in MeasuredRow.
    configuration: Mapped[str] = mapped_column(String(64))
    # By `pipeline.measure.machine`, which is told without loading a model; `device` is what the model ran on.
    machine: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(Text)
    questions: Mapped[int]
    value_bytes: Mapped[int]
    # Parts of `pipeline.break_even.Serving` in seconds.
    baseline: Mapped[dict[str, Any]]
    best: Mapped[dict[str, Any]]
    # `tuner.records.measurements.Profiled`; empty where the profiler's pass did not fit into memory.
    profiled: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=_now)


class TimedRow(Base):
    """`Timed`: a configuration and the unpruned model, asked in turns on one machine."""

    __tablename__ = "adatp_timed"
    __table_args__ = (UniqueConstraint("study_id", "configuration", "machine"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    # As in MeasuredRow.
    configuration: Mapped[str] = mapped_column(String(64))
    # As in ServingRow.
    machine: Mapped[str] = mapped_column(String(200))
    device: Mapped[str] = mapped_column(Text)
    questions: Mapped[int]
    seconds: Mapped[float]
    baseline_seconds: Mapped[float]
    created: Mapped[datetime] = mapped_column(default=_now)


class CacheUseRow(Base):
    """`CacheUse`: sums over the study; of one that is older than this table, since then."""

    __tablename__ = "adatp_cache_use"
    __table_args__ = (UniqueConstraint("study_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    features_in_memory: Mapped[int] = mapped_column(BigInteger)
    features_read: Mapped[int] = mapped_column(BigInteger)
    features_computed: Mapped[int] = mapped_column(BigInteger)
    prefixes_reused: Mapped[int] = mapped_column(BigInteger)
    prefixes_built: Mapped[int] = mapped_column(BigInteger)


class ModelUseRow(Base):
    """`ModelUse`: sums over what was asked for a trial, or of one kind beside the trials."""

    __tablename__ = "adatp_model_use"
    __table_args__ = (UniqueConstraint("study_id", "kind", "trial"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    # `tuner.evaluation.tasks.Kind`
    kind: Mapped[str] = mapped_column(String(16))
    # The trial's number; -1 for other kinds, for no two NULLs are the same.
    trial: Mapped[int]
    answers: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]


class InspectionRow(Base):
    """What pruning with a configuration does to the videos, as `tuner.reporting.inspection` packs it."""

    __tablename__ = "adatp_inspection"
    __table_args__ = (UniqueConstraint("study_id", "configuration"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    # As in MeasuredRow.
    configuration: Mapped[str] = mapped_column(String(64))
    # Of the definition it was made for.
    study_hash: Mapped[str] = mapped_column(String(64))
    content: Mapped[bytes] = mapped_column(LargeBinary)
    created: Mapped[datetime] = mapped_column(default=_now)


class SensitivityRow(Base):
    """The last sensitivity study at a budget."""

    __tablename__ = "adatp_sensitivity"
    __table_args__ = (UniqueConstraint("study_id", "budget"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("adatp_study.id"))
    budget: Mapped[float]
    study_hash: Mapped[str] = mapped_column(String(64))
    # `tuner.sensitivity.results.Sensitivity` as JSON.
    found: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(default=_now)
