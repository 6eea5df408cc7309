"""``jobqueue dead``: the dead letters."""

from __future__ import annotations

from typing import Any

import click

from jobqueue.cli.connection import remote
from jobqueue.cli.filters import Verb, apply, by_filter, of_dead, wanted
from jobqueue.cli.options import Listing
from jobqueue.cli.output import Output, local, table
from jobqueue.cli.pages import paged, show_pages
from jobqueue.client import Client


@click.group("dead", cls=Listing)
def command() -> None:
    """Look at the dead letters, run them again, or delete them."""


@command.command("list")
@of_dead
@paged
@remote
async def list_dead(client: Client, output: Output, *, limit: int, everything: bool, after: str | None, **given: Any) -> None:
    """List dead letters, the latest first."""

    def rows(jobs: list[dict[str, Any]]) -> Any:
        return table(
            ["ID", "KIND", *(["QUEUE", "ATTEMPTS"] if output.wide else []), "DIED", "ERROR"],
            (
                [
                    job["id"],
                    job["kind"],
                    *([job["queue"], job["attempt"]] if output.wide else []),
                    local(job["died_at"], short=True),
                    (job["error"] or job["reason"] or "").partition("\n")[0],  # the reason says which attempt before it says why
                ]
                for job in jobs
            ),
            cut=["KIND", "QUEUE", "ERROR"],
        )

    await show_pages(
        output,
        lambda size, place: client.dead(limit=size, after=place, **wanted(given)),
        rows,
        limit=limit,
        everything=everything,
        after=after,
    )


@command.command("retry")
@by_filter
@of_dead
@remote
async def retry(client: Client, output: Output, **given: Any) -> None:
    """Run dead jobs again, with all their attempts: those with these ids, or all that a filter finds."""
    await apply(Verb(client.retry, client.retry_dead, "run again"), output, **given)


@command.command("discard")
@by_filter
@of_dead
@remote
async def discard(client: Client, output: Output, **given: Any) -> None:
    """Delete dead jobs for good: those with these ids, or all that a filter finds."""
    await apply(Verb(client.discard, client.discard_dead, "deleted"), output, **given)
