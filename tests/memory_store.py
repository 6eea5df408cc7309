"""A store in memory with the verbs and the meaning of schema.sql, on a clock that a test can hold: for tests only.

It is a `Store` by its type, so that the engine takes it and a type checker compares every signature; `test_store` runs the same
suite against it and PostgreSQL, and checks that no verb is inherited by mistake. Times are whole microseconds, as PostgreSQL's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import trio
import uuid_utils
from msgspec import UNSET

from jobqueue.errors import RefusedData
from jobqueue.job import (
    DEFAULT_RETRIES,
    MAX_NAME_LENGTH,
    MAX_PRIORITY,
    MAX_RETRIES,
    MAX_TIMEOUT,
    ClaimedJob,
    Options,
    Outcome,
    QueueSettings,
)
from jobqueue.storage.store import (
    ADMIT_BATCH,
    PROMOTE_BATCH,
    RECOVER_BATCH,
    Admission,
    Claim,
    Claimed,
    Depth,
    Node,
    Promotion,
    Ranks,
    Recovered,
    Store,
    Submitted,
    Want,
)

State = Literal["blocked", "pending", "scheduled", "inflight", "succeeded", "cancelled", "dead"]
Instant = int
"""Microseconds since 1970, by the store's clock."""

SECOND = 1_000_000
DAY = 86_400 * SECOND
KEPT_ERRORS = 10


@dataclass(slots=True, kw_only=True)
class _Row:
    id: str
    queue: str
    kind: str
    priority: int
    payload: Any
    max_retries: int | None
    timeout: float | None
    created_at: Instant
    available_since: Instant
    state: State
    rank: Instant = 0
    attempt: int = 0
    claims: int = 0
    run_at: Instant | None = None
    claimed_at: Instant | None = None
    ended_at: Instant | None = None
    node_id: str | None = None
    result: Any = None
    reason: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] | None = None
    saved: dict[str, Any] | None = None


@dataclass(slots=True)
class _Member:
    node: Node
    started_at: Instant
    heartbeat_at: Instant
    lease_until: Instant


@dataclass(slots=True)
class _Queue:
    created_at: Instant
    paused: bool = False
    settings: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(_LIMITS))
    aging_interval: float | None = None
    tokens: float = math.inf
    refilled_at: Instant = 0


_LIMITS = ("max_running", "rate", "burst", "key_max_running", "key_rate", "key_burst")


class MemoryStore(Store):
    """Every job state in dictionaries.

    Each verb yields once and then does all of its work at once: that is its transaction. As with a thread, a cancellation is seen
    before the work or not at all.

    Args:
        clock: returns seconds, from any start; it is the database's clock. None is the real one.
        aging_interval: of all queues, in seconds.
    """

    def __init__(self, clock: Callable[[], float] | None = None, *, aging_interval: float = 1.0) -> None:
        self._aging = timedelta(seconds=aging_interval)
        self._clock = clock or time.monotonic
        self._began: float | None = None
        self._rows: dict[str, _Row] = {}
        self._members: dict[str, _Member] = {}
        self._queues: dict[str, _Queue] = {}
        self._key_checks: list[tuple[str, str]] = []

    @property
    def trouble(self) -> str | None:
        return None

    @property
    def submit_trouble(self) -> str | None:
        return None

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def migrate(self) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    # -- submit

    async def submit(
        self,
        jobs: Sequence[bytes],
        *,
        wake: bool,  # noqa: ARG002 - there is nobody else to wake
        along: Claim | None = None,
    ) -> Submitted:
        await trio.lowlevel.checkpoint()
        best = self._submit_batch(jobs, again=False)
        if along is None:
            return Submitted(best)
        lowered = {
            queue: Want(jobs, None if floor is None else min(floor, best.get(queue, floor)))
            for queue, (jobs, floor) in along.wants.items()
        }
        return Submitted(best, self._claim_at_once(along.node_id, lowered, along.defaults))

    async def submit_again(self, jobs: Sequence[bytes], *, backend: tuple[int, str]) -> Ranks:  # noqa: ARG002 - no backends here
        await trio.lowlevel.checkpoint()
        return self._submit_batch(jobs, again=True)

    def _submit_batch(self, jobs: Sequence[bytes], *, again: bool) -> Ranks:
        now = self._now()
        fresh: dict[str, _Row] = {}
        for place, document in enumerate(jobs):
            row = self._new_row(msgspec.json.decode(document), now, place)
            if row.id in fresh:
                continue
            known = self._rows.get(row.id)
            assert known is None or again or known.state == row.state, "PostgreSQL would now have this job in two states"
            if known is None:
                fresh[row.id] = row
        self._rows |= fresh
        for row in fresh.values():
            self._block(row)
        return _best(row for row in fresh.values() if row.state == "pending")

    def _new_row(self, given: dict[str, Any], now: Instant, place: int) -> _Row:
        run_at = None
        if given.get("run_at") is not None:
            run_at = _instant(datetime.fromisoformat(given["run_at"]))
        elif given.get("delay") is not None:
            run_at = now + round(given["delay"] * SECOND)
        scheduled = run_at is not None and run_at > now
        row = _Row(
            id=given.get("id") or str(uuid_utils.uuid7()),
            queue=given.get("queue", "default"),
            kind=given.get("kind", "default"),
            priority=given.get("priority", 0),
            payload=given.get("payload", {}),
            max_retries=given.get("max_retries"),
            timeout=given.get("timeout"),
            created_at=now,
            available_since=run_at if scheduled and run_at is not None else now + place,
            state="scheduled" if scheduled else "pending",
            run_at=run_at if scheduled else None,
            options=_prepared(given.get("options"), now),
        )
        _check(row)
        row.rank = self._rank(row)
        return row

    # -- nodes and leases

    async def join(self, node: Node, *, lease: float) -> None:
        await trio.lowlevel.checkpoint()
        now = self._now()
        if node.id in self._members:
            raise RefusedData("duplicate key value violates unique constraint nodes_pkey")
        for queue in node.queues:
            self._queues.setdefault(queue, _Queue(now))
        self._members[node.id] = _Member(node, now, now, now + round(lease * SECOND))

    async def heartbeat(self, node_id: str, *, lease: float) -> bool:
        await trio.lowlevel.checkpoint()
        now = self._now()
        member = self._members.get(node_id)
        if member is None:
            return False
        member.heartbeat_at = now
        member.lease_until = now + round(lease * SECOND)
        return True

    async def leave(self, node_id: str) -> int:
        await trio.lowlevel.checkpoint()
        held = [row for row in self._in("inflight") if row.node_id == node_id]
        for row in held:
            self._to_pending(row, refund=True)
        self._members.pop(node_id, None)
        return len(held)

    async def expire(self, processes: Iterable[str]) -> int:
        await trio.lowlevel.checkpoint()
        named = set(processes)
        gone = [node_id for node_id, member in self._members.items() if member.node.process in named]
        for node_id in gone:
            del self._members[node_id]
        return len(gone)

    async def processes(self) -> list[str]:
        await trio.lowlevel.checkpoint()
        return [member.node.process for member in self._members.values()]

    # -- the way of a job

    async def claim(self, node_id: str, wants: Mapping[str, Want], defaults: bytes) -> Claimed:
        await trio.lowlevel.checkpoint()
        return self._claim_at_once(node_id, wants, defaults)

    def _claim_at_once(self, node_id: str, wants: Mapping[str, Want], defaults: bytes) -> Claimed:
        now = self._now()
        member = self._members.get(node_id)
        if member is None or member.lease_until <= now:
            return Claimed()
        limits: dict[str, int] = msgspec.json.decode(defaults)
        claimed = []
        again: dict[str, float] = {}
        for queue, (jobs, floor) in wants.items():
            if queue in self._queues and self._queues[queue].paused:
                continue
            least = -math.inf if floor is None else round(floor * SECOND)
            ready = sorted((row for row in self._in("pending") if row.queue == queue and row.rank >= least), key=_by_rank)
            most, wait = self._allowance(queue, jobs, now)
            if most < jobs and len(ready) >= most:
                again[queue] = wait
            for row in ready[:most]:
                _to_inflight(row, node_id, now, limits)
                claimed.append(_claimed(row, self._now()))
            if queue in self._queues:
                self._queues[queue].tokens -= len(ready[:most])
        return Claimed(claimed, again)

    def _allowance(self, name: str, wanted: int, now: Instant) -> tuple[int, float]:
        """How many jobs a claim may take, and in how many seconds it may take more."""
        if name not in self._queues:
            return wanted, math.inf
        queue, most, wait = self._queues[name], wanted, math.inf
        if (max_running := queue.settings["max_running"]) is not None:
            running = sum(row.queue == name for row in self._in("inflight"))
            most = min(wanted, max(0, int(max_running) - running))
        if (rate := queue.settings["rate"]) is not None:
            burst = queue.settings["burst"] or max(1.0, rate)
            queue.tokens = min(burst, queue.tokens + rate * (now - queue.refilled_at) / SECOND)
            queue.refilled_at = now
            if math.floor(queue.tokens) < most:
                most = math.floor(queue.tokens)
                wait = (1 - (queue.tokens - most)) / rate
        return most, wait

    async def held(
        self,
        node_id: str,
        *,
        backend: tuple[int, str] | None = None,  # noqa: ARG002 - no backends here
    ) -> set[tuple[str, int]]:
        await trio.lowlevel.checkpoint()
        return {(row.id, row.claims) for row in self._in("inflight") if row.node_id == node_id}

    async def finish(self, node_id: str, outcomes: Sequence[Outcome], *, keep: bool = True) -> set[int]:
        await trio.lowlevel.checkpoint()
        now = self._now()
        given: list[dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(outcomes))
        accepted: dict[str, int] = {}
        for place, outcome in enumerate(given):
            row = self._rows.get(outcome["id"])
            if row is not None and (row.state, row.claims, row.node_id) == ("inflight", outcome["claims"], node_id):
                accepted.setdefault(row.id, place)
        for place in accepted.values():
            _check_outcome(given[place])
        for job_id, place in accepted.items():
            self._end_run(self._rows[job_id], given[place], now)
            if given[place]["outcome"] == "succeeded" and not keep:
                del self._rows[job_id]
        return set(range(len(given))) - set(accepted.values())

    # -- housekeeping

    async def promote(self) -> Promotion:
        await trio.lowlevel.checkpoint()
        now = self._now()
        scheduled = sorted((row for row in self._in("scheduled")), key=_due)
        due = [row for row in scheduled if _due(row) <= now][:PROMOTE_BATCH]
        for row in due:
            self._to_pending(row, refund=False)
        left = scheduled[len(due) :]
        best = _best(row for row in due if row.state == "pending")
        next_check = 0.0 if self._key_checks else None
        return Promotion(len(due), best, (_due(left[0]) - now) / SECOND if left else None, next_check)

    async def admit(self) -> Admission:
        """All that PostgreSQL does, but for the rates of keys."""
        await trio.lowlevel.checkpoint()
        checks, self._key_checks = self._key_checks[:ADMIT_BATCH], self._key_checks[ADMIT_BATCH:]
        admitted: list[_Row] = []
        for queue, key in sorted(set(checks)):
            of_key = [row for row in self._rows.values() if row.queue == queue and _key(row) == key]
            limit = self._queues[queue].settings["key_max_running"] if queue in self._queues else None
            free = int(limit or 1) - sum(row.state in ("pending", "inflight") for row in of_key)
            for row in sorted((row for row in of_key if row.state == "blocked"), key=_by_rank)[: max(0, free)]:
                row.state = "pending"
                admitted.append(row)
        return Admission(len(checks), _best(admitted), 0.0 if self._key_checks else None)

    async def recover(self, *, judge: str | None = None) -> list[Recovered]:
        await trio.lowlevel.checkpoint()
        now = self._now()
        if judge in self._members and self._members[judge].lease_until > now:
            self._members = {node_id: member for node_id, member in self._members.items() if member.lease_until > now}
        lost = sorted((row for row in self._in("inflight") if row.node_id not in self._members), key=lambda row: row.id)
        recovered = []
        for row in lost[:RECOVER_BATCH]:
            node_id = str(row.node_id)
            spent = row.max_retries is not None and row.attempt > row.max_retries
            error = "lease lost: the node that ran this attempt stopped renewing its lease"
            _keep_error(row, {"attempt": row.attempt, "error": error}, now)
            if spent:
                self._check_key(row)
                _end(row, "dead", now)
                row.reason = f"lease lost {row.attempt} times: the job may be killing its process"
            else:
                self._to_pending(row, refund=False)
            recovered.append(Recovered(row.id, row.queue, row.kind, row.attempt, node_id, "dead" if spent else "pending"))
        return recovered

    async def maintain(self, *, keep_finished: float, keep_dead: float) -> int:
        await trio.lowlevel.checkpoint()
        now = self._now()

        def ended_before(row: _Row, seconds: float) -> bool:
            return row.ended_at is not None and row.ended_at < now - round(seconds * SECOND)

        finished = [row for row in self._rows.values() if row.state in ("succeeded", "cancelled")]
        days = {_day(row) for row in finished if (_day(row) + 1) * DAY < now - round(keep_finished * SECOND)}
        old = [row.id for row in finished if _day(row) in days]
        old += [row.id for row in self._in("dead") if ended_before(row, keep_dead)]
        for job_id in old:
            del self._rows[job_id]
        return len(days)

    async def depths(self) -> list[Depth]:
        await trio.lowlevel.checkpoint()
        now = self._now()
        since: dict[tuple[str, str], list[Instant]] = {}
        for row in self._rows.values():
            begin = {
                "pending": row.available_since,
                "blocked": row.available_since,
                "scheduled": now,
                "inflight": row.claimed_at,
                "dead": row.ended_at,
            }.get(row.state)
            if begin is not None:
                since.setdefault((row.queue, row.state), []).append(begin)
        return [Depth(queue, state, len(begun), max(0, now - min(begun)) / SECOND) for (queue, state), begun in since.items()]

    # -- looking and steering

    async def job(self, job_id: str) -> dict[str, Any] | None:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        return None if row is None else _shown(row)

    async def cancel(self, job_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        if row is None or row.state not in ("pending", "blocked", "scheduled"):
            return False
        self._check_key(row)
        _end(row, "cancelled", self._now())
        return True

    async def retry(self, job_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        if row is None or row.state != "dead":
            return False
        row.attempt = 0
        row.available_since = self._now()
        self._to_pending(row, refund=False)
        return True

    async def discard(self, job_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        if row is None or row.state != "dead":
            return False
        del self._rows[job_id]
        return True

    async def pause(self, queue: str, *, paused: bool) -> None:
        await trio.lowlevel.checkpoint()
        self._queues.setdefault(queue, _Queue(self._now())).paused = paused

    async def configure(self, queue: str, settings: QueueSettings) -> None:
        await trio.lowlevel.checkpoint()
        configured = self._queues.setdefault(queue, _Queue(self._now()))
        given = {name: value for name, value in msgspec.structs.asdict(settings).items() if value is not UNSET}
        if "aging_interval" in given:
            configured.aging_interval = given.pop("aging_interval")
        if configured.settings["rate"] is None and given.get("rate") is not None:
            configured.tokens = math.inf
        configured.settings |= given
        self._key_checks += {(row.queue, str(_key(row))) for row in self._in("blocked") if row.queue == queue}

    async def queues(self) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return [
            {
                "name": name,
                "paused": queue.paused,
                "aging_interval": self._aging_of(name).total_seconds(),
                "created_at": _text(queue.created_at),
                **queue.settings,
            }
            for name, queue in sorted(self._queues.items())
        ]

    async def nodes(self) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return [
            {
                **{name: value for name, value in msgspec.to_builtins(member.node).items() if name != "process"},
                "started_at": _text(member.started_at),
                "heartbeat_at": _text(member.heartbeat_at),
                "lease_until": _text(member.lease_until),
            }
            for member in sorted(self._members.values(), key=lambda member: member.started_at)
        ]

    def snapshot(self) -> list[dict[str, Any]]:
        """Return every job as `job` shows it: what ``SELECT * FROM jobqueue.jobs`` is to PostgreSQL."""
        return [_shown(row) for row in self._rows.values()]

    # -- how a row moves

    def _block(self, row: _Row) -> None:
        """Whatever becomes pending is blocked first, if it has a key."""
        if row.state == "pending" and _key(row) is not None:
            row.state = "blocked"
            self._check_key(row)

    def _check_key(self, row: _Row) -> None:
        key = _key(row)
        if key is not None:
            self._key_checks.append((row.queue, key))

    def _aging_of(self, name: str) -> timedelta:
        queue = self._queues.get(name)
        return self._aging if queue is None or queue.aging_interval is None else timedelta(seconds=queue.aging_interval)

    def _to_pending(self, row: _Row, *, refund: bool) -> None:
        row.state = "pending"
        self._block(row)
        row.attempt -= refund
        row.rank = self._rank(row)
        row.run_at = row.claimed_at = row.ended_at = row.node_id = row.reason = None

    def _end_run(self, row: _Row, outcome: dict[str, Any], now: Instant) -> None:
        verdict = outcome["outcome"]
        self._check_key(row)
        if verdict == "released":
            self._to_pending(row, refund=True)
            return
        _keep_error(row, outcome.get("error"), now)
        spent = verdict == "retry" and row.max_retries is not None and row.attempt > row.max_retries
        if spent:
            _end(row, "dead", now)
            row.reason = "attempts used up"
        elif verdict in ("retry", "snoozed"):
            self._to_pending(row, refund=verdict == "snoozed")
            row.state = "scheduled"
            row.run_at = now + round(outcome["delay"] * SECOND)
        else:
            _end(row, verdict, now)
            row.result = outcome.get("result") if verdict == "succeeded" else None
            row.reason = outcome.get("reason") if verdict == "dead" else None

    def _rank(self, row: _Row) -> Instant:
        if row.options is not None and "rank" in row.options:
            return round(row.options["rank"] * SECOND)
        return row.available_since - row.priority * (self._aging_of(row.queue) // timedelta(microseconds=1))

    def _now(self) -> Instant:
        if self._began is None:
            self._began = time.time() - self._clock()
        return round((self._began + self._clock()) * SECOND)

    def _in(self, state: State) -> list[_Row]:
        return [row for row in self._rows.values() if row.state == state]


# ------------------------------------------------------------------------------------------------------------ how a row moves


def _prepared(options: dict[str, Any] | None, now: Instant) -> dict[str, Any] | None:
    if options is None or "expires_in" not in options:
        return options
    return {name: value for name, value in options.items() if name != "expires_in"} | {
        "expires_at": now / SECOND + options["expires_in"]
    }


def _to_inflight(row: _Row, node_id: str, now: Instant, limits: Mapping[str, int]) -> None:
    row.state = "inflight"
    row.attempt += 1
    row.claims += 1
    row.node_id = node_id
    row.claimed_at = now
    if row.max_retries is None:
        row.max_retries = limits.get(row.kind, DEFAULT_RETRIES)


def _end(row: _Row, state: State, now: Instant) -> None:
    if state != "succeeded":
        row.claimed_at = None
    row.state = state
    row.ended_at = now
    row.run_at = None


def _keep_error(row: _Row, error: dict[str, Any] | None, now: Instant) -> None:
    if error is not None:
        row.errors = [*row.errors, {**error, "at": _text(now), "node": row.node_id}][-KEPT_ERRORS:]


# ------------------------------------------------------------------------------------------------------- the column constraints


def _check(row: _Row) -> None:
    constraints = {
        "kind_length": 1 <= len(row.kind) <= MAX_NAME_LENGTH,
        "queue_length": 1 <= len(row.queue) <= MAX_NAME_LENGTH,
        "priority_range": 0 <= row.priority <= MAX_PRIORITY,
        "max_retries_range": row.max_retries is None or 0 <= row.max_retries <= MAX_RETRIES,
        "timeout_range": row.timeout is None or 0 < row.timeout <= MAX_TIMEOUT,
    }
    for name, holds in constraints.items():
        if not holds:
            raise RefusedData(f"new row violates check constraint {name}")


def _check_outcome(outcome: dict[str, Any]) -> None:
    needed = {"succeeded": None, "dead": "reason", "retry": "delay", "snoozed": "delay", "released": None}
    verdict = outcome.get("outcome")
    if verdict not in needed:
        raise RefusedData(f"unknown outcome {verdict!r}")
    column = needed[verdict]
    if column is not None and outcome.get(column) is None:
        raise RefusedData(f"null value in column {column} violates not-null constraint")


# --------------------------------------------------------------------------------------------------------- how a row is shown


def _key(row: _Row) -> str | None:
    return None if row.options is None else row.options.get("concurrency_key")


def _by_rank(row: _Row) -> Instant:
    return row.rank


def _best(rows: Iterable[_Row]) -> dict[str, float]:
    best: dict[str, Instant] = {}
    for row in rows:
        best[row.queue] = min(row.rank, best.get(row.queue, row.rank))
    return {queue: rank / SECOND for queue, rank in best.items()}


def _due(row: _Row) -> Instant:
    assert row.run_at is not None, "a scheduled job is due at some time"
    return row.run_at


def _day(row: _Row) -> int:
    assert row.ended_at is not None, "a finished job ended at some time"
    return row.ended_at // DAY


def _claimed(row: _Row, now: Instant) -> ClaimedJob:
    assert row.max_retries is not None, "the claim has resolved it"
    return ClaimedJob(
        queue=row.queue,
        id=row.id,
        kind=row.kind,
        payload=msgspec.Raw(msgspec.json.encode(row.payload)),
        priority=row.priority,
        attempt=row.attempt,
        claims=row.claims,
        max_retries=row.max_retries,
        timeout=row.timeout,
        created_at=row.created_at / SECOND,
        rank=row.rank / SECOND,
        waited=(now - row.available_since) / SECOND,
        options=None if row.options is None else msgspec.convert(row.options, Options),
        saved=None if row.saved is None else msgspec.Raw(msgspec.json.encode(row.saved)),
    )


def _shown(row: _Row) -> dict[str, Any]:
    return dict(_columns(row))


def _columns(row: _Row) -> Iterator[tuple[str, Any]]:
    for name in row.__slots__:
        if name == "rank":
            continue
        value = getattr(row, name)
        is_time = name in ("created_at", "available_since", "run_at", "claimed_at", "ended_at")
        yield name, _text(value) if is_time and value is not None else value


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _text(instant: Instant) -> str:
    return (_EPOCH + timedelta(microseconds=instant)).isoformat(timespec="microseconds")


def _instant(moment: datetime) -> Instant:
    return (moment - _EPOCH) // timedelta(microseconds=1)
