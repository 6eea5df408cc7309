"""Read a JSON object out of a body, strictly: for every route but ``POST /submit``, whose bodies are large (`bodies`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from werkzeug.exceptions import RequestEntityTooLarge, UnprocessableEntity, UnsupportedMediaType

from jobqueue.errors import InvalidJob
from jobqueue.http import bodies, strict
from jobqueue.http.answers import JSON


class Body(NamedTuple):
    """The JSON object that a route takes.

    Attributes:
        kind: the struct that describes it.
        what: what it is, for an error: ``"a schedule"``.
        refuse: the error for one that is no such object.
        limit: the most bytes.
        example: one of them.
        may_be_empty: whether an object without any value means something.
    """

    kind: type[msgspec.Struct]
    what: str
    refuse: type[InvalidJob]
    limit: int
    example: Mapping[str, Any] | None = None
    may_be_empty: bool = True

    def read(self, content_type: str | None, content: bytes) -> dict[str, Any]:
        """Read the object, of which there is one reading: see `strict.read`.

        Raises:
            UnsupportedMediaType: the content type is not that of one JSON document.
            RequestEntityTooLarge: it is.
            UnprocessableEntity: an integer in it is beyond 64 bits.
            InvalidJob: `refuse`: it is no object.
        """
        if bodies.require_json(content_type) != JSON:
            raise UnsupportedMediaType(f"send one JSON object: -H 'Content-Type: {JSON}'")
        if len(content) > self.limit:
            raise RequestEntityTooLarge(f"{self.what} may have {self.limit} bytes of JSON")
        try:
            given = strict.read(content)
        except strict.Repeated as error:
            raise self.refuse(f"{error.name} is given more than once", field=error.name) from None
        except strict.TooLarge as error:
            raise UnprocessableEntity(f"{self.what} cannot be taken: {error}") from None
        except RecursionError:
            raise self.refuse(f"{self.what} cannot be read: it is nested too deeply") from None
        except ValueError as error:
            raise self.refuse(f"{self.what} cannot be read: {error}") from None
        if not isinstance(given, dict):
            raise self.refuse(f"{self.what} must be a JSON object")
        return given
