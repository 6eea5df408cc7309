"""``jobqueue doctor``: real findings on a real PostgreSQL, and the judgment of figures that a test cannot produce."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest

from jobqueue import __version__
from jobqueue.errors import DatabaseUnavailable
from jobqueue.schema_names import DEFAULT
from jobqueue.storage import doctor, schema
from jobqueue.storage.connection import connect
from jobqueue.storage.doctor import Finding, capacity, server, vacuum, work
from jobqueue.storage.embedded.cluster import Cluster
from jobqueue.storage.schema import catalog
from tests.support import postgres
from tests.support.command_line import run_jobqueue
from tests.support.postgres import Database
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

CONNECTIONS = 30

SETTINGS = {"max_connections": str(CONNECTIONS), "max_prepared_transactions": "4", "wal_level": "logical"}


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    """A server with fsync, as users have it, and with settings for everything that can hold back the vacuum horizon."""
    with postgres.directory() as directory, postgres.server(None, directory / "data", settings=SETTINGS) as url:
        yield url


@pytest.fixture
def bare(own_server: str) -> Iterator[Database]:
    """An empty database."""
    with postgres.database(own_server) as url:
        database = Database(url)
        yield database
        database.close()


@pytest.fixture
def healthy(bare: Database) -> Database:
    """A database with the schema."""
    bare.rows(schema.script())
    return bare


@pytest.fixture
def role(bare: Database) -> Iterator[str]:
    """A role that can only log in."""
    with postgres.role(bare.url) as name:
        yield name


@pytest.fixture
def other(bare: Database) -> Iterator[psycopg.Connection[Any]]:
    """A session of another application."""
    with psycopg.connect(bare.url, autocommit=True, application_name="somebody") as connection:
        yield connection


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let checks take long on a loaded machine."""
    monkeypatch.setitem(doctor.TIMEOUTS, "statement_timeout", "60s")


def found(url: str, check: str) -> list[Finding]:
    """Return the findings of one check."""
    return [finding for finding in doctor.examine(url) if finding.check == check]


def the_only(url: str, check: str) -> Finding:
    [finding] = found(url, check)
    return finding


def add_node(database: Database, *, lease: str = "1 hour", version: str = __version__, **queues: int) -> None:
    database.rows(
        "INSERT INTO jobqueue_internal.nodes (id, host, pid, process, version, queues, lease_until)"
        " VALUES (gen_random_uuid(), 'host', 7, gen_random_uuid()::text, %s, %s, now() + %s::interval)",
        version,
        json.dumps(queues),
        lease,
    )


def submit(database: Database, jobs: int = 1, *, queue: str = "default", waited: str = "0 s") -> None:
    database.rows("SELECT jobqueue.submit('greet', queue => %s) FROM generate_series(1, %s)", queue, jobs)
    database.rows("UPDATE jobqueue_internal.pending_jobs SET available_since = available_since - %s::interval", waited)


# ----------------------------------------------------------------------------------------------------------------------- healthy


def test_a_database_with_a_node_is_healthy(healthy: Database) -> None:
    add_node(healthy, default=16)
    submit(healthy, 3)
    findings = doctor.examine(healthy.url)
    assert {finding.verdict for finding in findings} == {"ok"}, findings
    assert [finding.check for finding in findings] == [*doctor.SERVER_CHECKS, *doctor.SCHEMA_CHECKS]
    assert all(finding.advice is None for finding in findings)


def test_the_checkup_changes_nothing(healthy: Database) -> None:
    # Every check runs in a read-only transaction.
    with connect(healthy.url, "doctor") as connection:
        refused = doctor.look(connection, "mine", lambda c: [Finding("mine", "ok", str(c.execute("CREATE TABLE t ()")))])
        assert [finding.verdict for finding in refused] == ["unknown"]
        assert "read-only" in refused[0].finding
        assert connection.execute("SHOW statement_timeout") == [("0",)]
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def test_a_check_that_takes_long_is_cut_off(bare: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.TIMEOUTS, "statement_timeout", "50ms")
    with connect(bare.url, "doctor") as connection:
        [finding] = doctor.look(connection, "slow", lambda c: [Finding("slow", "ok", str(c.execute("SELECT pg_sleep(60)")))])
        assert finding.verdict == "unknown"
        assert connection.execute("SELECT 1") == [(1,)]


def test_a_broken_connection_is_an_error_and_not_a_finding(bare: Database) -> None:
    def end(connection: psycopg.Connection[Any]) -> list[Finding]:
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return []

    with connect(bare.url, "doctor") as connection, pytest.raises(DatabaseUnavailable):
        doctor.look(connection, "ended", end)


def test_every_check_works_with_every_version_of_postgresql(sql: Database) -> None:
    sql.rows(schema.script())
    assert "unknown" not in {finding.verdict for finding in doctor.examine(sql.url)}


# ------------------------------------------------------------------------------------------------------------------------ server


@pytest.mark.parametrize(
    ("number", "name", "verdict"),
    [
        (130_012, "13.12", "problem"),
        (140_003, "14.3", "problem"),
        (140_004, "14.4", "ok"),
        (180_002, "18.2", "warning"),
        (180_006, "18.6", "ok"),
        (190_001, "19.1", "warning"),
    ],
)
def test_versions(number: int, name: str, verdict: str) -> None:
    finding = server.judge_version(number, name, date(2026, 1, 1))
    assert finding.verdict == verdict
    assert name in finding.finding


def test_a_version_without_support() -> None:
    assert server.judge_version(140_020, "14.20", date(2026, 11, 12)).verdict == "ok"
    assert server.judge_version(140_020, "14.20", date(2026, 11, 13)).verdict == "warning"


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("synchronous_commit", "off", "warning"),
        ("default_transaction_read_only", "on", "warning"),
        ("default_transaction_isolation", "repeatable read", "warning"),
        ("statement_timeout", "2s", "warning"),
        ("transaction_timeout", "2s", "warning"),
        ("lock_timeout", "100ms", "warning"),
        ("idle_in_transaction_session_timeout", "1s", "warning"),
        ("session_replication_role", "replica", "problem"),
    ],
)
def test_the_advice_corrects_a_harmful_setting_of_the_role(
    healthy: Database, role: str, name: str, value: str, verdict: str
) -> None:
    healthy.rows(f"ALTER ROLE {role} SET {name} = '{value}'")
    finding = the_only(postgres.as_role(healthy.url, role), "settings")
    assert finding.verdict == verdict
    assert finding.finding.startswith(f"{name} is ")
    assert finding.advice is not None
    assert finding.advice.startswith(f'ALTER ROLE "{role}" SET {name} = ')
    healthy.rows(finding.advice)
    assert the_only(postgres.as_role(healthy.url, role), "settings").verdict == "ok"


def test_the_advice_names_the_role_or_database_that_has_the_setting(healthy: Database, role: str) -> None:
    name = urlsplit(healthy.url).path[1:]
    healthy.rows(f"ALTER DATABASE {name} SET synchronous_commit = off")
    assert (the_only(healthy.url, "settings").advice or "").startswith(f'ALTER DATABASE "{name}" SET')
    healthy.rows(f"ALTER ROLE {role} IN DATABASE {name} SET synchronous_commit = off")
    advice = the_only(postgres.as_role(healthy.url, role), "settings").advice or ""
    assert advice.startswith(f'ALTER ROLE "{role}" IN DATABASE "{name}" SET')


def test_a_server_without_durable_writes(servers: Any) -> None:
    with postgres.database(servers.url("embedded")) as url:  # fsync is off on the server of the tests
        findings = found(url, "settings")
    assert {(finding.verdict, finding.finding.split()[0]) for finding in findings} == {
        ("problem", "fsync"),
        ("problem", "full_page_writes"),
    }
    assert findings[0].advice == "ALTER SYSTEM SET fsync = 'on'; SELECT pg_reload_conf()"


def test_autovacuum_and_its_counters_turned_off(healthy: Database) -> None:
    healthy.rows("ALTER SYSTEM SET autovacuum = off")
    healthy.rows("ALTER SYSTEM SET track_counts = off")
    try:
        healthy.rows("SELECT pg_reload_conf()")
        wait_for(lambda: len(found(healthy.url, "settings")) == 2, "the settings are in force")
        assert {finding.finding.split()[0] for finding in found(healthy.url, "settings")} == {"autovacuum", "track_counts"}
    finally:
        healthy.rows("ALTER SYSTEM RESET ALL")
        healthy.rows("SELECT pg_reload_conf()")


def test_a_database_that_cannot_hold_every_text(own_server: str) -> None:
    with psycopg.connect(own_server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")
        try:
            finding = the_only(urlsplit(own_server)._replace(path="/latin").geturl(), "encoding")
        finally:
            connection.execute("DROP DATABASE latin WITH (FORCE)")
    assert (finding.verdict, "LATIN1" in finding.finding) == ("problem", True)


def test_a_standby_is_a_problem() -> None:
    with postgres.directory() as directory:
        cluster = Cluster(directory / "data")
        cluster.prepare()
        (cluster.pgdata / "standby.signal").touch()
        url = urlsplit(cluster.url)._replace(path="/postgres").geturl()
        try:
            cluster.start()
            deadline = time.monotonic() + 60
            while True:
                with suppress(psycopg.OperationalError):
                    psycopg.connect(url).close()
                    break
                assert time.monotonic() < deadline, cluster.log_tail()
            findings = {finding.check: finding for finding in doctor.examine(url)}
        finally:
            cluster.stop()
    assert findings["primary"].verdict == "problem"
    assert {finding.verdict for finding in findings.values()} <= {"problem", "ok", "unknown"}


@pytest.mark.parametrize(
    ("ahead", "error", "verdict", "said"),
    [
        (0.2, 0.01, "ok", "+200.0 ms ± 10.0 ms"),
        (-5.0, 4.5, "ok", "-5000.0 ms"),
        (-5.0, 0.1, "warning", "5.0 s behind"),
        (7200.0, 0.1, "warning", "2 h ahead of"),
    ],
)
def test_clocks(ahead: float, error: float, verdict: str, said: str) -> None:
    finding = server.judge_clock(ahead, error)
    assert finding.verdict == verdict
    assert said in finding.finding


def test_a_wrong_local_clock(bare: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    right = time.time
    monkeypatch.setattr(server.time, "time", lambda: right() - 90)  # type: ignore[attr-defined]
    finding = the_only(bare.url, "clock")
    assert finding.verdict == "warning"
    assert "90 s behind" in finding.finding


# ------------------------------------------------------------------------------------------------------------------------ schema


def test_a_database_without_the_schema(bare: Database) -> None:
    findings = doctor.examine(bare.url)
    assert (findings[0].check, findings[0].verdict) == ("schema", "problem")
    assert "jobqueue migrate" in (findings[0].advice or "")
    assert {finding.verdict for finding in findings[1:]} == {"ok"}


@pytest.mark.parametrize("version", [schema.SCHEMA_VERSION - 1, schema.SCHEMA_VERSION + 1])
def test_a_schema_that_does_not_support_this_version(healthy: Database, version: int) -> None:
    healthy.rows("UPDATE jobqueue_internal.schema_version SET version = %s, oldest_node = %s", version, version)
    finding = the_only(healthy.url, "schema")
    assert finding.verdict == "problem"
    assert f"version {version}" in finding.finding
    assert found(healthy.url, "objects") == []


def test_a_newer_schema_that_supports_this_version(healthy: Database) -> None:
    healthy.rows("UPDATE jobqueue_internal.schema_version SET version = %s", schema.SCHEMA_VERSION + 1)
    assert the_only(healthy.url, "schema").verdict == "ok"
    assert the_only(healthy.url, "objects").verdict == "ok"


def test_an_upgrade_that_is_not_finished(healthy: Database) -> None:
    healthy.rows("UPDATE jobqueue_internal.schema_version SET oldest_node = %s", schema.SCHEMA_VERSION - 1)
    finding = the_only(healthy.url, "schema")
    assert finding.verdict == "warning"
    assert "jobqueue migrate --finish" in (finding.advice or "")


def test_a_schema_that_lost_its_version(healthy: Database) -> None:
    healthy.rows("DELETE FROM jobqueue_internal.schema_version")
    assert the_only(healthy.url, "schema").verdict == "problem"


@pytest.mark.parametrize(
    ("damage", "verdict", "said"),
    [
        ("DROP FUNCTION jobqueue_internal.wake_keys()", "problem", "functions are missing: jobqueue_internal.wake_keys"),
        (
            "CREATE OR REPLACE FUNCTION jobqueue_internal.wake_keys() RETURNS void LANGUAGE sql AS 'SELECT NULL::void'",
            "warning",
            "differ from this version's schema.sql: jobqueue_internal.wake_keys",
        ),
        ("DROP INDEX jobqueue_internal.pending_jobs_turn", "problem", "indexes are missing: jobqueue_internal.pending_jobs_turn"),
        ("DROP TABLE jobqueue_internal.cancel_requests", "problem", "tables are missing: jobqueue_internal.cancel_requests"),
        ("ALTER TABLE jobqueue_internal.pending_jobs DISABLE TRIGGER block", "problem", "the trigger block"),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'jobqueue_internal.keys_expires_at'::regclass",
            "problem",
            "invalid",
        ),
    ],
)
def test_a_modified_schema(healthy: Database, damage: str, verdict: str, said: str) -> None:
    healthy.rows(damage)
    finding = the_only(healthy.url, "objects")
    assert finding.verdict == verdict
    assert said in finding.finding


def test_missing_privileges_of_a_role_are_a_finding(healthy: Database, role: str) -> None:
    url = postgres.as_role(healthy.url, role)
    finding = the_only(url, "privileges")
    assert finding.verdict == "problem"
    assert finding.finding == f"role {role} lacks privileges that a node needs: USAGE on jobqueue_internal"
    assert finding.advice == f"as the owner of the schema, jobqueue migrate --grant node={role}"
    # Only checks of tables that the role cannot read are unknown.
    verdicts = {finding.check: finding.verdict for finding in doctor.examine(url)}
    assert {check for check, verdict in verdicts.items() if verdict == "unknown"} == {
        "schema", "objects", "copy", "partitions", "nodes", "queues", "overdue", "schedules", "dead letters",
    }  # fmt: skip
    healthy.rows(f"GRANT USAGE ON SCHEMA jobqueue_internal TO {role}")
    assert "needs: SELECT on jobqueue.dead_jobs, SELECT on jobqueue.jobs, " in the_only(url, "privileges").finding
    postgres.granted(healthy.url, "node", role)
    assert the_only(url, "privileges").verdict == "ok"


def test_revoked_functions(healthy: Database, role: str) -> None:
    url = postgres.granted(healthy.url, "node", role)
    healthy.rows(f"REVOKE EXECUTE ON FUNCTION jobqueue_internal.claim, pg_notify(text, text) FROM PUBLIC, {role}")
    said = [finding.finding for finding in found(url, "privileges")]
    assert [text for text in said if "needs: EXECUTE on jobqueue_internal.claim(" in text]
    assert [text for text in said if "pg_notify" in text]


def test_a_role_that_can_create_functions_in_the_schemas(healthy: Database, role: str) -> None:
    healthy.rows(f"GRANT CREATE ON SCHEMA jobqueue_internal TO {role}, PUBLIC")
    finding = the_only(healthy.url, "privileges")
    assert finding.verdict == "warning"
    healthy.rows(finding.advice or "")
    assert the_only(healthy.url, "privileges").verdict == "ok"


def test_missing_partitions_and_jobs_outside_partitions(healthy: Database) -> None:
    submit(healthy)
    healthy.rows(
        "WITH job AS (DELETE FROM jobqueue_internal.pending_jobs RETURNING *) INSERT INTO jobqueue_internal.finished_jobs"
        " (id, queue, kind, priority, state, payload, attempt, claims, created_at, available_since, finished_at, errors)"
        " SELECT id, queue, kind, priority, 'succeeded', payload, 1, 1, created_at, available_since,"
        " now() + interval '40 days', '[]' FROM job"
    )
    finding = the_only(healthy.url, "partitions")
    assert (finding.verdict, finding.finding.split(" in ")[0]) == ("warning", "1 job")
    tomorrow = healthy.value("SELECT to_char((now() AT TIME ZONE 'UTC')::date + 1, 'YYYYMMDD')")
    healthy.rows(f"DROP TABLE jobqueue_internal.cancelled_jobs_{tomorrow}")
    said = [finding.finding for finding in found(healthy.url, "partitions")]
    assert any(text.startswith("cancelled_jobs has no partition for tomorrow") for text in said)


# ----------------------------------------------------------------------------------------------------------------------- horizon


@pytest.mark.parametrize(("seconds", "verdict"), [("OPEN_WARNING", "warning"), ("OPEN_PROBLEM", "problem")])
def test_an_open_transaction_is_a_finding_and_the_advice_ends_it(
    healthy: Database, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch, seconds: str, verdict: str
) -> None:
    monkeypatch.setattr(vacuum, seconds, 0.0)
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    finding = the_only(healthy.url, "horizon")
    assert finding.verdict == verdict
    assert f"pid {other.info.backend_pid} " in finding.finding
    assert "somebody, idle in transaction" in finding.finding
    healthy.rows(finding.advice or "")
    with pytest.raises(psycopg.OperationalError):
        other.execute("SELECT 1")
    wait_for(lambda: the_only(healthy.url, "horizon").verdict == "ok")


def test_a_young_transaction_is_ok(healthy: Database, other: psycopg.Connection[Any]) -> None:
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    assert the_only(healthy.url, "horizon").verdict == "ok"


def test_without_the_privilege_to_see_times_transactions_are_counted(
    healthy: Database, role: str, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "AGE_WARNING", 0)
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    finding = the_only(postgres.as_role(healthy.url, role), "horizon")
    assert finding.verdict == "warning"
    assert "members of pg_read_all_stats" in finding.finding


def test_a_prepared_transaction(healthy: Database, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacuum, "OPEN_PROBLEM", 0.0)
    other.execute("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'it''s forgotten'")
    finding = the_only(healthy.url, "horizon")
    assert finding.verdict == "problem"
    assert "'it''s forgotten'" in finding.finding
    healthy.rows((finding.advice or "").rpartition(", or ")[2])  # ROLLBACK PREPARED
    assert the_only(healthy.url, "horizon").verdict == "ok"


def test_an_unused_replication_slot(healthy: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "WAL_WARNING", 0)
    healthy.rows("SELECT pg_create_physical_replication_slot('forgotten', true)")
    try:
        finding = the_only(healthy.url, "WAL")
    finally:
        healthy.rows("SELECT pg_drop_replication_slot('forgotten')")
    assert finding.verdict == "warning"
    assert "slot forgotten (nobody reads it" in finding.finding
    assert (finding.advice or "").endswith("SELECT pg_drop_replication_slot('forgotten')")
    assert the_only(healthy.url, "WAL").verdict == "ok"


def test_ages_of_holders() -> None:
    assert vacuum.judge_hold(59, 10**9) is None
    assert vacuum.judge_hold(60, 1) == "warning"
    assert vacuum.judge_hold(600, 1) == "problem"
    assert vacuum.judge_hold(None, 1) is None
    assert vacuum.judge_hold(None, 10**7) == "problem"


def test_standbys_and_their_slots() -> None:
    session = {"pid": 7, "who": "replica", "program": "walreceiver", "state": None, "seconds": None, "walsender": True}
    found = vacuum.judge_session(SimpleNamespace(**session, transactions=200_000))
    assert found is not None
    assert found.verdict == "warning"
    assert "pg_terminate_backend" not in (found.advice or "")
    assert vacuum.judge_session(SimpleNamespace(**session, transactions=1)) is None

    def judge(**figures: Any) -> str | None:
        judged = vacuum.judge_slot(SimpleNamespace(name="standby", **figures))
        return judged and judged.verdict

    assert judge(active=True, transactions=1_000) is None
    assert judge(active=False, transactions=1_000) == "warning"
    assert judge(active=True, transactions=20_000_000) == "problem"


def test_autovacuum_turned_off_for_a_table(healthy: Database) -> None:
    healthy.rows("ALTER TABLE jobqueue_internal.pending_jobs SET (autovacuum_enabled = off)")
    finding = the_only(healthy.url, "vacuum")
    assert finding.verdict == "problem"
    assert "pending_jobs" in finding.finding
    healthy.rows(finding.advice or "")
    assert the_only(healthy.url, "vacuum").verdict == "ok"


def test_many_dead_rows(healthy: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vacuum, "DEAD_WARNING", 100)
    submit(healthy, 200)
    healthy.rows("DELETE FROM jobqueue_internal.pending_jobs; SELECT pg_stat_force_next_flush()")
    wait_for(lambda: the_only(healthy.url, "vacuum").verdict == "warning")
    finding = the_only(healthy.url, "vacuum")
    assert finding.finding.startswith("pending_jobs has ")
    assert "never vacuumed" in finding.finding


def test_bloat_dead_rows_and_wraparound() -> None:
    def judge(**figures: Any) -> list[str]:
        row = {"name": "pending_jobs", "live": 0, "dead": 0, "bytes": 0, "vacuumed": None, **figures}
        return [finding.verdict for finding in vacuum.judge_table(SimpleNamespace(**row), DEFAULT)]

    assert judge(dead=50_000, live=60_000) == []
    assert judge(dead=50_000, live=40_000) == ["warning"]
    assert judge(dead=3_000_000) == ["problem"]
    assert judge(bytes=1 << 30, live=1_000_000) == []
    assert judge(bytes=1 << 30, live=1_000) == ["warning"]
    assert vacuum.judge_wraparound(199_000_000, 0).verdict == "ok"
    assert vacuum.judge_wraparound(500_000_000, 0).verdict == "warning"
    assert vacuum.judge_wraparound(0, 1_500_000_000).verdict == "problem"


def test_a_blocked_session_and_its_blocker_are_found(
    healthy: Database, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "LOCK_WARNING", 0.0)
    other.execute("BEGIN; LOCK TABLE jobqueue_internal.pending_jobs IN SHARE MODE")
    with psycopg.connect(healthy.url, autocommit=True, application_name="jobqueue submit") as waiting:
        thread = threading.Thread(target=lambda: waiting.execute("SELECT jobqueue.submit('greet')"))
        thread.start()
        wait_for(lambda: the_only(healthy.url, "locks").verdict == "warning")
        finding = the_only(healthy.url, "locks")
        assert f"pid {waiting.info.backend_pid} (jobqueue submit)" in finding.finding
        assert finding.advice == f"SELECT pg_terminate_backend({other.info.backend_pid})"
        other.execute("COMMIT")
        thread.join()


def test_the_advice_for_a_blocking_prepared_transaction_ends_no_process(
    healthy: Database, other: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vacuum, "LOCK_WARNING", 0.0)
    other.execute("BEGIN; LOCK TABLE jobqueue_internal.pending_jobs IN SHARE MODE; PREPARE TRANSACTION 'locked'")
    with psycopg.connect(healthy.url, autocommit=True, application_name="jobqueue submit") as waiting:
        thread = threading.Thread(target=lambda: waiting.execute("SELECT jobqueue.submit('greet')"))
        thread.start()
        wait_for(lambda: the_only(healthy.url, "locks").verdict == "warning")
        advice = the_only(healthy.url, "locks").advice or ""
        other.execute("ROLLBACK PREPARED 'locked'")
        thread.join()
    assert "pg_prepared_xacts" in advice
    assert "pg_terminate_backend" not in advice


# ---------------------------------------------------------------------------------------------------------------------- capacity


def test_a_filled_server(healthy: Database) -> None:
    add_node(healthy, default=16)
    with idle_connections(healthy.url):
        # Superusers can use the reserved connections.
        finding = the_only(healthy.url, "connections")
    assert finding.verdict == "problem"
    assert f"allows {CONNECTIONS - 3}:" in finding.finding
    assert ", 0 are free" in finding.finding
    # Server processes end shortly after their connections.
    wait_for(lambda: the_only(healthy.url, "connections").verdict == "ok")


@contextmanager
def idle_connections(url: str) -> Iterator[None]:
    opened: list[psycopg.Connection[Any]] = []
    try:
        with suppress(psycopg.OperationalError):
            while len(opened) < CONNECTIONS - 4:
                opened.append(psycopg.connect(url))
        yield
    finally:
        for connection in opened:
            connection.close()


@pytest.mark.parametrize("limited", ["ROLE", "DATABASE"])
def test_the_tightest_limit_counts(healthy: Database, role: str, limited: str) -> None:
    name = role if limited == "ROLE" else urlsplit(healthy.url).path[1:]
    healthy.rows(f"ALTER {limited} {name} CONNECTION LIMIT 4")
    finding = the_only(postgres.as_role(healthy.url, role), "connections")
    assert finding.verdict == "warning"
    assert "CONNECTION LIMIT" in finding.finding
    assert "allows 4:" in finding.finding


def test_budgets() -> None:
    def judge(limit: int, used: int, **figures: Any) -> str:
        return capacity.judge_connections("max_connections", limit, used, **{"ours": 0, "nodes": None, **figures}).verdict

    assert judge(97, 1) == "ok"
    assert judge(97, 98) == "problem"
    assert judge(97, 94) == "warning"  # 4 connections are free, a node needs 7
    assert judge(97, 76, ours=21, nodes=3) == "warning"  # 22 connections are free, and 48 transactions may need one
    assert judge(97, 30, ours=21, nodes=3) == "ok"


def test_disks_and_notifications() -> None:
    gigabyte = 1 << 30
    assert capacity.judge_disk("", "/data", 50 * gigabyte, 100 * gigabyte).verdict == "ok"
    assert capacity.judge_disk("", "/data", gigabyte, 100 * gigabyte).verdict == "warning"
    assert capacity.judge_disk("", "/data", 1000, 100 * gigabyte).verdict == "problem"
    assert [capacity.judge_notifications(usage).verdict for usage in (0.0, 0.2, 0.6)] == ["ok", "warning", "problem"]


def test_free_space_requires_the_privilege_to_see_the_directory(healthy: Database, role: str) -> None:
    assert " are free in " in the_only(healthy.url, "disk").finding
    assert "pg_read_all_settings" in the_only(postgres.as_role(healthy.url, role), "disk").finding


# -------------------------------------------------------------------------------------------------------------------------- work


def test_no_node_runs(healthy: Database) -> None:
    assert the_only(healthy.url, "nodes").verdict == "warning"


def test_a_node_with_an_expired_lease_whose_jobs_are_not_recovered(healthy: Database) -> None:
    add_node(healthy, lease="-2 min", default=16)
    lost, nobody = found(healthy.url, "nodes")
    assert (lost.verdict, lost.advice) == ("warning", "start a node: it recovers the jobs")
    assert nobody.verdict == "warning"
    add_node(healthy, default=16)
    finding = the_only(healthy.url, "nodes")
    assert finding.verdict == "problem"
    assert "lost its lease 2 min ago, and 0 jobs" in finding.finding


def test_nodes_of_different_versions(healthy: Database) -> None:
    add_node(healthy, version="0.0.1", default=16)
    add_node(healthy, default=16)
    finding = the_only(healthy.url, "nodes")
    assert finding.verdict == "warning"
    assert f"nodes run 0.0.1, {__version__}" in finding.finding


def test_a_paused_queue_with_a_backlog(healthy: Database) -> None:
    add_node(healthy, default=16)
    submit(healthy, 3, waited="3 h")
    healthy.rows("SELECT jobqueue.pause('default')")
    finding = the_only(healthy.url, "queues")
    assert finding.verdict == "warning"
    assert finding.finding == "3 jobs wait in queue default, the oldest for 3 h: the queue is paused"


def test_a_queue_that_no_node_works(healthy: Database) -> None:
    add_node(healthy, default=16)
    submit(healthy, 1)
    submit(healthy, 2, queue="mail")
    finding = the_only(healthy.url, "queues")
    assert finding.verdict == "problem"
    assert finding.finding.startswith("2 jobs wait in queue mail, ")
    assert finding.finding.endswith("no node works the queue")


def test_jobs_that_wait_while_workers_are_free(healthy: Database) -> None:
    add_node(healthy, default=16)
    submit(healthy, 1, waited="5 min")
    finding = the_only(healthy.url, "queues")
    assert finding.verdict == "problem"
    assert "16 of its 16 workers are free: no node claims" in finding.finding
    # A limit explains why the jobs wait.
    healthy.rows("SELECT jobqueue.configure('default', max_running => 1)")
    assert the_only(healthy.url, "queues").verdict == "ok"


@pytest.mark.parametrize(
    ("delay", "said"),
    [
        (
            "UPDATE jobqueue_internal.scheduled_jobs SET run_at = now() - interval '5 min'",
            "2 scheduled jobs are overdue, the first by 5 min",
        ),
        (
            "INSERT INTO jobqueue_internal.key_checks VALUES ('default', 'k', now() - interval '5 min')",
            "1 checks of concurrency keys",
        ),
        ("UPDATE jobqueue_internal.schedules SET next_at = now() - interval '5 min'", "1 schedules are overdue"),
    ],
)
def test_overdue_jobs_checks_and_schedules(healthy: Database, delay: str, said: str) -> None:
    healthy.rows("SELECT jobqueue.submit('greet', run_at => now() + interval '1 hour') FROM generate_series(1, 2)")
    healthy.rows("SELECT jobqueue.schedule('hourly', '0 * * * *', 'greet')")
    assert the_only(healthy.url, "overdue").verdict == "ok"
    healthy.rows(delay)
    finding = the_only(healthy.url, "overdue")
    assert finding.verdict == "problem"
    assert said in finding.finding


def test_a_schedule_with_an_error(healthy: Database) -> None:
    healthy.rows("SELECT jobqueue.schedule('hourly', '0 * * * *', 'greet')")
    assert the_only(healthy.url, "schedules").verdict == "ok"
    healthy.rows("UPDATE jobqueue_internal.schedules SET error = 'no such time zone'")
    finding = the_only(healthy.url, "schedules")
    assert (finding.verdict, finding.finding) == ("problem", "hourly submits no jobs: no such time zone")


def test_dead_letters_of_the_last_hour(healthy: Database) -> None:
    submit(healthy, 3)
    healthy.rows(
        "WITH job AS (DELETE FROM jobqueue_internal.pending_jobs RETURNING *) INSERT INTO jobqueue_internal.dead_jobs"
        " (id, queue, kind, priority, reason, payload, attempt, claims, created_at, available_since, died_at, errors)"
        " SELECT id, queue, kind, priority, 'retries exhausted', payload, 1, 1, created_at, available_since, now(), '[]' FROM job"
    )
    finding = the_only(healthy.url, "dead letters")
    assert finding.verdict == "warning"
    assert finding.finding == "3 jobs died in the last hour, 3 of them of kind greet (retries exhausted)"
    healthy.rows("UPDATE jobqueue_internal.dead_jobs SET died_at = now() - interval '2 hours'")
    assert the_only(healthy.url, "dead letters").verdict == "ok"


# ------------------------------------------------------------------------------------------------------------------- the command


def test_the_command_sorts_the_worst_first_and_ends_with_1(healthy: Database) -> None:
    submit(healthy, 1)
    ended = run_jobqueue("doctor", "--database-url", healthy.url)
    assert ended.returncode == 1, ended.stderr
    verdicts = [line.split()[0] for line in ended.stdout.splitlines() if line[:1].isalpha()]
    assert verdicts[0] == "problem"
    assert verdicts.index("warning") < verdicts.index("ok")
    assert "→ jobqueue serve ... --queue default=16" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("1 problem, 1 warning, ")


def test_the_command_as_json_with_warnings_ends_with_0(healthy: Database) -> None:
    ended = run_jobqueue("doctor", "--json", env={"DATABASE_URL": healthy.url})
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert document["verdict"] == "warning"
    assert document["findings"][0] == {
        "check": "nodes",
        "verdict": "warning",
        "finding": "no node is running: jobs can be submitted from SQL, but none runs",
        "advice": "run jobqueue serve",
    }


def test_an_unreachable_database_is_a_finding(tmp_path: Path) -> None:
    ended = run_jobqueue("doctor", "--json", "--database-url", f"postgresql://u@/d?host={quote(str(tmp_path))}")
    assert ended.returncode == 4
    [finding] = json.loads(ended.stdout)["findings"]
    assert (finding["verdict"], "cannot connect" in finding["finding"]) == ("problem", True)


def test_an_invalid_url_is_a_usage_error_and_is_not_shown() -> None:
    ended = run_jobqueue("doctor", "--database-url", "secret@host")
    assert ended.returncode == 2
    assert "cannot be read" in ended.stderr
    assert "secret" not in ended.stderr + ended.stdout


def test_an_embedded_server_is_found_by_its_directory(own_server: str) -> None:
    data_dir = Path(parse_qs(urlsplit(own_server).query)["host"][0]).parent
    ended = run_jobqueue("doctor", "--json", "--data-dir", str(data_dir))
    assert ended.returncode == 1, ended.stderr  # the new server has no schema
    assert json.loads(ended.stdout)["findings"][0]["check"] == "schema"


def test_findings_have_the_name_of_their_check(healthy: Database) -> None:
    for name, check in {**doctor.SERVER_CHECKS, **doctor.SCHEMA_CHECKS}.items():
        with connect(healthy.url, "doctor") as connection:
            assert {finding.check for finding in doctor.look(connection, name, check)} == {name}


def test_the_catalog_finds_every_object_of_schema_sql() -> None:
    text = schema.script()
    assert len(catalog.FUNCTION.findall(text)) == text.count("CREATE OR REPLACE FUNCTION")
    assert len(catalog.VIEW.findall(text)) == text.count("CREATE OR REPLACE VIEW") + text.count("CREATE VIEW jobqueue_internal.")
    assert len(catalog.TABLE.findall(text)) == text.count("CREATE TABLE IF NOT EXISTS")
    assert len(catalog.INDEX.findall(text)) == len(re.findall(r"^ *CREATE INDEX ", text, re.MULTILINE))


@pytest.mark.parametrize(
    "change",
    [
        "ALTER FUNCTION jobqueue_internal.wake_keys() SET enable_seqscan = off",
        "ALTER TABLE jobqueue_internal.queues ALTER COLUMN fair DROP NOT NULL",
        "ALTER TABLE jobqueue_internal.queues DROP CONSTRAINT rate_range",
        "ALTER VIEW jobqueue.jobs RENAME COLUMN kind TO sort",
    ],
)
def test_changes_of_settings_and_columns_are_found_in_a_recorded_schema(healthy: Database, change: str) -> None:
    with connect(healthy.url, "migrate") as connection:
        schema.migrate(connection)
    assert the_only(healthy.url, "objects").verdict == "ok"
    healthy.rows(change)
    finding = the_only(healthy.url, "objects")
    assert (finding.verdict, "was changed since" in finding.finding) == ("warning", True)


def test_a_busy_queue_is_ok() -> None:
    row = {"name": "q", "paused": False, "limited": False, "workers": 4, "jobs": 10_000, "oldest": 900.0, "running": 4}
    assert work.judge_queue(SimpleNamespace(**row)) is None
    assert work.judge_queue(SimpleNamespace(**{**row, "running": 3})) is not None
