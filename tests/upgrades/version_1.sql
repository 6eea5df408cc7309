--
-- PostgreSQL database dump
--


-- Dumped from database version 15.20 (Debian 15.20-0+deb12u1)
-- Dumped by pg_dump version 15.20 (Debian 15.20-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: jobqueue; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA jobqueue;


--
-- Name: admit(integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.admit(max_checks integer DEFAULT 1000) RETURNS TABLE(checks integer, best jsonb, next_due double precision)
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
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
        RAISE EXCEPTION 'jobqueue.admit needs the isolation level READ COMMITTED, and this transaction has %', current_setting('transaction_isolation');
    END IF;
    PERFORM pg_advisory_xact_lock(7669743430829532519);
    present := clock_timestamp();
    WITH due AS (
        DELETE FROM jobqueue.key_checks AS c
         WHERE c.ctid = ANY (ARRAY(
                   SELECT d.place
                     FROM ((SELECT t.ctid AS place FROM jobqueue.key_checks AS t
                             WHERE t.timed AND t.at <= present ORDER BY t.timed, t.at LIMIT (max_checks + 1) / 2)
                           UNION ALL
                           (SELECT n.ctid FROM jobqueue.key_checks AS n WHERE n.timed IS NULL ORDER BY n.timed, n.at LIMIT max_checks)) AS d
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
                   - (SELECT count(*) FROM jobqueue.pending_jobs AS p
                       WHERE p.queue = w.queue AND p.options ->> 'concurrency_key' = w.key AND p.admitted)
                   - (SELECT count(*) FROM jobqueue.inflight_jobs AS i
                       WHERE i.queue = w.queue AND i.options ->> 'concurrency_key' = w.key AND i.limited)
                   ORDER BY w.place),
               array_agg(q.key_rate ORDER BY w.place), array_agg(coalesce(q.key_burst, greatest(1, q.key_rate)) ORDER BY w.place)
          INTO free, rates, bursts
          FROM unnest(queues, keys) WITH ORDINALITY AS w (queue, key, place) LEFT JOIN jobqueue.queues AS q ON q.name = w.queue;
        FOR n IN 1 .. cardinality(queues) LOOP
            IF rates[n] IS NOT NULL AND free[n] > 0
               AND EXISTS (SELECT FROM jobqueue.blocked_jobs AS b WHERE b.queue = queues[n] AND b.options ->> 'concurrency_key' = keys[n]) THEN
                free[n] := least(free[n], jobqueue.key_allowance(queues[n], keys[n], rates[n], bursts[n], free[n]));
            END IF;
        END LOOP;
        WITH wanted AS MATERIALIZED (
            SELECT w.queue, w.key, w.free FROM unnest(queues, keys, free) AS w (queue, key, free) WHERE w.free > 0
        ), picked AS MATERIALIZED (
            -- Skip a row that another transaction has locked to cancel it, instead of waiting for that transaction.
            SELECT w.queue, w.key, w.free, b.place
              FROM wanted AS w
             CROSS JOIN LATERAL (SELECT b.ctid AS place FROM jobqueue.blocked_jobs AS b
                                  WHERE b.queue = w.queue AND b.options ->> 'concurrency_key' = w.key
                                  ORDER BY b.rank LIMIT w.free FOR UPDATE OF b SKIP LOCKED) AS b
        ), left_out AS (
            INSERT INTO jobqueue.key_checks (queue, key, at, timed)
            SELECT w.queue, w.key, clock_timestamp() + interval '1 second', true FROM wanted AS w
             WHERE (SELECT count(*) FROM picked AS p WHERE p.queue = w.queue AND p.key = w.key)
                   < (SELECT count(*) FROM (SELECT FROM jobqueue.blocked_jobs AS b
                                             WHERE b.queue = w.queue AND b.options ->> 'concurrency_key' = w.key LIMIT w.free) AS there)
        )
        SELECT array_agg(picked.place) INTO places FROM picked;
        IF places IS NOT NULL THEN
            best := jobqueue.best_of((jobqueue.move('admission', 'admit_these', 'blocked_jobs', places)).moved);
        END IF;
        PERFORM jobqueue.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    END IF;
    next_due := jobqueue.next_check();
    RETURN NEXT;
END $$;


--
-- Name: admit_these(tid[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.admit_these(places tid[]) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    best jsonb;
BEGIN
    WITH gone AS (
        DELETE FROM jobqueue.blocked_jobs AS b WHERE b.ctid = ANY (places) RETURNING b.*
    ), moved AS (
        INSERT INTO jobqueue.pending_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at,
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


--
-- Name: allowance(text, integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.allowance(queue text, wanted integer, OUT jobs integer, OUT again double precision) RETURNS record
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET enable_seqscan TO 'on'
    AS $$
#variable_conflict use_column
DECLARE
    state jobqueue.queue_limits;
    settings jobqueue.queues;
    running bigint;
    marked bigint;
    burst double precision;
    tokens double precision;
    enough double precision;
BEGIN
    BEGIN
        INSERT INTO jobqueue.queue_limits (queue)
        SELECT allowance.queue WHERE NOT EXISTS (SELECT FROM jobqueue.queue_limits AS l WHERE l.queue = allowance.queue)
            ON CONFLICT DO NOTHING;
        SELECT l.* INTO STRICT state FROM jobqueue.queue_limits AS l WHERE l.queue = allowance.queue FOR UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        jobs := 0;
        again := 1;
        RETURN;
    END;
    IF state.refilled_at > clock_timestamp() THEN
        -- The clock was set back: the bucket fills from now on.
        state.refilled_at := clock_timestamp();
        UPDATE jobqueue.queue_limits AS l SET refilled_at = state.refilled_at WHERE l.queue = allowance.queue;
    END IF;
    SELECT q.* INTO settings FROM jobqueue.queues AS q WHERE q.name = allowance.queue;
    jobs := wanted;
    IF settings.max_running IS NOT NULL THEN
        IF state.all_counted THEN
            SELECT count(*) INTO running FROM jobqueue.inflight_jobs AS i WHERE i.queue = allowance.queue AND i.limited;
        ELSE
            -- Jobs that were claimed before the limit existed are not marked. The last of these claims has ended when
            -- its statement_timeout is over. If all running jobs are marked after that time, the index can count them
            -- from then on.
            SELECT count(*), count(i.limited) INTO running, marked FROM jobqueue.inflight_jobs AS i WHERE i.queue = allowance.queue;
            UPDATE jobqueue.queue_limits AS l
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
        tokens := jobqueue.refilled(state.tokens, state.refilled_at, settings.rate, burst);
        IF floor(tokens) < jobs THEN
            jobs := greatest(0, floor(tokens));
            -- At a high rate, wait for a few tokens at a time instead of one.
            enough := greatest(1, floor(least(wanted, burst, settings.rate * 0.02)));
            again := (enough - (tokens - jobs)) / settings.rate;
        END IF;
    END IF;
END $$;


--
-- Name: best_of(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.best_of(ranks jsonb) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    AS $$
BEGIN
    IF jsonb_array_length(ranks) = 1 THEN
        RETURN ranks -> 0;
    END IF;
    RETURN (SELECT coalesce(jsonb_object_agg(q.queue, q.rank), '{}')
              FROM (SELECT e.key AS queue, min(e.value::numeric) AS rank
                      FROM jsonb_array_elements(ranks) AS r CROSS JOIN jsonb_each(r) AS e GROUP BY e.key) AS q);
END $$;


--
-- Name: block(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.block() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF NEW.admitted OR NEW.options ->> 'concurrency_key' IS NULL THEN
        RETURN NEW;
    END IF;
    INSERT INTO jobqueue.blocked_jobs VALUES (NEW.*) ON CONFLICT (id) DO NOTHING;
    INSERT INTO jobqueue.key_checks (queue, key) VALUES (NEW.queue, NEW.options ->> 'concurrency_key');
    RETURN NULL;
END $$;


--
-- Name: bury(text, tid[], text, text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.bury(source text, places tid[], verb text DEFAULT NULL::text, words text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    unmovable constant boolean := verb IS NOT NULL;
    told constant text := CASE WHEN unmovable THEN format('the %s cannot move this row: %s', verb, left(words, 500)) ELSE 'expired' END;
    claimed constant boolean := source = 'inflight_jobs';
    died jsonb;
BEGIN
    IF places = '{}' THEN
        RETURN '[]';
    END IF;
    IF source = 'dead_jobs' THEN
        -- The row is already a dead letter. Store the reason. Also set died_at to now, so that a redrive tries all
        -- other rows first.
        UPDATE jobqueue.dead_jobs AS d SET reason = told, died_at = now() WHERE d.ctid = ANY (places);
        RETURN '[]';
    END IF;
    EXECUTE format($query$
        WITH gone AS (
            DELETE FROM jobqueue.%1$I WHERE ctid = ANY ($1)
            RETURNING *, left(queue, 200) AS short_queue, left(kind, 200) AS short_kind,
                      CASE WHEN %3$L THEN greatest(attempt, 1) - 1 ELSE attempt END AS counted
        ), dead AS (
            INSERT INTO jobqueue.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, died_at, node_id, errors, options, saved)
            SELECT g.id, g.short_queue, g.short_kind, g.priority, $2, g.payload, g.max_retries, g.timeout, g.counted, g.claims,
                   -- Clients can read times in the years 68 to 9892.
                   CASE WHEN g.created_at BETWEEN to_timestamp(-6e10) AND to_timestamp(2.5e11) THEN g.created_at ELSE now() END,
                   CASE WHEN g.available_since BETWEEN to_timestamp(-6e10) AND to_timestamp(2.5e11) THEN g.available_since ELSE now() END,
                   now(), %2$s, jobqueue.with_error(CASE WHEN jsonb_typeof(g.errors) = 'array' THEN g.errors ELSE '[]' END,
                       CASE WHEN $3 THEN jsonb_build_object('attempt', g.attempt, 'at', now(), 'duration', 0, 'error', $2) END),
                   g.options, g.saved
              FROM gone AS g
                ON CONFLICT (id) DO NOTHING
        ), checks AS (
            INSERT INTO jobqueue.key_checks (queue, key)
            SELECT g.queue, g.options ->> 'concurrency_key' FROM gone AS g WHERE %4$L AND g.options ->> 'concurrency_key' IS NOT NULL
        )
        SELECT jsonb_agg(jsonb_build_object('id', g.id, 'queue', g.short_queue, 'kind', g.short_kind, 'attempt', g.counted,
                                            'node_id', %2$s, 'reason', $2))
          FROM gone AS g
        $query$, source, CASE WHEN claimed AND unmovable THEN 'g.node_id' ELSE 'NULL::uuid' END, claimed AND NOT unmovable,
        source <> 'scheduled_jobs')
       INTO died USING places, told, unmovable;
    RETURN coalesce(died, '[]');
END $_$;


--
-- Name: cancel(uuid, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.cancel(job uuid, keep boolean DEFAULT true) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    IF jobqueue.cancel_waiting(job, keep) THEN
        RETURN true;
    END IF;
    IF EXISTS (SELECT FROM jobqueue.inflight_jobs AS i WHERE i.id = job) THEN
        INSERT INTO jobqueue.cancel_requests (job_id) VALUES (job);
        PERFORM pg_notify('jobqueue_cancel', '');
        RETURN true;
    END IF;
    RETURN jobqueue.cancel_waiting(job, keep);
END $$;


--
-- Name: cancel_jobs(jsonb, integer, boolean, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.cancel_jobs(filter jsonb, max_jobs integer DEFAULT 1000, keep boolean DEFAULT true, dry_run boolean DEFAULT false) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    walk record;
    place uuid;
    total integer := 0;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', cancel_jobs.max_jobs, 'keep', cancel_jobs.keep, 'dry_run', cancel_jobs.dry_run)), 'a call', '{max_jobs,keep,dry_run}');
    LOOP
        SELECT w.* INTO walk
          FROM jobqueue.cancel_walk(filter, least(CASE WHEN NOT dry_run THEN 1000 END, max_jobs - total), place, keep, dry_run) AS w;
        total := total + walk.jobs;
        place := walk.rest;
        EXIT WHEN place IS NULL OR total >= max_jobs;
    END LOOP;
    RETURN total;
END $$;


--
-- Name: cancel_now(uuid, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.cancel_now(job uuid, keep boolean DEFAULT true) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    run integer;
BEGIN
    FOR look IN 1..2 LOOP
        IF jobqueue.cancel_waiting(job, keep) THEN
            RETURN true;
        END IF;
        UPDATE jobqueue.inflight_jobs SET cancel_requested_at = coalesce(cancel_requested_at, now()) WHERE id = job
            RETURNING claims INTO run;
        IF FOUND THEN
            PERFORM pg_notify('jobqueue_cancel', job || ' ' || run);
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END $$;


--
-- Name: cancel_requested(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.cancel_requested() RETURNS void
    LANGUAGE plpgsql
    SET jit TO 'off'
    AS $$
DECLARE
    requests tid[];
    jobs uuid[];
    run record;
BEGIN
    SELECT array_agg(r.place), array_agg(r.job_id) INTO requests, jobs
      FROM (SELECT q.ctid AS place, q.job_id FROM jobqueue.cancel_requests AS q LIMIT 1000 FOR UPDATE SKIP LOCKED) AS r;
    IF jobs IS NULL THEN
        RETURN;
    END IF;
    PERFORM jobqueue.cancel_these(jobs, '{scheduled,blocked,pending}', true);
    FOR run IN
        UPDATE jobqueue.inflight_jobs AS i SET cancel_requested_at = now()
         WHERE i.id = ANY (ARRAY(SELECT l.id FROM jobqueue.inflight_jobs AS l
                                  WHERE l.id = ANY (jobs) AND l.cancel_requested_at IS NULL ORDER BY l.id FOR UPDATE SKIP LOCKED))
        RETURNING i.id, i.claims
    LOOP
        PERFORM pg_notify('jobqueue_cancel', run.id || ' ' || run.claims);
    END LOOP;
    DELETE FROM jobqueue.cancel_requests AS r
     WHERE r.ctid = ANY (requests)
       AND (EXISTS (SELECT FROM jobqueue.inflight_jobs AS i WHERE i.id = r.job_id AND i.cancel_requested_at IS NOT NULL)
            OR NOT jobqueue.unfinished(r.job_id));
END $$;


--
-- Name: cancel_these(uuid[], text[], boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.cancel_these(jobs uuid[], states text[], keep boolean) RETURNS integer
    LANGUAGE plpgsql
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
DECLARE
    ended integer;
    asked integer;
BEGIN
    WITH scheduled AS (
        DELETE FROM jobqueue.scheduled_jobs AS s
         WHERE s.id = ANY (ARRAY(SELECT l.id FROM jobqueue.scheduled_jobs AS l
                                  WHERE 'scheduled' = ANY (states) AND l.id = ANY (jobs) ORDER BY l.id FOR UPDATE SKIP LOCKED))
        RETURNING s.*
    ), blocked AS (
        DELETE FROM jobqueue.blocked_jobs AS b
         WHERE b.id = ANY (ARRAY(SELECT l.id FROM jobqueue.blocked_jobs AS l
                                  WHERE 'blocked' = ANY (states) AND l.id = ANY (jobs) ORDER BY l.id FOR UPDATE SKIP LOCKED))
        RETURNING b.*
    ), pending AS (
        DELETE FROM jobqueue.pending_jobs AS p
         WHERE p.id = ANY (ARRAY(SELECT l.id FROM jobqueue.pending_jobs AS l
                                  WHERE 'pending' = ANY (states) AND l.id = ANY (jobs) ORDER BY l.id FOR UPDATE SKIP LOCKED))
        RETURNING p.*
    ), gone AS (
        SELECT id, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options,
               saved FROM scheduled
        UNION ALL
        SELECT id, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options,
               saved FROM blocked
        UNION ALL
        SELECT id, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options,
               saved FROM pending
    ), kept AS (
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, finished_at, errors, options, saved)
        SELECT g.id, g.queue, g.kind, g.priority, 'cancelled', g.payload, g.max_retries, g.timeout, g.attempt, g.claims, g.created_at,
               g.available_since, now(), g.errors, g.options, g.saved
          FROM gone AS g WHERE keep
    ), checks AS (
        INSERT INTO jobqueue.key_checks (queue, key)
        SELECT DISTINCT p.queue, p.options ->> 'concurrency_key' FROM pending AS p WHERE p.options ->> 'concurrency_key' IS NOT NULL
        RETURNING key
    ), told AS MATERIALIZED (
        SELECT count(jobqueue.wake_keys()) FROM checks
    )
    SELECT count(*) INTO ended FROM gone CROSS JOIN told;
    -- For running jobs, only store a request, for the same reason as in jobqueue.cancel.
    INSERT INTO jobqueue.cancel_requests (job_id)
    SELECT i.id FROM jobqueue.inflight_jobs AS i
     WHERE 'inflight' = ANY (states) AND i.id = ANY (jobs) AND i.cancel_requested_at IS NULL
       AND i.id NOT IN (SELECT r.job_id FROM jobqueue.cancel_requests AS r);
    GET DIAGNOSTICS asked = ROW_COUNT;
    IF asked > 0 THEN
        PERFORM pg_notify('jobqueue_cancel', '');
    END IF;
    RETURN ended + asked;
END $$;


--
-- Name: cancel_waiting(uuid, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.cancel_waiting(job uuid, keep boolean) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
DECLARE
    gone jobqueue.blocked_jobs;   -- has the same columns as pending_jobs; scheduled_jobs has some of them
BEGIN
    DELETE FROM jobqueue.scheduled_jobs AS s WHERE s.id = job
 RETURNING s.id, s.queue, s.kind, s.priority, NULL, s.payload, s.max_retries, s.timeout, s.attempt, s.claims, s.created_at,
           s.available_since, s.errors, s.options, s.saved, NULL
      INTO gone;
    IF NOT FOUND THEN
        DELETE FROM jobqueue.blocked_jobs AS b WHERE b.id = job RETURNING b.* INTO gone;
    END IF;
    IF NOT FOUND THEN
        DELETE FROM jobqueue.pending_jobs AS p WHERE p.id = job RETURNING p.* INTO gone;
        IF gone.options ->> 'concurrency_key' IS NOT NULL THEN
            INSERT INTO jobqueue.key_checks (queue, key) VALUES (gone.queue, gone.options ->> 'concurrency_key');
            PERFORM jobqueue.wake_keys();
        END IF;
    END IF;
    IF gone.id IS NULL THEN
        RETURN false;
    END IF;
    IF keep THEN
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, finished_at, errors, options, saved)
        VALUES (gone.id, gone.queue, gone.kind, gone.priority, 'cancelled', gone.payload, gone.max_retries, gone.timeout, gone.attempt,
                gone.claims, gone.created_at, gone.available_since, now(), gone.errors, gone.options, gone.saved);
    END IF;
    RETURN true;
END $$;


--
-- Name: cancel_walk(jsonb, integer, uuid, boolean, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.cancel_walk(filter jsonb, max_jobs integer, before uuid, keep boolean, dry_run boolean) RETURNS TABLE(jobs integer, rest uuid)
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    states text[] := jobqueue.states_of(filter, '{pending,blocked,scheduled,inflight}');
    -- Exclude jobs that already have a cancel request.
    wanted text := '(w.state <> ''inflight'' OR w.cancel_requested_at IS NULL AND w.id NOT IN (SELECT r.job_id FROM jobqueue.cancel_requests AS r))';
    found uuid[];
    done integer;
BEGIN
    EXECUTE format(
        'SELECT coalesce(array_agg(w.id) FILTER (WHERE w.wanted AND %s), ''{}''),'
        ' CASE WHEN count(*) = %L OR bool_or(w.is_last) THEN (array_agg(w.id ORDER BY w.id))[1] END FROM (%s) AS w', wanted, max_jobs,
        jobqueue.walk(filter, states, before, max_jobs, CASE WHEN dry_run THEN 100000 ELSE 10000 END)) INTO found, rest;
    jobs := 0;
    IF dry_run THEN
        jobs := cardinality(found);
        RETURN NEXT;
        RETURN;
    END IF;
    -- If a row is locked, most likely a claim or a promotion is moving it, so look again. Rows that an open transaction
    -- still holds after the last look are skipped.
    FOR look IN 1..3 LOOP
        done := jobqueue.cancel_these(found, states, keep);
        jobs := jobs + done;
        EXIT WHEN done = cardinality(found);
        PERFORM pg_sleep(0.02);
        EXECUTE format('SELECT ARRAY(SELECT w.id FROM jobqueue.jobs AS w WHERE w.id = ANY (%L) AND w.state = ANY (%L) AND %s)',
                       found, states, wanted) INTO found;
    END LOOP;
    RETURN NEXT;
END $$;


--
-- Name: cause_of(jsonb, text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.cause_of(errors jsonb, reason text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    SET standard_conforming_strings TO 'on'
    AS $$
DECLARE
    message text := coalesce(nullif(errors -> -1 ->> 'error', ''), reason);
    kept constant text := chr(1);   -- marks the parts to keep; the text's own control characters are replaced first
    cut constant text := chr(2);
    cause text := regexp_replace(left(message, 1000), '[\u0001-\u0020\u007f]+', ' ', 'g') || CASE WHEN length(message) > 1000 THEN cut ELSE '' END;
BEGIN
    -- Replace the path of a URL, but not its host.
    IF strpos(cause, '://') > 0 THEN
        cause := regexp_replace(cause, '([a-z]://[^ /?#"''<>(){}\[\],;|]+)[/?#][^ "''<>(){}\[\],;|]*', '\1/#', 'g');
    END IF;
    IF cause ~ '[''"]' THEN
        -- Mark quoted names of program parts, and quoted HTTP statuses, as parts to keep. Other quoted values are
        -- replaced below. (The first test only saves time.)
        IF cause ~ '[a-z:] [''"](?:[A-Za-z_][A-Za-z0-9_.]*[''"]|[1-5][0-9]{2} [A-Z])' THEN
            cause := regexp_replace(cause,
                '([Ff]ield|[Aa]ttribute|[Aa]rgument|[Pp]arameter|[Oo]ption|[Mm]odule|[Mm]odule named|import name|NameError: name|KeyError:|[Tt]ype|[Cc]lass'
                '|[Mm]ethod|[Ff]unction|[Hh]andler|[Kk]ind|[Cc]olumn|[Rr]elation|[Tt]able|[Cc]onstraint|[Ii]ndex|[Ss]chema|[Rr]ole|[Dd]atabase|[Ee]ncoding'
                '|[Ee]rror|[Rr]esponse) ([''"])((?:[A-Za-z_][A-Za-z0-9_.]*|[1-5][0-9]{2} [A-Z][A-Za-z -]*)[''"])', '\1 \2' || kept || '\3', 'g');
        END IF;
        cause := regexp_replace(cause, '([''"])([A-Za-z_][A-Za-z0-9_.]*[''"] object)', '\1' || kept || '\2', 'g');
        cause := regexp_replace(cause,
            '(?<![A-Za-z0-9_])[bru]?(?:''(?:[^''\u0001\u0002]|''[A-Za-z0-9])*[''\u0002]|"[^"\u0001\u0002]*["\u0002])', '''#''', 'g');
    END IF;
    -- Replace the values in the details of PostgreSQL errors, such as: Key (email)=(...) already exists.
    IF strpos(cause, '=(') > 0 THEN
        cause := regexp_replace(cause, '=\([^()]*\)', '=(#)', 'g');
    END IF;
    IF strpos(cause, '@') > 0 THEN
        cause := regexp_replace(cause, '[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+', '#', 'g');
    END IF;
    IF cause ~ '[0-9]' THEN
        cause := regexp_replace(cause, '([Cc]ode|[Ss]tatus|[Ee]rrno|HTTP|[Ss]ignal|SQLSTATE)([ :=] ?-?)([0-9]{1,5})(?![0-9A-Za-z])', '\1\2' || kept || '\3', 'g');
        cause := regexp_replace(cause,
            '(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?(?![0-9A-Za-z])', '#', 'g');
        -- Replace hexadecimal numbers, and long words that contain a digit (such as UUIDs).
        cause := regexp_replace(cause, '(?<![A-Za-z0-9_\u0001-])(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}', '#', 'g');
        cause := regexp_replace(cause,
            '(?<![A-Za-z0-9_\u0001])(?:0x[0-9A-Fa-f]+|(?=[0-9]*[A-Fa-f])(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{6,})(?![A-Za-z0-9_])', '#', 'g');
        -- Replace numbers. Inside a word (utf8, S3), replace only long numbers.
        cause := regexp_replace(cause, '(?<![0-9A-Za-z\u0001])-?[0-9]+(?:[.,:][0-9]+)*(?:[eE][-+]?[0-9]+)?|(?<=[A-Za-z])[0-9]{4,}', '#', 'g');
    END IF;
    IF strpos(cause, '/') > 0 THEN
        cause := regexp_replace(cause, '(?<![A-Za-z0-9_.~#/])([.~]*/[A-Za-z0-9_.~#@%+=-]+)(?:/[A-Za-z0-9_.~#@%+=-]+)+/?', '\1/#', 'g');
    END IF;
    cause := regexp_replace(cause, '#(?:[,.:/_-] ?#)+', '#', 'g');
    cause := rtrim(left(ltrim(translate(cause, kept || cut, '')), 200));
    RETURN coalesce(nullif(cause, ''), 'unknown');
END $$;


--
-- Name: change(uuid, integer, timestamp with time zone); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.change(job uuid, priority integer DEFAULT NULL::integer, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    gone jobqueue.blocked_jobs;   -- for a scheduled job, rank is its run_at
    state text;
    present constant timestamptz := clock_timestamp();
    put_off constant boolean := coalesce(change.run_at > present, false);
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'priority', change.priority, 'run_at', to_jsonb(change.run_at AT TIME ZONE 'UTC') #>> '{}' || 'Z'))), 'a change of a job', '{priority,run_at}');
    -- Search the tables in the order in which jobs move. Search them twice, because a concurrent change of the job
    -- writes a new row for it.
    FOR look IN 1..2 LOOP
        state := 'scheduled';
        DELETE FROM jobqueue.scheduled_jobs AS s WHERE s.id = job
     RETURNING s.id, s.queue, s.kind, s.priority, s.run_at, s.payload, s.max_retries, s.timeout, s.attempt, s.claims, s.created_at,
               s.available_since, s.errors, s.options, s.saved, NULL
          INTO gone;
        EXIT WHEN FOUND;
        state := 'blocked';
        DELETE FROM jobqueue.blocked_jobs AS b WHERE b.id = job RETURNING b.* INTO gone;
        EXIT WHEN FOUND;
        state := 'pending';
        DELETE FROM jobqueue.pending_jobs AS p WHERE p.id = job RETURNING p.* INTO gone;
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
        INSERT INTO jobqueue.scheduled_jobs (id, queue, kind, priority, run_at, payload, max_retries, timeout, attempt, claims, created_at,
                                             available_since, errors, options, saved)
        VALUES (gone.id, gone.queue, gone.kind, gone.priority, gone.rank, gone.payload, gone.max_retries, gone.timeout, gone.attempt,
                gone.claims, gone.created_at, gone.available_since, gone.errors, gone.options, gone.saved)
            ON CONFLICT (id) DO NOTHING;
        PERFORM pg_notify('jobqueue_scheduled', extract(epoch FROM gone.rank)::text);
        IF gone.admitted THEN
            INSERT INTO jobqueue.key_checks (queue, key) VALUES (gone.queue, gone.options ->> 'concurrency_key');
        END IF;
    ELSE
        IF (gone.options ? 'turn') IS NOT TRUE THEN
            gone.options := jobqueue.with_new_turn(gone.options, gone.queue, gone.priority);
        END IF;
        gone.rank := jobqueue.rank_of(gone.available_since, gone.priority,
                                      (SELECT q.aging_interval FROM jobqueue.queues AS q WHERE q.name = gone.queue), gone.options);
        -- If the job has a key and is not admitted, the trigger inserts its row into blocked_jobs instead, and inserts
        -- a check of the key.
        INSERT INTO jobqueue.pending_jobs VALUES (gone.*) ON CONFLICT (id) DO NOTHING;
        PERFORM jobqueue.wake(gone.queue, gone.rank);
    END IF;
    IF gone.options ->> 'concurrency_key' IS NOT NULL THEN
        PERFORM jobqueue.wake_keys();
    END IF;
    RETURN true;
END $$;


--
-- Name: check_keys(text, integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.check_keys(queue text, max_keys integer DEFAULT 100000) RETURNS void
    LANGUAGE sql
    AS $$
    -- Jump from key to key in the index, because a key can have a million jobs.
    WITH RECURSIVE keys AS (
        (SELECT b.options ->> 'concurrency_key' AS key FROM jobqueue.blocked_jobs AS b WHERE b.queue = check_keys.queue ORDER BY key LIMIT 1)
        UNION ALL
        SELECT (SELECT b.options ->> 'concurrency_key' AS key FROM jobqueue.blocked_jobs AS b
                 WHERE b.queue = check_keys.queue AND b.options ->> 'concurrency_key' > keys.key ORDER BY key LIMIT 1)
          FROM keys WHERE keys.key IS NOT NULL
    )
    INSERT INTO jobqueue.key_checks (queue, key)
    SELECT check_keys.queue, keys.key FROM keys WHERE keys.key IS NOT NULL LIMIT max_keys
$$;


--
-- Name: claim(uuid, jsonb, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.claim(node uuid, wants jsonb, defaults jsonb DEFAULT '{}'::jsonb) RETURNS text
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
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
    IF NOT EXISTS (SELECT FROM jobqueue.nodes AS n WHERE n.id = node AND n.lease_until > now()) THEN
        RETURN '[]';
    END IF;
    FOR want IN
        SELECT w.key AS queue, (w.value ->> 0)::integer AS jobs,
               coalesce(to_timestamp((w.value ->> 1)::double precision), '-infinity') AS floor,
               num_nonnulls(q.max_running, q.rate, q.key_rate) > 0 AS limited, q.max_running, q.rate, q.key_rate, q.fair
          -- jsonb_each returns the queues in the same order for every claim, so all claims lock limits in the same
          -- order.
          FROM jsonb_each(wants) AS w LEFT JOIN jobqueue.queues AS q ON q.name = w.key
         WHERE q.paused IS NOT TRUE
    LOOP
        quoted := to_json(want.queue);
        most := want.jobs;
        IF want.limited AND num_nonnulls(want.max_running, want.rate) > 0 THEN
            SELECT a.jobs, a.again INTO most, wait FROM jobqueue.allowance(want.queue, want.jobs) AS a;
            IF most = 0 THEN
                again := coalesce(again, '{}') || jsonb_build_object(want.queue, wait);
                CONTINUE;
            END IF;
        END IF;
        LOOP
            BEGIN
                WITH taken AS (
                    DELETE FROM jobqueue.pending_jobs AS p
                     WHERE p.ctid = ANY (coalesce(row_place, ARRAY(
                               SELECT c.ctid FROM jobqueue.pending_jobs AS c
                                WHERE c.queue = want.queue AND c.rank >= want.floor
                                  AND (NOT twins OR NOT EXISTS (SELECT FROM jobqueue.inflight_jobs AS i WHERE i.id = c.id OFFSET 0))
                                ORDER BY c.rank LIMIT most FOR UPDATE OF c SKIP LOCKED)))
                    RETURNING p.*, coalesce(p.max_retries, (defaults ->> p.kind)::integer, 3) AS retries
                ), moved AS (
                    INSERT INTO jobqueue.inflight_jobs (id, queue, kind, priority, node_id, claimed_at, payload, max_retries, timeout,
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
                                THEN concat(coalesce(jobqueue.timed(t.options), 'null'), ',', coalesce(t.saved, 'null')) END), '],['),
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
                    -- Same as jobqueue.move, but inline: a function call around these two statements would slow down
                    -- claims.
                    IF rows IS NULL THEN
                        rows := ARRAY(SELECT c.ctid FROM jobqueue.pending_jobs AS c
                                       WHERE c.queue = want.queue AND c.rank >= want.floor
                                       ORDER BY c.rank LIMIT most FOR UPDATE OF c SKIP LOCKED);
                        row_parts := '{}';
                        row_asking := '{}';
                    ELSE
                        dead := coalesce(dead, '[]') || jobqueue.bury('pending_jobs', row_place, 'claim', SQLERRM);
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
                   array_agg(i.ctid) FILTER (WHERE jobqueue.seconds_left(i.options) <= 0)
              INTO common, urgent, late
              FROM jobqueue.inflight_jobs AS i WHERE i.id = ANY (asking);
            IF late IS NOT NULL THEN
                PERFORM jobqueue.bury('inflight_jobs', late);
            END IF;
        END IF;
        IF want.fair AND emptied OR num_nonnulls(common, urgent) > 0 THEN
            PERFORM jobqueue.serve_lines(want.queue, common, urgent, emptied);
        END IF;
        CONTINUE WHEN NOT want.limited;
        claimed := coalesce(('[[' || part || ']]')::jsonb, '[]');
        IF want.rate IS NOT NULL THEN
            PERFORM jobqueue.spend(want.queue, jsonb_array_length(claimed));
        END IF;
        IF most < want.jobs AND jsonb_array_length(claimed) = most THEN
            again := coalesce(again, '{}') || jsonb_build_object(want.queue, wait);
        END IF;
        IF want.key_rate IS NOT NULL THEN
            INSERT INTO jobqueue.key_starts (queue, key, at)
            SELECT i.queue, i.options ->> 'concurrency_key', i.claimed_at
              FROM jsonb_array_elements(claimed) AS c JOIN jobqueue.inflight_jobs AS i ON i.id = (c ->> 1)::uuid
             WHERE i.options ->> 'concurrency_key' IS NOT NULL;
        END IF;
    END LOOP;
    IF again IS NOT NULL OR dead IS NOT NULL THEN
        RETURN '{"jobs":[' || array_to_string(parts, ',') || '],"again":' || coalesce(again, '{}')
               || ',"dead":' || coalesce(dead, '[]') || '}';
    END IF;
    RETURN '[' || array_to_string(parts, ',') || ']';
END $$;


--
-- Name: clock_was_set_back(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.clock_was_set_back() RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    UPDATE jobqueue.nodes AS n SET heartbeat_at = clock_timestamp(), lease_until = clock_timestamp() + (n.lease_until - n.heartbeat_at)
     WHERE n.id = ANY (ARRAY(SELECT o.id FROM jobqueue.nodes AS o WHERE o.heartbeat_at > clock_timestamp() ORDER BY o.id FOR UPDATE SKIP LOCKED));
    UPDATE jobqueue.key_buckets AS b SET check_at = NULL
     WHERE b.ctid = ANY (ARRAY(SELECT o.ctid FROM jobqueue.key_buckets AS o WHERE o.check_at > clock_timestamp()
                                ORDER BY o.queue, o.key FOR UPDATE));
    UPDATE jobqueue.key_checks AS c SET timed = NULL
     WHERE c.ctid = ANY (ARRAY(SELECT o.ctid FROM jobqueue.key_checks AS o WHERE o.timed AND o.at > clock_timestamp() FOR UPDATE SKIP LOCKED));
    PERFORM jobqueue.wake_keys();
END $$;


--
-- Name: conditions(jsonb, text[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.conditions(filter jsonb, known text[]) RETURNS TABLE(name text, text text)
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    given constant jsonb := CASE jsonb_typeof(filter) WHEN 'object' THEN jsonb_strip_nulls(filter) || (filter - known)
                                                      ELSE coalesce(filter, 'null') END;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(given), 'a filter', known);
    IF given = '{}' THEN
        RAISE check_violation USING COLUMN = 'all', MESSAGE = 'the filter is empty: give a condition, or {"all": true} to select all';
    END IF;
    RETURN QUERY SELECT m.key, m.value #>> '{}' FROM jsonb_each(given) AS m;
END $$;


--
-- Name: configure(text, interval, integer, double precision, integer, integer, double precision, integer, text[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.configure(queue text, aging_interval interval DEFAULT NULL::interval, max_running integer DEFAULT NULL::integer, rate double precision DEFAULT NULL::double precision, burst integer DEFAULT NULL::integer, key_max_running integer DEFAULT NULL::integer, key_rate double precision DEFAULT NULL::double precision, key_burst integer DEFAULT NULL::integer, clear text[] DEFAULT '{}'::text[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    settings constant text[] := '{aging_interval,max_running,rate,burst,key_max_running,key_rate,key_burst}';
    clear constant text[] := coalesce(configure.clear, '{}');
    old jobqueue.queues;
    new jobqueue.queues;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('queue', configure.queue) || jsonb_strip_nulls(jsonb_build_object(
        'aging_interval', extract(epoch FROM configure.aging_interval), 'max_running', configure.max_running, 'rate', configure.rate,
        'burst', configure.burst, 'key_max_running', configure.key_max_running, 'key_rate', configure.key_rate,
        'key_burst', configure.key_burst))), 'a queue', settings || 'queue'::text);
    IF NOT clear <@ settings THEN   -- also rejects NULL as an element
        RAISE check_violation USING COLUMN = 'clear', MESSAGE = 'clear must only name settings of a queue: ' || array_to_string(settings, ', ');
    END IF;
    INSERT INTO jobqueue.queues (name) VALUES (configure.queue) ON CONFLICT (name) DO NOTHING;
    SELECT q.* INTO STRICT old FROM jobqueue.queues AS q WHERE q.name = configure.queue FOR UPDATE;
    UPDATE jobqueue.queues AS q SET
        aging_interval = coalesce(configure.aging_interval, CASE WHEN 'aging_interval' = ANY (clear) THEN '1 second' ELSE q.aging_interval END),
        max_running = coalesce(configure.max_running, CASE WHEN 'max_running' <> ALL (clear) THEN q.max_running END),
        rate = coalesce(configure.rate, CASE WHEN 'rate' <> ALL (clear) THEN q.rate END),
        burst = coalesce(configure.burst, CASE WHEN 'burst' <> ALL (clear) THEN q.burst END),
        key_max_running = coalesce(configure.key_max_running, CASE WHEN 'key_max_running' <> ALL (clear) THEN q.key_max_running END),
        key_rate = coalesce(configure.key_rate, CASE WHEN 'key_rate' <> ALL (clear) THEN q.key_rate END),
        key_burst = coalesce(configure.key_burst, CASE WHEN 'key_burst' <> ALL (clear) THEN q.key_burst END)
     WHERE q.name = configure.queue
    RETURNING q.* INTO new;
    -- A new limit has no earlier state: some running jobs may still be unmarked, and its bucket is full. A changed
    -- limit keeps its state.
    UPDATE jobqueue.queue_limits AS l SET all_counted = false, counted_since = NULL
     WHERE l.queue = configure.queue AND old.max_running IS NULL AND new.max_running IS NOT NULL;
    UPDATE jobqueue.queue_limits AS l SET tokens = NULL, refilled_at = NULL
     WHERE l.queue = configure.queue AND old.rate IS NULL AND new.rate IS NOT NULL;
    IF (old.max_running, old.rate, old.burst) IS DISTINCT FROM (new.max_running, new.rate, new.burst) THEN
        PERFORM pg_notify('jobqueue_freed', configure.queue);
    END IF;
    IF (old.key_max_running, old.key_rate, old.key_burst) IS DISTINCT FROM (new.key_max_running, new.key_rate, new.key_burst) THEN
        PERFORM jobqueue.check_keys(configure.queue), jobqueue.wake_keys();
    END IF;
END $$;


--
-- Name: dead_causes(jsonb, integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.dead_causes(filter jsonb DEFAULT '{"all": true}'::jsonb, max_causes integer DEFAULT 100) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_indexscan TO 'off'
    SET enable_hashagg TO 'off'
    SET enable_sort TO 'off'
    SET max_parallel_workers_per_gather TO '0'
    SET jit TO 'off'
    AS $_$
DECLARE
    meant constant text := jobqueue.dead_condition(filter);
    same constant text := 'd.cause = g.cause AND d.kind = g.kind AND d.queue = g.queue';
    found jsonb;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('max_causes', dead_causes.max_causes)), 'a call', '{max_causes}');
    EXECUTE format(
        'SELECT jsonb_build_object(''causes'', coalesce(jsonb_agg(jsonb_build_object('
        '''queue'', g.queue, ''kind'', g.kind, ''cause'', g.cause, ''jobs'', g.jobs, ''first_died_at'', f.died_at, ''last_died_at'', l.died_at,'
        ' ''example'', l.id) ORDER BY g.place) FILTER (WHERE g.place <= %1$s), ''[]''), ''more'', count(*) > %1$s)'
        ' FROM (SELECT c.*, row_number() OVER (ORDER BY c.jobs DESC, c.cause, c.kind, c.queue) AS place'
        ' FROM (SELECT d.cause, d.kind, d.queue, count(*) AS jobs FROM jobqueue.dead_jobs AS d WHERE %2$s GROUP BY d.cause, d.kind, d.queue'
        ' ORDER BY jobs DESC, d.cause, d.kind, d.queue LIMIT %1$s + 1) AS c) AS g'
        ' CROSS JOIN LATERAL (SELECT d.died_at FROM jobqueue.dead_jobs AS d WHERE %2$s AND %3$s ORDER BY d.died_at, d.id LIMIT 1) AS f'
        ' CROSS JOIN LATERAL (SELECT d.died_at, d.id FROM jobqueue.dead_jobs AS d WHERE %2$s AND %3$s ORDER BY d.died_at DESC, d.id DESC LIMIT 1) AS l',
        max_causes, meant, same) INTO found;
    RETURN found;
END $_$;


--
-- Name: dead_condition(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.dead_condition(filter jsonb) RETURNS text
    LANGUAGE sql STABLE
    SET "DateStyle" TO 'ISO, YMD'
    AS $$
    SELECT string_agg(CASE asked.name
               WHEN 'queue' THEN format('d.queue = %L', asked.text)
               WHEN 'kind' THEN format('d.kind = %L', asked.text)
               WHEN 'group' THEN format('d.options ->> ''group'' = %L', asked.text)
               WHEN 'cause' THEN format('d.cause = %L', asked.text)
               WHEN 'reason' THEN format('strpos(d.reason, %L) > 0', asked.text)
               WHEN 'died_before' THEN format('d.died_at < jobqueue.instant(%L)', asked.text)
               WHEN 'died_after' THEN format('d.died_at > jobqueue.instant(%L)', asked.text)
               ELSE asked.text END, ' AND ')
      FROM jobqueue.conditions(filter, '{queue,kind,group,cause,reason,died_before,died_after,all}') AS asked
$$;


--
-- Name: dead_matching(jsonb, integer, text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.dead_matching(filter jsonb, max_jobs integer, condition text DEFAULT 'true'::text) RETURNS uuid[]
    LANGUAGE plpgsql
    AS $$
DECLARE
    found uuid[];
BEGIN
    EXECUTE format('SELECT array_agg(m.id) FROM (SELECT d.id FROM jobqueue.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at, d.id LIMIT %L'
                   ' FOR UPDATE SKIP LOCKED) AS m', jobqueue.dead_condition(filter), condition, max_jobs) INTO found;
    RETURN coalesce(found, '{}');
END $$;


--
-- Name: depth(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.depth() RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object('pending', (SELECT count(*) FROM jobqueue.pending_jobs), 'scheduled', (SELECT count(*) FROM jobqueue.scheduled_jobs),
                              'blocked', (SELECT count(*) FROM jobqueue.blocked_jobs), 'inflight', (SELECT count(*) FROM jobqueue.inflight_jobs),
                              'dead', (SELECT count(*) FROM jobqueue.dead_jobs))
$$;


--
-- Name: discard(uuid); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.discard(job uuid) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    WITH gone AS (DELETE FROM jobqueue.dead_jobs WHERE id = job RETURNING id) SELECT EXISTS (SELECT FROM gone)
$$;


--
-- Name: discard_dead(jsonb, integer, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.discard_dead(filter jsonb, max_jobs integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    found uuid[];
    jobs integer;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', discard_dead.max_jobs, 'dry_run', discard_dead.dry_run)), 'a call', '{max_jobs,dry_run}');
    IF dry_run THEN
        EXECUTE format('SELECT count(*) FROM (SELECT FROM jobqueue.dead_jobs AS d WHERE %s LIMIT %L) AS d',
                       jobqueue.dead_condition(filter), max_jobs) INTO jobs;
        RETURN jobs;
    END IF;
    found := jobqueue.dead_matching(filter, max_jobs);
    DELETE FROM jobqueue.dead_jobs WHERE id = ANY (found);
    GET DIAGNOSTICS jobs = ROW_COUNT;
    RETURN jobs;
END $$;


--
-- Name: due_schedules(integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.due_schedules(max_schedules integer DEFAULT 500) RETURNS TABLE(at double precision, due jsonb, next_in double precision)
    LANGUAGE sql STABLE
    AS $$
    SELECT extract(epoch FROM now())::double precision,
           (SELECT coalesce(jsonb_agg(jsonb_build_array(d.name, d.cron, d.timezone, d.missed,
                                                        extract(epoch FROM d.next_at)::double precision)), '[]')
              FROM (SELECT s.* FROM jobqueue.schedules AS s
                     WHERE NOT s.paused AND s.error IS NULL AND (s.next_at IS NULL OR s.next_at <= now())
                     ORDER BY s.next_at NULLS FIRST, s.name LIMIT max_schedules) AS d),
           (SELECT extract(epoch FROM min(s.next_at) - clock_timestamp())::double precision FROM jobqueue.schedules AS s
             WHERE NOT s.paused AND s.error IS NULL AND s.next_at > now())
$$;


--
-- Name: expire(integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.expire(max_jobs integer DEFAULT 1000) RETURNS jsonb
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    AS $$
#variable_conflict use_column
DECLARE
    moment double precision := date_part('epoch', now());
BEGIN
    RETURN jobqueue.bury('pending_jobs', ARRAY(
               SELECT e.ctid FROM jobqueue.pending_jobs AS e
                WHERE e.options ? 'expires_at' AND (e.options -> 'expires_at')::double precision <= moment
                ORDER BY (e.options -> 'expires_at')::double precision LIMIT max_jobs FOR UPDATE SKIP LOCKED))
        || jobqueue.bury('blocked_jobs', ARRAY(
               SELECT e.ctid FROM jobqueue.blocked_jobs AS e
                WHERE e.options ? 'expires_at' AND (e.options -> 'expires_at')::double precision <= moment
                ORDER BY (e.options -> 'expires_at')::double precision LIMIT max_jobs FOR UPDATE SKIP LOCKED))
        || jobqueue.bury('scheduled_jobs', ARRAY(
               SELECT e.ctid FROM jobqueue.scheduled_jobs AS e
                WHERE e.options ? 'expires_at' AND (e.options -> 'expires_at')::double precision <= moment
                ORDER BY (e.options -> 'expires_at')::double precision LIMIT max_jobs FOR UPDATE SKIP LOCKED));
END $$;


--
-- Name: fingerprint(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.fingerprint(job jsonb) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(
               coalesce(j.queue, 'default'), coalesce(j.kind, 'default'), coalesce(j.priority, 0)::integer, coalesce(j.payload, '{}'), j.max_retries::integer,
               j.timeout, extract(epoch FROM j.run_at)::double precision, j.delay,
               (SELECT jsonb_object_agg(o.key, CASE jsonb_typeof(o.value) WHEN 'number' THEN to_jsonb(o.value::double precision)
                                                                          ELSE o.value END)
                  FROM jsonb_each(j.options - '{idempotency_key,rank,schedule,scheduled_for,traceparent,tracestate}'::text[]) AS o))::text, 'UTF8')), 'hex')
      FROM jsonb_to_record(job) AS j (queue text, kind text, priority numeric, payload jsonb, max_retries numeric,
                                      timeout double precision, run_at timestamptz, delay double precision, options jsonb)
$$;


--
-- Name: finish(uuid, jsonb, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.finish(node uuid, outcomes jsonb, keep boolean DEFAULT true) RETURNS bigint[]
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET jit TO 'off'
    SET enable_seqscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_hashjoin TO 'off'
    AS $_$
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
        DELETE FROM jobqueue.inflight_jobs AS i USING given AS g
         WHERE i.id = g.id AND i.claims = g.claims AND i.node_id = node
        RETURNING i.*, g.result, g.place
    ), finished AS (
        INSERT INTO jobqueue.succeeded_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                             available_since, claimed_at, finished_at, node_id, result, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, 'succeeded', d.payload, d.max_retries, d.timeout, d.attempt, d.claims, d.created_at,
               d.available_since, d.claimed_at, statement_timestamp(), d.node_id, d.result, d.errors, d.options, d.saved
          FROM gone AS d WHERE finish.keep
    )
    SELECT coalesce(array_agg(gone.place), '{}'),
           jsonb_agg(jsonb_build_array(gone.queue, gone.options ->> 'concurrency_key')) FILTER (WHERE gone.limited)
      INTO done, limited FROM gone;
    IF limited IS NOT NULL THEN
        INSERT INTO jobqueue.key_checks (queue, key)
        SELECT DISTINCT l ->> 0, l ->> 1 FROM jsonb_array_elements(limited) AS l WHERE l ->> 1 IS NOT NULL;
        PERFORM jobqueue.freed(f.queue) FROM (SELECT DISTINCT l ->> 0 AS queue FROM jsonb_array_elements(limited) AS l) AS f;
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
            DELETE FROM jobqueue.inflight_jobs AS i USING given AS g
             WHERE i.id = g.id AND i.claims = g.claims AND i.node_id = node
            RETURNING i.*, g.result, g.reason, g.error, g.delay, g.place,
                      -- This expression is not in a function, because RETURNING does not inline functions. A call would
                      -- take a third of the time that moving the row takes.
                      CASE WHEN g.saved IS NULL THEN i.saved ELSE coalesce(i.saved, '{}') || g.saved END AS noted,
                      coalesce(g.outcome, '') = 'retry' AND i.attempt > i.max_retries AS spent,
                      CASE WHEN (g.outcome IN ('snoozed', 'released') OR g.outcome = 'retry' AND i.attempt <= i.max_retries)
                                AND (i.cancel_requested_at IS NOT NULL OR i.id IN (SELECT q.job_id FROM jobqueue.cancel_requests AS q))
                           THEN 'cancelled' ELSE g.outcome END AS outcome
        ), finished AS (
            INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                                available_since, claimed_at, finished_at, node_id, result, errors, options, saved)
            SELECT d.id, d.queue, d.kind, d.priority, d.outcome, d.payload, d.max_retries, d.timeout, d.attempt, d.claims, d.created_at,
                   d.available_since, d.claimed_at, now(), d.node_id, d.result, jobqueue.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.noted
              -- An unknown outcome raises an error, because no partition has that state.
              FROM gone AS d
             WHERE coalesce(d.outcome, '') NOT IN ('dead', 'retry', 'snoozed', 'released') AND (finish.keep OR d.outcome IS DISTINCT FROM 'succeeded')
        ), dead AS (
            INSERT INTO jobqueue.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, died_at, node_id, errors, options, saved)
            SELECT d.id, d.queue, d.kind, d.priority, CASE WHEN d.spent THEN 'attempts used up' ELSE d.reason END, d.payload,
                   d.max_retries, d.timeout, d.attempt, d.claims, d.created_at, d.available_since, now(), d.node_id,
                   jobqueue.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.noted
              FROM gone AS d WHERE d.outcome = 'dead' OR d.spent
                ON CONFLICT (id) DO NOTHING
        ), scheduled AS (
            INSERT INTO jobqueue.scheduled_jobs (id, queue, kind, priority, run_at, payload, max_retries, timeout, attempt, claims, created_at,
                                                 available_since, errors, options, saved)
            SELECT d.id, d.queue, d.kind, d.priority, now() + d.delay * interval '1 second', d.payload, d.max_retries, d.timeout,
                   d.attempt - CASE d.outcome WHEN 'snoozed' THEN 1 ELSE 0 END, d.claims, d.created_at, d.available_since,
                   jobqueue.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.noted
              FROM gone AS d WHERE d.outcome IN ('retry', 'snoozed') AND NOT d.spent
                ON CONFLICT (id) DO NOTHING
        ), released AS (
            INSERT INTO jobqueue.pending_jobs
                   (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
            SELECT d.id, d.queue, d.kind, d.priority, jobqueue.rank_of(d.available_since, d.priority, q.aging_interval, d.options), d.payload,
                   d.max_retries, d.timeout, d.attempt - 1, d.claims, d.created_at, d.available_since, d.errors, d.options, d.noted
              FROM gone AS d LEFT JOIN jobqueue.queues AS q ON q.name = d.queue
             WHERE d.outcome = 'released'
                ON CONFLICT (id) DO NOTHING
            RETURNING queue, rank
        ), checks AS (
            INSERT INTO jobqueue.key_checks (queue, key)
            SELECT d.queue, d.options ->> 'concurrency_key' FROM gone AS d WHERE d.options ->> 'concurrency_key' IS NOT NULL
        ), told AS MATERIALIZED (
            SELECT count(jobqueue.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM released GROUP BY queue) AS queues
        ), freed AS MATERIALIZED (
            SELECT count(jobqueue.freed(queue)) FROM (SELECT DISTINCT queue FROM gone WHERE limited) AS queues
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
            PERFORM jobqueue.bury('inflight_jobs', ARRAY(
                SELECT i.ctid FROM jobqueue.inflight_jobs AS i
                 WHERE i.id = (outcomes #>> '{0,id}')::uuid AND i.claims = (outcomes #>> '{0,claims}')::integer AND i.node_id = node
                   FOR UPDATE), 'completion', SQLERRM);
            RETURN '{}';
        END IF;
        RETURN ARRAY(SELECT o.place FROM jsonb_array_elements(outcomes) WITH ORDINALITY AS o (outcome, place)
                      WHERE jobqueue.finish(node, jsonb_build_array(o.outcome), keep) <> '{}' ORDER BY o.place);
    END;
    RETURN coalesce(stale, '{}');
END $_$;


--
-- Name: fits(jsonb, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.fits(value jsonb, rule jsonb) RETURNS boolean
    LANGUAGE sql STABLE
    AS $_$
    SELECT CASE rule ->> 'is'
        WHEN 'string' THEN jsonb_typeof(value) = 'string' AND length(value #>> '{}') BETWEEN 1 AND (rule -> 'to')::integer
                           AND coalesce(NOT rule -> 'but' @> value, true)
        WHEN 'payload' THEN pg_column_size(value) < 500 AND NOT value @? 'strict $.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)'
                            OR jobqueue.payload_fault(value) IS NULL
        WHEN 'integer' THEN CASE jsonb_typeof(value) WHEN 'number' THEN value BETWEEN rule -> 'from' AND rule -> 'to' AND value::numeric % 1 = 0 END
        WHEN 'number' THEN jsonb_typeof(value) = 'number' AND value BETWEEN rule -> 'from' AND rule -> 'to' AND (value = '0' OR value >= '5e-324')
        WHEN 'instant' THEN jsonb_typeof(value) = 'string' AND jobqueue.instant(value #>> '{}') IS NOT NULL
        WHEN 'boolean' THEN jsonb_typeof(value) = 'boolean'
        WHEN 'text' THEN jsonb_typeof(value) = 'string'
        WHEN 'one' THEN jsonb_typeof(value) <> 'array' AND rule -> 'of' @> value
        WHEN 'some' THEN value <> '[]' AND rule -> 'of' @> value
        WHEN 'uuid' THEN value #>> '{}' ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
    END
$_$;


--
-- Name: freed(text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.freed(queue text) RETURNS void
    LANGUAGE sql
    AS $$
    SELECT pg_notify('jobqueue_freed', q.name) FROM jobqueue.queues AS q WHERE q.name = freed.queue AND q.max_running IS NOT NULL
$$;


--
-- Name: heartbeat(uuid, double precision, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.heartbeat(node uuid, lease double precision, activity jsonb DEFAULT NULL::jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM jobqueue.nodes AS n WHERE n.id = node AND n.heartbeat_at > clock_timestamp()) THEN
        PERFORM jobqueue.clock_was_set_back();
    END IF;
    UPDATE jobqueue.nodes AS n
       SET heartbeat_at = now(), lease_until = now() + lease * interval '1 second', activity = heartbeat.activity WHERE n.id = node;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM jobqueue.cancel_requests) THEN
        PERFORM jobqueue.cancel_requested();
    END IF;
    RETURN (SELECT coalesce(jsonb_agg(jsonb_build_array(i.id, i.claims)), '[]')
              FROM jobqueue.inflight_jobs AS i WHERE i.node_id = node AND i.cancel_requested_at IS NOT NULL);
END $$;


--
-- Name: hold_unique_key(text, uuid); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.hold_unique_key(unique_key text, job uuid) RETURNS uuid
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$
#variable_conflict use_column
DECLARE
    holder uuid;
BEGIN
    LOOP
        INSERT INTO jobqueue.keys (scope, key, job_id, expires_at) VALUES ('unique', unique_key, job, clock_timestamp() + interval '1 day')
            ON CONFLICT (scope, key) DO NOTHING;
        IF FOUND THEN
            RETURN job;
        END IF;
        SELECT k.job_id INTO holder FROM jobqueue.keys AS k
         WHERE k.scope = 'unique' AND k.key = unique_key AND k.job_id <> job AND jobqueue.unfinished(k.job_id);
        IF FOUND THEN
            RETURN holder;
        END IF;
        SELECT k.job_id INTO holder FROM jobqueue.keys AS k WHERE k.scope = 'unique' AND k.key = unique_key FOR UPDATE;
        CONTINUE WHEN NOT FOUND;  -- the row was pruned in the meantime
        IF holder <> job AND jobqueue.unfinished(holder) THEN
            RETURN holder;
        END IF;
        UPDATE jobqueue.keys AS k SET job_id = job, expires_at = clock_timestamp() + interval '1 day' WHERE k.scope = 'unique' AND k.key = unique_key;
        RETURN job;
    END LOOP;
END $$;


--
-- Name: ids_like(text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.ids_like(text text) RETURNS uuid[]
    LANGUAGE plpgsql IMMUTABLE
    AS $_$
DECLARE
    digits text := lower(replace(text, '-', ''));
    first uuid;
BEGIN
    IF digits !~ '^(0[0-9a-f]{7,30}|[0-9a-f]{32})$' THEN
        RETURN NULL;
    END IF;
    first := rpad(digits, 32, '0');
    IF lower(text) NOT IN (digits, left(first::text, length(text))) THEN
        RETURN NULL;
    END IF;
    RETURN ARRAY[first, rpad(digits, 32, 'f')::uuid];
END $_$;


--
-- Name: instant(text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.instant(text text) RETURNS timestamp with time zone
    LANGUAGE plpgsql IMMUTABLE STRICT
    AS $_$
DECLARE
    part constant text[] := regexp_match(text, '^([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]'
        '([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9](?:\.[0-9]+)?)(?:[Zz]|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))$');
    days integer;
BEGIN
    IF part IS NULL OR part[1] = '0000' THEN
        RETURN NULL;
    END IF;
    days := extract(day FROM make_date(part[1]::integer, part[2]::integer, 1) + interval '1 month' - interval '1 day');
    IF part[3]::integer > days THEN
        RETURN NULL;
    END IF;
    RETURN least(greatest(timezone('UTC',
        make_timestamp(part[1]::integer, part[2]::integer, part[3]::integer, part[4]::integer, part[5]::integer, left(part[6], 20)::double precision)
        - coalesce((part[7] || '1')::integer * make_interval(hours => part[8]::integer, mins => part[9]::integer), interval '0')),
        timestamptz '0001-01-01 00:00:00+00'), timestamptz '9999-12-31 23:59:59.999999+00');
END $_$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: schedules; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.schedules (
    name text NOT NULL,
    source text,
    cron text NOT NULL,
    timezone text NOT NULL,
    missed text NOT NULL,
    kind text NOT NULL,
    payload jsonb NOT NULL,
    queue text NOT NULL,
    priority integer NOT NULL,
    max_retries integer,
    timeout double precision,
    paused boolean DEFAULT false NOT NULL,
    next_at timestamp with time zone,
    last_at timestamp with time zone,
    error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT cron_length CHECK (((length(cron) >= 1) AND (length(cron) <= 200))),
    CONSTRAINT kind_length CHECK (((length(kind) >= 1) AND (length(kind) <= 200))),
    CONSTRAINT max_retries_range CHECK (((max_retries >= 0) AND (max_retries <= 1000))),
    CONSTRAINT missed_known CHECK ((missed = ANY (ARRAY['one'::text, 'skip'::text, 'all'::text]))),
    CONSTRAINT name_length CHECK (((length(name) >= 1) AND (length(name) <= 200))),
    CONSTRAINT next_at_finite CHECK (isfinite(next_at)),
    CONSTRAINT priority_range CHECK (((priority >= 0) AND (priority <= 1000000))),
    CONSTRAINT queue_length CHECK (((length(queue) >= 1) AND (length(queue) <= 200))),
    CONSTRAINT timeout_range CHECK (((timeout > (0)::double precision) AND (timeout <= (604800)::double precision))),
    CONSTRAINT timezone_length CHECK (((length(timezone) >= 1) AND (length(timezone) <= 200)))
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='100');


--
-- Name: job_of(jobqueue.schedules, timestamp with time zone); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.job_of(schedule jobqueue.schedules, tick timestamp with time zone) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT jsonb_build_object(
        'kind', schedule.kind, 'payload', schedule.payload, 'queue', schedule.queue, 'priority', schedule.priority,
        'max_retries', schedule.max_retries, 'timeout', schedule.timeout,
        'options', jsonb_strip_nulls(jsonb_build_object(
            'schedule', schedule.name, 'scheduled_for', extract(epoch FROM tick)::double precision)))
$$;


--
-- Name: join_node(uuid, text, integer, text, text, jsonb, double precision); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.join_node(node uuid, host text, pid integer, process text, version text, queues jsonb, lease double precision) RETURNS void
    LANGUAGE sql
    AS $$
    INSERT INTO jobqueue.queues (name) SELECT jsonb_object_keys(join_node.queues) ON CONFLICT (name) DO NOTHING;
    INSERT INTO jobqueue.nodes (id, host, pid, process, version, queues, lease_until)
    VALUES (node, join_node.host, join_node.pid, join_node.process, join_node.version, join_node.queues,
            now() + lease * interval '1 second')
$$;


--
-- Name: key_allowance(text, text, double precision, double precision, bigint); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.key_allowance(queue text, key text, rate double precision, burst double precision, wanted bigint) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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
    SELECT b.* INTO bucket FROM jobqueue.key_buckets AS b WHERE b.queue = key_allowance.queue AND b.key = key_allowance.key;
    -- This is one statement with one snapshot, so a job that is claimed during the call is counted in exactly one of
    -- the two tables.
    WITH gone AS (
        DELETE FROM jobqueue.key_starts AS s WHERE s.queue = key_allowance.queue AND s.key = key_allowance.key RETURNING s.at
    )
    SELECT (SELECT array_agg(gone.at ORDER BY gone.at) FROM gone),
           (SELECT count(*) FROM jobqueue.pending_jobs AS p
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
            INSERT INTO jobqueue.key_checks (queue, key, at, timed) VALUES (key_allowance.queue, key_allowance.key, next_at, true);
        END IF;
    END IF;
    INSERT INTO jobqueue.key_buckets AS b (queue, key, tokens, refilled_at, check_at)
    VALUES (key_allowance.queue, key_allowance.key, tokens, present, next_at)
        ON CONFLICT ON CONSTRAINT key_buckets_pkey
        DO UPDATE SET tokens = excluded.tokens, refilled_at = excluded.refilled_at, check_at = excluded.check_at;
    RETURN allowed;
END $$;


--
-- Name: keys_of(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.keys_of(jobs jsonb) RETURNS TABLE(place integer, id uuid, idempotency_key text, unique_key text)
    LANGUAGE sql
    AS $$
    SELECT j.place::integer, coalesce(j.id, jobqueue.uuid7()), j.options ->> 'idempotency_key',
           jobqueue.unique_key_of(coalesce(j.queue, 'default'), coalesce(j.kind, 'default'), coalesce(j.payload, '{}'), j.options)
      FROM ROWS FROM (jsonb_to_recordset(jobs) AS (id uuid, queue text, kind text, payload jsonb, options jsonb))
           WITH ORDINALITY AS j (id, queue, kind, payload, options, place)
     ORDER BY j.place
$$;


--
-- Name: lags(text, timestamp with time zone); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.lags(queue text, since timestamp with time zone) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT EXISTS (SELECT FROM jobqueue.fair_queues AS f WHERE f.queue = lags.queue AND least(f.common, f.urgent) < extract(epoch FROM since))
$$;


--
-- Name: leave_node(uuid); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.leave_node(node uuid) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    places tid[];
    released integer;
BEGIN
    places := ARRAY(SELECT i.ctid FROM jobqueue.inflight_jobs AS i WHERE i.node_id = node AND i.blame IS NULL ORDER BY i.id FOR UPDATE);
    SELECT sum(r.jobs::integer) INTO released
      FROM jsonb_array_elements_text((jobqueue.move('hand-back', 'leave_these', 'inflight_jobs', places)).moved) AS r (jobs);
    DELETE FROM jobqueue.nodes WHERE id = node;
    RETURN coalesce(released, 0);
END $$;


--
-- Name: leave_these(tid[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.leave_these(places tid[]) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
DECLARE
    released integer;
BEGIN
    WITH taken AS (
        DELETE FROM jobqueue.inflight_jobs WHERE ctid = ANY (places) RETURNING *
    ), held AS (
        SELECT t.*, t.cancel_requested_at IS NOT NULL OR t.id IN (SELECT q.job_id FROM jobqueue.cancel_requests AS q) AS unwanted
          FROM taken AS t
    ), cancelled AS (
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, errors, options, saved)
        SELECT h.id, h.queue, h.kind, h.priority, 'cancelled', h.payload, h.max_retries, h.timeout, h.attempt, h.claims, h.created_at,
               h.available_since, h.claimed_at, now(), h.node_id, h.errors, h.options, h.saved
          FROM held AS h WHERE h.unwanted
    ), checks AS (
        INSERT INTO jobqueue.key_checks (queue, key)
        SELECT h.queue, h.options ->> 'concurrency_key' FROM held AS h
         WHERE h.unwanted AND h.options ->> 'concurrency_key' IS NOT NULL
    ), back AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT h.id, h.queue, h.kind, h.priority, jobqueue.rank_of(h.available_since, h.priority, q.aging_interval, h.options), h.payload,
               h.max_retries, h.timeout, h.attempt - 1, h.claims, h.created_at, h.available_since, h.errors, h.options, h.saved
          FROM held AS h LEFT JOIN jobqueue.queues AS q ON q.name = h.queue
         WHERE NOT h.unwanted
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM back GROUP BY queue) AS queues
    ), freed AS MATERIALIZED (
        SELECT count(jobqueue.freed(queue)) FROM (SELECT DISTINCT queue FROM held WHERE limited) AS queues
    )
    SELECT (SELECT count(*) FROM held WHERE NOT unwanted),
           (SELECT count(jobqueue.wake_keys()) FROM held WHERE options ? 'concurrency_key')
      INTO released FROM told CROSS JOIN freed;
    RETURN to_jsonb(released);
END $$;


--
-- Name: list_dead(jsonb, integer, timestamp with time zone, uuid); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.list_dead(filter jsonb, max_jobs integer DEFAULT 100, before timestamp with time zone DEFAULT NULL::timestamp with time zone, before_id uuid DEFAULT NULL::uuid) RETURNS SETOF jsonb
    LANGUAGE plpgsql STABLE
    SET "DateStyle" TO 'ISO, YMD'
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', list_dead.max_jobs)), 'a call', '{max_jobs}');
    RETURN QUERY EXECUTE format(
        'SELECT jsonb_build_object(''id'', d.id, ''queue'', d.queue, ''kind'', d.kind, ''priority'', d.priority, ''reason'', d.reason,'
        ' ''attempt'', d.attempt, ''max_retries'', d.max_retries, ''created_at'', d.created_at, ''died_at'', d.died_at,'
        ' ''node_id'', d.node_id, ''options'', jobqueue.shown(d.options), ''error'', jobqueue.shown(d.errors -> -1 -> ''error''), ''cause'', d.cause)'
        ' FROM jobqueue.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at DESC, d.id DESC LIMIT %L',
        jobqueue.dead_condition(filter),
        CASE WHEN before IS NULL THEN 'true' ELSE format('(d.died_at, d.id) < (%L::timestamptz, %L::uuid)', before, before_id) END,
        max_jobs);
END $$;


--
-- Name: list_jobs(jsonb, integer, uuid, integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.list_jobs(filter jsonb DEFAULT '{"all": true}'::jsonb, max_jobs integer DEFAULT 100, before uuid DEFAULT NULL::uuid, max_rows integer DEFAULT 10000) RETURNS jsonb
    LANGUAGE plpgsql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
DECLARE
    page jsonb;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', list_jobs.max_jobs, 'max_rows', list_jobs.max_rows)), 'a call', '{max_jobs,max_rows}');
    EXECUTE format(
        'SELECT jsonb_build_object(''jobs'', coalesce(jsonb_agg(jsonb_build_object('
        '''id'', w.id, ''state'', w.state, ''queue'', w.queue, ''kind'', w.kind, ''priority'', w.priority, ''attempt'', w.attempt,'
        ' ''max_retries'', w.max_retries, ''created_at'', w.created_at, ''run_at'', w.run_at, ''claimed_at'', w.claimed_at,'
        ' ''ended_at'', w.ended_at, ''node_id'', w.node_id, ''reason'', w.reason, ''options'', jobqueue.shown(w.options),'
        ' ''progress'', jobqueue.shown(w.saved -> ''progress''))'
        ' ORDER BY w.id DESC) FILTER (WHERE w.wanted), ''[]''),'
        ' ''next'', CASE WHEN count(*) = %L OR bool_or(w.is_last) THEN (array_agg(w.id ORDER BY w.id))[1] END) FROM (%s) AS w', max_jobs,
        jobqueue.walk(filter, jobqueue.states_of(filter, '{pending,blocked,scheduled,inflight,succeeded,cancelled,dead}'), before, max_jobs,
                      max_rows)) INTO page;
    RETURN page;
END $$;


--
-- Name: lose_node(uuid); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.lose_node(node uuid) RETURNS void
    LANGUAGE sql
    AS $$
    WITH lost AS (
        DELETE FROM jobqueue.nodes WHERE id = node RETURNING id
    )
    SELECT pg_notify('jobqueue_lost', id::text) FROM lost
$$;


--
-- Name: maintain(double precision, double precision); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.maintain(keep_succeeded double precision, keep_cancelled double precision, OUT dropped integer, OUT failed text[]) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "DateStyle" TO 'ISO, YMD'
    SET lock_timeout TO '100ms'
    AS $$
DECLARE
    part record;
    covered timestamptz;
BEGIN
    dropped := 0;
    failed := '{}';
    IF NOT pg_try_advisory_xact_lock(7669743430829532518) THEN
        RETURN;
    END IF;
    DELETE FROM jobqueue.fair_groups WHERE ctid = ANY (ARRAY(
        SELECT g.ctid FROM jobqueue.fair_groups AS g JOIN jobqueue.fair_queues AS f ON f.queue = g.queue
         WHERE g.epoch < f.epoch OR greatest(g.common, g.urgent) < least(f.common, f.urgent)
         LIMIT 10000 FOR UPDATE OF g SKIP LOCKED));
    -- Check all keys from time to time, because rows may have been deleted by hand, for example.
    PERFORM jobqueue.check_keys(b.queue) FROM (SELECT DISTINCT blocked_jobs.queue FROM jobqueue.blocked_jobs) AS b;
    -- Delete the buckets that are full again. If a queue has no key_rate any more, delete the buckets and starts of its
    -- keys.
    DELETE FROM jobqueue.key_starts AS s WHERE NOT EXISTS (SELECT FROM jobqueue.queues AS q WHERE q.name = s.queue AND q.key_rate IS NOT NULL);
    DELETE FROM jobqueue.key_buckets AS b
     WHERE NOT EXISTS (SELECT FROM jobqueue.key_starts AS s WHERE s.queue = b.queue AND s.key = b.key)
       AND NOT EXISTS (SELECT FROM jobqueue.queues AS q
                        WHERE q.name = b.queue AND jobqueue.refilled(b.tokens, b.refilled_at, q.key_rate, coalesce(q.key_burst, greatest(1, q.key_rate)))
                              < coalesce(q.key_burst, greatest(1, q.key_rate)));
    -- Do the partitions last, because their locks are held until the end of the transaction.
    FOR part IN
        SELECT p.parent, p.parent || to_char(d.day, '_YYYYMMDD') AS name, d.day AT TIME ZONE 'UTC' AS since,
               (d.day + interval '1 day') AT TIME ZONE 'UTC' AS until
          FROM unnest('{succeeded_jobs,cancelled_jobs}'::text[]) AS p (parent)
         CROSS JOIN (SELECT date_trunc('day', now() AT TIME ZONE 'UTC') + n * interval '1 day' AS day FROM generate_series(0, 2) AS n) AS d
    LOOP
        -- Partitions that an earlier version or a user created may begin at any time. The new partition fills the first
        -- gap between them.
        LOOP
            SELECT max(x.until) INTO covered FROM jobqueue.partitions(part.parent) AS x WHERE x.since <= part.since AND x.until > part.since;
            EXIT WHEN covered IS NULL;
            part.since := covered;
        END LOOP;
        part.until := least(part.until, (SELECT min(x.since) FROM jobqueue.partitions(part.parent) AS x WHERE x.since > part.since));
        CONTINUE WHEN part.since >= part.until;
        IF to_regclass('jobqueue.' || part.name) IS NOT NULL THEN
            part.name := part.name || to_char(part.since AT TIME ZONE 'UTC', '_HH24MISS');
        END IF;
        BEGIN
            EXECUTE format('CREATE TABLE jobqueue.%I PARTITION OF jobqueue.%I FOR VALUES FROM (%L) TO (%L)',
                           part.name, part.parent, part.since, part.until);
            EXECUTE format('ALTER TABLE jobqueue.%I REPLICA IDENTITY FULL', part.name);
        EXCEPTION
            WHEN check_violation THEN
                NULL;  -- jobs that finished before the partition of their day existed stay in the default partition until retention deletes them
            WHEN lock_not_available THEN
                RETURN;
            WHEN OTHERS THEN
                failed := failed || format('cannot create %s: %s', part.name, SQLERRM);
        END;
    END LOOP;
    FOR part IN
        SELECT p.name FROM (VALUES ('succeeded_jobs', keep_succeeded), ('cancelled_jobs', keep_cancelled)) AS k (parent, seconds)
         CROSS JOIN LATERAL jobqueue.partitions(k.parent) AS p WHERE p.until < now() - k.seconds * interval '1 second'
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE jobqueue.%I', part.name);
            dropped := dropped + 1;
        EXCEPTION
            WHEN lock_not_available THEN
                RETURN;
            WHEN OTHERS THEN
                failed := failed || format('cannot drop %s: %s', part.name, SQLERRM);
        END;
    END LOOP;
END $$;


--
-- Name: merged(integer[], integer[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.merged(one integer[], other integer[]) RETURNS integer[]
    LANGUAGE sql IMMUTABLE
    AS $$
    SELECT coalesce(array_agg(coalesce(b.one, 0) + coalesce(b.other, 0) ORDER BY b.place), '{}')
      FROM unnest(one, other) WITH ORDINALITY AS b (one, other, place)
$$;


--
-- Name: move(text, text, text, tid[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.move(verb text, mover text, source text, places tid[], OUT moved jsonb, OUT dead jsonb) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $_$
DECLARE
    half constant integer := cardinality(places) / 2;
    result jsonb;
    words text;
    one record;
    other record;
BEGIN
    moved := '[]';
    dead := '[]';
    IF places = '{}' THEN
        RETURN;
    END IF;
    BEGIN
        EXECUTE format('SELECT jobqueue.%I($1)', mover) INTO result USING places;
        moved := jsonb_build_array(result);
        RETURN;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR feature_not_supported THEN
        words := SQLERRM;
    END;
    IF half = 0 THEN
        dead := jobqueue.bury(source, places, verb, words);
        RETURN;
    END IF;
    one := jobqueue.move(verb, mover, source, places[:half]);
    other := jobqueue.move(verb, mover, source, places[half + 1:]);
    moved := one.moved || other.moved;
    dead := one.dead || other.dead;
END $_$;


--
-- Name: move_schedules(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.move_schedules(moves jsonb) RETURNS TABLE(moved text[], best jsonb, next_in double precision, submitted jsonb)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    jobs jsonb;
BEGIN
    moved := ARRAY(
        SELECT s.name FROM jobqueue.schedules AS s
          JOIN jsonb_to_recordset(moves) AS m (name text, cron text, timezone text, missed text, expected double precision)
            ON (m.name, m.cron, m.timezone, m.missed) = (s.name, s.cron, s.timezone, s.missed)
         WHERE NOT s.paused AND s.error IS NULL AND s.next_at IS NOT DISTINCT FROM to_timestamp(m.expected)
         ORDER BY s.name FOR UPDATE OF s SKIP LOCKED);
    UPDATE jobqueue.schedules AS s
       SET next_at = to_timestamp(m.next_at), error = m.error,
           last_at = coalesce(to_timestamp((m.ticks ->> -1)::double precision), s.last_at)
      FROM jsonb_to_recordset(moves) AS m (name text, next_at double precision, ticks jsonb, error text)
     WHERE s.name = m.name AND s.name = ANY (moved);
    jobs := (SELECT jsonb_agg(jobqueue.job_of(s, to_timestamp(t.tick::double precision)) ORDER BY t.tick::double precision, s.name)
               FROM jsonb_to_recordset(moves) AS m (name text, ticks jsonb)
               JOIN jobqueue.schedules AS s ON s.name = m.name AND s.name = ANY (moved)
              CROSS JOIN LATERAL jsonb_array_elements_text(m.ticks) AS t (tick));
    best := '{}';
    IF jobs IS NOT NULL THEN
        best := (SELECT b.best FROM jobqueue.submit_batch(jobs) AS b);
    END IF;
    submitted := (SELECT coalesce(jsonb_agg(jsonb_build_array(c.queue, c.kind, c.jobs)), '[]')
                    FROM (SELECT j ->> 'queue' AS queue, j ->> 'kind' AS kind, count(*) AS jobs FROM jsonb_array_elements(jobs) AS j
                           GROUP BY 1, 2) AS c);
    next_in := (SELECT extract(epoch FROM min(s.next_at) - clock_timestamp()) FROM jobqueue.schedules AS s
                 WHERE NOT s.paused AND s.error IS NULL
                   AND (s.name = ANY (moved) OR s.name NOT IN (SELECT m ->> 'name' FROM jsonb_array_elements(moves) AS m)));
    RETURN NEXT;
END $$;


--
-- Name: next_check(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.next_check() RETURNS double precision
    LANGUAGE sql
    AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM jobqueue.key_checks AS n WHERE n.timed IS NULL) THEN 0
                ELSE (SELECT extract(epoch FROM t.at - clock_timestamp()) FROM jobqueue.key_checks AS t
                       WHERE t.timed ORDER BY t.timed, t.at LIMIT 1) END
$$;


--
-- Name: next_expiry(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.next_expiry() RETURNS double precision
    LANGUAGE sql STABLE
    AS $$
    SELECT least((SELECT (p.options -> 'expires_at')::double precision FROM jobqueue.pending_jobs AS p WHERE p.options ? 'expires_at'
                   ORDER BY (p.options -> 'expires_at')::double precision LIMIT 1),
                 (SELECT (b.options -> 'expires_at')::double precision FROM jobqueue.blocked_jobs AS b WHERE b.options ? 'expires_at'
                   ORDER BY (b.options -> 'expires_at')::double precision LIMIT 1),
                 (SELECT (s.options -> 'expires_at')::double precision FROM jobqueue.scheduled_jobs AS s WHERE s.options ? 'expires_at'
                   ORDER BY (s.options -> 'expires_at')::double precision LIMIT 1))
$$;


--
-- Name: note(uuid, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.note(node uuid, notes jsonb) RETURNS uuid[]
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_hashjoin TO 'off'
    AS $$
#variable_conflict use_column
DECLARE
    written uuid[];
BEGIN
    WITH given AS MATERIALIZED (
        SELECT n.* FROM jsonb_to_recordset(notes) AS n (id uuid, claims integer, saved jsonb)
    ), free AS MATERIALIZED (
        SELECT i.id, given.saved AS noted
          FROM given JOIN jobqueue.inflight_jobs AS i ON i.id = given.id AND i.claims = given.claims AND i.node_id = node
           FOR UPDATE OF i SKIP LOCKED
    ), noted AS (
        UPDATE jobqueue.inflight_jobs AS i SET saved = coalesce(i.saved, '{}') || free.noted
          FROM free WHERE i.id = free.id
        RETURNING i.id
    )
    SELECT coalesce(array_agg(noted.id), '{}') INTO written FROM noted;
    RETURN written;
END $$;


--
-- Name: partitions(text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.partitions(parent text) RETURNS TABLE(name text, since timestamp with time zone, until timestamp with time zone)
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "DateStyle" TO 'ISO, YMD'
    AS $_$
    SELECT c.relname::text, CASE WHEN b.bounds[1] = 'MINVALUE' THEN '-infinity' ELSE trim('''' FROM b.bounds[1])::timestamptz END,
           CASE WHEN b.bounds[2] = 'MAXVALUE' THEN 'infinity' ELSE trim('''' FROM b.bounds[2])::timestamptz END
      FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
     CROSS JOIN LATERAL (SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') AS bounds) AS b
     WHERE i.inhparent = ('jobqueue.' || quote_ident(parent))::regclass AND b.bounds IS NOT NULL
$_$;


--
-- Name: pause(text, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.pause(queue text, paused boolean DEFAULT true) RETURNS void
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    SELECT jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('queue', pause.queue, 'paused', pause.paused)), 'a queue', '{queue,paused}');
    INSERT INTO jobqueue.queues (name, paused) VALUES (pause.queue, pause.paused)
        ON CONFLICT (name) DO UPDATE SET paused = excluded.paused;
    SELECT CASE WHEN pause.paused THEN pg_notify('jobqueue_paused', pause.queue) ELSE jobqueue.wake(pause.queue, '-infinity') END
$$;


--
-- Name: pause_schedule(text, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.pause_schedule(name text, paused boolean DEFAULT true) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    known boolean;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('paused', pause_schedule.paused)), 'a schedule', '{paused}');
    UPDATE jobqueue.schedules AS s
       SET paused = pause_schedule.paused,
           next_at = CASE WHEN NOT pause_schedule.paused THEN s.next_at END,
           error = CASE WHEN NOT pause_schedule.paused THEN s.error END
     WHERE s.name = pause_schedule.name;
    known := FOUND;
    PERFORM jobqueue.tell_of_schedules();
    RETURN known;
END $$;


--
-- Name: payload_fault(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.payload_fault(payload jsonb) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $_$
DECLARE
    most constant integer := 1048576;
    number jsonb;
    too_large boolean;
    document text;
    size integer;
BEGIN
    IF payload @? 'strict $.**{100} ? (@.type() == "array" || @.type() == "object")' THEN
        RETURN 'payload cannot be stored: it is nested more than 100 levels deep';
    END IF;
    IF payload @? 'strict $.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)' THEN
        FOR number IN SELECT jsonb_path_query(payload, 'strict $.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)') LOOP
            too_large := abs(number::numeric) > 1.7976931348623158e308;
            IF scale(number::numeric) = 0 AND (too_large OR length(rtrim(abs(number::numeric)::text, '0')) > 17) THEN
                RETURN format('payload cannot be accepted: the integer %s does not fit into 64 bits: send it as a string', left(number::text, 40));
            ELSIF too_large THEN
                RETURN format('payload cannot be read: the number %s is out of range', left(number::text, 40));
            END IF;
        END LOOP;
    END IF;
    document := payload::text;
    size := octet_length(document);
    IF size > most AND size <= 1.5 * most + 1 THEN
        -- Subtract the spaces that jsonb writes after commas and colons, outside of strings.
        document := regexp_replace(document, $string$"(?:[^"\\]|\\.)*"$string$, '', 'g');
        size := size - octet_length(document) + octet_length(replace(document, ' ', ''));
    END IF;
    IF size > most THEN
        RETURN format('the payload has %s bytes as JSON, and the limit is %s: store the data elsewhere and submit a reference to it', size, most);
    END IF;
    RETURN NULL;
END $_$;


--
-- Name: prepare(jsonb, boolean, double precision, timestamp with time zone); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.prepare(jobs jsonb, again boolean, key_ttl double precision, present timestamp with time zone) RETURNS jsonb
    LANGUAGE plpgsql
    AS $_$
DECLARE
    turns jsonb;
BEGIN
    IF jobs @? '$[*].options ? (exists(@.idempotency_key) || exists(@.unique_key) || @.unique == true)' THEN
        jobs := jobqueue.settle_keys(jobs, again, key_ttl);
    END IF;
    PERFORM jobqueue.refuse_expired(jobs, present, again);
    jobs := (
        SELECT jsonb_agg(CASE WHEN j.job -> 'options' ? 'expires_in'
                              THEN jsonb_set(j.job #- '{options,expires_in}', '{options,expires_at}', to_jsonb(
                                   extract(epoch FROM present)::double precision + (j.job #>> '{options,expires_in}')::double precision))
                              ELSE j.job END
                         ORDER BY j.place)
          FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place));
    -- A job that is not due yet gets its turn when it is due, see jobqueue.promote.
    SELECT jobqueue.take_turns(jsonb_agg(jsonb_build_object('key', j.place, 'queue', coalesce(j.job ->> 'queue', 'default'),
               'group', coalesce(j.job #>> '{options,group}', ''), 'weight', j.job #> '{options,weight}',
               'priority', coalesce((j.job ->> 'priority')::numeric, 0)::integer) ORDER BY j.place))
      INTO turns
      FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place)
     WHERE (j.job -> 'options' ? 'group' OR jobqueue.lags(coalesce(j.job ->> 'queue', 'default'), present)) AND NOT j.job ? 'existing'
       AND coalesce((j.job ->> 'run_at')::timestamptz <= present, (j.job ->> 'delay')::numeric <= 0, true)
    HAVING count(*) > 0;
    IF turns IS NOT NULL THEN
        jobs := (
            SELECT jsonb_agg(CASE WHEN turns ? j.place::text
                                  THEN jsonb_set(j.job, '{options}', coalesce(nullif(j.job -> 'options', 'null'), '{}') || (turns -> j.place::text))
                                  ELSE j.job END
                             ORDER BY j.place)
              FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place));
    END IF;
    RETURN jobs;
END $_$;


--
-- Name: promote(integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.promote(max_jobs integer DEFAULT 1000) RETURNS TABLE(promoted integer, best jsonb, next_due double precision, expired jsonb, next_check double precision)
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    AS $$
#variable_conflict use_column
DECLARE
    places tid[];
    results record;
BEGIN
    expired := '[]';
    IF jobqueue.next_expiry() <= date_part('epoch', now()) THEN
        expired := jobqueue.expire(max_jobs);
    END IF;
    places := ARRAY(SELECT d.ctid FROM jobqueue.scheduled_jobs AS d
                     WHERE d.run_at <= now() ORDER BY d.run_at LIMIT max_jobs FOR UPDATE SKIP LOCKED);
    promoted := cardinality(places);
    best := '{}';
    IF promoted > 0 THEN
        results := jobqueue.move('promotion', 'promote_these', 'scheduled_jobs', places);
        best := jobqueue.best_of(results.moved);
        expired := expired || results.dead;
        PERFORM jobqueue.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    END IF;
    next_due := least((SELECT date_part('epoch', s.run_at) FROM jobqueue.scheduled_jobs AS s ORDER BY s.run_at LIMIT 1),
                      jobqueue.next_expiry()) - date_part('epoch', clock_timestamp());
    next_check := jobqueue.next_check();
    RETURN NEXT;
END $$;


--
-- Name: promote_these(tid[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.promote_these(places tid[]) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    best jsonb;
BEGIN
    WITH due AS (
        DELETE FROM jobqueue.scheduled_jobs AS s WHERE s.ctid = ANY (places) RETURNING s.*
    ), turns AS MATERIALIZED (
        SELECT jobqueue.take_turns(jsonb_agg(jsonb_build_object('key', t.id, 'queue', t.queue, 'group', coalesce(t.options ->> 'group', ''),
                   'weight', t.options -> 'weight', 'priority', t.priority) ORDER BY t.run_at)) AS given
          FROM due AS t
         WHERE CASE WHEN t.options ? 'turn' THEN false WHEN t.options ? 'group' THEN true ELSE jobqueue.lags(t.queue, t.available_since) END
        HAVING count(*) > 0
    ), moved AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors,
                options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, jobqueue.rank_of(d.available_since, d.priority, q.aging_interval, o.options), d.payload,
               d.max_retries, d.timeout, d.attempt, d.claims, d.created_at, d.available_since, d.errors, o.options, d.saved
          FROM due AS d LEFT JOIN jobqueue.queues AS q ON q.name = d.queue LEFT JOIN turns AS t ON true
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


--
-- Name: prune(double precision, double precision, double precision, integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.prune(keep_succeeded double precision, keep_cancelled double precision, keep_dead double precision, max_jobs integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "DateStyle" TO 'ISO, YMD'
    AS $_$
DECLARE
    part record;
    deleted integer;
    total integer := 0;
    state text;
    words text;
BEGIN
    FOR part IN
        WITH kept AS (
            SELECT k.parent, now() - k.seconds * interval '1 second' AS since
              FROM (VALUES ('succeeded_jobs', keep_succeeded), ('cancelled_jobs', keep_cancelled)) AS k (parent, seconds)
        )
        SELECT 'dead_jobs' AS name, 'died_at < ' || quote_literal(now() - keep_dead * interval '1 second') AS meant, 'ORDER BY died_at, id' AS first
        UNION ALL
        SELECT k.parent || '_default', 'finished_at < ' || quote_literal(k.since), '' FROM kept AS k
        UNION ALL
        -- Delete through the parent, because the role may lack privileges on the partition. The bounds limit the
        -- statement to that partition.
        SELECT k.parent, format('finished_at >= %L AND finished_at < %L', p.since, p.until), ''
          FROM kept AS k CROSS JOIN LATERAL jobqueue.partitions(k.parent) AS p WHERE p.until < k.since
    LOOP
        BEGIN
            EXECUTE format('DELETE FROM jobqueue.%1$I WHERE %2$s AND ctid = ANY (ARRAY('
                           'SELECT ctid FROM jobqueue.%1$I WHERE %2$s %3$s LIMIT $1 FOR UPDATE SKIP LOCKED))', part.name, part.meant, part.first)
              USING max_jobs;
            GET DIAGNOSTICS deleted = ROW_COUNT;
            total := total + deleted;
        EXCEPTION WHEN OTHERS THEN
            state := SQLSTATE;
            words := format('cannot delete old jobs from %s: %s', part.name, SQLERRM);
        END;
    END LOOP;
    IF total = 0 AND words IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = state, MESSAGE = words;
    END IF;
    RETURN total;
END $_$;


--
-- Name: prune_keys(integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.prune_keys(max_keys integer DEFAULT 1000) RETURNS integer
    LANGUAGE sql
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    AS $$
    WITH old AS MATERIALIZED (
        SELECT k.scope, k.key, k.scope = 'unique' AND jobqueue.unfinished(k.job_id) AS held FROM jobqueue.keys AS k
         WHERE k.expires_at <= now() ORDER BY k.expires_at LIMIT max_keys FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM jobqueue.keys AS k USING old WHERE NOT old.held AND k.scope = old.scope AND k.key = old.key
    ), kept AS (
        UPDATE jobqueue.keys AS k SET expires_at = now() + interval '1 day' FROM old
         WHERE old.held AND k.scope = old.scope AND k.key = old.key
    )
    SELECT count(*)::integer FROM old
$$;


--
-- Name: rank_of(timestamp with time zone, integer, interval, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.rank_of(available_since timestamp with time zone, priority integer, aging_interval interval, options jsonb) RETURNS timestamp with time zone
    LANGUAGE sql STABLE
    AS $$
    SELECT coalesce(to_timestamp((options -> 'rank')::double precision),
                    available_since - priority * coalesce(aging_interval, '1 second'::interval))
$$;


--
-- Name: reconcile_schedules(text, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.reconcile_schedules(source text, schedules jsonb) RETURNS TABLE(name text, owner text)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
BEGIN
    -- Nodes that start together do this one after the other.
    PERFORM pg_advisory_xact_lock(7669743430829532519);
    RETURN QUERY
    SELECT s.name, s.source FROM jobqueue.schedules AS s
     WHERE s.source IS DISTINCT FROM reconcile_schedules.source
       AND s.name IN (SELECT d ->> 'name' FROM jsonb_array_elements(reconcile_schedules.schedules) AS d)
     ORDER BY s.name;
    IF FOUND THEN
        RETURN;
    END IF;
    DELETE FROM jobqueue.schedules AS s
     WHERE s.source = reconcile_schedules.source
       AND s.name NOT IN (SELECT d ->> 'name' FROM jsonb_array_elements(reconcile_schedules.schedules) AS d);
    INSERT INTO jobqueue.schedules AS s (name, source, cron, timezone, missed, kind, payload, queue, priority, max_retries, timeout)
    SELECT d.name, reconcile_schedules.source, d.cron, d.timezone, d.missed, d.kind, d.payload, d.queue, d.priority, d.max_retries,
           d.timeout
      FROM jsonb_to_recordset(reconcile_schedules.schedules) AS d (name text, cron text, timezone text, missed text, kind text,
               payload jsonb, queue text, priority integer, max_retries integer, timeout double precision)
     -- Skip schedules that are correct already: an open transaction may lock a row for an hour, and this node must be
     -- able to start.
     WHERE NOT EXISTS (SELECT FROM jobqueue.schedules AS s
                        WHERE (s.name, s.cron, s.timezone, s.missed, s.kind, s.payload, s.queue, s.priority, s.max_retries, s.timeout)
                              IS NOT DISTINCT FROM
                              (d.name, d.cron, d.timezone, d.missed, d.kind, d.payload, d.queue, d.priority, d.max_retries, d.timeout))
     ORDER BY d.name
        ON CONFLICT (name) DO UPDATE
       SET cron = excluded.cron, timezone = excluded.timezone, missed = excluded.missed, kind = excluded.kind,
           payload = excluded.payload, queue = excluded.queue, priority = excluded.priority, max_retries = excluded.max_retries,
           timeout = excluded.timeout, error = NULL, updated_at = now(),
           next_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.next_at END
     WHERE s.source = excluded.source;   -- if a user's SQL has just created this name, that row stays, and the next start reports it
    PERFORM jobqueue.tell_of_schedules();
END $$;


--
-- Name: record(bigint, bigint, bigint, bigint, integer[], integer[], boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.record(submitted bigint, completed bigint, failed bigint, dead bigint, waits integer[], runs integer[], sample boolean DEFAULT false) RETURNS TABLE(next_in double precision, next_sample boolean)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    slot constant timestamptz := jobqueue.slot(10, clock_timestamp() - interval '10 seconds');
    began constant timestamptz := clock_timestamp();
    depth jsonb;
    counted_in double precision;
BEGIN
    IF sample THEN
        depth := jobqueue.depth();
        counted_in := extract(epoch FROM clock_timestamp() - began);
    END IF;
    WITH written AS (
        -- The order of the rows is always the same, so that calls cannot deadlock.
        INSERT INTO jobqueue.history AS h (step, at, submitted, completed, failed, dead, waits, runs, depth, counted_in)
        SELECT s.step, jobqueue.slot(s.step, slot), record.submitted, record.completed, record.failed, record.dead, record.waits, record.runs,
               depth, counted_in
          FROM unnest('{10,60,300}'::integer[]) AS s (step)
            ON CONFLICT (step, at) DO UPDATE
           SET submitted = h.submitted + excluded.submitted, completed = h.completed + excluded.completed,
               failed = h.failed + excluded.failed, dead = h.dead + excluded.dead, waits = jobqueue.merged(h.waits, excluded.waits),
               runs = jobqueue.merged(h.runs, excluded.runs), depth = coalesce(excluded.depth, h.depth),
               counted_in = coalesce(excluded.counted_in, h.counted_in)
        RETURNING h.step, h.xmax = 0 AS made
    )
    SELECT written.made INTO next_sample FROM written WHERE written.step = 10;
    IF next_sample THEN
        WITH gone AS (
            DELETE FROM jobqueue.sql_submissions RETURNING jobs
        ), noted AS (
            SELECT sum(gone.jobs) AS jobs FROM gone
        )
        UPDATE jobqueue.history AS h SET submitted = h.submitted + noted.jobs
          FROM noted, unnest('{10,60,300}'::integer[]) AS s (step)
         WHERE noted.jobs > 0 AND h.step = s.step AND h.at = jobqueue.slot(s.step, slot);
        DELETE FROM jobqueue.history AS h
         WHERE h.at < slot - CASE h.step WHEN 10 THEN interval '1 hour' WHEN 60 THEN interval '6 hours' ELSE interval '1 day' END;
        next_sample := NOT EXISTS (
            SELECT FROM jobqueue.history AS h
             WHERE h.step = 10 AND h.at + interval '10 seconds' + h.counted_in * interval '100 seconds' > slot + interval '20 seconds'
               AND h.at <= slot);   -- ignore slots from before the clock was set back
    END IF;
    next_in := extract(epoch FROM slot + interval '20 seconds' - clock_timestamp());
    RETURN NEXT;
END $$;


--
-- Name: recover(integer, uuid); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.recover(max_jobs integer DEFAULT 1000, judge uuid DEFAULT NULL::uuid) RETURNS TABLE(id uuid, queue text, kind text, attempt integer, node_id uuid, outcome text, reason text)
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    places tid[];
    results record;
BEGIN
    IF EXISTS (SELECT FROM jobqueue.nodes AS n WHERE n.heartbeat_at > clock_timestamp()) THEN
        PERFORM jobqueue.clock_was_set_back();
    END IF;
    DELETE FROM jobqueue.nodes AS n
     WHERE n.lease_until <= now() AND EXISTS (SELECT FROM jobqueue.nodes AS j WHERE j.id = judge AND j.lease_until > now());
    places := ARRAY(
        SELECT l.ctid FROM jobqueue.inflight_jobs AS l
         WHERE NOT EXISTS (SELECT FROM jobqueue.nodes AS n WHERE n.id = l.node_id)
         ORDER BY l.id LIMIT max_jobs FOR UPDATE OF l SKIP LOCKED);
    results := jobqueue.move('recovery', 'recover_these', 'inflight_jobs', places);
    RETURN QUERY
    SELECT j.id, j.queue, j.kind, j.attempt, j.node_id, coalesce(j.outcome, 'dead'), j.reason
      FROM (SELECT jsonb_array_elements(results.moved) AS jobs UNION ALL SELECT results.dead) AS r
     CROSS JOIN jsonb_to_recordset(r.jobs)
                AS j (id uuid, queue text, kind text, attempt integer, node_id uuid, outcome text, reason text);
END $$;


--
-- Name: recover_these(tid[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.recover_these(places tid[]) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    recovered jsonb;
BEGIN
    WITH lost AS (
        DELETE FROM jobqueue.inflight_jobs AS i WHERE i.ctid = ANY (places) RETURNING i.*
    ), judged AS (
        SELECT lost.*, lost.attempt > lost.max_retries AS spent,
               lost.attempt <= lost.max_retries AND (lost.cancel_requested_at IS NOT NULL
                   OR lost.id IN (SELECT q.job_id FROM jobqueue.cancel_requests AS q)) AS unwanted,
               jobqueue.with_error(lost.errors, jsonb_build_object('attempt', lost.attempt, 'at', now(), 'node', lost.node_id,
                   'duration', greatest(0, round(extract(epoch FROM now() - lost.claimed_at), 6)),
                   'error', coalesce(lost.blame ->> 'error',
                                     'lease lost: the node that ran this attempt stopped renewing its lease'))) AS all_errors,
               coalesce('attempt ' || lost.attempt || ' of ' || lost.max_retries + 1 || ' failed: ' || (lost.blame ->> 'error'),
                        'lease lost ' || lost.attempt || ' times: the job may be killing its process') AS reason
          FROM lost
    ), dead AS (
        INSERT INTO jobqueue.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at,
                                        available_since, died_at, node_id, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, j.reason, j.payload, j.max_retries, j.timeout, j.attempt, j.claims, j.created_at,
               j.available_since, now(), j.node_id, j.all_errors, j.options, j.saved
          FROM judged AS j WHERE j.spent
            ON CONFLICT (id) DO NOTHING
    ), cancelled AS (
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, 'cancelled', j.payload, j.max_retries, j.timeout, j.attempt, j.claims, j.created_at,
               j.available_since, j.claimed_at, now(), j.node_id, j.all_errors, j.options, j.saved
          FROM judged AS j WHERE j.unwanted
    ), scheduled AS (
        INSERT INTO jobqueue.scheduled_jobs (id, queue, kind, priority, run_at, payload, max_retries, timeout, attempt, claims, created_at,
                                             available_since, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, now() + (j.blame -> 'delay')::double precision * interval '1 second', j.payload,
               j.max_retries, j.timeout, j.attempt, j.claims, j.created_at, j.available_since, j.all_errors, j.options, j.saved
          FROM judged AS j WHERE j.blame IS NOT NULL AND NOT j.spent AND NOT j.unwanted
            ON CONFLICT (id) DO NOTHING
    ), back AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, jobqueue.rank_of(j.available_since, j.priority, q.aging_interval, j.options), j.payload,
               j.max_retries, j.timeout, j.attempt, j.claims, j.created_at, j.available_since, j.all_errors, j.options, j.saved
          FROM judged AS j LEFT JOIN jobqueue.queues AS q ON q.name = j.queue
         WHERE NOT j.spent AND NOT j.unwanted AND j.blame IS NULL
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM back GROUP BY queue) AS queues
    ), freed AS MATERIALIZED (
        SELECT count(jobqueue.freed(queue)) FROM (SELECT DISTINCT queue FROM judged WHERE limited) AS queues
    ), checks AS (
        INSERT INTO jobqueue.key_checks (queue, key)
        SELECT j.queue, j.options ->> 'concurrency_key' FROM judged AS j
         WHERE (j.spent OR j.unwanted OR j.blame IS NOT NULL) AND j.options ->> 'concurrency_key' IS NOT NULL
    )
    SELECT coalesce(jsonb_agg(jsonb_build_object('id', j.id, 'queue', j.queue, 'kind', j.kind, 'attempt', j.attempt, 'node_id', j.node_id,
               'outcome', CASE WHEN j.spent THEN 'dead' WHEN j.unwanted THEN 'cancelled'
                                WHEN j.blame IS NOT NULL THEN 'scheduled' ELSE 'pending' END,
               'reason', CASE WHEN j.spent THEN j.reason END)), '[]')
      INTO recovered FROM judged AS j CROSS JOIN told CROSS JOIN freed;
    RETURN recovered;
END $$;


--
-- Name: redrive(uuid[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.redrive(jobs uuid[]) RETURNS integer
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    AS $$
#variable_conflict use_column
DECLARE
    keyed record;
    holds boolean;
    places tid[];
    risen integer;
BEGIN
    FOR keyed IN
        SELECT d.id, k.key, row_number() OVER (PARTITION BY k.key ORDER BY d.died_at, d.id) AS turn
          FROM jobqueue.dead_jobs AS d
         CROSS JOIN LATERAL (SELECT jobqueue.unique_key_of(d.queue, d.kind, d.payload, d.options) AS key OFFSET 0) AS k
         WHERE d.id = ANY (jobs) AND d.options IS NOT NULL AND k.key IS NOT NULL
         ORDER BY k.key, turn
    LOOP
        BEGIN
            holds := keyed.turn = 1 AND jobqueue.hold_unique_key(keyed.key, keyed.id) = keyed.id;
        EXCEPTION
            WHEN lock_not_available THEN
                holds := false;
            WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR feature_not_supported THEN
                PERFORM jobqueue.bury('dead_jobs', ARRAY(SELECT d.ctid FROM jobqueue.dead_jobs AS d WHERE d.id = keyed.id FOR UPDATE),
                                      'retry', SQLERRM);
                holds := false;
        END;
        IF NOT holds THEN
            jobs := array_remove(jobs, keyed.id);
        END IF;
    END LOOP;
    places := ARRAY(SELECT d.ctid FROM jobqueue.dead_jobs AS d WHERE d.id = ANY (jobs) ORDER BY d.died_at, d.id FOR UPDATE);
    SELECT sum(r.jobs::integer) INTO risen
      FROM jsonb_array_elements_text((jobqueue.move('retry', 'redrive_these', 'dead_jobs', places)).moved) AS r (jobs);
    RETURN coalesce(risen, 0);
END $$;


--
-- Name: redrive_these(tid[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.redrive_these(places tid[]) RETURNS jsonb
    LANGUAGE plpgsql
    AS $$
#variable_conflict use_column
DECLARE
    present constant timestamptz := clock_timestamp();
    risen integer;
BEGIN
    WITH risen AS (
        DELETE FROM jobqueue.dead_jobs WHERE ctid = ANY (places)
        RETURNING *, nullif(options - '{expires_at,rank,turn}'::text[], '{}') AS lasting
    ), pending AS (
        INSERT INTO jobqueue.pending_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims,
                                           created_at, available_since, errors, options, saved)
        SELECT r.id, r.queue, r.kind, r.priority, jobqueue.rank_of(present, r.priority, q.aging_interval, o.options), r.payload,
               r.max_retries, r.timeout, 0, r.claims, r.created_at, present, r.errors, o.options, r.saved
          FROM risen AS r
         CROSS JOIN LATERAL (SELECT jobqueue.with_new_turn(r.lasting, r.queue, r.priority) AS options OFFSET 0) AS o
          LEFT JOIN jobqueue.queues AS q ON q.name = r.queue
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue.wake(queue, rank)), (SELECT count(jobqueue.wake_keys()) FROM risen WHERE options ? 'concurrency_key')
          FROM (SELECT queue, min(rank) AS rank FROM pending GROUP BY queue) AS queues
    )
    SELECT count(*) INTO risen FROM risen CROSS JOIN told;
    RETURN to_jsonb(risen);
END $$;


--
-- Name: refilled(double precision, timestamp with time zone, double precision, double precision); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.refilled(tokens double precision, refilled_at timestamp with time zone, rate double precision, burst double precision) RETURNS double precision
    LANGUAGE sql
    AS $$
    SELECT least(burst, coalesce(tokens + rate * greatest(0, extract(epoch FROM clock_timestamp() - refilled_at)::double precision), burst))
$$;


--
-- Name: refuse_expired(jsonb, timestamp with time zone, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.refuse_expired(jobs jsonb, present timestamp with time zone, again boolean) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    late record;
BEGIN
    SELECT j.place, o.name INTO late
      FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place)
     CROSS JOIN LATERAL (VALUES ('expires_in', (j.job #>> '{options,expires_in}')::double precision),
                                ('expires_at', (j.job #>> '{options,expires_at}')::double precision - date_part('epoch', present)))
                     AS o (name, seconds)
     WHERE o.seconds <= 0 AND NOT j.job ? 'existing' AND NOT (again AND j.job ? 'id') ORDER BY j.place LIMIT 1;
    IF FOUND THEN
        RAISE check_violation USING COLUMN = late.name, MESSAGE = format('%s of job %s is not in the future', late.name, late.place);
    END IF;
END $$;


--
-- Name: refuse_unfit(jsonb, text, text[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.refuse_unfit(objects jsonb, what text, known text[]) RETURNS void
    LANGUAGE plpgsql STABLE
    AS $_$
DECLARE
    wrong record;
    words text;
BEGIN
    SELECT o.place, f.key AS field, f.value, r.rule INTO wrong
      FROM jsonb_array_elements(objects) WITH ORDINALITY AS o (fields, place)
     CROSS JOIN LATERAL jsonb_each(CASE jsonb_typeof(o.fields) WHEN 'object' THEN o.fields ELSE jsonb_build_object('', o.fields) END) AS f
     CROSS JOIN LATERAL (SELECT jobqueue.rules() -> f.key AS rule OFFSET 0) AS r
     WHERE NOT coalesce(jobqueue.fits(f.value, r.rule), false) AND NOT (f.value = 'null' AND coalesce(r.rule ? 'null', false))
        OR f.key <> ALL (known)
        OR r.rule ? 'excludes' AND f.value <> 'null' AND o.fields -> (r.rule ->> 'excludes') <> 'null'
     ORDER BY o.place LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    words := CASE
        WHEN jsonb_typeof(objects -> wrong.place::integer - 1) <> 'object' THEN what || ' must be a JSON object'
        WHEN wrong.field <> ALL (known) THEN
            format('unknown field ''%2$s'' in %1$s: the known fields are %3$s', what, left(wrong.field, 64), array_to_string(known, ', '))
        WHEN wrong.rule ->> 'is' = 'payload' THEN jobqueue.payload_fault(wrong.value)
        WHEN jobqueue.fits(wrong.value, wrong.rule) THEN
            format('%s and %s exclude each other: give only one of them', wrong.rule ->> 'excludes', wrong.field)
        ELSE format('%s must be %s', wrong.field, wrong.rule ->> 'words') END;
    IF jsonb_array_length(objects) > 1 THEN
        RAISE check_violation USING MESSAGE = words, COLUMN = left(wrong.field, 64), DETAIL = 'index ' || wrong.place - 1 || ' of the batch';
    END IF;
    RAISE check_violation USING MESSAGE = words, COLUMN = left(wrong.field, 64);
END $_$;


--
-- Name: retry(uuid); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.retry(job uuid) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
DECLARE
    unique_key text := (SELECT jobqueue.unique_key_of(d.queue, d.kind, d.payload, d.options) FROM jobqueue.dead_jobs AS d WHERE d.id = job);
    holder uuid;
BEGIN
    IF unique_key IS NOT NULL THEN
        holder := jobqueue.hold_unique_key(unique_key, job);
        IF holder <> job THEN
            RAISE EXCEPTION 'job % has the same unique key and is not finished: try again when it has ended', holder
                USING ERRCODE = 'JQ409', COLUMN = 'unique_key';
        END IF;
    END IF;
    RETURN jobqueue.redrive_these(ARRAY(SELECT d.ctid FROM jobqueue.dead_jobs AS d WHERE d.id = job FOR UPDATE)) > '0';
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'an open transaction holds the job or its unique key: try again later'
        USING ERRCODE = 'JQ409', COLUMN = 'unique_key';
END $$;


--
-- Name: retry_dead(jsonb, integer, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.retry_dead(filter jsonb, max_jobs integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS integer
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
DECLARE
    -- Exclude jobs whose unique key another job has, because every call would find them again.
    free constant text := '(d.options IS NULL OR NOT EXISTS (
        SELECT FROM jobqueue.keys AS k WHERE k.scope = ''unique'' AND k.job_id <> d.id AND jobqueue.unfinished(k.job_id)
           AND k.key = jobqueue.unique_key_of(d.queue, d.kind, d.payload, d.options)))';
    jobs integer;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', retry_dead.max_jobs, 'dry_run', retry_dead.dry_run)), 'a call', '{max_jobs,dry_run}');
    IF NOT dry_run THEN
        RETURN jobqueue.redrive(jobqueue.dead_matching(filter, max_jobs, free));
    END IF;
    -- Several jobs with the same unique key count as one.
    EXECUTE format(
        'SELECT count(DISTINCT k.key) + count(*) FILTER (WHERE k.key IS NULL)'
        ' FROM (SELECT d.* FROM jobqueue.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at, d.id LIMIT %L) AS d'
        ' CROSS JOIN LATERAL (SELECT CASE WHEN d.options IS NOT NULL'
        ' THEN jobqueue.unique_key_of(d.queue, d.kind, d.payload, d.options) END AS key) AS k',
        jobqueue.dead_condition(filter), free, max_jobs) INTO jobs;
    RETURN jobs;
END $$;


--
-- Name: rules(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.rules() RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $_$ SELECT $rules${
    "id":              {"is": "uuid", "null": true, "words": "a UUID"},
    "kind":            {"is": "string", "to": 200, "words": "a string of 1 to 200 characters"},
    "payload":         {"is": "payload", "null": true},
    "queue":           {"is": "string", "to": 200, "but": [".", ".."], "words": "a string of 1 to 200 characters, but not \".\" or \"..\""},
    "priority":        {"is": "integer", "from": 0, "to": 1000000, "words": "an integer from 0 to 1000000"},
    "max_retries":     {"is": "integer", "from": 0, "to": 1000, "null": true, "words": "an integer from 0 to 1000"},
    "run_at":          {"is": "instant", "null": true, "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "delay":           {"is": "number", "from": 0, "to": 315360000, "null": true, "excludes": "run_at",
                        "words": "a number of seconds from 0 to 315360000"},
    "timeout":         {"is": "number", "from": 5e-324, "to": 604800, "null": true,
                        "words": "a number of seconds above 0 and up to 604800"},
    "expires_at":      {"is": "instant", "null": true, "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "expires_in":      {"is": "number", "from": 0, "to": 315360000, "null": true, "excludes": "expires_at",
                        "words": "a number of seconds from 0 to 315360000"},
    "group":           {"is": "string", "to": 200, "null": true, "words": "a string of 1 to 200 characters"},
    "weight":          {"is": "number", "from": 0.001, "to": 1000, "null": true, "words": "a number from 0.001 to 1000"},
    "concurrency_key": {"is": "string", "to": 200, "null": true, "words": "a string of 1 to 200 characters"},
    "unique":          {"is": "boolean", "null": true, "words": "true or false"},
    "unique_key":      {"is": "string", "to": 200, "null": true, "words": "a string of 1 to 200 characters"},
    "idempotency_key": {"is": "string", "to": 200, "null": true, "words": "a string of 1 to 200 characters"},
    "traceparent":     {"is": "text", "null": true, "words": "a string in the format of W3C Trace Context; a malformed one is ignored"},
    "tracestate":      {"is": "text", "null": true, "words": "a string in the format of W3C Trace Context; a malformed one is ignored"},

    "name":            {"is": "string", "to": 200, "but": [".", ".."], "words": "a string of 1 to 200 characters, but not \".\" or \"..\""},
    "cron":            {"is": "string", "to": 200,
                        "words": "a string of 1 to 200 characters, such as \"*/5 * * * *\" for every five minutes"},
    "timezone":        {"is": "string", "to": 200, "words": "a string of 1 to 200 characters: the IANA name of a time zone"},
    "missed":          {"is": "one", "of": ["one", "skip", "all"], "words": "one of \"one\", \"skip\" and \"all\""},
    "paused":          {"is": "boolean", "words": "true or false"},

    "aging_interval":  {"is": "number", "from": 0, "to": 86400, "words": "a number of seconds from 0 to 86400, or null for the default, 1"},
    "max_running":     {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null to clear it"},
    "rate":            {"is": "number", "from": 0.00001, "to": 1000000, "words": "a number from 0.00001 to 1000000, or null to clear it"},
    "burst":           {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null to clear it"},
    "key_max_running": {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null for the default, 1"},
    "key_rate":        {"is": "number", "from": 0.00001, "to": 1000000, "words": "a number from 0.00001 to 1000000, or null to clear it"},
    "key_burst":       {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null to clear it"},

    "text":            {"is": "string", "to": 200,
                        "words": "a string of 1 to 200 characters: the start of an id, or a part of the error or the reason"},
    "cause":           {"is": "string", "to": 200, "words": "a string of 1 to 200 characters: a cause that GET /dead/causes returns"},
    "reason":          {"is": "string", "to": 200, "words": "a string of 1 to 200 characters: a part of the reason"},
    "created_after":   {"is": "instant", "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "created_before":  {"is": "instant", "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "died_before":     {"is": "instant", "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "died_after":      {"is": "instant", "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "state":           {"is": "some", "of": ["pending", "blocked", "scheduled", "inflight", "succeeded", "cancelled", "dead"],
                        "words": "one of pending, blocked, scheduled, inflight, succeeded, cancelled, dead, or an array of them"},
    "all":             {"is": "one", "of": [true], "words": "true"},

    "max_jobs":        {"is": "integer", "from": 1, "to": 2147483647, "null": true, "words": "an integer of 1 or more"},
    "max_rows":        {"is": "integer", "from": 1, "to": 2147483647, "words": "an integer of 1 or more"},
    "max_causes":      {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000"},
    "dry_run":         {"is": "boolean", "words": "true or false"},
    "keep":            {"is": "boolean", "words": "true or false"}
}$rules$::jsonb $_$;


--
-- Name: schedule(text, text, text, text, text, jsonb, text, integer, integer, double precision); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.schedule(name text, cron text, timezone text DEFAULT 'UTC'::text, missed text DEFAULT 'one'::text, kind text DEFAULT NULL::text, payload jsonb DEFAULT '{}'::jsonb, queue text DEFAULT 'default'::text, priority integer DEFAULT 0, max_retries integer DEFAULT NULL::integer, timeout double precision DEFAULT NULL::double precision) RETURNS boolean
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
    made boolean;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object(
        'name', schedule.name, 'cron', schedule.cron, 'timezone', schedule.timezone, 'missed', schedule.missed, 'payload', schedule.payload,
        'queue', schedule.queue, 'priority', schedule.priority, 'max_retries', schedule.max_retries, 'timeout', schedule.timeout)
        || CASE WHEN schedule.kind IS NULL THEN '{}' ELSE jsonb_build_object('kind', schedule.kind) END),
        'a schedule', '{name,cron,timezone,missed,kind,payload,queue,priority,max_retries,timeout}');
    INSERT INTO jobqueue.schedules AS s (name, cron, timezone, missed, kind, payload, queue, priority, max_retries, timeout)
    VALUES (schedule.name, schedule.cron, schedule.timezone, schedule.missed, coalesce(schedule.kind, schedule.name),
            coalesce(nullif(schedule.payload, 'null'), '{}'),
            schedule.queue, schedule.priority, schedule.max_retries, schedule.timeout)
        ON CONFLICT (name) DO UPDATE
       SET cron = excluded.cron, timezone = excluded.timezone, missed = excluded.missed, kind = excluded.kind,
           payload = excluded.payload, queue = excluded.queue, priority = excluded.priority, max_retries = excluded.max_retries,
           timeout = excluded.timeout, error = NULL, updated_at = now(),
           next_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.next_at END
    RETURNING s.xmax = 0 INTO made;   -- true for an inserted row
    PERFORM jobqueue.tell_of_schedules();
    RETURN made;
END $$;


--
-- Name: seconds_left(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.seconds_left(options jsonb) RETURNS double precision
    LANGUAGE sql STABLE
    AS $$
    SELECT (options -> 'expires_at')::double precision - date_part('epoch', now())
$$;


--
-- Name: serve_lines(text, numeric, numeric, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.serve_lines(queue text, common numeric, urgent numeric, emptied boolean) RETURNS void
    LANGUAGE sql
    AS $$
    UPDATE jobqueue.queues AS q SET fair = true
     WHERE q.name = (SELECT o.name FROM jobqueue.queues AS o WHERE o.name = serve_lines.queue AND NOT o.fair FOR UPDATE SKIP LOCKED);
    UPDATE jobqueue.fair_queues AS f
       SET common = CASE WHEN NOT emptied THEN greatest(f.common, serve_lines.common) END,
           urgent = CASE WHEN NOT emptied THEN greatest(f.urgent, serve_lines.urgent) END,
           epoch = f.epoch + emptied::integer
     WHERE f.queue = (SELECT o.queue FROM jobqueue.fair_queues AS o
                       WHERE o.queue = serve_lines.queue
                         AND CASE WHEN emptied THEN num_nonnulls(o.common, o.urgent, serve_lines.common, serve_lines.urgent) > 0
                                  ELSE coalesce(serve_lines.common > o.common, serve_lines.common IS NOT NULL)
                                    OR coalesce(serve_lines.urgent > o.urgent, serve_lines.urgent IS NOT NULL) END
                         FOR UPDATE SKIP LOCKED)
$$;


--
-- Name: settle_keys(jsonb, boolean, double precision); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.settle_keys(jobs jsonb, again boolean, ttl double precision) RETURNS jsonb
    LANGUAGE plpgsql
    SET lock_timeout TO '100ms'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    AS $$
#variable_conflict use_column
DECLARE
    ids uuid[];
    existing uuid[];
    twins integer[] := array_fill(NULL::integer, ARRAY[jsonb_array_length(jobs)]);   -- for each job, the first job of the batch with the same key
    field text := 'idempotency_key';
    present constant timestamptz := clock_timestamp();
    want record;
    last record;
    met jobqueue.keys;
BEGIN
    -- In a repeated submission, a job counts as existing if its row exists, or if its key points to its id. The key
    -- counts even after the job has been deleted.
    SELECT array_agg(g.id ORDER BY g.place),
           array_agg(CASE WHEN again AND (EXISTS (SELECT FROM jobqueue.jobs AS k WHERE k.id = g.id)
                                          OR EXISTS (SELECT FROM jobqueue.keys AS k WHERE k.job_id = g.id AND (
                                                         k.scope = 'idempotency' AND k.key = g.idempotency_key
                                                         OR k.scope = 'unique' AND k.key = g.unique_key)))
                          THEN g.id END ORDER BY g.place)
      INTO ids, existing FROM jobqueue.keys_of(jobs) AS g;

    IF jsonb_array_length(jobs) > 1 THEN
        PERFORM set_config('lock_timeout', '20ms', true);  -- PostgreSQL resets this when the function returns
    END IF;
    BEGIN
        SELECT NULL::text AS key, NULL::text AS fingerprint, NULL::integer AS place INTO last;
        FOR want IN
            SELECT j.place::integer AS place, j.job #>> '{options,idempotency_key}' AS key, jobqueue.fingerprint(j.job) AS fingerprint
              FROM ROWS FROM (jsonb_array_elements(jobs), unnest(existing)) WITH ORDINALITY AS j (job, met, place)
             WHERE j.job -> 'options' ? 'idempotency_key' AND j.met IS NULL
             ORDER BY j.job #>> '{options,idempotency_key}' COLLATE "C", j.place
        LOOP
            IF want.key = last.key THEN
                met.fingerprint := last.fingerprint;
                twins[want.place] := last.place;
                existing[want.place] := ids[last.place];
            ELSE
                LOOP
                    met := NULL;
                    INSERT INTO jobqueue.keys (scope, key, job_id, fingerprint, expires_at)
                    VALUES ('idempotency', want.key, ids[want.place], want.fingerprint, present + ttl * interval '1 second')
                        ON CONFLICT (scope, key) DO NOTHING;
                    EXIT WHEN FOUND;
                    SELECT k.* INTO met FROM jobqueue.keys AS k
                     WHERE k.scope = 'idempotency' AND k.key = want.key AND k.expires_at > present;
                    EXIT WHEN FOUND;
                    UPDATE jobqueue.keys AS k
                       SET job_id = ids[want.place], fingerprint = want.fingerprint, expires_at = present + ttl * interval '1 second'
                     WHERE k.scope = 'idempotency' AND k.key = want.key AND k.expires_at <= present;
                    EXIT WHEN FOUND;
                END LOOP;
                existing[want.place] := met.job_id;
                last := want;
            END IF;
            IF met.fingerprint <> want.fingerprint THEN
                RAISE EXCEPTION 'the idempotency_key % was used for another job: submit this job with a new key', to_json(want.key)
                    USING ERRCODE = 'JQ422', COLUMN = field, DETAIL = 'index ' || want.place - 1 || ' of the batch';
            END IF;
        END LOOP;

        field := 'unique_key';
        SELECT NULL::text AS key, NULL::uuid AS holder INTO last;
        FOR want IN
            SELECT g.place, g.unique_key AS key, g.idempotency_key, NULL::uuid AS holder
              FROM ROWS FROM (jobqueue.keys_of(jobs), unnest(existing)) AS g (place, id, idempotency_key, unique_key, met)
             WHERE g.unique_key IS NOT NULL AND g.met IS NULL
             ORDER BY g.unique_key COLLATE "C", g.place
        LOOP
            want.holder := CASE WHEN want.key = last.key THEN last.holder ELSE jobqueue.hold_unique_key(want.key, ids[want.place]) END;
            last := want;
            CONTINUE WHEN want.holder = ids[want.place];
            existing[want.place] := want.holder;
            -- This transaction has stored the idempotency key. Point the key to the existing job too.
            UPDATE jobqueue.keys AS k SET job_id = want.holder WHERE k.scope = 'idempotency' AND k.key = want.idempotency_key;
        END LOOP;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'an open transaction holds the % %: submit this job again later', field, to_json(want.key)
            USING ERRCODE = 'JQ409', COLUMN = field, DETAIL = 'index ' || want.place - 1 || ' of the batch';
    END;

    IF array_remove(existing, NULL) <> '{}' THEN
        -- It is possible that the existing job is not durable yet: its commit did not wait for the disk, or the wait
        -- for a synchronous standby was interrupted. Commits become durable in order. With the record below, this
        -- transaction's commit waits until it is durable, and the earlier commit is durable by then.
        PERFORM pg_logical_emit_message(true, 'jobqueue', 'existing');
    END IF;
    RETURN (SELECT jsonb_agg(j.job || jsonb_build_object('id', j.id)
                             || CASE WHEN j.met IS NULL THEN '{}'
                                     ELSE jsonb_build_object('existing', coalesce(existing[j.twin], j.met)) END ORDER BY j.place)
              FROM ROWS FROM (jsonb_array_elements(jobs), unnest(ids), unnest(existing), unnest(twins)) WITH ORDINALITY
                   AS j (job, id, met, twin, place));
END $$;


--
-- Name: shown(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.shown(document jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $_$
    SELECT CASE WHEN document @? 'strict $.**{110}' THEN '"nested too deeply to be shown"' ELSE document END
$_$;


--
-- Name: slot(integer, timestamp with time zone); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.slot(step integer, moment timestamp with time zone) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE
    AS $$ SELECT date_bin(step * interval '1 second', moment, to_timestamp(0)) $$;


--
-- Name: spend(text, integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.spend(queue text, taken integer) RETURNS void
    LANGUAGE sql
    AS $$
    UPDATE jobqueue.queue_limits AS l
       SET tokens = jobqueue.refilled(l.tokens, l.refilled_at, q.rate, coalesce(q.burst, greatest(1, q.rate))) - taken,
           refilled_at = clock_timestamp()
      FROM jobqueue.queues AS q
     WHERE l.queue = spend.queue AND q.name = l.queue AND q.rate IS NOT NULL AND taken > 0
$$;


--
-- Name: states_of(jsonb, text[]); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.states_of(filter jsonb, known text[]) RETURNS text[]
    LANGUAGE plpgsql STABLE
    AS $$
DECLARE
    state constant jsonb := coalesce(filter -> 'state', 'null');
BEGIN
    IF state = 'null' THEN
        RETURN known;
    ELSIF state = '[]' OR NOT to_jsonb(known) @> state THEN
        RAISE check_violation USING
            COLUMN = 'state', MESSAGE = 'state must be one of ' || array_to_string(known, ', ') || ', or an array of them';
    END IF;
    RETURN ARRAY(SELECT jsonb_array_elements_text(jsonb_build_array() || state));
END $$;


--
-- Name: submit(text, jsonb, text, integer, integer, timestamp with time zone, double precision, timestamp with time zone, text, double precision, text, text, boolean, text, text, text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.submit(kind text, payload jsonb DEFAULT '{}'::jsonb, queue text DEFAULT 'default'::text, priority integer DEFAULT 0, max_retries integer DEFAULT NULL::integer, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, timeout double precision DEFAULT NULL::double precision, expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, "group" text DEFAULT NULL::text, weight double precision DEFAULT NULL::double precision, idempotency_key text DEFAULT NULL::text, unique_key text DEFAULT NULL::text, "unique" boolean DEFAULT NULL::boolean, concurrency_key text DEFAULT NULL::text, traceparent text DEFAULT NULL::text, tracestate text DEFAULT NULL::text) RETURNS uuid
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET extra_float_digits TO '1'
    AS $$
    SELECT (jobqueue.submit_many(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'kind', kind, 'queue', queue, 'priority', priority, 'max_retries', max_retries,
        'run_at', to_jsonb(run_at AT TIME ZONE 'UTC') #>> '{}' || 'Z', 'timeout', timeout,
        'expires_at', to_jsonb(expires_at AT TIME ZONE 'UTC') #>> '{}' || 'Z', 'group', "group", 'weight', weight,
        'idempotency_key', idempotency_key, 'unique_key', unique_key, 'unique', "unique", 'concurrency_key', concurrency_key,
        'traceparent', traceparent, 'tracestate', tracestate)) || jsonb_build_object('payload', payload))))[1]
$$;


--
-- Name: submit_batch(jsonb, boolean, boolean, uuid, jsonb, jsonb, double precision, boolean); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.submit_batch(jobs jsonb, again boolean DEFAULT false, wake boolean DEFAULT true, node uuid DEFAULT NULL::uuid, wants jsonb DEFAULT NULL::jsonb, defaults jsonb DEFAULT '{}'::jsonb, key_ttl double precision DEFAULT 86400, uncounted boolean DEFAULT false) RETURNS TABLE(ids uuid[], best jsonb, claimed text)
    LANGUAGE plpgsql
    SET plan_cache_mode TO 'force_generic_plan'
    AS $_$
#variable_conflict use_column
DECLARE
    present constant timestamptz := CASE WHEN uncounted THEN clock_timestamp() ELSE now() END;
    earliest timestamptz;
    all_ids uuid[];   -- the ids of all jobs, if some of them exist already
BEGIN
    IF again THEN
        -- Existing jobs may have been committed on this server only: if the wait for a synchronous standby is
        -- interrupted, the commit still takes effect. Commits are replicated in order. So when the commit of this
        -- transaction has been replicated, the earlier commits have been replicated too. The record is necessary
        -- because a transaction that writes nothing does not wait for a standby.
        PERFORM pg_logical_emit_message(true, 'jobqueue', 'submit again');
        -- A concurrent submission of the same ids waits here until this transaction has ended. There are at most 64
        -- locks, however many ids there are.
        PERFORM pg_advisory_xact_lock(7669743, l.number)
           FROM (SELECT DISTINCT hashtext(j ->> 'id') & 63 AS number FROM jsonb_array_elements(jobs) AS j WHERE j ? 'id'
                  ORDER BY number) AS l;
    END IF;
    -- Other options, such as a trace, need no preparation.
    IF EXISTS (SELECT FROM jobqueue.fair_queues AS f WHERE least(f.common, f.urgent) IS NOT NULL)
       OR jobs @? '$[*].options ? (exists(@.idempotency_key) || exists(@.unique_key) || exists(@.unique) || exists(@.group) ||
                                   exists(@.expires_in) || exists(@.expires_at))' THEN
        jobs := jobqueue.prepare(jobs, again, key_ttl, present);
    END IF;
    IF wake AND jobs @? '$[*].options.concurrency_key' THEN
        PERFORM jobqueue.wake_keys();
    END IF;
    -- This search is separate from the statement below, because a statement that searches all jobs opens every
    -- partition, even if it has nothing to search for.
    IF again OR jobs @? '$[*].existing' THEN
        SELECT array_agg(coalesce(j.existing, j.id) ORDER BY j.place),
               coalesce(jsonb_agg(j.job || jsonb_build_object('id', j.id) ORDER BY j.place) FILTER (WHERE j.existing IS NULL AND j.fresh), '[]')
          INTO all_ids, jobs
          FROM (SELECT g.*, NOT again OR g.turn = 1 AND NOT EXISTS (SELECT FROM jobqueue.jobs AS known WHERE known.id = g.id OFFSET 0) AS fresh
                  FROM (SELECT n.*, row_number() OVER (PARTITION BY n.id ORDER BY n.place) AS turn
                          FROM (SELECT e.job, e.place, (e.job ->> 'existing')::uuid AS existing,
                                       coalesce((e.job ->> 'id')::uuid, jobqueue.uuid7()) AS id
                                  FROM jsonb_array_elements(jobs) WITH ORDINALITY AS e (job, place) OFFSET 0) AS n) AS g) AS j;
    END IF;
    WITH given AS MATERIALIZED (
        SELECT coalesce(j.id, jobqueue.uuid7()) AS id, coalesce(j.queue, 'default') AS queue, coalesce(j.kind, 'default') AS kind,
               coalesce(j.priority, 0)::integer AS priority, coalesce(j.payload, '{}') AS payload, j.max_retries::integer AS max_retries, j.timeout,
               coalesce(j.run_at, present + j.delay * interval '1 second') AS run_at, j.options, j.place
          FROM ROWS FROM (jsonb_to_recordset(submit_batch.jobs) AS (
                   id uuid, queue text, kind text, priority numeric, payload jsonb, max_retries numeric,   -- in JSON, 5.0 is the integer 5
                   timeout double precision, run_at timestamptz, delay double precision, options jsonb)) WITH ORDINALITY
               AS j (id, queue, kind, priority, payload, max_retries, timeout, run_at, delay, options, place)
    ), pending AS (
        INSERT INTO jobqueue.pending_jobs AS p
               (id, queue, kind, priority, rank, payload, max_retries, timeout, created_at, available_since, options)
        SELECT f.id, f.queue, f.kind, f.priority, jobqueue.rank_of(a.since, f.priority, q.aging_interval, f.options), f.payload, f.max_retries,
               f.timeout, present, a.since, f.options
          FROM given AS f
          LEFT JOIN jobqueue.queues AS q ON q.name = f.queue
          -- The jobs are a microsecond apart, so that a batch runs in its order. A run_at in the past counts as now.
          -- Otherwise, a job could get ahead of jobs that have really waited.
         CROSS JOIN LATERAL (SELECT present + (f.place - 1) * interval '1 microsecond' AS since) AS a
         WHERE f.run_at IS NULL OR f.run_at <= present
        RETURNING p.queue, p.rank
    ), scheduled AS (
        INSERT INTO jobqueue.scheduled_jobs AS s
               (id, queue, kind, priority, run_at, payload, max_retries, timeout, created_at, available_since, options)
        SELECT f.id, f.queue, f.kind, f.priority, f.run_at, f.payload, f.max_retries, f.timeout, present, f.run_at, f.options
          FROM given AS f
         WHERE f.run_at > present
        RETURNING s.run_at
    )
    SELECT (SELECT array_agg(given.id ORDER BY given.place) FROM given),
           (SELECT jsonb_object_agg(b.queue, extract(epoch FROM b.rank))
              FROM (SELECT pending.queue, min(pending.rank) AS rank FROM pending GROUP BY pending.queue) AS b),
           (SELECT min(scheduled.run_at) FROM scheduled)
      INTO ids, best, earliest;

    IF uncounted AND jsonb_array_length(jobs) > 0 THEN
        INSERT INTO jobqueue.sql_submissions (jobs) VALUES (jsonb_array_length(jobs));
    END IF;
    IF wake THEN
        PERFORM jobqueue.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    END IF;
    IF earliest IS NOT NULL THEN
        PERFORM pg_notify('jobqueue_scheduled', extract(epoch FROM earliest)::text);
    END IF;
    ids := coalesce(all_ids, ids, '{}');
    best := coalesce(best, '{}');
    IF node IS NOT NULL THEN
        BEGIN
            claimed := jobqueue.claim(node, (
                SELECT jsonb_object_agg(w.key, jsonb_build_array(w.value -> 0, CASE WHEN w.value ->> 1 IS NOT NULL
                           THEN least((w.value ->> 1)::double precision, (best ->> w.key)::double precision) END))
                  FROM jsonb_each(wants) AS w), defaults);
        EXCEPTION WHEN OTHERS THEN
            NULL;  -- a submission must not fail because of the claim; the next claim fails with the same error and reports it
        END;
    END IF;
    RETURN NEXT;
END $_$;


--
-- Name: submit_many(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.submit_many(jobs jsonb) RETURNS uuid[]
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET extra_float_digits TO '1'
    AS $_$
BEGIN
    IF jsonb_typeof(jobs) <> 'array' THEN
        RAISE check_violation USING COLUMN = 'jobs', MESSAGE = 'jobs must be a JSON array of jobs';
    ELSIF jsonb_array_length(jobs) > 100000 THEN
        RAISE check_violation USING COLUMN = 'jobs', MESSAGE = 'the batch has more than 100000 jobs: split it into smaller batches';
    END IF;
    -- Almost every submission is one small job with small numbers and short names. This test accepts such a job in a
    -- fifth of the time of the full check. If the job without its payload has at most 200 bytes, no name is too long. A
    -- payload under 500 bytes is neither too large nor too deep. All other submissions get the full check.
    IF pg_column_size(jobs) > 500 OR pg_column_size(jobs #- '{0,payload}') > 200
       OR jobs @? 'strict $[*].payload.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)'
       OR jobs @? 'strict $[*].keyvalue() ? (!(@.key == "payload"
                   || (@.key == "kind" || @.key == "queue" || @.key == "group" || @.key == "concurrency_key" || @.key == "unique_key" || @.key == "idempotency_key")
                      && @.value.type() == "string" && @.value != "" && @.value != "." && @.value != ".."
                   || (@.key == "priority" || @.key == "max_retries" || @.key == "timeout")
                      && @.value.type() == "number" && (@.value >= 1 && @.value <= 1000 && @.value == @.value.floor() || @.key == "priority" && @.value == 0)
                   ))' IS NOT FALSE THEN
        PERFORM jobqueue.refuse_unfit(jobs, 'a job', '{kind,payload,queue,priority,max_retries,run_at,delay,timeout,expires_at,expires_in,group,weight,concurrency_key,unique,unique_key,idempotency_key,traceparent,tracestate,id}');
    END IF;
    IF jobs @? '$[*] ? (exists(@.run_at) || exists(@.expires_at) || exists(@.expires_in) || exists(@.group) || exists(@.weight) ||
                        exists(@.concurrency_key) || exists(@.unique) || exists(@.unique_key) || exists(@.idempotency_key) ||
                        exists(@.traceparent) || exists(@.tracestate))' THEN
        jobs := jobqueue.with_options(jobs);
    END IF;
    RETURN (SELECT b.ids FROM jobqueue.submit_batch(jobs, again => jobs @? '$[*].id ? (@ != null)', uncounted => true) AS b);
END $_$;


--
-- Name: surrender(uuid, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.surrender(node uuid, blamed jsonb) RETURNS integer
    LANGUAGE plpgsql
    AS $$
DECLARE
    released integer;
BEGIN
    PERFORM FROM jobqueue.nodes AS n WHERE n.id = node FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE jobqueue.inflight_jobs AS i SET blame = jsonb_build_object('error', b.error, 'delay', b.delay)
      FROM jsonb_to_recordset(blamed) AS b (id uuid, claims integer, error text, delay double precision)
     WHERE i.id = b.id AND i.claims = b.claims AND i.node_id = node;
    released := jobqueue.leave_node(node);
    PERFORM pg_notify('jobqueue_lost', node::text);
    RETURN released;
END $$;


--
-- Name: take_turns(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.take_turns(jobs jsonb) RETURNS jsonb
    LANGUAGE plpgsql
    SET lock_timeout TO '200ms'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_hashjoin TO 'on'
    SET enable_sort TO 'on'
    AS $$
#variable_conflict use_column
DECLARE
    names text[] := ARRAY(SELECT DISTINCT jsonb_build_array(j.queue, j."group")::text
                            FROM jsonb_to_recordset(take_turns.jobs) AS j (queue text, "group" text) ORDER BY 1);
    present constant numeric := extract(epoch FROM clock_timestamp());   -- not now(): a transaction that began long ago must not get a better turn
    locked text[];
    turns jsonb;
BEGIN
    BEGIN
        INSERT INTO jobqueue.fair_queues (queue) SELECT DISTINCT n::jsonb ->> 0 FROM unnest(names) AS n ORDER BY 1
            ON CONFLICT (queue) DO NOTHING;
        INSERT INTO jobqueue.fair_groups (queue, name) SELECT n::jsonb ->> 0, n::jsonb ->> 1 FROM unnest(names) AS n ORDER BY n
            ON CONFLICT (queue, name) DO NOTHING;
        PERFORM FROM jobqueue.fair_groups AS g WHERE (g.queue, g.name) IN (SELECT n::jsonb ->> 0, n::jsonb ->> 1 FROM unnest(names) AS n)
          ORDER BY g.queue, g.name FOR UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        NULL;
    END;
    locked := ARRAY(
        SELECT jsonb_build_array(g.queue, g.name)::text FROM jobqueue.fair_groups AS g
         WHERE (g.queue, g.name) IN (SELECT n::jsonb ->> 0, n::jsonb ->> 1 FROM unnest(names) AS n)
         ORDER BY g.queue, g.name FOR UPDATE SKIP LOCKED);
    WITH given AS MATERIALIZED (
        SELECT j.key, j.queue, j."group", j.priority, j.place, 0.001 / coalesce(j.weight, 1) AS step,
               jsonb_build_array(j.queue, j."group")::text = ANY (locked) AS is_locked
          FROM ROWS FROM (jsonb_to_recordset(take_turns.jobs)
                   AS (key text, queue text, "group" text, weight numeric, priority integer)) WITH ORDINALITY
               AS j (key, queue, "group", weight, priority, place)
    ), lines AS MATERIALIZED (
        SELECT q.queue, f.epoch, extract(epoch FROM coalesce(s.aging_interval, '1 second')) AS aging,
               coalesce(common.turn, greatest(f.common, present)) AS common,
               coalesce(urgent.turn, greatest(f.urgent, present)) AS urgent
          FROM (SELECT DISTINCT given.queue FROM given) AS q
          LEFT JOIN jobqueue.fair_queues AS f ON f.queue = q.queue
          LEFT JOIN jobqueue.queues AS s ON s.name = q.queue
          LEFT JOIN LATERAL (SELECT (p.options -> 'turn')::numeric AS turn FROM jobqueue.pending_jobs AS p
                              WHERE p.queue = q.queue AND (p.priority > 0) = false AND p.options ? 'turn'
                                AND (p.options -> 'turn')::numeric >= coalesce(f.common, 0)
                              ORDER BY (p.options -> 'turn')::numeric LIMIT 1) AS common ON true
          LEFT JOIN LATERAL (SELECT (p.options -> 'turn')::numeric AS turn FROM jobqueue.pending_jobs AS p
                              WHERE p.queue = q.queue AND (p.priority > 0) = true AND p.options ? 'turn'
                                AND (p.options -> 'turn')::numeric >= coalesce(f.urgent, 0)
                              ORDER BY (p.options -> 'turn')::numeric LIMIT 1) AS urgent ON true
    ), groups AS MATERIALIZED (
        SELECT o.queue, o."group", l.aging, l.epoch, greatest(l.common, g.common, seen.turn) AS common,
               greatest(l.urgent, g.urgent) AS urgent
          FROM (SELECT DISTINCT given.queue, given."group", given.is_locked FROM given) AS o
          JOIN lines AS l ON l.queue = o.queue
          LEFT JOIN jobqueue.fair_groups AS g ON g.queue = o.queue AND g.name = o."group" AND g.epoch = l.epoch
          LEFT JOIN LATERAL (SELECT (p.options -> 'turn')::numeric + 0.001 AS turn FROM jobqueue.pending_jobs AS p
                              WHERE NOT o.is_locked AND p.queue = o.queue AND p.options ->> 'group' = o."group" AND p.options ? 'turn'
                              ORDER BY (p.options -> 'turn')::numeric DESC LIMIT 1) AS seen ON true
    ), placed AS MATERIALIZED (
        SELECT given.*, g.aging, g.epoch, g.common + sum(given.step) OVER line AS common,
               g.urgent + sum(CASE WHEN given.priority > 0 THEN given.step ELSE 0 END) OVER line AS urgent
          FROM given JOIN groups AS g ON g.queue = given.queue AND g."group" = given."group"
        WINDOW line AS (PARTITION BY given.queue, given."group" ORDER BY given.place)
    ), kept AS (
        UPDATE jobqueue.fair_groups AS g SET common = p.common, urgent = p.urgent, epoch = p.epoch
          FROM (SELECT placed.queue, placed."group", placed.epoch, max(placed.common) AS common, max(placed.urgent) AS urgent
                  FROM placed WHERE placed.is_locked GROUP BY placed.queue, placed."group", placed.epoch) AS p
         WHERE g.queue = p.queue AND g.name = p."group" AND p.epoch IS NOT NULL
    )
    SELECT jsonb_object_agg(p.key, jsonb_build_object('turn', t.turn, 'rank', t.turn - p.priority * p.aging)) INTO turns
      FROM placed AS p
     CROSS JOIN LATERAL (SELECT round(CASE WHEN p.priority > 0 THEN p.urgent ELSE p.common END - p.step, 6) AS turn) AS t;
    RETURN turns;
END $$;


--
-- Name: tell_of_schedules(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.tell_of_schedules() RETURNS void
    LANGUAGE sql
    AS $$ SELECT pg_notify('jobqueue_schedules', '') $$;


--
-- Name: timed(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.timed(options jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN options ? 'expires_at' THEN options || jsonb_build_object('expires_in', jobqueue.seconds_left(options))
                ELSE options END
$$;


--
-- Name: trigger_schedule(text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.trigger_schedule(name text) RETURNS uuid
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET extra_float_digits TO '1'
    AS $$
    SELECT b.ids[1]
      FROM jobqueue.schedules AS s
     CROSS JOIN LATERAL jobqueue.submit_batch(jsonb_build_array(jobqueue.job_of(s, NULL)), uncounted => true) AS b
     WHERE s.name = trigger_schedule.name
$$;


--
-- Name: unfinished(uuid); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.unfinished(job uuid) RETURNS boolean
    LANGUAGE plpgsql STABLE
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_seqscan TO 'off'
    AS $$
BEGIN
    RETURN EXISTS (SELECT FROM jobqueue.pending_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue.inflight_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue.blocked_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue.scheduled_jobs AS j WHERE j.id = job);
END $$;


--
-- Name: unique_key_of(text, text, jsonb, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.unique_key_of(queue text, kind text, payload jsonb, options jsonb) RETURNS text
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN options ? 'unique_key' THEN options ->> 'unique_key'
                WHEN options -> 'unique' = 'true' THEN
                    'sha256:' || encode(sha256(convert_to(jsonb_build_array(queue, kind, payload)::text, 'UTF8')), 'hex') END
$$;


--
-- Name: unschedule(text); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.unschedule(name text) RETURNS boolean
    LANGUAGE sql
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
    WITH gone AS (DELETE FROM jobqueue.schedules AS s WHERE s.name = unschedule.name RETURNING s.name) SELECT EXISTS (SELECT FROM gone)
$$;


--
-- Name: uuid7(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.uuid7() RETURNS uuid
    LANGUAGE sql
    AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
        'hex')::uuid
$$;


--
-- Name: uuid7_from(timestamp with time zone); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.uuid7_from(moment timestamp with time zone) RETURNS uuid
    LANGUAGE sql STABLE
    AS $$
    SELECT rpad(lpad(to_hex(floor(least(greatest(extract(epoch FROM moment) * 1000, 0), 281474976710655))::bigint), 12, '0'), 32, '0')::uuid
$$;


--
-- Name: wake(text, timestamp with time zone); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.wake(queue text, rank timestamp with time zone) RETURNS void
    LANGUAGE sql
    AS $$ SELECT pg_notify('jobqueue', extract(epoch FROM rank) || ' ' || queue) $$;


--
-- Name: wake_keys(); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.wake_keys() RETURNS void
    LANGUAGE sql
    AS $$ SELECT pg_notify('jobqueue_keys', '') $$;


--
-- Name: walk(jsonb, text[], uuid, integer, integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.walk(filter jsonb, states text[], before uuid, max_jobs integer, max_rows integer) RETURNS text
    LANGUAGE plpgsql STABLE
    SET "DateStyle" TO 'ISO, YMD'
    AS $_$
DECLARE
    asked record;
    ids text[] := '{true}';
    parts text[] := '{}';
    like_these uuid[];
    -- `place` is the position of a job, which max_rows limits. A search for text also has to read the job's error
    -- history, so each 512 bytes of history count as one more row.
    weight text := '1';
    place text := 'row_number() OVER (ORDER BY j.id DESC)';
BEGIN
    IF before IS NOT NULL THEN
        ids := ids || format('j.id < %L', before);
    END IF;
    FOR asked IN SELECT * FROM jobqueue.conditions(filter, '{state,queue,kind,group,concurrency_key,text,created_after,created_before,all}') LOOP
        parts := parts || CASE asked.name
            WHEN 'state' THEN 'true'
            WHEN 'queue' THEN format('w.queue = %L', asked.text)
            WHEN 'kind' THEN format('w.kind = %L', asked.text)
            WHEN 'group' THEN format('w.options ->> ''group'' = %L', asked.text)
            WHEN 'concurrency_key' THEN format('w.options ->> ''concurrency_key'' = %L', asked.text)
            WHEN 'text' THEN format('(strpos(lower(w.reason), lower(%1$L)) > 0 OR strpos(lower(w.errors -> -1 ->> ''error''), lower(%1$L)) > 0)', asked.text)
            WHEN 'created_after' THEN format('w.created_at > jobqueue.instant(%L)', asked.text)
            WHEN 'created_before' THEN format('w.created_at < jobqueue.instant(%L)', asked.text)
            ELSE asked.text END;
        IF asked.name = 'text' AND jobqueue.ids_like(asked.text) IS NOT NULL THEN
            like_these := jobqueue.ids_like(asked.text);
            parts[cardinality(parts)] := 'true';
            ids := ids || format('j.id BETWEEN %L AND %L', like_these[1], like_these[2]);
        ELSIF asked.name = 'text' THEN
            weight := '1 + coalesce(pg_column_size(j.errors), 0) / 512';
            place := format('sum(%s) OVER (ORDER BY j.id DESC ROWS UNBOUNDED PRECEDING)', weight);
        ELSIF asked.name = 'created_after' THEN
            ids := ids || format('j.id >= %L', jobqueue.uuid7_from(jobqueue.instant(asked.text) - interval '1 minute'));
        ELSIF asked.name = 'created_before' THEN
            ids := ids || format('j.id < %L', jobqueue.uuid7_from(jobqueue.instant(asked.text) + interval '1 minute'));
        END IF;
    END LOOP;
    RETURN format(
        'SELECT q.* FROM (SELECT w.*, w.place - w.weight < %2$L AND coalesce(%1$s, false) AS wanted, w.place >= %2$L AND w.place - w.weight < %2$L AS is_last FROM ('
        'SELECT j.id, j.state, j.queue, j.kind, j.priority, j.attempt, j.max_retries, j.created_at, j.run_at, j.claimed_at, j.ended_at, j.node_id,'
        ' j.reason, j.errors, j.options, j.saved, j.cancel_requested_at,'
        ' %6$s AS weight, %7$s AS place'
        ' FROM jobqueue.jobs AS j WHERE j.state = ANY (%3$L) AND %4$s ORDER BY j.id DESC LIMIT %2$L) AS w) AS q WHERE q.wanted OR q.is_last LIMIT %5$L',
        array_to_string(parts, ' AND '), max_rows, states, array_to_string(ids, ' AND '), max_jobs, weight, place);
END $_$;


--
-- Name: with_error(jsonb, jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.with_error(errors jsonb, error jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $$
    SELECT CASE WHEN error IS NULL THEN errors
                WHEN jsonb_typeof(errors) <> 'array' THEN jsonb_build_array(error)
                WHEN jsonb_array_length(errors) >= 10 THEN (errors - 0) || jsonb_build_array(error)
                ELSE errors || jsonb_build_array(error) END
$$;


--
-- Name: with_new_turn(jsonb, text, integer); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.with_new_turn(options jsonb, queue text, priority integer) RETURNS jsonb
    LANGUAGE sql
    AS $$
    SELECT CASE WHEN options ? 'group' OR jobqueue.lags(queue, clock_timestamp())
                THEN coalesce(options, '{}') || (jobqueue.take_turns(jsonb_build_array(
                     jsonb_build_object('key', 'this', 'queue', queue, 'group', coalesce(options ->> 'group', ''),
                                        'weight', options -> 'weight', 'priority', priority))) -> 'this')
                ELSE options END
$$;


--
-- Name: with_options(jsonb); Type: FUNCTION; Schema: jobqueue; Owner: -
--

CREATE FUNCTION jobqueue.with_options(jobs jsonb) RETURNS jsonb
    LANGUAGE sql STABLE
    AS $_$
    SELECT jsonb_agg(j.job || jsonb_strip_nulls(jsonb_build_object(
               'run_at', to_jsonb(jobqueue.instant(j.job ->> 'run_at') AT TIME ZONE 'UTC') #>> '{}' || 'Z',
               'options', nullif(o.options, '{}')))
                     ORDER BY j.place)
      FROM jsonb_array_elements(with_options.jobs) WITH ORDINALITY AS j (job, place)
     CROSS JOIN LATERAL (SELECT jsonb_strip_nulls(jsonb_build_object(
               'expires_at', extract(epoch FROM jobqueue.instant(j.job ->> 'expires_at')), 'expires_in', j.job -> 'expires_in',
               'group', j.job -> 'group', 'weight', j.job -> 'weight', 'concurrency_key', j.job -> 'concurrency_key',
               'unique', j.job -> 'unique', 'unique_key', j.job -> 'unique_key',
               'idempotency_key', j.job -> 'idempotency_key',
               -- Ignore malformed headers, as W3C Trace Context requires. So no transaction fails because of its trace.
               'traceparent', CASE WHEN j.job ->> 'traceparent'
                                        ~ '^(00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?)$'
                                   THEN left(j.job ->> 'traceparent', 55) END,
               'tracestate', CASE WHEN j.job ->> 'tracestate' ~ '^[ -~]+$' AND length(j.job ->> 'tracestate') <= 512
                                  THEN j.job ->> 'tracestate' END)) AS options) AS o
$_$;


--
-- Name: blocked_jobs; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.blocked_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    rank timestamp with time zone NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer DEFAULT 0 NOT NULL,
    claims integer DEFAULT 0 NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    errors jsonb DEFAULT '[]'::jsonb NOT NULL,
    options jsonb,
    saved jsonb,
    admitted boolean,
    CONSTRAINT concurrency_key_length CHECK (((length((options ->> 'concurrency_key'::text)) >= 1) AND (length((options ->> 'concurrency_key'::text)) <= 200))),
    CONSTRAINT kind_length CHECK (((length(kind) >= 1) AND (length(kind) <= 200))),
    CONSTRAINT max_retries_range CHECK (((max_retries >= 0) AND (max_retries <= 1000))),
    CONSTRAINT priority_range CHECK (((priority >= 0) AND (priority <= 1000000))),
    CONSTRAINT queue_length CHECK (((length(queue) >= 1) AND (length(queue) <= 200))),
    CONSTRAINT timeout_range CHECK (((timeout > (0)::double precision) AND (timeout <= (604800)::double precision))),
    CONSTRAINT times_finite CHECK ((isfinite(rank) AND isfinite(created_at) AND isfinite(available_since)))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');


--
-- Name: cancel_requests; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancel_requests (
    job_id uuid NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='100');

ALTER TABLE ONLY jobqueue.cancel_requests REPLICA IDENTITY FULL;


--
-- Name: finished_jobs; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.finished_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
)
PARTITION BY LIST (state);

ALTER TABLE ONLY jobqueue.finished_jobs REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancelled_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
)
PARTITION BY RANGE (finished_at);

ALTER TABLE ONLY jobqueue.cancelled_jobs REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs_20261126; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancelled_jobs_20261126 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.cancelled_jobs_20261126 REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs_20261127; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancelled_jobs_20261127 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.cancelled_jobs_20261127 REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs_20261128; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancelled_jobs_20261128 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.cancelled_jobs_20261128 REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs_20261130; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancelled_jobs_20261130 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.cancelled_jobs_20261130 REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs_20261201; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancelled_jobs_20261201 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.cancelled_jobs_20261201 REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs_20261202; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancelled_jobs_20261202 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.cancelled_jobs_20261202 REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs_default; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.cancelled_jobs_default (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.cancelled_jobs_default REPLICA IDENTITY FULL;


--
-- Name: dead_jobs; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.dead_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    reason text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    died_at timestamp with time zone NOT NULL,
    node_id uuid,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb,
    cause text GENERATED ALWAYS AS (jobqueue.cause_of(errors, reason)) STORED
);


--
-- Name: fair_groups; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.fair_groups (
    queue text NOT NULL,
    name text NOT NULL,
    common numeric DEFAULT 0 NOT NULL,
    urgent numeric DEFAULT 0 NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000');


--
-- Name: fair_queues; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.fair_queues (
    queue text NOT NULL,
    common numeric,
    urgent numeric,
    epoch bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='100');


--
-- Name: history; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.history (
    step integer NOT NULL,
    at timestamp with time zone NOT NULL,
    submitted bigint NOT NULL,
    completed bigint NOT NULL,
    failed bigint NOT NULL,
    dead bigint NOT NULL,
    waits integer[] NOT NULL,
    runs integer[] NOT NULL,
    depth jsonb,
    counted_in double precision
)
WITH (fillfactor='85', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='500');


--
-- Name: inflight_jobs; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.inflight_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    node_id uuid NOT NULL,
    claimed_at timestamp with time zone NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer NOT NULL,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb,
    cancel_requested_at timestamp with time zone,
    limited boolean,
    blame jsonb
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');


--
-- Name: pending_jobs; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.pending_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    rank timestamp with time zone NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer DEFAULT 0 NOT NULL,
    claims integer DEFAULT 0 NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    errors jsonb DEFAULT '[]'::jsonb NOT NULL,
    options jsonb,
    saved jsonb,
    admitted boolean,
    CONSTRAINT kind_length CHECK (((length(kind) >= 1) AND (length(kind) <= 200))),
    CONSTRAINT max_retries_range CHECK (((max_retries >= 0) AND (max_retries <= 1000))),
    CONSTRAINT priority_range CHECK (((priority >= 0) AND (priority <= 1000000))),
    CONSTRAINT queue_length CHECK (((length(queue) >= 1) AND (length(queue) <= 200))),
    CONSTRAINT timeout_range CHECK (((timeout > (0)::double precision) AND (timeout <= (604800)::double precision))),
    CONSTRAINT times_finite CHECK ((isfinite(rank) AND isfinite(created_at) AND isfinite(available_since)))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0', autovacuum_analyze_scale_factor='0', autovacuum_analyze_threshold='20000');


--
-- Name: scheduled_jobs; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.scheduled_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    run_at timestamp with time zone NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer DEFAULT 0 NOT NULL,
    claims integer DEFAULT 0 NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    errors jsonb DEFAULT '[]'::jsonb NOT NULL,
    options jsonb,
    saved jsonb,
    CONSTRAINT concurrency_key_length CHECK (((length((options ->> 'concurrency_key'::text)) >= 1) AND (length((options ->> 'concurrency_key'::text)) <= 200))),
    CONSTRAINT kind_length CHECK (((length(kind) >= 1) AND (length(kind) <= 200))),
    CONSTRAINT max_retries_range CHECK (((max_retries >= 0) AND (max_retries <= 1000))),
    CONSTRAINT priority_range CHECK (((priority >= 0) AND (priority <= 1000000))),
    CONSTRAINT queue_length CHECK (((length(queue) >= 1) AND (length(queue) <= 200))),
    CONSTRAINT run_at_finite CHECK (isfinite(run_at)),
    CONSTRAINT timeout_range CHECK (((timeout > (0)::double precision) AND (timeout <= (604800)::double precision)))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');


--
-- Name: jobs; Type: VIEW; Schema: jobqueue; Owner: -
--

CREATE VIEW jobqueue.jobs AS
 SELECT pending_jobs.id,
    'pending'::text AS state,
    pending_jobs.queue,
    pending_jobs.kind,
    pending_jobs.priority,
    pending_jobs.payload,
    pending_jobs.max_retries,
    pending_jobs.timeout,
    pending_jobs.attempt,
    pending_jobs.claims,
    pending_jobs.created_at,
    pending_jobs.available_since,
    NULL::timestamp with time zone AS run_at,
    NULL::timestamp with time zone AS claimed_at,
    NULL::timestamp with time zone AS ended_at,
    NULL::uuid AS node_id,
    NULL::jsonb AS result,
    NULL::text AS reason,
    pending_jobs.errors,
    pending_jobs.options,
    pending_jobs.saved,
    NULL::timestamp with time zone AS cancel_requested_at
   FROM jobqueue.pending_jobs
UNION ALL
 SELECT blocked_jobs.id,
    'blocked'::text AS state,
    blocked_jobs.queue,
    blocked_jobs.kind,
    blocked_jobs.priority,
    blocked_jobs.payload,
    blocked_jobs.max_retries,
    blocked_jobs.timeout,
    blocked_jobs.attempt,
    blocked_jobs.claims,
    blocked_jobs.created_at,
    blocked_jobs.available_since,
    NULL::timestamp with time zone AS run_at,
    NULL::timestamp with time zone AS claimed_at,
    NULL::timestamp with time zone AS ended_at,
    NULL::uuid AS node_id,
    NULL::jsonb AS result,
    NULL::text AS reason,
    blocked_jobs.errors,
    blocked_jobs.options,
    blocked_jobs.saved,
    NULL::timestamp with time zone AS cancel_requested_at
   FROM jobqueue.blocked_jobs
UNION ALL
 SELECT scheduled_jobs.id,
    'scheduled'::text AS state,
    scheduled_jobs.queue,
    scheduled_jobs.kind,
    scheduled_jobs.priority,
    scheduled_jobs.payload,
    scheduled_jobs.max_retries,
    scheduled_jobs.timeout,
    scheduled_jobs.attempt,
    scheduled_jobs.claims,
    scheduled_jobs.created_at,
    scheduled_jobs.available_since,
    scheduled_jobs.run_at,
    NULL::timestamp with time zone AS claimed_at,
    NULL::timestamp with time zone AS ended_at,
    NULL::uuid AS node_id,
    NULL::jsonb AS result,
    NULL::text AS reason,
    scheduled_jobs.errors,
    scheduled_jobs.options,
    scheduled_jobs.saved,
    NULL::timestamp with time zone AS cancel_requested_at
   FROM jobqueue.scheduled_jobs
UNION ALL
 SELECT inflight_jobs.id,
    'inflight'::text AS state,
    inflight_jobs.queue,
    inflight_jobs.kind,
    inflight_jobs.priority,
    inflight_jobs.payload,
    inflight_jobs.max_retries,
    inflight_jobs.timeout,
    inflight_jobs.attempt,
    inflight_jobs.claims,
    inflight_jobs.created_at,
    inflight_jobs.available_since,
    NULL::timestamp with time zone AS run_at,
    inflight_jobs.claimed_at,
    NULL::timestamp with time zone AS ended_at,
    inflight_jobs.node_id,
    NULL::jsonb AS result,
    NULL::text AS reason,
    inflight_jobs.errors,
    inflight_jobs.options,
    inflight_jobs.saved,
    inflight_jobs.cancel_requested_at
   FROM jobqueue.inflight_jobs
UNION ALL
 SELECT finished_jobs.id,
    finished_jobs.state,
    finished_jobs.queue,
    finished_jobs.kind,
    finished_jobs.priority,
    finished_jobs.payload,
    finished_jobs.max_retries,
    finished_jobs.timeout,
    finished_jobs.attempt,
    finished_jobs.claims,
    finished_jobs.created_at,
    finished_jobs.available_since,
    NULL::timestamp with time zone AS run_at,
    finished_jobs.claimed_at,
    finished_jobs.finished_at AS ended_at,
    finished_jobs.node_id,
    finished_jobs.result,
    NULL::text AS reason,
    finished_jobs.errors,
    finished_jobs.options,
    finished_jobs.saved,
    NULL::timestamp with time zone AS cancel_requested_at
   FROM jobqueue.finished_jobs
UNION ALL
 SELECT dead_jobs.id,
    'dead'::text AS state,
    dead_jobs.queue,
    dead_jobs.kind,
    dead_jobs.priority,
    dead_jobs.payload,
    dead_jobs.max_retries,
    dead_jobs.timeout,
    dead_jobs.attempt,
    dead_jobs.claims,
    dead_jobs.created_at,
    dead_jobs.available_since,
    NULL::timestamp with time zone AS run_at,
    NULL::timestamp with time zone AS claimed_at,
    dead_jobs.died_at AS ended_at,
    dead_jobs.node_id,
    NULL::jsonb AS result,
    dead_jobs.reason,
    dead_jobs.errors,
    dead_jobs.options,
    dead_jobs.saved,
    NULL::timestamp with time zone AS cancel_requested_at
   FROM jobqueue.dead_jobs;


--
-- Name: key_buckets; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.key_buckets (
    queue text NOT NULL,
    key text NOT NULL,
    tokens double precision NOT NULL,
    refilled_at timestamp with time zone NOT NULL,
    check_at timestamp with time zone
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000');


--
-- Name: key_checks; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.key_checks (
    queue text NOT NULL,
    key text NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    timed boolean
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY jobqueue.key_checks REPLICA IDENTITY FULL;


--
-- Name: key_starts; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.key_starts (
    queue text NOT NULL,
    key text NOT NULL,
    at timestamp with time zone NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY jobqueue.key_starts REPLICA IDENTITY FULL;


--
-- Name: keys; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.keys (
    scope text NOT NULL,
    key text NOT NULL,
    job_id uuid NOT NULL,
    fingerprint text,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT key_length CHECK (((length(key) >= 1) AND (length(key) <= 200))),
    CONSTRAINT keys_scope_check CHECK ((scope = ANY (ARRAY['idempotency'::text, 'unique'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');


--
-- Name: nodes; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.nodes (
    id uuid NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    process text NOT NULL,
    version text NOT NULL,
    queues jsonb NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    heartbeat_at timestamp with time zone DEFAULT now() NOT NULL,
    lease_until timestamp with time zone NOT NULL,
    activity jsonb
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='100');


--
-- Name: queue_limits; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.queue_limits (
    queue text NOT NULL,
    tokens double precision,
    refilled_at timestamp with time zone,
    counted_since timestamp with time zone,
    all_counted boolean DEFAULT false NOT NULL
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='1000');


--
-- Name: queues; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.queues (
    name text NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    fair boolean DEFAULT false NOT NULL,
    aging_interval interval DEFAULT '00:00:01'::interval NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    max_running integer,
    rate double precision,
    burst integer,
    key_max_running integer,
    key_rate double precision,
    key_burst integer,
    CONSTRAINT aging_interval_range CHECK (((aging_interval >= '00:00:00'::interval) AND (aging_interval <= '1 day'::interval))),
    CONSTRAINT burst_range CHECK (((burst >= 1) AND (burst <= 1000000))),
    CONSTRAINT key_burst_range CHECK (((key_burst >= 1) AND (key_burst <= 1000000))),
    CONSTRAINT key_max_running_range CHECK (((key_max_running >= 1) AND (key_max_running <= 1000000))),
    CONSTRAINT key_rate_range CHECK (((key_rate >= (0.00001)::double precision) AND (key_rate <= (1000000)::double precision))),
    CONSTRAINT max_running_range CHECK (((max_running >= 1) AND (max_running <= 1000000))),
    CONSTRAINT rate_range CHECK (((rate >= (0.00001)::double precision) AND (rate <= (1000000)::double precision)))
);


--
-- Name: schema_version; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.schema_version (
    version integer NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY jobqueue.schema_version REPLICA IDENTITY FULL;


--
-- Name: TABLE schema_version; Type: COMMENT; Schema: jobqueue; Owner: -
--

COMMENT ON TABLE jobqueue.schema_version IS 'schema.sql 546d84d51f5b88dd852fa9134a570edc, objects c77ad831c64695bda5f1c330bfef32f1';


--
-- Name: sql_submissions; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.sql_submissions (
    jobs integer NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY jobqueue.sql_submissions REPLICA IDENTITY FULL;


--
-- Name: succeeded_jobs; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.succeeded_jobs (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
)
PARTITION BY RANGE (finished_at);

ALTER TABLE ONLY jobqueue.succeeded_jobs REPLICA IDENTITY FULL;


--
-- Name: succeeded_jobs_20261126; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.succeeded_jobs_20261126 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.succeeded_jobs_20261126 REPLICA IDENTITY FULL;


--
-- Name: succeeded_jobs_20261127; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.succeeded_jobs_20261127 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.succeeded_jobs_20261127 REPLICA IDENTITY FULL;


--
-- Name: succeeded_jobs_20261128; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.succeeded_jobs_20261128 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.succeeded_jobs_20261128 REPLICA IDENTITY FULL;


--
-- Name: succeeded_jobs_20261130; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.succeeded_jobs_20261130 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.succeeded_jobs_20261130 REPLICA IDENTITY FULL;


--
-- Name: succeeded_jobs_20261201; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.succeeded_jobs_20261201 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.succeeded_jobs_20261201 REPLICA IDENTITY FULL;


--
-- Name: succeeded_jobs_20261202; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.succeeded_jobs_20261202 (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.succeeded_jobs_20261202 REPLICA IDENTITY FULL;


--
-- Name: succeeded_jobs_default; Type: TABLE; Schema: jobqueue; Owner: -
--

CREATE TABLE jobqueue.succeeded_jobs_default (
    id uuid NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    priority integer NOT NULL,
    state text NOT NULL,
    payload jsonb NOT NULL,
    max_retries integer,
    timeout double precision,
    attempt integer NOT NULL,
    claims integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    available_since timestamp with time zone NOT NULL,
    claimed_at timestamp with time zone,
    finished_at timestamp with time zone NOT NULL,
    node_id uuid,
    result jsonb,
    errors jsonb NOT NULL,
    options jsonb,
    saved jsonb
);

ALTER TABLE ONLY jobqueue.succeeded_jobs_default REPLICA IDENTITY FULL;


--
-- Name: cancelled_jobs; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.finished_jobs ATTACH PARTITION jobqueue.cancelled_jobs FOR VALUES IN ('cancelled');


--
-- Name: cancelled_jobs_20261126; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.cancelled_jobs ATTACH PARTITION jobqueue.cancelled_jobs_20261126 FOR VALUES FROM ('2026-11-26 00:00:00+00') TO ('2026-11-27 00:00:00+00');


--
-- Name: cancelled_jobs_20261127; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.cancelled_jobs ATTACH PARTITION jobqueue.cancelled_jobs_20261127 FOR VALUES FROM ('2026-11-27 00:00:00+00') TO ('2026-11-28 00:00:00+00');


--
-- Name: cancelled_jobs_20261128; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.cancelled_jobs ATTACH PARTITION jobqueue.cancelled_jobs_20261128 FOR VALUES FROM ('2026-11-28 00:00:00+00') TO ('2026-11-29 00:00:00+00');


--
-- Name: cancelled_jobs_20261130; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.cancelled_jobs ATTACH PARTITION jobqueue.cancelled_jobs_20261130 FOR VALUES FROM ('2026-11-30 00:00:00+00') TO ('2026-12-01 00:00:00+00');


--
-- Name: cancelled_jobs_20261201; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.cancelled_jobs ATTACH PARTITION jobqueue.cancelled_jobs_20261201 FOR VALUES FROM ('2026-12-01 00:00:00+00') TO ('2026-12-02 00:00:00+00');


--
-- Name: cancelled_jobs_20261202; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.cancelled_jobs ATTACH PARTITION jobqueue.cancelled_jobs_20261202 FOR VALUES FROM ('2026-12-02 00:00:00+00') TO ('2026-12-03 00:00:00+00');


--
-- Name: cancelled_jobs_default; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.cancelled_jobs ATTACH PARTITION jobqueue.cancelled_jobs_default DEFAULT;


--
-- Name: succeeded_jobs; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.finished_jobs ATTACH PARTITION jobqueue.succeeded_jobs FOR VALUES IN ('succeeded');


--
-- Name: succeeded_jobs_20261126; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.succeeded_jobs ATTACH PARTITION jobqueue.succeeded_jobs_20261126 FOR VALUES FROM ('2026-11-26 00:00:00+00') TO ('2026-11-27 00:00:00+00');


--
-- Name: succeeded_jobs_20261127; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.succeeded_jobs ATTACH PARTITION jobqueue.succeeded_jobs_20261127 FOR VALUES FROM ('2026-11-27 00:00:00+00') TO ('2026-11-28 00:00:00+00');


--
-- Name: succeeded_jobs_20261128; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.succeeded_jobs ATTACH PARTITION jobqueue.succeeded_jobs_20261128 FOR VALUES FROM ('2026-11-28 00:00:00+00') TO ('2026-11-29 00:00:00+00');


--
-- Name: succeeded_jobs_20261130; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.succeeded_jobs ATTACH PARTITION jobqueue.succeeded_jobs_20261130 FOR VALUES FROM ('2026-11-30 00:00:00+00') TO ('2026-12-01 00:00:00+00');


--
-- Name: succeeded_jobs_20261201; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.succeeded_jobs ATTACH PARTITION jobqueue.succeeded_jobs_20261201 FOR VALUES FROM ('2026-12-01 00:00:00+00') TO ('2026-12-02 00:00:00+00');


--
-- Name: succeeded_jobs_20261202; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.succeeded_jobs ATTACH PARTITION jobqueue.succeeded_jobs_20261202 FOR VALUES FROM ('2026-12-02 00:00:00+00') TO ('2026-12-03 00:00:00+00');


--
-- Name: succeeded_jobs_default; Type: TABLE ATTACH; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.succeeded_jobs ATTACH PARTITION jobqueue.succeeded_jobs_default DEFAULT;


--
-- Data for Name: blocked_jobs; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.blocked_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved, admitted) FROM stdin;
01a22d22-4473-7b85-98bd-83325b50f452	keyed	stop	0	2026-11-30 15:45:50.194766+00	{}	\N	\N	0	0	2026-11-30 15:45:50.19476+00	2026-11-30 15:45:50.194766+00	[]	{"concurrency_key": "account 0"}	\N	\N
01a22d22-4473-7eef-b63d-9d62f1a349a2	keyed	stop	0	2026-11-30 15:45:50.194765+00	{}	\N	\N	0	0	2026-11-30 15:45:50.19476+00	2026-11-30 15:45:50.194765+00	[]	{"concurrency_key": "account 2"}	\N	\N
01a22d22-4473-7501-8d4d-1ec2d4393ea1	keyed	stop	0	2026-11-30 15:45:50.194764+00	{}	\N	\N	0	0	2026-11-30 15:45:50.19476+00	2026-11-30 15:45:50.194764+00	[]	{"concurrency_key": "account 1"}	\N	\N
01a22d22-4473-7d55-b390-0badb045afd6	keyed	stop	0	2026-11-30 15:45:50.194763+00	{}	\N	\N	0	0	2026-11-30 15:45:50.19476+00	2026-11-30 15:45:50.194763+00	[]	{"concurrency_key": "account 0"}	\N	\N
01a22d22-4481-7fd6-95dc-2737be1147f1	starts	stop	0	2026-11-30 15:45:50.2095+00	{}	\N	\N	0	0	2026-11-30 15:45:50.209497+00	2026-11-30 15:45:50.2095+00	[]	{"concurrency_key": "account 1"}	\N	\N
01a22d22-4481-7558-a545-a4932e07d4d5	starts	stop	0	2026-11-30 15:45:50.209499+00	{}	\N	\N	0	0	2026-11-30 15:45:50.209497+00	2026-11-30 15:45:50.209499+00	[]	{"concurrency_key": "account 0"}	\N	\N
01a22d22-670b-703e-b9e3-b0d3e41fa904	unserved	echo	0	2026-11-30 15:45:59.05072+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.05072+00	[]	{"expires_at": 1796053619.050703, "concurrency_key": "größe 🐘"}	\N	\N
01a22d22-670b-7d0b-96e7-2009d08f6b82	unserved	echo	0	2026-11-30 15:45:59.050719+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050719+00	[]	{"expires_at": 1796053619.050703, "concurrency_key": "größe 🐘"}	\N	\N
01a22d22-671f-7f3a-a468-c9c83298ce5a	keyed	echo	0	2026-11-30 15:45:59.071419+00	{}	\N	\N	0	0	2026-11-30 15:45:59.071419+00	2026-11-30 15:45:59.071419+00	[]	{"concurrency_key": "account 1"}	\N	\N
\.


--
-- Data for Name: cancel_requests; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.cancel_requests (job_id) FROM stdin;
01a22d22-446d-776e-85b0-e87046596d24
\.


--
-- Data for Name: cancelled_jobs_20261126; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.cancelled_jobs_20261126 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
01a21888-74ff-7f01-9ce8-b706fc1dc7bd	paused	echo	0	cancelled	{}	\N	\N	0	0	2026-11-26 15:45:25.758778+00	2026-11-26 15:45:25.758778+00	\N	2026-11-26 15:45:25.760613+00	\N	\N	[]	\N	\N
01a21888-74ff-7c86-a7bc-b1b24e603ddc	paused	echo	0	cancelled	{}	\N	\N	0	0	2026-11-26 15:45:25.758778+00	2026-11-26 15:45:25.758779+00	\N	2026-11-26 15:45:25.761992+00	\N	\N	[]	{"concurrency_key": "account 1"}	\N
01a21888-74ff-7922-9c42-8cb7edf15317	paused	echo	0	cancelled	{}	\N	\N	0	0	2026-11-26 15:45:25.758778+00	2026-11-26 15:45:25.75878+00	\N	2026-11-26 15:45:25.762453+00	\N	\N	[]	{"concurrency_key": "account 1"}	\N
01a21888-74ff-7517-98ea-2c40c0c38c90	default	echo	0	cancelled	{}	\N	\N	0	0	2026-11-26 15:45:25.758778+00	2026-11-26 16:15:25.758778+00	\N	2026-11-26 15:45:25.76279+00	\N	\N	[]	\N	\N
01a21888-74ff-7dd3-bff4-72bf03b5812f	default	echo	0	cancelled	{}	\N	\N	0	0	2026-11-26 15:45:25.758778+00	2026-11-26 16:15:25.758778+00	\N	2026-11-26 15:45:25.763085+00	\N	\N	[]	{"group": "acme", "concurrency_key": "account 1"}	\N
01a21888-7503-747a-9aec-e7df19597a3f	default	rest	0	cancelled	{}	3	\N	1	1	2026-11-26 15:45:25.763575+00	2026-11-26 15:45:25.763575+00	2026-11-26 15:45:25.780998+00	2026-11-26 15:45:25.812278+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	\N	[]	\N	\N
\.


--
-- Data for Name: cancelled_jobs_20261127; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.cancelled_jobs_20261127 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: cancelled_jobs_20261128; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.cancelled_jobs_20261128 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: cancelled_jobs_20261130; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.cancelled_jobs_20261130 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: cancelled_jobs_20261201; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.cancelled_jobs_20261201 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: cancelled_jobs_20261202; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.cancelled_jobs_20261202 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: cancelled_jobs_default; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.cancelled_jobs_default (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
01a227fb-8cf2-7274-ad32-d0ab850f4814	paused	echo	0	cancelled	{}	\N	\N	0	0	2026-11-29 15:45:26.769916+00	2026-11-29 15:45:26.769916+00	\N	2026-11-29 15:45:26.770437+00	\N	\N	[]	\N	\N
\.


--
-- Data for Name: dead_jobs; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at, available_since, died_at, node_id, errors, options, saved) FROM stdin;
01a21888-4e7d-7d68-a0a1-473332d35ff8	default	stop	0	lease lost 1 times: the job may be killing its process	{}	0	\N	1	1	2026-11-26 15:45:15.899364+00	2026-11-26 15:45:15.899364+00	2026-11-26 15:45:19.056477+00	8d1fc60c-4838-4feb-8251-60da7cee43ea	[{"at": "2026-11-26T15:45:19.056477+00:00", "node": "8d1fc60c-4838-4feb-8251-60da7cee43ea", "error": "lease lost: the node that ran this attempt stopped renewing its lease", "attempt": 1, "duration": 2.226868}]	\N	{"progress": {"message": "", "fraction": 0.1}}
01a21888-5b23-7f6f-b1ca-4c36515e34f7	default	block	0	attempt 1 of 1 failed: its handler (block) blocked the node for 5 s, longer than --stall-limit (5 s) allows	{}	0	\N	1	1	2026-11-26 15:45:19.139369+00	2026-11-26 15:45:19.139369+00	2026-11-26 15:45:25.547059+00	e771b558-a4e9-4774-bfd3-64efa5afa350	[{"at": "2026-11-26T15:45:25.547059+00:00", "node": "e771b558-a4e9-4774-bfd3-64efa5afa350", "error": "its handler (block) blocked the node for 5 s, longer than --stall-limit (5 s) allows", "attempt": 1, "duration": 6.402057}]	\N	\N
01a21888-7463-7c1c-a601-696c76e1eb36	default	fail	0	attempt 2 of 2 failed: RuntimeError: each attempt fails: größe 🐘	{"redriven": true}	1	\N	2	4	2026-11-26 15:45:25.60375+00	2026-11-26 15:45:25.698034+00	2026-11-26 15:45:25.724341+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.634192+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: each attempt fails: größe 🐘", "attempt": 1, "duration": 0.00073, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 258, in _attempt\\n    result = await handler.function(**arguments)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 97, in fail\\n    raise RuntimeError(\\"each attempt fails: größe 🐘\\")\\nRuntimeError: each attempt fails: größe 🐘\\n"}, {"at": "2026-11-26T15:45:25.676533+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: each attempt fails: größe 🐘", "attempt": 2, "duration": 0.000791, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 258, in _attempt\\n    result = await handler.function(**arguments)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 97, in fail\\n    raise RuntimeError(\\"each attempt fails: größe 🐘\\")\\nRuntimeError: each attempt fails: größe 🐘\\n"}, {"at": "2026-11-26T15:45:25.703387+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: each attempt fails: größe 🐘", "attempt": 1, "duration": 0.000557, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 258, in _attempt\\n    result = await handler.function(**arguments)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 97, in fail\\n    raise RuntimeError(\\"each attempt fails: größe 🐘\\")\\nRuntimeError: each attempt fails: größe 🐘\\n"}, {"at": "2026-11-26T15:45:25.724341+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: each attempt fails: größe 🐘", "attempt": 2, "duration": 0.000558, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 258, in _attempt\\n    result = await handler.function(**arguments)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 97, in fail\\n    raise RuntimeError(\\"each attempt fails: größe 🐘\\")\\nRuntimeError: each attempt fails: größe 🐘\\n"}]	\N	\N
01a21888-74eb-7451-aa04-b8e813d1d2e7	default	unknown	0	attempt 1 of 1 failed: no handler for kind 'unknown' on this node (it serves: block, discard, echo, fail, flaky, größe 🐘, hold, later, nap, rest, slow, snooze, stop, typed, unstorable)	{}	0	\N	1	1	2026-11-26 15:45:25.739588+00	2026-11-26 15:45:25.739592+00	2026-11-26 15:45:25.752134+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.752134+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "no handler for kind 'unknown' on this node (it serves: block, discard, echo, fail, flaky, größe 🐘, hold, later, nap, rest, slow, snooze, stop, typed, unstorable)", "attempt": 1, "duration": 0.000221}]	\N	\N
01a21888-74eb-78b8-ae5b-5ec68761e758	default	fail	0	attempt 1 of 1 failed: RuntimeError: each attempt fails: größe 🐘	{}	0	\N	1	1	2026-11-26 15:45:25.739588+00	2026-11-26 15:45:25.739588+00	2026-11-26 15:45:25.752134+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.752134+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: each attempt fails: größe 🐘", "attempt": 1, "duration": 0.003444, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 258, in _attempt\\n    result = await handler.function(**arguments)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 97, in fail\\n    raise RuntimeError(\\"each attempt fails: größe 🐘\\")\\nRuntimeError: each attempt fails: größe 🐘\\n"}]	\N	\N
01a21888-74eb-79a1-a897-0e9dbe79fdd9	default	discard	0	the address is gone	{}	0	\N	1	1	2026-11-26 15:45:25.739588+00	2026-11-26 15:45:25.739589+00	2026-11-26 15:45:25.752134+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.752134+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "discarded: the address is gone", "attempt": 1, "duration": 0.000203}]	\N	\N
01a21888-74eb-7cf3-b38a-6d8e5902e9f6	default	unstorable	0	attempt 1 of 1 failed: the result cannot be stored as JSON: Encoding objects of type object is unsupported	{}	0	\N	1	1	2026-11-26 15:45:25.739588+00	2026-11-26 15:45:25.739591+00	2026-11-26 15:45:25.752134+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.752134+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "the result cannot be stored as JSON: Encoding objects of type object is unsupported", "attempt": 1, "duration": 0.0019}]	\N	\N
01a21888-74ed-7825-ad09-04faef9816e4	default	echo	0	the claim cannot move this row: integer out of range	{}	\N	\N	0	2147483647	2026-11-26 15:45:25.741619+00	2026-11-26 15:45:25.741619+00	2026-11-26 15:45:25.752992+00	\N	[{"at": "2026-11-26T15:45:25.752992+00:00", "error": "the claim cannot move this row: integer out of range", "attempt": 0, "duration": 0}]	\N	\N
01a21888-74ec-7d87-9223-de1a9c0cbe57	default	typed	0	the payload does not fit the handler: Expected `int`, got `str` - at `$.number`	{"number": "größe 🐘"}	3	\N	1	1	2026-11-26 15:45:25.740827+00	2026-11-26 15:45:25.740827+00	2026-11-26 15:45:25.778375+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.778375+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "the payload does not fit the handler: Expected `int`, got `str` - at `$.number`", "attempt": 1, "duration": 0.00012}]	\N	\N
01a21888-74f0-77cd-bcd5-4c19ca3581e2	default	echo	0	the job cannot be read: Expected `str | null`, got `int` - at `$[12].group`	{}	3	\N	1	1	2026-11-26 15:45:25.744603+00	2026-11-26 15:45:25.744603+00	2026-11-26 15:45:25.778375+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.778375+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "the job cannot be read: Expected `str | null`, got `int` - at `$[12].group`", "attempt": 1, "duration": 0.0}]	{"group": 5}	\N
01a21888-74f1-7ec8-ba2d-e9aa3516c65f	default	echo	0	the job cannot be read: nested too deeply	[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]	3	\N	1	1	2026-11-26 15:45:25.745824+00	2026-11-26 15:45:25.745824+00	2026-11-26 15:45:25.778375+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.778375+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "the job cannot be read: nested too deeply", "attempt": 1, "duration": 0.0}]	\N	\N
01a21888-74eb-7db8-a598-03b274db542b	default	slow	0	attempt 1 of 1 failed: timed out after 0.05 s	{}	0	\N	1	1	2026-11-26 15:45:25.739588+00	2026-11-26 15:45:25.73959+00	2026-11-26 15:45:25.798235+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	[{"at": "2026-11-26T15:45:25.798235+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "timed out after 0.05 s", "attempt": 1, "duration": 0.050941}]	\N	\N
01a21888-74f7-7cd7-a61d-391a5b051ca8	paused	echo	0	expired	{}	\N	\N	0	0	2026-11-26 15:45:25.750547+00	2026-11-26 15:45:25.750548+00	2026-11-26 15:45:26.753336+00	\N	[]	{"expires_at": 1795707926.750547, "concurrency_key": "account 1"}	\N
01a21888-74f7-713e-a7d1-25659851c730	paused	echo	0	expired	{}	\N	\N	0	0	2026-11-26 15:45:25.750547+00	2026-11-26 15:45:25.750547+00	2026-11-26 15:45:26.753336+00	\N	[]	{"expires_at": 1795707926.750547}	\N
01a21888-74f7-7dc8-9d17-ecbfc9cfb0b1	paused	echo	0	expired	{}	\N	\N	0	0	2026-11-26 15:45:25.750547+00	2026-11-26 15:45:25.750549+00	2026-11-26 15:45:26.753336+00	\N	[]	{"expires_at": 1795707926.750547, "concurrency_key": "account 1"}	\N
01a21888-74f7-79e5-8592-2cd9a681e2db	default	echo	0	expired	{}	\N	\N	0	0	2026-11-26 15:45:25.750547+00	2026-11-26 16:15:25.750547+00	2026-11-26 15:45:26.753336+00	\N	[]	{"expires_at": 1795707926.750547}	\N
01a21888-74f7-7fe0-9a01-883388f84ba9	default	echo	0	expired	{}	\N	\N	0	0	2026-11-26 15:45:25.750547+00	2026-11-26 16:15:25.750547+00	2026-11-26 15:45:26.753336+00	\N	[]	{"group": "acme", "expires_at": 1795707926.750547, "concurrency_key": "account 1"}	\N
01a22d21-fb4a-7aa2-8243-b9c5cf1ddf80	default	fail	0	attempt 2 of 2 failed: RuntimeError: each attempt fails: größe 🐘	{}	1	\N	2	2	2026-11-30 15:45:31.434371+00	2026-11-30 15:45:31.434373+00	2026-11-30 15:45:31.524996+00	d03b8391-788b-4eae-9f15-40003e878427	[{"at": "2026-11-30T15:45:31.492509+00:00", "node": "d03b8391-788b-4eae-9f15-40003e878427", "error": "RuntimeError: each attempt fails: größe 🐘", "attempt": 1, "duration": 0.000896, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 258, in _attempt\\n    result = await handler.function(**arguments)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 97, in fail\\n    raise RuntimeError(\\"each attempt fails: größe 🐘\\")\\nRuntimeError: each attempt fails: größe 🐘\\n"}, {"at": "2026-11-30T15:45:31.524996+00:00", "node": "d03b8391-788b-4eae-9f15-40003e878427", "error": "RuntimeError: each attempt fails: größe 🐘", "attempt": 2, "duration": 0.000597, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 258, in _attempt\\n    result = await handler.function(**arguments)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 97, in fail\\n    raise RuntimeError(\\"each attempt fails: größe 🐘\\")\\nRuntimeError: each attempt fails: größe 🐘\\n"}]	\N	\N
\.


--
-- Data for Name: fair_groups; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.fair_groups (queue, name, common, urgent, epoch) FROM stdin;
fair	tenant 0	1796053550.25461700000000000000	1796053550.23961700000000000000	0
fair	tenant 1	1796053550.24461700000000000000	1796053550.23711700000000000000	0
fair	tenant 2	1796053550.24128366666666666660	1796053550.23628366666666666665	0
aging	acme	1796053559.05867500000000000000	1796053559.056675	0
unserved	acme	1796053559.05700833333333333333	1796053559.056675	0
unserved	globex	1796053559.05767500000000000000	1796053559.05767500000000000000	0
\.


--
-- Data for Name: fair_queues; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.fair_queues (queue, common, urgent, epoch) FROM stdin;
default	\N	\N	1
fair	1796053550.236617	1796053550.238617	0
aging	\N	\N	0
unserved	\N	\N	0
\.


--
-- Data for Name: history; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.history (step, at, submitted, completed, failed, dead, waits, runs, depth, counted_in) FROM stdin;
10	2026-11-30 15:45:30+00	11	3	4	1	{0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,4,1}	{0,0,0,1,0,0,0,0,1,1,1,1,0,1,0,2}	{"dead": 18, "blocked": 0, "pending": 5, "inflight": 0, "scheduled": 2}	0.002351
10	2026-11-30 15:45:40+00	0	2	3	0	{0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,5,0,0,1,4,0,0,0,0,0,1,0,1}	{0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,2}	\N	\N
60	2026-11-30 15:45:00+00	11	5	7	1	{0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,6,0,0,1,8,1,0,0,0,0,1,0,1}	{0,0,0,1,0,0,0,0,1,1,1,1,0,1,1,3,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,2}	{"dead": 18, "blocked": 0, "pending": 5, "inflight": 0, "scheduled": 2}	0.002351
300	2026-11-30 15:45:00+00	11	5	7	1	{0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,6,0,0,1,8,1,0,0,0,0,1,0,1}	{0,0,0,1,0,0,0,0,1,1,1,1,0,1,1,3,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,2}	{"dead": 18, "blocked": 0, "pending": 5, "inflight": 0, "scheduled": 2}	0.002351
10	2026-11-30 15:45:20+00	0	0	0	0	{}	{}	\N	\N
\.


--
-- Data for Name: inflight_jobs; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.inflight_jobs (id, queue, kind, priority, node_id, claimed_at, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved, cancel_requested_at, limited, blame) FROM stdin;
01a22d22-446f-7046-8d04-e5aae9501c1c	limited	stop	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.204012+00	{"number": 1}	0	\N	1	1	2026-11-30 15:45:50.191521+00	2026-11-30 15:45:50.191522+00	[]	\N	{"progress": {"message": "", "fraction": 0.1}}	\N	t	\N
01a22d22-446f-7a1d-a87c-8bdd5e2bbc02	limited	stop	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.20472+00	{"number": 0}	0	\N	1	1	2026-11-30 15:45:50.191521+00	2026-11-30 15:45:50.191521+00	[]	\N	{"progress": {"message": "", "fraction": 0.1}}	\N	t	\N
01a22d22-4472-7d87-90d3-96f1b9219622	keyed	stop	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.227738+00	{}	0	\N	1	1	2026-11-30 15:45:50.19476+00	2026-11-30 15:45:50.19476+00	[]	{"concurrency_key": "account 0"}	{"progress": {"message": "", "fraction": 0.1}}	\N	t	\N
01a22d22-4473-790e-9304-2ec58b5c2ab3	keyed	stop	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.227738+00	{}	0	\N	1	1	2026-11-30 15:45:50.19476+00	2026-11-30 15:45:50.194761+00	[]	{"concurrency_key": "account 1"}	{"progress": {"message": "", "fraction": 0.1}}	\N	t	\N
01a22d22-4481-741d-b105-a35a28abe3dd	starts	stop	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.247682+00	{}	0	\N	1	1	2026-11-30 15:45:50.209497+00	2026-11-30 15:45:50.209497+00	[]	{"concurrency_key": "account 0"}	{"progress": {"message": "", "fraction": 0.1}}	\N	t	\N
01a22d22-4481-7708-99df-34b5fb072fb8	starts	stop	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.247644+00	{}	0	\N	1	1	2026-11-30 15:45:50.209497+00	2026-11-30 15:45:50.209498+00	[]	{"concurrency_key": "account 1"}	{"progress": {"message": "", "fraction": 0.1}}	\N	t	\N
01a22d22-446d-776e-85b0-e87046596d24	default	hold	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.296586+00	{"number": 1}	5	1000	2	2	2026-11-30 15:45:50.189154+00	2026-11-30 15:45:50.189155+00	[{"at": "2026-11-30T15:45:50.242535+00:00", "node": "2d8f121a-de7c-415b-b678-cada969f90ab", "error": "RuntimeError: the first attempt fails", "attempt": 1, "duration": 0.002764, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 41, in hold\\n    raise RuntimeError(\\"the first attempt fails\\")\\nRuntimeError: the first attempt fails\\n"}]	\N	{"progress": {"message": "halfway: größe 🐘", "fraction": 0.5}, "checkpoint": {"page": 7}}	\N	\N	\N
01a22d22-446d-79ff-b061-36a29dc80258	default	hold	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.296586+00	{"number": 0}	5	1000	2	2	2026-11-30 15:45:50.189154+00	2026-11-30 15:45:50.189154+00	[{"at": "2026-11-30T15:45:50.242535+00:00", "node": "2d8f121a-de7c-415b-b678-cada969f90ab", "error": "RuntimeError: the first attempt fails", "attempt": 1, "duration": 0.001923, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 41, in hold\\n    raise RuntimeError(\\"the first attempt fails\\")\\nRuntimeError: the first attempt fails\\n"}]	\N	{"progress": {"message": "halfway: größe 🐘", "fraction": 0.5}, "checkpoint": {"page": 7}}	\N	\N	\N
01a22d22-44aa-7087-a4ff-a26048100e05	fair	nap	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:52.901807+00	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227098+00	[]	{"rank": 1796053550.236617, "turn": 1796053550.236617, "group": "tenant 1", "weight": 2}	\N	\N	\N	\N
01a22d22-446d-7455-835e-0eb967d67307	default	hold	0	2d8f121a-de7c-415b-b678-cada969f90ab	2026-11-30 15:45:50.296586+00	{"number": 2}	5	1000	2	2	2026-11-30 15:45:50.189154+00	2026-11-30 15:45:50.189156+00	[{"at": "2026-11-30T15:45:50.242535+00:00", "node": "2d8f121a-de7c-415b-b678-cada969f90ab", "error": "RuntimeError: the first attempt fails", "attempt": 1, "duration": 0.003665, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 41, in hold\\n    raise RuntimeError(\\"the first attempt fails\\")\\nRuntimeError: the first attempt fails\\n"}]	\N	{"progress": {"message": "halfway: größe 🐘", "fraction": 0.5}, "checkpoint": {"page": 7}}	2026-11-30 15:45:53.013213+00	\N	\N
01a22d22-4ffd-7ed8-b3d6-5f7cb9ebe39d	stuck	block	0	c393094c-98f1-4584-8f10-9a3a3de19c70	2026-11-30 15:45:53.159059+00	{}	1	\N	1	1	2026-11-30 15:45:53.144487+00	2026-11-30 15:45:53.144487+00	[]	\N	\N	\N	\N	{"delay": 1.1205512755161924, "error": "its handler (block) blocked the node for 6 s, longer than --stall-limit (5 s) allows"}
\.


--
-- Data for Name: key_buckets; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.key_buckets (queue, key, tokens, refilled_at, check_at) FROM stdin;
starts	account 0	1	2026-11-30 15:45:50.229451+00	2026-11-30 16:02:30.229451+00
starts	account 1	1	2026-11-30 15:45:50.230463+00	2026-11-30 16:02:30.230463+00
\.


--
-- Data for Name: key_checks; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.key_checks (queue, key, at, timed) FROM stdin;
starts	account 0	2026-11-30 16:02:30.229451+00	t
starts	account 1	2026-11-30 16:02:30.230463+00	t
unserved	größe 🐘	2026-11-30 15:45:59.042539+00	\N
unserved	größe 🐘	2026-11-30 15:45:59.042539+00	\N
keyed	account 1	2026-11-30 15:45:59.070904+00	\N
\.


--
-- Data for Name: key_starts; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.key_starts (queue, key, at) FROM stdin;
starts	account 1	2026-11-30 15:45:50.247644+00
starts	account 0	2026-11-30 15:45:50.247682+00
\.


--
-- Data for Name: keys; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.keys (scope, key, job_id, fingerprint, expires_at) FROM stdin;
unique	ended	01a22d21-fb4a-7a3f-89d2-79044c343694	\N	2026-12-01 15:45:31.467949+00
unique	größe 🐘	01a22d22-670b-7367-aae8-63c4b21fb5c0	\N	2026-12-01 15:45:59.052448+00
unique	sha256:25980ed68d0a80be7c4928789c5a8255f57985fcbb33059e7a243ea1c1b2129f	01a22d22-670b-7299-8039-4dbba56e7fd2	\N	2026-12-01 15:45:59.052552+00
unique	waiting	01a22d22-670b-79d9-bdb4-409b0ab92619	\N	2026-12-01 15:45:59.052586+00
idempotency	größe 🐘	01a22d22-672e-71f8-b689-8186b7dcbcb4	0146d59ee87548de44a6906a3e8a3ae44f785cd48fa1e60a0ca481ff00b008aa	2058-08-08 17:32:39.084297+00
\.


--
-- Data for Name: nodes; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.nodes (id, host, pid, process, version, queues, started_at, heartbeat_at, lease_until, activity) FROM stdin;
2d8f121a-de7c-415b-b678-cada969f90ab	vm	4331	d9f08758-4343-46b8-9f44-d315c4c178a4:4026531836:4331:2661450	0.1.0	{"fair": 1, "keyed": 2, "starts": 4, "default": 3, "limited": 4}	2026-11-30 15:45:44.797329+00	2026-11-30 15:45:52.8576+00	2026-11-30 16:45:52.8576+00	{"fair": [0.4, 0.0], "default": [0.0, 0.05]}
\.


--
-- Data for Name: pending_jobs; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.pending_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved, admitted) FROM stdin;
01a22d22-44ab-7457-9a4b-c99432e15120	fair	nap	0	2026-11-30 15:45:50.250617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227133+00	[]	{"rank": 1796053550.250617, "turn": 1796053550.250617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44ab-7d0b-974f-250eaf586cd7	fair	nap	0	2026-11-30 15:45:50.242117+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227131+00	[]	{"rank": 1796053550.242117, "turn": 1796053550.242117, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44ab-75de-a862-118861fd7e49	fair	nap	0	2026-11-30 15:45:50.249617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.22713+00	[]	{"rank": 1796053550.249617, "turn": 1796053550.249617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-446f-73ee-9815-b65125a4bf70	limited	stop	0	2026-11-30 15:45:50.191524+00	{"number": 3}	\N	\N	0	0	2026-11-30 15:45:50.191521+00	2026-11-30 15:45:50.191524+00	[]	\N	\N	\N
01a22d22-446f-7c55-8c0d-ab4fcd74bb2b	limited	stop	0	2026-11-30 15:45:50.191523+00	{"number": 2}	\N	\N	0	0	2026-11-30 15:45:50.191521+00	2026-11-30 15:45:50.191523+00	[]	\N	\N	\N
01a22d22-44ab-7547-babf-1c09dfbdbedd	fair	nap	0	2026-11-30 15:45:50.244117+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227143+00	[]	{"rank": 1796053550.244117, "turn": 1796053550.244117, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44ab-771c-9a9a-3a0e8d456cb3	fair	nap	0	2026-11-30 15:45:50.253617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227142+00	[]	{"rank": 1796053550.253617, "turn": 1796053550.253617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44ab-7053-8691-991f59faaab2	fair	nap	0	2026-11-30 15:45:50.240617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227141+00	[]	{"rank": 1796053550.240617, "turn": 1796053550.240617, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44ab-7e77-9d49-dafafea1a326	fair	nap	0	2026-11-30 15:45:50.252617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227139+00	[]	{"rank": 1796053550.252617, "turn": 1796053550.252617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44ab-7f3e-9cef-0e7aac7cd160	fair	nap	0	2026-11-30 15:45:50.240284+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227138+00	[]	{"rank": 1796053550.240284, "turn": 1796053550.240284, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44ab-7064-9b63-ee739fef1112	fair	nap	0	2026-11-30 15:45:50.243117+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227137+00	[]	{"rank": 1796053550.243117, "turn": 1796053550.243117, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44ab-74c7-bd84-cb99ffe850e0	fair	nap	0	2026-11-30 15:45:50.23995+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227135+00	[]	{"rank": 1796053550.239950, "turn": 1796053550.239950, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44ab-70a7-b0c8-63f90b1316e3	fair	nap	0	2026-11-30 15:45:50.242617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227134+00	[]	{"rank": 1796053550.242617, "turn": 1796053550.242617, "group": "tenant 1", "weight": 2}	\N	\N
01a22d21-fb69-7771-938f-b9510ae3dac8	declared	echo	0	2026-11-30 15:45:31.486243+00	{"text": "each night"}	\N	\N	0	0	2026-11-30 15:45:31.48624+00	2026-11-30 15:45:31.486243+00	[]	{"schedule": "declared", "scheduled_for": 1796007600}	\N	\N
01a22d21-fb69-7fa9-8a22-8d29e77cbe62	all	echo	0	2026-11-30 15:45:31.486244+00	{"text": "größe 🐘"}	\N	\N	0	0	2026-11-30 15:45:31.48624+00	2026-11-30 15:45:31.486244+00	[]	{"schedule": "all", "scheduled_for": 1796040000}	\N	\N
01a22d21-fb69-725a-a90b-6e9cc738ff5d	all	echo	0	2026-11-30 15:45:31.486242+00	{"text": "größe 🐘"}	\N	\N	0	0	2026-11-30 15:45:31.48624+00	2026-11-30 15:45:31.486242+00	[]	{"schedule": "all", "scheduled_for": 1795953600}	\N	\N
01a22d21-fb69-787c-b0ec-f77bb9941c25	all	echo	0	2026-11-30 15:45:31.486241+00	{"text": "größe 🐘"}	\N	\N	0	0	2026-11-30 15:45:31.48624+00	2026-11-30 15:45:31.486241+00	[]	{"schedule": "all", "scheduled_for": 1795867200}	\N	\N
01a22d21-fb69-7766-9222-ec33d51fd2be	all	echo	0	2026-11-30 15:45:31.48624+00	{"text": "größe 🐘"}	\N	\N	0	0	2026-11-30 15:45:31.48624+00	2026-11-30 15:45:31.48624+00	[]	{"schedule": "all", "scheduled_for": 1795780800}	\N	\N
01a22d22-4473-7a16-88b2-413c409ba5a5	keyed	stop	0	2026-11-30 15:45:50.194762+00	{}	\N	\N	0	0	2026-11-30 15:45:50.19476+00	2026-11-30 15:45:50.194762+00	[]	{"concurrency_key": "account 2"}	\N	t
01a22d22-44ab-76d2-abb4-a243da4dd7db	fair	nap	0	2026-11-30 15:45:50.239284+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227129+00	[]	{"rank": 1796053550.239284, "turn": 1796053550.239284, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44ab-7662-aaf4-9edc07c30aef	fair	nap	0	2026-11-30 15:45:50.248617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227127+00	[]	{"rank": 1796053550.248617, "turn": 1796053550.248617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44ab-7550-af2f-8b2aa47aa680	fair	nap	0	2026-11-30 15:45:50.23895+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227126+00	[]	{"rank": 1796053550.238950, "turn": 1796053550.238950, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44ab-7e12-a275-3dcf7afb2d6d	fair	nap	0	2026-11-30 15:45:50.241117+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227125+00	[]	{"rank": 1796053550.241117, "turn": 1796053550.241117, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44ab-7784-bacc-ce6fbd1984e4	fair	nap	0	2026-11-30 15:45:50.238617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227123+00	[]	{"rank": 1796053550.238617, "turn": 1796053550.238617, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44ab-7af4-bdfc-ba240d7d5a8a	fair	nap	0	2026-11-30 15:45:50.240617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227122+00	[]	{"rank": 1796053550.240617, "turn": 1796053550.240617, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44ab-7570-aa1b-632adea51771	fair	nap	0	2026-11-30 15:45:50.246617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227121+00	[]	{"rank": 1796053550.246617, "turn": 1796053550.246617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44aa-7c47-8d53-7f058f90cffd	fair	nap	0	2026-11-30 15:45:50.240117+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227119+00	[]	{"rank": 1796053550.240117, "turn": 1796053550.240117, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44aa-7dbd-ac9d-60e23d944c11	fair	nap	0	2026-11-30 15:45:50.245617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227118+00	[]	{"rank": 1796053550.245617, "turn": 1796053550.245617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44aa-7451-a050-e3079aaef805	fair	nap	0	2026-11-30 15:45:50.23795+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227117+00	[]	{"rank": 1796053550.237950, "turn": 1796053550.237950, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44aa-787b-8795-fa19b176982c	fair	nap	0	2026-11-30 15:45:50.244617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227115+00	[]	{"rank": 1796053550.244617, "turn": 1796053550.244617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44aa-7b0f-a321-51864bae7359	fair	nap	0	2026-11-30 15:45:50.237617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227114+00	[]	{"rank": 1796053550.237617, "turn": 1796053550.237617, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44aa-74db-bbe0-f97689905516	fair	nap	0	2026-11-30 15:45:50.239117+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227113+00	[]	{"rank": 1796053550.239117, "turn": 1796053550.239117, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44aa-7a26-83bf-2c7709e76919	fair	nap	0	2026-11-30 15:45:50.237284+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227111+00	[]	{"rank": 1796053550.237284, "turn": 1796053550.237284, "group": "tenant 2", "weight": 3}	\N	\N
01a22d22-44aa-7300-a7af-3825e10ed11c	fair	nap	0	2026-11-30 15:45:50.238617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.22711+00	[]	{"rank": 1796053550.238617, "turn": 1796053550.238617, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44aa-7655-80fc-b284b488e95b	fair	nap	0	2026-11-30 15:45:50.242617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227109+00	[]	{"rank": 1796053550.242617, "turn": 1796053550.242617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44aa-71e8-919c-87d1e982661a	fair	nap	0	2026-11-30 15:45:50.238117+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227107+00	[]	{"rank": 1796053550.238117, "turn": 1796053550.238117, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44aa-78db-8aed-ce10ab26ccff	fair	nap	0	2026-11-30 15:45:50.241617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227106+00	[]	{"rank": 1796053550.241617, "turn": 1796053550.241617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44aa-76c3-9980-69f12b14edf7	fair	nap	0	2026-11-30 15:45:50.240617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227103+00	[]	{"rank": 1796053550.240617, "turn": 1796053550.240617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44aa-77ed-bf0a-15656e8efe90	fair	nap	0	2026-11-30 15:45:50.237117+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227101+00	[]	{"rank": 1796053550.237117, "turn": 1796053550.237117, "group": "tenant 1", "weight": 2}	\N	\N
01a22d22-44aa-789a-9f58-0813a9b91d50	fair	nap	0	2026-11-30 15:45:50.238617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227097+00	[]	{"rank": 1796053550.238617, "turn": 1796053550.238617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44aa-7246-a4b3-03c4cc7214b6	fair	nap	0	2026-11-30 15:45:50.237617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227094+00	[]	{"rank": 1796053550.237617, "turn": 1796053550.237617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-44aa-77ad-af3f-a4d860a7fc1d	fair	nap	0	2026-11-30 15:45:50.236617+00	{}	\N	\N	0	0	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227091+00	[]	{"rank": 1796053550.236617, "turn": 1796053550.236617, "group": "tenant 0", "weight": 1}	\N	\N
01a22d22-670b-7495-beac-9f96c091b9f9	aging	echo	0	2026-11-30 15:45:59.056675+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050709+00	[]	{"rank": 1796053559.056675, "turn": 1796053559.056675, "group": "acme", "weight": 0.5}	\N	\N
01a22d22-670b-774e-af4f-dc944c8b333c	aging	echo	3	2026-11-30 15:45:29.050708+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050708+00	[]	\N	\N	\N
01a22d22-670b-7f43-b44e-17f706f13787	declared	echo	0	2026-11-30 15:45:59.050724+00	{"number": 2}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050724+00	[]	\N	\N	\N
01a22d22-670b-7959-be48-f865ba745795	declared	echo	0	2026-11-30 15:45:59.050723+00	{"number": 1}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050723+00	[]	\N	\N	\N
01a22d22-670b-7cfb-acd8-e61f70840927	declared	echo	0	2026-11-30 15:45:59.050722+00	{"number": 0}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050722+00	[]	\N	\N	\N
01a22d22-670b-7d54-b7f8-438f2d56d00d	größe/日本 🐘	größe 🐘	0	2026-11-30 15:45:59.050706+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050706+00	[]	\N	\N	\N
01a22d22-670b-7972-900a-5220502cefad	unserved	unknown	0	2026-11-30 15:45:59.050721+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050721+00	[]	\N	\N	\N
01a22d22-670b-79d9-bdb4-409b0ab92619	unserved	echo	0	2026-11-30 15:45:59.050716+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050716+00	[]	{"unique_key": "waiting"}	\N	\N
01a22d22-670b-7299-8039-4dbba56e7fd2	unserved	echo	0	2026-11-30 15:45:59.050715+00	{"unique": true}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050715+00	[]	{"unique": true}	\N	\N
01a22d22-670b-7c29-aac1-f9ea6965dea1	unserved	echo	0	2026-11-30 15:45:59.050713+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050713+00	[]	{"expires_at": 1796053619.050703}	\N	\N
01a22d22-670b-7856-88e0-6fe509695612	unserved	echo	0	2026-11-30 15:45:59.050712+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050712+00	[]	{"expires_at": 4102444799.000000}	\N	\N
01a22d22-670b-7dc9-840b-6b447b1da5b5	unserved	echo	2	2026-11-30 15:45:57.056675+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050711+00	[]	{"rank": 1796053557.056675, "turn": 1796053559.056675, "group": "globex"}	\N	\N
01a22d22-670b-7001-b650-07feaec4badd	unserved	echo	0	2026-11-30 15:45:59.056675+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.05071+00	[]	{"rank": 1796053559.056675, "turn": 1796053559.056675, "group": "acme", "weight": 3}	\N	\N
01a22d22-670b-75cf-bf95-b9b99a327c36	unserved	echo	7	2026-11-30 15:45:52.050707+00	{}	9	2.5	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050707+00	[]	\N	\N	\N
01a22d22-670b-7d54-b9c5-03b6e6581ce4	unserved	echo	0	2026-11-30 15:45:59.050705+00	"f5b165224a58b791df6af1d8303e61cdc4bb86c3d1c427103c344c4189eb2f1e7bd5d47e446fcec2a3d811736110e5781bcccea696762e6116c6e9c92d99bf358c2e0718822ce47ca8c74107e66cb0e4b2b3f4d58d82ca6386d2c96e760e819b85c924c3597164c4a6058a00581a22b22de50472433d2e44fed8b6b8357e44cd3129903ac1d45597a242fdf11f8f2b1a39f3c3e693114351dcbed407e3e6b605b99e8306dda748a61e029a8a3f415b024a146cf0d98a98e1cf999661f967bdafdf0e7337420c13f8f5d40f6ce079d1b987376f07bcb81287fdc8c0388fe881c3a0661970ef3f6df0148ded7e8a34888d396cab3b80d27f58df111a3b3df245ada90802389a78cdc29492a875f74ac6f3aa202f4ad9892fed75598005bac48a6a9e826bd6f0a890ea47ca738eb48c14ec53676da43f9e9919878d972f9a451da1305317feed6740b9bd7425dcb03de04bf0a4f21e0adc3ebef6822b55d46d44e5a833b3b84e0f27f9f7a910b6b6683480fc91baefae179bf759340f6cf6c1f9810d387dd45ce301e94a2599abf5fd99301d8fa94d13abbe48a1ae6b96681c34f9c424eae11631d67fdf64a0d8a5b4dff0c5475a81bcd2b26419dac896481471da57afd608bc27f07ae334243ecc2165be58af22ccbd6c7f67757b106aafa12caa98364a2cd1d3fb5d4f137e8cd7b9fae1a77afab3d84b9dc66b1aabac50b0fbbc8f89ec5f79bd221616ca5f700608eca9153d28821562a11be30348c7a421e82944385c857e1007d7b95dac64d892da5efc8d5c7d438a96bb86399207685d2578acfb210bd6c8fb4e3cd910b4a24a2ad9bb30b2fb253c649d8de3da970d560394e3f2c264d806aca54e019c2bf0fe282bd4b49280c790183afb5f69fb4d3226033d0141c5318113336b5e248acec88aeb64f33bdcf8e85f8c07e56f3ba35a8a67298a868322f9045811e7d4f31834f3d84e5cea93fa2c705a2ba8897561b4e5e8eb7fef44424dc2a8687c498ccbcee39b859205f57ff8b9ba41277601c77b39621ba19dc8870461db595d0bd237b363f437aadce2a7dc3ef0b7a191bd18323383e8ca23cf8f7d16219919c884698003c72c26b58f90ae9a345b47146d57cd20f3ba185e0e0b7d297b4cfcb8de6c575f5dfa79eb91963ced8d08ad2833f442e6f0535c3581dd95d469490d247cffcd37d04396565bafb9176a08909858a8db670002bfd989be9e448a29019d9f436b54c94eafc99c9a6cc554c31b4975041c9099425e29070444f8cd2c65c73a1faea7a29bb75d2dd15cfe8c513a9f950edc472eab136bdc8c307317977e66ccd33e108dee950ecce317edd9150a02d1b6bd52ee41f35a41d63d4f08c0967cd7eed18df1012b51ac263d091212d54e15b55d3ade56d645048ebaf773db33ba0340aa0fc184226ec16a81fc47031de33f76b4c5444e72071c3e0c1bcc8f07f39fe59c422fc9182c58dc12504a88c2cb119a55df2aeb37dd28efd75541c4660287327fb3f3128c0b2b0aa41aa87db8dd45639ef0a5fec12ab6efe0634b7a536774a444dfb323b56e525e351a7fab0e49793f993b1d63ea0c061a8edf4f0c68f562cc4ae5578553c16be0f5d3cb0c58233021de274273ced71b0aa2e24049815ae6a541ebbaeaf5968218850bfaa7fc8635b82b2ff716ca0b9b48fa806ee48229d1a5debdf9e8555405951cb239f5c49204cd75b66554847e25bb200b09e99905b88891bbf5ecac0429ef541772cc0861b4a77c9d81deed9cad43eb396dcd99718b97000ed59b397938f11b1bfaef8fc0f940437aa106553dccffdaeeb1a7dd3f847a946a73c05b2339ec021e86578404a624f9db073d091865576ac6ac0ca46a9343acaacd542a3d52f737eaa88ecc85a1cdf4216d898a0c0fe89ac9bc9570714c28c82c20f482c8f73f434e363d0323e0030a250c945a6f4e00281b12b099c7dbb9f9911394fd734f0e11cceafe3475f0c0d9414ce96f6cbe90478028ef438a6a97f49f90788a9a402250612120c32b02832b8b8fefa7f3e0971dbcd9d2e5b409d6823097861fc5d10b00b43708d052f629ae9be65ce8fd91d86dfa75468be82bcc1df2d355e626de66e0b0de685549f92636afc74fdc3ab4af7d7a9fc88c45820e949409d090c2603de74d337476d058efb9591978cdac347d35c992b54a95ac2f5585e5bfd1d56ecc9966977ec2b131edb20a7ea38bbb1a29bf1df04b317caafc01db63226bcb4b302e0d8141e3f27f753b670448da4953a571b49c509622df86c0fe66b55051e681aa0648e4bda104bce02e28451a6b332d8787db93d0e6533ecfa6cf5a4aaffcc8153790460d5fc8b1bd9822ecf8ce563bb3e26deb1e8936c5aa3b447916a9ac3e01ae18d69373d6c275156185d6a3ee6d40318c9d8a06582a0b19ea5785e4e1390873d6f673e6af8adac988b71b087cc67298c47e444afc064253884965113c22feb8103516b8b935af570a9d9aad152b670d224313712b0b30a32ad97e36e94d0cc8896b158536a24c9c44357055c2dd400d552449a7994de88181807054d700c45a416c533c5e39fabe56eeee1c578865291dd8158d4a2e61353ca7390fde58a6a9f14c999e9a45ec8fc7407e4df4025c11b754ce23e3d386217dbf08a622d81078941f82198dbe4f2fc52fc4b11aa9181b5248ef040a06de1668cbcdbc12dfc456618f35bddd6b78c1fdefffc1c91a50b725aff718d470210120650e455725485c1df6d47c9d955d609689d52ac8a32d19ed9434c76010719f13e6bc1e9275cede8c53534539822ee3904920ed14b168c6f3300048448b8c695d506109e4f355a94b69967f90f680c7885e34d1ecffd1431db75d3075730692e52773f546fc3c941b06cb79c9a862b60b329de8d35c7bb54b28732b0345ee199dea18a0ab916db903958b78179364dd697c5b771d61997cd3f14b93e2687535ca80fb3e0a88a91b30ab9c583da35217c99df4f7fcd60e3896f58bc76bd7217a299b38951d51bf6e730aa4d92a4bcf4eae56b8cd3d939ab028483477beb62853d8b556531a3ae6626f48db27e9282cf6f666c7d660baf475ce583963f87329fd8a19d2c2e894647fd12321454ba380da8c9a7cdf408e222cb66c551d7a016f80505c10a219453b26351fc3eca686324251ff8c240ab1adfa06f887b00258a76fc9a2998afbcb5cf4ecc327a94b7ed6fab99fdab898c7fcfb51f40229737c352a64b82c335015b60766eb751e10abe26e102b0fd4e9a6d13d51d9ae45f88d6cf899609544f8fb1bb3749e3d821c001e0440eae71637d7a5fec86197289e97bd25c72d31defa9f4c26e4ee5bfc8acdf01bde04352db0d9250b782cfb6da9387a175bbe75534297afe72e3572a68aaecc3435d698ac4e3dd0ff328ed6123f7b57475c4e95d4141804ead18ba3e14780e3e3168193befb6065d7c0a4b8a97212402a178129eaa6870209936131baa46916c1565cfad3f0099b383ae066f663eaf872f7656a894e9566820aeb17c65392f7d22fe58d1551b078f0caefd2ddd846c73994826ebce498b0ddeb90e9844d34e7ef3ededf965503b4d7194f5b528b6a2b849ca5633894bac1bcce52009198da3090173ebebe3e331b5c38763b37050b59eace6c02673e65a3da66a10e84129bd49f443ac11b8d472718de2f93271251d6aabac2b43b1355f28105b466a8a206eb8902fa47734a2ac22fc0c89eccca4df7f35b195b467ef08705782990d6dc7af7eedb7c5078273bd7d6196ab05d80115b1ac7d60984cb7cf0fd538e48bd1342855f825c9a00f322a84daa5998592cb910f82dc6a1b5c6b0c14926d22222fc88d83b24381c51d2586694dd5c5ddd510f4d3d4ed3565c1bd24196b57efbac835b30aed5f9f95aeb11a3159aa420224b5f2f55207560cde4edf2ec34cf2e4524346da58ba95315e94b2ffeb8656b210840449dc779e0e950f3022fd228cb30e7d0809f9f6686c9cd763015acb13a3be8133b8e8d3b5439d75f8d87f1faf805bf5fcba7fc5a4f89b03c559734bf8e9b2d6270864c385dc16ea718998929ef6b2873596e0c3abcfeb6f884b2dc2f8cf3aa5ad94e3fbd80a940f15c1cc7d5727d1063859cae0075a0f65b9a5a72fda4e9ceadb61f6e40f49c8ced670e40d8b9978ab4707c70e250eed94b4bbe89651a0c741b26c8029a474d65df2a17d67405b356f493e82b23430a423d485c7cb6a23f068c7106cb1e047da54c75c1ee78cbab6a4e95eff97b1413928859d704654ff40fa27913b1d192dd5a43817f947696662302a7f29797740820e1757423333a5542141db4fb280b35d495dbe3466e0bd665c3046790fd51ad66199c132cd330c99c0ee8d8166b99c83ba7476a7c3906ea015dc2752d4dff588762bf365106f53a80bbf69de4e3591aa6d3a9a1eb278a3570c48c1bee1053bfafb2c49ca30f783ebbb17ac939791f063df4c61f50050ebd7ed2e9dbaf0266947aa5c9dff43cab9d393d157db668f688690374425687dc768f8a497d9cef2f2de84aac6cba9bd1eeea6dba45a75c2b7546342decf800777ba5e4212f382da9560c2135eeeb0b315112b7b360c34a3afe82479f31a55add9ee0db79625e8ee0d2287a4dfa82d9661ac418f9dfca4aea0ce2ba222f340642d24fabc7784cdc694bb1c15eb04c6b7b57d9adb3648dfc1d225ff026492aad4287b35cd286b3dee585bcedb6fb764c403698d5cdc0158dfa34db7ae98c1f21dd87e54bb5299baab9c7f5054f92835d4e3c9272079060da6a202da425e127460527404cad3f6dacdbb537d0cf12f186e3cb91828d37b84ce9fbc19ac142c8589a580d5203ba7e11ba7faecf71c364285b97b749a810a3ff501559624b4c6265b2da83fc6470d83b36302aed30528b4779daba792b8bfe6ce26b0ad7433086a04d31fb5f9224179f66d5cec7bb53414500e2a0ed2dde199d997c447bf8a5bcf461b1e979ab6e1587c89df584dc8df999c59d23805c1ff8ea0698c6fd54ed9dccc788d7cf4780f7943ce3a86feec6af74ec4db3bc7efe147a5eef710e32d9d9bf6f9fec288ab13d700ea1f8af30dbd90de8e16168a6a3f0a2807ecdebeb46e70bf3d36ef784b1651f552d2ab546fbe8c1d2515315382970eb2a5720fcc5559fffabace8b45feb7c00d19cf5ab9f46369605831e9816676ea81ac6996bccb788da5f81681da0c7e8e5253b1e052a17a99848a44b7e8a1547aa1b8b3ffa47fc600e44e4bf8324338f05bb060134b9b5f5e2449930d2ce42879b6e53705ac23e9448876205110fe3071895a5a0fd851cf917680a9b3363033e5d57d8d5355da942751ee434950b402cba72e748183afe25c4c1d68adc825033941ef2451196a64f55eef2955a41e6c142d13940643615d5aea2fbaedd0a4772caeb84caee4b7adc21fd03cfb220e7dacce73ef970b5002bd4d39d8b426e615b52ada57d5ced826b26010fdb0c492e1fa199e1c42e6f7d3563360f92c58c01e133171d6293326f344155b74851f780cfcf02af1befb56de78a89bbce92bc2e068eef391eeb34be9145c64cbf971f620345ef978b48b2e14b32a806f78f9f85acfa32d5c27ac26cb9b09738f9320c3ea643d3f7220a3b3f13445818801a97ac5f947d949270dd33cef52cae4fca51ea6fbdbcc6803e1a61ad6a79585b2f4734c2c0d34487d634dd520d5c370028f6b71f1b833b7158baccb769d91573138ba759d751074e83420f8a3b423f6646a2e056fa6878c8c3922bbb9c25f4ae94414892ea50077e79d1f31ce795cda533c0f5eab7a7a760a606e4610cb63334d93f908eaefefd00ed3badfeaa2f1247ab49b2a2e84921999bdfe7b860a9b4e1cd9612bd6df354d4a32577bade49ce8269c0e9328838adfcc7f25deca52b2a76a726d0992eeba7d526605484c9f3b168e076feefa01ca0be2f174eb61ecfd2fcad6dd2fcf5892a4e4cb9f0b3079f992bec190b737587ba9e342039ab86beec87384286321c15035c016fb48605a3e6005655b5ada529a0635b08509418c8056dc16866f89899be67b6c3045683927adc0ace229f3d139d95f4ed77f9a255dcbb6fad12b30160dde5aec0adf72f9eafbfb3c85711aab8217e0f8cd5fc97aceabe0cc5643fd454eea352998df75b2e14a64e81774a976732a1c0985105a81531681517a6b81f5117a1a92ff527274b3ca2af3063c775f6e6efec99b6650a3250c89aac2f453606a5d8224f9b2dc9dd7ac43f2fcb120732b9d02703adc66c95ff9ad6c09702838f7559ca13a4e966babb435a375dcce4cc40b56c774069faaabadf0b495eaf6bc1538bc93dbd4dac0eee26e3444a765ede3dd559d16442ee030b7c63576c2bb90994772ec1a4824d8d9e0b9d7d54454cc5a1824dd23f1979c8a7be95ef3397cc5e2f6ccf6adb118fe6ec5a1ad72611f1e526a8bd9946718cc50d0567ff042a3079d581ee8dd2b5b76235f298656029602cc1b0ad59d2172779e4669f17cfa2594a5cb0208a9a46b9e1e09aaa5fed4d7ec67935f0163187805f2c351556bb3ca88dd2e28c727d5556b8e1443ec48c1100a62b130572feb25849a7d422070ce9fe49f0857521a6a8e0e3425ef9b1ca7770e7f2821536c28e0c0e9abcb0eabb0c4254262b0815004c00662fa7f59f2ebc92cea3b691dc11ffda10a4d0cfe4658e64080f45cd16195ba317139cc07966bda4d06b3b54c17e64a29fa08fb7c35366ccfa1f2c5dc8ce7b11362ecaf6057042d838e1dd2347439c2d85635410344fb781dee938d0963e4273d6baf6dbb2259c06a8e9b4a9b0853e08cb02d8ded22ca96b1bd10778bc0ddad6a33ee6438351dea604599fe7b01067eb0d0851c04091ed1031886eea33e1ee3fc2f7c2eee0983f01c210c9bd2de344ed579d3006f0911215193aa09b8e79bb59b2662a7056fdde32cb19f962f34294af3b8e7147cdd894eedec3e9f0b1d4ee6c736eba1421ef2547d9339b05b30af2a4621143eeae9a7533c1ce862df29b2940957c23f95d49c7d5635a2386add4e462603bb7ba7ed0700661705cb68d4c4fa3325ac01ef2976627fd903d917da71d5c36d9b73ad0c8349a1aeeb7ed2470ae77fa344e184677117b133c1bf248453a8a4ea265a450455223670b7ed824b9edf3e89719d3e78ff41696cf2f50da830b41f62a0ed7ef39cf44a6f6981be7f505a7628de35e029fc0cf54703744b5ecaed3fae208abf5947e225634b43f264e876cfa9dd0509255b91dacd0f692121ee3c14bf99cd1be3971e15aaa57d776b5a9cf8e7ed696824a464ca5391e7d71fd9c8da750b11b4a352c9f0c61181f43d938af1d53669d2db43bc8d1b97e33012773ceadbd60ec2328c0f235292b743f33f975d3513b7f3e593caf59f5d1ffba9c483c5e6b766b78098cf57876940166bc63c2893f369068a273f3fb05b7691704429f9082543bad0f7f4b63f797d2ee661cee24d4e803b9be36039190fe55ab2f1491f0d40b9107f203b43425cc7095560121e08adb6264fb7a4ea1cf51aa598ae379f61562d7dd10d9b1828b94a6f38649061d39ebeb78253277b861661a36fa2837a849e1305600d3d90531c2152a63a5565efb26b80d32cb7cede6e92404cc07c4e7e203533e2463d8662a251caf55e0561131aab13ae68a4f659f0eed119390dd3f26619a3211416d4b462138525b1453e97f763e8ef3a6a0f308d76db9ab4df324f5e73070b203cd891409b78f778905fb930f4d1960860a2333d7ef3e0121d2e8f50a4508f2eeec020a464618e2c73b55101e5ff8b86e4b3f4e172e1cab302f4b120720dae97f960d34a30b1c5c21630a9fbe804a7e47b93fd0afbff42fd1ffbb7ad8d0182231cb6dbba9184d90727c81c3637b196e54b8588da1afe39944935d37f8a80d8542ab1d40a4663ab7a290423b3eb33ad43e8539680fef408296e90967ef6f05b8c98bb62a9751ecde2c175a8059bd76b06ddf65f89a22d2b3b2aa0a6d8fb9f26ca3990cad8550b719f89ce4900ffd28b1e7fc1e6d5abe54038c9a6ea3691c8ec089b1cd093393962eb69a934ee154d451891a1d936c92ec7feb681b92a9600cf111e5faaab6bf5660447acc47be9664549cf9029bb824aeecf884bc90c0ea378112b697674043c8752d7197f5f908a0b8185393a8266c8f070fd4792ceb62840e34e504c5dad514986d787027da83f07e0bdb09850d197b1aa363115a17431290e9ca6c24d07174498320511b787ae94980d7e9c85e848d6a19787a14fce1480c50532b450a5a986a200b180e887be17e08ed5e7f71f5b60caa7debd1204dd339e5d70e2b6559536ec34c6128b5b64115e6916fdfe1c38032722f7a4d067e7d93bc2c424686ea071e45beeb2217268e0040f795e6cc0f574e533e06f615715c454da2e4c00827f814dcd24d5d62cbbde30e09148cbbd35cd14256502e50137f37bc46004821d505a342c11569cb71af5361cb4492ce0ca1fc1dbba019dbfbc383ada632c24d22371418afaec16c4f1965d7ebe0d13e1180b3802e2fa38e2ad6953436e781547b274cece4a3b256c5cd6282d3699bc88d9e1e6436d3cff4d11a4ee555388a9517ce2c7b07d4cc1ae68e35218f260fa762f58ed0af37d872143e14861592effcbe6f038fa86229b8f6c310d8d08ab4d5de3ed4940e7f87b365e02385cb531e89eaaabf07cbe395e5af2cd3fa03dbe4d4b837bbfd5455944a8ef340be0e3e3328478231335d61cf5ee322a563b2586585631b0053c3e6ed18b62ed568e6c66a584992592088042d9370da9a10c9b4270b9a50ed4cf579a0d0d1eb88cc409bafa69a5e9f88b5604b50f20fe76a8dc35e4cccd49c51230d455a49a9cd45b31e46536132adbf5c999ebfd47125852f4345809d5a3402dc59b086747a321fe7e71426ea2b2e514e4c17eab7f00fba46bf58536a89e2c89143db533056b7929fe69f110711aa73b5b7bafa91ab9447457acd7acca842746ad0b2e9b8f1395dce5278edcaf0dbbd26ad41f8de436a61a114cdd036a4bbe3edd8e9ec1cf9021424271becd4353794a86e26cdeb9b5c0e38ea7322fa50790cb9f81186ae04ff7dd9c85a9370b864da715114fe94bb7d4028dab0c8493cd03e3d51f2b31280e392246424bf32b1b156225c905cf53d98fd19763bf1645302cc7779bca4b327c15e34210f6774ffb04eaa29ee76fda827990538d1fa40d72757109139886c47ee8182c7f42aa5487107dd97fa25a9390840c11aefafcf1c9c38a10e129043ff2622877424e89ceedd1ccdf7412fc2dd2dc45d6d3e697a216ff0cd995bbabbf0a49ee8aed30c0269cdcfbba366199d4585fa5b83b38b9ac86aae7fd406448ad0f3b63643601be1ef4f34a99cfe42d90c181182ffd3a1ea3b3b92feabc086acaf1aa4065d1814a522ebda4bc5a3126a7e51cbcfb0c2d97b43a637ec4eaba4bc7198d6eccb612c581bf0824f28a1dc77709d6ec1eb9705e5c62197961d3c5edc4367e63843fed82099967c45ced4b5c32fb5ce76ffa34882a64d3827062be4b8764c33cea31b993d935d7e5bf890ddebac1be64d1b8ee4a07d373c32e7e96cf0f6c273d924f4acf136fe5dbacc628b58a2a1e9292bdaf1b0dd5630334354cc06b86e7bde3dcfb9b0039c12f96c64d063cd3ed7186987ffdbf8eef967fead41417e456827918c33e2a01e028b282dbffa623088ec8234c5caa376614e1aa8839f3f46e02800b17c23cc8f13b3b45b67f2fda79d036df8e179d7938231dad5cbeb3a0a943b30a895eaeef36c8c3e450a4f49115a516ae4d9c6d2e5fc71385d751183a30140259430bbc4e4f5417ba24c47c32cb2c84bfbb09c415fa469e968013f10708af73ebb1ed7bc65d26db57a4d33ac3283fbf81ee35e5a72fef23e32bf5004c85063ce85f8ff35cdc67cee038bddda21a564826c92992169fed707278d8a5e524854818f86e8e95369bd2bc38a52568bf090a48dd1591242ed22f90ff4b5c792843a668668b6174f9ae66645a15350c0941c52c94ed77fd873ceff494d6486852187039e8155ffb5712ea315969775ec23f26fcc8c9628c3c58b2001fa98427cf9af7bb829c6d0b3406b70fca2da8675028f9599fefaed966ca75c73bc443b5ba97b61df9092aa4709250c4d5e6b02be6bed92f266aafc13483dfabfefdeb3b3a8596034e50c6a42c0d5e76fab5352b104875714e6b87d29176386d7ec004b0c17f4f8a9d8bac63b01519027627201d544f999e07690039f451c98c0cbd7fe12c8d2e0645f3331c6a27f4ed6bf82652ddaaa5d3e7b5d47c5c42c9227569a0972634f22c6745d25b4cd4890d31d0058d57ba44cc05a6ebf0a25ad2e4a6a5663f425395ea604ff9fb8fe300a0d2ce7c065d01fa29e42a0e8255ebe499edbffd98a20ef86ee96509641c90754824900eb1af346046bff0e8cb4698a1507424adf65f0e7a1878313fb8a49392b51bda085b66b1662fab03d920f463b08fa6e01c4fd551852e9c65bfaf9e9be005d7cb9aa2837f9b728b78b0a62d454daca7db85d08f321e0b3f81238e366839157b7b3d5d46ca27f6417d4377f1047f42421e790c53481836df79b674c26edb5ae3acf1fecba21dab00665936f1a8c45d340b0cbdc270553d37a97fc52c6a451c1f328f1541988602d66ba2350a688a937b951bdfb2f59c898d5b458c4006652d316edd47c6d6ef3a49cddd66ef448b9ebfe82f9050d4452b28c5503e1371a16d488f446006c6b7fc158d0780a0c92f633f24097cea6d6a737f8b8e610edd456691ad88f09bc0e85868dfa63d7ad3ad26c6b749fbcd5b000f1abeb19babd37a05f1e908ec0feb9f2ec435cf53eafb1615c4798add52d8377ce7a52611cce7d9514cb0f0944b415e59bdbdf6f340c5e0f53c93f1cd736693643ad8dffeea4bd435216fe33ccdd8a7fc4635f97b01f940730abe4c9817283d2534b86e394aeec62008283657a7f3437b3e77711a164ac77bc1db01b2a9b17a997daa23fac7a54a7171b559d2d269cc7e8625b3f179d9c99c7e710b7cfb3efd88133d799c82a9d634f85f3b2f241db8fa66af3d940be5f8350e3f8f065efa1f3f7fdd2316689b033e149874272de54f1127e96b137a2ba0e1fe58f6e69cfb0ba778ba800bde9eca8f136e101e9c9b23a79c20c6aa19fe97b4b566ea46ddc1cd1687cc6fe541aea1c3102009efdc1a3f12cfd9341b2ba23a843a81b09cd581d1202ed5ed799e221c2fbf71af673b560167d4496c5720ecf90608a309d1da0184eb47068e6c34c1adf85c26f2a79e75b96a6d77b51cb1936eb823a1a310d82a5de49464ed934458e8ecdb421c0103f627061692967f92554e3542182ef9d41fedfff31b832606805d2938ff56249a194ee3699b67f4be73340c7f50643f50e51446488533e9ed5db29e69b78c9658241581b26392624f23becee69cf592945e366a0472ee9ea7a393b07b220b7484e25dd5d442e92c77d4ef0e236409dae7f8090205efb8058993fe775785998dd3d9b0da1562fbe182d3243119baa5e48c20d5d632e1faa3cbd02cd41e196ba9e94f936b5b1e52e7c73063ee688c503412611b9e30e41a20281d22b755333904a877ce0aab01ec69322b3ee22a580a5ebc2813adccf0a7726fd6de739e452049336b0d9bb50b4485f9f4222657e58f3fb7a709b7d544ced4f1e6183bf20e91f23e3a8b6de23d0fbc6b25ffba741996c9b39910d89169b92a0a24878f089d51d3bd4a2b9f2b30dd5ce0c97862590c3ac0d2cb5df4cafb12fbb1db063eb3995d43190c0290c332fb5c580d1954c912081efa8628a60e2df1ed04e8787196c2c47e0531da71501370c17c60f1a220562805cd20071284e5b3a7cd26d2a899d316263388614a6155f9138be87827939b463b94778bc41ae40c22aa0976e28fc481879dc398c50570d0de244943ee499ca0001b85bd1b784614418616581eb0503df241f23077054c083d658d16ab2230cd2071d7cd935403d480be656791dc57defad24cc4a63aea433f292907a800a051ad5583bdbce13b885811714f694b916f1afff71f36b1abfe4cb4cd73828510a55bb3f874ff34420a29587937fbd0c98189c5c77c1fa07a8a10c1484c8972326bafeec3a4f3a66f3233f5fb95607efca4455b8a7bf6ca3032ff9b0a2b5f73de54a07185b29fdadd0a62d5439d30c466cda09027aa3e683c68e60e38a4c6352abd67df5c618dcf2a1eeb91c046e345add805feca54ab6cd4b0f7ecadb3825a401ba62b96a2fe4d73afa3a207d532d9bd0405fede58cd1deb47c6545f8c2b8678c8f5017cc1ed3ad22f19e93b913e29e6321b2b97a8e198746fabf7960237f900b4e316b7db2278995e613ef7728ce645493144d6042f8e5d21b2a38f88dfaa13fe07b4d7a54938ce568142228f3ce0d5c979f990de62e822957201c726ad62cb1bf963dffc20b37b2fcb0e5f6bf426f163b45468ad3c38b52cf1d0577021b40a1f4f08996f45b45069ee0f1b6abb78766b601435fde2579045646203bd93d67a0af78b53e978f1aa9ccb2be5b3b9c5f97e2ae11d62688a757a03bfa229f508b57e7f65cf8e9748be265348ea67604d81924f1cdb93621b91b02e2819d3d41af98cdb0949130c907e5c6799e5879e14e486f0b72fb92b2ae3797d8218ab9e027e4650813945ed9e91ae94b94274c5524eedd36ad451a0ee1e507acd3f75c5d37ce1bec7b006d72d74bfb0dcd969425d9461c73c4e803e155ea9c765d27ca7ae39100d74ad38ae62892b3d527a03d5fd9bfb48ccbfe5ab9612b0548d5265591700207d867f70e2c1e735509fa237bdb99d6202825aab70e45d948984b169ab8aac447dcaf2bb0a4ccad1e8da320098b9a4d1bfff34e66180252228b89093eccf3bf977b029f3970eb5cb0b2d0d96897a47197f021f15327610aa53abf9c94d98f99083af1d3f8ffe19383e41918aea3754814c607c8d87ac7c187946ee2273b995d48e3addc7d1a6cee0cac46a998fbeed1c3c15e8fed8e688662f8673557149b8cd344765d62a30d164c64191efb8378ddb375c7b3fa930945b265a5350d42b42f7e86b28bae26002788ebcf15cfc40a768feed461ba721c12475f963a2ebb23112dcb87716c11822e4461c369b7355ba13f108d49eb5945cedb6dc8bdc1cefb6d207791fe37b4e81d70f6f7e50ea5a71b363e5b4f9255cd866c52794168d8d1ac8a8db2beafc33e11f072edc2d5ebce2dc62d9f754b643d8cb2041b7099f68f1935b4f37157935b482f3bdfaee39d28fc99cc1da6eedfc6a25a630a0e5e95eafae73cb4608c4e503f0d226c121e38e157d72eba4e3da45812c6e4405d8c55a815b032a01e11ecfe9719fbe56b6da6c558aa63ead034400ed096f09db3d0536feb32396a196955604da9d65b201d3f4bea0b00c16642eed0b13d5b571eb3e670c84c56cc926901b3bd7ef13cccd88aa2d6be119c64e8dc8401a9f524fe0f580ee35b6c57d3094cacde6f0e1d89ae31e41dd056830743152c5145048be0e58aa40b4b3ba034d3c87c7782f8e4fac34a57bee3e9c19386deb57774191faca3a6f9a422319513d18b053f0ef27a83d4b5e5fb0e8f3579ed1b62a8b3b0a1f11577d5e3fbfdf3bbe2b92c30d2b165f88b72b7f463513a9fb58519f51e943f2b8cea55956391f96bef4bf89b853c5426f417a84f9cc33e828cd6c82b9a42adc41c1876c85534be08669e78e6d19a5e65ae1c7e4404c4a65581edc57c05c6a926e626b96118d0ef40c99a31b8f9966e0c73cb70268e1b667514c28ad034d31ed42549926cc4ff7c4ddc40edbc813644cdabf9d625140e20ed9d5e26eda60e03847249608257246a389fe51b03dd8bccb49ab606efca03a7bf101813474bfcf04cd4d62e6cbb737545a21dc47c378460f805cfaa57b18580bf4541cc2415a0d0125cdb490b52ffeafb91cf2717767f273a90dbf8f6684c866d5e76d3fa74111b524f60f24eb32c41c53acf04eff7e476b22284652d4495cf8e9940a20d1266b437626fbc7efdfdca8d78a3e9f03b763a7ecaa889b0cd0cb26cf80a64dacadcfd36ea5c0104ae4b8b5efbc9cd5e8ddd3fa5b36efbd9c6476c8d4d41e8b0fdad28dc6d8aa93166d62dd078ac57b64393a98ef3383d137e7813a8b067c60dcb4e898f4c78efe3afcf8e"	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050705+00	[]	\N	\N	\N
01a22d22-670b-7f22-8e84-1e193696b16e	unserved	echo	0	2026-11-30 15:45:59.050704+00	[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050704+00	[]	\N	\N	\N
01a22d22-670b-7f58-892f-8791315db8f9	unserved	echo	50	2026-11-30 15:45:09.050703+00	{"null": null, "text": "Grüße, 日本語, 🐘,  , \\\\, \\t, \\n, 'quoted', \\"quoted\\"", "float": 100000000000000000000, "integer": 9223372036854775808}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 15:45:59.050703+00	[]	{"tracestate": "vendor=opaque", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}	\N	\N
01a22d22-6729-70e3-88df-cdc838b290c6	all	echo	0	2026-11-30 15:45:59.081206+00	{"text": "größe 🐘"}	\N	\N	0	0	2026-11-30 15:45:59.081206+00	2026-11-30 15:45:59.081206+00	[]	{"schedule": "all"}	\N	\N
01a22d22-672e-71f8-b689-8186b7dcbcb4	unserved	echo	0	2026-11-30 15:45:59.083807+00	{}	\N	\N	0	0	2026-11-30 15:45:59.083807+00	2026-11-30 15:45:59.083807+00	[]	{"idempotency_key": "größe 🐘"}	\N	\N
01a22d22-4f89-7fe4-9c28-5f9fc24deb7b	stuck	hold	0	2026-11-30 15:45:53.033197+00	{}	3	\N	1	2	2026-11-30 15:45:53.033197+00	2026-11-30 15:45:53.033197+00	[{"at": "2026-11-30T15:45:53.069782+00:00", "node": "c393094c-98f1-4584-8f10-9a3a3de19c70", "error": "RuntimeError: the first attempt fails", "attempt": 1, "duration": 0.001567, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 41, in hold\\n    raise RuntimeError(\\"the first attempt fails\\")\\nRuntimeError: the first attempt fails\\n"}]	\N	{"progress": {"message": "halfway: größe 🐘", "fraction": 0.5}, "checkpoint": {"page": 7}}	\N
\.


--
-- Data for Name: queue_limits; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.queue_limits (queue, tokens, refilled_at, counted_since, all_counted) FROM stdin;
limited	1	2026-11-30 15:45:50.213202+00	2026-11-30 15:45:44.952453+00	f
\.


--
-- Data for Name: queues; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.queues (name, paused, fair, aging_interval, created_at, max_running, rate, burst, key_max_running, key_rate, key_burst) FROM stdin;
paused	t	f	00:00:01	2026-11-26 15:45:15.88064+00	\N	\N	\N	\N	\N	\N
aging	f	f	00:00:10	2026-11-26 15:45:15.885716+00	\N	\N	\N	\N	\N	\N
limited	f	f	00:00:01	2026-11-26 15:45:15.887993+00	2	50	3	\N	\N	\N
keyed	f	f	00:00:01	2026-11-26 15:45:15.889523+00	\N	\N	\N	1	\N	\N
starts	f	f	00:00:01	2026-11-26 15:45:15.891856+00	\N	\N	\N	5	0.001	1
default	f	t	00:00:01	2026-11-26 15:45:16.774929+00	\N	\N	\N	\N	\N	\N
declared	f	f	00:00:05	2026-11-26 15:45:16.750803+00	2	\N	\N	\N	\N	\N
stuck	f	f	00:00:01	2026-11-30 15:45:49.973536+00	\N	\N	\N	\N	\N	\N
fair	f	t	00:00:01	2026-11-30 15:45:44.797329+00	\N	\N	\N	\N	\N	\N
\.


--
-- Data for Name: scheduled_jobs; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.scheduled_jobs (id, queue, kind, priority, run_at, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved) FROM stdin;
01a22d21-fb4a-769c-9e56-9ad940546974	default	later	0	2026-11-30 16:15:31.492509+00	{}	3	\N	1	1	2026-11-30 15:45:31.434371+00	2026-11-30 15:45:31.434374+00	[{"at": "2026-11-30T15:45:31.492509+00:00", "node": "d03b8391-788b-4eae-9f15-40003e878427", "error": "not now", "attempt": 1, "duration": 0.000507}]	\N	{"checkpoint": "later"}
01a22d21-fb4a-7ab0-9be7-7cb9e5655d79	default	snooze	0	2026-11-30 16:15:31.503892+00	{}	3	\N	0	1	2026-11-30 15:45:31.434371+00	2026-11-30 15:45:31.434375+00	[]	\N	{"checkpoint": "snoozed"}
01a22d22-670b-7c79-bc5c-101bc4c58682	unserved	echo	0	2026-11-30 16:15:59.050703+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 16:15:59.050703+00	[]	{"expires_at": 1796053619.050703}	\N
01a22d22-670b-7367-aae8-63c4b21fb5c0	unserved	echo	0	2026-11-30 16:15:59.050703+00	{"null": null, "text": "Grüße, 日本語, 🐘,  , \\\\, \\t, \\n, 'quoted', \\"quoted\\"", "float": 100000000000000000000, "integer": 9223372036854775808}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 16:15:59.050703+00	[]	{"unique_key": "größe 🐘"}	\N
01a22d22-670b-7f87-a614-7e832e8ceb0e	unserved	echo	0	2026-11-30 16:15:59.050703+00	{}	\N	\N	0	0	2026-11-30 15:45:59.050703+00	2026-11-30 16:15:59.050703+00	[]	{"group": "acme", "weight": 2, "expires_at": 4102444799.000000, "concurrency_key": "account 1"}	\N
\.


--
-- Data for Name: schedules; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.schedules (name, source, cron, timezone, missed, kind, payload, queue, priority, max_retries, timeout, paused, next_at, last_at, error, created_at, updated_at) FROM stdin;
paused	\N	0 0 1 1 *	UTC	one	echo	{}	default	0	\N	\N	t	\N	\N	\N	2026-11-26 15:45:15.896568+00	2026-11-26 15:45:15.896568+00
wrong	\N	61 * * * *	UTC	one	echo	{}	default	0	\N	\N	f	\N	\N	cron expression '61 * * * *' is invalid: Bad minute. Use five fields (minute, hour, day of the month, month, day of the week), or six with the second first	2026-11-26 15:45:15.897688+00	2026-11-26 15:45:15.897688+00
one	\N	*/5 * * * *	UTC	one	echo	{}	default	0	\N	\N	f	2026-11-30 15:50:00+00	2026-11-30 15:45:00+00	\N	2026-11-26 15:45:15.893619+00	2026-11-26 15:45:15.893619+00
skip	\N	30 * * * *	America/New_York	skip	echo	{}	default	3	1	60	f	2026-11-30 16:30:00+00	\N	\N	2026-11-26 15:45:15.89554+00	2026-11-26 15:45:15.89554+00
declared	tests.handlers.upgraded	0 4 * * *	Europe/Berlin	one	echo	{"text": "each night"}	declared	0	\N	\N	f	2026-12-01 03:00:00+00	2026-11-30 03:00:00+00	\N	2026-11-26 15:45:16.759722+00	2026-11-26 15:45:16.759722+00
all	\N	0 12 * * *	UTC	all	echo	{"text": "größe 🐘"}	all	0	\N	\N	f	2026-12-01 12:00:00+00	2026-11-30 12:00:00+00	\N	2026-11-26 15:45:15.896074+00	2026-11-26 15:45:15.896074+00
\.


--
-- Data for Name: schema_version; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.schema_version (version, applied_at) FROM stdin;
1	2026-11-26 15:45:15.723891+00
\.


--
-- Data for Name: sql_submissions; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.sql_submissions (jobs) FROM stdin;
3
4
7
4
60
1
1
22
1
1
\.


--
-- Data for Name: succeeded_jobs_20261126; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.succeeded_jobs_20261126 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
01a21888-4e7d-7b15-9927-c4c3a1d69a33	default	hold	0	succeeded	{}	3	\N	3	4	2026-11-26 15:45:15.899364+00	2026-11-26 15:45:15.899365+00	2026-11-26 15:45:25.593132+00	2026-11-26 15:45:25.660987+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	{"page": 7}	[{"at": "2026-11-26T15:45:16.857715+00:00", "node": "8d1fc60c-4838-4feb-8251-60da7cee43ea", "error": "RuntimeError: the first attempt fails", "attempt": 1, "duration": 0.001342, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 41, in hold\\n    raise RuntimeError(\\"the first attempt fails\\")\\nRuntimeError: the first attempt fails\\n"}, {"at": "2026-11-26T15:45:19.056477+00:00", "node": "8d1fc60c-4838-4feb-8251-60da7cee43ea", "error": "lease lost: the node that ran this attempt stopped renewing its lease", "attempt": 2, "duration": 2.171480}]	\N	{"progress": {"message": "halfway: größe 🐘", "fraction": 0.5}, "checkpoint": {"page": 7}}
01a21888-74cd-7f90-bda6-de9ca5f64ce8	default	echo	0	succeeded	{"number": 2}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709571+00	2026-11-26 15:45:25.711421+00	2026-11-26 15:45:25.716244+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	{"number": 2}	[]	\N	\N
01a21888-74cd-7537-a30f-bc32b1cb15f4	default	echo	0	succeeded	{"number": 1}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.70957+00	2026-11-26 15:45:25.711421+00	2026-11-26 15:45:25.716244+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	{"number": 1}	[]	\N	\N
01a21888-74cd-7367-9cf6-6a798d16bf4a	default	echo	0	succeeded	{"number": 0}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.711421+00	2026-11-26 15:45:25.716244+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	{"number": 0}	[]	\N	\N
01a21888-74cd-7dc0-8511-575963d10941	default	nap	0	succeeded	{"number": 0}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709578+00	2026-11-26 15:45:25.715783+00	2026-11-26 15:45:25.722838+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	\N	[]	\N	\N
01a21888-74cd-71b2-8232-f3e8b14f7f50	default	hold	0	succeeded	{"number": 0}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709575+00	2026-11-26 15:45:25.715783+00	2026-11-26 15:45:25.72274+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	\N	[]	\N	{"progress": {"message": "halfway: größe 🐘", "fraction": 0.5}, "checkpoint": {"page": 7}}
01a21888-74cd-73e2-a2a7-03ca5c9eeed3	default	hold	0	succeeded	{"number": 2}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709577+00	2026-11-26 15:45:25.715783+00	2026-11-26 15:45:25.72274+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	\N	[]	\N	{"progress": {"message": "halfway: größe 🐘", "fraction": 0.5}, "checkpoint": {"page": 7}}
01a21888-74cd-75a1-a150-77ea13d68c50	default	hold	0	succeeded	{"number": 1}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709576+00	2026-11-26 15:45:25.715783+00	2026-11-26 15:45:25.72274+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	\N	[]	\N	{"progress": {"message": "halfway: größe 🐘", "fraction": 0.5}, "checkpoint": {"page": 7}}
01a21888-74cd-704b-b0fb-b3d9c9cda80d	default	nap	0	succeeded	{"number": 1}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709579+00	2026-11-26 15:45:25.720368+00	2026-11-26 15:45:25.724408+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	\N	[]	\N	\N
01a21888-74cd-70bd-9172-646b0029b47d	default	nap	0	succeeded	{"number": 2}	3	\N	1	1	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.70958+00	2026-11-26 15:45:25.720368+00	2026-11-26 15:45:25.724408+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	\N	[]	\N	\N
01a21888-74cd-7958-bd5f-6fabb2fb1d62	default	flaky	0	succeeded	{"number": 0}	3	\N	2	2	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709572+00	2026-11-26 15:45:25.736527+00	2026-11-26 15:45:25.738415+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	2	[{"at": "2026-11-26T15:45:25.716084+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: the first attempt fails: größe 🐘", "attempt": 1, "duration": 0.000921, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 33, in flaky\\n    raise RuntimeError(\\"the first attempt fails: größe 🐘\\")\\nRuntimeError: the first attempt fails: größe 🐘\\n"}]	\N	\N
01a21888-74e7-74cb-88de-c0835f9192fd	default	echo	5	succeeded	{"null": null, "text": "Grüße, 日本語, 🐘,  , \\\\, \\t, \\n, 'quoted', \\"quoted\\"", "float": 100000000000000000000, "integer": 9223372036854775808}	3	\N	1	1	2026-11-26 15:45:25.72759+00	2026-11-26 15:45:25.72759+00	2026-11-26 15:45:25.740245+00	2026-11-26 15:45:25.75669+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	{"null": null, "text": "Grüße, 日本語, 🐘,  , \\\\, \\t, \\n, 'quoted', \\"quoted\\"", "float": 100000000000000000000, "integer": 9223372036854775808}	[]	{"rank": 1795707920.729494, "turn": 1795707925.729494, "group": "acme", "weight": 2.5, "tracestate": "vendor=opaque", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}	\N
01a21888-74cd-7810-a7c8-6de2c315b55e	default	flaky	0	succeeded	{"number": 2}	3	\N	2	2	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709574+00	2026-11-26 15:45:25.780998+00	2026-11-26 15:45:25.782876+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	2	[{"at": "2026-11-26T15:45:25.72274+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: the first attempt fails: größe 🐘", "attempt": 1, "duration": 0.001396, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 33, in flaky\\n    raise RuntimeError(\\"the first attempt fails: größe 🐘\\")\\nRuntimeError: the first attempt fails: größe 🐘\\n"}]	\N	\N
01a21888-74cd-7e49-82bd-853cef2e6788	default	flaky	0	succeeded	{"number": 1}	3	\N	2	2	2026-11-26 15:45:25.709569+00	2026-11-26 15:45:25.709573+00	2026-11-26 15:45:25.780998+00	2026-11-26 15:45:25.782876+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	2	[{"at": "2026-11-26T15:45:25.720429+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: the first attempt fails: größe 🐘", "attempt": 1, "duration": 0.000849, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 33, in flaky\\n    raise RuntimeError(\\"the first attempt fails: größe 🐘\\")\\nRuntimeError: the first attempt fails: größe 🐘\\n"}]	\N	\N
\.


--
-- Data for Name: succeeded_jobs_20261127; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.succeeded_jobs_20261127 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: succeeded_jobs_20261128; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.succeeded_jobs_20261128 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: succeeded_jobs_20261130; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.succeeded_jobs_20261130 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
01a22d21-fb4a-7a3f-89d2-79044c343694	default	echo	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:31.434371+00	2026-11-30 15:45:31.434371+00	2026-11-30 15:45:31.472486+00	2026-11-30 15:45:31.504005+00	d03b8391-788b-4eae-9f15-40003e878427	{}	[]	{"unique_key": "ended"}	\N
01a22d21-fb69-79af-8356-c15acb728934	default	echo	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:31.48624+00	2026-11-30 15:45:31.486245+00	2026-11-30 15:45:31.499761+00	2026-11-30 15:45:31.504005+00	d03b8391-788b-4eae-9f15-40003e878427	{}	[]	{"schedule": "one", "scheduled_for": 1796053500}	\N
01a22d21-fb4a-72e4-8a86-e0587f9f7f96	default	flaky	0	succeeded	{}	3	\N	2	2	2026-11-30 15:45:31.434371+00	2026-11-30 15:45:31.434372+00	2026-11-30 15:45:31.518923+00	2026-11-30 15:45:31.525123+00	d03b8391-788b-4eae-9f15-40003e878427	2	[{"at": "2026-11-30T15:45:31.503892+00:00", "node": "d03b8391-788b-4eae-9f15-40003e878427", "error": "RuntimeError: the first attempt fails: größe 🐘", "attempt": 1, "duration": 0.002493, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 33, in flaky\\n    raise RuntimeError(\\"the first attempt fails: größe 🐘\\")\\nRuntimeError: the first attempt fails: größe 🐘\\n"}]	\N	\N
01a22d22-44aa-74c4-8385-6ccc737f65d6	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227096+00	2026-11-30 15:45:50.254166+00	2026-11-30 15:45:50.359874+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.234617, "turn": 1796053550.234617, "group": "tenant 2", "weight": 3}	\N
01a22d22-44aa-7b58-9075-66a978345295	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227092+00	2026-11-30 15:45:50.35793+00	2026-11-30 15:45:50.462379+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.234617, "turn": 1796053550.234617, "group": "tenant 1", "weight": 2}	\N
01a22d22-44aa-703e-af4a-619bb7331782	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227088+00	2026-11-30 15:45:50.463539+00	2026-11-30 15:45:50.566595+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.234617, "turn": 1796053550.234617, "group": "tenant 0", "weight": 1}	\N
01a22d22-44aa-74d7-9fb7-5cfd9d5fea07	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227108+00	2026-11-30 15:45:50.57232+00	2026-11-30 15:45:50.678527+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.234950, "turn": 1796053550.234950, "group": "tenant 2", "weight": 3}	\N
01a22d22-44aa-745b-af30-e14aed3d3cec	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227104+00	2026-11-30 15:45:50.677047+00	2026-11-30 15:45:50.783233+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.235117, "turn": 1796053550.235117, "group": "tenant 1", "weight": 2}	\N
01a22d22-44ab-7b52-b38d-bec4d159ad64	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.22712+00	2026-11-30 15:45:50.78502+00	2026-11-30 15:45:50.889812+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.235284, "turn": 1796053550.235284, "group": "tenant 2", "weight": 3}	\N
01a22d22-44ab-72c9-bc97-02331c86dd1d	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227132+00	2026-11-30 15:45:50.890282+00	2026-11-30 15:45:51.0004+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.235617, "turn": 1796053550.235617, "group": "tenant 2", "weight": 3}	\N
01a22d22-44aa-71f2-a86d-2b2dd8166d46	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227116+00	2026-11-30 15:45:50.890282+00	2026-11-30 15:45:51.097709+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.235617, "turn": 1796053550.235617, "group": "tenant 1", "weight": 2}	\N
01a22d22-44aa-71a1-93b6-f32828fa6ed5	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.2271+00	2026-11-30 15:45:51.101168+00	2026-11-30 15:45:51.205061+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.235617, "turn": 1796053550.235617, "group": "tenant 0", "weight": 1}	\N
01a22d22-44ab-71d5-9382-6dd3a56e9e48	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227144+00	2026-11-30 15:45:51.205259+00	2026-11-30 15:45:51.310654+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.235950, "turn": 1796053550.235950, "group": "tenant 2", "weight": 3}	\N
01a22d22-44ab-7470-a278-556470bd1a60	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227128+00	2026-11-30 15:45:51.309014+00	2026-11-30 15:45:51.417132+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.236117, "turn": 1796053550.236117, "group": "tenant 1", "weight": 2}	\N
01a22d22-44ab-74e0-b060-0e5db00d5383	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.22714+00	2026-11-30 15:45:51.417025+00	2026-11-30 15:45:51.520073+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.236617, "turn": 1796053550.236617, "group": "tenant 1", "weight": 2}	\N
01a22d22-44aa-7415-8a73-30aa273e61a3	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227112+00	2026-11-30 15:45:51.520263+00	2026-11-30 15:45:51.623022+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.236617, "turn": 1796053550.236617, "group": "tenant 0", "weight": 1}	\N
01a22d22-44ab-7987-8d03-d069916f723e	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227124+00	2026-11-30 15:45:51.623275+00	2026-11-30 15:45:51.726659+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.237617, "turn": 1796053550.237617, "group": "tenant 0", "weight": 1}	\N
01a22d22-44ab-7bf2-8dcc-1fa256728c68	fair	nap	1	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227136+00	2026-11-30 15:45:51.727115+00	2026-11-30 15:45:51.832701+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053549.238617, "turn": 1796053550.238617, "group": "tenant 0", "weight": 1}	\N
01a22d22-44aa-7d89-8f89-e80760bbe9a3	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227087+00	2026-11-30 15:45:51.835178+00	2026-11-30 15:45:51.940487+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.234617, "turn": 1796053550.234617, "group": "tenant 2", "weight": 3}	\N
01a22d22-44aa-7c01-b03c-c162bbcb2732	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227086+00	2026-11-30 15:45:51.941385+00	2026-11-30 15:45:52.044565+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.234617, "turn": 1796053550.234617, "group": "tenant 1", "weight": 2}	\N
01a22d22-44aa-7b51-87e2-4871a6ff44fe	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:52.044682+00	2026-11-30 15:45:52.155914+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.234617, "turn": 1796053550.234617, "group": "tenant 0", "weight": 1}	\N
01a22d22-44aa-759a-804b-14323275b762	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.22709+00	2026-11-30 15:45:52.156782+00	2026-11-30 15:45:52.267625+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.234950, "turn": 1796053550.234950, "group": "tenant 2", "weight": 3}	\N
01a22d22-44aa-78cf-9c46-197bc1f324ef	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227089+00	2026-11-30 15:45:52.264488+00	2026-11-30 15:45:52.371213+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.235117, "turn": 1796053550.235117, "group": "tenant 1", "weight": 2}	\N
01a22d22-44aa-76a1-bb25-2648e047b7d9	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227093+00	2026-11-30 15:45:52.371516+00	2026-11-30 15:45:52.479567+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.235284, "turn": 1796053550.235284, "group": "tenant 2", "weight": 3}	\N
01a22d22-44aa-7b92-a059-f376a2d36835	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227099+00	2026-11-30 15:45:52.479626+00	2026-11-30 15:45:52.587549+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.235950, "turn": 1796053550.235950, "group": "tenant 2", "weight": 3}	\N
01a22d22-44aa-7298-b2af-7bf181f300e1	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227095+00	2026-11-30 15:45:52.583405+00	2026-11-30 15:45:52.696475+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.236117, "turn": 1796053550.236117, "group": "tenant 1", "weight": 2}	\N
01a22d22-44aa-76e4-8367-cd9cdad9ef9d	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227102+00	2026-11-30 15:45:52.69132+00	2026-11-30 15:45:52.798432+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.236284, "turn": 1796053550.236284, "group": "tenant 2", "weight": 3}	\N
01a22d22-44aa-7231-aa7f-bd65d2de2c74	fair	nap	0	succeeded	{}	3	\N	1	1	2026-11-30 15:45:50.227085+00	2026-11-30 15:45:50.227105+00	2026-11-30 15:45:52.796183+00	2026-11-30 15:45:52.899646+00	2d8f121a-de7c-415b-b678-cada969f90ab	\N	[]	{"rank": 1796053550.236617, "turn": 1796053550.236617, "group": "tenant 2", "weight": 3}	\N
\.


--
-- Data for Name: succeeded_jobs_20261201; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.succeeded_jobs_20261201 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: succeeded_jobs_20261202; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.succeeded_jobs_20261202 (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
\.


--
-- Data for Name: succeeded_jobs_default; Type: TABLE DATA; Schema: jobqueue; Owner: -
--

COPY jobqueue.succeeded_jobs_default (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at, available_since, claimed_at, finished_at, node_id, result, errors, options, saved) FROM stdin;
01a227fb-8cf0-777c-81d0-024a4adbddfb	default	echo	0	succeeded	"late"	3	\N	1	1	2026-11-29 15:45:26.768513+00	2026-11-29 15:45:26.768513+00	2026-11-29 15:45:29.555868+00	2026-11-29 15:45:29.561695+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	"late"	[]	\N	\N
01a227fb-8cf0-73d6-b766-21cdfc612de3	default	flaky	0	succeeded	{}	3	\N	2	2	2026-11-29 15:45:26.768513+00	2026-11-29 15:45:26.768514+00	2026-11-29 15:45:29.575726+00	2026-11-29 15:45:29.57721+00	feb8f101-2c24-4cc6-9748-9f5746d8267f	2	[{"at": "2026-11-29T15:45:29.561563+00:00", "node": "feb8f101-2c24-4cc6-9748-9f5746d8267f", "error": "RuntimeError: the first attempt fails: größe 🐘", "attempt": 1, "duration": 0.00068, "traceback": "Traceback (most recent call last):\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 254, in _attempt\\n    result = await self._call(run, handler, arguments, timeout)\\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 283, in _call\\n    return await (result if handle is None else _await_in_nursery(result, handle))\\n           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 424, in _await_in_nursery\\n    raise alone  # raise it here, so that its context does not contain the group\\n    ^^^^^^^^^^^\\n  File \\"/srv/jobqueue/jobqueue/engine/executor.py\\", line 415, in _await_in_nursery\\n    result = await coroutine\\n             ^^^^^^^^^^^^^^^\\n  File \\"/srv/jobqueue/tests/handlers/upgraded.py\\", line 33, in flaky\\n    raise RuntimeError(\\"the first attempt fails: größe 🐘\\")\\nRuntimeError: the first attempt fails: größe 🐘\\n"}]	\N	\N
\.


--
-- Name: blocked_jobs blocked_jobs_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.blocked_jobs
    ADD CONSTRAINT blocked_jobs_pkey PRIMARY KEY (id);


--
-- Name: dead_jobs dead_jobs_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.dead_jobs
    ADD CONSTRAINT dead_jobs_pkey PRIMARY KEY (id);


--
-- Name: fair_groups fair_groups_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.fair_groups
    ADD CONSTRAINT fair_groups_pkey PRIMARY KEY (queue, name);


--
-- Name: fair_queues fair_queues_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.fair_queues
    ADD CONSTRAINT fair_queues_pkey PRIMARY KEY (queue);


--
-- Name: history history_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.history
    ADD CONSTRAINT history_pkey PRIMARY KEY (step, at);


--
-- Name: inflight_jobs inflight_jobs_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.inflight_jobs
    ADD CONSTRAINT inflight_jobs_pkey PRIMARY KEY (id);


--
-- Name: key_buckets key_buckets_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.key_buckets
    ADD CONSTRAINT key_buckets_pkey PRIMARY KEY (queue, key);


--
-- Name: keys keys_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.keys
    ADD CONSTRAINT keys_pkey PRIMARY KEY (scope, key);


--
-- Name: nodes nodes_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (id);


--
-- Name: pending_jobs pending_jobs_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.pending_jobs
    ADD CONSTRAINT pending_jobs_pkey PRIMARY KEY (id);


--
-- Name: queue_limits queue_limits_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.queue_limits
    ADD CONSTRAINT queue_limits_pkey PRIMARY KEY (queue);


--
-- Name: queues queues_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.queues
    ADD CONSTRAINT queues_pkey PRIMARY KEY (name);


--
-- Name: scheduled_jobs scheduled_jobs_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.scheduled_jobs
    ADD CONSTRAINT scheduled_jobs_pkey PRIMARY KEY (id);


--
-- Name: schedules schedules_pkey; Type: CONSTRAINT; Schema: jobqueue; Owner: -
--

ALTER TABLE ONLY jobqueue.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (name);


--
-- Name: blocked_jobs_expire; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX blocked_jobs_expire ON jobqueue.blocked_jobs USING btree ((((options -> 'expires_at'::text))::double precision)) WHERE (options ? 'expires_at'::text);


--
-- Name: blocked_jobs_key; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX blocked_jobs_key ON jobqueue.blocked_jobs USING btree (queue, ((options ->> 'concurrency_key'::text)), rank);


--
-- Name: finished_jobs_id; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX finished_jobs_id ON ONLY jobqueue.finished_jobs USING btree (id);


--
-- Name: cancelled_jobs_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX cancelled_jobs_id_idx ON ONLY jobqueue.cancelled_jobs USING btree (id);


--
-- Name: cancelled_jobs_20261126_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX cancelled_jobs_20261126_id_idx ON jobqueue.cancelled_jobs_20261126 USING btree (id);


--
-- Name: cancelled_jobs_20261127_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX cancelled_jobs_20261127_id_idx ON jobqueue.cancelled_jobs_20261127 USING btree (id);


--
-- Name: cancelled_jobs_20261128_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX cancelled_jobs_20261128_id_idx ON jobqueue.cancelled_jobs_20261128 USING btree (id);


--
-- Name: cancelled_jobs_20261130_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX cancelled_jobs_20261130_id_idx ON jobqueue.cancelled_jobs_20261130 USING btree (id);


--
-- Name: cancelled_jobs_20261201_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX cancelled_jobs_20261201_id_idx ON jobqueue.cancelled_jobs_20261201 USING btree (id);


--
-- Name: cancelled_jobs_20261202_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX cancelled_jobs_20261202_id_idx ON jobqueue.cancelled_jobs_20261202 USING btree (id);


--
-- Name: cancelled_jobs_default_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX cancelled_jobs_default_id_idx ON jobqueue.cancelled_jobs_default USING btree (id);


--
-- Name: dead_jobs_cause; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX dead_jobs_cause ON jobqueue.dead_jobs USING btree (cause, kind, queue, died_at, id);


--
-- Name: dead_jobs_died_at; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX dead_jobs_died_at ON jobqueue.dead_jobs USING btree (died_at, id);


--
-- Name: dead_jobs_kind; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX dead_jobs_kind ON jobqueue.dead_jobs USING btree (kind, died_at, id);


--
-- Name: dead_jobs_queue; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX dead_jobs_queue ON jobqueue.dead_jobs USING btree (queue, died_at, id);


--
-- Name: inflight_jobs_cancel; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX inflight_jobs_cancel ON jobqueue.inflight_jobs USING btree (node_id) WHERE (cancel_requested_at IS NOT NULL);


--
-- Name: inflight_jobs_limited; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX inflight_jobs_limited ON jobqueue.inflight_jobs USING btree (queue, ((options ->> 'concurrency_key'::text))) WHERE limited;


--
-- Name: key_checks_next; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX key_checks_next ON jobqueue.key_checks USING btree (timed, at);


--
-- Name: key_starts_key; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX key_starts_key ON jobqueue.key_starts USING btree (queue, key, at);


--
-- Name: keys_expires_at; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX keys_expires_at ON jobqueue.keys USING btree (expires_at);


--
-- Name: pending_jobs_claim; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX pending_jobs_claim ON jobqueue.pending_jobs USING btree (queue, rank);


--
-- Name: pending_jobs_expire; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX pending_jobs_expire ON jobqueue.pending_jobs USING btree ((((options -> 'expires_at'::text))::double precision)) WHERE (options ? 'expires_at'::text);


--
-- Name: pending_jobs_group; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX pending_jobs_group ON jobqueue.pending_jobs USING btree (queue, ((options ->> 'group'::text)), (((options -> 'turn'::text))::numeric)) WHERE (options ? 'turn'::text);


--
-- Name: pending_jobs_key; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX pending_jobs_key ON jobqueue.pending_jobs USING btree (queue, ((options ->> 'concurrency_key'::text))) WHERE admitted;


--
-- Name: pending_jobs_turn; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX pending_jobs_turn ON jobqueue.pending_jobs USING btree (queue, ((priority > 0)), (((options -> 'turn'::text))::numeric)) WHERE (options ? 'turn'::text);


--
-- Name: scheduled_jobs_expire; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX scheduled_jobs_expire ON jobqueue.scheduled_jobs USING btree ((((options -> 'expires_at'::text))::double precision)) WHERE (options ? 'expires_at'::text);


--
-- Name: scheduled_jobs_promote; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX scheduled_jobs_promote ON jobqueue.scheduled_jobs USING btree (run_at);


--
-- Name: succeeded_jobs_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX succeeded_jobs_id_idx ON ONLY jobqueue.succeeded_jobs USING btree (id);


--
-- Name: succeeded_jobs_20261126_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX succeeded_jobs_20261126_id_idx ON jobqueue.succeeded_jobs_20261126 USING btree (id);


--
-- Name: succeeded_jobs_20261127_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX succeeded_jobs_20261127_id_idx ON jobqueue.succeeded_jobs_20261127 USING btree (id);


--
-- Name: succeeded_jobs_20261128_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX succeeded_jobs_20261128_id_idx ON jobqueue.succeeded_jobs_20261128 USING btree (id);


--
-- Name: succeeded_jobs_20261130_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX succeeded_jobs_20261130_id_idx ON jobqueue.succeeded_jobs_20261130 USING btree (id);


--
-- Name: succeeded_jobs_20261201_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX succeeded_jobs_20261201_id_idx ON jobqueue.succeeded_jobs_20261201 USING btree (id);


--
-- Name: succeeded_jobs_20261202_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX succeeded_jobs_20261202_id_idx ON jobqueue.succeeded_jobs_20261202 USING btree (id);


--
-- Name: succeeded_jobs_default_id_idx; Type: INDEX; Schema: jobqueue; Owner: -
--

CREATE INDEX succeeded_jobs_default_id_idx ON jobqueue.succeeded_jobs_default USING btree (id);


--
-- Name: cancelled_jobs_20261126_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.cancelled_jobs_id_idx ATTACH PARTITION jobqueue.cancelled_jobs_20261126_id_idx;


--
-- Name: cancelled_jobs_20261127_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.cancelled_jobs_id_idx ATTACH PARTITION jobqueue.cancelled_jobs_20261127_id_idx;


--
-- Name: cancelled_jobs_20261128_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.cancelled_jobs_id_idx ATTACH PARTITION jobqueue.cancelled_jobs_20261128_id_idx;


--
-- Name: cancelled_jobs_20261130_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.cancelled_jobs_id_idx ATTACH PARTITION jobqueue.cancelled_jobs_20261130_id_idx;


--
-- Name: cancelled_jobs_20261201_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.cancelled_jobs_id_idx ATTACH PARTITION jobqueue.cancelled_jobs_20261201_id_idx;


--
-- Name: cancelled_jobs_20261202_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.cancelled_jobs_id_idx ATTACH PARTITION jobqueue.cancelled_jobs_20261202_id_idx;


--
-- Name: cancelled_jobs_default_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.cancelled_jobs_id_idx ATTACH PARTITION jobqueue.cancelled_jobs_default_id_idx;


--
-- Name: cancelled_jobs_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.finished_jobs_id ATTACH PARTITION jobqueue.cancelled_jobs_id_idx;


--
-- Name: succeeded_jobs_20261126_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.succeeded_jobs_id_idx ATTACH PARTITION jobqueue.succeeded_jobs_20261126_id_idx;


--
-- Name: succeeded_jobs_20261127_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.succeeded_jobs_id_idx ATTACH PARTITION jobqueue.succeeded_jobs_20261127_id_idx;


--
-- Name: succeeded_jobs_20261128_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.succeeded_jobs_id_idx ATTACH PARTITION jobqueue.succeeded_jobs_20261128_id_idx;


--
-- Name: succeeded_jobs_20261130_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.succeeded_jobs_id_idx ATTACH PARTITION jobqueue.succeeded_jobs_20261130_id_idx;


--
-- Name: succeeded_jobs_20261201_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.succeeded_jobs_id_idx ATTACH PARTITION jobqueue.succeeded_jobs_20261201_id_idx;


--
-- Name: succeeded_jobs_20261202_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.succeeded_jobs_id_idx ATTACH PARTITION jobqueue.succeeded_jobs_20261202_id_idx;


--
-- Name: succeeded_jobs_default_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.succeeded_jobs_id_idx ATTACH PARTITION jobqueue.succeeded_jobs_default_id_idx;


--
-- Name: succeeded_jobs_id_idx; Type: INDEX ATTACH; Schema: jobqueue; Owner: -
--

ALTER INDEX jobqueue.finished_jobs_id ATTACH PARTITION jobqueue.succeeded_jobs_id_idx;


--
-- Name: pending_jobs block; Type: TRIGGER; Schema: jobqueue; Owner: -
--

CREATE TRIGGER block BEFORE INSERT ON jobqueue.pending_jobs FOR EACH ROW WHEN ((new.options IS NOT NULL)) EXECUTE FUNCTION jobqueue.block();

ALTER TABLE jobqueue.pending_jobs ENABLE ALWAYS TRIGGER block;


--
-- PostgreSQL database dump complete
--


