"""Compile decoders that turn a payload into the keyword arguments of a function.

msgspec converts the types that it supports. `_make` converts pydantic models and paths. If an
annotation contains a class that neither msgspec nor `_make` can create from JSON, the registration
of the handler fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

import msgspec
from msgspec import inspect as types

Decode = Callable[[msgspec.Raw], dict[str, Any]]
Field = tuple[str, Any] | tuple[str, Any, Any]

MAX_ERRORS_TOLD = 5
"""Maximum number of errors of one pydantic model that a message lists."""

_TAKEN = "annotate the parameter with a dataclass, a TypedDict, a msgspec.Struct, an attrs class, or a pydantic model"


class Unconvertible(TypeError):
    """No payload can be converted to these parameters. The message names the parameter and suggests a fix."""


def decoder(fields: list[Field]) -> Decode:
    """Compile a decoder of JSON objects with these fields. The decoder omits optional fields that are missing in the object.

    Raises:
        Unconvertible: no JSON value can be converted to a field's type.
    """
    if not fields:
        return lambda payload: {}  # noqa: ARG005 - without parameters, any payload fits
    try:
        struct = msgspec.defstruct("Payload", fields, kw_only=True)
        decoder = msgspec.json.Decoder(struct, dec_hook=_make)
        info = types.type_info(struct)
    except Exception as error:
        raise Unconvertible(f"a payload cannot be converted to this signature: {error}") from error
    assert isinstance(info, types.StructType)  # noqa: S101 - defstruct creates a struct
    for field in info.fields:
        for node in _nodes(field, set()):
            if (reason := _refusal(node)) is not None:
                raise Unconvertible(f"parameter {field.name!r}: {reason}")
    names = struct.__struct_fields__

    def decode(payload: msgspec.Raw) -> dict[str, Any]:
        values = decoder.decode(payload)
        return {name: value for name in names if (value := getattr(values, name)) is not msgspec.UNSET}

    return decode


def _nodes(node: object, seen: set[int]) -> Iterator[types.Type]:
    """Yield a type and all types that it contains. Yield each type only once, because a class can contain itself."""
    if isinstance(node, tuple):
        for one in node:
            yield from _nodes(one, seen)
    elif isinstance(node, types.Type | types.Field) and id(node) not in seen:
        seen.add(id(node))
        if isinstance(node, types.Type):
            yield node
        for name in node.__struct_fields__:
            yield from _nodes(getattr(node, name), seen)


def _refusal(node: types.Type) -> str | None:
    """Return why no JSON value converts to this type; None if some value does."""
    match node:
        case types.DataclassType(cls=cls) if hasattr(cls, "__pydantic_validator__"):
            return f"jobqueue cannot validate {cls.__qualname__}, a pydantic dataclass: make it a pydantic.BaseModel"
        case types.CustomType(cls=cls) if not _makes(cls):
            name = getattr(cls, "__qualname__", str(cls))
            return f"jobqueue cannot convert JSON to {name}: {_TAKEN}, or take a dict and convert it in the handler"
    return None


def _makes(cls: Any) -> bool:
    """Return whether `_make` can create this class."""
    if cls is object or _is_model(cls):
        return True
    if not (isinstance(cls, type) and issubclass(cls, PurePath)):
        return False
    try:
        return isinstance(_make(cls, "a/b"), cls)
    except Exception:  # noqa: BLE001 - a user's subclass may raise any error, and WindowsPath works only on Windows
        return False


def _is_model(cls: Any) -> bool:
    """Return whether a class is a pydantic 2 model. Checks attributes, so that pydantic need not be installed."""
    return hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate_json")


def _make(cls: Any, value: Any) -> Any:
    """Create an instance of a class that msgspec does not support.

    Raises:
        ValueError: the value does not fit. msgspec adds the location of the value to the message.
    """
    if cls is object:
        return value
    if _is_model(cls):
        try:
            return cls.model_validate_json(json.dumps(value))
        except ValueError as error:
            raise ValueError(_told(error)) from None
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{_JSON_NAMES.get(type(value), 'object')}`")  # noqa: TRY004 - see Raises
    return cls(value)


_JSON_NAMES = {bool: "bool", int: "int", float: "float", list: "array", type(None): "null"}


def _told(error: ValueError) -> str:
    """Return pydantic's errors in one line. Pydantic's own text has three lines for each error, with the value and a URL."""
    errors: Callable[..., list[dict[str, Any]]] | None = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    found = errors(include_url=False, include_context=False, include_input=False)
    told = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:MAX_ERRORS_TOLD]]
    return "; ".join(told) + ("; ..." if len(found) > MAX_ERRORS_TOLD else "")
