"""What reports are made of that took the model: inspections of videos, and sensitivity studies."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select

from tuner.records.connected import Connected
from tuner.records.rows import digest
from tuner.records.schema import InspectionRow, SensitivityRow
from tuner.study.values import Configuration


class Reports(Connected):
    """Packed by whoever makes them; each says for which definition of the study it was made."""

    def record_inspection(self, configuration: Configuration, content: bytes) -> None:
        """Writes what pruning with a configuration does to the videos; the last one stays."""
        key = {"study_id": self._study_id, "configuration": digest(configuration)}
        values = {"study_hash": self._hash, "content": content, "created": datetime.now(UTC)}
        with self._transaction() as connection:
            connection.execute(
                self._insert(InspectionRow)
                .values(**key, **values)
                .on_conflict_do_update(index_elements=list(key), set_=values)
            )

    def inspection(self, configuration: Configuration) -> bytes | None:
        """The inspection of a configuration; None where there is none of the study as it is now defined."""
        query = select(InspectionRow.content).where(
            InspectionRow.study_id == self._study_id,
            InspectionRow.configuration == digest(configuration),
            InspectionRow.study_hash == self._hash,
        )
        with self._transaction() as connection:
            return connection.execute(query).scalar_one_or_none()

    def record_sensitivity(self, budget: float, found: str) -> None:
        """Writes a sensitivity study (JSON); the last one at a budget stays."""
        key = {"study_id": self._study_id, "budget": budget}
        values = {"study_hash": self._hash, "found": found, "created": datetime.now(UTC)}
        with self._transaction() as connection:
            connection.execute(
                self._insert(SensitivityRow)
                .values(**key, **values)
                .on_conflict_do_update(index_elements=list(key), set_=values)
            )

    def sensitivity(self, budget: float) -> str | None:
        """The sensitivity study at a budget (JSON); None where there is none of the study as it is now
        defined.
        """
        query = select(SensitivityRow.found).where(
            SensitivityRow.study_id == self._study_id,
            SensitivityRow.budget == budget,
            SensitivityRow.study_hash == self._hash,
        )
        with self._transaction() as connection:
            return connection.execute(query).scalar_one_or_none()
