"""Write the progress and checkpoints of running jobs to the database. Writes happen at most once per second.

A handler saves a note from any thread, as often as it likes, without waiting. The latest note stays
in memory until the next write. If a run ends before the next write, its outcome contains the note. So
only a killed process loses notes, and at most the notes of one second.

An idle node does nothing here: the stage sleeps until a handler saves a note.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

import msgspec
import trio

from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.signals import Documents, Signals
from jobqueue.errors import RefusedData
from jobqueue.job import ClaimedJob, Note
from jobqueue.storage.roles.run import RunStore

NOTE_INTERVAL = 1.0
"""Seconds between two writes of notes."""

MAX_WRITE_BYTES = 4 << 20
"""Approximate limit of the bytes of notes in one statement."""


class Handle:
    """The part of a run that the handler's `Job` can use, from any thread.

    Attributes:
        cancelled: whether the run was ended early, for any reason.
        nursery: for tasks that an async handler starts; None in a thread.
    """

    __slots__ = ("_asked", "_closed", "_fresh", "_latest", "_notes", "_writing", "cancelled", "job", "node_id", "nursery")

    def __init__(self, notes: ProgressWriter, job: ClaimedJob, node_id: str) -> None:
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
        """Store an encoded document under this name and replace the previous one. Does nothing after the run has ended."""
        with self._notes.lock:
            if self._closed:
                return
            self._latest[name] = self._fresh[name] = document
            asked, self._asked = self._asked, True
        if not asked:
            self._notes.ask(self)

    def latest(self) -> Documents:
        """Return the latest document of each name. The next note schedules another write."""
        with self._notes.lock:
            self._asked = False
            return dict(self._latest)

    def begin_write(self) -> msgspec.Raw | None:
        """Return the documents to write; None if there are none."""
        with self._notes.lock:
            self._writing, self._fresh = self._fresh, {}
        return _object(self._writing)

    def end_write(self, *, written: bool) -> bool:
        """End a write. If it failed, its documents are part of the next write. Return whether another write is necessary."""
        with self._notes.lock:
            if not written:
                self._fresh = {**self._writing, **self._fresh}
            self._writing = {}
            return not written and not self._closed

    def close(self) -> msgspec.Raw | None:
        """Accept no more notes; return the notes that are not known to be written, as one JSON object."""
        with self._notes.lock:
            self._closed = True
            left, self._fresh = {**self._writing, **self._fresh}, {}
        return _object(left)


class ProgressWriter:
    """Writes the notes of running jobs. Must be created on the loop's thread."""

    def __init__(self, store: RunStore, signals: Signals) -> None:
        self._store = store
        self._signals = signals
        self._token = trio.lowlevel.current_trio_token()
        self._changed: set[Handle] = set()
        self._something = trio.Event()
        self.trouble = Trouble("notes")
        self.lock = threading.Lock()

    def handle(self, job: ClaimedJob, node_id: str) -> Handle:
        """Return the handle of a new run."""
        return Handle(self, job, node_id)

    def ask(self, handle: Handle) -> None:
        """Schedule a write of a handle's notes, from any thread."""
        with suppress(trio.RunFinishedError):  # an abandoned thread may outlive the loop
            self._token.run_sync_soon(self._collect, handle)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write notes until cancelled."""
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
        with self.trouble.contained():  # an error in a callback of the loop would end the loop
            self._signals.notes_saved.publish(handle.job, handle.latest())

    async def _write(self, node_id: str, batch: Mapping[Handle, Note]) -> None:
        written: set[str] = set()
        with self.trouble.contained():
            try:
                written = await self._store.note(node_id, list(batch.values()))
            except RefusedData:
                written = {note.id for note in batch.values()}  # do not retry these notes: they would fail again
                raise
        # Notes that were not written are written again. If the run has ended meanwhile, its outcome contains them.
        again = [handle for handle in batch if handle.end_write(written=handle.job.id in written)]
        if again:
            self._changed.update(again)
            self._something.set()


def _batches(handles: Iterable[Handle]) -> Iterator[tuple[str, Mapping[Handle, Note]]]:
    """Yield the documents of the handles in batches of one node id and a limited size: usually one batch."""
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
