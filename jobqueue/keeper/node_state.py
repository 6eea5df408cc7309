"""What a node writes into shared memory for its keeper: that its loop runs, its id, and which jobs it runs in which thread.

The keeper reads it while the node's threads cannot run, so a slot that is half written is a rare and short-lived exception, and a
reader must only survive it.

    state = NodeState.create(slots=100)
    slot = state.take_slot("default")
    slot.enter(job)
    ...
    slot.leave()
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from jobqueue.job import ClaimedJob

T = TypeVar("T")

MAX_SLOTS = 20_000
"""The most jobs that are marked at once. Those beyond run unmarked."""

_BEAT, _THREADS_BEAT, _LOOP_THREAD, _CURRENT, _REPORTED = range(5)
"""Places of the header's numbers."""

_NODE_ID = slice(64, 100)
_SLOTS_AT = 128
_SLOT_SIZE = 512
_RUN = struct.Struct("=qqq36s")
"""The beginning of a slot: attempt (0: no job), claims, the native id of the handler's thread (0: it runs on the loop), job id."""

_NAME_SIZE = 224
_KIND_AT, _QUEUE_AT = _SLOT_SIZE - 2 * _NAME_SIZE, _SLOT_SIZE - _NAME_SIZE


class Mark(NamedTuple):
    """A job that the node runs, as its slot has it.

    Attributes:
        slot: its number.
        thread: the native id of the handler's thread; 0 for a job that runs on the loop.
    """

    slot: int
    thread: int
    job_id: str
    claims: int
    attempt: int
    kind: str
    queue: str


class NodeState:
    """The shared memory, for the node and for its keeper.

    Attributes:
        file: its descriptor, which the keeper inherits.
        slots: how many jobs can be marked at once.
        current: one number to write to: the slot of the task that the loop goes on with; 0 for one without.
    """

    def __init__(self, file: int, slots: int) -> None:
        self.file = file
        self.slots = slots
        self._memory = mmap.mmap(file, _size(slots))
        self._numbers = memoryview(self._memory).cast("q")
        self.current = self._numbers[_CURRENT : _CURRENT + 1]
        self._free = list(range(slots, 0, -1))  # a slot's number is never 0, which means none

    @classmethod
    def create(cls, slots: int) -> NodeState:
        """Make one in memory, or in an unlinked file on systems without memfd_create."""
        slots = min(slots, MAX_SLOTS)
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("jobqueue")
        else:
            import tempfile  # noqa: PLC0415 - takes 1 MiB

            with tempfile.TemporaryFile() as unlinked:
                file = os.dup(unlinked.fileno())
        os.ftruncate(file, _size(slots))
        return cls(file, slots)

    # -- the node's side

    def beat(self) -> int:
        """Write that the loop runs; return when, in nanoseconds on the monotonic clock."""
        now = self._numbers[_BEAT] = time.monotonic_ns()
        return now

    def beat_of_thread(self) -> None:
        """Write that a thread other than the loop's runs: the interpreter is not held."""
        self._numbers[_THREADS_BEAT] = time.monotonic_ns()

    def name_node(self, node_id: str) -> None:
        """Write the id that the node's lease is under."""
        self._memory[_NODE_ID] = node_id.encode().ljust(36, b"\0")

    def name_loop(self) -> None:
        """Write that the calling thread is the loop's."""
        self._numbers[_LOOP_THREAD] = threading.get_native_id()

    def take_slot(self, queue: str) -> Slot | NoSlot:
        """Take a slot for jobs of a queue."""
        try:
            number = self._free.pop()
        except IndexError:
            return NO_SLOT
        return Slot(self, number, queue)

    def call_in_thread(self, job: ClaimedJob, function: Callable[[], T]) -> T:
        """Call a job's handler in the current thread, in a slot of its own.

        The worker's slot would not do: a thread that outlives its timeout is left behind, and the worker goes on to the next job.
        """
        slot = self.take_slot(job.queue)
        try:
            slot.enter(job, threading.get_native_id())
            return function()
        finally:
            slot.free()

    # -- the keeper's side

    @property
    def reported(self) -> bool:
        """Whether the keeper has reported that the interpreter is held: then the node's own watchdog need not."""
        return self._numbers[_REPORTED] != 0

    @reported.setter
    def reported(self, value: bool) -> None:
        self._numbers[_REPORTED] = value

    @property
    def since_beat(self) -> float:
        """Seconds since the loop ran."""
        return (time.monotonic_ns() - self._numbers[_BEAT]) / 1e9

    @property
    def since_thread(self) -> float:
        """Seconds since another thread ran."""
        return (time.monotonic_ns() - self._numbers[_THREADS_BEAT]) / 1e9

    @property
    def node(self) -> str:
        """The node's id; empty before it has one."""
        return self._memory[_NODE_ID].rstrip(b"\0").decode("ascii", "replace")

    @property
    def loop_thread(self) -> int:
        """The native id of the loop's thread."""
        return self._numbers[_LOOP_THREAD]

    @property
    def on_loop(self) -> list[Mark]:
        """The job whose code the loop runs; empty when it runs none."""
        return [mark for mark in self._marks() if mark.slot == self._numbers[_CURRENT]]

    @property
    def in_threads(self) -> list[Mark]:
        """The jobs that run in threads."""
        return [mark for mark in self._marks() if mark.thread]

    def _marks(self) -> list[Mark]:
        return [self._mark(number) for number in range(1, self.slots + 1) if self._numbers[_start(number) // 8]]

    def _mark(self, number: int) -> Mark:
        at = _start(number)
        slot = self._memory[at : at + _SLOT_SIZE]
        attempt, claims, thread, job_id = _RUN.unpack(slot[: _RUN.size])
        kind, queue = slot[_KIND_AT:_QUEUE_AT], slot[_QUEUE_AT:]
        return Mark(number, thread, job_id.decode("ascii", "replace"), claims, attempt, _text(kind), _text(queue))


class Slot:
    """A place for one job at a time, all of one queue.

    Attributes:
        number: of the slot, from 1.
    """

    __slots__ = ("_at", "_first", "_kind", "_memory", "_numbers", "_state", "number")

    def __init__(self, state: NodeState, number: int, queue: str) -> None:
        self.number = number
        self._state = state
        self._memory = state._memory  # noqa: SLF001 - this is a part of it
        self._numbers = state._numbers  # noqa: SLF001
        self._at = _start(number)
        self._first = self._at // 8
        self._kind = ""
        self._memory[self._at + _QUEUE_AT : self._at + _SLOT_SIZE] = _name(queue)

    def enter(self, job: ClaimedJob, thread: int = 0) -> None:
        """Write that a job runs, in the thread of this native id, or on the loop."""
        if job.kind != self._kind:
            self._kind = job.kind
            self._memory[self._at + _KIND_AT : self._at + _QUEUE_AT] = _name(job.kind)
        _RUN.pack_into(self._memory, self._at, job.attempt, job.claims, thread, job.id.encode())

    def leave(self) -> None:
        """Write that no job runs."""
        self._numbers[self._first] = 0

    def free(self) -> None:
        """Give the slot back."""
        self.leave()
        self._state._free.append(self.number)  # noqa: SLF001 - this is a part of it


class NoSlot:
    """What there is instead of a slot when nobody looks, or when all are taken: the job runs unmarked."""

    number = 0

    def enter(self, job: ClaimedJob, thread: int = 0) -> None:
        """Do nothing."""

    def leave(self) -> None:
        """Do nothing."""

    def free(self) -> None:
        """Do nothing."""


NO_SLOT = NoSlot()


def _size(slots: int) -> int:
    return _SLOTS_AT + slots * _SLOT_SIZE


def _start(number: int) -> int:
    """Where a slot begins."""
    return _SLOTS_AT + (number - 1) * _SLOT_SIZE


def _name(text: str) -> bytes:
    """A name of up to 200 characters; one that is not ASCII may lose its end."""
    return text.encode("utf-8", "replace")[:_NAME_SIZE].ljust(_NAME_SIZE, b"\0")


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "ignore")
