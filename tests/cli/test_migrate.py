"""At each start, a node compares the database's schema with schema.sql and repairs missing or different objects."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import structlog

from jobqueue.errors import SchemaVersionError
from jobqueue.storage import schema
from jobqueue.storage.connection import connect
from jobqueue.storage.schema import Migration, catalog, migrate
from tests.support import postgres
from tests.support.command_line import run_jobqueue
from tests.support.postgres import SERVERS, Database, ServerPool
from tests.support.service import Service

pytestmark = pytest.mark.no_schema

NOTHING = Migration(applied=False, repaired=[])


def migrated(url: str) -> Migration:
    with connect(url, "migrate") as connection:
        return migrate(connection)


def objects(url: str) -> catalog.Catalog:
    with connect(url, "look") as connection:
        return catalog.look(connection, schema.script())


@pytest.fixture
def applied(sql: Database) -> Database:
    """A database with the schema applied and recorded."""
    assert migrated(sql.url) == Migration(applied=True, repaired=[])
    assert migrated(sql.url) == NOTHING
    return sql


@pytest.mark.parametrize(
    ("damage", "repaired"),
    [
        ("DROP FUNCTION jobqueue_internal.prune_keys(integer)", ["function jobqueue_internal.prune_keys"]),
        (
            "CREATE OR REPLACE FUNCTION jobqueue_internal.wake_keys() RETURNS void LANGUAGE sql AS 'SELECT NULL::void'",
            ["function jobqueue_internal.wake_keys"],
        ),
        ("ALTER FUNCTION jobqueue_internal.prune_keys(integer) RESET ALL", ["function jobqueue_internal.prune_keys"]),
        ("ALTER FUNCTION jobqueue_internal.prune_keys(integer) SECURITY DEFINER", ["function jobqueue_internal.prune_keys"]),
        ("DROP INDEX jobqueue_internal.pending_jobs_turn", ["index jobqueue_internal.pending_jobs_turn"]),
        ("DROP TABLE jobqueue_internal.cancel_requests", ["table jobqueue_internal.cancel_requests"]),
        ("ALTER TABLE jobqueue_internal.pending_jobs DISABLE TRIGGER block", ["trigger jobqueue_internal.block"]),
        ("DROP TRIGGER block ON jobqueue_internal.pending_jobs", ["trigger jobqueue_internal.block"]),
    ],
)
def test_what_is_missing_or_differs_is_brought_back(applied: Database, damage: str, repaired: list[str]) -> None:
    before = objects(applied.url)
    applied.rows(damage)
    assert objects(applied.url) != before
    done = migrated(applied.url)
    assert set(repaired) <= set(done.repaired)
    assert objects(applied.url) == before
    assert migrated(applied.url) == NOTHING


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE jobqueue_internal.queues DROP CONSTRAINT rate_range",
        "ALTER TABLE jobqueue_internal.queues ALTER COLUMN fair DROP NOT NULL",
    ],
)
def test_what_cannot_be_brought_back_is_warned_of_once(applied: Database, change: str) -> None:
    applied.rows(change)
    with structlog.testing.capture_logs() as logged:
        assert migrated(applied.url) == NOTHING
        assert migrated(applied.url) == NOTHING
    assert ["did not undo every change" in line["event"] for line in logged] == [True]


def test_what_is_not_of_the_schema_and_the_partitions_of_days_are_no_difference(applied: Database) -> None:
    applied.rows("CREATE TABLE jobqueue.theirs (id integer PRIMARY KEY)")
    applied.rows("CREATE FUNCTION jobqueue.theirs() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    applied.rows("CREATE INDEX theirs_too ON jobqueue_internal.pending_jobs (kind)")
    applied.rows("SELECT jobqueue.submit('echo')")
    applied.rows(
        "CREATE TABLE jobqueue_internal.succeeded_jobs_20990101 PARTITION OF jobqueue_internal.succeeded_jobs FOR VALUES FROM"
        " ('2099-01-01 00:00+00') TO ('2099-01-02 00:00+00')"
    )
    with structlog.testing.capture_logs() as logged:
        assert migrated(applied.url) == NOTHING
    assert logged == []


def test_a_schema_that_psql_made_is_taken_as_it_is_and_recorded(sql: Database) -> None:
    sql.rows(schema.script())
    with connect(sql.url, "migrate") as connection:
        assert catalog.recorded(connection) is None
        assert migrate(connection) == NOTHING
        assert catalog.recorded(connection) is not None
    sql.rows("DROP FUNCTION jobqueue_internal.wake_keys()")
    assert migrated(sql.url) == Migration(applied=False, repaired=["function jobqueue_internal.wake_keys"])


@pytest.mark.parametrize(
    "damage",
    ["ALTER TABLE jobqueue_internal.pending_jobs DISABLE TRIGGER block", "DROP TRIGGER block ON jobqueue_internal.pending_jobs"],
)
def test_the_trigger_is_brought_back_in_a_schema_that_psql_made(sql: Database, damage: str) -> None:
    sql.rows(schema.script())
    sql.rows(damage)
    assert migrated(sql.url) == Migration(applied=False, repaired=["trigger jobqueue_internal.block"])
    assert migrated(sql.url) == NOTHING


def test_a_schema_that_an_older_text_made_is_brought_up_to_date(applied: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = schema.script() + "ALTER TABLE jobqueue_internal.queues ADD COLUMN IF NOT EXISTS remark text;"
    monkeypatch.setattr(schema, "script", lambda *_, **__: newer)
    assert migrated(applied.url) == Migration(applied=False, repaired=["table jobqueue_internal.queues"])
    assert migrated(applied.url) == NOTHING


def test_the_record_holds_whatever_a_session_has_set(applied: Database) -> None:
    name = applied.value("SELECT quote_ident(current_database())")
    for setting in (
        "search_path = jobqueue, public",
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'iso_8601'",
        "timezone = 'Asia/Tokyo'",
    ):
        applied.rows(f"ALTER DATABASE {name} SET {setting}")
        assert migrated(applied.url) == NOTHING, setting


def test_nodes_that_start_at_once_repair_once_and_all_start(applied: Database) -> None:
    applied.rows("DROP FUNCTION jobqueue_internal.wake_keys()")
    done: list[Migration] = []
    threads = [threading.Thread(target=lambda: done.append(migrated(applied.url))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 6
    assert {tuple(each.repaired) for each in done} <= {("function jobqueue_internal.wake_keys",), ()}
    assert migrated(applied.url) == NOTHING


@pytest.mark.parametrize("setting", ["statement_timeout = '1ms'", "default_transaction_read_only = on"])
def test_an_error_of_postgresql_ends_the_command_in_one_line(sql: Database, setting: str) -> None:
    sql.rows(f"ALTER DATABASE {sql.value('SELECT quote_ident(current_database())')} SET {setting}")
    ended = run_jobqueue("migrate", "--database-url", sql.url)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: cannot apply the schema: ")
    assert ended.stderr.count("\n") == 1


@pytest.fixture
def worker(applied: Database) -> Iterator[str]:
    """The URL of a role that can run a node, but not change the schema."""
    with postgres.role(applied.url) as role:
        yield postgres.granted(applied.url, "node", role)


def test_a_role_without_ddl_starts_unless_something_is_missing(applied: Database, worker: str) -> None:
    assert migrated(worker) == NOTHING
    applied.rows("CREATE OR REPLACE FUNCTION jobqueue_internal.wake_keys() RETURNS void LANGUAGE sql AS 'SELECT NULL::void'")
    with structlog.testing.capture_logs() as logged:
        assert migrated(worker) == NOTHING
    assert [(line["log_level"], line["objects"]) for line in logged] == [("warning", ["function jobqueue_internal.wake_keys"])]
    applied.rows("DROP FUNCTION jobqueue_internal.wake_keys()")
    with pytest.raises(SchemaVersionError, match=r"function jobqueue_internal.wake_keys.*as its owner"):
        migrated(worker)
    assert migrated(applied.url).repaired == ["function jobqueue_internal.wake_keys"]
    assert migrated(worker) == NOTHING


def test_a_repair_of_functions_waits_for_no_writer(applied: Database) -> None:
    applied.rows("CREATE OR REPLACE FUNCTION jobqueue_internal.wake_keys() RETURNS void LANGUAGE sql AS 'SELECT NULL::void'")
    with psycopg.connect(applied.url) as other:
        other.execute("LOCK TABLE jobqueue_internal.pending_jobs, jobqueue_internal.nodes IN ROW EXCLUSIVE MODE")
        assert migrated(applied.url).repaired == ["function jobqueue_internal.wake_keys"]


def test_a_repair_that_somebody_holds_up_is_left_to_the_next_start(applied: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "LOCK_SECONDS", 0.1)
    applied.rows("CREATE OR REPLACE FUNCTION jobqueue_internal.wake_keys() RETURNS void LANGUAGE sql AS 'SELECT NULL::void'")
    with psycopg.connect(applied.url) as other, structlog.testing.capture_logs() as logged:
        other.execute("LOCK TABLE jobqueue_internal.pending_jobs IN ACCESS EXCLUSIVE MODE")
        assert migrated(applied.url) == NOTHING
    assert ["another session holds a lock" in line["event"] for line in logged] == [True]
    assert migrated(applied.url).repaired == ["function jobqueue_internal.wake_keys"]


def test_the_commands_say_what_they_repaired(database: Database, service: Callable[..., Service]) -> None:
    service("examples.quickstart").stop()
    database.rows("DROP FUNCTION jobqueue_internal.wake_keys()")
    said = run_jobqueue("migrate", "--database-url", database.url).stdout
    assert said == "schema version 2: repaired: function jobqueue_internal.wake_keys\n"
    database.rows("DROP FUNCTION jobqueue_internal.wake_keys()")
    node = service("examples.quickstart")
    node.stop()
    assert "schema repaired" in node.log
    assert "function jobqueue_internal.wake_keys" in node.log


def test_a_check_takes_some_milliseconds(applied: Database) -> None:
    with connect(applied.url, "migrate") as connection:
        migrate(connection)
        took = []
        for _ in range(10):
            began = time.perf_counter()
            assert migrate(connection) == NOTHING
            took.append(time.perf_counter() - began)
    assert min(took) < 1, f"{1000 * min(took):.1f} ms; about 20 ms on an idle machine"


@pytest.mark.parametrize("binaries", [path for path in SERVERS.values() if path is not None and (path / "pg_dump").exists()])
def test_the_record_survives_dump_and_restore(binaries: Path, servers: ServerPool) -> None:
    server = servers.url(next(name for name, path in SERVERS.items() if path == binaries))
    with postgres.database(server) as source, postgres.database(server) as target:
        migrated(source)
        dump = subprocess.run([binaries / "pg_dump", source], capture_output=True, text=True, check=True)
        restore = [binaries / "psql", "-qX", "-v", "ON_ERROR_STOP=1", target]
        subprocess.run(restore, input=dump.stdout, capture_output=True, text=True, check=True)
        assert objects(source) == objects(target)
        assert migrated(target) == NOTHING
