"""A TCP proxy in front of a PostgreSQL server that breaks the network on demand.

::

    proxy = Proxy("127.0.0.1", 5432)            # or Proxy("/run/postgresql", 5432): the directory of a Unix socket
    port = await nursery.start(proxy.run)       # connect to 127.0.0.1:port
    proxy.cut()
    proxy.lose_next_reply(b"jobqueue_internal.submit_batch")

To lose the reply to a given statement, the proxy parses PostgreSQL's protocol
(https://www.postgresql.org/docs/current/protocol-message-formats.html) and tracks prepared statements, whose text is sent only
once. `proxy_in_thread` is for callers without Trio.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import trio

CONNECT_TIMEOUT = 10.0
"""Maximum time to connect to the server, in seconds. After that, the proxy resets the client's connection."""

ENCRYPTION_REQUESTS = (80877103, 80877104)
"""Codes that a client sends in place of a protocol version to request TLS or GSSAPI. The proxy declines both."""

RESET = struct.pack("ii", 1, 0)
"""The SO_LINGER value with which a close resets the connection."""


class _Loss(NamedTuple):
    pattern: bytes
    of_reply: bool


@dataclass(slots=True)
class _Network:
    """The state that all connections of a proxy share."""

    refusing: bool = False
    blackholed: bool = False
    latency: float = 0.0
    loss: _Loss | None = None
    lost: int = 0

    def take_loss(self, statement: bytes) -> _Loss | None:
        """Return how to lose this statement, or None to pass it on. Each requested loss is returned only once."""
        loss = self.loss
        if loss is None or loss.pattern not in statement:
            return None
        self.loss = None
        return loss


class Proxy:
    """A proxy to one server, with methods that break the network.

    All methods except `run` are synchronous. Call them in the thread of `run`.

    Args:
        host: the server's host, or the directory of its Unix socket.
        port: the server's port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._connections: set[_Connection] = set()
        self._network = _Network()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._connections)

    @property
    def lost(self) -> int:
        """The number of requests and replies lost by `lose_next_request` and `lose_next_reply`."""
        return self._network.lost

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Relay until cancelled. Report the port on 127.0.0.1 to `task_status`."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._serve, listeners)

    def cut(self) -> None:
        """Reset all current connections. New connections work."""
        for connection in self._connections:
            connection.reset()

    def refuse(self) -> None:
        """Reset all current and new connections until `heal`."""
        self._network.refusing = True
        self.cut()

    def blackhole(self) -> None:
        """Until `heal`, drop all data in both directions, on current and new connections, and keep the connections open."""
        self._network.blackholed = True

    def delay(self, seconds: float) -> None:
        """Delay all data from clients by `seconds`, until the next call."""
        self._network.latency = seconds

    def lose_next_reply(self, pattern: bytes) -> None:
        """Let the next statement with the pattern run and commit, then reset the connection instead of sending its reply."""
        self._network.loss = _Loss(pattern, of_reply=True)

    def lose_next_request(self, pattern: bytes) -> None:
        """Reset the connection before the next statement that contains the pattern reaches the server."""
        self._network.loss = _Loss(pattern, of_reply=False)

    def heal(self) -> None:
        """Pass everything on again, and reset the connections that have lost data."""
        if self._network.blackholed:
            self.cut()
        self._network.refusing = self._network.blackholed = False
        self._network.latency = 0.0
        self._network.loss = None

    async def _serve(self, client: trio.SocketStream) -> None:
        connection = _Connection(client, self._network)
        if self._network.refusing:
            connection.reset()
            return
        self._connections.add(connection)
        try:
            await connection.relay(self._address)
        finally:
            self._connections.discard(connection)


class _Connection:
    """A client's connection and the corresponding connection to the server."""

    def __init__(self, client: trio.SocketStream, network: _Network) -> None:
        self._client = client
        self._network = network
        self._scope = trio.CancelScope()
        self._losing_reply = False

    def reset(self) -> None:
        """End both connections. The client sees a reset."""
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._scope.cancel()

    async def relay(self, address: tuple[str, int]) -> None:
        """Pass everything on until one side closes, or until `reset`."""
        with self._scope:
            try:
                startup = await self._startup_packet()
                async with _connect(*address) as server, trio.open_nursery() as nursery:
                    await server.send_all(startup)
                    nursery.start_soon(self._pass_requests, server)
                    await self._pass_replies(server)
                    nursery.cancel_scope.cancel()
            except* (OSError, EOFError, trio.BrokenResourceError, trio.TooSlowError):
                self.reset()

    async def _startup_packet(self) -> bytes:
        """Receive a client's startup packet, after declining its requests for encryption."""
        while True:
            head = await self._receive_exactly(8)
            length, code = struct.unpack("!ii", head)
            if code not in ENCRYPTION_REQUESTS:
                packet = head + await self._receive_exactly(length - 8)
                await self._swallow_in_blackhole()
                return packet
            await self._swallow_in_blackhole()
            await self._client.send_all(b"N")

    async def _receive_exactly(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            chunk = await self._client.receive_some(size - len(received))
            if not chunk:
                raise EOFError
            received += chunk
        return received

    async def _swallow_in_blackhole(self) -> None:
        if self._network.blackholed:
            await trio.sleep_forever()

    async def _pass_requests(self, server: trio.SocketStream) -> None:
        requests, statements = _Messages(), _Statements()
        async for chunk in self._client:
            await trio.sleep(self._network.latency)
            await self._swallow_in_blackhole()
            for statement in statements.run_by(requests.feed(chunk)):
                loss = self._network.take_loss(statement)
                if loss is not None and not loss.of_reply:
                    self._network.lost += 1
                    self.reset()
                    await trio.lowlevel.checkpoint()
                self._losing_reply = self._losing_reply or loss is not None
            await server.send_all(chunk)
        await self._swallow_in_blackhole()  # in a blackhole, the server must not notice that the client has closed
        self._scope.cancel()

    async def _pass_replies(self, server: trio.SocketStream) -> None:
        replies = _Messages()
        async for chunk in server:
            await self._swallow_in_blackhole()
            if not self._losing_reply:
                await self._client.send_all(chunk)
            # A long reply begins before its transaction is committed. Only its last message shows that the commit is done.
            elif any(kind == b"Z" for kind, _ in replies.feed(chunk)):
                self._network.lost += 1
                self.reset()
        await self._swallow_in_blackhole()


class _Messages:
    """Splits the data of one direction into messages. Each message has a type of one byte and a body."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes | bytearray) -> list[tuple[bytes, bytes]]:
        """Add received data. Return the messages that are now complete."""
        self._buffer += chunk
        messages = []
        start = 0
        while len(self._buffer) >= start + 5:
            end = start + 1 + int.from_bytes(self._buffer[start + 1 : start + 5])
            if len(self._buffer) < end:
                break
            messages.append((bytes(self._buffer[start : start + 1]), bytes(self._buffer[start + 5 : end])))
            start = end
        del self._buffer[:start]
        return messages


class _Statements:
    """Tracks the texts of prepared statements."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, bytes] = {}

    def run_by(self, messages: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
        """Yield the texts of the statements that these messages run. Skip statements that they only prepare."""
        for kind, body in messages:
            if kind == b"Q":
                yield body
            elif kind == b"P":
                name, text, _ = body.split(b"\0", 2)
                self._prepared[name] = text
            elif kind == b"B":
                _portal, name, _ = body.split(b"\0", 2)
                yield self._prepared.get(name, b"")


class ProxyThread:
    """A `Proxy` in a separate thread, for callers without Trio. It has the same methods, which block until they are done.

    Attributes:
        port: its port on 127.0.0.1.
    """

    def __init__(self, proxy: Proxy, port: int, token: trio.lowlevel.TrioToken) -> None:
        self.port = port
        self._proxy = proxy
        self._token = token

    @property
    def lost(self) -> int:
        return self._proxy.lost

    def cut(self) -> None:
        self._call(self._proxy.cut)

    def refuse(self) -> None:
        self._call(self._proxy.refuse)

    def blackhole(self) -> None:
        self._call(self._proxy.blackhole)

    def delay(self, seconds: float) -> None:
        self._call(self._proxy.delay, seconds)

    def lose_next_reply(self, pattern: bytes) -> None:
        self._call(self._proxy.lose_next_reply, pattern)

    def lose_next_request(self, pattern: bytes) -> None:
        self._call(self._proxy.lose_next_request, pattern)

    def heal(self) -> None:
        self._call(self._proxy.heal)

    def _call(self, method: Callable[..., None], *args: object) -> None:
        trio.from_thread.run_sync(method, *args, trio_token=self._token)


@contextmanager
def proxy_in_thread(host: str, port: int) -> Iterator[ProxyThread]:
    """Run a proxy in a thread during the block.

    Args:
        host: the server's host, or the directory of its Unix socket.
        port: the server's port.
    """
    started: queue.SimpleQueue[tuple[int, trio.lowlevel.TrioToken, trio.CancelScope] | BaseException] = queue.SimpleQueue()
    proxy = Proxy(host, port)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listening_on = await nursery.start(proxy.run)
            started.put((listening_on, trio.lowlevel.current_trio_token(), nursery.cancel_scope))

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            started.put(error)
            raise

    thread = threading.Thread(target=run, name="proxy", daemon=True)
    thread.start()
    answer = started.get()
    if isinstance(answer, BaseException):
        raise answer
    listening_on, token, scope = answer
    try:
        yield ProxyThread(proxy, listening_on, token)
    finally:
        trio.from_thread.run_sync(scope.cancel, trio_token=token)
        thread.join()


@asynccontextmanager
async def _connect(host: str, port: int) -> AsyncIterator[trio.SocketStream]:
    with trio.fail_after(CONNECT_TIMEOUT):
        if host.startswith("/"):
            stream = await trio.open_unix_socket(f"{host}/.s.PGSQL.{port}")
        else:
            stream = await trio.open_tcp_stream(host, port)
    async with stream:
        yield stream
