"""The processes that faults are done to: PostgreSQL, and the nodes, each behind a proxy of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import psycopg
import trio

from benchmarks.chaos import effects
from benchmarks.chaos.plan import LEASE
from benchmarks.proxy import Proxy
from jobqueue.storage.cluster import POLL_SECONDS, PORT, ROLE, Cluster

ROOT = Path(__file__).parent.parent.parent

MAX_CONNECTIONS = 120
"""For three nodes with 7 and up to 16 each, for what they record, and for the load's own; what is left is taken to exhaust them."""

START_TIMEOUT = 60.0
"""Seconds for PostgreSQL to accept connections, and for a node to serve."""

GRACE_PERIOD = 3.0

EXIT_TIMEOUT = GRACE_PERIOD + 5 + 4
"""Seconds from SIGTERM to a node's end: what it promises, and some for a busy machine."""

RESTART_PAUSE = 0.5
"""Seconds until a node that ended by itself is started again."""


class Postgres:
    """A server with fsync on, reached through a Unix socket."""

    def __init__(self, directory: Path) -> None:
        self._cluster = Cluster(directory, settings={"max_connections": str(MAX_CONNECTIONS), "log_checkpoints": "off"})
        self._process: subprocess.Popen[bytes] | None = None
        self._restarting = trio.Lock()

    @property
    def url(self) -> str:
        """Leads straight to the server, past all proxies."""
        return self._cluster.url

    @property
    def socket(self) -> tuple[str, int]:
        """Where a proxy finds the server."""
        return str(self._cluster.data_dir / "run"), PORT

    async def start(self) -> None:
        """Initialise and start the server, with the record's table in it."""
        await trio.to_thread.run_sync(self._cluster.prepare)
        await self._bring_up()
        with psycopg.connect(self.url) as connection:
            connection.execute(effects.SCHEMA.encode())

    async def kill(self, pause: float) -> None:
        """End the postmaster by SIGKILL, and start it again."""
        await self._again(signal.SIGKILL, pause)

    async def restart(self, pause: float) -> None:
        """Shut the server down fast, and start it again."""
        await self._again(signal.SIGINT, pause)

    def stop(self) -> None:
        """End the server for good."""
        self._cluster.stop()

    async def _again(self, number: signal.Signals, pause: float) -> None:
        async with self._restarting:
            assert self._process is not None
            self._process.send_signal(number)
            await trio.to_thread.run_sync(self._process.wait)
            await trio.sleep(pause)
            await self._bring_up()

    async def _bring_up(self) -> None:
        await trio.to_thread.run_sync(self._cluster.end_server)
        self._process = self._cluster.start()  # not in a thread: the kernel stops the server when the one that started it ends
        with trio.fail_after(START_TIMEOUT):
            while not (self._cluster.ready() and await trio.to_thread.run_sync(self._cluster.create_database)):  # noqa: ASYNC110 - another process's state
                await trio.sleep(POLL_SECONDS)


class Exit(NamedTuple):
    """How a node's process ended: what was done to it, and whether it had come so far as to serve."""

    node: int
    at: float
    code: int
    wanted: Literal["SIGKILL", "SIGTERM"] | None
    served: bool
    seconds: float


class Node:
    """One ``jobqueue serve`` after the other, on the same port: one that ends, for whatever reason, is started again.

    Attributes:
        exits: how its processes ended.
    """

    def __init__(self, number: int, proxy: Proxy, log_path: Path, environment: Mapping[str, str]) -> None:
        self.number = number
        self.proxy = proxy
        self.exits: list[Exit] = []
        self._log_path = log_path
        self._environment = {**os.environ, **environment, effects.NODE_VARIABLE: str(number)}
        self._port = _free_port()
        self._process: trio.Process | None = None
        self._served = trio.Event()
        self._ended = trio.Event()
        self._wanted: Literal["SIGKILL", "SIGTERM"] | None = None
        self._signalled_at = 0.0
        self._pause = RESTART_PAUSE
        self._retired = False
        self._groups: list[int] = []

    @property
    def url(self) -> str:
        """Where it serves HTTP."""
        return f"http://127.0.0.1:{self._port}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a process running until `retire`; started once the first one serves."""
        async with trio.open_nursery() as nursery:
            proxy_port = await nursery.start(self.proxy.run)
            announce: Callable[[], None] | None = task_status.started
            try:
                while not self._retired:
                    await self._live(proxy_port, announce)
                    announce = None
                    await trio.sleep(self._pause)
            finally:
                self._sweep()
            nursery.cancel_scope.cancel()

    async def served(self) -> None:
        """Wait until the present process serves, or the one after it if it does not come so far."""
        while not self._served.is_set():  # noqa: ASYNC110 - each process has an event of its own
            await trio.sleep(POLL_SECONDS)

    async def kill(self, pause: float) -> None:
        """End the process by SIGKILL, and return when the next one is started."""
        await self._end("SIGKILL", pause)

    async def terminate(self, pause: float) -> None:
        """End the process by SIGTERM, and return when the next one is started."""
        await self._end("SIGTERM", pause)

    def freeze(self) -> Callable[[], None]:
        """SIGSTOP the process; return what lets it go on, harmless when it has ended meanwhile."""
        process = self._process
        if process is None:
            return lambda: None
        _signal(process, signal.SIGSTOP)
        return lambda: _signal(process, signal.SIGCONT)

    async def retire(self) -> None:
        """End the process by SIGTERM, for good."""
        self._retired = True
        await self._end("SIGTERM", 0)

    async def _end(self, wanted: Literal["SIGKILL", "SIGTERM"], pause: float) -> None:
        if self._process is None or self._wanted is not None:
            return  # it is down, or about to be
        self._wanted, self._pause, self._signalled_at = wanted, pause, time.monotonic()
        ended = self._ended
        _signal(self._process, signal.Signals[wanted])
        with trio.move_on_after(EXIT_TIMEOUT):
            await ended.wait()
        if not ended.is_set():
            _signal(self._process, signal.SIGKILL)  # its exit code tells that it had to be
            await ended.wait()
        if not self._retired:
            await trio.sleep(pause)

    async def _live(self, proxy_port: int, announce: Callable[[], None] | None) -> None:
        """Run one process from its start to its end."""
        self._served, self._ended, self._wanted, self._pause = trio.Event(), trio.Event(), None, RESTART_PAUSE
        with self._log_path.open("ab") as log:
            process = await trio.lowlevel.open_process(
                self._command(proxy_port),
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                cwd=ROOT,
                start_new_session=True,
            )
        self._process = process
        self._groups.append(process.pid)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_banner, process, announce)
                code = await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._process = None
        seconds = time.monotonic() - self._signalled_at if self._wanted else 0.0
        self.exits.append(Exit(self.number, time.time(), code, self._wanted, self._served.is_set(), round(seconds, 3)))
        self._ended.set()

    async def _watch_banner(self, process: trio.Process, announce: Callable[[], None] | None) -> None:
        assert process.stdout is not None
        banner = b""
        async for chunk in process.stdout:
            banner += chunk
            if b"\n  serving" in banner and not self._served.is_set():
                self._served.set()
                if announce is not None:
                    announce()

    def _sweep(self) -> None:
        """End what is left of all its processes, those of CPU-bound handlers included: they outlive a node that is killed."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def _command(self, proxy_port: int) -> list[str]:
        options = {
            "--port": self._port,
            "--database-url": f"postgresql://{ROLE}@127.0.0.1:{proxy_port}/{ROLE}",
            "--visibility-timeout": LEASE,
            "--poll-interval": 1,
            "--grace-period": GRACE_PERIOD,
            "--queue": "default=16",
        }
        arguments = [str(part) for option in options.items() for part in option]
        return [sys.executable, "-m", "jobqueue", "serve", "benchmarks.chaos.handlers", *arguments]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _signal(process: trio.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


async def start_nodes(nursery: trio.Nursery, postgres: Postgres, log_directory: Path, count: int) -> list[Node]:
    """Start so many nodes, and wait until they serve."""
    environment = {effects.URL_VARIABLE: postgres.url}
    nodes = [Node(number, Proxy(*postgres.socket), log_directory / f"node-{number}.log", environment) for number in range(count)]
    with trio.fail_after(START_TIMEOUT):
        for node in nodes:
            await nursery.start(node.run)
    return nodes
