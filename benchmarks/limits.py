"""Measure how much throughput limits cost, and whether queues reach their rates. Jobs do nothing, and the services are real.

    python -m benchmarks.limits [--quick] [--out DIR]

The jobs are submitted while their queue is paused. The time for a rate runs from the first claim to the end of the last job, on the
database's clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import msgspec

from benchmarks import harness
from benchmarks.harness import Cost, Database, Spread

WIDTH = 16
"""Maximum number of jobs that a node runs at once."""

WARM_UP = 200
"""Number of jobs to run before the measurement, under the same limits, because the first call of an SQL function is slower."""

FILL_BATCH = 10_000

PATIENCE = 300.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs and limits of a drain.

    Attributes:
        settings: the arguments of ``jobqueue.configure``.
        jobs: the number of jobs, as a share of ``--jobs``.
        keys: the number of concurrency keys of the jobs; 0 for jobs without keys.
        blocked: number of additional jobs of another key. They wait behind a job that never ends.
        asked: jobs per second that the limit allows.
    """

    settings: str = ""
    jobs: float = 1.0
    nodes: int = 1
    keys: int = 0
    blocked: int = 0
    asked: float | None = None


CASES = {
    "no limits": Case(),
    "no limits, 100,000 blocked beside": Case(blocked=100_000),
    "max_running 16": Case(settings="max_running => 16"),
    "max_running 16, two nodes": Case(settings="max_running => 16", nodes=2),
    "rate 1,000": Case(settings="rate => 1000, burst => 50", jobs=0.2, asked=1000),
    "rate 100, two nodes": Case(settings="rate => 100, burst => 10", nodes=2, jobs=0.02, asked=100),
    "1,000 keys, one each": Case(keys=1_000, jobs=0.5),
    "1,000 keys, one each, two nodes": Case(keys=1_000, jobs=0.5, nodes=2),
    "10 keys, rate 20 each": Case(settings="key_rate => 20, key_burst => 2", keys=10, jobs=0.02, asked=200),
}


class Drained(msgspec.Struct, frozen=True):
    """One drain: its cost, the seconds from the first claim to the end of the last job, and the seconds to the last claim."""

    seconds: float
    starts: float
    cost: Cost


def drain(database: Database, case: Case, jobs: int) -> Drained:
    """Drain `jobs` jobs once, with new nodes."""
    database.clear()
    database.connection.execute(
        "DELETE FROM jobqueue_internal.queues; DELETE FROM jobqueue_internal.queue_limits; TRUNCATE jobqueue_internal.key_buckets"
    )
    database.connection.execute(f"SELECT jobqueue.configure('q'{', ' + case.settings if case.settings else ''})")
    with ExitStack() as running:
        for _ in range(case.nodes):
            running.enter_context(harness.Node(database, "benchmarks.handlers", queues={"q": WIDTH}))
        if case.blocked:
            _submit(database, case.blocked, 1, "default")
            database.value("SELECT count(*) FROM jobqueue_internal.admit(1)")
        for count in (WARM_UP, jobs):
            database.pause("q")
            time.sleep(0.1)  # a claim may still be running
            _submit(database, count, case.keys, "q")
            began = database.value("SELECT now()")
            with database.span() as cost:
                database.pause("q", paused=False)
                unfinished = "SELECT count(*) < %s FROM jobqueue_internal.finished_jobs WHERE claimed_at > %s"
                database.wait_while(unfinished, count, began, timeout=PATIENCE, interval=0.1)
        seconds, starts = database.connection.execute(
            "SELECT extract(epoch FROM max(finished_at) - min(claimed_at))::float8,"
            " extract(epoch FROM max(claimed_at) - min(claimed_at))::float8"
            " FROM jobqueue_internal.finished_jobs WHERE claimed_at > %s",
            [began],
        ).fetchall()[0]
    return Drained(seconds, starts, cost)


def _submit(database: Database, jobs: int, keys: int, queue: str) -> None:
    sql = """
        SELECT cardinality(jobqueue.submit_many(jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                   'kind', 'async', 'queue', %s::text, 'payload', %s::jsonb,
                   'concurrency_key', CASE WHEN %s > 0 THEN 'key ' || n %% %s END)))))
          FROM generate_series(%s::integer, %s) AS n
    """
    for first in range(0, jobs, FILL_BATCH):
        last = min(first + FILL_BATCH, jobs) - 1
        database.value(sql, queue, harness.payload_of(100), keys, max(1, keys), first, last)


def figures(jobs: int, case: Case, drains: Sequence[Drained], bare: Sequence[Drained], bare_jobs: int) -> dict[str, harness.Value]:
    """Make a row from a case's repetitions and the drains without limits of the same turns."""
    rates = [jobs / one.seconds for one in drains]
    cpu = [one.cost.cpu_per(jobs) for one in drains]
    return {
        "jobs": jobs,
        "jobs/s": Spread.of(rates),
        "% of no limits": Spread.of([rate / (bare_jobs / one.seconds) * 100 for rate, one in zip(rates, bare, strict=True)]),
        "asked": case.asked,
        "% of asked": None if case.asked is None else Spread.of([jobs / one.starts / case.asked * 100 for one in drains]),
        "PostgreSQL us/job": Spread.of([one for one in cpu if one is not None]) if None not in cpu else None,
        "WAL bytes/job": Spread.of([one.cost.wal_bytes / jobs for one in drains]),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--jobs",
    type=click.IntRange(min=1000),
    help="Jobs of a drain; limited cases use fewer.  [default: 50,000, or 2,000 with --quick]",
)
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions.  [default: 3, or 1 with --quick]")
@harness.options
def main(quick: bool, out: Path, jobs: int | None, repeats: int | None) -> None:
    """Measure how much throughput limits of queues and keys cost, and whether queues reach their rates."""
    jobs = jobs or (2_000 if quick else 50_000)
    counts = {name: max(100, int(jobs * case.jobs)) for name, case in CASES.items()}
    with harness.database() as database:
        report = harness.Report(
            "limits",
            "Drains under limits of queues and of concurrency keys",
            database.machine,
            out,
            notes=f"Default: one node, {WIDTH} jobs at once in a node, an async handler that does nothing, payloads of 100 B.",
            plotted=["jobs/s", "% of no limits", "% of asked", "PostgreSQL us/job"],
        )
        results = harness.interleave(
            {name: partial(drain, database, case, counts[name]) for name, case in CASES.items()}, repeats or (1 if quick else 3)
        )
        bare = next(iter(CASES))
        for name, case in CASES.items():
            report.add(name, figures(counts[name], case, results[name], results[bare], counts[bare]))
        report.write()


if __name__ == "__main__":
    main()
