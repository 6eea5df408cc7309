"""Nodes of different versions on one database: version 1 until the upgrade is finished, and version 2 on a newer schema."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from jobqueue.errors import SchemaVersionError
from jobqueue.testing.process import ServiceProcess
from tests.support.command_line import run_jobqueue
from tests.support.postgres import Database
from tests.support.processes import children_of
from tests.support.service import Service
from tests.support.waiting import wait_for
from tests.upgrades.described import described
from tests.upgrades.dumps import VERSION_1_SQL, finish, load, upgrade
from tests.upgrades.releases import HANDLERS, check_out

pytestmark = pytest.mark.no_schema

QUEUES = ("--queue", "default=8", "--queue", "mixed=4")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of version 1."""
    path = tmp_path_factory.mktemp("version_1")
    check_out(path)
    return path


Version1 = Callable[..., ServiceProcess]


@pytest.fixture
def old_node(checkout: Path, database_url: str) -> Iterator[Version1]:
    """Start nodes of version 1."""
    started: list[ServiceProcess] = []

    def start(*arguments: str, hold: bool = False) -> ServiceProcess:
        env = {"PYTHONPATH": str(checkout), "DATABASE_URL": database_url, "HOLD": str(int(hold))}
        started.append(
            ServiceProcess(
                [HANDLERS, "--port", "0", "--keep-finished", "2592000", "--grace-period", "1", *QUEUES, *arguments], env, checkout
            )
        )
        return started[-1]

    yield start
    for node in started:
        if node.process.poll() is None:
            node.kill()


def version_1(checkout: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of version 1 to its end."""
    env = {**os.environ, "PYTHONPATH": str(checkout), "DATABASE_URL": url}
    command = [sys.executable, "-m", "jobqueue", *arguments]
    return subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=120, check=False)


def submit(database: Database, *jobs: dict[str, Any]) -> list[str]:
    """Submit jobs by the SQL function. It fails after 100 ms while a node that has just started drops old partitions."""
    batch = json.dumps([{"queue": "mixed", **job} for job in jobs])
    while True:
        with suppress(psycopg.errors.LockNotAvailable):
            return [str(job) for job in database.value("SELECT jobqueue.submit_many(%s::jsonb)", batch)]


def state(database: Database, job: str) -> str:
    return str(database.value("SELECT state FROM jobqueue.jobs WHERE id = %s", job))


def ended(database: Database, jobs: list[str]) -> bool:
    return bool(database.value("SELECT bool_and(ended_at IS NOT NULL) FROM jobqueue.jobs WHERE id = ANY (%s::uuid[])", jobs))


def versions(database: Database) -> list[tuple[int, int]]:
    return database.rows("SELECT version, oldest_node FROM jobqueue_internal.schema_version ORDER BY version")


def test_a_node_of_version_1_works_on_the_upgraded_schema_until_it_is_finished(
    database: Database, service: Callable[..., Service], old_node: Version1, checkout: Path
) -> None:
    load(database.url, VERSION_1_SQL)
    upgrade(database.url)
    before = described(database)
    old = old_node(hold=True)
    assert described(database) == before, "it leaves the schema as it is"

    database.rows("SELECT jobqueue.schedule('mixed', '* * * * * *', kind => 'echo', queue => 'mixed')")
    jobs = submit(
        database,
        {"kind": "echo", "payload": {"n": 1}},
        {"kind": "flaky"},
        {"kind": "fail"},
        {"kind": "nap", "delay": 0.5},
        *({"kind": "nap", "concurrency_key": "k"} for _ in range(3)),
        {"kind": "nap", "unique": True, "group": "g"},
    )
    [rest] = submit(database, {"kind": "rest"})
    [hold] = submit(database, {"kind": "hold", "max_retries": 5})
    wait_for(lambda: ended(database, jobs), "each job of the mixed queue has ended")
    assert [state(database, job) for job in jobs] == ["succeeded", "succeeded", "dead", *["succeeded"] * 5]
    ticks = "SELECT count(*) FROM jobqueue.jobs WHERE state = 'succeeded' AND options ->> 'schedule' = 'mixed'"
    wait_for(lambda: database.value(ticks) > 1, "the schedule ticks")
    progress = "SELECT saved -> 'progress' IS NOT NULL AND state = 'inflight' FROM jobqueue.jobs WHERE id = %s"
    wait_for(lambda: database.value(progress, hold), "the job reports progress")
    database.rows("SELECT jobqueue.cancel(%s)", rest)
    wait_for(lambda: state(database, rest) == "cancelled", "the running job is cancelled")
    for command in ("doctor", "migrate"):
        done = version_1(checkout, database.url, command)
        assert "Traceback" not in done.stderr, done.stderr
    assert versions(database) == [(1, 1), (2, 1)]
    assert described(database) == before

    with pytest.raises(SchemaVersionError, match=rf"nodes of version 1 are running: .+ \(pid {old.process.pid}\)"):
        finish(database.url)
    new = service(HANDLERS, *QUEUES, "--keep-finished", "2592000")
    assert "schema upgrade not finished yet" in new.log
    assert f"(pid {old.process.pid})" in new.log
    assert versions(database) == [(1, 1), (2, 1)]
    assert old.stop() == 0
    wait_for(lambda: ended(database, [hold]), "the new node continues the job from its checkpoint")
    assert database.value("SELECT result FROM jobqueue.jobs WHERE id = %s", hold) == {"page": 7}

    finish(database.url)
    assert versions(database) == [(1, 1), (2, 2)]
    before = described(database)
    for command in (("serve", HANDLERS, "--port", "0"), ("migrate",)):
        refused = version_1(checkout, database.url, *command)
        assert refused.returncode == 1
        needs = "the database has jobqueue schema version 2, but this jobqueue needs version 1: upgrade jobqueue"
        assert needs in refused.stdout + refused.stderr
    assert described(database) == before
    assert new.stop() == 0


def test_a_new_node_finishes_the_upgrade_after_the_old_nodes_died(
    database: Database, service: Callable[..., Service], old_node: Version1
) -> None:
    load(database.url, VERSION_1_SQL)
    old = old_node("--visibility-timeout", "3", hold=True)
    [hold] = submit(database, {"kind": "hold", "max_retries": 5})
    wait_for(lambda: state(database, hold) == "inflight", "the job runs")
    for pid in children_of(old.process.pid):
        os.kill(pid, signal.SIGKILL)
    old.kill()
    wait_for(lambda: database.value("SELECT NOT bool_or(lease_until > now()) FROM jobqueue.nodes"), "the lease runs out")
    new = service(HANDLERS, *QUEUES, "--keep-finished", "2592000")
    assert "schema upgrade finished" in new.log
    assert versions(database) == [(1, 1), (2, 2)]
    wait_for(lambda: ended(database, [hold]), "the job of the dead node runs again")
    assert new.stop() == 0


def test_a_node_runs_on_a_newer_schema_until_that_no_longer_supports_it(
    database: Database, service: Callable[..., Service]
) -> None:
    upgrade(database.url)
    database.rows("INSERT INTO jobqueue_internal.schema_version (version, oldest_node) VALUES (3, 2)")
    before = described(database)
    node = service(HANDLERS, *QUEUES, "--grace-period", "1", env={"HOLD": "1"})
    assert run_jobqueue("migrate", "--database-url", database.url).returncode == 0
    assert described(database) == before
    jobs = submit(database, {"kind": "flaky"}, {"kind": "echo"})
    wait_for(lambda: ended(database, jobs), "the jobs have ended")
    [hold] = submit(database, {"kind": "hold"})
    wait_for(lambda: state(database, hold) == "inflight", "the job runs")

    database.rows("UPDATE jobqueue_internal.schema_version SET oldest_node = 3 WHERE version = 3")
    assert node.wait() == 1
    assert "the database needs nodes of jobqueue schema version 3 or newer, but this jobqueue has version 2" in node.log
    assert state(database, hold) in ("pending", "scheduled")
    assert database.rows("SELECT id FROM jobqueue.nodes") == []
    for code, *command in ((1, "serve", HANDLERS, "--port", "0"), (4, "migrate"), (1, "doctor")):
        refused = run_jobqueue(*map(str, command), "--database-url", database.url)
        assert refused.returncode == code
        assert "version 3" in refused.stdout + refused.stderr
    assert described(database) == before
