"""Helpers of several commands, without heavy imports."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import click
import msgspec

from jobqueue import logs
from jobqueue.cli import values
from jobqueue.errors import SettingsError
from jobqueue.fields import attributes, not_null
from jobqueue.job import Delay, Flag, Instant, Priority, Retries, Submission, Timeout, Weight
from jobqueue.schema_names import DEFAULT, check

log_level_option = click.option(
    "--log-level", type=click.Choice(logs.LEVELS), default="info", show_default=True, envvar="JOBQUEUE_LOG_LEVEL", show_envvar=True
)


def _valid_name(_context: click.Context, _option: click.Parameter, name: str) -> str:
    try:
        return check(name)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None


schema_option = click.option(
    "--schema",
    default=DEFAULT,
    show_default=True,
    envvar="JOBQUEUE_SCHEMA",
    callback=_valid_name,
    show_envvar=True,
    help="Name of the queue's schemas in the database. Queues with different names are independent.",
)

_SECONDS = {"type": values.duration}
_STYLES: dict[Any, dict[str, Any]] = {
    Priority: {"type": int},
    Retries: {"type": int},
    Weight: {"type": float},
    Flag: {"is_flag": True, "default": None},
    Delay: _SECONDS,
    Timeout: _SECONDS,
    Instant: {"type": values.time},
}


def job_options(names: Collection[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option to a command for each of these fields of a job, except `kind` and `payload`, which are arguments."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        meanings = attributes(Submission)
        for field in reversed(msgspec.structs.fields(Submission)):
            if field.name in names and field.name not in {"kind", "payload"}:
                style = _STYLES.get(not_null(field.type), {})
                what, *more = meanings[field.name].split("; ")
                text = "; ".join([what[0].upper() + what[1:] + (" (90, 10m, 2h)" if style is _SECONDS else ""), *more])
                default = "" if field.default is None else f"  [default: {field.default}]"
                function = click.option(f"--{field.name.replace('_', '-')}", help=f"{text}.{default}", **style)(function)
        return function

    return add


class Listing(click.Group):
    """A group of commands whose default command is ``list``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)
