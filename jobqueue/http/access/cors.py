"""Allow cross-origin requests (the Fetch standard's CORS protocol) for pages of the configured origins only.

A token is in the header Authorization, which a page must set itself. The service uses no cookies, so no response allows
credentials. Access-Control-Allow-Origin is the page's origin, never ``*``.
"""

from __future__ import annotations

from collections.abc import Mapping

from jobqueue.http.access.auth import Authorizer
from jobqueue.http.access.request_checks import Headers
from jobqueue.http.responses.answers import Answer

MAX_AGE = 600
"""Seconds that a browser may cache the response to a preflight."""

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, traceparent,"
    " tracestate",
    "Access-Control-Max-Age": str(MAX_AGE),
}
_ALLOW_ORIGIN = "Access-Control-Allow-Origin"
_EXPOSED = {"Access-Control-Expose-Headers": "Allow, ETag, Location, Retry-After, WWW-Authenticate"}


def preflight(authorizer: Authorizer, method: str, headers: Headers) -> Answer | None:
    """Return the response to a browser's preflight from an allowed origin; None for any other request.

    The path is not checked, because a preflight has no token and the response must not reveal which paths exist.
    """
    if (
        method == "OPTIONS"
        and headers.get("access-control-request-method") is not None
        and headers.get("origin") in authorizer.origins
    ):
        return Answer(204, _PREFLIGHT, b"")
    return None


def answer_headers(authorizer: Authorizer, headers: Headers) -> Mapping[str, str]:
    """Return the CORS headers of a response; empty if no origins are configured."""
    if not authorizer.origins:
        return {}
    origin = headers.get("origin")
    if origin is None or origin not in authorizer.origins:
        return {"Vary": "Origin"}
    return {"Vary": "Origin", _ALLOW_ORIGIN: origin, **_EXPOSED}
