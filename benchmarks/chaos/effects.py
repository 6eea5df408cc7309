"""Record the runs of jobs in a table of the same database.

Handlers write the records over a separate connection, which breaks only if PostgreSQL itself fails. While PostgreSQL is down, a
handler cannot write, so the handler fails and the node retries the job.
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
        at      float8      NOT NULL   -- on the machine's clock, because a fault may step the database's clock
    );
    -- Lines that handlers write in their jobs' transactions. It has no constraint, so only transactions prevent duplicates.
    CREATE TABLE chaos.written (
        job_id  uuid    NOT NULL,
        attempt integer NOT NULL
    );
"""

What = Literal["began", "ended", "failed", "snoozed", "discarded"]


class Effect(NamedTuple):
    """One record. Each run of a job has a unique id in `run`; `at` is in seconds since 1970, on the machine's clock."""

    run: str
    job_id: str
    attempt: int
    node: int
    what: str
    at: float


class Written(NamedTuple):
    """A line that a run wrote in its job's transaction."""

    job_id: str
    attempt: int


class Recorder:
    """Writes the records of this process. All threads share one connection, which opens when needed, also after it breaks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: psycopg.Connection | None = None

    def write(self, run: str, job: jobqueue.Job, what: What) -> None:
        """Commit one record.

        Raises:
            psycopg.Error: the record may or may not be committed.
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
    """Return a new id for a run."""
    return str(uuid.uuid4())


def read(connection: psycopg.Connection) -> list[Effect]:
    """Read all records in order of time."""
    sql = "SELECT run::text, job_id::text, attempt, node, what, at FROM chaos.effects ORDER BY at"
    return [Effect(*row) for row in connection.execute(sql)]


def read_written(connection: psycopg.Connection) -> list[Written]:
    """Read all lines that were committed with a job's completion."""
    return [Written(*row) for row in connection.execute("SELECT job_id::text, attempt FROM chaos.written")]
