"""Measure the submissions before, during, and after an upgrade."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from benchmarks import harness
from benchmarks.chaos.faults import Inflicted
from benchmarks.chaos.load import Submit
from benchmarks.chaos.plan import LEASE, UPGRADE, Kind

RECOVERY = 2 * LEASE
"""How long after the end of another fault a submission is left out, in seconds."""


class Phase(msgspec.Struct, frozen=True):
    """The submissions of one part of an upgrade.

    Attributes:
        failed: how many submissions were not acknowledged.
        p99_ms, longest_ms: the times of the acknowledged submissions, in milliseconds; None if there were none.
    """

    name: str
    submits: int
    failed: int
    p99_ms: float | None
    longest_ms: float | None

    @classmethod
    def of(cls, name: str, submits: Iterable[Submit]) -> Phase:
        sent = list(submits)
        times = [(one.answered - one.sent) * 1e3 for one in sent if one.fate == "acknowledged"]
        p99, longest = (round(harness.percentile(times, share), 1) for share in (0.99, 1.0)) if times else (None, None)
        return cls(name, len(sent), len(sent) - len(times), p99, longest)


def measure(submits: Sequence[Submit], inflicted: Sequence[Inflicted]) -> Iterator[Phase]:
    """Measure each part of an upgrade that was finished. Leave out the submissions that another fault may have delayed."""
    steps = {one.fault.kind: one for one in inflicted if one.fault.node is None and one.fault.kind in UPGRADE}
    if len(steps) < len({Kind.MIGRATE, Kind.FINISH}):
        return
    before, after = steps[Kind.MIGRATE], steps[Kind.FINISH]
    quiet = [submit for submit in submits if not any(_disturbs(one, submit) for one in inflicted)]
    yield Phase.of("with the previous version", (one for one in quiet if one.answered < before.began))
    yield Phase.of("during the before steps", _overlapping(quiet, before))
    yield Phase.of("with both versions", (one for one in quiet if before.ended < one.sent and one.answered < after.began))
    yield Phase.of("during the after steps", _overlapping(quiet, after))
    yield Phase.of("with this version", (one for one in quiet if one.sent > after.ended))


def _disturbs(one: Inflicted, submit: Submit) -> bool:
    """Return whether a fault may have delayed a submission. Replacing a node delays only submissions to this node."""
    if one.fault.kind in UPGRADE and (one.fault.node is None or one.fault.node != submit.node):
        return False
    return one.began <= submit.answered and one.ended + RECOVERY >= submit.sent


def _overlapping(submits: Iterable[Submit], step: Inflicted) -> Iterator[Submit]:
    return (one for one in submits if one.sent <= step.ended and one.answered >= step.began)
