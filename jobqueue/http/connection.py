"""One client's connection as hypercorn's protocols serve it: HTTP/1.1 and HTTP/2, every route.

hypercorn's own server waits without a deadline in places where a client decides for how long. Here each way to dawdle has a bound.
"""

from __future__ import annotations

import re
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import h2.events
import h11
import hypercorn.protocol
import structlog
import trio
from hypercorn import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.logging import Logger
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from jobqueue.http import limits

MAX_LOGGED_ERROR = 200
"""Characters of an error that are logged: it may quote the client."""

RECEIVE_BYTES = 1 << 16

_EMPTY_LINES = re.compile(rb"(?:\r\n)*+")

PROLONG = "jobqueue.prolong"
"""What prolongs an answer without end, in a request's ``scope["state"]``: see `limits.REQUEST_TIMEOUT`."""

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

log = structlog.get_logger()


def configuration() -> Config:
    """Make hypercorn's configuration: its limits and its log. The timeouts are ours, it never sees them."""
    config = Config()
    config.h11_max_incomplete_size = limits.MAX_HEADER_BYTES
    config.h2_max_header_list_size = limits.MAX_HEADER_BYTES
    config.h2_max_concurrent_streams = limits.MAX_STREAMS
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


class _Requests(h11.Connection):
    """h11's server side, which does not mind what clients may send between and behind requests.

    It skips empty lines before a request line (RFC 9112, section 2.2), and takes no notice of bytes behind the last request of a
    connection. h11 answers both with 400, the second even in place of the answer to a request that was carried out.
    """

    def receive_data(self, data: bytes) -> None:
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            received, _ = self.trailing_data
            if empty := _EMPTY_LINES.match(received).end():  # type: ignore[union-attr] # it matches nothing, too
                self._receive_buffer.maybe_extract_at_most(empty)
            if received[empty:] == b"\r":
                return h11.NEED_DATA  # half an empty line
        return super().next_event()


class _H11(H11Protocol):
    """hypercorn's HTTP/1.1, which hangs up without a word where an answer is complete before the body that it refuses has come.

    Clients send a body after its headers, and many send it whatever the answer: a short one is waited for, as the next request is,
    and thrown away. RFC 9112, section 9.3: a server reads the whole body, or closes the connection.
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
        await self._close_stream()  # first: more may have come when it is done
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
    """hypercorn's HTTP/2, which lets go of a connection when a body comes for a request that was answered without it."""

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        pending: list[h2.events.Event] = []
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                await super()._handle_events(pending)  # the stream may begin, or end, in there
                pending = []
                if event.stream_id not in self.streams:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    continue
            pending.append(event)
        await super()._handle_events(pending)


# Where ProtocolWrapper looks them up.
hypercorn.protocol.H11Protocol = _H11  # type: ignore[attr-defined]
hypercorn.protocol.H2Protocol = _H2  # type: ignore[attr-defined]


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
        received: what was read from it already: the beginning of a request, or nothing.
        tls: what to encrypt with; None for plain HTTP.
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
        self._protocol: ProtocolWrapper
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        self._everything = trio.CancelScope()
        self._idle = not received.strip(b"\r\n")
        self._finishing = False
        self._lingers = False

    async def run(self) -> None:
        """Serve the connection to its end. Errors are logged, not raised; only cancellation passes."""
        with contained(), self._everything:
            await self._run()

    def finish(self) -> None:
        """End the connection when no request is in flight, which for an idle one is now."""
        self._finishing = True
        if self._idle:
            self._reading.cancel()

    def drop(self) -> None:
        """End the connection at once, whatever is waiting on its socket, shielded or not."""
        self._socket.close()
        self._reading.cancel()

    async def _run(self) -> None:
        if self._secure is not None and not await self._shake_hands(self._secure):
            return
        family = self._socket.family
        async with TaskGroup() as tasks:
            self._protocol = ProtocolWrapper(
                self._app,
                self._config,
                self._context,
                tasks,
                ConnectionState({PROLONG: self._prolong}),
                self._secure is not None,
                parse_socket_addr(family, self._socket.getpeername()),
                parse_socket_addr(family, self._socket.getsockname()),
                self._send,
                None if self._secure is None else self._secure.selected_alpn_protocol(),
            )
            await self._protocol.initiate()
            await self._read()
            self._everything.deadline = trio.current_time() + limits.CLOSE_TIMEOUT
            await self._protocol.handle(Closed())
            if self._lingers:
                await linger(self._stream)

    async def _shake_hands(self, secure: trio.SSLStream[trio.SocketStream]) -> bool:
        """Agree on the encryption; False when there was no time for it. It is ended from elsewhere as an idle connection is."""
        self._reading.deadline = trio.current_time() + limits.HANDSHAKE_TIMEOUT
        with self._reading:
            await secure.do_handshake()
        shaken = not self._reading.cancelled_caught
        self._reading = trio.CancelScope()
        if self._finishing:
            self._reading.cancel()
        return shaken

    async def _read(self) -> None:
        """Feed the protocol until the client hangs up, the connection is ended from elsewhere, or a deadline passes."""
        self._reading.deadline = trio.current_time() + limits.HEADERS_TIMEOUT
        with self._reading:
            while data := self._received or await self._stream.receive_some(RECEIVE_BYTES):
                self._received = b""
                if self._idle and data.strip(b"\r\n"):
                    # The first byte of a request sets the deadline of its headers; those that follow do not move it.
                    self._reading.deadline = min(self._reading.deadline, trio.current_time() + limits.HEADERS_TIMEOUT)
                await self._protocol.handle(RawData(bytes(data)))

    def _prolong(self) -> None:
        self._reading.deadline = trio.current_time() + limits.REQUEST_TIMEOUT

    async def _send(self, event: Event) -> None:
        """Do what the protocol asks for."""
        if isinstance(event, RawData):
            await self._send_all(event.data)
        elif isinstance(event, Updated):
            self._idle = event.idle
            # Even when finishing there is a while to it: an HTTP/2 stream is called done before its last frame is sent.
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
    """Send it whole, whatever is cancelled meanwhile; False when the client is gone or does not take it.

    After half a frame there is nothing more to say on a connection: it has to be dropped.
    """
    with trio.move_on_after(limits.SEND_TIMEOUT, shield=True):
        try:
            await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True
    return False


async def linger(stream: Stream) -> None:
    """Tell the client that nothing more comes, and wait until it hangs up."""
    with trio.move_on_after(limits.LINGER_TIMEOUT):
        if isinstance(stream, trio.SSLStream):
            with suppress(trio.BrokenResourceError):  # it still sends a request, or has gone without a word
                await stream.unwrap()
            stream = stream.transport_stream
        await stream.send_eof()
        while await stream.receive_some(RECEIVE_BYTES):
            pass


@contextmanager
def contained() -> Iterator[None]:
    """Let nothing that a connection can cause get further than here: it is logged, not raised; only cancellation passes."""
    try:
        yield
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        pass  # the client is gone
    except* Exception as errors:  # noqa: BLE001 - whatever a request can cause ends here
        _log_contained("a connection was dropped", errors)


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
