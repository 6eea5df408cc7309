"""How far ahead of its workers a node claims."""

from __future__ import annotations

import msgspec
import trio
from trio.testing import MockClock

from jobqueue.engine.executor import Run
from jobqueue.engine.local_queue import AHEAD, MAX_CLAIM, MAX_PREFETCH, LocalQueue
from jobqueue.job import ClaimedJob


def job(payload: bytes = b"{}") -> ClaimedJob:
    return ClaimedJob("q", "id", "kind", msgspec.Raw(payload), 0, 1, 1, 3, None, 0.0, 0.0, 0.0)


async def measured(queue: LocalQueue, mock_clock: MockClock, *, jobs_per_second: int, seconds: float = 1.0) -> int:
    """Let the queue see that rate for a while; return what it wants then."""
    for _ in range(int(seconds * 10)):
        mock_clock.jump(0.1)
        for _ in range(jobs_per_second // 10):
            queue.finished_one()
        wanted = queue.wanted()
    return wanted


async def test_at_first_only_the_workers_are_fed(mock_clock: MockClock) -> None:
    assert mock_clock is not None
    assert LocalQueue("q", 16).wanted() == 16


async def test_slow_jobs_are_never_hoarded(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 16)
    assert await measured(queue, mock_clock, jobs_per_second=10) == 16
    queue.runs |= {Run(job()) for _ in range(16)}
    assert queue.wanted() == 0


async def test_fast_jobs_are_claimed_for_the_next_moments(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 16)
    assert await measured(queue, mock_clock, jobs_per_second=4_000) == 16 + int(4_000 * AHEAD)


async def test_claim_and_prefetch_are_bounded(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 16)
    assert await measured(queue, mock_clock, jobs_per_second=10_000_000, seconds=0.1) == MAX_CLAIM
    claimed = 0
    while wanted := queue.wanted():
        for _ in range(wanted):
            queue.take(job())
        claimed += wanted
    assert MAX_PREFETCH // 2 < claimed <= 16 + MAX_PREFETCH


async def test_large_payloads_are_claimed_a_few_at_a_time(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 1)
    queue.take(job(b'"' + b"x" * (1 << 20) + b'"'))
    await queue.ready.pop()
    assert await measured(queue, mock_clock, jobs_per_second=10_000) == 7
    queue.take(job())
    assert queue.wanted() == 8, "one small one does not make it forget"
    for _ in range(2000):
        queue.take(job())
        await queue.ready.pop()
    await queue.ready.pop()
    assert queue.wanted() > 100


async def test_a_burst_counts_at_once_and_a_pause_takes_it_back_by_halves(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 0)
    await measured(queue, mock_clock, jobs_per_second=1000, seconds=0.1)
    assert queue.wanted() == 50
    mock_clock.jump(0.1)
    assert queue.wanted() == 25


async def test_it_is_time_to_claim_when_half_of_the_prefetch_is_used_up(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 1)
    await measured(queue, mock_clock, jobs_per_second=1000, seconds=0.1)
    queue.runs.add(Run(job()))
    for _ in range(26):
        queue.ready.push(0.0, job())
    assert queue.wanted() == 0
    await queue.ready.pop()
    assert queue.wanted() == 25


async def test_nothing_is_wanted_of_a_queue_that_is_known_to_be_empty(mock_clock: MockClock) -> None:
    assert mock_clock is not None
    queue = LocalQueue("q", 16)
    queue.more = False
    assert queue.wanted() == 0
    assert not queue.hungry


async def test_idle_capacity_is_what_could_start_at_once() -> None:
    queue = LocalQueue("q", 3)
    queue.runs.add(Run(job()))
    queue.ready.push(0.0, job())
    assert queue.idle_capacity == 1
    with trio.fail_after(1):
        await queue.ready.pop()
    assert queue.idle_capacity == 2
