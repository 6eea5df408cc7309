"""The route of a node's live Trio tasks."""

from __future__ import annotations

from http import HTTPStatus

from jobqueue.engine.operations import Operations
from jobqueue.http.api import converters, models
from jobqueue.http.api.routes import Route
from jobqueue.http.responses.answers import Answer, json_answer


def routes(node: Operations) -> list[Route]:
    """Make the route of the task tree."""

    async def tasks() -> Answer:
        return json_answer(converters.tasks(node.lease.node.id, node.tasks.look()))

    return [
        Route(
            "GET",
            "/tasks",
            "read",
            "Show the live Trio tasks of the node that responds",
            tasks,
            answers={HTTPStatus.OK: models.Tasks},
            refuses=frozenset(),
        )
    ]
