"""Run each handler in a transaction: its writes and the completion of its job are committed together, or not at all.

::

    transactions = Transactions(url, most=16, keep_finished=True)
    async with transactions.open() as transaction:                       # waits for a connection
        await trio.to_thread.run_sync(transaction.run, node_id, work)    # in a thread: BEGIN, work(connection), finish, COMMIT

The last statement of the transaction completes the job. If the run no longer belongs to this node, that statement reports it, as
for every completion, and the transaction is rolled back. So a thread that outlives its run can do no harm, however late it ends.
Even so, the node cuts the thread's connection, because the open transaction would keep its locks.

Only the last statement locks the job's row, so other completions wait for it only during the commit. PostgreSQL ends a transaction
whose COMMIT does not arrive within `lane.ABANDONED_AFTER` seconds.

Unlike the lanes of `store`, these connections run the user's code, for any length of time.
"""

from __future__ import annotations

import functools
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
from jobqueue.schema_names import DEFAULT, render
from jobqueue.storage.connection import CANCEL_TIMEOUT, Connection, behind_pooler, connect, ended_by_server, one_line, severed_by
from jobqueue.storage.lane import ABANDONED_AFTER, REPLY_TIMEOUT

MAX_TRANSACTIONS = 16
"""Maximum number of handlers' transactions that a node has open at once, each on its own connection."""

CONNECT_PATIENCE = 10.0
"""Seconds for which a run tries to connect to PostgreSQL. After that, the node releases the job."""

CONNECT_AGAIN = 0.5
"""Maximum seconds between two attempts to connect."""

STRAGGLER_PATIENCE = 1.0
"""If a handler has left a thread that still uses its connection: seconds for that thread to notice that the connection was cut."""

Work = Callable[["HandlerConnection"], bytes]
"""Runs the handler with the connection, and returns the run's encoded outcome."""

# READ WRITE and READ COMMITTED override the defaults of the database and the role. The setting jobqueue.transaction marks this
# transaction, because SET LOCAL ends with it. SET takes no snapshot, so the handler can still choose another isolation level.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL jobqueue.transaction = 'begun'"

# RESET ROLE is needed because the handler may have switched to a role that has no permission to complete jobs.
_FINISH = """
    RESET SESSION AUTHORIZATION; RESET ROLE;
    SELECT pg_catalog.current_setting('jobqueue.transaction', true), jobqueue_internal.finish(%b, %b, %b),
           pg_catalog.set_config('idle_in_transaction_session_timeout', %b, true)
"""

_RESET = b"""
    SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; CLOSE ALL; RESET ALL; DEALLOCATE ALL; UNLISTEN *;
    SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; SET idle_session_timeout = 0
"""
"""The statements of DISCARD ALL except DISCARD PLANS: the cached plans of jobqueue's functions stay. RESET ROLE restores the role
that the session had at its start.

idle_session_timeout is 0, because the session stays idle until the next handler needs it."""

_ENDED = (
    "the handler ran COMMIT, ROLLBACK, PREPARE TRANSACTION or RESET ALL, so jobqueue cannot complete the job in its transaction:"
    " remove that statement; return to commit, or raise to roll back"
)
_CLOSED = "the handler closed its connection, so jobqueue cannot complete the job on it: leave the connection open"
_ABORTED = (
    "current transaction is aborted: the handler caught an error of PostgreSQL and returned. Let the error propagate, or run the"
    " statement that may fail in a nested block (with conn.transaction():)"
)
_IN_USE = (
    "the handler returned while its connection was in use: wait for the threads that use it,"
    " and finish every COPY, cursor.stream() and conn.notifies()"
)
_READ_ONLY = (
    "the handler made its transaction read-only, so jobqueue cannot complete the job in it: remove SET TRANSACTION READ ONLY"
)


def _no_session() -> abc.PGconn:
    """Return a closed libpq connection."""
    pgconn = PGconn.connect_start(b"nowhere")  # libpq cannot parse this text, so it opens no connection
    pgconn.finish()
    return pgconn


_NO_SESSION = _no_session()


class HandlerConnection(psycopg.Connection[tuple[object, ...]]):
    """The connection of one handler. It shares nothing with the connections of other handlers except the PostgreSQL session.

    The handler's changes to this object (adapters, factories, callbacks) do not affect other handlers. After the handler has
    returned, a thread that still uses this object finds a closed connection, never the transaction of the next handler.

    Attributes:
        jobqueue_schema: the name of the queue's schemas, for `jobqueue.submit`.
    """

    jobqueue_schema = DEFAULT

    def commit(self) -> NoReturn:
        raise psycopg.ProgrammingError("Explicit commit() forbidden: jobqueue commits when the handler returns")

    def rollback(self) -> NoReturn:
        raise psycopg.ProgrammingError("Explicit rollback() forbidden: jobqueue rolls back when the handler raises")

    def settle(self) -> None:
        """Wait for the statements of a pipeline that the handler left open, and check that the handler's transaction is still open.

        Raises:
            psycopg.Error: a statement in the pipeline failed, or this transaction cannot complete the job.
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
        """Detach this object from the session.

        Args:
            patience: seconds to wait if another thread is using the connection.

        Returns:
            False if the connection is still in use after this time: then the object stays attached.
        """
        if not self.lock.acquire(timeout=patience):
            return False
        self.pgconn.notice_handler = self.pgconn.notify_handler = None  # the handler's callbacks
        self.pgconn = _NO_SESSION
        self.lock.release()
        return True


@dataclass(slots=True)
class _Line:
    """A session, with a duplicate of its socket. Through the duplicate, any thread can cut the connection while it is in use.

    Attributes:
        connection: the connection for jobqueue's own statements; a handler never gets it.
        socket: the duplicate.
        pooled: whether the connection goes through a pooler.
        reusable: whether the next handler may use this session.
    """

    connection: Connection
    socket: socket.socket
    pooled: bool = False
    reusable: bool = True

    def prepare(self) -> None:
        """Prepare the session for its first handler."""
        self.pooled = behind_pooler(self.connection)
        self.reset()

    @contextmanager
    def lent(self) -> Iterator[HandlerConnection]:
        """Lend the session to a handler, within a transaction.

        After the block, no other thread uses the session, and the transaction can be committed.

        Raises:
            psycopg.Error: the handler left the connection in a state in which its job cannot be completed.
        """
        lent = HandlerConnection(self.connection.driver.pgconn)
        lent.jobqueue_schema = self.connection.schema
        if self.pooled:
            lent.prepare_threshold = None
        in_use = False
        try:
            yield lent
            # An open pipeline could later close the pipeline of the next handler.
            self.reusable = lent.info.pipeline_status is PipelineStatus.OFF
            lent.settle()
        finally:
            if not lent.end():
                in_use = True
                self.cut()
                lent.end(patience=STRAGGLER_PATIENCE)  # wait: a thread may still be using the memory of the connection
        if in_use:
            raise psycopg.ProgrammingError(_IN_USE)

    def cut(self) -> None:
        """Break the connection, even if another thread is using it."""
        self.reusable = False
        with suppress(OSError):  # the connection may have ended already
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.connection.close()
        self.socket.close()

    def reset(self) -> None:
        """Roll back the open transaction. Without a pooler, also undo the last handler's changes of the session.

        A pooler undoes these changes itself.
        """
        self.connection.rollback()
        if not self.pooled:
            self.connection.execute_script(_RESET)
        while self.connection.driver.pgconn.notifies():
            pass  # the last handler listened


class Transactions:
    """A pool of connections for the transactions of a node's handlers. It opens connections when they are needed.

    Args:
        url: a libpq URL or connection string.
        most: maximum number of open transactions; further transactions wait.
        keep_finished: whether the database keeps succeeded jobs.
        schema: the name of the queue's schemas.
    """

    def __init__(self, url: str, *, most: int, keep_finished: bool, schema: str = DEFAULT) -> None:
        self._url = url
        self._schema = schema
        self._keep_finished = keep_finished
        self._places = trio.CapacityLimiter(most)
        self._connecting = trio.CapacityLimiter(most)
        self._idle: list[_Line] = []
        self._closed = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Transaction]:
        """Wait for a connection and reserve it for one transaction. If the transaction is still open after the block, cut it off.

        Raises:
            NoConnection: no connection could be opened within `CONNECT_PATIENCE` seconds.
        """
        async with self._places:
            transaction = Transaction(await self._take(), self._give_back, keep_finished=self._keep_finished)
            try:
                yield transaction
            finally:
                transaction.leave()

    def close(self) -> None:
        """Close the idle connections now, and the others when they are returned. This does not wait for PostgreSQL."""
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
                # If this task is cancelled, the thread still opens the connection. The next task then uses it.
                await trio.to_thread.run_sync(self._connect, limiter=self._connecting, abandon_on_cancel=True)
            except DatabaseUnavailable as error:
                if trio.current_time() > give_up_at:
                    raise NoConnection(str(error)) from error
                await trio.sleep(CONNECT_AGAIN * random.uniform(0.5, 1))

    def _connect(self) -> None:
        connection = connect(self._url, "transaction", REPLY_TIMEOUT, schema=self._schema)
        line = _Line(connection, socket.socket(fileno=os.dup(connection.driver.fileno())))
        try:
            line.prepare()
        except psycopg.Error as error:
            line.close()
            raise DatabaseUnavailable(f"cannot prepare a connection: {one_line(error)}") from error
        self._keep(line)

    def _give_back(self, line: _Line, *, usable: bool) -> None:
        if usable and line.reusable:
            with suppress(Exception):  # the job may already be completed, so this error must not fail its run
                line.reset()
                self._keep(line)
                return
        line.close()

    def _keep(self, line: _Line) -> None:
        self._idle.append(line)
        if self._closed:
            self._close_idle()

    def _close_idle(self) -> None:
        with suppress(IndexError):  # several threads may do this at once
            while True:
                self._idle.pop().close()


class Transaction:
    """The transaction of one handler. A thread calls `run` once. The waiting task calls `leave`, possibly before `run` returns."""

    def __init__(self, line: _Line, give_back: Callable[..., None], *, keep_finished: bool) -> None:
        self._line = line
        self._give_back = give_back
        self._keep_finished = keep_finished
        self._lock = threading.Lock()
        self._state: Literal["ready", "running", "over"] = "ready"
        self._left = False

    def run(self, node_id: str, work: Work) -> bool:
        """Begin a transaction, call ``work(connection)``, complete the job with the outcome that it returns, and commit.

        Call it in a thread. If `work` raises an exception, the transaction is rolled back, and the exception propagates.

        Args:
            node_id: the node that claimed the job.
            work: see `Work`.

        Returns:
            True after the commit. False if the run no longer belongs to this node: then the transaction was rolled back.

        Raises:
            CommitInDoubt: the connection broke during the commit.
            psycopg.Error: the transaction cannot be committed.
        """
        with self._lock:
            if self._left:
                raise psycopg.OperationalError("the run of this transaction has ended")  # nobody waits for this error
            self._state = "running"
        usable = True
        try:
            return self._run(node_id, work)
        except psycopg.errors.ReadOnlySqlTransaction:
            usable = False  # the server may have become a standby: a new connection may reach the new primary
            raise
        finally:
            with self._lock:
                self._state = "over"
                usable = usable and not self._left
            self._give_back(self._line, usable=usable)

    def leave(self) -> None:
        """Stop waiting for the transaction. A separate thread cuts it off if it still runs, or returns an unused connection."""
        with self._lock:
            self._left = True
            if self._state == "over":
                return
            end = self._cut_off if self._state == "running" else partial(self._give_back, self._line, usable=True)
        trio.lowlevel.start_thread_soon(end, lambda _: None)

    def _run(self, node_id: str, work: Work) -> bool:
        connection = self._line.connection
        connection.execute_script(_rendered(_BEGIN, connection.schema))
        try:
            with self._line.lent() as lent:
                outcome = work(lent)
        except psycopg.Rollback:
            raise psycopg.ProgrammingError("the handler rolled back its transaction by raising psycopg.Rollback") from None
        if self._finish(node_id, outcome):
            return False
        try:
            connection.execute_script(b"COMMIT")
        except psycopg.Error as error:
            if severed_by(connection, error):
                raise CommitInDoubt(f"the connection broke during the commit: {one_line(error)}") from error
            raise
        return True

    def _finish(self, node_id: str, outcome: bytes) -> bool:
        """Complete the job. Return True if the run is stale; then the caller must drop its outcome."""
        connection = self._line.connection
        if connection.info.parameter_status("client_encoding") != "UTF8":
            connection.execute_script(b"SET client_encoding TO 'UTF8'")
        # Use literals instead of parameters, because the program may have replaced psycopg's global adapters.
        literal = Escaping(connection.driver.pgconn).escape_literal
        keep = b"true" if self._keep_finished else b"false"
        params = (literal(node_id.encode()), literal(b"[" + outcome + b"]"), keep, literal(b"%ds" % ABANDONED_AFTER))
        try:
            result = connection.execute_script(_rendered(_FINISH, connection.schema) % params)
        except pg.ReadOnlySqlTransaction as error:
            if connection.info.parameter_status("in_hot_standby") == "on":
                raise
            raise psycopg.ProgrammingError(_READ_ONLY) from error
        if result.get_value(0, 0) != b"begun":
            raise psycopg.ProgrammingError(_ENDED)
        return result.get_value(0, 1) != b"{}"

    def _cut_off(self) -> None:
        # Cutting the connection raises an error in the abandoned thread, in its current or next statement. PostgreSQL
        # notices the end of a connection only after the current statement, so this also cancels that statement.
        try:
            with suppress(psycopg.Error):
                self._line.connection.driver.cancel_safe(timeout=CANCEL_TIMEOUT)
        finally:
            self._line.cut()


@functools.cache
def _rendered(sql: str, schema: str) -> bytes:
    return render(sql, schema).encode()
