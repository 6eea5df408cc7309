import os
import subprocess
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobqueue.durations import percentile
from jobqueue.metrics import CONTENT_TYPE, MAX_LABEL_PAIRS, KindMetrics, Metrics

pytestmark = pytest.mark.slow

AWKWARD = 'a "quoted"\n\\line, ünïcode {=}'


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def used() -> Metrics:
    """The metrics of a working node: every series has a value."""
    metrics = Metrics()
    for kind in ("greet", AWKWARD):
        use_all(metrics.of("default", kind))
    for histogram in (metrics.submit_seconds, metrics.claim_seconds, metrics.finish_seconds):
        histogram.observe(0.01)
    for gauge in (metrics.running, metrics.workers, metrics.ready):
        gauge.labels("default").set(3)
    for gauge in (metrics.inflight, metrics.waiting_submissions, metrics.lease_remaining, metrics.schema_version):
        gauge.set(5)
    metrics.set_depths([("default", "pending", 7, 1.5), (AWKWARD, "dead", 1, 86_400.0)])
    metrics.name_node("0198c7a4", "host", "0.1.0")
    return metrics


def use_all(kind: KindMetrics) -> None:
    for counter in (kind.submitted, kind.failed, kind.recovered, kind.stale, kind.unhandled, *kind.by_outcome.values()):
        counter.inc()
    kind.wait.observe(0.2)
    kind.run.observe(20)


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[str]], float]:
    """Parse the rendering as Prometheus does; return the values by name and label values."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(sample.name, frozenset(sample.labels.values())): sample.value for family in families for sample in family.samples}


def pairs(metrics: Metrics, name: str) -> set[tuple[str, str]]:
    """Return the (queue, kind) pairs that have a series with this name."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(one.labels["queue"], one.labels["kind"]) for family in families for one in family.samples if one.name == name}


# ----------------------------------------------------------------------------------------------------------------------- label sets


def test_the_same_pair_has_the_same_series(metrics: Metrics) -> None:
    assert metrics.of("q", "a") is metrics.of("q", "a")
    assert metrics.of("q", "a") is not metrics.of("q", "b")


def test_pairs_up_to_a_bound_have_their_own_series_and_all_others_share_one(metrics: Metrics) -> None:
    own = {("q", f"kind {number}") for number in range(MAX_LABEL_PAIRS)}
    for pair in own:
        metrics.of(*pair).submitted.inc()
    assert pairs(metrics, "jobqueue_jobs_submitted_total") == own
    for number in range(1_000):
        metrics.of(f"queue {number}", "more").submitted.inc()
    metrics.of("q", "kind 0").submitted.inc()
    assert pairs(metrics, "jobqueue_jobs_submitted_total") == own | {("other", "other")}
    values = samples(metrics)
    assert values["jobqueue_jobs_submitted_total", frozenset({"other"})] == 1_000
    assert values["jobqueue_jobs_submitted_total", frozenset({"q", "kind 0"})] == 2


def test_the_shared_series_are_bound_once_too(metrics: Metrics) -> None:
    for number in range(MAX_LABEL_PAIRS):
        metrics.of("q", str(number))
    assert metrics.of("q", "one more") is metrics.of("q", "yet another")


def test_depths_of_too_many_queues_are_summed_up(metrics: Metrics) -> None:
    metrics.set_depths([(f"queue {number}", "pending", 2, number) for number in range(MAX_LABEL_PAIRS + 800)])
    values = {labels: value for (name, labels), value in samples(metrics).items() if name == "jobqueue_queue_depth"}
    assert len(values) == MAX_LABEL_PAIRS + 1
    assert values[frozenset({"other", "pending"})] == 2 * 800
    assert samples(metrics)["jobqueue_queue_oldest_seconds", frozenset({"other", "pending"})] == MAX_LABEL_PAIRS + 799


# ------------------------------------------------------------------------------------------------------------------------ rendering


def test_totals_are_over_all_series(used: Metrics) -> None:
    totals = used.totals()
    assert (totals.submitted, totals.completed, totals.failed, totals.dead) == (2, 2, 2, 2)
    assert (percentile(totals.waits, 1), percentile(totals.runs, 1)) == (pytest.approx(0.2), pytest.approx(20))
    assert (sum(totals.waits), sum(totals.runs)) == (2, 2)


def test_durations_are_rendered_with_the_bounds_that_are_documented(used: Metrics) -> None:
    bounds = "0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 30.0 60.0 300.0 1800.0 +Inf"
    rendered = [line for line in used.render().decode().splitlines() if line.startswith("jobqueue_job_run_seconds_bucket")]
    greeting = [line for line in rendered if 'kind="greet"' in line]
    assert [line.split('le="')[1].split('"')[0] for line in greeting] == bounds.split()
    assert [float(line.split()[-1]) for line in greeting] == [0] * 13 + [1] * 5


def test_every_value_is_read_back(used: Metrics) -> None:
    values = samples(used)
    for name in (
        "jobs_submitted",
        "jobs_completed",
        "attempts_failed",
        "jobs_retried",
        "jobs_snoozed",
        "jobs_released",
        "jobs_dead",
        "jobs_recovered",
        "stale_completions",
        "jobs_unhandled",
    ):
        assert values[f"jobqueue_{name}_total", frozenset({"default", AWKWARD})] == 1
    assert values["jobqueue_job_run_seconds_sum", frozenset({"default", "greet"})] == 20
    assert values["jobqueue_job_wait_seconds_bucket", frozenset({"default", "greet", "0.25"})] == 1
    assert values["jobqueue_submit_commit_seconds_count", frozenset()] == 1
    assert values["jobqueue_queue_depth", frozenset({"default", "pending"})] == 7
    assert values["jobqueue_queue_oldest_seconds", frozenset({AWKWARD, "dead"})] == 86_400
    assert values["jobqueue_active_workers", frozenset({"default"})] == 3
    assert values["jobqueue_lease_remaining_seconds", frozenset()] == 5
    assert values["jobqueue_node_info", frozenset({"0198c7a4", "host", "0.1.0"})] == 1


def test_the_content_type_is_that_of_the_text_format() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=")


def test_depths_replace_those_before(used: Metrics) -> None:
    used.set_depths([("mail", "pending", 2, 0.5)])
    depths = {labels: value for (name, labels), value in samples(used).items() if name == "jobqueue_queue_depth"}
    assert depths == {frozenset({"mail", "pending"}): 2}


def test_a_new_node_id_replaces_the_old_one(used: Metrics) -> None:
    used.name_node("0198c7ff", "host", "0.1.0")
    nodes = [labels for name, labels in samples(used) if name == "jobqueue_node_info"]
    assert nodes == [frozenset({"0198c7ff", "host", "0.1.0"})]


def test_nodes_of_one_process_do_not_share_series(metrics: Metrics, used: Metrics) -> None:
    metrics.inflight.set(1)
    assert samples(used)["jobqueue_inflight_jobs", frozenset()] == 5


def parse(rendering: bytes) -> None:
    assert len(list(text_string_to_metric_families(rendering.decode()))) > 20


def lint(rendering: bytes) -> None:
    checked = subprocess.run(
        [os.environ["JOBQUEUE_TEST_PROMTOOL"], "check", "metrics"], input=rendering, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


READERS = [parse, lint] if "JOBQUEUE_TEST_PROMTOOL" in os.environ else [parse]
"""The programs that must accept a rendering: the reference parser, and promtool if JOBQUEUE_TEST_PROMTOOL names it."""


@pytest.mark.parametrize("read", READERS)
def test_a_rendering_is_accepted(read: Callable[[bytes], None], metrics: Metrics, used: Metrics) -> None:
    read(metrics.render())
    read(used.render())
