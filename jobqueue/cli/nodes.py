"""``jobqueue nodes``: list the running nodes."""

from __future__ import annotations

from typing import Any

import click

from jobqueue.cli.connection import remote
from jobqueue.cli.output import Output, local, table
from jobqueue.client import Client


@click.command("nodes")
@remote
async def command(client: Client, output: Output) -> None:
    """List the running nodes. RUNNING shows how many jobs of each queue a node runs, and how many it can run at once."""
    nodes = await client.nodes()
    output.show(
        nodes,
        lambda: table(
            ["NODE", "HOST", ">PID", *(["STARTED", "VERSION"] if output.wide else []), "RUNNING"],
            (
                [
                    node["id"],
                    node["host"],
                    node["pid"],
                    *([local(node["started_at"]), node["version"]] if output.wide else []),
                    _running(node),
                ]
                for node in nodes
            ),
            cut=["HOST", "RUNNING"],
        ),
    )


def _running(node: dict[str, Any]) -> str:
    running: dict[str, int] = {}
    for share in node.get("running") or ():
        running[share["queue"]] = running.get(share["queue"], 0) + share["jobs"]
    return ", ".join(f"{queue} {running.get(queue, 0)}/{width}" for queue, width in node["queues"].items())
