"""Run the fuzz test: warm the service up, measure it, send all cases, and measure it again.

    python -m benchmarks.fuzz [--requests 10000] [--seed N]

The program ends with an error if the service no longer runs jobs, has responded 500, or has logged a traceback or an error. It also
fails if the service has more open sockets than before, or uses over `GROWTH_MIB` MiB more memory. The same seed sends the same
requests.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import trio
from rich.console import Console
from rich.table import Table

from benchmarks import harness
from benchmarks.fuzz.cases import Case, draw_cases
from benchmarks.fuzz.client import send
from benchmarks.harness import Node
from jobqueue.http import limits

CLIENTS = 32
"""Number of connections that are open at the same time."""

WARM_UP = 150
"""Number of cases before the first measurement. They cause the allocations that a process makes only once."""

SETTLING = 20.0
"""Maximum time to wait until sockets close, in seconds."""

QUIET = limits.LINGER_TIMEOUT + 1
"""The wait ends early if no socket closes for this number of seconds."""

GROWTH_MIB = 64.0
"""Allowed growth of the process in MiB. Some growth is normal, because allocators keep freed memory, and a
large batch needs many times its size."""

FILES = 2
"""Allowed increase of open files. Some connections to PostgreSQL open only when they are used for the first time."""

QUEUE = "checked"
"""The queue of the jobs that must always run. Cases may pause any other queue."""

Answered = dict[str, Counter[str]]


class Look:
    """A node's memory and open files."""

    def __init__(self, node: Node) -> None:
        self.rss_mib = node.usage().rss_mib
        self.files = len(list(Path(f"/proc/{node.pid}/fd").iterdir()))


def ask(node: Node, path: str, document: object = None) -> Any:
    """Send a valid request and return the response's document."""
    body = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(node.url + path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def work(node: Node) -> str:
    """Run a job and return its id.

    Raises:
        RuntimeError: the job did not succeed.
    """
    job_id: str = ask(node, "/submit", {"kind": "async", "queue": QUEUE})["id"]
    if (job := ask(node, f"/jobs/{job_id}?wait=20"))["state"] != "succeeded":
        raise RuntimeError(f"a job did not succeed: {job}")
    return job_id


def send_all(node: Node, cases: Sequence[Case]) -> tuple[Answered, list[Case]]:
    """Send all cases. Return the response statuses by kind of case, and the cases with a response 500."""
    split = urlsplit(node.url)
    assert split.hostname is not None
    assert split.port is not None
    address = split.hostname, split.port
    answered: Answered = {}
    failed: list[Case] = []
    left = iter(cases)

    async def client() -> None:
        for case in left:
            found = await send(address, case)
            answered.setdefault(case.kind, Counter()).update(found)
            if "500" in found:
                failed.append(case)

    async def clients() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(client)

    trio.run(clients)
    return answered, failed


def settle(node: Node) -> Look:
    """Wait until the node has closed the connections of all clients, and measure it."""
    deadline = time.monotonic() + SETTLING
    files = Look(node).files
    while time.monotonic() < deadline:
        time.sleep(QUIET)
        before, files = files, Look(node).files
        if files >= before:
            break
    return Look(node)


def tell(answered: Answered, title: str) -> None:
    """Print a table of the response statuses."""
    statuses = sorted({status for counts in answered.values() for status in counts})
    table = Table("kind of request", *statuses, "all", title=title)
    total: Counter[str] = Counter()
    for kind, counts in sorted(answered.items()):
        table.add_row(kind, *(f"{counts[status] or ''}" for status in statuses), f"{counts.total():,}")
        total += counts
    table.add_section()
    table.add_row("all", *(f"{total[status]:,}" for status in statuses), f"{total.total():,}")
    Console(width=None if sys.stdout.isatty() else 180).print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--requests", type=click.IntRange(min=1), default=10_000, show_default=True, help="How many.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which.")
def main(requests: int, seed: int) -> None:
    """Send hostile requests to a service, and check that it still works and leaks nothing."""
    with harness.database() as database, Node(database, "benchmarks.handlers", queues={"default": 16, QUEUE: 1}) as node:
        live_ids = tuple(work(node) for _ in range(3))
        send_all(node, draw_cases(WARM_UP, seed + 1, live_ids))
        work(node)
        before = settle(node)
        cases = draw_cases(requests, seed, live_ids)
        began = time.monotonic()
        answered, failed = send_all(node, cases)
        seconds = time.monotonic() - began
        work(node)
        after = settle(node)
        log = [json.loads(line) for line in node.log.splitlines()]
    tell(answered, f"{len(cases):,} cases of seed {seed} in {seconds:.0f} s")
    levels = Counter(line["level"] for line in log)
    # Jobs of unknown kinds die, and the node logs that.
    shouts = [
        line for line in log if (line["level"] in {"error", "critical"} and line["event"] != "job died") or "exception" in line
    ]
    print(f"memory       {before.rss_mib:.1f} MiB before, {after.rss_mib:.1f} after (bound: {GROWTH_MIB:g} more)")
    print(f"open files   {before.files} before, {after.files} after (bound: {FILES} more)")
    print(f"log          {', '.join(f'{count} {level}' for level, count in sorted(levels.items())) or 'nothing'}")
    print("jobs         submitted and succeeded before, between and after")
    problems = [f"response 500: {case}"[:2_000] for case in failed[:10]] + [f"logged: {line}"[:4_000] for line in shouts[:10]]
    if after.files > before.files + FILES:
        problems.append("sockets were leaked")
    if after.rss_mib > before.rss_mib + GROWTH_MIB:
        problems.append("memory was leaked")
    if problems:
        raise click.ClickException("\n".join(problems))


if __name__ == "__main__":
    main()
