"""Watch jobs for those who wait for them: one query for all that are watched on this node, wherever they run.

A watch is told the latest, never all that was: somebody who reads slowly misses what came in between, and holds nobody up. What
this node itself learns of a job (its notes, its end) is told at once; the rest is found by looking, twice a second while somebody
watches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import trio

from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.notes import Documents
from jobqueue.engine.outcomes import Finished
from jobqueue.errors import TooManyWatchers
from jobqueue.job import UNFINISHED, ClaimedJob
from jobqueue.storage.store import Glance, Store

LOOK_INTERVAL = 0.5
"""Seconds between two looks at the jobs that are watched."""

SHORTEST_INTERVAL = 0.05
"""Seconds between two looks where there is reason to look sooner."""

MAX_WATCHERS = 1_000
"""The most requests of a node that watch a job, be it for its events or for its end."""

LOOKS_TO_BE_GONE = 2
"""A job that so many looks in a row do not find is gone. One is too few: its end may be on its way to us from this very node."""


class View(NamedTuple):
    """A job as its watchers see it; its state is ``gone`` when the database keeps nothing of it any more."""

    state: str
    attempt: int
    progress: Any = None
    checkpoint: Any = None


class _Watched:
    """A job that somebody watches.

    Attributes:
        kept: the job as a whole, where it succeeded on this node and the database does not keep it.
    """

    def __init__(self) -> None:
        self.watchers = 0
        self.view: View | None = None
        self.kept: dict[str, Any] | None = None
        self.changed = trio.lowlevel.ParkingLot()
        self._missed = 0
        self._noted: dict[str, Any] = {}
        self._noted_in = 0

    def show(self, view: View) -> None:
        if view != self.view:
            self.view = view
            self.changed.unpark_all()

    def seen(self, glance: Glance | None) -> None:
        """Take what a look has found."""
        if self.kept is not None:
            return
        if glance is None:
            self._missed += 1
            if self._missed >= LOOKS_TO_BE_GONE:
                self.show(View("gone", 0))
            return
        self._missed = 0
        # What a run of this node has noted is newer than what it has come to write.
        saved = glance.saved if isinstance(glance.saved, dict) else {}
        saved = {**saved, **self._noted} if glance.claims == self._noted_in else saved
        self.show(View(glance.state, glance.attempt, saved.get("progress"), saved.get("checkpoint")))

    def noted(self, job: ClaimedJob, notes: dict[str, Any]) -> None:
        """Take what a run of this node has noted."""
        if self.view is not None and self.view.state not in UNFINISHED:
            return
        self._noted, self._noted_in = notes, job.claims
        before = self.view or View("inflight", job.attempt)
        latest = {"progress": before.progress, "checkpoint": before.checkpoint, **notes}
        self.show(View("inflight", job.attempt, latest["progress"], latest["checkpoint"]))


class Watch:
    """One watcher's look at one job."""

    def __init__(self, watcher: Watcher, watched: _Watched) -> None:
        self._watcher = watcher
        self._watched = watched
        self._seen: View | None = None

    @property
    def view(self) -> View | None:
        """The job as it is now, as far as is known; None before the first look."""
        self._seen = self._watched.view
        return self._seen

    @property
    def kept(self) -> dict[str, Any] | None:
        """The job as a whole, where it succeeded on this node and the database does not keep it."""
        return self._watched.kept

    @property
    def closed(self) -> bool:
        """Whether the node stops: nothing more will be seen."""
        return self._watcher.closed

    async def wait(self, seconds: float) -> bool:
        """Wait until the job is not any more as `view` last had it, or the watch is closed; False when neither comes in time."""
        with trio.move_on_after(seconds):
            while self._watched.view == self._seen and not self.closed:
                await self._watched.changed.park()
            return True
        return False


class Watcher:
    """Everybody who watches a job on this node.

    Args:
        keep_finished: whether jobs that succeeded are kept in the database.

    Attributes:
        closed: see `close`.
    """

    def __init__(self, store: Store, *, keep_finished: bool) -> None:
        self._store = store
        self._keep_finished = keep_finished
        self._watched: dict[str, _Watched] = {}
        self._watchers = 0
        self._hurry = trio.Event()
        self.trouble = Trouble("watcher")
        self.closed = False

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """Watch a job for as long as the context is open.

        Raises:
            TooManyWatchers: so many do already.
        """
        if self._watchers >= MAX_WATCHERS:
            raise TooManyWatchers(f"{self._watchers} requests watch jobs on this node")
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
        """Say that a job may have changed."""
        if job_id in self._watched:
            self._hurry.set()

    def noted(self, job: ClaimedJob, documents: Documents) -> None:
        """Hear what a run of this node has noted."""
        watched = self._watched.get(job.id)
        if watched is not None:
            watched.noted(job, {name: msgspec.json.decode(document) for name, document in documents.items()})

    def written(self, batch: Sequence[Finished]) -> None:
        """Hear which outcomes of this node's runs were committed."""
        if not self._watched:
            return
        for job, outcome, *_ in batch:
            watched = self._watched.get(job.id)
            if watched is None:
                continue
            if outcome.outcome == "succeeded" and not self._keep_finished:
                last = watched.view or View("inflight", job.attempt)
                watched.kept = _document(job, outcome.result, last)
                watched.show(last._replace(state="succeeded", attempt=job.attempt))
            else:
                self._hurry.set()

    def close(self) -> None:
        """Let every watcher go: the node stops."""
        self.closed = True
        for watched in self._watched.values():
            watched.changed.unpark_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled, while there is something to look for."""
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


def _document(job: ClaimedJob, result: msgspec.Raw | None, last: View) -> dict[str, Any]:
    """What is left to say of a job that the database has let go of."""
    kept: Mapping[str, Any] = {
        "id": job.id,
        "kind": job.kind,
        "queue": job.queue,
        "state": "succeeded",
        "payload": job.payload,
        "priority": job.priority,
        "attempt": job.attempt,
        "max_retries": job.max_retries,
        "result": result,
        "progress": last.progress,
        "checkpoint": last.checkpoint,
    }
    return dict(kept)
