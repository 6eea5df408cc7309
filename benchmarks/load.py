"""Load a running service, and account for every job.

    python -m benchmarks.load --jobs 1000 --clients 20

It submits one job per request over keep-alive connections, and waits until all jobs have ended. Then it requests each job by its
id. It exits with 1 if a request failed, or if an acknowledged job is unaccounted for.

The load is a closed loop: a client sends its next job when its last one is acknowledged. So the latencies are valid for this number
of clients, if each client waits for its response. They are not valid for requests that arrive independently of the service. The
latencies include this program's own time, which is well under a millisecond. On the same machine, the program also competes for the
CPU.
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
from jobqueue.exception_groups import leaves

UNENDED = frozenset({"pending", "scheduled", "inflight"})
"""The states of unfinished jobs."""

QUEUE = "default"

POLL_INTERVAL = 0.25
"""Minimum time between two polls for unfinished jobs, in seconds."""

POLL_SHARE = 20
"""Pause between two polls, as a multiple of a poll's duration, so that counting a deep queue does not slow down its drain."""

# --------------------------------------------------------------------------------------------------------------------- the load


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs to submit, and the service."""

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
        """Return the job with this number. Its payload has `payload_bytes` bytes of JSON, or the minimum size if that is larger."""
        payload = {"number": number, "padding": ""}
        payload["padding"] = "x" * (self.payload_bytes - len(msgspec.json.encode(payload)))
        return msgspec.json.encode({"kind": self.kind, "payload": payload})


class Submitted(msgspec.Struct):
    """The results of the submissions: latencies in seconds, ids of acknowledged jobs, and counts of failures by response."""

    latencies: list[float] = []
    ids: list[str] = []
    failures: Counter[str] = msgspec.field(default_factory=Counter)
    seconds: float = 0.0


class Row(NamedTuple):
    """The columns of an ended job that the report needs. Times are on the database's clock."""

    state: str
    attempt: int
    created_at: datetime
    ended_at: datetime

    @classmethod
    def of(cls, job: dict[str, Any]) -> Row:
        created_at, ended_at = (datetime.fromisoformat(job[name]) for name in ("created_at", "ended_at"))
        return cls(job["state"], job["attempt"], created_at, ended_at)


async def run(load: Load, progress: Progress) -> tuple[Submitted, list[Row], Counter[str]]:
    """Submit the jobs, wait for them, and account for each.

    Returns:
        The submissions, the ended jobs, and the counts of other jobs by state.

    Raises:
        LoadError: see `Client.ask`; also if the service cannot be reached or is not ready.
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
        raise LoadError(f"no service responds at {load.url} ({error}): {hint}") from None
    if answer.status != 200:
        raise LoadError(f"{load.url} cannot be used: it responded with {described(answer)}")


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
                # Do not send the request again: if the job was committed, that would create a second job.
                submitted.failures[f"no response: {error}"] += 1
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
    """Wait until the last submitted job has ended: it is one of the last jobs to run. Each poll needs only two requests."""
    while True:
        started = trio.current_time()
        last = (await client.ask(f"/jobs/{ids[-1]}")).body
        # Other callers may use the queue too, so its depth only serves the progress display.
        bar.show(len(ids) - (await _depth(client) - depth_before))
        if last.get("state") not in UNENDED:
            return
        await trio.sleep(max(POLL_INTERVAL, POLL_SHARE * (trio.current_time() - started)))


async def _account(load: Load, ids: list[str], deadline: float, bar: Bar) -> tuple[list[Row], Counter[str]]:
    """Request every job by its id until it has ended, or until the deadline."""
    rows: list[Row] = []
    rest: Counter[str] = Counter()
    remaining = iter(dict.fromkeys(ids))
    if repeated := len(ids) - len(set(ids)):
        rest["acknowledged with the id of another job"] = repeated

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
    """Wait for a job to end and return its row. After the deadline, return its state."""
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
    """The figures of one load. The JSON file uses the same names.

    Attributes:
        submit_rate: acknowledged jobs per second, from the first request to the last response.
        submit_latency: latency of the requests with a response of any status.
        drain_rate: ended jobs per second, from the first job's creation to the last job's end, on the database's clock.
        time_to_done: time from creation to end of the ended jobs, on the database's clock.
        retried: jobs that needed more than one attempt, because an attempt failed or was lost with its node.
        unaccounted: acknowledged jobs that have not ended, or that the service does not know, by state.
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
        """Whether every job was acknowledged and has ended."""
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
@click.option("--jobs", type=click.IntRange(min=1), default=1000, help="Number of jobs to submit, one per request.")
@click.option("--clients", type=click.IntRange(1, 10_000), default=20, help="Number of connections that submit at once.")
@click.option("--kind", default="default", help="Kind of the jobs; the service must have a handler for it.")
@click.option("--payload-bytes", type=click.IntRange(0, 1 << 20), default=100, help="Minimum size of a payload, in bytes.")
@click.option("--token", envvar="JOBQUEUE_TOKEN", show_envvar=True, help="The service's token, if it requires one.")
@click.option("--timeout", type=click.FloatRange(min=0), default=600.0, help="Seconds to wait for the jobs to end.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the figures to this file.")
def main(json_file: Path | None, **options: Any) -> None:
    """Load a running service with jobs, and account for every job."""
    load = Load(**options)
    columns = [TextColumn("{task.description:>8}"), *Progress.get_default_columns()[1:], MofNCompleteColumn()]
    failure: BaseException | None = None
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            report = Report.of(load, *trio.run(run, load, progress))
    except* (LoadError, KeyboardInterrupt) as group:
        failure = next(leaves(group))
    if failure is not None:
        raise click.ClickException(str(failure) or "interrupted")
    Console().print(report.table())
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    if not report.passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
