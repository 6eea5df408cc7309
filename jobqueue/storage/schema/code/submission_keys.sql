-- Options of new jobs, and their unique and idempotency keys.

-- Convert jobs that were submitted in SQL to the form that submit_batch and the tables use. Times are in UTC. Fields
-- without a column are in "options". submit_batch ignores these fields outside of the options.
CREATE OR REPLACE FUNCTION jobqueue_internal.with_options(jobs jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg(j.job || jsonb_strip_nulls(jsonb_build_object(
               'run_at', to_jsonb(jobqueue_internal.instant(j.job ->> 'run_at') AT TIME ZONE 'UTC') #>> '{}' || 'Z',
               'options', nullif(o.options, '{}')))
                     ORDER BY j.place)
      FROM jsonb_array_elements(with_options.jobs) WITH ORDINALITY AS j (job, place)
     CROSS JOIN LATERAL (SELECT jsonb_strip_nulls(jsonb_build_object(
               'expires_at', extract(epoch FROM jobqueue_internal.instant(j.job ->> 'expires_at')), 'expires_in', j.job -> 'expires_in',
               'group', j.job -> 'group', 'weight', j.job -> 'weight', 'concurrency_key', j.job -> 'concurrency_key',
               'unique', j.job -> 'unique', 'unique_key', j.job -> 'unique_key',
               'idempotency_key', j.job -> 'idempotency_key',
               -- Ignore malformed headers, as W3C Trace Context requires. So no transaction fails because of its trace.
               'traceparent', CASE WHEN j.job ->> 'traceparent'
                                        ~ '^(00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?)$'
                                   THEN left(j.job ->> 'traceparent', 55) END,
               'tracestate', CASE WHEN j.job ->> 'tracestate' ~ '^[ -~]+$' AND length(j.job ->> 'tracestate') <= 512
                                  THEN j.job ->> 'tracestate' END)) AS options) AS o
$$;

-- Reject a batch if one of its jobs has already expired, because that job would never start.
--
-- again: do not check jobs with an id, because they may have been submitted before.
CREATE OR REPLACE FUNCTION jobqueue_internal.refuse_expired(jobs jsonb, present timestamptz, again boolean) RETURNS void
LANGUAGE plpgsql AS $$
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

-- Return a hash of a submission. HTTP and SQL write the same job in different forms, and both forms have the same hash.
-- The hash leaves out the idempotency key, the options that the database and the scheduler add, and the trace, because
-- a retried submission has another span.
CREATE OR REPLACE FUNCTION jobqueue_internal.fingerprint(job jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(
               coalesce(j.queue, 'default'), coalesce(j.kind, 'default'), coalesce(j.priority, 0)::integer, coalesce(j.payload, '{}'), j.max_retries::integer,
               j.timeout, extract(epoch FROM j.run_at)::double precision, j.delay,
               (SELECT jsonb_object_agg(o.key, CASE jsonb_typeof(o.value) WHEN 'number' THEN to_jsonb(o.value::double precision)
                                                                          ELSE o.value END)
                  FROM jsonb_each(j.options - '{idempotency_key,rank,schedule,scheduled_for,traceparent,tracestate}'::text[]) AS o))::text, 'UTF8')), 'hex')
      FROM jsonb_to_record(job) AS j (queue text, kind text, priority numeric, payload jsonb, max_retries numeric,
                                      timeout double precision, run_at timestamptz, delay double precision, options jsonb)
$$;

-- Return the unique key of a job, computed from its columns; NULL if the job has no unique key. At most one unfinished
-- job has the same unique key.
CREATE OR REPLACE FUNCTION jobqueue_internal.unique_key_of(queue text, kind text, payload jsonb, options jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN options ? 'unique_key' THEN options ->> 'unique_key'
                WHEN options -> 'unique' = 'true' THEN
                    'sha256:' || encode(sha256(convert_to(jsonb_build_array(queue, kind, payload)::text, 'UTF8')), 'hex') END
$$;

-- Return the ids and keys of new jobs, in the order of the jobs. A job without an id gets a new id.
CREATE OR REPLACE FUNCTION jobqueue_internal.keys_of(jobs jsonb)
RETURNS TABLE (place integer, id uuid, idempotency_key text, unique_key text)
LANGUAGE sql VOLATILE AS $$
    SELECT j.place::integer, coalesce(j.id, jobqueue_internal.uuid7()), j.options ->> 'idempotency_key',
           jobqueue_internal.unique_key_of(coalesce(j.queue, 'default'), coalesce(j.kind, 'default'), coalesce(j.payload, '{}'), j.options)
      FROM ROWS FROM (jsonb_to_recordset(jobs) AS (id uuid, queue text, kind text, payload jsonb, options jsonb))
           WITH ORDINALITY AS j (id, queue, kind, payload, options, place)
     ORDER BY j.place
$$;

-- Give a unique key to a job and return the job, or return the unfinished job that already has the key. The function
-- locks the row of the key only to change it, so a submission that only finds an existing job holds no lock. While the
-- row is locked, no other transaction can give the key to another job, so the second check of the holder is final.
CREATE OR REPLACE FUNCTION jobqueue_internal.hold_unique_key(unique_key text, job uuid) RETURNS uuid
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    holder uuid;
BEGIN
    LOOP
        INSERT INTO jobqueue_internal.keys (scope, key, job_id, expires_at) VALUES ('unique', unique_key, job, clock_timestamp() + interval '1 day')
            ON CONFLICT (scope, key) DO NOTHING;
        IF FOUND THEN
            RETURN job;
        END IF;
        SELECT k.job_id INTO holder FROM jobqueue_internal.keys AS k
         WHERE k.scope = 'unique' AND k.key = unique_key AND k.job_id <> job AND jobqueue_internal.unfinished(k.job_id);
        IF FOUND THEN
            RETURN holder;
        END IF;
        SELECT k.job_id INTO holder FROM jobqueue_internal.keys AS k WHERE k.scope = 'unique' AND k.key = unique_key FOR UPDATE;
        CONTINUE WHEN NOT FOUND;  -- the row was pruned in the meantime
        IF holder <> job AND jobqueue_internal.unfinished(holder) THEN
            RETURN holder;
        END IF;
        UPDATE jobqueue_internal.keys AS k SET job_id = job, expires_at = clock_timestamp() + interval '1 day' WHERE k.scope = 'unique' AND k.key = unique_key;
        RETURN job;
    END LOOP;
END $$;

-- Look up the keys of new jobs, and store new keys. Each job gets an id. If a key already belongs to another job, the
-- new job must not be stored. It gets "existing", the id of the other job. For a job that is submitted again,
-- "existing" can be the id of that job itself.
--
-- Keys are locked in a fixed order, so two batches cannot block each other. If another transaction holds a key, the
-- call waits for at most 100 ms, because a submitter in SQL can keep its transaction open for an hour. For a batch, it
-- waits for only 20 ms. The reason is that a job with such a key delays the whole batch, and delays it again each time
-- the service halves the batch to find that job.
--
-- Raises JQ409 if an open transaction holds a key, and JQ422 if an idempotency key was used for another job. The column
-- of the error is the field, and its detail is the position in the batch.
CREATE OR REPLACE FUNCTION jobqueue_internal.settle_keys(jobs jsonb, again boolean, ttl double precision) RETURNS jsonb
LANGUAGE plpgsql
SET lock_timeout = '100ms'
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
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
    met jobqueue_internal.keys;
BEGIN
    -- In a repeated submission, a job counts as existing if its row exists, or if its key points to its id. The key
    -- counts even after the job has been deleted.
    SELECT array_agg(g.id ORDER BY g.place),
           array_agg(CASE WHEN again AND (EXISTS (SELECT FROM jobqueue_internal.jobs AS k WHERE k.id = g.id)
                                          OR EXISTS (SELECT FROM jobqueue_internal.keys AS k WHERE k.job_id = g.id AND (
                                                         k.scope = 'idempotency' AND k.key = g.idempotency_key
                                                         OR k.scope = 'unique' AND k.key = g.unique_key)))
                          THEN g.id END ORDER BY g.place)
      INTO ids, existing FROM jobqueue_internal.keys_of(jobs) AS g;

    IF jsonb_array_length(jobs) > 1 THEN
        PERFORM set_config('lock_timeout', '20ms', true);  -- PostgreSQL resets this when the function returns
    END IF;
    BEGIN
        SELECT NULL::text AS key, NULL::text AS fingerprint, NULL::integer AS place INTO last;
        FOR want IN
            SELECT j.place::integer AS place, j.job #>> '{options,idempotency_key}' AS key, jobqueue_internal.fingerprint(j.job) AS fingerprint
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
                    INSERT INTO jobqueue_internal.keys (scope, key, job_id, fingerprint, expires_at)
                    VALUES ('idempotency', want.key, ids[want.place], want.fingerprint, present + ttl * interval '1 second')
                        ON CONFLICT (scope, key) DO NOTHING;
                    EXIT WHEN FOUND;
                    SELECT k.* INTO met FROM jobqueue_internal.keys AS k
                     WHERE k.scope = 'idempotency' AND k.key = want.key AND k.expires_at > present;
                    EXIT WHEN FOUND;
                    UPDATE jobqueue_internal.keys AS k
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
              FROM ROWS FROM (jobqueue_internal.keys_of(jobs), unnest(existing)) AS g (place, id, idempotency_key, unique_key, met)
             WHERE g.unique_key IS NOT NULL AND g.met IS NULL
             ORDER BY g.unique_key COLLATE "C", g.place
        LOOP
            want.holder := CASE WHEN want.key = last.key THEN last.holder ELSE jobqueue_internal.hold_unique_key(want.key, ids[want.place]) END;
            last := want;
            CONTINUE WHEN want.holder = ids[want.place];
            existing[want.place] := want.holder;
            -- This transaction has stored the idempotency key. Point the key to the existing job too.
            UPDATE jobqueue_internal.keys AS k SET job_id = want.holder WHERE k.scope = 'idempotency' AND k.key = want.idempotency_key;
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
