"""Reload files when they change, without a restart.

The files are checked once a second, not at each request. So the checks do not slow down requests, and an error in a file is logged
even without requests. The checks run in a thread, because a file system that hangs must not block the event loop.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

import structlog
import trio

LOOK_EVERY = 1.0
"""Seconds between two checks of the files."""

log = structlog.get_logger()


class WatchedFiles:
    """Calls a function when it is created, and again whenever one of the given files changes.

    Args:
        files: the paths of the files.
        load: reads all files and applies their contents, or raises UnusableFile and changes nothing. The first call runs in
            the caller's thread. Later calls run in a worker thread.

    Raises:
        UnusableFile: the first `load` failed.
    """

    def __init__(self, files: Sequence[str], load: Callable[[], None]) -> None:
        self._files = files
        self._load = load
        self._trouble = ""
        # Look at the files before `load`, so that a change during the load causes another load.
        self._seen = self._look()
        load()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reload the files when they change, until cancelled.

        If a file becomes unusable, log the error once and keep the old contents.
        """
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
        except Exception as error:  # noqa: BLE001 - a broken file must not stop the service
            if str(error) != self._trouble:
                log.error("cannot reload files: the previous contents stay in force", reason=str(error))  # noqa: TRY400
            self._trouble = str(error)
        else:
            log.info("files were reloaded", files=list(self._files))
            self._trouble = ""
        self._seen = seen

    def _look(self) -> list[tuple[int, ...] | None]:
        found: list[tuple[int, ...] | None] = []
        for file in self._files:
            found.append(None)
            with contextlib.suppress(OSError):
                status = os.stat(file)  # noqa: PTH116 - os.stat follows links; their targets may change
                found[-1] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        return found
