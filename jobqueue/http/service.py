"""The routes that are about the service itself: its health, its metrics, its nodes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Protocol

from jobqueue.http import shapes
from jobqueue.http.answers import Answer, json_answer
from jobqueue.http.routes import Route


class Observed(Protocol):
    """A node that can say how it is."""

    def troubles(self) -> list[str]:
        """Say why this node is not ready: nothing when it is able to work."""
        ...

    async def metrics(self) -> tuple[bytes, str]:
        """Return the metrics and their content type."""
        ...

    async def nodes(self) -> list[dict[str, Any]]:
        """Return every node that is running, with what it runs and does."""
        ...


def routes(node: Observed) -> list[Route]:
    """Make the routes of a node."""

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
        return json_answer(await node.nodes())

    return [
        Route(
            method="GET",
            path="/health",
            needs="health",
            summary="Whether the service is alive",
            view=health,
            answers={HTTPStatus.OK: shapes.Health},
            refuses=frozenset(),
        ),
        Route(
            method="GET",
            path="/health/ready",
            needs="health",
            summary="Whether the service is able to work",
            view=ready,
            answers={HTTPStatus.OK: shapes.Health, HTTPStatus.SERVICE_UNAVAILABLE: shapes.Trouble},
            refuses=frozenset(),
        ),
        Route(
            method="GET",
            path="/metrics",
            needs="metrics",
            summary="Metrics in Prometheus' text format",
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
            answers={HTTPStatus.OK: list[shapes.NodeState]},
        ),
    ]
