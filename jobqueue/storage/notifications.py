"""Listen for NOTIFY, so that nodes notice new jobs sooner. If a notification is lost, nodes find its jobs by polling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import psycopg
import structlog
import trio

from jobqueue.concurrency.trouble import Trouble
from jobqueue.errors import DatabaseUnavailable
from jobqueue.schema_names import DEFAULT, channel
from jobqueue.storage.connection import Connection, behind_pooler, connect, one_line
from jobqueue.storage.lane import REPLY_TIMEOUT
from jobqueue.storage.session_settings import pinning

CHECK_INTERVAL = 60.0
"""Seconds without a notification after which the connection is tested. Otherwise a broken connection could go unnoticed for
hours."""

LONGEST_PAUSE = 10.0
"""Maximum seconds between two attempts to reconnect."""

Listeners = Mapping[str, Callable[[str], None]]
"""The function that receives the payload of each notification, by the default name of its channel.

Any role can send any payload. A listener rejects a payload by raising an exception.
"""

log = structlog.get_logger()


class _BehindPooler(DatabaseUnavailable):
    """The connection goes through a pooler, which does not pass on notifications."""


class Notifications:
    """Listen for notifications on one connection.

    Through a connection pooler, `run` does not listen. There, LISTEN would apply to a server connection that other clients use
    next, and those clients would receive the notifications.

    Args:
        url: a libpq URL or connection string.
        listeners: see `Listeners`.
        on_connect: called after each successful connection. Earlier notifications may have been lost, so the callback should poll.
        schema: the name of the queue's schemas.
    """

    def __init__(self, url: str, listeners: Listeners, on_connect: Callable[[], None], *, schema: str = DEFAULT) -> None:
        self._url = url
        self._listeners = {channel(name, schema): listener for name, listener in listeners.items()}
        self._on_connect = on_connect
        self._limiter = trio.CapacityLimiter(1)
        self.trouble = Trouble("notifications", longest_pause=LONGEST_PAUSE)
        self.unreadable = Trouble("reading a notification")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled.

        Raises:
            DatabaseUnavailable: the first connection failed. Later failures are retried without limit.
        """
        connection: Connection | None = None
        try:
            connection = await self._listen()
        except _BehindPooler as error:
            log.warning("no notifications: this node finds jobs by polling", reason=str(error))
            task_status.started()
            await trio.sleep_forever()
        task_status.started()
        while True:
            with self.trouble.contained():
                try:
                    connection = connection or await self._listen()
                    self.trouble.succeeded()
                    self._on_connect()
                    await self._relay(connection)
                except psycopg.Error as error:
                    raise DatabaseUnavailable(one_line(error)) from error
                finally:
                    if connection is not None:
                        connection.close()
                        connection = None
            await trio.sleep(self.trouble.pause)

    async def _listen(self) -> Connection:
        return await trio.to_thread.run_sync(_listen, self._url, self._listeners, limiter=self._limiter)

    async def _relay(self, connection: Connection) -> None:
        pgconn = connection.driver.pgconn
        while True:
            # Read all notifications before each wait: an idle listener holds back the notification queue of the whole server.
            pgconn.consume_input()
            while notify := pgconn.notifies():
                with self.unreadable.contained():
                    self._listeners[notify.relname.decode()](notify.extra.decode())
            with trio.move_on_after(CHECK_INTERVAL) as quiet:
                await trio.lowlevel.wait_readable(connection.driver)
            if quiet.cancelled_caught:
                await connection.execute_in_loop("SELECT 1")


def _listen(url: str, channels: Iterable[str]) -> Connection:
    connection = connect(url, "listen", REPLY_TIMEOUT)
    try:
        _subscribe(connection, channels)
    except psycopg.Error as error:
        connection.close()
        raise DatabaseUnavailable(f"cannot listen: {one_line(error)}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _subscribe(connection: Connection, channels: Iterable[str]) -> None:
    if behind_pooler(connection):
        raise _BehindPooler("the database connection goes through a pooler")
    connection.execute(pinning(connection, local=False))
    for name in channels:
        connection.execute(f'LISTEN "{name}"')
