"""``GET /openapi.json``: the table of routes, as OpenAPI 3.1 has it. All that it says comes from the rows and their types."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import NODEFAULT, UNSET

from jobqueue import __version__
from jobqueue.errors import InvalidJob
from jobqueue.fields import must_be, not_null
from jobqueue.http import negotiation, problems, shapes
from jobqueue.http.answers import Answer, json_answer
from jobqueue.http.routes import PATH_PARAMETERS, Access, Route
from jobqueue.http.schemas import GIVEN, Schemas, alternatives, attributes, described
from jobqueue.job import Priority

PATH = "/openapi.json"

ABOUT = """Jobs in PostgreSQL: submit them, look at them, steer them.

Whoever has a token may do what its role allows: `submit` submits jobs and follows them, `read` looks at everything, `admin` does
everything. A service without tokens listens on loopback only, and asks for none.

Every route with GET answers HEAD too, and every path OPTIONS. What is wrong with a request is said as RFC 9457 has it. 400 is for
what is not of the form that is described here, 422 for what is, and cannot be taken all the same."""

# Everything that comes to the door may be of a form that is ambiguous, encoded or too long, or want another type than there is.
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
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "the scheme: Bearer"},
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: {
        "Accept-Encoding": "the encodings that are taken: none",
        **{header: f"the types that {method} takes" for method, header in negotiation.TELLS_WHAT_IS_TAKEN.items()},
    },
    HTTPStatus.SERVICE_UNAVAILABLE: {
        "Retry-After": "after how many seconds to send it again; not there where it may have been done"
    },
}

If_None_Match = Annotated[str, msgspec.Meta(description="tags that the client has: 304 says that it has what is there")]


def route(routes: Sequence[Route], opened: Collection[Access]) -> Route:
    """Make the route that describes all the others, and itself. It is made once, when somebody asks.

    What it tells is no secret, but it is closed like the rest: who has no token is told nothing at all, not even what runs here.

    Args:
        routes: the others.
        opened: what needs no token.
    """

    @cache
    def made() -> Answer:
        return json_answer(document([*routes, row], opened))

    async def view() -> Answer:
        return made()

    row = Route(
        method="GET",
        path=PATH,
        needs="read",
        summary="Describe this API",
        view=view,
        answers={HTTPStatus.OK: dict[str, Any]},
        tagged=True,
    )
    return row


def document(routes: Sequence[Route], opened: Collection[Access]) -> dict[str, Any]:
    """Describe routes."""
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
    operation: dict[str, Any] = {
        "operationId": _operation_id(row),
        "summary": row.summary,
        "description": "Open to all." if is_open else f"Needs the role `{row.needs}`.",
        "x-role": None if is_open else row.needs,
        "tags": [_tag(row)],
        "security": [] if is_open else [{"bearer": []}],
        "parameters": list(_parameters(row, schemas)),
        "responses": {
            **{str(status): _answer(row, status, kind, routes, schemas) for status, kind in sorted(row.answers.items())},
            **({"304": {"description": "The client has it.", "headers": _headers(ETag="its tag")}} if row.tagged else {}),
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
            # What is not given is not there: a query has no null.
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
        headers |= _headers(ETag="the tag of what it holds")
    made = [isinstance(inner, type) and issubclass(inner, shapes.MadeJob) for inner in alternatives(kind)]
    if any(made):
        headers |= _headers(Location="where the job is")
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
    """Say what can be asked next about what was made."""
    ids = [_operation_id(row) for row in routes]
    return {operation_id: {"operationId": operation_id, "parameters": {parameter: found}} for operation_id in ids}


def _headers(**descriptions: str) -> dict[str, Any]:
    return {name: {"description": description, "schema": _TEXT} for name, description in descriptions.items()}


# ---------------------------------------------------------------------------------------------------------------------- problems


def _refusals(row: Route, *, is_open: bool) -> list[int]:
    """Tell the statuses of the problems that a request to a route may come to."""
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
