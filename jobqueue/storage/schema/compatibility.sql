-- Objects for nodes and applications of version 1, while version 2 is being rolled out.
--
-- Lock: ACCESS EXCLUSIVE on jobqueue.schema_version, about 10 ms: queries of this view, and starts of version 1 nodes

-- `jobqueue.submit(conn)` of jobqueue 0.1.0 calls this function in the transactions of applications. It stays until
-- version 3, because an application is not a node, so an upgrade does not see it.
CREATE OR REPLACE FUNCTION jobqueue.submit_batch(jobs jsonb, again boolean DEFAULT false, wake boolean DEFAULT true,
                                                 node uuid DEFAULT NULL, wants jsonb DEFAULT NULL, defaults jsonb DEFAULT '{}',
                                                 key_ttl double precision DEFAULT 86400, uncounted boolean DEFAULT false)
RETURNS TABLE (ids uuid[], best jsonb, claimed text)
LANGUAGE sql AS $$ SELECT * FROM jobqueue_internal.submit_batch($1, $2, $3, $4, $5, $6, $7, $8) $$;
COMMENT ON FUNCTION jobqueue.submit_batch IS 'Deprecated, for jobqueue 0.1.0: use submit_many instead. Version 3 of the schema will not have it.';

-- The version for readers. A node of version 1 accepts only version 1. So until the upgrade to version 2 is finished, it
-- sees version 1.
DO $do$
DECLARE
    shared constant boolean := (SELECT v.oldest_node = 1 FROM jobqueue_internal.schema_version AS v ORDER BY v.version DESC LIMIT 1);
    objects text;
BEGIN
    IF NOT shared THEN
        CREATE OR REPLACE VIEW jobqueue.schema_version AS
            SELECT v.version, v.applied_at, v.oldest_node FROM jobqueue_internal.schema_version AS v;
        COMMENT ON VIEW jobqueue.schema_version IS
            'The versions of the schema that the database has had. The highest one counts. Nodes whose version is below oldest_node cannot run.';
        RETURN;
    END IF;
    CREATE OR REPLACE VIEW jobqueue.schema_version AS
        SELECT v.version, v.applied_at FROM jobqueue_internal.schema_version AS v WHERE v.version = 1;

    -- At its start, a node of version 1 applies its own schema.sql unless this comment equals a digest of the objects in the
    -- schema jobqueue. So compute that digest as jobqueue 0.1.0 does: SHA-256 over Python's repr() of each object.
    WITH known (names) AS (VALUES ('{admit, admit_these, allowance, best_of, block, blocked_jobs, bury, cancel, cancel_jobs, cancel_now, cancel_requested,
        cancel_requests, cancel_these, cancel_waiting, cancel_walk, cancelled_jobs, cancelled_jobs_default, cause_of, change,
        check_keys, claim, clock_was_set_back, conditions, configure, dead_causes, dead_condition, dead_jobs, dead_matching,
        depth, discard, discard_dead, due_schedules, expire, fair_groups, fair_queues, fingerprint, finish, finished_jobs,
        fits, freed, heartbeat, history, hold_unique_key, ids_like, inflight_jobs, instant, job_of, jobs, join_node,
        key_allowance, key_buckets, key_checks, key_starts, keys, keys_of, lags, leave_node, leave_these, list_dead,
        list_jobs, lose_node, maintain, merged, move, move_schedules, next_check, next_expiry, nodes, note, partitions, pause,
        pause_schedule, payload_fault, pending_jobs, prepare, promote, promote_these, prune, prune_keys, queue_limits, queues,
        rank_of, reconcile_schedules, record, recover, recover_these, redrive, redrive_these, refilled, refuse_expired,
        refuse_unfit, retry, retry_dead, rules, schedule, scheduled_jobs, schedules, schema_version, seconds_left,
        serve_lines, settle_keys, shown, slot, spend, sql_submissions, states_of, submit, submit_batch, submit_many,
        succeeded_jobs, succeeded_jobs_default, surrender, take_turns, tell_of_schedules, timed, trigger_schedule, unfinished,
        unique_key_of, unschedule, uuid7, uuid7_from, wake, wake_keys, walk, with_error, with_new_turn, with_options}'::text[])),
    found (kind, name, body, rest) AS (
        SELECT 'function', p.proname, p.prosrc,
               md5(concat_ws('|', pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid), p.provolatile,
                             p.proisstrict, p.prosecdef, p.pronargdefaults, p.proparallel, p.proconfig::text, l.lanname))
          FROM known, pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang
         WHERE p.pronamespace = 'jobqueue'::regnamespace AND p.proname = ANY (names)
        UNION ALL
        SELECT 'view', c.relname, pg_get_viewdef(c.oid),
               (SELECT md5(string_agg(concat_ws('|', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated, NULL),
                                      ',' ORDER BY a.attname))
                  FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
          FROM known, pg_class AS c
         WHERE c.relnamespace = 'jobqueue'::regnamespace AND c.relkind = 'v' AND c.relname = ANY (names)
    ), printed AS (
        SELECT format('Thing(kind=''%s'', name=''%s'', body=%s, rest=''%s'')', f.kind, f.name,
                      q.mark || CASE q.mark WHEN '"' THEN t.text ELSE replace(t.text, '''', '\''') END || q.mark, f.rest) AS text
          FROM found AS f
         CROSS JOIN LATERAL (SELECT CASE WHEN strpos(f.body, '''') > 0 AND strpos(f.body, '"') = 0 THEN '"' ELSE '''' END AS mark) AS q
         CROSS JOIN LATERAL (SELECT replace(replace(f.body, '\', '\\'), chr(10), '\n') AS text) AS t
    )
    SELECT left(encode(sha256(convert_to(string_agg(p.text, chr(10) ORDER BY p.text COLLATE "C"), 'UTF8')), 'hex'), 32)
      INTO objects FROM printed AS p;
    EXECUTE format('COMMENT ON VIEW jobqueue.schema_version IS %L', 'schema.sql 546d84d51f5b88dd852fa9134a570edc, objects ' || objects);
END $do$;
