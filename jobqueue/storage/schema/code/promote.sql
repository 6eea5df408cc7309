-- Promote scheduled jobs, and end expired ones.

-- Return the time at which the next waiting job expires, in seconds since 1970; NULL: no waiting job expires.
CREATE OR REPLACE FUNCTION jobqueue_internal.next_expiry() RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT least((SELECT (p.options -> 'expires_at')::double precision FROM jobqueue_internal.pending_jobs AS p WHERE p.options ? 'expires_at'
                   ORDER BY (p.options -> 'expires_at')::double precision LIMIT 1),
                 (SELECT (b.options -> 'expires_at')::double precision FROM jobqueue_internal.blocked_jobs AS b WHERE b.options ? 'expires_at'
                   ORDER BY (b.options -> 'expires_at')::double precision LIMIT 1),
                 (SELECT (s.options -> 'expires_at')::double precision FROM jobqueue_internal.scheduled_jobs AS s WHERE s.options ? 'expires_at'
                   ORDER BY (s.options -> 'expires_at')::double precision LIMIT 1))
$$;

-- Move expired waiting jobs to the dead letters, up to max_jobs of each state. This is for jobs that no claim takes,
-- because their queue is paused or has no workers, or because they are due later. Returns the jobs as jobqueue_internal.bury
-- does.
CREATE OR REPLACE FUNCTION jobqueue_internal.expire(max_jobs integer DEFAULT 1000) RETURNS jsonb
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    moment double precision := date_part('epoch', now());
BEGIN
    RETURN jobqueue_internal.bury('pending_jobs', ARRAY(
               SELECT e.ctid FROM jobqueue_internal.pending_jobs AS e
                WHERE e.options ? 'expires_at' AND (e.options -> 'expires_at')::double precision <= moment
                ORDER BY (e.options -> 'expires_at')::double precision LIMIT max_jobs FOR UPDATE SKIP LOCKED))
        || jobqueue_internal.bury('blocked_jobs', ARRAY(
               SELECT e.ctid FROM jobqueue_internal.blocked_jobs AS e
                WHERE e.options ? 'expires_at' AND (e.options -> 'expires_at')::double precision <= moment
                ORDER BY (e.options -> 'expires_at')::double precision LIMIT max_jobs FOR UPDATE SKIP LOCKED))
        || jobqueue_internal.bury('scheduled_jobs', ARRAY(
               SELECT e.ctid FROM jobqueue_internal.scheduled_jobs AS e
                WHERE e.options ? 'expires_at' AND (e.options -> 'expires_at')::double precision <= moment
                ORDER BY (e.options -> 'expires_at')::double precision LIMIT max_jobs FOR UPDATE SKIP LOCKED));
END $$;

-- Move these rows of scheduled_jobs to pending_jobs. Returns the best rank of each queue that got jobs.
CREATE OR REPLACE FUNCTION jobqueue_internal.promote_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    best jsonb;
BEGIN
    WITH due AS (
        DELETE FROM jobqueue_internal.scheduled_jobs AS s WHERE s.ctid = ANY (places) RETURNING s.*
    ), turns AS MATERIALIZED (
        SELECT jobqueue_internal.take_turns(jsonb_agg(jsonb_build_object('key', t.id, 'queue', t.queue, 'group', coalesce(t.options ->> 'group', ''),
                   'weight', t.options -> 'weight', 'priority', t.priority) ORDER BY t.run_at)) AS given
          FROM due AS t
         WHERE CASE WHEN t.options ? 'turn' THEN false WHEN t.options ? 'group' THEN true ELSE jobqueue_internal.lags(t.queue, t.available_since) END
        HAVING count(*) > 0
    ), moved AS (
        INSERT INTO jobqueue_internal.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors,
                options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, jobqueue_internal.rank_of(d.available_since, d.priority, q.aging_interval, o.options), d.payload,
               d.max_retries, d.timeout, d.attempt, d.claims, d.created_at, d.available_since, d.errors, o.options, d.saved
          FROM due AS d LEFT JOIN jobqueue_internal.queues AS q ON q.name = d.queue LEFT JOIN turns AS t ON true
         CROSS JOIN LATERAL (SELECT CASE WHEN t.given ? d.id::text THEN coalesce(d.options, '{}') || (t.given -> d.id::text)
                                         ELSE d.options END AS options) AS o
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), queues AS (
        SELECT moved.queue, min(moved.rank) AS rank FROM moved GROUP BY moved.queue
    )
    SELECT coalesce(jsonb_object_agg(q.queue, extract(epoch FROM q.rank)), '{}') INTO best FROM queues AS q;
    RETURN best;
END $$;

-- Move up to max_jobs due jobs to pending_jobs, and expire jobs. Returns one row with:
--
-- * promoted: the number of due jobs that were moved or died
-- * best: the best rank of each queue that got jobs, as `{"queue": seconds}`
-- * next_due: the seconds until the next job is due or expires, or NULL
-- * expired: the jobs that died because they have expired or cannot be moved, as jobqueue_internal.bury returns them
-- * next_check: the seconds until the next check of a key is due; it is here because every node calls this function
CREATE OR REPLACE FUNCTION jobqueue_internal.promote(max_jobs integer DEFAULT 1000)
RETURNS TABLE (promoted integer, best jsonb, next_due double precision, expired jsonb, next_check double precision)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
AS $$
#variable_conflict use_column
DECLARE
    places tid[];
    results record;
BEGIN
    expired := '[]';
    IF jobqueue_internal.next_expiry() <= date_part('epoch', now()) THEN
        expired := jobqueue_internal.expire(max_jobs);
    END IF;
    places := ARRAY(SELECT d.ctid FROM jobqueue_internal.scheduled_jobs AS d
                     WHERE d.run_at <= now() ORDER BY d.run_at LIMIT max_jobs FOR UPDATE SKIP LOCKED);
    promoted := cardinality(places);
    best := '{}';
    IF promoted > 0 THEN
        results := jobqueue_internal.move('promotion', 'promote_these', 'scheduled_jobs', places);
        best := jobqueue_internal.best_of(results.moved);
        expired := expired || results.dead;
        PERFORM jobqueue_internal.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    END IF;
    next_due := least((SELECT date_part('epoch', s.run_at) FROM jobqueue_internal.scheduled_jobs AS s ORDER BY s.run_at LIMIT 1),
                      jobqueue_internal.next_expiry()) - date_part('epoch', clock_timestamp());
    next_check := jobqueue_internal.next_check();
    RETURN NEXT;
END $$;
