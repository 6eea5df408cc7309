"""Parse the simple HTTP/1.1 requests of the express lane, and encode their responses.

Only requests with exactly one interpretation are accepted here. The Quart routes get all others.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple

from jobqueue.http import limits
from jobqueue.http.responses.answers import SECURITY_HEADERS, Answer

# A head of visible ASCII with one Content-Length has only one interpretation. The quantifiers are possessive, so a head whose end
# does not match causes no backtracking.
_PLAIN = re.compile(rb"(POST|GET) (/submit|/health) HTTP/1\.1\r\n((?:[a-zA-Z0-9-]++:[ \t]*+[ -~]*+\r\n)++)\r\n")
_HEADER = re.compile(r"([a-zA-Z0-9-]++):[ \t]*+([ -~]*+)\r\n")
_HOST = re.compile(r"[a-zA-Z0-9.:\[\]_-]+")
_LENGTH = re.compile(r"[0-9]{1,9}")

_NOT_PLAIN = frozenset({"transfer-encoding", "expect", "upgrade", "te", "trailer", "http2-settings"})


class Request(NamedTuple):
    """A plain request: its headers by lower-case name, and the offsets of its body in the received bytes."""

    method: str
    path: str
    headers: dict[str, str]
    body_begins: int
    ends: int


def recognize(received: bytes) -> Request | None:
    """Parse the head of a request; None if it is not plain."""
    match = _PLAIN.match(received, 0, limits.MAX_HEADER_BYTES)
    if match is None:
        return None
    method, path, lines = (part.decode("ascii") for part in match.groups())
    pairs = _HEADER.findall(lines)
    headers = {name.lower(): value.rstrip() for name, value in pairs}
    length = headers.get("content-length", "0" if method == "GET" else "")
    plain = (
        (method == "POST") == (path == "/submit")
        and len(headers) == len(pairs)
        and _NOT_PLAIN.isdisjoint(headers)
        and headers.get("connection", "keep-alive").lower() == "keep-alive"
        and _HOST.fullmatch(headers.get("host", ""))
        and _LENGTH.fullmatch(length)
        and int(length) <= (limits.MAX_BODY_BYTES if method == "POST" else 0)
    )
    return Request(method, path, headers, match.end(), match.end() + int(length)) if plain else None


def encode(answer: Answer, *, closing: bool) -> bytes:
    """Encode a response. With `closing`, it announces that the connection ends after the response."""
    lines = "".join([f"{name.lower()}: {value}\r\n" for name, value in answer.headers.items()])
    ending = "Connection: close\r\n\r\n" if closing else "\r\n"
    length, date = len(answer.body), _date(int(time.time()))
    head = f"HTTP/1.1 {answer.status} \r\n{lines}content-length: {length}\r\n{_SECURITY}date: {date}\r\n{ending}"
    return head.encode("latin-1") + answer.body


_SECURITY = "".join(f"{name.lower()}: {value}\r\n" for name, value in SECURITY_HEADERS.items())


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """Return a Unix time in HTTP's format (RFC 9110, 5.6.7). Because of the cache, each second is formatted only once."""
    return formatdate(second, usegmt=True)
