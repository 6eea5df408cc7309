"""``PUT /schedules/{name}``: from a body to a schedule."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from jobqueue.errors import InvalidSchedule
from jobqueue.http import limits
from jobqueue.http.answers import JSON
from jobqueue.job import MAX_NAME_LENGTH
from jobqueue.timetable import CronSchedule, schedule_of


def parse(name: str, body: bytes) -> CronSchedule:
    """Read what a body says about the schedule of that name.

    Raises:
        InvalidSchedule: it is not of the form that schedules have.
    """
    if len(body) > limits.MAX_SCHEDULE_BYTES:
        raise InvalidSchedule(f"a schedule may have {limits.MAX_SCHEDULE_BYTES} bytes of JSON", field="payload")
    try:
        fields = json.loads(body, object_pairs_hook=_Pairs, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidSchedule(f"send a schedule as {JSON}: {error}") from None
    if not isinstance(fields, _Pairs):
        raise InvalidSchedule('a schedule must be a JSON object, such as {"cron": "*/5 * * * *", "kind": "default"}')
    if fields.repeated is not None:
        repeated = fields.repeated[:MAX_NAME_LENGTH]
        raise InvalidSchedule(f"{repeated} is given more than once", field=repeated)
    if fields.get("name", name) != name:
        raise InvalidSchedule("name must be the one in the URL", field="name")
    return schedule_of({**fields, "name": name})


class _Pairs(dict[str, Any]):
    """An object that remembers a name that it was given more than once, which JSON allows and decoders settle in silence."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = None if len(self) == len(pairs) else Counter(name for name, _ in pairs).most_common(1)[0][0]


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")
