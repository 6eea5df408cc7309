"""``jobqueue migrate``: create, upgrade, or repair the schema, and show what this would do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import psycopg
from click.core import ParameterSource

from jobqueue import logs
from jobqueue.cli.connection import failure_of
from jobqueue.cli.exits import Exit
from jobqueue.cli.options import log_level_option, schema_option
from jobqueue.cli.output import Failure, Output, table
from jobqueue.errors import JobQueueError
from jobqueue.schema_names import render
from jobqueue.storage import schema as schemas
from jobqueue.storage.connection import Connection, connect, one_line
from jobqueue.storage.schema import parts


@click.command("migrate")
@click.option("--database-url", envvar="DATABASE_URL", show_envvar=True, help="libpq URL of the database.")
@click.option("--finish", is_flag=True, help="Then end the support for nodes of the previous version, if none of them runs.")
@click.option("--plan", is_flag=True, help="Only show what the command would do, and the locks that it would take.")
@click.option("--check", is_flag=True, help="Only exit with 1 if the command would change the database, otherwise with 0.")
@click.option("--print", "prints", is_flag=True, help="Only print the SQL, for psql or a DBA. This needs no database.")
@click.option(
    "--from",
    "from_version",
    type=click.IntRange(schemas.OLDEST_VERSION, schemas.SCHEMA_VERSION - 1),
    metavar="VERSION",
    help="With --print: the version of the database. Leaves out the steps to this version and older ones.",
)
@click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="KIND=ROLE",
    callback=lambda _context, _option, texts: [_kind_and_role(text) for text in texts],
    help="Grant a role the privileges to submit, read, or manage jobs, or to run a node. Repeatable.",
)
@schema_option
@log_level_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    database_url: str | None,
    finish: bool,
    plan: bool,
    check: bool,
    prints: bool,
    from_version: int | None,
    grants: list[tuple[str, str]],
    schema: str,
    log_level: str,
) -> None:
    """Create, upgrade, or repair the schema of a queue in a database. For the default name, schema.sql does the same."""
    if grants and (plan or check or prints):
        raise click.UsageError("--grant changes the database: do not combine it with --plan, --check, or --print")
    if prints:
        if plan or check or ctx.get_parameter_source("database_url") is ParameterSource.COMMANDLINE:
            raise click.UsageError("--print works without a database: do not combine it with --plan, --check, or --database-url")
        click.echo(_script(schema, from_version or 0, finish=finish), nl=False)
        return
    if from_version is not None:
        raise click.UsageError("--from works with --print only: otherwise, the database has the version")
    if database_url is None:
        raise click.UsageError("give the URL of the database with --database-url, or set DATABASE_URL")
    logs.configure("error" if plan or check else log_level)
    if plan or check:
        due = _on(database_url, schema, schemas.due)
        if plan:
            _show(due, schema, finish=finish)
        else:
            click.echo(_state(due))
        ctx.exit(Exit.REFUSED if check and (due.work is not None or (finish and due.finish)) else Exit.DONE)
    _on(database_url, schema, lambda connection: _migrate(connection, grants, finish=finish))


def _migrate(connection: Connection, grants: list[tuple[str, str]], *, finish: bool) -> None:
    done = schemas.migrate(connection)
    schemas.grant(connection, grants)
    repaired = f"repaired: {', '.join(done.repaired)}" if done.repaired else "up to date"
    click.echo(f"schema version {schemas.SCHEMA_VERSION}: {'applied' if done.applied else repaired}")
    if schemas.is_finished(connection):
        return
    if finish:
        schemas.finish(connection)
        click.echo("upgrade finished")
    else:
        click.echo(_UNFINISHED)


_UNFINISHED = "Nodes of the previous version can still run. When none of them is left, run jobqueue migrate --finish."


def _on(database_url: str, schema: str, work: Callable[[Connection], Any]) -> Any:
    try:
        with connect(database_url, "migrate", schema=schema) as connection:
            return work(connection)
    except JobQueueError as error:
        raise failure_of(error) or error from None
    except psycopg.errors.LockNotAvailable as error:
        raise Failure(f"another session holds a lock: {one_line(error)}. Try again later", Exit.UNREACHABLE) from None
    except psycopg.Error as error:
        raise Failure(f"cannot apply the schema: {one_line(error)}") from None


def _script(schema: str, from_version: int, *, finish: bool) -> str:
    """Return a script for psql and other programs. It needs no commands of psql."""
    text = schemas.script(schema, from_version=from_version, finish=finish)
    after = schemas.autocommit_statements(schema, from_version=from_version, finish=finish)
    return "\n".join([f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n\n{text}\nCOMMIT;", *after, ""])


def _state(due: schemas.Due) -> str:
    this = schemas.SCHEMA_VERSION
    if due.work == "create":
        return f"The database has no schema. Version {this} is due."
    assert due.found is not None  # noqa: S101 - only a new database has no version
    if due.work == "upgrade":
        return f"The database has version {due.found.version}. The upgrade to version {this} is due."
    if due.work == "repair":
        return f"The database has version {this}, but a repair is due{': ' * bool(due.objects)}{', '.join(due.objects)}."
    if due.found.version > this:
        return f"The database has version {due.found.version}, which supports nodes of version {this}."
    return f"The database has version {this}. {_UNFINISHED if due.finish else 'Nothing is due.'}"


def _show(due: schemas.Due, schema: str, *, finish: bool) -> None:
    """Print the steps, and the locks of all parts."""
    click.echo(_state(due))
    if due.work == "create":
        click.echo("It locks no existing table.")
        return
    work = parts.upgrading(due.found.version if due.found else 0) if due.work else []
    transaction = [part for part in work if not part.autocommit]
    finishing = parts.finishing() if finish and due.finish else []
    _show_parts("In one transaction:", schema, transaction)
    _show_parts("Then, each statement in its own transaction:", schema, [part for part in work if part.autocommit and part.version])
    _show_parts("To finish the upgrade, in one transaction:", schema, finishing)


def _show_parts(title: str, schema: str, chosen: list[parts.Part]) -> None:
    """Print the parts that are steps or take locks."""
    rows = [(part.name, *lock._replace(on=render(lock.on, schema))) for part in chosen for lock in part.locks]
    rows += [(part.name, "none", "", "", "") for part in chosen if part.version is not None and not part.locks]
    if chosen:
        click.echo(f"\n{title}")
        Output(as_json=False).show(None, lambda: table(["PART", "LOCK", "ON", "HELD", "WHAT WAITS"], rows))
        others = len(chosen) - len({name for name, *_ in rows})
        click.echo(f"{others} other parts lock no existing table or view.")


def _kind_and_role(text: str) -> tuple[str, str]:
    kind, separator, role = text.partition("=")
    if not (kind and separator and role):
        raise click.BadParameter(f"{text!r} is not KIND=ROLE, for example submit=app")
    return kind, role
