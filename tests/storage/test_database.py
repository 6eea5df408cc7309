"""The database below the store: plans, row versions, broken and silent connections, lost notifications."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.errors import ConnectionLost, DatabaseUnavailable, NotReplicated, RefusedData, StatementFailed, UnreadableAnswer
from jobqueue.job import NewJob
from jobqueue.storage import connection as connections
from jobqueue.storage.lane import Lane
from jobqueue.storage.notifications import Notifications
from tests.support.postgres import Database
from tests.support.sessions import WAITING_FOR_LOCK, WAITING_FOR_STANDBY, connections_closed, without_standby
from tests.support.storage import new_id, open_driver
from tests.support.waiting import until


async def test_claim_and_promote_use_their_index_on_tables_without_statistics(database_url: str, database: Database) -> None:
    scans = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname IN ('pending_jobs', 'scheduled_jobs') ORDER BY relname"
    async with connections_closed(database), open_driver(database_url):
        pass
    before = database.rows(scans)
    async with connections_closed(database), open_driver(database_url) as driver:
        for delay in (None, 0.01):
            await driver.submit_many(*({"delay": delay} for _ in range(5000)))
        await trio.sleep(0.05)
        while (await driver.store.promote()).jobs:
            pass
        claimed = 0
        while jobs := await driver.claim(500):
            claimed += len(jobs)
    assert claimed == 10_000
    assert database.rows(scans) == before


@pytest.mark.parametrize("queues", [0, 1, 16])
async def test_a_heartbeat_is_a_hot_update_for_any_activity(database_url: str, database: Database, queues: int) -> None:
    async with connections_closed(database), open_driver(database_url) as driver:
        for beat in range(50):
            activity = {f"queue {n}": (beat * 1.25, beat / 7) for n in range(queues)}
            assert await driver.store.heartbeat(driver.node, lease=30, activity=activity) == []
    counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = 'jobqueue_internal' AND relname = 'nodes'"
    assert database.rows(counts) == [(50, 50)]


async def test_a_commit_without_confirmation_by_a_standby_is_an_error(database_url: str, database: Database) -> None:
    lane = Lane(database_url, "submit")
    await lane.run(lambda session: session.execute("CREATE TABLE public.effects (n integer)"))
    refused: list[NotReplicated] = []

    async def insert() -> None:
        try:
            await lane.run(lambda session: session.execute("INSERT INTO public.effects VALUES (1)"))
        except NotReplicated as error:
            refused.append(error)

    with without_standby(database):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(insert)
            await until(lambda: database.rows(WAITING_FOR_STANDBY, "jobqueue submit"))
            [[pid]] = database.rows(WAITING_FOR_STANDBY, "jobqueue submit")
            database.rows("SELECT pg_cancel_backend(%s)", pid)
    assert len(refused) == 1
    await lane.run(lambda session: session.execute("INSERT INTO public.effects VALUES (2)"))
    await lane.aclose()
    assert database.rows("SELECT n FROM effects ORDER BY n") == [(1,), (2,)], (
        "the first insert was committed, and the lane still works"
    )


async def test_a_commit_in_doubt_is_settled_by_ending_its_session(database_url: str, database: Database) -> None:
    async with open_driver(database_url) as driver:
        document = documents.encode(NewJob(id=new_id()))
        with psycopg.connect(database_url, autocommit=True, application_name="jobqueue submit") as late:
            row = late.execute("SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
            assert row is not None
            await driver.store.submit_again([document], backend=row)
            [job] = await driver.claim()
            # The late statement has no effect any more. The same id in two states would run twice.
            with pytest.raises(psycopg.OperationalError):
                late.execute("SELECT jobqueue.submit_many(%s::jsonb)", (documents.join([document]),))
    assert database.states() == {"inflight": 1}
    assert job.id in document.decode()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never responds, like a proxy that drops packets."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"postgresql://127.0.0.1:{server.getsockname()[1]}/nothing"


async def test_a_connection_attempt_to_a_silent_server_times_out(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 2)
    with trio.fail_after(60), pytest.raises(DatabaseUnavailable):
        await Lane(silent_server, "submit").run(lambda session: session.execute("SELECT 1"))


async def test_a_statement_without_a_reply_times_out_and_the_next_one_reconnects(database_url: str) -> None:
    lane = Lane(database_url, "submit")
    [pid] = await lane.run(lambda session: session.execute("SELECT pg_backend_pid()"))
    assert lane._session is not None
    lane._session.connection.reply_timeout = 1
    blocker = psycopg.connect(database_url)
    blocker.execute("CREATE TABLE public.locked (n integer)")
    blocker.commit()
    blocker.execute("LOCK TABLE public.locked")
    with pytest.raises(ConnectionLost, match="no reply"):
        await lane.run(lambda session: session.execute_script(b"SET statement_timeout = 0; SELECT * FROM public.locked"))
    blocker.rollback()
    blocker.close()
    [again] = await lane.run(lambda session: session.execute("SELECT pg_backend_pid()"))
    assert again != pid
    await lane.aclose()


@pytest.fixture
async def lane(database_url: str) -> AsyncIterator[Lane]:
    lane = Lane(database_url, "submit")
    yield lane
    await lane.aclose()


@pytest.mark.parametrize("in_loop", [True, False])
async def test_a_call_returns_one_row_from_the_loop_and_from_a_thread(lane: Lane, in_loop: bool) -> None:
    for number in range(3):
        assert await lane.call("SELECT %s::int", number, in_loop=in_loop) == (number,)
    large = "x" * 20_000_000  # larger than the socket buffers, in both directions
    assert await lane.call("SELECT %s::text", large, in_loop=in_loop) == (large,)


@pytest.mark.parametrize("in_loop", [True, False])
async def test_a_failed_call_raises_the_matching_error(lane: Lane, database: Database, in_loop: bool) -> None:
    pid = await lane.call("SELECT pg_backend_pid()", in_loop=in_loop)
    with pytest.raises(RefusedData, match="invalid input syntax"):
        await lane.call("SELECT %s::jsonb", "{", in_loop=in_loop)
    assert await lane.call("SELECT current_setting('statement_timeout')", in_loop=in_loop) == ("28s",)
    await lane.call("SELECT set_config('statement_timeout', '4s', false)", in_loop=in_loop)
    with pytest.raises(DatabaseUnavailable, match="statement timeout"):
        await lane.call("SELECT pg_sleep(600)", in_loop=in_loop)
    assert "statement timeout" in (lane.trouble or "")
    assert await lane.call("SELECT pg_backend_pid()", in_loop=in_loop) == pid
    assert lane.trouble is None
    with pytest.raises(ConnectionLost):
        await lane.call("SELECT pg_terminate_backend(pg_backend_pid())", in_loop=in_loop)
    (other,) = await lane.call("SELECT pg_backend_pid()", in_loop=in_loop)
    assert (other,) != pid
    assert database.value("SELECT pg_terminate_backend(%s)", other) is True
    await until(lambda: not Path(f"/proc/{other}").exists())
    assert await lane.call("SELECT 1", in_loop=in_loop) == (1,), "the lane does not use a connection that the server has closed"


@pytest.mark.parametrize("in_loop", [True, False])
async def test_a_call_without_a_reply_times_out(lane: Lane, in_loop: bool) -> None:
    await lane.call("SELECT 1", in_loop=in_loop)
    assert lane._session is not None
    lane._session.connection.reply_timeout = 0.2
    with pytest.raises(ConnectionLost, match="no reply"):
        await lane.call("SELECT pg_sleep(600)", in_loop=in_loop)
    assert await lane.call("SELECT 1", in_loop=in_loop) == (1,)


@pytest.mark.parametrize("in_loop", [True, False])
async def test_calls_run_one_at_a_time_and_a_cancelled_call_runs_to_its_end(lane: Lane, database: Database, in_loop: bool) -> None:
    await lane.run(lambda connection: connection.execute("CREATE TABLE public.effects (n integer)"))
    sql = "INSERT INTO public.effects SELECT %s FROM pg_sleep(0.1) RETURNING n"
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(partial(lane.call, sql, number, in_loop=in_loop))
    with psycopg.connect(database.url) as holder:
        holder.execute("LOCK TABLE public.effects IN SHARE MODE")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(lane.call, sql, 3, in_loop=in_loop))
            await until(lambda: database.rows(WAITING_FOR_LOCK, "jobqueue submit"))
            nursery.cancel_scope.cancel()
            holder.rollback()
    assert await lane.call("SELECT array_agg(n ORDER BY n) FROM public.effects", in_loop=in_loop) == ([0, 1, 2, 3],)


async def test_a_lost_listener_reconnects_and_reports_it(database_url: str, database: Database) -> None:
    heard: list[str] = []
    notified = trio.Event()
    connected = trio.lowlevel.ParkingLot()
    times = 0

    def listener(payload: str) -> None:
        heard.append(payload)
        notified.set()

    def on_connect() -> None:
        nonlocal times
        times += 1
        connected.unpark_all()

    end_it = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jobqueue listen'"
    async with trio.open_nursery() as nursery:
        await nursery.start(Notifications(database_url, {"jobqueue": listener}, on_connect).run)
        while times < 3:
            with trio.fail_after(60):
                if times:
                    database.rows(end_it)
                await connected.park()
        database.rows("SELECT pg_notify('jobqueue', '1.5 mail')")
        with trio.fail_after(60):
            await notified.wait()
        nursery.cancel_scope.cancel()
    assert heard == ["1.5 mail"]


async def test_a_waiting_lane_does_not_delay_another_lane(database_url: str, database: Database) -> None:
    slow, quick = Lane(database_url, "inspect"), Lane(database_url, "heartbeat")
    database.rows("CREATE TABLE public.locked (n integer)")
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE public.locked")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.run, lambda session: session.execute("SELECT * FROM public.locked"))
            await until(lambda: database.rows(WAITING_FOR_LOCK, "jobqueue inspect"))
            await quick.run(lambda session: session.execute("SELECT 1"))
            assert database.rows(WAITING_FOR_LOCK, "jobqueue inspect"), "the other lane still waits"
            holder.rollback()
    await slow.aclose()
    await quick.aclose()
    assert threading.active_count() < 50


async def test_a_connection_to_a_server_that_became_a_standby_is_replaced(lane: Lane) -> None:
    [before] = await lane.call("SELECT pg_backend_pid()", in_loop=False)
    with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
        await lane.run(lambda session: session.execute_script(b"BEGIN READ ONLY; CREATE TABLE public.effects (n integer)"))
    [after] = await lane.call("SELECT pg_backend_pid()", in_loop=False)
    assert after != before


async def test_a_statement_with_an_unknown_error_raises_statement_failed(lane: Lane) -> None:
    for sql in ("SELECT nothing()", "SELECT * FROM nowhere", "DO $$ BEGIN RAISE 'no'; END $$"):
        with pytest.raises(StatementFailed):
            await lane.run(lambda session, sql=sql: session.execute(sql))
    with pytest.raises(StatementFailed):
        await lane.call("SELECT nothing()", in_loop=True)
    assert await lane.call("SELECT 1", in_loop=True) == (1,)


async def test_a_statement_with_an_unreadable_result_is_in_doubt(lane: Lane) -> None:
    deep = "SELECT (repeat('[', 2000) || repeat(']', 2000))::jsonb"
    for in_loop in (False, True):
        with pytest.raises(UnreadableAnswer, match="RecursionError") as lost:
            await lane.call(deep, in_loop=in_loop)
        assert isinstance(lost.value, ConnectionLost)
        assert await lane.call("SELECT 1", in_loop=in_loop) == (1,)
