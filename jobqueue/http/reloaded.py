"""Files that are read again when they change, without a restart.

They are looked at from a task, once a second, and not when a request comes: so requests pay nothing for it, and a mistake in a file
is in the log at once. From a thread, because a file system may hang, and the loop must not.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

import structlog
import trio

LOOK_EVERY = 1.0
"""Seconds between two looks at the files."""

log = structlog.get_logger()


class Reloaded:
    """What is made of files, and made again when one of them changes.

    Args:
        files: their paths.
        load: reads them all and puts what they say in force, or raises UnusableFile and leaves all as it was. It is called at
            once, and from then on in a thread.

    Raises:
        UnusableFile: from the first `load`.
    """

    def __init__(self, files: Sequence[str], load: Callable[[], None]) -> None:
        self._files = files
        self._load = load
        self._trouble = ""
        # Taken before: what changes while it is read is read again.
        self._seen = self._look()
        load()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep up with the files. While they cannot be used, what was in force stays so, which is logged once."""
        threads = trio.CapacityLimiter(1)
        task_status.started()
        while True:
            await trio.sleep(LOOK_EVERY)
            await trio.to_thread.run_sync(self._keep_up, abandon_on_cancel=True, limiter=threads)

    def _keep_up(self) -> None:
        seen = self._look()
        if seen == self._seen and not self._trouble:
            return
        try:
            self._load()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a file, the service goes on with what it has
            if str(error) != self._trouble:
                log.error("what was read before stays in force", reason=str(error))  # noqa: TRY400 - the operator's mistake
            self._trouble = str(error)
        else:
            log.info("files were read again", files=list(self._files))
            self._trouble = ""
        self._seen = seen

    def _look(self) -> list[tuple[int, ...] | None]:
        found: list[tuple[int, ...] | None] = []
        for file in self._files:
            found.append(None)
            with contextlib.suppress(OSError):
                status = os.stat(file)  # noqa: PTH116 - what is a link here may lead elsewhere tomorrow
                found[-1] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found
