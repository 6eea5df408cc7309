"""The record of what really ran: a table in the same database, written by the handlers over a connection that nothing breaks.

Nothing but PostgreSQL itself, that is: while it is away a handler cannot write, fails, and is tried again.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from typing import Literal, NamedTuple

import psycopg

import jobqueue
from benchmarks.chaos.database import connect

URL_VARIABLE = "CHAOS_DATABASE_URL"
NODE_VARIABLE = "CHAOS_NODE"

SCHEMA = """
    CREATE SCHEMA chaos;
    CREATE TABLE chaos.effects (
        run     uuid        NOT NULL,
        job_id  uuid        NOT NULL,
        attempt integer     NOT NULL,
        node    integer     NOT NULL,
        pid     integer     NOT NULL,
        what    text        NOT NULL,
        at      float8      NOT NULL   -- by the machine's clock: a fault may step the database's
    );
    -- What handlers write in the transactions that complete their jobs. No constraint: it is the transactions that must do.
    CREATE TABLE chaos.written (
        job_id  uuid    NOT NULL,
        attempt integer NOT NULL
    );
"""

What = Literal["began", "ended", "failed", "snoozed", "discarded"]


class Effect(NamedTuple):
    """One line of the record; `run` is new for each run of a job, `at` is in seconds since 1970 on the machine's clock."""

    run: str
    job_id: str
    attempt: int
    node: int
    what: str
    at: float


class Written(NamedTuple):
    """A line that a run wrote in the transaction that was to complete its job."""

    job_id: str
    attempt: int


class Recorder:
    """This process's writer: one connection for all threads, opened when it is needed and again after it broke."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: psycopg.Connection | None = None

    def write(self, run: str, job: jobqueue.Job, what: What) -> None:
        """Commit one line.

        Raises:
            psycopg.Error: it may or may not be there.
        """
        sql = "INSERT INTO chaos.effects (run, job_id, attempt, node, pid, what, at) VALUES (%s, %s, %s, %s, %s, %s, %s)"
        at = time.time()
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = connect(os.environ[URL_VARIABLE], "effects")
                self._connection.execute(sql, (run, job.id, job.attempt, os.environ[NODE_VARIABLE], os.getpid(), what, at))
            except psycopg.Error:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
                raise


def new_run() -> str:
    """Name a run."""
    return str(uuid.uuid4())


def read(connection: psycopg.Connection) -> list[Effect]:
    """Read the whole record in the order of time."""
    sql = "SELECT run::text, job_id::text, attempt, node, what, at FROM chaos.effects ORDER BY at"
    return [Effect(*row) for row in connection.execute(sql)]


def read_written(connection: psycopg.Connection) -> list[Written]:
    """Read everything that was committed with a job's completion."""
    return [Written(*row) for row in connection.execute("SELECT job_id::text, attempt FROM chaos.written")]
