"""Functions for SQL users have the same effect with any session settings, or fail with an error of PostgreSQL."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tests.support import postgres
from tests.support.postgres import Database
from tests.support.storage import Driver, new_id

SHADOWS = """
    CREATE SCHEMA evil;
    CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''1999-01-01''';
    CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''1999-01-01''';
    CREATE FUNCTION evil.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$shadowed$$; END';
    CREATE FUNCTION evil.jsonb_typeof(jsonb) RETURNS text LANGUAGE sql AS 'SELECT ''string''';
    CREATE FUNCTION evil.jsonb_array_length(jsonb) RETURNS integer LANGUAGE sql AS 'SELECT 0';
    CREATE FUNCTION evil.hide(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
    CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.hide);
    CREATE FUNCTION evil.hide(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT false';
    CREATE OPERATOR evil.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = evil.hide);
    CREATE FUNCTION evil.hide(jsonb, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
    CREATE OPERATOR evil.? (LEFTARG = jsonb, RIGHTARG = text, FUNCTION = evil.hide);
    CREATE TABLE evil.jobs (id text);
    CREATE TABLE evil.queues (name text)
"""

DEAD = """
    INSERT INTO jobqueue_internal.dead_jobs
           (id, queue, kind, priority, reason, payload, attempt, claims, created_at, available_since, died_at, errors)
    SELECT gen_random_uuid(), 'default', 'dies', 0, 'no luck', '{}', 1, 1, now(), now(),
           '2026-01-01 00:00+00'::timestamptz + n * interval '1 hour',
           jsonb_build_array(jsonb_build_object('error', 'ValueError: id ' || n || ' of part "x7"'))
      FROM generate_series(1, 6) AS n
"""
"""Makes dead jobs with one cause, which die an hour apart."""

SETTINGS = {
    "timezone": ["Asia/Kolkata", "America/St_Johns"],
    "datestyle": ["SQL,DMY", "German"],
    "intervalstyle": ["sql_standard", "iso_8601"],
    "extra_float_digits": ["-15", "3"],
    "search_path": ["evil,pg_catalog", '"",pg_temp'],
    "standard_conforming_strings": ["off"],
    "backslash_quote": ["off"],
    "bytea_output": ["escape"],
    "transform_null_equals": ["on"],
    "array_nulls": ["off"],
    "default_transaction_isolation": ["repeatable read", "serializable"],
    "session_replication_role": ["replica"],
    "plpgsql.extra_errors": ["all"],
    "plpgsql.variable_conflict": ["use_variable", "use_column"],
    "row_security": ["off"],
    "enable_indexscan": ["off"],
    "enable_seqscan": ["off"],
    "plan_cache_mode": ["force_generic_plan", "force_custom_plan"],
    "jit_above_cost": ["0"],
    "lc_messages": ["C"],
    "lc_numeric": ["C"],
    "client_min_messages": ["error"],
    "constraint_exclusion": ["on"],
    "check_function_bodies": ["off"],
    "quote_all_identifiers": ["on"],
    "xmlbinary": ["hex"],
}
"""One or two odd values of each setting."""

CASES = [
    *({name: value} for name, values in SETTINGS.items() for value in values),
    {"timezone": "Asia/Kolkata", "datestyle": "SQL,DMY"},  # shown as IST, which is read as the time in Israel
    {"timezone": "Africa/Monrovia", "datestyle": "Postgres,MDY", "extra_float_digits": "-15"},
]


def session(url: str, settings: dict[str, str]) -> psycopg.Connection[Any]:
    connection = psycopg.connect(url, autocommit=True)
    for name, value in settings.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, value])
    return connection


class Session:
    """A session with odd settings, which notes its results without ids and times, and another without odd settings."""

    def __init__(self, connection: psycopg.Connection[Any], plain: Database) -> None:
        self.seen: list[Any] = []
        self.plain = plain
        self.connection = connection

    def call(self, sql: str, *params: Any) -> Any:
        row = self.connection.execute(sql.encode(), params or None).fetchone()
        return None if row is None else row[0]

    def see(self, sql: str, *params: Any) -> None:
        self.seen.append(self.call(sql, *params))

    def look(self, sql: str, *params: Any) -> None:
        self.seen.append(self.plain.rows(sql, *params))

    def submit(self) -> None:
        submit = """
            SELECT jobqueue.submit('mail', '{"to": "a"}', queue => 'post', priority => 3, timeout => 0.123456789,
                idempotency_key => %s, "group" => 'acme', weight => 2.5,
                expires_at => '2096-12-01 12:00:00.123456+00', run_at => '2026-01-02 03:04:05.123456+00')::text
        """
        key = f"key-{new_id()}"
        first = self.call(submit, key)
        self.seen.append(self.plain.value(submit, key) == first)  # the key matches, although floats look different
        kept = "options - '{turn,rank,idempotency_key}'::text[]"
        self.look(f"SELECT payload, priority, timeout, {kept} FROM jobqueue.jobs WHERE queue = 'post'")
        keyed = [self.call("SELECT jobqueue.submit('slow', concurrency_key => 'account 7')::text") for _ in range(2)]
        unique = '{"kind": "b", "unique": true, "payload": {"f": 0.1}}'
        late, *twins = self.call("SELECT jobqueue.submit_many(%s)::text[]", f'[{{"kind": "a", "delay": 3600}}, {unique}, {unique}]')
        self.seen += [len(set(twins)), self.plain.states()]
        self.see("SELECT jobqueue.change(%s, priority => 7)", late)
        self.see("SELECT jobqueue.change(%s, run_at => now() - interval '1 hour')", late)
        self.look("SELECT priority, available_since <= now() FROM jobqueue_internal.pending_jobs WHERE id = %s", late)
        page = self.call("""SELECT jobqueue.list_jobs('{"queue": "post", "created_after": "2020-02-01T00:00:00Z"}')""")
        self.seen.append([job["id"] == first for job in page["jobs"]])
        self.see("""SELECT jobqueue.list_jobs('{"created_before": "2020-02-01T00:00:00+02:00"}')""")
        self.see("""SELECT jobqueue.cancel_jobs('{"kind": "a"}', dry_run => true)""")
        self.see("""SELECT jobqueue.cancel_jobs('{"kind": "a"}')""")
        self.see("SELECT jobqueue.cancel(%s)", keyed[1])
        self.see("SELECT jobqueue.cancel(%s)", keyed[1])
        self.look("SELECT kind, state FROM jobqueue.jobs ORDER BY kind, state")

    def steer(self) -> None:
        self.call("SELECT jobqueue.pause('post')")
        self.call("SELECT jobqueue.configure('post', aging_interval => '90 minutes', max_running => 3, rate => 0.1, key_rate => 2)")
        self.call("SELECT jobqueue.configure('post', clear => '{key_rate}')")
        self.look("SELECT paused, aging_interval, max_running, rate, key_rate FROM jobqueue_internal.queues WHERE name = 'post'")
        nightly = (
            "SELECT jobqueue.schedule('nightly', '0 3 * * *', 'Europe/Berlin', payload => '{\"f\": 0.1}', timeout => 0.123456789)"
        )
        self.see(nightly)
        self.see(nightly)
        self.see("SELECT jobqueue.pause_schedule('nightly')")
        self.see("SELECT jobqueue.trigger_schedule('nightly') IS NOT NULL")
        self.look("SELECT payload, timeout, options FROM jobqueue.jobs WHERE kind = 'nightly'")
        self.see("SELECT jobqueue.unschedule('nightly')")

    def redrive(self) -> None:
        self.plain.rows(DEAD)
        causes = self.call("""SELECT jobqueue.dead_causes('{"kind": "dies"}')""")["causes"]
        self.seen.append([(cause["jobs"], cause["cause"]) for cause in causes])
        self.see("""SELECT count(*) FROM jobqueue.list_dead('{"died_after": "2026-01-01T02:30:00Z"}')""")
        self.see(
            """SELECT count(*) FROM jobqueue.list_dead('{"all": true}', 9, '2026-01-01 03:00+00', %s)""",
            "00000000-0000-0000-0000-000000000000",
        )
        ids = [job_id for (job_id,) in self.plain.rows("SELECT id::text FROM jobqueue_internal.dead_jobs ORDER BY died_at")]
        self.see("SELECT jobqueue.retry(%s)", ids[0])
        self.see("SELECT jobqueue.discard(%s)", ids[1])
        some = '{"died_before": "2026-01-01T04:30:00Z", "kind": "dies"}'
        self.see("SELECT jobqueue.retry_dead(%s, dry_run => true)", some)
        self.see("SELECT jobqueue.retry_dead(%s, 1)", some)
        self.see("SELECT jobqueue.discard_dead(%s, dry_run => true)", some)
        self.see("SELECT jobqueue.discard_dead(%s)", some)
        self.seen.append(self.plain.states())

    def work(self, node: str) -> None:
        """Call the functions of a node, which sets some settings on each of its connections."""
        self.connection.execute(b"RESET search_path; RESET extra_float_digits; RESET default_transaction_isolation; DISCARD TEMP")
        self.see("SELECT jobqueue_internal.heartbeat(%s, 60)", node)
        self.see("SELECT checks FROM jobqueue_internal.admit()")
        claimed = self.call("SELECT jobqueue_internal.claim(%s, '{\"default\": [100, null]}')::jsonb", node)
        claimed.sort(key=lambda job: job[2])
        self.seen.append([job[2] for job in claimed])
        outcomes = ["succeeded", "retry", "dead", "snoozed", "released", "cancelled"]
        given = [
            {"id": job[1], "claims": job[6], "outcome": outcome, "delay": 0.5, "reason": "r", "error": {"error": "e 7"}}
            for job, outcome in zip(claimed, outcomes, strict=False)
        ]
        self.see("SELECT jobqueue_internal.finish(%s, %s)", node, Jsonb(given))
        self.see("SELECT promoted FROM jobqueue_internal.promote()")
        self.look("SELECT kind, reason, cause FROM jobqueue_internal.dead_jobs ORDER BY died_at")
        self.call("SELECT next_in FROM jobqueue_internal.record(1, 1, 0, 0, '{}', '{}', true)")
        self.see("SELECT (m.dropped, m.failed)::text FROM jobqueue_internal.maintain(1e9, 1e9) AS m")
        self.see("SELECT jobqueue_internal.prune(1e9, 1e9, 1e9)")
        self.see("SELECT jobqueue_internal.prune_keys()")
        self.see("SELECT count(*) FROM jobqueue_internal.recover()")
        self.look("SELECT kind, state FROM jobqueue.jobs ORDER BY kind, state")


async def test_functions_do_the_same_in_any_session(driver: Driver, sql: Database) -> None:
    sql.rows(SHADOWS)
    sql.rows("SET timezone = 'UTC'")

    async def run(settings: dict[str, str], prepare: str = "SELECT 1") -> list[Any]:
        postgres.empty(sql._connection)
        await driver.join()
        with session(sql.url, settings) as connection:
            connection.execute(prepare.encode())
            try:
                odd = Session(connection, sql)
                for part in (odd.submit, odd.steer, odd.redrive):
                    part()
                odd.work(driver.node)
            except psycopg.Error as error:
                return [f"{type(error).__name__}: {error}"]
            return odd.seen

    expected = await run({})
    assert len(expected) > 30, expected
    got = {str(settings): await run(settings) for settings in CASES}
    for name in ("uuid", "jsonb", "timestamptz", "jobs", "queues"):
        got[f"a temporary table {name}"] = await run({}, f"CREATE TEMP TABLE {name} (a integer)")
    differing = {
        case: [pair for pair in zip(what, expected, strict=False) if pair[0] != pair[1]]
        for case, what in got.items()
        if what != expected
    }
    assert not differing, differing
