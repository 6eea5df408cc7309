"""Submit jobs in the caller's own transaction, on the caller's connection.

::

    with psycopg.connect(...) as conn:
        conn.execute("INSERT INTO orders ...")
        jobqueue.submit(conn, "invoice", {"order": 1}, priority=5)
    # after a commit, both the order and the job exist; after a rollback, neither does

Before anything is sent, the job passes the same checks as over HTTP. This module loads no driver: it recognizes a connection by
the name of its class, and the caller has loaded the driver.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol, TypedDict, Unpack, overload

import msgspec

from jobqueue import documents, tracing
from jobqueue.admission import new_job
from jobqueue.errors import BatchTooLarge, InvalidJob, UnprocessableJob
from jobqueue.fields import read
from jobqueue.job import MAX_BATCH_JOBS, Submission
from jobqueue.schema_names import DEFAULT, render


class SyncConnection(Protocol):
    """The type of a sync connection for type checkers; `submit` itself is stricter."""

    def execute(self, *args: Any, **options: Any) -> Any: ...


class AsyncConnection(Protocol):
    """The type of an async connection for type checkers."""

    def execute(self, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]: ...


class Fields(TypedDict, total=False):
    """The fields of a job besides its kind and payload: the same as over HTTP."""

    queue: str
    priority: int
    max_retries: int | None
    run_at: datetime | None
    delay: float | None
    timeout: float | None
    expires_at: datetime | None
    expires_in: float | None
    group: str | None
    weight: float | None
    concurrency_key: str | None
    unique: bool | None
    unique_key: str | None
    idempotency_key: str | None
    traceparent: str | None
    tracestate: str | None


@overload
def submit(
    conn: AsyncConnection, kind: str, payload: Any = ..., *, schema: str | None = ..., **fields: Unpack[Fields]
) -> Awaitable[str]: ...
@overload
def submit(conn: SyncConnection, kind: str, payload: Any = ..., *, schema: str | None = ..., **fields: Unpack[Fields]) -> str: ...
def submit(
    conn: Any, kind: str, payload: Any = None, *, schema: str | None = None, **fields: Unpack[Fields]
) -> str | Awaitable[str]:
    """Submit a job in the current transaction of a connection. After a commit the job exists; after a rollback it does not.

    Args:
        conn: a connection or cursor of psycopg, a connection of asyncpg, or a connection or session of SQLAlchemy, sync or
            async. In autocommit mode, the job is committed at once.
        kind: the kind of the job, which selects its handler.
        payload: any value that `msgspec.json` can encode, up to 1 MiB as JSON; None is ``{}``.
        schema: the name of the queue's schemas, as in ``jobqueue serve --schema``. The default is the queue of the handler on a
            handler's connection, and ``jobqueue`` elsewhere.
        **fields: the same fields as over HTTP. Times need a UTC offset, and durations are in seconds. Without a `traceparent`, the
            job gets the trace of the current span, if there is one.

    Returns:
        The job's id; on an async connection, an awaitable of the id. If a job with one of the keys already exists, the id is that
        of the existing job.

    Raises:
        TypeError: `conn` is not one of these connections.
        SettingsError: `schema` is not a valid name.
        InvalidJob, UnprocessableJob, PayloadTooLarge: the job is invalid; nothing was sent. The error names the field.
    """
    execute = _executor(conn)
    document = _document({"kind": kind, "payload": payload, **fields})
    answer: str | Awaitable[str] = execute(conn, schema, documents.join([document]), _first)
    return answer


@overload
def submit_many(conn: AsyncConnection, jobs: Iterable[Mapping[str, Any]], *, schema: str | None = ...) -> Awaitable[list[str]]: ...
@overload
def submit_many(conn: SyncConnection, jobs: Iterable[Mapping[str, Any]], *, schema: str | None = ...) -> list[str]: ...
def submit_many(conn: Any, jobs: Iterable[Mapping[str, Any]], *, schema: str | None = None) -> list[str] | Awaitable[list[str]]:
    """Submit jobs like `submit`, all in one statement.

    Args:
        conn: see `submit`.
        jobs: one mapping per job with the fields of `submit`, "kind" and "payload" included; at most `MAX_BATCH_JOBS`.
        schema: see `submit`.

    Returns:
        The ids in the order of the jobs.

    Raises:
        TypeError, SettingsError: see `submit`.
        InvalidJob, UnprocessableJob, PayloadTooLarge, BatchTooLarge: see `submit`; the error also has the job's index.
    """
    execute = _executor(conn)
    encoded: list[bytes] = []
    for job in jobs:
        if len(encoded) == MAX_BATCH_JOBS:
            raise BatchTooLarge(f"the batch has more than {MAX_BATCH_JOBS} jobs: split it into smaller batches")
        try:
            encoded.append(_document(job))
        except InvalidJob as error:
            error.index = len(encoded)
            raise
    answer: list[str] | Awaitable[list[str]] = execute(conn, schema, documents.join(encoded), list)
    return answer


# ------------------------------------------------------------------------------------------------------------------------ the job


def _document(fields: Mapping[str, Any]) -> bytes:
    """Check a job and encode it for ``jobqueue.submit_many``, which checks it again, because any role with EXECUTE can call it."""
    if not isinstance(fields, Mapping):
        raise InvalidJob(f"a job must be a mapping of its fields, got {type(fields).__name__}")
    try:
        payload = documents.encode(fields.get("payload"))
    except documents.RefusedDocument as error:
        raise UnprocessableJob(f"payload cannot be stored: {error}", field="payload") from None
    trace = {} if "traceparent" in fields else tracing.current_headers()
    given = {**trace, **fields, "payload": msgspec.Raw(payload)}
    try:
        submission = msgspec.convert(given, Submission)
    except msgspec.ValidationError:
        submission = read(given, Submission, what="a job", refuse=InvalidJob)  # slower, but its errors name the field
    submission.payload = new_job(submission).payload
    return documents.encode(submission)


# ----------------------------------------------------------------------------------------------------------------- the connections

# Parameters and results are text, because all drivers handle text alike. The database chooses the ids. If the statement contained
# ids, the database would first check for existing jobs, under locks that last until the end of the caller's transaction.
_SQL = "SELECT array_to_json(jobqueue.submit_many(CAST(CAST({} AS text) AS jsonb)))::text"


@functools.lru_cache
def _sql(schema: str | None, parameter: str) -> str:
    return render(_SQL, DEFAULT if schema is None else schema).format(parameter)


_ids = msgspec.json.Decoder(list[str]).decode
_Execute = Callable[[Any, str | None, str, Callable[[list[str]], Any]], Any]
"""Submits jobs on a connection to a queue. Calls its last argument with their ids, and returns the result or an awaitable of it."""


def _first(ids: list[str]) -> str:
    return ids[0]


def _psycopg(conn: Any, schema: str | None, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    import psycopg  # noqa: PLC0415 - only callers with a psycopg connection have it
    from psycopg.rows import tuple_row  # noqa: PLC0415

    if schema is None:
        schema = getattr(conn, "jobqueue_schema", None)  # the connection of a handler has this attribute
    # Use a plain cursor, because the connection may have its own cursor class or row factory.
    row = psycopg.Cursor(conn, row_factory=tuple_row).execute(_sql(schema, "%s"), [jobs]).fetchone()
    assert row is not None  # noqa: S101 - the statement returns one row
    return answer(_ids(row[0]))


async def _async_psycopg(conn: Any, schema: str | None, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    import psycopg  # noqa: PLC0415
    from psycopg.rows import tuple_row  # noqa: PLC0415

    cursor = await psycopg.AsyncCursor(conn, row_factory=tuple_row).execute(_sql(schema, "%s"), [jobs])
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101
    return answer(_ids(row[0]))


async def _asyncpg(conn: Any, schema: str | None, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    return answer(_ids(await conn.fetchval(_sql(schema, "$1"), jobs)))


def _sqlalchemy(conn: Any, schema: str | None, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return answer(_ids(conn.execute(text(_sql(schema, ":jobs")), {"jobs": jobs}).scalar_one()))


async def _async_sqlalchemy(conn: Any, schema: str | None, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return answer(_ids((await conn.execute(text(_sql(schema, ":jobs")), {"jobs": jobs})).scalar_one()))


_EXECUTORS: dict[str, _Execute] = {
    "psycopg.Connection": _psycopg,
    "psycopg.Cursor": lambda cursor, *rest: _psycopg(cursor.connection, *rest),
    "psycopg.AsyncConnection": _async_psycopg,
    "psycopg.AsyncCursor": lambda cursor, *rest: _async_psycopg(cursor.connection, *rest),
    "asyncpg.connection.Connection": _asyncpg,
    "asyncpg.pool.PoolConnectionProxy": _asyncpg,
    "sqlalchemy.engine.base.Connection": _sqlalchemy,
    "sqlalchemy.orm.session.Session": _sqlalchemy,
    "sqlalchemy.orm.scoping.scoped_session": _sqlalchemy,
    "sqlalchemy.ext.asyncio.engine.AsyncConnection": _async_sqlalchemy,
    "sqlalchemy.ext.asyncio.session.AsyncSession": _async_sqlalchemy,
}

_TAKEN = (
    "psycopg.Connection or AsyncConnection, a cursor of one, an asyncpg.Connection, or a SQLAlchemy Connection, Session, "
    "AsyncConnection or AsyncSession"
)


def _executor(conn: object) -> _Execute:
    for cls in type(conn).__mro__:
        execute = _EXECUTORS.get(f"{cls.__module__}.{cls.__qualname__}")
        if execute is not None:
            return execute
    raise TypeError(f"conn must be a {_TAKEN}, got {type(conn).__module__}.{type(conn).__qualname__}")
