"""Rows for the dashboard that a service would write only after hours, and hostile names."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb

from jobqueue import documents
from jobqueue.durations import BOUNDS
from tests.support.postgres import Database

HOSTILE = (
    '<img src=x onerror="window.owned=1">',
    '"><script>window.owned=1</script>',
    "javascript:window.owned=1",
    "\u202egnp.eman",
    "W" * 200,
)
"""Names that might run a script, link to one, reverse the text direction, or be too wide."""

SHOWN = tuple(name.replace("\u202e", "\\u202e") for name in HOSTILE)
"""The hostile names as a page shows them."""

SLOTS = {10: 3_600, 60: 21_600, 300: 86_400}
"""The retention of slots in seconds, by their length."""

AHEAD = 3_000
"""How far history and heartbeats reach into the future, in seconds, so that the tests of a module can take long."""


def slot(step: int, ago: float) -> datetime:
    """Return the start of the slot that was current some seconds ago."""
    at = datetime.now(UTC).timestamp() - ago
    return datetime.fromtimestamp(at // step * step, UTC)


def history(database: Database, *, gap: tuple[float, float] = (1500, 1620)) -> None:
    """Write one day of varied history. Also write future slots, to which a running service adds its counts.

    Args:
        gap: the range, in seconds ago, without history.
    """
    now = datetime.now(UTC).timestamp()
    chance = random.Random(7)
    points = []
    for step, kept in SLOTS.items():
        latest = slot(step, -AHEAD)
        for number in range((kept + AHEAD) // step):
            at = latest - timedelta(seconds=number * step)
            ago = now - at.timestamp()
            if not gap[0] < ago < gap[1]:
                points.append({"step": step, "at": at, **_lively(ago / 3600, step, chance)})
    slots(database, points)


def _lively(hours: float, step: int, chance: random.Random) -> dict[str, Any]:
    tide = 1.2 + 0.5 * math.sin(hours * 0.7) + 0.3 * math.sin(hours * 9)
    burst = max(0.0, math.sin(hours * 14 - 2) - 0.75) * 4
    submitted = step * 30 * (tide + burst) * chance.uniform(0.93, 1.07)
    failed = step * 0.8 * tide * chance.uniform(0.5, 1.5)
    return {
        "submitted": round(submitted),
        "completed": round(submitted * chance.uniform(0.94, 1.02) - failed / 3),
        "failed": round(failed),
        "dead": round(failed / 12) if chance.random() < 0.5 else 0,
        "waits": Counter(chance.lognormvariate(math.log(0.006 * (1 + 20 * burst)), 1.1) for _ in range(200)),
        "runs": Counter(chance.lognormvariate(math.log(0.08 * tide), 1.2) for _ in range(200)),
        "depth": {
            "pending": int(chance.uniform(12, 20) * tide + 600 * burst),
            "scheduled": 60,
            "blocked": 0,
            "inflight": int(chance.uniform(4, 9)),
            "dead": 2,
        },
    }


def slots(database: Database, points: Iterable[Mapping[str, Any]]) -> None:
    """Write slots, or replace them. A point has counts, and numbers of attempts by their seconds of waiting and running."""
    rows = [{**point, "waits": _buckets(point["waits"]), "runs": _buckets(point["runs"])} for point in points]
    database.rows(
        """
        INSERT INTO jobqueue_internal.history (step, at, submitted, completed, failed, dead, waits, runs, depth)
        SELECT * FROM jsonb_to_recordset(%s)
                   AS r (step integer, at timestamptz, submitted bigint, completed bigint, failed bigint, dead bigint,
                         waits integer[], runs integer[], depth jsonb)
            ON CONFLICT (step, at) DO UPDATE
           SET submitted = excluded.submitted, completed = excluded.completed, failed = excluded.failed, dead = excluded.dead,
               waits = excluded.waits, runs = excluded.runs, depth = excluded.depth
        """,
        documents.encode(rows).decode(),
    )


def _buckets(counts: Mapping[float, int]) -> list[int]:
    buckets = [0] * (len(BOUNDS) + 1)
    for seconds, count in counts.items():
        buckets[bisect_left(BOUNDS, seconds)] += count
    return buckets


def node(
    database: Database,
    host: str,
    queues: dict[str, int],
    *,
    heartbeat_ago: float = -AHEAD,
    activity: dict[str, tuple[float, float]] | None = None,
) -> UUID:
    """Write a node with a lease of one hour.

    Args:
        database: the database.
        host: the name of its machine.
        queues: the number of jobs that it runs at once, by queue.
        heartbeat_ago: seconds since its last heartbeat; negative for a heartbeat in the future.
        activity: the jobs per second that it completed and failed, by queue.
    """
    made = uuid4()
    database.rows(
        """
        INSERT INTO jobqueue_internal.nodes (id, host, pid, process, version, queues, started_at, heartbeat_at, lease_until,
                               activity)
        VALUES (%s, %s, 4711, 'made up', '0.1.0', %s, now() - interval '26 hours', now() - %s * interval '1 second',
                now() + interval '1 hour', %s)
        """,
        *(made, host, Jsonb(queues), heartbeat_ago, activity and Jsonb(activity)),
    )
    return made


def running(database: Database, node_id: UUID, queue: str, kinds: Iterable[str]) -> None:
    """Write running jobs of a node, one of each kind."""
    for kind in kinds:
        database.rows(
            """
            INSERT INTO jobqueue_internal.inflight_jobs (id, queue, kind, priority, node_id, claimed_at, payload, max_retries,
                                       attempt,
                                                claims, created_at, available_since, errors)
            VALUES (%s, %s, %s, 0, %s, now() - interval '3 seconds', '{}', 3, 1, 1, now(), now(), '[]')
            """,
            *(uuid4(), queue, kind, node_id),
        )
