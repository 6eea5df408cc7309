"""The processes that faults affect: PostgreSQL, and the nodes, each with its own proxy to PostgreSQL."""

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

import trio

from benchmarks.chaos import effects
from benchmarks.chaos.database import connect
from benchmarks.chaos.load import LIMITED
from benchmarks.chaos.plan import LEASE
from jobqueue.storage.embedded.cluster import POLL_SECONDS, PORT, ROLE, Cluster
from tests.support.clock import Clock
from tests.support.proxy import Proxy

ROOT = Path(__file__).parent.parent.parent

MAX_CONNECTIONS = 120
"""The max_connections of PostgreSQL: enough for three nodes with 7 to 23 connections each, their handlers' records, and the load.

One of the faults takes all free connections.
"""

START_TIMEOUT = 60.0
"""Maximum time until PostgreSQL accepts connections, and until a node serves, in seconds."""

GRACE_PERIOD = 3.0

EXIT_TIMEOUT = GRACE_PERIOD + 5 + 4
"""Maximum time from SIGTERM to a node's end, in seconds: the time that a node guarantees, plus a margin for a busy machine."""

RESTART_PAUSE = 0.5
"""Seconds until a node that ended unexpectedly is started again."""


SERVES_WITHIN = 20.0
"""Maximum time that a fault waits until its node serves, in seconds. A node that cannot start must not delay the plan."""

FILLER = b"somebody else's line\n" * 100
"""Data to fill the pipe of a log. The data is smaller than PIPE_BUF, so each write is atomic."""

LAST_WORDS = 0.5
"""Maximum time to read the rest of a log after its node has ended, in seconds.

The end of the log may come later, because processes that outlive the node keep the pipe open.
"""

RATE, BURST = 20.0, 2
"""Rate per second, and burst, of the queue with limits and of each of its keys. The load submits jobs to it at a lower rate."""


class Software(NamedTuple):
    """A version of jobqueue: the Python that runs it, and the directory of its sources."""

    python: str
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of its processes, which import only these sources."""
        return {**os.environ, "PYTHONPATH": str(self.directory)}


CURRENT = Software(sys.executable, ROOT)


class Postgres:
    """A server with fsync on, reached through a Unix socket.

    Attributes:
        clock: the server's clock; None for the machine's.
    """

    def __init__(self, directory: Path, *, clock: Clock | None = None) -> None:
        self.clock = clock
        self._cluster = Cluster(
            directory,
            settings={"max_connections": str(MAX_CONNECTIONS), "log_checkpoints": "off"},
            environment=clock.environment if clock else None,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._restarting = trio.Lock()

    @property
    def url(self) -> str:
        """The server's URL without a proxy."""
        return self._cluster.url

    @property
    def socket(self) -> tuple[str, int]:
        """The socket directory and port for a proxy."""
        return str(self._cluster.data_dir / "run"), PORT

    async def start(self) -> None:
        """Initialize and start the server, and create the tables for records."""
        await trio.to_thread.run_sync(self._cluster.prepare)
        await self._bring_up()
        with connect(self.url) as connection:
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
        self._tidy_up()

    async def _again(self, number: signal.Signals, pause: float) -> None:
        async with self._restarting:
            assert self._process is not None
            self._process.send_signal(number)
            await trio.to_thread.run_sync(self._process.wait)
            await trio.sleep(pause)
            await self._bring_up()

    def _tidy_up(self) -> None:
        if self.clock is not None and self._process is not None:
            self.clock.forget(self._process.pid)

    async def _bring_up(self) -> None:
        await trio.to_thread.run_sync(self._cluster.end_server)
        self._tidy_up()
        self._process = self._cluster.start()  # not in a thread: the kernel stops the server when its starting thread ends
        with trio.fail_after(START_TIMEOUT):
            while not (self._cluster.ready() and await trio.to_thread.run_sync(self._cluster.create_database)):  # noqa: ASYNC110 - another process's state
                await trio.sleep(POLL_SECONDS)


class Exit(NamedTuple):
    """The end of a node's process: its cause, and whether the node had begun to serve."""

    node: int
    at: float
    code: int
    wanted: Literal["SIGKILL", "SIGTERM"] | None
    served: bool
    seconds: float


class Node:
    """A node whose process is started again on the same port whenever it ends.

    Attributes:
        software: the version that its next process runs.
        exits: how its processes ended.
    """

    def __init__(
        self, number: int, proxy: Proxy, log_path: Path, environment: Mapping[str, str], software: Software = CURRENT
    ) -> None:
        self.number = number
        self.proxy = proxy
        self.software = software
        self.exits: list[Exit] = []
        self._log_path = log_path
        self._environment = {**environment, effects.NODE_VARIABLE: str(number)}
        self._port = _free_port()
        self._process: trio.Process | None = None
        self._served = trio.Event()
        self._ended = trio.Event()
        self._wanted: Literal["SIGKILL", "SIGTERM"] | None = None
        self._signalled_at = 0.0
        self._log_flows = trio.Event()
        self._pause = RESTART_PAUSE
        self._retired = False
        self._groups: list[int] = []

    @property
    def url(self) -> str:
        """The URL of its HTTP server."""
        return f"http://127.0.0.1:{self._port}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a process running until `retire`. Report to `task_status` when the first process serves."""
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
        """Wait until the current process serves. If it ends before that, wait for the next process. Give up after some time."""
        with trio.move_on_after(SERVES_WITHIN):
            while not self._served.is_set():  # noqa: ASYNC110 - each process has its own event
                await trio.sleep(POLL_SECONDS)

    async def kill(self, pause: float) -> None:
        """Kill the process with SIGKILL. Return when the next process has started."""
        await self._end("SIGKILL", pause)

    async def terminate(self, pause: float) -> None:
        """End the process with SIGTERM. Return when the next process has started."""
        await self._end("SIGTERM", pause)

    async def replace(self, software: Software, pause: float) -> None:
        """End the process with SIGTERM, and wait until another one serves. It runs the given version."""
        self.software = software
        before = self._served
        await self.terminate(pause)
        with trio.move_on_after(SERVES_WITHIN):
            while self._served is before:  # noqa: ASYNC110 - each process has its own event
                await trio.sleep(POLL_SECONDS)
        await self.served()

    def freeze(self) -> Callable[[], None]:
        """Stop the process and its children with SIGSTOP, as if the machine paused. Return the function that resumes them."""
        process = self._process
        if process is None:
            return lambda: None
        _signal_group(process.pid, signal.SIGSTOP)
        return lambda: _signal_group(process.pid, signal.SIGCONT)

    async def jam_log(self) -> Callable[[], None]:
        """Fill the pipe of the process's log and stop reading it. Return the function that resumes reading."""
        process = self._process
        if process is None:
            return lambda: None
        self._log_flows = flows = trio.Event()
        for _ in range(2):  # the reader may still read the data of the first call
            _fill(process)
            await trio.sleep(POLL_SECONDS)
        return flows.set

    async def close_log(self) -> None:
        """Close the pipe of the process's log, so that all further writes fail."""
        if self._process is not None and self._process.stderr is not None:
            await self._process.stderr.aclose()

    async def retire(self) -> None:
        """End the process with SIGTERM, and do not start another process."""
        self._retired = True
        await self._end("SIGTERM", 0)

    async def _end(self, wanted: Literal["SIGKILL", "SIGTERM"], pause: float) -> None:
        if self._process is None or self._wanted is not None:
            return  # the process has ended or is ending
        self._wanted, self._pause, self._signalled_at = wanted, pause, time.monotonic()
        ended = self._ended
        _signal(self._process, signal.Signals[wanted])
        with trio.move_on_after(EXIT_TIMEOUT):
            await ended.wait()
        if not ended.is_set():
            _signal(self._process, signal.SIGKILL)  # the exit code then shows this signal
            await ended.wait()
        if not self._retired:
            await trio.sleep(pause)

    async def _live(self, proxy_port: int, announce: Callable[[], None] | None) -> None:
        """Run one process from its start to its end."""
        self._served, self._ended, self._wanted, self._pause = trio.Event(), trio.Event(), None, RESTART_PAUSE
        self._log_flows.set()
        process = await trio.lowlevel.open_process(
            self._command(proxy_port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.software.environment, **self._environment},
            cwd=self.software.directory,
            start_new_session=True,
        )
        self._process = process
        self._groups.append(process.pid)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_banner, process, announce)
                nursery.start_soon(self._copy_log, process)
                code = await process.wait()
                self._process = None
                seconds = time.monotonic() - self._signalled_at if self._wanted else 0.0
                self.exits.append(Exit(self.number, time.time(), code, self._wanted, self._served.is_set(), round(seconds, 3)))
                self._ended.set()
                self._log_flows.set()
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS
        finally:
            self._process = None

    async def _watch_banner(self, process: trio.Process, announce: Callable[[], None] | None) -> None:
        assert process.stdout is not None
        banner = b""
        async for chunk in process.stdout:
            banner += chunk
            if b"\n  serving" in banner and not self._served.is_set():
                self._served.set()
                if announce is not None:
                    announce()

    async def _copy_log(self, process: trio.Process) -> None:
        assert process.stderr is not None
        with self._log_path.open("ab", buffering=0) as log, suppress(trio.ClosedResourceError):
            while chunk := await process.stderr.receive_some():
                log.write(chunk)
                await self._log_flows.wait()

    def _sweep(self) -> None:
        """Kill all its remaining processes. The processes of CPU-bound handlers outlive a killed node."""
        for group in self._groups:
            _signal_group(group, signal.SIGKILL)

    def _command(self, proxy_port: int) -> list[str]:
        options = {
            "--port": self._port,
            "--database-url": f"postgresql://{ROLE}@127.0.0.1:{proxy_port}/{ROLE}",
            "--visibility-timeout": LEASE,
            "--poll-interval": 1,
            "--grace-period": GRACE_PERIOD,
            "--queue": "default=16",
        }
        arguments = ["--queue", f"{LIMITED}=4"]
        arguments += [str(part) for option in options.items() for part in option]
        return [self.software.python, "-m", "jobqueue", "serve", "benchmarks.chaos.handlers", *arguments]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _fill(process: trio.Process) -> None:
    """Write to the pipe of a process's log until it is full."""
    with suppress(OSError):  # the process has ended, or the pipe has no reader
        pipe = os.open(f"/proc/{process.pid}/fd/2", os.O_WRONLY | os.O_NONBLOCK)
        try:
            for piece in (FILLER, b"\n"):
                with suppress(BlockingIOError):
                    while True:
                        os.write(pipe, piece)
        finally:
            os.close(pipe)


def _signal(process: trio.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


async def start_nodes(
    nursery: trio.Nursery, postgres: Postgres, log_directory: Path, count: int, software: Software = CURRENT
) -> list[Node]:
    """Start `count` nodes, and wait until they serve."""
    environment = {effects.URL_VARIABLE: postgres.url}
    nodes = [
        Node(number, Proxy(*postgres.socket), log_directory / f"node-{number}.log", environment, software)
        for number in range(count)
    ]
    with trio.fail_after(START_TIMEOUT):
        for node in nodes:
            await nursery.start(node.run)
    with connect(postgres.url) as connection:
        limits = "rate => %s, burst => %s, key_rate => %s, key_burst => %s"
        connection.execute(f"SELECT jobqueue.configure(%s, {limits})".encode(), (LIMITED, RATE, BURST, RATE, BURST))
    return nodes
