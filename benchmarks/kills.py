"""Measure a node's throughput while its PostgreSQL backends are terminated fifty times per second.

    python -m benchmarks.kills [--quick] [--out DIR]

Clients submit single jobs over HTTP to one node, which runs them. Runs with and without kills alternate. A stall is the longest
time without a completed job, or without a response that acknowledges a job.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import click
import msgspec

from benchmarks import harness
from benchmarks.harness import Database, Node, Spread

CLIENTS = 8

KILLS = 50
"""Backends terminated per second."""

LOOK_INTERVAL = 0.02
"""Seconds between two counts of the completed jobs."""

ANSWER_TIMEOUT = 60.0

PLOTTED = ("completed/s", "taken/s", "completion stall, s", "submit stall, s")

KILL = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
     WHERE application_name LIKE 'jobqueue %' AND datname = current_database() ORDER BY random() LIMIT 1
"""


class Measured(msgspec.Struct, frozen=True):
    """The result of one load.

    Attributes:
        completed, taken: jobs per second that were completed, and that were acknowledged.
        completion_stall, submit_stall: the longest stalls in seconds.
    """

    completed: float
    taken: float
    completion_stall: float
    submit_stall: float


class Clients:
    """Threads that submit one job after another.

    Attributes:
        answers: the times at which jobs were acknowledged.
    """

    def __init__(self, url: str) -> None:
        self._netloc = urlsplit(url).netloc
        self._stopped = threading.Event()
        self.answers: list[float] = []

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Submit jobs during the block."""
        threads = [threading.Thread(target=self._submit) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def _submit(self) -> None:
        connection = http.client.HTTPConnection(self._netloc, timeout=ANSWER_TIMEOUT)
        while not self._stopped.is_set():
            connection.request("POST", "/submit", b'{"kind": "async"}', {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 201:
                self.answers.append(time.monotonic())
            else:
                time.sleep(LOOK_INTERVAL)
        connection.close()


@contextmanager
def killing(database: Database) -> Iterator[None]:
    """Terminate the node's backends, one after another, during the block."""
    stopped = threading.Event()

    def kill() -> None:
        with database.connect() as connection:
            while not stopped.wait(1 / KILLS):
                connection.execute(KILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def measure(database: Database, node: Node, seconds: float, *, kills: bool) -> Measured:
    """Submit jobs for `seconds` seconds, with or without kills."""
    database.clear()
    clients = Clients(node.url)
    began = time.monotonic()
    over_at = began + seconds
    looks: list[tuple[float, int]] = []
    with clients.submitting():
        if kills:
            with killing(database):
                _look(database, over_at, looks)
        else:
            _look(database, over_at, looks)
    progress = [moment for (_, before), (moment, after) in pairwise([(began, 0), *looks]) if after > before]
    answers = [moment for moment in sorted(clients.answers) if moment <= over_at]
    return Measured(
        looks[-1][1] / seconds, len(answers) / seconds, _stall(began, progress, over_at), _stall(began, answers, over_at)
    )


def _look(database: Database, over_at: float, looks: list[tuple[float, int]]) -> None:
    while time.monotonic() < over_at:
        completed = int(database.value("SELECT count(*) FROM jobqueue_internal.succeeded_jobs"))
        looks.append((time.monotonic(), completed))
        time.sleep(LOOK_INTERVAL)


def _stall(began: float, moments: list[float], ended: float) -> float:
    return max(after - before for before, after in pairwise([began, *moments, ended]))


@click.command()
@harness.options
def main(quick: bool, out: Path) -> None:
    """Measure how much throughput terminated backends cost."""
    seconds, repeats = (3.0, 1) if quick else (15.0, 3)
    with harness.database() as database, Node(database, "benchmarks.handlers", options={"log-level": "error"}) as node:
        report = harness.Report("kills", "Terminated backends", database.machine, out, plotted=PLOTTED)
        cases = {
            "undisturbed": partial(measure, database, node, seconds, kills=False),
            f"{KILLS} kills a second": partial(measure, database, node, seconds, kills=True),
        }
        for name, found in harness.interleave(cases, repeats).items():
            figures = zip(*(msgspec.structs.astuple(one) for one in found), strict=True)
            report.add(name, dict(zip(PLOTTED, map(Spread.of, figures), strict=True)))
        report.write()


if __name__ == "__main__":
    main()
