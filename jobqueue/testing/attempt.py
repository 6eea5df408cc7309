"""Run one attempt of a handler with the real executor and without a database."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import trio
import trio_parallel

from jobqueue import admission
from jobqueue.engine.executor import Executor, Run
from jobqueue.engine.handlers import App, Handler
from jobqueue.engine.progress import ProgressWriter
from jobqueue.engine.signals import Signals
from jobqueue.errors import JobQueueError
from jobqueue.exception_groups import leaves
from jobqueue.job import DEFAULT_RETRIES, ClaimedJob, NewJob, Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage.handler_transactions import Transactions
from jobqueue.testing.memory_store import MemoryStore
from jobqueue.testing.submitting import InThreads, submission


class AttemptFailed(JobQueueError):
    """An attempt failed without an exception of the handler: the attempt timed out, or its result is not JSON.

    The message is the one that the service would store in the job's error history.
    """


async def run(app: App, kind: str, payload: Any = None, *, attempt: int = 1, **fields: Any) -> Any:
    """Run one attempt of a job and return the handler's result, converted to JSON and back.

    As in the service, the payload becomes the handler's arguments, the timeout applies, async handlers run in the Trio loop, and
    sync handlers run in a thread. Handlers with ``cpu=True`` run in a thread too, because a process would not see objects that the
    test has patched.

    Args:
        app: the app with the handler.
        kind: the handler's kind.
        payload: a value that JSON can represent; None means ``{}``.
        attempt: the number of the attempt that the handler sees; the first is 1.
        fields: other fields of ``POST /submit``: `timeout`, `max_retries`, `priority` and so on.

    Raises:
        LookupError: the app has no handler for the kind.
        ValueError: `attempt` is less than 1.
        InvalidJob: the service would reject the job; the message names the field.
        PayloadMismatch: the payload does not match the handler's arguments; the message names the field.
        AttemptFailed: the attempt timed out, or the result cannot be stored.
        Exception: the handler's own exception, including `Retry`, `Snooze` and `Discard`.
    """
    app = InThreads(app)
    handler = app.handlers.get(kind)
    if handler is None:
        raise LookupError(f"no handler for kind {kind!r}: the app has {', '.join(sorted(app.handlers)) or 'none'}")
    if attempt < 1:
        raise ValueError(f"attempt must be at least 1, got {attempt}")
    raised: list[BaseException] = []
    watched = _watched(handler, raised)
    async with trio_parallel.open_worker_context() as processes:
        executor = Executor(
            {**app.handlers, kind: watched},
            Metrics(),
            threads=trio.CapacityLimiter(1),
            processes=processes,  # starts no process, because all handlers run in threads
            process_limiter=trio.CapacityLimiter(1),
            notes=ProgressWriter(MemoryStore(), Signals()),  # the notes stay in memory until the attempt ends
            transactions=Transactions("", most=1, keep_finished=True),  # never used: handlers with a connection fail, see InThreads
        )
        outcome = await _run_one(executor, _claimed(handler, payload, attempt, fields))
    if outcome.outcome == "succeeded":
        return None if outcome.result is None else msgspec.json.decode(outcome.result)
    if raised:
        raise raised[0]
    raise AttemptFailed(outcome.error.error if outcome.error is not None else outcome.outcome)


def run_sync(app: App, kind: str, payload: Any = None, *, attempt: int = 1, **fields: Any) -> Any:
    """Call `run` in a new Trio run, for tests that are not async."""
    return trio.run(functools.partial(run, app, kind, payload, attempt=attempt, **fields))


def _claimed(handler: Handler, payload: Any, attempt: int, fields: dict[str, Any]) -> ClaimedJob:
    """Return the job as the database would after a submission and a claim."""
    admitted = admission.admit([submission(handler.kind, payload, fields)], many=False)
    job = msgspec.json.decode(admitted.documents[0], type=NewJob)
    limit = handler.max_retries if job.max_retries is None else job.max_retries
    return ClaimedJob(
        queue=job.queue,
        id=job.id,
        kind=job.kind,
        payload=msgspec.Raw(msgspec.json.encode(job.payload)),
        priority=job.priority,
        attempt=attempt,
        claims=attempt,
        max_retries=DEFAULT_RETRIES if limit is None else limit,
        timeout=job.timeout,
        created_at=datetime.now(UTC).timestamp(),
        rank=0.0,
        waited=0.0,
        options=job.options,
    )


def _watched(handler: Handler, raised: list[BaseException]) -> Handler:
    """Wrap a handler so that its exceptions are appended to `raised`, including errors about its arguments."""

    def arguments(claimed: ClaimedJob) -> dict[str, Any]:
        with _keeping(raised):
            return handler.arguments(claimed)

    def plain(**values: Any) -> Any:
        with _keeping(raised):
            result = handler.function(**values)
        return watched(result) if inspect.iscoroutine(result) else result

    async def awaited(**values: Any) -> Any:
        return await watched(handler.function(**values))

    async def watched(coroutine: Awaitable[Any]) -> Any:
        with _keeping(raised):
            return await coroutine

    function = awaited if handler.mode == "async" else plain
    return msgspec.structs.replace(handler, function=function, arguments=arguments)


@contextmanager
def _keeping(raised: list[BaseException]) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not any(isinstance(leaf, trio.Cancelled) for leaf in leaves(error)):
            raised.append(error)
        raise


async def _run_one(executor: Executor, job: ClaimedJob) -> Outcome:
    jobs, outcomes = [job], []

    async def take(scope: trio.CancelScope) -> Run:
        if not jobs:
            raise trio.EndOfChannel
        return Run(jobs.pop(), "test", scope)

    async def record(_: Run, outcome: Outcome | None) -> None:
        assert outcome is not None, "a test's attempt cannot lose its lease"
        outcomes.append(outcome)

    with suppress(trio.EndOfChannel):
        await executor.run_each(take, record)
    return outcomes[0]
