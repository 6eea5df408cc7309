"""A bounded priority queue in which every item ages at the same rate, so that nothing in it starves.

::

    queue = AgingQueue[ClaimedJob](capacity=512)
    queue.push(job.rank, job)       # synchronous
    job = await queue.pop()         # the smallest rank; waits while the queue is empty

The rank is fixed when the item is made (``available_since - priority * aging_interval``): waiting longer and having a higher
priority move an item the same way, and as all items age alike, the order of two items never changes. So a plain heap *is* the
priority queue with aging: no aging task, no re-heapify.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AgingQueueStatistics:
    """A moment of a queue: items in it, the most it takes, and tasks that wait for one."""

    items: int
    capacity: int
    tasks_waiting: int


class AgingQueue(Generic[T]):
    """A heap of items by rank, and the tasks that wait for them.

    Args:
        capacity: the most items it takes.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._heap: list[tuple[float, int, T]] = []
        self._arrivals = count()
        self._waiting = trio.lowlevel.ParkingLot()
        self._closed = False

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def tasks_waiting(self) -> int:
        """How many tasks are parked in `pop`."""
        return len(self._waiting)

    def statistics(self) -> AgingQueueStatistics:
        return AgingQueueStatistics(len(self._heap), self._capacity, len(self._waiting))

    def push(self, rank: float, item: T) -> None:
        """Add an item; equal ranks leave in the order in which they came.

        Raises:
            trio.WouldBlock: the queue is at capacity.
            trio.ClosedResourceError: the queue was closed.
        """
        self.push_all([(rank, item)])

    def push_all(self, items: Sequence[tuple[float, T]]) -> None:
        """Add items, each with its rank; all of them or, with what `push` raises, none."""
        if self._closed:
            raise trio.ClosedResourceError
        if len(self._heap) + len(items) > self._capacity:
            raise trio.WouldBlock
        self._heap.extend([(rank, next(self._arrivals), item) for rank, item in items])
        heapq.heapify(self._heap)
        self._waiting.unpark(count=len(items))

    async def pop(self) -> T:
        """Take the item with the smallest rank, waiting for one if there is none.

        There is no checkpoint between the removal and the return: a cancelled task has not taken anything.

        Raises:
            trio.EndOfChannel: the queue was closed and is empty.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._heap:
            if self._closed:
                raise trio.EndOfChannel
            await self._waiting.park()
        return self.pop_nowait()

    def pop_nowait(self) -> T:
        """Take the item with the smallest rank.

        Raises:
            trio.WouldBlock: there is none.
        """
        if not self._heap:
            raise trio.WouldBlock
        return heapq.heappop(self._heap)[2]

    def withdraw(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Remove the items that are unwanted and return them."""
        withdrawn = [entry[2] for entry in self._heap if unwanted(entry[2])]
        if withdrawn:
            self._heap = [entry for entry in self._heap if not unwanted(entry[2])]
            heapq.heapify(self._heap)
        return withdrawn

    def clear(self) -> list[T]:
        """Remove all items and return them, best rank first."""
        left = [item for _, _, item in sorted(self._heap)]
        self._heap.clear()
        return left

    def close(self) -> list[T]:
        """Take no more items, let every waiting task see the end, and return what was left, best rank first."""
        self._closed = True
        self._waiting.unpark_all()
        return self.clear()
