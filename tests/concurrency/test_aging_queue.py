from collections.abc import Sequence
from fractions import Fraction
from itertools import count
from typing import Literal, NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from jobqueue.concurrency.aging_queue import AgingQueue, AgingQueueStatistics

pytestmark = pytest.mark.slow

MAX_PRIORITY = 20
AGING_INTERVAL = 3

priorities = st.integers(0, MAX_PRIORITY)


class Waiting(NamedTuple):
    """A waiting job, by the definition of aging: its score grows by one per aging interval."""

    available_since: int
    priority: int
    aging_interval: int = AGING_INTERVAL

    @property
    def rank(self) -> float:
        return self.available_since - self.priority * self.aging_interval

    def score(self, now: int) -> Fraction:
        return self.priority + Fraction(now - self.available_since, self.aging_interval)


def filled(jobs: Sequence[Waiting]) -> AgingQueue[Waiting]:
    queue = AgingQueue[Waiting](max(1, len(jobs)))
    for job in jobs:
        queue.push(job.rank, job)
    return queue


# ------------------------------------------------------------------------------------------------------------------ order and aging


@given(st.lists(st.tuples(st.integers(0, 100), priorities)), st.integers(1, 10), st.integers(0, 1_000))
async def test_pop_order_is_the_order_of_the_scores_at_any_later_time(
    arrivals: list[tuple[int, int]], aging_interval: int, later: int
) -> None:
    jobs = [Waiting(since, priority, aging_interval) for since, priority in arrivals]
    queue = filled(jobs)
    now = max((job.available_since for job in jobs), default=0) + later
    assert [await queue.pop() for _ in jobs] == sorted(jobs, key=lambda job: job.score(now), reverse=True)


@given(st.lists(st.lists(priorities, max_size=4), min_size=1, max_size=40))
async def test_under_overload_a_job_is_overtaken_only_within_the_bound_of_its_priority(arrivals_by_time: list[list[int]]) -> None:
    queue = AgingQueue[Waiting](sum(map(len, arrivals_by_time)) or 1)
    behind: list[Waiting] = []

    async def run_one() -> None:
        running = await queue.pop()
        behind.remove(running)
        for waiting in behind:
            head_start = running.available_since - waiting.available_since
            assert head_start <= 0 or head_start < (MAX_PRIORITY - waiting.priority) * AGING_INTERVAL

    for now, arrivals in enumerate(arrivals_by_time):
        for priority in arrivals:
            behind.append(Waiting(now, priority))
            queue.push(behind[-1].rank, behind[-1])
        if len(queue):
            await run_one()
    while len(queue):
        await run_one()


async def test_a_job_of_the_least_priority_is_run_in_a_stream_of_the_most_urgent_ones() -> None:
    queue = AgingQueue[Waiting](1_000)
    patient = Waiting(0, 0)
    queue.push(patient.rank, patient)
    ran: list[Waiting] = []
    for now in range(200):
        for urgent in [Waiting(now, MAX_PRIORITY)] * 2:
            queue.push(urgent.rank, urgent)
        ran.append(await queue.pop())
    overtaken_by = ran[: ran.index(patient)]
    assert len(overtaken_by) == 2 * MAX_PRIORITY * AGING_INTERVAL
    assert max(job.available_since for job in overtaken_by) == MAX_PRIORITY * AGING_INTERVAL - 1


@given(st.lists(st.integers(0, 3)))
async def test_items_of_equal_rank_are_popped_in_order_of_arrival(ranks: list[int]) -> None:
    queue = AgingQueue[tuple[int, int]](len(ranks) or 1)
    items = [(rank, arrival) for arrival, rank in enumerate(ranks)]
    for item in items:
        queue.push(item[0], item)
    assert [await queue.pop() for _ in items] == sorted(items)


async def test_items_are_never_compared() -> None:
    queue = AgingQueue[object](2)
    first, second = object(), object()
    queue.push(1.0, first)
    queue.push(1.0, second)
    assert (await queue.pop(), await queue.pop()) == (first, second)


# ------------------------------------------------------------------------------------------------------------------------- capacity


@given(st.integers(1, 50))
async def test_push_would_block_at_the_capacity_and_not_before(capacity: int) -> None:
    queue = AgingQueue[int](capacity)
    for item in range(capacity):
        queue.push(0, item)
    with pytest.raises(trio.WouldBlock):
        queue.push(-1, capacity)
    assert len(queue) == capacity
    assert await queue.pop() == 0
    queue.push(-1, capacity)
    assert await queue.pop() == capacity


# -------------------------------------------------------------------------------------------------------------------- waiting tasks


class Consumers:
    """Tasks that pop one item each. Each can be cancelled."""

    def __init__(self, queue: AgingQueue[int], nursery: trio.Nursery) -> None:
        self.received: list[tuple[int, int]] = []
        self.ended: list[int] = []
        self.scopes: list[trio.CancelScope] = []
        self._queue = queue
        self._nursery = nursery

    def start(self) -> None:
        self.scopes.append(trio.CancelScope())
        self._nursery.start_soon(self._consume, len(self.scopes) - 1)

    async def _consume(self, number: int) -> None:
        with self.scopes[number]:
            try:
                self.received.append((number, await self._queue.pop()))
            except trio.EndOfChannel:
                self.ended.append(number)


@pytest.fixture
def queue() -> AgingQueue[int]:
    return AgingQueue[int](100)


@pytest.fixture
def consumers(queue: AgingQueue[int], nursery: trio.Nursery) -> Consumers:
    return Consumers(queue, nursery)


async def start_waiting(consumers: Consumers, tasks: int) -> None:
    for _ in range(tasks):
        consumers.start()
        await wait_all_tasks_blocked()


async def test_the_task_that_waits_longest_gets_the_first_item(queue: AgingQueue[int], consumers: Consumers) -> None:
    await start_waiting(consumers, 3)
    for item in (9, 7, 8):
        queue.push(item, item)
        await wait_all_tasks_blocked()
    assert consumers.received == [(0, 9), (1, 7), (2, 8)]


async def test_statistics_count_items_capacity_and_waiting_tasks(queue: AgingQueue[int], consumers: Consumers) -> None:
    queue.push(0, 7)
    assert queue.statistics() == AgingQueueStatistics(items=1, capacity=100, tasks_waiting=0)
    await start_waiting(consumers, 3)
    assert queue.statistics() == AgingQueueStatistics(items=0, capacity=100, tasks_waiting=2)
    queue.close()


async def test_a_task_cancelled_while_it_waits_takes_nothing(queue: AgingQueue[int], consumers: Consumers) -> None:
    await start_waiting(consumers, 2)
    consumers.scopes[0].cancel()
    queue.push(0, 7)
    await wait_all_tasks_blocked()
    assert consumers.received == [(1, 7)]


async def test_a_task_cancelled_after_it_was_woken_keeps_its_item(queue: AgingQueue[int], consumers: Consumers) -> None:
    await start_waiting(consumers, 2)
    queue.push(0, 7)
    consumers.scopes[0].cancel()
    await wait_all_tasks_blocked()
    assert consumers.received == [(0, 7)]
    assert queue.statistics().tasks_waiting == 1
    queue.close()


async def test_a_cancelled_task_leaves_present_items_in_the_queue(queue: AgingQueue[int], consumers: Consumers) -> None:
    queue.push(0, 7)
    consumers.start()
    consumers.scopes[0].cancel()
    await wait_all_tasks_blocked()
    assert consumers.received == []
    assert len(queue) == 1


Step = tuple[Literal["push", "pop", "cancel", "settle"], int]

steps: st.SearchStrategy[Step] = st.tuples(st.sampled_from(["push", "push", "pop", "pop", "cancel", "settle"]), st.integers(0, 9))


@given(st.lists(steps, max_size=60))
async def test_no_schedule_of_pushes_pops_and_cancels_loses_or_doubles_an_item_or_a_wake_up(schedule: list[Step]) -> None:
    queue = AgingQueue[int](len(schedule) + 1)
    numbers = count()
    pushed: list[int] = []
    async with trio.open_nursery() as nursery:
        consumers = Consumers(queue, nursery)
        for action, number in schedule:
            if action == "push":
                pushed.append(next(numbers))
                queue.push(number, pushed[-1])
            elif action == "pop":
                consumers.start()
            elif action == "settle":
                await wait_all_tasks_blocked()
            elif consumers.scopes:
                consumers.scopes[number % len(consumers.scopes)].cancel()
        await wait_all_tasks_blocked()
        assert not (len(queue) and queue.statistics().tasks_waiting)
        received = [item for _, item in consumers.received]
        assert sorted(received + queue.close()) == pushed


# -------------------------------------------------------------------------------------------------------------------------- the end


@given(st.lists(st.integers(0, 5)))
async def test_clear_and_close_return_the_remaining_items_best_first(ranks: list[int]) -> None:
    for remove in (AgingQueue[int].clear, AgingQueue[int].close):
        queue = AgingQueue[int](len(ranks) or 1)
        for rank in ranks:
            queue.push(rank, rank)
        assert remove(queue) == sorted(ranks)
        assert len(queue) == 0


async def test_a_cleared_queue_stays_usable(queue: AgingQueue[int]) -> None:
    queue.push(0, 1)
    queue.clear()
    queue.push(0, 2)
    assert await queue.pop() == 2


async def test_at_close_every_waiting_task_sees_the_end(queue: AgingQueue[int], consumers: Consumers) -> None:
    await start_waiting(consumers, 3)
    assert queue.close() == []
    await wait_all_tasks_blocked()
    assert sorted(consumers.ended) == [0, 1, 2]


async def test_a_closed_queue_rejects_push_and_pop(queue: AgingQueue[int]) -> None:
    queue.push(0, 1)
    assert queue.close() == [1]
    assert queue.close() == []
    with pytest.raises(trio.ClosedResourceError):
        queue.push(0, 2)
    with pytest.raises(trio.EndOfChannel):
        await queue.pop()


async def test_an_item_pushed_just_before_the_close_is_returned_and_not_given_to_the_woken_task(
    queue: AgingQueue[int], consumers: Consumers
) -> None:
    await start_waiting(consumers, 1)
    queue.push(0, 7)
    assert queue.close() == [7]
    await wait_all_tasks_blocked()
    assert (consumers.received, consumers.ended) == ([], [0])


async def test_push_all_adds_all_items_or_none_and_orders_them_by_rank() -> None:
    queue = AgingQueue[str](3)
    queue.push_all([(2, "c"), (1, "a"), (1, "b")])
    with pytest.raises(trio.WouldBlock):
        queue.push_all([(0, "d")])
    assert queue.pop_nowait() == "a"
    with pytest.raises(trio.WouldBlock):
        queue.push_all([(0, "d"), (0, "e")])
    assert [await queue.pop(), queue.pop_nowait()] == ["b", "c"]
    with pytest.raises(trio.WouldBlock):
        queue.pop_nowait()
