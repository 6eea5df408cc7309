"""Read jobs, queues, nodes, schedules, and the history."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, get_args
from uuid import UUID

import msgspec
import trio

from jobqueue.errors import RefusedData
from jobqueue.job import JobState
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.storage.roles.inspect import (
    HISTORY_SETTLE,
    WALK_ROWS,
    CauseGroup,
    CauseGroups,
    DeadJob,
    Depth,
    Glance,
    HistorySlot,
    JobPage,
    JobSummary,
    NodeEntry,
    QueueEntry,
    Rates,
    RunningCount,
    StoredJob,
    StoredSchedule,
)
from jobqueue.storage.roles.run import Activity
from jobqueue.testing.memory_store.state import EPOCH, SECOND, Instant, Member, Row, Schedule, State, instant, iso

Filter = TypeVar("Filter", JobFilter, DeadFilter)
_STATES = frozenset(get_args(JobState))


class MemoryInspect(State):
    """Implements `InspectStore`."""

    async def jobs(self, wanted: JobFilter, *, limit: int, after: str | None = None, rows: int = WALK_ROWS) -> JobPage:
        await trio.lowlevel.checkpoint()
        found, rest = self._walk(wanted, wanted.state or _STATES, after, limit, rows)
        return JobPage([_listed(row) for row in found], rest)

    async def job(self, job_id: str) -> StoredJob | None:
        await trio.lowlevel.checkpoint()
        row = self._rows.get(job_id)
        return None if row is None else StoredJob(**shown(row))

    async def look(self, job_ids: Sequence[str]) -> dict[str, Glance]:
        await trio.lowlevel.checkpoint()
        rows = [self._rows[job_id] for job_id in job_ids if job_id in self._rows]
        return {row.id: Glance(row.state, row.attempt, row.claims, row.saved) for row in rows}

    async def dead(self, wanted: DeadFilter, *, limit: int, after: tuple[datetime, str] | None = None) -> list[DeadJob]:
        await trio.lowlevel.checkpoint()
        place = None if after is None else (instant(after[0]), after[1])
        rows = [row for row in reversed(self._wanted(wanted)) if place is None or (row.ended, row.id) < place]
        return [
            msgspec.convert({**shown(row), "died_at": iso(row.ended), "error": row.last_error, "cause": row.cause}, DeadJob)
            for row in rows[:limit]
        ]

    async def dead_causes(self, wanted: DeadFilter, *, limit: int) -> CauseGroups:
        await trio.lowlevel.checkpoint()
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in self._wanted(not_empty(wanted)):
            groups.setdefault((row.cause, row.kind, row.queue), []).append(row)
        largest = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
        causes = [
            CauseGroup(
                queue=queue,
                kind=kind,
                cause=cause,
                jobs=len(rows),
                first_died_at=iso(rows[0].ended),
                last_died_at=iso(rows[-1].ended),
                example=rows[-1].id,
            )
            for (cause, kind, queue), rows in largest[:limit]
        ]
        return CauseGroups(causes, more=len(largest) > limit)

    async def queues(self) -> list[QueueEntry]:
        await trio.lowlevel.checkpoint()
        entries = []
        for name, queue in sorted(self._queues.items()):
            aging = self._aging_of(name).total_seconds()
            entry = {"name": name, "paused": queue.paused, "aging_interval": aging, "created_at": iso(queue.created_at)}
            entries.append(msgspec.convert(entry | queue.settings, QueueEntry))
        return entries

    async def nodes(self) -> list[NodeEntry]:
        await trio.lowlevel.checkpoint()
        return [
            NodeEntry(
                id=member.node.id,
                host=member.node.host,
                pid=member.node.pid,
                version=member.node.version,
                queues=member.node.queues,
                started_at=iso(member.started_at),
                heartbeat_at=iso(member.heartbeat_at),
                lease_until=iso(member.lease_until),
                running=self._running(member),
                throughput=self._done(member),
            )
            for member in sorted(self._members.values(), key=lambda member: member.started_at)
        ]

    async def schedules(self, name: str | None = None) -> list[StoredSchedule]:
        await trio.lowlevel.checkpoint()
        return [StoredSchedule(**shown(one)) for key, one in sorted(self._schedules.items()) if name in (None, key)]

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

    async def history(self, step: int, *, seconds: float) -> list[HistorySlot]:
        await trio.lowlevel.checkpoint()
        now = self._now()
        return [
            HistorySlot(EPOCH + timedelta(microseconds=at), slot.counts, slot.depth)
            for (length, at), slot in sorted(self._history.items())
            if length == step and now - round(seconds * SECOND) <= at <= now - (step + HISTORY_SETTLE) * SECOND
        ]

    async def now(self) -> datetime:
        await trio.lowlevel.checkpoint()
        return EPOCH + timedelta(microseconds=self._now())

    def snapshot(self) -> list[dict[str, Any]]:
        """Return every job as `job` does, like ``SELECT * FROM jobqueue.jobs`` in PostgreSQL."""
        return [shown(row) for row in self._rows.values()]

    def _walk(
        self, wanted: JobFilter, states: Container[str], after: str | None, limit: int | None, rows: int
    ) -> tuple[list[Row], str | None]:
        """Read at most `rows` jobs in descending order of their ids; see ``jobqueue_internal.walk``."""
        not_empty(wanted)
        below = (row for row in self._rows.values() if row.state in states and (after is None or row.id < after))
        latest = sorted((row for row in below if _within(row, wanted)), key=lambda row: row.id, reverse=True)
        found: list[Row] = []
        for place, row in enumerate(latest, 1):
            if _meant(row, wanted):
                found.append(row)
            if place == rows or len(found) == limit:
                return found, row.id
        return found, None

    def _wanted(self, wanted: DeadFilter) -> list[Row]:
        """Return the dead jobs that match a filter, the oldest first."""

        def meant(row: Row) -> bool:
            return (
                (wanted.queue is None or row.queue == wanted.queue)
                and (wanted.kind is None or row.kind == wanted.kind)
                and (wanted.group is None or (row.options or {}).get("group") == wanted.group)
                and (wanted.cause is None or row.cause == wanted.cause)
                and (wanted.reason is None or wanted.reason in str(row.reason))
                and (wanted.died_before is None or row.ended < instant(wanted.died_before))
                and (wanted.died_after is None or row.ended > instant(wanted.died_after))
            )

        return sorted((row for row in self._in("dead") if meant(row)), key=lambda row: (row.ended, row.id))

    def _running(self, member: Member) -> list[RunningCount]:
        since: dict[tuple[str, str], list[Instant]] = {}
        for row in self._in("inflight"):
            if row.node_id == member.node.id and row.claimed_at is not None:
                since.setdefault((row.queue, row.kind), []).append(row.claimed_at)
        return [
            RunningCount(queue, kind, len(claimed), (self._now() - min(claimed)) / SECOND)
            for (queue, kind), claimed in sorted(since.items())
        ]

    def _done(self, member: Member) -> Rates:
        rates = list(member.activity.values()) if member.lease_until > self._now() else []
        return Rates(round(sum(completed for completed, _ in rates), 4), round(sum(failed for _, failed in rates), 4))


def _meant(row: Row, wanted: JobFilter) -> bool:
    options = row.options or {}
    return (
        wanted.queue in (None, row.queue)
        and wanted.kind in (None, row.kind)
        and wanted.group in (None, options.get("group"))
        and wanted.concurrency_key in (None, options.get("concurrency_key"))
        and (wanted.text is None or _says(row, wanted.text.lower()))
        and (wanted.created_after is None or row.created_at > instant(wanted.created_after))
        and (wanted.created_before is None or row.created_at < instant(wanted.created_before))
    )


def _says(row: Row, text: str) -> bool:
    if _is_of_an_id(text):
        return row.id.startswith(text) or row.id.replace("-", "").startswith(text)
    return any(text in said.lower() for said in (row.reason, row.last_error) if said is not None)


def _is_of_an_id(text: str) -> bool:
    """Return whether a text is a UUID, or a prefix of a version 7 UUID; see ``jobqueue_internal.ids_like``."""
    digits = text.replace("-", "")
    if re.fullmatch("0[0-9a-f]{7,30}|[0-9a-f]{32}", digits) is None:
        return False
    return text == digits or str(UUID(digits.ljust(32, "0"))).startswith(text)


def _within(row: Row, wanted: JobFilter) -> bool:
    """Return whether the filter can match a job with this id, judging by the time in the id."""
    if wanted.text is not None and _is_of_an_id(wanted.text.lower()) and not _says(row, wanted.text.lower()):
        return False
    return (wanted.created_after is None or row.id >= _id_from(instant(wanted.created_after) - 60 * SECOND)) and (
        wanted.created_before is None or row.id < _id_from(instant(wanted.created_before) + 60 * SECOND)
    )


def _id_from(instant: Instant) -> str:
    milliseconds = f"{max(0, instant // 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}"


def not_empty(wanted: Filter) -> Filter:
    if wanted == type(wanted)():
        raise RefusedData('the filter is empty: give a condition, or {"all": true} to select all', field="all")
    return wanted


def _listed(row: Row) -> JobSummary:
    return msgspec.convert({**shown(row), "progress": (row.saved or {}).get("progress")}, JobSummary)


def shown(row: Row | Schedule) -> dict[str, Any]:
    return dict(_columns(row))


def _columns(row: Row | Schedule) -> Iterator[tuple[str, Any]]:
    for name in row.__slots__:
        if name == "rank":
            continue
        value = getattr(row, name)
        is_time = name.endswith("_at") or name == "available_since"
        yield name, iso(value) if is_time and value is not None else value
