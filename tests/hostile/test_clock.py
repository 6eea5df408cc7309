"""When the server's clock is set back, times in the tables are in the future, and nothing may wait for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from jobqueue.job import Options
from jobqueue.metrics import Totals
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage.roles.schedule import ADMIT_BATCH
from tests.support.postgres import Database
from tests.support.service import Service
from tests.support.storage import Driver
from tests.support.waiting import wait_for

KEY = Options(concurrency_key="account 7")

STEPS = ["2 minutes", "30 days"]


def set_back(sql: Database, step: str, *columns: str) -> None:
    """Change these columns as if the clock had been set back by this interval."""
    for column in columns:
        table, name = column.split(".")
        sql.rows(f"UPDATE jobqueue_internal.{table} SET {name} = {name} + interval '{step}'")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("tokens", ["empty", "full"])
async def test_the_bucket_of_a_queue_fills_from_now_on(driver: Driver, sql: Database, step: str, tokens: str) -> None:
    await driver.store.configure("default", QueueSettings(rate=20.0, burst=5))
    await driver.submit_many(*({} for _ in range(10)))
    assert len(await driver.claim(5 if tokens == "empty" else 1)) == (5 if tokens == "empty" else 1)
    set_back(sql, step, "queue_limits.refilled_at")
    claimed = await driver.claim()
    assert len(claimed) <= (1 if tokens == "empty" else 5), "nothing is given for the step"
    assert sql.value("SELECT refilled_at <= clock_timestamp() FROM jobqueue_internal.queue_limits")
    await trio.sleep(0.2)
    assert len(await driver.claim()) >= 1


@pytest.mark.parametrize("step", STEPS)
async def test_counting_by_mark_begins_anew(driver: Driver, sql: Database, step: str) -> None:
    await driver.store.configure("default", QueueSettings(max_running=3))
    await driver.submit_many(*({} for _ in range(10)))
    assert len(await driver.claim()) == 3
    set_back(sql, step, "queue_limits.counted_since")
    assert len(await driver.claim()) == 0
    assert sql.rows("SELECT counted_since <= clock_timestamp(), all_counted FROM jobqueue_internal.queue_limits") == [(True, False)]
    sql.rows("UPDATE jobqueue_internal.queue_limits SET counted_since = counted_since - interval '2 minutes'")
    assert len(await driver.claim()) == 0
    assert sql.value("SELECT all_counted FROM jobqueue_internal.queue_limits")


@pytest.mark.parametrize("step", STEPS)
async def test_a_key_that_is_to_be_looked_at_now_does_not_wait(driver: Driver, sql: Database, step: str) -> None:
    job_id = await driver.submit(options=KEY)
    set_back(sql, step, "key_checks.at")
    assert (await driver.store.promote()).next_check == 0
    admission = await driver.store.admit()
    assert (admission.checks, admission.next_check) == (1, None)
    assert [job.id for job in await driver.claim()] == [job_id]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("witness", ["the node", "another node", "a node that died"])
async def test_a_key_that_waits_for_a_token_waits_no_longer_than_that(
    driver: Driver, sql: Database, step: str, witness: str
) -> None:
    await driver.store.configure("default", QueueSettings(key_rate=2.0, key_burst=1, key_max_running=9))
    ids = await driver.submit_many(*({"options": KEY} for _ in range(3)))
    await driver.store.admit()
    assert [job.id for job in await driver.claim()] == ids[:1]
    assert (await driver.store.admit()).next_check == pytest.approx(0.5, abs=0.6)
    set_back(sql, step, "key_checks.at", "key_buckets.refilled_at", "key_buckets.check_at", "nodes.heartbeat_at")
    set_back(sql, step, "nodes.lease_until")
    assert (await driver.store.admit()).checks == 0
    if witness == "the node":
        await driver.store.heartbeat(driver.node, lease=60)
    else:
        await driver.join(lease=60)
        await driver.store.recover(judge=driver.node if witness == "another node" else None)
    seen = ids[:1]
    with trio.fail_after(60):
        while len(seen) < 3:
            admission = await driver.store.admit()
            assert admission.next_check is None or admission.next_check < 1
            seen += [job.id for job in await driver.claim()]
            await trio.sleep(0.05)
    assert seen == ids


async def test_keys_that_wait_for_a_time_are_checked_despite_many_that_do_not(driver: Driver, sql: Database) -> None:
    sql.rows(
        "INSERT INTO jobqueue_internal.key_checks (queue, key) SELECT 'q', n::text FROM generate_series(1, %s) AS n",
        2 * ADMIT_BATCH,
    )
    sql.rows("INSERT INTO jobqueue_internal.key_checks VALUES ('q', 'timed', now() - interval '1 second', true)")
    sql.rows("INSERT INTO jobqueue_internal.key_checks VALUES ('q', 'later', now() + interval '1 hour', true)")
    assert (await driver.store.admit()).checks == ADMIT_BATCH
    assert sql.value("SELECT count(*) FROM jobqueue_internal.key_checks WHERE key = 'timed'") == 0
    assert (await driver.store.admit()).checks == ADMIT_BATCH
    admission = await driver.store.admit()
    assert admission.checks == 1
    assert admission.next_check == pytest.approx(3600, abs=5)


@pytest.mark.parametrize("step", STEPS)
async def test_a_lease_counts_from_now_on(driver: Driver, sql: Database, step: str) -> None:
    dead = await driver.join(lease=0.3)
    alive = await driver.join(lease=60)
    set_back(sql, step, "nodes.heartbeat_at", "nodes.lease_until")
    await driver.store.recover(judge=alive)
    assert sql.value("SELECT max(lease_until) < now() + interval '2 hours' FROM jobqueue_internal.nodes")
    assert sql.value("SELECT count(*) FROM jobqueue_internal.nodes WHERE id = %s", dead) == 1, "its lease lasts as long as before"
    await trio.sleep(0.35)
    await driver.store.recover(judge=alive)
    assert sql.value("SELECT count(*) FROM jobqueue_internal.nodes WHERE id = %s", dead) == 0
    assert await driver.store.heartbeat(alive, lease=60) == []


async def test_a_lease_is_left_alone_while_the_clock_goes_on(driver: Driver, sql: Database) -> None:
    before = sql.rows("SELECT lease_until FROM jobqueue_internal.nodes")
    await driver.store.recover(judge=driver.node)
    assert sql.rows("SELECT lease_until FROM jobqueue_internal.nodes") == before


@pytest.mark.parametrize("step", STEPS)
async def test_depths_are_counted_on(driver: Driver, sql: Database, step: str) -> None:
    await driver.store.record(Totals(1, 1, 0, 0), sample=True)
    set_back(sql, step, "history.at")
    assert (await driver.store.record(Totals(1, 1, 0, 0))).sample


def test_a_node_goes_on_within_its_heartbeat(service: Callable[..., Service], database: Database) -> None:
    node = service("examples.quickstart", "--poll-interval", "0.2", "--visibility-timeout", "6")
    assert node.url
    database.rows("SELECT jobqueue.configure('default', rate => 20, burst => 1, key_rate => 20, key_burst => 1)")
    database.rows("SELECT jobqueue.submit('default', concurrency_key => 'account 7') FROM generate_series(1, 60)")
    wait_for(lambda: database.states().get("succeeded", 0) > 5, "it works")
    columns = "queue_limits.refilled_at", "key_checks.at", "key_buckets.refilled_at", "key_buckets.check_at", "nodes.heartbeat_at"
    set_back(database, "1 hour", *columns)
    wait_for(lambda: database.states() == {"succeeded": 60}, "it goes on")
    assert node.stop() == 0
