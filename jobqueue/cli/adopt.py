"""``jobqueue adopt``: let the queue of a copied database run."""

from __future__ import annotations

import click
import psycopg

from jobqueue import logs
from jobqueue.cli.options import log_level_option, schema_option
from jobqueue.errors import JobQueueError
from jobqueue.storage import schema as schemas
from jobqueue.storage.connection import connect, one_line


@click.command("adopt")
@click.option("--database-url", envvar="DATABASE_URL", show_envvar=True, required=True, help="libpq URL of the copy.")
@schema_option
@log_level_option
def command(database_url: str, schema: str, log_level: str) -> None:
    """Let a copied database run its jobs.

    All queues and schedules of a restored dump, of a renamed database, and of a server after pg_upgrade are on hold.
    So a copy does not run the jobs of the original. Running nodes notice the adoption within two seconds.
    """
    logs.configure(log_level)
    try:
        with connect(database_url, "adopt", schema=schema) as connection:
            schemas.require(connection)
            [(origin,)] = connection.execute("SELECT jobqueue_internal.adopt()")
    except JobQueueError as error:
        raise click.ClickException(str(error)) from None
    except psycopg.Error as error:
        raise click.ClickException(f"cannot adopt the database: {one_line(error)}") from None
    click.echo(f"adopted: {origin}" if origin else "nothing to adopt: the queue belongs to this database already")
