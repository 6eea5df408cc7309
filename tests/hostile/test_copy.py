"""A copy of a database: its nodes are on hold until it is adopted."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from jobqueue.storage.embedded.binaries import wheel_binaries
from tests.support import postgres
from tests.support.command_line import run_jobqueue
from tests.support.postgres import Database
from tests.support.service import Service
from tests.support.waiting import wait_for

RENAMED = "UPDATE jobqueue_internal.identity SET database = 'production'"


@pytest.fixture
def copy(database: Database) -> Database:
    """A database that looks like a copy, with jobs in every unfinished state and a schedule."""
    database.rows("SELECT jobqueue.schedule('tick', '* * * * * *', kind => 'default')")
    for more in ("", ", run_at => now() + interval '1 second'", ", concurrency_key => 'account 7'"):
        database.rows(f"SELECT jobqueue.submit('default'{more})")
    # This job was running when the copy was made.
    node = database.value("SELECT gen_random_uuid()")
    database.rows("SELECT jobqueue_internal.join_node(%s, 'production', 1, 'p', '0', '{\"default\": 1}', 0.1)", node)
    database.rows("SELECT jobqueue_internal.claim(%s, '{\"default\": [1, null]}')", node)
    database.rows(RENAMED)
    return database


def test_a_node_on_a_copy_runs_nothing_until_it_is_adopted(
    service: Callable[..., Service], copy: Database, client: httpx.Client
) -> None:
    before = copy.states()
    assert before == {"inflight": 1, "scheduled": 1, "blocked": 1}
    node = service("examples.quickstart", "--poll-interval", "0.1", "--visibility-timeout", "2")
    assert client.post(f"{node.url}/submit", json={}).status_code == 201
    time.sleep(3)
    assert copy.states() == {**before, "pending": 1}
    assert client.get(f"{node.url}/health/ready").status_code == 200
    assert 'the queue belongs to the database "production"' in client.get(f"{node.url}/health").json()["on_hold"]
    assert "jobqueue_on_hold 1.0" in client.get(f"{node.url}/metrics").text
    assert "all queues and schedules are on hold" in node.log
    assert "on hold" in run_jobqueue("doctor", "--database-url", copy.url).stdout

    adopted = run_jobqueue("adopt", "--database-url", copy.url)
    assert adopted.returncode == 0
    assert adopted.stdout.startswith('adopted: the queue belongs to the database "production"')
    wait_for(lambda: copy.states().get("succeeded", 0) > 6, "all jobs run, and the schedule ticks")
    assert client.get(f"{node.url}/health").json() == {"status": "ok"}
    assert "jobqueue_on_hold 0.0" in client.get(f"{node.url}/metrics").text
    assert node.stop() == 0
    again = run_jobqueue("adopt", "--database-url", copy.url)
    assert again.stdout == "nothing to adopt: the queue belongs to this database already\n"


def test_serve_can_adopt_a_copy(service: Callable[..., Service], copy: Database) -> None:
    node = service("examples.quickstart", "--adopt", "--visibility-timeout", "2")
    wait_for(lambda: copy.states().get("succeeded", 0) > 4, "all jobs run, and the schedule ticks")
    assert node.stop() == 0


def test_a_held_node_stops_in_order(service: Callable[..., Service], copy: Database) -> None:
    node = service("examples.quickstart")
    assert node.stop() == 0
    assert copy.rows("SELECT host FROM jobqueue_internal.nodes") == [("production",)]


def test_a_repair_and_a_migration_keep_the_hold(copy: Database) -> None:
    copy.rows("DROP FUNCTION jobqueue_internal.wake_keys()")
    assert "repaired" in run_jobqueue("migrate", "--database-url", copy.url).stdout
    assert copy.value("SELECT jobqueue_internal.copied_from() IS NOT NULL")


def test_a_role_without_access_to_the_identifier_compares_names(database: Database) -> None:
    try:
        database.rows("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        with postgres.role(database.url) as role:
            database.rows(f"GRANT USAGE ON SCHEMA jobqueue_internal TO {role}")
            database.rows(f"GRANT SELECT, UPDATE ON jobqueue_internal.identity TO {role}")
            worker = Database(postgres.as_role(database.url, role))
            assert worker.value("SELECT jobqueue_internal.copied_from()") is None
            database.rows(RENAMED)
            assert "of the server unknown" in worker.value("SELECT jobqueue_internal.copied_from()")
            worker.rows("SELECT jobqueue_internal.adopt()")
            assert worker.value("SELECT jobqueue_internal.copied_from()") is None
            worker.close()
    finally:
        database.rows("GRANT EXECUTE ON FUNCTION pg_control_system() TO PUBLIC")


@pytest.fixture
def target(database: Database) -> Iterator[str]:
    with postgres.database(database.url) as url:
        yield url


@pytest.mark.parametrize("only", [(), ("-n", "jobqueue", "-n", "jobqueue_internal")], ids=["all", "schemas"])
def test_a_restored_dump_is_on_hold_and_continues_when_it_is_adopted(
    database: Database, target: str, only: tuple[str, ...], tmp_path: Path
) -> None:
    """Restore it under another name and another owner."""
    database.rows("CREATE TABLE public.orders (id integer)")
    database.rows("SELECT jobqueue.submit('default') FROM generate_series(1, 20)")
    binaries = wheel_binaries()
    dump = tmp_path / "dump"
    environment = {**os.environ, "LC_ALL": "C"}
    subprocess.run([binaries / "pg_dump", "-Fc", *only, "-f", dump, database.url], check=True, env=environment)
    with postgres.role(target) as role:
        restored = Database(target)
        restored.rows(f"ALTER DATABASE {urlsplit(target).path[1:]} OWNER TO {role}")
        restore = [binaries / "pg_restore", "--no-owner", "--exit-on-error", "-d", postgres.as_role(target, role), dump]
        subprocess.run(restore, check=True, env=environment)
        assert restored.value("SELECT to_regclass('public.orders') IS NULL") == bool(only)
        url = postgres.as_role(target, role)
        node = Service(["examples.quickstart", "--port", "0", "--poll-interval", "0.1", "--database-url", url], {})
        time.sleep(1)
        assert restored.states() == {"pending": 20}
        restored.rows("SELECT jobqueue_internal.adopt()")
        wait_for(lambda: restored.states() == {"succeeded": 20}, "the copy continues")
        assert node.stop() == 0
        restored.rows(f"ALTER DATABASE {urlsplit(target).path[1:]} OWNER TO CURRENT_USER")
        restored.close()
