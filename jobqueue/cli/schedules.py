"""``jobqueue schedules``: list and change cron schedules."""

from __future__ import annotations

from typing import Any

import click

from jobqueue.cli import values
from jobqueue.cli.connection import remote
from jobqueue.cli.filters import each, wanted
from jobqueue.cli.options import Listing, job_options
from jobqueue.cli.output import Output, compact, facts, local, seconds, table
from jobqueue.client import Client
from jobqueue.job import Submission

_names = click.argument("names", nargs=-1, required=True, metavar="NAME...")


@click.group("schedules", cls=Listing)
def command() -> None:
    """List, create, change, pause, trigger and delete cron schedules."""


@command.command("list")
@remote
async def list_schedules(client: Client, output: Output) -> None:
    """List the schedules with their last and next tick."""
    schedules = await client.schedules()
    output.show(
        schedules,
        lambda: table(
            ["NAME", "CRON", *(["ZONE", "KIND", "QUEUE", "LAST"] if output.wide else []), "NEXT"],
            (
                [
                    schedule["name"],
                    schedule["cron"],
                    *(
                        [schedule["timezone"], schedule["kind"], schedule["queue"], local(schedule["last_at"])]
                        if output.wide
                        else []
                    ),
                    _next(schedule),
                ]
                for schedule in schedules
            ),
            cut=["NAME", "CRON"],
        ),
    )


@command.command("show")
@_names
@remote
async def show(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Show all fields of schedules."""
    await each(names, client.schedule, output, _whole)


@command.command("put")
@click.argument("name")
@click.argument("cron")
@click.argument("payload", type=values.json, required=False, metavar="[JSON]")
@click.option("--kind", help="Kind of the jobs.  [default: NAME]")
@click.option("--timezone", help="Time zone of CRON, such as Europe/Berlin.  [default: UTC]")
@click.option("--missed", type=click.Choice(["one", "skip", "all"]), help="Jobs to submit for missed ticks.  [default: one]")
@job_options(Submission.SCHEDULED)
@remote
async def put(client: Client, output: Output, name: str, cron: str, **fields: Any) -> None:
    """Create or replace the schedule NAME. CRON is an expression such as "*/5 * * * *". JSON is the payload of the jobs."""
    schedule = await client.put_schedule(name, cron, **wanted(fields))
    output.show(schedule, lambda: _whole(schedule))


@command.command("delete")
@_names
@remote
async def delete(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Delete schedules. The jobs that they submitted stay."""
    await each(names, client.unschedule, output, lambda schedule: f"{schedule['name']}  deleted")


@command.command("pause")
@_names
@remote
async def pause(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Pause schedules. They submit no jobs for the ticks until you resume them."""
    await each(names, client.pause_schedule, output, lambda schedule: f"{schedule['name']}  paused")


@command.command("resume")
@_names
@remote
async def resume(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Resume paused schedules."""
    await each(names, client.resume_schedule, output, lambda schedule: f"{schedule['name']}  {_next(schedule)}")


@command.command("trigger")
@_names
@remote
async def trigger(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Submit the job of each schedule now, and print its id."""

    async def act(name: str) -> dict[str, Any]:
        return {"id": await client.trigger_schedule(name)}

    await each(names, act, output, lambda job: str(job["id"]))


def _next(schedule: dict[str, Any]) -> str:
    if schedule["paused"]:
        return "paused"
    return local(schedule["next_at"]) or schedule["error"] or "not computed yet"  # a node computes it soon


def _whole(schedule: dict[str, Any]) -> Any:
    return facts(
        {
            "schedule": schedule["name"],
            "cron": f"{schedule['cron']} ({schedule['timezone']})",
            "next": _next(schedule),
            "last": local(schedule["last_at"]) or "never",
            "missed": schedule["missed"],
            "kind": schedule["kind"],
            "queue": schedule["queue"],
            "priority": schedule["priority"],
            "max retries": schedule["max_retries"],
            "timeout": seconds(schedule["timeout"]) or None,
            "payload": compact(schedule["payload"]),
            "module": schedule["source"],
            "error": schedule["error"],
        }.items()
    )
