"""What the database does beneath the verbs: plans, row versions, broken and silent connections, lost notifications."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from functools import partial

import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.errors import ConnectionLost, DatabaseUnavailable, NotReplicated, RefusedData, StatementFailed, UnreadableAnswer
from jobqueue.job import NewJob
from jobqueue.storage import database as connections
from jobqueue.storage.database import Lane
from jobqueue.storage.notifications import Notifications
from tests.conftest import Database
from tests.storage import new_id, open_driver


async def test_claim_and_promote_use_their_index_on_tables_without_statistics(database_url: str, database: Database) -> None:
    scans = "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname IN ('pending_jobs', 'scheduled_jobs') ORDER BY relname"
    async with open_driver(database_url):
        pass
    await trio.sleep(0.5)  # the server writes the counters of a connection when it closes
    before = database.rows(scans)
    async with open_driver(database_url) as driver:
        for delay in (None, 0.01):
            await driver.submit_many(*({"delay": delay} for _ in range(5000)))
        await trio.sleep(0.05)
        while (await driver.store.promote()).jobs:
            pass
        claimed = 0
        while jobs := await driver.claim(500):
            claimed += len(jobs)
    assert claimed == 10_000
    await trio.sleep(0.5)
    assert database.rows(scans) == before


@pytest.mark.parametrize("queues", [0, 1, 16])
async def test_a_heartbeat_is_a_hot_update_whatever_it_tells(database_url: str, database: Database, queues: int) -> None:
    async with open_driver(database_url) as driver:
        for beat in range(50):
            activity = {f"queue {n}": (beat * 1.25, beat / 7) for n in range(queues)}
            assert await driver.store.heartbeat(driver.node, lease=30, activity=activity) == []
    await trio.sleep(0.5)
    counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = 'jobqueue' AND relname = 'nodes'"
    assert database.rows(counts) == [(50, 50)]


async def test_a_commit_that_no_standby_confirmed_is_not_taken_for_durable(database_url: str, database: Database) -> None:
    lane = Lane(database_url, "submit")
    await lane.run(lambda session: session.execute("CREATE TABLE public.effects (n integer)"))
    refused: list[NotReplicated] = []

    async def insert() -> None:
        try:
            await lane.run(lambda session: session.execute("INSERT INTO public.effects VALUES (1)"))
        except NotReplicated as error:
            refused.append(error)

    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()"
    database.rows("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    database.rows("SELECT pg_reload_conf()")
    try:
        await trio.sleep(0.3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(insert)
            with trio.fail_after(10):
                while not (waiters := database.rows(waiting)):  # noqa: ASYNC110 - another process's state
                    await trio.sleep(0.05)
            database.rows("SELECT pg_cancel_backend(%s)", *waiters[0])
    finally:
        database.rows("ALTER SYSTEM RESET synchronous_standby_names")
        database.rows("SELECT pg_reload_conf()")
    assert len(refused) == 1
    await trio.sleep(0.3)
    await lane.run(lambda session: session.execute("INSERT INTO public.effects VALUES (2)"))
    await lane.aclose()
    assert database.rows("SELECT n FROM effects ORDER BY n") == [(1,), (2,)], "it was committed, and the lane goes on"


async def test_a_commit_in_doubt_is_settled_by_ending_its_session(database_url: str, database: Database) -> None:
    async with open_driver(database_url) as driver:
        document = documents.encode(NewJob(id=new_id()))
        with psycopg.connect(database_url, autocommit=True, application_name="jobqueue submit") as late:
            row = late.execute("SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
            assert row is not None
            await driver.store.submit_again([document], backend=row)
            [job] = await driver.claim()
            # Nothing that was still on its way can take effect now: the same id in a second state would run twice.
            with pytest.raises(psycopg.OperationalError):
                late.execute("SELECT jobqueue.submit_many(%s::jsonb)", (documents.join([document]),))
    assert database.states() == {"inflight": 1}
    assert job.id in document.decode()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never says a word, as a proxy that swallows packets does."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"postgresql://127.0.0.1:{server.getsockname()[1]}/nothing"


async def test_connecting_to_a_silent_server_gives_up(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 2)
    begun = trio.current_time()
    with pytest.raises(DatabaseUnavailable):
        await Lane(silent_server, "submit").run(lambda session: session.execute("SELECT 1"))
    assert trio.current_time() - begun < 10


async def test_a_statement_whose_reply_never_comes_gives_up_and_the_next_one_connects_again(
    database_url: str, database: Database
) -> None:
    lane = Lane(database_url, "submit", reply_timeout=1)
    [pid] = await lane.run(lambda session: session.execute("SELECT pg_backend_pid()").fetchall())
    # A server process that is stopped keeps its connection open and answers nothing.
    blocker = psycopg.connect(database_url)
    blocker.execute("CREATE TABLE locked (n integer)")
    blocker.commit()
    blocker.execute("LOCK TABLE locked")
    database.rows("SELECT 1")
    with pytest.raises((ConnectionLost, DatabaseUnavailable)):
        await lane.run(lambda session: session.execute("SET statement_timeout = 0; SELECT * FROM locked"))
    blocker.rollback()
    blocker.close()
    [again] = await lane.run(lambda session: session.execute("SELECT pg_backend_pid()").fetchall())
    assert again != pid
    await lane.aclose()


@pytest.fixture
async def lane(database_url: str) -> AsyncIterator[Lane]:
    lane = Lane(database_url, "submit", reply_timeout=5)
    yield lane
    await lane.aclose()


@pytest.mark.parametrize("in_loop", [True, False])
async def test_a_call_gives_one_row_wherever_it_is_waited_for(lane: Lane, in_loop: bool) -> None:
    for number in range(3):
        assert await lane.call("SELECT %s::int", number, in_loop=in_loop) == (number,)
    large = "x" * 20_000_000  # more than the kernel takes at once, either way
    assert await lane.call("SELECT %s::text", large, in_loop=in_loop) == (large,)


@pytest.mark.parametrize("in_loop", [True, False])
async def test_a_call_that_fails_says_how(lane: Lane, database: Database, in_loop: bool) -> None:
    pid = await lane.call("SELECT pg_backend_pid()", in_loop=in_loop)
    with pytest.raises(RefusedData, match="invalid input syntax"):
        await lane.call("SELECT %s::jsonb", "{", in_loop=in_loop)
    with pytest.raises(DatabaseUnavailable, match="statement timeout"):
        await lane.call("SELECT pg_sleep(20)", in_loop=in_loop)
    assert "statement timeout" in (lane.trouble or "")
    assert await lane.call("SELECT pg_backend_pid()", in_loop=in_loop) == pid
    assert lane.trouble is None
    with pytest.raises(ConnectionLost):
        await lane.call("SELECT pg_terminate_backend(pg_backend_pid())", in_loop=in_loop)
    assert await lane.call("SELECT pg_backend_pid()", in_loop=in_loop) != pid
    database.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jobqueue submit'")
    await trio.sleep(0.3)
    assert await lane.call("SELECT 1", in_loop=in_loop) == (1,), "a connection that was ended meanwhile is not used"


@pytest.mark.parametrize("in_loop", [True, False])
async def test_a_call_whose_reply_never_comes_gives_up(lane: Lane, in_loop: bool) -> None:
    await lane.call("SELECT 1", in_loop=in_loop)
    assert lane._session is not None
    lane._session.connection.reply_timeout = 0.2
    with pytest.raises(ConnectionLost, match="no reply"):
        await lane.call("SELECT pg_sleep(2)", in_loop=in_loop)
    assert await lane.call("SELECT 1", in_loop=in_loop) == (1,)


@pytest.mark.parametrize("in_loop", [True, False])
async def test_calls_are_made_one_after_the_other_and_one_that_is_cancelled_is_made_all_the_same(lane: Lane, in_loop: bool) -> None:
    await lane.run(lambda connection: connection.execute("CREATE TABLE public.effects (n integer)"))
    sql = "INSERT INTO public.effects SELECT %s FROM pg_sleep(0.1) RETURNING n"
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(partial(lane.call, sql, number, in_loop=in_loop))
    with trio.move_on_after(0.02):
        await lane.call(sql, 3, in_loop=in_loop)
    assert await lane.call("SELECT array_agg(n ORDER BY n) FROM public.effects", in_loop=in_loop) == ([0, 1, 2, 3],)


async def test_a_lost_listener_comes_back_and_says_so(database_url: str, database: Database) -> None:
    heard: list[str] = []
    told = trio.Event()
    connected = trio.lowlevel.ParkingLot()
    times = 0

    def listener(payload: str) -> None:
        heard.append(payload)
        told.set()

    def on_connect() -> None:
        nonlocal times
        times += 1
        connected.unpark_all()

    end_it = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jobqueue listen'"
    async with trio.open_nursery() as nursery:
        await nursery.start(Notifications(database_url, {"jobqueue": listener}, on_connect).run)
        while times < 3:
            with trio.fail_after(20):
                if times:
                    database.rows(end_it)
                await connected.park()
        database.rows("SELECT pg_notify('jobqueue', '1.5 mail')")
        with trio.fail_after(5):
            await told.wait()
        nursery.cancel_scope.cancel()
    assert heard == ["1.5 mail"]


async def test_another_thread_is_never_held_by_a_lane_that_waits(database_url: str) -> None:
    slow, quick = Lane(database_url, "inspect"), Lane(database_url, "heartbeat")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.run, lambda session: session.execute("SELECT pg_sleep(1)"))
        begun = trio.current_time()
        await quick.run(lambda session: session.execute("SELECT 1"))
        assert trio.current_time() - begun < 0.9
    await slow.aclose()
    await quick.aclose()
    assert threading.active_count() < 50


async def test_a_server_that_became_a_standby_is_left_for_the_next_primary(lane: Lane) -> None:
    [before] = await lane.call("SELECT pg_backend_pid()", in_loop=False)
    with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
        await lane.run(lambda session: session.execute("BEGIN READ ONLY; CREATE TABLE public.effects (n integer)"))
    [after] = await lane.call("SELECT pg_backend_pid()", in_loop=False)
    assert after != before


async def test_a_statement_that_fails_for_no_known_reason_is_rolled_back_and_said_so(lane: Lane) -> None:
    for sql in ("SELECT nothing()", "SELECT * FROM nowhere", "DO $$ BEGIN RAISE 'no'; END $$"):
        with pytest.raises(StatementFailed):
            await lane.run(lambda session, sql=sql: session.execute(sql))
    with pytest.raises(StatementFailed):
        await lane.call("SELECT nothing()", in_loop=True)
    assert await lane.call("SELECT 1", in_loop=True) == (1,)


async def test_an_answer_that_cannot_be_read_leaves_its_statement_in_doubt(lane: Lane) -> None:
    deep = "SELECT (repeat('[', 2000) || repeat(']', 2000))::jsonb"
    for in_loop in (False, True):
        with pytest.raises(UnreadableAnswer, match="RecursionError") as lost:
            await lane.call(deep, in_loop=in_loop)
        assert isinstance(lost.value, ConnectionLost)
        assert await lane.call("SELECT 1", in_loop=in_loop) == (1,)
