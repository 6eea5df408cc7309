"""Rows that PostgreSQL cannot move: each becomes a dead job with the reason, and other jobs are unaffected.

Most of these rows come from an UPDATE or INSERT of a user, without the functions that check their arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest

from jobqueue import documents
from jobqueue.errors import JobQueueError, RefusedData
from jobqueue.job import Change, NewJob, Options, Outcome
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage.roles.run import Claim, Want
from tests.support.postgres import Database
from tests.support.service import Service
from tests.support.storage import Driver, new_id
from tests.support.waiting import wait_for

KEY = Options(concurrency_key="account 7")

PENDING = {
    "claims = 2147483647": "integer out of range",
    "attempt = 2147483647": "integer out of range",
}
"""Values that a claim cannot move. The constraints of the table reject the other bad values of a pending row."""

SCHEDULED = {
    "available_since = 'infinity'": "times_finite",
    "created_at = '-infinity'": "times_finite",
    """options = '{"rank": "first"}'""": "cannot cast jsonb string",
    """options = '{"turn": "first"}'""": "cannot cast jsonb string",
    """options = '{"group": "acme", "weight": "heavy"}'""": "invalid input syntax",
    """options = '{"group": "acme", "weight": 0}'""": "division by zero",
}
"""Values that a promotion cannot move."""

BLOCKED = {
    """options = options || '{"turn": "first"}'""": "cannot cast jsonb string",
    """options = options || '{"turn": [1]}'""": "cannot cast jsonb array",
}
"""Values that an admission cannot move."""

INFLIGHT = {
    "priority = -1": "priority_range",
    "kind = ''": "kind_length",
    "kind = repeat(md5('x'), 500)": "kind_length",
    "queue = repeat(md5('x'), 500)": "queue_length",
    "timeout = 1e9": "timeout_range",
    "available_since = 'infinity'": "times_finite",
    "available_since = '250000-01-01', priority = 2147483647": "priority_range",
    """options = '{"expires_at": {}}'""": "cannot cast jsonb object",
    """options = '{"turn": "first"}'""": "cannot cast jsonb string",
    """options = '{"rank": [1]}'""": "cannot cast jsonb array",
    """options = jsonb_build_object('concurrency_key', repeat('k', 201))""": "concurrency_key_length",
    """errors = '{"not": "an array"}', max_retries = 2000""": "max_retries_range",
}
"""Values that a recovery and a leaving node cannot move."""


REFUSE = """
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'closed for today'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON jobqueue_internal.{table} FOR EACH ROW EXECUTE FUNCTION public.refuse()
"""
"""Raises an error that is not about a value in a row, so it must make no job dead."""


async def check(driver: Driver, sql: Database, bad: str, verb: str, words: str) -> None:
    """Check that the row is a dead job that can be read."""
    job = await driver.store.job(bad)
    assert job is not None
    assert job.state == "dead"
    assert job.reason.startswith(f"the {verb} cannot move this row: ")
    assert words in job.reason
    assert job.errors[-1]["error"] == job.reason
    [shown] = await driver.store.dead(DeadFilter(all=True), limit=10)
    assert shown.id == bad
    assert (await driver.store.dead_causes(DeadFilter(all=True), limit=10)).causes[0].jobs == 1
    assert len((await driver.store.jobs(JobFilter(all=True), limit=100)).jobs) == sum(sql.states().values())


async def claim(driver: Driver) -> set[str]:
    return {job.id for job in await driver.claim()}


@pytest.mark.parametrize(("forgery", "words"), PENDING.items())
@pytest.mark.parametrize("place", [0, 4, 9])
async def test_a_claim_takes_all_but_the_row_at_fault(driver: Driver, sql: Database, forgery: str, words: str, place: int) -> None:
    options = [None, Options(group="acme"), Options(expires_in=60.0), KEY]
    ids = await driver.submit_many(*({"options": options[n % 4]} for n in range(10)))
    await driver.store.configure("default", QueueSettings(key_max_running=10))
    await driver.store.admit()
    sql.rows(f"UPDATE jobqueue_internal.pending_jobs SET {forgery} WHERE id = %s", ids[place])
    claimed = await driver.store.claim(driver.node, {"default": Want(100)}, b"{}")
    assert {job.id for job in claimed} == {*ids} - {ids[place]}
    assert {job.attempt for job in claimed} == {1}
    [dead] = claimed.dead
    assert (dead.id, dead.queue, dead.kind) == (ids[place], "default", "default")
    assert words in dead.reason
    await check(driver, sql, ids[place], "claim", words)
    assert await claim(driver) == set()
    for job in claimed:
        assert await driver.finish(job, "succeeded")
    assert sql.states() == {"succeeded": 9, "dead": 1}


async def test_a_claim_counts_no_row_at_fault_against_a_limit(driver: Driver, sql: Database) -> None:
    await driver.store.configure("default", QueueSettings(max_running=3, rate=0.001, burst=5))
    ids = await driver.submit_many(*({} for _ in range(6)))
    sql.rows("UPDATE jobqueue_internal.pending_jobs SET claims = 2147483647 WHERE id = %s", ids[1])
    claimed = await driver.store.claim(driver.node, {"default": Want(3)}, b"{}")
    assert {job.id for job in claimed} == {ids[0], ids[2]}
    assert await claim(driver) == {ids[3]}
    assert await claim(driver) == set()
    assert 1.9 < sql.value("SELECT tokens FROM jobqueue_internal.queue_limits") < 2.1


async def test_a_claim_along_with_a_submission_buries_too(driver: Driver, sql: Database) -> None:
    bad = await driver.submit(kind="old")
    sql.rows("UPDATE jobqueue_internal.pending_jobs SET claims = 2147483647")
    new = NewJob(id=new_id())
    along = Claim(driver.node, {"default": Want(2)}, b"{}")
    submitted = await driver.store.submit([documents.encode(new)], wake=False, along=along)
    assert submitted.claimed is not None
    assert [job.id for job in submitted.claimed] == [new.id]
    assert [(job.id, job.kind) for job in submitted.claimed.dead] == [(bad, "old")]


async def test_a_claim_leaves_the_second_row_of_a_running_job_alone(driver: Driver, sql: Database) -> None:
    twin = await driver.submit()
    [run] = await driver.claim()
    sql.rows(
        "INSERT INTO jobqueue_internal.pending_jobs (id, queue, kind, priority, rank, payload, created_at, available_since)"
        " SELECT id, queue, kind, priority, now() - interval '1 hour', payload, now(), now() FROM jobqueue_internal.inflight_jobs"
    )
    bad, good = await driver.submit_many({}, {})
    sql.rows("UPDATE jobqueue_internal.pending_jobs SET claims = 2147483647 WHERE id = %s", bad)
    assert await claim(driver) == {good}
    assert sql.value("SELECT count(*) FROM jobqueue_internal.pending_jobs WHERE id = %s", twin) == 1
    assert await driver.finish(run, "succeeded")
    assert await claim(driver) == {twin}


@pytest.mark.parametrize(("forgery", "words"), SCHEDULED.items())
async def test_a_promotion_moves_all_but_the_row_at_fault(driver: Driver, sql: Database, forgery: str, words: str) -> None:
    ids = await driver.submit_many(*({"delay": 60.0, "options": Options(group="acme") if n % 2 else None} for n in range(10)))
    sql.rows(f"UPDATE jobqueue_internal.scheduled_jobs SET {forgery} WHERE id = %s", ids[3])
    sql.rows("UPDATE jobqueue_internal.scheduled_jobs SET run_at = now() - interval '1 second'")
    promotion = await driver.store.promote()
    assert promotion.jobs == 10
    assert promotion.best.keys() == {"default"}
    assert [(job.id, words in job.reason) for job in promotion.expired] == [(ids[3], True)]
    await check(driver, sql, ids[3], "promotion", words)
    assert await claim(driver) == {*ids} - {ids[3]}
    assert (await driver.store.promote()).jobs == 0


@pytest.mark.parametrize(("forgery", "words"), BLOCKED.items())
async def test_an_admission_moves_all_but_the_row_at_fault(driver: Driver, sql: Database, forgery: str, words: str) -> None:
    ids = await driver.submit_many(*({"options": KEY} for _ in range(3)), *({"options": Options(concurrency_key="other")},) * 2)
    sql.rows(f"UPDATE jobqueue_internal.blocked_jobs SET {forgery} WHERE id = %s", ids[0])
    assert (await driver.store.admit()).next_check == pytest.approx(0, abs=5), "the key has room, and is looked at again"
    await check(driver, sql, ids[0], "admission", words)
    await driver.store.admit()
    assert await claim(driver) == {ids[1], ids[3]}


@pytest.mark.parametrize(("forgery", "words"), INFLIGHT.items())
@pytest.mark.parametrize("way", ["recovery", "hand-back", "completion"])
async def test_what_takes_runs_back_takes_all_but_the_row_at_fault(
    driver: Driver, sql: Database, forgery: str, words: str, way: str
) -> None:
    ids = await driver.submit_many(*({} for _ in range(10)))
    runs = await driver.claim()
    sql.rows(f"UPDATE jobqueue_internal.inflight_jobs SET {forgery} WHERE id = %s", ids[3])
    if way == "hand-back":
        assert await driver.store.leave(driver.node) == 9
        await driver.join()
    elif way == "recovery":
        await driver.end_lease()
        recovered = {job.id: job for job in await driver.recover()}
        assert {job_id for job_id, job in recovered.items() if job.outcome == "pending"} == {*ids} - {ids[3]}
        assert recovered[ids[3]].outcome == "dead"
        assert words in str(recovered[ids[3]].reason)
        await driver.join()
    else:
        released = [Outcome(id=run.id, claims=run.claims, outcome="released") for run in runs]
        stale = Outcome(id=new_id(), claims=1, outcome="released")
        assert await driver.store.finish(driver.node, [*released[:2], stale, *released[2:]]) == {2}
    await check(driver, sql, ids[3], way, words)
    assert await claim(driver) == {*ids} - {ids[3]}


async def test_a_run_whose_outcome_cannot_be_stored_dies_of_the_next_one_whatever_its_row_holds(
    driver: Driver, sql: Database
) -> None:
    good, bad = await driver.submit_many({}, {})
    runs = {run.id: run for run in await driver.claim()}
    long = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) AS n)"
    sql.rows(f"UPDATE jobqueue_internal.inflight_jobs SET kind = {long} WHERE id = %s", bad)
    outcomes = [Outcome(id=run.id, claims=run.claims, outcome="retry", delay=0.0) for run in runs.values()]
    with pytest.raises(RefusedData):  # the node then writes them one by one, at last as dead
        await driver.store.finish(driver.node, outcomes)
    assert await driver.finish(runs[good], "retry", delay=0.0)
    assert await driver.finish(runs[bad], "dead", reason="its outcome could not be stored")
    assert sql.states() == {"scheduled": 1, "dead": 1}
    assert "index row requires" in sql.value("SELECT reason FROM jobqueue_internal.dead_jobs")


async def test_dead_jobs_that_cannot_be_run_again_keep_no_other_from_it(driver: Driver, sql: Database) -> None:
    ids = await driver.submit_many(*({} for _ in range(12)))
    for run in await driver.claim():
        assert await driver.finish(run, "dead", reason="no luck")
    forgeries = ["priority = -1", "options = '5'", """options = jsonb_build_object('unique_key', repeat('k', 201))"""]
    for job_id, forgery in zip(ids, forgeries, strict=False):
        sql.rows(f"UPDATE jobqueue_internal.dead_jobs SET {forgery} WHERE id = %s", job_id)
    for job_id in ids[:3]:
        with pytest.raises(JobQueueError):
            await driver.store.retry(job_id)
    assert await driver.store.retry(ids[11])
    assert await driver.store.retry_dead(DeadFilter(reason="no luck")) == 8
    assert await driver.store.retry_dead(DeadFilter(all=True)) == 0
    reasons = dict(sql.rows("SELECT id::text, reason FROM jobqueue_internal.dead_jobs"))
    assert reasons.keys() == {*ids[:3]}
    assert all(reason.startswith("the retry cannot move this row: ") for reason in reasons.values())
    sql.rows("UPDATE jobqueue_internal.dead_jobs SET priority = 0, options = NULL")
    assert await driver.store.retry_dead(DeadFilter(all=True)) == 3
    assert await claim(driver) == {*ids}


async def test_a_row_at_fault_can_be_cancelled_and_changed_where_it_waits(driver: Driver, sql: Database) -> None:
    claims, rank, turn = await driver.submit_many({}, {"delay": 60.0}, {"options": KEY})
    sql.rows("UPDATE jobqueue_internal.pending_jobs SET claims = 2147483647")
    sql.rows("""UPDATE jobqueue_internal.scheduled_jobs SET options = '{"rank": "first"}'""")
    sql.rows("""UPDATE jobqueue_internal.blocked_jobs SET options = options || '{"turn": "first"}'""")
    with pytest.raises(RefusedData, match="cannot cast jsonb string"):
        await driver.store.change(rank, Change(delay=-1.0))
    assert await driver.store.change(rank, Change(delay=90.0))
    for job_id in (claims, rank, turn):
        assert await driver.store.cancel(job_id)
    assert sql.states() == {"cancelled": 3}


async def test_many_rows_at_fault_are_buried_within_seconds(driver: Driver, sql: Database) -> None:
    ids = await driver.submit_many(*({"delay": 60.0} for _ in range(1000)))
    sql.rows(
        "UPDATE jobqueue_internal.scheduled_jobs SET run_at = now(), available_since = 'infinity' WHERE id = ANY (%s)", ids[::2]
    )
    sql.rows("UPDATE jobqueue_internal.scheduled_jobs SET run_at = now() WHERE id = ANY (%s)", ids[1::2])
    assert len((await driver.store.promote()).expired) == 500
    sql.rows("UPDATE jobqueue_internal.pending_jobs SET claims = 2147483647 WHERE id = ANY (%s)", ids[1::4])
    claimed = await driver.store.claim(driver.node, {"default": Want(500)}, b"{}")
    assert (len(claimed), len(claimed.dead)) == (250, 250)


@pytest.mark.parametrize(
    ("table", "way"),
    [("inflight_jobs", "claim"), ("pending_jobs", "promote"), ("pending_jobs", "recover"), ("pending_jobs", "leave")],
)
async def test_an_error_that_is_not_of_a_row_buries_nothing(driver: Driver, sql: Database, table: str, way: str) -> None:
    await driver.submit_many({}, {})
    if way in ("recover", "leave"):
        await driver.claim()
    elif way == "promote":
        await driver.submit(delay=60.0)
        sql.rows("UPDATE jobqueue_internal.scheduled_jobs SET run_at = now()")
    before = sql.states()
    call = {
        "claim": f"""jobqueue_internal.claim('{driver.node}', '{{"default": [9, null]}}')""",
        "promote": "jobqueue_internal.promote()",
        "recover": "jobqueue_internal.recover()",
        "leave": f"jobqueue_internal.leave_node('{driver.node}')",
    }[way]
    sql.rows(REFUSE.format(table=table))
    if way == "recover":
        sql.rows("DELETE FROM jobqueue_internal.nodes")
    with pytest.raises(psycopg.errors.RaiseException, match="closed for today"):
        sql.rows(f"SELECT {call}")
    assert sql.states() == before


def test_a_node_reports_the_rows_that_become_dead_and_stays_ready(
    service: Callable[..., Service], database: Database, tmp_path: Path
) -> None:
    node = service("tests.handlers.hooks", "--poll-interval", "0.1", env={"EFFECTS": str(tmp_path / "effects")})
    database.rows("SELECT jobqueue.pause('default')")
    claimed = database.value("SELECT jobqueue.submit('echo')::text")
    database.rows("UPDATE jobqueue_internal.pending_jobs SET claims = 2147483647")
    promoted = database.value("SELECT jobqueue.submit('echo', run_at => now() + interval '1 hour')::text")
    database.rows("UPDATE jobqueue_internal.scheduled_jobs SET run_at = now(), created_at = 'infinity'")
    database.rows("SELECT jobqueue.submit('echo') FROM generate_series(1, 10)")
    database.rows("SELECT jobqueue.pause('default', false)")
    wait_for(lambda: database.states() == {"succeeded": 10, "dead": 2}, "the others are done, and these are dead")
    assert httpx.get(f"{node.url}/health/ready", timeout=60).status_code == 200

    def told() -> dict[str, str]:
        calls = [json.loads(line) for line in (tmp_path / "effects").read_text().splitlines()]
        return {call["job"]["id"]: call["error"]["error"] for call in calls if call["hook"] == "died"}

    wait_for(lambda: len(told()) == 2, "the hooks are called")
    for job_id, verb in ((claimed, "claim"), (promoted, "promotion")):
        assert told()[job_id].startswith(f"the {verb} cannot move this row: ")
        wait_for(lambda verb=verb: f"the {verb} cannot move this row" in node.log, "the log says so")
    assert node.stop() == 0
