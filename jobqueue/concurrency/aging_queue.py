"""A bounded priority queue in which all items age at the same rate, so that none starves.

::

    queue = AgingQueue[ClaimedJob](capacity=512)
    queue.push(job.rank, job)       # synchronous
    job = await queue.pop()         # the smallest rank; waits while the queue is empty

The rank is fixed when the item is created (``available_since - priority * aging_interval``). A
longer wait and a higher priority improve it in the same way. Because all items age alike, the order
of two items never changes. A plain heap is therefore enough, without an aging task and without
reordering.
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
    """A snapshot of a queue: its items, its capacity, and the tasks that wait for an item."""

    items: int
    capacity: int
    tasks_waiting: int


class AgingQueue(Generic[T]):
    """A heap of items by rank, and the tasks that wait for them.

    Args:
        capacity: the maximum number of items in the queue.
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

    def statistics(self) -> AgingQueueStatistics:
        return AgingQueueStatistics(len(self._heap), self._capacity, len(self._waiting))

    def push(self, rank: float, item: T) -> None:
        """Add an item. Items of equal rank leave in the order of their arrival.

        Raises:
            trio.WouldBlock: the queue is full.
            trio.ClosedResourceError: the queue is closed.
        """
        self.push_all([(rank, item)])

    def push_all(self, items: Sequence[tuple[float, T]]) -> None:
        """Add all items with their ranks, or none of them. Raises the same errors as `push`."""
        if self._closed:
            raise trio.ClosedResourceError
        if len(self._heap) + len(items) > self._capacity:
            raise trio.WouldBlock
        self._heap.extend([(rank, next(self._arrivals), item) for rank, item in items])
        heapq.heapify(self._heap)
        self._waiting.unpark(count=len(items))

    async def pop(self) -> T:
        """Remove and return the item with the smallest rank. Wait while the queue is empty.

        Trio cannot cancel a task between the removal and the return, so a cancelled task has not
        removed an item.

        Raises:
            trio.EndOfChannel: the queue is closed and empty.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._heap:
            if self._closed:
                raise trio.EndOfChannel
            await self._waiting.park()
        return self.pop_nowait()

    def pop_nowait(self) -> T:
        """Remove and return the item with the smallest rank.

        Raises:
            trio.WouldBlock: the queue is empty.
        """
        if not self._heap:
            raise trio.WouldBlock
        return heapq.heappop(self._heap)[2]

    def withdraw(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Remove and return the items for which `unwanted` is true."""
        withdrawn = [entry[2] for entry in self._heap if unwanted(entry[2])]
        if withdrawn:
            self._heap = [entry for entry in self._heap if not unwanted(entry[2])]
            heapq.heapify(self._heap)
        return withdrawn

    def clear(self) -> list[T]:
        """Remove all items; return them, best rank first."""
        left = [item for _, _, item in sorted(self._heap)]
        self._heap.clear()
        return left

    def close(self) -> list[T]:
        """Accept no more items, end all waiting tasks, and return the remaining items, best rank first."""
        self._closed = True
        self._waiting.unpark_all()
        return self.clear()
