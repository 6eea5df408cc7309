"""Misbehaving handlers in the real service: each of their jobs ends with a reason, and other jobs are unaffected."""

from __future__ import annotations

import json
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.handlers.plain import note_start
from tests.support.postgres import Database
from tests.support.service import Service, Start, submit
from tests.support.waiting import wait_for

MAX_RETRIES = 1


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    return tmp_path / "effects"


@pytest.fixture
def start(service: Start, effects: Path) -> Start:
    def start(*arguments: str) -> Service:
        return service("tests.handlers.poison", *arguments, env={"EFFECTS": str(effects)})

    return start


def runs(effects: Path) -> Counter[str]:
    """Return how often each job ran."""
    return Counter(line.split()[1] for line in effects.read_text().splitlines()) if effects.exists() else Counter()


def lines(node: Service, event: str) -> list[dict[str, Any]]:
    """Return the lines of an event in a node's log."""
    return [line for line in map(json.loads, list(node.log_lines)) if line["event"] == event]


# ------------------------------------------------------------------------------------------------------- what a node can stand

DIED = r"the process that ran the handler died \(killed, out of memory, or a crash in C\)"

TIMED_OUT = r"timed out after 2\.0 s"

DEAD: list[tuple[str, str | None, float | None, str]] = [
    # kind, argument, timeout, pattern of the reason
    ("exit-cpu", None, None, DIED),
    ("segfault-cpu", None, None, DIED),
    ("killed-cpu", None, None, DIED),
    ("memory-cpu", None, None, f"MemoryError|{DIED}"),
    ("recurse", None, None, "RecursionError: maximum recursion depth exceeded"),
    ("recurse-thread", None, None, "RecursionError: maximum recursion depth exceeded"),
    ("recurse-cpu", None, None, "RecursionError: maximum recursion depth exceeded"),
    ("hang-thread", None, 2.0, TIMED_OUT),
    ("hang-cpu", None, 15.0, r"timed out after 15\.0 s"),
    ("swallow", None, 2.0, TIMED_OUT),
    ("shield", None, 2.0, TIMED_OUT),
    ("keep-cancelled", None, None, "Cancelled"),
    *(
        (kind, name, None, reason)
        for kind in ("raise", "raise-thread", "raise-cpu")
        for name, reason in (
            ("BaseException", "BaseException: of no kind"),
            ("SystemExit", "SystemExit: 3"),
            ("KeyboardInterrupt", "KeyboardInterrupt"),
            ("GeneratorExit", "GeneratorExit"),
            ("StopIteration", "StopIteration"),
            ("StopAsyncIteration", "StopAsyncIteration"),
            ("group", "2 errors: KeyboardInterrupt.*; ValueError: one of two"),
            ("Unpicklable", "Unpicklable"),
            ("Speechless", "Speechless"),
        )
    ),
    *(
        (kind, name, None, reason)
        for kind in ("return", "return-thread", "return-cpu")
        for name, reason in (
            ("an object", "cannot be stored as JSON.*object"),
            ("a lock", "lock"),
            ("U+0000", r"cannot be stored as JSON.*U\+0000"),
            ("NaN", "cannot be stored as JSON.*not JSON compliant"),
            ("100 MB", "100000002 bytes"),
        )
    ),
    ("return", "3 million lists", None, "9000001 bytes"),
]


@pytest.mark.long
def test_whatever_a_handler_does_its_job_ends_with_a_reason_and_no_other_job_is_harmed(
    start: Start, client: httpx.Client, database: Database, effects: Path
) -> None:
    node = start("--queue", "default=32", "--queue", "good=4")
    [node_id] = database.rows("SELECT id FROM jobqueue_internal.nodes")
    good = submit(client, node, [{"kind": kind, "queue": "good"} for kind in ("good", "good-cpu")] * 100)
    poison = submit(
        client,
        node,
        [
            {"kind": kind, "payload": {"name": name}, "timeout": timeout, "max_retries": MAX_RETRIES}
            for kind, name, timeout, _ in DEAD
        ],
    )
    wait_for(lambda: database.states() == {"succeeded": len(good), "dead": len(poison)}, "all have ended", seconds=300)

    found = {
        str(job_id): (attempt, reason, errors)
        for job_id, attempt, reason, errors in database.rows("SELECT id, attempt, reason, errors FROM jobqueue_internal.dead_jobs")
    }
    wrong = []
    for job_id, (kind, name, _, expected) in zip(poison, DEAD, strict=True):
        attempt, reason, errors = found[job_id]
        begins = f"attempt {MAX_RETRIES + 1} of {MAX_RETRIES + 1} failed: "
        if not (reason.startswith(begins) and re.search(expected, reason)):
            wrong.append(f"{kind}({name or ''}): {reason}")
        if (attempt, len(errors), runs(effects)[job_id]) != (MAX_RETRIES + 1,) * 3:
            wrong.append(f"{kind}({name or ''}): attempt {attempt}, {len(errors)} errors, ran {runs(effects)[job_id]} times")
    assert wrong == []

    assert {runs(effects)[job_id] for job_id in good} == {1}
    assert database.rows("SELECT id FROM jobqueue_internal.nodes") == [node_id], "one node, which never lost its lease"
    again = submit(client, node, [{"kind": "good"}] * 40)
    wait_for(lambda: database.states()["succeeded"] == len(good) + len(again), "every worker is still there")
    assert node.stop() == 0, node.log[-2000:]


def test_user_code_outside_of_the_handler_is_no_danger_either(start: Start, client: httpx.Client, database: Database) -> None:
    node = start()
    submit(client, node, [{"kind": "exiting-payload", "payload": {"value": {}}}, {"kind": "forgetful-discard"}])
    wait_for(lambda: database.states() == {"dead": 2}, "both end at once")
    reasons = dict(database.rows("SELECT kind, reason FROM jobqueue_internal.dead_jobs WHERE attempt = 1"))
    assert "the payload does not fit the handler" in reasons["exiting-payload"]
    assert "SystemExit" in reasons["exiting-payload"]
    assert "Forgetful" in reasons["forgetful-discard"]
    assert node.stop() == 0


# ------------------------------------------------------------------------------------------------------ what ends the process


@pytest.mark.parametrize("kind", ["exit", "exit-thread", "segfault", "segfault-thread"])
def test_a_job_that_ends_its_process_runs_out_of_attempts_and_the_others_are_done(  # noqa: PLR0917
    kind: str, start: Start, client: httpx.Client, database: Database, effects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFECTS", str(effects))
    code = -signal.SIGSEGV if kind.startswith("segfault") else 9
    node = start("--queue", "default=4")
    # Not over HTTP: the job may end the process before the response is sent.
    poison = str(database.value("SELECT jobqueue.submit(%s, max_retries => %s, priority => 10)", kind, MAX_RETRIES))
    for _ in range(MAX_RETRIES + 1):
        note_start()
        assert node.wait(60) == code
        database.rows("SELECT jobqueue.submit('good') FROM generate_series(1, 50)")
        node = start("--queue", "default=4")  # like a supervisor
    wait_for(lambda: database.states() == {"dead": 1, "succeeded": 50 * (MAX_RETRIES + 1)}, "the others are done")
    job = client.get(f"{node.url}/jobs/{poison}").json()
    assert (job["attempt"], runs(effects)[poison]) == (MAX_RETRIES + 1, MAX_RETRIES + 1)
    assert job["reason"] == f"lease lost {MAX_RETRIES + 1} times: the job may be killing its process"
    assert node.stop() == 0


# --------------------------------------------------------------------------------------------------------- what blocks the loop


def test_a_job_that_blocks_the_loop_past_the_limit_is_named_and_all_run_elsewhere(
    start: Start, client: httpx.Client, database: Database, effects: Path
) -> None:
    stuck = start("--stall-limit", "5", "--queue", "default=4")
    old = database.value("SELECT id FROM jobqueue_internal.nodes")
    ids = submit(client, stuck, [{"kind": "sleep", "payload": {"seconds": 12}}] * 3)
    wait_for(lambda: len(runs(effects)) == 3, "three run")
    ids += submit(client, stuck, [{"kind": "block", "payload": {"seconds": 16}}])
    wait_for(lambda: len(runs(effects)) == 4, "the loop is blocked")
    other = start("--queue", "default=4")
    wait_for(lambda: database.states() == {"succeeded": 4}, "the other node has taken them over")
    attempts = dict(database.rows("SELECT id::text, attempt FROM jobqueue_internal.finished_jobs WHERE node_id <> %s", old))
    assert attempts == {**dict.fromkeys(ids[:3], 1), ids[3]: 2}, "the attempt of the one that blocks counts"
    wait_for(lambda: database.value("SELECT count(*) FROM jobqueue_internal.nodes") == 2, "the stuck one joins again")
    assert database.value("SELECT count(*) FROM jobqueue_internal.nodes WHERE id = %s", old) == 0
    wait_for(lambda: bool(lines(stuck, "the loop runs again")), "it says how long it took")
    for event in ("the loop is blocked", "the loop runs again"):
        [line] = lines(stuck, event)
        assert {name: line[name] for name in ("job_id", "kind", "queue", "attempt")} == {
            "job_id": ids[3],
            "kind": "block",
            "queue": "default",
            "attempt": 1,
        }
        assert re.search(r"tests/handlers/poison\.py:\d+ in block$", line["at"])
    wait_for(lambda: lines(stuck, "lease lost: other nodes have this node's jobs"), "the log says so")
    assert runs(effects) == dict.fromkeys(ids, 2)
    submit(client, stuck, [{"kind": "good"}] * 10)
    wait_for(lambda: database.states() == {"succeeded": 14}, "both go on")
    assert [stuck.stop(), other.stop()] == [0, 0]
