"""The routes of cron schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from werkzeug.exceptions import NotFound

from jobqueue.errors import InvalidSchedule
from jobqueue.http import limits
from jobqueue.http.answers import Answer, json_answer
from jobqueue.http.objects import Body
from jobqueue.http.routes import Route
from jobqueue.job import MAX_NAME_LENGTH
from jobqueue.timetable import CronSchedule, schedule_of


class Scheduling(Protocol):
    """A node that can show and change schedules."""

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


BODY = Body(CronSchedule, "a schedule", InvalidSchedule, limits.MAX_SCHEDULE_BYTES)


def routes(node: Scheduling) -> list[Route]:
    """Make the routes of a node."""
    views = _Views(node)
    path = "/schedules/{name}"
    return [
        Route(method="GET", path="/schedules", needs="read", summary="List the schedules", view=views.listed),
        Route(method="GET", path=path, needs="read", summary="Show a schedule", view=views.one),
        Route(method="PUT", path=path, needs="admin", summary="Make a schedule or change it", view=views.put, body=BODY),
        Route(method="DELETE", path=path, needs="admin", summary="Delete a schedule", view=views.delete),
        Route(method="POST", path=f"{path}/pause", needs="admin", summary="Pause a schedule", view=views.pause),
        Route(method="POST", path=f"{path}/resume", needs="admin", summary="Resume a schedule", view=views.resume),
        Route(method="POST", path=f"{path}/trigger", needs="admin", summary="Submit a schedule's job now", view=views.trigger),
    ]


class _Views:
    def __init__(self, node: Scheduling) -> None:
        self._node = node

    async def _found(self, name: str) -> dict[str, Any]:
        # No such name can be asked for in PostgreSQL, or have been given.
        rows = [] if len(name) > MAX_NAME_LENGTH or "\0" in name else await self._node.schedules(name)
        if not rows:
            raise _no_schedule(name)
        return rows[0]

    async def listed(self) -> Answer:
        return json_answer(await self._node.schedules())

    async def one(self, name: str) -> Answer:
        return json_answer(await self._found(name))

    async def put(self, name: str, body: Mapping[str, Any]) -> Answer:
        new = await self._node.put_schedule(schedule_named(name, body))
        return json_answer(await self._found(name), 201 if new else 200)

    async def delete(self, name: str) -> Answer:
        schedule = await self._found(name)
        await self._node.unschedule(name)
        return json_answer(schedule)

    async def pause(self, name: str) -> Answer:
        return await self._set_paused(name, paused=True)

    async def resume(self, name: str) -> Answer:
        return await self._set_paused(name, paused=False)

    async def _set_paused(self, name: str, *, paused: bool) -> Answer:
        await self._found(name)
        await self._node.pause_schedule(name, paused)
        return json_answer(await self._found(name))

    async def trigger(self, name: str) -> Answer:
        await self._found(name)
        job_id = await self._node.trigger_schedule(name)
        if job_id is None:
            raise _no_schedule(name)
        return json_answer({"id": job_id}, 201, {"Location": f"/jobs/{job_id}"})


def schedule_named(name: str, given: Mapping[str, Any]) -> CronSchedule:
    """Make the schedule of a name of what a body says.

    Raises:
        InvalidSchedule: it is none, or says another name.
    """
    if given.get("name", name) != name:
        raise InvalidSchedule("name must be the one in the URL", field="name")
    return schedule_of({**given, "name": name})


def _no_schedule(name: str) -> NotFound:
    return NotFound(f"There is no schedule {name[:MAX_NAME_LENGTH]!r}.")
