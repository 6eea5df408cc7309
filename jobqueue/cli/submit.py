"""``jobqueue submit``: submit one job, or one per line of a file."""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import click

from jobqueue.cli import values
from jobqueue.cli.bulk import PATIENCE, submit_lines
from jobqueue.cli.connection import Address, connecting, json_option, run
from jobqueue.cli.filters import wanted
from jobqueue.cli.jobs import ended, unsuccessful_failure
from jobqueue.cli.options import job_options
from jobqueue.cli.output import Output, pretty
from jobqueue.job import Submission

SHORT_PATIENCE = 3.0
"""Seconds for which the client retries a single submission, such as during a restart of the service."""


@click.command("submit")
@click.argument("kind", required=False)
@click.argument("payload", type=values.json, required=False, metavar="[JSON]")
@click.option("--file", type=click.File("rb"), help="Submit the jobs of this file, one per line (NDJSON); - is standard input.")
@click.option("--run-id", help="Continue an interrupted --file with the run id that it printed. No job is submitted twice.")
@job_options(set(Submission.__struct_fields__) - Submission.ONLY_IN_FILES)
@click.option(
    "--wait",
    type=values.patience,
    is_flag=False,
    flag_value=values.FOR_EVER,
    help="Wait for the end of the job (at most this time, if given), and print the result.",
)
@connecting
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    address: Address,
    as_json: bool,
    kind: str | None,
    payload: Any,
    file: BinaryIO | None,
    run_id: str | None,
    wait: float | None,
    **given: Any,
) -> None:
    """Submit a job of kind KIND, and print its id once it is committed.

    With --file, submit one job per line. Each line is a JSON object with the fields of a job as in POST /submit: "kind", "payload",
    "priority" and so on. KIND and the options are defaults for jobs without these fields. Jobs are committed in batches of up to
    1,000.

    \b
      jobqueue submit resize '{"path": "a.png"}' --priority 5
      jobqueue submit report --delay 10m --wait
      jq -c '{payload: .}' rows.json | jobqueue submit import --file -
    """  # noqa: D301 - click needs the character \b, which keeps the line breaks
    output = Output(as_json=as_json)
    fields = wanted(given)
    if file is None:
        if kind is None or run_id is not None:
            raise click.UsageError("give the KIND of the job" if kind is None else "--run-id requires --file", ctx)
        job = {"kind": kind, "payload": payload, **fields}
        run(lambda: _submit_one(address, output, job, wait))
        return
    if payload is not None or wait is not None or "unique_key" in fields or "idempotency_key" in fields:
        raise click.UsageError("--file cannot be combined with JSON, --wait, --unique-key or --idempotency-key", ctx)
    defaults = {**({} if kind is None else {"kind": kind}), **fields}

    async def many() -> None:
        async with address.connect(PATIENCE) as client:
            await submit_lines(client, output, file, defaults, run_id)

    run(many)


async def _submit_one(address: Address, output: Output, job: dict[str, Any], wait: float | None) -> None:
    async with address.connect(SHORT_PATIENCE) as client:
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
