"""`jobqueue.schema`: the statements for migration tools."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import text

from jobqueue import schema
from jobqueue.errors import SettingsError
from jobqueue.storage.connection import connect
from jobqueue.storage.schema import due
from tests.upgrades.dumps import VERSION_1_SQL, load

SETTINGS = "SELECT name, setting FROM pg_settings WHERE context IN ('user', 'superuser') ORDER BY name"


@pytest.mark.no_schema
@pytest.mark.parametrize("from_version", [0, 1])
def test_the_statements_run_one_by_one_in_the_transaction_of_a_tool(any_database_url: str, from_version: int) -> None:
    if from_version:
        load(any_database_url, VERSION_1_SQL)
    with psycopg.connect(any_database_url) as connection:
        connection.execute("CREATE TABLE theirs (id integer); DO $$ BEGIN END $$")  # plpgsql has settings, too
        before = connection.execute(SETTINGS).fetchall()
        for statement in [*schema.steps(from_version, 2), *schema.finish_steps(2)]:
            connection.execute(statement.encode(), prepare=True)  # the server accepts only one statement
        assert connection.execute(SETTINGS).fetchall() == before
        connection.execute("INSERT INTO theirs VALUES (1)")
    with connect(any_database_url, "check") as connection:
        assert due(connection)[1:] == (None, [], False)


@pytest.mark.no_schema
def test_a_tool_can_roll_everything_back(any_database_url: str) -> None:
    with psycopg.connect(any_database_url) as connection:
        for statement in schema.steps(0, 2):
            connection.execute(statement.encode())
        connection.rollback()
        assert connection.execute("SELECT to_regnamespace('jobqueue')").fetchone() == (None,)


def test_sqlalchemy_keeps_the_text_of_each_statement() -> None:
    for statement in [*schema.steps(0, 2), *schema.finish_steps(2)]:
        clause = text(statement.replace(":", r"\:"))  # as docs/upgrading.md shows
        assert not clause._bindparams
        assert str(clause) == statement


def test_versions_and_names_that_cannot_be() -> None:
    for versions in [(2, 2), (1, 3), (-1, 2), (2, 1)]:
        with pytest.raises(ValueError, match=r"must rise, from 0 or more to at most 2"):
            schema.steps(*versions)
    for version in [1, 3]:
        with pytest.raises(ValueError, match="must be 2 to 2"):
            schema.finish_steps(version)
    with pytest.raises(SettingsError, match="schema name"):
        schema.steps(0, 2, schema="pg_queue")
    assert any("mail_internal.pending_jobs" in statement for statement in schema.steps(0, 2, schema="mail"))
