"""Contain the errors of a part that must continue: log them, count them, and compute the pause before the next try.

::

    trouble = Trouble("promotion", vital=True)
    while True:
        with trouble.contained():
            await promote()
        await trio.sleep(trouble.pause)     # 0 after a success

A node ends only on request, if it cannot start, or if its own invariants are broken. Errors caused
by the database, a row or a notification are contained here, and the part tries again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import trio

from jobqueue.errors import JobQueueError
from jobqueue.retry import exponential_pause

FIRST_PAUSE = 0.05
"""Seconds between the first failure and the next try. Each further failure doubles the pause."""

LONGEST_PAUSE = 1.0
"""Maximum pause between two tries, in seconds, unless the part sets another limit."""

LOG_INTERVAL = 10.0
"""Seconds between two log lines about the same part, so that an error whose text varies does not fill the log."""

log = structlog.get_logger()


class Trouble:
    """The current failure of one part of a node, if any.

    States: *working* -> *failing* (after an error) -> *working* (after a success). Both changes are
    logged. While the part is failing, an error with a new text is logged too.

    Args:
        part: the part's name in logs, in the metric, and in the response of ``GET /health/ready``.
        vital: whether the node cannot work while this part fails. ``GET /health/ready`` reports only vital parts.
        longest_pause: the maximum pause between two tries, in seconds.

    Attributes:
        errors: number of contained errors so far.
        reason: the error of the last try; None after a success.
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
        return exponential_pause(self._streak, FIRST_PAUSE, self._longest_pause, jitter=True) if self._streak else 0.0

    @contextmanager
    def contained(self) -> Iterator[None]:
        """Contain an `Exception` of the block. Other exceptions, such as a cancellation, propagate."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - this function contains errors
            self.failed(error)
        else:
            self.succeeded()

    def failed(self, error: Exception) -> None:
        """Record an error."""
        reason = _text_of(error) or type(error).__name__
        if not isinstance(error, JobQueueError):
            reason = f"{type(error).__name__}: {reason}"
        now = trio.current_time()
        if not self._streak:
            self._failing_since = now
        if reason != self._logged and now >= self._log_after:
            # Other errors are unexpected, so the log gets their traceback.
            unexpected = None if isinstance(error, JobQueueError) else error
            log.warning("a part of the node fails", part=self.part, error=reason, exc_info=unexpected)
            self._logged = reason
            self._log_after = now + LOG_INTERVAL
        self.errors += 1
        self._streak += 1
        self.reason = reason

    def succeeded(self) -> None:
        """Record a success."""
        if not self._streak:
            return
        if self._logged is not None:
            seconds = round(trio.current_time() - self._failing_since, 1)
            log.info("a part of the node works again", part=self.part, failures=self._streak, seconds=seconds)
        self._streak = 0
        self.reason = self._logged = None


def _text_of(error: Exception) -> str:
    """Return an error's text in one line of valid UTF-8. File names may contain surrogates."""
    try:
        return " ".join(str(error).split()).encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001 - a user's exception class may fail to format itself
        return ""
