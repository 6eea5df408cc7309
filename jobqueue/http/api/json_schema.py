"""Make JSON Schemas of types, with descriptions from their docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec

from jobqueue.fields import attributes

GIVEN = {"not": {"type": "null"}}
"""The schema of any value except null."""


class Schemas:
    """The JSON Schemas of types. A union's schema combines the schemas of its members.

    Attributes:
        components: the schemas of structs, by name.
    """

    def __init__(self, kinds: Iterable[Any]) -> None:
        single = {inner: None for kind in kinds for inner in alternatives(kind)}
        made, self.components = msgspec.json.schema_components(list(single), ref_template="#/components/schemas/{name}")
        self._made = dict(zip(single, made, strict=True))
        for struct in {struct for kind in single for struct in _structs(kind)}:
            self.components[struct.__name__] = _told(struct, self.components[struct.__name__])

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a type; the type must be one of `kinds`."""
        schemas = [self._made[inner] for inner in alternatives(kind)]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union; for any other type, the type itself."""
    return get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Find all structs within a type."""
    found: set[Any] = set()
    to_do = [kind]
    while to_do:
        inner = to_do.pop()
        if not (isinstance(inner, type) and issubclass(inner, msgspec.Struct)):
            to_do += get_args(inner)
        elif inner not in found:
            found.add(inner)
            to_do += [field.type for field in msgspec.structs.fields(inner)]
    yield from found


def _told(struct: type[msgspec.Struct], schema: dict[str, Any]) -> dict[str, Any]:
    """Add two things to a struct's schema: the descriptions from its docstring, and its mutually exclusive fields."""
    told = attributes(struct)
    names = {field.encode_name: field.name for field in msgspec.structs.fields(struct)}
    properties = {name: described(inner, told.get(names[name])) for name, inner in schema["properties"].items()}
    summary = {"description": _summary(struct)} if struct.__dict__.get("__doc__") else {}
    pairs = getattr(struct, "EXCLUSIVE", ())
    exclusive = [{"not": {"required": list(pair), "properties": dict.fromkeys(pair, GIVEN)}} for pair in pairs]
    return {**schema, **summary, "properties": properties, **({"allOf": exclusive} if exclusive else {})}


def described(schema: dict[str, Any], told: str | None) -> dict[str, Any]:
    """Put the meaning of a value in front of a schema's own description. That description lists the valid values."""
    must = schema.get("description")
    said = "; ".join(text for text in (told, must) if text)
    return {**schema, "description": said} if said else schema


def _summary(struct: type[msgspec.Struct]) -> str:
    return inspect.cleandoc(struct.__doc__ or "").partition("\n\nAttributes:")[0].replace("``", "`")
