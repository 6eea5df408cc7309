"""A job that does not start before its deadline expires, wherever it waits."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from jobqueue import App, service
from jobqueue.concurrency.stages import open_stages
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.promotion import LOCKED_INTERVAL, Promoter
from jobqueue.engine.signals import Signals
from jobqueue.job import Options
from jobqueue.settings import Settings
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles.schedule import Promotion
from jobqueue.testing.memory_store import MemoryStore
from tests.support.postgres import Database
from tests.support.service import Service, Start, submit
from tests.support.storage import open_driver
from tests.support.waiting import wait_for


@pytest.fixture
def start(service: Start, tmp_path: Path) -> Start:
    def start(*arguments: str) -> Service:
        return service("tests.handlers.hooks", *arguments, env={"EFFECTS": str(tmp_path / "effects")})

    return start


def metric(client: httpx.Client, node: Service, name: str) -> float:
    lines = client.get(f"{node.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


# ------------------------------------------------------------------------------------------------------------------ over HTTP


@pytest.mark.parametrize(
    ("late", "field"),
    [
        ({"expires_in": 0}, "expires_in"),
        ({"expires_at": (datetime.now(UTC) - timedelta(minutes=1)).isoformat()}, "expires_at"),
        ({"expiresAt": "1999-12-31T23:59:59Z", "delay": 60}, "expires_at"),
    ],
)
def test_a_job_that_has_expired_is_unprocessable_and_so_is_its_batch(
    start: Start, client: httpx.Client, database: Database, late: dict[str, Any], field: str
) -> None:
    node = start("--no-workers")
    answer = client.post(f"{node.url}/submit", json=late)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert f"{field} of job 1 is not in the future" in answer.json()["detail"]
    assert client.post(f"{node.url}/submit", json=[{}, late]).status_code == 422
    assert database.states() == {}
    submit(client, node, {"expires_in": 60})


def test_jobs_expire_in_unworked_and_paused_queues(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--poll-interval", "0.2")
    client.post(f"{node.url}/queues/default/pause")
    jobs: list[dict[str, Any]] = [{}, {"queue": "nobody's"}, {"delay": 60}]
    ids = submit(client, node, [{**job, "kind": "echo", "expires_in": 0.5} for job in jobs])
    other = submit(client, node, {"kind": "echo", "expires_in": 60})
    wait_for(lambda: database.states() == {"pending": 1, "dead": 3}, "the jobs expire")
    for job_id in ids:
        job = client.get(f"{node.url}/jobs/{job_id}").json()
        assert (job["state"], job["reason"], job["attempt"], job["errors"]) == ("dead", "expired", 0, [])
        expired = datetime.fromisoformat(job["options"]["expires_at"])
        late = (datetime.fromisoformat(job["ended_at"]) - expired).total_seconds()
        assert 0 <= late < 60, "not before the deadline, and not long after it"
    assert metric(client, node, "jobqueue_jobs_expired_total") == metric(client, node, "jobqueue_jobs_dead_total") == 3
    assert client.get(f"{node.url}/jobs/{other}").json()["state"] == "pending"
    assert client.post(f"{node.url}/jobs/{ids[0]}/retry").json()["options"] is None


def test_a_job_that_expires_before_a_worker_is_free_never_starts(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--queue", "default=1", "--poll-interval", "60")  # no promotion meanwhile: the claim must find the expired jobs
    jobs = [
        {"kind": "sleep", "payload": {"seconds": 1}, "priority": 9},
        *[{"kind": "echo", "expires_in": 0.4}] * 20,
        {"kind": "echo"},
    ]
    _, *late, after = submit(client, node, jobs)
    wait_for(lambda: database.states() == {"succeeded": 2, "dead": 20}, "all jobs have ended")
    reasons = database.rows("SELECT DISTINCT reason, attempt FROM jobqueue_internal.dead_jobs")
    assert reasons == [("expired", 0)]
    assert client.get(f"{node.url}/jobs/{after}").json()["state"] == "succeeded"
    assert metric(client, node, "jobqueue_jobs_expired_total") == len(late)


def test_a_retry_due_after_the_deadline_expires_with_its_errors(start: Start, client: httpx.Client, database: Database) -> None:
    node = start("--poll-interval", "0.2")
    job_id = submit(client, node, {"kind": "fail-slowly", "expires_in": 15})
    wait_for(lambda: database.states() == {"scheduled": 1}, "the job waits for its retry")
    wait_for(lambda: database.states() == {"dead": 1}, "the job expires")
    job = client.get(f"{node.url}/jobs/{job_id}").json()
    assert (job["reason"], job["attempt"]) == ("expired", 1)
    assert [error["error"] for error in job["errors"]] == ["RuntimeError: come back later"]


# --------------------------------------------------------------------------------------------- claimed, and not started in time


async def test_a_claimed_job_that_expires_before_a_worker_is_free_is_not_started(
    database_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalQueue, "_measure", lambda queue: setattr(queue, "_prefetch", 5))  # prefetch from the start
    app, ran, go_on = App(), [], trio.Event()

    @app.handler("hold")
    async def hold() -> None:
        await go_on.wait()

    @app.handler("note")
    async def note(name: str) -> None:
        ran.append(name)

    settings = Settings(queues={"default": 1}, poll_interval=60)
    async with (
        open_driver(database_url) as driver,
        open_stages() as stages,
        service.open_engine(app, settings, PostgresStore(database_url)) as engine,
    ):
        await service.start_engine(engine, stages, database_url)
        queue = engine.queues["default"]
        await driver.submit(kind="hold", priority=9)
        late = await driver.submit(kind="note", payload={"name": "late"}, options=Options(expires_in=10))
        fine = await driver.submit(kind="note", payload={"name": "fine"}, options=Options(expires_in=600))
        engine.dispatcher.wake_all()
        with trio.fail_after(60):
            while len(queue.ready) < 2:  # noqa: ASYNC110 - the queue sends no event
                await trio.sleep(0.01)
            assert database.states() == {"inflight": 3}, "the job is claimed before its deadline"
            while await driver.store.now() < datetime.fromtimestamp(await expires_at(database, late), UTC):  # noqa: ASYNC110
                await trio.sleep(0.05)
            await trio.sleep(0.05)
            go_on.set()
            while database.states() != {"succeeded": 2, "dead": 1}:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert ran == ["fine"]
        row = await driver.store.job(late)
        assert row is not None
        assert (row.reason, row.attempt, row.errors) == ("expired", 0, [])
        assert await driver.state(fine) == "succeeded"
        assert b'jobqueue_jobs_expired_total{kind="note",queue="default"} 1.0' in engine.metrics.render()
        await service._shut_down(engine, settings, stages, trio.Event())


def test_a_job_that_expires_before_a_process_is_free_is_not_started(
    start: Start, client: httpx.Client, database: Database, tmp_path: Path
) -> None:
    node = start("--poll-interval", "0.2")
    places = os.cpu_count() or 1
    submit(client, node, [{"kind": "compute", "payload": {"until": str(tmp_path / "go on")}}] * places)
    wait_for(lambda: ran(tmp_path) == places, "all processes are busy")
    late = submit(client, node, {"kind": "compute", "expires_in": 10})
    wait_for(
        lambda: database.value("SELECT count(*) FROM jobqueue_internal.inflight_jobs WHERE id = %s", late) == 1,
        "the job is claimed",
    )
    deadline = datetime.fromtimestamp(
        float(database.value("SELECT options ->> 'expires_at' FROM jobqueue.jobs WHERE id = %s", late)), UTC
    )
    wait_for(lambda: database.value("SELECT now()") > deadline, "the deadline has passed")
    (tmp_path / "go on").touch()
    wait_for(lambda: database.states() == {"succeeded": places, "dead": 1}, "all jobs have ended")
    assert ran(tmp_path) == places
    assert database.rows("SELECT reason, attempt FROM jobqueue_internal.dead_jobs") == [("expired", 0)]


def ran(directory: Path) -> int:
    path = directory / "effects"
    return path.read_bytes().splitlines().count(b"{}") if path.exists() else 0  # the hooks write to the file too


async def expires_at(database: Database, job_id: str) -> float:
    return float(database.value("SELECT options ->> 'expires_at' FROM jobqueue.jobs WHERE id = %s", job_id))


# ----------------------------------------------------------------------------------------------------------------- the schedule


class Answering(MemoryStore):
    """A store that returns a given promotion, and records the calls."""

    def __init__(self, promotion: Promotion) -> None:
        super().__init__(trio.current_time)
        self.promotion = promotion
        self.looks: list[float] = []

    async def promote(self) -> Promotion:
        self.looks.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        return self.promotion


@pytest.mark.parametrize(("next_due", "pause"), [(None, 2.0), (0.7, 0.7), (600.0, 2.0), (-5.0, LOCKED_INTERVAL)])
async def test_the_next_promotion_is_when_a_job_is_due_or_after_a_pause_for_locked_jobs(
    next_due: float | None, pause: float, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    store = Answering(Promotion(0, {}, next_due))
    promoter = Promoter(store, Signals(), poll_interval=2)
    await nursery.start(promoter.run)
    await trio.sleep(20)
    nursery.cancel_scope.cancel()
    gaps = [later - when for when, later in zip(store.looks, store.looks[1:], strict=False)]
    assert gaps == pytest.approx([pause] * len(gaps))
    assert len(gaps) >= 9
