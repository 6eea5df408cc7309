"""What a client raises. The arguments are kept as they are, so that an error can go from a process to another."""

from __future__ import annotations

from typing import Any

from jobqueue.errors import JobQueueError


class RequestRefused(JobQueueError):
    """The service refused a request.

    Args:
        status: of HTTP.
        problem: what the service said, by RFC 9457: ``title``, ``detail``, ``field`` and so on, as far as they are there.

    Attributes:
        field: the field at fault, if it is one.
        index: the place of the job at fault among those that were submitted together, from 0.
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
    """There is nothing of that name (404)."""


class JobNotFound(NotFound):
    """There is no such job: it never was, or it has ended and was not kept."""


class Unreachable(JobQueueError):
    """No answer came from the service, as often as it was asked. The error of httpx is the ``__cause__``.

    Args:
        reason: why, in words.
        in_doubt: whether the service may have done what it was asked to: the request, or a part of it, was on its way.
    """

    def __init__(self, reason: str, in_doubt: bool) -> None:
        super().__init__(reason, in_doubt)
        self.reason = reason
        self.in_doubt = in_doubt

    def __str__(self) -> str:
        return self.reason + (" (the request may have been carried out)" if self.in_doubt else "")


class JobEnded(JobQueueError):
    """A job has ended without a result.

    Args:
        job: the whole job, as ``GET /jobs/{id}`` has it.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        self.job = job


class JobCancelled(JobEnded):
    """Somebody cancelled the job."""

    def __str__(self) -> str:
        return f"job {self.job['id']} was cancelled"


class JobFailed(JobEnded):
    """The job is dead: its attempts are used up, or its handler gave it up.

    Attributes:
        reason: why, in words.
        errors: its failed attempts, the last ten, oldest first.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        self.reason: str = job.get("reason") or ""
        self.errors: list[dict[str, Any]] = job.get("errors") or []

    def __str__(self) -> str:
        return f"job {self.job['id']} is dead: {self.reason}"
