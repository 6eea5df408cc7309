"""Register nodes, renew their leases, and claim and finish jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import msgspec
import trio

from jobqueue.errors import RefusedData
from jobqueue.job import (
    DEFAULT_RETRIES,
    ClaimedJob,
    Note,
    Options,
    Outcome,
)
from jobqueue.storage.claims import Claimed
from jobqueue.storage.roles.run import RECOVER_BATCH, Activity, Node, Recovered, RunId, Want
from jobqueue.testing.memory_store.state import SECOND, Instant, Member, Row, State, StoredQueue


class MemoryRun(State):
    """Implements `RunStore`."""

    async def join(self, node: Node, *, lease: float) -> None:
        await trio.lowlevel.checkpoint()
        now = self._now()
        if node.id in self._members:
            raise RefusedData("duplicate key value violates unique constraint nodes_pkey")
        for queue in node.queues:
            self._queues.setdefault(queue, StoredQueue(now))
        self._members[node.id] = Member(node, now, now, now + round(lease * SECOND))

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
                row.end("cancelled", now)
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
            row.keep_error({"attempt": row.attempt, "error": error, "duration": ran / SECOND}, now)
            if spent:
                self._check_key(row)
                row.end("dead", now)
                row.reason = f"lease lost {row.attempt} times: the job may be killing its process"
            elif row.cancel_requested_at is not None:
                self._check_key(row)
                row.end("cancelled", now)
            else:
                self._to_pending(row, refund=False)
            outcome = "pending" if row.state == "blocked" else row.state
            recovered.append(Recovered(row.id, row.queue, row.kind, row.attempt, node_id, outcome, row.reason))
        return recovered

    async def claim(self, node_id: str, wants: Mapping[str, Want], defaults: bytes) -> Claimed:
        await trio.lowlevel.checkpoint()
        return self._claim_at_once(node_id, wants, defaults)

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
            ready = sorted(
                (row for row in self._in("pending") if row.queue == queue and row.rank >= least), key=lambda row: row.rank
            )
            most, wait = self._allowance(queue, jobs, now)
            if most < jobs and len(ready) >= most:
                again[queue] = wait
            for row in ready[:most]:
                _to_inflight(row, node_id, now, limits)
                claimed.append(_claimed(row, self._now(), row.seconds_left(now)))
                if row.seconds_left(now) <= 0:
                    row.attempt -= 1
                    self._check_key(row)
                    row.expire(now)
            if queue in self._queues:
                self._queues[queue].tokens -= len(ready[:most])
            self._serve_lines(queue, ready[:most], emptied=len(ready) < most)
        return Claimed(claimed, again)

    def _serve_lines(self, queue: str, served: Iterable[Row], *, emptied: bool) -> None:
        """Record the last served turn of the queue's groups, or that none of their jobs is left."""
        for row in served:
            if row.options is not None and "turn" in row.options:
                line = queue, row.priority > 0
                self._lines[line] = max(row.turn, self._lines.get(line, Fraction(0)))
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

    def _end_run(self, row: Row, outcome: dict[str, Any], now: Instant) -> None:
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
        row.keep_error(outcome.get("error"), now)
        if spent:
            row.end("dead", now)
            row.reason = "attempts used up"
        elif verdict in ("retry", "snoozed"):
            self._to_pending(row, refund=verdict == "snoozed")
            row.state = "scheduled"
            row.run_at = now + round(outcome["delay"] * SECOND)
        else:
            row.end(verdict, now)
            row.result = outcome.get("result") if verdict == "succeeded" else None
            row.reason = outcome.get("reason") if verdict == "dead" else None


def _to_inflight(row: Row, node_id: str, now: Instant, limits: Mapping[str, int]) -> None:
    row.state = "inflight"
    row.attempt += 1
    row.claims += 1
    row.node_id = node_id
    row.claimed_at = now
    if row.max_retries is None:
        row.max_retries = limits.get(row.kind, DEFAULT_RETRIES)


def _claimed(row: Row, now: Instant, seconds_left: float) -> ClaimedJob:
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


def _check_outcome(outcome: dict[str, Any]) -> None:
    needed = {"succeeded": None, "dead": "reason", "retry": "delay", "snoozed": "delay", "released": None, "cancelled": None}
    verdict = outcome.get("outcome")
    if verdict not in needed:
        raise RefusedData(f"unknown outcome {verdict!r}")
    column = needed[verdict]
    if column is not None and outcome.get(column) is None:
        raise RefusedData(f"null value in column {column} violates not-null constraint")
