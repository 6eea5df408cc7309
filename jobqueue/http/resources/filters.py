"""Shared parts of the routes that select jobs by filter: filters in bodies and queries, pages, and dry runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from jobqueue import fields
from jobqueue.errors import InvalidFilter
from jobqueue.job import Flag

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
"""The default number of items on a page."""

PageSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE, description=f"an integer from 1 to {MAX_PAGE}")]

CURSOR = 'the value of "next" in the previous page'

Filter = TypeVar("Filter", bound=msgspec.Struct)


class DryRunQuery(msgspec.Struct, frozen=True):
    """The query of routes that change jobs by filter.

    Attributes:
        dry_run: whether to count the jobs and change nothing.
    """

    dry_run: Flag = False


def of_body(given: Mapping[str, Any], kind: type[Filter]) -> Filter:
    """Parse the filter of jobs to change or delete.

    Raises:
        InvalidFilter: the object is not a filter, or has no condition.
    """
    wanted = fields.read(given, kind, what="a filter", refuse=InvalidFilter)
    if wanted == kind():
        raise InvalidFilter('the filter is empty: give a condition, or {"all": true} to select all', field="all")
    return wanted


def of_query(query: msgspec.Struct, kind: type[Filter]) -> Filter:
    """Return the filter in a list's query. A filter without a condition matches all jobs."""
    said = {name: getattr(query, name) for name in kind.__struct_fields__ if getattr(query, name, None) is not None}
    return kind(**(said or {"all": True}))
