-- Every job in every state, for internal functions and the view jobqueue.jobs.
--
-- Submissions with keys read this view. So an upgrade or a repair does not create it again, because that would lock it.
DO $$ BEGIN
    IF to_regclass('jobqueue_internal.jobs') IS NULL THEN
        CREATE VIEW jobqueue_internal.jobs AS
            SELECT id, 'pending' AS state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
                   NULL::timestamptz AS run_at, NULL::timestamptz AS claimed_at, NULL::timestamptz AS ended_at, NULL::uuid AS node_id,
                   NULL::jsonb AS result, NULL::text AS reason, errors, options, saved, NULL::timestamptz AS cancel_requested_at
              FROM jobqueue_internal.pending_jobs
            UNION ALL
            SELECT id, 'blocked', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
                   NULL, NULL, NULL, NULL, NULL, NULL, errors, options, saved, NULL
              FROM jobqueue_internal.blocked_jobs
            UNION ALL
            SELECT id, 'scheduled', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
                   run_at, NULL, NULL, NULL, NULL, NULL, errors, options, saved, NULL
              FROM jobqueue_internal.scheduled_jobs
            UNION ALL
            SELECT id, 'inflight', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
                   NULL, claimed_at, NULL, node_id, NULL, NULL, errors, options, saved, cancel_requested_at
              FROM jobqueue_internal.inflight_jobs
            UNION ALL
            SELECT id, state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
                   NULL, claimed_at, finished_at, node_id, result, NULL, errors, options, saved, NULL
              FROM jobqueue_internal.finished_jobs
            UNION ALL
            SELECT id, 'dead', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
                   NULL, NULL, died_at, node_id, NULL, reason, errors, options, saved, NULL
              FROM jobqueue_internal.dead_jobs;
    END IF;
END $$;
