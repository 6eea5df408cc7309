"""Workers: a fixed number of tasks per queue, each running one job at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from jobqueue.engine.executor import Executor, Run
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.metrics import Metrics

LOOP_SHARE = 0.01
"""Seconds for which a worker may go from job to job without letting other tasks run."""


class Workers:
    """All workers of the node.

    Args:
        queues: the queues that they work.
        on_hungry: called when it is time to claim more.
    """

    def __init__(
        self,
        executor: Executor,
        outcomes: Outcomes,
        lease: Lease,
        metrics: Metrics,
        *,
        queues: Iterable[LocalQueue],
        on_hungry: Callable[[], None],
    ) -> None:
        self._executor = executor
        self._outcomes = outcomes
        self._lease = lease
        self._metrics = metrics
        self._queues = list(queues)
        self._on_hungry = on_hungry
        self._all_done = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled. Workers whose queue was closed end by themselves, see `drained`."""
        async with trio.open_nursery() as nursery:
            for queue in self._queues:
                for number in range(queue.concurrency):
                    nursery.start_soon(self._work, queue, name=f"worker {queue.name} {number}")
            task_status.started()
        if not all(queue.ready.closed for queue in self._queues):
            raise RuntimeError("the workers were cancelled from inside: a handler reached into their nursery")
        self._all_done.set()
        await trio.sleep_forever()

    async def drained(self) -> None:
        """Wait until every worker has ended, after their queues were closed."""
        await self._all_done.wait()

    def interrupt(self) -> int:
        """Cancel everything that still runs; the jobs are handed back. Return how many there were."""
        runs = [run for queue in self._queues for run in queue.runs]
        for run in runs:
            run.cancel("interrupted")
        return len(runs)

    def lose_lease(self) -> None:
        """Drop everything that is held: it is another node's now."""
        for queue in self._queues:
            queue.ready.clear()
            for run in queue.runs:
                run.cancel("lease lost")
        self._outcomes.held.clear()

    async def _work(self, queue: LocalQueue) -> None:
        yielded = trio.current_time()
        while True:
            try:
                job = await queue.ready.pop()
            except trio.EndOfChannel:
                return
            node_id = self._lease.node.id
            run = Run(job)
            queue.runs.add(run)
            try:
                outcome = await self._executor.execute(run)
            finally:
                queue.runs.discard(run)
            queue.finished_one()
            self._metrics.of(job.queue, job.kind).run.observe(run.seconds)
            if outcome is not None:
                await self._outcomes.put(job, outcome, node_id)
            if queue.hungry:
                self._on_hungry()
            if trio.current_time() - yielded > LOOP_SHARE:
                await trio.lowlevel.checkpoint()
                yielded = trio.current_time()
