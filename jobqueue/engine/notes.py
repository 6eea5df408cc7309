"""What running jobs note, progress and checkpoints, on its way to the database: the latest of each, once a second at the most.

A handler notes in no time, from whatever thread it runs in, and as often as it likes. What it noted last is in memory until the
next write; a run that ends before that takes it along with its outcome, so that only a process that is killed loses any, of one
second.

An idle node does nothing here: the stage sleeps until somebody notes something.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

import msgspec
import trio

from jobqueue.concurrency.trouble import Trouble
from jobqueue.errors import RefusedData
from jobqueue.job import ClaimedJob, Note
from jobqueue.storage.store import Store

NOTE_INTERVAL = 1.0
"""Seconds between two writes of what was noted."""

MAX_WRITE_BYTES = 4 << 20
"""About how many bytes of notes go in one statement."""

Documents = Mapping[str, bytes]
"""Encoded JSON by what it is: ``progress``, ``checkpoint``."""


class Handle:
    """What the `Job` that a handler has can reach of its run, from any thread.

    Attributes:
        cancelled: whether the run was ended early, for whatever reason.
        nursery: for what an async handler starts; None in a thread.
    """

    __slots__ = ("_asked", "_closed", "_fresh", "_latest", "_notes", "_writing", "cancelled", "job", "node_id", "nursery")

    def __init__(self, notes: Notes, job: ClaimedJob, node_id: str) -> None:
        self.job = job
        self.node_id = node_id
        self.cancelled = False
        self.nursery: trio.Nursery | None = None
        self._notes = notes
        self._latest: dict[str, bytes] = {}
        self._fresh: dict[str, bytes] = {}
        self._writing: dict[str, bytes] = {}
        self._asked = False
        self._closed = False

    def note(self, name: str, document: bytes) -> None:
        """Keep an encoded document under this name, in place of the one before. A run that is over notes nothing more."""
        with self._notes.lock:
            if self._closed:
                return
            self._latest[name] = self._fresh[name] = document
            asked, self._asked = self._asked, True
        if not asked:
            self._notes.ask(self)

    def latest(self) -> Documents:
        """Everything that was noted, the latest of each; from now on a further note asks again."""
        with self._notes.lock:
            self._asked = False
            return dict(self._latest)

    def begin_write(self) -> msgspec.Raw | None:
        """Take what is to be written; None when there is nothing."""
        with self._notes.lock:
            self._writing, self._fresh = self._fresh, {}
        return _object(self._writing)

    def end_write(self, *, written: bool) -> bool:
        """Let go of what was taken, or have it written again; tell whether there is reason to."""
        with self._notes.lock:
            if not written:
                self._fresh = {**self._writing, **self._fresh}
            self._writing = {}
            return not written and not self._closed

    def close(self) -> msgspec.Raw | None:
        """Take no more notes; return what is not known to be written, as one JSON object."""
        with self._notes.lock:
            self._closed = True
            left, self._fresh = {**self._writing, **self._fresh}, {}
        return _object(left)


class Notes:
    """Writes what running jobs note. Made on the loop's thread.

    Args:
        on_noted: called on the loop, soon after a run has noted something, with all that it has noted.
    """

    def __init__(self, store: Store, *, on_noted: Callable[[ClaimedJob, Documents], None]) -> None:
        self._store = store
        self._on_noted = on_noted
        self._token = trio.lowlevel.current_trio_token()
        self._changed: set[Handle] = set()
        self._something = trio.Event()
        self.trouble = Trouble("notes")
        self.lock = threading.Lock()

    def handle(self, job: ClaimedJob, node_id: str) -> Handle:
        """Make the handle of a run that begins."""
        return Handle(self, job, node_id)

    def ask(self, handle: Handle) -> None:
        """Have a handle's notes written, from any thread."""
        with suppress(trio.RunFinishedError):  # a thread that was left behind may outlive the loop
            self._token.run_sync_soon(self._collect, handle)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled."""
        task_status.started()
        while True:
            await self._something.wait()
            next_at = trio.current_time() + NOTE_INTERVAL
            changed, self._changed = self._changed, set()
            self._something = trio.Event()
            for node_id, handles in _batches(changed):
                await self._write(node_id, handles)
            await trio.sleep_until(next_at)

    def _collect(self, handle: Handle) -> None:
        self._changed.add(handle)
        self._something.set()
        with self.trouble.contained():  # an error in what the loop calls would end the loop
            self._on_noted(handle.job, handle.latest())

    async def _write(self, node_id: str, batch: Mapping[Handle, Note]) -> None:
        written: set[str] = set()
        with self.trouble.contained():
            try:
                written = await self._store.note(node_id, list(batch.values()))
            except RefusedData:
                written = {note.id for note in batch.values()}  # there is no use in another try
                raise
        # What was not written is written again; where the run has ended meanwhile, its outcome has it.
        again = [handle for handle in batch if handle.end_write(written=handle.job.id in written)]
        if again:
            self._changed.update(again)
            self._something.set()


def _batches(handles: Iterable[Handle]) -> Iterator[tuple[str, Mapping[Handle, Note]]]:
    """Take what the handles have to write, in batches of one node id and a bounded size: almost always in one."""
    batch: dict[Handle, Note] = {}
    size = 0
    for handle in sorted(handles, key=lambda handle: (handle.node_id, handle.job.id)):
        first = next(iter(batch), handle)
        if batch and (first.node_id != handle.node_id or size > MAX_WRITE_BYTES):
            yield first.node_id, batch
            batch, size = {}, 0
        if (saved := handle.begin_write()) is not None:
            batch[handle] = Note(handle.job.id, handle.job.claims, saved)
            size += memoryview(saved).nbytes
    for node_id in {handle.node_id for handle in batch}:
        yield node_id, batch


def _object(documents: Documents) -> msgspec.Raw | None:
    if not documents:
        return None
    return msgspec.Raw(b"{" + b",".join([b'"%s":%s' % (name.encode(), document) for name, document in documents.items()]) + b"}")
