"""The routes of dead letters: what a request says of which are meant, and the pages of a list."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from jobqueue import documents
from jobqueue.errors import InvalidFilter
from jobqueue.http import bodies
from jobqueue.job import MAX_NAME_LENGTH, DeadFilter

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
"""Dead letters on one page of a list."""

_FIELDS = {field.name: field.type for field in msgspec.structs.fields(DeadFilter)}
_A_NAME = f"a string of 1 to {MAX_NAME_LENGTH} characters"
_A_TIME = "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"
_MUST_BE = {
    "queue": _A_NAME,
    "kind": _A_NAME,
    "group": _A_NAME,
    "reason": f"a part of the reason, {_A_NAME}",
    "died_before": _A_TIME,
    "died_after": _A_TIME,
    "all": "true",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = re.compile(r"(\d{1,18})-([0-9a-f-]{36})", re.ASCII)

Place = tuple[datetime, str]
"""Where a page ends: the time of death and the id of its last job."""


class Page(NamedTuple):
    """Which page of which dead letters is asked for."""

    wanted: DeadFilter
    limit: int
    after: Place | None


def wanted_by_body(content_type: str | None, body: bytes) -> DeadFilter:
    """Read which dead letters are to be run again or deleted.

    Raises:
        UnsupportedMediaType: the content type is not JSON.
        InvalidFilter: it is no filter, or an empty one.
    """
    bodies.require_json(content_type)
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except (ValueError, RecursionError):
        raise InvalidFilter('send a filter as a JSON object, such as {"queue": "mail"}, or {"all": true}') from None
    wanted = _filter(members)
    if wanted == DeadFilter():
        raise InvalidFilter('the filter is empty: {"all": true} means all', field="all")
    return wanted


def page(query: Mapping[str, str]) -> Page:
    """Read which page a query asks for.

    Raises:
        InvalidFilter: a parameter is unknown, or has a value that cannot be.
    """
    conditions = {name: text for name, text in query.items() if name not in ("limit", "after")}
    if "all" in conditions:
        raise InvalidFilter("a list needs no word for all: it is what no filter means", field="all")
    wanted = _filter(conditions)
    limit = query.get("limit", str(DEFAULT_PAGE))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MAX_PAGE):
        raise InvalidFilter(f"limit must be an integer from 1 to {MAX_PAGE}", field="limit")
    return Page(DeadFilter(all=True) if wanted == DeadFilter() else wanted, int(limit), _place(query.get("after")))


def listed(jobs: Sequence[Mapping[str, Any]], limit: int) -> dict[str, Any]:
    """Make the answer: the jobs of a page, and what to ask for as ``after`` to have the next one (None: this is the last)."""
    return {"jobs": jobs, "next": _cursor(jobs[-1]) if len(jobs) == limit else None}


def _filter(members: Mapping[str, Any]) -> DeadFilter:
    values = {}
    for name, value in members.items():
        if name not in _FIELDS:
            shown = name[: bodies.MAX_IGNORED_LENGTH]
            raise InvalidFilter(f"dead letters have no filter {shown!r} (they have: {', '.join(_FIELDS)})", field=shown)
        try:
            values[name] = msgspec.convert(value, _FIELDS[name])
            documents.encode(values[name])
        except ValueError:
            raise InvalidFilter(f"{name} must be {_MUST_BE[name]}", field=name) from None
    if values.get("all") is False:
        raise InvalidFilter("all must be true", field="all")
    return DeadFilter(**values)


def _cursor(job: Mapping[str, Any]) -> str:
    return f"{(datetime.fromisoformat(job['died_at']) - _EPOCH) // timedelta(microseconds=1)}-{job['id']}"


def _place(cursor: str | None) -> Place | None:
    if cursor is None:
        return None
    found = _CURSOR.fullmatch(cursor)
    try:
        if found is None:
            raise ValueError(cursor)  # noqa: TRY301 - all that is no cursor is refused alike
        return _EPOCH + timedelta(microseconds=int(found[1])), str(uuid.UUID(found[2]))
    except (ValueError, OverflowError):
        raise InvalidFilter('after must be what the page before gave as "next"', field="after") from None
