"""Real services whose stdout and stderr are closed, full, abandoned or never read: jobs, HTTP, the lease and the shutdown go on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from tests.conftest import ROOT, Database
from tests.waiting import wait_for

LEASE = 5.0
"""Seconds: a node whose loop is blocked loses it during the test."""

PROMPT = 5.0
"""Seconds for a whole answer on a busy machine."""

ENOUGH = 2_500
"""Failing jobs whose log lines are more than the pipe and the queues of two nodes hold."""

GAP = "log lines were dropped while the log could not be written"


class Node:
    """``jobqueue serve`` with a stderr, and maybe a stdout, of the test's choice."""

    def __init__(
        self, database_url: str, port: int, *arguments: str, stderr: int | IO[bytes] | None, stdout: int | IO[bytes] | None = None
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.processes = int(arguments[arguments.index("--processes") + 1]) if "--processes" in arguments else 1
        command = [sys.executable, "-m", "jobqueue", "serve", "tests.log_handlers", "--port", str(port), *arguments]
        command += ["--database-url", database_url, "--visibility-timeout", str(LEASE)]
        if stderr is None:
            command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
        self.process = subprocess.Popen(command, stdout=stdout or subprocess.DEVNULL, stderr=stderr, cwd=ROOT)
        self._client = httpx.Client(base_url=self.url, timeout=PROMPT)
        wait_for(self._serves, "the node serves")

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.process.returncode
        with contextlib.suppress(httpx.TransportError):
            return self.get("/health/ready").status_code == 200
        return False

    def get(self, path: str) -> httpx.Response:
        return self._client.get(path)

    def submit(self, *jobs: dict[str, Any]) -> list[str]:
        answer = self._client.post("/submit", json=jobs)
        assert answer.status_code == 201, answer.text
        ids: list[str] = answer.json()["ids"]
        return ids

    def metric(self, name: str) -> float:
        [value] = re.findall(rf"^{name} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(value)

    def close(self) -> None:
        self._client.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        found: int = chosen.getsockname()[1]
        return found


Start = Callable[..., Node]


@pytest.fixture
def start(database_url: str, port: int) -> Iterator[Start]:
    started: list[Node] = []

    def begin(*arguments: str, **streams: Any) -> Node:
        started.append(Node(database_url, port, *arguments, **streams))
        return started[-1]

    yield begin
    for node in started:
        node.close()
        node.process.terminate()  # the parent of several ends them
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.process.wait(15)
        node.process.kill()
        node.process.wait()


class Pipe:
    """A pipe for a log."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def handed_over(self) -> None:
        os.close(self.write_end)

    def read_two_lines(self) -> None:
        """Be `head -2`: read two lines, then go away."""
        with open(self.read_end, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor
            for _ in range(2):
                while file.read(1) != b"\n":
                    pass

    def read_on(self) -> threading.Thread:
        self.lines: list[bytes] = []

        def read() -> None:
            with open(self.read_end, "rb") as file:  # noqa: PTH123 - a descriptor
                self.lines.extend(file)

        reader = threading.Thread(target=read)
        reader.start()
        return reader

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def nodes(database: Database) -> set[str]:
    return {node for (node,) in database.rows("SELECT id::text FROM jobqueue.nodes")}


def fail_many(node: Node, count: int = ENOUGH) -> None:
    text = "x" * 3_000  # a line is no longer than PIPE_BUF: the kernel may cut longer ones where two processes share a full pipe
    for _ in range(count // 500):
        node.submit(*[{"kind": "fail", "payload": {"text": text}}] * 500)


def goes_on(node: Node, database: Database, jobs: int) -> None:
    """Have all jobs run while the log is as it is, HTTP answer, and the nodes keep their leases."""
    wait_for(lambda: len(nodes(database)) == node.processes, "all nodes have joined")
    members = nodes(database)
    fail_many(node, jobs)
    wait_for(lambda: node.get("/health").status_code == 200 and database.states() == {"dead": jobs}, "all jobs have run", 90)
    until = time.monotonic() + LEASE + 1
    while time.monotonic() < until:
        began = time.monotonic()
        assert node.get("/health/ready").status_code == 200
        assert time.monotonic() - began < PROMPT
        time.sleep(0.2)
    assert nodes(database) == members, "a node lost its lease"
    assert node.metric("jobqueue_lease_remaining_seconds") > 0


@pytest.mark.parametrize("processes", [1, 2])
def test_the_reader_of_the_log_goes_away(start: Start, database: Database, processes: int) -> None:
    pipe = Pipe()
    reader = threading.Thread(target=pipe.read_two_lines)
    reader.start()
    node = start("--processes", str(processes), stderr=pipe.write_end)
    pipe.handed_over()
    node.submit({"kind": "async"})
    reader.join(30)
    assert not reader.is_alive(), "two lines were logged"
    wait_for(lambda: database.states() == {"succeeded": 1}, "the job ends")
    database.rows("DELETE FROM jobqueue.succeeded_jobs")
    goes_on(node, database, 500)
    assert node.metric("jobqueue_log_lines_dropped_total") > 0
    assert node.stop() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_reads_the_log_until_later(start: Start, database: Database, processes: int) -> None:
    pipe = Pipe()
    node = start("--processes", str(processes), stderr=pipe.write_end)
    pipe.handed_over()
    goes_on(node, database, ENOUGH)
    dropped = node.metric("jobqueue_log_lines_dropped_total")
    assert dropped > 0
    reader = pipe.read_on()
    wait_for(lambda: sum(GAP.encode() in line for line in pipe.lines) >= processes, "each node reports its gap")
    assert node.stop() == 0
    reader.join(10)
    gaps = [record for record in pipe.records() if record["event"] == GAP]
    assert dropped in {gap["lines"] for gap in gaps}
    assert all(gap["seconds"] > LEASE and gap["reason"] for gap in gaps)
    assert pipe.records()[-1]["event"] == "stopped"


@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_ever_reads_the_log(start: Start, database: Database, processes: int) -> None:
    pipe = Pipe()
    node = start("--processes", str(processes), stderr=pipe.write_end, stdout=pipe.write_end)
    pipe.handed_over()
    goes_on(node, database, ENOUGH)
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 10
    os.close(pipe.read_end)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_disk_of_the_log_is_full(start: Start, database: Database, processes: int) -> None:
    with Path("/dev/full").open("wb") as full:
        node = start("--processes", str(processes), stderr=full, stdout=full)
    goes_on(node, database, 500)
    assert node.metric("jobqueue_log_lines_dropped_total") > 0
    assert node.stop() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_stderr_is_closed_from_the_start(start: Start, database: Database, processes: int) -> None:
    node = start("--processes", str(processes), stderr=None)
    goes_on(node, database, 500)
    assert Path(f"/proc/{node.process.pid}/fd/2").readlink() == Path(os.devnull), "no socket has its number"
    assert node.stop() == 0


def test_a_non_blocking_pipe_gets_every_line(start: Start, database: Database) -> None:
    pipe = Pipe()
    os.set_blocking(pipe.write_end, False)
    node = start(stderr=pipe.write_end)
    pipe.handed_over()
    fail_many(node, 500)
    wait_for(lambda: database.states() == {"dead": 500}, "all jobs have run")
    reader = pipe.read_on()
    assert node.stop() == 0
    reader.join(10)
    assert [record["event"] for record in pipe.records()].count("attempt failed") == 500


def test_a_second_signal_ends_a_node_whose_log_nobody_reads(start: Start, database: Database) -> None:
    pipe = Pipe()
    node = start("--grace-period", "60", stderr=pipe.write_end)
    pipe.handed_over()
    fail_many(node)
    node.submit({"kind": "wait"})
    wait_for(lambda: database.states() == {"dead": ENOUGH, "inflight": 1}, "the jobs have run", 90)
    node.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(3) == 128 + signal.SIGTERM
    os.close(pipe.read_end)


def test_a_reader_that_leaves_stdout_does_not_change_the_exit_code(start: Start, database: Database) -> None:
    pipe = Pipe()
    log = Pipe()
    os.close(pipe.read_end)
    node = start(stderr=log.write_end, stdout=pipe.write_end)
    pipe.handed_over()
    log.handed_over()
    reader = log.read_on()
    node.submit({"kind": "print", "payload": {"lines": 100}})
    wait_for(lambda: database.states() == {"succeeded": 1}, "the job ends")
    assert node.stop() == 0
    reader.join(10)
    assert log.lines.count(b"printed 99\n") == 1, "what it prints to stderr is there"


def test_a_handler_that_destroys_the_log_destroys_its_own(start: Start, database: Database) -> None:
    pipe = Pipe()
    node = start(stderr=pipe.write_end, stdout=pipe.write_end)
    pipe.handed_over()
    reader = pipe.read_on()
    node.submit({"kind": "vandalize"})
    wait_for(lambda: database.states() == {"succeeded": 1}, "the vandal has run")
    node.submit({"kind": "fail"}, {"kind": "async"}, {"kind": "process"})
    wait_for(lambda: database.states() == {"succeeded": 3, "dead": 1}, "others run")
    assert node.stop() == 0
    reader.join(10)
    events = [json.loads(line)["event"] for line in pipe.lines if line.startswith(b"{")]
    assert {"attempt failed", "job died", "from structlog", "stopped"} <= set(events)
