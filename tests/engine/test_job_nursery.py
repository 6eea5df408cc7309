"""A job's nursery: the tasks of a handler end with the attempt, and every failure is in the error."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
import trio

from jobqueue import Discard, Job, Retry, Snooze
from tests.support.executor import LAST, Runner, claimed, error_of
from tests.support.running import Bench, cancel, submit


async def fail(error: Exception, after: trio.Event | None = None) -> None:
    if after is not None:
        await after.wait()
    raise error


async def test_the_outcome_comes_after_the_last_child(node: Runner) -> None:
    ended: list[int] = []

    async def handler(job: Job) -> str:
        async def child(number: int) -> None:
            await trio.sleep(0.05 * number)
            ended.append(number)

        for number in range(3):
            job.nursery.start_soon(child, number)
        return "returned"

    outcome = await node.run(handler)
    assert (outcome.outcome, outcome.result) == ("succeeded", msgspec.Raw(b'"returned"'))
    assert ended == [0, 1, 2]


async def test_all_failures_of_the_children_are_reported_as_a_tree(node: Runner) -> None:
    async def handler(job: Job) -> None:
        together = trio.Event()
        for error in (ValueError("one"), KeyError("two"), OSError("three")):
            job.nursery.start_soon(fail, error, together)
        await trio.testing.wait_all_tasks_blocked()
        together.set()

    error = error_of(await node.run(handler))
    assert error.error.startswith("3 errors: ")
    assert {*error.error.removeprefix("3 errors: ").split("; ")} == {"ValueError: one", "KeyError: 'two'", "OSError: three"}
    assert error.traceback is not None
    for line in ("ValueError: one", "KeyError: 'two'", "OSError: three", "  +-+---------------- 1", "    +---------------- 3"):
        assert line in error.traceback
    assert "the last of them" not in error.error


async def test_a_long_list_of_failures_is_counted_and_its_beginning_reported(node: Runner) -> None:
    async def handler(job: Job) -> None:
        together = trio.Event()
        for number in range(30):
            job.nursery.start_soon(fail, ValueError(number), together)
        await trio.testing.wait_all_tasks_blocked()
        together.set()

    outcome = await node.run(handler, job=LAST)
    assert error_of(outcome).error.startswith("30 errors: ")
    assert error_of(outcome).error.endswith("; ...")
    assert (outcome.reason or "").startswith("attempt 4 of 4 failed: 30 errors: ValueError: ")


async def test_one_failure_is_reported_as_without_a_nursery(node: Runner) -> None:
    async def handler(job: Job) -> None:
        job.nursery.start_soon(trio.sleep_forever)
        raise ValueError("the handler itself")

    error = error_of(await node.run(handler))
    assert error.error == "ValueError: the handler itself"
    assert "Exception Group" not in (error.traceback or "")
    assert 'raise ValueError("the handler itself")' in (error.traceback or "")


async def test_a_childs_failure_fails_the_attempt_and_ends_its_siblings_and_the_handler(node: Runner) -> None:
    ends: list[str] = []

    async def sleeper(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ends.append(name)

    async def handler(job: Job) -> None:
        job.nursery.start_soon(sleeper, "sibling")
        job.nursery.start_soon(fail, ValueError("child"))
        await sleeper("handler")

    outcome = await node.run(handler)
    assert (outcome.outcome, error_of(outcome).error) == ("retry", "ValueError: child")
    assert sorted(ends) == ["handler", "sibling"]


@pytest.mark.parametrize(
    ("verdict", "outcome"), [(Snooze(5), "snoozed"), (Retry(5, "later"), "retry"), (Discard("no use"), "dead")]
)
async def test_a_childs_verdict_counts(node: Runner, verdict: Exception, outcome: str) -> None:
    async def handler(job: Job) -> None:
        job.nursery.start_soon(trio.sleep_forever)
        job.nursery.start_soon(fail, verdict)

    told = await node.run(handler)
    assert (told.outcome, told.delay) == (outcome, 5 if outcome != "dead" else None)


async def test_a_timeout_ends_the_children_after_the_handler_has_returned_too(node: Runner) -> None:
    ends: list[str] = []

    async def handler(job: Job) -> None:
        async def child() -> None:
            try:
                await trio.sleep_forever()
            finally:
                ends.append("child")

        job.nursery.start_soon(child)

    outcome = await node.run(handler, timeout=0.1)
    assert (outcome.outcome, error_of(outcome).error) == ("retry", "timed out after 0.1 s")
    assert ends == ["child"]


async def test_a_handler_may_end_its_children_when_it_has_its_result(node: Runner) -> None:
    async def handler(job: Job) -> str:
        job.nursery.start_soon(trio.sleep_forever)
        await trio.sleep(0.01)
        job.nursery.cancel_scope.cancel()
        return "done"

    outcome = await node.run(handler)
    assert (outcome.outcome, outcome.result) == ("succeeded", msgspec.Raw(b'"done"'))


async def test_a_handler_that_is_cut_off_by_its_own_nursery_has_failed(node: Runner) -> None:
    async def handler(job: Job) -> str:
        async def child() -> None:
            await trio.sleep(0.01)
            job.nursery.cancel_scope.cancel()

        job.nursery.start_soon(child)
        await trio.sleep_forever()
        return "never"

    outcome = await node.run(handler)
    assert "job.nursery was cancelled" in error_of(outcome).error


async def test_nothing_can_be_started_when_the_attempt_is_over(node: Runner) -> None:
    jobs: list[Job] = []

    async def handler(job: Job) -> None:
        jobs.append(job)

    await node.run(handler)
    with pytest.raises(RuntimeError, match="Nursery is closed"):
        jobs[0].nursery.start_soon(trio.sleep_forever)


async def test_a_handler_without_the_job_has_no_nursery_around_it(node: Runner) -> None:
    nurseries: list[int] = []

    async def without() -> None:
        nurseries.append(len(trio.lowlevel.current_task().child_nurseries))

    async def within(job: Job) -> None:
        assert job.nursery is trio.lowlevel.current_task().child_nurseries[-1]
        nurseries.append(len(trio.lowlevel.current_task().child_nurseries))

    await node.run(without)
    node.app.handler("within")(within)
    await node.execute(claimed(kind="within"))
    assert nurseries[1] == nurseries[0] + 1


async def test_in_a_thread_job_nursery_raises_an_error(node: Runner) -> None:
    def handler(job: Job) -> Any:
        return job.nursery

    assert "AttributeError: job.nursery exists only in an async handler" in error_of(await node.run(handler)).error


async def test_the_flag_of_a_thread_is_set_by_its_timeout(node: Runner) -> None:
    jobs: list[Job] = []
    left = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def handler(job: Job) -> None:
        jobs.append(job)
        while not job.cancelled:
            trio.from_thread.run(trio.sleep, 0.01, trio_token=token)
        token.run_sync_soon(left.set)

    outcome = await node.run(handler, timeout=0.1)
    assert error_of(outcome).error == "timed out after 0.1 s"
    with trio.fail_after(60):
        await left.wait()


# --------------------------------------------------------------------------------------------------------------- on a real service


def test_a_job_is_done_when_its_children_are_and_all_their_failures_are_in_its_history(bench: Bench) -> None:
    node = bench.start()
    good, bad = submit(node, "fan-out"), submit(node, "fan-out", payload={"children": 4, "fail": 3})
    bench.until_state(good, "succeeded")
    assert sorted(what for what in bench.effects(good) if what.endswith("ended")) == [f"child-{n}-ended" for n in range(3)]
    bench.until_state(bad, "dead")
    job = httpx.get(f"{node.url}/jobs/{bad}", timeout=60).json()
    assert job["errors"][0]["error"].startswith("3 errors: ValueError: child ")
    assert all(f"ValueError: child {number}" in job["errors"][0]["traceback"] for number in range(3))
    assert "child-3-cancelled" in bench.effects(bad)


def test_a_cancellation_ends_the_children(bench: Bench) -> None:
    node = bench.start()
    job_id = submit(node, "sleeping-children")
    bench.until_effect(job_id, "child-began")
    assert cancel(node, job_id).status_code in (202, 200), "200 if the job has ended before the response"
    bench.until_state(job_id, "cancelled")
    assert bench.effects(job_id) == ["child-began", "child-ended"]
