"""The express lane: answers plain submissions itself, and hands any other connection on with the bytes that it has read.

hypercorn on Trio spends more than a millisecond on a request: tasks, channels and events for what HTTP may be. A submission is
almost always one form of it: ``POST /submit`` in HTTP/1.1 with its body behind it. That form is recognised by one strict
expression (`plain`), and answered without a switch of tasks where it comes whole. Whatever is not plainly of this form goes to
hypercorn, from its first byte on. What a request means, and every answer, comes from where the routes have it from.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping

import outcome
import trio
from werkzeug.exceptions import HTTPException

from jobqueue import tracing
from jobqueue.admission import Receipt
from jobqueue.http import bodies, door, limits, negotiation, plain, problems
from jobqueue.http.answers import JSON, Answer, json_answer
from jobqueue.http.auth import Guard
from jobqueue.http.connection import RECEIVE_BYTES, contained, linger, send_all
from jobqueue.http.plain import Request
from jobqueue.http.reactor import Reactor
from jobqueue.http.routes import Access
from jobqueue.http.submit import CONTENT, Submitting, committed, submit
from jobqueue.tokens import Token

BODY_PATIENCE = 1.0
"""Seconds for the body to follow its headers; a slower one is hypercorn's to wait for."""

NEEDS: dict[str, Access] = {"/submit": "submit", "/health": "health"}
"""What the requests of the lane need, by their path, as their routes say."""


class Lane:
    """Makes the express connections of one node.

    Args:
        node: takes the jobs.
        guard: decides who may ask.

    Attributes:
        guard: as given.
    """

    def __init__(self, node: Submitting, guard: Guard) -> None:
        self._node = node
        self.guard = guard
        self.reactor = Reactor()
        self.run = self.reactor.run

    def connection(self, stream: trio.SocketStream) -> ExpressConnection:
        """Take a connection that was accepted."""
        return ExpressConnection(self, stream)

    def recognise(self, received: bytes) -> Request | None:
        """Read the head of a request if it is one for the lane."""
        request = plain.recognise(received)
        # What a page of another origin may read of an answer is said in headers that the lane does not know.
        if request is not None and self.guard.origins and "origin" in request.headers:
            return None
        return request

    def lets_in(self, request: Request) -> bool:
        """Tell whether a request may come in, before its body has: one that may not is hypercorn's to refuse."""
        try:
            self._check(request)
        except HTTPException:
            return False
        return True

    async def answer(self, request: Request, body: bytes) -> Answer:
        """Do what a plain request asks for."""
        try:
            self._check(request)
            if request.path == "/health":
                return json_answer({"status": "ok"})
            headers = request.headers
            key, trace = headers.get("idempotency-key"), _trace(headers)
            return await submit(self._node, headers.get("content-type"), body, key, trace)
        except Exception as error:  # noqa: BLE001 - each becomes an answer, and is logged where it is our fault
            return _problem(request, error)

    def _check(self, request: Request) -> None:
        door.check(self.guard, request.method, NEEDS[request.path], request.headers)
        negotiation.check_accept(request.headers.get("accept"), JSON)

    def begin(self, request: Request, body: bytes, answered: Callable[[Answer], None]) -> None:
        """Take a submission that was let in, in no time; call ``answered`` once, now or later."""
        try:
            headers = request.headers
            submitted = bodies.parse(headers.get("content-type"), body, headers.get("idempotency-key"), _trace(headers))

            def told(receipt: Receipt | None, error: Exception | None) -> None:
                # Soon: the next batch is to be on its way before the answers are.
                self.reactor.soon(lambda: answered(committed(submitted, receipt) if error is None else _problem(request, error)))

            self._node.begin(submitted.jobs, told)
        except Exception as error:  # noqa: BLE001 - as above
            answered(_problem(request, error))


def _problem(request: Request, error: Exception) -> Answer:
    return negotiation.advertised(problems.answer(error), request.method, CONTENT if request.path == "/submit" else ())


def _trace(headers: Mapping[str, str]) -> Mapping[str, str] | None:
    return tracing.read(headers["traceparent"], headers.get("tracestate")) if "traceparent" in headers else None


class ExpressConnection:
    """One client's connection for as long as its requests are plain ones.

    Its task sleeps while it rests, and while the reactor answers the plainest submissions: those that come whole, one after the
    other, and that the door lets in. Whatever else there is to do wakes the task.

    Args:
        lane: answers.
        stream: the accepted socket; whoever accepted it closes it after `run`, or gives it to hypercorn.
    """

    def __init__(self, lane: Lane, stream: trio.SocketStream) -> None:
        self._lane = lane
        self._stream = stream
        self._everything = trio.CancelScope()
        self._nap = trio.CancelScope()
        self._bed = trio.lowlevel.ParkingLot()
        self._patience_ends = trio.current_time() + limits.HEADERS_TIMEOUT
        self._resting = False
        self._watched: int | None = None
        self._woken_by: outcome.Maybe[bytes] | None = None
        self._unsent = b""
        self._idle = True
        self._finishing = False
        self._head = b""
        self._request: Request | None = None
        self._let_in = False
        self._known_tokens: tuple[Token, ...] = ()

    async def run(self) -> bytes | None:
        """Answer plain requests. Return the bytes of one that is not, or None when the connection is over."""
        with contained(), self._everything:
            return await self._run()
        return None

    def finish(self) -> None:
        """End the connection when no request is in flight, which for an idle one is now."""
        self._finishing = True
        if self._idle:
            self._everything.cancel()

    def drop(self) -> None:
        """End the connection at once."""
        self._unwatch()
        self._stream.socket.close()
        self._everything.cancel()

    async def _run(self) -> bytes | None:
        received = b""
        while not self._finishing:
            received = received or await self._rest()
            self._idle = False
            self._everything.deadline = trio.current_time() + limits.REQUEST_TIMEOUT
            if self._unsent:
                await self._send(self._unsent)
                self._unsent = b""
            elif not received:
                return None
            else:
                request = self._recognise(received)
                if request is None:
                    return received
                if len(received) < request.ends:
                    if not self._let_in:
                        return received
                    received = await self._receive_rest(received, request.ends)
                    if len(received) < request.ends:
                        return received
                answer = await self._lane.answer(request, received[request.body_begins : request.ends])
                await self._send(plain.encode(answer, closing=self._finishing))
                received = received[request.ends :]
            self._be_idle()
        await linger(self._stream)
        return None

    # -- asleep: what the reactor does

    async def _rest(self) -> bytes:
        """Sleep until something was read that is not for the reactor to answer, or is the end; or until there is `_unsent`."""
        self._everything.deadline = math.inf
        self._resting = True
        self._watch()
        try:
            while self._woken_by is None:
                with trio.CancelScope(deadline=self._patience_ends) as self._nap:
                    await self._bed.park()
                if self._woken_by is None and trio.current_time() >= self._patience_ends:
                    self._everything.cancel()
            woken_by, self._woken_by = self._woken_by, None
            return woken_by.unwrap()
        finally:
            self._resting = False
            self._unwatch()

    def _wake_up(self, woken_by: outcome.Maybe[bytes]) -> None:
        self._unwatch()
        self._woken_by = woken_by
        self._bed.unpark_all()

    def _readable(self) -> None:
        """Read, and take what was read if it is a whole submission."""
        try:
            if not self._idle:
                self._unwatch()  # one after the other: what more there is, be it the end, is looked at after the answer
                return
            received = os.read(self._fd(), RECEIVE_BYTES)
            self._idle = False
            request = self._recognise(received)
            if request is None or request.ends != len(received) or request.path != "/submit" or not self._let_in:
                self._wake_up(outcome.Value(received))
                return
            self._be_patient(limits.REQUEST_TIMEOUT)
            self._lane.begin(request, received[request.body_begins :], self._answered)
        except BlockingIOError:
            pass
        except Exception as error:  # noqa: BLE001 - contained in the connection's own task
            self._wake_up(outcome.Error(error))

    def _answered(self, answer: Answer) -> None:
        """Send an answer at once if it can be, and nothing else is to be done."""
        if not self._resting:
            return  # it came too late
        try:
            data = plain.encode(answer, closing=self._finishing)
            sent = 0 if self._finishing else self._write(data)
            if sent < len(data):
                self._unsent = data[sent:]
                self._wake_up(outcome.Value(b""))
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
        self._idle = True
        self._be_patient(limits.KEEP_ALIVE_TIMEOUT)

    def _be_patient(self, seconds: float) -> None:
        """Set the end of the patience. To set it later costs nothing: the task finds out when it wakes up."""
        self._patience_ends = trio.current_time() + seconds
        if self._patience_ends < self._nap.deadline:  # noqa: PLR1730 - setting it to what it is would cost
            self._nap.deadline = self._patience_ends

    # -- awake or asleep

    def _recognise(self, received: bytes) -> Request | None:
        # A client says the same again and again, but for the body.
        tokens = self._lane.guard.tokens  # others mean that another look is due at who asks
        if not (self._request and received.startswith(self._head) and tokens is self._known_tokens):
            self._known_tokens = tokens
            self._request = self._lane.recognise(received)
            self._head = received[: self._request.body_begins] if self._request else b""
            self._let_in = self._request is not None and self._lane.lets_in(self._request)
        return self._request

    async def _receive(self) -> bytes:
        while True:
            # Waiting comes first: a client that has just got its answer has sent nothing yet.
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
        # Asked for each time: the number of a socket that `drop` has closed may be that of another file by now.
        return self._stream.socket.fileno()
