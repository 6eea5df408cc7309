"""Helpers of several commands, without heavy imports."""

from __future__ import annotations

import click

from jobqueue import logs

log_level_option = click.option(
    "--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True, envvar="JOBQUEUE_LOG_LEVEL", show_envvar=True
)


class Listing(click.Group):
    """A group of commands whose default command is ``list``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def first(error: BaseException) -> BaseException:
    """Return the first error inside nested exception groups; an error that is not a group is returned as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
