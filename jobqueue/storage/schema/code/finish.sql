-- Write the outcomes and the notes of runs.

-- Append an entry to a job's error history, which keeps the last ten entries. The function is STABLE because
-- jsonb_build_array is STABLE. If the function were IMMUTABLE, PostgreSQL would not inline it, and would call it for
-- each row.
CREATE OR REPLACE FUNCTION jobqueue_internal.with_error(errors jsonb, error jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN error IS NULL THEN errors
                WHEN jsonb_typeof(errors) <> 'array' THEN jsonb_build_array(error)
                WHEN jsonb_array_length(errors) >= 10 THEN (errors - 0) || jsonb_build_array(error)
                ELSE errors || jsonb_build_array(error) END
$$;

-- Write the outcomes of a batch of runs in one transaction: move the row of each job to the table of its new state.
-- `outcomes` is an array of objects:
--
--     id, claims    Identify the run. If no row of this node matches both, the outcome is stale and is dropped.
--     outcome       See below. Jobs with a cancel request end as cancelled, not as scheduled or pending.
--     saved         Notes of the run that are not written yet.
--
-- The outcomes, with the table of the new state:
--
--     succeeded     Finished, with `result`.
--     dead          Dead, with `reason` and `error`.
--     retry         Scheduled in `delay` seconds, with `error`. Dead after the last attempt.
--     snoozed       Scheduled in `delay` seconds, with the attempt refunded.
--     released      Pending, with the attempt refunded.
--     cancelled     Finished.
--
-- keep: false deletes jobs that succeeded instead of keeping them in finished_jobs.
--
-- Returns the positions (from 1) of the stale outcomes.
CREATE OR REPLACE FUNCTION jobqueue_internal.finish(node uuid, outcomes jsonb, keep boolean DEFAULT true) RETURNS bigint[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET jit = off   -- for the same reason as in jobqueue_internal.heartbeat; this matters when an attempt has failed
SET enable_seqscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off   -- a hash join would read the whole index of inflight_jobs, with all dead rows that an old transaction keeps
AS $$
#variable_conflict use_column
DECLARE
    stale bigint[];
    done bigint[];
    limited jsonb;   -- [queue, key] of each job that ended under a limit
BEGIN
    -- Almost every outcome is a success. This separate statement writes the successes, without the joins and branches
    -- that other outcomes need. It uses the time of the statement, because the transaction may be the handler's
    -- transaction, which began before the handler did.
    WITH given AS MATERIALIZED (
        SELECT o.id, o.claims, o.result, o.place
          FROM ROWS FROM (jsonb_to_recordset(outcomes) AS (id uuid, claims integer, outcome text, result jsonb, saved jsonb))
               WITH ORDINALITY AS o (id, claims, outcome, result, saved, place)
         WHERE o.outcome = 'succeeded' AND o.saved IS NULL
    ), gone AS (
        DELETE FROM jobqueue_internal.inflight_jobs AS i USING given AS g
         WHERE i.id = g.id AND i.claims = g.claims AND i.node_id = node
        RETURNING i.*, g.result, g.place
    ), finished AS (
        INSERT INTO jobqueue_internal.succeeded_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                             available_since, claimed_at, finished_at, node_id, result, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, 'succeeded', d.payload, d.max_retries, d.timeout, d.attempt, d.claims, d.created_at,
               d.available_since, d.claimed_at, statement_timestamp(), d.node_id, d.result, d.errors, d.options, d.saved
          FROM gone AS d WHERE finish.keep
    )
    SELECT coalesce(array_agg(gone.place), '{}'),
           jsonb_agg(jsonb_build_array(gone.queue, gone.options ->> 'concurrency_key')) FILTER (WHERE gone.limited)
      INTO done, limited FROM gone;
    IF limited IS NOT NULL THEN
        INSERT INTO jobqueue_internal.key_checks (queue, key)
        SELECT DISTINCT l ->> 0, l ->> 1 FROM jsonb_array_elements(limited) AS l WHERE l ->> 1 IS NOT NULL;
        PERFORM jobqueue_internal.freed(f.queue) FROM (SELECT DISTINCT l ->> 0 AS queue FROM jsonb_array_elements(limited) AS l) AS f;
    END IF;
    IF cardinality(done) = jsonb_array_length(outcomes) THEN
        RETURN '{}';
    END IF;

    BEGIN
        WITH given AS MATERIALIZED (
            SELECT o.* FROM ROWS FROM (jsonb_to_recordset(outcomes) AS (
                id uuid, claims integer, outcome text, result jsonb, reason text, error jsonb, delay double precision, saved jsonb))
                WITH ORDINALITY AS o (id, claims, outcome, result, reason, error, delay, saved, place)
             WHERE coalesce(o.outcome, '') <> 'succeeded' OR o.saved IS NOT NULL
        ), gone AS (
            DELETE FROM jobqueue_internal.inflight_jobs AS i USING given AS g
             WHERE i.id = g.id AND i.claims = g.claims AND i.node_id = node
            RETURNING i.*, g.result, g.reason, g.error, g.delay, g.place,
                      -- This expression is not in a function, because RETURNING does not inline functions. A call would
                      -- take a third of the time that moving the row takes.
                      CASE WHEN g.saved IS NULL THEN i.saved ELSE coalesce(i.saved, '{}') || g.saved END AS noted,
                      coalesce(g.outcome, '') = 'retry' AND i.attempt > i.max_retries AS spent,
                      CASE WHEN (g.outcome IN ('snoozed', 'released') OR g.outcome = 'retry' AND i.attempt <= i.max_retries)
                                AND (i.cancel_requested_at IS NOT NULL OR i.id IN (SELECT q.job_id FROM jobqueue_internal.cancel_requests AS q))
                           THEN 'cancelled' ELSE g.outcome END AS outcome
        ), finished AS (
            INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                                available_since, claimed_at, finished_at, node_id, result, errors, options, saved)
            SELECT d.id, d.queue, d.kind, d.priority, d.outcome, d.payload, d.max_retries, d.timeout, d.attempt, d.claims, d.created_at,
                   d.available_since, d.claimed_at, now(), d.node_id, d.result, jobqueue_internal.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.noted
              -- An unknown outcome raises an error, because no partition has that state.
              FROM gone AS d
             WHERE coalesce(d.outcome, '') NOT IN ('dead', 'retry', 'snoozed', 'released') AND (finish.keep OR d.outcome IS DISTINCT FROM 'succeeded')
        ), dead AS (
            INSERT INTO jobqueue_internal.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, died_at, node_id, errors, options, saved)
            SELECT d.id, d.queue, d.kind, d.priority, CASE WHEN d.spent THEN 'attempts used up' ELSE d.reason END, d.payload,
                   d.max_retries, d.timeout, d.attempt, d.claims, d.created_at, d.available_since, now(), d.node_id,
                   jobqueue_internal.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.noted
              FROM gone AS d WHERE d.outcome = 'dead' OR d.spent
                ON CONFLICT (id) DO NOTHING
        ), scheduled AS (
            INSERT INTO jobqueue_internal.scheduled_jobs (id, queue, kind, priority, run_at, payload, max_retries, timeout, attempt, claims, created_at,
                                                 available_since, errors, options, saved)
            SELECT d.id, d.queue, d.kind, d.priority, now() + d.delay * interval '1 second', d.payload, d.max_retries, d.timeout,
                   d.attempt - CASE d.outcome WHEN 'snoozed' THEN 1 ELSE 0 END, d.claims, d.created_at, d.available_since,
                   jobqueue_internal.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.noted
              FROM gone AS d WHERE d.outcome IN ('retry', 'snoozed') AND NOT d.spent
                ON CONFLICT (id) DO NOTHING
        ), released AS (
            INSERT INTO jobqueue_internal.pending_jobs
                   (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
            SELECT d.id, d.queue, d.kind, d.priority, jobqueue_internal.rank_of(d.available_since, d.priority, q.aging_interval, d.options), d.payload,
                   d.max_retries, d.timeout, d.attempt - 1, d.claims, d.created_at, d.available_since, d.errors, d.options, d.noted
              FROM gone AS d LEFT JOIN jobqueue_internal.queues AS q ON q.name = d.queue
             WHERE d.outcome = 'released'
                ON CONFLICT (id) DO NOTHING
            RETURNING queue, rank
        ), checks AS (
            INSERT INTO jobqueue_internal.key_checks (queue, key)
            SELECT d.queue, d.options ->> 'concurrency_key' FROM gone AS d WHERE d.options ->> 'concurrency_key' IS NOT NULL
        ), told AS MATERIALIZED (
            SELECT count(jobqueue_internal.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM released GROUP BY queue) AS queues
        ), freed AS MATERIALIZED (
            SELECT count(jobqueue_internal.freed(queue)) FROM (SELECT DISTINCT queue FROM gone WHERE limited) AS queues
        )
        SELECT array_agg(missing.place ORDER BY missing.place) INTO stale
          FROM (SELECT generate_series(1, jsonb_array_length(outcomes)) AS place EXCEPT SELECT unnest(done) EXCEPT SELECT gone.place
                  FROM gone) AS missing CROSS JOIN told CROSS JOIN freed;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR feature_not_supported THEN
        -- If an outcome cannot be stored, the node writes another outcome instead. For dead and released jobs, the node
        -- has no other outcome.
        IF jsonb_path_exists(outcomes, '$[*].outcome ? (@ != "dead" && @ != "released")') THEN
            RAISE;
        ELSIF jsonb_array_length(outcomes) = 1 THEN
            PERFORM jobqueue_internal.bury('inflight_jobs', ARRAY(
                SELECT i.ctid FROM jobqueue_internal.inflight_jobs AS i
                 WHERE i.id = (outcomes #>> '{0,id}')::uuid AND i.claims = (outcomes #>> '{0,claims}')::integer AND i.node_id = node
                   FOR UPDATE), 'completion', SQLERRM);
            RETURN '{}';
        END IF;
        RETURN ARRAY(SELECT o.place FROM jsonb_array_elements(outcomes) WITH ORDINALITY AS o (outcome, place)
                      WHERE jobqueue_internal.finish(node, jsonb_build_array(o.outcome), keep) <> '{}' ORDER BY o.place);
    END;
    RETURN coalesce(stale, '{}');
END $$;

-- Write the notes (progress and checkpoint) of running jobs of this node: `notes` is an array of {id, claims, saved}.
-- Returns the ids of the jobs whose notes were written. The function skips runs that have ended. It also skips runs
-- whose row is locked, because most likely another call is writing their outcome, which includes the notes. So it waits
-- for no lock, and cannot deadlock with finish.
CREATE OR REPLACE FUNCTION jobqueue_internal.note(node uuid, notes jsonb) RETURNS uuid[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
#variable_conflict use_column
DECLARE
    written uuid[];
BEGIN
    WITH given AS MATERIALIZED (
        SELECT n.* FROM jsonb_to_recordset(notes) AS n (id uuid, claims integer, saved jsonb)
    ), free AS MATERIALIZED (
        SELECT i.id, given.saved AS noted
          FROM given JOIN jobqueue_internal.inflight_jobs AS i ON i.id = given.id AND i.claims = given.claims AND i.node_id = node
           FOR UPDATE OF i SKIP LOCKED
    ), noted AS (
        UPDATE jobqueue_internal.inflight_jobs AS i SET saved = coalesce(i.saved, '{}') || free.noted
          FROM free WHERE i.id = free.id
        RETURNING i.id
    )
    SELECT coalesce(array_agg(noted.id), '{}') INTO written FROM noted;
    RETURN written;
END $$;
