"""``jobqueue nodes``: the processes that run jobs."""

from __future__ import annotations

import click

from jobqueue.cli.connection import remote
from jobqueue.cli.output import Output, table
from jobqueue.client import Client


@click.command("nodes")
@remote
async def command(client: Client, output: Output) -> None:
    """List the nodes that are running, and what they run."""
    nodes = await client.request("GET", "/nodes")
    output.show(nodes, lambda: table(["NODE", "HOST", "PID"], ([node["id"], node["host"], node["pid"]] for node in nodes)))
