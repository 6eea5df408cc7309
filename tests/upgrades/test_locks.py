"""The locks that the parts of schema.sql take on tables and views that exist before."""

from __future__ import annotations

import psycopg
import pytest

from jobqueue.storage import schema
from tests.upgrades.dumps import VERSION_1_SQL, load

pytestmark = pytest.mark.no_schema

LOCKS = """
    SELECT DISTINCT c.oid::regclass::text, l.mode FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
     WHERE l.pid = pg_backend_pid() AND c.oid = ANY (%s) AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
"""


def test_an_upgrade_and_a_repair_lock_no_table_that_submissions_and_claims_write(any_database_url: str) -> None:
    load(any_database_url, VERSION_1_SQL)
    for tables in [{"schema_version", "nodes"}, set[str]()]:
        with psycopg.connect(any_database_url, options="-c search_path=pg_catalog") as connection:
            before = connection.execute("SELECT array_agg(oid) FROM pg_class WHERE relkind IN ('r', 'p')").fetchone()
            connection.execute(schema.script().encode())
            locked = connection.execute(LOCKS, before).fetchall()
        assert {name.removeprefix("jobqueue_internal.") for name, _ in locked} == tables
