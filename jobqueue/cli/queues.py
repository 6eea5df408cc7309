"""``jobqueue queues``: depths, limits, pause and resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from jobqueue.cli import values
from jobqueue.cli.connection import remote
from jobqueue.cli.filters import each, wanted
from jobqueue.cli.options import Listing
from jobqueue.cli.output import Output, facts, local, seconds, table
from jobqueue.client import Client

LIMITS = {
    "max_running": "How many of its jobs run at a time.",
    "rate": "How many of its jobs start a second.",
    "burst": "How many start at once after a pause.",
    "key_max_running": "How many jobs of one concurrency key run at a time.",
    "key_rate": "How many jobs of one concurrency key start a second.",
    "key_burst": "How many of one key start at once after a pause.",
    "aging_interval": "Seconds of waiting that are worth one point of priority.",
}
STATES = ("pending", "inflight", "scheduled", "blocked", "dead")

_names = click.argument("names", nargs=-1, required=True, metavar="QUEUE...")


@click.group("queues", cls=Listing)
def command() -> None:
    """Look at queues, pause and resume them, and set their limits."""


@command.command("list")
@remote
async def list_queues(client: Client, output: Output) -> None:
    """List the queues with their depths: jobs that wait, run, are not due yet, wait for others of their key, and are dead."""
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
                    _rate(queue, "completed"),
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
    """Show all that is known of queues."""

    def readable(queue: dict[str, Any]) -> Any:
        oldest = queue.get("oldest") or {}
        return facts(
            {
                "queue": queue["name"],
                "paused": "yes" if queue["paused"] else "no",
                **{
                    state: f"{jobs:,}" + (f", the oldest for {seconds(oldest[state])}" if state in oldest else "")
                    for state, jobs in queue["depth"].items()
                },
                "done": None if "throughput" not in queue else f"{_rate(queue, 'completed')} a second",
                "failed": None if "throughput" not in queue else f"{_rate(queue, 'failed')} a second",
                **_limits(queue),
                "since": local(queue.get("created_at")),
            }.items()
        )

    await each(names, client.queue, output, readable)


@command.command("pause")
@_names
@remote
async def pause(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Start no more jobs of these queues, on any node. What runs goes on."""

    async def act(name: str) -> dict[str, Any]:
        await client.pause(name)
        return {"queue": name, "paused": True}

    await each(names, act, output, lambda queue: f"{queue['queue']}  paused")


@command.command("resume")
@_names
@remote
async def resume(client: Client, output: Output, names: tuple[str, ...]) -> None:
    """Go on with queues that are paused."""

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
    """Set what holds for a queue on all nodes; what is not given stays. "none" takes a limit away."""
    settings = {setting: None if value == "none" else value for setting, value in wanted(given).items()}
    if not settings:
        raise click.UsageError("what is to hold? Give --max-running, --rate or another limit")
    queue = await client.configure(name, **settings)
    output.show(queue, lambda: facts({"queue": queue["name"], **_limits(queue)}.items()))


def _limits(queue: dict[str, Any]) -> dict[str, object]:
    return {name.replace("_", " "): queue.get(name) for name in LIMITS}


def _rate(queue: dict[str, Any], what: str) -> str | None:
    throughput = queue.get("throughput")
    if throughput is None:
        return None
    rate = throughput[what]
    return f"{rate:.2g}" if rate < 10 else f"{rate:,.0f}"  # noqa: PLR2004 - below it fractions matter
