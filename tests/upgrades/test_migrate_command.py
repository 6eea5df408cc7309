"""`jobqueue migrate` with --finish, --print, --plan, and --check."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from jobqueue.storage import schema
from jobqueue.storage.connection import connect
from jobqueue.storage.schema import catalog, parts
from tests.support.command_line import run_jobqueue
from tests.support.postgres import Database
from tests.support.postgres import database as create_database
from tests.upgrades.dumps import VERSION_1_SQL, load

pytestmark = [pytest.mark.no_schema, pytest.mark.slow]


def migrate(url: str, *arguments: str, code: int = 0) -> str:
    done = run_jobqueue("migrate", "--database-url", url, "--log-level", "error", *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code < 2 else done.stderr


def printed(*arguments: str) -> bytes:
    done = run_jobqueue("migrate", "--print", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.encode()


@pytest.fixture
def version_1(any_database_url: str) -> Iterator[Database]:
    load(any_database_url, VERSION_1_SQL)
    database = Database(any_database_url)
    yield database
    database.close()


def old_node(database: Database, table: str) -> None:
    database.rows(
        f"INSERT INTO {table} (id, host, pid, process, version, queues, lease_until)"
        " VALUES (%s, 'old.example', 17, 'x', '0.1.0', '{}', now() + interval '1 hour')",
        uuid.uuid4(),
    )


def test_the_steps_of_an_upgrade(version_1: Database) -> None:
    url = version_1.url
    old_node(version_1, "jobqueue.nodes")
    assert migrate(url, "--check", code=1) == "The database has version 1. The upgrade to version 2 is due.\n"
    plan = migrate(url, "--plan", "--finish")
    for line in [
        r"upgrades/0002_before_locks.sql +ACCESS EXCLUSIVE +jobqueue_internal.nodes +about 30 ms +heartbeats, claims,.*",
        r"\d+ other parts lock no existing table or view.",
        r"To finish the upgrade, in one transaction:",
        r"upgrades/0002_after_two_schemas.sql +SHARE ROW EXCLUSIVE +jobqueue_internal.nodes +about 20 ms +heartbeats",
    ]:
        assert re.search(f"^{line}$", plan, re.MULTILINE), plan
    assert version_1.value("SELECT to_regnamespace('jobqueue_internal')") is None

    assert migrate(url).startswith("schema version 2: applied\nNodes of the previous version can still run.")
    assert migrate(url, "--check").startswith("The database has version 2. Nodes of the previous version can still run.")
    migrate(url, "--check", "--finish", code=1)
    error = migrate(url, "--finish", code=4)
    assert "nodes of version 1 are running: old.example (pid 17)" in error
    assert "Stop these nodes" in error

    version_1.rows("DELETE FROM jobqueue_internal.nodes WHERE host = 'old.example'")
    assert migrate(url, "--finish") == "schema version 2: up to date\nupgrade finished\n"
    assert (
        migrate(url, "--check", "--finish") == migrate(url, "--plan", "--finish") == "The database has version 2. Nothing is due.\n"
    )
    assert migrate(url, "--finish") == "schema version 2: up to date\n"


def test_without_old_nodes_one_command_upgrades_and_finishes(version_1: Database) -> None:
    assert migrate(version_1.url, "--finish") == "schema version 2: applied\nupgrade finished\n"
    assert version_1.rows("SELECT version, oldest_node FROM jobqueue.schema_version ORDER BY 1") == [(1, 1), (2, 2)]


def objects(url: str) -> catalog.Catalog:
    with connect(url, "look") as connection:
        return catalog.look(connection, schema.source())


@pytest.fixture
def new(any_database_url: str) -> Iterator[Database]:
    """Another database, without the schema."""
    with create_database(any_database_url) as url:
        database = Database(url)
        yield database
        database.close()


def test_the_printed_scripts_create_upgrade_and_finish(version_1: Database, new: Database) -> None:
    new.rows(printed().decode())
    fresh = objects(new.url)
    version_1.rows(printed("--from", "1").decode())
    assert version_1.rows("SELECT version, oldest_node FROM jobqueue_internal.schema_version ORDER BY 1") == [(1, 1), (2, 1)]
    version_1.rows(printed("--finish").decode())
    version_1.rows(printed("--finish").decode())
    assert objects(version_1.url) == fresh
    for url in (new.url, version_1.url):
        assert migrate(url, "--check", "--finish") == "The database has version 2. Nothing is due.\n"


def test_the_script_of_the_after_steps_rejects_another_version(version_1: Database, new: Database) -> None:
    for database in (version_1, new):
        with pytest.raises(psycopg.errors.RaiseException, match="does not have version 2: upgrade it"):
            database.rows(printed("--finish").decode())
        database.rows("ROLLBACK")


def test_a_printed_script_has_no_commands_of_psql() -> None:
    for arguments in [(), ("--from", "1"), ("--finish",)]:
        text = printed(*arguments).decode()
        assert not re.search(r"^\\", text, re.MULTILINE)
        assert (text.count("\nCOMMIT;\n"), text.startswith("BEGIN ")) == (1, True)


def test_check_and_plan_of_other_databases(sql: Database) -> None:
    assert migrate(sql.url, "--check", code=1) == "The database has no schema. Version 2 is due.\n"
    assert migrate(sql.url, "--plan").splitlines()[-1] == "It locks no existing table."
    assert sql.value("SELECT to_regnamespace('jobqueue')") is None
    migrate(sql.url)
    sql.rows("DROP FUNCTION jobqueue_internal.wake_keys()")
    repair = "The database has version 2, but a repair is due: function jobqueue_internal.wake_keys."
    assert migrate(sql.url, "--check", code=1) == f"{repair}\n"
    assert migrate(sql.url, "--plan", "--check", code=1).splitlines()[0] == repair
    migrate(sql.url)
    sql.rows("INSERT INTO jobqueue_internal.schema_version (version, oldest_node) VALUES (3, 2)")
    assert migrate(sql.url, "--check") == "The database has version 3, which supports nodes of version 2.\n"
    sql.rows("UPDATE jobqueue_internal.schema_version SET oldest_node = 3 WHERE version = 3")
    assert "upgrade jobqueue" in migrate(sql.url, "--check", code=4)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--print", "--check"], "do not combine it"),
        (["--print", "--database-url", "postgresql://localhost"], "do not combine it"),
        (["--from", "1"], "with --print only"),
        (["--print", "--from", "2"], "2 is not in the range"),
        ([], "--database-url, or set DATABASE_URL"),
    ],
)
def test_options_that_do_not_fit_together(arguments: list[str], error: str) -> None:
    done = run_jobqueue("migrate", *arguments)
    assert done.returncode == 2
    assert error in done.stderr


def test_the_numbers_of_the_version_agree() -> None:
    [this] = re.findall(r"this_version constant integer := (\d+);", (parts.SOURCE / "prepare.sql").read_text())
    assert int(this) == schema.SCHEMA_VERSION
    steps = {part.version for part in parts.upgrading()} - {None}
    assert steps == set(range(schema.OLDEST_VERSION + 1, schema.SCHEMA_VERSION + 1))
    files = {f"upgrades/{file.name}" for file in (parts.SOURCE / "upgrades").iterdir()}
    assert files == {part.name for part in [*parts.upgrading(), *parts.finishing()] if part.version}


def test_the_statements_of_all_parts_are_split_where_they_end() -> None:
    for part in [*parts.upgrading(), *parts.finishing()]:
        found = parts.statements(part.text)
        assert "\n".join(found).split() == part.text.split(), part.name
        assert all(re.match(r"(--[^\n]*\n|\s)*(SET|DO|CREATE|COMMENT|REVOKE|INSERT|GRANT|ALTER)\b", text) for text in found), (
            part.name
        )
