"""The errors that a client raises. They keep their arguments, so that they can be pickled."""

from __future__ import annotations

from typing import Any

from jobqueue.errors import JobQueueError


class RequestRefused(JobQueueError):
    """The service rejected a request.

    Args:
        status: the HTTP status.
        problem: the response's problem document (RFC 9457): ``title``, ``detail``, ``field`` and so on, if present.

    Attributes:
        field: the field at fault, if any.
        index: the index of the job at fault in its submission, from 0, if any.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem
        self.field: str | None = problem.get("field")
        self.index: int | None = problem.get("index")

    def __str__(self) -> str:
        job = "" if self.index is None else f"job {self.index}: "
        return f"{self.status}: {job}{self.problem.get('detail') or self.problem.get('title') or 'no reason given'}"


class NotFound(RequestRefused):
    """A resource does not exist (404)."""


class JobNotFound(NotFound):
    """The job does not exist: it never existed, or it has ended and the service did not keep it."""


class Unreachable(JobQueueError):
    """The service did not respond to any attempt. The error of httpx is the ``__cause__``.

    Args:
        reason: the cause, as text.
        in_doubt: whether the service may have processed the request, because at least a part of it was sent.
    """

    def __init__(self, reason: str, in_doubt: bool) -> None:
        super().__init__(reason, in_doubt)
        self.reason = reason
        self.in_doubt = in_doubt

    def __str__(self) -> str:
        return self.reason + (" (the service may have processed the request)" if self.in_doubt else "")


class JobEnded(JobQueueError):
    """A job has ended without a result.

    Args:
        job: the whole job, as in the response of ``GET /jobs/{id}``.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        self.job = job


class JobCancelled(JobEnded):
    """Somebody cancelled the job."""

    def __str__(self) -> str:
        return f"job {self.job['id']} was cancelled"


class JobFailed(JobEnded):
    """The job is dead: it has used all attempts, or its handler discarded it.

    Attributes:
        reason: the cause, as text.
        errors: the last ten failed attempts of the job, oldest first.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        self.reason: str = job.get("reason") or ""
        self.errors: list[dict[str, Any]] = job.get("errors") or []

    def __str__(self) -> str:
        return f"job {self.job['id']} is dead: {self.reason}"
