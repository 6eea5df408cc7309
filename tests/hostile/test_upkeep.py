"""Partitions and retention despite odd session settings, missing privileges, or a user's view."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

import psycopg
import pytest
import trio

from jobqueue.storage import doctor, schema
from jobqueue.storage.postgres.store import PostgresStore
from tests.support import ROOT, postgres
from tests.support.postgres import Database
from tests.support.storage import Driver, new_id

KEEP = {"keep_finished": 86_400.0, "keep_cancelled": 86_400.0}

SESSIONS = [
    "-c timezone=Asia/Tokyo",
    "-c timezone=America/Los_Angeles -c datestyle=SQL,DMY",
    "-c timezone=Pacific/Kiritimati -c datestyle=German",
    "-c timezone=<+0545>-05:45 -c datestyle=Postgres,MDY -c intervalstyle=sql_standard",
    "-c timezone=America/Sao_Paulo -c standard_conforming_strings=off -c search_path=public",
]

FINISHED = """
    INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at,
        available_since, finished_at, errors)
    VALUES (%s, 'default', 'default', 0, 'succeeded', '{}', 1, 1, now(), now(), %s, '[]')
"""

BOUNDS = """
    SELECT p.name, to_char(p.since AT TIME ZONE 'UTC', 'YYYYMMDD HH24:MI'), p.until - p.since = interval '24 hours'
      FROM jobqueue_internal.partitions(%s) AS p ORDER BY p.since
"""


@pytest.fixture
def role(sql: Database) -> Iterator[str]:
    """A role that owns no object."""
    with postgres.role(sql.url) as name:
        yield name


def with_options(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}options={quote(options)}"


@pytest.mark.no_schema
@pytest.mark.parametrize("session", SESSIONS)
async def test_partitions_are_days_of_utc_whatever_the_session_has(any_database_url: str, sql: Database, session: str) -> None:
    url = with_options(any_database_url, session)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(schema.script().encode())
    for parent in ("succeeded_jobs", "cancelled_jobs"):
        for name, since, is_a_day in sql.rows(BOUNDS, parent):
            assert (f"{parent}_{since}", is_a_day) == (f"{name} 00:00", True)
        assert len(sql.rows(BOUNDS, parent)) == 3
    store = PostgresStore(url)
    assert await store.maintain(**KEEP) == (0, [])
    assert [finding.verdict for finding in doctor.examine(url) if finding.check == "partitions"] == ["ok"]
    await store.aclose()


@pytest.mark.parametrize("hours", [-14, -9, 9, 14])
async def test_partitions_that_are_off_are_gone_around(driver: Driver, sql: Database, hours: int) -> None:
    """Make partitions like an earlier version, in a session with this offset."""
    for (name,) in sql.rows("SELECT name FROM jobqueue_internal.partitions('succeeded_jobs')"):
        sql.rows(f"DROP TABLE jobqueue_internal.{name}")
    day = "date_trunc('day', now(), 'UTC') + %s * interval '1 day' + %s * interval '1 hour'"
    for n in (-3, 0, 1):
        [[name, since, until]] = sql.rows(
            f"SELECT to_char(now() AT TIME ZONE 'UTC' + %s * interval '1 day', 'YYYYMMDD'), {day}, {day}",
            *(n, n, hours, n + 1, hours),
        )
        partition = f"jobqueue_internal.succeeded_jobs_{name} PARTITION OF jobqueue_internal.succeeded_jobs"
        sql.rows(f"CREATE TABLE {partition} FOR VALUES FROM ('{since}') TO ('{until}')")
    assert await driver.store.maintain(**KEEP) == (1, [])
    await driver.in_state("succeeded")
    assert await driver.store.maintain(**KEEP) == (0, [])
    covered = """
        SELECT m.moment FROM generate_series(date_trunc('hour', now()), now() + interval '47 hours', '1 hour') AS m (moment)
         WHERE NOT EXISTS (SELECT FROM jobqueue_internal.partitions('succeeded_jobs') AS p
                            WHERE m.moment >= p.since AND m.moment < p.until)
           AND m.moment < date_trunc('day', now(), 'UTC') + interval '3 days'
    """
    assert sql.rows(covered) == []
    assert sql.states() == {"succeeded": 1}


async def test_a_partition_goes_by_its_bounds_and_not_by_its_name(driver: Driver, sql: Database) -> None:
    """Make partitions like a user who splits days, or keeps some longer."""
    for name, since, until in [
        ("succeeded_jobs_20990101", "2001-01-01", "2001-01-02"),
        ("succeeded_jobs_first", "MINVALUE", "1999-01-01"),
        ("succeeded_jobs_20000101", "2000-01-01", "2000-01-01 12:00+00"),
        ("succeeded_jobs_20010102", "2098-01-01", "MAXVALUE"),
    ]:
        bounds = [bound if "VALUE" in bound else f"'{bound}'" for bound in (since, until)]
        sql.rows(
            f"CREATE TABLE jobqueue_internal.{name} PARTITION OF jobqueue_internal.succeeded_jobs"
            f" FOR VALUES FROM ({bounds[0]}) TO ({bounds[1]})"
        )
    assert await driver.store.maintain(**KEEP) == (3, [])
    assert sql.value("SELECT count(*) FROM jobqueue_internal.partitions('succeeded_jobs') WHERE until = 'infinity'") == 1


def test_applying_the_schema_again_drops_no_partition(sql: Database) -> None:
    sql.rows(
        "CREATE TABLE jobqueue_internal.old PARTITION OF jobqueue_internal.succeeded_jobs"
        " FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')"
    )
    sql.rows(FINISHED, new_id(), "2020-01-01 12:00+00")
    sql.rows(schema.script())
    assert sql.states() == {"succeeded": 1}


async def test_a_view_on_a_partition_keeps_that_one_alone_and_its_jobs_are_deleted(driver: Driver, sql: Database) -> None:
    for day in (1, 2, 3):
        sql.rows(
            f"CREATE TABLE jobqueue_internal.old_{day} PARTITION OF jobqueue_internal.succeeded_jobs"
            f" FOR VALUES FROM ('2020-01-0{day} 00:00+00') TO ('2020-01-0{day + 1} 00:00+00')"
        )
        for _ in range(3):
            sql.rows(FINISHED, new_id(), f"2020-01-0{day} 12:00+00")
    sql.rows("CREATE VIEW public.report AS SELECT id FROM jobqueue_internal.old_2")
    dropped, [failed] = await driver.store.maintain(**KEEP)
    assert dropped == 2
    assert failed.startswith("cannot drop old_2: ")
    assert "depend" in failed
    assert sql.states() == {"succeeded": 3}
    [finding] = [finding for finding in doctor.examine(sql.url) if finding.check == "partitions"]
    assert finding.verdict == "warning"
    assert finding.finding.startswith("public.report reads old_2: ")
    assert await driver.store.prune(**KEEP, keep_dead=86_400) == 3
    assert await driver.store.prune(**KEEP, keep_dead=86_400) == 0
    assert sql.states() == {}
    sql.rows((finding.advice or "").partition(";")[0])
    assert await driver.store.maintain(**KEEP) == (1, [])


async def test_a_role_that_owns_no_table_creates_and_drops_partitions(driver: Driver, sql: Database, role: str) -> None:
    url = postgres.granted(sql.url, "node", role)
    # Made after the grant, so the role has no privilege on them.
    sql.rows(
        "CREATE TABLE jobqueue_internal.old PARTITION OF jobqueue_internal.succeeded_jobs"
        " FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')"
    )
    sql.rows("CREATE VIEW public.report AS SELECT id FROM jobqueue_internal.old")
    tomorrow = sql.value("SELECT min(name) FROM jobqueue_internal.partitions('cancelled_jobs') WHERE since > now()")
    sql.rows(f"DROP TABLE jobqueue_internal.{tomorrow}")
    for moment in ("2020-01-15", "2020-03-15"):  # the second is in the default partition
        sql.rows(FINISHED, new_id(), moment)
    await driver.in_state("succeeded")
    store = PostgresStore(url)
    dropped, [failed] = await store.maintain(**KEEP)
    assert dropped == 0
    assert failed.startswith("cannot drop old: ")
    assert await store.prune(**KEEP, keep_dead=86_400) == 2
    assert sql.states() == {"succeeded": 1}
    sql.rows("DROP VIEW public.report")
    assert await store.maintain(**KEEP) == (1, [])
    await store.aclose()
    assert {finding.verdict for finding in doctor.examine(url) if finding.check in ("partitions", "privileges")} == {"ok"}


async def test_what_cannot_be_deleted_is_raised_after_the_rest_is(driver: Driver, sql: Database) -> None:
    await driver.in_state("dead")
    sql.rows(FINISHED, new_id(), "2020-01-15")
    await trio.sleep(0.01)
    sql.rows("""
        CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$kept for the audit$$; END';
        CREATE TRIGGER refuse BEFORE DELETE ON jobqueue_internal.dead_jobs FOR EACH ROW EXECUTE FUNCTION public.refuse()
    """)
    assert sql.value("SELECT jobqueue_internal.prune(1, 1, 0)") == 1
    with pytest.raises(psycopg.errors.RaiseException, match="cannot delete old jobs from dead_jobs: kept for the audit"):
        sql.value("SELECT jobqueue_internal.prune(1, 1, 0)")
    assert sql.states() == {"dead": 1}


def test_a_database_of_another_encoding_is_refused_in_one_sentence(database_url: str) -> None:
    name = f"latin_{new_id()[-12:]}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        for encoding in ("LATIN1", "SQL_ASCII"):
            locale = "LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'"
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' {locale} TEMPLATE template0".encode())
            try:
                url = urlsplit(database_url)._replace(path=f"/{name}").geturl()
                done = subprocess.run(
                    ["psql", "-q", "-f", "schema.sql", url], capture_output=True, text=True, cwd=ROOT, check=False
                )
                first = done.stderr.splitlines()[0]
                assert (
                    f'the database "{name}" has the encoding {encoding}, but jobqueue needs UTF8: create another one with' in first
                )
                with psycopg.connect(url) as other:
                    assert other.execute("SELECT to_regnamespace('jobqueue_internal')").fetchone() == (None,)
            finally:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
