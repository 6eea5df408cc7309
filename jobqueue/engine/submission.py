"""Take submissions and return once they are committed: group commit in front of ``jobqueue.submit_many``."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog
import trio

from jobqueue.admission import Admitted
from jobqueue.concurrency.group_commit import GroupCommit, GroupCommitStatistics, Told, until_told
from jobqueue.engine.dispatcher import Dispatcher
from jobqueue.errors import ConnectionLost, DatabaseUnavailable, NotReplicated, RefusedData, UnprocessableJob
from jobqueue.metrics import Metrics
from jobqueue.storage.store import Ranks, Store

MAX_BATCH = 1_000
"""Jobs in one transaction, of up to 16 KiB each (a larger one counts for several); a larger submission is one of its own."""

MAX_WAITING = 20_000
"""Jobs that may wait for their commit, counted the same way; beyond it submitters get 503."""

IN_DOUBT_PATIENCE = 10.0
"""Seconds to find out whether a commit whose connection broke took place, before the submitters are told that it is unknown."""

log = structlog.get_logger()


class Submissions:
    """The group commit of submissions.

    Args:
        kinds: what this node serves when it is strict about kinds; None takes any.
        dispatcher: claims what this node has workers for in the transaction of the submission, and is told of the rest.
        idle_capacity: how many jobs of a queue this node could start at once; with enough of it no other node is woken.
        on_keyed: called when jobs with a concurrency key were committed.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        kinds: Iterable[str] | None,
        dispatcher: Dispatcher,
        idle_capacity: Callable[[str], int],
        on_keyed: Callable[[], None],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._kinds = None if kinds is None else frozenset(kinds)
        self._dispatcher = dispatcher
        self._idle_capacity = idle_capacity
        self._on_keyed = on_keyed
        self._group: GroupCommit[Admitted, None] = GroupCommit(
            self._write, max_weight=MAX_BATCH, max_waiting=MAX_WAITING, splits_on=RefusedData
        )
        self.run = self._group.run
        self.flush = self._group.flush
        self.close = self._group.close

    def statistics(self) -> GroupCommitStatistics:
        return self._group.statistics()

    async def submit(self, jobs: Admitted) -> None:
        """Commit the jobs, all or none; return once they are durable.

        Raises:
            UnprocessableJob, Overloaded, ShuttingDown, DatabaseUnavailable, ConnectionLost: see `begin`.
        """
        await until_told(lambda told: self.begin(jobs, told))

    def begin(self, jobs: Admitted, told: Told[None]) -> None:
        """Have the jobs committed, all or none; call ``told(None, error)`` once they are durable, or why they are not.

        What can be said at once is raised; which error comes which way depends on the moment.

        Raises:
            UnprocessableJob: a kind that this node does not serve, or a value that PostgreSQL refused.
            Overloaded: too much waits already.
            ShuttingDown: no new work is taken.
            DatabaseUnavailable: PostgreSQL is away, nothing was written.
            ConnectionLost: PostgreSQL went away during the commit; whether the jobs exist is unknown.
        """
        if self._kinds is not None and (unknown := jobs.kinds - self._kinds):
            served = ", ".join(sorted(self._kinds)) or "none"
            raise UnprocessableJob(f"this node serves no kind {min(unknown)!r} (it serves: {served})", field="kind")
        if self._store.submit_trouble is not None and self._group.statistics().writing:
            # The batch that is being written finds out whether the database is back; nobody else has to wait for that.
            raise DatabaseUnavailable(self._store.submit_trouble)
        arrived = trio.current_time()

        def settled(_: None, error: Exception | None) -> None:
            if error is None:
                self._metrics.submit_seconds.observe(trio.current_time() - arrived)
            elif isinstance(error, RefusedData):
                error = UnprocessableJob(f"PostgreSQL refused the job: {error}")
            told(None, error)

        self._group.begin(jobs, settled, weight=jobs.weight)

    async def _write(self, batch: Sequence[Admitted]) -> Sequence[None]:
        encoded = [document for jobs in batch for document in jobs.documents]
        due: Counter[str] = Counter()
        counts: Counter[tuple[str, str]] = Counter()
        for jobs in batch:
            due.update(jobs.queues)
            counts.update(jobs.counts)
        try:
            with self._dispatcher.along(due) as along:
                claim = None if along is None else along.claim
                submitted = await self._store.submit(encoded, wake=self._others_needed(due), along=claim)
                best = submitted.best if along is None else along.take(submitted)
        except NotReplicated:
            self._dispatcher.audit()  # for what was claimed along, and came to nobody
            raise  # it is committed here: sending it again would find it, and prove nothing about the standby
        except ConnectionLost as lost:
            try:
                best = await self._make_sure(encoded, lost)
            finally:
                self._dispatcher.audit()
        for (queue, kind), count in counts.items():
            self._metrics.of(queue, kind).submitted.inc(count)
        self._dispatcher.wake(best)
        if any(jobs.keyed for jobs in batch):
            self._on_keyed()
        return [None] * len(batch)

    def _others_needed(self, due: Mapping[str, int]) -> bool:
        return any(count > self._idle_capacity(queue) for queue, count in due.items())

    async def _make_sure(self, encoded: Sequence[bytes], lost: ConnectionLost) -> Ranks:
        """Find out what became of a commit, and commit what is missing."""
        log.warning("commit in doubt", jobs=len(encoded), error=str(lost))
        deadline = trio.current_time() + IN_DOUBT_PATIENCE
        failures = 0
        while True:
            try:
                return await self._store.submit_again(encoded, backend=lost.backend)
            except NotReplicated:
                raise
            except ConnectionLost as again:
                lost = again
            except DatabaseUnavailable:
                pass
            failures += 1
            if trio.current_time() > deadline:
                raise lost
            await trio.sleep(min(1.0, 0.05 * 2.0**failures) * random.uniform(0.5, 1))
