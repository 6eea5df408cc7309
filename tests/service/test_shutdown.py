"""A shutdown ends five seconds after the grace period, or at a second signal, whatever handlers, clients, and the database do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest

from jobqueue.storage.embedded.cluster import PORT, ROLE
from tests.support import ROOT
from tests.support.postgres import Database
from tests.support.processes import children_of
from tests.support.proxy import proxy_in_thread
from tests.support.service import Service

GRACE = 0.5

ENDS_WITHIN = 60.0
"""Seconds for a shutdown on a loaded machine. The handlers of these tests never end."""

SCHEMA_LOCK = 7669743430829532517
"""The advisory lock that a node holds while it applies schema.sql."""


class Node:
    """A service with handlers that do not end."""

    def __init__(self, effects: Path, database_url: str, *arguments: str) -> None:
        self._effects = effects
        self.service = Service(
            [
                "tests.handlers.poison",
                "--port",
                "0",
                "--grace-period",
                str(GRACE),
                "--database-url",
                database_url,
                *arguments,
            ],
            {"EFFECTS": str(effects)},
        )
        self.url = self.service.url
        self.process = self.service.process

    def submit(self, *jobs: dict[str, Any]) -> list[str]:
        answer = httpx.post(f"{self.url}/submit", json=list(jobs), timeout=60)
        assert answer.status_code == 201, answer.text
        ids: list[str] = answer.json()["ids"]
        return ids

    def run(self, *jobs: dict[str, Any]) -> list[str]:
        """Submit jobs and wait until all of them have begun."""
        ids = self.submit(*jobs)
        self.wait_for(lambda: set(ids) <= self.runs().keys(), "all run")
        return ids

    def runs(self) -> Counter[str]:
        """Return how often each job ran, on any node."""
        lines = self._effects.read_text().splitlines() if self._effects.exists() else []
        return Counter(line.split()[1] for line in lines)

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{self.service.log[-2000:]}"
            time.sleep(0.02)

    def children(self) -> list[int]:
        """Return the processes that run handlers, and their helpers."""
        return children_of(self.process.pid)

    def stop(self, *, twice: bool) -> int:
        """Send SIGTERM once or twice; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        if twice:
            self.wait_for(lambda: "shutting down" in self.service.log, "the shutdown begins")
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it did not exit within {ENDS_WITHIN} s:\n{self.service.log[-3000:]}")
        self.service.wait()
        return code


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    return tmp_path / "effects"


@pytest.fixture
def start(effects: Path, database_url: str) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def start(*arguments: str, url: str = database_url) -> Node:
        nodes.append(Node(effects, url, *arguments))
        return nodes[-1]

    yield start
    for node in nodes:
        node.process.kill()
        node.service.wait()


@pytest.fixture(params=[False, True], ids=["SIGTERM", "SIGTERM twice"])
def twice(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


Start = Callable[..., Node]

LONG = {"kind": "sleep", "payload": {"seconds": 3600}}

SIGNALLED_TWICE = 128 + signal.SIGTERM


def assert_handed_over(start: Start, database: Database, ids: list[str], *, refunded: bool) -> None:
    """Check that the next node runs the unfinished jobs."""
    before = {
        str(job_id): (state, attempt) for job_id, state, attempt in database.rows("SELECT id, state, attempt FROM jobqueue.jobs")
    }
    if refunded:
        assert before == dict.fromkeys(ids, ("pending", 0))
    follower = start()
    follower.wait_for(lambda: all(follower.runs()[job_id] == 2 for job_id in ids), "the next node runs all of them")
    assert set(database.rows("SELECT attempt, claims FROM jobqueue_internal.inflight_jobs")) == {(1 if refunded else 2, 2)}


@pytest.mark.parametrize("kind", ["hang-thread", "swallow", "shield", "hang-cpu"])
def test_a_handler_that_does_not_end(kind: str, twice: bool, start: Start, database: Database) -> None:
    node = start()
    ids = node.run({"kind": kind}, {"kind": kind}, LONG)
    assert node.stop(twice=twice) == (SIGNALLED_TWICE if twice else 0)
    assert_handed_over(start, database, ids, refunded=not twice)


def test_no_process_of_a_handler_outlives_the_service(twice: bool, start: Start) -> None:
    node = start()
    node.run({"kind": "hang-cpu"}, {"kind": "good-cpu"})
    children = node.children()
    assert len(children) >= 2
    node.stop(twice=twice)
    node.wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "they end too")


def test_what_a_handler_left_behind_does_not_hold_the_exit(twice: bool, start: Start, database: Database) -> None:
    node = start()
    ids = node.run({"kind": "leave-thread"}, {"kind": "leave-thread-cpu"}, LONG)
    node.wait_for(lambda: database.states() == {"succeeded": 2, "inflight": 1}, "two have ended")
    assert node.stop(twice=twice) == (SIGNALLED_TWICE if twice else 0)
    assert "Traceback" not in node.service.log
    follower = start()
    follower.wait_for(lambda: follower.runs()[ids[2]] == 2, "the next node runs the third")


def test_a_process_that_was_killed_while_idle_does_not_spoil_the_exit(start: Start, database: Database) -> None:
    node = start()
    node.submit({"kind": "good-cpu"})
    node.wait_for(lambda: database.states() == {"succeeded": 1}, "it is done")
    for pid in node.children():
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            subprocess.run(["kill", "-9", str(pid)], check=True)
    assert node.stop(twice=False) == 0
    assert "Traceback" not in node.service.log


def test_a_client_that_does_not_read_its_answer(twice: bool, start: Start, database: Database) -> None:
    node = start()
    ids = node.run({**LONG, "payload": {"seconds": 3600, "ballast": "x" * 1_000_000}})
    address = urlsplit(node.url)
    with ExitStack() as clients:
        for _ in range(5):
            client = clients.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((address.hostname, address.port))
            client.sendall(f"GET /jobs/{ids[0]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 20)
        time.sleep(1)
        assert node.stop(twice=twice) == (SIGNALLED_TWICE if twice else 0)
    assert_handed_over(start, database, ids, refunded=not twice)


def test_a_database_that_swallows_everything(twice: bool, start: Start, database: Database) -> None:
    address = urlsplit(database.url)
    [directory] = parse_qs(address.query)["host"]
    with proxy_in_thread(directory, PORT) as proxy:
        node = start(url=f"postgresql://{ROLE}@127.0.0.1:{proxy.port}{address.path}")
        ids = node.run(LONG, {"kind": "hang-thread"}, {"kind": "hang-cpu"}, {"kind": "swallow"})
        proxy.blackhole()
        time.sleep(0.5)
        code = node.stop(twice=twice)
        assert code == (SIGNALLED_TWICE if twice else 70)
        assert twice or "the process did not end in time" in node.service.log
        proxy.heal()
        assert_handed_over(start, database, ids, refunded=False)


@pytest.mark.no_schema
def test_a_start_that_waits_for_the_database_can_be_ended(twice: bool, database: Database) -> None:
    with psycopg.connect(database.url) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jobqueue",
                "serve",
                "tests.handlers.poison",
                "--port",
                "0",
                "--grace-period",
                str(GRACE),
            ],
            env={**os.environ, "DATABASE_URL": database.url},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
            deadline = time.monotonic() + 120
            while database.value(waiting) != 1:
                assert time.monotonic() < deadline, "it never got to the lock"
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            if twice:
                time.sleep(0.5)
                process.send_signal(signal.SIGTERM)
            assert process.wait(ENDS_WITHIN) != 0
        finally:
            process.kill()
            process.communicate()
