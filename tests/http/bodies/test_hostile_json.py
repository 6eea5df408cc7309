"""Invalid and ambiguous JSON is rejected with the reason, in each body, each form, and each lane."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import pytest

from jobqueue.engine.operations import Operations
from jobqueue.http import app as api
from jobqueue.http.api.routes import Route
from jobqueue.http.bodies import strict_json
from jobqueue.job import Change
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.timetable import CronSchedule
from tests.support.http import JOB_ID, RecordingNode, both_lanes, problem, serving

HOSTILE = {
    "NaN": (b"NaN", "malformed|not a JSON number"),
    "infinity": (b"Infinity", "malformed|not a JSON number"),
    "minus infinity": (b"-Infinity", "malformed|not a JSON number"),
    "a float out of range": (b"1e999", "out of range"),
    "a negative one": (b"-1e999", "out of range"),
    "an integer above 64 bits": (b"18446744073709551616", "64 bits"),
    "an integer below 64 bits": (b"-9223372036854775809", "64 bits"),
    "an integer of 5,000 digits": (b"9" * 5_000, "64 bits|out of range"),
    "a large integer inside": (b'{"a": [{"b": 123456789012345678901234567890}]}', "64 bits"),
    "a name twice": (b'{"a": 1, "a": 2}', "more than once"),
    "a name twice inside": (b'[{"a": {"b": 1, "c": 2, "b": 1}}]', "more than once"),
    "a name twice, once as an escape": (rb'{"\u0061": 1, "a": 2}', "more than once"),
    "a name with a colon twice": (rb'{"\u003a": 1, ":": 2, "b": {"c": 1, "c": 1}}', "more than once"),
    "half a surrogate pair": (rb'"\ud800"', "surrogate"),
    "the other half": (rb'["\udc00"]', "surrogate"),
    "half a pair as a name": (rb'{"\ud800": 1}', "surrogate"),
    "half a pair as a name twice": (rb'{"\ud800": 1, "\ud800": 1}', "surrogate|more than once"),
    "a NUL": (rb'"a\u0000"', "U\\+0000|must be"),
    "a NUL in a name": (rb'{"\u0000": 1}', "U\\+0000|must be"),
    "a raw NUL": (b'"a\0"', "malformed|control character"),
    "not UTF-8": (b'"\xff"', "UTF-8"),
    "UTF-8 of a surrogate": (b'"\xed\xa0\x80"', "UTF-8"),
    "overlong UTF-8": (b'"\xc0\x80"', "UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf1", "malformed|Expecting value"),
    "trailing data": (b"1 2", "malformed|delimiter"),
    "nothing": (b"", "malformed|Expecting value"),
    "nesting of 101": (b"[" * 101 + b"]" * 101, "nested|must be"),
    "nesting of 100,000": (b"[" * 100_000 + b"]" * 100_000, "nested"),
    "half an escape": (rb'"\u12"', "malformed|escape"),
    "a line break in a string": (b'"\n"', "malformed|control character"),
}
"""Hostile values, with the reason of the rejection."""

UNKEPT = {"a NUL", "a NUL in a name", "nesting of 101"}
"""Valid JSON that cannot be stored, and is accepted in an ignored field."""

WHOLE = {
    "a byte order mark": (b"\xef\xbb\xbf%b", "byte order mark"),
    "trailing data": (b"%b {}", "trailing|Extra data|malformed"),
    "a trailing NUL": (b"%b\0", "trailing|Extra data|malformed"),
    "a trailing bracket": (b"%b]", "trailing|Extra data|malformed"),
    "UTF-16": (b"\xff\xfe%b", "malformed|UTF-8"),
}
"""Faults of a whole document, with the reason of the rejection."""

FORMS = {
    "one": ("application/json", b"%b"),
    "array": ("application/json", b'[{"kind": "a"}, %b, {"kind": "b"}]'),
    "lines": ("application/x-ndjson", b'{"kind": "a"}\n%b\n{"kind": "b"}'),
}

each_form = pytest.mark.parametrize("form", FORMS)


def refused(response: httpx.Response, reason: str) -> Any:
    assert response.status_code in {400, 413, 422}, response.text
    body = problem(response, response.status_code)
    assert re.search(reason, body["detail"]), body
    return body


@both_lanes
@each_form
async def test_hostile_values_are_rejected_with_the_index_of_their_job(form: str) -> None:
    content_type, frame = FORMS[form]
    async with serving() as served:
        for what, (value, reason) in HOSTILE.items():
            if form == "lines" and b"\n" in value:
                reason = "truncated|malformed"  # noqa: PLW2901 - the newline ends the line
            for field in (b"payload", b"unknown"):
                if field == b"unknown" and what in UNKEPT:
                    continue
                body = refused(await served.post("/submit", frame % (b'{"%b": %b}' % (field, value)), content_type), reason)
                assert body.get("index") == (None if form == "one" else 1), what
        for what, (whole, reason) in WHOLE.items():
            body = refused(await served.post("/submit", whole % (frame % b"{}"), content_type), reason)
            # Each line is a separate document.
            at_fault = None if form != "lines" else 2 if whole.startswith(b"%b") else 0
            assert body.get("index") == at_fault, what
        assert served.node.submitted == []


@pytest.mark.parametrize("form", ["array", "lines"])
async def test_a_partial_batch_stores_the_other_jobs(form: str) -> None:
    content_type, frame = FORMS[form]
    async with serving() as served:
        for value, reason in HOSTILE.values():
            served.node.submitted = []
            response = await served.post("/submit?partial=true", frame % (b'{"payload": %b}' % value), content_type)
            if response.status_code == 400:  # an array that is not JSON has no elements
                assert form == "array"
                assert refused(response, reason)["index"] == 1
                assert served.node.submitted == []
            else:
                assert response.status_code == 201
                faults = {error["index"] for error in response.json()["errors"]}
                assert faults == ({1, 2} if form == "lines" and b"\n" in value else {1})
                assert [job["kind"] for job in served.node.submitted] == ["a", "b"]


class Steered(RecordingNode):
    """A node that records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    async def retry_dead(self, wanted: DeadFilter, dry_run: bool) -> int:
        self.calls.append((wanted, dry_run))
        return 1

    discard_dead = retry_dead

    async def cancel_jobs(self, wanted: JobFilter, dry_run: bool) -> int:
        self.calls.append((wanted, dry_run))
        return 1

    async def change(self, job_id: str, change: Change) -> bool:
        self.calls.append((job_id, change))
        return True

    async def configure(self, queue: str, settings: Any) -> None:
        await super().configure(queue, settings)
        self.calls.append(settings)

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        self.calls.append(schedule)
        return True

    async def schedules(self, name: str | None = None) -> list[dict[str, Any]]:
        return [{"name": name, "at": datetime.now(UTC)}]


OBJECTS = {
    ("PUT", "/queues/{name}"): (b'{"max_running": %b}', b"1"),
    ("PUT", "/schedules/{name}"): (b'{"cron": "* * * * *", "payload": %b}', b'{"a": 1}'),
    ("PATCH", "/jobs/{job_id}"): (b'{"priority": %b}', b"1"),
    ("POST", "/jobs/cancel"): (b'{"queue": %b}', b'"a"'),
    ("POST", "/dead/retry"): (b'{"queue": %b}', b'"a"'),
    ("POST", "/dead/discard"): (b'{"kind": %b}', b'"a"'),
}
"""An object that each route accepts, and a value in it."""

WITH_A_BODY = [route for route in api.table(cast(Operations, None)) if route.body is not None]


@pytest.mark.parametrize("route", WITH_A_BODY, ids=lambda route: f"{route.method} {route.path}")
async def test_other_bodies_with_hostile_values_are_rejected(route: Route) -> None:
    frame, good = OBJECTS[route.method, route.path]
    node = Steered()
    async with serving(node) as served:

        async def send(body: bytes) -> httpx.Response:
            path = route.path.replace("{name}", "a%2Fb").replace("{job_id}", JOB_ID)
            return await served.http.request(route.method, path, content=body, headers={"Content-Type": "application/json"})

        for value, reason in HOSTILE.values():
            refused(await send(frame % value), f"{reason}|must be|bytes of JSON")
            refused(await send(b'{"unknown": %b}' % value), f"{reason}|unknown field|bytes of JSON")
        for whole, reason in WHOLE.values():
            refused(await send(whole % (frame % good)), reason)
        for whole_body in (b"", b"null", b"[]", b'"x"', frame % good + frame % good, b"[%b]" % (frame % good)):
            refused(await send(whole_body), "object|cannot be read")
        assert route.body is not None
        refused(await send(b" " * (route.body.limit + 1)), f"{route.body.limit} bytes")
        assert node.calls == []
        full = frame % good
        assert (await send(full + b" " * (route.body.limit - len(full)))).status_code in {200, 201}
        assert len(node.calls) == 1


@pytest.mark.parametrize(
    "text",
    [
        b"18446744073709551615",
        b"-9223372036854775808",
        b"1.7976931348623157e308",
        b'{"a": {"a": [{"a": 1}, {"a": 2}]}}',
        rb'"\ud83d\ude00"',
    ],
)
@both_lanes
async def test_unambiguous_values_are_accepted(text: bytes) -> None:
    value = strict_json.read(text)
    async with serving() as served:
        for field in (b"payload", b"unknown"):
            assert (await served.post("/submit", b'{"%b": %b, "group": "g"}' % (field, text))).status_code == 201
            assert (await served.post("/submit", b'{"%b": %b}' % (field, text))).status_code == 201
        assert [job["payload"] for job in served.node.submitted] == [value, value, {}, {}]
