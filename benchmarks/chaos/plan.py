"""What will be broken, when and for how long: the same seed gives the same plan."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

NODES = 3

LEASE = 4.0
"""The nodes' visibility timeout, in seconds."""

FIRST_FAULT = 4.0
"""Seconds of undisturbed work before the first fault."""

LOST_REPLIES = ("jobqueue.submit_batch", "jobqueue.claim", "jobqueue.finish", "jobqueue.heartbeat", "COMMIT")
"""Statements whose answers may be lost; each is committed then, and the node cannot know.

COMMIT ends a handler's transaction. A finish may be a statement of one, and is rolled back then.
"""


class Kind(StrEnum):
    """The ways to break something, as the report names them."""

    KILL_NODE = "kill -9 a node"
    STOP_NODE = "freeze a node past its lease"
    TERMINATE_NODE = "SIGTERM a node, restart it"
    KILL_POSTGRES = "kill -9 PostgreSQL"
    RESTART_POSTGRES = "restart PostgreSQL"
    TERMINATE_BACKENDS = "terminate all backends"
    CUT_NODE = "cut a node off, with resets"
    BLACKHOLE_NODE = "blackhole a node past its lease"
    SLOW_NODE = "slow a node's network"
    LOSE_REPLIES = "lose replies to commits"
    HOLD_TRANSACTION = "hold a transaction open"
    EXHAUST_CONNECTIONS = "exhaust connections"
    POISON_ROWS = "poison rows"
    GARBLE_NOTIFICATIONS = "send garbage notifications"
    JAM_LOG = "stop reading a node's log"
    CLOSE_LOG = "close a node's log"
    HOLD_GIL = "hold a node's GIL past its lease"
    STEP_CLOCK = "step the database's clock back"
    PUBLISH_TABLES = "publish all tables"
    FREEZE_BACKEND = "freeze one backend"
    CHANGE_SETTINGS = "change the database's settings"


DURATIONS: dict[Kind, tuple[float, float]] = {
    Kind.KILL_NODE: (0.2, 2.0),
    Kind.STOP_NODE: (1.2 * LEASE, 2 * LEASE),
    Kind.TERMINATE_NODE: (0.2, 2.0),
    Kind.KILL_POSTGRES: (0.1, 3.0),
    Kind.RESTART_POSTGRES: (0.1, 2.0),
    Kind.TERMINATE_BACKENDS: (0.5, 2.0),
    Kind.CUT_NODE: (0.1, 3.0),
    Kind.BLACKHOLE_NODE: (1.2 * LEASE, 2 * LEASE),
    Kind.SLOW_NODE: (2.0, 5.0),
    Kind.LOSE_REPLIES: (1.0, 4.0),
    Kind.HOLD_TRANSACTION: (4.0, 10.0),
    Kind.EXHAUST_CONNECTIONS: (1.5, 5.0),
    Kind.POISON_ROWS: (1.0, 4.0),
    Kind.GARBLE_NOTIFICATIONS: (1.0, 4.0),
    Kind.JAM_LOG: (1.2 * LEASE, 2 * LEASE),
    Kind.CLOSE_LOG: (1.0, 4.0),
    Kind.HOLD_GIL: (1.5 * LEASE, 2.5 * LEASE),
    Kind.STEP_CLOCK: (32.0, 40.0),
    Kind.PUBLISH_TABLES: (32.0, 40.0),
    Kind.FREEZE_BACKEND: (9.0, 14.0),
    Kind.CHANGE_SETTINGS: (3.0, 8.0),
}
"""Seconds for which each lasts, at the least and at the most; for what is killed or stopped, until it is started again."""

OF_A_NODE = frozenset(
    {
        Kind.KILL_NODE,
        Kind.STOP_NODE,
        Kind.TERMINATE_NODE,
        Kind.CUT_NODE,
        Kind.BLACKHOLE_NODE,
        Kind.SLOW_NODE,
        Kind.LOSE_REPLIES,
        Kind.JAM_LOG,
        Kind.CLOSE_LOG,
    }
)

HARMLESS = frozenset(
    {
        Kind.HOLD_TRANSACTION,
        Kind.POISON_ROWS,
        Kind.GARBLE_NOTIFICATIONS,
        Kind.JAM_LOG,
        Kind.CLOSE_LOG,
        Kind.HOLD_GIL,
        Kind.PUBLISH_TABLES,
    }
)
"""Faults that take away neither a node nor the database: no attempt is lost to them, no node stays down, and no job waits long."""

SLOW = frozenset({Kind.HOLD_GIL, Kind.STEP_CLOCK, Kind.PUBLISH_TABLES, Kind.FREEZE_BACKEND})
"""Faults that the short form leaves out."""


class Fault(msgspec.Struct, frozen=True):
    """One thing to break.

    Attributes:
        at: seconds after the load began.
        seconds: how long it lasts.
        node: which node it is done to; None for the database's faults.
    """

    number: int
    kind: Kind
    at: float
    seconds: float
    node: int | None

    @property
    def over_at(self) -> float:
        """When it should be over, in seconds after the load began."""
        return self.at + self.seconds

    @property
    def dice(self) -> random.Random:
        """What else there is to draw about it."""
        return random.Random(f"fault {self.number} at {self.at}")


def make(seed: int, faults: int, *, gap: float, only: Sequence[Kind] = ()) -> list[Fault]:
    """Draw a plan.

    Args:
        faults: how many.
        gap: seconds from one fault's beginning to the next one's, about; long ones overlap with those that follow.
        only: the kinds to draw from; all of them when empty.
    """
    dice = random.Random(f"plan {seed}")
    kinds = _kinds(dice, only or list(Kind))
    plan: list[Fault] = []
    for number in range(faults):
        kind = next(kinds)
        at = round(FIRST_FAULT + (number + 0.8 * dice.random()) * gap, 3)
        seconds = round(dice.uniform(*DURATIONS[kind]), 3)
        plan.append(Fault(number, kind, at, seconds, _node(dice, plan, at) if kind in OF_A_NODE else None))
    return plan


def _kinds(dice: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Give every kind its turn before any comes again, in an order that differs each time."""
    while True:
        yield from dice.sample(kinds, len(kinds))


def _node(dice: random.Random, plan: list[Fault], at: float) -> int:
    """Choose a node that nothing is done to at that time, if there is one."""
    busy = {fault.node for fault in plan if fault.over_at > at}
    return dice.choice([node for node in range(NODES) if node not in busy] or list(range(NODES)))
