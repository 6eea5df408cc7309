"""What a client can ask of a service: every call, written once, over whatever wire."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any

import httpx

from jobqueue import documents
from jobqueue.client.chunks import CHUNK_JOBS, NDJSON, Chunk, cut, encode
from jobqueue.client.errors import JobCancelled, JobFailed, RequestRefused
from jobqueue.client.patience import HARMLESS, KEYED, NEVER, Statuses, ask
from jobqueue.client.requests import below, build, read
from jobqueue.client.waiting import Event, ended, events
from jobqueue.client.wires import Wire

FILTER_SECONDS = 150.0
"""Seconds for what goes on until it has done with all jobs that a filter wants: longer than the service takes for any request."""

PAGE = 100
"""Jobs on one page, unless told otherwise."""

_REPEATABLE = {"GET", "HEAD", "PUT"}


class Calls:
    """The calls of a client. Each raises, besides what it says itself, `RequestRefused` and `Unreachable`.

    Args:
        wire: to the service.
        patience: seconds for which a request is sent again.
    """

    def __init__(self, wire: Wire, patience: float) -> None:
        self._wire = wire
        self._patience = patience

    async def request(self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        """Send one request and return the document that it is answered with, or the text, where it is one.

        Args:
            method: GET, HEAD and PUT are sent again also where the one before may have been carried out.
            path: below the URL of the service, its names percent-encoded.
            json: the body, if there is one: anything that has a form in JSON.
            params: the query. None stands for a parameter that is not given, a list for its elements with commas between them.

        Raises:
            JobNotFound: there is no such job.
            NotFound: nor anything else of that name.
            RequestRefused: the service says no, or it cannot do it now, and has not in all the time that the client has patience.
            Unreachable: no answer came.
            ValueError: the body has no form in JSON.
        """
        again_at = HARMLESS if method.upper() in _REPEATABLE else NEVER
        content = None if json is None else documents.encode(json)
        return await self._document(build(self._wire, method, path, content, params=params), again_at)

    async def submit(self, /, kind: str, payload: Any = None, **fields: Any) -> str:
        """Submit a job and return its id, once it is committed.

        Args:
            kind: which handler runs it.
            payload: anything that has a form in JSON; None is ``{}``.
            fields: the others that a job has: ``priority``, ``queue``, ``delay``, and so on. With its ``idempotency_key``, or one
                made up here, it is sent again after a failure, and is one job all the same; with None for a key it is not.

        Raises:
            RequestRefused: something is wrong with the job, or the service takes none now (503).
            InvalidJob: it has no form in JSON.
        """
        job = encode({"kind": kind, "payload": payload, **fields})
        document = await self._document(build(self._wire, "POST", "/submit", job.body), KEYED if job.keyed else NEVER)
        return str(document["id"])

    async def submit_many(self, jobs: Iterable[Mapping[str, Any]], *, chunk: int = CHUNK_JOBS) -> list[str]:
        """Submit many jobs and return their ids, in their order.

        Each chunk is committed as a whole, or not at all; when one fails, those before it stay. `submit_chunks` tells of each.

        Args:
            jobs: mappings of the fields that jobs have, ``kind`` and ``payload`` among them; keys as for `submit`.
            chunk: how many are submitted in one request, at the most.

        Raises:
            RequestRefused: something is wrong with a job, whose ``index`` it has, or the service takes none now (503).
            InvalidJob: a job has no form in JSON.
        """
        ids: list[str] = []
        async for done in self.submit_chunks(jobs, chunk=chunk):
            ids += done.ids
        return ids

    async def submit_chunks(self, jobs: Iterable[Mapping[str, Any]], *, chunk: int = CHUNK_JOBS) -> AsyncGenerator[Chunk, None]:
        """Submit many jobs as `submit_many` does, and iterate over the chunks as each is committed.

        Of ``jobs`` no more is read than is in the chunk that comes next: they may be any number.
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
        """Return a job with everything that is known of it.

        Raises:
            JobNotFound: there is none.
        """
        return await self._object("GET", below("jobs", job_id))

    def jobs(self, /, *, limit: int = PAGE, after: str | None = None, **wanted: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over the pages of a list of jobs, the latest first: ``{"jobs": [...], "next": ...}``.

        Args:
            limit: jobs on a page, at the most; a page may have fewer, or none, and not be the last.
            after: the ``next`` of an earlier page, to go on from there.
            wanted: any of ``state`` (one, or a list), ``queue``, ``kind``, ``group``, ``concurrency_key``, ``text``,
                ``created_after``, ``created_before``.
        """
        return self._pages("/jobs", limit, after, wanted)

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job and return it: one that waited is cancelled, one that runs (``inflight``) will be in a moment.

        Raises:
            RequestRefused: it has ended already (409).
            JobNotFound: there is none.
        """
        return await self._object("POST", below("jobs", job_id, "cancel"))

    async def retry(self, job_id: str) -> dict[str, Any]:
        """Run a dead job again with all its attempts, and return it.

        Raises:
            RequestRefused: it is not dead, or another job has its unique key (409).
            JobNotFound: there is none.
        """
        return await self._object("POST", below("jobs", job_id, "retry"))

    async def discard(self, job_id: str) -> dict[str, Any]:
        """Delete a dead job and return what it was.

        Raises:
            RequestRefused: it is not dead (409).
            JobNotFound: there is none.
        """
        return await self._object("DELETE", below("jobs", job_id))

    async def update(self, /, job_id: str, **fields: Any) -> dict[str, Any]:
        """Change a job that waits, and return it.

        Args:
            job_id: the job.
            fields: its new ``priority``, and when it is to run: ``run_at`` or ``delay``.

        Raises:
            RequestRefused: it does not wait (409), or a value cannot be.
            JobNotFound: there is none.
        """
        return await self._object("PATCH", below("jobs", job_id), json=fields)

    async def cancel_jobs(self, /, *, dry_run: bool = False, **wanted: Any) -> int:
        """Cancel all jobs that are wanted and return how many.

        Args:
            dry_run: count them only.
            wanted: what `jobs` takes, or ``all=True``.
        """
        return await self._by_filter("/jobs/cancel", wanted, dry_run=dry_run)

    async def result(self, job_id: str, *, timeout: float | None = None) -> Any:
        """Wait for a job's end and return its result. Restarts of the service, and its absence, are waited through.

        Args:
            job_id: the job.
            timeout: seconds to wait; None waits for ever, 0 looks once.

        Raises:
            JobFailed: it is dead.
            JobCancelled: it was cancelled.
            JobNotFound: there is none, also where it succeeded and the service keeps no such jobs.
            TimeoutError: it has not ended in time. It goes on.
        """
        job = await ended(self._wire, job_id, math.inf if timeout is None else timeout)
        if job["state"] == "succeeded":
            return job["result"]
        if job["state"] == "cancelled":
            raise JobCancelled(job)
        raise JobFailed(job)

    def events(self, job_id: str) -> AsyncGenerator[Event, None]:
        """Iterate over what becomes of a job, from its state now to its end; as `result`, it waits through restarts and absences.

        It tells the latest, not every step, and begins with the state again after a break. Who leaves it early closes it
        (`contextlib.aclosing`).

        Raises:
            JobNotFound: there is none.
        """
        return events(self._wire, job_id)

    def dead(self, /, *, limit: int = PAGE, after: str | None = None, **wanted: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Iterate over the pages of the dead letters, the latest first: ``{"jobs": [...], "next": ...}``.

        Args:
            limit: jobs on a page.
            after: the ``next`` of an earlier page, to go on from there.
            wanted: any of ``queue``, ``kind``, ``group``, ``cause``, ``reason`` (a part of it), ``died_before``, ``died_after``.
        """
        return self._pages("/dead", limit, after, wanted)

    async def dead_causes(self, /, *, limit: int = PAGE, **wanted: Any) -> dict[str, Any]:
        """Return the dead letters in groups of one queue, kind and cause, the largest first: ``{"causes": [...], "more": False}``.

        Args:
            limit: the most groups.
            wanted: what `dead` takes.
        """
        document: dict[str, Any] = await self.request("GET", "/dead/causes", params={**wanted, "limit": limit})
        return document

    async def retry_dead(self, /, *, dry_run: bool = False, **wanted: Any) -> int:
        """Run all dead letters again that are wanted, and return how many.

        Args:
            dry_run: count them only.
            wanted: what `dead` takes, or ``all=True``.
        """
        return await self._by_filter("/dead/retry", wanted, dry_run=dry_run)

    async def discard_dead(self, /, *, dry_run: bool = False, **wanted: Any) -> int:
        """Delete all dead letters that are wanted, and return how many.

        Args:
            dry_run: count them only.
            wanted: what `dead` takes, or ``all=True``.
        """
        return await self._by_filter("/dead/discard", wanted, dry_run=dry_run)

    async def queues(self) -> list[dict[str, Any]]:
        """Return every queue with its settings and depths."""
        return await self._list("/queues")

    async def queue(self, name: str) -> dict[str, Any]:
        """Return one queue as `queues` does.

        Raises:
            NotFound: there is none.
        """
        return await self._object("GET", below("queues", name))

    async def configure(self, /, name: str, **settings: Any) -> dict[str, Any]:
        """Set what holds for a queue on every node, and return all its settings.

        Args:
            name: of the queue.
            settings: ``max_running``, ``rate`` and the others; None takes one away, and what is not given stays.
        """
        return await self._object("PUT", below("queues", name), json=settings)

    async def pause(self, name: str) -> None:
        """Pause a queue on every node."""
        await self.request("POST", below("queues", name, "pause"))

    async def resume(self, name: str) -> None:
        """Go on with a queue that is paused."""
        await self.request("POST", below("queues", name, "resume"))

    async def nodes(self) -> list[dict[str, Any]]:
        """Return every node that is running."""
        return await self._list("/nodes")

    async def tasks(self) -> dict[str, Any]:
        """Return the live Trio tasks of the node that answers, as a tree from its ``root`` on."""
        return await self._object("GET", "/tasks")

    async def schedules(self) -> list[dict[str, Any]]:
        """Return every cron schedule."""
        return await self._list("/schedules")

    async def schedule(self, name: str) -> dict[str, Any]:
        """Return one cron schedule.

        Raises:
            NotFound: there is none.
        """
        return await self._object("GET", below("schedules", name))

    async def put_schedule(self, /, name: str, cron: str, **fields: Any) -> dict[str, Any]:
        """Make a cron schedule, or change it, and return it.

        Args:
            name: of the schedule.
            cron: when, such as ``"*/5 * * * *"``.
            fields: ``timezone``, ``missed``, ``kind`` (the name), and the fields of its jobs.
        """
        return await self._object("PUT", below("schedules", name), json={"cron": cron, **fields})

    async def unschedule(self, name: str) -> dict[str, Any]:
        """Delete a cron schedule and return what it was; the jobs that it has submitted stay.

        Raises:
            NotFound: there is none.
        """
        return await self._object("DELETE", below("schedules", name))

    async def pause_schedule(self, name: str) -> dict[str, Any]:
        """Pause a cron schedule and return it.

        Raises:
            NotFound: there is none.
        """
        return await self._object("POST", below("schedules", name, "pause"))

    async def resume_schedule(self, name: str) -> dict[str, Any]:
        """Go on with a cron schedule that is paused, and return it.

        Raises:
            NotFound: there is none.
        """
        return await self._object("POST", below("schedules", name, "resume"))

    async def trigger_schedule(self, name: str) -> str:
        """Submit a schedule's job now and return its id.

        Raises:
            NotFound: there is none.
        """
        return str((await self._object("POST", below("schedules", name, "trigger")))["id"])

    async def close(self) -> None:
        """Close all connections. A client that is a context manager does so at its end."""
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
