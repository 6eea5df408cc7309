"""Cron schedules: their times, one job per tick with any number of nodes, and the database's clock as the only clock."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from zoneinfo import ZoneInfo

import httpx
import msgspec
import psycopg
import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from werkzeug.exceptions import RequestEntityTooLarge

import jobqueue
from jobqueue import timetable
from jobqueue.engine.cron import LOOK_INTERVAL, RETRY_INTERVAL, TICKS_PER_TRANSACTION, Cron
from jobqueue.engine.declared_schedules import MAX_SCHEDULES
from jobqueue.engine.signals import Signals
from jobqueue.errors import DatabaseUnavailable, HandlerError, InvalidSchedule, RefusedData
from jobqueue.job import MAX_NAME_LENGTH, ClaimedJob, Job
from jobqueue.metrics import Metrics
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.storage.roles import Store
from jobqueue.storage.roles.schedule import DueSchedules, Move, MovedSchedules
from jobqueue.testing.memory_store import MemoryStore
from jobqueue.testing.memory_store.state import SECOND
from jobqueue.timetable import MAX_CRON_LENGTH, MISSED_AFTER, CronSchedule, Missed, Timetable, due, schedule_of
from tests.support import ROOT
from tests.support.command_line import run_jobqueue
from tests.support.failing_store import WAYS, FailingStore, Fault
from tests.support.postgres import Database
from tests.support.service import Service, Start
from tests.support.waiting import until, wait_for

pytestmark = pytest.mark.slow

BERLIN = "Europe/Berlin"
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()


def at(text: str) -> float:
    """Return the timestamp of a time in UTC, such as ``2026-03-29 01:00``."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def times(ticks: Sequence[float]) -> list[str]:
    return [f"{datetime.fromtimestamp(tick, UTC):%d. %H:%M}" for tick in ticks]


def schedule(name: str = "tick", cron: str = "* * * * * *", **fields: Any) -> CronSchedule:
    return schedule_of({"name": name, "cron": cron, **fields})


# ------------------------------------------------------------------------------------------------------- what an expression means


@pytest.mark.parametrize(
    ("cron", "day", "expected"),
    [
        # The clock is set forward from 02:00 to 03:00, at 01:00 UTC. Skipped times tick at once, and once.
        ("30 2 * * *", "2026-03-28 12:00", ["29. 01:00", "30. 00:30", "31. 00:30"]),
        ("15,45 2 * * *", "2026-03-28 12:00", ["29. 01:00", "30. 00:15", "30. 00:45"]),
        ("0 * * * *", "2026-03-28 23:30", ["29. 00:00", "29. 01:00", "29. 02:00"]),
        ("*/15 * * * *", "2026-03-29 00:40", ["29. 00:45", "29. 01:00", "29. 01:15"]),
        ("0 30 2 * * *", "2026-03-28 12:00", ["30. 00:30", "31. 00:30"]),  # six fields follow local time exactly
        # The clock is set back from 03:00 to 02:00, at 01:00 UTC. Repeated times tick once.
        ("30 2 * * *", "2026-10-24 12:00", ["25. 00:30", "26. 01:30", "27. 01:30"]),
        ("0 * * * *", "2026-10-24 23:30", ["25. 00:00", "25. 01:00", "25. 02:00"]),
        ("*/15 * * * *", "2026-10-25 00:40", ["25. 00:45", "25. 01:00", "25. 01:15"]),
        ("0 30 2 * * *", "2026-10-24 12:00", ["25. 00:30", "25. 01:30", "26. 01:30"]),
        # A search that begins in the second of the two hours finds nothing in the first.
        ("30 2 * * *", "2026-10-25 01:10", ["26. 01:30"]),
    ],
)
def test_days_on_which_the_clock_changes(cron: str, day: str, expected: list[str]) -> None:
    assert times(list(islice(Timetable(cron, BERLIN).all_after(at(day)), len(expected)))) == expected


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        (
            "*/20 * * * * *",
            ["2026-06-01T12:00:20", "2026-06-01T12:00:40", "2026-06-01T12:01:00"],
        ),  # the first of six fields is the second
        ("0 0 L * *", ["2026-06-30T00:00:00", "2026-07-31T00:00:00", "2026-08-31T00:00:00"]),
        ("0 9-10 * * MON#1", ["2026-07-06T09:00:00", "2026-07-06T10:00:00", "2026-08-03T09:00:00"]),
        ("0 0 13 * FRI", ["2026-06-05T00:00:00", "2026-06-12T00:00:00", "2026-06-13T00:00:00"]),  # either day field is enough
    ],
)
def test_fields_and_signs(cron: str, expected: list[str]) -> None:
    ticks = islice(Timetable(cron, "UTC").all_after(NOON), 3)
    assert [datetime.fromtimestamp(tick, UTC).replace(tzinfo=None).isoformat() for tick in ticks] == expected


CHANGES = {
    "Australia/Lord_Howe": ["2025-10-04", "2026-04-04", "1981-02-28", "1985-10-19"],  # half an hour; once a whole one
    "America/Caracas": ["2007-12-09", "2016-05-01"],  # half an hour, permanently
    "Asia/Kathmandu": ["1985-12-31"],  # from UTC+5:30 to UTC+5:45
    "Africa/Casablanca": ["2026-02-14", "2026-03-21"],  # set back for Ramadan
    "Pacific/Apia": ["2011-12-29", "2012-03-31"],  # a skipped day
    "Pacific/Kwajalein": ["1993-08-20"],  # another skipped day
    "Antarctica/Troll": ["2026-03-29", "2026-10-25"],  # two hours
    "Antarctica/Casey": ["2009-10-17", "2010-03-04"],  # three hours
    "Asia/Pyongyang": ["2015-08-14", "2018-05-04"],
    "Pacific/Chatham": ["2026-04-04", "2026-09-26"],  # at 2:45 and 3:45
    "America/St_Johns": ["1988-04-02", "2010-03-14", "2010-11-06"],  # at 0:01
    "America/Sao_Paulo": ["2017-10-14", "2018-02-17"],  # at midnight
    "Africa/Monrovia": ["1972-01-06"],  # 44 minutes and 30 seconds
    "America/Montevideo": ["1974-01-13", "1974-03-10"],  # an hour and a half, set back in two steps
    "Europe/London": ["1971-10-31", "2026-03-28"],
    "Asia/Gaza": ["2025-04-11"],
    "Africa/Cairo": ["2026-04-23", "2026-10-29"],
    "UTC": ["2026-03-29"],
    BERLIN: ["2026-03-28", "2026-10-24"],
}
"""Days on which the clock changes, or the days before."""

ODD_CRONS = [
    "15 2 * * *",
    "45 1,2,3 * * *",
    "0 0 * * *",
    "30 12 * * *",
    "*/20 * * * *",
    "7 * * * *",
    "* 2 * * *",
    "0-59/7 0-3 * * *",
    "0 15 2 * * *",
    "0 */10 0-4 * * *",
    "0 30 0 * * *",
    "59 23 * * *",
]


class Minutes:
    """A cron expression as the oracle reads it: numbers, ranges, steps, and stars for minutes and hours, on every day."""

    def __init__(self, cron: str) -> None:
        fields = cron.split()
        minute, hour = fields[-5], fields[-4]
        self.once_a_day = len(fields) == 5 and not minute.startswith("*") and not hour.startswith("*")
        self._minutes, self._hours = self._read(minute, 60), self._read(hour, 24)

    def match(self, wall: datetime) -> bool:
        return wall.minute in self._minutes and wall.hour in self._hours

    @staticmethod
    def _read(field: str, end: int) -> set[int]:
        found: set[int] = set()
        for term in field.split(","):
            span, _, step = term.partition("/")
            first, _, last = span.partition("-")
            begin, stop = (0, end) if first == "*" else (int(first), int(last or first) + 1)
            found.update(range(begin, stop)[:: int(step or 1)])
        return found


class HalfMinute(NamedTuple):
    """A half minute, with its local time and the whole minutes that the local clock has reached for the first time."""

    at: float
    wall: datetime
    reached: list[datetime]


def walk(zone: str, begin: float, end: float) -> list[HalfMinute]:
    """Return every half minute of a period."""
    tz = ZoneInfo(zone)
    found: list[HalfMinute] = []
    latest = datetime.fromtimestamp(begin - 30, tz).replace(tzinfo=None)
    for at in range(int(begin), int(end), 30):
        wall = datetime.fromtimestamp(at, tz).replace(tzinfo=None)
        reached: list[datetime] = []
        minute = latest.replace(second=0) + timedelta(minutes=1)
        while minute <= wall:
            reached.append(minute)
            minute += timedelta(minutes=1)
        found.append(HalfMinute(at, wall, reached))
        latest = max(latest, wall)
    return found


def oracle(cron: str, walked: list[HalfMinute]) -> list[float]:
    """Find ticks by comparing every half minute with the local time."""
    minutes = Minutes(cron)
    if minutes.once_a_day:
        return [half.at for half in walked if any(map(minutes.match, half.reached))]
    return [half.at for half in walked if half.wall.second == 0 and minutes.match(half.wall)]


@pytest.mark.parametrize("zone", CHANGES)
def test_ticks_are_those_of_a_walk_through_all_half_minutes(zone: str) -> None:
    for change in CHANGES[zone]:
        begin, end = at(change) - 86_400, at(change) + 3 * 86_400
        walked = walk(zone, begin, end)
        for cron in ODD_CRONS:
            expected = oracle(cron, walked)
            assert list(takewhile(end.__gt__, Timetable(cron, zone).all_after(begin - 1))) == expected, (cron, change)
            assert Timetable(cron, zone).latest(expected[0], end - 1) == expected[-1], (cron, change)


def test_a_daily_schedule_misses_no_day_when_the_clock_changes_by_half_an_hour() -> None:
    table = Timetable("15 2 * * *", "Australia/Lord_Howe")  # the half hour from 2:00 is skipped once a year
    days = [datetime.fromtimestamp(tick, ZoneInfo("Australia/Lord_Howe")).date() for tick in islice(table.all_after(NOON), 3_000)]
    assert [(later - earlier).days for earlier, later in pairwise(days)] == [1] * 2_999


def test_a_time_that_is_skipped_each_year_has_no_tick() -> None:
    with pytest.raises(InvalidSchedule, match="no tick in the next 50 years"):
        schedule(cron="0 30 2 * 3 7L", timezone=BERLIN)
    assert schedule(cron="30 2 * 3 7L", timezone=BERLIN)


CRONS = ["30 2 * * *", "15,45 2 * * *", "0-59 1-3 * * *", "*/15 * * * *", "0 * * * *", "0 30 2 * * *", "7 */6 * * *", "0 0 L * *"]


@given(
    cron=st.sampled_from(CRONS),
    zone=st.sampled_from([BERLIN, "America/New_York", "UTC", "Pacific/Apia", "America/Sao_Paulo"]),
    change=st.sampled_from(["2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2011-12-30", "2017-10-15"]),
    begin=st.floats(-2 * 86_400, 86_400),
    seconds=st.floats(0, 2 * 86_400),
)
def test_ticks_increase_and_latest_is_the_last_of_them(cron: str, zone: str, change: str, begin: float, seconds: float) -> None:
    table = Timetable(cron, zone)
    first = table.after(at(change) + begin)
    ticks = [first]
    for tick in table.all_after(first):
        if tick > first + seconds:
            break
        ticks.append(tick)
    assert all(earlier < later for earlier, later in pairwise(ticks))
    assert table.latest(first, first + seconds) == ticks[-1]
    assert all(table.after(earlier) == later for earlier, later in pairwise(ticks[:50])), "the start of the search does not matter"


@given(st.text(max_size=20) | st.text("0123456789*/-,#L W?MONFRI\t", min_size=9, max_size=30))
def test_every_text_is_a_valid_expression_or_is_rejected(cron: str) -> None:
    field: str | None = None
    try:
        assert Timetable(schedule(cron=cron).cron, BERLIN).after(NOON) > NOON
    except InvalidSchedule as error:
        field = error.field
    assert field in (None, "cron")


# ------------------------------------------------------------------------------------------------------------- what is due


@pytest.mark.parametrize(
    ("missed", "late", "expected"),
    [
        ("one", 10, [0]),
        ("skip", 10, [0]),
        ("all", 10, [0]),
        ("one", 3 * 3600 + 10, [3 * 3600]),
        ("skip", 3 * 3600 + 10, [3 * 3600]),
        ("skip", 3 * 3600 + MISSED_AFTER, [3 * 3600]),
        ("skip", 3 * 3600 + MISSED_AFTER + 0.1, []),
        ("one", 3 * 3600 + 1800, [3 * 3600]),
        ("all", 3 * 3600 + 1800, [0, 3600, 7200, 3 * 3600]),
    ],
)
def test_the_due_ticks_of_an_hourly_schedule(missed: Missed, late: float, expected: list[float]) -> None:
    ticks, next_at = due(Timetable("0 * * * *", "UTC"), missed, NOON, NOON + late, 100)
    assert [tick - NOON for tick in ticks] == expected
    assert next_at == NOON + (late // 3600 + 1) * 3600


def test_a_schedule_begins_with_the_first_tick_after_now() -> None:
    for missed in ("one", "skip", "all"):
        assert due(Timetable("0 * * * *", "UTC"), missed, None, NOON, 100) == ([], NOON + 3600)


def test_ticks_beyond_the_limit_remain_due_in_order() -> None:
    table, next_at, seen = Timetable("* * * * * *", "UTC"), NOON, []
    while next_at <= NOON + 1000:
        ticks, next_at = due(table, "all", next_at, NOON + 1000.5, 300)
        assert 1 <= len(ticks) <= 300
        seen += ticks
    assert seen == [NOON + second for second in range(1001)]


def test_a_year_of_missed_ticks_is_skipped_quickly() -> None:
    started = time.process_time()
    for missed in ("one", "skip", "all"):
        ticks, _ = due(Timetable("* * * * * *", BERLIN), missed, NOON, NOON + 365 * 86_400, 100)
        assert 1 <= len(ticks) <= 100
    assert time.process_time() - started < 10, "a search through all of them takes minutes"


# --------------------------------------------------------------------------------------------------------------- declarations


def declared(*decorators: Callable[[jobqueue.App], Callable[[Any], Any]]) -> list[CronSchedule]:
    """Return the schedules of an app with one function, which has these decorators. The last one is nearest to it."""
    app = jobqueue.App()

    async def function() -> None: ...

    for decorator in reversed(decorators):
        decorator(app)(function)
    return app.schedules


def periodic(cron: str = "* * * * *", **fields: Any) -> Callable[[jobqueue.App], Callable[[Any], Any]]:
    return lambda app: app.periodic(cron, **fields)


def handler(kind: str) -> Callable[[jobqueue.App], Callable[[Any], Any]]:
    return lambda app: app.handler(kind)


def refusal(*decorators: Callable[[jobqueue.App], Callable[[Any], Any]]) -> str:
    with pytest.raises(HandlerError) as refused:
        declared(*decorators)
    return str(refused.value)


def test_a_schedule_submits_the_kind_of_its_handler_in_whichever_order_they_are_written() -> None:
    for decorators in ([periodic(), handler("report")], [handler("report"), periodic()]):
        [one] = declared(*decorators)
        assert (one.name, one.kind, one.timezone, one.missed, bytes(one.payload)) == ("report", "report", "UTC", "one", b"{}")


def test_a_schedule_has_the_job_fields_of_a_submission() -> None:
    fields: dict[str, Any] = {"queue": "mail", "priority": 3, "max_retries": 0, "timeout": 2, "name": "n", "timezone": BERLIN}
    [one] = declared(periodic(payload={"to": "ä"}, missed="all", **fields), handler("report"))
    expected = {**fields, "timeout": 2.0, "cron": "* * * * *", "missed": "all", "kind": "report", "payload": '{"to":"ä"}'.encode()}
    assert {**msgspec.structs.asdict(one), "payload": bytes(one.payload)} == expected


def test_a_schedule_may_name_a_kind_without_a_function_and_one_kind_may_have_several() -> None:
    app = jobqueue.App()
    app.periodic("0 3 * * *", kind="report")
    app.periodic("0 4 * * 1", kind="report", name="weekly report")
    assert [(one.name, one.kind) for one in app.schedules] == [("report", "report"), ("weekly report", "report")]
    with pytest.raises(HandlerError, match="'report' is already declared"):
        app.periodic("0 5 * * *", kind="report")


def test_an_ambiguous_kind_is_rejected() -> None:
    assert "several kinds (b, a): pass kind=" in refusal(periodic(), handler("a"), handler("b"))
    assert len(declared(periodic(kind="a"), handler("a"), handler("b"))) == 1
    assert "has no kind" in refusal(periodic())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cron": "61 * * * *"}, "Bad minute"),
        ({"cron": "* * * *"}, "five fields"),
        ({"cron": "@daily"}, "five fields"),
        ({"cron": "0 0 30 2 *"}, "Bad day-of-month"),
        ({"cron": "* * */20 * 1L"}, "has no tick in the next 50 years"),
        ({"cron": ""}, "cron must be"),
        ({"cron": None}, "cron must be"),
        ({"cron": "*" * (MAX_CRON_LENGTH + 1)}, f"cron must be a string of 1 to {MAX_CRON_LENGTH}"),
        ({"timezone": "Mars/Phobos"}, "timezone 'Mars/Phobos' is unknown"),
        ({"timezone": "Europe"}, "is unknown"),
        ({"timezone": "../../etc/passwd"}, "is unknown"),
        ({"timezone": "x\0"}, "timezone must be"),
        ({"missed": "some"}, 'missed must be one of "one", "skip" and "all"'),
        ({"priority": -1}, "priority must be"),
        ({"priority": True}, "priority must be"),
        ({"max_retries": 1_001}, "max_retries must be"),
        ({"timeout": 0}, "timeout must be"),
        ({"queue": ""}, "queue must be"),
        ({"queue": "a\0"}, "queue must be"),
        ({"kind": ""}, "kind must be"),
        ({"name": ""}, "name must be"),
        ({"name": "n" * (MAX_NAME_LENGTH + 1)}, f"name must be a string of 1 to {MAX_NAME_LENGTH}"),
        ({"payload": "\0"}, "payload cannot be stored"),
        ({"payload": float("nan")}, "payload cannot be stored"),
        ({"payload": "x" * (1 << 20)}, "payload cannot be stored: it has 1048578 bytes"),
    ],
)
def test_an_invalid_schedule_is_rejected_at_its_declaration(fields: dict[str, Any], reason: str) -> None:
    for kind in ({"kind": "report"}, {}):  # also where its kind is not known yet
        if kind or "kind" not in fields:
            assert reason in refusal(periodic(**{"cron": "* * * * *", **kind, **fields}))


def test_schedules_at_the_limits_are_accepted() -> None:
    cron = "0," * ((MAX_CRON_LENGTH - 8) // 2)
    [one] = declared(periodic(f"{cron}00 * * * *"[-MAX_CRON_LENGTH:].strip(","), name="n" * MAX_NAME_LENGTH, kind="k"))
    assert len(one.cron) >= MAX_CRON_LENGTH - 1
    app = jobqueue.App()
    for number in range(MAX_SCHEDULES):
        app.periodic("* * * * *", kind="k", name=str(number))
    assert len(app.schedules) == MAX_SCHEDULES
    with pytest.raises(HandlerError, match=f"at most {MAX_SCHEDULES} schedules"):
        app.periodic("* * * * *", kind="k")


def test_a_handler_receives_the_time_of_its_tick() -> None:
    claimed = ClaimedJob("q", "id", "kind", msgspec.Raw(b"{}"), 0, 1, 1, 3, None, NOON, NOON, 0.0)
    assert Job.from_claim(claimed).scheduled_for is None
    options = jobqueue.job.Options(schedule="s", scheduled_for=NOON)
    assert Job.from_claim(msgspec.structs.replace(claimed, options=options)).scheduled_for == datetime(2026, 6, 1, 12, tzinfo=UTC)


# ------------------------------------------------------------------------------------------------------------------ the stage


class Clocked(MemoryStore):
    """A store whose clock starts at noon of a day in June. It records queries, and fails on request."""

    def __init__(self) -> None:
        super().__init__(trio.current_time)
        self._began = NOON - trio.current_time()
        self.looks: list[float] = []
        self.failing = False
        self.refused: set[str] = set()
        self.transactions: list[int] = []

    async def due_schedules(self) -> DueSchedules:
        self.looks.append(trio.current_time())
        if self.failing:
            raise DatabaseUnavailable("as told")
        return await super().due_schedules()

    async def move_schedules(self, moves: Sequence[Move]) -> MovedSchedules:
        if any(move.ticks and move.name in self.refused for move in moves):
            raise RefusedData("as told")
        self.transactions.append(sum(len(move.ticks) for move in moves))
        return await super().move_schedules(moves)

    def ticks(self, name: str = "tick") -> list[float]:
        """Return the ticks with a job, in seconds since noon."""
        jobs = [row["options"]["scheduled_for"] - NOON for row in self.snapshot() if row["options"]["schedule"] == name]
        return sorted(jobs)

    def lateness(self) -> list[float]:
        return [datetime.fromisoformat(row["created_at"]).timestamp() - row["options"]["scheduled_for"] for row in self.snapshot()]


def cron_of(store: Store, source: str | None = None, *schedules: CronSchedule, metrics: Metrics | None = None) -> Cron:
    return Cron(store, metrics or Metrics(), Signals(), source=source, declared=schedules)


async def test_every_tick_has_its_job_on_time(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Clocked()
    cron = cron_of(store, "mine", schedule(), schedule("minutely", "* * * * *"))
    await cron.reconcile()
    await nursery.start(cron.run)
    await trio.sleep(300.5)
    assert store.ticks() == list(range(1, 301))
    assert store.ticks("minutely") == [60, 120, 180, 240, 300]
    assert max(store.lateness()) < 0.01


async def test_no_node_reads_its_local_clock(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert autojump_clock is not None
    store = Clocked()

    def asked(*_: object) -> NoReturn:
        raise AssertionError("a node's clock was asked")

    metrics = Metrics()
    metrics.of("default", "tick")  # a new counter reads the clock

    class Clock(datetime):
        now = utcnow = today = asked

    monkeypatch.setattr(timetable, "datetime", Clock)
    for name in ("time", "time_ns", "localtime", "gmtime"):
        monkeypatch.setattr(time, name, asked)
    await store.put_schedule(schedule(cron="*/10 * * * * *", timezone=BERLIN))
    await nursery.start(cron_of(store, metrics=metrics).run)
    await trio.sleep(30.5)
    assert store.ticks() == [10, 20, 30]
    assert metrics.totals().submitted == 3
    nursery.cancel_scope.cancel()


async def test_an_idle_node_rarely_queries_schedules(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Clocked()
    cron = cron_of(store)
    await nursery.start(cron.run)
    await trio.sleep(3600)
    assert len(store.looks) <= 3600 / LOOK_INTERVAL + 1
    await store.put_schedule(schedule(cron="0 3 * * *"))
    cron.look()
    before = len(store.looks)
    await trio.sleep(3600)
    assert len(store.looks) - before <= 3600 / LOOK_INTERVAL + 3


async def test_a_change_is_seen_when_notified_or_at_the_next_poll(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Clocked()
    cron = cron_of(store)
    await nursery.start(cron.run)
    await trio.sleep(1.5)
    await store.put_schedule(schedule())
    cron.look()
    await trio.sleep(1)
    assert store.ticks() == [2]
    await store.unschedule("tick")
    await trio.sleep(30)
    assert store.ticks() == [2]
    await store.put_schedule(schedule())
    await trio.sleep(LOOK_INTERVAL + 1)
    assert len(store.ticks()) > 1


async def test_after_an_outage_missed_ticks_follow_the_policy_of_each_schedule(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    store = Clocked()
    for missed in ("one", "skip", "all"):
        await store.put_schedule(schedule(missed, missed=missed))
    await nursery.start(cron_of(store).run)
    await trio.sleep(2.5)
    store.failing = True
    await trio.sleep(100)
    store.failing = False
    await trio.sleep(RETRY_INTERVAL + 2)
    assert store.ticks("all") == list(range(1, 106))
    back = min(tick for tick in store.ticks("one") if tick > 2)
    assert back in (102, 103)
    assert store.ticks("one") == [1, 2, *range(int(back), 106)]
    assert len(store.ticks("skip")) == pytest.approx(2 + MISSED_AFTER + 3, abs=2)


async def test_a_backlog_is_worked_off_in_transactions_of_bounded_size(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Clocked()
    await store.put_schedule(schedule(missed="all"))
    await store.put_schedule(schedule("other", missed="all"))
    cron = cron_of(store)
    with trio.CancelScope() as scope:
        await nursery.start(cron.run)
        await trio.sleep(0.5)
        store.failing = True
        await trio.sleep(5000)
        store.failing = False
        await trio.sleep(RETRY_INTERVAL + 0.6)
        scope.cancel()
    assert store.ticks() == store.ticks("other")
    assert store.ticks() == list(range(1, len(store.ticks()) + 1))
    assert len(store.ticks()) >= 5000
    assert max(store.transactions) == TICKS_PER_TRANSACTION


async def test_an_unreadable_schedule_is_logged_once_and_does_not_affect_others(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    store = Clocked()
    fields = msgspec.structs.asdict(schedule())
    for name, wrong in {"bad cron": {"cron": "x"}, "bad zone": {"timezone": "x"}}.items():
        await store.put_schedule(CronSchedule(**{**fields, "name": name, **wrong}))
    await store.put_schedule(schedule())
    store.refused = {"refused"}
    await store.put_schedule(schedule("refused"))
    with structlog.testing.capture_logs() as logs:
        await nursery.start(cron_of(store).run)
        await nursery.start(cron_of(store).run)
        await trio.sleep(100.5)
    errors = {row.name: row.error for row in await store.schedules()}
    assert "five fields" in errors["bad cron"]
    assert errors["bad zone"] == "timezone 'x' is unknown: use an IANA name such as Europe/Berlin"
    assert errors["refused"] == "as told"
    assert store.ticks() == list(range(1, 101))
    told = Counter(line["schedule"] for line in logs if line["log_level"] == "error")
    assert told == {"bad cron": 1, "bad zone": 1, "refused": 1}


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
async def test_failing_calls_neither_lose_nor_duplicate_ticks(
    ways: Sequence[Fault], autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    assert autojump_clock is not None
    stores = []
    for first in range(1, 12):
        store = Clocked()
        await store.put_schedule(schedule(missed="all"))
        await nursery.start(cron_of(FailingStore(store, first, ways)).run)  # type: ignore[arg-type]
        stores.append(store)
    await trio.sleep(30.5)
    for store in stores:  # the first tick follows the first query that succeeds
        assert_one_job_each(store.ticks())
        assert store.ticks()[-1] == 30
        assert len(store.ticks()) >= 30 - len(ways)


async def test_a_time_outside_the_calendar_does_not_stop_a_node(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    assert autojump_clock is not None
    store = Clocked()
    await store.put_schedule(schedule())
    store._schedules["tick"].next_at = -(10**6) * 365 * 86_400 * SECOND
    await nursery.start(cron_of(store).run)
    await trio.sleep(1)
    [row] = [one.error for one in store._schedules.values()]
    assert row is not None
    assert "cannot be computed" in row


# ---------------------------------------------------------------------------------------------------- many nodes, one database


class DatabaseClock:
    """The clock of one database, which a test can set and speed up. It replaces PostgreSQL's clock functions in the catalog.

    Create it before the schema, whose defaults keep the functions that exist when it is created.
    """

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("""
            CREATE SCHEMA clock;
            CREATE TABLE clock.setting (began timestamptz, shown timestamptz, speed double precision);
            INSERT INTO clock.setting VALUES (now(), now(), 1);
            SET allow_system_table_mods = on;
            ALTER FUNCTION pg_catalog.now() RENAME TO real_now;
            ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO real_clock_timestamp;
            CREATE FUNCTION pg_catalog.now() RETURNS timestamptz LANGUAGE sql STABLE AS
                'SELECT shown + (real_now() - began) * speed FROM clock.setting';
            CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
                'SELECT shown + (real_clock_timestamp() - began) * speed FROM clock.setting';
        """)

    def set(self, moment: str, *, speed: float = 1) -> None:
        """Set the clock to a time in UTC."""
        sql = "UPDATE clock.setting SET began = real_clock_timestamp(), shown = %s, speed = %s"
        self._connection.execute(sql, (f"{moment}+00", speed))

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def clock(database_url: str) -> Iterator[DatabaseClock]:
    made = DatabaseClock(database_url)
    yield made
    made.close()


def ticks_of(database: Database, name: str = "tick") -> list[float]:
    """Return the ticks of a schedule in order, one per job."""
    sql = "SELECT (options ->> 'scheduled_for')::float8 FROM jobqueue.jobs WHERE options ->> 'schedule' = %s ORDER BY 1"
    return [tick for (tick,) in database.rows(sql, name)]


def assert_one_job_each(ticks: Sequence[float], step: float = 1) -> None:
    assert ticks, "no tick at all"
    assert ticks == [ticks[0] + step * number for number in range(len(ticks))]


async def test_each_tick_has_one_job_however_many_nodes_race_for_it(
    clock: DatabaseClock, database_url: str, database: Database
) -> None:
    """Six nodes compete as fast as they can, while the database's clock runs 60 times as fast."""
    stores = [PostgresStore(database_url) for _ in range(6)]
    await stores[0].migrate()
    won: Counter[int] = Counter()
    for name in ("tick", "other"):
        await stores[0].put_schedule(schedule(name, missed="all"))
    clock.set("2026-06-01 12:00", speed=60)

    over = False

    async def race(number: int) -> None:
        cron = cron_of(stores[number])
        cron._signals.jobs_available.subscribe(lambda _: won.update([number]))
        while not over:
            await cron._tick()

    async with trio.open_nursery() as nursery:
        for number in range(len(stores)):
            nursery.start_soon(race, number)
        await trio.sleep(4)
        await until(lambda: len(won) > 1 and min(len(ticks_of(database, name)) for name in ("tick", "other")) > 100)
        over = True
    for store in stores:
        await store.aclose()
    for name in ("tick", "other"):
        ticks = ticks_of(database, name)
        assert_one_job_each(ticks)
        assert len(ticks) > 100
    assert len(won) > 1, "one node created all jobs: the nodes did not compete"


async def test_a_schedule_in_an_open_transaction_does_not_delay_others(database_url: str, database: Database) -> None:
    store = PostgresStore(database_url)
    await store.migrate()
    await store.put_schedule(schedule("held", missed="all"))
    await store.put_schedule(schedule(missed="all"))
    async with trio.open_nursery() as nursery:
        await nursery.start(cron_of(store).run)
        await until(lambda: len(ticks_of(database, "held")) > 0)
        with psycopg.connect(database_url) as somebody:
            somebody.execute("SELECT jobqueue.schedule('held', '* * * * * *', missed => 'all')")
            held, others = len(ticks_of(database, "held")), len(ticks_of(database))
            await until(lambda: len(ticks_of(database)) >= others + 3)
            assert len(ticks_of(database, "held")) <= held + 1
        await until(lambda: len(ticks_of(database, "held")) > held + 3)
        nursery.cancel_scope.cancel()
    await store.aclose()
    assert_one_job_each(ticks_of(database, "held"))
    assert_one_job_each(ticks_of(database))


async def test_a_node_starts_while_a_transaction_locks_its_schedules(database_url: str, database: Database) -> None:
    store = PostgresStore(database_url)
    await store.migrate()
    await cron_of(store, "mine", schedule(payload={"a": None}, max_retries=None, timeout=2)).reconcile()
    with psycopg.connect(database_url) as somebody, trio.fail_after(60):
        somebody.execute("SELECT jobqueue.schedule('tick', '0 * * * *')")
        declared = [schedule(payload={"a": None}, timeout=2), schedule("new")]
        await cron_of(store, "mine", *declared).reconcile()
        somebody.rollback()
    await store.aclose()
    assert names(database) == ["new", "tick"]


# ---------------------------------------------------------------------------------------------------------------- the service


HEADER = """
import os
import jobqueue

app = jobqueue.App()

def effect(job):
    with open(os.environ["EFFECTS"], "a", encoding="utf-8") as file:
        file.write(f"{job.kind} {job.scheduled_for and job.scheduled_for.isoformat()}\\n")
"""

EVERY_SECOND = """
@app.periodic("* * * * * *", missed="all")
@app.handler("tick")
async def tick(job):
    effect(job)
"""


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    path = tmp_path / "effects"
    path.touch()
    return path


@pytest.fixture
def start(service: Start, tmp_path: Path, effects: Path) -> Start:
    """Start a node whose handlers are in a module with this code and this name."""

    def start(code: str, *arguments: str, module: str = "myjobs") -> Service:
        (tmp_path / f"{module}.py").write_text(HEADER + code, encoding="utf-8")
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return service(module, *arguments, env={"PYTHONPATH": path, "EFFECTS": str(effects), "PYTHONDONTWRITEBYTECODE": "1"})

    return start


def names(database: Database) -> list[str]:
    return [name for (name,) in database.rows("SELECT name FROM jobqueue_internal.schedules ORDER BY name")]


def test_each_tick_has_one_job_whichever_node_is_killed(start: Start, database: Database, effects: Path) -> None:
    long = ["--visibility-timeout", "600"]
    first, second = start(EVERY_SECOND, *long), start(EVERY_SECOND, *long)
    wait_for(lambda: len(ticks_of(database)) >= 3, "the first ticks")
    first.kill()
    ticks = len(ticks_of(database))
    wait_for(lambda: len(ticks_of(database)) >= ticks + 2, "ticks without the killed node")
    third = start(EVERY_SECOND, *long)
    ticks = len(ticks_of(database))
    wait_for(lambda: len(ticks_of(database)) >= ticks + 2, "ticks with a new one")
    assert second.stop() == 0
    ticks = len(ticks_of(database))
    wait_for(lambda: len(ticks_of(database)) >= ticks + 2, "ticks of the new one alone")
    assert third.stop() == 0
    assert_one_job_each(ticks_of(database))
    late = database.value(
        "SELECT max(extract(epoch FROM created_at) - (options ->> 'scheduled_for')::float8)::float8 FROM jobqueue.jobs"
    )
    assert 0 <= late < 60, "ticks do not wait until the lease of the killed node has expired"
    kind, scheduled_for = effects.read_text().splitlines()[0].split()
    assert (kind, datetime.fromisoformat(scheduled_for).timestamp()) == ("tick", ticks_of(database)[0])


def test_a_schedule_is_deleted_with_its_declaration(start: Start, database: Database) -> None:
    both = EVERY_SECOND + 'app.periodic("0 3 * * *", kind="tick", name="nightly")\n'
    node = start(both)
    database.rows("SELECT jobqueue.schedule('from SQL', '0 4 * * *', kind => 'tick')")
    assert names(database) == ["from SQL", "nightly", "tick"]
    assert start('app.periodic("0 5 * * *", kind="tick", name="theirs")', "--no-workers", module="others").stop() == 0
    node.stop()
    node = start(EVERY_SECOND.replace("* * * * * *", "0 6 * * *"))
    assert names(database) == ["from SQL", "theirs", "tick"]
    rows = dict(database.rows("SELECT name, source FROM jobqueue_internal.schedules"))
    assert rows == {"from SQL": None, "theirs": "others", "tick": "myjobs"}
    wait_for(
        lambda: database.value("SELECT next_at IS NOT NULL FROM jobqueue_internal.schedules WHERE name = 'tick'"), "the next tick"
    )
    assert (
        database.value("SELECT extract(hour FROM next_at AT TIME ZONE 'UTC') FROM jobqueue_internal.schedules WHERE name = 'tick'")
        == 6
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            'app.periodic("0 5 * * *", kind="tick", name="from SQL")',
            "'from SQL' of myjobs already exists, and it was created over HTTP or SQL",
        ),
        ('app.periodic("0 5 * * *", kind="tick", name="theirs")', "'theirs' of myjobs already exists, and it belongs to others:"),
        ('app.periodic("0 25 * * *", kind="tick")', "cron expression '0 25 * * *' is invalid: Bad hour"),
        ('@app.periodic("0 5 * * *")\nasync def no_handler(): ...', "the schedule '0 5 * * *' of no_handler has no kind"),
    ],
)
def test_a_node_with_an_invalid_schedule_does_not_start(
    code: str, reason: str, start: Start, database: Database, tmp_path: Path
) -> None:
    start('app.periodic("0 5 * * *", kind="tick", name="theirs")', module="others").stop()
    database.rows("SELECT jobqueue.schedule('from SQL', '0 4 * * *')")
    (tmp_path / "myjobs.py").write_text(HEADER + code, encoding="utf-8")
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    ended = run_jobqueue("serve", "myjobs", "--port", "0", "--database-url", database.url, env=env)
    assert ended.returncode == 1
    assert reason in ended.stderr.splitlines()[-1]
    assert names(database) == ["from SQL", "theirs"]


def test_the_databases_clock_decides_on_a_day_without_half_past_two(
    start: Start, clock: DatabaseClock, database: Database, effects: Path
) -> None:
    clock.set("2026-03-29 00:30")
    start('@app.periodic("30 2 * * *", timezone="Europe/Berlin")\n@app.handler("nightly")\nasync def nightly(job): effect(job)')
    wait_for(lambda: database.value("SELECT count(next_at) FROM jobqueue_internal.schedules") == 1, "the tick is computed")
    assert ticks_of(database, "nightly") == []
    clock.set("2026-03-29 00:59:59")
    database.value("SELECT jobqueue_internal.tell_of_schedules()")
    wait_for(lambda: effects.read_text() != "", "the job ran")
    assert effects.read_text() == "nightly 2026-03-29T01:00:00+00:00\n"
    assert ticks_of(database, "nightly") == [at("2026-03-29 01:00")]
    assert database.value("SELECT next_at FROM jobqueue_internal.schedules") == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)


def test_after_a_time_without_nodes_missed_ticks_follow_the_policy(start: Start, clock: DatabaseClock, database: Database) -> None:
    code = "\n".join(f'app.periodic("0 * * * *", kind="k", name="{name}", missed="{name}")' for name in ("one", "skip", "all"))
    clock.set("2026-06-01 12:30")
    node = start(code, "--no-workers")
    wait_for(lambda: database.value("SELECT count(next_at) FROM jobqueue_internal.schedules") == 3, "the first ticks are computed")
    node.stop()
    clock.set("2026-06-01 16:10")
    start(code, "--no-workers")
    sql = "SELECT count(*) FROM jobqueue_internal.schedules WHERE next_at = '2026-06-01 17:00+00'"
    wait_for(lambda: database.value(sql) == 3, "all are up to date")
    hour = at("2026-06-01 13:00")
    assert ticks_of(database, "one") == [hour + 3 * 3600]
    assert ticks_of(database, "skip") == []
    assert ticks_of(database, "all") == [hour, hour + 3600, hour + 7200, hour + 3 * 3600]


def test_setting_the_clock_back_repeats_no_tick(start: Start, clock: DatabaseClock, database: Database) -> None:
    clock.set("2026-06-01 11:59:58")
    node = start('app.periodic("* * * * * *", kind="k", name="tick", missed="all")', "--no-workers")
    wait_for(lambda: len(ticks_of(database)) >= 4, "some ticks")
    clock.set(database.value("SELECT (now() AT TIME ZONE 'UTC' - interval '6 seconds')::text"))
    ticks = len(ticks_of(database))
    wait_for(lambda: len(ticks_of(database)) >= ticks + 2, "the ticks continue once the clock has caught up")
    node.stop()
    assert_one_job_each(ticks_of(database))


def test_schedules_over_http(start: Start, database: Database) -> None:
    # The node does not poll the schedules, so it learns of each change from a notification.
    unpolled = "from jobqueue.engine import cron\ncron.LOOK_INTERVAL = 3600\n"
    node = start(unpolled + "@app.handler('k')\nasync def k(job): effect(job)")
    with httpx.Client(base_url=node.url, timeout=60) as client:
        assert client.get("/schedules").json() == []
        body = {"cron": "*/5 * * * *", "timezone": BERLIN, "missed": "skip", "kind": "k", "payload": {"n": [1]}, "priority": 2}
        made = client.put("/schedules/a%2Fb ä", json=body)
        assert made.status_code == 201
        assert made.json()["name"] == "a/b ä"
        assert body.items() <= made.json().items()
        assert client.put("/schedules/a%2Fb ä", json=body).status_code == 200
        wait_for(lambda: client.get("/schedules/a%2Fb ä").json()["next_at"] is not None, "a node has computed the next tick")
        [shown] = client.get("/schedules").json()
        assert (shown["last_at"], shown["paused"], shown["source"], shown["error"]) == (None, False, None, None)

        assert client.post("/schedules/a%2Fb ä/pause").json()["paused"] is True
        triggered = client.post("/schedules/a%2Fb ä/trigger")
        assert triggered.status_code == 201
        job_id = triggered.json()["id"]
        assert triggered.headers["Location"] == f"/jobs/{job_id}"
        wait_for(lambda: client.get(f"/jobs/{job_id}").json()["state"] == "succeeded", "the job succeeds")
        job = client.get(f"/jobs/{job_id}").json()
        assert (job["payload"], job["options"]) == ({"n": [1]}, {"schedule": "a/b ä"})
        assert client.post("/schedules/a%2Fb ä/resume").json()["paused"] is False

        every_second = {**body, "cron": "* * * * * *", "missed": "all"}
        client.put("/schedules/a%2Fb ä", json=every_second)
        wait_for(lambda: len(ticks_of(database, "a/b ä")) > 0, "a tick of the changed schedule")
        assert client.delete("/schedules/a%2Fb ä").status_code == 200
        for method, path in [
            ("GET", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/trigger")
        ]:  # fmt: skip
            answer = client.request(method, f"/schedules/a%2Fb ä{path}")
            assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/problem+json")
        for name in ("n" * 201, "a%00"):
            answer = client.get(f"/schedules/{name}")
            assert (answer.status_code, answer.json()["field"]) == (400, "name")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "cron"),
        ({"cron": 5}, "cron"),
        ({"cron": "* * * * *", "missed": None}, "missed"),
        ({"cron": "* * * * *", "priority": 1.5}, "priority"),
        ({"cron": "* * * * *", "timezoen": "UTC"}, "timezoen"),
        ('{"cron": "* * * * *", "cron": "* * * * *"}', "cron"),
        ('{"cron": "* * * * *", "payload": NaN}', None),
        ('{"cron": "* * * * *", "payload": 1e999}', None),
        ("[1]", None),
        ("x", None),
        ("[" * 100_000, None),
        (b"\xff", None),
    ],
)
def test_an_invalid_schedule_body_is_rejected_with_its_field(body: Any, field: str | None) -> None:
    assert refused(body) == (400, "urn:jobqueue:invalid-schedule", field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"cron": "* * * * *", "timezone": "x"}, "timezone"),
        ({"cron": "* * * * *", "name": "another"}, "name"),
        ({"cron": "* * * * *", "payload": ["\0"]}, "payload"),
        ({"cron": "* * * * *", "payload": "x" * (1 << 20)}, "payload"),
    ],
)
def test_a_well_formed_but_impossible_schedule_is_unprocessable(body: Any, field: str) -> None:
    assert refused(body) == (422, "urn:jobqueue:unprocessable-schedule", field)


def test_a_body_over_the_size_limit_is_not_parsed() -> None:
    assert refused("[" * (2 << 20)) == (413, "about:blank", None)


def refused(body: Any) -> tuple[int, str, str | None]:
    from jobqueue.http.resources import schedules  # noqa: PLC0415 - the code of the routes, without a server for each case
    from jobqueue.http.responses import problems  # noqa: PLC0415 - the code of the routes, without a server for each case

    content = json.dumps(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    with pytest.raises((InvalidSchedule, RequestEntityTooLarge)) as refused:
        schedules.schedule_named("tick", schedules.BODY.read("application/json", content))
    answer = problems.answer(refused.value)
    problem = json.loads(answer.body)
    return answer.status, problem["type"], problem.get("field")


def test_a_rejection_over_http_is_a_problem_and_changes_nothing(start: Start, database: Database) -> None:
    node = start("", "--no-workers")
    answer = httpx.put(f"{node.url}/schedules/x", json={"cron": "* * * * *", "timezone": "Mars/Phobos"}, timeout=60)
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert (answer.json()["field"], answer.json()["title"]) == ("timezone", "The schedule cannot be accepted")
    answer = httpx.put(f"{node.url}/schedules/{'n' * 201}", json={"cron": "* * * * *"}, timeout=60)
    assert (answer.status_code, answer.json()["field"]) == (400, "name")
    assert httpx.put(f"{node.url}/schedules/{'n' * 200}", json={"cron": "0 0 1 1 *"}, timeout=60).status_code == 201
    assert [len(name) for name in names(database)] == [200]


def test_schedules_from_sql(start: Start, database: Database) -> None:
    node = start(EVERY_SECOND.replace("* * * * * *", "0 0 1 1 *"))
    assert (
        database.value("SELECT jobqueue.schedule('sql', '* * * * * *', kind => 'tick', payload => '[1]', missed => 'all')") is True
    )
    assert database.value("SELECT jobqueue.schedule('wrong', 'every day')") is True
    wait_for(lambda: len(ticks_of(database, "sql")) >= 2, "ticks")
    wait_for(lambda: "a schedule has no next tick" in node.log, "the invalid schedule is logged")
    [(error, next_at, kind)] = database.rows("SELECT error, next_at, kind FROM jobqueue_internal.schedules WHERE name = 'wrong'")
    assert "cron expression 'every day' is invalid" in error
    assert (next_at, kind) == (None, "wrong")
    assert node.log.count("a schedule has no next tick") == 1
    assert database.value("SELECT jobqueue.schedule('wrong', '* * * * * *', kind => 'tick')") is False
    wait_for(lambda: len(ticks_of(database, "wrong")) >= 1, "a tick of the corrected schedule")
    assert database.value("SELECT jobqueue.unschedule('sql')") is True
    assert database.value("SELECT jobqueue.unschedule('sql')") is False
    assert database.value("SELECT jobqueue.pause_schedule('wrong')") is True
    ticks = ticks_of(database, "wrong")
    before = database.value("SELECT now()")
    with psycopg.connect(database.url, autocommit=True) as somebody:
        for wrong in ("'', '* * * * *'", "'x', ''", "'x', '* * * * *', missed => 'some'", "'x', '* * * * *', priority => -1"):
            with pytest.raises(psycopg.errors.CheckViolation):
                somebody.execute(f"SELECT jobqueue.schedule({wrong})".encode())
    wait_for(lambda: database.value("SELECT now()") > before + timedelta(seconds=1.5), "enough time for a tick")
    assert ticks_of(database, "wrong") == ticks
