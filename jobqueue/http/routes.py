"""What a route is: one row of the table from which the app, the door and the description of the API are made."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Any, Literal
from urllib.parse import unquote
from uuid import UUID

import msgspec
from quart import Response

from jobqueue import documents
from jobqueue.errors import InvalidPath
from jobqueue.fields import must_be
from jobqueue.http.answers import JSON, Answer
from jobqueue.http.objects import Body
from jobqueue.job import PathName

PATH_PARAMETERS: Mapping[str, Any] = {
    "job_id": Annotated[UUID, msgspec.Meta(description="a UUID")],
    "name": Annotated[PathName, msgspec.Meta(description=f"{must_be(PathName)}, without U+0000; a slash in it is %2F")],
}
"""The types of what paths hold."""

SLASH = "\udc2f"
"""A slash that was encoded: a surrogate, which no decoded text holds."""

Access = Literal["page", "health", "metrics", "submit", "read", "admin"]
"""What a request must be allowed: to get the dashboard's page, which tells nothing; to see the service's health or its metrics; to
submit; to look at anything; to do anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path.

    Attributes:
        path: with its parameters in braces, see `PATH_PARAMETERS`.
        needs: what whoever asks must be allowed.
        summary: what it does, in one line for people.
        view: gets the parameters of the path by name, as texts of their form, `query` as a value of its type, and `body` as the
            object that was sent.
        query: the struct that describes the query's parameters; None where there are none. The view gets no query without it.
        body: None where the view reads it by itself, or there is none.
        content: the types of what a view reads by itself, by media type.
        headers: the types of the headers that a view looks at.
        answers: the type of what each answer holds that is no problem, by status; None for one that holds nothing.
        media_type: of the answers that are no problem.
        refuses: the statuses of the problems that the view comes to, beside those that a route of its form has anyway.
        tagged: whether its answers have entity tags, and need not be sent to a client that has them.
    """

    method: str
    path: str
    needs: Access
    summary: str
    view: Callable[..., Awaitable[Answer | Response]]
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
        """The types of the bodies that it takes, by media type; nothing where it needs none."""
        return self.content if self.body is None else {JSON: self.body.kind}

    @property
    def path_parameters(self) -> list[str]:
        """The names of what its path holds."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def rule(self) -> str:
        """The path as werkzeug has it."""
        return self.path.replace("{", "<").replace("}", ">")


def routed(raw_path: bytes) -> str:
    """Decode a path for the routes. A slash of its own separates what it holds; one that is encoded is a part of it, `SLASH`."""
    path = "/".join(unquote(part).replace("/", SLASH) for part in raw_path.decode("latin-1").split("/"))
    # werkzeug drops all slashes at the beginning but one: a proxy that guards /metrics may not know that //metrics is the same.
    return path.replace("//", f"/{SLASH}", 1) if path.startswith("//") else path


def path_value(name: str, given: str) -> str:
    """Read what a path holds.

    Raises:
        InvalidPath: it is not of the form that it has to have.
    """
    kind = PATH_PARAMETERS[name]
    try:
        value = msgspec.convert(given.replace(SLASH, "/"), kind)
        documents.encode(value)
    except ValueError:
        raise InvalidPath(f"{name} must be {must_be(kind)}", field=name) from None
    return str(value)
