"""Turn exceptions into error responses: one table of statuses, and RFC 9457's ``application/problem+json``."""

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
from jobqueue.http.responses.answers import Answer

CONTENT_TYPE = "application/problem+json"

log = structlog.get_logger()


class Problem(msgspec.Struct, kw_only=True, rename={"kind": "type"}):
    """The body of an error response.

    Attributes:
        kind: a URN that identifies the kind of problem; ``about:blank`` when the status code says enough.
        title: a summary that is the same for every problem of this type.
        detail: what is wrong with this request, and what to do about it.
        field: the field at fault, in the job, the body, the query, or the path.
        index: the job's position in the batch, from 0.
        ids: set when only some jobs of a batch are committed; the id of each committed job, null for the others.
        errors: the problems of single jobs of a batch, at most 100.
        refused: the number of rejected jobs in the batch.
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


# If the table has several classes of an error, the most specific class decides.
_REFUSALS: dict[type[BaseException], _Refusal] = {
    InvalidPath: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-path", "The path is not valid"),
    InvalidQuery: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-query", "The query is not valid"),
    InvalidFilter: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-filter", "The filter is not valid"),
    InvalidJob: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-job", "The job is not valid"),
    InvalidSchedule: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-schedule", "The schedule is not valid"),
    InvalidQueueSetting: _Refusal(HTTPStatus.BAD_REQUEST, "invalid-setting", "The queue's settings are not valid"),
    PayloadTooLarge: _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "payload-too-large", "The payload is too large"),
    BatchTooLarge: _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "batch-too-large", "The batch is too large"),
    ConflictingJob: _Refusal(HTTPStatus.CONFLICT, "conflicting-job", "The job conflicts with another job"),
    Missing: _Refusal(HTTPStatus.NOT_FOUND, "missing", "Not found"),
    UnprocessableJob: _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "unprocessable-job", "The job cannot be accepted"),
    UnprocessableSchedule: _Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "unprocessable-schedule", "The schedule cannot be accepted"),
}

# The errors with status 503; Retry-After is in seconds. PostgreSQL's own messages stay in the log, because they name hosts and
# users.
_ABSENCES: dict[type[BaseException], _Absence] = {
    Unavailable: _Absence("unavailable", "The service cannot do this now", "Retry the request later.", 1),
    Overloaded: _Absence(
        "overloaded", "Too much work is waiting to be committed", "Nothing was written. Retry the request later.", 1
    ),
    TooManyRequests: _Absence(
        "too-many-requests", "Too many requests are in flight", "Retry the request later, or send it to another node.", 1
    ),
    TooManyWatchers: _Absence(
        "too-many-watchers", "Too many requests are watching this node", "Retry later, ask without waiting, or use another node.", 5
    ),
    ShuttingDown: _Absence(
        "shutting-down", "This node is shutting down", "Nothing was written. Send the request to another node.", 1
    ),
    DatabaseUnavailable: _Absence(
        "database-unavailable", "The database cannot be reached", "Nothing was written. Retry the request later.", 1
    ),
    StatementFailed: _Absence(
        "database-failed", "A database statement failed", "Nothing was written. The node's log has the reason.", 5
    ),
    # No Retry-After: a client that retries automatically may submit its jobs twice.
    ConnectionLost: _Absence(
        "in-doubt",
        "The database connection was lost during the commit",
        "It is unknown whether anything was written. Check before you send the request again.",
        None,
    ),
    UnreadableAnswer: _Absence(
        "unreadable-answer", "The database's response cannot be read", "The node's log has the reason.", None
    ),
}


def kinds(status: int) -> dict[str, str]:
    """Return the titles of a status's problems, by problem type; problems of type ``about:blank`` are left out."""
    absences = _ABSENCES.values() if status == HTTPStatus.SERVICE_UNAVAILABLE else ()
    known = [*(refusal for refusal in _REFUSALS.values() if refusal.status == status), *absences]
    return {_urn(each.kind): each.title for each in known}


def answer(error: Exception) -> Answer:
    """Turn an error into a response. Log an unexpected error, and return status 500 for it."""
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
    """Return one problem per rejected job of a batch, in the order of the jobs, at most `MAX_FAULTS`."""
    return [_refused(error) for error in sorted(found.errors, key=lambda error: error.index or 0)[:MAX_FAULTS]]


def none_taken(found: Faults) -> Answer:
    """Return the response for a batch without any acceptable job; its status is that of the first problem."""
    errors = faults(found)
    return _answer(
        Problem(
            kind="urn:jobqueue:no-job-taken",
            title="No job of the batch can be accepted",
            status=errors[0].status,
            detail="The field errors lists what is wrong with each job.",
            errors=errors,
            refused=len(found.places),
        )
    )


def broken_off(error: Unavailable, ids: list[str | None], found: Faults) -> Answer:
    """Return the response for a batch of which some jobs are committed when the service becomes unavailable."""
    problem = _absent(_absence(error))
    problem.detail = "Jobs with an id in ids are committed. Retry later the jobs that have neither an id nor an error."
    if isinstance(error, ConnectionLost):
        problem.detail = "Jobs with an id in ids are committed. It is unknown whether the other jobs were written."
    problem.ids, problem.errors, problem.refused = ids, faults(found), len(found.places)
    return _answer(problem)  # no Retry-After: a client that retries the whole batch submits the committed jobs twice


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
