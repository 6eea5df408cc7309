"""Options and output of paginated lists."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import click
from rich.console import RenderableType

from jobqueue.cli.output import Output

DEFAULT_LIMIT = 50
"""Jobs that a list shows by default."""

MAX_PAGE = 1_000
"""Maximum number of jobs on one page."""

Command = TypeVar("Command", bound=Callable[..., Any])
Jobs = list[dict[str, Any]]


def paged(function: Command) -> Command:
    """Add the options of a paginated list: ``limit``, ``everything`` and ``after``."""
    for option in (
        click.option("--after", help="Continue a list from this position, as printed below the list."),
        click.option("--all", "everything", is_flag=True, help="Show all jobs. With --json, print one job per line."),
        click.option("--limit", type=click.IntRange(1), default=DEFAULT_LIMIT, show_default=True, help="Number of jobs to show."),
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
    """Show up to `limit` jobs, or all of them.

    Args:
        pages: iterates over pages, given the page size and a position. A smaller page is not always the last one.
        readable: makes a table of jobs.
    """
    if everything:
        async with aclosing(pages(MAX_PAGE, after)) as found:
            async for page in found:
                if output.as_json:
                    output.lines(page["jobs"])
                elif page["jobs"]:
                    output.show(None, lambda page=page: readable(page["jobs"]))  # type: ignore[misc] # binds this page
        return
    jobs: Jobs = []
    place = after
    while True:
        # Send a new request for each page, because the page size depends on the number of jobs still to show.
        async with aclosing(pages(min(MAX_PAGE, limit - len(jobs)), place)) as found:
            page = await anext(found)
        jobs += page["jobs"]
        place = page["next"]
        if place is None or len(jobs) == limit:
            break
    output.show({"jobs": jobs, "next": place}, lambda: readable(jobs))
    if place is not None and not output.as_json:
        output.note(f"There may be more jobs: give --after {place}, or --all")
