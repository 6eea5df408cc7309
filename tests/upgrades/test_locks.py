"""The locks that the parts of schema.sql take on tables and views that exist before."""

from __future__ import annotations

import psycopg
import pytest

from jobqueue.storage.schema import parts
from jobqueue.storage.schema.parts import Part
from tests.upgrades.dumps import VERSION_1_SQL, load

pytestmark = pytest.mark.no_schema

RELATIONS = "SELECT array_agg(oid) FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'i')"
LOCKS = """
    SELECT DISTINCT lower(regexp_replace(replace(l.mode, 'Lock', ''), '(?<=[a-z])(?=[A-Z])', ' ', 'g')), c.oid::regclass::text
      FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
     WHERE l.pid = pg_backend_pid() AND c.oid = ANY (%s) AND c.relnamespace::regnamespace::text LIKE 'jobqueue%%'
       AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock')
"""


def locks_of(connection: psycopg.Connection, run: list[Part]) -> dict[str, set[tuple[str, str]]]:
    """Run parts in one transaction. Return the locks of each part for which statements of nodes or users wait."""
    before = connection.execute(RELATIONS).fetchone()
    taken: dict[str, set[tuple[str, str]]] = {}
    for part in run:
        connection.execute(part.text.encode())
        held = set(connection.execute(LOCKS, before).fetchall())
        taken[part.name] = held.difference(*taken.values())
    connection.commit()
    return taken


def test_each_part_declares_its_locks(any_database_url: str) -> None:
    load(any_database_url, VERSION_1_SQL)
    unseen = {(part.name, lock.on) for part in [*parts.upgrading(), *parts.finishing()] for lock in part.locks}
    with psycopg.connect(any_database_url, options="-c search_path=pg_catalog") as connection:
        for run, chosen in {"upgrade": parts.upgrading(), "finish": parts.finishing(), "repair": parts.upgrading()}.items():
            declared = {part.name: {(lock.mode.lower(), lock.on) for lock in part.locks} for part in chosen}
            for name, locks in locks_of(connection, chosen).items():
                assert locks <= declared[name], f"{run}: {name}"
                unseen -= {(name, relation) for _, relation in locks}
    # The views do not exist any more when the test looks at the locks.
    assert unseen == {("upgrades/0002_after_two_schemas.sql", "the views of version 1")}


def test_no_part_locks_a_table_of_jobs() -> None:
    tables = {lock.on for part in [*parts.upgrading(), *parts.finishing()] for lock in part.locks if "_internal." in lock.on}
    assert tables == {"jobqueue_internal.schema_version", "jobqueue_internal.nodes"}
