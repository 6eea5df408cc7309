"""SQL rejects the same input as HTTP, with the same message and field. A node can read everything that SQL accepts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import psycopg
import pytest
import trio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql as quoting

import jobqueue
from jobqueue import documents
from jobqueue.client.requests import below
from jobqueue.concurrency.stages import Stages
from jobqueue.errors import InvalidFilter, InvalidJob, InvalidPath, SettingsError
from jobqueue.fields import must_be, read
from jobqueue.http.api.routes import path_value
from jobqueue.http.bodies import jobs as bodies
from jobqueue.http.resources import filters
from jobqueue.http.resources.job_lists import CancelFilter
from jobqueue.job import Submission
from jobqueue.job_filters import DeadFilter, JobFilter
from jobqueue.queue_settings import QueueSettings, queue_settings
from jobqueue.settings import Settings
from jobqueue.storage.postgres.store import PostgresStore
from jobqueue.timetable import CronSchedule, schedule_of
from tests.support.nodes import running_node
from tests.support.postgres import SERVERS, Database, ServerPool
from tests.support.storage import Driver, new_id, open_driver

pytestmark = pytest.mark.slow

Verdict = tuple[str, str | None] | None
"""The message and field of a rejection; None for an accepted value."""

WRONG_TYPES: list[Any] = [True, 5, 1.5, "5", [], {}, [1], {"a": 1}]

NAMES = ["a", "x" * 200, "..." * 5, "\N{SNOWMAN}" * 200, "a/b", " ", None, "", "x" * 201, "\N{SNOWMAN}" * 201]
PATH_NAMES = [*NAMES, ".", "..", "...", ".a", ".\n", "a\n"]
INSTANTS = [
    "2030-01-31T08:00:00Z",
    "2030-01-31t08:00:00.123456789z",
    "2030-01-31 23:59:59.9999999+0530",
    "2028-02-29T00:00:00-00:00",
    "2030-01-31T08:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "2030-01-31T08:00:00",
    "2030-01-31T08:00Z",
    "2030-01-31T08:00:00+01",
    "2030-01-31T08:00:00+24:00",
    "2030-01-31T08:00:00+23:60",
    "2030-01-31T08:00:60Z",
    "2030-01-31T24:00:00Z",
    "2030-02-29T08:00:00Z",
    "2030-13-01T08:00:00Z",
    "2030-04-31T08:00:00Z",
    "0000-01-01T00:00:00Z",
    "10000-01-01T00:00:00Z",
    "294276-12-31T00:00:00Z",
    "2030-01-31T08:00:00 Z",
    "2030-01-31T08:00:00.Z",
    "31.01.2030 08:00:00Z",
    "20300131T080000Z",
    "infinity",
    "-infinity",
    "tomorrow",
    "",
    None,
]
DELAYS = [0, 0.5, 315_360_000, 315_360_000.5, -0.001, -1, 1e300, None]
PAYLOADS = [
    {},
    None,
    0,
    "text",
    [1, [2, {"a": None}]],
    1e20,
    10**20,
    2**64 - 1,
    2**64,
    -(2**63),
    -(2**63) - 1,
    10**20 + 1,
    12345678901234566 * 10**9,
    12345678901234567 * 10**9,
    123456789012345678 * 10**8,
    int(1e308),
    10**308,
    10**309,
    1.7976931348623157e308,
    {"deep": [10**25, [12345678901234567 * 10**10]]},
]

JOBS: dict[str, list[Any]] = {
    "kind": NAMES,
    "payload": PAYLOADS,
    "queue": PATH_NAMES,
    "priority": [0, 0.0, 5.0, 1_000_000, 1_000_001, -1, 0.5, 10**30, None],
    "max_retries": [0, 1_000, 1_000.0, 1_001, -1, 0.5, None],
    "run_at": ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", *INSTANTS],
    "delay": DELAYS,
    "timeout": [0.001, 604_800, 604_800.5, 0, -1, None],
    "expires_at": INSTANTS,
    "expires_in": [1e-3, *DELAYS[1:]],
    "group": NAMES,
    "weight": [0.001, 1_000, 0.0009, 1_000.1, 0, None],
    "concurrency_key": NAMES,
    "unique": [True, False, None],
    "unique_key": NAMES,
    "idempotency_key": NAMES,
    "traceparent": ["", "malformed", "x" * 1000, None],
    "tracestate": ["", "x" * 1000, None],
}
"""For each field of a job: values on both sides of each limit. Values of other types are added to them."""


def http(submit: Callable[[], object]) -> Verdict:
    try:
        submit()
    except InvalidJob as error:
        return str(error), error.field
    return None


def refusal(connection: psycopg.Connection[Any], statement: str, *params: Any) -> Verdict:
    """Run a statement in a transaction that is rolled back. Only errors of jobqueue's functions count as a verdict."""
    try:
        connection.execute(statement.encode(), params)
    except psycopg.errors.CheckViolation as error:
        return ours(error)
    finally:
        connection.rollback()
    return None


def ours(error: psycopg.errors.CheckViolation) -> tuple[str, str]:
    """Return the message and field of an error of a jobqueue function. Errors of a table name the table."""
    if error.diag.table_name is not None:
        raise error
    return error.diag.message_primary or "", error.diag.column_name or ""


@pytest.fixture(params=sorted(SERVERS))
def caller(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[psycopg.Connection[Any]]:
    """A user's connection to a database with the schema."""
    with closing(psycopg.connect(servers.emptied(request.param))) as connection:
        yield connection


def rules(connection: psycopg.Connection[Any]) -> dict[str, dict[str, Any]]:
    row = connection.execute("SELECT jobqueue_internal.rules()").fetchone()
    assert row is not None
    return dict(row[0])


def test_sql_has_a_rule_with_pythons_words_for_each_field(caller: psycopg.Connection[Any]) -> None:
    known = rules(caller)
    for kind in (CronSchedule, QueueSettings, DeadFilter, JobFilter):
        for field in msgspec.structs.fields(kind):
            if field.name not in {"payload", "state"}:  # their messages depend on more
                assert known[field.name]["words"] == must_be(field.type), field.name


def test_sql_refuses_the_jobs_that_http_refuses_with_the_same_words(caller: psycopg.Connection[Any]) -> None:
    differ = []
    assert list(JOBS) == list(Submission.__struct_fields__)
    for field, values in JOBS.items():
        for value in [*values, *WRONG_TYPES]:
            document = json.dumps([{field: value}])
            found = refusal(caller, "SELECT jobqueue.submit_many(%s::jsonb)", document)
            theirs = http(lambda document=document: bodies.parse("application/json", document.encode()))
            if found != theirs:
                differ.append((document[:100], found, theirs))
    assert differ == []


def test_fields_that_exclude_each_other_are_refused_together(caller: psycopg.Connection[Any]) -> None:
    instant = "2030-01-31T08:00:00Z"
    for one, other in Submission.EXCLUSIVE:
        for job, refused in ({one: instant, other: 5}, True), ({one: None, other: 5}, False), ({one: instant, other: None}, False):
            document = json.dumps([job])
            found = refusal(caller, "SELECT jobqueue.submit_many(%s::jsonb)", document)
            assert found == http(lambda document=document: bodies.parse("application/json", document.encode()))
            assert (found is not None) == refused


def nested(levels: int, *, objects: bool = False) -> str:
    return '{"a":' * (levels - 1) + "{}" + "}" * (levels - 1) if objects else "[" * levels + "]" * levels


@pytest.mark.parametrize("objects", [False, True])
def test_a_payload_may_be_nested_a_hundred_levels_deep(caller: psycopg.Connection[Any], objects: bool) -> None:
    words = f"payload cannot be stored: it is nested more than {documents.MAX_DEPTH} levels deep"
    for levels in (documents.MAX_DEPTH, documents.MAX_DEPTH + 1, 1200, 5000):
        deep = nested(levels, objects=objects)
        if levels <= documents.MAX_DEPTH + 1:
            theirs = http(lambda deep=deep: bodies.parse("application/json", b'[{"payload":%s}]' % deep.encode()))
            assert theirs == (None if levels == documents.MAX_DEPTH else (words, "payload"))
        expected = None if levels <= documents.MAX_DEPTH else (words, "payload")
        batch = f'[{{"payload": {deep}}}]'
        assert refusal(caller, "SELECT jobqueue.submit_many(%s::jsonb)", batch) == expected
        assert refusal(caller, "SELECT jobqueue.submit('default', %s::jsonb)", deep) == expected
        assert refusal(caller, "SELECT jobqueue.schedule('s', '* * * * *', payload => %s::jsonb)", deep) == expected


def test_a_payload_may_have_a_mebibyte_without_the_spaces_that_postgresql_adds(caller: psycopg.Connection[Any]) -> None:
    snowmen = ",".join(['"\N{SNOWMAN}"'] * 100_000)
    for template in (f'[{"1," * 500_000}"%s"]', r'"a, \"b\": \\%s"', f'{{"a":"{", : " * 10_000}","b":[{snowmen}],"c":"%s"}}'):
        for over in (0, 1):
            payload = template % ("x" * (2**20 + over - len(template.encode()) + len("%s")))
            found = refusal(caller, "SELECT jobqueue.submit('default', %s::jsonb)", payload)
            theirs = http(lambda payload=payload: bodies.parse("application/json", b'[{"payload":%s}]' % payload.encode()))
            if over:
                assert found is not None
                assert found[0].startswith("the payload has 1048577 bytes as JSON, and the limit is 1048576: ")
                assert found[1] == "payload"
                assert theirs == ("the payload has more than 1048576 bytes of JSON", "payload")
            else:
                assert (found, theirs) == (None, None)
    # A small jsonb value can be long as JSON.
    zeros = json.dumps([0]).replace("0", "1." + "0" * 16_000)
    found = refusal(
        caller,
        "SELECT jobqueue.submit('default', (SELECT jsonb_agg(v) FROM generate_series(1, 100), jsonb_array_elements(%s) AS v))",
        zeros,
    )
    assert found is not None
    assert found[1] == "payload"


@pytest.mark.parametrize(
    ("batch", "words", "field", "place"),
    [
        (
            '[{}, {"prio": 1}]',
            "unknown field 'prio' in a job: the known fields are kind, payload, ",
            "prio",
            "index 1 of the batch",
        ),
        ('[{"options": {"group": "a"}}]', "unknown field 'options' in a job: ", "options", None),
        ('[{"options": [1]}]', "unknown field 'options' in a job: ", "options", None),
        ('[{"maxRetries": 1}]', "unknown field 'maxRetries' in a job: ", "maxRetries", None),
        ('[{"cron": "* * * * *"}]', "unknown field 'cron' in a job: ", "cron", None),
        ('[{"": 1}]', "unknown field '' in a job: ", "", None),
        ('[{}, {}, {"priority": -1}]', "priority must be ", "priority", "index 2 of the batch"),
        ("[{}, [{}], {}]", "a job must be a JSON object", "", "index 1 of the batch"),
        ("[null]", "a job must be a JSON object", "", None),
        ('["{}"]', "a job must be a JSON object", "", None),
        ('{"kind": "mail"}', "jobs must be a JSON array of jobs", "jobs", None),
        ('"text"', "jobs must be a JSON array of jobs", "jobs", None),
        ("null", "jobs must be a JSON array of jobs", "jobs", None),
        ('[{"id": "1"}]', "id must be a UUID", "id", None),
        ('[{"id": 1}]', "id must be a UUID", "id", None),
    ],
)
def test_the_refusal_of_a_batch_names_the_field_and_the_job(
    caller: psycopg.Connection[Any], batch: str, words: str, field: str, place: str | None
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        caller.execute("SELECT jobqueue.submit_many(%s::jsonb)", [batch])
    diagnosis = refused.value.diag
    assert (diagnosis.message_primary or "").startswith(words)
    assert (diagnosis.column_name or "", diagnosis.message_detail) == (field, place)


def test_a_batch_has_at_most_a_hundred_thousand_jobs_and_may_be_empty(caller: psycopg.Connection[Any]) -> None:
    many = "SELECT jobqueue.submit_many((SELECT jsonb_agg('{}'::jsonb) FROM generate_series(1, %s)))"
    assert refusal(caller, many, 100_001) == ("the batch has more than 100000 jobs: split it into smaller batches", "jobs")
    for none in ("[]", None):
        assert refusal(caller, "SELECT jobqueue.submit_many(%s::jsonb)", none) is None


TYPED = [
    ("SELECT jobqueue.submit(%s)", "", "kind"),
    ("SELECT jobqueue.submit('a', queue => %s)", "..", "queue"),
    ("SELECT jobqueue.submit('a', priority => %s)", -1, "priority"),
    ("SELECT jobqueue.submit('a', max_retries => %s)", 1001, "max_retries"),
    ("SELECT jobqueue.submit('a', timeout => %s)", math.nan, "timeout"),
    ("SELECT jobqueue.submit('a', timeout => %s)", math.inf, "timeout"),
    ("SELECT jobqueue.submit('a', run_at => %s::timestamptz)", "infinity", "run_at"),
    ("SELECT jobqueue.submit('a', run_at => %s::timestamptz)", "-infinity", "run_at"),
    ("SELECT jobqueue.submit('a', run_at => %s::timestamptz)", "294276-12-31", "run_at"),
    ("SELECT jobqueue.submit('a', run_at => %s::timestamptz)", "0044-03-15 BC", "run_at"),
    ("SELECT jobqueue.submit('a', expires_at => %s::timestamptz)", "infinity", "expires_at"),
    ("SELECT jobqueue.submit('a', weight => %s, \"group\" => 'a')", 0, "weight"),
    ("SELECT jobqueue.submit('a', unique_key => %s)", "x" * 201, "unique_key"),
    ("SELECT jobqueue.pause(%s)", "..", "queue"),
    ("SELECT jobqueue.pause(%s)", None, "queue"),
    ("SELECT jobqueue.pause('a', %s::boolean)", None, "paused"),
    ("SELECT jobqueue.pause_schedule('a', %s::boolean)", None, "paused"),
    ("SELECT jobqueue.configure(%s)", ".", "queue"),
    ("SELECT jobqueue.configure(%s)", "x" * 201, "queue"),
    ("SELECT jobqueue.configure('a', %s::interval)", "1 day 1 second", "aging_interval"),
    ("SELECT jobqueue.configure('a', %s::interval)", "-1 second", "aging_interval"),
    ("SELECT jobqueue.configure('a', rate => %s)", math.nan, "rate"),
    ("SELECT jobqueue.configure('a', key_rate => %s)", math.inf, "key_rate"),
    ("SELECT jobqueue.configure('a', clear => %s)", ["speed"], "clear"),
    ("SELECT jobqueue.configure('a', clear => %s::text[])", [None], "clear"),
    ("SELECT jobqueue.schedule(%s, '* * * * *')", "..", "name"),
    ("SELECT jobqueue.schedule(%s, '* * * * *')", None, "name"),
    ("SELECT jobqueue.schedule('s', %s)", None, "cron"),
    ("SELECT jobqueue.schedule('s', '* * * * *', %s)", "", "timezone"),
    ("SELECT jobqueue.schedule('s', '* * * * *', missed => %s)", "none", "missed"),
    ("SELECT jobqueue.schedule('s', '* * * * *', queue => %s)", ".", "queue"),
    ("SELECT jobqueue.schedule('s', '* * * * *', timeout => %s)", math.nan, "timeout"),
    ("SELECT jobqueue.change(gen_random_uuid(), %s)", -1, "priority"),
    ("SELECT jobqueue.change(gen_random_uuid(), run_at => %s::timestamptz)", "infinity", "run_at"),
    ("SELECT jobqueue.list_jobs(max_jobs => %s)", 0, "max_jobs"),
    ("SELECT jobqueue.list_jobs(max_jobs => %s)", -1, "max_jobs"),
    ("SELECT jobqueue.list_jobs(max_rows => %s::integer)", None, "max_rows"),
    ("""SELECT jobqueue.list_dead('{"all": true}', %s)""", -1, "max_jobs"),
    ("""SELECT jobqueue.retry_dead('{"all": true}', %s)""", -1, "max_jobs"),
    ("""SELECT jobqueue.retry_dead('{"all": true}', dry_run => %s::boolean)""", None, "dry_run"),
    ("""SELECT jobqueue.discard_dead('{"all": true}', %s)""", 0, "max_jobs"),
    ("""SELECT jobqueue.discard_dead('{"all": true}', dry_run => %s::boolean)""", None, "dry_run"),
    ("""SELECT jobqueue.cancel_jobs('{"all": true}', %s)""", 0, "max_jobs"),
    ("""SELECT jobqueue.cancel_jobs('{"all": true}', keep => %s::boolean)""", None, "keep"),
    ("SELECT jobqueue.dead_causes(max_causes => %s::integer)", None, "max_causes"),
    ("SELECT jobqueue.dead_causes(max_causes => %s)", 2_147_483_647, "max_causes"),
]


def test_a_parameter_that_cannot_be_is_refused_by_name(caller: psycopg.Connection[Any]) -> None:
    known = rules(caller)
    for statement, value, field in TYPED:
        verdict = refusal(caller, statement, value)
        assert verdict is not None, (statement, value)
        words = verdict[0] if field == "clear" else f"{field} must be {known[field]['words']}"
        assert verdict == (words, field), (statement, value)


def test_what_is_null_is_not_given(caller: psycopg.Connection[Any]) -> None:
    for statement in (
        "SELECT jobqueue.submit(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "SELECT jobqueue.submit('a', 'null')",
        "SELECT jobqueue.configure('a', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
        "SELECT jobqueue.schedule('s', '* * * * *', kind => NULL, payload => NULL, max_retries => NULL, timeout => NULL)",
        "SELECT jobqueue.schedule('s', '* * * * *', payload => 'null')",
        "SELECT jobqueue.change(gen_random_uuid(), NULL, NULL)",
        "SELECT jobqueue.list_jobs(max_jobs => NULL)",
        """SELECT jobqueue.retry_dead('{"all": true}', NULL)""",
        """SELECT jobqueue.discard_dead('{"all": true}', NULL)""",
        """SELECT jobqueue.list_dead('{"all": true, "queue": null}', NULL)""",
    ):
        assert refusal(caller, statement) is None, statement


def test_clear_that_is_null_clears_nothing(caller: psycopg.Connection[Any]) -> None:
    caller.execute("SELECT jobqueue.configure('q', rate => 5, burst => 3)")
    caller.execute("SELECT jobqueue.configure('q', max_running => 2, clear => NULL)")
    assert caller.execute("SELECT rate, burst, max_running FROM jobqueue_internal.queues WHERE name = 'q'").fetchone() == (5, 3, 2)


SCHEDULES: dict[str, list[Any]] = {
    "name": [value for value in PATH_NAMES if value is not None],
    "cron": ["* * * * *", "", "*" * 201],
    "timezone": ["UTC", "", "x" * 201],
    "missed": ["one", "skip", "all", "none", ""],
    "kind": [value for value in NAMES if value is not None],
    "queue": PATH_NAMES,
    "priority": [0, 1_000_000, 1_000_001, -1, None],
    "max_retries": [0, 1_000, 1_001, -1],
    "timeout": JOBS["timeout"],
}


def test_sql_refuses_the_schedules_that_http_refuses_with_the_same_words(caller: psycopg.Connection[Any]) -> None:
    for field, values in SCHEDULES.items():
        for value in values:
            given = {"name": "s", "cron": "* * * * *", "kind": "k", field: value}
            theirs = http(lambda given=given: schedule_of(given))
            parameters = ", ".join(f'"{name}" => %s' for name in given)
            assert refusal(caller, f"SELECT jobqueue.schedule({parameters})", *given.values()) == theirs, given


SETTINGS: dict[str, list[Any]] = {
    **{field: [1, 1_000_000, 0, -1, 1_000_001] for field in ("max_running", "burst", "key_max_running", "key_burst")},
    **{field: [0.00001, 1_000_000, 0.000009, 1_000_000.5, 0.0, -1.0] for field in ("rate", "key_rate")},
}


def test_sql_refuses_the_settings_of_queues_that_http_refuses_with_the_same_words(caller: psycopg.Connection[Any]) -> None:
    for field, values in SETTINGS.items():
        for value in values:
            theirs = http(lambda given={field: value}: queue_settings(given))
            assert refusal(caller, f"SELECT jobqueue.configure('q', {field} => %s)", value) == theirs, (field, value)


FILTERS: dict[str, list[Any]] = {
    **dict.fromkeys(("kind", "group", "cause", "reason", "concurrency_key", "text"), NAMES),
    "queue": PATH_NAMES,
    **dict.fromkeys(("died_before", "died_after", "created_after", "created_before"), INSTANTS),
    "all": [True, False, None],
    "state": ["pending", ["pending"], ["blocked", "scheduled"], "dead", "", [], ["pending", "dead"], [["pending"]], None],
    "speed": [1],
}


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        (CancelFilter, "SELECT jobqueue.cancel_jobs(%s::jsonb)"),
        (DeadFilter, "SELECT jobqueue.retry_dead(%s::jsonb)"),
        (DeadFilter, "SELECT jobqueue.discard_dead(%s::jsonb)"),
        (DeadFilter, "SELECT jobqueue.list_dead(%s::jsonb)"),
        (DeadFilter, "SELECT jobqueue.dead_causes(%s::jsonb)"),
        (JobFilter, "SELECT jobqueue.list_jobs(%s::jsonb)"),
    ],
)
def test_sql_refuses_the_filters_that_http_refuses_with_the_same_words(
    caller: psycopg.Connection[Any], kind: type[msgspec.Struct], statement: str
) -> None:
    for field, values in FILTERS.items():
        for value in [*values, *WRONG_TYPES]:
            if kind is JobFilter and field == "state" and isinstance(value, str):
                continue  # over HTTP, it is in the query string
            found = refusal(caller, statement, json.dumps({field: value}))
            theirs = http(lambda given={field: value}: filters.of_body(given, kind))
            assert (found is None, found and found[1]) == (theirs is None, theirs and theirs[1]), (field, value, found, theirs)
            if theirs is not None and field in kind.__struct_fields__ and field != "state":
                assert found == theirs
    for no_filter in ("[]", "null", '"all"', "5"):
        found = refusal(caller, statement, no_filter)
        assert found is not None
        assert found[0] == "a filter must be a JSON object"
    assert refusal(caller, statement, None) == ("a filter must be a JSON object", "")
    assert refusal(caller, statement, "{}") == http(lambda: filters.of_body({}, kind))


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/St_Johns"])
def test_times_do_not_depend_on_the_session(caller: psycopg.Connection[Any], zone: str) -> None:
    caller.execute(quoting.SQL("SET timezone = {}; SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'").format(zone))
    caller.execute("SET extra_float_digits = -10")
    caller.execute("SELECT jobqueue.submit('typed', run_at => '2030-03-02T08:00:00.123456Z')")
    job = {"run_at": "2030-03-02T09:00:00.123456+01:00", "payload": 1.2345678901234567e25}
    caller.execute("SELECT jobqueue.submit_many(%s)", [json.dumps([job])])
    found = caller.execute(
        "SELECT count(*) FROM jobqueue_internal.scheduled_jobs WHERE run_at = timestamptz '2030-03-02T08:00:00.123456Z'"
    )
    assert found.fetchone() == (2,)
    now = datetime.now(UTC)
    for sign, jobs in ((-1, 2), (1, 0)):
        given = {"created_after": (now + sign * timedelta(hours=2)).isoformat(), "kind": None}
        row = caller.execute("SELECT jsonb_array_length(jobqueue.list_jobs(%s) -> 'jobs')", [json.dumps(given)]).fetchone()
        assert row == (jobs,)


# ------------------------------------------------------------------------------------------------------------------- the time


def test_times_count_from_the_call_and_not_from_the_beginning_of_the_transaction(caller: psycopg.Connection[Any]) -> None:
    caller.execute("SELECT now()")
    caller.execute("SELECT pg_sleep(0.5)")
    with closing(Database(caller.info.dsn)) as other:
        other.value("SELECT jobqueue.submit('first')")
        for field in ("expires_in", "expires_at"):
            value = "0.2" if field == "expires_in" else "to_json(now() + interval '0.2 seconds')"
            batch = f"jsonb_build_array(jsonb_build_object('kind', 'late', '{field}', {value}))"
            if field == "expires_at":
                with pytest.raises(psycopg.errors.CheckViolation, match="not in the future"), caller.transaction():
                    caller.execute(f"SELECT jobqueue.submit_many({batch})".encode())
            else:
                caller.execute(f"SELECT jobqueue.submit_many({batch})".encode())
        caller.execute(
            """SELECT jobqueue.submit_many('[{"kind": "second"}, {"kind": "third"}, {"kind": "grouped", "group": "a"}]')"""
        )
        caller.execute("SELECT jobqueue.submit('past', run_at => now() + interval '0.2 seconds')")
        caller.execute("""SELECT jobqueue.submit_many('[{"kind": "delayed", "delay": 0.4}]')""")
        caller.execute("SELECT jobqueue.submit('keyed', idempotency_key => 'a')")
        began = caller.execute("SELECT now()").fetchone()
        caller.commit()
        assert began is not None
        rows = dict(other.rows("SELECT kind, rank FROM jobqueue_internal.pending_jobs"))
        assert rows.keys() == {"first", "late", "second", "third", "grouped", "past", "keyed"}
        assert min(rows, key=lambda kind: rows[kind]) == "first"
        assert rows["third"] - rows["second"] == timedelta(microseconds=1)
        [[run_at, options]] = other.rows(
            "SELECT (SELECT run_at FROM jobqueue_internal.scheduled_jobs),"
            " (SELECT options FROM jobqueue_internal.pending_jobs WHERE kind = 'late')"
        )
        assert run_at - began[0] > timedelta(seconds=0.9)
        assert options["expires_at"] - began[0].timestamp() > 0.7
        [[created, available]] = other.rows(
            "SELECT min(created_at), min(available_since) FROM jobqueue_internal.pending_jobs WHERE kind <> 'first'"
        )
        assert min(created, available) - began[0] > timedelta(seconds=0.5)
        [[expires]] = other.rows("SELECT expires_at FROM jobqueue_internal.keys")
        assert expires - began[0] > timedelta(days=1, seconds=0.5)


async def test_a_change_and_a_retry_in_an_old_transaction_buy_no_better_rank(driver: Driver, any_database_url: str) -> None:
    dead = await driver.in_state("dead")
    scheduled = await driver.in_state("scheduled")
    assert not isinstance(dead, str)
    with closing(psycopg.connect(any_database_url)) as caller, closing(Database(any_database_url)) as other:
        caller.execute("SELECT now()")
        await trio.sleep(0.3)
        first = await driver.submit()
        caller.execute("SELECT jobqueue.retry(%s)", [dead.id])
        caller.execute("SELECT jobqueue.change(%s, run_at => now() + interval '0.2 seconds')", [scheduled])
        caller.commit()
        assert [str(row[0]) for row in other.rows("SELECT id FROM jobqueue_internal.pending_jobs ORDER BY rank")] == [
            first,
            dead.id,
            scheduled,
        ]


def test_the_time_to_expire_is_checked_next_to_a_job_with_an_id(caller: psycopg.Connection[Any]) -> None:
    batch = json.dumps([{"id": new_id(), "expires_in": 0}, {"expires_in": 0}])
    verdict = refusal(caller, "SELECT jobqueue.submit_many(%s)", batch)
    assert verdict == ("expires_in of job 2 is not in the future", "expires_in")


# ------------------------------------------------------------------------------------------------------------------- numbers


async def test_the_payload_of_a_job_can_be_submitted_again(driver: Driver) -> None:
    numbers = [1e17, 1e20, -1e20, 1.5e300, 1.7976931348623157e308, 1.2345678901234567e25, 5e-324, 0.1, 2**64 - 1, -(2**63), 10**25]
    sent = b'{"payload": %s}' % json.dumps(numbers).encode()
    for _ in range(2):
        [document] = bodies.parse("application/json", sent).jobs.documents
        await driver.store.submit([document], wake=False)
        shown = await driver.store.job(json.loads(document)["id"])
        assert shown is not None
        assert [float(number) for number in shown.payload] == [float(number) for number in numbers]
        assert shown.payload[-3:] == numbers[-3:]
        sent = b'{"payload": %s}' % msgspec.json.encode(shown.payload)


async def test_handlers_get_the_numbers_that_were_sent(database_url: str) -> None:
    app = jobqueue.App()
    got: list[Any] = []

    @app.handler("floats")
    async def floats(values: list[float]) -> None:
        got.append(values)

    @app.handler("integers")
    async def integers(values: list[int]) -> None:
        got.append(values)

    sent = {"floats": [1e17, 1e20, 1.5e300, 1.7976931348623157e308, 0.1], "integers": [10**17, 2**64 - 1, 10**25]}
    async with open_driver(database_url) as driver, running_node(app, PostgresStore(database_url)) as (_, _, stages):
        for kind, values in sent.items():
            body = json.dumps({"kind": kind, "payload": {"values": values}}).encode()
            await driver.store.submit(bodies.parse("application/json", body).jobs.documents, wake=True)
        with trio.fail_after(60):
            while len(got) < len(sent):
                assert not stages.stopping.is_set(), stages.failure
                await trio.sleep(0.02)
    assert sorted(got, key=len) == sorted(sent.values(), key=len)


# ------------------------------------------------------------------------------------------------------------------- properties

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=220)
numbers = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12)
instants = st.sampled_from([*INSTANTS, "0001-01-01T00:00:00Z"]) | st.datetimes().map(lambda time: time.isoformat() + "Z")


def likely(*good: Any) -> st.SearchStrategy[Any]:
    """Draw mostly values of the right type. Otherwise nothing would ever be accepted."""
    return st.one_of(*(strategy if isinstance(strategy, st.SearchStrategy) else st.just(strategy) for strategy in good), values)


short = st.sampled_from(["a", "b", "mail", "\N{SNOWMAN}"])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "id": likely(st.uuids().map(str), st.uuids().map(str)),
    "kind": likely("works", "fails", texts),
    "payload": values,
    "queue": likely("default", "default", texts),
    "priority": likely(st.integers(0, 1_000_000), st.floats(0, 10)),
    "max_retries": likely(st.integers(0, 2)),
    "run_at": likely(instants),
    "delay": likely(st.floats(0, 0.1), st.floats(0, 4e8)),
    "timeout": likely(st.floats(0, 7e5), 5),
    "expires_at": likely(instants),
    "expires_in": likely(st.floats(0, 1), 60),
    "group": likely(short, texts),
    "weight": likely(st.floats(0, 1001), 2),
    "concurrency_key": likely(short, texts),
    "unique": likely(st.booleans()),
    "unique_key": likely(short, texts),
    "idempotency_key": likely(short, texts),
    "traceparent": likely("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", texts),
    "tracestate": likely("a=b", texts),
    "options": values,
    "prio": values,
}


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), unique=True, max_size=5))
    return {name: draw(FIELDS[name]) for name in names}


@st.composite
def batches(draw: st.DrawFn) -> str:
    batch = json.dumps(draw(st.lists(jobs(), max_size=4)))
    levels = draw(st.sampled_from([0, 0, 0, 99, 100, 101, 1200]))
    return batch if not levels else f'[{{"{draw(st.sampled_from(["payload", "options", "group"]))}": {nested(levels)}}}]'


PLAIN_SCHEDULE = {
    "name": "plain",
    "cron": "*/5 * * * *",
    "timezone": "UTC",
    "missed": "one",
    "kind": "works",
    "payload": "{}",
    "queue": "default",
    "priority": 0,
    "max_retries": None,
    "timeout": None,
}


@st.composite
def schedules(draw: st.DrawFn) -> dict[str, Any]:
    parts = st.sampled_from(
        ["*", "*/5", "0", "59", "1-5", "MON", "L", "W", "#", "?", "99", "*/0", "1,2", "\N{SNOWMAN}", "-1", "31", "1#6"]
    )
    odd = {
        "name": draw(short | texts),
        "cron": draw(st.lists(parts, min_size=4, max_size=7).map(" ".join) | texts),
        "timezone": draw(st.sampled_from(["UTC", "Europe/Berlin", "../etc", "/etc/passwd", "Europe", "posixrules"]) | texts),
        "missed": draw(st.sampled_from(["one", "skip", "all"]) | texts),
        "kind": draw(st.none() | st.just("works") | texts),
        "payload": draw(values.map(json.dumps) | st.sampled_from([nested(100), nested(101), nested(1200)])),
        "queue": draw(st.just("default") | texts),
        "priority": draw(st.integers(0, 10) | st.integers(-(2**31), 2**31 - 1)),
        "max_retries": draw(st.none() | st.integers(-1, 1001)),
        "timeout": draw(st.none() | st.floats()),
    }
    return PLAIN_SCHEDULE | {name: odd[name] for name in draw(st.sets(st.sampled_from([*PLAIN_SCHEDULE])))}


limits = st.none() | st.integers(-1, 3) | st.integers(-(2**31), 2**31 - 1)
rates = st.none() | st.floats(0.00001, 1e6) | st.floats()
settings_of_queues = st.fixed_dictionaries(
    {
        "queue": st.just("default") | texts,
        "aging_interval": st.none() | st.sampled_from(["1 s", "1 day", "1 month", "-1 s", "0"]),
        "max_running": limits,
        "rate": rates,
        "burst": limits,
        "key_max_running": limits,
        "key_rate": rates,
        "key_burst": limits,
        "clear": st.none() | st.lists(st.sampled_from([*SETTINGS, "aging_interval", "speed", None]), max_size=3),
    }
)
changes = st.fixed_dictionaries(
    {
        "priority": st.none() | st.integers(-1, 2_000_000),
        "run_at": st.none() | st.sampled_from(["infinity", "-infinity", "294276-12-31", "4713-01-01 BC", "now"]),
    }
)
some_filters = st.dictionaries(
    st.sampled_from([*FILTERS]), values | instants | st.sampled_from([True, "pending", ["dead"], "0190a0b0"]), max_size=3
).map(json.dumps) | values.map(json.dumps)

FILTERED = [
    "SELECT jobqueue.list_jobs(%s::jsonb, 10)",
    "SELECT jobqueue.cancel_jobs(%s::jsonb, 10, dry_run => true)",
    "SELECT jobqueue.list_dead(%s::jsonb, 10)",
    "SELECT jobqueue.dead_causes(%s::jsonb, 10)",
    "SELECT jobqueue.retry_dead(%s::jsonb, 10)",
    "SELECT jobqueue.discard_dead(%s::jsonb, 10)",
]

CASTS = {
    "aging_interval": "interval",
    "run_at": "timestamptz",
    "payload": "jsonb",
    "clear": "text[]",
    "rate": "float8",
    "key_rate": "float8",
    "timeout": "float8",
}


def call(function: str, given: Mapping[str, Any], *, before: str = "") -> tuple[str, list[Any]]:
    """Write a call of a function with named parameters."""
    parameters = ", ".join(
        f'"{name}" => %s::{CASTS.get(name, "text")}' if name in CASTS or isinstance(value, str) else f'"{name}" => %s'
        for name, value in given.items()
    )
    return f"SELECT jobqueue.{function}({before}{parameters})", list(given.values())


class Bystander:
    """A user of the database of a running node."""

    def __init__(self, sql: Database, stages: Stages) -> None:
        self.sql = sql
        self._stages = stages

    def accepted(self, statement: str, *params: Any) -> bool:
        """Run a statement. Return whether it is accepted, or rejected with a message of jobqueue that names the field."""
        try:
            self.sql.rows(statement, *params)
        except psycopg.errors.CheckViolation as error:
            words, field = ours(error)
            if not (field or "must be a JSON object" in words or "unknown field ''" in words):
                raise
            return False
        except psycopg.DatabaseError as error:
            if error.sqlstate not in {"JQ409", "JQ422"}:  # errors about keys
                raise
            return False
        return True

    def wait_until(self, condition: str, *params: Any) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert not self._stages.stopping.is_set(), self._stages.failure
            if self.sql.value(f"SELECT {condition}", *params):
                return
            trio.from_thread.run(trio.sleep, 0.02)
        raise AssertionError(f"not within 120 s: {condition} {self.sql.rows('SELECT * FROM jobqueue.jobs LIMIT 20')}")

    def settle(self) -> None:
        """Check that all jobs end: due jobs and a plain one on the node, the others by a cancellation."""
        plain = self.sql.value("SELECT jobqueue.submit('works')")
        self.wait_until("EXISTS (SELECT FROM jobqueue_internal.finished_jobs WHERE id = %s AND state = 'succeeded')", plain)
        self.wait_until(
            "NOT EXISTS (SELECT FROM jobqueue.jobs WHERE queue = 'default' AND state IN ('pending', 'blocked', 'inflight'))"
        )
        self.sql.value("""SELECT jobqueue.cancel_jobs('{"all": true}', NULL)""")
        self.wait_until("NOT EXISTS (SELECT FROM jobqueue.jobs WHERE state NOT IN ('succeeded', 'dead', 'cancelled'))")


def app() -> jobqueue.App:
    made = jobqueue.App()

    @made.handler("works")
    async def works(job: jobqueue.Job) -> Any:
        return job.payload

    @made.handler("fails", backoff=jobqueue.Backoff(base=0.01, cap=0.01))
    async def fails() -> None:
        raise RuntimeError("not this one")

    return made


def drawn(strategy: st.SearchStrategy[Any], number: int) -> list[Any]:
    """Draw examples before a node runs, because Hypothesis and a node both use the global random generator."""
    examples = []

    @settings(max_examples=number, phases=[Phase.generate], derandomize=True, database=None)
    @given(strategy)
    def draw(example: Any) -> None:
        examples.append(example)

    draw()
    return examples


async def each(examples: list[Any], use: Callable[..., None], stages: Stages) -> None:
    """Use the examples while a node runs, and check that all of its parts keep running."""

    def use_all() -> None:
        for example in examples:
            try:
                use(example)
            except BaseException as error:
                error.add_note(repr(example))
                raise

    parts = stages.names()
    await trio.to_thread.run_sync(use_all)
    assert stages.names() == parts


async def test_whatever_sql_accepts_ends_and_a_plain_job_next_to_it_succeeds(any_database_url: str, sql: Database) -> None:
    examples = drawn(batches(), 200)
    accepted = 0

    async with open_driver(any_database_url), running_node(app(), PostgresStore(any_database_url)) as (_, _, stages):
        user = Bystander(sql, stages)

        def submit(batch: str) -> None:
            nonlocal accepted
            accepted += user.accepted("SELECT jobqueue.submit_many(%s::jsonb)", batch)
            user.settle()

        await each(examples, submit, stages)
    assert accepted > 30, "else nothing was tested"


async def test_whatever_sql_accepts_of_schedules_settings_changes_and_filters_harms_no_node(
    any_database_url: str, sql: Database
) -> None:
    some = st.lists(some_filters, min_size=3, max_size=3)
    examples = drawn(st.tuples(schedules(), settings_of_queues, changes, some), 100)
    accepted = dict.fromkeys(["schedule", "configure", "change", "filter"], 0)

    async with open_driver(any_database_url), running_node(app(), PostgresStore(any_database_url)) as (_, _, stages):
        user = Bystander(sql, stages)
        looked_at = "NOT EXISTS (SELECT FROM jobqueue_internal.schedules WHERE next_at IS NULL AND error IS NULL)"

        def use(example: tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[str]]) -> None:
            schedule, limits, change, wanted = example
            statement, params = call("schedule", schedule)
            if user.accepted(statement, *params):
                accepted["schedule"] += 1
                user.wait_until(looked_at)
                sql.value("SELECT jobqueue.trigger_schedule(%s)", schedule["name"])
            statement, params = call("configure", limits)
            accepted["configure"] += user.accepted(statement, *params)
            waiting = sql.value("SELECT jobqueue.submit('works', run_at => now() + interval '1 hour')")
            statement, params = call("change", change, before=f"'{waiting}', ")
            accepted["change"] += user.accepted(statement, *params)
            for statement in FILTERED:
                for filter_ in wanted:
                    accepted["filter"] += user.accepted(statement, filter_)
            sql.rows("DELETE FROM jobqueue_internal.schedules")
            sql.rows(f"SELECT jobqueue.configure(name, clear => '{{{','.join(SETTINGS)}}}') FROM jobqueue_internal.queues")
            user.settle()

        await each(examples, use, stages)
    assert min(accepted.values()) > 5, accepted


def test_names_with_dots_only_are_refused_by_http_settings_and_clients() -> None:
    for name in (".", ".."):
        words = f"{name!r} (--queue) must be " + must_be(
            next(field.type for field in msgspec.structs.fields(Submission) if field.name == "queue")
        )
        with pytest.raises(SettingsError, match="but not") as refused:
            Settings(queues={name: 1})
        assert words in str(refused.value)
        for text in (b'{"queue":"%s"}' % name.encode(), b'{"queue":"%s"}' % name.replace(".", "\\u002e").encode()):
            with pytest.raises(InvalidJob, match="but not"):
                bodies.parse("application/json", text)
        with pytest.raises(InvalidFilter):
            read({"queue": name}, DeadFilter, what="a filter", refuse=InvalidFilter)
        # httpx would leave the segment out.
        assert (
            httpx.URL("http://localhost:8000" + below("queues", name, "pause")).raw_path
            == b"/queues/%s/pause" % name.replace(".", "%2E").encode()
        )
        with pytest.raises(InvalidPath, match="but not"):
            path_value("name", name)
