"""The Prometheus metrics of one node. The number of label sets is limited, so memory and scrapes stay small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from operator import add
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.utils import floatToGoString

from jobqueue import logs
from jobqueue.durations import BOUNDS, Durations
from jobqueue.job import Verdict

MAX_LABEL_PAIRS = 200
"""The maximum number of (queue, kind) pairs, and of (queue, state) pairs, with their own series; all others share ``other``."""

_OTHER = ("other", "other")

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_COMMIT_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 5, 10)


_PLACES = [*(BOUNDS.index(seconds) for seconds in _SECONDS), len(BOUNDS)]
"""The bounds that Prometheus gets, as positions in the finer `BOUNDS`. The last position stands for infinity."""


class Totals(NamedTuple):
    """The counts of a node since it started, over all queues and kinds; durations are in the buckets of `durations.BOUNDS`."""

    submitted: int
    completed: int
    failed: int
    dead: int
    waits: Sequence[int] = ()
    runs: Sequence[int] = ()


class KindMetrics:
    """The series of one (queue, kind) pair."""

    def __init__(self, families: _PerKind, queue: str, kind: str) -> None:
        self.submitted = families.submitted.labels(queue, kind)
        self.failed = families.failed.labels(queue, kind)
        self.dead = families.dead.labels(queue, kind)
        self.expired = families.expired.labels(queue, kind)
        self.recovered = families.recovered.labels(queue, kind)
        self.stale = families.stale.labels(queue, kind)
        self.unhandled = families.unhandled.labels(queue, kind)
        self.wait = Durations()
        self.run = Durations()
        self.by_outcome: dict[Verdict, Counter] = {
            "succeeded": families.completed.labels(queue, kind),
            "retry": families.retried.labels(queue, kind),
            "snoozed": families.snoozed.labels(queue, kind),
            "released": families.released.labels(queue, kind),
            "dead": self.dead,
            "cancelled": families.cancelled.labels(queue, kind),
        }


class _PerKind:
    """The metric families with the labels queue and kind."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"jobqueue_{name}", text, ("queue", "kind"), registry=registry)

        self.submitted = counter("jobs_submitted", "Jobs submitted and committed through this node.")
        self.completed = counter("jobs_completed", "Jobs that succeeded on this node.")
        self.failed = counter("attempts_failed", "Attempts that failed on this node, for any reason.")
        self.retried = counter("jobs_retried", "Failed attempts for which a retry was scheduled.")
        self.snoozed = counter("jobs_snoozed", "Attempts that the handler snoozed, to run again later.")
        self.released = counter("jobs_released", "Claimed jobs that were released without counting the attempt.")
        self.dead = counter("jobs_dead", "Jobs that became dead letters.")
        self.expired = counter("jobs_expired", "Jobs that died because they expired before they were started.")
        self.cancelled = counter("jobs_cancelled", "Jobs that were cancelled while this node held them.")
        self.recovered = counter("jobs_recovered", "Jobs that this node recovered from lost nodes.")
        self.stale = counter("stale_completions", "Outcomes rejected because this node no longer held the job.")
        self.unhandled = counter("jobs_unhandled", "Attempts of jobs whose kind has no handler on this node.")


class Metrics:
    """All series of a node, in a separate registry.

    Attributes:
        contained: returns the number of errors that each part of the node caught and survived, by the part's name.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._families = _PerKind(registry)
        self._bound: dict[tuple[str, str], KindMetrics] = {}
        self.contained: Callable[[], Mapping[str, int]] = dict
        registry.register(self)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"jobqueue_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"jobqueue_{name}", text, buckets=_COMMIT_SECONDS, registry=registry)

        self.submit_seconds = histogram("submit_commit_seconds", "Seconds from the arrival of a submission to its commit.")
        self.claim_seconds = histogram("claim_seconds", "Seconds that one claim takes in the database.")
        self.finish_seconds = histogram("finish_seconds", "Seconds that writing one batch of outcomes takes in the database.")
        self.depth = gauge("queue_depth", "Jobs in each state, over all nodes.", "queue", "state")
        self.oldest = gauge(
            "queue_oldest_seconds", "Age of the oldest job in each state, in seconds, over all nodes.", "queue", "state"
        )
        self.running = gauge("active_workers", "Workers of this node that are running a job.", "queue")
        self.workers = gauge("workers", "Workers of this node.", "queue")
        self.ready = gauge("ready_jobs", "Jobs claimed by this node that wait for a worker.", "queue")
        self.inflight = gauge("inflight_jobs", "Jobs that this node holds: ready, running, or finishing.")
        self.waiting_submissions = gauge("waiting_submissions", "Submitted jobs that wait for their commit.")
        self.lease_remaining = gauge("lease_remaining_seconds", "Seconds until this node's lease expires.")
        self.on_hold = gauge("on_hold", "1 if the node is on hold, because its database is a copy that nobody has adopted.")
        self.schema_version = gauge("schema_version", "The database's schema version.")
        self._node = gauge("node_info", "The id, host and version of this node; the value is 1.", "node", "host", "version")

    def of(self, queue: str, kind: str) -> KindMetrics:
        """Return the series of a queue and kind, or the shared series if there are too many pairs."""
        bound = self._bound.get((queue, kind))
        if bound is None:
            if len(self._bound) >= MAX_LABEL_PAIRS and (queue, kind) != _OTHER:
                return self.of(*_OTHER)
            bound = self._bound[queue, kind] = KindMetrics(self._families, queue, kind)
        return bound

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that have no counter in the registry: durations, contained errors, and dropped log lines."""
        errors = CounterMetricFamily(
            "jobqueue_contained_errors", "Errors that a part of this node caught and survived.", labels=("part",)
        )
        for part, count in self.contained().items():
            errors.add_metric((part,), count)
        yield errors
        yield CounterMetricFamily("jobqueue_log_lines_dropped", "Log lines that this process could not write.", logs.dropped())
        for name, text, durations in (
            ("job_wait_seconds", "Seconds from available to claimed, for first attempts.", "wait"),
            ("job_run_seconds", "Seconds from the start of an attempt to its end.", "run"),
        ):
            family = HistogramMetricFamily(f"jobqueue_{name}", text, labels=("queue", "kind"))
            for labels, bound in self._bound.items():
                counted: Durations = getattr(bound, durations)
                up_to = list(accumulate(counted.counts))
                buckets = zip((*map(floatToGoString, _SECONDS), "+Inf"), (up_to[place] for place in _PLACES), strict=True)
                family.add_metric(labels, list(buckets), counted.total)
            yield family

    def totals(self) -> Totals:
        """Return the sums over all queues and kinds."""
        waits, runs = ([0] * (len(BOUNDS) + 1) for _ in range(2))
        for bound in self._bound.values():
            waits = list(map(add, waits, bound.wait.counts))
            runs = list(map(add, runs, bound.run.counts))
        families = self._families
        return Totals(
            submitted=_total(families.submitted),
            completed=_total(families.completed),
            failed=_total(families.failed),
            dead=_total(families.dead),
            waits=waits,
            runs=runs,
        )

    def name_node(self, node: str, host: str, version: str) -> None:
        """Set the node's id, host and version. After a lost lease, the new id replaces the old one."""
        self._node.clear()
        self._node.labels(node, host, version).set(1)

    def set_depths(self, depths: Iterable[tuple[str, str, int, float]]) -> None:
        """Replace the depths: (queue, state, jobs, age of the oldest job in seconds)."""
        self.depth.clear()
        self.oldest.clear()
        others: dict[str, tuple[int, float]] = {}
        for place, (queue, state, jobs, oldest) in enumerate(depths):
            if place < MAX_LABEL_PAIRS:
                self.depth.labels(queue, state).set(jobs)
                self.oldest.labels(queue, state).set(oldest)
            else:
                more, older = others.get(state, (0, 0.0))
                others[state] = more + jobs, max(older, oldest)
        for state, (jobs, oldest) in others.items():
            self.depth.labels("other", state).set(jobs)
            self.oldest.labels("other", state).set(oldest)

    def render(self) -> bytes:
        """Return all metrics in the text format."""
        return generate_latest(self._registry)


def _total(counter: Counter) -> int:
    return round(sum(sample.value for family in counter.collect() for sample in family.samples))
