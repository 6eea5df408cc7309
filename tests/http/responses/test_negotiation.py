"""Content negotiation: Accept, lengths, types, entity tags, OPTIONS, and the fields that errors name."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest

from jobqueue import fields
from jobqueue.errors import InvalidQuery
from jobqueue.http.resources.dead_letters import DeadQuery
from jobqueue.http.responses import negotiation
from tests.support.http import JOB_ID, JSON, UNKNOWN_ID, both_lanes, exchange, problem, request, serving, status_of

JSON_TYPE = "application/json"


@pytest.mark.parametrize(
    ("accept", "offered", "takes"),
    [
        (None, JSON_TYPE, True),
        ("", JSON_TYPE, True),
        ("nonsense", JSON_TYPE, True),
        ("*/*", JSON_TYPE, True),
        ("application/*", JSON_TYPE, True),
        ("APPLICATION/JSON", JSON_TYPE, True),
        ("application/json;charset=utf-8;q=0.1", JSON_TYPE, True),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON_TYPE, True),
        ("application/json, text/plain, */*", JSON_TYPE, True),
        ("application/problem+json", JSON_TYPE, True),
        ("application/problem+json", "text/plain", True),
        ("text/html", JSON_TYPE, False),
        ("application/xml, text/*", JSON_TYPE, False),
        ("*/*;q=0", JSON_TYPE, False),
        ("*/*, application/json;q=0", JSON_TYPE, False),
        ("*/*, application/json; q=0.000", JSON_TYPE, False),
        ("*/*;q=0, application/json", JSON_TYPE, True),
        ("application/*;q=0, */*", JSON_TYPE, False),
        ("application/json;q=0, application/problem+json", JSON_TYPE, False),
        ('text/html;x="a, application/json"', JSON_TYPE, False),
        ("application/openmetrics-text;version=1.0.0;q=0.5, text/plain;version=0.0.4;q=0.3", "text/plain", True),
        (JSON_TYPE, "text/plain", False),
        ("text/event-stream", "text/event-stream", True),
        ("text/event-stream", JSON_TYPE, False),
    ],
)
def test_what_is_acceptable(accept: str | None, offered: str, takes: bool) -> None:
    if takes:
        negotiation.check_accept(accept, offered)
    else:
        with pytest.raises(negotiation.NotAcceptable):
            negotiation.check_accept(accept, offered)


@both_lanes
async def test_a_client_that_takes_nothing_of_ours_is_told_before_anything_is_done() -> None:
    async with serving() as served:
        assert "application/json" in problem(await served.post("/submit", "{}", Accept="text/html"), 406)["detail"]
        problem(await served.http.get("/health", headers={"Accept": "text/html"}), 406)
        problem(await served.http.get("/metrics", headers={"Accept": JSON_TYPE}), 406)
        problem(await served.http.get(f"/jobs/{JOB_ID}/events", headers={"Accept": JSON_TYPE}), 406)
        problem(await served.http.get("/queues", headers=[("Accept", "text/html"), ("Accept", "text/plain")]), 406)
        assert served.node.submitted == []
        assert (await served.http.get("/queues", headers=[("Accept", "text/html"), ("Accept", JSON_TYPE)])).status_code == 200
        assert (await served.post("/submit", "{}", Accept="application/problem+json")).status_code == 201


@pytest.mark.parametrize("accept", [b"Accept: text/html", b"Accept: */*;q=0", b"Accept: application/json", b"Accept:"])
@pytest.mark.parametrize("first", [b"POST /submit HTTP/1.1", b"GET /health HTTP/1.1"])
async def test_both_ways_take_the_same_accept(first: bytes, accept: bytes, without_lane: Callable[[bool], None]) -> None:
    lines, body = ([JSON], b"{}") if first.startswith(b"POST") else ([], b"")
    got = []
    for without in (False, True):
        without_lane(without)
        async with serving() as served:
            got.append(await exchange(served, [request(*lines, accept, first=first, body=body)]))
    assert got[0] == got[1]
    assert got[0].startswith((b"HTTP/1.1 406", b"HTTP/1.1 20"))


async def test_a_body_that_is_not_there_is_missed() -> None:
    async with serving() as served:
        for line in (b"POST /submit", b"PUT /queues/q", b"POST /dead/retry"):
            head = line + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
            assert status_of(await served.raw(head)) == 411, line
        no_body_is_needed = b"POST /queues/q/pause HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert status_of(await served.raw(no_body_is_needed)) == 200


@pytest.mark.parametrize(
    ("version", "length", "encoding", "missing"),
    [
        ("1.1", None, None, True),
        ("1.0", None, None, True),
        ("1.1", "0", None, False),
        ("1.1", None, "chunked", False),
        ("2", None, None, False),
    ],
)
def test_only_http_1_needs_to_say_how_long_a_body_is(version: str, length: str | None, encoding: str | None, missing: bool) -> None:
    if missing:
        with pytest.raises(negotiation.LengthRequired):
            negotiation.require_length(version, length, encoding)
    else:
        negotiation.require_length(version, length, encoding)


@both_lanes
async def test_what_is_taken_is_said_to_who_sends_something_else() -> None:
    async with serving() as served:
        refused = await served.post("/submit", "{}", "text/plain")
        problem(refused, 415)
        assert refused.headers["accept-post"].split(", ")[:2] == [JSON_TYPE, "application/x-ndjson"]
        refused = await served.http.put("/queues/q", content="{}", headers={"Content-Type": "application/x-ndjson"})
        assert (problem(refused, 415)["status"], refused.headers["accept"]) == (415, JSON_TYPE)
        refused = await served.post("/submit", "{}", **{"Content-Encoding": "gzip"})
        assert (problem(refused, 415)["status"], refused.headers["accept-encoding"]) == (415, "identity")


@both_lanes
async def test_options_and_methods_that_there_are_not() -> None:
    async with serving() as served:
        for path, allowed in {
            "/submit": "OPTIONS, POST",
            "/health": "GET, HEAD, OPTIONS",
            f"/jobs/{JOB_ID}": "DELETE, GET, HEAD, OPTIONS, PATCH",
            "/jobs/cancel": "OPTIONS, POST",
            "/queues/a%2Fpause/pause": "OPTIONS, POST",
        }.items():
            asked = await served.http.options(path, headers={"Accept": "text/html"})
            assert (asked.status_code, asked.headers["allow"], asked.content) == (204, allowed, b"")
            assert not {"content-type", "content-length"} & set(asked.headers)
            refused = await served.http.request("TRACE", path)
            problem(refused, 405)
            assert refused.headers["allow"] == allowed
        for path in ("/submit", "/jobs/cancel"):
            refused = await served.http.get(path)
            assert (problem(refused, 405)["status"], refused.headers["allow"]) == (405, "OPTIONS, POST")


# ------------------------------------------------------------------------------------------------------------- what one has already


async def test_a_job_that_a_client_has_is_not_sent_again() -> None:
    async with serving() as served:
        path = f"/jobs/{JOB_ID}"
        first = await served.http.get(path)
        tag = first.headers["etag"]
        assert tag == f'"{sha256(first.content).hexdigest()[:32]}"'
        assert first.headers["cache-control"] == "no-cache"
        for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
            for method in ("GET", "HEAD"):
                again = await served.http.request(method, path, headers={"If-None-Match": known})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
                assert again.headers["cache-control"] == "no-cache"
                assert not {"content-type", "content-length"} & set(again.headers)
        for unknown in ('"other"', "nonsense", ""):
            assert (await served.http.get(path, headers={"If-None-Match": unknown})).content == first.content
        served.node.jobs[JOB_ID]["state"] = "dead"
        changed = await served.http.get(path, headers={"If-None-Match": tag})
        assert (changed.status_code, changed.json()["state"]) == (200, "dead")
        missing = await served.http.get(f"/jobs/{UNKNOWN_ID}", headers={"If-None-Match": "*"})
        assert (problem(missing, 404)["field"], missing.headers["cache-control"]) == ("job_id", "no-store")
        assert "etag" not in missing.headers


# ------------------------------------------------------------------------------------------------------------- fields, and texts


async def test_errors_name_what_in_the_path_is_wrong() -> None:
    async with serving() as served:
        for method, path, status, field in [
            ("GET", "/jobs/17", 400, "job_id"),
            ("GET", "/jobs/a%2Fb", 400, "job_id"),
            ("DELETE", f"/jobs/{UNKNOWN_ID}", 404, "job_id"),
            ("POST", f"/jobs/{UNKNOWN_ID}/cancel", 404, "job_id"),
            ("POST", f"/queues/{'x' * 201}/pause", 400, "name"),
            ("POST", "/queues/%00/resume", 400, "name"),
            ("GET", "/jobs/17?wait=x", 400, "job_id"),
            ("GET", f"/jobs/{JOB_ID}?wait=x", 400, "wait"),
        ]:
            told = problem(await served.http.request(method, path), status)
            assert (told["field"], told["type"]) == (field, told["type"]), path
            assert told["type"].startswith("urn:jobqueue:"), path


@pytest.mark.parametrize("slash", ["%2F", "%2f"])
async def test_a_slash_in_a_name_is_encoded(slash: str) -> None:
    async with serving() as served:
        for path, name in {
            f"/queues/a{slash}b/pause": "a/b",
            f"/queues/{slash}a/pause": "/a",
            "/queues/%252F/pause": "%2F",
        }.items():
            assert (await served.http.post(path)).json() == {"queue": name, "paused": True}
        for path in ("/queues/a/b/pause", "/queues//a/pause", "/queues//pause"):
            problem(await served.http.post(path), 404)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("5", True),
        ("5.0", True),
        ("5e1", True),
        ("5.5", False),
        (" 5", False),
        ("null", False),
        ('"5"', False),
        ("true", False),
    ],
)
def test_a_number_in_a_query_is_one_of_json(text: str, is_one: bool) -> None:
    if is_one:
        assert isinstance(fields.read({"limit": text}, DeadQuery, what="it", refuse=InvalidQuery, strict=False).limit, int)
    else:
        with pytest.raises(InvalidQuery):
            fields.read({"limit": text}, DeadQuery, what="it", refuse=InvalidQuery, strict=False)


@pytest.mark.parametrize("text", ["null", "0.5", "1700000000", "2030-01-01"])
def test_a_time_in_a_query_is_a_time(text: str) -> None:
    with pytest.raises(InvalidQuery):
        fields.read({"died_before": text}, DeadQuery, what="it", refuse=InvalidQuery, strict=False)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2030-01-01T00:00:00-17:51", "2030-01-01T17:51:00+00:00"),
        ("0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00+00:00"),
        ("9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59.999999+00:00"),
    ],
)
def test_a_time_of_any_offset_is_one_that_postgresql_knows(text: str, utc: str) -> None:
    wanted = fields.read({"died_before": text}, DeadQuery, what="it", refuse=InvalidQuery, strict=False)
    assert wanted.died_before is not None
    assert wanted.died_before.isoformat() == utc
