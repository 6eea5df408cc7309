"""Databases of older texts than version 1 are rejected, and objects of users survive the upgrade."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.postgres import Database
from tests.upgrades.described import described
from tests.upgrades.dumps import finish, upgrade
from tests.upgrades.releases import schema_of

pytestmark = pytest.mark.no_schema

OLDER = {
    "6e0fd17": "constraint blocked_jobs_pkey on blocked_jobs is missing",
    "3975a89": "function admit(integer) differs",
    "7465d5a": "function with_options(jsonb) differs",
    "bcca28e": "function admit(integer) differs",
}
"""Commits with an older schema.sql, and a difference to version 1."""


@pytest.mark.parametrize("commit", OLDER)
def test_a_database_of_an_older_text_is_rejected_and_unchanged(sql: Database, commit: str) -> None:
    sql.rows(schema_of(commit))
    before = described(sql)
    with pytest.raises(psycopg.Error, match='the schema "jobqueue" is not version 1, so it cannot be upgraded: ') as raised:
        upgrade(sql.url)
    assert OLDER[commit] in str(raised.value)
    assert "Apply the schema of jobqueue 0.1.0 first" in str(raised.value.diag.message_hint)
    assert described(sql) == before


def test_the_same_schema_in_an_older_text_is_accepted(sql: Database) -> None:
    sql.rows(schema_of("ba9b5da"))
    upgrade(sql.url)
    finish(sql.url)
    assert sql.rows("SELECT version, oldest_node FROM jobqueue_internal.schema_version ORDER BY version") == [(1, 1), (2, 2)]


THEIRS = [
    "CREATE TABLE jobqueue.theirs (id serial PRIMARY KEY, other integer GENERATED ALWAYS AS IDENTITY, text text UNIQUE)",
    "CREATE TABLE jobqueue.parts (id integer) PARTITION BY LIST (id)",
    "CREATE TABLE jobqueue.parts_1 PARTITION OF jobqueue.parts FOR VALUES IN (1)",
    "CREATE SEQUENCE jobqueue.numbers",
    "CREATE VIEW jobqueue.seen AS SELECT id FROM jobqueue.theirs",
    "CREATE MATERIALIZED VIEW jobqueue.stored AS SELECT id FROM jobqueue.theirs",
    "CREATE TYPE jobqueue.color AS ENUM ('red')",
    "CREATE TYPE jobqueue.pair AS (one integer, two integer)",
    "CREATE TYPE jobqueue.span AS RANGE (subtype = integer)",
    "CREATE DOMAIN jobqueue.positive AS integer CHECK (value > 0)",
    "CREATE FUNCTION jobqueue.theirs(jobqueue.color) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE PROCEDURE jobqueue.step() LANGUAGE sql AS 'SELECT 1'",
    "CREATE AGGREGATE jobqueue.total (integer) (sfunc = int4pl, stype = integer)",
    "CREATE FUNCTION jobqueue.claim(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
]
"""Objects of a user in the schema jobqueue. A role with this name creates its tables there by default."""

USES = [
    "INSERT INTO jobqueue.theirs (text) VALUES ('after')",
    "INSERT INTO jobqueue.parts VALUES (1)",
    "SELECT nextval('jobqueue.numbers'), * FROM jobqueue.seen, jobqueue.stored, jobqueue.parts_1",
    "SELECT jobqueue.theirs('red'::jobqueue.color), (1, 2)::jobqueue.pair, '[1, 2]'::jobqueue.span, 1::jobqueue.positive",
    "SELECT jobqueue.total(1), jobqueue.claim(1)",
    "CALL jobqueue.step()",
    "SELECT * FROM public.all_jobs, public.dead",
]

LEFT = """
    SELECT relname FROM pg_class WHERE relnamespace = 'jobqueue_internal'::regnamespace
       AND relname ~ '^(theirs|parts|numbers|seen|stored|color|pair|span|positive)'
    UNION ALL
    SELECT proname FROM pg_proc WHERE pronamespace = 'jobqueue_internal'::regnamespace AND proname IN ('theirs', 'step', 'total')
    UNION ALL
    SELECT typname FROM pg_type WHERE typnamespace = 'jobqueue_internal'::regnamespace
       AND typname ~ '^_?(theirs|color|pair|span|multi|positive)'
"""
"""Objects of the user that are in the internal schema."""


def test_objects_of_users_stay_in_the_schema_jobqueue(version_1: Database) -> None:
    for statement in THEIRS:
        version_1.rows(statement)
    version_1.rows("CREATE VIEW public.all_jobs AS SELECT id, state FROM jobqueue.jobs")
    version_1.rows("CREATE VIEW public.dead AS SELECT id, reason FROM jobqueue.dead_jobs")
    version_1.rows("CREATE INDEX their_index ON jobqueue.pending_jobs (kind)")  # an index stays with its table
    count = version_1.value("SELECT count(*) FROM public.all_jobs, public.dead")
    upgrade(version_1.url)
    finish(version_1.url)
    for use in USES:
        version_1.rows(use)
    assert version_1.value("SELECT count(*) FROM public.all_jobs, public.dead") == count
    assert version_1.rows(LEFT) == []
    assert version_1.value(
        "SELECT indrelid::regclass::text FROM pg_index WHERE indexrelid = 'jobqueue_internal.their_index'::regclass"
    ) == ("jobqueue_internal.pending_jobs")
