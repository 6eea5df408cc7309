"""Check free capacity: connections, disk space, WAL that replication slots retain, and the NOTIFY queue."""

from __future__ import annotations

import shutil
from pathlib import Path

import psycopg

from jobqueue.storage.connection import Connection
from jobqueue.storage.doctor.finding import Finding, count, names, query, size, unknown
from jobqueue.storage.embedded.stage import NODE_CONNECTIONS
from jobqueue.storage.handler_transactions import MAX_TRANSACTIONS

LANES = NODE_CONNECTIONS - MAX_TRANSACTIONS
"""Number of connections of a node. The transactions of its handlers can use up to `MAX_TRANSACTIONS` additional connections."""

DISK_WARNING, DISK_PROBLEM = 2 << 30, 256 << 20
"""If fewer bytes are free on the data directory's disk, the check reports a warning or a problem."""

WAL_WARNING, WAL_PROBLEM = 1 << 30, 10 << 30
"""If a replication slot retains this many bytes of WAL, the check reports a warning or a problem."""

NOTIFY_WARNING, NOTIFY_PROBLEM = 0.1, 0.5
"""If the NOTIFY queue is this full (0 to 1), the check reports a warning or a problem. At 1, commits with NOTIFY fail."""


def connections(connection: Connection) -> list[Finding]:
    """Compare the open connections with every limit for this role, and judge the limit that leaves the fewest connections."""
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
                  FROM pg_stat_activity   -- backend_type of other roles' sessions is hidden from most roles
                 WHERE coalesce(backend_type = 'client backend', num_nonnulls(usename, datname) = 2)) AS a
         WHERE r.rolname = current_user AND d.datname = current_database()
        """,
    )
    limits = [("max_connections (minus reserved connections)", row.server_limit, row.all_of_them)]
    if row.database_limit >= 0 and not row.super:
        limits.append(("the database's CONNECTION LIMIT", row.database_limit, row.in_database))
    if row.role_limit >= 0 and not row.super:
        limits.append((f"the CONNECTION LIMIT of role {row.role}", row.role_limit, row.of_role))
    what, limit, used = min(limits, key=lambda each: each[1] - each[2])
    return [judge_connections(what, limit, used, ours=row.ours, nodes=_live_nodes(connection))]


def _live_nodes(connection: Connection) -> int | None:
    """Count the running nodes; return None if the schema does not exist, or the role has no permission to read it."""
    try:
        with connection.transaction():
            [row] = query(connection, "SELECT count(*) AS nodes FROM jobqueue_internal.nodes WHERE lease_until > now()")
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable):
        return None
    nodes: int = row.nodes
    return nodes


def judge_connections(what: str, limit: int, used: int, *, ours: int, nodes: int | None) -> Finding:
    """Judge the tightest limit.

    Args:
        what: the limit's name.
        limit: how many connections the limit allows.
        used: the number of connections that count against the limit, including the connection of this check.
        ours: how many of these connections belong to jobqueue.
        nodes: the number of running nodes; None if unknown.
    """
    used -= 1
    free = max(0, limit - used)
    kept = f"{what} allows {limit}: jobqueue uses {ours}, other programs use {used - ours}, {free} are free"
    if nodes:
        runs = count(nodes, "node runs", "nodes run")
        kept += f" ({runs}; each needs {LANES}, plus up to {MAX_TRANSACTIONS} for handlers' transactions)"
    advice = f"raise {what.strip(',')}, or connect the other programs through PgBouncer"
    if free <= 0:
        return Finding("connections", "problem", f"{kept}: a node that loses a connection cannot open a new one", advice)
    if free < LANES:
        return Finding("connections", "warning", f"{kept}: too few to start another node, even as a replacement", advice)
    if nodes and nodes * (LANES + MAX_TRANSACTIONS) - ours > free:
        return Finding("connections", "warning", f"{kept}: too few for all transactions that handlers may open", advice)
    return Finding("connections", "ok", kept)


def disk(connection: Connection) -> list[Finding]:
    """Report the size of jobqueue's tables, and judge free disk space if the server runs on this machine."""
    [row] = query(
        connection,
        """
        SELECT pg_database_size(current_database()) AS whole,
               (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
                  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                 WHERE n.nspname = 'jobqueue_internal' AND c.relkind = 'r') AS ours,
               CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END AS directory
        """,
    )
    sizes = f"jobqueue's tables use {size(row.ours)} of the database's {size(row.whole)}"
    if not connection.info.host.startswith("/"):
        return [Finding("disk", "ok", f"{sizes}; free space cannot be measured over a network")]
    if row.directory is None:
        return [Finding("disk", "ok", f"{sizes}; only members of pg_read_all_settings can see the free space")]
    try:
        usage = shutil.disk_usage(Path(row.directory))
    except OSError as error:
        return [Finding("disk", "ok", f"{sizes}; free space cannot be measured from here ({error.strerror})")]
    return [judge_disk(sizes, row.directory, usage.free, usage.total)]


def judge_disk(sizes: str, directory: str, free: int, total: int) -> Finding:
    """Judge the free bytes on the data directory's disk."""
    found = f"{sizes}; {size(free)} of {size(total)} are free in {directory}"
    if free >= DISK_WARNING:
        return Finding("disk", "ok", found)
    advice = "free some space: PostgreSQL stops when it cannot write its WAL (shorter --keep-* times delete old jobs earlier)"
    return Finding("disk", "problem" if free < DISK_PROBLEM else "warning", found, advice)


def kept_log(connection: Connection) -> list[Finding]:
    """Judge how much WAL the replication slots retain."""
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
        return [Finding("WAL", "ok", "no replication slot retains WAL")]
    findings = []
    for row in rows:
        kept = row.kept or 0
        if row.status in ("lost", "unreserved") or kept >= WAL_WARNING:
            found = f"slot {row.name} ({'in use' if row.active else 'nobody reads it'}, {row.status}) retains {size(kept)} of WAL"
            advice = f"check the slot's reader; if nobody needs the slot: SELECT pg_drop_replication_slot('{row.name}')"
            findings.append(Finding("WAL", "problem" if kept >= WAL_PROBLEM else "warning", found, advice))
    kept = max(row.kept or 0 for row in rows)
    return findings or [Finding("WAL", "ok", f"slots ({names([row.name for row in rows])}) retain at most {size(kept)}")]


def notifications(connection: Connection) -> list[Finding]:
    """Judge how full the NOTIFY queue is."""
    try:
        [row] = query(connection, "SELECT pg_notification_queue_usage() AS usage")
    except psycopg.errors.ObjectNotInPrerequisiteState as error:
        return [unknown("notifications", error.diag.message_primary or "the server reports no usage")]
    return [judge_notifications(row.usage)]


def judge_notifications(usage: float) -> Finding:
    """Judge the fill level of the NOTIFY queue, from 0 to 1."""
    found = f"the NOTIFY queue is {usage:.1%} full"
    if usage < NOTIFY_WARNING:
        return Finding("notifications", "ok", found)
    found += ": a session that ran LISTEN does not read its notifications; once the queue is full, commits with NOTIFY fail"
    advice = "end the session that ran LISTEN and stays in a transaction: the server's log names its pid"
    return Finding("notifications", "problem" if usage >= NOTIFY_PROBLEM else "warning", found, advice)
