"""Submit jobs over HTTP and wait for their results: for Trio and asyncio alike. It needs the extra ``client``.

::

    from jobqueue.client import Client

    async with Client("http://127.0.0.1:8080") as client:
        job_id = await client.submit("thumbnail", {"path": "a.png"}, priority=5)
        result = await client.result(job_id, timeout=60)
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import anyio
import httpx

from jobqueue.errors import JobQueueError
from jobqueue.job import UNFINISHED

POLL_SECONDS = 30.0
"""Seconds for which the service is asked to wait for a job's end, at the most; then it is asked again."""

ANSWER_SECONDS = 20.0
"""Seconds for an answer, beyond those that the service was asked to wait."""

LONGEST_BACKOFF = 2.0
"""Seconds between two requests while the service cannot be reached, at the most."""


class RequestRefused(JobQueueError):
    """The service refused a request.

    Args:
        status: of HTTP.
        problem: what the service said, by RFC 9457: ``title``, ``detail``, ``field`` and so on, as far as they are there.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{status}: {problem.get('detail') or problem.get('title') or 'no reason given'}")
        self.status = status
        self.problem = problem


class JobNotFound(RequestRefused):
    """There is no such job: it never was, or it has ended and was not kept."""


class JobEnded(JobQueueError):
    """A job has ended without a result.

    Args:
        job: the whole job, as ``GET /jobs/{id}`` has it.
    """

    def __init__(self, job: dict[str, Any], what: str) -> None:
        super().__init__(f"job {job['id']} {what}")
        self.job = job


class JobCancelled(JobEnded):
    """Somebody cancelled the job."""


class JobFailed(JobEnded):
    """The job is dead: its attempts are used up, or its handler gave it up.

    Attributes:
        reason: why, in words.
        errors: its failed attempts, the last ten, oldest first.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job, f"is dead: {job.get('reason')}")
        self.reason: str = job.get("reason") or ""
        self.errors: list[dict[str, Any]] = job.get("errors") or []


class Client:
    """One service, over connections that are kept. Use it as an async context manager, in the loop that it was made in.

    Args:
        url: of the service, such as ``"http://127.0.0.1:8080"``.
        token: its bearer token, if it has any.
    """

    def __init__(self, url: str, token: str | None = None, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=ANSWER_SECONDS, transport=transport)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self._http.__aexit__(kind, error, at)

    async def request(self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        """Send a request and return the document that it is answered with."""
        return _checked(await self._http.request(method, path, json=json, params=params))

    async def submit(self, kind: str, payload: Any = None, **fields: Any) -> str:
        """Submit a job and return its id, once it is committed.

        Args:
            kind: which handler runs it.
            payload: anything that has a form in JSON; None is ``{}``.
            fields: the others that a job has: ``priority``, ``queue``, ``delay``, and so on.

        Raises:
            RequestRefused: something is wrong with the job, or the service takes none now (503).
            httpx.TransportError: the service cannot be reached; where the connection broke, the job may exist.
        """
        answer = await self._http.post("/submit", json={"kind": kind, "payload": payload, **fields})
        return str(_checked(answer)["id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        """Return a job with everything that is known of it.

        Raises:
            JobNotFound: there is none.
            httpx.TransportError: the service cannot be reached.
        """
        return _checked(await self._http.get(f"/jobs/{job_id}"))

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job and return it: one that waited is cancelled, one that runs (``inflight``) will be in a moment.

        Raises:
            RequestRefused: it has ended already (409).
            JobNotFound: there is none.
            httpx.TransportError: the service cannot be reached.
        """
        return _checked(await self._http.post(f"/jobs/{job_id}/cancel"))

    async def result(self, job_id: str, *, timeout: float | None = None) -> Any:
        """Wait for a job's end and return its result. Restarts of the service, and its absence, are waited through.

        Args:
            job_id: the job.
            timeout: seconds to wait; None waits for ever.

        Raises:
            JobFailed: it is dead.
            JobCancelled: it was cancelled.
            JobNotFound: there is none, also where it succeeded and the service keeps no such jobs.
            TimeoutError: it has not ended in time. It goes on.
        """
        with anyio.fail_after(timeout):
            job = await self._ended(job_id, anyio.current_time() + (math.inf if timeout is None else timeout))
        if job["state"] == "succeeded":
            return job["result"]
        if job["state"] == "cancelled":
            raise JobCancelled(job, "was cancelled")
        raise JobFailed(job)

    async def _ended(self, job_id: str, give_up_at: float) -> dict[str, Any]:
        failures = 0
        while True:
            wait = max(0.0, min(POLL_SECONDS, give_up_at - anyio.current_time()))
            asked_at = anyio.current_time()
            try:
                answer = await self._http.get(f"/jobs/{job_id}", params={"wait": f"{wait:.3f}"}, timeout=wait + ANSWER_SECONDS)
                if answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
                    job = _checked(answer)
                    if job["state"] not in UNFINISHED:
                        return job
                    if anyio.current_time() - asked_at > wait / 2:
                        failures = 0
                        continue  # it waited as it was asked to; a node that stops answers at once
            except httpx.TransportError:
                pass
            failures += 1
            await anyio.sleep(min(LONGEST_BACKOFF, 0.05 * 2.0 ** min(failures, 10)) * random.uniform(0.5, 1))


def _checked(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_success:
        document: dict[str, Any] = answer.json()
        return document
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    kind = JobNotFound if answer.status_code == HTTPStatus.NOT_FOUND else RequestRefused
    raise kind(answer.status_code, problem if isinstance(problem, dict) else {})
