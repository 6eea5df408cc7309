"""What a client takes, and what a route takes of it: RFC 9110, section 12.

A type is what a client wants unless its Accept header says otherwise; with q=0 it says so too.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache

from werkzeug.exceptions import LengthRequired, NotAcceptable, UnsupportedMediaType

from jobqueue.http import problems
from jobqueue.http.answers import Answer

TELLS_WHAT_IS_TAKEN = {"POST": "Accept-Post", "PATCH": "Accept-Patch", "PUT": "Accept"}
"""The header of an answer that names the media types that a method takes."""

_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_RANGE = re.compile(r"\s*([!#-'*+.^-z|~-]+/[!#-'*+.^-z|~-]+)\s*(;.*)?", re.ASCII)
_WEIGHT = re.compile(r";\s*[qQ]=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*(?:;|$)", re.ASCII)


def check_accept(accept: str | None, offered: str) -> None:
    """Make sure that an answer will be taken. Whoever takes only problems is given any JSON.

    Args:
        accept: the request's Accept header.
        offered: the media type of an answer that is no problem.

    Raises:
        NotAcceptable: it will not be.
    """
    if accept is not None and not _takes(accept, offered):
        raise NotAcceptable(f"The answer is {offered}: leave the Accept header out, or name it there.")


@lru_cache(maxsize=64)  # a client says the same with every request
def _takes(accept: str, offered: str) -> bool:
    weights: dict[str, float] = {}
    for element in _ELEMENT.findall(accept):
        if found := _RANGE.fullmatch(element):
            weight = _WEIGHT.search(found[2] or "")
            kind = found[1].lower()
            weights[kind] = max(weights.get(kind, 0.0), float(weight[1]) if weight else 1.0)
    if not weights:
        return True  # it says nothing, or nothing that can be read
    told = _weight(weights, offered)
    return told > 0 if told is not None else weights.get(problems.CONTENT_TYPE, 0) > 0


def _weight(weights: dict[str, float], kind: str) -> float | None:
    """Take the weight of the most special range that a type is in."""
    for media_range in (kind, f"{kind.partition('/')[0]}/*", "*/*"):
        if media_range in weights:
            return weights[media_range]
    return None


def require_length(http_version: str, content_length: str | None, transfer_encoding: str | None) -> None:
    """Make sure that there is a body to read; HTTP/2 ends one without either header.

    Raises:
        LengthRequired: nothing says how long the body is: there is none.
    """
    if http_version.startswith("1.") and content_length is None and transfer_encoding is None:
        raise LengthRequired("Send a body, with its Content-Length.")


def advertised(answer: Answer, method: str, takes: Collection[str]) -> Answer:
    """Say in the answer to a body of another type, or that is encoded, what is taken."""
    if answer.status != UnsupportedMediaType.code:
        return answer
    types = {TELLS_WHAT_IS_TAKEN[method]: ", ".join(takes)} if takes else {}
    return answer._replace(headers={**answer.headers, **types, "Accept-Encoding": "identity"})
