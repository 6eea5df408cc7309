-- The two schemas, and the version of their tables.
DO $$
DECLARE
    schema text;
    other record;
BEGIN
    -- CREATE SCHEMA IF NOT EXISTS needs a privilege on the database even if the schema exists.
    FOREACH schema IN ARRAY ARRAY['jobqueue', 'jobqueue_internal'] LOOP
        CONTINUE WHEN to_regnamespace(schema) IS NOT NULL;
        EXECUTE format('CREATE SCHEMA %I', schema);
        -- Default privileges can open a new schema to other roles.
        FOR other IN
            SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS name
              FROM pg_namespace AS n, aclexplode(n.nspacl) AS a WHERE n.nspname = schema AND a.grantee <> n.nspowner
        LOOP
            EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %s', schema, other.name);
        END LOOP;
    END LOOP;
END $$;

-- One row per version that the database has had; the highest one counts. A node of a version >= oldest_node can run. So
-- a node can also run on a newer schema. Later versions must keep this table and its columns, because nodes of all
-- versions read it.
CREATE TABLE IF NOT EXISTS jobqueue_internal.schema_version (
    version     integer     NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now(),
    oldest_node integer     NOT NULL
);
