"""Questions that are left out, because asking them kills the workers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import delete, select, update

from tuner.records.connected import Connected
from tuner.records.retrying import retried
from tuner.records.rows import derived_updates, digest, outcome_columns
from tuner.records.schema import measured_table, quarantine_table, trial_table
from tuner.records.values import Derived
from tuner.study.values import Configuration, Outcome


class Quarantine(Connected):
    """The questions that a study leaves out."""

    @retried
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
        with self._writing() as connection:
            connection.execute(
                self._insert(quarantine_table)
                .values(study_id=self._study_id, prompt_id=self._prompts[question], reason=reason)
                .on_conflict_do_nothing()
            )
            for number, outcome in (trials or {}).items():
                connection.execute(
                    update(trial_table)
                    .where(
                        trial_table.c.study_id == self._study_id,
                        trial_table.c.number == number,
                        trial_table.c.completed.is_not(None),
                    )
                    .values(**outcome_columns(outcome))
                )
            for configuration, outcome in (measured or {}).items():
                connection.execute(
                    update(measured_table)
                    .where(
                        measured_table.c.study_id == self._study_id,
                        measured_table.c.configuration == digest(configuration),
                    )
                    .values(**outcome_columns(outcome))
                )

    @retried
    def unquarantine(
        self,
        questions: Collection[str],
        trials: Mapping[int, Derived],
        measured: Mapping[Configuration, Outcome | None],
    ) -> None:
        """Takes questions back in. `trials` (by number) and `measured`: what there is already, derived anew
        with them; empty outcomes where their answers are missing.
        """
        prompts = [self._prompts[question] for question in questions]
        with self._writing() as connection:
            connection.execute(
                delete(quarantine_table).where(
                    quarantine_table.c.study_id == self._study_id, quarantine_table.c.prompt_id.in_(prompts)
                )
            )
            for statement in derived_updates(self._study_id, trials, measured):
                connection.execute(statement)

    @retried
    def quarantined(self) -> dict[str, str]:
        """Why each question that is left out is: reasons by question id, in the order they were found."""
        query = (
            select(quarantine_table.c.prompt_id, quarantine_table.c.reason)
            .where(quarantine_table.c.study_id == self._study_id)
            .order_by(quarantine_table.c.id)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return {
            name: row.reason
            for row in rows
            for name, prompt in self._prompts.items()
            if prompt == row.prompt_id
        }
