"""Check a request before its route runs: authorization, origin, and headers that a proxy might interpret differently."""

from __future__ import annotations

from typing import Protocol

from werkzeug.exceptions import BadRequest, UnsupportedMediaType

from jobqueue.http.access.auth import Authorizer
from jobqueue.http.api.routes import Access
from jobqueue.http.bodies import jobs as bodies

WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})


class Headers(Protocol):
    """The headers of a request, by lower-case name."""

    def get(self, name: str, /) -> str | None: ...


def check(authorizer: Authorizer, method: str, needs: Access | None, headers: Headers) -> None:
    """Raise unless a request is allowed. `needs` is the access that its route needs; None if the route does not exist.

    Raises:
        Unauthorized, Forbidden: see `Authorizer.check`.
        BadRequest, UnsupportedMediaType: the request is ambiguous, or a page of another site could have sent it.
    """
    authorizer.check(
        method,
        needs,
        authorization=headers.get("authorization"),
        host=headers.get("host"),
        origin=headers.get("origin"),
    )
    if headers.get("content-length") is not None and headers.get("transfer-encoding") is not None:
        raise BadRequest("Send either Content-Length or Transfer-Encoding, not both.")
    if (headers.get("content-encoding") or "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body without Content-Encoding.")
    content_type = headers.get("content-type")
    if content_type is not None and method not in WITHOUT_BODY:
        bodies.require_json(content_type)
