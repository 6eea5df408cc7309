"""Garbage notifications for every channel to which nodes listen. In PostgreSQL, any role may send notifications."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable

CHANNELS = (
    "jobqueue",
    "jobqueue_scheduled",
    "jobqueue_schedules",
    "jobqueue_cancel",
    "jobqueue_keys",
    "jobqueue_lost",
    "jobqueue_freed",
    "jobqueue_paused",
)
"""All channels to which nodes of this version or a later version listen."""

LONGEST = 7_900
"""Maximum size of a payload, in bytes: just below the limit of NOTIFY."""

QUEUES = ("default", "no such queue", "", "default ", "Default", "\N{BANANA}")

NUMBERS = (
    *("nan", "inf", "-inf", "1e400", "-1e400", "1_000", "0x10", "+5", "9" * 300, "x", ""),
    *("\N{ARABIC-INDIC DIGIT FIVE}", "\N{SUPERSCRIPT TWO}"),
)


def payload(dice: random.Random) -> str:
    """Draw a payload."""
    return dice.choice(SHAPES)(dice)


def _noise(dice: random.Random) -> str:
    return "".join(chr(dice.choice([dice.randint(1, 127), dice.randint(0xA0, 0xD7FF)])) for _ in range(dice.randint(0, 200)))


def _digits(dice: random.Random) -> str:
    return dice.choice("123456789") * dice.choice([20, 400, 4_301, LONGEST])


def _number_and_queue(dice: random.Random) -> str:
    return f"{dice.choice(NUMBERS)} {dice.choice(QUEUES)}"


def _job_and_claims(dice: random.Random) -> str:
    job = dice.choice([str(uuid.UUID(int=dice.getrandbits(128))), "no job", ""])
    return f"{job} {dice.choice([_digits(dice)[: LONGEST - 40], *NUMBERS])}"


SHAPES: tuple[Callable[[random.Random], str], ...] = (
    _noise,
    _digits,
    _number_and_queue,
    _job_and_claims,
    lambda dice: dice.choice(["", "x", " ", "\n", "null", "[]", "{}"]),
    lambda dice: dice.choice(QUEUES[1:]),
    lambda dice: f"{_digits(dice)[: LONGEST - 40]} default",
)
