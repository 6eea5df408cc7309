"""The express lane: respond to plain submissions directly. Pass other connections to hypercorn, with the bytes received so far.

hypercorn on Trio spends more than a millisecond per request on tasks, channels, and events. But almost every submission has the
same form: ``POST /submit`` in HTTP/1.1, directly followed by its body. One strict regular expression recognizes that form
(`wire_format`). If a plain request arrives whole, it gets its response without a task switch. Any other request goes to
hypercorn, from its first byte on. The lane uses the same code as the Quart routes to interpret requests and to make responses.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import outcome
import trio
from werkzeug.exceptions import HTTPException

from jobqueue import tracing
from jobqueue.admission import Receipt
from jobqueue.engine.operations import Operations
from jobqueue.http import limits
from jobqueue.http.access import request_checks
from jobqueue.http.access.auth import Authorizer
from jobqueue.http.api.routes import Access
from jobqueue.http.bodies import jobs as bodies
from jobqueue.http.express import wire_format
from jobqueue.http.express.reactor import Reactor
from jobqueue.http.express.wire_format import Request
from jobqueue.http.resources.submit import CONTENT, committed, submit
from jobqueue.http.responses import negotiation, problems
from jobqueue.http.responses.answers import JSON, Answer, json_answer
from jobqueue.http.transport.hypercorn_connection import RECEIVE_BYTES, contained, linger, send_all
from jobqueue.tokens import Token

BODY_PATIENCE = 1.0
"""Seconds for a body to arrive after its headers. If the body is slower, the request goes to hypercorn, which waits longer."""

NEEDS: dict[str, Access] = {"/submit": "submit", "/health": "health"}
"""The access that each path of the lane needs. The path's route needs the same access."""


class ExpressLane:
    """Makes the express connections of one node.

    Args:
        node: submits the jobs.
        authorizer: decides which requests are allowed.

    Attributes:
        authorizer: see above.
    """

    def __init__(self, node: Operations, authorizer: Authorizer) -> None:
        self._node = node
        self.authorizer = authorizer
        self.reactor = Reactor()
        self.run = self.reactor.run

    def connection(self, stream: trio.SocketStream) -> ExpressConnection:
        """Return the express connection of an accepted socket."""
        return ExpressConnection(self, stream)

    def recognize(self, received: bytes) -> Request | None:
        """Parse the head of a request; None if the request is not for the lane."""
        request = wire_format.recognize(received)
        # Leave cross-origin requests to hypercorn: the page needs CORS headers to read the response, and the lane sends none.
        if request is not None and self.authorizer.origins and "origin" in request.headers:
            return None
        return request

    def allows(self, request: Request) -> bool:
        """Return whether a request is allowed, before its body is read. If not, the request goes to hypercorn, which rejects it."""
        try:
            self._check(request)
        except HTTPException:
            return False
        return True

    async def answer(self, request: Request, body: bytes) -> Answer:
        """Process a plain request and return its response."""
        try:
            self._check(request)
            if request.path == "/health":
                return json_answer(self._node.health())
            headers = request.headers
            key, trace = headers.get("idempotency-key"), _trace(headers)
            return await submit(self._node, headers.get("content-type"), body, key, trace)
        except Exception as error:  # noqa: BLE001 - every error becomes a response; unexpected ones are logged
            return _problem(request, error)

    def _check(self, request: Request) -> None:
        request_checks.check(self.authorizer, request.method, NEEDS[request.path], request.headers)
        negotiation.check_accept(request.headers.get("accept"), JSON)

    def begin(self, request: Request, body: bytes, answered: Callable[[Answer], None]) -> None:
        """Start an allowed submission without waiting. Call ``answered`` once with the response, now or later."""
        try:
            headers = request.headers
            submitted = bodies.parse(headers.get("content-type"), body, headers.get("idempotency-key"), _trace(headers))

            def done(receipt: Receipt | None, error: Exception | None) -> None:
                # Do not respond at once: the next batch should start before the responses are sent.
                self.reactor.soon(lambda: answered(committed(submitted, receipt) if error is None else _problem(request, error)))

            self._node.begin(submitted.jobs, done)
        except Exception as error:  # noqa: BLE001 - as above
            answered(_problem(request, error))


def _problem(request: Request, error: Exception) -> Answer:
    return negotiation.advertised(problems.answer(error), request.method, CONTENT if request.path == "/submit" else ())


def _trace(headers: Mapping[str, str]) -> Mapping[str, str] | None:
    return tracing.read(headers["traceparent"], headers.get("tracestate")) if "traceparent" in headers else None


class _Head(NamedTuple):
    """The head of a connection's last request. A client usually sends the same head again, with another body.

    Attributes:
        text: its bytes; empty if the request is not for the lane.
        request: the parsed head; None if the request is not for the lane.
        allowed: whether the request is allowed.
        tokens: the known tokens at that time. After they change, the lane checks the request again.
    """

    text: bytes
    request: Request | None
    allowed: bool
    tokens: tuple[Token, ...]


class ExpressConnection:
    """One client's connection while all its requests are plain.

    States, and what leads from one to the next::

        idle --> submitting   the reactor reads a whole, allowed submission, and starts it
        idle --> woken        the reactor reads anything else, or the end
        submitting --> idle   the submission is committed or rejected, and the socket accepts the whole response
        submitting --> woken  the socket accepts only a part of the response, or `finish` was called
        woken --> serving     the connection's task runs
        serving --> idle      the task has sent its responses, and has no further bytes

    The connection's task sleeps while the state is idle or submitting. Then the reactor calls `_readable` and `_answered` without a
    task switch. In every state, `drop`, a deadline, or an error ends the connection. `finish` ends an idle connection at once, and
    another one after the response.

    Args:
        lane: processes the requests.
        stream: the accepted socket; after `run` the caller closes it or passes it to hypercorn.
    """

    def __init__(self, lane: ExpressLane, stream: trio.SocketStream) -> None:
        self._lane = lane
        self._stream = stream
        self._state: Literal["idle", "submitting", "woken", "serving"] = "idle"
        self._woken_by: outcome.Maybe[tuple[bytes, bytes]]
        self._finishing = False
        self._head = _Head(b"", None, allowed=False, tokens=())
        self._watched: int | None = None
        self._everything = trio.CancelScope()
        self._nap = trio.CancelScope()
        self._sleeping = trio.lowlevel.ParkingLot()
        self._patience_ends = trio.current_time() + limits.HEADERS_TIMEOUT

    async def run(self) -> bytes | None:
        """Respond to plain requests. Return the bytes of the first other request, or None when the connection has ended."""
        with contained(), self._everything:
            return await self._run()
        return None

    def finish(self) -> None:
        """End the connection once no request is in flight; an idle connection ends now."""
        self._finishing = True
        if self._state == "idle":
            self._everything.cancel()

    def drop(self) -> None:
        """End the connection at once."""
        self._unwatch()
        self._stream.socket.close()
        self._everything.cancel()

    async def _run(self) -> bytes | None:
        received = unsent = b""
        while not self._finishing:
            if not received:
                received, unsent = await self._sleep()
            self._everything.deadline = trio.current_time() + limits.REQUEST_TIMEOUT
            if unsent:
                await self._send(unsent)
            elif not received:
                return None
            else:
                head = self._recognize(received)
                request = head.request
                if request is None:
                    return received
                if len(received) < request.ends:
                    if not head.allowed:
                        return received
                    received = await self._receive_rest(received, request.ends)
                    if len(received) < request.ends:
                        return received
                answer = await self._lane.answer(request, received[request.body_begins : request.ends])
                await self._send(wire_format.encode(answer, closing=self._finishing))
                received = received[request.ends :]
            if not received:
                self._be_idle()
        await linger(self._stream)
        return None

    # -- while the task sleeps: called by the reactor

    async def _sleep(self) -> tuple[bytes, bytes]:
        """Sleep until the reactor wakes this task. Return the bytes that it has read but does not handle, and those to send.

        There are neither at the end of the client's data.
        """
        self._everything.deadline = math.inf
        self._watch()
        try:
            while trio.current_time() < self._patience_ends:
                with trio.CancelScope(deadline=self._patience_ends) as self._nap:
                    await self._sleeping.park()
                if self._state == "woken":
                    return self._woken_by.unwrap()
            self._everything.cancel()
            await trio.sleep_forever()
        finally:
            self._state = "serving"  # or the connection ends
            self._unwatch()

    def _wake_up(self, woken_by: outcome.Maybe[tuple[bytes, bytes]]) -> None:
        self._unwatch()
        self._state = "woken"
        self._woken_by = woken_by
        self._sleeping.unpark_all()

    def _readable(self) -> None:
        """Read from the socket, and start a submission if the bytes are one whole submission."""
        try:
            if self._state != "idle":
                self._unwatch()  # one request at a time: read further bytes, or the end, after the response
                return
            received = os.read(self._fd(), RECEIVE_BYTES)
            head = self._recognize(received)
            request = head.request
            if request is None or request.ends != len(received) or request.path != "/submit" or not head.allowed:
                self._wake_up(outcome.Value((received, b"")))
                return
            self._state = "submitting"
            self._be_patient(limits.REQUEST_TIMEOUT)
            self._lane.begin(request, received[request.body_begins :], self._answered)
        except BlockingIOError:
            pass
        except Exception as error:  # noqa: BLE001 - the connection's task raises it
            self._wake_up(outcome.Error(error))

    def _answered(self, answer: Answer) -> None:
        """Send a response. If the socket does not accept all of it now, wake the task to send the other part."""
        if self._state != "submitting":
            return  # too late: the connection has ended
        try:
            data = wire_format.encode(answer, closing=self._finishing)
            sent = 0 if self._finishing else self._write(data)
            if sent < len(data):
                self._wake_up(outcome.Value((b"", data[sent:])))
                return
            self._be_idle()
            if self._watched is None:
                self._watch()
        except Exception as error:  # noqa: BLE001 - as above
            self._wake_up(outcome.Error(error))

    def _watch(self) -> None:
        self._watched = self._fd()
        self._lane.reactor.watch(self._watched, self._readable)

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None:
            self._lane.reactor.forget(watched)

    def _be_idle(self) -> None:
        self._state = "idle"
        self._be_patient(limits.KEEP_ALIVE_TIMEOUT)

    def _be_patient(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now.

        Only an earlier deadline changes the cancel scope. If the deadline is later, the task wakes at the old one and sleeps again.
        """
        self._patience_ends = trio.current_time() + seconds
        if self._patience_ends < self._nap.deadline:  # noqa: PLR1730 - an assignment of the same value costs time
            self._nap.deadline = self._patience_ends

    # -- called by the reactor and by the task

    def _recognize(self, received: bytes) -> _Head:
        """Parse the head of a request, or reuse the last one if it is the same."""
        head, tokens = self._head, self._lane.authorizer.tokens
        if head.request is None or not received.startswith(head.text) or tokens is not head.tokens:
            request = self._lane.recognize(received)
            text = received[: request.body_begins] if request else b""
            self._head = head = _Head(text, request, request is not None and self._lane.allows(request), tokens)
        return head

    async def _receive(self) -> bytes:
        while True:
            # Wait before reading: a client that has just received its response has usually sent nothing yet.
            await trio.lowlevel.wait_readable(self._fd())
            try:
                return os.read(self._fd(), RECEIVE_BYTES)
            except BlockingIOError:
                pass

    async def _receive_rest(self, received: bytes, ends: int) -> bytes:
        whole = bytearray(received)
        with trio.move_on_after(BODY_PATIENCE):
            while len(whole) < ends and (more := await self._receive()):
                whole += more
        return bytes(whole)

    async def _send(self, data: bytes) -> None:
        sent = self._write(data)
        if sent < len(data) and not await send_all(self._stream, data[sent:]):
            self.drop()
            raise trio.BrokenResourceError

    def _write(self, data: bytes) -> int:
        try:
            return os.write(self._fd(), data)
        except BlockingIOError:
            return 0

    def _fd(self) -> int:
        # Do not cache this number: after `drop` has closed the socket, the number may belong to another file.
        return self._stream.socket.fileno()
