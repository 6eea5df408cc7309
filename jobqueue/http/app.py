"""Build the ASGI app of a node: its routes, and the checks and headers that apply to all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope
from quart import Response, after_this_request, current_app, request
from quart.typing import ResponseTypes
from quart_trio import QuartTrio
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, RequestHeaderFieldsTooLarge

from jobqueue.engine.operations import Operations
from jobqueue.http import limits
from jobqueue.http.access import cors, request_checks
from jobqueue.http.access.auth import HEALTH, Authorizer
from jobqueue.http.api import openapi, queries
from jobqueue.http.api.routes import Access, Route, path_value, routed
from jobqueue.http.resources import dashboard, dead_letters, health, job_lists, jobs, overview, queues, schedules, submit, tasks
from jobqueue.http.responses import conditional, negotiation, problems
from jobqueue.http.responses.answers import SECURITY_HEADERS, Answer, respond
from jobqueue.http.transport.hypercorn_connection import PROLONG


def table(node: Operations, opened: Collection[Access] = HEALTH) -> list[Route]:
    """Make all routes of the API, in the order of the OpenAPI document; `opened` is the kinds of access that need no token."""
    topics = (submit, job_lists, jobs, dead_letters, queues, schedules, health, overview, tasks)
    routes = [route for topic in topics for route in topic.routes(node)]
    return [*routes, openapi.route(routes, opened)]


def build(node: Operations, authorizer: Authorizer) -> QuartTrio:
    """Make the ASGI app of a node. The app needs no lifespan events, and starts no task in its nursery.

    Args:
        node: the node.
        authorizer: decides which requests are allowed, including requests to routes that are added to the app later.
    """
    app = _App(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = limits.MAX_BODY_BYTES
    app.config["BODY_TIMEOUT"] = limits.BODY_TIMEOUT
    # Do not redirect //path to /path: the redirect would reveal to clients without a token which paths exist.
    app.url_map.merge_slashes = False
    routes = [*table(node, authorizer.opened), *dashboard.routes()]
    for route in routes:
        app.add_url_rule(route.rule, _endpoint(route), _view(route), methods=[route.method])
    front = _Front(routes, authorizer)
    app.before_request(front.before_route)
    app.after_request(front.after_route)
    app.register_error_handler(Exception, front.problem)
    return app


class _Front:
    """Runs before and after every route."""

    def __init__(self, routes: Sequence[Route], authorizer: Authorizer) -> None:
        self._authorizer = authorizer
        self._routes = {_endpoint(route): route for route in routes}
        # The paths without parameters, with their methods: ``/jobs/cancel`` must not match ``/jobs/{job_id}``.
        self._methods: dict[str, set[str]] = {}
        for route in routes:
            if not route.path_parameters:
                implied = {"OPTIONS", "HEAD"} if route.method == "GET" else {"OPTIONS"}
                self._methods.setdefault(route.path, set()).update({route.method}, implied)

    async def before_route(self) -> Response | None:
        """Reject a request, or respond instead of its route. Return None to let the route run."""
        if "Content-Length" in request.headers and "Transfer-Encoding" in request.headers:
            after_this_request(_closing)
        if _head_bytes(cast(HTTPScope, request.scope)) > limits.MAX_HEADER_BYTES:
            raise RequestHeaderFieldsTooLarge(f"The request line and headers may have at most {limits.MAX_HEADER_BYTES} bytes.")
        if preflight := cors.preflight(self._authorizer, request.method, request.headers):
            return _response(preflight)
        # Unknown paths and methods require a token too; its role does not matter.
        route = self._asked()
        check = partial(
            request_checks.check, self._authorizer, request.method, None if route is None else route.needs, request.headers
        )
        check()
        if request.method == "OPTIONS" and request.url_rule is not None:
            return Response("", HTTPStatus.NO_CONTENT, {"Allow": ", ".join(self._allowed())})
        if route is not None:
            if request.method not in self._methods.get(request.path, {request.method}):
                raise MethodNotAllowed
            _negotiate(route)
        state = request.scope.get("state", {})  # a test client within the process has no connection
        if PROLONG in state:
            state[PROLONG] = partial(_go_on, check, state[PROLONG])
        return None

    async def problem(self, error: Exception) -> Response:
        if isinstance(error, MethodNotAllowed):
            error.valid_methods = self._allowed()
        route = self._asked()
        return _response(negotiation.advertised(problems.answer(error), request.method, route.takes if route else ()))

    async def after_route(self, response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.update(cors.answer_headers(self._authorizer, request.headers))
        if response.status_code in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
            for name in ("Content-Type", "Content-Length"):  # they describe a body, but there is none
                response.headers.pop(name, None)
        return response

    def _asked(self) -> Route | None:
        """Return the requested route; None for an unknown path or method, and for OPTIONS."""
        return None if request.method == "OPTIONS" else self._routes.get(request.endpoint or "")

    def _allowed(self) -> list[str]:
        """Return the methods of the requested path. Use this only for errors and OPTIONS, because it may match the path again."""
        if request.path in self._methods:
            return sorted(self._methods[request.path])
        adapter = current_app.create_url_adapter(request)
        return [] if adapter is None else sorted(adapter.allowed_methods())


def _endpoint(route: Route) -> str:
    return f"{route.method} {route.path}"


class _App(QuartTrio):
    async def asgi_app(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Reject WebSockets, which Quart would accept. Also reject targets and hosts on which Quart would fail."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": None})
        elif scope["type"] == "http" and not _has_path(scope["path"]):
            await respond(send, problems.answer(BadRequest("The request target has no path, or is not a URL.")))
        elif scope["type"] == "http" and not all(_is_host(value) for name, value in scope["headers"] if name == b"host"):
            await respond(send, problems.answer(BadRequest("The Host header is not a valid host.")))
        else:
            if scope["type"] == "http":
                scope["path"] = routed(scope["raw_path"])
            await super().asgi_app(scope, receive, send)


def _has_path(target: str) -> bool:
    """Return whether Quart can read a path from a request target, which may be a whole URL. Quart fails on a malformed URL."""
    try:
        urlsplit(target)
    except ValueError:
        return False
    return bool(target)


def _is_host(header: bytes) -> bool:
    """Return whether Quart can make a URL of a host. Quart fails if a label of the name is empty or exceeds 63 characters."""
    try:
        header.decode("latin-1").lower().partition(":")[0].encode("idna")
    except UnicodeError:
        return False
    return True


def _head_bytes(scope: HTTPScope) -> int:
    """Return the size in bytes of a request's head in HTTP/1.1. hypercorn limits only heads that arrive in several parts."""
    target = len(scope["raw_path"]) + len(scope["query_string"]) + bool(scope["query_string"])
    fields = sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])
    return len(scope["method"]) + target + len("  HTTP/1.1\r\n\r\n") + fields


def _view(route: Route) -> Callable[..., Awaitable[Response]]:
    """Make the view function that Quart calls for a route."""

    async def view(**given: Any) -> Response:
        given = {name: path_value(name, value) for name, value in given.items()}
        if route.query is not None:
            given["query"] = queries.read(request.args, route.query)
        if route.body is not None:
            content = await request.get_data(cache=False, as_text=False, parse_form_data=False)
            given["body"] = route.body.read(request.headers.get("Content-Type"), content)
        answer = await route.view(**given)
        if not isinstance(answer, Answer):
            return answer
        return _response(conditional.tagged(answer, request.if_none_match) if route.tagged else answer)

    return view


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers)


def _negotiate(route: Route) -> None:
    headers = request.headers
    negotiation.check_accept(", ".join(headers.getlist("Accept")) or None, route.media_type)
    if route.takes:
        negotiation.require_length(request.http_version, headers.get("Content-Length"), headers.get("Transfer-Encoding"))


def _go_on(check: Callable[[], None], prolong: Callable[[], None]) -> bool:
    """Extend the deadline of an endless response and return True; False if the client's token is no longer valid."""
    try:
        check()
    except HTTPException:
        return False
    prolong()
    return True


async def _closing(response: ResponseTypes) -> ResponseTypes:
    response.headers["Connection"] = "close"
    return response
