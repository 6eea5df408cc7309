"""Apply schema.sql if needed, and reject databases with another schema version."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.resources import files
from typing import NamedTuple

import psycopg
import structlog

from jobqueue.errors import SchemaVersionError, SettingsError
from jobqueue.storage import catalog
from jobqueue.storage.connection import Connection

MINIMUM_SERVER_VERSION = 140_000

SCHEMA_VERSION = 1
"""The schema version that this jobqueue needs; the same as in schema.sql."""

SCHEMA_DIFFERS = "SET LOCAL lock_timeout = '5s';"
"""Limits the wait for locks, because running nodes may hold them. If the wait times out, the next start of a node tries again."""

_BEGIN = re.compile(r"^BEGIN\b[^;]*;", re.MULTILINE)

log = structlog.get_logger()


def schema_sql() -> str:
    """Return the text of schema.sql."""
    return files("jobqueue.storage").joinpath("schema.sql").read_text(encoding="utf-8")


def installed_version(connection: Connection) -> int | None:
    """Return the schema version of a database, or None if it has no jobqueue schema."""
    row = connection.execute("SELECT to_regclass('jobqueue.schema_version') IS NOT NULL").first()
    if row is None or not row[0]:
        return None
    row = connection.execute("SELECT max(version) FROM jobqueue.schema_version").first()
    return row[0] if row is not None and isinstance(row[0], int) else None


def require(connection: Connection) -> None:
    """Reject a database whose schema version is not `SCHEMA_VERSION`.

    Raises:
        SchemaVersionError: the schema is missing, older, or newer.
        SettingsError: the encoding of the database is not UTF8.
    """
    _refuse_encoding(connection)
    version = installed_version(connection)
    if version is None:
        raise SchemaVersionError(
            f'the database "{connection.info.dbname}" has no jobqueue schema:'
            " check the database URL, or run `jobqueue migrate` to create the schema"
        )
    if version < SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database has jobqueue schema version {version}, but this jobqueue needs version {SCHEMA_VERSION}:"
            " run `jobqueue migrate`"
        )
    _refuse_newer(version)


class Migration(NamedTuple):
    """The result of `migrate`.

    Attributes:
        applied: whether schema.sql was applied because the schema was missing or older.
        repaired: the objects that were created or changed when schema.sql was applied again to the same version.
    """

    applied: bool
    repaired: list[str]


def migrate(connection: Connection) -> Migration:
    """Upgrade a database to `SCHEMA_VERSION`. Apply schema.sql again if objects are missing or differ from it.

    If the role lacks the privileges to apply it again, this function raises an error only if a node needs a missing object.

    Raises:
        SchemaVersionError: the server is too old, the schema is newer than `SCHEMA_VERSION`, or objects are missing and the role
            has no permission to create them.
        SettingsError: the encoding of the database is not UTF8.
    """
    _refuse_encoding(connection)
    if connection.info.server_version < MINIMUM_SERVER_VERSION:
        raise SchemaVersionError(f"PostgreSQL {connection.info.server_version // 10_000} is too old: jobqueue needs 14 or newer")
    version = installed_version(connection)
    text = schema_sql()
    if version is not None:
        _refuse_newer(version)
    if version != SCHEMA_VERSION:
        _apply(connection, text)
        _record(connection, catalog.fingerprint(text, catalog.look(connection, text)))
        log.info("schema applied", version=SCHEMA_VERSION, before=version)
        return Migration(applied=True, repaired=[])
    try:
        return Migration(applied=False, repaired=_repair(connection, text))
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        log.warning("schema not compared with schema.sql: another session holds a lock on it", reason=error.diag.message_primary)
        return Migration(applied=False, repaired=[])


def _repair(connection: Connection, text: str) -> list[str]:
    before = catalog.look(connection, text)
    faults = catalog.faults(text, before)
    known = catalog.recorded(connection)
    digests = catalog.fingerprint(text, before)
    repaired: list[str] = []
    if known != digests and (known is not None or faults.all):  # `psql -f schema.sql` records no digests
        try:
            _apply(connection, text, SCHEMA_DIFFERS)
        except SchemaVersionError as error:
            if faults.missing:
                raise SchemaVersionError(f"schema objects are missing: {', '.join(faults.missing)}; {error}") from error
            if faults.all:
                log.warning("schema objects differ from this version's schema.sql", objects=faults.all, reason=str(error))
            return []
        after = catalog.look(connection, text)
        repaired = catalog.changed(before, after)
        if repaired:
            log.warning("schema repaired: schema.sql was applied again", objects=repaired)
        digests = catalog.fingerprint(text, after)
        if known is not None and known != digests and catalog.same_text(known, digests):
            log.warning("applying schema.sql again did not undo every change of the schema", advice="run jobqueue doctor")
    if known != digests:
        _record(connection, digests)
    return repaired


def _apply(connection: Connection, text: str, wait: str = "") -> None:
    try:
        connection.execute_script(_BEGIN.sub(lambda begin: f"{begin[0]} {wait}", text, count=1).encode())
    except psycopg.Error as error:
        connection.rollback()
        if not isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise
        raise SchemaVersionError(
            f"this role may not create the schema ({error.diag.message_primary}):"
            " as its owner, run `jobqueue migrate`, or schema.sql with psql"
        ) from error


def _record(connection: Connection, digests: str) -> None:
    with suppress(psycopg.errors.InsufficientPrivilege):
        catalog.record(connection, digests)


def _refuse_encoding(connection: Connection) -> None:
    """Reject a database that cannot store every Unicode text."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SettingsError(
            f'the database "{connection.info.dbname}" has the encoding {encoding}, but jobqueue needs UTF8:'
            " create a database with ENCODING 'UTF8' TEMPLATE template0"
        )


def _refuse_newer(version: int) -> None:
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database has jobqueue schema version {version}, but this jobqueue needs version {SCHEMA_VERSION}:"
            " upgrade jobqueue, or use another database"
        )
