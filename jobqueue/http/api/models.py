"""The bodies of HTTP responses, one struct per kind of document. The OpenAPI document is made from these structs.

The views encode the node's values, which `converters` adapts where they differ. `test_openapi.py` compares responses with these
structs.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, UnsetType

from jobqueue.http.responses.problems import Problem

Time = Annotated[datetime, Meta(tz=True)]
State = Literal["scheduled", "pending", "blocked", "inflight", "succeeded", "cancelled", "dead"]
Count = Annotated[int, Meta(ge=0)]


class MadeJob(msgspec.Struct, kw_only=True):
    """The submitted job, which is committed.

    Attributes:
        id: the job's id, a UUID of version 7.
    """

    id: UUID


class SubmittedJob(MadeJob, kw_only=True):
    """The submitted job, which is committed.

    Attributes:
        ignored: names of unknown fields, sorted.
    """

    ignored: list[str] | UnsetType = UNSET


class SubmittedJobs(msgspec.Struct, kw_only=True):
    """The submitted jobs, which are all committed.

    Attributes:
        ids: the jobs' ids, in the order of the batch.
        existing: the positions of jobs that existed before, according to their keys; absent if no job has a key.
        ignored: names of unknown fields, sorted.
    """

    ids: list[UUID]
    existing: list[Count] | UnsetType = UNSET
    ignored: list[str] | UnsetType = UNSET


class PartialBatch(msgspec.Struct, kw_only=True):
    """The committed jobs of a batch that was sent with `partial=true`.

    Attributes:
        ids: the jobs' ids, in the order of the batch; null for rejected jobs.
        existing: the positions of jobs that existed before; absent if no job has a key.
        ignored: names of unknown fields, sorted.
        errors: the problems of rejected jobs, at most 100.
        refused: the number of rejected jobs.
    """

    ids: list[UUID | None]
    existing: list[Count] | UnsetType = UNSET
    ignored: list[str] | UnsetType = UNSET
    errors: list[Problem]
    refused: Count


class JobOptions(msgspec.Struct, kw_only=True):
    """The optional settings of a job, and the schedule that submitted it.

    Attributes:
        expires_at: the time after which the job is no longer started.
        group: the fair group that the job belongs to.
        weight: the group's share of the workers.
        concurrency_key: the key of the job for the queue's limits per concurrency key.
        unique: whether it is the only unfinished job of its kind and payload.
        unique_key: a key that only one unfinished job may have.
        idempotency_key: the key that identifies a repeated submission.
        schedule: the cron schedule that submitted the job.
        scheduled_for: the tick that the job was submitted for.
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
        attempt: the number of the attempt, from 1.
        at: when it failed, by the database's clock.
        node: the node that ran it.
        error: the error message.
        duration: the duration of the attempt, in seconds.
        traceback: the traceback, if the error is an exception.
    """

    attempt: Count
    at: Time
    node: UUID | None
    error: str
    duration: float | UnsetType | None = UNSET
    traceback: str | UnsetType = UNSET


class Progress(msgspec.Struct, kw_only=True):
    """The progress of a job, as its handler reported it.

    Attributes:
        fraction: from 0 to 1; null if unknown.
        message: the handler's description of its progress.
    """

    fraction: Annotated[float, Meta(ge=0, le=1)] | None
    message: str


class JobDetails(msgspec.Struct, kw_only=True):
    """A whole job. Times are by the database's clock.

    Attributes:
        id: a UUID of version 7.
        state: the state of the job.
        payload: the argument of its handler.
        priority: jobs with a higher priority run first.
        attempt: the number of attempts that have begun.
        claims: the number of times a node claimed it, including claims that did not count as an attempt.
        max_retries: the maximum number of retries. If the job was submitted without a value, it is null until the first attempt.
            The first attempt sets it to the handler's value, or to 3 if the handler has none.
        timeout: the maximum duration of an attempt, in seconds. If it is null, the handler's timeout applies, or none.
        created_at: when it was submitted.
        available_since: when its wait began.
        run_at: when it is due, if it is scheduled.
        claimed_at: when a node claimed it.
        cancel_requested_at: when the cancellation of a running job was requested.
        ended_at: when it succeeded, died, or was cancelled.
        node_id: the node that runs it, or ran it last.
        result: the return value of its handler.
        reason: why it is dead.
        errors: its last ten failed attempts.
        progress: the last progress that its handler reported.
        checkpoint: the value that its handler saved for a later attempt.
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
    """A job that is no longer stored.

    Attributes:
        state: its last known state, or `gone`.
    """

    id: UUID
    state: State | Literal["gone"]


class DiscardedJob(JobDetails, kw_only=True):
    """A dead job as it was before it was deleted."""

    state: Literal["discarded"]  # type: ignore[assignment]


class ListedJob(msgspec.Struct, kw_only=True):
    """A job on a list, without its payload, result, and errors.

    Attributes:
        attempt: the number of attempts that have begun.
        run_at: when it is due, if it is scheduled.
        node_id: the node that runs it, or ran it last.
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
        jobs: the jobs, the latest first; a page may have few jobs, or none, even if there is a next page.
        next: the value of `after` for the next page; null on the last page.
    """

    jobs: list[ListedJob]
    next: UUID | None


class DeadLetter(msgspec.Struct, kw_only=True):
    """A dead job on a list, without its payload.

    Attributes:
        reason: why it is dead.
        error: the last error in its history.
        cause: the error, or else the reason, without its variable parts; equal for similar failures.
        attempt: the number of its attempts.
        died_at: when it died, by the database's clock.
        node_id: the node that ran it last.
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
        jobs: the dead letters, the latest first.
        next: the value of `after` for the next page; null on the last page.
    """

    jobs: list[DeadLetter]
    next: str | None


class DeadCause(msgspec.Struct, kw_only=True):
    """Dead letters of one queue and kind that have the same cause.

    Attributes:
        cause: the last error, or else the reason, with `#` in place of numbers, ids, addresses, and quoted values.
        jobs: the number of dead letters.
        first_died_at: when the first of them died, by the database's clock.
        last_died_at: when the latest of them died.
        example: the id of the dead letter that died last.
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
        causes: the groups, the largest first.
        more: whether there are more groups than `limit`.
    """

    causes: list[DeadCause]
    more: bool


class Moved(msgspec.Struct, kw_only=True):
    """The number of jobs that match the filter."""

    jobs: Count


class Throughput(msgspec.Struct, kw_only=True):
    """Rates over the last minute.

    Attributes:
        completed: succeeded jobs per second.
        failed: failed attempts per second.
    """

    completed: float
    failed: float


class QueueState(msgspec.Struct, kw_only=True):
    """A queue with its settings for all nodes. A queue that was never configured or worked has only a name, and is not paused.

    Attributes:
        aging_interval: the seconds of waiting that raise a job's priority by one point.
        max_running: the maximum number of running jobs; null for no limit.
        rate: the maximum number of jobs started per second, in the long run; null for no limit.
        burst: the maximum number of jobs started at once after a pause; null for the number that `rate` allows in a second.
        key_max_running: the maximum number of running jobs per concurrency key; null for 1.
        key_rate: the maximum number of jobs started per second for each concurrency key; null for no limit.
        key_burst: the maximum number of jobs of one concurrency key started at once after a pause.
        depth: the number of jobs, by state.
        oldest: the age of the oldest job in seconds, by state. For a scheduled job, this is the time since it was due.
        throughput: the rates on all nodes.
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
    """A queue that was paused or resumed."""

    queue: str
    paused: bool


class RunningJobs(msgspec.Struct, kw_only=True):
    """The claimed jobs of one queue and kind on a node.

    Attributes:
        jobs: the number of jobs.
        oldest: the seconds since the oldest of them was claimed.
    """

    queue: str
    kind: str
    jobs: Count
    oldest: float


class NodeState(msgspec.Struct, kw_only=True):
    """A running node. Times are by the database's clock.

    Attributes:
        id: the node's id; each start has a new one.
        queues: the number of workers per queue.
        lease_until: when its lease ends, unless a heartbeat renews it first. After this time, other nodes get its jobs.
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
    """The job that a worker task runs."""

    id: UUID
    kind: str
    queue: str


class TaskNursery(msgspec.Struct, kw_only=True):
    """The tasks of one nursery."""

    tasks: list[Task]


class Task(msgspec.Struct, kw_only=True):
    """A live Trio task. It shows function names and code locations, never values.

    Attributes:
        waits_on: the call that the task waits in, as `function (file:line)`; `running` for the task that makes this response.
        stack: the functions on its stack, the outermost first.
        since: the minimum number of seconds that it has waited; null if unknown.
        job: the job that it runs, if it is a worker.
        nurseries: its nurseries with its child tasks, the outer nursery first.
        more: the number of child tasks that are left out.
    """

    name: str
    waits_on: str
    stack: list[str]
    since: float | None
    job: TaskJob | None
    nurseries: list[TaskNursery]
    more: Count


class Tasks(msgspec.Struct, kw_only=True):
    """The live Trio tasks of the node that responds.

    Attributes:
        node: the node's id.
        at: the time of this snapshot, by the node's own clock.
        tasks: the number of tasks, including those that are left out.
        root: the outermost task, with the tree of its child tasks.
    """

    node: UUID
    at: Time
    tasks: Count
    root: Task


class ScheduleState(msgspec.Struct, kw_only=True):
    """A cron schedule with its next and last tick.

    Attributes:
        source: the module that declares it; null if it was created over HTTP or in SQL.
        missed: which ticks get a job if several are due.
        next_at: its next tick; null until a node has computed it, or if `error` is set.
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
    """A healthy service.

    Attributes:
        on_hold: why the node runs no jobs; only present if its database is a copy that nobody has adopted.
    """

    status: Literal["ok"]
    on_hold: str | None = None


class Trouble(msgspec.Struct, kw_only=True):
    """A node that is not ready, with the reasons."""

    status: Literal["unavailable"]
    reasons: list[str]


class Event(msgspec.Struct, kw_only=True):
    """One server-sent event.

    Attributes:
        event: what changed; `end` is the last event.
        id: a number, or `end`.
        data: JSON, by `event`: the state with the attempt, the progress, the checkpoint, or at the end the whole job.
    """

    event: Literal["state", "progress", "checkpoint", "end"]
    id: str
    data: str


class Percentiles(msgspec.Struct, kw_only=True):
    """Percentiles of a duration, in seconds. Each is accurate to within a third of its value."""

    p50: float
    p95: float
    p99: float


class DepthByState(msgspec.Struct, kw_only=True):
    """The number of waiting, running, and dead jobs, by state."""

    pending: Count
    scheduled: Count
    blocked: Count
    inflight: Count
    dead: Count


class HistoryPoint(msgspec.Struct, kw_only=True):
    """The activity of all nodes in one slot of the history.

    Attributes:
        at: when the slot began, by the database's clock.
        submitted: submitted jobs per second.
        completed: succeeded jobs per second.
        failed: failed attempts per second.
        dead: jobs per second that died.
        wait: how long jobs waited for their first claim; null if no job was claimed for the first time.
        run: how long attempts took; null if no attempt ended.
        depth: the last count of jobs in the slot; null if no node counted them.
    """

    at: Time
    submitted: float
    completed: float
    failed: float
    dead: float
    wait: Percentiles | None
    run: Percentiles | None
    depth: DepthByState | None


class History(msgspec.Struct, kw_only=True):
    """The history of all nodes.

    Attributes:
        step: the length of a slot, in seconds.
        points: the completed slots, the oldest first, without slots in which no node ran.
    """

    step: Literal[10, 60, 300]
    points: list[HistoryPoint]


class Overview(msgspec.Struct, kw_only=True):
    """The current state of queues and nodes.

    Attributes:
        now: the current time, by the database's clock.
        node: the node that responds.
    """

    now: Time
    node: UUID
    queues: list[QueueState]
    nodes: list[NodeState]


class Troubles(msgspec.Struct, kw_only=True):
    """The reasons why the data sent so far is out of date."""

    reasons: list[str]


class OverviewEvent(msgspec.Struct, kw_only=True):
    """One server-sent event.

    Attributes:
        event: the kind of data.
        data: JSON, by `event`: an `Overview`, a `History` with new and changed points, or `Troubles`.
    """

    event: Literal["overview", "history", "trouble"]
    data: str
