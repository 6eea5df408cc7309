"""Settle idempotency keys and unique keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobqueue.errors import KeyReused
from jobqueue.job import UNFINISHED
from jobqueue.testing.memory_store.state import DAY, Instant, Key, Row


def settle_keys(
    jobs: Sequence[dict[str, Any]],
    keys: dict[tuple[str, str], Key],
    rows: Mapping[str, Row],
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


def _has_its_key(job: Mapping[str, Any], keys: Mapping[tuple[str, str], Key]) -> bool:
    names = [("idempotency", _idempotency_key_of(job)), ("unique", unique_key_of(job))]
    return any(key is not None and (scope, key) in keys and keys[scope, key].job_id == job["id"] for scope, key in names)


def _settle_idempotency_keys(
    jobs: Sequence[dict[str, Any]], keys: dict[tuple[str, str], Key], existing: dict[int, str], now: Instant, ttl: int
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
            keys["idempotency", key] = Key(job["id"], _fingerprint(job), now + ttl)
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
    keys: dict[tuple[str, str], Key],
    rows: Mapping[str, Row],
    existing: dict[int, str],
    now: Instant,
) -> None:
    given: dict[str, str] = {}
    for place, job in enumerate(jobs):
        unique_key = unique_key_of(job)
        if unique_key is None or place in existing:
            continue
        if unique_key not in given:
            given[unique_key] = hold_unique_key(keys, rows, unique_key, job["id"], now)
        if given[unique_key] != job["id"]:
            existing[place] = given[unique_key]
            if (key := _idempotency_key_of(job)) is not None:
                keys["idempotency", key] = replace(keys["idempotency", key], job_id=existing[place])


def hold_unique_key(keys: dict[tuple[str, str], Key], rows: Mapping[str, Row], unique_key: str, job_id: str, now: Instant) -> str:
    known = keys.get(("unique", unique_key))
    if known is not None and known.job_id != job_id and unfinished(rows.get(known.job_id)):
        return known.job_id
    keys["unique", unique_key] = Key(job_id, None, now + DAY)
    return job_id


def unfinished(row: Row | None) -> bool:
    return row is not None and row.state in UNFINISHED


def _idempotency_key_of(job: Mapping[str, Any]) -> str | None:
    key: str | None = (job.get("options") or {}).get("idempotency_key")
    return key


def unique_key_of(job: Mapping[str, Any]) -> str | None:
    options = job.get("options") or {}
    if options.get("unique_key") is None and options.get("unique"):
        return repr((job.get("queue", "default"), job.get("kind", "default"), job.get("payload", {})))
    key: str | None = options.get("unique_key")
    return key


def _fingerprint(job: Mapping[str, Any]) -> object:
    told = {"idempotency_key", "traceparent", "tracestate"}
    asked = {name: value for name, value in job["options"].items() if name not in told}
    return {**job, "id": None, "options": asked}
