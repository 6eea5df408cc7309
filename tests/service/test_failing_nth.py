"""Failures of one database call, or of a few in a row: for every call of a node, and for every way to fail.

A node without HTTP accepts and runs jobs of several kinds. Whichever call fails, every acknowledged job ends exactly once, rejected
jobs do not exist, no job remains claimed, and every part of the node still works.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
import trio
import trio_parallel
from trio.testing import MockClock

import jobqueue
from jobqueue.admission import admit
from jobqueue.errors import ConnectionLost, DatabaseUnavailable
from jobqueue.job import Submission
from jobqueue.storage.notifications import Notifications
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles import Store
from jobqueue.testing.memory_store import MemoryStore
from tests.support.failing_store import WAYS, FailingStore, Fault
from tests.support.nodes import running_node
from tests.support.postgres import Database

pytestmark = pytest.mark.slow

POSTGRESQL_SAMPLE = range(3, 60, 8)

ENDS = {
    "echo": "succeeded",
    "flaky": "succeeded",
    "doomed": "dead",
    "given up": "dead",
    "snoozing": "succeeded",
    "later": "succeeded",
}
"""The final state of a job of each kind."""

JOBS = 30
TOGETHER = 6


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Write no logs, because these tests cause thousands of failures."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@dataclass
class Told:
    """The responses to the submitters, and the runs of the handlers."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)


def make_app(told: Told) -> jobqueue.App:
    """Return an application whose handlers end in every way."""
    app = jobqueue.App()
    backoff = jobqueue.Backoff(base=0.01, cap=0.01)

    @app.handler("echo")
    @app.handler("later")
    async def echo(job: jobqueue.Job) -> object:
        told.runs[job.id] += 1
        await trio.sleep(0.005)
        return job.payload

    @app.handler("flaky", max_retries=3, backoff=backoff)
    async def flaky(job: jobqueue.Job) -> None:
        told.runs[job.id] += 1
        if job.attempt == 1:
            raise RuntimeError("not yet")

    @app.handler("doomed", max_retries=1, backoff=backoff)
    async def doomed(job: jobqueue.Job) -> None:
        told.runs[job.id] += 1
        raise RuntimeError("as ever")

    @app.handler("given up")
    async def given_up(job: jobqueue.Job) -> None:
        told.runs[job.id] += 1
        raise jobqueue.Discard("no use")

    @app.handler("snoozing", max_retries=0)
    async def snoozing(job: jobqueue.Job) -> None:
        told.runs[job.id] += 1
        if told.runs[job.id] == 1:
            raise jobqueue.Snooze(0.02)

    return app


async def submit(engine: Any, told: Told, number: int) -> None:
    """Submit a job like a client that retries rejected requests.

    Every second job has an idempotency key, so the client can also retry it in doubt.
    """
    kind = list(ENDS)[number % len(ENDS)]
    key = f"{len(told.acknowledged)} {number}" if number % 2 else None
    while True:
        delay = 0.05 if kind == "later" else None
        jobs = admit([Submission(kind=kind, payload=number, priority=number % 3, delay=delay, idempotency_key=key)])
        try:
            receipt = await engine.submissions.submit(jobs)
        except ConnectionLost:
            told.unknown |= dict.fromkeys(jobs.ids, kind)
            if key is None:
                return
            await trio.sleep(0.02)
            continue
        except DatabaseUnavailable:
            told.refused += jobs.ids
            await trio.sleep(0.02)
            continue
        assert (receipt is not None) == (key is not None)
        told.acknowledged |= dict.fromkeys(jobs.ids if receipt is None else receipt.ids, kind)
        if key is not None:
            told.keys.append(key)
        return


async def scenario(store: Store, failing: FailingStore, *, patience: float = 30, visibility_timeout: float = 2) -> Told:
    """Submit jobs, run all of them, and check that every part still works."""
    told = Told()
    done = False
    with trio.fail_after(patience):
        while not done:
            try:
                await work(store, failing, told, visibility_timeout)
                done = True
            except* DatabaseUnavailable:
                assert not told.acknowledged, "a node may give up only during its start, and then its supervisor starts it again"
        await store.aclose()
    assert failing.calls
    return told


async def work(store: Store, failing: FailingStore, told: Told, visibility_timeout: float) -> None:
    async with running_node(make_app(told), failing, visibility_timeout=visibility_timeout) as (engine, _, stages):
        parts = stages.names()
        async with trio.open_nursery() as clients:
            for number in range(JOBS):
                clients.start_soon(submit, engine, told, number)
                if number % TOGETHER == 0:
                    await trio.sleep(0.01)
        await all_ended(store)
        async with trio.open_nursery() as clients:  # without failures, to check that every part still works
            for number in range(len(ENDS)):
                clients.start_soon(submit, engine, told, number)
        await all_ended(store)
        assert stages.names() == parts
        assert not stages.stopping.is_set()
        await engine.outcomes.flush()
        assert not engine.outcomes.held


async def all_ended(store: Store) -> None:
    while {depth.state for depth in await store.depths()} - {"dead"}:  # noqa: ASYNC110 - the database sends no event
        await trio.sleep(0.02)


def check(told: Told, rows: Sequence[Mapping[str, Any]]) -> None:
    states = Counter((row["id"], row["state"]) for row in rows)
    assert len(states) == len(rows) == len({row["id"] for row in rows}), "no id is stored twice"
    ends = {row["id"]: row["state"] for row in rows}
    assert {job_id: ends.get(job_id) for job_id in told.acknowledged} == {
        job_id: ENDS[kind] for job_id, kind in told.acknowledged.items()
    }
    assert set(ends.values()) <= set(ENDS.values()), "no job remains claimed"
    assert not ends.keys() & set(told.refused), "rejected jobs do not exist"
    assert ends.keys() <= told.acknowledged.keys() | told.unknown.keys()
    keys = [row["options"]["idempotency_key"] for row in rows if row["options"]]
    assert sorted(keys) == sorted(told.keys), "each key is one job"
    for row in rows:
        assert row["attempt"] <= row["max_retries"] + 1
        assert told.runs[row["id"]] <= row["claims"], "a run without a claim"
        assert told.runs[row["id"]] >= 1, "the job ended without a run"


async def no_notifications(_: Notifications, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Replace the listener, which has nothing to listen to."""
    task_status.started()
    await trio.sleep_forever()


@asynccontextmanager
async def no_processes(**options: object) -> AsyncIterator[None]:
    """Replace the process pool, which ends in a thread: virtual time does not wait for threads."""
    assert options
    yield


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_any_call_may_fail_in_any_way(ways: Sequence[Fault], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Notifications, "run", no_notifications)
    monkeypatch.setattr(trio_parallel, "open_worker_context", no_processes)
    first = 0
    while True:
        first += 1
        store = MemoryStore(trio.current_time)
        failing = FailingStore(store, first, ways)
        told = trio.run(scenario, store, failing, clock=MockClock(autojump_threshold=0))
        check(told, store.snapshot())
        if len(failing.calls) < first:
            return


@pytest.mark.parametrize("first", POSTGRESQL_SAMPLE)
async def test_any_call_to_postgresql_may_fail(first: int, database_url: str, database: Database) -> None:
    store = PostgresStore(database_url)
    failing = FailingStore(store, first, ["after", "after", "before"])
    told = await scenario(store, failing, patience=90, visibility_timeout=60)
    rows = [row for (row,) in database.rows("SELECT to_jsonb(j) FROM jobqueue.jobs AS j")]
    check(told, rows)
