-- The database that the queue belongs to. A copy of the database has another name or another server, so its nodes can
-- see that it is a copy, and leave all jobs alone until jobqueue_internal.adopt is called.

-- system_identifier: the server's, as in pg_control_system; NULL if the role may not call that function. It is the same
-- on a physical standby. pg_upgrade changes it.
CREATE TABLE IF NOT EXISTS jobqueue_internal.identity (
    only_row          boolean PRIMARY KEY DEFAULT true CONSTRAINT only_row CHECK (only_row),
    database          text    NOT NULL,
    system_identifier bigint
);

CREATE OR REPLACE FUNCTION jobqueue_internal.current_identity(OUT database text, OUT system_identifier bigint)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    database := current_database();
    system_identifier := (SELECT c.system_identifier FROM pg_control_system() AS c);
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END $$;

-- Return a sentence about the origin of this copy. Return NULL if the queue belongs to this database. A role that may
-- not read the identifier of the server compares only the names.
CREATE OR REPLACE FUNCTION jobqueue_internal.copied_from() RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT format('the queue belongs to the database "%s" of the server %s, and this is the database "%s" of the server %s',
                  i.database, coalesce(i.system_identifier::text, 'unknown'), c.database, coalesce(c.system_identifier::text, 'unknown'))
      FROM jobqueue_internal.identity AS i, jobqueue_internal.current_identity() AS c
     WHERE i.database <> c.database OR c.system_identifier IS NOT NULL AND i.system_identifier IS DISTINCT FROM c.system_identifier
$$;

-- Let the queue belong to this database. Returns what copied_from returned before.
CREATE OR REPLACE FUNCTION jobqueue_internal.adopt() RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    origin constant text := jobqueue_internal.copied_from();
BEGIN
    UPDATE jobqueue_internal.identity AS i SET database = c.database, system_identifier = c.system_identifier
      FROM jobqueue_internal.current_identity() AS c;
    RETURN origin;
END $$;
