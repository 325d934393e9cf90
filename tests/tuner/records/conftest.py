"""One PostgreSQL server for all tests of the records: each gets an empty database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tuner.records.servers import Server, emptied, servers


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    yield from servers()


@pytest.fixture
def postgresql(server: Server) -> str:
    """URL of an empty database."""
    return emptied(server)
