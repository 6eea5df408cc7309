"""Connections to PostgreSQL that run one statement at a time, in a thread or in the Trio loop, each with a timeout for its reply.

psycopg connects, converts values, and defines the errors. The statements go through `psycopg.pq`, its interface to libpq, because
psycopg's cursors can wait neither in a Trio loop nor with a timeout.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import select
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

import psycopg
import trio
from psycopg import errors as pg
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from jobqueue.errors import DatabaseUnavailable, SettingsError
from jobqueue.schema_names import DEFAULT, render

CONNECT_TIMEOUT = 5
"""Seconds to wait for PostgreSQL to accept a connection."""

DEAD_PEER_TIMEOUT = 10
"""Seconds without an acknowledgment after which a TCP connection is closed."""

CANCEL_TIMEOUT = 2.0
"""Seconds to wait for PostgreSQL to accept the cancellation of a statement."""

MAX_PREPARED = 100
"""Maximum number of statements that a connection prepares. Further statements run without preparation."""

T = TypeVar("T")

Steps = Generator[int, int, T]
"""An exchange with the server. It yields the `select.poll` events to wait for, and receives the events that occurred."""


class Rows(list[tuple[Any, ...]]):
    """The rows that a statement returned."""

    def __init__(self, rows: Iterable[tuple[Any, ...]], result: PGresult) -> None:
        super().__init__(rows)
        self._result = result

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [(self._result.fname(column) or b"").decode() for column in range(self._result.nfields)]

    def first(self) -> tuple[Any, ...] | None:
        """Return the first row; None if there is none."""
        return self[0] if self else None


class Connection:
    """A session in autocommit mode. Only one thread or task may use it at a time.

    Args:
        driver: psycopg's connection.
        reply_timeout: see below.
        schema: see below.

    Attributes:
        driver: psycopg's connection. Its cursors have no timeout, so run statements with the methods of this class.
        info: psycopg's information about the session.
        reply_timeout: maximum seconds for a statement, including its reply. Without this limit, a reply that the server or a proxy
            loses would block the caller forever.
        schema: the name of the queue's schemas. The SQL of `execute` is written for the default name, and rendered for this name.
        prepares: whether statements may be prepared. Poolers may lose prepared statements.
    """

    def __init__(self, driver: psycopg.Connection[Any], reply_timeout: float, schema: str = DEFAULT) -> None:
        driver.pgconn.nonblocking = 1
        self.driver = driver
        self.info = driver.info
        self.reply_timeout = reply_timeout
        self.schema = schema
        self.prepares = True
        self._prepared: dict[tuple[str, tuple[int, ...] | None], bytes] = {}  # the names of prepared statements

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        return self.driver.closed

    def close(self) -> None:
        self.driver.close()

    def execute(self, sql: str, params: Sequence[object] = (), *, prepare: bool = False) -> Rows:
        """Run one statement, and block the calling thread until it ends.

        Args:
            sql: the statement, with the placeholder ``%s`` for each parameter, and ``%%`` for a percent sign. ``$1`` refers to the
                first parameter once more.
            params: its parameters.
            prepare: prepare the statement, for calls that repeat it on this connection.

        Raises:
            psycopg.Error: the statement failed, or the reply did not arrive in time. In the second case, the connection is closed.
        """
        return self._wait_here(self._statement(sql, params, prepare=prepare))

    def execute_script(self, sql: bytes) -> PGresult:
        """Run statements as they are, without parameters, separated by semicolons. Return the last result, with unconverted values.

        Raises:
            psycopg.Error: see `execute`.
        """
        return self._wait_here(self._script(sql))

    async def execute_in_loop(self, sql: str, params: Sequence[object] = (), *, prepare: bool = False) -> Rows:
        """Run one statement as `execute` does, and wait in the Trio loop. Even a cancelled caller waits for the end.

        Raises:
            psycopg.Error: see `execute`.
        """
        steps = self._statement(sql, params, prepare=prepare)
        with trio.move_on_after(self.reply_timeout, shield=True):
            try:
                events = next(steps)
                while True:
                    if events == select.POLLIN:
                        await trio.lowlevel.wait_readable(self.driver)
                    else:
                        events = await _wait_readable_or_writable(self.driver)
                    events = steps.send(events)
            except StopIteration as end:
                rows: Rows = end.value
                return rows
        raise self._no_reply()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in a transaction. Within a transaction, run it in a savepoint."""
        nested = self.info.transaction_status is not TransactionStatus.IDLE
        self.execute_script(b"SAVEPOINT nested" if nested else b"BEGIN")
        try:
            yield
        except BaseException:
            self.execute_script(b"ROLLBACK TO nested" if nested else b"ROLLBACK")
            raise
        self.execute_script(b"RELEASE nested" if nested else b"COMMIT")

    def rollback(self) -> None:
        """Roll back the open transaction, if there is one."""
        if self.info.transaction_status is not TransactionStatus.IDLE:
            self.execute_script(b"ROLLBACK")

    def _wait_here(self, steps: Steps[T]) -> T:
        deadline = time.monotonic() + self.reply_timeout
        poll = select.poll()
        try:
            events = next(steps)
            while True:
                poll.register(self.driver, events)
                ready = poll.poll(None if deadline == math.inf else max(0.0, deadline - time.monotonic()) * 1000)
                if not ready:
                    raise self._no_reply()
                events = steps.send(ready[0][1])
        except StopIteration as end:
            result: T = end.value
            return result
        except KeyboardInterrupt:
            with suppress(psycopg.Error):
                self.driver.cancel_safe(timeout=CANCEL_TIMEOUT)
            self.close()
            raise

    def _no_reply(self) -> psycopg.OperationalError:
        self.close()
        return psycopg.OperationalError(f"no reply from PostgreSQL within {self.reply_timeout:g} s")

    def _statement(self, sql: str, params: Sequence[object], *, prepare: bool) -> Steps[Rows]:
        pgconn = self.driver.pgconn
        transformer = Transformer(self.driver)
        values = transformer.dump_sequence(params, [PyFormat.AUTO] * len(params))
        name = None
        if prepare and self.prepares:
            key = (sql, transformer.types)
            name = self._prepared.get(key)
            if name is None and len(self._prepared) < MAX_PREPARED:
                name = b"jobqueue_%d" % len(self._prepared)
                pgconn.send_prepare(name, _numbered(sql, self.schema), transformer.types)
                yield from self._results()
                self._prepared[key] = name
        if name is None:
            pgconn.send_query_params(_numbered(sql, self.schema), values, transformer.types, transformer.formats)
        else:
            pgconn.send_query_prepared(name, values, transformer.formats)
        result = yield from self._results()
        transformer.set_pgresult(result)
        return Rows(transformer.load_rows(0, result.ntuples, tuple), result)

    def _script(self, sql: bytes) -> Steps[PGresult]:
        self.driver.pgconn.send_query(sql)
        return (yield from self._results())

    def _results(self) -> Steps[PGresult]:
        """Send the pending statements, and receive their results. Return the last result."""
        pgconn = self.driver.pgconn
        while pgconn.flush():
            # Receive while sending: the server stops reading until the client receives its output, such as warnings.
            if (yield select.POLLIN | select.POLLOUT) != select.POLLOUT:
                pgconn.consume_input()
        results: list[PGresult] = []
        try:
            while True:
                while pgconn.is_busy():
                    yield select.POLLIN
                    pgconn.consume_input()
                if (result := pgconn.get_result()) is None:
                    break
                results.append(result)
        except psycopg.OperationalError:
            if not any(result.status == ExecStatus.FATAL_ERROR for result in results):
                raise  # otherwise, the server has sent the reason before it closed the connection
        for result in results:
            if result.status == ExecStatus.FATAL_ERROR:
                raise pg.error_from_result(result, self.info.encoding)
        return results[-1]


def connect(url: str, purpose: str, reply_timeout: float = math.inf, *, schema: str = DEFAULT) -> Connection:
    """Open a connection with autocommit and timeouts.

    Args:
        url: a libpq URL or connection string.
        purpose: one word, which becomes part of the application_name.
        reply_timeout: see `Connection`.
        schema: see `Connection`.

    Raises:
        DatabaseUnavailable: PostgreSQL cannot be reached, or refuses the connection.
        SettingsError: the URL is not valid.
    """
    try:
        driver = psycopg.connect(
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
    except (psycopg.ProgrammingError, UnicodeError):  # an invalid host name raises UnicodeError
        # The text of libpq's error may contain the password.
        raise SettingsError("the database URL cannot be read: write it like postgresql://user@host:5432/database") from None
    except psycopg.Error as error:
        raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {one_line(error)}") from error
    return Connection(driver, reply_timeout, schema)


async def _wait_readable_or_writable(driver: psycopg.Connection[Any]) -> int:
    """Return the events that occurred, as `select.poll` does."""
    ready = 0

    async def wait(until: Callable[[psycopg.Connection[Any]], Awaitable[None]], event: int) -> None:
        nonlocal ready
        await until(driver)
        ready |= event
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, trio.lowlevel.wait_readable, select.POLLIN)
        nursery.start_soon(wait, trio.lowlevel.wait_writable, select.POLLOUT)
    return ready


@functools.lru_cache(maxsize=256)
def _numbered(sql: str, schema: str) -> bytes:
    """Replace the placeholders ``%s`` with ``$1``, ``$2``, and so on, and render the statement for the schema name."""
    numbers = itertools.count(1)
    return re.sub("%[s%]", lambda found: f"${next(numbers)}" if found[0] == "%s" else "%", render(sql, schema)).encode()


def behind_pooler(connection: Connection) -> bool:
    """Return whether a connection goes through a pooler, such as PgBouncer. A pooler reports made-up pids to its clients."""
    return connection.execute("SELECT pg_backend_pid()") != [(connection.info.backend_pid,)]


def ended_by_server(connection: Connection) -> bool:
    """Return whether the server has ended an idle connection. A statement sent on it would needlessly be in doubt."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.driver, select.POLLIN)
    try:
        # An idle server sends data only if it changes a parameter, or ends the connection. In the second case an error precedes
        # the end.
        while not connection.closed and poll.poll(0):
            connection.driver.pgconn.consume_input()
    except psycopg.OperationalError:
        return True
    return connection.closed


def severed_by(connection: Connection, error: psycopg.Error) -> bool:
    """Return whether an error ends its connection.

    After a FATAL error the server ends the session, even if libpq still reports the connection as open.
    """
    return connection.closed or error.diag.severity_nonlocalized in {"FATAL", "PANIC"}


def one_line(error: Exception) -> str:
    """Return the text of an error on one line."""
    return " ".join(str(error).split())
