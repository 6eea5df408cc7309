"""Check dead rows and locks: sessions that keep dead rows from being removed, bloated tables, wraparound, and lock waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from psycopg import sql

from jobqueue.storage.connection import Connection
from jobqueue.storage.doctor.finding import Finding, Verdict, count, duration, names, query, size

OPEN_WARNING, OPEN_PROBLEM = 60.0, 600.0
"""If a transaction has held back the xmin horizon for this many seconds, the check reports a warning or a problem."""

AGE_WARNING, AGE_PROBLEM = 100_000, 10_000_000
"""The same limits in transactions instead of seconds, for sessions and slots whose start time is unknown."""

DEAD_WARNING, DEAD_PROBLEM = 50_000, 2_000_000
"""If a table has this many dead rows, and fewer live rows, the check reports a warning or a problem. Autovacuum starts at 5,000."""

BLOAT_WARNING = 256 << 20
"""If a table and its indexes have this many unused bytes, the check reports a warning."""

ROW_BYTES = 3_000
"""Upper bound for the size of a row and its index entries, in bytes: PostgreSQL stores larger values in a TOAST table."""

FREEZE_WARNING, FREEZE_PROBLEM = 500_000_000, 1_500_000_000
"""If the oldest unfrozen transaction has this age, the check reports a warning or a problem. At 2,100,000,000, PostgreSQL refuses
writes."""

PREPARED = 0
"""The pid that PostgreSQL reports for a prepared transaction, which has no process."""

LOCK_WARNING, LOCK_PROBLEM = 1.0, 30.0
"""If a session has waited for a lock for this many seconds, the check reports a warning or a problem."""


def horizon(connection: Connection) -> list[Finding]:
    """Find transactions, prepared transactions, replication slots and standbys that hold back the xmin horizon.

    PostgreSQL cannot remove rows that died after this horizon.
    """
    findings = [*_transactions(connection), *_prepared(connection), *_slots(connection)]
    return findings or [Finding("horizon", "ok", f"no transaction has held back the horizon for {duration(OPEN_WARNING)} or more")]


def _transactions(connection: Connection) -> Iterator[Finding]:
    # A standby with hot_standby_feedback reports its horizon through its walsender, whose datname is NULL.
    rows = query(
        connection,
        """
        SELECT a.pid, a.usename AS who, a.application_name AS program, a.state, a.datname IS NULL AS walsender,
               extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds,
               greatest(age(a.backend_xmin), age(a.backend_xid)) AS transactions
          FROM pg_stat_activity AS a
         WHERE a.pid <> pg_backend_pid() AND num_nonnulls(a.backend_xmin, a.backend_xid) > 0
           AND a.usename IS NOT NULL   -- not autovacuum, which holds back nothing
           AND (a.datname = current_database() OR a.datname IS NULL)
         ORDER BY a.xact_start NULLS LAST, transactions DESC LIMIT 20
        """,
    )
    yield from filter(None, map(judge_session, rows))


def judge_session(row: Any) -> Finding | None:
    """Judge a session that holds back the horizon; return None if it has not held the horizon for long.

    Args:
        row: a row with `pid`, `who`, `program`, `state`, `walsender`, `seconds` and `transactions`.
    """
    verdict = judge_hold(row.seconds, row.transactions)
    if verdict is None:
        return None
    since = "for a time that only members of pg_read_all_stats can see" if row.seconds is None else f"for {duration(row.seconds)}"
    who = ", ".join(filter(None, (row.who, row.program, row.state)))
    held = f"pid {row.pid} ({who}) has held back the xmin horizon {since} ({count(row.transactions, 'transaction')})"
    if row.walsender:
        return Finding(
            "horizon", verdict, f"{held}: it serves a standby with hot_standby_feedback", "look for long queries on the standby"
        )
    return Finding("horizon", verdict, f"{held}: dead rows slow down claims", f"SELECT pg_terminate_backend({row.pid})")


def judge_hold(seconds: float | None, transactions: int) -> Verdict | None:
    """Judge how long the horizon has been held back; return None if the time is too short to report.

    Args:
        seconds: how long, in seconds; None if unknown. If it is None, `transactions` decides.
        transactions: how long, in transactions.
    """
    held, warning, problem = (
        (seconds, OPEN_WARNING, OPEN_PROBLEM) if seconds is not None else (transactions, AGE_WARNING, AGE_PROBLEM)
    )
    return "problem" if held >= problem else "warning" if held >= warning else None


def _prepared(connection: Connection) -> Iterator[Finding]:
    rows = query(
        connection,
        """
        SELECT gid, owner, extract(epoch FROM clock_timestamp() - prepared)::float8 AS seconds, age(transaction) AS transactions
          FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared LIMIT 20
        """,
    )
    for row in rows:
        if verdict := judge_hold(row.seconds, row.transactions):
            name = sql.Literal(row.gid).as_string(connection.driver)
            found = f"prepared transaction {name} of {row.owner} has held back the xmin horizon for {duration(row.seconds)}"
            advice = f"it survives restarts; its transaction manager must run COMMIT PREPARED {name}, or ROLLBACK PREPARED {name}"
            yield Finding("horizon", verdict, found, advice)


def _slots(connection: Connection) -> Iterator[Finding]:
    rows = query(
        connection,
        "SELECT slot_name AS name, active, age(xmin) AS transactions FROM pg_replication_slots"
        " WHERE xmin IS NOT NULL ORDER BY transactions DESC",
    )
    yield from filter(None, map(judge_slot, rows))


def judge_slot(row: Any) -> Finding | None:
    """Judge a replication slot that holds back the horizon; return None if it is active and has not held the horizon for long.

    Args:
        row: a row with `name`, `active` and `transactions`.
    """
    verdict = judge_hold(None, row.transactions)
    if verdict is None and row.active:
        return None
    use = "in use" if row.active else "nobody reads it"
    found = f"replication slot {row.name} ({use}) has held back the xmin horizon for {count(row.transactions, 'transaction')}"
    advice = f"check the slot's standby; if nobody needs the slot: SELECT pg_drop_replication_slot('{row.name}')"
    return Finding("horizon", verdict or "warning", found, advice)


def tables(connection: Connection) -> list[Finding]:
    """Judge the dead rows and the size of each of jobqueue's tables."""
    rows = query(
        connection,
        """
        SELECT c.relname AS name, s.n_live_tup AS live, s.n_dead_tup AS dead,
               coalesce(pg_relation_size(c.oid) + pg_indexes_size(c.oid), 0) AS bytes,
               extract(epoch FROM now() - greatest(s.last_autovacuum, s.last_vacuum))::float8 AS vacuumed,
               EXISTS (SELECT FROM pg_options_to_table(c.reloptions) AS o
                        WHERE o.option_name = 'autovacuum_enabled' AND NOT o.option_value::boolean) AS disabled
          FROM pg_stat_user_tables AS s JOIN pg_class AS c ON c.oid = s.relid
         WHERE s.schemaname = 'jobqueue_internal' ORDER BY s.n_dead_tup DESC
        """,
    )
    findings = []
    if disabled := [row.name for row in rows if row.disabled]:
        advice = "; ".join(f"ALTER TABLE {connection.schema}_internal.{name} RESET (autovacuum_enabled)" for name in disabled)
        found = f"autovacuum is turned off for {names(disabled)}: dead rows accumulate and slow down claims"
        findings.append(Finding("vacuum", "problem", found, advice))
    for row in rows:
        findings += judge_table(row, connection.schema)
    if findings:
        return findings
    dead, live = sum(row.dead for row in rows), sum(row.live for row in rows)
    busiest = next((row for row in rows if row.vacuumed is not None), None)
    last = f"; {busiest.name} was vacuumed {duration(busiest.vacuumed)} ago" if busiest else ""
    return [Finding("vacuum", "ok", f"{count(dead, 'dead row')} and {count(live, 'live one')} in jobqueue's tables{last}")]


def judge_table(row: Any, schema: str) -> Iterator[Finding]:
    """Judge one table.

    Args:
        row: a row with `name`, `live` and `dead` (numbers of rows), `bytes`, and `vacuumed` (seconds since the last vacuum, or
            None).
        schema: the name of the queue's schemas.
    """
    table = f"{schema}_internal.{row.name}"
    vacuumed = "it was never vacuumed" if row.vacuumed is None else f"it was last vacuumed {duration(row.vacuumed)} ago"
    if row.dead >= DEAD_WARNING and row.dead > row.live:
        found = f"{row.name} has {count(row.dead, 'dead row')} and {row.live:,} live ones; {vacuumed}"
        advice = f"first resolve any problem of the horizon check; then VACUUM {table}"
        yield Finding("vacuum", "problem" if row.dead >= DEAD_PROBLEM else "warning", found, advice)
    unneeded = row.bytes - ROW_BYTES * (row.live + row.dead)
    if unneeded >= BLOAT_WARNING:
        found = f"{row.name} uses {size(row.bytes)} for {count(row.live, 'row')}: at least {size(unneeded)} of it is empty"
        advice = f"at a quiet time: VACUUM FULL {table} (it locks the table), or REINDEX TABLE CONCURRENTLY {table}"
        yield Finding("vacuum", "warning", found, advice)


def wraparound(connection: Connection) -> list[Finding]:
    """Judge how close the database is to transaction ID wraparound."""
    [row] = query(
        connection,
        """
        SELECT age(datfrozenxid) AS transactions, mxid_age(datminmxid) AS groups FROM pg_database WHERE datname = current_database()
        """,
    )
    return [judge_wraparound(row.transactions, row.groups)]


def judge_wraparound(transactions: int, groups: int) -> Finding:
    """Judge the ages of the oldest unfrozen transaction and the oldest unfrozen multixact."""
    found = f"the oldest unfrozen transaction is {transactions:,} transactions old, the oldest multixact {groups:,} multixacts"
    oldest = max(transactions, groups)
    if oldest < FREEZE_WARNING:
        return Finding("wraparound", "ok", found)
    verdict: Verdict = "problem" if oldest >= FREEZE_PROBLEM else "warning"
    return Finding(
        "wraparound",
        verdict,
        f"{found}; PostgreSQL refuses all writes at 2,100,000,000",
        "first resolve any problem of the horizon check; then VACUUM (FREEZE)",
    )


def locks(connection: Connection) -> list[Finding]:
    """Find sessions that wait for a lock on jobqueue's tables, jobqueue's sessions that wait for any lock, and the lock holders."""
    rows = query(
        connection,
        """
        SELECT l.pid, a.application_name AS program, pg_blocking_pids(l.pid) AS blockers,
               coalesce(c.relname, l.locktype) AS what, extract(epoch FROM clock_timestamp() - l.waitstart)::float8 AS seconds
          FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid LEFT JOIN pg_class AS c ON c.oid = l.relation
         WHERE NOT l.granted AND a.datname = current_database()
           AND (starts_with(a.application_name, 'jobqueue ')
                OR c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'jobqueue_internal'))
         ORDER BY l.waitstart LIMIT 20
        """,
    )
    findings = []
    for row in rows:
        if (row.seconds or 0) < LOCK_WARNING or not row.blockers:
            continue
        pids = names([str(pid) for pid in row.blockers])
        found = f"pid {row.pid} ({row.program}) has waited {duration(row.seconds)} for a lock ({row.what}) that pid {pids} holds"
        advice = "; ".join(f"SELECT pg_terminate_backend({pid})" for pid in row.blockers if pid)
        if PREPARED in row.blockers:
            found += " (0 is a prepared transaction)"
            advice = "find it in pg_prepared_xacts; its transaction manager must run COMMIT PREPARED or ROLLBACK PREPARED"
        findings.append(Finding("locks", "problem" if row.seconds >= LOCK_PROBLEM else "warning", found, advice))
    return findings or [Finding("locks", "ok", f"no session has waited for a lock for {duration(LOCK_WARNING)} or more")]
