-- Check the database, and wait for other sessions that apply the schema. All parts run in one transaction.

SET LOCAL client_min_messages = warning;
-- Wait at most this long for another session that applies the schema.
SET LOCAL lock_timeout = '1s';
-- Do not depend on the session's settings. Names must resolve to PostgreSQL's own objects, even while PostgreSQL checks
-- function bodies.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
SET LOCAL plpgsql.extra_errors = '';

DO $$
DECLARE
    this_version constant integer := 2;
    found integer;
BEGIN
    -- Two sessions that apply the schema at the same time must not both create objects. The lock's number is 'jobqueue'
    -- in ASCII, cut to 63 bits.
    PERFORM pg_advisory_xact_lock(7669743430829532517);
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the database "%" has the encoding %, but jobqueue needs UTF8: create another one with CREATE DATABASE name ENCODING ''UTF8'' TEMPLATE template0',
            current_database(), current_setting('server_encoding');
    END IF;
    IF to_regclass('jobqueue_internal.schema_version') IS NOT NULL THEN
        EXECUTE 'SELECT max(version) FROM jobqueue_internal.schema_version' INTO found;
        IF found > this_version THEN
            RAISE EXCEPTION 'the database has jobqueue schema version %, which is newer than version % of this schema.sql', found, this_version
                USING HINT = 'Upgrade jobqueue, or use another database.';
        END IF;
    END IF;
    PERFORM set_config('jobqueue.this_version', this_version::text, true);   -- for complete.sql
    -- Run as the role that owns the tables, also if a superuser or a member of this role runs this script. Otherwise, the
    -- owner could not use new objects, and functions would run with the privileges of a superuser.
    PERFORM set_config('jobqueue.role_before', current_setting('role'), true);
    IF to_regclass('jobqueue_internal.schema_version') IS NOT NULL THEN
        PERFORM set_config('role', pg_get_userbyid(c.relowner), true) FROM pg_class AS c
          WHERE c.oid = to_regclass('jobqueue_internal.schema_version') AND c.relowner <> current_user::regrole;
    END IF;
    -- Remember the roles of each kind. grants.sql grants them the privileges on new objects.
    IF to_regprocedure('jobqueue_internal.granted_roles()') IS NOT NULL THEN
        EXECUTE 'SELECT set_config(''jobqueue.roles_before'', string_agg(g.kind || '' '' || g.role::oid, '',''), true) FROM jobqueue_internal.granted_roles() AS g';
    END IF;
END $$;

-- From here on, wait for a lock only briefly, and try the transaction again. The submissions of running nodes and
-- applications queue behind the wait, and those with keys wait for at most 100 ms.
SET LOCAL lock_timeout = '50ms';
