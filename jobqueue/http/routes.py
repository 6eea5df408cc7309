"""What a route is: one row of the table from which the app, the door and the description of the API are made."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from quart import Response

from jobqueue.http.answers import Answer
from jobqueue.http.objects import Body

Access = Literal["health", "metrics", "submit", "read", "admin"]
"""What a request must be allowed: to see the service's health or its metrics, to submit, to look at anything, to do anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path.

    Attributes:
        path: with its parameters in braces, as OpenAPI has them; those called ``name`` may hold slashes.
        needs: what whoever asks must be allowed.
        summary: what it does, in one line for people.
        view: gets the parameters of the path by name, `query` as a value of its type, and `body` as the object that was sent.
        query: the struct that describes the query's parameters; None where there are none. The view gets no query without it.
        body: None where the view reads it by itself, or there is none.
        answers: the type of the JSON in each answer that is no problem, by status; None for one that holds no JSON.
    """

    method: str
    path: str
    needs: Access
    summary: str
    view: Callable[..., Awaitable[Answer | Response]]
    query: type[msgspec.Struct] | None = None
    body: Body | None = None
    answers: Mapping[int, Any] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """The path as werkzeug has it."""
        return re.sub(r"{(\w+)}", lambda found: f"<path:{found[1]}>" if found[1] == "name" else f"<{found[1]}>", self.path)
