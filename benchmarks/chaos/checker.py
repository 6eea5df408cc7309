"""Compare the acknowledgments, the database and the records of runs, and report every broken rule with its evidence.

The checker uses neither the logs nor the metrics of the service.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from typing import NamedTuple

import msgspec
import psycopg

from benchmarks.chaos.effects import Effect, Written
from benchmarks.chaos.faults import Inflicted
from benchmarks.chaos.load import Look, Submit
from benchmarks.chaos.machines import Exit
from benchmarks.chaos.plan import HARMLESS, LEASE, Kind

ENDED = frozenset({"succeeded", "dead"})

MUST_DIE = frozenset({"doomed", "rollback", "discard"})
"""Kinds of jobs that cannot succeed. All other jobs must succeed, because no fault lasts long enough to use up their attempts."""

TRANSACTIONAL = frozenset({"transaction", "rollback"})
"""Kinds whose handlers write a line in the transaction that completes the job."""

SHOWN = 20
"""Maximum number of reported cases per broken rule."""

RECOVERY = 2 * LEASE
"""How long after the end of a fault a failure still counts as its consequence, in seconds."""

UNUSUAL = 4
"""Maximum wait of a job of the load, as a multiple of the median wait."""

MUST_NOT_STARVE = HARMLESS | {Kind.STEP_CLOCK}
"""Faults during which a job with the best rank must still start soon.

Jobs with a worse rank may wait longer after a step of the clock, because the step changes the order of a backlog.
"""

VITAL = frozenset({"claim", "submit", "finish"})
"""Purposes of the connections that a node needs to be ready."""

HELD_UP_AFTER = 7.0
"""Time after which a blocked node must report that it is not ready, in seconds: the node's limit of 5 s, plus a margin."""

START = 15.0
"""Maximum time until a node notices that it cannot start, in seconds."""

STARVED_AFTER = 30.0
"""Maximum time that a job may wait for its first run, in seconds. The time while a node or the database is down does not count."""


class Row(NamedTuple):
    """A job in the database.

    Attributes:
        run: the result of the accepted run.
        reason: the reason if it is dead.
        delayed: whether it was submitted with a delay.
        leases_lost: its attempts that lost their lease, according to its error history, which may be incomplete.
    """

    id: str
    state: str
    kind: str
    number: int | None
    attempt: int
    max_retries: int | None
    claims: int
    run: str | None
    reason: str | None
    delayed: bool
    leases_lost: Sequence[int]

    def __str__(self) -> str:
        return (
            f"job {self.id} (number {self.number}, {self.kind}): {self.state}, attempt {self.attempt} of "
            f"{'?' if self.max_retries is None else self.max_retries + 1}, claims {self.claims}, run {self.run}"
        )


class Evidence(NamedTuple):
    """The observations of a run.

    Attributes:
        submits: the submissions and their responses.
        rows: the rows of all states. A job in two states appears twice.
        effects: the records of the runs, in order of time.
        exits: how the nodes' processes ended.
        nodes_left: rows in the table of nodes after all nodes have left.
        written: the lines that handlers committed in the transaction that completed their job.
        poisoned: the defects of jobs that no node can run, by id. PostgreSQL rejected some of these jobs.
        cancelled: ids of cancelled jobs.
        inflicted: the faults.
        looks: the nodes' responses about their readiness.
        upgrade_faults: what went wrong in the steps of an upgrade.
    """

    submits: Sequence[Submit]
    rows: Sequence[Row]
    effects: Sequence[Effect]
    exits: Sequence[Exit]
    nodes_left: int
    written: Sequence[Written] = ()
    poisoned: Mapping[str, str] = {}
    cancelled: AbstractSet[str] = frozenset()
    inflicted: Sequence[Inflicted] = ()
    looks: Sequence[Look] = ()
    upgrade_faults: Sequence[str] = ()

    @property
    def innocent(self) -> list[Row]:
        """The rows of jobs that are not poisoned."""
        return [row for row in self.rows if row.id not in self.poisoned]


class Rule(msgspec.Struct, frozen=True):
    """A rule, and the cases that broke it."""

    name: str
    broken: int
    cases: list[str]

    @classmethod
    def of(cls, name: str, cases: Iterable[str]) -> Rule:
        found = list(cases)
        return cls(name, len(found), found[:SHOWN])


def read_rows(connection: psycopg.Connection) -> list[Row]:
    """Read every job in every state."""
    sql = """
        SELECT id::text, state, kind,
               CASE WHEN jsonb_typeof(payload -> 'number') = 'number' THEN (payload ->> 'number')::bigint END,
               attempt, max_retries, claims, result ->> 'run', reason, available_since > created_at + interval '1 ms',
               ARRAY(SELECT (entry ->> 'attempt')::integer
                       FROM jsonb_path_query(errors, '$[*] ? (@.error starts with "lease lost")') AS entry)
          FROM jobqueue.jobs
    """
    return [Row(*row) for row in connection.execute(sql)]


def check(evidence: Evidence) -> list[Rule]:
    """Apply every rule."""
    rows = evidence.innocent
    return [
        Rule.of("acknowledged and lost", _lost(evidence)),
        Rule.of("acknowledged as another job", _mistaken(evidence)),
        Rule.of("not ended", (str(row) for row in rows if row.state not in ENDED and not _is_cancelled(row, evidence))),
        Rule.of("poisoned, and not dead with a reason", _surviving(evidence)),
        Rule.of("innocent, and dead", (str(row) for row in rows if row.state == "dead" and row.kind not in MUST_DIE)),
        Rule.of("attempts lost, though nothing took a node or the database away", _robbed(evidence)),
        Rule.of(f"waited for over {STARVED_AFTER:.0f} s, though nothing took a node or the database away", _starved(evidence)),
        Rule.of("more than one row for a job", _repeated("id", Counter(row.id for row in evidence.rows))),
        Rule.of("one submit, several jobs", _repeated("number", Counter(row.number for row in rows))),
        Rule.of("nobody submitted it", _unknown(evidence)),
        Rule.of("refused, and there all the same", _refused(evidence)),
        Rule.of("batches taken in part", _torn(evidence)),
        Rule.of("succeeded without a completed run", _unproven(evidence)),
        Rule.of("a transaction without its effect, or with several", _not_once(evidence)),
        Rule.of("an effect without its completion", _uncompleted(evidence)),
        Rule.of("attempts over the limit", (str(row) for row in rows if row.attempt > _limit(row))),
        Rule.of("died before its attempts were used up", _gave_up(rows)),
        Rule.of("succeeded, though it cannot", (str(row) for row in rows if row.state == "succeeded" and row.kind in MUST_DIE)),
        Rule.of("answers that are a fault of the service", _faulty(evidence.submits)),
        Rule.of("nodes that ended by themselves", (str(one) for one in evidence.exits if one.served and one.wanted is None)),
        Rule.of("nodes that could not start, though nothing took the database away", _stillborn(evidence)),
        Rule.of("every node ready, though the work of one was held up", _untrue(evidence)),
        Rule.of("nodes that did not end cleanly on SIGTERM", (str(one) for one in evidence.exits if _unclean(one))),
        Rule.of("nodes still registered after all have left", [f"{evidence.nodes_left} rows"] if evidence.nodes_left else []),
        Rule.of("steps of an upgrade with another end than expected", evidence.upgrade_faults),
    ]


def _lost(evidence: Evidence) -> Iterable[str]:
    there = {row.id for row in evidence.rows}
    for submit in evidence.submits:
        for job_id, number in zip(submit.ids, submit.kinds, strict=False):
            if job_id not in there:
                yield f"job {job_id}, number {number}, acknowledged by {_place(submit)} at {submit.answered:.3f}"


def _mistaken(evidence: Evidence) -> Iterable[str]:
    """Yield acknowledgments with too few ids, or with ids of jobs that have another payload."""
    numbers = {row.id: row.number for row in evidence.rows}
    for submit in evidence.submits:
        if submit.fate != "acknowledged":
            continue
        if len(submit.ids) != len(submit.kinds):
            yield f"{len(submit.kinds)} jobs submitted to {_place(submit)}, {len(submit.ids)} acknowledged"
        for job_id, number in zip(submit.ids, submit.kinds, strict=False):
            if numbers.get(job_id, number) != number:
                yield f"number {number} was acknowledged as job {job_id}, which is number {numbers[job_id]}"


def _is_cancelled(row: Row, evidence: Evidence) -> bool:
    return row.state == "cancelled" and row.id in evidence.cancelled


def _surviving(evidence: Evidence) -> Iterable[str]:
    for row in evidence.rows:
        if row.id in evidence.poisoned and row.state != "cancelled" and not (row.state == "dead" and row.reason):
            yield f"{row}, reason {row.reason!r}; {evidence.poisoned[row.id]}"


def _robbed(evidence: Evidence) -> Iterable[str]:
    """Yield lost attempts that no fault explains: no fault was active during the attempt or shortly before its loss."""
    sent = {number: submit.sent for submit in evidence.submits for number in submit.kinds}
    began: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for effect in evidence.effects:
        if effect.what == "began":
            began[effect.job_id].setdefault(effect.attempt, effect.at)
    for row in evidence.innocent:
        for attempt in row.leases_lost:
            runs = began[row.id]
            until = min((at for later, at in runs.items() if later > attempt), default=math.inf)
            # A frozen node may record the start of its run after another node has started the next run.
            since = min(until, runs.get(attempt, sent.get(row.number or 0, 0.0)))
            if not _taken_away(evidence, since, until, HARMLESS):
                yield f"{row}; attempt {attempt}, which began at {since:.3f}; the next one at {until:.3f}"


def _starved(evidence: Evidence) -> Iterable[str]:
    """Yield jobs without a delay that waited too long for their first run.

    On a slow machine all jobs wait, so a job of the load counts only if it waited far longer than most jobs. The jobs that are part
    of a fault have the best ranks, so they must start soon.
    """
    began: dict[str, float] = {}
    for effect in evidence.effects:
        if effect.what == "began":
            began.setdefault(effect.job_id, effect.at)
    sent = {job_id: submit.sent for submit in evidence.submits for job_id in submit.ids}
    rows = [row for row in evidence.innocent if row.id in began and row.id in sent and not row.delayed]
    if not rows:
        return
    usual = statistics.median(began[row.id] - sent[row.id] for row in rows)
    for row in rows:
        first = row.number is not None and row.number < 0
        harmless, limit = (MUST_NOT_STARVE, STARVED_AFTER) if first else (HARMLESS, max(STARVED_AFTER, UNUSUAL * usual))
        if began[row.id] - sent[row.id] - _seconds_away(evidence, sent[row.id], began[row.id], harmless) > limit:
            yield f"{row}; submitted at {sent[row.id]:.3f}, first run at {began[row.id]:.3f}"


def _seconds_away(evidence: Evidence, since: float, until: float, harmless: AbstractSet[Kind]) -> float:
    """Return for how many seconds of a time span a node or the database was away, or was recovering."""
    seconds, covered = 0.0, since
    for one in sorted(evidence.inflicted, key=lambda each: each.began):
        if one.fault.kind not in harmless:
            first, last = max(covered, one.began), min(until, one.ended + RECOVERY)
            seconds += max(0.0, last - first)
            covered = max(covered, last)
    return seconds


def _taken_away(evidence: Evidence, since: float, until: float, harmless: AbstractSet[Kind]) -> bool:
    return any(
        one.fault.kind not in harmless and one.began <= until and one.ended + RECOVERY >= since for one in evidence.inflicted
    )


def _stillborn(evidence: Evidence) -> Iterable[str]:
    for one in evidence.exits:
        if not one.served and one.wanted is None and not _taken_away(evidence, one.at - START, one.at, HARMLESS):
            yield str(one)


def _untrue(evidence: Evidence) -> Iterable[str]:
    """Yield frozen backends that blocked a node while every node reported that it was ready. Ignore times with other faults."""
    for one in evidence.inflicted:
        since, until = one.began + HELD_UP_AFTER, one.ended
        overlapped = any(
            other.fault.kind not in HARMLESS | {Kind.FREEZE_BACKEND} and other.began < until and other.ended + RECOVERY > one.began
            for other in evidence.inflicted
        )
        looks = [look for look in evidence.looks if since <= look.at <= until]
        if one.frozen in VITAL and looks and not overlapped and all(look.status == 200 for look in looks):
            yield f"the backend of a connection for {one.frozen} was frozen from {one.began:.3f} to {until:.3f}; {len(looks)} looks"


def _repeated(what: str, counts: Counter[str] | Counter[int | None]) -> Iterable[str]:
    return (f"{what} {value}: {count} rows" for value, count in counts.items() if count > 1)


def _unknown(evidence: Evidence) -> Iterable[str]:
    submitted = {number for submit in evidence.submits for number in submit.kinds}
    return (str(row) for row in evidence.innocent if row.number not in submitted)


def _refused(evidence: Evidence) -> Iterable[str]:
    """Yield jobs that exist although their submission was rejected. A client would submit such jobs a second time."""
    rows = {row.number: row for row in evidence.innocent}
    for submit in evidence.submits:
        if submit.fate == "refused":
            for number in submit.kinds:
                if number in rows:
                    yield f"{rows[number]}; {_place(submit)} responded at {submit.answered:.3f}: {submit.why}"


def _torn(evidence: Evidence) -> Iterable[str]:
    there = {row.number for row in evidence.innocent}
    for submit in evidence.submits:
        found = sum(number in there for number in submit.kinds)
        if 0 < found < len(submit.kinds) and submit.fate != "acknowledged":
            yield f"{found} of {len(submit.kinds)} jobs, from number {min(submit.kinds)} on, {submit.why}"


def _unproven(evidence: Evidence) -> Iterable[str]:
    """Yield succeeded jobs whose accepted run has no record of its completion, or a record of another attempt."""
    completed = {effect.run: effect for effect in evidence.effects if effect.what == "ended"}
    for row in evidence.innocent:
        if row.state == "succeeded" and row.kind not in MUST_DIE:
            effect = completed.get(row.run or "")
            if effect is None or (effect.job_id, effect.attempt) != (row.id, row.attempt):
                yield f"{row}; the record is {effect}"


def _not_once(evidence: Evidence) -> Iterable[str]:
    """Yield jobs that succeeded in a transaction without writing exactly one line in it."""
    lines: defaultdict[str, list[int]] = defaultdict(list)
    for written in evidence.written:
        lines[written.job_id].append(written.attempt)
    for row in evidence.rows:
        if row.state == "succeeded" and row.kind in TRANSACTIONAL and lines[row.id] != [row.attempt]:
            yield f"{row}; lines of its attempts: {lines[row.id]}"


def _uncompleted(evidence: Evidence) -> Iterable[str]:
    """Yield lines whose jobs did not succeed."""
    succeeded = {row.id for row in evidence.rows if row.state == "succeeded"}
    return (f"{written}" for written in evidence.written if written.job_id not in succeeded)


def _limit(row: Row) -> int:
    return 0 if row.max_retries is None else row.max_retries + 1


def _gave_up(rows: Sequence[Row]) -> Iterable[str]:
    return (str(row) for row in rows if row.state == "dead" and row.kind != "discard" and row.attempt < _limit(row))


def _faulty(submits: Sequence[Submit]) -> Iterable[str]:
    return (
        f"{_place(one)} at {one.answered:.3f}: {one.why}" for one in submits if one.why.startswith("5") and one.why[:3] != "503"
    )


def _unclean(one: Exit) -> bool:
    return one.served and one.wanted == "SIGTERM" and one.code != 0


def _place(submit: Submit) -> str:
    return "SQL" if submit.node is None else f"node {submit.node}"


class Shown(msgspec.Struct, frozen=True):
    """Counts of events that the contract allows, such as a job that runs again after a crash.

    Attributes:
        double_runs: jobs with more than one complete run, of which one was accepted.
        overlapping: pairs of runs of one job at the same time on two nodes; the database accepts at most one of them.
        overlapping_same_attempt: the overlapping pairs in which both runs belong to the same attempt.
        late_runs: runs that began after the accepted run, because a frozen node had claimed them earlier.
        runs: the number of all runs.
        transactions: jobs that succeeded in their handler's transaction.
        transactions_run_again: how many of the `transactions` jobs ran more than once. Each run wrote a line.
        poisoned: poisoned jobs in the database.
        leases_lost: attempts that lost their lease.
        slowest: the longest time from a job's submission to the end of its accepted run, in seconds.
    """

    runs: int
    transactions: int
    transactions_run_again: int
    double_runs: int
    overlapping: int
    overlapping_same_attempt: int
    late_runs: int
    poisoned: int
    leases_lost: int
    slowest: float


def count(evidence: Evidence) -> Shown:
    """Count the allowed events."""
    began = {effect.run: effect for effect in evidence.effects if effect.what == "began"}
    over = {effect.run: effect for effect in evidence.effects if effect.what != "began"}
    completions = Counter(effect.job_id for effect in over.values() if effect.what == "ended")
    accepted = {row.id: over[row.run].at for row in evidence.innocent if row.run in over}
    sent = {job_id: submit.sent for submit in evidence.submits for job_id in submit.ids}
    overlaps = list(_overlaps(began, over))
    transactions = [row for row in evidence.rows if row.state == "succeeded" and row.kind in TRANSACTIONAL]
    runs = Counter(effect.job_id for effect in began.values())
    return Shown(
        runs=len(began),
        transactions=len(transactions),
        transactions_run_again=sum(runs[row.id] > 1 for row in transactions),
        double_runs=sum(times > 1 for times in completions.values()),
        overlapping=len(overlaps),
        overlapping_same_attempt=sum(first.attempt == second.attempt for first, second in overlaps),
        late_runs=sum(run.at > accepted.get(run.job_id, run.at) for run in began.values()),
        poisoned=len(evidence.rows) - len(evidence.innocent),
        leases_lost=sum(len(row.leases_lost) for row in evidence.innocent),
        slowest=round(max((at - sent.get(job_id, at) for job_id, at in accepted.items()), default=0.0), 1),
    )


def _overlaps(began: Mapping[str, Effect], over: Mapping[str, Effect]) -> Iterable[tuple[Effect, Effect]]:
    """Yield pairs of runs of one job where the second began on another node before the first ended.

    A run without a recorded end counts as ended at its beginning, because its process may have died right then.
    """
    runs: defaultdict[str, list[Effect]] = defaultdict(list)
    for effect in began.values():
        runs[effect.job_id].append(effect)
    for of_one_job in runs.values():
        for first, second in pairwise(sorted(of_one_job, key=lambda effect: effect.at)):
            first_over = over.get(first.run)
            if first_over is not None and second.at < first_over.at and first.node != second.node:
                yield first, second
