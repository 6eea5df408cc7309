"""Commits without a response: the service resolves each of them, duplicates none, and forgets no claim.

A proxy between the service and PostgreSQL loses one statement, or the response after its commit. Then it resets the connection.
The service cannot distinguish the two cases, and must handle both correctly.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psycopg
import pytest

from jobqueue.engine.dispatcher import AUDIT_INTERVAL
from tests.support.postgres import Database
from tests.support.proxy import ProxyThread, proxy_in_thread
from tests.support.service import Effects, Service, submit
from tests.support.sessions import WAITING_FOR_LOCK, WAITING_FOR_STANDBY, without_standby
from tests.support.waiting import wait_for

Start = Callable[..., "Client"]

TIMES = 3
"""The number of responses that each test loses, one after the other."""


@pytest.fixture
def proxy(database_url: str) -> Iterator[ProxyThread]:
    [directory] = parse_qs(urlsplit(database_url).query)["host"]
    with proxy_in_thread(directory, 5432) as running:
        yield running


class Client:
    """A node that reaches PostgreSQL through the proxy, as its HTTP clients see it."""

    def __init__(self, node: Service, http: httpx.Client) -> None:
        self.node = node
        self._http = http

    def submit(self, jobs: Any) -> Any:
        return submit(self._http, self.node, jobs)

    def post(self, job: Any) -> httpx.Response:
        return self._http.post(f"{self.node.url}/submit", json=job)

    def ready(self) -> bool:
        return self._http.get(f"{self.node.url}/health/ready").status_code == 200

    def stale_completions(self) -> float:
        metrics = self._http.get(f"{self.node.url}/metrics").text
        return sum(float(value) for value in re.findall(r"^jobqueue_stale_completions_total\S* (\S+)$", metrics, re.MULTILINE))


@pytest.fixture
def start(proxy: ProxyThread, database_url: str, effects: Effects) -> Iterator[Start]:
    name = urlsplit(database_url).path
    url = f"postgresql://jobqueue@127.0.0.1:{proxy.port}{name}"
    nodes: list[Service] = []

    def start(*arguments: str) -> Client:
        options = ["--port", "0", "--database-url", url, "--queue", "default=4", *arguments]
        nodes.append(Service(["tests.handlers.plain", *options], {"EFFECTS": str(effects.path)}))
        return Client(nodes[-1], http)

    with httpx.Client(timeout=60) as http:
        yield start
    for node in nodes:
        node.kill()


@contextmanager
def losing(proxy: ProxyThread, which: str, statement: str) -> Iterator[None]:
    """Lose the next such statement, or its response, and wait until it is lost."""
    before = proxy.lost
    {"reply": proxy.lose_next_reply, "request": proxy.lose_next_request}[which](f"jobqueue_internal.{statement}(".encode())
    yield
    wait_for(lambda: proxy.lost > before, f"the {which} of {statement} is lost")


def assert_each_ran_to_one_end(client: Client, database: Database, ids: list[str]) -> None:
    wait_for(lambda: database.states() == {"succeeded": len(ids)}, "every job succeeds, and there is no other")
    assert database.rows("SELECT id::text FROM jobqueue.jobs ORDER BY id") == [(job_id,) for job_id in sorted(ids)]
    assert database.value("SELECT count(*) FROM jobqueue_internal.inflight_jobs") == 0
    assert client.stale_completions() == 0
    assert client.node.stop() == 0, client.node.log


@pytest.fixture(params=["reply", "request"])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_submission_in_doubt_is_acknowledged_and_stored_once(
    which: str, start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start()
    ids: list[str] = []
    with ThreadPoolExecutor() as pool:
        for _ in range(TIMES):
            with losing(proxy, which, "submit_batch"):
                # Several transactions: when the node sends them again, some are running and some are done.
                answers = [pool.submit(client.submit, [{"kind": kind}] * 5) for kind in ("echo", "sleep", "echo")]
            ids += [job_id for answer in answers for job_id in answer.result()]
    wait_for(lambda: "commit in doubt" in client.node.log, "the log says so")
    assert_each_ran_to_one_end(client, database, ids)
    assert Counter(effects.ids("ran") + effects.ids("ended")) == Counter(ids), "each ran once"


@pytest.mark.parametrize("keep", ["86400", "0"])
def test_a_submission_in_doubt_with_keys_is_stored_once_and_finds_its_keys(  # noqa: PLR0917 - fixtures
    which: str, keep: str, start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start("--keep-finished", keep)
    ids: list[str] = []
    held = client.submit({"kind": "sleep", "unique_key": "held", "payload": {"seconds": 3600}})
    for turn in range(TIMES):
        jobs = [{"kind": kind, key: f"{kind} {turn}"} for kind in ("echo", "sleep") for key in ("idempotency_key", "unique_key")]
        with losing(proxy, which, "submit_batch"), ThreadPoolExecutor() as pool:
            answers = [pool.submit(client.post, job) for job in [*jobs, [*jobs[:1], {"unique_key": "held"}]]]
        *alone, batch = [answer.result() for answer in answers]
        # One of the two requests with the same key is the first.
        assert {answer.status_code for answer in alone[1:]} == {201}
        assert sorted([alone[0].status_code, 200 if 0 in batch.json()["existing"] else 201]) == [200, 201]
        ids += [answer.json()["id"] for answer in alone]
        assert batch.json()["ids"] == [ids[-len(jobs)], held]
        assert 1 in batch.json()["existing"]
        again = [client.post(job) for job in jobs if "idempotency_key" in job]
        assert [(answer.status_code, answer.json()["id"]) for answer in again] == [(200, ids[-4]), (200, ids[-2])]
    wait_for(lambda: "commit in doubt" in client.node.log, "the log says so")
    wait_for(lambda: len(effects.ids("ran") + effects.ids("ended")) == len(ids), "all have run")
    assert Counter(effects.ids("ran") + effects.ids("ended")) == Counter(ids), "each ran once"
    wait_for(lambda: database.states().get("inflight") == 1, "all are done but one")
    assert sum(database.states().values()) == 1 + (0 if keep == "0" else len(ids))


def test_a_submission_in_doubt_with_an_open_transaction_is_stored_once(
    start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start()
    # The lock blocks all inserts, so the connection breaks in the middle of the transaction.
    with ThreadPoolExecutor() as pool, psycopg.connect(database.url) as holder:
        holder.execute("LOCK TABLE jobqueue_internal.pending_jobs IN SHARE MODE")
        answer = pool.submit(client.submit, [{"kind": "echo"}] * 5)
        wait_for(lambda: bool(database.rows(WAITING_FOR_LOCK, "jobqueue submit")), "the insert waits")
        proxy.cut()
        wait_for(lambda: "commit in doubt" in client.node.log, "the node notices")
        time.sleep(0.3)
        holder.rollback()
        ids = answer.result()
    assert_each_ran_to_one_end(client, database, ids)
    assert Counter(effects.ids("ran")) == Counter(ids)


def test_a_submission_in_doubt_is_not_acknowledged_before_the_standby_has_it(
    start: Start, proxy: ProxyThread, database: Database
) -> None:
    client = start("--no-workers")
    with ThreadPoolExecutor() as pool:
        with without_standby(database):
            answer = pool.submit(client.post, {"kind": "echo"})
            wait_for(lambda: bool(database.rows(WAITING_FOR_STANDBY, "jobqueue submit")), "the commit waits for the standby")
            proxy.cut()
            wait_for(lambda: "commit in doubt" in client.node.log, "the node notices")
            with pytest.raises(TimeoutError):
                answer.result(timeout=3)
        assert answer.result(timeout=60).status_code == 201
    assert database.states() == {"pending": 1}


def test_a_claim_in_doubt_forgets_no_job(
    which: str, start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start()
    ids: list[str] = []
    for _ in range(TIMES):
        with losing(proxy, which, "claim"):
            ids += client.submit([{"kind": "sleep"}] * 20)
    assert ("forgotten claims released" in client.node.log) == (which == "reply")
    assert_each_ran_to_one_end(client, database, ids)
    assert database.rows("SELECT DISTINCT attempt FROM jobqueue_internal.finished_jobs") == [(1,)], "released attempts do not count"
    assert Counter(effects.ids("ended")) == Counter(ids), "each ran once"


def test_a_claim_in_doubt_does_not_affect_running_jobs(
    start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start()
    running = client.submit([{"kind": "sleep", "payload": {"seconds": 5}}] * 2)
    wait_for(lambda: len(effects.ids("began")) == 2, "two jobs run")
    with losing(proxy, "reply", "claim"):
        ids = client.submit([{"kind": "echo"}] * 20)
    assert_each_ran_to_one_end(client, database, running + ids)
    assert Counter(effects.ids("ended")) == Counter(running)


def test_the_audit_releases_an_unknown_claim(start: Start, database: Database, effects: Effects) -> None:
    client = start()
    running = client.submit([{"kind": "sleep", "payload": {"seconds": AUDIT_INTERVAL + 2}}])
    wait_for(lambda: effects.ids("began") == running, "a job runs")
    forgotten = client.submit([{"kind": "echo", "queue": "elsewhere"}])
    [(node_id,)] = database.rows("SELECT id::text FROM jobqueue_internal.nodes")
    [(claimed,)] = database.rows("SELECT jobqueue_internal.claim(%s, '{\"elsewhere\": [1, null]}')::text", node_id)
    assert forgotten[0] in claimed

    wait_for(lambda: database.states().get("pending"), "the claim is released")
    assert database.rows("SELECT id::text, attempt, claims FROM jobqueue_internal.pending_jobs") == [(forgotten[0], 0, 1)]
    wait_for(lambda: database.states() == {"pending": 1, "succeeded": 1}, "the running job continues to its end")
    assert effects.ids("began") == running


def test_an_outcome_in_doubt_is_accepted_once(
    which: str, start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start()
    ids: list[str] = []
    for _ in range(TIMES):
        with losing(proxy, which, "finish"):
            # A flaky job fails three times. A failure that is written twice would cost an attempt.
            ids += client.submit([{"kind": "sleep"}, {"kind": "flaky"}] * 5)
    assert_each_ran_to_one_end(client, database, ids)
    runs = Counter(effects.ids("ended") + effects.ids("ran"))
    assert Counter(runs.values()) == {1: len(ids) // 2, 4: len(ids) // 2}


def test_a_promotion_in_doubt_happens_once(
    which: str, start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start()
    ids: list[str] = []
    for _ in range(TIMES):
        ids += client.submit([{"kind": "echo", "delay": 0.3}] * 10)
        with losing(proxy, which, "promote"):
            pass
    assert_each_ran_to_one_end(client, database, ids)
    assert Counter(effects.ids("ran")) == Counter(ids), "each ran once"


def test_a_heartbeat_in_doubt_does_not_cost_the_lease(
    which: str, start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start("--visibility-timeout", "60")
    node = database.value("SELECT id FROM jobqueue_internal.nodes")
    ids = client.submit([{"kind": "sleep", "payload": {"seconds": 3}}] * 4)
    for _ in range(2):
        with losing(proxy, which, "heartbeat"):
            pass
    assert_each_ran_to_one_end(client, database, ids)
    assert database.rows("SELECT DISTINCT node_id FROM jobqueue_internal.finished_jobs") == [(node,)]
    assert Counter(effects.ids("began")) == Counter(ids), "each ran once"


def test_a_new_lease_in_doubt_leaves_no_row_behind(start: Start, proxy: ProxyThread, database: Database) -> None:
    client = start()
    with losing(proxy, "reply", "join_node"):
        database.rows("DELETE FROM jobqueue_internal.nodes")
    wait_for(client.ready, "the node is back")
    ids = client.submit([{"kind": "echo"}] * 10)
    assert_each_ran_to_one_end(client, database, ids)
    assert database.rows("SELECT * FROM jobqueue_internal.nodes") == [], "no row is left behind"


def test_a_recovery_in_doubt_recovers_each_job_once(which: str, start: Start, proxy: ProxyThread, database: Database) -> None:
    client = start("--poll-interval", "0.5")
    dead = uuid.uuid4()
    database.rows("SELECT jobqueue_internal.join_node(%s, 'elsewhere', 1, 'elsewhere', '0', '{}', 3600)", dead)
    database.rows("SELECT jobqueue.pause('lost')")
    ids = [str(database.value("SELECT jobqueue.submit('echo', queue => 'lost')")) for _ in range(10)]
    database.rows("SELECT jobqueue.pause('lost', false)")
    with losing(proxy, which, "recover"):
        database.rows("""SELECT jobqueue_internal.claim(%s, '{"lost": [10, null]}')""", dead)
        database.rows("UPDATE jobqueue_internal.inflight_jobs SET queue = 'default'")
        database.rows("SELECT jobqueue_internal.heartbeat(%s, 0)", dead)
    assert_each_ran_to_one_end(client, database, ids)
    assert database.rows("SELECT DISTINCT attempt, claims FROM jobqueue_internal.finished_jobs") == [(2, 2)]


def test_a_leave_in_doubt_releases_the_held_jobs(
    which: str, start: Start, proxy: ProxyThread, database: Database, effects: Effects
) -> None:
    client = start("--grace-period", "0")
    ids = client.submit([{"kind": "thread", "payload": {"seconds": 600}}] * 2)
    wait_for(lambda: len(effects.ids("began")) == 2, "two threads run, which cannot be interrupted")
    with losing(proxy, which, "leave_node"):
        code = client.node.stop()
    assert code == 0, client.node.log
    successor = start()
    wait_for(lambda: len(effects.ids("began")) == 4, "a successor on the same machine does not wait for the lease to expire")
    assert database.rows("SELECT id::text FROM jobqueue_internal.inflight_jobs ORDER BY id") == [
        (job_id,) for job_id in sorted(ids)
    ]
    successor.node.kill()


def test_responses_lost_at_random_change_nothing(start: Start, proxy: ProxyThread, database: Database, effects: Effects) -> None:
    client = start("--visibility-timeout", "60", "--queue", "default=8")
    chance = random.Random(7)
    ids: list[str] = []
    for _ in range(15):
        lost = proxy.lost
        statement = chance.choice(["submit_batch", "claim", "finish", "promote"])
        with losing(proxy, chance.choice(["reply", "request"]), statement):
            while proxy.lost == lost:
                kind = chance.choice(["echo", "sleep", "flaky"])
                ids += client.submit([{"kind": kind, "delay": chance.choice([None, 0.2])}] * 5)
                time.sleep(0.05)
    assert_each_ran_to_one_end(client, database, ids)
    assert set(effects.ids("ran") + effects.ids("ended")) == set(ids)
