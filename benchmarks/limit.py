"""Measure the floor: how fast the database runs jobqueue's statements on one or two bare connections.

    python -m benchmarks.limit [--quick] [--out DIR]

It runs the statements of `jobqueue.storage.postgres` in loops, without an engine. No service can be faster than these loops. Other
benchmarks call `drain` to report their rates as shares of its rate.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import psycopg
import uuid_utils

from benchmarks import harness
from benchmarks.harness import Cost, Database, Spread
from jobqueue import documents
from jobqueue.job import ClaimedJob, NewJob, Outcome

BATCH = 2_000
"""Number of jobs in each claim and in each finish, as in the service."""

SUBMIT_BATCHES = (1, 10, 100, 1000)
SUBMITS = 400
"""Maximum number of transactions in one measurement."""

MAX_AHEAD = 2
"""Maximum number of batches in a drain that are claimed but not finished. A service has about 5,000 claimed jobs too."""

LEASE = 86_400.0

SUBMIT = b"SELECT best FROM jobqueue_internal.submit_batch(%s::jsonb, false, %s)"
CLAIM = b"SELECT jobqueue_internal.claim(%s, %s::jsonb, %s::jsonb)"
FINISH = b"SELECT jobqueue_internal.finish(%s, %s::jsonb)"

_claimed = msgspec.json.Decoder(list[ClaimedJob])


class Node:
    """A row in the table of nodes, without a process."""

    def __init__(self, database: Database, queues: Sequence[str]) -> None:
        self._database = database
        self._id = str(uuid.uuid4())
        self._wants = msgspec.json.encode(dict.fromkeys(queues, (BATCH // len(queues), None))).decode()
        widths = msgspec.json.encode(dict.fromkeys(queues, BATCH)).decode()
        database.value("SELECT jobqueue_internal.join_node(%s, 'benchmark', 0, 'none', '', %s::jsonb, %s)", self._id, widths, LEASE)

    def claim(self, connection: psycopg.Connection[Any]) -> list[ClaimedJob]:
        """Claim up to `BATCH` jobs."""
        [[text]] = connection.execute(CLAIM, (self._id, self._wants, "{}"), prepare=True).fetchall()
        return _claimed.decode(text)

    def finish(self, connection: psycopg.Connection[Any], jobs: Sequence[ClaimedJob]) -> None:
        """Finish the jobs as succeeded."""
        outcomes = [documents.encode(Outcome(id=job.id, claims=job.claims, outcome="succeeded")) for job in jobs]
        [[stale]] = connection.execute(FINISH, (self._id, documents.join(outcomes)), prepare=True).fetchall()
        if stale:
            raise RuntimeError(f"{len(stale)} outcomes are stale: another node works on this database")

    def leave(self) -> None:
        """Delete the row of the node."""
        self._database.value("SELECT jobqueue_internal.leave_node(%s)", self._id)


def submit(database: Database, jobs: int, *, batch: int, payload_bytes: int = 100) -> Cost:
    """Submit jobs in batches over one connection."""
    database.clear()
    payload = msgspec.Raw(harness.payload_of(payload_bytes).encode())
    texts = [
        documents.join([msgspec.json.encode(NewJob(id=str(uuid_utils.uuid7()), payload=payload)) for _ in range(batch)])
        for _ in range(jobs // batch)
    ]
    with database.connect() as connection, database.span() as cost:
        for text in texts:
            connection.execute(SUBMIT, (text, False), prepare=True).fetchall()
    return cost


def claim(database: Database, jobs: int, *, payload_bytes: int = 100) -> Cost:
    """Claim jobs over one connection."""
    return _claim_then_finish(database, jobs, payload_bytes)[0]


def finish(database: Database, jobs: int, *, payload_bytes: int = 100) -> Cost:
    """Finish claimed jobs over one connection."""
    return _claim_then_finish(database, jobs, payload_bytes)[1]


def drain(database: Database, jobs: int, *, payload_bytes: int = 100, queues: Sequence[str] = ("default",)) -> Cost:
    """Claim and finish jobs over two connections at the same time, as the floor for a service's drain."""
    _fill(database, jobs, payload_bytes, queues)
    node = Node(database, queues)
    batches: queue.Queue[list[ClaimedJob]] = queue.Queue(MAX_AHEAD)

    def claim_all() -> None:
        claimed = None
        with database.connect() as connection:
            while claimed != []:
                claimed = node.claim(connection)
                batches.put(claimed)

    def finish_all() -> None:
        with database.connect() as connection:
            while claimed := batches.get():
                node.finish(connection, claimed)

    with database.span() as cost:
        _together(claim_all, finish_all)
    node.leave()
    return cost


def _claim_then_finish(database: Database, jobs: int, payload_bytes: int) -> tuple[Cost, Cost]:
    _fill(database, jobs, payload_bytes, ["default"])
    node = Node(database, ["default"])
    batches = []
    with database.connect() as connection:
        with database.span() as of_claim:
            while claimed := node.claim(connection):
                batches.append(claimed)
        with database.span() as of_finish:
            for claimed in batches:
                node.finish(connection, claimed)
    node.leave()
    return of_claim, of_finish


def _fill(database: Database, jobs: int, payload_bytes: int, queues: Sequence[str]) -> None:
    database.clear()
    database.fill(jobs, queues=dict.fromkeys(queues, "async"), payload_bytes=payload_bytes)


def _together(*works: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            errors.append(error)

    threads = [threading.Thread(target=run, args=[work], daemon=True) for work in works]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not errors:
        for thread in threads:
            thread.join(0.01)
    if errors:
        raise errors[0]


def figures(jobs: int, costs: Sequence[Cost]) -> dict[str, harness.Value]:
    """Make a row from the costs of a repeated measurement with `jobs` jobs."""
    cpu = [cost.cpu_per(jobs) for cost in costs]
    return {
        "jobs/s": Spread.of([jobs / cost.seconds for cost in costs]),
        "WAL bytes/job": Spread.of([cost.wal_bytes / jobs for cost in costs]),
        "commits/job": Spread.of([cost.commits / jobs for cost in costs]),
        "PostgreSQL us/job": Spread.of([one for one in cpu if one is not None]) if None not in cpu else None,
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--jobs", type=click.IntRange(min=BATCH), help="Jobs of a drain.  [default: 100,000, or 5,000 with --quick]")
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions.  [default: 3, or 1 with --quick]")
@harness.options
def main(quick: bool, out: Path, jobs: int | None, repeats: int | None) -> None:
    """Measure the database's maximum rates, without a service."""
    jobs = jobs or (5_000 if quick else 100_000)
    repeats = repeats or (1 if quick else 3)
    submits = {batch: min(SUBMITS * batch, max(jobs // 2, batch)) // batch * batch for batch in SUBMIT_BATCHES}
    with harness.database() as database:
        report = harness.Report(
            "limit",
            "The database's maximum, over bare connections",
            database.machine,
            out,
            notes=f"Payloads of 100 B. In the drain case, one connection claims jobs in batches of {BATCH:,}, and "
            "a second connection finishes them.",
            plotted=["jobs/s", "WAL bytes/job", "PostgreSQL us/job"],
        )
        cases: dict[str, tuple[int, Callable[[], Cost]]] = {
            f"submit, batches of {batch:,}": (count, partial(submit, database, count, batch=batch))
            for batch, count in submits.items()
        }
        cases[f"claim {BATCH:,}"] = (jobs, partial(claim, database, jobs))
        cases[f"finish {BATCH:,}"] = (jobs, partial(finish, database, jobs))
        cases["drain"] = (jobs, partial(drain, database, jobs))
        costs = harness.interleave({name: case for name, (_, case) in cases.items()}, repeats)
        for name, (count, _) in cases.items():
            report.add(name, figures(count, costs[name]))
        report.write()


if __name__ == "__main__":
    main()
