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
        return json_answer(node.health())

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
            "GET",
            "/health",
            "health",
            "Check that the service is alive",
            health,
            answers={HTTPStatus.OK: models.Health},
            refuses=frozenset(),
        ),
        Route(
            "GET",
            "/health/ready",
            "health",
            "Check that the node is ready to run jobs",
            ready,
            answers={HTTPStatus.OK: models.Health, HTTPStatus.SERVICE_UNAVAILABLE: models.Trouble},
            refuses=frozenset(),
        ),
        Route(
            "GET",
            "/metrics",
            "metrics",
            "Show metrics in Prometheus's text format",
            metrics,
            answers={HTTPStatus.OK: str},
            media_type="text/plain",
        ),
        Route("GET", "/nodes", "read", "List the running nodes", nodes, answers={HTTPStatus.OK: list[models.NodeState]}),
    ]
