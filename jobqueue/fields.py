"""Convert the fields of an input to a struct; errors name the field at fault and the values that it accepts."""

from __future__ import annotations

import functools
import inspect
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
"""The number of characters of an unknown name that an error quotes."""

_SCALAR = re.compile(r"true|false|-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", re.ASCII)

T = TypeVar("T", bound=msgspec.Struct)


def read(given: Mapping[str, Any], kind: type[T], *, what: str, refuse: type[InvalidJob], strict: bool = True) -> T:
    """Convert the fields of an input to a struct.

    Args:
        given: the fields by name, as decoded from JSON.
        kind: the struct's type; each of its fields has a description (`must_be`).
        what: the name of the object in errors, such as ``"a schedule"``.
        refuse: the type of error to raise.
        strict: whether values must have the JSON type of the field. False if all values are texts, as in a query: then numbers
            and booleans are parsed as JSON.

    Raises:
        InvalidJob: of the type `refuse`: a field is unknown, missing, or has an invalid value.
    """
    known = _fields(kind)
    values = {}
    for name, value in given.items():
        if name not in known:
            shown = str(name)[:MAX_SHOWN_NAME]
            raise refuse(f"unknown field {shown!r} in {what}: the known fields are {', '.join(known)}", field=shown)
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


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}


def in_utc(instant: datetime) -> datetime:
    """Return a time in UTC, because PostgreSQL accepts no offset of 16 hours or more. Limit it to the range of `datetime`."""
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if instant.year == 1 else datetime.max.replace(tzinfo=UTC)


def _converted(value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        # In JSON, 5.0 is the integer 5.
        if isinstance(value, float) and value.is_integer():
            return msgspec.convert(int(value), kind)
        raise


def _converted_text(text: str | list[str], kind: Any) -> Any:
    kind = not_null(kind)  # in a query, "null" is a text like any other
    try:
        return msgspec.convert(text, kind)
    except msgspec.ValidationError:
        if not isinstance(text, str) or not _SCALAR.fullmatch(text):
            raise
        return _converted(msgspec.json.decode(text), kind)


def not_null(kind: Any) -> Any:
    """Return a type that allows the same values, except for null and `UNSET`."""
    if get_origin(kind) not in {Union, UnionType}:
        return kind
    return Union[tuple(inner for inner in get_args(kind) if inner not in {type(None), msgspec.UnsetType})]  # noqa: UP007 - the members are computed


def must_be(kind: Any) -> str:
    """Return the description of the values that a field's type accepts: the outermost description in the annotation.

    Raises:
        LookupError: the type has no description.
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


def attributes(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Return the field descriptions in the docstrings of a struct and its bases. The struct's own descriptions take precedence."""
    told: dict[str, str] = {}
    for kind in reversed(struct.__mro__):
        text = inspect.cleandoc(kind.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
        for name, said in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            told[name] = re.sub(r"\s+", " ", said).rstrip(".").replace("``", "`")
    return told
