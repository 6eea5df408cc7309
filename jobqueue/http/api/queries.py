"""Parse the query of a URL."""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_origin

import msgspec
from werkzeug.datastructures import MultiDict

from jobqueue import fields
from jobqueue.errors import InvalidQuery

T = TypeVar("T", bound=msgspec.Struct)


def read(parameters: MultiDict[str, str], kind: type[T]) -> T:
    """Convert query parameters to a struct. If a parameter has several values, commas separate them.

    Raises:
        InvalidQuery: a parameter is unknown, is given more than once, or has an invalid value.
    """
    for name, values in parameters.lists():
        if len(values) > 1:
            shown = name[: fields.MAX_SHOWN_NAME]
            raise InvalidQuery(f"{shown} is given more than once", field=shown)
    given: dict[str, Any] = parameters.to_dict()
    for field in msgspec.structs.fields(kind):
        if field.name in given and _is_list(field.type):
            given[field.name] = given[field.name].split(",")
    return fields.read(given, kind, what="this query", refuse=InvalidQuery, strict=False)


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is list or any(_is_list(inner) for inner in get_args(kind))
