"""Submit jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import trio
import uuid_utils

from jobqueue.errors import RefusedData
from jobqueue.storage.roles.run import Claim, Ranks, Want
from jobqueue.storage.roles.submit import Submitted
from jobqueue.testing.memory_store.keys import settle_keys
from jobqueue.testing.memory_store.run import MemoryRun
from jobqueue.testing.memory_store.state import SECOND, Instant, Row, best_ranks, instant


class MemorySubmit(MemoryRun):
    """Implements `SubmitStore`."""

    @property
    def submit_trouble(self) -> str | None:
        return None

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
        fresh: dict[str, Row] = {}
        given: list[dict[str, Any]] = [msgspec.json.decode(document) for document in jobs]
        existing: dict[int, str] = {}
        keys = dict(self._keys)
        if key_ttl is not None:
            existing = settle_keys(given, keys, self._rows, now, again=again, ttl=round(key_ttl * SECOND))
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
        return best_ranks(row for row in fresh.values() if row.state == "pending"), ids

    def _new_row(self, given: dict[str, Any], now: Instant, place: int, *, again: bool) -> Row:
        run_at = None
        if given.get("run_at") is not None:
            run_at = instant(datetime.fromisoformat(given["run_at"]))
        elif given.get("delay") is not None:
            run_at = now + round(given["delay"] * SECOND)
        scheduled = run_at is not None and run_at > now
        row = Row(
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
        row.check()
        return row


def _prepared(options: dict[str, Any] | None, now: Instant, *, again: bool) -> dict[str, Any] | None:
    for name, since in (("expires_in", 0.0), ("expires_at", now / SECOND)):
        if not again and options is not None and name in options and options[name] <= since:
            raise RefusedData(f"{name} of job 1 is not in the future", field=name)
    if options is None or "expires_in" not in options:
        return options
    return {name: value for name, value in options.items() if name != "expires_in"} | {
        "expires_at": now / SECOND + options["expires_in"]
    }
