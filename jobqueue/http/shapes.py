"""What the answers of HTTP hold, one struct for each kind of document: the description of the API is made of them.

The views do not make these: they pass on what the node gives. `tests/test_openapi.py` holds each answer against its shape.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jobqueue.http.problems import Problem

Time = Annotated[datetime, Meta(tz=True)]
State = Literal["scheduled", "pending", "blocked", "inflight", "succeeded", "cancelled", "dead"]
Count = Annotated[int, Meta(ge=0)]


class MadeJob(msgspec.Struct, kw_only=True):
    """The job that was submitted: it is committed.

    Attributes:
        id: the job's id, a UUID of version 7.
    """

    id: UUID


class SubmittedJob(MadeJob, kw_only=True):
    """The job that was submitted: it is committed.

    Attributes:
        ignored: names of fields that jobs do not have, sorted.
    """

    ignored: list[str] | UnsetType = UNSET


class SubmittedJobs(msgspec.Struct, kw_only=True):
    """The jobs that were submitted: all of them are committed.

    Attributes:
        ids: the jobs' ids, in their order.
        existing: the positions of those that were there already, as their keys tell; left out where no job has a key.
        ignored: names of fields that jobs do not have, sorted.
    """

    ids: list[UUID]
    existing: list[Count] | UnsetType = UNSET
    ignored: list[str] | UnsetType = UNSET


class PartialBatch(msgspec.Struct, kw_only=True):
    """What was committed of a batch that was sent with `partial=true`.

    Attributes:
        ids: the jobs' ids, in their order; null for those that are refused.
        existing: the positions of those that were there already; left out where no job has a key.
        ignored: names of fields that jobs do not have, sorted.
        errors: what is wrong with those that are refused, of up to 100.
        refused: how many that are.
    """

    ids: list[UUID | None]
    existing: list[Count] | UnsetType = UNSET
    ignored: list[str] | UnsetType = UNSET
    errors: list[Problem]
    refused: Count


class JobOptions(msgspec.Struct, kw_only=True):
    """What was asked of a job beyond the usual, and what its schedule noted.

    Attributes:
        expires_at: when it is no use to start the job any more.
        group: what it shares the workers as.
        weight: the group's share.
        concurrency_key: what its queue's limits for keys count it by.
        unique: whether it is the only unfinished job of its kind and payload.
        unique_key: what only one unfinished job may have.
        idempotency_key: what a submission that is sent again is known by.
        schedule: the cron schedule that submitted the job.
        scheduled_for: the tick that it was submitted for.
    """

    expires_at: Time | UnsetType = UNSET
    group: str | UnsetType = UNSET
    weight: float | UnsetType = UNSET
    concurrency_key: str | UnsetType = UNSET
    unique: bool | UnsetType = UNSET
    unique_key: str | UnsetType = UNSET
    idempotency_key: str | UnsetType = UNSET
    schedule: str | UnsetType = UNSET
    scheduled_for: Time | UnsetType = UNSET


class FailedAttempt(msgspec.Struct, kw_only=True):
    """One entry of a job's error history.

    Attributes:
        attempt: which attempt failed, from 1.
        at: when, by the database's clock.
        node: the node that ran it.
        error: what happened.
        duration: seconds that the attempt ran.
        traceback: where it happened, for an exception.
    """

    attempt: Count
    at: Time
    node: UUID | None
    error: str
    duration: float | UnsetType | None = UNSET
    traceback: str | UnsetType = UNSET


class Progress(msgspec.Struct, kw_only=True):
    """How far a job is, as its handler told.

    Attributes:
        fraction: from 0 to 1; null when nobody knows.
        message: what it is at.
    """

    fraction: Annotated[float, Meta(ge=0, le=1)] | None
    message: str


class JobDetails(msgspec.Struct, kw_only=True):
    """A job with everything that is known of it. Times are by the database's clock.

    Attributes:
        id: a UUID of version 7.
        state: where it is on its way.
        payload: what its handler is given.
        priority: higher runs first.
        attempt: how many attempts have begun.
        claims: how often a node took it, which includes what was not counted as an attempt.
        max_retries: null until the first attempt: then the job's own number, its handler's, or 3.
        timeout: seconds that an attempt may take; null for its handler's, or none.
        created_at: when it was submitted.
        available_since: what it has waited from.
        run_at: when it is due, while it is scheduled.
        claimed_at: when a node took it.
        cancel_requested_at: when somebody asked for the end of a job that runs.
        ended_at: when it succeeded, died or was cancelled.
        node_id: the node that has it, or had it last.
        result: what its handler returned.
        reason: why it is dead.
        errors: its failed attempts, the last ten.
        progress: what its handler told last.
        checkpoint: what its handler kept for a later attempt.
    """

    id: UUID
    kind: str
    queue: str
    state: State
    payload: Any
    priority: int
    attempt: Count
    claims: Count
    max_retries: int | None
    timeout: float | None
    created_at: Time
    available_since: Time
    run_at: Time | None
    claimed_at: Time | None
    cancel_requested_at: Time | None
    ended_at: Time | None
    node_id: UUID | None
    result: Any
    reason: str | None
    errors: list[FailedAttempt]
    options: JobOptions | None
    progress: Progress | None
    checkpoint: Any


class GoneJob(msgspec.Struct, kw_only=True):
    """What is left to say of a job that was not kept.

    Attributes:
        state: what became of it.
    """

    id: UUID
    state: State | Literal["gone"]


class DiscardedJob(JobDetails, kw_only=True):
    """A dead job as it was before it was deleted."""

    state: Literal["discarded"]  # type: ignore[assignment]


class ListedJob(msgspec.Struct, kw_only=True):
    """A job on a list: what it is about, and where it is on its way.

    Attributes:
        attempt: how many attempts have begun.
        run_at: when it is due, while it is scheduled.
        node_id: the node that has it, or had it last.
        reason: why it is dead.
    """

    id: UUID
    state: State
    queue: str
    kind: str
    priority: int
    attempt: Count
    max_retries: int | None
    created_at: Time
    run_at: Time | None
    claimed_at: Time | None
    ended_at: Time | None
    node_id: UUID | None
    reason: str | None
    options: JobOptions | None
    progress: Progress | None


class Jobs(msgspec.Struct, kw_only=True):
    """A page of jobs.

    Attributes:
        jobs: the latest first; there may be few or none while there is a next page.
        next: where the next page begins, for `after`; null on the last one.
    """

    jobs: list[ListedJob]
    next: UUID | None


class DeadLetter(msgspec.Struct, kw_only=True):
    """A dead job on a list, without its payload.

    Attributes:
        reason: why it is dead.
        error: the last error of its history.
        cause: what that, or else the reason, has in common with others.
        attempt: how many attempts it had.
        died_at: when it died, by the database's clock.
        node_id: the node that had it last.
    """

    id: UUID
    kind: str
    queue: str
    priority: int
    attempt: Count
    max_retries: int | None
    created_at: Time
    died_at: Time
    node_id: UUID | None
    reason: str
    error: str | None
    cause: str
    options: JobOptions | None


class DeadLetters(msgspec.Struct, kw_only=True):
    """A page of dead letters.

    Attributes:
        jobs: the latest first.
        next: where the next page begins, for `after`; null on the last one.
    """

    jobs: list[DeadLetter]
    next: str | None


class DeadCause(msgspec.Struct, kw_only=True):
    """Dead letters of one queue and kind that have the same cause.

    Attributes:
        cause: the last error, or else the reason, without numbers, ids, addresses and quoted values: `#` stands for them.
        jobs: how many.
        first_died_at: when the first of them died, by the database's clock.
        last_died_at: when the latest did.
        example: the id of the latest.
    """

    queue: str
    kind: str
    cause: str
    jobs: Count
    first_died_at: Time
    last_died_at: Time
    example: UUID


class DeadCauses(msgspec.Struct, kw_only=True):
    """The causes of dead letters.

    Attributes:
        causes: the largest first.
        more: whether there are more than were asked for.
    """

    causes: list[DeadCause]
    more: bool


class Moved(msgspec.Struct, kw_only=True):
    """How many jobs were meant."""

    jobs: Count


class Throughput(msgspec.Struct, kw_only=True):
    """What was done over the last minute.

    Attributes:
        completed: jobs that succeeded, a second.
        failed: attempts that failed, a second.
    """

    completed: float
    failed: float


class QueueState(msgspec.Struct, kw_only=True):
    """A queue with what holds for it on all nodes. One that nobody has configured or worked has only a name, and is not paused.

    Attributes:
        aging_interval: seconds that a job waits to be worth one point of priority more.
        max_running: how many of its jobs run at a time; null for no limit.
        rate: how many start a second, in the long run; null for no limit.
        burst: how many start at once after a pause; null for as many as the rate gives in a second.
        key_max_running: how many jobs of one concurrency key run at a time; null for 1.
        key_rate: how many jobs of one concurrency key start a second; null for no limit.
        key_burst: how many of them start at once after a pause.
        depth: how many jobs there are, by state.
        oldest: for how many seconds the oldest job has been in a state; of scheduled jobs, since it was due.
        throughput: on all nodes.
    """

    name: str
    paused: bool
    aging_interval: float | UnsetType = UNSET
    max_running: int | UnsetType | None = UNSET
    rate: float | UnsetType | None = UNSET
    burst: int | UnsetType | None = UNSET
    key_max_running: int | UnsetType | None = UNSET
    key_rate: float | UnsetType | None = UNSET
    key_burst: int | UnsetType | None = UNSET
    created_at: Time | UnsetType | None = UNSET
    depth: dict[str, Count] | UnsetType = UNSET
    oldest: dict[str, float] | UnsetType = UNSET
    throughput: Throughput | UnsetType = UNSET


class PausedQueue(msgspec.Struct, kw_only=True):
    """Whether a queue is paused now."""

    queue: str
    paused: bool


class RunningJobs(msgspec.Struct, kw_only=True):
    """What a node holds of one queue and kind.

    Attributes:
        jobs: how many.
        oldest: for how many seconds it has held the oldest.
    """

    queue: str
    kind: str
    jobs: Count
    oldest: float


class NodeState(msgspec.Struct, kw_only=True):
    """A running node, by the database's clock.

    Attributes:
        id: a new one with each start.
        queues: how many jobs of each queue it runs at once.
        lease_until: when its jobs are given to others, unless it is heard of before.
    """

    id: UUID
    host: str
    pid: int
    version: str
    queues: dict[str, int]
    started_at: Time
    heartbeat_at: Time
    lease_until: Time
    running: list[RunningJobs]
    throughput: Throughput


class TaskJob(msgspec.Struct, kw_only=True):
    """The job that a task runs."""

    id: UUID
    kind: str
    queue: str


class TaskNursery(msgspec.Struct, kw_only=True):
    """The tasks of one nursery."""

    tasks: list[Task]


class Task(msgspec.Struct, kw_only=True):
    """A live Trio task. What is shown are names of functions and places in the code, never values.

    Attributes:
        waits_on: the call that it is suspended in: `function (file:line)`, or `running` for the task that answers.
        stack: the functions that it is in, the outermost first.
        since: seconds for which it has waited, at the least; null while that is not known.
        job: what it runs, if it is a worker.
        nurseries: its children, the outer nursery first.
        more: children that are left out.
    """

    name: str
    waits_on: str
    stack: list[str]
    since: float | None
    job: TaskJob | None
    nurseries: list[TaskNursery]
    more: Count


class Tasks(msgspec.Struct, kw_only=True):
    """The live tasks of the node that answers.

    Attributes:
        node: its id.
        at: when this was, by the node's own clock.
        tasks: how many there are, those that are left out among them.
        root: the first task, below which all others are.
    """

    node: UUID
    at: Time
    tasks: Count
    root: Task


class ScheduleState(msgspec.Struct, kw_only=True):
    """A cron schedule, and where it stands.

    Attributes:
        source: the module that declares it; null where it was made over HTTP or in SQL.
        missed: which of several due ticks get a job.
        next_at: its next tick; null until a node has computed it, or when there is an error.
        last_at: the last tick that got a job.
        error: why there is no next tick.
    """

    name: str
    source: str | None
    cron: str
    timezone: str
    missed: str
    kind: str
    payload: Any
    queue: str
    priority: int
    max_retries: int | None
    timeout: float | None
    paused: bool
    next_at: Time | None
    last_at: Time | None
    error: str | None
    created_at: Time
    updated_at: Time


class Health(msgspec.Struct, kw_only=True):
    """That all is well."""

    status: Literal["ok"]


class Trouble(msgspec.Struct, kw_only=True):
    """Why a node is not able to work."""

    status: Literal["unavailable"]
    reasons: list[str]


class Event(msgspec.Struct, kw_only=True):
    """One server-sent event.

    Attributes:
        event: what changed; `end` is the last.
        id: a number, or `end`.
        data: JSON: the state with the attempt, the progress, the checkpoint, and at the end the whole job.
    """

    event: Literal["state", "progress", "checkpoint", "end"]
    id: str
    data: str
