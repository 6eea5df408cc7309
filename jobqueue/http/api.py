"""The app of a node: its routes, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, cast
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope
from quart import Response, after_this_request, request
from quart.typing import ResponseTypes
from quart_trio import QuartTrio
from werkzeug.exceptions import BadRequest, HTTPException, RequestHeaderFieldsTooLarge

from jobqueue.http import cors, dead_letters, door, job_lists, jobs, limits, problems, queries, queues, schedules, service, submit
from jobqueue.http.answers import SECURITY_HEADERS, Answer, respond
from jobqueue.http.auth import Guard
from jobqueue.http.connection import PROLONG
from jobqueue.http.routes import Access, Route


class Backend(
    submit.Submitting,
    job_lists.Listing,
    jobs.Steering,
    dead_letters.Buried,
    queues.Queueing,
    schedules.Scheduling,
    service.Observed,
    Protocol,
):
    """What the routes need of a node. Each method may raise the `jobqueue.errors.Unavailable` family."""


def table(backend: Backend) -> list[Route]:
    """Make all routes of a node, in the order of the description."""
    topics = (submit, job_lists, jobs, dead_letters, queues, schedules, service)
    return [route for topic in topics for route in topic.routes(backend)]


def build(backend: Backend, guard: Guard) -> QuartTrio:
    """Make the ASGI app of a node. It needs no lifespan events, and adds no task to the app's nursery.

    Args:
        backend: the node.
        guard: decides who may ask; it also covers routes that are added to the app later.
    """
    app = _App(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = limits.MAX_BODY_BYTES
    app.config["BODY_TIMEOUT"] = limits.BODY_TIMEOUT
    # A redirect would show through the guard which paths exist.
    app.url_map.merge_slashes = False
    needs: dict[str | None, Access] = {}
    for route in table(backend):
        endpoint = f"{route.method} {route.path}"
        app.add_url_rule(route.rule, endpoint, _view(route), methods=[route.method])
        needs[endpoint] = route.needs

    async def refuse_at_the_door() -> Response | None:
        if "Content-Length" in request.headers and "Transfer-Encoding" in request.headers:
            after_this_request(_closing)
        if _head_bytes(cast(HTTPScope, request.scope)) > limits.MAX_HEADER_BYTES:
            raise RequestHeaderFieldsTooLarge(f"A request line with its headers may have {limits.MAX_HEADER_BYTES} bytes.")
        if preflight := cors.preflight(guard, request.method, request.headers):
            return _response(preflight)
        # A path or a method that there is not needs a token too, of any role.
        needed = None if request.method == "OPTIONS" else needs.get(request.endpoint)
        check = partial(door.check, guard, request.method, needed, request.headers)
        check()
        state = request.scope.get("state", {})  # a client in this process has no connection
        if PROLONG in state:
            state[PROLONG] = partial(_go_on, check, state[PROLONG])
        return None

    async def secure(response: Response) -> Response:
        response.headers.update(SECURITY_HEADERS)
        response.headers.update(cors.answer_headers(guard, request.headers))
        return response

    app.before_request(refuse_at_the_door)
    app.after_request(secure)
    app.register_error_handler(Exception, _problem)
    return app


class _App(QuartTrio):
    async def asgi_app(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Keep from Quart what it would fail on or let pass: targets without a path, hosts that are none, and WebSockets."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": None})
        elif scope["type"] == "http" and not _has_path(scope["path"]):
            await respond(send, problems.answer(BadRequest("The request target has no path, or is no URL.")))
        elif scope["type"] == "http" and not all(_is_host(value) for name, value in scope["headers"] if name == b"host"):
            await respond(send, problems.answer(BadRequest("The Host header is no host.")))
        else:
            await super().asgi_app(scope, receive, send)


def _has_path(target: str) -> bool:
    """Tell whether Quart can take a path out of a target: it takes whole URLs too, and fails on what is none."""
    try:
        urlsplit(target)
    except ValueError:
        return False
    return bool(target)


def _is_host(header: bytes) -> bool:
    """Tell whether Quart can make a URL of a host: it fails on a name with a part that is empty, or has more than 63 characters."""
    try:
        header.decode("latin-1").lower().partition(":")[0].encode("idna")
    except UnicodeError:
        return False
    return True


def _head_bytes(scope: HTTPScope) -> int:
    """How long the head of a request is in HTTP/1.1: hypercorn's own bound is for heads that come in pieces."""
    target = len(scope["raw_path"]) + len(scope["query_string"]) + bool(scope["query_string"])
    fields = sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])
    return len(scope["method"]) + target + len("  HTTP/1.1\r\n\r\n") + fields


def _view(route: Route) -> Callable[..., Awaitable[Response]]:
    """Make what Quart calls for a route."""

    async def view(**given: object) -> Response:
        if route.query is not None:
            given["query"] = queries.read(request.args, route.query)
        if route.body is not None:
            content = await request.get_data(cache=False, as_text=False, parse_form_data=False)
            given["body"] = route.body.read(request.headers.get("Content-Type"), content)
        answer = await route.view(**given)
        return _response(answer) if isinstance(answer, Answer) else answer

    return view


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers)


async def _problem(error: Exception) -> Response:
    return _response(problems.answer(error))


def _go_on(check: Callable[[], None], prolong: Callable[[], None]) -> bool:
    """Give an answer without end more time, if whoever asked still may: a token can be taken back meanwhile."""
    try:
        check()
    except HTTPException:
        return False
    prolong()
    return True


async def _closing(response: ResponseTypes) -> ResponseTypes:
    response.headers["Connection"] = "close"
    return response
