"""Check the jobqueue schema: its version, its objects, this role's privileges, and the partitions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import psycopg

from jobqueue.storage import schema
from jobqueue.storage.connection import Connection
from jobqueue.storage.doctor.finding import Finding, count, names, query, unknown
from jobqueue.storage.schema import catalog

FEW = 10_000
"""Maximum number of rows to count."""

SYSTEM_FUNCTIONS = [
    "pg_notify(text,text)",
    "pg_terminate_backend(int,bigint)",
    "pg_advisory_xact_lock(bigint)",
    "pg_try_advisory_xact_lock(bigint)",
]
"""PostgreSQL's functions that a node calls, and that an administrator may have revoked."""

APPLY = "run jobqueue migrate as the schema's owner, or psql -f schema.sql: both repair the schema, and keep all rows"


def is_there(connection: Connection) -> bool:
    """Return whether the database has the schema, in any version, even if this role has no permission to use it."""
    [row] = query(
        connection,
        """
        SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
                        WHERE n.nspname IN ('jobqueue', 'jobqueue_internal') AND c.relname = 'schema_version') AS there
        """,
    )
    return bool(row.there)


def version(connection: Connection) -> list[Finding]:
    """Compare the schema's version with `schema.SCHEMA_VERSION`."""
    if not is_there(connection):
        found = "this database has no jobqueue schema"
        return [Finding("schema", "problem", found, "run jobqueue migrate, or jobqueue serve, which creates it at its first start")]
    try:
        return [judge_version(schema.installed(connection))]
    except psycopg.errors.InsufficientPrivilege as error:
        return [unknown("schema", error.diag.message_primary or "permission denied", "see the privileges finding")]


def judge_version(found: schema.Installed | None) -> Finding:
    """Judge a schema version; None means that the schema has no version."""
    ours = schema.SCHEMA_VERSION
    if found is None:
        return Finding("schema", "problem", "the schema has no version: jobqueue_internal.schema_version is empty", APPLY)
    if found.version < ours:
        return Finding("schema", "problem", f"version {found.version}, but this jobqueue needs {ours}", "run jobqueue migrate")
    if found.oldest_node > ours:
        text = f"version {found.version} needs nodes of version {found.oldest_node} or newer, but this jobqueue has version {ours}"
        return Finding("schema", "problem", text, "upgrade jobqueue, or use another database")
    if found.version == ours and found.oldest_node < ours:
        text = f"version {found.version}, but the upgrade is not finished: nodes of version {found.oldest_node} can still run"
        return Finding("schema", "warning", text, "replace the old nodes, then run jobqueue migrate --finish")
    return Finding("schema", "ok", f"version {found.version}")


def objects(connection: Connection) -> list[Finding]:
    """Compare the schema with schema.sql, and with its state when schema.sql was last applied.

    The first comparison covers tables, indexes, functions, and the trigger. The second comparison covers every object.
    """
    installed = schema.installed(connection)
    if installed is not None and installed.version > schema.SCHEMA_VERSION:
        return [Finding("objects", "ok", f"not compared, because the schema has the newer version {installed.version}")]
    text = schema.source(connection.schema)
    found = catalog.look(connection, text)
    findings = [*_missing(connection, catalog.faults(text, found))]
    known = catalog.recorded(connection)
    if not findings and known is not None and known != catalog.fingerprint(text, found):
        changed = (
            "columns, settings of functions, or views have changed: either the schema was changed since schema.sql was applied,"
            " or another schema.sql was applied"
        )
        findings.append(Finding("objects", "warning", changed, APPLY))
    return findings or [Finding("objects", "ok", "tables, indexes and functions match this version")]


def copy(connection: Connection) -> list[Finding]:
    """Find out whether the database is a copy, whose nodes are on hold."""
    [row] = query(connection, "SELECT jobqueue_internal.copied_from() AS origin")
    if row.origin is None:
        return [Finding("copy", "ok", "the queue belongs to this database")]
    found = f"all queues and schedules are on hold: {row.origin}"
    return [Finding("copy", "warning", found, "run jobqueue adopt if this database shall run the jobs")]


def _missing(connection: Connection, faults: catalog.Faults) -> Iterator[Finding]:
    [row] = query(
        connection,
        """
        SELECT array_agg(c.relname::text) FILTER (WHERE NOT i.indisvalid) AS invalid
          FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
         WHERE n.nspname = 'jobqueue_internal'
        """,
    )
    for kind, missing in (("tables", faults.tables), ("indexes", faults.indexes), ("functions", faults.functions)):
        if missing:
            yield Finding("objects", "problem", f"{kind} are missing: {names(missing)}", APPLY)
    if row.invalid:
        advice = "; ".join(f"REINDEX INDEX CONCURRENTLY {connection.schema}_internal.{name}" for name in row.invalid)
        yield Finding("objects", "problem", f"indexes are invalid, so PostgreSQL does not use them: {names(row.invalid)}", advice)
    if faults.triggers:
        yield Finding(
            "objects", "problem", "the trigger block of pending_jobs is off or missing: concurrency keys are not enforced", APPLY
        )
    if faults.differing:
        yield Finding("objects", "warning", f"functions differ from this version's schema.sql: {names(faults.differing)}", APPLY)


def privileges(connection: Connection) -> list[Finding]:
    """Find privileges that a node needs and this role lacks, and roles that can create objects in the schemas."""
    findings = [*_lacking(connection), *_creating(connection)]
    return findings or [Finding("privileges", "ok", "the role has all privileges that a node needs")]


def _lacking(connection: Connection) -> Iterator[Finding]:
    [row] = query(
        connection,
        """
        SELECT quote_ident(current_user) AS quoted, current_user AS role,
               coalesce(has_schema_privilege(to_regnamespace('jobqueue_internal'), 'USAGE')
                        AND has_function_privilege(to_regprocedure('jobqueue_internal.privileges_of(text)'), 'EXECUTE'),
                        false) AS usage,
               ARRAY(SELECT s.name FROM unnest(%s::text[]) AS s (name)
                      WHERE NOT has_function_privilege(s.name, 'EXECUTE')) AS system_functions
        """,
        SYSTEM_FUNCTIONS,
    )
    lacking = [f"USAGE on {connection.schema}_internal"]
    if row.usage:
        lacking = [
            f"{missing.privileges} on {missing.name}"
            for missing in query(
                connection,
                """
                SELECT string_agg(p.privilege, ', ') AS privileges, p.name FROM jobqueue_internal.privileges_of('node') AS p
                 WHERE NOT CASE p.type WHEN 'SCHEMA' THEN has_schema_privilege(p.object, p.privilege)
                                       WHEN 'FUNCTION' THEN has_function_privilege(p.object, p.privilege)
                                       ELSE has_table_privilege(p.object, p.privilege) END
                 GROUP BY p.type, p.name ORDER BY p.type DESC, p.name
                """,
            )
        ]
    if lacking:
        found = f"role {row.quoted} lacks privileges that a node needs: {names(lacking)}"
        advice = f"as the owner of the schema, jobqueue migrate --grant node={shlex.quote(row.role)}"
        yield Finding("privileges", "problem", found, advice)
    if row.system_functions:
        found = f"role {row.quoted} may not call {names(row.system_functions)}, which a node needs"
        grants = "; ".join(f"GRANT EXECUTE ON FUNCTION {name} TO {row.quoted}" for name in row.system_functions)
        yield Finding("privileges", "problem", found, grants)


def _creating(connection: Connection) -> Iterator[Finding]:
    for row in query(
        connection,
        """
        SELECT n.nspname AS schema, string_agg(CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END, ', ') AS roles
          FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
         WHERE n.nspname IN ('jobqueue', 'jobqueue_internal') AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
           AND a.grantee <> (SELECT c.relowner FROM pg_class AS c JOIN pg_namespace AS i ON i.oid = c.relnamespace
                              WHERE i.nspname = 'jobqueue_internal' AND c.relname = 'schema_version')
         GROUP BY n.nspname ORDER BY n.nspname
        """,
    ):
        found = f"functions that {row.roles} can create in the schema {row.schema} could run with the privileges of its owner"
        yield Finding("privileges", "warning", found, f"REVOKE CREATE ON SCHEMA {row.schema} FROM {row.roles}")


def partitions(connection: Connection) -> list[Finding]:
    """Find days without a partition, jobs outside of all daily partitions, and partitions that nodes cannot drop."""
    findings = [finding for parent in ("succeeded_jobs", "cancelled_jobs") for finding in _partitions_of(connection, parent)]
    return findings or [
        Finding("partitions", "ok", "the partitions of today and tomorrow exist, and no job is outside of a partition")
    ]


def _partitions_of(connection: Connection, parent: str) -> Iterator[Finding]:
    days = query(
        connection,
        """
        SELECT d.name FROM unnest('{today,tomorrow}'::text[]) WITH ORDINALITY AS d (name, place)
         CROSS JOIN LATERAL (SELECT now() + (d.place - 1) * interval '1 day' AS moment) AS m
         WHERE NOT EXISTS (SELECT FROM jobqueue_internal.partitions(%s) AS p WHERE m.moment >= p.since AND m.moment < p.until)
         ORDER BY d.place
        """,
        parent,
    )
    if days:
        found = f"{parent} has no partition for {' and '.join(day.name for day in days)}: jobs that end then are deleted in batches"
        advice = 'nodes create partitions at their start and every hour: look for "partitions cannot be created" in their logs'
        yield Finding("partitions", "warning", found, advice)
    [stray] = query(connection, f"SELECT count(*) AS jobs FROM (SELECT FROM jobqueue_internal.{parent}_default LIMIT {FEW}) AS d")  # noqa: S608 - a constant
    if stray.jobs:
        many = count(stray.jobs, "job") if stray.jobs < FEW else f"{FEW:,} jobs or more"
        found = f"{many} in {parent}_default, from a day that had no partition"
        yield Finding("partitions", "warning", found, "none needed: nodes delete these jobs after their retention period")
    readers = query(
        connection,
        """
        SELECT v.oid::regclass::text AS view, CASE v.relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END AS kind,
               array_agg(DISTINCT p.name ORDER BY p.name) AS partitions
          FROM jobqueue_internal.partitions(%s) AS p
          JOIN pg_depend AS d ON d.refobjid = to_regclass('jobqueue_internal.' || quote_ident(p.name))
                             AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass
          JOIN pg_rewrite AS r ON r.oid = d.objid JOIN pg_class AS v ON v.oid = r.ev_class
         GROUP BY v.oid, v.relkind ORDER BY 1
        """,
        parent,
    )
    for row in readers:
        found = f"{row.view} reads {names(row.partitions)}: nodes cannot drop these, and delete their old jobs in batches"
        advice = f"DROP {row.kind} {row.view}; create it again on {connection.schema}_internal.finished_jobs"
        yield Finding("partitions", "warning", found, advice)
