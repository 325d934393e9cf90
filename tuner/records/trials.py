"""Trials: configurations on the tune split, from their proposal to their outcome."""

from __future__ import annotations

from sqlalchemy import Update, func, select, update

from tuner.records.connected import Connected
from tuner.records.retrying import retried
from tuner.records.rows import (
    configuration_of,
    knob_columns,
    outcome_columns,
    outcome_of,
)
from tuner.records.schema import trial_table
from tuner.records.values import Pruned, Purpose, SearchRecord, TrialRecord
from tuner.study.values import Configuration, Outcome


class Trials(Connected):
    """The trials of a study, whichever of its searches asked for them."""

    @retried
    def propose(
        self,
        search: SearchRecord,
        number: int,
        configuration: Configuration,
        binding_ratio: float,
        purpose: Purpose = "search",
    ) -> None:
        """Writes a trial without its outcome: a run killed from here on finishes it first. The same again
        changes nothing.

        Errors: ValueError where the number is another configuration's.
        """
        with self._writing() as connection:
            self._use(connection, "tune")
            written = connection.execute(
                self._insert(trial_table)
                .values(
                    study_id=self._study_id,
                    search_id=search.id,
                    number=number,
                    binding_ratio=binding_ratio,
                    purpose=purpose,
                    **knob_columns(configuration),
                )
                .on_conflict_do_nothing(index_elements=["study_id", "number"])
            )
            there = select(trial_table).where(
                trial_table.c.study_id == self._study_id, trial_table.c.number == number
            )
            if not written.rowcount and configuration_of(connection.execute(there).one()) != configuration:
                raise ValueError(f"Trial {number} of this study is another configuration.")

    @retried
    def trials(self) -> tuple[TrialRecord, ...]:
        """All trials of the study in order of number."""
        query = (
            select(trial_table).where(trial_table.c.study_id == self._study_id).order_by(trial_table.c.number)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return tuple(
            TrialRecord(
                number=row.number,
                search=row.search_id,
                configuration=configuration_of(row),
                binding_ratio=row.binding_ratio,
                outcome=outcome_of(row, "tune"),
                purpose=row.purpose,
                pruned=None if row.pruned_by is None else Pruned(row.pruned_by, row.pruned_videos),
            )
            for row in rows
        )

    def _completed(self, number: int, outcome: Outcome) -> Update:
        """A trial that was pruned once may run to its end after all (`--no-race`)."""
        return self._incomplete(number).values(
            completed=func.now(), pruned_by=None, pruned_videos=None, **outcome_columns(outcome)
        )

    def _pruned(self, number: int, why: Pruned) -> Update:
        return self._incomplete(number).values(pruned_by=why.by, pruned_videos=why.videos)

    def _incomplete(self, number: int) -> Update:
        """An update of this trial that does nothing once it is complete."""
        return update(trial_table).where(
            trial_table.c.study_id == self._study_id,
            trial_table.c.number == number,
            trial_table.c.completed.is_(None),
        )
