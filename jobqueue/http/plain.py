"""The plain form of HTTP/1.1 that the express lane speaks: recognise a request of it, and write an answer.

Nothing is parsed here that could be read in two ways: a request either is plainly of this form, or is nobody's business here.
"""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from functools import lru_cache
from typing import NamedTuple

from jobqueue.http import limits
from jobqueue.http.answers import SECURITY_HEADERS, Answer

# Visible ASCII, one Content-Length: there is no second way of reading this. Possessive, so that there is no second way of matching
# it either: a head that fails at its end would be tried in all of them.
_PLAIN = re.compile(rb"(POST|GET) (/submit|/health) HTTP/1\.1\r\n((?:[a-zA-Z0-9-]++:[ \t]*+[ -~]*+\r\n)++)\r\n")
_HEADER = re.compile(r"([a-zA-Z0-9-]++):[ \t]*+([ -~]*+)\r\n")
_HOST = re.compile(r"[a-zA-Z0-9.:\[\]_-]+")
_LENGTH = re.compile(r"[0-9]{1,9}")

_NOT_PLAIN = frozenset({"transfer-encoding", "expect", "upgrade", "te", "trailer", "http2-settings"})


class Request(NamedTuple):
    """A request whose head is plain: its headers by their names in lower case, and where in what was received its body lies."""

    method: str
    path: str
    headers: dict[str, str]
    body_begins: int
    ends: int


def recognise(received: bytes) -> Request | None:
    """Read the head of a request if it is plain."""
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
    """Write an answer; `closing` says that it is the connection's last."""
    lines = "".join([f"{name.lower()}: {value}\r\n" for name, value in answer.headers.items()])
    ending = "Connection: close\r\n\r\n" if closing else "\r\n"
    length, date = len(answer.body), _date(int(time.time()))
    head = f"HTTP/1.1 {answer.status} \r\n{lines}content-length: {length}\r\n{_SECURITY}date: {date}\r\n{ending}"
    return head.encode("latin-1") + answer.body


_SECURITY = "".join(f"{name.lower()}: {value}\r\n" for name, value in SECURITY_HEADERS.items())


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """The time as HTTP writes it (RFC 9110, 5.6.7), made once a second."""
    return formatdate(second, usegmt=True)
