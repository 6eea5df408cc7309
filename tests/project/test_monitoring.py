"""The dashboard and the alerts of ``examples/monitoring`` use existing metrics, and each alert fires when it should.

Some tests need promtool: set JOBQUEUE_TEST_PROMTOOL to its path.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from jobqueue.metrics import Metrics
from tests.support import ROOT
from tests.support.service import Service
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

DASHBOARD = json.loads((ROOT / "examples/monitoring/grafana.json").read_text())
ALERTS = yaml.safe_load((ROOT / "examples/monitoring/alerts.yaml").read_text())
RULES = {rule["alert"]: rule for group in ALERTS["groups"] for rule in group["rules"]}

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

LEFT_OUT = {"process_virtual_memory_bytes"}
"""Families that the dashboard omits on purpose: reserved memory does not show how much is used."""

PROMETHEUS_OWN = {"instance", "job"}
"""Labels that a scrape adds."""


class Expression(NamedTuple):
    """A query in PromQL, and its place."""

    where: str
    text: str
    legend: str = ""


def shown() -> Iterator[Expression]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield Expression(f"{panel['title']} {target['refId']}", target["expr"], target["legendFormat"])


def asked_for() -> Iterator[Expression]:
    """Yield the series from which the variables take their values. The legend is the label."""
    for variable in VARIABLES.values():
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert found, variable["definition"]
            yield Expression(f"${variable['name']}", found[1], f"{{{{{found[2]}}}}}")


def alarming() -> Iterator[Expression]:
    for name, rule in RULES.items():
        yield Expression(name, rule["expr"])


SHOWN, ALARMING = [*shown(), *asked_for()], list(alarming())
EXPRESSIONS = [*SHOWN, *ALARMING]


def names(expression: Expression) -> set[str]:
    """Return the names of the series in an expression."""
    pattern = re.search(r'__name__=~"([^"]+)"', expression.text)
    if pattern:
        return {name for name in label_names() if re.fullmatch(pattern[1], name)}
    return set(re.findall(r"\b(?:jobqueue|process)_\w+", re.sub(r'"[^"]*"', "", expression.text)))


def grouping(expression: Expression) -> set[str]:
    """Return the labels by which an expression groups."""
    return {label for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression.text) for label in re.split(r",\s*", labels)}


def label_names() -> dict[str, set[str]]:
    """Return the labels of each series of a working node, by name."""
    metrics = Metrics()
    metrics.of("q", "k")
    for gauge in (metrics.running, metrics.workers, metrics.ready):
        gauge.labels("q")
    metrics.set_depths([("q", "pending", 1, 1.0)])
    metrics.name_node("n", "h", "v")
    metrics.contained = lambda: {"claims": 1}
    return labels_in(metrics.render().decode())


def labels_in(rendering: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(rendering):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture
def scraped(service: Callable[..., Service]) -> str:
    """The metrics of a real service that has run a job."""
    node = service("examples.quickstart")
    httpx.post(f"{node.url}/submit", json=[{}, {"delay": 3600}], timeout=60).raise_for_status()
    told = ""

    def done() -> bool:
        nonlocal told
        told = httpx.get(f"{node.url}/metrics", timeout=60).text
        return 'jobqueue_jobs_completed_total{kind="default",queue="default"} 1.0' in told

    wait_for(done, "a job is done")
    return told


# ------------------------------------------------------------------------------------------------------------- names and labels


def test_the_dashboard_shows_what_a_real_service_has_and_leaves_nothing_out_by_mistake(scraped: str) -> None:
    real = labels_in(scraped)
    assert real == label_names(), "the other tests rely on label_names"
    used = {name for expression in SHOWN for name in names(expression)}
    assert used <= real.keys()
    families = {family.name: {sample.name for sample in family.samples} for family in text_string_to_metric_families(scraped)}
    assert {name for name, series in families.items() if not series & used} == LEFT_OUT


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: expression.where)
def test_an_expression_names_what_there_is(expression: Expression) -> None:
    series = label_names()
    used = names(expression)
    assert used <= series.keys()
    assert used or re.search(r"\bup\b", expression.text)
    there = set().union(*(series[name] for name in used), PROMETHEUS_OWN)
    for name, selector in re.findall(r"(\w*)\{([^}]*)\}", expression.text):
        asked = set(re.findall(r"(\w+)(?:=|!=|=~|!~)\"", selector)) - {"__name__"}
        assert asked <= series.get(name, there) | PROMETHEUS_OWN, name
    assert grouping(expression) <= there | {"le"}
    assert set(re.findall(r"\{\{(\w+)\}\}", expression.legend)) <= (grouping(expression) or there)


@pytest.mark.parametrize("expression", SHOWN, ids=lambda expression: expression.where)
def test_variables_are_there_and_narrow_every_query(expression: Expression) -> None:
    used = set(re.findall(r"\$(\w+)", expression.text)) - {"__rate_interval"}
    assert used <= VARIABLES.keys()
    labels = set().union(*(label_names()[name] for name in names(expression)))
    if not expression.where.startswith("$"):
        assert used == {"instance"} | (labels & {"queue", "kind"})


def test_panels_have_their_places_and_say_where_their_data_is_from() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [cell for panel in DASHBOARD["panels"] for cell in cells_of(panel["gridPos"])]
    assert len(set(cells)) == len(cells), "two panels in one place"
    assert all(0 <= x < 24 for x, _ in cells)
    for panel in PANELS:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs) > 0
        assert {holder["datasource"]["uid"] for holder in (panel, *panel["targets"])} == {"${datasource}"}
    assert VARIABLES.keys() == {"datasource", "instance", "queue", "kind"}


def cells_of(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    return itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_is_wrong_and_what_to_do(name: str) -> None:
    rule = RULES[name]
    assert rule["labels"].keys() == {"severity"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    of = Expression(name, rule["expr"])
    labels = grouping(of) or set().union(*(label_names()[one] for one in names(of)), PROMETHEUS_OWN)
    for text in rule["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels


# ------------------------------------------------------------------------------------------------------------------- the alerts


class Case(NamedTuple):
    """Series in promtool's notation with one value per minute, and the labels with which an alert fires at a minute, if it does."""

    alert: str
    series: dict[str, str]
    minute: int
    fires: dict[str, str] | None


def depth(queue: str = "mail", state: str = "pending") -> str:
    return f'jobqueue_queue_depth{{instance="node-a",queue="{queue}",state="{state}"}}'


def of_kind(name: str) -> str:
    return f'jobqueue_{name}_total{{instance="node-a",queue="mail",kind="k"}}'


def bucket(le: str) -> str:
    return f'jobqueue_submit_commit_seconds_bucket{{instance="node-a",le="{le}"}}'


UP = 'up{job="jobqueue",instance="node-a"}'
OLDEST = 'jobqueue_queue_oldest_seconds{instance="node-a",queue="mail",state="pending"}'
WORKERS = 'jobqueue_workers{instance="b",queue="mail"}'
LEASE = 'jobqueue_lease_remaining_seconds{instance="node-a"}'
DEAD, STALE = of_kind("jobs_dead"), of_kind("stale_completions")
STARTED = 'process_start_time_seconds{instance="node-a"}'
FAILED, COMPLETED = of_kind("attempts_failed"), of_kind("jobs_completed")
MAIL, KIND = {"queue": "mail"}, {"queue": "mail", "kind": "k"}

CASES = {
    "a scrape fails for a minute": Case("JobqueueDown", {UP: "1x5 0x10"}, 7, {"instance": "node-a", "job": "jobqueue"}),
    "nobody is scraped": Case("JobqueueDown", {'up{job="other"}': "1x10"}, 5, {"job": "jobqueue"}),
    "a scrape fails once": Case("JobqueueDown", {UP: "1x5 0 1x10"}, 6, None),
    "a job waits for long": Case("JobqueueQueueStuck", {OLDEST: "0+60x30"}, 17, MAIL),
    "it was taken before long": Case("JobqueueQueueStuck", {OLDEST: "0+60x12 0x20"}, 17, None),
    "a dead job is old": Case("JobqueueQueueStuck", {OLDEST.replace("pending", "dead"): "9999x30"}, 20, None),
    "nobody works a queue": Case("JobqueueQueueWithoutNode", {depth(): "5x9", WORKERS.replace("mail", "x"): "16x9"}, 3, MAIL),
    "there are no workers at all": Case("JobqueueQueueWithoutNode", {depth(): "5x9"}, 3, MAIL),
    "another node works it": Case("JobqueueQueueWithoutNode", {depth(): "5x9", WORKERS: "16x9"}, 5, None),
    "no job waits": Case("JobqueueQueueWithoutNode", {depth(): "0x9", depth(state="dead"): "5x9"}, 5, None),
    "heartbeats are missed": Case("JobqueueLeaseNearlyLost", {LEASE: "29x10 25 20 14"}, 13, {"instance": "node-a"}),
    "a heartbeat was late": Case("JobqueueLeaseNearlyLost", {LEASE: "29x10 25 20 16"}, 13, None),
    "the lease is a short one": Case("JobqueueLeaseNearlyLost", {LEASE: "5x12"}, 12, None),
    "jobs die": Case("JobqueueDeadLettersGrow", {DEAD: "0x10 3x20"}, 12, KIND),
    "the first job of its kind dies": Case("JobqueueDeadLettersGrow", {DEAD: "_x20 1x20", STARTED: "0x40"}, 22, KIND),
    "the first job of a new node dies": Case("JobqueueDeadLettersGrow", {DEAD: "1x20", STARTED: "0x20"}, 2, KIND),
    "the first job of a restarted node dies": Case(
        "JobqueueDeadLettersGrow", {DEAD: "0x5 _x30 1x20", STARTED: "0x25 _ 1560x30"}, 37, KIND
    ),
    "jobs died long ago": Case("JobqueueDeadLettersGrow", {DEAD: "0x2 3x30"}, 30, None),
    "the first job of its kind died long ago": Case("JobqueueDeadLettersGrow", {DEAD: "_x5 1x40", STARTED: "0x50"}, 22, None),
    "nothing was scraped for long": Case("JobqueueDeadLettersGrow", {DEAD: "3x10 _x20 3x20", STARTED: "0x10 _x20 0x20"}, 33, None),
    "outcomes come too late": Case("JobqueueStaleCompletions", {STALE: "0x10 1x20"}, 12, KIND | {"instance": "node-a"}),
    "the first outcome of its kind comes too late": Case(
        "JobqueueStaleCompletions", {STALE: "_x20 1x20", STARTED: "0x40"}, 22, KIND | {"instance": "node-a"}
    ),
    "outcomes came too late yesterday": Case("JobqueueStaleCompletions", {STALE: "0x2 1x30"}, 30, None),
    "half of the attempts fail": Case("JobqueueAttemptsFail", {FAILED: "0+5x30", COMPLETED: "0+5x30"}, 20, KIND),
    "all of them fail": Case("JobqueueAttemptsFail", {FAILED: "0+5x30", COMPLETED: "0x30"}, 20, KIND),
    "some of many fail": Case("JobqueueAttemptsFail", {FAILED: "0+5x30", COMPLETED: "0+50x30"}, 20, None),
    "one of one fails": Case("JobqueueAttemptsFail", {FAILED: "0x12 1x30", COMPLETED: "0x30"}, 18, None),
    "commits are slow": Case(
        "JobqueueSubmitSlow",
        {bucket("0.256"): "0x30", bucket("1.0"): "0+60x30", bucket("+Inf"): "0+60x30"},
        15,
        {"instance": "node-a"},
    ),
    "commits are fast": Case(
        "JobqueueSubmitSlow", {bucket("0.004"): "0+60x30", bucket("1.0"): "0+60x30", bucket("+Inf"): "0+60x30"}, 15, None
    ),
}


def test_each_alert_is_seen_to_fire_and_to_stay_silent() -> None:
    for fires in (True, False):
        assert {case.alert for case in CASES.values() if (case.fires is not None) == fires} == RULES.keys()


if "JOBQUEUE_TEST_PROMTOOL" in os.environ:

    def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([os.environ["JOBQUEUE_TEST_PROMTOOL"], *arguments], capture_output=True, text=True, check=False)

    def run_case(case: Case, directory: Path, expected: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        """Let promtool apply the rules to the case's series and compare the alerts."""
        file = directory / "case.yaml"
        series = [{"series": name, "values": values} for name, values in case.series.items()]
        fire = {"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": expected}
        test = {"interval": "1m", "input_series": series, "alert_rule_test": [fire]}
        rules = str(ROOT / "examples/monitoring/alerts.yaml")
        file.write_text(json.dumps({"rule_files": [rules], "evaluation_interval": "1m", "tests": [test]}))
        return promtool("test", "rules", str(file))

    def got(told: str) -> dict[str, dict[str, str]]:
        """Return the alert that promtool got when it expected none."""
        [found] = re.findall(r"Labels:\{(.*)\}\n\s*Annotations:\{(.*)\}", told)
        labels, annotations = (
            {name: json.loads(text) for name, text in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*")', one)} for one in found
        )
        return {"labels": labels, "annotations": annotations}

    def test_promtool_reads_every_expression(tmp_path: Path) -> None:
        rules = [
            {"record": "checked", "expr": re.sub(r"\$\w+", lambda name: "5m" if "interval" in name[0] else ".*", one.text)}
            for one in EXPRESSIONS
        ]
        file = tmp_path / "rules.yaml"
        file.write_text(json.dumps({"groups": [{"name": f"rule {n}", "rules": [rule]} for n, rule in enumerate(rules)]}))
        checked = promtool("check", "rules", "--lint=none", str(file))
        assert checked.returncode == 0, checked.stderr

    def test_promtool_accepts_the_alerts() -> None:
        checked = promtool("check", "rules", str(ROOT / "examples/monitoring/alerts.yaml"))
        assert (checked.returncode, checked.stderr) == (0, "")
        assert f"{len(RULES)} rules found" in checked.stdout

    @pytest.mark.parametrize("case", [case for case in CASES.values() if case.fires is None], ids=lambda case: case.alert)
    def test_an_alert_stays_silent(case: Case, tmp_path: Path) -> None:
        ran = run_case(case, tmp_path, [])
        assert ran.returncode == 0, ran.stdout + ran.stderr

    @pytest.mark.parametrize("case", [case for case in CASES.values() if case.fires is not None], ids=lambda case: case.alert)
    def test_an_alert_fires_and_its_text_has_what_it_is_about(case: Case, tmp_path: Path) -> None:
        told = run_case(case, tmp_path, [])
        assert told.returncode == 1, "it did not fire"
        said = got(told.stdout + told.stderr)
        assert case.fires is not None
        assert said["labels"] == case.fires | {"alertname": case.alert, "severity": RULES[case.alert]["labels"]["severity"]}
        texts = said["annotations"]
        assert texts.keys() == {"summary", "description", "runbook"}
        for text in texts.values():
            assert not re.search(r"\{\{|\}\}|<no value>|<error", text), text
        about = next(case.fires[label] for label in ("kind", "queue", "instance", "job") if label in case.fires)
        assert about in texts["summary"]
