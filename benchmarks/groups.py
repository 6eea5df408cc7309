"""Measure how groups with a backlog share the workers.

    python -m benchmarks.groups [--quick] [--out DIR]

Handlers sleep, so the rate is the number of jobs at once divided by the duration of a job. Each scenario runs twice: with groups,
and with the same jobs without a group. Jobs without a group run in the order of their submission.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from benchmarks import harness
from benchmarks.harness import Database, Node

WIDTH = 8
JOB_SECONDS = 0.01


class Part(NamedTuple):
    """Jobs of a group that are submitted together, after `after` jobs of all groups have ended."""

    group: str
    jobs: int
    weight: float = 1.0
    after: int = 0


class Scenario(NamedTuple):
    """The jobs to submit, and how many jobs to count after the last submission."""

    name: str
    parts: Sequence[Part]
    looked_at: int


def scenarios(jobs: int) -> list[Scenario]:
    """Return the scenarios, with a backlog of `jobs` jobs per group."""
    late = jobs // 5
    return [
        Scenario("equal weights", [Part("a", jobs), Part("b", jobs)], jobs),
        Scenario("weights 1 : 3", [Part("a", jobs, 1), Part("b", jobs, 3)], jobs),
        Scenario("b comes later", [Part("a", jobs), Part("b", jobs, after=late)], jobs),
        Scenario("ten jobs behind a backlog", [Part("a", jobs), Part("b", 10, after=late)], 100),
    ]


def serve(database: Database, scenario: Scenario, *, fair: bool) -> tuple[list[str], int]:
    """Run a scenario. Return the groups of the jobs in the order in which the jobs ended.

    Also return the number of jobs that ended before the last submission.
    """
    queue = f"{scenario.name}, {'fair' if fair else 'in order'}"
    done = "SELECT count(*) FROM jobqueue_internal.finished_jobs WHERE queue = %s"
    with Node(database, "benchmarks.timed", queues={queue: WIDTH}):
        for part in scenario.parts:
            while database.value(done, queue) < part.after:
                time.sleep(0.01)
            job = {"kind": "timed", "queue": queue, "payload": {"sent": 0, "seconds": JOB_SECONDS, "group": part.group}}
            job |= {"group": part.group, "weight": part.weight} if fair else {}
            batch = msgspec.json.encode([job] * part.jobs).decode()
            database.value("SELECT cardinality(jobqueue.submit_many(%s::jsonb))", batch)
        began = database.value(done, queue)
        while database.value(done, queue) < began + scenario.looked_at:
            time.sleep(0.05)
    rows = database.connection.execute(
        "SELECT payload ->> 'group' FROM jobqueue_internal.finished_jobs WHERE queue = %s ORDER BY finished_at", [queue]
    ).fetchall()
    return [str(group) for (group,) in rows], began


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@harness.options
def main(quick: bool, out: Path) -> None:
    """Measure the shares of groups."""
    with harness.database() as database:
        report = harness.Report(
            "groups",
            "Shares of two groups with a backlog",
            database.machine,
            out,
            notes=f"{WIDTH} jobs of {JOB_SECONDS * 1e3:g} ms at a time. Share of b: among the next jobs to end while both groups "
            "had work. Ratio: to its fair share.\nBefore b's last: how many of a's jobs ended before the last of b's.",
        )
        for scenario in scenarios(500 if quick else 4_000):
            for fair in (True, False):
                served, began = serve(database, scenario, fair=fair)
                window = served[began : began + scenario.looked_at]
                b = window.count("b")
                last = max((place for place, group in enumerate(window) if group == "b"), default=len(window) - 1)
                due = min(
                    scenario.parts[1].weight / sum(part.weight for part in scenario.parts), scenario.parts[1].jobs / len(window)
                )
                row = {"share of b %": b / len(window) * 100, "ratio": b / len(window) / due, "before b's last": last + 1 - b}
                report.add(f"{scenario.name}, {'groups' if fair else 'no groups'}", row)
                if fair:
                    for group in "ab":
                        points = [(float(place), float(served[:place].count(group))) for place in range(0, len(served), 20)]
                        report.draw(f"{scenario.name}: jobs done of each group by jobs done", group, points)
        report.write()


if __name__ == "__main__":
    main()
