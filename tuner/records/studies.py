"""Studies: what their definitions say, which of a name is in use, and what each video has served for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import numpy as np
from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from pipeline.layout import Layout
from tuner.errors import UserError
from tuner.records.connected import Connected, inserted
from tuner.records.database import shown
from tuner.records.retrying import retried
from tuner.records.rows import derived_updates
from tuner.records.schema import (
    encoding_table,
    prompt_table,
    study_question_table,
    study_table,
    study_video_table,
    trial_table,
    video_table,
    video_use_table,
)
from tuner.records.values import Derived, StoredQuestion, StudyRecord, prompt_hash
from tuner.study.values import Configuration, Outcome

T = TypeVar("T")

# SQLite allows 32,766 variables in a statement.
_MOST_VARIABLES = 5000


class ArchivedStudy(NamedTuple):
    """A study that was taken out of use: its database id, dates, and how many trials it has."""

    id: int
    created: datetime
    archived: datetime
    trials: int


class StudyInUse(NamedTuple):
    """A study in use in this database, whoever owns it; "": nobody in particular."""

    name: str
    owner: str
    trials: int
    """Completed."""


class _Known(NamedTuple):
    """Ids of what a definition asks, which other definitions may ask, too."""

    encoding: int
    videos: dict[str, int]  # by name
    prompts: dict[str, int]  # by question id


class Studies(Connected):
    """Definitions of studies. `begin`, `find` or `revise` one: then it is the one read and written."""

    @property
    def owner(self) -> str:
        """Whose studies this store writes, or whose it read last; "": nobody's in particular."""
        return self._owner

    @retried
    def in_use(self) -> tuple[StudyInUse, ...]:
        """All studies in use in this database by name and owner, without reading them."""
        query = (
            select(study_table.c.name, study_table.c.owner, func.count(trial_table.c.accuracy))
            .outerjoin(trial_table, trial_table.c.study_id == study_table.c.id)
            .where(study_table.c.archived.is_(None))
            .group_by(study_table.c.name, study_table.c.owner)
            .order_by(study_table.c.name, study_table.c.owner)
        )
        with self._transaction() as connection:
            rows: Iterable[Any] = connection.execute(query)
            return tuple(StudyInUse(*row) for row in rows)

    def study_names(self) -> tuple[str, ...]:
        """Names of the studies in use in this database."""
        return tuple(dict.fromkeys(item.name for item in self.in_use()))

    def _in_use(self, name: str) -> tuple[ColumnElement[bool], ...]:
        return (
            study_table.c.name == name,
            study_table.c.owner == self._owner,
            study_table.c.archived.is_(None),
        )

    def _read_whose(self, connection: Connection, name: str) -> None:
        """Where only other owners have a study of this name, a reader reads theirs.

        Errors: UserError where several have one.
        """
        owners = connection.execute(
            select(study_table.c.owner)
            .where(study_table.c.name == name, study_table.c.archived.is_(None))
            .order_by(study_table.c.owner)
        ).scalars()
        others = list(owners)
        if self._owner in others or not others:
            return
        if len(others) > 1:
            raise UserError(
                f"{shown(self._engine)} holds studies {name!r} of {' and '.join(filter(None, others))}, none "
                f"of {self._owner}: name the owner in the environment variable TUNER_OWNER"
            )
        self._owner = others[0]

    @retried
    def find(self, name: str) -> StudyRecord | None:
        """The owner's study in use under this name, which then is the one this store writes to. A reader
        finds another owner's, too.

        Errors: UserError for a reader of several owners' studies, none of them its own.
        """
        with self._transaction() as connection:
            if self._reads:
                self._read_whose(connection, name)
            row = connection.execute(
                select(study_table, encoding_table.c.fingerprint_base)
                .join(encoding_table, encoding_table.c.id == study_table.c.encoding_id)
                .where(*self._in_use(name))
            ).first()
            if row is None:
                return None
            questions = connection.execute(
                select(
                    study_question_table,
                    prompt_table.c.text,
                    prompt_table.c.options,
                    study_video_table.c.name.label("video"),
                    study_video_table.c.frames,
                    study_video_table.c.cells,
                    study_video_table.c.trailing,
                    study_video_table.c.frame_similarity,
                )
                .join(study_video_table, study_video_table.c.id == study_question_table.c.study_video_id)
                .join(prompt_table, prompt_table.c.id == study_question_table.c.prompt_id)
                .where(study_question_table.c.study_id == row.id)
                .order_by(study_question_table.c.position)
            ).all()
        self._opened(row.id, row.name, row.hash)
        self._encoding = row.encoding_id
        self._prompts = {question.name: question.prompt_id for question in questions}
        asked = [
            {
                "id": question.name,
                "video": question.video,
                "question": question.text,
                "options": question.options,
                "answer": question.answer,
            }
            for question in questions
        ]
        return StudyRecord(
            name=row.name,
            hash=row.hash,
            parts={**row.parts, "questions": asked},
            setting=row.setting,
            shape=row.shape,
            fingerprint_base=row.fingerprint_base,
            text_encoder_identity=row.text_encoder_identity,
            skipped=tuple(row.skipped),
            questions=tuple(_stored_question(question) for question in questions),
            definition=row.definition,
        )

    def require(self, name: str) -> StudyRecord:
        """The study in use under this name.

        Errors: UserError when there is none.
        """
        record = self.find(name)
        if record is None:
            ways = ["`tuner run` makes them"]
            if self.archived(name):
                ways.append("`tuner restore` brings the archived ones back")
            others = [item.owner for item in self.in_use() if item.name == name]
            whose = f" of {self._owner}, but of {' and '.join(others)}," if others else ""
            raise UserError(
                f"the study {name!r} has no records{whose} in {shown(self._engine)}; {' and '.join(ways)}"
                + ("; TUNER_OWNER names another owner" if others else "")
            )
        return record

    def _opened(self, study_id: int, name: str, study_hash: str) -> None:
        self._study, self._name, self._hash = study_id, name, study_hash
        self._used.clear()

    @retried
    def begin(self, study: StudyRecord) -> None:
        """Writes a study that is not there yet and makes it the one this store writes to."""
        with self._writing() as connection:
            study_id = self._begun(connection, study)
            if study_id is None:
                known = self._know(connection, study)
                study_id = inserted(
                    connection,
                    study_table,
                    name=study.name,
                    owner=self._owner,
                    **_study_columns(study),
                    encoding_id=known.encoding,
                )
                self._write_questions(connection, study_id, study, known)
            self._write_counted(connection, study_id)
        self.find(study.name)

    def _begun(self, connection: Connection, study: StudyRecord) -> int | None:
        """The id of the very same study, as an attempt at `begin` leaves it whose end was not known."""
        return connection.execute(
            select(study_table.c.id).where(*self._in_use(study.name), study_table.c.hash == study.hash)
        ).scalar_one_or_none()

    @retried
    def register(self, study: StudyRecord) -> None:
        """Makes another definition of the open study known, so that answers to its questions are found: the
        first half of `revise`. The study itself stays as it is.
        """
        with self._writing() as connection:
            known = self._know(connection, study)
        self._encoding, self._prompts = known.encoding, known.prompts

    @retried
    def revise(
        self,
        study: StudyRecord,
        trials: Mapping[int, Derived] | None = None,
        measured: Mapping[Configuration, Outcome | None] | None = None,
    ) -> None:
        """Another definition in the place of the open study's, with all that follows from it.

        trials: FLOPs ratio and outcome of each by number; whether it was pruned is then to be
        found anew. measured: outcomes of the configurations on the held-out split. Left out: they stay.
        """
        with self._writing() as connection:
            known = self._know(connection, study)
            here = self._study_id
            connection.execute(
                update(study_table)
                .where(study_table.c.id == here)
                .values(**_study_columns(study), encoding_id=known.encoding, revised=datetime.now(UTC))
            )
            for table in (study_question_table, study_video_table):
                connection.execute(delete(table).where(table.c.study_id == here))
            self._write_questions(connection, here, study, known)
            self._used.clear()
            if any(trial.outcome is not None for trial in (trials or {}).values()):
                self._use(connection, "tune")
            if any(outcome is not None for outcome in (measured or {}).values()):
                self._use(connection, "held_out")
            for statement in derived_updates(here, trials or {}, measured or {}):
                connection.execute(statement)
            self._write_counted(connection, here)
        self.find(study.name)

    def _know(self, connection: Connection, study: StudyRecord) -> _Known:
        """Writes what is asked where nobody asked it before."""

        def write(table: Any, rows: Sequence[dict[str, Any]]) -> None:
            connection.execute(self._insert(table).on_conflict_do_nothing(), rows)

        write(encoding_table, [{"fingerprint_base": study.fingerprint_base}])
        encoding = connection.execute(
            select(encoding_table.c.id).where(encoding_table.c.fingerprint_base == study.fingerprint_base)
        ).scalar_one()
        asked = {part["id"]: part for part in study.parts["questions"]}
        contents = {question.video: study.parts["videos"][question.video] for question in study.questions}
        write(video_table, [{"content": content} for content in sorted(set(contents.values()))])
        by_content = {
            row.content: row.id
            for some in _chunks(sorted(set(contents.values())))
            for row in connection.execute(select(video_table).where(video_table.c.content.in_(some)))
        }
        videos = {name: by_content[content] for name, content in contents.items()}
        prompts = {
            question.id: {
                "video_id": videos[question.video],
                "hash": prompt_hash(asked[question.id]["question"], asked[question.id]["options"]),
                "text": asked[question.id]["question"],
                "options": asked[question.id]["options"],
            }
            for question in study.questions
        }
        # In one order: two studies that begin at once would wait for each other in another.
        write(prompt_table, sorted(prompts.values(), key=lambda prompt: (prompt["video_id"], prompt["hash"])))
        by_prompt = {
            (row.video_id, row.hash): row.id
            for some in _chunks(sorted(by_content.values()))
            for row in connection.execute(
                select(prompt_table.c.id, prompt_table.c.video_id, prompt_table.c.hash).where(
                    prompt_table.c.video_id.in_(some)
                )
            )
        }
        return _Known(
            encoding,
            videos,
            {question: by_prompt[prompt["video_id"], prompt["hash"]] for question, prompt in prompts.items()},
        )

    def _write_questions(
        self, connection: Connection, study_id: int, study: StudyRecord, known: _Known
    ) -> None:
        layouts = {question.video: question.layout for question in study.questions}
        connection.execute(
            insert(study_video_table),
            [
                {
                    "study_id": study_id,
                    "video_id": known.videos[name],
                    "name": name,
                    "frames": layout.frames,
                    "cells": layout.cells,
                    "trailing": layout.trailing,
                    "frame_similarity": _floats(layout.frame_similarity),
                }
                for name, layout in layouts.items()
            ],
        )
        rows = connection.execute(
            select(study_video_table.c.name, study_video_table.c.id).where(
                study_video_table.c.study_id == study_id
            )
        )
        places = {row.name: row.id for row in rows}
        labels = {part["id"]: part["answer"] for part in study.parts["questions"]}
        connection.execute(
            insert(study_question_table),
            [
                {
                    "study_id": study_id,
                    "study_video_id": places[question.video],
                    "prompt_id": known.prompts[question.id],
                    "name": question.id,
                    "position": position,
                    "split": question.split,
                    "answer": labels[question.id],
                    "tags": dict(question.tags),
                    "text_before": question.layout.text_before,
                    "text_after": question.layout.text_after,
                    "question_tokens": question.layout.question_tokens,
                    "frame_relevance": _floats(question.layout.frame_relevance),
                }
                for position, question in enumerate(study.questions)
            ],
        )

    # Out of use, and back

    @retried
    def archive(self, name: str) -> bool:
        """Takes the study of this name out of use; its records stay. False: there is none."""
        with self._writing() as connection:
            return self._archive(connection, name)

    def _archive(self, connection: Connection, name: str) -> bool:
        found = connection.execute(
            update(study_table).where(*self._in_use(name)).values(archived=datetime.now(UTC))
        )
        return bool(found.rowcount)

    @retried
    def archived(self, name: str) -> tuple[ArchivedStudy, ...]:
        """The archived studies of this name, the one archived last at the end."""
        query = (
            select(
                study_table.c.id, study_table.c.created, study_table.c.archived, func.count(trial_table.c.id)
            )
            .outerjoin(trial_table, trial_table.c.study_id == study_table.c.id)
            .where(
                study_table.c.name == name,
                # Those of nobody in particular become the owner's before they are restored.
                study_table.c.owner.in_({self._owner, ""}),
                study_table.c.archived.is_not(None),
            )
            .group_by(study_table.c.id)
            .order_by(study_table.c.archived, study_table.c.id)
        )
        with self._transaction() as connection:
            rows: Iterable[Any] = connection.execute(query)
            return tuple(ArchivedStudy(*row) for row in rows)

    @retried
    def restore(self, name: str, study_id: int) -> bool:
        """Puts an archived study of this name back into use; True: another one was archived for it.

        Errors: ValueError where the owner has no such study.
        """
        with self._writing() as connection:
            replaced = self._archive(connection, name)
            restored = connection.execute(
                update(study_table)
                .where(
                    study_table.c.id == study_id,
                    study_table.c.name == name,
                    study_table.c.owner == self._owner,
                )
                .values(archived=None)
            )
            if not restored.rowcount:
                raise ValueError(f"{self._owner!r} has no study {name!r} with the number {study_id}.")
        return replaced

    # What videos have served for

    @retried
    def videos_that_tuned(self, name: str, contents: Collection[str]) -> set[str]:
        """Of these videos (hashes of their bytes) those that ever tuned the owner's study of this name,
        archived or not.
        """
        with self._transaction() as connection:
            return {
                content
                for some in _chunks(sorted(contents))
                for content in connection.execute(
                    select(video_table.c.content)
                    .join(video_use_table, video_use_table.c.video_id == video_table.c.id)
                    .where(
                        video_use_table.c.study == name,
                        video_use_table.c.owner == self._owner,
                        video_use_table.c.tuned.is_not(None),
                        video_table.c.content.in_(some),
                    )
                ).scalars()
            }


def _study_columns(study: StudyRecord) -> dict[str, Any]:
    return {
        "hash": study.hash,
        "parts": {name: part for name, part in study.parts.items() if name != "questions"},
        "definition": study.definition,
        "setting": study.setting,
        "shape": study.shape,
        "text_encoder_identity": study.text_encoder_identity,
        "skipped": list(study.skipped),
    }


def _stored_question(row: Any) -> StoredQuestion:
    layout = Layout(
        frames=row.frames,
        cells=row.cells,
        trailing=row.trailing,
        text_before=row.text_before,
        text_after=row.text_after,
        frame_similarity=np.frombuffer(row.frame_similarity, dtype="<f8"),
        frame_relevance=np.frombuffer(row.frame_relevance, dtype="<f8"),
        question_tokens=row.question_tokens,
    )
    return StoredQuestion(row.name, row.video, row.split, layout, row.tags)


def _floats(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def _chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _MOST_VARIABLES):
        yield values[start : start + _MOST_VARIABLES]
