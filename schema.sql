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
CREATE INDEX IF NOT EXISTS pending_jobs_turn ON jobqueue.pending_jobs (queue, (priority > 0), ((options -> 'turn')::numeric))
 WHERE options ? 'turn';
CREATE INDEX IF NOT EXISTS pending_jobs_group ON jobqueue.pending_jobs (queue, (options ->> 'group'), ((options -> 'turn')::numeric))
 WHERE options ? 'turn';

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
    saved           jsonb,
    cancel_requested_at timestamptz      -- somebody asked for its end, see jobqueue.cancel: it does not go back from here
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- For each heartbeat: what of its own a node is to cancel. Almost always empty.
CREATE INDEX IF NOT EXISTS inflight_jobs_cancel ON jobqueue.inflight_jobs (node_id) WHERE cancel_requested_at IS NOT NULL;

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

-- Fair groups, see jobqueue.take_turns. Where the two lines of a queue are served; NULL after they were found empty, which begins an
-- epoch. Written by claims alone, so that no submitter's open transaction is ever waited for. Times in seconds since 1970.
CREATE TABLE IF NOT EXISTS jobqueue.fair_queues (
    queue  text    PRIMARY KEY,
    common numeric,
    urgent numeric,
    epoch  bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- Where the next job of a group may begin, in each line.
CREATE TABLE IF NOT EXISTS jobqueue.fair_groups (
    queue  text    NOT NULL,
    name   text    NOT NULL,
    common numeric NOT NULL DEFAULT 0,
    urgent numeric NOT NULL DEFAULT 0,
    epoch  bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (queue, name)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- ------------------------------------------------------------------------------------------------------------- looking things up

CREATE OR REPLACE VIEW jobqueue.jobs AS
    SELECT id, 'pending' AS state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL::timestamptz AS run_at, NULL::timestamptz AS claimed_at, NULL::timestamptz AS ended_at, NULL::uuid AS node_id,
           NULL::jsonb AS result, NULL::text AS reason, errors, options, saved, NULL::timestamptz AS cancel_requested_at
      FROM jobqueue.pending_jobs
    UNION ALL
    SELECT id, 'scheduled', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           run_at, NULL, NULL, NULL, NULL, NULL, errors, options, saved, NULL
      FROM jobqueue.scheduled_jobs
    UNION ALL
    SELECT id, 'inflight', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL, claimed_at, NULL, node_id, NULL, NULL, errors, options, saved, cancel_requested_at
      FROM jobqueue.inflight_jobs
    UNION ALL
    SELECT id, state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL, claimed_at, finished_at, node_id, result, NULL, errors, options, saved, NULL
      FROM jobqueue.finished_jobs
    UNION ALL
    SELECT id, 'dead', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL, NULL, died_at, node_id, NULL, reason, errors, options, saved, NULL
      FROM jobqueue.dead_jobs;

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

-- ------------------------------------------------------------------------------------------------------------------- fair groups

-- Give jobs of groups their turns: start-time fair queueing (Goyal, Vin, Cheng 1996), with rank as its virtual time. jobs is an array
-- of objects with key, queue, group, weight and priority. Returns {key: {"turn", "rank"}}, in seconds since 1970, for the options.
--
-- A group's next job begins where its last one ended, but not before the virtual time of the line, which is the turn of whoever is
-- served now, and the present while nobody waits. A job takes a millisecond of virtual time, divided by its weight. So groups that have
-- more to do than there are workers get shares by weight; a group that was quiet is next at once; and nobody pays later for workers that
-- nobody else wanted: when the line is found empty, all that was before is forgotten.
--
-- Jobs with a priority stand in a line of their own, so that a group's urgent job need not wait for its own backlog. Both lines meet in
-- the rank, turn - priority * aging_interval, as for any other job. An urgent job takes its time from the common line too: no group gets
-- more for giving priorities.
--
-- The rows of groups are locked until the end of the transaction. It may be somebody's own and stay open: who cannot have the lock in
-- a moment goes on from the last turn of the group that is there to see.
CREATE OR REPLACE FUNCTION jobqueue.take_turns(jobs jsonb) RETURNS jsonb
LANGUAGE plpgsql
SET lock_timeout = '200ms'   -- under deadlock_timeout: two transactions that lock groups in turn are both let go
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = on    -- whatever the caller has pinned
SET enable_sort = on
AS $$
#variable_conflict use_column
DECLARE
    names text[] := ARRAY(SELECT DISTINCT jsonb_build_array(j.queue, j."group")::text
                            FROM jsonb_to_recordset(take_turns.jobs) AS j (queue text, "group" text) ORDER BY 1);
    locked text[];
    turns jsonb;
BEGIN
    IF EXISTS (SELECT FROM jsonb_to_recordset(take_turns.jobs) AS j (weight numeric) WHERE j.weight NOT BETWEEN 0.001 AND 1000) THEN
        RAISE check_violation USING MESSAGE = 'the weight of a group is from 0.001 to 1000';
    END IF;
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
               coalesce(common.turn, greatest(f.common, extract(epoch FROM now()))) AS common,
               coalesce(urgent.turn, greatest(f.urgent, extract(epoch FROM now()))) AS urgent
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

-- Note where the lines of a queue are served, or that they were found empty. Where another claim does so at this moment, that will do.
CREATE OR REPLACE FUNCTION jobqueue.serve_lines(queue text, common numeric, urgent numeric, emptied boolean) RETURNS void
LANGUAGE sql AS $$
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

-- Do what the options of new jobs ask for, in the transaction that submits them; returns the jobs as they are to be stored. Not called
-- for a batch without options.
CREATE OR REPLACE FUNCTION jobqueue.prepare(jobs jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    turns jsonb;
BEGIN
    jobs := (
        SELECT jsonb_agg(CASE WHEN j.job -> 'options' ? 'expires_in'
                              THEN jsonb_set(j.job #- '{options,expires_in}', '{options,expires_at}', to_jsonb(
                                   extract(epoch FROM now())::double precision + (j.job #>> '{options,expires_in}')::double precision))
                              ELSE j.job END
                         ORDER BY j.place)
          FROM jsonb_array_elements(prepare.jobs) WITH ORDINALITY AS j (job, place));
    -- A job that is not due yet takes its turn when it is, see jobqueue.promote.
    SELECT jobqueue.take_turns(jsonb_agg(jsonb_build_object('key', j.place, 'queue', coalesce(j.job ->> 'queue', 'default'),
               'group', j.job #> '{options,group}', 'weight', j.job #> '{options,weight}',
               'priority', coalesce((j.job ->> 'priority')::integer, 0)) ORDER BY j.place))
      INTO turns
      FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place)
     WHERE j.job -> 'options' ? 'group' AND coalesce((j.job ->> 'run_at')::timestamptz <= now(), (j.job ->> 'delay')::numeric <= 0, true)
    HAVING count(*) > 0;
    IF turns IS NOT NULL THEN
        jobs := (
            SELECT jsonb_agg(CASE WHEN turns ? j.place::text THEN jsonb_set(j.job, '{options}', (j.job -> 'options') || (turns -> j.place::text)) ELSE j.job END
                             ORDER BY j.place)
              FROM jsonb_array_elements(jobs) WITH ORDINALITY AS j (job, place));
    END IF;
    RETURN jobs;
END $$;

-- What submit_many does, for the service. Returns the ids, and the best rank of each queue that got jobs, as {"queue": seconds}.
--
-- again: the same batch may already have been committed by a connection that broke before it could say so; jobs that exist in any
--        state are left alone. The caller must know that the first connection's transaction is over.
-- wake:  tell listening nodes. A node that will run the jobs itself need not.
-- node, wants, defaults: claim for this node in the same transaction, as jobqueue.claim does; of the new jobs also those below the floor.
--        Returns what was claimed; NULL where nothing was asked for, or the claim failed.
CREATE OR REPLACE FUNCTION jobqueue.submit_batch(jobs jsonb, again boolean DEFAULT false, wake boolean DEFAULT true,
                                                 node uuid DEFAULT NULL, wants jsonb DEFAULT NULL, defaults jsonb DEFAULT '{}')
RETURNS TABLE (ids uuid[], best jsonb, claimed text)
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    earliest timestamptz;
BEGIN
    IF jobs @? '$[*].options' THEN
        jobs := jobqueue.prepare(jobs);
    END IF;
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
    ids := coalesce(ids, '{}');
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
-- "run_at", and "id": a job whose id exists in any state is left alone. All or nothing. Returns the ids in the order of the array.
-- Call it in your own transaction: commit and the jobs exist, roll back and they never did.
CREATE OR REPLACE FUNCTION jobqueue.submit_many(jobs jsonb) RETURNS uuid[]
LANGUAGE sql AS $$ SELECT ids FROM jobqueue.submit_batch(jobqueue.with_options(jobs), again => jobs @? '$[*].id') $$;

-- Submit one job and get its id: SELECT jobqueue.submit('thumbnail', '{"path": "a.png"}', priority => 5);
CREATE OR REPLACE FUNCTION jobqueue.submit(
    kind        text,
    payload     jsonb            DEFAULT '{}',
    queue       text             DEFAULT 'default',
    priority    integer          DEFAULT 0,       -- 0 or more, higher first
    max_retries integer          DEFAULT NULL,    -- the handler's, or 3
    run_at      timestamptz      DEFAULT NULL,    -- now
    timeout     double precision DEFAULT NULL,    -- seconds; the handler's, or none
    expires_at  timestamptz      DEFAULT NULL,    -- never: when it is no use to start it any more
    "group"     text             DEFAULT NULL,    -- those whose jobs share the workers fairly, such as a tenant
    weight      double precision DEFAULT NULL     -- 1: the share of the group's next jobs
) RETURNS uuid
LANGUAGE sql AS $$
    SELECT (jobqueue.submit_many(jsonb_build_array(jsonb_build_object(
        'kind', kind, 'payload', payload, 'queue', queue, 'priority', priority, 'max_retries', max_retries, 'run_at', run_at,
        'timeout', timeout, 'expires_at', expires_at, 'group', "group", 'weight', weight))))[1]
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

-- Renew a node's lease, by the database's clock. Returns the runs of this node that somebody wants cancelled, as [[id, claims], ...]: so
-- no notification is needed for that, and no further query. NULL: the lease is lost for good, the node's jobs are somebody else's. A
-- lease that ran out while nobody took it (the database was away) is renewed: running jobs survive an outage.
CREATE OR REPLACE FUNCTION jobqueue.heartbeat(node uuid, lease double precision) RETURNS jsonb
LANGUAGE plpgsql
SET enable_seqscan = off
AS $$
BEGIN
    UPDATE jobqueue.nodes SET heartbeat_at = now(), lease_until = now() + lease * interval '1 second' WHERE id = node;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT coalesce(jsonb_agg(jsonb_build_array(i.id, i.claims)), '[]')
              FROM jobqueue.inflight_jobs AS i WHERE i.node_id = node AND i.cancel_requested_at IS NOT NULL);
END $$;

-- Leave: hand back whatever the node still holds, with the attempts refunded, and delete its row; what is to be cancelled ends as that.
-- Returns the jobs handed back.
CREATE OR REPLACE FUNCTION jobqueue.leave_node(node uuid) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    released integer;
BEGIN
    WITH held AS (
        DELETE FROM jobqueue.inflight_jobs WHERE node_id = node RETURNING *
    ), cancelled AS (
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, errors, options, saved)
        SELECT h.id, h.queue, h.kind, h.priority, 'cancelled', h.payload, h.max_retries, h.timeout, h.attempt, h.claims, h.created_at,
               h.available_since, h.claimed_at, now(), h.node_id, h.errors, h.options, h.saved
          FROM held AS h WHERE h.cancel_requested_at IS NOT NULL
    ), back AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT h.id, h.queue, h.kind, h.priority, jobqueue.rank_of(h.available_since, h.priority, q.aging_interval, h.options), h.payload,
               h.max_retries, h.timeout, h.attempt - 1, h.claims, h.created_at, h.available_since, h.errors, h.options, h.saved
          FROM held AS h LEFT JOIN jobqueue.queues AS q ON q.name = h.queue
         WHERE h.cancel_requested_at IS NULL
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
-- a job that kills its process cannot do so for ever), or, where somebody asked for its cancellation, to finished. A node whose lease ran out loses its row first; from then on its heartbeat
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
               lost.attempt <= lost.max_retries AND lost.cancel_requested_at IS NOT NULL AS unwanted,
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
    ), cancelled AS (
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, 'cancelled', j.payload, j.max_retries, j.timeout, j.attempt, j.claims, j.created_at,
               j.available_since, j.claimed_at, now(), j.node_id, j.all_errors, j.options, j.saved
          FROM judged AS j WHERE j.unwanted
    ), back AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, jobqueue.rank_of(j.available_since, j.priority, q.aging_interval, j.options), j.payload,
               j.max_retries, j.timeout, j.attempt, j.claims, j.created_at, j.available_since, j.all_errors, j.options, j.saved
          FROM judged AS j LEFT JOIN jobqueue.queues AS q ON q.name = j.queue
         WHERE NOT j.spent AND NOT j.unwanted
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM back GROUP BY queue) AS queues
    )
    SELECT j.id, j.queue, j.kind, j.attempt, j.node_id,
           CASE WHEN j.spent THEN 'dead' WHEN j.unwanted THEN 'cancelled' ELSE 'pending' END
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
    emptied boolean;   -- no more jobs were found
    common numeric;    -- the last turns of the lines of groups that were served
    urgent numeric;
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
                SELECT count(*) < want.jobs,
                       max((t.options -> 'turn')::numeric) FILTER (WHERE t.options IS NOT NULL AND t.priority = 0),
                       max((t.options -> 'turn')::numeric) FILTER (WHERE t.options IS NOT NULL AND t.priority > 0),
                       string_agg(concat_ws(',', quoted, '"' || t.id || '"', to_json(t.kind), t.payload, t.priority, t.attempt + 1,
                           t.claims + 1, t.retries, coalesce(t.timeout::text, 'null'), date_part('epoch', t.created_at),
                           date_part('epoch', t.rank), date_part('epoch', clock_timestamp() - t.available_since),
                           CASE WHEN num_nonnulls(t.options, t.saved) > 0
                                THEN concat(coalesce(t.options, 'null'), ',', coalesce(t.saved, 'null')) END), '],[')
                  INTO emptied, common, urgent, part
                  FROM taken AS t;
                EXIT;
            EXCEPTION WHEN unique_violation THEN
                -- A second row of a job that runs. It waits for the end of the run; to look out for one costs a tenth of a claim.
                twins := true;
            END;
        END LOOP;
        IF emptied OR common IS NOT NULL OR urgent IS NOT NULL THEN
            PERFORM jobqueue.serve_lines(want.queue, common, urgent, emptied);
        END IF;
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
--                   cancelled -> finished. What would go back to scheduled or pending goes there too, where somebody asked for that
--     saved         what the run noted and did not come to write
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
          FROM ROWS FROM (jsonb_to_recordset(outcomes) AS (id uuid, claims integer, outcome text, result jsonb, saved jsonb))
               WITH ORDINALITY AS o (id, claims, outcome, result, saved, place)
         WHERE o.outcome = 'succeeded' AND o.saved IS NULL
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
            id uuid, claims integer, outcome text, result jsonb, reason text, error jsonb, delay double precision, saved jsonb))
            WITH ORDINALITY AS o (id, claims, outcome, result, reason, error, delay, saved, place)
         WHERE coalesce(o.outcome, '') <> 'succeeded' OR o.saved IS NOT NULL
    ), gone AS (
        DELETE FROM jobqueue.inflight_jobs AS i USING given AS g
         WHERE i.id = g.id AND i.claims = g.claims AND i.node_id = node
        RETURNING i.*, g.result, g.reason, g.error, g.delay, g.place,
                  -- Not by a function: in RETURNING it is not inlined, and a call costs a third of moving the row.
                  CASE WHEN g.saved IS NULL THEN i.saved ELSE coalesce(i.saved, '{}') || g.saved END AS noted,
                  coalesce(g.outcome, '') = 'retry' AND i.attempt > i.max_retries AS spent,
                  CASE WHEN i.cancel_requested_at IS NOT NULL AND (g.outcome IN ('snoozed', 'released')
                            OR g.outcome = 'retry' AND i.attempt <= i.max_retries) THEN 'cancelled' ELSE g.outcome END AS outcome
    ), finished AS (
        INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, result, errors, options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, d.outcome, d.payload, d.max_retries, d.timeout, d.attempt, d.claims, d.created_at,
               d.available_since, d.claimed_at, now(), d.node_id, d.result, jobqueue.with_error(d.errors, d.error || jsonb_build_object('at', now(), 'node', node)), d.options, d.noted
          -- An outcome that nobody knows is refused by the check of the state, and not swallowed.
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
    ), told AS MATERIALIZED (
        SELECT count(jobqueue.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM released GROUP BY queue) AS queues
    )
    SELECT array_agg(missing.place ORDER BY missing.place) INTO stale
      FROM (SELECT generate_series(1, jsonb_array_length(outcomes)) AS place EXCEPT SELECT unnest(done) EXCEPT SELECT gone.place
              FROM gone) AS missing CROSS JOIN told;
    RETURN coalesce(stale, '{}');
END $$;

-- Write what runs of this node have noted so far: notes is an array of {id, claims, saved}. Returns the ids of those that were written. A
-- run that is over is left alone, and so is one whose row is locked: most likely its outcome is being written, which brings the notes
-- along. So this waits for nobody, and cannot be in a deadlock with finish.
CREATE OR REPLACE FUNCTION jobqueue.note(node uuid, notes jsonb) RETURNS uuid[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off
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
    ), turns AS MATERIALIZED (
        SELECT jobqueue.take_turns(jsonb_agg(jsonb_build_object('key', t.id, 'queue', t.queue, 'group', t.options -> 'group',
                   'weight', t.options -> 'weight', 'priority', t.priority) ORDER BY t.run_at)) AS given
          FROM due AS t WHERE t.options ? 'group' AND NOT t.options ? 'turn' HAVING count(*) > 0
    ), moved AS (
        INSERT INTO jobqueue.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors,
                options, saved)
        SELECT d.id, d.queue, d.kind, d.priority, jobqueue.rank_of(d.available_since, d.priority, q.aging_interval, o.options), d.payload,
               d.max_retries, d.timeout, d.attempt, d.claims, d.created_at, d.available_since, d.errors, o.options, d.saved
          FROM due AS d LEFT JOIN jobqueue.queues AS q ON q.name = d.queue LEFT JOIN turns AS t ON true
         CROSS JOIN LATERAL (SELECT CASE WHEN t.given ? d.id::text THEN d.options || (t.given -> d.id::text)
                                         ELSE d.options END AS options) AS o
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

-- Cancel a job. One that waits has ended when this returns. One that runs is marked, and the node that runs it is told: it ends within
-- a second or so, in the state cancelled unless it succeeds or dies before, and never runs again. Returns whether the job has ended by
-- this or will; false when it is not there any more, or has ended already. To ask again changes nothing.
--
-- The mark is a lock on the row until your transaction ends, and what became of that run waits for it: commit soon.
--
-- In several statements, and twice: a job that moves on meanwhile is looked for where it went.
CREATE OR REPLACE FUNCTION jobqueue.cancel(job uuid) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    run integer;
BEGIN
    FOR look IN 1..2 LOOP
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
        IF FOUND THEN
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

-- The options of a job that goes to the end of the line again.
CREATE OR REPLACE FUNCTION jobqueue.with_new_turn(options jsonb, queue text, priority integer) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT CASE WHEN options ? 'group' THEN options || (jobqueue.take_turns(jsonb_build_array(
                     jsonb_build_object('key', 'this', 'queue', queue, 'group', options -> 'group', 'weight', options -> 'weight',
                                        'priority', priority))) -> 'this')
                ELSE options END
$$;

-- Run a dead job again (redrive), with all its attempts and a new place in line. Returns false when it is not dead.
CREATE OR REPLACE FUNCTION jobqueue.retry(job uuid) RETURNS boolean
LANGUAGE sql AS $$
    WITH risen AS (DELETE FROM jobqueue.dead_jobs WHERE id = job RETURNING *),
         pending AS (
             INSERT INTO jobqueue.pending_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims,
                                                created_at, available_since, errors, options, saved)
             SELECT r.id, r.queue, r.kind, r.priority, jobqueue.rank_of(now(), r.priority, q.aging_interval, o.options), r.payload,
                    r.max_retries, r.timeout, 0, r.claims, r.created_at, now(), r.errors, o.options, r.saved
               FROM risen AS r
              CROSS JOIN LATERAL (SELECT jobqueue.with_new_turn(r.options, r.queue, r.priority) AS options OFFSET 0) AS o
               LEFT JOIN jobqueue.queues AS q ON q.name = r.queue
             RETURNING queue, rank),
         told AS MATERIALIZED (SELECT jobqueue.wake(queue, rank) FROM pending)
    SELECT EXISTS (SELECT FROM told)
$$;

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
    DELETE FROM jobqueue.fair_groups WHERE ctid = ANY (ARRAY(
        SELECT g.ctid FROM jobqueue.fair_groups AS g JOIN jobqueue.fair_queues AS f ON f.queue = g.queue
         WHERE g.epoch < f.epoch OR greatest(g.common, g.urgent) < least(f.common, f.urgent)
         LIMIT 10000 FOR UPDATE OF g SKIP LOCKED));
    RETURN dropped;
END $$;

-- A first set of partitions, so that a database prepared with psql alone is complete.
SELECT jobqueue.maintain(86400, 2592000);

COMMIT;
