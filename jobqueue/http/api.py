"""The routes: what each takes, what it asks of the node, what it answers."""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import urlsplit

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Response, after_this_request, request
from quart.typing import ResponseTypes
from quart_trio import QuartTrio
from werkzeug.exceptions import BadRequest, Conflict, NotFound

from jobqueue.http import bodies, dead_letters, door, limits, problems, schedules, watch
from jobqueue.http.answers import SECURITY_HEADERS, Answer, json_answer
from jobqueue.http.auth import Guard
from jobqueue.http.connection import PROLONG
from jobqueue.http.submit import Submitting, submit
from jobqueue.job import MAX_NAME_LENGTH, DeadFilter, QueueSettings
from jobqueue.timetable import CronSchedule


class Backend(Submitting, watch.Watchable, Protocol):
    """What the routes need of a node. Each method may raise the `jobqueue.errors.Unavailable` family."""

    def troubles(self) -> list[str]:
        """Say why this node is not ready: nothing when it is able to work."""
        ...

    async def metrics(self) -> tuple[bytes, str]:
        """Return the metrics and their content type."""
        ...

    async def cancel(self, id: str) -> bool:  # noqa: A002 - what it is called everywhere
        """Cancel a job that waits, or have one cancelled that runs; False when it does neither."""
        ...

    async def retry(self, id: str) -> bool:  # noqa: A002
        """Run a dead job again; False when it is not dead.

        Raises:
            ConflictingJob: another job has its unique key.
        """
        ...

    async def discard(self, id: str) -> bool:  # noqa: A002
        """Delete a dead job; False when it is not dead."""
        ...

    async def dead(self, wanted: DeadFilter, limit: int, after: dead_letters.Place | None) -> list[dict[str, Any]]:
        """Return the dead jobs that are wanted, the latest first, from a place on."""
        ...

    async def retry_dead(self, wanted: DeadFilter) -> int:
        """Run all dead jobs again that are wanted; return how many."""
        ...

    async def discard_dead(self, wanted: DeadFilter) -> int:
        """Delete all dead jobs that are wanted; return how many."""
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

    async def schedules(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return every schedule, or the one of that name."""
        ...

    async def put_schedule(self, schedule: CronSchedule) -> bool:
        """Make a schedule or change it; True when it is new."""
        ...

    async def unschedule(self, name: str) -> bool:
        """Delete a schedule; False when there is none."""
        ...

    async def pause_schedule(self, name: str, paused: bool) -> bool:
        """Pause a schedule or resume it; False when there is none."""
        ...

    async def trigger_schedule(self, name: str) -> str | None:
        """Submit a schedule's job now and return its id; None when there is no schedule."""
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
        ("/jobs/<job_id>/events", "GET", routes.events),
        ("/jobs/<job_id>", "DELETE", routes.discard),
        ("/jobs/<job_id>/cancel", "POST", routes.cancel),
        ("/jobs/<job_id>/retry", "POST", routes.retry),
        ("/dead", "GET", routes.dead),
        ("/dead/retry", "POST", routes.retry_dead),
        ("/dead/discard", "POST", routes.discard_dead),
        ("/queues", "GET", routes.queues),
        ("/queues/<path:name>", "PUT", routes.configure),
        ("/queues/<path:name>/pause", "POST", routes.pause),
        ("/queues/<path:name>/resume", "POST", routes.resume),
        ("/nodes", "GET", routes.nodes),
        ("/schedules", "GET", routes.schedules),
        ("/schedules/<path:name>", "GET", routes.schedule),
        ("/schedules/<path:name>", "PUT", routes.put_schedule),
        ("/schedules/<path:name>", "DELETE", routes.unschedule),
        ("/schedules/<path:name>/pause", "POST", routes.pause_schedule),
        ("/schedules/<path:name>/resume", "POST", routes.resume_schedule),
        ("/schedules/<path:name>/trigger", "POST", routes.trigger_schedule),
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
        key = ", ".join(request.headers.getlist("Idempotency-Key")) if "Idempotency-Key" in request.headers else None
        return _response(await submit(self._backend, request.headers.get("Content-Type"), body, key))

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
        seconds = _wait(request.args.get("wait"))
        if not seconds:
            return _json(await self._found(_job_id(job_id)))
        return _json(_existing(job_id, await watch.ended(self._backend, _job_id(job_id), seconds)))

    async def events(self, job_id: str) -> Response:
        if request.headers.get("Last-Event-ID") == watch.LAST_ID:
            return Response("", HTTPStatus.NO_CONTENT)  # an EventSource connects again until it is told so
        with self._backend.watch(_job_id(job_id)):  # refused here, where there still is an answer for it
            job = await self._found(_job_id(job_id))
        headers = {"Content-Type": watch.CONTENT_TYPE, "X-Accel-Buffering": "no"}
        if request.method == "HEAD":
            return Response("", headers=headers)
        response = Response(watch.events(self._backend, job["id"], request.scope["state"][PROLONG]), headers=headers)
        response.timeout = None
        return response

    async def cancel(self, job_id: str) -> Response:
        answer = await self._steer(_job_id(job_id), self._backend.cancel, "cancelled", "it has ended already")
        if answer["state"] == "inflight":
            return _response(json_answer(answer, HTTPStatus.ACCEPTED))  # its node hears of it
        return _json(answer)

    async def retry(self, job_id: str) -> Response:
        return _json(await self._steer(_job_id(job_id), self._backend.retry, "pending", "only dead jobs can be retried"))

    async def discard(self, job_id: str) -> Response:
        job = await self._found(_job_id(job_id))
        if not await self._backend.discard(job["id"]):
            raise Conflict(f"The job is {job['state']}: only dead jobs can be deleted.")
        return _json({**job, "state": "discarded"})

    async def dead(self) -> Response:
        asked = dead_letters.page(request.args)
        jobs = await self._backend.dead(asked.wanted, asked.limit, asked.after)
        return _json(dead_letters.listed(jobs, asked.limit))

    async def retry_dead(self) -> Response:
        return _json({"jobs": await self._backend.retry_dead(await _wanted())})

    async def discard_dead(self) -> Response:
        return _json({"jobs": await self._backend.discard_dead(await _wanted())})

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

    async def schedules(self) -> Response:
        return _json(await self._backend.schedules())

    async def schedule(self, name: str) -> Response:
        return _json(await self._found_schedule(name))

    async def put_schedule(self, name: str) -> Response:
        schedule = schedules.parse(name, await request.get_data(cache=False, as_text=False, parse_form_data=False))
        new = await self._backend.put_schedule(schedule)
        return _response(json_answer(await self._found_schedule(name), 201 if new else 200))

    async def unschedule(self, name: str) -> Response:
        schedule = await self._found_schedule(name)
        await self._backend.unschedule(name)
        return _json(schedule)

    async def pause_schedule(self, name: str) -> Response:
        return await self._pause_schedule(name, paused=True)

    async def resume_schedule(self, name: str) -> Response:
        return await self._pause_schedule(name, paused=False)

    async def trigger_schedule(self, name: str) -> Response:
        await self._found_schedule(name)
        job_id = await self._backend.trigger_schedule(name)
        if job_id is None:
            raise _no_schedule(name)
        return _response(json_answer({"id": job_id}, 201, {"Location": f"/jobs/{job_id}"}))

    async def _found_schedule(self, name: str) -> dict[str, Any]:
        # No such name can be asked for in PostgreSQL, or have been given.
        found = [] if len(name) > MAX_NAME_LENGTH or "\0" in name else await self._backend.schedules(name)
        if not found:
            raise _no_schedule(name)
        return found[0]

    async def _pause_schedule(self, name: str, *, paused: bool) -> Response:
        await self._found_schedule(name)
        await self._backend.pause_schedule(name, paused)
        return _json(await self._found_schedule(name))

    async def _found(self, job_id: str) -> dict[str, Any]:
        return _existing(job_id, await self._backend.job(job_id))

    async def _steer(self, job_id: str, act: Callable[[str], Awaitable[bool]], becomes: str, rule: str) -> dict[str, Any]:
        if await act(job_id):
            # It may be gone already, where none is kept.
            return await self._backend.job(job_id) or {"id": job_id, "state": becomes}
        job = await self._found(job_id)
        raise Conflict(f"The job is {job['state']}: {rule}.")

    async def _pause(self, name: str, *, paused: bool) -> Response:
        _check_queue(name)
        await self._backend.pause(name, paused)
        return _json({"queue": name, "paused": paused})


def _no_schedule(name: str) -> NotFound:
    return NotFound(f"There is no schedule {name[:MAX_NAME_LENGTH]!r}.")


async def _wanted() -> DeadFilter:
    body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    return dead_letters.wanted_by_body(request.headers.get("Content-Type"), body)


def _check_queue(name: str) -> None:
    if len(name) > MAX_NAME_LENGTH or "\0" in name:
        raise BadRequest(f"A queue's name has at most {MAX_NAME_LENGTH} characters, none of them U+0000.")


def _job_id(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise BadRequest("A job's id is a UUID.") from None


def _existing(job_id: str, job: dict[str, Any] | None) -> dict[str, Any]:
    if job is None:
        raise NotFound(f"There is no job {job_id}: it never was, or was deleted when its time to be kept was over.")
    return job


def _wait(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= watch.MAX_WAIT:
        raise BadRequest(f"wait is a number of seconds, from 0 to {watch.MAX_WAIT:g}.")
    return seconds


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
