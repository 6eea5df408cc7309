"""The settings of a queue and their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from jobqueue import fields
from jobqueue.errors import InvalidQueueSetting

MAX_AGING_INTERVAL = 86_400.0
"""The maximum aging interval of a queue, in seconds."""

MAX_LIMIT = 1_000_000
MIN_RATE = 0.00001
"""The maximum limit of a queue or key (running jobs, starts per second, burst), and the minimum rate: about one start a day."""

AgingInterval = Annotated[
    float,
    msgspec.Meta(
        ge=0,
        le=MAX_AGING_INTERVAL,
        description=f"a number of seconds from 0 to {MAX_AGING_INTERVAL:.0f}, or null for the default, 1",
    ),
]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT, description=f"an integer from 1 to {MAX_LIMIT}, or null to clear it")]
KeyLimit = Annotated[Limit, msgspec.Meta(description=f"an integer from 1 to {MAX_LIMIT}, or null for the default, 1")]
Rate = Annotated[
    float, msgspec.Meta(ge=MIN_RATE, le=MAX_LIMIT, description=f"a number from {MIN_RATE:.5f} to {MAX_LIMIT}, or null to clear it")
]


class QueueSettings(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """The settings of a queue on all nodes. A missing field leaves a setting unchanged; null resets it to its default.

    Attributes:
        aging_interval: the waiting time in seconds that is worth one point of priority; applies to new jobs.
        max_running: the maximum number of its jobs that run at the same time.
        rate: the maximum number of jobs that start per second, in the long run.
        burst: the maximum number of jobs that start at once after a pause; default: the starts in a second at `rate`, at least 1.
        key_max_running: the maximum number of jobs with the same concurrency key that run at the same time; default: 1.
        key_rate: the maximum number of jobs with the same concurrency key that start per second.
        key_burst: the maximum number of jobs with the same concurrency key that start at once after a pause.
    """

    aging_interval: AgingInterval | UnsetType | None = UNSET
    max_running: Limit | UnsetType | None = UNSET
    rate: Rate | UnsetType | None = UNSET
    burst: Limit | UnsetType | None = UNSET
    key_max_running: KeyLimit | UnsetType | None = UNSET
    key_rate: Rate | UnsetType | None = UNSET
    key_burst: Limit | UnsetType | None = UNSET


def queue_settings(given: Mapping[str, Any]) -> QueueSettings:
    """Convert an input to settings.

    Raises:
        InvalidQueueSetting: a setting is unknown or out of its range.
    """
    return fields.read(given, QueueSettings, what="a queue", refuse=InvalidQueueSetting)
