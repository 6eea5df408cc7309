"""Progress and checkpoints: a job's notes while it runs, and after it has ended."""

from __future__ import annotations

import math
import pickle
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
import trio
import trio_parallel
from trio.testing import MockClock

from jobqueue import Job
from jobqueue.engine import progress as notes_module
from jobqueue.engine.progress import NOTE_INTERVAL, ProgressWriter
from jobqueue.engine.signals import Signals
from jobqueue.errors import DatabaseUnavailable
from jobqueue.job import MAX_CHECKPOINT_BYTES, MAX_PROGRESS_MESSAGE, Note
from jobqueue.testing.memory_store import MemoryStore
from tests.support.executor import claimed
from tests.support.running import Bench, submit
from tests.support.storage import Driver, joined
from tests.support.waiting import until


def a_job(**fields: Any) -> Job:
    given = {"id": "j", "kind": "k", "queue": "q", "payload": {}, "priority": 0, "attempt": 1, "max_retries": 3}
    return Job(**{**given, "created_at": datetime.now(UTC), **fields})


# ---------------------------------------------------------------------------------------------------- what a handler may say


@pytest.mark.parametrize("fraction", [0, 1, 0.4, None, 1.0000000000000002, -0.0000000001])
def test_a_fraction_is_taken_from_0_to_1_or_none(fraction: float | None) -> None:
    a_job().progress(fraction, "page 12 of 30")


@pytest.mark.parametrize("fraction", [-0.01, 1.01, 40, math.nan, math.inf])
def test_any_other_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be from 0 to 1"):
        a_job().progress(fraction)


def test_a_checkpoint_is_json_of_a_bounded_size() -> None:
    a_job().checkpoint("x" * (MAX_CHECKPOINT_BYTES - 2))
    with pytest.raises(ValueError, match=r"job.checkpoint: data .* 65537 bytes"):
        a_job().checkpoint("x" * (MAX_CHECKPOINT_BYTES - 1))
    for data in (object(), math.nan, "\0"):
        with pytest.raises(ValueError, match=r"job.checkpoint: data cannot be stored"):
            a_job().checkpoint(data)


def test_a_job_of_a_unit_test_has_no_run() -> None:
    job = a_job(last_checkpoint={"page": 3})
    assert (job.cancelled, job.last_checkpoint) == (False, {"page": 3})
    with pytest.raises(AttributeError, match=r"job.nursery exists only in an async handler"):
        _ = job.nursery


def test_a_job_goes_to_another_process_and_says_there_that_it_cannot_note() -> None:
    job = pickle.loads(pickle.dumps(a_job(last_checkpoint=[1])))
    assert (job.last_checkpoint, job.cancelled) == ([1], False)
    with pytest.raises(RuntimeError, match=r"job.progress does not work in a handler with cpu=True"):
        job.progress(0.5)
    with pytest.raises(RuntimeError, match=r"job.checkpoint does not work in a handler with cpu=True"):
        job.checkpoint(1)


# ---------------------------------------------------------------------------------------------------- how it is written


class Written(MemoryStore):
    """A store that records the writes of notes, and can be unavailable."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self.writes: list[list[Note]] = []
        self.away = False

    async def note(self, node_id: str, notes: Sequence[Note]) -> set[str]:
        if self.away:
            raise DatabaseUnavailable("away")
        self.writes.append(list(notes))
        return await super().note(node_id, notes)


@pytest.fixture
async def driver() -> Driver:
    return await joined(Written())


async def saved_of(store: MemoryStore, handle: notes_module.Handle) -> Any:
    job = await store.job(handle.job.id)
    assert job is not None
    return job.saved


async def noting(driver: Driver, nursery: trio.Nursery, jobs: int = 1) -> tuple[Written, list[notes_module.Handle]]:
    store = driver.store
    assert isinstance(store, Written)
    notes = ProgressWriter(store, Signals())
    await nursery.start(notes.run)
    await driver.submit_many(*({} for _ in range(jobs)))
    return store, [notes.handle(run, driver.node) for run in await driver.claim()]


async def test_the_latest_of_each_job_is_written_once_a_second_in_one_statement(
    autojump_clock: MockClock,  # noqa: ARG001 - requesting this fixture makes it the test's clock
    driver: Driver,
    nursery: trio.Nursery,
) -> None:
    store, handles = await noting(driver, nursery, jobs=3)
    began = trio.current_time()
    while trio.current_time() < began + 3.05 * NOTE_INTERVAL:
        for handle in handles:
            handle.note("progress", b"%.3f" % (trio.current_time() - began))
        await trio.sleep(0.05)
    assert 3 <= len(store.writes) <= 5
    assert all(len(write) == 3 for write in store.writes[1:])
    await trio.sleep(60)
    assert len(store.writes) <= 5, "nothing new, nothing written"
    saved = [saved["progress"] for saved in [await saved_of(store, handle) for handle in handles]]
    assert min(saved) > 3, "the last one is not forgotten"
    nursery.cancel_scope.cancel()


async def test_what_is_not_written_is_kept_for_the_outcome(
    autojump_clock: MockClock,  # noqa: ARG001 - requesting this fixture makes it the test's clock
    driver: Driver,
    nursery: trio.Nursery,
) -> None:
    store, [handle] = await noting(driver, nursery)
    handle.note("checkpoint", b"1")
    await trio.sleep(0.1)
    handle.note("checkpoint", b"2")
    assert handle.close() == msgspec.Raw(b'{"checkpoint":2}')
    handle.note("checkpoint", b"3")
    await trio.sleep(10)
    assert [note.saved for write in store.writes for note in write] == [msgspec.Raw(b'{"checkpoint":1}')]
    nursery.cancel_scope.cancel()


async def test_what_is_written_needs_not_go_along(
    autojump_clock: MockClock,  # noqa: ARG001 - requesting this fixture makes it the test's clock
    driver: Driver,
    nursery: trio.Nursery,
) -> None:
    _, [handle] = await noting(driver, nursery)
    handle.note("checkpoint", b"1")
    await trio.sleep(0.1)
    assert handle.close() is None
    nursery.cancel_scope.cancel()


async def test_notes_wait_for_a_database_that_is_away(
    autojump_clock: MockClock,  # noqa: ARG001 - requesting this fixture makes it the test's clock
    driver: Driver,
    nursery: trio.Nursery,
) -> None:
    store, [handle] = await noting(driver, nursery)
    store.away = True
    handle.note("checkpoint", b"1")
    await trio.sleep(5)
    handle.note("progress", b"2")
    store.away = False
    await trio.sleep(2 * NOTE_INTERVAL)
    assert [note.saved for write in store.writes for note in write] == [msgspec.Raw(b'{"checkpoint":1,"progress":2}')]
    nursery.cancel_scope.cancel()


async def test_many_large_notes_go_in_several_statements(
    driver: Driver, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes_module, "MAX_WRITE_BYTES", 100)
    store, handles = await noting(driver, nursery, jobs=9)
    for handle in handles:
        handle.note("checkpoint", b'"%s"' % (b"x" * 50))
    await until(lambda: sum(map(len, store.writes)) == 9)
    assert [len(write) for write in store.writes] == [2, 2, 2, 2, 1]
    nursery.cancel_scope.cancel()


async def test_notes_of_many_threads_are_all_kept(nursery: trio.Nursery) -> None:
    store = Written()
    notes = ProgressWriter(store, Signals())
    await nursery.start(notes.run)
    driver = await joined(store)
    await driver.submit()
    handle = notes.handle(await driver.claim_one(), driver.node)

    def note(name: str) -> None:
        for number in range(500):
            handle.note(name, b"%d" % number)
            time.sleep(0)

    async with trio.open_nursery() as threads:
        for number in range(4):
            threads.start_soon(trio.to_thread.run_sync, note, f"part-{number}")
    with trio.fail_after(60):
        expected = {f"part-{number}": 499 for number in range(4)}
        while await saved_of(store, handle) != expected:  # noqa: ASYNC110 - no event announces it
            await trio.sleep(0.05)
    nursery.cancel_scope.cancel()


def test_a_thread_that_outlives_the_loop_notes_in_vain() -> None:
    async def main() -> notes_module.Handle:
        return ProgressWriter(MemoryStore(), Signals()).handle(claimed(), "node")

    handle = trio.run(main)
    thread = threading.Thread(target=handle.note, args=("progress", b"1"))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


# ---------------------------------------------------------------------------------------------------- on real services


def test_a_retry_goes_on_from_the_last_checkpoint(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "pages", payload={"fail_at": 3})
    bench.until_state(job_id, "succeeded")
    assert bench.effects(job_id) == ["from-0", "from-3"]
    assert bench.job(job_id)["result"] == [3, 4]
    job = httpx.get(f"{node.url}/jobs/{job_id}", timeout=60).json()
    assert (job["checkpoint"], job["progress"]) == ({"page": 4}, {"fraction": 1.0, "message": "all pages"})
    assert "saved" not in job


def test_a_handler_in_a_thread_notes_too(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "pages-in-a-thread")
    bench.until_state(job_id, "succeeded")
    assert bench.job(job_id)["result"] == {"attempt": 1}


def test_the_checkpoint_survives_a_shutdown_and_is_written_with_it(bench: Bench) -> None:
    node = bench.start("--grace-period", "0.1")
    job_id = submit(node, "pages", payload={"hold_at": 2})
    bench.until_effect(job_id, "holds")
    node.stop()
    row = bench.job(job_id)
    assert (row["state"], row["saved"]["checkpoint"], row["attempt"]) == ("pending", {"page": 2}, 0)
    bench.database.rows("UPDATE jobqueue_internal.pending_jobs SET attempt = 1")  # it holds only in the first attempt
    bench.start()
    bench.until_state(job_id, "succeeded")
    assert bench.effects(job_id) == ["from-0", "holds", "from-2"]


def test_a_killed_process_loses_no_checkpoint_that_is_older_than_a_second(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "pages", payload={"hold_at": 2})
    bench.until_effect(job_id, "holds")
    bench.until(lambda: (bench.job(job_id)["saved"] or {}).get("checkpoint") == {"page": 2})
    shown = httpx.get(f"{node.url}/jobs/{job_id}", timeout=60).json()
    assert shown["progress"] == {"fraction": 0.4, "message": "page 2 of 5"}
    assert shown["checkpoint"] == {"page": 2}
    node.kill()
    bench.start()
    bench.until_state(job_id, "succeeded")
    assert bench.effects(job_id) == ["from-0", "holds", "from-2"]


def test_a_dead_letter_keeps_its_checkpoint_and_a_redrive_begins_with_it(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "poisonous-pages")
    bench.until_state(job_id, "dead")
    last = {"before": {"before": None, "attempt": 1}, "attempt": 2}
    assert httpx.get(f"{node.url}/jobs/{job_id}", timeout=60).json()["checkpoint"] == last
    assert httpx.post(f"{node.url}/jobs/{job_id}/retry", timeout=60).status_code == 200
    bench.until(lambda: (bench.job(job_id)["saved"]["checkpoint"]["before"] or {}).get("before") == last)


def test_a_cpu_handler_is_told_that_it_cannot_note(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "cpu-notes")
    bench.until_state(job_id, "dead")
    assert "job.progress does not work in a handler with cpu=True" in bench.job(job_id)["reason"]


async def test_the_message_is_cut_at_its_bound(
    autojump_clock: MockClock,  # noqa: ARG001 - requesting this fixture makes it the test's clock
    driver: Driver,
    nursery: trio.Nursery,
) -> None:
    _, [handle] = await noting(driver, nursery)
    job = a_job(_run=handle)
    job.progress(0.5, "x" * MAX_PROGRESS_MESSAGE + "y")
    assert msgspec.json.decode(handle.latest()["progress"]) == {"fraction": 0.5, "message": "x" * MAX_PROGRESS_MESSAGE}
    job.progress(None, "\0")
    assert msgspec.json.decode(handle.latest()["progress"]) == {"fraction": None, "message": "\\0"}
    nursery.cancel_scope.cancel()


@pytest.mark.slow
async def test_what_is_done_in_a_process_stays_picklable() -> None:
    async with trio_parallel.open_worker_context() as processes:
        with trio.fail_after(60):
            assert await processes.run_sync(_attempt_of, a_job()) == 1


def _attempt_of(job: Job) -> int:
    return job.attempt
