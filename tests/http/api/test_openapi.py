"""The API's description is valid OpenAPI 3.1, covers exactly the existing routes, and matches the service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from quart import Response

from jobqueue import tokens
from jobqueue.errors import DatabaseUnavailable
from jobqueue.http import app as api
from jobqueue.http.access.auth import HEALTH, Authorizer
from jobqueue.http.api import models, openapi
from jobqueue.http.api.routes import Route
from jobqueue.http.resources import dashboard
from jobqueue.http.responses import problems
from tests.support import ROOT
from tests.support.http import RecordingNode, serving
from tests.support.service import Service

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef"

EXAMPLES = int(os.environ.get("JOBQUEUE_TEST_EXAMPLES", "4"))
"""How many random requests schemathesis generates for each route, in addition to those for each bound and type."""


def table() -> list[Route]:
    return api.table(RecordingNode())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    described: dict[str, Any] = json.loads(json.dumps(openapi.document(table(), HEALTH)))
    return described


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): one for path, item in document["paths"].items() for method, one in item.items()}


# ------------------------------------------------------------------------------------------------------------- the document itself


def test_it_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_each_route_of_the_app_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    app = api.build(RecordingNode(), Authorizer(None))  # type: ignore[arg-type]
    served = {
        (method, re.sub(r"<(\w+)>", r"{\1}", rule.rule))
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    page = {(route.method, route.path) for route in dashboard.routes()}
    assert served - page == set(operations(document))
    assert page < served, "for browsers"


def test_a_new_row_of_the_table_is_described_by_itself() -> None:
    async def view(job_id: str) -> Response:
        raise NotImplementedError

    row = Route(method="GET", path="/new/{job_id}", needs="admin", summary="A new one", view=view)
    [one] = openapi.document([row], HEALTH)["paths"]["/new/{job_id}"].values()
    assert (one["summary"], one["x-roles"], [parameter["name"] for parameter in one["parameters"]]) == (
        "A new one",
        ["admin"],
        ["job_id"],
    )
    assert list(one["responses"]) == ["200", "400", "401", "403", "404", "406", "415", "431", "503"]


def test_the_roles_of_each_operation(document: dict[str, Any]) -> None:
    roles = {
        ("POST", "/submit"): ["submit", "admin"],
        ("GET", "/jobs/{job_id}"): ["submit", "read", "admin"],
        ("GET", "/metrics"): ["read", "admin"],
        ("GET", "/queues"): ["read", "admin"],
        ("PUT", "/queues/{name}"): ["admin"],
        ("GET", "/health"): [],
    }
    assert {key: operations(document)[key]["x-roles"] for key in roles} == roles
    for row in table():
        one = operations(document)[row.method, row.path]
        assert one["security"] == ([] if row.needs in HEALTH else [{"bearer": []}])
        assert ("401" in one["responses"]) == (row.needs not in HEALTH)


def test_each_field_and_parameter_says_what_it_is(document: dict[str, Any]) -> None:
    """Fields of requests need a description. In responses, the name may be enough."""
    asked = {"NewJob", "QueueSettings", "ScheduleSettings", "DeadFilter", "CancelFilter", "Change"}
    schemas = document["components"]["schemas"]
    assert asked <= schemas.keys()
    silent = [
        (name, field) for name in asked for field, schema in schemas[name]["properties"].items() if "escription" not in str(schema)
    ]
    silent += [
        (path, one["name"]) for path, row in operations(document).items() for one in row["parameters"] if "description" not in one
    ]
    assert silent == []
    assert (
        schemas["NewJob"]["properties"]["priority"]["description"]
        == "jobs with a higher priority run first; an integer from 0 to 1000000"
    )


def test_a_submission_has_its_three_forms(document: dict[str, Any]) -> None:
    submit = operations(document)["POST", "/submit"]
    content = submit["requestBody"]["content"]
    one, many = content["application/json"]["schema"]["anyOf"]
    assert (one["$ref"], many["items"]["$ref"], many["maxItems"]) == (*["#/components/schemas/NewJob"] * 2, 100_000)
    assert content["application/x-ndjson"]["schema"] == many
    assert [parameter["name"] for parameter in submit["parameters"]] == ["partial", "Idempotency-Key", "traceparent", "tracestate"]


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("NewJob", {}, True),
        ("NewJob", {"run_at": "2030-01-31T08:00:00Z", "delay": None}, True),
        ("NewJob", {"run_at": "2030-01-31T08:00:00Z", "delay": 1}, False),
        ("NewJob", {"priority": -1}, False),
        ("NewJob", {"kind": "a\0"}, False),
        ("NewJob", {"maxRetries": 3, "more": 1}, True),
        ("QueueSettings", {"rate": 1, "more": 1}, False),
        ("Change", {"run_at": "2030-01-31T08:00:00Z", "delay": 1}, False),
        ("ScheduleSettings", {}, False),
        ("ScheduleSettings", {"cron": "* * * * *"}, True),
    ],
)
def test_its_schemas_mean_what_the_service_does(document: dict[str, Any], name: str, value: Any, fits: bool) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    assert jsonschema.Draft202012Validator(schema).is_valid(value) == fits


def test_an_empty_filter_is_none(document: dict[str, Any]) -> None:
    schema = operations(document)["POST", "/dead/retry"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    assert [validator.is_valid(filter_) for filter_ in ({}, {"queue": None}, {"queue": "a"}, {"all": True})] == [
        False,
        False,
        True,
        True,
    ]


def test_problems_are_told_with_their_types(document: dict[str, Any]) -> None:
    told = document["components"]["responses"]
    assert "urn:jobqueue:missing" in told["NotFound"]["description"]
    assert "urn:jobqueue:database-unavailable" in told["ServiceUnavailable"]["description"]
    assert problems.answer(DatabaseUnavailable("x")).headers.keys() >= told["ServiceUnavailable"]["headers"].keys()
    assert {"Accept-Post", "Accept-Patch"} <= told["UnsupportedMediaType"]["headers"].keys()


async def test_it_is_served_once_made_and_to_readers_only() -> None:
    async with serving(authorizer=Authorizer([tokens.parse(f"read:{TOKEN}")])) as served:
        assert (await served.http.get("/openapi.json")).status_code == 401
        headers = {"Authorization": f"Bearer {TOKEN}"}
        first = await served.http.get("/openapi.json", headers=headers)
        assert (first.status_code, first.headers["content-type"]) == (200, "application/json")
        assert first.json()["openapi"] == "3.1.0"
        again = await served.http.get("/openapi.json", headers={**headers, "If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


# ------------------------------------------------------------------------------------------------------------- the running service


@pytest.fixture
def node(service: Callable[..., Service]) -> Iterator[tuple[httpx.Client, list[str]]]:
    """A service with jobs in the usual states, and a client for it."""
    running = service("examples.quickstart", "--token", f"admin:{TOKEN}")
    with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
        dead = {"kind": "nobody's", "max_retries": 0}
        jobs = [{}, dead, dead, {"queue": "unworked", "group": "a"}, {"delay": 3_600}, {"kind": "flaky", "max_retries": 100}]
        ids = client.post("/submit", json=jobs).raise_for_status().json()["ids"]
        for name in ("nightly", "a%2Fb"):
            client.put(f"/schedules/{name}", json={"cron": "0 3 * * *"}).raise_for_status()
        client.put("/queues/default", json={"rate": 1_000_000}).raise_for_status()
        for ended in ids[:3]:
            assert client.get(f"/jobs/{ended}?wait=15").json()["ended_at"] is not None
        yield client, ids


def test_answers_hold_what_is_described_and_no_more(node: tuple[httpx.Client, list[str]], document: dict[str, Any]) -> None:
    client, ids = node
    steps = [
        ("POST", "/submit", {}),
        ("POST", "/submit", [{"more": 1}, {"idempotency_key": "a"}]),
        *[("GET", f"/jobs/{job_id}", None) for job_id in ids],
        ("GET", "/jobs", None),
        ("GET", "/jobs?state=dead,pending&limit=1", None),
        ("POST", "/submit?partial=true", [{}, {"priority": -1}]),
        ("PATCH", f"/jobs/{ids[4]}", {"priority": 5}),
        ("POST", "/jobs/cancel?dry_run=true", {"state": "scheduled"}),
        ("GET", "/dead", None),
        ("GET", "/dead/causes", None),
        ("GET", "/jobs?text=no%20handler", None),
        ("POST", f"/jobs/{ids[3]}/cancel", None),
        ("POST", f"/jobs/{ids[1]}/retry", None),
        ("DELETE", f"/jobs/{ids[2]}", None),
        ("POST", "/dead/retry", {"queue": "a"}),
        ("POST", "/dead/discard", {"queue": "a"}),
        ("GET", "/queues", None),
        ("GET", "/queues/default", None),
        ("PUT", "/queues/mail", {"rate": 5}),
        ("POST", "/queues/mail/pause", None),
        ("POST", "/queues/mail/resume", None),
        ("GET", "/schedules", None),
        ("PUT", "/schedules/new", {"cron": "0 3 * * *"}),
        ("GET", "/schedules/a%2Fb", None),
        ("POST", "/schedules/nightly/pause", None),
        ("POST", "/schedules/nightly/resume", None),
        ("POST", "/schedules/nightly/trigger", None),
        ("DELETE", "/schedules/nightly", None),
        ("GET", "/health", None),
        ("GET", "/health/ready", None),
        ("GET", "/nodes", None),
        ("GET", "/tasks", None),
        ("GET", "/history?seconds=3600", None),
    ]
    seen = set()
    for method, path, body in steps:
        answer = client.request(method, path, json=body) if body is not None else client.request(method, path)
        template = next(each for each in document["paths"] if re.fullmatch(re.sub(r"{\w+}", "[^/]+", each), path.partition("?")[0]))
        seen.add((method, template))
        assert answer.is_success, (method, path, answer.text)
        one = operations(document)[method, template]["responses"][str(answer.status_code)]
        schema = closed(one["content"]["application/json"]["schema"])
        components = {"schemas": {name: closed(inner) for name, inner in document["components"]["schemas"].items()}}
        jsonschema.Draft202012Validator({**schema, "components": components}).validate(answer.json())
    events = {("GET", "/jobs/{job_id}/events"), ("GET", "/overview/events")}
    other_types = {("GET", "/metrics"), ("GET", "/openapi.json")} | events
    assert seen == set(operations(document)) - other_types, "an answer is not looked at here"


def closed(schema: Any) -> Any:
    """Make every object of a schema reject additional properties."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(inner) for name, inner in schema.items()}
    return {**made, "additionalProperties": False} if isinstance(schema.get("properties"), dict) else made


def test_events_are_those_that_are_described(node: tuple[httpx.Client, list[str]]) -> None:
    client, ids = node
    told = [
        dict(line.split(": ", 1) for line in event.split("\n"))
        for event in client.get(f"/jobs/{ids[0]}/events").text.split("\n\n")[:-1]
    ]
    assert {tuple(event) for event in told} == {models.Event.__struct_fields__}
    assert told[-1]["event"] == "end"


def test_events_of_the_overview_hold_what_is_described(node: tuple[httpx.Client, list[str]]) -> None:
    client, _ = node
    described = {"overview": models.Overview, "history": models.History, "trouble": models.Troubles}
    schemas, components = msgspec.json.schema_components(described.values(), ref_template="#/components/schemas/{name}")
    shaped = dict(zip(described, schemas, strict=True))
    held = {"schemas": {name: closed(inner) for name, inner in components.items()}}
    told: dict[str, Any] = {}
    with client.stream("GET", "/overview/events?seconds=900") as answer:
        lines = answer.iter_lines()
        # The first slot ends within ten seconds and is shown a little later.
        while not told.get("history", {}).get("points"):
            name, data, end = (next(lines) for _ in range(3))
            assert (name.partition(": ")[0], data.partition(": ")[0], end) == ("event", "data", "")
            name, data = name.partition(": ")[2], json.loads(data.partition(": ")[2])
            jsonschema.Draft202012Validator({**shaped[name], "components": held}).validate(data)
            told[name] = data
    assert told["overview"]["node"] == client.get("/nodes").json()[0]["id"]


CONFIGURATION = """
hooks = "tests.support.schemathesis_hooks"
headers = {{ Authorization = "Bearer {token}" }}
request-timeout = 60.0

# Use jobs and names that exist, not only random ones.
[dictionaries]
jobs = {{ values = {ids} }}
names = {{ values = ["nightly", "a/b", "default"] }}

[parameters]
"path.job_id" = {{ dictionary = "jobs", probability = 0.5 }}
"path.name" = {{ dictionary = "names", probability = 0.5 }}

# A job that waits forever has no last event.
[[operations]]
include-operation-id = "get_jobs_job_id_events"
max-stream-events = 1

# The overview has no last event either.
[[operations]]
include-operation-id = "get_overview_events"
max-stream-events = 2

# This route waits as long as the request says.
[[operations]]
include-operation-id = "get_jobs_job_id"
parameters = {{ "query.wait" = 0.1 }}

# 422 rejects requests that match the description but cannot work: a cron expression without a tick, U+0000 in a payload,
# an expiry in the past.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "401", "403", "404", "409", "422"]
"""


@pytest.mark.long
def test_schemathesis_finds_nothing(node: tuple[httpx.Client, list[str]], tmp_path: Path) -> None:
    client, ids = node
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION.format(token=TOKEN, ids=json.dumps(ids)))
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(configuration)),
        *("run", str(client.base_url.join("/openapi.json")), "--checks", "all", "--phases", "examples,coverage,fuzzing,stateful"),
        *("--max-examples", str(EXAMPLES), "--continue-on-failure", "--no-color", "--generation-database", "none"),
    ]
    ran = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    sys.stdout.write(ran.stdout)  # shown with -rP
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"Tested: {len(table()) - 1}\n" in ran.stdout, "all but the description itself"
    assert client.get("/health/ready").status_code == 200
