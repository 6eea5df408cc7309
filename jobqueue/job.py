"""The data types of jobqueue: submissions, jobs as handlers see them, and outcomes of attempts.

Three of these types cross the database boundary as JSON: `NewJob` goes into ``jobqueue_internal.submit_batch``, `ClaimedJob`
comes from ``jobqueue_internal.claim``, and `Outcome` goes into ``jobqueue_internal.finish``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, get_args

import msgspec

from jobqueue import documents

if TYPE_CHECKING:
    import trio

MAX_PAYLOAD_BYTES = 1 << 20
"""The maximum size of a job's payload in bytes, as JSON in UTF-8."""

MAX_RESULT_BYTES = 1 << 20
"""The maximum size of a handler's result in bytes, as JSON in UTF-8."""

MAX_CHECKPOINT_BYTES = 64 << 10
"""The maximum size of a job's checkpoint in bytes, as JSON in UTF-8."""

MAX_PROGRESS_MESSAGE = 500
"""The maximum length of a progress message in characters; the rest is cut off."""

MAX_BATCH_JOBS = 100_000
"""The maximum number of jobs in one array or NDJSON body, which is one transaction."""

MAX_NAME_LENGTH = 200
"""The maximum length of a name, such as a kind or a queue, in characters."""

MAX_PRIORITY = 1_000_000
MAX_RETRIES = 1_000
DEFAULT_RETRIES = 3

MAX_TIMEOUT = 7 * 86_400.0
"""The maximum timeout of one attempt, in seconds."""

MAX_DELAY = 10 * 365 * 86_400.0
"""The maximum delay of a submission, a snooze or a retry, in seconds."""

MAX_WEIGHT = 1_000.0
MIN_WEIGHT = 0.001
"""The maximum and minimum weight of a group."""

UnfinishedState = Literal["pending", "blocked", "scheduled", "inflight"]
JobState = Literal[UnfinishedState, "succeeded", "cancelled", "dead"]

UNFINISHED: frozenset[str] = frozenset(get_args(UnfinishedState))
"""The states of a job that has not ended."""

# Each description says what a value must be. Errors and the OpenAPI document use it.
Name = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        description=f"a string of 1 to {MAX_NAME_LENGTH} characters",
        extra_json_schema={"pattern": r"^[^\u0000]*$"},  # only for OpenAPI; `documents.encode` rejects NUL
    ),
]
PathName = Annotated[
    Name,
    msgspec.Meta(
        pattern=r"^(?!\.{1,2}(?![\s\S]))[^\u0000]*$",  # $ alone also matches before a final newline
        description=f'a string of 1 to {MAX_NAME_LENGTH} characters, but not "." or ".."',
    ),
]
"""The name of a queue or a schedule. It is a segment of URL paths, where "." and ".." have another meaning."""
Weight = Annotated[float, msgspec.Meta(ge=MIN_WEIGHT, le=MAX_WEIGHT, description=f"a number from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")]
Priority = Annotated[int, msgspec.Meta(ge=0, le=MAX_PRIORITY, description=f"an integer from 0 to {MAX_PRIORITY}")]
Retries = Annotated[int, msgspec.Meta(ge=0, le=MAX_RETRIES, description=f"an integer from 0 to {MAX_RETRIES}")]
Timeout = Annotated[
    float, msgspec.Meta(gt=0, le=MAX_TIMEOUT, description=f"a number of seconds above 0 and up to {MAX_TIMEOUT:.0f}")
]
Delay = Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY, description=f"a number of seconds from 0 to {MAX_DELAY:.0f}")]
Instant = Annotated[
    datetime,
    msgspec.Meta(
        tz=True,
        description="a date and time with its UTC offset, such as 2030-01-31T08:00:00Z",
        examples=["2030-01-31T08:00:00Z"],
    ),
]
TraceHeader = Annotated[str, msgspec.Meta(description="a string in the format of W3C Trace Context; a malformed one is ignored")]
Flag = Annotated[bool, msgspec.Meta(description="true or false")]


class JobColumns(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The fields of a submitted job that have a column in the job's table.

    Attributes:
        kind: selects the handler.
        payload: the handler's input; null means ``{}``.
        queue: the queue in which the job waits.
        priority: jobs with a higher priority run first.
        max_retries: the maximum number of retries after failed attempts; default: the handler's value, or 3 if that is not set.
        run_at: when the job is due; default: now.
        delay: the time until the job is due.
        timeout: the time limit of one attempt; default: the handler's limit, if it has one.
    """

    kind: Name = "default"
    payload: Any = msgspec.field(default_factory=dict)
    queue: PathName = "default"
    priority: Priority = 0
    max_retries: Retries | None = None
    run_at: Instant | None = None
    delay: Delay | None = None
    timeout: Timeout | None = None


class Submission(JobColumns, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The fields of a submitted job. Every field has a default, so ``{}`` is a valid job.

    This struct and `JobColumns` define each field once: the name, the meaning, the values, and the default. The fields below are
    stored in the column ``options``. ``tests/test_job_fields.py`` compares all other places that name the fields.

    Attributes:
        expires_at: the time after which the job is not started any more; it must be in the future.
        expires_in: the time from the submission after which the job is not started any more.
        group: the fair group whose share of the workers the job uses.
        weight: the group's share of the workers; default: 1.
        concurrency_key: jobs with the same key run one at a time, unless the queue allows more.
        unique: submit the job only if no unfinished job has the same queue, kind and payload.
        unique_key: submit the job only if no unfinished job has this key.
        idempotency_key: another submission with the same key returns the first job.
        traceparent: the submitter's span, which becomes the parent of the handler's span.
        tracestate: the vendor-specific part of the trace.
    """

    EXCLUSIVE: ClassVar = (("run_at", "delay"), ("expires_at", "expires_in"))
    """Pairs of fields of which only one may have a value."""

    SCHEDULED: ClassVar = frozenset({"kind", "payload", "queue", "priority", "max_retries", "timeout"})
    """The fields that a cron schedule sets."""

    NOT_IN_SQL: ClassVar = frozenset({"delay", "expires_in"})
    """The fields that ``jobqueue.submit`` in SQL lacks, because the caller can compute the time."""

    ONLY_IN_FILES: ClassVar = frozenset({"expires_at", "traceparent", "tracestate"})
    """The fields that ``jobqueue submit`` accepts only in the lines of ``--file``."""

    expires_at: Instant | None = None
    expires_in: Delay | None = None
    group: Name | None = None
    weight: Weight | None = None
    concurrency_key: Name | None = None
    unique: Flag | None = None
    unique_key: Name | None = None
    idempotency_key: Name | None = None
    traceparent: TraceHeader | None = None
    tracestate: TraceHeader | None = None


class Options(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The options of a job that are not columns of its table, and data that the database added. Times are in seconds.

    Attributes:
        expires_at: the time after which the job is not started any more, by the database's clock.
        expires_in: the same time, relative to the submission in a `NewJob`, and to the claim in a `ClaimedJob`.
        start_by: the same time, by the clock of the node that claimed the job.
        turn: the job's turn among the jobs of groups, in virtual time.
        rank: the job's rank in the queue, if the database has fixed it.
        schedule: the name of the cron schedule that submitted the job.
        scheduled_for: the tick for which the schedule submitted the job.
        traceparent: the parent of the handler's span, see `jobqueue.tracing`.
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
    traceparent: str | None = None
    tracestate: str | None = None


class NewJob(JobColumns, omit_defaults=True, kw_only=True):
    """A submission in the form of ``jobqueue_internal.submit_batch``. If it has no id, the database chooses one."""

    id: str = ""
    options: Options | None = None


class ClaimedJob(msgspec.Struct, array_like=True, frozen=True):
    """A row returned by ``jobqueue_internal.claim``: a job that this node must run. Times are in seconds, by the
    database's clock."""

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
    saved: Any = None

    @property
    def expired(self) -> bool:
        """Whether the job had expired when it was claimed. If so, the job is a dead letter, and does not belong to this node."""
        options = self.options
        return options is not None and options.expires_at is not None and options.expires_in is not None and options.expires_in <= 0

    @property
    def last_attempt(self) -> bool:
        """Whether this attempt is the job's last one if it fails."""
        return self.attempt > self.max_retries

    @property
    def log_context(self) -> Mapping[str, Any]:
        """The fields of every log line about this job."""
        return {"job_id": self.id, "kind": self.kind, "queue": self.queue, "attempt": self.attempt}


class Handle(Protocol):
    """The part of an attempt that its `Job` can use, from any thread."""

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was ended early."""
        ...

    @property
    def nursery(self) -> trio.Nursery | None:
        """The nursery of the handler's tasks; None if the handler is not async."""
        ...

    def note(self, name: str, document: bytes) -> None:
        """Store an encoded document under this name."""


class _Elsewhere:
    """The handle of a job in another process, which has no connection to the attempt."""

    cancelled = False
    nursery = None

    def note(self, name: str, document: bytes) -> None:  # noqa: ARG002 - the signature of `Handle`
        raise RuntimeError(
            f"job.{name} does not work in a handler with cpu=True: it runs in another process and can only return its result"
        )


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """The job that a handler runs, for handlers with a parameter ``job: jobqueue.Job``.

    Tests may create a `Job`. Such a job belongs to no attempt, so its progress and checkpoints are discarded.

    Attributes:
        id: the job's UUID (version 7), as text.
        payload: the decoded JSON document.
        attempt: 1 for the first attempt; `max_retries` + 1 is the last.
        created_at: when the job was submitted, by the database's clock, in UTC.
        scheduled_for: the tick for which a cron schedule submitted the job, in UTC; None for other jobs.
        last_checkpoint: the last `checkpoint` of an earlier attempt; None without one.
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
    last_checkpoint: Any = None
    _run: Handle | None = None

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
            last_checkpoint=claimed.saved.get("checkpoint") if isinstance(claimed.saved, dict) else None,
        )

    @property
    def cancelled(self) -> bool:
        """Whether the handler must stop: the job was cancelled, the node is stopping, or a thread's timeout has passed.

        Handlers in threads must check this regularly and return, because nothing else can stop them. Async handlers get
        `trio.Cancelled`.
        """
        return self._run is not None and self._run.cancelled

    @property
    def nursery(self) -> trio.Nursery:
        """The nursery of this attempt. Tasks that an async handler starts in it end before the attempt does.

        When the handler returns, the attempt waits for the tasks. When the handler fails, times out or is cancelled, the tasks are
        cancelled. If a task fails, the attempt fails.

        Raises:
            AttributeError: the handler is not async, or the job belongs to no running attempt.
        """
        nursery = None if self._run is None else self._run.nursery
        if nursery is None:
            raise AttributeError("job.nursery exists only in an async handler (async def), and only while it runs")
        return nursery

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Report the job's progress. The call returns at once; the node writes the latest report once a second.

        Args:
            fraction: from 0 to 1; None if unknown.
            message: the current step; it is cut to `MAX_PROGRESS_MESSAGE` characters.

        Raises:
            ValueError: the fraction is out of range.
        """
        # A sum of floats can end just above 1. This must not make an attempt fail at its end.
        rounded = None if fraction is None else round(fraction, 6)
        if rounded is not None and not 0 <= rounded <= 1:
            raise ValueError(f"job.progress: fraction must be from 0 to 1, or None, got {fraction!r}")
        text = documents.storable(message[:MAX_PROGRESS_MESSAGE], MAX_PROGRESS_MESSAGE)
        self._note("progress", documents.encode({"fraction": rounded, "message": text}))

    def checkpoint(self, data: Any) -> None:
        """Store data from which a later attempt can continue, see `last_checkpoint`. A checkpoint replaces earlier ones.

        The call returns at once, and the data may be changed afterwards. The node writes the latest checkpoint once a second, and
        at the end of the attempt. If the process is killed, only checkpoints of the last second are lost.

        Args:
            data: any value with a JSON form of at most `MAX_CHECKPOINT_BYTES`.

        Raises:
            ValueError: the data has no JSON form, or is too large.
        """
        try:
            document = documents.encode(data, limit=MAX_CHECKPOINT_BYTES)
        except documents.RefusedDocument as error:
            raise ValueError(f"job.checkpoint: data cannot be stored: {error}") from None
        self._note("checkpoint", document)

    def _note(self, name: str, document: bytes) -> None:
        if self._run is not None:
            self._run.note(name, document)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the job for another process without its attempt, see `_Elsewhere`."""
        return _arrived, ({name: getattr(self, name) for name in self.__struct_fields__ if name != "_run"},)


def _arrived(fields: dict[str, Any]) -> Job:
    return Job(**fields, _run=_Elsewhere())


class Change(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Changes to a waiting job; null leaves a value unchanged.

    Attributes:
        priority: jobs with a higher priority run first.
        run_at: when the job is due; a time in the past means now.
        delay: seconds from now until the job is due.
    """

    EXCLUSIVE: ClassVar = (("run_at", "delay"),)

    priority: Priority | None = None
    run_at: Instant | None = None
    delay: Delay | None = None


class AttemptError(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An entry of a job's error history. The database adds the node, and the time by the database's clock.

    Attributes:
        attempt: the number of the failed attempt.
        error: the message, in one or a few lines.
        duration: the attempt's duration in seconds.
        traceback: the traceback of an exception.
    """

    attempt: int
    error: str
    duration: float
    traceback: str | None = None


Verdict = Literal["succeeded", "dead", "retry", "snoozed", "released", "cancelled"]


class Note(msgspec.Struct, frozen=True):
    """The notes of one run in the form of ``jobqueue_internal.note``; `saved` is an object with the new progress and checkpoint."""

    id: str
    claims: int
    saved: msgspec.Raw


class Outcome(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The outcome of one run in the form of ``jobqueue_internal.finish``. `id` and `claims` identify the run; they are its
    fencing token.

    Attributes:
        outcome: how the run ended. This decides to which table the job's row moves.
        result: the handler's return value as JSON (succeeded).
        reason: text for the people who read the dead letter (dead).
        error: the entry for the error history (dead, retry).
        delay: seconds until the job is due again (retry, snoozed).
        saved: notes of the run that are not written yet.
    """

    id: str
    claims: int
    outcome: Verdict
    result: msgspec.Raw | None = None
    reason: str | None = None
    error: AttemptError | None = None
    delay: float | None = None
    saved: msgspec.Raw | None = None
