"""Measure how fast a real service drains queues of jobs that do nothing.

    python -m benchmarks.drain [--quick] [--only NAME] [--out DIR]

The jobs are submitted while their queues are paused. The time for the rate runs from the resumption to the end of the last job,
on this program's clock. The floor is `benchmarks.limit.drain` with the same payload. Measurements of the floor and of the cases
alternate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import msgspec

from benchmarks import harness, limit
from benchmarks.harness import Cost, Database, Spread, Usage

WIDTH = 16
"""Maximum number of jobs that a node runs at once, in all of its queues together. This is the service's default."""

WARM_UP = 500
"""Number of jobs to run before the measurement, because the first call of an SQL function is slower."""

SLOWEST = 100.0
"""Minimum rate of a drain, in jobs per second. A slower drain fails."""

PATIENCE = 30.0

KIB = 1 << 10


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs of a drain, and how they run.

    Attributes:
        mode: how the handler runs; see `benchmarks.handlers`.
        jobs: the number of jobs, as a share of ``--jobs``; slow cases have fewer jobs.
    """

    mode: str = "async"
    nodes: int = 1
    payload_bytes: int = 100
    queues: int = 1
    jobs: float = 1.0

    @property
    def widths(self) -> dict[str, int]:
        """Return the number of jobs that a node runs at once, by queue."""
        return {f"q{number}": max(1, WIDTH // self.queues) for number in range(self.queues)}


CASES = {
    "async": Case(),
    "thread": Case(mode="thread", jobs=0.3),
    "process": Case(mode="process", jobs=0.05),
    "two nodes": Case(nodes=2),
    "payload 1 KB": Case(payload_bytes=KIB, jobs=0.5),
    "payload 64 KB": Case(payload_bytes=64 * KIB, jobs=0.03),
    "4 queues": Case(queues=4),
    "16 queues": Case(queues=16),
}


class Drained(msgspec.Struct, frozen=True):
    """The cost of one drain. The memory is the memory of all nodes at the end."""

    cost: Cost
    service: Usage


def drain(database: Database, case: Case, jobs: int) -> Drained:
    """Drain `jobs` jobs once, with new nodes."""
    database.clear()
    queues = list(case.widths)
    with ExitStack() as running:
        nodes = [
            running.enter_context(harness.Node(database, "benchmarks.handlers", queues=case.widths)) for _ in range(case.nodes)
        ]
        for count in (min(WARM_UP, jobs), jobs):
            database.pause(*queues)
            time.sleep(0.1)  # a claim may still be running
            database.fill(count, queues=dict.fromkeys(queues, case.mode), payload_bytes=case.payload_bytes)
            last = database.last_of(queues[(count - 1) % len(queues)])
            used = [node.usage() for node in nodes]
            with database.span() as cost:
                database.pause(*queues, paused=False)
                database.wait_until_done(last, PATIENCE + count / SLOWEST)
            after = [node.usage() for node in nodes]
    service = Usage(sum(now.cpu - before.cpu for now, before in zip(after, used, strict=True)), rss=sum(now.rss for now in after))
    return Drained(cost, service)


def drain_without_service(database: Database, payload_bytes: int, jobs: int) -> Drained:
    """Measure the floor."""
    return Drained(limit.drain(database, jobs, payload_bytes=payload_bytes), Usage())


def figures(jobs: int, drains: Sequence[Drained], floors: Sequence[float]) -> dict[str, harness.Value]:
    """Make a row from a case's repetitions and the floors (jobs per second) that were measured in the same turns."""
    rates = [jobs / one.cost.seconds for one in drains]
    return {
        "jobs": jobs,
        "jobs/s": Spread.of(rates),
        "% of floor": Spread.of([rate / floor * 100 for rate, floor in zip(rates, floors, strict=True)]),
        "service us/job": Spread.of([one.service.cpu / jobs * 1e6 for one in drains]),
        "RSS MiB": Spread.of([one.service.rss_mib for one in drains]),
        **{name: figure for name, figure in limit.figures(jobs, [one.cost for one in drains]).items() if name != "jobs/s"},
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--jobs", type=click.IntRange(min=100), help="Jobs of a drain; slow cases use fewer.  [default: 100,000, or 4,000 with --quick]"
)
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions.  [default: 3, or 1 with --quick]")
@click.option("--only", type=click.Choice(list(CASES)), multiple=True, help="Measure only this case; repeatable.  [default: all]")
@harness.options
def main(quick: bool, out: Path, jobs: int | None, repeats: int | None, only: tuple[str, ...]) -> None:
    """Measure how fast a service drains a queue, as a share of the database's maximum."""
    jobs = jobs or (4_000 if quick else 100_000)
    chosen = {name: case for name, case in CASES.items() if not only or name in only}
    counts = {name: max(100, int(jobs * case.jobs)) for name, case in chosen.items()}
    with harness.database() as database:
        report = harness.Report(
            "drain",
            "Drain of jobs that do nothing, claimed and finished through a real service",
            database.machine,
            out,
            notes=f"Default: {WIDTH} jobs at once, an async handler, payloads of 100 B, one queue, one node.",
            plotted=["jobs/s", "% of floor", "service us/job", "PostgreSQL us/job", "RSS MiB"],
        )
        floors = {size: max(limit.BATCH, count) for size, count in _floor_sizes(chosen, counts).items()}
        calls: dict[str, Callable[[], Drained]] = {
            _floor_name(size): partial(drain_without_service, database, size, count) for size, count in floors.items()
        }
        calls |= {name: partial(drain, database, case, counts[name]) for name, case in chosen.items()}
        results = harness.interleave(calls, repeats or (1 if quick else 3))
        for name, case in chosen.items():
            rates = [floors[case.payload_bytes] / floor.cost.seconds for floor in results[_floor_name(case.payload_bytes)]]
            report.add(name, figures(counts[name], results[name], rates))
        for size, count in floors.items():
            report.add(_floor_name(size), {"jobs": count, **limit.figures(count, [one.cost for one in results[_floor_name(size)]])})
        report.write()


def _floor_name(payload_bytes: int) -> str:
    return f"floor, {payload_bytes:,} B"


def _floor_sizes(cases: dict[str, Case], counts: dict[str, int]) -> dict[int, int]:
    """Return the number of jobs for the floor of each payload size: the number of the largest case with that size."""
    sizes: dict[int, int] = {}
    for name, case in cases.items():
        sizes[case.payload_bytes] = max(sizes.get(case.payload_bytes, 0), counts[name])
    return sizes


if __name__ == "__main__":
    main()
