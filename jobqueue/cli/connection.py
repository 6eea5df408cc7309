"""How a command reaches the queue: over HTTP, or straight on the database; each command is written once, against the client.

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
from jobqueue.cli.options import first
from jobqueue.cli.output import Failure, Output
from jobqueue.client import Client, RequestRefused, Unreachable
from jobqueue.errors import DatabaseUnavailable, JobQueueError, SchemaVersionError, SettingsError

DEFAULT_URL = "http://127.0.0.1:8080"
"""Where `jobqueue serve` listens, unless it is told otherwise."""

NOT_NOW = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
"""What a service, or a proxy before it, answers when the same request may be served later."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What a command was told of where the queue is.

    Attributes:
        url: of the service.
        token: its bearer token.
        database_url: the database to work on directly, in place of a service.
    """

    url: str = DEFAULT_URL
    token: str | None = None
    database_url: str | None = None

    @asynccontextmanager
    async def connect(self, patience: float = 0.0) -> AsyncIterator[Client]:
        """Open a client.

        Args:
            patience: seconds for which a request that fails is sent again, where that can do no harm. Somebody waits for a command,
                and would rather hear at once that there is no service.

        Raises:
            DatabaseUnavailable, SchemaVersionError: the database cannot be worked on.
            Failure: the URL or the token cannot be one.
        """
        if self.database_url is None:
            async with _client(self.url, self.token, patience) as client:
                yield client
            return
        # The service's side is half a second to import, and most commands have a service to ask.
        from jobqueue.offline import open_api  # noqa: PLC0415

        async with open_api(self.database_url) as api:
            transport = httpx.ASGITransport(api)  # type: ignore[arg-type] # ASGI, in the words of another library
            async with Client("http://localhost", patience=patience, transport=transport) as client:
                yield client


def connecting(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where the queue is; the function gets them as ``connection``."""

    @click.option("--url", envvar="JOBQUEUE_URL", show_envvar=True, help=f"Where the service is.  [default: {DEFAULT_URL}]")
    @click.option("--token", envvar="JOBQUEUE_TOKEN", show_envvar=True, help="The bearer token to show to the service.")
    @click.option(
        "--database-url",
        envvar="DATABASE_URL",
        show_envvar=True,
        help="Work straight on this database, without a service: a libpq URL.",
    )
    @click.pass_context
    @wraps(function)
    def command(ctx: click.Context, /, url: str | None, token: str | None, database_url: str | None, **given: Any) -> None:
        ctx.invoke(function, connection=_chosen(ctx, url, token, database_url), **given)

    return command


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def remote(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a command's function of an async one that gets a client and an output, and add ``--json`` and where the queue is."""

    @connecting
    @json_option
    @wraps(function)
    def command(*, connection: Connection, as_json: bool, **given: Any) -> None:
        output = Output(as_json=as_json)

        async def main() -> None:
            async with connection.connect() as client:
                await function(client, output, **given)

        run(main)

    return command


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a command's async part, with every error as one that says how the command ends.

    Raises:
        click.ClickException: it failed.
    """
    logs.configure("error")
    try:
        trio.run(main)
    except BaseException as group:
        error = first(group)
        if isinstance(error, KeyboardInterrupt | SystemExit | click.ClickException | BrokenPipeError):
            raise error from None  # out of its groups
        failure = failure_of(error)
        if failure is None:
            raise
        raise failure from None


def failure_of(error: BaseException) -> Failure | None:
    """Say how a command ends that failed in this way; None where nobody thought of it."""
    if isinstance(error, RequestRefused):
        if error.status == HTTPStatus.NOT_FOUND:
            return Failure(_said(error), Exit.NOT_FOUND)
        return Failure(_said(error), Exit.UNREACHABLE if error.status in NOT_NOW else Exit.REFUSED)
    if isinstance(error, Unreachable):
        return Failure(f"{error}. Start a service with `jobqueue serve`, or say with --url where it is", Exit.UNREACHABLE)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    return None if code is None else Failure(str(error), code)


_CODES: list[tuple[type[BaseException], Exit]] = [
    (DatabaseUnavailable, Exit.UNREACHABLE),
    (SchemaVersionError, Exit.UNREACHABLE),
    (SettingsError, Exit.USAGE),
    (TimeoutError, Exit.TIMEOUT),
    (JobQueueError, Exit.REFUSED),
]
"""How a command ends, by the first of these that its error is one of."""


def _chosen(ctx: click.Context, url: str | None, token: str | None, database_url: str | None) -> Connection:
    """Decide between a service and a database: what stands on the command line beats variables, and a service beats a database."""

    def typed(name: str) -> bool:
        return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE

    if typed("database_url"):
        if typed("url") or typed("token"):
            raise click.UsageError("--database-url works without a service: it goes with neither --url nor --token")
        return Connection(database_url=database_url)
    if database_url is not None and url is None and token is None:
        return Connection(database_url=database_url)
    return Connection(url or DEFAULT_URL, token)


def _client(url: str, token: str | None, patience: float) -> Client:
    try:
        return Client(url, token, patience=patience)
    except ValueError as error:
        raise Failure(str(error), Exit.USAGE) from None


def _said(error: RequestRefused) -> str:
    said = str(error.problem.get("detail") or error.problem.get("title") or f"the service answered {error.status}")
    of_a_field = error.field and error.field not in said and error.status != HTTPStatus.NOT_FOUND
    return f"{error.field}: {said}" if of_a_field else said
