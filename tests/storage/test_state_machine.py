"""The whole state machine against a model: random verbs in random order, in memory and on PostgreSQL.

The model defines the result of each verb and the state of each job afterwards. Every step compares all jobs of the store with the
model. Due times are now or far away, and leases are valid or over, so no result depends on the speed of a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import psycopg
import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from jobqueue import documents
from jobqueue.job import DEFAULT_RETRIES, AttemptError, Change, ClaimedJob, NewJob, Options, Outcome, UnfinishedState, Verdict
from jobqueue.job_filters import JobFilter
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles import Store
from jobqueue.storage.roles.run import Node, Want
from jobqueue.testing.memory_store import MemoryStore
from tests.support import postgres
from tests.support.storage import new_id

pytestmark = pytest.mark.slow

QUEUES = ["default", "mail"]
MEMBERS = 2
LATER = 86_400.0
AGING = 3600.0
"""Seconds, long enough that the order of two jobs does not depend on the duration of a step."""

WAITING: list[UnfinishedState] = ["pending", "blocked", "scheduled"]
MOMENTS = {"past": datetime(2000, 1, 1, tzinfo=UTC), "far": datetime(2100, 1, 1, tzinfo=UTC), None: None}

KEPT_ERRORS = 10
HANDLERS_RETRIES = {"limited": 1}
BACKEND = (1, "2000-01-01")

SUBMISSIONS = st.fixed_dictionaries(
    {
        "queue": st.sampled_from(QUEUES),
        "kind": st.sampled_from(["any", *HANDLERS_RETRIES]),
        "priority": st.integers(0, 3),
        "max_retries": st.sampled_from([None, 0, 2]),
        "delay": st.sampled_from([None, None, 0.0, LATER]),
        "key": st.sampled_from([None, None, None, "a", "b"]),
    }
)


def job_of(said: dict[str, Any], *, expires_at: float | None = None) -> NewJob:
    fields = {name: value for name, value in said.items() if name != "key"}
    options = Options(concurrency_key=said["key"], expires_at=expires_at)
    return NewJob(id=new_id(), **fields, options=None if options == Options() else options)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """One job in the model."""

    queue: str
    kind: str
    priority: int
    max_retries: int | None
    state: str
    due: bool = True
    attempt: int = 0
    claims: int = 0
    node: str | None = None
    errors: int = 0
    late: bool = False
    unwanted: bool = False
    key: str | None = None

    @property
    def waiting(self) -> str:
        """The state in which it waits for its turn: `blocked` if it has a key."""
        return "pending" if self.key is None else "blocked"

    def back(self, *, refund: int = 0, error: int = 0) -> Job:
        """Return the job waiting again, or cancelled if that was requested."""
        if self.unwanted:
            return replace(self.there(error=error), state="cancelled")
        return replace(self.there(error=error), state=self.waiting, node=None, attempt=self.attempt - refund)

    def there(self, *, error: int = 0) -> Job:
        """Return the job in its state, with its new errors, and without a requested cancellation."""
        return replace(self, due=True, errors=min(KEPT_ERRORS, self.errors + error), unwanted=False)


@dataclass(frozen=True, slots=True)
class Run:
    """A claimed job, as its node received it. The attempt may have ended."""

    node: str
    job: ClaimedJob


class World(Protocol):
    """A store and all of its jobs."""

    store: Store

    def snapshot(self) -> list[dict[str, Any]]: ...


class MemoryWorld:
    """A store in memory. Each reading of its clock is a moment later."""

    def __init__(self) -> None:
        ticks = itertools.count()
        store = MemoryStore(lambda: next(ticks) / 1000, aging_interval=AGING)
        self.store: Store = store
        self.snapshot = store.snapshot


class PostgresWorld:
    """A database, emptied for each example."""

    def __init__(self, url: str) -> None:
        self.store = PostgresStore(url)
        trio.run(self.store.migrate)
        self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def empty(self) -> PostgresWorld:
        postgres.empty(self._connection)
        for queue in QUEUES:
            self._connection.execute(
                "INSERT INTO jobqueue_internal.queues (name, aging_interval) VALUES (%s, %s)", (queue, timedelta(seconds=AGING))
            )
        return self

    def snapshot(self) -> list[dict[str, Any]]:
        return [row["job"] for row in self._connection.execute("SELECT to_jsonb(j) AS job FROM jobqueue.jobs AS j")]

    def close(self) -> None:
        self._connection.close()
        trio.run(self.store.aclose)


class StateMachine(RuleBasedStateMachine):
    """Every verb, in any order, by any node."""

    jobs = Bundle("jobs")
    runs = Bundle("runs")
    nodes = Bundle("nodes")

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.store = world.store
        self.model: dict[str, Job] = {}
        self.places: dict[str, tuple[datetime, int]] = {}
        self.valid: dict[str, bool] = {}
        self.paused: set[str] = set()
        self.accepted: set[tuple[str, int]] = set()
        self.running: dict[str, Run] = {}

    def call(self, verb: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        async def main() -> T:
            return await verb(*args, **kwargs)

        return trio.run(main)

    # -- nodes

    @initialize(target=nodes)
    def first_nodes(self) -> Any:
        return multiple(*(self.join() for _ in range(MEMBERS)))

    @initialize(target=jobs, said=st.lists(SUBMISSIONS, min_size=4, max_size=6))
    def first_jobs(self, said: list[dict[str, Any]]) -> Any:
        return self.submit(said, "acknowledged")

    @precondition(lambda self: sum(self.valid.values()) < MEMBERS)
    @rule(target=nodes)
    def join(self) -> str:
        node = Node(id=new_id(), host="host", pid=1, process=new_id(), version="0", queues=dict.fromkeys(QUEUES, 1))
        self.call(self.store.join, node, lease=LATER)
        self.valid[node.id] = True
        return node.id

    @rule(node=nodes, valid=st.sampled_from([True, True, False]))
    def heartbeat(self, node: str, valid: bool) -> None:
        """Renew a lease, or end it by a renewal for 0 s."""
        unwanted = self.call(self.store.heartbeat, node, lease=LATER if valid else 0)
        marked = {(job_id, self.model[job_id].claims) for job_id in self.held_by(node) if self.model[job_id].unwanted}
        assert (None if unwanted is None else set(unwanted)) == (marked if node in self.valid else None)
        if node in self.valid:
            self.valid[node] = valid

    @rule(node=consumes(nodes))
    def leave(self, node: str) -> None:
        held = self.held_by(node)
        marked = [job_id for job_id in held if self.model[job_id].unwanted]
        assert self.call(self.store.leave, node) == len(held) - len(marked)
        for job_id in held:
            self.model[job_id] = self.model[job_id].back(refund=1)
        self.valid.pop(node, None)

    @rule(judge=nodes)
    def recover(self, judge: str) -> None:
        """Take the jobs of lost nodes. A node whose lease has run out is lost when a node with a valid lease judges it."""
        if self.valid.get(judge, False):
            self.valid = {node: valid for node, valid in self.valid.items() if valid}
        expected = {}
        for job_id, job in self.model.items():
            if job.state == "inflight" and job.node not in self.valid:
                assert job.max_retries is not None
                self.model[job_id] = job.back(error=1)
                if job.attempt > job.max_retries:
                    self.model[job_id] = replace(job.there(error=1), state="dead")
                state = self.model[job_id].state
                expected[job_id] = ("pending" if state == "blocked" else state, job.attempt, job.node)
        recovered = self.call(self.store.recover, judge=judge)
        assert {job.id: (job.outcome, job.attempt, job.node_id) for job in recovered} == expected

    @rule(node=nodes)
    def held(self, node: str) -> None:
        runs = {(job_id, self.model[job_id].claims) for job_id in self.held_by(node)}
        assert self.call(self.store.held, node, lost=[BACKEND]) == runs

    # -- submit

    @rule(
        target=jobs,
        said=st.lists(SUBMISSIONS, min_size=1, max_size=6),
        fate=st.sampled_from(["acknowledged", "answer lost", "never arrived"]),
    )
    def submit(self, said: list[dict[str, Any]], fate: str) -> Any:
        """Submit a batch. If its commit is in doubt, submit it again."""
        new = [job_of(fields) for fields in said]
        encoded = [documents.encode(job) for job in new]
        if fate != "never arrived":
            self.call(self.store.submit, encoded, wake=False)
        if fate != "acknowledged":
            self.call(self.store.submit_again, encoded, backend=BACKEND)
        return multiple(*(self.remember(job, fields) for job, fields in zip(new, said, strict=True)))

    def remember(self, job: NewJob, said: dict[str, Any], *, late: bool = False) -> str:
        model = Job(job.queue, job.kind, job.priority, job.max_retries, "", due=not job.delay, late=late, key=said["key"])
        self.model[job.id] = replace(model, state="scheduled" if job.delay else model.waiting)
        return job.id

    @rule(target=jobs, said=st.lists(SUBMISSIONS, min_size=1, max_size=3))
    def submit_late(self, said: list[dict[str, Any]]) -> Any:
        """Submit jobs in doubt again after they have expired. They exist, but no node starts them."""
        new = [job_of(fields, expires_at=1e9) for fields in said]
        self.call(self.store.submit_again, [documents.encode(job) for job in new], backend=BACKEND)
        return multiple(*(self.remember(job, fields, late=True) for job, fields in zip(new, said, strict=True)))

    @rule(known=st.lists(jobs, min_size=1, max_size=3))
    def submit_again(self, known: Sequence[str]) -> None:
        """Submit existing jobs again. Nothing changes, whatever their state."""
        there = [job_id for job_id in known if job_id in self.model]
        self.call(self.store.submit_again, [documents.encode(NewJob(id=job_id)) for job_id in there], backend=BACKEND)

    # -- claims and outcomes

    @rule(
        target=runs,
        node=nodes,
        limits=st.dictionaries(st.sampled_from(QUEUES), st.integers(1, 3), min_size=1),
        above=st.sampled_from([None, None, 0, 1, 2]),
    )
    def claim(self, node: str, limits: dict[str, int], above: int | None) -> Any:
        """Claim jobs, perhaps with a floor that leaves out the best few of each queue."""
        wants, expected = {}, {}
        for queue, limit in limits.items():
            waiting = sorted(
                (job_id for job_id, job in self.model.items() if (job.state, job.queue) == ("pending", queue)), key=self.rank
            )
            skipped = 0 if above is None else min(above, len(waiting))
            between = self.rank(waiting[skipped]) if skipped < len(waiting) else float(2**40)
            wants[queue] = Want(limit, None if above is None else between)
            allowed = self.valid.get(node, False) and queue not in self.paused
            expected[queue] = waiting[skipped : skipped + limit] if allowed else []
        claimed = self.call(self.store.claim, node, wants, documents.encode(HANDLERS_RETRIES))
        for queue in limits:
            brought = sorted((job for job in claimed if job.queue == queue), key=lambda job: job.rank)
            assert {job.id for job in brought} == set(expected[queue])
        for job in claimed:
            before = self.model[job.id]
            retries = before.max_retries
            if retries is None:
                retries = HANDLERS_RETRIES.get(before.kind, DEFAULT_RETRIES)
            self.model[job.id] = after = replace(
                before, state="inflight", node=node, max_retries=retries, attempt=before.attempt + 1, claims=before.claims + 1
            )
            assert (job.attempt, job.claims, job.max_retries) == (after.attempt, after.claims, after.max_retries)
            assert job.expired is before.late
            if before.late:
                self.model[job.id] = replace(after, state="dead", node=None, attempt=before.attempt)
            assert job.rank == pytest.approx(self.rank(job.id), abs=1e-6)
        self.running |= {job.id: Run(node, job) for job in claimed}
        return multiple(*(Run(node, job) for job in sorted(claimed, key=lambda job: (job.queue, job.rank))))

    @rule(
        finished=st.lists(runs, min_size=1, max_size=4, unique_by=lambda run: (run.job.id, run.job.claims)),
        verdict=st.sampled_from(["succeeded", "dead", "retry", "snoozed", "released", "cancelled"]),
        delay=st.sampled_from([0.0, 0.0, LATER]),
        impostor=st.booleans(),
        other=nodes,
    )
    def finish(self, finished: Sequence[Run], verdict: Verdict, delay: float, *, impostor: bool, other: str) -> None:
        """Finish a batch of attempts: current ones, ended ones, some twice, or by another node."""
        node = other if impostor else finished[0].node
        outcomes = [_outcome(run.job, verdict, delay) for run in finished]
        expected = set()
        for place, (run, outcome) in enumerate(zip(finished, outcomes, strict=True)):
            job = self.model.get(run.job.id)
            if job is None or (job.state, job.claims, job.node) != ("inflight", run.job.claims, node):
                expected.add(place)
                continue
            token = (run.job.id, run.job.claims)
            assert token not in self.accepted, "a run is accepted once"
            self.accepted.add(token)
            self.model[run.job.id] = _ended(job, outcome)
        assert self.call(self.store.finish, node, outcomes) == expected

    @precondition(lambda self: self.in_state("inflight"))
    @rule(
        place=st.integers(0, 9),
        verdict=st.sampled_from(["succeeded", "dead", "retry", "retry", "snoozed", "released", "cancelled"]),
        delay=st.sampled_from([0.0, 0.0, LATER]),
    )
    def finish_one_that_runs(self, place: int, verdict: Verdict, delay: float) -> None:
        """Finish a current attempt, because random ones seldom are current."""
        inflight = self.in_state("inflight")
        run = self.running[inflight[place % len(inflight)]]
        self.finish([run], verdict, delay, impostor=False, other=run.node)

    @precondition(lambda self: self.in_state("pending") and any(self.valid.values()))
    @rule(target=runs, place=st.integers(0, 9), limit=st.integers(1, 3))
    def claim_what_waits(self, place: int, limit: int) -> Any:
        """Claim waiting jobs for a node with a lease, because random claims seldom return jobs."""
        able = [node for node, valid in self.valid.items() if valid]
        pending = self.in_state("pending")
        return self.claim(able[place % len(able)], {self.model[pending[place % len(pending)]].queue: limit}, None)

    @rule(target=runs, run=runs)
    def hand_back_and_claim_again(self, run: Run) -> Any:
        """Make the case that needs fencing: the same job, attempt, and node, but another claim."""
        self.finish([run], "released", 0.0, impostor=False, other=run.node)
        job = self.model.get(run.job.id)
        if job is None:
            return multiple()
        return self.claim(run.node, {job.queue: 2}, None)

    @rule()
    def promote(self) -> None:
        late = {job_id for job_id, job in self.model.items() if job.late and job.state in ("pending", "blocked", "scheduled")}
        for job_id in late:
            self.model[job_id] = replace(self.model[job_id], state="dead")
        due = [job_id for job_id, job in self.model.items() if job.state == "scheduled" and job.due]
        promotion = self.call(self.store.promote)
        assert {job.id for job in promotion.expired} == late
        assert promotion.jobs == len(due)
        for job_id in due:
            self.model[job_id] = self.model[job_id].back()
        assert set(promotion.best) == {self.model[job_id].queue for job_id in due if self.model[job_id].key is None}
        left = any(job.state == "scheduled" for job in self.model.values())
        assert (promotion.next_due is None) is not left

    @rule()
    def admit(self) -> None:
        """Admit the best job of each key with room."""
        keys = {(job.queue, job.key) for job in self.model.values() if job.state == "blocked"}
        held = {(job.queue, job.key) for job in self.model.values() if job.state in ("pending", "inflight")}
        admitted = [
            min(
                (job_id for job_id, job in self.model.items() if (job.state, job.queue, job.key) == ("blocked", *key)),
                key=self.rank,
            )
            for key in keys - held
        ]
        admission = self.call(self.store.admit)
        assert set(admission.best) == {self.model[job_id].queue for job_id in admitted}
        for job_id in admitted:
            self.model[job_id] = replace(self.model[job_id], state="pending")

    # -- steering

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.model.get(job_id)
        legal = job is not None and job.state in ("pending", "blocked", "scheduled", "inflight")
        assert self.call(self.store.cancel, job_id) is legal
        if job is not None and job.state == "inflight":
            self.model[job_id] = replace(job, unwanted=True)
        elif job is not None and legal:
            self.model[job_id] = replace(job, state="cancelled", due=True)

    @precondition(lambda self: self.in_state("inflight"))
    @rule(place=st.integers(0, 9))
    def cancel_one_that_runs(self, place: int) -> None:
        """Cancel a running job. A job picked at random is seldom running."""
        inflight = self.in_state("inflight")
        self.cancel(inflight[place % len(inflight)])

    @rule(queue=st.sampled_from(QUEUES), states=st.lists(st.sampled_from(WAITING), min_size=1, unique=True))
    def cancel_by_filter(self, queue: str, states: list[UnfinishedState]) -> None:
        """Cancel all waiting jobs of a filter, after a dry run. The nodes of running jobs would end those."""
        wanted = JobFilter(queue=queue, state=[*states])
        meant = [job_id for job_id, job in self.model.items() if job.queue == queue and job.state in states]
        assert self.call(self.store.cancel_jobs, wanted, dry_run=True) == (len(meant), None)
        assert self.call(self.store.cancel_jobs, wanted) == (len(meant), None)
        for job_id in meant:
            self.model[job_id] = replace(self.model[job_id], state="cancelled", due=True)

    @rule(job_id=jobs, priority=st.sampled_from([None, 0, 3]), when=st.sampled_from([None, "past", "far"]))
    def change(self, job_id: str, priority: int | None, when: Literal["past", "far"] | None) -> None:
        """Change a job. A new priority keeps the time waited. A postponed job waits from its new time, an advanced one from now."""
        job = self.model.get(job_id)
        legal = job is not None and job.state in WAITING
        assert self.call(self.store.change, job_id, Change(priority=priority, run_at=MOMENTS[when])) is legal
        if job is None or not legal:
            return
        job = replace(job, priority=job.priority if priority is None else priority)
        since, _ = self.places.pop(job_id)
        if when == "far":
            job = replace(job, state="scheduled", due=False)
            self.places[job_id] = (MOMENTS["far"] or since, job.priority)
        elif when is None or since < datetime.now(UTC) + timedelta(hours=1):
            self.places[job_id] = (since, job.priority)
        if when == "past":
            job = replace(job, state=job.waiting if job.state == "scheduled" else job.state, due=True)
        self.model[job_id] = job

    @precondition(lambda self: self.in_state("pending") or self.in_state("scheduled"))
    @rule(place=st.integers(0, 9), priority=st.sampled_from([None, 0, 3]), when=st.sampled_from([None, "past", "far"]))
    def change_one_that_waits(self, place: int, priority: int | None, when: Literal["past", "far"] | None) -> None:
        """Change a waiting job, because random jobs seldom wait."""
        waiting = self.in_state("pending") + self.in_state("scheduled")
        self.change(waiting[place % len(waiting)], priority, when)

    @rule(job_id=jobs)
    def retry(self, job_id: str) -> None:
        job = self.model.get(job_id)
        legal = job is not None and job.state == "dead"
        assert self.call(self.store.retry, job_id) is legal
        if job is not None and legal:
            self.model[job_id] = replace(job, state=job.waiting, node=None, attempt=0, late=False)
            del self.places[job_id]  # a new rank

    @rule(job_id=consumes(jobs))
    def discard(self, job_id: str) -> None:
        legal = job_id in self.model and self.model[job_id].state == "dead"
        assert self.call(self.store.discard, job_id) is legal
        if legal:
            del self.model[job_id], self.places[job_id]

    @precondition(lambda self: self.in_state("dead"))
    @rule(place=st.integers(0, 9), verb=st.sampled_from(["retry", "retry", "discard"]))
    def redrive_or_discard(self, place: int, verb: str) -> None:
        """Retry or discard a dead job, because random jobs seldom are dead."""
        dead = self.in_state("dead")
        getattr(self, verb)(dead[place % len(dead)])

    @rule(queue=st.sampled_from(QUEUES), paused=st.sampled_from([False, False, True]))
    def pause(self, queue: str, paused: bool) -> None:
        self.call(self.store.pause, queue, paused=paused)
        (self.paused.add if paused else self.paused.discard)(queue)

    # -- invariants

    @invariant()
    def every_job_is_where_the_model_has_it_and_nowhere_else(self) -> None:
        shown = self.world.snapshot()
        assert len(shown) == len({row["id"] for row in shown}), "a job in two states"
        seen = {
            row["id"]: Job(
                row["queue"],
                row["kind"],
                row["priority"],
                row["max_retries"],
                row["state"],
                due=self.model[row["id"]].due,
                attempt=row["attempt"],
                claims=row["claims"],
                node=row["node_id"],
                errors=len(row["errors"]),
                late="expires_at" in (row["options"] or {}),
                unwanted=row["cancel_requested_at"] is not None,
                key=(row["options"] or {}).get("concurrency_key"),
            )
            for row in shown
            if row["id"] in self.model
        }
        assert len(seen) == len(shown), "a job from nowhere"
        assert seen == self.model
        for row in shown:
            place = (datetime.fromisoformat(row["available_since"]), row["priority"])
            assert self.places.setdefault(row["id"], place) == place, "a job keeps its place in line"

    @invariant()
    def attempts_stay_within_the_limit(self) -> None:
        for job in self.model.values():
            assert 0 <= job.attempt <= job.claims or job.state == "scheduled"
            assert job.max_retries is None or job.attempt <= job.max_retries + 1

    @invariant()
    def no_key_has_two_jobs_that_run_or_may(self) -> None:
        keys = [(job.queue, job.key) for job in self.model.values() if job.key and job.state in ("pending", "inflight")]
        assert len(keys) == len(set(keys))

    @rule(limit=st.integers(1, 4), rows=st.integers(1, 4))
    def pages_show_every_job_once_the_latest_first(self, limit: int, rows: int) -> None:
        shown: list[tuple[str, str]] = []
        after = None
        while True:
            page = self.call(self.store.jobs, JobFilter(all=True), limit=limit, after=after, rows=rows)
            shown += [(row.id, row.state) for row in page.jobs]
            if (after := page.next) is None:
                break
        assert shown == sorted(((job_id, job.state) for job_id, job in self.model.items()), reverse=True)

    @rule()
    def depths_count_what_waits_runs_or_is_dead(self) -> None:
        counted = {(depth.queue, depth.state): depth.jobs for depth in self.call(self.store.depths)}
        expected: dict[tuple[str, str], int] = {}
        for job in self.model.values():
            if job.state not in ("succeeded", "cancelled"):
                expected[job.queue, job.state] = expected.get((job.queue, job.state), 0) + 1
        assert counted == expected

    def in_state(self, state: str) -> list[str]:
        return [job_id for job_id, job in self.model.items() if job.state == state]

    def held_by(self, node: str) -> list[str]:
        return [job_id for job_id, job in self.model.items() if (job.state, job.node) == ("inflight", node)]

    def rank(self, job_id: str) -> float:
        since, priority = self.places[job_id]
        return since.timestamp() - priority * AGING


def _outcome(job: ClaimedJob, verdict: Verdict, delay: float) -> Outcome:
    """Return the outcome of a worker, or a wrong one: a retry after the last attempt."""
    error = AttemptError(attempt=job.attempt, error="boom", duration=0.1) if verdict in ("dead", "retry") else None
    return Outcome(
        id=job.id,
        claims=job.claims,
        outcome=verdict,
        result=msgspec.Raw(b"1") if verdict == "succeeded" else None,
        reason="no luck" if verdict == "dead" else None,
        error=error,
        delay=delay if verdict in ("retry", "snoozed") else None,
    )


def _ended(job: Job, outcome: Outcome) -> Job:
    error = int(outcome.error is not None)
    match outcome.outcome:
        case "succeeded" | "cancelled" | "dead":
            return replace(job.there(error=error), state=outcome.outcome)
        case "retry" if job.max_retries is not None and job.attempt > job.max_retries:
            return replace(job.there(error=error), state="dead")
    back = job.back(refund=int(outcome.outcome != "retry"), error=error)
    if outcome.outcome == "released" or job.unwanted:
        return back
    return replace(back, state="scheduled", due=not outcome.delay)


def _settings(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def test_the_store_in_memory_is_the_state_machine() -> None:
    run_state_machine_as_test(lambda: StateMachine(MemoryWorld()), settings=_settings(100, 50))


def test_postgresql_is_the_state_machine(any_database_url: str) -> None:
    world = PostgresWorld(any_database_url)
    try:
        run_state_machine_as_test(lambda: StateMachine(world.empty()), settings=_settings(15, 50))
    finally:
        world.close()
