"""Watch queues, nodes and history for the pages that show the overview. One query serves all pages,
and each result is encoded once.

A page stores only its read position. A slow page therefore receives all changes since its last read
as one event.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
import trio

from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.depths import Depths
from jobqueue.engine.history import point, step_of
from jobqueue.engine.leases import Lease
from jobqueue.errors import TooManyWatchers
from jobqueue.storage.roles.inspect import HISTORY_SETTLE, InspectStore

LOOK_INTERVAL = 2.0
"""Seconds between two reads while a page watches."""

SHORTEST_INTERVAL = 0.5
"""Minimum interval between two reads, in seconds."""

MAX_PAGES = 200
"""Maximum number of pages that watch one node."""

DEPTH_SHARE = 100
"""If a count of the depths takes *t*, it is reused for this many times *t*. So a page that is open all day uses 1 % of a core."""

LATE_SLOTS = 3
"""Number of the latest history slots to read again, because a node may write its counts late."""


class News(NamedTuple):
    """One event: its name, and its data as JSON."""

    name: str
    data: bytes


class _Range:
    """A cache of the history over the last `seconds`.

    Attributes:
        pages: number of pages that watch it.
    """

    def __init__(self, seconds: int) -> None:
        self.pages = 0
        self._seconds = seconds
        self._step = step_of(seconds)
        self._points: dict[datetime, tuple[int, bytes]] = {}  # each point with the number of the read that found it
        self._told: dict[int, bytes] = {}
        self._over: float | None = None
        self._read_at = 0.0

    async def read(self, store: InspectStore, now: datetime, look: int) -> None:
        """Read the new points, if a slot has ended since the last read."""
        over = (now.timestamp() - HISTORY_SETTLE) // self._step
        if over == self._over:
            return
        began = trio.current_time()
        since = self._seconds
        if self._over is not None:
            since = min(since, math.ceil(began - self._read_at) + LATE_SLOTS * self._step)
        slots = await store.history(self._step, seconds=since)
        oldest = now - timedelta(seconds=self._seconds)
        points = {at: known for at, known in self._points.items() if at >= oldest}
        for slot in slots:
            encoded = msgspec.json.encode(point(self._step, slot))
            if slot.at not in points or points[slot.at][1] != encoded:
                points[slot.at] = look, encoded
        self._points = dict(sorted(points.items()))
        self._over, self._read_at = over, began
        self._told = {}

    def since(self, look: int) -> bytes | None:
        """Return the points that were found after the read `look`, as JSON; None if there are none.

        Pages with the same range share the result.
        """
        if look in self._told:
            return self._told[look]
        new = [encoded for found, encoded in self._points.values() if found > look]
        if self._over is None or (look and not new):
            return None
        self._told[look] = b'{"step":%d,"points":[%s]}' % (self._step, b",".join(new))
        return self._told[look]


class Page:
    """The read position of one page."""

    def __init__(self, overview: OverviewWatcher, watched: _Range, seen: int) -> None:
        self._overview = overview
        self._range = watched
        self._seen = seen
        self._history_seen = 0

    @property
    def closed(self) -> bool:
        """Whether the node is stopping and sends no more events."""
        return self._overview.closed

    def news(self) -> list[News]:
        """Return the events since the last call. While the database is unavailable, the only event is that the data is stale."""
        overview = self._overview
        if self._seen == overview.look:
            return []
        self._seen = overview.look
        if overview.stale is not None:
            return [News("trouble", overview.stale)]
        told = [News("overview", overview.state)]
        history = self._range.since(self._history_seen)
        if history is not None:
            self._history_seen = overview.look
            told.append(News("history", history))
        return told

    async def wait(self, seconds: float) -> bool:
        """Wait until there is news or the node is stopping. Return False if neither happens within `seconds`."""
        with trio.move_on_after(seconds):
            while self._seen == self._overview.look and not self.closed:
                await self._overview.changed.park()
            return True
        return False


class OverviewWatcher:
    """All pages that watch the overview on this node.

    Attributes:
        closed: see `close`.
        look: the number of the latest read; 0 before the first.
        state: the queues and nodes, as JSON.
        stale: why the state is stale, as JSON; None while it is current.
        changed: pages wait here for the next read.
    """

    def __init__(self, store: InspectStore, depths: Depths, lease: Lease) -> None:
        self._store = store
        self._depths = depths
        self._lease = lease
        self._ranges: dict[int, _Range] = {}
        self._hurry = trio.Event()
        self._old = 0  # the last read before all pages were closed
        self.closed = False
        self.look = 0
        self.state = b""
        self.stale: bytes | None = None
        self.trouble = Trouble("overview")
        self.changed = trio.lowlevel.ParkingLot()

    @contextmanager
    def watch(self, seconds: int) -> Iterator[Page]:
        """Watch queues, nodes, and the history of the last `seconds`, while the context is open.

        Raises:
            TooManyWatchers: the node has reached its limit of pages.
        """
        pages = sum(watched.pages for watched in self._ranges.values())
        if pages >= MAX_PAGES:
            raise TooManyWatchers(f"too many overview pages: {pages} already watch this node")
        if not self._ranges:
            self._old, self.stale = self.look, None
        seen = self._old
        if seconds not in self._ranges:
            self._ranges[seconds] = _Range(seconds)
            self._hurry.set()
            if self.stale is None:
                seen = self.look  # the next read provides the history of this range
        watched = self._ranges[seconds]
        watched.pages += 1
        try:
            yield Page(self, watched, seen)
        finally:
            watched.pages -= 1
            if not watched.pages:
                del self._ranges[seconds]

    def close(self) -> None:
        """Wake all pages, because the node is stopping."""
        self.closed = True
        self.changed.unpark_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read until cancelled, while a page watches."""
        task_status.started()
        look_at = math.inf
        while True:
            with trio.move_on_at(look_at):
                await self._hurry.wait()
            self._hurry = trio.Event()
            if not self._ranges:
                look_at = math.inf
                continue
            looked_at = trio.current_time()
            await self._look()
            look_at = looked_at + LOOK_INTERVAL
            await trio.sleep_until(looked_at + SHORTEST_INTERVAL)

    async def _look(self) -> None:
        with self.trouble.contained():
            now = (await self._store.now()).astimezone(UTC)
            queues = await self._depths.queues(share=DEPTH_SHARE)
            nodes = await self._store.nodes()
            for watched in list(self._ranges.values()):
                await watched.read(self._store, now, self.look + 1)
            self.state = msgspec.json.encode({"now": now, "node": self._lease.node.id, "queues": queues, "nodes": nodes})
        stale = None
        if self.trouble.reason is not None:
            stale = msgspec.json.encode({"reasons": [f"the database is unavailable: {self.trouble.reason}"]})
            if stale == self.stale:
                return
        self.stale = stale
        self.look += 1
        self.changed.unpark_all()
