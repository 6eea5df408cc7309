"""List, cancel and count jobs by filter; change waiting jobs; show the recent work of queues and nodes.

These tests run in memory and on each supported PostgreSQL. `test_listing_sql` has the tests that need SQL.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
import trio

from jobqueue import documents
from jobqueue.errors import RefusedData
from jobqueue.job import AttemptError, Change, JobState, NewJob, Options
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.storage.roles.inspect import JobPage, Rates, StoredJob
from jobqueue.storage.roles.steer import CANCEL_BATCH
from jobqueue.testing.memory_store import MemoryStore
from tests.support.postgres import SERVERS, ServerPool
from tests.support.storage import Driver, joined, new_id, open_driver

MEMORY = "memory"
ALL = JobFilter(all=True)


@pytest.fixture(params=[MEMORY, *sorted(SERVERS)])
async def driver(request: pytest.FixtureRequest, servers: ServerPool) -> AsyncIterator[Driver]:
    if request.param == MEMORY:
        yield await joined(MemoryStore())
        return
    async with open_driver(servers.emptied(request.param)) as opened:
        yield opened


async def listed(driver: Driver, wanted: JobFilter = ALL, *, limit: int = 100, rows: int = 10_000) -> list[str]:
    """Return the ids of all pages of a list."""
    ids: list[str] = []
    after = None
    while True:
        page = await driver.store.jobs(wanted, limit=limit, after=after, rows=rows)
        assert len(page.jobs) <= min(limit, rows)
        ids += [job.id for job in page.jobs]
        if page.next is None:
            return ids
        assert after is None or page.next < after
        after = page.next


def id_of(seconds: float) -> str:
    """Return a UUIDv7 of this time."""
    milliseconds = f"{int(seconds * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}{new_id()[13:]}"


async def submit_as(driver: Driver, job_id: str) -> str:
    """Submit a job with this id."""
    await driver.store.submit([documents.encode(NewJob(id=job_id))], wake=False)
    return job_id


async def one_of_each(driver: Driver) -> dict[str, str]:
    """Make a job in each state, in a queue with the name of the state."""
    ids = {"pending": await driver.submit(queue="pending"), "scheduled": await driver.submit(queue="scheduled", delay=3600)}
    ids["blocked"] = await driver.submit(queue="blocked", options=Options(concurrency_key="a"))
    for state in ("inflight", "succeeded", "dead"):
        ids[state] = await driver.submit(queue=state)
        [job] = await driver.claim(1, queue=state)
        if state == "succeeded":
            await driver.finish(job, "succeeded", result=msgspec.Raw(b"1"))
        if state == "dead":
            await driver.finish(job, "dead", reason="no luck")
    ids["cancelled"] = await driver.submit(queue="cancelled")
    await driver.store.cancel(ids["cancelled"])
    return ids


# ------------------------------------------------------------------------------------------------------------------------ lists


async def test_jobs_of_all_states_are_listed_without_what_may_be_large(driver: Driver) -> None:
    ids = await one_of_each(driver)
    page = await driver.store.jobs(ALL, limit=100)
    assert (page.next, {job.id: job.state for job in page.jobs}) == (None, {job_id: state for state, job_id in ids.items()})
    for job in page.jobs:
        whole = await driver.store.job(job.id)
        assert whole is not None
        assert all(getattr(whole, name) == getattr(job, name) for name in job.__struct_fields__ if name != "progress")


async def test_the_latest_comes_first_whatever_the_size_of_a_page(driver: Driver) -> None:
    ids = [await driver.submit(delay=delay) for delay in [None, 60.0] * 5]
    for limit in (1, 3, 10, 11):
        assert await listed(driver, limit=limit) == ids[::-1]
    for state in ("pending", "scheduled"):
        assert await listed(driver, JobFilter(state=[state]), limit=2) == ids[::-1][state == "pending" :: 2]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (JobFilter(queue="a"), [3, 0]),
        (JobFilter(kind="mail"), [3, 1]),
        (JobFilter(queue="a", kind="mail"), [3]),
        (JobFilter(group="g"), [2, 1]),
        (JobFilter(concurrency_key="k"), [3, 2]),
        (JobFilter(concurrency_key="k", group="g"), [2]),
        (JobFilter(state=["blocked"]), [3, 2]),
        (JobFilter(state=["scheduled", "pending"]), [4, 1, 0]),
        (JobFilter(state=["pending"], queue="nowhere"), []),
        (JobFilter(all=True, queue="b"), [1]),
    ],
)
async def test_a_filter_means_the_jobs_for_which_all_of_it_holds(driver: Driver, wanted: JobFilter, found: list[int]) -> None:
    ids = [
        await driver.submit(queue="a"),
        await driver.submit(queue="b", kind="mail", options=Options(group="g")),
        await driver.submit(queue="c", options=Options(group="g", concurrency_key="k")),
        await driver.submit(queue="a", kind="mail", options=Options(concurrency_key="k")),
        await driver.submit(delay=60.0),
    ]
    meant = [ids[place] for place in found]
    assert await listed(driver, wanted) == meant
    assert await listed(driver, wanted, limit=1) == meant
    assert await listed(driver, wanted, rows=1) == meant


async def failing(driver: Driver, error: str, *, reason: str | None = None) -> str:
    """Make a job that failed with this error: it will be retried, or is dead for a reason."""
    job_id = await driver.submit()
    job = await driver.claim_one()
    entry = AttemptError(attempt=1, error=error, duration=0)
    if reason is None:
        assert await driver.finish(job, "retry", delay=3600.0, error=entry)
    else:
        assert await driver.finish(job, "dead", reason=reason, error=entry)
    return job_id


async def test_a_text_is_a_part_of_the_last_error_or_the_reason_in_any_case(driver: Driver) -> None:
    ids = [
        await failing(driver, "KeyError: 'Order'"),
        await failing(driver, "ValueError: 100% of it_is \\ bad", reason="attempt 1 of 1 failed"),
        await failing(driver, "late: 20260131", reason="discarded: an ORDER of yore"),
        await driver.submit(kind="order"),
    ]
    again = ids[0]
    for text, found in [
        ("order", [2, 0]),
        ("ORDER", [2, 0]),
        ("r: 'o", [0]),
        ("%", [1]),
        ("t_i", [1]),
        ("t i", []),
        ("\\", [1]),
        ("20260131", [2]),
        ("'; SELECT", []),
        ("%L %1$s \n", []),
        ("x" * 200, []),
        ("attempt 1 OF", [1]),
    ]:
        wanted = JobFilter(text=text)
        assert await listed(driver, wanted) == [ids[place] for place in found], text
        assert await listed(driver, wanted, limit=1) == await listed(driver, wanted, rows=1) == [ids[place] for place in found]
    assert await listed(driver, JobFilter(text="order", state=["dead"])) == [ids[2]]
    await driver.store.change(again, Change(run_at=datetime.now(UTC)))
    assert await driver.finish(*await driver.claim(1), "retry", delay=1.0, error=AttemptError(attempt=2, error="other", duration=0))
    assert await listed(driver, JobFilter(text="'order'")) == [], "only the last error counts"
    assert await driver.store.cancel_jobs(JobFilter(text="OTHER")) == (1, None)
    assert await driver.state(again) == "cancelled"


async def test_a_text_that_an_id_begins_with_is_that_id_and_looks_at_no_other(driver: Driver) -> None:
    ids = [await submit_as(driver, id_of(1_700_000_000 + hours * 3600)) for hours in range(3)]
    foreign = await submit_as(driver, "7f3a8c00-12d0-4fff-bfff-ffffffffffff")
    await failing(driver, f"order {ids[1]} is late, of 0123456789abcdef")
    one = ids[1]
    for text in (
        one,
        one.upper(),
        one.replace("-", ""),
        *(one[:length] for length in (8, 9, 12, 13, 14, 18, 23, 24, 35)),
        one.replace("-", "")[:11],
    ):
        page = await driver.store.jobs(JobFilter(text=text), limit=5, rows=2)
        assert ([job.id for job in page.jobs], page.next) == ([one], None), text
    assert await listed(driver, JobFilter(text="0123456789abcdef")) == [], "errors are not searched for a possible id"
    for text in ("0123456789abcdef.", one[:7], f" {one}", one[:8] + one[9:14], one[:9] + "-"):
        assert one not in await listed(driver, JobFilter(text=text))
    assert (
        await listed(driver, JobFilter(text=foreign)) == await listed(driver, JobFilter(text=foreign.replace("-", ""))) == [foreign]
    )
    assert await listed(driver, JobFilter(text=foreign[:13])) == []
    assert await driver.store.cancel_jobs(JobFilter(text=one)) == (1, None)


async def test_a_page_is_cut_where_enough_has_been_looked_at_and_the_next_goes_on_there(driver: Driver) -> None:
    kinds = ["rare" if n in (0, 7, 8, 20) else "mail" for n in range(25)]
    ids = await driver.submit_many(*({"kind": kind, "delay": 60.0 * (n % 2)} for n, kind in enumerate(kinds)))
    rare = JobFilter(kind="rare")
    sizes, after = [], None
    for _ in range(5):
        page = await driver.store.jobs(rare, limit=10, after=after, rows=5)
        sizes.append(len(page.jobs))
        after = page.next
        assert after is not None
    assert sizes == [1, 0, 0, 2, 1], "of the latest five, and the five before them, and so on"
    assert await driver.store.jobs(rare, limit=10, after=after, rows=5) == JobPage([], None)
    assert await listed(driver, rare, rows=4) == [ids[n] for n in (20, 8, 7, 0)]


async def test_pages_have_no_job_twice_and_none_is_missed_whatever_comes_and_moves_meanwhile(driver: Driver) -> None:
    ids = await driver.submit_many(*({"delay": [None, 0.001, 60.0][n % 3]} for n in range(30)))
    seen: list[str] = []
    after = None
    while True:
        page = await driver.store.jobs(ALL, limit=3, after=after)
        seen += [job.id for job in page.jobs]
        if (after := page.next) is None:
            break
        await driver.submit()
        await driver.store.promote()
        for job in await driver.claim(3):
            await driver.finish(job, "succeeded" if job.claims % 2 else "released")
    assert seen == ids[::-1]


async def test_times_are_those_of_creation_and_exclusive(driver: Driver) -> None:
    ids = []
    for _ in range(3):
        ids.append(await driver.submit())
        await trio.sleep(0.002)
    job = await driver.store.job(ids[1])
    assert job is not None
    created = datetime.fromisoformat(job.created_at)
    moment = timedelta(microseconds=1)
    assert await listed(driver, JobFilter(created_after=created)) == [ids[2]]
    assert await listed(driver, JobFilter(created_before=created)) == [ids[0]]
    assert await listed(driver, JobFilter(created_after=created - moment, created_before=created + moment)) == [ids[1]]
    first, last = (datetime.fromisoformat(text) for text in ("0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00"))
    assert await listed(driver, JobFilter(created_after=first, created_before=last)) == ids[::-1]
    assert await listed(driver, JobFilter(created_after=last)) == await listed(driver, JobFilter(created_before=first)) == []


async def test_an_id_of_another_time_is_listed_where_it_stands_and_not_found_by_time(driver: Driver) -> None:
    now = time.time()
    # From a node whose clock is half a minute off, from nodes whose clocks are hours off, and an id without a time.
    near, early, late = [id_of(now + seconds) for seconds in (-30, -7200, 7200)]
    random = "ffffffff-ffff-4fff-bfff-ffffffffffff"
    ids = [await submit_as(driver, job_id) for job_id in (near, early, late, random)]
    plain = await driver.submit()
    assert await listed(driver) == sorted([*ids, plain], reverse=True)
    about_now = JobFilter(
        created_after=datetime.fromtimestamp(now - 1800, UTC), created_before=datetime.fromtimestamp(now + 1800, UTC)
    )
    assert await listed(driver, about_now) == [plain, near]
    assert await driver.store.cancel_jobs(about_now) == (2, None)
    assert await driver.state(random) == "pending"


async def test_a_list_goes_on_after_any_id(driver: Driver) -> None:
    job_id = await driver.submit()
    for after, found in (("ffffffff-ffff-ffff-ffff-ffffffffffff", [job_id]), (job_id, []), (str(uuid.UUID(int=0)), [])):
        page = await driver.store.jobs(ALL, limit=5, after=after)
        assert [job.id for job in page.jobs] == found


async def test_a_filter_without_conditions_is_rejected(driver: Driver) -> None:
    await driver.submit()
    for call in (driver.store.jobs(JobFilter(), limit=5), driver.store.cancel_jobs(JobFilter())):
        with pytest.raises(RefusedData) as refused:
            await call
        assert refused.value.field == "all"


# ---------------------------------------------------------------------------------------------------------------------- cancel


@pytest.mark.parametrize("keep", [True, False])
async def test_jobs_that_wait_are_cancelled_and_those_that_run_are_asked_to_end_once(driver: Driver, keep: bool) -> None:
    ids = await one_of_each(driver)
    assert await driver.store.cancel_jobs(ALL, keep=keep, dry_run=True) == (4, None)
    assert await driver.state(ids["pending"]) == "pending"
    assert await driver.store.cancel_jobs(ALL, keep=keep) == (4, None)
    for state, job_id in ids.items():
        ended = ("cancelled" if keep else None) if state in ("pending", "blocked", "scheduled") else state
        assert await driver.state(job_id) == ended
    assert await driver.store.cancel_jobs(ALL, dry_run=True) == (0, None), "a cancellation that is requested already does not count"
    assert await driver.store.cancel_jobs(ALL) == (0, None)
    assert await driver.store.heartbeat(driver.node, lease=30) == [(ids["inflight"], 1)]
    assert await driver.store.cancel_jobs(ALL) == (0, None)


@pytest.mark.parametrize("state", ["pending", "blocked", "scheduled", "inflight"])
async def test_only_jobs_of_the_states_that_are_meant_are_cancelled(driver: Driver, state: JobState) -> None:
    ids = await one_of_each(driver)
    assert await driver.store.cancel_jobs(JobFilter(state=[state])) == (1, None)
    untouched = {other: job_id for other, job_id in ids.items() if other != state}
    assert {other: await driver.state(job_id) for other, job_id in untouched.items()} == {other: other for other in untouched}
    assert len(await driver.store.heartbeat(driver.node, lease=30) or []) == (state == "inflight")


@pytest.mark.parametrize("state", ["succeeded", "cancelled", "dead"])
async def test_a_filter_for_ended_jobs_cannot_cancel_and_is_rejected(driver: Driver, state: JobState) -> None:
    ids = await one_of_each(driver)
    with pytest.raises(RefusedData) as refused:
        await driver.store.cancel_jobs(JobFilter(state=["pending", state]))
    assert refused.value.field == "state"
    assert await driver.state(ids["pending"]) == "pending"


async def test_a_walk_cancels_a_batch_and_the_next_goes_on_below_it_whatever_comes_meanwhile(driver: Driver) -> None:
    await driver.submit_many(*({"kind": "mail"} for _ in range(CANCEL_BATCH + 5)))
    other = await driver.submit()
    walk = await driver.store.cancel_jobs(JobFilter(kind="mail"))
    assert walk.jobs == CANCEL_BATCH
    late = await driver.submit(kind="mail")
    assert await driver.store.cancel_jobs(JobFilter(kind="mail"), after=walk.next) == (5, None)
    assert [await driver.state(job_id) for job_id in (other, late)] == ["pending"] * 2


async def test_a_cancelled_job_gives_its_keys_place_to_the_next(driver: Driver) -> None:
    first, second = [await driver.submit(kind=kind, options=Options(concurrency_key="a")) for kind in ("x", "y")]
    await driver.store.admit()
    assert await driver.store.cancel_jobs(JobFilter(kind="x")) == (1, None)
    await driver.store.admit()
    assert [await driver.state(job_id) for job_id in (first, second)] == ["cancelled", "pending"]


async def test_a_dry_run_counts_the_dead_that_would_be_run_again_or_deleted_and_changes_nothing(driver: Driver) -> None:
    options = [Options(), Options(unique_key="a"), Options(unique_key="a"), Options(unique_key="b")]
    for one in options:
        await driver.submit(options=one, kind="fail")
        await driver.finish(await driver.claim_one(), "dead", reason="no luck")
    await driver.store.submit(
        [documents.encode(NewJob(id=new_id(), options=Options(unique_key="b"), delay=60))], wake=False, key_ttl=60
    )
    wanted = DeadFilter(kind="fail")
    assert await driver.store.retry_dead(wanted, dry_run=True) == 2, "one of the two with the same key; another job holds key b"
    assert await driver.store.discard_dead(wanted, dry_run=True) == 4
    assert await driver.store.retry_dead(wanted) == 2
    assert await driver.store.discard_dead(wanted, dry_run=True) == await driver.store.discard_dead(wanted) == 2


# ---------------------------------------------------------------------------------------------------------------------- change


def in_seconds(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def job_of(driver: Driver, job_id: str) -> StoredJob:
    job = await driver.store.job(job_id)
    assert job is not None
    return job


async def test_a_new_priority_is_a_new_rank_with_the_time_waited_so_far(driver: Driver) -> None:
    ids = [await driver.submit(priority=priority) for priority in (0, 5, 9)]
    assert await driver.store.change(ids[0], Change(priority=7))
    assert await driver.store.change(ids[2], Change(priority=0))
    claimed = await driver.claim()
    assert [(job.id, job.priority) for job in claimed] == [(ids[0], 7), (ids[1], 5), (ids[2], 0)]
    assert claimed[0].rank == pytest.approx(claimed[0].created_at - 7, abs=1e-3)


async def test_a_new_priority_of_a_scheduled_job_counts_when_it_is_due(driver: Driver) -> None:
    first, second = await driver.submit_many({"delay": 0.05}, {"delay": 0.05})
    assert await driver.store.change(second, Change(priority=3))
    assert (await job_of(driver, second)).state == "scheduled"
    await trio.sleep(0.06)
    await driver.store.promote()
    assert [job.id for job in await driver.claim()] == [second, first]


async def test_a_job_that_is_put_off_waits_from_then_on(driver: Driver) -> None:
    job_id = await driver.submit()
    later = in_seconds(3600)
    assert await driver.store.change(job_id, Change(run_at=later))
    job = await job_of(driver, job_id)
    assert (job.state, job.available_since) == ("scheduled", job.run_at)
    assert datetime.fromisoformat(job.run_at) == later
    assert await driver.claim() == []
    assert 3500 < ((await driver.store.promote()).next_due or 0) <= 3600
    assert await driver.store.change(job_id, Change(delay=0.01))
    await trio.sleep(0.02)
    await driver.store.promote()
    [claimed] = await driver.claim()
    assert claimed.waited < 60


async def test_a_job_that_is_pulled_forward_runs_now_and_in_the_place_of_now(driver: Driver) -> None:
    scheduled = await driver.submit(delay=3600)
    before = await driver.submit()
    assert await driver.store.change(scheduled, Change(run_at=in_seconds(-7200)))
    after = await driver.submit()
    assert [job.id for job in await driver.claim()] == [before, scheduled, after]


async def test_a_retry_that_is_pulled_forward_keeps_its_place_and_one_that_is_put_off_does_not(driver: Driver) -> None:
    retried, other = await driver.submit(), await driver.submit()
    for change, order in [(Change(delay=0), [retried, other]), (Change(delay=0.001), [other, retried])]:
        [job, second] = await driver.claim()
        await driver.finish(second, "released")
        await driver.finish(job, "retry", delay=60)
        assert job.id == retried
        assert await driver.store.change(retried, change)
        await trio.sleep(0.01)
        await driver.store.promote()
        claimed = await driver.claim()
        assert [job.id for job in claimed] == order
        assert [job.attempt for job in claimed if job.id == retried] != [1]
        for job in claimed:
            await driver.finish(job, "released")


@pytest.mark.parametrize("change", [Change(run_at=datetime(2000, 1, 1, tzinfo=UTC)), Change(priority=0), Change()])
async def test_a_change_without_effect_leaves_a_job_in_its_place(driver: Driver, change: Change) -> None:
    ids = [await driver.submit() for _ in range(3)]
    before = await job_of(driver, ids[1])
    assert await driver.store.change(ids[1], change)
    assert await job_of(driver, ids[1]) == before
    assert [job.id for job in await driver.claim()] == ids


@pytest.mark.parametrize("state", ["inflight", "succeeded", "cancelled", "dead"])
async def test_only_waiting_jobs_can_be_changed(driver: Driver, state: str) -> None:
    ids = await one_of_each(driver)
    before = await job_of(driver, ids[state])
    assert not await driver.store.change(ids[state], Change(priority=5, delay=60))
    assert await job_of(driver, ids[state]) == before
    assert not await driver.store.change(new_id(), Change(priority=5))


@pytest.mark.parametrize("state", ["pending", "blocked", "scheduled"])
@pytest.mark.parametrize("priority", [-1, 1_000_001])
async def test_a_priority_that_cannot_be_is_refused_and_changes_nothing(driver: Driver, state: str, priority: int) -> None:
    ids = await one_of_each(driver)
    with pytest.raises(RefusedData, match=r"priority must be an integer|priority_range"):
        await driver.store.change(ids[state], Change(priority=priority))
    assert (await job_of(driver, ids[state])).state == state
    assert await driver.store.change(ids[state], Change(priority=1_000_000))
    assert (await job_of(driver, ids[state])).priority == 1_000_000


async def test_a_job_with_a_key_that_is_put_off_gives_its_place_to_the_next(driver: Driver) -> None:
    first, second = [await driver.submit(options=Options(concurrency_key="a")) for _ in range(2)]
    await driver.store.admit()
    assert await driver.store.change(first, Change(priority=4))
    assert await driver.state(first) == "pending", "a new priority does not cost it its place"
    assert await driver.store.change(first, Change(delay=60))
    await driver.store.admit()
    assert [await driver.state(job_id) for job_id in (first, second)] == ["scheduled", "pending"]
    assert await driver.store.change(first, Change(delay=0))
    await driver.store.admit()
    assert [await driver.state(job_id) for job_id in (first, second)] == ["blocked", "pending"]


async def test_the_best_of_a_keys_blocked_jobs_is_the_best_by_its_new_priority(driver: Driver) -> None:
    ids = [await driver.submit(options=Options(concurrency_key="a")) for _ in range(3)]
    assert await driver.store.change(ids[2], Change(priority=5))
    await driver.store.admit()
    assert [await driver.state(job_id) for job_id in ids] == ["blocked", "blocked", "pending"]


async def test_a_job_of_a_group_takes_a_new_turn_with_its_new_priority_and_when_it_was_put_off(driver: Driver) -> None:
    ids = [await driver.submit(options=Options(group="g")) for _ in range(3)]
    assert await driver.store.change(ids[2], Change(priority=5))
    assert await driver.store.change(ids[0], Change(delay=60))
    assert "turn" not in (await job_of(driver, ids[0])).options
    assert await driver.store.change(ids[0], Change(delay=0))
    assert [job.id for job in await driver.claim()] == [ids[2], ids[1], ids[0]]


async def test_a_changed_job_keeps_all_that_is_known_of_it(driver: Driver) -> None:
    job_id = await driver.submit(kind="mail", payload={"a": 1}, max_retries=7, timeout=5.0, options=Options(expires_in=3600))
    job = await driver.claim_one()
    error = {"attempt": 1, "error": "boom", "duration": 0.1}
    await driver.finish(job, "retry", delay=60, error=error, saved=msgspec.Raw(b'{"checkpoint": 3}'))
    before = await job_of(driver, job_id)
    for change in (Change(priority=5), Change(delay=60), Change(delay=0), Change(delay=60, priority=0)):
        assert await driver.store.change(job_id, change)
        now = await job_of(driver, job_id)
        changing = {name: getattr(now, name) for name in ("priority", "state", "run_at", "available_since")}
        assert now == msgspec.structs.replace(before, **changing)


# ------------------------------------------------------------------------------------------------------------ queues and nodes


async def test_recent_rates_are_summed_over_the_living_nodes(driver: Driver) -> None:
    assert await driver.store.throughput() == {}
    first = driver.node
    await driver.store.heartbeat(first, lease=30, activity={"mail": (1.5, 0.25), "a": (0.1, 0)})
    second = await driver.join()
    await driver.store.heartbeat(second, lease=30, activity={"mail": (2, 0), "b": (0.2, 0.2)})
    assert await driver.store.throughput() == {"mail": (3.5, 0.25), "a": (0.1, 0), "b": (0.2, 0.2)}
    shown = {node.id: node.throughput for node in await driver.store.nodes()}
    assert shown == {first: Rates(1.6, 0.25), second: Rates(2.2, 0.2)}
    await driver.store.heartbeat(second, lease=30)
    assert await driver.store.throughput() == {"mail": (1.5, 0.25), "a": (0.1, 0)}
    await driver.store.heartbeat(first, lease=-1, activity={"mail": (9, 9)})
    assert await driver.store.throughput() == {}, "the last rates of a lost node do not count"
    assert {node.throughput.completed for node in await driver.store.nodes()} == {0}


async def test_nodes_are_shown_with_what_they_hold(driver: Driver) -> None:
    for queue, kind in (("b", "x"), ("a", "y"), ("a", "x"), ("a", "x")):
        await driver.submit(queue=queue, kind=kind)
    await driver.claim(queue="a")
    await trio.sleep(0.01)
    await driver.claim(queue="b")
    idle = await driver.join()
    nodes = {node.id: node.running for node in await driver.store.nodes()}
    assert nodes.pop(idle) == []
    [running] = nodes.values()
    assert [(row.queue, row.kind, row.jobs) for row in running] == [("a", "x", 2), ("a", "y", 1), ("b", "x", 1)]
    ages = [row.oldest for row in running]
    assert 60 > ages[0] == pytest.approx(ages[1], abs=1e-3)
    assert ages[1] > ages[2] >= 0


async def test_a_scheduled_job_is_as_old_as_it_is_late(driver: Driver) -> None:
    await driver.submit(delay=3600)
    [depth] = await driver.store.depths()
    assert (depth.state, depth.oldest) == ("scheduled", 0)
    await driver.submit(delay=0.01)
    await trio.sleep(0.03)
    [depth] = await driver.store.depths()
    assert 0.01 < depth.oldest < 60
