"""Steps that are interrupted anywhere can be run again, in the upgrade from version 1 and in a synthetic version 3."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from jobqueue.errors import JobQueueError
from jobqueue.storage import schema
from jobqueue.storage.connection import Connection, connect
from jobqueue.storage.schema import parts
from tests.support import ROOT
from tests.support.postgres import Database
from tests.support.waiting import wait_for
from tests.upgrades import next_version
from tests.upgrades.dumps import VERSION_1_SQL, load

pytestmark = [pytest.mark.no_schema, pytest.mark.slow]


def migrate(url: str) -> None:
    with connect(url, "migrate") as connection:
        schema.migrate(connection)


@pytest.fixture
def version_2(sql: Database) -> Database:
    migrate(sql.url)
    sql.rows("INSERT INTO jobqueue_internal.queues (name) SELECT 'queue ' || n FROM generate_series(1, 100) AS n")
    return sql


@pytest.fixture
def directory(version_2: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process has version 3, and the database has version 2."""
    assert version_2.value("SELECT max(version) FROM jobqueue_internal.schema_version") == 2
    next_version.write(tmp_path)
    monkeypatch.setattr(parts, "SOURCE", parts.SOURCE)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    next_version.use(tmp_path)
    return tmp_path


def check_complete(database: Database) -> None:
    assert database.value("SELECT max(version) FROM jobqueue_internal.schema_version") == 3
    assert database.rows("SELECT DISTINCT remark = 'rewritten; ' || name, rewrites FROM jobqueue_internal.queues") == [(True, 1)]
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'jobqueue_internal.queues_remark'::regclass"
    assert database.rows(valid) == [(True,)]
    with connect(database.url, "check") as connection:
        assert schema.due(connection) == schema.Due(schema.Installed(3, 2), None, [], finish=True)


@pytest.mark.usefixtures("directory")
def test_migrate_runs_each_kind_of_step(version_2: Database) -> None:
    with connect(version_2.url, "migrate") as connection:
        before = connection.execute("SELECT current_setting('search_path'), current_setting('lock_timeout')")
        assert schema.migrate(connection).applied
        assert connection.execute("SELECT current_setting('search_path'), current_setting('lock_timeout')") == before
        check_complete(version_2)
        schema.finish(connection)
    assert version_2.value("SELECT oldest_node FROM jobqueue_internal.schema_version WHERE version = 3") == 3


@pytest.mark.usefixtures("directory")
def test_a_script_and_the_statements_of_steps_do_the_same(version_2: Database) -> None:
    assert "0002_before" not in schema.script(from_version=2)
    version_2.rows(schema.script(from_version=2))
    for statement in schema.autocommit_statements(from_version=2):
        version_2.rows(statement)
    migrate(version_2.url)
    check_complete(version_2)


@pytest.mark.usefixtures("directory")
def test_an_interruption_before_each_statement(version_2: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Connection.execute_script
    for place in range(1 + len(schema.autocommit_statements())):
        seen = iter(range(100))

        def interrupted(connection: Connection, sql: bytes, seen: Iterator[int] = seen, place: int = place) -> object:
            if next(seen) == place:
                connection.close()
            return run(connection, sql)

        monkeypatch.setattr(Connection, "execute_script", interrupted)
        with pytest.raises(psycopg.OperationalError):
            migrate(version_2.url)
    monkeypatch.setattr(Connection, "execute_script", run)
    migrate(version_2.url)
    check_complete(version_2)


def test_a_process_that_is_killed_in_a_rewrite(version_2: Database, directory: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "tests.upgrades.next_version", str(directory), version_2.url], cwd=ROOT)
    done = "SELECT count(*) FROM jobqueue_internal.queues WHERE rewrites > 0"
    column = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'jobqueue_internal.queues'::regclass AND attname = 'rewrites'"
    wait_for(lambda: version_2.value(column) and version_2.value(done) > 0, "the rewrite begins", 30)
    process.kill()
    process.wait()
    version_2.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jobqueue migrate'")
    assert version_2.value(done) < 100
    migrate(version_2.url)
    check_complete(version_2)


@pytest.mark.usefixtures("directory")
def test_an_index_that_an_interrupted_build_left_invalid(version_2: Database) -> None:
    building = "application_name = 'jobqueue migrate' AND query LIKE '%CREATE INDEX%' AND wait_event_type = 'Lock'"
    with psycopg.connect(version_2.url) as other:
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobqueue_internal.nodes")
        thread = threading.Thread(target=lambda: suppress_errors(lambda: migrate(version_2.url)))
        thread.start()
        wait_for(lambda: version_2.rows(f"SELECT pid FROM pg_stat_activity WHERE {building}"), "the build waits", 30)
        version_2.rows(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {building}")
        thread.join()
        other.rollback()
    assert version_2.rows("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('jobqueue_internal.queues_remark')") == [
        (False,)
    ]
    migrate(version_2.url)
    check_complete(version_2)


@pytest.mark.usefixtures("directory")
def test_other_statements_do_not_queue_behind_a_step_that_waits_for_a_lock(version_2: Database) -> None:
    with psycopg.connect(version_2.url) as other:
        other.execute("SELECT count(*) FROM jobqueue_internal.queues")
        thread = threading.Thread(target=lambda: migrate(version_2.url))
        thread.start()
        began = time.monotonic()
        while time.monotonic() < began + 1:
            version_2.rows("SET statement_timeout = '900ms'; SELECT count(*) FROM jobqueue_internal.queues")
        assert version_2.value("SELECT max(version) FROM jobqueue_internal.schema_version") == 2
    thread.join()
    version_2.rows("RESET statement_timeout")
    check_complete(version_2)


def suppress_errors(work: Callable[[], object]) -> None:
    with suppress(psycopg.Error, JobQueueError):
        work()


def test_an_upgrade_from_version_1_that_is_interrupted_at_any_time(sql: Database) -> None:
    load(sql.url, VERSION_1_SQL)
    sessions = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'jobqueue migrate'"
    rows = "SELECT count(*) FROM {}.pending_jobs"
    jobs = sql.value(rows.format("jobqueue"))
    for work in ("migrate", "finish"):
        for milliseconds in range(20, 220, 20):
            thread = threading.Thread(target=lambda work=work: suppress_errors(lambda: run(sql.url, work)))
            thread.start()
            time.sleep(milliseconds / 1000)
            sql.rows(sessions)
            thread.join()
            upgraded = sql.value("SELECT to_regnamespace('jobqueue_internal')") is not None
            assert sql.value(rows.format("jobqueue_internal" if upgraded else "jobqueue")) == jobs
        run(sql.url, work)
    run(sql.url, "migrate")  # records the digests, if the finish was interrupted after its commit
    with connect(sql.url, "check") as connection:
        assert schema.due(connection) == schema.Due(schema.Installed(2, 2), None, [], finish=False)


def run(url: str, work: str) -> None:
    with connect(url, "migrate") as connection:
        getattr(schema, work)(connection)
