"""``jobqueue queues``: show, limit, pause and resume queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from jobqueue.cli import values
from jobqueue.cli.connection import remote
from jobqueue.cli.filters import each, wanted
from jobqueue.cli.options import Listing
from jobqueue.cli.output import Output, facts, local, number, seconds, table
from jobqueue.client import Client

LIMITS = {
    "max_running": "Maximum number of jobs that run at a time.",
    "rate": "Maximum number of jobs that start per second, in the long run.",
    "burst": "Maximum number of jobs that start at once after an idle time.",
    "key_max_running": "Maximum number of jobs of one concurrency key that run at a time.",
    "key_rate": "Maximum number of jobs of one concurrency key that start per second, in the long run.",
    "key_burst": "Maximum number of jobs of one concurrency key that start at once after an idle time.",
    "aging_interval": "Seconds of waiting that raise the priority of a job by one.",
}
STATES = ("pending", "inflight", "scheduled", "blocked", "dead")

_names = click.argument("names", nargs=-1, required=True, metavar="QUEUE...")


@click.group("queues", cls=Listing)
def command() -> None:
    """List, show, pause and resume queues, and set their limits."""


@command.command("list")
@remote
async def list_queues(client: Client, output: Output) -> None:
    """List the queues with the number of jobs in each state. Blocked jobs wait for a job with the same concurrency key."""
    queues = await client.queues()
    output.show(
        queues,
        lambda: table(
            ["QUEUE", *(f">{state.upper()}" for state in STATES), ">OLDEST", ">DONE/S", ""],
            (
                [
                    queue["name"],
                    *(f"{queue['depth'].get(state, 0):,}" for state in STATES),
                    seconds((queue.get("oldest") or {}).get("pending")),
                    number((queue.get("throughput") or {}).get("completed")),
                    "paused" if queue["paused"] else None,
                ]
                for queue in queues
            ),
            cut=["QUEUE"],
        ),
    )


@command.command("show")
@_names
@remote
async def show(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Show all fields of queues: jobs by state, throughput, limits."""

    def readable(queue: dict[str, Any]) -> Any:
        oldest = queue.get("oldest") or {}
        return facts(
            {
                "queue": queue["name"],
                "paused": "yes" if queue["paused"] else "no",
                **{
                    state: f"{jobs:,}" + (f", oldest {seconds(oldest[state])}" if state in oldest else "")
                    for state, jobs in queue["depth"].items()
                },
                **{
                    name: f"{number(rates[rate])} per second" if (rates := queue.get("throughput")) else None
                    for name, rate in (("done", "completed"), ("failed", "failed"))
                },
                **_limits(queue),
                "created": local(queue.get("created_at")),
            }.items()
        )

    await each(names, client.queue, output, readable)


@command.command("pause")
@_names
@remote
async def pause(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Stop starting jobs of these queues, on all nodes. Running jobs continue."""

    async def act(name: str) -> dict[str, Any]:
        await client.pause(name)
        return {"queue": name, "paused": True}

    await each(names, act, output, lambda queue: f"{queue['queue']}  paused")


@command.command("resume")
@_names
@remote
async def resume(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Resume paused queues."""

    async def act(name: str) -> dict[str, Any]:
        await client.resume(name)
        return {"queue": name, "paused": False}

    await each(names, act, output, lambda queue: f"{queue['queue']}  resumed")


def _limit_options(function: Callable[..., None]) -> Callable[..., None]:
    for name, text in reversed(LIMITS.items()):
        function = click.option(f"--{name.replace('_', '-')}", type=values.number_or_none, help=text)(function)
    return function


@command.command("configure")
@click.argument("name", metavar="QUEUE")
@_limit_options
@remote
async def configure(client: Client, output: Output, name: str, **given: Any) -> None:
    """Set the limits of a queue, on all nodes. "none" removes a limit. Limits that you do not give stay as they are."""
    settings = {setting: None if value == "none" else value for setting, value in wanted(given).items()}
    if not settings:
        raise click.UsageError("nothing to set: give --max-running, --rate or another limit")
    queue = await client.configure(name, **settings)
    output.show(queue, lambda: facts({"queue": queue["name"], **_limits(queue)}.items()))


def _limits(queue: dict[str, Any]) -> dict[str, object]:
    return {name.replace("_", " "): queue.get(name) for name in LIMITS}
