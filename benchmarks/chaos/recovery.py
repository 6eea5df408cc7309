"""Measure from outside how long recovery took after each fault."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from benchmarks.chaos.checker import Evidence
from benchmarks.chaos.faults import Inflicted
from benchmarks.chaos.plan import NODES


class Recovery(msgspec.Struct, frozen=True):
    """The recovery from a fault.

    All times count from the end of the fault, or from the end of faults that overlap with it. None means no recovery.

    Attributes:
        alone: whether no other fault was active between the beginning of this fault and the recovery.
        completion: seconds until any node completed a job.
        work: seconds until every node had completed a job.
        submits: seconds until every node had acknowledged a submission that was sent after the end of the fault.
    """

    inflicted: Inflicted
    alone: bool
    completion: float | None
    work: float | None
    submits: float | None


def measure(evidence: Evidence, inflicted: Sequence[Inflicted]) -> list[Recovery]:
    """Measure the recovery from each fault, in the order of the plan."""
    completions = [sorted(e.at for e in evidence.effects if e.what == "ended" and e.node == node) for node in range(NODES)]
    acknowledged = [
        sorted((s.sent, s.answered) for s in evidence.submits if s.node == node and s.fate == "acknowledged")
        for node in range(NODES)
    ]
    recoveries = []
    for one in sorted(inflicted, key=lambda each: each.fault.number):
        healed = _healed(one, inflicted)
        works = [_first_after(healed, times) for times in completions]
        submits = [_first_answer(healed, times) for times in acknowledged]
        work, taken = _last(works), _last(submits)
        until = healed + max(work or 0.0, taken or 0.0)
        alone = not any(other.began < until and other.ended > one.began for other in inflicted if other is not one)
        recoveries.append(Recovery(one, alone, min((w for w in works if w is not None), default=None), work, taken))
    return recoveries


def _healed(one: Inflicted, inflicted: Sequence[Inflicted]) -> float:
    """Return the first time after a fault without any active fault."""
    moment = one.ended
    while ends := [other.ended for other in inflicted if other.began <= moment < other.ended]:
        moment = max(ends)
    return moment


def _first_after(moment: float, times: Sequence[float]) -> float | None:
    place = bisect_left(times, moment)
    return round(times[place] - moment, 3) if place < len(times) else None


def _first_answer(moment: float, times: Sequence[tuple[float, float]]) -> float | None:
    later = times[bisect_left(times, (moment, 0.0)) :]
    return round(min(answered for _, answered in later) - moment, 3) if later else None


def _last(waits: Sequence[float | None]) -> float | None:
    known = [wait for wait in waits if wait is not None]
    return max(known) if len(known) == len(waits) else None
