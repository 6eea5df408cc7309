"""Generate the cases with hypothesis: almost valid requests to all routes, and malformed HTTP."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast
from urllib.parse import quote

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from benchmarks.fuzz.corpus import BROKEN, RAW_VALUES, VALUES
from jobqueue.engine.operations import Operations
from jobqueue.http import app
from jobqueue.http.api.routes import Route
from jobqueue.job import Submission

Ending = Literal["read", "reset", "vanish", "half"]
"""How a client ends its connection: after the response; at once, with a reset or a FIN; or by closing only its sending side."""

ROUTES = app.table(cast(Operations, None))  # None works here, because table() does not call the backend

UNKNOWN_ID = "0190a0b0-0000-7000-8000-000000000001"

MAX_BODY_TEXT = 120_000

GOOD = {
    "kind": '"async"',
    "payload": '{"n": 1}',
    "queue": '"q"',
    "priority": "3",
    "max_retries": "0",
    "run_at": '"2030-01-31T08:00:00Z"',
    "delay": "0.5",
    "timeout": "5",
    "expires_at": '"2030-01-31T08:00:00Z"',
    "expires_in": "60",
    "group": '"g"',
    "weight": "2",
    "concurrency_key": '"c"',
    "unique": "true",
    "unique_key": '"u"',
    "idempotency_key": '"i"',
    "state": '"dead"',
    "all": "true",
    "reason": '"no"',
    "died_before": '"2030-01-31T08:00:00Z"',
    "created_before": '"2030-01-31T08:00:00Z"',
    "max_running": "5",
    "rate": "100",
    "cron": '"*/5 * * * *"',
    "timezone": '"Europe/Berlin"',
    "missed": '"skip"',
}
"""Valid and invalid values of fields."""


class Case(NamedTuple):
    """One connection of a client.

    Attributes:
        kind: the name of its kind of case in the summary.
        pieces: the bytes to send, with a short pause between pieces.
    """

    kind: str
    pieces: list[bytes]
    ending: Ending = "read"


names = st.sampled_from(
    ["default", "q", "a/b", "x" * 200, "x" * 201, "é", "a\0b", " ", "%", "..", "pause", "", "\ud800", "q?x#y", "\n"]
)
ids = st.sampled_from([UNKNOWN_ID, "0", "x" * 300, "é", UNKNOWN_ID.upper(), UNKNOWN_ID.replace("-", ""), f"{{{UNKNOWN_ID}}}", "\0"])
_values = [value.encode() for value in VALUES] + RAW_VALUES
values = st.integers(0, len(_values) - 1).map(lambda number: _values[number])
media_types = st.sampled_from(
    [
        *["application/json"] * 12,
        *(
            "application/x-ndjson",
            "application/json; charset=utf-8",
            "application/json; charset=latin-1",
            "text/plain",
            "",
            "é",
            "x/y/z",
        ),
        *(
            "multipart/form-data; boundary=x",
            "application/x-www-form-urlencoded",
            "application/json; =",
            "application/" + "j" * 9_000,
        ),
    ]
)
odd_headers = st.sampled_from(
    [
        *(
            "Accept: text/html",
            "Accept: */*;q=0",
            "Accept: é",
            "Accept-Encoding: gzip",
            "Origin: https://evil.example",
            "Origin: null",
        ),
        *("Authorization: Bearer x", "Authorization: Bearer", "Authorization: Basic Zm9v", "Authorization: é", "Cookie: a=b"),
        *(
            'Idempotency-Key: "k"',
            "Idempotency-Key: ",
            "Idempotency-Key: é",
            "Idempotency-Key: " + "k" * 201,
            'Idempotency-Key: "a", "b"',
        ),
        *(
            "Content-Encoding: gzip",
            "Content-Encoding: identity",
            "Connection: close",
            "Connection: keep-alive, x",
            "Range: bytes=0-1",
        ),
        *("Last-Event-ID: end", "Last-Event-ID: \0", 'If-None-Match: "x"', "If-Match: *", "If-Modified-Since: yesterday"),
        *(
            "traceparent: 00-x",
            "X-HTTP-Method-Override: DELETE",
            "X-Forwarded-For: 1.2.3.4",
            "Transfer-Encoding: identity",
            "TE: trailers",
        ),
    ]
).map(str.encode)
methods = st.sampled_from(
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "x" * 100, "POST\t"]
)


def _names_of(kind: type[msgspec.Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


@st.composite
def objects(draw: st.DrawFn, kind: type[msgspec.Struct]) -> bytes:
    """Draw an object with some of a type's fields, and valid or invalid values."""
    known = st.sampled_from(_names_of(kind))
    good = known.map(lambda name: (name, GOOD.get(name, "1").encode()))
    odd = st.sampled_from(["unknown", "", "é", "__class__", "maxRetries", "\\u006bind", "\\ud800", "a\\u0000"])
    member = good | good | good | good | st.tuples(known | odd, values)
    members = draw(st.lists(member, max_size=4, unique_by=lambda member: member[0]) | st.lists(member, max_size=4))
    return b"{" + b", ".join(b'"%b": %b' % (name.encode(), value) for name, value in members) + b"}"


@st.composite
def submissions(draw: st.DrawFn) -> bytes:
    """Draw the body of a submission: a job, an array, NDJSON, or something else."""
    jobs = draw(st.lists(st.just(b'{"kind": "async"}') | objects(Submission) | values, min_size=1, max_size=6))
    form = draw(st.sampled_from(["one", "array", "lines", "broken"]))
    if form == "one":
        return jobs[0]
    if form == "lines":
        return b"\n".join(jobs)
    body = b"[" + b", ".join(jobs) + b"]"
    return body if form == "array" else body[: draw(st.integers(0, len(body)))] + draw(values)


def _body_of(route: Route) -> st.SearchStrategy[bytes]:
    if route.path == "/submit":
        return submissions()
    if route.body is not None:
        return objects(route.body.kind) | values
    return st.just(b"") | st.just(b"") | values


@st.composite
def queries(draw: st.DrawFn, route: Route) -> str:
    """Draw a query string with the route's parameters and others."""
    known = _names_of(route.query) if route.query is not None else ["x"]
    name = st.sampled_from([*known, *known, "unknown", "é", ""])
    value = st.sampled_from(
        [*VALUES[:12], "default", "pending,dead", "true", "1000", "0", "x" * 500, "é", "\0", "\ud800", UNKNOWN_ID]
    )
    pairs = draw(st.lists(st.tuples(name, value), max_size=3))
    text = "&".join(f"{quote(name)}={quote(value, errors='surrogatepass')}" for name, value in pairs)
    return f"?{text}" if pairs else draw(st.sampled_from(["", "", "?", "?&&", "?%ff", "?a;b"]))


@st.composite
def requests(draw: st.DrawFn, live_ids: tuple[str, ...]) -> bytes:
    """Draw a request to a route. Each part of the request is valid or invalid."""
    route = draw(st.sampled_from(ROUTES) | st.sampled_from([route for route in ROUTES if route.path == "/submit"]))
    job_ids = ids | st.sampled_from(live_ids)
    slashes = draw(st.sampled_from(["", "/"]))
    parts = {part: draw(names if part == "name" else job_ids) for part in re.findall(r"{(\w+)}", route.path)}
    path = re.sub(r"{(\w+)}", lambda part: quote(parts[part[1]], safe=slashes, errors="surrogatepass"), route.path)
    path += draw(st.sampled_from([""] * 12 + ["/", "//", "/x", "%00", "%2f", ".json", "é"]))
    target = (path + draw(queries(route))).encode()
    method = route.method if draw(st.integers(0, 9)) else draw(methods)
    body = draw(_body_of(route))[:MAX_BODY_TEXT]
    lines = [
        method.encode() + b" " + target + b" HTTP/1.1",
        draw(st.sampled_from([b"Host: localhost"] * 12 + [b"Host: evil", b"Host:"])),
    ]
    if body or method in {"POST", "PUT", "PATCH"}:
        media_type = draw(media_types)
        lines += [b"Content-Type: " + media_type.encode()] if media_type else []
        lines.append(b"Content-Length: %d" % len(body))
    lines += draw(st.lists(odd_headers, max_size=2)) if draw(st.booleans()) else []
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _usual(route: Route, job_id: str) -> bytes:
    """Return a regular request to a route. Its body is an empty object, which the route may reject."""
    path = re.sub(r"{(\w+)}", lambda part: "default" if part[1] == "name" else job_id, route.path)
    head = f"{route.method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if route.method in {"POST", "PUT", "PATCH"}:
        return f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    return f"{head}\r\n".encode()


@st.composite
def mutations(draw: st.DrawFn, of: st.SearchStrategy[bytes]) -> bytes:
    """Draw a variation of some bytes: pieces of them are cut out, repeated, inserted, or overwritten."""
    mutated = bytearray(draw(of))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(mutated)))
        end = min(len(mutated), start + draw(st.integers(0, 40)))
        piece = draw(
            st.one_of(st.binary(max_size=12), st.sampled_from([b"\r\n", b":", b" ", b"\0", b"HTTP/1.1", b"\xff", b"%", b'"', b"{"]))
        )
        mutated[start:end] = draw(st.sampled_from([piece, bytes(mutated[start:end]) * 2, b""]))
    return bytes(mutated)


def _broken(kind: str) -> st.SearchStrategy[Case]:
    names = st.sampled_from(sorted(BROKEN[kind]))
    return st.builds(Case, st.just(kind), names.map(lambda name: [BROKEN[kind][name]]), st.sampled_from(["read", "read", "half"]))


@st.composite
def cases(draw: st.DrawFn, live_ids: tuple[str, ...]) -> Case:
    """Draw a case."""
    request = requests(live_ids)
    broken = st.sampled_from(sorted(BROKEN)).flatmap(_broken)
    kind = draw(
        st.sampled_from(["requests"] * 6 + ["broken"] * 4 + ["mutated"] * 4 + ["pipelined", "slow", "abrupt", "HTTP/2 mutated"])
    )
    if kind == "broken":
        return draw(broken)
    ending: Ending = "read"
    any_bytes = request | broken.map(lambda case: case.pieces[0])
    if kind == "mutated":
        pieces, ending = [draw(mutations(any_bytes))], draw(st.sampled_from(["read", "read", "half"]))
    elif kind == "HTTP/2 mutated":
        pieces = [draw(mutations(_broken("HTTP/2").map(lambda case: case.pieces[0])))]
    elif kind == "pipelined":
        pieces = [b"".join(draw(st.lists(any_bytes, min_size=2, max_size=5)))]
    elif kind == "slow":
        content = draw(request)
        cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=4)))
        pieces = [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    elif kind == "abrupt":
        content = draw(request)
        pieces, ending = [content[: draw(st.integers(0, len(content)))]], draw(st.sampled_from(["reset", "vanish"]))
    else:
        pieces = [draw(request)]
    return Case(kind, pieces, ending)


def draw_cases(number: int, start: int, live_ids: tuple[str, ...]) -> list[Case]:
    """Return `number` cases: all malformed requests, each route once, and drawn requests.

    The same `start` and ids give the same cases.
    """
    drawn = [Case(kind, [content]) for kind, contents in BROKEN.items() for content in contents.values()]
    drawn += [Case("requests", [_usual(route, live_ids[0])]) for route in ROUTES]

    @seed(start)
    @settings(
        max_examples=max(1, number - len(drawn)),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(live_ids))
    def take(case: Case) -> None:
        drawn.append(case)

    take()
    return drawn[:number]
