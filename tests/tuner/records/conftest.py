"""One PostgreSQL server for all tests of the records: each gets an empty database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import create_engine

from tests.tuner.records.servers import Server, servers
from tuner.records.database import parse_url


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    yield from servers()


@pytest.fixture
def postgresql(server: Server) -> str:
    """URL of an empty database."""
    engine = create_engine(parse_url(server.url))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    engine.dispose()
    return server.url
