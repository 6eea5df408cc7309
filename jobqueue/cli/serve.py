"""``jobqueue serve``: a node, or several on one port."""

from __future__ import annotations

import importlib
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

from jobqueue import __version__, logs
from jobqueue.cli.exits import Exit
from jobqueue.cli.options import first, log_level_option
from jobqueue.engine.handlers import App
from jobqueue.errors import DatabaseUnavailable, JobQueueError, NodeFailed, SettingsError, UnusableFile
from jobqueue.service import Serving, serve
from jobqueue.settings import Settings
from jobqueue.supervised import Parent, Word
from jobqueue.supervisor import supervise

DEFAULTS = Settings()

Command = TypeVar("Command", bound=Callable[..., Any])

database_url = click.option(
    "--database-url",
    envvar="DATABASE_URL",
    show_envvar=True,
    help="PostgreSQL to use (14 or newer), as a libpq URL. Without it, one of its own is started.",
)


def setting(name: str, env: str, help: str, **kwargs: Any) -> Callable[[Command], Command]:  # noqa: A002 - click's word
    """Make an option with its environment variable and its default shown."""
    return click.option(name, envvar=f"JOBQUEUE_{env}", show_envvar=True, help=help, **{"show_default": True, **kwargs})


@click.command("serve")
@click.argument("module", required=False, metavar="MODULE[:APP]")
@database_url
@setting(
    "--data-dir",
    "DATA_DIR",
    "Where the embedded PostgreSQL keeps its data.  [default: the user's data directory]",
    type=click.Path(path_type=Path, file_okay=False),
    show_default=False,
)
@setting("--host", "HOST", "Address to listen on; off loopback a token is needed.", default=DEFAULTS.host)
@setting("--port", "PORT", "Port to listen on; 0 takes a free one.", type=int, default=DEFAULTS.port)
@setting(
    "--processes",
    "PROCESSES",
    "How many processes share the port, to use several cores: each is a node with workers of its own.",
    type=int,
    default=DEFAULTS.processes,
)
@setting(
    "--queue",
    "QUEUES",
    "A queue to work and how many of its jobs to run at once in each process; may be given again (in the variable: with spaces).",
    metavar="NAME=CONCURRENCY",
    multiple=True,
    default=[f"{name}={width}" for name, width in DEFAULTS.queues.items()],
)
@setting("--no-workers", "NO_WORKERS", "Take submissions only; run no jobs.", is_flag=True)
@setting("--strict-kinds", "STRICT_KINDS", "Refuse a submission whose kind this node does not serve.", is_flag=True)
@setting(
    "--token",
    "TOKENS",
    "A bearer token to show, with its role: submit, read or admin; may be given again (in the variable: with spaces)."
    " Better given in the variable or the file: arguments are seen by every user.",
    metavar="ROLE:sha256:HEX|ROLE:SECRET",
    multiple=True,
    show_default=False,
)
@setting("--token-file", "TOKEN_FILE", "A file of more tokens, one a line; read again when it changes.", type=click.Path())
@setting(
    "--open",
    "OPEN",
    "What answers without a token: health, metrics, both with a comma, or none.",
    metavar="NAMES",
    default=DEFAULTS.open,
)
@setting(
    "--cors-origin",
    "CORS_ORIGINS",
    "An origin, such as https://jobs.example, whose pages may ask; may be given again (in the variable: with spaces).",
    multiple=True,
    show_default=False,
)
@setting("--certfile", "CERTFILE", "Serve TLS with this certificate (PEM, with those between it and a root).", type=click.Path())
@setting("--keyfile", "KEYFILE", "The certificate's private key (PEM, without a password).", type=click.Path())
@setting(
    "--poll-interval",
    "POLL_INTERVAL",
    "Seconds between looks for work that nobody told of.",
    type=float,
    default=DEFAULTS.poll_interval,
)
@setting(
    "--visibility-timeout",
    "VISIBILITY_TIMEOUT",
    "Seconds of silence after which a node's jobs are given to others.",
    type=float,
    default=DEFAULTS.visibility_timeout,
)
@setting(
    "--stall-limit",
    "STALL_LIMIT",
    "Seconds for which a handler may hold up its node. Then the node's jobs are given to others.",
    type=float,
    default=DEFAULTS.stall_limit,
)
@setting("--grace-period", "GRACE_PERIOD", "Seconds that jobs may go on after SIGTERM.", type=float, default=DEFAULTS.grace_period)
@setting("--keep-finished", "KEEP_FINISHED", "Seconds to keep jobs that succeeded.", type=float, default=DEFAULTS.keep_finished)
@setting("--keep-cancelled", "KEEP_CANCELLED", "Seconds to keep cancelled jobs.", type=float, default=DEFAULTS.keep_cancelled)
@setting("--keep-dead", "KEEP_DEAD", "Seconds to keep dead letters.", type=float, default=DEFAULTS.keep_dead)
@setting(
    "--idempotency-ttl",
    "IDEMPOTENCY_TTL",
    "Seconds for which an idempotency key stands for the job that was first submitted with it.",
    type=float,
    default=DEFAULTS.idempotency_ttl,
)
@log_level_option
@click.option("--supervised", type=int, hidden=True)  # the number of this process: see jobqueue/supervised.py
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

    MODULE is imported from the current directory or the Python path; APP is its jobqueue.App, named `app` unless said otherwise.
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
            raise SettingsError("which handlers? Give MODULE (try `jobqueue serve examples.quickstart`), or --no-workers")
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
        failure = first(group)
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
        trio.run(partial(serve, _app(module), parent.settings, lambda _: parent.tell(Word()), supervised=True))
    except* JobQueueError as group:
        failure = first(group)
    if failure is not None:
        parent.tell(Word(str(failure), passing=isinstance(failure, DatabaseUnavailable | UnusableFile)))
        sys.exit(1)


def load_app(name: str) -> App:
    """Import ``MODULE[:APP]``.

    Raises:
        SettingsError: there is no such module, or no such app in it. An error inside of the module comes out as it is.
    """
    module_name, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    # Processes for CPU-bound handlers are new interpreters: they find the module the same way.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise SettingsError(f"there is no module {module_name!r} in {Path.cwd()} or on the Python path") from None
    app = getattr(module, attribute or "app", None)
    if not isinstance(app, App):
        raise SettingsError(f"module {module_name!r} has no jobqueue.App named {attribute or 'app'!r}")
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
            raise SettingsError(f"--queue takes NAME=CONCURRENCY, such as mail=8, got {text!r}")
        queues[name] = int(width)
    return queues


def _banner(app: App, settings: Settings, serving: Serving) -> str:
    kind = next(iter(app.handlers), "default")
    url = serving.urls[0].replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")  # noqa: S104 - what is listened on, for a client
    token = " -H 'Authorization: Bearer TOKEN'" if settings.tokens or settings.token_file else ""
    each = "" if settings.processes == 1 else " in each process"
    queues = ", ".join(f"{name} ({width} at once{each})" for name, width in settings.worked_queues.items())
    rows = [
        ("serving", ", ".join(serving.urls) + (f" by {settings.processes} processes" if each else "")),
        ("database", _without_password(serving.database_url) + (" (embedded)" if settings.database_url is None else "")),
        ("queues", queues or "none: submissions only"),
        ("kinds", ", ".join(sorted(app.handlers)) or "none"),
        ("try", f"curl {url}/submit -H 'Content-Type: application/json'{token} -d '{{\"kind\": \"{kind}\"}}'"),
    ]
    return "\n".join([f"jobqueue {__version__}", *(f"  {name:<9} {value}" for name, value in rows)])


def _without_password(url: str) -> str:
    try:
        return make_conninfo("", **{**conninfo_to_dict(url), "password": None})
    except psycopg.Error:
        return "(an unreadable database URL)"
