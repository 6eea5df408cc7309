"""``POST /submit?partial=true`` commits the valid jobs of a batch, once, and reports each of the others by its index."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from jobqueue.admission import MAX_FAULTS, Admitted, Receipt
from jobqueue.errors import ConflictingJob, ConnectionLost, DatabaseUnavailable, UnprocessableJob
from jobqueue.http.bodies import jobs as bodies
from jobqueue.http.bodies import partial_batch
from tests.support.http import RecordingNode, Served, problem, serving
from tests.support.postgres import Database
from tests.support.service import Service

pytestmark = pytest.mark.slow

NDJSON = "application/x-ndjson"


class Picky(RecordingNode):
    """A node whose database rejects the kinds ``bad`` and ``busy``, and fails for the kinds ``lost`` and ``in doubt``."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def submit(self, jobs: Admitted) -> Receipt | None:
        self.calls += 1
        documents = [msgspec.json.decode(document) for document in jobs.documents]
        kinds = [document.get("kind") for document in documents]
        assert jobs.counts.keys() == {("default", kind or "default") for kind in kinds}
        for kind, error in {
            "bad": UnprocessableJob("no such kind", field="kind"),
            "busy": ConflictingJob("busy", field="unique_key"),
            "lost": DatabaseUnavailable("away"),
            "in doubt": ConnectionLost("away", backend=(1, "")),
        }.items():
            if kind in kinds:
                raise error
        self.submitted += documents
        return Receipt(jobs.ids, [place for place, kind in enumerate(kinds) if kind == "old"]) if jobs.keyed else None


def kinds_of(node: RecordingNode) -> list[str]:
    return [job["kind"] for job in node.submitted]


async def send(served: Served, jobs: Sequence[Any], form: str = "array", query: str = "partial=true") -> httpx.Response:
    texts = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
    if form == "array":
        return await served.post(f"/submit?{query}", f"[{','.join(texts)}]")
    return await served.post(f"/submit?{query}", "\n".join(texts), NDJSON)


forms = pytest.mark.parametrize("form", ["array", "lines"])


@forms
async def test_the_good_ones_are_committed_and_the_others_are_reported(form: str) -> None:
    async with serving(Picky()) as served:
        jobs = [
            {"kind": "a"},
            {"kind": "b", "priority": -1},
            5,
            {"kind": "bad"},
            {"kind": "c", "prio": 1},
            '{"kind": "d", "payload": "\\u0000"}',
            {"kind": "busy"},
            '{"kind": "e", "payload": {"n": 1, "n": 2}}',
            {"kind": "f", "payload": "x" * (1 << 20)},
            {"kind": "g"},
        ]
        response = await send(served, jobs, form)
        assert response.status_code == 201
        body = response.json()
        assert kinds_of(served.node) == ["a", "c", "g"]
        ids = [job["id"] for job in served.node.submitted]
        assert body["ids"] == [ids[0], None, None, None, ids[1], None, None, None, None, ids[2]]
        assert body["ignored"] == ["prio"]
        assert body["refused"] == 7
        kind = "urn:jobqueue:{}".format
        assert [(error["index"], error["type"], error["status"], error.get("field")) for error in body["errors"]] == [
            (1, kind("invalid-job"), 400, "priority"),
            (2, kind("invalid-job"), 400, None),
            (3, kind("unprocessable-job"), 422, "kind"),
            (5, kind("unprocessable-job"), 422, "payload"),
            (6, kind("conflicting-job"), 409, "unique_key"),
            (7, kind("invalid-job"), 400, "payload"),
            (8, kind("payload-too-large"), 413, "payload"),
        ]
        assert all(error["title"] and error["detail"] for error in body["errors"])


@forms
async def test_all_or_nothing_is_the_default(form: str) -> None:
    async with serving(Picky()) as served:
        for query in ("", "partial=false"):
            assert problem(await send(served, [{}, {"priority": -1}], form, query), 400)["index"] == 1
            problem(await send(served, [{}, {"kind": "bad"}], form, query), 422)
        assert served.node.submitted == []


@forms
async def test_a_batch_without_a_fault_is_one_commit(form: str) -> None:
    node = Picky()
    async with serving(node) as served:
        response = await send(served, [{"kind": "a"}] * 50, form)
        assert response.status_code == 201
        assert response.json() == {"ids": [job["id"] for job in node.submitted], "errors": [], "refused": 0}
        assert (node.calls, len(node.submitted)) == (1, 50)


@forms
async def test_a_batch_without_a_good_job_is_refused_with_all_the_reasons(form: str) -> None:
    async with serving(Picky()) as served:
        for jobs, status in [
            ([{"kind": "bad"}, {"priority": -1}, {"kind": "busy"}], 422),
            ([{"priority": -1}, {"delay": -1}], 400),
        ]:
            body = problem(await send(served, jobs, form), status)
            assert body["type"] == "urn:jobqueue:no-job-taken"
            assert [error["index"] for error in body["errors"]] == list(range(len(jobs)))
            assert body["refused"] == len(jobs)
        assert served.node.submitted == []


async def test_errors_are_reported_up_to_a_bound() -> None:
    async with serving(Picky()) as served:
        for bad in ({"kind": "bad"}, {"priority": -1}):
            for faults in (MAX_FAULTS, MAX_FAULTS + 1):
                body = (await send(served, [*[bad] * faults, {}])).json()
                assert [error["index"] for error in body["errors"]] == list(range(MAX_FAULTS))
                assert body["refused"] == faults
                assert body["ids"][:-1] == [None] * faults


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        ("[]", "application/json", 400),
        ("", "application/json", 400),
        ("\n \n", NDJSON, 400),
        ("[{}, {]", "application/json", 400),
        ("[{}] []", "application/json", 400),
        ("5", "application/json", 400),
        ("[{},{},{},{}]", "application/json", 413),
        ("{}\n{}\n{}\n{}", NDJSON, 413),
        ('[{},{"payload":[1,2,3,4]}]', "application/json", 413),
        ('[{"priority":-1},{},{},{}]', "application/json", 413),
        ('{"priority":-1}\n{}\n{}\n{}', NDJSON, 413),
        ("{}", "text/plain", 415),
    ],
)
async def test_a_fault_of_the_batch_as_a_whole_rejects_the_batch(
    body: str, content_type: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_BATCH_JOBS", 3)
    monkeypatch.setattr(bodies, "MAX_ARRAY_OBJECTS", 3)
    async with serving() as served:
        problem(await served.post("/submit?partial=true", body, content_type), status)
        assert served.node.submitted == []


async def test_an_array_up_to_its_bounds_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BATCH_JOBS", 3)
    monkeypatch.setattr(bodies, "MAX_ARRAY_OBJECTS", 3)
    async with serving() as served:
        assert (await served.post("/submit?partial=true", '[{},{"payload":[1,2]},3]')).json()["refused"] == 1


async def test_one_job_is_taken_or_not() -> None:
    async with serving(Picky()) as served:
        assert (await served.post("/submit?partial=true", "{}")).json() == {"id": served.node.submitted[0]["id"]}
        assert "errors" not in problem(await served.post("/submit?partial=true", '{"kind": "bad"}'), 422)
        assert problem(await served.post("/submit?partial=maybe", "{}"), 400)["field"] == "partial"
        assert (
            problem(await served.post("/submit?partial=true", "[{}]", **{"Idempotency-Key": "a"}), 422)["field"]
            == "idempotency_key"
        )


async def test_existing_jobs_are_reported_by_their_index_in_the_batch() -> None:
    async with serving(Picky()) as served:
        old, bad, new = {"kind": "old", "idempotency_key": "k"}, {"kind": "bad"}, {"kind": "a"}
        response = await send(served, [bad, old, bad, new, old])
        assert (response.status_code, response.json()["existing"]) == (201, [1, 4])
        response = await send(served, [bad, old, {"delay": -1}, old])
        assert (response.status_code, response.json()["existing"]) == (200, [1, 3])


async def test_an_outage_half_way_tells_what_is_committed() -> None:
    async with serving(Picky()) as served:
        # "bad" makes the node halve the batch. The first half is committed before the database fails.
        for kind, name in [("lost", "database-unavailable"), ("in doubt", "in-doubt")]:
            served.node.submitted = []
            jobs = [{"kind": "a"}, {"kind": "b"}, {"kind": "bad"}, {"kind": kind}]
            response = await send(served, [{"delay": -1}, *jobs] if kind == "lost" else jobs)
            body = problem(response, 503)
            assert body["type"] == f"urn:jobqueue:{name}"
            assert "Retry-After" not in response.headers
            assert [bool(job_id) for job_id in body["ids"]][-4:] == [True, True, False, False]
            assert kinds_of(served.node) == ["a", "b"]
        response = await send(served, [{"kind": "lost"}, {"delay": -1}])
        assert "ids" not in problem(response, 503)
        assert response.headers["Retry-After"] == "1"


async def test_a_batch_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_batch, "PATIENCE", -1.0)
    async with serving(Picky()) as served:
        assert problem(await send(served, [{}, {"delay": -1}]), 503)["type"] == "urn:jobqueue:overloaded"
        assert served.node.submitted == []


@settings(max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(["a", "bad", "busy", "out of range"]), min_size=1, max_size=40),
    part_in_thread=st.sampled_from([2, 1000]),
    form=st.sampled_from(["array", "lines"]),
)
def test_exactly_the_good_ones_are_committed_once_and_in_order(kinds: list[str], part_in_thread: int, form: str) -> None:
    async def main() -> None:
        async with serving(Picky()) as served:
            jobs = [{"kind": kind, "payload": n, "priority": -1 if kind == "out of range" else 0} for n, kind in enumerate(kinds)]
            body = (await send(served, jobs, form)).json()
            good = [n for n, kind in enumerate(kinds) if kind == "a"]
            assert [job["payload"] for job in served.node.submitted] == good
            assert sorted(error["index"] for error in body["errors"]) == [n for n in range(len(kinds)) if n not in good]
            if good:
                assert [n for n, job_id in enumerate(body["ids"]) if job_id] == good
                assert [job_id for job_id in body["ids"] if job_id] == [job["id"] for job in served.node.submitted]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(partial_batch, "PART_IN_THREAD_JOBS", part_in_thread)
        trio.run(main)


# ------------------------------------------------------------------------------------------------------------- the database's word


def test_what_the_database_refuses_is_reported_and_the_rest_is_done(
    service: Callable[..., Service], database: Database, tmp_path: Path
) -> None:
    node = service("tests.handlers.plain", "--strict-kinds", "--queue", "default=4", env={"EFFECTS": str(tmp_path / "effects")})
    with httpx.Client(base_url=node.url, timeout=60) as client:
        taken = client.post("/submit", json={"kind": "echo", "payload": {"n": 0}, "idempotency_key": "k"}).json()["id"]
        jobs = [
            {"kind": "echo", "payload": {"n": 1}},
            {"kind": "echo", "payload": {"n": 2}, "idempotency_key": "k"},
            {"kind": "echo", "payload": {"n": 0}, "idempotency_key": "k"},
            {"kind": "nobody's"},
            {"kind": "echo", "expires_at": "2020-01-01T00:00:00Z"},
            {"kind": "echo", "payload": {"n": 3}, "unique_key": "u", "delay": 3600},
            {"kind": "echo", "payload": {"n": 4}, "unique_key": "u"},
            {"kind": "echo", "payload": {"n": 5}, "group": "g\0"},
            {"kind": "echo", "payload": {"n": 6}},
        ]
        response = client.post("/submit?partial=true", json=jobs)
        body = response.json()
        assert response.status_code == 201, body
        assert [(error["index"], error["status"], error["field"]) for error in body["errors"]] == [
            (1, 422, "idempotency_key"),
            (3, 422, "kind"),
            (4, 422, "expires_at"),
            (7, 422, "group"),
        ]
        assert (body["ids"][2], body["existing"]) == (taken, [2, 6])
        assert body["ids"][5] == body["ids"][6]
        assert [n for n, job_id in enumerate(body["ids"]) if job_id is None] == [1, 3, 4, 7]
        for place in (0, 2, 8):
            job = client.get(f"/jobs/{body['ids'][place]}?wait=20").json()
            assert (job["state"], job["result"]) == ("succeeded", jobs[place]["payload"])
        assert database.value("SELECT count(*) FROM jobqueue.jobs") == 4
