"""Serve one client's connection with hypercorn's protocols, HTTP/1.1 and HTTP/2, for all routes.

hypercorn's own server sometimes waits for a client without a deadline. Here every wait has a deadline.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import h2.events
import h11
import structlog
import trio
from hypercorn import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.logging import Logger
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H2ProtocolAssumedError, H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from jobqueue.exception_groups import leaves
from jobqueue.http import limits

MAX_LOGGED_ERROR = 200
"""Maximum length of an error in the log, in characters. Without this limit, a client could fill the log, because an error may quote
the client."""

RECEIVE_BYTES = 1 << 16

_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")

PROLONG = "jobqueue.prolong"
"""The key in a request's ``scope["state"]`` under which a function is stored. The function extends the deadline of an endless
response; see `limits.REQUEST_TIMEOUT`."""

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

log = structlog.get_logger()


def configuration() -> Config:
    """Return hypercorn's configuration: its limits and its log. `HypercornConnection` enforces the timeouts itself."""
    config = Config()
    config.h11_max_incomplete_size = limits.MAX_HEADER_BYTES
    config.h2_max_header_list_size = limits.MAX_HEADER_BYTES
    config.h2_max_concurrent_streams = limits.MAX_STREAMS
    config.include_server_header = False
    config.logger_class = _Log
    return config


class _Log(Logger):
    """Forward failures from hypercorn's log to the service's log, but no failures of the app: its routes log their own failures."""

    def __init__(self, config: Config) -> None:
        pass

    async def access(self, *_: object) -> None:
        pass

    async def exception(self, message: str, *_: object, **__: object) -> None:
        _log_contained(message, sys.exception())


class _Requests(h11.Connection):
    """h11's server side, made tolerant of bytes between and after requests.

    It skips empty lines before a request line (RFC 9112, section 2.2), and ignores bytes after the last request of a connection.
    In both cases, h11 itself responds with 400. In the second case, this 400 even replaces the response to a request that was
    carried out.
    """

    def receive_data(self, data: bytes) -> None:
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            received, _ = self.trailing_data
            if empty := _EMPTY_LINES.match(received).end():  # type: ignore[union-attr] # the pattern always matches
                self._receive_buffer.maybe_extract_at_most(empty)
            if received[empty:] == b"\r":
                return h11.NEED_DATA  # the empty line is not complete yet
        return super().next_event()


class _H11(H11Protocol):
    """hypercorn's HTTP/1.1, which keeps a connection open after it rejects a request before its body has arrived.

    hypercorn closes such a connection. But many clients send the body in any case, so this class reads a short body and drops it.
    RFC 9112, section 9.3, requires that a server reads the whole body or closes the connection.
    """

    _short = False
    _discarding = False

    async def initiate(self) -> None:
        self.connection = _Requests(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)

    async def _create_stream(self, request: h11.Request) -> None:
        length = dict(request.headers).get(b"content-length")
        self._short = length is not None and int(length) <= limits.MAX_REFUSED_BODY_BYTES
        await super()._create_stream(request)

    async def _maybe_recycle(self) -> None:
        await self._close_stream()  # this must be the first step, because more bytes may arrive meanwhile
        if self.connection.our_state is h11.DONE and self.connection.their_state is h11.SEND_BODY and self._short:
            self._discarding = True
            await self.send(Updated(idle=True))
        else:
            await super()._maybe_recycle()

    async def _handle_events(self) -> None:
        if not self._discarding:
            await super()._handle_events()
        if self._discarding:
            await self._discard()

    async def _discard(self) -> None:
        while self.connection.their_state is h11.SEND_BODY:
            if self.connection.next_event() is h11.NEED_DATA:
                return
        self._discarding = False
        await super()._maybe_recycle()
        await self._handle_events()


class _H2(H2Protocol):
    """hypercorn's HTTP/2, which also accepts body data for a request that already has its response.

    Without this class, hypercorn drops the connection when such data arrives.
    """

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        pending: list[h2.events.Event] = []
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                await super()._handle_events(pending)  # these events may begin or end the stream
                pending = []
                if event.stream_id not in self.streams:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    continue
            pending.append(event)
        await super()._handle_events(pending)


class HypercornConnection:
    """One client's connection: it moves bytes into and out of hypercorn's protocol, with deadlines for both.

    It replaces hypercorn's ``TCPServer`` and ``ProtocolWrapper``. One task reads, with a deadline that depends on the state of the
    connection. When that task ends, the connection ends. Sending runs in a request's task, and that task is cancelled as soon as
    its response is complete. So sending must not be cancelled: it has no checkpoint, or runs under a shield with a deadline.

    Args:
        app: the ASGI app, wrapped for hypercorn.
        config: hypercorn's configuration.
        context: hypercorn's context. Its event ``terminated`` is never set, because hypercorn would then omit the last frame of an
            HTTP/2 response.
        stream: the accepted socket; the caller closes it after `run`.
        received: bytes already read from the socket: the beginning of a request, or nothing.
        tls: the TLS context; None for plain HTTP.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        stream: trio.SocketStream,
        received: bytes,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._app = app
        self._config = config
        self._context = context
        self._socket = stream.socket
        self._stream: Stream = stream
        self._secure: trio.SSLStream[trio.SocketStream] | None = None
        if tls is not None:
            self._stream = self._secure = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        self._received = received
        self._protocol: _H11 | _H2
        self._h2: Callable[[], _H2]
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        self._everything = trio.CancelScope()
        self._idle = not received.strip(b"\r\n")
        self._finishing = False
        self._lingers = False

    async def run(self) -> None:
        """Serve the connection until it ends. Errors are logged, not raised, except cancellation."""
        with contained(), self._everything:
            await self._run()

    def finish(self) -> None:
        """End the connection once no request is in flight; an idle connection ends now."""
        self._finishing = True
        if self._idle:
            self._reading.cancel()

    def drop(self) -> None:
        """End the connection at once. Even tasks that wait for its socket under a shield end."""
        self._socket.close()
        self._reading.cancel()

    async def _run(self) -> None:
        if self._secure is not None and not await self._shake_hands(self._secure):
            return
        family, secure = self._socket.family, self._secure
        async with TaskGroup() as tasks:
            arguments = (
                self._app,
                self._config,
                self._context,
                tasks,
                ConnectionState({PROLONG: self._prolong}),
                secure is not None,
                parse_socket_addr(family, self._socket.getpeername()),
                parse_socket_addr(family, self._socket.getsockname()),
                self._send,
            )
            self._h2 = partial(_H2, *arguments)
            alpn = None if secure is None else secure.selected_alpn_protocol()
            self._protocol = self._h2() if alpn == "h2" else _H11(*arguments)
            await self._protocol.initiate()
            await self._read()
            self._everything.deadline = trio.current_time() + limits.CLOSE_TIMEOUT
            await self._protocol.handle(Closed())
            if self._lingers:
                await linger(self._stream)

    async def _shake_hands(self, secure: trio.SSLStream[trio.SocketStream]) -> bool:
        """Perform the TLS handshake. Return False if its deadline passes, or if `finish` or `drop` ends it."""
        self._reading.deadline = trio.current_time() + limits.HANDSHAKE_TIMEOUT
        with self._reading:
            await secure.do_handshake()
        shaken = not self._reading.cancelled_caught
        self._reading = trio.CancelScope()
        if self._finishing:
            self._reading.cancel()
        return shaken

    async def _read(self) -> None:
        """Pass received bytes to the protocol until the client hangs up, `finish` or `drop` is called, or a deadline passes."""
        self._reading.deadline = trio.current_time() + limits.HEADERS_TIMEOUT
        with self._reading:
            while data := self._received or await self._stream.receive_some(RECEIVE_BYTES):
                self._received = b""
                if self._idle and data.strip(b"\r\n"):
                    # The first byte of a request sets the deadline for its headers. Later bytes do not change that deadline.
                    self._reading.deadline = min(self._reading.deadline, trio.current_time() + limits.HEADERS_TIMEOUT)
                await self._handle(RawData(bytes(data)))

    async def _handle(self, event: Event) -> None:
        """Pass an event to the protocol. Change from HTTP/1.1 to HTTP/2 if the client requests it."""
        upgrade: tuple[Any, ...]
        try:
            await self._protocol.handle(event)
        except H2ProtocolAssumedError as error:  # the client began with the preface of HTTP/2
            data, upgrade = error.data, ()
        except H2CProtocolRequiredError as error:  # the client sent ``Upgrade: h2c``
            data, upgrade = error.data, (error.headers, error.settings)
        else:
            return
        self._protocol = self._h2()
        await self._protocol.initiate(*upgrade)
        if data:
            await self._protocol.handle(RawData(data))

    def _prolong(self) -> None:
        self._reading.deadline = trio.current_time() + limits.REQUEST_TIMEOUT

    async def _send(self, event: Event) -> None:
        """Handle an event from the protocol: send bytes, update the deadline, or close."""
        if isinstance(event, RawData):
            await self._send_all(event.data)
        elif isinstance(event, Updated):
            self._idle = event.idle
            # Wait a little even after `finish`: hypercorn reports an HTTP/2 stream as idle before it sends the last frame.
            idle_timeout = limits.LINGER_TIMEOUT if self._finishing else limits.KEEP_ALIVE_TIMEOUT
            self._reading.deadline = trio.current_time() + (idle_timeout if event.idle else limits.REQUEST_TIMEOUT)
        elif isinstance(event, Closed):
            self._lingers = True
            self._reading.cancel()

    async def _send_all(self, data: bytes) -> None:
        with trio.CancelScope(shield=True):
            async with self._sending:
                sent = await send_all(self._stream, data)
        if not sent:
            self.drop()


async def send_all(stream: Stream, data: bytes) -> bool:
    """Send all bytes, even if the caller is cancelled. Return False if the client is gone or does not read in time.

    After False the caller must drop the connection, because a frame may be incomplete.
    """
    with trio.move_on_after(limits.SEND_TIMEOUT, shield=True):
        try:
            await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True
    return False


async def linger(stream: Stream) -> None:
    """Signal the end of the connection to the client, and wait up to `limits.LINGER_TIMEOUT` seconds for it to hang up."""
    with trio.move_on_after(limits.LINGER_TIMEOUT):
        if isinstance(stream, trio.SSLStream):
            with suppress(trio.BrokenResourceError):  # raised if the client still sends a request, or is gone
                await stream.unwrap()
            stream = stream.transport_stream
        await stream.send_eof()
        while await stream.receive_some(RECEIVE_BYTES):
            pass


@contextmanager
def contained() -> Iterator[None]:
    """Log every error of a connection instead of raising it, except cancellation."""
    try:
        yield
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        pass  # the client is gone
    except* Exception as errors:  # noqa: BLE001 - no request may end the server
        _log_contained("a connection was dropped", errors)


def _log_contained(message: str, error: BaseException | None) -> None:
    """Log one line. The traceback is at debug level, so that malformed requests do not fill the disk."""
    errors = leaves(error) if error is not None else ()
    log.warning(message, errors=[f"{type(leaf).__name__}: {leaf}"[:MAX_LOGGED_ERROR] for leaf in errors])
    log.debug(message, exc_info=error)
