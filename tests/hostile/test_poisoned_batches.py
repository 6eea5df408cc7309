"""A job, outcome, or row that the database or a node cannot handle ends with a reason, and harms no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from jobqueue.admission import admit
from jobqueue.errors import DatabaseUnavailable, RefusedData, StatementFailed, UnprocessableJob
from jobqueue.job import Outcome, Submission
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.storage.postgres.lanes import SLOW_AFTER
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles.submit import Submitted
from tests.support.nodes import AGAIN, echo_node, ended, submit
from tests.support.postgres import Database
from tests.support.storage import new_id
from tests.support.waiting import until

INSERT = """
    INSERT INTO jobqueue_internal.pending_jobs (id, queue, kind, priority, rank, payload, created_at, available_since, options)
    VALUES (%s, 'default', 'echo', 0, now() - interval '1 hour', %s::jsonb, now(), now(), %s::jsonb)
"""

DEEP = "[" * 1_200 + "]" * 1_200

ROWS = {
    "a payload nested 1,200 levels deep": (DEEP, None),
    "a group that is a number": ("{}", '{"group": 5}'),
    "options that are a list": ("{}", "[1]"),
    "options nested 1,200 levels deep": ("{}", f'{{"group": {DEEP}}}'),
}


async def test_rows_that_no_node_can_read_end_as_dead_jobs_at_their_first_claim(database_url: str, database: Database) -> None:
    async with echo_node(PostgresStore(database_url)) as (_, node, stages):
        names = stages.names()
        await node.store.pause("default", paused=True)
        bad = {what: new_id() for what in ROWS}
        for what, (payload, options) in ROWS.items():
            database.rows(INSERT, bad[what], payload, options)
        good = [await submit(node) for _ in range(20)]
        await node.store.pause("default", paused=False)
        for job_id in good:
            await ended(database, job_id, AGAIN)
        await until(lambda: database.states().get("dead") == len(bad), "all of them are dead", AGAIN)
        for what, job_id in bad.items():
            attempt, reason, errors = database.rows(
                "SELECT attempt, reason, errors FROM jobqueue_internal.dead_jobs WHERE id = %s", job_id
            )[0]
            assert attempt == 1, what
            assert reason.startswith("the job cannot be read: "), what
            assert errors[-1]["error"] == reason
            shown = await node.store.job(job_id)
            assert shown is not None
            assert (shown.state, shown.reason) == ("dead", reason)
        assert len((await node.store.jobs(JobFilter(all=True), limit=100)).jobs) >= len(good) + len(bad)
        assert len(await node.store.dead(DeadFilter(all=True), limit=100)) == len(bad)
        assert stages.names() == names
        assert node.troubles() == []


class Choosy(PostgresStore):
    """A store that fails for an unknown reason if a batch contains a certain text, or always."""

    marked = b"poison"
    takes_results = True
    broken = False
    calls = 0

    async def submit(self, jobs: Sequence[bytes], **options: Any) -> Submitted:
        self.calls += 1
        if self.broken or (self.takes_results and any(self.marked in job for job in jobs)):
            raise StatementFailed("something that nobody foresaw")
        return await super().submit(jobs, **options)

    async def finish(self, node_id: str, outcomes: Sequence[Outcome], *, keep: bool = True) -> set[int]:
        if not self.takes_results and any(
            outcome.result is not None and self.marked in bytes(outcome.result) for outcome in outcomes
        ):
            raise ValueError("something that nobody foresaw")
        return await super().finish(node_id, outcomes, keep=keep)


async def test_a_submission_that_makes_statements_fail_is_refused_and_the_others_are_taken(database_url: str) -> None:
    store = Choosy(database_url)
    refused: list[Exception] = []
    taken: list[str] = []
    async with echo_node(store) as (engine, node, _):

        async def one(text: str) -> None:
            jobs = admit([Submission(kind="echo", payload={"more": text})])
            try:
                await node.submit(jobs)
                taken.extend(jobs.ids)
            except UnprocessableJob as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, "poison" if number == 17 else "fine")
        assert len(taken) == 49
        assert [str(error) for error in refused] == ["PostgreSQL rejected the job: something that nobody foresaw"]
        assert node.troubles() == []
        store.broken = True
        store.calls = 0
        with pytest.raises(DatabaseUnavailable):
            await submit(node)
        assert store.calls <= 3, "the node does not try each job on a broken database"
        assert any("submissions" in reason for reason in node.troubles())
        store.broken = False
        await until(lambda: not node.troubles(), "the node is ready, though nobody submits", AGAIN)
        assert engine.submissions.trouble.errors


class Once(PostgresStore):
    """A store whose first submission fails for a reason that ends with its session, such as an old plan."""

    failed = False

    async def submit(self, jobs: Sequence[bytes], **options: Any) -> Submitted:
        if jobs and not self.failed:
            self.failed = True
            raise StatementFailed("cached plan must not change result type")
        return await super().submit(jobs, **options)


async def test_a_submission_that_fails_once_is_taken(database_url: str, database: Database) -> None:
    async with echo_node(Once(database_url)) as (_, node, _stages):
        await ended(database, await submit(node), AGAIN)
        assert node.troubles() == []


async def test_an_outcome_that_makes_statements_fail_ends_its_own_job_alone(database_url: str, database: Database) -> None:
    store = Choosy(database_url)
    store.takes_results = False
    async with echo_node(store) as (engine, node, _):
        poisoned = await submit(node, payload={"text": "poison"})
        good = [await submit(node, payload={"text": "fine"}) for _ in range(20)]
        for job_id in good:
            await ended(database, job_id, AGAIN)
        await until(lambda: database.states().get("dead") == 1, "it is dead", AGAIN)
        assert database.rows("SELECT id::text, reason FROM jobqueue_internal.dead_jobs") == [
            (poisoned, "its outcome could not be stored")
        ]
        await until(lambda: not engine.outcomes.held, "nothing is held", AGAIN)
        assert node.troubles() == []


class Stubborn(PostgresStore):
    """A store that rejects every outcome of one job."""

    refused = ""

    async def finish(self, node_id: str, outcomes: Sequence[Outcome], *, keep: bool = True) -> set[int]:
        if any(outcome.id == self.refused for outcome in outcomes):
            raise RefusedData("not this one")
        return await super().finish(node_id, outcomes, keep=keep)


async def test_a_job_of_which_no_outcome_can_be_written_leaves_its_node_ready(database_url: str, database: Database) -> None:
    store = Stubborn(database_url)
    async with echo_node(store) as (engine, node, _):
        [job] = (jobs := admit([Submission(kind="echo")])).ids
        store.refused = job
        await node.submit(jobs)
        await until(lambda: engine.outcomes.trouble.errors > 0 and not engine.outcomes.held, "it is given up", AGAIN)
        assert node.troubles() == []
        assert database.states() == {"inflight": 1}, "the audit releases it"
        store.refused = ""


class Slow(PostgresStore):
    """A store whose claims use a connection that does not respond for a while."""

    async def stall(self, seconds: float) -> None:
        await self._claim.run(lambda connection: connection.execute("SELECT pg_sleep(%s)", (seconds,)))


async def test_a_claim_that_is_under_way_for_long_makes_the_node_not_ready(database_url: str, database: Database) -> None:
    store = Slow(database_url)
    async with echo_node(store) as (_, node, _stages), trio.open_nursery() as nursery:
        nursery.start_soon(store.stall, SLOW_AFTER + 8)
        await trio.sleep(SLOW_AFTER / 2)
        assert node.troubles() == []
        await until(lambda: any("a claim has been running for" in reason for reason in node.troubles()), "it says so", AGAIN)
        await until(lambda: not node.troubles(), "it is ready again", AGAIN)
        await ended(database, await submit(node), AGAIN)
