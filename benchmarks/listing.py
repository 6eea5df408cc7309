"""Measure how long one page of a list takes, with ten thousand jobs and with many more.

    python -m benchmarks.listing [--jobs 10000000] [--quick] [--out DIR]

Nine of ten jobs have succeeded, the others are pending. One kind has only ten jobs. A page has 100 jobs. Deep pages, and pages of
jobs created before a time, begin at a random job, so their rows are rarely in memory.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import psycopg

from benchmarks import harness
from benchmarks.harness import Database, Spread, percentile
from benchmarks.harness.database import FILL_BATCH

FEW = 10_000
RARE = 10
"""Number of jobs of the rare kind."""

BEGAN = 1_700_000_000_000
"""Creation time of the first job, in milliseconds since 1970; there is one job per millisecond."""

FILL = """
    WITH made AS (
        SELECT n, (lpad(to_hex(%(began)s + n), 12, '0') || '7' || substr(md5(n::text), 1, 19))::uuid AS id,
               to_timestamp((%(began)s + n) / 1000.0) AS moment, CASE WHEN n %% %(every)s = 0 THEN 'rare' ELSE 'common' END AS kind
          FROM generate_series(%(first)s::bigint, %(last)s) AS n
    ), pending AS (
        INSERT INTO jobqueue_internal.pending_jobs (id, queue, kind, priority, rank, payload, created_at, available_since)
        SELECT m.id, 'default', m.kind, 0, m.moment, %(payload)s, m.moment, m.moment FROM made AS m WHERE m.n %% 10 = 5
    )
    INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at,
        available_since, claimed_at, finished_at, errors)
    SELECT m.id, 'default', m.kind, 0, 'succeeded', %(payload)s, 1, 1, m.moment, m.moment, now(), now(), '[]'
      FROM made AS m WHERE m.n %% 10 <> 5
"""


def fill(database: Database, jobs: int) -> None:
    """Insert `jobs` jobs, 3,600,000 for each hour."""
    constant = {"began": BEGAN, "every": jobs // RARE, "payload": harness.payload_of(100)}
    for first in range(0, jobs, FILL_BATCH):
        database.connection.execute(FILL, {**constant, "first": first, "last": min(first + FILL_BATCH, jobs) - 1})


def asked(connection: psycopg.Connection[Any], jobs: int) -> dict[str, Callable[[], object]]:
    """Return functions by name. Each function requests a page, and each call requests a different page."""

    def moment() -> int:
        return BEGAN + random.randrange(jobs)

    def page(wanted: str, after: str | None = None) -> object:
        return connection.execute("SELECT jobqueue.list_jobs(%s::jsonb, 100, %s::uuid)", (wanted, after)).fetchone()

    def before() -> object:
        text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment() / 1000))
        return page(f'{{"created_before": "{text}"}}')

    def deep(wanted: str) -> object:
        place = f"{moment():012x}"
        return page(wanted, f"{place[:8]}-{place[8:]}-7000-8000-000000000000")

    return {
        "first page": lambda: page('{"all": true}'),
        "deep page": lambda: deep('{"all": true}'),
        "created before": before,
        "first page, pending": lambda: page('{"state": "pending"}'),
        "first page, a rare kind": lambda: page('{"kind": "rare"}'),
        "deep page, a rare kind": lambda: deep('{"kind": "rare"}'),
        "deep page, a rare kind, pending": lambda: deep('{"kind": "rare", "state": "pending"}'),
    }


def measure(database: Database, jobs: int, looks: int) -> Mapping[str, list[float]]:
    """Request each kind of page `looks` times among `jobs` jobs. Return the milliseconds of each request."""
    database.clear()
    fill(database, jobs)
    database.settle()
    with database.connect() as connection:
        cases = asked(connection, jobs)
        took: dict[str, list[float]] = {name: [] for name in cases}
        for look in range(looks + 1):
            for name, case in cases.items():
                began = time.perf_counter()
                case()
                if look:  # the first request also reads the system catalogs
                    took[name].append((time.perf_counter() - began) * 1000)
    return took


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--jobs", type=click.IntRange(min=FEW), help="Larger number of jobs.  [default: 10 million, or 100,000 with --quick]")
@harness.options
def main(quick: bool, out: Path, jobs: int | None) -> None:
    """Measure pages of a list with few jobs and with many."""
    jobs = jobs or (100_000 if quick else 10_000_000)
    with harness.database() as database:
        report = harness.Report(
            "listing",
            f"A page of a list, with {FEW:,} jobs and with {jobs:,}",
            database.machine,
            out,
            notes="Milliseconds for jobqueue.list_jobs, called from this machine. "
            "Ratio: the median with many jobs, divided by the median with few.",
            plotted=["p50 ms, many", "ratio"],
        )
        few, many = [measure(database, count, 20 if quick else 100) for count in (FEW, jobs)]
        for name, samples in many.items():
            median = percentile(few[name], 0.5)
            report.add(
                name,
                {
                    "p50 ms, few": median,
                    "max ms, few": max(few[name]),
                    "p50 ms, many": percentile(samples, 0.5),
                    "p99 ms, many": percentile(samples, 0.99),
                    "max ms, many": max(samples),
                    "ratio": Spread.of([percentile(samples, 0.5) / median]),
                },
            )
        report.write()


if __name__ == "__main__":
    main()
