"""Searches: what was asked for, what the sampler proposed beyond the budget, and what was chosen."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, update

from tuner.records.connected import Connected, inserted
from tuner.records.retrying import retried
from tuner.records.rows import configuration_of, knob_columns
from tuner.records.schema import infeasible_table, search_table, selection_table, trial_table
from tuner.records.values import Goal, InfeasibleRecord, SearchRecord
from tuner.statistics.margin import DEFAULT_MAX_DROP


class Searches(Connected):
    """The searches of a study."""

    @retried
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
        key = {
            "study_id": self._study_id,
            "goal": goal,
            "budget": budget,
            "seed": seed,
            "space": coordinates,
            "sampler": sampler,
        }
        query = select(search_table.c.id, search_table.c.trials).filter_by(**key)
        with self._writing() as connection:
            found = connection.execute(query).first()
            if found is None:
                identifier = inserted(connection, search_table, **key, max_drop=max_drop, trials=trials)
            else:
                identifier = found.id
                connection.execute(
                    update(search_table)
                    .where(search_table.c.id == identifier)
                    .values(trials=max(trials, found.trials), max_drop=max_drop, used=datetime.now(UTC))
                )
        return SearchRecord(identifier, budget, seed, coordinates, trials, sampler, goal, max_drop)

    @retried
    def searches(self) -> tuple[SearchRecord, ...]:
        """All searches of the study, the one asked for last at the end."""
        query = (
            select(
                search_table.c.id,
                search_table.c.budget,
                search_table.c.seed,
                search_table.c.space,
                search_table.c.trials,
                search_table.c.sampler,
                search_table.c.goal,
                search_table.c.max_drop,
            )
            .where(search_table.c.study_id == self._study_id)
            .order_by(search_table.c.used, search_table.c.id)
        )
        with self._transaction() as connection:
            rows: Iterable[Any] = connection.execute(query)
            return tuple(SearchRecord(*row) for row in rows)

    @retried
    def record_infeasible(self, proposal: InfeasibleRecord) -> None:
        """Writes an infeasible proposal: resumed runs tell the sampler of it again. The same again changes
        nothing.
        """
        with self._writing() as connection:
            connection.execute(
                self._insert(infeasible_table)
                .values(
                    search_id=proposal.search,
                    number=proposal.number,
                    attempt=proposal.attempt,
                    proposed=proposal.proposed,
                    binding_ratio=proposal.binding_ratio,
                    **knob_columns(proposal.configuration),
                )
                .on_conflict_do_nothing(index_elements=["search_id", "number", "attempt"])
            )

    @retried
    def infeasible(self) -> tuple[InfeasibleRecord, ...]:
        """All infeasible proposals of the study, in the order of search, number and attempt."""
        query = (
            select(infeasible_table)
            .join(search_table, search_table.c.id == infeasible_table.c.search_id)
            .where(search_table.c.study_id == self._study_id)
            .order_by(infeasible_table.c.search_id, infeasible_table.c.number, infeasible_table.c.attempt)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return tuple(
            InfeasibleRecord(
                row.search_id, row.number, row.attempt, configuration_of(row), row.proposed, row.binding_ratio
            )
            for row in rows
        )

    @retried
    def select(self, search: SearchRecord, trials: int, number: int) -> None:
        """Notes that the search chose trial `number` when the study had so many completed trials."""
        trial = (
            select(trial_table.c.id)
            .where(trial_table.c.study_id == self._study_id, trial_table.c.number == number)
            .scalar_subquery()
        )
        with self._writing() as connection:
            connection.execute(
                self._insert(selection_table)
                .values(search_id=search.id, trials=trials, trial_id=trial)
                .on_conflict_do_nothing()
            )

    @retried
    def selections(self) -> tuple[tuple[int, int, int], ...]:
        """(search id, completed trials then, chosen trial's number) in the order they were made."""
        query = (
            select(selection_table.c.search_id, selection_table.c.trials, trial_table.c.number)
            .join(trial_table, trial_table.c.id == selection_table.c.trial_id)
            .where(trial_table.c.study_id == self._study_id)
            .order_by(selection_table.c.id)
        )
        with self._transaction() as connection:
            return tuple((row[0], row[1], row[2]) for row in connection.execute(query))
