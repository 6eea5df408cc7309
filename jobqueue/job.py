"""The values that travel through jobqueue: what is submitted, what a handler sees, and what became of a run.

All of them are plain data. Three cross the database boundary as JSON: `NewJob` into ``jobqueue.submit_many``, `ClaimedJob` out of
``jobqueue.claim`` and `Outcome` into ``jobqueue.finish``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec

MAX_PAYLOAD_BYTES = 1 << 20
"""The largest payload of one job, as JSON in UTF-8."""

MAX_RESULT_BYTES = 1 << 20
"""The largest result that a handler may return, as JSON in UTF-8."""

MAX_BATCH_JOBS = 100_000
"""The most jobs in one array or NDJSON body: it is one transaction."""

MAX_NAME_LENGTH = 200
"""The longest kind or queue name, in characters."""

MAX_PRIORITY = 1_000_000
MAX_RETRIES = 1_000
DEFAULT_RETRIES = 3

MAX_TIMEOUT = 7 * 86_400.0
"""The longest timeout of one attempt, in seconds."""

MAX_DELAY = 10 * 365 * 86_400.0
"""The longest delay of a submission, a snooze or a retry, in seconds."""

MAX_WEIGHT = 1_000.0
MIN_WEIGHT = 0.001
"""The bounds of a group's weight."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_LENGTH)]
Weight = Annotated[float, msgspec.Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY)]
Retries = Annotated[int, msgspec.Meta(ge=0, le=MAX_RETRIES)]
Timeout = Annotated[float, msgspec.Meta(gt=0, le=MAX_TIMEOUT)]
Delay = Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class Submission(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a submitter may say about a job. Every field has a default: ``{}`` is a job."""

    kind: Name = "default"
    payload: Any = msgspec.field(default_factory=dict)
    queue: Name = "default"
    priority: Priority = 0
    max_retries: Retries | None = None
    run_at: Instant | None = None
    delay: Delay | None = None
    timeout: Timeout | None = None
    expires_at: Instant | None = None
    expires_in: Delay | None = None
    group: Name | None = None
    weight: Weight | None = None
    concurrency_key: Name | None = None
    unique: bool | None = None
    unique_key: Name | None = None
    idempotency_key: Name | None = None


class Options(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What a job asks for beyond the columns of its table, and what the database noted about it. Times are in seconds.

    Attributes:
        expires_at: when it is no use to start the job any more, by the database's clock.
        expires_in: the same, counted from the submission in a `NewJob`, and from the claim in a `ClaimedJob`.
        start_by: the same again, by the clock of the node that claimed the job.
        turn: when the job's turn is among those of its group and the others, in the virtual time of the line.
        rank: the job's place in the queue, where the database has given it one.
        schedule: the cron schedule that submitted the job, by name.
        scheduled_for: the tick that it was submitted for.
    """

    expires_at: float | None = None
    expires_in: float | None = None
    group: str | None = None
    weight: float | None = None
    concurrency_key: str | None = None
    unique: bool | None = None
    unique_key: str | None = None
    idempotency_key: str | None = None
    turn: float | None = None
    rank: float | None = None
    schedule: str | None = None
    scheduled_for: float | None = None
    start_by: float | None = None


class NewJob(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A submission as ``jobqueue.submit_many`` takes it, with its id; one without an id is given one by the database."""

    id: str = ""
    kind: str = "default"
    payload: Any = msgspec.field(default_factory=dict)
    queue: str = "default"
    priority: int = 0
    max_retries: int | None = None
    run_at: datetime | None = None
    delay: float | None = None
    timeout: float | None = None
    options: Options | None = None


class ClaimedJob(msgspec.Struct, array_like=True, frozen=True):
    """One row out of ``jobqueue.claim``: a job with the run that this node now owes it. Times are in seconds, by the database."""

    queue: str
    id: str
    kind: str
    payload: msgspec.Raw
    priority: int
    attempt: int
    claims: int
    max_retries: int
    timeout: float | None
    created_at: float
    rank: float
    waited: float
    options: Options | None = None
    saved: msgspec.Raw | None = None

    @property
    def expired(self) -> bool:
        """Whether its time was over when it was claimed: it is among the dead letters, and not this node's."""
        options = self.options
        return options is not None and options.expires_at is not None and options.expires_in is not None and options.expires_in <= 0

    @property
    def last_attempt(self) -> bool:
        """Whether a failure of this attempt is the job's last."""
        return self.attempt > self.max_retries

    @property
    def log_context(self) -> Mapping[str, Any]:
        """The fields that every log line about this job carries."""
        return {"job_id": self.id, "kind": self.kind, "queue": self.queue, "attempt": self.attempt}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler can know of the job that it runs: give it a parameter ``job: jobqueue.Job``.

    Attributes:
        id: the job's UUID (version 7), as text.
        payload: the decoded JSON document.
        attempt: 1 for the first run; `max_retries` + 1 is the last.
        created_at: when the job was submitted, by the database's clock, in UTC.
        scheduled_for: the tick of the cron schedule that the job was submitted for, in UTC; None for any other job.
    """

    id: str
    kind: str
    queue: str
    payload: Any
    priority: int
    attempt: int
    max_retries: int
    created_at: datetime
    scheduled_for: datetime | None = None

    @classmethod
    def from_claim(cls, claimed: ClaimedJob) -> Job:
        tick = None if claimed.options is None else claimed.options.scheduled_for
        return cls(
            id=claimed.id,
            kind=claimed.kind,
            queue=claimed.queue,
            payload=msgspec.json.decode(claimed.payload),
            priority=claimed.priority,
            attempt=claimed.attempt,
            max_retries=claimed.max_retries,
            created_at=datetime.fromtimestamp(claimed.created_at, UTC),
            scheduled_for=None if tick is None else datetime.fromtimestamp(tick, UTC),
        )


class DeadFilter(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Which dead jobs are meant: all conditions hold, and ``{}`` is refused where jobs are moved or deleted.

    Attributes:
        reason: a part of the reason that a person reads.
        died_before: by the database's clock; so is `died_after`. Both are exclusive.
        all: that no condition is meant to be there.
    """

    queue: Name | None = None
    kind: Name | None = None
    group: Name | None = None
    reason: Name | None = None
    died_before: Instant | None = None
    died_after: Instant | None = None
    all: bool | None = None


class AttemptError(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One entry of a job's error history; the database adds when, by its clock, and on which node.

    Attributes:
        attempt: which attempt failed.
        error: what happened, in one line or a few.
        duration: seconds that the attempt ran.
        traceback: where it happened, for an exception.
    """

    attempt: int
    error: str
    duration: float
    traceback: str | None = None


Verdict = Literal["succeeded", "dead", "retry", "snoozed", "released"]


class Outcome(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What became of one run, as ``jobqueue.finish`` takes it. `id` and `claims` name the run: the fencing token.

    Attributes:
        outcome: which way the row moves.
        result: the handler's return value as JSON (succeeded).
        reason: what a person reads in the dead letters (dead).
        error: the entry for the error history (dead, retry).
        delay: seconds until the job is due again (retry, snoozed).
    """

    id: str
    claims: int
    outcome: Verdict
    result: msgspec.Raw | None = None
    reason: str | None = None
    error: AttemptError | None = None
    delay: float | None = None
