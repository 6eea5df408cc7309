"""Inflict the faults of a plan, and record when each one began and ended."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from typing import Any

import msgspec
import psycopg
import trio
from psycopg import sql

from benchmarks.chaos import garbage, poison, upgrade
from benchmarks.chaos.database import connect
from benchmarks.chaos.load import LIMITED, PATIENCE, Batch, Submit, submit_from_sql
from benchmarks.chaos.machines import CURRENT, RATE, Node, Postgres, Software
from benchmarks.chaos.plan import LOST_REPLIES, UPGRADE, Fault, Kind
from jobqueue.job import MAX_PRIORITY
from jobqueue.storage.embedded.cluster import DATABASE

OFTEN = 0.2
"""Seconds between two actions of a repeated fault."""

BETWEEN_CANARIES = 2.0
"""Seconds between two submissions of a job that must start soon, even during a fault."""

BETWEEN_DOSES = 0.05
"""Seconds between two poisoned jobs."""

BETWEEN_NOTIFICATIONS = 0.003
"""Seconds between two garbage notifications."""

AT_ONCE = 0.002
"""Seconds between two polls for a lost reply."""

REACH_TIMEOUT = 15.0
"""Maximum time that a fault in the database waits until another fault of PostgreSQL is over, in seconds."""


STEPS_BACK = (60.0, 120.0)
"""Minimum and maximum step of the database's clock, in seconds."""

CLOCK_ERROR = 5.0
"""Tolerance for the time of a stepped clock, in seconds. It is necessary because a busy machine can delay the measurement."""

PURPOSES = ("claim", "submit", "finish", "heartbeat", "housekeeping")
"""Purposes of a node's connections. A fault can freeze the backend of any such connection."""

SETTINGS = {
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "datestyle": "SQL, DMY",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "-15",
    "intervalstyle": "sql_standard",
    "search_path": "pg_catalog",
    "standard_conforming_strings": "off",
    "timezone": "Asia/Tokyo",
}
"""Settings of the database that a fault changes, each with an unusual value."""


class Inflicted(msgspec.Struct, frozen=True):
    """A fault with its actual times, in seconds since 1970.

    Attributes:
        frozen: the purpose of the connection whose backend was frozen, or None.
    """

    fault: Fault
    began: float
    ended: float
    frozen: str = ""


class Saboteur:
    """Carries out a plan.

    Faults overlap as planned. Only faults of the same node, or of the clock, wait for each other.

    Attributes:
        inflicted: the faults so far.
        skipped: faults that need software this machine lacks.
        submits: jobs submitted as part of a fault. Like all other jobs, they must succeed.
        cancelled: ids of such jobs that were cancelled while running. A cancelled job may still succeed.
        poisoned: the defects of jobs that must die, by id. PostgreSQL may have rejected some of these jobs.
        refused: how many of the poisoned jobs PostgreSQL rejected.
        upgrade_faults: what went wrong in the steps of an upgrade.
    """

    def __init__(self, postgres: Postgres, nodes: Sequence[Node], previous: Software = CURRENT) -> None:
        self._postgres = postgres
        self._previous = previous
        self._nodes = nodes
        self._one_at_a_time = [trio.Lock() for _ in nodes]
        self._stepping = trio.Lock()
        self._numbers = count(-1, -1)  # negative, because the numbers of the load are positive
        self.inflicted: list[Inflicted] = []
        self.skipped: list[Fault] = []
        self.submits: list[Submit] = []
        self.cancelled: set[str] = set()
        self.poisoned: dict[str, str] = {}
        self.refused = 0
        self.upgrade_faults: list[str] = []

    @property
    def replies_lost(self) -> int:
        """The number of lost replies to committed statements."""
        return sum(node.proxy.lost for node in self._nodes)

    async def run(self, plan: Sequence[Fault]) -> None:
        """Inflict all faults of the plan. Return when the last fault is over and everything is healed."""
        began = trio.current_time()
        async with trio.open_nursery() as submitting:
            submitting.start_soon(self._submit_canaries)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._upgrade, [fault for fault in plan if fault.kind in UPGRADE], began)
                for fault in plan:
                    if fault.kind not in UPGRADE:
                        await trio.sleep_until(began + fault.at)
                        nursery.start_soon(self._inflict, fault)
            submitting.cancel_scope.cancel()

    async def _upgrade(self, steps: Sequence[Fault], began: float) -> None:
        """Do the steps of an upgrade one after another."""
        for step in steps:
            await trio.sleep_until(began + step.at)
            await self._inflict(step)

    async def _submit_canaries(self) -> None:
        """Submit jobs with the best ranks. Such jobs must not wait behind a backlog."""
        while True:
            await trio.sleep(BETWEEN_CANARIES)
            await trio.to_thread.run_sync(self._submit, {"kind": "async"})

    async def _inflict(self, fault: Fault) -> None:
        if fault.kind is Kind.STEP_CLOCK and self._postgres.clock is None:
            self.skipped.append(fault)
            return
        async with self._turn(fault):
            began, frozen = time.time(), ""
            if fault.kind is Kind.FREEZE_BACKEND:
                frozen = await trio.to_thread.run_sync(_freeze_backend, self._postgres.url, fault)
            elif fault.node is None:
                await self._to_the_database(fault)
            elif fault.kind in UPGRADE:
                software = CURRENT if fault.kind is Kind.UPGRADE_NODE else self._previous
                await self._nodes[fault.node].replace(software, fault.seconds)
            else:
                await _to_a_node(fault, self._nodes[fault.node])
        self.inflicted.append(Inflicted(fault, began, time.time(), frozen))

    @asynccontextmanager
    async def _turn(self, fault: Fault) -> AsyncIterator[None]:
        if fault.node is not None:
            async with self._one_at_a_time[fault.node]:
                await self._nodes[fault.node].served()
                yield
        elif fault.kind is Kind.STEP_CLOCK:
            async with self._stepping:
                yield
        else:
            yield

    async def _to_the_database(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL_POSTGRES:
                await self._postgres.kill(fault.seconds)
            case Kind.RESTART_POSTGRES:
                await self._postgres.restart(fault.seconds)
            case Kind.STEP_CLOCK:
                await self._step_clock(fault)
            case Kind.MIGRATE:
                self.upgrade_faults += await upgrade.migrate(self._postgres.url)
            case Kind.FINISH:
                self.upgrade_faults += await upgrade.finish(self._postgres.url, self._previous)
            case _:
                await trio.to_thread.run_sync(self._in_the_database, fault)

    def _in_the_database(self, fault: Fault) -> None:
        url, dice = self._postgres.url, fault.dice
        match fault.kind:
            case Kind.TERMINATE_BACKENDS:
                _terminate_backends(url, fault.seconds)
            case Kind.HOLD_TRANSACTION:
                _hold_transaction(url, fault.seconds)
            case Kind.EXHAUST_CONNECTIONS:
                _exhaust_connections(url, fault.seconds)
            case Kind.POISON_ROWS:
                self._poison_rows(dice, fault.seconds)
            case Kind.GARBLE_NOTIFICATIONS:
                _garble_notifications(url, dice, fault.seconds)
            case Kind.HOLD_GIL:
                self._submit({"kind": dice.choice(["gil", "gil on the loop"]), "payload": {"seconds": fault.seconds}})
                time.sleep(fault.seconds)
            case Kind.PUBLISH_TABLES:
                self._publish_tables(fault)
            case Kind.CHANGE_SETTINGS:
                _change_settings(url, dice, fault.seconds)
            case _:
                raise NotImplementedError(fault.kind)

    async def _step_clock(self, fault: Fault) -> None:
        """Step the database's clock back while all tokens of the limits are used up, and forward again later."""
        clock = self._postgres.clock
        assert clock is not None
        await trio.to_thread.run_sync(self._use_up_limits)
        offset = -fault.dice.uniform(*STEPS_BACK)
        try:
            clock.set(offset)
            await trio.to_thread.run_sync(_require_clock, self._postgres.url, offset)
            await trio.sleep(fault.seconds)
        finally:
            clock.set(0)

    def _use_up_limits(self) -> None:
        """Submit more jobs than the queue and the key have tokens."""
        jobs = [{"kind": "async", "queue": LIMITED}] * round(2 * RATE)
        self._submit(*jobs, *({**job, "concurrency_key": "used up"} for job in jobs))
        time.sleep(2 * OFTEN)

    def _poison_rows(self, dice: random.Random, seconds: float) -> None:
        """Insert poisoned rows, and submit poisoned jobs with jobqueue.submit_many."""
        over_at = time.monotonic() + REACH_TIMEOUT + seconds
        doses = poison.doses(dice)
        while time.monotonic() < over_at:
            with suppress(psycopg.Error), _reach(self._postgres.url) as connection:
                over_at = min(over_at, time.monotonic() + seconds)
                while time.monotonic() < over_at:
                    dose = next(doses)
                    self.poisoned[dose.job_id] = dose.what
                    if poison.administer(connection, dose):
                        self.refused += 1
                    time.sleep(BETWEEN_DOSES)

    def _submit(self, *jobs: dict[str, Any]) -> tuple[str, ...]:
        """Submit jobs with the best ranks from SQL. Return their ids; empty if PostgreSQL did not acknowledge them in time."""
        give_up_at = time.monotonic() + REACH_TIMEOUT
        while time.monotonic() < give_up_at:
            numbered = [
                {**job, "priority": MAX_PRIORITY, "payload": {**job.get("payload", {}), "number": next(self._numbers)}}
                for job in jobs
            ]
            self.submits.append(submit_from_sql(self._postgres.url, Batch("sql", numbered)))
            if self.submits[-1].ids:
                return self.submits[-1].ids
            time.sleep(OFTEN)
        return ()

    def _publish_tables(self, fault: Fault) -> None:
        """Publish every table, as for logical replication of the whole database, and cancel a running job meanwhile."""
        name = sql.Identifier(f"chaos_{fault.number}")
        try:
            with suppress(psycopg.Error), _reach(self._postgres.url) as connection:
                connection.execute(sql.SQL("CREATE PUBLICATION {} FOR ALL TABLES").format(name))
                over_at = time.monotonic() + fault.seconds
                self._submit(*[{"kind": "async", "concurrency_key": "published"}] * 3)
                self._cancel_one(connection, PATIENCE)
                time.sleep(max(0.0, over_at - time.monotonic()))
        finally:
            _insist(self._postgres.url, sql.SQL("DROP PUBLICATION IF EXISTS {}").format(name))

    def _cancel_one(self, connection: psycopg.Connection, seconds: float) -> None:
        """Submit a job, and cancel it once it runs. If it does not start in time, do not cancel it."""
        ids = self._submit({"kind": "async", "payload": {"seconds": seconds}})
        give_up_at = time.monotonic() + seconds
        while ids and time.monotonic() < give_up_at:
            if connection.execute("SELECT FROM jobqueue_internal.inflight_jobs WHERE id = %s", ids).fetchone() is not None:
                self.cancelled.update(ids)
                connection.execute("SELECT jobqueue.cancel(%s)", ids)
                return
            time.sleep(OFTEN)


async def _to_a_node(fault: Fault, node: Node) -> None:
    match fault.kind:
        case Kind.KILL_NODE:
            await node.kill(fault.seconds)
        case Kind.TERMINATE_NODE:
            await node.terminate(fault.seconds)
        case Kind.LOSE_REPLIES:
            await _lose_replies(fault, node)
        case _:
            heal = await _begin(fault, node)
            await trio.sleep(fault.seconds)
            heal()
    node.proxy.heal()


async def _begin(fault: Fault, node: Node) -> Callable[[], object]:
    """Begin a fault with a duration. Return the function that ends it."""
    match fault.kind:
        case Kind.STOP_NODE:
            return node.freeze()
        case Kind.CUT_NODE:
            node.proxy.refuse()
        case Kind.BLACKHOLE_NODE:
            node.proxy.blackhole()
        case Kind.SLOW_NODE:
            node.proxy.delay(fault.dice.uniform(0.02, 0.15))
        case Kind.JAM_LOG:
            return await node.jam_log()
        case Kind.CLOSE_LOG:
            await node.close_log()
        case _:
            raise NotImplementedError(fault.kind)
    return node.proxy.heal


async def _lose_replies(fault: Fault, node: Node) -> None:
    """Lose one reply after another.

    After every second lost reply, also break the other connections of the node, while the node finds out whether its commit took
    effect.
    """
    dice = fault.dice
    over_at = trio.current_time() + fault.seconds
    while trio.current_time() < over_at:
        lost = node.proxy.lost
        node.proxy.lose_next_reply(dice.choice(LOST_REPLIES).encode())
        with trio.move_on_after(OFTEN):
            while node.proxy.lost == lost:  # noqa: ASYNC110 - the proxy has a count, but no event
                await trio.sleep(AT_ONCE)
            if lost % 2:
                node.proxy.cut()
            await trio.sleep_forever()


def _reach(url: str) -> psycopg.Connection:
    """Connect. Retry while another fault keeps PostgreSQL down."""
    give_up_at = time.monotonic() + REACH_TIMEOUT
    while True:
        try:
            return connect(url)
        except psycopg.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(OFTEN)


def _insist(url: str, *statements: sql.Composed) -> None:
    """Run all statements. If another fault breaks the connection, start again with the first statement."""
    give_up_at = time.monotonic() + 2 * REACH_TIMEOUT
    while True:
        try:
            with _reach(url) as connection:
                for statement in statements:
                    connection.execute(statement)
                return
        except psycopg.OperationalError:
            if time.monotonic() > give_up_at:
                raise


def _terminate_backends(url: str, seconds: float) -> None:
    over_at = time.monotonic() + seconds
    while time.monotonic() < over_at:
        with suppress(psycopg.OperationalError), _reach(url) as connection:
            _terminate_all(connection)
        time.sleep(OFTEN)


def _terminate_all(connection: psycopg.Connection) -> None:
    connection.execute("""
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND application_name <> 'chaos'
    """)


def _hold_transaction(url: str, seconds: float) -> None:
    """Hold a snapshot, so that PostgreSQL cannot remove rows that die after its start."""
    with suppress(psycopg.OperationalError), _reach(url) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM jobqueue.jobs")
        time.sleep(seconds)


def _exhaust_connections(url: str, seconds: float) -> None:
    """Take every free connection, then break all other connections, so that the clients of those connections need new ones."""
    held = [_reach(url)]
    try:
        over_at = time.monotonic() + seconds
        _take_all(url, held)
        with suppress(psycopg.OperationalError):
            _terminate_all(held[0])
        while time.monotonic() < over_at:
            _take_all(url, held)
            time.sleep(OFTEN / 4)
    finally:
        for connection in held:
            connection.close()


def _take_all(url: str, held: list[psycopg.Connection]) -> None:
    with suppress(psycopg.OperationalError):
        while True:
            held.append(connect(url))


def _require_clock(url: str, offset: float) -> None:
    with suppress(psycopg.OperationalError), _reach(url) as connection:
        row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        assert row is not None
        behind = row[0] - time.time()
        if abs(behind - offset) > CLOCK_ERROR:
            raise RuntimeError(
                f"PostgreSQL's clock is {behind:.0f} s from the machine's, not {offset:.0f} s: libfaketime does not work"
            )


def _garble_notifications(url: str, dice: random.Random, seconds: float) -> None:
    over_at = time.monotonic() + REACH_TIMEOUT + seconds
    while time.monotonic() < over_at:
        with suppress(psycopg.OperationalError), _reach(url) as connection:
            over_at = min(over_at, time.monotonic() + seconds)
            while time.monotonic() < over_at:
                connection.execute("SELECT pg_notify(%s, %s)", (dice.choice(garbage.CHANNELS), garbage.payload(dice)))
                time.sleep(BETWEEN_NOTIFICATIONS)


def _freeze_backend(url: str, fault: Fault) -> str:
    """Stop a backend of one node with SIGSTOP: its connection stays open without replies. Return the connection's purpose."""
    dice = fault.dice
    purpose = dice.choice(PURPOSES)
    with suppress(psycopg.OperationalError, ProcessLookupError), _reach(url) as connection:
        statement = "SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY pid"
        pids = [pid for (pid,) in connection.execute(statement, (f"jobqueue {purpose}",))]
        if pids:
            with _frozen(dice.choice(pids)):
                time.sleep(fault.seconds)
            return purpose
    return ""


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _change_settings(url: str, dice: random.Random, seconds: float) -> None:
    """Change settings of the database and terminate all sessions, so that new ones use these settings."""
    chosen = dice.sample(sorted(SETTINGS), 3)
    database = sql.Identifier(DATABASE)
    try:
        with suppress(psycopg.OperationalError), _reach(url) as connection:
            for name in chosen:
                statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
                connection.execute(statement.format(database, sql.Identifier(name), sql.Literal(SETTINGS[name])))
            _terminate_all(connection)
            time.sleep(seconds)
    finally:
        reset = sql.SQL("ALTER DATABASE {} RESET {}")
        _insist(url, *(reset.format(database, sql.Identifier(name)) for name in chosen))
        with suppress(psycopg.OperationalError), _reach(url) as connection:
            _terminate_all(connection)
