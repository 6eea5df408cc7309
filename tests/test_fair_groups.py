"""Fair groups: one tenant's backlog is not another's wait, on the real service and with many submitters at once."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
import trio

from jobqueue import documents
from tests.conftest import Database, Service
from tests.storage import Driver

SUBMIT = "SELECT jobqueue.submit_many(%s::jsonb)"


def jobs_of(group: str, jobs: int) -> str:
    return documents.join([documents.encode({"group": group})] * jobs)


async def shares(driver: Driver, jobs: int) -> Counter[str]:
    return Counter(job.options.group or "" for job in await driver.claim(jobs) if job.options is not None)


async def test_many_that_submit_to_one_group_at_once_get_it_no_more_than_its_share(driver: Driver, any_database_url: str) -> None:
    def submit(group: str, jobs: int) -> None:
        with psycopg.connect(any_database_url, autocommit=True) as connection:
            for _ in range(10):
                connection.execute(SUBMIT, [jobs_of(group, jobs)])

    with ThreadPoolExecutor() as threads:
        work = [threads.submit(submit, "many", 20) for _ in range(8)] + [threads.submit(submit, "one", 100)]
        await trio.to_thread.run_sync(lambda: [done.result(60) for done in work])
    served = await shares(driver, 1_000)
    assert served["many"] == pytest.approx(500, abs=25)


async def test_a_transaction_that_stays_open_holds_nobody_up_and_costs_its_group_no_fairness(
    driver: Driver, any_database_url: str
) -> None:
    with closing(psycopg.connect(any_database_url)) as theirs:
        theirs.execute(SUBMIT, [jobs_of("a", 1)])  # locks what there is to lock of the queue and the group, for good
        with psycopg.connect(any_database_url, autocommit=True, options="-c statement_timeout=5s") as connection:
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


async def test_a_line_that_was_found_empty_is_forgotten_and_its_rows_go(driver: Driver, any_database_url: str) -> None:
    for group in ("a", "b", "a"):
        await driver.submit_many(*({"options": {"group": group}} for _ in range(50)))
        await driver.claim(100)
    await driver.store.maintain(keep_finished=86_400, keep_cancelled=86_400)
    with closing(Database(any_database_url)) as sql:
        assert sql.rows("SELECT common, urgent FROM jobqueue.fair_queues") == [(None, None)]
        assert sql.rows("SELECT * FROM jobqueue.fair_groups") == []


def test_after_a_hundred_thousand_jobs_of_a_tenant_the_ten_of_another_are_next(
    service: Callable[..., Service], database: Database
) -> None:
    node = service("examples.quickstart", "--queue", "default=8")
    for _ in range(10):
        submit(node, [{"group": "a"}] * 10_000)
    ids = submit(node, [{"group": "b"}] * 10)
    after = database.value("SELECT count(*) FROM jobqueue.finished_jobs")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        [[done, last]] = database.rows(
            "SELECT count(*), max(finished_at) FROM jobqueue.finished_jobs WHERE id = ANY (%s::uuid[])", ids
        )
        if done == len(ids):
            break
    assert done == len(ids)
    others = database.value("SELECT count(*) FROM jobqueue.finished_jobs WHERE finished_at <= %s", last) - len(ids)
    assert others - after < 100, f"{after} after the submission, {others} when the ten were done"


def submit(node: Service, jobs: list[dict[str, object]]) -> list[str]:
    body = "\n".join(map(json.dumps, jobs)).encode()
    request = urllib.request.Request(f"{node.url}/submit", body, {"Content-Type": "application/x-ndjson"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return list(json.load(answer)["ids"])
