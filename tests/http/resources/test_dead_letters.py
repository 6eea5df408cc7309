"""Dead letters over HTTP: list them in pages, redrive or delete them by filter. Also the retention of ended jobs."""

from __future__ import annotations

from datetime import datetime, timedelta
from urllib.parse import parse_qsl, quote

import httpx
import pytest
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import RequestEntityTooLarge

from jobqueue.errors import InvalidFilter, InvalidQuery
from jobqueue.http import limits
from jobqueue.http.api import queries
from jobqueue.http.resources import dead_letters, filters
from jobqueue.job import MAX_NAME_LENGTH
from jobqueue.job_filters import DeadFilter
from tests.support.postgres import Database
from tests.support.service import Start, pages, submit
from tests.support.storage import BURY
from tests.support.waiting import wait_for

# ---------------------------------------------------------------------------------------------------------------------- the list


def test_dead_letters_are_listed_by_pages_and_filters(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    ids = submit(client, node, [{"kind": "fail", "max_retries": 0, "payload": {"n": n}} for n in range(5)])
    other = submit(client, node, {"kind": "no such", "max_retries": 0, "group": "tenant-42"})
    wait_for(lambda: database.states() == {"dead": 6}, "all are dead")
    shown = pages(client, f"{node.url}/dead")
    assert {job["id"] for job in shown} == {*ids, other}
    assert [job["died_at"] for job in shown] == sorted((job["died_at"] for job in shown), reverse=True)
    assert all("payload" not in job for job in shown)
    died_at = next(job["died_at"] for job in shown if job["id"] == other)
    before = quote((datetime.fromisoformat(died_at) + timedelta(seconds=1)).isoformat())
    for query, found in [
        ("&kind=fail", set(ids)),
        ("&kind=no%20such", {other}),
        ("&reason=no%20handler", {other}),
        ("&group=tenant-42&queue=default", {other}),
        ("&group=tenant-43", set()),
        (f"&group=tenant-42&died_before={before}", {other}),
        (f"&group=tenant-42&died_after={before}", set()),
    ]:
        assert {job["id"] for job in pages(client, f"{node.url}/dead", query)} == found
    assert next(job["error"] for job in shown if job["id"] == ids[0]) == "RuntimeError: as asked"
    inspected = client.get(f"{node.url}/jobs/{ids[3]}").json()
    assert (inspected["payload"], inspected["errors"][0]["error"]) == ({"n": 3}, "RuntimeError: as asked")


def test_dead_letters_are_grouped_by_cause_and_a_group_is_rerun_at_once(
    start: Start, client: httpx.Client, database: Database
) -> None:
    node = start("--no-workers")
    for kind, jobs in (("mail", 3), ("letter", 2)):
        database.rows(BURY, "default", kind, jobs)
    database.rows(
        "UPDATE jobqueue_internal.dead_jobs SET reason = 'order ' || attempt || ' of ''a b'' is late' WHERE kind = 'mail'"
    )
    found = client.get(f"{node.url}/dead/causes").json()
    assert [(group["kind"], group["cause"], group["jobs"]) for group in found["causes"]] == [
        ("mail", "order # of '#' is late", 3),
        ("letter", "no luck", 2),
    ]
    assert not found["more"]
    one = client.get(f"{node.url}/dead/causes", params={"limit": 1}).json()
    assert one == {"causes": found["causes"][:1], "more": True}
    assert (
        client.get(f"{node.url}/dead/causes", params={"kind": "letter", "queue": "default"}).json()["causes"] == found["causes"][1:]
    )
    assert client.get(f"{node.url}/dead/causes", params={"queue": "other"}).json() == {"causes": [], "more": False}
    assert client.get(f"{node.url}/dead/causes", params={"cause": "no luck"}).json()["causes"] == found["causes"][1:]
    group = {name: found["causes"][0][name] for name in ("queue", "kind", "cause")}
    page = client.get(f"{node.url}/dead", params=group).json()["jobs"]
    assert [job["cause"] for job in page] == [group["cause"]] * 3
    assert page[0]["id"] == found["causes"][0]["example"]
    assert client.post(f"{node.url}/dead/retry?dry_run=true", json=group).json() == {"jobs": 3}
    assert client.post(f"{node.url}/dead/retry", json=group).json() == {"jobs": 3}
    assert client.post(f"{node.url}/dead/discard", json={"cause": "no luck"}).json() == {"jobs": 2}
    assert database.states() == {"pending": 3}


def test_a_page_starts_where_the_last_one_ended_despite_changes(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--no-workers")
    database.rows(BURY, "default", "mail", 10)
    first = client.get(f"{node.url}/dead?limit=4").json()
    for job in first["jobs"]:
        assert client.delete(f"{node.url}/jobs/{job['id']}").status_code == 200
    database.rows(BURY.replace("now() - n *", "now() + n *"), "default", "mail", 5)
    rest = pages(client, f"{node.url}/dead", f"&after={first['next']}", limit=1000)
    assert len(rest) == 6
    assert not {job["id"] for job in rest} & {job["id"] for job in first["jobs"]}


def asked(query: str) -> dead_letters.DeadQuery:
    read = queries.read(MultiDict(parse_qsl(query, keep_blank_values=True)), dead_letters.DeadQuery)
    dead_letters.place(read.after)
    return read


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        (f"limit={filters.MAX_PAGE + 1}", "limit"),
        ("limit=-1", "limit"),
        ("limit=%D9%A3", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("after=yesterday", "after"),
        ("after=999999999999999999-01a209ba-188d-7241-b752-38e62b10c811", "after"),
        ("after=1-01a209ba-188d-7241-b752-38e62b10c8111", "after"),
        ("colour=red", "colour"),
        ("queue=", "queue"),
        ("queue=" + "x" * (MAX_NAME_LENGTH + 1), "queue"),
        ("kind=%00", "kind"),
        ("died_before=2030-01-31T08:00:00", "died_before"),
        ("all=true", "all"),
        ("kind=a&kind=b", "kind"),
    ],
)
def test_an_invalid_list_query_is_rejected_with_its_field(query: str, field: str) -> None:
    with pytest.raises(InvalidQuery) as refused:
        asked(query)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", None),
        (b"[]", None),
        (b"nonsense", None),
        (b"[" * 16_000, None),
        (b"{}", "all"),
        (b'{"queue": null}', "all"),
        (b'{"all": false}', "all"),
        (b'{"all": 1}', "all"),
        (b'{"queue": 5}', "queue"),
        (b'{"queue": "mail", "limit": 5}', "limit"),
        (b'{"queue": "mail", "queue": "mail"}', "queue"),
        (b'{"reason": ""}', "reason"),
        (b'{"reason": "\\u0000"}', "reason"),
        (b'{"died_after": "yesterday"}', "died_after"),
        (b'{"' + b"x" * 9999 + b'": 1}', "x" * 64),
    ],
)
def test_an_invalid_filter_is_rejected_with_its_field(body: bytes, field: str | None) -> None:
    with pytest.raises(InvalidFilter) as refused:
        filters.of_body(dead_letters.BODY.read("application/json", body), DeadFilter)
    assert refused.value.field == field


def test_a_filter_over_the_size_limit_is_not_parsed() -> None:
    with pytest.raises(RequestEntityTooLarge):
        dead_letters.BODY.read("application/json", b"[" * (limits.MAX_FILTER_BYTES + 1))


def test_limits_are_accepted_at_the_bound() -> None:
    assert asked(f"limit={filters.MAX_PAGE}").limit == filters.MAX_PAGE
    assert asked(f"limit=1&reason={'x' * MAX_NAME_LENGTH}").reason == "x" * MAX_NAME_LENGTH


# --------------------------------------------------------------------------------------------------------- run again, or delete


def test_a_redrive_on_one_node_wakes_the_workers_of_another(start: Start, client: httpx.Client, database: Database) -> None:
    worker, other = start("--poll-interval", "60"), start("--no-workers")
    for queue, kind, count in (("default", "echo", 2500), ("default", "fail", 3), ("elsewhere", "echo", 2)):
        database.rows(BURY, queue, kind, count)
    answer = client.post(f"{other.url}/dead/retry", json={"kind": "echo", "queue": "default"})
    assert (answer.status_code, answer.json()) == (200, {"jobs": 2500})
    wait_for(lambda: "succeeded" in database.states(), "a notification wakes the worker before it polls", 50)
    wait_for(lambda: database.states() == {"succeeded": 2500, "dead": 5}, "all jobs succeed")
    assert client.post(f"{worker.url}/dead/discard", json={"queue": "elsewhere"}).json() == {"jobs": 2}
    assert client.post(f"{worker.url}/dead/discard", json={"queue": "elsewhere"}).json() == {"jobs": 0}
    assert client.post(f"{worker.url}/dead/discard", json={"all": True}).json() == {"jobs": 3}
    assert database.states() == {"succeeded": 2500}


def test_a_redrive_reruns_jobs_that_die_again_at_once_only_once(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    ids = submit(client, node, [{"kind": "fail", "max_retries": 0}] * 1500)
    wait_for(lambda: database.states() == {"dead": 1500}, "all are dead")
    assert client.post(f"{node.url}/dead/retry", json={"all": True}).json() == {"jobs": 1500}
    wait_for(lambda: database.states() == {"dead": 1500}, "all are dead again")
    assert database.rows("SELECT DISTINCT attempt, claims, jsonb_array_length(errors) FROM jobqueue_internal.dead_jobs") == [
        (1, 2, 2)
    ]
    depths = [line for line in client.get(f"{node.url}/metrics").text.splitlines() if 'state="dead"' in line]
    assert any(line.startswith("jobqueue_queue_depth") and line.endswith(f" {float(len(ids))}") for line in depths)
    assert any(line.startswith("jobqueue_queue_oldest_seconds") for line in depths)


def test_a_rejected_filter_changes_no_job(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--no-workers")
    database.rows(BURY, "default", "mail", 3)
    for verb in ("retry", "discard"):
        for body, field in (({}, "all"), ({"color": "red"}, "color"), ({"queue": "default", "kinds": "mail"}, "kinds")):
            answer = client.post(f"{node.url}/dead/{verb}", json=body)
            assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
            assert (answer.json()["type"], answer.json()["field"]) == ("urn:jobqueue:invalid-filter", field)
        assert client.post(f"{node.url}/dead/{verb}", content=b'{"all": true}').status_code == 415
        assert client.get(f"{node.url}/dead/{verb}").status_code == 405
    assert client.get(f"{node.url}/dead?color=red").json()["field"] == "color"
    assert database.states() == {"dead": 3}


# --------------------------------------------------------------------------------------------------------------------- retention


def test_the_setting_of_the_node_decides_whether_a_cancelled_job_is_kept(
    start: Start, client: httpx.Client, database: Database
) -> None:
    keeping, forgetting = start("--no-workers"), start("--no-workers", "--keep-cancelled", "0")
    kept, gone, later = submit(client, keeping, [{}, {}, {"delay": 60}])
    assert client.post(f"{keeping.url}/jobs/{kept}/cancel").json()["state"] == "cancelled"
    for job_id in (gone, later):
        answer = client.post(f"{forgetting.url}/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()) == (200, {"id": job_id, "state": "cancelled"})
        assert client.post(f"{forgetting.url}/jobs/{job_id}/cancel").status_code == 404
    assert client.post(f"{forgetting.url}/jobs/{kept}/cancel").status_code == 409
    assert database.states() == {"cancelled": 1}


def test_old_dead_letters_are_deleted_when_a_node_starts(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--no-workers")
    database.rows(BURY.replace("now() - n *", "now() - interval '2 days' - n *"), "default", "mail", 2500)
    database.rows(BURY, "default", "mail", 10)
    start("--no-workers", "--keep-dead", "86400")
    wait_for(lambda: database.states() == {"dead": 10}, "the old dead letters are deleted")
    assert client.get(f"{node.url}/health/ready").status_code == 200
