-- Concurrency keys: block, admit, and check.

-- For each concurrency key of a queue, pending_jobs and inflight_jobs together contain at most key_max_running jobs.
-- Only jobqueue_internal.admit adds jobs of a key to these tables. On all nodes together, only one transaction at a time runs
-- this function, and the function counts the jobs after it has got the lock. So the limit is exact, and claims never
-- see the jobs over the limit. All other functions only remove jobs of a key, and then insert a check of the key into
-- key_checks.

-- Insert a row into blocked_jobs instead of pending_jobs if its job has a concurrency key and is not admitted. A
-- trigger calls this function, so it applies to every INSERT. (The trigger does not call it for jobs without options.
-- The condition of the trigger is short, because PostgreSQL parses it again for each statement.)
CREATE OR REPLACE FUNCTION jobqueue_internal.block() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.admitted OR NEW.options ->> 'concurrency_key' IS NULL THEN
        RETURN NEW;
    END IF;
    INSERT INTO jobqueue_internal.blocked_jobs VALUES (NEW.*) ON CONFLICT (id) DO NOTHING;
    INSERT INTO jobqueue_internal.key_checks (queue, key) VALUES (NEW.queue, NEW.options ->> 'concurrency_key');
    RETURN NULL;
END $$;

-- Notify listening nodes that keys need a check. A node does not need this notification for the checks that it inserts,
-- because it also runs these checks.
CREATE OR REPLACE FUNCTION jobqueue_internal.wake_keys() RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue_keys', '') $$;

-- Insert a check for each key of a queue that has blocked jobs, for at most max_keys keys. This is necessary after the
-- queue's limits have changed. If there are more keys, each remaining key is checked when one of its jobs ends or
-- arrives.
CREATE OR REPLACE FUNCTION jobqueue_internal.check_keys(queue text, max_keys integer DEFAULT 100000) RETURNS void
LANGUAGE sql AS $$
    -- Jump from key to key in the index, because a key can have a million jobs.
    WITH RECURSIVE keys AS (
        (SELECT b.options ->> 'concurrency_key' AS key FROM jobqueue_internal.blocked_jobs AS b WHERE b.queue = check_keys.queue ORDER BY key LIMIT 1)
        UNION ALL
        SELECT (SELECT b.options ->> 'concurrency_key' AS key FROM jobqueue_internal.blocked_jobs AS b
                 WHERE b.queue = check_keys.queue AND b.options ->> 'concurrency_key' > keys.key ORDER BY key LIMIT 1)
          FROM keys WHERE keys.key IS NOT NULL
    )
    INSERT INTO jobqueue_internal.key_checks (queue, key)
    SELECT check_keys.queue, keys.key FROM keys WHERE keys.key IS NOT NULL LIMIT max_keys
$$;

-- Return how many more jobs of a key can be admitted under the key's rate. This is the number of tokens in the key's
-- bucket, minus the admitted jobs that have not started yet. Without that subtraction, many late starts could come in a
-- burst. If the result is less than `wanted`, the function inserts a check for the time of the next token. Only
-- jobqueue_internal.admit calls this function, under its lock.
CREATE OR REPLACE FUNCTION jobqueue_internal.key_allowance(queue text, key text, rate double precision, burst double precision, wanted bigint)
RETURNS bigint
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    bucket record;
    starts timestamptz[];
    unstarted bigint;
    start timestamptz;
    present timestamptz;
    tokens double precision;
    refilled_at timestamptz;
    allowed bigint;
    next_at timestamptz;
BEGIN
    SELECT b.* INTO bucket FROM jobqueue_internal.key_buckets AS b WHERE b.queue = key_allowance.queue AND b.key = key_allowance.key;
    -- This is one statement with one snapshot, so a job that is claimed during the call is counted in exactly one of
    -- the two tables.
    WITH gone AS (
        DELETE FROM jobqueue_internal.key_starts AS s WHERE s.queue = key_allowance.queue AND s.key = key_allowance.key RETURNING s.at
    )
    SELECT (SELECT array_agg(gone.at ORDER BY gone.at) FROM gone),
           (SELECT count(*) FROM jobqueue_internal.pending_jobs AS p
             WHERE p.queue = key_allowance.queue AND p.options ->> 'concurrency_key' = key_allowance.key AND p.admitted)
      INTO starts, unstarted;
    present := clock_timestamp();
    tokens := least(burst, coalesce(bucket.tokens, burst));
    refilled_at := coalesce(bucket.refilled_at, starts[1], present);
    -- Apply the starts one by one: a full bucket gains nothing while it waits, so one sum over all starts would give
    -- too many tokens.
    FOREACH start IN ARRAY coalesce(starts, '{}') LOOP
        tokens := least(burst, tokens + rate * greatest(0, extract(epoch FROM start - refilled_at)::double precision)) - 1;
        refilled_at := greatest(refilled_at, start);
    END LOOP;
    tokens := least(burst, tokens + rate * greatest(0, extract(epoch FROM present - refilled_at)::double precision));
    allowed := greatest(0, floor(tokens)::bigint - unstarted);
    next_at := bucket.check_at;
    IF allowed < wanted THEN
        next_at := present + (unstarted + allowed + 1 - tokens) / rate * interval '1 second';
        -- If a check for about that time exists already, no other check is needed.
        IF bucket.check_at BETWEEN present AND next_at + interval '1 millisecond' THEN
            next_at := bucket.check_at;
        ELSE
            INSERT INTO jobqueue_internal.key_checks (queue, key, at, timed) VALUES (key_allowance.queue, key_allowance.key, next_at, true);
        END IF;
    END IF;
    INSERT INTO jobqueue_internal.key_buckets AS b (queue, key, tokens, refilled_at, check_at)
    VALUES (key_allowance.queue, key_allowance.key, tokens, present, next_at)
        ON CONFLICT ON CONSTRAINT key_buckets_pkey
        DO UPDATE SET tokens = excluded.tokens, refilled_at = excluded.refilled_at, check_at = excluded.check_at;
    RETURN allowed;
END $$;

-- Move these rows of blocked_jobs to pending_jobs. Returns the best rank of each queue that got jobs.
CREATE OR REPLACE FUNCTION jobqueue_internal.admit_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    best jsonb;
BEGIN
    WITH gone AS (
        DELETE FROM jobqueue_internal.blocked_jobs AS b WHERE b.ctid = ANY (places) RETURNING b.*
    ), moved AS (
        INSERT INTO jobqueue_internal.pending_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at,
                                           available_since, errors, options, saved, admitted)
        SELECT g.id, g.queue, g.kind, g.priority, g.rank, g.payload, g.max_retries, g.timeout, g.attempt, g.claims, g.created_at,
               g.available_since, g.errors, g.options, g.saved, true
          FROM gone AS g
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    )
    SELECT coalesce(jsonb_object_agg(m.queue, extract(epoch FROM m.rank)), '{}') INTO best
      FROM (SELECT moved.queue, min(moved.rank) AS rank FROM moved GROUP BY moved.queue) AS m;
    RETURN best;
END $$;

-- Run up to max_checks due checks of keys: move the blocked jobs with the best ranks to pending_jobs, as far as the
-- limits of their keys allow. Returns the number of checks and the best rank of each queue that got jobs, as {"queue":
-- seconds}. Also returns the seconds until the next check is due; NULL if there is none.
CREATE OR REPLACE FUNCTION jobqueue_internal.admit(max_checks integer DEFAULT 1000)
RETURNS TABLE (checks integer, best jsonb, next_due double precision)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    queues text[];
    keys text[];
    free bigint[];
    rates double precision[];
    bursts double precision[];
    places tid[];
    present timestamptz;   -- a variable, so that the planner can use it as a bound of the index scan
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- Each statement must see everything that was committed before this transaction got the lock.
        RAISE EXCEPTION 'jobqueue_internal.admit needs the isolation level READ COMMITTED, and this transaction has %', current_setting('transaction_isolation');
    END IF;
    PERFORM pg_advisory_xact_lock(7669743430829532519);
    present := clock_timestamp();
    WITH due AS (
        DELETE FROM jobqueue_internal.key_checks AS c
         WHERE c.ctid = ANY (ARRAY(
                   SELECT d.place
                     FROM ((SELECT t.ctid AS place FROM jobqueue_internal.key_checks AS t
                             WHERE t.timed AND t.at <= present ORDER BY t.timed, t.at LIMIT (max_checks + 1) / 2)
                           UNION ALL
                           (SELECT n.ctid FROM jobqueue_internal.key_checks AS n WHERE n.timed IS NULL ORDER BY n.timed, n.at LIMIT max_checks)) AS d
                    LIMIT max_checks))
        RETURNING c.queue, c.key
    )
    SELECT sum(d.times), array_agg(d.queue ORDER BY d.queue, d.key), array_agg(d.key ORDER BY d.queue, d.key)
      INTO checks, queues, keys
      FROM (SELECT due.queue, due.key, count(*) AS times FROM due GROUP BY due.queue, due.key) AS d;
    checks := coalesce(checks, 0);
    best := '{}';
    IF checks > 0 THEN
        SELECT array_agg(coalesce(q.key_max_running, 1)
                   - (SELECT count(*) FROM jobqueue_internal.pending_jobs AS p
                       WHERE p.queue = w.queue AND p.options ->> 'concurrency_key' = w.key AND p.admitted)
                   - (SELECT count(*) FROM jobqueue_internal.inflight_jobs AS i
                       WHERE i.queue = w.queue AND i.options ->> 'concurrency_key' = w.key AND i.limited)
                   ORDER BY w.place),
               array_agg(q.key_rate ORDER BY w.place), array_agg(coalesce(q.key_burst, greatest(1, q.key_rate)) ORDER BY w.place)
          INTO free, rates, bursts
          FROM unnest(queues, keys) WITH ORDINALITY AS w (queue, key, place) LEFT JOIN jobqueue_internal.queues AS q ON q.name = w.queue;
        FOR n IN 1 .. cardinality(queues) LOOP
            IF rates[n] IS NOT NULL AND free[n] > 0
               AND EXISTS (SELECT FROM jobqueue_internal.blocked_jobs AS b WHERE b.queue = queues[n] AND b.options ->> 'concurrency_key' = keys[n]) THEN
                free[n] := least(free[n], jobqueue_internal.key_allowance(queues[n], keys[n], rates[n], bursts[n], free[n]));
            END IF;
        END LOOP;
        WITH wanted AS MATERIALIZED (
            SELECT w.queue, w.key, w.free FROM unnest(queues, keys, free) AS w (queue, key, free) WHERE w.free > 0
        ), picked AS MATERIALIZED (
            -- Skip a row that another transaction has locked to cancel it, instead of waiting for that transaction.
            SELECT w.queue, w.key, w.free, b.place
              FROM wanted AS w
             CROSS JOIN LATERAL (SELECT b.ctid AS place FROM jobqueue_internal.blocked_jobs AS b
                                  WHERE b.queue = w.queue AND b.options ->> 'concurrency_key' = w.key
                                  ORDER BY b.rank LIMIT w.free FOR UPDATE OF b SKIP LOCKED) AS b
        ), left_out AS (
            INSERT INTO jobqueue_internal.key_checks (queue, key, at, timed)
            SELECT w.queue, w.key, clock_timestamp() + interval '1 second', true FROM wanted AS w
             WHERE (SELECT count(*) FROM picked AS p WHERE p.queue = w.queue AND p.key = w.key)
                   < (SELECT count(*) FROM (SELECT FROM jobqueue_internal.blocked_jobs AS b
                                             WHERE b.queue = w.queue AND b.options ->> 'concurrency_key' = w.key LIMIT w.free) AS there)
        )
        SELECT array_agg(picked.place) INTO places FROM picked;
        IF places IS NOT NULL THEN
            best := jobqueue_internal.best_of((jobqueue_internal.move('admission', 'admit_these', 'blocked_jobs', places)).moved);
        END IF;
        PERFORM jobqueue_internal.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    END IF;
    next_due := jobqueue_internal.next_check();
    RETURN NEXT;
END $$;

-- Return the seconds until the next check of a key is due; NULL: there is none.
CREATE OR REPLACE FUNCTION jobqueue_internal.next_check() RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM jobqueue_internal.key_checks AS n WHERE n.timed IS NULL) THEN 0
                ELSE (SELECT extract(epoch FROM t.at - clock_timestamp()) FROM jobqueue_internal.key_checks AS t
                       WHERE t.timed ORDER BY t.timed, t.at LIMIT 1) END
$$;
