"""``--processes N``: several nodes on one port under one parent, as real processes. Small scripts test the parent's rules."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import trio

from jobqueue.engine.leases import process_identity
from jobqueue.errors import NodeFailed, SettingsError
from jobqueue.http.transport.listeners import open_listeners, reserved
from jobqueue.processes import parent
from jobqueue.processes.child import KILL_MARGIN
from jobqueue.settings import MAX_PROCESSES
from jobqueue.storage.embedded import stage as embedded
from tests.support import postgres
from tests.support.command_line import run_jobqueue
from tests.support.postgres import Database
from tests.support.processes import children_of
from tests.support.service import Effects, Service
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

TOKEN = "open-sesame"


class Group:
    """Two nodes on one port."""

    def __init__(self, effects: Effects, database: Database, *arguments: str, env: dict[str, str]) -> None:
        self.service = Service(
            ["tests.handlers.plain", "--port", "0", "--processes", "2", *arguments],
            {"EFFECTS": str(effects.path), "DATABASE_URL": database.url, **env},
        )
        self.url = self.service.url
        self.pid = self.service.process.pid
        self._database = database

    def submit(self, *jobs: dict[str, object]) -> None:
        status, answer = self._ask("POST", "/submit", json.dumps(jobs))
        assert status == 201, answer

    def submitted(self) -> dict[str, int]:
        """Return the count of each node. The kernel chooses which one responds: with 24 requests, it chooses each of them."""
        counts = {}
        for _ in range(24):
            _, metrics = self._ask("GET", "/metrics")
            [node] = re.findall(r'jobqueue_node_info\{.*node="([^"]+)"', metrics)
            counts[node] = sum(
                int(float(n)) for n in re.findall(r"^jobqueue_jobs_submitted_total\{.*\} (\S+)$", metrics, re.MULTILINE)
            )
        return counts

    def _ask(self, method: str, path: str, body: str = "") -> tuple[int, str]:
        """Send a request over a new connection, because each connection belongs to one node."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def pids(self) -> set[int]:
        return {pid for (pid,) in self._database.rows("SELECT pid FROM jobqueue_internal.nodes")}

    def signal(self, number: int) -> None:
        self.service.process.send_signal(number)

    def wait(self) -> int:
        return self.service.wait(120)


Start = Callable[..., Group]


@pytest.fixture
def start(effects: Effects, database: Database) -> Iterator[Start]:
    groups: list[Group] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Group:
        groups.append(Group(effects, database, *arguments, env=env or {}))
        return groups[-1]

    yield start
    for group in groups:
        children = group.pids()
        group.service.kill()
        wait_for(lambda children=children: all(map(gone, children)), "the nodes end with their parent")  # type: ignore[misc]


def gone(pid: int) -> bool:
    return process_identity(pid).endswith(":gone")


def sleep(seconds: float) -> dict[str, object]:
    return {"kind": "sleep", "payload": {"seconds": seconds, "again": 0.01}}


# --------------------------------------------------------------------------------------------------------- several nodes, one port


def test_connections_reach_all_nodes_and_all_their_jobs_are_done(start: Start, database: Database) -> None:
    group = start(env={"JOBQUEUE_TOKENS": f"admin:{TOKEN}"})
    assert group.service.banner[1] == f"  serving   {group.url} by 2 processes"
    assert "  queues    default (16 at once in each process)" in group.service.banner
    for _ in range(32):
        group.submit({"kind": "echo"})
    counts = group.submitted()
    assert len(counts) == 2
    assert min(counts.values()) > 0
    assert sum(counts.values()) == 32
    wait_for(lambda: database.states() == {"succeeded": 32}, "all are done")
    assert {str(node) for (node,) in database.rows("SELECT DISTINCT node_id FROM jobqueue_internal.finished_jobs")} == counts.keys()
    assert len(group.pids() - {group.pid}) == 2, "the parent is not a node"
    for pid in group.pids():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        assert "--supervised" in command
        assert TOKEN not in command
        assert database.url not in command
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path(os.devnull), "children of handlers cannot read the parent's messages"

    port = group.url.rpartition(":")[2]
    refused = run_jobqueue("serve", "tests.handlers.plain", "--port", port, "--processes", "2")
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith(f"Error: cannot listen on 127.0.0.1 port {port}: another process")


def test_a_node_that_is_killed_is_replaced_and_its_jobs_run_and_sigterm_lets_both_finish(
    start: Start, database: Database, effects: Effects
) -> None:
    group = start("--queue", "default=2", "--visibility-timeout", "3600")
    group.submit(*[sleep(8)] * 4)
    wait_for(lambda: len(effects.ids("began")) == 4, "both run two jobs")
    victim, survivor = sorted(group.pids())
    os.kill(victim, signal.SIGKILL)
    # The threads of a zombie may still hold its sockets, and the kernel gives them connections. After it is reaped, it has none.
    wait_for(lambda: not Path(f"/proc/{victim}").exists(), "it dies, and its socket with it")
    group.submit({"kind": "echo"})  # the survivor responds
    wait_for(lambda: database.states() == {"succeeded": 5}, "all are done, long before the lease runs out")
    assert Counter(attempt for _, attempt in effects.lines("ended")) == {1: 2, 2: 2}
    wait_for(lambda: len(group.pids() - {victim}) == 2, "there are two again")
    assert survivor in group.pids()
    assert re.search(r'"process": [12], "ended_with": "SIGKILL".*"process ended, restarting it"', group.service.log)

    group.submit(*[sleep(1)] * 4)
    wait_for(lambda: len(effects.ids("began")) == 10, "both run two jobs")
    children = group.pids()
    group.signal(signal.SIGTERM)
    assert group.wait() == 0, group.service.log
    assert database.states() == {"succeeded": 9}
    assert database.rows("SELECT * FROM jobqueue_internal.nodes") == []
    assert all(map(gone, children))


def test_a_node_that_does_not_start_again_ends_all_with_its_reason(start: Start, database: Database) -> None:
    group = start()
    children = group.pids()
    database.rows("UPDATE jobqueue_internal.schema_version SET version = 999, oldest_node = 999")
    os.kill(min(children), signal.SIGKILL)
    assert group.wait() == 1
    last = group.service.log.strip().splitlines()[-1]
    assert re.match("Error: process [12] does not start: the database needs nodes of jobqueue schema version 999", last)
    assert all(map(gone, children))
    assert database.rows("SELECT * FROM jobqueue_internal.nodes WHERE pid = %s", max(children)) == [], (
        "the other node left properly"
    )


def test_too_many_processes_are_refused() -> None:
    done = run_jobqueue("serve", "tests.handlers.plain", "--processes", str(MAX_PROCESSES + 1))
    assert (done.returncode, done.stdout) == (1, "")
    bounds = f"from 1 to {MAX_PROCESSES}, got {MAX_PROCESSES + 1}"
    assert done.stderr == f"Error: the number of processes (--processes) must be {bounds}\n"


# -------------------------------------------------------------------------------------------------------------------- how all ends


def test_signals_to_every_process_are_no_second_signal(start: Start, database: Database, effects: Effects) -> None:
    group = start("--queue", "default=1")
    group.submit(sleep(1), sleep(1))
    wait_for(lambda: len(effects.ids("began")) == 2, "each runs a job")
    for pid in group.pids():
        os.kill(pid, signal.SIGTERM)  # like a supervisor that signals the whole process group
    group.signal(signal.SIGTERM)
    assert group.wait() == 0, group.service.log
    assert database.states() == {"succeeded": 2}
    assert "Traceback" not in group.service.log


def test_a_second_signal_ends_all_at_once(start: Start, effects: Effects) -> None:
    group = start("--grace-period", "3600")
    group.submit(sleep(3600))
    wait_for(lambda: bool(effects.ids("began")), "a job runs")
    children = group.pids()
    group.signal(signal.SIGTERM)
    wait_for(lambda: group.service.log.count("shutting down") == 2, "both drain")
    group.signal(signal.SIGINT)
    assert group.wait() == 128 + signal.SIGINT
    wait_for(lambda: all(map(gone, children)), "the nodes end too")


def test_nothing_outlives_a_parent_that_is_killed(effects: Effects) -> None:
    with postgres.directory() as directory:
        service = Service(
            [
                "tests.handlers.plain",
                "--port",
                "0",
                "--processes",
                "2",
                "--grace-period",
                "0",
                "--data-dir",
                str(directory / "data"),
            ],
            {"EFFECTS": str(effects.path)},
        )
        try:
            answer = httpx.post(f"{service.url}/submit", json=[sleep(3600)] * 2, timeout=60)
            assert answer.status_code == 201
            wait_for(lambda: len(effects.ids("began")) == 2, "they run")
            children = children_of(service.process.pid)
            assert len(children) == 3, "two nodes and PostgreSQL"
        finally:
            service.kill()
        wait_for(lambda: all(map(gone, children)), "all of them end")


# -------------------------------------------------------------------------------------------------------------- the parent's rules


class Script:
    """A process that stands in for a node. It counts its starts, and runs one of the `lives` in each."""

    def __init__(self, path: Path, *lives: str) -> None:
        self._path = path
        self._lives = lives

    @property
    def command(self) -> list[str]:
        lives = "\n".join(f"    [lambda: ({life})]," for life in self._lives)
        text = f"""
import os, signal, socket, sys, time
parent = socket.socket(fileno=0)
with open({str(self._path)!r}, "a+") as file:
    file.write("started\\n")
    file.flush()
    file.seek(0)
    start = len(file.readlines())
def say(text): parent.sendall(text.encode() + b"\\n")
lives = [
{lives}
]
lives[min(start, len(lives)) - 1][0]()
"""
        return [sys.executable, "-I", "-S", "-c", text]

    @property
    def starts(self) -> int:
        return len(self._path.read_text().splitlines())


SERVES, ENDS, FOR_EVER = "say('{}')", "sys.exit(3)", "time.sleep(3600)"
AWAY = """say('{"reason": "no database", "passing": true}')"""
REFUSES = """say('{"reason": "as asked"}')"""


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    monkeypatch.setattr(parent, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(parent, "LONGEST_PAUSE", 0.01)
    return lambda *lives: Script(tmp_path / "starts", *lives)


Scripted = Callable[..., Script]


async def test_a_process_that_never_serves_is_given_up_with_its_reason_and_code(scripted: Scripted) -> None:
    script = scripted(f"{REFUSES}, {ENDS}")
    with pytest.raises(NodeFailed, match=r"process 7 does not start: as asked$") as failure, trio.fail_after(60):
        await parent._Node(script.command, 7, 0).run(b"{}\n", trio.Event())
    assert failure.value.exit_code == 3
    assert script.starts == parent.START_TRIES


async def test_a_process_that_says_nothing_is_given_up_with_how_it_ended(scripted: Scripted) -> None:
    script = scripted("os.kill(os.getpid(), 9)")
    with pytest.raises(NodeFailed, match=r"process 7 does not start: SIGKILL$") as failure, trio.fail_after(60):
        await parent._Node(script.command, 7, 0).run(b"{}\n", trio.Event())
    assert failure.value.exit_code == 128 + signal.SIGKILL


async def test_a_database_that_is_away_at_the_first_start_ends_all(scripted: Scripted) -> None:
    script = scripted(f"{AWAY}, {ENDS}")
    with pytest.raises(NodeFailed, match="no database"), trio.fail_after(60):
        await parent._Node(script.command, 7, 0).run(b"{}\n", trio.Event())


async def test_a_process_that_served_comes_back_however_often_and_waits_for_the_database(scripted: Scripted) -> None:
    tries = parent.START_TRIES + 2
    script = scripted(*[f"{SERVES}, {ENDS}"] * tries, *[f"{AWAY}, {ENDS}"] * tries, FOR_EVER)
    node, stopping = parent._Node(script.command, 7, 0), trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run, b"{}\n", stopping)
            while script_starts(script) <= 2 * tries:  # noqa: ASYNC110 - another process's state
                await trio.sleep(0.01)
            stopping.set()
    assert script.starts == 2 * tries + 1
    assert node.failure is None, "it ended by the SIGTERM that it was sent"


def script_starts(script: Script) -> int:
    try:
        return script.starts
    except FileNotFoundError:
        return 0


async def test_a_process_that_does_not_end_is_killed_in_time(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "SHUTDOWN_MARGIN", 0.2)
    script = scripted(f"signal.signal(signal.SIGTERM, signal.SIG_IGN), {SERVES}, {FOR_EVER}")
    node, stopping = parent._Node(script.command, 7, 0.1), trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.run, b"{}\n", stopping)
            await node.serving.wait()
            told_at = trio.current_time()
            stopping.set()
    assert trio.current_time() - told_at >= 0.1 + 0.2 + KILL_MARGIN, "it had time to end"
    assert str(node.failure) == "process 7 did not stop cleanly: SIGKILL"
    assert node.failure is not None
    assert node.failure.exit_code == 128 + signal.SIGKILL


async def test_pauses_grow_up_to_a_bound(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(parent, "LONGEST_PAUSE", 0.2)
    script = scripted(f"{SERVES}, {ENDS}")
    pauses: list[float] = []

    class Log:
        def error(self, _: str, *, again_in: float, **_others: object) -> None:
            pauses.append(again_in)
            if len(pauses) == 5:
                stopping.set()

    monkeypatch.setattr(parent, "log", Log())
    stopping = trio.Event()
    with trio.fail_after(60):
        await parent._Node(script.command, 7, 0).run(b"{}\n", stopping)
    assert pauses == [0.05, 0.1, 0.2, 0.2, 0.2]


async def test_a_reserved_port_is_for_those_that_share_it() -> None:
    with reserved("127.0.0.1", 0) as (port, urls):
        assert urls == [f"http://127.0.0.1:{port}"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        listeners: list[trio.SocketListener] = []
        for _ in range(2):  # before a node listens, and while it does
            with pytest.raises(SettingsError, match="another process listens there"):
                open_listeners("127.0.0.1", port)
            with pytest.raises(SettingsError, match="another process listens there"), reserved("127.0.0.1", port):
                pass
            listeners += open_listeners("127.0.0.1", port, shared=True)
            socket.create_connection(("127.0.0.1", port)).close()
        for listener in listeners:
            await listener.aclose()


async def test_a_port_can_be_reserved_despite_old_connections_and_is_free_afterwards() -> None:
    [listener] = open_listeners("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)):
        await (await listener.accept()).aclose()  # the side that closes first keeps the address for a minute (TIME_WAIT)
    await listener.aclose()
    with reserved("127.0.0.1", port):
        pass
    [listener] = open_listeners("127.0.0.1", port)
    await listener.aclose()


async def test_the_embedded_postgresql_has_connections_for_the_most_processes() -> None:
    with postgres.directory() as directory:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(embedded.run, directory / "data", MAX_PROCESSES)
            with psycopg.connect(url) as connection:
                row = connection.execute("SHOW max_connections").fetchone()
            nursery.cancel_scope.cancel()
    assert row is not None
    assert int(row[0]) > MAX_PROCESSES * embedded.NODE_CONNECTIONS
