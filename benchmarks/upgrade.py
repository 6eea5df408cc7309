"""Measure the longest submission while a database of version 1 with many jobs is upgraded.

    python -m benchmarks.upgrade [--quick] [--jobs N] [--out DIR]

The database is filled with jobs by the functions of version 1: half of them are pending, a quarter is scheduled, and a quarter has
succeeded. Then four connections submit jobs all the time, each in its own way, while ``jobqueue migrate`` runs the *before* steps,
and later the *after* steps. A submission that fails is repeated at once. Its time counts from the first try.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import click
import psycopg

from benchmarks import harness
from benchmarks.harness import Database
from tests.upgrades.dumps import VERSION_1_SQL, load

WAYS = {
    "submit": "SELECT jobqueue.submit('none', '{}')",
    "submit with keys": "SELECT jobqueue.submit('none', '{}', concurrency_key => 'a', unique_key => gen_random_uuid()::text)",
    "submit_many": f"SELECT jobqueue.submit_many('{json.dumps([{'kind': 'none'}] * 10)}')",
    "submit_batch": f"SELECT * FROM jobqueue.submit_batch('{json.dumps([{'kind': 'none'}])}')",
}
"""The statement of each connection. Nodes and applications of version 1 call submit_batch."""

PAUSE = 0.005
"""Seconds between two submissions of a connection."""

FILL_BATCH = 100_000

FILL = """
    INSERT INTO jobqueue.{table}
           (id, queue, kind, priority, payload, attempt, claims, created_at, available_since, errors, {columns})
    SELECT jobqueue.uuid7(), 'q' || n %% 7, 'none', 0, '{{"padding": "0123456789"}}', 0, 0, now(), now(), '[]', {values}
      FROM generate_series(1, %(jobs)s::bigint) AS n
"""

TABLES = {
    FILL.format(table="pending_jobs", columns="rank", values="now() + n * interval '1 microsecond'"): 0.5,
    FILL.format(table="scheduled_jobs", columns="run_at", values="now() + interval '1 day'"): 0.25,
    FILL.format(table="finished_jobs", columns="state, finished_at", values="'succeeded', now()"): 0.25,
}
"""The statements that fill the tables of version 1, with their shares of the jobs."""


class Sent(NamedTuple):
    """A submission: when it was first sent, how long it took with all tries, in seconds, and the errors of its failed tries."""

    way: str
    at: float
    seconds: float
    errors: Sequence[str]


class Submitters:
    """Threads that submit jobs until the end of the block, one per entry of `WAYS`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._submit, args=way, daemon=True) for way in WAYS.items()]
        self.sent: list[Sent] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _submit(self, way: str, statement: str) -> None:
        with self._database.connect() as submitting:
            while not self._ended.wait(PAUSE):
                began, errors = time.monotonic(), list[str]()
                while True:
                    try:
                        submitting.execute(statement.encode())
                        break
                    except psycopg.Error as error:
                        errors.append(" ".join(str(error).split()))
                self.sent.append(Sent(way, began, time.monotonic() - began, errors))

    def figures(self, since: float, until: float) -> dict[str, harness.Value]:
        """Summarize the submissions that ran in a span of time."""
        sent = [one for one in self.sent if one.at <= until and one.at + one.seconds >= since]
        times = [one.seconds * 1e3 for one in sent]
        longest = defaultdict[str, float](float)
        for one in sent:
            longest[one.way] = max(longest[one.way], one.seconds * 1e3)
        return {
            "s": until - since,
            "submissions": len(sent),
            "failed tries": sum(len(one.errors) for one in sent),
            "p50 ms": harness.percentile(times, 0.5),
            "p99 ms": harness.percentile(times, 0.99),
            "longest ms": max(times),
            **{f"{way}, longest ms": longest[way] for way in WAYS},
        }


def prepare(database: Database, jobs: int) -> None:
    """Replace the schema by version 1, and fill it with jobs."""
    database.connection.execute("DROP SCHEMA jobqueue, jobqueue_internal CASCADE")
    load(database.url, VERSION_1_SQL)
    for done in range(0, jobs, FILL_BATCH):
        for statement, share in TABLES.items():
            database.connection.execute(statement.encode(), {"jobs": round(share * min(FILL_BATCH, jobs - done))})
    database.connection.execute("VACUUM ANALYZE")
    database.connection.execute("CHECKPOINT")


def migrate(database: Database, *options: str) -> None:
    """Run the steps with the command, as an operator does."""
    command = [sys.executable, "-m", "jobqueue", "migrate", "--database-url", database.url, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--jobs", type=click.IntRange(min=1), help="Jobs in the database.  [default: 1,000,000, or 20,000 with --quick]")
@harness.options
def main(quick: bool, out: Path, jobs: int | None) -> None:
    """Measure submissions during an upgrade from version 1."""
    jobs = jobs or (20_000 if quick else 1_000_000)
    seconds = 2.0 if quick else 10.0
    with harness.database() as database:
        report = harness.Report(
            "upgrade",
            f"Submissions during an upgrade from version 1, with {jobs:,} jobs in the database",
            database.machine,
            out,
            notes=f"{len(WAYS)} connections, each with a pause of {PAUSE * 1e3:.0f} ms between two submissions.",
            plotted=["p99 ms", "longest ms"],
        )
        prepare(database, jobs)
        with Submitters(database) as submitters:
            for way in WAYS:  # the first calls on a connection are slower
                while not any(one.way == way for one in submitters.sent):
                    time.sleep(PAUSE)
            for name, step in {
                "version 1": lambda: time.sleep(seconds),
                "before steps": lambda: migrate(database),
                "both versions": lambda: time.sleep(seconds),
                "after steps": lambda: migrate(database, "--finish"),
                "version 2": lambda: time.sleep(seconds),
            }.items():
                began = time.monotonic()
                step()
                report.add(name, submitters.figures(began, time.monotonic()))
        report.write()
        for error, times in sorted(Counter(error for one in submitters.sent for error in one.errors).items()):
            click.echo(f"{times:,} failed tries: {error}")


if __name__ == "__main__":
    main()
