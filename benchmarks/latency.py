"""Measure the latency from a submit over HTTP to the first line of its handler.

    python -m benchmarks.latency [--quick] [--out DIR]

There are two nodes, each with its own queue. All requests go to the first node. So a job of the first queue runs on the node that
received it, and a job of the second queue runs on the other node, which a NOTIFY wakes. "Idle" means one job at a time, with
pauses. "Half load" means requests at random times, at half the rate of the preceding closed loop of 32 connections. Latencies count
from the time at which a request was due.

The floor is the minimum latency that PostgreSQL allows: `jobqueue.submit` over one bare connection, its NOTIFY on another
connection, and a claim. The clock is CLOCK_MONOTONIC, so all programs must run on one machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import click
import msgspec

from benchmarks import harness, limit, loads
from benchmarks.generator import NOW, Load
from benchmarks.harness import Database, Node, Spread

NEAR, FAR, FLOOR = "near", "far", "floor"
"""Three queues: of the node that receives the requests, of the other node, and a queue that no node works."""

QUEUES = {NEAR: "same node", FAR: "other node"}

WIDTH = 16
PAUSE = 0.02
CONNECTIONS = 32

PATIENCE = 120.0
"""Maximum time until the jobs of one measurement have ended, in seconds."""

LOOK_INTERVAL = 0.01

NOTIFIED, CLAIMED = "floor: submit, NOTIFY", "floor: submit, NOTIFY, claim"

SHARES = [number / 200 for number in range(1, 199)]
"""Percentiles for the plot, up to the 99th."""


class Pickup(msgspec.Struct, frozen=True):
    """One measurement: seconds from the due time of each request to its handler, jobs per second, and the responses."""

    waits: list[float]
    rate: float
    answered: loads.Answered | None = None


class Bench:
    """The database and the two nodes of all cases.

    Args:
        database: the database.
        url: the URL of the node that receives the requests.
        jobs: the number of jobs of a measurement on idle nodes.
        seconds: the length of a measurement under load.
    """

    def __init__(self, database: Database, url: str, jobs: int, seconds: float) -> None:
        self._database = database
        self._url = url
        self._jobs = jobs
        self._seconds = seconds
        self._saturated: dict[str, float] = {}

    def idle(self, queue: str) -> Pickup:
        """Submit one job at a time."""
        return self._submit(queue, Load(url=self._url, body=b"", requests=self._jobs, pause=PAUSE))

    def saturated(self, queue: str) -> Pickup:
        """Submit in a closed loop."""
        pickup = self._submit(queue, Load(url=self._url, body=b"", seconds=self._seconds, connections=CONNECTIONS))
        self._saturated[queue] = pickup.rate
        return pickup

    def half(self, queue: str) -> Pickup:
        """Submit at half the rate of the last closed loop."""
        rate = self._saturated[queue] / 2
        return self._submit(queue, Load(url=self._url, body=b"", seconds=self._seconds, connections=CONNECTIONS, rate=rate))

    def floor(self) -> tuple[Pickup, Pickup]:
        """Measure the floor with bare connections."""
        self._database.clear()
        node = limit.Node(self._database, [FLOOR])
        notified, claimed = [], []
        submit = f"SELECT jobqueue.submit('timed', %s, queue => '{FLOOR}')".encode()
        with self._database.connect() as submitting, self._database.connect() as listening, self._database.connect() as claiming:
            listening.execute("LISTEN jobqueue")
            for _ in range(self._jobs):
                time.sleep(PAUSE)
                began = time.monotonic_ns()
                submitting.execute(submit, [f'{{"sent": {began}}}'], prepare=True)
                next(notice for notice in listening.notifies(timeout=PATIENCE) if notice.payload.endswith(FLOOR))
                notified.append((time.monotonic_ns() - began) / 1e9)
                jobs = node.claim(claiming)
                claimed.append((time.monotonic_ns() - began) / 1e9)
                node.finish(claiming, jobs)
        node.leave()
        return Pickup(notified, 1 / PAUSE), Pickup(claimed, 1 / PAUSE)

    def _submit(self, queue: str, load: Load) -> Pickup:
        self._database.clear()
        body = b'{"kind": "timed", "queue": "%b", "payload": {"sent": %b}}' % (queue.encode(), NOW)
        answered = loads.http(msgspec.structs.replace(load, body=body))
        began = time.monotonic()
        self._database.wait_while(harness.BUSY, timeout=PATIENCE, interval=LOOK_INTERVAL)
        rows = self._database.connection.execute("SELECT result::bigint FROM jobqueue_internal.finished_jobs").fetchall()
        if len(rows) < answered.requests:
            raise RuntimeError(f"{answered.requests} jobs were acknowledged, but {len(rows)} have succeeded")
        return Pickup([waited / 1e9 for [waited] in rows], len(rows) / (answered.seconds + time.monotonic() - began), answered)


def figures(pickups: Sequence[Pickup], floors: Sequence[Pickup]) -> dict[str, harness.Value]:
    """Make a row from a case's repetitions and the floors of the same turns."""
    medians = [harness.percentile(one.waits, 0.5) for one in pickups]
    together = [wait for one in pickups for wait in one.waits]
    answered = [one.answered for one in pickups if one.answered is not None]
    return {
        "jobs": len(together),
        "jobs/s": Spread.of([one.rate for one in pickups]),
        "p50 ms": Spread.of([median * 1e3 for median in medians]),
        "p99 ms": harness.percentile(together, 0.99) * 1e3,
        "p999 ms": harness.percentile(together, 0.999) * 1e3,
        "p50 x floor": Spread.of(
            [median / harness.percentile(floor.waits, 0.5) for median, floor in zip(medians, floors, strict=True)]
        ),
        "p99 x floor": harness.percentile(together, 0.99) / harness.percentile([w for one in floors for w in one.waits], 0.99),
        "answer p50 ms": Spread.of([one.p50_ms for one in answered]) if answered else None,
        "answer p99 ms": Spread.of([one.p99_ms for one in answered]) if answered else None,
        "failed": sum(one.failures for one in answered),
    }


def measure(bench: Bench, repeats: int) -> Mapping[str, list[Pickup]]:
    """Measure all cases in turn."""
    found: dict[str, list[Pickup]] = {NOTIFIED: [], CLAIMED: []}

    def floor() -> Pickup:
        notified, claimed = bench.floor()
        found[NOTIFIED].append(notified)
        found[CLAIMED].append(claimed)
        return claimed

    cases = {"floor": floor}
    cases |= {f"idle, {where}": partial(bench.idle, queue) for queue, where in QUEUES.items()}
    for queue, where in QUEUES.items():
        cases |= {f"saturated, {where}": partial(bench.saturated, queue), f"half load, {where}": partial(bench.half, queue)}
    measured = harness.interleave(cases, repeats)
    del measured["floor"]
    return found | measured


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--jobs", type=click.IntRange(min=10), help="Jobs to measure on idle nodes.  [default: 500, or 50 with --quick]")
@click.option("--seconds", type=click.FloatRange(min=1), help="Seconds of one measurement.  [default: 5, or 1 with --quick]")
@harness.options
def main(quick: bool, out: Path, jobs: int | None, seconds: float | None) -> None:
    """Measure the latency from submit to handler."""
    repeats = 1 if quick else 5
    with (
        harness.database() as database,
        Node(database, "benchmarks.timed", queues={NEAR: WIDTH}) as near,
        Node(database, "benchmarks.timed", queues={FAR: WIDTH}),
    ):
        report = harness.Report(
            "latency",
            "From an HTTP submit to the start of its handler",
            database.machine,
            out,
            notes=f"Idle means one job at a time with {PAUSE * 1e3:.0f} ms pauses. Half load means random arrivals at half of the "
            f"saturated rate, a closed loop of {CONNECTIONS} connections.\np50 is the median over the turns. "
            "x floor is the ratio to the floor of the same turn.",
            plotted=["p50 ms", "p99 ms", "p50 x floor", "jobs/s"],
        )
        bench = Bench(database, near.url, (jobs or (50 if quick else 500)) // repeats, seconds or (1.0 if quick else 5.0))
        for queue in QUEUES:
            bench.saturated(queue)  # the first call of an SQL function is slower
        measured = measure(bench, repeats)
        for name, pickups in measured.items():
            report.add(name, figures(pickups, measured[CLAIMED]))
            if not name.startswith("saturated"):
                waits = [wait * 1e3 for one in pickups for wait in one.waits]
                report.draw("share of the jobs by ms", name, [(harness.percentile(waits, share), share) for share in SHARES])
        report.write()


if __name__ == "__main__":
    main()
