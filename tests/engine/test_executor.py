import asyncio
import functools
import gc
import math
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import sniffio
import structlog
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from jobqueue import Backoff, Discard, Job, Retry, Snooze
from jobqueue.engine.executor import MAX_ERROR_LENGTH, MAX_TRACEBACK_LENGTH, Cause, Run
from jobqueue.job import MAX_DELAY, MAX_RESULT_BYTES, Outcome
from tests.support.executor import LAST, Runner, claimed, error_of


def failing(error: BaseException) -> Callable[[], Awaitable[None]]:
    """Make a handler that raises this error."""

    async def handler() -> None:
        raise error

    return handler


def returning(result: Any) -> Callable[[], Awaitable[Any]]:
    """Make a handler that returns this result."""

    async def handler() -> Any:
        return result

    return handler


# --------------------------------------------------------------------------------------------------------- handlers in their places


async def test_an_async_handler_runs_on_the_loop_and_its_result_is_kept(node: Runner) -> None:
    async def add(a: int, b: int) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"sum": a + b, "thread": threading.get_ident()}

    outcome = await node.run(add, job={"payload": b'{"a": 1, "b": 2}'})
    assert outcome.outcome == "succeeded"
    assert outcome.result is not None
    assert msgspec.json.decode(outcome.result) == {"sum": 3, "thread": threading.get_ident()}


async def test_a_plain_handler_runs_in_a_thread(node: Runner) -> None:
    def here() -> int:
        return threading.get_ident()

    outcome = await node.run(here)
    assert outcome.outcome == "succeeded"
    assert outcome.result is not None
    assert msgspec.json.decode(outcome.result) != threading.get_ident()


@pytest.mark.slow
async def test_a_cpu_handler_runs_in_a_process(node: Runner) -> None:
    outcome = await node.run(os.getpid, cpu=True)
    assert outcome.outcome == "succeeded"
    assert outcome.result is not None
    assert msgspec.json.decode(outcome.result) != os.getpid()


def in_a_plain_def(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function like a timing or logging decorator: an async def becomes a def that returns a coroutine."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def test_an_async_def_in_a_decorator_that_is_a_plain_def_runs_on_the_loop(node: Runner) -> None:
    @in_a_plain_def
    @in_a_plain_def
    async def add(a: int, seconds: float = 0) -> list[int]:
        await trio.sleep(seconds)
        return [a, threading.get_ident()]

    outcome = await node.run(add, job={"payload": b'{"a": 1}'})
    assert outcome.result == msgspec.Raw(msgspec.json.encode([1, threading.get_ident()]))
    outcome = await node.execute(claimed(payload=b'{"a": 1, "seconds": 60}', timeout=0.2))
    assert outcome is not None
    assert error_of(outcome).error == "timed out after 0.2 s"


async def test_an_async_def_in_a_plain_def_has_its_jobs_nursery(node: Runner) -> None:
    ended: list[int] = []

    async def note() -> None:
        await trio.lowlevel.checkpoint()
        ended.append(1)

    @in_a_plain_def
    async def start(job: Job) -> None:
        job.nursery.start_soon(note)

    assert (await node.run(start)).outcome == "succeeded"
    assert ended == [1]


async def test_a_decorator_that_runs_the_async_def_itself_is_a_plain_handler(node: Runner) -> None:
    async def of_asyncio(a: int) -> list[int]:
        await asyncio.sleep(0)
        return [a, threading.get_ident()]

    @functools.wraps(of_asyncio)
    def wrapper(**kwargs: Any) -> Any:
        return asyncio.run(of_asyncio(**kwargs))

    outcome = await node.run(wrapper, job={"payload": b'{"a": 1}'})
    assert outcome.result is not None
    assert msgspec.json.decode(outcome.result)[1] != threading.get_ident()


async def test_an_object_that_is_called_runs_where_its_call_does(node: Runner) -> None:
    class Here:
        async def __call__(self, more: int = 0) -> int:
            return threading.get_ident() + more

    here = threading.get_ident()
    for function, result in ((Here(), here), (functools.partial(Here(), more=1), here + 1), (Here().__call__, here)):
        assert (await node.run(function)).result == msgspec.Raw(str(result).encode())
        node.app._handlers.clear()


class ToAwait:
    def __await__(self) -> Any:
        yield


async def never() -> None:
    raise AssertionError


async def return_a_coroutine() -> Any:
    return never()


def return_something_to_await() -> Any:
    return ToAwait()


def return_a_coroutine_in_a_process() -> Any:
    return never()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "options"),
    [(return_a_coroutine, {}), (return_something_to_await, {}), (return_a_coroutine_in_a_process, {"cpu": True})],
)
async def test_an_unawaited_result_fails_the_attempt(function: Any, options: dict[str, Any], node: Runner) -> None:
    error = error_of(await node.run(function, **options)).error
    gc.collect()  # an unawaited coroutine is a warning, and warnings are errors in the tests
    assert error.startswith(f"the handler returned an awaitable ({'ToAwait' if 'something' in function.__name__ else 'coroutine'})")
    assert error.endswith("await it in an async def, or run it before the handler returns (trio.run, asyncio.run)")


async def nowhere() -> None:
    await asyncio.sleep(1)


async def wait_for_a_future() -> None:
    await asyncio.gather(nowhere())


async def ask_for_the_loop() -> None:
    asyncio.get_running_loop()


async def take_from_a_queue() -> None:
    await asyncio.Queue().get()


async def yield_to_asyncio() -> None:
    await asyncio.sleep(0)


async def use_a_library() -> None:
    """Raise an error that does not mention its cause."""
    try:
        await ask_for_the_loop()
    except RuntimeError as error:
        raise ConnectionError("cannot connect") from error


async def in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_for_the_loop)
        nursery.start_soon(nowhere)


async def timeout_of_aiohttp() -> None:
    raise RuntimeError("Timeout context manager should be used inside a task")


def find_the_library() -> None:
    sniffio.current_async_library()


def create_a_task() -> None:
    asyncio.get_running_loop().create_task(never())


HINT = (
    "jobqueue runs async def handlers on Trio, where asyncio libraries do not work. Write a plain def that calls asyncio.run(...)"
)


@pytest.mark.filterwarnings("ignore:.*never awaited", "ignore:There is no current event loop")
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (nowhere, "RuntimeError: no running event loop. "),
        (ask_for_the_loop, "RuntimeError: no running event loop. "),
        (take_from_a_queue, "'create_future'"),
        (yield_to_asyncio, "TypeError: trio.run received unrecognized yield message None"),
        (use_a_library, "ConnectionError: cannot connect. "),
        (in_a_nursery, "2 errors: RuntimeError: no running event loop; "),
        (timeout_of_aiohttp, "RuntimeError: Timeout context manager should be used inside a task. "),
        (find_the_library, "AsyncLibraryNotFoundError: "),
        (create_a_task, "RuntimeError: no running event loop. "),
    ],
)
async def test_the_error_for_an_asyncio_library_has_a_remedy(function: Any, text: str, node: Runner) -> None:
    error = error_of(await node.run(function))
    assert text in error.error
    assert HINT in error.error
    assert error.traceback is not None
    assert function.__name__ in error.traceback
    assert HINT not in error.traceback


@pytest.mark.parametrize(
    "error", [RuntimeError("a loop"), ValueError("no running event loop"), TypeError("trio"), KeyError("asyncio")]
)
async def test_other_errors_do_not_mention_asyncio(error: Exception, node: Runner) -> None:
    assert "asyncio.run" not in error_of(await node.run(failing(error))).error


async def test_no_result_is_kept_as_none(node: Runner) -> None:
    assert await node.run(returning(None)) == Outcome(id=claimed().id, claims=7, outcome="succeeded")


async def test_the_job_is_handed_to_a_handler_that_asks_for_it(node: Runner) -> None:
    async def attempt(job: Job) -> int:
        return job.attempt

    assert (await node.run(attempt, job={"attempt": 3})).result == msgspec.Raw(b"3")


# ------------------------------------------------------------------------------------------------------------------------- failures


async def test_an_exception_fails_the_attempt_with_its_text_and_traceback(node: Runner, autojump_clock: MockClock) -> None:
    async def handler() -> None:
        await trio.sleep(1.5)
        raise ValueError("no such file")

    error = error_of(await node.run(handler))
    assert (error.attempt, error.error, error.duration) == (1, "ValueError: no such file", 1.5)
    assert error.traceback is not None
    assert 'raise ValueError("no such file")' in error.traceback
    assert autojump_clock.current_time() == 1.5


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(), MemoryError()], ids=repr)
async def test_an_exception_of_any_type_fails_only_its_job(error: BaseException, node: Runner) -> None:
    outcome = await node.run(failing(error))
    assert outcome.outcome == "retry"
    assert type(error).__name__ in error_of(outcome).error


async def test_a_failure_is_retried_after_the_handlers_backoff(node: Runner) -> None:
    outcome = await node.run(failing(ValueError()), backoff=Backoff(base=5, jitter=0), job={"attempt": 3})
    assert (outcome.outcome, outcome.delay) == ("retry", 20)


async def test_a_failure_of_the_last_attempt_is_death_with_a_readable_reason(node: Runner) -> None:
    outcome = await node.run(failing(ValueError("no such file\nlook elsewhere")), job=LAST)
    assert (outcome.outcome, outcome.delay) == ("dead", None)
    assert outcome.reason == "attempt 4 of 4 failed: ValueError: no such file"
    assert error_of(outcome).error == "ValueError: no such file\nlook elsewhere"


@pytest.mark.parametrize("text", ["", "\n", "\n\nsecond"], ids=repr)
async def test_an_error_without_a_message_has_a_reason(text: str, node: Runner) -> None:
    outcome = await node.run(failing(Retry(reason=text)), job=LAST)
    assert outcome.outcome == "dead"
    assert outcome.reason is not None
    assert outcome.reason.startswith("attempt 4 of 4 failed")


async def test_an_infinite_recursion_is_a_failure(node: Runner) -> None:
    async def recurse() -> None:
        await recurse()

    outcome = await node.run(recurse)
    assert outcome.outcome == "retry"
    assert error_of(outcome).error.startswith("RecursionError: ")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\0b"), r"ValueError: a\0b"),
        (ValueError("a\ud800b"), r"ValueError: a\ud800b"),
        (ValueError("x" * 1_000_000), "characters left out"),
        (ValueError("\0\ud800" * 500_000), "characters left out"),
        (Unspeakable(), "Unspeakable"),
    ],
    ids=["NUL", "lone surrogate", "1 MB", "1 MB of what jsonb refuses", "no text"],
)
@pytest.mark.parametrize("job", [{}, LAST], ids=["retry", "dead"])
async def test_any_text_of_an_exception_can_be_recorded(error: Exception, text: str, job: dict[str, int], node: Runner) -> None:
    outcome = await node.run(failing(error), job=job)
    recorded = error_of(outcome)
    assert text in recorded.error
    assert recorded.traceback is not None
    # A replaced character becomes at most six characters.
    assert len(recorded.error) < 6 * MAX_ERROR_LENGTH + 100
    assert len(recorded.traceback) < 6 * MAX_TRACEBACK_LENGTH + 100
    assert len(outcome.reason or "") < 6 * 500 + 100


async def test_a_kind_without_a_handler_is_retried_and_counted(node: Runner) -> None:
    node.handle(returning(None))
    for attempt, verdict in [(1, "retry"), (4, "dead")]:
        outcome = await node.execute(claimed(kind="unknown", attempt=attempt))
        assert outcome is not None
        assert outcome.outcome == verdict
        assert error_of(outcome).error == "no handler for kind 'unknown' on this node (it serves: test)"
    assert 'jobqueue_jobs_unhandled_total{kind="unknown",queue="default"} 2.0' in node.metrics.render().decode()


async def test_a_payload_that_does_not_fit_is_dead_at_once(node: Runner) -> None:
    async def handler(name: str) -> str:
        return name

    outcome = await node.run(handler, job={"payload": b'{"name": 1}'})
    assert outcome.outcome == "dead"
    assert outcome.reason == "the payload does not fit the handler: Expected `str`, got `int` - at `$.name`"
    assert error_of(outcome).error == outcome.reason


class Complaining(msgspec.Struct):
    def __post_init__(self) -> None:
        raise ValueError("\0\ud800" + "x" * 1_000_000)


async def test_the_reason_of_a_mismatch_is_storable(node: Runner) -> None:
    async def handler(value: Complaining) -> None: ...

    outcome = await node.run(handler, job={"payload": b'{"value": {}}'})
    assert outcome.outcome == "dead"
    assert r"\0\ud800xxx" in (outcome.reason or "")
    assert len(outcome.reason or "") < MAX_ERROR_LENGTH + 100


# -------------------------------------------------------------------------------------------------------------------------- results


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (object(), "cannot be stored as JSON"),
        ({"a": "b\0"}, "U+0000"),
        ("\ud800", "surrogates"),
        (endless(), "nested too deeply"),
        (msgspec.Raw(b"{"), "cannot be stored as JSON"),
        ("x" * (MAX_RESULT_BYTES - 1), f"it has {MAX_RESULT_BYTES + 1} bytes, and the limit is {MAX_RESULT_BYTES}"),
    ],
    ids=["object", "NUL", "lone surrogate", "holds itself", "broken JSON", "too large"],
)
async def test_a_result_that_cannot_be_stored_fails_the_attempt(result: Any, reason: str, node: Runner) -> None:
    outcome = await node.run(returning(result))
    assert outcome.outcome == "retry"
    assert outcome.result is None
    assert reason in error_of(outcome).error


async def test_the_largest_result_is_stored(node: Runner) -> None:
    outcome = await node.run(returning("x" * (MAX_RESULT_BYTES - 2)))
    assert outcome.outcome == "succeeded"
    assert len(outcome.result or b"") == MAX_RESULT_BYTES


# ------------------------------------------------------------------------------------------------------------------------- verdicts


async def test_retry_with_a_delay(node: Runner) -> None:
    outcome = await node.run(failing(Retry(90, "the shop is closed")))
    assert (outcome.outcome, outcome.delay) == ("retry", 90)
    assert error_of(outcome).error == "the shop is closed"
    assert error_of(outcome).traceback is None


async def test_retry_without_a_delay_uses_the_handlers_backoff(node: Runner) -> None:
    outcome = await node.run(failing(Retry()), backoff=Backoff(base=5, jitter=0), job={"attempt": 2})
    assert (outcome.outcome, outcome.delay) == ("retry", 10)


async def test_retry_in_the_last_attempt_is_death(node: Runner) -> None:
    outcome = await node.run(failing(Retry(90, "the shop is closed")), job=LAST)
    assert (outcome.outcome, outcome.reason) == ("dead", "attempt 4 of 4 failed: the shop is closed")


async def test_snooze_is_not_a_failure_even_in_the_last_attempt(node: Runner) -> None:
    outcome = await node.run(failing(Snooze(3600)), job=LAST)
    assert outcome == Outcome(id=claimed().id, claims=7, outcome="snoozed", delay=3600)


async def test_discard_is_death_at_once(node: Runner) -> None:
    outcome = await node.run(failing(Discard("the account is closed")))
    assert (outcome.outcome, outcome.reason) == ("dead", "the account is closed")
    assert error_of(outcome).error == "discarded: the account is closed"


@pytest.mark.parametrize("verdict", [Retry, Snooze], ids=lambda verdict: verdict.__name__)
@pytest.mark.parametrize(
    ("asked", "got"), [(-5, 0), (0, 0), (MAX_DELAY, MAX_DELAY), (MAX_DELAY * 2, MAX_DELAY), (math.inf, MAX_DELAY)], ids=str
)
async def test_a_delay_is_clamped_to_its_bounds(
    verdict: Callable[[float], Exception], asked: float, got: float, node: Runner
) -> None:
    assert (await node.run(failing(verdict(asked)))).delay == got


@pytest.mark.parametrize("wrapped", [Retry(5), Snooze(5)], ids=lambda verdict: type(verdict).__name__)
async def test_a_verdict_counts_within_the_exception_groups_of_the_handlers_nurseries(wrapped: Exception, node: Runner) -> None:
    async def handler() -> None:
        async with trio.open_nursery() as outer:
            outer.start_soon(trio.sleep_forever)
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever)
                inner.start_soon(failing(wrapped))

    assert (await node.run(handler)).delay == 5


async def test_a_group_of_several_errors_is_a_failure(node: Runner) -> None:
    outcome = await node.run(failing(ExceptionGroup("both", [Snooze(5), ValueError("no such file")])))
    assert outcome.outcome == "retry"
    assert error_of(outcome).error == "2 errors: Snooze: snoozed for 5 s; ValueError: no such file"
    assert "no such file" in (error_of(outcome).traceback or "")


class Forgetful(Snooze):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    "verdict",
    [
        Snooze(None),
        Snooze("soon"),
        Snooze(math.nan),
        Snooze(timedelta(minutes=5)),
        Retry("soon"),
        Retry(math.nan),
        Retry(timedelta(minutes=5)),
        Forgetful(),
    ],
    ids=lambda verdict: f"{type(verdict).__name__}({getattr(verdict, 'delay', '')!r})",
)
async def test_a_verdict_with_an_invalid_delay_fails_the_attempt(verdict: Exception, node: Runner) -> None:
    outcome = await node.run(failing(verdict))
    assert outcome.outcome == "retry"
    assert outcome.delay is not None
    assert 0 <= outcome.delay < 2
    assert type(verdict).__name__ in error_of(outcome).error


@pytest.mark.parametrize("verdict", [Discard(ValueError("closed")), Retry(5, ValueError("closed"))], ids=repr)
async def test_a_reason_need_not_be_a_text(verdict: Exception, node: Runner) -> None:
    assert "closed" in error_of(await node.run(failing(verdict))).error


async def test_a_reason_is_made_storable(node: Runner) -> None:
    assert (await node.run(failing(Discard("a\0b\ud800")))).reason == r"a\0b\ud800"


# ------------------------------------------------------------------------------------------------------------------------- timeouts


async def test_a_handler_is_cancelled_at_its_timeout(node: Runner, autojump_clock: MockClock) -> None:
    outcome = await node.run(trio.sleep_forever, timeout=30)
    assert outcome.outcome == "retry"
    assert (error_of(outcome).error, error_of(outcome).duration) == ("timed out after 30 s", 30)
    assert autojump_clock.current_time() == 30


async def test_the_timeout_of_the_job_takes_precedence_over_the_handlers(node: Runner, autojump_clock: MockClock) -> None:
    outcome = await node.run(trio.sleep_forever, timeout=30, job={"timeout": 40.0})
    assert error_of(outcome).error == "timed out after 40.0 s"
    assert autojump_clock.current_time() == 40


async def test_a_handler_that_ends_in_time_has_not_timed_out(node: Runner, autojump_clock: MockClock) -> None:
    async def handler() -> None:
        await trio.sleep(29)

    assert (await node.run(handler, timeout=30)).outcome == "succeeded"
    assert autojump_clock.current_time() == 29


async def test_a_timeout_within_a_handler_is_an_ordinary_error(node: Runner, autojump_clock: MockClock) -> None:
    async def handler() -> None:
        with trio.fail_after(5):
            await trio.sleep_forever()

    assert error_of(await node.run(handler, timeout=30)).error.startswith("TooSlowError")
    assert autojump_clock.current_time() == 5


async def test_a_thread_that_outlives_its_timeout_is_abandoned(node: Runner) -> None:
    go_on = threading.Event()

    def handler() -> None:
        go_on.wait(60)

    outcome = await node.run(handler, timeout=0.05)
    go_on.set()
    assert error_of(outcome).error == "timed out after 0.05 s"


# ------------------------------------------------------------------------------------------------------------------------ processes


def steer(verdict: str) -> None:
    match verdict:
        case "snooze":
            raise Snooze(90)
        case "retry":
            raise Retry(90, "the shop is closed")
        case "discard":
            raise Discard("the account is closed")
        case "fail":
            raise ValueError("no such file")
        case "leave":
            sys.exit(3)


def hang() -> None:
    time.sleep(600)


class Picky(Exception):
    """An exception that cannot be unpickled, because its arguments are not its message."""

    def __init__(self, path: str, line: int) -> None:
        super().__init__(f"{path}:{line}: syntax error")


def fail_in_a_way_that_cannot_be_pickled() -> None:
    raise Picky("a.txt", 3)


def return_what_cannot_be_pickled() -> Any:
    return threading.Lock()


def payload(**fields: Any) -> dict[str, Any]:
    return {"payload": msgspec.json.encode(fields)}


@pytest.mark.slow
async def test_verdicts_and_failures_are_received_from_a_process(node: Runner) -> None:
    node.handle(steer, cpu=True)

    async def outcome_of(verdict: str) -> Outcome:
        outcome = await node.execute(claimed(**payload(verdict=verdict)))
        assert outcome is not None
        return outcome

    snoozed = await outcome_of("snooze")
    assert (snoozed.outcome, snoozed.delay) == ("snoozed", 90)
    retried = await outcome_of("retry")
    assert (retried.outcome, retried.delay, error_of(retried).error) == ("retry", 90, "the shop is closed")
    discarded = await outcome_of("discard")
    assert (discarded.outcome, discarded.reason) == ("dead", "the account is closed")
    failed = error_of(await outcome_of("fail"))
    assert failed.error == "ValueError: no such file"
    assert 'raise ValueError("no such file")' in (failed.traceback or "")
    assert error_of(await outcome_of("leave")).error == "SystemExit: 3"


@pytest.mark.slow
async def test_a_dead_process_is_a_readable_failure_and_is_replaced(node: Runner) -> None:
    died = await node.run(os._exit, cpu=True, job=payload(status=3))
    assert died.outcome == "retry"
    assert error_of(died).error == "the process that ran the handler died (killed, out of memory, or a crash in C)"
    node.app.handler("next", cpu=True)(os.getpid)
    after = await node.execute(claimed(kind="next"))
    assert after is not None
    assert after.outcome == "succeeded"


@pytest.mark.slow
async def test_a_process_is_killed_at_the_timeout(node: Runner) -> None:
    node.app.handler("pid", cpu=True)(os.getpid)
    before = await node.execute(claimed(kind="pid"))
    assert before is not None
    assert before.result is not None
    outcome = await node.run(hang, cpu=True, timeout=0.1)
    assert error_of(outcome).error == "timed out after 0.1 s"
    with pytest.raises(ProcessLookupError):
        os.kill(msgspec.json.decode(before.result), 0)


@pytest.mark.slow
async def test_the_timeout_of_a_job_starts_when_it_gets_a_process(node: Runner, nursery: trio.Nursery) -> None:
    node.handle(os.getpid, cpu=True, timeout=30)
    running = Running(node)
    async with node.process_limiter:
        nursery.start_soon(running.execute)
        await wait_all_tasks_blocked()
        assert running.run.scope.deadline == math.inf
    await running.ended.wait()
    assert running.run.cancelled_at == running.run.started + 30
    assert running.run.scope.deadline == math.inf, "the next run in the scope has a separate deadline"
    assert [outcome and outcome.outcome for outcome in running.outcomes] == ["succeeded"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "text"),
    [
        (fail_in_a_way_that_cannot_be_pickled, "Picky: a.txt:3: syntax error"),
        (return_what_cannot_be_pickled, "cannot be stored as JSON"),
    ],
    ids=["error", "result"],
)
async def test_errors_and_results_that_cannot_be_pickled_are_readable_failures(
    function: Callable[[], Any], text: str, node: Runner
) -> None:
    outcome = await node.run(function, cpu=True)
    assert outcome.outcome == "retry"
    assert text in error_of(outcome).error


# ------------------------------------------------------------------------------------------------------------------------ cut short


class Running:
    """A running job."""

    def __init__(self, node: Runner) -> None:
        self.run: Run
        self.worker = trio.CancelScope()
        self.outcomes: list[Outcome | None] = []
        self.ended = trio.Event()
        self._node = node

    async def start(self, function: Callable[..., Any], nursery: trio.Nursery) -> None:
        self._node.handle(function)
        nursery.start_soon(self.execute)
        await wait_all_tasks_blocked()

    async def execute(self) -> None:
        with self.worker:
            self.outcomes.append(await self._node.execute(claimed(), self._begun))
        self.ended.set()

    def _begun(self, run: Run) -> None:
        self.run = run


@pytest.fixture
def running(node: Runner) -> Running:
    return Running(node)


@pytest.mark.parametrize("cause", [None, "cancelled"])
async def test_the_log_has_the_end_of_an_abandoned_run_once(
    cause: Cause | None, running: Running, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    assert autojump_clock is not None

    async def swallow() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(10)
        await trio.sleep_forever()

    with structlog.testing.capture_logs() as logs:
        await running.start(swallow, nursery)
        if cause is None:
            running.run.limit(0)
        else:
            running.run.cancel(cause)
        outcome = running._node.executor.give_up(running.run)
        await running.ended.wait()
    assert outcome is not None
    assert outcome.outcome == ("retry" if cause is None else "cancelled")
    assert running.outcomes == [None]
    events = [line["event"] for line in logs]
    assert events == ["the handler does not stop: it is abandoned", "attempt failed" if cause is None else "job cancelled"]


async def stumble() -> None:
    """Fail after a cancellation, as cleanup code may."""
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("the connection is gone")


RELEASED = Outcome(id=claimed().id, claims=7, outcome="released")


@pytest.mark.parametrize("function", [trio.sleep_forever, stumble], ids=lambda function: function.__name__)
async def test_an_interrupted_job_is_released(function: Callable[..., Any], running: Running, nursery: trio.Nursery) -> None:
    await running.start(function, nursery)
    running.run.cancel("interrupted")
    await wait_all_tasks_blocked()
    assert running.outcomes == [RELEASED]


@pytest.mark.parametrize("function", [trio.sleep_forever, stumble], ids=lambda function: function.__name__)
async def test_a_job_whose_lease_is_lost_has_no_outcome(
    function: Callable[..., Any], running: Running, nursery: trio.Nursery
) -> None:
    await running.start(function, nursery)
    running.run.cancel("lease lost")
    await wait_all_tasks_blocked()
    assert running.outcomes == [None]


async def test_an_interrupted_thread_is_abandoned_and_its_job_released(node: Runner) -> None:
    begun, go_on = trio.Event(), threading.Event()

    def handler() -> None:
        trio.from_thread.run_sync(begun.set)
        go_on.wait(60)

    running = Running(node)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.start, handler, nursery)
        await begun.wait()
        running.run.cancel("interrupted")
    go_on.set()
    assert running.outcomes == [RELEASED]


async def test_a_job_that_completes_despite_its_interruption_has_succeeded(running: Running, nursery: trio.Nursery) -> None:
    async def persistent() -> str:
        with trio.CancelScope(shield=True):
            await go_on.wait()
        return "done"

    go_on = trio.Event()
    await running.start(persistent, nursery)
    running.run.cancel("interrupted")
    go_on.set()
    await wait_all_tasks_blocked()
    assert running.outcomes == [Outcome(id=claimed().id, claims=7, outcome="succeeded", result=msgspec.Raw(b'"done"'))]


async def test_a_verdict_raised_during_an_interruption_counts(running: Running, nursery: trio.Nursery) -> None:
    async def handler() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise Snooze(5) from None

    await running.start(handler, nursery)
    running.run.cancel("interrupted")
    await wait_all_tasks_blocked()
    assert running.outcomes == [Outcome(id=claimed().id, claims=7, outcome="snoozed", delay=5)]


async def in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize("function", [trio.sleep_forever, in_a_nursery], ids=lambda function: function.__name__)
async def test_the_cancellation_of_the_worker_itself_passes_through(
    function: Callable[..., Any], running: Running, nursery: trio.Nursery
) -> None:
    await running.start(function, nursery)
    running.worker.cancel()
    await wait_all_tasks_blocked()
    assert running.worker.cancelled_caught
    assert running.outcomes == []


async def test_runs_share_a_scope_until_one_of_them_is_cancelled(node: Runner) -> None:
    scopes: list[trio.CancelScope] = []
    outcomes: list[str] = []
    timeouts = [None, 0.05, 60.0, None]

    async def handler(job: Job) -> None:
        await trio.sleep(600 if job.max_retries == 1 else 0)

    node.handle(handler)

    async def take(scope: trio.CancelScope) -> Run:
        if len(scopes) == len(timeouts):
            raise trio.EndOfChannel
        assert scope.deadline == math.inf
        timeout = timeouts[len(scopes)]
        scopes.append(scope)
        return Run(claimed(timeout=timeout, max_retries=1 if timeout == 0.05 else 3), "node", scope)

    async def record(_: Run, outcome: Outcome | None) -> None:
        assert trio.current_effective_deadline() == math.inf, "recording the outcome is not cancelled with the run"
        assert outcome is not None
        outcomes.append(outcome.outcome)

    with pytest.raises(trio.EndOfChannel):
        await node.executor.run_each(take, record)
    assert outcomes == ["succeeded", "retry", "succeeded", "succeeded"]
    assert scopes[0] is scopes[1]
    assert scopes[1] is not scopes[2]
    assert scopes[2] is scopes[3]


@pytest.mark.parametrize("private", [True, False], ids=["private attribute", "public API only"])
async def test_a_scope_that_a_handler_leaves_open_fails_only_its_run(
    node: Runner, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generator() -> AsyncIterator[int]:
        with trio.move_on_after(0.05):
            yield 1

    kept: list[Any] = []

    async def leave_open() -> None:
        kept.append(generator())
        await kept[0].__anext__()

    node.app.handler("leaky")(leave_open)
    node.handle(trio.sleep)
    jobs = [
        claimed(kind="leaky"),
        claimed(payload=b'{"seconds": 0.2}'),
        claimed(payload=b'{"seconds": 0}'),
    ]
    outcomes: list[str] = []
    scopes: list[trio.CancelScope] = []

    async def take(scope: trio.CancelScope) -> Run:
        if not jobs:
            raise trio.EndOfChannel
        scopes.append(scope)
        return Run(jobs.pop(0), "node", scope)

    async def record(_: Run, outcome: Outcome | None) -> None:
        assert outcome is not None
        outcomes.append(outcome.outcome)

    with monkeypatch.context() as patched:
        if not private:
            patched.setattr(trio.lowlevel, "current_task", object)  # returns an object without `_cancel_status`
        with pytest.raises(trio.EndOfChannel):
            await node.executor.run_each(take, record)
    assert outcomes == ["retry", "succeeded", "succeeded"]
    assert scopes[0] is not scopes[1]
    assert (scopes[1] is scopes[2]) == private
