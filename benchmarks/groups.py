"""Who gets the workers when groups have more to do than there are workers.

    python -m benchmarks.groups [--quick] [--out DIR]

Handlers sleep, so the rate is the width by the time of a job. Each scenario is run with groups, and with the same jobs in no group:
they run in the order that they came in.
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
    """Jobs of a group that are submitted together, after so many jobs of all groups are done."""

    group: str
    jobs: int
    weight: float = 1.0
    after: int = 0


class Scenario(NamedTuple):
    """What is submitted, and at how many jobs to look from when all of it was."""

    name: str
    parts: Sequence[Part]
    looked_at: int


def scenarios(jobs: int) -> list[Scenario]:
    """The scenarios, for a backlog of so many jobs a group."""
    late = jobs // 5
    return [
        Scenario("equal weights", [Part("a", jobs), Part("b", jobs)], jobs),
        Scenario("weights 1 : 3", [Part("a", jobs, 1), Part("b", jobs, 3)], jobs),
        Scenario("b comes later", [Part("a", jobs), Part("b", jobs, after=late)], jobs),
        Scenario("ten jobs behind a backlog", [Part("a", jobs), Part("b", 10, after=late)], 100),
    ]


def serve(database: Database, scenario: Scenario, *, fair: bool) -> tuple[list[str], int]:
    """Run a scenario; return the groups in the order in which their jobs were done, and how many were when all were submitted."""
    queue = f"{scenario.name}, {'fair' if fair else 'in order'}"
    done = "SELECT count(*) FROM jobqueue.finished_jobs WHERE queue = %s"
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
        "SELECT payload ->> 'group' FROM jobqueue.finished_jobs WHERE queue = %s ORDER BY finished_at", [queue]
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
            notes=f"{WIDTH} jobs of {JOB_SECONDS * 1e3:g} ms at a time. Share of b: among the next jobs done, from when both "
            "had work. Ratio: to its due.\nBefore b's last: so many of a's jobs were done before the last of b's among them.",
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
