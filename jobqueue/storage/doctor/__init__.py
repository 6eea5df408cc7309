"""Check whether a database meets jobqueue's needs, and report findings, each with a verdict and advice.

    for finding in doctor.examine(url):
        print(finding.verdict, finding.check, finding.finding, finding.advice)

Checks write nothing, and take only the locks of a SELECT. Each statement of a check may run for `STATEMENT_SECONDS`. If a statement
takes longer, or the role lacks a privilege for it, the check gets the verdict ``unknown``.
A check is a function that takes a connection and returns findings. Functions named ``judge_...`` need no connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import psycopg

from jobqueue.errors import DatabaseUnavailable
from jobqueue.schema_names import DEFAULT
from jobqueue.storage.connection import Connection, connect, one_line
from jobqueue.storage.doctor import capacity, installation, server, vacuum, work
from jobqueue.storage.doctor.finding import SEVERITY, Finding, unknown
from jobqueue.storage.session_settings import pinning

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
"""Checks that work in any database, by name."""

SCHEMA_CHECKS: dict[str, Check] = {
    "objects": installation.objects,
    "copy": installation.copy,
    "privileges": installation.privileges,
    "partitions": installation.partitions,
    "vacuum": vacuum.tables,
    "nodes": work.nodes,
    "queues": work.queues,
    "overdue": work.overdue,
    "schedules": work.schedules,
    "dead letters": work.dead,
}
"""Checks that need the jobqueue schema, by name."""

STATEMENT_SECONDS = 5

TIMEOUTS = {
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "60s",
}


def examine(url: str, schema: str = DEFAULT) -> list[Finding]:
    """Run every check and return the findings, the worst first.

    Args:
        url: a libpq URL or connection string.
        schema: the name of the queue's schemas.

    Raises:
        DatabaseUnavailable: PostgreSQL cannot be reached, refuses the connection, or ends it during the checks.
        SettingsError: the URL or the name is not valid.
    """
    with connect(url, "doctor", 2.0 * STATEMENT_SECONDS, schema=schema) as connection:
        findings = [finding for name, check in SERVER_CHECKS.items() for finding in look(connection, name, check)]
        if installation.is_there(connection):
            checks = dict(SCHEMA_CHECKS)
            if any(finding.check == "schema" and finding.verdict == "problem" for finding in findings):
                # The objects of another schema version may be different.
                del checks["objects"], checks["privileges"], checks["copy"]
            findings += [finding for name, check in checks.items() for finding in look(connection, name, check)]
    return sorted((_for_queue(finding, schema) for finding in findings), key=lambda finding: SEVERITY[finding.verdict])


def look(connection: Connection, name: str, check: Check) -> list[Finding]:
    """Run one check in its own read-only transaction.

    Raises:
        DatabaseUnavailable: the connection was lost.
    """
    try:
        begin = f"BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {pinning(connection, local=True, **TIMEOUTS)}"
        connection.execute_script(begin.encode())
        try:
            return check(connection)
        finally:
            connection.rollback()
    except psycopg.errors.QueryCanceled:
        return [unknown(name, f"no result within {STATEMENT_SECONDS} s")]
    except psycopg.Error as error:
        if connection.closed:
            raise DatabaseUnavailable(f"the connection to PostgreSQL was lost: {one_line(error)}") from error
        return [unknown(name, error.diag.message_primary or one_line(error), _who_can_tell(error))]


def _for_queue(finding: Finding, schema: str) -> Finding:
    """Add the name of the queue to the commands of the advice."""
    if finding.advice is None or schema == DEFAULT:
        return finding
    return replace(finding, advice=re.sub(r"\bjobqueue (migrate|serve|adopt)\b", rf"\g<0> --schema {schema}", finding.advice))


def _who_can_tell(error: psycopg.Error) -> str | None:
    return (
        "see the privileges finding, or connect as the database's owner"
        if isinstance(error, psycopg.errors.InsufficientPrivilege)
        else None
    )
