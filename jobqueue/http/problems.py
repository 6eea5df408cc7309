"""Errors as answers: one table from exception to status, and RFC 9457's ``application/problem+json``."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

import msgspec
import structlog
from msgspec import UNSET, UnsetType
from werkzeug.exceptions import HTTPException

from jobqueue.errors import (
    BatchTooLarge,
    ConflictingJob,
    ConnectionLost,
    DatabaseUnavailable,
    InvalidFilter,
    InvalidJob,
    InvalidQuery,
    InvalidQueueSetting,
    InvalidSchedule,
    Overloaded,
    PayloadTooLarge,
    ShuttingDown,
    TooManyWatchers,
    Unavailable,
    UnprocessableJob,
)
from jobqueue.http.answers import Answer

CONTENT_TYPE = "application/problem+json"

log = structlog.get_logger()


class Problem(msgspec.Struct, kw_only=True, rename={"kind": "type"}):
    """The body of an answer that is an error.

    Attributes:
        kind: a URN for programs, one per way to fail; ``about:blank`` where the status says it all.
        title: what every problem of this kind has in common.
        detail: what was wrong this time, and what to do.
        field: the field of the job at fault.
        index: its position in the batch, from 0.
    """

    kind: str = "about:blank"
    title: str
    status: int
    detail: str | UnsetType = UNSET
    field: str | UnsetType = UNSET
    index: int | UnsetType = UNSET


class _Refusal(NamedTuple):
    status: HTTPStatus
    kind: str
    title: str


class _Absence(NamedTuple):
    kind: str
    title: str
    detail: str
    retry_after: int | None


# The most special class of an error decides.
_REFUSALS: dict[type[BaseException], _Refusal] = {
    InvalidQuery: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-query", "The query is not valid"),
    InvalidFilter: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-filter", "The filter is not valid"),
    InvalidJob: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-job", "The job is not valid"),
    InvalidSchedule: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-schedule", "The schedule is not valid"),
    InvalidQueueSetting: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-setting", "The queue's settings are not valid"),
    PayloadTooLarge: _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload-too-large", "The payload is too large"),
    BatchTooLarge: _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "batch-too-large", "The batch is too large"),
    ConflictingJob: _Refusal(HTTPStatus.CONFLICT, "conflicting-job", "The job conflicts with another one"),
    UnprocessableJob: _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "unprocessable-job", "The job cannot be taken"),
}

# All of them are 503. What PostgreSQL said stays in the log: it names hosts and users. Retry-After is in seconds.
_ABSENCES: dict[type[BaseException], _Absence] = {
    Unavailable: _Absence("unavailable", "The service cannot do this now", "Send the request again later.", 1),
    Overloaded: _Absence("overloaded", "Too much work waits to be committed", "Nothing was written. Send it again later.", 1),
    TooManyWatchers: _Absence(
        "too-many-watchers", "Too many requests wait for jobs", "Ask again later, without waiting, or ask another node.", 5
    ),
    ShuttingDown: _Absence("shutting-down", "This node is shutting down", "Nothing was written. Send it to another node.", 5),
    DatabaseUnavailable: _Absence(
        "database-unavailable", "The database cannot be reached", "Nothing was written. Send it again later.", 5
    ),
    # No Retry-After: a client that repeats this by itself may submit its jobs twice.
    ConnectionLost: _Absence("in-doubt", "The database went away during the commit", "Whether it was written is unknown.", None),
}


def answer(error: Exception) -> Answer:
    """Turn an error into the answer that its client gets; log it when it is a fault of ours."""
    for ancestor in type(error).__mro__:
        if isinstance(error, InvalidJob) and ancestor in _REFUSALS:
            return _refused(_REFUSALS[ancestor], error)
        if ancestor in _ABSENCES:
            return _absent(_ABSENCES[ancestor])
    if isinstance(error, HTTPException) and error.code is not None:
        return _http(error, error.code)
    log.error("a request failed", exc_info=error)
    return _http(HTTPException("The error was logged."), HTTPStatus.INTERNAL_SERVER_ERROR)


def _refused(refusal: _Refusal, error: InvalidJob) -> Answer:
    return _answer(
        Problem(
            kind=f"urn:jobqueue:{refusal.kind}",
            title=refusal.title,
            status=refusal.status,
            detail=error.reason,
            field=UNSET if error.field is None else error.field,
            index=UNSET if error.index is None else error.index,
        )
    )


def _absent(absence: _Absence) -> Answer:
    problem = Problem(
        kind=f"urn:jobqueue:{absence.kind}", title=absence.title, status=HTTPStatus.SERVICE_UNAVAILABLE, detail=absence.detail
    )
    return _answer(problem, {} if absence.retry_after is None else {"Retry-After": str(absence.retry_after)})


def _http(error: HTTPException, status: int) -> Answer:
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=error.description or UNSET)
    return _answer(problem, headers)


def _answer(problem: Problem, headers: dict[str, str] | None = None) -> Answer:
    return Answer(problem.status, {"Content-Type": CONTENT_TYPE, **(headers or {})}, msgspec.json.encode(problem))
