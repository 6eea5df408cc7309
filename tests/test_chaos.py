"""The chaos benchmark: its plan, and its checker, which must see what is broken. Its runs are commands of their own."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.chaos import plan, recovery
from benchmarks.chaos.checker import Evidence, Row, check, count
from benchmarks.chaos.effects import Effect, Written
from benchmarks.chaos.faults import Inflicted
from benchmarks.chaos.load import Load, Submit
from benchmarks.chaos.machines import Exit
from benchmarks.chaos.plan import Fault, Kind


def test_the_same_seed_gives_the_same_plan_and_every_kind_has_its_turn() -> None:
    assert plan.make(7, 100, gap=4) == plan.make(7, 100, gap=4) != plan.make(8, 100, gap=4)
    assert {fault.kind for fault in plan.make(7, len(Kind), gap=4)} == set(Kind)
    for fault in plan.make(7, 100, gap=4):
        shortest, longest = plan.DURATIONS[fault.kind]
        assert shortest <= fault.seconds <= longest
        assert (fault.node is not None) == (fault.kind in plan.OF_A_NODE)


def test_the_same_seed_gives_the_same_jobs() -> None:
    def batches(seed: int) -> list[Any]:
        return list(Load(seed, jobs=500, seconds=1, urls=[], database_url="")._batches())

    assert batches(1) == batches(1) != batches(2)
    assert sum(len(batch.jobs) for batch in batches(1)) == 500


# ------------------------------------------------------------------------------------------------------------------- the checker


def submit(*numbers: int, fate: Any = "acknowledged", kind: str = "async", why: str = "") -> Submit:
    ids = tuple(f"job-{number}" for number in numbers) if fate == "acknowledged" else ()
    return Submit(dict.fromkeys(numbers, kind), 0, fate, ids, why, sent=10.0, answered=11.0)


def row(number: int, **changes: Any) -> Row:
    succeeded = Row(f"job-{number}", "succeeded", "async", number, 1, 3, 1, f"run-{number}", 10.5, 20.0)
    return succeeded._replace(**changes)


def ran(number: int, **changes: Any) -> tuple[Effect, Effect]:
    began = Effect(f"run-{number}", f"job-{number}", 1, 0, "began", 18.0)._replace(**changes)
    return began, began._replace(what="ended", at=began.at + 1)


def evidence(**changes: Any) -> Evidence:
    """What three jobs leave behind that were submitted and done as they should be."""
    submits, rows = [submit(1), submit(2, 3)], [row(1), row(2), row(3)]
    return Evidence(submits, rows, [*ran(1), *ran(2), *ran(3)], [Exit(0, 30.0, 0, "SIGTERM", True, 1.0)], 0)._replace(**changes)


def broken(given: Evidence) -> set[str]:
    return {rule.name for rule in check(given) if rule.broken}


def test_the_checker_passes_what_is_as_it_should_be() -> None:
    assert broken(evidence()) == set()
    with_unknown = [submit(1), submit(2, fate="unknown"), submit(3, fate="unknown"), submit(4, fate="refused", why="503: away")]
    assert broken(evidence(submits=with_unknown)) == set()


def test_the_checker_passes_a_transaction_with_one_effect() -> None:
    rows = [row(1), row(2, kind="transaction"), row(3, kind="rollback", state="dead", attempt=4)]
    assert broken(evidence(rows=rows, written=[Written("job-2", 1)])) == set()


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("acknowledged and lost", {"rows": [row(1), row(2)]}),
        (
            "acknowledged as another job",
            {"submits": [submit(1), submit(3, 2)], "rows": [row(1), row(2, id="job-3"), row(3, id="job-2")]},
        ),
        ("not ended", {"rows": [row(1), row(2), row(3, state="inflight", run=None)]}),
        ("more than one row for a job", {"rows": [row(1), row(2), row(3), row(3)]}),
        ("one submit, several jobs", {"rows": [row(1), row(2), row(3), row(3, id="job-4")]}),
        ("nobody submitted it", {"rows": [row(1), row(2), row(3), row(9)]}),
        ("refused, and there all the same", {"submits": [submit(1), submit(2, fate="refused"), submit(3)]}),
        ("batches taken in part", {"submits": [submit(1), submit(2, 3, fate="unknown")], "rows": [row(1), row(2)]}),
        ("succeeded without a completed run", {"effects": [*ran(1), *ran(2), ran(3)[0]]}),
        ("succeeded without a completed run", {"effects": [*ran(1), *ran(2), *ran(3, attempt=2)]}),
        ("a transaction without its effect, or with several", {"rows": [row(1), row(2), row(3, kind="transaction")]}),
        (
            "a transaction without its effect, or with several",
            {"rows": [row(1), row(2), row(3, kind="transaction")], "written": [Written("job-3", 1), Written("job-3", 2)]},
        ),
        (
            "a transaction without its effect, or with several",
            {"rows": [row(1), row(2), row(3, kind="transaction")], "written": [Written("job-3", 2)]},
        ),
        (
            "an effect without its completion",
            {"rows": [row(1), row(2), row(3, kind="rollback", state="dead", attempt=4)], "written": [Written("job-3", 4)]},
        ),
        ("attempts over the limit", {"rows": [row(1), row(2), row(3, state="dead", attempt=5)]}),
        ("died before its attempts were used up", {"rows": [row(1), row(2), row(3, state="dead", attempt=3)]}),
        ("succeeded, though it cannot", {"rows": [row(1), row(2), row(3, kind="doomed")]}),
        ("answers that are a fault of the service", {"submits": [*evidence().submits, submit(4, fate="unknown", why="500: bug")]}),
        ("nodes that ended by themselves", {"exits": [Exit(0, 30.0, 1, None, True, 0.0)]}),
        ("nodes that did not end cleanly on SIGTERM", {"exits": [Exit(0, 30.0, 70, "SIGTERM", True, 8.0)]}),
        ("nodes still registered after all have left", {"nodes_left": 1}),
    ],
)
def test_the_checker_sees_what_is_broken(rule: str, changes: dict[str, Any]) -> None:
    assert rule in broken(evidence(**changes))


def test_what_may_happen_is_counted() -> None:
    twice = ran(1, run="other", node=1, at=18.5, attempt=2)
    late = ran(2, run="late", node=1, at=25.0, attempt=2)
    shown = count(evidence(effects=[*ran(1), *twice, *ran(2), *late, *ran(3)]))
    assert (shown.runs, shown.double_runs, shown.overlapping, shown.overlapping_same_attempt, shown.late_runs) == (5, 2, 1, 0, 1)
    assert broken(evidence(effects=[*ran(1), *twice, *ran(2), *late, *ran(3)])) == set()


def test_recovery_is_measured_from_a_faults_end_to_the_last_node() -> None:
    submits = [
        Submit({}, node, "acknowledged", (), "", sent, sent + 0.5) for node, sent in ((0, 9.9), (0, 12.0), (1, 10.0), (2, 10.2))
    ]
    completions = [effect for node, at in ((0, 10.1), (1, 13.0), (2, 9.0), (2, 11.0)) for effect in ran(1, node=node, at=at - 1)]
    first = Inflicted(Fault(0, Kind.KILL_POSTGRES, 1.0, 2.0, None), 8.0, 10.0)
    second = Inflicted(Fault(1, Kind.CUT_NODE, 5.0, 2.0, 1), 14.0, 14.5)
    overlapping = Inflicted(Fault(2, Kind.CUT_NODE, 6.0, 2.0, 1), 13.9, 14.2)

    def measured(*inflicted: Inflicted) -> list[tuple[bool, float | None, float | None, float | None]]:
        found = recovery.measure(evidence(submits=submits, effects=completions), inflicted)
        return [(one.alone, one.completion, one.work, one.submits) for one in found]

    assert measured(second, first) == [(True, 0.1, 3.0, 2.5), (True, None, None, None)]
    assert measured(overlapping, second)[1] == (False, None, None, None)
    earlier = Inflicted(Fault(3, Kind.CUT_NODE, 0.5, 2.0, 1), 7.0, 9.5)
    assert measured(first, earlier)[1] == (False, 0.1, 3.0, 2.5), "from when the other one is over, too"


# ------------------------------------------------------------------------------------------------------------------ the real thing
