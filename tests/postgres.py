"""The servers and databases of `jobqueue.testing.postgres`, and what our own tests need besides."""

from __future__ import annotations

from typing import Any

import psycopg

from jobqueue.testing.postgres import FAST, database, directory, server, wait_until_ready

__all__ = ["FAST", "database", "directory", "empty", "server", "wait_until_ready"]


def empty(connection: psycopg.Connection[Any]) -> None:
    """Delete every row of a database that has the schema."""
    tables = ["pending_jobs", "scheduled_jobs", "inflight_jobs", "finished_jobs", "dead_jobs", "nodes", "queues"]
    connection.execute(";".join(f"DELETE FROM jobqueue.{table}" for table in tables).encode())
