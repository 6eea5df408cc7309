"""Call functions when sockets become readable: one task and one epoll for all sockets.

::

    reactor = Reactor()
    nursery.start_soon(reactor.run)
    reactor.watch(fd, readable)       # calls readable() while there is something to read
    reactor.forget(fd)                # call this before you close the socket
    reactor.soon(call)                # calls call() once, after the tasks that can run now

`trio.lowlevel.wait_readable` costs a system call and two task switches per wait. Here, each socket is registered only once, and its
function runs in the reactor's own task.
"""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable

import structlog
import trio

MAX_EVENTS = 64
"""Maximum number of calls in a row. After these calls, other tasks can run."""

log = structlog.get_logger()


class Reactor:
    """Calls functions for readable sockets. An error in one function is logged, and does not affect the others."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readable: dict[int, Callable[[], None]] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._wake = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Call functions until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._call_readable)
                nursery.start_soon(self._call_soon)
        finally:
            self._epoll.close()

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        """Call ``readable`` whenever the socket has bytes to read or is at its end."""
        if not self._epoll.closed:
            self._epoll.register(fd, select.EPOLLIN)
            self._readable[fd] = readable

    def forget(self, fd: int) -> None:
        """Stop watching a socket."""
        if not self._epoll.closed:
            del self._readable[fd]
            self._epoll.unregister(fd)

    def soon(self, call: Callable[[], None]) -> None:
        """Call a function once, from a task of the reactor."""
        self._soon.append(call)
        if self._wake:
            self._wake.unpark()

    async def _call_readable(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for fd, _ in self._epoll.poll(0, MAX_EVENTS):
                # An earlier call may have removed this socket.
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
        log.exception("a reactor callback failed")
