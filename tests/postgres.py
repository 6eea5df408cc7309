"""The servers and databases of `jobqueue.testing.postgres`, and what our own tests need besides."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import tuple_row

from jobqueue.testing.postgres import FAST, database, directory, server, wait_until_ready

__all__ = ["FAST", "database", "directory", "empty", "server", "wait_until_ready"]


def empty(connection: psycopg.Connection[Any]) -> None:
    """Delete every row of a database that has the schema."""
    tables = """
        SELECT oid::regclass::text FROM pg_class
         WHERE relnamespace = 'jobqueue'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
           AND relname <> 'schema_version'
    """
    names = connection.cursor(row_factory=tuple_row).execute(tables).fetchall()
    connection.execute(";".join(f"DELETE FROM {name}" for (name,) in names).encode())
