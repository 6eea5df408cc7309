"""Measure the speed of a service with deep queues, and with an old transaction that prevents the removal of dead rows.

    python -m benchmarks.depth [--quick] [--full] [--pinned-minutes N] [--out DIR]

The first part drains the same number of jobs while more and more other jobs are pending or scheduled. The second part runs a steady
load while an open transaction holds back the xmin horizon, and compares each minute with the first minute.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import msgspec

from benchmarks import harness
from benchmarks.harness import Database, Node, Spread, Usage

QUEUES = {"default": 16}
KINDS = {"default": "async"}

SHALLOW, DEEP, DEEPEST = 10_000, 1_000_000, 10_000_000

BYTES_PER_JOB = 1_200
"""Disk space of a job in bytes: its row, its index entries, and WAL that two checkpoints have not yet removed."""

TOMORROW = 86_400.0
"""Seconds until the scheduled jobs are due. This is longer than the benchmark runs."""

LOAD = 800
"""Jobs per second while the horizon is held back."""

LOAD_BATCHES = 20
"""Requests per second that submit these jobs."""

SLOWEST = 100.0
"""Minimum rate of a drain, in jobs per second. A slower drain fails."""


class Claims(msgspec.Struct, frozen=True):
    """A node's metrics of all its claims so far."""

    count: float
    seconds: float

    @classmethod
    def of(cls, node: Node) -> Claims:
        with urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("jobqueue_claim_seconds_"))
        return cls(float(found["jobqueue_claim_seconds_count"]), float(found["jobqueue_claim_seconds_sum"]))

    def milliseconds_since(self, before: Claims) -> float:
        """Return the mean duration of a claim since `before`."""
        return (self.seconds - before.seconds) / max(1.0, self.count - before.count) * 1000


class Drained(msgspec.Struct, frozen=True):
    """A drain while the database contains other jobs."""

    rate: float
    claim_ms: float
    usage: Usage


def drain(database: Database, jobs: int, *, pending: int = 0, scheduled: int = 0) -> Drained:
    """Drain `jobs` jobs while `pending` jobs wait behind them and `scheduled` jobs are not due."""
    database.clear()
    database.pause("default")
    database.fill(jobs, queues=KINDS)
    last = database.last_of("default")
    database.fill(pending, queues=KINDS)
    database.fill(scheduled, queues=KINDS, due_in=TOMORROW)
    database.settle()
    with Node(database, "benchmarks.handlers", queues=QUEUES) as node:
        before = Claims.of(node)
        started = time.monotonic()
        database.pause("default", paused=False)
        unfinished = "SELECT NOT EXISTS (SELECT FROM jobqueue_internal.finished_jobs WHERE id = %s)"
        database.wait_while(unfinished, last, timeout=30 + jobs / SLOWEST)
        seconds = time.monotonic() - started
        claims, usage = Claims.of(node), node.usage()
        database.pause("default")
    return Drained(jobs / seconds, claims.milliseconds_since(before), usage)


class Minute(msgspec.Struct, frozen=True):
    """One minute under load: the mean duration of claims, and the latency of jobs from available to finished."""

    claim_ms: float
    p50_ms: float
    p99_ms: float
    rate: float


def under_load(database: Database, minutes: float, *, pinned: bool) -> list[Minute]:
    """Keep a node under a steady load, with or without a transaction that holds back the horizon."""
    database.clear()
    database.pause("default", paused=False)
    found = []
    with Node(database, "benchmarks.handlers", queues=QUEUES) as node, _pin(database, really=pinned), _load(database):
        for _ in range(max(2, math.ceil(minutes))):
            before, began = Claims.of(node), database.value("SELECT clock_timestamp()")
            time.sleep(60 * minutes / max(2, math.ceil(minutes)))
            claim_ms = Claims.of(node).milliseconds_since(before)
            p50, p99, rate = database.connection.execute(
                """
                SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY took), percentile_cont(0.99) WITHIN GROUP (ORDER BY took),
                       count(*) / extract(epoch FROM clock_timestamp() - %(began)s)
                  FROM (SELECT extract(epoch FROM finished_at - available_since)::float8 * 1000 AS took
                          FROM jobqueue_internal.finished_jobs WHERE finished_at > %(began)s) AS jobs
                """,
                {"began": began},
            ).fetchall()[0]
            found.append(Minute(claim_ms, p50, p99, float(rate)))
    return found


@contextmanager
def _pin(database: Database, *, really: bool) -> Iterator[None]:
    """Hold a transaction with a snapshot and an id open, so that PostgreSQL cannot remove rows that die after its start."""
    if not really:
        yield
        return
    with database.connect() as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT pg_current_xact_id()")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def _load(database: Database) -> Iterator[None]:
    """Submit `LOAD` jobs per second."""
    job = {"kind": "async", "payload": msgspec.Raw(harness.payload_of(100).encode())}
    batch = msgspec.json.encode([job] * (LOAD // LOAD_BATCHES)).decode()
    over = threading.Event()

    def submit() -> None:
        due = time.monotonic()
        with database.connect() as connection:
            while not over.wait(max(0.0, due - time.monotonic())):
                connection.execute("SELECT jobqueue.submit_many(%s::jsonb)", [batch], prepare=True)
                due += 1 / LOAD_BATCHES

    thread = threading.Thread(target=submit, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--full", is_flag=True, help=f"Use queues of up to {DEEPEST:,} jobs, instead of {DEEP:,}.")
@click.option("--jobs", type=click.IntRange(min=100), help="Jobs of a drain.  [default: 30,000, or 3,000 with --quick]")
@click.option("--pinned-minutes", type=click.FloatRange(min=0), default=1.0, show_default=True, help="0 skips the second part.")
@harness.options
def main(quick: bool, out: Path, full: bool, jobs: int | None, pinned_minutes: float) -> None:
    """Measure the speed of a service with deep queues, and while a transaction holds back the horizon."""
    jobs = jobs or (3_000 if quick else 30_000)
    depths = [1_000, 50_000] if quick else [SHALLOW, DEEP, DEEPEST] if full else [SHALLOW, DEEP]
    minutes = min(pinned_minutes, 0.2) if quick else pinned_minutes
    with harness.database() as database:
        report = harness.Report(
            "depth",
            f"Drain of {jobs:,} jobs among others; a load of {LOAD} jobs/s while an old transaction holds back the horizon",
            database.machine,
            out,
            notes="Ratios are to the first row of each kind. Latency is from available to finished, by the database's clock.",
            plotted=["jobs/s", "claim ms", "RSS MiB"],
        )
        _report_depths(report, database, jobs, depths, repeats=1 if quick or full else 2)
        if minutes:
            _report_minutes(report, under_load(database, min(minutes, 2), pinned=False), "not pinned")
            _report_minutes(report, under_load(database, minutes, pinned=True), "horizon pinned")
        report.write()


def _report_depths(report: harness.Report, database: Database, jobs: int, depths: Sequence[int], *, repeats: int) -> None:
    free = shutil.disk_usage(tempfile.gettempdir()).free  # the disk that stores the data of the embedded server
    fitting = [depth for depth in depths if depth * BYTES_PER_JOB < free / 2]
    cases = {f"{depth:,} pending": partial(drain, database, jobs, pending=depth) for depth in fitting}
    cases |= {f"{depth:,} scheduled": partial(drain, database, jobs, scheduled=depth) for depth in fitting}
    results = harness.interleave(cases, repeats)
    first = next(iter(results.values()))
    for name, drains in results.items():
        report.add(
            name,
            {
                "jobs/s": Spread.of([one.rate for one in drains]),
                "ratio": Spread.of([one.rate / base.rate for one, base in zip(drains, first, strict=True)]),
                "claim ms": Spread.of([one.claim_ms for one in drains]),
                "RSS MiB": Spread.of([one.usage.rss_mib for one in drains]),
            },
        )


def _report_minutes(report: harness.Report, minutes: Sequence[Minute], name: str) -> None:
    for number, row in (("first", minutes[0]), ("last", minutes[-1])):
        report.add(
            f"{name}, {number} of {len(minutes)} parts",
            {
                "jobs/s": row.rate,
                "ratio": row.claim_ms / minutes[0].claim_ms,
                "claim ms": row.claim_ms,
                "p50 ms": row.p50_ms,
                "p99 ms": row.p99_ms,
            },
        )
    report.draw("claim ms by part", name, [(float(part), row.claim_ms) for part, row in enumerate(minutes, 1)])
    report.draw("p50 of latency, ms, by part", name, [(float(part), row.p50_ms) for part, row in enumerate(minutes, 1)])


if __name__ == "__main__":
    main()
