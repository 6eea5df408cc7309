"""Workers: a fixed number of tasks per queue, each running one job at a time."""

from __future__ import annotations

from collections.abc import Iterable

import structlog
import trio

from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.executor import Executor, Run, is_late
from jobqueue.engine.keeping import slot_of_task
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.signals import Signals
from jobqueue.job import ClaimedJob, Outcome
from jobqueue.keeper.node_state import NO_SLOT, NodeState
from jobqueue.metrics import Metrics
from jobqueue.storage.roles.run import RunId

LOOP_SHARE = 0.001
"""Maximum time for which workers go from job to job before they let other tasks run, in seconds."""

LOOK_FOR_STUBBORN = 1.0
"""Seconds between two checks for handlers that do not stop when cancelled."""

log = structlog.get_logger()


class Workers:
    """All workers of the node.

    Args:
        queues: the queues of the workers.
        node_state: marks running jobs for the keeper; None without a keeper.
    """

    def __init__(
        self,
        executor: Executor,
        outcomes: Outcomes,
        lease: Lease,
        metrics: Metrics,
        signals: Signals,
        *,
        queues: Iterable[LocalQueue],
        node_state: NodeState | None = None,
    ) -> None:
        self._executor = executor
        self._outcomes = outcomes
        self._lease = lease
        self._metrics = metrics
        self._signals = signals
        self._queues = list(queues)
        self._node_state = node_state
        self._all_done = trio.Event()
        self._working = 0
        self._withdrawn: list[tuple[ClaimedJob, str]] = []
        self._ended = trio.lowlevel.ParkingLot()
        self._yielded_at = trio.current_time()
        self.trouble = Trouble("workers")
        signals.lease_lost.subscribe(self.lose_lease)
        signals.runs_unwanted.subscribe(self.cancel)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run jobs until cancelled. Workers end when their queue is closed, see `drained`."""
        async with trio.open_nursery() as nursery:
            for queue in self._queues:
                for number in range(queue.concurrency):
                    self._start_worker(nursery, queue, number)
            task_status.started()
            while self._working:
                with trio.move_on_after(LOOK_FOR_STUBBORN):
                    await self._ended.park()
                with self.trouble.contained():
                    await self._give_up_stubborn_runs(nursery)
                    await self._record_withdrawn()
            if not all(queue.ready.closed for queue in self._queues):
                raise RuntimeError("all workers ended outside of a shutdown: a handler changed their nursery")
            self._all_done.set()
            await trio.sleep_forever()

    async def drained(self) -> None:
        """Wait until every worker has ended, after all queues were closed."""
        await self._all_done.wait()

    def interrupt(self) -> int:
        """Cancel all running jobs, which are then released. Return their number."""
        runs = [run for queue in self._queues for run in queue.runs]
        for run in runs:
            run.cancel("interrupted")
        return len(runs)

    def cancel(self, unwanted: Iterable[RunId]) -> None:
        """Cancel these runs on this node. A job that has not started does not start."""
        named = frozenset(unwanted)
        for queue in self._queues:
            waiting = queue.ready.withdraw(lambda job: (job.id, job.claims) in named)
            self._withdrawn += [(job, self._lease.node.id) for job in waiting]
            for run in [run for run in queue.runs if (run.job.id, run.job.claims) in named]:
                run.cancel("cancelled")
        if self._withdrawn:
            self._ended.unpark_all()

    def excuse(self, seconds: float) -> None:
        """Extend the time of all running jobs by `seconds`, because they could not end while the loop was blocked."""
        for queue in self._queues:
            for run in queue.runs:
                run.excuse(seconds)

    def lose_lease(self) -> None:
        """Drop all claimed jobs, because other nodes have them now."""
        for queue in self._queues:
            queue.ready.clear()
            for run in queue.runs:
                run.cancel("lease lost")
        self._outcomes.held.clear()

    def _start_worker(self, nursery: trio.Nursery, queue: LocalQueue, number: int) -> None:
        self._working += 1
        nursery.start_soon(self._work, nursery, queue, number, name=f"worker {queue.name} {number}")

    async def _give_up_stubborn_runs(self, nursery: trio.Nursery) -> None:
        """Record the outcomes of handlers that do not stop, and start a new worker for each."""
        for queue in self._queues:
            for run in [run for run in queue.runs if run.stubborn]:
                if run not in queue.runs:
                    continue  # the handler ended while another outcome was recorded
                queue.runs.discard(run)
                queue.finished_one()
                self._working -= 1
                self._start_worker(nursery, queue, queue.concurrency)
                outcome = self._executor.give_up(run)
                await self._tell(run, outcome)

    async def _record_withdrawn(self) -> None:
        """Record the outcomes of jobs that were cancelled before they started."""
        while self._withdrawn:
            job, node_id = self._withdrawn.pop()
            await self._outcomes.put(job, Outcome(id=job.id, claims=job.claims, outcome="cancelled"), node_id)

    async def _work(self, nursery: trio.Nursery, queue: LocalQueue, number: int) -> None:
        taken: Run | None = None
        slot = NO_SLOT if self._node_state is None else self._node_state.take_slot(queue.name)
        slot_of_task.set(slot.number)
        enter, leave = slot.enter, slot.leave

        async def take(scope: trio.CancelScope) -> Run:
            # This function has no checkpoint if a job is ready. `_record` lets other tasks run.
            nonlocal taken
            job = queue.ready.pop_nowait() if queue.ready else await queue.ready.pop()
            while job.options is not None and is_late(job):
                await self._outcomes.release([job])
                job = await queue.ready.pop()
            taken = run = Run(job, self._lease.node.id, scope)
            queue.runs.add(run)
            enter(job)
            return run

        async def record(run: Run, outcome: Outcome | None) -> None:
            leave()
            if run.state == "abandoned":
                log.info("an abandoned handler has ended", **run.job.log_context)
                raise _Replaced
            queue.runs.discard(run)
            await self._record(queue, run, outcome)

        try:
            await self._executor.run_each(take, record)
        except trio.EndOfChannel:
            pass
        except _Replaced:
            return
        except Exception as error:  # noqa: BLE001 - one job's error must not end the worker
            self._lose(queue, taken, error)
            await trio.sleep(self.trouble.pause)
            self._start_worker(nursery, queue, number)
        finally:
            slot.free()
        self._working -= 1
        self._ended.unpark_all()

    def _lose(self, queue: LocalQueue, run: Run | None, error: Exception) -> None:
        """Forget a run whose outcome could not be recorded. The dispatcher's audit releases its job."""
        self.trouble.failed(error)
        if run is not None:
            log.error("the outcome of a run is lost: the job is released", **run.job.log_context)
            queue.runs.discard(run)
            self._outcomes.held.discard((run.job.id, run.job.claims))

    async def _record(self, queue: LocalQueue, run: Run, outcome: Outcome | None) -> None:
        now = trio.current_time()
        queue.finished_one()
        self._metrics.of(run.job.queue, run.job.kind).run.observe(now - run.started)
        if outcome is not None and run.handle is None and run.state == "running":
            await self._outcomes.put(run.job, outcome, run.node_id)  # the common case, without further calls
        else:
            await self._tell(run, outcome)
        if queue.hungry:
            self._signals.workers_hungry.publish()
        if now - self._yielded_at > LOOP_SHARE:
            await trio.lowlevel.checkpoint()
            self._yielded_at = trio.current_time()

    async def _tell(self, run: Run, outcome: Outcome | None) -> None:
        """Record an outcome, together with the run's unwritten notes."""
        if run.handle is not None:
            left = run.handle.close()
            if outcome is not None:
                outcome.saved = left
        if outcome is None:
            return
        if run.state in ("committed", "stale"):
            self._outcomes.note(run.job, outcome, run.node_id, stale=run.state == "stale")
        else:
            await self._outcomes.put(run.job, outcome, run.node_id, in_doubt=run.state == "in doubt")


class _Replaced(Exception):
    """The worker's run was abandoned, and another worker has taken its place."""
