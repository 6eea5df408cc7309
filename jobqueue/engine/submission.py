"""Commit submissions, many in one transaction, with ``jobqueue_internal.submit_batch``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import msgspec
import structlog
import trio

from jobqueue.admission import Admitted, Receipt
from jobqueue.concurrency.group_commit import GroupCommit, GroupCommitStatistics, Told, until_told
from jobqueue.concurrency.routine import Routine
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.dispatcher import Dispatcher
from jobqueue.engine.signals import Signals
from jobqueue.errors import (
    ConflictingJob,
    ConnectionLost,
    DatabaseUnavailable,
    KeyInUse,
    NotReplicated,
    RefusedData,
    RefusedKey,
    StatementFailed,
    UnprocessableJob,
)
from jobqueue.metrics import Metrics
from jobqueue.retry import exponential_pause
from jobqueue.storage.roles.run import Ranks
from jobqueue.storage.roles.submit import SubmitStore, Submitted

MAX_BATCH = 1_000
"""Maximum number of jobs in one transaction. A job over 16 KiB counts as several. A submission that
exceeds the limit gets its own transaction."""

MAX_WAITING = 20_000
"""Maximum number of jobs that wait for their commit. A job over 16 KiB counts as several. Beyond the limit, callers receive 503."""

IN_DOUBT_PATIENCE = 10.0
"""Time to find out whether a commit took effect after its connection broke, in seconds. After that, callers get ConnectionLost."""

log = structlog.get_logger()


class Submissions:
    """The group commit of submissions.

    Args:
        kinds: the kinds that a strict node accepts; None accepts any kind.
        dispatcher: claims jobs for idle workers in the submission's transaction. If this node can start all submitted jobs,
            no other node is woken.
        key_ttl: seconds for which an idempotency key is remembered.
    """

    def __init__(
        self,
        store: SubmitStore,
        metrics: Metrics,
        signals: Signals,
        *,
        kinds: Iterable[str] | None,
        dispatcher: Dispatcher,
        key_ttl: float,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._signals = signals
        self._kinds = None if kinds is None else frozenset(kinds)
        self._dispatcher = dispatcher
        self._key_ttl = key_ttl
        self._doubts: dict[
            int, ConnectionLost
        ] = {}  # the lost connection of each submission that must be written again in a smaller batch, by `id`
        self._group: GroupCommit[Admitted, Receipt | None] = GroupCommit(
            self._write, max_weight=MAX_BATCH, max_waiting=MAX_WAITING, splits_on=RefusedData
        )
        self.trouble = Trouble("submissions", vital=True)
        self._probing = Routine(self._probe, self.trouble)
        self.flush = self._group.flush
        self.close = self._group.close

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write submissions until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probing.run)
            await self._group.run(task_status=task_status)

    def statistics(self) -> GroupCommitStatistics:
        return self._group.statistics()

    async def submit(self, jobs: Admitted) -> Receipt | None:
        """Commit all jobs or none. Return once they are durable, with a receipt if some of them have keys.

        Raises:
            UnprocessableJob, ConflictingJob, Overloaded, ShuttingDown, DatabaseUnavailable,
                ConnectionLost: see `begin`.
        """
        return await until_told(lambda told: self.begin(jobs, told))

    def begin(self, jobs: Admitted, told: Told[Receipt | None]) -> None:
        """Start to commit all jobs or none. Call ``told(receipt, error)`` once they are durable or have failed.

        An error that is known at once is raised here instead. The same error can be raised in one
        call and passed to ``told`` in another.

        Raises:
            UnprocessableJob: this node does not handle a kind, PostgreSQL rejects a value, or a key
                belongs to another job.
            ConflictingJob: an unfinished transaction uses a key.
            Overloaded: too many jobs wait already.
            ShuttingDown: the node accepts no new jobs.
            DatabaseUnavailable: PostgreSQL is unavailable, and nothing was written.
            ConnectionLost: the connection broke during the commit; whether the jobs exist is unknown.
        """
        if self._kinds is not None and (unknown := jobs.kinds - self._kinds):
            served = ", ".join(sorted(self._kinds)) or "none"
            raise UnprocessableJob(f"this node has no handler for kind {min(unknown)!r} (it serves: {served})", field="kind")
        if self._store.submit_trouble is not None and (self.trouble.reason is not None or self._group.statistics().writing):
            # The probe or the current batch finds out whether the database is available again.
            # Other submissions do not wait for the result.
            raise DatabaseUnavailable(self._store.submit_trouble)
        arrived = trio.current_time()

        def settled(receipt: Receipt | None, error: Exception | None) -> None:
            if error is None:
                self._metrics.submit_seconds.observe(trio.current_time() - arrived)
            elif isinstance(error, RefusedKey):
                kind = ConflictingJob if isinstance(error, KeyInUse) else UnprocessableJob
                # The failing submission was written in its own batch, so the index refers to its jobs.
                error = kind(str(error), field=error.field, index=error.index if len(jobs.ids) > 1 else None)
            elif isinstance(error, RefusedData):
                error = UnprocessableJob(str(error) if error.field else f"PostgreSQL rejected the job: {error}", field=error.field)
            told(receipt, error)

        self._group.begin(jobs, settled, weight=jobs.weight)

    async def _probe(self) -> float:
        """Submit an empty batch while submissions fail. Otherwise a node that is not ready might not
        notice the recovery, because it receives no submissions."""
        if self.trouble.reason is not None:
            await self._store.submit([], wake=False)
        return math.inf

    async def _write(self, batch: Sequence[Admitted]) -> Sequence[Receipt | None]:
        try:
            receipts = await self._commit_or_find_fault(batch)
        except RefusedData:
            self.trouble.succeeded()
            raise
        except Exception as error:
            self.trouble.failed(error)
            self._probing.due_in(0)
            raise
        self.trouble.succeeded()
        return receipts

    async def _commit_or_find_fault(self, batch: Sequence[Admitted]) -> Sequence[Receipt | None]:
        """Commit a batch. If it fails for an unknown reason, find out whether the database or a job in the batch is at fault."""
        try:
            return await self._commit(batch)
        except StatementFailed:
            await self._store.submit([], wake=False)  # if an empty batch fails too, the database is at fault
        try:
            return await self._commit(batch)
        except StatementFailed as error:
            raise RefusedData(str(error)) from error

    async def _commit(self, batch: Sequence[Admitted]) -> Sequence[Receipt | None]:
        encoded = [document for jobs in batch for document in jobs.documents]
        due: Counter[str] = Counter()
        counts: Counter[tuple[str, str]] = Counter()
        for jobs in batch:
            due.update(jobs.queues)
            counts.update(jobs.counts)
        key_ttl = self._key_ttl if any(jobs.keyed for jobs in batch) else None
        if self._doubts and (doubt := [self._doubts.pop(id(jobs)) for jobs in batch]):
            submitted = await self._settle(batch, doubt[0], key_ttl)
            return self._written(batch, submitted, submitted.best, counts)
        try:
            with self._dispatcher.along(due) as along:
                claim = None if along is None else along.claim
                submitted = await self._store.submit(
                    encoded, wake=not self._dispatcher.can_start(due), along=claim, key_ttl=key_ttl
                )
                best = submitted.best if along is None else along.take(submitted)
        except NotReplicated as lost:
            self._dispatcher.audit(lost)  # releases the jobs that were claimed in the same transaction
            # Do not submit again: this server would find the jobs, but that would not prove that the standby has them.
            raise
        except ConnectionLost as lost:
            submitted = await self._settle(batch, lost, key_ttl)
            best = submitted.best
        return self._written(batch, submitted, best, counts)

    def _written(
        self, batch: Sequence[Admitted], submitted: Submitted, best: Ranks, counts: Counter[tuple[str, str]]
    ) -> Sequence[Receipt | None]:
        receipts: Sequence[Receipt | None] = [None] * len(batch)
        if submitted.ids is not None:
            receipts = _receipts(batch, submitted.ids)
            counts.subtract(_already_there(batch, receipts))
        for (queue, kind), count in counts.items():
            self._metrics.of(queue, kind).submitted.inc(count)
        self._signals.jobs_available.publish(best)
        if any(jobs.blocked for jobs in batch):
            self._signals.checks_due.publish(0)
        return receipts

    async def _settle(self, batch: Sequence[Admitted], lost: ConnectionLost, key_ttl: float | None) -> Submitted:
        """Submit a batch again because its commit is in doubt. If a key is rejected, submit each half of the batch in this way."""
        try:
            return await self._make_sure([document for jobs in batch for document in jobs.documents], lost, key_ttl)
        except RefusedKey as error:
            if len(batch) > 1:
                self._doubts |= {id(jobs): lost for jobs in batch}
            elif isinstance(error, KeyInUse):
                raise lost from error  # the jobs may exist: the first try may have succeeded before the key was in use
            raise
        finally:
            self._dispatcher.audit(lost)

    async def _make_sure(self, encoded: Sequence[bytes], lost: ConnectionLost, key_ttl: float | None) -> Submitted:
        """Find out which jobs of a commit in doubt exist, and commit the missing ones."""
        log.warning("commit in doubt", jobs=len(encoded), error=str(lost))
        deadline = trio.current_time() + IN_DOUBT_PATIENCE
        failures = 0
        while True:
            try:
                return await self._store.submit_again(encoded, backend=lost.backend, key_ttl=key_ttl)
            except NotReplicated:
                raise
            except ConnectionLost as again:
                lost = again
            except DatabaseUnavailable:
                pass
            failures += 1
            if trio.current_time() > deadline:
                raise lost
            await trio.sleep(exponential_pause(failures, 0.1, 1.0, jitter=True))


class _Names(msgspec.Struct):
    queue: str = "default"
    kind: str = "default"


_names = msgspec.json.Decoder(_Names)


def _receipts(batch: Sequence[Admitted], ids: Sequence[str]) -> list[Receipt | None]:
    """Distribute the ids of a batch to its submissions. Submissions without keys need no receipt."""
    dealt = iter(ids)
    receipts: list[Receipt | None] = []
    for jobs in batch:
        given = list(islice(dealt, len(jobs.ids)))
        existing = [place for place, ours in enumerate(jobs.ids) if given[place] != ours]
        receipts.append(Receipt(given, existing) if jobs.keyed else None)
    return receipts


def _already_there(batch: Sequence[Admitted], receipts: Sequence[Receipt | None]) -> Iterator[tuple[str, str]]:
    """Yield the queue and kind of each job that was not stored, because its key belongs to an existing job."""
    for jobs, receipt in zip(batch, receipts, strict=True):
        for place in receipt.existing if receipt is not None else ():
            names = _names.decode(jobs.documents[place])
            yield names.queue, names.kind
