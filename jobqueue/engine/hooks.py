"""Call the user's hooks, once it is committed that a job died or will be tried again, in a stage of its own: nothing waits.

At most once: what waits here when the process dies is not told to anybody. The dead letters are the record.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple

import msgspec
import structlog
import trio

from jobqueue import logs
from jobqueue.concurrency.trouble import Trouble
from jobqueue.engine.handlers import Hook
from jobqueue.engine.process_call import in_list
from jobqueue.job import DEFAULT_RETRIES, AttemptError, ClaimedJob, Job, Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage.claims import Expired
from jobqueue.storage.store import Recovered, Store

MAX_WAITING = 1_000
"""Calls that may wait; further ones are dropped, and logged."""

AT_ONCE = 4
"""Hooks that run at once, so that one that hangs does not hold the others up."""

HOOK_TIMEOUT = 30.0
"""Seconds for one call of a hook."""

log = structlog.get_logger()

Event = Literal["dead", "retry"]


class _Call(NamedTuple):
    """What to tell. A job that died in the database, and not by an outcome, is only known by its id: it is read first."""

    event: Event
    job: ClaimedJob | str
    error: AttemptError | None = None


class Hooks:
    """The hooks of one app, and the calls that they wait for.

    Args:
        on_dead: what is called with a job that died, and its error.
        on_retry: the same, for a job that will be tried again.
    """

    def __init__(self, store: Store, metrics: Metrics, *, on_dead: Iterable[Hook], on_retry: Iterable[Hook]) -> None:
        self._store = store
        self._metrics = metrics
        self._hooks: dict[Event, list[Hook]] = {"dead": list(on_dead), "retry": list(on_retry)}
        self._threads = trio.CapacityLimiter(math.inf)  # one that outlives its time is left behind
        self._send, self._receive = trio.open_memory_channel[_Call](MAX_WAITING)
        self._dropped = 0
        self.trouble = Trouble("hooks")

    @property
    def any(self) -> bool:
        """Whether there are hooks."""
        return any(self._hooks.values())

    def ended(self, job: ClaimedJob, outcome: Outcome) -> None:
        """Tell that the outcome of a failed attempt is committed."""
        self._put(_Call("retry" if outcome.outcome == "retry" else "dead", job, outcome.error))

    def expired(self, jobs: Iterable[Expired]) -> None:
        """Tell, count and log that jobs died before they were started."""
        for job in jobs:
            if job.reason == "expired":
                self._metrics.of(job.queue, job.kind).expired.inc()
            self._died(job, job.reason)

    def recovered(self, jobs: Iterable[Recovered]) -> None:
        """Tell, count and log what became of the jobs of lost nodes."""
        for job in jobs:
            if job.outcome == "dead":
                self._died(job, job.reason)
            else:
                self._metrics.of(job.queue, job.kind).recovered.inc()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Call until cancelled, or until what waits is done after `close`."""
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._call_each)
            task_status.started()

    def close(self) -> None:
        """Take no more calls."""
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
            if self._dropped & (self._dropped - 1) == 0:  # the first, and then ever fewer of them
                log.warning("a call of a hook was dropped", hook=f"on_{call.event}", so_far=self._dropped, why=type(error).__name__)

    async def _call_each(self) -> None:
        async for call in self._receive:
            with self.trouble.contained():
                found = await self._found(call)
                if found is not None:
                    for hook in self._hooks[call.event]:
                        await self._call(hook, *found)

    async def _found(self, call: _Call) -> tuple[Job, AttemptError] | None:
        """The job, and its last error; None where it cannot be read any more."""
        if isinstance(call.job, ClaimedJob):
            return Job.from_claim(call.job), call.error or AttemptError(attempt=call.job.attempt, error="unknown", duration=0.0)
        row = await self._store.job(call.job)
        return None if row is None or row["state"] != call.event else (_job(row), _error(row))

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
                        await result  # of an async def in a decorator that is a plain def
            if scope.cancelled_caught:
                log.error("a hook did not end in time", hook=hook.name, job_id=job.id, seconds=HOOK_TIMEOUT)
        except BaseException as failure:
            if trio.current_effective_deadline() == -math.inf:
                raise  # the stage itself is being cancelled
            log.exception("a hook failed", hook=hook.name, job_id=job.id, exc_info=failure)
        finally:
            logs.running.set(None)


def _job(row: dict[str, Any]) -> Job:
    """A row of ``jobqueue.jobs`` as a handler would see it; one that was never claimed has no limit of retries yet."""
    given = {name: row[name] for name in ("id", "kind", "queue", "payload", "priority", "attempt")}
    retries = DEFAULT_RETRIES if row["max_retries"] is None else row["max_retries"]
    return Job(**given, max_retries=retries, created_at=datetime.fromisoformat(row["created_at"]))


def _error(row: dict[str, Any]) -> AttemptError:
    """The error that ended a dead job: its last one, unless it was not run for it."""
    if row["reason"] == "expired" or not row["errors"]:
        return AttemptError(attempt=row["attempt"], error=row["reason"], duration=0.0)
    return msgspec.convert(row["errors"][-1], AttemptError)
