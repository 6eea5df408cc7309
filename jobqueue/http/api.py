"""The app of a node: its routes, and what holds for all of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, after_this_request, request
from quart.typing import ResponseTypes
from quart_trio import QuartTrio
from werkzeug.exceptions import BadRequest

from jobqueue.http import dead_letters, door, job_lists, jobs, limits, problems, queries, queues, schedules, service, submit
from jobqueue.http.answers import SECURITY_HEADERS, Answer
from jobqueue.http.auth import Guard
from jobqueue.http.routes import Route


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
    for route in table(backend):
        app.add_url_rule(route.rule, f"{route.method} {route.path}", _view(route), methods=[route.method])

    async def refuse_at_the_door() -> None:
        if "Content-Length" in request.headers and "Transfer-Encoding" in request.headers:
            after_this_request(_closing)
        door.check(guard, request.method, request.path, request.headers)

    app.before_request(refuse_at_the_door)
    app.after_request(_secure)
    app.register_error_handler(Exception, _problem)
    return app


class _App(QuartTrio):
    async def asgi_app(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Keep from Quart what it would fail on or let pass: targets without a path, such as ``?x``, and WebSockets."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": None})
        elif scope["type"] == "http" and not _has_path(scope["path"]):
            answer = problems.answer(BadRequest("The request target has no path, or is no URL."))
            headers = [(name.encode(), value.encode()) for name, value in (answer.headers | SECURITY_HEADERS).items()]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body, "more_body": False})
        else:
            await super().asgi_app(scope, receive, send)


def _has_path(target: str) -> bool:
    """Tell whether Quart can take a path out of a target: it takes whole URLs too, and fails on what is none."""
    try:
        urlsplit(target)
    except ValueError:
        return False
    return bool(target)


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


async def _secure(response: Response) -> Response:
    response.headers.update(SECURITY_HEADERS)
    return response


async def _closing(response: ResponseTypes) -> ResponseTypes:
    response.headers["Connection"] = "close"
    return response
