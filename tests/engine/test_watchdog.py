"""The watchdog with a real executor, in real time."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import structlog.testing
import trio
import trio_parallel

from jobqueue import App
from jobqueue.engine import watchdog
from jobqueue.engine.executor import Executor
from jobqueue.engine.progress import ProgressWriter
from jobqueue.engine.signals import Signals
from jobqueue.job import ClaimedJob
from jobqueue.metrics import Metrics
from jobqueue.testing.memory_store import MemoryStore
from tests.support import ROOT
from tests.support.executor import no_transactions, run_one

pytestmark = pytest.mark.slow

BLOCKED_SECONDS = 1.9
"""Long enough for the watchdog: the next beat is due within 0.5 s, and overdue after another 0.6 s."""

JOB = {"job_id": "0198c7a4-0000-7000-8000-000000000000", "kind": "test", "queue": "mail", "attempt": 2}


@pytest.fixture(autouse=True)
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halve the watchdog's times, because these tests mostly wait for it."""
    monkeypatch.setattr(watchdog, "BEAT_SECONDS", 0.5)
    monkeypatch.setattr(watchdog, "STALL_SECONDS", 0.6)


@pytest.fixture
async def logs(nursery: trio.Nursery) -> AsyncIterator[list[Any]]:
    """The log of the watchdog during the test."""
    with structlog.testing.capture_logs() as captured:
        await nursery.start(watchdog.run)
        yield captured
    nursery.cancel_scope.cancel()


async def execute(function: Callable[..., Any], **options: Any) -> None:
    app = App()
    app.handler("test", **options)(function)
    async with trio_parallel.open_worker_context(grace_period=10) as processes:
        executor = Executor(
            app.handlers,
            Metrics(),
            threads=trio.CapacityLimiter(2),
            processes=processes,
            process_limiter=trio.CapacityLimiter(1),
            transactions=no_transactions(),
            notes=ProgressWriter(MemoryStore(), Signals()),
        )
        claimed = ClaimedJob("mail", JOB["job_id"], "test", msgspec.Raw(b"{}"), 0, 2, 7, 3, None, 1_900_000_000.0, 0.0, 0.0)
        await run_one(executor, claimed)


async def told(logs: list[Any], lines: int) -> list[str]:
    """Wait for this many lines, and a little longer for more; return their events."""
    with trio.move_on_after(60):
        while len(logs) < lines:  # noqa: ASYNC110 - a thread writes them
            await trio.sleep(0.01)
    await trio.sleep(2 * watchdog.LOOK_AGAIN_SECONDS)
    return [line["event"] for line in logs]


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def sleeps() -> None:
    time.sleep(BLOCKED_SECONDS)  # noqa: ASYNC251 - the fault


async def computes() -> None:
    await trio.sleep(0.01)
    spin(BLOCKED_SECONDS)


async def is_deep_in_a_library() -> None:
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({BLOCKED_SECONDS})"], check=True)  # noqa: ASYNC221 - the fault


async def keeps_the_interpreter() -> None:
    ctypes.PyDLL(None).sleep(4)  # in C, with the lock held: no thread runs meanwhile, not even the watchdog's


async def blocks_in_a_child_task() -> None:
    async with trio.open_nursery() as inner, trio.open_nursery() as innermost:
        inner.start_soon(trio.sleep, 0.01)
        innermost.start_soon(sleeps)


@pytest.mark.parametrize(
    ("handler", "place"),
    [
        (sleeps, "sleeps"),
        (computes, "spin"),
        (is_deep_in_a_library, "is_deep_in_a_library"),
        (blocks_in_a_child_task, "sleeps"),
        (keeps_the_interpreter, "keeps_the_interpreter"),
    ],
)
async def test_a_blocked_loop_and_its_end_are_reported_once_with_the_job_and_its_line(
    handler: Callable[..., Any], place: str, logs: list[Any]
) -> None:
    await execute(handler)
    assert await told(logs, 2) == ["the loop is blocked", "the loop runs again"], logs
    for line in logs:
        assert line["log_level"] == "warning"
        assert {name: line[name] for name in JOB} == JOB
        assert line["at"].startswith(f"{__file__}:")
        assert line["at"].endswith(f" in {place}")
    blocked, over = logs
    assert watchdog.STALL_SECONDS <= blocked["seconds"] <= over["seconds"]
    assert over["seconds"] >= BLOCKED_SECONDS - watchdog.BEAT_SECONDS - 0.1


async def test_a_loop_that_is_blocked_again_is_reported_again(logs: list[Any]) -> None:
    for times in (1, 2):
        await execute(sleeps)
        assert await told(logs, 2 * times) == ["the loop is blocked", "the loop runs again"] * times


async def test_without_a_job_the_line_of_the_service_is_reported(logs: list[Any]) -> None:
    spin(BLOCKED_SECONDS)
    assert await told(logs, 2) == ["the loop is blocked", "the loop runs again"]
    assert not logs[0].keys() & JOB.keys()
    assert logs[0]["at"].endswith(" in spin")


@pytest.mark.parametrize("options", [{}, {"cpu": True}], ids=["thread", "process"])
async def test_a_handler_that_blocks_outside_of_the_loop_is_not_reported(options: dict[str, Any], logs: list[Any]) -> None:
    await execute(block, **options)
    assert logs == []


def block() -> None:
    time.sleep(BLOCKED_SECONDS)


async def test_a_process_that_was_stopped_does_not_blame_a_job(logs: list[Any]) -> None:
    stopped = f"grep -q '^State:.T' /proc/{os.getpid()}/status"
    script = f"until {stopped}; do sleep 0.05; done; sleep {BLOCKED_SECONDS}; kill -CONT {os.getpid()}"
    again = subprocess.Popen(["sh", "-c", script])  # noqa: ASYNC220 - it runs while this process is stopped
    os.kill(os.getpid(), signal.SIGSTOP)
    assert await told(logs, 1) == ["no thread of the node ran"]
    again.wait()


async def test_a_busy_loop_that_lets_others_run_is_not_blocked(logs: list[Any]) -> None:
    with trio.move_on_after(BLOCKED_SECONDS):
        while True:
            spin(0.02)
            await trio.lowlevel.checkpoint()
    assert logs == []


async def test_the_thread_ends_with_the_watchdog() -> None:
    before = set(threading.enumerate())
    async with trio.open_nursery() as nursery:
        await nursery.start(watchdog.run)
        # A count would include idle threads of Trio, which end at any time.
        (thread,) = set(threading.enumerate()) - before
        nursery.cancel_scope.cancel()
    await trio.to_thread.run_sync(thread.join, 60)
    assert not thread.is_alive()


def test_an_idle_watchdog_costs_next_to_nothing() -> None:
    script = (
        "import resource, trio\nfrom jobqueue.engine import watchdog\n"
        "def pauses(): return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw\n"
        "async def main():\n"
        " async with trio.open_nursery() as nursery:\n"
        "  await nursery.start(watchdog.run); before = pauses(); await trio.sleep(3)\n"
        "  print(pauses() - before); nursery.cancel_scope.cancel()\n"
        "trio.run(main)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert int(done.stdout) < 15, "it wakes up some times a second, loop and thread together"
