"""Measure how much CPU open overview pages cost the service (its process and PostgreSQL), and how soon a page is visible.

    python -m benchmarks.dashboard [--jobs 1000000] [--chromium /usr/bin/chromium] [--quick] [--out DIR]

The same node is measured with 0, 1, 10 and 100 event streams, on an empty database and with jobs in the tables. The jobs are in a
queue that no node works, so the node itself is idle. This program reads the streams. If a browser is available, it opens each view
with an empty cache.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks import harness
from benchmarks.harness import Database, Node, Spread

HANDLERS = "benchmarks.handlers"

STREAMS = (0, 1, 10, 100)
QUICK_STREAMS = (0, 10)

VIEWS = {"overview": ".figures", "jobs": "tbody tr, .empty", "dead": "tbody tr, .empty", "tasks": "details"}
"""The views, and a selector that matches when a view shows its content."""

SETTLE_SHARE = 0.25
"""Pause before a measurement, as a share of the measurement's length. During the pause, the node counts the depths and sends the
history."""


@contextmanager
def open_streams(url: str, streams: int) -> Iterator[list[int]]:
    """Open `streams` event streams of the overview. Yield the number of received events of each stream."""
    events = [0] * streams
    opened = threading.Barrier(streams + 1)
    ending = threading.Event()

    def follow(number: int) -> None:
        with httpx.stream("GET", f"{url}/overview/events?seconds=900", timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    json.loads(line.removeprefix("data: "))
                    events[number] += 1
                    if events[number] == 1:
                        opened.wait()
                if ending.is_set():
                    return

    threads = [threading.Thread(target=follow, args=(number,), daemon=True) for number in range(streams)]
    for thread in threads:
        thread.start()
    opened.wait()
    try:
        yield events
    finally:
        ending.set()
        for thread in threads:
            thread.join()


def watch(database: Database, node: Node, streams: int, seconds: float) -> dict[str, float]:
    """Keep streams open for some seconds. Return the CPU usage in % of one core, and the events per second."""
    with open_streams(node.url, streams) as events:
        time.sleep(seconds * SETTLE_SHARE)
        before, used, server = sum(events), node.usage(), database.usage()
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        used, now = node.usage() - used, database.usage()
        told = sum(events) - before
    return {
        "CPU %": used.cpu / took * 100,
        "PostgreSQL CPU %": 0.0 if server is None or now is None else (now - server).cpu / took * 100,
        "events/s": told / took,
    }


def measure(node: Node, database: Database, jobs: int, seconds: float, *, quick: bool) -> dict[int, list[dict[str, float]]]:
    """Measure a node with each number of streams, one after the other."""
    numbers, repeats = (QUICK_STREAMS, 1) if quick else (STREAMS, 3)
    cases = {streams: (lambda streams=streams: watch(database, node, streams, seconds)) for streams in numbers}
    found: Any = harness.interleave({f"{jobs:,} jobs, {streams} streams": case for streams, case in cases.items()}, repeats)
    return dict(zip(numbers, found.values(), strict=True))


def paint(url: str, chromium: str, visits: int) -> Iterator[tuple[str, dict[str, harness.Value]]]:
    """Open each view `visits` times in a browser. Yield the milliseconds until its first paint, and until it shows its content."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - an optional package

    with sync_playwright() as playwright:
        # The sandbox does not work as root. The browser only visits the benchmark's own service.
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for view, shown in VIEWS.items():
            paints, ends = [], []
            for _ in range(visits):
                with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
                    page = context.new_page()
                    page.goto(f"{url}/#/{view}")
                    page.locator(shown).first.wait_for()
                    ends.append(page.evaluate("performance.now()"))
                    paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            yield view, {"first paint ms": Spread.of(paints), "shown ms": Spread.of(ends)}
        browser.close()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--jobs", type=click.IntRange(min=1), help="Number of jobs in the tables.  [default: 1000000, or 10000 with --quick]")
@click.option("--seconds", type=click.FloatRange(min=1), help="Seconds of one measurement.  [default: 20, or 2 with --quick]")
@click.option("--chromium", envvar="JOBQUEUE_TEST_CHROMIUM", help="Path of the browser that opens the views.")
@harness.options
def main(quick: bool, out: Path, jobs: int | None, seconds: float | None, chromium: str | None) -> None:
    """Measure what open overview pages cost the service."""
    jobs = jobs or (10_000 if quick else 1_000_000)
    seconds = seconds or (2.0 if quick else 20.0)
    with harness.database() as database:
        report = harness.Report(
            "dashboard",
            "An idle node that sends the overview to pages",
            database.machine,
            out,
            notes=f"Measured for {seconds:g} s. CPU in % of one core. CPU % a stream: increase over no streams, per stream.",
            plotted=["CPU %", "CPU % a stream", "PostgreSQL CPU %"],
        )
        for count in (0, jobs):
            database.clear()
            if count:
                database.fill(count, queues={"elsewhere": "noop"})
                database.settle()
            with Node(database, HANDLERS) as node:
                found = measure(node, database, count, seconds, quick=quick)
                if chromium:
                    for view, figures in paint(node.url, chromium, 3 if quick else 10):
                        report.add(f"{count:,} jobs, {view} in a browser", figures)
            for streams, samples in found.items():
                row: dict[str, harness.Value] = {
                    name: Spread.of([sample[name] for sample in samples]) for name in ("CPU %", "PostgreSQL CPU %", "events/s")
                }
                if streams:
                    more = [(sample["CPU %"] - idle["CPU %"]) / streams for sample, idle in zip(samples, found[0], strict=True)]
                    row["CPU % a stream"] = Spread.of(more)
                report.add(f"{count:,} jobs, {streams} streams", row)
        report.write()


if __name__ == "__main__":
    main()
