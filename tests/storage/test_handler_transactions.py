"""Handlers whose effects and completion are one transaction: both take effect, or neither does, whatever happens."""

from __future__ import annotations

import functools
import gc
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx
import msgspec
import psycopg
import pytest
import trio
import trio_parallel
from psycopg import errors as pg
from psycopg import postgres
from psycopg.adapt import AdaptersMap, Loader
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb, set_json_dumps, set_json_loads
from psycopg.types.string import StrDumper

import jobqueue
from jobqueue import App, Discard, Job, Retry, Snooze
from jobqueue.engine.executor import Executor, Run
from jobqueue.engine.progress import ProgressWriter
from jobqueue.engine.signals import Signals
from jobqueue.job import MAX_RESULT_BYTES, Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage import handler_transactions
from jobqueue.storage.handler_transactions import MAX_TRANSACTIONS, Transactions
from jobqueue.testing.memory_store import MemoryStore
from tests.support import ROOT
from tests.support.executor import error_of, run_one
from tests.support.postgres import Database
from tests.support.proxy import ProxyThread, proxy_in_thread
from tests.support.service import Service, Start, submit
from tests.support.storage import Driver, open_driver
from tests.support.waiting import until, wait_for

Connection = psycopg.Connection[Any]
SCHEMA = "CREATE TABLE effects (job uuid NOT NULL, attempt integer NOT NULL)"
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'jobqueue transaction' AND datname = current_database()"


def write(conn: Connection, job: Job) -> None:
    conn.execute("INSERT INTO effects (job, attempt) VALUES (%s, %s)", (job.id, job.attempt))


class Bench:
    """An executor and a store on one database, without a service."""

    def __init__(self, driver: Driver, pool: Transactions, database: Database, processes: trio_parallel.WorkerContext) -> None:
        self.driver = driver
        self.database = database
        self._pool = pool
        self._processes = processes

    async def run(
        self,
        function: Callable[..., Any],
        *,
        payload: object = None,
        begun: Callable[[Run], None] = lambda _: None,
        **options: Any,
    ) -> tuple[Run, Outcome | None]:
        """Submit a job, claim it, run it with this function, and return the run with its outcome, which nobody has written."""
        app = App()
        app.handler("test", **options)(function)
        await self.driver.submit(kind="test", payload=payload or {})
        job = await self.driver.claim_one()
        executor = Executor(
            app.handlers,
            Metrics(),
            threads=trio.CapacityLimiter(10),
            processes=self._processes,
            process_limiter=trio.CapacityLimiter(1),
            transactions=self._pool,
            notes=ProgressWriter(MemoryStore(), Signals()),
        )
        runs: list[Run] = []

        def note(run: Run) -> None:
            run.node_id = self.driver.node
            runs.append(run)
            begun(run)

        outcome = await run_one(executor, job, note)
        return runs[0], outcome

    async def failure(self, function: Callable[..., Any], **options: Any) -> str:
        """Run a handler that fails; check that it has no effects, and return its error."""
        run, outcome = await self.run(function, **options)
        assert outcome is not None
        assert outcome.outcome == "retry"
        assert run.state == "running"
        assert self.effects() == []
        assert await self.driver.state(outcome.id) == "inflight", "it is for the worker to tell"
        return error_of(outcome).error

    def effects(self) -> list[int]:
        return [attempt for (attempt,) in self.database.rows("SELECT attempt FROM effects")]


@pytest.fixture
async def bench(database_url: str, database: Database) -> AsyncIterator[Bench]:
    database.rows(SCHEMA)
    pool = Transactions(database_url, most=2, keep_finished=True)
    async with open_driver(database_url) as driver, trio_parallel.open_worker_context(grace_period=1.0) as processes:
        yield Bench(driver, pool, database, processes)
    pool.close()


# ------------------------------------------------------------------------------------------------------------ one run, all its ways


async def test_effects_and_completion_are_one_transaction(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> dict[str, int]:
        write(conn, job)
        return {"attempt": job.attempt}

    run, outcome = await bench.run(handler)
    assert run.state == "committed"
    assert outcome is not None
    assert outcome.outcome == "succeeded"
    assert bench.database.rows("SELECT state, result FROM jobqueue.jobs") == [("succeeded", {"attempt": 1})]
    assert bench.database.rows("SELECT xmin::text FROM effects") == bench.database.rows(
        "SELECT xmin::text FROM jobqueue_internal.finished_jobs"
    )


async def test_the_job_is_finished_when_the_handler_is_and_not_when_its_transaction_began(bench: Bench) -> None:
    ended: list[Any] = []

    def handler(conn: Connection) -> None:
        conn.execute("SELECT pg_sleep(0.2)")
        ended.append(bench.database.value("SELECT clock_timestamp()"))

    await bench.run(handler)
    assert bench.database.value("SELECT finished_at FROM jobqueue_internal.finished_jobs") > ended[0]


async def test_nothing_is_seen_of_either_before_the_commit(bench: Bench) -> None:
    seen: list[Any] = []

    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        seen.extend([bench.effects(), bench.database.states()])

    await bench.run(handler)
    assert seen == [[], {"inflight": 1}]
    assert bench.effects() == [1]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_job_that_the_handler_submits_exists_if_its_own_is_completed(fails: bool, bench: Bench) -> None:
    submitted: list[str] = []

    def handler(job: Job, conn: Connection) -> None:
        submitted.append(jobqueue.submit(conn, "next", {"after": job.id}, priority=3))
        if fails:
            raise ValueError

    await bench.run(handler)
    states = dict(bench.database.rows("SELECT kind, state FROM jobqueue.jobs"))
    assert states == ({"test": "inflight"} if fails else {"test": "succeeded", "next": "pending"})
    if not fails:
        assert bench.database.rows("SELECT id::text FROM jobqueue_internal.pending_jobs") == [(submitted[0],)]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(ValueError("no"), "retry"), (Retry(delay=5), "retry"), (Snooze(5), "snoozed"), (Discard("no use"), "dead")],
    ids=lambda value: type(value).__name__,
)
async def test_only_a_return_commits(error: Exception, verdict: str, bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        raise error

    run, outcome = await bench.run(handler)
    assert outcome is not None
    assert (outcome.outcome, run.state, bench.effects()) == (verdict, "running", [])
    assert bench.database.states() == {"inflight": 1}, "it is for the worker to tell"


@pytest.mark.parametrize("result", [object(), float("nan"), "x" * MAX_RESULT_BYTES, "\0"], ids=["object", "nan", "large", "nul"])
async def test_a_result_that_cannot_be_stored_takes_the_effects_with_it(result: object, bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> object:
        write(conn, job)
        return result

    assert (await bench.failure(handler)).startswith("the result cannot be stored as JSON")


async def test_a_coroutine_as_a_result_takes_the_effects_with_it(bench: Bench) -> None:
    async def never() -> None:
        raise AssertionError

    def handler(job: Job, conn: Connection) -> object:
        write(conn, job)
        return never()

    assert (await bench.failure(handler)).startswith("the handler returned an awaitable (coroutine)")
    gc.collect()


async def test_no_result_is_kept_as_none(bench: Bench) -> None:
    def handler(conn: Connection) -> None:
        conn.execute("SELECT 1")

    await bench.run(handler)
    assert bench.database.rows("SELECT result FROM jobqueue_internal.finished_jobs") == [(None,)]


async def test_the_handler_cannot_commit_or_roll_back_by_itself(bench: Bench) -> None:
    def commits(job: Job, conn: Connection) -> None:
        write(conn, job)
        conn.commit()

    def rolls_back(job: Job, conn: Connection) -> None:
        write(conn, job)
        conn.rollback()

    def raises_rollback(job: Job, conn: Connection) -> None:
        write(conn, job)
        raise psycopg.Rollback

    def rolls_back_in_sql(job: Job, conn: Connection) -> None:
        write(conn, job)
        conn.execute("ROLLBACK")

    assert "Explicit commit() forbidden" in await bench.failure(commits)
    assert "Explicit rollback() forbidden" in await bench.failure(rolls_back)
    assert "by raising psycopg.Rollback" in await bench.failure(raises_rollback)
    assert "the handler ran COMMIT, ROLLBACK" in await bench.failure(rolls_back_in_sql)


async def test_a_handler_that_commits_in_sql_is_told_so(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        conn.execute("COMMIT")

    run, outcome = await bench.run(handler)
    assert outcome is not None
    assert "the handler ran COMMIT, ROLLBACK, PREPARE TRANSACTION or RESET ALL" in error_of(outcome).error
    assert run.state == "running"
    assert bench.database.states() == {"inflight": 1}


async def test_an_error_that_the_handler_swallows_is_a_failure(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        with suppress(psycopg.Error):
            conn.execute("SELECT 1 / 0")

    assert "current transaction is aborted" in await bench.failure(handler)


async def test_a_block_within_may_be_rolled_back(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        with conn.transaction():
            write(conn, job)
            raise psycopg.Rollback

    await bench.run(handler)
    assert bench.effects() == [1]


async def test_a_constraint_that_is_checked_at_the_commit_fails_the_attempt(bench: Bench) -> None:
    bench.database.rows("ALTER TABLE effects ADD UNIQUE (job) DEFERRABLE INITIALLY DEFERRED")

    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        write(conn, job)

    assert await bench.failure(handler) == 'UniqueViolation: duplicate key value violates unique constraint "effects_job_key"' + (
        await _detail(bench)
    )


async def _detail(bench: Bench) -> str:
    [(job_id,)] = bench.database.rows("SELECT id::text FROM jobqueue_internal.inflight_jobs")
    return f"\nDETAIL:  Key (job)=({job_id}) already exists."


async def test_the_handler_may_choose_the_isolation_and_a_conflict_is_a_failed_attempt(bench: Bench) -> None:
    bench.database.rows("CREATE TABLE counter (n integer)")
    bench.database.rows("INSERT INTO counter VALUES (0)")
    levels: list[Any] = []

    def handler(job: Job, conn: Connection) -> None:
        conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        levels.append(conn.execute("SHOW transaction_isolation").fetchone())
        write(conn, job)
        conn.execute("SELECT n FROM counter")
        if len(levels) == 1:
            bench.database.rows("UPDATE counter SET n = n + 1")
        conn.execute("UPDATE counter SET n = n + 1")

    assert (await bench.failure(handler)).startswith("SerializationFailure: ")
    run, _ = await bench.run(handler)
    assert run.state == "committed"
    assert levels == [("serializable",)] * 2
    assert bench.database.value("SELECT n FROM counter") == 2


async def test_what_a_handler_sets_does_not_reach_the_next_one(bench: Bench) -> None:
    pids: list[Any] = []

    def spoils(conn: Connection) -> None:
        conn.execute("SET search_path = nowhere")
        conn.execute("CREATE TEMP TABLE mine (n integer)")
        conn.execute("SELECT pg_advisory_lock(42)")
        conn.execute("SET statement_timeout = '1h'")
        conn.row_factory = dict_row
        conn.cursor_factory = psycopg.RawCursor
        pids.append(conn.info.backend_pid)

    def looks(conn: Connection) -> list[Any]:
        pids.append(conn.info.backend_pid)
        sql = "SELECT to_regclass('mine') IS NULL, current_setting('search_path'), current_setting('statement_timeout'), %s::int"
        row = conn.execute(sql, (7,)).fetchone()
        assert row is not None
        return [*row, bench.database.value("SELECT pg_try_advisory_lock(42)")]

    await bench.run(spoils)
    await bench.run(looks)
    assert pids[0] == pids[1]
    [(result,)] = bench.database.rows("SELECT result FROM jobqueue_internal.finished_jobs ORDER BY finished_at DESC LIMIT 1")
    assert result == [True, '"$user", public', "0", 7, True]


Step = Callable[[Connection], object]
"""A use of a handler's connection."""


def sql(statement: str) -> Step:
    return lambda conn: conn.execute(statement.encode())


class Shouting(StrDumper):
    def dump(self, obj: str) -> bytes:
        return obj.upper().encode()


class Unreadable(Loader):
    def load(self, data: Any) -> Any:
        raise ValueError(data)


def raises(*_: object) -> None:
    raise RuntimeError("a callback of an earlier handler")


def change_every_attribute(conn: Connection) -> None:
    conn.adapters.register_dumper(str, Shouting)
    conn.adapters.register_loader("text", Unreadable)
    conn.adapters.register_loader("int4", Unreadable)
    set_json_loads(raises, conn)
    set_json_dumps(raises, conn)
    conn.row_factory = dict_row
    conn.cursor_factory = psycopg.RawCursor
    conn.server_cursor_factory = psycopg.RawServerCursor
    conn.prepare_threshold = 0
    conn.prepared_max = 0
    conn.add_notice_handler(raises)
    conn.add_notify_handler(raises)


LOOK = """
    SELECT to_regclass('mine') IS NULL, current_setting('search_path'), current_setting('statement_timeout'),
           current_setting('client_encoding'), current_setting('transaction_isolation'), current_setting('transaction_read_only'),
           session_user = current_user AND current_user <> 'other', current_setting('TimeZone') <> 'Asia/Tokyo',
           (SELECT count(*) FROM pg_prepared_statements)::int, (SELECT count(*) FROM pg_cursors WHERE name <> '')::int,
           (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())::int,
           (SELECT count(*) FROM pg_listening_channels())::int, nullif(current_setting('jobqueue.mine', true), '') || %s
"""
CLEAN = [True, '"$user", public', "0", "UTF8", "read committed", "off", True, True, 0, 0, 0, 0, None]


def look(conn: Connection) -> None:
    """Check that nothing of an earlier handler is left."""
    seen = conn.execute(LOOK, ("x",)).fetchone()
    assert seen is not None
    assert list(seen) == CLEAN
    with pytest.raises(pg.ObjectNotInPrerequisiteState), conn.transaction():
        conn.execute("SELECT lastval()")
    assert conn.execute("SELECT %s::text, %s::jsonb, 7", ("quiet", Jsonb({"a": 1}))).fetchone() == ("quiet", {"a": 1}, 7)
    assert (conn.autocommit, conn.isolation_level, conn.read_only, conn.deferrable) == (False, None, None, None)
    assert (conn.prepare_threshold, conn.prepared_max) == (5, 100)
    assert type(conn.cursor()) is psycopg.Cursor
    with conn.cursor("named") as named:
        assert type(named) is psycopg.ServerCursor
    conn.execute("DO $$ BEGIN RAISE WARNING 'to nobody'; END $$")
    assert list(conn.notifies(timeout=0)) == []


CHANGES: dict[str, Step] = {
    "attributes": change_every_attribute,
    "settings": sql(
        "SET search_path = nowhere; SET statement_timeout = '1h'; SET TimeZone = 'Asia/Tokyo'; SET jobqueue.mine = 'x'"
    ),
    "encoding": sql("SET client_encoding = 'LATIN1'"),
    "defaults of transactions": sql("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY"),
    "odd settings": sql("SET standard_conforming_strings = off; SET row_security = off; SET DateStyle = 'SQL, DMY'"),
    "role": sql("SET ROLE other"),
    "local role": sql("SET LOCAL ROLE other"),
    "session": sql("SET SESSION AUTHORIZATION other"),
    "role and session": sql("SET SESSION AUTHORIZATION other; SET ROLE other; SET search_path = nowhere"),
    "locks": sql("SELECT pg_advisory_lock(42); SELECT pg_advisory_lock_shared(42); SELECT pg_advisory_xact_lock(43)"),
    "temporary table": sql("CREATE TEMP TABLE mine (n serial); INSERT INTO mine DEFAULT VALUES"),
    "temporary function": sql("CREATE FUNCTION pg_temp.now() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    "sequence": sql("CREATE SEQUENCE counter; SELECT nextval('counter')"),
    "prepared by psycopg": lambda conn: [conn.execute("SELECT %s::int", (n,), prepare=True) for n in range(10)],
    "prepared in SQL": sql("PREPARE mine AS SELECT 1; PREPARE _pg3_0 AS SELECT 2"),
    "cursors": sql("DECLARE held CURSOR WITH HOLD FOR SELECT 1; DECLARE mine CURSOR FOR SELECT 2"),
    "channels": sql("LISTEN mine; LISTEN jobqueue; NOTIFY mine, 'x'"),
    "savepoints": sql("SAVEPOINT mine; SAVEPOINT mine; ROLLBACK TO mine"),
    "deferred": sql("SET CONSTRAINTS ALL DEFERRED"),
    "cancellation": lambda conn: conn.cancel_safe(),
}


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_nothing_that_a_handler_changes_reaches_the_next_one(change: Step, fails: bool, bench: Bench) -> None:
    pids: list[int] = []

    def changes(job: Job, conn: Connection) -> str:
        pids.append(conn.info.backend_pid)
        write(conn, job)
        change(conn)
        if fails:
            raise ValueError
        return "é \N{SNOWMAN} \\ ' %s"

    def looks(conn: Connection) -> None:
        pids.append(conn.info.backend_pid)
        look(conn)

    bench.database.rows("DROP ROLE IF EXISTS other")
    bench.database.rows("CREATE ROLE other")
    bench.database.rows("GRANT ALL ON effects TO other")
    run, _ = await bench.run(changes)
    assert run.state == ("running" if fails else "committed")
    assert bench.effects() == ([] if fails else [1])
    if not fails:
        assert bench.database.rows("SELECT result FROM jobqueue_internal.finished_jobs") == [("é \N{SNOWMAN} \\ ' %s",)]
    run, _ = await bench.run(looks)
    assert run.state == "committed"
    assert pids[0] == pids[1], "the session is used again"
    assert bench.database.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


def with_defaults(bench: Bench, *settings: str) -> None:
    """Start sessions of handlers with these settings, like those of a database or a role."""
    bench._pool._url += "&options=" + quote(" ".join(f"-c {setting}" for setting in settings))


@pytest.mark.parametrize(
    "default",
    [
        "default_transaction_isolation=repeatable\\ read",
        "default_transaction_isolation=serializable",
        "default_transaction_read_only=on",
        "default_transaction_deferrable=on",
        "client_encoding=LATIN1",
        "client_encoding=SJIS",
        "standard_conforming_strings=off",
    ],
)
async def test_defaults_do_not_change_a_handlers_transaction(default: str, bench: Bench) -> None:
    with_defaults(bench, default)

    def handler(job: Job, conn: Connection) -> str:
        look(conn)
        write(conn, job)
        return "\\ \N{SNOWMAN}"

    for _ in range(2):  # the second is after RESET ALL
        run, _ = await bench.run(handler)
        assert run.state == "committed"
    assert bench.database.rows("SELECT DISTINCT result FROM jobqueue_internal.finished_jobs") == [("\\ \N{SNOWMAN}",)]


async def test_handlers_keep_the_defaults_of_their_role(bench: Bench) -> None:
    bench.database.rows("DROP ROLE IF EXISTS other")
    bench.database.rows("CREATE ROLE other")
    bench.database.rows("GRANT ALL ON SCHEMA jobqueue, jobqueue_internal TO other")
    bench.database.rows("GRANT ALL ON ALL TABLES IN SCHEMA jobqueue_internal TO other")
    with_defaults(bench, "search_path=mine", "TimeZone=Asia/Tokyo", "role=other")
    seen: list[Any] = []

    def handler(conn: Connection) -> None:
        seen.append(conn.execute("SELECT current_setting('search_path'), current_setting('TimeZone'), current_user").fetchone())
        conn.execute("SET ROLE NONE; SET search_path = public; SET TimeZone = 'UTC'")

    for _ in range(3):
        run, _ = await bench.run(handler)
        assert run.state == "committed"
    assert seen == [("mine", "Asia/Tokyo", "other")] * 3


def leave_pipeline_open(conn: Connection, *statements: str) -> None:
    pipeline = conn.pipeline()
    pipeline.__enter__()
    held.append(pipeline)
    for statement in statements:
        conn.execute(statement.encode())


held: list[Any] = []
"""Objects that the handlers of these tests leave behind."""


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    for thing in held:
        if isinstance(thing, threading.Thread):
            thread_ended_in_time = thing.join(60) or not thing.is_alive()
            assert thread_ended_in_time
    held.clear()


async def test_a_pipeline_that_is_left_open_is_waited_for_and_its_effects_count(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        leave_pipeline_open(conn, f"INSERT INTO effects VALUES ('{job.id}', 7)", f"INSERT INTO effects VALUES ('{job.id}', 8)")

    run, _ = await bench.run(handler)
    assert run.state == "committed"
    assert bench.effects() == [7, 8]
    assert bench.database.states() == {"succeeded": 1}
    run, _ = await bench.run(look)
    assert run.state == "committed"


async def test_an_error_in_a_pipeline_that_is_left_open_fails_the_attempt(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        leave_pipeline_open(conn, f"INSERT INTO effects VALUES ('{job.id}', 7)", "SELECT 1 / 0")

    assert "DivisionByZero: division by zero" in await bench.failure(handler)

    def nested(job: Job, conn: Connection) -> None:
        leave_pipeline_open(conn, f"INSERT INTO effects VALUES ('{job.id}', 7)")
        leave_pipeline_open(conn, "INSERT INTO effects VALUES ('no uuid', 7)")

    assert "InvalidTextRepresentation" in await bench.failure(nested)


ENDS: dict[str, Step] = {
    "COMMIT": sql("COMMIT"),
    "COMMIT; BEGIN": sql("COMMIT; BEGIN"),
    "END; a block like ours": sql("END; BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"),
    "COMMIT AND CHAIN": sql("COMMIT AND CHAIN"),
    "ROLLBACK AND CHAIN": sql("ROLLBACK AND CHAIN"),
    "ROLLBACK; BEGIN": sql("ROLLBACK; BEGIN"),
    "in three steps": lambda conn: [conn.execute(step) for step in (b"ABORT", b"BEGIN", b"SELECT 1")],
    "implicitly begun": lambda conn: [conn.execute(step) for step in (b"COMMIT", b"SELECT 1")],
    "hidden by RESET ALL": sql("RESET ALL; COMMIT; BEGIN"),
    "in a pipeline": lambda conn: leave_pipeline_open(conn, "COMMIT", "BEGIN"),
    "below psycopg": lambda conn: conn.pgconn.exec_(b"COMMIT; BEGIN"),
    "into a block": lambda conn: conn.execute("COMMIT") and conn.transaction().__enter__(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_a_transaction_that_is_not_the_one_that_began_fails_the_attempt(end: Step, bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        end(conn)
        write(conn, job)

    assert "the handler ran COMMIT, ROLLBACK, PREPARE TRANSACTION or RESET ALL" in await bench.failure(handler)
    run, _ = await bench.run(look)
    assert run.state == "committed"


async def test_a_transaction_that_the_handler_prepares_for_two_phases_fails_the_attempt(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        conn.execute("PREPARE TRANSACTION 'mine'")

    assert "prepared transactions are disabled" in await bench.failure(handler)

    def over_psycopg(conn: Connection) -> None:
        conn.tpc_begin("mine")

    assert "ProgrammingError" in await bench.failure(over_psycopg)


def leave_thread(conn: Connection, call: Callable[..., object], *arguments: object) -> None:
    """Use the connection in a thread that is left behind, and wait until it does."""

    def run() -> None:
        with pytest.raises(psycopg.OperationalError):
            call(*arguments)

    thread = threading.Thread(target=run)
    thread.start()
    held.append(thread)
    wait_for(conn.lock.locked, "the thread uses the connection")


def swallow(conn: Connection) -> None:
    with suppress(psycopg.Error):
        conn.execute("SELECT nowhere")


MISUSES: dict[str, tuple[Step, str]] = {
    "closes": (lambda conn: conn.close(), "the handler closed its connection"),
    "with conn": (lambda conn: conn.__enter__().__exit__(None, None, None), "Explicit commit() forbidden"),
    "read-only": (sql("SET TRANSACTION READ ONLY"), "remove SET TRANSACTION READ ONLY"),
    "swallows": (swallow, "with conn.transaction():"),
    "COPY": (lambda conn: held.append(conn.pgconn.exec_(b"COPY effects FROM STDIN")), "its connection was in use"),
    "stream": (lambda conn: held.append([stream := conn.cursor().stream(b"SELECT 1"), next(stream)]), "its connection was in use"),
    "notifies": (lambda conn: leave_thread(conn, conn.notifies().__next__), "its connection was in use"),
    "statement": (lambda conn: leave_thread(conn, conn.execute, b"SELECT pg_sleep(600)"), "its connection was in use"),
    "autocommit": (lambda conn: conn.set_autocommit(True), "can't change 'autocommit' now"),
    "isolation": (lambda conn: setattr(conn, "isolation_level", 4), "can't change 'isolation_level' now"),
}


@pytest.mark.parametrize(("misuse", "reason"), MISUSES.values(), ids=MISUSES)
async def test_what_breaks_the_promise_fails_the_attempt_and_says_what_to_do(misuse: Step, reason: str, bench: Bench) -> None:
    def handler(conn: Connection) -> None:
        misuse(conn)

    assert reason in await bench.failure(handler)
    run, _ = await bench.run(look)
    assert run.state == "committed"


INSERT = b"INSERT INTO effects VALUES ('0198c7a4-0000-7000-8000-000000000000', 9)"


def into_copy(conn: Connection) -> Callable[[], object]:
    copy = conn.cursor().copy(b"COPY effects FROM STDIN")
    return lambda: copy.__enter__().write_row(("0198c7a4-0000-7000-8000-000000000000", 9))


LATE: dict[str, Callable[[Connection], Callable[[], object]]] = {
    "connection": lambda conn: lambda: conn.execute(INSERT),
    "old cursor": lambda conn: functools.partial(conn.cursor().execute, INSERT),
    "used cursor": lambda conn: functools.partial(conn.execute(b"SELECT 1").execute, INSERT),
    "client-side cursor": lambda conn: functools.partial(psycopg.ClientCursor(conn).execute, INSERT),
    "new cursor": lambda conn: lambda: psycopg.Cursor(conn).execute(INSERT),
    "many": lambda conn: functools.partial(conn.cursor().executemany, INSERT, [(), ()]),
    "COPY": into_copy,
    "block": lambda conn: lambda: conn.transaction().__enter__(),
    "open block": lambda conn: functools.partial((block := conn.transaction()).__exit__, *block.__enter__() and (None, None, None)),
    "pipeline": lambda conn: lambda: conn.pipeline().__enter__(),
    "submission": lambda conn: lambda: jobqueue.submit(conn, "late"),
    "notifications": lambda conn: lambda: next(conn.notifies(timeout=0.1)),
    "cancel": lambda conn: conn.cancel,
    "cancel_safe": lambda conn: conn.cancel_safe,
    "close": lambda conn: conn.close,
    "with": lambda conn: lambda: conn.__exit__(None, None, None),
    "autocommit": lambda conn: lambda: conn.set_autocommit(True),
    "callbacks": lambda conn: lambda: conn.add_notice_handler(raises),
    "adapters": lambda conn: lambda: change_every_attribute(conn),
}
"""Late uses of a connection, by a thread that a handler left behind. The handler prepares them."""


@pytest.mark.parametrize("late", LATE.values(), ids=LATE)
async def test_what_a_handler_leaves_behind_cannot_reach_the_next_ones_transaction(
    late: Callable[[Connection], Callable[[], object]], bench: Bench
) -> None:
    left: list[Callable[[], object]] = []
    pids: list[int] = []

    def leaves(conn: Connection) -> None:
        pids.append(conn.info.backend_pid)
        left.append(late(conn))

    def meets(job: Job, conn: Connection) -> None:
        pids.append(conn.info.backend_pid)
        write(conn, job)
        with ThreadPoolExecutor() as executor:
            sleep = executor.submit(conn.execute, b"SELECT pg_sleep(0.3)")
            error = executor.submit(left[0]).exception()
            sleep.result()
        assert error is None or isinstance(error, psycopg.OperationalError | psycopg.InterfaceError), error
        look(conn)
        write(conn, job)

    run, _ = await bench.run(leaves)
    assert run.state == "committed"
    run, _ = await bench.run(meets)
    assert run.state == "committed"
    assert bench.effects() == [1, 1]
    assert pids[0] == pids[1]
    assert bench.database.rows("SELECT kind FROM jobqueue_internal.pending_jobs") == []


async def test_a_thread_that_uses_the_connection_until_the_handler_returns_is_part_of_it(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        thread = threading.Thread(target=write, args=(conn, job))
        thread.start()
        thread.join()

    run, _ = await bench.run(handler)
    assert run.state == "committed"
    assert bench.effects() == [1]


async def test_a_thread_that_keeps_writing_writes_nothing_after_its_job(bench: Bench) -> None:
    ended: list[BaseException] = []
    threads: list[threading.Thread] = []

    def write_on(conn: Connection, job: Job) -> None:
        try:
            while True:
                write(conn, job)
        except psycopg.OperationalError as error:
            ended.append(error)

    def leaves(job: Job, conn: Connection) -> None:
        threads.append(threading.Thread(target=write_on, args=(conn, job)))
        threads[-1].start()
        time.sleep(0.01)

    for _ in range(10):
        await bench.run(leaves)
        run, _ = await bench.run(look)
        assert run.state == "committed"
    for thread in threads:
        thread.join(60)
    assert len(ended) == 10
    # A thread nearly always runs a statement, so most of these attempts fail. The effects of one that succeeds are complete.
    assert bench.database.value("SELECT count(DISTINCT job) FROM effects") <= bench.database.states()["succeeded"] - 10


async def test_adapters_that_the_program_replaces_for_all_connections_do_not_reach_the_completion(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = AdaptersMap(psycopg.adapters)
    adapters.register_dumper(str, Shouting)
    for oid in (psycopg.adapters.types["text"].oid, psycopg.adapters.types["int8"].array_oid):
        adapters.register_loader(oid, Unreadable)
    job_id = await bench.driver.submit(kind="test")
    job = await bench.driver.claim_one()
    outcome = msgspec.json.encode(Outcome(id=job_id, claims=job.claims, outcome="succeeded", result=msgspec.Raw(b'"quiet"')))
    monkeypatch.setattr(postgres, "adapters", adapters)
    async with bench._pool.open() as transaction:
        assert transaction.run(bench.driver.node, lambda _: outcome)
    monkeypatch.undo()
    assert bench.database.rows("SELECT result FROM jobqueue_internal.finished_jobs") == [("quiet",)]


async def test_the_example_in_the_documentation(bench: Bench) -> None:
    _, _, section = (ROOT / "docs/transactions.md").read_text().partition("## Complete a job in the handler's transaction")
    code = section.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    bench.database.rows("CREATE TABLE orders (id integer, total integer, charged boolean DEFAULT false)")
    bench.database.rows("INSERT INTO orders VALUES (1, 250)")
    handler = names["app"].handlers["charge"]
    await bench.run(handler.function, payload={"order": 1})
    assert bench.database.rows("SELECT result FROM jobqueue_internal.finished_jobs") == [(250,)]
    assert bench.database.rows("SELECT charged FROM orders") == [(True,)]
    assert bench.database.rows("SELECT kind, payload FROM jobqueue_internal.pending_jobs") == [("receipt", {"order": 1})]
    bench.database.rows("DELETE FROM jobqueue_internal.pending_jobs")
    _, outcome = await bench.run(handler.function, payload={"order": 2})
    assert outcome is not None
    assert outcome.reason == "no order 2"


# ---------------------------------------------------------------------------------------------------------------- not ours any more


async def test_a_run_that_is_not_ours_any_more_leaves_nothing(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        bench.database.rows(
            "UPDATE jobqueue_internal.inflight_jobs SET claims = claims + 1"
        )  # as if another node had recovered and claimed it

    run, _ = await bench.run(handler)
    assert run.state == "stale"
    assert bench.effects() == []
    assert bench.database.states() == {"inflight": 1}


async def test_a_lost_nodes_run_is_stale_as_soon_as_the_job_is_taken_back(bench: Bench) -> None:
    back = threading.Event()

    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        assert back.wait(120)

    async def take_back() -> None:
        await until(lambda: bench.database.states() == {"inflight": 1})
        await bench.driver.end_lease()
        await bench.driver.recover()
        assert bench.database.states() == {"pending": 1}
        back.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_back)
        run, _ = await bench.run(handler)
    assert run.state == "stale"
    assert bench.effects() == []
    assert bench.database.states() == {"pending": 1}


async def test_a_timeout_cancels_the_statement_and_lets_go_of_all_locks(bench: Bench) -> None:
    errors: list[BaseException] = []

    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        try:
            conn.execute("SELECT pg_sleep(600)")
        except BaseException as error:
            errors.append(error)
            raise

    assert await bench.failure(handler, timeout=3) == "timed out after 3 s"
    await until(lambda: bool(errors) and not bench.database.value(SESSIONS))
    assert isinstance(errors[0], psycopg.OperationalError), "the statement was cancelled, or the connection closed"


async def test_a_thread_that_does_not_notice_holds_no_locks_and_commits_nothing(bench: Bench) -> None:
    go_on, errors = threading.Event(), []

    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        conn.execute("LOCK TABLE effects")
        assert go_on.wait(600)
        try:
            write(conn, job)
        except BaseException as error:
            errors.append(error)
            raise

    started = time.monotonic()
    assert await bench.failure(handler, timeout=3) == "timed out after 3 s"  # reads the table, which was locked
    assert time.monotonic() - started < 300, "the lock is gone before the thread ends"
    go_on.set()
    await until(lambda: bool(errors))
    assert isinstance(errors[0], psycopg.OperationalError)
    assert bench.effects() == []


async def test_a_late_return_after_a_timeout_is_stale(bench: Bench) -> None:
    """The connection is not closed in time, and the handler ends normally. Only the fence prevents the commit."""
    go_on, ended = threading.Event(), threading.Event()

    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)
        assert go_on.wait(120)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handler_transactions.Transaction, "_cut_off", lambda _: None)
        give_back = bench._pool._give_back
        patch.setattr(bench._pool, "_give_back", lambda line, *, usable: (give_back(line, usable=usable), ended.set()))
        run, outcome = await bench.run(handler, timeout=0.3)
        assert outcome is not None
        assert outcome.outcome == "retry"
        assert await bench.driver.store.finish(bench.driver.node, [outcome]) == set()
        go_on.set()
        assert await trio.to_thread.run_sync(ended.wait, 60)
    assert run.state == "running"
    assert bench.effects() == []
    assert bench.database.states() == {"scheduled": 1}


async def test_a_timeout_while_the_commit_is_slow_waits_for_it_and_is_stale(bench: Bench) -> None:
    """The completions of the handler's transaction and of the timeout need the lock of the same row. One wins, and none hangs."""
    bench.database.rows("CREATE TABLE committing (at timestamptz)")
    bench.database.rows("""
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_sleep(600);
            RETURN NULL;
        EXCEPTION WHEN query_canceled THEN
            PERFORM pg_sleep(1.5);  -- a commit that cannot be cancelled
            RETURN NULL;
        END $$
    """)
    bench.database.rows(
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()"
    )

    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)

    _, outcome = await bench.run(handler, timeout=3)
    assert outcome is not None
    assert outcome.outcome == "retry"
    other = await bench.driver.submit(kind="other")
    [job] = await bench.driver.claim()
    assert bench.database.states() == {"inflight": 2}
    beside = Outcome(id=job.id, claims=job.claims, outcome="succeeded")
    with trio.fail_after(60):
        assert await bench.driver.store.finish(bench.driver.node, [outcome, beside]) == {0}, "the commit took effect"
    assert bench.effects() == [1]
    assert bench.database.rows("SELECT state FROM jobqueue.jobs") == [("succeeded",)] * 2
    assert await bench.driver.state(other) == "succeeded"


async def test_a_commit_that_never_arrives_holds_the_rows_lock_for_some_seconds_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler_transactions, "ABANDONED_AFTER", 4)
    finish = handler_transactions.Transaction._finish
    finished, go_on = threading.Event(), threading.Event()

    def frozen(self: handler_transactions.Transaction, node_id: str, outcome: bytes) -> bool:
        stale = finish(self, node_id, outcome)
        finished.set()
        assert go_on.wait(120)
        return stale

    monkeypatch.setattr(handler_transactions.Transaction, "_finish", frozen)

    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)

    async def meanwhile() -> None:
        assert await trio.to_thread.run_sync(finished.wait, 60)
        [(job_id, claims)] = bench.database.rows("SELECT id::text, claims FROM jobqueue_internal.inflight_jobs")
        with trio.fail_after(60):
            released = Outcome(id=job_id, claims=claims, outcome="released")
            assert await bench.driver.store.finish(bench.driver.node, [released]) == set()
        go_on.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(meanwhile)
        run, outcome = await bench.run(handler)
    assert outcome is not None
    assert (outcome.outcome, run.state) == ("retry", "in doubt")
    assert await bench.driver.store.finish(bench.driver.node, [outcome]) == {0}
    assert bench.effects() == []
    assert bench.database.states() == {"pending": 1}


# ------------------------------------------------------------------------------------------------------------------- connections


async def test_connections_are_opened_when_they_are_needed_and_used_again(bench: Bench) -> None:
    pids: list[int] = []

    def handler(conn: Connection) -> None:
        pids.append(conn.info.backend_pid)

    assert bench.database.value(SESSIONS) == 0
    for _ in range(5):
        await bench.run(handler)
    assert len(set(pids)) == 1
    assert bench.database.value(SESSIONS) == 1


async def test_a_connection_that_the_server_has_ended_is_replaced(bench: Bench) -> None:
    def handler(job: Job, conn: Connection) -> None:
        write(conn, job)

    await bench.run(handler)
    bench.database.rows(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'jobqueue transaction'"
        " AND datname = current_database()"
    )
    run, _ = await bench.run(handler)
    assert run.state == "committed"
    assert bench.effects() == [1, 1]


async def test_there_are_no_more_at_once_than_allowed_and_waiting_is_not_the_handlers_time(bench: Bench) -> None:
    running, most, lock = 0, 0, threading.Lock()
    go_on = threading.Event()

    def slow(conn: Connection) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert go_on.wait(120)
        conn.execute("SELECT 1")
        with lock:
            running -= 1

    def quick(conn: Connection) -> None:
        conn.execute("SELECT 1")

    ended: list[str] = []

    async def wait_in_line() -> None:
        run, _ = await bench.run(quick, timeout=5.0)
        ended.append(run.state)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(bench.run, slow)
        await until(lambda: most == 2)
        nursery.start_soon(wait_in_line)
        await trio.sleep(6)
        assert ended == []
        assert bench.database.value(SESSIONS) == 2
        go_on.set()
    assert ended == ["committed"]
    assert most == 2


async def test_a_job_is_handed_back_when_there_is_no_connection(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_transactions, "CONNECT_PATIENCE", 0.5)
    bench._pool._url = "postgresql://jobqueue@127.0.0.1:1/nowhere"

    def handler(conn: Connection) -> None:
        raise AssertionError(conn)

    started = trio.current_time()
    run, outcome = await bench.run(handler)
    assert outcome is not None
    assert (outcome.outcome, run.state) == ("released", "running")
    assert trio.current_time() - started > 0.5


@pytest.mark.parametrize("cause", ["interrupted", "lease lost"])
async def test_a_run_that_waits_for_a_connection_can_be_ended(cause: Any, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_transactions, "CONNECT_PATIENCE", 3600)
    bench._pool._url = "postgresql://jobqueue@127.0.0.1:1/nowhere"

    def handler(conn: Connection) -> None:
        raise AssertionError(conn)

    async with trio.open_nursery() as nursery:

        async def cancel_soon(run: Run) -> None:
            await trio.sleep(0.2)
            run.cancel(cause)

        with trio.fail_after(60):
            _, outcome = await bench.run(handler, begun=lambda run: nursery.start_soon(cancel_soon, run))
    assert (None if outcome is None else outcome.outcome) == {"interrupted": "released", "lease lost": None}[cause]


# ---------------------------------------------------------------------------------------------------------------- the whole service


@pytest.fixture
def effects(database: Database) -> Callable[[], list[tuple[str, int]]]:
    database.rows(SCHEMA)
    return lambda: database.rows("SELECT job::text, attempt FROM effects ORDER BY job")


@pytest.fixture
def start(service: Start, tmp_path: Path) -> Start:
    def start(*arguments: str) -> Service:
        return service("tests.handlers.transactional", *arguments, env={"EFFECTS": str(tmp_path / "effects")})

    return start


def metric(client: httpx.Client, node: Service, name: str, kind: str) -> float:
    lines = client.get(f"{node.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"jobqueue_{name}{{") and f'kind="{kind}"' in line)


Effects = Callable[[], list[tuple[str, int]]]


def test_many_jobs_have_one_effect_each_and_are_counted(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    node = start("--queue", "default=40")
    plain = submit(client, node, [{"kind": "echo"}] * 10)
    wait_for(lambda: database.states() == {"succeeded": 10}, "jobs without a transaction are done")
    assert database.value(SESSIONS) == 0, "no connection is opened before one is needed"
    ids = submit(client, node, [{"kind": "write"}] * 300)
    wait_for(lambda: database.states() == {"succeeded": len(plain) + 300}, "all are done")
    assert effects() == [(job_id, 1) for job_id in sorted(ids)]
    assert 1 <= database.value(SESSIONS) <= MAX_TRANSACTIONS
    assert metric(client, node, "jobs_completed_total", "write") == 300
    assert metric(client, node, "stale_completions_total", "write") == 0
    wait_for(lambda: "jobqueue_inflight_jobs 0.0" in client.get(f"{node.url}/metrics").text, "the node holds nothing")
    assert node.stop() == 0, node.log
    assert database.value(SESSIONS) == 0


def test_jobs_that_succeed_are_not_kept_where_none_are(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    node = start("--keep-finished", "0")
    ids = submit(client, node, [{"kind": "write"}] * 20)
    wait_for(lambda: len(effects()) == 20, "all are done")
    assert effects() == [(job_id, 1) for job_id in sorted(ids)]
    assert database.states() == {}


def test_a_timeout_of_a_transaction_that_holds_locks(
    start: Start, client: httpx.Client, database: Database, effects: Effects, tmp_path: Path
) -> None:
    node = start()
    submit(client, node, {"kind": "touch-and-wait", "payload": {"flag": str(tmp_path / "flag")}})
    wait_for(lambda: database.states() == {"scheduled": 1}, "it has timed out, and will be tried again")
    database.rows("ALTER TABLE effects ADD COLUMN free boolean")  # nobody holds a lock on it
    (tmp_path / "flag").touch()
    wait_for(lambda: database.value(SESSIONS) == 0, "the thread's connection is gone")
    assert effects() == []
    assert database.value("SELECT errors -> 0 ->> 'error' FROM jobqueue.jobs") == "timed out after 1.0 s"
    assert metric(client, node, "stale_completions_total", "touch-and-wait") == 0
    assert node.stop() == 0, node.log


def test_a_shutdown_hands_back_and_nothing_is_committed_late(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    node = start("--grace-period", "0.5")
    with psycopg.connect(database.url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(1)")
        ids = submit(client, node, [{"kind": "wait-for-lock"}] * 4)
        wait_for(
            lambda: database.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 4, "all of them wait"
        )
        assert node.stop() == 0, node.log
    wait_for(lambda: database.value(SESSIONS) == 0, "its connections are gone")
    assert effects() == []
    assert database.rows("SELECT state, attempt FROM jobqueue.jobs") == [("pending", 0)] * 4
    start()
    wait_for(lambda: database.states() == {"succeeded": 4}, "the next one does them")
    assert effects() == [(job_id, 1) for job_id in sorted(ids)]


def test_a_lost_lease_is_a_stale_completion(start: Start, client: httpx.Client, database: Database, effects: Effects) -> None:
    node = start("--visibility-timeout", "60")
    with psycopg.connect(database.url, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(1)")
        job_id = submit(client, node, {"kind": "wait-for-lock"})
        wait_for(lambda: database.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == 1, "it waits")
        # As if another node had recovered the job, and this one did not know yet.
        database.rows("UPDATE jobqueue_internal.inflight_jobs SET claims = claims + 1")
    wait_for(lambda: metric(client, node, "stale_completions_total", "wait-for-lock") == 1, "its completion is stale")
    wait_for(lambda: "stale completion dropped" in node.log, "the log says so")
    assert effects() == []
    assert database.rows("SELECT id::text, state FROM jobqueue.jobs") == [(job_id, "inflight")]


def test_a_killed_node_leaves_no_effect_without_its_completion(
    start: Start, client: httpx.Client, database: Database, effects: Effects
) -> None:
    node = start()
    job_id = submit(client, node, {"kind": "die"})
    node.wait()
    assert effects() == []
    start()
    wait_for(lambda: database.states() == {"succeeded": 1}, "the next one does it")
    assert effects() == [(job_id, 2)]


# ------------------------------------------------------------------------------------------------------------- commits in doubt


@pytest.fixture
def proxy(database_url: str) -> Iterator[ProxyThread]:
    [directory] = parse_qs(urlsplit(database_url).query)["host"]
    with proxy_in_thread(directory, 5432) as running:
        yield running


@pytest.fixture
def node(proxy: ProxyThread, database_url: str, tmp_path: Path) -> Iterator[Service]:
    """A node that reaches PostgreSQL through the proxy."""
    url = f"postgresql://jobqueue@127.0.0.1:{proxy.port}{urlsplit(database_url).path}"
    started = Service(
        ["tests.handlers.transactional", "--port", "0", "--database-url", url], {"EFFECTS": str(tmp_path / "effects")}
    )
    yield started
    started.kill()


@pytest.mark.usefixtures("effects")
@pytest.mark.parametrize(("which", "attempt"), [("reply", 1), ("request", 2)])
def test_a_commit_in_doubt_is_found_out_about(
    which: str, attempt: int, *, node: Service, proxy: ProxyThread, client: httpx.Client, database: Database
) -> None:
    for number in range(1, 4):
        lost = proxy.lost
        {"reply": proxy.lose_next_reply, "request": proxy.lose_next_request}[which](b"COMMIT\0")
        job_id = submit(client, node, {"kind": "write"})
        wait_for(lambda lost=lost: proxy.lost > lost, f"the {which} of a COMMIT is lost")
        wait_for(lambda number=number: database.states() == {"succeeded": number}, "the job succeeds")
        assert database.rows("SELECT attempt FROM effects WHERE job = %s", job_id) == [(attempt,)]
        assert database.value("SELECT result FROM jobqueue_internal.finished_jobs WHERE id = %s", job_id) == attempt
    wait_for(lambda: metric(client, node, "jobs_completed_total", "write") == 3, "all are counted")
    assert metric(client, node, "stale_completions_total", "write") == 0
    assert node.stop() == 0, node.log
    assert [json.loads(line)["event"] for line in node.log_lines].count("the commit in doubt took effect") == {1: 3, 2: 0}[attempt]


def test_connections_that_are_cut_at_any_moment_double_nothing(
    node: Service, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    ids: list[str] = []
    for cut in range(20):
        ids += database.value("SELECT jobqueue.submit_many(%s::jsonb)::text[]", json.dumps([{"kind": "write"}] * 40))
        if cut % 2 == 0:
            proxy.lose_next_reply([b"COMMIT\0", b"jobqueue_internal.finish"][cut // 2 % 2])
        # Without its connections, a node has nothing to lose in the next cut.
        wait_for(lambda: "pending" not in database.states(), "all are claimed")
        time.sleep(0.01 * (cut % 5))
        proxy.cut()
    wait_for(lambda: database.states() == {"succeeded": len(ids)}, "all are done")
    assert [job_id for job_id, _ in effects()] == sorted(ids), "one effect each"
    assert database.value("SELECT max(attempt) FROM effects") > 1, "some were cut"
    assert node.stop() == 0, node.log
