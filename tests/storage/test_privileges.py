"""The privileges of each kind of role, also in databases with restrictions and after an upgrade of version 1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import psycopg
import pytest

from jobqueue.errors import SchemaVersionError
from jobqueue.storage import doctor, schema
from jobqueue.storage.connection import connect
from tests.support import ROOT, postgres
from tests.support.command_line import run_jobqueue
from tests.support.postgres import Database
from tests.support.service import Service
from tests.support.waiting import wait_for
from tests.upgrades.dumps import VERSION_1_SQL, load

pytestmark = pytest.mark.slow

KINDS = {
    "none": set[str](),
    "submit": {"submit"},
    "read": {"read"},
    "manage": {"submit", "read", "manage"},
    "node": {"submit", "read", "manage"},
}
"""The kinds of calls that each kind of role can make."""

JOB = "'00000000-0000-7000-8000-000000000000'"

CALLS = {
    "submit('mail')": "submit",
    "submit_many('[{}]')": "submit",
    "list_jobs()": "read",
    """list_dead('{"all": true}')""": "read",
    "dead_causes()": "read",
    f"change({JOB}, 1)": "manage",
    f"cancel({JOB})": "manage",
    """cancel_jobs('{"all": true}')""": "manage",
    f"retry({JOB})": "manage",
    """retry_dead('{"all": true}')""": "manage",
    f"discard({JOB})": "manage",
    """discard_dead('{"all": true}')""": "manage",
    "configure('mail', rate => 5)": "manage",
    "pause('mail')": "manage",
    "schedule('hourly', '0 * * * *', kind => 'mail')": "manage",
    "pause_schedule('hourly')": "manage",
    "trigger_schedule('hourly')": "manage",
    "unschedule('hourly')": "manage",
}
"""A call of each public function, and its kind."""

NODE_ONLY = [
    "SELECT jobqueue_internal.maintain(1e9, 1e9)",
    "SELECT jobqueue_internal.prune(1e9, 1e9, 1e9)",
    "SELECT jobqueue_internal.claim(gen_random_uuid(), '{}', '{}')",
    "SELECT * FROM jobqueue_internal.submit_batch('[{}]')",
    "SELECT jobqueue_internal.depth()",
]

DDL = [
    "CREATE TABLE jobqueue.other (id integer)",
    "CREATE TABLE jobqueue_internal.other (id integer)",
    "CREATE FUNCTION jobqueue.other() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION jobqueue_internal.other() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "DROP TABLE jobqueue_internal.keys",
    "ALTER TABLE jobqueue_internal.keys ADD COLUMN other integer",
    "CREATE INDEX ON jobqueue_internal.keys (scope)",
    "DROP VIEW jobqueue.jobs",
    "ALTER FUNCTION jobqueue.cancel SECURITY INVOKER",
    "COMMENT ON SCHEMA jobqueue IS ''",
    "DO $$ BEGIN PERFORM jobqueue_internal.grant_role('submit', 'pg_monitor'); END $$",
]
"""Statements that no kind of role can run."""

RESTRICTIONS = """
    CREATE SCHEMA jobqueue AUTHORIZATION {owner};
    CREATE SCHEMA jobqueue_internal AUTHORIZATION {owner};
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
    CREATE FUNCTION public.secure() RETURNS event_trigger LANGUAGE plpgsql AS $$
    DECLARE
        made text;
    BEGIN
        FOR made IN SELECT object_identity FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' LOOP
            EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', made);
            EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', made);
        END LOOP;
    END $$;
    CREATE EVENT TRIGGER secure ON ddl_command_end WHEN TAG IN ('CREATE TABLE', 'CREATE TABLE AS') EXECUTE FUNCTION public.secure()
"""

GENEROSITY = """
    GRANT CREATE ON DATABASE {database} TO {owner};
    ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON SCHEMAS TO PUBLIC;
    ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON TABLES TO PUBLIC;
    ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON FUNCTIONS TO PUBLIC
"""

SECRET = "payload-of-another-application"


class Host(NamedTuple):
    """A database whose owner created the schema, and a way to connect as a new role of a kind."""

    admin: Database
    owner: Database
    member: Callable[[str], Database]


@pytest.fixture(params=["restrictions", "generosity"])
def host(request: pytest.FixtureRequest, sql: Database) -> Iterator[Host]:
    """A database of a hosting service, where the owner of the schema is not a superuser. Use it with `no_schema`."""
    with ExitStack() as stack:
        owner = stack.enter_context(postgres.role(sql.url))
        database = sql.value("SELECT quote_ident(current_database())")
        sql.rows(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC; GRANT CONNECT ON DATABASE {database} TO PUBLIC")
        sql.rows({"restrictions": RESTRICTIONS, "generosity": GENEROSITY}[request.param].format(owner=owner, database=database))
        url = postgres.as_role(sql.url, owner)
        with connect(url, "migrate") as connection:
            assert schema.migrate(connection).applied
        as_owner = Database(url)
        stack.callback(as_owner.close)
        yield Host(sql, as_owner, lambda kind: member(stack, sql.url, url, kind))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def member(stack: ExitStack, admin: str, owner: str, kind: str) -> Database:
    """Create a role, let the owner grant it a kind, and connect as this role."""
    name = stack.enter_context(postgres.role(admin))
    database = Database(postgres.as_role(admin, name) if kind == "none" else postgres.granted(owner, kind, name))
    stack.callback(database.close)
    return database


def allows(database: Database, statement: str) -> bool:
    """Return whether the role has the privileges for a statement, which is rolled back."""
    database.rows("BEGIN")
    try:
        database.rows(statement)
    except psycopg.errors.InsufficientPrivilege:
        return False
    finally:
        database.rows("ROLLBACK")
    return True


def table_accesses(sql: Database) -> list[str]:
    """Return statements that read, insert, update, and delete no row of each table, except the partitions of days."""
    return [
        statement
        for table, column in sql.rows("""
            SELECT c.oid::regclass::text, (SELECT min(a.attname) FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0)
              FROM pg_class AS c
             WHERE c.relnamespace = 'jobqueue_internal'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname !~ '_[0-9]{8}$'
        """)
        for statement in (
            f"SELECT FROM {table} WHERE false",
            f"INSERT INTO {table} ({column}) SELECT NULL WHERE false",
            f"UPDATE {table} SET {column} = NULL WHERE false",
            f"DELETE FROM {table} WHERE false",
        )
    ]


def check(sql: Database, role: Database, kind: str) -> None:
    """Check everything that a role of a kind can do, and cannot do."""
    assert {call: allows(role, f"SELECT * FROM jobqueue.{call}") for call in CALLS} == {
        call: needed in KINDS[kind] for call, needed in CALLS.items()
    }
    views = [name for (name,) in sql.rows("SELECT viewname FROM pg_views WHERE schemaname = 'jobqueue'")]
    assert len(views) == 6
    assert {view: allows(role, f"SELECT FROM jobqueue.{view}") for view in views} == dict.fromkeys(views, "read" in KINDS[kind])
    name = role.value("SELECT current_user")
    for view in views:
        assert not sql.value("SELECT has_table_privilege(%s, %s, 'INSERT, UPDATE, DELETE')", name, f"jobqueue.{view}")
    accesses = table_accesses(sql)
    assert len(accesses) > 80
    assert [statement for statement in accesses + NODE_ONLY if allows(role, statement) != (kind == "node")] == []
    assert [statement for statement in DDL if allows(role, statement)] == []


@contextmanager
def connected(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


def secured(sql: Database) -> list[tuple[Any, ...]]:
    """Return the tables with row-level security."""
    return sql.rows("SELECT relname FROM pg_class WHERE relrowsecurity OR relforcerowsecurity")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_role_can_do_only_what_it_includes(sql: Database, stack: ExitStack, kind: str) -> None:
    check(sql, member(stack, sql.url, sql.url, kind), kind)


@pytest.mark.no_schema
def test_a_hosting_service_changes_nothing_about_the_kinds(host: Host) -> None:
    for kind in KINDS:
        check(host.owner, host.member(kind), kind)
    assert secured(host.admin) == []
    # Partitions that a node creates later have no row-level security either.
    partitions = host.owner.rows("SELECT name FROM jobqueue_internal.partitions('succeeded_jobs')")
    for (name,) in partitions:
        host.owner.rows(f"DROP TABLE jobqueue_internal.{name}")
    node = host.member("node")
    assert node.rows("SELECT * FROM jobqueue_internal.maintain(1e9, 1e9)") == [(0, [])]
    assert host.owner.rows("SELECT name FROM jobqueue_internal.partitions('succeeded_jobs')") == partitions
    assert secured(host.admin) == []
    for database in (node, host.owner):
        found = {finding.check: finding for finding in doctor.examine(database.url)}
        assert {found[name].verdict for name in ("schema", "objects", "privileges", "partitions")} == {"ok"}, found


def test_each_public_function_is_in_the_table(sql: Database) -> None:
    public = sql.rows("SELECT proname FROM pg_proc WHERE pronamespace = 'jobqueue'::regnamespace AND prosecdef")
    assert {name for (name,) in public} == {call.partition("(")[0] for call in CALLS}


def test_functions_that_run_as_the_owner_pin_their_search_path(sql: Database) -> None:
    functions = sql.rows("""
        SELECT p.oid::regprocedure::text, p.proconfig, p.proacl IS NOT NULL
          FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
         WHERE n.nspname IN ('jobqueue', 'jobqueue_internal') AND p.prosecdef
    """)
    assert len(functions) == len(CALLS) + 1
    assert [name for name, settings, _ in functions if "search_path=pg_catalog, pg_temp" not in settings] == []
    assert [name for name, _, has_list in functions if not has_list] == []


OLD_JOB = """
    CREATE TABLE jobqueue_internal.old PARTITION OF jobqueue_internal.succeeded_jobs
       FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');
    INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, attempt, claims, created_at,
                                                available_since, finished_at, errors)
    VALUES (gen_random_uuid(), 'default', 'default', 0, 'succeeded', '{}', 1, 1, now(), now(), '2020-01-01 12:00+00', '[]')
"""


def test_a_node_serves_with_the_privileges_of_its_kind(database: Database, stack: ExitStack) -> None:
    node, application, operator = (member(stack, database.url, database.url, kind) for kind in ("node", "submit", "manage"))
    database.rows(OLD_JOB)
    server = Service(["examples.quickstart", "--port", "0", "--database-url", node.url], {})
    try:
        assert server.url
        wait_for(lambda: database.states() == {}, "the node drops the old partition")
        application.rows("SELECT jobqueue.submit('default') FROM generate_series(1, 5)")
        application.rows(
            """SELECT jobqueue.submit('flaky', '{"failure_rate": 1}', max_retries => 1, concurrency_key => 'a', "group" => 'b')"""
        )
        operator.rows("SELECT jobqueue.schedule('hourly', '0 * * * *', kind => 'default')")
        database.rows("UPDATE jobqueue_internal.schedules SET next_at = now()")
        operator.rows("SELECT jobqueue.trigger_schedule('hourly')")
        wait_for(lambda: database.states() == {"succeeded": 7, "dead": 1}, "the jobs end")
        assert database.value("SELECT attempt FROM jobqueue.dead_jobs") == 2
        assert [
            finding
            for finding in doctor.examine(node.url)
            if finding.check in ("schema", "objects", "privileges", "partitions") and finding.verdict != "ok"
        ] == []
        assert "cannot be created or dropped" not in server.log
        assert server.stop() == 0
    finally:
        server.kill()


def test_migrations_grant_the_privileges_on_new_objects(sql: Database, stack: ExitStack) -> None:
    members = {kind: member(stack, sql.url, sql.url, kind) for kind in KINDS}
    sql.rows(
        "DROP FUNCTION jobqueue.submit, jobqueue.pause, jobqueue.list_jobs, jobqueue_internal.maintain;"
        " DROP VIEW jobqueue.schedules"
    )
    with connect(sql.url, "migrate") as connection:
        assert schema.migrate(connection).repaired
    for kind, role in members.items():
        check(sql, role, kind)


def test_the_command_names_the_fault_of_a_grant(sql: Database, stack: ExitStack) -> None:
    role = stack.enter_context(postgres.role(sql.url))
    owner = sql.value("SELECT current_user")

    def grant(*texts: str, url: str = sql.url) -> str:
        ended = run_jobqueue("migrate", "--database-url", url, *(part for text in texts for part in ("--grant", text)))
        assert (ended.returncode == 0) != bool(ended.stderr)
        return ended.stderr

    assert grant(f"submit={role}", f"read={role}") == ""
    assert sql.rows("SELECT kind FROM jobqueue_internal.granted_roles()") == [("submit",), ("read",)]
    assert "unknown kind of role 'write': the kinds are submit, read, manage, and node" in grant(f"node={role}", f"write={role}")
    assert 'role "nobody" does not exist: check its name, or create it with CREATE ROLE' in grant("node=nobody")
    assert f"role {owner} owns the tables, so it has all privileges" in grant(f"node={owner}")
    assert "'node' is not KIND=ROLE" in grant("node")
    # Either all grants of a command take effect, or none.
    assert sql.rows("SELECT kind FROM jobqueue_internal.granted_roles()") == [("submit",), ("read",)]
    worker = member(stack, sql.url, sql.url, "node")
    assert "run the command as the owner of the schema" in grant(f"node={role}", url=worker.url)


def test_a_role_that_submits_sees_no_payload(sql: Database, stack: ExitStack) -> None:
    secret = json.dumps({"secret": SECRET})
    [[existing]] = sql.rows("SELECT jobqueue.submit('mail', %s, unique_key => 'a', idempotency_key => 'b')", secret)
    sql.rows("SELECT jobqueue.submit('mail', %s, queue => 'other', concurrency_key => 'c', \"group\" => 'd')", secret)
    sql.rows("ANALYZE jobqueue_internal.pending_jobs")
    role = member(stack, sql.url, sql.url, "submit")
    seen: list[str] = []
    connection = stack.enter_context(psycopg.connect(role.url, autocommit=True))
    connection.add_notice_handler(lambda notice: seen.append(f"{notice.message_primary} {notice.message_detail} {notice.context}"))
    for statement in [
        "LISTEN jobqueue",
        "LISTEN jobqueue_scheduled",
        "SET client_min_messages = debug5",
        "SET debug_print_plan = on; SET debug_print_rewritten = on; SET debug_print_parse = on",
        "SELECT jobqueue.submit('mail', unique_key => 'a')",
        "SELECT jobqueue.submit('mail', idempotency_key => 'b')",
        "SELECT jobqueue.submit('other', '{\"x\": 1}', queue => 'other', idempotency_key => 'b')",
        f'SELECT jobqueue.submit_many(\'[{{"id": "{existing}"}}]\')',
        f'SELECT jobqueue.submit_many(\'[{{"id": "{existing}", "kind": "mail", "unique_key": "a"}}, {{"kind": 5}}]\')',
        "SELECT jobqueue.submit('mail', queue => 'other', concurrency_key => 'c', \"group\" => 'd')",
        "SELECT jobqueue.submit('mail', timeout => -1)",
        "SELECT jobqueue.submit('mail', run_at => 'infinity')",
        "EXPLAIN (ANALYZE, VERBOSE) SELECT jobqueue.submit('mail', unique_key => 'a')",
        "SET statement_timeout = '1ms'",
        "SELECT jobqueue.submit_many(jsonb_agg(jsonb_build_object('unique_key', n))) FROM generate_series(1, 5000) AS n",
        "SET statement_timeout = 0",
        "SELECT * FROM pg_stats WHERE schemaname = 'jobqueue_internal'",
        "SELECT * FROM pg_stat_activity",
        "SELECT * FROM pg_statistic",
        "TABLE jobqueue.jobs",
        "TABLE jobqueue_internal.pending_jobs",
        "COPY jobqueue_internal.pending_jobs TO STDOUT",
        "SELECT jobqueue.list_jobs()",
        "SELECT * FROM jobqueue_internal.walk('{}', '{}', NULL, 1, 1)",
        "CREATE TEMP VIEW mine AS TABLE jobqueue.jobs; TABLE mine",
    ]:
        try:
            cursor = connection.execute(statement.encode())
            seen += [str(cursor.fetchall())] if cursor.description else []
        except psycopg.Error as error:
            seen.append(f"{error} {error.diag.message_detail} {error.diag.context} {error.diag.message_hint}")
    seen += [notify.payload for notify in connection.notifies(timeout=0.1)]
    assert str(existing) in "".join(seen)
    assert [text for text in seen if SECRET in text] == []


SESSION = "; ".join(
    f"SET {setting}"
    for setting in [
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = sql_standard",
        "TimeZone = 'Asia/Kolkata'",
        "extra_float_digits = -15",
        "row_security = off",
        "transform_null_equals = on",
        "array_nulls = off",
        "standard_conforming_strings = off",
        "escape_string_warning = off",
        "quote_all_identifiers = on",
        "bytea_output = escape",
        "plan_cache_mode = force_custom_plan",
        "default_transaction_isolation = 'repeatable read'",
        "search_path = mine, pg_temp, public",
    ]
)
"""Settings that any role can change. Each one has changed the meaning of some SQL."""

HOSTILE = [
    "'",
    "''",
    "\\",
    "\\'",
    "' OR true --",
    "\\' OR true --",
    "'); DROP TABLE jobqueue_internal.keys; --",
    "%s %L %1$s $1",
    "$$",
    "E'\\\\'",
    "x'||pg_sleep(9)||'",
]


@pytest.mark.parametrize("session", ["SELECT", SESSION])
def test_a_filter_cannot_inject_sql(sql: Database, stack: ExitStack, session: str) -> None:
    [[job]] = sql.rows("SELECT jobqueue.submit('mail')")
    sql.rows(
        "INSERT INTO jobqueue_internal.dead_jobs (id, queue, kind, priority, reason, payload, attempt, claims, created_at,"
        " available_since, died_at, errors)"
        " SELECT gen_random_uuid(), 'default', 'mail', 0, 'failed', '{}', 1, 1, now(), now(), now(), '[]'"
    )
    role = member(stack, sql.url, sql.url, "manage")
    role.rows(session)
    for text in HOSTILE:
        for field in ("queue", "kind", "group", "concurrency_key", "text"):
            filter_ = json.dumps({field: text})
            assert role.value("SELECT jobqueue.list_jobs(%s) -> 'jobs'", filter_) == []
            assert role.value("SELECT jobqueue.cancel_jobs(%s)", filter_) == 0
        for field in ("queue", "kind", "group", "cause", "reason"):
            filter_ = json.dumps({field: text})
            assert role.rows("SELECT jobqueue.list_dead(%s)", filter_) == []
            assert role.value("SELECT jobqueue.dead_causes(%s) -> 'causes'", filter_) == []
            assert role.value("SELECT jobqueue.retry_dead(%s)", filter_) == 0
            assert role.value("SELECT jobqueue.discard_dead(%s)", filter_) == 0
        for field in ("created_after", "created_before", "state", "all"):
            with pytest.raises(psycopg.errors.CheckViolation):
                role.rows("SELECT jobqueue.list_jobs(%s)", json.dumps({field: text}))
    assert sql.states() == {"pending": 1, "dead": 1}
    assert role.value("SELECT jobqueue.list_jobs(%s) -> 'jobs' -> 0 ->> 'id'", json.dumps({"text": str(job)})) == str(job)


def test_objects_of_the_caller_are_not_used(sql: Database, stack: ExitStack) -> None:
    role = member(stack, sql.url, sql.url, "manage")
    sql.rows(f"CREATE SCHEMA mine AUTHORIZATION {role.value('SELECT current_user')}")
    for name, arguments, result in [
        ("now", "", "timestamptz"), ("clock_timestamp", "", "timestamptz"), ("jsonb_array_length", "jsonb", "integer"),
        ("pg_notify", "text, text", "void"),
        ("submit_many", "jsonb", "uuid[]"), ("refuse_unfit", "jsonb, text, text[]", "void"), ("coalesce_", "jsonb, text", "text"),
    ]:  # fmt: skip
        for place in ("mine", "pg_temp"):
            role.rows(
                f"CREATE FUNCTION {place}.{name}({arguments}) RETURNS {result} LANGUAGE plpgsql AS 'BEGIN RAISE $$used$$; END'"
            )
    role.rows("CREATE OPERATOR mine.-> (FUNCTION = mine.coalesce_, LEFTARG = jsonb, RIGHTARG = text)")
    role.rows("CREATE OPERATOR mine.->> (FUNCTION = mine.coalesce_, LEFTARG = jsonb, RIGHTARG = text)")
    for table in ("jobs", "pending_jobs", "queues", "keys", "pg_class", "pg_namespace"):
        role.rows(f"CREATE TEMP TABLE {table} (id uuid)")
    role.rows(SESSION)
    role.rows("SET search_path = pg_temp, mine, pg_catalog")
    for call in CALLS:
        role.rows(f"SELECT * FROM jobqueue.{call}")
    assert role.rows("SELECT * FROM jobs") == []


@pytest.mark.no_schema
def test_roles_of_version_1_keep_working(any_database_url: str, stack: ExitStack) -> None:
    load(any_database_url, VERSION_1_SQL)
    sql = Database(any_database_url)
    stack.callback(sql.close)
    worker, reader, viewer = (stack.enter_context(postgres.role(sql.url)) for _ in range(3))
    sql.rows(
        f"GRANT USAGE, CREATE ON SCHEMA jobqueue TO {worker};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA jobqueue TO {worker};"
        f" GRANT USAGE ON SCHEMA jobqueue TO {reader}, {viewer}; GRANT SELECT ON ALL TABLES IN SCHEMA jobqueue TO {reader};"
        f" GRANT SELECT ON jobqueue.jobs TO {viewer}"
    )
    with connect(sql.url, "migrate") as connection:
        schema.migrate(connection)
    databases = {name: stack.enter_context(connected(postgres.as_role(sql.url, name))) for name in (worker, reader, viewer)}
    read = "SELECT FROM jobqueue.jobs LIMIT 1"
    for statement, allowed in {
        read: {worker, reader, viewer},
        "SELECT jobqueue.list_jobs()": {worker, reader, viewer},
        "SELECT jobqueue.dead_causes()": {worker, reader},
        "SELECT FROM jobqueue.queues": {worker, reader},
        "SELECT FROM jobqueue.pending_jobs": {worker, reader},
        "SELECT version FROM jobqueue.schema_version": {worker, reader},
        "SELECT jobqueue.submit('mail')": {worker},
        "SELECT * FROM jobqueue.submit_batch('[{}]')": {worker},
        "SELECT jobqueue.pause('mail')": {worker},
        "INSERT INTO jobqueue.queues (name) VALUES ('new')": {worker},
        "SELECT jobqueue.join_node(gen_random_uuid(), 'host', 1, '', '0.1.0', '{}', 10)": {worker},
        "SELECT jobqueue.maintain(1e9, 1e9)": {worker},
    }.items():
        assert {name for name, database in databases.items() if allows(database, statement)} == allowed, statement
    with connect(sql.url, "migrate") as connection:
        schema.finish(connection)
    check(sql, databases[worker], "node")
    granted = sql.rows("SELECT kind FROM jobqueue_internal.granted_roles() WHERE role = %s::regrole", reader)
    assert granted == [("read",)]
    assert allows(databases[viewer], read)
    assert not allows(databases[worker], "CREATE TABLE jobqueue_internal.mine (id integer)")


@pytest.mark.no_schema
def test_the_statements_of_the_page_about_security(any_database_url: str, stack: ExitStack) -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    admin = Database(any_database_url)
    stack.callback(admin.close)
    names = {name: stack.enter_context(postgres.role(admin.url)) for name in ("jobqueue", "app", "grafana", "worker")}
    grants, node, reduce, create = (
        re.sub(r"(?<=TO )\w+|(?<=FROM )\w+|(?<=AUTHORIZATION )\w+|(?<=, ')\w+", lambda name: names[name[0]], block)
        for block in re.findall(r"```sql\n(.+?)```", page, re.DOTALL)
    )
    admin.rows(create)
    with connect(postgres.as_role(admin.url, names["jobqueue"]), "migrate") as connection:
        schema.migrate(connection)
    owner = stack.enter_context(connected(postgres.as_role(admin.url, names["jobqueue"])))
    owner.rows(grants)
    owner.rows(node)
    kinds = "SELECT string_agg(kind, ' ') FROM jobqueue_internal.granted_roles() WHERE role = %s::regrole"
    assert [owner.value(kinds, names[name]) for name in ("app", "grafana", "worker")] == [
        "submit",
        "read",
        "submit read manage node",
    ]
    owner.rows(node.replace(names["worker"], names["app"]))
    owner.rows(reduce)
    with connected(postgres.as_role(admin.url, names["app"])) as application:
        check(owner, application, "submit")


@pytest.mark.no_schema
def test_a_role_that_cannot_create_schemas_gets_one_sentence(sql: Database, stack: ExitStack) -> None:
    role = stack.enter_context(postgres.role(sql.url))
    fault = "may not create the schema .*permission denied for database"
    with connect(postgres.as_role(sql.url, role), "migrate") as connection, pytest.raises(SchemaVersionError, match=fault):
        schema.migrate(connection)


@pytest.mark.no_schema
def test_a_superuser_upgrades_the_schema_of_another_owner(sql: Database, stack: ExitStack) -> None:
    owner = stack.enter_context(postgres.role(sql.url))
    sql.rows(f"GRANT CREATE ON DATABASE {sql.value('SELECT quote_ident(current_database())')} TO {owner}")
    url = postgres.as_role(sql.url, owner)
    load(url, VERSION_1_SQL)
    sql.rows(f"REVOKE CREATE ON DATABASE {sql.value('SELECT quote_ident(current_database())')} FROM {owner}")
    foreign = """
        SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
         WHERE n.nspname ~ '^jobqueue' AND c.relowner <> %s::regrole
         UNION ALL
        SELECT p.oid::regprocedure::text FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
         WHERE n.nspname ~ '^jobqueue' AND p.proowner <> %s::regrole
    """
    admin = sql.value("SELECT current_user")
    text = schema.script()
    sql.rows(f"BEGIN; {text}")
    assert sql.value("SELECT current_user") == admin
    sql.rows("COMMIT")
    assert sql.rows(foreign, owner, owner) == []
    with connect(sql.url, "migrate") as connection:
        schema.migrate(connection)
        schema.finish(connection)
    sql.rows("DROP VIEW jobqueue.nodes; DROP FUNCTION jobqueue.pause")
    with connect(sql.url, "migrate") as connection:
        assert schema.migrate(connection).repaired == ["function jobqueue.pause", "view jobqueue.nodes"]
    assert sql.rows(foreign, owner, owner) == []
    with connected(url) as database:
        assert database.value("SELECT count(*) > 0 FROM jobqueue.jobs")
    with connect(url, "migrate") as connection:
        assert not schema.migrate(connection).repaired
