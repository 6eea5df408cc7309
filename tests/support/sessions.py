"""Wait for what the sessions of a PostgreSQL server do: for locks, for a standby, or for their end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg

from tests.support.postgres import Database
from tests.support.waiting import until, wait_for

WAITING_FOR_LOCK = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s"


WAITING_FOR_STANDBY = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = %s"


async def waits_for_a_lock(sql: Database, application: str) -> None:
    """Wait until a connection with this name waits for another transaction."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    await until(lambda: sql.value(waiting, application))


@asynccontextmanager
async def connections_closed(database: Database) -> AsyncIterator[None]:
    """On exit, wait until the connections opened meanwhile are closed. The server then has their counters."""
    pids = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    before = set(database.rows(pids))
    yield
    await until(lambda: set(database.rows(pids)) <= before)


def set_standbys(database: Database, names: str) -> None:
    """Set the standbys for which each commit waits."""
    database.rows(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    database.rows("SELECT pg_reload_conf()")


@contextmanager
def without_standby(database: Database) -> Iterator[None]:
    """Make every commit wait for a standby that does not exist."""
    with (
        ThreadPoolExecutor() as pool,
        psycopg.connect(database.url, autocommit=True, application_name="probe", options="-c synchronous_commit=on") as probe,
    ):

        def commit() -> Any:
            return probe.execute("SELECT pg_logical_emit_message(true, 'probe', '')")

        set_standbys(database, "nobody")
        try:
            # A commit that waits shows that the setting is in force.
            commits = [pool.submit(commit)]

            def waits() -> bool:
                if commits[-1].done():
                    commits.append(pool.submit(commit))
                return bool(database.rows(WAITING_FOR_STANDBY, "probe"))

            wait_for(waits, "a commit waits for the standby")
            yield
        finally:
            set_standbys(database, "")
