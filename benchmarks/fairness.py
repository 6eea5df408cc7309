"""Measure how long jobs of mixed priorities wait when they arrive faster than they run.

    python -m benchmarks.fairness [--quick] [--out DIR]

One node works three queues at once, with the same arrivals and different values of `aging_interval`:

- aging: one second of waiting equals one priority point (proportionally less in shorter runs),
- strict priority: waiting does not matter,
- first in, first out: priority does not matter.

Handlers sleep, so a queue's rate is the number of jobs at once divided by the duration of a job. Jobs arrive at twice that rate.
After the last arrival, the node runs the remaining jobs.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from benchmarks import harness
from benchmarks.harness import Database, Node

RULES = ("aging", "strict", "FIFO")
"""The queues."""

SECONDS = 40.0
"""How long jobs arrive, in seconds. This is twice the advantage of the highest priority, which is 20 times one second."""

PRIORITIES = (0, 5, 20)

WIDTH = 4
JOB_SECONDS = 0.04
OVERLOAD = 2.0
ARRIVALS = OVERLOAD * WIDTH / JOB_SECONDS
"""Jobs per second for each queue; all priorities are equally frequent."""

TICK = 0.05
"""Seconds between two batches of arrivals."""

POINTS = 40
"""Number of points of a line in the plot."""

PATIENCE = 3.0
"""Maximum time to wait for the jobs, as a multiple of the expected time."""


class Waited(NamedTuple):
    """A job: its arrival and the start of its handler, in seconds after the first arrival."""

    priority: int
    arrived: float
    started: float

    @property
    def wait(self) -> float:
        return self.started - self.arrived


def arrive(database: Database, seconds: float) -> None:
    """Submit the same jobs to all queues, tick by tick. If a tick is late, submit its jobs at once."""
    chance = random.Random(0)
    began = time.monotonic()
    for tick in range(int(seconds / TICK)):
        time.sleep(max(0.0, began + tick * TICK - time.monotonic()))
        priorities = chance.choices(PRIORITIES, k=round(ARRIVALS * TICK))
        payload = {"sent": time.monotonic_ns(), "seconds": JOB_SECONDS}
        common = {"kind": "timed", "payload": payload}
        jobs = [{**common, "queue": queue, "priority": priority} for priority in priorities for queue in RULES]
        database.value("SELECT cardinality(jobqueue.submit_many(%s::jsonb))", msgspec.json.encode(jobs).decode())


def run(database: Database, seconds: float) -> dict[str, list[Waited]]:
    """Let jobs arrive for `seconds` seconds, and return the jobs by rule."""
    longest = 86_400.0  # the schema allows at most this value, which is longer than any job waits here
    for rule, interval in zip(RULES, (seconds / SECONDS, longest, 0.0), strict=True):
        sql = "INSERT INTO jobqueue_internal.queues (name, aging_interval) VALUES (%s, %s * interval '1 second')"
        database.connection.execute(sql, [rule, interval])
    with Node(database, "benchmarks.timed", queues=dict.fromkeys(RULES, WIDTH)):
        arrive(database, seconds)
        database.wait_while(harness.BUSY, timeout=PATIENCE * OVERLOAD * seconds, interval=1)
    rows = database.connection.execute(
        "SELECT queue, priority, (payload -> 'sent')::float8 / 1e9, result::float8 / 1e9 FROM jobqueue_internal.finished_jobs"
    ).fetchall()
    first = min(sent for _, _, sent, _ in rows)
    return {
        rule: [Waited(priority, sent - first, sent - first + wait) for queue, priority, sent, wait in rows if queue == rule]
        for rule in RULES
    }


def longest_pause(jobs: Iterable[Waited], ends: float) -> float:
    """Return the longest time without a start of these jobs, until the last arrival.

    Each such time is a real delay, because some of these jobs are always waiting after the first arrival.
    """
    starts = sorted(job.started for job in jobs if job.started < ends)
    return max(later - earlier for earlier, later in pairwise([0.0, *starts, ends]))


def overtaken(jobs: Sequence[Waited], priority: int) -> float:
    """Return the maximum time, in seconds, by which a job of this priority arrived before a job that started earlier."""
    worst = latest = 0.0
    for job in sorted(jobs, key=lambda job: job.started):
        if job.priority == priority:
            worst = max(worst, latest - job.arrived)
        latest = max(latest, job.arrived)
    return worst


def figures(jobs: Sequence[Waited], fifo: Sequence[Waited], priority: int, ends: float) -> dict[str, harness.Value]:
    """Make a row for a rule and a priority. The ratios compare the rule with FIFO for the same jobs."""
    ours = [job for job in jobs if job.priority == priority]
    waits = [job.wait for job in ours]
    p50 = harness.percentile(waits, 0.5)
    return {
        "jobs": len(ours),
        "wait p50 s": p50,
        "p90 s": harness.percentile(waits, 0.9),
        "p99 s": harness.percentile(waits, 0.99),
        "max s": max(waits),
        "p50 x FIFO": p50 / harness.percentile([job.wait for job in fifo if job.priority == priority], 0.5),
        "started while jobs came %": sum(job.started < ends for job in ours) / len(ours) * 100,
        "longest pause s": longest_pause(ours, ends),
        "overtaken by up to s": overtaken(jobs, priority),
    }


def line(jobs: Iterable[Waited], seconds: float) -> list[tuple[float, float]]:
    """Return the median wait by time of arrival."""
    width = seconds / POINTS
    waits: dict[int, list[float]] = {}
    for job in jobs:
        waits.setdefault(int(job.arrived / width), []).append(job.wait)
    return [((number + 0.5) * width, statistics.median(waits[number])) for number in sorted(waits)]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seconds", type=click.FloatRange(min=2), help="Seconds for which jobs arrive.  [default: 40, or 8 with --quick]")
@harness.options
def main(quick: bool, out: Path, seconds: float | None) -> None:
    """Measure how long jobs of each priority wait under overload."""
    seconds = seconds or (8.0 if quick else SECONDS)
    with harness.database() as database:
        report = harness.Report(
            "fairness",
            f"Waits under {OVERLOAD:g} times the sustainable load, for {seconds:g} s",
            database.machine,
            out,
            notes=f"Three queues, each with {WIDTH} jobs of {JOB_SECONDS * 1e3:g} ms at a time and the same {ARRIVALS:g} arrivals "
            f"per second. Waits are from submit to handler.\nAging: a priority point equals {seconds / SECONDS:g} s. "
            "Longest pause: longest time in which no job of this priority started, while jobs arrived.\n"
            "Overtaken: how much later another job arrived that started before.",
        )
        rules = run(database, seconds)
        ends = max(job.arrived for job in rules["FIFO"])
        for rule, jobs in rules.items():
            for priority in PRIORITIES:
                name = f"priority {priority}"
                report.add(f"{rule}, {name}", figures(jobs, rules["FIFO"], priority, ends))
                points = line([job for job in jobs if job.priority == priority], seconds)
                report.draw(f"{rule}: median wait in s by arrival in s", name, points)
        report.write()


if __name__ == "__main__":
    main()
