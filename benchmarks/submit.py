"""Measure the rate of submissions over HTTP and SQL, single and in batches, as shares of the server's maximum.

    python -m benchmarks.submit [--quick] [--out DIR]

The jobs go to a real service, in a queue that no node works, so that only submissions are measured. Single submissions over HTTP
use the express lane and the Quart routes alternately. For the Quart routes, the same requests are sent as ``POST /submit?``, which
the express lane does not accept.

The floor for single submissions is one INSERT of the same size per transaction, from 16 connections, into a table with one index.
The floor for batches is `benchmarks.limit.submit` in batches of 1,000.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import msgspec

from benchmarks import harness, limit, loads
from benchmarks.generator import Load
from benchmarks.harness import Cost, Database, Node, Spread, Usage
from benchmarks.loads import Answered

QUEUE = "unworked"
WORKED = "worked"
"""The queue that the node works, which stays empty."""

CONNECTIONS = (1, 8, 32, 128)

BATCHES = {10: 8, 100: 8, 1_000: 4, 100_000: 1}
"""The number of connections that send bodies, by the number of jobs in a body."""

FLOOR_CONNECTIONS = 16
FLOOR_BATCH = 1_000

SQL_CONNECTIONS = (1, 8)
SQL_BATCH = 1_000

SINGLE_FLOOR, BATCH_FLOOR = "floor, INSERT", f"floor, batches of {FLOOR_BATCH:,}"
EXPRESS, HYPERCORN = "HTTP, express", "HTTP, hypercorn"

FLOOR_TABLE = "benchmark_floor"


class Measured(msgspec.Struct, frozen=True):
    """One measurement: the responses to a load, and its cost."""

    answered: Answered
    jobs: int
    cost: Cost
    service: Usage | None = None

    @property
    def rate(self) -> float:
        """The submitted jobs per second."""
        return self.jobs / self.answered.seconds

    @property
    def service_cpu(self) -> float | None:
        """Microseconds of the service's CPU time per job."""
        return None if self.service is None else self.service.cpu / self.jobs * 1e6


class Case(msgspec.Struct, frozen=True):
    """A measurement, and the names of the cases to compare it with."""

    measure: Callable[[], Measured]
    floor: str | None
    slow_way: str | None = None


class Bench:
    """The database and the service of all cases.

    Args:
        database: the database.
        node: the service.
        seconds: the length of one measurement.
    """

    def __init__(self, database: Database, node: Node, seconds: float) -> None:
        self._database = database
        self._node = node
        self._seconds = seconds
        database.connection.execute(f"CREATE TABLE {FLOOR_TABLE} (id uuid PRIMARY KEY, payload jsonb NOT NULL)")

    def single(self, connections: int, path: str) -> Measured:
        """Submit jobs over HTTP, one per request."""
        load = Load(url=self._node.url, path=path, body=job(), connections=connections, seconds=self._seconds)
        return self._of_service(lambda: loads.wrk(load), 1)

    def batch(self, size: int, connections: int, *, lines: bool) -> Measured:
        """Submit jobs over HTTP, many per request, as an array or as NDJSON (`lines`)."""
        jobs = [job()] * size
        load = Load(
            url=self._node.url,
            body=b"\n".join(jobs) if lines else b"[" + b",".join(jobs) + b"]",
            content_type="application/x-ndjson" if lines else "application/json",
            connections=connections,
            seconds=self._seconds,
        )
        return self._of_service(lambda: loads.http(load), size)

    def sql(self, statement: str, connections: int, batch: int = 1) -> Measured:
        """Run a statement that submits `batch` jobs, over bare connections."""
        self._clear()
        with self._database.span() as cost:
            answered = loads.statements(self._database, statement, connections, self._seconds)
        return Measured(answered, answered.requests * batch, cost)

    def bare_batches(self, jobs: int) -> Measured:
        """Measure the floor for batches."""
        cost = limit.submit(self._database, jobs, batch=FLOOR_BATCH)
        each = cost.seconds / (jobs // FLOOR_BATCH)
        return Measured(Answered.of(cost.seconds, [each]), jobs, cost)

    def _of_service(self, put: Callable[[], Answered], batch: int) -> Measured:
        self._clear()
        before = self._node.usage()
        with self._database.span() as cost:
            answered = put()
        return Measured(answered, answered.requests * batch, cost, self._node.usage() - before)

    def _clear(self) -> None:
        self._database.clear()
        self._database.connection.execute(f"TRUNCATE {FLOOR_TABLE}")


def job() -> bytes:
    """Return a job in the form in which clients send it."""
    return f'{{"kind": "none", "queue": "{QUEUE}", "payload": {harness.payload_of(100)}}}'.encode()


def cases(bench: Bench, floor_jobs: int) -> dict[str, Case]:
    """Return the cases in the order of a turn."""
    payload = harness.payload_of(100)
    insert = f"INSERT INTO {FLOOR_TABLE} VALUES (gen_random_uuid(), '{payload}')"
    one = f"SELECT jobqueue.submit('none', '{payload}', queue => '{QUEUE}')"
    many = f"SELECT jobqueue.submit_many('[{', '.join([job().decode()] * SQL_BATCH)}]')"
    found = {SINGLE_FLOOR: Case(functools.partial(bench.sql, insert, FLOOR_CONNECTIONS), None)}
    for count in CONNECTIONS:
        slow_way = f"{HYPERCORN}, {count} conn."
        found[f"{EXPRESS}, {count} conn."] = Case(functools.partial(bench.single, count, "/submit"), SINGLE_FLOOR, slow_way)
        found[slow_way] = Case(functools.partial(bench.single, count, "/submit?"), SINGLE_FLOOR)
    found[BATCH_FLOOR] = Case(functools.partial(bench.bare_batches, floor_jobs), None)
    for size, count in BATCHES.items():
        for name, lines in (("array", False), ("NDJSON", True)):
            measure = functools.partial(bench.batch, size, count, lines=lines)
            found[f"HTTP, {name} of {size:,}, {count} conn."] = Case(measure, BATCH_FLOOR)
    for count in SQL_CONNECTIONS:
        found[f"SQL, submit(), {count} conn."] = Case(functools.partial(bench.sql, one, count), SINGLE_FLOOR)
    for count in SQL_CONNECTIONS:
        measure = functools.partial(bench.sql, many, count, SQL_BATCH)
        found[f"SQL, submit_many({SQL_BATCH:,}), {count} conn."] = Case(measure, BATCH_FLOOR)
    return found


def figures(case: Case, results: dict[str, list[Measured]], name: str) -> dict[str, harness.Value]:
    """Make a row. Its ratios compare measurements of the same turn."""
    measured = results[name]

    def ratio(other: str | None, scale: float) -> Spread | None:
        if other is None:
            return None
        return Spread.of([one.rate / base.rate * scale for one, base in zip(measured, results[other], strict=True)])

    timed = [] if name == BATCH_FLOOR else [one.answered for one in measured]  # the bare loop measures only its total time
    rows = [limit.figures(one.jobs, [one.cost]) for one in measured]
    costs = {column: [value.median for row in rows if isinstance(value := row[column], Spread)] for column in COSTS}
    return {
        "jobs/s": Spread.of([one.rate for one in measured]),
        "x hypercorn": ratio(case.slow_way, 1),
        "% of floor": ratio(case.floor, 100),
        "p50 ms": _median([one.p50_ms for one in timed]),
        "p99 ms": _median([one.p99_ms for one in timed]),
        "p999 ms": _median([one.p999_ms for one in timed]),
        "service us/job": _median([one.service_cpu for one in measured]),
        **{column: _median(values) for column, values in costs.items()},
        "failed": sum(one.answered.failures for one in measured),
    }


COSTS = ("PostgreSQL us/job", "WAL bytes/job", "commits/job")


def _median(samples: Sequence[float | None]) -> float | None:
    known = [sample for sample in samples if sample is not None]
    return Spread.of(known).median if known else None


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.FloatRange(min=1), help="Seconds of one measurement.  [default: 3, or 1 with --quick]")
@click.option("--repeats", type=click.IntRange(min=1), help="Repetitions.  [default: 3, or 1 with --quick]")
@click.option("--only", multiple=True, help="Measure the cases with this prefix, and the floors; repeatable.  [default: all]")
@harness.options
def main(quick: bool, out: Path, seconds: float | None, repeats: int | None, only: tuple[str, ...]) -> None:
    """Measure the rate of submissions."""
    seconds = seconds or (1.0 if quick else 3.0)
    with harness.database() as database, Node(database, "benchmarks.handlers", queues={WORKED: 1}) as node:
        report = harness.Report(
            "submit",
            "Durable submits, to a queue that no node works",
            database.machine,
            out,
            notes=f"Payloads of 100 B. Single submits by {'wrk' if loads.WRK else 'our generator'}, batches by our generator, "
            f"SQL by {'pgbench' if loads.PGBENCH else 'threads'}.\nFloors: INSERT is one row per transaction from "
            f"{FLOOR_CONNECTIONS} connections; the other is one bare connection. Latencies are of requests or transactions.",
            plotted=["jobs/s", "x hypercorn", "% of floor"],
        )
        bench = Bench(database, node, seconds)
        bench.single(8, "/submit")  # the first call of an SQL function is slower
        chosen = {
            name: case
            for name, case in cases(bench, 10_000 if quick else 100_000).items()
            if not only or case.floor is None or name.startswith(only)
        }
        chosen = {
            name: case if case.slow_way in chosen else msgspec.structs.replace(case, slow_way=None) for name, case in chosen.items()
        }
        results = harness.interleave({name: case.measure for name, case in chosen.items()}, repeats or (1 if quick else 3))
        for name, case in chosen.items():
            report.add(name, figures(case, results, name))
        report.write()


if __name__ == "__main__":
    main()
