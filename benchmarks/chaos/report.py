"""Report a run: a table of faults and recoveries, a table of jobs, and the rules with the cases that broke them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.chaos.checker import Evidence, Rule, Shown, check, count
from benchmarks.chaos.faults import Saboteur
from benchmarks.chaos.machines import Exit
from benchmarks.chaos.phases import Phase
from benchmarks.chaos.phases import measure as measure_phases
from benchmarks.chaos.plan import Kind
from benchmarks.chaos.recovery import Recovery, measure


class Spread(msgspec.Struct, frozen=True):
    """The median and the maximum of some times, in seconds."""

    p50: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float | None]) -> Spread | None:
        ranked = sorted(wait for wait in seconds if wait is not None)
        return cls(ranked[math.ceil(len(ranked) / 2) - 1], ranked[-1]) if ranked else None

    def __str__(self) -> str:
        return f"{self.p50:.1f} / {self.max:.1f}"


class Line(msgspec.Struct, frozen=True):
    """Faults of one kind, and the recoveries from them."""

    name: str
    faults: int
    completion: Spread | None
    work: Spread | None
    submits: Spread | None

    @classmethod
    def of(cls, name: str, recoveries: Sequence[Recovery]) -> Line:
        return cls(
            name,
            len(recoveries),
            Spread.of(one.completion for one in recoveries),
            Spread.of(one.work for one in recoveries),
            Spread.of(one.submits for one in recoveries),
        )


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of a run. The JSON file uses the same names.

    Attributes:
        skipped: number of faults that were not inflicted because this machine lacks the software, by kind.
        lines: recoveries from faults without overlap, by kind; the last line is for overlapping faults.
        submits: requests and SQL calls by result and error.
        jobs: submitted jobs by the result of their submission.
        states: jobs in the database by state.
        restarts: ended processes by cause.
        phases: the submissions of each part of an upgrade.
    """

    seed: int
    seconds: float
    faults: int
    skipped: dict[str, int]
    lines: list[Line]
    submits: dict[str, int]
    refusals: dict[str, int]
    jobs: dict[str, int]
    states: dict[str, int]
    restarts: dict[str, int]
    slowest_exit: float
    replies_lost: int
    poison_refused: int
    shown: Shown
    rules: list[Rule]
    phases: list[Phase]
    recoveries: list[Recovery]
    exits: list[Exit]

    @classmethod
    def of(cls, seed: int, seconds: float, evidence: Evidence, saboteur: Saboteur) -> Report:
        recoveries = measure(evidence, evidence.inflicted)
        terminated = [one.seconds for one in evidence.exits if one.served and one.wanted == "SIGTERM"]
        return cls(
            seed=seed,
            seconds=round(seconds, 1),
            faults=len(evidence.inflicted),
            skipped=dict(Counter(fault.kind.value for fault in saboteur.skipped)),
            lines=list(_lines(recoveries)),
            submits=dict(Counter(submit.fate for submit in evidence.submits)),
            refusals=dict(Counter(f"{submit.fate}: {submit.why}" for submit in evidence.submits if submit.why).most_common(20)),
            jobs=_sum_jobs(evidence),
            states=dict(Counter(row.state for row in evidence.rows)),
            restarts=dict(Counter(_ending(one) for one in evidence.exits)),
            slowest_exit=max(terminated, default=0.0),
            replies_lost=saboteur.replies_lost,
            poison_refused=saboteur.refused,
            shown=count(evidence),
            rules=check(evidence),
            phases=list(measure_phases(evidence.submits, evidence.inflicted)),
            recoveries=recoveries,
            exits=list(evidence.exits),
        )

    @property
    def passed(self) -> bool:
        """Whether no rule was broken."""
        return not any(rule.broken for rule in self.rules)

    def print(self, console: Console) -> None:
        """Print the tables and the verdict."""
        console.print(self._table_of_faults(), self._table_of_jobs())
        if self.phases:
            console.print(self._table_of_phases())
        for rule in self.rules:
            console.print(f"{'BROKEN' if rule.broken else 'ok':>6}  {rule.name}: {rule.broken:,}", highlight=False)
            for case in rule.cases:
                console.print(f"          {case}", highlight=False, markup=False, soft_wrap=True)
        for kind, faults in self.skipped.items():
            console.print(f'\nSKIPPED: {faults} of "{kind}": libfaketime is not installed', highlight=False)
        console.print(f"\n{'passed' if self.passed else 'FAILED'}: seed {self.seed}, {self.faults} faults in {self.seconds:.0f} s")

    def _table_of_faults(self) -> Table:
        table = Table(
            "fault",
            *("faults", "any job done", "every node works", "every node accepts"),
            title=f"Recovery after {self.faults} faults, seed {self.seed} (seconds, p50 / max)",
            title_justify="left",
        )
        for line in self.lines:
            table.add_row(line.name, str(line.faults), *(str(cell or "-") for cell in (line.completion, line.work, line.submits)))
        return table

    def _table_of_phases(self) -> Table:
        table = Table(
            "submissions", "sent", "failed", "p99 ms", "longest ms", title="Upgrade, without other faults", title_justify="left"
        )
        for phase in self.phases:
            table.add_row(*(str("-" if cell is None else cell) for cell in msgspec.structs.astuple(phase)))
        return table

    def _table_of_jobs(self) -> Table:
        table = Table("", "", title="Jobs", title_justify="left", show_header=False)
        table.add_row("acknowledged", f"{self.jobs.get('acknowledged', 0):,}")
        table.add_row("refused", f"{self.jobs.get('refused', 0):,}")
        table.add_row(
            "unknown, of which in the database", f"{self.jobs.get('unknown', 0):,}, {self.jobs.get('unknown and there', 0):,}"
        )
        table.add_section()
        for state, jobs in sorted(self.states.items()):
            table.add_row(state, f"{jobs:,}")
        table.add_section()
        table.add_row("replies lost after the commit", f"{self.replies_lost:,}")
        table.add_row("runs", f"{self.shown.runs:,}")
        table.add_row(
            "jobs done in a transaction, of which ran more than once",
            f"{self.shown.transactions:,}, {self.shown.transactions_run_again:,}",
        )
        table.add_row("jobs that ran to their end twice", f"{self.shown.double_runs:,}")
        table.add_row(
            "runs on two nodes at a time", f"{self.shown.overlapping:,} ({self.shown.overlapping_same_attempt} of one attempt)"
        )
        table.add_row("runs that began after the accepted one", f"{self.shown.late_runs:,}")
        table.add_row("slowest job", f"{self.shown.slowest:.1f} s")
        table.add_row("attempts lost with a lease", f"{self.shown.leases_lost:,}")
        table.add_row("poisoned jobs: stored, rejected by PostgreSQL", f"{self.shown.poisoned:,}, {self.poison_refused:,}")
        table.add_section()
        for ending, processes in sorted(self.restarts.items()):
            table.add_row(ending, f"{processes:,}")
        table.add_row("slowest end after SIGTERM", f"{self.slowest_exit:.1f} s")
        return table


def _lines(recoveries: Sequence[Recovery]) -> Iterable[Line]:
    for kind in Kind:
        of_kind = [one for one in recoveries if one.alone and one.inflicted.fault.kind is kind]
        if of_kind:
            yield Line.of(kind.value, of_kind)
    overlapped = [one for one in recoveries if not one.alone]
    if overlapped:
        yield Line.of("any, overlapped by another", overlapped)


def _sum_jobs(evidence: Evidence) -> dict[str, int]:
    there = {row.number for row in evidence.rows}
    jobs: Counter[str] = Counter()
    for submit in evidence.submits:
        jobs[submit.fate] += len(submit.kinds)
        if submit.fate == "unknown":
            jobs["unknown and there"] += sum(number in there for number in submit.kinds)
    return dict(jobs)


def _ending(one: Exit) -> str:
    if not one.served:
        return "node ended before it served"
    return f"node {'after ' + one.wanted if one.wanted else 'ended by itself'}, exit code {one.code}"
