"""Write the outcomes of runs: many in one transaction, retried until the database accepts them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import structlog
import trio

from jobqueue import documents
from jobqueue.concurrency.group_commit import GroupCommit
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.leases import Lease
from jobqueue.engine.signals import Finished, Signals
from jobqueue.errors import ConnectionLost, DatabaseUnavailable, RefusedData, StatementFailed
from jobqueue.job import AttemptError, ClaimedJob, Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage.roles.run import RunStore

MAX_BATCH = 2_000
"""Maximum number of outcomes in one transaction. An outcome with a result over 16 KiB counts as several."""

MAX_WAITING = 5_000
"""Maximum number of outcomes that wait for the database. Beyond this number, workers wait before they take another job."""

STRANGE_ERRORS = 3
"""After this many errors without an outage, try an empty batch. If the database accepts it, the failed batch is at fault."""

log = structlog.get_logger()


class Outcomes:
    """The group commit of outcomes, and the set of the node's unfinished runs.

    Args:
        keep_finished: whether the database keeps succeeded jobs or deletes them at once.

    Attributes:
        held: every run, as (id, claims), from its claim until its outcome is committed.
    """

    def __init__(self, store: RunStore, lease: Lease, metrics: Metrics, signals: Signals, *, keep_finished: bool) -> None:
        self._store = store
        self._lease = lease
        self._metrics = metrics
        self._signals = signals
        self._keep_finished = keep_finished
        self._group: GroupCommit[Finished, None] = GroupCommit(
            self._write, max_weight=MAX_BATCH, max_waiting=MAX_WAITING, splits_on=RefusedData
        )
        self.trouble = Trouble("outcomes", vital=True)
        self.telling = Trouble("outcome callbacks")
        self.held: set[tuple[str, int]] = set()
        self.run = self._group.run
        self.flush = self._group.flush

    async def put(self, job: ClaimedJob, outcome: Outcome, node_id: str, *, in_doubt: bool = False) -> None:
        """Add an outcome to the next batch. The batch is retried while the database is unavailable.

        Args:
            in_doubt: whether the handler's own transaction may have completed the job. If that
                transaction is still open, it holds a lock on the job's row, so this write waits for it.
        """
        weight = 1 if outcome.result is None else documents.weight(memoryview(outcome.result).nbytes)
        await self._group.put(Finished(job, outcome, node_id, in_doubt), weight=weight)

    def note(self, job: ClaimedJob, outcome: Outcome, node_id: str, *, stale: bool) -> None:
        """Count an outcome that the handler's own transaction has committed, or that was stale."""
        finished = [Finished(job, outcome, node_id)]
        self.held.discard((job.id, job.claims))
        self._count(finished, finished if stale else [])

    async def release(self, jobs: Sequence[ClaimedJob]) -> None:
        """Release jobs that were claimed and not started."""
        for job in jobs:
            await self.put(job, Outcome(id=job.id, claims=job.claims, outcome="released"), self._lease.node.id)

    async def _write(self, batch: Sequence[Finished]) -> Sequence[None]:
        # Outcomes of a lost lease are stale: other nodes may have the jobs by now.
        node_id = self._lease.node.id
        current = [finished for finished in batch if finished.node_id == node_id]
        stale = [finished for finished in batch if finished.node_id != node_id]
        if current:
            try:
                stale += await self._commit(node_id, current)
            except RefusedData as error:
                if len(batch) > 1:
                    raise
                current = [_refused(current[0], error)]
                stale += await self._commit_the_last_way(node_id, current)
        self.held.difference_update([(finished.job.id, finished.job.claims) for finished in batch])
        with self.telling.contained():  # the batch is committed, so a failing subscriber must not fail it
            self._count(current, stale)
        return [None] * len(batch)

    async def _commit(self, node_id: str, batch: Sequence[Finished]) -> list[Finished]:
        """Write a batch, with retries; return its stale outcomes.

        Raises:
            RefusedData: PostgreSQL rejects an outcome, so retries are useless.
        """
        outcomes = [finished.outcome for finished in batch]
        failures = strange = 0
        in_doubt = False
        while True:
            started = trio.current_time()
            try:
                stale = await self._store.finish(node_id, outcomes, keep=self._keep_finished)
            except RefusedData:
                raise
            except Exception as error:
                self.trouble.failed(error)
                failures += 1
                in_doubt = in_doubt or isinstance(error, ConnectionLost)
                strange += isinstance(error, StatementFailed) or not isinstance(error, DatabaseUnavailable)
                if strange >= STRANGE_ERRORS and await self._can_finish(node_id):
                    raise RefusedData(f"{type(error).__name__}: {error}") from error
                await trio.sleep(self.trouble.pause)
                continue
            self.trouble.succeeded()
            self._metrics.finish_seconds.observe(trio.current_time() - started)
            if failures:
                log.info("outcomes written", outcomes=len(batch), tries=failures + 1)
            # After a broken connection, a missing row most likely means that the first try was committed.
            return [] if in_doubt else [batch[place] for place in stale]

    async def _can_finish(self, node_id: str) -> bool:
        """Return whether the database accepts an empty batch. If it does, the failed batch is at fault."""
        try:
            await self._store.finish(node_id, [], keep=self._keep_finished)
        except Exception as error:  # noqa: BLE001 - the log has the error already
            log.debug("no outcomes can be written", error=str(error))
            return False
        return True

    async def _commit_the_last_way(self, node_id: str, batch: Sequence[Finished]) -> list[Finished]:
        """Write the substitute for a rejected outcome. If PostgreSQL rejects the substitute too, leave the run to the audit."""
        try:
            return await self._commit(node_id, batch)
        except RefusedData as error:
            self.trouble.failed(error)
            self.trouble.succeeded()  # PostgreSQL rejects only this outcome, not the others
            return list(batch)

    def _count(self, batch: Sequence[Finished], stale: Sequence[Finished]) -> None:
        late = {id(finished) for finished in stale}
        written = [finished for finished in batch if id(finished) not in late]
        if log.is_enabled_for(logging.DEBUG):
            for job, outcome, _, _ in written:
                log.debug("run recorded", **job.log_context, outcome=outcome.outcome)
        # Update each metric once per batch and label set, not once per job.
        alike = Counter([(job.queue, job.kind, outcome.outcome, outcome.error is not None) for job, outcome, _, _ in written])
        for (queue, kind, verdict, failed), count in alike.items():
            metrics = self._metrics.of(queue, kind)
            metrics.by_outcome[verdict].inc(count)
            if failed:
                metrics.failed.inc(count)
            if failed or verdict == "succeeded":
                self._lease.activity.note(queue, count, failed=failed)
        self._drop(stale)
        self._signals.queues_freed.publish({queue for queue, *_ in alike})
        asking = [job.options for job, _, _, _ in written if job.options is not None]
        if any(options.concurrency_key is not None for options in asking):
            self._signals.checks_due.publish(0)
        delays = [finished.outcome.delay for finished in written if finished.outcome.delay is not None]
        if delays:
            self._signals.jobs_due.publish(min(delays))
        self._signals.outcomes_written.publish(written)

    def _drop(self, stale: Sequence[Finished]) -> None:
        for job, outcome, _, in_doubt in stale:
            metrics = self._metrics.of(job.queue, job.kind)
            if in_doubt:  # nothing is lost: the handler's transaction completed the job
                metrics.by_outcome["succeeded"].inc()
                log.info("the commit in doubt took effect", **job.log_context)
                continue
            metrics.stale.inc()
            log.warning("stale completion dropped", **job.log_context, outcome=outcome.outcome)


def _refused(finished: Finished, error: RefusedData) -> Finished:
    """Return a substitute for an outcome that PostgreSQL rejects, so that the job ends. Validation should prevent such outcomes."""
    job = finished.job
    log.error("outcome refused by the database", **job.log_context, error=str(error))
    reason = "its outcome could not be stored"
    entry = AttemptError(attempt=job.attempt, error=documents.storable(str(error), 500), duration=0.0)
    return finished._replace(outcome=Outcome(id=job.id, claims=job.claims, outcome="dead", reason=reason, error=entry))
