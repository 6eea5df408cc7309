"""From what somebody said to a value of ours, field by field: the one at fault is named, with what it must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import NODEFAULT

from jobqueue import documents
from jobqueue.errors import InvalidJob

MAX_SHOWN_NAME = 64
"""Characters of an unknown name that are given back."""

T = TypeVar("T", bound=msgspec.Struct)


def read(given: Mapping[str, Any], kind: type[T], *, what: str, refuse: type[InvalidJob], strict: bool = True) -> T:
    """Make a value of a struct's type.

    Args:
        given: fields by name, as JSON has them.
        kind: the type; each of its fields has a description (`must_be`).
        what: what it is, for an error: ``"a schedule"``.
        refuse: the error to raise.
        strict: whether a number must be one; False where all values are texts, as in a query.

    Raises:
        InvalidJob: `refuse`: a field is unknown, missing, or holds what it cannot.
    """
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    values = {}
    for name, value in given.items():
        if name not in known:
            shown = name[:MAX_SHOWN_NAME]
            raise refuse(f"{what} has no {shown!r}; it has {', '.join(known)}", field=shown)
        try:
            values[name] = msgspec.convert(value, known[name].type, strict=strict)
            documents.encode(values[name])
        except ValueError:
            raise refuse(f"{name} must be {must_be(known[name].type)}", field=name) from None
    for name, field in known.items():
        if name not in values and field.default is NODEFAULT and field.default_factory is NODEFAULT:
            raise refuse(f"{name} is missing: it must be {must_be(field.type)}", field=name)
    return kind(**values)


def must_be(kind: Any) -> str:
    """Say what a value of a field's type must be: the description that its annotation gives, the outermost first.

    Raises:
        LookupError: it gives none.
    """
    if get_origin(kind) is Annotated:
        for meta in reversed(get_args(kind)[1:]):
            if isinstance(meta, msgspec.Meta) and meta.description:
                return meta.description
    for inner in get_args(kind):
        try:
            return must_be(inner)
        except LookupError:
            continue
    raise LookupError(f"{kind} has no description")
