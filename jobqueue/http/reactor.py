"""Call back when sockets can be read: one task and one epoll for all of them.

::

    reactor = Reactor()
    nursery.start_soon(reactor.run)
    reactor.watch(fd, readable)       # calls readable() for as long as there is something to read
    reactor.forget(fd)                # before the socket is closed
    reactor.soon(call)                # calls it once, when the tasks that can run now have run

`trio.lowlevel.wait_readable` costs a system call for each wait, and two switches of tasks. Here a socket is registered once, and
what can be done without waiting is done in the reactor's own task.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable

import structlog
import trio

MAX_EVENTS = 64
"""Calls in a row before other tasks run."""

log = structlog.get_logger()


class Reactor:
    """One epoll. An error that comes out of a call is logged, and keeps nobody else waiting."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readable: dict[int, Callable[[], None]] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._wake = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Call back until cancelled; from then on nothing is called."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._call_readable)
                nursery.start_soon(self._call_soon)
        finally:
            self._epoll.close()

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        """Call ``readable`` whenever there is something to read, be it the end."""
        if not self._epoll.closed:
            self._epoll.register(fd, select.EPOLLIN)
            self._readable[fd] = readable

    def forget(self, fd: int) -> None:
        """Call nothing any more for a socket that is watched."""
        if not self._epoll.closed:
            del self._readable[fd]
            self._epoll.unregister(fd)

    def soon(self, call: Callable[[], None]) -> None:
        """Call it once, from a task of the reactor's."""
        self._soon.append(call)
        if self._wake:
            self._wake.unpark()

    async def _call_readable(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0, MAX_EVENTS):
                # One of those before it may have forgotten it.
                if readable := self._readable.get(fd):
                    _contained(readable)

    async def _call_soon(self) -> None:
        while True:
            while self._soon:
                _contained(self._soon.popleft())
            await self._wake.park()


def _contained(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        log.exception("a call of the reactor failed")
