"""Create a temporary PostgreSQL database with the schema, fill it with jobs, and measure its work.

The database is on the server of DATABASE_URL. Without this variable, it is on an embedded PostgreSQL in a temporary directory, with
the default settings, so fsync is on.
"""

from __future__ import annotations

import os
import random
import signal
import string
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from benchmarks.harness.machine import Machine
from jobqueue import logs
from jobqueue.storage import schema
from jobqueue.storage.connection import connect
from jobqueue.testing import postgres
from tests.support.processes import Usage, parent_of, usage_of_tree

FILL_BATCH = 100_000
"""Number of jobs in one transaction of `Database.fill`."""

LOOK_INTERVAL = 0.02
"""Seconds between two polls for the end of the jobs; a poll costs the server about 50 microseconds."""

BUSY = "SELECT EXISTS (SELECT FROM jobqueue_internal.pending_jobs) OR EXISTS (SELECT FROM jobqueue_internal.inflight_jobs)"
"""Whether a job is pending or in flight."""

TABLES = (
    "jobqueue_internal.pending_jobs, jobqueue_internal.blocked_jobs, jobqueue_internal.scheduled_jobs, "
    "jobqueue_internal.inflight_jobs, jobqueue_internal.finished_jobs, "
    "jobqueue_internal.dead_jobs, jobqueue_internal.key_checks, jobqueue_internal.key_starts"
)

FILL = """
    INSERT INTO jobqueue_internal.{table} (id, queue, kind, priority, {place}, payload, created_at, available_since)
    SELECT jobqueue_internal.uuid7(), q.names[1 + n %% cardinality(q.names)], q.kinds[1 + n %% cardinality(q.names)],
           0, {when}, %(payload)s,
           now(), {when}
      FROM (SELECT %(queues)s::text[] AS names, %(kinds)s::text[] AS kinds) AS q, generate_series(%(first)s::bigint, %(last)s) AS n
"""
"""Inserts the rows that submit_batch would write. The ranks of two consecutive jobs differ by one microsecond."""


class Cost(msgspec.Struct):
    """The work of the database in a span of time. The values are set at the end of the span.

    Attributes:
        seconds: the length of the span.
        wal_bytes: bytes of WAL written.
        commits: transactions that wrote something, including transactions that were rolled back afterwards.
        cpu: CPU seconds of all server processes; None if the server runs on another machine.
    """

    seconds: float = 0.0
    wal_bytes: int = 0
    commits: int = 0
    cpu: float | None = None

    def cpu_per(self, jobs: int) -> float | None:
        """Return the server's CPU time per job, in microseconds."""
        return None if self.cpu is None else self.cpu / jobs * 1e6


class Database:
    """An empty database with the jobqueue schema.

    Args:
        url: the database's URL.

    Attributes:
        connection: for the benchmark's own queries, in autocommit mode.
        machine: the machine that runs the server.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        with connect(url, "migrate") as migrating:
            schema.migrate(migrating)
        self.connection = self.connect()
        self.machine = Machine.with_server(self.connection)
        self._postmaster = self._find_postmaster()

    def connect(self) -> psycopg.Connection[Any]:
        """Open another connection, in autocommit mode."""
        return psycopg.connect(self.url, autocommit=True, application_name="benchmark")

    def value(self, sql: str, *params: object) -> Any:
        """Run a query that returns one value, and return it."""
        [[value]] = self.connection.execute(sql, params or None).fetchall()
        return value

    def fill(self, jobs: int, *, queues: Mapping[str, str], payload_bytes: int = 100, due_in: float | None = None) -> None:
        """Add jobs, distributed evenly to the queues.

        Args:
            jobs: the number of jobs.
            queues: the kind of the jobs, by queue.
            payload_bytes: the size of each payload.
            due_in: seconds until the jobs are due; None makes them pending.
        """
        table, place, when = "pending_jobs", "rank", "now() + n * interval '1 microsecond'"
        if due_in is not None:
            table, place, when = "scheduled_jobs", "run_at", f"now() + interval '{due_in} seconds' + n * interval '1 microsecond'"
        statement = FILL.format(table=table, place=place, when=when)
        constant = {"queues": list(queues), "kinds": list(queues.values()), "payload": payload_of(payload_bytes)}
        for first in range(0, jobs, FILL_BATCH):
            last = min(first + FILL_BATCH, jobs) - 1
            self.connection.execute(statement, {**constant, "first": first, "last": last})

    def clear(self) -> None:
        """Remove all jobs and free their disk space."""
        self.connection.execute(f"TRUNCATE {TABLES}")

    def settle(self) -> None:
        """Run VACUUM, ANALYZE and CHECKPOINT now, so that the server does not run them during a measurement."""
        self.connection.execute(f"VACUUM (ANALYZE) {TABLES}")
        self.connection.execute("CHECKPOINT")

    def pause(self, *queues: str, paused: bool = True) -> None:
        """Pause or resume queues."""
        self.connection.execute("SELECT jobqueue.pause(q, %s) FROM unnest(%s::text[]) AS q", [paused, list(queues)])

    def last_of(self, queue: str) -> uuid.UUID:
        """Return the id of the queue's pending job with the worst rank, which nodes claim last."""
        found = self.value("SELECT id FROM jobqueue_internal.pending_jobs WHERE queue = %s ORDER BY rank DESC LIMIT 1", queue)
        assert isinstance(found, uuid.UUID)
        return found

    def wait_until_done(self, last: uuid.UUID, timeout: float) -> None:
        """Wait until the given job is claimed, and then until no job is pending or in flight.

        Raises:
            TimeoutError: one of the two waits exceeds `timeout` seconds.
        """
        self.wait_while("SELECT EXISTS (SELECT FROM jobqueue_internal.pending_jobs WHERE id = %s)", last, timeout=timeout)
        self.wait_while(BUSY, timeout=timeout)

    def wait_while(self, sql: str, *params: object, timeout: float, interval: float = LOOK_INTERVAL) -> None:
        """Repeat a query every `interval` seconds while its value is true.

        Raises:
            TimeoutError: the value is still true after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while self.value(sql, *params):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the jobs are not done within {timeout:.0f} s")
            time.sleep(interval)

    @contextmanager
    def span(self) -> Iterator[Cost]:
        """Measure the work of the server during the block, including the work for other databases."""
        cost = Cost()
        wal, transactions, usage, started = self._wal(), self._transactions(), self.usage(), time.monotonic()
        yield cost
        cost.seconds = time.monotonic() - started
        now = self.usage()
        cost.cpu = None if usage is None or now is None else (now - usage).cpu
        cost.wal_bytes = self._wal() - wal
        cost.commits = self._transactions() - transactions

    def usage(self) -> Usage | None:
        """Return the resource usage of the server's processes; None if the server runs on another machine."""
        return None if self._postmaster is None else usage_of_tree(self._postmaster)

    def _wal(self) -> int:
        return int(self.value("SELECT pg_current_wal_insert_lsn() - '0/0'"))

    def _transactions(self) -> int:
        # The number of transactions that wrote something. This number is exact; that of pg_stat_database can be ten seconds old.
        return int(self.value("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"))

    def _find_postmaster(self) -> int | None:
        backend = int(self.value("SELECT pg_backend_pid()"))
        with suppress(OSError):
            if Path(f"/proc/{backend}/cmdline").read_bytes().startswith(b"postgres: "):
                return parent_of(backend)
        return None


def payload_of(size: int) -> str:
    """Return an incompressible JSON object of `size` bytes, or slightly more if `size` is very small."""
    alphabet = string.ascii_letters + string.digits
    padding = "".join(random.Random(size).choices(alphabet, k=max(0, size - len('{"padding": ""}'))))
    return f'{{"padding": "{padding}"}}'


@contextmanager
def database(**settings: str) -> Iterator[Database]:
    """Create a database and remove it after the block.

    Enter the block in the main thread: an embedded server ends with the thread that starts it.

    Args:
        settings: settings of the embedded server, in addition to its defaults.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the cleanup of nodes and server runs
    url = os.environ.get("DATABASE_URL")
    with _embedded(settings) if url is None else postgres.database(url) as own:
        opened = Database(own)
        with opened.connection:
            yield opened


@contextmanager
def _embedded(settings: Mapping[str, str]) -> Iterator[str]:
    logs.configure("warning")
    with tempfile.TemporaryDirectory(prefix="jobqueue-benchmark-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o711)  # as root, the server runs as another user
        with postgres.server(None, Path(directory) / "data", settings=settings) as url:
            yield url
