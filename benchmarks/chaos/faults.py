"""Do what the plan says, when it says so, and write down when each fault really began and ended."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
import psycopg
import trio

from benchmarks.chaos.machines import Node, Postgres
from benchmarks.chaos.plan import LOST_REPLIES, Fault, Kind

OFTEN = 0.2
"""Seconds between two blows of a fault that strikes again and again."""

AT_ONCE = 0.002
"""Seconds between two looks whether a reply was lost."""

REACH_TIMEOUT = 15.0
"""Seconds for which a fault in the database waits for a database that another fault took away."""


class Inflicted(msgspec.Struct, frozen=True):
    """A fault, and when it really was, in seconds since 1970."""

    fault: Fault
    began: float
    ended: float


class Saboteur:
    """Carries out a plan.

    Faults overlap as the plan has it, but for those that are done to the same node: the second waits for the end of the first.

    Attributes:
        inflicted: what was done so far.
    """

    def __init__(self, postgres: Postgres, nodes: Sequence[Node]) -> None:
        self._postgres = postgres
        self._nodes = nodes
        self._one_at_a_time = [trio.Lock() for _ in nodes]
        self.inflicted: list[Inflicted] = []

    @property
    def replies_lost(self) -> int:
        """How many replies to committed statements were lost on their way to a node."""
        return sum(node.proxy.lost for node in self._nodes)

    async def run(self, plan: Sequence[Fault]) -> None:
        """Inflict all faults of the plan; return when the last one is over and everything is healed."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for fault in plan:
                await trio.sleep_until(began + fault.at)
                nursery.start_soon(self._inflict, fault)

    async def _inflict(self, fault: Fault) -> None:
        if fault.node is None:
            began = time.time()
            await self._to_the_database(fault)
        else:
            async with self._one_at_a_time[fault.node]:
                await self._nodes[fault.node].served()
                began = time.time()
                await _to_a_node(fault, self._nodes[fault.node])
        self.inflicted.append(Inflicted(fault, began, time.time()))

    async def _to_the_database(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.KILL_POSTGRES:
                await self._postgres.kill(fault.seconds)
            case Kind.RESTART_POSTGRES:
                await self._postgres.restart(fault.seconds)
            case Kind.TERMINATE_BACKENDS:
                await _in_thread(_terminate_backends, self._postgres.url, fault.seconds)
            case Kind.HOLD_TRANSACTION:
                await _in_thread(_hold_transaction, self._postgres.url, fault.seconds)
            case Kind.EXHAUST_CONNECTIONS:
                await _in_thread(_exhaust_connections, self._postgres.url, fault.seconds)
            case _:
                raise NotImplementedError(fault.kind)


async def _to_a_node(fault: Fault, node: Node) -> None:
    match fault.kind:
        case Kind.KILL_NODE:
            await node.kill(fault.seconds)
        case Kind.TERMINATE_NODE:
            await node.terminate(fault.seconds)
        case Kind.STOP_NODE:
            go_on = node.freeze()
            await trio.sleep(fault.seconds)
            go_on()
        case Kind.LOSE_REPLIES:
            await _lose_replies(fault, node)
        case Kind.CUT_NODE:
            node.proxy.refuse()
        case Kind.BLACKHOLE_NODE:
            node.proxy.blackhole()
        case Kind.SLOW_NODE:
            node.proxy.delay(random.Random(fault.number).uniform(0.02, 0.15))
        case _:
            raise NotImplementedError(fault.kind)
    if fault.kind in {Kind.CUT_NODE, Kind.BLACKHOLE_NODE, Kind.SLOW_NODE}:
        await trio.sleep(fault.seconds)
    node.proxy.heal()


async def _lose_replies(fault: Fault, node: Node) -> None:
    """Lose replies one after the other; after every second one the node's other connections go, too, while it finds out."""
    dice = random.Random(fault.number)
    over_at = trio.current_time() + fault.seconds
    while trio.current_time() < over_at:
        lost = node.proxy.lost
        node.proxy.lose_next_reply(dice.choice(LOST_REPLIES).encode())
        with trio.move_on_after(OFTEN):
            while node.proxy.lost == lost:  # noqa: ASYNC110 - the proxy counts, and tells nobody
                await trio.sleep(AT_ONCE)
            if lost % 2:
                node.proxy.cut()
            await trio.sleep_forever()


async def _in_thread(work: Callable[[str, float], None], url: str, seconds: float) -> None:
    await trio.to_thread.run_sync(work, url, seconds)


def _reach(url: str) -> psycopg.Connection:
    """Connect, also when another fault has taken the database away for a while."""
    give_up_at = time.monotonic() + REACH_TIMEOUT
    while True:
        try:
            return psycopg.connect(url, autocommit=True, application_name="chaos", connect_timeout=2)
        except psycopg.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(OFTEN)


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
    """Keep a snapshot: rows that die from now on cannot be removed."""
    with suppress(psycopg.OperationalError), _reach(url) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM jobqueue.pending_jobs")
        time.sleep(seconds)


def _exhaust_connections(url: str, seconds: float) -> None:
    """Take every free connection, then break the others', so that their owners must ask for new ones."""
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
            held.append(psycopg.connect(url, autocommit=True, application_name="chaos", connect_timeout=2))
