"""Stages: the long-lived parts of a service, each in a cancel scope of its own, so that they can be stopped in order.

::

    async with open_stages() as stages:
        await stages.start("outcomes", outcomes.run)
        await stages.start("workers", workers.run)
        await stages.stopping.wait()            # a signal, or a stage that crashed
        await stages.stop("workers", within=30)
        await stages.stop("outcomes", within=5)

A flat nursery is a trap: cancelled as one, the writer dies together with the workers, and a worker's last completion waits for
ever. Here nothing stops until its turn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from jobqueue.errors import StageCrashed

log = structlog.get_logger()


class _Stage:
    def __init__(self, name: str) -> None:
        self.name = name
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.expected_to_end = False


class Stages:
    """The running stages, by name, in the order in which they were started.

    Attributes:
        stopping: set when the service should stop: by a signal, or because a stage crashed.
        failure: the first crash, for the exit code and the last line.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.stopping = trio.Event()
        self.failure: StageCrashed | None = None
        self._nursery = nursery
        self._stages: dict[str, _Stage] = {}

    async def start(self, name: str, run: Callable[..., Awaitable[None]], *args: Any) -> Any:
        """Start a stage and wait until it is ready; return what it passed to ``task_status.started``.

        An error before that is raised here; one after it is a crash, which asks the whole service to stop.
        """
        stage = _Stage(name)
        value = await self._nursery.start(self._run, stage, run, args, name=f"stage {name}")
        self._stages[name] = stage
        return value

    async def stop(self, name: str, *, within: float, gently: Callable[[], None] | None = None) -> bool:
        """End a stage and wait for it.

        Args:
            name: the stage; one that was never started has ended.
            within: seconds to wait.
            gently: asks the stage to end by itself; only when it has not done so in time is it cancelled.

        Returns:
            Whether it ended in time. One that did not is left behind, cancelled.
        """
        stage = self._stages.get(name)
        if stage is None:
            return True
        stage.expected_to_end = True
        if gently is None:
            stage.scope.cancel(reason="its turn in the shutdown order")
        else:
            gently()
        with trio.move_on_after(within):
            await stage.ended.wait()
        if stage.ended.is_set():
            return True
        stage.scope.cancel(reason="its time in the shutdown order is over")
        log.warning("stage did not stop in time", stage=name, seconds=within)
        return False

    def names(self) -> list[str]:
        """The stages that are running."""
        return [name for name, stage in self._stages.items() if not stage.ended.is_set()]

    async def _run(
        self,
        stage: _Stage,
        run: Callable[..., Awaitable[None]],
        args: tuple[Any, ...],
        *,
        task_status: trio.TaskStatus[Any],
    ) -> None:
        started = _Started(task_status)
        try:
            with stage.scope:
                await run(*args, task_status=started)
            if not stage.expected_to_end:
                self._crashed(stage, StageCrashed(f"{stage.name}: ended by itself"))
        except Exception as error:
            if not started.called:
                raise
            crash = StageCrashed(f"{stage.name}: {_describe(error)}")
            crash.__cause__ = error
            log.exception("stage crashed", stage=stage.name)
            self._crashed(stage, crash)
        finally:
            stage.ended.set()

    def _crashed(self, stage: _Stage, crash: StageCrashed) -> None:
        if not stage.scope.cancel_called:
            self.failure = self.failure or crash
            self.stopping.set()


class _Started:
    """A task status that remembers whether the stage became ready."""

    def __init__(self, task_status: trio.TaskStatus[Any]) -> None:
        self._task_status = task_status
        self.called = False

    def started(self, value: Any = None) -> None:
        self.called = True
        self._task_status.started(value)


def _describe(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())


@asynccontextmanager
async def open_stages() -> AsyncIterator[Stages]:
    """Hold the nursery of all stages; leaving it cancels whatever was not stopped in order.

    Raises:
        StageCrashed: after everything ended, when a stage crashed.
    """
    async with trio.open_nursery() as nursery:
        stages = Stages(nursery)
        try:
            yield stages
        finally:
            nursery.cancel_scope.cancel()
    if stages.failure is not None:
        raise stages.failure
