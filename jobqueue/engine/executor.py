"""Run one attempt of a job and return its outcome. This module contains no SQL.

payload -> arguments -> cancel scope with the timeout -> handler -> verdict
"""

from __future__ import annotations

import functools
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec
import structlog
import trio
import trio_parallel
from msgspec.structs import force_setattr

from jobqueue import documents, logs, tracing
from jobqueue.engine.handlers import Handler, PayloadMismatch
from jobqueue.engine.process_call import HandlerFailed, call_handler, error_line, in_list, text_of, unstorable
from jobqueue.engine.progress import Handle, ProgressWriter
from jobqueue.errors import CommitInDoubt, Discard, NoConnection, Retry, Snooze
from jobqueue.exception_groups import leaves, unwrapped
from jobqueue.job import MAX_DELAY, MAX_RESULT_BYTES, AttemptError, ClaimedJob, Outcome
from jobqueue.keeper.node_state import NodeState
from jobqueue.metrics import Metrics
from jobqueue.retry import DEFAULT_BACKOFF
from jobqueue.storage.handler_transactions import Transactions

if TYPE_CHECKING:
    from jobqueue.spans import HandlerSpan, HandlerSpans

MAX_ERROR_LENGTH = 4_000
MAX_TRACEBACK_LENGTH = 16_000
"""Maximum length of an error's text and of its traceback, in characters. A job keeps its last ten errors."""

STOP_SECONDS = 2.0
"""Seconds that an async handler may take to end after its cancellation. Then the worker abandons its task."""

T = TypeVar("T")

log = structlog.get_logger()

Cause = Literal["interrupted", "cancelled", "lease lost"]
"""Why a run ends early: a shutdown, a request to cancel the job, or another node that holds the job now."""

State = Literal["running", Cause, "abandoned", "committed", "stale", "in doubt"]


class Run:
    """One job while it runs on this node. Call `cancel` to end it early.

    ::

        running ──> interrupted, cancelled ──> lease lost
           │                 │                     │
           ├─────────────────┴─────────────────────┴──> abandoned
           └──> committed, stale, in doubt

    - *running*: the handler runs. A run whose timeout has passed is still in this state.
    - *interrupted*, *cancelled*, *lease lost*: `cancel` has cancelled the handler, for this cause. The first cause counts, except
      that a lost lease replaces any other cause.
    - *abandoned*: the handler did not end when cancelled. The worker has recorded the outcome and stopped waiting for the handler.
    - *committed*: the handler's transaction has completed the job. This also replaces a cause.
    - *stale*: that transaction was rolled back, because the run no longer belongs to this node.
    - *in doubt*: that transaction lost its connection during the commit.

    Args:
        scope: the cancel scope of the handler. Runs share a scope until one of them is cancelled.

    Attributes:
        handle: the part of the run that the handler's `Job` uses; None if the handler does not receive the job.
        span: the run's trace span; None without tracing.
    """

    __slots__ = ("cancelled_at", "handle", "job", "node_id", "scope", "span", "started", "state", "timeout")

    def __init__(self, job: ClaimedJob, node_id: str, scope: trio.CancelScope) -> None:
        self.job = job
        self.node_id = node_id
        self.scope = scope
        self.started = trio.current_time()
        self.timeout: float | None = None
        self.state: State = "running"
        self.cancelled_at = math.inf
        self.handle: Handle | None = None
        self.span: HandlerSpan | None = None

    def limit(self, timeout: float) -> None:
        """Set the deadline of the handler: `timeout` seconds after its start."""
        self.timeout = timeout
        self.scope.deadline = self.started + timeout
        self.cancelled_at = min(self.cancelled_at, self.scope.deadline)

    def excuse(self, seconds: float) -> None:
        """Extend the handler's timeout, and its time to stop, by the seconds for which the loop was blocked."""
        self.cancelled_at += seconds
        if self.timeout is not None:
            self.scope.deadline += seconds

    def cancel(self, cause: Cause) -> None:
        """Cancel the handler. The state determines the outcome."""
        if self.state == "running" or cause == "lease lost":
            self.state = cause
        self.cancelled_at = min(self.cancelled_at, trio.current_time())
        if self.handle is not None:
            self.handle.cancelled = True
        self.scope.cancel(reason=cause)

    @property
    def stubborn(self) -> bool:
        """Return whether the handler still runs more than `STOP_SECONDS` after its cancellation."""
        return trio.current_time() - self.cancelled_at > STOP_SECONDS

    @property
    def seconds(self) -> float:
        """Seconds since the run started."""
        return trio.current_time() - self.started


def run_of(frames: Iterable[FrameType]) -> Run | None:
    """Return the run that these frames of a task belong to; None if there is none."""
    code = Executor._attempt.__code__  # noqa: SLF001 - the frame that has the run as a local variable
    found = (frame.f_locals.get("run") for frame in frames if frame.f_code is code)
    return next((run for run in found if isinstance(run, Run)), None)


def is_late(job: ClaimedJob) -> bool:
    """Return whether it is too late to start the job, by this node's estimate of its expiry time.

    The worker releases a late job. The next claim decides with PostgreSQL's clock whether the job has
    expired, and marks it dead if so.
    """
    return job.options is not None and job.options.start_by is not None and trio.current_time() >= job.options.start_by


Take = Callable[[trio.CancelScope], Awaitable[Run]]
Record = Callable[[Run, Outcome | None], Awaitable[None]]


class _TooLate(Exception):
    """The job's time to start passed before a process was free."""


class _Failure(NamedTuple):
    """A failed attempt: the error, the delay before the retry, and the error's name in traces. Without
    a delay, the backoff applies."""

    error: str
    traceback: str | None = None
    delay: float | None = None
    error_type: str | None = None


class Executor:
    """Runs attempts with the handlers of one app.

    Args:
        handlers: the handlers by kind.
        threads: limits the threads of sync handlers. Trio's default limiter stays free for the service.
        processes: runs CPU-bound handlers, in at most as many processes as `process_limiter` allows.
        process_limiter: limits the processes.
        transactions: for handlers that complete their jobs in their own transaction.
        notes: receives the progress and checkpoints of handlers.
        node_state: the memory in which jobs in threads are marked for the keeper; None without a keeper.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        metrics: Metrics,
        *,
        threads: trio.CapacityLimiter,
        processes: trio_parallel.WorkerContext,
        process_limiter: trio.CapacityLimiter,
        transactions: Transactions,
        notes: ProgressWriter,
        node_state: NodeState | None = None,
    ) -> None:
        self._handlers = handlers
        self._metrics = metrics
        self._threads = threads
        self._processes = processes
        self._process_limiter = process_limiter
        self._transactions = transactions
        self._notes = notes
        self._node_state = node_state
        self._spans = tracing.handler_spans()

    async def run_each(self, take: Take, record: Record) -> None:
        """Run attempts, one after the other, until `take` or `record` raises.

        Args:
            take: returns the next run, to be executed in the given scope.
            record: receives the run's outcome, or None if the lease is lost. In that case, it must not write an outcome.
        """
        if self._spans is not None:
            take, record = _with_spans(self._spans, take, record)
        while True:
            await self._run_in_one_scope(take, record)

    async def _run_in_one_scope(self, take: Take, record: Record) -> None:
        """Run attempts until one of them is cancelled.

        A cancel scope can be cancelled only once, and a new scope costs as much as a small job. So
        the attempts share a scope until it is cancelled.
        """
        run: Run | None = None
        outcome: Outcome | None = None
        try:
            with trio.CancelScope() as scope:
                while True:
                    run = await take(scope)
                    logs.running.set(run.job)
                    outcome = await self._attempt(run)
                    logs.running.set(None)
                    if scope.cancel_called or _left_open(scope):
                        break
                    # No checkpoint has run since the handler ended, so a cancellation can only concern this run.
                    ended, run = run, None
                    await record(ended, outcome)
        except BaseException as error:
            if run is None:
                raise
            outcome = self._verdict(run, error)
        assert run is not None  # noqa: S101 - the loop ends only with a run
        if scope.cancelled_caught:
            outcome = _cut_short(run, self._handlers.get(run.job.kind))
        logs.running.set(None)
        await record(run, outcome)

    async def _attempt(self, run: Run) -> Outcome | None:
        """Call the handler. If its scope was cancelled, raise the handler's error, so that the caller
        judges it outside of the scope."""
        job = run.job
        handler = self._handlers.get(job.kind)
        if handler is None:
            self._metrics.of(job.queue, job.kind).unhandled.inc()
            served = ", ".join(sorted(self._handlers)) or "none"
            return _failed(run, handler, _Failure(f"no handler for kind {job.kind!r} on this node (it serves: {served})"))
        try:
            arguments = handler.arguments(job)
        except PayloadMismatch as error:
            return _dead(run, str(error), _Failure(str(error), error_type=tracing.error_type(error)))
        timeout = handler.timeout if job.timeout is None else job.timeout
        try:
            if handler.connection is not None:
                return await self._complete_in_transaction(run, handler, arguments, timeout)
            if handler.mode != "async" or handler.job_parameter is not None:
                result = await self._call(run, handler, arguments, timeout)
            else:
                if timeout is not None:
                    run.limit(timeout)
                result = await handler.function(**arguments)
            return _succeeded(run, handler, result)
        except _TooLate:
            return Outcome(id=job.id, claims=job.claims, outcome="released")
        except BaseException as error:
            if run.scope.cancel_called:
                raise
            return self._verdict(run, error)
        finally:
            if run.timeout is not None and not run.scope.cancel_called:
                run.scope.deadline = math.inf

    async def _call(self, run: Run, handler: Handler, arguments: dict[str, Any], timeout: float | None) -> Any:
        """Call a handler that runs in a thread or process, or that receives its job."""
        if handler.mode == "process":
            return await self._call_process(run, handler, arguments, timeout)
        if timeout is not None:
            run.limit(timeout)
        handle = self._hand_out(run, handler, arguments)
        if handler.mode == "async":
            result = handler.function(**arguments)
        else:
            [result] = await self._call_thread(run, in_list, functools.partial(handler.function, **arguments))
            if not inspect.iscoroutine(result):  # a plain wrapper around an async def returns a coroutine, which the loop runs
                return result
        return await (result if handle is None else _await_in_nursery(result, handle))

    def _hand_out(self, run: Run, handler: Handler, arguments: dict[str, Any]) -> Handle | None:
        """If the handler receives its job, connect this `Job` to the run."""
        if handler.job_parameter is not None:
            run.handle = self._notes.handle(run.job, run.node_id)
            force_setattr(arguments[handler.job_parameter], "_run", run.handle)
        return run.handle

    def _verdict(self, run: Run, error: BaseException) -> Outcome | None:
        """Convert an exception of the handler to an outcome. Re-raise it if the worker itself is being cancelled."""
        if _is_cancellation(error) and trio.current_effective_deadline() == -math.inf:
            raise error
        if run.state == "abandoned":
            return None  # the outcome is already recorded
        handler = self._handlers[run.job.kind]
        try:
            return _judge(run, handler, error)
        except BaseException as broken:  # noqa: BLE001 - formatting an error may run user code
            what = f"{type(error).__name__}, and formatting it raised {type(broken).__name__}"
            return _failed(run, handler, _Failure(what))

    def give_up(self, run: Run) -> Outcome | None:
        """Abandon a handler that does not stop. Return the outcome of its cancellation; None if no outcome may be written."""
        log.error("the handler does not stop: it is abandoned", **run.job.log_context, seconds=round(run.seconds, 1))
        outcome = _cut_short(run, self._handlers.get(run.job.kind), stubborn=True)
        run.state = "abandoned"
        _end_span(run, outcome)
        return outcome

    async def _call_thread(self, run: Run, function: Callable[..., T], *arguments: Any) -> T:
        call = functools.partial(function, *arguments)
        if self._node_state is not None:
            call = functools.partial(self._node_state.call_in_thread, run.job, call)
        # Python cannot stop a thread. A thread that outlives its timeout is abandoned, and keeps
        # its place in the limiter.
        try:
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)
        except trio.Cancelled:
            if run.handle is not None:
                run.handle.cancelled = True  # the handler can check this and return
            raise

    async def _complete_in_transaction(
        self, run: Run, handler: Handler, arguments: dict[str, Any], timeout: float | None
    ) -> Outcome:
        """Call the handler in a transaction that also completes its job. If the handler fails, the worker records it."""
        outcome = Outcome(id=run.job.id, claims=run.job.claims, outcome="succeeded")
        self._hand_out(run, handler, arguments)
        work = functools.partial(_work_with, handler, arguments, outcome)
        try:
            async with self._transactions.open() as transaction:
                run.started = trio.current_time()  # the wait for a connection does not count toward the timeout
                if timeout is not None:
                    run.limit(timeout)
                committed = await self._call_thread(run, transaction.run, run.node_id, work)
        except NoConnection as error:
            log.warning("no database connection for the handler: the job is released", **run.job.log_context, error=str(error))
            return Outcome(id=run.job.id, claims=run.job.claims, outcome="released")
        except CommitInDoubt as error:
            run.state = "in doubt"
            return _failed(run, handler, _Failure(f"{error}; PostgreSQL decides whether the job is complete"))
        run.state = "committed" if committed else "stale"
        return outcome

    async def _call_process(self, run: Run, handler: Handler, arguments: dict[str, Any], timeout: float | None) -> Any:
        in_process = functools.partial(self._processes.run_sync, kill_on_cancel=True, limiter=_NO_LIMIT)
        async with self._process_limiter:
            if not self._processes.statistics().idle_workers:
                await in_process(bool)  # starts a process; the handler's timeout begins afterwards
            if is_late(run.job):
                raise _TooLate
            run.started = trio.current_time()  # the wait for a process does not count toward the timeout
            if timeout is not None:
                run.limit(timeout)
            trace = None if run.span is None else run.span.trace
            document = await in_process(call_handler, handler.function, arguments, trace, logs.JobFields.of(run.job))
        return None if document == b"null" else msgspec.Raw(document)


def _with_spans(spans: HandlerSpans, take: Take, record: Record) -> tuple[Take, Record]:
    """Wrap `take` and `record` so that each run has a span, from its start until its outcome is recorded."""

    async def begin(scope: trio.CancelScope) -> Run:
        run = await take(scope)
        with tracing.contained():
            run.span = spans.begin(run.job, run.node_id)
        return run

    async def end(run: Run, outcome: Outcome | None) -> None:
        if run.span is not None:
            run.span.leave()
        if run.state != "abandoned":
            _end_span(run, outcome)
        await record(run, outcome)

    return begin, end


def _end_span(run: Run, outcome: Outcome | None) -> None:
    if run.span is not None:
        with tracing.contained():
            run.span.end(outcome)


def _left_open(scope: trio.CancelScope) -> bool:
    """Return whether the handler left a cancel scope open, as an unfinished async generator can do (trio #638).

    The open scope would cancel the next run. It is closed when the executor leaves its own scope,
    which raises an error.

    Trio has no public API for this check. If a Trio release lacks the attribute, return True: then each run gets its own scope,
    which is safe but slower.
    """
    try:
        return trio.lowlevel.current_task()._cancel_status is not scope._cancel_status  # noqa: SLF001 - see ARCHITECTURE.md
    except AttributeError:
        return True


_NO_LIMIT = trio.CapacityLimiter(math.inf)

_CUT_OFF = object()


async def _await_in_nursery(coroutine: Awaitable[Any], handle: Handle) -> Any:
    """Run a handler with a nursery for its tasks. Wait until the handler and all its tasks have ended."""
    result = _CUT_OFF
    alone: BaseException
    try:
        async with trio.open_nursery() as nursery:
            handle.nursery = nursery
            result = await coroutine
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        alone = group.exceptions[0]
    else:
        if result is _CUT_OFF:
            raise RuntimeError("trio.Cancelled ended the handler: job.nursery was cancelled, or it raised an old trio.Cancelled")
        return result
    raise alone  # raise it here, so that its context does not contain the group


def _work_with(handler: Handler, arguments: dict[str, Any], outcome: Outcome, connection: Any) -> bytes:
    """Call the handler and return the encoded outcome of its job."""
    assert handler.connection is not None  # noqa: S101 - only handlers with a connection reach this function
    result = handler.function(**arguments, **{handler.connection: connection})
    try:
        outcome.result = _kept(result)
    except documents.RefusedDocument as error:
        raise HandlerFailed(unstorable(result, error), None) from None
    return msgspec.json.encode(outcome)


def _is_cancellation(error: BaseException) -> bool:
    """Return whether the error contains trio.Cancelled.

    If so, the worker is being cancelled, because the run's scope absorbs its own cancellation.
    """
    return any(isinstance(leaf, trio.Cancelled) for leaf in leaves(error))


def _judge(run: Run, handler: Handler, error: BaseException) -> Outcome | None:
    """Convert a handler's exception to an outcome. Unwraps a group of one exception, so that a `Retry` in a nursery counts too."""
    cause = unwrapped(error)
    match cause:
        case Snooze() | Retry() | Discard():
            return _steered(run, handler, cause)
        case HandlerFailed():
            return _failed(run, handler, _Failure(cause.text, cause.traceback, None, cause.error_type))
        case trio_parallel.BrokenWorkerError():
            return _failed(run, handler, _Failure(_PROCESS_DIED))
        case trio.Cancelled():
            return _failed(run, handler, _Failure("the handler raised a trio.Cancelled from an earlier cancellation"))
        case _ if run.state != "running":
            # An error during the cleanup after a cancellation is not a failure of the job.
            return _cut_short(run, handler)
        case _:
            text = "".join(traceback.format_exception(error))
            hint = f". {_ON_TRIO}" if any(map(_is_of_asyncio, leaves(cause))) else ""
            return _failed(run, handler, _Failure(error_line(cause) + hint, text, None, tracing.error_type(cause)))


_ON_TRIO = (
    "jobqueue runs async def handlers on Trio, where asyncio libraries do not work. Write a plain def that calls asyncio.run(...),"
    " or use a Trio or anyio library, such as httpx"
)

_ASYNCIO_MISSED = (
    "no running event loop",
    "no current event loop",
    "should be used inside a task",
    "different event loop",
    "different loop",
    "object has no attribute 'create_future'",
    "trio.run received unrecognized yield message",
    "unknown async library, or not in async context",
    "Not currently running on any asynchronous event loop",
)
"""Messages of asyncio, its libraries, sniffio, anyio and Trio when asyncio code runs without its loop."""


def _is_of_asyncio(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes comes from asyncio code that runs outside of asyncio."""
    while error is not None:
        if isinstance(error, RuntimeError | TypeError | AttributeError) and any(mark in text_of(error) for mark in _ASYNCIO_MISSED):
            return True
        error = error.__cause__
    return False


_PROCESS_DIED = "the process that ran the handler died (killed, out of memory, or a crash in C)"


def _steered(run: Run, handler: Handler, verdict: Snooze | Retry | Discard) -> Outcome:
    name = tracing.error_type(verdict)
    if isinstance(verdict, Discard):
        reason = documents.storable(text_of(getattr(verdict, "reason", type(verdict).__name__)), MAX_ERROR_LENGTH)
        return _dead(run, reason, _Failure(f"discarded: {reason}", error_type=name))
    delay: object = getattr(verdict, "delay", None)
    if isinstance(verdict, Retry) and delay is None:
        return _failed(run, handler, _Failure(text_of(getattr(verdict, "reason", type(verdict).__name__)), error_type=name))
    if not isinstance(delay, int | float) or math.isnan(delay):
        return _failed(run, handler, _Failure(f"{type(verdict).__name__} needs a delay in seconds, got {text_of(delay)}"))
    delay = min(max(delay, 0.0), MAX_DELAY)
    if isinstance(verdict, Retry):
        return _failed(run, handler, _Failure(text_of(getattr(verdict, "reason", type(verdict).__name__)), None, delay, name))
    return Outcome(id=run.job.id, claims=run.job.claims, outcome="snoozed", delay=delay)


def _cut_short(run: Run, handler: Handler | None, *, stubborn: bool = False) -> Outcome | None:
    if run.state in ("lease lost", "abandoned"):
        return None
    if run.state == "cancelled":
        log.info("job cancelled", **run.job.log_context, seconds=round(run.seconds, 3))
        return Outcome(id=run.job.id, claims=run.job.claims, outcome="cancelled")
    if run.state == "interrupted":
        return Outcome(id=run.job.id, claims=run.job.claims, outcome="released")
    # A thread is abandoned at its timeout, so only an async handler can still occupy its worker.
    stays = stubborn and handler is not None and handler.mode == "async"
    more = ", and does not stop: the handler catches trio.Cancelled, or shields itself from cancellation" if stays else ""
    return _failed(run, handler, _Failure(f"timed out after {run.timeout} s{more}", error_type="timeout"))


def _succeeded(run: Run, handler: Handler, result: Any) -> Outcome:
    try:
        return Outcome(id=run.job.id, claims=run.job.claims, outcome="succeeded", result=_kept(result))
    except documents.RefusedDocument as error:
        return _failed(run, handler, _Failure(unstorable(result, error)))


def _kept(result: Any) -> msgspec.Raw | None:
    # Store a JSON null as NULL, which takes less space. So NULL in the column means "no result" or a JSON null.
    return None if result is None else msgspec.Raw(documents.encode(result, limit=MAX_RESULT_BYTES))


def _failed(run: Run, handler: Handler | None, failure: _Failure) -> Outcome:
    """Return the outcome of a failed attempt: a retry, or death after the last attempt."""
    job = run.job
    if job.last_attempt:
        first_line = failure.error.splitlines()[0] if failure.error else "failed"
        return _dead(run, documents.storable(f"attempt {job.attempt} of {job.max_retries + 1} failed: {first_line}", 500), failure)
    delay = failure.delay
    if delay is None:
        delay = (handler.backoff if handler is not None else DEFAULT_BACKOFF).delay(job.attempt)
    entry = _entry(run, failure)
    log.warning("attempt failed", **job.log_context, error=entry.error, retry_in=round(delay, 3))
    return Outcome(id=job.id, claims=job.claims, outcome="retry", delay=delay, error=entry)


def _dead(run: Run, reason: str, failure: _Failure) -> Outcome:
    job = run.job
    reason = documents.storable(reason, MAX_ERROR_LENGTH)
    log.error("job died", **job.log_context, reason=reason)
    return Outcome(id=job.id, claims=job.claims, outcome="dead", reason=reason, error=_entry(run, failure))


def _entry(run: Run, failure: _Failure) -> AttemptError:
    if run.span is not None:
        run.span.error_type = failure.error_type
    return AttemptError(
        attempt=run.job.attempt,
        error=documents.storable(failure.error, MAX_ERROR_LENGTH),
        duration=round(run.seconds, 6),
        traceback=None if failure.traceback is None else documents.storable(failure.traceback, MAX_TRACEBACK_LENGTH),
    )
