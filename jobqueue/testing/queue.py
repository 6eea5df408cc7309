"""A queue in memory, in virtual time: the parts of a real node over a store in memory, and somebody who keeps the time.

Nothing is imitated but PostgreSQL and the clock: submissions, claims, workers, timeouts, retries, backoff, snoozes, delays,
priorities and their aging are the service's own. Whenever all tasks are blocked, the keeper looks at what they wait for:

- a handler's thread, or a reply from outside while a handler runs: time flows as it does outside, so that timeouts hold;
- anything else waits for time alone: it jumps to when the next thing happens.
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
from jobqueue.testing.memory_store import SECOND, MemoryStore
from jobqueue.testing.submitting import InThreads, submission

MAX_RUNS = MAX_RETRIES + 1
"""How often one job may run before a drain is given up: one that snoozes for ever would keep it for ever."""

POLL_INTERVAL = 60.0
VISIBILITY_TIMEOUT = 86_400.0
"""Of the node, in seconds: the longest that there are, as every beat costs a look in a day that passes in a moment."""

KEPT = 10 * 365 * 86_400.0
"""Seconds that jobs are kept after their end: a test may look at them whenever it wants to."""

LONGEST_JUMP = VISIBILITY_TIMEOUT / 4
"""Seconds to jump over at once: the node must get to renew its lease."""

LEAST_JUMP = 1e-6
"""Seconds to jump over at once, at the least: as sums go, less might be nothing."""

LOOK_AGAIN = 0.001
"""Seconds, outside, between two looks at whether a thread or a reply from outside has come."""

ENDED = ("succeeded", "dead", "cancelled")


class NotDrained(JobQueueError):
    """Jobs are left that time alone does not bring to an end; the message says which."""


class Queue:
    """Queues in memory with a node that works them: ``async with testing.Queue(app) as queue``.

    It needs a Trio run on a `testing.Clock`: write ``@testing.in_virtual_time`` above the test. Handlers with ``cpu=True`` run in
    threads. What is not drained is forgotten at the end.

    Args:
        app: the handlers.
        queues: how many jobs of each queue run at once.
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
                "a testing.Queue needs virtual time: write @testing.in_virtual_time above the test, "
                "or, with pytest-trio, ask for a fixture that returns testing.Clock()"
            )
        self._clock = clock
        self._opened_at = clock.current_time()
        self._store = _Store(trio.current_time)
        self._journey: _Journey | None = None
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What the test raised is not told to the nursery, which would wrap it in a group.
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

    # -- what a test does

    async def submit(self, kind: str, payload: Any = None, **fields: Any) -> str:
        """Submit a job and return its id.

        Args:
            kind: names the handler.
            payload: what JSON can say; None is ``{}``.
            fields: whatever else a job can ask for, as in ``POST /submit``: `delay`, `priority`, `queue` and so on.

        Raises:
            InvalidJob: the service would refuse it; the message names the field.
        """
        admitted = admission.admit([submission(kind, payload, fields)], many=False)
        await self._engine.submissions.submit(admitted)
        return admitted.ids[0]

    async def drain(self) -> None:
        """Let time pass until every job has ended: retries, snoozes and delays included.

        Raises:
            NotDrained: jobs are left that no worker takes (of a queue that is not worked, say), or one runs on and on.
        """
        await self._travel(_Journey(math.inf))

    async def advance(self, seconds: float) -> None:
        """Let so many seconds pass, with all that happens in them and at their end."""
        await self._travel(_Journey(trio.current_time() + seconds))

    @property
    def now(self) -> float:
        """Seconds since the queue was opened, to the millisecond."""
        return round(trio.current_time() - self._opened_at, 3)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as ``GET /jobs/{id}`` shows it.

        Raises:
            KeyError: there is none with this id.
        """
        for job in self.jobs():
            if job["id"] == job_id:
                return job
        raise KeyError(job_id)

    def jobs(self, *, state: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the jobs, all or those of a state or a kind, in the order of their submission."""
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
            raise RuntimeError("the queue is being drained or advanced already")
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
        waited_for = _waited_for_from_outside()  # by Trio itself, and by a server of the test's own
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
        """Whether something is under way that no jump of the clock brings nearer."""
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
                # Nothing happens before: no need to stop at each beat of the node's parts.
                steps = [due, LONGEST_JUMP] if 0 < due < math.inf or drained else steps
            steps.append(journey.until - now)
            journey.watch(self._store, waiting=idle and math.isinf(due), now=now)
        self._clock.jump(max(LEAST_JUMP, min(steps)))


class _Journey:
    """Time that passes until a moment, or (infinity) until the queue is drained."""

    def __init__(self, until: float) -> None:
        self.until = until
        self.over = trio.Event()
        self.trouble: str | None = None
        self._waiting_since: float | None = None

    def end(self, trouble: str | None = None) -> None:
        self.trouble = trouble
        self.over.set()

    def watch(self, store: _Store, *, waiting: bool, now: float) -> None:
        """End a drain that would never end."""
        if not waiting:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if math.isinf(self.until):
            if restless := store.restless():
                self.end(f"{restless} has run more than {MAX_RUNS} times, and goes on")
            elif self._waiting_since is not None and now - self._waiting_since > 2 * POLL_INTERVAL:
                self.end(f"no worker takes what is left: {store.left()}")


class _Store(MemoryStore):
    """The store, as the keeper of the time looks at it."""

    @property
    def drained(self) -> bool:
        """Whether every job has ended."""
        return all(row.state in ENDED for row in self._rows.values())

    def left(self) -> str:
        """Say which jobs have not ended."""
        return ", ".join(_described(row) for row in self._rows.values() if row.state not in ENDED)

    def restless(self) -> str | None:
        """Say which job runs again and again."""
        return next((_described(row) for row in self._rows.values() if row.claims > MAX_RUNS and row.state not in ENDED), None)

    def next_due(self) -> float:
        """Seconds until a scheduled job or a schedule is due, or a job expires; infinity when there is none."""
        due = [row.run_at for row in self._in("scheduled") if row.run_at is not None]
        due += [schedule.next_at for schedule in self._schedules.values() if schedule.next_at is not None]
        waiting = [*self._in("pending"), *self._in("scheduled")]
        due += [round(row.options["expires_at"] * SECOND) for row in waiting if row.options and "expires_at" in row.options]
        return max(0.0, (min(due) - self._now()) / SECOND) if due else math.inf


def _described(row: Any) -> str:
    return f"job {row.id} of kind {row.kind!r} in queue {row.queue!r} ({row.state})"


def _waited_for_from_outside() -> int:
    """How many tasks wait for a socket, a pipe or a process."""
    statistics = trio.lowlevel.current_statistics().io_statistics
    return sum(getattr(statistics, name, 0) for name in ("tasks_waiting_read", "tasks_waiting_write", "tasks_waiting"))


def drain(app: App, jobs: Iterable[tuple[str, Any]], *, queues: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Submit jobs to a `Queue`, drain it, and return them as they ended: for a plain test function.

    Args:
        app: the handlers.
        jobs: a kind and a payload each.
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
