"""Measure whether a node uses more and more memory, open files or threads while it receives and runs as many jobs as it can.

    python -m benchmarks.soak [--quick] [--minutes N] [--out DIR]

Clients submit in batches over HTTP, and wait while more than `BACKLOG` jobs are unfinished. The service does not keep finished
jobs, because they would fill the disk.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import msgspec

from benchmarks import harness
from benchmarks.harness import Node, Usage

CLIENTS = 2
BATCH = 500
BACKLOG = 50_000

COUNTED = ("jobqueue_jobs_submitted_total", "jobqueue_jobs_completed_total", "process_open_fds")

LOOK_INTERVAL = 0.2


class Minute(msgspec.Struct, frozen=True):
    """One minute of a node (shorter with ``--quick``): jobs per second, and memory and open files at its end."""

    rate: float
    usage: Usage
    files: float


def counts(node: Node) -> dict[str, float]:
    """Read the node's counters."""
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)) for name in COUNTED}


@contextmanager
def _load(node: Node) -> Iterator[None]:
    """Submit jobs during the block."""
    job = b'{"kind": "async", "payload": %b}' % harness.payload_of(100).encode()
    body = b"\n".join([job] * BATCH)
    over = threading.Event()
    failures: list[Exception] = []

    def submit() -> None:
        request = urllib.request.Request(f"{node.url}/submit", body, {"Content-Type": "application/x-ndjson"})
        try:
            while not over.is_set():
                with urllib.request.urlopen(request, timeout=60) as answer:
                    answer.read()
                if backlog() > BACKLOG:
                    over.wait(LOOK_INTERVAL)
        except OSError as error:
            failures.append(error)

    def backlog() -> float:
        now = counts(node)
        return now[COUNTED[0]] - now[COUNTED[1]]

    threads = [threading.Thread(target=submit, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def soak(node: Node, minutes: int, seconds: float) -> list[Minute]:
    """Keep a node at full load for `minutes` minutes of `seconds` seconds each."""
    found = []
    with _load(node):
        for _ in range(minutes):
            done, began = counts(node)[COUNTED[1]], time.monotonic()
            time.sleep(seconds)
            now = counts(node)
            found.append(Minute((now[COUNTED[1]] - done) / (time.monotonic() - began), node.usage(), now[COUNTED[2]]))
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.IntRange(min=2), help="Duration.  [default: 60, or 3 of 3 s each with --quick]")
@harness.options
def main(quick: bool, out: Path, minutes: int | None) -> None:
    """Measure whether a node uses more and more memory, files or threads at full load."""
    minutes = minutes or (3 if quick else 60)
    seconds = 3.0 if quick else 60.0
    with harness.database() as database, Node(database, "benchmarks.handlers", options={"keep-finished": 0}) as node:
        report = harness.Report(
            "soak",
            f"One node at full load for {minutes} times {seconds:g} s",
            database.machine,
            out,
            notes=f"Submits over HTTP, {BATCH} jobs per request, {CLIENTS} requests at a time. "
            "Ratio: RSS divided by the RSS of the first row.",
            plotted=["jobs/s", "RSS MiB"],
        )
        found = soak(node, minutes, seconds)
        for number, minute in enumerate(found, 1):
            if number in {1, 2, minutes} or number % 10 == 0:
                ratio = minute.usage.rss_mib / found[0].usage.rss_mib
                row = {"jobs/s": minute.rate, "RSS MiB": minute.usage.rss_mib, "ratio": ratio, "open files": minute.files}
                report.add(f"minute {number}", row)
        report.draw("RSS MiB by minute", "node", [(float(number), minute.usage.rss_mib) for number, minute in enumerate(found, 1)])
        report.write()


if __name__ == "__main__":
    main()
