"""Register nodes, renew their leases, and claim and finish jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from jobqueue.job import Note, Outcome
from jobqueue.storage import claims
from jobqueue.storage.claims import Claimed
from jobqueue.storage.connection import Connection
from jobqueue.storage.postgres.lanes import IN_LOOP_CHARACTERS, Lanes, as_text, fetch_rows, fetch_value, integer, settle
from jobqueue.storage.roles.run import RECOVER_BATCH, Activity, Node, Recovered, RunId, Want
from jobqueue.storage.schema import SCHEMA_VERSION

IN_LOOP_JOBS = 64
"""Maximum number of jobs that a claim may take in the Trio loop. Larger claims run in a thread."""

HELD_PATIENCE = 0.05
"""Like `SETTLE_TIMEOUT`, for the dispatcher. It is short, because the dispatcher can make other claims before it tries again."""


class PostgresRun(Lanes):
    """Implements `RunStore`."""

    async def join(self, node: Node, *, lease: float) -> None:
        await self._heartbeat.run(
            fetch_value(
                "SELECT jobqueue_internal.join_node(%s, %s, %s, %s, %s, %s::jsonb, %s, %s)",
                *(node.id, node.host, node.pid, node.process, node.version, as_text(node.queues), lease, SCHEMA_VERSION),
            )
        )

    async def heartbeat(self, node_id: str, *, lease: float, activity: Activity | None = None) -> list[RunId] | None:
        sql = "SELECT jobqueue_internal.heartbeat(%s, %s, %s::jsonb)"
        unwanted = await self._heartbeat.run(fetch_value(sql, node_id, lease, as_text(activity) if activity else None))
        return None if unwanted is None else msgspec.convert(unwanted, list[RunId])

    async def leave(self, node_id: str) -> int:
        return integer(await self._heartbeat.run(fetch_value("SELECT jobqueue_internal.leave_node(%s)", node_id)))

    async def expire(self, processes: Iterable[str]) -> int:
        sql = "WITH gone AS (DELETE FROM jobqueue_internal.nodes WHERE process = ANY (%s) RETURNING id) SELECT count(*) FROM gone"
        return integer(await self._housekeeping.run(fetch_value(sql, list(processes))))

    async def processes(self) -> list[str]:
        rows = await self._housekeeping.run(fetch_rows("SELECT process FROM jobqueue_internal.nodes"))
        return [str(row["process"]) for row in rows]

    async def recover(self, *, judge: str | None = None) -> list[Recovered]:
        rows = await self._housekeeping.run(
            fetch_rows("SELECT * FROM jobqueue_internal.recover(%s, %s::uuid)", RECOVER_BATCH, judge)
        )
        return [msgspec.convert({**row, "id": str(row["id"]), "node_id": str(row["node_id"])}, Recovered) for row in rows]

    async def claim(self, node_id: str, wants: Mapping[str, Want], defaults: bytes) -> Claimed:
        few = sum([want.jobs for want in wants.values()]) <= IN_LOOP_JOBS
        sql = "SELECT jobqueue_internal.claim(%s, %s::jsonb, %s::jsonb)"
        [text] = await self._claim.call(sql, node_id, as_text(wants), defaults.decode(), in_loop=few)
        return claims.read(text)

    async def held(self, node_id: str, *, lost: Iterable[tuple[int, str]] = ()) -> set[RunId]:
        def work(connection: Connection) -> set[RunId]:
            for backend in lost:
                settle(connection, backend, patience=HELD_PATIENCE)
            rows = fetch_rows("SELECT id, claims FROM jobqueue_internal.inflight_jobs WHERE node_id = %s", node_id)(connection)
            return {(str(row["id"]), int(row["claims"])) for row in rows}

        return await self._claim.run(work)

    async def finish(self, node_id: str, outcomes: Sequence[Outcome], *, keep: bool = True) -> set[int]:
        given = msgspec.json.encode(outcomes).decode()
        sql = "SELECT jobqueue_internal.finish(%s, %s::jsonb, %s)"
        [stale] = await self._finish.call(sql, node_id, given, keep, in_loop=len(given) <= IN_LOOP_CHARACTERS)
        return {place - 1 for place in stale}

    async def note(self, node_id: str, notes: Sequence[Note]) -> set[str]:
        [row] = await self._housekeeping.run(
            fetch_rows("SELECT jobqueue_internal.note(%s, %s::jsonb) AS written", node_id, msgspec.json.encode(notes).decode())
        )
        return {str(job_id) for job_id in row["written"]}
