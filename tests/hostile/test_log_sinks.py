"""Real services whose stdout and stderr are closed, full, abandoned or never read. Jobs, HTTP, leases and shutdowns still work."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from tests.support import ROOT
from tests.support.fork_server import Forked, fork_server
from tests.support.postgres import Database
from tests.support.waiting import wait_for

LEASE = 10.0
"""The length of a lease, in seconds."""

PROMPT = 60.0
"""Seconds for a response on a loaded machine. A node that waits for its log would never respond."""

STEADY = 2.5
"""Seconds after the jobs in which each node must renew its lease. Two heartbeats are 1.7 s apart."""

ENOUGH = {1: 1_500, 2: 2_500}
"""Failing jobs whose log lines exceed what the pipe and the writers of this many nodes hold. Two nodes may share them unequally."""

GAP = "log lines dropped: the log could not be written in time"


class Node:
    """``jobqueue serve`` with a given stderr and stdout."""

    def __init__(
        self, database_url: str, port: int, *arguments: str, stderr: int | IO[bytes] | None, stdout: int | IO[bytes] | None = None
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.processes = int(arguments[arguments.index("--processes") + 1]) if "--processes" in arguments else 1
        command = ["serve", "tests.handlers.logging", "--port", str(port), *arguments]
        command += ["--database-url", database_url, "--visibility-timeout", str(LEASE)]
        self.process: subprocess.Popen[bytes] | Forked
        if stderr is None:
            without = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "jobqueue"]
            self.process = subprocess.Popen([*without, *command], stdout=subprocess.DEVNULL, cwd=ROOT)
        else:
            with Path(os.devnull).open("r+b") as null:
                self.process = fork_server().start_on([null, stdout or null, stderr], command, os.environ)
        self._client = httpx.Client(base_url=self.url, timeout=PROMPT)
        wait_for(self.serves, "the node serves")

    def serves(self) -> bool:
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
        return self.process.wait(120)


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
        node.process.terminate()  # the parent of several nodes ends them
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.process.wait(60)
        node.process.kill()
        node.process.wait()


class Pipe:
    """A pipe for a log."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def handed_over(self) -> None:
        os.close(self.write_end)

    def read_two_lines(self) -> None:
        """Read two lines and close the pipe, like `head -2`."""
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
    return {node for (node,) in database.rows("SELECT id::text FROM jobqueue_internal.nodes")}


def fail_many(node: Node, count: int) -> None:
    text = "x" * 3_000  # a line is at most PIPE_BUF long: if processes share a full pipe, the kernel may cut longer lines
    for _ in range(count // 500):
        node.submit(*[{"kind": "fail", "payload": {"text": text}}] * 500)


def goes_on(node: Node, database: Database, jobs: int) -> None:
    """Check that all jobs run, HTTP responds, and the nodes keep their leases."""
    wait_for(lambda: len(nodes(database)) == node.processes, "all nodes have joined")
    members = nodes(database)
    fail_many(node, jobs)
    wait_for(lambda: node.get("/health").status_code == 200 and database.states() == {"dead": jobs}, "all jobs have run", 300)
    ended_at = database.value("SELECT now()")
    renewed = "SELECT count(*) FROM jobqueue_internal.nodes WHERE heartbeat_at > %s + %s * interval '1 second'"
    wait_for(lambda: database.value(renewed, ended_at, STEADY) == node.processes, "each node renews its lease")
    assert node.get("/health/ready").status_code == 200
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
    reader.join(60)
    assert not reader.is_alive(), "two lines were logged"
    wait_for(lambda: database.states() == {"succeeded": 1}, "the job ends")
    database.rows("DELETE FROM jobqueue_internal.succeeded_jobs")
    goes_on(node, database, 500)
    assert node.metric("jobqueue_log_lines_dropped_total") > 0
    assert node.stop() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_reads_the_log_until_later(start: Start, database: Database, processes: int) -> None:
    pipe = Pipe()
    node = start("--processes", str(processes), stderr=pipe.write_end)
    pipe.handed_over()
    goes_on(node, database, ENOUGH[processes])
    dropped = node.metric("jobqueue_log_lines_dropped_total")
    assert dropped > 0
    reader = pipe.read_on()
    wait_for(lambda: sum(GAP.encode() in line for line in pipe.lines) >= processes, "each node reports its gap")
    assert node.stop() == 0
    reader.join(60)
    gaps = [record for record in pipe.records() if record["event"] == GAP]
    assert dropped in {gap["lines"] for gap in gaps}
    assert all(gap["seconds"] > STEADY and gap["reason"] for gap in gaps)
    assert pipe.records()[-1]["event"] == "stopped"


@pytest.mark.parametrize("processes", [1, 2])
def test_nobody_ever_reads_the_log(start: Start, database: Database, processes: int) -> None:
    pipe = Pipe()
    node = start("--processes", str(processes), stderr=pipe.write_end, stdout=pipe.write_end)
    pipe.handed_over()
    goes_on(node, database, ENOUGH[processes])
    assert node.stop() == 0
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
    reader.join(60)
    assert [record["event"] for record in pipe.records()].count("attempt failed") == 500


def test_a_second_signal_ends_a_node_whose_log_nobody_reads(start: Start, database: Database) -> None:
    pipe = Pipe()
    node = start("--grace-period", "3600", stderr=pipe.write_end)
    pipe.handed_over()
    fail_many(node, ENOUGH[1])
    node.submit({"kind": "wait"})
    wait_for(lambda: database.states() == {"dead": ENOUGH[1], "inflight": 1}, "the jobs have run", 300)
    node.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not node.serves(), "the shutdown begins")
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(60) == 128 + signal.SIGTERM
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
    reader.join(60)
    assert log.lines.count(b"printed 99\n") == 1, "its output to stderr is complete"


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
    reader.join(60)
    events = [json.loads(line)["event"] for line in pipe.lines if line.startswith(b"{")]
    assert {"attempt failed", "job died", "from structlog", "stopped"} <= set(events)
