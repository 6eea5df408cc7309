"""Compute rates and quantiles of durations from two scrapes of the metrics of a node.

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
"""The counters, with the names of their rates."""

HISTOGRAMS = {"jobqueue_job_wait_seconds_bucket": "wait", "jobqueue_job_run_seconds_bucket": "run"}

Pair = tuple[str, str]
"""A queue and a kind."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """The number of observations per bucket.

    Attributes:
        bounds: the upper bounds, ascending; the last is infinite.
        counts: the observations of each bucket, not cumulative.
    """

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.counts)

    def since(self, earlier: Histogram) -> Histogram:
        """Subtract an earlier histogram. An earlier histogram with other buckets counts as empty."""
        if earlier.bounds != self.bounds:
            return self
        return Histogram(self.bounds, tuple(max(0.0, now - then) for now, then in zip(self.counts, earlier.counts, strict=True)))

    def plus(self, other: Histogram) -> Histogram:
        """Add a histogram with the same buckets, or an empty one."""
        if not self.bounds or not other.bounds:
            return other if not self.bounds else self
        return Histogram(self.bounds, tuple(one + two for one, two in zip(self.counts, other.counts, strict=True)))

    def quantile(self, share: float) -> float | None:
        """Estimate a quantile; None without observations.

        Works as ``histogram_quantile`` of Prometheus. It assumes that the observations of a bucket are spread evenly, and that
        observations above the last finite bound are equal to it.

        Args:
            share: the quantile, from 0 to 1.
        """
        if not self.total:
            return None
        wanted = share * self.total
        below = 0.0
        for lower, upper, count in zip((0.0, *self.bounds), self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return lower if upper == float("inf") else lower + (upper - lower) * max(0.0, wanted - below) / count
            below += count
        return max(bound for bound in self.bounds if bound != float("inf"))  # only rounding errors lead here


@dataclass(frozen=True, slots=True)
class Scrape:
    """One response of ``GET /metrics``.

    Attributes:
        at: the time of the response, in seconds of a monotonic clock.
        node: the id of the node that responded; several nodes can share a port.
        counters: values by name of the rate, queue and kind.
        wait: times for which jobs were available before their claim, by queue and kind.
        run: times from the start of an attempt to its end, by queue and kind.
    """

    at: float
    node: str = ""
    host: str = ""
    counters: dict[tuple[str, str, str], float] = field(default_factory=dict)
    wait: dict[Pair, Histogram] = field(default_factory=dict)
    run: dict[Pair, Histogram] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KindChange:
    """The rates of one kind between two scrapes.

    Attributes:
        completed: jobs per second.
        failed: attempts per second.
    """

    queue: str
    kind: str
    completed: float
    failed: float
    run: Histogram


@dataclass(frozen=True, slots=True)
class Change:
    """The rates and durations of a node between two scrapes.

    Attributes:
        seconds: the time between the scrapes.
        rates: events per second, for each of `COUNTERS`.
        kinds: the kinds with at least one attempt that ended between the scrapes, slowest first.
    """

    node: str
    seconds: float
    rates: dict[str, float]
    wait: Histogram
    run: Histogram
    kinds: list[KindChange]


def read(text: str, at: float) -> Scrape:
    """Parse a response in the text format of Prometheus."""
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
    """Compare two scrapes; return None if they are from different nodes or from the same time."""
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
