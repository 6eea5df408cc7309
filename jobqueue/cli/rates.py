"""Compute rates and quantiles of durations from two scrapes of the metrics of a node.

::

    before, after = read(text, at), read(later_text, later)
    between = change(before, after)
    between.rates["completed"], quantile(between.run, 0.95)
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import NamedTuple

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

Series = tuple[str, str, str]
"""The name of a rate or of a histogram, a queue, and a kind."""

Histogram = Counter[tuple[float, float]]
"""The number of observations per bucket. A bucket is its lower and its upper bound; the last upper bound is infinite."""


class Scrape(NamedTuple):
    """One response of ``GET /metrics``.

    Attributes:
        at: the time of the response, in seconds of a monotonic clock.
        node: the id of the node that responded; several nodes can share a port.
        counters: the counters.
        buckets: the observations per series and bucket. ``wait`` is the time for which a job was available before its claim, and
            ``run`` is the time from the start of an attempt to its end.
    """

    at: float
    node: str
    host: str
    counters: Counter[Series]
    buckets: Counter[tuple[Series, tuple[float, float]]]


class KindChange(NamedTuple):
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


class Change(NamedTuple):
    """The rates and durations of a node between two scrapes.

    Attributes:
        seconds: the time between the scrapes.
        rates: events per second, for each of `COUNTERS`.
        kinds: the kinds with at least one attempt that ended between the scrapes, slowest first.
    """

    seconds: float
    rates: dict[str, float]
    wait: Histogram
    run: Histogram
    kinds: list[KindChange]


def read(text: str, at: float) -> Scrape:
    """Parse a response in the text format of Prometheus."""
    node, host = "", ""
    scrape = Scrape(at, node, host, Counter(), Counter())
    last, lower, below = None, 0.0, 0
    for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
        labels = sample.labels
        if (counted := COUNTERS.get(sample.name)) is not None:
            scrape.counters[counted, labels["queue"], labels["kind"]] = int(sample.value)
        elif (measured := HISTOGRAMS.get(sample.name)) is not None:
            # The buckets of a series come one after the other, in ascending order, and are cumulative.
            series, upper = (measured, labels["queue"], labels["kind"]), float(labels["le"])
            if series != last:
                last, lower, below = series, 0.0, 0
            scrape.buckets[series, (lower, upper)] = int(sample.value) - below
            lower, below = upper, int(sample.value)
        elif sample.name == "jobqueue_node_info":
            node, host = labels["node"], labels["host"]
    return scrape._replace(node=node, host=host)


def change(before: Scrape, after: Scrape) -> Change | None:
    """Compare two scrapes; return None if they are from different nodes or from the same time."""
    seconds = after.at - before.at
    if before.node != after.node or seconds <= 0:
        return None
    rates = {series: count / seconds for series, count in (after.counters - before.counters).items()}
    totals: dict[str, Histogram] = {"wait": Counter(), "run": Counter()}
    runs: dict[tuple[str, str], Histogram] = defaultdict(Counter)
    for ((measured, queue, kind), bucket), count in (after.buckets - before.buckets).items():
        totals[measured][bucket] += count
        if measured == "run":
            runs[queue, kind][bucket] += count
    kinds = [
        KindChange(*pair, completed=rates.get(("completed", *pair), 0.0), failed=rates.get(("failed", *pair), 0.0), run=run)
        for pair, run in runs.items()
    ]
    kinds.sort(key=lambda kind: quantile(kind.run, 0.95) or 0.0, reverse=True)
    by_name = {name: sum(rate for (counted, *_), rate in rates.items() if counted == name) for name in COUNTERS.values()}
    return Change(seconds, by_name, totals["wait"], totals["run"], kinds)


def quantile(histogram: Histogram, share: float) -> float | None:
    """Estimate a quantile; None without observations.

    Works as ``histogram_quantile`` of Prometheus. It assumes that the observations of a bucket are spread evenly, and that
    observations above the last finite bound are equal to it.

    Args:
        share: the quantile, from 0 to 1.
    """
    wanted = share * histogram.total()
    below = 0
    for (lower, upper), count in sorted(histogram.items()):
        if count and below + count >= wanted:
            return lower if upper == math.inf else lower + (upper - lower) * (wanted - below) / count
        below += count
    return None
