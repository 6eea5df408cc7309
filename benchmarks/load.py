"""Load a running service, and account for every job.

    python -m benchmarks.load --jobs 1000 --clients 20

Submits the jobs one a request over keep-alive connections, waits until the database says that all of them have ended, then asks for
each one by its id. It exits with 1 if a submit failed or an acknowledged job is unaccounted for.

The load is a closed loop: a client sends its next job when its last one is acknowledged. So the latencies are those of this many
clients that wait, and not of requests that arrive whatever the service does. They include this program's own share, well under a
millisecond, but on the same machine also its share of the CPU.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import trio
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from benchmarks.client import Client, LoadError, Unanswered, described

UNENDED = frozenset({"pending", "scheduled", "inflight"})
"""The states of a job from which another one follows by itself."""

QUEUE = "default"

POLL_INTERVAL = 0.25
"""Seconds between two looks at what has not ended yet, at the least."""

POLL_SHARE = 20
"""Looks are this many times as long apart as one takes: counting a deep queue must not slow down its drain."""

# --------------------------------------------------------------------------------------------------------------------- the load


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to submit, and where."""

    url: str
    jobs: int
    clients: int
    kind: str
    payload_bytes: int
    token: str | None
    timeout: float

    def client(self) -> Client:
        """Make one of the clients."""
        return Client(self.url, self.token)

    def body(self, number: int) -> bytes:
        """Make the job with this number: its payload is of `payload_bytes` as JSON, or as few more as it takes."""
        payload = {"number": number, "padding": ""}
        payload["padding"] = "x" * (self.payload_bytes - len(msgspec.json.encode(payload)))
        return msgspec.json.encode({"kind": self.kind, "payload": payload})


class Submitted(msgspec.Struct):
    """What became of the submits: latencies in seconds, ids of the acknowledged, counts of the failed by what was answered."""

    latencies: list[float] = []
    ids: list[str] = []
    failures: Counter[str] = msgspec.field(default_factory=Counter)
    seconds: float = 0.0


class Row(NamedTuple):
    """What counts of a job that has ended; times by the database's clock."""

    state: str
    attempt: int
    created_at: datetime
    ended_at: datetime

    @classmethod
    def of(cls, job: dict[str, Any]) -> Row:
        created_at, ended_at = (datetime.fromisoformat(job[name]) for name in ("created_at", "ended_at"))
        return cls(job["state"], job["attempt"], created_at, ended_at)


async def run(load: Load, progress: Progress) -> tuple[Submitted, list[Row], Counter[str]]:
    """Submit, wait, and account for every job.

    Returns:
        The submits, the jobs that have ended, and counts of those that have not by where they are.

    Raises:
        LoadError: see `Client.ask`; also when there is no service, or it is not ready.
    """
    async with aclosing(load.client()) as client:
        await _require_service(client, load)
        depth_before = await _depth(client)
        submitted = await _submit(load, Bar(progress, "submit", load.jobs))
        with trio.move_on_after(load.timeout) as patience:
            if submitted.ids:
                await _wait_for_the_last(client, submitted.ids, depth_before, Bar(progress, "drain", len(submitted.ids)))
        rows, rest = await _account(load, submitted.ids, patience.deadline, Bar(progress, "account", len(submitted.ids)))
    return submitted, rows, rest


async def _require_service(client: Client, load: Load) -> None:
    try:
        answer = await client.request("GET", "/health/ready")
        if answer.status == 200:
            answer = await client.request("GET", "/queues")
    except Unanswered as error:
        hint = "start one with `jobqueue serve examples.quickstart`"
        raise LoadError(f"no service answers at {load.url} ({error}): {hint}") from None
    if answer.status != 200:
        raise LoadError(f"{load.url} cannot be used: it answered {described(answer)}")


async def _submit(load: Load, bar: Bar) -> Submitted:
    submitted = Submitted()
    numbers = iter(range(load.jobs))
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(min(load.clients, load.jobs)):
            nursery.start_soon(_submit_some, load, numbers, submitted, bar)
    submitted.seconds = trio.current_time() - started
    return submitted


async def _submit_some(load: Load, numbers: Iterator[int], submitted: Submitted, bar: Bar) -> None:
    async with aclosing(load.client()) as client:
        for number in numbers:
            body = load.body(number)
            started = time.perf_counter()
            try:
                answer = await client.request("POST", "/submit", body)
            except Unanswered as error:
                # Never sent again: it may have been committed, and then it would be two jobs.
                submitted.failures[f"no answer: {error}"] += 1
            else:
                submitted.latencies.append(time.perf_counter() - started)
                if answer.status == 201:
                    submitted.ids.append(answer.body["id"])
                else:
                    submitted.failures[described(answer)] += 1
            bar.advance()


async def _depth(client: Client) -> int:
    queues = (await client.ask("/queues")).body
    return sum(jobs for queue in queues if queue["name"] == QUEUE for state, jobs in queue["depth"].items() if state in UNENDED)


async def _wait_for_the_last(client: Client, ids: list[str], depth_before: int, bar: Bar) -> None:
    """Wait until the job submitted last, which is about the last to run, has ended: two requests a look disturb no drain."""
    while True:
        started = trio.current_time()
        last = (await client.ask(f"/jobs/{ids[-1]}")).body
        # Others may use the queue as well, so its depth is only good for a picture.
        bar.show(len(ids) - (await _depth(client) - depth_before))
        if last.get("state") not in UNENDED:
            return
        await trio.sleep(max(POLL_INTERVAL, POLL_SHARE * (trio.current_time() - started)))


async def _account(load: Load, ids: list[str], deadline: float, bar: Bar) -> tuple[list[Row], Counter[str]]:
    """Ask for every job by its id, and again until it has ended or the time is over."""
    rows: list[Row] = []
    rest: Counter[str] = Counter()
    remaining = iter(dict.fromkeys(ids))
    if repeated := len(ids) - len(set(ids)):
        rest["acknowledged with the id of another"] = repeated

    async def account_for_some() -> None:
        async with aclosing(load.client()) as client:
            for job_id in remaining:
                fate = await _fate(client, job_id, deadline)
                if isinstance(fate, Row):
                    rows.append(fate)
                else:
                    rest[fate] += 1
                bar.advance()

    async with trio.open_nursery() as nursery:
        for _ in range(min(load.clients, len(ids))):
            nursery.start_soon(account_for_some)
    return rows, rest


async def _fate(client: Client, job_id: str, deadline: float) -> Row | str:
    """Wait for a job to end and return its row, or else where it is when the time is over."""
    while True:
        answer = await client.ask(f"/jobs/{job_id}")
        if answer.status == 404:
            return "unknown to the service"
        if answer.body["state"] not in UNENDED:
            return Row.of(answer.body)
        if trio.current_time() > deadline:
            return str(answer.body["state"])
        await trio.sleep(POLL_INTERVAL)


class Bar:
    """One bar of the progress display."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=total)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def show(self, completed: int) -> None:
        self._progress.update(self._task, completed=max(0, completed))


# ------------------------------------------------------------------------------------------------------------------- the report


class Latency(msgspec.Struct, frozen=True):
    """Percentiles (nearest rank), in milliseconds."""

    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency | None:
        ranked = sorted(seconds)
        if not ranked:
            return None
        return cls(*(round(ranked[max(0, math.ceil(share * len(ranked)) - 1)] * 1000, 3) for share in (0.5, 0.9, 0.99, 1)))

    def __str__(self) -> str:
        return f"p50 {self.p50:,.1f}   p90 {self.p90:,.1f}   p99 {self.p99:,.1f}   max {self.max:,.1f} ms"


class Report(msgspec.Struct, kw_only=True):
    """The figures of one load; the JSON file holds them under these names.

    Attributes:
        submit_rate: acknowledged jobs a second, from the first request to the last answer.
        submit_latency: of each request that was answered, whatever the answer.
        drain_rate: ended jobs a second, from the first job's creation to the last one's end, by the database's clock.
        time_to_done: of each job that ended, from its creation to its end, by the database's clock.
        retried: jobs that took more than one attempt: the first failed, or was lost with its node.
        unaccounted: acknowledged jobs that have not ended, or that the service does not know, by where they are.
    """

    load: Load
    acknowledged: int
    submit_failures: dict[str, int]
    submit_seconds: float
    submit_rate: float
    submit_latency: Latency | None
    drain_seconds: float
    drain_rate: float
    time_to_done: Latency | None
    ended: dict[str, int]
    retried: int
    unaccounted: dict[str, int]

    @classmethod
    def of(cls, load: Load, submitted: Submitted, rows: list[Row], rest: Counter[str]) -> Report:
        drain = 0.0
        if rows:
            drain = (max(row.ended_at for row in rows) - min(row.created_at for row in rows)).total_seconds()
        return cls(
            load=msgspec.structs.replace(load, token=None),
            acknowledged=len(submitted.ids),
            submit_failures=dict(submitted.failures),
            submit_seconds=round(submitted.seconds, 3),
            submit_rate=round(len(submitted.ids) / submitted.seconds, 1),
            submit_latency=Latency.of(submitted.latencies),
            drain_seconds=round(drain, 3),
            drain_rate=round(len(rows) / drain, 1) if drain else 0.0,
            time_to_done=Latency.of((row.ended_at - row.created_at).total_seconds() for row in rows),
            ended=dict(Counter(row.state for row in rows)),
            retried=sum(row.attempt > 1 for row in rows),
            unaccounted=dict(rest),
        )

    @property
    def passed(self) -> bool:
        """Whether every job was acknowledged, and every acknowledged one has ended."""
        return not self.submit_failures and self.acknowledged == sum(self.ended.values()) == self.load.jobs

    def table(self) -> Table:
        table = Table(
            "", f"{self.load.jobs:,} jobs, {self.load.clients} clients", title=f"Load on {self.load.url}", title_justify="left"
        )
        table.add_row("submitted", f"{self.acknowledged:,} in {self.submit_seconds:.2f} s: {self.submit_rate:,.0f} jobs/s")
        table.add_row("submit latency", str(self.submit_latency or "-"))
        table.add_row("submits failed", _counted(self.submit_failures))
        table.add_section()
        table.add_row("drained", f"{sum(self.ended.values()):,} in {self.drain_seconds:.2f} s: {self.drain_rate:,.0f} jobs/s")
        table.add_row("submit to done", str(self.time_to_done or "-"))
        table.add_row("succeeded", f"{self.ended.get('succeeded', 0):,}")
        table.add_row("dead", f"{self.ended.get('dead', 0):,}")
        if cancelled := self.ended.get("cancelled"):
            table.add_row("cancelled", f"{cancelled:,}")
        table.add_row("retried", f"{self.retried:,}")
        table.add_row("unaccounted for", _counted(self.unaccounted))
        return table


def _counted(counts: dict[str, int]) -> str:
    return "\n".join(f"{count:,} ({what})" for what, count in counts.items()) or "0"


# ------------------------------------------------------------------------------------------------------------- the command line


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--url", default="http://127.0.0.1:8080", help="The service.")
@click.option("--jobs", type=click.IntRange(min=1), default=1000, help="How many jobs to submit, one a request.")
@click.option("--clients", type=click.IntRange(1, 10_000), default=20, help="How many connections submit at once.")
@click.option("--kind", default="default", help="Kind of the jobs; the service must have a handler for it.")
@click.option("--payload-bytes", type=click.IntRange(0, 1 << 20), default=100, help="Size of a payload, at the least.")
@click.option("--token", envvar="JOBQUEUE_TOKEN", show_envvar=True, help="The service's token, if it wants one.")
@click.option("--timeout", type=click.FloatRange(min=0), default=600.0, help="Seconds to wait for the jobs to end.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures to this file as well."
)
def main(json_file: Path | None, **options: Any) -> None:
    """Load a running service with jobs, and account for every one of them."""
    load = Load(**options)
    columns = [TextColumn("{task.description:>8}"), *Progress.get_default_columns()[1:], MofNCompleteColumn()]
    failure: BaseException | None = None
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            report = Report.of(load, *trio.run(run, load, progress))
    except* (LoadError, KeyboardInterrupt) as group:
        failure = _first(group)
    if failure is not None:
        raise click.ClickException(str(failure) or "interrupted")
    Console().print(report.table())
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    if not report.passed:
        raise SystemExit(1)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
