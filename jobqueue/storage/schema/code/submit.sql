-- Submit jobs.

-- Process the options of new jobs, in the transaction that submits them. Returns the jobs in the form in which the
-- caller stores them. If a job already exists, "existing" is the id of the existing job. The caller does not store the
-- new job, and returns that id. Callers need this function only for batches with such options.
-- present: the time of the submission.
CREATE OR REPLACE FUNCTION jobqueue_internal.prepare(jobs jsonb, again boolean, key_ttl double precision, present timestamptz) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    turns jsonb;
BEGIN
    IF jobs @? '$[*].options ? (exists(@.idempotency_key) || exists(@.unique_key) || @.unique == true)' THEN
        jobs := jobqueue_internal.settle_keys(jobs, again, key_ttl);
    END IF;
    PERFORM jobqueue_internal.refuse_expired(jobs, present, again);
    jobs := (
        SELECT jsonb_agg(CASE WHEN j.job -> 'options' ? 'expires_in'
                              THEN jsonb_set(j.job #- '{options,expires_in}', '{options,expires_at}', to_jsonb(
                                   extract(epoch FROM present)::double precision + (j.job #>> '{options,expires_in}')::double precision))
                              ELSE j.job END
                         ORDER BY j.place)
          FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place));
    -- A job that is not due yet gets its turn when it is due, see jobqueue_internal.promote.
    SELECT jobqueue_internal.take_turns(jsonb_agg(jsonb_build_object('key', j.place, 'queue', coalesce(j.job ->> 'queue', 'default'),
               'group', coalesce(j.job #>> '{options,group}', ''), 'weight', j.job #> '{options,weight}',
               'priority', coalesce((j.job ->> 'priority')::numeric, 0)::integer) ORDER BY j.place))
      INTO turns
      FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place)
     WHERE (j.job -> 'options' ? 'group' OR jobqueue_internal.lags(coalesce(j.job ->> 'queue', 'default'), present)) AND NOT j.job ? 'existing'
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
END $$;

-- Submit a batch of jobs. Both submit_many and the service call this function. Returns the ids, and the best rank of
-- each queue that got jobs, as {"queue": seconds}.
--
-- again: the batch may already have been committed, on a connection that broke before it reported the commit. Jobs
--        that exist in any state are not changed. The caller must know that the first connection's transaction has
--        ended.
-- wake:  notify listening nodes. Not needed by a node that will run the jobs itself.
-- node, wants, defaults: also claim jobs for this node in the same transaction, like jobqueue_internal.claim. The claim can take
--        the new jobs even if their ranks are below the floor. `claimed` is its result. It is NULL if no claim was
--        requested, or if the claim failed.
--
-- key_ttl: how long an idempotency key is kept, in seconds.
--
-- uncounted: the jobs are submitted in SQL. No node counts them for the history, so this function records them. Their
--        transaction may have begun long ago, so their times are relative to the start of this call. For jobs from a
--        node, times are relative to the start of the transaction, because a claim in the same call uses that time too.
CREATE OR REPLACE FUNCTION jobqueue_internal.submit_batch(jobs jsonb, again boolean DEFAULT false, wake boolean DEFAULT true,
                                                 node uuid DEFAULT NULL, wants jsonb DEFAULT NULL, defaults jsonb DEFAULT '{}',
                                                 key_ttl double precision DEFAULT 86400, uncounted boolean DEFAULT false)
RETURNS TABLE (ids uuid[], best jsonb, claimed text)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
AS $$
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
    IF EXISTS (SELECT FROM jobqueue_internal.fair_queues AS f WHERE least(f.common, f.urgent) IS NOT NULL)
       OR jobs @? '$[*].options ? (exists(@.idempotency_key) || exists(@.unique_key) || exists(@.unique) || exists(@.group) ||
                                   exists(@.expires_in) || exists(@.expires_at))' THEN
        jobs := jobqueue_internal.prepare(jobs, again, key_ttl, present);
    END IF;
    IF wake AND jobs @? '$[*].options.concurrency_key' THEN
        PERFORM jobqueue_internal.wake_keys();
    END IF;
    -- This search is separate from the statement below, because a statement that searches all jobs opens every
    -- partition, even if it has nothing to search for.
    IF again OR jobs @? '$[*].existing' THEN
        SELECT array_agg(coalesce(j.existing, j.id) ORDER BY j.place),
               coalesce(jsonb_agg(j.job || jsonb_build_object('id', j.id) ORDER BY j.place) FILTER (WHERE j.existing IS NULL AND j.fresh), '[]')
          INTO all_ids, jobs
          FROM (SELECT g.*, NOT again OR g.turn = 1 AND NOT EXISTS (SELECT FROM jobqueue_internal.jobs AS known WHERE known.id = g.id OFFSET 0) AS fresh
                  FROM (SELECT n.*, row_number() OVER (PARTITION BY n.id ORDER BY n.place) AS turn
                          FROM (SELECT e.job, e.place, (e.job ->> 'existing')::uuid AS existing,
                                       coalesce((e.job ->> 'id')::uuid, jobqueue_internal.uuid7()) AS id
                                  FROM jsonb_array_elements(jobs) WITH ORDINALITY AS e (job, place) OFFSET 0) AS n) AS g) AS j;
    END IF;
    WITH given AS MATERIALIZED (
        SELECT coalesce(j.id, jobqueue_internal.uuid7()) AS id, coalesce(j.queue, 'default') AS queue, coalesce(j.kind, 'default') AS kind,
               coalesce(j.priority, 0)::integer AS priority, coalesce(j.payload, '{}') AS payload, j.max_retries::integer AS max_retries, j.timeout,
               coalesce(j.run_at, present + j.delay * interval '1 second') AS run_at, j.options, j.place
          FROM ROWS FROM (jsonb_to_recordset(submit_batch.jobs) AS (
                   id uuid, queue text, kind text, priority numeric, payload jsonb, max_retries numeric,   -- in JSON, 5.0 is the integer 5
                   timeout double precision, run_at timestamptz, delay double precision, options jsonb)) WITH ORDINALITY
               AS j (id, queue, kind, priority, payload, max_retries, timeout, run_at, delay, options, place)
    ), pending AS (
        INSERT INTO jobqueue_internal.pending_jobs AS p
               (id, queue, kind, priority, rank, payload, max_retries, timeout, created_at, available_since, options)
        SELECT f.id, f.queue, f.kind, f.priority, jobqueue_internal.rank_of(a.since, f.priority, q.aging_interval, f.options), f.payload, f.max_retries,
               f.timeout, present, a.since, f.options
          FROM given AS f
          LEFT JOIN jobqueue_internal.queues AS q ON q.name = f.queue
          -- The jobs are a microsecond apart, so that a batch runs in its order. A run_at in the past counts as now.
          -- Otherwise, a job could get ahead of jobs that have really waited.
         CROSS JOIN LATERAL (SELECT present + (f.place - 1) * interval '1 microsecond' AS since) AS a
         WHERE f.run_at IS NULL OR f.run_at <= present
        RETURNING p.queue, p.rank
    ), scheduled AS (
        INSERT INTO jobqueue_internal.scheduled_jobs AS s
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
        INSERT INTO jobqueue_internal.sql_submissions (jobs) VALUES (jsonb_array_length(jobs));
    END IF;
    IF wake THEN
        PERFORM jobqueue_internal.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    END IF;
    IF earliest IS NOT NULL THEN
        PERFORM pg_notify('jobqueue_scheduled', extract(epoch FROM earliest)::text);
    END IF;
    ids := coalesce(all_ids, ids, '{}');
    best := coalesce(best, '{}');
    IF node IS NOT NULL THEN
        BEGIN
            claimed := jobqueue_internal.claim(node, (
                SELECT jsonb_object_agg(w.key, jsonb_build_array(w.value -> 0, CASE WHEN w.value ->> 1 IS NOT NULL
                           THEN least((w.value ->> 1)::double precision, (best ->> w.key)::double precision) END))
                  FROM jsonb_each(wants) AS w), defaults);
        EXCEPTION WHEN OTHERS THEN
            NULL;  -- a submission must not fail because of the claim; the next claim fails with the same error and reports it
        END;
    END IF;
    RETURN NEXT;
END $$;

-- Submit a batch. `jobs` is an array of objects with the fields of jobqueue.submit, all optional. "delay" and
-- "expires_in", in seconds, can replace "run_at" and "expires_at". If a job with the same "id" exists in any state,
-- that job is not changed. Either all jobs are submitted or none. Returns the ids in the order of the array. If a key
-- already belongs to a job, the id of that job is returned instead.
--
-- Call it in your own transaction: the jobs exist if you commit, and do not exist if you roll back.
CREATE OR REPLACE FUNCTION jobqueue.submit_many(jobs jsonb) RETURNS uuid[]
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1
AS $$
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
        PERFORM jobqueue_internal.refuse_unfit(jobs, 'a job', '{kind,payload,queue,priority,max_retries,run_at,delay,timeout,expires_at,expires_in,group,weight,concurrency_key,unique,unique_key,idempotency_key,traceparent,tracestate,id}');
    END IF;
    IF jobs @? '$[*] ? (exists(@.run_at) || exists(@.expires_at) || exists(@.expires_in) || exists(@.group) || exists(@.weight) ||
                        exists(@.concurrency_key) || exists(@.unique) || exists(@.unique_key) || exists(@.idempotency_key) ||
                        exists(@.traceparent) || exists(@.tracestate))' THEN
        jobs := jobqueue_internal.with_options(jobs);
    END IF;
    RETURN (SELECT b.ids FROM jobqueue_internal.submit_batch(jobs, again => jobs @? '$[*].id ? (@ != null)', uncounted => true) AS b);
END $$;

-- Submit one job and return its id:
--     SELECT jobqueue.submit('thumbnail', '{"path": "a.png"}', priority => 5);
-- If a key already has a job, the function returns the id of that job and submits nothing.
CREATE OR REPLACE FUNCTION jobqueue.submit(
    kind        text,
    payload     jsonb            DEFAULT '{}',
    queue       text             DEFAULT 'default',
    priority    integer          DEFAULT 0,       -- 0 or more; a job with a higher priority runs first
    max_retries integer          DEFAULT NULL,    -- default: the handler's value, or 3
    run_at      timestamptz      DEFAULT NULL,    -- default: now
    timeout     double precision DEFAULT NULL,    -- seconds; default: the handler's timeout, or none
    expires_at  timestamptz      DEFAULT NULL,    -- the job is not started after this time; default: never expires
    "group"     text             DEFAULT NULL,    -- jobs of groups, such as tenants, share the workers fairly
    weight      double precision DEFAULT NULL,    -- a higher weight gives the group a larger share; default: 1
    idempotency_key text         DEFAULT NULL,    -- for a day, another submission with this key returns the same job
    unique_key  text             DEFAULT NULL,    -- at most one unfinished job has this key
    "unique"    boolean          DEFAULT NULL,    -- at most one unfinished job has this queue, kind and payload
    concurrency_key text         DEFAULT NULL,    -- for example, an account; the queue's key limits apply to all jobs with the same key
    traceparent text             DEFAULT NULL,    -- parent of the handler's span (W3C Trace Context)
    tracestate  text             DEFAULT NULL
) RETURNS uuid
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1
AS $$
    SELECT (jobqueue.submit_many(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'kind', kind, 'queue', queue, 'priority', priority, 'max_retries', max_retries,
        'run_at', to_jsonb(run_at AT TIME ZONE 'UTC') #>> '{}' || 'Z', 'timeout', timeout,
        'expires_at', to_jsonb(expires_at AT TIME ZONE 'UTC') #>> '{}' || 'Z', 'group', "group", 'weight', weight,
        'idempotency_key', idempotency_key, 'unique_key', unique_key, 'unique', "unique", 'concurrency_key', concurrency_key,
        'traceparent', traceparent, 'tracestate', tracestate)) || jsonb_build_object('payload', payload))))[1]
$$;
