"""The history of all nodes: their counts are added in slots of the database's clock, kept for a period, and read.

In memory and on each supported PostgreSQL. `test_history_sql` has the tests that need SQL.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from jobqueue.durations import BOUNDS, Durations
from jobqueue.engine.history import EARLIEST, LATEST, RETRY_INTERVAL, SAMPLE_SHARE, HistoryWriter, look_back, point, step_of
from jobqueue.errors import DatabaseUnavailable, RefusedData
from jobqueue.metrics import Metrics, Totals
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles import Store
from jobqueue.storage.roles.inspect import HISTORY, HISTORY_SETTLE, HistorySlot
from jobqueue.storage.roles.upkeep import Recorded
from jobqueue.testing.memory_store import MemoryStore
from tests.support.postgres import SERVERS, Database, ServerPool
from tests.support.schedules import begin, move_of, nightly
from tests.support.storage import Driver, joined, open_driver

MEMORY = "memory"

SOME = Totals(submitted=7, completed=5, failed=2, dead=1, waits=[0, 3, 4], runs=[6])


class Case:
    """A store, and a way to advance its clock."""

    def __init__(self, driver: Driver, let_pass: Callable[[float], None]) -> None:
        self.store: Store = driver.store
        self.driver = driver
        self.let_pass = let_pass

    async def in_one_slot(self, *counts: Totals) -> list[Recorded]:
        """Record the counts one after the other, all in one empty slot."""
        while True:
            self.let_pass(600)
            recorded = [await self.store.record(each) for each in counts]
            if all(after.next_in <= before.next_in for before, after in pairwise(recorded)):
                return recorded


@pytest.fixture(params=[MEMORY, *sorted(SERVERS)])
async def case(request: pytest.FixtureRequest, servers: ServerPool) -> AsyncIterator[Case]:
    if request.param == MEMORY:
        passed = 0.0

        def let_pass(seconds: float) -> None:
            nonlocal passed
            passed += seconds

        yield Case(await joined(MemoryStore(lambda: time.monotonic() + passed)), let_pass)
        return
    url = servers.emptied(request.param)
    database = Database(url)
    async with open_driver(url) as driver:

        def make_older(seconds: float) -> None:
            database.rows("UPDATE jobqueue_internal.history SET at = at - %s * interval '1 second'", seconds)

        yield Case(driver, make_older)
    database.close()


def total(slots: Sequence[HistorySlot]) -> Totals:
    """Return the sum of some slots."""
    together = Totals(0, 0, 0, 0)
    for slot in slots:
        one, other = together, slot.counts
        longest = max(len(one.waits), len(other.waits)), max(len(one.runs), len(other.runs))
        together = Totals(
            *(a + b for a, b in zip(one[:4], other[:4], strict=True)),  # type: ignore[arg-type]
            waits=[sum(each.waits[n] for each in (one, other) if n < len(each.waits)) for n in range(longest[0])],
            runs=[sum(each.runs[n] for each in (one, other) if n < len(each.runs)) for n in range(longest[1])],
        )
    return together


# ---------------------------------------------------------------------------------------------------------------------- the verbs


async def test_counts_of_several_nodes_are_added_in_slots_of_each_length(case: Case) -> None:
    await case.in_one_slot(SOME, Totals(0, 0, 0, 0), SOME._replace(waits=[], runs=[0, 1]))
    case.let_pass(600)
    for step in HISTORY:
        slots = await case.store.history(step, seconds=3600)
        assert total(slots) == Totals(14, 10, 4, 2, [0, 3, 4], [6, 1])
        assert [slot.at.timestamp() % step for slot in slots if not slot.counts.submitted] == []
    assert [slot.counts.submitted for slot in await case.store.history(10, seconds=3600)] == [14]


async def test_a_slot_is_shown_after_its_end_when_every_node_has_written(case: Case) -> None:
    [recorded] = await case.in_one_slot(SOME)
    assert 0 < recorded.next_in <= 10
    deadline = time.monotonic() + 90
    while not (slots := await case.store.history(10, seconds=300)):
        assert time.monotonic() < deadline
        await trio.sleep(0.02)
    now = (await case.store.now()).timestamp()
    assert now - slots[0].at.timestamp() >= 10 + HISTORY_SETTLE - 0.1
    assert slots == [HistorySlot(slots[0].at, SOME, None)]
    for slot in await case.store.history(300, seconds=3600):
        assert now - slot.at.timestamp() >= 300 + HISTORY_SETTLE - 0.1


async def test_the_first_node_of_a_slot_samples_the_depths_the_next_time(case: Case) -> None:
    recorded = await case.in_one_slot(SOME, SOME, SOME)
    assert [each.sample for each in recorded] == [True, False, False]


async def test_depths_cover_all_queues_and_the_latest_count_is_kept(case: Case) -> None:
    await case.driver.submit(queue="one")
    await case.driver.submit(queue="two")
    await case.driver.submit(delay=3600)
    await case.driver.in_state("dead")
    await case.driver.in_state("inflight")
    await case.store.record(SOME, sample=True)
    await case.store.record(SOME)
    case.let_pass(600)
    for step in HISTORY:
        slots = await case.store.history(step, seconds=3600)
        assert [slot.depth for slot in slots if slot.depth] == [
            {"pending": 2, "scheduled": 1, "blocked": 0, "inflight": 1, "dead": 1}
        ]


@pytest.mark.parametrize("step", HISTORY)
async def test_slots_are_kept_for_their_retention_period(case: Case, step: int) -> None:
    kept = HISTORY[step]
    await case.store.record(SOME)
    case.let_pass(kept - 400)
    await case.store.record(Totals(0, 0, 0, 0))
    assert total(await case.store.history(step, seconds=10 * kept)).submitted == 7
    case.let_pass(400 + 3 * step)
    assert total(await case.store.history(step, seconds=kept)).submitted == 0, "older slots were not requested"
    await case.store.record(Totals(0, 0, 0, 0))
    assert total(await case.store.history(step, seconds=10 * kept)).submitted == 0


async def test_the_database_counts_triggered_jobs(case: Case) -> None:
    await case.store.put_schedule(nightly())
    await case.store.trigger_schedule("nightly")
    await case.in_one_slot(Totals(0, 0, 0, 0), Totals(0, 0, 0, 0))
    case.let_pass(600)
    assert total(await case.store.history(10, seconds=86_400)).submitted == 1


async def test_the_node_that_moves_a_schedule_counts_the_jobs_of_its_ticks(case: Case) -> None:
    await case.store.put_schedule(nightly(queue="q"))
    schedule = await begin(case.driver, 1_000_000_000)
    moved = await case.store.move_schedules([move_of(schedule, 1_000_000_000, 1_000_086_400, next_at=4_000_000_000)])
    assert moved.submitted == {("q", "report"): 2}
    assert (await case.store.move_schedules([])).submitted == {}
    await case.store.record(Totals(0, 0, 0, 0))
    case.let_pass(600)
    assert total(await case.store.history(10, seconds=86_400)).submitted == 0, "the database does not count the jobs"


# ----------------------------------------------------------------------------------------------------------------------- the stage


class Unsteady(MemoryStore):
    """A store in virtual time that fails on request, and records the calls that sample the depths."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.error: Exception | None = None
        self.calls: list[float] = []
        self.samples: list[float] = []
        self.takes = 0.0

    async def record(self, counts: Totals, *, sample: bool = False) -> Recorded:
        self.calls.append(trio.current_time())
        if sample:
            self.samples.append(trio.current_time())
            await trio.sleep(self.takes)
            if self.takes:
                raise DatabaseUnavailable("canceling statement due to statement timeout")
        if self.error is not None:
            raise self.error
        return await super().record(counts, sample=sample)


async def into_the_middle_of_a_slot(store: Store) -> None:
    """Sleep until all nodes have written the last slot, and none has written the current one."""
    await trio.sleep((5 - (await store.now()).timestamp()) % 10)


async def test_a_node_writes_shortly_after_each_slot_despite_a_wrong_clock(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert autojump_clock is not None
    store, metrics = Unsteady(), Metrics()
    await store.now()
    monkeypatch.setattr(time, "time", lambda: -1e6)
    await nursery.start(HistoryWriter(store, metrics).run)
    await into_the_middle_of_a_slot(store)
    for _ in range(60):
        metrics.of("q", "k").submitted.inc(3)
        metrics.of("q", "k").wait.observe(0.5)
        await trio.sleep(10)
    assert len(store.calls) == pytest.approx(61, abs=1)
    now = await store.now()
    for at in store.calls[1:]:
        late = (now.timestamp() - trio.current_time() + at) % 10
        assert EARLIEST - 0.01 <= late <= LATEST + 0.01
    slots = await store.history(10, seconds=500)
    assert [slot.counts.submitted for slot in slots] == [3] * len(slots)
    assert [sum(slot.counts.waits) for slot in slots] == [1] * len(slots)
    assert all(slot.depth is not None for slot in slots)
    nursery.cancel_scope.cancel()


async def test_each_node_writes_its_counts(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Unsteady()
    nodes = [Metrics() for _ in range(3)]
    for number, metrics in enumerate(nodes):
        await trio.sleep(number)
        await nursery.start(HistoryWriter(store, metrics).run)
    await into_the_middle_of_a_slot(store)
    for _ in range(30):
        for number, metrics in enumerate(nodes):
            kind = metrics.of("q", "k")
            kind.submitted.inc(10**number)
            kind.failed.inc(1)
            kind.dead.inc(2)
            kind.by_outcome["succeeded"].inc(3)
            kind.run.observe(10.0**-number)
        await trio.sleep(10)
    slots = (await store.history(10, seconds=250))[:20]
    assert [slot.counts[:4] for slot in slots] == [(111, 9, 3, 6)] * 20
    durations = Durations()
    for seconds in (1.0, 0.1, 0.01):
        durations.observe(seconds)
    assert list(slots[0].counts.runs) == durations.counts[: BOUNDS.index(1.0) + 1]
    assert len(store.samples) <= 31, "one node counts for each slot"
    nursery.cancel_scope.cancel()


async def test_counts_are_kept_during_an_outage(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store, metrics = Unsteady(), Metrics()
    await nursery.start(HistoryWriter(store, metrics).run)
    await trio.sleep(30)
    store.error = DatabaseUnavailable("as told")
    for _ in range(30):
        metrics.of("q", "k").submitted.inc(1)
        await trio.sleep(10)
    store.error = None
    await trio.sleep(RETRY_INTERVAL + 30)
    slots = await store.history(10, seconds=3600)
    assert [slot.counts.submitted for slot in slots if slot.counts.submitted] == [30]
    nursery.cancel_scope.cancel()


async def test_counts_that_the_database_rejects_are_dropped_and_stop_no_node(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    store, metrics = Unsteady(), Metrics()
    store.error = RefusedData("bigint out of range")
    metrics.of("q", "k").submitted.inc(1)
    await nursery.start(HistoryWriter(store, metrics).run)
    await trio.sleep(20)
    store.error = None
    metrics.of("q", "k").submitted.inc(2)
    await trio.sleep(40)
    assert total(await store.history(10, seconds=3600)).submitted == 2
    nursery.cancel_scope.cancel()


async def test_failing_samples_are_not_retried_all_the_time(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store, metrics = Unsteady(), Metrics()
    store.takes = 8
    await nursery.start(HistoryWriter(store, metrics).run)
    await trio.sleep(7200)
    gaps = [after - before for before, after in pairwise(store.samples)]
    assert len(store.samples) >= 8
    assert min(gaps) >= 8 * SAMPLE_SHARE
    assert len(store.calls) >= 600, "the rest is written all the same"
    nursery.cancel_scope.cancel()


async def test_the_last_counts_are_flushed_unless_there_are_none() -> None:
    store, metrics = MemoryStore(), Metrics()
    history = HistoryWriter(store, metrics)
    await history.flush()
    assert store._history == {}
    metrics.of("q", "k").submitted.inc(2)
    await history.flush()
    await history.flush()
    assert [slot.counts.submitted for slot in store._history.values()] == [2, 2, 2]


async def test_a_process_that_is_not_a_node_writes_only_its_counts(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store, metrics = Unsteady(), Metrics()
    await nursery.start(HistoryWriter(store, metrics, steady=False).run)
    await trio.sleep(100)
    assert store.calls == []
    metrics.of("q", "k").submitted.inc(2)
    await trio.sleep(100)
    assert total(await store.history(10, seconds=3600)).submitted == 2
    assert len(store.calls) == 1
    nursery.cancel_scope.cancel()


# -------------------------------------------------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize(("seconds", "step"), [(900, 10), (3600, 10), (21600, 60), (86400, 300)])
def test_a_range_uses_the_shortest_slots_that_are_kept_long_enough(seconds: int, step: int) -> None:
    assert step_of(seconds) == step
    assert seconds / step <= 360


async def test_points_are_rates_and_percentiles() -> None:
    now = await MemoryStore().now()
    durations = Durations()
    for number in range(1, 101):
        durations.observe(number / 100)
    counts = Totals(25, 20, 5, 1, waits=(), runs=durations.counts)
    shown = point(10, HistorySlot(now, counts, None))
    assert [shown[name] for name in ("at", "submitted", "completed", "failed", "dead")] == [now, 2.5, 2, 0.5, 0.1]
    assert (shown["wait"], shown["depth"]) == (None, None)
    assert shown["run"] == {
        "p50": pytest.approx(0.5, rel=0.34),
        "p95": pytest.approx(0.95, rel=0.34),
        "p99": pytest.approx(0.99, rel=0.34),
    }
    assert all(f"{seconds:.3g}" == str(seconds) or math.isclose(seconds, 1) for seconds in shown["run"].values())


async def test_the_range_is_the_same_from_every_node(case: Case) -> None:
    await case.in_one_slot(SOME, SOME)
    case.let_pass(600)
    looked = await look_back(case.store, 3600)
    assert looked["step"] == 10
    [found] = looked["points"]
    assert (found["submitted"], found["dead"]) == (1.4, 0.2)
    other = case.store if isinstance(case.store, MemoryStore) else PostgresStore(case.store.url)
    assert await look_back(other, 3600) == looked
    await other.aclose()
