"""JSON Schemas of types, in the words of their docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Any, Union, get_args, get_origin

import msgspec

GIVEN = {"not": {"type": "null"}}
"""What is not null."""


class Schemas:
    """The JSON Schemas of types; unions have those of what they are of.

    Attributes:
        components: the schemas of structs, by their names.
    """

    def __init__(self, kinds: Iterable[Any]) -> None:
        single = {inner: None for kind in kinds for inner in alternatives(kind)}
        made, self.components = msgspec.json.schema_components(list(single), ref_template="#/components/schemas/{name}")
        self._made = dict(zip(single, made, strict=True))
        for struct in {struct for kind in single for struct in _structs(kind)}:
            self.components[struct.__name__] = _told(struct, self.components[struct.__name__])

    def of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a type that was given."""
        schemas = [self._made[inner] for inner in alternatives(kind)]
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the types that a union is of; of any other type, itself."""
    return get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Find the structs that a type is made of."""
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
    """Say in a schema what the docstring says of each field, and which fields exclude each other."""
    told = attributes(struct)
    names = {field.encode_name: field.name for field in msgspec.structs.fields(struct)}
    properties = {name: described(inner, told.get(names[name])) for name, inner in schema["properties"].items()}
    summary = {"description": _summary(struct)} if struct.__dict__.get("__doc__") else {}
    pairs = getattr(struct, "EXCLUSIVE", ())
    exclusive = [{"not": {"required": list(pair), "properties": dict.fromkeys(pair, GIVEN)}} for pair in pairs]
    return {**schema, **summary, "properties": properties, **({"allOf": exclusive} if exclusive else {})}


def described(schema: dict[str, Any], told: str | None) -> dict[str, Any]:
    """Say in a schema what a value means, beside what it must be."""
    must = schema.get("description")
    said = "; ".join(text for text in (told, must) if text)
    return {**schema, "description": said} if said else schema


def _summary(struct: type[msgspec.Struct]) -> str:
    return inspect.cleandoc(struct.__doc__ or "").partition("\n\nAttributes:")[0].replace("``", "`")


def attributes(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Read what docstrings say of a struct's fields, its own above those of what it is made from."""
    told: dict[str, str] = {}
    for kind in reversed(struct.__mro__):
        text = inspect.cleandoc(kind.__dict__.get("__doc__") or "").partition("\nAttributes:\n")[2].partition("\n\n")[0]
        for name, said in re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE):
            told[name] = re.sub(r"\s+", " ", said).rstrip(".").replace("``", "`")
    return told
