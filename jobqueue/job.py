"""The values that travel through jobqueue: what is submitted, what a handler sees, and what became of a run.

All of them are plain data. Three cross the database boundary as JSON: `NewJob` into ``jobqueue.submit_many``, `ClaimedJob` out of
``jobqueue.claim`` and `Outcome` into ``jobqueue.finish``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, get_args

import msgspec
from msgspec import UNSET, UnsetType

from jobqueue import documents, fields
from jobqueue.errors import InvalidQueueSetting

if TYPE_CHECKING:
    import trio

MAX_PAYLOAD_BYTES = 1 << 20
"""The largest payload of one job, as JSON in UTF-8."""

MAX_RESULT_BYTES = 1 << 20
"""The largest result that a handler may return, as JSON in UTF-8."""

MAX_CHECKPOINT_BYTES = 64 << 10
"""The largest checkpoint of a job, as JSON in UTF-8."""

MAX_PROGRESS_MESSAGE = 500
"""Characters kept of what a job says that it is at."""

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

MAX_AGING_INTERVAL = 86_400.0
"""The longest aging interval of a queue, in seconds."""

MAX_LIMIT = 1_000_000
MIN_RATE = 0.00001
"""The highest limit of a queue or key, of jobs at a time, of starts a second or at once; and the lowest rate: about one a day."""

MAX_WEIGHT = 1_000.0
MIN_WEIGHT = 0.001
"""The bounds of a group's weight."""

UnfinishedState = Literal["pending", "blocked", "scheduled", "inflight"]
JobState = Literal[UnfinishedState, "succeeded", "cancelled", "dead"]

# A description says what a value must be: in the error for one that is not, and in the API's own description.
Name = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=MAX_NAME_LENGTH,
        description=f"a string of 1 to {MAX_NAME_LENGTH} characters",
        extra_json_schema={"pattern": r"^[^\u0000]*$"},  # told, and held by `documents.encode`: here each name would be searched
    ),
]
PathName = Annotated[
    Name,
    msgspec.Meta(
        pattern=r"^(?!\.{1,2}(?![\s\S]))[^\u0000]*$",  # $ alone may stand before a line's end
        description=f'a string of 1 to {MAX_NAME_LENGTH} characters, but not "." or ".."',
    ),
]
"""The name of a queue or a schedule, which is a segment of a URL's path: there, "." and ".." mean something else."""
Text = Annotated[
    Name,
    msgspec.Meta(
        description=f"the beginning of an id, or a part of the error or the reason, a string of 1 to {MAX_NAME_LENGTH} characters"
    ),
]
Cause = Annotated[
    Name, msgspec.Meta(description=f"a cause as GET /dead/causes has it, a string of 1 to {MAX_NAME_LENGTH} characters")
]
Part = Annotated[Name, msgspec.Meta(description=f"a part of the reason, a string of 1 to {MAX_NAME_LENGTH} characters")]
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
TraceHeader = Annotated[str, msgspec.Meta(description="a string, as W3C Trace Context has it; a malformed one is ignored")]
Flag = Annotated[bool, msgspec.Meta(description="true or false")]
All = Annotated[Literal[True], msgspec.Meta(description="true")]
AgingInterval = Annotated[
    float,
    msgspec.Meta(ge=0, le=MAX_AGING_INTERVAL, description=f"a number of seconds from 0 to {MAX_AGING_INTERVAL:.0f}, or null for 1"),
]
Limit = Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT, description=f"an integer from 1 to {MAX_LIMIT}, or null for none")]
KeyLimit = Annotated[Limit, msgspec.Meta(description=f"an integer from 1 to {MAX_LIMIT}, or null for 1")]
Rate = Annotated[
    float, msgspec.Meta(ge=MIN_RATE, le=MAX_LIMIT, description=f"a number from {MIN_RATE:.5f} to {MAX_LIMIT}, or null for none")
]


class Submission(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What a submitter may say about a job. Every field has a default: ``{}`` is a job.

    Attributes:
        kind: names the handler.
        payload: what the handler is given; null is ``{}``.
        queue: where it waits.
        priority: higher runs first.
        max_retries: how often it is run again after a failed attempt; null for the handler's number, or 3.
        run_at: when it is due; now unless told.
        delay: how long until it is due.
        timeout: how long an attempt may take; null for the handler's, or no bound.
        expires_at: when it is no use to start it any more; not before it is submitted.
        expires_in: the same, from the submission on.
        group: whose share of the workers it takes.
        weight: the group's share; 1 unless told.
        concurrency_key: what its queue's limits for keys count it by.
        unique: whether to keep it from coming while another with its kind and payload is not finished.
        unique_key: the same, for another with this key.
        idempotency_key: makes a submission that is sent again the same job.
        traceparent: the span of the submitter, whose child the handler's is.
        tracestate: what goes along with it.
    """

    EXCLUSIVE: ClassVar = (("run_at", "delay"), ("expires_at", "expires_in"))
    """Pairs of fields of which only one may have a value."""

    kind: Name = "default"
    payload: Any = msgspec.field(default_factory=dict)
    queue: PathName = "default"
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
    unique: Flag | None = None
    unique_key: Name | None = None
    idempotency_key: Name | None = None
    traceparent: TraceHeader | None = None
    tracestate: TraceHeader | None = None


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
        traceparent: whose span its handler's is a child of, see `jobqueue.tracing`.
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
    saved: Any = None

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


class Handle(Protocol):
    """What a `Job` can reach of the run that it was made for, from any thread."""

    @property
    def cancelled(self) -> bool:
        """Whether the run was ended early."""
        ...

    @property
    def nursery(self) -> trio.Nursery | None:
        """What the handler's tasks run in; None where it is no async handler."""
        ...

    def note(self, name: str, document: bytes) -> None:
        """Keep an encoded document under this name."""


class _Elsewhere:
    """The handle of a job that was sent to another process: nothing leads back from there."""

    cancelled = False
    nursery = None

    def note(self, name: str, document: bytes) -> None:  # noqa: ARG002 - it is what a handle has
        raise RuntimeError(
            f"job.{name} does not work in another process, as cpu=True makes one: a cpu handler can only return its result"
        )


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a handler can know of the job that it runs, and what it can do with it: give it a parameter ``job: jobqueue.Job``.

    A test may make one of its own: it has no run, and what is noted goes nowhere.

    Attributes:
        id: the job's UUID (version 7), as text.
        payload: the decoded JSON document.
        attempt: 1 for the first run; `max_retries` + 1 is the last.
        created_at: when the job was submitted, by the database's clock, in UTC.
        scheduled_for: the tick of the cron schedule that the job was submitted for, in UTC; None for any other job.
        last_checkpoint: what `checkpoint` was last given in an earlier attempt; None when it was not.
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
        """Whether this run is over for the service: somebody cancelled the job, the node stops, or a thread's time was up.

        It is for handlers in threads, which nothing else can stop: look at it now and then, and return. An async handler gets
        `trio.Cancelled`.
        """
        return self._run is not None and self._run.cancelled

    @property
    def nursery(self) -> trio.Nursery:
        """What this attempt owns: tasks that an async handler starts in it end before the attempt does.

        The handler's return waits for them; its failure, a timeout and a cancellation end them; if some fail, so does the attempt.

        Raises:
            AttributeError: the handler is not an async one, or nobody runs this job.
        """
        nursery = None if self._run is None else self._run.nursery
        if nursery is None:
            raise AttributeError("job.nursery is there in async handlers (async def) while they run, and nowhere else")
        return nursery

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Tell how far the job is, for people to see. It returns at once; a node writes the latest, once a second.

        Args:
            fraction: from 0 to 1; None when nobody knows.
            message: what it is at; characters beyond `MAX_PROGRESS_MESSAGE` are cut off.

        Raises:
            ValueError: the fraction is none.
        """
        # Sums of floats end just above 1: that is no reason to fail an attempt at its end.
        rounded = None if fraction is None else round(fraction, 6)
        if rounded is not None and not 0 <= rounded <= 1:
            raise ValueError(f"job.progress: fraction must be from 0 to 1, or None, got {fraction!r}")
        text = documents.storable(message[:MAX_PROGRESS_MESSAGE], MAX_PROGRESS_MESSAGE)
        self._note("progress", documents.encode({"fraction": rounded, "message": text}))

    def checkpoint(self, data: Any) -> None:
        """Keep what a later attempt needs to go on from here, see `last_checkpoint`; the latest counts.

        It returns at once. A node writes the latest once a second, and at the end of the attempt: only a process that is killed
        loses what was not written, of the last second. The data may be changed afterwards.

        Args:
            data: anything that has a form in JSON, of up to `MAX_CHECKPOINT_BYTES`.

        Raises:
            ValueError: it has none, or is larger.
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
        """Go to another process, without the run: see `_Elsewhere`."""
        return _arrived, ({name: getattr(self, name) for name in self.__struct_fields__ if name != "_run"},)


def _arrived(fields: dict[str, Any]) -> Job:
    return Job(**fields, _run=_Elsewhere())


class DeadConditions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What may be asked of dead jobs; all conditions hold.

    Attributes:
        cause: what the last error, or else the reason, has in common with others.
        reason: a part of the reason that a person reads.
        died_before: by the database's clock; so is `died_after`. Both are exclusive.
    """

    queue: PathName | None = None
    kind: Name | None = None
    group: Name | None = None
    cause: Cause | None = None
    reason: Part | None = None
    died_before: Instant | None = None
    died_after: Instant | None = None


class DeadFilter(DeadConditions):
    """Which dead jobs are meant: ``{}`` is refused where jobs are moved or deleted.

    Attributes:
        all: that no condition is meant to be there.
    """

    all: All | None = None


class JobConditions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What may be asked of jobs in any state; all conditions hold.

    Attributes:
        text: a whole id, or what one begins with, or a part of the last error's message or of the reason, in any case.
        created_after: by the database's clock, and about that by the time in the id; so is `created_before`. Both are exclusive.
    """

    queue: PathName | None = None
    kind: Name | None = None
    group: Name | None = None
    concurrency_key: Name | None = None
    text: Text | None = None
    created_after: Instant | None = None
    created_before: Instant | None = None


class JobFilter(JobConditions):
    """Which jobs are meant: ``{}`` is refused.

    Attributes:
        state: one of these.
        all: that no condition is meant to be there.
    """

    state: Annotated[list[JobState], msgspec.Meta(min_length=1, description=f"of {', '.join(get_args(JobState))}")] | None = None
    all: All | None = None


class Change(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What is to be another about a job that waits; null leaves it as it is.

    Attributes:
        priority: higher runs first.
        run_at: when it may run; what is past is now.
        delay: the same, in seconds from now.
    """

    EXCLUSIVE: ClassVar = (("run_at", "delay"),)

    priority: Priority | None = None
    run_at: Instant | None = None
    delay: Delay | None = None


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


class QueueSettings(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True):
    """What is to hold for a queue on all nodes. A field that is not given stays as it is; null takes it back to what it is without.

    Attributes:
        aging_interval: seconds that a job waits to be worth one point of priority more; for jobs that come from now on.
        max_running: how many of its jobs run at a time.
        rate: how many start a second, in the long run.
        burst: how many start at once after a pause; without it as many as the rate gives in a second, at least one.
        key_max_running: how many jobs of one concurrency key run at a time; 1 without it.
        key_rate: how many jobs of one concurrency key start a second.
        key_burst: how many of them start at once after a pause.
    """

    aging_interval: AgingInterval | UnsetType | None = UNSET
    max_running: Limit | UnsetType | None = UNSET
    rate: Rate | UnsetType | None = UNSET
    burst: Limit | UnsetType | None = UNSET
    key_max_running: KeyLimit | UnsetType | None = UNSET
    key_rate: Rate | UnsetType | None = UNSET
    key_burst: Limit | UnsetType | None = UNSET


def queue_settings(given: Mapping[str, Any]) -> QueueSettings:
    """Make settings of what somebody gave.

    Raises:
        InvalidQueueSetting: one of them is unknown, or out of its range.
    """
    return fields.read(given, QueueSettings, what="a queue", refuse=InvalidQueueSetting)


UNFINISHED: frozenset[str] = frozenset(get_args(UnfinishedState))
"""The states of a job that has not ended."""

Verdict = Literal["succeeded", "dead", "retry", "snoozed", "released", "cancelled"]


class Note(msgspec.Struct, frozen=True):
    """What one run has noted, as ``jobqueue.note`` takes it: an object with what is new of `Saved`."""

    id: str
    claims: int
    saved: msgspec.Raw


class Outcome(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What became of one run, as ``jobqueue.finish`` takes it. `id` and `claims` name the run: the fencing token.

    Attributes:
        outcome: which way the row moves.
        result: the handler's return value as JSON (succeeded).
        reason: what a person reads in the dead letters (dead).
        error: the entry for the error history (dead, retry).
        delay: seconds until the job is due again (retry, snoozed).
        saved: what the run noted and did not come to write.
    """

    id: str
    claims: int
    outcome: Verdict
    result: msgspec.Raw | None = None
    reason: str | None = None
    error: AttemptError | None = None
    delay: float | None = None
    saved: msgspec.Raw | None = None
