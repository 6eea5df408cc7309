"""The routes of queues."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from jobqueue.engine.operations import Operations
from jobqueue.errors import InvalidQueueSetting, Missing
from jobqueue.http import limits
from jobqueue.http.api import models
from jobqueue.http.api.routes import Route
from jobqueue.http.bodies.json_object import Body
from jobqueue.http.responses.answers import Answer, json_answer
from jobqueue.queue_settings import QueueSettings, queue_settings

BODY = Body(
    QueueSettings, "the settings of a queue", InvalidQueueSetting, limits.MAX_SETTINGS_BYTES, {"rate": 5, "max_running": None}
)


def routes(node: Operations) -> list[Route]:
    """Make the routes of queues."""
    views = _Views(node)
    path = "/queues/{name}"
    return [
        Route("GET", "/queues", "read", "List the queues", views.listed, answers={HTTPStatus.OK: list[models.QueueState]}),
        Route("GET", path, "read", "Show a queue", views.one, answers={HTTPStatus.OK: models.QueueState}),
        Route(
            "PUT",
            path,
            "admin",
            "Set a queue's limits and aging",
            views.configure,
            body=BODY,
            answers={HTTPStatus.OK: models.QueueState},
        ),
        Route(
            "POST", f"{path}/pause", "admin", "Pause a queue on all nodes", views.pause, answers={HTTPStatus.OK: models.PausedQueue}
        ),
        Route(
            "POST",
            f"{path}/resume",
            "admin",
            "Resume a queue on all nodes",
            views.resume,
            answers={HTTPStatus.OK: models.PausedQueue},
        ),
    ]


class _Views:
    def __init__(self, node: Operations) -> None:
        self._node = node

    async def listed(self) -> Answer:
        return json_answer(await self._node.depths.queues())

    async def one(self, name: str) -> Answer:
        queue = next((queue for queue in await self._node.depths.queues() if queue.name == name), None)
        if queue is None:
            raise Missing(f"queue {name!r} not found: no node works it, it has no settings, and it has no jobs", field="name")
        return json_answer(queue)

    async def configure(self, name: str, body: Mapping[str, Any]) -> Answer:
        await self._node.store.configure(name, queue_settings(body))
        return json_answer(next(queue for queue in await self._node.store.queues() if queue.name == name))

    async def pause(self, name: str) -> Answer:
        return await self._set_paused(name, paused=True)

    async def resume(self, name: str) -> Answer:
        return await self._set_paused(name, paused=False)

    async def _set_paused(self, name: str, *, paused: bool) -> Answer:
        await self._node.store.pause(name, paused=paused)
        return json_answer({"queue": name, "paused": paused})
