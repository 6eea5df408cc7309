"""``jobqueue migrate``: make or upgrade the schema."""

from __future__ import annotations

import click
import psycopg

from jobqueue import logs
from jobqueue.cli.options import log_level_option
from jobqueue.errors import JobQueueError
from jobqueue.storage import schema
from jobqueue.storage.database import connect, one_line


@click.command("migrate")
@click.option("--database-url", envvar="DATABASE_URL", show_envvar=True, required=True, help="PostgreSQL to use, as a libpq URL.")
@log_level_option
def command(database_url: str, log_level: str) -> None:
    """Create, upgrade or repair the schema "jobqueue" in a database; the same as running schema.sql there."""
    logs.configure(log_level)
    try:
        with connect(database_url, "migrate") as connection:
            done = schema.migrate(connection)
    except JobQueueError as error:
        raise click.ClickException(str(error)) from None
    except psycopg.Error as error:
        raise click.ClickException(f"the schema cannot be applied: {one_line(error)}") from None
    repaired = f"repaired: {', '.join(done.repaired)}" if done.repaired else "already there"
    click.echo(f"schema version {schema.SCHEMA_VERSION}: {'applied' if done.applied else repaired}")
