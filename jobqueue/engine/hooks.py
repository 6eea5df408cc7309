"""Call the user's hooks after the commit that marked a job dead or due for a retry. No job waits for a hook.

Each hook is called at most once per event. Calls that are still waiting when the process ends are
lost. The dead letters are the reliable record.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Literal, NamedTuple

import msgspec
import structlog
import trio

from jobqueue import logs
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.handlers import Hook
from jobqueue.engine.process_call import in_list
from jobqueue.engine.signals import Finished, Signals
from jobqueue.job import DEFAULT_RETRIES, AttemptError, ClaimedJob, Job
from jobqueue.metrics import Metrics
from jobqueue.storage.claims import Expired
from jobqueue.storage.roles.inspect import InspectStore, StoredJob
from jobqueue.storage.roles.run import Recovered

MAX_WAITING = 1_000
"""Maximum number of waiting calls. Further calls are dropped and logged."""

AT_ONCE = 4
"""Number of hooks that run concurrently, so that a slow hook does not delay the others."""

HOOK_TIMEOUT = 30.0
"""Timeout of one hook call, in seconds."""

log = structlog.get_logger()

Event = Literal["dead", "retry"]


class _Call(NamedTuple):
    """One event. If the job died in the database, without an outcome of a run, only its id is known, and the job is read first."""

    event: Event
    job: ClaimedJob | str
    error: AttemptError | None = None


class Hooks:
    """The hooks of one app, and the queue of their calls.

    Args:
        on_dead: hooks to call with a dead job and its error.
        on_retry: hooks to call with a job that will be retried, and its error.
    """

    def __init__(
        self, store: InspectStore, metrics: Metrics, signals: Signals, *, on_dead: Iterable[Hook], on_retry: Iterable[Hook]
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._hooks: dict[Event, list[Hook]] = {"dead": list(on_dead), "retry": list(on_retry)}
        self._threads = trio.CapacityLimiter(math.inf)  # no limit, because an abandoned thread keeps its place
        self._send, self._receive = trio.open_memory_channel[_Call](MAX_WAITING)
        self._dropped = 0
        self.trouble = Trouble("hooks")
        if self.any:
            signals.outcomes_written.subscribe(self.written)
        signals.jobs_expired.subscribe(self.expired)
        signals.jobs_recovered.subscribe(self.recovered)

    @property
    def any(self) -> bool:
        """Whether the app has hooks."""
        return any(self._hooks.values())

    def written(self, batch: Iterable[Finished]) -> None:
        """Call the hooks for the failed attempts of a committed batch."""
        for job, outcome, *_ in batch:
            if outcome.error is not None:
                self._put(_Call("retry" if outcome.outcome == "retry" else "dead", job, outcome.error))

    def expired(self, jobs: Iterable[Expired]) -> None:
        """Call the hooks for jobs that died before they started; count and log them."""
        for job in jobs:
            if job.reason == "expired":
                self._metrics.of(job.queue, job.kind).expired.inc()
            self._died(job, job.reason)

    def recovered(self, jobs: Iterable[Recovered]) -> None:
        """Call the hooks for the dead jobs of lost nodes; count all recovered jobs."""
        for job in jobs:
            if job.outcome == "dead":
                self._died(job, job.reason)
            else:
                self._metrics.of(job.queue, job.kind).recovered.inc()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call hooks until cancelled. After `close`, make the waiting calls and return."""
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._call_each)
            task_status.started()

    def close(self) -> None:
        """Accept no more calls."""
        self._send.close()

    def _died(self, job: Expired | Recovered, reason: str | None) -> None:
        self._metrics.of(job.queue, job.kind).dead.inc()
        log.error("job died", job_id=job.id, kind=job.kind, queue=job.queue, attempt=job.attempt, reason=reason)
        self._put(_Call("dead", job.id))

    def _put(self, call: _Call) -> None:
        if not self._hooks[call.event]:
            return
        try:
            self._send.send_nowait(call)
        except (trio.WouldBlock, trio.ClosedResourceError) as error:
            self._dropped += 1
            if self._dropped & (self._dropped - 1) == 0:  # log with exponentially decreasing frequency
                log.warning("a hook call was dropped", hook=f"on_{call.event}", so_far=self._dropped, why=type(error).__name__)

    async def _call_each(self) -> None:
        async for call in self._receive:
            with self.trouble.contained():
                found = await self._found(call)
                if found is not None:
                    for hook in self._hooks[call.event]:
                        await self._call(hook, *found)

    async def _found(self, call: _Call) -> tuple[Job, AttemptError] | None:
        """Return the job and its last error; None if the job can no longer be read."""
        if isinstance(call.job, ClaimedJob):
            return Job.from_claim(call.job), call.error or AttemptError(attempt=call.job.attempt, error="unknown", duration=0.0)
        stored = await self._store.job(call.job)
        return None if stored is None or stored.state != call.event else (_job(stored), _error(stored))

    async def _call(self, hook: Hook, job: Job, error: AttemptError) -> None:
        logs.running.set(job)
        try:
            with trio.move_on_after(HOOK_TIMEOUT) as scope:
                if hook.is_async:
                    await hook.function(job, error)
                else:
                    call = partial(hook.function, job, error)
                    [result] = await trio.to_thread.run_sync(in_list, call, abandon_on_cancel=True, limiter=self._threads)
                    if inspect.iscoroutine(result):
                        await result  # a plain wrapper around an async def returns a coroutine
            if scope.cancelled_caught:
                log.error("a hook did not end in time", hook=hook.name, job_id=job.id, seconds=HOOK_TIMEOUT)
        except BaseException as failure:
            if trio.current_effective_deadline() == -math.inf:
                raise  # this stage is being cancelled
            log.exception("a hook failed", hook=hook.name, job_id=job.id, exc_info=failure)
        finally:
            logs.running.set(None)


def _job(stored: StoredJob) -> Job:
    """Convert a stored job to a handler's `Job`. A job that was never claimed gets the default retry limit."""
    given = {name: getattr(stored, name) for name in ("id", "kind", "queue", "payload", "priority", "attempt")}
    retries = DEFAULT_RETRIES if stored.max_retries is None else stored.max_retries
    return Job(**given, max_retries=retries, created_at=datetime.fromisoformat(stored.created_at))


def _error(stored: StoredJob) -> AttemptError:
    """Return the last error of a dead job, or its reason if no attempt caused its death."""
    if stored.reason == "expired" or not stored.errors:
        return AttemptError(attempt=stored.attempt, error=str(stored.reason), duration=0.0)
    return msgspec.convert(stored.errors[-1], AttemptError)
