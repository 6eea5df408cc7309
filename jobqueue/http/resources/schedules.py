"""The routes of cron schedules."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from msgspec import UNSET, UnsetType

from jobqueue.engine.operations import Operations
from jobqueue.errors import InvalidSchedule, Missing, UnprocessableSchedule
from jobqueue.http import limits
from jobqueue.http.api import models
from jobqueue.http.api.routes import Route
from jobqueue.http.bodies.json_object import Body
from jobqueue.http.responses.answers import Answer, json_answer
from jobqueue.job import Name, PathName
from jobqueue.storage.roles.inspect import StoredSchedule
from jobqueue.timetable import CronSchedule, schedule_of


class ScheduleSettings(CronSchedule, frozen=True, kw_only=True):
    """A schedule whose name is in the path.

    Attributes:
        name: if given, must be the name in the path.
        kind: the kind of its jobs; by default the schedule's name.
    """

    name: PathName | UnsetType = UNSET  # type: ignore[assignment]
    kind: Name | UnsetType = UNSET  # type: ignore[assignment]


EXAMPLE = {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "kind": "report"}
BODY = Body(ScheduleSettings, "a schedule", InvalidSchedule, limits.MAX_SCHEDULE_BYTES, EXAMPLE)


def routes(node: Operations) -> list[Route]:
    """Make the routes of schedules."""
    views = _Views(node)
    path = "/schedules/{name}"
    shown: dict[int, Any] = {HTTPStatus.OK: models.ScheduleState}
    return [
        Route("GET", "/schedules", "read", "List the schedules", views.listed, answers={HTTPStatus.OK: list[models.ScheduleState]}),
        Route(method="GET", path=path, needs="read", summary="Show a schedule", view=views.one, answers=shown, tagged=True),
        Route(
            "PUT",
            path,
            "admin",
            "Create or change a schedule",
            views.put,
            body=BODY,
            answers={HTTPStatus.CREATED: models.ScheduleState, **shown},
            refuses=frozenset({HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE}),
        ),
        Route(method="DELETE", path=path, needs="admin", summary="Delete a schedule", view=views.delete, answers=shown),
        Route(method="POST", path=f"{path}/pause", needs="admin", summary="Pause a schedule", view=views.pause, answers=shown),
        Route(method="POST", path=f"{path}/resume", needs="admin", summary="Resume a schedule", view=views.resume, answers=shown),
        Route(
            "POST",
            f"{path}/trigger",
            "admin",
            "Submit a schedule's job now",
            views.trigger,
            answers={HTTPStatus.CREATED: models.MadeJob},
        ),
    ]


class _Views:
    def __init__(self, node: Operations) -> None:
        self._node = node

    async def _found(self, name: str) -> StoredSchedule:
        found = await self._node.store.schedules(name)
        if not found:
            raise _no_schedule(name)
        return found[0]

    async def listed(self) -> Answer:
        return json_answer(await self._node.store.schedules())

    async def one(self, name: str) -> Answer:
        return json_answer(await self._found(name))

    async def put(self, name: str, body: Mapping[str, Any]) -> Answer:
        new = await self._node.store.put_schedule(schedule_named(name, body))
        return json_answer(await self._found(name), 201 if new else 200)

    async def delete(self, name: str) -> Answer:
        schedule = await self._found(name)
        await self._node.store.unschedule(name)
        return json_answer(schedule)

    async def pause(self, name: str) -> Answer:
        return await self._set_paused(name, paused=True)

    async def resume(self, name: str) -> Answer:
        return await self._set_paused(name, paused=False)

    async def _set_paused(self, name: str, *, paused: bool) -> Answer:
        await self._found(name)
        await self._node.store.pause_schedule(name, paused=paused)
        return json_answer(await self._found(name))

    async def trigger(self, name: str) -> Answer:
        await self._found(name)
        job_id = await self._node.store.trigger_schedule(name)
        if job_id is None:
            raise _no_schedule(name)
        return json_answer({"id": job_id}, 201, {"Location": f"/jobs/{job_id}"})


def schedule_named(name: str, given: Mapping[str, Any]) -> CronSchedule:
    """Make a schedule from a body, with the name in the path.

    Raises:
        InvalidSchedule: the body is not a schedule.
        UnprocessableSchedule: the body has another name, or `schedule_of` raises this error.
    """
    if given.get("name", name) != name:
        raise UnprocessableSchedule("name must be the name in the URL", field="name")
    return schedule_of({**given, "name": name})


def _no_schedule(name: str) -> Missing:
    return Missing(f"schedule {name!r} not found", field="name")
