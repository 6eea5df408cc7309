"""``jobqueue jobs``: list, show and change jobs."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import RenderableType

from jobqueue.cli import dead, values
from jobqueue.cli.connection import remote
from jobqueue.cli.exits import Exit
from jobqueue.cli.filters import STATES, UNFINISHED, Verb, apply, by_filter, each, of_jobs, wanted
from jobqueue.cli.history import whole
from jobqueue.cli.options import Listing
from jobqueue.cli.output import Failure, Output, compact, local, table
from jobqueue.cli.pages import paged, show_pages
from jobqueue.client import Client, JobEnded, NotFound


@click.group("jobs", cls=Listing)
def command() -> None:
    """List, show, change, cancel, retry and discard jobs, or wait for them."""


@command.command("list")
@of_jobs(STATES)
@paged
@remote
async def list_jobs(client: Client, output: Output, *, limit: int, everything: bool, after: str | None, **given: Any) -> None:
    """List jobs, latest first."""

    def rows(jobs: list[dict[str, Any]]) -> RenderableType:
        return table(
            ["ID", "STATE", "KIND", *(["QUEUE", ">PRIORITY", ">ATTEMPT"] if output.wide else []), "SUBMITTED"],
            (
                [
                    job["id"],
                    job["state"],
                    job["kind"],
                    *([job["queue"], job["priority"], job["attempt"]] if output.wide else []),
                    local(job["created_at"], short=True),
                ]
                for job in jobs
            ),
            cut=["KIND", "QUEUE"],
        )

    await show_pages(
        output,
        lambda size, place: client.jobs(limit=size, after=place, **wanted(given)),
        rows,
        limit=limit,
        everything=everything,
        after=after,
    )


@command.command("show")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@remote
async def show(client: Client, output: Output, ids: tuple[str, ...]) -> None:
    """Show all fields of jobs: payload, history, errors with tracebacks, result."""
    await each(ids, client.job, output, whole)


@command.command("cancel")
@by_filter
@of_jobs(UNFINISHED)
@remote
async def cancel(client: Client, output: Output, **given: Any) -> None:
    """Cancel waiting and running jobs, by id or by filter."""
    await apply(Verb(client.cancel, client.cancel_jobs, "cancelled"), output, **given)


@command.command("change")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--priority", type=int, help="New priority.")
@click.option("--run-at", type=values.time, help="Earliest time to run the job.")
@click.option("--delay", type=values.duration, help="Time to wait before the job may run (90, 10m, 2h).")
@remote
async def change(client: Client, output: Output, ids: tuple[str, ...], **fields: Any) -> None:
    """Change the priority or the due time of waiting jobs."""
    changed = wanted(fields)
    if not changed:
        raise click.UsageError("nothing to change: give --priority, --run-at or --delay")

    def readable(job: dict[str, Any]) -> str:
        due = f", due {local(job['run_at'])}" if job["run_at"] else ""
        return f"{job['id']}  {job['state']}, priority {job['priority']}{due}"

    await each(ids, lambda job_id: client.update(job_id, **changed), output, readable)


@command.command("wait")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=values.duration, help="Longest time to wait for all jobs (90, 10m, 2h).  [default: no limit]")
@remote
async def wait(client: Client, output: Output, ids: tuple[str, ...], timeout: float | None) -> None:
    """Wait until jobs have ended. Exits with 1 if a job did not succeed, and with 5 at the timeout."""
    give_up_at = None if timeout is None else time.monotonic() + timeout
    unsuccessful: list[dict[str, Any]] = []

    async def act(job_id: str) -> dict[str, Any]:
        job = await client.job(job_id)  # fails at once without a service; `result` would wait for the service
        left = None if give_up_at is None else max(0.0, give_up_at - time.monotonic())
        try:
            job = await ended(client, job["id"], left)
        except TimeoutError:
            raise TimeoutError(f"job {job_id} has not ended within {timeout:g} s") from None
        if job["state"] != "succeeded":
            unsuccessful.append(job)
        return job

    def readable(job: dict[str, Any]) -> str:
        return f"{job['id']}  {job['state']}  {compact(job['result']) if job['state'] == 'succeeded' else job['reason'] or ''}"

    await each(ids, act, output, readable)
    if unsuccessful:
        raise unsuccessful_failure(unsuccessful[0])


command.add_command(dead.retry)
command.add_command(dead.discard)


async def ended(client: Client, job_id: str, timeout: float | None) -> dict[str, Any]:
    """Wait until a job ends in any state, and return the job.

    Raises:
        TimeoutError: the job has not ended within `timeout` seconds.
    """
    try:
        result = await client.result(job_id, timeout=timeout)
    except JobEnded as end:
        return end.job
    try:
        return await client.job(job_id)
    except NotFound:  # the service does not keep succeeded jobs
        return {"id": job_id, "state": "succeeded", "result": result}


def unsuccessful_failure(job: dict[str, Any]) -> Failure:
    """Return the failure for a job that did not succeed."""
    reason = f": {job['reason']}" if job.get("reason") else ""
    return Failure(f"job {job['id']} is {job['state']}{reason}", Exit.REFUSED)
