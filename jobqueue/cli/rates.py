"""What happened between two scrapes of a node's metrics: rates, and quantiles of durations.

::

    before, after = read(text, at), read(later_text, later)
    between = change(before, after)
    between.rates["completed"], between.run.quantile(0.95)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

COUNTERS = {
    "jobqueue_jobs_submitted_total": "submitted",
    "jobqueue_jobs_completed_total": "completed",
    "jobqueue_attempts_failed_total": "failed",
    "jobqueue_jobs_retried_total": "retried",
    "jobqueue_jobs_dead_total": "dead",
}
"""The counters whose rates are of interest, and what they are called here."""

HISTOGRAMS = {"jobqueue_job_wait_seconds_bucket": "wait", "jobqueue_job_run_seconds_bucket": "run"}

Pair = tuple[str, str]
"""A queue and a kind."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many observations fell between two bounds.

    Attributes:
        bounds: the upper ones, ascending; the last is infinite.
        counts: of each bucket alone.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.counts)

    def since(self, earlier: Histogram) -> Histogram:
        """Take away what was there earlier; one with other buckets was not there."""
        if earlier.bounds != self.bounds:
            return self
        return Histogram(self.bounds, tuple(max(0.0, now - then) for now, then in zip(self.counts, earlier.counts, strict=True)))

    def plus(self, other: Histogram) -> Histogram:
        """Add another one with the same buckets; one without any is nothing."""
        if not self.bounds or not other.bounds:
            return other if not self.bounds else self
        return Histogram(self.bounds, tuple(one + two for one, two in zip(self.counts, other.counts, strict=True)))

    def quantile(self, share: float) -> float | None:
        """Estimate the value below which such a share of the observations is; None without observations.

        As Prometheus's ``histogram_quantile`` does: observations are taken to be spread evenly over their bucket, and what is above
        the last finite bound to be at it.
        """
        if not self.total:
            return None
        wanted = share * self.total
        below = 0.0
        for lower, upper, count in zip((0.0, *self.bounds), self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return lower if upper == float("inf") else lower + (upper - lower) * max(0.0, wanted - below) / count
            below += count
        return max(bound for bound in self.bounds if bound != float("inf"))  # rounding alone leads here


@dataclass(frozen=True, slots=True)
class Scrape:
    """One answer of ``GET /metrics``.

    Attributes:
        at: when it came, in seconds of a clock that only goes on.
        node: the id of the node that answered, which may be any of those that share a port.
        counters: by what they count, queue and kind.
        wait: from available to claimed.
        run: from the start of an attempt to its end.
    """

    at: float
    node: str = ""
    host: str = ""
    counters: dict[tuple[str, str, str], float] = field(default_factory=dict)
    wait: dict[Pair, Histogram] = field(default_factory=dict)
    run: dict[Pair, Histogram] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KindChange:
    """What happened to the jobs of a kind.

    Attributes:
        completed: jobs a second.
        failed: attempts a second.
    """

    queue: str
    kind: str
    completed: float
    failed: float
    run: Histogram


@dataclass(frozen=True, slots=True)
class Change:
    """What happened on a node between two scrapes.

    Attributes:
        seconds: how long that was.
        rates: a second, of each of `COUNTERS`.
        kinds: those of which an attempt ended, the slowest first.
    """

    node: str
    seconds: float
    rates: dict[str, float]
    wait: Histogram
    run: Histogram
    kinds: list[KindChange]


def read(text: str, at: float) -> Scrape:
    """Read an answer in Prometheus's text format."""
    scrape = Scrape(at)
    node, host = "", ""
    buckets: dict[tuple[str, Pair], list[tuple[float, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            if (counted := COUNTERS.get(sample.name)) is not None:
                scrape.counters[counted, labels["queue"], labels["kind"]] = sample.value
            elif (measured := HISTOGRAMS.get(sample.name)) is not None:
                pair = labels["queue"], labels["kind"]
                buckets.setdefault((measured, pair), []).append((float(labels["le"]), sample.value))
            elif sample.name == "jobqueue_node_info":
                node, host = labels["node"], labels["host"]
    of_name = {"wait": scrape.wait, "run": scrape.run}
    for (measured, pair), cumulative in buckets.items():
        bounds, sums = zip(*sorted(cumulative), strict=True)
        of_name[measured][pair] = Histogram(bounds, tuple(after - before for before, after in pairwise((0.0, *sums))))
    return Scrape(at, node, host, scrape.counters, scrape.wait, scrape.run)


def change(before: Scrape, after: Scrape) -> Change | None:
    """Tell what happened between two scrapes; None when they are of two nodes, or of one moment."""
    seconds = after.at - before.at
    if before.node != after.node or seconds <= 0:
        return None

    def rate(counter: tuple[str, str, str]) -> float:
        return max(0.0, after.counters.get(counter, 0.0) - before.counters.get(counter, 0.0)) / seconds

    rates = dict.fromkeys(COUNTERS.values(), 0.0)
    for counter in after.counters:
        rates[counter[0]] += rate(counter)
    runs = _since(before.run, after.run)
    kinds = [
        KindChange(*pair, completed=rate(("completed", *pair)), failed=rate(("failed", *pair)), run=run)
        for pair, run in runs.items()
        if run.total
    ]
    kinds.sort(key=lambda kind: kind.run.quantile(0.95) or 0.0, reverse=True)
    return Change(after.node, seconds, rates, _sum(_since(before.wait, after.wait).values()), _sum(runs.values()), kinds)


def _since(before: dict[Pair, Histogram], after: dict[Pair, Histogram]) -> dict[Pair, Histogram]:
    return {pair: histogram.since(before.get(pair, Histogram())) for pair, histogram in after.items()}


def _sum(histograms: Iterable[Histogram]) -> Histogram:
    return reduce(Histogram.plus, histograms, Histogram())
