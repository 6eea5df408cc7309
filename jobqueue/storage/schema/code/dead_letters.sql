-- Dead letters: redrive, discard, list, and group by cause.

-- Make these rows of dead_jobs pending. Returns the number of rows.
CREATE OR REPLACE FUNCTION jobqueue_internal.redrive_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    present constant timestamptz := clock_timestamp();
    risen integer;
BEGIN
    WITH risen AS (
        DELETE FROM jobqueue_internal.dead_jobs WHERE ctid = ANY (places)
        RETURNING *, nullif(options - '{expires_at,rank,turn}'::text[], '{}') AS lasting
    ), pending AS (
        INSERT INTO jobqueue_internal.pending_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims,
                                           created_at, available_since, errors, options, saved)
        SELECT r.id, r.queue, r.kind, r.priority, jobqueue_internal.rank_of(present, r.priority, q.aging_interval, o.options), r.payload,
               r.max_retries, r.timeout, 0, r.claims, r.created_at, present, r.errors, o.options, r.saved
          FROM risen AS r
         CROSS JOIN LATERAL (SELECT jobqueue_internal.with_new_turn(r.lasting, r.queue, r.priority) AS options OFFSET 0) AS o
          LEFT JOIN jobqueue_internal.queues AS q ON q.name = r.queue
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue_internal.wake(queue, rank)), (SELECT count(jobqueue_internal.wake_keys()) FROM risen WHERE options ? 'concurrency_key')
          FROM (SELECT queue, min(rank) AS rank FROM pending GROUP BY queue) AS queues
    )
    SELECT count(*) INTO risen FROM risen CROSS JOIN told;
    RETURN to_jsonb(risen);
END $$;

-- Redrive dead jobs: make them pending again, with all their attempts, a new rank, and without their old expiry time. A
-- job stays dead if another job has its unique key, or is about to get that key. A job also stays dead if its row
-- cannot be moved; then its reason explains why. Returns the number of redriven jobs.
CREATE OR REPLACE FUNCTION jobqueue_internal.redrive(jobs uuid[]) RETURNS integer
LANGUAGE plpgsql
SET lock_timeout = '100ms'
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
          FROM jobqueue_internal.dead_jobs AS d
         CROSS JOIN LATERAL (SELECT jobqueue_internal.unique_key_of(d.queue, d.kind, d.payload, d.options) AS key OFFSET 0) AS k
         WHERE d.id = ANY (jobs) AND d.options IS NOT NULL AND k.key IS NOT NULL
         ORDER BY k.key, turn
    LOOP
        BEGIN
            holds := keyed.turn = 1 AND jobqueue_internal.hold_unique_key(keyed.key, keyed.id) = keyed.id;
        EXCEPTION
            WHEN lock_not_available THEN
                holds := false;
            WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR feature_not_supported THEN
                PERFORM jobqueue_internal.bury('dead_jobs', ARRAY(SELECT d.ctid FROM jobqueue_internal.dead_jobs AS d WHERE d.id = keyed.id FOR UPDATE),
                                      'retry', SQLERRM);
                holds := false;
        END;
        IF NOT holds THEN
            jobs := array_remove(jobs, keyed.id);
        END IF;
    END LOOP;
    places := ARRAY(SELECT d.ctid FROM jobqueue_internal.dead_jobs AS d WHERE d.id = ANY (jobs) ORDER BY d.died_at, d.id FOR UPDATE);
    SELECT sum(r.jobs::integer) INTO risen
      FROM jsonb_array_elements_text((jobqueue_internal.move('retry', 'redrive_these', 'dead_jobs', places)).moved) AS r (jobs);
    RETURN coalesce(risen, 0);
END $$;

-- Redrive one dead job. Returns false if it is not dead. Raises JQ409 if another unfinished job has its unique key, or
-- if an open transaction is about to give the key to another job.
CREATE OR REPLACE FUNCTION jobqueue.retry(job uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
AS $$
DECLARE
    unique_key text := (SELECT jobqueue_internal.unique_key_of(d.queue, d.kind, d.payload, d.options) FROM jobqueue_internal.dead_jobs AS d WHERE d.id = job);
    holder uuid;
BEGIN
    IF unique_key IS NOT NULL THEN
        holder := jobqueue_internal.hold_unique_key(unique_key, job);
        IF holder <> job THEN
            RAISE EXCEPTION 'job % has the same unique key and is not finished: try again when it has ended', holder
                USING ERRCODE = 'JQ409', COLUMN = 'unique_key';
        END IF;
    END IF;
    RETURN jobqueue_internal.redrive_these(ARRAY(SELECT d.ctid FROM jobqueue_internal.dead_jobs AS d WHERE d.id = job FOR UPDATE)) > '0';
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'an open transaction holds the job or its unique key: try again later'
        USING ERRCODE = 'JQ409', COLUMN = 'unique_key';
END $$;

-- Delete a dead job permanently. Returns false if it is not dead.
CREATE OR REPLACE FUNCTION jobqueue.discard(job uuid) RETURNS boolean
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (DELETE FROM jobqueue_internal.dead_jobs WHERE id = job RETURNING id) SELECT EXISTS (SELECT FROM gone)
$$;

-- Convert a filter of dead jobs to an SQL condition on the rows of `dead_jobs AS d`. The filter is an object with any
-- of "queue", "kind", "group", "cause" (as jobqueue.dead_causes returns it), "reason" (a part of it), "died_before" and
-- "died_after" (times), or {"all": true}. All conditions must hold.
CREATE OR REPLACE FUNCTION jobqueue_internal.dead_condition(filter jsonb) RETURNS text
LANGUAGE sql STABLE
SET DateStyle = 'ISO, YMD'   -- prints times with a numeric UTC offset; a name such as IST would be ambiguous
AS $$
    SELECT string_agg(CASE asked.name
               WHEN 'queue' THEN format('d.queue = %L', asked.text)
               WHEN 'kind' THEN format('d.kind = %L', asked.text)
               WHEN 'group' THEN format('d.options ->> ''group'' = %L', asked.text)
               WHEN 'cause' THEN format('d.cause = %L', asked.text)
               WHEN 'reason' THEN format('strpos(d.reason, %L) > 0', asked.text)
               WHEN 'died_before' THEN format('d.died_at < jobqueue_internal.instant(%L)', asked.text)
               WHEN 'died_after' THEN format('d.died_at > jobqueue_internal.instant(%L)', asked.text)
               ELSE asked.text END, ' AND ')
      FROM jobqueue_internal.conditions(filter, '{queue,kind,group,cause,reason,died_before,died_after,all}') AS asked
$$;

-- Lock and return the dead jobs that a filter selects, oldest first, up to max_jobs, without rows that other
-- transactions have locked.
CREATE OR REPLACE FUNCTION jobqueue_internal.dead_matching(filter jsonb, max_jobs integer, condition text DEFAULT 'true') RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    found uuid[];
BEGIN
    EXECUTE format('SELECT array_agg(m.id) FROM (SELECT d.id FROM jobqueue_internal.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at, d.id LIMIT %L'
                   ' FOR UPDATE SKIP LOCKED) AS m', jobqueue_internal.dead_condition(filter), condition, max_jobs) INTO found;
    RETURN coalesce(found, '{}');
END $$;

-- Redrive dead jobs that match a filter, oldest first, up to max_jobs in one transaction. Repeat the call until it
-- returns 0. If the jobs can die again, use "died_before", so that the calls come to an end. Returns the number of
-- redriven jobs.
-- max_jobs: NULL means no limit.
-- dry_run: only return how many it would redrive.
CREATE OR REPLACE FUNCTION jobqueue.retry_dead(filter jsonb, max_jobs integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Exclude jobs whose unique key another job has, because every call would find them again.
    free constant text := '(d.options IS NULL OR NOT EXISTS (
        SELECT FROM jobqueue_internal.keys AS k WHERE k.scope = ''unique'' AND k.job_id <> d.id AND jobqueue_internal.unfinished(k.job_id)
           AND k.key = jobqueue_internal.unique_key_of(d.queue, d.kind, d.payload, d.options)))';
    jobs integer;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', retry_dead.max_jobs, 'dry_run', retry_dead.dry_run)), 'a call', '{max_jobs,dry_run}');
    IF NOT dry_run THEN
        RETURN jobqueue_internal.redrive(jobqueue_internal.dead_matching(filter, max_jobs, free));
    END IF;
    -- Several jobs with the same unique key count as one.
    EXECUTE format(
        'SELECT count(DISTINCT k.key) + count(*) FILTER (WHERE k.key IS NULL)'
        ' FROM (SELECT d.* FROM jobqueue_internal.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at, d.id LIMIT %L) AS d'
        ' CROSS JOIN LATERAL (SELECT CASE WHEN d.options IS NOT NULL'
        ' THEN jobqueue_internal.unique_key_of(d.queue, d.kind, d.payload, d.options) END AS key) AS k',
        jobqueue_internal.dead_condition(filter), free, max_jobs) INTO jobs;
    RETURN jobs;
END $$;

-- Delete dead jobs that match a filter, oldest first, up to max_jobs in one transaction. Repeat the call until it
-- returns 0. Returns the number of deleted jobs.
-- max_jobs: NULL means no limit.
-- dry_run: only return how many it would delete.
CREATE OR REPLACE FUNCTION jobqueue.discard_dead(filter jsonb, max_jobs integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found uuid[];
    jobs integer;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', discard_dead.max_jobs, 'dry_run', discard_dead.dry_run)), 'a call', '{max_jobs,dry_run}');
    IF dry_run THEN
        EXECUTE format('SELECT count(*) FROM (SELECT FROM jobqueue_internal.dead_jobs AS d WHERE %s LIMIT %L) AS d',
                       jobqueue_internal.dead_condition(filter), max_jobs) INTO jobs;
        RETURN jobs;
    END IF;
    found := jobqueue_internal.dead_matching(filter, max_jobs);
    DELETE FROM jobqueue_internal.dead_jobs WHERE id = ANY (found);
    GET DIAGNOSTICS jobs = ROW_COUNT;
    RETURN jobs;
END $$;

-- List up to max_jobs dead jobs that match a filter, latest first. The result has the text of the last error, but no
-- payload.
--
-- before, before_id: the died_at and id of the last job on the previous page.
CREATE OR REPLACE FUNCTION jobqueue.list_dead(filter jsonb, max_jobs integer DEFAULT 100, before timestamptz DEFAULT NULL,
                                              before_id uuid DEFAULT NULL) RETURNS SETOF jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET DateStyle = 'ISO, YMD'
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', list_dead.max_jobs)), 'a call', '{max_jobs}');
    RETURN QUERY EXECUTE format(
        'SELECT jsonb_build_object(''id'', d.id, ''queue'', d.queue, ''kind'', d.kind, ''priority'', d.priority, ''reason'', d.reason,'
        ' ''attempt'', d.attempt, ''max_retries'', d.max_retries, ''created_at'', d.created_at, ''died_at'', d.died_at,'
        ' ''node_id'', d.node_id, ''options'', jobqueue_internal.shown(d.options), ''error'', jobqueue_internal.shown(d.errors -> -1 -> ''error''), ''cause'', d.cause)'
        ' FROM jobqueue_internal.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at DESC, d.id DESC LIMIT %L',
        jobqueue_internal.dead_condition(filter),
        CASE WHEN before IS NULL THEN 'true' ELSE format('(d.died_at, d.id) < (%L::timestamptz, %L::uuid)', before, before_id) END,
        max_jobs);
END $$;

-- Group the dead jobs that match a filter by queue, kind and cause, and list up to max_causes groups, largest first.
-- Returns {"causes": [...], "more": true if there are more groups}. Each cause is {"queue", "kind", "cause", "jobs",
-- "first_died_at", "last_died_at", "example": id of the latest job}.
--
-- If the filter has only conditions on queue, kind, cause and times, the query reads only the index dead_jobs_cause,
-- and no rows. It counts along the index, and looks up the first and the last job only for the groups that it returns.
CREATE OR REPLACE FUNCTION jobqueue.dead_causes(filter jsonb DEFAULT '{"all": true}', max_causes integer DEFAULT 100) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_indexscan = off   -- even for one kind or queue, it is faster to read one whole index than the rows of many jobs
SET enable_hashagg = off
SET enable_sort = off
SET max_parallel_workers_per_gather = 0   -- parallel workers would cost the service's jobs more than they save
SET jit = off
AS $$
DECLARE
    meant constant text := jobqueue_internal.dead_condition(filter);
    same constant text := 'd.cause = g.cause AND d.kind = g.kind AND d.queue = g.queue';
    found jsonb;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('max_causes', dead_causes.max_causes)), 'a call', '{max_causes}');
    EXECUTE format(
        'SELECT jsonb_build_object(''causes'', coalesce(jsonb_agg(jsonb_build_object('
        '''queue'', g.queue, ''kind'', g.kind, ''cause'', g.cause, ''jobs'', g.jobs, ''first_died_at'', f.died_at, ''last_died_at'', l.died_at,'
        ' ''example'', l.id) ORDER BY g.place) FILTER (WHERE g.place <= %1$s), ''[]''), ''more'', count(*) > %1$s)'
        ' FROM (SELECT c.*, row_number() OVER (ORDER BY c.jobs DESC, c.cause, c.kind, c.queue) AS place'
        ' FROM (SELECT d.cause, d.kind, d.queue, count(*) AS jobs FROM jobqueue_internal.dead_jobs AS d WHERE %2$s GROUP BY d.cause, d.kind, d.queue'
        ' ORDER BY jobs DESC, d.cause, d.kind, d.queue LIMIT %1$s + 1) AS c) AS g'
        ' CROSS JOIN LATERAL (SELECT d.died_at FROM jobqueue_internal.dead_jobs AS d WHERE %2$s AND %3$s ORDER BY d.died_at, d.id LIMIT 1) AS f'
        ' CROSS JOIN LATERAL (SELECT d.died_at, d.id FROM jobqueue_internal.dead_jobs AS d WHERE %2$s AND %3$s ORDER BY d.died_at DESC, d.id DESC LIMIT 1) AS l',
        max_causes, meant, same) INTO found;
    RETURN found;
END $$;
