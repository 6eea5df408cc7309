"""Apply schema.sql where it is needed, and refuse a database that this version does not know."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.resources import files
from typing import NamedTuple

import psycopg
import structlog

from jobqueue.errors import SchemaVersionError, SettingsError
from jobqueue.storage import catalog
from jobqueue.storage.database import MINIMUM_SERVER_VERSION, Connection

SCHEMA_VERSION = 1
"""The version that this jobqueue is written for; schema.sql says the same."""

SCHEMA_DIFFERS = "SET LOCAL lock_timeout = '5s';"
"""Nodes may be at work: what cannot be locked is left to the next start."""

_BEGIN = re.compile(r"^BEGIN\b[^;]*;", re.MULTILINE)

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


class Migration(NamedTuple):
    """What `migrate` did.

    Attributes:
        applied: whether the schema was not there, or of an older version.
        repaired: the objects that applying the schema again has brought back or changed.
    """

    applied: bool
    repaired: list[str]


def migrate(connection: Connection) -> Migration:
    """Bring a database to `SCHEMA_VERSION`, and apply schema.sql again where objects are missing or differ from it.

    A role that may not do so goes on if nothing is missing that a node needs.

    Raises:
        SchemaVersionError: the server is too old, the schema is newer than we know, or objects are missing and the role may not
            create them.
        SettingsError: the database does not hold UTF-8.
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
        log.warning("the schema is not compared with schema.sql: somebody holds a lock on it", reason=error.diag.message_primary)
        return Migration(applied=False, repaired=[])


def _repair(connection: Connection, text: str) -> list[str]:
    before = catalog.look(connection, text)
    faults = catalog.faults(text, before)
    known = catalog.recorded(connection)
    digests = catalog.fingerprint(text, before)
    repaired: list[str] = []
    if known != digests and (known is not None or faults.all):  # none is known after somebody ran schema.sql with psql
        try:
            _apply(connection, text, SCHEMA_DIFFERS)
        except SchemaVersionError as error:
            if faults.missing:
                raise SchemaVersionError(f"objects of the schema are missing: {', '.join(faults.missing)}; {error}") from error
            if faults.all:
                log.warning("objects of the schema differ from this version's schema.sql", objects=faults.all, reason=str(error))
            return []
        after = catalog.look(connection, text)
        repaired = catalog.changed(before, after)
        if repaired:
            log.warning("schema repaired: schema.sql was applied again", objects=repaired)
        digests = catalog.fingerprint(text, after)
        if known is not None and known != digests and catalog.same_text(known, digests):
            log.warning("the schema was changed since schema.sql was applied, and not all of it back", advice="jobqueue doctor")
    if known != digests:
        _record(connection, digests)
    return repaired


def _apply(connection: Connection, text: str, wait: str = "") -> None:
    try:
        connection.execute(_BEGIN.sub(lambda begin: f"{begin[0]} {wait}", text, count=1).encode())
    except psycopg.Error as error:
        connection.rollback()
        if not isinstance(error, psycopg.errors.InsufficientPrivilege):
            raise
        raise SchemaVersionError(
            f"this role may not create the schema ({error.diag.message_primary}):"
            " run `jobqueue migrate`, or schema.sql with psql, as its owner"
        ) from error


def _record(connection: Connection, digests: str) -> None:
    with suppress(psycopg.errors.InsufficientPrivilege):
        catalog.record(connection, digests)


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
