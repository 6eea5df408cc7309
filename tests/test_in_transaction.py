"""Submissions on a connection of the caller, with each driver, sync and async, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg
import msgspec
import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import jobqueue
from jobqueue.errors import BatchTooLarge, InvalidJob, PayloadTooLarge, UnprocessableJob
from jobqueue.fields import read
from jobqueue.job import MAX_BATCH_JOBS, MAX_PAYLOAD_BYTES, Submission
from tests.support.postgres import Database

pytestmark = pytest.mark.slow


class Connected(NamedTuple):
    """A connection in a transaction, which its context commits or rolls back; `execute` runs a statement on it."""

    connection: Any
    execute: Callable[[str], Any]


class Rollback(Exception):
    """Ends a context with a rollback."""


def sqlalchemy_url(url: str, driver: str) -> str:
    parts = urlsplit(url)
    [directory] = parse_qs(parts.query)["host"]
    return f"postgresql+{driver}://jobqueue@{parts.path}?host={directory}&port=5432"


@contextmanager
def psycopg_connection(url: str) -> Iterator[Connected]:
    with psycopg.connect(url) as conn:
        yield Connected(conn, conn.execute)


@contextmanager
def psycopg_cursor(url: str) -> Iterator[Connected]:
    with psycopg.connect(url) as conn, conn.cursor() as cursor:
        yield Connected(cursor, cursor.execute)


@contextmanager
def psycopg_with_other_rows(url: str) -> Iterator[Connected]:
    with psycopg.connect(url, row_factory=dict_row, cursor_factory=psycopg.RawCursor) as conn:
        yield Connected(conn, conn.execute)


@contextmanager
def closing_engine(url: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(sqlalchemy_url(url, "psycopg"))
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def closing_scope(session: scoped_session[Session]) -> Iterator[scoped_session[Session]]:
    try:
        yield session
    finally:
        session.remove()


@asynccontextmanager
async def closing_async_engine(url: str, driver: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(sqlalchemy_url(url, driver))
    try:
        yield engine
    finally:
        await engine.dispose()


@contextmanager
def sqlalchemy_connection(url: str) -> Iterator[Connected]:
    with closing_engine(url) as engine, engine.begin() as conn:
        yield Connected(conn, lambda sql: conn.execute(sqlalchemy.text(sql)))


@contextmanager
def sqlalchemy_session(url: str) -> Iterator[Connected]:
    with closing_engine(url) as engine, Session(engine) as session, session.begin():
        yield Connected(session, lambda sql: session.execute(sqlalchemy.text(sql)))


@contextmanager
def sqlalchemy_scoped_session(url: str) -> Iterator[Connected]:
    with closing_engine(url) as engine, closing_scope(scoped_session(sessionmaker(engine))) as session, session.begin():
        yield Connected(session, lambda sql: session.execute(sqlalchemy.text(sql)))


@asynccontextmanager
async def async_psycopg_connection(url: str) -> AsyncIterator[Connected]:
    async with await psycopg.AsyncConnection.connect(url) as conn:
        yield Connected(conn, conn.execute)


@asynccontextmanager
async def async_psycopg_cursor(url: str) -> AsyncIterator[Connected]:
    async with await psycopg.AsyncConnection.connect(url) as conn, conn.cursor() as cursor:
        yield Connected(cursor, cursor.execute)


@asynccontextmanager
async def asyncpg_connection(url: str) -> AsyncIterator[Connected]:
    conn = await asyncpg.connect(url)
    # Some applications set this codec, which would encode a JSON text again.
    await conn.set_type_codec("jsonb", encoder=msgspec.json.encode, decoder=msgspec.json.decode, schema="pg_catalog", format="text")
    try:
        async with conn.transaction():
            yield Connected(conn, conn.execute)
    finally:
        await conn.close()


@asynccontextmanager
async def asyncpg_pooled_connection(url: str) -> AsyncIterator[Connected]:
    async with asyncpg.create_pool(url, min_size=1) as pool, pool.acquire() as conn, conn.transaction():
        yield Connected(conn, conn.execute)


@asynccontextmanager
async def async_sqlalchemy_connection(url: str) -> AsyncIterator[Connected]:
    async with closing_async_engine(url, "asyncpg") as engine, engine.begin() as conn:
        yield Connected(conn, lambda sql: conn.execute(sqlalchemy.text(sql)))


@asynccontextmanager
async def async_sqlalchemy_session(url: str) -> AsyncIterator[Connected]:
    async with closing_async_engine(url, "psycopg_async") as engine, AsyncSession(engine) as session, session.begin():
        yield Connected(session, lambda sql: session.execute(sqlalchemy.text(sql)))


WAYS = [
    *(psycopg_connection, psycopg_cursor, psycopg_with_other_rows),
    *(sqlalchemy_connection, sqlalchemy_session, sqlalchemy_scoped_session),
    *(async_psycopg_connection, async_psycopg_cursor, asyncpg_connection, asyncpg_pooled_connection),
    *(async_sqlalchemy_connection, async_sqlalchemy_session),
]


def _end(*, commit: bool) -> None:
    if not commit:
        raise Rollback


def in_one_transaction(way: Callable[[str], Any], url: str, submit: Callable[[Any], Any], *, commit: bool) -> Any:
    """Insert an order and submit in one transaction of this kind; return the result of the submission."""
    insert = "INSERT INTO orders VALUES (1)"

    async def awaited() -> Any:
        returned = None
        with suppress(Rollback):
            async with way(url) as (connection, execute):
                await execute(insert)
                returned = submit(connection)
                assert isinstance(returned, Awaitable)
                returned = await returned
                _end(commit=commit)
        return returned

    def called() -> Any:
        returned = None
        with suppress(Rollback), way(url) as (connection, execute):
            execute(insert)
            returned = submit(connection)
            _end(commit=commit)
        return returned

    return asyncio.run(awaited()) if "async" in way.__name__ else called()


@pytest.fixture
def database(database: Database) -> Database:
    database.rows("CREATE TABLE orders (number integer)")
    return database


@pytest.mark.parametrize("way", WAYS)
def test_after_a_commit_the_job_exists(way: Any, database: Database) -> None:
    job_id = in_one_transaction(
        way, database.url, lambda conn: jobqueue.submit(conn, "mail", {"to": "Ada ☂"}, priority=5), commit=True
    )
    assert database.rows("SELECT id::text, kind, payload, priority, queue FROM jobqueue_internal.pending_jobs") == [
        (job_id, "mail", {"to": "Ada ☂"}, 5, "default")
    ]
    assert database.value("SELECT count(*) FROM orders") == 1
    assert database.rows("SELECT xmin::text FROM jobqueue_internal.pending_jobs") == database.rows("SELECT xmin::text FROM orders")


@pytest.mark.parametrize("way", WAYS)
def test_after_a_rollback_the_job_does_not_exist(way: Any, database: Database) -> None:
    job_id = in_one_transaction(way, database.url, lambda conn: jobqueue.submit(conn, "mail"), commit=False)
    assert isinstance(job_id, str)
    assert database.states() == {}
    assert database.value("SELECT count(*) FROM orders") == 0


@pytest.mark.parametrize("way", WAYS)
def test_many_jobs_are_one_statement_and_keep_their_order(way: Any, database: Database) -> None:
    jobs = [{"kind": "mail", "payload": {"number": number}} for number in range(50)]
    ids = in_one_transaction(way, database.url, lambda conn: jobqueue.submit_many(conn, jobs), commit=True)
    assert isinstance(ids, list)
    assert database.rows("SELECT id::text FROM jobqueue_internal.pending_jobs ORDER BY rank") == [(job_id,) for job_id in ids]
    assert database.rows("SELECT payload FROM jobqueue_internal.pending_jobs ORDER BY rank") == [(job["payload"],) for job in jobs]


@pytest.mark.parametrize("way", [psycopg_connection, asyncpg_connection])
def test_zero_jobs_are_accepted(way: Any, database: Database) -> None:
    assert in_one_transaction(way, database.url, lambda conn: jobqueue.submit_many(conn, iter([])), commit=True) == []


def test_an_open_transaction_blocks_nobody(database: Database) -> None:
    node, others = str(uuid.uuid4()), [{"id": str(uuid.uuid4())} for _ in range(500)]  # enough ids to cover every lock
    with psycopg.connect(database.url) as conn, psycopg.connect(database.url, autocommit=True) as beside:
        jobqueue.submit_many(conn, [{"kind": "open"}] * 100)
        beside.execute("SET statement_timeout = '60s'")
        beside.execute("SELECT ids FROM jobqueue_internal.submit_batch(%s::jsonb, true)", [json.dumps(others)])
        beside.execute("SELECT jobqueue_internal.join_node(%s, 'here', 1, 'here', '0', '{\"default\": 1}', 30)", [node])
        [claimed] = beside.execute("SELECT jobqueue_internal.claim(%s, '{\"default\": [1, null]}')", [node]).fetchone() or [None]
        [[_, job_id, kind, *_]] = json.loads(claimed)
        assert kind == "default"
        outcome = {"id": job_id, "claims": 1, "outcome": "succeeded"}
        assert beside.execute("SELECT jobqueue_internal.finish(%s, %s::jsonb)", [node, json.dumps([outcome])]).fetchone() == ([],)
    assert database.states() == {"pending": 599, "succeeded": 1}


# ------------------------------------------------------------------------------------------------------------------ what is refused


CLOSED = type("Connection", (), {"__module__": "psycopg"})()
"""A connection on which every call fails."""


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"priority": -1}, InvalidJob, "priority"),
        ({"priority": "5"}, InvalidJob, "priority"),
        ({"kind": ""}, InvalidJob, "kind"),
        ({"kind": 5}, InvalidJob, "kind"),
        ({"kind": "a\0"}, UnprocessableJob, "kind"),
        ({"run_at": datetime(2030, 1, 1)}, InvalidJob, "run_at"),  # noqa: DTZ001 - a time without a zone is rejected
        ({"delay": 5, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, InvalidJob, "delay"),
        ({"prio": 5}, InvalidJob, "prio"),
        ({"payload": {"a": "\0"}}, UnprocessableJob, "payload"),
        ({"payload": {"a": math.nan}}, UnprocessableJob, "payload"),
        ({"payload": object()}, UnprocessableJob, "payload"),
        ({"payload": "x" * MAX_PAYLOAD_BYTES}, PayloadTooLarge, "payload"),
        ({"idempotency_key": "\ud800"}, UnprocessableJob, "idempotency_key"),
    ],
    ids=lambda value: str(value)[:30].partition(" at 0x")[0] if isinstance(value, dict) else "",
)
def test_unstorable_jobs_are_rejected_before_anything_is_sent(fields: dict[str, Any], error: type[InvalidJob], field: str) -> None:
    with pytest.raises(InvalidJob) as refused:
        jobqueue.submit(CLOSED, **{"kind": "a", **fields})
    assert (type(refused.value), refused.value.field, refused.value.index) == (error, field, None)
    with pytest.raises(InvalidJob) as refused:
        jobqueue.submit_many(CLOSED, [{"kind": "a"}, fields])
    assert (type(refused.value), refused.value.field, refused.value.index) == (error, field, 1)


@pytest.mark.parametrize("fields", [{"priority": -1}, {"kind": 5}, {"timeout": "x"}, {"delay": -1}, {"unique": "no"}, {"prio": 5}])
def test_errors_have_the_words_of_http(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob) as over_http:
        read(fields, Submission, what="a job", refuse=InvalidJob)
    with pytest.raises(InvalidJob) as in_python:
        jobqueue.submit(CLOSED, **{"kind": "a", **fields})
    assert (str(in_python.value), in_python.value.field) == (str(over_http.value), over_http.value.field)


def test_other_objects_than_jobs_and_too_many_jobs_are_rejected() -> None:
    with pytest.raises(InvalidJob, match="must be a mapping"):
        jobqueue.submit_many(CLOSED, ["mail"])  # type: ignore[list-item]
    with pytest.raises(BatchTooLarge, match=str(MAX_BATCH_JOBS)):
        jobqueue.submit_many(CLOSED, ({} for _ in range(MAX_BATCH_JOBS + 1)))


@pytest.mark.parametrize("conn", [None, "postgresql://", sqlalchemy.create_engine("postgresql+psycopg://")], ids=str)
def test_the_error_for_an_unsupported_connection_lists_the_supported_ones(conn: Any) -> None:
    with pytest.raises(TypeError, match=r"psycopg\.Connection.*asyncpg\.Connection.*AsyncSession, got "):
        jobqueue.submit(conn, "mail")
    with pytest.raises(TypeError, match="got "):
        jobqueue.submit_many(conn, [])


def test_no_database_driver_is_imported() -> None:
    script = "import jobqueue, sys; print(sorted({'psycopg', 'asyncpg', 'sqlalchemy'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
