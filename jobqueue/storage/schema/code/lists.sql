-- Filter, list, and cancel many jobs.

-- Return the conditions of a filter: each name, and its value as text. A condition that is null counts as missing.
-- Rejects unknown conditions, and an empty filter, which could select all jobs by mistake.
CREATE OR REPLACE FUNCTION jobqueue_internal.conditions(filter jsonb, known text[]) RETURNS TABLE (name text, text text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    given constant jsonb := CASE jsonb_typeof(filter) WHEN 'object' THEN jsonb_strip_nulls(filter) || (filter - known)
                                                      ELSE coalesce(filter, 'null') END;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(given), 'a filter', known);
    IF given = '{}' THEN
        RAISE check_violation USING COLUMN = 'all', MESSAGE = 'the filter is empty: give a condition, or {"all": true} to select all';
    END IF;
    RETURN QUERY SELECT m.key, m.value #>> '{}' FROM jsonb_each(given) AS m;
END $$;

-- Return the states that a filter selects, or all known states if it has no condition on the state.
CREATE OR REPLACE FUNCTION jobqueue_internal.states_of(filter jsonb, known text[]) RETURNS text[]
LANGUAGE plpgsql STABLE AS $$
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

-- Return the lowest and the highest id that a text can mean, if it is a whole id or the start of an id. Return NULL if
-- it is neither. The start of an id must have at least eight hexadecimal digits, with dashes at the usual places or
-- without dashes. It must begin with 0, like all version 7 ids until the year 2527. A whole id can be any UUID.
CREATE OR REPLACE FUNCTION jobqueue_internal.ids_like(text text) RETURNS uuid[]
LANGUAGE plpgsql IMMUTABLE AS $$
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
END $$;

-- Build a query for the jobs that a filter selects, latest id first, up to max_jobs. It selects only ids that are lower
-- than `before`, unless `before` is NULL. A filter is an object with any of "state" (one, or an array), "queue",
-- "kind", "group", "concurrency_key", "text", "created_after" and "created_before" (times), or {"all": true}. All
-- conditions must hold.
--
-- The query searches for "text" in the reason and in the message of the last error, and ignores case. If "text" is a
-- whole id or the start of a version 7 id (see jobqueue_internal.ids_like), it selects the jobs with these ids instead.
--
-- The query reads at most max_rows jobs along the indexes on ids, whatever the filter is. It needs no other index,
-- because each index makes every job slower. If the query reaches max_rows, the last job that it reads is in the result
-- with is_last, even if the filter does not select that job. The id of that job is the "before" of the next query. The
-- result is complete down to that id, so pages neither repeat a job nor miss one.
--
-- The query reads jobs in the order of their ids, and version 7 ids begin with a time. So the times of a filter also
-- limit the ids, with a margin of a minute, and a search for old jobs starts at the ids of that time. It misses jobs
-- whose id has a different time. These are jobs of a node whose clock is wrong by more than a minute, and jobs that
-- were submitted with another kind of UUID. A filter without times finds these jobs, in the order of their ids.
CREATE OR REPLACE FUNCTION jobqueue_internal.walk(filter jsonb, states text[], before uuid, max_jobs integer, max_rows integer) RETURNS text
LANGUAGE plpgsql STABLE
SET DateStyle = 'ISO, YMD'   -- prints times with a numeric UTC offset; a name such as IST would be ambiguous
AS $$
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
    FOR asked IN SELECT * FROM jobqueue_internal.conditions(filter, '{state,queue,kind,group,concurrency_key,text,created_after,created_before,all}') LOOP
        parts := parts || CASE asked.name
            WHEN 'state' THEN 'true'
            WHEN 'queue' THEN format('w.queue = %L', asked.text)
            WHEN 'kind' THEN format('w.kind = %L', asked.text)
            WHEN 'group' THEN format('w.options ->> ''group'' = %L', asked.text)
            WHEN 'concurrency_key' THEN format('w.options ->> ''concurrency_key'' = %L', asked.text)
            WHEN 'text' THEN format('(strpos(lower(w.reason), lower(%1$L)) > 0 OR strpos(lower(w.errors -> -1 ->> ''error''), lower(%1$L)) > 0)', asked.text)
            WHEN 'created_after' THEN format('w.created_at > jobqueue_internal.instant(%L)', asked.text)
            WHEN 'created_before' THEN format('w.created_at < jobqueue_internal.instant(%L)', asked.text)
            ELSE asked.text END;
        IF asked.name = 'text' AND jobqueue_internal.ids_like(asked.text) IS NOT NULL THEN
            like_these := jobqueue_internal.ids_like(asked.text);
            parts[cardinality(parts)] := 'true';
            ids := ids || format('j.id BETWEEN %L AND %L', like_these[1], like_these[2]);
        ELSIF asked.name = 'text' THEN
            weight := '1 + coalesce(pg_column_size(j.errors), 0) / 512';
            place := format('sum(%s) OVER (ORDER BY j.id DESC ROWS UNBOUNDED PRECEDING)', weight);
        ELSIF asked.name = 'created_after' THEN
            ids := ids || format('j.id >= %L', jobqueue_internal.uuid7_from(jobqueue_internal.instant(asked.text) - interval '1 minute'));
        ELSIF asked.name = 'created_before' THEN
            ids := ids || format('j.id < %L', jobqueue_internal.uuid7_from(jobqueue_internal.instant(asked.text) + interval '1 minute'));
        END IF;
    END LOOP;
    RETURN format(
        'SELECT q.* FROM (SELECT w.*, w.place - w.weight < %2$L AND coalesce(%1$s, false) AS wanted, w.place >= %2$L AND w.place - w.weight < %2$L AS is_last FROM ('
        'SELECT j.id, j.state, j.queue, j.kind, j.priority, j.attempt, j.max_retries, j.created_at, j.run_at, j.claimed_at, j.ended_at, j.node_id,'
        ' j.reason, j.errors, j.options, j.saved, j.cancel_requested_at,'
        ' %6$s AS weight, %7$s AS place'
        ' FROM jobqueue_internal.jobs AS j WHERE j.state = ANY (%3$L) AND %4$s ORDER BY j.id DESC LIMIT %2$L) AS w) AS q WHERE q.wanted OR q.is_last LIMIT %5$L',
        array_to_string(parts, ' AND '), max_rows, states, array_to_string(ids, ' AND '), max_jobs, weight, place);
END $$;

-- List jobs that match a filter (see jobqueue_internal.walk), latest id first, up to max_jobs, without payloads, results and
-- errors. Returns {"jobs": [...], "next": id}. The id is the "before" of the next page; null means that this is the
-- last page. The function reads at most max_rows jobs, so a page can be short or empty without being the last. Jobs
-- that are submitted in the meantime are not on later pages.
CREATE OR REPLACE FUNCTION jobqueue.list_jobs(filter jsonb DEFAULT '{"all": true}', max_jobs integer DEFAULT 100, before uuid DEFAULT NULL,
                                              max_rows integer DEFAULT 10000) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off   -- before PostgreSQL 18, a disabled plan node adds a huge cost, which would start JIT
AS $$
DECLARE
    page jsonb;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', list_jobs.max_jobs, 'max_rows', list_jobs.max_rows)), 'a call', '{max_jobs,max_rows}');
    EXECUTE format(
        'SELECT jsonb_build_object(''jobs'', coalesce(jsonb_agg(jsonb_build_object('
        '''id'', w.id, ''state'', w.state, ''queue'', w.queue, ''kind'', w.kind, ''priority'', w.priority, ''attempt'', w.attempt,'
        ' ''max_retries'', w.max_retries, ''created_at'', w.created_at, ''run_at'', w.run_at, ''claimed_at'', w.claimed_at,'
        ' ''ended_at'', w.ended_at, ''node_id'', w.node_id, ''reason'', w.reason, ''options'', jobqueue_internal.shown(w.options),'
        ' ''progress'', jobqueue_internal.shown(w.saved -> ''progress''))'
        ' ORDER BY w.id DESC) FILTER (WHERE w.wanted), ''[]''),'
        ' ''next'', CASE WHEN count(*) = %L OR bool_or(w.is_last) THEN (array_agg(w.id ORDER BY w.id))[1] END) FROM (%s) AS w', max_jobs,
        jobqueue_internal.walk(filter, jobqueue_internal.states_of(filter, '{pending,blocked,scheduled,inflight,succeeded,cancelled,dead}'), before, max_jobs,
                      max_rows)) INTO page;
    RETURN page;
END $$;

-- Cancel these jobs if they are in one of these states. Skip waiting jobs whose rows are locked. Returns the number of
-- cancelled jobs, including the running jobs for which it stores a request.
CREATE OR REPLACE FUNCTION jobqueue_internal.cancel_these(jobs uuid[], states text[], keep boolean) RETURNS integer
LANGUAGE plpgsql
SET jit = off
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    ended integer;
    asked integer;
BEGIN
    WITH scheduled AS (
        DELETE FROM jobqueue_internal.scheduled_jobs AS s
         WHERE s.id = ANY (ARRAY(SELECT l.id FROM jobqueue_internal.scheduled_jobs AS l
                                  WHERE 'scheduled' = ANY (states) AND l.id = ANY (jobs) ORDER BY l.id FOR UPDATE SKIP LOCKED))
        RETURNING s.*
    ), blocked AS (
        DELETE FROM jobqueue_internal.blocked_jobs AS b
         WHERE b.id = ANY (ARRAY(SELECT l.id FROM jobqueue_internal.blocked_jobs AS l
                                  WHERE 'blocked' = ANY (states) AND l.id = ANY (jobs) ORDER BY l.id FOR UPDATE SKIP LOCKED))
        RETURNING b.*
    ), pending AS (
        DELETE FROM jobqueue_internal.pending_jobs AS p
         WHERE p.id = ANY (ARRAY(SELECT l.id FROM jobqueue_internal.pending_jobs AS l
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
        INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, finished_at, errors, options, saved)
        SELECT g.id, g.queue, g.kind, g.priority, 'cancelled', g.payload, g.max_retries, g.timeout, g.attempt, g.claims, g.created_at,
               g.available_since, now(), g.errors, g.options, g.saved
          FROM gone AS g WHERE keep
    ), checks AS (
        INSERT INTO jobqueue_internal.key_checks (queue, key)
        SELECT DISTINCT p.queue, p.options ->> 'concurrency_key' FROM pending AS p WHERE p.options ->> 'concurrency_key' IS NOT NULL
        RETURNING key
    ), told AS MATERIALIZED (
        SELECT count(jobqueue_internal.wake_keys()) FROM checks
    )
    SELECT count(*) INTO ended FROM gone CROSS JOIN told;
    -- For running jobs, only store a request, for the same reason as in jobqueue.cancel.
    INSERT INTO jobqueue_internal.cancel_requests (job_id)
    SELECT i.id FROM jobqueue_internal.inflight_jobs AS i
     WHERE 'inflight' = ANY (states) AND i.id = ANY (jobs) AND i.cancel_requested_at IS NULL
       AND i.id NOT IN (SELECT r.job_id FROM jobqueue_internal.cancel_requests AS r);
    GET DIAGNOSTICS asked = ROW_COUNT;
    IF asked > 0 THEN
        PERFORM pg_notify('jobqueue_cancel', '');
    END IF;
    RETURN ended + asked;
END $$;

-- Cancel up to max_jobs jobs that match a filter, with one query of jobqueue_internal.walk. Returns the number of jobs, and the
-- "before" of the next query; NULL: no jobs are left. New jobs have higher ids, so repeated calls come to an end.
-- dry_run: count the jobs, and change nothing.
CREATE OR REPLACE FUNCTION jobqueue_internal.cancel_walk(filter jsonb, max_jobs integer, before uuid, keep boolean, dry_run boolean)
RETURNS TABLE (jobs integer, rest uuid)
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
AS $$
DECLARE
    states text[] := jobqueue_internal.states_of(filter, '{pending,blocked,scheduled,inflight}');
    -- Exclude jobs that already have a cancel request.
    wanted text := '(w.state <> ''inflight'' OR w.cancel_requested_at IS NULL AND w.id NOT IN (SELECT r.job_id FROM jobqueue_internal.cancel_requests AS r))';
    found uuid[];
    done integer;
BEGIN
    EXECUTE format(
        'SELECT coalesce(array_agg(w.id) FILTER (WHERE w.wanted AND %s), ''{}''),'
        ' CASE WHEN count(*) = %L OR bool_or(w.is_last) THEN (array_agg(w.id ORDER BY w.id))[1] END FROM (%s) AS w', wanted, max_jobs,
        jobqueue_internal.walk(filter, states, before, max_jobs, CASE WHEN dry_run THEN 100000 ELSE 10000 END)) INTO found, rest;
    jobs := 0;
    IF dry_run THEN
        jobs := cardinality(found);
        RETURN NEXT;
        RETURN;
    END IF;
    -- If a row is locked, most likely a claim or a promotion is moving it, so look again. Rows that an open transaction
    -- still holds after the last look are skipped.
    FOR look IN 1..3 LOOP
        done := jobqueue_internal.cancel_these(found, states, keep);
        jobs := jobs + done;
        EXIT WHEN done = cardinality(found);
        PERFORM pg_sleep(0.02);
        EXECUTE format('SELECT ARRAY(SELECT w.id FROM jobqueue_internal.jobs AS w WHERE w.id = ANY (%L) AND w.state = ANY (%L) AND %s)',
                       found, states, wanted) INTO found;
    END LOOP;
    RETURN NEXT;
END $$;

-- Cancel the jobs that match a filter (see jobqueue_internal.walk), up to max_jobs, latest id first, except jobs that have
-- ended. Repeat the call until it returns 0. Returns the number of cancelled jobs. Waiting jobs have ended when your
-- transaction commits. Running jobs end about a second later, as with jobqueue.cancel.
-- max_jobs: NULL means no limit.
-- dry_run: only return how many it would cancel.
CREATE OR REPLACE FUNCTION jobqueue.cancel_jobs(filter jsonb, max_jobs integer DEFAULT 1000, keep boolean DEFAULT true,
                                                dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    walk record;
    place uuid;
    total integer := 0;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', cancel_jobs.max_jobs, 'keep', cancel_jobs.keep, 'dry_run', cancel_jobs.dry_run)), 'a call', '{max_jobs,keep,dry_run}');
    LOOP
        SELECT w.* INTO walk
          FROM jobqueue_internal.cancel_walk(filter, least(CASE WHEN NOT dry_run THEN 1000 END, max_jobs - total), place, keep, dry_run) AS w;
        total := total + walk.jobs;
        place := walk.rest;
        EXIT WHEN place IS NULL OR total >= max_jobs;
    END LOOP;
    RETURN total;
END $$;
