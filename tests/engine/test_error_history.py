"""The error history over HTTP: for each failed attempt its time, node, duration, error, and traceback."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobqueue.engine.executor import MAX_ERROR_LENGTH, MAX_TRACEBACK_LENGTH
from tests.support.postgres import Database
from tests.support.service import Service, Start, submit
from tests.support.waiting import wait_for


@pytest.fixture
def start(service: Start, tmp_path: Path) -> Start:
    def start(*arguments: str) -> Service:
        return service("tests.handlers.hooks", *arguments, env={"EFFECTS": str(tmp_path / "effects")})

    return start


def node_id(client: httpx.Client, node: Service) -> str:
    [line] = [line for line in client.get(f"{node.url}/metrics").text.splitlines() if line.startswith("jobqueue_node_info{")]
    return line.partition('node="')[2].partition('"')[0]


def look(client: httpx.Client, node: Service, job_id: str) -> Any:
    return client.get(f"{node.url}/jobs/{job_id}").json()


@pytest.mark.parametrize(
    ("kind", "error", "least"),
    [
        ("fail", "RuntimeError: attempt 1 as asked", 0),
        ("time-out", "timed out after 0.2 s", 0.19),
        ("process-dies", "the process that ran the handler died", 0.09),
        ("discard", "discarded: no use", 0),
        ("nobody's", "no handler for kind", 0),
    ],
)
def test_a_failed_attempt_records_time_node_duration_and_error(
    start: Start, client: httpx.Client, *, kind: str, error: str, least: float
) -> None:
    node = start()
    job_id = submit(client, node, {"kind": kind, "max_retries": 0})
    wait_for(lambda: look(client, node, job_id)["state"] == "dead", "it is dead")
    job = look(client, node, job_id)
    [entry] = job["errors"]
    assert entry["error"].startswith(error)
    assert (entry["attempt"], entry["node"]) == (1, node_id(client, node))
    at, ended_at = datetime.fromisoformat(entry["at"]), datetime.fromisoformat(job["ended_at"])
    created_at = datetime.fromisoformat(job["created_at"])
    assert created_at < at == ended_at
    assert least <= entry["duration"] <= (ended_at - created_at).total_seconds() + 0.1
    assert ("Traceback" in entry.get("traceback", "")) is (kind == "fail"), "only exceptions of the handler have a traceback"


def test_every_attempt_of_a_job_has_its_entry(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    job_id = submit(client, node, {"kind": "fail", "max_retries": 14})
    wait_for(lambda: database.states() == {"dead": 1}, "it is dead")
    errors = client.get(f"{node.url}/jobs/{job_id}").json()["errors"]
    assert [entry["attempt"] for entry in errors] == list(range(6, 16)), "the last ten"
    times = [datetime.fromisoformat(entry["at"]) for entry in errors]
    assert times == sorted(times)


def test_an_attempt_whose_node_was_lost_has_its_entry_too(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    lost = node_id(client, node)
    job_id = submit(client, node, {"kind": "sleep", "payload": {"seconds": 600}, "max_retries": 0})
    wait_for(lambda: database.states() == {"inflight": 1}, "it runs")
    claimed_at = database.value("SELECT claimed_at FROM jobqueue_internal.inflight_jobs")
    node.kill()
    node = start()
    wait_for(lambda: database.states() == {"dead": 1}, "it is found dead")
    job = client.get(f"{node.url}/jobs/{job_id}").json()
    [entry] = job["errors"]
    assert entry["error"].startswith("lease lost")
    assert (entry["attempt"], entry["node"]) == (1, lost)
    assert entry["duration"] == pytest.approx((datetime.fromisoformat(entry["at"]) - claimed_at).total_seconds(), abs=1e-5)


def test_the_error_history_is_bounded(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    job_id = submit(client, node, {"kind": "long-error", "max_retries": 0})
    wait_for(lambda: database.states() == {"dead": 1}, "it is dead")
    [entry] = client.get(f"{node.url}/jobs/{job_id}").json()["errors"]
    assert MAX_ERROR_LENGTH <= len(entry["error"]) < MAX_ERROR_LENGTH + 100
    assert "characters left out" in entry["error"]
    assert MAX_TRACEBACK_LENGTH <= len(entry["traceback"]) < MAX_TRACEBACK_LENGTH + 100
