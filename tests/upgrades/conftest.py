"""A database of version 1."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import Database
from tests.upgrades.dumps import VERSION_1_SQL, load


@pytest.fixture
def version_1(any_database_url: str) -> Iterator[Database]:
    """A database with the dump of version 1, on each server. The test needs the marker `no_schema`."""
    load(any_database_url, VERSION_1_SQL)
    database = Database(any_database_url)
    yield database
    database.close()
