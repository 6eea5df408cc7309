"""The storage and SQL: transactions of submitters, notifications, locks, broken connections, partitions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.job import ClaimedJob, NewJob, Note, Outcome
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles.run import Claim, Want
from tests.support.postgres import Database
from tests.support.sessions import waits_for_a_lock
from tests.support.storage import Driver, new_id, open_driver

# --------------------------------------------------------------------------------------------------------------------- submit


async def test_submitting_again_first_ends_the_session_of_the_lost_connection(driver: Driver, any_database_url: str) -> None:
    document = documents.encode(NewJob(id=new_id()))
    submit = "SELECT jobqueue.submit_many(%s::jsonb)"
    for in_transaction in (False, True):  # before the statement arrives, or before its commit
        with psycopg.connect(any_database_url, autocommit=True, application_name="jobqueue submit") as lost:
            row = lost.execute("SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
            assert row is not None
            if in_transaction:
                lost.execute("BEGIN")
                lost.execute(submit, (documents.join([document]),))
            with trio.fail_after(60):
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
    with pytest.raises(psycopg.errors.CheckViolation, match="priority must be an integer from 0 to 1000000"):
        sql.value("SELECT jobqueue.submit('mail', priority => -1)")
    with pytest.raises(psycopg.DataError):
        sql.value("SELECT jobqueue.submit('mail', '{\"text\": \"\\u0000\"}')")
    assert await driver.claim() == []


async def test_a_job_for_the_end_of_time_is_refused_and_one_for_the_last_year_is_kept(sql: Database, driver: Driver) -> None:
    for batch in ('[{}, {"run_at": "infinity"}]', '[{"delay": "Infinity"}]', '[{"delay": "NaN"}]', '[{"delay": 1e300}]'):
        with pytest.raises(psycopg.errors.CheckViolation, match=r"(run_at|delay) must be"):
            sql.rows("SELECT jobqueue.submit_many(%s)", batch)
    for moment in ("infinity", "-infinity", "294276-12-31"):
        with pytest.raises(psycopg.errors.CheckViolation, match="run_at must be"):
            sql.value("SELECT jobqueue.submit('mail', run_at => %s::timestamptz)", moment)
    assert sql.states() == {}
    past = sql.value("SELECT jobqueue.submit('mail', run_at => '0001-01-01T00:00:00Z')")
    far = sql.value("SELECT jobqueue.submit('mail', run_at => '9999-12-31T23:59:59Z')")
    for moment in ("infinity", "-infinity"):
        with pytest.raises(psycopg.errors.CheckViolation, match="run_at_finite"):
            sql.rows("UPDATE jobqueue_internal.scheduled_jobs SET run_at = %s", moment)
        with pytest.raises(psycopg.errors.CheckViolation, match="times_finite"):
            sql.rows("UPDATE jobqueue_internal.pending_jobs SET rank = %s", moment)
    promotion = await driver.store.promote()
    assert (promotion.jobs, promotion.next_due) == (0, pytest.approx(7_973 * 365.2425 * 86_400, rel=1e-3))
    assert [job.id for job in await driver.claim()] == [str(past)]
    assert await driver.store.cancel(str(far))


async def test_no_queue_ages_so_slowly_that_a_priority_has_no_rank(sql: Database, driver: Driver) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="aging_interval_range"):
        sql.rows("INSERT INTO jobqueue_internal.queues (name, aging_interval) VALUES ('slow', '1 year')")
    for state in ("scheduled", "inflight"):
        await driver.submit(queue="slow", priority=1_000_000, delay=0.0 if state == "scheduled" else None)
    sql.rows("INSERT INTO jobqueue_internal.queues (name, aging_interval) VALUES ('slow', '1 day')")
    assert len(await driver.claim(queue="slow")) == 2
    assert await driver.store.leave(driver.node) == 2


async def test_an_id_that_is_given_again_is_the_same_job_whatever_became_of_it(sql: Database, driver: Driver) -> None:
    for state in ("scheduled", "pending", "inflight", "succeeded", "dead"):
        made = await driver.in_state(state)
        given = made if isinstance(made, str) else made.id
        batch = documents.join(
            [documents.encode({"id": job_id, "payload": {"again": True}}) for job_id in (given, new_id(), given)]
        )
        before = sum(sql.states().values())
        assert [str(job_id) for job_id in sql.value("SELECT jobqueue.submit_many(%s::jsonb)", batch)][::2] == [given, given]
        assert sum(sql.states().values()) == before + 1
        assert sql.rows("SELECT state, payload FROM jobqueue.jobs WHERE id = %s", given) == [(state, {})]
        sql.rows("DELETE FROM jobqueue_internal.pending_jobs")


async def test_ids_made_by_the_database_are_version_7_and_sort_by_time(sql: Database, driver: Driver) -> None:
    assert driver.node
    ids = []
    for _ in range(3):
        ids.append(str(sql.value("SELECT jobqueue.submit('mail')")))
        await trio.sleep(0.002)
    assert [job_id[14] for job_id in ids] == ["7"] * 3
    assert {job_id[19] for job_id in ids} <= set("89ab")
    assert ids == sorted(ids)


async def test_submit_notifies_listeners_unless_asked_not_to(driver: Driver, any_database_url: str) -> None:
    with psycopg.connect(any_database_url, autocommit=True) as listener:
        listener.execute("LISTEN jobqueue")
        await driver.submit()
        listener.execute("SELECT jobqueue.submit('mail', queue => 'post')")
        [heard] = [notify.payload for notify in listener.notifies(timeout=60, stop_after=1)]
    [job] = await driver.claim(queue="post")
    rank, queue = heard.split(" ")
    assert (float(rank), queue) == (job.rank, "post")


# ----------------------------------------------------------------------------------------------------------------------- claim


async def test_claim_takes_the_best_rank_first_priority_and_age_together(driver: Driver, sql: Database) -> None:
    # With an aging interval of one second, two seconds of waiting are worth more than a priority of one.
    old, urgent, plain = await driver.submit_many({}, {"priority": 1}, {})
    sql.rows("UPDATE jobqueue_internal.pending_jobs SET rank = rank - interval '2 seconds' WHERE id = %s RETURNING 1", old)
    assert [(await driver.claim_one()).id for _ in range(3)] == [old, urgent, plain]


async def test_the_aging_interval_of_a_queue_says_what_waiting_is_worth(driver: Driver, sql: Database) -> None:
    sql.rows("INSERT INTO jobqueue_internal.queues (name, aging_interval) VALUES ('slow', '1 hour') RETURNING 1")
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
    # SKIP LOCKED may skip a row that the other claim does not take. Such jobs are still pending.
    claimed.extend(job.id for job in await driver.claim(500))
    assert len(claimed) == len(set(claimed)) == 500


# --------------------------------------------------------------------------------------------------------------------- leases


async def test_a_completion_that_is_being_written_wins_over_recovery(driver: Driver, sql: Database, any_database_url: str) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    outcome = documents.join([documents.encode({"id": run.id, "claims": run.claims, "outcome": "succeeded"})])
    with psycopg.connect(any_database_url) as finishing:
        finishing.execute("SELECT jobqueue_internal.finish(%s, %s::jsonb)", (driver.node, outcome))
        sql.rows("DELETE FROM jobqueue_internal.nodes RETURNING 1")
        assert await driver.recover() == []
        finishing.commit()
    assert await driver.state(run.id) == "succeeded"


# ----------------------------------------------------------------------------------------------------- one id in two tables

SECOND_ROWS = {
    "pending": "pending_jobs (rank, {0}) SELECT created_at, {0}",
    "scheduled": "scheduled_jobs (run_at, {0}) SELECT created_at, {0}",
    "inflight": "inflight_jobs (node_id, claimed_at, max_retries, attempt, claims, errors, {0})"
    " SELECT gen_random_uuid(), created_at, 3, 1, 1, '[]', {0}",
    "dead": "dead_jobs (reason, attempt, claims, died_at, errors, {0}) SELECT 'before', 1, 1, created_at, '[]', {0}",
}


def add_second_row(sql: Database, job_id: str, state: str) -> None:
    """Insert a second row of a job in another state, which only SQL allows."""
    insert = SECOND_ROWS[state].format("id, queue, kind, priority, payload, created_at, available_since")
    sql.rows(f"INSERT INTO jobqueue_internal.{insert} FROM jobqueue.jobs WHERE id = %s", job_id)


async def test_a_second_row_of_a_running_job_waits_for_its_end_and_blocks_no_other_job(driver: Driver, sql: Database) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    add_second_row(sql, run.id, "pending")
    others = await driver.submit_many({}, {})
    assert [job.id for job in await driver.claim(2)] == others
    assert await driver.finish(run, "succeeded")
    assert [job.id for job in await driver.claim()] == [run.id]


@pytest.mark.parametrize(
    ("verb", "arrives"),
    [
        ("promote", "pending"),
        ("leave", "pending"),
        ("recover", "pending"),
        ("recover", "dead"),
        ("released", "pending"),
        ("retry", "scheduled"),
        ("snoozed", "scheduled"),
        ("dead", "dead"),
    ],
)
async def test_an_existing_row_replaces_one_that_arrives_and_the_neighbor_moves(
    driver: Driver, sql: Database, verb: str, arrives: str
) -> None:
    twice, once = await driver.submit_many(*({"max_retries": 0 if arrives == "dead" else 3},) * 2)
    runs = await driver.claim()
    if verb == "promote":
        for run in runs:
            await driver.finish(run, "retry", delay=0.0)
    add_second_row(sql, twice, arrives)
    match verb:
        case "promote":
            await driver.store.promote()
        case "leave":
            await driver.store.leave(driver.node)
        case "recover":
            await driver.end_lease()
            assert {recovered.id for recovered in await driver.recover()} == {twice, once}
        case _:
            said: Any = verb
            outcomes = [Outcome(id=run.id, claims=run.claims, outcome=said, delay=9.0, reason="now") for run in runs]
            assert await driver.store.finish(driver.node, outcomes) == set()
    assert sql.states() == {arrives: 2}


# ------------------------------------------------------------------------------------------------------------------- steering


@pytest.mark.parametrize(
    ("end", "claimed", "state"),
    [
        ("COMMIT", False, "cancelled"),
        ("ROLLBACK", False, "cancelled"),
        ("COMMIT", True, "inflight"),
        ("ROLLBACK", True, "cancelled"),
    ],
)
async def test_cancelling_a_job_that_is_being_promoted_cancels_it_or_has_it_cancelled_where_it_runs(
    driver: Driver, sql: Database, *, end: str, claimed: bool, state: str
) -> None:
    job_id = await driver.submit(delay=0.0001)
    await trio.sleep(0.01)
    said: list[bool] = []

    async def cancel() -> None:
        said.append(await driver.store.cancel(job_id))

    with psycopg.connect(sql.url) as promoting:
        promoting.execute("SELECT jobqueue_internal.promote()")
        if claimed:
            promoting.execute("SELECT jobqueue_internal.claim(%s, '{\"default\": [1, null]}')", (driver.node,))
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel)
                await waits_for_a_lock(sql, "jobqueue inspect")
                promoting.execute(end.encode())
    assert said == [True]
    marked = sql.value("SELECT cancel_requested_at IS NOT NULL FROM jobqueue.jobs")
    assert marked is (state == "inflight")
    assert sql.states() == {state: 1}


async def test_a_note_does_not_wait_for_locks_and_reports_the_notes_that_it_wrote(driver: Driver, sql: Database) -> None:
    """An open transaction cancels one of two jobs. The note of the other one is written at once."""
    await driver.submit_many({}, {})
    locked, free = await driver.claim()
    notes = [Note(run.id, run.claims, msgspec.Raw(b'{"checkpoint":1}')) for run in (locked, free)]
    with psycopg.connect(sql.url) as cancelling:
        cancelling.execute("SELECT jobqueue_internal.cancel_now(%s)", (locked.id,))
        with trio.fail_after(60):
            assert await driver.store.note(driver.node, notes) == {free.id}
        cancelling.execute(b"COMMIT")
    assert await driver.store.note(driver.node, notes) == {free.id, locked.id}
    saved = "SELECT saved FROM jobqueue_internal.inflight_jobs WHERE id = %s"
    assert [sql.value(saved, run.id) for run in (locked, free)] == [{"checkpoint": 1}] * 2


async def test_an_open_transaction_that_cancels_a_running_job_blocks_nobody(driver: Driver, sql: Database) -> None:
    await driver.submit_many({}, {}, {})
    first, second, third = await driver.claim()
    with psycopg.connect(sql.url) as cancelling:
        for run in (first, second, third):
            assert cancelling.execute("SELECT jobqueue.cancel(%s)", (run.id,)).fetchone() == (True,)
        with trio.fail_after(60):
            assert await driver.finish(first, "released")
            assert await driver.finish(second, "succeeded")
            assert await driver.store.heartbeat(driver.node, lease=30) == []
        cancelling.execute(b"COMMIT")
    # The first one was released meanwhile, so it is cancelled as a waiting job.
    assert await driver.store.heartbeat(driver.node, lease=30) == [(third.id, third.claims)]
    assert [await driver.state(run.id) for run in (first, second, third)] == ["cancelled", "succeeded", "inflight"]
    assert sql.value("SELECT count(*) FROM jobqueue_internal.cancel_requests") == 0


async def test_a_heartbeat_does_not_wait_for_a_row_that_is_to_be_marked(driver: Driver, sql: Database) -> None:
    await driver.submit_many({}, {})
    runs = await driver.claim()
    with psycopg.connect(sql.url) as holding:
        holding.execute("SELECT FROM jobqueue_internal.inflight_jobs WHERE id = %s FOR UPDATE", (runs[0].id,))
        for run in runs:
            sql.value("SELECT jobqueue.cancel(%s)", run.id)
        with trio.fail_after(60):
            assert await driver.store.heartbeat(driver.node, lease=30) is not None
        holding.execute(b"COMMIT")
    assert sorted(await driver.store.heartbeat(driver.node, lease=30) or ()) == sorted((run.id, run.claims) for run in runs)


async def test_a_cancellation_is_notified_when_it_is_committed_and_with_its_run_when_it_is_marked(
    driver: Driver, sql: Database
) -> None:
    await driver.submit()
    run = await driver.claim_one()
    with psycopg.connect(sql.url, autocommit=True) as listener, psycopg.connect(sql.url) as cancelling:
        listener.execute("LISTEN jobqueue_cancel")
        cancelling.execute("SELECT jobqueue.cancel(%s)", (run.id,))
        assert list(listener.notifies(timeout=0.1)) == []
        assert await driver.store.heartbeat(driver.node, lease=30) == []
        cancelling.execute(b"COMMIT")
        [asked] = listener.notifies(timeout=60, stop_after=1)
        assert await driver.store.heartbeat(driver.node, lease=30) == [(run.id, run.claims)]
        [told] = listener.notifies(timeout=60, stop_after=1)
    assert (asked.payload, told.payload) == ("", f"{run.id} {run.claims}")


# ----------------------------------------------------------------------------------------------- connections, schema, upkeep


async def test_a_claim_that_fails_does_not_fail_the_submission_that_it_goes_along_with(driver: Driver, sql: Database) -> None:
    sql.rows("""
        CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$not now$$; END';
        CREATE TRIGGER refuse BEFORE INSERT ON jobqueue_internal.inflight_jobs FOR EACH ROW EXECUTE FUNCTION public.refuse()
    """)
    stuck = NewJob(id=new_id(), kind="stuck")
    along = Claim(driver.node, {"default": Want(2)}, b"{}")
    submitted = await driver.store.submit([documents.encode(stuck)], wake=False, along=along)
    assert submitted.claimed is None
    assert submitted.best.keys() == {"default"}
    assert await driver.state(stuck.id) == "pending"


async def test_a_broken_connection_is_told_from_a_refusal_and_the_next_call_works(driver: Driver, sql: Database) -> None:
    await driver.submit()
    with psycopg.connect(sql.url) as holder, pytest.RaisesGroup(ConnectionLost):
        holder.execute("LOCK TABLE jobqueue_internal.pending_jobs IN SHARE MODE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.submit)
            await waits_for_a_lock(sql, "jobqueue submit")
            sql.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jobqueue submit'")
    job_id = await driver.submit()
    assert await driver.state(job_id) == "pending"


async def test_no_server_is_unavailable() -> None:
    store = PostgresStore("postgresql://127.0.0.1:1/nothing")
    with pytest.raises(DatabaseUnavailable, match="cannot connect"):
        await store.promote()


async def test_retention_drops_whole_days_and_old_dead_letters(driver: Driver, sql: Database) -> None:
    with psycopg.connect(sql.url, autocommit=True) as connection:
        connection.execute("""
            CREATE TABLE jobqueue_internal.succeeded_jobs_20200101 PARTITION OF jobqueue_internal.succeeded_jobs
                FOR VALUES FROM ('2020-01-01 00:00+00') TO ('2020-01-02 00:00+00')
        """)
    for state in ("succeeded", "dead"):
        await driver.in_state(state)
    assert await driver.store.maintain(keep_finished=3600, keep_cancelled=3600) == (1, [])
    assert sql.states() == {"succeeded": 1, "dead": 1}
    sql.rows("UPDATE jobqueue_internal.dead_jobs SET died_at = now() - interval '2 hours' RETURNING 1")
    await driver.store.prune(keep_finished=3600, keep_cancelled=3600, keep_dead=3600)
    assert sql.states() == {"succeeded": 1}


async def test_a_completion_on_a_day_without_a_partition_is_kept(driver: Driver, sql: Database) -> None:
    for (name,) in sql.rows("SELECT relname FROM pg_class WHERE relname ~ '^succeeded_jobs_[0-9]{8}$'"):
        with psycopg.connect(sql.url, autocommit=True) as connection:
            connection.execute(f"DROP TABLE jobqueue_internal.{name}".encode())
    await driver.in_state("succeeded")
    await driver.store.maintain(keep_finished=86_400, keep_cancelled=86_400)
    assert sql.states() == {"succeeded": 1}


FINISHED_IN_TWO_DAYS = """
    INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at,
        available_since, finished_at, errors)
    VALUES (gen_random_uuid(), 'default', 'default', 0, 'succeeded', '{}', 1, 1, now(), now(), now() + interval '2 days', '[]')
"""


@pytest.mark.parametrize("when", ["before", "in between"])
async def test_a_completion_of_a_coming_day_does_not_stop_upkeep(when: str, driver: Driver, sql: Database) -> None:
    partitions = "SELECT relname FROM pg_class WHERE relname ~ '^succeeded_jobs_[0-9]{8}$'"
    days = sorted(name for (name,) in sql.rows(partitions))
    sql.rows(f"DROP TABLE jobqueue_internal.{days.pop()}")

    async def maintain() -> None:
        await driver.store.maintain(keep_finished=86_400, keep_cancelled=86_400)

    with psycopg.connect(sql.url) as finishing, trio.fail_after(60):
        finishing.execute(FINISHED_IN_TWO_DAYS)  # its partition does not exist yet, so the row goes to the default partition
        async with trio.open_nursery() as nursery:
            if when == "before":
                finishing.commit()
            nursery.start_soon(maintain)
            if when == "in between":
                await waits_for_a_lock(sql, "jobqueue housekeeping")
                finishing.commit()
    assert sorted(name for (name,) in sql.rows(partitions)) == days
    assert sql.states() == {"succeeded": 1}
    await driver.in_state("succeeded")
    await maintain()
    assert sql.states() == {"succeeded": 2}


async def test_an_id_in_two_concurrent_submissions_is_one_job_and_neither_fails(any_database_url: str, driver: Driver) -> None:
    batch = documents.join([documents.encode({"id": new_id()})])
    first, second = (psycopg.connect(any_database_url) for _ in range(2))
    with first, second, ThreadPoolExecutor() as threads:
        first.execute("SELECT jobqueue.submit_many(%s::jsonb)", [batch])
        waiting = threads.submit(second.execute, "SELECT jobqueue.submit_many(%s::jsonb)", [batch])
        await trio.sleep(0.2)
        assert not waiting.done()
        first.commit()
        await trio.to_thread.run_sync(waiting.result, 60)
        second.commit()
    assert len(await driver.claim()) == 1


async def test_an_id_that_is_given_as_due_and_as_scheduled_is_the_first_of_both(sql: Database, driver: Driver) -> None:
    assert driver.node
    given = new_id()
    batch = documents.join([documents.encode({"id": given}), documents.encode({"id": given, "delay": 60})])
    sql.value("SELECT jobqueue.submit_many(%s::jsonb)", batch)
    assert sql.states() == {"pending": 1}


@pytest.mark.parametrize("verb", ["recover", "leave_node", "retry", "snoozed", "released"])
async def test_whatever_takes_a_job_back_sees_a_request_to_cancel_that_somebody_has_locked(
    driver: Driver, sql: Database, verb: str
) -> None:
    await driver.submit(max_retries=1)
    job = await driver.claim_one()
    assert sql.value("SELECT jobqueue.cancel(%s)", job.id) is True
    sql.rows("DELETE FROM jobqueue_internal.nodes")
    with psycopg.connect(sql.url) as heartbeat:
        heartbeat.execute("SELECT FROM jobqueue_internal.cancel_requests FOR UPDATE")
        if verb == "recover":
            sql.rows("SELECT jobqueue_internal.recover()")
        elif verb == "leave_node":
            sql.rows("SELECT jobqueue_internal.leave_node(%s)", driver.node)
        else:
            outcome = {"id": job.id, "claims": job.claims, "outcome": verb, "delay": 60}
            sql.rows("SELECT jobqueue_internal.finish(%s, %s::jsonb)", driver.node, documents.join([documents.encode(outcome)]))
    assert sql.value("SELECT state FROM jobqueue.jobs WHERE id = %s", job.id) == "cancelled"
