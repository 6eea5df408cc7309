"""Upgrade a version 1 database to version 2: the result equals a new database, keeps all rows, and nodes end its jobs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobqueue.storage import schema
from jobqueue.storage.connection import connect
from tests.support import ROOT
from tests.support.postgres import SERVERS, Database, ServerPool
from tests.support.service import Service
from tests.support.waiting import wait_for
from tests.upgrades.described import described, rows
from tests.upgrades.dumps import VERSION_1_SQL, finish, load, upgrade

pytestmark = pytest.mark.no_schema

QUEUES = ["default=8", "limited=4", "keyed=2", "starts=4", "fair=4", "stuck=2", "unserved=8", "aging=2", "declared=2", "all=2"]
QUEUES += ["paused=2", "größe/日本 🐘=2"]

UNFINISHED = "SELECT kind, queue, state FROM jobqueue.jobs WHERE state IN ('scheduled', 'blocked', 'pending', 'inflight')"

KEEP = ("--keep-finished", str(30 * 86400), "--keep-dead", str(3000 * 86400))


@pytest.fixture
def fresh(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[Database]:
    """A new database on the same server as `version_1`."""
    with servers.database(request.node.callspec.params["any_database_url"]) as url:
        database = Database(url)
        yield database
        database.close()


def difference(one: Database, other: Database) -> list[tuple[str, str]]:
    return sorted(described(one) ^ described(other))


def test_an_upgraded_database_equals_a_new_one(version_1: Database, fresh: Database) -> None:
    upgrade(version_1.url)
    assert difference(version_1, fresh)
    finish(version_1.url)
    assert difference(version_1, fresh) == []
    for _ in range(2):
        with connect(version_1.url, "migrate") as connection:
            assert schema.migrate(connection) == schema.Migration(applied=False, repaired=[])
    assert difference(version_1, fresh) == []


@pytest.mark.parametrize("binaries", [path for path in SERVERS.values() if path is not None and (path / "psql").exists()])
def test_psql_upgrades_a_database_too(binaries: Path, servers: ServerPool) -> None:
    name = next(name for name, path in SERVERS.items() if path == binaries)
    with servers.database(name, schema=False) as url, servers.database(name) as new:
        load(url, VERSION_1_SQL)
        for _ in range(2):
            subprocess.run([binaries / "psql", "-qX", "-f", ROOT / "schema.sql", url], capture_output=True, text=True, check=True)
        finish(url)
        upgraded, fresh = Database(url), Database(new)
        assert difference(upgraded, fresh) == []
        upgraded.close()
        fresh.close()


def test_an_upgrade_changes_no_row(version_1: Database) -> None:
    before = rows(version_1, "jobqueue")
    upgrade(version_1.url)
    finish(version_1.url)
    after = rows(version_1, "jobqueue_internal")
    assert [json.loads(row)["version"] for row in after.pop("schema_version")] == [1, 2]
    del before["schema_version"]
    after["nodes"] = [row.replace(', "schema_version": 1', "") for row in after["nodes"]]
    assert {table: after[table] for table in before} == before


def end_all_jobs(database: Database, service: Callable[..., Service]) -> Service:
    """Serve the queues of the dump until each job has ended. Skip the waits of jobs, and resume the paused queue."""
    queues = [argument for queue in QUEUES for argument in ("--queue", queue)]
    node = service("tests.handlers.upgraded", *KEEP, "--poll-interval", "0.2", *queues)
    database.rows("SELECT jobqueue.pause('paused', false)")
    database.rows("SELECT jobqueue.configure('starts', clear => '{key_rate,key_burst}')")

    def all_ended() -> bool:
        database.rows("SELECT jobqueue.change(id, run_at => now()) FROM jobqueue.jobs WHERE state = 'scheduled'")
        return (
            database.rows(f"{UNFINISHED} AND created_at < %s", database.value("SELECT min(started_at) FROM jobqueue.nodes")) == []
        )

    wait_for(all_ended, "each job has ended", 120)
    return node


def test_nodes_end_each_job_of_the_upgraded_database(database: Database, service: Callable[..., Service]) -> None:
    load(database.url, VERSION_1_SQL)
    unfinished = database.rows(f"SELECT id FROM ({UNFINISHED.replace('kind', 'id, kind')}) AS j")
    ended = database.rows("SELECT id, state FROM jobqueue.jobs WHERE state IN ('succeeded', 'cancelled', 'dead') ORDER BY id")
    node = end_all_jobs(database, service)
    assert "schema upgrade finished" in node.log
    [version] = database.rows("SELECT version, oldest_node FROM jobqueue_internal.schema_version ORDER BY version DESC LIMIT 1")
    assert version == (2, 2)
    before = [job for job, _ in ended]
    assert database.rows("SELECT id, state FROM jobqueue.jobs WHERE id = ANY (%s) ORDER BY id", before) == ended
    outcomes = database.rows(
        "SELECT state, substring(reason, 'lease lost|expired|no handler'), count(*) FROM jobqueue.jobs WHERE id = ANY (%s)"
        " GROUP BY 1, 2 ORDER BY 1, 2",
        [job for (job,) in unfinished],
    )
    dead = [("dead", "expired", 4), ("dead", "lease lost", 6), ("dead", "no handler", 1)]
    assert outcomes == [("cancelled", None, 2), *dead, ("succeeded", None, len(unfinished) - 13)]
    assert node.stop() == 0
