"""The state of the store in memory, and the changes that several roles make."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import trio

from jobqueue.errors import RefusedData
from jobqueue.job import (
    MAX_NAME_LENGTH,
    MAX_PRIORITY,
    MAX_RETRIES,
    MAX_TIMEOUT,
    JobState,
)
from jobqueue.metrics import Totals
from jobqueue.storage.roles.run import Activity, Node
from jobqueue.testing.causes import cause_of

Instant = int
"""Microseconds since 1970 UTC, on the store's clock."""
SECOND = 1_000_000
DAY = 86_400 * SECOND
KEPT_ERRORS = 10
FAIR_STEP = Fraction(1, 1000)
_LIMITS = ("max_running", "rate", "burst", "key_max_running", "key_rate", "key_burst")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True, kw_only=True)
class Row:
    id: str
    queue: str
    kind: str
    priority: int
    payload: Any
    max_retries: int | None
    timeout: float | None
    created_at: Instant
    available_since: Instant
    state: JobState
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
    cancel_requested_at: Instant | None = None

    @property
    def key(self) -> str | None:
        return None if self.options is None else self.options.get("concurrency_key")

    @property
    def turn(self) -> Fraction:
        assert self.options is not None, "a job of a group has options"
        return Fraction(self.options["turn"])

    @property
    def due(self) -> Instant:
        assert self.run_at is not None, "a scheduled job has run_at"
        return self.run_at

    @property
    def day(self) -> int:
        assert self.ended_at is not None, "a finished job has ended_at"
        return self.ended_at // DAY

    @property
    def ended(self) -> Instant:
        assert self.ended_at is not None, "a dead job has ended_at"
        return self.ended_at

    @property
    def expiry(self) -> float:
        """When the job expires, in seconds since 1970; infinity if it does not."""
        return float((self.options or {}).get("expires_at", math.inf))

    @property
    def last_error(self) -> str | None:
        return self.errors[-1]["error"] if self.errors else None

    @property
    def cause(self) -> str:
        return cause_of(self.last_error, str(self.reason))

    def seconds_left(self, now: Instant) -> float:
        return self.expiry - now / SECOND

    def expire(self, now: Instant) -> None:
        self.node_id = None
        self.reason = "expired"
        self.end("dead", now)

    def end(self, state: JobState, now: Instant) -> None:
        if state == "dead":
            self.claimed_at = None
        self.state = state
        self.cancel_requested_at = None
        self.ended_at = now
        self.run_at = None

    def keep_error(self, error: dict[str, Any] | None, now: Instant) -> None:
        if error is not None:
            self.errors = [*self.errors, {**error, "at": iso(now), "node": self.node_id}][-KEPT_ERRORS:]

    def check(self) -> None:
        constraints = {
            "kind_length": 1 <= len(self.kind) <= MAX_NAME_LENGTH,
            "queue_length": 1 <= len(self.queue) <= MAX_NAME_LENGTH,
            "priority_range": 0 <= self.priority <= MAX_PRIORITY,
            "max_retries_range": self.max_retries is None or 0 <= self.max_retries <= MAX_RETRIES,
            "timeout_range": self.timeout is None or 0 < self.timeout <= MAX_TIMEOUT,
        }
        for name, holds in constraints.items():
            if not holds:
                raise RefusedData(f"new row violates check constraint {name}")


@dataclass(slots=True)
class Member:
    node: Node
    started_at: Instant
    heartbeat_at: Instant
    lease_until: Instant
    activity: Activity = field(default_factory=dict)


@dataclass(slots=True)
class Key:
    job_id: str
    fingerprint: object
    expires_at: Instant


@dataclass(slots=True)
class KeptSlot:
    counts: Totals
    depth: dict[str, int] | None = None


@dataclass(slots=True)
class StoredQueue:
    created_at: Instant
    paused: bool = False
    settings: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(_LIMITS))
    aging_interval: float | None = None
    tokens: float = math.inf
    refilled_at: Instant = 0


@dataclass(slots=True, kw_only=True)
class Schedule:
    name: str
    source: str | None
    cron: str
    timezone: str
    missed: Any
    kind: str
    payload: Any
    queue: str
    priority: int
    max_retries: int | None
    timeout: float | None
    created_at: Instant
    updated_at: Instant
    paused: bool = False
    next_at: Instant | None = None
    last_at: Instant | None = None
    error: str | None = None

    def job(self, tick: float | None) -> dict[str, Any]:
        """Return the job to submit for a tick; None means that it was triggered by hand."""
        fields = {name: getattr(self, name) for name in ("kind", "payload", "queue", "priority", "max_retries", "timeout")}
        return fields | {"options": {"schedule": self.name} | ({} if tick is None else {"scheduled_for": tick})}


class State:
    """The jobs, nodes, queues, schedules, and keys, and the changes of them that several roles make.

    Args:
        clock: replaces the database's clock. It returns the seconds since any fixed moment. None for the real clock.
        aging_interval: the default aging interval of all queues, in seconds.
    """

    def __init__(self, clock: Callable[[], float] | None = None, *, aging_interval: float = 1.0) -> None:
        self.url = self.schema = ""
        self._aging = timedelta(seconds=aging_interval)
        self._clock = clock or time.monotonic
        self._began: float | None = None
        self._rows: dict[str, Row] = {}
        self._members: dict[str, Member] = {}
        self._queues: dict[str, StoredQueue] = {}
        self._lines: dict[tuple[str, bool], Fraction] = {}  # the turn that claims serve now, by queue and whether priority > 0
        self._turns: dict[tuple[str, bool, str], Fraction] = {}  # the earliest turn that a group's next job can get
        self._schedules: dict[str, Schedule] = {}
        self._keys: dict[tuple[str, str], Key] = {}
        self._key_checks: list[tuple[str, str]] = []
        self._history: dict[tuple[int, Instant], KeptSlot] = {}
        self._uncounted = 0  # number of jobs submitted without a node

    def slow_calls(self) -> dict[str, float]:
        return {}

    async def migrate(self) -> None:
        await trio.lowlevel.checkpoint()

    async def require_schema(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def _now(self) -> Instant:
        if self._began is None:
            self._began = time.time() - self._clock()
        return round((self._began + self._clock()) * SECOND)

    def _in(self, state: JobState) -> list[Row]:
        return [row for row in self._rows.values() if row.state == state]

    def _rank(self, row: Row) -> Instant:
        if row.options is not None and "rank" in row.options:
            return round(row.options["rank"] * SECOND)
        return row.available_since - row.priority * (self._aging_of(row.queue) // timedelta(microseconds=1))

    def _aging_of(self, name: str) -> timedelta:
        queue = self._queues.get(name)
        return self._aging if queue is None or queue.aging_interval is None else timedelta(seconds=queue.aging_interval)

    def _block(self, row: Row) -> None:
        """Block a pending job that has a concurrency key, until `admit` lets it run."""
        if row.state == "pending" and row.key is not None:
            row.state = "blocked"
            self._check_key(row)

    def _check_key(self, row: Row) -> None:
        key = row.key
        if key is not None:
            self._key_checks.append((row.queue, key))

    def _to_pending(self, row: Row, *, refund: bool) -> None:
        row.state = "pending"
        self._block(row)
        row.attempt -= refund
        row.rank = self._rank(row)
        row.run_at = row.claimed_at = row.ended_at = row.node_id = row.reason = row.cancel_requested_at = None

    def _take_turns(self, rows: Iterable[Row], now: Instant) -> None:
        """Set the turns and ranks of jobs in groups; see ``jobqueue_internal.take_turns``."""
        waiting = [row for row in self._in("pending") if row.options is not None and "turn" in row.options]
        lines: dict[tuple[str, bool], Fraction] = {}
        for row in rows:
            options = row.options or {}
            if "group" not in options and not self._lags(row.queue, row.available_since):
                continue
            for urgent in (False, True):
                line = row.queue, urgent
                if line not in lines:
                    served = self._lines.get(line, Fraction(0))
                    turns = [other.turn for other in waiting if (other.queue, other.priority > 0) == line]
                    present = max(served, Fraction(now, SECOND))
                    lines[line] = min((turn for turn in turns if turn >= served), default=present)
            group = options.get("group", "")
            step = FAIR_STEP / Fraction(options.get("weight", 1))
            begins: dict[bool, Fraction] = {}
            for urgent in (False, True):
                begins[urgent] = max(lines[row.queue, urgent], self._turns.get((row.queue, urgent, group), Fraction(0)))
                if row.priority > 0 or not urgent:
                    self._turns[row.queue, urgent, group] = begins[urgent] + step
            turn = round(begins[row.priority > 0] * SECOND) / SECOND
            row.options = {**options, "turn": turn, "rank": turn - row.priority * (self._aging / timedelta(seconds=1))}

    def _lags(self, queue: str, since: Instant) -> bool:
        """Return whether a job available since `since` would wait behind the backlog of the queue's groups.

        See ``jobqueue_internal.lags``.
        """
        return any(self._lines.get((queue, urgent), math.inf) < Fraction(since, SECOND) for urgent in (False, True))


def iso(instant: Instant) -> str:
    return (EPOCH + timedelta(microseconds=instant)).isoformat(timespec="microseconds")


def instant(moment: datetime) -> Instant:
    return (moment - EPOCH) // timedelta(microseconds=1)


def best_ranks(rows: Iterable[Row]) -> dict[str, float]:
    best: dict[str, Instant] = {}
    for row in rows:
        best[row.queue] = min(row.rank, best.get(row.queue, row.rank))
    return {queue: rank / SECOND for queue, rank in best.items()}


def without(options: dict[str, Any] | None, *names: str) -> dict[str, Any] | None:
    return {name: value for name, value in (options or {}).items() if name not in names} or None


def seconds_to_tick(schedules: Iterable[Schedule], now: Instant) -> float | None:
    return min(((schedule.next_at - now) / SECOND for schedule in schedules if schedule.next_at is not None), default=None)
