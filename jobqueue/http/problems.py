"""Errors as answers: one table from exception to status, and RFC 9457's ``application/problem+json``."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

import msgspec
import structlog
from msgspec import UNSET, UnsetType
from werkzeug.exceptions import HTTPException

from jobqueue.admission import MAX_FAULTS, Faults
from jobqueue.errors import (
    BatchTooLarge,
    ConflictingJob,
    ConnectionLost,
    DatabaseUnavailable,
    InvalidFilter,
    InvalidJob,
    InvalidPath,
    InvalidQuery,
    InvalidQueueSetting,
    InvalidSchedule,
    Missing,
    Overloaded,
    PayloadTooLarge,
    ShuttingDown,
    StatementFailed,
    TooManyRequests,
    TooManyWatchers,
    Unavailable,
    UnprocessableJob,
    UnprocessableSchedule,
    UnreadableAnswer,
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
        field: the field at fault: of the job, the body, the query or the path.
        index: the job's position in the batch, from 0.
        ids: where some jobs of a batch are committed, the id of each; null for the others.
        errors: what is wrong with single jobs of a batch, see `faults`.
        refused: how many jobs that holds for.
    """

    kind: str = "about:blank"
    title: str
    status: int
    detail: str | UnsetType = UNSET
    field: str | UnsetType = UNSET
    index: int | UnsetType = UNSET
    ids: list[str | None] | UnsetType = UNSET
    errors: list[Problem] | UnsetType = UNSET
    refused: int | UnsetType = UNSET


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
    InvalidPath: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-path", "The path is not valid"),
    InvalidQuery: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-query", "The query is not valid"),
    InvalidFilter: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-filter", "The filter is not valid"),
    InvalidJob: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-job", "The job is not valid"),
    InvalidSchedule: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-schedule", "The schedule is not valid"),
    InvalidQueueSetting: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-setting", "The queue's settings are not valid"),
    PayloadTooLarge: _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload-too-large", "The payload is too large"),
    BatchTooLarge: _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "batch-too-large", "The batch is too large"),
    ConflictingJob: _Refusal(HTTPStatus.CONFLICT, "conflicting-job", "The job conflicts with another one"),
    Missing: _Refusal(HTTPStatus.NOT_FOUND, "missing", "There is no such thing"),
    UnprocessableJob: _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "unprocessable-job", "The job cannot be taken"),
    UnprocessableSchedule: _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "unprocessable-schedule", "The schedule cannot be taken"),
}

# All of them are 503. What PostgreSQL said stays in the log: it names hosts and users. Retry-After is in seconds.
_ABSENCES: dict[type[BaseException], _Absence] = {
    Unavailable: _Absence("unavailable", "The service cannot do this now", "Send the request again later.", 1),
    Overloaded: _Absence("overloaded", "Too much work waits to be committed", "Nothing was written. Send it again later.", 1),
    TooManyRequests: _Absence(
        "too-many-requests", "Too many requests are in flight", "Send the request again later, or to another node.", 1
    ),
    TooManyWatchers: _Absence(
        "too-many-watchers", "Too many requests watch this node", "Ask again later, without waiting, or ask another node.", 5
    ),
    ShuttingDown: _Absence("shutting-down", "This node is shutting down", "Nothing was written. Send it to another node.", 1),
    DatabaseUnavailable: _Absence(
        "database-unavailable", "The database cannot be reached", "Nothing was written. Send it again later.", 1
    ),
    StatementFailed: _Absence(
        "database-failed", "The database cannot do this", "Nothing was written. The node's log has the reason.", 5
    ),
    # No Retry-After: a client that repeats this by itself may submit its jobs twice.
    ConnectionLost: _Absence("in-doubt", "The database went away during the commit", "Whether it was written is unknown.", None),
    UnreadableAnswer: _Absence("unreadable-answer", "The database's answer cannot be read", "The node's log has the reason.", None),
}


def kinds(status: int) -> dict[str, str]:
    """Tell of the problems with a status that have a type of their own: their titles, by their types."""
    absences = _ABSENCES.values() if status == HTTPStatus.SERVICE_UNAVAILABLE else ()
    known = [*(refusal for refusal in _REFUSALS.values() if refusal.status == status), *absences]
    return {_urn(each.kind): each.title for each in known}


def answer(error: Exception) -> Answer:
    """Turn an error into the answer that its client gets; log it when it is a fault of ours."""
    if isinstance(error, InvalidJob):
        return _answer(_refused(error))
    if isinstance(error, Unavailable):
        absence = _absence(error)
        return _answer(_absent(absence), {} if absence.retry_after is None else {"Retry-After": str(absence.retry_after)})
    if isinstance(error, HTTPException) and error.code is not None:
        return _http(error, error.code)
    log.error("a request failed", exc_info=error)
    return _http(HTTPException("The error was logged."), HTTPStatus.INTERNAL_SERVER_ERROR)


def _urn(kind: str) -> str:
    return f"urn:jobqueue:{kind}"


def faults(found: Faults) -> list[Problem]:
    """Say what is wrong with single jobs of a batch, in their order: a problem each, and no more than `MAX_FAULTS`."""
    return [_refused(error) for error in sorted(found.errors, key=lambda error: error.index or 0)[:MAX_FAULTS]]


def none_taken(found: Faults) -> Answer:
    """Answer that no job of a batch could be taken, with the status of the first."""
    errors = faults(found)
    return _answer(
        Problem(
            kind="urn:jobqueue:no-job-taken",
            title="No job of the batch can be taken",
            status=errors[0].status,
            detail="errors says what is wrong with each.",
            errors=errors,
            refused=len(found.places),
        )
    )


def broken_off(error: Unavailable, ids: list[str | None], found: Faults) -> Answer:
    """Answer that some jobs of a batch are committed, and then the service could not go on."""
    problem = _absent(_absence(error))
    problem.detail = "Jobs with an id in ids are committed. Send those without, and without an error, again later."
    if isinstance(error, ConnectionLost):
        problem.detail = "Jobs with an id in ids are committed. Whether others were written is unknown."
    problem.ids, problem.errors, problem.refused = ids, faults(found), len(found.places)
    return _answer(problem)  # no Retry-After: a client that repeats all of it by itself submits what is committed twice


def _refused(error: InvalidJob) -> Problem:
    refusal = next(_REFUSALS[ancestor] for ancestor in type(error).__mro__ if ancestor in _REFUSALS)
    return Problem(
        kind=_urn(refusal.kind),
        title=refusal.title,
        status=refusal.status,
        detail=error.reason,
        field=UNSET if error.field is None else error.field,
        index=UNSET if error.index is None else error.index,
    )


def _absence(error: Unavailable) -> _Absence:
    return next(_ABSENCES[ancestor] for ancestor in type(error).__mro__ if ancestor in _ABSENCES)


def _absent(absence: _Absence) -> Problem:
    kind = _urn(absence.kind)
    return Problem(kind=kind, title=absence.title, status=HTTPStatus.SERVICE_UNAVAILABLE, detail=absence.detail)


def _http(error: HTTPException, status: int) -> Answer:
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=error.description or UNSET)
    return _answer(problem, headers)


def _answer(problem: Problem, headers: dict[str, str] | None = None) -> Answer:
    return Answer(problem.status, {"Content-Type": CONTENT_TYPE, **(headers or {})}, msgspec.json.encode(problem))
