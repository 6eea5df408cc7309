-- Cancel and change jobs.

-- Cancel a waiting job. Returns false if the job is not waiting. keep: false deletes the job instead of keeping it in
-- cancelled_jobs. It searches the tables in the order in which jobs move, so it finds a job that moves during the call.
CREATE OR REPLACE FUNCTION jobqueue_internal.cancel_waiting(job uuid, keep boolean) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    gone jobqueue_internal.blocked_jobs;   -- has the same columns as pending_jobs; scheduled_jobs has some of them
BEGIN
    DELETE FROM jobqueue_internal.scheduled_jobs AS s WHERE s.id = job
 RETURNING s.id, s.queue, s.kind, s.priority, NULL, s.payload, s.max_retries, s.timeout, s.attempt, s.claims, s.created_at,
           s.available_since, s.errors, s.options, s.saved, NULL
      INTO gone;
    IF NOT FOUND THEN
        DELETE FROM jobqueue_internal.blocked_jobs AS b WHERE b.id = job RETURNING b.* INTO gone;
    END IF;
    IF NOT FOUND THEN
        DELETE FROM jobqueue_internal.pending_jobs AS p WHERE p.id = job RETURNING p.* INTO gone;
        IF gone.options ->> 'concurrency_key' IS NOT NULL THEN
            INSERT INTO jobqueue_internal.key_checks (queue, key) VALUES (gone.queue, gone.options ->> 'concurrency_key');
            PERFORM jobqueue_internal.wake_keys();
        END IF;
    END IF;
    IF gone.id IS NULL THEN
        RETURN false;
    END IF;
    IF keep THEN
        INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, finished_at, errors, options, saved)
        VALUES (gone.id, gone.queue, gone.kind, gone.priority, 'cancelled', gone.payload, gone.max_retries, gone.timeout, gone.attempt,
                gone.claims, gone.created_at, gone.available_since, now(), gone.errors, gone.options, gone.saved);
    END IF;
    RETURN true;
END $$;

-- Cancel a job. A waiting job ends when your transaction commits. A running job is stopped about a second later, and
-- never runs again. Its state becomes 'cancelled', unless it succeeds or dies before that. Returns true if this call ends a
-- waiting job, or requests the end of a running job. Returns false if the job does not exist or has ended already.
-- Repeated calls change nothing.
--
-- For a running job, the function only stores a request. If it marked the job's row, it would lock the row, and the
-- job's node could not write outcomes until your transaction ends.
CREATE OR REPLACE FUNCTION jobqueue.cancel(job uuid, keep boolean DEFAULT true) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF jobqueue_internal.cancel_waiting(job, keep) THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM jobqueue_internal.inflight_jobs AS i WHERE i.id = job) THEN
        INSERT INTO jobqueue_internal.cancel_requests (job_id) VALUES (job);
        PERFORM pg_notify('jobqueue_cancel', '');
        RETURN true;
    END IF;
    RETURN jobqueue_internal.cancel_waiting(job, keep);
END $$;

-- Like jobqueue.cancel, but for a transaction that commits at once: it marks a running job and notifies its node. From
-- then on, every function that would make the job wait again ends the job instead.
CREATE OR REPLACE FUNCTION jobqueue_internal.cancel_now(job uuid, keep boolean DEFAULT true) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    run integer;
BEGIN
    FOR look IN 1..2 LOOP
        IF jobqueue_internal.cancel_waiting(job, keep) THEN
            RETURN true;
        END IF;
        UPDATE jobqueue_internal.inflight_jobs SET cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE id = job
            RETURNING claims INTO run;
        IF FOUND THEN
            PERFORM pg_notify('jobqueue_cancel', job || ' ' || run);
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END $$;

-- Process the requests of jobqueue.cancel. The function waits for no lock. If a job's row is locked, or if the job is
-- moving, the next call processes its request.
CREATE OR REPLACE FUNCTION jobqueue_internal.cancel_requested() RETURNS void
LANGUAGE plpgsql
SET jit = off   -- for the same reason as in jobqueue_internal.heartbeat
AS $$
DECLARE
    requests tid[];
    jobs uuid[];
    run record;
BEGIN
    SELECT array_agg(r.place), array_agg(r.job_id) INTO requests, jobs
      FROM (SELECT q.ctid AS place, q.job_id FROM jobqueue_internal.cancel_requests AS q LIMIT 1000 FOR UPDATE SKIP LOCKED) AS r;
    IF jobs IS NULL THEN
        RETURN;
    END IF;
    PERFORM jobqueue_internal.cancel_these(jobs, '{scheduled,blocked,pending}', true);
    FOR run IN
        UPDATE jobqueue_internal.inflight_jobs AS i SET cancel_requested_at = now()
         WHERE i.id = ANY (ARRAY(SELECT l.id FROM jobqueue_internal.inflight_jobs AS l
                                  WHERE l.id = ANY (jobs) AND l.cancel_requested_at IS NULL ORDER BY l.id FOR UPDATE SKIP LOCKED))
        RETURNING i.id, i.claims
    LOOP
        PERFORM pg_notify('jobqueue_cancel', run.id || ' ' || run.claims);
    END LOOP;
    DELETE FROM jobqueue_internal.cancel_requests AS r
     WHERE r.ctid = ANY (requests)
       AND (EXISTS (SELECT FROM jobqueue_internal.inflight_jobs AS i WHERE i.id = r.job_id AND i.cancel_requested_at IS NOT NULL)
            OR NOT jobqueue_internal.unfinished(r.job_id));
END $$;

-- Return the options of a job that goes to the end of its line again, with a new turn.
CREATE OR REPLACE FUNCTION jobqueue_internal.with_new_turn(options jsonb, queue text, priority integer) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT CASE WHEN options ? 'group' OR jobqueue_internal.lags(queue, clock_timestamp())
                THEN coalesce(options, '{}') || (jobqueue_internal.take_turns(jsonb_build_array(
                     jsonb_build_object('key', 'this', 'queue', queue, 'group', coalesce(options ->> 'group', ''),
                                        'weight', options -> 'weight', 'priority', priority))) -> 'this')
                ELSE options END
$$;

-- Change the priority of a waiting job, or its run_at, or both; NULL leaves a value unchanged. Returns false if the job
-- does not wait: it runs, a node has claimed it in advance, it has ended, or it does not exist.
--
-- A new priority gives the job a new rank, which includes the time that it has waited so far. A job of a group gets a
-- new turn. If run_at is in the future, the job becomes scheduled, as if it had been submitted with this run_at, and
-- its waiting time counts from run_at. If run_at is in the past, the job becomes available. Its waiting time then
-- counts from now, or from an earlier time at which it became available, as for a retry.
--
-- While your transaction is open, no node claims the job.
CREATE OR REPLACE FUNCTION jobqueue.change(job uuid, priority integer DEFAULT NULL, run_at timestamptz DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    gone jobqueue_internal.blocked_jobs;   -- for a scheduled job, rank is its run_at
    state text;
    present constant timestamptz := clock_timestamp();
    put_off constant boolean := coalesce(change.run_at > present, false);
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'priority', change.priority, 'run_at', to_jsonb(change.run_at AT TIME ZONE 'UTC') #>> '{}' || 'Z'))), 'a change of a job', '{priority,run_at}');
    -- Search the tables in the order in which jobs move. Search them twice, because a concurrent change of the job
    -- writes a new row for it.
    FOR look IN 1..2 LOOP
        state := 'scheduled';
        DELETE FROM jobqueue_internal.scheduled_jobs AS s WHERE s.id = job
     RETURNING s.id, s.queue, s.kind, s.priority, s.run_at, s.payload, s.max_retries, s.timeout, s.attempt, s.claims, s.created_at,
               s.available_since, s.errors, s.options, s.saved, NULL
          INTO gone;
        EXIT WHEN FOUND;
        state := 'blocked';
        DELETE FROM jobqueue_internal.blocked_jobs AS b WHERE b.id = job RETURNING b.* INTO gone;
        EXIT WHEN FOUND;
        state := 'pending';
        DELETE FROM jobqueue_internal.pending_jobs AS p WHERE p.id = job RETURNING p.* INTO gone;
        EXIT WHEN FOUND;
    END LOOP;
    IF gone.id IS NULL THEN
        RETURN false;
    END IF;
    IF put_off OR change.priority <> gone.priority THEN
        gone.options := nullif(gone.options - '{rank,turn}'::text[], '{}');
    END IF;
    gone.priority := coalesce(change.priority, gone.priority);
    gone.available_since := CASE WHEN put_off THEN change.run_at
                                 WHEN change.run_at IS NOT NULL THEN least(gone.available_since, present)
                                 ELSE gone.available_since END;
    IF put_off OR state = 'scheduled' AND change.run_at IS NULL THEN
        gone.rank := CASE WHEN put_off THEN change.run_at ELSE gone.rank END;
        INSERT INTO jobqueue_internal.scheduled_jobs (id, queue, kind, priority, run_at, payload, max_retries, timeout, attempt, claims, created_at,
                                             available_since, errors, options, saved)
        VALUES (gone.id, gone.queue, gone.kind, gone.priority, gone.rank, gone.payload, gone.max_retries, gone.timeout, gone.attempt,
                gone.claims, gone.created_at, gone.available_since, gone.errors, gone.options, gone.saved)
            ON CONFLICT (id) DO NOTHING;
        PERFORM pg_notify('jobqueue_scheduled', extract(epoch FROM gone.rank)::text);
        IF gone.admitted THEN
            INSERT INTO jobqueue_internal.key_checks (queue, key) VALUES (gone.queue, gone.options ->> 'concurrency_key');
        END IF;
    ELSE
        IF (gone.options ? 'turn') IS NOT TRUE THEN
            gone.options := jobqueue_internal.with_new_turn(gone.options, gone.queue, gone.priority);
        END IF;
        gone.rank := jobqueue_internal.rank_of(gone.available_since, gone.priority,
                                      (SELECT q.aging_interval FROM jobqueue_internal.queues AS q WHERE q.name = gone.queue), gone.options);
        -- If the job has a key and is not admitted, the trigger inserts its row into blocked_jobs instead, and inserts
        -- a check of the key.
        INSERT INTO jobqueue_internal.pending_jobs VALUES (gone.*) ON CONFLICT (id) DO NOTHING;
        PERFORM jobqueue_internal.wake(gone.queue, gone.rank);
    END IF;
    IF gone.options ->> 'concurrency_key' IS NOT NULL THEN
        PERFORM jobqueue_internal.wake_keys();
    END IF;
    RETURN true;
END $$;
