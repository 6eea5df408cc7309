"""Connect a command to the queue, over HTTP or directly to the database. In both cases, the command uses a `Client`.

::

    @click.command("nodes")
    @remote
    async def command(client: Client, output: Output) -> None:
        nodes = await client.nodes()
        output.show(nodes, lambda: table(...))
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from http import HTTPStatus
from typing import Any

import click
import httpx
import trio
from click.core import ParameterSource

from jobqueue import logs
from jobqueue.cli.exits import Exit
from jobqueue.cli.options import schema_option
from jobqueue.cli.output import Failure, Output
from jobqueue.client import Client, RequestRefused, Unreachable
from jobqueue.errors import DatabaseUnavailable, JobQueueError, SchemaVersionError, SettingsError
from jobqueue.exception_groups import leaves
from jobqueue.schema_names import DEFAULT

DEFAULT_URL = "http://127.0.0.1:8080"
"""The default address of `jobqueue serve`."""

NOT_NOW = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
"""Statuses with which a service, or a proxy in front of it, reports that the same request may succeed later."""


@dataclass(frozen=True, slots=True)
class Address:
    """The address of the queue.

    Attributes:
        url: the URL of the service.
        token: the bearer token for the service.
        database_url: the database to work on directly; None to use the service.
        schema: the name of the queue's schemas in this database.
    """

    url: str = DEFAULT_URL
    token: str | None = None
    database_url: str | None = None
    schema: str = DEFAULT

    @asynccontextmanager
    async def connect(self, patience: float = 0.0) -> AsyncIterator[Client]:
        """Open a client.

        Args:
            patience: seconds for which the client retries a failed request, where a retry is safe.

        Raises:
            DatabaseUnavailable, SchemaVersionError: the database cannot be used.
            Failure: the URL or the token is malformed.
        """
        if self.database_url is None:
            async with _client(self.url, self.token, patience) as client:
                yield client
            return
        # The import takes half a second, and most commands use a service.
        from jobqueue.direct import open_api  # noqa: PLC0415

        async with open_api(self.database_url, self.schema) as api:
            transport = httpx.ASGITransport(api)  # type: ignore[arg-type] # httpx has its own type names for ASGI
            async with Client("http://localhost", patience=patience, transport=transport) as client:
                yield client


def connecting(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the address of the queue. The function gets them as ``address``."""

    @click.option("--url", envvar="JOBQUEUE_URL", show_envvar=True, help=f"URL of the service.  [default: {DEFAULT_URL}]")
    @click.option("--token", envvar="JOBQUEUE_TOKEN", show_envvar=True, help="Bearer token to send to the service.")
    @click.option(
        "--database-url",
        envvar="DATABASE_URL",
        show_envvar=True,
        help="libpq URL of a database to work on directly, without a service.",
    )
    @schema_option
    @click.pass_context
    @wraps(function)
    def command(
        ctx: click.Context, /, url: str | None, token: str | None, database_url: str | None, schema: str, **given: Any
    ) -> None:
        ctx.invoke(function, address=_chosen(ctx, url, token, database_url, schema), **given)

    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def remote(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Turn an async function that takes a client and an output into a command with ``--json`` and the options of `connecting`."""

    @connecting
    @json_option
    @wraps(function)
    def command(*, address: Address, as_json: bool, **given: Any) -> None:
        output = Output(as_json=as_json)

        async def main() -> None:
            async with address.connect() as client:
                await function(client, output, **given)

        run(main)

    return command


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run the async part of a command.

    Raises:
        click.ClickException: the command failed; the exception has the message and the exit code.
    """
    logs.configure("error")
    try:
        trio.run(main)
    except BaseException as group:
        error = next(leaves(group))
        if isinstance(error, KeyboardInterrupt | SystemExit | click.ClickException | BrokenPipeError):
            raise error from None  # raise the error without the exception groups around it
        failure = failure_of(error)
        if failure is None:
            raise
        raise failure from None


def failure_of(error: BaseException) -> Failure | None:
    """Return the message and the exit code for an error; None for an unexpected error."""
    if isinstance(error, RequestRefused):
        if error.status == HTTPStatus.NOT_FOUND:
            return Failure(_said(error), Exit.NOT_FOUND)
        if error.status == HTTPStatus.UNAUTHORIZED:
            return Failure("the service requires a token that it knows: give one with --token, or set JOBQUEUE_TOKEN", Exit.REFUSED)
        return Failure(_said(error), Exit.UNREACHABLE if error.status in NOT_NOW else Exit.REFUSED)
    if isinstance(error, Unreachable):
        return Failure(f"{error}. Start a service with `jobqueue serve`, or give its URL with --url", Exit.UNREACHABLE)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    return None if code is None else Failure(str(error), code)


_CODES: list[tuple[type[BaseException], Exit]] = [
    (DatabaseUnavailable, Exit.UNREACHABLE),
    (SchemaVersionError, Exit.UNREACHABLE),
    (SettingsError, Exit.USAGE),
    (TimeoutError, Exit.TIMEOUT),
    (JobQueueError, Exit.REFUSED),
]
"""Exit codes by error class; the first class that matches the error applies."""


def _chosen(ctx: click.Context, url: str | None, token: str | None, database_url: str | None, schema: str) -> Address:
    """Choose a service or a database. Options take precedence over environment variables, and a service over a database."""

    def typed(name: str) -> bool:
        return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE

    if typed("database_url"):
        if typed("url") or typed("token"):
            raise click.UsageError("--database-url works without a service: do not combine it with --url or --token")
        return Address(database_url=database_url, schema=schema)
    if database_url is not None and url is None and token is None:
        return Address(database_url=database_url, schema=schema)
    if typed("schema"):
        raise click.UsageError("--schema selects a queue in a database: give --database-url, or the --url of its service")
    return Address(url or DEFAULT_URL, token)


def _client(url: str, token: str | None, patience: float) -> Client:
    try:
        return Client(url, token, patience=patience)
    except ValueError as error:
        raise Failure(str(error), Exit.USAGE) from None


def _said(error: RequestRefused) -> str:
    said = str(error.problem.get("detail") or error.problem.get("title") or f"the service responded with status {error.status}")
    of_a_field = error.field and error.field not in said and error.status != HTTPStatus.NOT_FOUND
    return f"{error.field}: {said}" if of_a_field else said
