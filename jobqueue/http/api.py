"""The routes: what each takes, what it asks of the node, what it answers."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, after_this_request, request
from quart.typing import ResponseTypes
from quart_trio import QuartTrio
from werkzeug.exceptions import BadRequest, Conflict, NotFound

from jobqueue.http import bodies, door, limits, problems
from jobqueue.http.answers import SECURITY_HEADERS, Answer, json_answer
from jobqueue.http.auth import Guard
from jobqueue.http.submit import Submitting, submit
from jobqueue.job import MAX_NAME_LENGTH, QueueSettings


class Backend(Submitting, Protocol):
    """What the routes need of a node. Each method may raise the `jobqueue.errors.Unavailable` family."""

    def troubles(self) -> list[str]:
        """Say why this node is not ready: nothing when it is able to work."""
        ...

    async def metrics(self) -> tuple[bytes, str]:
        """Return the metrics and their content type."""
        ...

    async def job(self, id: str) -> dict[str, Any] | None:  # noqa: A002 - what it is called everywhere
        """Return a row of ``jobqueue.jobs``, as JSON can hold it."""
        ...

    async def cancel(self, id: str) -> bool:  # noqa: A002
        """Cancel a job that waits; False when it does not."""
        ...

    async def retry(self, id: str) -> bool:  # noqa: A002
        """Run a dead job again; False when it is not dead."""
        ...

    async def discard(self, id: str) -> bool:  # noqa: A002
        """Delete a dead job; False when it is not dead."""
        ...

    async def queues(self) -> list[dict[str, Any]]:
        """Return every queue that is known."""
        ...

    async def pause(self, queue: str, paused: bool) -> None:
        """Pause a queue on every node, or resume it."""

    async def configure(self, queue: str, settings: QueueSettings) -> dict[str, Any]:
        """Set what holds for a queue on every node, and return it as `queues` does."""
        ...

    async def nodes(self) -> list[dict[str, Any]]:
        """Return every node that is running."""
        ...


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
    routes = _Routes(backend)
    views: list[tuple[str, str, Callable[..., Awaitable[Response]]]] = [
        ("/submit", "POST", routes.submit),
        ("/health", "GET", routes.health),
        ("/health/ready", "GET", routes.ready),
        ("/metrics", "GET", routes.metrics),
        ("/jobs/<job_id>", "GET", routes.job),
        ("/jobs/<job_id>", "DELETE", routes.discard),
        ("/jobs/<job_id>/cancel", "POST", routes.cancel),
        ("/jobs/<job_id>/retry", "POST", routes.retry),
        ("/queues", "GET", routes.queues),
        ("/queues/<path:name>", "PUT", routes.configure),
        ("/queues/<path:name>/pause", "POST", routes.pause),
        ("/queues/<path:name>/resume", "POST", routes.resume),
        ("/nodes", "GET", routes.nodes),
    ]
    for path, method, view in views:
        app.add_url_rule(path, view_func=view, methods=[method])

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


class _Routes:
    """The views, over one node."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def submit(self) -> Response:
        body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        return _response(await submit(self._backend, request.headers.get("Content-Type"), body))

    async def health(self) -> Response:
        return _json({"status": "ok"})

    async def ready(self) -> Response:
        if reasons := self._backend.troubles():
            return _response(json_answer({"status": "unavailable", "reasons": reasons}, 503))
        return _json({"status": "ok"})

    async def metrics(self) -> Response:
        body, content_type = await self._backend.metrics()
        return Response(body, content_type=content_type)

    async def job(self, job_id: str) -> Response:
        return _json(await self._found(_job_id(job_id)))

    async def cancel(self, job_id: str) -> Response:
        return await self._steer(_job_id(job_id), self._backend.cancel, "only pending, blocked and scheduled jobs can be cancelled")

    async def retry(self, job_id: str) -> Response:
        return await self._steer(_job_id(job_id), self._backend.retry, "only dead jobs can be retried")

    async def discard(self, job_id: str) -> Response:
        job = await self._found(_job_id(job_id))
        if not await self._backend.discard(job["id"]):
            raise Conflict(f"The job is {job['state']}: only dead jobs can be deleted.")
        return _json({**job, "state": "discarded"})

    async def queues(self) -> Response:
        return _json(await self._backend.queues())

    async def configure(self, name: str) -> Response:
        _check_queue(name)
        body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        return _json(await self._backend.configure(name, bodies.settings(request.headers.get("Content-Type"), body)))

    async def pause(self, name: str) -> Response:
        return await self._pause(name, paused=True)

    async def resume(self, name: str) -> Response:
        return await self._pause(name, paused=False)

    async def nodes(self) -> Response:
        return _json(await self._backend.nodes())

    async def _found(self, job_id: str) -> dict[str, Any]:
        job = await self._backend.job(job_id)
        if job is None:
            raise NotFound(f"There is no job {job_id}: it never was, or was deleted when its time to be kept was over.")
        return job

    async def _steer(self, job_id: str, act: Callable[[str], Awaitable[bool]], rule: str) -> Response:
        done = await act(job_id)
        job = await self._found(job_id)
        if not done:
            raise Conflict(f"The job is {job['state']}: {rule}.")
        return _json(job)

    async def _pause(self, name: str, *, paused: bool) -> Response:
        _check_queue(name)
        await self._backend.pause(name, paused)
        return _json({"queue": name, "paused": paused})


def _check_queue(name: str) -> None:
    if len(name) > MAX_NAME_LENGTH or "\0" in name:
        raise BadRequest(f"A queue's name has at most {MAX_NAME_LENGTH} characters, none of them U+0000.")


def _job_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise BadRequest("A job's id is a UUID.") from None


def _json(value: object) -> Response:
    return _response(json_answer(value))


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
