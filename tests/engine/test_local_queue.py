"""How far ahead of its workers a node claims."""

from __future__ import annotations

import math

import msgspec
import pytest
import trio
from trio.testing import MockClock

from jobqueue.engine.executor import Run
from jobqueue.engine.local_queue import AHEAD, FLOOR_MARGIN, MAX_CLAIM, MAX_PREFETCH, LocalQueue
from jobqueue.job import ClaimedJob
from jobqueue.storage.roles.run import Want


def job(rank: float = 0.0, payload: bytes = b"{}") -> ClaimedJob:
    return ClaimedJob("q", "id", "kind", msgspec.Raw(payload), 0, 1, 1, 3, None, 0.0, rank, 0.0)


def wanted(queue: LocalQueue) -> int:
    want = queue.wanted()
    return 0 if want is None else want.jobs


def claim(queue: LocalQueue, *jobs: ClaimedJob, of: int = 1) -> None:
    """Claim up to `of` jobs for the queue. The claim returns `jobs`."""
    with queue.claiming(Want(of)) as brought:
        brought.extend(jobs)


async def measured(queue: LocalQueue, mock_clock: MockClock, *, jobs_per_second: int, seconds: float = 1.0) -> int:
    """Let the queue see this rate for a while; return how many jobs it wants then."""
    for _ in range(int(seconds * 10)):
        mock_clock.jump(0.1)
        for _ in range(jobs_per_second // 10):
            queue.finished_one()
        queue.wanted()
    return wanted(queue)


async def test_at_first_only_the_workers_are_fed(mock_clock: MockClock) -> None:
    assert mock_clock is not None
    assert wanted(LocalQueue("q", 16)) == 16


async def test_slow_jobs_are_never_hoarded(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 16)
    assert await measured(queue, mock_clock, jobs_per_second=10) == 16
    queue.runs |= {Run(job(), "node", trio.CancelScope()) for _ in range(16)}
    assert wanted(queue) == 0


async def test_fast_jobs_are_claimed_for_the_next_moments(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 16)
    assert await measured(queue, mock_clock, jobs_per_second=4_000) == 16 + int(4_000 * AHEAD)


async def test_claim_and_prefetch_are_bounded(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 16)
    assert await measured(queue, mock_clock, jobs_per_second=10_000_000, seconds=0.1) == MAX_CLAIM
    claimed = 0
    while (want := queue.wanted()) is not None:
        claim(queue, *[job()] * want.jobs, of=want.jobs)
        claimed += want.jobs
    assert MAX_PREFETCH // 2 < claimed <= 16 + MAX_PREFETCH


async def test_large_payloads_are_claimed_a_few_at_a_time(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 1)
    claim(queue, job(payload=b'"' + b"x" * (1 << 20) + b'"'))
    await queue.ready.pop()
    assert await measured(queue, mock_clock, jobs_per_second=10_000) == 7
    claim(queue, job())
    assert wanted(queue) == 8, "one small one does not make it forget"
    for _ in range(1000):
        claim(queue, job())
        await queue.ready.pop()
    assert wanted(queue) > 100


async def test_a_burst_counts_at_once_and_a_pause_takes_it_back_by_halves(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 0)
    await measured(queue, mock_clock, jobs_per_second=1000, seconds=0.1)
    assert wanted(queue) == 50
    mock_clock.jump(0.1)
    assert wanted(queue) == 25


async def test_it_is_time_to_claim_when_half_of_the_prefetch_is_used_up(mock_clock: MockClock) -> None:
    queue = LocalQueue("q", 1)
    await measured(queue, mock_clock, jobs_per_second=1000, seconds=0.1)
    queue.runs.add(Run(job(), "node", trio.CancelScope()))
    claim(queue, *[job()] * 26, of=26)
    assert wanted(queue) == 0
    await queue.ready.pop()
    assert wanted(queue) == 25


async def test_nothing_is_wanted_of_a_queue_that_is_known_to_be_empty(mock_clock: MockClock) -> None:
    assert mock_clock is not None
    queue = LocalQueue("q", 16)
    claim(queue, of=16)
    assert wanted(queue) == 0
    assert not queue.hungry


async def test_idle_capacity_is_what_could_start_at_once() -> None:
    queue = LocalQueue("q", 3)
    queue.runs.add(Run(job(), "node", trio.CancelScope()))
    claim(queue, job())
    assert queue.idle_capacity == 1
    with trio.fail_after(60):
        await queue.ready.pop()
    assert queue.idle_capacity == 2


# ------------------------------------------------------------------------------------------------------------------- the floor


def floor(queue: LocalQueue) -> float | None:
    """Return the floor of the next claim, after the workers have started the ready jobs."""
    queue.ready.clear()
    want = queue.wanted()
    assert want is not None
    return want.floor


async def test_at_first_a_claim_looks_everywhere() -> None:
    assert floor(LocalQueue("q", 16)) is None


async def test_the_floor_follows_what_was_claimed() -> None:
    queue = LocalQueue("q", 16)
    claim(queue, job(10.0), job(20.0), of=2)
    assert floor(queue) == 20.0 - FLOOR_MARGIN


async def test_a_hint_of_a_better_job_lowers_it_and_one_of_a_worse_job_does_not() -> None:
    queue = LocalQueue("q", 16)
    claim(queue, job(20.0))
    queue.hint(30.0)
    assert floor(queue) == 20.0 - FLOOR_MARGIN
    queue.hint(5.0)
    assert floor(queue) == 5.0
    queue.hint(-math.inf)
    assert floor(queue) is None


async def test_a_hint_during_a_claim_is_kept() -> None:
    queue = LocalQueue("q", 16)
    with queue.claiming(Want(16)) as brought:
        brought.append(job(20.0))
        queue.hint(3.0)
    assert floor(queue) == 3.0


async def test_a_claim_that_failed_or_brought_nothing_leaves_the_floor_where_it_was() -> None:
    queue = LocalQueue("q", 16)
    claim(queue, job(20.0))
    queue.ready.clear()
    with pytest.raises(RuntimeError), queue.claiming(Want(1)):
        raise RuntimeError
    assert floor(queue) == 20.0 - FLOOR_MARGIN
    claim(queue, of=1)
    queue.hint(99.0)
    assert floor(queue) == 20.0 - FLOOR_MARGIN
