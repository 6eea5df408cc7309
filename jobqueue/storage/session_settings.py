"""The settings that each session or transaction sets, so that jobqueue depends on no defaults of a server, database, or role."""

from __future__ import annotations

from jobqueue.storage.connection import Connection

TRANSACTION_TIMEOUT_SINCE = 170_000
"""The first server version with the setting transaction_timeout."""

SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "search_path": "pg_catalog",
    "row_security": "off",  # with "on", a policy could hide rows, so a queue would look empty; with "off", it causes an error
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "exit_on_error": "off",
    "client_min_messages": "warning",  # the warning that a standby did not confirm a commit must arrive
    "plpgsql.extra_errors": "none",
    "plpgsql.extra_warnings": "none",
    "plan_cache_mode": "auto",
    "jit": "off",
    **dict.fromkeys(
        [
            "enable_bitmapscan",
            "enable_hashagg",
            "enable_hashjoin",
            "enable_indexonlyscan",
            "enable_indexscan",
            "enable_material",
            "enable_mergejoin",
            "enable_nestloop",
            "enable_partition_pruning",
            "enable_seqscan",
            "enable_sort",
            "enable_tidscan",
        ],
        "on",
    ),
}
"""Settings of every session. They override the defaults of the server, the database, the role, and the URL. Timeouts are set
separately."""


def pinning(connection: Connection, *, local: bool, **timeouts: str) -> str:
    """Return the SQL that applies `SETTINGS`, and turns synchronous_commit on if it is off.

    Acknowledged jobs must be durable, so "off" is overridden. Values other than "off" stay unchanged.

    Args:
        connection: the connection that will run the SQL. The version of its server decides which settings exist.
        local: apply the settings to the current transaction only, not to the session.
        **timeouts: further settings.
    """
    # jobqueue does not limit the duration of whole transactions, so it turns off the limit that PostgreSQL 17 introduced.
    more = {"transaction_timeout": "0"} if connection.info.server_version >= TRANSACTION_TIMEOUT_SINCE else {}
    scope = str(local).lower()
    calls = [f"set_config('{name}', '{value}', {scope})" for name, value in {**SETTINGS, **more, **timeouts}.items()]
    durable = f"CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', {scope}) END"
    return f"SELECT {', '.join([*calls, durable])}"
