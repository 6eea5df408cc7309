"""Read what the query of a URL asks for."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from werkzeug.datastructures import MultiDict

from jobqueue import fields
from jobqueue.errors import InvalidQuery

T = TypeVar("T", bound=msgspec.Struct)


def read(parameters: MultiDict[str, str], kind: type[T]) -> T:
    """Make a value of a struct's type out of the parameters of a query, each given once.

    Raises:
        InvalidQuery: one is unknown, given twice, or has a value that cannot be.
    """
    for name, values in parameters.lists():
        if len(values) > 1:
            shown = name[: fields.MAX_SHOWN_NAME]
            raise InvalidQuery(f"{shown} is given more than once", field=shown)
    return fields.read(parameters.to_dict(), kind, what="this query", refuse=InvalidQuery, strict=False)
