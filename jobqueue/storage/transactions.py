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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, NoReturn

import psycopg
import trio
from psycopg import errors as pg
from psycopg.pq import Escaping, PGconn, PipelineStatus, TransactionStatus, abc

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

STRAGGLER_PATIENCE = 1.0
"""Seconds for a statement of a thread that the handler left behind to notice that its connection was cut."""

Work = Callable[[Connection], bytes]
"""What a handler does with the connection. It returns the run's outcome, encoded."""

# READ WRITE and READ COMMITTED overrule the defaults of the database and the role. The setting is local: it is gone as soon as this
# transaction is over. It takes no snapshot, so the handler can still choose another isolation level.
_BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL jobqueue.transaction = 'begun'"

# The handler may have become another role, which may not complete jobs.
_FINISH = b"""
    RESET SESSION AUTHORIZATION; RESET ROLE;
    SELECT pg_catalog.current_setting('jobqueue.transaction', true), jobqueue.finish(%b, %b, %b),
           pg_catalog.set_config('idle_in_transaction_session_timeout', %b, true)
"""

_RESET = b"""
    SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; CLOSE ALL; RESET ALL; DEALLOCATE ALL; UNLISTEN *;
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; SET idle_session_timeout = 0
"""
"""DISCARD ALL without DISCARD PLANS, so that the plans in jobqueue's functions stay. RESET ROLE goes back to the role's default.

An idle session is for the next handler: no default of the database may end it."""

_ENDED = (
    "the handler ended the transaction that its job was to be completed in (COMMIT, ROLLBACK, PREPARE TRANSACTION, or RESET ALL,"
    " which hides that): leave these out, and return to commit, or raise to roll back"
)
_CLOSED = "the handler closed its connection: leave it open, jobqueue completes the job on it"
_ABORTED = (
    "current transaction is aborted: the handler caught an error of PostgreSQL and returned. Let the error propagate, or run the"
    " statement that may fail in a block of its own (with conn.transaction():)"
)
_IN_USE = (
    "the handler returned while its connection was in use: wait for the threads that use it, and read or write all of a COPY, of"
    " cursor.stream(), or of conn.notifies()"
)
_READ_ONLY = "the handler made its transaction read-only, so its job cannot be completed in it: leave out SET TRANSACTION READ ONLY"


def _no_session() -> abc.PGconn:
    """Return a closed connection of libpq."""
    pgconn = PGconn.connect_start(b"nowhere")  # libpq cannot read this, so it contacts nobody
    pgconn.finish()
    return pgconn


_NO_SESSION = _no_session()


class HandlerConnection(Connection):
    """The connection that one handler gets. It shares a session of PostgreSQL, but nothing else, with those before and after it.

    Whatever the handler changes on it (adapters, factories, callbacks) ends with it. So does the use of it: once the handler has
    returned, a thread or an object that still holds it meets a closed connection, and never the next handler's transaction.
    """

    def commit(self) -> NoReturn:
        raise psycopg.ProgrammingError("Explicit commit() forbidden: jobqueue commits when the handler returns")

    def rollback(self) -> NoReturn:
        raise psycopg.ProgrammingError("Explicit rollback() forbidden: jobqueue rolls back when the handler raises")

    def settle(self) -> None:
        """Wait for what is under way in a pipeline that the handler left open, and check that its transaction is.

        Raises:
            psycopg.Error: a statement in the pipeline failed, or the job cannot be completed in this transaction.
        """
        if self.closed and not self.broken:
            raise psycopg.ProgrammingError(_CLOSED)
        if self.info.pipeline_status is not PipelineStatus.OFF:
            with self.pipeline() as open_one:
                open_one.sync()
            self.pgconn.exit_pipeline_mode()
        match self.info.transaction_status:
            case TransactionStatus.IDLE:
                raise psycopg.ProgrammingError(_ENDED)
            case TransactionStatus.INERROR:
                raise pg.InFailedSqlTransaction(_ABORTED)
            case TransactionStatus.ACTIVE:
                raise psycopg.ProgrammingError(_IN_USE)

    def end(self, *, patience: float = 0.0) -> bool:
        """Cut it off from the session; return False, and leave it as it is, if it is in use for longer than `patience` seconds."""
        if not self.lock.acquire(timeout=patience):
            return False
        self.pgconn.notice_handler = self.pgconn.notify_handler = None  # the handler's callbacks
        self.pgconn = _NO_SESSION
        self.lock.release()
        return True


@dataclass(slots=True)
class _Line:
    """A session, and a second hold of its socket, which another thread can cut while the session is in use.

    Attributes:
        connection: what jobqueue itself sends goes over; a handler never gets it.
        pooled: whether a pooler stands before PostgreSQL.
        reusable: whether the next handler may have this session.
    """

    connection: Connection
    socket: socket.socket
    pooled: bool = False
    reusable: bool = True

    def prepare(self) -> None:
        """Make it what a handler expects of a session."""
        self.connection.prepare_threshold = None  # behind a pooler nothing may stay prepared, and elsewhere `reset` deallocates all
        self.pooled = behind_pooler(self.connection)
        self.reset()

    @contextmanager
    def lent(self) -> Iterator[HandlerConnection]:
        """Lend the session, in a transaction, to a handler. By the end nobody else uses it, and the transaction can be committed.

        Raises:
            psycopg.Error: the handler left it so that its job cannot be completed.
        """
        lent = HandlerConnection(self.connection.pgconn)
        if self.pooled:
            lent.prepare_threshold = None
        in_use = False
        try:
            yield lent
            self.reusable = lent.info.pipeline_status is PipelineStatus.OFF  # its holder could close the next handler's pipeline
            lent.settle()
        finally:
            if not lent.end():
                in_use = True
                self.cut()
                lent.end(patience=STRAGGLER_PATIENCE)  # the memory that a thread is using cannot be freed
        if in_use:
            raise psycopg.ProgrammingError(_IN_USE)

    def cut(self) -> None:
        """Break the connection, whoever is using it."""
        self.reusable = False
        with suppress(OSError):  # it is over already
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()
        self.socket.close()

    def reset(self) -> None:
        """Undo what a handler may have changed, for the next one. A pooler's sessions are not ours to reset."""
        if self.connection.info.transaction_status is not TransactionStatus.IDLE:
            self.connection.execute(b"ROLLBACK")
        if not self.pooled:
            self.connection.execute(_RESET)


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
        if usable and line.reusable:
            with suppress(Exception):  # the job may be completed by now: whatever this is, it is no error of its handler's
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
        connection.execute(_BEGIN)
        try:
            with self._line.lent() as lent:
                outcome = work(lent)
        except psycopg.Rollback:
            raise psycopg.ProgrammingError("the handler rolled its transaction back by raising psycopg.Rollback") from None
        if self._finish(node_id, outcome):
            return False
        try:
            connection.execute(b"COMMIT")
        except psycopg.Error as error:
            if severed_by(connection, error):
                raise CommitInDoubt(f"the connection broke during the commit: {one_line(error)}") from error
            raise
        return True

    def _finish(self, node_id: str, outcome: bytes) -> bool:
        """Complete the job; return whether the run is stale."""
        connection = self._line.connection
        if connection.info.parameter_status("client_encoding") != "UTF8":
            connection.execute(b"SET client_encoding TO 'UTF8'")
        # Literals, since no adapter converts them: a program may have replaced those of psycopg itself.
        literal = Escaping(connection.pgconn).escape_literal
        keep = b"true" if self._keep_finished else b"false"
        params = (literal(node_id.encode()), literal(b"[" + outcome + b"]"), keep, literal(b"%ds" % ABANDONED_AFTER))
        try:
            cursor = connection.execute(_FINISH % params)
        except pg.ReadOnlySqlTransaction as error:
            if connection.info.parameter_status("in_hot_standby") == "on":
                raise
            raise psycopg.ProgrammingError(_READ_ONLY) from error
        cursor.set_result(-1)
        assert cursor.pgresult is not None  # noqa: S101 - it was a SELECT
        if cursor.pgresult.get_value(0, 0) != b"begun":
            raise psycopg.ProgrammingError(_ENDED)
        return cursor.pgresult.get_value(0, 1) != b"{}"

    def _cut_off(self) -> None:
        # The thread that is left behind gets an error from its present statement or the next one. The cancellation is for what
        # PostgreSQL is doing at this moment: it would notice the end of the connection only afterwards.
        try:
            with suppress(psycopg.Error):
                self._line.connection.cancel_safe(timeout=CANCEL_TIMEOUT)
        finally:
            self._line.cut()
