"""The servers and databases of `jobqueue.testing.postgres`, and more helpers for the tests of jobqueue."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.rows import tuple_row

from jobqueue.schema_names import DEFAULT
from jobqueue.storage.connection import connect
from jobqueue.storage.schema import grant, migrate
from jobqueue.testing.postgres import FAST, database, directory, server, wait_until_ready

__all__ = [
    "FAST",
    "SERVERS",
    "Database",
    "ServerPool",
    "as_role",
    "database",
    "directory",
    "empty",
    "granted",
    "role",
    "server",
    "wait_until_ready",
]

SERVERS: dict[str, Path | None] = {"embedded": None}
"""The PostgreSQL servers to test with, by name: the embedded PostgreSQL, and the binaries that JOBQUEUE_TEST_POSTGRES names."""

for binaries in filter(None, os.environ.get("JOBQUEUE_TEST_POSTGRES", "").split(os.pathsep)):
    SERVERS[f"PostgreSQL at {binaries}"] = Path(binaries)


class ServerPool:
    """Servers that start at their first use and run until the end of the tests."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}
        self._templates: dict[str, str] = {}
        self._shared: dict[str, psycopg.Connection[Any]] = {}
        self._shared_urls: dict[str, str] = {}

    def url(self, name: str) -> str:
        if name not in self._urls:
            parent = self._stack.enter_context(directory())
            self._urls[name] = self._stack.enter_context(server(SERVERS[name], parent / "data"))
        return self._urls[name]

    @contextmanager
    def database(self, name: str, *, schema: bool = True) -> Iterator[str]:
        """Create a database and yield its URL. Its schema is the copy of another database, which takes a fifth of the CPU time."""
        if schema and name not in self._templates:
            self._templates[name] = self._stack.enter_context(database(self.url(name)))
            with connect(self._templates[name], "migrate") as connection:
                migrate(connection)
        template = urlsplit(self._templates[name]).path[1:] if schema else "template1"
        with database(self.url(name), template) as url:
            if schema:
                _execute(url, "SELECT jobqueue_internal.adopt()")  # it is a copy, so its nodes would be on hold
            yield url

    def emptied(self, name: str, schema: str = DEFAULT) -> str:
        """Return the URL of a database with the schema and no rows of this queue. All tests of the store's verbs share it."""
        if name not in self._shared:
            url = self._stack.enter_context(self.database(name))
            self._shared[name] = self._stack.enter_context(psycopg.connect(url, autocommit=True))
            self._shared_urls[name] = url
        empty(self._shared[name], schema)
        return self._shared_urls[name]

    def close(self) -> None:
        self._stack.close()


class Database:
    """Plain SQL for a test's assertions."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = psycopg.connect(url, autocommit=True)

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql, params or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, sql: str, *params: Any) -> Any:
        [[value]] = self.rows(sql, *params)
        return value

    def states(self) -> dict[str, int]:
        """Return how many jobs are in each state."""
        return dict(self.rows("SELECT state, count(*) FROM jobqueue.jobs GROUP BY state"))

    def close(self) -> None:
        self._connection.close()


def empty(connection: psycopg.Connection[Any], schema: str = DEFAULT) -> None:
    """Delete every row of a queue."""
    tables = """
        SELECT oid::regclass::text FROM pg_class
         WHERE relnamespace = to_regnamespace(%s) AND relkind IN ('r', 'p') AND NOT relispartition
           AND relname NOT IN ('schema_version', 'identity')
    """
    names = connection.cursor(row_factory=tuple_row).execute(tables, [f"{schema}_internal"]).fetchall()
    connection.execute(";".join(f"DELETE FROM {name}" for (name,) in names).encode())


@contextmanager
def role(url: str) -> Iterator[str]:
    """Create a role that may only log in, and yield its name. Drop it afterwards, with its objects in this database."""
    name = f"app_{uuid.uuid4().hex}"
    _execute(url, f"CREATE ROLE {name} LOGIN")
    try:
        yield name
    finally:
        _execute(url, f"DROP OWNED BY {name}; DROP ROLE {name}")


def granted(url: str, kind: str, role: str) -> str:
    """Grant a role the privileges of a kind, and return the URL for this role."""
    with connect(url, "migrate") as connection:
        grant(connection, [(kind, role)])
    return as_role(url, role)


def as_role(url: str, role: str) -> str:
    """Return the URL for a role on the same database."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
