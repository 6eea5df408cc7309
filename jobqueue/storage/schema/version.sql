-- The two schemas, and the version of their tables.
DO $$
BEGIN
    -- CREATE SCHEMA IF NOT EXISTS needs a privilege on the database even if the schema exists.
    IF to_regnamespace('jobqueue') IS NULL THEN
        CREATE SCHEMA jobqueue;
    END IF;
    IF to_regnamespace('jobqueue_internal') IS NULL THEN
        CREATE SCHEMA jobqueue_internal;
    END IF;
END $$;

-- One row per version that the database has had; the highest one counts. A node of a version >= oldest_node can run. So
-- a node can also run on a newer schema. Later versions must keep this table and its columns, because nodes of all
-- versions read it.
CREATE TABLE IF NOT EXISTS jobqueue_internal.schema_version (
    version     integer     NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now(),
    oldest_node integer     NOT NULL
);

INSERT INTO jobqueue_internal.schema_version (version, oldest_node)
SELECT 2, 2 WHERE NOT EXISTS (SELECT FROM jobqueue_internal.schema_version);
