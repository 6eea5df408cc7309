"""Serve an ASGI app on sockets, with the express lane and hypercorn's protocols under a custom accept loop.

In hypercorn's own loop, one malformed request can end the process. Here, an error in a connection ends only that connection.
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

from jobqueue.http.express.lane import ExpressConnection, ExpressLane
from jobqueue.http.transport import request_limit
from jobqueue.http.transport.hypercorn_connection import HypercornConnection, configuration
from jobqueue.http.transport.listeners import BoundedListener, max_connections

log = structlog.get_logger()


async def run(
    app: ASGIFramework,
    lane: ExpressLane,
    listeners: list[trio.SocketListener],
    *,
    stopping: trio.Event,
    drain_timeout: float,
    tls: Callable[[], ssl.SSLContext | None] = lambda: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stopping` is set, then finish the requests in flight and return.

    The listeners and all connections are always closed. Errors of a connection or of the app do not propagate.

    Args:
        app: an ASGI app; it gets no lifespan events.
        lane: the express lane; every connection without TLS starts there.
        stopping: set this event to stop. Then the server accepts no new connection, and closes idle connections.
        drain_timeout: seconds that the requests in flight may take after `stopping` is set. After that they are cancelled.
        tls: returns the TLS context of a new connection, or None for plain HTTP; called for each connection.
    """
    config = configuration()
    context = WorkerContext(max_requests=None)
    wrapped = ASGIWrapper(_announcing_close(request_limit.bounded(app), stopping))
    slots = trio.Semaphore(max_connections())
    connections: set[HypercornConnection | ExpressConnection] = set()
    gone = trio.lowlevel.ParkingLot()

    async def serve(stream: trio.SocketStream) -> None:
        try:
            if (encryption := tls()) is not None:
                await attend(HypercornConnection(wrapped, config, context, stream, b"", tls=encryption))
            elif (received := await attend(lane.connection(stream))) is not None:
                await attend(HypercornConnection(wrapped, config, context, stream, received))
        finally:
            slots.release()
            gone.unpark_all()

    async def attend(connection: HypercornConnection | ExpressConnection) -> bytes | None:
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
    """Wrap an app to send ``Connection: close`` in HTTP/1.1 once `stopping` is set, so that clients do not reuse connections."""

    async def asgi(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def announcing(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.start" and stopping.is_set():
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        one_dot_one = scope["type"] == "http" and scope["http_version"].startswith("1.")
        await app(scope, receive, announcing if one_dot_one else send)

    return asgi
