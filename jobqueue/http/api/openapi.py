"""``GET /openapi.json``: describe the table of routes in OpenAPI 3.1, from the routes and their types alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import NODEFAULT, UNSET

from jobqueue._version import __version__
from jobqueue.errors import InvalidJob
from jobqueue.fields import attributes, must_be, not_null
from jobqueue.http.api import models
from jobqueue.http.api.json_schema import GIVEN, Schemas, alternatives, described
from jobqueue.http.api.routes import PATH_PARAMETERS, Access, Route, permits
from jobqueue.http.responses import negotiation, problems
from jobqueue.http.responses.answers import Answer, json_answer
from jobqueue.job import Priority
from jobqueue.tokens import ROLES

PATH = "/openapi.json"

ABOUT = """Submit, inspect, and manage jobs that are stored in PostgreSQL.

The role of a token decides its access: `submit` submits and follows jobs, `read` reads everything, and `admin` does everything.
A service without tokens listens on loopback only and requires none.

Every GET route supports HEAD, and every path supports OPTIONS. Errors are problem documents (RFC 9457). Status 400 means that the
request does not match this description. Status 422 means that it matches, but cannot be accepted."""

# The errors of any route: the request is ambiguous, encoded, or too long, or accepts only other media types.
_DOOR = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.NOT_ACCEPTABLE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    }
)
_GUARD = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_BODY = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.LENGTH_REQUIRED,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)

_TEXT = {"type": "string"}
_PROBLEM_HEADERS: dict[int, dict[str, str]] = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "the authentication scheme: Bearer"},
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: {
        "Accept-Encoding": "the accepted content encodings: only identity",
        **{header: f"the media types that {method} accepts" for method, header in negotiation.ADVERTISING_HEADERS.items()},
    },
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "seconds to wait before a retry; absent if the request may have taken effect"},
}

If_None_Match = Annotated[
    str, msgspec.Meta(description="entity tags that the client has; the response is 304 if one of them is current")
]


def route(routes: Sequence[Route], opened: Collection[Access]) -> Route:
    """Make the route that describes all routes, including itself. The first request builds the document.

    The document holds no secrets, but it requires a token like the other routes. A client without a token learns nothing about the
    service.

    Args:
        routes: the other routes.
        opened: the kinds of access that need no token.
    """

    @cache
    def made() -> Answer:
        return json_answer(document([*routes, row], opened))

    async def view() -> Answer:
        return made()

    row = Route("GET", PATH, "read", "Describe this API", view, answers={HTTPStatus.OK: dict[str, Any]}, tagged=True)
    return row


def document(routes: Sequence[Route], opened: Collection[Access]) -> dict[str, Any]:
    """Return the OpenAPI document of some routes; `opened` is the kinds of access that need no token."""
    schemas = Schemas(_types(routes))
    paths: dict[str, dict[str, Any]] = {}
    for row in routes:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, routes, schemas, is_open=row.needs in opened)
    statuses = sorted({status for row in routes for status in _refusals(row, is_open=row.needs in opened)})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jobqueue",
            "version": __version__,
            "description": ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(map(_tag, routes))],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {_name(status): _problem(status, schemas) for status in statuses},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "a token of the service"}},
        },
    }


def _types(routes: Iterable[Route]) -> Iterator[Any]:
    yield problems.Problem
    yield If_None_Match
    yield from PATH_PARAMETERS.values()
    for row in routes:
        yield from row.takes.values()
        yield from row.headers.values()
        yield from (kind for kind in row.answers.values() if kind is not None)
        if row.query is not None:
            yield from (not_null(field.type) for field in msgspec.structs.fields(row.query))


# ---------------------------------------------------------------------------------------------------------------------- one route


def _operation(row: Route, routes: Sequence[Route], schemas: Schemas, *, is_open: bool) -> dict[str, Any]:
    roles = [] if is_open else [role for role in ROLES if permits(role, row.method, row.needs)]
    operation: dict[str, Any] = {
        "operationId": _operation_id(row),
        "summary": row.summary,
        "description": f"Requires a token with the role {' or '.join(roles)}." if roles else "Requires no token.",
        "x-roles": roles,
        "tags": [_tag(row)],
        "security": [] if is_open else [{"bearer": []}],
        "parameters": list(_parameters(row, schemas)),
        "responses": {
            **{str(status): _answer(row, status, kind, routes, schemas) for status, kind in sorted(row.answers.items())},
            **(
                {"304": {"description": "The client's version is current.", "headers": _headers(ETag="the entity tag")}}
                if row.tagged
                else {}
            ),
            **{str(status): {"$ref": f"#/components/responses/{_name(status)}"} for status in _refusals(row, is_open=is_open)},
        },
    }
    if row.takes:
        operation["requestBody"] = {
            "required": True,
            "content": {media_type: _content(row, kind, schemas) for media_type, kind in row.takes.items()},
        }
    return operation


def _operation_id(row: Route) -> str:
    return "_".join([row.method.lower(), *re.findall(r"\w+", row.path)])


def _tag(row: Route) -> str:
    return row.path.split("/")[1]


def _parameters(row: Route, schemas: Schemas) -> Iterator[dict[str, Any]]:
    for name in row.path_parameters:
        yield _parameter(name, "path", schemas.of(PATH_PARAMETERS[name]), required=True)
    if row.query is not None:
        told = attributes(row.query)
        for field in msgspec.structs.fields(row.query):
            # A query parameter is absent or has a value; it is never null.
            schema = schemas.of(not_null(field.type))
            if field.default not in {NODEFAULT, UNSET, None}:
                schema = {**schema, "default": field.default}
            yield _parameter(field.encode_name, "query", described(schema, told.get(field.name)), required=field.required)
    for name, kind in {**row.headers, **({"If-None-Match": If_None_Match} if row.tagged else {})}.items():
        yield _parameter(name, "header", schemas.of(kind), required=False)


def _parameter(name: str, place: str, schema: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    description = {"description": schema["description"]} if "description" in schema else {}
    separated = {"style": "form", "explode": False} if schema.get("type") == "array" else {}
    return {"name": name, "in": place, "required": required, **description, **separated, "schema": schema}


def _content(row: Route, kind: Any, schemas: Schemas) -> dict[str, Any]:
    body = row.body
    content: dict[str, Any] = {"schema": schemas.of(kind)}
    if body is not None and body.example is not None:
        content["example"] = body.example
    if body is not None and not body.may_be_empty:
        says = [{"required": [name], "properties": {name: GIVEN}} for name in (f.encode_name for f in msgspec.structs.fields(kind))]
        content["schema"] = {"allOf": [content["schema"]], "anyOf": says}
    return content


def _answer(row: Route, status: int, kind: Any, routes: Sequence[Route], schemas: Schemas) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    headers: dict[str, Any] = {}
    if row.tagged:
        headers |= _headers(ETag="the entity tag of the body")
    made = [isinstance(inner, type) and issubclass(inner, models.MadeJob) for inner in alternatives(kind)]
    if any(made):
        headers |= _headers(Location="the path of the job")
    if all(made):
        follow = [other for other in routes if other.path_parameters == ["job_id"]]
        answer["links"] = _links(follow, "job_id", "$response.body#/id")
    elif row.method == "PUT" and len(row.path_parameters) == 1:
        [name] = row.path_parameters
        follow = [other for other in routes if other is not row and other.path.startswith(row.path)]
        answer["links"] = _links(follow, name, f"$request.path.{name}")
    if headers:
        answer["headers"] = headers
    if kind is not None:
        answer["content"] = {row.media_type: {"schema": schemas.of(kind)}}
    return answer


def _links(routes: Iterable[Route], parameter: str, found: str) -> dict[str, Any]:
    """Return the OpenAPI links from a created object to the routes that take its id or name."""
    ids = [_operation_id(row) for row in routes]
    return {operation_id: {"operationId": operation_id, "parameters": {parameter: found}} for operation_id in ids}


def _headers(**descriptions: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": _TEXT} for name, description in descriptions.items()}


# ---------------------------------------------------------------------------------------------------------------------- problems


def _refusals(row: Route, *, is_open: bool) -> list[int]:
    """Return the error statuses that a request to a route may get."""
    statuses = {*_DOOR, *row.refuses}
    if not is_open:
        statuses |= _GUARD
    if row.path_parameters:
        statuses.add(HTTPStatus.NOT_FOUND)
    if row.takes:
        statuses |= _BODY
    return sorted(statuses - row.answers.keys())


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "").replace("-", "")


def _problem(status: int, schemas: Schemas) -> dict[str, Any]:
    types = "".join(f"\n- `{kind}`: {title}" for kind, title in problems.kinds(status).items())
    content: dict[str, Any] = {"schema": schemas.of(problems.Problem)}
    if status == HTTPStatus.BAD_REQUEST:
        refused = InvalidJob(f"priority must be {must_be(Priority)}", field="priority")
        content["example"] = msgspec.json.decode(problems.answer(refused).body)
    answer: dict[str, Any] = {
        "description": HTTPStatus(status).phrase + types,
        "content": {problems.CONTENT_TYPE: content},
    }
    if status in _PROBLEM_HEADERS:
        answer["headers"] = {
            name: {"description": description, "schema": _TEXT} for name, description in _PROBLEM_HEADERS[status].items()
        }
    return answer
