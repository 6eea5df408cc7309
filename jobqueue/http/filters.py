"""What the routes of jobs by filter have in common: which jobs a body or a query means, pages, and dry runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from jobqueue import fields
from jobqueue.errors import InvalidFilter
from jobqueue.job import Flag

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
"""Jobs on one page of a list."""

PageSize = Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE, description=f"an integer from 1 to {MAX_PAGE}")]

CURSOR = 'what the page before gave as "next"'

Filter = TypeVar("Filter", bound=msgspec.Struct)


class DryRunQuery(msgspec.Struct, frozen=True):
    """Whether the jobs are only to be counted.

    Attributes:
        dry_run: whether to count them, and change nothing.
    """

    dry_run: Flag = False


def of_body(given: Mapping[str, Any], kind: type[Filter]) -> Filter:
    """Read which jobs are to be moved or deleted.

    Raises:
        InvalidFilter: it is no filter, or an empty one.
    """
    wanted = fields.read(given, kind, what="a filter", refuse=InvalidFilter)
    if wanted == kind():
        raise InvalidFilter('the filter is empty: {"all": true} means all', field="all")
    return wanted


def of_query(query: msgspec.Struct, kind: type[Filter]) -> Filter:
    """Read which jobs a list is of: without a condition, all."""
    said = {name: getattr(query, name) for name in kind.__struct_fields__ if getattr(query, name, None) is not None}
    return kind(**(said or {"all": True}))
