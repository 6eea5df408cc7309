"""Run jobs in memory and in virtual time: the parts of a real node, with a store in memory and a simulated clock.

Only PostgreSQL and the clock are simulated. Submissions, claims, workers, timeouts, retries, backoff, snoozes, delays, priorities
and their aging are the service's own code. Whenever all tasks are blocked, `Queue` decides how time passes:

- If a handler's thread is running, or a handler waits for a reply from outside, time passes like real time, so timeouts apply.
- Otherwise all tasks wait for a point in time, and the clock jumps to the next such point.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self

import trio
from trio.testing import wait_all_tasks_blocked

from jobqueue import admission
from jobqueue.concurrency.stages import Stages, open_stages
from jobqueue.engine.handlers import App
from jobqueue.errors import JobQueueError
from jobqueue.job import MAX_RETRIES
from jobqueue.service import Engine, open_engine, start_engine
from jobqueue.settings import Settings
from jobqueue.testing.clock import Clock, in_virtual_time
from jobqueue.testing.memory_store import MemoryStore
from jobqueue.testing.memory_store.state import SECOND
from jobqueue.testing.submitting import InThreads, submission

MAX_RUNS = MAX_RETRIES + 1
"""Maximum number of runs of one job; a drain fails after that. Without a limit, a job that always snoozes would never drain."""

POLL_INTERVAL = 60.0
VISIBILITY_TIMEOUT = 86_400.0
"""Settings of the node, in seconds. These are the maximum values that a node accepts, so that simulated days need few steps."""

KEPT = 10 * 365 * 86_400.0
"""Retention of jobs in seconds, so long that tests can always inspect them."""

LONGEST_JUMP = VISIBILITY_TIMEOUT / 4
"""Maximum seconds of one jump, so that the node can renew its lease."""

LEAST_JUMP = 1e-6
"""Minimum seconds of one jump. Rounding could turn a smaller jump into none."""

LOOK_AGAIN = 0.001
"""Seconds of real time between two checks whether a thread has ended or a reply from outside has arrived."""

ENDED = ("succeeded", "dead", "cancelled")


class NotDrained(JobQueueError):
    """Some jobs will not end, however much time passes; the message lists them."""


class Queue:
    """Queues in memory, and a node that works them: ``async with testing.Queue(app) as queue``.

    It needs a Trio run with a `testing.Clock`: decorate the test with ``@testing.in_virtual_time``. Handlers with ``cpu=True`` run
    in threads. Unfinished jobs are dropped at the end of the block.

    Args:
        app: the app with the handlers.
        queues: the maximum number of jobs that run at once, by queue; None for ``{"default": 16}``.
    """

    def __init__(self, app: App, *, queues: Mapping[str, int] | None = None) -> None:
        worked = {"default": 16} if queues is None else queues
        self._app = InThreads(app)
        self._settings = Settings(
            queues=worked,
            poll_interval=POLL_INTERVAL,
            visibility_timeout=VISIBILITY_TIMEOUT,
            keep_finished=KEPT,
            keep_cancelled=KEPT,
            keep_dead=KEPT,
        )
        self._running: AbstractAsyncContextManager[None] | None = None

    async def __aenter__(self) -> Self:
        clock = trio.lowlevel.current_clock()
        if not isinstance(clock, Clock):
            raise TypeError(
                "testing.Queue needs virtual time: decorate the test with @testing.in_virtual_time, "
                "or, with pytest-trio, use a fixture that returns testing.Clock()"
            )
        self._clock = clock
        self._opened_at = clock.current_time()
        self._store = _Store(trio.current_time)
        self._journey: _Journey | None = None
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Do not pass the test's exception to the nursery, which would wrap it in an exception group.
        assert self._running is not None
        await self._running.__aexit__(None, None, None)

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[None]:
        async with open_stages() as stages:
            async with open_engine(self._app, self._settings, self._store) as engine:
                await start_engine(engine, stages, None)
                await stages.start("time", self._keep_time, engine, stages)
                yield
            self._clock.flow()

    # -- methods for tests

    async def submit(self, kind: str, payload: Any = None, **fields: Any) -> str:
        """Submit a job and return its id.

        Args:
            kind: the handler's kind.
            payload: a value that JSON can represent; None means ``{}``.
            fields: other fields of ``POST /submit``: `delay`, `priority`, `queue` and so on.

        Raises:
            InvalidJob: the service would reject the job; the message names the field.
        """
        admitted = admission.admit([submission(kind, payload, fields)], many=False)
        await self._engine.submissions.submit(admitted)
        return admitted.ids[0]

    async def drain(self) -> None:
        """Let time pass until every job has ended, including retries, snoozes and delays.

        Raises:
            NotDrained: no worker runs the jobs that are left (for example, no node works their queue), or a job has run more than
                `MAX_RUNS` times.
        """
        await self._travel(_Journey(math.inf))

    async def advance(self, seconds: float) -> None:
        """Let `seconds` seconds pass. Run everything that is due during this time, or at its end."""
        await self._travel(_Journey(trio.current_time() + seconds))

    @property
    def now(self) -> float:
        """Seconds since the queue was opened, to the millisecond."""
        return round(trio.current_time() - self._opened_at, 3)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as ``GET /jobs/{id}`` shows it.

        Raises:
            KeyError: no job has this id.
        """
        for job in self.jobs():
            if job["id"] == job_id:
                return job
        raise KeyError(job_id)

    def jobs(self, *, state: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """Return all jobs, or only the jobs of one state or kind, in the order of their submission."""
        return [job for job in self._store.snapshot() if state in (None, job["state"]) and kind in (None, job["kind"])]

    @property
    def succeeded(self) -> list[dict[str, Any]]:
        """The jobs that succeeded."""
        return self.jobs(state="succeeded")

    @property
    def dead(self) -> list[dict[str, Any]]:
        """The dead letters."""
        return self.jobs(state="dead")

    # -- how time passes

    async def _travel(self, journey: _Journey) -> None:
        if self._journey is not None:
            raise RuntimeError("another task is already draining or advancing the queue")
        self._journey = journey
        try:
            await journey.over.wait()
        finally:
            self._journey = None
        if journey.trouble is not None:
            raise NotDrained(journey.trouble)

    async def _keep_time(
        self, engine: Engine, stages: Stages, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._engine = engine
        await wait_all_tasks_blocked()
        waited_for = _waited_for_from_outside()  # waits of Trio itself, and of servers that the test runs
        task_status.started()
        while True:
            await wait_all_tasks_blocked()
            self._clock.stand_still()
            if self._journey is not None and stages.failure is not None:
                self._journey.end(str(stages.failure))
            elif self._works_outside(waited_for):
                self._clock.flow()
                await wait_all_tasks_blocked(LOOK_AGAIN)
            else:
                self._pass_time()

    def _works_outside(self, waited_for: int) -> bool:
        """Return whether a handler or a thread is waiting for something that needs real time."""
        runs = [run for queue in self._engine.queues.values() for run in queue.runs]
        handlers = [self._app.handlers.get(run.job.kind) for run in runs]
        if any(handler is not None and handler.mode == "thread" for handler in handlers):
            return True
        if trio.to_thread.current_default_thread_limiter().borrowed_tokens:
            return True
        return bool(runs or self._journey is None) and _waited_for_from_outside() > waited_for

    def _pass_time(self) -> None:
        journey = self._journey
        steps = [trio.lowlevel.current_statistics().seconds_to_next_deadline]
        if journey is not None:
            drained = self._store.drained
            now = trio.current_time()
            idle = not self._engine.outcomes.held
            due = self._store.next_due()
            if now >= journey.until or (math.isinf(journey.until) and idle and drained):
                journey.end()
                return
            if idle:
                # Skip the node's periodic tasks, because nothing happens before the next due job.
                steps = [due, LONGEST_JUMP] if 0 < due < math.inf or drained else steps
            steps.append(journey.until - now)
            journey.watch(self._store, waiting=idle and math.isinf(due), now=now)
        self._clock.jump(max(LEAST_JUMP, min(steps)))


class _Journey:
    """A period that ends at the time `until`. If `until` is infinity, the period ends when the queue is drained."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.over = trio.Event()
        self.trouble: str | None = None
        self._waiting_since: float | None = None

    def end(self, trouble: str | None = None) -> None:
        self.trouble = trouble
        self.over.set()

    def watch(self, store: _Store, *, waiting: bool, now: float) -> None:
        """End a drain that would otherwise never end."""
        if not waiting:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if math.isinf(self.until):
            if restless := store.restless():
                self.end(f"{restless} has run more than {MAX_RUNS} times and has not ended")
            elif self._waiting_since is not None and now - self._waiting_since > 2 * POLL_INTERVAL:
                self.end(f"no worker runs the jobs that are left: {store.left()}")


class _Store(MemoryStore):
    """The store, with the methods that decide how time passes."""

    @property
    def drained(self) -> bool:
        """Whether every job has ended."""
        return all(row.state in ENDED for row in self._rows.values())

    def left(self) -> str:
        """Describe the jobs that have not ended."""
        return ", ".join(_described(row) for row in self._rows.values() if row.state not in ENDED)

    def restless(self) -> str | None:
        """Describe a job that has run more than `MAX_RUNS` times and has not ended; None if there is none."""
        return next((_described(row) for row in self._rows.values() if row.claims > MAX_RUNS and row.state not in ENDED), None)

    def next_due(self) -> float:
        """Return the seconds until a scheduled job or schedule is due, or a job expires; infinity if there is none."""
        due = [row.run_at for row in self._in("scheduled") if row.run_at is not None]
        due += [schedule.next_at for schedule in self._schedules.values() if schedule.next_at is not None]
        waiting = [*self._in("pending"), *self._in("scheduled")]
        due += [round(row.options["expires_at"] * SECOND) for row in waiting if row.options and "expires_at" in row.options]
        return max(0.0, (min(due) - self._now()) / SECOND) if due else math.inf


def _described(row: Any) -> str:
    return f"job {row.id} of kind {row.kind!r} in queue {row.queue!r} ({row.state})"


def _waited_for_from_outside() -> int:
    """Return the number of tasks that wait for a socket, a pipe or a process."""
    statistics = trio.lowlevel.current_statistics().io_statistics
    return sum(getattr(statistics, name, 0) for name in ("tasks_waiting_read", "tasks_waiting_write", "tasks_waiting"))


def drain(app: App, jobs: Iterable[tuple[str, Any]], *, queues: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Submit jobs to a `Queue`, drain it, and return the ended jobs. For tests that are not async.

    Args:
        app: the app with the handlers.
        jobs: pairs of a kind and a payload.
        queues: see `Queue`.

    Raises:
        InvalidJob, NotDrained: see `Queue`.
    """

    @in_virtual_time
    async def drained() -> list[dict[str, Any]]:
        async with Queue(app, queues=queues) as queue:
            ids = [await queue.submit(kind, payload) for kind, payload in jobs]
            await queue.drain()
            ended = {job["id"]: job for job in queue.jobs()}
            return [ended[job_id] for job_id in ids]

    return drained()
