"""Repeat one step: run it, then sleep for the seconds that it returns, or until `due_in` ends the sleep earlier.

::

    promotion = Routine(promote, Trouble("promotion", vital=True))    # promote() returns the seconds until there is more to do
    nursery.start_soon(promotion.run)
    promotion.due_in(0)
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio

from jobqueue.concurrency.trouble import Trouble


class Routine:
    """Repeats one step. An error of the step is contained, and the step is repeated after a pause.

    Args:
        step: does the work that is due; returns the seconds until the next work.
        trouble: contains the step's errors.
    """

    def __init__(self, step: Callable[[], Awaitable[float]], trouble: Trouble) -> None:
        self.trouble = trouble
        self._step = step
        self._sleep = trio.CancelScope()

    def due_in(self, seconds: float) -> None:
        """Run the step in at most `seconds` seconds."""
        self._sleep.deadline = min(self._sleep.deadline, trio.current_time() + seconds)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Repeat the step until cancelled."""
        task_status.started()
        while True:
            # Create the scope before the step, so that `due_in` calls during the step shorten the sleep after it.
            self._sleep = trio.CancelScope()
            seconds = math.inf
            with self.trouble.contained():
                seconds = await self._step()
            if pause := self.trouble.pause:
                await trio.sleep(pause)
                continue
            self.due_in(seconds)
            with self._sleep:
                await trio.sleep_forever()
