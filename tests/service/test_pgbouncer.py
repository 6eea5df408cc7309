"""The service behind a real PgBouncer in transaction mode, which may give a server connection to another client after each COMMIT.

So nothing that a session prepares, sets, or listens to lasts longer than a transaction. The server process that ran a client's last
transaction may already run one of another client.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.errors import ConnectionLost, DatabaseUnavailable, RefusedData
from jobqueue.job import NewJob
from jobqueue.keeper.node_state import NodeState
from jobqueue.keeper.watch import Config, Keeper
from jobqueue.schema_names import DEFAULT
from jobqueue.storage import doctor, schema
from jobqueue.storage import lane as lane_module
from jobqueue.storage.connection import behind_pooler, connect
from jobqueue.storage.embedded.binaries import Programs
from jobqueue.storage.embedded.cluster import PORT, ROLE
from jobqueue.storage.lane import Lane
from jobqueue.storage.postgres import lanes
from tests.support import postgres
from tests.support.outages import RESUMED, Node, assert_each_ended_once
from tests.support.postgres import Database
from tests.support.proxy import ProxyThread, proxy_in_thread
from tests.support.service import Effects, Service
from tests.support.sessions import WAITING_FOR_LOCK, WAITING_FOR_STANDBY, set_standbys
from tests.support.storage import new_id, open_driver
from tests.support.waiting import wait_for

# PgBouncer is an external program, like promtool in test_metrics.
pytestmark = pytest.mark.skipif("JOBQUEUE_TEST_PGBOUNCER" not in os.environ, reason="JOBQUEUE_TEST_PGBOUNCER names no PgBouncer")

POOL_SIZE = 3
"""Server connections. A node has six client connections, so they share them."""

Start = Callable[..., Node]


class Pooler:
    """A PgBouncer in front of a server, with a Unix socket.

    Attributes:
        directory: the directory of its socket.
    """

    def __init__(self, server_url: str, directory: Path) -> None:
        [server] = parse_qs(urlsplit(server_url).query)["host"]
        self._programs = Programs()  # PgBouncer, too, refuses to run as root
        self._programs.choose_account(Path(server))
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "log"
        self._settings = directory / "pgbouncer.ini"
        self.directory = directory / "run"
        self.directory.mkdir()
        self._programs.give(self.directory)
        settings = {
            "pool_mode": "transaction",
            "default_pool_size": POOL_SIZE,
            "server_login_retry": 1,
            "auth_type": "any",
            "unix_socket_dir": self.directory,
            "listen_port": PORT,
        }
        lines = ["[databases]", f"* = host={server} port={PORT} user={ROLE}", "[pgbouncer]"]
        self._settings.write_text("\n".join([*lines, *(f"{name} = {value}" for name, value in settings.items()), ""]))
        self._settings.chmod(0o644)

    def start(self) -> None:
        with self._log.open("ab") as output:
            program = os.environ["JOBQUEUE_TEST_PGBOUNCER"]
            self._process = self._programs.spawn(program, self._settings, output=output, environment={})
        wait_for(self._answers, f"PgBouncer runs, see {self._log}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            (self.directory / f".s.PGSQL.{PORT}").unlink(missing_ok=True)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        try:
            psycopg.connect(f"postgresql://{ROLE}@/{ROLE}?host={self.directory}&port={PORT}", connect_timeout=60).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture
def pooler(database_url: str) -> Iterator[Pooler]:
    with postgres.directory() as directory:
        pooler = Pooler(database_url, directory)
        try:
            pooler.start()
            yield pooler
        finally:
            pooler.kill()


@pytest.fixture
def pooled_url(pooler: Pooler, database_url: str) -> str:
    """The empty database, through PgBouncer."""
    return f"postgresql://{ROLE}@{urlsplit(database_url).path}?host={pooler.directory}&port={PORT}"


@pytest.fixture
def proxy(pooler: Pooler) -> Iterator[ProxyThread]:
    """A proxy in front of PgBouncer, which can break connections."""
    with proxy_in_thread(str(pooler.directory), PORT) as running:
        yield running


@pytest.fixture
def proxied_url(proxy: ProxyThread, database_url: str) -> str:
    return f"postgresql://{ROLE}@127.0.0.1:{proxy.port}{urlsplit(database_url).path}"


@pytest.fixture
def start(effects: Effects) -> Iterator[Start]:
    """Start nodes: ``start(url, "--grace-period", "0")``."""
    nodes: list[Node] = []

    def start(url: str, *arguments: str) -> Node:
        options = ["--port", "0", "--database-url", url, "--queue", "default=4", *arguments]
        nodes.append(Node(Service(["tests.handlers.plain", *options], {"EFFECTS": str(effects.path)})))
        return nodes[-1]

    yield start
    for node in nodes:
        node.close()


@pytest.fixture(params=["reply", "request"])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def left_behind(url: str) -> set[tuple[object, ...]]:
    """Return what another client finds in the pooler's server connections: timeouts, commits, prepared statements, channels."""
    with ExitStack() as stack:
        strangers = [stack.enter_context(psycopg.connect(url)) for _ in range(POOL_SIZE)]
        found = [
            # All transactions are open at the same time, so each has its own server connection.
            stranger.execute(
                """
                SELECT current_setting('statement_timeout'), current_setting('idle_in_transaction_session_timeout'),
                       current_setting('synchronous_commit'), (SELECT count(*) FROM pg_prepared_statements),
                       (SELECT count(*) FROM pg_listening_channels()), pg_backend_pid()
                """
            ).fetchone()
            for stranger in strangers
        ]
        assert len({row[-1] for row in found if row}) == POOL_SIZE
        return {row[:-1] for row in found if row}


def end_sessions(database: Database) -> None:
    """End every server connection of the pooler."""
    database.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def lose_next_commit(proxy: ProxyThread, which: str) -> None:
    """Lose the next COMMIT before it arrives, or the reply to it."""
    {"reply": proxy.lose_next_reply, "request": proxy.lose_next_request}[which](b"COMMIT\0")


def server_processes(database: Database) -> list[tuple[int]]:
    return database.rows(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY backend_start"
    )


def new_document() -> bytes:
    return documents.encode(NewJob(id=new_id()))


# ------------------------------------------------------------------------------------------------------------------ the service


def test_a_node_does_its_work_through_a_pooler_and_leaves_nothing_behind_in_it(
    pooled_url: str, start: Start, database: Database, effects: Effects
) -> None:
    database.rows(f"ALTER DATABASE {urlsplit(database.url).path[1:]} SET synchronous_commit = off")
    node = start(pooled_url)
    node.submit({"kind": "echo"}, {"kind": "flaky"}, {"kind": "fail"}, {"kind": "echo", "delay": 1})
    # No notification gets through: the node finds this job by polling.
    database.value("SELECT jobqueue.submit('echo')")
    done = {"succeeded": 4, "dead": 1}
    wait_for(lambda: database.states() == done, "all are done")
    assert set(database.rows("SELECT attempt FROM jobqueue.jobs WHERE kind = 'flaky'")) == {(4,)}
    for _ in range(20):
        assert node.submit({"kind": "echo"}).status_code == 201
    wait_for(lambda: database.states() == {**done, "succeeded": 24}, "all are done")
    assert node.troubles() == []
    assert left_behind(pooled_url) == {("0", "0", "off", 0, 0)}
    wait_for(lambda: "finds jobs by polling" in node.service.log, "the log says so")

    running = node.submit(*[{"kind": "sleep", "payload": {"seconds": 600}}] * 2).json()["ids"]
    wait_for(lambda: set(effects.ids("began")) == set(running), "two jobs run")
    node.service.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert node.service.process.poll() is None, "it gives them the grace period"
    node.close()
    successor = start(pooled_url, "--grace-period", "0")
    wait_for(lambda: len(effects.ids("began")) == 4, "the successor runs them at once")
    assert successor.service.stop() == 0, successor.service.log
    assert database.rows("SELECT state, attempt FROM jobqueue.jobs WHERE kind = 'sleep'") == [("pending", 1)] * 2
    assert database.rows("SELECT * FROM jobqueue_internal.nodes") == []
    for one in (node, successor):
        assert not re.search("prepared statement|Traceback|doubt|wait for the database", one.service.log), one.service.log


def test_schedules_tick_through_a_pooler(pooled_url: str, start: Start, database: Database) -> None:
    node = start(pooled_url)
    made = httpx.put(
        f"{node.service.url}/schedules/tick", json={"cron": "* * * * * *", "kind": "echo", "missed": "all"}, timeout=60
    )
    assert made.status_code == 201
    sql = "SELECT (options ->> 'scheduled_for')::float8 FROM jobqueue.jobs WHERE state = 'succeeded' ORDER BY 1"
    wait_for(lambda: len(database.rows(sql)) >= 3, "it is found, without a notification, and ticks")
    ticks = [tick for (tick,) in database.rows(sql)]
    assert ticks == [ticks[0] + number for number in range(len(ticks))]


@pytest.mark.parametrize("what", ["the pooler dies", "its server connections end"])
def test_a_pooler_in_trouble_loses_nothing(
    what: str, *, pooler: Pooler, pooled_url: str, start: Start, database: Database, effects: Effects
) -> None:
    node = start(pooled_url)
    ended = trio.Event()

    def keep_submitting() -> None:
        while not ended.is_set():
            node.submit(*[{"kind": kind} for kind in ("sleep", "flaky", "sleep")])
            time.sleep(0.01)

    with ThreadPoolExecutor() as pool:
        submitters = [pool.submit(keep_submitting) for _ in range(2)]
        try:
            for _ in range(6):
                before = len(node.acknowledged)
                wait_for(lambda before=before: len(node.acknowledged) > before + 20, "it takes jobs", seconds=RESUMED)
                if what == "the pooler dies":
                    pooler.kill()
                    pooler.start()
                else:
                    end_sessions(database)
        finally:
            ended.set()
        for submitter in submitters:
            submitter.result()
    assert {answer.status_code for answer in node.refused} <= {503}
    wait_for(lambda: node.submit({"kind": "sleep"}).status_code == 201, "it takes jobs again", seconds=RESUMED)
    wait_for(lambda: not node.troubles(), "it is ready again", seconds=RESUMED)
    wait_for(lambda: set(database.states()) == {"succeeded"}, "all jobs are done")
    assert_each_ended_once(database, node.acknowledged)
    runs = Counter(effects.ids("ended") + effects.ids("ran"))
    expected = database.rows("SELECT id::text, CASE kind WHEN 'flaky' THEN 4 ELSE 1 END FROM jobqueue.jobs")
    assert runs == Counter(dict(expected)), "each run took place once"
    assert node.service.stop() == 0, node.service.log


def test_commits_in_doubt_through_a_pooler_change_nothing(
    which: str, *, proxy: ProxyThread, proxied_url: str, start: Start, database: Database, effects: Effects
) -> None:
    node = start(proxied_url)
    for _ in range(10):
        # The COMMIT may be that of a claim, a submission, a heartbeat...
        before = proxy.lost
        lose_next_commit(proxy, which)
        while proxy.lost == before:
            node.submit(*[{"kind": kind} for kind in ("sleep", "flaky")] * 3)
    assert node.refused == []
    wait_for(lambda: database.states() == {"succeeded": len(node.acknowledged)}, "each is there once, and done")
    assert_each_ended_once(database, node.acknowledged)
    assert set(effects.ids("ran") + effects.ids("ended")) == set(node.acknowledged)
    wait_for(lambda: "doubt" in node.service.log, "the log says so")
    assert node.service.stop() == 0, node.service.log


async def test_a_keeper_renews_and_surrenders_through_a_pooler(pooled_url: str, database: Database) -> None:
    async with open_driver(database.url) as driver:
        await driver.submit(max_retries=0)
        [run] = await driver.claim()
        state = NodeState.create(1)
        state.name_node(driver.node)
        state.name_loop()
        state.beat()
        slot = state.take_slot("default")
        slot.enter(run)
        state.current[0] = slot.number
        database.rows("UPDATE jobqueue_internal.nodes SET lease_until = now()")
        config = Config(pooled_url, DEFAULT, os.getpid(), state.file, state.slots, 60.0, 600.0, "error", {})
        keeper = Keeper(config, state)
        for _ in range(10):
            await trio.sleep(0.9)
            await trio.to_thread.run_sync(keeper.look)
            if database.rows("SELECT 1 FROM jobqueue_internal.nodes WHERE lease_until <= now()") == []:
                break
        assert database.value("SELECT lease_until > now() FROM jobqueue_internal.nodes"), "it is renewed"
        keeper._config = config._replace(stall_limit=2.0)  # it has been late for longer
        await trio.to_thread.run_sync(keeper.look)
        assert database.value("SELECT count(*) FROM jobqueue_internal.nodes") == 0, "it is surrendered"
        assert [(job.id, job.outcome) for job in await driver.recover()] == [(run.id, "dead")]
        state.beat()
        await trio.to_thread.run_sync(keeper.look)


def test_a_pool_that_others_have_used_up_delays_work(pooled_url: str, start: Start, database: Database) -> None:
    node = start(pooled_url)
    with ExitStack() as stack:
        for _ in range(POOL_SIZE):
            stack.enter_context(psycopg.connect(pooled_url)).execute("SELECT 1")
        wait_for(lambda: "no reply" in " ".join(node.troubles()), "it says why it is not ready")
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(node.submit, {"kind": "echo"})
            time.sleep(0.3)
            stack.close()
            assert answer.result().status_code == 201
    wait_for(lambda: not node.troubles(), "it is ready again", seconds=RESUMED)
    wait_for(lambda: database.states() == {"succeeded": 1}, "it is done", seconds=RESUMED)


def test_an_acknowledged_job_is_durable_whatever_the_databases_default(pooled_url: str, start: Start, database: Database) -> None:
    database.rows(f"ALTER DATABASE {urlsplit(database.url).path[1:]} SET synchronous_commit = off")
    node = start(pooled_url, "--no-workers")
    set_standbys(database, "nobody")
    try:
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(node.submit, {"kind": "echo"})
            wait_for(lambda: bool(database.rows(WAITING_FOR_STANDBY, "jobqueue submit")), "COMMIT waits for the standby")
            with pytest.raises(TimeoutError):
                answer.result(timeout=1)
            set_standbys(database, "")  # has the same effect as a standby that is back
            assert answer.result(timeout=60).status_code == 201
    finally:
        set_standbys(database, "")
    assert database.states() == {"pending": 1}


def test_handlers_transactions_through_a_pooler_have_their_effects_once(
    which: str, *, proxy: ProxyThread, proxied_url: str, pooled_url: str, database: Database, effects: Effects
) -> None:
    database.rows("CREATE TABLE effects (job uuid NOT NULL, attempt integer NOT NULL)")
    # Fewer workers than server connections: each worker holds one while its handler runs.
    options = ["--port", "0", "--database-url", proxied_url, "--queue", "default=2"]
    node = Node(Service(["tests.handlers.transactional", *options], {"EFFECTS": str(effects.path)}))
    try:
        for _ in range(6):
            before = proxy.lost
            lose_next_commit(proxy, which)  # a handler's, or one of the node's
            while proxy.lost == before:
                node.submit(*[{"kind": "write"}] * 5)
        assert node.refused == []
        done = {"succeeded": len(node.acknowledged)}
        wait_for(lambda: database.states() == done, "each is there once, and done")
        assert database.rows("SELECT job::text FROM effects ORDER BY job") == [(job,) for job in sorted(node.acknowledged)]
        assert left_behind(pooled_url) == {("0", "0", "on", 0, 0)}
        assert node.service.stop() == 0, node.service.log
        assert "prepared statement" not in node.service.log
    finally:
        node.close()


# -------------------------------------------------------------------------------------------------------------------- the lanes


def test_a_pooler_is_known_for_what_it_is(pooled_url: str, database_url: str) -> None:
    for url, pooled in ((pooled_url, True), (database_url, False)):
        with connect(url, "test") as connection:
            assert behind_pooler(connection) is pooled


async def test_the_server_times_out_before_the_lane_and_the_lane_goes_on(pooled_url: str, database: Database) -> None:
    lane = Lane(pooled_url, "test", reply_timeout=10)
    await lane.run(lambda session: session.execute("CREATE TABLE public.effects (n integer PRIMARY KEY)"))
    with psycopg.connect(database.url) as holder:
        holder.execute("LOCK TABLE effects")
        with pytest.raises(DatabaseUnavailable, match="statement timeout") as given_up:
            await lane.run(lambda session: session.execute("INSERT INTO public.effects VALUES (0)"))
        assert not isinstance(given_up.value, ConnectionLost), "nobody is in doubt"
    for _ in range(2):
        with pytest.raises(RefusedData):
            await lane.run(lambda session: [session.execute("INSERT INTO public.effects VALUES (1)") for _ in range(2)])
    await lane.run(lambda session: session.execute("INSERT INTO public.effects VALUES (2)"))
    await lane.aclose()
    assert database.rows("SELECT n FROM effects") == [(2,)]


async def test_a_submission_in_doubt_is_there_once(which: str, proxy: ProxyThread, proxied_url: str, database: Database) -> None:
    async with open_driver(proxied_url) as driver:
        await driver.submit()
        processes = server_processes(database)
        for _ in range(3):
            document = new_document()
            await trio.to_thread.run_sync(lose_next_commit, proxy, which)
            with pytest.raises(ConnectionLost) as lost:
                await driver.store.submit([document], wake=False)
            await driver.store.submit_again([document], backend=lost.value.backend)
        assert database.states() == {"pending": 4}
        if which == "reply":
            assert server_processes(database)[: len(processes)] == processes, "nobody's session was ended for it"


async def test_a_claim_in_doubt_is_found_out_about(which: str, proxy: ProxyThread, proxied_url: str, database: Database) -> None:
    async with open_driver(proxied_url) as driver:
        for _ in range(3):
            job_id = await driver.submit()
            await trio.to_thread.run_sync(lose_next_commit, proxy, which)
            with pytest.raises(ConnectionLost) as lost:
                await driver.claim()
            held = await driver.store.held(driver.node, lost=[lost.value.backend])
            assert held == ({(job_id, 1)} if which == "reply" else set())
            if which == "request":
                [job] = await driver.claim()
                assert job.id == job_id
            assert database.value("DELETE FROM jobqueue_internal.inflight_jobs RETURNING id::text") == job_id


async def test_a_commit_that_is_under_way_is_waited_for(proxy: ProxyThread, proxied_url: str, database: Database) -> None:
    """The claim is not visible yet, but will be. A node that looked now would miss the claimed job."""
    async with open_driver(proxied_url) as driver:
        job_id = await driver.submit()
        doubts: list[ConnectionLost] = []
        held: list[set[tuple[str, int]]] = []

        async def claim() -> None:
            try:
                await driver.claim()
            except ConnectionLost as lost:
                doubts.append(lost)

        async def look() -> None:
            held.append(await driver.store.held(driver.node, lost=[doubts[0].backend]))

        set_standbys(database, "nobody")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(claim)
                while not database.rows(WAITING_FOR_STANDBY, "jobqueue claim"):  # noqa: ASYNC110 - another process's state
                    await trio.sleep(0.02)
                await trio.to_thread.run_sync(proxy.cut)
                while not doubts:  # noqa: ASYNC110
                    await trio.sleep(0.02)
                assert database.states() == {"pending": 1}, "the claim cannot be seen"
                nursery.start_soon(look)
                await trio.sleep(1)
                assert held == []
                set_standbys(database, "")
        finally:
            set_standbys(database, "")
        assert held == [{(job_id, 1)}]


async def test_a_statement_that_outlives_its_client_commits_nothing(
    proxy: ProxyThread, proxied_url: str, database: Database
) -> None:
    async with open_driver(proxied_url) as driver:
        told: list[DatabaseUnavailable] = []

        async def submit() -> None:
            try:
                await driver.submit()
            except DatabaseUnavailable as unavailable:
                told.append(unavailable)

        with psycopg.connect(database.url) as holder:
            holder.execute("LOCK TABLE jobqueue_internal.pending_jobs IN SHARE MODE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(submit)
                while not database.rows(WAITING_FOR_LOCK, "jobqueue submit"):  # noqa: ASYNC110 - another process's state
                    await trio.sleep(0.02)
                await trio.to_thread.run_sync(proxy.cut)
        assert [type(unavailable) for unavailable in told] == [DatabaseUnavailable], "nobody is in doubt"
        while database.rows(WAITING_FOR_LOCK, "jobqueue submit"):  # noqa: ASYNC110
            await trio.sleep(0.02)
        await trio.sleep(0.3)
        assert database.states() == {}


async def test_a_commit_that_comes_too_late_commits_nothing(pooled_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is delayed for longer than the other side waits for it."""
    monkeypatch.setattr(lane_module, "ABANDONED_AFTER", 6)
    async with open_driver(pooled_url) as driver:
        job_id = await driver.submit()
        late = lane_module._open_session(pooled_url, "claim", reply_timeout=60, schema="jobqueue")
        assert late.begin is not None
        late.connection.execute_script(late.begin)
        late.connection.execute("SELECT jobqueue_internal.claim(%s, %s)", [driver.node, '{"default": [1, null]}'])
        assert await driver.store.held(driver.node, lost=[late.backend]) == set()
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            late.connection.execute("COMMIT")
        late.connection.close()
        [job] = await driver.claim()
        assert (job.id, job.claims) == (job_id, 1)


async def test_what_a_pooler_that_hangs_did_not_begin_is_no_doubt(
    pooler: Pooler, pooled_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "SUBMIT_TIMEOUT", 8)
    async with open_driver(pooled_url) as driver:
        await driver.submit()
        document = new_document()
        pooler.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(DatabaseUnavailable) as unavailable:
                await driver.store.submit([document], wake=False)
        finally:
            pooler.send_signal(signal.SIGCONT)
        assert not isinstance(unavailable.value, ConnectionLost)
        await driver.store.submit([new_document()], wake=False)  # by now the delayed statement has arrived
        await trio.sleep(0.5)
        assert database.states() == {"pending": 2}, "nothing was written, as the error means"


def test_the_doctor_sees_the_pooler_and_looks_through_it(pooled_url: str, database: Database) -> None:
    with connect(pooled_url, "migrate") as connection:
        schema.migrate(connection)
    findings = doctor.examine(pooled_url)
    [finding] = [finding for finding in findings if finding.check == "pooler"]
    assert finding.verdict == "warning"
    assert "by polling" in finding.finding
    assert "unknown" not in {each.verdict for each in findings}
    # The timeouts that it set ended with its transactions: no session of the pool has one.
    with connect(pooled_url, "look") as connection:
        timeouts = {connection.execute("SHOW statement_timeout").first() for _ in range(3 * POOL_SIZE)}
    assert timeouts == {("0",)}
    assert (
        database.value("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()")
        == 0
    )
