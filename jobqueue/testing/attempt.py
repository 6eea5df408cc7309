"""One attempt of a handler, without any database: the real executor runs it, and its caller gets what came of it."""

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
from jobqueue.engine.notes import Notes
from jobqueue.errors import JobQueueError
from jobqueue.job import DEFAULT_RETRIES, ClaimedJob, NewJob, Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage.transactions import Transactions
from jobqueue.testing.memory_store import MemoryStore
from jobqueue.testing.submitting import InThreads, submission


class AttemptFailed(JobQueueError):
    """An attempt failed for a reason that the handler did not raise: its time was over, or its result is no JSON.

    The message is the one that the job's error history would have.
    """


async def run(app: App, kind: str, payload: Any = None, *, attempt: int = 1, **fields: Any) -> Any:
    """Run one attempt of a job and return the handler's result as a client would see it: after its way through JSON.

    The payload becomes arguments, the timeout holds, an async handler runs on the loop and a sync one in a thread, as in the
    service. One with ``cpu=True`` runs in a thread too: its process would not see what a test has replaced.

    Args:
        app: has the handler.
        kind: names the handler.
        payload: what JSON can say; None is ``{}``.
        attempt: which one it is to the handler: 1 is the first.
        fields: whatever else a job can ask for, as in ``POST /submit``: `timeout`, `max_retries`, `priority` and so on.

    Raises:
        LookupError: the app has no handler for the kind.
        InvalidJob: the job could not be submitted; the message names the field.
        PayloadMismatch: the payload does not fit the handler's arguments; the message names the field.
        AttemptFailed: the attempt timed out, or the result cannot be stored.
        Exception: what the handler raised; `Retry`, `Snooze` and `Discard` too, as they are.
    """
    app = InThreads(app)
    handler = app.handlers.get(kind)
    if handler is None:
        raise LookupError(f"no handler for kind {kind!r}: the app has {', '.join(sorted(app.handlers)) or 'none'}")
    if attempt < 1:
        raise ValueError(f"attempt counts from 1, got {attempt}")
    raised: list[BaseException] = []
    watched = _watched(handler, raised)
    async with trio_parallel.open_worker_context() as processes:
        executor = Executor(
            {**app.handlers, kind: watched},
            Metrics(),
            threads=trio.CapacityLimiter(1),
            processes=processes,  # it starts one when asked to, and nobody asks
            process_limiter=trio.CapacityLimiter(1),
            notes=Notes(MemoryStore(), on_noted=_nothing),  # what is noted is in memory, and forgotten with the attempt
            transactions=Transactions("", most=1, keep_finished=True),  # see InThreads
        )
        outcome = await _run_one(executor, _claimed(handler, payload, attempt, fields))
    if outcome.outcome == "succeeded":
        return None if outcome.result is None else msgspec.json.decode(outcome.result)
    if raised:
        raise raised[0]
    raise AttemptFailed(outcome.error.error if outcome.error is not None else outcome.outcome)


def run_sync(app: App, kind: str, payload: Any = None, *, attempt: int = 1, **fields: Any) -> Any:
    """Do what `run` does where no Trio runs: in a plain test function."""
    return trio.run(functools.partial(run, app, kind, payload, attempt=attempt, **fields))


def _claimed(handler: Handler, payload: Any, attempt: int, fields: dict[str, Any]) -> ClaimedJob:
    """Submit and claim in one: what the database would make of it."""
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
    """Keep what the handler raises, or the reading of its arguments."""

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
        is_cancellation = isinstance(error, trio.Cancelled) or (
            isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None
        )
        if not is_cancellation:
            raised.append(error)
        raise


def _nothing(*_: object) -> None:
    """Nobody watches."""


async def _run_one(executor: Executor, job: ClaimedJob) -> Outcome:
    jobs, outcomes = [job], []

    async def take(scope: trio.CancelScope) -> Run:
        if not jobs:
            raise trio.EndOfChannel
        return Run(jobs.pop(), "test", scope)

    async def record(_: Run, outcome: Outcome | None) -> None:
        assert outcome is not None, "there is no lease to be lost"
        outcomes.append(outcome)

    with suppress(trio.EndOfChannel):
        await executor.run_each(take, record)
    return outcomes[0]
