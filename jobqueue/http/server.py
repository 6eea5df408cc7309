"""Serve an ASGI app on sockets: hypercorn's protocols under an accept loop of our own, behind the express lane.

hypercorn's own loop lets one malformed request end the process. Here a connection is contained: whatever goes wrong in it ends only
itself.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import partial

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope

from jobqueue.http import in_flight
from jobqueue.http.connection import Connection, configuration
from jobqueue.http.express import ExpressConnection, Lane
from jobqueue.http.listening import BoundedListener, max_connections

log = structlog.get_logger()


async def run(
    app: ASGIFramework,
    lane: Lane,
    listeners: list[trio.SocketListener],
    *,
    stopping: trio.Event,
    drain_timeout: float,
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until told to stop, then let the requests in flight be answered, and return.

    The listeners and all connections are closed in any case. No error of a connection, or of the app, comes out of here.

    Args:
        app: an ASGI app; it gets no lifespan events.
        lane: takes each connection first.
        stopping: set it to stop. Nothing is accepted from then on, and connections without a request are closed.
        drain_timeout: seconds for the requests in flight after that; then they are cancelled.
        tls: what to encrypt the next connection with, asked for each; None for plain HTTP. The lane does not take part in TLS.
    """
    config = configuration()
    context = WorkerContext(max_requests=None)
    wrapped = ASGIWrapper(_announcing_close(in_flight.bounded(app), stopping))
    slots = trio.Semaphore(max_connections())
    connections: set[Connection | ExpressConnection] = set()
    gone = trio.lowlevel.ParkingLot()

    async def serve(stream: trio.SocketStream) -> None:
        try:
            if (encryption := tls()) is not None:
                await attend(Connection(wrapped, config, context, stream, b"", tls=encryption))
            elif (received := await attend(lane.connection(stream))) is not None:
                await attend(Connection(wrapped, config, context, stream, received))
        finally:
            slots.release()
            gone.unpark_all()

    async def attend(connection: Connection | ExpressConnection) -> bytes | None:
        connections.add(connection)
        if stopping.is_set():
            connection.finish()
        try:
            return await connection.run()
        finally:
            connections.discard(connection)

    async with trio.open_nursery() as serving:
        serving.start_soon(lane.run)
        try:
            bounded = [BoundedListener(listener, slots) for listener in listeners]
            async with trio.open_nursery() as accepting:
                await accepting.start(partial(trio.serve_listeners, serve, bounded, handler_nursery=serving))
                task_status.started()
                await stopping.wait()
                for connection in list(connections):
                    connection.finish()
                accepting.cancel_scope.cancel()
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
