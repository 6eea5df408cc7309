"""Look a database over: what jobqueue needs of it, and what stands in its way, each with a verdict and what to do.

    for finding in checkup.examine(url):
        print(finding.verdict, finding.check, finding.finding, finding.advice)

Nothing is written, nothing is locked for longer than a read, and each check has a few seconds: one that takes longer, or that the
role may not make, says that it cannot be told. A check is a function of a connection that returns findings; where there is much to
judge, the judgement is a function of the figures alone.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from jobqueue.errors import DatabaseUnavailable
from jobqueue.storage.checkup import capacity, installation, server, vacuum, work
from jobqueue.storage.checkup.finding import SEVERITY, Finding, unknown
from jobqueue.storage.database import Connection, connect, one_line, pinning

__all__ = ["Finding", "examine", "look"]

Check = Callable[[Connection], list[Finding]]

SERVER_CHECKS: dict[str, Check] = {
    "version": server.version,
    "primary": server.takes_writes,
    "settings": server.settings,
    "encoding": server.encoding,
    "clock": server.clock,
    "pooler": server.pooler,
    "connections": capacity.connections,
    "schema": installation.version,
    "horizon": vacuum.horizon,
    "wraparound": vacuum.wraparound,
    "locks": vacuum.locks,
    "notifications": capacity.notifications,
    "disk": capacity.disk,
    "WAL": capacity.kept_log,
}
"""What can be looked at in any database."""

SCHEMA_CHECKS: dict[str, Check] = {
    "objects": installation.objects,
    "privileges": installation.privileges,
    "partitions": installation.partitions,
    "vacuum": vacuum.tables,
    "nodes": work.nodes,
    "queues": work.queues,
    "overdue": work.overdue,
    "schedules": work.schedules,
    "dead letters": work.dead,
}
"""What can be looked at where our schema is."""

STATEMENT_SECONDS = 5

TIMEOUTS = {
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "60s",
}


def examine(url: str) -> list[Finding]:
    """Make every check, and return the findings, the worst first.

    Args:
        url: a libpq URL or connection string.

    Raises:
        DatabaseUnavailable: PostgreSQL cannot be reached, refuses, or went away in the middle.
        SettingsError: the URL cannot be read.
    """
    with connect(url, "doctor") as connection:
        connection.reply_timeout = 2.0 * STATEMENT_SECONDS
        connection.prepare_threshold = None  # a pooler may be in the way
        findings = [finding for name, check in SERVER_CHECKS.items() for finding in look(connection, name, check)]
        if installation.is_there(connection):
            checks = dict(SCHEMA_CHECKS)
            if any(finding.check == "schema" and finding.verdict == "problem" for finding in findings):
                del checks["objects"]  # of another version, they are others
            findings += [finding for name, check in checks.items() for finding in look(connection, name, check)]
    return sorted(findings, key=lambda finding: SEVERITY[finding.verdict])


def look(connection: Connection, name: str, check: Check) -> list[Finding]:
    """Make one check in a transaction of its own, which reads only.

    Raises:
        DatabaseUnavailable: the connection is gone.
    """
    try:
        begin = f"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {pinning(connection, local=True, **TIMEOUTS)}"
        connection.execute(begin.encode())
        try:
            return check(connection)
        finally:
            connection.rollback()
    except psycopg.errors.QueryCanceled:
        return [unknown(name, f"the database took more than {STATEMENT_SECONDS} s to tell")]
    except psycopg.Error as error:
        if connection.closed:
            raise DatabaseUnavailable(f"the connection was lost: {one_line(error)}") from error
        return [unknown(name, error.diag.message_primary or one_line(error), _who_can_tell(error))]


def _who_can_tell(error: psycopg.Error) -> str | None:
    return "see privileges, or ask as the database's owner" if isinstance(error, psycopg.errors.InsufficientPrivilege) else None
