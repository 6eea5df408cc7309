"""What the storage promises to SQL: submitters' own transactions, listeners, locks, connections that break, partitions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.job import ClaimedJob, NewJob
from jobqueue.storage.store import Store
from tests.conftest import Database
from tests.storage import Driver, new_id, open_driver


@pytest.fixture
async def driver(any_database_url: str) -> AsyncIterator[Driver]:
    async with open_driver(any_database_url) as opened:
        yield opened


@pytest.fixture
def sql(any_database_url: str) -> Iterator[Database]:
    database = Database(any_database_url)
    yield database
    database.close()


# --------------------------------------------------------------------------------------------------------------------- submit


async def test_submitting_again_first_ends_the_session_of_the_lost_connection(driver: Driver, any_database_url: str) -> None:
    document = documents.encode(NewJob(id=new_id()))
    submit = "SELECT jobqueue.submit_many(%s::jsonb)"
    for in_transaction in (False, True):  # the statement is still on its way to the server, or its commit has not happened yet
        with psycopg.connect(any_database_url, autocommit=True, application_name="jobqueue submit") as lost:
            row = lost.execute("SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
            assert row is not None
            if in_transaction:
                lost.execute("BEGIN")
                lost.execute(submit, (documents.join([document]),))
            with trio.fail_after(5):
                await driver.store.submit_again([document], backend=(lost.info.backend_pid, row[0]))
            with pytest.raises(psycopg.OperationalError):
                lost.execute("COMMIT" if in_transaction else submit, None if in_transaction else (documents.join([document]),))
    assert len(await driver.claim()) == 1


# ---------------------------------------------------------------------------------------------------------------------- from SQL


async def test_sql_submit_is_part_of_the_callers_transaction(driver: Driver, any_database_url: str) -> None:
    with psycopg.connect(any_database_url) as connection:
        connection.execute("SELECT jobqueue.submit('mail', '{\"n\": 1}')")
        connection.rollback()
        assert await driver.claim() == []
        row = connection.execute("SELECT jobqueue.submit('mail', '{\"n\": 2}', priority => 3, queue => 'default')").fetchone()
        assert await driver.claim() == []
        connection.commit()
    [job] = await driver.claim()
    assert row is not None
    assert (job.id, job.kind, bytes(job.payload), job.priority) == (str(row[0]), "mail", b'{"n": 2}', 3)


async def test_sql_submit_refuses_a_bad_value_by_name(sql: Database, driver: Driver) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="priority_range"):
        sql.value("SELECT jobqueue.submit('mail', priority => -1)")
    with pytest.raises(psycopg.DataError):
        sql.value("SELECT jobqueue.submit('mail', '{\"text\": \"\\u0000\"}')")
    assert await driver.claim() == []


async def test_ids_made_by_the_database_are_version_7_and_sort_by_time(sql: Database, driver: Driver) -> None:
    assert driver.node
    ids = []
    for _ in range(3):
        ids.append(str(sql.value("SELECT jobqueue.submit('mail')")))
        await trio.sleep(0.002)
    assert [job_id[14] for job_id in ids] == ["7"] * 3
    assert {job_id[19] for job_id in ids} <= set("89ab")
    assert ids == sorted(ids)


async def test_submit_tells_listeners_unless_asked_not_to(driver: Driver, any_database_url: str) -> None:
    with psycopg.connect(any_database_url, autocommit=True) as listener:
        listener.execute("LISTEN jobqueue")
        await driver.submit()
        listener.execute("SELECT jobqueue.submit('mail', queue => 'post')")
        [heard] = [notify.payload for notify in listener.notifies(timeout=5, stop_after=1)]
    [job] = await driver.claim(queue="post")
    rank, queue = heard.split(" ")
    assert (float(rank), queue) == (job.rank, "post")


# ----------------------------------------------------------------------------------------------------------------------- claim


async def test_claim_takes_the_best_rank_first_priority_and_age_together(driver: Driver, sql: Database) -> None:
    # With an aging interval of one second, two seconds of waiting are worth more than a priority of one.
    old, urgent, plain = await driver.submit_many({}, {"priority": 1}, {})
    sql.rows("UPDATE jobqueue.pending_jobs SET rank = rank - interval '2 seconds' WHERE id = %s RETURNING 1", old)
    assert [(await driver.claim_one()).id for _ in range(3)] == [old, urgent, plain]


async def test_the_aging_interval_of_a_queue_says_what_waiting_is_worth(driver: Driver, sql: Database) -> None:
    sql.rows("INSERT INTO jobqueue.queues (name, aging_interval) VALUES ('slow', '1 hour') RETURNING 1")
    await driver.submit(queue="slow", priority=2)
    [job] = await driver.claim(queue="slow")
    assert job.rank == pytest.approx(job.created_at - 7200, abs=0.001)


async def test_concurrent_claims_never_share_a_job(driver: Driver, any_database_url: str) -> None:
    await driver.submit_many(*({} for _ in range(500)))
    claimed: list[str] = []

    async def claim_all() -> None:
        async with open_driver(any_database_url) as other:
            while jobs := await other.claim(7):
                claimed.extend(job.id for job in jobs)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(claim_all)
    # SKIP LOCKED may leave a row to a claim that then took another: what is left is still pending.
    claimed.extend(job.id for job in await driver.claim(500))
    assert len(claimed) == len(set(claimed)) == 500


# --------------------------------------------------------------------------------------------------------------------- leases


async def test_a_completion_that_is_being_written_wins_over_recovery(driver: Driver, sql: Database, any_database_url: str) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    outcome = documents.join([documents.encode({"id": run.id, "claims": run.claims, "outcome": "succeeded"})])
    with psycopg.connect(any_database_url) as finishing:
        finishing.execute("SELECT jobqueue.finish(%s, %s::jsonb)", (driver.node, outcome))
        sql.rows("DELETE FROM jobqueue.nodes RETURNING 1")
        assert await driver.recover() == []
        finishing.commit()
    assert await driver.state(run.id) == "succeeded"


# ----------------------------------------------------------------------------------------------- connections, schema, upkeep


async def test_a_broken_connection_is_told_from_a_refusal_and_the_next_call_works(driver: Driver, sql: Database) -> None:
    await driver.submit()
    sql.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jobqueue submit'")
    with pytest.raises(ConnectionLost):
        await driver.submit()
    job_id = await driver.submit()
    assert await driver.state(job_id) == "pending"


async def test_no_server_is_unavailable() -> None:
    store = Store("postgresql://127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailable, match="cannot connect"):
        await store.promote()


async def test_retention_drops_whole_days_and_old_dead_letters(driver: Driver, sql: Database) -> None:
    with psycopg.connect(sql.url, autocommit=True) as connection:
        connection.execute("""
            CREATE TABLE jobqueue.finished_jobs_20200101 PARTITION OF jobqueue.finished_jobs
                FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')
        """)
    for state in ("succeeded", "dead"):
        await driver.in_state(state)
    assert await driver.store.maintain(keep_finished=3600, keep_dead=3600) == 1
    assert sql.states() == {"succeeded": 1, "dead": 1}
    sql.rows("UPDATE jobqueue.dead_jobs SET died_at = now() - interval '2 hours' RETURNING 1")
    await driver.store.maintain(keep_finished=3600, keep_dead=3600)
    assert sql.states() == {"succeeded": 1}


async def test_a_completion_on_a_day_without_a_partition_is_kept(driver: Driver, sql: Database) -> None:
    for (name,) in sql.rows("SELECT relname FROM pg_class WHERE relname ~ '^finished_jobs_[0-9]{8}$'"):
        with psycopg.connect(sql.url, autocommit=True) as connection:
            connection.execute(f"DROP TABLE jobqueue.{name}".encode())
    await driver.in_state("succeeded")
    await driver.store.maintain(keep_finished=86_400, keep_dead=86_400)
    assert sql.states() == {"succeeded": 1}
