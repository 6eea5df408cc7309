"""Write the items of many callers in few transactions. While a batch is written, new items gather for the next batch.

::

    group = GroupCommit(write, max_weight=500, max_waiting=10_000, splits_on=RefusedData)
    nursery.start(group.run)
    result = await group.commit(item)    # returns once the item's batch is committed
    group.begin(item, told)              # returns at once, and calls told(result, error) after the commit

The group commit uses no timer and adds no delay. A single item is written at once. Under load, a
batch contains all items that arrived while the previous batch was written. A limit on the waiting
items provides backpressure.

Databases use the same technique (DeWitt et al., "Implementation Techniques for Main Memory Database
Systems", 1984).
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
"""Callback that receives an item's result, or the error that kept it from being written.

It runs in the writer's task and delays the next batch, so it must be short. Its exceptions are
logged, and other callbacks still run.
"""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class GroupCommitStatistics:
    """The load of a group commit (waiting and writing are weights), and the number of its batches."""

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
        write: writes items in one transaction and returns their results in the same order. A
            caller's cancellation does not cancel the write.
        max_weight: the maximum total weight of one batch. A heavier item gets its own batch.
        max_waiting: the maximum total weight of the items that wait for a batch.
        splits_on: the error of `write` that a single bad item can cause. After this error, the
            rolled-back batch is written again in halves, so that only the bad item's caller receives
            the error.
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
        """Write the item in a batch with others; return its result once the batch is committed.

        A cancelled caller stops waiting, but the item is still written.

        Raises:
            Overloaded, ShuttingDown: see `begin`.
            Exception: the error of `write` for the item's batch.
        """
        return await until_told(lambda hear: self.begin(item, hear, weight=weight))

    def begin(self, item: Item, told: Told[Result], *, weight: int = 1) -> None:
        """Write the item in a batch with others; call ``told(result, error)`` once the batch is committed or has failed.

        Raises:
            Overloaded: the waiting items would exceed `max_waiting`.
            ShuttingDown: the group commit is closed.
        """
        if self._closed:
            raise ShuttingDown("the service is shutting down")
        if self._waiting and self._waiting + weight > self._max_waiting:
            raise Overloaded(f"{self._waiting} items already wait for a commit: try again later")
        self._add(_Entry(item, weight, told))

    async def put(self, item: Item, *, weight: int = 1) -> None:
        """Add the item to a batch without waiting for the commit. Wait only while too many items wait.

        `write` must handle all errors of such items. If it raises an error, `run` ends. After that,
        gathered and new items are dropped. The shutdown of the service releases their jobs.
        """
        while self._waiting >= self._max_waiting:
            await self._room.park()
        if not self._ended:
            self._add(_Entry(item, weight, told=None))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write batches until cancelled. Callers that still wait then receive `ShuttingDown`."""
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
        """Wait until all items are written, or until `run` has ended."""
        while self._gathering or self._writing:
            await self._idle.park()

    def close(self) -> None:
        """Reject new commits. Waiting items are still written."""
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
        """Fail all items of the batch, and all items that wait for a batch, because the writer has ended."""
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
                raise  # no caller waits for this item, so the error must end `run`
        else:
            for entry, result in zip(batch, results, strict=True):
                _tell(entry, result, None)


async def until_told(begin: Callable[[Told[Result]], None]) -> Result:
    """Call ``begin`` with a callback, and wait until it runs. Return the result, or raise the error, that the callback receives."""
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
    """Call the item's callback, if it has one, at most once."""
    told, entry.told = entry.told, None
    if told is not None:
        try:
            told(result, error)
        except Exception:
            log.exception("a callback of a group commit failed")
