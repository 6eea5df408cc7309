"""``jobqueue migrate``: create, upgrade or repair the schema."""

from __future__ import annotations

import click
import psycopg

from jobqueue import logs
from jobqueue.cli.options import log_level_option
from jobqueue.errors import JobQueueError
from jobqueue.storage import schema
from jobqueue.storage.connection import connect, one_line


@click.command("migrate")
@click.option("--database-url", envvar="DATABASE_URL", show_envvar=True, required=True, help="libpq URL of the database.")
@click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="KIND=ROLE",
    callback=lambda _context, _option, texts: [_kind_and_role(text) for text in texts],
    help="Grant a role the privileges to submit, read, or manage jobs, or to run a node. Repeatable.",
)
@log_level_option
def command(database_url: str, grants: list[tuple[str, str]], log_level: str) -> None:
    """Create, upgrade or repair the schema "jobqueue" in a database. Running schema.sql there does the same."""
    logs.configure(log_level)
    try:
        with connect(database_url, "migrate") as connection:
            done = schema.migrate(connection)
            schema.grant(connection, grants)
    except JobQueueError as error:
        raise click.ClickException(str(error)) from None
    except psycopg.Error as error:
        raise click.ClickException(f"cannot apply the schema: {one_line(error)}") from None
    repaired = f"repaired: {', '.join(done.repaired)}" if done.repaired else "up to date"
    click.echo(f"schema version {schema.SCHEMA_VERSION}: {'applied' if done.applied else repaired}")


def _kind_and_role(text: str) -> tuple[str, str]:
    kind, separator, role = text.partition("=")
    if not (kind and separator and role):
        raise click.BadParameter(f"{text!r} is not KIND=ROLE, for example submit=app")
    return kind, role
