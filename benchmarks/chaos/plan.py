"""Draw a plan of faults: their kinds, times and durations. The same seed gives the same plan."""

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

LOST_REPLIES = (".submit_batch(", ".claim(", ".finish(", ".heartbeat(", "COMMIT")
"""Statements whose replies can get lost. PostgreSQL commits the statement before the reply is lost, but the node cannot know that.
The names have no schema, because the schema depends on the node's version.

COMMIT is the last statement of a handler's transaction. The finish in such a transaction is different: if its reply is lost, the
transaction is rolled back.
"""


class Kind(StrEnum):
    """The kinds of faults, with their names in the report."""

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
    MIGRATE = "run the before steps of the upgrade"
    UPGRADE_NODE = "replace a node by this version"
    ROLL_BACK_NODE = "replace a node by the previous version"
    FINISH = "run the after steps of the upgrade"


UPGRADE = frozenset({Kind.MIGRATE, Kind.UPGRADE_NODE, Kind.ROLL_BACK_NODE, Kind.FINISH})
"""The steps of an upgrade. `upgrade` plans them in their order; `make` does not draw them."""

FAULTS = [kind for kind in Kind if kind not in UPGRADE]
"""The kinds that `make` draws from."""


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
"""Minimum and maximum duration of each kind of fault, in seconds. If a fault ends a process, this is the time until the process
starts again."""

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
        Kind.UPGRADE_NODE,
        Kind.ROLL_BACK_NODE,
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
        Kind.MIGRATE,
        Kind.FINISH,
    }
)
"""Faults that stop neither a node nor the database. They lose no attempts, keep no node down, and delay no job for long."""

SLOW = frozenset({Kind.HOLD_GIL, Kind.STEP_CLOCK, Kind.PUBLISH_TABLES, Kind.FREEZE_BACKEND})
"""Faults that ``--short`` omits."""

OF_THIS_VERSION = frozenset({Kind.POISON_ROWS, Kind.PUBLISH_TABLES})
"""Faults that use tables of this version. ``--upgrade`` omits them."""

STEP_GAP = 5.0
"""Minimum mean time between two steps of an upgrade, in seconds."""


RESTART = 0.2
"""Seconds between the end of a node's process and the start of its replacement."""


class Fault(msgspec.Struct, frozen=True):
    """One planned fault.

    Attributes:
        at: its start, in seconds after the start of the load.
        seconds: its duration.
        node: the affected node; None for faults of the database.
    """

    number: int
    kind: Kind
    at: float
    seconds: float
    node: int | None

    @property
    def over_at(self) -> float:
        """Its planned end, in seconds after the start of the load."""
        return self.at + self.seconds

    @property
    def dice(self) -> random.Random:
        """Return a random generator for its other details."""
        return random.Random(f"fault {self.number} at {self.at}")


def make(seed: int, faults: int, *, gap: float, only: Sequence[Kind] = ()) -> list[Fault]:
    """Draw a plan.

    Args:
        seed: the seed.
        faults: the number of faults.
        gap: mean seconds between the starts of two faults; long faults overlap with later ones.
        only: the kinds to draw from; empty for all.
    """
    dice = random.Random(f"plan {seed}")
    kinds = _kinds(dice, only or FAULTS)
    plan: list[Fault] = []
    for number in range(faults):
        kind = next(kinds)
        at = round(FIRST_FAULT + (number + 0.8 * dice.random()) * gap, 3)
        seconds = round(dice.uniform(*DURATIONS[kind]), 3)
        plan.append(Fault(number, kind, at, seconds, _node(dice, plan, at) if kind in OF_A_NODE else None))
    return plan


def upgrade(seed: int, faults: Sequence[Fault]) -> list[Fault]:
    """Draw the steps of an upgrade, spread over the time of other faults.

    After the *before* steps, one or two nodes are upgraded and rolled back. Then all nodes are upgraded, and the *after* steps run.
    """
    dice = random.Random(f"upgrade {seed}")
    order = dice.sample(range(NODES), NODES)
    early = order[: dice.randint(1, NODES - 1)]
    steps: list[tuple[Kind, int | None]] = [
        (Kind.MIGRATE, None),
        *((Kind.UPGRADE_NODE, node) for node in early),
        *((Kind.ROLL_BACK_NODE, node) for node in reversed(early)),
        *((Kind.UPGRADE_NODE, node) for node in order),
        (Kind.FINISH, None),
    ]
    last = max((fault.at for fault in faults), default=0.0)
    gap = max(STEP_GAP, (last - FIRST_FAULT) / len(steps))
    return [
        Fault(len(faults) + place, kind, round(FIRST_FAULT + (place + 0.8 * dice.random()) * gap, 3), RESTART, node)
        for place, (kind, node) in enumerate(steps)
    ]


def _kinds(dice: random.Random, kinds: Sequence[Kind]) -> Iterator[Kind]:
    """Yield all kinds in random order, repeatedly."""
    while True:
        yield from dice.sample(kinds, len(kinds))


def _node(dice: random.Random, plan: list[Fault], at: float) -> int:
    """Choose a node without a fault at that time, if possible."""
    busy = {fault.node for fault in plan if fault.over_at > at}
    return dice.choice([node for node in range(NODES) if node not in busy] or list(range(NODES)))
