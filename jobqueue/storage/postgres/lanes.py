"""The connections of a node's store, and the calls that its verbs make on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import trio

from jobqueue import documents
from jobqueue.errors import DatabaseUnavailable
from jobqueue.schema_names import DEFAULT
from jobqueue.storage import schema as schemas
from jobqueue.storage.connection import Connection
from jobqueue.storage.lane import POOLED, Lane
from jobqueue.storage.roles.run import Ranks

SUBMIT_TIMEOUT = 15.0
"""Maximum seconds for the transaction of one batch of submissions, because callers wait for the response."""

IN_LOOP_CHARACTERS = 64 << 10
"""Maximum length, in characters, of a batch that is sent from the Trio loop, not from a thread. Sending it blocks the loop for less
than a millisecond."""

INSPECT_TIMEOUT = 10.0
"""Maximum seconds for a query that an operator or a scrape has requested."""

OUTAGE_AFTER = 1.0
"""If all calls on a lane have failed for this many seconds, the database counts as unavailable. A shorter failure may be one broken
connection."""

SLOW_AFTER = 5.0
"""Seconds after which an unfinished submission, claim, or write of outcomes makes the node not ready."""

HEARTBEAT_TIMEOUT = 4.0
"""Maximum seconds for one heartbeat. It is short, so that several attempts fit into one lease."""

SETTLE_TIMEOUT = 5.0
"""Seconds to wait for the session of a lost connection to end. After that, the caller must try again."""

T = TypeVar("T")


class Lanes:
    """One connection for each kind of work, so that no kind of work waits for another.

    Args:
        url: a libpq URL or connection string.
        schema: the name of the queue's schemas.
    """

    def __init__(self, url: str, schema: str = DEFAULT) -> None:
        self.url = url
        self.schema = schema
        self._submit = Lane(url, "submit", reply_timeout=SUBMIT_TIMEOUT, schema=schema)
        self._claim = Lane(url, "claim", schema=schema)
        self._finish = Lane(url, "finish", schema=schema)
        self._heartbeat = Lane(url, "heartbeat", reply_timeout=HEARTBEAT_TIMEOUT, schema=schema)
        self._housekeeping = Lane(url, "housekeeping", schema=schema)
        self._inspect = Lane(url, "inspect", reply_timeout=INSPECT_TIMEOUT, schema=schema)

    def slow_calls(self) -> dict[str, float]:
        lanes = {"submission": self._submit, "claim": self._claim, "write of outcomes": self._finish}
        return {name: lane.waiting for name, lane in lanes.items() if lane.waiting > SLOW_AFTER}

    async def migrate(self) -> None:
        await self._housekeeping.run(schemas.migrate)
        await self._housekeeping.run(schemas.finish_if_alone)

    async def require_schema(self) -> None:
        await self._housekeeping.run(schemas.require)

    async def aclose(self) -> None:
        async with trio.open_nursery() as nursery:
            for lane in (self._submit, self._claim, self._finish, self._heartbeat, self._housekeeping, self._inspect):
                nursery.start_soon(lane.aclose)


def as_text(value: object) -> str:
    return documents.encode(value).decode()


def fetch_value(sql: str, *params: Any) -> Callable[[Connection], object]:
    def work(connection: Connection) -> object:
        row = connection.execute(sql, params, prepare=True).first()
        return row[0] if row else None

    return work


def fetch_rows(sql: str, *params: Any) -> Callable[[Connection], list[dict[str, Any]]]:
    def work(connection: Connection) -> list[dict[str, Any]]:
        rows = connection.execute(sql, params, prepare=True)
        return [dict(zip(rows.names, row, strict=True)) for row in rows]

    return work


def fetch_values(kind: type[T], sql: str, *params: Any) -> Callable[[Connection], list[T]]:
    """Decode the only column of each row, the text of a JSON object. Ignore keys of the object that `kind` does not have."""

    def work(connection: Connection) -> list[T]:
        decode = msgspec.json.Decoder(kind).decode
        return [decode(str(text)) for [text] in connection.execute(sql, params, prepare=True)]

    return work


def integer(value: object) -> int:
    assert isinstance(value, int)  # noqa: S101 - count(*) or integer
    return value


def optional_text(value: object) -> str | None:
    assert value is None or isinstance(value, str)  # noqa: S101 - text
    return value


def ranks(value: object) -> Ranks:
    assert isinstance(value, dict)  # noqa: S101 - jsonb, an object
    return value


def settle(connection: Connection, backend: tuple[int, str], *, patience: float = SETTLE_TIMEOUT) -> None:
    """Wait until the transaction of a lost connection has ended, by commit or rollback.

    On a direct connection, PostgreSQL may still receive a statement after the connection broke. So this function ends the session.
    This does not interrupt a commit in progress.

    With a pooler, this function does not end the session, because the session may already serve another client. There, only a lost
    COMMIT is in doubt. The transaction holds an advisory lock until it ends, so this function waits for that lock. PostgreSQL rolls
    back a transaction whose COMMIT does not arrive within `lane.ABANDONED_AFTER` seconds.

    Args:
        connection: another connection.
        backend: the identity of the lost connection's backend; see `lane`.
        patience: seconds to wait for the session's end, on a direct connection.

    Raises:
        DatabaseUnavailable: the session has not ended in this time.
    """
    if backend[1] == POOLED:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", backend[:1])
        return
    sql = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE pid = %s AND backend_start = %s::timestamptz AND application_name LIKE 'jobqueue %%' AND pid <> pg_backend_pid()
    """
    deadline = time.monotonic() + patience
    while connection.execute(sql, backend):
        if time.monotonic() > deadline:
            raise DatabaseUnavailable("PostgreSQL has not ended the session of a lost connection yet")
        time.sleep(0.02)
