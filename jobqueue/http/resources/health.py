"""The routes of the service itself: health, readiness, metrics, and nodes."""

from __future__ import annotations

from http import HTTPStatus

from jobqueue.engine.operations import Operations
from jobqueue.http.api import models
from jobqueue.http.api.routes import Route
from jobqueue.http.responses.answers import Answer, json_answer


def routes(node: Operations) -> list[Route]:
    """Make the routes of the service itself."""

    async def health() -> Answer:
        return json_answer({"status": "ok"})

    async def ready() -> Answer:
        if reasons := node.troubles():
            return json_answer({"status": "unavailable", "reasons": reasons}, 503)
        return json_answer({"status": "ok"})

    async def metrics() -> Answer:
        body, content_type = await node.metrics()
        return Answer(200, {"Content-Type": content_type}, body)

    async def nodes() -> Answer:
        return json_answer(await node.store.nodes())

    return [
        Route(
            method="GET",
            path="/health",
            needs="health",
            summary="Check that the service is alive",
            view=health,
            answers={HTTPStatus.OK: models.Health},
            refuses=frozenset(),
        ),
        Route(
            method="GET",
            path="/health/ready",
            needs="health",
            summary="Check that the node is ready to run jobs",
            view=ready,
            answers={HTTPStatus.OK: models.Health, HTTPStatus.SERVICE_UNAVAILABLE: models.Trouble},
            refuses=frozenset(),
        ),
        Route(
            method="GET",
            path="/metrics",
            needs="metrics",
            summary="Show metrics in Prometheus's text format",
            view=metrics,
            answers={HTTPStatus.OK: str},
            media_type="text/plain",
        ),
        Route(
            method="GET",
            path="/nodes",
            needs="read",
            summary="List the running nodes",
            view=nodes,
            answers={HTTPStatus.OK: list[models.NodeState]},
        ),
    ]
