"""The tables: what was asked of the model, what it answered, and which configurations were tried.

study     one definition of one study; a changed definition is another row
video     a video of the study and what its plans need
question  a question of the study and what its plans need
search    a budget, a seed, coordinates and how many trials were asked for
trial     a row of knobs; its answers are found through its fingerprints, one per question
quarantine a question that is left out because it kills its workers
noise     the unpruned model against itself
answer    one per (question, fingerprint): configurations with the same plan share it
refusal   a proposal over the budget: it cost no model time and is no trial
selection the trial a search chose on the tune part
look      what held-out videos said of a search's choice at a margin, when they were first asked
measured  a configuration on the held-out part
serving   seconds a server pays for a configuration, measured on one machine
timed     seconds of prefill and answer, side by side with other configurations, on one machine
cache_use how often features and prefixes were at hand

An outcome (accuracy, FLOPs ratios, ...) is derived from the answers and the plans and written in the same
transaction as the last answer it needs, so that SQL and the dashboards need not recompute it.
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

# Raised with every change to the tables that an older version could not read. Tables and empty columns that
# came later are added when a database is opened.
SCHEMA_VERSION = 2

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


class SchemaRow(Base):
    """The version of these tables; one row."""

    __tablename__ = "adatp_schema"
    version: Mapped[int] = mapped_column(primary_key=True)


class StudyRow(Base):
    """One definition of one study. At most one row per name is in use: the others were archived."""

    __tablename__ = "study"
    __table_args__ = (
        Index(
            "study_in_use",
            "name",
            unique=True,
            sqlite_where=text("archived IS NULL"),
            postgresql_where=text("archived IS NULL"),
        ),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    hash: Mapped[str] = mapped_column(String(64))
    # The described parts the hash covers: what a changed study is compared with.
    parts: Mapped[dict[str, Any]]
    # How the model is called and its shape: plans, FLOPs and exports need no model after this.
    setting: Mapped[dict[str, Any]]
    shape: Mapped[dict[str, Any]]
    # What every fingerprint covers besides the method and its plan.
    fingerprint_base: Mapped[str] = mapped_column(Text)
    # With the model's identity in `parts`: tells a changed checkpoint without loading it.
    text_encoder_identity: Mapped[str] = mapped_column(Text)
    skipped: Mapped[list[Any]]
    created: Mapped[datetime] = mapped_column(default=_now)
    archived: Mapped[datetime | None]


class VideoRow(Base):
    """A video, and what the plans of its questions share."""

    __tablename__ = "video"
    __table_args__ = (UniqueConstraint("study_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    name: Mapped[str] = mapped_column(Text)
    frames: Mapped[int]
    cells: Mapped[int]
    trailing: Mapped[int]
    # float64 (frames - 1,), little-endian
    frame_similarity: Mapped[bytes] = mapped_column(LargeBinary)


class QuestionRow(Base):
    """A question, and what only its own plan needs."""

    __tablename__ = "question"
    __table_args__ = (UniqueConstraint("study_id", "name"), UniqueConstraint("study_id", "position"))
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    video_id: Mapped[int] = mapped_column(ForeignKey("video.id"))
    name: Mapped[str] = mapped_column(Text)
    position: Mapped[int]
    part: Mapped[str] = mapped_column(String(8))
    text_before: Mapped[int]
    text_after: Mapped[int]
    # float64 (frames,), little-endian
    frame_relevance: Mapped[bytes] = mapped_column(LargeBinary)


class SearchRow(Base):
    """What `tuner run` was asked for."""

    __tablename__ = "search"
    __table_args__ = (UniqueConstraint("study_id", "goal", "budget", "seed", "coordinates", "sampler"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    # "budget": the best within it; "max_drop": the cheapest that holds, and then the budget is 1.
    goal: Mapped[str] = mapped_column(String(16))
    budget: Mapped[float]
    seed: Mapped[int]
    coordinates: Mapped[str] = mapped_column(String(16))
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
    """A configuration on the tune part; without an outcome it is unfinished."""

    __tablename__ = "trial"
    __table_args__ = (UniqueConstraint("study_id", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    search_id: Mapped[int] = mapped_column(ForeignKey("search.id"))
    number: Mapped[int]
    # One fingerprint per question of the study, in order of position, 16 bytes each.
    fingerprints: Mapped[bytes] = mapped_column(LargeBinary)
    # The larger of the tune and the held-out part's FLOPs ratio: what the budget binds.
    binding_ratio: Mapped[float]
    # Why it was asked for: "search", or "above" for a configuration beyond the budget that the front shows.
    purpose: Mapped[str] = mapped_column(String(16))
    # A trial that the race stopped: the completed trial with the largest share in what it was compared with
    # and beaten by, and videos judged until then.
    stopped_by: Mapped[int | None]
    stopped_videos: Mapped[int | None]
    created: Mapped[datetime] = mapped_column(default=_now)
    completed: Mapped[datetime | None]


class InfeasibleRow(KnobColumns, Base):
    """A proposal over the budget."""

    __tablename__ = "refusal"
    __table_args__ = (UniqueConstraint("search_id", "number", "attempt"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("search.id"))
    # The number the trial would have had, and which attempt at it this was.
    number: Mapped[int]
    attempt: Mapped[int]
    # The sampler's own coordinates: an unreachable target is not a row of knobs.
    proposed: Mapped[dict[str, Any]]
    binding_ratio: Mapped[float]


class AnswerRow(Base):
    """What the model said to one question, asked in one way."""

    __tablename__ = "answer"
    __table_args__ = (UniqueConstraint("question_id", "fingerprint"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    question_id: Mapped[int] = mapped_column(ForeignKey("question.id"))
    fingerprint: Mapped[str] = mapped_column(String(FINGERPRINT_DIGITS))
    text: Mapped[str] = mapped_column(Text)
    option: Mapped[int | None]
    option_logprobs: Mapped[list[Any] | None]
    logprob: Mapped[float | None]
    kept: Mapped[list[Any]]
    seconds: Mapped[float]
    peak_bytes: Mapped[int | None] = mapped_column(BigInteger)


class SelectionRow(Base):
    """What a search chose after so many completed trials of the study."""

    __tablename__ = "selection"
    __table_args__ = (UniqueConstraint("search_id", "trials"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("search.id"))
    trials: Mapped[int]
    trial_id: Mapped[int] = mapped_column(ForeignKey("trial.id"))
    created: Mapped[datetime] = mapped_column(default=_now)


class LookRow(Base):
    """The first verdict of the held-out part on what a search came to, at each margin that was asked for."""

    __tablename__ = "look"
    __table_args__ = (UniqueConstraint("search_id", "max_drop"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("search.id"))
    max_drop: Mapped[str] = mapped_column(String(32))
    # Completed trials of the study then, and the one that was chosen.
    trials: Mapped[int]
    trial_id: Mapped[int] = mapped_column(ForeignKey("trial.id"))
    verdict: Mapped[str] = mapped_column(String(16))
    created: Mapped[datetime] = mapped_column(default=_now)


class MeasuredRow(KnobColumns, OutcomeColumns, Base):
    """A configuration on the held-out part, all of it answered."""

    __tablename__ = "measured"
    __table_args__ = (UniqueConstraint("study_id", "configuration"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    # sha256 of the configuration as canonical JSON.
    configuration: Mapped[str] = mapped_column(String(64))
    created: Mapped[datetime] = mapped_column(default=_now)


class NoiseRow(Base):
    """The unpruned model against itself, asked in packs of another size: what no configuration can beat."""

    __tablename__ = "noise"
    __table_args__ = (UniqueConstraint("study_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    questions: Mapped[int]
    videos: Mapped[int]
    # Answers that changed.
    flips: Mapped[int]
    # Change of the graded signal's log-probability: mean of its size, and the largest.
    logprob_mean: Mapped[float]
    logprob_max: Mapped[float]
    created: Mapped[datetime] = mapped_column(default=_now)


class QuarantineRow(Base):
    """A question that is left out from then on, because asking it killed its worker twice."""

    __tablename__ = "quarantine"
    __table_args__ = (UniqueConstraint("question_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    question_id: Mapped[int] = mapped_column(ForeignKey("question.id"))
    reason: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(default=_now)


class ServingRow(Base):
    """What a server pays for a configuration and for the unpruned model beside it, on one machine."""

    __tablename__ = "serving"
    __table_args__ = (UniqueConstraint("study_id", "configuration", "machine"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    # As in MeasuredRow.
    configuration: Mapped[str] = mapped_column(String(64))
    # By `pipeline.meter.machine`, which is told without loading a model; `device` is what the model ran on.
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

    __tablename__ = "timed"
    __table_args__ = (UniqueConstraint("study_id", "configuration", "machine"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
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

    __tablename__ = "cache_use"
    __table_args__ = (UniqueConstraint("study_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
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
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    # `tuner.evaluation.tasks.Kind`
    kind: Mapped[str] = mapped_column(String(16))
    # The trial's number; -1 for other kinds, for no two NULLs are the same.
    trial: Mapped[int]
    answers: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
