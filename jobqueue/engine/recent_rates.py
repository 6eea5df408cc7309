"""Compute a node's recent throughput. Each renewal of the lease stores the throughput, so that other nodes can show it."""

from __future__ import annotations

from collections import Counter, deque

import trio

from jobqueue.storage.roles.run import Activity

WINDOW = 60
"""Seconds over which the rates are averaged."""


class RecentRates:
    """Counts of succeeded jobs and failed attempts over the last minute, by queue."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, Counter[tuple[str, bool]]]] = deque(maxlen=WINDOW + 1)

    def note(self, queue: str, jobs: int, *, failed: bool) -> None:
        """Count jobs whose outcome was just written."""
        second = int(trio.current_time())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, Counter()))
        self._seconds[-1][1][queue, failed] += jobs

    def rates(self) -> Activity:
        """Return (succeeded, failed) per second by queue. Omit queues without activity."""
        oldest = int(trio.current_time()) - WINDOW
        while self._seconds and self._seconds[0][0] <= oldest:
            self._seconds.popleft()
        total: Counter[tuple[str, bool]] = Counter()
        for _, counts in self._seconds:
            total += counts
        queues = sorted({queue for queue, _ in total})
        return {queue: (round(total[queue, False] / WINDOW, 4), round(total[queue, True] / WINDOW, 4)) for queue in queues}
