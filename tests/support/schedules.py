"""A cron schedule in a store, and its moves to the next tick."""

from __future__ import annotations

from typing import Any

from jobqueue.storage.roles.schedule import DueSchedule, Move
from jobqueue.timetable import CronSchedule, schedule_of
from tests.support.storage import Driver


def nightly(**fields: Any) -> CronSchedule:
    return schedule_of({"name": "nightly", "cron": "0 3 * * *", "kind": "report", **fields})


def move_of(schedule: DueSchedule, *ticks: float, next_at: float | None, **changed: Any) -> Move:
    seen = {"name": schedule.name, "cron": schedule.cron, "timezone": schedule.timezone, "missed": schedule.missed}
    return Move(**seen, **{"expected": schedule.next_at, "ticks": list(ticks), "next_at": next_at, **changed})


async def begin(driver: Driver, next_at: float, *, name: str = "nightly") -> DueSchedule:
    """Make a schedule whose first tick has passed; return it as a due schedule."""
    [schedule] = [one for one in (await driver.store.due_schedules()).due if one.name == name]
    assert (await driver.store.move_schedules([move_of(schedule, next_at=next_at)])).names == {name}
    [schedule] = [one for one in (await driver.store.due_schedules()).due if one.name == name]
    assert schedule.next_at == next_at
    return schedule
