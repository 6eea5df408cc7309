"""When and where a node polls for work that no notification announced, and who may claim."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from jobqueue.engine.dispatcher import LONGEST_WITHOUT_LOOK, LOOK_EVERYWHERE_SHARE, Dispatcher
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.signals import Signals
from jobqueue.metrics import Metrics
from jobqueue.storage.claims import Claimed
from jobqueue.storage.roles.run import Want
from jobqueue.testing.memory_store import MemoryStore
from tests.support.storage import joined

POLL = 2.0


class Wading(MemoryStore):
    """A store in which a claim without a floor, which searches the whole queue, takes a number of seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(trio.current_time)
        self._seconds = seconds
        self.looks: list[tuple[float, float | None]] = []

    async def claim(self, node_id: str, wants: Mapping[str, Want], defaults: bytes) -> Claimed:
        self.looks.append((trio.current_time(), wants["default"].floor))
        if wants["default"].floor is None:
            await trio.sleep(self._seconds)
        return await super().claim(node_id, wants, defaults)


async def dispatcher_of(store: MemoryStore, queue: LocalQueue) -> Dispatcher:
    metrics, signals = Metrics(), Signals()
    lease = Lease(store, metrics, signals, queues={queue.name: queue.concurrency}, seconds=1e6)
    await lease.join()
    outcomes = Outcomes(store, lease, metrics, signals, keep_finished=True)
    queues = {queue.name: queue}
    return Dispatcher(store, lease, outcomes, metrics, signals, queues=queues, handlers={}, poll_interval=POLL)


@pytest.mark.parametrize(("seconds", "pause"), [(0.001, POLL), (0.1, 0.1 * LOOK_EVERYWHERE_SHARE), (5.0, LONGEST_WITHOUT_LOOK)])
async def test_a_poll_searches_the_whole_queue_unless_that_is_slow(
    seconds: float, pause: float, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    store, queue = Wading(seconds), LocalQueue("default", 4)
    await nursery.start((await dispatcher_of(store, queue)).run)
    for _ in range(100):  # the next poll finds a job without a notification, with or without a floor
        await (await joined(store)).submit()
        await trio.sleep(POLL + seconds + 0.1)
        assert len(queue.ready) == 1
        queue.ready.clear()
    everywhere = [when for when, floor in store.looks if floor is None]
    pauses = [later - when for when, later in pairwise(everywhere[1:])]
    assert pauses
    assert all(pause - 0.1 <= one <= pause + 2 * POLL + seconds for one in pauses)


async def test_submissions_that_claim_and_the_dispatcher_take_turns(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Wading(0.1)
    dispatcher = await dispatcher_of(store, LocalQueue("default", 4))
    due = {"default": 1}
    with dispatcher.along(due) as along:
        assert along is None, "the dispatcher has not started"
    running = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with running:
            await dispatcher.run(task_status=task_status)

    await nursery.start(run)
    await trio.sleep(0.5)
    claims = len(store.looks)
    with dispatcher.along(due) as along:
        assert along is not None
        dispatcher.wake_all()
        await wait_all_tasks_blocked()
        with dispatcher.along(due) as another:
            assert another is None
        assert len(store.looks) == claims, "the dispatcher waits"
    with dispatcher.along(due) as along:
        assert along is None, "it is the dispatcher's turn, even if a submission comes at once"
    await trio.sleep(0.01)
    assert len(store.looks) == claims + 1
    await trio.sleep(0.5)
    with dispatcher.along(due) as along:
        assert along is not None
        running.cancel()
        await wait_all_tasks_blocked()
    with dispatcher.along(due) as along:
        assert along is None, "the dispatcher has stopped"
