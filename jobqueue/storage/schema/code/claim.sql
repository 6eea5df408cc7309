-- Claim jobs under the limits of their queues.

-- Return for how many seconds a job with these options can still be started; NULL: without a time limit.
CREATE OR REPLACE FUNCTION jobqueue_internal.seconds_left(options jsonb) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT (options -> 'expires_at')::double precision - date_part('epoch', now())
$$;

-- Return the options of a job in the form in which a claim returns them.
CREATE OR REPLACE FUNCTION jobqueue_internal.timed(options jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN options ? 'expires_at' THEN options || jsonb_build_object('expires_in', jobqueue_internal.seconds_left(options))
                ELSE options END
$$;

-- Notify listening nodes that jobs of a queue with max_running have ended. A node whose last claim got fewer jobs
-- because of the limit can claim again.
CREATE OR REPLACE FUNCTION jobqueue_internal.freed(queue text) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_notify('jobqueue_freed', q.name) FROM jobqueue_internal.queues AS q WHERE q.name = freed.queue AND q.max_running IS NOT NULL
$$;

-- Return how many jobs a claim can take from a queue with a limit, and after how many seconds it can take more (NULL:
-- when some jobs end). The function locks the queue's limits until the end of the transaction, so that the count stays
-- correct. It waits for this lock for at most 100 ms, because a user can keep a transaction open that configures the
-- queue.
CREATE OR REPLACE FUNCTION jobqueue_internal.allowance(queue text, wanted integer, OUT jobs integer, OUT again double precision)
LANGUAGE plpgsql
SET lock_timeout = '100ms'
SET enable_seqscan = on   -- needed while the index cannot count all jobs yet. Claims turn it off. Before PostgreSQL 18, a
                          -- disabled plan node adds a huge cost, which would start JIT: 100 ms each time
AS $$
#variable_conflict use_column
DECLARE
    state jobqueue_internal.queue_limits;
    settings jobqueue_internal.queues;
    running bigint;
    marked bigint;
    burst double precision;
    tokens double precision;
    enough double precision;
BEGIN
    BEGIN
        INSERT INTO jobqueue_internal.queue_limits (queue)
        SELECT allowance.queue WHERE NOT EXISTS (SELECT FROM jobqueue_internal.queue_limits AS l WHERE l.queue = allowance.queue)
            ON CONFLICT DO NOTHING;
        SELECT l.* INTO STRICT state FROM jobqueue_internal.queue_limits AS l WHERE l.queue = allowance.queue FOR UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        jobs := 0;
        again := 1;
        RETURN;
    END;
    IF state.refilled_at > clock_timestamp() THEN
        -- The clock was set back: the bucket fills from now on.
        state.refilled_at := clock_timestamp();
        UPDATE jobqueue_internal.queue_limits AS l SET refilled_at = state.refilled_at WHERE l.queue = allowance.queue;
    END IF;
    SELECT q.* INTO settings FROM jobqueue_internal.queues AS q WHERE q.name = allowance.queue;
    jobs := wanted;
    IF settings.max_running IS NOT NULL THEN
        IF state.all_counted THEN
            SELECT count(*) INTO running FROM jobqueue_internal.inflight_jobs AS i WHERE i.queue = allowance.queue AND i.limited;
        ELSE
            -- Jobs that were claimed before the limit existed are not marked. The last of these claims has ended when
            -- its statement_timeout is over. If all running jobs are marked after that time, the index can count them
            -- from then on.
            SELECT count(*), count(i.limited) INTO running, marked FROM jobqueue_internal.inflight_jobs AS i WHERE i.queue = allowance.queue;
            UPDATE jobqueue_internal.queue_limits AS l
               SET counted_since = least(l.counted_since, clock_timestamp()),
                   all_counted = coalesce(l.counted_since < clock_timestamp(), false)
             WHERE l.queue = allowance.queue
               AND (l.counted_since IS NULL OR l.counted_since > clock_timestamp()   -- the clock was set back
                    OR running = marked AND l.counted_since < clock_timestamp() - interval '1 minute');
        END IF;
        jobs := least(wanted, greatest(0, settings.max_running - running));
    END IF;
    IF settings.rate IS NOT NULL THEN
        burst := coalesce(settings.burst, greatest(1, settings.rate));
        tokens := jobqueue_internal.refilled(state.tokens, state.refilled_at, settings.rate, burst);
        IF floor(tokens) < jobs THEN
            jobs := greatest(0, floor(tokens));
            -- At a high rate, wait for a few tokens at a time instead of one.
            enough := greatest(1, floor(least(wanted, burst, settings.rate * 0.02)));
            again := (enough - (tokens - jobs)) / settings.rate;
        END IF;
    END IF;
END $$;

-- Return how many tokens are in a bucket now. A clock that was set back neither adds nor removes tokens.
CREATE OR REPLACE FUNCTION jobqueue_internal.refilled(tokens double precision, refilled_at timestamptz, rate double precision, burst double precision)
RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT least(burst, coalesce(tokens + rate * greatest(0, extract(epoch FROM clock_timestamp() - refilled_at)::double precision), burst))
$$;

-- Deduct the claimed jobs from the queue's bucket, under the lock of jobqueue_internal.allowance.
CREATE OR REPLACE FUNCTION jobqueue_internal.spend(queue text, taken integer) RETURNS void
LANGUAGE sql AS $$
    UPDATE jobqueue_internal.queue_limits AS l
       SET tokens = jobqueue_internal.refilled(l.tokens, l.refilled_at, q.rate, coalesce(q.burst, greatest(1, q.rate))) - taken,
           refilled_at = clock_timestamp()
      FROM jobqueue_internal.queues AS q
     WHERE l.queue = spend.queue AND q.name = l.queue AND q.rate IS NOT NULL AND taken > 0
$$;

-- Claim jobs of each queue, best rank first. `wants` is {"queue": [count, floor]}, and `defaults` is {"kind":
-- max_retries} of the node's handlers. The claim takes nothing from a paused queue, and nothing for a node without a
-- valid lease. It skips ranks below the floor (in seconds; null for no floor). The floor saves time while an old
-- transaction prevents the removal of dead rows, because dead rows have lower ranks than live rows.
--
-- Returns one JSON array of [queue, id, kind, payload, priority, attempt, claims, max_retries, timeout, created_at,
-- rank, waited], with times in seconds. If a job has options or saved notes, its array ends with these two values. If a
-- job has an expiry time, "expires_in" in its options is the remaining time. If that is zero or negative, the node must
-- not run the job, because the claim has already moved it to the dead letters.
--
-- If a limit allows fewer jobs than requested, or if a row cannot be claimed, the result is an object instead. "jobs"
-- is the array. "again" is {"queue": seconds}, the time until the limit may allow more jobs; null means that it may
-- allow more when jobs of the queue end. "dead" contains the jobs whose rows cannot be claimed, as jobqueue_internal.bury
-- returns them.
--
-- The settings fix the query plan: the table goes from empty to a million rows and back, so its statistics are never
-- right. The inner SELECT is in ARRAY(), so that PostgreSQL evaluates it only once. If a plan evaluated it again, the
-- claim would take more jobs than the limit allows.
CREATE OR REPLACE FUNCTION jobqueue_internal.claim(node uuid, wants jsonb, defaults jsonb DEFAULT '{}') RETURNS text
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
    want record;
    part text;
    emptied boolean;   -- no more jobs were found
    common numeric;    -- the last turns that were served in the lines of groups
    urgent numeric;
    quoted text;
    parts text[] := '{}';
    asking uuid[];     -- the claimed jobs with options
    late tid[];        -- the expired jobs in `asking`
    twins boolean := false;   -- whether pending rows of running jobs were found
    rows tid[];        -- after an error: the rows that remain to be claimed one by one
    row_place tid[];   -- the row that is claimed now
    row_parts text[];
    row_asking uuid[];
    dead jsonb;
    most integer;
    wait double precision;
    claimed jsonb;
    again jsonb;
BEGIN
    IF NOT EXISTS (SELECT FROM jobqueue_internal.nodes AS n WHERE n.id = node AND n.lease_until > now()) THEN
        RETURN '[]';
    END IF;
    FOR want IN
        SELECT w.key AS queue, (w.value ->> 0)::integer AS jobs,
               coalesce(to_timestamp((w.value ->> 1)::double precision), '-infinity') AS floor,
               num_nonnulls(q.max_running, q.rate, q.key_rate) > 0 AS limited, q.max_running, q.rate, q.key_rate, q.fair
          -- jsonb_each returns the queues in the same order for every claim, so all claims lock limits in the same
          -- order.
          FROM jsonb_each(wants) AS w LEFT JOIN jobqueue_internal.queues AS q ON q.name = w.key
         WHERE q.paused IS NOT TRUE
    LOOP
        quoted := to_json(want.queue);
        most := want.jobs;
        IF want.limited AND num_nonnulls(want.max_running, want.rate) > 0 THEN
            SELECT a.jobs, a.again INTO most, wait FROM jobqueue_internal.allowance(want.queue, want.jobs) AS a;
            IF most = 0 THEN
                again := coalesce(again, '{}') || jsonb_build_object(want.queue, wait);
                CONTINUE;
            END IF;
        END IF;
        LOOP
            BEGIN
                WITH taken AS (
                    DELETE FROM jobqueue_internal.pending_jobs AS p
                     WHERE p.ctid = ANY (coalesce(row_place, ARRAY(
                               SELECT c.ctid FROM jobqueue_internal.pending_jobs AS c
                                WHERE c.queue = want.queue AND c.rank >= want.floor
                                  AND (NOT twins OR NOT EXISTS (SELECT FROM jobqueue_internal.inflight_jobs AS i WHERE i.id = c.id OFFSET 0))
                                ORDER BY c.rank LIMIT most FOR UPDATE OF c SKIP LOCKED)))
                    RETURNING p.*, coalesce(p.max_retries, (defaults ->> p.kind)::integer, 3) AS retries
                ), moved AS (
                    INSERT INTO jobqueue_internal.inflight_jobs (id, queue, kind, priority, node_id, claimed_at, payload, max_retries, timeout,
                                                        attempt, claims, created_at, available_since, errors, options, saved, limited)
                    -- Rates use claimed_at. So with limits, claimed_at is the current time. The start of the
                    -- transaction would be too early, because the transaction may have waited for a lock.
                    SELECT t.id, t.queue, t.kind, t.priority, node,
                           CASE WHEN want.limited THEN clock_timestamp() ELSE now() END, t.payload, t.retries,
                           t.timeout, t.attempt + 1, t.claims + 1, t.created_at, t.available_since, t.errors, t.options, t.saved,
                           CASE WHEN want.max_running IS NOT NULL OR t.admitted THEN true END
                      FROM taken AS t
                )
                SELECT string_agg(concat_ws(',', quoted, '"' || t.id || '"', to_json(t.kind), t.payload, t.priority, t.attempt + 1,
                           t.claims + 1, t.retries, coalesce(t.timeout::text, 'null'), date_part('epoch', t.created_at),
                           date_part('epoch', t.rank), date_part('epoch', clock_timestamp() - t.available_since),
                           CASE WHEN num_nonnulls(t.options, t.saved) > 0
                                THEN concat(coalesce(jobqueue_internal.timed(t.options), 'null'), ',', coalesce(t.saved, 'null')) END), '],['),
                       count(*) < most, array_agg(t.id) FILTER (WHERE t.options IS NOT NULL)
                  INTO part, emptied, asking
                  FROM taken AS t;
                EXIT WHEN rows IS NULL;
                row_parts := row_parts || part;
                row_asking := row_asking || asking;
            EXCEPTION
                WHEN unique_violation THEN
                    -- This is a second row of a running job. Leave it pending until the run ends. A check for such rows
                    -- in every claim would take a tenth of the claim's time.
                    twins := true;
                WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR feature_not_supported THEN
                    -- Same as jobqueue_internal.move, but inline: a function call around these two statements would slow down
                    -- claims.
                    IF rows IS NULL THEN
                        rows := ARRAY(SELECT c.ctid FROM jobqueue_internal.pending_jobs AS c
                                       WHERE c.queue = want.queue AND c.rank >= want.floor
                                       ORDER BY c.rank LIMIT most FOR UPDATE OF c SKIP LOCKED);
                        row_parts := '{}';
                        row_asking := '{}';
                    ELSE
                        dead := coalesce(dead, '[]') || jobqueue_internal.bury('pending_jobs', row_place, 'claim', SQLERRM);
                    END IF;
            END;
            IF rows IS NOT NULL THEN
                IF rows = '{}' THEN
                    part := nullif(array_to_string(row_parts, '],['), '');
                    asking := nullif(row_asking, '{}');
                    emptied := false;
                    rows := NULL;
                    row_place := NULL;
                    EXIT;
                END IF;
                row_place := rows[1:1];
                rows := rows[2:];
            END IF;
        END LOOP;
        IF part IS NOT NULL THEN
            parts := parts || ('[' || part || ']');
        END IF;
        IF num_nonnulls(common, urgent) > 0 THEN   -- the previous queue left values; this test is faster than assigning NULL each time, because that needs a cast
            common := NULL;
            urgent := NULL;
        END IF;
        IF asking IS NOT NULL THEN
            SELECT max((i.options -> 'turn')::numeric) FILTER (WHERE i.priority = 0),
                   max((i.options -> 'turn')::numeric) FILTER (WHERE i.priority > 0),
                   array_agg(i.ctid) FILTER (WHERE jobqueue_internal.seconds_left(i.options) <= 0)
              INTO common, urgent, late
              FROM jobqueue_internal.inflight_jobs AS i WHERE i.id = ANY (asking);
            IF late IS NOT NULL THEN
                PERFORM jobqueue_internal.bury('inflight_jobs', late);
            END IF;
        END IF;
        IF want.fair AND emptied OR num_nonnulls(common, urgent) > 0 THEN
            PERFORM jobqueue_internal.serve_lines(want.queue, common, urgent, emptied);
        END IF;
        CONTINUE WHEN NOT want.limited;
        claimed := coalesce(('[[' || part || ']]')::jsonb, '[]');
        IF want.rate IS NOT NULL THEN
            PERFORM jobqueue_internal.spend(want.queue, jsonb_array_length(claimed));
        END IF;
        IF most < want.jobs AND jsonb_array_length(claimed) = most THEN
            again := coalesce(again, '{}') || jsonb_build_object(want.queue, wait);
        END IF;
        IF want.key_rate IS NOT NULL THEN
            INSERT INTO jobqueue_internal.key_starts (queue, key, at)
            SELECT i.queue, i.options ->> 'concurrency_key', i.claimed_at
              FROM jsonb_array_elements(claimed) AS c JOIN jobqueue_internal.inflight_jobs AS i ON i.id = (c ->> 1)::uuid
             WHERE i.options ->> 'concurrency_key' IS NOT NULL;
        END IF;
    END LOOP;
    IF again IS NOT NULL OR dead IS NOT NULL THEN
        RETURN '{"jobs":[' || array_to_string(parts, ',') || '],"again":' || coalesce(again, '{}')
               || ',"dead":' || coalesce(dead, '[]') || '}';
    END IF;
    RETURN '[' || array_to_string(parts, ',') || ']';
END $$;
