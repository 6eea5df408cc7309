"""The schema `jobqueue` has exactly the objects of ``public_api.txt``, and each one has a description."""

from __future__ import annotations

from pathlib import Path

from tests.support.postgres import Database

PUBLIC_API = Path(__file__).with_name("public_api.txt")
"""The functions with their arguments and results, and the views with their columns. Applications and nodes of other versions use
them. So add lines, but do not change or remove any."""

OBJECTS = """
    SELECT format('function %s(%s) returns %s, %s%s', p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
                  CASE p.provolatile WHEN 'v' THEN 'volatile' WHEN 's' THEN 'stable' ELSE 'immutable' END,
                  CASE WHEN p.prosecdef THEN '' ELSE ', security invoker' END)
      FROM pg_proc AS p WHERE p.pronamespace = 'jobqueue'::regnamespace
    UNION ALL
    SELECT format('view %s: %s', c.relname,
                  string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum))
      FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
     WHERE c.relnamespace = 'jobqueue'::regnamespace GROUP BY c.oid, c.relname
"""

UNDESCRIBED = """
    SELECT p.proname FROM pg_proc AS p
     WHERE p.pronamespace = 'jobqueue'::regnamespace AND obj_description(p.oid, 'pg_proc') IS NULL
    UNION ALL
    SELECT c.relname FROM pg_class AS c
     WHERE c.relnamespace = 'jobqueue'::regnamespace AND obj_description(c.oid, 'pg_class') IS NULL
    UNION ALL
    SELECT n.nspname FROM pg_namespace AS n
     WHERE n.nspname ~ '^jobqueue' AND obj_description(n.oid, 'pg_namespace') IS NULL
"""


def test_the_public_api_is_the_frozen_one(sql: Database) -> None:
    assert sorted(text for (text,) in sql.rows(OBJECTS)) == PUBLIC_API.read_text().splitlines()


def test_each_public_object_has_a_description(sql: Database) -> None:
    assert sql.rows(UNDESCRIBED) == []
