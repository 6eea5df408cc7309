"""Share a node's state with its keeper: that the loop runs, the node's id, and which jobs run in which threads.

The keeper reads the memory while the node's threads cannot run. In rare cases it reads a slot that is
only half written. The values can then be wrong, but the keeper must not fail.

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
"""Maximum number of jobs that are marked at once. Further jobs run unmarked."""

_BEAT, _THREADS_BEAT, _LOOP_THREAD, _CURRENT, _REPORTED = range(5)
"""Indexes of the header's numbers."""

_NODE_ID = slice(64, 100)
_SLOTS_AT = 128
_SLOT_SIZE = 512
_RUN = struct.Struct("=qqq36s")
"""The beginning of a slot: attempt, claims, native id of the handler's thread, job id. Attempt 0 means
no job; thread 0 means that the handler runs on the loop."""

_NAME_SIZE = 224
_KIND_AT, _QUEUE_AT = _SLOT_SIZE - 2 * _NAME_SIZE, _SLOT_SIZE - _NAME_SIZE


class Mark(NamedTuple):
    """A running job, as read from its slot.

    Attributes:
        slot: the slot's number.
        thread: the native id of the handler's thread; 0 for a job on the loop.
    """

    slot: int
    thread: int
    job_id: str
    claims: int
    attempt: int
    kind: str
    queue: str


class NodeState:
    """The memory that a node shares with its keeper.

    Attributes:
        file: the file descriptor of the memory, which the keeper inherits.
        slots: the maximum number of jobs that are marked at once.
        current: a view of one number, which is the slot of the task that the loop runs; 0 without a slot.
    """

    def __init__(self, file: int, slots: int) -> None:
        self.file = file
        self.slots = slots
        self._memory = mmap.mmap(file, _size(slots))
        self._numbers = memoryview(self._memory).cast("q")
        self.current = self._numbers[_CURRENT : _CURRENT + 1]
        self._free = list(range(slots, 0, -1))  # slot numbers start at 1, because 0 means no slot

    @classmethod
    def create(cls, slots: int) -> NodeState:
        """Create the memory, in an unlinked file on systems without memfd_create."""
        slots = min(slots, MAX_SLOTS)
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("jobqueue")
        else:
            import tempfile  # noqa: PLC0415 - the module uses 1 MiB

            with tempfile.TemporaryFile() as unlinked:
                file = os.dup(unlinked.fileno())
        os.ftruncate(file, _size(slots))
        return cls(file, slots)

    # -- the node's side

    def beat(self) -> int:
        """Record that the loop runs; return the current time in nanoseconds on the monotonic clock."""
        now = self._numbers[_BEAT] = time.monotonic_ns()
        return now

    def beat_of_thread(self) -> None:
        """Record that a thread other than the loop's runs, so no thread holds the interpreter's lock."""
        self._numbers[_THREADS_BEAT] = time.monotonic_ns()

    def name_node(self, node_id: str) -> None:
        """Record the id of the node's lease."""
        self._memory[_NODE_ID] = node_id.encode().ljust(36, b"\0")

    def name_loop(self) -> None:
        """Record that the calling thread is the loop's."""
        self._numbers[_LOOP_THREAD] = threading.get_native_id()

    def take_slot(self, queue: str) -> Slot | NoSlot:
        """Return a free slot for jobs of a queue, or `NO_SLOT`."""
        try:
            number = self._free.pop()
        except IndexError:
            return NO_SLOT
        return Slot(self, number, queue)

    def call_in_thread(self, job: ClaimedJob, function: Callable[[], T]) -> T:
        """Call a job's handler in the current thread, marked in its own slot.

        The thread cannot use the worker's slot: after a timeout, the thread is abandoned but still
        runs, and the worker marks its next job in the worker's slot.
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
        """Whether the keeper has reported that the interpreter is held. The node's watchdog then stays silent."""
        return self._numbers[_REPORTED] != 0

    @reported.setter
    def reported(self, value: bool) -> None:
        self._numbers[_REPORTED] = value

    @property
    def since_beat(self) -> float:
        """Seconds since the loop last ran."""
        return (time.monotonic_ns() - self._numbers[_BEAT]) / 1e9

    @property
    def since_thread(self) -> float:
        """Seconds since another thread last ran."""
        return (time.monotonic_ns() - self._numbers[_THREADS_BEAT]) / 1e9

    @property
    def node(self) -> str:
        """The node's id; empty while it has none."""
        return self._memory[_NODE_ID].rstrip(b"\0").decode("ascii", "replace")

    @property
    def loop_thread(self) -> int:
        """The native id of the loop's thread."""
        return self._numbers[_LOOP_THREAD]

    @property
    def on_loop(self) -> list[Mark]:
        """The job that the loop currently runs; empty without one."""
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
    """Marks one job at a time, always of the same queue.

    Attributes:
        number: the slot's number, from 1.
    """

    __slots__ = ("_at", "_first", "_kind", "_memory", "_numbers", "_state", "number")

    def __init__(self, state: NodeState, number: int, queue: str) -> None:
        self.number = number
        self._state = state
        self._memory = state._memory  # noqa: SLF001 - a slot is a part of the state
        self._numbers = state._numbers  # noqa: SLF001
        self._at = _start(number)
        self._first = self._at // 8
        self._kind = ""
        self._memory[self._at + _QUEUE_AT : self._at + _SLOT_SIZE] = _name(queue)

    def enter(self, job: ClaimedJob, thread: int = 0) -> None:
        """Record that a job runs: in the thread with this native id, or on the loop (0)."""
        if job.kind != self._kind:
            self._kind = job.kind
            self._memory[self._at + _KIND_AT : self._at + _QUEUE_AT] = _name(job.kind)
        _RUN.pack_into(self._memory, self._at, job.attempt, job.claims, thread, job.id.encode())

    def leave(self) -> None:
        """Record that no job runs."""
        self._numbers[self._first] = 0

    def free(self) -> None:
        """Free the slot for other jobs."""
        self.leave()
        self._state._free.append(self.number)  # noqa: SLF001 - a slot is a part of the state


class NoSlot:
    """Takes the place of a slot without a keeper, or when all slots are in use. The job then runs unmarked."""

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
    """Return the offset of a slot."""
    return _SLOTS_AT + (number - 1) * _SLOT_SIZE


def _name(text: str) -> bytes:
    """Encode a name of up to 200 characters. A name with non-ASCII characters may be cut off."""
    return text.encode("utf-8", "replace")[:_NAME_SIZE].ljust(_NAME_SIZE, b"\0")


def _text(name: bytes) -> str:
    return name.rstrip(b"\0").decode("utf-8", "ignore")
