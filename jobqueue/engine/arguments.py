"""Decoders of payloads: from a function's annotations to its keyword arguments.

msgspec converts what it knows. It leaves the other classes to `_make`, which knows pydantic's models and paths. A class that nobody
can make from JSON is found when the handler is registered, wherever it is in an annotation.
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
"""Errors of one pydantic model that a message names."""

_TAKEN = "annotate it with a dataclass, a TypedDict, a msgspec.Struct, an attrs class, or a pydantic model"


class Unconvertible(TypeError):
    """No payload can be converted to these parameters; the message says which one, and what to do."""


def decoder(fields: list[Field]) -> Decode:
    """Compile a decoder of JSON objects with these fields. An optional field that a document leaves out is not in the result.

    Raises:
        Unconvertible: nothing can be converted to a field's type.
    """
    if not fields:
        return lambda payload: {}  # noqa: ARG005 - nothing is asked of the payload, so any will do
    try:
        struct = msgspec.defstruct("Payload", fields, kw_only=True)
        decoder = msgspec.json.Decoder(struct, dec_hook=_make)
        info = types.type_info(struct)
    except Exception as error:
        raise Unconvertible(f"a payload cannot be converted to this signature: {error}") from error
    assert isinstance(info, types.StructType)  # noqa: S101 - it is one
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
    """Walk through all types that a type is made of. A class may contain itself."""
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
    """Say why nothing in JSON becomes this type; None where something does."""
    match node:
        case types.DataclassType(cls=cls) if hasattr(cls, "__pydantic_validator__"):
            return f"jobqueue cannot validate {cls.__qualname__}, a dataclass of pydantic: make it a pydantic.BaseModel"
        case types.CustomType(cls=cls) if not _makes(cls):
            name = getattr(cls, "__qualname__", str(cls))
            return f"jobqueue cannot make {name} from JSON: {_TAKEN}, or take a dict and make it in the handler"
    return None


def _makes(cls: Any) -> bool:
    """Whether `_make` makes this class."""
    if cls is object or _is_model(cls):
        return True
    if not (isinstance(cls, type) and issubclass(cls, PurePath)):
        return False
    try:
        return isinstance(_make(cls, "a/b"), cls)
    except Exception:  # noqa: BLE001 - a subclass runs code of its own; WindowsPath exists on Windows only
        return False


def _is_model(cls: Any) -> bool:
    """Whether it is a model of pydantic 2, which is known by its marks: an application without one need not have pydantic."""
    return hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate_json")


def _make(cls: Any, value: Any) -> Any:
    """Make an instance of a class that msgspec does not know.

    Raises:
        ValueError: the value does not fit. msgspec adds the place to the message.
    """
    if cls is object:
        return value
    if _is_model(cls):
        try:
            return cls.model_validate_json(json.dumps(value))
        except ValueError as error:
            raise ValueError(_told(error)) from None
    if not isinstance(value, str):
        raise ValueError(f"Expected `str`, got `{_JSON_NAMES.get(type(value), 'object')}`")  # noqa: TRY004 - as msgspec has it
    return cls(value)


_JSON_NAMES = {bool: "bool", int: "int", float: "float", list: "array", type(None): "null"}


def _told(error: ValueError) -> str:
    """Tell pydantic's errors in one line, in which its own text has three for each, with the value and an address."""
    errors: Callable[..., list[dict[str, Any]]] | None = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    found = errors(include_url=False, include_context=False, include_input=False)
    told = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:MAX_ERRORS_TOLD]]
    return "; ".join(told) + ("; ..." if len(found) > MAX_ERRORS_TOLD else "")
