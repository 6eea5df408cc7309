"""The plan, the checker, and the faults of the chaos benchmark. CI runs the benchmark itself in a separate step."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import trio

from benchmarks.chaos import garbage, handlers, phases, plan, poison, recovery
from benchmarks.chaos.__main__ import SHORT, SHORT_KINDS
from benchmarks.chaos.checker import STARVED_AFTER, Evidence, Row, check, count
from benchmarks.chaos.database import connect
from benchmarks.chaos.effects import Effect, Written
from benchmarks.chaos.faults import SETTINGS, Inflicted, Saboteur
from benchmarks.chaos.load import Load, Look, Submit
from benchmarks.chaos.machines import Exit, Node, Postgres
from benchmarks.chaos.plan import Fault, Kind
from jobqueue.engine.signals import Signals
from jobqueue.storage import connection, schema
from tests.support.clock import Clock
from tests.support.proxy import Proxy
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def test_the_same_seed_gives_the_same_plan_and_every_kind_has_its_turn() -> None:
    assert plan.make(7, 100, gap=4) == plan.make(7, 100, gap=4) != plan.make(8, 100, gap=4)
    assert {fault.kind for fault in plan.make(7, len(plan.FAULTS), gap=4)} == set(plan.FAULTS)
    for fault in plan.make(7, 100, gap=4):
        shortest, longest = plan.DURATIONS[fault.kind]
        assert shortest <= fault.seconds <= longest
        assert (fault.node is not None) == (fault.kind in plan.OF_A_NODE)


def test_the_short_form_has_every_kind_but_the_slow_ones() -> None:
    assert set(SHORT_KINDS) | plan.SLOW == set(plan.FAULTS)
    drawn = plan.make(7, SHORT["faults"], gap=SHORT["gap"], only=SHORT_KINDS)
    assert {fault.kind for fault in drawn} == set(SHORT_KINDS)
    assert max(fault.over_at for fault in drawn) < 60


@pytest.mark.parametrize("seed", range(5))
def test_an_upgrade_is_rolled_back_once_and_ends_with_new_nodes(seed: int) -> None:
    steps = plan.upgrade(seed, plan.make(seed, 20, gap=4))
    assert steps == sorted(steps, key=lambda step: step.at)
    assert (steps[0].kind, steps[-1].kind) == (Kind.MIGRATE, Kind.FINISH)
    upgraded: set[int] = set()
    rolled_back = False
    for step in steps[1:-1]:
        assert step.node is not None
        assert (step.node in upgraded) == (step.kind is Kind.ROLL_BACK_NODE)
        upgraded ^= {step.node}
        rolled_back |= not upgraded
    assert rolled_back
    assert upgraded == set(range(plan.NODES))


def test_the_dice_of_each_fault_depend_on_the_seed_alone() -> None:
    first, second = ([fault.dice.random() for fault in plan.make(seed, 5, gap=4)] for seed in (7, 8))
    assert first == [fault.dice.random() for fault in plan.make(7, 5, gap=4)]
    assert not set(first) & set(second)


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
    succeeded = Row(f"job-{number}", "succeeded", "async", number, 1, 3, 1, f"run-{number}", None, False, ())
    return succeeded._replace(**changes)


def ran(number: int, **changes: Any) -> tuple[Effect, Effect]:
    began = Effect(f"run-{number}", f"job-{number}", 1, 0, "began", 18.0)._replace(**changes)
    return began, began._replace(what="ended", at=began.at + 1)


def evidence(**changes: Any) -> Evidence:
    """Return the evidence of three jobs that were submitted and completed correctly."""
    submits, rows = [submit(1), submit(2, 3)], [row(1), row(2), row(3)]
    return Evidence(submits, rows, [*ran(1), *ran(2), *ran(3)], [Exit(0, 30.0, 0, "SIGTERM", True, 1.0)], 0)._replace(**changes)


def inflicted(kind: Kind, began: float, ended: float, node: int | None = None) -> Inflicted:
    return Inflicted(Fault(0, kind, 1.0, ended - began, node), began, ended)


def broken(given: Evidence) -> set[str]:
    return {rule.name for rule in check(given) if rule.broken}


def test_the_checker_accepts_a_correct_run() -> None:
    assert broken(evidence()) == set()
    with_unknown = [submit(1), submit(2, fate="unknown"), submit(3, fate="unknown"), submit(4, fate="refused", why="503: away")]
    assert broken(evidence(submits=with_unknown)) == set()


def test_the_checker_accepts_a_transaction_with_one_effect() -> None:
    rows = [row(1), row(2, kind="transaction"), row(3, kind="rollback", state="dead", attempt=4)]
    assert broken(evidence(rows=rows, written=[Written("job-2", 1)])) == set()


LOST = "attempts lost, though nothing took a node or the database away"
STARVED = f"waited for over {STARVED_AFTER:.0f} s, though nothing took a node or the database away"
STILLBORN = "nodes that could not start, though nothing took the database away"
UNTRUE = "every node ready, though the work of one was held up"
SURVIVING = "poisoned, and not dead with a reason"

poisoned_row = row(0)._replace(id="poisoned", number=None, kind="poisoned", state="dead", run=None, reason="cannot be read")
twice_run = {
    "rows": [row(1), row(2), row(3, attempt=2, run="second", leases_lost=(1,))],
    "effects": [*ran(1), *ran(2), ran(3, at=12.0)[0], *ran(3, run="second", attempt=2, at=17.0)],
}

waiting: dict[str, Any] = {"effects": [*ran(1), *ran(2), *ran(3, at=15.0 + STARVED_AFTER)]}
waiting_first = {
    "submits": [submit(1), submit(2, -3)],
    "rows": [row(1), row(2), row(-3)],
    "effects": [*ran(1), *ran(2), *ran(-3, at=15.0 + STARVED_AFTER)],
}

frozen: dict[str, Any] = {
    "inflicted": [Inflicted(Fault(0, Kind.FREEZE_BACKEND, 1.0, 11.0, None), 20.0, 31.0, "claim")],
    "looks": [Look(node, 20.5 + second, 200) for node in range(3) for second in range(10)],
}


def after_poison(**changes: Any) -> dict[str, Any]:
    return {"rows": [*evidence().rows, poisoned_row._replace(**changes)], "poisoned": {"poisoned": "a deep payload"}}


@pytest.mark.parametrize(
    "changes",
    [
        after_poison(),
        after_poison(state="cancelled", reason=None),
        after_poison(attempt=2_147_483_647, kind="", number=1),
        {"poisoned": {"refused": "a deep payload"}},
        {"rows": [row(1), row(2), row(3, state="cancelled", run=None)], "cancelled": {"job-3"}},
        {"rows": [row(1), row(2), row(3)], "cancelled": {"job-3"}},
        {**twice_run, "inflicted": [inflicted(Kind.KILL_NODE, 13.0, 13.5, 0)]},
        {**twice_run, "inflicted": [inflicted(Kind.BLACKHOLE_NODE, 4.0, 5.0, 0)]},
        {"effects": [*ran(1), *ran(2), *ran(3, at=10.0 + STARVED_AFTER)]},
        {**waiting, "inflicted": [inflicted(Kind.KILL_POSTGRES, 12.0, 13.0)]},
        {**waiting, "inflicted": [inflicted(Kind.STEP_CLOCK, 10.0, 40.0)]},
        {**waiting, "rows": [row(1), row(2), row(3, delayed=True)]},
        {"effects": [*ran(1), *ran(2, at=30.0), *ran(3, at=10.0 + 2 * STARVED_AFTER)]},
        {**frozen, "looks": [*frozen["looks"], Look(1, 29.0, 503)]},
        {**frozen, "looks": []},
        {**frozen, "inflicted": [*frozen["inflicted"], inflicted(Kind.KILL_POSTGRES, 25.0, 26.0)]},
        {**frozen, "inflicted": [msgspec.structs.replace(frozen["inflicted"][0], frozen="housekeeping")]},
        {"exits": [Exit(0, 30.0, 1, None, False, 0.0)], "inflicted": [inflicted(Kind.RESTART_POSTGRES, 27.0, 28.0)]},
    ],
)
def test_the_checker_accepts_deviations_that_a_fault_explains(changes: dict[str, Any]) -> None:
    assert broken(evidence(**changes)) == set()


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        (SURVIVING, after_poison(state="pending", reason=None)),
        (SURVIVING, after_poison(state="succeeded", reason=None)),
        (SURVIVING, after_poison(reason=None)),
        (SURVIVING, after_poison(reason="")),
        ("more than one row for a job", {**after_poison(), "rows": [*evidence().rows, poisoned_row, poisoned_row]}),
        ("nobody submitted it", {**after_poison(), "poisoned": {}}),
        ("not ended", {"rows": [row(1), row(2), row(3, state="cancelled")]}),
        ("innocent, and dead", {"rows": [row(1), row(2), row(3, state="dead", attempt=4, run=None)]}),
        (LOST, twice_run),
        (LOST, {**twice_run, "inflicted": [inflicted(kind, 13.0, 13.5) for kind in plan.HARMLESS]}),
        (LOST, {**twice_run, "inflicted": [inflicted(Kind.KILL_NODE, 18.0, 19.0, 0)]}),
        (LOST, {**twice_run, "inflicted": [inflicted(Kind.KILL_NODE, 2.0, 3.0, 0)]}),
        (STARVED, waiting),
        (STARVED, {**waiting, "inflicted": [inflicted(Kind.CLOSE_LOG, 10.0, 40.0)]}),
        (STARVED, {**waiting, "inflicted": [inflicted(Kind.KILL_POSTGRES, 1.0, 1.5)]}),
        (STARVED, {**waiting_first, "inflicted": [inflicted(Kind.STEP_CLOCK, 10.0, 50.0)]}),
        (
            STARVED,
            {
                "effects": [*ran(1), *ran(2), *ran(3, at=10.0 + 45.0)],
                "inflicted": [inflicted(Kind.KILL_POSTGRES, 12.0, 13.0), inflicted(Kind.KILL_POSTGRES, 12.5, 14.0)],
            },
        ),
        (UNTRUE, frozen),
        (UNTRUE, {**frozen, "looks": [*frozen["looks"], Look(1, 22.0, 503), Look(1, 32.0, 503)]}),
        (STILLBORN, {"exits": [Exit(0, 30.0, 1, None, False, 0.0)]}),
        (STILLBORN, {"exits": [Exit(0, 30.0, 1, None, False, 0.0)], "inflicted": [inflicted(Kind.POISON_ROWS, 27.0, 28.0)]}),
        (STILLBORN, {"exits": [Exit(0, 30.0, 1, None, False, 0.0)], "inflicted": [inflicted(Kind.KILL_POSTGRES, 31.0, 32.0)]}),
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
        ("steps of an upgrade with another end than expected", {"upgrade_faults": ["a node did not refuse to start"]}),
    ],
)
def test_the_checker_finds_each_violation(rule: str, changes: dict[str, Any]) -> None:
    assert rule in broken(evidence(**changes))


def test_permitted_deviations_are_counted() -> None:
    twice = ran(1, run="other", node=1, at=18.5, attempt=2)
    late = ran(2, run="late", node=1, at=25.0, attempt=2)
    shown = count(evidence(effects=[*ran(1), *twice, *ran(2), *late, *ran(3)]))
    assert (shown.runs, shown.double_runs, shown.overlapping, shown.overlapping_same_attempt, shown.late_runs) == (5, 2, 1, 0, 1)
    assert broken(evidence(effects=[*ran(1), *twice, *ran(2), *late, *ran(3)])) == set()


def test_recovery_is_measured_from_the_end_of_a_fault_to_the_last_node() -> None:
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
    assert measured(first, earlier)[1] == (False, 0.1, 3.0, 2.5), "measured from the end of the other fault too"


def test_the_submissions_of_an_upgrade_are_measured_without_other_faults() -> None:
    def sent(at: float, seconds: float, node: int | None = None, fate: Any = "acknowledged") -> Submit:
        return Submit({}, node, fate, (), "", at, at + seconds)

    submits = [
        *(sent(5.0, 0.1), sent(9.9, 0.3), sent(15.0, 0.2), sent(15.0, 0.3, fate="unknown"), sent(31.0, 0.4)),
        *(sent(20.0, 0.5, node=1), sent(20.0, 0.6, node=2)),  # node 1 is replaced
        sent(45.0, 0.7),  # shortly after another fault
    ]
    faults = [
        inflicted(Kind.MIGRATE, 10.0, 11.0),
        inflicted(Kind.UPGRADE_NODE, 19.0, 21.0, node=1),
        inflicted(Kind.FINISH, 30.0, 30.5),
        inflicted(Kind.KILL_POSTGRES, 44.0, 44.5),
    ]
    measured = [(one.name, one.submits, one.failed, one.longest_ms) for one in phases.measure(submits, faults)]
    assert measured == [
        ("with the previous version", 1, 0, 100.0),
        ("during the before steps", 1, 0, 300.0),
        ("with both versions", 3, 1, 600.0),
        ("during the after steps", 0, 0, None),
        ("with this version", 1, 0, 400.0),
    ]
    assert list(phases.measure(submits, faults[1:])) == []


# ------------------------------------------------------------------------------------------------------------------- the faults


def test_every_channel_that_nodes_listen_to_gets_garbage() -> None:
    assert set(garbage.CHANNELS) >= set(Signals().of_notifications())


def test_notify_accepts_the_garbage() -> None:
    dice = random.Random(1)
    payloads = [garbage.payload(dice) for _ in range(2_000)]
    assert max(len(payload.encode()) for payload in payloads) in range(7_900, 8_000)
    assert not any("\0" in payload for payload in payloads)
    assert {"x", "nan default", "inf default", "-inf default"} <= set(payloads)


@pytest.fixture
def schema_url(database_url: str) -> str:
    with connection.connect(database_url, "migrate") as migrating:
        schema.migrate(migrating)
    return database_url


def test_poison_is_rejected_for_its_values_and_never_for_its_sql(schema_url: str) -> None:
    made: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    doses = poison.doses(random.Random(1))
    kinds = len(poison.TABLES) * len(poison.COLUMNS) + sum(len(values) for values in poison.FIELDS.values())
    with connect(schema_url) as connection:
        for dose in (next(doses) for _ in range(2 * kinds)):
            why = poison.administer(connection, dose)
            (refused if why else made)[dose.what.split(" in ")[-1].partition(",")[0]] += 1
            assert not why.startswith(("Syntax", "Undefined", "Ambiguous", "Indeterminate", "DatatypeMismatch")), f"{dose}: {why}"
    assert set(made) >= set(poison.TABLES), "not everything may be refused"


@pytest.mark.parametrize("table", poison.TABLES)
def test_an_unpoisoned_row_is_accepted(schema_url: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poison, "COLUMNS", {"nothing": {"priority": "0"}})
    dose = poison._row(table, "nothing", random.Random(1))
    with connect(schema_url) as connection:
        assert poison.administer(connection, dose) == ""
        row = connection.execute(f"SELECT id::text FROM jobqueue_internal.{table}").fetchall()
    assert row == [(dose.job_id,)]


def test_the_same_dice_give_the_same_poison() -> None:
    first, second = poison.doses(random.Random(5)), poison.doses(random.Random(5))
    assert [next(first) for _ in range(50)] == [next(second) for _ in range(50)]


def test_settings_of_the_database_do_not_reach_the_benchmark(database_url: str) -> None:
    with connect(database_url) as connection:
        before = {name: connection.execute(f"SHOW {name}").fetchone() for name in SETTINGS}
        for name, value in SETTINGS.items():
            connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {name} = '{value}'")
    with psycopg.connect(database_url) as theirs, connect(database_url) as ours:
        for name in SETTINGS:
            assert ours.execute(f"SHOW {name}").fetchone() == before[name]
            assert theirs.execute(f"SHOW {name}").fetchone() != before[name]


def test_the_handler_that_holds_the_gil_stops_every_other_thread() -> None:
    held = threading.Thread(target=handlers._libc.usleep, args=(300_000,))
    moments = [time.monotonic()]
    held.start()
    while held.is_alive():
        time.sleep(0.001)
        moments.append(time.monotonic())
    moments.append(time.monotonic())
    assert max(after - before for before, after in pairwise(moments)) >= 0.25


def test_a_clock_is_stepped_by_a_file(tmp_path: Path) -> None:
    clock = Clock("library.so", tmp_path / "clock")
    assert clock.environment["FAKETIME_TIMESTAMP_FILE"] == str(tmp_path / "clock")
    assert float((tmp_path / "clock").read_text()) == 0
    clock.set(-90.5)
    assert (tmp_path / "clock").read_text() == "-90.500\n"
    assert [path.name for path in tmp_path.iterdir()] == ["clock"]


async def test_a_clock_that_cannot_be_stepped_is_skipped_and_listed(tmp_path: Path) -> None:
    saboteur = Saboteur(Postgres(tmp_path), [])
    fault = Fault(0, Kind.STEP_CLOCK, 0.0, 0.01, None)
    await saboteur.run([fault])
    assert (saboteur.skipped, saboteur.inflicted) == ([fault], [])


TALKER = """
import sys, time
print("\\n  serving", flush=True)
for number in range(10**6):
    try:
        sys.stderr.write(f"line {number}\\n")
        sys.stderr.flush()
        progress = number
    except BrokenPipeError:
        progress = "broken"
    with open(sys.argv[1], "w") as file:
        file.write(f"{progress}\\n")
    time.sleep(0.001)
"""


class Talker(Node):
    """A process that logs all the time, and writes its progress to a file."""

    progress_path: Path

    def _command(self, _proxy_port: int) -> list[str]:
        return [sys.executable, "-c", TALKER, str(self.progress_path)]

    def progress(self) -> str:
        return self.progress_path.read_text().strip() if self.progress_path.exists() else ""


@asynccontextmanager
async def talker(directory: Path) -> AsyncIterator[Talker]:
    node = Talker(0, Proxy("127.0.0.1", 1), directory / "log", {})
    node.progress_path = directory / "progress"
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        yield node
        await node.retire()


async def blocked(node: Talker) -> str:
    """Wait until the process makes no progress for a second, and return how far it came."""
    with trio.fail_after(60):
        while True:
            before = node.progress()
            await trio.sleep(1)
            if before and node.progress() == before:
                return before


async def test_a_log_that_nobody_reads_blocks_the_process_that_writes_it(tmp_path: Path) -> None:
    async with talker(tmp_path) as node:
        await until(lambda: node.progress() > "")
        read_on = await node.jam_log()
        stuck_at = await blocked(node)
        read_on()
        await until(lambda: node.progress() not in {stuck_at, ""})
    assert f"line {stuck_at}\n" in (tmp_path / "log").read_text()


async def test_a_closed_log_fails_the_process_that_writes_it(tmp_path: Path) -> None:
    async with talker(tmp_path) as node:
        await until(lambda: node.progress() > "")
        await node.close_log()
        await until(lambda: node.progress() == "broken")
