"""Inconsistent rows that only foreign SQL can create: they stop no node, and every other job runs.

The schema rejects most of them, but not one id in two tables. The node must tolerate such rows, because it would find them again
after a restart. `tests.hostile.test_rows` covers rows that PostgreSQL cannot move.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import httpx
import pytest
import trio

import jobqueue
from jobqueue.concurrency.stages import Stages
from jobqueue.engine import maintenance
from jobqueue.storage.postgres.store import PostgresStore
from tests.support.nodes import running_node
from tests.support.postgres import Database
from tests.support.service import Service
from tests.support.storage import new_id, open_driver
from tests.support.waiting import wait_for

ENDS = ["succeeds", "dies", "is tried again", "snoozes"]

RUN = {"claimed_at": "now()", "attempt": "1", "claims": "1", "errors": "'[]'"}

PLACES: dict[str, tuple[str, dict[str, str]]] = {
    "pending": ("pending_jobs", {"rank": "now()"}),
    "due": ("scheduled_jobs", {"run_at": "now()"}),
    "lost": ("inflight_jobs", {**RUN, "node_id": "gen_random_uuid()", "max_retries": "1"}),
    "lost for good": ("inflight_jobs", {**RUN, "node_id": "gen_random_uuid()", "max_retries": "0"}),
    "held": ("inflight_jobs", {**RUN, "node_id": "%(holder)s", "max_retries": "1"}),
    "dead": ("dead_jobs", {"reason": "'no luck'", "died_at": "now()", "attempt": "1", "claims": "1", "errors": "'[]'"}),
    "succeeded": ("finished_jobs", {**RUN, "state": "'succeeded'", "finished_at": "now()"}),
}
"""The places of a job's row: the table, and its columns beyond `EVERYWHERE`."""

EVERYWHERE = {
    "id": "%(id)s",
    "queue": "'default'",
    "kind": "%(kind)s",
    "priority": "0",
    "payload": "'{}'",
    "created_at": "now()",
    "available_since": "now()",
}


def forge(sql: Database, holder: str) -> dict[str, str]:
    """Create jobs with rows in two tables, for each pair of tables and each end of a run; return a description by id."""
    made = {}
    for one, other in itertools.combinations(PLACES, 2):
        if PLACES[one][0] == PLACES[other][0]:
            continue  # the primary key prevents this
        for kind in ENDS:
            job_id = new_id()
            made[job_id] = f"{one} and {other}, {kind}"
            for table, columns in (PLACES[one], PLACES[other]):
                row = {**EVERYWHERE, **columns}
                sql._connection.execute(
                    f"INSERT INTO jobqueue_internal.{table} ({', '.join(row)}) VALUES ({', '.join(row.values())})".encode(),
                    {"id": job_id, "kind": kind, "holder": holder},
                )
    return made


def make_app() -> jobqueue.App:
    app = jobqueue.App()
    seen: set[str] = set()
    at_once = jobqueue.Backoff(base=0.01, cap=0.01)

    def first_time(job: jobqueue.Job) -> bool:
        fresh = job.id not in seen
        seen.add(job.id)
        return fresh

    @app.handler("succeeds")
    async def succeeds() -> None: ...

    @app.handler("dies", max_retries=0)
    async def dies() -> None:
        raise RuntimeError("as ever")

    @app.handler("is tried again", max_retries=3, backoff=at_once)
    async def is_tried_again(job: jobqueue.Job) -> None:
        if first_time(job):
            raise RuntimeError("not yet")

    @app.handler("snoozes")
    async def snoozes(job: jobqueue.Job) -> None:
        if first_time(job):
            raise jobqueue.Snooze(0.01)

    return app


BUSY = "SELECT count(*) FROM jobqueue.jobs WHERE state IN ('pending', 'scheduled', 'inflight') AND id <> ALL (%s::uuid[])"


async def all_ended(sql: Database, stages: Stages, *, but: list[str]) -> None:
    with trio.fail_after(90):
        while sql.value(BUSY, but):
            assert not stages.stopping.is_set(), stages.failure
            await trio.sleep(0.05)


async def test_a_job_in_two_states_stops_no_node_and_affects_no_other_job(any_database_url: str, sql: Database) -> None:
    async with open_driver(any_database_url) as driver:
        await driver.join(lease=60)
        made = forge(sql, driver.node)
        good = await driver.submit_many(*({"kind": "succeeds"} for _ in range(50)))
        held = [job_id for job_id, places in made.items() if "held" in places]
        for _ in range(2):  # the second node finds the rows that the first one left
            async with running_node(make_app(), PostgresStore(any_database_url)) as (_, _, stages):
                parts = stages.names()
                await all_ended(sql, stages, but=held)
                await trio.sleep(0.5)  # time for another round of every part
                assert stages.names() == parts
        async with running_node(make_app(), PostgresStore(any_database_url)) as (_, _, stages):
            await driver.store.leave(driver.node)  # the jobs that it held can run now
            await all_ended(sql, stages, but=[])
    ends = {(job_id, state) for job_id, state in sql.rows("SELECT id::text, state FROM jobqueue.jobs")}
    assert {(job_id, "succeeded") for job_id in good} <= ends
    assert made.keys() <= {job_id for job_id, _ in ends}, "no job is lost"


@pytest.mark.parametrize(
    ("table", "forgery", "verb", "repair"),
    [
        ("scheduled_jobs", "available_since = 'infinity', run_at = now()", "promotion", "available_since = now()"),
        ("inflight_jobs", "priority = -1, node_id = gen_random_uuid()", "recovery", "priority = 0"),
    ],
    ids=["promote", "recover"],
)
async def test_a_row_that_cannot_be_moved_becomes_a_dead_letter_and_runs_after_a_repair(
    table: str, forgery: str, verb: str, repair: str, database_url: str
) -> None:
    async with open_driver(database_url) as driver:
        sql = Database(database_url)
        bad = await driver.submit(kind="succeeds", delay=3600.0 if table == "scheduled_jobs" else None)
        await driver.claim()
        sql.rows(f"UPDATE jobqueue_internal.{table} SET {forgery}")
        await driver.store.leave(driver.node)
        async with running_node(make_app(), PostgresStore(database_url)) as (_, _, stages):
            parts = stages.names()
            await driver.submit_many(*({"kind": "succeeds"} for _ in range(10)))
            await all_ended(sql, stages, but=[])
            assert stages.names() == parts
            assert sql.states() == {"succeeded": 10, "dead": 1}
            [[job_id, reason]] = sql.rows("SELECT id::text, reason FROM jobqueue_internal.dead_jobs")
            assert job_id == bad
            assert reason.startswith(f"the {verb} cannot move this row: ")
            sql.rows(f"UPDATE jobqueue_internal.dead_jobs SET {repair}")
            assert await driver.store.retry(bad)
            await all_ended(sql, stages, but=[])
        assert sql.states() == {"succeeded": 11}
        sql.close()


def test_a_row_that_cannot_be_claimed_becomes_a_dead_letter_and_the_node_stays_ready(
    service: Callable[..., Service], database: Database
) -> None:
    node = service("examples.quickstart", "--poll-interval", "0.1")
    database.rows("SELECT jobqueue.pause('default')")
    bad = database.value("SELECT jobqueue.submit('default')")
    database.rows("UPDATE jobqueue_internal.pending_jobs SET claims = 2147483647")
    database.rows("SELECT jobqueue.submit('default') FROM generate_series(1, 10)")
    database.rows("SELECT jobqueue.pause('default', false)")
    wait_for(lambda: database.states() == {"succeeded": 10, "dead": 1}, "the bad job is dead, and the others succeed")
    assert database.value("SELECT died_at - created_at < interval '60 seconds' FROM jobqueue_internal.dead_jobs")
    assert httpx.get(f"{node.url}/health/ready", timeout=60).status_code == 200
    answer = httpx.get(f"{node.url}/jobs/{bad}", timeout=60).json()
    assert answer["reason"] == "the claim cannot move this row: integer out of range"
    database.rows("UPDATE jobqueue_internal.dead_jobs SET claims = 0")
    assert httpx.post(f"{node.url}/jobs/{bad}/retry", timeout=60).is_success
    wait_for(lambda: database.states() == {"succeeded": 11}, "the job runs after the repair")
    assert node.stop() == 0


async def test_failing_maintenance_does_not_stop_a_node(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "PRUNE_INTERVAL", 0.05)
    async with open_driver(database_url):
        sql = Database(database_url)
        tomorrow = sql.value("SELECT to_char(now() AT TIME ZONE 'UTC' + interval '1 day', 'YYYYMMDD')")
        async with running_node(make_app(), PostgresStore(database_url)) as (_, _, stages):
            parts = stages.names()
            sql.rows("""
                CREATE TABLE jobqueue_internal.succeeded_jobs_old PARTITION OF jobqueue_internal.succeeded_jobs
                    FOR VALUES FROM ('1999-01-01 00:00+00') TO ('1999-01-02 00:00+00');
                CREATE VIEW public.old AS SELECT id FROM jobqueue_internal.succeeded_jobs_old
            """)
            sql.rows(f"DROP TABLE jobqueue_internal.succeeded_jobs_{tomorrow}")
            with trio.fail_after(60):
                while sql.value("SELECT to_regclass(%s)", f"jobqueue_internal.succeeded_jobs_{tomorrow}") is None:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert sql.value("SELECT to_regclass('jobqueue_internal.succeeded_jobs_old')")
            assert stages.names() == parts
            sql.rows("DROP VIEW public.old")
            with trio.fail_after(60):
                while sql.value("SELECT to_regclass('jobqueue_internal.succeeded_jobs_old')"):  # noqa: ASYNC110
                    await trio.sleep(0.05)
        sql.close()
