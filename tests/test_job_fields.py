"""Every place that names the fields of a job agrees with their table, `jobqueue.job.Submission`."""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import datetime
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
import psycopg
import pytest
from msgspec import UNSET, UnsetType

import jobqueue
from jobqueue import in_transaction, testing
from jobqueue.admission import PlainJob
from jobqueue.cli.schedules import put
from jobqueue.cli.submit import command as submit
from jobqueue.documents import MAX_DEPTH
from jobqueue.errors import InvalidJob, UnprocessableJob
from jobqueue.fields import attributes, must_be, not_null
from jobqueue.http.api import models
from jobqueue.http.api.json_schema import alternatives
from jobqueue.http.bodies import jobs as bodies
from jobqueue.http.resources.submit import NewJob
from jobqueue.job import MAX_PAYLOAD_BYTES, Change, JobColumns, Name, Options, PathName, Submission
from jobqueue.testing.memory_store import MemoryStore
from jobqueue.timetable import CronSchedule, schedule_of
from tests.support import ROOT
from tests.support.postgres import ServerPool

FIELDS = {field.name: field for field in msgspec.structs.fields(Submission)}
DEFAULTS = {name: {} if name == "payload" else field.default for name, field in FIELDS.items()}
COLUMNS = set(JobColumns.__struct_fields__)
TRACE = {"traceparent", "tracestate"}
REPLACED = {relative: instant for instant, relative in Submission.EXCLUSIVE}
"""The durations, which the database replaces by a time."""

SAMPLES: dict[str, Any] = {
    "kind": "report",
    "payload": {"n": 1},
    "queue": "slow",
    "priority": 5,
    "max_retries": 7,
    "run_at": "2040-01-31T09:00:00+01:00",
    "delay": 600,
    "timeout": 1.5,
    "expires_at": "2040-01-31T08:00:00Z",
    "expires_in": 600,
    "group": "acme",
    "weight": 2,
    "concurrency_key": "account-42",
    "unique": True,
    "unique_key": "nightly",
    "idempotency_key": "k-1",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=value",
}
"""A value of each field that differs from the default."""


def given(name: str) -> dict[str, Any]:
    """Return a job with a sample of this field. The fields of a trace come together."""
    return {"kind": "default"} | {name: SAMPLES[name] for name in (TRACE if name in TRACE else {name})}


def python(job: Mapping[str, Any]) -> dict[str, Any]:
    return {name: datetime.fromisoformat(value) if name in REPLACED.values() else value for name, value in job.items()}


def assert_stored(job: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Check that a job is stored with the fields that were given, and with the defaults of the other columns."""
    options = dict(row["options"] or {})
    for name, value in DEFAULTS.items():
        stored = row if name in COLUMNS else options
        if name in job and name in REPLACED.keys() | REPLACED.values():
            expected = time.time() + job[name] if name in REPLACED else seconds(job[name])
            assert seconds(stored[REPLACED.get(name, name)]) == pytest.approx(expected, abs=60), name
        elif name not in REPLACED and REPLACED.keys().isdisjoint(job):
            assert stored.get(name) == job.get(name, value), name


def seconds(instant: Any) -> float:
    if isinstance(instant, str):
        instant = datetime.fromisoformat(instant)
    return instant.timestamp() if isinstance(instant, datetime) else float(instant)


def types(kind: Any) -> set[Any]:
    """Return the members of a type, without their bounds."""
    return {get_args(inner)[0] if get_origin(inner) is Annotated else inner for inner in alternatives(kind)}


def bounds(kind: Any) -> dict[str, float]:
    metas = get_args(not_null(kind))[1:]
    names = ("ge", "gt", "le", "min_length", "max_length")
    return {name: value for meta in metas for name in names if (value := getattr(meta, name)) is not None}


# ------------------------------------------------------------------------------------------------------------------------ Python


def test_the_table_describes_each_field() -> None:
    assert list(attributes(Submission)) == list(FIELDS)
    assert all(must_be(field.type) for name, field in FIELDS.items() if name != "payload")
    assert list(SAMPLES) == list(FIELDS)
    assert all(SAMPLES[name] != DEFAULTS[name] for name in FIELDS)


def test_plain_jobs_have_the_columns() -> None:
    kinds: dict[str, Any] = {name: FIELDS[name].type | UnsetType for name in COLUMNS - {"payload"}}
    kinds |= {"payload": Any, "queue": Name | UnsetType, "run_at": UnsetType | None}  # `plain` checks more
    found = {field.name: field for field in msgspec.structs.fields(PlainJob) if field.name != "id"}
    assert {name: set(alternatives(field.type)) for name, field in found.items()} == {
        name: set(alternatives(kind)) for name, kind in kinds.items()
    }
    assert {field.default for field in found.values()} == {UNSET}


def test_options_have_the_fields_without_a_column() -> None:
    hints = get_type_hints(Options)
    for name in FIELDS.keys() - COLUMNS:
        kinds = {float if kind is datetime else kind for kind in types(FIELDS[name].type)}
        assert types(hints[name]) == kinds, name


@pytest.mark.parametrize("name", FIELDS)
def test_admission_keeps_the_field(name: str) -> None:
    job = given(name)
    camel = {re.sub(r"_(\w)", lambda found: found[1].upper(), field): value for field, value in job.items()}
    for body in (job, camel, {**job, "unknown": 1}):
        [document] = bodies.parse("application/json", json.dumps([body]).encode()).jobs.documents
        columns = json.loads(document)
        options = columns.pop("options", {})
        assert UUID(columns.pop("id")).version == 7
        assert columns.keys() <= COLUMNS
        assert options.keys().isdisjoint(COLUMNS)
        stored = {field: value for field, value in (columns | options).items() if value != DEFAULTS[field]}
        instants = {"run_at": "2040-01-31T08:00:00Z", "expires_at": seconds(SAMPLES["expires_at"])}
        assert stored == {field: instants.get(field, value) for field, value in job.items() if value != DEFAULTS[field]}


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"payload"}))
def test_a_value_beyond_a_bound_is_rejected(name: str) -> None:
    limits = bounds(FIELDS[name].type)
    step = {"ge": -1, "gt": 0, "le": 1, "min_length": -1, "max_length": 1}
    good = ["x" * int(limit) if "length" in bound else limit for bound, limit in limits.items() if bound != "gt"]
    bad = ["x" * int(limit + step[bound]) if "length" in bound else limit + step[bound] for bound, limit in limits.items()]
    for value in good:
        bodies.parse("application/json", json.dumps([{name: value}]).encode())
    for value in [*bad, []]:
        for more in ({}, {"unknown": 1}):
            with pytest.raises(InvalidJob, match=f"{name} must be ") as refused:
                bodies.parse("application/json", json.dumps([{}, {name: value, **more}]).encode())
            assert (refused.value.field, refused.value.index) == (name, 1)


def test_the_api_describes_each_field() -> None:
    assert {field.name: (field.type, field.default) for field in msgspec.structs.fields(NewJob)} == {
        name: (field.type, field.default) for name, field in FIELDS.items()
    }


def test_submit_in_a_transaction_has_a_keyword_for_each_field() -> None:
    keywords = {name: types(kind) for name, kind in get_type_hints(in_transaction.Fields).items()}
    assert keywords == {name: types(field.type) for name, field in FIELDS.items() if name not in {"kind", "payload"}}


def test_responses_show_each_field_except_the_trace() -> None:
    for name in FIELDS.keys() - TRACE - REPLACED.keys():
        shown = get_type_hints(models.JobDetails if name in COLUMNS else models.JobOptions)[name]
        assert types(shown) - {NoneType, UnsetType} == types(FIELDS[name].type) - {NoneType}, name


def test_a_schedule_and_a_change_have_the_same_values() -> None:
    schedule = {field.name: field for field in msgspec.structs.fields(CronSchedule)}
    parameters = inspect.signature(jobqueue.App.periodic).parameters
    for name in Submission.SCHEDULED - {"payload"}:
        assert schedule[name].type == FIELDS[name].type, name
        if name != "kind":  # its default is the name of the schedule
            assert schedule[name].default == parameters[name].default == DEFAULTS[name], name
    assert get_type_hints(models.ScheduleState).keys() & schedule.keys() & parameters.keys() >= Submission.SCHEDULED
    for field in msgspec.structs.fields(Change):
        assert not_null(field.type) == not_null(FIELDS[field.name].type), field.name


@testing.in_virtual_time
async def test_the_queue_for_tests_stores_each_field() -> None:
    for name in FIELDS:
        async with testing.Queue(jobqueue.App(), queues={"none": 1}) as queue:
            assert_stored(given(name), queue.job(await queue.submit(**python(given(name)))))
            await queue.submit("default", idempotency_key="k-1")
            if name not in TRACE | {"idempotency_key"}:
                with pytest.raises(UnprocessableJob, match="was used for another job"):
                    await queue.submit(**python(given(name)), idempotency_key="k-1")


@testing.in_virtual_time
async def test_the_store_for_tests_keeps_the_fields_of_a_schedule() -> None:
    app, store = jobqueue.App(), MemoryStore()
    fields = {name: SAMPLES[name] for name in Submission.SCHEDULED}
    app.periodic("* * * * *", name="s", **fields)
    await store.reconcile_schedules("module", app.schedules)
    job_id = await store.trigger_schedule("s")
    assert job_id is not None
    assert fields.items() <= msgspec.to_builtins(await store.job(job_id)).items()


# --------------------------------------------------------------------------------------------------------- documentation and CLI


def test_the_table_of_the_documentation_has_each_field() -> None:
    rows = re.findall(r"^\| (`.*) \|$", (ROOT / "docs" / "submitting.md").read_text(), re.MULTILINE)
    cells = {name: row.split(" | ") for row in rows for name in re.findall(r"\w+", row.split(" | ")[0])}
    assert list(cells) == list(FIELDS)
    for name, (_, sql, option, default, values) in cells.items():
        kind = FIELDS[name].type
        assert (not sql[0].isascii()) == (name in Submission.NOT_IN_SQL), name
        assert (not option[0].isascii()) == (name in Submission.ONLY_IN_FILES), name
        assert name in TRACE or re.findall(r"`--([\w-]+)`", option) in ([], [name.replace("_", "-")]), name
        if DEFAULTS[name] is not None:
            assert default.replace("`", "").split(" ")[0] == json.dumps(DEFAULTS[name]), name
        numbers = {f"{bound:,}".removesuffix(".0") for bound in bounds(kind).values()}
        assert numbers <= set(re.findall(r"\d[\d.,]*(?<=\d)", values)), name
        excluded = {one for pair in Submission.EXCLUSIVE if name in pair for one in pair} - {name}
        assert set(re.findall(r"not with `(\w+)`", values)) == excluded, name
    assert f"{MAX_PAYLOAD_BYTES >> 20} MiB, nested up to {MAX_DEPTH} levels" in cells["payload"][4]


def test_the_commands_have_an_option_for_each_field() -> None:
    assert {parameter.name for parameter in submit.params} >= FIELDS.keys() - Submission.ONLY_IN_FILES
    assert {parameter.name for parameter in put.params} >= Submission.SCHEDULED


# --------------------------------------------------------------------------------------------------------------------------- SQL


@pytest.fixture
def sql(servers: ServerPool) -> Iterator[psycopg.Connection[Any]]:
    with closing(psycopg.connect(servers.emptied("embedded"))) as connection:
        yield connection


def value(connection: psycopg.Connection[Any], statement: str, *params: Any) -> Any:
    [result] = connection.execute(statement.encode(), params).fetchone() or [None]
    return result


def test_sql_has_the_same_rules(sql: psycopg.Connection[Any]) -> None:
    rules = value(sql, "SELECT jobqueue_internal.rules()")
    sorts = {str: "string", int: "integer", float: "number", datetime: "instant", bool: "boolean"}
    for name, field in FIELDS.items():
        limits = bounds(field.type)
        [kind] = types(field.type) - {NoneType}
        rule = {
            "is": "payload" if name == "payload" else "text" if kind is str and not limits else sorts[kind],
            "from": 5e-324 if "gt" in limits else limits.get("ge"),
            "to": limits.get("le", limits.get("max_length")),
            "but": [".", ".."] if field.type == PathName else None,
            "null": True if name == "payload" or NoneType in types(field.type) else None,
            "words": None if name == "payload" else must_be(field.type),
            "excludes": REPLACED.get(name),
        }
        assert rules[name] == {key: value for key, value in rule.items() if value is not None}, name


def test_sql_functions_have_the_fields_as_parameters(sql: psycopg.Connection[Any]) -> None:
    names = {str: "text", int: "integer", float: "double precision", datetime: "timestamp with time zone", bool: "boolean"}
    for function, fields in ("submit", FIELDS.keys() - Submission.NOT_IN_SQL), ("schedule", Submission.SCHEDULED):
        shown = value(sql, "SELECT pg_get_function_arguments(oid) FROM pg_proc WHERE proname = %s", function)
        found = dict(re.findall(r'"?(\w+)"? ((?:[^,(]|\([^)]*\))+)', shown))
        for name in fields:
            [kind] = types(FIELDS[name].type) - {NoneType}
            default = {None: "NULL", 0: "0", "default": "'default'::text"}.get(None if name == "payload" else DEFAULTS[name])
            expected = f"{names.get(kind, 'jsonb')} DEFAULT {default}"
            if name == "payload":
                expected = "jsonb DEFAULT '{}'::jsonb"
            elif name == "kind":
                expected = "text"
            assert re.sub(r"(?<=NULL)::.*", "", found.pop(name)).startswith(expected), (function, name)
        assert found.keys() <= ({"name", "cron", "timezone", "missed"} if function == "schedule" else set())


def test_sql_stores_each_field(sql: psycopg.Connection[Any]) -> None:
    def stored(*call: Any) -> dict[str, Any]:
        row = value(
            sql, "SELECT to_jsonb(j) FROM jobqueue.jobs AS j WHERE id = %s", value(sql, *call) if len(call) > 1 else call[0]
        )
        sql.rollback()
        return dict(row)

    for name in FIELDS:
        job, many = given(name), json.dumps([given(name)])
        assert_stored(job, stored("SELECT (jobqueue.submit_many(%s::jsonb))[1]", many))
        assert_stored(job, stored(jobqueue.submit(sql, **python(job))))
        [document] = bodies.parse("application/json", many.encode()).jobs.documents
        assert_stored(
            job, stored("SELECT ids[1] FROM jobqueue_internal.submit_batch(jsonb_build_array(%s::jsonb))", document.decode())
        )
        if name not in Submission.NOT_IN_SQL:
            call = "SELECT jobqueue.submit({})".format(", ".join(f'"{field}" => %s' for field in job))
            assert_stored(job, stored(call, *(json.dumps(value) if field == "payload" else value for field, value in job.items())))


def test_sql_compares_each_field_of_a_repeated_submission(sql: psycopg.Connection[Any]) -> None:
    def submit(**fields: Any) -> None:
        sql.execute("SELECT jobqueue.submit_many(%s::jsonb)", [json.dumps([{"idempotency_key": "k-1", **fields}])])

    for name in FIELDS.keys() - {"idempotency_key"}:
        submit()
        if name in TRACE:
            submit(**given(name))
        else:
            with pytest.raises(psycopg.Error, match="was used for another job"):
                submit(**given(name))
        sql.rollback()


def test_sql_names_the_known_fields(sql: psycopg.Connection[Any]) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match=f"the known fields are {', '.join([*FIELDS, 'id'])}\n"):
        sql.execute("""SELECT jobqueue.submit_many('[{"unknown": 1}]')""")


def test_sql_stores_each_field_of_a_schedule(sql: psycopg.Connection[Any]) -> None:
    base = {"name": "s", "cron": "* * * * *"}
    for name in Submission.SCHEDULED:
        for function in ("schedule", "reconcile_schedules"):
            for fields in ({}, {name: SAMPLES[name]}):  # the second call changes the schedule
                if function == "schedule":
                    call = base | {field: json.dumps(value) if field == "payload" else value for field, value in fields.items()}
                    value(sql, f"SELECT jobqueue.schedule({', '.join(f'{field} => %s' for field in call)})", *call.values())
                else:
                    document = msgspec.json.encode([schedule_of(base | fields)]).decode()
                    value(sql, "SELECT count(*) FROM jobqueue_internal.reconcile_schedules('module', %s)", document)
            assert value(sql, "SELECT to_jsonb(s) FROM jobqueue_internal.schedules AS s")[name] == SAMPLES[name]
            job = value(sql, "SELECT jobqueue.trigger_schedule('s')")
            assert value(sql, "SELECT to_jsonb(j) FROM jobqueue.jobs AS j WHERE id = %s", job)[name] == SAMPLES[name]
            sql.rollback()
