"""Run the long-lived parts of a service as stages that can be stopped in order. Each stage has its own cancel scope.

::

    async with open_stages() as stages:
        await stages.start("outcomes", outcomes.run)
        await stages.start("workers", workers.run)
        await stages.stopping.wait()            # a signal, or a stage that crashed
        await stages.stop("workers", within=30)
        await stages.stop("outcomes", within=5)

In a flat nursery, one cancellation would end the writer together with the workers, and a worker's
last outcome would wait forever. For this reason, stages stop one after the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from jobqueue.errors import StageCrashed
from jobqueue.exception_groups import unwrapped

log = structlog.get_logger()


class _Stage:
    def __init__(self, name: str) -> None:
        self.name = name
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.expected_to_end = False


class Stages:
    """The running stages by name, in the order of their start.

    Attributes:
        stopping: set when the service should stop, because of a signal or a crashed stage.
        failure: the first crash, for the exit code and the last log line.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.stopping = trio.Event()
        self.failure: StageCrashed | None = None
        self._nursery = nursery
        self._stages: dict[str, _Stage] = {}

    async def start(self, name: str, run: Callable[..., Awaitable[None]], *args: Any) -> Any:
        """Start a stage and wait until it is ready; return the value that it passed to ``task_status.started``.

        An error before the stage is ready is raised here. A later error is a crash, which stops the
        whole service.
        """
        stage = _Stage(name)
        value = await self._nursery.start(self._run, stage, run, args, name=f"stage {name}")
        self._stages[name] = stage
        return value

    async def stop(self, name: str, *, within: float, gently: Callable[[], None] | None = None) -> bool:
        """Stop a stage and wait until it has ended.

        Args:
            name: the stage. A stage that was never started counts as ended.
            within: seconds to wait.
            gently: asks the stage to end. The stage is cancelled only if it does not end in time.

        Returns:
            Whether the stage ended in time. Otherwise, the stage is cancelled, and `stop` no longer waits for it.
        """
        stage = self._stages.get(name)
        if stage is None:
            return True
        stage.expected_to_end = True
        if gently is None:
            stage.scope.cancel(reason="the shutdown stops this stage")
        else:
            gently()
        with trio.move_on_after(within):
            await stage.ended.wait()
        if stage.ended.is_set():
            return True
        stage.scope.cancel(reason="the stage did not stop in time")
        log.warning("stage did not stop in time", stage=name, seconds=within)
        return False

    def names(self) -> list[str]:
        """Return the names of the running stages."""
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
                self._crashed(stage, StageCrashed(f"{stage.name}: ended unexpectedly"))
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
    """A task status that records whether the stage became ready."""

    def __init__(self, task_status: trio.TaskStatus[Any]) -> None:
        self._task_status = task_status
        self.called = False

    def started(self, value: Any = None) -> None:
        self.called = True
        self._task_status.started(value)


def _describe(error: BaseException) -> str:
    error = unwrapped(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


@asynccontextmanager
async def open_stages() -> AsyncIterator[Stages]:
    """Open the nursery of all stages. On exit, cancel the stages that still run.

    Raises:
        StageCrashed: a stage crashed; raised after all stages have ended.
    """
    async with trio.open_nursery() as nursery:
        stages = Stages(nursery)
        try:
            yield stages
        finally:
            nursery.cancel_scope.cancel()
    if stages.failure is not None:
        raise stages.failure
