"""What several commands share that needs nothing else: an option, groups with a list, the error in a group of errors."""

from __future__ import annotations

import click

from jobqueue import logs

log_level_option = click.option(
    "--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True, envvar="JOBQUEUE_LOG_LEVEL", show_envvar=True
)


class Listing(click.Group):
    """A group of commands on things that can be listed: without the name of a command it is the list."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def first(error: BaseException) -> BaseException:
    """Take the first error out of a group of them, and of the groups in it; any other error is itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
