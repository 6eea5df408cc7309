"""Submit jobs."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from jobqueue import documents
from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.storage import claims
from jobqueue.storage.postgres.lanes import IN_LOOP_CHARACTERS, OUTAGE_AFTER, Lanes, as_text, fetch_rows, fetch_value, ranks, settle
from jobqueue.storage.roles.run import Claim
from jobqueue.storage.roles.submit import Submitted


class PostgresSubmit(Lanes):
    """Implements `SubmitStore`."""

    @property
    def submit_trouble(self) -> str | None:
        return self._submit.trouble if trio.current_time() - self._submit.trouble_since > OUTAGE_AFTER else None

    async def submit(
        self, jobs: Sequence[bytes], *, wake: bool, along: Claim | None = None, key_ttl: float | None = None
    ) -> Submitted:
        batch = documents.join(jobs)
        claim = (None, None, None) if along is None else (along.node_id, as_text(along.wants), along.defaults.decode())
        in_loop = len(batch) <= IN_LOOP_CHARACTERS
        ids: list[str] | None = None
        if key_ttl is None:
            sql = "SELECT best, claimed FROM jobqueue_internal.submit_batch(%s::jsonb, false, %s, %s, %s::jsonb, %s::jsonb)"
            best, claimed = await self._submit.call(sql, batch, wake, *claim, in_loop=in_loop)
        else:
            sql = """
                SELECT best, claimed, ids::text[]
                  FROM jobqueue_internal.submit_batch(%s::jsonb, false, %s, %s, %s::jsonb, %s::jsonb, %s)
            """
            best, claimed, ids = await self._submit.call(sql, batch, wake, *claim, key_ttl, in_loop=in_loop)
        return Submitted(best, None if claimed is None else claims.read(claimed), ids)

    async def submit_again(self, jobs: Sequence[bytes], *, backend: tuple[int, str], key_ttl: float | None = None) -> Submitted:
        try:
            await self._submit.run(lambda connection: settle(connection, backend))
        except ConnectionLost as error:
            # This connection has written nothing yet. So its loss must not look like a second commit in doubt.
            raise DatabaseUnavailable(str(error)) from error
        if key_ttl is None:
            sql = "SELECT best FROM jobqueue_internal.submit_batch(%s::jsonb, true, true)"
            return Submitted(ranks(await self._submit.run(fetch_value(sql, documents.join(jobs)))))
        sql = "SELECT best, ids::text[] AS ids FROM jobqueue_internal.submit_batch(%s::jsonb, true, true, key_ttl => %s)"
        [row] = await self._submit.run(fetch_rows(sql, documents.join(jobs), key_ttl))
        return Submitted(row["best"], ids=row["ids"])
