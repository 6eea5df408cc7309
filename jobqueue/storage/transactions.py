"""Handlers' own transactions: what a handler writes and the completion of its job are committed together, or neither is.

::

    transactions = Transactions(url, most=16, keep_finished=True)
    async with transactions.open() as transaction:                       # waits for a connection
        await trio.to_thread.run_sync(transaction.run, node_id, work)    # in a thread: BEGIN, work(connection), finish, COMMIT

The completion is one more statement of the transaction, and fenced like any other: a run that is not this node's any more finds its
row gone, and everything is rolled back. So it does not matter how late a thread comes that was left behind. Its connection is cut
all the same, for the locks that it holds.

The lock on the job's row is taken by that last statement: other completions wait for it only while this one is being committed, and
PostgreSQL ends a transaction whose COMMIT does not arrive (`database.ABANDONED_AFTER`).

The connections are of a kind that the lanes of `store` are not: a user's code runs on each, for as long as it likes.
"""

from __future__ import annotations

import os
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

import psycopg
import trio
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from jobqueue.errors import CommitInDoubt, DatabaseUnavailable, NoConnection
from jobqueue.storage.database import (
    ABANDONED_AFTER,
    REPLY_TIMEOUT,
    Connection,
    behind_pooler,
    connect,
    ended_by_server,
    one_line,
    severed_by,
)

MAX_TRANSACTIONS = 16
"""The most transactions of handlers that a node has open at once, each on a connection of its own."""

CONNECT_PATIENCE = 10.0
"""Seconds for which a run waits for PostgreSQL to let it connect; then its job is handed back."""

CONNECT_AGAIN = 0.5
"""Seconds between two tries to connect, at the most."""

CANCEL_TIMEOUT = 2.0
"""Seconds for PostgreSQL to be told that a statement is not wanted any more."""

Work = Callable[[Connection], bytes]
"""What a handler does with the connection. It returns the run's outcome, encoded."""

_FINISH = b"SELECT jobqueue.finish(%s, %s::jsonb, %s), set_config('idle_in_transaction_session_timeout', %s, true)"

_RESET = b"""
    CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD TEMP
"""
"""DISCARD ALL, but that what PostgreSQL has prepared and planned stays."""


@dataclass(slots=True)
class _Line:
    """A connection, and a second hold of its socket, which another thread can cut while the connection is in use.

    Attributes:
        pooled: whether a pooler stands before PostgreSQL.
    """

    connection: Connection
    socket: socket.socket
    pooled: bool = False

    def prepare(self) -> None:
        """Make it what a handler expects of a connection."""
        self.pooled = behind_pooler(self.connection)
        self.reset()

    def close(self) -> None:
        self.connection.close()
        self.socket.close()

    def reset(self) -> None:
        """Undo what a handler may have changed, for the next one. A pooler's sessions are not ours to reset."""
        connection = self.connection
        connection.reply_timeout = REPLY_TIMEOUT
        if not self.pooled:
            connection.execute(_RESET)
        connection.reply_timeout = None
        connection.row_factory = tuple_row
        connection.cursor_factory = psycopg.Cursor
        connection.prepare_threshold = None if self.pooled else 5  # psycopg's own; behind a pooler nothing stays prepared


class Transactions:
    """The transactions of a node's handlers, on connections that are opened when they are needed.

    Args:
        url: a libpq URL or connection string.
        most: how many may be open at once; further ones wait.
        keep_finished: whether jobs that succeed are kept.
    """

    def __init__(self, url: str, *, most: int, keep_finished: bool) -> None:
        self._url = url
        self._keep_finished = keep_finished
        self._places = trio.CapacityLimiter(most)
        self._connecting = trio.CapacityLimiter(most)
        self._idle: list[_Line] = []
        self._closed = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Transaction]:
        """Wait for a connection, and hold it for one transaction. Whoever leaves before its end cuts it off.

        Raises:
            NoConnection: there is none to be had.
        """
        async with self._places:
            transaction = Transaction(await self._take(), self._give_back, keep_finished=self._keep_finished)
            try:
                yield transaction
            finally:
                transaction.leave()

    def close(self) -> None:
        """Close the connections that nobody uses, and the others when they are given back. None of that waits for PostgreSQL."""
        self._closed = True
        self._close_idle()

    async def _take(self) -> _Line:
        give_up_at = trio.current_time() + CONNECT_PATIENCE
        while True:
            while self._idle:
                line = self._idle.pop()
                if not ended_by_server(line.connection):
                    return line
                line.close()
            try:
                # Whoever is cancelled meanwhile leaves a connection for the next one.
                await trio.to_thread.run_sync(self._connect, limiter=self._connecting, abandon_on_cancel=True)
            except DatabaseUnavailable as error:
                if trio.current_time() > give_up_at:
                    raise NoConnection(str(error)) from error
                await trio.sleep(CONNECT_AGAIN * random.uniform(0.5, 1))

    def _connect(self) -> None:
        connection = connect(self._url, "transaction")
        connection.reply_timeout = REPLY_TIMEOUT
        line = _Line(connection, socket.socket(fileno=os.dup(connection.fileno())))
        try:
            line.prepare()
        except psycopg.Error as error:
            line.close()
            raise DatabaseUnavailable(f"cannot prepare a connection: {one_line(error)}") from error
        self._keep(line)

    def _give_back(self, line: _Line, *, usable: bool) -> None:
        if usable and line.connection.info.transaction_status is TransactionStatus.IDLE:
            with suppress(psycopg.Error):
                line.reset()
                self._keep(line)
                return
        line.close()

    def _keep(self, line: _Line) -> None:
        self._idle.append(line)
        if self._closed:
            self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):  # several threads may be at it
            while True:
                self._idle.pop().close()


class Transaction:
    """One handler's transaction: run once, in a thread, and left by who waits for it, maybe before its end."""

    def __init__(self, line: _Line, give_back: Callable[..., None], *, keep_finished: bool) -> None:
        self._line = line
        self._give_back = give_back
        self._keep_finished = keep_finished
        self._lock = threading.Lock()
        self._state: Literal["ready", "running", "over"] = "ready"
        self._left = False

    def run(self, node_id: str, work: Work) -> bool:
        """Begin, call ``work(connection)``, complete the job with what it returns, and commit. Call it in a thread.

        What `work` raises rolls everything back, and is raised.

        Returns:
            True when it is committed; False when the run was not this node's any more, and everything was rolled back.

        Raises:
            CommitInDoubt: the connection broke during the commit.
            psycopg.Error: the transaction cannot be committed.
        """
        with self._lock:
            if self._left:
                raise psycopg.OperationalError("nobody waits for this transaction")  # and for nobody is this error
            self._state = "running"
        usable = True
        try:
            return self._run(node_id, work)
        except psycopg.errors.ReadOnlySqlTransaction:
            usable = False  # the server became a standby, maybe: the next connection may find the new primary
            raise
        finally:
            with self._lock:
                self._state = "over"
                usable = usable and not self._left
            self._give_back(self._line, usable=usable)

    def leave(self) -> None:
        """Wait no longer: what still runs is cut off. Neither that nor giving an unused connection back is for the loop to do."""
        with self._lock:
            self._left = True
            if self._state == "over":
                return
            end = self._cut_off if self._state == "running" else partial(self._give_back, self._line, usable=True)
        trio.lowlevel.start_thread_soon(end, lambda _: None)

    def _run(self, node_id: str, work: Work) -> bool:
        connection = self._line.connection
        stale = committing = False
        try:
            # In psycopg's block the handler cannot commit or roll back by itself: psycopg refuses, with the reason.
            with connection.transaction():
                outcome = work(connection)
                if connection.info.transaction_status is TransactionStatus.IDLE:
                    raise psycopg.ProgrammingError("the handler ended the transaction that its job was to be completed in")
                stale = self._finish(node_id, outcome)
                if stale:
                    raise psycopg.Rollback
                committing = True
        except psycopg.Error as error:
            if committing and severed_by(connection, error):
                raise CommitInDoubt(f"the connection broke during the commit: {one_line(error)}") from error
            raise
        if not (stale or committing):
            raise psycopg.ProgrammingError("the handler rolled its transaction back by raising psycopg.Rollback")
        return committing

    def _finish(self, node_id: str, outcome: bytes) -> bool:
        """Complete the job; return whether the run is stale."""
        connection = self._line.connection
        connection.reply_timeout = REPLY_TIMEOUT  # for the COMMIT, too
        cursor = psycopg.Cursor(connection, row_factory=tuple_row)  # the handler may have set the connection's to another
        params = (node_id, f"[{outcome.decode()}]", self._keep_finished, f"{ABANDONED_AFTER}s")
        row = cursor.execute(_FINISH, params).fetchone()
        return row is None or bool(row[0])

    def _cut_off(self) -> None:
        # The thread that is left behind gets an error from its present statement or the next one. The cancellation is for what
        # PostgreSQL is doing at this moment: it would notice the end of the connection only afterwards.
        try:
            with suppress(psycopg.Error):
                self._line.connection.cancel_safe(timeout=CANCEL_TIMEOUT)
        finally:
            with suppress(OSError):  # it is over already
                self._line.socket.shutdown(socket.SHUT_RDWR)
