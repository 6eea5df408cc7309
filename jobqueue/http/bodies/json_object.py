"""Parse the JSON object in a body strictly. ``POST /submit`` has a separate parser for large bodies (`bodies.jobs`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from werkzeug.exceptions import RequestEntityTooLarge, UnprocessableEntity, UnsupportedMediaType

from jobqueue.errors import InvalidJob
from jobqueue.http.bodies import jobs as bodies
from jobqueue.http.bodies import strict_json
from jobqueue.http.responses.answers import JSON


class Body(NamedTuple):
    """The JSON object that a route expects.

    Attributes:
        kind: the struct that describes the object.
        what: its name in error messages, such as ``"a schedule"``.
        refuse: the error to raise for an invalid object.
        limit: the maximum size of the JSON, in bytes.
        example: an example for the OpenAPI document.
        may_be_empty: whether an object without any value is valid.
    """

    kind: type[msgspec.Struct]
    what: str
    refuse: type[InvalidJob]
    limit: int
    example: Mapping[str, Any] | None = None
    may_be_empty: bool = True

    def read(self, content_type: str | None, content: bytes) -> dict[str, Any]:
        """Parse the object, and reject ambiguous JSON as `strict_json.read` does. The caller validates the fields.

        Raises:
            UnsupportedMediaType: the content type is not that of one JSON document.
            RequestEntityTooLarge: the body exceeds `limit`.
            UnprocessableEntity: an integer does not fit into 64 bits.
            InvalidJob: the body is not a JSON object; the class is `refuse`.
        """
        if bodies.require_json(content_type) != JSON:
            raise UnsupportedMediaType(f"the body is one JSON object, not one per line: send it with -H 'Content-Type: {JSON}'")
        if len(content) > self.limit:
            raise RequestEntityTooLarge(f"{self.what} may have at most {self.limit} bytes of JSON")
        try:
            given = strict_json.read(content)
        except strict_json.Repeated as error:
            raise self.refuse(f"{error.name} is given more than once", field=error.name) from None
        except strict_json.TooLarge as error:
            raise UnprocessableEntity(f"{self.what} cannot be accepted: {error}") from None
        except RecursionError:
            raise self.refuse(f"{self.what} cannot be read: it is nested too deeply") from None
        except ValueError as error:
            raise self.refuse(f"{self.what} cannot be read: {error}") from None
        if not isinstance(given, dict):
            raise self.refuse(f"{self.what} must be a JSON object")
        return given
