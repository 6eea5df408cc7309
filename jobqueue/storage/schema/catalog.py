"""Compare the schema objects in a database with the parts of schema.sql, and with their state when it was last applied.

The names of objects and the bodies of functions are compared with the texts of the parts. Everything else (arguments, settings,
columns, constraints, views) is compared by a digest. The comment of the table ``jobqueue_internal.schema_version`` stores the
digest, so a dump contains it. The comparison ignores objects that the parts do not name. Examples are the
partitions that nodes create, and the tables of a role named jobqueue, which are in the schema jobqueue by default.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import sha256
from typing import NamedTuple

from psycopg import sql

from jobqueue.schema_names import render
from jobqueue.storage.connection import Connection

FUNCTION = re.compile(r"CREATE OR REPLACE FUNCTION (\w+\.\w+).*?AS (\$\w*\$)(.*?)\2", re.DOTALL)
TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+\.\w+)")
INDEX = re.compile(r"CREATE INDEX (\w+) ON (\w+)\.")
VIEW = re.compile(r"CREATE (?:OR REPLACE )?VIEW (\w+\.\w+)")
TRIGGER = re.compile(r"CREATE OR REPLACE TRIGGER (\w+) .*? ON (\w+)\.")

LOCK_SECONDS = 2

_OBJECTS = """
    WITH named AS MATERIALIZED (
        SELECT n.oid AS schema, split_part(w.name, '.', 1) AS prefix, split_part(w.name, '.', 2) AS name
          FROM unnest($1::text[]) AS w (name) JOIN pg_namespace AS n ON n.nspname = split_part(w.name, '.', 1)
    )
    SELECT 'function', w.prefix || '.' || w.name, p.prosrc,
           md5(concat_ws('|', pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid), p.provolatile,
                         p.proisstrict, p.prosecdef, p.pronargdefaults, p.proparallel, p.proconfig::text, l.lanname))
      FROM named AS w JOIN pg_proc AS p ON p.pronamespace = w.schema AND p.proname = w.name
      JOIN pg_language AS l ON l.oid = p.prolang
    UNION ALL
    SELECT CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END, w.prefix || '.' || w.name,
           CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) END,
           (SELECT md5(string_agg(concat_ws('|', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated,
                                            pg_get_expr(d.adbin, d.adrelid)), ',' ORDER BY a.attname))
              FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
      FROM named AS w JOIN pg_class AS c ON c.relnamespace = w.schema AND c.relname = w.name AND c.relkind IN ('r', 'p', 'v')
    UNION ALL
    SELECT 'index', w.prefix || '.' || w.name, NULL, md5(pg_get_indexdef(i.oid) || x.indisvalid)
      FROM named AS w JOIN pg_class AS i ON i.relnamespace = w.schema AND i.relname = w.name
      JOIN pg_index AS x ON x.indexrelid = i.oid
    UNION ALL
    SELECT 'trigger', w.prefix || '.' || w.name, t.tgenabled::text, md5(pg_get_triggerdef(t.oid))
      FROM named AS w JOIN pg_trigger AS t ON t.tgname = w.name
      JOIN pg_class AS c ON c.oid = t.tgrelid AND c.relnamespace = w.schema
     WHERE EXISTS (SELECT FROM named AS o WHERE o.name = c.relname)
    UNION ALL
    SELECT 'constraint', w.prefix || '.' || n.conname, NULL, md5(c.relname || pg_get_constraintdef(n.oid))
      FROM named AS w JOIN pg_class AS c ON c.relnamespace = w.schema AND c.relname = w.name
      JOIN pg_constraint AS n ON n.conrelid = c.oid AND n.contype IN ('c', 'p', 'u', 'f')
"""


class Thing(NamedTuple):
    """A schema object.

    Attributes:
        kind: function, view, table, index, trigger, or constraint.
        name: its name, with the schema.
        body: the text of a function or view; ``pg_trigger.tgenabled`` of a trigger; None for other kinds.
        rest: a digest of its other properties.
    """

    kind: str
    name: str
    body: str | None
    rest: str | None

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}"


Catalog = frozenset[Thing]


class Faults(NamedTuple):
    """Differences between schema.sql and the schema in a database.

    Attributes:
        tables: missing tables.
        indexes: missing indexes.
        functions: missing functions.
        differing: functions whose body differs from schema.sql.
        triggers: missing or disabled triggers: the trigger that enforces concurrency keys.
    """

    tables: list[str]
    indexes: list[str]
    functions: list[str]
    differing: list[str]
    triggers: list[str]

    @property
    def missing(self) -> list[str]:
        """The missing objects that a node needs to work correctly."""
        kinds = {"table": self.tables, "function": self.functions, "trigger": self.triggers}
        return [f"{kind} {name}" for kind, names in kinds.items() for name in names]

    @property
    def all(self) -> list[str]:
        return self.missing + [f"index {name}" for name in self.indexes] + [f"function {name}" for name in self.differing]


def look(connection: Connection, text: str) -> Catalog:
    """Read the objects that schema.sql creates. Return an empty set if the schemas do not exist.

    Args:
        connection: the database.
        text: all parts of schema.sql, rendered for the name of the connection's schemas.

    Raises:
        LockNotAvailable: for over `LOCK_SECONDS`, another session has held an exclusive lock on a table of the schema.
    """
    with connection.transaction():
        # With this search path, PostgreSQL prints jobqueue's names with their schema. To print a table's expressions, it locks the
        # table.
        connection.execute_script(b"SET LOCAL search_path = pg_catalog; SET LOCAL lock_timeout = '%dms'" % (1000 * LOCK_SECONDS))
        return frozenset(map(Thing._make, connection.execute(_OBJECTS, [sorted(_names(text))])))


def faults(text: str, found: Catalog) -> Faults:
    """Compare objects with the texts of schema.sql's parts."""
    names = {kind: {thing.name for thing in found if thing.kind == kind} for kind in ("table", "index", "function")}
    bodies = {(thing.name, thing.body) for thing in found if thing.kind == "function"}
    enabled = {thing.name for thing in found if thing.kind == "trigger" and thing.body in ("O", "A")}
    off = {name for name, _, body in FUNCTION.findall(text) if (name, body) not in bodies}
    return Faults(
        tables=sorted({*TABLE.findall(text)} - names["table"]),
        indexes=sorted({f"{schema}.{name}" for name, schema in INDEX.findall(text)} - names["index"]),
        functions=sorted(off - names["function"]),
        differing=sorted(off & names["function"]),
        triggers=sorted({f"{schema}.{name}" for name, schema in TRIGGER.findall(text)} - enabled),
    )


def changed(before: Catalog, after: Catalog) -> list[str]:
    """Return the labels of objects that differ between two catalogs, or exist in only one."""
    return sorted({thing.label for thing in before ^ after})


def fingerprint(text: str, found: Catalog) -> str:
    """Return the digests of a schema.sql and of the objects in a database, as one text."""
    return f"schema.sql {_digest([text])}, objects {_digest(map(repr, sorted(found, key=repr)))}"


def same_text(one: str, other: str) -> bool:
    """Return whether two fingerprints belong to the same schema.sql."""
    return one.partition(",")[0] == other.partition(",")[0]


def recorded(connection: Connection) -> str | None:
    """Return the last recorded `fingerprint`. Return None if none was recorded, for example after ``psql -f schema.sql``."""
    row = connection.execute(
        "SELECT obj_description(c.oid, 'pg_class') FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'jobqueue_internal' AND c.relname = 'schema_version'"
    ).first()
    return str(row[0]) if row is not None and row[0] is not None else None


def record(connection: Connection, digests: str) -> None:
    """Store a `fingerprint`. Only the owner of the schema may do this."""
    comment = render("COMMENT ON TABLE jobqueue_internal.schema_version IS ", connection.schema)
    connection.execute_script(comment.encode() + sql.Literal(digests).as_bytes(connection.driver))


def _names(text: str) -> set[str]:
    plain = {match[1] for found in (FUNCTION, TABLE, VIEW) for match in found.finditer(text)}
    return plain | {f"{match[2]}.{match[1]}" for found in (INDEX, TRIGGER) for match in found.finditer(text)}


def _digest(parts: Iterable[str]) -> str:
    return sha256("\n".join(parts).encode()).hexdigest()[:32]
