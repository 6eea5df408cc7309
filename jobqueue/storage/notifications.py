"""Listen for NOTIFY: an accelerator, never a need. With every notification lost, polling still finds the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import psycopg
import structlog
import trio

from jobqueue.concurrency.trouble import Trouble
from jobqueue.errors import DatabaseUnavailable
from jobqueue.storage.database import REPLY_TIMEOUT, Connection, behind_pooler, connect, one_line, pinning

CHECK_INTERVAL = 60.0
"""Seconds without a notification after which the connection is tried: one that is dead may look alive for hours."""

LONGEST_PAUSE = 10.0
"""Seconds between two tries to connect again, at the most."""

Listeners = Mapping[str, Callable[[str], None]]
"""What is to be called with the payload of a notification, by channel.

Any role may NOTIFY, with any payload: a listener that raises an error refuses one that it cannot read.
"""

log = structlog.get_logger()


class _BehindPooler(DatabaseUnavailable):
    """A pooler passes no notifications on."""


class Notifications:
    """One connection that listens.

    Through a connection pooler nothing is listened to: LISTEN would stay behind on a server connection that is anybody's next, and
    what arrives there goes to a stranger, or to nobody.

    Args:
        url: a libpq URL or connection string.
        listeners: see `Listeners`.
        on_connect: called after every (re)connection: what was notified in between is lost, so look for work at once.
    """

    def __init__(self, url: str, listeners: Listeners, on_connect: Callable[[], None]) -> None:
        self._url = url
        self._listeners = listeners
        self._on_connect = on_connect
        self._limiter = trio.CapacityLimiter(1)
        self.trouble = Trouble("notifications", longest_pause=LONGEST_PAUSE)
        self.unreadable = Trouble("reading a notification")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled.

        Raises:
            DatabaseUnavailable: the first connection failed; later ones are tried again for ever.
        """
        connection: Connection | None = None
        try:
            connection = await self._listen()
        except _BehindPooler as error:
            log.warning("no notifications: work is found by polling", reason=str(error))
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
        while True:
            # Drained before every wait: a listener that does not read holds back the whole server's notification queue.
            for notify in connection.notifies(timeout=0):
                with self.unreadable.contained():
                    self._listeners[notify.channel](notify.payload)
            with trio.move_on_after(CHECK_INTERVAL) as quiet:
                await trio.lowlevel.wait_readable(connection.fileno())
            if quiet.cancelled_caught:
                await trio.to_thread.run_sync(connection.execute, b"SELECT 1", limiter=self._limiter)


def _listen(url: str, channels: Iterable[str]) -> Connection:
    connection = connect(url, "listen")
    connection.reply_timeout = REPLY_TIMEOUT
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
        raise _BehindPooler("the database is reached through a connection pooler")
    connection.execute(pinning(connection, local=False).encode())
    for channel in channels:
        connection.execute(f"LISTEN {channel}".encode())
