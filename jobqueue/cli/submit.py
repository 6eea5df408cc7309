"""``jobqueue submit``: one job, or as many as a file has lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, BinaryIO

import click

from jobqueue.cli import values
from jobqueue.cli.bulk import PATIENCE, submit_lines
from jobqueue.cli.connection import Connection, connecting, json_option, run
from jobqueue.cli.filters import wanted
from jobqueue.cli.jobs import ended, unsuccessful_failure
from jobqueue.cli.output import Output, pretty

SHORT_PATIENCE = 3.0
"""Seconds for which one job is sent again after a failure: the restart of a service."""

_FIELDS: list[Callable[[Any], Any]] = [
    click.option("--queue", help="The queue to put it in.  [default: default]"),
    click.option("--priority", type=int, help="The higher the sooner.  [default: 0]"),
    click.option("--max-retries", type=int, help="How often it is tried again after a failure."),
    click.option("--delay", type=values.duration, help="Run it no earlier than in so many seconds (10m, 2h)."),
    click.option("--run-at", type=values.time, help="Run it no earlier than this."),
    click.option("--timeout", type=values.duration, help="Seconds for one attempt (90, 10m)."),
    click.option("--expires-in", type=values.duration, help="Give it up if it has not been started within so many seconds."),
    click.option("--group", help="The group that it shares the workers fairly with."),
    click.option("--weight", type=float, help="What its group's share weighs.  [default: 1]"),
    click.option("--concurrency-key", help="Run one job with this key at a time."),
    click.option("--unique", is_flag=True, default=None, help="Only if no job of its queue, kind and payload waits or runs."),
    click.option("--unique-key", help="Only if no job with this key waits or runs."),
    click.option("--idempotency-key", help="The same key is the same job, however often it is submitted."),
]


def _fields(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_FIELDS):
        function = option(function)
    return function


@click.command("submit")
@click.argument("kind", required=False)
@click.argument("payload", type=values.json, required=False, metavar="[JSON]")
@click.option("--file", type=click.File("rb"), help="Submit the jobs of this file, one a line (NDJSON); - is standard input.")
@click.option("--run-id", help="Go on with an interrupted --file, by what it said: no job is there twice.")
@_fields
@click.option(
    "--wait", type=values.patience, is_flag=False, flag_value=values.FOR_EVER, help="Wait for its end, and print its result."
)
@connecting
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    connection: Connection,
    as_json: bool,
    kind: str | None,
    payload: Any,
    file: BinaryIO | None,
    run_id: str | None,
    wait: float | None,
    **given: Any,
) -> None:
    r"""Submit a job of this KIND and print its id, once it is committed.

    With --file, submit a job a line: each is a JSON object with the fields of a job ("kind", "payload", "priority", ...), as HTTP
    takes them. KIND and the options hold for jobs that say nothing else. Jobs are committed a thousand at a time.

    \b
      jobqueue submit resize '{"path": "a.png"}' --priority 5
      jobqueue submit report --delay 10m --wait
      jq -c '{payload: .}' rows.json | jobqueue submit import --file -
    """
    output = Output(as_json=as_json)
    fields = wanted(given)
    if file is None:
        if kind is None or run_id is not None:
            raise click.UsageError("which KIND?" if kind is None else "--run-id is for --file", ctx)
        job = {"kind": kind, "payload": payload, **fields}
        run(lambda: _submit_one(connection, output, job, wait))
        return
    if payload is not None or wait is not None or "unique_key" in fields or "idempotency_key" in fields:
        raise click.UsageError("--file goes with neither JSON nor --wait, --unique-key or --idempotency-key", ctx)
    defaults = {**({} if kind is None else {"kind": kind}), **fields}

    async def many() -> None:
        async with connection.connect(PATIENCE) as client:
            await submit_lines(client, output, file, defaults, run_id)

    run(many)


async def _submit_one(connection: Connection, output: Output, job: dict[str, Any], wait: float | None) -> None:
    async with connection.connect(SHORT_PATIENCE) as client:
        job_id = await client.submit(**job)
        if wait is None:
            output.show({"id": job_id}, lambda: job_id)
            return
        output.note(job_id)
        job = await ended(client, job_id, None if math.isinf(wait) else wait)
        if output.as_json or job["state"] == "succeeded":
            output.show(job, lambda: pretty(job["result"]))
        if job["state"] != "succeeded":
            raise unsuccessful_failure(job)
