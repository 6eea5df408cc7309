"""Define a route: one row of a table. The app, the access check, and the OpenAPI document are made from this table."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import unquote
from uuid import UUID

import msgspec
from quart import Response

from jobqueue import documents
from jobqueue.errors import InvalidPath
from jobqueue.fields import must_be
from jobqueue.http.bodies.json_object import Body
from jobqueue.http.responses.answers import JSON, Answer
from jobqueue.job import PathName
from jobqueue.tokens import Role

PATH_PARAMETERS: Mapping[str, Any] = {
    "job_id": Annotated[UUID, msgspec.Meta(description="a UUID")],
    "name": Annotated[PathName, msgspec.Meta(description=f"{must_be(PathName)}, without U+0000; encode a slash as %2F")],
}
"""The types of path parameters."""

SLASH = "\udc2f"
"""Represents an encoded slash. It is a surrogate, because decoded text never contains surrogates."""

Access = Literal["page", "health", "metrics", "submit", "read", "admin"]
"""The access that a request needs: the dashboard's page (without data), the service's health, its metrics, submitting jobs, reading
everything, or doing everything."""

READS = frozenset({"GET", "HEAD"})


def permits(held: Role, method: str, needs: Access | None) -> bool:
    """Return whether a role is enough for a request.

    `admin` is enough for everything. `read` is also enough for the metrics, and for GET and HEAD on the routes of `submit`.
    """
    if needs is None or needs in {"page", "health"} or held == "admin":
        return True
    return held == needs or (held == "read" and (needs == "metrics" or (needs == "submit" and method in READS)))


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path.

    Attributes:
        path: the path, with parameters in braces, see `PATH_PARAMETERS`.
        needs: the access that a request needs.
        summary: what the route does, in one line for people.
        view: called with three kinds of arguments: the path parameters by name, as validated texts; `query`, as a value of its
            type; and `body`, the object that the client sent.
        query: the struct of the query parameters. None if the route has no such parameters; then the view gets no `query`.
        body: the JSON object that the route expects; None if the view itself reads the body, or if there is no body.
        content: the types of a body that the view reads, by media type.
        headers: the types of the headers that the view reads.
        answers: the body type of each successful response, by status; None for an empty body.
        media_type: the media type of successful responses.
        refuses: the error statuses of the view itself. `openapi` adds the statuses that result from the other attributes.
        tagged: whether responses have entity tags, so that a client with the current version gets 304.
    """

    method: str
    path: str
    needs: Access
    summary: str
    view: Callable[..., Awaitable[Answer | Response]]
    _: KW_ONLY
    query: type[msgspec.Struct] | None = None
    body: Body | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[int, Any] = field(default_factory=lambda: {HTTPStatus.OK: Any})
    media_type: str = JSON
    refuses: frozenset[int] = frozenset({HTTPStatus.SERVICE_UNAVAILABLE})
    tagged: bool = False

    @property
    def takes(self) -> Mapping[str, Any]:
        """The types of the bodies that the route accepts, by media type; empty if it needs no body."""
        return self.content if self.body is None else {JSON: self.body.kind}

    @property
    def path_parameters(self) -> list[str]:
        """The names of the path parameters."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def rule(self) -> str:
        """The path in werkzeug's syntax."""
        return self.path.replace("{", "<").replace("}", ">")


def routed(raw_path: bytes) -> str:
    """Decode a path for routing. A literal slash separates segments. An encoded slash becomes `SLASH`, within a segment."""
    path = "/".join(unquote(part).replace("/", SLASH) for part in raw_path.decode("latin-1").split("/"))
    # werkzeug would merge leading slashes. Then //metrics would reach /metrics, even behind a proxy that blocks /metrics.
    return path.replace("//", f"/{SLASH}", 1) if path.startswith("//") else path


def path_value(name: str, given: str) -> str:
    """Validate a path parameter and return it decoded.

    Raises:
        InvalidPath: the value does not match the parameter's type.
    """
    kind = PATH_PARAMETERS[name]
    try:
        value = msgspec.convert(given.replace(SLASH, "/"), kind)
        documents.encode(value)
    except ValueError:
        raise InvalidPath(f"{name} must be {must_be(kind)}", field=name) from None
    return str(value)
