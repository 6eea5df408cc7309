"""The delay before a retry: exponential backoff with jitter, for jobs and for the parts of the service."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from jobqueue.errors import HandlerError
from jobqueue.job import MAX_DELAY


def exponential_pause(failures: int, first: float, longest: float, *, jitter: bool = False) -> float:
    """Return the pause after this many failures in a row (from 1): `first`, then twice as long each time, up to `longest`.

    Args:
        jitter: whether to return a random share of the pause, at least half of it.
    """
    # The exponent is limited, because 2.0 ** 1024 overflows.
    pause = min(longest, first * 2.0 ** min(failures - 1, 64))
    return pause * random.uniform(0.5, 1) if jitter else pause


class Backoff(msgspec.Struct, frozen=True):
    """Double the delay after each failed attempt, up to a cap. Jitter spreads the retries of jobs that failed together.

    Attributes:
        base: seconds after the first failed attempt.
        cap: the maximum delay in seconds, before jitter.
        jitter: the share by which the delay varies at random: 0.2 is plus or minus a fifth.

    Raises:
        HandlerError: a value is out of its range.
    """

    base: float = 1.0
    cap: float = 3600.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.base <= self.cap <= MAX_DELAY / 2:
            raise HandlerError(
                f"backoff: must satisfy 0 <= base <= cap <= {MAX_DELAY / 2:.0f} s, got base={self.base}, cap={self.cap}"
            )
        if not 0 <= self.jitter <= 1:
            raise HandlerError(f"backoff: jitter must be from 0 to 1, got {self.jitter}")

    def delay(self, attempt: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Return the delay in seconds after this attempt (from 1) failed."""
        return exponential_pause(attempt, self.base, self.cap) * (1 + uniform(-self.jitter, self.jitter))


DEFAULT_BACKOFF = Backoff()
"""The backoff of handlers that set none: 1 s, 2 s, 4 s, and so on up to an hour, each plus or minus a fifth."""
