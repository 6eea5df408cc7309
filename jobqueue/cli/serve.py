"""``jobqueue serve``: run a node, or several on one port."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import psycopg
import trio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from jobqueue import logs
from jobqueue._version import __version__
from jobqueue.cli.exits import Exit
from jobqueue.cli.options import log_level_option, schema_option
from jobqueue.engine.handlers import App, Handler
from jobqueue.errors import DatabaseUnavailable, JobQueueError, NodeFailed, SettingsError, UnusableFile
from jobqueue.exception_groups import leaves
from jobqueue.processes.child import Parent, Report
from jobqueue.processes.parent import supervise
from jobqueue.service import Serving, serve
from jobqueue.settings import Settings

DEFAULTS = Settings()

Command = TypeVar("Command", bound=Callable[..., Any])

database_url = click.option(
    "--database-url",
    envvar="DATABASE_URL",
    show_envvar=True,
    help="libpq URL of the database (PostgreSQL 14 or newer). Without it, the node starts the embedded PostgreSQL.",
)


def setting(name: str, env: str, help: str, **kwargs: Any) -> Callable[[Command], Command]:  # noqa: A002 - click's word
    """Make an option with an environment variable; the help shows the variable and the default."""
    return click.option(name, envvar=f"JOBQUEUE_{env}", show_envvar=True, help=help, **{"show_default": True, **kwargs})


@click.command("serve")
@click.argument("module", required=False, metavar="MODULE[:APP]")
@database_url
@schema_option
@setting(
    "--data-dir",
    "DATA_DIR",
    "Data directory of the embedded PostgreSQL.  [default: the user's data directory]",
    type=click.Path(path_type=Path, file_okay=False),
    show_default=False,
)
@setting(
    "--upgrade-data-dir",
    "UPGRADE_DATA_DIR",
    "If the data directory has data of an older PostgreSQL, upgrade the data before the start. OLD_BIN_DIR is the directory of"
    " the programs of that PostgreSQL, such as /usr/lib/postgresql/17/bin.",
    metavar="OLD_BIN_DIR",
    type=click.Path(path_type=Path, file_okay=False),
    show_default=False,
)
@setting("--adopt", "ADOPT", "If the database is a copy, run its jobs. Otherwise, a copy is on hold.", is_flag=True)
@setting("--host", "HOST", "Address to listen on. Any address except loopback requires a token.", default=DEFAULTS.host)
@setting("--port", "PORT", "Port to listen on. 0 chooses a free port.", type=int, default=DEFAULTS.port)
@setting(
    "--processes",
    "PROCESSES",
    "Number of processes that share the port, to use several cores. Each is a node with its own workers.",
    type=int,
    default=DEFAULTS.processes,
)
@setting(
    "--queue",
    "QUEUES",
    "Queue to work, and how many of its jobs each process runs at once. Repeatable; in the variable, separate by spaces.",
    metavar="NAME=CONCURRENCY",
    multiple=True,
    default=[f"{name}={width}" for name, width in DEFAULTS.queues.items()],
)
@setting("--no-workers", "NO_WORKERS", "Accept submissions only; run no jobs.", is_flag=True)
@setting("--strict-kinds", "STRICT_KINDS", "Reject jobs whose kind has no handler on this node.", is_flag=True)
@setting(
    "--token",
    "TOKENS",
    "Bearer token that clients must send, with its role: submit, read or admin. Repeatable; in the variable, separate by spaces."
    " Prefer the variable or the file: every user of the machine can see arguments.",
    metavar="ROLE:sha256:HEX|ROLE:SECRET",
    multiple=True,
    show_default=False,
)
@setting("--token-file", "TOKEN_FILE", "File with more tokens, one per line. WatchedFiles when it changes.", type=click.Path())
@setting(
    "--open",
    "OPEN",
    "Routes that need no token: health, metrics, health,metrics or none.",
    metavar="NAMES",
    default=DEFAULTS.open,
)
@setting(
    "--cors-origin",
    "CORS_ORIGINS",
    "Origin, such as https://jobs.example, whose pages may send requests. Repeatable; in the variable, separate by spaces.",
    multiple=True,
    show_default=False,
)
@setting("--certfile", "CERTFILE", "Certificate for TLS (PEM, with its intermediate certificates).", type=click.Path())
@setting("--keyfile", "KEYFILE", "Private key of the certificate (PEM, without a password).", type=click.Path())
@setting(
    "--poll-interval",
    "POLL_INTERVAL",
    "Seconds between polls for work that no notification announced.",
    type=float,
    default=DEFAULTS.poll_interval,
)
@setting(
    "--visibility-timeout",
    "VISIBILITY_TIMEOUT",
    "Seconds without a heartbeat after which other nodes take over the jobs of a node.",
    type=float,
    default=DEFAULTS.visibility_timeout,
)
@setting(
    "--stall-limit",
    "STALL_LIMIT",
    "Seconds for which a handler may block its node. After that, other nodes take over the jobs of the node.",
    type=float,
    default=DEFAULTS.stall_limit,
)
@setting("--grace-period", "GRACE_PERIOD", "Seconds for jobs to end after SIGTERM.", type=float, default=DEFAULTS.grace_period)
@setting("--keep-finished", "KEEP_FINISHED", "Seconds to keep succeeded jobs.", type=float, default=DEFAULTS.keep_finished)
@setting("--keep-cancelled", "KEEP_CANCELLED", "Seconds to keep cancelled jobs.", type=float, default=DEFAULTS.keep_cancelled)
@setting("--keep-dead", "KEEP_DEAD", "Seconds to keep dead letters.", type=float, default=DEFAULTS.keep_dead)
@setting(
    "--idempotency-ttl",
    "IDEMPOTENCY_TTL",
    "Seconds for which an idempotency key identifies the job that was first submitted with it.",
    type=float,
    default=DEFAULTS.idempotency_ttl,
)
@log_level_option
@click.option("--supervised", type=int, hidden=True)  # the number of the process, see jobqueue/processes/child.py
def command(
    module: str | None,
    *,
    queue: tuple[str, ...],
    token: tuple[str, ...],
    cors_origin: tuple[str, ...],
    no_workers: bool,
    log_level: str,
    supervised: int | None,
    **options: Any,
) -> None:
    """Serve HTTP and run jobs with the handlers of MODULE.

    MODULE is imported from the current directory or the Python path. APP is the name of its jobqueue.App; the default is `app`.
    """
    logs.take_over(logs.Setup(log_level, {} if supervised is None else {"process": supervised}))
    if supervised is not None:
        _serve_supervised(module)
        return
    failure: BaseException | None = None
    try:
        queues = {} if no_workers else _parse_queues(queue)
        settings = Settings(queues=queues, tokens=token, cors_origins=cors_origin, **options)
        if module is None and settings.worked_queues:
            raise SettingsError(
                "no handlers: give MODULE (try `jobqueue serve examples.quickstart`), or --no-workers to run no jobs"
            )
        app = _app(module)

        def on_serving(serving: Serving) -> None:
            click.echo(_banner(app, settings, serving), file=logs.stdout)

        if settings.processes == 1:
            trio.run(serve, app, settings, on_serving)
        else:
            names = [module] if module is not None else []
            command = [sys.executable, "-m", "jobqueue", "serve", *names, "--log-level", log_level, "--supervised"]
            trio.run(supervise, command, settings, on_serving)
    except* JobQueueError as group:
        failure = next(leaves(group))
    if failure is not None:
        _fail(failure, failure.exit_code if isinstance(failure, NodeFailed) else Exit.REFUSED)


def _fail(failure: BaseException, code: int) -> NoReturn:
    click.echo(f"Error: {failure}", file=logs.stderr)
    sys.exit(code)


def _serve_supervised(module: str | None) -> None:
    failure: BaseException | None = None
    try:
        parent = Parent()
    except SettingsError as error:
        _fail(error, Exit.REFUSED)
    try:
        trio.run(partial(serve, _app(module), parent.settings, lambda _: parent.tell(Report()), supervised=True))
    except* JobQueueError as group:
        failure = next(leaves(group))
    if failure is not None:
        parent.tell(Report(str(failure), passing=isinstance(failure, DatabaseUnavailable | UnusableFile)))
        sys.exit(1)


def load_app(name: str) -> App:
    """Import ``MODULE[:APP]``.

    Raises:
        SettingsError: the module or its app does not exist. Errors inside the module are not wrapped.
    """
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    # Processes for CPU-bound handlers are new interpreters, and must find the module too.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise SettingsError(f"module {module_name!r} not found in {Path.cwd()} or on the Python path") from None
    app = getattr(module, attribute or "app", None)
    if not isinstance(app, App):
        raise SettingsError(f"module {module_name!r} has no jobqueue.App named {attribute or 'app'!r}: give MODULE:APP")
    app.source = name if attribute not in ("", "app") else module_name
    return app


def _app(module: str | None) -> App:
    app = load_app(module) if module is not None else App()
    logs.adopt_root()
    return app


def _parse_queues(texts: tuple[str, ...]) -> dict[str, int]:
    queues = {}
    for text in texts:
        name, separator, width = text.rpartition("=")
        if not separator or not width.isdecimal():
            raise SettingsError(f"--queue must be NAME=CONCURRENCY, such as mail=8, got {text!r}")
        queues[name] = int(width)
    return queues


def _banner(app: App, settings: Settings, serving: Serving) -> str:
    job = min(map(_example, app.handlers.values()), key=lambda example: "..." in example, default='{"kind": "default"}')
    url = serving.urls[0].replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104 - clients cannot use these
    token = " -H 'Authorization: Bearer TOKEN'" if settings.tokens or settings.token_file else ""
    each = "" if settings.processes == 1 else " in each process"
    queues = ", ".join(f"{name} ({width} at once{each})" for name, width in settings.worked_queues.items())
    rows = [
        ("serving", ", ".join(serving.urls) + (f" by {settings.processes} processes" if each else "")),
        ("database", _without_password(serving.database_url) + (" (embedded)" if settings.database_url is None else "")),
        *([] if settings.schema == DEFAULTS.schema else [("schema", settings.schema)]),
        ("queues", queues or "none: submissions only"),
        ("kinds", ", ".join(sorted(app.handlers)) or "none"),
        ("try", f"curl {url}/submit -H 'Content-Type: application/json'{token} -d '{job}'"),
    ]
    return "\n".join([f"jobqueue {__version__}", *(f"  {name:<9} {value}" for name, value in rows)])


def _example(handler: Handler) -> str:
    """Return an example job for the banner. Each payload field that the handler requires is ``...``, which the user replaces."""
    parameters = inspect.signature(handler.function).parameters.values()
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    fields = ", ".join(f'"{name}": ...' for name in required if name not in {handler.connection, handler.job_parameter})
    return f'{{"kind": {json.dumps(handler.kind)}' + (f', "payload": {{{fields}}}' if fields else "") + "}"


def _without_password(url: str) -> str:
    try:
        return make_conninfo("", **{**conninfo_to_dict(url), "password": None})
    except psycopg.Error:
        return "(an unreadable database URL)"
