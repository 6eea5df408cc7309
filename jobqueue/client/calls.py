"""The calls of both clients, written once for any transport."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

import httpx

from jobqueue import documents
from jobqueue.client.batches import CHUNK_JOBS, NDJSON, Chunk, cut, encode
from jobqueue.client.errors import JobCancelled, JobFailed, RequestRefused
from jobqueue.client.requests import below, build, read
from jobqueue.client.retries import HARMLESS, KEYED, NEVER, Statuses, ask
from jobqueue.client.transports import Transport
from jobqueue.client.waiting import Event, ended, events

FILTER_SECONDS = 150.0
"""Timeout in seconds of calls that process all jobs that match a filter. It exceeds the service's own limit for any request."""

PAGE = 100
"""Default number of jobs on one page."""

_REPEATABLE = {"GET", "HEAD", "PUT"}


class Calls:
    """The calls of a client. Besides the errors that a call lists, it can raise `RequestRefused` and `Unreachable`.

    Args:
        transport: the connection to the service.
        patience: seconds for which a request is retried.
    """

    def __init__(self, transport: Transport, patience: float) -> None:
        self._wire = transport
        self._patience = patience

    async def request(self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        """Send one request; return the JSON document or the text of the response.

        Args:
            method: GET, HEAD and PUT are retried even if the service may have processed the previous request.
            path: the path below the service's URL, with names percent-encoded.
            json: the body, if any: any value that JSON can represent.
            params: the query. None omits a parameter, and the elements of a list are joined with commas.

        Raises:
            JobNotFound: the job does not exist.
            NotFound: another resource does not exist.
            RequestRefused: the service rejects the request, or is still unavailable after `patience` seconds.
            Unreachable: no response was received.
            ValueError: JSON cannot represent the body.
        """
        again_at = HARMLESS if method.upper() in _REPEATABLE else NEVER
        content = None if json is None else documents.encode(json)
        return await self._document(build(self._wire, method, path, content, params=params), again_at)

    async def submit(self, /, kind: str, payload: Any = None, **fields: Any) -> str:
        """Submit a job and return its id once it is committed.

        Args:
            kind: the kind, which selects the handler.
            payload: any value that JSON can represent; None becomes ``{}``.
            fields: other fields of the job: ``priority``, ``queue``, ``delay``, and so on. Without
                an ``idempotency_key``, the client generates one. With a key, it can retry the
                request without creating a second job. With ``idempotency_key=None`` it does not
                retry.

        Raises:
            RequestRefused: the job is invalid, or the service does not accept jobs now (503).
            InvalidJob: JSON cannot represent the job.
        """
        job = encode({"kind": kind, "payload": payload, **fields})
        document = await self._document(build(self._wire, "POST", "/submit", job.body), KEYED if job.keyed else NEVER)
        return str(document["id"])

    async def submit_many(self, jobs: Iterable[Mapping[str, Any]], *, chunk: int = CHUNK_JOBS) -> list[str]:
        """Submit many jobs and return their ids, in the order of the jobs.

        Each chunk is committed as a whole or not at all. If a chunk fails, the chunks before it stay
        committed. `submit_chunks` reports each chunk.

        Args:
            jobs: mappings of job fields, such as ``kind`` and ``payload``; keys as for `submit`.
            chunk: the maximum number of jobs in one request.

        Raises:
            RequestRefused: a job is invalid (see its ``index``), or the service does not accept jobs now (503).
            InvalidJob: JSON cannot represent a job.
        """
        ids: list[str] = []
        async for done in self.submit_chunks(jobs, chunk=chunk):
            ids += done.ids
        return ids

    async def submit_chunks(self, jobs: Iterable[Mapping[str, Any]], *, chunk: int = CHUNK_JOBS) -> AsyncGenerator[Chunk, None]:
        """Submit many jobs as `submit_many` does; yield each chunk once it is committed.

        Reads only one chunk at a time from ``jobs``, so the iterable can have any length.
        """
        first = 0
        for body, keyed in cut(jobs, chunk):
            try:
                document = await self._document(build(self._wire, "POST", "/submit", body, NDJSON), KEYED if keyed else NEVER)
            except RequestRefused as refused:
                if refused.index is None:
                    raise
                raise type(refused)(refused.status, {**refused.problem, "index": first + refused.index}) from None
            yield Chunk(document["ids"], document.get("existing", []), document.get("ignored", []))
            first += len(document["ids"])

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return a job with all its fields.

        Raises:
            JobNotFound: the job does not exist.
        """
        return await self._object("GET", below("jobs", job_id))

    def jobs(self, /, *, limit: int = PAGE, after: str | None = None, **wanted: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the pages of a list of jobs, newest first: ``{"jobs": [...], "next": ...}``.

        Args:
            limit: the maximum number of jobs on a page. A page with fewer jobs, or none, is not always the last.
            after: the ``next`` of an earlier page, to continue from there.
            wanted: any of ``state`` (one or a list), ``queue``, ``kind``, ``group``,
                ``concurrency_key``, ``text``, ``created_after``, ``created_before``.
        """
        return self._pages("/jobs", limit, after, wanted)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job and return it. A waiting job is cancelled at once, and a running one (``inflight``) shortly after.

        Raises:
            RequestRefused: the job has already ended (409).
            JobNotFound: the job does not exist.
        """
        return await self._object("POST", below("jobs", job_id, "cancel"))

    async def retry(self, job_id: str) -> dict[str, Any]:
        """Run a dead job again with all its attempts, and return it.

        Raises:
            RequestRefused: the job is not dead, or another job has its unique key (409).
            JobNotFound: the job does not exist.
        """
        return await self._object("POST", below("jobs", job_id, "retry"))

    async def discard(self, job_id: str) -> dict[str, Any]:
        """Delete a dead job and return its last state.

        Raises:
            RequestRefused: the job is not dead (409).
            JobNotFound: the job does not exist.
        """
        return await self._object("DELETE", below("jobs", job_id))

    async def update(self, /, job_id: str, **fields: Any) -> dict[str, Any]:
        """Change a waiting job and return it.

        Args:
            job_id: the job.
            fields: the new ``priority``, and the new start: ``run_at`` or ``delay``.

        Raises:
            RequestRefused: the job is not waiting (409), or a value is invalid.
            JobNotFound: the job does not exist.
        """
        return await self._object("PATCH", below("jobs", job_id), json=fields)

    async def cancel_jobs(self, /, *, dry_run: bool = False, **wanted: Any) -> int:
        """Cancel all matching jobs; return their number.

        Args:
            dry_run: only count them.
            wanted: the filters of `jobs`, or ``all=True``.
        """
        return await self._by_filter("/jobs/cancel", wanted, dry_run=dry_run)

    async def result(self, job_id: str, *, timeout: float | None = None) -> Any:
        """Wait until a job ends and return its result. Continues to wait while the service restarts or is unavailable.

        Args:
            job_id: the job.
            timeout: seconds to wait; None waits forever, 0 checks once.

        Raises:
            JobFailed: the job is dead.
            JobCancelled: the job was cancelled.
            JobNotFound: the job does not exist, or it succeeded and the service does not keep succeeded jobs.
            TimeoutError: the job has not ended in time. The job continues.
        """
        job = await ended(self._wire, job_id, math.inf if timeout is None else timeout)
        if job["state"] == "succeeded":
            return job["result"]
        if job["state"] == "cancelled":
            raise JobCancelled(job)
        raise JobFailed(job)

    def events(self, job_id: str) -> AsyncGenerator[Event, None]:
        """Yield a job's events from its current state to its end. Continues to wait while the service restarts or is unavailable.

        Yields the latest state, not every change. After an interruption, it yields the current state
        again. To stop early, close the iterator (`contextlib.aclosing`).

        Raises:
            JobNotFound: the job does not exist.
        """
        return events(self._wire, job_id)

    def dead(self, /, *, limit: int = PAGE, after: str | None = None, **wanted: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the pages of the dead letters, newest first: ``{"jobs": [...], "next": ...}``.

        Args:
            limit: the maximum number of jobs on a page.
            after: the ``next`` of an earlier page, to continue from there.
            wanted: any of ``queue``, ``kind``, ``group``, ``cause``, ``reason`` (a part of it),
                ``died_before``, ``died_after``.
        """
        return self._pages("/dead", limit, after, wanted)

    async def dead_causes(self, /, *, limit: int = PAGE, **wanted: Any) -> dict[str, Any]:
        """Return the dead letters grouped by queue, kind and cause, largest group first: ``{"causes": [...], "more": False}``.

        Args:
            limit: the maximum number of groups.
            wanted: the filters of `dead`.
        """
        document: dict[str, Any] = await self.request("GET", "/dead/causes", params={**wanted, "limit": limit})
        return document

    async def retry_dead(self, /, *, dry_run: bool = False, **wanted: Any) -> int:
        """Redrive all matching dead letters; return their number.

        Args:
            dry_run: only count them.
            wanted: the filters of `dead`, or ``all=True``.
        """
        return await self._by_filter("/dead/retry", wanted, dry_run=dry_run)

    async def discard_dead(self, /, *, dry_run: bool = False, **wanted: Any) -> int:
        """Delete all matching dead letters; return their number.

        Args:
            dry_run: only count them.
            wanted: the filters of `dead`, or ``all=True``.
        """
        return await self._by_filter("/dead/discard", wanted, dry_run=dry_run)

    async def queues(self) -> list[dict[str, Any]]:
        """Return every queue with its settings and depths."""
        return await self._list("/queues")

    async def queue(self, name: str) -> dict[str, Any]:
        """Return one queue as `queues` does.

        Raises:
            NotFound: the queue does not exist.
        """
        return await self._object("GET", below("queues", name))

    async def configure(self, /, name: str, **settings: Any) -> dict[str, Any]:
        """Change a queue's settings on every node; return all its settings.

        Args:
            name: the queue.
            settings: ``max_running``, ``rate`` and others. None removes a setting; omitted settings stay unchanged.
        """
        return await self._object("PUT", below("queues", name), json=settings)

    async def pause(self, name: str) -> None:
        """Pause a queue on every node."""
        await self.request("POST", below("queues", name, "pause"))

    async def resume(self, name: str) -> None:
        """Resume a paused queue on every node."""
        await self.request("POST", below("queues", name, "resume"))

    async def nodes(self) -> list[dict[str, Any]]:
        """Return every running node."""
        return await self._list("/nodes")

    async def tasks(self) -> dict[str, Any]:
        """Return the live Trio tasks of the node that responds, as a tree below its ``root``."""
        return await self._object("GET", "/tasks")

    async def schedules(self) -> list[dict[str, Any]]:
        """Return every cron schedule."""
        return await self._list("/schedules")

    async def schedule(self, name: str) -> dict[str, Any]:
        """Return one cron schedule.

        Raises:
            NotFound: the schedule does not exist.
        """
        return await self._object("GET", below("schedules", name))

    async def put_schedule(self, /, name: str, cron: str, **fields: Any) -> dict[str, Any]:
        """Create or change a cron schedule, and return it.

        Args:
            name: the schedule.
            cron: when to submit jobs, such as ``"*/5 * * * *"``.
            fields: ``timezone``, ``missed``, ``kind`` (by default the name), and the fields of its jobs.
        """
        return await self._object("PUT", below("schedules", name), json={"cron": cron, **fields})

    async def unschedule(self, name: str) -> dict[str, Any]:
        """Delete a cron schedule and return its last state. Jobs that it has submitted stay.

        Raises:
            NotFound: the schedule does not exist.
        """
        return await self._object("DELETE", below("schedules", name))

    async def pause_schedule(self, name: str) -> dict[str, Any]:
        """Pause a cron schedule and return it.

        Raises:
            NotFound: the schedule does not exist.
        """
        return await self._object("POST", below("schedules", name, "pause"))

    async def resume_schedule(self, name: str) -> dict[str, Any]:
        """Resume a paused cron schedule and return it.

        Raises:
            NotFound: the schedule does not exist.
        """
        return await self._object("POST", below("schedules", name, "resume"))

    async def trigger_schedule(self, name: str) -> str:
        """Submit a schedule's job now and return its id.

        Raises:
            NotFound: the schedule does not exist.
        """
        return str((await self._object("POST", below("schedules", name, "trigger")))["id"])

    async def close(self) -> None:
        """Close all connections. A client used as a context manager does this on exit."""
        await self._wire.close()

    async def _pages(
        self, path: str, limit: int, after: str | None, wanted: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        while True:
            page: dict[str, Any] = await self.request("GET", path, params={**wanted, "limit": limit, "after": after})
            yield page
            after = page["next"]
            if after is None:
                return

    async def _by_filter(self, path: str, wanted: Mapping[str, Any], *, dry_run: bool) -> int:
        params = {"dry_run": True} if dry_run else None
        request = build(self._wire, "POST", path, documents.encode(wanted), params=params, seconds=FILTER_SECONDS)
        return int((await self._document(request, NEVER))["jobs"])

    async def _object(self, method: str, path: str, *, json: Any = None) -> dict[str, Any]:
        document: dict[str, Any] = await self.request(method, path, json=json)
        return document

    async def _list(self, path: str) -> list[dict[str, Any]]:
        document: list[dict[str, Any]] = await self.request("GET", path)
        return document

    async def _document(self, request: httpx.Request, again_at: Statuses) -> Any:
        return read(await ask(self._wire, request, self._patience, again_at))
