-- jobqueue: the whole database side, in the schema "jobqueue".
--
-- Run it with `psql -f schema.sql`, with `jobqueue migrate`, or leave it to `jobqueue serve`: it is complete and idempotent, takes
-- one transaction, and refuses a database that a newer jobqueue has already migrated. PostgreSQL 14 or newer.
--
-- A job's state is the table that its row is in:
--
--     scheduled_jobs --promote--> pending_jobs --claim--> inflight_jobs --finish--> finished_jobs | dead_jobs | scheduled_jobs
--                                      ^------ release, recover --------'
--
-- Every arrow is one function below and one transaction. Functions are called with batches, as one JSON document in and one out:
-- that is what makes them fast (ARCHITECTURE.md has the figures).
--
-- An id is one job. Where somebody's SQL made two rows of one, the row that arrives in a table gives way to the one that is there
-- (ON CONFLICT DO NOTHING): an error would end the batch, and every node in turn that tries it.

BEGIN;

SET LOCAL client_min_messages = warning;
-- Two nodes that start at once must not both create: 'jobqueue' in ASCII, cut to 63 bits.
SELECT pg_advisory_xact_lock(7669743430829532517);

CREATE SCHEMA IF NOT EXISTS jobqueue;

CREATE TABLE IF NOT EXISTS jobqueue.schema_version (
    version    integer     NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

DO $$
DECLARE
    this_version constant integer := 1;
    found integer := (SELECT max(version) FROM jobqueue.schema_version);
BEGIN
    IF found > this_version THEN
        RAISE EXCEPTION 'the database has jobqueue schema version %, this schema.sql is version %', found, this_version
            USING HINT = 'Upgrade this jobqueue, or point it at another database.';
    ELSIF found IS NULL THEN
        INSERT INTO jobqueue.schema_version (version) VALUES (this_version);
    END IF;
END $$;

-- ------------------------------------------------------------------------------------------------------------------- tables

-- Rows exist only for queues that somebody configured or a node works; a queue without a row has the defaults.
CREATE TABLE IF NOT EXISTS jobqueue.queues (
    name           text        PRIMARY KEY,
    paused         boolean     NOT NULL DEFAULT false,
    aging_interval interval    NOT NULL DEFAULT '1 second'
                   CONSTRAINT aging_interval_range CHECK (aging_interval BETWEEN '0 seconds' AND '1 day'),  -- more has no rank
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- One row per running process. Its lease covers every job that it holds, so a heartbeat is one write, whatever is in flight.
-- lease_until is not indexed and pages keep room, so that every renewal is a HOT update.
CREATE TABLE IF NOT EXISTS jobqueue.nodes (
    id           uuid        PRIMARY KEY,
    host         text        NOT NULL,
    pid          integer     NOT NULL,
    process      text        NOT NULL,   -- this boot of this machine, this process: lets a restart know its dead predecessor
    version      text        NOT NULL,
    queues       jsonb       NOT NULL,   -- {"queue": concurrency}
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    lease_until  timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- rank = available_since - priority * aging_interval, smaller runs first. Waiting one aging_interval is worth one priority point,
-- and as every job ages at the same rate the order never changes: the index below is the priority queue with aging.
CREATE TABLE IF NOT EXISTS jobqueue.pending_jobs (
    id              uuid             NOT NULL PRIMARY KEY,
    queue           text             NOT NULL,
    kind            text             NOT NULL,
    priority        integer          NOT NULL,
    rank            timestamptz      NOT NULL,
    payload         jsonb            NOT NULL,
    max_retries     integer,             -- NULL until the first claim: then the handler's, or 3
    timeout         double precision,    -- seconds; NULL: the handler's, or none
    attempt         integer          NOT NULL DEFAULT 0,   -- claims that count against max_retries: a refunded one does not
    claims          integer          NOT NULL DEFAULT 0,   -- all claims ever: with the id, the fencing token of a run
    created_at      timestamptz      NOT NULL,
    available_since timestamptz      NOT NULL,   -- creation, or the first run_at: a retry keeps its place
    errors          jsonb            NOT NULL DEFAULT '[]',
    options         jsonb,               -- what was asked for beyond the columns, see jobqueue.with_options; NULL: nothing
    saved           jsonb,               -- what its runs have noted: progress and checkpoint; NULL: nothing
    CONSTRAINT kind_length CHECK (length(kind) BETWEEN 1 AND 200),
    CONSTRAINT queue_length CHECK (length(queue) BETWEEN 1 AND 200),
    CONSTRAINT priority_range CHECK (priority BETWEEN 0 AND 1000000),
    CONSTRAINT max_retries_range CHECK (max_retries BETWEEN 0 AND 1000),
    CONSTRAINT timeout_range CHECK (timeout > 0 AND timeout <= 604800),
    CONSTRAINT times_finite CHECK (isfinite(rank) AND isfinite(created_at) AND isfinite(available_since))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000);

CREATE INDEX IF NOT EXISTS pending_jobs_claim ON jobqueue.pending_jobs (queue, rank);

CREATE TABLE IF NOT EXISTS jobqueue.scheduled_jobs (
    id              uuid             NOT NULL PRIMARY KEY,
    queue           text             NOT NULL,
    kind            text             NOT NULL,
    priority        integer          NOT NULL,
    run_at          timestamptz      NOT NULL,
    payload         jsonb            NOT NULL,
    max_retries     integer,
    timeout         double precision,
    attempt         integer          NOT NULL DEFAULT 0,
    claims          integer          NOT NULL DEFAULT 0,
    created_at      timestamptz      NOT NULL,
    available_since timestamptz      NOT NULL,
    errors          jsonb            NOT NULL DEFAULT '[]',
    options         jsonb,
    saved           jsonb,
    CONSTRAINT run_at_finite CHECK (isfinite(run_at)),
    CONSTRAINT kind_length CHECK (length(kind) BETWEEN 1 AND 200),
    CONSTRAINT queue_length CHECK (length(queue) BETWEEN 1 AND 200),
    CONSTRAINT priority_range CHECK (priority BETWEEN 0 AND 1000000),
    CONSTRAINT max_retries_range CHECK (max_retries BETWEEN 0 AND 1000),
    CONSTRAINT timeout_range CHECK (timeout > 0 AND timeout <= 604800)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS scheduled_jobs_promote ON jobqueue.scheduled_jobs (run_at);

-- No index on node_id: the table holds what is running now, and only a lost node's jobs are looked for that way.
CREATE TABLE IF NOT EXISTS jobqueue.inflight_jobs (
    id              uuid             NOT NULL PRIMARY KEY,
    queue           text             NOT NULL,
    kind            text             NOT NULL,
    priority        integer          NOT NULL,
    node_id         uuid             NOT NULL,
    claimed_at      timestamptz      NOT NULL,
    payload         jsonb            NOT NULL,
    max_retries     integer          NOT NULL,
    timeout         double precision,
    attempt         integer          NOT NULL,
    claims          integer          NOT NULL,
    created_at      timestamptz      NOT NULL,
    available_since timestamptz      NOT NULL,
    errors          jsonb            NOT NULL,
    options         jsonb,
    saved           jsonb
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- By day, so that retention drops a partition and never deletes a million rows.
CREATE TABLE IF NOT EXISTS jobqueue.finished_jobs (
    id              uuid             NOT NULL,
    queue           text             NOT NULL,
    kind            text             NOT NULL,
    priority        integer          NOT NULL,
    state           text             NOT NULL CHECK (state IN ('succeeded', 'cancelled')),
    payload         jsonb            NOT NULL,
    max_retries     integer,
    timeout         double precision,
    attempt         integer          NOT NULL,
    claims          integer          NOT NULL,
    created_at      timestamptz      NOT NULL,
    available_since timestamptz      NOT NULL,
    claimed_at      timestamptz,
    finished_at     timestamptz      NOT NULL,
    node_id         uuid,
    result          jsonb,
    errors          jsonb            NOT NULL,
    options         jsonb,
    saved           jsonb
) PARTITION BY RANGE (finished_at);

CREATE INDEX IF NOT EXISTS finished_jobs_id ON jobqueue.finished_jobs (id);

-- Catches a finish on a day whose partition nobody made yet: bookkeeping may be late, a completion may not fail.
CREATE TABLE IF NOT EXISTS jobqueue.finished_jobs_default PARTITION OF jobqueue.finished_jobs DEFAULT;

CREATE TABLE IF NOT EXISTS jobqueue.dead_jobs (
    id              uuid             NOT NULL PRIMARY KEY,
    queue           text             NOT NULL,
    kind            text             NOT NULL,
    priority        integer          NOT NULL,
    reason          text             NOT NULL,
    payload         jsonb            NOT NULL,
    max_retries     integer,
    timeout         double precision,
    attempt         integer          NOT NULL,
    claims          integer          NOT NULL,
    created_at      timestamptz      NOT NULL,
    available_since timestamptz      NOT NULL,
    died_at         timestamptz      NOT NULL,
    node_id         uuid,
    errors          jsonb            NOT NULL,
    options         jsonb,
    saved           jsonb
);

CREATE INDEX IF NOT EXISTS dead_jobs_died_at ON jobqueue.dead_jobs (died_at);

-- Which job a key stands for. scope 'idempotency': the job that the first submission with this key got, until expires_at, whatever became of
-- the job. scope 'unique': the job that holds the key for as long as it is not finished. Nobody writes here when it ends: who submits the
-- key looks, and takes over. expires_at is then when to look whether the row is still of use.
CREATE TABLE IF NOT EXISTS jobqueue.keys (
    scope       text        NOT NULL CHECK (scope IN ('idempotency', 'unique')),
    key         text        NOT NULL,
    job_id      uuid        NOT NULL,
    fingerprint text,                 -- of what was submitted with an idempotency key
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (scope, key),
    CONSTRAINT key_length CHECK (length(key) BETWEEN 1 AND 200)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS keys_expires_at ON jobqueue.keys (expires_at);

-- ------------------------------------------------------------------------------------------------------------- looking things up

CREATE OR REPLACE VIEW jobqueue.jobs AS
    SELECT id, 'pending' AS state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL::timestamptz AS run_at, NULL::timestamptz AS claimed_at, NULL::timestamptz AS ended_at, NULL::uuid AS node_id,
           NULL::jsonb AS result, NULL::text AS reason, errors, options, saved
      FROM jobqueue.pending_jobs
    UNION ALL
    SELECT id, 'scheduled', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           run_at, NULL, NULL, NULL, NULL, NULL, errors, options, saved
      FROM jobqueue.scheduled_jobs
    UNION ALL
    SELECT id, 'inflight', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL, claimed_at, NULL, node_id, NULL, NULL, errors, options, saved
      FROM jobqueue.inflight_jobs
    UNION ALL
    SELECT id, state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL, claimed_at, finished_at, node_id, result, NULL, errors, options, saved
      FROM jobqueue.finished_jobs
    UNION ALL
    SELECT id, 'dead', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL, NULL, died_at, node_id, NULL, reason, errors, options, saved
      FROM jobqueue.dead_jobs;

-- Whether a job is still to run, or runs. One statement, so that a job that moves meanwhile is seen in exactly one table.
CREATE OR REPLACE FUNCTION jobqueue.unfinished(job uuid) RETURNS boolean
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM jobqueue.pending_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue.inflight_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue.scheduled_jobs AS j WHERE j.id = job);
END $$;

-- A version 7 UUID (RFC 9562, 5.7): milliseconds since 1970 in the first 48 bits, so ids sort by creation. PostgreSQL has its own
-- from 18 on; ours is the same on every version that we support.
CREATE OR REPLACE FUNCTION jobqueue.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
        'hex')::uuid
$$;

-- Where a job of this queue stands in line; NULL for a queue without a row means the default aging interval. A rank among the options
-- was given once and for all.
CREATE OR REPLACE FUNCTION jobqueue.rank_of(available_since timestamptz, priority integer, aging_interval interval, options jsonb)
RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT coalesce(to_timestamp((options -> 'rank')::double precision),
                    available_since - priority * coalesce(aging_interval, '1 second'::interval))
$$;

-- Tell listening nodes that a queue got jobs, and the best rank among them: a node need not look at better ones.
CREATE OR REPLACE FUNCTION jobqueue.wake(queue text, rank timestamptz) RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue', extract(epoch FROM rank) || ' ' || queue) $$;

-- ------------------------------------------------------------------------------------------------------------------- submit

-- Move what jobs ask for beyond the columns into "options", where submit_batch and the tables have it: from names beside the others.
CREATE OR REPLACE FUNCTION jobqueue.with_options(jobs jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg(CASE WHEN o.options = '{}' THEN j.job
                          ELSE (j.job - '{expires_at,expires_in,group,weight,concurrency_key,unique,unique_key,idempotency_key}'::text[])
                               || jsonb_build_object('options', coalesce(nullif(j.job -> 'options', 'null'), '{}') || o.options) END
                     ORDER BY j.place)
      FROM jsonb_array_elements(with_options.jobs) WITH ORDINALITY AS j (job, place)
     CROSS JOIN LATERAL (SELECT jsonb_strip_nulls(jsonb_build_object(
               'expires_at', extract(epoch FROM (j.job ->> 'expires_at')::timestamptz), 'expires_in', j.job -> 'expires_in',
               'group', j.job -> 'group', 'weight', j.job -> 'weight', 'concurrency_key', j.job -> 'concurrency_key',
               'unique', j.job -> 'unique', 'unique_key', j.job -> 'unique_key',
               'idempotency_key', j.job -> 'idempotency_key')) AS options) AS o
$$;

-- What a submission asks for, as a hash: of the same job as HTTP and SQL each spell it, it is the same. Without the key itself, and
-- without what the database and the scheduler note among the options.
CREATE OR REPLACE FUNCTION jobqueue.fingerprint(job jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT encode(sha256(convert_to(jsonb_build_array(
               coalesce(j.queue, 'default'), coalesce(j.kind, 'default'), coalesce(j.priority, 0), coalesce(j.payload, '{}'), j.max_retries,
               j.timeout, extract(epoch FROM j.run_at)::double precision, j.delay,
               (SELECT jsonb_object_agg(o.key, CASE jsonb_typeof(o.value) WHEN 'number' THEN to_jsonb(o.value::double precision)
                                                                          ELSE o.value END)
                  FROM jsonb_each(j.options - '{idempotency_key,rank,schedule,scheduled_for}'::text[]) AS o))::text, 'UTF8')), 'hex')
      FROM jsonb_to_record(job) AS j (queue text, kind text, priority integer, payload jsonb, max_retries integer,
                                      timeout double precision, run_at timestamptz, delay double precision, options jsonb)
$$;

-- The key of which there may be one unfinished job, by a job's own columns; NULL for a job that may have any number beside it.
CREATE OR REPLACE FUNCTION jobqueue.unique_key_of(queue text, kind text, payload jsonb, options jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN options ? 'unique_key' THEN options ->> 'unique_key'
                WHEN options -> 'unique' = 'true' THEN
                    'sha256:' || encode(sha256(convert_to(jsonb_build_array(queue, kind, payload)::text, 'UTF8')), 'hex') END
$$;

-- The ids and keys of new jobs, in their order; a job without an id gets one.
CREATE OR REPLACE FUNCTION jobqueue.keys_of(jobs jsonb)
RETURNS TABLE (place integer, id uuid, idempotency_key text, unique_key text)
LANGUAGE sql VOLATILE AS $$
    SELECT j.place::integer, coalesce(j.id, jobqueue.uuid7()), j.options ->> 'idempotency_key',
           jobqueue.unique_key_of(coalesce(j.queue, 'default'), coalesce(j.kind, 'default'), coalesce(j.payload, '{}'), j.options)
      FROM ROWS FROM (jsonb_to_recordset(jobs) AS (id uuid, queue text, kind text, payload jsonb, options jsonb))
           WITH ORDINALITY AS j (id, queue, kind, payload, options, place)
     ORDER BY j.place
$$;

-- Give a job a unique key, or return the unfinished job that has it. The row is locked only to be written: what merely meets a job leaves
-- nothing behind that others would wait for. Once it is locked nobody else can give the key away, so a second look decides.
CREATE OR REPLACE FUNCTION jobqueue.hold_unique_key(unique_key text, job uuid) RETURNS uuid
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_column
DECLARE
    holder uuid;
BEGIN
    LOOP
        INSERT INTO jobqueue.keys (scope, key, job_id, expires_at) VALUES ('unique', unique_key, job, now() + interval '1 day')
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
        CONTINUE WHEN NOT FOUND;  -- pruned in between
        IF holder <> job AND jobqueue.unfinished(holder) THEN
            RETURN holder;
        END IF;
        UPDATE jobqueue.keys AS k SET job_id = job, expires_at = now() + interval '1 day' WHERE k.scope = 'unique' AND k.key = unique_key;
        RETURN job;
    END LOOP;
END $$;

-- Look up the keys of new jobs, and enter those that are new. Each job gets an id, and one that need not be stored gets "existing": the
-- id of the job that is there in its place, which may be its own where it is submitted again.
--
-- Keys are taken in order, so that two batches cannot wait for each other. What waits for another transaction's keys waits 100 ms: a
-- submitter in SQL may take an hour. In a batch it is 20 ms, since one such job holds up all, and again for each time that the service
-- halves the batch to find it.
--
-- Raises JQ409 where a key is in a transaction that does not end, JQ422 where an idempotency key was used for something else: with the
-- field as the column, and the place in the batch in the detail.
CREATE OR REPLACE FUNCTION jobqueue.settle_keys(jobs jsonb, again boolean, ttl double precision) RETURNS jsonb
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
    twins integer[] := array_fill(NULL::integer, ARRAY[jsonb_array_length(jobs)]);   -- the first job of the batch with this one's key
    field text := 'idempotency_key';
    want record;
    last record;
    met jobqueue.keys;
BEGIN
    -- Submitted again, a job that is there, or has its key and is gone, is there already.
    SELECT array_agg(g.id ORDER BY g.place),
           array_agg(CASE WHEN again AND (EXISTS (SELECT FROM jobqueue.jobs AS k WHERE k.id = g.id)
                                          OR EXISTS (SELECT FROM jobqueue.keys AS k WHERE k.job_id = g.id AND (
                                                         k.scope = 'idempotency' AND k.key = g.idempotency_key
                                                         OR k.scope = 'unique' AND k.key = g.unique_key)))
                          THEN g.id END ORDER BY g.place)
      INTO ids, existing FROM jobqueue.keys_of(jobs) AS g;

    IF jsonb_array_length(jobs) > 1 THEN
        PERFORM set_config('lock_timeout', '20ms', true);  -- until this function returns
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
                    VALUES ('idempotency', want.key, ids[want.place], want.fingerprint, now() + ttl * interval '1 second')
                        ON CONFLICT (scope, key) DO NOTHING;
                    EXIT WHEN FOUND;
                    SELECT k.* INTO met FROM jobqueue.keys AS k
                     WHERE k.scope = 'idempotency' AND k.key = want.key AND k.expires_at > now();
                    EXIT WHEN FOUND;
                    UPDATE jobqueue.keys AS k
                       SET job_id = ids[want.place], fingerprint = want.fingerprint, expires_at = now() + ttl * interval '1 second'
                     WHERE k.scope = 'idempotency' AND k.key = want.key AND k.expires_at <= now();
                    EXIT WHEN FOUND;
                END LOOP;
                existing[want.place] := met.job_id;
                last := want;
            END IF;
            IF met.fingerprint <> want.fingerprint THEN
                RAISE EXCEPTION 'the idempotency_key % was used for another job than this one: a new job takes a new key', to_json(want.key)
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
            -- The idempotency key, which this transaction has just entered, stands for that job too.
            UPDATE jobqueue.keys AS k SET job_id = want.holder WHERE k.scope = 'idempotency' AND k.key = want.idempotency_key;
        END LOOP;
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'the % % is in a transaction that is not over yet: submit this job again later', field, to_json(want.key)
            USING ERRCODE = 'JQ409', COLUMN = field, DETAIL = 'index ' || want.place - 1 || ' of the batch';
    END;

    IF array_remove(existing, NULL) <> '{}' THEN
        -- What is there may have been committed by somebody who did not wait for the disk, or was cut short while he waited for a
        -- synchronous standby. Commits are in order, so one of our own, which waits, covers it.
        PERFORM pg_logical_emit_message(true, 'jobqueue', 'existing');
    END IF;
    RETURN (SELECT jsonb_agg(j.job || jsonb_build_object('id', j.id)
                             || CASE WHEN j.met IS NULL THEN '{}'
                                     ELSE jsonb_build_object('existing', coalesce(existing[j.twin], j.met)) END ORDER BY j.place)
              FROM ROWS FROM (jsonb_array_elements(jobs), unnest(ids), unnest(existing), unnest(twins)) WITH ORDINALITY
                   AS j (job, id, met, twin, place));
END $$;

-- Do what the options of new jobs ask for, in the transaction that submits them; returns the jobs as they are to be stored. A job that is
-- there already has its id as "existing": it is not stored, and that id is returned for it. Not called for a batch without options.
CREATE OR REPLACE FUNCTION jobqueue.prepare(jobs jsonb, again boolean, key_ttl double precision) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
    IF jobs @? '$[*].options ? (exists(@.idempotency_key) || exists(@.unique_key) || @.unique == true)' THEN
        jobs := jobqueue.settle_keys(jobs, again, key_ttl);
    END IF;
    RETURN (SELECT jsonb_agg(CASE WHEN j.job -> 'options' ? 'expires_in'
                                  THEN jsonb_set(j.job #- '{options,expires_in}', '{options,expires_at}', to_jsonb(
                                       extract(epoch FROM now())::double precision + (j.job #>> '{options,expires_in}')::double precision))
                                  ELSE j.job END
                             ORDER BY j.place)
              FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place));
END $$;

-- What submit_many does, for the service. Returns the ids, and the best rank of each queue that got jobs, as {"queue": seconds}.
--
-- again: the same batch may already have been committed by a connection that broke before it could say so; jobs that exist in any
--        state are left alone. The caller must know that the first connection's transaction is over.
-- wake:  tell listening nodes. A node that will run the jobs itself need not.
-- node, wants, defaults: claim for this node in the same transaction, as jobqueue.claim does; of the new jobs also those below the floor.
--        Returns what was claimed; NULL where nothing was asked for, or the claim failed.
-- key_ttl: for how many seconds an idempotency key is known.
CREATE OR REPLACE FUNCTION jobqueue.submit_batch(jobs jsonb, again boolean DEFAULT false, wake boolean DEFAULT true,
                                                 node uuid DEFAULT NULL, wants jsonb DEFAULT NULL, defaults jsonb DEFAULT '{}',
                                                 key_ttl double precision DEFAULT 86400)
RETURNS TABLE (ids uuid[], best jsonb, claimed text)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    earliest timestamptz;
    all_ids uuid[];   -- where some of the jobs are there already
BEGIN
    IF again THEN
        -- What is already there may have been committed on this server alone: a wait for a synchronous standby that was cut short
        -- commits all the same. Commits are replicated in order, so one more, which waits, covers it; without a record of its own a
        -- transaction that finds everything in place would not wait.
        PERFORM pg_logical_emit_message(true, 'jobqueue', 'submit again');
        -- Who submits the same ids at the same time waits here until they are visible. Few locks, however many ids.
        PERFORM pg_advisory_xact_lock(7669743, l.number)
           FROM (SELECT DISTINCT hashtext(j ->> 'id') & 63 AS number FROM jsonb_array_elements(jobs) AS j WHERE j ? 'id'
                  ORDER BY number) AS l;
    END IF;
    IF jobs @? '$[*].options' THEN
        jobs := jobqueue.prepare(jobs, again, key_ttl);
        IF jobs @? '$[*].existing' THEN
            SELECT array_agg(coalesce(j.job ->> 'existing', j.job ->> 'id')::uuid ORDER BY j.place),
                   coalesce(jsonb_agg(j.job ORDER BY j.place) FILTER (WHERE NOT j.job ? 'existing'), '[]')
              INTO all_ids, jobs
              FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place);
        END IF;
    END IF;
    WITH given AS MATERIALIZED (
        SELECT coalesce(j.id, jobqueue.uuid7()) AS id, coalesce(j.queue, 'default') AS queue, coalesce(j.kind, 'default') AS kind,
               coalesce(j.priority, 0) AS priority, coalesce(j.payload, '{}') AS payload, j.max_retries, j.timeout,
               coalesce(j.run_at, now() + j.delay * interval '1 second') AS run_at, j.options, j.place
          FROM ROWS FROM (jsonb_to_recordset(submit_batch.jobs) AS (
                   id uuid, queue text, kind text, priority integer, payload jsonb, max_retries integer,
                   timeout double precision, run_at timestamptz, delay double precision, options jsonb)) WITH ORDINALITY
               AS j (id, queue, kind, priority, payload, max_retries, timeout, run_at, delay, options, place)
    ), fresh AS MATERIALIZED (
        SELECT given.* FROM given
         WHERE NOT submit_batch.again
            OR NOT EXISTS (SELECT FROM jobqueue.jobs AS known WHERE known.id = given.id)
               AND given.place IN (SELECT min(first.place) FROM given AS first GROUP BY first.id)
    ), pending AS (
        INSERT INTO jobqueue.pending_jobs AS p
               (id, queue, kind, priority, rank, payload, max_retries, timeout, created_at, available_since, options)
        SELECT f.id, f.queue, f.kind, f.priority, jobqueue.rank_of(a.since, f.priority, q.aging_interval, f.options), f.payload, f.max_retries,
               f.timeout, now(), a.since, f.options
          FROM fresh AS f
          LEFT JOIN jobqueue.queues AS q ON q.name = f.queue
          -- A microsecond apart each, so that a batch runs in the order that it was given in. A run_at in the past is now: it must
          -- not buy a better place than those have who waited.
         CROSS JOIN LATERAL (SELECT now() + (f.place - 1) * interval '1 microsecond' AS since) AS a
         WHERE f.run_at IS NULL OR f.run_at <= now()
        RETURNING p.queue, p.rank
    ), scheduled AS (
        INSERT INTO jobqueue.scheduled_jobs AS s
               (id, queue, kind, priority, run_at, payload, max_retries, timeout, created_at, available_since, options)
        SELECT f.id, f.queue, f.kind, f.priority, f.run_at, f.payload, f.max_retries, f.timeout, now(), f.run_at, f.options
          FROM fresh AS f
         WHERE f.run_at > now()
        RETURNING s.run_at
    )
    SELECT (SELECT array_agg(given.id ORDER BY given.place) FROM given),
           (SELECT jsonb_object_agg(b.queue, extract(epoch FROM b.rank))
              FROM (SELECT pending.queue, min(pending.rank) AS rank FROM pending GROUP BY pending.queue) AS b),
           (SELECT min(scheduled.run_at) FROM scheduled)
      INTO ids, best, earliest;

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
            NULL;  -- a submission does not fail for it; the next claim meets the same, and says so
        END;
    END IF;
    RETURN NEXT;
END $$;

-- Submit a batch: jobs is an array of objects with the fields of jobqueue.submit (all optional), plus "delay" in seconds instead of
-- "run_at", and "id": a job whose id exists in any state is left alone. All or nothing. Returns the ids in the order of the array: where
-- a key says that a job is there already, the id of that one.
-- Call it in your own transaction: commit and the jobs exist, roll back and they never did.
CREATE OR REPLACE FUNCTION jobqueue.submit_many(jobs jsonb) RETURNS uuid[]
LANGUAGE sql AS $$ SELECT ids FROM jobqueue.submit_batch(jobqueue.with_options(jobs), again => jobs @? '$[*].id') $$;

-- Submit one job and get its id: SELECT jobqueue.submit('thumbnail', '{"path": "a.png"}', priority => 5);
-- Where a key says that the job is there already, get the id of that one, and nothing is submitted.
CREATE OR REPLACE FUNCTION jobqueue.submit(
    kind        text,
    payload     jsonb            DEFAULT '{}',
    queue       text             DEFAULT 'default',
    priority    integer          DEFAULT 0,       -- 0 or more, higher first
    max_retries integer          DEFAULT NULL,    -- the handler's, or 3
    run_at      timestamptz      DEFAULT NULL,    -- now
    timeout     double precision DEFAULT NULL,    -- seconds; the handler's, or none
    expires_at  timestamptz      DEFAULT NULL,    -- never: when it is no use to start it any more
    idempotency_key text         DEFAULT NULL,    -- for a day, the same key is the same job
    unique_key  text             DEFAULT NULL,    -- at most one job of this key that is not finished
    "unique"    boolean          DEFAULT NULL     -- at most one job of this queue, kind and payload that is not finished
) RETURNS uuid
LANGUAGE sql AS $$
    SELECT (jobqueue.submit_many(jsonb_build_array(jsonb_build_object(
        'kind', kind, 'payload', payload, 'queue', queue, 'priority', priority, 'max_retries', max_retries, 'run_at', run_at,
        'timeout', timeout, 'expires_at', expires_at, 'idempotency_key', idempotency_key, 'unique_key', unique_key, 'unique', "unique"))))[1]
$$;

-- ------------------------------------------------------------------------------------------------------------------- nodes

-- Enter a node, with a lease of so many seconds. The queues that it works get their row, so that they can be seen and paused.
CREATE OR REPLACE FUNCTION jobqueue.join_node(
    node uuid, host text, pid integer, process text, version text, queues jsonb, lease double precision
) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO jobqueue.queues (name) SELECT jsonb_object_keys(join_node.queues) ON CONFLICT (name) DO NOTHING;
    INSERT INTO jobqueue.nodes (id, host, pid, process, version, queues, lease_until)
    VALUES (node, join_node.host, join_node.pid, join_node.process, join_node.version, join_node.queues,
            now() + lease * interval '1 second')
$$;

-- Renew a node's lease, by the database's clock. False: the lease is lost for good, the node's jobs are somebody else's. A lease
-- that ran out while nobody took it (the database was away) is renewed: running jobs survive an outage.
CREATE OR REPLACE FUNCTION jobqueue.heartbeat(node uuid, lease double precision) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE jobqueue.nodes SET heartbeat_at = now(), lease_until = now() + lease * interval '1 second' WHERE id = node;
    RETURN FOUND;
END $$;

-- Leave: hand back whatever the node still holds, with the attempts refunded, and delete its row. Returns the jobs handed back.
CREATE OR REPLACE FUNCTION jobqueue.leave_node(node uuid) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    released integer;
BEGIN
    WITH held AS (
        DELETE FROM jobqueue.inflight_jobs WHERE node_id = node RETURNING *
    ), back AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT h.id, h.queue, h.kind, h.priority, jobqueue.rank_of(h.available_since, h.priority, q.aging_interval, h.options), h.payload,
               h.max_retries, h.timeout, h.attempt - 1, h.claims, h.created_at, h.available_since, h.errors, h.options, h.saved
          FROM held AS h LEFT JOIN jobqueue.queues AS q ON q.name = h.queue
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT sum(jobs) AS jobs, count(jobqueue.wake(queue, rank))
          FROM (SELECT queue, min(rank) AS rank, count(*) AS jobs FROM back GROUP BY queue) AS queues
    )
    SELECT coalesce(told.jobs, 0) INTO released FROM told;
    DELETE FROM jobqueue.nodes WHERE id = node;
    RETURN released;
END $$;

-- Take back the jobs of lost nodes: to pending, or to dead once their attempts are used up (the attempt was counted at the claim, so
-- a job that kills its process cannot do so for ever). A node whose lease ran out loses its row first; from then on its heartbeat
-- fails. The jobs to take are those of nodes without a row, so a claim that commits in between is found by the next call. Rows in id
-- order, SKIP LOCKED: a completion that is being written at this moment wins.
--
-- judge: a node that takes the lease of those whose time ran out; NULL spares them. After an outage of the database all have run out, so
--        the judge must hold its own: where it does not, the database was away, or the judge was.
CREATE OR REPLACE FUNCTION jobqueue.recover(max_jobs integer DEFAULT 1000, judge uuid DEFAULT NULL)
RETURNS TABLE (id uuid, queue text, kind text, attempt integer, node_id uuid, outcome text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM jobqueue.nodes AS n
     WHERE n.lease_until <= now() AND EXISTS (SELECT FROM jobqueue.nodes AS j WHERE j.id = judge AND j.lease_until > now());
    RETURN QUERY
    WITH lost AS (
        DELETE FROM jobqueue.inflight_jobs AS i
         WHERE i.id = ANY (ARRAY(
                   SELECT l.id FROM jobqueue.inflight_jobs AS l
                    WHERE NOT EXISTS (SELECT FROM jobqueue.nodes AS n WHERE n.id = l.node_id)
                    ORDER BY l.id LIMIT max_jobs FOR UPDATE OF l SKIP LOCKED))
        RETURNING i.*
    ), judged AS (
        SELECT lost.*, lost.attempt > lost.max_retries AS spent,
               jobqueue.with_error(lost.errors, jsonb_build_object('attempt', lost.attempt, 'at', now(), 'node', lost.node_id,
                   'error', 'lease lost: the node that ran this attempt stopped renewing its lease')) AS all_errors
          FROM lost
    ), dead AS (
        INSERT INTO jobqueue.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at,
                                        available_since, died_at, node_id, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, 'lease lost ' || j.attempt || ' times: the job may be killing its process',
               j.payload, j.max_retries, j.timeout, j.attempt, j.claims, j.created_at, j.available_since, now(), j.node_id, j.all_errors, j.options, j.saved
          FROM judged AS j WHERE j.spent
            ON CONFLICT (id) DO NOTHING
    ), back AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, jobqueue.rank_of(j.available_since, j.priority, q.aging_interval, j.options), j.payload,
               j.max_retries, j.timeout, j.attempt, j.claims, j.created_at, j.available_since, j.all_errors, j.options, j.saved
          FROM judged AS j LEFT JOIN jobqueue.queues AS q ON q.name = j.queue WHERE NOT j.spent
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM back GROUP BY queue) AS queues
    )
    SELECT j.id, j.queue, j.kind, j.attempt, j.node_id, CASE WHEN j.spent THEN 'dead' ELSE 'pending' END
      FROM judged AS j CROSS JOIN told;
END $$;

-- ------------------------------------------------------------------------------------------------------------------- claim

-- Claim up to so many jobs of each queue, best rank first: wants is {"queue": [count, floor]}, defaults is {"kind": max_retries} of the
-- handlers of the node. A paused queue, or a node without a valid lease, gets nothing. Jobs of a rank below the floor (in seconds; null
-- for none) are not looked at: while an old transaction keeps dead rows from being removed, they lie there, in front of the living. Returns one JSON array of
-- [queue, id, kind, payload, priority, attempt, claims, max_retries, timeout, created_at, rank, waited], times in seconds; a job that has
-- options or saved notes has these two at the end.
--
-- The plan is pinned: this table goes from empty to a million rows and back, and statistics are never right. The inner SELECT is an
-- array, which is evaluated once: a plan that ran it again would claim more than the limit.
CREATE OR REPLACE FUNCTION jobqueue.claim(node uuid, wants jsonb, defaults jsonb DEFAULT '{}') RETURNS text
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
    quoted text;
    parts text[] := '{}';
    twins boolean := false;   -- whether pending rows of jobs that run have been met
BEGIN
    IF NOT EXISTS (SELECT FROM jobqueue.nodes AS n WHERE n.id = node AND n.lease_until > now()) THEN
        RETURN '[]';
    END IF;
    FOR want IN
        SELECT w.key AS queue, (w.value ->> 0)::integer AS jobs,
               coalesce(to_timestamp((w.value ->> 1)::double precision), '-infinity') AS floor
          FROM jsonb_each(wants) AS w
         WHERE NOT EXISTS (SELECT FROM jobqueue.queues AS q WHERE q.name = w.key AND q.paused)
    LOOP
        quoted := to_json(want.queue);
        LOOP
            BEGIN
                WITH taken AS (
                    DELETE FROM jobqueue.pending_jobs AS p
                     WHERE p.ctid = ANY (ARRAY(
                               SELECT c.ctid FROM jobqueue.pending_jobs AS c
                                WHERE c.queue = want.queue AND c.rank >= want.floor
                                  AND (NOT twins OR NOT EXISTS (SELECT FROM jobqueue.inflight_jobs AS i WHERE i.id = c.id OFFSET 0))
                                ORDER BY c.rank LIMIT want.jobs FOR UPDATE OF c SKIP LOCKED))
                    RETURNING p.*, coalesce(p.max_retries, (defaults ->> p.kind)::integer, 3) AS retries
                ), moved AS (
                    INSERT INTO jobqueue.inflight_jobs (id, queue, kind, priority, node_id, claimed_at, payload, max_retries, timeout,
                                                        attempt, claims, created_at, available_since, errors, options, saved)
                    SELECT t.id, t.queue, t.kind, t.priority, node, now(), t.payload, t.retries,
                           t.timeout, t.attempt + 1, t.claims + 1, t.created_at, t.available_since, t.errors, t.options, t.saved
                      FROM taken AS t
                )
                SELECT string_agg(concat_ws(',', quoted, '"' || t.id || '"', to_json(t.kind), t.payload, t.priority, t.attempt + 1,
                           t.claims + 1, t.retries, coalesce(t.timeout::text, 'null'), date_part('epoch', t.created_at),
                           date_part('epoch', t.rank), date_part('epoch', clock_timestamp() - t.available_since),
                           CASE WHEN num_nonnulls(t.options, t.saved) > 0
                                THEN concat(coalesce(t.options, 'null'), ',', coalesce(t.saved, 'null')) END), '],[')
                  INTO part
                  FROM taken AS t;
                EXIT;
            EXCEPTION WHEN unique_violation THEN
                -- A second row of a job that runs. It waits for the end of the run; to look out for one costs a tenth of a claim.
                twins := true;
            END;
        END LOOP;
        IF part IS NOT NULL THEN
            parts := parts || ('[' || part || ']');
        END IF;
    END LOOP;
    RETURN '[' || array_to_string(parts, ',') || ']';
END $$;

-- ------------------------------------------------------------------------------------------------------------------- finish

-- A job's error history with one more entry: the last ten are kept. STABLE, because jsonb_build_array is: a function that claims to be
-- more than its body is never inlined, and is called for each row.
CREATE OR REPLACE FUNCTION jobqueue.with_error(errors jsonb, error jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN error IS NULL THEN errors
                WHEN jsonb_typeof(errors) <> 'array' THEN jsonb_build_array(error)
                WHEN jsonb_array_length(errors) >= 10 THEN (errors - 0) || jsonb_build_array(error)
                ELSE errors || jsonb_build_array(error) END
$$;

-- Write what became of a batch of runs, each row moved in this one transaction. outcomes is an array of objects:
--
--     id, claims    the run: a row that does not match both, or is not this node's, is a stale completion and is dropped
--     outcome       succeeded -> finished (result)    dead -> dead (reason, error)
--                   retry -> scheduled in delay seconds (error), or dead when it was the last attempt
--                   snoozed -> scheduled in delay seconds, with the attempt refunded
--                   released -> pending, with the attempt refunded
--
-- keep: false lets go of jobs that succeeded, instead of keeping them in finished_jobs.
--
-- Returns the positions (from 1) of the stale ones.
CREATE OR REPLACE FUNCTION jobqueue.finish(node uuid, outcomes jsonb, keep boolean DEFAULT true) RETURNS bigint[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off   -- it would read the whole index of inflight_jobs, and its dead rows while an old transaction keeps them
AS $$
#variable_conflict use_column
DECLARE
    stale bigint[];
    done bigint[];
BEGIN
    -- Almost every outcome is a success: these by a statement of their own, without the joins and the branches of the others.
    WITH given AS MATERIALIZED (
        SELECT o.id, o.claims, o.result, o.place
          FROM ROWS FROM (jsonb_to_recordset(outcomes) AS (id uuid, claims integer, outcome text, result jsonb))
               WITH ORDINALITY AS o (id, claims, outcome, result, place)
         WHERE o.outcome = 'succeeded'
    ), gone AS (
        DELETE FROM jobqueue.inflight_jobs AS i USING given AS g
         WHERE i.id = g.id AND i.claims = g.claims AND i.node_id = node
        RETURNING i.*, g.result, g.place
    ), finished AS (
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, result, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, 'succeeded', d.payload, d.max_retries, d.timeout, d.attempt, d.claims, d.created_at,
               d.available_since, d.claimed_at, now(), d.node_id, d.result, d.errors, d.options, d.saved
          FROM gone AS d WHERE finish.keep
    )
    SELECT coalesce(array_agg(gone.place), '{}') INTO done FROM gone;
    IF cardinality(done) = jsonb_array_length(outcomes) THEN
        RETURN '{}';
    END IF;

    WITH given AS MATERIALIZED (
        SELECT o.* FROM ROWS FROM (jsonb_to_recordset(outcomes) AS (
            id uuid, claims integer, outcome text, result jsonb, reason text, error jsonb, delay double precision))
            WITH ORDINALITY AS o (id, claims, outcome, result, reason, error, delay, place)
         WHERE coalesce(o.outcome, '') <> 'succeeded'
    ), gone AS (
        DELETE FROM jobqueue.inflight_jobs AS i USING given AS g
         WHERE i.id = g.id AND i.claims = g.claims AND i.node_id = node
        RETURNING i.*, g.outcome, g.result, g.reason, g.error, g.delay, g.place,
                  coalesce(g.outcome, '') = 'retry' AND i.attempt > i.max_retries AS spent
    ), finished AS (
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, result, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, d.outcome, d.payload, d.max_retries, d.timeout, d.attempt, d.claims, d.created_at,
               d.available_since, d.claimed_at, now(), d.node_id, d.result, jobqueue.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.saved
          -- An outcome that nobody knows is refused by the check of the state, and not swallowed.
          FROM gone AS d WHERE coalesce(d.outcome, '') NOT IN ('dead', 'retry', 'snoozed', 'released')
    ), dead AS (
        INSERT INTO jobqueue.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at,
                                        available_since, died_at, node_id, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, CASE WHEN d.spent THEN 'attempts used up' ELSE d.reason END, d.payload,
               d.max_retries, d.timeout, d.attempt, d.claims, d.created_at, d.available_since, now(), d.node_id,
               jobqueue.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.saved
          FROM gone AS d WHERE d.outcome = 'dead' OR d.spent
            ON CONFLICT (id) DO NOTHING
    ), scheduled AS (
        INSERT INTO jobqueue.scheduled_jobs (id, queue, kind, priority, run_at, payload, max_retries, timeout, attempt, claims, created_at,
                                             available_since, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, now() + d.delay * interval '1 second', d.payload, d.max_retries, d.timeout,
               d.attempt - CASE d.outcome WHEN 'snoozed' THEN 1 ELSE 0 END, d.claims, d.created_at, d.available_since,
               jobqueue.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.saved
          FROM gone AS d WHERE d.outcome IN ('retry', 'snoozed') AND NOT d.spent
            ON CONFLICT (id) DO NOTHING
    ), released AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, jobqueue.rank_of(d.available_since, d.priority, q.aging_interval, d.options), d.payload,
               d.max_retries, d.timeout, d.attempt - 1, d.claims, d.created_at, d.available_since, d.errors, d.options, d.saved
          FROM gone AS d LEFT JOIN jobqueue.queues AS q ON q.name = d.queue
         WHERE d.outcome = 'released'
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM released GROUP BY queue) AS queues
    )
    SELECT array_agg(missing.place ORDER BY missing.place) INTO stale
      FROM (SELECT generate_series(1, jsonb_array_length(outcomes)) AS place EXCEPT SELECT unnest(done) EXCEPT SELECT gone.place
              FROM gone) AS missing CROSS JOIN told;
    RETURN coalesce(stale, '{}');
END $$;

-- ------------------------------------------------------------------------------------------------------------------- promote

-- Move up to so many due jobs to pending. Returns the jobs moved, the best rank of each queue that got some, as {"queue": seconds}, and
-- the seconds until the next one is due (NULL: none).
CREATE OR REPLACE FUNCTION jobqueue.promote(max_jobs integer DEFAULT 1000)
RETURNS TABLE (promoted integer, best jsonb, next_due double precision)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
AS $$
#variable_conflict use_column
BEGIN
    WITH due AS (
        DELETE FROM jobqueue.scheduled_jobs AS s
         WHERE s.ctid = ANY (ARRAY(
                   SELECT d.ctid FROM jobqueue.scheduled_jobs AS d
                    WHERE d.run_at <= now() ORDER BY d.run_at LIMIT max_jobs FOR UPDATE SKIP LOCKED))
        RETURNING s.*
    ), moved AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, jobqueue.rank_of(d.available_since, d.priority, q.aging_interval, d.options), d.payload,
               d.max_retries, d.timeout, d.attempt, d.claims, d.created_at, d.available_since, d.errors, d.options, d.saved
          FROM due AS d LEFT JOIN jobqueue.queues AS q ON q.name = d.queue
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), queues AS (
        SELECT moved.queue, min(moved.rank) AS rank, count(*) AS jobs FROM moved GROUP BY moved.queue
    )
    SELECT coalesce(sum(q.jobs), 0), coalesce(jsonb_object_agg(q.queue, extract(epoch FROM q.rank)), '{}')
      INTO promoted, best FROM queues AS q;
    PERFORM jobqueue.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    next_due := (SELECT extract(epoch FROM s.run_at) - extract(epoch FROM clock_timestamp()) FROM jobqueue.scheduled_jobs AS s ORDER BY s.run_at LIMIT 1);
    RETURN NEXT;
END $$;

-- ------------------------------------------------------------------------------------------------------------------- steering

-- Cancel a job that waits. Returns false when it is not pending or scheduled any more. In two statements: a job that is promoted
-- meanwhile is looked for where it went.
CREATE OR REPLACE FUNCTION jobqueue.cancel(job uuid) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    WITH gone AS (DELETE FROM jobqueue.scheduled_jobs WHERE id = job RETURNING *)
    INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                        available_since, finished_at, errors, options, saved)
    SELECT id, queue, kind, priority, 'cancelled', payload, max_retries, timeout, attempt, claims, created_at, available_since, now(),
           errors, options, saved
      FROM gone;
    IF FOUND THEN
        RETURN true;
    END IF;
    WITH gone AS (DELETE FROM jobqueue.pending_jobs WHERE id = job RETURNING *)
    INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                        available_since, finished_at, errors, options, saved)
    SELECT id, queue, kind, priority, 'cancelled', payload, max_retries, timeout, attempt, claims, created_at, available_since, now(),
           errors, options, saved
      FROM gone;
    RETURN FOUND;
END $$;

-- Run a dead job again (redrive), with all its attempts and a new place in line. Returns false when it is not dead. Raises JQ409 where
-- another unfinished job has its unique key by now, or somebody's transaction is about to give it to one.
CREATE OR REPLACE FUNCTION jobqueue.retry(job uuid) RETURNS boolean
LANGUAGE plpgsql
SET lock_timeout = '100ms'
AS $$
#variable_conflict use_column
DECLARE
    unique_key text;
    holder uuid;
    risen integer;
BEGIN
    SELECT jobqueue.unique_key_of(d.queue, d.kind, d.payload, d.options) INTO unique_key FROM jobqueue.dead_jobs AS d WHERE d.id = job;
    IF unique_key IS NOT NULL THEN
        holder := jobqueue.hold_unique_key(unique_key, job);
        IF holder <> job THEN
            RAISE EXCEPTION 'the job % has the unique key of this one, and is not finished', holder
                USING ERRCODE = 'JQ409', COLUMN = 'unique_key';
        END IF;
    END IF;
    WITH risen AS (
        DELETE FROM jobqueue.dead_jobs WHERE id = job RETURNING *
    ), pending AS (
        INSERT INTO jobqueue.pending_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims,
                                           created_at, available_since, errors, options, saved)
        SELECT r.id, r.queue, r.kind, r.priority, jobqueue.rank_of(now(), r.priority, q.aging_interval, r.options), r.payload, r.max_retries,
               r.timeout, 0, r.claims, r.created_at, now(), r.errors, r.options, r.saved
          FROM risen AS r LEFT JOIN jobqueue.queues AS q ON q.name = r.queue
        RETURNING queue, rank
    )
    SELECT count(jobqueue.wake(queue, rank)) INTO risen FROM pending;
    RETURN risen > 0;
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the job or its unique key is in a transaction that is not over yet: try again later'
        USING ERRCODE = 'JQ409', COLUMN = 'unique_key';
END $$;

-- Delete a dead job for good. Returns false when it is not dead.
CREATE OR REPLACE FUNCTION jobqueue.discard(job uuid) RETURNS boolean
LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM jobqueue.dead_jobs WHERE id = job RETURNING id) SELECT EXISTS (SELECT FROM gone)
$$;

-- Pause a queue on every node, or resume it. Running jobs go on.
CREATE OR REPLACE FUNCTION jobqueue.pause(queue text, paused boolean DEFAULT true) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO jobqueue.queues (name, paused) VALUES (pause.queue, pause.paused)
        ON CONFLICT (name) DO UPDATE SET paused = excluded.paused;
    SELECT jobqueue.wake(pause.queue, '-infinity')
$$;

-- ------------------------------------------------------------------------------------------------------------------- maintenance

-- Make the partitions of finished_jobs for today and the next two days, and drop those that ended so many seconds ago. Safe to call
-- from many nodes; one at a time does it, the others return at once. Returns the partitions dropped.
CREATE OR REPLACE FUNCTION jobqueue.maintain(keep_finished double precision, keep_dead double precision) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    day date;
    part record;
    dropped integer := 0;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7669743430829532518) THEN
        RETURN 0;
    END IF;
    FOR day IN SELECT ((now() AT TIME ZONE 'UTC')::date + n) FROM generate_series(0, 2) AS n LOOP
        CONTINUE WHEN to_regclass(format('jobqueue.finished_jobs_%s', to_char(day, 'YYYYMMDD'))) IS NOT NULL;
        -- A completion may have come before the partition of its day: those rows stay where they are until retention takes them.
        CONTINUE WHEN EXISTS (SELECT FROM jobqueue.finished_jobs_default AS f
                               WHERE f.finished_at >= day AT TIME ZONE 'UTC' AND f.finished_at < (day + 1) AT TIME ZONE 'UTC');
        BEGIN
            EXECUTE format('CREATE TABLE jobqueue.finished_jobs_%s PARTITION OF jobqueue.finished_jobs FOR VALUES FROM (%L) TO (%L)',
                           to_char(day, 'YYYYMMDD'), day AT TIME ZONE 'UTC', (day + 1) AT TIME ZONE 'UTC');
        EXCEPTION WHEN check_violation THEN
            NULL;  -- a completion of that day was committed in between: the same
        END;
    END LOOP;
    FOR part IN
        SELECT c.relname AS name FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'jobqueue.finished_jobs'::regclass AND c.relname ~ '^finished_jobs_\d{8}$'
           AND (to_date(right(c.relname, 8), 'YYYYMMDD') + 1) AT TIME ZONE 'UTC' < now() - keep_finished * interval '1 second'
    LOOP
        EXECUTE format('DROP TABLE jobqueue.%I', part.name);
        dropped := dropped + 1;
    END LOOP;
    DELETE FROM jobqueue.finished_jobs_default WHERE finished_at < now() - keep_finished * interval '1 second';
    DELETE FROM jobqueue.dead_jobs WHERE died_at < now() - keep_dead * interval '1 second';
    RETURN dropped;
END $$;

-- Delete up to so many keys that nobody needs any more, the oldest first; those of jobs that are not finished are looked at again a day
-- later. Returns how many were looked at. A key that is in somebody's hands is passed over.
CREATE OR REPLACE FUNCTION jobqueue.prune_keys(max_keys integer DEFAULT 1000) RETURNS integer
LANGUAGE sql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
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

-- A first set of partitions, so that a database prepared with psql alone is complete.
SELECT jobqueue.maintain(86400, 2592000);

COMMIT;
