"""Hooks: their arguments, the jobs and times of their calls, and their isolation from jobs and nodes."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog.testing
import trio

from jobqueue import App, AttemptError, HandlerError, Job
from jobqueue.engine import hooks
from jobqueue.engine.hooks import Hooks
from jobqueue.engine.signals import Finished, Signals
from jobqueue.job import NewJob, Options, Outcome
from jobqueue.metrics import Metrics
from jobqueue.testing.memory_store import MemoryStore
from tests.support.postgres import Database
from tests.support.service import Service, Start, submit
from tests.support.storage import Driver, joined, new_id
from tests.support.waiting import wait_for

Told = list[dict[str, Any]]


@pytest.fixture
def told_to(tmp_path: Path) -> Path:
    return tmp_path / "effects"


@pytest.fixture
def start(service: Start, told_to: Path) -> Start:
    def start(*arguments: str, module: str = "tests.handlers.hooks") -> Service:
        return service(module, *arguments, env={"EFFECTS": str(told_to)})

    return start


def told(path: Path, hook: str = "died") -> Told:
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if line["hook"] == hook]


# ------------------------------------------------------------------------------------------------------ with the whole service


def test_every_hook_is_called_after_the_commit_of_a_retry_or_death(
    start: Start, client: httpx.Client, told_to: Path, database: Database
) -> None:
    node = start()
    job_id = submit(client, node, {"kind": "fail", "payload": {"n": 1}, "priority": 3})
    wait_for(lambda: bool(told(told_to)) and bool(told(told_to, "died_in_a_thread")), "the hooks are called")
    [retry] = told(told_to, "again")
    [death] = told(told_to, "died")
    for call, attempt in ((retry, 1), (death, 2)):
        job, error = call["job"], call["error"]
        expected = {"id": job_id, "kind": "fail", "payload": {"n": 1}, "priority": 3, "attempt": attempt, "max_retries": 1}
        assert expected.items() <= job.items()
        assert (error["attempt"], error["error"]) == (attempt, f"RuntimeError: attempt {attempt} as asked")
        assert "Traceback" in error["traceback"]
        assert error["duration"] >= 0
    assert database.states() == {"dead": 1}
    wait_for(lambda: "a hook failed" in node.log, "the failure of one hook is logged")
    assert node.log.count("a hook failed") == 1
    assert client.get(f"{node.url}/health/ready").status_code == 200


def test_the_node_that_writes_a_death_in_the_database_calls_the_hooks(start: Start, client: httpx.Client, told_to: Path) -> None:
    node = start("--poll-interval", "0.2")
    killer = submit(client, node, {"kind": "node-dies"})
    assert node.wait(60) == 9
    assert told(told_to) == []
    node = start("--poll-interval", "0.2")
    wait_for(lambda: len(told(told_to)) == 1, "a hook is called for the job that killed its node")
    client.post(f"{node.url}/queues/default/pause")
    late = submit(client, node, {"kind": "echo", "expires_in": 0.3, "payload": {"n": 2}})
    wait_for(lambda: len(told(told_to)) == 2, "a hook is called for the expired job")
    lost, expired = told(told_to)
    assert (lost["job"]["id"], lost["error"]["attempt"]) == (killer, 1)
    assert lost["error"]["error"].startswith("lease lost")
    assert lost["error"]["duration"] > 0.2
    assert (expired["job"]["id"], expired["job"]["payload"], expired["error"]["error"]) == (late, {"n": 2}, "expired")


def test_waiting_calls_are_made_before_the_node_stops(start: Start, client: httpx.Client, told_to: Path) -> None:
    node = start()
    submit(client, node, [{"kind": "discard", "payload": {"slow": True}}] * 8)
    wait_for(lambda: "jobqueue_jobs_dead_total" in client.get(f"{node.url}/metrics").text, "some jobs are dead")
    assert node.stop() == 0
    assert len(told(told_to)) >= 4, "running calls have ended"


def test_a_node_without_hooks_has_no_stage_for_them(start: Start, client: httpx.Client, database: Database) -> None:
    node = start(module="tests.handlers.plain")
    submit(client, node, {"kind": "nothing", "max_retries": 0})
    wait_for(lambda: database.states() == {"dead": 1}, "the job is dead")
    assert node.stop() == 0
    assert "hook" not in node.log


# ---------------------------------------------------------------------------------------------------------------- the stage


def queue_of(app: App, store: MemoryStore) -> Hooks:
    return Hooks(store, Metrics(), Signals(), on_dead=app.dead_hooks, on_retry=app.retry_hooks)


async def failed(driver: Driver) -> Finished:
    await driver.submit()
    job = await driver.claim_one()
    error = AttemptError(attempt=1, error="boom", duration=0)
    return Finished(job, Outcome(id=job.id, claims=1, outcome="dead", reason="no luck", error=error), driver.node)


async def test_calls_over_the_limit_are_dropped_and_logged(monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery) -> None:
    monkeypatch.setattr(hooks, "MAX_WAITING", 5)
    app, calls = App(), []

    @app.on_dead
    async def note(job: Job, error: AttemptError) -> None:  # noqa: ARG001
        calls.append(job.id)

    store = MemoryStore()
    waiting, driver = queue_of(app, store), await joined(store)
    with structlog.testing.capture_logs() as lines:
        for _ in range(9):
            waiting.written([await failed(driver)])
    assert [line["so_far"] for line in lines if "dropped" in line["event"]] == [1, 2, 4]
    await nursery.start(waiting.run)
    waiting.close()
    waiting.written([await failed(driver)])  # after the end: dropped without an error
    with trio.fail_after(60):
        while nursery.child_tasks:  # noqa: ASYNC110 - the stage ends
            await trio.sleep(0.01)
    assert len(calls) == 5


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_hook_that_hangs_is_cancelled_and_the_next_ones_are_called(
    kind: str, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(hooks, "HOOK_TIMEOUT", 0.2)
    app, calls, end = App(), [], threading.Event()

    async def hang(job: Job, error: AttemptError) -> None:  # noqa: ARG001
        await trio.sleep_forever()

    def hang_in_a_thread(job: Job, error: AttemptError) -> None:  # noqa: ARG001
        end.wait(60)

    app.on_dead(hang if kind == "async" else hang_in_a_thread)

    @app.on_dead
    async def note(job: Job, error: AttemptError) -> None:  # noqa: ARG001
        calls.append(error.error)

    store = MemoryStore()
    waiting, driver = queue_of(app, store), await joined(store)
    await nursery.start(waiting.run)
    for _ in range(2 * hooks.AT_ONCE):
        waiting.written([await failed(driver)])
    with trio.fail_after(60):
        while len(calls) < 2 * hooks.AT_ONCE:  # noqa: ASYNC110
            await trio.sleep(0.01)
    end.set()
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("raised", [RuntimeError("x"), SystemExit(3), KeyboardInterrupt(), trio.Cancelled])
async def test_no_exception_of_a_hook_stops_the_node(raised: Any, nursery: trio.Nursery) -> None:
    app, calls = App(), []

    @app.on_dead
    async def fail(job: Job, error: AttemptError) -> None:  # noqa: ARG001
        if raised is not trio.Cancelled:
            raise raised
        kept: list[BaseException] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep(1)
            except trio.Cancelled as cancelled:
                kept.append(cancelled)
                raise
        raise kept[0]

    @app.on_dead
    async def note(job: Job, error: AttemptError) -> None:  # noqa: ARG001
        calls.append(error.error)

    store = MemoryStore()
    waiting, driver = queue_of(app, store), await joined(store)
    await nursery.start(waiting.run)
    for _ in range(10):
        waiting.written([await failed(driver)])
    with trio.fail_after(60):
        while len(calls) < 10:  # noqa: ASYNC110
            await trio.sleep(0.01)
    nursery.cancel_scope.cancel()


async def test_a_deleted_job_causes_no_call(nursery: trio.Nursery) -> None:
    app, calls = App(), []

    @app.on_dead
    async def note(job: Job, error: AttemptError) -> None:
        calls.append((job.id, job.max_retries, error.error))

    store = MemoryStore()
    waiting, driver = queue_of(app, store), await joined(store)
    late = [NewJob(id=new_id(), options=Options(expires_at=1e9)) for _ in range(2)]
    await store.submit_again([json.dumps({"id": job.id, "options": {"expires_at": 1e9}}).encode() for job in late], backend=(1, ""))
    expired = (await driver.store.promote()).expired
    assert await store.discard(late[0].id)
    waiting.expired(expired)
    await nursery.start(waiting.run)
    waiting.close()
    with trio.fail_after(60):
        while nursery.child_tasks:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert calls == [(late[1].id, 3, "expired")]


# ---------------------------------------------------------------------------------------------------------------- registration


def takes_one(job: Job) -> None: ...


def takes_a_named_one(job: Job, error: AttemptError, *, more: int) -> None: ...


async def generates(job: Job, error: AttemptError) -> Any:
    yield job, error


@pytest.mark.parametrize(
    "function", [takes_one, takes_a_named_one, generates, functools.partial(generates), "a text", None, dict, staticmethod]
)
@pytest.mark.parametrize("register", ["on_dead", "on_retry"])
def test_functions_that_do_not_accept_a_job_and_an_error_are_rejected(register: str, function: Any) -> None:
    with pytest.raises(HandlerError, match=register):
        getattr(App(), register)(function)


class Recorder:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, job: Job, error: AttemptError) -> None:
        self.calls.append(f"object: {job.kind} {error.error}")

    async def method(self, job: Job, error: AttemptError) -> None:
        self.calls.append(f"async: {job.kind} {error.error}")

    def wrapped(self) -> Any:
        @functools.wraps(self.method)
        def wrapper(*arguments: Any) -> Any:
            return self.method(*arguments)

        return wrapper


class AsyncRecorder(Recorder):
    async def __call__(self, job: Job, error: AttemptError) -> None:  # type: ignore[override]
        await self.method(job, error)


async def test_methods_objects_partials_and_wrappers_are_hooks(nursery: trio.Nursery) -> None:
    app, one, other = App(), Recorder(), AsyncRecorder()
    all_called = trio.Event()
    for function in (one, one.method, functools.partial(one.method), one.wrapped(), other, functools.partial(other)):
        app.on_dead(function)

    @app.on_dead
    async def last(*_: object) -> None:
        all_called.set()

    assert [hook.is_async for hook in app.dead_hooks] == [False, True, True, False, True, True, True]
    store = MemoryStore()
    driver = await joined(store)
    queue = queue_of(app, store)
    await nursery.start(queue.run)
    queue.written([await failed(driver)])
    with trio.fail_after(60):
        await all_called.wait()
    assert one.calls == ["object: default boom", *["async: default boom"] * 3]
    assert other.calls == ["async: default boom"] * 2
    nursery.cancel_scope.cancel()


def test_registration_returns_the_function_unchanged() -> None:
    app = App()

    def note(job: Job, error: AttemptError, more: int = 1) -> None: ...

    assert app.on_dead(note) is note
    app.on_retry(functools.partial(note, more=2))
    assert [hook.function for hook in app.dead_hooks] == [note]
    assert len(app.retry_hooks) == 1
