"""The store's verbs to delete old data, and write the history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from jobqueue.metrics import Totals

PRUNE_BATCH = 1_000
"""Maximum number of jobs that one call deletes from each table, and of keys that it checks."""


class Maintained(NamedTuple):
    """The result of `UpkeepStore.maintain`: the number of dropped partitions, and the messages of errors."""

    dropped: int
    failed: Sequence[str] = ()


class Recorded(NamedTuple):
    """The result of `UpkeepStore.record`: seconds until its next call, and whether that call must sample the depths."""

    next_in: float
    sample: bool


class UpkeepStore(Protocol):
    """Delete old data, write the history, and find out whether the database is a copy."""

    async def copied_from(self) -> str | None:
        """Return a sentence about the origin if the database is a copy that nobody has adopted; otherwise None."""

    async def adopt(self) -> str | None:
        """Let the queue belong to this database. Return what `copied_from` returned before."""

    async def maintain(self, *, keep_finished: float, keep_cancelled: float) -> Maintained:
        """Create the partitions of the next days. Drop partitions whose day ended more than the given number of seconds ago."""

    async def prune(self, *, keep_finished: float, keep_cancelled: float, keep_dead: float) -> int:
        """Delete jobs after their retention period, at most `PRUNE_BATCH` from each table. Return their number.

        If all jobs of a partition are past their retention period, `maintain` drops the whole partition instead.

        Args:
            keep_finished: retention of succeeded jobs, in seconds.
            keep_cancelled: retention of cancelled jobs, in seconds.
            keep_dead: retention of dead jobs, in seconds.

        Raises:
            DatabaseUnavailable, RefusedData: a table's jobs could not be deleted, and the other tables have nothing to delete.
        """

    async def prune_keys(self) -> int:
        """Delete keys that are no longer needed. Return the number of keys that were checked, at most `PRUNE_BATCH`."""

    async def record(self, counts: Totals, *, sample: bool = False) -> Recorded:
        """Add a node's counts to the history slots that have just ended, and delete old slots.

        Args:
            counts: the counts since the last call; the histograms may omit empty buckets at the end.
            sample: whether to count the depths too. For each slot, `Recorded.sample` is true for only one node.
        """
