"""Measure what an idle node costs, and how long it takes to start.

    python -m benchmarks.idle [--quick] [--out DIR]

A node with one queue and a node with 16 queues are measured in turn. The time of a start counts from exec to the line that reports
the URL. A start is measured on a database with the schema, on an empty database, and with the embedded PostgreSQL, which runs
initdb.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import psycopg

from benchmarks import harness
from benchmarks.harness import Database, Node, Spread, Usage

HANDLERS = "benchmarks.handlers"

QUEUES = {"one queue": {"default": 16}, "16 queues": {f"q{number}": 1 for number in range(16)}}

SETTLE = 3.0
"""Seconds after the start before a node counts as idle."""

STATEMENTS_LIBRARY = "pg_stat_statements"

QUERIES = """
    SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
     WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query !~ 'pg_current_|pg_stat_|TRUNCATE'
"""
"""Counts all statements except the statements of this program."""


class Idle(msgspec.Struct, frozen=True):
    """The cost of idling for `seconds` seconds. `queries` is None if pg_stat_statements is not available."""

    seconds: float
    node: Usage
    server: Usage | None
    queries: int | None
    commits: int
    wal_bytes: int


def idle(database: Database, queues: Mapping[str, int], seconds: float) -> Idle:
    """Measure an idle node."""
    database.clear()
    with Node(database, HANDLERS, queues=queues) as node:
        time.sleep(SETTLE)
        queries, server, used = _queries(database), database.usage(), node.usage()
        with database.span() as cost:
            time.sleep(seconds)
        used, now, asked = node.usage() - used, database.usage(), _queries(database)
        return Idle(
            cost.seconds,
            used,
            None if server is None or now is None else now - server,
            None if queries is None or asked is None else asked - queries,
            cost.commits,
            cost.wal_bytes,
        )


def _queries(database: Database) -> int | None:
    """Return the number of statements that other programs have run."""
    try:
        return int(database.value(QUERIES))
    except psycopg.errors.UndefinedTable:
        return None


def start(database: Database) -> float:
    """Measure a start on a database with the schema."""
    with Node(database, HANDLERS) as node:
        return node.start_seconds


def start_on_empty_database(database: Database) -> float:
    """Measure a start on a database without the schema."""
    database.connection.execute("DROP SCHEMA jobqueue, jobqueue_internal CASCADE")
    return start(database)


def start_embedded(*, first: bool) -> float:
    """Measure a start with the embedded PostgreSQL, without data (`first`) or with data."""
    directory = Path(tempfile.mkdtemp(prefix="jobqueue-benchmark-"))
    directory.chmod(0o711)  # as root, the server runs as another user
    try:
        with Node(None, HANDLERS, options={"data-dir": directory / "data"}) as node:
            seconds = node.start_seconds
        if not first:
            with Node(None, HANDLERS, options={"data-dir": directory / "data"}) as node:
                seconds = node.start_seconds
        return seconds
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def figures(idles: list[Idle]) -> dict[str, harness.Value]:
    """Make a row from a node's repetitions."""

    def per_second(name: str) -> Spread | None:
        samples: list[Any] = [getattr(one, name) for one in idles]
        return None if None in samples else Spread.of([sample / one.seconds for sample, one in zip(samples, idles, strict=True)])

    return {
        "CPU %": Spread.of([one.node.cpu / one.seconds * 100 for one in idles]),
        "PostgreSQL CPU %": Spread.of([one.server.cpu / one.seconds * 100 for one in idles if one.server is not None] or [0.0]),
        "wake-ups/s": Spread.of([one.node.wakeups / one.seconds for one in idles]),
        "queries/s": per_second("queries"),
        "writing commits/s": per_second("commits"),
        "WAL bytes/s": per_second("wal_bytes"),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.FloatRange(min=1), help="Seconds of one measurement.  [default: 20, or 4 with --quick]")
@harness.options
def main(quick: bool, out: Path, seconds: float | None) -> None:
    """Measure what an idle node costs, and how long it takes to start."""
    seconds = seconds or (4.0 if quick else 20.0)
    repeats = 1 if quick else 3
    with harness.database(shared_preload_libraries=STATEMENTS_LIBRARY) as database:
        report = harness.Report(
            "idle",
            "An idle node, and the start of a node",
            database.machine,
            out,
            notes=f"Measured for {seconds:g} s. Starts are from exec to serving. CPU in % of one core.",
            plotted=["CPU %", "wake-ups/s", "queries/s", "start s"],
        )
        try:
            database.connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            database.value("SELECT count(*) FROM pg_stat_statements")
        except psycopg.Error:  # the server of a user may lack the extension, or may forbid it
            database.connection.execute("DROP EXTENSION IF EXISTS pg_stat_statements")
        watched = harness.interleave({name: partial(idle, database, queues, seconds) for name, queues in QUEUES.items()}, repeats)
        for name, idles in watched.items():
            report.add(f"idle, {name}", figures(idles))
        starts = harness.interleave(
            {
                "start, database prepared": partial(start, database),
                "start, empty database": partial(start_on_empty_database, database),
                "start, embedded, data there": partial(start_embedded, first=False),
                "start, embedded, first time": partial(start_embedded, first=True),
            },
            repeats,
        )
        for name, samples in starts.items():
            ratio = [one / base for one, base in zip(samples, next(iter(starts.values())), strict=True)]
            report.add(name, {"start s": Spread.of(samples), "ratio": Spread.of(ratio)})
        report.write()


if __name__ == "__main__":
    main()
