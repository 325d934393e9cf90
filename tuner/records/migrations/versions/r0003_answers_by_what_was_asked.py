"""Answers by what was asked: prefixed tables, and the records of version 2 (up to November 2026) in them.

Version 2 kept answers under the question of one definition of one study. Here they belong to the bytes of the
video, the prompt and the fingerprint. Where an archived study holds another answer to the same, that of the
study in use stays.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql, sqlite

revision = "0003"
down_revision = None

_VERSION_TABLE = "adatp_schema"
_SAME_BUT_FOR_NAMES = {
    "search": "adatp_search",
    "trial": "adatp_trial",
    "refusal": "adatp_infeasible",
    "selection": "adatp_selection",
    "measured": "adatp_measured",
    "noise": "adatp_noise",
    "serving": "adatp_serving",
    "timed": "adatp_timed",
    "cache_use": "adatp_cache_use",
}
_RENAMED = {"space": "coordinates", "pruned_by": "stopped_by", "pruned_videos": "stopped_videos"}
_OTHERS = ("study", "video", "question", "answer", "quarantine", "look", _VERSION_TABLE)


def upgrade() -> None:
    """Makes the tables, and moves what version 2 recorded into them."""
    _make_tables()
    connection = op.get_bind()
    if sa.inspect(connection).has_table(_VERSION_TABLE):
        _Move(connection).everything()


class _Move:
    """Rows keep their ids, so that what refers to them need not be changed."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        names = set(sa.inspect(connection).get_table_names())
        old, new = sa.MetaData(), sa.MetaData()
        # Tables that version 2 came to have late may be missing, and so may columns.
        old.reflect(connection, only=[table for table in (*_SAME_BUT_FOR_NAMES, *_OTHERS) if table in names])
        new.reflect(
            connection, only=[name for name in names if name.startswith("adatp_") and name != _VERSION_TABLE]
        )
        self.old, self.new = old, new
        self.insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        self.ids: dict[tuple[str, Any], int] = {}

    def everything(self) -> None:
        uses: dict[tuple[str, int], dict[str, Any]] = {}
        for study in self._rows(sa.select(self.old.tables["study"]).order_by(sa.text("id"))):
            for split, video in self._study(study):
                use = uses.setdefault((study.name, video), {"tuned": None, "held_out": None})
                table, column = ("trial", "tuned") if split == "tune" else ("measured", "held_out")
                first = self._first(table, study.id)
                use[column] = min(filter(None, (use[column], first)), default=None)
        used = [
            {"study": name, "video_id": video, **when}
            for (name, video), when in uses.items()
            if any(when.values())
        ]
        if used:
            self.connection.execute(sa.insert(self.new.tables["adatp_video_use"]), used)
        for old, new in _SAME_BUT_FOR_NAMES.items():
            self._copy(old, new)
        self._answers()
        self._quarantine()
        self._looks()
        self._model_use()
        self.old.drop_all(self.connection)
        if self.connection.dialect.name == "postgresql":
            for name in (table.name for table in self.new.tables.values() if "id" in table.c):
                self.connection.execute(
                    sa.text(
                        f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), "
                        f"(SELECT max(id) FROM {name})) WHERE EXISTS (SELECT 1 FROM {name})"
                    )
                )

    def _rows(self, query: Any) -> list[Any]:
        return list(self.connection.execute(query).all())

    def _id(self, table: str, key: Any, **values: Any) -> int:
        """Of the row with this key, written where it is not there yet."""
        if (table, key) not in self.ids:
            found = self.connection.execute(sa.insert(self.new.tables[table]).values(**values))
            assert found.inserted_primary_key is not None
            self.ids[table, key] = int(found.inserted_primary_key[0])
        return self.ids[table, key]

    def _study(self, study: Any) -> set[tuple[str, int]]:
        """Moves a definition; its videos with the splits they are in."""
        parts = dict(study.parts)
        asked = {entry["id"]: entry for entry in parts.pop("questions")}
        values = {**study._mapping, "parts": parts, "definition": {}, "revised": None}
        base = values.pop("fingerprint_base")
        values["encoding_id"] = self._id("adatp_encoding", base, fingerprint_base=base)
        self.connection.execute(sa.insert(self.new.tables["adatp_study"]).values(**values))
        videos = {}
        video, question = self.old.tables["video"], self.old.tables["question"]
        for row in self._rows(sa.select(video).where(video.c.study_id == study.id).order_by(video.c.id)):
            content = parts["videos"][row.name]
            videos[row.id] = self._id("adatp_video", content, content=content)
            self.connection.execute(
                sa.insert(self.new.tables["adatp_study_video"]).values(
                    **row._mapping, video_id=videos[row.id]
                )
            )
        splits = set()
        for row in self._rows(sa.select(question).where(question.c.study_id == study.id)):
            values = {**row._mapping}
            values["study_video_id"] = values.pop("video_id")
            values["split"] = values.pop("part")
            question_, place = asked[row.name], videos[row.video_id]
            options = question_["options"]
            digest = hashlib.sha256(json.dumps([question_["question"], options]).encode()).hexdigest()
            prompt = self._id(
                "adatp_prompt",
                (place, digest),
                video_id=place,
                hash=digest,
                text=question_["question"],
                options=sa.null() if options is None else options,
            )
            self.connection.execute(
                sa.insert(self.new.tables["adatp_study_question"]).values(
                    **values, prompt_id=prompt, answer=question_["answer"], tags={}
                )
            )
            splits.add((row.part, place))
        return splits

    def _first(self, name: str, study: int) -> Any:
        table = self.old.tables[name]
        query = sa.select(sa.func.min(table.c.created)).where(table.c.study_id == study)
        return self.connection.execute(query).scalar()

    def _copy(self, old: str, new: str) -> None:
        if old not in self.old.tables:
            return
        source, target = self.old.tables[old], self.new.tables[new]
        pairs = [(column, source.c.get(_RENAMED.get(column.name, column.name))) for column in target.c]
        there = [(row, found) for row, found in pairs if found is not None]
        query = sa.select(*(found for _, found in there)).order_by(source.c.id)
        self.connection.execute(sa.insert(target).from_select([item for item, _ in there], query))

    def _answers(self) -> None:
        source, target = self.old.tables["answer"], self.new.tables["adatp_answer"]
        asked, study = self.new.tables["adatp_study_question"], self.new.tables["adatp_study"]
        same = [column.name for column in target.c if column.name != "id" and column.name in source.c]
        query = (
            sa.select(asked.c.prompt_id, study.c.encoding_id, *(source.c[name] for name in same))
            .join_from(source, asked, asked.c.id == source.c.question_id)
            .join(study, study.c.id == asked.c.study_id)
            .where(sa.true())
            .order_by(study.c.archived.is_not(None), source.c.id)
        )
        self.connection.execute(
            self.insert(target)
            .from_select(["prompt_id", "encoding_id", *same], query)
            .on_conflict_do_nothing()
        )

    def _quarantine(self) -> None:
        if "quarantine" not in self.old.tables:
            return
        source, asked = self.old.tables["quarantine"], self.new.tables["adatp_study_question"]
        query = (
            sa.select(source.c.id, asked.c.study_id, asked.c.prompt_id, source.c.reason, source.c.created)
            .join_from(source, asked, asked.c.id == source.c.question_id)
            .where(sa.true())
            .order_by(source.c.id)
        )
        self.connection.execute(
            self.insert(self.new.tables["adatp_quarantine"])
            .from_select(["id", "study_id", "prompt_id", "reason", "created"], query)
            .on_conflict_do_nothing()
        )

    def _looks(self) -> None:
        if "look" not in self.old.tables:
            return
        source, search = self.old.tables["look"], self.old.tables["search"]
        trial, study = self.old.tables["trial"], self.old.tables["study"]
        query = (
            sa.select(
                source.c.id,
                source.c.search_id,
                source.c.max_drop,
                source.c.trials,
                source.c.verdict,
                source.c.created,
                search.c.study_id,
                search.c.goal,
                search.c.budget,
                search.c.seed,
                study.c.hash.label("study_hash"),
                trial.c.number.label("trial"),
            )
            .join_from(source, search, search.c.id == source.c.search_id)
            .join(trial, trial.c.id == source.c.trial_id)
            .join(study, study.c.id == search.c.study_id)
        )
        for row in self._rows(query.order_by(source.c.id)):
            self.connection.execute(
                sa.insert(self.new.tables["adatp_look"]).values(**row._mapping, candidates=[row.trial])
            )

    def _model_use(self) -> None:
        """Version 2 did not count what a trial took: an answer was asked by the first trial that needs it."""
        question, answer, trial = (self.old.tables[name] for name in ("question", "answer", "trial"))
        for study in self._rows(sa.select(self.old.tables["study"].c.id)):
            asked = self._rows(
                sa.select(question.c.id, question.c.part)
                .where(question.c.study_id == study.id)
                .order_by(question.c.position)
            )
            parts = {question.id: question.part for question in asked}
            left = {
                (row.question_id, row.fingerprint): row
                for row in self._rows(
                    sa.select(answer.c.question_id, answer.c.fingerprint, answer.c.seconds, answer.c.kept)
                    .join(question, question.c.id == answer.c.question_id)
                    .where(question.c.study_id == study.id)
                )
            }
            used: dict[tuple[str, int], list[float]] = {}
            for key in [key for key, item in left.items() if not item.kept]:  # the unpruned model
                used.setdefault(("baseline", -1), []).append(left.pop(key).seconds)
            for row in self._rows(
                sa.select(trial.c.number, trial.c.fingerprints)
                .where(trial.c.study_id == study.id)
                .order_by(trial.c.number)
            ):
                digits = row.fingerprints.hex()
                for place, (identifier, part) in enumerate(parts.items()):
                    key = identifier, digits[32 * place : 32 * place + 32]
                    if part == "tune" and key in left:
                        used.setdefault(("trial", row.number), []).append(left.pop(key).seconds)
            for (identifier, _), answer_ in left.items():
                kind = "held_out" if parts[identifier] == "held_out" else "asked"
                used.setdefault((kind, -1), []).append(answer_.seconds)
            for (kind, number), seconds in used.items():
                self.connection.execute(
                    sa.insert(self.new.tables["adatp_model_use"]).values(
                        study_id=study.id, kind=kind, trial=number, answers=len(seconds), seconds=sum(seconds)
                    )
                )


def _key() -> sa.Column[int]:
    return sa.Column("id", sa.Integer(), primary_key=True)


def _reference(table: str) -> sa.Column[int]:
    return sa.Column(f"{table}_id", sa.Integer(), sa.ForeignKey(f"adatp_{table}.id"), nullable=False)


def _knobs() -> list[sa.Column[Any]]:
    return [
        sa.Column("method", sa.String(length=32), nullable=False),
        sa.Column("tau_s", sa.Double(), nullable=True),
        sa.Column("tau_t", sa.Double(), nullable=True),
        sa.Column("alpha_boost", sa.Double(), nullable=True),
        sa.Column("gamma_cap", sa.Double(), nullable=True),
        sa.Column("p", sa.Double(), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
    ]


def _outcome() -> list[sa.Column[Any]]:
    return [
        sa.Column("questions", sa.Integer(), nullable=True),
        sa.Column("videos", sa.Integer(), nullable=True),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("flops_ratio", sa.Double(), nullable=True),
        sa.Column("flops_ratio_end_to_end", sa.Double(), nullable=True),
        sa.Column("flops_ratio_visual", sa.Double(), nullable=True),
        sa.Column("flops_ratio_p95", sa.Double(), nullable=True),
        sa.Column("flops_ratio_max", sa.Double(), nullable=True),
        sa.Column("regressions", sa.Integer(), nullable=True),
        sa.Column("gained", sa.Integer(), nullable=True),
        sa.Column("logprob_change", sa.Double(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("peak_bytes_mean", sa.Double(), nullable=True),
        sa.Column("peak_bytes_max", sa.BigInteger(), nullable=True),
        sa.Column("graded", sa.Double(), nullable=True),
    ]


def _make_tables() -> None:
    op.create_table(
        "adatp_encoding",
        _key(),
        sa.Column("fingerprint_base", sa.Text(), nullable=False),
        sa.UniqueConstraint("fingerprint_base"),
    )
    op.create_table(
        "adatp_lease",
        sa.Column("study", sa.String(length=200), nullable=False),
        sa.Column("token", sa.Integer(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=True),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("study"),
    )
    op.create_table(
        "adatp_video",
        _key(),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.UniqueConstraint("content"),
    )
    op.create_table(
        "adatp_prompt",
        _key(),
        _reference("video"),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("options", sa.JSON(none_as_null=True), nullable=True),
        sa.UniqueConstraint("video_id", "hash"),
    )
    op.create_table(
        "adatp_study",
        _key(),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("parts", sa.JSON(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("setting", sa.JSON(), nullable=False),
        sa.Column("shape", sa.JSON(), nullable=False),
        _reference("encoding"),
        sa.Column("text_encoder_identity", sa.Text(), nullable=False),
        sa.Column("skipped", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revised", sa.DateTime(timezone=True), nullable=True),
        sa.Column("archived", sa.DateTime(timezone=True), nullable=True),
    )
    op.create_index(
        "adatp_study_in_use",
        "adatp_study",
        ["name"],
        unique=True,
        sqlite_where=sa.text("archived IS NULL"),
        postgresql_where=sa.text("archived IS NULL"),
    )
    op.create_table(
        "adatp_video_use",
        _key(),
        sa.Column("study", sa.String(length=200), nullable=False),
        _reference("video"),
        sa.Column("tuned", sa.DateTime(timezone=True), nullable=True),
        sa.Column("held_out", sa.DateTime(timezone=True), nullable=True),
        sa.UniqueConstraint("study", "video_id"),
    )
    op.create_table(
        "adatp_answer",
        _key(),
        _reference("prompt"),
        sa.Column("fingerprint", sa.String(length=32), nullable=False),
        _reference("encoding"),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("option", sa.Integer(), nullable=True),
        sa.Column("option_logprobs", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("logprob", sa.Double(), nullable=True),
        sa.Column("kept", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("peak_bytes", sa.BigInteger(), nullable=True),
        sa.UniqueConstraint("prompt_id", "fingerprint"),
    )
    op.create_table(
        "adatp_cache_use",
        _key(),
        _reference("study"),
        sa.Column("features_in_memory", sa.BigInteger(), nullable=False),
        sa.Column("features_read", sa.BigInteger(), nullable=False),
        sa.Column("features_computed", sa.BigInteger(), nullable=False),
        sa.Column("prefixes_reused", sa.BigInteger(), nullable=False),
        sa.Column("prefixes_built", sa.BigInteger(), nullable=False),
        sa.UniqueConstraint("study_id"),
    )
    op.create_table(
        "adatp_inspection",
        _key(),
        _reference("study"),
        sa.Column("configuration", sa.String(length=64), nullable=False),
        sa.Column("study_hash", sa.String(length=64), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_id", "configuration"),
    )
    op.create_table(
        "adatp_measured",
        _key(),
        _reference("study"),
        sa.Column("configuration", sa.String(length=64), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        *_knobs(),
        *_outcome(),
        sa.UniqueConstraint("study_id", "configuration"),
    )
    op.create_table(
        "adatp_model_use",
        _key(),
        _reference("study"),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("answers", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.UniqueConstraint("study_id", "kind", "trial"),
    )
    op.create_table(
        "adatp_noise",
        _key(),
        _reference("study"),
        sa.Column("questions", sa.Integer(), nullable=False),
        sa.Column("videos", sa.Integer(), nullable=False),
        sa.Column("flips", sa.Integer(), nullable=False),
        sa.Column("logprob_mean", sa.Double(), nullable=False),
        sa.Column("logprob_max", sa.Double(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_id"),
    )
    op.create_table(
        "adatp_quarantine",
        _key(),
        _reference("study"),
        _reference("prompt"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_id", "prompt_id"),
    )
    op.create_table(
        "adatp_search",
        _key(),
        _reference("study"),
        sa.Column("goal", sa.String(length=16), nullable=False),
        sa.Column("budget", sa.Double(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("space", sa.String(length=16), nullable=False),
        sa.Column("sampler", sa.String(length=16), nullable=False),
        sa.Column("max_drop", sa.String(length=32), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_id", "goal", "budget", "seed", "space", "sampler"),
    )
    op.create_table(
        "adatp_sensitivity",
        _key(),
        _reference("study"),
        sa.Column("budget", sa.Double(), nullable=False),
        sa.Column("study_hash", sa.String(length=64), nullable=False),
        sa.Column("found", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_id", "budget"),
    )
    op.create_table(
        "adatp_serving",
        _key(),
        _reference("study"),
        sa.Column("configuration", sa.String(length=64), nullable=False),
        sa.Column("machine", sa.String(length=200), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("questions", sa.Integer(), nullable=False),
        sa.Column("value_bytes", sa.Integer(), nullable=False),
        sa.Column("baseline", sa.JSON(), nullable=False),
        sa.Column("best", sa.JSON(), nullable=False),
        sa.Column("profiled", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_id", "configuration", "machine"),
    )
    op.create_table(
        "adatp_study_video",
        _key(),
        _reference("study"),
        _reference("video"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("cells", sa.Integer(), nullable=False),
        sa.Column("trailing", sa.Integer(), nullable=False),
        sa.Column("frame_similarity", sa.LargeBinary(), nullable=False),
        sa.UniqueConstraint("study_id", "name"),
    )
    op.create_table(
        "adatp_timed",
        _key(),
        _reference("study"),
        sa.Column("configuration", sa.String(length=64), nullable=False),
        sa.Column("machine", sa.String(length=200), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("questions", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("baseline_seconds", sa.Double(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_id", "configuration", "machine"),
    )
    op.create_table(
        "adatp_infeasible",
        _key(),
        _reference("search"),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("proposed", sa.JSON(), nullable=False),
        sa.Column("binding_ratio", sa.Double(), nullable=False),
        *_knobs(),
        sa.UniqueConstraint("search_id", "number", "attempt"),
    )
    op.create_table(
        "adatp_look",
        _key(),
        _reference("study"),
        _reference("search"),
        sa.Column("study_hash", sa.String(length=64), nullable=False),
        sa.Column("goal", sa.String(length=16), nullable=False),
        sa.Column("budget", sa.Double(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("max_drop", sa.String(length=32), nullable=False),
        sa.Column("level", sa.Double(), nullable=True),
        sa.Column("candidates", sa.JSON(), nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("trial", sa.Integer(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index(op.f("ix_adatp_look_study_id"), "adatp_look", ["study_id"], unique=False)
    op.create_table(
        "adatp_study_question",
        _key(),
        _reference("study"),
        _reference("study_video"),
        _reference("prompt"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=8), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("text_before", sa.Integer(), nullable=False),
        sa.Column("text_after", sa.Integer(), nullable=False),
        sa.Column("frame_relevance", sa.LargeBinary(), nullable=False),
        sa.UniqueConstraint("study_id", "name"),
        sa.UniqueConstraint("study_id", "position"),
    )
    op.create_index(
        op.f("ix_adatp_study_question_study_video_id"),
        "adatp_study_question",
        ["study_video_id"],
        unique=False,
    )
    op.create_table(
        "adatp_trial",
        _key(),
        _reference("study"),
        _reference("search"),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("binding_ratio", sa.Double(), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("pruned_by", sa.Integer(), nullable=True),
        sa.Column("pruned_videos", sa.Integer(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("completed", sa.DateTime(timezone=True), nullable=True),
        *_knobs(),
        *_outcome(),
        sa.UniqueConstraint("study_id", "number"),
    )
    op.create_table(
        "adatp_selection",
        _key(),
        _reference("search"),
        sa.Column("trials", sa.Integer(), nullable=False),
        _reference("trial"),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("search_id", "trials"),
    )
