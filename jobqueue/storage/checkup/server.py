"""The server as it is set up: its version, whether it takes writes, its settings and its clock, and what stands before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

from psycopg import sql

from jobqueue.storage.checkup.finding import Finding, Verdict, duration, query
from jobqueue.storage.database import MINIMUM_SERVER_VERSION, Connection, behind_pooler

END_OF_SUPPORT = {
    14: date(2026, 11, 12),
    15: date(2027, 11, 11),
    16: date(2028, 11, 9),
    17: date(2029, 11, 8),
    18: date(2030, 11, 14),
}
"""The majors that jobqueue is tested with, and their last releases: https://www.postgresql.org/support/versioning/"""

FIRST_WITHOUT_LOST_INDEX_ENTRIES = 140_004
"""14.4 mended CREATE INDEX CONCURRENTLY and REINDEX CONCURRENTLY, which left rows out of their index."""

HALTING_STANDBYS = {140_021: "14.22", 150_016: "15.17", 160_012: "16.13", 170_008: "17.9", 180_002: "18.3"}
"""Releases after which a standby may stop for "could not access status of transaction", and those that mended it."""

CLOCK_SAMPLES = 5

CLOCK_WARNING = 1.0
"""Seconds, beyond the error bar, by which clocks may differ."""


def version(connection: Connection) -> list[Finding]:
    """Judge PostgreSQL's version."""
    [row] = query(connection, "SELECT current_setting('server_version') AS name, now()::date AS today")
    return [judge_version(connection.info.server_version, row.name, row.today)]


def judge_version(number: int, name: str, today: date) -> Finding:
    """Judge a version, as of a day."""
    major = number // 10_000
    latest = f"install the latest {major}.x: a minor release needs a restart and no dump"
    if number < MINIMUM_SERVER_VERSION:
        return Finding("version", "problem", f"PostgreSQL {name} is too old", "upgrade to 14 or newer")
    if major not in END_OF_SUPPORT:
        return Finding("version", "warning", f"PostgreSQL {name} is newer than what this jobqueue was tested with (14 to 18)")
    if number < FIRST_WITHOUT_LOST_INDEX_ENTRIES:
        found = f"PostgreSQL {name} may leave rows out of indexes that are built with CONCURRENTLY; 14.4 mended that"
        return Finding("version", "problem", found, f"{latest}; then REINDEX indexes that were built so")
    if number in HALTING_STANDBYS:
        found = f"PostgreSQL {name} has a fault that stops standbys, which {HALTING_STANDBYS[number]} mended"
        return Finding("version", "warning", found, latest)
    if today > END_OF_SUPPORT[major]:
        found = f"PostgreSQL {name} has had no fixes since {END_OF_SUPPORT[major]}"
        return Finding("version", "warning", found, "upgrade to a major that is supported")
    return Finding("version", "ok", f"PostgreSQL {name}")


def takes_writes(connection: Connection) -> list[Finding]:
    """Tell a standby."""
    [row] = query(connection, "SELECT pg_is_in_recovery() AS standby")
    if row.standby:
        advice = "point --database-url at the primary (several hosts and target_session_attrs=read-write find it)"
        return [Finding("primary", "problem", "this server is a standby: it takes no writes, so no jobs", advice)]
    return [Finding("primary", "ok", "the server is no standby")]


def pooler(connection: Connection) -> list[Finding]:
    """Tell whether a pooler, such as PgBouncer, stands before the server."""
    if not behind_pooler(connection):
        return [Finding("pooler", "ok", "straight to PostgreSQL")]
    found = (
        "a pooler, such as PgBouncer, stands before PostgreSQL: all works, but without notifications, so work is found by polling"
    )
    return [Finding("pooler", "warning", found, "give --database-url a direct address where that matters, or poll more often")]


def clock(connection: Connection) -> list[Finding]:
    """Compare this machine's clock with the database's, as NTP does: of several tries, the quickest says most."""
    tries = []
    for _ in range(CLOCK_SAMPLES):
        began, begun = time.time(), time.perf_counter()
        [row] = query(connection, "SELECT extract(epoch FROM clock_timestamp())::float8 AS time")
        took = time.perf_counter() - begun
        tries.append((took / 2, began + took / 2 - row.time))
    error, ahead = min(tries)
    return [judge_clock(ahead, error)]


def judge_clock(ahead: float, error: float) -> Finding:
    """Judge by how many seconds this machine is ahead of the database, give or take an error."""
    bar = f"± {error * 1000:.1f} ms"
    if abs(ahead) - error <= CLOCK_WARNING:
        return Finding("clock", "ok", f"this machine's differs from the database's by {ahead * 1000:+.1f} ms {bar}")
    by = duration(abs(ahead)) if abs(ahead) >= 60 else f"{abs(ahead):.1f} s"  # noqa: PLR2004 - a minute
    found = (
        f"this machine's is {by} {'ahead of' if ahead > 0 else 'behind'} the database's ({bar}), which decides when jobs are due"
    )
    return Finding("clock", "warning", found, "run NTP on both: logs, and times that are computed on this machine, are off by that")


@dataclass(frozen=True, slots=True)
class Rule:
    """A setting that can break jobqueue.

    Attributes:
        bad: whether a value, in the setting's own unit, does.
        effect: what it does then.
        better: the value to give it.
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
    Rule("full_page_writes", _off, "problem", "a crash while a page is written may destroy it, and jobs with it"),
    Rule(
        "synchronous_commit",
        _off,
        "warning",
        "nodes overrule it, but a job submitted from SQL may be lost in a crash after its COMMIT",
    ),
    Rule("autovacuum", _off, "problem", "dead rows pile up, and every claim wades through them"),
    Rule("track_counts", _off, "problem", "autovacuum does nothing without it: dead rows pile up"),
    Rule(
        "default_transaction_read_only",
        lambda value: value == "on",
        "warning",
        "nodes overrule it, but no job can be submitted from SQL",
        "off",
    ),
    Rule(
        "default_transaction_isolation",
        lambda value: value != "read committed",
        "warning",
        "nodes overrule it, but a submission from SQL that meets another one may end with a serialization failure",
        "read committed",
    ),
    Rule(
        "session_replication_role",
        lambda value: value == "replica",
        "problem",
        "triggers do not fire, so concurrency keys are not kept",
        "origin",
    ),
    Rule("statement_timeout", _below(5_000), "warning", "it cuts handlers' own transactions, and migrations, short", "0"),
    Rule("transaction_timeout", _below(60_000), "warning", "it cuts handlers' own transactions short", "0"),
    Rule("lock_timeout", _below(1_000), "warning", "it cuts handlers' own transactions, and submissions from SQL, short", "0"),
    Rule(
        "idle_in_transaction_session_timeout",
        _below(10_000),
        "warning",
        "handlers' own transactions are rolled back when they do something else for that long",
        "60s",
    ),
    Rule(
        "vacuum_defer_cleanup_age",
        lambda value: int(value) > 0,
        "warning",
        "dead rows stay for so many transactions, and claims wade through them",
        "0",
    ),
)


def settings(connection: Connection) -> list[Finding]:
    """Judge the settings that this role has in this database, whoever made them."""
    bad = list(_bad_settings(connection))
    if bad:
        return bad
    found = "fsync, full_page_writes, synchronous_commit, autovacuum and track_counts are on, and no timeout is in the way"
    return [Finding("settings", "ok", found)]


def encoding(connection: Connection) -> list[Finding]:
    """Tell a database that cannot hold every text."""
    [row] = query(connection, "SELECT current_setting('server_encoding') AS name")
    if row.name == "UTF8":
        return [Finding("encoding", "ok", "UTF8")]
    found = f"the database has the encoding {row.name}, and jobqueue works on UTF8 only"
    return [Finding("encoding", "problem", found, "create a database with ENCODING 'UTF8' TEMPLATE template0, and move there")]


def _bad_settings(connection: Connection) -> Iterator[Finding]:
    # What a session begins with: this one has limits of its own.
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
        row = set_to.get(rule.name)  # not every version has all of them
        if row is None or not rule.bad(row.value):
            continue
        value = f"{row.value} {row.unit}" if row.unit else row.value
        how = _how_to_set(rule, row.role, row.database).as_string(connection)
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
