"""Describe everything that is in the schemas of a database, so that tests can compare two databases."""

from __future__ import annotations

import json
from typing import Any

from tests.support.postgres import Database

_ACL = """(SELECT jsonb_agg(concat_ws(' ', pg_get_userbyid(x.grantee), x.privilege_type, x.is_grantable)
                            ORDER BY pg_get_userbyid(x.grantee), x.privilege_type)
             FROM aclexplode(coalesce({acl}, acldefault('{kind}', {owner}))) AS x)"""


def _acl(acl: str, kind: str, owner: str) -> str:
    """Return an expression for the privileges of an object. The defaults and their explicit form are the same."""
    return _ACL.format(acl=acl, kind=kind, owner=owner)


DESCRIBE = rf"""
    WITH schema AS (
        SELECT n.oid, n.nspname AS name, n.nspowner, n.nspacl FROM pg_namespace AS n
         WHERE n.nspname IN ('jobqueue', 'jobqueue_internal')
    ), relation AS (
        -- The names of partitions contain the day. Partitions of all days must be equal.
        SELECT c.*, s.name || '.' || regexp_replace(c.relname, '[0-9]{{8}}', 'DAY') AS name
          FROM schema AS s JOIN pg_class AS c ON c.relnamespace = s.oid
    )
    SELECT 'schema ' || s.name AS name,
           jsonb_build_object('owner', pg_get_userbyid(s.nspowner), 'privileges', {_acl("s.nspacl", "n", "s.nspowner")},
                              'comment', obj_description(s.oid, 'pg_namespace')) AS description
      FROM schema AS s
    UNION
    SELECT 'relation ' || r.name,
           jsonb_build_object(
               'kind', r.relkind, 'owner', pg_get_userbyid(r.relowner), 'persistence', r.relpersistence, 'options', r.reloptions,
               'toast options', (SELECT t.reloptions FROM pg_class AS t WHERE t.oid = r.reltoastrelid),
               'replica identity', r.relreplident,
               'row security', r.relrowsecurity, 'forced row security', r.relforcerowsecurity, 'has rules', r.relhasrules,
               'partition key', pg_get_partkeydef(r.oid),
               'parents', (SELECT jsonb_agg(i.inhparent::regclass::text ORDER BY i.inhparent::regclass::text)
                             FROM pg_inherits AS i WHERE i.inhrelid = r.oid),
               'privileges', {_acl("r.relacl", "r", "r.relowner")},
               'comment', CASE WHEN r.relname <> 'schema_version' THEN obj_description(r.oid, 'pg_class') END,
               'view', CASE WHEN r.relkind = 'v' THEN pg_get_viewdef(r.oid) END,
               'columns', (SELECT jsonb_object_agg(a.attname, concat_ws(' | ',
                                      format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                                      pg_get_expr(d.adbin, d.adrelid), a.attstorage, a.attstattarget,
                                      -- Some builds of PostgreSQL number the versions of each table in pg_attver.
                                      array(SELECT o FROM unnest(a.attoptions) AS o WHERE o NOT LIKE 'pg_attver=%')::text,
                                      a.attacl::text, a.attcollation::regcollation, col_description(r.oid, a.attnum)))
                             FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                            WHERE a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped))
      FROM relation AS r WHERE r.relkind NOT IN ('i', 'I')
    UNION
    SELECT 'index ' || i.name,
           jsonb_build_object('table', r.name, 'valid', x.indisvalid, 'ready', x.indisready, 'unique', x.indisunique,
                              'primary', x.indisprimary,
                              'replica identity', x.indisreplident, 'options', i.reloptions, 'owner', pg_get_userbyid(i.relowner),
                              'definition', regexp_replace(pg_get_indexdef(i.oid), '[0-9]{{8}}', 'DAY', 'g'))
      FROM relation AS r JOIN pg_index AS x ON x.indrelid = r.oid JOIN relation AS i ON i.oid = x.indexrelid
    UNION
    SELECT 'constraint ' || n.conname || ' on ' || r.name,
           jsonb_build_object('definition', pg_get_constraintdef(n.oid), 'validated', n.convalidated, 'deferrable', n.condeferrable,
                              'local', n.conislocal, 'inherited', n.coninhcount)
      FROM relation AS r JOIN pg_constraint AS n ON n.conrelid = r.oid
     WHERE n.contype <> 'n'   -- columns have NOT NULL; a dump of an older PostgreSQL leads to other names of these constraints
    UNION
    SELECT 'trigger ' || t.tgname || ' on ' || r.name,
           jsonb_build_object('definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled)
      FROM relation AS r JOIN pg_trigger AS t ON t.tgrelid = r.oid
    UNION
    SELECT 'function ' || s.name || '.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           jsonb_build_object('definition', pg_get_functiondef(p.oid), 'owner', pg_get_userbyid(p.proowner),
                              'privileges', {_acl("p.proacl", "f", "p.proowner")}, 'comment', obj_description(p.oid, 'pg_proc'))
      FROM schema AS s JOIN pg_proc AS p ON p.pronamespace = s.oid
    UNION
    SELECT 'type ' || s.name || '.' || t.typname, jsonb_build_object('type', t.typtype, 'owner', pg_get_userbyid(t.typowner))
      FROM schema AS s JOIN pg_type AS t ON t.typnamespace = s.oid WHERE t.typrelid = 0 AND t.typelem = 0
    UNION
    SELECT 'default privileges ' || s.name,
           jsonb_build_object('role', pg_get_userbyid(d.defaclrole), 'kind', d.defaclobjtype, 'privileges', d.defaclacl)
      FROM schema AS s JOIN pg_default_acl AS d ON d.defaclnamespace = s.oid
    UNION
    SELECT 'policy ' || p.polname || ' on ' || r.name, to_jsonb(p) - 'oid'
      FROM relation AS r JOIN pg_policy AS p ON p.polrelid = r.oid
"""


def described(database: Database) -> set[tuple[str, str]]:
    """Return the name and the description of each object in the two schemas, except for the order of columns."""
    database.rows("SET search_path = pg_catalog")
    found = {(name, json.dumps(description, sort_keys=True)) for name, description in database.rows(DESCRIBE)}
    database.rows("RESET search_path")
    return found


def rows(database: Database, schema: str) -> dict[str, list[Any]]:
    """Return all rows of all tables in a schema, in a stable order."""
    tables = [
        name
        for (name,) in database.rows(
            "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition"
            " ORDER BY relname",
            schema,
        )
    ]
    return {
        table: [row for (row,) in database.rows(f'SELECT to_jsonb(t)::text FROM {schema}."{table}" AS t ORDER BY 1')]
        for table in tables
    }
