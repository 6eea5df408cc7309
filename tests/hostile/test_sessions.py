"""A node works with any settings of its database: each main operation succeeds or is clearly rejected."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import httpx
import psycopg
import pytest
import trio

import jobqueue
from jobqueue import service
from jobqueue.concurrency.stages import Stages, open_stages
from jobqueue.http.access.credentials import Credentials
from jobqueue.http.transport.listeners import open_listeners, urls
from jobqueue.settings import Settings
from jobqueue.storage import doctor
from jobqueue.storage.embedded import stage as embedded
from jobqueue.storage.postgres.store import PostgresStore
from tests.support.postgres import Database
from tests.support.waiting import until

pytestmark = pytest.mark.no_schema

ODD: dict[str, tuple[str, ...]] = {
    "TimeZone": ("Asia/Tokyo", "America/St_Johns"),
    "DateStyle": ("SQL, DMY", "German"),
    "IntervalStyle": ("iso_8601", "sql_standard"),
    "client_encoding": ("LATIN1", "SQL_ASCII"),
    "default_transaction_isolation": ("repeatable read", "serializable"),
    "default_transaction_read_only": ("on",),
    "default_transaction_deferrable": ("on",),
    "standard_conforming_strings": ("off",),
    "extra_float_digits": ("-15", "0"),
    "bytea_output": ("escape",),
    "search_path": ("nowhere", "jobqueue, public"),
    "statement_timeout": ("30ms", "100ms"),
    "lock_timeout": ("1ms", "10ms"),
    "idle_in_transaction_session_timeout": ("10ms", "100ms"),
    # A session may end before its first statement. A running node opens another one, but a starting node fails. The test of starts
    # uses the first or last values, so these are longer.
    "idle_session_timeout": ("5s", "50ms", "3s"),
    "row_security": ("off",),
    "array_nulls": ("off",),
    "transform_null_equals": ("on",),
    "quote_all_identifiers": ("on",),
    "exit_on_error": ("on",),
    "client_min_messages": ("debug5", "error"),
    "synchronous_commit": ("off", "local"),
    "plan_cache_mode": ("force_custom_plan", "force_generic_plan"),
    "jit_above_cost": ("0",),
    "work_mem": ("64kB",),
    "join_collapse_limit": ("1",),
    "enable_indexscan": ("off",),
    "enable_nestloop": ("off",),
    "enable_sort": ("off",),
    "enable_hashagg": ("off",),
    "enable_seqscan": ("off",),
    "plpgsql.extra_errors": ("all",),
    "plpgsql.variable_conflict": ("use_variable", "use_column"),
    "lc_messages": ("C",),
}
"""Settings that a session inherits from its database, with odd values for each."""

TEXT = "grüße 😀 \u2028"


def make_app() -> jobqueue.App:
    app = jobqueue.App()
    once = jobqueue.Backoff(base=0.01, cap=0.01)

    @app.handler("echo")
    async def echo(job: jobqueue.Job, text: str = "") -> dict[str, Any]:
        job.progress(0.5, text)
        return {"text": text, "created": job.created_at.isoformat(), "waited": 1e-300}

    @app.handler("fails", max_retries=1, backoff=once)
    def fails(text: str) -> None:
        raise RuntimeError(text)

    @app.handler("writes")
    def writes(conn: psycopg.Connection) -> str:
        return str(conn.execute("SELECT count(*) FROM public.effects").fetchone())

    return app


class Client:
    """Short names for a user's calls over HTTP and in SQL."""

    def __init__(self, http: httpx.AsyncClient, database: Database) -> None:
        self.http = http
        self.database = database

    async def call(self, method: str, path: str, document: Any = None, *, status: int = 200) -> Any:
        content = None if document is None else json.dumps(document)
        answer = await self.http.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.headers["Content-Type"].endswith("json") else answer.text

    async def submit(self, **fields: Any) -> str:
        return str((await self.call("POST", "/submit", fields, status=201))["id"])

    async def ended(self, job_id: str, state: str) -> Mapping[str, Any]:
        with trio.fail_after(60):
            while (job := await self.call("GET", f"/jobs/{job_id}"))["state"] != state:
                assert job["state"] in ("pending", "inflight", "scheduled", "blocked"), job
                await trio.sleep(0.01)
        return dict(job)

    async def in_sql(self, sql: str, *params: Any) -> Any:
        """Run a statement in a session with the odd setting. Return None if PostgreSQL rejects writes, or the time is too short."""

        def run() -> Any:
            with psycopg.connect(self.database.url, autocommit=True) as connection:
                row = connection.execute(sql, params or None).fetchone()
                return None if row is None else row[0]

        with suppress(psycopg.errors.ReadOnlySqlTransaction, psycopg.OperationalError):  # also if the idle session has ended
            return await trio.to_thread.run_sync(run)


async def jobs_by_http(client: Client) -> None:
    job = await client.ended(await client.submit(kind="echo", payload={"text": TEXT}), "succeeded")
    assert job["result"]["text"] == TEXT
    assert job["result"]["waited"] == 1e-300
    job = await client.ended(await client.submit(kind="fails", payload={"text": TEXT}), "dead")
    assert TEXT in job["errors"][-1]["error"]
    await client.call("POST", f"/jobs/{job['id']}/retry")
    await client.ended(job["id"], "dead")
    await client.ended(await client.submit(kind="writes"), "succeeded")
    refused = await client.call("POST", "/submit", {"priority": -1}, status=400)
    assert refused["field"] == "priority"


async def jobs_by_sql(client: Client) -> None:
    job_id = await client.in_sql("SELECT jobqueue.submit('echo', '{\"text\": \"plain\"}', run_at => now() - interval '1 hour')")
    if job_id is not None:
        await client.ended(str(job_id), "succeeded")
    jobs = [{"kind": "echo", "group": "g"}, {"kind": "echo", "delay": 3600}]
    ids = await client.in_sql("SELECT jobqueue.submit_many(%s::jsonb)", json.dumps(jobs))
    if ids is not None:
        await client.ended(str(ids[0]), "succeeded")
        assert await client.in_sql("SELECT jobqueue.cancel(%s)", str(ids[1])) in (True, None)


async def keys_groups_and_limits(client: Client) -> None:
    await client.call("PUT", "/queues/default", {"max_running": 2, "rate": 1000, "key_max_running": 1, "key_rate": 1000})
    first = await client.submit(kind="echo", unique_key="u", delay=3600)
    assert (await client.call("POST", "/submit", {"kind": "echo", "unique_key": "u"}, status=200))["id"] == first
    await client.call("PATCH", f"/jobs/{first}", {"priority": 7})
    assert (await client.call("GET", f"/jobs/{first}"))["priority"] == 7
    await client.call("POST", f"/jobs/{first}/cancel")
    fields: list[dict[str, Any]] = [
        {"group": "g"},
        {"concurrency_key": "k"},
        {"idempotency_key": first},
        {"expires_in": 600},
        {"run_at": "2020-01-01T00:00:00Z"},
    ]
    for job_id in [await client.submit(kind="echo", **each) for each in fields]:
        await client.ended(job_id, "succeeded")
    await client.call("PUT", "/queues/default", {"max_running": None, "rate": None, "key_rate": None})


async def schedules(client: Client) -> None:
    body = {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "kind": "echo", "payload": {"text": TEXT}}
    await client.call("PUT", "/schedules/nightly", body, status=201)
    with trio.fail_after(60):
        while (await client.call("GET", "/schedules/nightly"))["next_at"] is None:  # noqa: ASYNC110
            await trio.sleep(0.01)
    triggered = await client.call("POST", "/schedules/nightly/trigger", status=201)
    await client.ended(triggered["id"], "succeeded")
    await client.call("DELETE", "/schedules/nightly")


async def looking(client: Client) -> None:
    for path in ("/jobs", "/dead", "/dead/causes", "/queues", "/nodes", "/schedules", "/history", "/metrics", "/tasks"):
        await client.call("GET", path)
    host, port = client.http.base_url.host, client.http.base_url.port
    assert port is not None
    told = b""
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(b"GET /overview/events HTTP/1.1\r\nHost: %s\r\n\r\n" % host.encode())
        with trio.fail_after(60):
            while b"event: history" not in told:
                told += await stream.receive_some()
    assert b"event: overview" in told
    assert b"event: trouble" not in told


async def upkeep(client: Client) -> None:
    store = PostgresStore(client.database.url)
    await store.maintain(keep_finished=86_400, keep_cancelled=86_400)
    await store.prune(keep_finished=86_400, keep_cancelled=86_400, keep_dead=86_400)
    await store.prune_keys()
    await store.aclose()
    findings = await trio.to_thread.run_sync(doctor.examine, client.database.url)
    assert [finding for finding in findings if finding.verdict == "unknown" and "took more than" in finding.finding] == []


OPERATIONS = [jobs_by_http, jobs_by_sql, keys_groups_and_limits, schedules, looking, upkeep]


@asynccontextmanager
async def running(url: str) -> AsyncIterator[tuple[service.Engine, str, Stages]]:
    """Run a node with all of its parts, including HTTP, in this process."""
    settings = Settings(queues={"default": 4}, poll_interval=0.2, visibility_timeout=10, grace_period=1, port=0)
    async with open_stages() as stages, service.open_engine(make_app(), settings, PostgresStore(url)) as engine:
        await service.start_engine(engine, stages, url)
        listeners = open_listeners(settings.host, 0)
        stopping = trio.Event()
        serve = partial(service._serve_http, credentials=Credentials(settings), server_health=embedded.ServerHealth())
        await stages.start("http", serve, engine, settings, stages, listeners, stopping)
        yield engine, urls(listeners, "http")[0], stages
        await service._shut_down(engine, settings, stages, stopping)


async def use(url: str, base: str, operations: list[Callable[[Client], Any]] = OPERATIONS) -> None:
    database = Database(url)
    async with httpx.AsyncClient(base_url=base, timeout=60) as http:
        for operation in operations:
            await operation(Client(http, database))
    database.close()


async def tell_all_sessions(database: Database) -> None:
    """End all sessions of nodes, so that the next ones have the current settings of the database."""
    told = database.rows("""
        SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    """)
    old = [pid for pid, _ in told]
    await until(lambda: not database.rows("SELECT 1 FROM pg_stat_activity WHERE pid = ANY (%s)", old))


def setting(database: Database, name: str, value: str | None) -> None:
    what = f"RESET {name}" if value is None else f"SET {name} = {value if name == 'search_path' else repr(value)}"
    database.rows(f"ALTER DATABASE {database.value('SELECT quote_ident(current_database())')} {what}")


async def ready(base: str) -> None:
    async with httpx.AsyncClient(base_url=base, timeout=60) as http:
        with trio.fail_after(60):
            while (answer := await http.get("/health/ready")).status_code != 200:  # noqa: ASYNC110 - another process's state
                await trio.sleep(0.02)
    assert answer.json() == {"status": "ok"}


@pytest.mark.long
async def test_a_node_works_under_each_odd_setting(database_url: str, database: Database) -> None:
    database.rows("CREATE TABLE public.effects (n integer)")
    async with running(database_url) as (engine, base, stages):
        names = stages.names()
        for name, values in ODD.items():
            for value in values:
                setting(database, name, value)
                await tell_all_sessions(database)
                await trio.sleep(0.05)
                await ready(base)
                try:
                    await use(database_url, base)
                except BaseException as error:
                    error.add_note(f"with {name} = {value}")
                    raise
                assert stages.names() == names, f"with {name} = {value}"
                setting(database, name, None)
        assert engine.outcomes.held == set()


@pytest.mark.parametrize("which", [0, -1])
async def test_a_node_starts_under_all_odd_settings_at_once(which: int, database_url: str, database: Database) -> None:
    database.rows("CREATE TABLE public.effects (n integer)")
    for name, values in ODD.items():
        setting(database, name, values[which])
    async with running(database_url) as (_, base, stages):
        names = stages.names()
        await use(database_url, base, [jobs_by_http, keys_groups_and_limits, schedules, looking])
        assert stages.names() == names


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_of_another_encoding_is_refused_in_one_sentence(encoding: str, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE odd_encoding ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0".encode()
        )
        store = PostgresStore(psycopg.conninfo.make_conninfo(database_url, dbname="odd_encoding"))
        try:
            with pytest.raises(
                jobqueue.errors.SettingsError, match=f'the database "odd_encoding" has the encoding {encoding}, but'
            ) as refused:
                await store.migrate()
            assert "\n" not in str(refused.value)
        finally:
            await store.aclose()
            connection.execute("DROP DATABASE odd_encoding WITH (FORCE)")
