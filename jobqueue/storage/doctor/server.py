"""Check the server: its version, whether it accepts writes, its settings, encoding and clock, and whether a pooler is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

from psycopg import sql

from jobqueue.storage.connection import Connection, behind_pooler
from jobqueue.storage.doctor.finding import Finding, Verdict, duration, query
from jobqueue.storage.schema import MINIMUM_SERVER_VERSION

END_OF_SUPPORT = {
    14: date(2026, 11, 12),
    15: date(2027, 11, 11),
    16: date(2028, 11, 9),
    17: date(2029, 11, 8),
    18: date(2030, 11, 14),
}
"""Major versions that jobqueue is tested with, and their end of support: https://www.postgresql.org/support/versioning/"""

FIRST_WITHOUT_LOST_INDEX_ENTRIES = 140_004
"""The first safe release of PostgreSQL 14. In earlier ones, CREATE INDEX CONCURRENTLY and REINDEX CONCURRENTLY could omit rows from
the index."""

HALTING_STANDBYS = {140_021: "14.22", 150_016: "15.17", 160_012: "16.13", 170_008: "17.9", 180_002: "18.3"}
"""Releases whose standbys may stop with "could not access status of transaction", and the releases that fixed this."""

CLOCK_SAMPLES = 5

CLOCK_WARNING = 1.0
"""Maximum harmless difference between the clocks, in seconds. The error of the measurement is added to it."""


def version(connection: Connection) -> list[Finding]:
    """Judge PostgreSQL's version."""
    [row] = query(connection, "SELECT current_setting('server_version') AS name, now()::date AS today")
    return [judge_version(connection.info.server_version, row.name, row.today)]


def judge_version(number: int, name: str, today: date) -> Finding:
    """Judge a server version as of a given day.

    Args:
        number: the version as a number, such as 180_002 for 18.2.
        name: the version as text.
        today: the day.
    """
    major = number // 10_000
    latest = f"install the latest {major}.x: a minor upgrade needs a restart, but no dump"
    if number < MINIMUM_SERVER_VERSION:
        return Finding("version", "problem", f"PostgreSQL {name} is too old", "upgrade to PostgreSQL 14 or newer")
    if major not in END_OF_SUPPORT:
        return Finding("version", "warning", f"PostgreSQL {name} is newer than the versions tested with this jobqueue (14 to 18)")
    if number < FIRST_WITHOUT_LOST_INDEX_ENTRIES:
        found = f"PostgreSQL {name} may omit rows from indexes built with CONCURRENTLY; 14.4 fixed that"
        return Finding("version", "problem", found, f"{latest}; then REINDEX the indexes built with CONCURRENTLY")
    if number in HALTING_STANDBYS:
        found = f"PostgreSQL {name} has a bug that stops standbys; {HALTING_STANDBYS[number]} fixed it"
        return Finding("version", "warning", found, latest)
    if today > END_OF_SUPPORT[major]:
        found = f"PostgreSQL {name} has received no fixes since {END_OF_SUPPORT[major]}"
        return Finding("version", "warning", found, "upgrade to a supported major version")
    return Finding("version", "ok", f"PostgreSQL {name}")


def takes_writes(connection: Connection) -> list[Finding]:
    """Check that the server is not a standby."""
    [row] = query(connection, "SELECT pg_is_in_recovery() AS standby")
    if row.standby:
        advice = "point --database-url at the primary (or list all hosts, with target_session_attrs=read-write)"
        return [Finding("primary", "problem", "this server is a standby: it accepts no writes, so it stores no jobs", advice)]
    return [Finding("primary", "ok", "the server is not a standby")]


def pooler(connection: Connection) -> list[Finding]:
    """Check whether the connection goes through a pooler, such as PgBouncer."""
    if not behind_pooler(connection):
        return [Finding("pooler", "ok", "connected directly to PostgreSQL")]
    found = "the connection goes through a pooler, such as PgBouncer: it passes on no notifications, so nodes find jobs by polling"
    return [Finding("pooler", "warning", found, "if latency matters, give --database-url a direct address, or poll more often")]


def clock(connection: Connection) -> list[Finding]:
    """Compare this machine's clock with the database's.

    As in NTP, the measurement with the shortest round trip counts, because its error is the smallest.
    """
    tries = []
    for _ in range(CLOCK_SAMPLES):
        began, begun = time.time(), time.perf_counter()
        [row] = query(connection, "SELECT extract(epoch FROM clock_timestamp())::float8 AS time")
        took = time.perf_counter() - begun
        tries.append((took / 2, began + took / 2 - row.time))
    error, ahead = min(tries)
    return [judge_clock(ahead, error)]


def judge_clock(ahead: float, error: float) -> Finding:
    """Judge the clock difference.

    Args:
        ahead: seconds by which this machine's clock is ahead of the database's; negative if it is behind.
        error: the error of `ahead`, in seconds.
    """
    bar = f"± {error * 1000:.1f} ms"
    if abs(ahead) - error <= CLOCK_WARNING:
        return Finding("clock", "ok", f"this machine's clock differs from the database's by {ahead * 1000:+.1f} ms {bar}")
    by = duration(abs(ahead)) if abs(ahead) >= 60 else f"{abs(ahead):.1f} s"  # noqa: PLR2004 - a minute
    found = (
        f"this machine's clock is {by} {'ahead of' if ahead > 0 else 'behind'} the database's clock ({bar}),"
        " which decides when jobs are due"
    )
    return Finding("clock", "warning", found, "run NTP on both: times in logs, and times computed on this machine, are wrong")


@dataclass(frozen=True, slots=True)
class Rule:
    """A setting that can harm jobqueue.

    Attributes:
        name: the setting.
        bad: returns whether a value, in the setting's own unit, is harmful.
        verdict: the verdict on a harmful value.
        effect: what a harmful value causes.
        better: the recommended value.
    """

    name: str
    bad: Callable[[str], bool]
    verdict: Verdict
    effect: str
    better: str = "on"


def _off(value: str) -> bool:
    return value == "off"


def _below(milliseconds: int) -> Callable[[str], bool]:
    return lambda value: 0 < int(value) < milliseconds


RULES = (
    Rule("fsync", _off, "problem", "a crash of the machine may destroy the database, and acknowledged jobs with it"),
    Rule("full_page_writes", _off, "problem", "a crash during the write of a page may destroy the page, and jobs with it"),
    Rule(
        "synchronous_commit",
        _off,
        "warning",
        "nodes override it, but a job submitted from SQL may be lost in a crash after its COMMIT",
    ),
    Rule("autovacuum", _off, "problem", "dead rows accumulate and slow down every claim"),
    Rule("track_counts", _off, "problem", "autovacuum does nothing without it, so dead rows accumulate"),
    Rule(
        "default_transaction_read_only",
        lambda value: value == "on",
        "warning",
        "nodes override it, but no job can be submitted from SQL",
        "off",
    ),
    Rule(
        "default_transaction_isolation",
        lambda value: value != "read committed",
        "warning",
        "nodes override it, but concurrent submissions from SQL may fail with a serialization failure",
        "read committed",
    ),
    Rule(
        "session_replication_role",
        lambda value: value == "replica",
        "problem",
        "triggers do not fire, so concurrency keys are not enforced",
        "origin",
    ),
    Rule("statement_timeout", _below(5_000), "warning", "it may abort handlers' transactions, and migrations", "0"),
    Rule("transaction_timeout", _below(60_000), "warning", "it may abort handlers' transactions", "0"),
    Rule("lock_timeout", _below(1_000), "warning", "it may abort handlers' transactions, and submissions from SQL", "0"),
    Rule(
        "idle_in_transaction_session_timeout",
        _below(10_000),
        "warning",
        "PostgreSQL rolls back a handler's transaction in which no statement runs for that long",
        "60s",
    ),
    Rule(
        "vacuum_defer_cleanup_age",
        lambda value: int(value) > 0,
        "warning",
        "dead rows stay for that many transactions and slow down claims",
        "0",
    ),
)


def settings(connection: Connection) -> list[Finding]:
    """Judge the settings of this role in this database, wherever they were set."""
    bad = list(_bad_settings(connection))
    if bad:
        return bad
    found = "fsync, full_page_writes, synchronous_commit, autovacuum and track_counts are on, and no timeout is too short"
    return [Finding("settings", "ok", found)]


def encoding(connection: Connection) -> list[Finding]:
    """Check that the database uses UTF8, so that it can store every text."""
    [row] = query(connection, "SELECT current_setting('server_encoding') AS name")
    if row.name == "UTF8":
        return [Finding("encoding", "ok", "UTF8")]
    found = f"the database has the encoding {row.name}, but jobqueue needs UTF8"
    return [Finding("encoding", "problem", found, "create a database with ENCODING 'UTF8' TEMPLATE template0, and use it instead")]


def _bad_settings(connection: Connection) -> Iterator[Finding]:
    # Read reset_val, the value at the start of a session, because this session has changed some settings.
    rows = query(
        connection,
        """
        SELECT s.name, s.reset_val AS value, s.unit, o.role, o.database
          FROM pg_settings AS s
          LEFT JOIN LATERAL (
                SELECT CASE WHEN d.setrole <> 0 THEN current_user END AS role,
                       CASE WHEN d.setdatabase <> 0 THEN current_database() END AS database
                  FROM pg_db_role_setting AS d, unnest(d.setconfig) AS c (given)
                 WHERE split_part(c.given, '=', 1) = s.name
                   AND d.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
                   AND d.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
                 ORDER BY d.setrole = 0, d.setdatabase = 0 LIMIT 1) AS o ON true
         WHERE s.name = ANY (%s)
        """,
        [rule.name for rule in RULES],
    )
    set_to = {row.name: row for row in rows}
    for rule in RULES:
        row = set_to.get(rule.name)  # None if this server version does not have the setting
        if row is None or not rule.bad(row.value):
            continue
        value = f"{row.value} {row.unit}" if row.unit else row.value
        how = _how_to_set(rule, row.role, row.database).as_string(connection.driver)
        yield Finding("settings", rule.verdict, f"{rule.name} is {value}: {rule.effect}", how)


def _how_to_set(rule: Rule, role: str | None, database: str | None) -> sql.Composable:
    setting = sql.SQL(" SET {} = {}").format(sql.SQL(rule.name), sql.Literal(rule.better))
    if role is not None and database is not None:
        return sql.SQL("ALTER ROLE {} IN DATABASE {}").format(sql.Identifier(role), sql.Identifier(database)) + setting
    if role is not None:
        return sql.SQL("ALTER ROLE {}").format(sql.Identifier(role)) + setting
    if database is not None:
        return sql.SQL("ALTER DATABASE {}").format(sql.Identifier(database)) + setting
    return sql.SQL("ALTER SYSTEM") + setting + sql.SQL("; SELECT pg_reload_conf()")
