"""The schedules that an app declares, and for which kinds. A mistake in one is said when the module is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jobqueue.errors import HandlerError, InvalidSchedule
from jobqueue.timetable import CronSchedule, schedule_of

MAX_SCHEDULES = 1_000
"""The most schedules of one app."""

PENDING = "(the handler's kind)"
"""Stands for a kind, and a name, that are not known before the handler is registered."""


class Schedules:
    """What `App.periodic` gathers."""

    def __init__(self) -> None:
        self._declared: dict[str, CronSchedule] = {}
        self._waiting: list[tuple[Callable[..., Any], Mapping[str, Any]]] = []

    def declared(self) -> list[CronSchedule]:
        """Return all schedules.

        Raises:
            HandlerError: one has no kind: its function never became a handler.
        """
        for function, fields in self._waiting:
            raise HandlerError(
                f"the schedule {fields['cron']!r} of {getattr(function, '__qualname__', function)} has no kind:"
                " add @app.handler(kind), or say kind="
            )
        return list(self._declared.values())

    def declare(self, fields: Mapping[str, Any]) -> None:
        """Add the schedule of these fields, of which `kind` is one.

        Raises:
            HandlerError: it is not valid, its name is taken, or there are too many.
        """
        schedule = _checked({**fields, "name": fields.get("name", fields["kind"])})
        if schedule.name in self._declared:
            raise HandlerError(f"schedule {schedule.name!r} is declared already: several of one kind need names (name=)")
        if len(self._declared) >= MAX_SCHEDULES:
            raise HandlerError(f"more than {MAX_SCHEDULES} schedules in one app")
        self._declared[schedule.name] = schedule

    def declare_for(self, function: Callable[..., Any], kinds: list[str], fields: Mapping[str, Any]) -> None:
        """Add a schedule for the kind that a function serves, now or once it is a handler.

        Args:
            function: what was decorated.
            kinds: the kinds that it is the handler of.
            fields: all but `kind`.

        Raises:
            HandlerError: as `declare`, or the function is the handler of several kinds.
        """
        if len(kinds) > 1:
            raise HandlerError(f"the schedule {fields['cron']!r} is of a handler of several kinds ({', '.join(kinds)}): say kind=")
        if kinds:
            self.declare({**fields, "kind": kinds[0]})
        else:
            _checked({"name": PENDING, "kind": PENDING, **fields})
            self._waiting.append((function, fields))

    def handled(self, function: Callable[..., Any], kind: str) -> None:
        """Say that a function has become the handler of a kind: schedules that waited for that have theirs."""
        for waiting in [waiting for waiting in self._waiting if waiting[0] == function]:
            self._waiting.remove(waiting)
            self.declare({**waiting[1], "kind": kind})


def _checked(fields: Mapping[str, Any]) -> CronSchedule:
    try:
        return schedule_of(fields)
    except InvalidSchedule as error:
        raise HandlerError(f"schedule {fields['name']!r}: {error}") from None
