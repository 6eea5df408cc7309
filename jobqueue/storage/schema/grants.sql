-- The privileges of roles on new objects.

-- Only roles with a grant may use the API. By default, and with default privileges, PUBLIC gets privileges on new objects.
DO $$
DECLARE
    open record;
BEGIN
    FOR open IN
        SELECT DISTINCT p.type, p.name FROM jobqueue_internal.privileges_of('manage') AS p, aclexplode(p.acl) AS e
         WHERE p.type <> 'SCHEMA' AND e.grantee = 0
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM PUBLIC', open.type, open.name);
    END LOOP;
END $$;

-- The roles of version 1 had USAGE on the schema, and privileges on its tables; every role could call the functions.
-- Grant these roles the equivalent in the new schema. A role that could change the tables is a node from now on.
DO $$
DECLARE
    lacking record;
BEGIN
    IF (SELECT v.oldest_node > 1 FROM jobqueue_internal.schema_version AS v ORDER BY v.version DESC LIMIT 1) THEN
        RETURN;
    END IF;
    FOR lacking IN
        SELECT 'USAGE ON SCHEMA jobqueue' AS what, a.grantee
          FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
         WHERE n.nspname = 'jobqueue_internal' AND a.privilege_type = 'USAGE' AND a.grantee <> n.nspowner
        UNION ALL
        SELECT format('%s ON %s', a.privilege_type, v.oid::regclass), a.grantee
          FROM pg_class AS t JOIN pg_class AS v ON v.relname = t.relname AND v.relnamespace = 'jobqueue'::regnamespace AND v.relkind = 'v',
               aclexplode(t.relacl) AS a
         WHERE t.relnamespace = 'jobqueue_internal'::regnamespace AND a.grantee <> t.relowner
           AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
        UNION ALL
        SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure), a.grantee
          FROM (VALUES ('submit', 'jobqueue_internal.pending_jobs', 'INSERT'), ('submit_many', 'jobqueue_internal.pending_jobs', 'INSERT'),
                       ('list_jobs', 'jobqueue_internal.jobs', 'SELECT'), ('list_dead', 'jobqueue_internal.dead_jobs', 'SELECT'),
                       ('dead_causes', 'jobqueue_internal.dead_jobs', 'SELECT')) AS f (name, source, privilege)
          JOIN pg_proc AS p ON p.pronamespace = 'jobqueue'::regnamespace AND p.proname = f.name AND p.prosecdef
          JOIN pg_class AS t ON t.oid = f.source::regclass, aclexplode(t.relacl) AS a
         WHERE a.privilege_type = f.privilege AND a.grantee <> t.relowner
        UNION ALL
        SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure), 0
          FROM pg_proc AS p
         WHERE p.pronamespace = 'jobqueue'::regnamespace AND NOT p.prosecdef AND p.prosrc LIKE '%SELECT %jobqueue\_internal.' || p.proname || '(%'
    LOOP
        EXECUTE format('GRANT %s TO %s', lacking.what, CASE lacking.grantee WHEN 0 THEN 'PUBLIC' ELSE lacking.grantee::regrole::text END);
    END LOOP;
    PERFORM jobqueue_internal.grant_role('node', a.grantee)
       FROM pg_class AS t, aclexplode(t.relacl) AS a
      WHERE t.oid = 'jobqueue_internal.nodes'::regclass AND a.privilege_type = 'DELETE' AND a.grantee <> t.relowner;
END $$;

-- Grant the roles of each kind the privileges on new objects.
DO $$
BEGIN
    PERFORM jobqueue_internal.grant_role(split_part(b.role, ' ', 1), split_part(b.role, ' ', 2)::oid)
       FROM string_to_table(nullif(current_setting('jobqueue.roles_before', true), ''), ',') AS b (role);
END $$;
