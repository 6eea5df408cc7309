"""The data of ``jobqueue top`` at one time, as a document and as a screen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from jobqueue.cli.output import number, printable, seconds, table
from jobqueue.cli.queues import STATES
from jobqueue.cli.rates import COUNTERS, Change, Histogram, Scrape, quantile

QUEUES, KINDS, NODES = 15, 8, 10
"""Number of rows of each table: the deepest queues, the slowest kinds, the first nodes."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a service.

    Attributes:
        url: the URL of the service.
        at: the time of the snapshot.
        scrape: the metrics of the node that responded.
        change: the rates of this node over the last few seconds; None before the second scrape.
        queues: the response of ``GET /queues``, over all nodes.
        nodes: the response of ``GET /nodes``.
    """

    url: str
    at: datetime
    scrape: Scrape
    change: Change | None
    queues: list[dict[str, Any]]
    nodes: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """Return a JSON document. Rates and latencies belong to the node in `node`; everything else covers all nodes."""
        change = self.change
        return {
            "url": self.url,
            "at": self.at.isoformat(),
            "node": self.scrape.node or None,
            "seconds": change and round(change.seconds, 3),
            "rates": change and {name: round(rate, 3) for name, rate in change.rates.items()},
            "latencies": change and {"wait": _quantiles(change.wait), "run": _quantiles(change.run)},
            "kinds": [
                {
                    "queue": kind.queue,
                    "kind": kind.kind,
                    "completed": round(kind.completed, 3),
                    "failed": round(kind.failed, 3),
                    "run": _quantiles(kind.run),
                }
                for kind in (change.kinds if change else ())
            ],
            "queues": self.queues,
            "nodes": self.nodes,
        }

    def screen(self, trouble: str | None = None, *, wide: bool = True) -> RenderableType:
        """Render the screen.

        Args:
            trouble: why the data is not current; None if the data is current.
            wide: whether to show the optional columns.
        """
        parts = [self._head(), *_trouble(trouble), Text(), *self._rates()]
        parts += _section(self._queues(wide), len(self.queues) - QUEUES)
        if self.change is not None and self.change.kinds:
            parts += _section(self._kinds(), len(self.change.kinds) - KINDS)
        parts += _section(self._nodes(wide), len(self.nodes) - NODES)
        return Group(*parts)

    def _head(self) -> Text:
        return Text(f"jobqueue top  {self.url}  {self.at.astimezone():%H:%M:%S}  {_many(len(self.nodes), 'node')}", "bold")

    def _rates(self) -> Iterator[RenderableType]:
        everywhere = [queue["throughput"] for queue in self.queues if queue.get("throughput")]
        if everywhere:
            done, failed = (sum(each.get(name) or 0.0 for each in everywhere) for name in ("completed", "failed"))
            yield Text(f"all nodes, last minute: completed {_rate(done)}, failed {_rate(failed)}")
        if not self.scrape.node:
            yield Text("no rates and latencies: they belong to a node, so give the URL of a node with --url")
            return
        here = f"node {self.scrape.node} on {printable(self.scrape.host)}"
        if self.change is None:
            yield Text(f"{here}: measuring ...")
            return
        yield Text(f"{here}, last {self.change.seconds:.0f} s:")
        yield Text("  " + ", ".join(f"{name} {_rate(self.change.rates[name])}" for name in COUNTERS.values()))
        yield Text("  " + ", ".join(f"{name} {_latencies(getattr(self.change, name))}" for name in ("wait", "run")))

    def _queues(self, wide: bool) -> RenderableType:
        states = STATES if wide else ("pending", "inflight", "dead")
        throughput = {"completed": ">DONE/S", "failed": ">FAILED/S"} if wide else {"completed": ">DONE/S"}
        deepest = sorted(self.queues, key=lambda queue: -sum((queue.get("depth") or {}).get(state, 0) for state in STATES[:2]))
        return table(
            ["QUEUE", *(f">{state.upper()}" for state in states), ">OLDEST", *throughput.values(), ""],
            (
                [
                    queue["name"],
                    *(f"{(queue.get('depth') or {}).get(state, 0):,}" for state in states),
                    seconds((queue.get("oldest") or {}).get("pending")),
                    *(number((queue.get("throughput") or {}).get(name)) for name in throughput),
                    "paused" if queue.get("paused") else None,
                ]
                for queue in deepest[:QUEUES]
            ),
            cut=["QUEUE"],
        )

    def _kinds(self) -> RenderableType:
        return table(
            ["SLOWEST KIND", "QUEUE", ">DONE/S", ">FAILED/S", ">RUN P50", ">P95"],
            (
                [
                    kind.kind,
                    kind.queue,
                    number(kind.completed),
                    number(kind.failed),
                    *(_latency(quantile(kind.run, share)) for share in (0.5, 0.95)),
                ]
                for kind in (self.change.kinds[:KINDS] if self.change else ())
            ),
            cut=["SLOWEST KIND", "QUEUE"],
        )

    def _nodes(self, wide: bool) -> RenderableType:
        return table(
            ["NODE", "HOST", ">PID", ">WORKERS", "RUNNING"],
            (
                [
                    node["id"] if wide else node["id"][:8],
                    node["host"],
                    node["pid"],
                    sum((node.get("queues") or {}).values()),
                    _running(node.get("running") or ()),
                ]
                for node in self.nodes[:NODES]
            ),
            cut=["HOST", "RUNNING"],
        )


def waiting(url: str, trouble: str) -> RenderableType:
    """Render the screen of a service that has not responded yet."""
    return Group(Text(f"jobqueue top  {url}", "bold"), *_trouble(trouble))


def _trouble(trouble: str | None) -> list[RenderableType]:
    return [Text(printable(trouble), "bold red")] if trouble is not None else []


def _section(content: RenderableType, more: int) -> list[RenderableType]:
    return [Text(), content, *([Text(f"and {more:,} more")] if more > 0 else [])]


def _running(shares: Iterable[dict[str, Any]]) -> str:
    longest = sorted(shares, key=lambda share: -(share.get("oldest") or 0.0))
    return ", ".join(f"{share['kind']} {share['jobs']} ({seconds(share.get('oldest'))})" for share in longest)


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    return {"p50": quantile(histogram, 0.5), "p95": quantile(histogram, 0.95), "jobs": histogram.total()}


def _latencies(histogram: Histogram) -> str:
    return f"p50 {_latency(quantile(histogram, 0.5))} p95 {_latency(quantile(histogram, 0.95))}" if histogram else "-"


def _latency(value: float | None) -> str:
    return f"{value * 1000:.3g} ms" if value is not None and value < 1 else seconds(value)


def _rate(value: float) -> str:
    return f"{number(value)}/s"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
