"""``jobqueue top``: rates and quantiles between two scrapes, and the command against real services."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from jobqueue.cli.rates import COUNTERS, Histogram, Scrape, change, quantile, read
from jobqueue.cli.snapshot import KINDS, QUEUES, Snapshot
from jobqueue.metrics import Metrics
from jobqueue.settings import Settings
from tests.support import ROOT
from tests.support.command_line import run_jobqueue
from tests.support.service import Service

pytestmark = pytest.mark.slow

INFINITE = float("inf")

BOUNDS = (0.0, 0.01, 0.1, 1.0, 10.0, INFINITE)

durations = st.lists(st.floats(0, 100, allow_nan=False), max_size=200)
shares = st.floats(0.01, 1.0)


def histogram(values: list[float]) -> Histogram:
    return Counter(map(bucket, values))


def bucket(value: float) -> tuple[float, float]:
    place = max(1, bisect_left(BOUNDS, value))
    return BOUNDS[place - 1], BOUNDS[place]


# ------------------------------------------------------------------------------------------------------------------- quantiles


@given(durations.filter(bool), shares)
def test_a_quantile_is_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    estimate = quantile(histogram(values), share)
    assert estimate is not None
    rank = max(0, -int(-share * len(values) // 1) - 1)  # the smallest value with this share of values at or below it
    lower, upper = bucket(sorted(values)[rank])
    assert lower <= estimate <= (upper if upper != INFINITE else lower)


@given(durations.filter(bool), shares, shares)
def test_quantiles_rise_with_the_share(values: list[float], one: float, two: float) -> None:
    low, high = (quantile(histogram(values), share) for share in sorted((one, two)))
    assert low is not None
    assert high is not None
    assert low <= high


def test_a_quantile_is_spread_evenly_over_its_bucket() -> None:
    assert quantile(histogram([0.5] * 10), 0.5) == pytest.approx(0.1 + 0.9 * 0.5)
    assert quantile(histogram([0.005] * 4), 1.0) == 0.01
    assert quantile(histogram([50.0]), 0.5) == 10.0  # above the last bound, the bound
    assert quantile(histogram([]), 0.5) is None


# ----------------------------------------------------------------------------------------------------------------------- rates


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.name_node("0198c7a4", "host", "0.1.0")
    return metrics


def scrape(metrics: Metrics, at: float) -> Scrape:
    return read(metrics.render().decode(), at)


def buckets(found: Scrape, *series: str) -> Histogram:
    return Counter({bucket: count for (its, bucket), count in found.buckets.items() if its == series})


def test_what_a_node_counts_is_read_from_its_own_metrics(metrics: Metrics) -> None:
    kind = metrics.of('a "queue"', "greet\n")
    kind.submitted.inc(7)
    kind.wait.observe(0.003)
    kind.run.observe(7200)
    found = scrape(metrics, 5.0)
    assert (found.at, found.node, found.host) == (5.0, "0198c7a4", "host")
    assert found.counters["submitted", 'a "queue"', "greet\n"] == 7
    assert {counted for counted, _, _ in found.counters} == {*COUNTERS.values()}
    assert quantile(buckets(found, "wait", 'a "queue"', "greet\n"), 1.0) == 0.005
    assert quantile(buckets(found, "run", 'a "queue"', "greet\n"), 0.5) == 1800


def test_rates_are_of_what_happened_in_between(metrics: Metrics) -> None:
    def work(kind: str, jobs: int, seconds: float) -> None:
        counted = metrics.of("default", kind)
        for _ in range(jobs):
            counted.by_outcome["succeeded"].inc()
            counted.run.observe(seconds)
            counted.wait.observe(0.001)

    work("greet", 100, 0.4)
    before = scrape(metrics, 10.0)
    work("greet", 20, 0.002)
    work("report", 4, 7.0)
    metrics.of("default", "report").failed.inc(2)
    between = change(before, scrape(metrics, 12.0))
    assert between is not None
    assert between.seconds == 2.0
    assert between.rates == {"submitted": 0, "completed": 12, "failed": 1, "retried": 0, "dead": 0}
    assert between.run.total() == 24
    assert [(kind.kind, kind.completed, kind.failed) for kind in between.kinds] == [("report", 2, 1), ("greet", 10, 0)]
    assert quantile(between.kinds[1].run, 0.95) == pytest.approx(0.0025, rel=0.1)  # not the 0.4 s of before


def test_a_kind_that_did_nothing_is_not_among_the_kinds(metrics: Metrics) -> None:
    metrics.of("default", "greet").run.observe(1)
    before = scrape(metrics, 0.0)
    between = change(before, scrape(metrics, 1.0))
    assert between is not None
    assert between.kinds == []
    assert quantile(between.wait, 0.5) is None


def test_two_nodes_have_nothing_in_between(metrics: Metrics) -> None:
    before = scrape(metrics, 0.0)
    metrics.name_node("another", "host", "0.1.0")
    assert change(before, scrape(metrics, 1.0)) is None
    assert change(before, before) is None


# ---------------------------------------------------------------------------------------------------------------------- screen


def text_of(shown: RenderableType, width: int = 120) -> str:
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def snapshot(metrics: Metrics, **fields: Any) -> Snapshot:
    before = scrape(metrics, 0.0)
    return Snapshot(
        **{
            "url": "http://host",
            "at": datetime.now(UTC),
            "scrape": before,
            "change": change(before, scrape(metrics, 1.0)),
            "queues": [],
            "nodes": [],
            **fields,
        }
    )


def test_fields_that_an_older_service_lacks_are_left_empty(metrics: Metrics) -> None:
    queues = [{"name": "default", "paused": False, "depth": {"pending": 1_234}}]
    nodes = [{"id": "0198c7a4", "host": "host", "pid": 7, "queues": {"default": 4}}]
    shown = text_of(snapshot(metrics, queues=queues, nodes=nodes).screen())
    assert "1,234" in shown
    assert "all nodes" not in shown


def test_what_is_over_all_nodes_is_said_to_be(metrics: Metrics) -> None:
    queues = [
        {
            "name": "mail",
            "paused": True,
            "depth": {},
            "oldest": {"pending": 90.0},
            "throughput": {"completed": 1.5, "failed": 0.25},
        },
        {"name": "default", "paused": False, "depth": {}, "oldest": {}, "throughput": {"completed": 10, "failed": 0}},
    ]
    running = [
        {"queue": "mail", "kind": "send", "jobs": 3, "oldest": 2.0},
        {"queue": "mail", "kind": "list", "jobs": 1, "oldest": 61.0},
    ]
    nodes = [{"id": "0198c7a4", "host": "host", "pid": 7, "queues": {"mail": 4}, "running": running}]
    shown = text_of(snapshot(metrics, queues=queues, nodes=nodes).screen())
    assert "all nodes, last minute: completed 12/s, failed 0.25/s" in shown
    assert re.search(r"mail .* 90 s +1.5 +0.25 +paused", shown)
    assert "list 1 (61 s), send 3 (2 s)" in shown


def test_a_narrow_terminal_shows_fewer_figures_and_cuts_none(metrics: Metrics) -> None:
    depth = {"pending": 123_456, "inflight": 160, "scheduled": 2_392, "dead": 1_228, "blocked": 3}
    times = {"oldest": {"pending": 4_000.0}, "throughput": {"completed": 1520.0}}
    queues = [{"name": "mail-to-customers", "paused": True, "depth": depth, **times}]
    nodes = [{"id": "0198c7a4-0000", "host": "worker-host-1", "pid": 18_225, "queues": {"default": 16}, "running": []}]
    shown = text_of(snapshot(metrics, queues=queues, nodes=nodes).screen(wide=False), width=80)
    assert re.search(r"mail-to-customers +123,456 +160 +1,228 +1 h 6 min +1,520 +paused", shown)
    assert re.search(r"0198c7a4 +worker-host-1 +18225 +16", shown)


def test_what_does_not_fit_is_counted(metrics: Metrics) -> None:
    queues = [{"name": f"q{number}", "paused": False, "depth": {"pending": number}} for number in range(QUEUES + 5)]
    shown = text_of(snapshot(metrics, queues=queues).screen())
    assert "and 5 more" in shown
    assert "q19" in shown
    assert "q4 " not in shown
    for number in range(KINDS + 2):
        metrics.of("default", f"kind{number}").run.observe(number)
    # All of them happened before the first scrape.
    assert "SLOWEST" not in text_of(snapshot(metrics).screen())


def test_what_others_wrote_does_not_reach_the_terminal_as_it_is(metrics: Metrics) -> None:
    queues = [{"name": "\x1b[2Jmail", "paused": False, "depth": {}}]
    assert "\x1b[2J" not in text_of(snapshot(metrics, queues=queues).screen("lost: \x1b[2J"))


# --------------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def busy(service: Callable[..., Service]) -> Service:
    started = service("examples.quickstart", "--queue", "default=4")
    jobs = [{"kind": "greet", "payload": {"name": "Ada"}} for _ in range(50)]
    httpx.post(f"{started.url}/submit", json=jobs, timeout=60).raise_for_status()
    return started


def test_one_screen_for_pipes(busy: Service) -> None:
    ended = run_jobqueue("top", "--once", "--url", busy.url, "--interval", "0.2")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"jobqueue top  {busy.url}  ")
    assert "QUEUE" in ended.stdout
    assert "NODE" in ended.stdout
    # Without a terminal, the output is the same.
    assert run_jobqueue("top", "--url", busy.url, "--interval", "0.2").stdout.startswith("jobqueue top")


def test_the_same_as_data(busy: Service) -> None:
    ended = run_jobqueue("top", "--once", "--json", "--url", busy.url, "--interval", "0.2")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    [node] = document["nodes"]
    assert document["node"] == node["id"]
    assert document["rates"].keys() == {*COUNTERS.values()}
    assert document["latencies"].keys() == {"wait", "run"}
    assert [queue["name"] for queue in document["queues"]] == ["default"]
    assert document["seconds"] == pytest.approx(0.2, abs=5)


def test_without_a_service_there_are_queues_and_no_rates(busy: Service, database_url: str) -> None:
    ended = run_jobqueue("top", "--once", "--database-url", database_url, "--interval", "0.1")
    assert ended.returncode == 0, ended.stderr
    assert "no rates and latencies" in ended.stdout
    assert busy.url not in ended.stdout


def test_nobody_there_ends_with_4() -> None:
    ended = run_jobqueue("top", "--once", "--url", "http://127.0.0.1:1")
    assert ended.returncode == 4
    assert "jobqueue serve" in ended.stderr


def test_a_token_that_is_missing_ends_with_1(service: Callable[..., Service]) -> None:
    guarded = service("--no-workers", "--token", "read:a-secret-of-some-length")
    ended = run_jobqueue("top", "--once", "--url", guarded.url)
    assert ended.returncode == 1, ended.stderr
    ended = run_jobqueue("top", "--once", "--url", guarded.url, "--token", "a-secret-of-some-length", "--interval", "0.1")
    assert ended.returncode == 0, ended.stderr


class Terminal:
    """A command on a terminal."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobqueue", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm"},
            start_new_session=True,
        )
        os.close(theirs)
        self._seen = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for(self, shown: str, missing: str = "\0", seconds: float = 120) -> None:
        """Wait for a whole screen with one text and without the other."""
        deadline = time.monotonic() + seconds
        while True:
            *_, screen, _ = ["", "", *self._seen.split("jobqueue top")]
            if shown in screen and missing not in screen:
                return
            assert time.monotonic() < deadline, self._seen[-4000:]
            time.sleep(0.05)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._ours)

    def _read(self) -> None:
        with suppress(OSError):  # raised at the end of a terminal
            while piece := os.read(self._ours, 65536):
                self._seen += piece.decode(errors="replace")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_a_lost_service_is_shown_and_reconnects(database_url: str, terminal: Callable[..., Terminal]) -> None:
    first = Service(["--no-workers", "--port", "0", "--database-url", database_url], {})
    second = None
    try:
        shown = terminal("top", "--url", first.url, "--interval", "0.2")
        shown.wait_for("last ")
        first.kill()
        shown.wait_for("no data for ")
        port = first.url.rpartition(":")[2]
        second = Service(["--no-workers", "--port", port, "--database-url", database_url], {})
        shown.wait_for("last ", missing="no data for ")
        shown.type("q")
        assert shown.process.wait(60) == 0
    finally:
        for service in filter(None, (first, second)):
            service.kill()


def test_ctrl_c_ends_it_too(busy: Service, terminal: Callable[..., Terminal]) -> None:
    shown = terminal("top", "--url", busy.url, "--interval", "0.2")
    shown.wait_for("last ")
    shown.process.send_signal(2)
    assert shown.process.wait(60) == 0


def test_a_service_that_does_not_run_yet_is_waited_for(terminal: Callable[..., Terminal]) -> None:
    shown = terminal("top", "--url", "http://127.0.0.1:1", "--interval", "0.2")
    shown.wait_for("trying again")
    shown.type("q")
    assert shown.process.wait(60) == 0


def test_the_default_url_is_where_a_service_listens() -> None:
    assert f":{Settings().port}" in run_jobqueue("top", "--help").stdout
