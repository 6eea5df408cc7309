"""Write lines to a file descriptor in a thread, so that callers never wait for the file and never see its errors.

::

    writer = Writer(os.dup(2), render_summary)
    writer.put(line)
    flush([writer], seconds=0.5)        # before the process ends

A bounded queue connects the callers to one daemon thread. The writer drops and counts lines that do not fit into the queue, and
lines that cannot be written. Once writing works again, it reports the gap in one line.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import stat
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

MAX_WAITING = 4 * 1024 * 1024
"""Maximum size of all waiting lines, including `PER_LINE` per line, in bytes."""

MAX_OF_JOBS = MAX_WAITING // 4 * 3
"""Maximum size of the waiting lines of all jobs together, so that the lines of the service always fit, in bytes."""

MAX_OF_ONE_JOB = MAX_WAITING // 8
"""Maximum size of the waiting lines of one job, so that a job cannot crowd out the lines of other jobs, in bytes."""

PER_LINE = 128
"""Bytes of memory per waiting line, in addition to its text."""

BATCH = 64 * 1024
"""Maximum size of one write, in bytes. For a pipe, the limit can be lower, see `_find_room`."""

PATIENCE = 0.1
"""Seconds that a caller waits for its line to be written, in a process that may be killed at any time."""

_TOO_SLOW = "the reader of the log is too slow, or has stopped"
_ONE_JOB = "one job logs faster than the reader of the log reads"


class _Line(NamedTuple):
    text: bytes
    job_id: str | None


@dataclass(slots=True)
class _Gap:
    """Lines missing in the log."""

    lines: int
    reason: str
    since: float


Summary = Callable[[int, str, float], bytes]
"""Renders the line that reports a gap, from the number of dropped lines, the reason, and the seconds."""


class Writer:
    """Writes lines to one file descriptor.

    Args:
        descriptor: the file descriptor, owned by the writer.
        summary: renders the line that reports a gap.
        patient: whether callers wait up to `PATIENCE` seconds until their line is written. If a line is not written in this time,
            callers do not wait again until writing works.

    Attributes:
        dropped: the number of dropped lines.
    """

    def __init__(self, descriptor: int, summary: Summary, *, patient: bool = False) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._summary = summary
        self._patient = patient
        self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        self._reason = ""
        self._torn = False
        self._start()

    def _start(self) -> None:
        # The garbage collector or a signal handler may log during `put`, in the same thread. This lock and this queue allow that.
        self._lock = threading.RLock()
        self._queue: SimpleQueue[_Line | threading.Event | None] = SimpleQueue()
        self._gap: _Gap | None = None
        self._owes_summary = False
        self._stuck = False
        self._waiting = self._of_jobs = 0
        self._of_job: dict[str, int] = {}
        self._batch: list[_Line] = []
        self._batched = 0
        threading.Thread(target=self._run, name="log writer", daemon=True).start()

    def restart_after_fork(self) -> None:
        """Start again in a forked child, which has no writer thread. The parent writes the waiting lines."""
        self._patient = True  # a forked child often ends without running its exit handlers
        self._start()

    def put(self, text: bytes, job_id: str | None = None) -> None:
        """Queue a line, or drop it if it does not fit.

        Args:
            text: the line, including its newline.
            job_id: the job that wrote the line; None for the service.
        """
        size = len(text) + PER_LINE
        with self._lock:
            of_job = 0 if job_id is None else self._of_job.get(job_id, 0) + size
            if of_job > MAX_OF_ONE_JOB:
                self.drop(1, _ONE_JOB)
                return
            if (self._of_jobs + size > MAX_OF_JOBS and job_id is not None) or self._waiting + size > MAX_WAITING:
                self.drop(1, _TOO_SLOW)
                return
            self._waiting += size
            if job_id is not None:
                self._of_jobs += size
                self._of_job[job_id] = of_job
            self._queue.put(_Line(text, job_id))
        if self._patient and not self._stuck:
            self._stuck = not flush([self], PATIENCE)

    def drop(self, lines: int, reason: str) -> None:
        """Count dropped lines, and report them at their place in the log."""
        with self._lock:
            self.dropped += lines
            if self._gap is None:
                self._gap = _Gap(0, reason, time.monotonic())
                self._queue.put(None)
            self._gap.lines += lines

    def mark(self) -> threading.Event:
        """Return an event that is set once all lines queued before it are written or dropped."""
        done = threading.Event()
        self._queue.put(done)
        return done

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            try:
                self._take(item)
            except Exception as error:  # noqa: BLE001 - the thread must survive a lack of memory
                self._end_batch(written=0, reason=type(error).__name__)
            if isinstance(item, threading.Event):
                item.set()

    def _take(self, item: _Line | threading.Event | None) -> None:
        """Collect lines. Write them when the next line does not fit into the same write, or when no line is waiting."""
        if isinstance(item, _Line):
            if self._batched + len(item.text) > BATCH:
                self._write_batch()
            self._batch.append(item)
            self._batched += len(item.text)
            if not self._queue.empty():
                return
        self._write_batch()
        if item is None:
            self._report()

    def _find_room(self) -> int:
        """Return how many bytes to write at once.

        If a write is larger than PIPE_BUF and the pipe has no room for all of it, the pipe accepts it in pieces. Other processes
        may then write between the pieces. A write of more than half a page can use up a whole page of the pipe.
        """
        if not self._is_pipe:
            return BATCH
        try:
            size = fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ)  # only on Linux
            [unread] = struct.unpack("i", fcntl.ioctl(self._descriptor, termios.FIONREAD, bytes(4)))
        except (AttributeError, OSError):
            return select.PIPE_BUF
        return min(BATCH, max(select.PIPE_BUF, int(size - 2 * unread) // 4))  # leave the rest to other writers

    def _write_batch(self) -> None:
        if not self._batch:
            return
        if self._owes_summary and not self._report():
            self._end_batch(written=0, reason=self._reason)
            return
        written = 0
        for part in self._parts():
            wrote = self._write(part)
            written += wrote
            if wrote < len(part):
                break
        self._end_batch(written, self._reason)

    def _parts(self) -> Iterator[bytes]:
        """Join the lines of the batch into as few writes as `_find_room` allows. A longer line is one write."""
        room = self._find_room()  # just before each write, because other processes may fill the pipe
        part: list[bytes] = []
        for line in self._batch:
            if part and len(line.text) > room:
                yield b"".join(part)
                room = self._find_room()
                part = []
            part.append(line.text)
            room -= len(line.text)
        yield b"".join(part)

    def _end_batch(self, written: int, reason: str) -> None:
        """Remove the batch from the queue, and count the lines beyond the first `written` bytes as dropped."""
        lost = 0
        with self._lock:
            for line in self._batch:
                written -= len(line.text)
                lost += written < 0
                size = len(line.text) + PER_LINE
                self._waiting -= size
                if line.job_id is not None:
                    self._of_jobs -= size
                    self._of_job[line.job_id] -= size
                    if not self._of_job[line.job_id]:
                        del self._of_job[line.job_id]
            self._batch = []
            self._batched = 0
            if lost:
                self._owes_summary = True
                self.drop(lost, reason)
            else:
                self._stuck = False

    def _report(self) -> bool:
        """Write the line that reports the gap, if there is a gap; return False if the write failed."""
        with self._lock:
            gap, self._gap = self._gap, None
        if gap is not None:
            line = self._summary(gap.lines, gap.reason, time.monotonic() - gap.since)
            if self._write(line) < len(line):
                with self._lock:
                    if self._gap is not None:
                        gap.lines += self._gap.lines
                    self._gap = gap
                    self._owes_summary = True
                return False
        self._owes_summary = False
        return True

    def _write(self, data: bytes) -> int:
        """Write all data, even if it takes long. Return the number of written bytes; after an error, this is less than all."""
        written = 0
        try:
            if self._torn:
                self._write_some(b"\n")
                self._torn = False
            with memoryview(data) as view:
                while written < len(data):
                    written += self._write_some(view[written:])
        except OSError as error:
            self._reason = error.strerror or type(error).__name__
            self._torn = self._torn or (written > 0 and data[written - 1] != ord("\n"))
        return written

    def _write_some(self, data: bytes | memoryview) -> int:
        while True:
            with contextlib.suppress(BlockingIOError):
                return os.write(self._descriptor, data)
            writable = select.poll()
            writable.register(self._descriptor, select.POLLOUT)
            writable.poll()


def flush(writers: Iterable[Writer], seconds: float) -> bool:
    """Wait up to `seconds` until the queued lines are written; return whether they are."""
    until = time.monotonic() + seconds
    return all([mark.wait(max(0.0, until - time.monotonic())) for mark in [writer.mark() for writer in writers]])  # noqa: C419 - wait for each
