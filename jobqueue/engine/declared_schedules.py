"""Collect the schedules of an app and their kinds. An invalid schedule raises an error when the module is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jobqueue.errors import HandlerError, InvalidSchedule
from jobqueue.timetable import CronSchedule, schedule_of

MAX_SCHEDULES = 1_000
"""Maximum number of schedules in one app."""

PENDING = "(the handler's kind)"
"""Placeholder for a kind and a name that are unknown until the handler is registered."""


class DeclaredSchedules:
    """The schedules declared with `App.periodic`."""

    def __init__(self) -> None:
        self._declared: dict[str, CronSchedule] = {}
        self._waiting: list[tuple[Callable[..., Any], Mapping[str, Any]]] = []

    def declared(self) -> list[CronSchedule]:
        """Return all schedules.

        Raises:
            HandlerError: a schedule has no kind, because its function is not a handler.
        """
        for function, fields in self._waiting:
            raise HandlerError(
                f"the schedule {fields['cron']!r} of {getattr(function, '__qualname__', function)} has no kind:"
                " add @app.handler(kind), or pass kind="
            )
        return list(self._declared.values())

    def declare(self, fields: Mapping[str, Any]) -> None:
        """Add a schedule. The fields include `kind`.

        Raises:
            HandlerError: the schedule is invalid, its name is taken, or the app has too many schedules.
        """
        schedule = _checked({**fields, "name": fields.get("name", fields["kind"])})
        if schedule.name in self._declared:
            raise HandlerError(f"schedule {schedule.name!r} is already declared: pass a different name= for each one")
        if len(self._declared) >= MAX_SCHEDULES:
            raise HandlerError(f"an app can declare at most {MAX_SCHEDULES} schedules")
        self._declared[schedule.name] = schedule

    def declare_for(self, function: Callable[..., Any], kinds: list[str], fields: Mapping[str, Any]) -> None:
        """Add a schedule for the kind that a function handles, now or once the function becomes a handler.

        Args:
            function: the decorated function.
            kinds: the kinds that the function handles.
            fields: all fields except `kind`.

        Raises:
            HandlerError: as `declare`, or the function handles several kinds.
        """
        if len(kinds) > 1:
            raise HandlerError(f"the schedule {fields['cron']!r} is on a handler of several kinds ({', '.join(kinds)}): pass kind=")
        if kinds:
            self.declare({**fields, "kind": kinds[0]})
        else:
            _checked({"name": PENDING, "kind": PENDING, **fields})
            self._waiting.append((function, fields))

    def handled(self, function: Callable[..., Any], kind: str) -> None:
        """Declare the schedules that waited for this function to become a handler."""
        for waiting in [waiting for waiting in self._waiting if waiting[0] == function]:
            self._waiting.remove(waiting)
            self.declare({**waiting[1], "kind": kind})


def _checked(fields: Mapping[str, Any]) -> CronSchedule:
    try:
        return schedule_of(fields)
    except InvalidSchedule as error:
        raise HandlerError(f"schedule {fields['name']!r}: {error}") from None
