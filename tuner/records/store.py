"""Reading and writing the records. Only the driver writes; every method is one transaction.

A crash at any instant leaves either all or nothing of a recorded batch, so what is read back is always
consistent: a trial is complete exactly when its outcome is there, and its answers were written no later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Insert,
    Update,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from pipeline.break_even import Serving
from pipeline.layout import Layout
from pipeline.methods import KNOBS
from tuner.errors import UserError
from tuner.records.database import open_engine, shown, transaction
from tuner.records.measurements import CacheUse, MeasuredServing, Profiled, Timed
from tuner.records.schema import (
    FINGERPRINT_DIGITS,
    AnswerRow,
    Base,
    CacheUseRow,
    InfeasibleRow,
    LookRow,
    MeasuredRow,
    NoiseRow,
    QuarantineRow,
    QuestionRow,
    SearchRow,
    SelectionRow,
    ServingRow,
    StudyRow,
    TimedRow,
    TrialRow,
    VideoRow,
)
from tuner.records.values import (
    Goal,
    InfeasibleRecord,
    Look,
    Pair,
    Pruned,
    Purpose,
    RecordedAnswer,
    SearchRecord,
    StoredAnswer,
    StoredQuestion,
    StudyRecord,
    TrialRecord,
)
from tuner.statistics.margin import DEFAULT_MAX_DROP
from tuner.statistics.values import Noise, Verdict
from tuner.study.values import Configuration, Outcome, Split

# SQLite allows 32,766 variables in a statement; two per pair.
_PAIRS_PER_QUERY = 4000


class Store:
    """One study's records in one database. `open` it, then `begin` or `resume` the study."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._study: int | None = None
        self._question_ids: dict[str, int] = {}
        self._counted = CacheUse()
        self._insert: Callable[[type[Base]], Any] = (
            sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        )

    @classmethod
    def open(cls, url: str, *, create: bool = True) -> Self:
        """On the database at this URL. Errors: as `tuner.records.database.open_engine`."""
        return cls(open_engine(url, create=create))

    @property
    def url(self) -> str:
        """Where the records lie, without a password."""
        return shown(self._engine)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _transaction(self) -> AbstractContextManager[Connection]:
        return transaction(self._engine)

    # Studies

    def study_names(self) -> tuple[str, ...]:
        """Names of the studies in use in this database."""
        with self._transaction() as connection:
            rows = connection.execute(
                select(StudyRow.name).where(StudyRow.archived.is_(None)).order_by(StudyRow.name)
            )
            return tuple(rows.scalars())

    def find(self, name: str) -> StudyRecord | None:
        """The study in use under this name, which then is the one this store writes to."""
        with self._transaction() as connection:
            row = connection.execute(
                select(StudyRow.__table__).where(StudyRow.name == name, StudyRow.archived.is_(None))
            ).first()
            if row is None:
                return None
            questions = connection.execute(
                select(
                    QuestionRow.__table__,
                    VideoRow.name.label("video"),
                    VideoRow.frames,
                    VideoRow.cells,
                    VideoRow.trailing,
                    VideoRow.frame_similarity,
                )
                .join(VideoRow, VideoRow.id == QuestionRow.video_id)
                .where(QuestionRow.study_id == row.id)
                .order_by(QuestionRow.position)
            ).all()
        self._study = row.id
        self._question_ids = {question.name: question.id for question in questions}
        return StudyRecord(
            name=row.name,
            hash=row.hash,
            parts=row.parts,
            setting=row.setting,
            shape=row.shape,
            fingerprint_base=row.fingerprint_base,
            text_encoder_identity=row.text_encoder_identity,
            skipped=tuple(row.skipped),
            questions=tuple(_stored_question(question) for question in questions),
        )

    def begin(self, study: StudyRecord, *, archive: bool = False) -> None:
        """Writes a study that is not there yet and makes it the one this store writes to.

        archive: one of this name that is there is taken out of use in the same transaction; its records stay.
        """
        with self._transaction() as connection:
            if archive:
                connection.execute(
                    update(StudyRow)
                    .where(StudyRow.name == study.name, StudyRow.archived.is_(None))
                    .values(archived=func.now())
                )
            study_id = _inserted(
                connection,
                StudyRow,
                name=study.name,
                hash=study.hash,
                parts=study.parts,
                setting=study.setting,
                shape=study.shape,
                fingerprint_base=study.fingerprint_base,
                text_encoder_identity=study.text_encoder_identity,
                skipped=list(study.skipped),
            )
            videos: dict[str, int] = {}
            for question in study.questions:
                if question.video not in videos:
                    videos[question.video] = _inserted(
                        connection,
                        VideoRow,
                        study_id=study_id,
                        name=question.video,
                        frames=question.layout.frames,
                        cells=question.layout.cells,
                        trailing=question.layout.trailing,
                        frame_similarity=_floats(question.layout.frame_similarity),
                    )
            rows = [
                {
                    "study_id": study_id,
                    "video_id": videos[question.video],
                    "name": question.id,
                    "position": position,
                    "part": question.split,
                    "text_before": question.layout.text_before,
                    "text_after": question.layout.text_after,
                    "frame_relevance": _floats(question.layout.frame_relevance),
                }
                for position, question in enumerate(study.questions)
            ]
            connection.execute(insert(QuestionRow), rows)
            self._write_counted(connection, study_id)
        self.find(study.name)

    def require(self, name: str) -> StudyRecord:
        """The study in use under this name.

        Errors: UserError when there is none.
        """
        record = self.find(name)
        if record is None:
            raise UserError(f"the study {name!r} has no records in {self.url}; `tuner run` makes them")
        return record

    @property
    def _study_id(self) -> int:
        if self._study is None:
            raise RuntimeError("No study was begun or found in this store.")
        return self._study

    # Searches

    def search(
        self,
        budget: float,
        seed: int,
        coordinates: str,
        trials: int,
        *,
        sampler: str = "tpe",
        goal: Goal = "budget",
        max_drop: str = DEFAULT_MAX_DROP,
    ) -> SearchRecord:
        """The search for these; asking for more trials raises its number, another margin replaces its own."""
        key = (
            SearchRow.study_id == self._study_id,
            SearchRow.goal == goal,
            SearchRow.budget == budget,
            SearchRow.seed == seed,
            SearchRow.coordinates == coordinates,
            SearchRow.sampler == sampler,
        )
        with self._transaction() as connection:
            found = connection.execute(select(SearchRow.id, SearchRow.trials).where(*key)).first()
            if found is None:
                identifier = _inserted(
                    connection,
                    SearchRow,
                    study_id=self._study_id,
                    goal=goal,
                    budget=budget,
                    seed=seed,
                    coordinates=coordinates,
                    sampler=sampler,
                    max_drop=max_drop,
                    trials=trials,
                )
            else:
                identifier = found.id
                values = {
                    "trials": max(trials, found.trials),
                    "max_drop": max_drop,
                    "used": datetime.now(UTC),
                }
                connection.execute(update(SearchRow).where(*key).values(**values))
        return SearchRecord(identifier, budget, seed, coordinates, trials, sampler, goal, max_drop)

    def searches(self) -> tuple[SearchRecord, ...]:
        """All searches of the study, the one asked for last at the end."""
        query = (
            select(SearchRow.__table__)
            .where(SearchRow.study_id == self._study_id)
            .order_by(SearchRow.used, SearchRow.id)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return tuple(
            SearchRecord(
                row.id,
                row.budget,
                row.seed,
                row.coordinates,
                row.trials,
                row.sampler,
                row.goal,
                row.max_drop,
            )
            for row in rows
        )

    # Trials and refusals

    def propose(
        self,
        search: SearchRecord,
        number: int,
        configuration: Configuration,
        fingerprints: Sequence[str],
        binding_ratio: float,
        purpose: Purpose = "search",
    ) -> None:
        """Writes a trial without its outcome: a run killed from here on finishes it first."""
        with self._transaction() as connection:
            connection.execute(
                insert(TrialRow).values(
                    study_id=self._study_id,
                    search_id=search.id,
                    number=number,
                    fingerprints=bytes.fromhex("".join(fingerprints)),
                    binding_ratio=binding_ratio,
                    purpose=purpose,
                    **_knob_columns(configuration),
                )
            )

    def refuse(self, refusal: InfeasibleRecord) -> None:
        """Writes a proposal over the budget: resumed runs tell the sampler of it again."""
        with self._transaction() as connection:
            connection.execute(
                insert(InfeasibleRow).values(
                    search_id=refusal.search,
                    number=refusal.number,
                    attempt=refusal.attempt,
                    proposed=refusal.proposed,
                    binding_ratio=refusal.binding_ratio,
                    **_knob_columns(refusal.configuration),
                )
            )

    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials of the study in order of number."""
        query = (
            select(TrialRow.__table__).where(TrialRow.study_id == self._study_id).order_by(TrialRow.number)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return tuple(
            TrialRecord(
                number=row.number,
                search=row.search_id,
                configuration=_configuration(row),
                fingerprints=_split(row.fingerprints),
                binding_ratio=row.binding_ratio,
                outcome=_outcome(row, "tune"),
                purpose=row.purpose,
                stopped=None if row.stopped_by is None else Pruned(row.stopped_by, row.stopped_videos),
            )
            for row in rows
        )

    def infeasible(self) -> tuple[InfeasibleRecord, ...]:
        """All refused proposals of the study, in the order of search, number and attempt."""
        query = (
            select(InfeasibleRow.__table__)
            .join(SearchRow, SearchRow.id == InfeasibleRow.search_id)
            .where(SearchRow.study_id == self._study_id)
            .order_by(InfeasibleRow.search_id, InfeasibleRow.number, InfeasibleRow.attempt)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return tuple(
            InfeasibleRecord(
                row.search_id, row.number, row.attempt, _configuration(row), row.proposed, row.binding_ratio
            )
            for row in rows
        )

    # Answers

    def answers(self, pairs: Iterable[Pair]) -> dict[Pair, RecordedAnswer]:
        """The stored answers among those asked for."""
        wanted = [(self._question_ids[question], fingerprint) for question, fingerprint in pairs]
        names = {identifier: name for name, identifier in self._question_ids.items()}
        found: dict[Pair, RecordedAnswer] = {}
        with self._transaction() as connection:
            for start in range(0, len(wanted), _PAIRS_PER_QUERY):
                chunk = wanted[start : start + _PAIRS_PER_QUERY]
                key: ColumnElement[Any] = tuple_(AnswerRow.question_id, AnswerRow.fingerprint)
                for row in connection.execute(select(AnswerRow.__table__).where(key.in_(chunk))):
                    name = names[row.question_id]
                    found[name, row.fingerprint] = RecordedAnswer(
                        question=name,
                        text=row.text,
                        option=row.option,
                        option_logprobs=None if row.option_logprobs is None else tuple(row.option_logprobs),
                        logprob=row.logprob,
                        kept=tuple(row.kept),
                        seconds=row.seconds,
                        peak_bytes=row.peak_bytes,
                    )
        return found

    def record(
        self,
        answers: Mapping[Pair, RecordedAnswer],
        completed: tuple[int, Outcome] | None = None,
        measured: tuple[Configuration, Outcome] | None = None,
        stopped: tuple[int, Pruned] | None = None,
    ) -> None:
        """One batch: its answers and, with the last one, the outcome of the trial or held-out measurement; or
        that the race stopped the trial (by number) with it.

        Writing the same again changes nothing: the first answer to a (question, fingerprint) stays.
        """
        rows = [
            {
                "question_id": self._question_ids[question],
                "fingerprint": fingerprint,
                "text": answer.text,
                "option": answer.option,
                "option_logprobs": None if answer.option_logprobs is None else list(answer.option_logprobs),
                "logprob": answer.logprob,
                "kept": list(answer.kept),
                "seconds": answer.seconds,
                "peak_bytes": answer.peak_bytes,
            }
            for (question, fingerprint), answer in answers.items()
        ]
        with self._transaction() as connection:
            self._write_counted(connection, self._study_id)
            if rows:
                connection.execute(self._insert(AnswerRow).on_conflict_do_nothing(), rows)
            if completed is not None:
                number, outcome = completed
                # A trial that was stopped once may run to its end after all (`--no-race`).
                values = _outcome_columns(outcome) | {"stopped_by": None, "stopped_videos": None}
                connection.execute(self._incomplete(number).values(completed=func.now(), **values))
            if stopped is not None:
                number, why = stopped
                connection.execute(
                    self._incomplete(number).values(stopped_by=why.by, stopped_videos=why.videos)
                )
            if measured is not None:
                configuration, outcome = measured
                connection.execute(
                    self._insert(MeasuredRow)
                    .values(
                        study_id=self._study_id,
                        configuration=_digest(configuration),
                        **_knob_columns(configuration),
                        **_outcome_columns(outcome),
                    )
                    .on_conflict_do_nothing()
                )

    def _incomplete(self, number: int) -> Update:
        """An update of this trial that does nothing once it is complete."""
        return update(TrialRow).where(
            TrialRow.study_id == self._study_id, TrialRow.number == number, TrialRow.completed.is_(None)
        )

    def stored_answers(self) -> tuple[StoredAnswer, ...]:
        """All answers of the study in the order they were written, without what they say."""
        query = (
            select(QuestionRow.name, AnswerRow.fingerprint, AnswerRow.kept, AnswerRow.seconds)
            .join(QuestionRow, QuestionRow.id == AnswerRow.question_id)
            .where(QuestionRow.study_id == self._study_id)
            .order_by(AnswerRow.id)
        )
        with self._transaction() as connection:
            rows = connection.execute(query)
            return tuple(StoredAnswer(row[0], row[1], tuple(row[2]), row[3]) for row in rows)

    def count_answers(self) -> int:
        """Stored answers of the study."""
        query = (
            select(func.count())
            .select_from(AnswerRow)
            .join(QuestionRow, QuestionRow.id == AnswerRow.question_id)
            .where(QuestionRow.study_id == self._study_id)
        )
        with self._transaction() as connection:
            return int(connection.execute(query).scalar_one())

    # Selection and held-out measurements

    def select(self, search: SearchRecord, trials: int, number: int) -> None:
        """Notes that the search chose trial `number` when the study had so many completed trials."""
        trial = (
            select(TrialRow.id)
            .where(TrialRow.study_id == self._study_id, TrialRow.number == number)
            .scalar_subquery()
        )
        statement: Insert = (
            self._insert(SelectionRow)
            .values(search_id=search.id, trials=trials, trial_id=trial)
            .on_conflict_do_nothing()
        )
        with self._transaction() as connection:
            connection.execute(statement)

    def selections(self) -> tuple[tuple[int, int, int], ...]:
        """(search id, completed trials then, chosen trial's number) in the order they were made."""
        query = (
            select(SelectionRow.search_id, SelectionRow.trials, TrialRow.number)
            .join(TrialRow, TrialRow.id == SelectionRow.trial_id)
            .where(TrialRow.study_id == self._study_id)
            .order_by(SelectionRow.id)
        )
        with self._transaction() as connection:
            return tuple((row[0], row[1], row[2]) for row in connection.execute(query))

    def look(self, search: SearchRecord, trials: int, number: int, verdict: Verdict) -> None:
        """Notes what held-out videos say of trial `number`, which the search chose when the study had so many
        completed trials, at the search's margin; what they said at this margin first stays.
        """
        trial = (
            select(TrialRow.id)
            .where(TrialRow.study_id == self._study_id, TrialRow.number == number)
            .scalar_subquery()
        )
        statement: Insert = (
            self._insert(LookRow)
            .values(
                search_id=search.id, max_drop=search.max_drop, trials=trials, trial_id=trial, verdict=verdict
            )
            .on_conflict_do_nothing()
        )
        with self._transaction() as connection:
            connection.execute(statement)

    def looks(self) -> tuple[tuple[int, Look], ...]:
        """The study's looks at its held-out part, in the order they were taken, each with its search's id."""
        query = (
            select(
                LookRow.search_id,
                SearchRow.goal,
                SearchRow.budget,
                SearchRow.seed,
                LookRow.max_drop,
                LookRow.trials,
                TrialRow.number,
                LookRow.verdict,
            )
            .join(SearchRow, SearchRow.id == LookRow.search_id)
            .join(TrialRow, TrialRow.id == LookRow.trial_id)
            .where(SearchRow.study_id == self._study_id)
            .order_by(LookRow.id)
        )
        with self._transaction() as connection:
            rows: Iterable[Any] = connection.execute(query)
            return tuple((row[0], Look(*row[1:])) for row in rows)

    def measured(self) -> dict[Configuration, Outcome]:
        """The configurations measured on the held-out part."""
        query = (
            select(MeasuredRow.__table__)
            .where(MeasuredRow.study_id == self._study_id)
            .order_by(MeasuredRow.id)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        outcomes = {_configuration(row): _outcome(row, "held_out") for row in rows}
        return {configuration: outcome for configuration, outcome in outcomes.items() if outcome is not None}

    # Quarantine

    def quarantine(
        self,
        question: str,
        reason: str,
        trials: Mapping[int, Outcome] | None = None,
        measured: Mapping[Configuration, Outcome] | None = None,
    ) -> None:
        """Leaves a question out from now on; the first reason stays.

        `trials` (by number) and `measured`: the outcomes there are already, computed anew without it. All of
        it is one transaction, so that no two outcomes are ever about different questions.
        """
        with self._transaction() as connection:
            connection.execute(
                self._insert(QuarantineRow)
                .values(question_id=self._question_ids[question], reason=reason)
                .on_conflict_do_nothing()
            )
            for number, outcome in (trials or {}).items():
                connection.execute(
                    update(TrialRow)
                    .where(
                        TrialRow.study_id == self._study_id,
                        TrialRow.number == number,
                        TrialRow.completed.is_not(None),
                    )
                    .values(**_outcome_columns(outcome))
                )
            for configuration, outcome in (measured or {}).items():
                connection.execute(
                    update(MeasuredRow)
                    .where(
                        MeasuredRow.study_id == self._study_id,
                        MeasuredRow.configuration == _digest(configuration),
                    )
                    .values(**_outcome_columns(outcome))
                )

    def quarantined(self) -> dict[str, str]:
        """Why each question that is left out is: reasons by question id, in the order they were found."""
        query = (
            select(QuestionRow.name, QuarantineRow.reason)
            .join(QuestionRow, QuestionRow.id == QuarantineRow.question_id)
            .where(QuestionRow.study_id == self._study_id)
            .order_by(QuarantineRow.id)
        )
        with self._transaction() as connection:
            return {row.name: row.reason for row in connection.execute(query)}

    # The noise floor

    def record_noise(self, noise: Noise) -> None:
        """Writes what was measured; the first measurement stays."""
        with self._transaction() as connection:
            self._write_counted(connection, self._study_id)
            connection.execute(
                self._insert(NoiseRow)
                .values(study_id=self._study_id, **asdict(noise))
                .on_conflict_do_nothing()
            )

    def noise(self) -> Noise | None:
        """The unpruned model against itself; None where that was not measured."""
        query = select(NoiseRow.__table__).where(NoiseRow.study_id == self._study_id)
        with self._transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return Noise(**{one.name: getattr(row, one.name) for one in fields(Noise)})

    # What the caches did

    def count_cache_use(self, use: CacheUse) -> None:
        """Adds to the study's sums, together with what is written next of its answers: it costs no
        transaction of its own.
        """
        self._counted += use

    def _write_counted(self, connection: Connection, study_id: int) -> None:
        use, self._counted = self._counted, CacheUse()
        if use == CacheUse():
            return
        values = asdict(use)
        connection.execute(
            self._insert(CacheUseRow)
            .values(study_id=study_id, **values)
            .on_conflict_do_update(
                index_elements=["study_id"],
                set_={name: getattr(CacheUseRow, name) + value for name, value in values.items()},
            )
        )

    def cache_use(self) -> CacheUse | None:
        """The study's sums; None where nothing was counted."""
        query = select(CacheUseRow.__table__).where(CacheUseRow.study_id == self._study_id)
        with self._transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return CacheUse(**{one.name: getattr(row, one.name) for one in fields(CacheUse)})

    # What a server pays

    def record_serving(self, configuration: Configuration, machine: str, found: MeasuredServing) -> None:
        """Writes what was measured; the first measurement of a configuration on a machine stays."""
        values = asdict(found)
        values["profiled"] = values["profiled"] or {}
        with self._transaction() as connection:
            connection.execute(
                self._insert(ServingRow)
                .values(
                    study_id=self._study_id,
                    configuration=_digest(configuration),
                    machine=machine,
                    **values,
                )
                .on_conflict_do_nothing()
            )

    def serving(self, configuration: Configuration, machine: str | None = None) -> MeasuredServing | None:
        """What a server pays for a configuration, measured on this machine, or last on any; None where it was
        not.
        """
        query = (
            select(ServingRow.__table__)
            .where(ServingRow.study_id == self._study_id, ServingRow.configuration == _digest(configuration))
            .order_by(ServingRow.id.desc())
        )
        if machine is not None:
            query = query.where(ServingRow.machine == machine)
        with self._transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return MeasuredServing(
            device=row.device,
            questions=row.questions,
            value_bytes=row.value_bytes,
            baseline=Serving(**row.baseline),
            best=Serving(**row.best),
            profiled=Profiled(**row.profiled) if row.profiled else None,
        )

    # Times side by side

    def record_timed(self, machine: str, found: Mapping[Configuration, Timed]) -> None:
        """Writes what was measured in turns on a machine; the last measurement stays."""
        with self._transaction() as connection:
            for configuration, timed in found.items():
                values = asdict(timed)
                connection.execute(
                    self._insert(TimedRow)
                    .values(
                        study_id=self._study_id,
                        configuration=_digest(configuration),
                        machine=machine,
                        **values,
                    )
                    .on_conflict_do_update(
                        index_elements=["study_id", "configuration", "machine"],
                        set_={**values, "created": datetime.now(UTC)},
                    )
                )

    def timed(
        self, configurations: Sequence[Configuration], machine: str | None = None
    ) -> dict[Configuration, Timed]:
        """Of these configurations those that were timed: on this machine, or each where it was last."""
        by_digest = {_digest(one): one for one in configurations}
        query = (
            select(TimedRow.__table__)
            .where(TimedRow.study_id == self._study_id, TimedRow.configuration.in_(by_digest))
            .order_by(TimedRow.created, TimedRow.id)
        )
        if machine is not None:
            query = query.where(TimedRow.machine == machine)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return {
            by_digest[row.configuration]: Timed(**{one.name: getattr(row, one.name) for one in fields(Timed)})
            for row in rows
        }


def _inserted(connection: Connection, table: type[Base], **values: Any) -> int:
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _floats(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def _stored_question(row: Any) -> StoredQuestion:
    layout = Layout(
        frames=row.frames,
        cells=row.cells,
        trailing=row.trailing,
        text_before=row.text_before,
        text_after=row.text_after,
        frame_similarity=np.frombuffer(row.frame_similarity, dtype="<f8"),
        frame_relevance=np.frombuffer(row.frame_relevance, dtype="<f8"),
    )
    return StoredQuestion(row.name, row.video, row.part, layout)


def _split(fingerprints: bytes) -> tuple[str, ...]:
    text = fingerprints.hex()
    return tuple(
        text[start : start + FINGERPRINT_DIGITS] for start in range(0, len(text), FINGERPRINT_DIGITS)
    )


def _knob_columns(configuration: Configuration) -> dict[str, Any]:
    parameters = dict(configuration.parameters)
    knobs = {name: parameters.pop(name, None) for name in KNOBS}
    return {"method": configuration.method, "options": parameters, **knobs}


def _configuration(row: Any) -> Configuration:
    # The method's own order of fields, so that equal configurations compare equal however they were made.
    knobs = {name: getattr(row, name) for name in KNOBS if getattr(row, name) is not None}
    return Configuration.from_method(
        Configuration.from_dict({"method": row.method, **knobs, **row.options}).build()
    )


def _digest(configuration: Configuration) -> str:
    return hashlib.sha256(json.dumps(configuration.as_dict(), sort_keys=True).encode()).hexdigest()


def _outcome_columns(outcome: Outcome) -> dict[str, Any]:
    values = asdict(outcome)
    del values["split"]
    return values


def _outcome(row: Any, split: Split) -> Outcome | None:
    if row.accuracy is None:
        return None
    return Outcome(
        split=split, **{one.name: getattr(row, one.name) for one in fields(Outcome) if one.name != "split"}
    )
