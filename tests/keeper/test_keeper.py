"""The keeper of a node, with real processes: handlers that block their node, nodes that die, keepers that die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psycopg
import pytest
import trio

from jobqueue import App
from jobqueue.job import Options
from jobqueue.keeper import threads
from jobqueue.keeper.node_state import NO_SLOT, Mark, NodeState
from jobqueue.keeper.watch import END, Config, Keeper
from jobqueue.queue_settings import QueueSettings
from jobqueue.schema_names import DEFAULT
from jobqueue.testing import Queue, in_virtual_time
from tests.support import postgres
from tests.support.postgres import Database
from tests.support.processes import children_of
from tests.support.service import Service
from tests.support.storage import Driver
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

LEASE_SECONDS = 8
"""The length of a lease that a handler outlasts. A loaded machine must not stall a node this long."""

LEASE = ("--visibility-timeout", str(LEASE_SECONDS))

HOLD = LEASE_SECONDS + 3
"""Seconds for which a handler blocks its node, past the lease."""

IN_C = ["hold-computing", "hold-asleep", "hold-on-loop", "hold-in-task"]
"""Handlers that hold the interpreter's lock."""


class Nodes:
    """Nodes on one database, and the effects of their handlers."""

    def __init__(self, service: Callable[..., Service], database: Database, effects: Path) -> None:
        self.database = database
        self._service = service
        self._effects = effects
        effects.touch()

    def start(self, *arguments: str, queue: str = "default=8") -> Service:
        return self._service("tests.handlers.holding", "--queue", queue, *arguments, env={"EFFECTS": str(self._effects)})

    def effects(self, what: str) -> list[str]:
        """Return the ids of the jobs with this effect, once for each time."""
        lines = [line.split() for line in self._effects.read_text().splitlines()]
        return [job_id for done, job_id, _ in lines if done == what]

    def ids(self) -> list[str]:
        return [str(node_id) for (node_id,) in self.database.rows("SELECT id FROM jobqueue_internal.nodes ORDER BY started_at")]

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.database.value("SELECT to_jsonb(j) FROM jobqueue.jobs AS j WHERE id = %s", job_id)
        return job


@pytest.fixture
def nodes(service: Callable[..., Service], database: Database, tmp_path: Path) -> Nodes:
    return Nodes(service, database, tmp_path / "effects")


def submit(node: Service, kind: str, payload: dict[str, Any] | None = None, *, max_retries: int = 0, **fields: Any) -> str:
    job = {"kind": kind, "payload": payload or {}, "max_retries": max_retries, **fields}
    answer = httpx.post(f"{node.url}/submit", json=job, timeout=60)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def lines(node: Service, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, list(node.log_lines)) if line["event"] == event]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def keepers_of(pid: int) -> list[int]:
    """Find the keepers of a node by their command line."""
    found = []
    for child in children_of(pid):
        with suppress(OSError):
            if b"jobqueue.keeper" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def keeper_of(pid: int) -> int:
    wait_for(lambda: len(keepers_of(pid)) == 1, "the node has one keeper")
    return keepers_of(pid)[0]


# --------------------------------------------------------------------------------------------------- a handler holds up its node


@pytest.mark.parametrize("kind", [*IN_C, "block-loop"])
def test_a_handler_that_holds_up_its_node_past_the_lease_costs_nobody_a_job(kind: str, nodes: Nodes) -> None:
    node = nodes.start(*LEASE)
    judge = nodes.start(*LEASE, queue="other=1")
    before = nodes.ids()
    during = LEASE_SECONDS + 3
    neighbors = [submit(node, "sleep", {"seconds": seconds}) for seconds in (1, during, during + 3)]
    neighbors += [submit(node, "sleep-in-thread", {"seconds": seconds}) for seconds in (1, during)]
    wait_for(lambda: len(nodes.effects("began")) == 5, "the neighbors run")
    time.sleep(LEASE_SECONDS)  # now the judge is steady and takes over the jobs of nodes that do not renew their lease
    culprit = submit(node, kind, {"seconds": HOLD})
    if kind in IN_C:
        wait_for(lambda: lines(node, "a handler holds the interpreter"), "the keeper names the job")
    wait_for(lambda: nodes.database.states() == {"succeeded": 6}, "all are done")
    assert nodes.database.rows("SELECT DISTINCT attempt, claims FROM jobqueue_internal.finished_jobs") == [(1, 1)]
    assert sorted(nodes.effects("began")) == sorted(nodes.effects("ended")) == sorted([*neighbors, culprit])
    assert nodes.ids() == before, "no node has lost its lease"

    job = {"job_id": culprit, "kind": kind, "queue": "default", "attempt": 1}
    begin, end = (
        ("a handler holds the interpreter", "the interpreter is free again")
        if kind in IN_C
        else ("the loop is blocked", "the loop runs again")
    )
    wait_for(lambda: lines(node, end), "its end is reported")
    for line in [lines(node, begin)[-1], *lines(node, end)]:
        assert line["level"] == "warning"
        assert {name: line[name] for name in job} == job
    assert lines(node, end)[-1]["seconds"] >= 5
    events = [json.loads(line)["event"] for line in node.log_lines]
    assert not {"lease lost: other nodes have this node's jobs", "the handler does not stop: it is abandoned"} & set(events)
    blamed = {job_id for line in map(json.loads, node.log_lines) if (job_id := line.get("job_id")) is not None}
    assert blamed == {culprit}, "nobody else"
    assert [node.stop(), judge.stop()] == [0, 0]


def test_one_of_two_jobs_is_held_back_by_the_other_and_is_not_named(nodes: Nodes) -> None:
    """Both hold the interpreter in turn. While one computes, the other waits for the lock like the loop."""
    node = nodes.start(*LEASE)
    both = [submit(node, "hold-computing", {"seconds": 5}) for _ in range(2)]
    wait_for(lambda: nodes.database.states() == {"succeeded": 2}, "both are done")
    named = [line["job_id"] for line in lines(node, "a handler holds the interpreter")]
    assert set(named) <= set(both)
    assert lines(node, "a handler holds the interpreter")
    assert node.stop() == 0


@pytest.mark.parametrize("kind", ["hold-computing", "block-loop"])
def test_the_time_for_which_the_loop_is_stuck_counts_towards_no_timeout(kind: str, nodes: Nodes) -> None:
    node = nodes.start()
    hold = 12
    in_time = [submit(node, neighbor, {"seconds": 3}, timeout=10) for neighbor in ("sleep", "sleep-in-thread")]
    too_long = [submit(node, neighbor, {"seconds": 60}, timeout=10) for neighbor in ("sleep", "sleep-in-thread")]
    wait_for(lambda: len(nodes.effects("began")) == 4, "the neighbors run")
    culprit = submit(node, kind, {"seconds": hold}, timeout=hold / 2)
    wait_for(lambda: nodes.database.states() == {"succeeded": 3, "dead": 2}, "all have ended")
    assert {nodes.job(job_id)["state"] for job_id in (*in_time, culprit)} == {"succeeded"}
    for job_id in too_long:
        assert nodes.job(job_id)["reason"] == "attempt 1 of 1 failed: timed out after 10.0 s", "it did not swallow its cancellation"
    assert node.stop() == 0


def test_a_thread_that_was_left_behind_is_named_with_its_own_job(nodes: Nodes) -> None:
    node = nodes.start(*LEASE, queue="default=1")
    left = submit(node, "leave-behind", {"after": 2, "seconds": 7}, timeout=1)
    wait_for(lambda: nodes.job(left)["state"] == "dead", "it timed out")
    running = submit(node, "sleep", {"seconds": 4})
    wait_for(lambda: lines(node, "a handler holds the interpreter"), "the keeper names the job")
    assert lines(node, "a handler holds the interpreter")[-1]["job_id"] == left
    wait_for(lambda: nodes.job(running)["state"] == "succeeded", "the next one is done")
    assert node.stop() == 0


# ------------------------------------------------------------------------------------------------------------------ the limit


@pytest.mark.parametrize(("kind", "max_retries"), [("hold-computing", 0), ("hold-on-loop", 1), ("block-loop", 1)])
def test_a_node_that_is_stuck_past_the_limit_gives_its_jobs_back_and_blames_the_culprit(
    kind: str, max_retries: int, nodes: Nodes
) -> None:
    stuck = nodes.start("--stall-limit", "5")
    [old] = nodes.ids()
    neighbors = [submit(stuck, name, {"seconds": 15}) for name in ("sleep", "sleep-in-thread", "sleep")]
    wait_for(lambda: len(nodes.effects("began")) == 3, "the neighbors run")
    culprit = submit(stuck, kind, {"seconds": 16, "again": 0}, max_retries=max_retries)
    wait_for(lambda: culprit in nodes.effects("began"), "it blocks the node")
    helper = nodes.start("--poll-interval", "0.2")
    wait_for(lambda: all(nodes.job(job_id)["state"] == "succeeded" for job_id in neighbors), "the helper has done the others")
    assert {(nodes.job(job_id)["attempt"], nodes.job(job_id)["claims"]) for job_id in neighbors} == {(1, 2)}, "refunded"
    assert all(nodes.job(job_id)["errors"] == [] for job_id in neighbors), "no neighbor is blamed"

    wait_for(lambda: nodes.job(culprit)["state"] == ("dead" if max_retries == 0 else "succeeded"), "it fails, or runs again")
    ended = nodes.job(culprit)
    error = rf"its handler \({kind}\) blocked the node for (\d+) s, longer than --stall-limit \(5 s\) allows"
    assert re.fullmatch(error, ended["errors"][0]["error"]), ended["errors"]
    assert ended["errors"][0]["node"] == old
    assert ended["attempt"] == max_retries + 1
    if max_retries == 0:
        assert ended["reason"] == f"attempt 1 of 1 failed: {ended['errors'][0]['error']}"
    [line] = lines(stuck, "the node is stuck: its jobs are handed back")
    assert (line["level"], line["job_id"], line["kind"], line["jobs_handed_back"]) == ("error", culprit, kind, 3)

    wait_for(lambda: len(nodes.ids()) == 2 and old not in nodes.ids(), "the stuck node joins anew")
    assert helper.stop() == 0
    again = submit(stuck, "sleep", {"seconds": 0})
    wait_for(lambda: nodes.job(again)["state"] == "succeeded", "it works again")
    assert sorted(nodes.effects("ended")).count(culprit) <= 2
    assert stuck.stop() == 0


def test_a_node_that_is_stuck_for_less_than_the_limit_keeps_its_jobs(nodes: Nodes) -> None:
    node = nodes.start(*LEASE, "--stall-limit", "120")
    neighbor = submit(node, "sleep", {"seconds": 3})
    submit(node, "hold-asleep", {"seconds": HOLD})
    wait_for(lambda: nodes.database.states() == {"succeeded": 2}, "both are done")
    assert nodes.job(neighbor)["claims"] == 1
    assert lines(node, "the node is stuck: its jobs are handed back") == []
    assert node.stop() == 0


# --------------------------------------------------------------------------------------------------------- nodes and keepers die


def test_a_keeper_that_dies_is_replaced_and_the_node_lives(nodes: Nodes) -> None:
    node = nodes.start(*LEASE)
    before = nodes.ids()
    first = keeper_of(node.process.pid)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: lines(node, "the keeper ended: starting another"), "it is reported")
    [line] = lines(node, "the keeper ended: starting another")
    assert (line["ended_with"], line["level"]) == ("exit code -9", "error")
    second = keeper_of(node.process.pid)
    assert second != first
    assert is_gone(first), "it is not a zombie"
    job = submit(node, "hold-asleep", {"seconds": HOLD})
    wait_for(lambda: nodes.job(job)["state"] == "succeeded", "the second one keeps the lease")
    assert nodes.ids() == before
    assert lines(node, "a handler holds the interpreter")
    assert node.stop() == 0
    assert is_gone(second)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_keeper_leaves_signals_to_its_node(number: signal.Signals, nodes: Nodes) -> None:
    node = nodes.start()
    keeper = keeper_of(node.process.pid)
    wait_for(
        lambda: int(re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{keeper}/status").read_text())[0], 16) >> (number - 1) & 1, "ready"
    )
    os.kill(keeper, number)
    time.sleep(0.5)
    assert keeper_of(node.process.pid) == keeper
    assert os.getpgid(keeper) != os.getpgid(node.process.pid)
    assert node.stop() == 0
    assert is_gone(keeper)


@pytest.mark.parametrize("child", [False, True], ids=["alone", "with a child that holds its files"])
def test_the_jobs_of_a_node_that_is_killed_are_taken_over_at_once(child: bool, nodes: Nodes) -> None:
    doomed = nodes.start("--visibility-timeout", "3600")
    other = nodes.start(queue="other=1")
    keeper = keeper_of(doomed.process.pid)
    if child:
        submit(doomed, "fork")
        wait_for(lambda: nodes.database.states() == {"succeeded": 1}, "there is a child")
    again = submit(doomed, "sleep", {"seconds": 600}, max_retries=1)
    last = submit(doomed, "sleep-in-thread", {"seconds": 600})
    wait_for(lambda: {again, last} <= set(nodes.effects("began")), "they run")
    doomed.process.kill()
    wait_for(lambda: nodes.job(again)["state"] == "pending", "it is taken back, long before the lease runs out")
    assert nodes.job(last)["reason"] == "lease lost 1 times: the job may be killing its process"
    assert len(nodes.ids()) == 1
    wait_for(lambda: is_gone(keeper), "the keeper has ended")
    assert other.stop() == 0


def test_a_node_that_dies_with_its_keeper_is_noticed_after_the_visibility_timeout(nodes: Nodes) -> None:
    doomed = nodes.start(*LEASE)
    [doomed_id] = nodes.ids()
    other = nodes.start(queue="other=1")
    job = submit(doomed, "sleep", {"seconds": 600}, max_retries=1)
    wait_for(lambda: nodes.effects("began"), "it runs")
    keeper = keeper_of(doomed.process.pid)
    os.kill(keeper, signal.SIGSTOP)
    doomed.process.kill()
    os.kill(keeper, signal.SIGKILL)
    lease_until = nodes.database.value("SELECT lease_until FROM jobqueue_internal.nodes WHERE id = %s", doomed_id)
    wait_for(lambda: nodes.job(job)["state"] == "pending", "it is taken back")
    assert nodes.database.value("SELECT now() >= %s", lease_until), "not before the lease has run out"
    assert other.stop() == 0


def test_a_node_that_is_stopped_by_a_signal_loses_its_lease(nodes: Nodes) -> None:
    stopped = nodes.start(*LEASE)
    other = nodes.start(*LEASE, queue="other=1")
    job = submit(stopped, "sleep", {"seconds": 600, "again": 0}, max_retries=1)
    wait_for(lambda: nodes.effects("began"), "it runs")
    time.sleep(LEASE_SECONDS)  # now the other node is steady
    stopped.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: nodes.job(job)["state"] == "pending", "its lease has run out")
    stopped.process.send_signal(signal.SIGCONT)
    wait_for(lambda: len(nodes.ids()) == 2, "it joins again")
    assert lines(stopped, "a handler holds the interpreter") == []
    assert [stopped.stop(), other.stop()] == [0, 0]


def test_each_of_several_processes_has_a_keeper_of_its_own(nodes: Nodes) -> None:
    group = nodes.start("--processes", "2")
    wait_for(lambda: len(children_of(group.process.pid)) == 2, "two nodes run")
    first, second = children_of(group.process.pid)
    keepers = {keeper_of(first), keeper_of(second)}
    assert len(keepers) == 2
    old = keeper_of(first)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: is_gone(old), "its keeper ends with it")
    wait_for(lambda: len(children_of(group.process.pid)) == 2 and len(nodes.ids()) == 2, "another one takes its place")
    [third] = set(children_of(group.process.pid)) - {second}
    last = [keeper_of(third), keeper_of(second)]
    assert group.stop() == 0
    assert all(is_gone(keeper) for keeper in last)


def test_a_node_with_the_embedded_postgresql_keeps_its_lease(tmp_path: Path) -> None:
    (tmp_path / "effects").touch()
    with postgres.directory() as directory:
        node = Service(
            ["tests.handlers.holding", "--port", "0", "--data-dir", str(directory / "data"), *LEASE],
            {"EFFECTS": str(tmp_path / "effects"), "DATABASE_URL": ""},
        )
        try:
            job = submit(node, "hold-asleep", {"seconds": HOLD})
            wait_for(lambda: lines(node, "a handler holds the interpreter"), "the keeper names the job")
            wait_for(lambda: httpx.get(f"{node.url}/jobs/{job}", timeout=60).json()["state"] == "succeeded", "it is done")
            assert [line["event"] for line in map(json.loads, node.log_lines) if line["event"] == "node joined"] == ["node joined"]
            keeper = keeper_of(node.process.pid)
            assert node.stop() == 0
            assert is_gone(keeper)
        finally:
            node.kill()


@in_virtual_time
async def test_runs_in_memory_start_no_keeper() -> None:
    app = App()

    @app.handler("test")
    def nothing() -> None: ...

    async with Queue(app) as queue:
        await queue.submit("test")
        await queue.drain()
        assert keepers_of(os.getpid()) == []


# ------------------------------------------------------------------------------------------------------------------- the database

BLAME = {"error": "it blocked the node", "delay": 60}


def blamed(*runs: Any) -> str:
    return json.dumps([{"id": run.id, "claims": run.claims, **BLAME} for run in runs])


async def test_a_surrender_counts_the_attempts_of_those_to_blame_alone(driver: Driver, sql: Database) -> None:
    retried, last, unwanted, innocent = [
        await driver.submit(**fields) for fields in ({"max_retries": 1}, {"max_retries": 0}, {"max_retries": 1}, {"max_retries": 0})
    ]
    runs = {run.id: run for run in await driver.claim()}
    assert await driver.store.cancel(unwanted)
    handed_back = sql.value(
        "SELECT jobqueue_internal.surrender(%s, %s::jsonb)",
        driver.node,
        blamed(*(runs[job_id] for job_id in (retried, last, unwanted))),
    )
    assert handed_back == 1
    assert sql.rows("SELECT id::text, attempt, claims, errors FROM jobqueue_internal.pending_jobs") == [(innocent, 0, 1, [])]
    assert sql.value("SELECT count(*) FROM jobqueue_internal.nodes WHERE id = %s", driver.node) == 0

    assert {(job.id, job.outcome) for job in await driver.recover()} == {
        (retried, "scheduled"),
        (last, "dead"),
        (unwanted, "cancelled"),
    }
    [[attempt, errors, due]] = sql.rows(
        "SELECT attempt, errors, extract(epoch FROM run_at - now()) FROM jobqueue_internal.scheduled_jobs"
    )
    assert (attempt, errors[0]["error"], errors[0]["node"]) == (1, BLAME["error"], driver.node)
    assert 50 < due <= 60
    assert sql.value("SELECT reason FROM jobqueue_internal.dead_jobs") == f"attempt 1 of 1 failed: {BLAME['error']}"


async def test_a_surrender_blames_no_other_run_and_comes_once(driver: Driver, sql: Database) -> None:
    job_id = await driver.submit(max_retries=0)
    [run] = await driver.claim()
    over = SimpleNamespace(id=run.id, claims=run.claims - 1)
    surrender = "SELECT jobqueue_internal.surrender(%s, %s::jsonb)"
    assert sql.value(surrender, driver.node, blamed(over)) == 1
    assert sql.rows("SELECT id::text, errors FROM jobqueue_internal.pending_jobs") == [(job_id, [])]
    assert sql.value(surrender, driver.node, blamed(run)) is None, "the lease is lost already"
    assert sql.states() == {"pending": 1}


async def test_a_job_that_is_done_in_spite_of_the_surrender_is_done(driver: Driver, sql: Database) -> None:
    await driver.submit(max_retries=0)
    [run] = await driver.claim()
    sql.value("SELECT jobqueue_internal.surrender(%s, %s::jsonb)", driver.node, blamed(run))
    await driver.finish(run, "succeeded")
    assert await driver.recover() == []
    assert sql.states() == {"succeeded": 1}


async def test_a_job_to_blame_frees_its_concurrency_key(driver: Driver, sql: Database) -> None:
    await driver.store.configure("default", QueueSettings(key_max_running=1))
    await driver.submit_many(*[{"options": Options(concurrency_key="k")}] * 2)
    await driver.store.admit()
    [run] = await driver.claim()
    sql.value("SELECT jobqueue_internal.surrender(%s, %s::jsonb)", driver.node, blamed(run))
    await driver.recover()
    await driver.store.admit()
    assert sql.states() == {"scheduled": 1, "pending": 1}


async def test_the_end_of_a_lost_node_is_notified_once(driver: Driver, sql: Database) -> None:
    with psycopg.connect(sql.url, autocommit=True) as listening:
        listening.execute("LISTEN jobqueue_lost")
        for _ in range(2):
            sql.rows("SELECT jobqueue_internal.lose_node(%s)", driver.node)
        assert [notify.payload for notify in listening.notifies(timeout=60, stop_after=1)] == [driver.node]
        assert list(listening.notifies(timeout=0.5)) == []
    assert sql.value("SELECT count(*) FROM jobqueue_internal.nodes") == 0


async def test_a_keeper_renews_the_lease_and_leaves_the_rest_of_the_nodes_row(driver: Driver, sql: Database) -> None:
    await driver.store.heartbeat(driver.node, lease=30, activity={"mail": (1.0, 0.0)})
    sql.rows("UPDATE jobqueue_internal.nodes SET lease_until = now() - interval '1 second'")
    before = sql.rows("SELECT heartbeat_at, activity FROM jobqueue_internal.nodes")
    state = NodeState.create(1)
    state.name_node(driver.node)
    state.beat()
    keeper = Keeper(Config(sql.url, DEFAULT, os.getpid(), state.file, state.slots, 3.0, 600.0, "error", {}), state)
    await trio.sleep(1.1)
    asked_at = sql.value("SELECT now()")
    await trio.to_thread.run_sync(keeper.look)
    assert sql.rows("SELECT heartbeat_at, activity FROM jobqueue_internal.nodes") == before
    renewed_at = sql.value("SELECT lease_until - interval '3 seconds' FROM jobqueue_internal.nodes")
    assert asked_at < renewed_at < sql.value("SELECT now()")
    late = True
    while late:  # on a loaded machine, the look may come too long after the beat
        sql.rows("UPDATE jobqueue_internal.nodes SET lease_until = now()")
        state.beat()
        await trio.to_thread.run_sync(keeper.look)
        late = state.since_beat > 0.5
    assert sql.value("SELECT lease_until <= now() FROM jobqueue_internal.nodes"), "a node whose loop runs renews its lease itself"


# ------------------------------------------------------------------------------------------------------------------ shared memory


def claimed(number: int, **fields: Any) -> Any:
    job_id = f"0198c7a4-0000-7000-8000-{number:012}"
    return SimpleNamespace(**{"id": job_id, "claims": 7, "attempt": 2, "kind": "mail", "queue": "default", **fields})


@pytest.fixture
def both() -> Iterator[tuple[NodeState, NodeState]]:
    """The node's side and the keeper's."""
    ours = NodeState.create(2)
    yield ours, NodeState(ours.file, ours.slots)
    os.close(ours.file)


@pytest.mark.parametrize("name", ["a", "x" * 200, "é" * 100], ids=["short", "longest", "not ASCII"])
def test_the_keeper_reads_what_the_node_has_written(name: str, both: tuple[NodeState, NodeState]) -> None:
    ours, theirs = both
    ours.name_node("0198c7a4-0000-7000-8000-000000000000")
    assert theirs.node == "0198c7a4-0000-7000-8000-000000000000"
    slot = ours.take_slot(name)
    job = claimed(1, kind=name)
    slot.enter(job)
    assert theirs.on_loop == [], "the loop is at another task"
    ours.current[0] = slot.number
    assert theirs.on_loop == [Mark(slot.number, 0, job.id, 7, 2, name, name)]
    assert theirs.in_threads == []
    next_job = claimed(2, kind="other")
    slot.enter(next_job)
    assert [(mark.job_id, mark.kind) for mark in theirs.on_loop] == [(next_job.id, "other")]
    slot.leave()
    assert theirs.on_loop == []


def test_a_name_that_is_too_long_in_utf_8_loses_its_end(both: tuple[NodeState, NodeState]) -> None:
    ours, theirs = both
    slot = ours.take_slot("漢" * 200)
    slot.enter(claimed(1), thread=9)
    [mark] = theirs.in_threads
    assert mark.queue == "漢" * 74


def test_a_job_in_a_thread_is_marked_while_it_runs_and_without_a_slot_it_runs_all_the_same(
    both: tuple[NodeState, NodeState],
) -> None:
    ours, theirs = both

    def look() -> list[int]:
        return [mark.thread for mark in theirs.in_threads]

    assert ours.call_in_thread(claimed(1), look) == [threading_id()]
    assert theirs.in_threads == []
    slots = [ours.take_slot("default") for _ in range(3)]
    assert [slot.number for slot in slots] == [1, 2, 0]
    assert slots[2] is NO_SLOT
    assert ours.call_in_thread(claimed(1), look) == []
    slots[0].free()
    assert ours.call_in_thread(claimed(1), look) == [threading_id()]


def threading_id() -> int:
    return threading.get_native_id()


def test_what_is_not_known_of_threads_blames_none_in_particular() -> None:
    assert threads.sample(2**22 + 1) is None, "there is no such process"
    assert not threads.stopped(2**22 + 1)
    before = threads.sample(os.getpid())
    assert before is not None
    assert not threads.Activity(before, before).known


@pytest.mark.parametrize("order", [b"", END])
def test_a_keeper_ends_in_silence_if_its_node_stops_before_the_configuration(order: bytes) -> None:
    command = [sys.executable, "-m", "jobqueue.keeper"]
    done = subprocess.run(command, input=order, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
