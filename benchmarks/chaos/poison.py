"""Create, in SQL, rows and jobs that a node may be unable to read or move.

PostgreSQL may reject some of them. A row that PostgreSQL accepts must end as a dead job with a reason. It must not affect other
jobs.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec
import psycopg

KIND = "poisoned"

DEPTH = 1_200
"""Nesting depth that PostgreSQL accepts but Python's decoders reject."""

DEEP = f"(repeat('[', {DEPTH}) || repeat(']', {DEPTH}))::jsonb"

ROW = {
    "queue": "'default'",
    "kind": f"'{KIND}'",
    "priority": "0",
    "payload": "'{}'::jsonb",
    "max_retries": "3",
    "attempt": "0",
    "claims": "0",
    "created_at": "now()",
    "available_since": "now()",
    "errors": "'[]'::jsonb",
    "options": "NULL::jsonb",
}
"""The columns of a healthy row, as SQL expressions, in every table."""

TABLES: dict[str, dict[str, str]] = {
    "pending_jobs": {"rank": "now()"},
    "scheduled_jobs": {"run_at": "now() + interval '0.5 s'"},
    "blocked_jobs": {"rank": "now()", "options": """'{"concurrency_key": "poison"}'::jsonb"""},
    # This id belongs to no node, so nodes treat the job as a job of a lost node.
    "inflight_jobs": {"node_id": "gen_random_uuid()", "claimed_at": "now()", "attempt": "1", "claims": "1"},
}
"""Tables, each with the columns of a healthy row that differ in that table."""

COLUMNS: dict[str, dict[str, str]] = {
    "a deep payload": {"payload": DEEP},
    "deep options": {"options": f"jsonb_build_object('group', {DEEP}, 'concurrency_key', 'poison')"},
    "deep errors": {"errors": DEEP},
    "a number that no float holds": {"payload": """'{"seconds": 1e400}'::jsonb"""},
    "a number of 5,000 digits": {"payload": "jsonb_build_object('seconds', repeat('9', 5000)::numeric)"},
    "a number as group": {"options": """'{"group": 1, "concurrency_key": "poison"}'::jsonb"""},
    "a number as key": {"options": """'{"concurrency_key": 5}'::jsonb"""},
    "an object as key": {"options": """'{"concurrency_key": {"a": 1}}'::jsonb"""},
    "a number as unique key": {"options": """'{"unique_key": 7, "concurrency_key": "poison"}'::jsonb"""},
    "a text as weight": {"options": """'{"weight": "heavy", "concurrency_key": "poison"}'::jsonb"""},
    "a text as turn": {"options": """'{"turn": "soon", "concurrency_key": "poison"}'::jsonb"""},
    "a text as rank": {"options": """'{"rank": "first", "concurrency_key": "poison"}'::jsonb"""},
    "a text as expires_at": {"options": """'{"expires_at": "never", "concurrency_key": "poison"}'::jsonb"""},
    "options that are an array": {"options": "'[1]'::jsonb"},
    "options that are a number": {"options": "'5'::jsonb"},
    "options that are a text": {"options": """'"all"'::jsonb"""},
    "options that are null": {"options": "'null'::jsonb"},
    "errors that are an object": {"errors": """'{"error": 1}'::jsonb"""},
    "errors that are numbers": {"errors": "'[1, 2, 3]'::jsonb"},
    "the most claims": {"claims": "2147483647"},
    "the most attempts": {"attempt": "2147483647"},
    "attempts below zero": {"attempt": "-5", "claims": "-5"},
    "retries out of range": {"max_retries": "2147483647"},
    "retries below zero": {"max_retries": "-1"},
    "a priority out of range": {"priority": "-5"},
    "a timeout that is not a number": {"timeout": "'NaN'::double precision"},
    "a kind of odd characters": {"kind": r"""E'\u202e\n\r\x1b[31m"''\\\t<script>%%s{0}' || chr(128137)"""},
    "a kind without a character": {"kind": "''"},
    "a kind of 100,000 characters": {"kind": "repeat('k', 100000)"},
    "created before Christ": {"created_at": "'0044-03-15 12:00 BC'::timestamptz"},
    "created in the year 20000": {"created_at": "'20000-01-01 00:00'::timestamptz"},
    "created at infinity": {"created_at": "'infinity'::timestamptz"},
    "available at infinity": {"available_since": "'-infinity'::timestamptz"},
}
"""The defects of rows: the columns that differ from a healthy row."""

FIELDS: dict[str, Any] = {
    "group": [1, {}, [], "", "g" * 100_000],
    "weight": ["heavy", -1, 1e300, [1]],
    "concurrency_key": [5, {}, [], "", "k" * 100_000],
    "unique_key": [7, {"a": 1}, "u" * 100_000],
    "unique": ["yes", 1, {}],
    "idempotency_key": [7, [1], "i" * 100_000],
    "expires_in": ["soon", -1, 1e300, {}],
    "expires_at": ["never", 5, [], "infinity"],
    "options": [[1], 5, "all", {"group": 1}, {"turn": "soon"}, {"rank": "first"}, {"expires_at": "never"}],
    "traceparent": [1, {}, "00-"],
    "priority": ["high", 1.5, -1, 1e10],
    "max_retries": ["many", -1, 1e10],
    "timeout": ["long", -1, 1e300],
    "delay": ["later", -1, 1e300],
    "run_at": ["later", 5, "infinity"],
    "queue": [5, "", {}, "q" * 100_000],
    "kind": [5, "", {}],
}
"""Fields of a job for jobqueue.submit_many, with invalid values."""


WAKE = """
    WITH checks AS (
        INSERT INTO jobqueue_internal.key_checks (queue, key)
        SELECT queue, options ->> 'concurrency_key' FROM jobqueue_internal.blocked_jobs WHERE id = %(id)s
    )
    SELECT jobqueue_internal.wake('default', now()), jobqueue_internal.wake_keys(), pg_notify('jobqueue_scheduled', '')
"""
"""A statement that wakes the nodes, so that they do not wait for their next poll."""


class Dose(NamedTuple):
    """One poisoned job.

    Attributes:
        what: its defect.
        job_id: the job's id.
        statements: the statements that create it in one transaction, with the parameters `id` and `jobs`.
        jobs: the JSON for jobqueue.submit_many.
    """

    what: str
    job_id: str
    statements: list[str]
    jobs: str = ""


def doses(dice: random.Random) -> Iterator[Dose]:
    """Yield poisoned jobs without end, in rounds with one job for each defect."""
    rows = [partial(_row, table, what) for table in TABLES for what in COLUMNS if _is_movable(table, what)]
    jobs = [partial(_job, field, value) for field, values in FIELDS.items() for value in values]
    while True:
        for make in dice.sample([*rows, *jobs], len(rows) + len(jobs)):
            yield make(dice)


def administer(connection: psycopg.Connection, dose: Dose) -> str:
    """Create a poisoned job. Return PostgreSQL's error if it rejected the job, else an empty text.

    Raises:
        psycopg.Error: the connection broke. The job may exist.
    """
    try:
        with connection.transaction():
            for statement in dose.statements:
                connection.execute(statement.encode(), {"id": dose.job_id, "jobs": dose.jobs})
    except psycopg.Error as error:
        if connection.closed:
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _is_movable(table: str, what: str) -> bool:
    # Nodes find a blocked row only by its key, so they never move a row without a key.
    options = COLUMNS[what].get("options", "concurrency_key")
    return table != "blocked_jobs" or "concurrency_key" in options


def _row(table: str, what: str, dice: random.Random) -> Dose:
    """Make a row that is poisoned by its INSERT or by a later UPDATE."""
    healthy = {"id": "%(id)s", **ROW, **TABLES[table]}
    poisoned = COLUMNS[what]
    updated = dice.random() < 0.3
    row = healthy if updated else {**healthy, **poisoned}
    statements = [f"INSERT INTO jobqueue_internal.{table} ({', '.join(row)}) VALUES ({', '.join(row.values())})"]
    if updated:
        changes = ", ".join(f"{name} = {value}" for name, value in poisoned.items())
        statements.append(f"UPDATE jobqueue_internal.{table} SET {changes} WHERE id = %(id)s")
    return Dose(f"{what} in {table}{', by UPDATE' if updated else ''}", _draw_id(dice), [*statements, WAKE])


def _job(field: str, value: Any, dice: random.Random) -> Dose:
    job_id = _draw_id(dice)
    jobs = msgspec.json.encode([{"id": job_id, "kind": KIND, field: value}]).decode()
    return Dose(f"{field} {str(value)[:20]} in submit_many", job_id, ["SELECT jobqueue.submit_many(%(jobs)s::jsonb)"], jobs)


def _draw_id(dice: random.Random) -> str:
    return str(uuid.UUID(int=dice.getrandbits(128), version=4))
