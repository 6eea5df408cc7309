"""Create, upgrade, and repair the schemas of a database, and reject databases with another version."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Literal, NamedTuple

import psycopg
import structlog

from jobqueue.errors import SchemaVersionError, SettingsError
from jobqueue.retry import exponential_pause
from jobqueue.schema_names import DEFAULT, render
from jobqueue.storage.connection import Connection
from jobqueue.storage.schema import catalog, parts

MINIMUM_SERVER_VERSION = 140_000

SCHEMA_VERSION = 2
"""The schema version that this jobqueue needs; the same as in prepare.sql."""

OLDEST_VERSION = 1
"""The oldest schema version that this jobqueue can upgrade."""

LOCK_ATTEMPTS = 30
"""How often an upgrade tries to get its locks, within a minute. prepare.sql limits each wait."""

REPAIR_ATTEMPTS = 5
"""How often a repair tries to get its locks, within two seconds. The next start of a node tries it again."""

log = structlog.get_logger()


class Installed(NamedTuple):
    """The version of a database's schema.

    Attributes:
        version: the version of the tables.
        oldest_node: the oldest version whose nodes can run on this schema.
    """

    version: int
    oldest_node: int


def installed(connection: Connection) -> Installed | None:
    """Return the version of a database's schema, or None if it has no jobqueue schema."""
    row = connection.execute(
        "SELECT to_regclass('jobqueue_internal.schema_version') IS NOT NULL, to_regclass('jobqueue.schema_version') IS NOT NULL"
    ).first()
    if row == (False, False):
        return None
    if row == (False, True):
        [(version,)] = connection.execute("SELECT max(version) FROM jobqueue.schema_version")
        return Installed(version, OLDEST_VERSION) if version is not None else None
    found = connection.execute(
        "SELECT version, oldest_node FROM jobqueue_internal.schema_version ORDER BY version DESC LIMIT 1"
    ).first()
    return Installed(*found) if found is not None else None


def script(schema: str = DEFAULT, *, from_version: int = 0, finish: bool = False) -> str:
    """Return the SQL of one transaction: it creates, upgrades, or repairs the schema, or finishes an upgrade.

    Args:
        schema: the name of the schemas, see `schema_names`.
        from_version: leave out the steps to this version and older ones.
        finish: return the *after* steps instead, which end the support for nodes of the previous version.
    """
    return render("\n".join(part.text for part in _chosen(from_version, finish=finish) if not part.autocommit), schema)


def autocommit_statements(schema: str = DEFAULT, *, from_version: int = 0, finish: bool = False) -> list[str]:
    """Return the statements that follow the transaction of `script`. Each runs in its own transaction."""
    chosen = [part for part in _chosen(from_version, finish=finish) if part.autocommit]
    return [render(statement, schema) for part in chosen for statement in parts.statements(part.text)]


def _chosen(from_version: int, *, finish: bool) -> list[parts.Part]:
    return parts.finishing() if finish else parts.upgrading(from_version)


def source(schema: str = DEFAULT) -> str:
    """Return the SQL of all parts, with the names and bodies of all objects."""
    return "\n".join([script(schema), *autocommit_statements(schema)])


def require(connection: Connection) -> None:
    """Reject a database on which a node of `SCHEMA_VERSION` cannot run.

    Raises:
        SchemaVersionError: the schema is missing or older, or it is newer and does not support this version.
        SettingsError: the encoding of the database is not UTF8.
    """
    _refuse_encoding(connection)
    found = installed(connection)
    if found is None:
        raise SchemaVersionError(
            f'the database "{connection.info.dbname}" has no jobqueue schema:'
            f" check the database URL{_and_name(connection)}, or run `jobqueue migrate` to create the schema"
        )
    if found.version < SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database has jobqueue schema version {found.version}, but this jobqueue needs version {SCHEMA_VERSION}:"
            " run `jobqueue migrate`"
        )
    refuse_unsupported(found.oldest_node)


def refuse_unsupported(oldest_node: int) -> None:
    """Reject a schema whose oldest supported node is newer than this one.

    Raises:
        SchemaVersionError: nodes need a newer version than `SCHEMA_VERSION`.
    """
    if oldest_node > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"the database needs nodes of jobqueue schema version {oldest_node} or newer, but this jobqueue has version"
            f" {SCHEMA_VERSION}: upgrade jobqueue, or use another database"
        )


class Due(NamedTuple):
    """The work that is due in a database.

    Attributes:
        found: the version of the database's schema; None if it has no schema.
        work: what `migrate` would do; None if it would change nothing.
        objects: the objects that a repair would create or replace, if the names and bodies of objects show it.
        finish: whether *after* steps are due, at the latest after the work.
    """

    found: Installed | None
    work: Literal["create", "upgrade", "repair"] | None
    objects: list[str]
    finish: bool


def due(connection: Connection) -> Due:
    """Compare the database with this version, and change nothing.

    Raises:
        SchemaVersionError: the server is too old, or the schema does not support this version.
        SettingsError: the encoding of the database is not UTF8.
        LockNotAvailable: another session holds an exclusive lock on a table of the schema.
    """
    _refuse_unusable(connection)
    found = installed(connection)
    if found is None:
        return Due(None, "create", [], finish=False)
    refuse_unsupported(found.oldest_node)
    if found.version < SCHEMA_VERSION:
        return Due(found, "upgrade", [], finish=True)
    if found.version > SCHEMA_VERSION:
        return Due(found, None, [], finish=False)
    compared = _compare(connection)
    objects = compared.faults.all if compared.differs else []
    return Due(found, "repair" if compared.differs else None, objects, finish=found.oldest_node < SCHEMA_VERSION)


class Migration(NamedTuple):
    """The result of `migrate`.

    Attributes:
        applied: whether the schema was created or upgraded.
        repaired: the objects that were created or changed when the same version was applied again.
    """

    applied: bool
    repaired: list[str]


def migrate(connection: Connection) -> Migration:
    """Create the schema, or run the *before* steps up to `SCHEMA_VERSION`. Repair the same version if objects differ from its text.

    A newer schema that supports this version stays unchanged. If the role lacks the privileges for a repair, this function
    raises an error only if a node needs a missing object.

    Raises:
        SchemaVersionError: the server is too old, the schema does not support this version, or objects are missing and the role has
            no permission to create them.
        SettingsError: the encoding of the database is not UTF8, or the name of the schemas is a keyword of SQL.
    """
    _refuse_unusable(connection)
    found = installed(connection)
    if found is not None:
        refuse_unsupported(found.oldest_node)
        if found.version > SCHEMA_VERSION:
            return Migration(applied=False, repaired=[])
    if found is None or found.version < SCHEMA_VERSION:
        _refuse_keyword(connection)
        _apply(connection, attempts=LOCK_ATTEMPTS)
        _record(connection)
        log.info("schema applied", schema=connection.schema, version=SCHEMA_VERSION, before=found.version if found else None)
        return Migration(applied=True, repaired=[])
    try:
        return Migration(applied=False, repaired=_repair(connection))
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        log.warning("schema not compared with schema.sql: another session holds a lock on it", reason=error.diag.message_primary)
        return Migration(applied=False, repaired=[])


def is_finished(connection: Connection) -> bool:
    """Return whether no *after* step is due: the schema supports no older nodes, or it is newer than this version."""
    found = installed(connection)
    return found is None or found.version != SCHEMA_VERSION or found.oldest_node == SCHEMA_VERSION


def finish(connection: Connection) -> None:
    """Run the *after* steps, which drop what only nodes of older versions need. Do nothing if they have run.

    Raises:
        SchemaVersionError: older nodes still run, or the role has no permission.
    """
    if is_finished(connection):
        return
    try:
        _apply(connection, finish=True, attempts=LOCK_ATTEMPTS)
    except psycopg.errors.ObjectInUse as error:
        raise SchemaVersionError(f"{error.diag.message_primary}: {error.diag.message_hint}") from error
    _record(connection)
    log.info("schema upgrade finished", schema=connection.schema, version=SCHEMA_VERSION)


def finish_if_alone(connection: Connection) -> None:
    """Run the *after* steps if no older node runs and this role may run them. A node calls this at its start."""
    if is_finished(connection):
        return
    try:
        finish(connection)
    except (SchemaVersionError, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        log.info("schema upgrade not finished yet", reason=str(error), advice="run jobqueue migrate --finish")


def grant(connection: Connection, roles: Iterable[tuple[str, str]]) -> None:
    """Grant each role the privileges of its kind: all of them, or none if one grant fails. Only the owner can do this.

    Args:
        connection: the database.
        roles: pairs of a kind (see `code/privileges.sql`) and the name of a role.

    Raises:
        SettingsError: the kind is unknown, or the role does not exist or owns the tables, or this role cannot grant the privileges.
    """
    with connection.transaction():
        for kind, role in roles:
            try:
                connection.execute("SELECT jobqueue_internal.grant_role(%s, quote_ident(%s)::regrole)", [kind, role])
            except psycopg.errors.UndefinedObject as error:
                raise SettingsError(f'role "{role}" does not exist: check its name, or create it with CREATE ROLE') from error
            except psycopg.errors.InvalidParameterValue as error:
                raise SettingsError(str(error.diag.message_primary)) from error
            except psycopg.errors.InsufficientPrivilege as error:
                raise SettingsError(f"{error.diag.message_primary}: run the command as the owner of the schema") from error


class _Comparison(NamedTuple):
    objects: catalog.Catalog
    faults: catalog.Faults
    known: str | None
    digests: str

    @property
    def differs(self) -> bool:
        """Whether a repair is due. `psql -f schema.sql` records no digests."""
        return self.known != self.digests and (self.known is not None or bool(self.faults.all))


def _compare(connection: Connection) -> _Comparison:
    text = source(connection.schema)
    objects = catalog.look(connection, text)
    return _Comparison(objects, catalog.faults(text, objects), catalog.recorded(connection), catalog.fingerprint(text, objects))


def _repair(connection: Connection) -> list[str]:
    before = _compare(connection)
    if not before.differs:
        if before.known is None:
            _record(connection)
        return []
    try:
        _apply(connection)
    except SchemaVersionError as error:
        if before.faults.missing:
            raise SchemaVersionError(f"schema objects are missing: {', '.join(before.faults.missing)}; {error}") from error
        if before.faults.all:
            log.warning("schema objects differ from this version's schema.sql", objects=before.faults.all, reason=str(error))
        return []
    after = _compare(connection)
    repaired = catalog.changed(before.objects, after.objects)
    if repaired:
        log.warning("schema repaired: schema.sql was applied again", objects=repaired)
    if before.known is not None and before.known != after.digests and catalog.same_text(before.known, after.digests):
        log.warning("applying schema.sql again did not undo every change of the schema", advice="run jobqueue doctor")
    _record(connection)
    return repaired


def _apply(connection: Connection, *, finish: bool = False, attempts: int = REPAIR_ATTEMPTS) -> None:
    """Run all parts, or the parts that finish an upgrade. After an interruption, run them again."""
    text = script(connection.schema, finish=finish)
    _run(connection, f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;\n{text}\nCOMMIT;", attempts=attempts)
    settings = connection.execute("SELECT current_setting('search_path'), current_setting('lock_timeout')").first() or ()
    try:
        for statement in autocommit_statements(connection.schema, finish=finish):
            _run(connection, statement, attempts=attempts)
    finally:
        if not connection.closed:
            connection.execute("SELECT set_config('search_path', %s, false), set_config('lock_timeout', %s, false)", settings)


def _run(connection: Connection, text: str, *, attempts: int) -> None:
    """Run a transaction. If it does not get a lock in time, try again."""
    for attempt in range(1, attempts + 1):
        try:
            connection.execute_script(text.encode())
        except psycopg.errors.InsufficientPrivilege as error:
            connection.rollback()
            raise SchemaVersionError(
                f"this role may not create the schema ({error.diag.message_primary}):"
                " as its owner, run `jobqueue migrate`, or schema.sql with psql"
            ) from error
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            connection.rollback()
            if attempt == attempts:
                raise
            time.sleep(exponential_pause(attempt, first=0.1, longest=2.0))
        except psycopg.Error:
            connection.rollback()
            raise
        else:
            return


def _record(connection: Connection) -> None:
    text = source(connection.schema)
    with suppress(psycopg.errors.InsufficientPrivilege):
        catalog.record(connection, catalog.fingerprint(text, catalog.look(connection, text)))


def _refuse_unusable(connection: Connection) -> None:
    """Reject a server or a database on which jobqueue cannot run."""
    _refuse_encoding(connection)
    if connection.info.server_version < MINIMUM_SERVER_VERSION:
        raise SchemaVersionError(f"PostgreSQL {connection.info.server_version // 10_000} is too old: jobqueue needs 14 or newer")


def _and_name(connection: Connection) -> str:
    return "" if connection.schema == DEFAULT else f' and the name "{connection.schema}" (--schema)'


def _refuse_keyword(connection: Connection) -> None:
    """Reject a name that PostgreSQL's SQL accepts only in quotes."""
    if connection.execute("SELECT FROM pg_get_keywords() WHERE word = %s::text AND catcode <> 'U'", [connection.schema]):
        raise SettingsError(f"the schema name (--schema) {connection.schema!r} is a keyword of SQL: choose another name")


def _refuse_encoding(connection: Connection) -> None:
    """Reject a database that cannot store every Unicode text."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SettingsError(
            f'the database "{connection.info.dbname}" has the encoding {encoding}, but jobqueue needs UTF8:'
            " create a database with ENCODING 'UTF8' TEMPLATE template0"
        )
