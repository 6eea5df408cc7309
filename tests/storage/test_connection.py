"""Statements over `psycopg.pq`: both directions at once, prepared statements, scripts, and the names of psycopg that they need."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
import trio

from jobqueue.storage import connection as connections
from jobqueue.storage.connection import Connection, Rows, connect

WARNINGS = 3_000
"""Number of warnings. Each has over 100 bytes, so they fill the buffers of both sockets."""


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    with connect(database_url, "test", 60) as connection:
        yield connection


async def execute(connection: Connection, sql: str, *params: object, in_loop: bool, prepare: bool = False) -> Rows:
    if in_loop:
        return await connection.execute_in_loop(sql, params, prepare=prepare)
    return await trio.to_thread.run_sync(lambda: connection.execute(sql, params, prepare=prepare))


@pytest.mark.parametrize("in_loop", [True, False])
async def test_a_statement_that_sends_and_receives_much_at_the_same_time_ends(connection: Connection, in_loop: bool) -> None:
    """The server warns about each backslash of the statement before it reads the parameter, and waits until we receive that."""
    warnings = 0

    def count(_: psycopg.errors.Diagnostic) -> None:
        nonlocal warnings
        warnings += 1

    connection.driver.add_notice_handler(count)
    connection.execute_script(b"SET client_min_messages = warning; SET standard_conforming_strings = off")
    literals = ", ".join([r"'\\'"] * WARNINGS)
    rows = await execute(connection, rf"SELECT length(%s), '\\' IN ({literals})", "x" * 4_000_000, in_loop=in_loop)
    assert rows == [(4_000_000, True)]
    assert warnings == WARNINGS + 1
    assert connection.execute("SELECT 1") == [(1,)]


@pytest.mark.parametrize("in_loop", [True, False])
async def test_values_keep_their_types(connection: Connection, in_loop: bool) -> None:
    sql = "SELECT %s::text AS text, %s + 1, %s::float8, %s::boolean, %s::text[], %s::jsonb, %s::bytea, '100%%'"
    values = ("ü☂'", 2**40, 0.1, True, ["a", None, 'b"'], '{"a": [1]}', b"\0\xff")
    for prepare in (False, True, True):
        rows = await execute(connection, sql, *values, in_loop=in_loop, prepare=prepare)
        assert rows == [("ü☂'", 2**40 + 1, 0.1, True, ["a", None, 'b"'], {"a": [1]}, b"\0\xff", "100%")]
        assert rows.names[0] == "text"


def test_a_statement_is_prepared_for_each_type_up_to_a_limit(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_PREPARED", 3)
    for value in (1, 2, 70_000, None, "5", 2**40):
        connection.execute("SELECT %s::bigint", [value], prepare=True)
    connection.execute("SELECT 1")
    types = "SELECT parameter_types::text FROM pg_prepared_statements ORDER BY name"
    assert connection.execute(types) == [("{smallint}",), ("{integer}",), ("{bigint}",)]
    connection.prepares = False
    assert connection.execute("SELECT 'other'", prepare=True) == [("other",)]


def test_a_script_returns_its_last_result_and_stops_at_its_first_error(connection: Connection) -> None:
    assert connection.execute_script(b"SELECT 1; SELECT 2 WHERE '%s' <> '%'").get_value(0, 0) == b"2"
    with pytest.raises(psycopg.errors.DivisionByZero) as failed:
        connection.execute_script(b"SELECT 1; SELECT 1 / 0; SELECT nothing()")
    assert failed.value.diag.message_primary == "division by zero"
    assert connection.execute("SELECT 1").first() == (1,)
    assert connection.execute("SELECT 1 WHERE false").first() is None


def test_a_session_that_the_server_ends_in_a_script_is_an_error(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.AdminShutdown):
        connection.execute_script(b"SELECT 1; SELECT pg_terminate_backend(pg_backend_pid())")
    assert connection.closed


def test_a_transaction_within_a_transaction_is_a_savepoint(connection: Connection) -> None:
    connection.execute("CREATE TABLE public.effects (n integer)")
    with connection.transaction():
        connection.execute("INSERT INTO public.effects VALUES (1)")
        with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
            connection.execute("INSERT INTO public.effects SELECT 1 / 0")
        with connection.transaction():
            connection.execute("INSERT INTO public.effects VALUES (2)")
    with pytest.raises(psycopg.errors.DivisionByZero), connection.transaction():
        connection.execute("DELETE FROM public.effects WHERE n / 0 = 1")
    connection.rollback()
    assert connection.execute("SELECT n FROM public.effects ORDER BY n") == [(1,), (2,)]


def test_an_interrupted_statement_is_cancelled(connection: Connection, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    class Interrupted:
        def register(self, *_: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(connections.select, "poll", Interrupted)
    pid = connection.info.backend_pid
    with pytest.raises(KeyboardInterrupt):
        connection.execute("SELECT pg_sleep(600)")
    assert connection.closed
    with psycopg.connect(database_url, autocommit=True) as other:
        while other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone():
            pass
