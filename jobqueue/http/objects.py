"""Read a JSON object out of a body, strictly: for every route but ``POST /submit``, whose bodies are large (`bodies`)."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

import msgspec
from werkzeug.exceptions import UnsupportedMediaType

from jobqueue.errors import InvalidJob
from jobqueue.fields import MAX_SHOWN_NAME
from jobqueue.http import bodies
from jobqueue.http.answers import JSON


class Body(NamedTuple):
    """The JSON object that a route takes.

    Attributes:
        kind: the struct that describes it.
        what: what it is, for an error: ``"a schedule"``.
        refuse: the error for one that is no such object.
        limit: the most bytes.
    """

    kind: type[msgspec.Struct]
    what: str
    refuse: type[InvalidJob]
    limit: int

    def read(self, content_type: str | None, content: bytes) -> dict[str, Any]:
        """Read the object: no name in it is given twice, at any depth, and no number is none that JSON has.

        Raises:
            UnsupportedMediaType: the content type is not that of one JSON document.
            InvalidJob: `refuse`: it is no object, or too large.
        """
        if bodies.require_json(content_type) != JSON:
            raise UnsupportedMediaType(f"send one JSON object: -H 'Content-Type: {JSON}'")
        if len(content) > self.limit:
            raise self.refuse(f"{self.what} may have {self.limit} bytes of JSON")
        try:
            given = json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_no_number)
        except _Repeated as error:
            raise self.refuse(f"{error.name} is given more than once", field=error.name) from None
        except RecursionError:
            raise self.refuse(f"{self.what} cannot be read: it is nested too deeply") from None
        except ValueError as error:
            raise self.refuse(f"{self.what} cannot be read: {error}") from None
        if not isinstance(given, dict):
            raise self.refuse(f"{self.what} must be a JSON object")
        return given


class _Repeated(ValueError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object whose names are given once each, where JSON allows more and decoders settle it in silence."""
    made = dict(pairs)
    if len(made) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise _Repeated(name[:MAX_SHOWN_NAME])
    return made


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
