"""Serve an ASGI app on sockets: hypercorn's protocols under an accept loop and deadlines of our own.

hypercorn's own loop lets one malformed request end the process, and waits without a deadline in places where a client decides for
how long. Here a connection is contained: whatever goes wrong in it ends only itself, and each way to dawdle has a bound.
"""

from __future__ import annotations

import errno
import resource
import socket
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import structlog
import trio
from hypercorn import Config
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.logging import Logger
from hypercorn.protocol import ProtocolWrapper
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIFramework,
    ASGIReceiveCallable,
    ASGISendCallable,
    ASGISendEvent,
    ConnectionState,
    Scope,
)
from hypercorn.utils import parse_socket_addr

from jobqueue.errors import SettingsError

MAX_CONNECTIONS = 4096
"""Connections open at once, unless half of the files that the process may open are fewer. More wait in the backlog."""

BACKLOG = 1024
"""Connections that the kernel holds until they are accepted."""

MAX_HEADER_BYTES = 16 << 10
"""The most bytes of a request line with its headers."""

HEADERS_TIMEOUT = 10.0
"""Seconds from the first byte of a request, or from connecting, until its headers are complete."""

KEEP_ALIVE_TIMEOUT = 60.0
"""Seconds for which a connection may rest between two requests."""

REQUEST_TIMEOUT = 120.0
"""Seconds from a request's headers to the end of its answer: the bound of last resort, behind those of the routes."""

SEND_TIMEOUT = 30.0
"""Seconds for a client to take one piece of an answer, of at most a job's result in size."""

LINGER_TIMEOUT = 2.0
"""Seconds between the last answer and the close, unless the client hangs up first: closing at once can take the answer away."""

CLOSE_TIMEOUT = 5.0
"""Seconds for what runs for a connection to end when the connection is over; then it is cancelled."""

MAX_LOGGED_ERROR = 200
"""Characters of an error that are logged: it may quote the client."""

_RECEIVE_BYTES = 1 << 16

log = structlog.get_logger()


def configuration() -> Config:
    """Make hypercorn's configuration: its limits and its log. The timeouts are ours, it never sees them."""
    config = Config()
    config.h11_max_incomplete_size = MAX_HEADER_BYTES
    config.h2_max_header_list_size = MAX_HEADER_BYTES
    config.include_server_header = False
    config.logger_class = _Log
    return config


class _Log(Logger):
    """hypercorn's log, in ours: all it has to say is that something failed around the app, whose routes log their own failures."""

    def __init__(self, config: Config) -> None:
        pass

    async def access(self, *_: object) -> None:
        pass

    async def exception(self, message: str, *_: object, **__: object) -> None:
        _log_contained(message, sys.exception())


# -------------------------------------------------------------------------------------------------------------------- listening


def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on every address of a host.

    Args:
        host: an address, or a name, which may have several.
        port: from 0 to 65535; 0 takes a free one, the same for all addresses.

    Raises:
        SettingsError: no address can be listened on, or one is in use.
    """
    listeners: list[trio.SocketListener] = []
    failures: list[OSError] = []
    try:
        for family, (name, _, *rest) in _addresses(host, port):
            try:
                listeners.append(_listen(family, (name, port, *rest)))
            except OSError as error:
                # A name may have an address of a family that this machine does not use: one that works is enough.
                if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                    raise
                failures.append(error)
            else:
                port = listeners[0].socket.getsockname()[1]
        if not listeners:
            raise failures[0]
    except (OSError, OverflowError) as error:
        for listener in listeners:
            listener.socket.close()
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "another process listens there: stop it, or choose another port" if in_use else str(error)
        raise SettingsError(f"cannot listen on {host} port {port}: {hint}") from error
    return listeners


def urls(listeners: list[trio.SocketListener]) -> list[str]:
    """Return the URL of each listener."""
    names = [(listener.socket.family, listener.socket.getsockname()) for listener in listeners]
    return [
        f"http://[{name[0]}]:{name[1]}" if family == socket.AF_INET6 else f"http://{name[0]}:{name[1]}" for family, name in names
    ]


def _addresses(host: str, port: int) -> Iterator[tuple[int, Any]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return ((family, address) for family, _, _, _, address in found)


def _listen(family: int, address: Any) -> trio.SocketListener:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What is accepted inherits these.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_TIMEOUT * 1000))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


class _BoundedListener(trio.abc.Listener[trio.SocketStream]):
    """A listener that accepts only while there is a slot. The kernel holds who comes meanwhile: a burst waits, it does not fail."""

    def __init__(self, listener: trio.SocketListener, slots: trio.Semaphore) -> None:
        self._listener = listener
        self._slots = slots

    async def accept(self) -> trio.SocketStream:
        await self._slots.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._slots.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


def _max_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


# ---------------------------------------------------------------------------------------------------------------------- serving


async def run(
    app: ASGIFramework,
    config: Config,
    listeners: list[trio.SocketListener],
    *,
    stopping: trio.Event,
    drain_timeout: float,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until told to stop, then let the requests in flight be answered, and return.

    The listeners and all connections are closed in any case. No error of a connection, or of the app, comes out of here.

    Args:
        app: an ASGI app; it gets no lifespan events.
        config: hypercorn's, from `configuration`.
        stopping: set it to stop. Nothing is accepted from then on, and connections without a request are closed.
        drain_timeout: seconds for the requests in flight after that; then they are cancelled.
    """
    context = WorkerContext(max_requests=None)
    wrapped = ASGIWrapper(_announcing_close(app, stopping))
    slots = trio.Semaphore(_max_connections())
    connections: set[Connection] = set()
    gone = trio.lowlevel.ParkingLot()

    async def serve(stream: trio.SocketStream) -> None:
        connection = Connection(wrapped, config, context, stream)
        connections.add(connection)
        try:
            if not stopping.is_set():
                await connection.run()
        finally:
            connections.discard(connection)
            slots.release()
            gone.unpark_all()

    async with trio.open_nursery() as serving:
        try:
            bounded = [_BoundedListener(listener, slots) for listener in listeners]
            async with trio.open_nursery() as accepting:
                await accepting.start(partial(trio.serve_listeners, serve, bounded, handler_nursery=serving))
                task_status.started()
                await stopping.wait()
                accepting.cancel_scope.cancel()
            for connection in list(connections):
                connection.finish()
            with trio.move_on_after(drain_timeout):
                while connections:
                    await gone.park()
            if connections:
                log.warning("requests were cut off", connections=len(connections), after_seconds=drain_timeout)
        finally:
            for connection in list(connections):
                connection.drop()
            serving.cancel_scope.cancel()


def _announcing_close(app: ASGIFramework, stopping: trio.Event) -> ASGIFramework:
    """Tell HTTP/1.1 clients with each answer after `stopping` that the connection ends, so they do not use it again."""

    async def asgi(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def announcing(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start" and stopping.is_set():
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        one_dot_one = scope["type"] == "http" and scope["http_version"].startswith("1.")
        await app(scope, receive, announcing if one_dot_one else send)

    return asgi


class Connection:
    """One client's connection: bytes in to hypercorn's protocol and out of it, and the deadlines of both.

    It takes the place of hypercorn's own ``TCPServer``. One task reads; how long it may go on depends on what the connection is at,
    and when it ends, so does the connection. What the protocol asks for is done without a checkpoint, or under a shield with a
    deadline: it asks from the task of a request, which is cancelled as soon as its answer is out.

    Args:
        app: the ASGI app, wrapped for hypercorn.
        config: hypercorn's.
        context: hypercorn's. Its ``terminated`` is never set: it would cut off the last frame of an HTTP/2 answer.
        stream: the accepted socket; whoever accepted it closes it after `run`.
    """

    def __init__(self, app: AppWrapper, config: Config, context: WorkerContext, stream: trio.SocketStream) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._stream = stream
        self._protocol: ProtocolWrapper
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        self._everything = trio.CancelScope()
        self._idle = True
        self._finishing = False
        self._lingers = False

    async def run(self) -> None:
        """Serve the connection to its end. Errors are logged, not raised; only cancellation passes."""
        try:
            with self._everything:
                await self._run()
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass  # the client is gone
        except* Exception as errors:  # noqa: BLE001 - whatever a request can cause ends here
            _log_contained("a connection was dropped", errors)

    def finish(self) -> None:
        """End the connection when no request is in flight, which for an idle one is now."""
        self._finishing = True
        if self._idle:
            self._reading.cancel()

    def drop(self) -> None:
        """End the connection at once, whatever is waiting on its socket, shielded or not."""
        self._stream.socket.close()
        self._reading.cancel()

    async def _run(self) -> None:
        family = self._stream.socket.family
        async with TaskGroup() as tasks:
            self._protocol = ProtocolWrapper(
                self._app,
                self._config,
                self._context,
                tasks,
                ConnectionState({}),
                False,  # no TLS
                parse_socket_addr(family, self._stream.socket.getpeername()),
                parse_socket_addr(family, self._stream.socket.getsockname()),
                self._send,
            )
            await self._protocol.initiate()
            await self._read()
            self._everything.deadline = trio.current_time() + CLOSE_TIMEOUT
            await self._protocol.handle(Closed())
            if self._lingers:
                await self._linger()

    async def _read(self) -> None:
        """Feed the protocol until the client hangs up, the connection is ended from elsewhere, or a deadline passes."""
        self._reading.deadline = trio.current_time() + HEADERS_TIMEOUT
        with self._reading:
            while data := await self._stream.receive_some(_RECEIVE_BYTES):
                if self._idle:
                    # The first byte of a request sets the deadline of its headers; those that follow do not move it.
                    self._reading.deadline = min(self._reading.deadline, trio.current_time() + HEADERS_TIMEOUT)
                await self._protocol.handle(RawData(bytes(data)))

    async def _linger(self) -> None:
        with trio.move_on_after(LINGER_TIMEOUT):
            await self._stream.send_eof()
            while await self._stream.receive_some(_RECEIVE_BYTES):
                pass

    async def _send(self, event: Event) -> None:
        """Do what the protocol asks for."""
        if isinstance(event, RawData):
            await self._send_all(event.data)
        elif isinstance(event, Updated):
            self._idle = event.idle
            # Even when finishing there is a while to it: an HTTP/2 stream is called done before its last frame is sent.
            idle_timeout = LINGER_TIMEOUT if self._finishing else KEEP_ALIVE_TIMEOUT
            self._reading.deadline = trio.current_time() + (idle_timeout if event.idle else REQUEST_TIMEOUT)
        elif isinstance(event, Closed):
            self._lingers = True
            self._reading.cancel()

    async def _send_all(self, data: bytes) -> None:
        """Send it whole or drop the connection: after half a frame there is nothing more to say on it."""
        with trio.move_on_after(SEND_TIMEOUT, shield=True) as sending:
            async with self._sending:
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._reading.cancel()
        if sending.cancelled_caught:
            self.drop()


def _log_contained(message: str, error: BaseException | None) -> None:
    """Log one line: most often it was a malformed request, and whoever sends those must not fill the disk with tracebacks."""
    log.warning(message, errors=[f"{type(leaf).__name__}: {leaf}"[:MAX_LOGGED_ERROR] for leaf in _leaves(error)])
    log.debug(message, exc_info=error)


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    elif error is not None:
        yield error
