"""A lane: a connection that opens when it is needed, and that raises only errors of `jobqueue.errors`."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import trio
from psycopg import errors as pg

from jobqueue.errors import (
    ConnectionLost,
    DatabaseUnavailable,
    JobQueueError,
    KeyInUse,
    KeyReused,
    NotReplicated,
    RefusedData,
    RefusedKey,
    StatementFailed,
    UnreadableAnswer,
)
from jobqueue.schema_names import DEFAULT
from jobqueue.storage.connection import Connection, Rows, behind_pooler, connect, ended_by_server, one_line, severed_by
from jobqueue.storage.session_settings import pinning

STATEMENT_TIMEOUT = 30
"""Seconds after which PostgreSQL cancels a statement."""

REPLY_TIMEOUT = STATEMENT_TIMEOUT + 5.0
"""Seconds without a reply after which a connection counts as lost, even if TCP reports no error."""

ABANDONED_AFTER = 5
"""Seconds after which PostgreSQL ends an idle transaction. The limit applies to every transaction through a pooler. Without a
pooler, it applies only to a handler's transaction that waits for its COMMIT."""

POOLED = "pooled"
"""With a pooler, the second part of a backend's identity: it replaces the start time. The first part is then an advisory lock
instead of a pid."""

KEY_ERRORS: dict[str | None, type[RefusedKey]] = {"JQ409": KeyInUse, "JQ422": KeyReused}
"""The errors that schema.sql raises about keys, by SQLSTATE."""

REFUSALS = (psycopg.DataError, psycopg.IntegrityError, pg.ProgramLimitExceeded, pg.StatementTooComplex)
"""The errors that PostgreSQL raises for a value that it cannot store."""

T = TypeVar("T")


@dataclass(slots=True)
class _Session:
    """The state of a lane's connection.

    On a direct connection, each statement is a transaction. If the connection breaks, the backend's identity helps to find a
    statement that still runs.

    With a pooler, each transaction may use another backend, and that backend also serves other clients. Therefore settings last
    for one transaction, no statement is prepared, and an advisory lock shows whether the last transaction is over. This needs two
    more round trips for each transaction.

    Attributes:
        connection: the connection.
        backend: (pid, start time), or (advisory lock, POOLED).
        begin: the statements that begin each transaction if a pooler is used, else None.
        in_doubt: whether the current transaction may have been committed if the connection breaks now.
        not_replicated: PostgreSQL's warning about a commit that a synchronous standby did not confirm, or None.
    """

    connection: Connection
    backend: tuple[int, str]
    begin: bytes | None = None
    in_doubt: bool = True
    not_replicated: str | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run the block in a transaction if a pooler is used. A commit can be in doubt only after COMMIT was sent."""
        if self.begin is None:
            yield self.connection
            return
        self.in_doubt = False
        try:
            self.connection.execute_script(self.begin)
            yield self.connection
            self.in_doubt = True
            self.connection.execute_script(b"COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        try:
            self.connection.rollback()
        except psycopg.Error:
            self.connection.close()

    def hear(self, notice: pg.Diagnostic) -> None:
        """Record the warning that PostgreSQL sends when it stops waiting for a synchronous standby.

        The statement still succeeds. The name of the source file identifies the warning in every language.
        """
        if notice.source_file == "syncrep.c":
            self.not_replicated = notice.message_primary


class Lane:
    """A connection for one purpose. It opens at the first call, and opens again after it breaks.

    Each lane has its own thread limiter, so neither blocking handlers nor slow statements of other lanes delay it. A call never
    abandons its statement: a cancelled caller waits until the statement ends, for up to `reply_timeout`.

    Args:
        url: a libpq URL or connection string.
        purpose: one word; shown in ``pg_stat_activity``.
        reply_timeout: maximum seconds for a statement, including its reply.
        schema: the name of the queue's schemas.

    Attributes:
        trouble: the error of the last call if it failed with `DatabaseUnavailable`, else None.
        trouble_since: the Trio time of the first such error since the last success; infinity if there is none.
    """

    def __init__(self, url: str, purpose: str, *, reply_timeout: float = REPLY_TIMEOUT, schema: str = DEFAULT) -> None:
        self._url = url
        self._purpose = purpose
        self._reply_timeout = reply_timeout
        self._schema = schema
        self._session: _Session | None = None
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._begun: list[float] = []  # the start time of each running or waiting call
        self.trouble: str | None = None
        self.trouble_since = math.inf

    @property
    def waiting(self) -> float:
        """Seconds since the start of the oldest unfinished call; 0 if there is none."""
        return trio.current_time() - self._begun[0] if self._begun else 0.0

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Call ``work(connection)`` in a thread, and translate the errors of the driver.

        Raises:
            DatabaseUnavailable: the connection failed, or the statement was rolled back for a temporary reason.
            StatementFailed: the statement was rolled back for another reason.
            ConnectionLost: the connection broke, and the statement may or may not be committed.
            UnreadableAnswer: the statement was executed, but its result cannot be decoded.
            NotReplicated: the statement was committed, but a synchronous standby did not confirm it.
            RefusedData: PostgreSQL rejected a value, or schema.sql rejected a key (`RefusedKey`).
        """
        with self._noting_trouble():
            return await trio.to_thread.run_sync(self._run, work, limiter=self._one_at_a_time)

    def run_here(self, work: Callable[[Connection], T]) -> T:
        """Call ``work(connection)`` in the calling thread, for programs without a Trio loop.

        Raises:
            JobQueueError: see `run`.
        """
        return self._run(work)

    def close_here(self) -> None:
        """Close the connection, if it is open, in the calling thread."""
        self._close()

    async def call(self, sql: str, *params: object, in_loop: bool) -> tuple[Any, ...]:
        """Run one statement that returns one row, and return it.

        Args:
            sql: the statement.
            params: its parameters.
            in_loop: run the statement in the Trio loop instead of a thread. Use it for small statements only. It saves two thread
                switches, which together take half as long as a commit. Steps that may block, such as connecting, still run in a
                thread.

        Raises:
            JobQueueError: see `run`.
        """
        session = self._session
        free = in_loop and self._one_at_a_time.available_tokens > 0
        if not free or session is None or session.begin is not None or ended_by_server(session.connection):
            return await self.run(lambda connection: _row(connection.execute(sql, params, prepare=True)))
        self._one_at_a_time.acquire_nowait()
        try:
            with self._noting_trouble(), self._mapping_errors(session):
                return _row(await session.connection.execute_in_loop(sql, params, prepare=True))
        finally:
            self._one_at_a_time.release()

    async def aclose(self) -> None:
        """Close the connection, if it is open."""
        await trio.to_thread.run_sync(self._close, limiter=self._one_at_a_time)

    @contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        began = trio.current_time()
        self._begun.append(began)
        try:
            yield
        except DatabaseUnavailable as error:
            self.trouble = str(error)
            self.trouble_since = min(self.trouble_since, trio.current_time())
            raise
        else:
            self.trouble = None
            self.trouble_since = math.inf
        finally:
            self._begun.remove(began)

    def _run(self, work: Callable[[Connection], T]) -> T:
        session = self._session
        if session is not None and ended_by_server(session.connection):
            self._close()
            session = None
        if session is None:
            session = self._session = _open_session(self._url, self._purpose, self._reply_timeout, self._schema)
        with self._mapping_errors(session), session.transaction() as connection:
            return work(connection)

    @contextmanager
    def _mapping_errors(self, session: _Session) -> Iterator[None]:
        try:
            yield
        except JobQueueError:
            raise
        except Exception as error:
            raise self._mapped(session, error) from error
        if (warning := session.not_replicated) is not None:
            session.not_replicated = None
            raise NotReplicated(warning, backend=session.backend)

    def _mapped(self, session: _Session, error: Exception) -> JobQueueError:
        """Return the jobqueue error for an error of the driver. Close the connection if it may be unusable."""
        if (refused := _refusal(error)) is not None:
            return refused
        if not isinstance(error, psycopg.Error):
            self._close()
            reason = f"{type(error).__name__}: {one_line(error)}"
            return UnreadableAnswer(reason, backend=session.backend) if session.in_doubt else StatementFailed(reason)
        severed = severed_by(session.connection, error)
        on_standby = isinstance(error, pg.ReadOnlySqlTransaction)
        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not (severed or on_standby):
            return DatabaseUnavailable(one_line(error))
        # Open a new session for the next call: it may reach a new primary, or see replaced functions.
        self._close()
        if severed and session.in_doubt:
            return ConnectionLost(one_line(error), backend=session.backend)
        return (DatabaseUnavailable if severed or on_standby else StatementFailed)(one_line(error))

    def _close(self) -> None:
        if self._session is not None:
            self._session.connection.close()
            self._session = None


def _open_session(url: str, purpose: str, reply_timeout: float, schema: str) -> _Session:
    connection = connect(url, purpose, reply_timeout, schema=schema)
    # This timeout is shorter than the reply timeout. So the server cancels a slow statement before the client gives up, and the
    # client knows the outcome.
    statement_timeout = f"{min(STATEMENT_TIMEOUT, 0.8 * reply_timeout) * 1000:.0f}ms"
    try:
        session = (_pooled_session if behind_pooler(connection) else _direct_session)(connection, statement_timeout)
    except Exception as error:
        connection.close()
        raise DatabaseUnavailable(f"cannot prepare a connection: {one_line(error)}") from error
    connection.driver.add_notice_handler(session.hear)
    return session


def _direct_session(connection: Connection, statement_timeout: str) -> _Session:
    pinned = pinning(connection, local=False, statement_timeout=statement_timeout, idle_in_transaction_session_timeout="0")
    connection.execute(pinned)
    rows = connection.execute("SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    pid, started = rows.first() or (connection.info.backend_pid, "-infinity")
    return _Session(connection, (pid, started))


def _pooled_session(connection: Connection, statement_timeout: str) -> _Session:
    connection.prepares = False
    lock = random.getrandbits(63)
    timeouts = {"statement_timeout": statement_timeout, "idle_in_transaction_session_timeout": f"{ABANDONED_AFTER}s"}
    begin = f"""
        BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE;
        {pinning(connection, local=True, **timeouts)}, pg_advisory_xact_lock({lock})
    """
    return _Session(connection, (lock, POOLED), begin.encode())


def _row(rows: Rows) -> tuple[Any, ...]:
    [row] = rows
    return row


def _refusal(error: Exception) -> RefusedData | None:
    """Return the jobqueue error if the driver or PostgreSQL rejected a value; None for any other error."""
    if isinstance(error, UnicodeEncodeError):
        return RefusedData(f"a text cannot be encoded in UTF-8: {one_line(error)}")  # nothing was sent
    if isinstance(error, REFUSALS):
        # Leave out the error's position in the SQL of jobqueue: the caller does not know this SQL.
        return RefusedData(error.diag.message_primary or one_line(error), field=_refused_by_us(error))
    if isinstance(error, psycopg.Error) and error.sqlstate in KEY_ERRORS:
        index = re.search(r"\d+", error.diag.message_detail or "")
        return KEY_ERRORS[error.sqlstate](
            error.diag.message_primary or "", field=error.diag.column_name or "", index=int(index[0]) if index else None
        )
    return None


def _refused_by_us(error: psycopg.Error) -> str | None:
    """Return the field of an error that a function of schema.sql raised; None for an error of a table's constraint.

    Both errors have the same class, but only a constraint's error names a table.
    """
    diagnosis = error.diag
    return diagnosis.column_name if isinstance(error, pg.CheckViolation) and diagnosis.table_name is None else None
