"""The held-out split: what was measured on it, and every look that was taken at it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select

from tuner.records.connected import Connected
from tuner.records.retrying import retried
from tuner.records.rows import configuration_of, digest, knob_columns, outcome_columns, outcome_of
from tuner.records.schema import look_table, measured_table, study_table
from tuner.records.values import Look, LookGoal, SearchRecord
from tuner.statistics.values import Verdict
from tuner.study.values import Configuration, Outcome


class HeldOut(Connected):
    """What held-out videos said of a study's configurations."""

    @retried
    def measured(self) -> dict[Configuration, Outcome]:
        """The configurations measured on the held-out split."""
        query = (
            select(measured_table)
            .where(measured_table.c.study_id == self._study_id)
            .order_by(measured_table.c.id)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        outcomes = {configuration_of(row): outcome_of(row, "held_out") for row in rows}
        return {configuration: outcome for configuration, outcome in outcomes.items() if outcome is not None}

    def _write_measured(self, connection: Connection, configuration: Configuration, outcome: Outcome) -> None:
        """The first outcome stays; one that was emptied, because the study changed, is filled."""
        self._use(connection, "held_out")
        values = outcome_columns(outcome)
        connection.execute(
            self._insert(measured_table)
            .values(
                study_id=self._study_id,
                configuration=digest(configuration),
                **knob_columns(configuration),
                **values,
            )
            .on_conflict_do_update(
                index_elements=["study_id", "configuration"],
                set_=values,
                where=measured_table.c.accuracy.is_(None),
            )
        )

    @retried
    def record_look(
        self,
        search: SearchRecord,
        trials: int,
        trial: int,
        verdict: Verdict,
        *,
        level: float | None = None,
        candidates: Sequence[int] = (),
        goal: LookGoal | None = None,
    ) -> None:
        """Adds a look: what held-out videos say of `trial`, which the search chose at its margin when the
        study had so many completed trials. The same look again, as of a run that is repeated, adds nothing.

        level: the test's significance level; candidates: trial numbers in the order they were tested; goal:
        instead of the search's, "trial" where a person chose.
        """
        values = {
            "study_id": self._study_id,
            "search_id": search.id,
            "study_hash": self._hash,
            "goal": goal or search.goal,
            "budget": search.budget,
            "seed": search.seed,
            "max_drop": search.max_drop,
            "level": level,
            "candidates": list(candidates),
            "trials": trials,
            "trial": trial,
            "verdict": verdict,
        }
        last = (
            select(look_table)
            .where(look_table.c.search_id == search.id, look_table.c.max_drop == search.max_drop)
            .order_by(look_table.c.id.desc())
        )
        with self._writing() as connection:
            self._use(connection, "held_out")
            before = connection.execute(last).first()
            if before is None or any(getattr(before, name) != value for name, value in values.items()):
                connection.execute(insert(look_table).values(**values))

    @retried
    def looks(self) -> tuple[tuple[int, Look], ...]:
        """All looks at the held-out split, in the order they were taken, each with its search's id; those of
        archived studies of this name are among them: the videos were seen.
        """
        query = (
            select(look_table)
            .join(study_table, study_table.c.id == look_table.c.study_id)
            .where(study_table.c.name == self._name, study_table.c.owner == self._owner)
            .order_by(look_table.c.id)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return tuple(
            (
                row.search_id,
                Look(
                    goal=row.goal,
                    budget=row.budget,
                    seed=row.seed,
                    max_drop=row.max_drop,
                    trials=row.trials,
                    trial=row.trial,
                    verdict=row.verdict,
                    level=row.level,
                    candidates=tuple(row.candidates),
                    created=row.created,
                ),
            )
            for row in rows
        )
