"""Keys let a job run only once: in transactions of SQL users, in races, and through the whole service.

`test_store` tests keys in consecutive submissions. `test_commits_in_doubt` and `test_failing_nth` test lost responses.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import httpx
import psycopg
import pytest
import trio

from jobqueue import documents
from jobqueue.admission import Receipt, admit
from jobqueue.engine.dispatcher import Dispatcher
from jobqueue.engine.signals import Signals
from jobqueue.engine.submission import Submissions
from jobqueue.errors import ConnectionLost, KeyInUse, KeyReused, RefusedKey
from jobqueue.job import NewJob, Options, Submission
from jobqueue.metrics import Metrics
from jobqueue.storage.roles.submit import Submitted
from jobqueue.testing.memory_store import MemoryStore
from tests.support.postgres import Database
from tests.support.service import Effects, Service, Start
from tests.support.storage import Driver, new_id
from tests.support.waiting import wait_for

DAY = 86_400.0

SOON = 60.0
"""Seconds for statements that meet a key of an open transaction. They wait up to 100 ms for it, and then fail.

Without that bound they would wait forever: the transaction stays open for as long as the test waits.
"""


async def submit(driver: Driver, *submissions: Submission) -> list[str]:
    """Submit like a node."""
    jobs = admit(submissions)
    submitted = await driver.store.submit(jobs.documents, wake=False, key_ttl=DAY)
    assert submitted.ids is not None
    return submitted.ids


def open_transaction(url: str, *statements: str) -> psycopg.Connection[Any]:
    """Run statements and leave their transaction open."""
    connection = psycopg.connect(url)
    for statement in statements:
        connection.execute(statement.encode())
    return connection


KEYS = {"idempotency_key": "idempotency_key => 'k'", "unique_key": "unique_key => 'k'"}
each_key = pytest.mark.parametrize("key", KEYS)


# ------------------------------------------------------------------------------------------------------------- SQL and HTTP agree


@pytest.mark.parametrize(
    ("submission", "arguments"),
    [
        (Submission(kind="a"), "'a'"),
        (Submission(kind="a", payload=None), "'a', '{}'"),
        (Submission(kind="a", payload={"b": [1, 2.5, "ä"], "a": None}), """'a', '{"a": null, "b": [1, 2.5, "ä"]}'"""),
        (Submission(kind="a", queue="default", priority=0), "'a', queue => 'default'"),
        (Submission(kind="a", queue="q", priority=7, max_retries=0), "'a', queue => 'q', priority => 7, max_retries => 0"),
        (Submission(kind="a", timeout=5.0), "'a', timeout => 5"),
        (Submission(kind="a", timeout=0.1), "'a', timeout => 0.1"),
        (
            Submission(kind="a", run_at=datetime(2040, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))),
            "'a', run_at => '2040-01-01T00:00:00Z'",
        ),
        (
            Submission(kind="a", expires_at=datetime(2040, 1, 1, microsecond=123456, tzinfo=UTC)),
            "'a', expires_at => '2040-01-01T00:00:00.123456Z'",
        ),
        (Submission(kind="a", unique_key="u"), "'a', unique_key => 'u'"),
        (Submission(kind="a", unique=True), "'a', \"unique\" => true"),
    ],
)  # fmt: skip
async def test_the_same_job_from_http_and_from_sql_is_the_same(
    driver: Driver, sql: Database, submission: Submission, arguments: str
) -> None:
    submission.idempotency_key = "k"
    [job_id] = await submit(driver, submission)
    statement = f"SELECT jobqueue.submit({arguments}, idempotency_key => 'k')"
    assert str(sql.value(statement)) == job_id
    assert sql.rows("SELECT id::text FROM jobqueue.jobs") == [(job_id,)]
    other = sql.value(statement.replace("'k'", "'other'"))
    assert await submit(driver, Submission(kind="b", idempotency_key="x")) != [str(other)]
    if submission.unique is None and submission.unique_key is None:
        submission.idempotency_key = "other"
        assert await submit(driver, submission) == [str(other)]


async def test_sql_gets_the_job_that_is_there_or_an_error_that_says_why(driver: Driver, sql: Database) -> None:
    first = sql.value("SELECT jobqueue.submit('a', idempotency_key => 'k')")
    assert sql.value("SELECT jobqueue.submit('a', idempotency_key => 'k')") == first
    with pytest.raises(psycopg.DatabaseError, match='idempotency_key "k" was used for another job') as refused:
        sql.value("SELECT jobqueue.submit('b', idempotency_key => 'k')")
    assert (refused.value.sqlstate, refused.value.diag.column_name) == ("JQ422", "idempotency_key")
    held = sql.value("SELECT jobqueue.submit('a', unique_key => 'u')")
    assert sql.value("SELECT jobqueue.submit('b', unique_key => 'u', idempotency_key => 'l')") == held
    batch = documents.join(
        [documents.encode(job) for job in ({"unique_key": "u"}, {"kind": "c"}, {"idempotency_key": "k", "kind": "a"})]
    )
    [one, fresh, two] = sql.value("SELECT jobqueue.submit_many(%s::jsonb)", batch)
    assert (one, two) == (held, first)
    assert {job.id for job in await driver.claim()} == {str(first), str(held), str(fresh)}


async def test_twice_in_one_transaction_is_once(driver: Driver, sql: Database) -> None:
    for arguments in KEYS.values():
        with psycopg.connect(sql.url) as connection:
            ids = [connection.execute(f"SELECT jobqueue.submit('a', {arguments})".encode()).fetchone() for _ in range(3)]
        assert len(set(ids)) == 1
    assert len(await driver.claim()) == 2


@each_key
@pytest.mark.parametrize("name", ["", "x" * 201])
async def test_a_key_of_any_other_length_is_refused(driver: Driver, sql: Database, key: str, name: str) -> None:
    for arguments in (f"{key} => '{name}'", f"{key} => '{name}', queue => 'q'"):
        with pytest.raises(psycopg.errors.CheckViolation, match=f"{key} must be a string of 1 to 200"):
            sql.value(f"SELECT jobqueue.submit('a', {arguments})")
    sql.value(f"SELECT jobqueue.submit('a', {key} => '{'ä' * 200}')")
    assert len(await driver.claim()) == 1


# ------------------------------------------------------------------------------------------------------ somebody's open transaction


@each_key
@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_a_key_in_a_transaction_that_does_not_end_is_refused_soon(driver: Driver, sql: Database, key: str, ends: str) -> None:
    with open_transaction(sql.url, f"SELECT jobqueue.submit('default', {KEYS[key]})") as holder:
        with trio.fail_after(SOON), pytest.raises(KeyInUse, match="submit this job again later") as refused:
            await submit(driver, Submission(), Submission(**{key: "k"}))
        assert (refused.value.field, refused.value.index) == (key, 1)
        with pytest.raises(psycopg.DatabaseError, match=f'an open transaction holds the {key} "k"') as told:
            sql.value(f"SELECT jobqueue.submit('default', {KEYS[key]})")
        assert told.value.sqlstate == "JQ409"
        assert await driver.claim() == [], "none of the batch"
        assert sql.value("SHOW lock_timeout") == "0"
        getattr(holder, ends)()
    [job_id] = await submit(driver, Submission(**{key: "k"}))
    assert [job.id for job in await driver.claim()] == [job_id]


async def test_a_submission_that_waits_for_a_transaction_gets_its_job_if_it_commits_in_time(driver: Driver, sql: Database) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'jobqueue submit'"

    async def try_once() -> list[str]:
        over = threading.Event()
        with (
            open_transaction(sql.url, "SELECT jobqueue.submit('default', idempotency_key => 'k')") as holder,
            ThreadPoolExecutor() as pool,
        ):
            ended = pool.submit(lambda: (wait_for(lambda: over.is_set() or sql.value(waiting)), holder.commit()))
            try:
                return await submit(driver, Submission(idempotency_key="k"))
            finally:
                over.set()
                await trio.to_thread.run_sync(ended.result)

    # The wait is short: on a loaded machine it may end before the other thread sees it.
    for _ in range(200):
        try:
            ids = await try_once()
            break
        except KeyInUse:
            sql.rows("DELETE FROM jobqueue_internal.keys; DELETE FROM jobqueue_internal.pending_jobs")
    assert [job.id for job in await driver.claim()] == ids


@each_key
async def test_an_open_transaction_that_found_an_existing_job_blocks_nobody(driver: Driver, sql: Database, key: str) -> None:
    [job_id] = await submit(driver, Submission(**{key: "k"}))
    with open_transaction(sql.url, f"SELECT jobqueue.submit('default', {KEYS[key]})"), trio.fail_after(SOON):
        assert await submit(driver, Submission(**{key: "k"})) == [job_id]
        assert await driver.finish(await driver.claim_one(), "dead", reason="no luck")
        assert await driver.store.retry(job_id)
        assert await driver.finish(await driver.claim_one(), "succeeded")
        [next_id] = await submit(driver, Submission(**{key: "k"}))
        assert (next_id == job_id) == (key == "idempotency_key")


async def test_a_dead_job_is_not_run_again_while_a_transaction_takes_its_unique_key(driver: Driver, sql: Database) -> None:
    await submit(driver, Submission(unique_key="k"))
    dead = await driver.claim_one()
    await driver.finish(dead, "dead", reason="no luck")
    with open_transaction(sql.url, "SELECT jobqueue.submit('default', unique_key => 'k')") as taker:
        with trio.fail_after(SOON), pytest.raises(KeyInUse, match="an open transaction holds"):
            await driver.store.retry(dead.id)
        taker.rollback()
    with open_transaction(sql.url, f"SELECT jobqueue.retry('{dead.id}')") as redrive:
        with trio.fail_after(SOON), pytest.raises(KeyInUse):
            await submit(driver, Submission(unique_key="k"))
        redrive.commit()
    assert await submit(driver, Submission(unique_key="k")) == [dead.id]


async def test_keys_in_any_order_make_no_deadlock(driver: Driver, any_database_url: str) -> None:
    names = [f"k{number}" for number in range(30)]
    told: Counter[str] = Counter()

    def submitter(seed: int) -> None:
        chance = random.Random(seed)
        with psycopg.connect(any_database_url, autocommit=True) as connection:
            for _ in range(20):
                jobs = [{"idempotency_key": name, "unique_key": name} for name in chance.sample(names, len(names))]
                batch = documents.join([documents.encode(job) for job in jobs])
                try:
                    connection.execute(b"SELECT jobqueue.submit_many(%s::jsonb)", [batch])
                except psycopg.DatabaseError as error:
                    told[error.sqlstate or ""] += 1
                else:
                    told["done"] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(submitter, range(4)))
    assert told["done"] > 0
    assert told.keys() <= {"done", "JQ409"}
    assert len(await driver.claim()) == len(names)


async def test_a_serializable_transaction_gets_the_right_answer_or_none(driver: Driver, sql: Database) -> None:
    for key, arguments in KEYS.items():
        with psycopg.connect(sql.url) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("SELECT 1 FROM jobqueue_internal.nodes")  # takes the snapshot
            [job_id] = await submit(driver, Submission(**{key: "k"}))
            with pytest.raises(psycopg.errors.SerializationFailure):
                connection.execute(f"SELECT jobqueue.submit('default', {arguments})".encode())
            connection.rollback()
            assert connection.execute(f"SELECT jobqueue.submit('default', {arguments})::text".encode()).fetchone() == (job_id,)


# --------------------------------------------------------------------------------------------------------------------------- races


class Churn:
    """Threads that concurrently submit, claim, finish, cancel, redrive and prune jobs of a few unique keys.

    They run until each has done its part often enough, for up to two minutes.
    """

    PARTS = ("submitted", "met", "worked", "redriven", "looked")
    OFTEN = 20

    TWICE = b"""
        SELECT options ->> 'unique_key', count(*), array_agg(state) FROM jobqueue.jobs
         WHERE state IN ('pending', 'scheduled', 'inflight') GROUP BY 1 HAVING count(*) > 1
    """
    STEERING = (
        b"SELECT jobqueue.retry(id) FROM jobqueue_internal.dead_jobs ORDER BY random() LIMIT 1",
        b"SELECT jobqueue.retry(id) FROM jobqueue_internal.dead_jobs ORDER BY random() LIMIT 1",
        b"SELECT jobqueue.cancel(id) FROM jobqueue_internal.pending_jobs LIMIT 1",
        b"UPDATE jobqueue_internal.keys SET expires_at = now() WHERE key = 'u0'",
        b"SELECT jobqueue_internal.prune_keys()",
    )

    def __init__(self, url: str, node: str, seconds: float) -> None:
        self._url = url
        self._node = node
        self._began = time.monotonic()
        self._seconds = seconds
        self.done: Counter[str] = Counter()

    def _goes_on(self) -> bool:
        took = time.monotonic() - self._began
        return took < self._seconds or (took < 120 and min(self.done[what] for what in self.PARTS) <= self.OFTEN)

    def run(self, part: Callable[[psycopg.Connection[Any], random.Random], str], seed: int) -> None:
        chance = random.Random(seed)
        with psycopg.connect(self._url, autocommit=True) as connection:
            while self._goes_on():
                try:
                    self.done[part(connection, chance)] += 1
                except psycopg.DatabaseError as error:
                    if error.sqlstate != "JQ409":
                        raise
                    self.done["refused"] += 1

    def submit(self, connection: psycopg.Connection[Any], chance: random.Random) -> str:
        key, fresh = f"u{chance.randrange(2)}", new_id()
        batch = [{"unique_key": key, "id": fresh, "delay": chance.choice([None, 0.01]), "max_retries": 0}, {"unique_key": "v"}]
        chance.shuffle(batch)
        given = documents.join([documents.encode(job) for job in batch])
        [[ids]] = connection.execute(b"SELECT jobqueue.submit_many(%s::jsonb)::text[]", [given]).fetchall()
        return "submitted" if fresh in ids else "met"

    def work(self, connection: psycopg.Connection[Any], chance: random.Random) -> str:
        connection.execute(b"SELECT * FROM jobqueue_internal.promote(100)")
        wants = documents.encode({"default": [chance.randint(1, 3), None]}).decode()
        [[claimed]] = connection.execute(b"SELECT jobqueue_internal.claim(%s, %s::jsonb)::jsonb", [self._node, wants]).fetchall()
        for job in claimed:
            verdict = chance.choice(["succeeded", "dead", "released", "snoozed", "retry"])
            outcome = {"id": job[1], "claims": job[6], "outcome": verdict, "delay": 0.005, "reason": "no luck", "error": {}}
            outcomes = documents.encode([outcome]).decode()
            connection.execute(b"SELECT jobqueue_internal.finish(%s, %s::jsonb, %s)", [self._node, outcomes, chance.random() < 0.5])
        return "worked" if claimed else "idled"

    def steer(self, connection: psycopg.Connection[Any], chance: random.Random) -> str:
        statement = chance.choice(self.STEERING)
        rows = connection.execute(statement)
        return "redriven" if b"retry" in statement and rows.fetchall() == [(True,)] else "steered"

    def look(self, connection: psycopg.Connection[Any], _: random.Random) -> str:
        assert connection.execute(self.TWICE).fetchall() == []
        return "looked"


async def test_a_unique_job_is_never_there_twice_whatever_happens_at_the_same_time(driver: Driver, sql: Database) -> None:
    churn = Churn(sql.url, driver.node, seconds=6)
    with ThreadPoolExecutor(6) as pool:
        parts = [churn.submit, churn.submit, churn.work, churn.steer, churn.look, churn.look]
        running = [pool.submit(churn.run, part, seed) for seed, part in enumerate(parts)]
        for one in running:
            await trio.to_thread.run_sync(one.result)
    assert min(churn.done[what] for what in churn.PARTS) > churn.OFTEN, churn.done


async def test_a_unique_key_of_an_unfinished_job_outlives_its_pruning(driver: Driver, sql: Database) -> None:
    held, done = await submit(driver, Submission(unique_key="held", queue="q"), Submission(unique_key="done"))
    assert await driver.finish(await driver.claim_one(), "succeeded")
    sql.rows("UPDATE jobqueue_internal.keys SET expires_at = now()")
    assert await driver.store.prune_keys() == 2
    assert sql.rows("SELECT key, expires_at > now() + interval '1 hour' FROM jobqueue_internal.keys") == [("held", True)]
    assert (await submit(driver, Submission(unique_key="held"), Submission(unique_key="done")))[0] == held
    assert await driver.state(done) == "succeeded"


async def test_a_key_in_use_is_not_pruned(driver: Driver, sql: Database) -> None:
    await submit(driver, Submission(idempotency_key="k"), Submission(idempotency_key="l"))
    sql.rows("UPDATE jobqueue_internal.keys SET expires_at = now()")
    with open_transaction(sql.url, "SELECT jobqueue.submit('default', idempotency_key => 'k')"), trio.fail_after(SOON):
        assert await driver.store.prune_keys() == 1
    assert sql.rows("SELECT key FROM jobqueue_internal.keys") == [("k",)]


async def test_keys_are_looked_up_by_index_however_the_statistics_are(driver: Driver, sql: Database) -> None:
    sql.rows(
        "ANALYZE jobqueue_internal.keys, jobqueue_internal.pending_jobs,"
        " jobqueue_internal.scheduled_jobs, jobqueue_internal.inflight_jobs"
    )  # all are empty
    jobs = [Submission(unique_key=f"u{number}", idempotency_key=f"i{number}") for number in range(2_000)]
    ids = await submit(driver, *jobs)
    assert await submit(driver, *jobs) == ids
    assert await submit(driver, *(Submission(unique_key=job.unique_key) for job in jobs)) == ids
    await driver.store.aclose()  # a session's counts become visible when it ends
    counted = """
        SELECT sum(seq_scan)::integer, sum(idx_scan)::integer FROM pg_stat_user_tables
         WHERE relname IN ('keys', 'pending_jobs', 'scheduled_jobs', 'inflight_jobs')
    """
    with trio.fail_after(60):
        while (sql.rows(counted)[0][1] or 0) < 10_000:  # noqa: ASYNC110 - the server sends no event
            await trio.sleep(0.05)
    indexes = """
        SELECT count(*) FROM pg_indexes
         WHERE schemaname = 'jobqueue_internal' AND tablename IN ('keys', 'pending_jobs', 'scheduled_jobs', 'inflight_jobs')
    """
    assert sql.rows(counted)[0][0] <= sql.value(indexes), "one for each index of the schema"


# ---------------------------------------------------------------------------------------------------------------- the whole service


def post(client: httpx.Client, node: Service, job: Any, **headers: str) -> httpx.Response:
    return client.post(f"{node.url}/submit", json=job, headers={name.replace("_", "-"): value for name, value in headers.items()})


def answer(response: httpx.Response) -> tuple[int, Any]:
    return response.status_code, response.json()


def test_http_gives_the_same_job_for_the_same_key(start: Start, client: httpx.Client, database: Database, effects: Effects) -> None:
    node = start("--keep-finished", "0")
    job = {"kind": "echo", "payload": {"n": 1}}
    first = post(client, node, job, Idempotency_Key='"a \\"key\\""')
    assert first.status_code == 201
    job_id = first.json()["id"]
    wait_for(lambda: effects.ids("ran") == [job_id] and database.states() == {}, "it is done, and gone")
    for again in (
        post(client, node, job, Idempotency_Key='"a \\"key\\""'),
        post(client, node, {**job, "idempotency_key": 'a "key"'}),
        post(client, node, {**job, "idempotencyKey": 'a "key"'}, Idempotency_Key='"a \\"key\\""'),
    ):
        assert answer(again) == (200, {"id": job_id})
        assert again.headers["Location"] == f"/jobs/{job_id}"
    other = post(client, node, {**job, "priority": 1}, Idempotency_Key='"a \\"key\\""')
    assert (other.status_code, other.headers["content-type"]) == (422, "application/problem+json")
    assert other.json()["field"] == "idempotency_key"
    assert 'idempotency_key "a \\"key\\"" was used for another job' in other.json()["detail"]
    assert "index" not in other.json()

    status, body = answer(post(client, node, [{**job, "idempotency_key": key} for key in ('a "key"', "b", "b")] + [job]))
    assert (status, body["ids"][0], body["existing"]) == (201, job_id, [0, 2])
    assert body["ids"][1] == body["ids"][2] != body["ids"][3]
    assert answer(post(client, node, [{**job, "idempotency_key": "b"}])) == (200, {"ids": body["ids"][1:2], "existing": [0]})
    refused = post(client, node, [job, {**job, "idempotency_key": "b"}, {"idempotency_key": "b"}])
    assert (refused.status_code, refused.json()["field"], refused.json()["index"]) == (422, "idempotency_key", 2)
    wait_for(lambda: len(effects.ids("ran")) == 3 and database.states() == {}, "all are done")
    assert Counter(effects.ids("ran")).most_common(1)[0][1] == 1
    metrics = client.get(f"{node.url}/metrics").text
    assert 'jobqueue_jobs_submitted_total{kind="echo",queue="default"} 3.0' in metrics


def test_http_gives_the_unfinished_job_of_a_unique_key(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--no-workers")
    for key in ({"unique": True}, {"unique_key": "u"}):
        job = {"kind": "echo", "payload": {"n": 1}, **key}
        first = post(client, node, job)
        job_id = first.json()["id"]
        assert (first.status_code, answer(post(client, node, job))) == (201, (200, {"id": job_id}))
        assert answer(post(client, node, [job, job])) == (200, {"ids": [job_id] * 2, "existing": [0, 1]})
        assert client.post(f"{node.url}/jobs/{job_id}/cancel").status_code == 200
        second = post(client, node, job)
        assert (second.status_code, second.json()["id"] != job_id) == (201, True)
    assert database.states() == {"pending": 2, "cancelled": 2}


def test_http_says_why_a_dead_job_is_not_run_again(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--queue", "default=1")
    dead = post(client, node, {"kind": "fail", "max_retries": 0, "unique_key": "u"}).json()["id"]
    wait_for(lambda: database.states() == {"dead": 1}, "it dies")
    taker = post(client, node, {"kind": "echo", "delay": 3600, "unique_key": "u"}).json()["id"]
    refused = client.post(f"{node.url}/jobs/{dead}/retry")
    assert (refused.status_code, refused.json()["field"]) == (409, "unique_key")
    assert taker in refused.json()["detail"]
    assert client.post(f"{node.url}/jobs/{taker}/cancel").status_code == 200
    assert client.post(f"{node.url}/jobs/{dead}/retry").status_code == 200


@pytest.mark.parametrize(
    "body", [{"idempotency_key": "k"}, {"unique_key": "k"}, {"unique": True}], ids=lambda body: next(iter(body))
)
def test_many_submitters_of_one_key_at_two_nodes_get_one_job(start: Start, database: Database, body: dict[str, Any]) -> None:
    nodes = [start(), start()]
    rounds, submitters = 12, 16
    # No node works this queue, so the first job is unfinished during all submissions.
    job = {"kind": "echo", "queue": "nobody's", **body}

    def submitter(number: int) -> list[tuple[int, str]]:
        told = []
        with httpx.Client(timeout=30) as http:
            for turn in range(rounds):
                mine = {**job, "payload": {"turn": turn}} | {name: f"k{turn}" for name, value in body.items() if value == "k"}
                while (response := post(http, nodes[number % 2], mine)).status_code == 409:
                    pass
                told.append((response.status_code, response.json()["id"]))
        return told

    with ThreadPoolExecutor(submitters) as pool:
        told = list(pool.map(submitter, range(submitters)))
    for turn in range(rounds):
        answers = [of_one[turn] for of_one in told]
        assert len({job_id for _, job_id in answers}) == 1
        assert Counter(status for status, _ in answers) == {201: 1, 200: submitters - 1}
    assert database.states() == {"pending": rounds}


def test_unique_jobs_that_run_while_they_are_submitted_never_run_side_by_side(
    start: Start, database: Database, effects: Effects
) -> None:
    nodes = [start("--queue", "default=8"), start("--queue", "default=8", "--keep-finished", "0")]
    twice = "SELECT count(*) FROM jobqueue.jobs WHERE state IN ('pending', 'scheduled', 'inflight') HAVING count(*) > 1"

    def submitter(number: int) -> Counter[int]:
        told: Counter[int] = Counter()
        with httpx.Client(timeout=30) as http:
            while told[201] < 40:
                told[
                    post(http, nodes[number % 2], {"kind": "sleep", "unique_key": "u", "payload": {"seconds": 0.002}}).status_code
                ] += 1
        return told

    with ThreadPoolExecutor(6) as pool:
        submitters = [pool.submit(submitter, number) for number in range(6)]
        while not all(part.done() for part in submitters):
            assert database.rows(twice) == []
        told = sum((part.result() for part in submitters), Counter[int]())
    assert told.keys() <= {200, 201, 409}
    wait_for(lambda: len(effects.ids("ended")) == told[201], "each submitted job has run")
    assert Counter(effects.ids("ended")).most_common(1)[0][1] == 1
    lines = [line.split()[0] for line in effects.path.read_text().splitlines()]
    assert lines == ["began", "ended"] * told[201], "one after the other"


def test_a_key_that_is_busy_holds_up_nobody_else_for_long(start: Start, database: Database) -> None:
    node = start("--no-workers")
    others = [{"kind": "echo", "payload": {"n": number}} for number in range(400)]
    busy_key = "SELECT jobqueue.submit('echo', idempotency_key => 'k')"
    with open_transaction(database.url, busy_key) as holder, ThreadPoolExecutor(40) as pool:
        with httpx.Client(timeout=30, limits=httpx.Limits(max_connections=40)) as http:
            answers = [pool.submit(post, http, node, job) for job in others[:200]]
            busy = pool.submit(post, http, node, {"kind": "echo"}, Idempotency_Key="k")
            answers += [pool.submit(post, http, node, job) for job in others[200:]]
            statuses = Counter(one.result().status_code for one in answers)
        refused = busy.result()
        holder.rollback()
    assert statuses == {201: len(others)}
    assert (refused.status_code, refused.json()["type"], refused.json()["field"]) == (
        409,
        "urn:jobqueue:conflicting-job",
        "idempotency_key",
    )
    assert database.states() == {"pending": len(others)}


@pytest.mark.parametrize("error", [KeyInUse, KeyReused])
async def test_one_bad_key_among_a_thousand_fails_alone(driver: Driver, sql: Database, error: type[RefusedKey]) -> None:
    """The group commit halves a failed batch: about 20 statements meet the key, not one for each of the 1,000 jobs."""
    first = "SELECT jobqueue.submit('first', idempotency_key => 'k')"
    with open_transaction(sql.url, first) as holder:
        if error is KeyReused:
            holder.commit()
        jobs = [NewJob(id=new_id(), options=Options(idempotency_key=f"k{number}")) for number in range(999)]
        jobs.insert(700, NewJob(id=new_id(), options=Options(idempotency_key="k")))
        statements = 0

        async def write(some: list[NewJob]) -> list[NewJob]:
            nonlocal statements
            statements += 1
            try:
                await driver.store.submit([documents.encode(job) for job in some], wake=False, key_ttl=DAY)
            except error:
                middle = len(some) // 2
                return [*await write(some[:middle]), *await write(some[middle:])] if middle else some
            return []

        assert await write(jobs) == [jobs[700]]
        assert statements <= 2 * math.ceil(math.log2(len(jobs))) + 1
    assert await driver.store.prune_keys() == 0
    assert sql.value("SELECT count(*) FROM jobqueue_internal.pending_jobs WHERE kind <> 'first'") == 999


# ------------------------------------------------------------------------------------------------ a commit in doubt, and a busy key


class DoubtfulStore(MemoryStore):
    """Loses the response to the first submission, and finds a busy key in the second."""

    busy: str = ""
    lost = 0

    async def submit(self, jobs: Sequence[bytes], **kwargs: Any) -> Submitted:  # type: ignore[override]
        submitted = await super().submit(jobs, **kwargs)
        if not self.lost:
            self.lost = len(jobs)
            raise ConnectionLost("the answer is lost", backend=(1, "2000-01-01"))
        return submitted

    async def submit_again(self, jobs: Sequence[bytes], **kwargs: Any) -> Submitted:
        if any(self.busy.encode() in job for job in jobs):
            await trio.lowlevel.checkpoint()
            raise KeyInUse("an open transaction holds the key", field="unique_key", index=0)
        return await super().submit_again(jobs, **kwargs)


class Bystander:
    """Stands in for the dispatcher and claims nothing."""

    audits = 0

    @contextmanager
    def along(self, _: object) -> Iterator[None]:
        yield None

    def audit(self, lost: object) -> None:  # noqa: ARG002 - it is the dispatcher's
        self.audits += 1

    def can_start(self, _: object) -> bool:
        return False


async def test_a_batch_in_doubt_that_meets_a_busy_key_is_not_written_twice(nursery: trio.Nursery) -> None:
    store, dispatcher = DoubtfulStore(), Bystander()
    holder = admit([Submission(unique_key="busy")])
    await MemoryStore.submit(store, holder.documents, wake=False, key_ttl=DAY)
    submissions = Submissions(
        store,
        Metrics(),
        Signals(),
        kinds=None,
        dispatcher=cast("Dispatcher", dispatcher),
        key_ttl=DAY,
    )
    batch = [
        admit([Submission(idempotency_key="k")]),
        admit([Submission(kind="plain")]),
        admit([Submission(kind="beside"), Submission(unique_key="busy")]),
        admit([Submission(idempotency_key="k")]),
        admit([Submission(kind="plain")]),
    ]
    told: dict[int, Any] = {}

    def hear(place: int) -> Callable[[Receipt | None, Exception | None], None]:
        return lambda receipt, error: told.update({place: error or receipt})

    for place, jobs in enumerate(batch):
        submissions.begin(jobs, hear(place))
    store.busy = "busy"
    with trio.fail_after(SOON):
        await nursery.start(submissions.run)
        await submissions.flush()
    assert store.lost == 6
    [k, _, (beside, _), _, _] = [jobs.ids if len(jobs.ids) == 2 else jobs.ids[0] for jobs in batch]
    assert isinstance(told.pop(2), ConnectionLost), "a part of it is committed, so the error must not mean that nothing was written"
    assert told == {0: Receipt([str(k)], []), 1: None, 3: Receipt([str(k)], [0]), 4: None}
    assert {row["id"] for row in store.snapshot()} == {holder.ids[0], k, batch[1].ids[0], beside, batch[4].ids[0]}
    assert dispatcher.audits > 1
