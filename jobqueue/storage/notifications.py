"""Listen for NOTIFY: an accelerator, never a need. With every notification lost, polling still finds the work."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

import psycopg
import structlog
import trio

from jobqueue.errors import DatabaseUnavailable
from jobqueue.storage.database import REPLY_TIMEOUT, Connection, behind_pooler, connect

CHECK_INTERVAL = 60.0
"""Seconds without a notification after which the connection is tried: one that is dead may look alive for hours."""

LONGEST_BACKOFF = 10.0
"""Seconds between two tries to connect again, at the most."""

Listeners = Mapping[str, Callable[[str], None]]
"""What is to be called with the payload of a notification, by channel."""

log = structlog.get_logger()


class _BehindPooler(DatabaseUnavailable):
    """A pooler passes no notifications on."""


async def run(
    url: str,
    listeners: Listeners,
    on_connect: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Call a channel's listener with the payload of each notification, until cancelled.

    After every (re)connection `on_connect` is called: whatever was notified in between is lost, so look for work at once.

    Through a connection pooler nothing is listened to: LISTEN would stay behind on a server connection that is anybody's next, and
    what arrives there goes to a stranger, or to nobody.

    Raises:
        DatabaseUnavailable: the first connection failed; later ones are tried again for ever.
    """
    limiter = trio.CapacityLimiter(1)
    connection: Connection | None = None
    try:
        connection = await trio.to_thread.run_sync(_listen, url, listeners, limiter=limiter)
    except _BehindPooler as error:
        log.warning("no notifications: work is found by polling", reason=str(error))
        task_status.started()
        await trio.sleep_forever()
    task_status.started()
    failures = 0
    while True:
        try:
            if connection is None:
                connection = await trio.to_thread.run_sync(_listen, url, listeners, limiter=limiter)
                log.info("listening again")
            failures = 0
            on_connect()
            await _relay(connection, listeners, limiter)
        except (psycopg.Error, DatabaseUnavailable) as error:
            failures += 1
            if failures == 1:
                log.warning("notifications lost, polling meanwhile", error=" ".join(str(error).split()))
        finally:
            if connection is not None:
                connection.close()
                connection = None
        await trio.sleep(min(LONGEST_BACKOFF, 0.1 * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1))


async def _relay(connection: Connection, listeners: Listeners, limiter: trio.CapacityLimiter) -> None:
    while True:
        # Drained before every wait: a listener that does not read holds back the whole server's notification queue.
        for notify in connection.notifies(timeout=0):
            listeners[notify.channel](notify.payload)
        with trio.move_on_after(CHECK_INTERVAL) as quiet:
            await trio.lowlevel.wait_readable(connection.fileno())
        if quiet.cancelled_caught:
            await trio.to_thread.run_sync(connection.execute, b"SELECT 1", limiter=limiter)


def _listen(url: str, channels: Iterable[str]) -> Connection:
    connection = connect(url, "listen")
    connection.reply_timeout = REPLY_TIMEOUT
    try:
        _subscribe(connection, channels)
    except psycopg.Error as error:
        connection.close()
        raise DatabaseUnavailable(f"cannot listen: {' '.join(str(error).split())}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _subscribe(connection: Connection, channels: Iterable[str]) -> None:
    if behind_pooler(connection):
        raise _BehindPooler("the database is reached through a connection pooler")
    for channel in channels:
        connection.execute(f"LISTEN {channel}".encode())
