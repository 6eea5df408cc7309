"""Measure the drain and submit rates of ``jobqueue serve --processes N`` for several N.

    python -m benchmarks.scaling [--quick] [--out DIR]

PostgreSQL and the load run on the same machine. If there are not enough cores, more processes only take CPU time from
PostgreSQL and the load.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import click
import msgspec

from benchmarks import drain, harness, loads, submit
from benchmarks.generator import Load
from benchmarks.harness import Cost, Database, Node, Spread

PROCESSES = (1, 2)

WIDTH = 16
"""Maximum number of jobs that all processes together run at once."""

CONNECTIONS = 64

QUEUE = "q0"


class Measured(msgspec.Struct, frozen=True):
    """Jobs per second of one measurement, and the cost for the database."""

    rate: float
    jobs: int
    cost: Cost


def node(database: Database, processes: int) -> Node:
    """Return a service with `processes` processes."""
    return Node(database, "benchmarks.handlers", queues={QUEUE: WIDTH // processes}, options={"processes": processes})


def drained(database: Database, processes: int, jobs: int) -> Measured:
    """Drain jobs that do nothing."""
    database.clear()
    with node(database, processes):
        for count in (drain.WARM_UP, jobs):
            database.pause(QUEUE)
            time.sleep(0.1)  # a claim may still be running
            database.fill(count, queues={QUEUE: "async"})
            last = database.last_of(QUEUE)
            with database.span() as cost:
                database.pause(QUEUE, paused=False)
                database.wait_until_done(last, drain.PATIENCE + count / drain.SLOWEST)
    return Measured(jobs / cost.seconds, jobs, cost)


def submitted(database: Database, processes: int, seconds: float) -> Measured:
    """Submit jobs over HTTP, one per request, to a queue that no node works."""
    database.clear()
    with node(database, processes) as service:
        load = Load(url=service.url, body=submit.job(), connections=CONNECTIONS, seconds=1)
        loads.wrk(load)  # the first call of an SQL function is slower
        with database.span() as cost:
            answered = loads.wrk(msgspec.structs.replace(load, seconds=seconds))
    return Measured(answered.rate, answered.requests, cost)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions.  [default: 3, or 1 with --quick]")
@harness.options
def main(quick: bool, out: Path, repeats: int | None) -> None:
    """Measure how throughput grows with more processes on one port."""
    with harness.database() as database:
        report = harness.Report(
            "scaling",
            "One port, several processes",
            database.machine,
            out,
            notes=f"{WIDTH} jobs at once over all processes; submits over {CONNECTIONS} connections, to an unworked queue.",
            plotted=["jobs/s", "x one process", "PostgreSQL us/job"],
        )
        jobs, seconds = (4_000, 1.0) if quick else (100_000, 3.0)
        calls = {f"drain, {count}": partial(drained, database, count, jobs) for count in PROCESSES}
        calls |= {f"submit, {count}": partial(submitted, database, count, seconds) for count in PROCESSES}
        results = harness.interleave(calls, repeats or (1 if quick else 3))
        for name, measured in results.items():
            base = results[f"{name.partition(',')[0]}, {PROCESSES[0]}"]
            costs = [cost for one in measured if (cost := one.cost.cpu_per(one.jobs)) is not None]
            report.add(
                name,
                {
                    "jobs/s": Spread.of([one.rate for one in measured]),
                    "x one process": Spread.of([one.rate / other.rate for one, other in zip(measured, base, strict=True)]),
                    "PostgreSQL us/job": Spread.of(costs) if costs else None,
                },
            )
        report.write()


if __name__ == "__main__":
    main()
