"""Run several nodes on one port, each in its own process: ``jobqueue serve --processes N``.

The parent process reserves the port, runs the embedded PostgreSQL, and restarts processes that end. `processes.child` is the
part that runs in the processes.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import structlog
import trio

from jobqueue import logs
from jobqueue.concurrency.stages import Stages, open_stages
from jobqueue.errors import NodeFailed
from jobqueue.http.access.credentials import Credentials
from jobqueue.http.transport.listeners import reserved
from jobqueue.processes.child import KILL_MARGIN, Report
from jobqueue.retry import exponential_pause
from jobqueue.service import SHUTDOWN_MARGIN, LastResort, Serving, watch_signals
from jobqueue.settings import Settings
from jobqueue.storage.embedded import stage as embedded
from jobqueue.storage.postgres.store import PostgresStore

START_TRIES = 3
"""Consecutive failed starts of one process after which the service ends."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""First and longest pause before a process is restarted, in seconds. Each pause is twice as long as the previous one."""

STEADY_SECONDS = 60.0
"""Seconds after which a running process counts as stable, so that the next pause is short again."""

HEAR_OUT = 0.5
"""Seconds to wait for the last messages of a process that has ended."""

log = structlog.get_logger()


async def supervise(command: Sequence[str], settings: Settings, on_serving: Callable[[Serving], None]) -> None:
    """Run `settings.processes` nodes until SIGTERM or SIGINT, then shut them down.

    Args:
        command: the command that starts a process with a `processes.child.Parent`; the number of the process is appended.
        settings: the settings of each node.
        on_serving: called once, when all nodes accept work.

    Raises:
        NodeFailed: a process failed to start `START_TRIES` times in a row, or did not stop cleanly.
        JobQueueError: an error that does not concern a single node, as in `service.serve`.
    """
    Credentials(settings)  # check the access settings once, before any process starts
    nodes = [_Node([*command, str(number)], number, settings.grace_period) for number in range(1, settings.processes + 1)]

    def exit_at_once(code: int) -> None:
        for node in nodes:
            node.kill()
        logs.exit_now(code)

    with reserved(settings.host, settings.port, settings.scheme) as (port, urls):
        async with open_stages() as stages:
            last_resort = LastResort(settings.grace_period + SHUTDOWN_MARGIN + 2 * KILL_MARGIN)
            await stages.start("signals", watch_signals, stages, last_resort, exit_at_once)
            data_dir = settings.data_dir or embedded.default_data_dir()
            run_postgresql = partial(embedded.run, old_binaries=settings.upgrade_data_dir)
            url = settings.database_url or await stages.start("postgresql", run_postgresql, data_dir, len(nodes))
            await _migrate(url, settings.schema)
            facts = msgspec.structs.replace(settings, database_url=url, data_dir=None, upgrade_data_dir=None, port=port)
            await _run(nodes, facts, stages, lambda: on_serving(Serving(urls, url)))
            last_resort.disarm()
            await stages.stop("postgresql", within=30)
            log.info("stopped")
    for node in nodes:
        if node.failure is not None:
            raise node.failure


async def _run(nodes: list[_Node], settings: Settings, stages: Stages, on_serving: Callable[[], None]) -> None:
    announcing = trio.CancelScope()

    async def announce() -> None:
        with announcing:
            for node in nodes:
                await node.serving.wait()
            on_serving()

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.run, msgspec.json.encode(settings) + b"\n", stages.stopping, name=f"process {node.number}")
        nursery.start_soon(announce)
        await stages.stopping.wait()
        announcing.cancel(reason="the service stops")


async def _migrate(url: str, schema: str) -> None:
    store = PostgresStore(url, schema)
    try:
        await store.migrate()
    finally:
        with trio.move_on_after(SHUTDOWN_MARGIN, shield=True):
            await store.aclose()


class _Node:
    """A node. When its process ends, a new process replaces it.

    Attributes:
        serving: set when the node accepts work for the first time.
        failure: the error if the last process did not stop cleanly.
    """

    def __init__(self, command: Sequence[str], number: int, grace_period: float) -> None:
        self.number = number
        self.serving = trio.Event()
        self.failure: NodeFailed | None = None
        self._command = command
        self._patience = grace_period + SHUTDOWN_MARGIN + KILL_MARGIN
        self._process: trio.Process | None = None
        self._words: list[Report] = []

    async def run(self, settings: bytes, stopping: trio.Event) -> None:
        """Keep a process running until `stopping` is set. Then end the process and wait for it.

        Raises:
            NodeFailed: `START_TRIES` processes in a row ended before they accepted work.
        """
        ends = failed_starts = 0
        while True:
            began = trio.current_time()
            code = await self._run_process(settings, stopping)
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            reason = next((word.reason for word in self._words if word.reason), how)
            if stopping.is_set():
                if code not in {0, -signal.SIGTERM}:  # SIGTERM ends a process that is still starting
                    self.failure = NodeFailed(f"process {self.number} did not stop cleanly: {reason}", _as_shells_say(code))
                return
            ends = ends + 1 if trio.current_time() - began < STEADY_SECONDS else 1
            failed_starts = 0 if Report() in self._words else failed_starts + 1
            # A process that restarts during a database outage waits for the database, like the running processes.
            waits = self.serving.is_set() and any(word.passing for word in self._words)
            if failed_starts >= START_TRIES and not waits:
                raise NodeFailed(f"process {self.number} does not start: {reason}", _as_shells_say(code))
            pause = exponential_pause(ends, FIRST_PAUSE, LONGEST_PAUSE)
            log.error("process ended, restarting it", process=self.number, ended_with=how, reason=reason, again_in=pause)
            with trio.move_on_after(pause):
                await stopping.wait()
                return

    def kill(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()

    async def _run_process(self, settings: bytes, stopping: trio.Event) -> int:
        """Run a process to its end; return its exit code, negative for a signal. The messages of the process are in `_words`."""
        self._words = []
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with stream, trio.open_nursery() as nursery:
            # Start each process in a new session: Ctrl-C in a terminal must reach only the parent, which then stops the processes.
            options = {"stdin": theirs, "check": False, "start_new_session": True, "deliver_cancel": self._end}
            with theirs:
                self._process = process = await nursery.start(partial(trio.run_process, self._command, **options))
            nursery.start_soon(self._end, process, stopping)
            heard_out = trio.Event()
            nursery.start_soon(self._talk, stream, settings, heard_out)
            code: int = await process.wait()
            with trio.move_on_after(HEAR_OUT):  # a process that a handler left behind may hold the other end of the socket
                await heard_out.wait()
            nursery.cancel_scope.cancel(reason="the process has ended")
        return code

    async def _talk(self, stream: trio.SocketStream, settings: bytes, heard_out: trio.Event) -> None:
        unfinished = b""
        try:
            await stream.send_all(settings)
            async for received in stream:
                *lines, unfinished = (unfinished + received).split(b"\n")
                self._words += [msgspec.json.decode(line, type=Report) for line in lines]
                if Report() in self._words:
                    self.serving.set()
        except trio.BrokenResourceError:
            pass  # the process has ended; `_run_process` reads its exit code
        heard_out.set()

    async def _end(self, process: trio.Process, when: trio.Event | None = None) -> None:
        if when is not None:
            await when.wait()
        process.terminate()
        with trio.move_on_after(self._patience):
            await process.wait()
        process.kill()


def _as_shells_say(code: int) -> int:
    return code if code >= 0 else 128 - code
