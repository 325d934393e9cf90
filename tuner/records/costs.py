"""What was measured beside the answers: the noise floor, the caches, times, and what a server pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime

from sqlalchemy import select

from pipeline.break_even import Serving
from tuner.records.connected import Connected
from tuner.records.measurements import CacheUse, MeasuredServing, ModelUse, Profiled, Timed
from tuner.records.retrying import retried
from tuner.records.rows import digest
from tuner.records.schema import cache_use_table, model_use_table, noise_table, serving_table, timed_table
from tuner.statistics.values import Noise
from tuner.study.values import Configuration


class Costs(Connected):
    """Measurements of a study that are no answers."""

    # The noise floor

    @retried
    def record_noise(self, noise: Noise) -> None:
        """Writes what was measured; the first measurement stays."""
        with self._writing() as connection:
            self._write_counted(connection, self._study_id)
            connection.execute(
                self._insert(noise_table)
                .values(study_id=self._study_id, **asdict(noise))
                .on_conflict_do_nothing()
            )

    @retried
    def noise(self) -> Noise | None:
        """The unpruned model against itself; None where that was not measured."""
        query = select(noise_table).where(noise_table.c.study_id == self._study_id)
        with self._transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return Noise(**{field.name: getattr(row, field.name) for field in fields(Noise)})

    # What the caches did

    def count_cache_use(self, use: CacheUse) -> None:
        """Adds to the study's sums, together with what is written next of its answers: it costs no
        transaction of its own.
        """
        self._counted += use

    def count_model_use(self, kind: str, trial: int | None, use: ModelUse) -> None:
        """Adds to what was asked for a trial, or of another kind; written as `count_cache_use` is."""
        key = kind, -1 if trial is None else trial
        self._model_use[key] = self._model_use.get(key, ModelUse()) + use

    def model_use(self) -> dict[str, ModelUse]:
        """What answering took by kind, all trials together."""
        result: dict[str, ModelUse] = {}
        for (kind, _), use in self._model_uses().items():
            result[kind] = result.get(kind, ModelUse()) + use
        return result

    def trial_use(self) -> dict[int, ModelUse]:
        """What answering took by trial; none of those that found all their answers in the records."""
        return {trial: use for (kind, trial), use in self._model_uses().items() if kind == "trial"}

    @retried
    def _model_uses(self) -> dict[tuple[str, int], ModelUse]:
        query = select(model_use_table).where(model_use_table.c.study_id == self._study_id)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return {(row.kind, row.trial): ModelUse(row.answers, row.seconds) for row in rows}

    @retried
    def cache_use(self) -> CacheUse | None:
        """The study's sums; None where nothing was counted."""
        query = select(cache_use_table).where(cache_use_table.c.study_id == self._study_id)
        with self._transaction() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return CacheUse(**{field.name: getattr(row, field.name) for field in fields(CacheUse)})

    # What a server pays

    @retried
    def record_serving(self, configuration: Configuration, machine: str, found: MeasuredServing) -> None:
        """Writes what was measured; the first measurement of a configuration on a machine stays."""
        values = asdict(found)
        values["profiled"] = values["profiled"] or {}
        with self._writing() as connection:
            connection.execute(
                self._insert(serving_table)
                .values(
                    study_id=self._study_id,
                    configuration=digest(configuration),
                    machine=machine,
                    **values,
                )
                .on_conflict_do_nothing()
            )

    @retried
    def serving(self, configuration: Configuration, machine: str | None = None) -> MeasuredServing | None:
        """What a server pays for a configuration, measured on this machine, or last on any; None where it was
        not.
        """
        query = (
            select(serving_table)
            .where(
                serving_table.c.study_id == self._study_id,
                serving_table.c.configuration == digest(configuration),
            )
            .order_by(serving_table.c.id.desc())
        )
        if machine is not None:
            query = query.where(serving_table.c.machine == machine)
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

    @retried
    def record_timed(self, machine: str, found: Mapping[Configuration, Timed]) -> None:
        """Writes what was measured in turns on a machine; the last measurement stays."""
        with self._writing() as connection:
            for configuration, timed in found.items():
                values = asdict(timed)
                connection.execute(
                    self._insert(timed_table)
                    .values(
                        study_id=self._study_id,
                        configuration=digest(configuration),
                        machine=machine,
                        **values,
                    )
                    .on_conflict_do_update(
                        index_elements=["study_id", "configuration", "machine"],
                        set_={**values, "created": datetime.now(UTC)},
                    )
                )

    @retried
    def timed(
        self, configurations: Sequence[Configuration], machine: str | None = None
    ) -> dict[Configuration, Timed]:
        """Of these configurations those that were timed: on this machine, or each where it was last."""
        by_digest = {digest(configuration): configuration for configuration in configurations}
        query = (
            select(timed_table)
            .where(timed_table.c.study_id == self._study_id, timed_table.c.configuration.in_(by_digest))
            .order_by(timed_table.c.created, timed_table.c.id)
        )
        if machine is not None:
            query = query.where(timed_table.c.machine == machine)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return {
            by_digest[row.configuration]: Timed(
                **{field.name: getattr(row, field.name) for field in fields(Timed)}
            )
            for row in rows
        }
