"""Connections to PostgreSQL: one statement at a time on each, and every driver error turned into one of ours."""

from __future__ import annotations

import math
import random
import re
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
import trio
from psycopg import errors as pg
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait

from jobqueue.errors import (
    ConnectionLost,
    DatabaseUnavailable,
    JobQueueError,
    KeyInUse,
    KeyReused,
    NotReplicated,
    RefusedData,
    RefusedKey,
    SettingsError,
    StatementFailed,
    UnreadableAnswer,
)

CONNECT_TIMEOUT = 5
"""Seconds to wait for PostgreSQL to accept a connection."""

STATEMENT_TIMEOUT = 30
"""Seconds after which PostgreSQL cancels a statement of ours."""

DEAD_PEER_TIMEOUT = 10
"""Seconds after which unanswered packets break a connection (TCP only)."""

MINIMUM_SERVER_VERSION = 140_000

TRANSACTION_TIMEOUT_SINCE = 170_000
"""The server version that brought the setting transaction_timeout."""

REPLY_TIMEOUT = STATEMENT_TIMEOUT + 5.0
"""Seconds after which a server that has not replied counts as gone, however alive its network looks."""

ABANDONED_AFTER = 5
"""Seconds after which PostgreSQL ends a transaction of ours that says nothing (behind a pooler only)."""

POOLED = "pooled"
"""In place of a backend's start time: what stands before it is no pid, but the advisory lock that the transaction holds."""

SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "search_path": "pg_catalog",
    "row_security": "off",  # a policy that would hide rows is an error, and not a queue that looks empty
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "exit_on_error": "off",
    "client_min_messages": "warning",  # the only word about a standby that did not confirm a commit
    "plpgsql.extra_errors": "none",
    "plpgsql.extra_warnings": "none",
    "plan_cache_mode": "auto",
    "jit": "off",
    **dict.fromkeys(
        [
            "enable_bitmapscan",
            "enable_hashagg",
            "enable_hashjoin",
            "enable_indexonlyscan",
            "enable_indexscan",
            "enable_material",
            "enable_mergejoin",
            "enable_nestloop",
            "enable_partition_pruning",
            "enable_seqscan",
            "enable_sort",
            "enable_tidscan",
        ],
        "on",
    ),
}
"""What a session of ours sets, whatever the server, the database, the role, or the URL says. The timeouts come on top of it."""

KEY_ERRORS: dict[str | None, type[RefusedKey]] = {"JQ409": KeyInUse, "JQ422": KeyReused}
"""What schema.sql raises of its own, by SQLSTATE."""

REFUSALS = (psycopg.DataError, psycopg.IntegrityError, pg.ProgramLimitExceeded, pg.StatementTooComplex)
"""What PostgreSQL raises for a value that it cannot take."""

T = TypeVar("T")


class Connection(psycopg.Connection[tuple[object, ...]]):
    """A connection that gives up waiting: a server, or a proxy before it, that swallows a reply does not hold a thread for ever."""

    reply_timeout: float | None = None

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        if timeout is not None or self.reply_timeout is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.reply_timeout)
        except pg._WaitTimeout:  # noqa: SLF001 - what `Connection.wait` is documented to raise
            self.close()
            raise psycopg.OperationalError(f"no reply from PostgreSQL within {self.reply_timeout:g} s") from None


@dataclass(slots=True)
class _Session:
    """A connection as a lane uses it.

    Straight to PostgreSQL, each statement is a transaction, and the backend's identity tells what a broken connection may have left
    behind. Behind a pooler the next transaction may have another backend, and this one another client: settings last for one
    transaction, nothing is prepared, and a lock of this session's own tells whether its last transaction is over. That takes two
    more round trips, so it is not how a direct connection does it.

    Attributes:
        backend: (pid, start time), or (advisory lock, POOLED).
        begin: what begins each transaction behind a pooler; None without one.
        in_doubt: whether what is under way may be committed although no answer comes.
    """

    connection: Connection
    backend: tuple[int, str]
    begin: bytes | None = None
    in_doubt: bool = True
    not_replicated: str | None = None

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Behind a pooler, begin a transaction and commit it: until COMMIT is sent, nothing that breaks leaves anybody in doubt."""
        if self.begin is None:
            yield self.connection
            return
        self.in_doubt = False
        try:
            self.connection.execute(self.begin)
            yield self.connection
            self.in_doubt = True
            self.connection.execute(b"COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        try:
            self.connection.rollback()
        except psycopg.Error:
            self.connection.close()

    def hear(self, notice: pg.Diagnostic) -> None:
        """Catch the warning that is all PostgreSQL says when a wait for a synchronous standby was cut short.

        The statement succeeds all the same. The name of the source file tells it in every language.
        """
        if notice.source_file == "syncrep.c":
            self.not_replicated = notice.message_primary


def connect(url: str, purpose: str) -> Connection:
    """Open a connection as every part of jobqueue wants it: autocommit, bounded waits, named for its purpose.

    Raises:
        DatabaseUnavailable: PostgreSQL cannot be reached, or refuses.
        SettingsError: the URL cannot be read.
    """
    try:
        return Connection.connect(
            url,
            autocommit=True,
            application_name=f"jobqueue {purpose}",
            client_encoding="UTF8",
            connect_timeout=CONNECT_TIMEOUT,
            keepalives_idle=DEAD_PEER_TIMEOUT,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=DEAD_PEER_TIMEOUT * 1000,
        )
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {one_line(error)}") from error
    except (psycopg.ProgrammingError, UnicodeError):  # of a host's name that can be none
        # What libpq says of it may hold the password.
        raise SettingsError("the database URL cannot be read: one looks like postgresql://user@host:5432/database") from None
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {one_line(error)}") from error


class Lane:
    """One connection for one purpose, opened when first used and opened again after it broke.

    Each lane has a thread limiter of its own: neither handlers that block nor another lane's slow statement can hold it up. A
    statement is never abandoned: a cancelled caller waits for its end, which `reply_timeout` bounds.

    Args:
        url: a libpq URL or connection string.
        purpose: one word; shown in ``pg_stat_activity``.
        reply_timeout: seconds that a statement may take in all.

    Attributes:
        trouble: why the last call failed for want of a database; None when it did not.
        trouble_since: from when on every call failed so.
    """

    def __init__(self, url: str, purpose: str, *, reply_timeout: float = REPLY_TIMEOUT) -> None:
        self._url = url
        self._purpose = purpose
        self._reply_timeout = reply_timeout
        self._session: _Session | None = None
        self._one_at_a_time = trio.CapacityLimiter(1)
        self._begun: list[float] = []  # when each call began that is under way, or waits for the one that is
        self.trouble: str | None = None
        self.trouble_since = math.inf

    @property
    def waiting(self) -> float:
        """Seconds for which the oldest call has been under way; 0 without one."""
        return trio.current_time() - self._begun[0] if self._begun else 0.0

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Call ``work(connection)`` in a thread.

        Whatever the driver raises becomes one of these:

        Raises:
            DatabaseUnavailable: there is no connection, or the statement was rolled back for a reason that passes.
            StatementFailed: the statement was rolled back for another reason.
            ConnectionLost: the connection broke under the statement.
            UnreadableAnswer: the statement was carried out, and its answer cannot be read.
            NotReplicated: the statement was committed, but not on a synchronous standby.
            RefusedData: PostgreSQL refused a value, or schema.sql a key (`RefusedKey`).
        """
        with self._noting_trouble():
            return await trio.to_thread.run_sync(self._run, work, limiter=self._one_at_a_time)

    def run_here(self, work: Callable[[Connection], T]) -> T:
        """Call ``work(connection)`` in the calling thread, for a program without a Trio loop.

        Raises:
            DatabaseUnavailable, ConnectionLost, NotReplicated, RefusedData: see `run`.
        """
        return self._run(work)

    def close_here(self) -> None:
        """Close the connection, if there is one, in the calling thread."""
        self._close()

    async def call(self, sql: str, *params: object, in_loop: bool) -> tuple[Any, ...]:
        """Run one statement that returns one row, and return it.

        Args:
            in_loop: whether it is small enough for the loop to send it and wait for it. That spares it two hops between threads,
                which take half as long as a commit. What may block, as connecting does, is done in a thread even so.

        Raises:
            JobQueueError: see `run`.
        """
        session = self._session
        free = in_loop and self._one_at_a_time.available_tokens > 0
        if not free or session is None or session.begin is not None or ended_by_server(session.connection):
            return await self.run(lambda connection: _row(connection.execute(sql.encode(), params, prepare=True)))
        self._one_at_a_time.acquire_nowait()
        try:
            with self._noting_trouble(), self._mapping_errors(session):
                cursor = session.connection.cursor()
                # What `execute` does, but for the wait: psycopg has no public name for it.
                await _wait_in_loop(session.connection, cursor._execute_gen(sql.encode(), params, prepare=True))  # noqa: SLF001
                return _row(cursor)
        finally:
            self._one_at_a_time.release()

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
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
            session = self._session = _open_session(self._url, self._purpose, self._reply_timeout)
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
        """Return the error of ours for one of the driver's. A connection that may be unusable is closed."""
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
        # The next session may find the new primary of a server that became a standby, or functions that were replaced.
        self._close()
        if severed and session.in_doubt:
            return ConnectionLost(one_line(error), backend=session.backend)
        return (DatabaseUnavailable if severed or on_standby else StatementFailed)(one_line(error))

    def _close(self) -> None:
        if self._session is not None:
            self._session.connection.close()
            self._session = None


def behind_pooler(connection: Connection) -> bool:
    """Tell whether a pooler, such as PgBouncer, stands before PostgreSQL: the pid it gives a client is of its own making."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    return row is not None and row[0] != connection.info.backend_pid


def _open_session(url: str, purpose: str, reply_timeout: float) -> _Session:
    connection = connect(url, purpose)
    connection.reply_timeout = reply_timeout
    # Less than the reply may take, so that it is the server that gives up first: then nobody is in doubt.
    statement_timeout = f"{min(STATEMENT_TIMEOUT, 0.8 * reply_timeout) * 1000:.0f}ms"
    try:
        session = (_pooled_session if behind_pooler(connection) else _direct_session)(connection, statement_timeout)
    except Exception as error:
        connection.close()
        raise DatabaseUnavailable(f"cannot prepare a connection: {one_line(error)}") from error
    connection.add_notice_handler(session.hear)
    return session


def pinning(connection: Connection, *, local: bool, **timeouts: str) -> str:
    """Return the SQL that makes `SETTINGS`, and synchronous_commit at least "on", for the transaction or for the session.

    An acknowledged job is a durable job: a server or role with synchronous_commit off is overruled, a stricter one is not.

    Args:
        connection: where it will run: not every server has every setting.
        local: for the transaction alone.
        **timeouts: further settings.
    """
    # A bound on whole transactions is no bound of ours; before PostgreSQL 17 there is none.
    more = {"transaction_timeout": "0"} if connection.info.server_version >= TRANSACTION_TIMEOUT_SINCE else {}
    scope = str(local).lower()
    calls = [f"set_config('{name}', '{value}', {scope})" for name, value in {**SETTINGS, **more, **timeouts}.items()]
    durable = f"CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', {scope}) END"
    return f"SELECT {', '.join([*calls, durable])}"


def _direct_session(connection: Connection, statement_timeout: str) -> _Session:
    pinned = pinning(connection, local=False, statement_timeout=statement_timeout, idle_in_transaction_session_timeout="0")
    connection.execute(pinned.encode())
    row = connection.execute(b"SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()").fetchone()
    pid, started = (row[0], row[1]) if row else (connection.info.backend_pid, "-infinity")
    assert isinstance(pid, int)  # noqa: S101 - PostgreSQL's own type
    assert isinstance(started, str)  # noqa: S101
    return _Session(connection, (pid, started))


def _pooled_session(connection: Connection, statement_timeout: str) -> _Session:
    connection.prepare_threshold = None  # also where a statement asks for it
    lock = random.getrandbits(63)
    timeouts = {"statement_timeout": statement_timeout, "idle_in_transaction_session_timeout": f"{ABANDONED_AFTER}s"}
    begin = f"""
        BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE;
        {pinning(connection, local=True, **timeouts)}, pg_advisory_xact_lock({lock})
    """
    return _Session(connection, (lock, POOLED), begin.encode())


async def _wait_in_loop(connection: Connection, statement: PQGen[T]) -> T:
    """Do what `Connection.wait` does, in the loop; a cancelled caller waits for the end here too."""
    assert connection.reply_timeout is not None  # noqa: S101 - every session has one
    with trio.move_on_after(connection.reply_timeout, shield=True):
        try:
            wants = next(statement)
            while True:
                if wants & Wait.W:
                    await trio.lowlevel.wait_writable(connection.fileno())
                    wants = statement.send(Ready.W)
                else:
                    await trio.lowlevel.wait_readable(connection.fileno())
                    wants = statement.send(Ready.R)
        except StopIteration as end:
            result: T = end.value
            return result
    connection.close()
    raise psycopg.OperationalError(f"no reply from PostgreSQL within {connection.reply_timeout:g} s")


def _row(cursor: psycopg.Cursor[tuple[Any, ...]]) -> tuple[Any, ...]:
    [row] = cursor.fetchall()
    return row


def ended_by_server(connection: Connection) -> bool:
    """Tell whether the server has ended an idle connection: what is sent into it would be in doubt for nothing."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    try:
        # The server's last words, and then the end; or a parameter that changed.
        while not connection.closed and poll.poll(0):
            connection.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return connection.closed


def severed_by(connection: Connection, error: psycopg.Error) -> bool:
    """Tell whether an error is the end of its connection: after FATAL the server ends the session, come that through or not."""
    return connection.closed or error.diag.severity_nonlocalized in {"FATAL", "PANIC"}


def _refusal(error: Exception) -> RefusedData | None:
    """The error of ours for a value that the driver or PostgreSQL refused; None for any other error."""
    if isinstance(error, UnicodeEncodeError):
        return RefusedData(f"a text cannot be encoded in UTF-8: {one_line(error)}")  # nothing was sent
    if isinstance(error, REFUSALS):
        # Where in our SQL it was is nothing to the submitter.
        return RefusedData(error.diag.message_primary or one_line(error), field=_refused_by_us(error))
    if isinstance(error, psycopg.Error) and error.sqlstate in KEY_ERRORS:
        index = re.search(r"\d+", error.diag.message_detail or "")
        return KEY_ERRORS[error.sqlstate](
            error.diag.message_primary or "", field=error.diag.column_name or "", index=int(index[0]) if index else None
        )
    return None


def _refused_by_us(error: psycopg.Error) -> str | None:
    """The field that a function of schema.sql named when it refused a value; checks of the tables name the table too."""
    diagnosis = error.diag
    return diagnosis.column_name if isinstance(error, pg.CheckViolation) and diagnosis.table_name is None else None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
