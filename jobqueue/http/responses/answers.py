"""The responses that both the express lane and the Quart routes send."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from hypercorn.typing import ASGISendCallable

JSON = "application/json"

SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""Headers of every response."""


class Answer(NamedTuple):
    """A status, headers, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes


def json_answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Return a response with a value as JSON."""
    return Answer(status, {**(headers or {}), "Content-Type": JSON}, msgspec.json.encode(value))


async def respond(send: ASGISendCallable, answer: Answer) -> None:
    """Send a response from ASGI code, outside of any Quart route."""
    headers = [(name.encode(), value.encode()) for name, value in (answer.headers | SECURITY_HEADERS).items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": False})
