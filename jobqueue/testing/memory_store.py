"""A store in memory with the operations of schema.sql, on a clock that a test can control. For tests only.

`MemoryStore` is a subclass of `Store`, so that the engine accepts it and a type checker compares every signature. `test_store`
runs the same tests on both, and checks that it overrides every operation. Times are whole microseconds, as in PostgreSQL.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import zip_longest
from typing import Any, get_args
from uuid import UUID

import msgspec
import trio
import uuid_utils
from msgspec import UNSET

from jobqueue.errors import KeyInUse, KeyReused, RefusedData
from jobqueue.job import (
    DEFAULT_RETRIES,
    MAX_NAME_LENGTH,
    MAX_PRIORITY,
    MAX_RETRIES,
    MAX_TIMEOUT,
    UNFINISHED,
    Change,
    ClaimedJob,
    JobState,
    Note,
    Options,
    Outcome,
)
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.metrics import Totals
from jobqueue.queue_settings import QueueSettings
from jobqueue.storage.claims import Claimed, Expired
from jobqueue.storage.store import (
    ADMIT_BATCH,
    CANCEL_BATCH,
    DEAD_BATCH,
    HISTORY,
    HISTORY_SETTLE,
    PROMOTE_BATCH,
    PRUNE_BATCH,
    RECOVER_BATCH,
    SCHEDULE_BATCH,
    WALK_ROWS,
    Activity,
    Admission,
    Cancelled,
    Causes,
    Claim,
    Depth,
    DueSchedule,
    DueSchedules,
    Glance,
    Maintained,
    Move,
    Moved,
    Node,
    Page,
    Promotion,
    Ranks,
    Recorded,
    Recovered,
    RunId,
    Slot,
    Store,
    Submitted,
    Want,
)
from jobqueue.testing.causes import cause_of
from jobqueue.timetable import CronSchedule

Instant = int
"""Microseconds since 1970 UTC, on the store's clock."""

SECOND = 1_000_000
DAY = 86_400 * SECOND
KEPT_ERRORS = 10
_STATES = frozenset(get_args(JobState))
_COUNTED: tuple[JobState, ...] = ("pending", "scheduled", "blocked", "inflight", "dead")
_LIMITS = ("max_running", "rate", "burst", "key_max_running", "key_rate", "key_burst")
FAIR_STEP = Fraction(1, 1000)


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


@dataclass(slots=True)
class _Member:
    node: Node
    started_at: Instant
    heartbeat_at: Instant
    lease_until: Instant
    activity: Activity = field(default_factory=dict)


@dataclass(slots=True)
class _Key:
    job_id: str
    fingerprint: object
    expires_at: Instant


@dataclass(slots=True)
class _Slot:
    counts: Totals
    depth: dict[str, int] | None = None


@dataclass(slots=True)
class _Queue:
    created_at: Instant
    paused: bool = False
    settings: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(_LIMITS))
    aging_interval: float | None = None
    tokens: float = math.inf
    refilled_at: Instant = 0


@dataclass(slots=True, kw_only=True)
class _Schedule:
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


class MemoryStore(Store):
    """A store that keeps all jobs in dictionaries.

    Each operation runs one Trio checkpoint, and then does all its work without another. So it is atomic like a transaction. A
    cancellation takes effect before the work or not at all, as for work in a thread.

    Args:
        clock: replaces the database's clock. It returns the seconds since any fixed moment. None for the real clock.
        aging_interval: the default aging interval of all queues, in seconds.
    """

    def __init__(self, clock: Callable[[], float] | None = None, *, aging_interval: float = 1.0) -> None:
        self.url = ""
        self._aging = timedelta(seconds=aging_interval)
        self._clock = clock or time.monotonic
        self._began: float | None = None
        self._rows: dict[str, _Row] = {}
        self._members: dict[str, _Member] = {}
        self._queues: dict[str, _Queue] = {}
        self._lines: dict[tuple[str, bool], Fraction] = {}  # the turn that claims serve now, by queue and whether priority > 0
        self._turns: dict[tuple[str, bool, str], Fraction] = {}  # the earliest turn that a group's next job can get
        self._schedules: dict[str, _Schedule] = {}
        self._keys: dict[tuple[str, str], _Key] = {}
        self._key_checks: list[tuple[str, str]] = []
        self._history: dict[tuple[int, Instant], _Slot] = {}
        self._uncounted = 0  # number of jobs submitted without a node

    def slow_calls(self) -> dict[str, float]:
        return {}

    @property
    def submit_trouble(self) -> str | None:
        return None

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def migrate(self) -> None:
        await trio.lowlevel.checkpoint()

    # -- submit

    async def submit(
        self,
        jobs: Sequence[bytes],
        *,
        wake: bool,  # noqa: ARG002 - no other nodes exist
        along: Claim | None = None,
        key_ttl: float | None = None,
    ) -> Submitted:
        await trio.lowlevel.checkpoint()
        best, ids = self._submit_batch(jobs, again=False, key_ttl=key_ttl)
        if along is None:
            return Submitted(best, ids=ids)
        lowered = {
            queue: Want(jobs, None if floor is None else min(floor, best.get(queue, floor)))
            for queue, (jobs, floor) in along.wants.items()
        }
        return Submitted(best, self._claim_at_once(along.node_id, lowered, along.defaults), ids)

    async def submit_again(
        self,
        jobs: Sequence[bytes],
        *,
        backend: tuple[int, str],  # noqa: ARG002 - no backends here
        key_ttl: float | None = None,
    ) -> Submitted:
        await trio.lowlevel.checkpoint()
        best, ids = self._submit_batch(jobs, again=True, key_ttl=key_ttl)
        return Submitted(best, ids=ids)

    def _submit_batch(self, jobs: Sequence[bytes], *, again: bool, key_ttl: float | None) -> tuple[Ranks, list[str] | None]:
        now = self._now()
        fresh: dict[str, _Row] = {}
        given: list[dict[str, Any]] = [msgspec.json.decode(document) for document in jobs]
        existing: dict[int, str] = {}
        keys = dict(self._keys)
        if key_ttl is not None:
            existing = _settle_keys(given, keys, self._rows, now, again=again, ttl=round(key_ttl * SECOND))
        for place, job in enumerate(given):
            if place in existing:
                continue
            row = self._new_row(job, now, place, again=again)
            if row.id in fresh:
                continue
            known = self._rows.get(row.id)
            assert known is None or again or known.state == row.state, "PostgreSQL would store this job in two states"
            if known is None:
                fresh[row.id] = row
        self._take_turns((row for row in fresh.values() if row.state == "pending"), now)
        for row in fresh.values():
            row.rank = self._rank(row)
        self._rows |= fresh
        for row in fresh.values():
            self._block(row)
        self._keys = keys
        ids = None if key_ttl is None else [existing.get(place, job["id"]) for place, job in enumerate(given)]
        return _best(row for row in fresh.values() if row.state == "pending"), ids

    def _new_row(self, given: dict[str, Any], now: Instant, place: int, *, again: bool) -> _Row:
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
            options=_prepared(given.get("options"), now, again=again),
        )
        _check(row)
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

    async def heartbeat(self, node_id: str, *, lease: float, activity: Activity | None = None) -> list[RunId] | None:
        await trio.lowlevel.checkpoint()
        now = self._now()
        member = self._members.get(node_id)
        if member is None:
            return None
        member.heartbeat_at = now
        member.activity = activity or {}
        member.lease_until = now + round(lease * SECOND)
        held = (row for row in self._in("inflight") if row.node_id == node_id)
        return [(row.id, row.claims) for row in held if row.cancel_requested_at is not None]

    async def leave(self, node_id: str) -> int:
        await trio.lowlevel.checkpoint()
        held = [row for row in self._in("inflight") if row.node_id == node_id]
        now = self._now()
        back = [row for row in held if row.cancel_requested_at is None]
        for row in held:
            if row.cancel_requested_at is None:
                self._to_pending(row, refund=True)
            else:
                self._check_key(row)
                _end(row, "cancelled", now)
        self._members.pop(node_id, None)
        return len(back)

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

    # -- claim and finish

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
                claimed.append(_claimed(row, self._now(), _seconds_left(row, now)))
                if _seconds_left(row, now) <= 0:
                    row.attempt -= 1
                    self._check_key(row)
                    _expire(row, now)
            if queue in self._queues:
                self._queues[queue].tokens -= len(ready[:most])
            self._serve_lines(queue, ready[:most], emptied=len(ready) < most)
        return Claimed(claimed, again)

    def _serve_lines(self, queue: str, served: Iterable[_Row], *, emptied: bool) -> None:
        """Record the last served turn of the queue's groups, or that none of their jobs is left."""
        for row in served:
            if row.options is not None and "turn" in row.options:
                line = queue, row.priority > 0
                self._lines[line] = max(_turn(row), self._lines.get(line, Fraction(0)))
        if emptied:
            for urgent in (False, True):
                if self._lines.pop((queue, urgent), None) is not None:
                    self._turns = {key: turn for key, turn in self._turns.items() if key[0] != queue}

    def _allowance(self, name: str, wanted: int, now: Instant) -> tuple[int, float]:
        """Return how many jobs a claim may take, and the seconds until it may take more."""
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
        lost: Iterable[tuple[int, str]] = (),  # noqa: ARG002 - no backends here
    ) -> set[RunId]:
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

    async def note(self, node_id: str, notes: Sequence[Note]) -> set[str]:
        await trio.lowlevel.checkpoint()
        written = set()
        for note in notes:
            row = self._rows.get(note.id)
            if row is not None and (row.state, row.claims, row.node_id) == ("inflight", note.claims, node_id):
                row.saved = {**(row.saved or {}), **msgspec.json.decode(note.saved)}
                written.add(row.id)
        return written

    # -- housekeeping

    async def promote(self) -> Promotion:
        await trio.lowlevel.checkpoint()
        now = self._now()
        waiting = self._in("pending"), self._in("blocked"), self._in("scheduled")
        late = [row for rows in waiting for row in sorted(rows, key=_expiry)[:PROMOTE_BATCH] if _seconds_left(row, now) <= 0]
        for row in late:
            self._check_key(row)
            _expire(row, now)
        scheduled = sorted((row for row in self._in("scheduled")), key=_due)
        due = [row for row in scheduled if _due(row) <= now][:PROMOTE_BATCH]
        self._take_turns((row for row in due if "turn" not in (row.options or {})), now)
        for row in due:
            self._to_pending(row, refund=False)
        left = [_due(row) / SECOND for row in scheduled[len(due) :][:1]]
        left += [_expiry(row) for rows in waiting for row in rows if row.state != "dead" and _expiry(row) < math.inf]
        expired = [Expired(row.id, row.queue, row.kind, row.attempt) for row in late]
        best = _best(row for row in due if row.state == "pending")
        next_check = 0.0 if self._key_checks else None
        return Promotion(len(due), best, min(left) - now / SECOND if left else None, expired, next_check)

    async def admit(self) -> Admission:
        """Admit blocked jobs as PostgreSQL does, except that the rates of keys are ignored."""
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
            ran = now - (row.claimed_at or now)
            _keep_error(row, {"attempt": row.attempt, "error": error, "duration": ran / SECOND}, now)
            if spent:
                self._check_key(row)
                _end(row, "dead", now)
                row.reason = f"lease lost {row.attempt} times: the job may be killing its process"
            elif row.cancel_requested_at is not None:
                self._check_key(row)
                _end(row, "cancelled", now)
            else:
                self._to_pending(row, refund=False)
            outcome = "pending" if row.state == "blocked" else row.state
            recovered.append(Recovered(row.id, row.queue, row.kind, row.attempt, node_id, outcome, row.reason))
        return recovered

    async def due_schedules(self) -> DueSchedules:
        await trio.lowlevel.checkpoint()
        now = self._now()
        active = [schedule for schedule in self._schedules.values() if not schedule.paused and schedule.error is None]
        due = [schedule for schedule in active if schedule.next_at is None or schedule.next_at <= now]
        due.sort(key=lambda schedule: (schedule.next_at or -math.inf, schedule.name))
        shown = [
            DueSchedule(one.name, one.cron, one.timezone, one.missed, None if one.next_at is None else one.next_at / SECOND)
            for one in due[:SCHEDULE_BATCH]
        ]
        others = [schedule for schedule in active if schedule not in due]
        return DueSchedules(now / SECOND, shown, _next_in(others, now))

    async def move_schedules(self, moves: Sequence[Move]) -> Moved:
        await trio.lowlevel.checkpoint()
        now = self._now()
        given = {move.name: move for move in moves}
        moved = {name for name, move in given.items() if name in self._schedules and _is_at(self._schedules[name], move)}
        jobs = [
            (tick, name, self._schedules[name].job(tick)) for name in moved for tick in given[name].ticks
        ]  # make all jobs before any schedule changes: after an error, nothing has changed
        documents = [msgspec.json.encode(job) for _, _, job in sorted(jobs, key=lambda job: job[:2])]
        best, _ = self._submit_batch(documents, again=False, key_ttl=None)
        for name in moved:
            schedule, move = self._schedules[name], given[name]
            schedule.next_at = None if move.next_at is None else round(move.next_at * SECOND)
            schedule.error = move.error
            if move.ticks:
                schedule.last_at = round(move.ticks[-1] * SECOND)
        counted = [
            schedule
            for schedule in self._schedules.values()
            if not schedule.paused and schedule.error is None and (schedule.name in moved or schedule.name not in given)
        ]
        submitted = Counter([(job["queue"], job["kind"]) for _, _, job in jobs])
        return Moved(moved, best, _next_in(counted, now), submitted)

    async def reconcile_schedules(self, source: str, schedules: Sequence[CronSchedule]) -> dict[str, str | None]:
        await trio.lowlevel.checkpoint()
        taken = {
            one.name: self._schedules[one.name].source
            for one in sorted(schedules, key=lambda one: one.name)
            if one.name in self._schedules and self._schedules[one.name].source != source
        }
        if taken:
            return taken
        named = {schedule.name for schedule in schedules}
        self._schedules = {name: one for name, one in self._schedules.items() if one.source != source or name in named}
        for schedule in schedules:
            self._put(schedule, source)
        return {}

    async def maintain(self, *, keep_finished: float, keep_cancelled: float) -> Maintained:
        await trio.lowlevel.checkpoint()
        now = self._now()
        dropped = 0
        for finished, keep in ((self._in("succeeded"), keep_finished), (self._in("cancelled"), keep_cancelled)):
            days = {_day(row) for row in finished if (_day(row) + 1) * DAY < now - round(keep * SECOND)}
            for row in finished:
                if _day(row) in days:
                    del self._rows[row.id]
            dropped += len(days)
        return Maintained(dropped)

    async def prune(
        self,
        *,
        keep_finished: float,  # noqa: ARG002 - `maintain` deletes all finished jobs
        keep_cancelled: float,  # noqa: ARG002
        keep_dead: float,
    ) -> int:
        await trio.lowlevel.checkpoint()
        before = self._now() - round(keep_dead * SECOND)
        old = sorted((row for row in self._in("dead") if _ended(row) < before), key=_ended)[:PRUNE_BATCH]
        for row in old:
            del self._rows[row.id]
        return len(old)

    async def prune_keys(self) -> int:
        await trio.lowlevel.checkpoint()
        now = self._now()
        old = sorted(((scope, key) for (scope, key), held in self._keys.items() if held.expires_at <= now))[:PRUNE_BATCH]
        for scope, key in old:
            if scope == "unique" and _unfinished(self._rows.get(self._keys[scope, key].job_id)):
                self._keys[scope, key].expires_at = now + DAY
            else:
                del self._keys[scope, key]
        return len(old)

    async def record(self, counts: Totals, *, sample: bool = False) -> Recorded:
        await trio.lowlevel.checkpoint()
        now = self._now()
        over = now // (10 * SECOND) * 10 * SECOND - 10 * SECOND
        first = (10, over) not in self._history
        if first:
            counts = counts._replace(submitted=counts.submitted + self._uncounted)
            self._uncounted = 0
            kept = {step: over - seconds * SECOND for step, seconds in HISTORY.items()}
            self._history = {place: slot for place, slot in self._history.items() if place[1] >= kept[place[0]]}
        for step in HISTORY:
            slot = self._history.setdefault((step, over // (step * SECOND) * step * SECOND), _Slot(Totals(0, 0, 0, 0)))
            slot.counts = _merged(slot.counts, counts)
            if sample:
                slot.depth = {state: len(self._in(state)) for state in _COUNTED}
        return Recorded((over + 20 * SECOND - now) / SECOND, first)

    async def history(self, step: int, *, seconds: float) -> list[Slot]:
        await trio.lowlevel.checkpoint()
        now = self._now()
        return [
            Slot(_EPOCH + timedelta(microseconds=at), slot.counts, slot.depth)
            for (length, at), slot in sorted(self._history.items())
            if length == step and now - round(seconds * SECOND) <= at <= now - (step + HISTORY_SETTLE) * SECOND
        ]

    async def depths(self) -> list[Depth]:
        await trio.lowlevel.checkpoint()
        now = self._now()
        since: dict[tuple[str, str], list[Instant]] = {}
        for row in self._rows.values():
            begin = {
                "pending": row.available_since,
                "blocked": row.available_since,
                "scheduled": row.run_at,
                "inflight": row.claimed_at,
                "dead": row.ended_at,
            }.get(row.state)
            if begin is not None:
                since.setdefault((row.queue, row.state), []).append(begin)
        return [Depth(queue, state, len(begun), max(0, now - min(begun)) / SECOND) for (queue, state), begun in since.items()]

    async def throughput(self) -> Activity:
        await trio.lowlevel.checkpoint()
        now = self._now()
        total: dict[str, tuple[float, float]] = {}
        for member in self._members.values():
            for queue, (completed, failed) in member.activity.items() if member.lease_until > now else ():
                before = total.get(queue, (0.0, 0.0))
                total[queue] = round(before[0] + completed, 4), round(before[1] + failed, 4)
        return total

    # -- inspect and change

    async def jobs(self, wanted: JobFilter, *, limit: int, after: str | None = None, rows: int = WALK_ROWS) -> Page:
        await trio.lowlevel.checkpoint()
        found, rest = self._walk(wanted, wanted.state or _STATES, after, limit, rows)
        return Page([_listed(row) for row in found], rest)

    async def cancel_jobs(
        self, wanted: JobFilter, *, keep: bool = True, after: str | None = None, dry_run: bool = False
    ) -> Cancelled:
        await trio.lowlevel.checkpoint()
        if not UNFINISHED.issuperset(wanted.state or ()):
            raise RefusedData("state must be one of pending, blocked, scheduled, inflight, or an array of them", field="state")
        bounds = (None, 10 * WALK_ROWS) if dry_run else (CANCEL_BATCH, WALK_ROWS)
        found, rest = self._walk(wanted, wanted.state or UNFINISHED, after, *bounds)
        found = [row for row in found if row.cancel_requested_at is None]
        for row in [] if dry_run else found:
            self._cancel(row, keep=keep)
        return Cancelled(len(found), rest)

    def _walk(
        self, wanted: JobFilter, states: Container[str], after: str | None, limit: int | None, rows: int
    ) -> tuple[list[_Row], str | None]:
        """Read at most `rows` jobs in descending order of their ids; see ``jobqueue.walk``."""
        if wanted == JobFilter():
            raise RefusedData('the filter is empty: give a condition, or {"all": true} to select all', field="all")
        below = (row for row in self._rows.values() if row.state in states and (after is None or row.id < after))
        latest = sorted((row for row in below if _within(row, wanted)), key=lambda row: row.id, reverse=True)
        found: list[_Row] = []
        for place, row in enumerate(latest, 1):
            if _meant(row, wanted):
                found.append(row)
            if place == rows or len(found) == limit:
                return found, row.id
        return found, None

    async def job(self, job_id: str) -> dict[str, Any] | None:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        return None if row is None else _shown(row)

    async def look(self, job_ids: Sequence[str]) -> dict[str, Glance]:
        await trio.lowlevel.checkpoint()
        rows = [self._rows[job_id] for job_id in job_ids if job_id in self._rows]
        return {row.id: Glance(row.state, row.attempt, row.claims, row.saved) for row in rows}

    async def cancel(self, job_id: str, *, keep: bool = True) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        if row is None or row.state not in UNFINISHED:
            return False
        self._cancel(row, keep=keep)
        return True

    def _cancel(self, row: _Row, *, keep: bool) -> None:
        if row.state == "inflight":
            row.cancel_requested_at = row.cancel_requested_at or self._now()
            return
        self._check_key(row)
        _end(row, "cancelled", self._now())
        if not keep:
            del self._rows[row.id]

    async def change(self, job_id: str, change: Change) -> bool:
        await trio.lowlevel.checkpoint()
        row, now = self._rows.get(job_id), self._now()
        if row is None or row.state not in UNFINISHED or row.state == "inflight":
            return False
        priority = row.priority if change.priority is None else change.priority
        _check(replace(row, priority=priority))
        run_at = None if change.run_at is None else _instant(change.run_at)
        if change.delay is not None and run_at is None:
            run_at = now + round(change.delay * SECOND)
        put_off = run_at is not None and run_at > now
        if put_off or priority != row.priority:
            row.options = _without(row.options, "rank", "turn")
        row.priority = priority
        if run_at is not None:
            row.available_since = run_at if put_off else min(row.available_since, now)
        if put_off or (row.state == "scheduled" and run_at is None):
            if row.state == "pending":
                self._check_key(row)
            row.state, row.run_at = "scheduled", run_at or row.run_at
            return True
        if "turn" not in (row.options or {}):
            self._take_turns([row], now)
        if row.state == "pending":  # the job still counts toward the limit of its concurrency key
            row.rank = self._rank(row)
        else:
            self._to_pending(row, refund=False)
        return True

    async def retry(self, job_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        if row is None or row.state != "dead":
            return False
        unique_key = _unique_key_of(msgspec.to_builtins(_shown(row)))
        if unique_key is not None:
            holder = _hold_unique_key(self._keys, self._rows, unique_key, job_id, self._now())
            if holder != job_id:
                raise KeyInUse(
                    f"job {holder} has the same unique key and is not finished: try again when it has ended", field="unique_key"
                )
        self._redrive(row)
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
                "running": self._running(member),
                "throughput": self._done(member),
            }
            for member in sorted(self._members.values(), key=lambda member: member.started_at)
        ]

    def _running(self, member: _Member) -> list[dict[str, Any]]:
        since: dict[tuple[str, str], list[Instant]] = {}
        for row in self._in("inflight"):
            if row.node_id == member.node.id and row.claimed_at is not None:
                since.setdefault((row.queue, row.kind), []).append(row.claimed_at)
        return [
            {"queue": queue, "kind": kind, "jobs": len(claimed), "oldest": (self._now() - min(claimed)) / SECOND}
            for (queue, kind), claimed in sorted(since.items())
        ]

    def _done(self, member: _Member) -> dict[str, float]:
        rates = list(member.activity.values()) if member.lease_until > self._now() else []
        return {
            "completed": round(sum(completed for completed, _ in rates), 4),
            "failed": round(sum(failed for _, failed in rates), 4),
        }

    async def schedules(self, name: str | None = None) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return [_shown(one) for key, one in sorted(self._schedules.items()) if name in (None, key)]

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        await trio.lowlevel.checkpoint()
        known = schedule.name in self._schedules
        self._put(schedule, None)
        return not known

    async def unschedule(self, name: str) -> bool:
        await trio.lowlevel.checkpoint()
        return self._schedules.pop(name, None) is not None

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        await trio.lowlevel.checkpoint()
        schedule = self._schedules.get(name)
        if schedule is None:
            return False
        schedule.paused = paused
        if paused:
            schedule.next_at = schedule.error = None
        return True

    async def trigger_schedule(self, name: str) -> str | None:
        await trio.lowlevel.checkpoint()
        schedule = self._schedules.get(name)
        if schedule is None:
            return None
        job_id = str(uuid_utils.uuid7())
        self._submit_batch([msgspec.json.encode({"id": job_id, **schedule.job(None)})], again=False, key_ttl=None)
        self._uncounted += 1
        return job_id

    def _put(self, schedule: CronSchedule, source: str | None) -> None:
        now = self._now()
        fields = msgspec.structs.asdict(schedule) | {"payload": msgspec.json.decode(schedule.payload)}
        known = self._schedules.get(schedule.name)
        if known is None:
            self._schedules[schedule.name] = _Schedule(**fields, source=source, created_at=now, updated_at=now)
            return
        if source is not None and all(getattr(known, name) == value for name, value in fields.items()):
            return
        if (known.cron, known.timezone) != (schedule.cron, schedule.timezone):
            known.next_at = None
        for name, value in fields.items():
            setattr(known, name, value)
        known.error = None
        known.updated_at = now

    async def dead(self, wanted: DeadFilter, *, limit: int, after: tuple[datetime, str] | None = None) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        place = None if after is None else (_instant(after[0]), after[1])
        rows = [row for row in reversed(self._wanted(wanted)) if place is None or (_ended(row), row.id) < place]
        names = ("id", "queue", "kind", "priority", "reason", "attempt", "max_retries", "created_at", "node_id", "options")
        shown = [(_shown(row), row) for row in rows[:limit]]
        return [
            {name: columns[name] for name in names}
            | {"died_at": columns["ended_at"], "error": _last_error(row), "cause": _cause(row)}
            for columns, row in shown
        ]

    async def dead_causes(self, wanted: DeadFilter, *, limit: int) -> Causes:
        await trio.lowlevel.checkpoint()
        groups: dict[tuple[str, str, str], list[_Row]] = {}
        for row in self._wanted(_said(wanted)):
            groups.setdefault((_cause(row), row.kind, row.queue), []).append(row)
        largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
        causes = [
            {
                "queue": queue,
                "kind": kind,
                "cause": cause,
                "jobs": len(rows),
                "first_died_at": _text(_ended(rows[0])),
                "last_died_at": _text(_ended(rows[-1])),
                "example": rows[-1].id,
            }
            for (cause, kind, queue), rows in largest[:limit]
        ]
        return Causes(causes, more=len(largest) > limit)

    async def retry_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        await trio.lowlevel.checkpoint()
        if dry_run:
            keys = [(row.id, _unique_key_of(_shown(row))) for row in self._wanted(_said(wanted))]
            held = {key: self._keys.get(("unique", key or "")) for _, key in keys}
            free = [
                key or job_id
                for job_id, key in keys
                if (holder := held[key]) is None or holder.job_id == job_id or not _unfinished(self._rows.get(holder.job_id))
            ]
            return len(set(free))
        risen = 0
        for row in self._wanted(_said(wanted)):
            unique_key = _unique_key_of(_shown(row))
            if unique_key is None or _hold_unique_key(self._keys, self._rows, unique_key, row.id, self._now()) == row.id:
                self._redrive(row)
                risen += 1
            if risen == DEAD_BATCH:
                break
        return risen

    async def discard_dead(self, wanted: DeadFilter, *, dry_run: bool = False) -> int:
        await trio.lowlevel.checkpoint()
        rows = self._wanted(_said(wanted))[: None if dry_run else DEAD_BATCH]
        for row in [] if dry_run else rows:
            del self._rows[row.id]
        return len(rows)

    async def now(self) -> datetime:
        await trio.lowlevel.checkpoint()
        return _EPOCH + timedelta(microseconds=self._now())

    def snapshot(self) -> list[dict[str, Any]]:
        """Return every job as `job` does, like ``SELECT * FROM jobqueue.jobs`` in PostgreSQL."""
        return [_shown(row) for row in self._rows.values()]

    # -- state changes

    def _block(self, row: _Row) -> None:
        """Block a pending job that has a concurrency key, until `admit` lets it run."""
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
        row.run_at = row.claimed_at = row.ended_at = row.node_id = row.reason = row.cancel_requested_at = None

    def _wanted(self, wanted: DeadFilter) -> list[_Row]:
        """Return the dead jobs that match a filter, the oldest first."""

        def meant(row: _Row) -> bool:
            return (
                (wanted.queue is None or row.queue == wanted.queue)
                and (wanted.kind is None or row.kind == wanted.kind)
                and (wanted.group is None or (row.options or {}).get("group") == wanted.group)
                and (wanted.cause is None or _cause(row) == wanted.cause)
                and (wanted.reason is None or wanted.reason in str(row.reason))
                and (wanted.died_before is None or _ended(row) < _instant(wanted.died_before))
                and (wanted.died_after is None or _ended(row) > _instant(wanted.died_after))
            )

        return sorted((row for row in self._in("dead") if meant(row)), key=lambda row: (_ended(row), row.id))

    def _redrive(self, row: _Row) -> None:
        row.attempt = 0
        row.available_since = self._now()
        row.options = _without(row.options, "expires_at", "rank", "turn")
        self._take_turns([row], row.available_since)
        self._to_pending(row, refund=False)

    def _end_run(self, row: _Row, outcome: dict[str, Any], now: Instant) -> None:
        verdict = outcome["outcome"]
        self._check_key(row)
        if outcome.get("saved") is not None:
            row.saved = {**(row.saved or {}), **outcome["saved"]}
        spent = verdict == "retry" and row.max_retries is not None and row.attempt > row.max_retries
        if row.cancel_requested_at is not None and verdict in ("retry", "snoozed", "released") and not spent:
            verdict = "cancelled"
        if verdict == "released":
            self._to_pending(row, refund=True)
            return
        _keep_error(row, outcome.get("error"), now)
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

    def _take_turns(self, rows: Iterable[_Row], now: Instant) -> None:
        """Set the turns and ranks of jobs in groups; see ``jobqueue.take_turns``."""
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
                    turns = [_turn(other) for other in waiting if (other.queue, other.priority > 0) == line]
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

        See ``jobqueue.lags``.
        """
        return any(self._lines.get((queue, urgent), math.inf) < Fraction(since, SECOND) for urgent in (False, True))

    def _rank(self, row: _Row) -> Instant:
        if row.options is not None and "rank" in row.options:
            return round(row.options["rank"] * SECOND)
        return row.available_since - row.priority * (self._aging_of(row.queue) // timedelta(microseconds=1))

    def _now(self) -> Instant:
        if self._began is None:
            self._began = time.time() - self._clock()
        return round((self._began + self._clock()) * SECOND)

    def _in(self, state: JobState) -> list[_Row]:
        return [row for row in self._rows.values() if row.state == state]


# -------------------------------------------------------------------------------------------------------------- state changes


def _merged(one: Totals, other: Totals) -> Totals:
    return Totals(
        submitted=one.submitted + other.submitted,
        completed=one.completed + other.completed,
        failed=one.failed + other.failed,
        dead=one.dead + other.dead,
        waits=[a + b for a, b in zip_longest(one.waits, other.waits, fillvalue=0)],
        runs=[a + b for a, b in zip_longest(one.runs, other.runs, fillvalue=0)],
    )


def _prepared(options: dict[str, Any] | None, now: Instant, *, again: bool) -> dict[str, Any] | None:
    for name, since in (("expires_in", 0.0), ("expires_at", now / SECOND)):
        if not again and options is not None and name in options and options[name] <= since:
            raise RefusedData(f"{name} of job 1 is not in the future", field=name)
    if options is None or "expires_in" not in options:
        return options
    return {name: value for name, value in options.items() if name != "expires_in"} | {
        "expires_at": now / SECOND + options["expires_in"]
    }


def _settle_keys(
    jobs: Sequence[dict[str, Any]],
    keys: dict[tuple[str, str], _Key],
    rows: Mapping[str, _Row],
    now: Instant,
    *,
    again: bool,
    ttl: int,
) -> dict[int, str]:
    """Store the keys of new jobs. Return the ids of existing jobs that replace new jobs, by position in the batch."""
    existing: dict[int, str] = {}
    if again:
        existing = {place: job["id"] for place, job in enumerate(jobs) if job["id"] in rows or _has_its_key(job, keys)}
    twins = _settle_idempotency_keys(jobs, keys, existing, now, ttl)
    _settle_unique_keys(jobs, keys, rows, existing, now)
    return existing | {place: existing[first] for place, first in twins.items() if first in existing}


def _has_its_key(job: Mapping[str, Any], keys: Mapping[tuple[str, str], _Key]) -> bool:
    names = [("idempotency", _idempotency_key_of(job)), ("unique", _unique_key_of(job))]
    return any(key is not None and (scope, key) in keys and keys[scope, key].job_id == job["id"] for scope, key in names)


def _settle_idempotency_keys(
    jobs: Sequence[dict[str, Any]], keys: dict[tuple[str, str], _Key], existing: dict[int, str], now: Instant, ttl: int
) -> dict[int, int]:
    """Find jobs whose key an earlier job of the batch also has. Map their positions to the positions of the earlier jobs."""
    twins: dict[int, int] = {}
    firsts: dict[str, int] = {}
    for place, job in enumerate(jobs):
        key = _idempotency_key_of(job)
        if key is None or place in existing:
            continue
        known = keys.get(("idempotency", key))
        if known is None or known.expires_at <= now:
            keys["idempotency", key] = _Key(job["id"], _fingerprint(job), now + ttl)
            firsts[key] = place
            continue
        if known.fingerprint != _fingerprint(job):
            raise KeyReused(
                f"the idempotency_key {key!r} was used for another job: submit this job with a new key",
                field="idempotency_key",
                index=place,
            )
        existing[place] = known.job_id
        if key in firsts:
            twins[place] = firsts[key]
    return twins


def _settle_unique_keys(
    jobs: Sequence[dict[str, Any]],
    keys: dict[tuple[str, str], _Key],
    rows: Mapping[str, _Row],
    existing: dict[int, str],
    now: Instant,
) -> None:
    given: dict[str, str] = {}
    for place, job in enumerate(jobs):
        unique_key = _unique_key_of(job)
        if unique_key is None or place in existing:
            continue
        if unique_key not in given:
            given[unique_key] = _hold_unique_key(keys, rows, unique_key, job["id"], now)
        if given[unique_key] != job["id"]:
            existing[place] = given[unique_key]
            if (key := _idempotency_key_of(job)) is not None:
                keys["idempotency", key] = replace(keys["idempotency", key], job_id=existing[place])


def _hold_unique_key(
    keys: dict[tuple[str, str], _Key], rows: Mapping[str, _Row], unique_key: str, job_id: str, now: Instant
) -> str:
    known = keys.get(("unique", unique_key))
    if known is not None and known.job_id != job_id and _unfinished(rows.get(known.job_id)):
        return known.job_id
    keys["unique", unique_key] = _Key(job_id, None, now + DAY)
    return job_id


def _unfinished(row: _Row | None) -> bool:
    return row is not None and row.state in UNFINISHED


def _idempotency_key_of(job: Mapping[str, Any]) -> str | None:
    key: str | None = (job.get("options") or {}).get("idempotency_key")
    return key


def _unique_key_of(job: Mapping[str, Any]) -> str | None:
    options = job.get("options") or {}
    if options.get("unique_key") is None and options.get("unique"):
        return repr((job.get("queue", "default"), job.get("kind", "default"), job.get("payload", {})))
    key: str | None = options.get("unique_key")
    return key


def _fingerprint(job: Mapping[str, Any]) -> object:
    told = {"idempotency_key", "traceparent", "tracestate"}
    asked = {name: value for name, value in job["options"].items() if name not in told}
    return {**job, "id": None, "options": asked}


def _to_inflight(row: _Row, node_id: str, now: Instant, limits: Mapping[str, int]) -> None:
    row.state = "inflight"
    row.attempt += 1
    row.claims += 1
    row.node_id = node_id
    row.claimed_at = now
    if row.max_retries is None:
        row.max_retries = limits.get(row.kind, DEFAULT_RETRIES)


def _expiry(row: _Row) -> float:
    """Return the time at which a job expires, in seconds since 1970; infinity if it does not."""
    return float((row.options or {}).get("expires_at", math.inf))


def _seconds_left(row: _Row, now: Instant) -> float:
    return _expiry(row) - now / SECOND


def _expire(row: _Row, now: Instant) -> None:
    row.node_id = None
    row.reason = "expired"
    _end(row, "dead", now)


def _without(options: dict[str, Any] | None, *names: str) -> dict[str, Any] | None:
    return {name: value for name, value in (options or {}).items() if name not in names} or None


def _meant(row: _Row, wanted: JobFilter) -> bool:
    options = row.options or {}
    return (
        wanted.queue in (None, row.queue)
        and wanted.kind in (None, row.kind)
        and wanted.group in (None, options.get("group"))
        and wanted.concurrency_key in (None, options.get("concurrency_key"))
        and (wanted.text is None or _says(row, wanted.text.lower()))
        and (wanted.created_after is None or row.created_at > _instant(wanted.created_after))
        and (wanted.created_before is None or row.created_at < _instant(wanted.created_before))
    )


def _says(row: _Row, text: str) -> bool:
    if _is_of_an_id(text):
        return row.id.startswith(text) or row.id.replace("-", "").startswith(text)
    return any(text in said.lower() for said in (row.reason, _last_error(row)) if said is not None)


def _is_of_an_id(text: str) -> bool:
    """Return whether a text is a UUID, or a prefix of a version 7 UUID; see ``jobqueue.ids_like``."""
    digits = text.replace("-", "")
    if re.fullmatch("0[0-9a-f]{7,30}|[0-9a-f]{32}", digits) is None:
        return False
    return text == digits or str(UUID(digits.ljust(32, "0"))).startswith(text)


def _within(row: _Row, wanted: JobFilter) -> bool:
    """Return whether the filter can match a job with this id, judging by the time in the id."""
    if wanted.text is not None and _is_of_an_id(wanted.text.lower()) and not _says(row, wanted.text.lower()):
        return False
    return (wanted.created_after is None or row.id >= _id_from(_instant(wanted.created_after) - 60 * SECOND)) and (
        wanted.created_before is None or row.id < _id_from(_instant(wanted.created_before) + 60 * SECOND)
    )


def _id_from(instant: Instant) -> str:
    milliseconds = f"{max(0, instant // 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}"


def _said(wanted: DeadFilter) -> DeadFilter:
    if wanted == DeadFilter():
        raise RefusedData('the filter is empty: give a condition, or {"all": true} to select all', field="all")
    return wanted


def _last_error(row: _Row) -> str | None:
    return row.errors[-1]["error"] if row.errors else None


def _cause(row: _Row) -> str:
    return cause_of(_last_error(row), str(row.reason))


def _end(row: _Row, state: JobState, now: Instant) -> None:
    if state == "dead":
        row.claimed_at = None
    row.state = state
    row.cancel_requested_at = None
    row.ended_at = now
    row.run_at = None


def _keep_error(row: _Row, error: dict[str, Any] | None, now: Instant) -> None:
    if error is not None:
        row.errors = [*row.errors, {**error, "at": _text(now), "node": row.node_id}][-KEPT_ERRORS:]


def _is_at(schedule: _Schedule, move: Move) -> bool:
    """Return whether a schedule has not changed since a node read it."""
    now = (schedule.cron, schedule.timezone, schedule.missed, schedule.next_at)
    expected = None if move.expected is None else round(move.expected * SECOND)
    return not schedule.paused and schedule.error is None and now == (move.cron, move.timezone, move.missed, expected)


def _next_in(schedules: Iterable[_Schedule], now: Instant) -> float | None:
    return min(((schedule.next_at - now) / SECOND for schedule in schedules if schedule.next_at is not None), default=None)


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
    needed = {"succeeded": None, "dead": "reason", "retry": "delay", "snoozed": "delay", "released": None, "cancelled": None}
    verdict = outcome.get("outcome")
    if verdict not in needed:
        raise RefusedData(f"unknown outcome {verdict!r}")
    column = needed[verdict]
    if column is not None and outcome.get(column) is None:
        raise RefusedData(f"null value in column {column} violates not-null constraint")


# --------------------------------------------------------------------------------------------------------------- output of rows


def _key(row: _Row) -> str | None:
    return None if row.options is None else row.options.get("concurrency_key")


def _by_rank(row: _Row) -> Instant:
    return row.rank


def _turn(row: _Row) -> Fraction:
    assert row.options is not None, "a job of a group has options"
    return Fraction(row.options["turn"])


def _best(rows: Iterable[_Row]) -> dict[str, float]:
    best: dict[str, Instant] = {}
    for row in rows:
        best[row.queue] = min(row.rank, best.get(row.queue, row.rank))
    return {queue: rank / SECOND for queue, rank in best.items()}


def _due(row: _Row) -> Instant:
    assert row.run_at is not None, "a scheduled job has run_at"
    return row.run_at


def _day(row: _Row) -> int:
    assert row.ended_at is not None, "a finished job has ended_at"
    return row.ended_at // DAY


def _ended(row: _Row) -> Instant:
    assert row.ended_at is not None, "a dead job has ended_at"
    return row.ended_at


def _claimed(row: _Row, now: Instant, seconds_left: float) -> ClaimedJob:
    options = row.options if row.options is None or seconds_left == math.inf else row.options | {"expires_in": seconds_left}
    assert row.max_retries is not None, "a claim sets max_retries"
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
        options=None if options is None else msgspec.convert(options, Options),
        saved=row.saved,
    )


def _listed(row: _Row) -> dict[str, Any]:
    columns = _shown(row)
    names = ("id", "state", "queue", "kind", "priority", "attempt", "max_retries", "created_at", "run_at", "claimed_at", "ended_at")
    return {name: columns[name] for name in (*names, "node_id", "reason", "options")} | {
        "progress": (row.saved or {}).get("progress")
    }


def _shown(row: _Row | _Schedule) -> dict[str, Any]:
    return dict(_columns(row))


def _columns(row: _Row | _Schedule) -> Iterator[tuple[str, Any]]:
    for name in row.__slots__:
        if name == "rank":
            continue
        value = getattr(row, name)
        is_time = name.endswith("_at") or name == "available_since"
        yield name, _text(value) if is_time and value is not None else value


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _text(instant: Instant) -> str:
    return (_EPOCH + timedelta(microseconds=instant)).isoformat(timespec="microseconds")


def _instant(moment: datetime) -> Instant:
    return (moment - _EPOCH) // timedelta(microseconds=1)
