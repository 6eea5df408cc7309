"""A small, strict HTTP client with keep-alive, for benchmarks. The client uses far less CPU than the service."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import msgspec
import trio

ANSWER_TIMEOUT = 60.0
"""Maximum time for a request and its response, including the time to connect, in seconds."""

PATIENCE = 30.0
"""Maximum time to wait for a service that is restarting, in seconds."""

MAX_HEAD_BYTES = 16 << 10

RETRY_INTERVAL = 0.25
"""Seconds between two attempts while the service restarts."""


class LoadError(Exception):
    """The load cannot be generated, or the program cannot find out how its jobs end."""


class Unanswered(Exception):
    """A request got no response, so the service may or may not have processed it."""


class Answer(NamedTuple):
    """The status and the decoded body of a response. The body is None if it is not JSON."""

    status: int
    body: Any


class Client:
    """One keep-alive connection to the service. It opens when it is needed, and opens again if the service has closed it.

    A general HTTP client uses as much CPU as the service itself. This client sends only the necessary headers. It requires
    responses with a Content-Length, which the service always sends, and raises an error for any other response.

    Args:
        url: the service's URL, ``http://HOST[:PORT]``.
        token: the token for the ``Authorization`` header, or None.
    """

    def __init__(self, url: str, token: str | None) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError as error:
            raise LoadError(f"{url} is not a valid URL: {error}") from None
        if parts.scheme != "http" or host is None:
            raise LoadError(f"{url} is not of the form http://HOST[:PORT]")
        self._address = (host, port)
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        self._headers = f"Host: {parts.netloc}\r\n{authorization}"
        self._stream: trio.SocketStream | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send a request and return the response.

        Raises:
            Unanswered: the service cannot be reached or does not respond, or the connection broke.
        """
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                return await self._exchange(head.encode() + body)
        except trio.TooSlowError:
            raise Unanswered(f"no response within {ANSWER_TIMEOUT:.0f} s") from None
        except (OSError, trio.BrokenResourceError) as error:
            raise Unanswered(str(error) or str(error.__cause__)) from error

    async def _exchange(self, request: bytes) -> Answer:
        stream = self._stream or await trio.open_tcp_stream(*self._address)
        self._stream = None  # set again after the whole response; until then, the connection cannot be reused
        try:
            await stream.send_all(request)
            answer, reusable = await _read_answer(stream)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        if reusable:
            self._stream = stream
        else:
            await stream.aclose()
        return answer

    async def ask(self, path: str) -> Answer:
        """Send a GET request, and retry it while the service restarts.

        Raises:
            LoadError: the service does not come back, or responds with a status other than 200 and 404.
        """
        give_up_at = trio.current_time() + PATIENCE
        while True:
            try:
                answer = await self.request("GET", path)
            except Unanswered as error:
                if trio.current_time() > give_up_at:
                    raise LoadError(f"the service does not respond any more: {error}") from None
            else:
                if answer.status in {200, 404}:
                    return answer
                if answer.status != 503 or trio.current_time() > give_up_at:
                    raise LoadError(f"GET {path} failed: {described(answer)}")
            await trio.sleep(RETRY_INTERVAL)

    async def aclose(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            await self._stream.aclose()


async def _read_answer(stream: trio.SocketStream) -> tuple[Answer, bool]:
    """Read one response. Return the response, and whether the connection stays open."""
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        if len(received) > MAX_HEAD_BYTES:
            _refuse(received)
        received += await _receive(stream)
    head = bytes(received[:end]).lower()
    status = re.match(rb"http/1\.1 ([2-5]\d\d)", head)
    length = re.search(rb"\r\ncontent-length: *(\d+)", head)
    if status is None or length is None or b"\r\ntransfer-encoding:" in head:
        _refuse(received)
    whole = end + 4 + int(length[1])
    while len(received) < whole:
        received += await _receive(stream)
    if len(received) > whole:
        _refuse(received[whole:])
    body: Any = None
    with suppress(msgspec.DecodeError):
        body = msgspec.json.decode(received[end + 4 :])
    return Answer(int(status[1]), body), not re.search(rb"\r\nconnection: *close", head)


async def _receive(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some()
    if not data:
        raise trio.BrokenResourceError("the service closed the connection before the end of its response")
    return bytes(data)


def _refuse(data: bytearray) -> NoReturn:
    raise LoadError(f"this program cannot read the response: {bytes(data[:100])!r}")


def described(answer: Answer) -> str:
    """Describe a response in one line."""
    if isinstance(answer.body, dict) and (detail := answer.body.get("detail") or answer.body.get("title")):
        return f"{answer.status}: {detail}"
    return str(answer.status)
