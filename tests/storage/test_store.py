"""Every verb of the storage, and every legal and illegal transition, on each supported PostgreSQL and in memory.

`test_store_sql` has the tests that need SQL.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import trio

from jobqueue import documents
from jobqueue.engine.leases import Lease
from jobqueue.engine.outcomes import Outcomes
from jobqueue.engine.signals import Signals
from jobqueue.errors import KeyInUse, KeyReused, RefusedData
from jobqueue.job import AttemptError, Change, ClaimedJob, NewJob, Note, Options, Outcome, Verdict
from jobqueue.job_filters import DeadFilter
from jobqueue.metrics import Metrics
from jobqueue.schema_names import DEFAULT
from jobqueue.storage.claims import Expired
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles import Store
from jobqueue.storage.roles.inspect import CauseGroup, CauseGroups
from jobqueue.storage.roles.run import Claim, Want
from jobqueue.storage.roles.schedule import DueSchedule
from jobqueue.storage.roles.submit import Submitted
from jobqueue.storage.roles.upkeep import PRUNE_BATCH
from jobqueue.testing.memory_store import MemoryStore
from tests.support.postgres import SERVERS, ServerPool
from tests.support.schedules import begin, move_of, nightly
from tests.support.storage import Driver, joined, new_id, open_driver

STATES = ["scheduled", "pending", "inflight", "succeeded", "dead"]
MEMORY = "memory"


@pytest.fixture(params=[MEMORY, *sorted(SERVERS)])
async def driver(request: pytest.FixtureRequest, servers: ServerPool) -> AsyncIterator[Driver]:
    if request.param == MEMORY:
        yield await joined(MemoryStore())
        return
    # The other servers also test that all SQL is rendered for another name.
    name = DEFAULT if request.param == "embedded" else "mail"
    async with open_driver(servers.emptied(request.param, name), name) as opened:
        yield opened


def job_id_of(made: ClaimedJob | str) -> str:
    return made if isinstance(made, str) else made.id


# --------------------------------------------------------------------------------------------------------------------- submit


async def test_a_submitted_job_is_pending_with_what_was_said_of_it(driver: Driver) -> None:
    job_id = await driver.submit(kind="mail", payload={"to": "ä\U0001f600"}, queue="q", priority=7, max_retries=2, timeout=1.5)
    job = await driver.store.job(job_id)
    assert job is not None
    expected = {"state": "pending", "kind": "mail", "payload": {"to": "ä\U0001f600"}, "queue": "q", "priority": 7}
    assert expected.items() <= msgspec.structs.asdict(job).items()
    assert (job.max_retries, job.timeout, job.attempt, job.errors) == (2, 1.5, 0, [])


async def test_a_batch_is_claimed_in_the_order_it_was_given_in(driver: Driver) -> None:
    ids = await driver.submit_many(*({} for _ in range(50)))
    assert [job.id for job in await driver.claim()] == ids


async def test_a_job_with_a_delay_waits_until_it_is_due(driver: Driver) -> None:
    job_id = await driver.submit(delay=3)
    assert (await driver.store.promote()).jobs == 0
    assert await driver.claim() == []
    promotion = await driver.store.promote()
    assert promotion.next_due is not None
    assert 0 < promotion.next_due < 3
    await trio.sleep(promotion.next_due + 0.01)
    assert set((await driver.store.promote()).best) == {"default"}
    assert [job.id for job in await driver.claim()] == [job_id]


async def test_a_run_at_in_the_past_is_now_and_buys_no_better_place(driver: Driver) -> None:
    first = await driver.submit()
    second = await driver.submit(run_at=datetime.now(UTC) - timedelta(hours=1))
    assert [job.id for job in await driver.claim()] == [first, second]


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"priority": -1}, "priority_range"),
        ({"priority": 1_000_001}, "priority_range"),
        ({"kind": ""}, "kind_length"),
        ({"queue": "x" * 201}, "queue_length"),
        ({"max_retries": -1}, "max_retries_range"),
        ({"max_retries": 1001}, "max_retries_range"),
        ({"timeout": 0.0}, "timeout_range"),
        ({"timeout": 604_801.0}, "timeout_range"),
    ],
)
async def test_the_database_refuses_what_http_refuses_and_the_whole_batch_with_it(
    driver: Driver, fields: dict[str, Any], constraint: str
) -> None:
    for when in ({}, {"delay": 60.0}):
        with pytest.raises(RefusedData, match=constraint):
            await driver.submit_many({}, {**fields, **when})
    assert await driver.claim() == []


async def test_limits_are_accepted_at_the_bound(driver: Driver) -> None:
    await driver.submit(priority=1_000_000, kind="k" * 200, queue="q" * 200, max_retries=1000, timeout=604_800.0)
    await driver.submit(priority=0, kind="k", max_retries=0)


@pytest.mark.parametrize("state", STATES)
async def test_submitting_again_changes_nothing_whatever_became_of_the_job(driver: Driver, state: str) -> None:
    job_id = job_id_of(await driver.in_state(state))
    missing = new_id()
    again = [documents.encode(NewJob(id=job, payload={"again": True})) for job in (job_id, missing)]
    await driver.store.submit_again(again, backend=(1, "2000-01-01"))
    job = await driver.store.job(job_id)
    assert job is not None
    assert (job.state, job.payload) == (state, {})
    assert await driver.state(missing) == "pending"


async def test_submit_says_the_best_rank_of_each_queue(driver: Driver) -> None:
    jobs = [{"priority": 3}, {"priority": 9}, {"queue": "b"}, {"queue": "b", "delay": 60.0}]
    best = (await driver.store.submit([documents.encode(NewJob(id=new_id(), **job)) for job in jobs], wake=False)).best
    claimed = await driver.store.claim(driver.node, {"default": Want(9), "b": Want(9)}, b"{}")
    assert best == {queue: min(job.rank for job in claimed if job.queue == queue) for queue in ("default", "b")}


# ----------------------------------------------------------------------------------------------------------------------- claim


async def test_claim_never_takes_more_than_asked_for_and_only_of_that_queue(driver: Driver) -> None:
    await driver.submit_many(*({} for _ in range(10)), *({"queue": "other"} for _ in range(10)))
    claimed = await driver.store.claim(driver.node, {"default": Want(3), "other": Want(4), "empty": Want(5)}, b"{}")
    assert sorted(job.queue for job in claimed) == ["default"] * 3 + ["other"] * 4


async def test_claim_does_not_look_below_the_floor(driver: Driver) -> None:
    better, worse = await driver.submit_many({"priority": 5}, {})
    rank = (await driver.store.submit([documents.encode(NewJob(id=new_id(), queue="other"))], wake=False)).best["other"]
    assert [job.id for job in await driver.claim(floor=rank - 1)] == [worse]
    assert [job.id for job in await driver.claim(floor=None)] == [better]


async def test_a_submission_claims_along_the_best_that_are_there_then(driver: Driver) -> None:
    older, other = await driver.submit_many({"priority": 2}, {"queue": "other"})
    far = 4e9  # a floor above all jobs: the claim still finds the submitted job and the worse ones
    for priority, wanted, expected in ((1, 3, 1), (3, 1, 1), (0, 9, 2)):
        new = NewJob(id=new_id(), priority=priority)
        along = Claim(driver.node, {"default": Want(wanted, far if priority else None)}, documents.encode({"default": 7}))
        submitted = await driver.store.submit([documents.encode(new)], wake=False, along=along)
        assert submitted.claimed is not None
        assert {job.id for job in submitted.claimed} == ({new.id} if priority else {new.id, older})
        assert [(job.attempt, job.max_retries) for job in submitted.claimed] == [(1, 7)] * expected
        assert await driver.state(new.id) == "inflight"
    assert await driver.state(other) == "pending"


@pytest.mark.parametrize("hindrance", ["paused", "no lease"])
async def test_a_submission_that_may_claim_nothing_along_is_there(driver: Driver, hindrance: str) -> None:
    if hindrance == "paused":
        await driver.store.pause("default", paused=True)
    else:
        await driver.end_lease()
    new = NewJob(id=new_id())
    submitted = await driver.store.submit(
        [documents.encode(new)], wake=False, along=Claim(driver.node, {"default": Want(2)}, b"{}")
    )
    assert submitted.claimed == []
    assert await driver.state(new.id) == "pending"


async def test_claim_counts_the_attempt_before_the_handler_runs(driver: Driver) -> None:
    await driver.submit()
    job = await driver.claim_one()
    assert (job.attempt, job.claims) == (1, 1)


async def test_claim_takes_the_retry_limit_from_the_job_else_the_handler_else_three(driver: Driver) -> None:
    own, handlers, default = await driver.submit_many({"kind": "a", "max_retries": 9}, {"kind": "a"}, {"kind": "b"})
    limits = {job.id: job.max_retries for job in await driver.claim(defaults={"a": 5})}
    assert limits == {own: 9, handlers: 5, default: 3}


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(driver: Driver) -> None:
    await driver.submit()
    await driver.store.pause("default", paused=True)
    assert await driver.claim() == []
    await driver.store.pause("default", paused=False)
    assert len(await driver.claim()) == 1


async def test_a_node_without_a_lease_gets_nothing(driver: Driver) -> None:
    await driver.submit()
    alive = driver.node
    driver.node = new_id()
    assert await driver.claim() == []
    driver.node = alive
    await driver.end_lease()
    assert await driver.claim() == []


async def test_names_and_payloads_come_out_of_a_claim_as_they_went_in(driver: Driver) -> None:
    payload = {'"\\\n': ["%s", "\\u0041", None, 1.5, -0.0, 2**63, {"ü": []}]}
    kind = 'ki"nd\\%\n'
    await driver.submit(kind=kind, payload=payload, queue="default")
    job = await driver.claim_one()
    assert job.kind == kind
    assert json.loads(bytes(job.payload)) == payload


# ---------------------------------------------------------------------------------------------------------------------- finish


async def test_what_succeeded_is_let_go_of_where_none_is_kept_and_nothing_else_is(driver: Driver) -> None:
    done, failed, again = [await driver.submit() for _ in range(3)]
    runs = {run.id: run for run in await driver.claim()}
    outcomes = [
        Outcome(id=done, claims=1, outcome="succeeded"),
        Outcome(id=failed, claims=1, outcome="dead", reason="no luck"),
        Outcome(id=again, claims=1, outcome="retry", delay=60),
    ]
    assert runs.keys() == {done, failed, again}
    assert await driver.store.finish(driver.node, outcomes, keep=False) == set()
    assert [await driver.state(job_id) for job_id in (done, failed, again)] == [None, "dead", "scheduled"]
    assert await driver.store.finish(driver.node, outcomes, keep=False) == {0, 1, 2}, "each is stale now"


async def test_succeeded_goes_to_finished_with_its_result(driver: Driver) -> None:
    await driver.submit(payload={"n": 1})
    job = await driver.claim_one()
    assert await driver.finish(job, "succeeded", result={"answer": 42})
    row = await driver.store.job(job.id)
    assert row is not None
    assert (row.state, row.result, row.payload, row.node_id) == ("succeeded", {"answer": 42}, {"n": 1}, driver.node)
    assert row.ended_at >= row.claimed_at >= row.created_at


async def test_retry_is_scheduled_keeps_its_place_and_its_error(driver: Driver) -> None:
    await driver.submit(priority=4)
    job = await driver.claim_one()
    error = AttemptError(attempt=1, error="boom", duration=0.5, traceback="Traceback ...")
    assert await driver.finish(job, "retry", delay=0.01, error=error)
    row = await driver.store.job(job.id)
    assert row is not None
    assert (row.state, row.attempt) == ("scheduled", 1)
    [entry] = row.errors
    assert {
        "attempt": 1,
        "error": "boom",
        "duration": 0.5,
        "traceback": "Traceback ...",
        "node": driver.node,
    }.items() <= entry.items()
    assert entry["at"].startswith("20")
    await trio.sleep(0.02)
    await driver.store.promote()
    again = await driver.claim_one()
    assert (again.rank, again.attempt, again.claims) == (job.rank, 2, 2)


async def test_a_retry_after_the_last_attempt_is_death_whatever_the_worker_says(driver: Driver) -> None:
    await driver.submit(max_retries=1)
    for attempt, state in ((1, "scheduled"), (2, "dead")):
        await driver.store.promote()
        job = await driver.claim_one()
        assert await driver.finish(job, "retry", delay=0.0, error=AttemptError(attempt=attempt, error="boom", duration=0))
        assert await driver.state(job.id) == state
    row = await driver.store.job(job.id)
    assert row is not None
    assert (row.reason, row.attempt, len(row.errors)) == ("attempts used up", 2, 2)


async def test_the_last_attempt_may_still_be_snoozed_or_handed_back(driver: Driver) -> None:
    await driver.submit(max_retries=0)
    for outcome, state in (("snoozed", "scheduled"), ("released", "pending")):
        await driver.store.promote()
        job = await driver.claim_one()
        assert await driver.finish(job, outcome, delay=0.0)  # type: ignore[arg-type]
        assert await driver.state(job.id) == state


@pytest.mark.parametrize("outcome", ["vanished", "", "Succeeded", None])
async def test_an_outcome_that_nobody_knows_is_refused_and_the_whole_batch_with_it(driver: Driver, outcome: str | None) -> None:
    await driver.submit_many({}, {}, {})
    runs = await driver.claim()
    outcomes = [
        Outcome(id=run.id, claims=run.claims, outcome=said)
        for run, said in zip(runs, ["succeeded", outcome, "released"], strict=True)
    ]
    with pytest.raises(RefusedData):
        await driver.store.finish(driver.node, outcomes)
    assert [await driver.state(run.id) for run in runs] == ["inflight"] * 3


async def test_a_refused_outcome_ends_its_own_job_and_its_neighbours_are_written(driver: Driver, nursery: trio.Nursery) -> None:
    metrics = Metrics()
    lease = Lease(driver.store, metrics, Signals(), queues={}, seconds=30)
    await lease.join()
    driver.node = lease.node.id
    ids = await driver.submit_many(*({} for _ in range(9)))
    outcomes = Outcomes(driver.store, lease, metrics, Signals(), keep_finished=True)
    runs = await driver.claim()
    for place, run in enumerate(runs):
        said: Any = "vanished" if place in (0, 5, 6) else "succeeded"
        outcomes.held.add((run.id, run.claims))
        await outcomes.put(run, Outcome(id=run.id, claims=run.claims, outcome=said), driver.node)
    await nursery.start(outcomes.run)
    with trio.fail_after(60):
        await outcomes.flush()
    assert [await driver.state(job_id) for job_id in ids] == ["dead", *["succeeded"] * 4, "dead", "dead", *["succeeded"] * 2]
    row = await driver.store.job(ids[5])
    assert row is not None
    assert row.reason == "its outcome could not be stored"
    assert not outcomes.held
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("outcome", "state"), [("snoozed", "scheduled"), ("released", "pending")])
async def test_snoozed_and_released_refund_the_attempt_but_not_the_fencing_token(driver: Driver, outcome: Any, state: str) -> None:
    await driver.submit()
    job = await driver.claim_one()
    assert await driver.finish(job, outcome, delay=0.0)
    assert await driver.state(job.id) == state
    await driver.store.promote()
    again = await driver.claim_one()
    assert (again.attempt, again.claims, again.rank) == (1, 2, job.rank)
    assert not await driver.finish(job, outcome, delay=0.0), "the first run's outcome, sent again, must not end the second run"


async def test_dead_keeps_reason_and_errors(driver: Driver) -> None:
    await driver.submit()
    job = await driver.claim_one()
    assert await driver.finish(job, "dead", reason="gone", error=AttemptError(attempt=1, error="404", duration=0.1))
    row = await driver.store.job(job.id)
    assert row is not None
    assert (row.state, row.reason, row.errors[0]["error"]) == ("dead", "gone", "404")


async def test_the_error_history_keeps_the_last_ten(driver: Driver) -> None:
    await driver.submit(max_retries=100)
    for attempt in range(1, 13):
        await driver.store.promote()
        job = await driver.claim_one()
        await driver.finish(job, "retry", delay=0.0, error=AttemptError(attempt=attempt, error=f"e{attempt}", duration=0))
    row = await driver.store.job(job.id)
    assert row is not None
    assert [entry["error"] for entry in row.errors] == [f"e{n}" for n in range(3, 13)]


async def test_a_batch_of_outcomes_says_which_were_stale_and_moves_the_others(driver: Driver) -> None:
    await driver.submit_many({}, {}, {})
    jobs = await driver.claim()
    await driver.finish(jobs[1], "succeeded")
    outcomes = [Outcome(id=job.id, claims=job.claims, outcome="succeeded") for job in jobs]
    assert await driver.store.finish(driver.node, outcomes) == {1}
    assert [await driver.state(job.id) for job in jobs] == ["succeeded"] * 3


# -------------------------------------------------------------------------------------------- what is not legal changes nothing


@pytest.mark.parametrize("state", [state for state in STATES if state != "inflight"])
@pytest.mark.parametrize("outcome", ["succeeded", "dead", "retry", "snoozed", "released"])
async def test_only_an_inflight_run_can_be_finished(driver: Driver, state: str, outcome: Any) -> None:
    made = await driver.in_state(state)
    run = made if isinstance(made, ClaimedJob) else ClaimedJob("default", made, "", b"{}", 0, 1, 1, 3, None, 0, 0, 0)  # type: ignore[arg-type]
    assert not await driver.finish(run, outcome, reason="r", delay=1.0)
    assert await driver.state(run.id) == state


async def test_only_the_run_that_was_claimed_by_the_node_that_claimed_it_can_be_finished(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    assert not await driver.finish(run, "succeeded", node=new_id())
    wrong = ClaimedJob(*(getattr(run, name) if name != "claims" else run.claims + 1 for name in run.__struct_fields__))
    assert not await driver.finish(wrong, "succeeded")
    assert await driver.state(run.id) == "inflight"
    assert await driver.finish(run, "succeeded")
    assert not await driver.finish(run, "succeeded"), "exactly one completion is accepted"


@pytest.mark.parametrize(
    ("verb", "legal", "becomes"),
    [("cancel", {"pending", "scheduled", "inflight"}, "cancelled"), ("retry", {"dead"}, "pending"), ("discard", {"dead"}, None)],
)
@pytest.mark.parametrize("state", STATES)
async def test_steering_works_from_the_states_it_is_for_and_changes_nothing_in_others(
    driver: Driver, verb: str, legal: set[str], becomes: str | None, state: str
) -> None:
    job_id = job_id_of(await driver.in_state(state))
    assert await getattr(driver.store, verb)(job_id) is (state in legal)
    # A running job is only marked: its node ends it.
    assert await driver.state(job_id) == (becomes if state in legal - {"inflight"} else state)


async def test_a_redriven_job_has_all_its_attempts_again_and_a_new_place(driver: Driver) -> None:
    dead = await driver.in_state("dead")
    assert isinstance(dead, ClaimedJob)
    await driver.store.retry(dead.id)
    again = await driver.claim_one()
    assert (again.attempt, again.claims) == (1, 2)
    assert again.rank > dead.rank


# --------------------------------------------------------------------------------------------------------------------- leases


async def test_a_lost_nodes_jobs_come_back_and_its_late_completion_is_refused(driver: Driver) -> None:
    await driver.submit(priority=2)
    job = await driver.claim_one()
    await driver.end_lease()
    [recovered] = await driver.recover()
    assert (recovered.id, recovered.outcome, recovered.node_id) == (job.id, "pending", driver.node)
    assert not await driver.finish(job, "succeeded")
    assert await driver.store.heartbeat(driver.node, lease=30) is None
    await driver.join()
    again = await driver.claim_one()
    assert (again.attempt, again.claims, again.rank) == (2, 2, job.rank)
    row = await driver.store.job(job.id)
    assert row is not None
    [entry] = row.errors
    assert "lease lost" in entry["error"]
    assert (entry["attempt"], entry["node"]) == (1, recovered.node_id)
    assert 0 <= entry["duration"] < 60


async def test_a_job_that_loses_its_last_attempt_with_its_node_is_dead(driver: Driver) -> None:
    await driver.submit(max_retries=1)
    for outcome in ("pending", "dead"):
        job = await driver.claim_one()
        await driver.end_lease()
        assert [recovered.outcome for recovered in await driver.recover()] == [outcome]
        await driver.join()
    row = await driver.store.job(job.id)
    assert row is not None
    assert (row.state, row.attempt) == ("dead", 2)
    assert "killing its process" in row.reason


async def test_recovery_leaves_living_nodes_alone(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    await driver.join()
    assert await driver.recover() == []
    assert await driver.state(run.id) == "inflight"


async def test_a_lease_that_ran_out_while_nobody_took_it_is_renewed(driver: Driver) -> None:
    await driver.end_lease(ago=3600)
    assert await driver.store.heartbeat(driver.node, lease=30) == []
    assert await driver.recover() == []


async def test_a_node_whose_own_lease_ran_out_does_not_judge_others(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    await driver.end_lease()
    first = driver.node
    await driver.join()
    await driver.end_lease()
    assert await driver.store.recover(judge=driver.node) == []
    assert await driver.store.recover(judge=None) == []
    assert await driver.store.heartbeat(first, lease=30) == [], "after an outage, whoever comes back has kept its jobs"
    assert await driver.state(job_id_of(run)) == "inflight"


async def test_leaving_hands_everything_back_with_the_attempt_refunded(driver: Driver) -> None:
    ids = await driver.submit_many({}, {}, {})
    await driver.claim()
    assert await driver.store.leave(driver.node) == 3
    assert await driver.store.nodes() == []
    await driver.join()
    assert [(job.id, job.attempt) for job in await driver.claim()] == [(job_id, 1) for job_id in ids]


async def test_processes_that_are_known_to_be_dead_lose_their_lease_at_once(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    dead = f"test:{driver.node}"
    await driver.join()
    assert dead in await driver.store.processes()
    assert await driver.store.expire([dead, "test:unknown"]) == 1
    assert [job.id for job in await driver.recover()] == [job_id_of(run)]


# --------------------------------------------------------------------------------------------------------------- looking and upkeep


async def test_the_runs_that_a_node_holds_can_be_asked_for(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    assert await driver.store.held(driver.node, lost=[(1, "2000-01-01")]) == {(run.id, run.claims)}


async def test_depths_count_each_state(driver: Driver) -> None:
    for state in STATES:
        await driver.in_state(state)
    depths = {(depth.queue, depth.state): depth.jobs for depth in await driver.store.depths()}
    assert depths == {("default", state): 1 for state in ("scheduled", "pending", "inflight", "dead")}


async def test_retention_keeps_what_is_young_enough(driver: Driver) -> None:
    finished, dead = [job_id_of(await driver.in_state(state)) for state in ("succeeded", "dead")]
    assert (await driver.store.maintain(keep_finished=3600, keep_cancelled=3600)).dropped == 0
    assert await driver.store.prune(keep_finished=3600, keep_cancelled=3600, keep_dead=3600) == 0
    assert [await driver.state(job_id) for job_id in (finished, dead)] == ["succeeded", "dead"]
    await trio.sleep(0.01)
    assert await driver.store.prune(keep_finished=0, keep_cancelled=0, keep_dead=0) == 1
    assert await driver.store.prune(keep_finished=0, keep_cancelled=0, keep_dead=0) == 0
    assert [await driver.state(job_id) for job_id in (finished, dead)] == ["succeeded", None]


async def test_queues_and_nodes_can_be_seen(driver: Driver) -> None:
    await driver.store.pause("mail", paused=True)
    assert [(queue.name, queue.paused) for queue in await driver.store.queues()] == [("default", False), ("mail", True)]
    [node] = await driver.store.nodes()
    assert (node.id, node.queues) == (driver.node, {"default": 1})
    assert node.lease_until > node.heartbeat_at >= node.started_at


@pytest.mark.parametrize("store", [PostgresStore, MemoryStore])
def test_a_store_has_every_verb_of_all_roles(store: type[Store]) -> None:
    for name, verb in inspect.getmembers(Store, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(store, name)) == inspect.signature(verb), name


# --------------------------------------------------------------------------------------------------------------------- expiry


async def expired_in(driver: Driver, state: str, **fields: Any) -> str:
    """Make a job that has expired while it waited in this state."""
    expires_in = 2.0 if state == "retry" else 0.1
    options = Options(expires_in=expires_in, group="tenant-42", rank=1e9)
    job_id = await driver.submit(options=options, delay=60.0 if state == "scheduled" else None, **fields)
    if state == "retry":
        job = await driver.claim_one()
        await driver.finish(job, "retry", delay=60.0, error=AttemptError(attempt=1, error="boom", duration=0.5))
    await trio.sleep(expires_in + 0.05)
    return job_id


async def test_a_claim_ends_what_was_not_started_in_time_and_says_so(driver: Driver) -> None:
    late = await expired_in(driver, "pending")
    [intime, plain] = await driver.submit_many({"options": Options(expires_in=60)}, {})
    claimed = {job.id: job for job in await driver.claim()}
    assert claimed.keys() == {late, intime, plain}
    assert [claimed[job_id].expired for job_id in (late, intime, plain)] == [True, False, False]
    left = claimed[intime].options
    assert left is not None
    assert left.expires_in is not None
    assert 50 < left.expires_in < 60
    assert await driver.store.held(driver.node) == {(intime, 1), (plain, 1)}
    row = await driver.store.job(late)
    assert row is not None
    assert (row.state, row.reason, row.attempt, row.errors, row.node_id) == ("dead", "expired", 0, [], None)
    assert not await driver.finish(claimed[late], "succeeded")


async def test_a_submission_that_claims_along_ends_what_was_not_started_in_time(driver: Driver) -> None:
    late = await expired_in(driver, "pending")
    new = NewJob(id=new_id())
    along = Claim(driver.node, {"default": Want(2)}, b"{}")
    submitted = await driver.store.submit([documents.encode(new)], wake=False, along=along)
    assert submitted.claimed is not None
    assert {job.id: job.expired for job in submitted.claimed} == {late: True, new.id: False}
    assert await driver.state(late) == "dead"


@pytest.mark.parametrize("state", ["pending", "scheduled", "retry"])
async def test_what_nobody_claims_in_time_is_ended_by_the_schedule(driver: Driver, state: str) -> None:
    assert (await driver.store.promote()).next_due is None
    job_id = await expired_in(driver, state)
    other = await driver.submit(options=Options(expires_in=60), delay=7200.0 if state == "scheduled" else None)
    promotion = await driver.store.promote()
    attempt = 1 if state == "retry" else 0
    assert list(promotion.expired) == [Expired(job_id, "default", "default", attempt)]
    assert promotion.next_due == pytest.approx(60, abs=5), "when the next one expires"
    row = await driver.store.job(job_id)
    assert row is not None
    assert (row.state, row.reason, row.attempt) == ("dead", "expired", attempt)
    assert [error["error"] for error in row.errors] == ["boom"] * attempt, "its errors are kept"
    assert await driver.state(other) in ("pending", "scheduled")
    assert list((await driver.store.promote()).expired) == []


async def test_a_job_that_runs_does_not_expire(driver: Driver) -> None:
    job_id = await driver.submit(options=Options(expires_in=2))
    job = await driver.claim_one()
    await trio.sleep(2.05)
    assert list((await driver.store.promote()).expired) == []
    assert await driver.finish(job, "succeeded")
    assert await driver.state(job_id) == "succeeded"


@pytest.mark.parametrize(
    ("options", "field"),
    [(Options(expires_in=0.0), "expires_in"), (Options(expires_in=-1.0), "expires_in"), (Options(expires_at=1e9), "expires_at")],
)
async def test_a_job_that_is_late_already_is_refused_by_the_name_of_the_field(driver: Driver, options: Options, field: str) -> None:
    with pytest.raises(RefusedData, match="is not in the future") as refused:
        await driver.submit(options=options)
    assert refused.value.field == field
    with pytest.raises(RefusedData) as other:
        await driver.submit(priority=-1)
    assert other.value.field is None


async def test_a_doubt_that_is_settled_late_refuses_nothing(driver: Driver) -> None:
    new = NewJob(id=new_id(), options=Options(expires_at=1e9))
    await driver.store.submit_again([documents.encode(new)], backend=(1, "2000-01-01"))
    assert await driver.state(new.id) == "pending"
    assert [job.id for job in (await driver.store.promote()).expired] == [new.id]


# --------------------------------------------------------------------------------------------------------------- dead letters


async def dead_ones(driver: Driver, *jobs: dict[str, Any]) -> list[str]:
    """Make dead jobs, one after the other, each with its `reason`."""
    ids = []
    for fields in jobs:
        reason = fields.pop("reason", "no luck")
        ids.append(await driver.submit(**fields))
        [job] = await driver.claim(queue=fields.get("queue", "default"))
        assert await driver.finish(job, "dead", reason=reason, error=AttemptError(attempt=1, error=f"of {reason}", duration=0))
        await trio.sleep(0.002)
    return ids


async def test_dead_jobs_are_listed_the_latest_first_page_by_page(driver: Driver) -> None:
    ids = await dead_ones(driver, *({"payload": {"n": n}} for n in range(5)))
    seen, after = [], None
    while page := await driver.store.dead(DeadFilter(all=True), limit=2, after=after):
        assert len(page) <= 2
        seen += page
        after = datetime.fromisoformat(page[-1].died_at), page[-1].id
    assert [row.id for row in seen] == ids[::-1]
    assert (seen[0].reason, seen[0].error, seen[0].cause) == ("no luck", "of no luck", "of no luck")


@pytest.mark.parametrize("verb", ["dead", "retry_dead", "discard_dead"])
async def test_a_filter_means_the_dead_jobs_for_which_all_of_it_holds(driver: Driver, verb: str) -> None:
    specification: list[dict[str, Any]] = [
        {"queue": "mail"},
        {"queue": "mail", "kind": "letter"},
        {"kind": "letter", "options": Options(group="o'neill %L")},
        {"reason": "100% of the time's up"},
    ]
    ids = await dead_ones(driver, *specification)
    rows = {row.id: row for row in await driver.store.dead(DeadFilter(all=True), limit=100)}
    second = datetime.fromisoformat(rows[ids[1]].died_at)
    for wanted, expected in [
        (DeadFilter(queue="nothing"), []),
        (DeadFilter(reason="% of the time's"), [3]),
        (DeadFilter(group="o'neill %L"), [2]),
        (DeadFilter(cause="of #% of the time's up"), [3]),
        (DeadFilter(cause="of no luck", queue="mail"), [0, 1]),
        (DeadFilter(cause="of %"), []),
        (DeadFilter(queue="mail", kind="letter"), [1]),
        (DeadFilter(died_before=second, all=True), [0]),
        (DeadFilter(died_after=second), [2, 3]),
    ]:
        found = {row.id for row in await driver.store.dead(wanted, limit=100)}
        assert found == {ids[place] for place in expected}
    if verb == "dead":
        return
    assert await getattr(driver.store, verb)(DeadFilter(queue="mail")) == 2
    assert [await driver.state(job_id) for job_id in ids] == [{"retry_dead": "pending"}.get(verb)] * 2 + ["dead"] * 2
    assert await getattr(driver.store, verb)(DeadFilter(queue="mail")) == 0


async def test_dead_jobs_are_grouped_by_queue_kind_and_cause_the_largest_first(driver: Driver) -> None:
    ids = await dead_ones(
        driver,
        *({"reason": f"order {n} is late"} for n in range(3)),
        *({"queue": "mail", "kind": "letter", "reason": reason} for reason in ("no stamp", "order 3 is late", "no stamp")),
        *({"queue": "mail", "reason": f"order {n} is late"} for n in range(4)),
    )
    died_at = {row.id: row.died_at for row in await driver.store.dead(DeadFilter(all=True), limit=100)}

    def group(queue: str, kind: str, cause: str, *places: int) -> CauseGroup:
        first, last = ids[places[0]], ids[places[-1]]
        times = {"first_died_at": died_at[first], "last_died_at": died_at[last]}
        return CauseGroup(queue=queue, kind=kind, cause=cause, jobs=len(places), **times, example=last)

    groups = [
        group("mail", "default", "of order # is late", 6, 7, 8, 9),
        group("default", "default", "of order # is late", 0, 1, 2),
        group("mail", "letter", "of no stamp", 3, 5),
        group("mail", "letter", "of order # is late", 4),
    ]
    for limit in (100, 4, 3, 1):
        assert await driver.store.dead_causes(DeadFilter(all=True), limit=limit) == CauseGroups(groups[:limit], limit < 4)
    second = datetime.fromisoformat(died_at[ids[1]])
    for wanted, found in [
        (DeadFilter(queue="mail"), [groups[0], *groups[2:]]),
        (DeadFilter(queue="mail", kind="letter"), groups[2:]),
        (DeadFilter(cause="of no stamp"), groups[2:3]),
        (DeadFilter(queue="default", died_after=second), [group("default", "default", "of order # is late", 2)]),
        (DeadFilter(queue="default", died_before=second), [group("default", "default", "of order # is late", 0)]),
        (DeadFilter(reason="nothing"), []),
    ]:
        assert await driver.store.dead_causes(wanted, limit=100) == CauseGroups(found, more=False)
    assert await driver.store.retry_dead(DeadFilter(queue="mail", kind="default", cause="of order # is late")) == 4
    assert (await driver.store.dead_causes(DeadFilter(all=True), limit=100)).causes == groups[1:]


@pytest.mark.parametrize("verb", ["retry_dead", "discard_dead"])
async def test_nobody_means_all_by_saying_nothing(driver: Driver, verb: str) -> None:
    ids = await dead_ones(driver, {}, {"queue": "mail"})
    with pytest.raises(RefusedData) as refused:
        await getattr(driver.store, verb)(DeadFilter())
    assert refused.value.field == "all"
    assert [await driver.state(job_id) for job_id in ids] == ["dead", "dead"]
    assert await getattr(driver.store, verb)(DeadFilter(all=True)) == 2


async def test_jobs_that_are_run_again_by_filter_have_all_their_attempts_and_no_deadline(driver: Driver) -> None:
    late = await expired_in(driver, "retry")
    await driver.store.promote()
    assert await driver.store.retry_dead(DeadFilter(reason="expired")) == 1
    again = await driver.claim_one()
    assert (again.id, again.attempt, again.claims, again.expired) == (late, 1, 2, False)
    assert again.options is not None
    assert (again.options.group, again.options.expires_at) == ("tenant-42", None)
    assert again.rank > 1e9, "a new place in line"


async def test_a_redriven_job_that_had_nothing_but_a_deadline_is_plain_again(driver: Driver) -> None:
    job_id = await driver.submit(options=Options(expires_in=0.05))
    await trio.sleep(0.1)
    await driver.store.promote()
    assert await driver.store.retry(job_id)
    assert (await driver.claim_one()).options is None


@pytest.mark.parametrize("state", ["pending", "scheduled"])
async def test_a_cancelled_job_is_let_go_of_where_none_is_kept(driver: Driver, state: str) -> None:
    job_id = job_id_of(await driver.in_state(state))
    assert await driver.store.cancel(job_id, keep=False)
    assert await driver.state(job_id) is None
    assert not await driver.store.cancel(job_id, keep=False)


async def test_the_clock_is_the_databases(driver: Driver) -> None:
    before = await driver.store.now()
    [dead] = await dead_ones(driver, {})
    [row] = await driver.store.dead(DeadFilter(all=True), limit=1)
    assert row.id == dead
    assert before < datetime.fromisoformat(row.died_at) < await driver.store.now()


# -------------------------------------------------------------------------------------------------------------------- options


async def test_a_plain_job_has_no_options(driver: Driver) -> None:
    await driver.submit()
    job = await driver.claim_one()
    assert (job.options, job.saved) == (None, None)


@pytest.mark.parametrize("outcome", ["retry", "snoozed", "released"])
async def test_options_stay_with_a_job_wherever_it_goes(driver: Driver, outcome: Verdict) -> None:
    options = Options(group="tenant-42", weight=2.5, unique_key="u")
    await driver.submit(options=options)
    job = await driver.claim_one()
    assert job.options is not None
    assert (job.options.group, job.options.weight, job.options.unique_key) == ("tenant-42", 2.5, "u")
    assert await driver.finish(job, outcome, **({} if outcome == "released" else {"delay": 0.0}))
    await driver.store.promote()
    assert (await driver.claim_one()).options == job.options


async def test_a_lost_node_costs_a_job_none_of_its_options(driver: Driver) -> None:
    await driver.submit(options=Options(group="tenant-42"))
    job = await driver.claim_one()
    await driver.end_lease()
    await driver.recover()
    await driver.join()
    assert (await driver.claim_one()).options == job.options


async def test_a_time_to_expire_is_counted_by_the_database(driver: Driver) -> None:
    job_id = await driver.submit(options=Options(expires_in=3600))
    row = await driver.store.job(job_id)
    assert row is not None
    created = datetime.fromisoformat(row.created_at).timestamp()
    assert row.options == {"expires_at": pytest.approx(created + 3600, abs=0.001)}


async def test_a_rank_among_the_options_is_the_rank(driver: Driver) -> None:
    first, second = await driver.submit_many({}, {"options": Options(rank=1.5)})
    assert [(job.id, job.rank == 1.5) for job in await driver.claim()] == [(second, True), (first, False)]


# ---------------------------------------------------------------------------------------------------------------- fair groups


async def submit_to(driver: Driver, group: str, jobs: int, *, weight: float | None = None, **fields: Any) -> list[str]:
    return await driver.submit_many(*({"options": Options(group=group, weight=weight), **fields} for _ in range(jobs)))


async def claim_groups(driver: Driver, jobs: int) -> list[str]:
    """Claim jobs; return their groups in the order of the claim."""
    return [job.options.group or "" for job in await driver.claim(jobs) if job.options is not None]


async def lag(driver: Driver, groups: Sequence[str], jobs: int, **fields: Any) -> None:
    """Give groups a backlog and serve them, so that the virtual time of their turns is behind the clock."""
    for group in groups:
        await submit_to(driver, group, jobs, **fields)
    await claim_groups(driver, len(groups))
    await trio.sleep(0.3)


def is_plain(job: ClaimedJob) -> bool:
    return job.options is None or job.options.group is None


async def test_jobs_without_a_group_have_a_share_while_groups_have_a_backlog(driver: Driver) -> None:
    await lag(driver, ("a", "b"), 200)
    plain = await driver.submit_many(*({} for _ in range(50)))
    served = await driver.claim(90)
    assert sum(map(is_plain, served)) == pytest.approx(30, abs=2)
    assert [job.id for job in served if is_plain(job)] == plain[: sum(map(is_plain, served))], "in their order"
    more = await submit_to(driver, "c", 5)
    assert {job.id for job in await driver.claim(40)} >= set(more), "and no more than a share: others are not held up"


async def test_jobs_without_a_group_that_become_due_or_are_changed_or_retried_have_it_too(driver: Driver) -> None:
    dead = await driver.submit(max_retries=0)
    assert await driver.finish(
        await driver.claim_one(), "dead", reason="no luck", error=AttemptError(attempt=1, error="", duration=0.0)
    )
    await lag(driver, ("a", "b"), 100)
    due, changed = await driver.submit_many({"delay": 0.05}, {"delay": 3600.0})
    await trio.sleep(0.1)
    await driver.store.promote()
    assert await driver.store.change(changed, Change(delay=0.0))
    assert await driver.store.retry(dead)
    assert {due, changed, dead} <= {job.id for job in await driver.claim(15)}


async def test_jobs_without_a_group_stand_in_line_by_the_clock_once_the_backlog_is_gone(driver: Driver) -> None:
    await lag(driver, ("a",), 10)
    while await driver.claim(100):
        pass
    await driver.submit()
    [job] = await driver.claim(2)
    assert job.options is None


async def test_a_group_that_was_quiet_is_next_whatever_another_has_waiting(driver: Driver) -> None:
    await submit_to(driver, "a", 2_000)
    await claim_groups(driver, 300)
    await submit_to(driver, "b", 10)
    served = await claim_groups(driver, 100)
    assert served[:21].count("b") >= 9
    assert served.count("b") == 10


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (0.5, 0.125), (1000.0, 100.0)])
async def test_groups_with_a_backlog_get_shares_by_weight(driver: Driver, weights: tuple[float, float]) -> None:
    for _ in range(4):  # whichever was submitted first, and in any number of parts
        await submit_to(driver, "a", 500, weight=weights[0])
        await submit_to(driver, "b", 500, weight=weights[1])
    served = await claim_groups(driver, 1_000)
    assert served.count("a") / 1_000 == pytest.approx(weights[0] / sum(weights), abs=0.02)


async def test_shares_are_equal_from_the_moment_that_both_have_work_and_nobody_pays_for_what_was_free(driver: Driver) -> None:
    await submit_to(driver, "a", 2_000)
    await claim_groups(driver, 1_000)
    await submit_to(driver, "b", 2_000)
    served = await claim_groups(driver, 600)
    assert served.count("a") == pytest.approx(300, abs=6)
    await submit_to(driver, "c", 200)
    served = await claim_groups(driver, 300)
    assert {group: served.count(group) for group in "abc"} == pytest.approx(dict.fromkeys("abc", 100), abs=5)


async def test_a_group_that_sends_one_job_at_a_time_gets_no_more_than_its_weight(driver: Driver) -> None:
    await submit_to(driver, "a", 500, weight=3)
    served: list[str] = []
    for _ in range(200):
        await submit_to(driver, "b", 1, weight=1)
        served += await claim_groups(driver, 1)
    assert served.count("b") == pytest.approx(50, abs=4)


async def test_within_a_group_jobs_keep_their_order(driver: Driver) -> None:
    submitted = await submit_to(driver, "a", 50) + await submit_to(driver, "a", 50)
    assert [job.id for job in await driver.claim()] == submitted


async def test_a_priority_moves_a_job_ahead_within_its_group_and_across(driver: Driver) -> None:
    await submit_to(driver, "a", 300)
    await submit_to(driver, "b", 300)
    await claim_groups(driver, 100)
    [inside] = await submit_to(driver, "a", 1, priority=5)
    [across] = await submit_to(driver, "c", 1, priority=7)
    assert [job.id for job in await driver.claim(2)] == [across, inside]


async def test_no_group_gets_more_for_giving_a_priority_to_all_of_its_jobs(driver: Driver) -> None:
    await submit_to(driver, "a", 500)
    await claim_groups(driver, 10)
    await submit_to(driver, "b", 500, priority=1_000)
    # Jobs with this priority precede jobs that have waited for less than a quarter of an hour.
    assert (await claim_groups(driver, 200)).count("a") == 0
    await submit_to(driver, "c", 500, priority=1_000)
    served = await claim_groups(driver, 200)
    assert served.count("b") == pytest.approx(100, abs=5)


async def test_a_job_of_a_group_that_is_due_later_takes_its_turn_then(driver: Driver) -> None:
    await submit_to(driver, "a", 5, delay=0.1)
    await submit_to(driver, "b", 200)
    await claim_groups(driver, 100)
    await trio.sleep(0.15)
    assert (await driver.store.promote()).jobs == 5
    served = await claim_groups(driver, 20)
    assert served.count("a") == 5


async def test_a_retry_keeps_its_turn_and_a_dead_job_that_runs_again_takes_a_new_one(driver: Driver) -> None:
    await submit_to(driver, "a", 100)
    [first, second, *_] = await driver.claim(2)
    await driver.finish(first, "retry", delay=0.0)
    await driver.finish(second, "dead", reason="no luck")
    await driver.store.promote()
    assert await driver.store.retry(second.id)
    order = [job.id for job in await driver.claim()]
    assert (order[0], order[-1]) == (first.id, second.id)


# ------------------------------------------------------------------------------------------------------------------- schedules


async def test_a_schedule_is_due_until_somebody_has_computed_when_it_is_next(driver: Driver) -> None:
    assert await driver.store.put_schedule(nightly(timezone="Europe/Berlin", missed="all"))
    found = await driver.store.due_schedules()
    assert found.due == [DueSchedule("nightly", "0 3 * * *", "Europe/Berlin", "all", None)]
    assert found.next_in is None
    [schedule] = found.due
    moved = await driver.store.move_schedules([move_of(schedule, next_at=found.at + 100)])
    assert (moved.names, moved.best, moved.next_in) == ({"nightly"}, {}, pytest.approx(100, abs=2))
    found = await driver.store.due_schedules()
    assert (found.due, found.next_in) == ([], pytest.approx(100, abs=2))


async def test_a_tick_has_the_job_that_its_schedule_says(driver: Driver) -> None:
    given = {"payload": {"n": "ä"}, "queue": "q", "priority": 7, "max_retries": 2, "timeout": 1.5}
    await driver.store.put_schedule(nightly(**given))
    schedule = await begin(driver, 1_000_000_000)
    moved = await driver.store.move_schedules([move_of(schedule, 1_000_000_000, 1_000_086_400, next_at=4_000_000_000)])
    assert set(moved.best) == {"q"}
    first, second = await driver.claim(queue="q")
    assert (first.options, second.options) == tuple(Options(schedule="nightly", scheduled_for=t) for t in (1e9, 1_000_086_400))
    job = await driver.store.job(first.id)
    assert job is not None
    assert given.items() <= msgspec.structs.asdict(job).items()
    assert (job.kind, job.options) == ("report", {"schedule": "nightly", "scheduled_for": 1_000_000_000})
    [row] = await driver.store.schedules("nightly")
    assert [datetime.fromisoformat(tick).timestamp() for tick in (row.last_at, row.next_at)] == [1_000_086_400, 4_000_000_000]
    # They rank neither worse nor better than jobs that are submitted now.
    assert moved.best["q"] == pytest.approx(datetime.fromisoformat(job.created_at).timestamp() - 7, abs=0.01)


async def test_a_tick_is_taken_once(driver: Driver) -> None:
    await driver.store.put_schedule(nightly())
    move = move_of(await begin(driver, 1_000_000_000), 1_000_000_000, next_at=4_000_000_000)
    assert (await driver.store.move_schedules([move])).names == {"nightly"}
    again = await driver.store.move_schedules([move])
    assert (again.names, again.best, again.next_in) == (set(), {}, None)
    assert len(await driver.claim()) == 1


@pytest.mark.parametrize("change", [{"cron": "0 4 * * *"}, {"timezone": "Europe/Berlin"}, {"missed": "all"}, "paused", "gone"])
async def test_a_schedule_that_was_changed_meanwhile_is_left_alone(driver: Driver, change: dict[str, str] | str) -> None:
    await driver.store.put_schedule(nightly())
    await driver.store.put_schedule(nightly(name="other"))
    schedule, other = await begin(driver, 1_000_000_000), await begin(driver, 1_000_000_000, name="other")
    if isinstance(change, dict):
        assert not await driver.store.put_schedule(nightly(**change))
    elif change == "paused":
        await driver.store.pause_schedule("nightly", paused=True)
    else:
        await driver.store.unschedule("nightly")
    moves = [move_of(one, 1_000_000_000, next_at=4_000_000_000) for one in (schedule, other)]
    assert (await driver.store.move_schedules(moves)).names == {"other"}
    assert [job.options and job.options.schedule for job in await driver.claim()] == ["other"]


async def test_a_change_keeps_the_next_tick_unless_it_is_one_of_the_times(driver: Driver) -> None:
    await driver.store.put_schedule(nightly())
    await begin(driver, 1_000_000_000)
    assert not await driver.store.put_schedule(nightly(kind="other", missed="skip"))
    assert [one.next_at for one in (await driver.store.due_schedules()).due] == [1_000_000_000]
    await driver.store.put_schedule(nightly(timezone="Europe/Berlin"))
    assert [one.next_at for one in (await driver.store.due_schedules()).due] == [None]


async def test_a_paused_schedule_is_not_due_and_begins_anew(driver: Driver) -> None:
    await driver.store.put_schedule(nightly())
    await begin(driver, 1_000_000_000)
    assert await driver.store.pause_schedule("nightly", paused=True)
    assert (await driver.store.due_schedules())[1:] == ([], None)
    assert [(row.paused, row.next_at) for row in await driver.store.schedules()] == [(True, None)]
    assert await driver.store.pause_schedule("nightly", paused=False)
    assert [one.next_at for one in (await driver.store.due_schedules()).due] == [None]
    await begin(driver, 1_000_000_000)
    assert await driver.store.pause_schedule("nightly", paused=False)  # it was not
    assert [one.next_at for one in (await driver.store.due_schedules()).due] == [1_000_000_000]
    assert not await driver.store.pause_schedule("other", paused=True)


async def test_an_error_stands_until_the_schedule_is_changed(driver: Driver) -> None:
    await driver.store.put_schedule(nightly())
    [schedule] = (await driver.store.due_schedules()).due
    moved = await driver.store.move_schedules([move_of(schedule, next_at=None, error="no such time")])
    assert (moved.names, moved.next_in) == ({"nightly"}, None)
    assert [row.error for row in await driver.store.schedules()] == ["no such time"]
    assert (await driver.store.due_schedules()).due == []
    await driver.store.put_schedule(nightly())
    assert len((await driver.store.due_schedules()).due) == 1


async def test_a_schedule_is_triggered_beside_its_ticks(driver: Driver) -> None:
    await driver.store.put_schedule(nightly(payload=[1]))
    await driver.store.pause_schedule("nightly", paused=True)
    job_id = await driver.store.trigger_schedule("nightly")
    job = await driver.claim_one()
    assert (job.id, job.kind, bytes(job.payload), job.options) == (job_id, "report", b"[1]", Options(schedule="nightly"))
    assert [row.last_at for row in await driver.store.schedules()] == [None]
    assert await driver.store.trigger_schedule("other") is None


async def test_a_source_has_the_schedules_that_it_declares_and_no_others(driver: Driver) -> None:
    assert await driver.store.reconcile_schedules("mine", [nightly(), nightly(name="hourly", cron="0 * * * *")]) == {}
    assert await driver.store.reconcile_schedules("theirs", [nightly(name="their")]) == {}
    await driver.store.put_schedule(nightly(name="anybody's"))
    for name in ("hourly", "nightly", "their"):
        await begin(driver, 1_000_000_000, name=name)
    await driver.store.pause_schedule("their", paused=True)
    changed = [nightly(payload={"new": True}), nightly(name="weekly", cron="0 3 * * 1")]
    assert await driver.store.reconcile_schedules("mine", changed) == {}
    rows = {row.name: row for row in await driver.store.schedules()}
    assert {name: row.source for name, row in rows.items()} == {
        "anybody's": None,
        "nightly": "mine",
        "their": "theirs",
        "weekly": "mine",
    }
    assert (rows["nightly"].payload, rows["their"].paused) == ({"new": True}, True)
    assert rows["nightly"].next_at is not None, "its times are as they were"
    await driver.store.reconcile_schedules("mine", [nightly(cron="0 4 * * *")])
    assert {row.name: row.next_at for row in await driver.store.schedules("nightly")} == {"nightly": None}
    await driver.store.reconcile_schedules("mine", [])
    assert [row.name for row in await driver.store.schedules()] == ["anybody's", "their"]


async def test_reconciling_what_has_not_changed_writes_nothing(driver: Driver) -> None:
    await driver.store.reconcile_schedules("mine", [nightly(payload={"a": None}, timeout=3)])
    before = await driver.store.schedules()
    await driver.store.reconcile_schedules("mine", [nightly(payload={"a": None}, timeout=3)])
    assert await driver.store.schedules() == before
    await driver.store.reconcile_schedules("mine", [nightly(payload={"a": None}, timeout=4)])
    assert await driver.store.schedules() != before


async def test_a_name_that_is_taken_is_told_and_nothing_changes(driver: Driver) -> None:
    await driver.store.put_schedule(nightly())
    await driver.store.reconcile_schedules("theirs", [nightly(name="their")])
    before = await driver.store.schedules()
    taken = await driver.store.reconcile_schedules("mine", [nightly(), nightly(name="new"), nightly(name="their")])
    assert taken == {"nightly": None, "their": "theirs"}
    assert await driver.store.schedules() == before


async def test_a_declared_schedule_that_is_changed_from_outside_stays_its_sources(driver: Driver) -> None:
    await driver.store.reconcile_schedules("mine", [nightly()])
    assert not await driver.store.put_schedule(nightly(kind="other"))
    assert [(row.source, row.kind) for row in await driver.store.schedules()] == [("mine", "other")]
    await driver.store.reconcile_schedules("mine", [nightly()])
    assert [(row.source, row.kind) for row in await driver.store.schedules()] == [("mine", "report")]
    assert await driver.store.unschedule("nightly")
    assert not await driver.store.unschedule("nightly")


# -------------------------------------------------------------------------------------------------------------------- while it runs


async def test_a_node_learns_with_its_heartbeat_which_of_its_runs_are_to_be_cancelled(driver: Driver) -> None:
    marked, left_alone = [await driver.in_state("inflight") for _ in range(2)]
    assert isinstance(marked, ClaimedJob)
    assert isinstance(left_alone, ClaimedJob)
    other = driver.node
    await driver.join()
    assert [await driver.store.cancel(marked.id) for _ in range(2)] == [True, True]
    assert await driver.store.heartbeat(driver.node, lease=30) == []
    for _ in range(2):
        assert await driver.store.heartbeat(other, lease=30) == [(marked.id, marked.claims)], "until it has ended"
    assert await driver.finish(marked, "cancelled", node=other)
    assert await driver.store.heartbeat(other, lease=30) == []
    row = await driver.store.job(marked.id)
    assert row is not None
    assert (row.state, row.node_id, row.attempt, row.cancel_requested_at) == ("cancelled", other, 1, None)
    assert not await driver.store.cancel(marked.id), "it has ended"


@pytest.mark.parametrize(
    ("outcome", "fields", "state"),
    [
        ("retry", {"delay": 0.0}, "cancelled"),
        ("snoozed", {"delay": 0.0}, "cancelled"),
        ("released", {}, "cancelled"),
        ("cancelled", {}, "cancelled"),
        ("succeeded", {}, "succeeded"),
        ("dead", {"reason": "no luck"}, "dead"),
    ],
)
async def test_a_run_that_is_to_be_cancelled_never_goes_back(
    driver: Driver, outcome: Verdict, fields: dict[str, Any], state: str
) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    await driver.store.cancel(run.id)
    assert await driver.finish(run, outcome, **fields)
    assert await driver.state(run.id) == state
    await driver.store.promote()
    assert await driver.claim() == []


async def test_a_failure_is_kept_with_a_job_that_is_cancelled_for_it(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    await driver.store.cancel(run.id)
    assert await driver.finish(run, "retry", delay=0.0, error=AttemptError(attempt=1, error="boom", duration=0.1))
    row = await driver.store.job(run.id)
    assert row is not None
    assert [error["error"] for error in row.errors] == ["boom"]


@pytest.mark.parametrize("way", ["leave", "recover"])
async def test_a_job_that_is_to_be_cancelled_ends_with_its_node(driver: Driver, way: str) -> None:
    marked, left_alone = [await driver.in_state("inflight") for _ in range(2)]
    assert isinstance(marked, ClaimedJob)
    assert isinstance(left_alone, ClaimedJob)
    await driver.store.cancel(marked.id)
    if way == "leave":
        assert await driver.store.leave(driver.node) == 1
    else:
        await driver.end_lease()
        recovered = {job.id: job.outcome for job in await driver.recover()}
        assert recovered == {marked.id: "cancelled", left_alone.id: "pending"}
    await driver.join()
    assert [job.id for job in await driver.claim()] == [left_alone.id]
    assert await driver.state(marked.id) == "cancelled"


async def test_a_dead_job_that_was_to_be_cancelled_can_be_redriven_like_any(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    await driver.store.cancel(run.id)
    await driver.finish(run, "dead", reason="no luck")
    await driver.store.retry(run.id)
    again = await driver.claim_one()
    assert await driver.store.heartbeat(driver.node, lease=30) == []
    assert await driver.finish(again, "released")
    assert await driver.state(run.id) == "pending"


async def test_notes_are_kept_by_name_the_latest_of_each(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    for saved in (b'{"progress":{"fraction":0.1}}', b'{"checkpoint":[1]}', b'{"progress":{"fraction":0.2}}'):
        assert await driver.store.note(driver.node, [Note(run.id, run.claims, msgspec.Raw(saved))]) == {run.id}
    row = await driver.store.job(run.id)
    assert row is not None
    assert row.saved == {"progress": {"fraction": 0.2}, "checkpoint": [1]}


async def test_only_the_run_that_is_under_way_on_this_node_may_note(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    note = Note(run.id, run.claims, msgspec.Raw(b'{"checkpoint":1}'))
    assert await driver.store.note(new_id(), [note]) == set()
    others = [Note(run.id, run.claims + 1, note.saved), Note(new_id(), 1, note.saved)]
    assert await driver.store.note(driver.node, others) == set()
    row = await driver.store.job(run.id)
    assert row is not None
    assert row.saved is None
    await driver.finish(run, "released")
    await driver.store.note(driver.node, [note])
    assert (await driver.claim_one()).saved is None


@pytest.mark.parametrize(
    ("outcome", "fields"),
    [
        ("retry", {"delay": 0.0}),
        ("snoozed", {"delay": 0.0}),
        ("released", {}),
        ("dead", {"reason": "no luck"}),
        ("cancelled", {}),
        ("succeeded", {}),
    ],
)
async def test_what_was_not_written_goes_along_with_the_outcome_and_stays_with_the_job(
    driver: Driver, outcome: Verdict, fields: dict[str, Any]
) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    await driver.store.note(driver.node, [Note(run.id, run.claims, msgspec.Raw(b'{"progress":1,"checkpoint":1}'))])
    assert await driver.finish(run, outcome, saved=msgspec.Raw(b'{"checkpoint":2}'), **fields)
    row = await driver.store.job(run.id)
    assert row is not None
    assert row.saved == {"progress": 1, "checkpoint": 2}
    if outcome in ("cancelled", "succeeded"):
        return
    await driver.store.promote()
    if outcome == "dead":
        await driver.store.retry(run.id)
    assert (await driver.claim_one()).saved == row.saved


async def test_a_success_that_is_not_kept_leaves_no_notes_behind(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    outcome = Outcome(id=run.id, claims=run.claims, outcome="succeeded", saved=msgspec.Raw(b'{"checkpoint":2}'))
    assert await driver.store.finish(driver.node, [outcome], keep=False) == set()
    assert await driver.store.job(run.id) is None


async def test_a_lost_node_costs_a_job_none_of_its_notes(driver: Driver) -> None:
    run = await driver.in_state("inflight")
    assert isinstance(run, ClaimedJob)
    await driver.store.note(driver.node, [Note(run.id, run.claims, msgspec.Raw(b'{"checkpoint":{"page":3}}'))])
    await driver.end_lease()
    await driver.recover()
    await driver.join()
    assert (await driver.claim_one()).saved == {"checkpoint": {"page": 3}}


# ----------------------------------------------------------------------------------------------------------------------- keys

DAY = 86_400.0
BACKEND = (1, "2000-01-01")


def keyed(
    idempotency_key: str | None = None, *, unique_key: str | None = None, unique: bool | None = None, **fields: Any
) -> NewJob:
    options = Options(idempotency_key=idempotency_key, unique_key=unique_key, unique=unique)
    return NewJob(id=new_id(), options=options, **fields)


async def once(driver: Driver, *jobs: NewJob, key_ttl: float = DAY) -> list[str]:
    submitted = await driver.store.submit([documents.encode(job) for job in jobs], wake=False, key_ttl=key_ttl)
    assert submitted.ids is not None
    return submitted.ids


async def again(driver: Driver, *jobs: NewJob) -> list[str]:
    submitted = await driver.store.submit_again([documents.encode(job) for job in jobs], backend=BACKEND, key_ttl=DAY)
    assert submitted.ids is not None
    return submitted.ids


async def unfinished(driver: Driver) -> int:
    return sum(depth.jobs for depth in await driver.store.depths() if depth.state != "dead")


@pytest.mark.parametrize("state", [*STATES, "gone"])
async def test_an_idempotency_key_is_the_same_job_whatever_became_of_it(driver: Driver, state: str) -> None:
    first = keyed("k", delay=3600.0 if state == "scheduled" else None)
    assert await once(driver, first) == [first.id]
    if state not in ("scheduled", "pending"):
        job = await driver.claim_one()
        if state != "inflight":
            fields: dict[str, Any] = {"reason": "no luck"} if state == "dead" else {}
            outcome: Verdict = "dead" if state == "dead" else "succeeded"
            ended = Outcome(id=job.id, claims=job.claims, outcome=outcome, **fields)
            assert await driver.store.finish(driver.node, [ended], keep=state != "gone") == set()
    assert await once(driver, keyed("k", delay=first.delay)) == [first.id]
    assert await driver.state(first.id) == (None if state == "gone" else state)
    assert await unfinished(driver) == (state in ("scheduled", "pending", "inflight"))


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "b"},
        {"queue": "b"},
        {"payload": {"n": 2}},
        {"payload": None},
        {"priority": 1},
        {"max_retries": 0},
        {"timeout": 1.0},
        {"delay": 1.0},
        {"run_at": datetime(2040, 1, 1, tzinfo=UTC)},
        {"options": Options(idempotency_key="k", group="g")},
        {"options": Options(idempotency_key="k", unique_key="u")},
        {"options": Options(idempotency_key="k", expires_in=60.0)},
    ],
    ids=",".join,
)
async def test_an_idempotency_key_is_refused_for_another_job_and_the_whole_batch_with_it(
    driver: Driver, other: dict[str, Any]
) -> None:
    same: dict[str, Any] = {"payload": {"n": 1}, "options": Options(idempotency_key="k")}
    first, plain_job, another = (NewJob(id=new_id(), **fields) for fields in (same, {}, {**same, **other}))
    await once(driver, first)
    with pytest.raises(KeyReused, match=r"idempotency_key [\"']k[\"'] was used for another job") as refused:
        await once(driver, plain_job, another)
    assert (refused.value.field, refused.value.index) == ("idempotency_key", 1)
    with pytest.raises(KeyReused):
        await once(driver, NewJob(id=new_id(), options=Options(idempotency_key="l")), keyed("l", kind="b"))
    assert await unfinished(driver) == 1
    assert await once(driver, keyed("l", kind="b")) != [first.id], "the rejected submission left no key"


async def test_one_key_twice_in_a_batch_is_one_job(driver: Driver) -> None:
    k1, k2, l1, k3 = keyed("k"), keyed("k"), keyed("l"), keyed("k")
    plain_job = NewJob(id=new_id())
    assert await once(driver, k1, plain_job, k2, l1, k3) == [k1.id, plain_job.id, k1.id, l1.id, k1.id]
    assert sorted(job.id for job in await driver.claim()) == sorted([k1.id, plain_job.id, l1.id])


async def test_a_key_is_forgotten_when_its_time_is_over(driver: Driver) -> None:
    first, second = keyed("k"), keyed("k", kind="another")
    assert await once(driver, first, key_ttl=0.05) == [first.id]
    await trio.sleep(0.06)
    assert await once(driver, second) == [second.id]
    assert await once(driver, keyed("k", kind="another")) == [second.id]


@pytest.mark.parametrize("key", ["unique_key", "unique"])
@pytest.mark.parametrize("state", [*STATES, "gone", "cancelled", "retried", "snoozed"])
async def test_a_unique_key_is_held_until_its_job_is_finished(driver: Driver, state: str, key: str) -> None:
    asked: dict[str, Any] = {"unique_key": "u"} if key == "unique_key" else {"unique": True}
    first = keyed(**asked, delay=3600.0 if state == "scheduled" else None)
    assert await once(driver, first) == [first.id]
    verdicts: dict[str, tuple[Verdict, dict[str, Any]]] = {
        "dead": ("dead", {"reason": "no luck"}),
        "retried": ("retry", {"delay": 60.0}),
        "snoozed": ("snoozed", {"delay": 60.0}),
    }
    if state == "cancelled":
        assert await driver.store.cancel(first.id)
    elif state not in ("scheduled", "pending"):
        job = await driver.claim_one()
        if state != "inflight":
            verdict, fields = verdicts.get(state, ("succeeded", {}))
            ended = Outcome(id=job.id, claims=job.claims, outcome=verdict, **fields)
            assert await driver.store.finish(driver.node, [ended], keep=state != "gone") == set()
    held = state in ("scheduled", "pending", "inflight", "retried", "snoozed")
    second = keyed(**asked)
    assert await once(driver, second) == [first.id if held else second.id]
    assert await unfinished(driver) == 1
    assert await once(driver, keyed(**asked)) == [first.id if held else second.id]


async def test_unique_is_by_queue_kind_and_payload(driver: Driver) -> None:
    jobs = [{}, {"kind": "b"}, {"queue": "b"}, {"payload": {"n": 1}}, {"payload": {"n": 2}}]
    firsts = [keyed(unique=True, **fields) for fields in jobs]
    ids = [job.id for job in firsts]
    assert await once(driver, *firsts) == ids
    assert await once(driver, *(keyed(unique=True, priority=3, **fields) for fields in jobs)) == ids, "the priority does not matter"
    named = keyed(unique_key="u", kind="c")
    assert await once(driver, named, keyed(unique_key="u", queue="b"), keyed(unique_key="u", unique=True)) == [named.id] * 3


async def test_an_idempotency_key_stands_for_the_job_that_a_unique_key_met(driver: Driver) -> None:
    holder = keyed(unique_key="u")
    await once(driver, holder)
    assert await once(driver, *(keyed("k", unique_key="u") for _ in range(2))) == [holder.id] * 2
    await driver.finish(await driver.claim_one(), "succeeded")
    assert await once(driver, keyed("k", unique_key="u")) == [holder.id], "still, when a new one could come"
    fresh = keyed("l", unique_key="u")
    assert await once(driver, fresh) == [fresh.id]
    with pytest.raises(KeyReused):
        await once(driver, keyed("l", unique_key="v"))


async def test_a_dead_job_whose_unique_key_is_taken_is_not_run_again(driver: Driver) -> None:
    dead, plain_job = keyed(unique_key="u"), NewJob(id=new_id())
    await once(driver, dead)
    await driver.finish(await driver.claim_one(), "dead", reason="no luck")
    taker = keyed(unique_key="u")
    assert await once(driver, taker) == [taker.id]
    with pytest.raises(KeyInUse, match=taker.id) as refused:
        await driver.store.retry(dead.id)
    assert refused.value.field == "unique_key"
    assert await driver.state(dead.id) == "dead"
    await driver.finish(await driver.claim_one(), "succeeded")
    assert await driver.store.retry(dead.id)
    assert await once(driver, keyed(unique_key="u"), plain_job) == [dead.id, plain_job.id], (
        "a job that was run again has its key again"
    )


async def test_submitting_again_finds_its_own_keys(driver: Driver) -> None:
    holder = keyed(unique_key="h")
    await once(driver, holder)
    batch = [
        keyed("k"),
        keyed("k"),
        keyed(unique_key="u"),
        keyed(unique_key="u"),
        keyed("l", unique_key="v"),
        keyed(unique_key="h"),
        NewJob(id=new_id()),
        keyed(unique=True),
    ]
    ids = await once(driver, *batch)
    first = [batch[place].id for place in (0, 0, 2, 2, 4)] + [holder.id, batch[6].id, batch[7].id]
    assert ids == first
    assert await again(driver, *batch) == first
    assert await unfinished(driver) == 6


async def test_submitting_again_what_was_never_committed_submits_it(driver: Driver) -> None:
    batch = [keyed("k"), keyed("k"), keyed("l", unique_key="v"), NewJob(id=new_id())]
    assert await again(driver, *batch) == [batch[0].id, batch[0].id, batch[2].id, batch[3].id]
    assert await unfinished(driver) == 3
    assert await once(driver, keyed("k"), keyed("l", unique_key="v")) == [batch[0].id, batch[2].id]


@pytest.mark.parametrize("key", [{"idempotency_key": "k"}, {"unique_key": "u"}, {"unique": True}], ids=lambda key: next(iter(key)))
async def test_what_is_done_and_gone_is_not_run_again_where_its_key_tells_of_it(driver: Driver, key: dict[str, Any]) -> None:
    job, twin = keyed(**key), keyed(**key)
    await once(driver, job, twin)
    run = await driver.claim_one()
    assert await driver.store.finish(driver.node, [Outcome(id=run.id, claims=run.claims, outcome="succeeded")], keep=False) == set()
    ids = await again(driver, job)
    assert ids == [job.id]
    assert await driver.claim() == []


async def test_a_submission_that_meets_a_job_claims_along_all_the_same(driver: Driver) -> None:
    first = keyed("k", unique_key="u")
    await once(driver, first)
    along = Claim(driver.node, {"default": Want(2)}, b"{}")
    met = await driver.store.submit([documents.encode(keyed("k", unique_key="u"))], wake=False, along=along, key_ttl=DAY)
    assert met.claimed is not None
    assert met == Submitted({}, met.claimed, [first.id])
    assert [job.id for job in met.claimed] == [first.id]


async def test_keys_that_nobody_needs_are_pruned(driver: Driver) -> None:
    old, kept, done, held = keyed("old"), keyed("kept"), keyed(unique_key="done"), keyed(unique_key="held", queue="elsewhere")
    await once(driver, old, key_ttl=0.01)
    await once(driver, kept, done, held)
    await trio.sleep(0.02)
    assert await driver.store.prune_keys() == 1
    assert await driver.store.prune_keys() == 0
    assert await once(driver, keyed("kept"), keyed(unique_key="held", queue="elsewhere")) == [kept.id, held.id]
    fresh = keyed("old", kind="another")
    assert await once(driver, fresh) == [fresh.id]


async def test_a_thousand_keys_are_pruned_at_a_time(driver: Driver) -> None:
    await once(driver, *(keyed(f"k{number}") for number in range(PRUNE_BATCH + 1)), key_ttl=0.01)
    await trio.sleep(0.02)
    assert [await driver.store.prune_keys() for _ in range(3)] == [PRUNE_BATCH, 1, 0]


async def test_dead_jobs_of_one_unique_key_are_run_again_one_at_a_time(driver: Driver) -> None:
    dead = []
    for _ in range(2):
        [job_id] = await once(driver, keyed(unique_key="u"))
        await driver.finish(await driver.claim_one(), "dead", reason="no luck")
        dead.append(job_id)
    other = await driver.in_state("dead")
    assert isinstance(other, ClaimedJob)
    assert [await driver.store.retry_dead(DeadFilter(all=True)) for _ in range(2)] == [2, 0]
    assert sorted(job.id for job in await driver.claim()) == sorted([dead[0], other.id])
    assert await driver.state(dead[1]) == "dead"
