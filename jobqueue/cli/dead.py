"""``jobqueue dead``: list, rerun and discard dead letters."""

from __future__ import annotations

from typing import Any

import click

from jobqueue.cli.connection import remote
from jobqueue.cli.filters import Verb, apply, by_filter, of_dead, wanted
from jobqueue.cli.options import Listing
from jobqueue.cli.output import Output, local, table
from jobqueue.cli.pages import DEFAULT_LIMIT, MAX_PAGE, paged, show_pages
from jobqueue.client import Client


@click.group("dead", cls=Listing)
def command() -> None:
    """List, rerun and discard dead letters."""


@command.command("list")
@of_dead
@paged
@remote
async def list_dead(client: Client, output: Output, *, limit: int, everything: bool, after: str | None, **given: Any) -> None:
    """List dead letters, latest first."""

    def rows(jobs: list[dict[str, Any]]) -> Any:
        return table(
            ["ID", "KIND", *(["QUEUE", "ATTEMPTS"] if output.wide else []), "DIED", "ERROR"],
            (
                [
                    job["id"],
                    job["kind"],
                    *([job["queue"], job["attempt"]] if output.wide else []),
                    local(job["died_at"], short=True),
                    (job["error"] or job["reason"] or "").partition("\n")[0],  # a reason begins with the attempt
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


@command.command("causes")
@of_dead
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=DEFAULT_LIMIT, show_default=True, help="Causes to show.")
@remote
async def causes(client: Client, output: Output, *, limit: int, **given: Any) -> None:
    """Group dead letters by cause, largest group first. `#` replaces the parts that differ."""
    found = await client.dead_causes(limit=limit, **wanted(given))
    output.show(
        found,
        lambda: table(
            [">JOBS", "KIND", *(["QUEUE", "FIRST"] if output.wide else []), "LATEST", "CAUSE"],
            (
                [
                    f"{cause['jobs']:,}",
                    cause["kind"],
                    *([cause["queue"], local(cause["first_died_at"], short=True)] if output.wide else []),
                    local(cause["last_died_at"], short=True),
                    cause["cause"],
                ]
                for cause in found["causes"]
            ),
            cut=["KIND", "QUEUE", "CAUSE"],
        ),
    )
    if found["more"] and not output.as_json:
        output.note(f"There are more: give --limit {min(MAX_PAGE, limit * 10)}, or --kind")


@command.command("retry")
@by_filter
@of_dead
@remote
async def retry(client: Client, output: Output, **given: Any) -> None:
    """Rerun dead jobs, by id or by filter. Each job gets all of its attempts again."""
    await apply(Verb(client.retry, client.retry_dead, "rerun"), output, **given)


@command.command("discard")
@by_filter
@of_dead
@remote
async def discard(client: Client, output: Output, **given: Any) -> None:
    """Delete dead jobs permanently, by id or by filter."""
    await apply(Verb(client.discard, client.discard_dead, "deleted"), output, **given)
