import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from jobqueue.concurrency.stages import Stages, open_stages
from jobqueue.errors import StageCrashed

Run = Callable[..., Awaitable[None]]


@pytest.fixture
async def stages() -> AsyncIterator[Stages]:
    """Stages that do not crash."""
    async with open_stages() as stages:
        yield stages


@asynccontextmanager
async def crashing(reason: str) -> AsyncIterator[Stages]:
    """Open stages of which one crashes, and check the reason of the error at the end."""
    with pytest.raises(StageCrashed, match=f"^{re.escape(reason)}$"):
        async with open_stages() as stages:
            yield stages


async def for_ever(value: Any = None, *, task_status: trio.TaskStatus[Any]) -> None:
    task_status.started(value)
    await trio.sleep_forever()


def until(event: trio.Event, then: Exception | None = None) -> Run:
    """Make a stage that ends or fails when the event is set."""

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await event.wait()
        if then is not None:
            raise then

    return run


def recorded(name: str, ends: list[str]) -> Run:
    """Make a stage that records its end."""

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await for_ever(task_status=task_status)
        finally:
            ends.append(name)

    return run


async def unable(*, task_status: trio.TaskStatus[None]) -> None:  # noqa: ARG001 - it fails before its start
    raise OSError("address in use")


async def stubborn(seconds: float, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)


# ---------------------------------------------------------------------------------------------------------------------------- start


async def test_start_returns_the_started_value(stages: Stages) -> None:
    assert await stages.start("http", for_ever, 8080) == 8080


async def test_running_stages_are_named_in_the_order_of_their_start(stages: Stages) -> None:
    for name in ("c", "a", "b"):
        await stages.start(name, for_ever)
    assert stages.names() == ["c", "a", "b"]
    await stages.stop("a", within=60)
    assert stages.names() == ["c", "b"]


async def test_an_error_before_started_comes_out_of_start_and_is_no_crash(stages: Stages) -> None:
    with pytest.raises(OSError, match="address in use"):
        await stages.start("http", unable)
    assert not stages.stopping.is_set()
    assert stages.failure is None
    assert stages.names() == []


# ---------------------------------------------------------------------------------------------------------------------------- crash


async def test_a_crash_asks_the_service_to_stop_and_comes_out_at_the_end() -> None:
    now = trio.Event()
    async with crashing("dispatcher: ValueError: no such column") as stages:
        await stages.start("dispatcher", until(now, ValueError("no such column")))
        assert not stages.stopping.is_set()
        now.set()
        await stages.stopping.wait()
        assert isinstance(stages.failure, StageCrashed)
        assert isinstance(stages.failure.__cause__, ValueError)
        assert stages.names() == []


async def test_a_crash_within_nurseries_names_the_error_itself() -> None:
    now = trio.Event()
    async with crashing("schedule: KeyError: 'rank'") as stages:
        await stages.start("schedule", until(now, ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("rank")])])))
        now.set()
        await stages.stopping.wait()


async def test_the_first_crash_is_the_one_that_is_reported() -> None:
    first, second = trio.Event(), trio.Event()
    async with crashing("b: ValueError: first") as stages:
        await stages.start("a", until(second, ValueError("second")))
        await stages.start("b", until(first, ValueError("first")))
        for event in (first, second):
            event.set()
            await wait_all_tasks_blocked()


async def test_a_crash_leaves_the_other_stages_running_until_their_turn() -> None:
    ends: list[str] = []
    now = trio.Event()
    async with crashing("dispatcher: ValueError: gone") as stages:
        await stages.start("outcomes", recorded("outcomes", ends))
        await stages.start("dispatcher", until(now, ValueError("gone")))
        now.set()
        await stages.stopping.wait()
        await wait_all_tasks_blocked()
        assert stages.names() == ["outcomes"]
        assert ends == []


async def test_a_stage_that_ends_by_itself_has_crashed() -> None:
    now = trio.Event()
    async with crashing("heartbeat: ended unexpectedly") as stages:
        await stages.start("heartbeat", until(now))
        now.set()
        await stages.stopping.wait()


# ----------------------------------------------------------------------------------------------------------------------------- stop


async def test_stages_stop_in_the_order_asked_for_and_not_before(stages: Stages) -> None:
    ends: list[str] = []
    for name in ("outcomes", "workers", "dispatcher"):
        await stages.start(name, recorded(name, ends))
    await wait_all_tasks_blocked()
    assert ends == []
    assert await stages.stop("dispatcher", within=60)
    assert ends == ["dispatcher"]
    assert await stages.stop("workers", within=60)
    assert await stages.stop("outcomes", within=60)
    assert ends == ["dispatcher", "workers", "outcomes"]
    assert not stages.stopping.is_set()


async def test_a_stage_that_was_never_started_or_has_ended_counts_as_stopped(stages: Stages) -> None:
    assert await stages.stop("http", within=0)
    await stages.start("http", for_ever)
    assert await stages.stop("http", within=60)
    assert await stages.stop("http", within=0)


async def test_a_stage_that_is_asked_gently_may_end_by_itself(stages: Stages, autojump_clock: MockClock) -> None:
    asked = trio.Event()

    async def draining(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await asked.wait()
        await trio.sleep(2)

    await stages.start("http", draining)
    assert await stages.stop("http", within=3, gently=asked.set)
    assert autojump_clock.current_time() == 2
    assert not stages.stopping.is_set()


async def test_a_stage_that_does_not_follow_a_gentle_request_in_time_is_cancelled(
    stages: Stages, autojump_clock: MockClock
) -> None:
    ends: list[str] = []
    await stages.start("http", recorded("http", ends))
    assert not await stages.stop("http", within=3, gently=lambda: None)
    assert autojump_clock.current_time() == 3
    await wait_all_tasks_blocked()
    assert ends == ["http"]
    assert stages.failure is None


async def test_a_stage_that_fails_while_it_ends_gently_has_crashed() -> None:
    asked = trio.Event()
    async with crashing("http: ValueError: in the last answer") as stages:
        await stages.start("http", until(asked, ValueError("in the last answer")))
        await stages.stop("http", within=60, gently=asked.set)


async def test_a_stage_that_ignores_its_cancellation_is_reported_and_left(stages: Stages, autojump_clock: MockClock) -> None:
    await stages.start("workers", stubborn, 60)
    with structlog.testing.capture_logs() as logs:
        assert not await stages.stop("workers", within=5)
    assert autojump_clock.current_time() == 5
    assert [(line["log_level"], line["stage"], line["seconds"]) for line in logs] == [("warning", "workers", 5)]
    assert stages.names() == ["workers"]


async def test_leaving_cancels_what_was_not_stopped() -> None:
    ends: list[str] = []
    async with open_stages() as stages:
        await stages.start("outcomes", recorded("outcomes", ends))
        await stages.start("workers", recorded("workers", ends))
    assert sorted(ends) == ["outcomes", "workers"]
