"""Run and supervise the embedded PostgreSQL, for nodes without a database URL.

    url = await nursery.start(stage.run, stage.default_data_dir())

If the server ends, `run` restarts it after increasing pauses, as often as necessary. But if the first start fails `TRIES` times,
`run` raises.
"""

from __future__ import annotations

import functools
import math
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import platformdirs
import psycopg
import structlog
import trio

from jobqueue.errors import EmbeddedPostgresError
from jobqueue.retry import exponential_pause
from jobqueue.storage.connection import one_line
from jobqueue.storage.embedded import upgrade
from jobqueue.storage.embedded.binaries import remove_leftovers
from jobqueue.storage.embedded.cluster import POLL_SECONDS, STOP_STEPS, Cluster
from jobqueue.storage.handler_transactions import MAX_TRANSACTIONS

READY_SECONDS = 120.0  # maximum time of a start, including the recovery after a crash
TRIES = 7
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
DEFAULT_CONNECTIONS = 100
NODE_CONNECTIONS = 7 + MAX_TRANSACTIONS
SPARE_CONNECTIONS = 30  # for psql, and for connections that handlers open themselves
STEADY_SECONDS = 60.0  # after this uptime, the count of failures is reset to zero

log = structlog.get_logger()


def default_data_dir() -> Path:
    """Return the default data directory: ``/var/lib/jobqueue`` for root, else the XDG data directory."""
    return Path("/var/lib/jobqueue") if os.geteuid() == 0 else platformdirs.user_data_path("jobqueue", appauthor=False)


class ServerHealth:
    """The state of the server.

    Attributes:
        trouble: the reason why it is down; None while it is up.
    """

    trouble: str | None = None


async def run(
    data_dir: Path,
    nodes: int = 1,
    health: ServerHealth | None = None,
    *,
    binaries: Path | None = None,
    old_binaries: Path | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the server until cancelled, then shut it down. Report its URL to `task_status` when it accepts connections.

    After a crash or a full disk, this function restarts the server until it stays up. Call it from a thread that lives as long
    as the service, because the kernel stops the server when the thread that started it ends.

    Args:
        data_dir: see `Cluster`.
        nodes: the number of nodes that use the server. If PostgreSQL's default is too low for them, `max_connections` is raised.
        health: updated when the server goes down or comes up.
        binaries: see `Cluster`.
        old_binaries: the directory of the programs of an older major version. If the data directory has data of that version only,
            the data is upgraded first.
        task_status: receives the server's URL.

    Raises:
        EmbeddedPostgresError: the server cannot be started.
    """
    in_thread = functools.partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(1))
    needed = nodes * NODE_CONNECTIONS + SPARE_CONNECTIONS
    settings = {"max_connections": str(needed)} if needed > DEFAULT_CONNECTIONS else {}
    cluster = await in_thread(functools.partial(Cluster, data_dir, binaries=binaries, settings=settings))
    if old_binaries is not None and cluster.programs.major not in cluster.majors():
        await _upgrade(cluster, old_binaries, in_thread)
    async with _closing(cluster, in_thread):
        await in_thread(cluster.prepare)
        await _supervise(cluster, in_thread, health or ServerHealth(), task_status)


@asynccontextmanager
async def _closing(cluster: Cluster, in_thread: Callable[..., Any]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with trio.move_on_after(sum(seconds for _, seconds in STOP_STEPS) + 1, shield=True):
            await in_thread(cluster.stop, abandon_on_cancel=True)


async def _upgrade(cluster: Cluster, old_binaries: Path, in_thread: Callable[..., Any]) -> None:
    upgrade.require_programs(old_binaries)
    old = await in_thread(functools.partial(Cluster, cluster.data_dir, binaries=old_binaries))
    if old.programs.major not in old.majors():
        return  # `prepare` initializes the directory, or its error names the version of the data
    async with _closing(old, in_thread):
        await in_thread(old.prepare)
        await in_thread(remove_leftovers, cluster.pgdata)  # a pg_upgrade that outlived its service could start the old server
        try:
            await _bring_up(old, in_thread)  # after a crash, this start recovers the data
            await in_thread(old.end_server)
            await upgrade.upgrade(old, cluster)
        except (EmbeddedPostgresError, OSError, psycopg.Error) as error:
            raise EmbeddedPostgresError(
                f"the upgrade of {old.pgdata} to PostgreSQL {cluster.programs.version} failed: {one_line(error)}; "
                f"the data is unchanged: solve the problem and start again; {old.log_tail()}"
            ) from error


async def _supervise(
    cluster: Cluster, in_thread: Callable[..., Any], health: ServerHealth, task_status: trio.TaskStatus[str]
) -> None:
    failures, announced = 0, False
    while True:
        up_since = math.inf
        try:
            process = await _bring_up(cluster, in_thread)
            up_since = trio.current_time()
            health.trouble = None
            if not announced:
                task_status.started(cluster.url)
                announced = True
            while process.poll() is None:  # noqa: ASYNC110 - another process's state
                await trio.sleep(5 * POLL_SECONDS)
            reason = f"PostgreSQL ended with status {process.returncode}"
        except (EmbeddedPostgresError, OSError, psycopg.Error) as error:
            reason = one_line(error)
        reason = "; ".join(filter(None, [reason, cluster.room()]))
        failures = failures + 1 if trio.current_time() - up_since < STEADY_SECONDS else 1
        if failures >= TRIES and not announced:
            raise EmbeddedPostgresError(f"the embedded PostgreSQL failed {failures} times: {reason}; {cluster.log_tail()}")
        health.trouble = reason
        pause = exponential_pause(failures, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        log.error("embedded postgresql is down", reason=reason, again_in=pause, log=str(cluster.log_path))
        await trio.sleep(pause)


async def _bring_up(cluster: Cluster, in_thread: Callable[..., Any]) -> subprocess.Popen[bytes]:
    begun = trio.current_time()
    await in_thread(cluster.end_server)  # the last server may still be running, although it never became ready
    process = cluster.start()  # not in a thread: see `run`
    with trio.move_on_after(READY_SECONDS) as patience:
        while not (cluster.ready() and await in_thread(cluster.create_database)):  # noqa: ASYNC110 - another process's state
            await trio.sleep(POLL_SECONDS)
    if patience.cancelled_caught:
        raise EmbeddedPostgresError(f"PostgreSQL accepted no connections within {READY_SECONDS:.0f} s")
    log.info("embedded postgresql is ready", pid=process.pid, seconds=round(trio.current_time() - begun, 3))
    return process
