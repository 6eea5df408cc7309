"""Fair groups: the backlog of one tenant does not delay another, on the real service and with concurrent submitters."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
import trio

from jobqueue import documents
from tests.support.postgres import Database
from tests.support.service import Service
from tests.support.storage import Driver
from tests.support.waiting import wait_for

SUBMIT = "SELECT jobqueue.submit_many(%s::jsonb)"


def jobs_of(group: str, jobs: int) -> str:
    return documents.join([documents.encode({"group": group})] * jobs)


async def shares(driver: Driver, jobs: int) -> Counter[str]:
    return Counter(job.options.group or "" for job in await driver.claim(jobs) if job.options is not None)


async def test_concurrent_submitters_do_not_increase_the_share_of_their_group(driver: Driver, any_database_url: str) -> None:
    def submit(group: str, jobs: int) -> None:
        with psycopg.connect(any_database_url, autocommit=True) as connection:
            for _ in range(10):
                connection.execute(SUBMIT, [jobs_of(group, jobs)])

    with ThreadPoolExecutor() as threads:
        work = [threads.submit(submit, "many", 20) for _ in range(8)] + [threads.submit(submit, "one", 100)]
        await trio.to_thread.run_sync(lambda: [done.result(300) for done in work])
    served = await shares(driver, 1_000)
    assert served["many"] == pytest.approx(500, abs=25)


async def test_an_open_transaction_blocks_nobody_and_keeps_its_group_fair(driver: Driver, any_database_url: str) -> None:
    with closing(psycopg.connect(any_database_url)) as theirs:
        theirs.execute(SUBMIT, [jobs_of("a", 1)])  # holds all locks of the queue and the group
        with psycopg.connect(any_database_url, autocommit=True, options="-c statement_timeout=60s") as connection:
            for _ in range(40):
                connection.execute(SUBMIT, [jobs_of("a", 10)])
            connection.execute(SUBMIT, [jobs_of("b", 400)])
        served = await shares(driver, 400)
        assert served["a"] == pytest.approx(200, abs=20)
        theirs.rollback()


async def test_two_transactions_that_lock_groups_in_turn_both_commit(driver: Driver, any_database_url: str) -> None:
    with closing(psycopg.connect(any_database_url)) as first, closing(psycopg.connect(any_database_url)) as second:
        for connection, group in [(first, "a"), (second, "b"), (first, "b"), (second, "a")]:
            await trio.to_thread.run_sync(connection.execute, SUBMIT, [jobs_of(group, 1)])
        first.commit()
        second.commit()
    assert await shares(driver, 10) == {"a": 2, "b": 2}


async def test_sql_names_groups_and_weights_and_a_weight_has_bounds(driver: Driver, any_database_url: str) -> None:
    with closing(Database(any_database_url)) as sql:
        for weight in (0.001, 1000):
            sql.value("""SELECT jobqueue.submit('mail', "group" => 'a', weight => %s)""", weight)
        for weight in (0, 0.0009, 1000.1):
            with pytest.raises(psycopg.errors.CheckViolation, match="weight"):
                sql.value("""SELECT jobqueue.submit('mail', "group" => 'a', weight => %s)""", weight)
    assert await shares(driver, 10) == {"a": 2}


async def test_the_rows_of_empty_groups_are_deleted(driver: Driver, any_database_url: str) -> None:
    for group in ("a", "b", "a"):
        await driver.submit_many(*({"options": {"group": group}} for _ in range(50)))
        await driver.claim(100)
    await driver.store.maintain(keep_finished=86_400, keep_cancelled=86_400)
    with closing(Database(any_database_url)) as sql:
        assert sql.rows("SELECT common, urgent FROM jobqueue_internal.fair_queues") == [(None, None)]
        assert sql.rows("SELECT * FROM jobqueue_internal.fair_groups") == []


def test_ten_jobs_of_one_tenant_run_before_the_backlog_of_another(service: Callable[..., Service], database: Database) -> None:
    node = service("examples.quickstart", "--queue", "default=8")
    for _ in range(10):
        submit(node, [{"group": "a"}] * 10_000)
    ids = submit(node, [{"group": "b"}] * 10)
    after = database.value("SELECT count(*) FROM jobqueue_internal.finished_jobs")
    sql = "SELECT count(*), max(finished_at) FROM jobqueue_internal.finished_jobs WHERE id = ANY (%s::uuid[])"
    wait_for(lambda: database.rows(sql, ids)[0][0] == len(ids), "the ten jobs have ended")
    [[_, last]] = database.rows(sql, ids)
    others = database.value("SELECT count(*) FROM jobqueue_internal.finished_jobs WHERE finished_at <= %s", last) - len(ids)
    assert others - after < 100, f"{after} after the submission, {others} when the ten were done"


def submit(node: Service, jobs: list[dict[str, object]]) -> list[str]:
    body = "\n".join(map(json.dumps, jobs)).encode()
    request = urllib.request.Request(f"{node.url}/submit", body, {"Content-Type": "application/x-ndjson"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return list(json.load(answer)["ids"])
