"""Cancel running jobs on any node of a real service, over HTTP and SQL."""

from __future__ import annotations

import signal

import httpx
import psycopg
import pytest
import trio
import trio_parallel
from trio.testing import wait_all_tasks_blocked

from jobqueue import App, Job
from jobqueue.engine.executor import Executor
from jobqueue.engine.leases import Lease
from jobqueue.engine.local_queue import LocalQueue
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.progress import ProgressWriter
from jobqueue.engine.signals import Signals
from jobqueue.engine.worker import Workers
from jobqueue.metrics import Metrics
from jobqueue.testing.memory_store import MemoryStore
from tests.support.executor import no_transactions
from tests.support.running import Bench, cancel, submit
from tests.support.storage import Driver


@pytest.mark.parametrize("kind", ["sleep", "thread", "cpu", "retries", "sleeping-children"])
def test_a_job_on_another_node_is_cancelled_by_a_notification(bench: Bench, kind: str) -> None:
    worker, front = (
        bench.start("--visibility-timeout", "86400", handlers="tests.handlers.rare_heartbeats"),
        bench.start("--no-workers"),
    )
    job_id = submit(front, kind)
    bench.until(lambda: bench.effects(job_id))
    answer = cancel(front, job_id)
    # The job may have ended before the response was built.
    assert (answer.status_code, answer.json()["state"]) in ((202, "inflight"), (200, "cancelled"))
    assert answer.json()["cancel_requested_at"] is not None or answer.status_code == 200
    bench.until_state(job_id, "cancelled")
    assert cancel(front, job_id).status_code == 409, "it has ended"
    assert "ended" not in bench.effects(job_id)
    if kind == "thread":
        bench.until_effect(job_id, "stopped")
    if kind == "sleeping-children":
        assert bench.effects(job_id)[-1] == "child-ended"
    metrics = httpx.get(f"{worker.url}/metrics", timeout=60).text
    # The handler raises Retry when it is cancelled. The node counts a retry, but the database ends the job as cancelled.
    verdict = "retried" if kind == "retries" else "cancelled"
    assert f'jobqueue_jobs_{verdict}_total{{kind="{kind}",queue="default"}} 1.0' in metrics


def test_a_second_request_is_harmless_and_a_waiting_job_ends_at_once(bench: Bench) -> None:
    node = bench.start("--queue", "default=1")
    running = submit(node, "succeeds")
    bench.until_effect(running, "began")
    waiting, later = submit(node, "sleep", queue="unworked"), submit(node, "sleep", delay=3600)
    for job_id in (waiting, later):
        answer = cancel(node, job_id)
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    with psycopg.connect(bench.database.url) as asking:
        # The node is notified when the transaction commits.
        assert asking.execute("SELECT jobqueue.cancel(%s), jobqueue.cancel(%s)", (running, running)).fetchone() == (True, True)
        assert bench.job(running)["cancel_requested_at"] is None
    bench.until_state(running, "succeeded")
    assert bench.job(running)["result"] == "done all the same", "a success is kept"
    assert cancel(node, running).status_code == 409
    assert bench.database.value("SELECT jobqueue.cancel(%s)", running) is False


async def test_a_cancelled_job_that_waits_for_a_worker_does_not_start(nursery: trio.Nursery) -> None:
    started: list[str] = []
    app = App()

    @app.handler("default")
    async def _(job: Job) -> None:
        started.append(job.id)
        await trio.sleep_forever()

    store, metrics, signals, queue = MemoryStore(), Metrics(), Signals(), LocalQueue("default", 1)
    lease = Lease(store, metrics, signals, queues={"default": 1}, seconds=30)
    await lease.join()
    outcomes = Outcomes(store, lease, metrics, signals, keep_finished=True)
    await nursery.start(outcomes.run)
    driver = Driver(store)
    driver.node = lease.node.id
    ids = await driver.submit_many({}, {}, {})
    claimed = await driver.claim()
    async with trio_parallel.open_worker_context() as processes:
        limiter = trio.CapacityLimiter(1)
        executor = Executor(
            app.handlers,
            metrics,
            threads=limiter,
            processes=processes,
            process_limiter=limiter,
            notes=ProgressWriter(store, signals),
            transactions=no_transactions(),
        )
        workers = Workers(executor, outcomes, lease, metrics, signals, queues=[queue])
        queue.ready.push_all([(job.rank, job) for job in claimed])
        await nursery.start(workers.run)
        await wait_all_tasks_blocked()
        for job_id in ids[:2]:
            await store.cancel(job_id)
        signals.runs_unwanted.publish([(ids[0], 1), (ids[1], 1), (ids[2], 2)])
        with trio.fail_after(60):
            while len(started) < 2:  # noqa: ASYNC110 - the free worker starts the third job
                await trio.sleep(0.01)
            await outcomes.flush()
        assert started == [ids[0], ids[2]]
        assert [await driver.state(job_id) for job_id in ids] == ["cancelled", "cancelled", "inflight"], (
            "another claim is another run"
        )
        nursery.cancel_scope.cancel()


def test_a_heartbeat_delivers_a_cancellation_whose_notification_was_lost(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "sleep")
    bench.until_effect(job_id, "began")
    bench.database.rows(
        "UPDATE jobqueue_internal.inflight_jobs SET cancel_requested_at = now() WHERE id = %s", job_id
    )  # without NOTIFY
    bench.until_state(job_id, "cancelled")


def test_a_handler_that_swallows_its_cancellation_is_abandoned(bench: Bench) -> None:
    node = bench.start("--queue", "default=1")
    job_id = submit(node, "stubborn")
    bench.until_effect(job_id, "began")
    assert [cancel(node, job_id).status_code for _ in range(2)] == [202, 202], "a second request changes nothing"
    bench.until_state(job_id, "cancelled")
    after = submit(node, "fan-out")
    bench.until_state(after, "succeeded")


def test_a_cancelled_job_does_not_run_again_after_its_node_is_killed(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "sleep", max_retries=5)
    bench.until_effect(job_id, "began")
    node.process.send_signal(signal.SIGSTOP)
    assert bench.database.value("SELECT jobqueue.cancel(%s)", job_id) is True
    node.kill()
    bench.start()
    bench.until_state(job_id, "cancelled")
    assert bench.effects(job_id) == ["began"], "it never ran again"


def test_a_cancelled_job_ends_when_its_node_stops(bench: Bench) -> None:
    node = bench.start("--grace-period", "0.1")
    job_id = submit(node, "stubborn")
    bench.until_effect(job_id, "began")
    assert cancel(node, job_id).status_code == 202
    node.stop()
    assert bench.job(job_id)["state"] == "cancelled"
