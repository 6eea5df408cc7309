"""``jobqueue submit --file`` submits each of thousands of jobs once, despite network failures, a kill, or Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.command_line import call, environment
from tests.support.fork_server import Forked, fork_server
from tests.support.interference import CUT, LOSE, Answer, Interference, interfering
from tests.support.postgres import Database
from tests.support.service import Service

JOBS = 5_000


@pytest.fixture
def node(service: Callable[..., Service]) -> Service:
    return service("examples.quickstart", "--no-workers")


@pytest.fixture
def bad_day(node: Service) -> Iterator[Interference]:
    with interfering(node.url) as interference:
        yield interference


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written = tmp_path / "jobs.ndjson"
    written.write_text("".join(json.dumps({"payload": {"n": n}}) + "\n" for n in range(JOBS)))
    return written


def numbers(database: Database) -> list[int]:
    return [n for [n] in database.rows("SELECT (payload->>'n')::int FROM jobqueue.jobs ORDER BY 1")]


def start(*arguments: str) -> Forked:
    return fork_server().start(["submit", *arguments], environment({}))


def test_network_failures_neither_lose_nor_duplicate_jobs(bad_day: Interference, database: Database, file: Path) -> None:
    bad_day.mishaps = [CUT, LOSE, CUT, Answer(503, {"Retry-After": "0"}), LOSE, LOSE, Answer(502), CUT, LOSE]
    done = call("submit", "default", "--file", str(file), "--json", "--url", bad_day.url)
    assert bad_day.mishaps == []
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["line"] for line in lines] == list(range(1, JOBS + 1))
    assert any(line["existing"] for line in lines)
    assert numbers(database) == list(range(JOBS))
    ids = dict(database.rows("SELECT (payload->>'n')::int, id::text FROM jobqueue.jobs"))
    assert [line["id"] for line in lines] == [ids[n] for n in range(JOBS)]
    assert "5,000 jobs submitted" in done.stderr


def test_after_a_kill_the_same_command_resumes_the_run(bad_day: Interference, database: Database, file: Path) -> None:
    arguments = ["default", "--file", str(file), "--run-id", "monday", "--url", bad_day.url]
    bad_day.mishaps = [*[Answer(503, {"Retry-After": "0"})] * 2, LOSE]
    killed = start(*arguments)
    while database.value("SELECT to_regclass('jobqueue.jobs') IS NOT NULL") and not numbers(database):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    there = len(numbers(database))
    assert there > 0

    done = call("submit", *arguments)
    assert numbers(database) == list(range(JOBS))
    before = re.search(r"5,000 jobs submitted, ([\d,]+) of them already existed", done.stdout)
    assert before is not None
    assert there <= int(before[1].replace(",", ""))
    assert call("submit", *arguments).stdout == "5,000 jobs submitted, 5,000 of them already existed\n"
    assert len(numbers(database)) == JOBS


def test_an_interrupted_run_prints_how_to_resume_it(bad_day: Interference, database: Database, file: Path) -> None:
    bad_day.mishaps = [LOSE, *[Answer(503, {"Retry-After": "1"})] * 30]
    interrupted = start("default", "--file", str(file), "--url", bad_day.url)
    while len(bad_day.passed) < 2:
        assert interrupted.poll() is None
        time.sleep(0.01)
    interrupted.send_signal(signal.SIGINT)
    _, stderr = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130
    bad_day.mishaps = []
    resume = re.search(r"0 jobs submitted\. To submit the rest, run the same command with (--run-id \w+)", stderr)
    assert resume is not None, stderr
    done = call("submit", "default", "--file", str(file), "--url", bad_day.url, *resume[1].split())
    assert done.stdout == "5,000 jobs submitted, 1,000 of them already existed\n"
    assert numbers(database) == list(range(JOBS))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"priority": "high"}', "priority must be an integer"),
        ("[1]", "is not a JSON object"),
        ('{"payload": "\\u0000"}', "U+0000"),
    ],
)
def test_the_error_for_an_invalid_line_has_its_number(node: Service, database: Database, line: str, said: str) -> None:
    lines = "\n".join(['{"payload": {"n": 1}}'] * 1_000 + ["", line])
    failed = call("submit", "--file", "-", "--url", node.url, stdin=lines, code=1)
    assert failed.stderr.splitlines()[-1].startswith("Error: line 1002")
    assert said in failed.stderr.splitlines()[-1]
    assert "1,000 jobs submitted" in failed.stderr
    assert len(numbers(database)) == 1_000


def test_options_are_defaults_for_the_lines_of_the_file(node: Service, database: Database) -> None:
    lines = '{"payload": {"n": 1}}\n{"payload": {"n": 2}, "kind": "flaky", "priority": 1}\n'
    call("submit", "default", "--priority", "5", "--queue", "slow", "--file", "-", "--url", node.url, stdin=lines)
    found = database.rows("SELECT kind, priority, queue FROM jobqueue.jobs ORDER BY payload->>'n'")
    assert found == [("default", 5, "slow"), ("flaky", 1, "slow")]
    for wrong in (["{}"], ["--wait"], ["--unique-key", "k"], ["--idempotency-key", "k"]):
        assert "--file cannot be combined" in call("submit", "default", *wrong, "--file", "-", code=2).stderr
    assert "--run-id requires --file" in call("submit", "default", "--run-id", "x", code=2).stderr


def test_progress_is_shown_only_on_a_terminal(node: Service, file: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jobqueue", "submit", "default", "--file", str(file), "--url", node.url]
    shown = subprocess.Popen(
        command, cwd=ROOT, env=environment({"TERM": "xterm"}), stderr=theirs, stdout=subprocess.PIPE, text=True
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        seen += chunk
    os.close(ours)
    out, _ = shown.communicate(timeout=60)
    assert out == "5,000 jobs submitted\n"
    assert "━" in seen.decode()
    assert re.search(r"\d,000 jobs, run [0-9a-f]{12}", seen.decode())

    piped = call("submit", "default", "--file", str(file), "--url", node.url)
    assert re.fullmatch(r"run [0-9a-f]{12}\n", piped.stderr)
