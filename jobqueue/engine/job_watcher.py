"""Watch jobs for waiting requests. One query covers all jobs that are watched on this node, even if they run on other nodes.

A watcher receives the latest state, not every change, so a slow reader delays nobody. Changes on
this node (notes, outcomes) are visible at once. While jobs are watched, two queries per second find
all other changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import trio

from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.signals import Documents, Finished, Signals
from jobqueue.errors import TooManyWatchers
from jobqueue.job import UNFINISHED, ClaimedJob
from jobqueue.storage.roles.inspect import Glance, InspectStore

LOOK_INTERVAL = 0.5
"""Seconds between two queries of the watched jobs."""

SHORTEST_INTERVAL = 0.05
"""Minimum interval between two queries, in seconds."""

MAX_WATCHERS = 1_000
"""Maximum number of requests that watch jobs on a node, for events or for the end."""

LOOKS_TO_BE_GONE = 2
"""A job counts as gone if this many queries in a row do not find it.

One query is not enough, because this node may be about to report the job's end itself.
"""


class View(NamedTuple):
    """A job's state as its watchers see it. After the database has deleted the job, the state is ``gone``."""

    state: str
    attempt: int
    progress: Any = None
    checkpoint: Any = None


class UnstoredJob(NamedTuple):
    """A job that succeeded and that the database does not keep.

    Attributes:
        job: the job.
        result: its encoded result.
        last: its last state before its end.
    """

    job: ClaimedJob
    result: msgspec.Raw | None
    last: View


class _Watched:
    """A watched job.

    Attributes:
        kept: the job, if it succeeded on this node and the database does not keep it.
    """

    def __init__(self) -> None:
        self.watchers = 0
        self.view: View | None = None
        self.kept: UnstoredJob | None = None
        self.changed = trio.lowlevel.ParkingLot()
        self._missed = 0
        self._noted: dict[str, Any] = {}
        self._noted_in = 0

    def show(self, view: View) -> None:
        if view != self.view:
            self.view = view
            self.changed.unpark_all()

    def seen(self, glance: Glance | None) -> None:
        """Apply the result of a query."""
        if self.kept is not None:
            return
        if glance is None:
            self._missed += 1
            if self._missed >= LOOKS_TO_BE_GONE:
                self.show(View("gone", 0))
            return
        self._missed = 0
        # The notes of a run on this node are newer than the stored ones.
        saved = glance.saved if isinstance(glance.saved, dict) else {}
        saved = {**saved, **self._noted} if glance.claims == self._noted_in else saved
        self.show(View(glance.state, glance.attempt, saved.get("progress"), saved.get("checkpoint")))

    def noted(self, job: ClaimedJob, notes: dict[str, Any]) -> None:
        """Apply the notes of a run on this node."""
        if self.view is not None and self.view.state not in UNFINISHED:
            return
        self._noted, self._noted_in = notes, job.claims
        before = self.view or View("inflight", job.attempt)
        latest = {"progress": before.progress, "checkpoint": before.checkpoint, **notes}
        self.show(View("inflight", job.attempt, latest["progress"], latest["checkpoint"]))


class Watch:
    """One watcher of one job."""

    def __init__(self, watcher: JobWatcher, watched: _Watched) -> None:
        self._watcher = watcher
        self._watched = watched
        self._seen: View | None = None

    @property
    def view(self) -> View | None:
        """The job's latest known state; None before the first query."""
        self._seen = self._watched.view
        return self._seen

    @property
    def kept(self) -> UnstoredJob | None:
        """The job, if it succeeded on this node and the database does not keep it."""
        return self._watched.kept

    @property
    def closed(self) -> bool:
        """Whether the node is stopping and reports no more changes."""
        return self._watcher.closed

    async def wait(self, seconds: float) -> bool:
        """Wait until the job differs from the last `view`, or the watch is closed. Return False if neither happens in `seconds`."""
        with trio.move_on_after(seconds):
            while self._watched.view == self._seen and not self.closed:
                await self._watched.changed.park()
            return True
        return False


class JobWatcher:
    """All watchers of jobs on this node.

    Args:
        keep_finished: whether the database keeps succeeded jobs.

    Attributes:
        closed: see `close`.
    """

    def __init__(self, store: InspectStore, signals: Signals, *, keep_finished: bool) -> None:
        self._store = store
        self._keep_finished = keep_finished
        self._watched: dict[str, _Watched] = {}
        self._watchers = 0
        self._hurry = trio.Event()
        self.trouble = Trouble("watcher")
        self.closed = False
        signals.outcomes_written.subscribe(self.written)
        signals.notes_saved.subscribe(self.noted)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """Watch a job while the context is open.

        Raises:
            TooManyWatchers: the node has reached its limit of watchers.
        """
        if self._watchers >= MAX_WATCHERS:
            raise TooManyWatchers(f"too many watchers: {self._watchers} requests already watch jobs on this node")
        watched = self._watched.setdefault(job_id, _Watched())
        watched.watchers += 1
        self._watchers += 1
        self._hurry.set()
        try:
            yield Watch(self, watched)
        finally:
            self._watchers -= 1
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[job_id]

    def look_soon(self, job_id: str) -> None:
        """Query soon, because a job may have changed."""
        if job_id in self._watched:
            self._hurry.set()

    def noted(self, job: ClaimedJob, documents: Documents) -> None:
        """Apply the notes of a run on this node, if its job is watched."""
        watched = self._watched.get(job.id)
        if watched is not None:
            watched.noted(job, {name: msgspec.json.decode(document) for name, document in documents.items()})

    def written(self, batch: Sequence[Finished]) -> None:
        """Apply the committed outcomes of this node's runs."""
        if not self._watched:
            return
        for job, outcome, *_ in batch:
            watched = self._watched.get(job.id)
            if watched is None:
                continue
            if outcome.outcome == "succeeded" and not self._keep_finished:
                last = watched.view or View("inflight", job.attempt)
                watched.kept = UnstoredJob(job, outcome.result, last)
                watched.show(last._replace(state="succeeded", attempt=job.attempt))
            else:
                self._hurry.set()

    def close(self) -> None:
        """Wake all watchers, because the node is stopping."""
        self.closed = True
        for watched in self._watched.values():
            watched.changed.unpark_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Query until cancelled, while jobs are watched."""
        task_status.started()
        look_at = math.inf
        while True:
            with trio.move_on_at(look_at):
                await self._hurry.wait()
            self._hurry = trio.Event()
            looked_at = trio.current_time()
            await self._look()
            look_at = looked_at + LOOK_INTERVAL if self._watched else math.inf
            await trio.sleep_until(looked_at + SHORTEST_INTERVAL)

    async def _look(self) -> None:
        watched = dict(self._watched)
        if not watched:
            return
        with self.trouble.contained():
            found = await self._store.look(list(watched))
            for job_id, job in watched.items():
                job.seen(found.get(job_id))
