"""Counting the depths takes at most the share of the time that the callers allow."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from jobqueue.engine import overview
from jobqueue.engine.depths import DEPTH_INTERVAL, DEPTH_SHARE, Depths
from jobqueue.storage.roles.inspect import Depth
from jobqueue.testing.memory_store import MemoryStore

WATCHED = 1_000.0
"""Seconds for which the test requests the depths, twice a second."""


class SlowStore(MemoryStore):
    """A store in which counting takes a number of seconds of virtual time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(trio.current_time)
        self._seconds = seconds
        self.counts = 0

    async def depths(self) -> list[Depth]:
        self.counts += 1
        await trio.sleep(self._seconds)
        return await super().depths()


@pytest.mark.parametrize("share", [DEPTH_SHARE, overview.DEPTH_SHARE])
@pytest.mark.parametrize("seconds", [0.0, 0.1, 2.0])
async def test_counting_takes_at_most_its_share_of_the_time(seconds: float, share: int, autojump_clock: MockClock) -> None:  # noqa: ARG001
    store = SlowStore(seconds)
    depths = Depths(store)
    began = trio.current_time()
    while trio.current_time() < began + WATCHED:
        await depths.counted(share=share)
        await trio.sleep(0.5)
    each = max(DEPTH_INTERVAL, seconds * share)
    assert WATCHED / (each + 0.5 + seconds) - 1 <= store.counts <= WATCHED / each + 1


async def test_a_count_for_one_caller_serves_the_others(autojump_clock: MockClock) -> None:  # noqa: ARG001
    store = SlowStore(0.1)
    depths = Depths(store)
    await depths.counted(share=100)
    await trio.sleep(5)
    await depths.counted(share=100)
    assert store.counts == 1
    await depths.counted(share=20)
    await depths.counted(share=100)
    assert store.counts == 2
