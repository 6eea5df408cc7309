"""Lists that come in pages."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import click
from rich.console import RenderableType

from jobqueue.cli.output import Output

DEFAULT_LIMIT = 50
"""Jobs that a list shows, unless told otherwise."""

MAX_PAGE = 1_000
"""Jobs that the service gives at once, at the most."""

Command = TypeVar("Command", bound=Callable[..., Any])
Jobs = list[dict[str, Any]]


def paged(function: Command) -> Command:
    """Add the options of a list in pages: ``limit``, ``everything`` and ``after``."""
    for option in (
        click.option("--after", help="Go on from here: what the list before said."),
        click.option("--all", "everything", is_flag=True, help="Show all of them; with --json one a line."),
        click.option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, show_default=True, help="How many to show."),
    ):
        function = option(function)
    return function


async def show_pages(
    output: Output,
    pages: Callable[[int, str | None], AsyncGenerator[dict[str, Any], None]],
    readable: Callable[[Jobs], RenderableType],
    *,
    limit: int,
    everything: bool,
    after: str | None,
) -> None:
    """Show as many jobs as were asked for.

    Args:
        pages: iterates over pages of so many jobs, from a place on. A page may have fewer, and not be the last.
        readable: makes a table of jobs.
    """
    if everything:
        async with aclosing(pages(MAX_PAGE, after)) as found:
            async for page in found:
                if output.as_json:
                    output.lines(page["jobs"])
                elif page["jobs"]:
                    output.show(None, lambda page=page: readable(page["jobs"]))  # type: ignore[misc] # the page of this turn
        return
    jobs: Jobs = []
    place = after
    while True:
        # Asked for anew each time: what is left of the limit is where the next page must end.
        async with aclosing(pages(min(MAX_PAGE, limit - len(jobs)), place)) as found:
            page = await anext(found)
        jobs += page["jobs"]
        place = page["next"]
        if place is None or len(jobs) == limit:
            break
    output.show({"jobs": jobs, "next": place}, lambda: readable(jobs))
    if place is not None and not output.as_json:
        output.note(f"There may be more: --after {place}, or --all")
