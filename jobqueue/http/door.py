"""What a request has to pass before it is looked at: who asks, from where, and that no proxy may read it otherwise than we do."""

from __future__ import annotations

from typing import Protocol

from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from jobqueue.http import bodies
from jobqueue.http.auth import Guard
from jobqueue.http.routes import Access

WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})


class Headers(Protocol):
    """The headers of a request, by their names in lower case."""

    def get(self, name: str, /) -> str | None: ...


def check(guard: Guard, method: str, needs: Access | None, headers: Headers) -> None:
    """Let a request pass, or not. It needs what its route says; None where there is no route.

    Raises:
        Unauthorized, Forbidden: see `Guard.check`.
        BadRequest, UnsupportedMediaType: its form is ambiguous, or is one that a page of another site could send.
    """
    guard.check(
        method,
        needs,
        authorization=headers.get("authorization"),
        host=headers.get("host"),
        origin=headers.get("origin"),
    )
    if headers.get("content-length") is not None and headers.get("transfer-encoding") is not None:
        raise BadRequest("Content-Length and Transfer-Encoding exclude each other.")
    if (headers.get("content-encoding") or "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body without a Content-Encoding.")
    content_type = headers.get("content-type")
    if content_type is not None and method not in WITHOUT_BODY:
        bodies.require_json(content_type)
