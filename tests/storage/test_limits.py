"""Limits over all nodes are never exceeded: limits of queues and concurrency keys, on running jobs and on starts per second.

The first part tests PostgreSQL and the store in memory, the second PostgreSQL only, the third whole nodes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import pytest
import trio

from jobqueue import App, HandlerError, documents
from jobqueue.concurrency.trouble import LONGEST_PAUSE
from jobqueue.engine.key_admission import KeyAdmission
from jobqueue.engine.signals import Signals
from jobqueue.errors import RefusedData
from jobqueue.job import ClaimedJob, NewJob, Options, Outcome
from jobqueue.queue_settings import MAX_LIMIT, MIN_RATE, QueueSettings
from jobqueue.storage import schema
from jobqueue.storage.roles.run import Claim, Want
from jobqueue.storage.roles.schedule import ADMIT_BATCH
from jobqueue.testing.memory_store import MemoryStore
from tests.support.postgres import SERVERS, Database, ServerPool
from tests.support.service import Start
from tests.support.storage import Driver, joined, new_id, open_driver
from tests.support.waiting import wait_for

MEMORY = "memory"
KEYED = Options(concurrency_key="k")


@pytest.fixture(params=[MEMORY, *sorted(SERVERS)])
async def driver(request: pytest.FixtureRequest, servers: ServerPool) -> AsyncIterator[Driver]:
    if request.param == MEMORY:
        yield await joined(MemoryStore())
        return
    async with open_driver(servers.emptied(request.param)) as opened:
        yield opened


@pytest.fixture(params=sorted(SERVERS))
async def postgres(request: pytest.FixtureRequest, servers: ServerPool) -> AsyncIterator[tuple[Driver, Database]]:
    """A driver on PostgreSQL, and plain SQL on the same database."""
    url = servers.emptied(request.param)
    database = Database(url)
    async with open_driver(url) as opened:
        yield opened, database
    database.close()


async def ids(driver: Driver, jobs: int = 100, queue: str = "default") -> list[str]:
    return [job.id for job in await driver.claim(jobs, queue=queue)]


async def claim(driver: Driver, jobs: int = 100) -> tuple[list[ClaimedJob], float | None]:
    """Claim jobs; return them, and the seconds after which to ask again."""
    claimed = await driver.store.claim(driver.node, {"default": Want(jobs)}, b"{}")
    return list(claimed), claimed.again.get("default")


# ------------------------------------------------------------------------------------------------------------------------- keys


async def test_a_job_with_a_key_is_blocked_until_it_is_admitted_and_one_runs_at_a_time(driver: Driver) -> None:
    first, second = await driver.submit_many({"options": KEYED}, {"options": KEYED, "priority": 0})
    other = await driver.submit(options=Options(concurrency_key="other"))
    plain = await driver.submit()
    assert [await driver.state(job) for job in (first, second, other, plain)] == ["blocked"] * 3 + ["pending"]
    assert (await driver.store.promote()).next_check is not None
    assert set((await driver.store.admit()).best) == {"default"}
    assert [await driver.state(job) for job in (first, second, other)] == ["pending", "blocked", "pending"]
    assert await ids(driver) == [first, other, plain]
    assert (await driver.store.admit()).best == {}
    assert (await driver.store.promote()).next_check is None


async def test_the_best_rank_of_a_key_goes_first_and_keys_of_two_queues_are_two(driver: Driver) -> None:
    worse, better = await driver.submit_many({"options": KEYED}, {"options": KEYED, "priority": 9})
    elsewhere = await driver.submit(options=KEYED, queue="mail")
    await driver.store.admit()
    assert await ids(driver) == [better]
    assert await ids(driver, queue="mail") == [elsewhere]
    assert await driver.state(worse) == "blocked"


@pytest.mark.parametrize(
    ("verdict", "fields", "follows"),
    [
        ("succeeded", {}, True),
        ("dead", {"reason": "no luck"}, True),
        ("retry", {"delay": 3600.0}, True),
        ("snoozed", {"delay": 3600.0}, True),
        ("released", {}, False),
    ],
)
async def test_the_end_of_a_run_lets_the_next_one_in(
    driver: Driver, verdict: Any, fields: dict[str, Any], *, follows: bool
) -> None:
    first, second = await driver.submit_many({"options": KEYED}, {"options": KEYED})
    await driver.store.admit()
    run = await driver.claim_one()
    await driver.store.admit()
    assert await ids(driver) == []
    assert await driver.finish(run, verdict, **fields)
    if not follows:
        assert await driver.state(first) == "blocked", "a released job waits for its turn again"
    await driver.store.admit()
    assert await ids(driver) == [second if follows else first]


async def test_a_lost_node_and_one_that_leaves_give_the_key_back(driver: Driver) -> None:
    first = await driver.submit(options=KEYED)
    await driver.store.admit()
    assert await ids(driver) == [first]
    assert await driver.store.leave(driver.node) == 1
    assert await driver.state(first) == "blocked"
    await driver.store.admit()
    await driver.join()
    assert await ids(driver) == [first]
    await driver.end_lease()
    assert [job.outcome for job in await driver.recover()] == ["pending"]
    assert await driver.state(first) == "blocked"
    await driver.store.admit()
    await driver.join()
    assert await ids(driver) == [first]


async def test_a_job_that_dies_with_its_node_gives_the_key_to_the_next(driver: Driver) -> None:
    await driver.submit(options=KEYED, max_retries=0)
    second = await driver.submit(options=KEYED)
    await driver.store.admit()
    await driver.claim_one()
    await driver.end_lease()
    assert [job.outcome for job in await driver.recover()] == ["dead"]
    await driver.store.admit()
    await driver.join()
    assert await ids(driver) == [second]


async def test_blocked_and_admitted_jobs_can_be_cancelled_and_the_next_has_the_turn(driver: Driver) -> None:
    first, second, third = await driver.submit_many(*[{"options": KEYED}] * 3)
    await driver.store.admit()
    assert await driver.store.cancel(second)
    assert await driver.store.cancel(first)
    await driver.store.admit()
    assert await ids(driver) == [third]
    assert [await driver.state(job) for job in (first, second)] == ["cancelled"] * 2


async def test_a_dead_job_and_a_scheduled_one_come_back_through_the_gate(driver: Driver) -> None:
    dead = await driver.submit(options=KEYED)
    later = await driver.submit(options=KEYED, delay=0.001)
    await driver.store.admit()
    assert await driver.finish(await driver.claim_one(), "dead", reason="no luck")
    await trio.sleep(0.01)
    promotion = await driver.store.promote()
    assert (promotion.jobs, promotion.best) == (1, {})
    assert promotion.next_check is not None
    assert await driver.store.retry(dead)
    assert [await driver.state(job) for job in (dead, later)] == ["blocked"] * 2
    await driver.store.admit()
    assert await ids(driver) == [later]


async def test_a_key_may_run_more_than_one_where_it_is_said_and_at_once(driver: Driver) -> None:
    submitted = await driver.submit_many(*[{"options": KEYED}] * 5)
    await driver.store.admit()
    assert await ids(driver) == submitted[:1]
    await driver.store.configure("default", QueueSettings(key_max_running=3))
    await driver.store.admit()
    assert await ids(driver) == submitted[1:3]
    await driver.store.configure("default", QueueSettings(key_max_running=None))
    await driver.store.admit()
    assert await ids(driver) == []


async def test_blocked_jobs_are_counted_and_a_submission_in_doubt_finds_them(driver: Driver) -> None:
    job_id = await driver.submit(options=KEYED)
    assert {(depth.queue, depth.state, depth.jobs) for depth in await driver.store.depths()} == {("default", "blocked", 1)}
    await driver.store.submit_again([documents.encode(NewJob(id=job_id, options=KEYED))], backend=(1, "2000-01-01"))
    assert {(depth.queue, depth.state, depth.jobs) for depth in await driver.store.depths()} == {("default", "blocked", 1)}


# ----------------------------------------------------------------------------------------------------------------------- queues


async def test_no_more_of_a_queue_run_than_it_may_and_a_claim_says_that_there_is_more(driver: Driver) -> None:
    await driver.store.configure("default", QueueSettings(max_running=3))
    await driver.submit_many(*[{}] * 6)
    runs, again = await claim(driver, 2)
    assert (len(runs), again) == (2, None), "the claim got all the jobs that it asked for"
    more, again = await claim(driver, 5)
    assert (len(more), again) == (1, float("inf"))
    assert await claim(driver) == ([], float("inf"))
    for run in [*runs, *more]:
        assert await driver.finish(run, "succeeded")
    last, again = await claim(driver, 100)
    assert len(last) == 3
    await driver.store.configure("default", QueueSettings(max_running=None))
    await driver.submit()
    assert len(await driver.claim()) == 1


async def test_a_lower_limit_ends_no_run_and_the_jobs_of_other_queues_are_not_counted(driver: Driver) -> None:
    await driver.submit_many(*[{}] * 6, *[{"queue": "mail"}] * 6)
    runs = await driver.claim(4)
    await driver.store.configure("default", QueueSettings(max_running=2))
    assert await driver.claim() == [], "running jobs count, although they started before the limit"
    assert len(await driver.claim(queue="mail")) == 6
    for run in runs[:3]:
        assert await driver.finish(run, "succeeded")
    assert len(await driver.claim()) == 1


async def test_starts_follow_the_rate_after_a_burst(driver: Driver) -> None:
    await driver.store.configure("default", QueueSettings(rate=20, burst=2))
    await driver.submit_many(*[{}] * 9)
    runs, again = await claim(driver)
    assert len(runs) == 2
    assert again is not None
    assert 0 < again <= 0.05
    await trio.sleep(again)
    runs, again = await claim(driver)
    assert 1 <= len(runs) <= 2
    await driver.store.configure("default", QueueSettings(rate=None))
    assert len(await driver.claim()) == 7 - len(runs)


async def test_a_claim_that_comes_with_a_submission_keeps_to_the_limits(driver: Driver) -> None:
    await driver.store.configure("default", QueueSettings(max_running=1))
    new = [documents.encode(NewJob(id=new_id())) for _ in range(3)]
    along = Claim(driver.node, {"default": Want(4)}, b"{}")
    submitted = await driver.store.submit(new, wake=False, along=along)
    assert submitted.claimed is not None
    assert (len(submitted.claimed), submitted.claimed.again) == (1, {"default": float("inf")})


async def test_settings_that_are_not_given_stay_and_none_clears(driver: Driver) -> None:
    store = driver.store

    async def shown() -> dict[str, Any]:
        [row] = [row for row in await store.queues() if row.name == "mail"]
        return {name: getattr(row, name) for name in QueueSettings.__struct_fields__}

    everything = {
        "aging_interval": 2.5,
        "max_running": 9,
        "rate": 1.5,
        "burst": 4,
        "key_max_running": 2,
        "key_rate": 0.5,
        "key_burst": 3,
    }
    await store.configure("mail", QueueSettings(**everything))  # type: ignore[arg-type]
    assert await shown() == everything
    await store.configure("mail", QueueSettings())
    assert await shown() == everything
    await store.configure("mail", QueueSettings(rate=None, aging_interval=None, max_running=1))
    assert await shown() == {**everything, "rate": None, "aging_interval": 1.0, "max_running": 1}


async def test_the_aging_interval_counts_for_jobs_that_come_from_then_on(driver: Driver) -> None:
    await driver.store.configure("default", QueueSettings(aging_interval=0))
    old = await driver.submit()
    await driver.submit(priority=1000)
    assert await ids(driver, 1) == [old], "with an interval of 0, priority has no effect"
    await driver.store.configure("default", QueueSettings(aging_interval=3600))
    await driver.submit()
    urgent = await driver.submit(priority=1)
    assert await ids(driver, 1) == [urgent], "an hour's start"


# --------------------------------------------------------------------------------------------------------- what only SQL can ask


@pytest.mark.parametrize(
    ("setting", "inside", "outside"),
    [
        ("aging_interval", [0, 86_400], [-1, 86_401]),
        ("max_running", [1, MAX_LIMIT], [0, MAX_LIMIT + 1]),
        ("rate", [MIN_RATE, MAX_LIMIT], [0, MIN_RATE / 2, MAX_LIMIT + 1]),
        ("burst", [1, MAX_LIMIT], [0, MAX_LIMIT + 1]),
        ("key_max_running", [1, MAX_LIMIT], [0, MAX_LIMIT + 1]),
        ("key_rate", [MIN_RATE, MAX_LIMIT], [0, MIN_RATE / 2, MAX_LIMIT + 1]),
        ("key_burst", [1, MAX_LIMIT], [0, MAX_LIMIT + 1]),
    ],
)
async def test_settings_are_bounded_in_sql_and_in_python(
    postgres: tuple[Driver, Database], setting: str, inside: list[float], outside: list[float]
) -> None:
    driver, _ = postgres
    app = App()
    for value in inside:
        app.queue(f"q{value}", **{setting: value})
        await driver.store.configure("q", QueueSettings(**{setting: value}))  # type: ignore[arg-type]
    for value in outside:
        with pytest.raises(HandlerError, match=f"{setting} must be"):
            app.queue(f"q{value}", **{setting: value})
        with pytest.raises(RefusedData, match=f"{setting} must be") as refused:
            await driver.store.configure("q", QueueSettings(**{setting: value}))  # type: ignore[arg-type]
        assert refused.value.field == setting


def test_queues_that_are_declared_wrongly_are_refused() -> None:
    app = App()
    app.queue("mail", rate=2)
    for name, settings, reason in [
        ("mail", {}, "already declared"),
        ("", {}, "1 to 200 characters"),
        ("a", {"speed": 1}, "unknown field 'speed' in a queue"),
        ("b", {"rate": float("nan")}, "rate must be"),
        ("c", {"max_running": 1.5}, "max_running must be"),
    ]:
        with pytest.raises(HandlerError, match=reason):
            app.queue(name, **settings)  # type: ignore[arg-type]


async def test_a_setting_that_a_queue_does_not_have_cannot_be_cleared(postgres: tuple[Driver, Database]) -> None:
    _, database = postgres
    with pytest.raises(psycopg.errors.CheckViolation, match="clear must only name settings of a queue: aging_interval, "):
        database.rows("SELECT jobqueue.configure('q', clear => '{rate,speed}')")


@pytest.mark.parametrize("when", [{}, {"delay": 60}])
async def test_a_key_has_1_to_200_characters(postgres: tuple[Driver, Database], when: dict[str, Any]) -> None:
    _, database = postgres
    sql = "SELECT jobqueue.submit_many(%s::jsonb)"
    database.rows(sql, json.dumps([{"concurrency_key": key, **when} for key in ("k", "ü" * 200)]))
    for key in ("", "k" * 201):
        with pytest.raises(psycopg.errors.CheckViolation, match="concurrency_key must be a string of 1 to 200"):
            database.rows(sql, json.dumps([{"concurrency_key": key, **when}]))


async def test_submit_in_sql_takes_a_key(postgres: tuple[Driver, Database]) -> None:
    _, database = postgres
    for _ in range(2):
        database.rows("SELECT jobqueue.submit('nap', concurrency_key => 'k')")
    database.rows("SELECT jobqueue_internal.admit()")
    assert database.states() == {"blocked": 1, "pending": 1}


async def test_a_running_limit_is_counted_by_the_index_once_all_that_run_have_their_mark(
    postgres: tuple[Driver, Database],
) -> None:
    driver, database = postgres
    await driver.submit_many(*[{}] * 9)
    [unmarked] = await driver.claim(1)
    await driver.store.configure("default", QueueSettings(max_running=3))
    assert len(await driver.claim(1)) == 1
    counted = "SELECT all_counted FROM jobqueue_internal.queue_limits"
    for ago, ended, expected in (("1 s", False, False), ("1 hour", False, False), ("1 s", True, False), ("1 hour", True, True)):
        if ended:
            await driver.finish(unmarked, "succeeded")
        database.rows(f"UPDATE jobqueue_internal.queue_limits SET counted_since = now() - interval '{ago}'")
        runs = await driver.claim()
        assert database.value(counted) is expected, "a claim from before the limit may still be under way, or a job of it"
        assert database.value("SELECT count(*) FROM jobqueue_internal.inflight_jobs") == 3
        for run in runs[:1]:
            await driver.finish(run, "succeeded")
    await driver.store.configure("default", QueueSettings(max_running=None))
    await driver.store.configure("default", QueueSettings(max_running=3))
    assert database.value(counted) is False


async def test_a_key_starts_so_many_a_second_and_late_starts_do_not_bunch(postgres: tuple[Driver, Database]) -> None:
    driver, database = postgres
    await driver.store.configure("default", QueueSettings(key_max_running=100, key_rate=10, key_burst=2))
    await driver.submit_many(*[{"options": KEYED}] * 10)
    admission = await driver.store.admit()
    assert database.states() == {"blocked": 8, "pending": 2}
    assert admission.next_check is not None
    await trio.sleep(0.35)  # nobody starts the admitted jobs: the bucket stays full, and no more jobs are admitted
    for _ in range(3):
        admission = await driver.store.admit()
    assert database.states() == {"blocked": 8, "pending": 2}
    with trio.fail_after(60):
        while len(await driver.claim()) or database.states() != {"inflight": 10}:
            admission = await driver.store.admit()
            assert admission.next_check is None or admission.next_check <= 0.1 + 1e-6, "the next start may come in 1/rate at most"
            await trio.sleep(0.005 if admission.next_check is None else max(0, admission.next_check))
    starts = [
        when
        for (when,) in database.rows(
            "SELECT extract(epoch FROM claimed_at)::float8 FROM jobqueue_internal.inflight_jobs ORDER BY 1"
        )
    ]
    assert within(starts, rate=10, burst=2)


def within(starts: list[float], *, rate: float, burst: float) -> bool:
    """Return whether no window between two starts has more starts than a bucket allows."""
    slack = 1e-4  # for the precision of a float
    return all(
        count <= burst + rate * (last - first + slack)
        for number, first in enumerate(starts)
        for count, last in enumerate(starts[number:], 1)
    )


async def test_full_buckets_are_thrown_away_and_others_are_not(postgres: tuple[Driver, Database]) -> None:
    driver, database = postgres
    await driver.store.configure("default", QueueSettings(key_rate=0.001))
    await driver.store.configure("fast", QueueSettings(key_rate=1000))
    for queue in ("default", "fast"):
        await driver.submit_many(*[{"options": KEYED, "queue": queue}] * 2)
    await driver.store.admit()
    for queue in ("default", "fast"):
        for run in await driver.claim(queue=queue):
            await driver.finish(run, "succeeded")
    await driver.store.admit()
    assert dict(database.rows("SELECT queue, count(*) FROM jobqueue_internal.key_buckets GROUP BY 1")) == {"default": 1, "fast": 1}
    await trio.sleep(0.01)
    await driver.store.maintain(keep_finished=86_400, keep_cancelled=86_400)
    assert database.rows("SELECT queue FROM jobqueue_internal.key_buckets") == [("default",)]
    await driver.store.configure("default", QueueSettings(key_rate=None))
    await driver.store.maintain(keep_finished=86_400, keep_cancelled=86_400)
    assert database.rows("SELECT queue FROM jobqueue_internal.key_buckets") == []


async def test_admission_does_not_count_on_an_old_snapshot(postgres: tuple[Driver, Database]) -> None:
    _, database = postgres
    with psycopg.connect(database.url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(psycopg.errors.RaiseException, match="READ COMMITTED"):
            connection.execute("SELECT jobqueue_internal.admit()")


async def test_jobs_of_a_key_whose_rows_were_deleted_by_hand_come_to_light(postgres: tuple[Driver, Database]) -> None:
    driver, database = postgres
    _, second = await driver.submit_many(*[{"options": KEYED}] * 2)
    await driver.store.admit()
    database.rows("DELETE FROM jobqueue_internal.pending_jobs")
    await driver.store.maintain(keep_finished=86_400, keep_cancelled=86_400)
    await driver.store.admit()
    assert await ids(driver) == [second]


# ------------------------------------------------------------------------------------------------------- nobody waits for anybody


@contextmanager
def open_transaction(url: str, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    """Run the statements in a transaction that stays open."""
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield connection
        connection.rollback()


async def test_open_transactions_hold_up_nobody(postgres: tuple[Driver, Database]) -> None:
    driver, database = postgres
    await driver.store.configure("default", QueueSettings(max_running=50, rate=1000, burst=100))
    await driver.submit_many(*[{}] * 9, *[{"options": KEYED}] * 9)
    await driver.store.admit()
    running = await driver.claim(5)
    blocked = database.value("SELECT id FROM jobqueue_internal.blocked_jobs ORDER BY rank LIMIT 1")
    with open_transaction(
        database.url,
        """SELECT jobqueue.submit_many('[{"concurrency_key": "k"}, {}]')""",
        f"SELECT jobqueue.cancel('{blocked}')",
        "SELECT jobqueue.configure('default', max_running => 5, key_max_running => 4, rate => 5)",
    ):
        with trio.fail_after(60):
            await driver.submit(options=KEYED)
            for run in running:
                assert await driver.finish(run, "succeeded")
            assert (await driver.store.admit()).checks > 0
            assert len(await driver.claim(3)) == 3
        # An open transaction that sets the first limit holds the row that claims lock: a claim skips the queue.
    await driver.store.configure("default", QueueSettings(max_running=None, rate=1000))
    await driver.submit(queue="mail")
    with open_transaction(database.url, "SELECT jobqueue.configure('default', max_running => 5)"), trio.fail_after(60):
        claimed = await driver.store.claim(driver.node, {"default": Want(1), "mail": Want(1)}, b"{}")
        assert [job.queue for job in claimed] == ["mail"]
        assert claimed.again == {"default": 1.0}


async def test_a_blocked_job_that_somebody_holds_is_left_out_and_looked_at_again(postgres: tuple[Driver, Database]) -> None:
    driver, database = postgres
    first, second = await driver.submit_many(*[{"options": KEYED}] * 2)
    with open_transaction(database.url, f"SELECT jobqueue.cancel('{first}')"):
        with trio.fail_after(60):
            await driver.store.admit()
        assert [await driver.state(job) for job in (first, second)] == ["blocked", "pending"]
        assert await driver.finish(await driver.claim_one(), "succeeded")
        admission = await driver.store.admit()
        assert admission.best == {}
    assert admission.next_check is not None
    await trio.sleep(admission.next_check + 0.01)
    await driver.store.admit()
    assert await ids(driver) == [first]


# ---------------------------------------------------------------------------------------------------------- what is in nobody's way


def buffers(database: Database, sql: str, *params: Any) -> int:
    """Return how many pages a statement reads, including the functions that it calls."""
    [[[plan]]] = database.rows("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql, *params)
    return int(plan["Plan"]["Shared Hit Blocks"]) + int(plan["Plan"]["Shared Read Blocks"])


async def test_a_hundred_thousand_blocked_jobs_cost_the_others_nothing(postgres: tuple[Driver, Database]) -> None:
    driver, database = postgres
    others = """SELECT jobqueue.submit_many((SELECT jsonb_agg(jsonb_build_object('concurrency_key', gen_random_uuid()))
                                               FROM generate_series(1, 1000) AS n))"""

    async def pages() -> tuple[int, int]:
        """Return the pages that an admission and a claim of the thousand jobs read."""
        database.rows(others)
        admit = buffers(database, "SELECT * FROM jobqueue_internal.admit(2000)")
        claim = "SELECT jobqueue_internal.claim(%s, %s::jsonb)"
        return admit, buffers(database, claim, driver.node, json.dumps({"default": [1000, None]}))

    await pages()
    admit_alone, claim_alone = await pages()
    database.rows("""SELECT jobqueue.submit_many((SELECT jsonb_agg(jsonb_build_object('concurrency_key', 'busy'))
                                                    FROM generate_series(1, 100000)))""")
    while (await driver.store.admit()).checks == ADMIT_BATCH:
        pass
    [running] = await driver.claim()
    before = database.states()
    assert before["blocked"] >= 99_999
    admit_behind, claim_behind = await pages()
    assert database.states()["inflight"] == before["inflight"] + 1000
    assert claim_behind < 1.2 * claim_alone + 100, (claim_behind, claim_alone)
    assert admit_behind < 1.5 * admit_alone + 100, (admit_behind, admit_alone)
    assert await driver.finish(running, "succeeded")
    assert buffers(database, "SELECT * FROM jobqueue_internal.admit(1000)") < 500, "of the thousands that the blocked jobs have"
    assert len(await driver.claim()) == 1


# ------------------------------------------------------------------------------------------------------------------------ races


class Watch:
    """Run a query again and again in a thread with its own connection, and keep the highest value."""

    def __init__(self, url: str, sql: str) -> None:
        self.highest = 0
        self.looks = 0
        self._url, self._sql = url, sql
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._over.is_set():
                [[value]] = connection.execute(self._sql.encode(), prepare=True).fetchall()
                self.highest = max(self.highest, value or 0)
                self.looks += 1


RUNNING = "SELECT count(*) FROM jobqueue_internal.inflight_jobs WHERE queue = 'default'"
PER_KEY = """SELECT max(n) FROM (SELECT count(*) AS n FROM jobqueue_internal.inflight_jobs WHERE options ? 'concurrency_key'
                                  GROUP BY queue, options ->> 'concurrency_key') AS keys"""


async def work(url: str, done: set[str], wanted: int, batch: int, verdicts: Callable[[], str]) -> None:
    """Claim, finish, admit, and promote like a node without an engine, until the wanted number of jobs is done."""
    async with open_driver(url) as driver:
        while len(done) < wanted:
            for run in await driver.claim(batch):
                verdict = verdicts()
                fields = {"delay": 0.0} if verdict == "snoozed" else {}
                assert (
                    await driver.store.finish(driver.node, [Outcome(id=run.id, claims=run.claims, outcome=verdict, **fields)])
                    == set()
                )  # type: ignore[arg-type]
                if verdict == "succeeded":
                    done.add(run.id)
            await driver.store.promote()
            await driver.store.admit()


async def test_two_admissions_are_one_after_the_other(postgres: tuple[Driver, Database], nursery: trio.Nursery) -> None:
    driver, database = postgres
    await driver.submit(options=KEYED)
    with psycopg.connect(database.url) as first:
        first.execute("SELECT jobqueue_internal.admit()")
        await driver.submit(options=KEYED)
        nursery.start_soon(driver.store.admit)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
        await trio.to_thread.run_sync(wait_for, lambda: database.value(waiting) == 1)
    await trio.to_thread.run_sync(wait_for, lambda: database.value("SELECT count(*) FROM jobqueue_internal.key_checks") == 0)
    assert database.states() == {"blocked": 1, "pending": 1}


@pytest.mark.parametrize("limit", [1, 3])
async def test_several_nodes_together_never_run_more_than_a_queue_may(postgres: tuple[Driver, Database], limit: int) -> None:
    driver, database = postgres
    await driver.store.configure("default", QueueSettings(max_running=limit))
    await driver.submit_many(*[{}] * 100)
    done: set[str] = set()
    number = iter(range(10**9))
    with Watch(database.url, RUNNING) as watch, trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(
                    work, database.url, done, 100, limit, lambda: ("succeeded", "released", "snoozed")[next(number) % 3]
                )
    assert watch.looks > 20
    assert 1 <= watch.highest <= limit


@pytest.mark.parametrize("limit", [1, 2])
async def test_several_nodes_together_never_run_more_than_a_key_may(postgres: tuple[Driver, Database], limit: int) -> None:
    driver, database = postgres
    await driver.store.configure("default", QueueSettings(key_max_running=limit))
    await driver.submit_many(*[{"options": Options(concurrency_key=f"k{n % 7}")} for n in range(140)])
    done: set[str] = set()
    number = iter(range(10**9))
    with Watch(database.url, PER_KEY) as watch, trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(
                    work, database.url, done, 140, 20, lambda: ("succeeded", "succeeded", "released", "snoozed")[next(number) % 4]
                )
    assert watch.looks > 20
    assert 1 <= watch.highest <= limit
    assert database.states() == {"succeeded": 140}


# ------------------------------------------------------------------------------------------------------------------- the gate


class Scripted(MemoryStore):
    """A store that records its admissions. The first one fails."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.asked: list[float] = []

    async def admit(self) -> Any:
        self.asked.append(trio.current_time())
        if len(self.asked) == 1:
            raise RefusedData("no")
        return await super().admit()


async def test_the_gate_asks_only_when_notified_and_again_after_an_error(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    store = Scripted()
    driver = await joined(store)
    admitted: list[Any] = []
    signals = Signals()
    signals.jobs_available.subscribe(admitted.append)
    key_admission = KeyAdmission(store, signals)
    await nursery.start(key_admission.run)
    await trio.sleep(3600)
    assert store.asked[0] == 0
    assert 0 < store.asked[1] <= LONGEST_PAUSE
    assert len(store.asked) == 2
    await driver.submit(options=KEYED)
    signals.checks_due.publish(5)
    await trio.sleep(60)
    assert store.asked[2:] == [3605]
    assert [set(best) for best in admitted] == [{"default"}]


# ----------------------------------------------------------------------------------------------------------------- whole nodes


LONGEST_POLL = ("--poll-interval", "60")
"""With this interval, a test that waited for polls would take many minutes."""


def submit(database: Database, jobs: int, **fields: Any) -> None:
    database.rows("SELECT jobqueue.submit_many(%s::jsonb)", json.dumps([fields] * jobs))


def claims(database: Database, queue: str = "default") -> list[float]:
    sql = "SELECT extract(epoch FROM claimed_at)::float8 FROM jobqueue.jobs WHERE queue = %s AND claimed_at IS NOT NULL ORDER BY 1"
    return [when for (when,) in database.rows(sql, queue)]


def test_settings_over_http_in_code_and_in_sql(service: Start, database: Database) -> None:
    node = service("tests.handlers.limits", "--queue", "declared=4")
    url = f"{node.url}/queues/a%2Fb"

    def queue(name: str) -> dict[str, Any]:
        return {row["name"]: row for row in httpx.get(f"{node.url}/queues", timeout=60).json()}[name]

    declared = {"max_running": 2, "rate": None, "key_max_running": 3, "aging_interval": 5.0, "burst": None}
    assert declared.items() <= queue("declared").items()
    given = {"max_running": 7, "rate": 2.5, "burst": 3, "aging_interval": 0.5}
    answer = httpx.put(url, json=given, timeout=60)
    assert answer.status_code == 200
    assert given.items() <= answer.json().items()
    assert httpx.put(url, json={"rate": None}, timeout=60).json()["rate"] is None
    assert ({**given, "rate": None}).items() <= queue("a/b").items()
    database.rows("SELECT jobqueue.configure('a/b', key_rate => 4, clear => '{burst}')")
    assert {"key_rate": 4, "burst": None, "max_running": 7}.items() <= queue("a/b").items()
    for body, field in [
        ('{"rate": 0}', "rate"),
        ('{"max_running": 1.5}', "max_running"),
        ('{"key_burst": "many"}', "key_burst"),
        ('{"aging_interval": -1}', "aging_interval"),
        ('{"speed": 1}', "speed"),
        ('{"rate": 1, "rate": 2}', "rate"),
        ("[]", None),
        ("{", None),
        ('{"rate": 1e999}', None),
    ]:
        answer = httpx.put(url, content=body, headers={"Content-Type": "application/json"}, timeout=60)
        assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json"), body
        assert answer.json()["type"] == "urn:jobqueue:invalid-setting"
        assert answer.json().get("field") == field
    assert httpx.put(url, json={"rate": 1, "x": "x" * 5000}, timeout=60).status_code == 413
    assert httpx.put(url, content="{}", headers={"Content-Type": "application/x-ndjson"}, timeout=60).status_code == 415
    assert httpx.put(f"{node.url}/queues/{'x' * 201}", json={}, timeout=60).status_code == 400
    # Settings in code replace the stored settings each time a node starts.
    database.rows("SELECT jobqueue.configure('declared', max_running => 100, rate => 1)")
    assert node.stop() == 0
    node = service("tests.handlers.limits", "--queue", "declared=4")
    assert declared.items() <= queue("declared").items()


def test_a_running_limit_holds_over_nodes_and_an_end_on_one_lets_another_start_a_job(service: Start, database: Database) -> None:
    nodes = [service("tests.handlers.limits", "--queue", "default=8", *LONGEST_POLL) for _ in range(2)]
    database.rows("SELECT jobqueue.configure('default', max_running => 3)")
    with Watch(database.url, RUNNING) as watch:
        submit(database, 60, kind="nap", payload={"seconds": 0.05})
        wait_for(lambda: database.states() == {"succeeded": 60}, "20 rounds of 3 jobs, without a poll before each", 120)
    assert watch.highest == 3
    assert all(node.process.poll() is None for node in nodes)


def test_a_killed_node_is_not_a_way_around_a_limit(service: Start, database: Database) -> None:
    nodes = [service("tests.handlers.limits", "--queue", "default=8", "--poll-interval", "0.5") for _ in range(2)]
    database.rows("SELECT jobqueue.configure('default', max_running => 4, key_max_running => 2)")
    with Watch(database.url, RUNNING) as running, Watch(database.url, PER_KEY) as per_key:
        for key in "ab":
            submit(database, 40, kind="nap", payload={"seconds": 0.1}, concurrency_key=key)
        submit(database, 20, kind="nap", payload={"seconds": 0.1})
        wait_for(lambda: database.states().get("succeeded", 0) > 20)
        nodes[0].kill()
        wait_for(lambda: database.states() == {"succeeded": 100}, seconds=120)
    assert running.highest == 4
    assert 1 <= per_key.highest <= 2


def test_a_rate_is_kept_and_reached_by_two_nodes_one_of_which_is_killed(service: Start, database: Database) -> None:
    rate, burst, jobs = 40, 5, 200
    nodes = [service("tests.handlers.limits", "--queue", "default=8", *LONGEST_POLL) for _ in range(2)]
    database.rows("SELECT jobqueue.configure('default', rate => %s, burst => %s)", rate, burst)
    submit(database, jobs, kind="nap")
    wait_for(lambda: database.states().get("succeeded", 0) > jobs / 2, seconds=120)
    nodes[0].kill()
    wait_for(lambda: database.states() == {"succeeded": jobs}, seconds=120)
    starts = claims(database)
    assert within(starts, rate=rate, burst=burst)
    assert len(starts) / (starts[-1] - starts[0]) > rate * 0.1, "with polls alone it would be 5 jobs per minute and node"


def test_the_rate_of_a_key_is_kept_and_reached_and_other_keys_do_not_wait(service: Start, database: Database) -> None:
    rate, burst, jobs = 20, 2, 60
    nodes = [service("tests.handlers.limits", "--queue", "default=8", *LONGEST_POLL) for _ in range(2)]
    database.rows("SELECT jobqueue.configure('default', key_max_running => 10, key_rate => %s, key_burst => %s)", rate, burst)
    submit(database, jobs, kind="nap", concurrency_key="slow")
    submit(database, 20, kind="nap")
    wait_for(lambda: database.value("SELECT count(*) FROM jobqueue_internal.finished_jobs WHERE options IS NULL") == 20)
    wait_for(lambda: database.states() == {"succeeded": jobs + 20}, seconds=120)
    starts = [
        when
        for (when,) in database.rows(
            "SELECT extract(epoch FROM claimed_at)::float8"
            " FROM jobqueue_internal.finished_jobs WHERE options IS NOT NULL ORDER BY 1"
        )
    ]
    assert within(starts, rate=rate, burst=burst)
    assert len(starts) / (starts[-1] - starts[0]) > rate * 0.1, "with polls alone it would be 2 jobs per minute and node"
    assert all(node.process.poll() is None for node in nodes)


def test_keyed_jobs_come_through_by_http_and_by_sql_without_a_poll(service: Start, database: Database) -> None:
    node = service("tests.handlers.limits", "--queue", "default=8", *LONGEST_POLL)
    job = {"kind": "nap", "concurrency_key": "k"}
    with Watch(database.url, PER_KEY) as watch:
        for _ in range(5):
            assert httpx.post(f"{node.url}/submit", json=[job] * 4, timeout=60).status_code == 201
            submit(database, 4, **job)
        wait_for(lambda: database.states() == {"succeeded": 40}, seconds=120)
    assert watch.highest == 1
    counted = httpx.get(f"{node.url}/metrics", timeout=60).text
    assert 'jobqueue_jobs_completed_total{kind="nap",queue="default"} 40.0' in counted


@pytest.mark.no_schema
def test_with_every_notification_lost_keyed_jobs_are_found_by_the_poll(service: Start, database: Database) -> None:
    database.rows(schema.script())
    database.rows("CREATE OR REPLACE FUNCTION jobqueue_internal.wake_keys() RETURNS void LANGUAGE sql AS 'SELECT'")
    database.rows(
        "CREATE OR REPLACE FUNCTION jobqueue_internal.wake(queue text, rank timestamptz) RETURNS void LANGUAGE sql AS 'SELECT'"
    )
    service("tests.handlers.limits", "--queue", "default=8", "--poll-interval", "0.5")
    submit(database, 3, kind="nap", concurrency_key="k")
    wait_for(lambda: database.states() == {"succeeded": 3})


# ------------------------------------------------------------------------------------------------------------------------ pause


def test_a_pause_releases_claimed_jobs_on_every_node_and_running_jobs_finish(
    service: Start, database: Database, tmp_path: Path
) -> None:
    """Fast jobs make the nodes claim ahead. When the pause begins, they hold slow jobs that have not started."""
    nodes = [service("tests.handlers.limits", "--queue", "default=2", *LONGEST_POLL) for _ in range(2)]
    go_on = tmp_path / "go-on"
    submit(database, 2000, kind="nap", payload={"seconds": 0.001}, priority=100)
    submit(database, 400, kind="wait-for-file", payload={"path": str(go_on)})

    def slow(state: str) -> int:
        return int(database.value("SELECT count(*) FROM jobqueue.jobs WHERE kind = 'wait-for-file' AND state = %s", state))

    # 4 jobs can run and no fast job is left, so the nodes have claimed the other slow jobs ahead.
    fast = "SELECT count(*) FROM jobqueue_internal.succeeded_jobs WHERE kind = 'nap'"
    wait_for(lambda: slow("inflight") > 4 and database.value(fast) == 2000, seconds=120)
    assert httpx.post(f"{nodes[0].url}/queues/default/pause", timeout=60).status_code == 200
    wait_for(lambda: slow("inflight") <= 4, "the nodes release the jobs that have not started")
    assert slow("succeeded") == 0
    go_on.touch()
    wait_for(lambda: slow("inflight") == 0)
    ran = slow("succeeded")
    assert 1 <= ran <= 4
    assert slow("pending") == 400 - ran
    assert database.value("SELECT max(attempt) FROM jobqueue_internal.pending_jobs") == 0, "the attempt is refunded"
    assert httpx.post(f"{nodes[1].url}/queues/default/resume", timeout=60).status_code == 200
    wait_for(lambda: slow("succeeded") > ran)
