"""Write many callers' items in few transactions: while one batch is being written, the next one gathers.

::

    group = GroupCommit(write, max_items=500, max_waiting=10_000)
    nursery.start(group.run)
    result = await group.commit(item)    # returns once the item's batch is committed
    group.begin(item, told)              # calls told(result, error) then, and nobody waits

There is no timer and no added delay: an item that comes alone is written alone, at once; under load a batch holds all that came
while the one before was being written. The bound on waiting items is the backpressure.

This is the group commit of databases (DeWitt et al., "Implementation Techniques for Main Memory Database Systems", 1984), one
level up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import outcome
import structlog
import trio

from jobqueue.errors import Overloaded, ShuttingDown

Item = TypeVar("Item")
Result = TypeVar("Result")

Told = Callable[[Result | None, Exception | None], None]
"""Hears what became of an item: its result, or the error that kept it from being written. It runs in the writer's task, with the
next batch behind it, so it must be short. What it raises is logged, and keeps nobody else from hearing."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GroupCommitStatistics:
    """What a group commit holds (weights, not calls) and has done."""

    waiting: int
    writing: int
    batches: int


class _Entry(Generic[Item, Result]):
    __slots__ = ("item", "told", "weight")

    def __init__(self, item: Item, weight: int, told: Told[Result] | None) -> None:
        self.item = item
        self.weight = weight
        self.told = told


class GroupCommit(Generic[Item, Result]):
    """One writer task, and the callers that wait for it.

    Args:
        write: write the items in one transaction and return their results in the same order. It is never cancelled by a caller.
        max_weight: the most weight in one batch; a single heavier item is a batch of its own.
        max_waiting: the most weight that may wait for its batch.
        splits_on: an error of `write` that one bad item may have caused: the batch was rolled back and is written again in
            halves, so that only the bad item's caller gets the error.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_weight: int,
        max_waiting: int,
        splits_on: type[Exception],
    ) -> None:
        self._write = write
        self._max_weight = max_weight
        self._max_waiting = max_waiting
        self._splits_on = splits_on
        self._gathering: deque[_Entry[Item, Result]] = deque()
        self._waiting = 0
        self._writing = 0
        self._batches = 0
        self._closed = False
        self._ended = False
        self._wake = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()

    def statistics(self) -> GroupCommitStatistics:
        return GroupCommitStatistics(self._waiting, self._writing, self._batches)

    async def commit(self, item: Item, *, weight: int = 1) -> Result:
        """Have the item written with others; return its result once the batch is committed.

        A cancelled caller stops waiting; the item is written all the same.

        Raises:
            Overloaded, ShuttingDown: see `begin`.
            Exception: what `write` raised for the item's batch.
        """
        return await until_told(lambda hear: self.begin(item, hear, weight=weight))

    def begin(self, item: Item, told: Told[Result], *, weight: int = 1) -> None:
        """Have the item written with others; call ``told(result, error)`` once the batch is committed, or was not.

        Raises:
            Overloaded: more than `max_waiting` would wait.
            ShuttingDown: the group commit was closed.
        """
        if self._closed:
            raise ShuttingDown("the service is shutting down")
        if self._waiting and self._waiting + weight > self._max_waiting:
            raise Overloaded(f"{self._waiting} items already wait for their commit")
        self._add(_Entry(item, weight, told))

    async def put(self, item: Item, *, weight: int = 1) -> None:
        """Hand the item over without waiting for its commit; wait only while too many are waiting.

        `write` must cope with every error of such an item itself: one that it raises ends `run`. An item that comes after that is
        dropped, and so is what had gathered; who stops the service hands back what they are about.
        """
        while self._waiting >= self._max_waiting:
            await self._room.park()
        if not self._ended:
            self._add(_Entry(item, weight, told=None))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write batch after batch until cancelled; callers that still wait then are told so."""
        task_status.started()
        batch: list[_Entry[Item, Result]] = []
        try:
            while True:
                while not self._gathering:
                    self._idle.unpark_all()
                    await self._wake.park()
                batch = self._next_batch()
                await self._write_batch(batch)
                self._writing = 0
        finally:
            self._end(batch)

    async def flush(self) -> None:
        """Wait until everything that was handed over is written, or nobody is there to write it."""
        while self._gathering or self._writing:
            await self._idle.park()

    def close(self) -> None:
        """Refuse new commits; what waits is still written."""
        self._closed = True

    def _add(self, entry: _Entry[Item, Result]) -> None:
        self._gathering.append(entry)
        self._waiting += entry.weight
        if self._wake:
            self._wake.unpark()

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        batch = [self._gathering.popleft()]
        weight = batch[0].weight
        while self._gathering and weight + self._gathering[0].weight <= self._max_weight:
            batch.append(self._gathering.popleft())
            weight += batch[-1].weight
        self._waiting -= weight
        self._writing = weight
        self._room.unpark_all()
        return batch

    def _end(self, batch: list[_Entry[Item, Result]]) -> None:
        """Nobody writes any more: let go of everyone who waits, whether their item was in a batch or still gathering."""
        self._closed = self._ended = True
        left = [*batch, *self._gathering]
        self._gathering.clear()
        self._waiting = self._writing = 0
        _refuse(left, ShuttingDown("the service is shutting down"))
        self._room.unpark_all()
        self._idle.unpark_all()

    async def _write_batch(self, batch: list[_Entry[Item, Result]]) -> None:
        self._batches += 1
        nobody_waits = any(entry.told is None for entry in batch)
        try:
            results = await self._write([entry.item for entry in batch])
        except self._splits_on as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._write_batch(batch[:middle])
                await self._write_batch(batch[middle:])
                return
            _refuse(batch, error)
            if nobody_waits:
                raise
        except Exception as error:
            _refuse(batch, error)
            if nobody_waits:
                raise  # it is the callers' error, but nobody waits for this one: it must not pass in silence
        else:
            for entry, result in zip(batch, results, strict=True):
                _tell(entry, result, None)


async def until_told(begin: Callable[[Told[Result]], None]) -> Result:
    """Call ``begin`` with something to tell, wait until it is told, and return the result or raise the error."""
    task = trio.lowlevel.current_task()
    waiting = True

    def hear(result: Result | None, error: Exception | None) -> None:
        if waiting:
            trio.lowlevel.reschedule(task, outcome.Value(result) if error is None else outcome.Error(error))

    def stop_waiting(_: object) -> trio.lowlevel.Abort:
        nonlocal waiting
        waiting = False
        return trio.lowlevel.Abort.SUCCEEDED

    begin(hear)
    result: Result = await trio.lowlevel.wait_task_rescheduled(stop_waiting)
    return result


def _refuse(batch: list[_Entry[Item, Result]], error: Exception) -> None:
    for entry in batch:
        _tell(entry, None, error)


def _tell(entry: _Entry[Item, Result], result: Result | None, error: Exception | None) -> None:
    """Tell the caller, if there is one, and never again."""
    told, entry.told = entry.told, None
    if told is not None:
        try:
            told(result, error)
        except Exception:
            log.exception("a caller could not be told what became of its item")
