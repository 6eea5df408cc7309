"""The servers and databases of `jobqueue.testing.postgres`, and more helpers for the tests of jobqueue."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psycopg
from psycopg.rows import tuple_row

from jobqueue.testing.postgres import FAST, database, directory, server, wait_until_ready

__all__ = ["FAST", "as_role", "database", "directory", "empty", "role", "server", "wait_until_ready"]


def empty(connection: psycopg.Connection[Any]) -> None:
    """Delete every row of a database that has the schema."""
    tables = """
        SELECT oid::regclass::text FROM pg_class
         WHERE relnamespace = 'jobqueue'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
           AND relname <> 'schema_version'
    """
    names = connection.cursor(row_factory=tuple_row).execute(tables).fetchall()
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


def as_role(url: str, role: str) -> str:
    """Return the URL for a role on the same database."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
