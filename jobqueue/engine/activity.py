"""What a node has done of late: it goes along with the renewal of its lease, so that anybody can see it, and nobody has to ask."""

from __future__ import annotations

from collections import Counter, deque

import trio

from jobqueue.storage.store import Activity

WINDOW = 60
"""Seconds that are looked back."""


class RecentActivity:
    """Jobs that succeeded and attempts that failed over the last minute, by queue."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, Counter[tuple[str, bool]]]] = deque(maxlen=WINDOW + 1)

    def note(self, queue: str, jobs: int, *, failed: bool) -> None:
        """Count so many that were written just now."""
        second = int(trio.current_time())
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, Counter()))
        self._seconds[-1][1][queue, failed] += jobs

    def rates(self) -> Activity:
        """Return how many there were a second; without the queues that had none."""
        oldest = int(trio.current_time()) - WINDOW
        while self._seconds and self._seconds[0][0] <= oldest:
            self._seconds.popleft()
        total: Counter[tuple[str, bool]] = Counter()
        for _, counts in self._seconds:
            total += counts
        queues = sorted({queue for queue, _ in total})
        return {queue: (round(total[queue, False] / WINDOW, 4), round(total[queue, True] / WINDOW, 4)) for queue in queues}
