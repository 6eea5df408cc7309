"""From what somebody said to a value of ours, field by field: the one at fault is named, with what it must be."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT

from jobqueue import documents
from jobqueue.errors import InvalidJob

MAX_SHOWN_NAME = 64
"""Characters of an unknown name that are given back."""

_SCALAR = re.compile(r"true|false|-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)

T = TypeVar("T", bound=msgspec.Struct)


def read(given: Mapping[str, Any], kind: type[T], *, what: str, refuse: type[InvalidJob], strict: bool = True) -> T:
    """Make a value of a struct's type.

    Args:
        given: fields by name, as JSON has them.
        kind: the type; each of its fields has a description (`must_be`).
        what: what it is, for an error: ``"a schedule"``.
        refuse: the error to raise.
        strict: whether a number must be one; False where all values are texts, as in a query, and are to be read as JSON has it.

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
            converted = _converted(value, known[name].type) if strict else _converted_text(value, known[name].type)
            values[name] = in_utc(converted) if isinstance(converted, datetime) else converted
            documents.encode(values[name])
        except ValueError:
            raise refuse(f"{name} must be {must_be(known[name].type)}", field=name) from None
    for name, field in known.items():
        if name not in values and field.default is NODEFAULT and field.default_factory is NODEFAULT:
            raise refuse(f"{name} is missing: it must be {must_be(field.type)}", field=name)
    return kind(**values)


def in_utc(instant: datetime) -> datetime:
    """Return a time in UTC: PostgreSQL knows no offset of 16 hours or more. One that is out of range is the nearest in it."""
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if instant.year == 1 else datetime.max.replace(tzinfo=UTC)


def _converted(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        # To JSON, 5.0 is the integer 5.
        if isinstance(value, float) and value.is_integer():
            return msgspec.convert(int(value), kind)
        raise


def _converted_text(text: str | list[str], kind: Any) -> Any:
    kind = not_null(kind)  # the text null is a text
    try:
        return msgspec.convert(text, kind)
    except msgspec.ValidationError:
        if not isinstance(text, str) or not _SCALAR.fullmatch(text):
            raise
        return _converted(msgspec.json.decode(text), kind)


def not_null(kind: Any) -> Any:
    """Return a type without the null, and the absence, that it allows."""
    if get_origin(kind) not in {Union, UnionType}:
        return kind
    return Union[tuple(inner for inner in get_args(kind) if inner not in {type(None), msgspec.UnsetType})]  # noqa: UP007 - of values


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
