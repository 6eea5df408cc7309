"""What several commands share and nobody pays for: an option, and the error in a group of errors."""

from __future__ import annotations

import click

from jobqueue import logs

log_level_option = click.option(
    "--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True, envvar="JOBQUEUE_LOG_LEVEL", show_envvar=True
)


def first(error: BaseException) -> BaseException:
    """Take the first error out of a group of them, and of the groups in it; any other error is itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
