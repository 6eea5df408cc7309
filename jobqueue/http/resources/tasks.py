"""The route of a node's live Trio tasks."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Protocol

from jobqueue.http.api import models
from jobqueue.http.api.routes import Route
from jobqueue.http.responses.answers import Answer, json_answer


class Introspected(Protocol):
    """The method of a node that shows its tasks."""

    def tasks(self) -> dict[str, Any]:
        """Return the tree of its live tasks."""
        ...


def routes(node: Introspected) -> list[Route]:
    """Make the route of the task tree."""

    async def tasks() -> Answer:
        return json_answer(node.tasks())

    return [
        Route(
            method="GET",
            path="/tasks",
            needs="read",
            summary="Show the live Trio tasks of the node that responds",
            view=tasks,
            answers={HTTPStatus.OK: models.Tasks},
            refuses=frozenset(),
        )
    ]
