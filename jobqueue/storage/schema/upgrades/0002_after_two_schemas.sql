-- Version 2, when no node of version 1 runs: drop the views and functions that 0002_before_two_schemas.sql created for them.
--
-- Lock: SHARE ROW EXCLUSIVE on jobqueue_internal.nodes, about 20 ms: heartbeats
-- Lock: ACCESS EXCLUSIVE on the views of version 1, about 20 ms: queries of these views
DO $upgrade$
DECLARE
    alive text;
    was record;
BEGIN
    IF to_regclass('jobqueue_internal.schema_version') IS NULL THEN
        RAISE EXCEPTION 'the database does not have version 2: upgrade it before you finish the upgrade';
    END IF;
    IF (SELECT v.oldest_node FROM jobqueue_internal.schema_version AS v WHERE v.version = 2) >= 2 THEN
        RETURN;
    END IF;
    LOCK TABLE jobqueue_internal.nodes IN SHARE ROW EXCLUSIVE MODE;   -- no node of version 1 starts in between
    SELECT string_agg(format('%s (pid %s)', n.host, n.pid), ', ' ORDER BY n.started_at) INTO alive
      FROM jobqueue_internal.nodes AS n WHERE n.schema_version < 2 AND n.lease_until > now();
    IF alive IS NOT NULL THEN
        RAISE EXCEPTION 'the upgrade to version 2 cannot be finished while nodes of version 1 are running: %', alive
            USING HINT = 'Stop these nodes or replace them, then finish the upgrade again.', ERRCODE = 'object_in_use';
    END IF;
    FOR was IN
        SELECT format('DROP FUNCTION %s', p.oid::regprocedure) AS statement FROM pg_proc AS p
         WHERE p.pronamespace = 'jobqueue'::regnamespace AND p.prolang = (SELECT l.oid FROM pg_language AS l WHERE l.lanname = 'sql')
           AND p.prosrc LIKE 'SELECT %jobqueue\_internal.' || p.proname || '(%' AND NOT p.prosecdef AND p.proname <> 'submit_batch'
        UNION ALL
        SELECT format('DROP VIEW %s', c.oid::regclass) FROM pg_class AS c
         WHERE c.relnamespace = 'jobqueue'::regnamespace AND c.relkind = 'v'
           AND c.relname = ANY ('{queue_limits,pending_jobs,blocked_jobs,key_checks,key_starts,key_buckets,scheduled_jobs,inflight_jobs,cancel_requests,finished_jobs,succeeded_jobs,cancelled_jobs,succeeded_jobs_default,cancelled_jobs_default,fair_queues,fair_groups,keys,history,sql_submissions}')
        UNION ALL
        SELECT DISTINCT format('REVOKE INSERT, UPDATE, DELETE ON %s FROM %s', c.oid::regclass, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END)
          FROM pg_class AS c, aclexplode(c.relacl) AS a
         WHERE c.relnamespace = 'jobqueue'::regnamespace AND c.relkind = 'v' AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE')
           AND a.grantee <> c.relowner AND c.relname = ANY ('{jobs,dead_jobs,queues,schedules,nodes,schema_version}')
    LOOP
        EXECUTE was.statement;
    END LOOP;
    UPDATE jobqueue_internal.schema_version SET oldest_node = 2 WHERE version = 2;
END $upgrade$;
