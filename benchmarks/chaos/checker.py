"""Compare what was acknowledged, what the database holds and what really ran; every rule that was broken is told with its evidence.

It trusts nothing that the service says about itself: not its logs, and not its metrics.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec
import psycopg

from benchmarks.chaos.effects import Effect, Written
from benchmarks.chaos.load import Submit
from benchmarks.chaos.machines import Exit

ENDED = frozenset({"succeeded", "dead"})

MUST_DIE = frozenset({"doomed", "rollback", "discard"})
"""Kinds that cannot succeed. All others must, unless faults use up their attempts."""

TRANSACTIONAL = frozenset({"transaction", "rollback"})
"""Kinds that write a line in the transaction that completes their jobs."""

SHOWN = 20
"""Cases of a broken rule that are written out."""


class Row(NamedTuple):
    """A job as the database has it; `run` is what the accepted run returned, times are in seconds since 1970.

    Attributes:
        available_at: when it could first run.
    """

    id: str
    state: str
    kind: str
    number: int | None
    attempt: int
    max_retries: int | None
    claims: int
    run: str | None
    available_at: float
    ended_at: float | None

    def __str__(self) -> str:
        return (
            f"job {self.id} (number {self.number}, {self.kind}): {self.state}, attempt {self.attempt} of "
            f"{'?' if self.max_retries is None else self.max_retries + 1}, claims {self.claims}, run {self.run}"
        )


class Evidence(NamedTuple):
    """Everything that is known when all is over.

    Attributes:
        rows: every row of every state, so that a job that is in two of them is here twice.
        effects: in the order of time.
        nodes_left: rows in the table of nodes after all of them have left.
        written: what was committed with the completion of jobs.
    """

    submits: Sequence[Submit]
    rows: Sequence[Row]
    effects: Sequence[Effect]
    exits: Sequence[Exit]
    nodes_left: int
    written: Sequence[Written] = ()


class Rule(msgspec.Struct, frozen=True):
    """What must hold, and the cases in which it did not."""

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
        SELECT id::text, state, kind, (payload ->> 'number')::bigint, attempt, max_retries, claims, result ->> 'run',
               extract(epoch FROM available_since)::float8, extract(epoch FROM ended_at)::float8
          FROM jobqueue.jobs
    """
    return [Row(*row) for row in connection.execute(sql)]


def check(evidence: Evidence) -> list[Rule]:
    """Apply every rule."""
    rows = evidence.rows
    return [
        Rule.of("acknowledged and lost", _lost(evidence)),
        Rule.of("acknowledged as another job", _mistaken(evidence)),
        Rule.of("not ended", (str(row) for row in rows if row.state not in ENDED)),
        Rule.of("more than one row for a job", _repeated("id", Counter(row.id for row in rows))),
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
        Rule.of("nodes that did not end cleanly on SIGTERM", (str(one) for one in evidence.exits if _unclean(one))),
        Rule.of("nodes still registered after all have left", [f"{evidence.nodes_left} rows"] if evidence.nodes_left else []),
    ]


def _lost(evidence: Evidence) -> Iterable[str]:
    there = {row.id for row in evidence.rows}
    for submit in evidence.submits:
        for job_id, number in zip(submit.ids, submit.kinds, strict=False):
            if job_id not in there:
                yield f"job {job_id}, number {number}, acknowledged by {_place(submit)} at {submit.answered:.3f}"


def _mistaken(evidence: Evidence) -> Iterable[str]:
    """Yield acknowledgements with ids that are too few, or of jobs that hold another payload."""
    numbers = {row.id: row.number for row in evidence.rows}
    for submit in evidence.submits:
        if submit.fate != "acknowledged":
            continue
        if len(submit.ids) != len(submit.kinds):
            yield f"{len(submit.kinds)} jobs submitted to {_place(submit)}, {len(submit.ids)} acknowledged"
        for job_id, number in zip(submit.ids, submit.kinds, strict=False):
            if numbers.get(job_id, number) != number:
                yield f"number {number} was acknowledged as job {job_id}, which is number {numbers[job_id]}"


def _repeated(what: str, counts: Counter[str] | Counter[int | None]) -> Iterable[str]:
    return (f"{what} {value}: {count} rows" for value, count in counts.items() if count > 1)


def _unknown(evidence: Evidence) -> Iterable[str]:
    submitted = {number for submit in evidence.submits for number in submit.kinds}
    return (str(row) for row in evidence.rows if row.number not in submitted)


def _refused(evidence: Evidence) -> Iterable[str]:
    """Yield jobs whose submitter was told that nothing was written, and who will therefore send them again."""
    rows = {row.number: row for row in evidence.rows}
    for submit in evidence.submits:
        if submit.fate == "refused":
            for number in submit.kinds:
                if number in rows:
                    yield f"{rows[number]}; {_place(submit)} said at {submit.answered:.3f}: {submit.why}"


def _torn(evidence: Evidence) -> Iterable[str]:
    there = {row.number for row in evidence.rows}
    for submit in evidence.submits:
        found = sum(number in there for number in submit.kinds)
        if 0 < found < len(submit.kinds) and submit.fate != "acknowledged":
            yield f"{found} of {len(submit.kinds)} jobs, from number {min(submit.kinds)} on, {submit.why}"


def _unproven(evidence: Evidence) -> Iterable[str]:
    """Yield jobs whose accepted run did not complete as far as the record knows, or not as the attempt that was accepted."""
    completed = {effect.run: effect for effect in evidence.effects if effect.what == "ended"}
    for row in evidence.rows:
        if row.state == "succeeded" and row.kind not in MUST_DIE:
            effect = completed.get(row.run or "")
            if effect is None or (effect.job_id, effect.attempt) != (row.id, row.attempt):
                yield f"{row}; the record says {effect}"


def _not_once(evidence: Evidence) -> Iterable[str]:
    """Yield jobs that succeeded in a transaction and did not write exactly one line in it."""
    lines: defaultdict[str, list[int]] = defaultdict(list)
    for written in evidence.written:
        lines[written.job_id].append(written.attempt)
    for row in evidence.rows:
        if row.state == "succeeded" and row.kind in TRANSACTIONAL and lines[row.id] != [row.attempt]:
            yield f"{row}; lines of its attempts: {lines[row.id]}"


def _uncompleted(evidence: Evidence) -> Iterable[str]:
    """Yield lines of jobs that did not succeed."""
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
    """What may happen at least once and is counted: a job that runs again after a crash is the contract, not a fault.

    Attributes:
        double_runs: jobs that ran to their end more than once, one of the runs being accepted.
        overlapping: pairs of runs of one job that ran at the same time on two nodes; the completion of one of them was refused.
        overlapping_same_attempt: of those, the ones of the same attempt.
        late_runs: runs that began after the job had ended elsewhere: claimed before, by a node that slept.
        runs: all of them.
        transactions: jobs that succeeded in a transaction of their handler's.
        transactions_run_again: of those, the ones that had more than one run, each of which wrote its line.
        recovered_dead: jobs that died although their kind must succeed: faults used up all of their attempts.
        slowest: the longest time, in seconds, from a job's first chance to run to its end, whatever broke meanwhile.
    """

    runs: int
    transactions: int
    transactions_run_again: int
    double_runs: int
    overlapping: int
    overlapping_same_attempt: int
    late_runs: int
    recovered_dead: int
    slowest: float


def count(evidence: Evidence) -> Shown:
    """Count what is allowed, and worth knowing."""
    began = {effect.run: effect for effect in evidence.effects if effect.what == "began"}
    over = {effect.run: effect for effect in evidence.effects if effect.what != "began"}
    completions = Counter(effect.job_id for effect in over.values() if effect.what == "ended")
    ended_at = {row.id: row.ended_at for row in evidence.rows if row.ended_at is not None}
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
        late_runs=sum(run.at > ended_at.get(run.job_id, run.at) for run in began.values()),
        recovered_dead=sum(row.state == "dead" and row.kind not in MUST_DIE for row in evidence.rows),
        slowest=round(max((row.ended_at - row.available_at for row in evidence.rows if row.ended_at is not None), default=0.0), 1),
    )


def _overlaps(began: Mapping[str, Effect], over: Mapping[str, Effect]) -> Iterable[tuple[Effect, Effect]]:
    """Yield runs of one job of which the second began on another node before the first was over.

    A run whose end nobody wrote counts for the moment of its beginning: its process may have died right after.
    """
    runs: defaultdict[str, list[Effect]] = defaultdict(list)
    for effect in began.values():
        runs[effect.job_id].append(effect)
    for of_one_job in runs.values():
        for first, second in pairwise(sorted(of_one_job, key=lambda effect: effect.at)):
            first_over = over.get(first.run)
            if first_over is not None and second.at < first_over.at and first.node != second.node:
                yield first, second
