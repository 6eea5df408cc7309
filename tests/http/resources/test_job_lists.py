"""List, change and cancel jobs by filter over HTTP, and show queues and nodes, with a real service."""

from __future__ import annotations

from typing import Any, get_args
from urllib.parse import parse_qsl, quote

import httpx
import pytest
from werkzeug.datastructures import MultiDict

from jobqueue.errors import InvalidFilter, InvalidQuery
from jobqueue.http.api import queries
from jobqueue.http.resources import filters, job_lists
from jobqueue.job import MAX_NAME_LENGTH, JobState
from jobqueue.job_filters import JobFilter
from tests.support.postgres import Database
from tests.support.service import Start, pages, submit
from tests.support.waiting import wait_for


def test_jobs_are_listed_by_pages_and_filters(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--no-workers")
    expires_at = "2100-01-31T08:00:00+00:00"
    ids = submit(
        client,
        node,
        [
            {"kind": "mail", "payload": {"to": "a"}},
            {"kind": "mail", "queue": "other", "group": "tenant-42", "expires_at": expires_at},
            {"delay": 60, "priority": 3},
            {"concurrency_key": "account 7"},
        ],
    )
    assert client.post(f"{node.url}/jobs/{ids[0]}/cancel").status_code == 200
    shown = pages(client, f"{node.url}/jobs")
    assert [job["id"] for job in shown] == sorted(ids, reverse=True)
    assert not {"payload", "result", "errors", "checkpoint"} & shown[0].keys()
    for query, found in [
        ("&kind=mail", {0, 1}),
        ("&queue=other", {1}),
        ("&group=tenant-42&state=pending", {1}),
        ("&concurrency_key=account%207", {3}),
        ("&state=scheduled", {2}),
        ("&state=scheduled,cancelled", {0, 2}),
        ("&created_before=2020-01-31T08:00:00Z", set()),
        ("&created_after=2020-01-31T08:00:00%2B01:00", {0, 1, 2, 3}),
    ]:
        assert {job["id"] for job in pages(client, f"{node.url}/jobs", query)} == {ids[place] for place in found}
    [job] = pages(client, f"{node.url}/jobs", "&queue=other")
    assert job["options"] == {"group": "tenant-42", "expires_at": expires_at}
    database.rows("UPDATE jobqueue_internal.pending_jobs SET created_at = created_at - interval '1 hour'")
    assert pages(client, f"{node.url}/jobs", f"&queue=other&created_after={quote(job['created_at'])}") == []


def query_of(text: str) -> job_lists.JobsQuery:
    return queries.read(MultiDict(parse_qsl(text, keep_blank_values=True)), job_lists.JobsQuery)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        (f"limit={filters.MAX_PAGE + 1}", "limit"),
        ("after=yesterday", "after"),
        ("after=", "after"),
        ("state=", "state"),
        ("state=over", "state"),
        ("state=pending,", "state"),
        ("state=pending%20", "state"),
        ("state=pending&state=dead", "state"),
        ("colour=red", "colour"),
        ("queue=", "queue"),
        ("concurrency_key=" + "x" * (MAX_NAME_LENGTH + 1), "concurrency_key"),
        ("kind=%00", "kind"),
        ("created_before=2030-01-31T08:00:00", "created_before"),
        ("created_after=yesterday", "created_after"),
        ("all=true", "all"),
    ],
)
def test_a_list_that_cannot_be_is_refused_by_the_name_of_the_field(query: str, field: str) -> None:
    with pytest.raises(InvalidQuery) as refused:
        query_of(query)
    assert refused.value.field == field


def test_a_list_may_be_as_long_as_its_bound_and_of_all_states() -> None:
    states = get_args(JobState)
    query = query_of(f"limit={filters.MAX_PAGE}&state={','.join(states)}&group={'x' * MAX_NAME_LENGTH}")
    assert filters.of_query(query, JobFilter).state == [*states]
    assert filters.of_query(query_of("limit=1"), JobFilter) == JobFilter(all=True)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"[]", None),
        (b"{}", "all"),
        (b'{"queue": null}', "all"),
        (b'{"all": false}', "all"),
        (b'{"queue": 5}', "queue"),
        (b'{"queue": "mail", "limit": 5}', "limit"),
        (b'{"state": "dead"}', "state"),
        (b'{"state": []}', "state"),
        (b'{"state": ["pending", "succeeded"]}', "state"),
        (b'{"state": "pending,blocked"}', "state"),
        (b'{"created_after": "yesterday"}', "created_after"),
    ],
)
def test_a_filter_that_cannot_be_is_refused_by_the_name_of_the_field(body: bytes, field: str | None) -> None:
    with pytest.raises(InvalidFilter) as refused:
        filters.of_body(job_lists.BODY.read("application/json", body), job_lists.CancelFilter)
    assert refused.value.field == field


def test_jobs_are_cancelled_by_filter_and_counted_before(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--no-workers")
    submit(client, node, [{"kind": "mail"} for _ in range(1500)])
    submit(client, node, [{"kind": "other", "delay": 60}, {"kind": "other"}])
    url = f"{node.url}/jobs/cancel"
    assert client.post(f"{url}?dry_run=true", json={"kind": "mail"}).json() == {"jobs": 1500}
    assert database.states() == {"pending": 1501, "scheduled": 1}
    assert client.post(url, json={"kind": "mail", "state": ["pending"]}).json() == {"jobs": 1500}
    assert client.post(f"{url}?dry_run=false", json={"state": "scheduled"}).json() == {"jobs": 1}
    assert client.post(f"{url}?dry_run=maybe", json={"all": True}).json()["field"] == "dry_run"
    assert database.states() == {"cancelled": 1501, "pending": 1}
    assert client.post(url, content=b'{"all": true}').status_code == 415
    assert client.post(url, json={"all": True}).json() == {"jobs": 1}


def test_running_jobs_are_cancelled_by_filter_where_they_run(start: Start, client: httpx.Client, database: Database) -> None:
    nodes = [start("--queue", "default=2") for _ in range(2)]
    submit(client, nodes[0], [{"kind": "sleep", "payload": {"seconds": 600}} for _ in range(6)])
    wait_for(lambda: database.states() == {"inflight": 4, "pending": 2}, "all workers are busy")
    assert client.post(f"{nodes[1].url}/jobs/cancel", json={"kind": "sleep"}).json() == {"jobs": 6}
    wait_for(lambda: database.states() == {"cancelled": 6}, "all have ended")


def test_dead_letters_are_counted_before_they_are_run_again_or_deleted(
    start: Start, client: httpx.Client, database: Database
) -> None:
    node = start()
    submit(client, node, [{"kind": "fail", "max_retries": 0} for _ in range(3)])
    wait_for(lambda: database.states() == {"dead": 3}, "all are dead")
    for verb in ("retry", "discard"):
        assert client.post(f"{node.url}/dead/{verb}?dry_run=true", json={"kind": "fail"}).json() == {"jobs": 3}
        assert database.states() == {"dead": 3}
    assert client.post(f"{node.url}/dead/discard?dry_run=false", json={"kind": "fail"}).json() == {"jobs": 3}


def test_a_job_that_waits_is_changed(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    job_id = submit(client, node, {"kind": "echo", "delay": 3600})
    url = f"{node.url}/jobs/{job_id}"
    changed = client.patch(url, json={"priority": 7, "run_at": "2100-01-31T08:00:00+01:00"})
    assert (changed.status_code, changed.json()["priority"], changed.json()["run_at"]) == (200, 7, "2100-01-31T07:00:00+00:00")
    assert client.patch(url, json={"delay": 0}).status_code == 200
    wait_for(lambda: database.states() == {"succeeded": 1}, "it has run at once")
    refused = client.patch(url, json={"priority": 1})
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")
    assert "succeeded" in refused.json()["detail"]


def test_queues_and_nodes_show_what_is_there_and_what_was_done(start: Start, client: httpx.Client) -> None:
    node = start("--queue", "default=2", "--queue", "mail=1")
    submit(client, node, [{"kind": "echo", "queue": "mail"}] * 12 + [{"kind": "fail", "max_retries": 0, "queue": "mail"}] * 6)
    submit(client, node, [{"kind": "sleep", "payload": {"seconds": 600}}, {"queue": "nobody's/own", "delay": 60}])

    def queue(name: str) -> dict[str, Any]:
        shown: dict[str, Any] = client.get(f"{node.url}/queues/{name}").json()
        return shown

    done, nothing = {"completed": 0.2, "failed": 0.1}, {"completed": 0, "failed": 0}
    # Rates arrive with a heartbeat, and depths are cached for a while.
    wait_for(lambda: queue("mail")["throughput"] == done, "the node reports its rates")
    [shown] = client.get(f"{node.url}/nodes").json()
    assert (shown["throughput"], shown["queues"]) == (done, {"default": 2, "mail": 1})
    wait_for(
        lambda: queue("mail")["depth"] == {"dead": 6} and queue("default")["depth"] == {"inflight": 1}, "the depths are counted"
    )
    mail, default, nobodys = queue("mail"), queue("default"), queue("nobody's%2Fown")
    assert mail["oldest"].keys() == {"dead"}
    assert 0 <= mail["oldest"]["dead"] < 600
    assert default["throughput"] == nothing
    assert nobodys.keys() == default.keys()
    assert (nobodys["depth"], nobodys["oldest"], nobodys["created_at"]) == ({"scheduled": 1}, {"scheduled": 0}, None)
    assert [queue["name"] for queue in client.get(f"{node.url}/queues").json()] == ["default", "mail", "nobody's/own"]
    [shown] = client.get(f"{node.url}/nodes").json()
    assert [(row["queue"], row["kind"], row["jobs"]) for row in shown["running"]] == [("default", "sleep", 1)]
    for name, status in (("unknown", 404), ("x" * 201, 400), ("%00", 400)):
        assert client.get(f"{node.url}/queues/{name}").status_code == status
