"""The service during outages of its database: PostgreSQL dies, restarts, becomes unreachable, freezes, slows down, and fails over.

In each outage, the node lives and reports the problem. Submissions get a 503 with Retry-After. Running handlers continue, and the
node writes their outcomes afterwards. Work resumes after the database is back, and every acknowledged job ends exactly once.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import trio

from jobqueue import SyncClient, documents
from jobqueue.client import retries, transports
from jobqueue.engine.leases import process_identity
from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.job import NewJob
from jobqueue.storage.embedded.cluster import PORT, ROLE, Cluster
from tests.support import postgres
from tests.support.outages import RESUMED, Node, assert_each_ended_once
from tests.support.postgres import Database
from tests.support.proxy import ProxyThread, proxy_in_thread
from tests.support.service import Effects, Service
from tests.support.storage import new_id, open_driver
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

NOTICED = 60.0
"""Seconds within which a node reports that it is not ready. About 10 on an idle machine."""

ANSWERED = 90.0
"""Seconds within which a submission gets a response, even if the database is silent. At most 45 on an idle machine."""

Start = Callable[..., "Node"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server for outages. Each test leaves it running."""
    with postgres.directory() as directory:
        cluster = Cluster(directory / "data", settings={**postgres.FAST, "max_connections": "40"})
        try:
            cluster.prepare()
            bring_up(cluster)
            yield cluster
        finally:
            cluster.stop()


class Bench(NamedTuple):
    """The database of one test.

    Attributes:
        url: connects to the server directly.
        proxied_url: connects through the proxy.
    """

    cluster: Cluster
    proxy: ProxyThread
    url: str
    proxied_url: str


@pytest.fixture
def bench(cluster: Cluster) -> Iterator[Bench]:
    with postgres.database(cluster.url) as url:
        [directory] = parse_qs(urlsplit(url).query)["host"]
        with proxy_in_thread(directory, PORT) as proxy:
            yield Bench(cluster, proxy, url, f"postgresql://{ROLE}@127.0.0.1:{proxy.port}{urlsplit(url).path}")


@pytest.fixture
def start(effects: Effects) -> Iterator[Start]:
    """Start nodes: ``start(url, "--visibility-timeout", "2")``."""
    nodes: list[Node] = []

    def start(url: str, *arguments: str) -> Node:
        options = ["--port", "0", "--database-url", url, *arguments]
        nodes.append(Node(Service(["tests.handlers.plain", *options], {"EFFECTS": str(effects.path)})))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


def bring_up(cluster: Cluster) -> None:
    cluster.start()
    postgres.wait_until_ready(cluster)


def first_process(cluster: Cluster) -> int:
    return int((cluster.pgdata / "postmaster.pid").read_text().split()[0])


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def kill(cluster: Cluster) -> None:
    os.kill(first_process(cluster), signal.SIGKILL)


@contextmanager
def frozen_processes(pids: list[int]) -> Iterator[None]:
    """Stop processes. They handle data that arrives meanwhile after they resume."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def backends(url: str) -> list[int]:
    """Return the server processes that serve nodes on this database."""
    with open_database(url) as database:
        return [
            pid
            for [pid] in database.rows(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'jobqueue %%'"
            )
        ]


# ------------------------------------------------------------------------------------------------------------------ the outages


@contextmanager
def stopped(bench: Bench) -> Iterator[None]:
    """Shut the server down in fast mode, as for an upgrade or a changed setting."""
    bench.cluster.end_server()
    yield
    bring_up(bench.cluster)


@contextmanager
def killed(bench: Bench) -> Iterator[None]:
    """Kill the server's first process with SIGKILL. The others work until they notice, then exit."""
    others = children_of(first_process(bench.cluster))
    kill(bench.cluster)
    wait_for(lambda: all(process_identity(pid).endswith(":gone") for pid in others), "the others follow")
    yield
    bench.cluster.end_server()
    bring_up(bench.cluster)


@contextmanager
def silent(bench: Bench) -> Iterator[None]:
    """Let the proxy drop all data while the connections stay open."""
    bench.proxy.blackhole()
    yield
    bench.proxy.heal()


@contextmanager
def frozen(bench: Bench) -> Iterator[None]:
    """Stop all of the server's processes, as on a suspended machine: connections open, but nothing responds."""
    first = first_process(bench.cluster)
    with frozen_processes([first]), frozen_processes(children_of(first)):  # in this order: the first process starts the others
        yield


@contextmanager
def refusing(bench: Bench) -> Iterator[None]:
    bench.proxy.refuse()
    yield
    bench.proxy.heal()


@contextmanager
def out_of_connections(bench: Bench) -> Iterator[None]:
    """Take every connection of the server, including those of the node."""
    held: list[psycopg.Connection[tuple[object, ...]]] = []
    nodes = "FROM pg_stat_activity WHERE application_name LIKE 'jobqueue %'"
    try:
        with psycopg.connect(bench.cluster.url, autocommit=True) as administrator:

            def taken() -> bool:
                administrator.execute(f"SELECT pg_terminate_backend(pid) {nodes}")
                with suppress(psycopg.OperationalError):
                    while True:
                        held.append(psycopg.connect(bench.cluster.url))
                time.sleep(0.1)  # an ending process frees its connection a little later
                return not administrator.execute(f"SELECT {nodes}").fetchall()

            # The node competes for connections, so check twice.
            wait_for(lambda: taken() and taken(), "all connections are taken")
            yield
    finally:
        for connection in held:
            connection.close()


Outage = Callable[[Bench], AbstractContextManager[None]]


@pytest.mark.parametrize(
    ("outage", "cause"),
    [
        (stopped, "cannot connect"),
        (killed, "cannot connect"),
        (silent, "timeout|no reply"),
        (frozen, "timeout|no reply"),
        (refusing, "cannot connect"),
        (out_of_connections, "too many clients|remaining connection slots"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_an_outage_delays_work_and_loses_none(outage: Outage, cause: str, bench: Bench, start: Start, effects: Effects) -> None:
    node = start(bench.proxied_url, "--queue", "default=4", "--visibility-timeout", "12")
    node.submit(*[{"kind": kind, "payload": {"seconds": 2}, "priority": 9} for kind in ("sleep", "thread")])
    node.submit(*[{"kind": "sleep", "payload": {"seconds": 0.2}}] * 40)
    through_it = set(node.acknowledged[:2])
    wait_for(lambda: through_it <= set(effects.ids("began")), "two jobs run that will go on through the outage")

    with ThreadPoolExecutor() as pool, outage(bench):
        submitted = pool.submit(node.submit, {"kind": "echo"})
        wait_for(lambda: bool(re.search(cause, " ".join(node.troubles()))), "it is not ready, and says why", seconds=NOTICED)
        wait_for(lambda: through_it <= set(effects.ids("ended")), "the handlers go on")
        assert submitted.result(timeout=ANSWERED).status_code == 503
        # The first submission may be in doubt. The next one certainly is not written, so the client may repeat it.
        answer = node.submit({"kind": "echo"})
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0

    wait_for(lambda: node.submit({"kind": "echo"}).status_code == 201, "it takes jobs again", seconds=RESUMED)
    wait_for(lambda: not node.troubles(), "it is ready again", seconds=RESUMED)
    with open_database(bench.url) as database:
        wait_for(lambda: set(database.states()) == {"succeeded"}, "all jobs are done", seconds=RESUMED + 15)
        assert_each_ended_once(database, node.acknowledged)
    for job_id in through_it:
        assert effects.lines("began").count((job_id, 1)) == effects.lines("ended").count((job_id, 1)) == 1
    assert node.service.stop() == 0, node.service.log


@contextmanager
def open_database(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


def test_server_processes_that_freeze_hold_up_nothing_but_what_they_had(bench: Bench, start: Start, effects: Effects) -> None:
    """The server lives. A node that replaces its connections is ready before the frozen processes resume."""
    node = start(bench.url, "--queue", "default=4", "--visibility-timeout", "12")
    node.submit(*[{"kind": kind, "payload": {"seconds": 2}} for kind in ("sleep", "thread")])
    through_it = set(node.acknowledged)
    wait_for(lambda: through_it <= set(effects.ids("began")), "two jobs run that will go on")
    with ThreadPoolExecutor() as pool, frozen_processes(backends(bench.url)):
        submitted = pool.submit(node.submit, {"kind": "echo"})
        wait_for(lambda: "no reply" in " ".join(node.troubles()), "it is not ready, and says why", seconds=NOTICED)
        wait_for(lambda: through_it <= set(effects.ids("ended")), "the handlers go on")
        wait_for(lambda: not node.troubles(), "it is ready again", seconds=RESUMED)
        assert not submitted.done()
    assert submitted.result(timeout=ANSWERED).status_code == 201, "the response came late"
    with open_database(bench.url) as database:
        wait_for(lambda: database.states() == {"succeeded": 3}, "all are done", seconds=RESUMED)
        assert_each_ended_once(database, node.acknowledged)
    for job_id in through_it:
        assert effects.lines("began").count((job_id, 1)) == effects.lines("ended").count((job_id, 1)) == 1
    assert node.service.stop() == 0, node.service.log


async def test_a_statement_sent_to_a_frozen_process_takes_effect_once_or_not_at_all(bench: Bench) -> None:
    """The doubt lasts until the process resumes. Afterwards, the statement has no further effect."""
    async with open_driver(bench.url) as driver:
        document = documents.encode(NewJob(id=new_id()))
        await driver.submit_many({}, {})
        await driver.claim(0)
        for lane in (driver.store._submit, driver.store._claim):
            assert lane._session is not None
            lane._session.connection.reply_timeout = 2
        with frozen_processes(backends(bench.url)):
            with pytest.raises(ConnectionLost) as submission:
                await driver.store.submit([document], wake=False)
            with pytest.raises(ConnectionLost) as claim:
                await driver.claim()
            with pytest.raises(DatabaseUnavailable, match="has not ended the session"):
                await driver.store.submit_again([document], backend=submission.value.backend)
            with pytest.raises(DatabaseUnavailable, match="has not ended the session"):
                await driver.store.held(driver.node, lost=[claim.value.backend])
        await driver.store.submit_again([document], backend=submission.value.backend)
        with trio.fail_after(60):
            while True:
                with suppress(DatabaseUnavailable):  # the session is still ending
                    held = await driver.store.held(driver.node, lost=[claim.value.backend])
                    break
        with open_database(bench.url) as database:
            before = database.rows("SELECT id, state FROM jobqueue.jobs ORDER BY id")
            assert len(before) == 3
            assert sum(state == "inflight" for _, state in before) == len(held)
            await trio.sleep(0.5)
            assert database.rows("SELECT id, state FROM jobqueue.jobs ORDER BY id") == before


def test_an_outage_longer_than_the_lease_costs_no_run(bench: Bench, start: Start, effects: Effects) -> None:
    """No node can renew its lease, so all leases have run out when the database is back."""
    nodes = [start(bench.proxied_url, "--visibility-timeout", "8", "--queue", "default=4") for _ in range(2)]
    for node in nodes:
        node.submit(*[{"kind": "sleep", "payload": {"seconds": 14}}] * 4)
    wait_for(lambda: len(effects.ids("began")) == 8, "both nodes run four jobs")
    with stopped(bench):
        time.sleep(10)
    acknowledged = [job_id for node in nodes for job_id in node.acknowledged]
    with open_database(bench.url) as database:
        wait_for(lambda: database.states() == {"succeeded": 8}, "all are done")
        assert_each_ended_once(database, acknowledged)
    assert Counter(effects.ids("began")) == Counter(acknowledged), "no node took the jobs of the other, which lived"


def test_work_resumes_without_waiting_for_the_next_poll(bench: Bench, start: Start) -> None:
    node = start(bench.proxied_url, "--poll-interval", "60", "--visibility-timeout", "3")
    with open_database(bench.url) as database:
        node.submit({"kind": "echo", "delay": 2})
        bench.proxy.blackhole()
        # The notifications of both jobs are lost with the connection. Meanwhile the lease runs out.
        database.value("SELECT jobqueue.submit('echo')")
        wait_for(lambda: any("lease is not valid" in trouble for trouble in node.troubles()), "the lease has run out")
        bench.proxy.heal()
        wait_for(lambda: database.states() == {"succeeded": 2}, "both are done, long before the next poll", seconds=45)


def test_clients_resume_soon_after_an_outage_and_not_at_once(bench: Bench, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    node = start(bench.url, "--no-workers")
    clients = 12
    resumed: set[int] = set()
    stop = threading.Event()
    pauses: list[float] = []
    pause = transports.BlockingTransport.sleep

    async def noted_pause(self: transports.BlockingTransport, seconds: float) -> None:
        pauses.append(seconds)
        await pause(self, seconds)

    monkeypatch.setattr(transports.BlockingTransport, "sleep", noted_pause)

    def submit_again_and_again(number: int) -> None:
        with SyncClient(node.service.url, patience=300) as client:
            while not stop.is_set():
                client.submit("echo")
                resumed.add(number)
                stop.wait(0.05)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(submit_again_and_again, number) for number in range(clients)]
        wait_for(lambda: len(resumed) == clients, "all of them submit")
        with stopped(bench):
            wait_for(lambda: bool(node.troubles()), "it is not ready", seconds=NOTICED)
            # A submission whose commit is in doubt gets no response for up to 15 s.
            wait_for(lambda: len(pauses) >= clients, "clients pause before they submit again")
            resumed.clear()
        wait_for(lambda: len(resumed) == clients, "they submit again", seconds=RESUMED)
        stop.set()
        for each in running:
            each.result(60)
    assert 1 <= min(pauses) <= max(pauses) <= 1 + retries.SPREAD, "the service asks for one second, and clients add some jitter"


def test_a_slow_database_makes_nobody_panic(bench: Bench, start: Start, effects: Effects) -> None:
    """Every statement takes at least 100 ms, instead of less than 1 ms."""
    bench.proxy.delay(0.1)
    node = start(bench.proxied_url, "--visibility-timeout", "15", "--queue", "default=8")
    for _ in range(3):
        assert node.submit(*[{"kind": "sleep"}] * 200).status_code == 201
    with open_database(bench.url) as database:
        wait_for(lambda: database.states() == {"succeeded": 600}, "all are done")
        assert_each_ended_once(database, node.acknowledged)
    assert node.troubles() == []
    assert Counter(effects.ids("ended")) == Counter(node.acknowledged), "each ran once"
    assert not re.search("doubt|lost|failed|wait for the database", node.service.log), node.service.log


def test_the_bounds_of_an_administrator_cut_no_statement_of_a_node_short(bench: Bench, start: Start) -> None:
    """Nodes set their own timeouts. After transaction_timeout, PostgreSQL ends the connection, not only the statement."""
    with open_database(bench.url) as database:
        bounds = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
        if database.value("SELECT current_setting('server_version_num')::integer") >= 170_000:
            bounds.append("transaction_timeout")
        for bound in bounds:
            database.rows(f"ALTER DATABASE {urlsplit(bench.url).path[1:]} SET {bound} = '300ms'")
        node = start(bench.url)
        unbounded = " ".join(f"-c {bound}=0" for bound in bounds)
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'jobqueue submit'"
        with psycopg.connect(bench.url, options=unbounded) as holder, ThreadPoolExecutor() as pool:
            holder.execute("LOCK TABLE jobqueue_internal.pending_jobs")
            answer = pool.submit(node.submit, {"kind": "echo"})
            wait_for(lambda: database.rows(waiting), "the submission waits for the lock")
            time.sleep(1)
            holder.rollback()
        assert answer.result(timeout=ANSWERED).status_code == 201
        wait_for(lambda: set(database.states()) == {"succeeded"}, "all are done", seconds=RESUMED + 10)
        assert_each_ended_once(database, node.acknowledged)
    assert node.service.stop() == 0, node.service.log
    assert "timeout" not in node.service.log, node.service.log


def test_a_scrape_is_answered_while_the_database_is_silent(bench: Bench, start: Start) -> None:
    node = start(bench.proxied_url, "--visibility-timeout", "3")
    assert "jobqueue_" in node.metrics()
    bench.proxy.blackhole()
    wait_for(lambda: bool(node.troubles()), "it is not ready", seconds=NOTICED)
    assert "jobqueue_lease_remaining" in node.metrics()


# --------------------------------------------------------------------------------------------------------------------- failover


@contextmanager
def replicated(directory: Path) -> Iterator[tuple[Cluster, Cluster]]:
    """Start a primary and a synchronous standby: COMMIT returns when both have written it."""
    primary, standby = (Cluster(directory / name, settings=postgres.FAST) for name in ("primary", "standby"))
    try:
        primary.prepare()
        bring_up(primary)
        standby.programs.choose_account(standby.data_dir)
        standby._make_directory(standby.data_dir)
        host = str(primary.run_dir)
        options = ["--write-recovery-conf", "--checkpoint=fast", "--create-slot", "--slot=standby", "--no-sync"]
        copied = primary.programs.invoke("pg_basebackup", "-D", standby.pgdata, "-h", host, "-U", ROLE, *options, seconds=300)
        assert copied.returncode == 0, copied.stderr
        standby.prepare()
        standby.start()
        with psycopg.connect(primary.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            is_synchronous = "SELECT FROM pg_stat_replication WHERE sync_state = 'sync'"
            wait_for(lambda: bool(connection.execute(is_synchronous).fetchall()), "the standby is synchronous")
        yield primary, standby
    finally:
        standby.stop()
        primary.stop()


def test_a_failover_loses_no_acknowledged_job(start: Start, effects: Effects) -> None:
    """The primary dies and stays dead. The standby is promoted, and the node finds it by its URL.

    The standby is synchronous: COMMIT returns after the standby has the commit, so acknowledged jobs survive the promotion. With an
    asynchronous standby, the last commits would be lost. A job may run again if the primary had not replicated its claim.
    """
    with postgres.directory() as directory, replicated(directory) as (primary, standby):
        hosts = ",".join(str(cluster.run_dir) for cluster in (primary, standby))
        url = f"postgresql://{ROLE}@/{ROLE}?host={hosts}&port={PORT},{PORT}&target_session_attrs=read-write"
        node = start(url, "--queue", "default=8")
        submitting = threading.Event()
        submitting.set()

        def keep_submitting() -> None:
            while submitting.is_set():
                node.submit(*[{"kind": "sleep"}] * 10)

        with ThreadPoolExecutor() as pool:
            submitter = pool.submit(keep_submitting)
            wait_for(lambda: len(effects.ids("ended")) > 100, "it works")
            kill(primary)
            primary.end_server()
            wait_for(lambda: bool(node.troubles()), "it is not ready", seconds=NOTICED)
            with psycopg.connect(standby.url, autocommit=True) as connection:
                connection.execute("SELECT pg_promote()")
            before = len(node.acknowledged)
            wait_for(lambda: len(node.acknowledged) > before, "it takes jobs again", seconds=RESUMED + 10)
            wait_for(lambda: not node.troubles(), "it is ready again", seconds=RESUMED)
            submitting.clear()
            submitter.result()
        with open_database(standby.url) as database:
            wait_for(lambda: set(database.states()) == {"succeeded"}, "all are done")
            assert_each_ended_once(database, node.acknowledged)
        assert node.service.stop() == 0, node.service.log
