"""Cross-origin requests (the Fetch standard's CORS protocol), for pages of the origins that were named, and of no others.

A token comes in the header Authorization, which a page has to set: cookies and their like are never asked for, so no answer allows
credentials, and an origin is answered with itself and never with ``*``.
"""

from __future__ import annotations

from collections.abc import Mapping

from jobqueue.http.answers import Answer
from jobqueue.http.auth import Guard
from jobqueue.http.door import Headers

MAX_AGE = 600
"""Seconds for which a browser may keep the answer to a preflight."""

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, If-None-Match, Last-Event-ID, traceparent,"
    " tracestate",
    "Access-Control-Max-Age": str(MAX_AGE),
}
_ALLOW_ORIGIN = "Access-Control-Allow-Origin"
_EXPOSED = {"Access-Control-Expose-Headers": "Allow, ETag, Location, Retry-After, WWW-Authenticate"}


def preflight(guard: Guard, method: str, headers: Headers) -> Answer | None:
    """Answer what a browser asks before it sends a page's request; None when this is no such question of a page that may ask.

    Paths and tokens are not looked at: a preflight has no token, and the answer tells nothing of what there is.
    """
    if method == "OPTIONS" and headers.get("access-control-request-method") is not None and headers.get("origin") in guard.origins:
        return Answer(204, _PREFLIGHT, b"")
    return None


def answer_headers(guard: Guard, headers: Headers) -> Mapping[str, str]:
    """What each answer to a request says besides: nothing where no origins were named."""
    if not guard.origins:
        return {}
    origin = headers.get("origin")
    if origin is None or origin not in guard.origins:
        return {"Vary": "Origin"}
    return {"Vary": "Origin", _ALLOW_ORIGIN: origin, **_EXPOSED}
