"""What reports are made of that took the model: inspections of videos, and sensitivity studies."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select

from tuner.records.connected import Connected
from tuner.records.retrying import retried
from tuner.records.rows import digest
from tuner.records.schema import inspection_table, sensitivity_table
from tuner.study.values import Configuration


class Reports(Connected):
    """Packed by whoever makes them; each says for which definition of the study it was made."""

    @retried
    def record_inspection(self, configuration: Configuration, content: bytes) -> None:
        """Writes what pruning with a configuration does to the videos; the last one stays."""
        key = {"study_id": self._study_id, "configuration": digest(configuration)}
        values = {"study_hash": self._hash, "content": content, "created": datetime.now(UTC)}
        with self._writing() as connection:
            connection.execute(
                self._insert(inspection_table)
                .values(**key, **values)
                .on_conflict_do_update(index_elements=list(key), set_=values)
            )

    @retried
    def inspection(self, configuration: Configuration) -> bytes | None:
        """The inspection of a configuration; None where there is none of the study as it is now defined."""
        query = select(inspection_table.c.content).where(
            inspection_table.c.study_id == self._study_id,
            inspection_table.c.configuration == digest(configuration),
            inspection_table.c.study_hash == self._hash,
        )
        with self._transaction() as connection:
            return connection.execute(query).scalar_one_or_none()

    @retried
    def record_sensitivity(self, budget: float, found: str) -> None:
        """Writes a sensitivity study (JSON); the last one at a budget stays."""
        key = {"study_id": self._study_id, "budget": budget}
        values = {"study_hash": self._hash, "found": found, "created": datetime.now(UTC)}
        with self._writing() as connection:
            connection.execute(
                self._insert(sensitivity_table)
                .values(**key, **values)
                .on_conflict_do_update(index_elements=list(key), set_=values)
            )

    @retried
    def sensitivity(self, budget: float) -> str | None:
        """The sensitivity study at a budget (JSON); None where there is none of the study as it is now
        defined.
        """
        query = select(sensitivity_table.c.found).where(
            sensitivity_table.c.study_id == self._study_id,
            sensitivity_table.c.budget == budget,
            sensitivity_table.c.study_hash == self._hash,
        )
        with self._transaction() as connection:
            return connection.execute(query).scalar_one_or_none()
