"""Apply schema.sql, and refuse a database that this version does not know."""

from __future__ import annotations

from importlib.resources import files

import psycopg
import structlog

from jobqueue.errors import SchemaVersionError, SettingsError
from jobqueue.storage.database import MINIMUM_SERVER_VERSION, Connection

SCHEMA_VERSION = 1
"""The version that this jobqueue is written for; schema.sql says the same."""

log = structlog.get_logger()


def schema_sql() -> str:
    """Return the text of schema.sql."""
    return files("jobqueue.storage").joinpath("schema.sql").read_text(encoding="utf-8")


def installed_version(connection: Connection) -> int | None:
    """Return the schema version of a database; None when it has no schema of ours."""
    row = connection.execute("SELECT to_regclass('jobqueue.schema_version') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute("SELECT max(version) FROM jobqueue.schema_version").fetchone()
    return row[0] if row is not None and isinstance(row[0], int) else None


def require(connection: Connection) -> None:
    """Refuse a database whose schema is not `SCHEMA_VERSION`.

    Raises:
        SchemaVersionError: there is none, or it is older or newer.
        SettingsError: the database does not hold UTF-8.
    """
    _refuse_encoding(connection)
    version = installed_version(connection)
    if version is None:
        raise SchemaVersionError(
            f'the database "{connection.info.dbname}" has no schema of jobqueue: is it the right one? `jobqueue migrate` makes it'
        )
    if version < SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database has jobqueue schema version {version}, this jobqueue needs version {SCHEMA_VERSION}:"
            " `jobqueue migrate` upgrades it"
        )
    _refuse_newer(version)


def migrate(connection: Connection) -> bool:
    """Bring a database to `SCHEMA_VERSION`; return whether anything was done.

    Raises:
        SchemaVersionError: the server is too old, the schema is newer than we know, or the role may not create it.
        SettingsError: the database does not hold UTF-8.
    """
    _refuse_encoding(connection)
    if connection.info.server_version < MINIMUM_SERVER_VERSION:
        raise SchemaVersionError(f"PostgreSQL {connection.info.server_version // 10_000} is too old: jobqueue needs 14 or newer")
    version = installed_version(connection)
    if version == SCHEMA_VERSION:
        return False
    if version is not None:
        _refuse_newer(version)
    try:
        connection.execute(schema_sql().encode())
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaVersionError(
            f"this role may not create the schema ({error}): run schema.sql once as the database's owner"
        ) from error
    log.info("schema applied", version=SCHEMA_VERSION, before=version)
    return True


def _refuse_encoding(connection: Connection) -> None:
    """Refuse a database that could not hold every text: JSON is Unicode."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SettingsError(
            f'the database "{connection.info.dbname}" has the encoding {encoding}, and jobqueue needs UTF8:'
            " create one with ENCODING 'UTF8' TEMPLATE template0"
        )


def _refuse_newer(version: int) -> None:
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database has jobqueue schema version {version}, this jobqueue knows version {SCHEMA_VERSION}:"
            " upgrade it, or point it at another database"
        )
