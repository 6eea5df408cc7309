"""What there is room for: connections, disk, the log that replication slots keep, the queue of notifications."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg

from jobqueue.storage.checkup.finding import Finding, count, names, query, size, unknown
from jobqueue.storage.database import Connection
from jobqueue.storage.embedded import NODE_CONNECTIONS
from jobqueue.storage.transactions import MAX_TRANSACTIONS

LANES = NODE_CONNECTIONS - MAX_TRANSACTIONS
"""Connections of a node; its handlers' own transactions come on top, up to `MAX_TRANSACTIONS`."""

DISK_WARNING, DISK_PROBLEM = 2 << 30, 256 << 20
"""Free bytes on the data directory's disk."""

WAL_WARNING, WAL_PROBLEM = 1 << 30, 10 << 30
"""Bytes of the write-ahead log that a replication slot keeps."""

NOTIFY_WARNING, NOTIFY_PROBLEM = 0.1, 0.5
"""How full the queue of notifications may be; when it is full, commits with a NOTIFY fail."""


def connections(connection: Connection) -> list[Finding]:
    """Count who is connected against every limit that holds for this role."""
    [row] = query(
        connection,
        """
        SELECT quote_ident(current_user) AS role, r.rolsuper AS super,
               r.rolconnlimit AS role_limit, d.datconnlimit AS database_limit,
               current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                   - coalesce(current_setting('reserved_connections', true), '0')::int AS server_limit,
               a.all_of_them, a.of_role, a.in_database, a.ours
          FROM pg_roles AS r, pg_database AS d,
               (SELECT count(*) AS all_of_them, count(*) FILTER (WHERE usename = current_user) AS of_role,
                       count(*) FILTER (WHERE datname = current_database()) AS in_database,
                       count(*) FILTER (WHERE datname = current_database() AND starts_with(application_name, 'jobqueue ')
                                              AND pid <> pg_backend_pid()) AS ours
                  FROM pg_stat_activity   -- the type of others' is hidden from most roles
                 WHERE coalesce(backend_type = 'client backend', num_nonnulls(usename, datname) = 2)) AS a
         WHERE r.rolname = current_user AND d.datname = current_database()
        """,
    )
    limits = [("max_connections, less those kept back,", row.server_limit, row.all_of_them)]
    if row.database_limit >= 0 and not row.super:
        limits.append(("the database's CONNECTION LIMIT", row.database_limit, row.in_database))
    if row.role_limit >= 0 and not row.super:
        limits.append((f"the CONNECTION LIMIT of role {row.role}", row.role_limit, row.of_role))
    what, limit, used = min(limits, key=lambda each: each[1] - each[2])
    return [judge_connections(what, limit, used, ours=row.ours, nodes=_live_nodes(connection))]


def _live_nodes(connection: Connection) -> int | None:
    """Count the nodes; None where the role may not see them, or there is no schema."""
    try:
        with connection.transaction():
            [row] = query(connection, "SELECT count(*) AS nodes FROM jobqueue.nodes WHERE lease_until > now()")
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable):
        return None
    nodes: int = row.nodes
    return nodes


def judge_connections(what: str, limit: int, used: int, *, ours: int, nodes: int | None) -> Finding:
    """Judge the tightest limit.

    Args:
        what: its name.
        used: connections that count against it; this checkup's is one of them, which is over soon.
        ours: those of them that are a node's.
        nodes: how many are running; None when that cannot be told.
    """
    used -= 1
    free = max(0, limit - used)
    kept = f"{what} allows {limit}: {ours} are jobqueue's, {used - ours} are others', {free} are free"
    if nodes:
        runs = count(nodes, "node runs", "nodes run")
        kept += f" ({runs}; each needs {LANES}, and up to {MAX_TRANSACTIONS} for handlers' transactions)"
    advice = f"raise {what.strip(',')}, or put PgBouncer before the others"
    if free <= 0:
        return Finding("connections", "problem", f"{kept}: a node that loses one gets none", advice)
    if free < LANES:
        return Finding("connections", "warning", f"{kept}: no node can be added, nor one replaced before it has left", advice)
    if nodes and nodes * (LANES + MAX_TRANSACTIONS) - ours > free:
        return Finding("connections", "warning", f"{kept}: not enough for all transactions that handlers may open", advice)
    return Finding("connections", "ok", kept)


def disk(connection: Connection) -> list[Finding]:
    """Tell sizes, and how much is free where the server's disk is this machine's."""
    [row] = query(
        connection,
        """
        SELECT pg_database_size(current_database()) AS whole,
               (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
                  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'jobqueue' AND c.relkind = 'r') AS ours,
               CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END AS directory
        """,
    )
    sizes = f"jobqueue's tables take {size(row.ours)} of the database's {size(row.whole)}"
    if not connection.info.host.startswith("/"):
        return [Finding("disk", "ok", f"{sizes}; how much is free is not told over a network")]
    if row.directory is None:
        return [Finding("disk", "ok", f"{sizes}; where they lie is told to members of pg_read_all_settings only")]
    try:
        usage = shutil.disk_usage(Path(row.directory))
    except OSError as error:
        return [Finding("disk", "ok", f"{sizes}; how much is free cannot be seen from here ({error.strerror})")]
    return [judge_disk(sizes, row.directory, usage.free, usage.total)]


def judge_disk(sizes: str, directory: str, free: int, total: int) -> Finding:
    """Judge the free bytes on the data directory's disk."""
    found = f"{sizes}; {size(free)} of {size(total)} are free in {directory}"
    if free >= DISK_WARNING:
        return Finding("disk", "ok", found)
    advice = "make room: PostgreSQL stops when it cannot write its log (shorter --keep-* times let old jobs go)"
    return Finding("disk", "problem" if free < DISK_PROBLEM else "warning", found, advice)


def kept_log(connection: Connection) -> list[Finding]:
    """Tell how much of the write-ahead log replication slots keep."""
    rows = query(
        connection,
        """
        SELECT slot_name AS name, active, wal_status AS status,
               pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                               restart_lsn)::bigint AS kept
          FROM pg_replication_slots ORDER BY restart_lsn
        """,
    )
    if not rows:
        return [Finding("WAL", "ok", "no replication slot keeps any")]
    findings = []
    for row in rows:
        kept = row.kept or 0
        if row.status in ("lost", "unreserved") or kept >= WAL_WARNING:
            found = f"slot {row.name} ({'in use' if row.active else 'nobody reads it'}, {row.status}) keeps {size(kept)} of the log"
            advice = f"see to its reader, or, when nobody needs it, SELECT pg_drop_replication_slot('{row.name}')"
            findings.append(Finding("WAL", "problem" if kept >= WAL_PROBLEM else "warning", found, advice))
    kept = max(row.kept or 0 for row in rows)
    return findings or [Finding("WAL", "ok", f"slots ({names([row.name for row in rows])}) keep {size(kept)} at the most")]


def notifications(connection: Connection) -> list[Finding]:
    """Tell how full the queue of notifications is."""
    try:
        [row] = query(connection, "SELECT pg_notification_queue_usage() AS usage")
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        return [unknown("notifications", error.diag.message_primary or "the server does not say")]
    return [judge_notifications(row.usage)]


def judge_notifications(usage: float) -> Finding:
    """Judge how full the queue is, from 0 to 1."""
    found = f"the queue of NOTIFY is {usage:.1%} full"
    if usage < NOTIFY_WARNING:
        return Finding("notifications", "ok", found)
    found += ": some session listens, and does not read; once it is full, commits that notify fail"
    advice = "end the session that has LISTENed and stays in a transaction: the server's log names its pid"
    return Finding("notifications", "problem" if usage >= NOTIFY_PROBLEM else "warning", found, advice)
