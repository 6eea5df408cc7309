"""Negotiate media types between clients and routes (RFC 9110, section 12).

A client accepts a media type unless its Accept header excludes it: the header lists only other types, or lists this type with q=0.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from werkzeug.exceptions import LengthRequired, NotAcceptable, UnsupportedMediaType
from werkzeug.http import parse_accept_header

from jobqueue.http.responses import problems
from jobqueue.http.responses.answers import Answer

ADVERTISING_HEADERS = {"POST": "Accept-Post", "PATCH": "Accept-Patch", "PUT": "Accept"}
"""The response header that lists the media types that a method accepts."""


def check_accept(accept: str | None, offered: str) -> None:
    """Raise unless the client accepts the route's responses. A client that accepts only problem documents gets any type.

    Args:
        accept: the request's Accept header.
        offered: the media type of a successful response.

    Raises:
        NotAcceptable: the client does not accept `offered`.
    """
    if accept is not None and not _takes(accept, offered):
        raise NotAcceptable(f"The response is {offered}: remove the Accept header, or include this type.")


@lru_cache(maxsize=64)  # clients repeat the same header
def _takes(accept: str, offered: str) -> bool:
    weights: dict[str, float] = {}
    for element, weight in parse_accept_header(accept):  # the highest weight comes first
        media_range = element.partition(";")[0].strip().lower()  # parameters do not matter
        if "/" in media_range:
            weights.setdefault(media_range, weight)
    most_specific_first = (offered, f"{offered.partition('/')[0]}/*", "*/*", problems.CONTENT_TYPE)
    # An empty or malformed header has no ranges.
    return not weights or next((weights[each] for each in most_specific_first if each in weights), 0) > 0


def require_length(http_version: str, content_length: str | None, transfer_encoding: str | None) -> None:
    """Raise if an HTTP/1 request has no body. HTTP/2 needs no check, because it marks the end of a body without these headers.

    Raises:
        LengthRequired: the request has neither Content-Length nor Transfer-Encoding.
    """
    if http_version.startswith("1.") and content_length is None and transfer_encoding is None:
        raise LengthRequired("Send a body with a Content-Length header.")


def advertised(answer: Answer, method: str, takes: Collection[str]) -> Answer:
    """Add the accepted media types and encodings to a 415 response; return any other response unchanged."""
    if answer.status != UnsupportedMediaType.code:
        return answer
    types = {ADVERTISING_HEADERS[method]: ", ".join(takes)} if takes else {}
    return answer._replace(headers={**answer.headers, **types, "Accept-Encoding": "identity"})
