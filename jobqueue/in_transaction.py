"""Submit jobs inside of the caller's own transaction, on the connection that it has.

::

    with psycopg.connect(...) as conn:
        conn.execute("INSERT INTO orders ...")
        jobqueue.submit(conn, "invoice", {"order": 1}, priority=5)
    # committed: the order and the job are there; rolled back: neither ever was

The job passes the same checks as one that comes over HTTP, before anything is sent. No driver is loaded for this: a connection is
known by the name of its class, and whoever has one has loaded its driver.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol, TypedDict, Unpack, overload

import msgspec

from jobqueue import documents, tracing
from jobqueue.admission import new_job
from jobqueue.errors import BatchTooLarge, InvalidJob, UnprocessableJob
from jobqueue.job import MAX_BATCH_JOBS, Submission


class SyncConnection(Protocol):
    """What a type checker knows a sync connection by; `submit` is stricter."""

    def execute(self, *args: Any, **options: Any) -> Any: ...


class AsyncConnection(Protocol):
    """What a type checker knows an async connection by."""

    def execute(self, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]: ...


class Fields(TypedDict, total=False):
    """What may be said of a job beside its kind and payload: the fields of a submission over HTTP."""

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
def submit(conn: AsyncConnection, kind: str, payload: Any = ..., **fields: Unpack[Fields]) -> Awaitable[str]: ...
@overload
def submit(conn: SyncConnection, kind: str, payload: Any = ..., **fields: Unpack[Fields]) -> str: ...
def submit(conn: Any, kind: str, payload: Any = None, **fields: Unpack[Fields]) -> str | Awaitable[str]:
    """Submit a job in the transaction that the connection is in: commit and the job exists, roll back and it never did.

    Args:
        conn: a connection or cursor of psycopg, a connection of asyncpg, or a connection or session of SQLAlchemy, be it sync or
            async. One in autocommit mode commits the job at once.
        kind: which handler serves it.
        payload: what `msgspec.json` can encode, 1 MiB as JSON at most; None is ``{}``.
        **fields: as over HTTP. Times have their UTC offset, durations are in seconds. Without a `traceparent` the job is of the
            trace whose span is the current one here, if there is one.

    Returns:
        The job's id; for an async connection something to await it from. It is that of another job where one of its keys says so.

    Raises:
        TypeError: it is no such connection.
        InvalidJob, UnprocessableJob, PayloadTooLarge: nothing was sent; the error names the field.
    """
    execute = _executor(conn)
    document = _document({"kind": kind, "payload": payload, **fields})
    answer: str | Awaitable[str] = execute(conn, documents.join([document]), _first)
    return answer


@overload
def submit_many(conn: AsyncConnection, jobs: Iterable[Mapping[str, Any]]) -> Awaitable[list[str]]: ...
@overload
def submit_many(conn: SyncConnection, jobs: Iterable[Mapping[str, Any]]) -> list[str]: ...
def submit_many(conn: Any, jobs: Iterable[Mapping[str, Any]]) -> list[str] | Awaitable[list[str]]:
    """Submit jobs as `submit` does, all in one statement.

    Args:
        conn: see `submit`.
        jobs: each with the fields of `submit` by name, "kind" and "payload" among them; at most `MAX_BATCH_JOBS`.

    Returns:
        The ids in the order of the jobs.

    Raises:
        TypeError, InvalidJob, UnprocessableJob, PayloadTooLarge, BatchTooLarge: see `submit`; the error has the job's index, too.
    """
    execute = _executor(conn)
    encoded: list[bytes] = []
    for job in jobs:
        if len(encoded) == MAX_BATCH_JOBS:
            raise BatchTooLarge(f"more than {MAX_BATCH_JOBS} jobs in one batch: submit it in parts")
        try:
            encoded.append(_document(job))
        except InvalidJob as error:
            error.index = len(encoded)
            raise
    answer: list[str] | Awaitable[list[str]] = execute(conn, documents.join(encoded), list)
    return answer


# ------------------------------------------------------------------------------------------------------------------------ the job


def _document(fields: Mapping[str, Any]) -> bytes:
    """Check a job and encode it for the database."""
    if not isinstance(fields, Mapping):
        raise InvalidJob(f"a job must be a mapping of its fields, got {type(fields).__name__}")
    try:
        payload = documents.encode(fields.get("payload"))
    except documents.RefusedDocument as error:
        raise UnprocessableJob(f"payload cannot be stored: {error}", field="payload") from None
    try:
        trace = {} if "traceparent" in fields else tracing.current_headers()
        submission = msgspec.convert({**trace, **fields, "payload": msgspec.Raw(payload)}, Submission)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    return documents.encode(new_job(submission))


def _invalid(reason: str) -> InvalidJob:
    """Name the field in what msgspec says: "Expected `int` >= 0 - at `$.priority`", "Object contains unknown field `prio`"."""
    at = re.fullmatch(r"(?s)(.*) - at `\$\.(\w+)`", reason)
    if at is not None:
        return InvalidJob(f"{at[2]}: {at[1]}", field=at[2])
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason)
    return InvalidJob(reason) if unknown is None else InvalidJob(f"jobs have no field {unknown[1]!r}", field=unknown[1])


# ----------------------------------------------------------------------------------------------------------------- the connections

# Text in and text out: no driver has an opinion on that, whatever its types are mapped to. The ids are the database's: for those of
# ours it would look first, under locks that last until the end of the caller's transaction.
_SQL = "SELECT array_to_json(ids)::text FROM jobqueue.submit_batch(CAST(CAST({} AS text) AS jsonb), uncounted => true)"

_ids = msgspec.json.Decoder(list[str]).decode
_Execute = Callable[[Any, str, Callable[[list[str]], Any]], Any]
"""Submits jobs on a connection, and returns, or has awaited, what the last argument makes of their ids."""


def _first(ids: list[str]) -> str:
    return ids[0]


def _psycopg(conn: Any, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    import psycopg  # noqa: PLC0415 - the caller has it, but not everyone does
    from psycopg.rows import tuple_row  # noqa: PLC0415

    # A plain cursor, whatever the connection's own would make of the statement and of its row.
    row = psycopg.Cursor(conn, row_factory=tuple_row).execute(_SQL.format("%s"), [jobs]).fetchone()
    assert row is not None  # noqa: S101 - it is one batch
    return answer(_ids(row[0]))


async def _async_psycopg(conn: Any, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    import psycopg  # noqa: PLC0415
    from psycopg.rows import tuple_row  # noqa: PLC0415

    cursor = await psycopg.AsyncCursor(conn, row_factory=tuple_row).execute(_SQL.format("%s"), [jobs])
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101
    return answer(_ids(row[0]))


async def _asyncpg(conn: Any, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    return answer(_ids(await conn.fetchval(_SQL.format("$1"), jobs)))


def _sqlalchemy(conn: Any, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return answer(_ids(conn.execute(text(_SQL.format(":jobs")), {"jobs": jobs}).scalar_one()))


async def _async_sqlalchemy(conn: Any, jobs: str, answer: Callable[[list[str]], Any]) -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return answer(_ids((await conn.execute(text(_SQL.format(":jobs")), {"jobs": jobs})).scalar_one()))


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
    "psycopg.Connection, psycopg.AsyncConnection or a cursor of theirs, asyncpg.Connection, or SQLAlchemy's Connection, Session, "
    "AsyncConnection or AsyncSession"
)


def _executor(conn: object) -> _Execute:
    for cls in type(conn).__mro__:
        execute = _EXECUTORS.get(f"{cls.__module__}.{cls.__qualname__}")
        if execute is not None:
            return execute
    raise TypeError(f"jobs are submitted on a {_TAKEN}, got {type(conn).__module__}.{type(conn).__qualname__}")
