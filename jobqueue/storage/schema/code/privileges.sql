-- The privileges of each kind of role.

-- Return the privileges of a kind of role, each with its object and the object's access list. A role of the kind "submit"
-- can only submit jobs. "read" can read the views, and call the functions that list jobs. "manage" can also call every
-- other function of the public API. "node" can also read and change the tables, and call the internal functions. It
-- needs no DDL, because jobqueue_internal.maintain runs with the privileges of the owner. The partitions of days are not
-- in the result, because nodes use them through their parent.
CREATE OR REPLACE FUNCTION jobqueue_internal.privileges_of(kind text)
RETURNS TABLE (privilege text, type text, object oid, name text, acl aclitem[])
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH may AS (
        SELECT kind IN ('submit', 'manage', 'node') AS submit, kind IN ('read', 'manage', 'node') AS read,
               kind IN ('manage', 'node') AS manage, kind = 'node' AS serve
    )
    SELECT 'USAGE', 'SCHEMA', n.oid, n.oid::regnamespace::text, coalesce(n.nspacl, acldefault('n', n.nspowner))
      FROM may, pg_namespace AS n
     WHERE n.nspname = 'jobqueue' AND (submit OR read) OR n.nspname = 'jobqueue_internal' AND serve
    UNION ALL
    SELECT 'EXECUTE', 'FUNCTION', p.oid, p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
      FROM may, pg_proc AS p
     WHERE p.pronamespace = 'jobqueue'::regnamespace AND p.prosecdef
       AND (submit AND p.proname IN ('submit', 'submit_many')
            OR read AND p.proname IN ('list_jobs', 'list_dead', 'dead_causes')
            OR manage AND p.proname IN ('change', 'cancel', 'cancel_jobs', 'retry', 'retry_dead', 'discard', 'discard_dead', 'configure', 'pause',
                                        'schedule', 'unschedule', 'pause_schedule', 'trigger_schedule'))
        OR p.pronamespace = 'jobqueue_internal'::regnamespace AND serve
    UNION ALL
    SELECT a.privilege, 'TABLE', c.oid, c.oid::regclass::text, coalesce(c.relacl, acldefault('r', c.relowner))
      FROM may, pg_class AS c, unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS a (privilege)
     WHERE c.relnamespace = 'jobqueue'::regnamespace AND c.relkind = 'v' AND a.privilege = 'SELECT' AND read
       AND c.relname IN ('jobs', 'dead_jobs', 'queues', 'schedules', 'nodes', 'schema_version')
        OR c.relnamespace = 'jobqueue_internal'::regnamespace AND serve
       AND (c.relkind = 'v' AND a.privilege = 'SELECT' OR c.relkind = 'p' OR c.relkind = 'r' AND (NOT c.relispartition OR EXISTS (SELECT FROM pg_partitioned_table AS t WHERE t.partdefid = c.oid)))
$$;

-- Return the roles that have all privileges of a kind. Every run of schema.sql grants them the privileges on new objects.
CREATE OR REPLACE FUNCTION jobqueue_internal.granted_roles() RETURNS TABLE (kind text, role regrole)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.kind, u.grantee::regrole
      FROM unnest('{submit,read,manage,node}'::text[]) AS k (kind), pg_namespace AS n, aclexplode(n.nspacl) AS u
     WHERE n.nspname = 'jobqueue' AND u.privilege_type = 'USAGE' AND u.grantee <> n.nspowner
       AND NOT EXISTS (SELECT FROM jobqueue_internal.privileges_of(k.kind) AS p
                        WHERE NOT EXISTS (SELECT FROM aclexplode(p.acl) AS e WHERE e.grantee = u.grantee AND e.privilege_type = p.privilege))
$$;

-- Grant a role the privileges of a kind, see privileges_of. The role 0 means PUBLIC.
CREATE OR REPLACE FUNCTION jobqueue_internal.grant_role(kind text, role regrole) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    lacking record;
BEGIN
    IF NOT EXISTS (SELECT FROM jobqueue_internal.privileges_of(kind)) THEN
        RAISE invalid_parameter_value USING MESSAGE = format('unknown kind of role %L: the kinds are submit, read, manage, and node', kind);
    ELSIF EXISTS (SELECT FROM pg_class AS c WHERE c.oid = 'jobqueue_internal.schema_version'::regclass AND c.relowner = role) THEN
        RAISE invalid_parameter_value USING MESSAGE = format('role %s owns the tables, so it has all privileges: grant them to another role', role);
    END IF;
    FOR look IN 1..2 LOOP
        FOR lacking IN
            SELECT p.privilege, p.type, p.name FROM jobqueue_internal.privileges_of(kind) AS p
             WHERE NOT EXISTS (SELECT FROM aclexplode(p.acl) AS e WHERE e.grantee = role AND e.privilege_type = p.privilege)
        LOOP
            IF look = 2 THEN   -- PostgreSQL only warns if the current role cannot grant a privilege
                RAISE insufficient_privilege USING MESSAGE = format('role %I cannot grant %s on %s %s', current_user, lacking.privilege, lower(lacking.type), lacking.name);
            END IF;
            EXECUTE format('GRANT %s ON %s %s TO %s', lacking.privilege, lacking.type, lacking.name,
                           CASE role WHEN 0 THEN 'PUBLIC' ELSE role::text END);
        END LOOP;
    END LOOP;
END $$;
