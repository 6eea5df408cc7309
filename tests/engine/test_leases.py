"""A node judges others only once it has held its own lease for a while."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from jobqueue.engine.leases import STEADY_AFTER, Lease
from jobqueue.engine.signals import Signals
from jobqueue.metrics import Metrics
from jobqueue.testing.memory_store import MemoryStore


async def test_after_a_pause_of_the_machine_a_node_lets_the_others_renew_before_it_judges_them(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = MemoryStore(trio.current_time)
    lease = Lease(store, Metrics(), Signals(), queues={}, seconds=30)
    await lease.join()
    await nursery.start(lease.run)
    assert not lease.steady
    await trio.sleep(STEADY_AFTER + 1)
    assert lease.steady
    autojump_clock.jump(60)
    assert not lease.valid
    await trio.sleep(0.1)
    assert lease.valid
    assert not lease.steady
    await trio.sleep(STEADY_AFTER + 1)
    assert lease.steady
    nursery.cancel_scope.cancel()
