"""Contain the errors of a part that must go on: log them, count them, and say how long to wait before the next try.

::

    trouble = Trouble("promotion", vital=True)
    while True:
        with trouble.contained():
            await promote()
        await trio.sleep(trouble.pause)     # 0 after a success

A node ends only when it is told to, when it cannot begin, or when its own invariants are broken. Whatever a database, a row or a
notification causes ends here, and the part tries again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import trio

from jobqueue.errors import JobQueueError

FIRST_PAUSE = 0.05
"""Seconds between a first failure and the next try; each further failure doubles it."""

LONGEST_PAUSE = 1.0
"""The most seconds between two tries, unless the part says otherwise."""

LOG_INTERVAL = 10.0
"""Seconds between two log lines about the same part: an error that comes and goes, each time with another text, fills no log."""

log = structlog.get_logger()


class Trouble:
    """What keeps one part of a node from working.

    State: *working* -> *failing* (an error; logged, and logged again when its text has changed) -> *working* (a success; logged).

    Args:
        part: names the part, in logs, in the metric and in the answer of ``GET /health/ready``.
        vital: whether the node cannot do its work while this part fails. ``GET /health/ready`` tells only of such parts.
        longest_pause: the most seconds between two tries.

    Attributes:
        errors: how many errors were contained so far.
        reason: the error of the last try; None when it succeeded.
    """

    def __init__(self, part: str, *, vital: bool = False, longest_pause: float = LONGEST_PAUSE) -> None:
        self.part = part
        self.vital = vital
        self.errors = 0
        self.reason: str | None = None
        self._longest_pause = longest_pause
        self._streak = 0
        self._failing_since = 0.0
        self._logged: str | None = None
        self._log_after = -math.inf

    @property
    def pause(self) -> float:
        """Seconds to wait before the next try: 0 after a success; exponential, with jitter, after failures."""
        if not self._streak:
            return 0.0
        return min(self._longest_pause, FIRST_PAUSE * 2.0 ** min(self._streak - 1, 16)) * random.uniform(0.5, 1)

    @contextmanager
    def contained(self) -> Iterator[None]:
        """Contain the error that the block raises. Cancellation, and what is not an `Exception`, passes."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - containing it is what this is for
            self.failed(error)
        else:
            self.succeeded()

    def failed(self, error: Exception) -> None:
        """Take note of an error."""
        reason = _text_of(error) or type(error).__name__
        if not isinstance(error, JobQueueError):
            reason = f"{type(error).__name__}: {reason}"
        now = trio.current_time()
        if not self._streak:
            self._failing_since = now
        if reason != self._logged and now >= self._log_after:
            # An error that is not one of ours is worth its traceback.
            unexpected = None if isinstance(error, JobQueueError) else error
            log.warning("a part of the node fails", part=self.part, error=reason, exc_info=unexpected)
            self._logged = reason
            self._log_after = now + LOG_INTERVAL
        self.errors += 1
        self._streak += 1
        self.reason = reason

    def succeeded(self) -> None:
        """Take note of a success."""
        if not self._streak:
            return
        if self._logged is not None:
            seconds = round(trio.current_time() - self._failing_since, 1)
            log.info("a part of the node works again", part=self.part, failures=self._streak, seconds=seconds)
        self._streak = 0
        self.reason = self._logged = None


def _text_of(error: Exception) -> str:
    """An error's text in one line, which JSON can hold: names of files may have surrogates, which UTF-8 has not."""
    try:
        return " ".join(str(error).split()).encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001 - a class of somebody's, whose text is code of theirs
        return ""
