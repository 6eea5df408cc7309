"""With a publication of all tables, PostgreSQL rejects updates and deletes in tables without a replica identity."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobqueue.metrics import Totals
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage import schema
from tests.support import postgres
from tests.support.postgres import SERVERS, Database
from tests.support.storage import open_driver

pytestmark = pytest.mark.slow

IDENTIFIED = """
    SELECT c.oid::regclass::text,
           c.relreplident = 'f'
           OR c.relreplident = 'd' AND EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
      FROM pg_class AS c WHERE c.relnamespace = 'jobqueue_internal'::regnamespace AND c.relkind IN ('r', 'p')
"""


@pytest.fixture(scope="module", params=sorted(SERVERS))
def logical(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server with the WAL level that subscribers need."""
    settings = {**postgres.FAST, "wal_level": "logical"}
    with postgres.directory() as directory, postgres.server(SERVERS[request.param], directory / "data", settings=settings) as url:
        yield url


def test_every_table_has_a_replica_identity(sql: Database) -> None:
    sql.rows(schema.script())
    tables = dict(sql.rows(IDENTIFIED))
    assert len(tables) > 25
    assert [name for name, identified in tables.items() if not identified] == []
    # Make two tables without a replica identity: one as an earlier version left it, and a partition that a user creates.
    sql.rows("ALTER TABLE jobqueue_internal.cancel_requests REPLICA IDENTITY DEFAULT")
    sql.rows(
        "CREATE TABLE jobqueue.mine PARTITION OF jobqueue_internal.succeeded_jobs FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')"
    )
    sql.rows(schema.script())
    assert [name for name, identified in sql.rows(IDENTIFIED) if not identified] == []


async def test_jobs_live_and_are_forgotten_beside_a_publication_of_all_tables(logical: str) -> None:
    with postgres.database(logical) as url:
        async with open_driver(url) as driver:
            sql = Database(url)
            sql.rows("CREATE PUBLICATION everything FOR ALL TABLES")
            sql.rows("SELECT pg_create_logical_replication_slot('reader', 'pgoutput')")
            store = driver.store
            await store.configure("default", QueueSettings(key_max_running=1, key_rate=100.0, max_running=50, rate=100.0))
            for n in range(3):
                sql.rows(
                    "SELECT jobqueue.submit('default', concurrency_key => 'account 7', unique_key => %s, \"group\" => 'acme')",
                    f"u{n}",
                )
            assert (await store.admit()).checks == 3
            [first] = await driver.claim()
            sql.rows("SELECT jobqueue.cancel(%s)", first.id)
            assert await store.heartbeat(driver.node, lease=60) == [(first.id, first.claims)]
            assert await driver.finish(first, "cancelled")
            await store.admit()
            [second] = await driver.claim()
            assert await driver.finish(second, "succeeded")
            assert await store.recover() == []
            await store.record(Totals(1, 1, 0, 0), sample=True)
            sql.rows(
                "SELECT jobqueue.submit('default', run_at => now() + interval '1 hour', expires_at => now() + interval '2 hours')"
            )
            sql.rows("UPDATE jobqueue_internal.scheduled_jobs SET run_at = now() - interval '1 second'")
            await store.promote()
            await driver.in_state("dead")
            sql.rows("UPDATE jobqueue_internal.finished_jobs SET finished_at = '2020-01-01' WHERE state = 'succeeded'")
            await store.maintain(keep_finished=86_400, keep_cancelled=86_400)
            assert await store.prune(keep_finished=86_400, keep_cancelled=86_400, keep_dead=0) == 2
            sql.rows("UPDATE jobqueue_internal.keys SET expires_at = now()")
            assert await store.prune_keys() > 0
            await store.leave(driver.node)
            assert "cancelled" in sql.states()
            sql.rows("SELECT pg_drop_replication_slot('reader')")
            sql.close()
