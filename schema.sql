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
-- A job with a concurrency key takes a way around: whatever would put it into pending_jobs puts it into blocked_jobs, and from there it
-- is admitted to pending_jobs when its key has room.
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
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- Limits over all nodes, set by jobqueue.configure. NULL: none, but for key_max_running, which is 1 then, and for the bursts, which
    -- are what a second brings.
    max_running     integer          CONSTRAINT max_running_range CHECK (max_running BETWEEN 1 AND 1000000),
    rate            double precision CONSTRAINT rate_range CHECK (rate BETWEEN 0.00001 AND 1000000),   -- starts a second
    burst           integer          CONSTRAINT burst_range CHECK (burst BETWEEN 1 AND 1000000),
    key_max_running integer          CONSTRAINT key_max_running_range CHECK (key_max_running BETWEEN 1 AND 1000000),
    key_rate        double precision CONSTRAINT key_rate_range CHECK (key_rate BETWEEN 0.00001 AND 1000000),
    key_burst       integer          CONSTRAINT key_burst_range CHECK (key_burst BETWEEN 1 AND 1000000)
);

-- The state of queues with a limit of their own; a claim locks the row, so that claims of such a queue are one after the other. Made
-- by the first of them.
CREATE TABLE IF NOT EXISTS jobqueue.queue_limits (
    queue         text             PRIMARY KEY,
    tokens        double precision,        -- at refilled_at; NULL: the bucket is full
    refilled_at   timestamptz,
    counted_since timestamptz,             -- when the first claim under max_running came; NULL: none has
    all_counted   boolean          NOT NULL DEFAULT false   -- every running job has its mark, so that an index counts them
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

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
    admitted        boolean,             -- it has a concurrency key, and jobqueue.admit let it in; NULL: it has none
    CONSTRAINT kind_length CHECK (length(kind) BETWEEN 1 AND 200),
    CONSTRAINT queue_length CHECK (length(queue) BETWEEN 1 AND 200),
    CONSTRAINT priority_range CHECK (priority BETWEEN 0 AND 1000000),
    CONSTRAINT max_retries_range CHECK (max_retries BETWEEN 0 AND 1000),
    CONSTRAINT timeout_range CHECK (timeout > 0 AND timeout <= 604800),
    CONSTRAINT times_finite CHECK (isfinite(rank) AND isfinite(created_at) AND isfinite(available_since))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000);

CREATE INDEX IF NOT EXISTS pending_jobs_claim ON jobqueue.pending_jobs (queue, rank);
CREATE INDEX IF NOT EXISTS pending_jobs_key ON jobqueue.pending_jobs (queue, (options ->> 'concurrency_key')) WHERE admitted;

-- Jobs whose key may have no room. The columns are those of pending_jobs, and stay so.
CREATE TABLE IF NOT EXISTS jobqueue.blocked_jobs (
    LIKE jobqueue.pending_jobs INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (id),
    CONSTRAINT concurrency_key_length CHECK (length(options ->> 'concurrency_key') BETWEEN 1 AND 200)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS blocked_jobs_key ON jobqueue.blocked_jobs (queue, (options ->> 'concurrency_key'), rank);

-- The keys to look at, from some time on: one row for whatever may have made room for a key, or given it a job. Rows are only ever
-- inserted, but for jobqueue.admit, which takes them: nobody waits for anybody here.
CREATE TABLE IF NOT EXISTS jobqueue.key_checks (
    queue text        NOT NULL,
    key   text        NOT NULL,
    at    timestamptz NOT NULL DEFAULT now()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS key_checks_due ON jobqueue.key_checks (at);

-- What was started of keys whose rate is limited, and not yet taken from the key's bucket.
CREATE TABLE IF NOT EXISTS jobqueue.key_starts (
    queue text        NOT NULL,
    key   text        NOT NULL,
    at    timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS key_starts_key ON jobqueue.key_starts (queue, key, at);

-- The bucket of each such key; one without a row is full.
CREATE TABLE IF NOT EXISTS jobqueue.key_buckets (
    queue       text             NOT NULL,
    key         text             NOT NULL,
    tokens      double precision NOT NULL,   -- at refilled_at
    refilled_at timestamptz      NOT NULL,
    check_at    timestamptz,                 -- the last check that was entered for a token to come
    PRIMARY KEY (queue, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

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
    CONSTRAINT concurrency_key_length CHECK (length(options ->> 'concurrency_key') BETWEEN 1 AND 200),
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
    limited         boolean              -- it has a key, or was claimed under the queue's max_running; NULL: neither
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS inflight_jobs_limited ON jobqueue.inflight_jobs (queue, (options ->> 'concurrency_key')) WHERE limited;

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

-- ------------------------------------------------------------------------------------------------------------- looking things up

CREATE OR REPLACE VIEW jobqueue.jobs AS
    SELECT id, 'pending' AS state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL::timestamptz AS run_at, NULL::timestamptz AS claimed_at, NULL::timestamptz AS ended_at, NULL::uuid AS node_id,
           NULL::jsonb AS result, NULL::text AS reason, errors, options, saved
      FROM jobqueue.pending_jobs
    UNION ALL
    SELECT id, 'blocked', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL, NULL, NULL, NULL, NULL, NULL, errors, options, saved
      FROM jobqueue.blocked_jobs
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

-- ------------------------------------------------------------------------------------------------------------------- keys
--
-- At most key_max_running jobs of one concurrency key of a queue are in pending_jobs and inflight_jobs together: what is claimed, or may
-- be. Only jobqueue.admit makes them more, one transaction at a time over all nodes, and counts after it has the lock; so the limit
-- is exact, and what does not fit is out of the way of claims. Everything else only ever makes them fewer, and enters a check.

-- A row for pending_jobs whose job has a key goes to blocked_jobs instead, wherever it comes from: the table itself sees to it. (That
-- costs a plain row nothing: the condition is short, for PostgreSQL reads it anew for each statement.)
CREATE OR REPLACE FUNCTION jobqueue.block() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.admitted OR NEW.options ->> 'concurrency_key' IS NULL THEN
        RETURN NEW;
    END IF;
    INSERT INTO jobqueue.blocked_jobs VALUES (NEW.*) ON CONFLICT (id) DO NOTHING;
    INSERT INTO jobqueue.key_checks (queue, key) VALUES (NEW.queue, NEW.options ->> 'concurrency_key');
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER block BEFORE INSERT ON jobqueue.pending_jobs FOR EACH ROW
    WHEN (NEW.options IS NOT NULL) EXECUTE FUNCTION jobqueue.block();

-- Tell listening nodes that keys are to be looked at. A node that enters checks looks by itself; this is for all others who do.
CREATE OR REPLACE FUNCTION jobqueue.wake_keys() RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue_keys', '') $$;

-- Have every key of a queue looked at that has blocked jobs, up to so many: for when its limits have changed. A key that is left out
-- is looked at when one of its jobs ends, or comes.
CREATE OR REPLACE FUNCTION jobqueue.check_keys(queue text, max_keys integer DEFAULT 100000) RETURNS void
LANGUAGE sql AS $$
    -- From key to key by the index: a key may have a million jobs.
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

-- How many more jobs of a key may be admitted, as its rate goes: the tokens in its bucket, less the jobs that were admitted and have not
-- started, so that late starts cannot come in a bunch. Where that is less than wanted, a check is entered for when the next token comes.
-- Only jobqueue.admit calls it, under its lock.
CREATE OR REPLACE FUNCTION jobqueue.key_allowance(queue text, key text, rate double precision, burst double precision, wanted bigint)
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
    SELECT b.* INTO bucket FROM jobqueue.key_buckets AS b WHERE b.queue = key_allowance.queue AND b.key = key_allowance.key;
    -- In one statement, so of one moment: a job that is claimed meanwhile is in the one or in the other.
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
    -- One after the other: a bucket that is full gets no fuller, and it is when a token is taken that it can take the next.
    FOREACH start IN ARRAY coalesce(starts, '{}') LOOP
        tokens := least(burst, tokens + rate * greatest(0, extract(epoch FROM start - refilled_at)::double precision)) - 1;
        refilled_at := greatest(refilled_at, start);
    END LOOP;
    tokens := least(burst, tokens + rate * greatest(0, extract(epoch FROM present - refilled_at)::double precision));
    allowed := greatest(0, floor(tokens)::bigint - unstarted);
    next_at := bucket.check_at;
    IF allowed < wanted THEN
        next_at := present + (unstarted + allowed + 1 - tokens) / rate * interval '1 second';
        -- One that was entered for about then will do.
        IF bucket.check_at BETWEEN present AND next_at + interval '1 millisecond' THEN
            next_at := bucket.check_at;
        ELSE
            INSERT INTO jobqueue.key_checks (queue, key, at) VALUES (key_allowance.queue, key_allowance.key, next_at);
        END IF;
    END IF;
    INSERT INTO jobqueue.key_buckets AS b (queue, key, tokens, refilled_at, check_at)
    VALUES (key_allowance.queue, key_allowance.key, tokens, present, next_at)
        ON CONFLICT ON CONSTRAINT key_buckets_pkey
        DO UPDATE SET tokens = excluded.tokens, refilled_at = excluded.refilled_at, check_at = excluded.check_at;
    RETURN allowed;
END $$;

-- Look at the keys of up to so many checks that are due, and move their best blocked jobs to pending as far as their limits allow.
-- Returns the checks taken, the best rank of each queue that got jobs, as {"queue": seconds}, and the seconds until the next check is due
-- (NULL: there is none).
CREATE OR REPLACE FUNCTION jobqueue.admit(max_checks integer DEFAULT 1000)
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
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- Each statement must see what others committed before this transaction had the lock.
        RAISE EXCEPTION 'jobqueue.admit counts in READ COMMITTED only, not in %', current_setting('transaction_isolation');
    END IF;
    PERFORM pg_advisory_xact_lock(7669743430829532519);
    WITH due AS (
        DELETE FROM jobqueue.key_checks AS c
         WHERE c.ctid = ANY (ARRAY(
                   SELECT d.ctid FROM jobqueue.key_checks AS d WHERE d.at <= clock_timestamp() ORDER BY d.at LIMIT max_checks))
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
            -- A row that somebody's transaction holds, to cancel it, is left out: nobody waits for that one.
            SELECT w.queue, w.key, w.free, b.place
              FROM wanted AS w
             CROSS JOIN LATERAL (SELECT b.ctid AS place FROM jobqueue.blocked_jobs AS b
                                  WHERE b.queue = w.queue AND b.options ->> 'concurrency_key' = w.key
                                  ORDER BY b.rank LIMIT w.free FOR UPDATE OF b SKIP LOCKED) AS b
        ), left_out AS (
            INSERT INTO jobqueue.key_checks (queue, key, at)
            SELECT w.queue, w.key, clock_timestamp() + interval '1 second' FROM wanted AS w
             WHERE (SELECT count(*) FROM picked AS p WHERE p.queue = w.queue AND p.key = w.key)
                   < (SELECT count(*) FROM (SELECT FROM jobqueue.blocked_jobs AS b
                                             WHERE b.queue = w.queue AND b.options ->> 'concurrency_key' = w.key LIMIT w.free) AS there)
        ), gone AS (
            DELETE FROM jobqueue.blocked_jobs AS b WHERE b.ctid = ANY (ARRAY(SELECT picked.place FROM picked)) RETURNING b.*
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
        PERFORM jobqueue.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    END IF;
    next_due := jobqueue.next_check();
    RETURN NEXT;
END $$;

-- The seconds until the next check of a key is due; NULL: there is none.
CREATE OR REPLACE FUNCTION jobqueue.next_check() RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT extract(epoch FROM c.at - clock_timestamp()) FROM jobqueue.key_checks AS c ORDER BY c.at LIMIT 1
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
LANGUAGE sql VOLATILE AS $$
    SELECT jsonb_agg(CASE WHEN j.job -> 'options' ? 'expires_in'
                          THEN jsonb_set(j.job #- '{options,expires_in}', '{options,expires_at}', to_jsonb(
                               extract(epoch FROM now())::double precision + (j.job #>> '{options,expires_in}')::double precision))
                          ELSE j.job END
                     ORDER BY j.place)
      FROM jsonb_array_elements(prepare.jobs) WITH ORDINALITY AS j (job, place)
$$;

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
        IF wake AND jobs @? '$[*].options.concurrency_key' THEN
            PERFORM jobqueue.wake_keys();
        END IF;
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
    concurrency_key text         DEFAULT NULL     -- none: of its queue's jobs with the same key, so many run at a time
) RETURNS uuid
LANGUAGE sql AS $$
    SELECT (jobqueue.submit_many(jsonb_build_array(jsonb_build_object(
        'kind', kind, 'payload', payload, 'queue', queue, 'priority', priority, 'max_retries', max_retries, 'run_at', run_at,
        'timeout', timeout, 'expires_at', expires_at, 'concurrency_key', concurrency_key))))[1]
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
        SELECT count(jobqueue.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM back GROUP BY queue) AS queues
    ), freed AS MATERIALIZED (
        SELECT count(jobqueue.freed(queue)) FROM (SELECT DISTINCT queue FROM held WHERE limited) AS queues
    )
    SELECT (SELECT count(*) FROM held) INTO released FROM told CROSS JOIN freed;
    IF released > 0 THEN
        PERFORM jobqueue.wake_keys();
    END IF;
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
    ), freed AS MATERIALIZED (
        SELECT count(jobqueue.freed(queue)) FROM (SELECT DISTINCT queue FROM judged WHERE limited) AS queues
    ), checks AS (
        INSERT INTO jobqueue.key_checks (queue, key)
        SELECT j.queue, j.options ->> 'concurrency_key' FROM judged AS j WHERE j.spent AND j.options ->> 'concurrency_key' IS NOT NULL
    )
    SELECT j.id, j.queue, j.kind, j.attempt, j.node_id, CASE WHEN j.spent THEN 'dead' ELSE 'pending' END
      FROM judged AS j CROSS JOIN told CROSS JOIN freed;
END $$;

-- ------------------------------------------------------------------------------------------------------------------- claim

-- Tell listening nodes that jobs of a queue have ended, if it may only run so many at a time: those that a claim left short may ask again.
CREATE OR REPLACE FUNCTION jobqueue.freed(queue text) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_notify('jobqueue_freed', q.name) FROM jobqueue.queues AS q WHERE q.name = freed.queue AND q.max_running IS NOT NULL
$$;

-- How many jobs of a queue with a limit of its own a claim may take, and in how many seconds it may take more (NULL: when some end). Locks
-- the queue's limits until the end of the transaction: what is counted stays true. Whoever holds that lock for long, as somebody who
-- configures the queue in an open transaction, makes a claim wait for a tenth of a second at the most.
CREATE OR REPLACE FUNCTION jobqueue.allowance(queue text, wanted integer, OUT jobs integer, OUT again double precision)
LANGUAGE plpgsql
SET lock_timeout = '100ms'
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
    SELECT q.* INTO settings FROM jobqueue.queues AS q WHERE q.name = allowance.queue;
    jobs := wanted;
    IF settings.max_running IS NOT NULL THEN
        IF state.all_counted THEN
            SELECT count(*) INTO running FROM jobqueue.inflight_jobs AS i WHERE i.queue = allowance.queue AND i.limited;
        ELSE
            -- Jobs that were claimed before there was the limit have no mark. The last such claim is over after its statement_timeout;
            -- from then on, when all that run have their mark, the index will do.
            SELECT count(*), count(i.limited) INTO running, marked FROM jobqueue.inflight_jobs AS i WHERE i.queue = allowance.queue;
            UPDATE jobqueue.queue_limits AS l
               SET counted_since = coalesce(l.counted_since, clock_timestamp()), all_counted = l.counted_since IS NOT NULL
             WHERE l.queue = allowance.queue
               AND (l.counted_since IS NULL OR running = marked AND l.counted_since < clock_timestamp() - interval '1 minute');
        END IF;
        jobs := least(wanted, greatest(0, settings.max_running - running));
    END IF;
    IF settings.rate IS NOT NULL THEN
        burst := coalesce(settings.burst, greatest(1, settings.rate));
        tokens := jobqueue.refilled(state.tokens, state.refilled_at, settings.rate, burst);
        IF floor(tokens) < jobs THEN
            jobs := greatest(0, floor(tokens));
            -- At a high rate not for each token, but for a few at a time.
            enough := greatest(1, floor(least(wanted, burst, settings.rate * 0.02)));
            again := (enough - (tokens - jobs)) / settings.rate;
        END IF;
    END IF;
END $$;

-- What is in a bucket now. A clock that was put back gives nothing, and takes nothing.
CREATE OR REPLACE FUNCTION jobqueue.refilled(tokens double precision, refilled_at timestamptz, rate double precision, burst double precision)
RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT least(burst, coalesce(tokens + rate * greatest(0, extract(epoch FROM clock_timestamp() - refilled_at)::double precision), burst))
$$;

-- Take what was claimed out of the queue's bucket, under the lock of jobqueue.allowance.
CREATE OR REPLACE FUNCTION jobqueue.spend(queue text, taken integer) RETURNS void
LANGUAGE sql AS $$
    UPDATE jobqueue.queue_limits AS l
       SET tokens = jobqueue.refilled(l.tokens, l.refilled_at, q.rate, coalesce(q.burst, greatest(1, q.rate))) - taken,
           refilled_at = clock_timestamp()
      FROM jobqueue.queues AS q
     WHERE l.queue = spend.queue AND q.name = l.queue AND q.rate IS NOT NULL AND (taken > 0 OR l.refilled_at > clock_timestamp())
$$;

-- Claim up to so many jobs of each queue, best rank first: wants is {"queue": [count, floor]}, defaults is {"kind": max_retries} of the
-- handlers of the node. A paused queue, or a node without a valid lease, gets nothing. Jobs of a rank below the floor (in seconds; null
-- for none) are not looked at: while an old transaction keeps dead rows from being removed, they lie there, in front of the living. Returns one JSON array of
-- [queue, id, kind, payload, priority, attempt, claims, max_retries, timeout, created_at, rank, waited], times in seconds; a job that has
-- options or saved notes has these two at the end. Where a limit leaves a queue short, it is an object instead, of that array as "jobs",
-- and as "again" {"queue": seconds}: in how many seconds there may be more to claim, or null, when jobs of the queue end.
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
               num_nonnulls(q.max_running, q.rate, q.key_rate) > 0 AS limited, q.max_running, q.rate, q.key_rate
          -- In the order of jsonb_each, the same for all: so are the limits locked.
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
                     WHERE p.ctid = ANY (ARRAY(
                               SELECT c.ctid FROM jobqueue.pending_jobs AS c
                                WHERE c.queue = want.queue AND c.rank >= want.floor
                                  AND (NOT twins OR NOT EXISTS (SELECT FROM jobqueue.inflight_jobs AS i WHERE i.id = c.id OFFSET 0))
                                ORDER BY c.rank LIMIT most FOR UPDATE OF c SKIP LOCKED))
                    RETURNING p.*, coalesce(p.max_retries, (defaults ->> p.kind)::integer, 3) AS retries
                ), moved AS (
                    INSERT INTO jobqueue.inflight_jobs (id, queue, kind, priority, node_id, claimed_at, payload, max_retries, timeout,
                                                        attempt, claims, created_at, available_since, errors, options, saved, limited)
                    -- Rates hold by claimed_at: then it is not when the transaction began, which may have waited for its turn.
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
    IF again IS NOT NULL THEN
        RETURN '{"jobs":[' || array_to_string(parts, ',') || '],"again":' || again || '}';
    END IF;
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
    limited jsonb;   -- [queue, key] of each that ended under a limit
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
    RETURN coalesce(stale, '{}');
END $$;

-- ------------------------------------------------------------------------------------------------------------------- promote

-- Move up to so many due jobs to pending. Returns the jobs moved, the best rank of each queue that got some, as {"queue": seconds}, the
-- seconds until the next one is due (NULL: none), and those until the next check of a key is: every node asks this now and then anyway.
CREATE OR REPLACE FUNCTION jobqueue.promote(max_jobs integer DEFAULT 1000)
RETURNS TABLE (promoted integer, best jsonb, next_due double precision, next_check double precision)
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
        SELECT moved.queue, min(moved.rank) AS rank FROM moved GROUP BY moved.queue
    )
    SELECT (SELECT count(*) FROM due), coalesce(jsonb_object_agg(q.queue, extract(epoch FROM q.rank)), '{}')
      INTO promoted, best FROM queues AS q;
    PERFORM jobqueue.wake(b.key, to_timestamp(b.value::double precision)) FROM jsonb_each_text(best) AS b;
    next_due := (SELECT extract(epoch FROM s.run_at) - extract(epoch FROM clock_timestamp()) FROM jobqueue.scheduled_jobs AS s ORDER BY s.run_at LIMIT 1);
    next_check := jobqueue.next_check();
    RETURN NEXT;
END $$;

-- ------------------------------------------------------------------------------------------------------------------- steering

-- Cancel a job that waits. Returns false when it is not scheduled, blocked or pending any more. In as many statements: a job that is
-- promoted or admitted meanwhile is looked for where it went.
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
    WITH gone AS (DELETE FROM jobqueue.blocked_jobs WHERE id = job RETURNING *)
    INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                        available_since, finished_at, errors, options, saved)
    SELECT id, queue, kind, priority, 'cancelled', payload, max_retries, timeout, attempt, claims, created_at, available_since, now(),
           errors, options, saved
      FROM gone;
    IF FOUND THEN
        RETURN true;
    END IF;
    WITH gone AS (DELETE FROM jobqueue.pending_jobs WHERE id = job RETURNING *),
         checks AS (
             INSERT INTO jobqueue.key_checks (queue, key)
             SELECT queue, options ->> 'concurrency_key' FROM gone WHERE options ->> 'concurrency_key' IS NOT NULL
             RETURNING jobqueue.wake_keys())
    INSERT INTO jobqueue.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                        available_since, finished_at, errors, options, saved)
    SELECT id, queue, kind, priority, 'cancelled', payload, max_retries, timeout, attempt, claims, created_at, available_since, now(),
           errors, options, saved
      FROM gone;
    RETURN FOUND;
END $$;

-- Run a dead job again (redrive), with all its attempts and a new place in line. Returns false when it is not dead.
CREATE OR REPLACE FUNCTION jobqueue.retry(job uuid) RETURNS boolean
LANGUAGE sql AS $$
    WITH risen AS (DELETE FROM jobqueue.dead_jobs WHERE id = job RETURNING *),
         pending AS (
             INSERT INTO jobqueue.pending_jobs (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims,
                                                created_at, available_since, errors, options, saved)
             SELECT r.id, r.queue, r.kind, r.priority, jobqueue.rank_of(now(), r.priority, q.aging_interval, r.options), r.payload, r.max_retries,
                    r.timeout, 0, r.claims, r.created_at, now(), r.errors, r.options, r.saved
               FROM risen AS r LEFT JOIN jobqueue.queues AS q ON q.name = r.queue
             RETURNING queue, rank),
         told AS MATERIALIZED (
             SELECT count(jobqueue.wake(queue, rank)), (SELECT count(jobqueue.wake_keys()) FROM risen WHERE options ? 'concurrency_key')
               FROM pending)
    SELECT EXISTS (SELECT FROM risen CROSS JOIN told)
$$;

-- Delete a dead job for good. Returns false when it is not dead.
CREATE OR REPLACE FUNCTION jobqueue.discard(job uuid) RETURNS boolean
LANGUAGE sql AS $$
    WITH gone AS (DELETE FROM jobqueue.dead_jobs WHERE id = job RETURNING id) SELECT EXISTS (SELECT FROM gone)
$$;

-- Pause a queue on every node, or resume it. Running jobs go on; what nodes have claimed and not started they hand back.
CREATE OR REPLACE FUNCTION jobqueue.pause(queue text, paused boolean DEFAULT true) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO jobqueue.queues (name, paused) VALUES (pause.queue, pause.paused)
        ON CONFLICT (name) DO UPDATE SET paused = excluded.paused;
    SELECT CASE WHEN pause.paused THEN pg_notify('jobqueue_paused', pause.queue) ELSE jobqueue.wake(pause.queue, '-infinity') END
$$;

-- Set what holds for a queue on all nodes: its aging interval, for jobs that come from now on, and its limits. NULL leaves a setting as it is; those that
-- clear names go back to what they are without: SELECT jobqueue.configure('mail', rate => 5, clear => '{max_running}');
CREATE OR REPLACE FUNCTION jobqueue.configure(
    queue           text,
    aging_interval  interval         DEFAULT NULL,   -- how long a job waits to be worth one point of priority more
    max_running     integer          DEFAULT NULL,   -- jobs at a time
    rate            double precision DEFAULT NULL,   -- starts a second
    burst           integer          DEFAULT NULL,   -- starts at once, after a pause
    key_max_running integer          DEFAULT NULL,   -- the same three for each concurrency key
    key_rate        double precision DEFAULT NULL,
    key_burst       integer          DEFAULT NULL,
    clear           text[]           DEFAULT '{}'
) RETURNS void
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    unknown text := (SELECT c FROM unnest(clear) AS c
                      WHERE c <> ALL ('{aging_interval,max_running,rate,burst,key_max_running,key_rate,key_burst}') LIMIT 1);
    old jobqueue.queues;
    new jobqueue.queues;
BEGIN
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a queue has no setting "%"', unknown USING ERRCODE = 'invalid_parameter_value';
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
    -- A limit that comes begins anew: what runs may have no mark, and the bucket is full. One that changes goes on.
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
    -- Keys are looked at now and then whatever happened, such as to rows that somebody deleted by hand.
    PERFORM jobqueue.check_keys(b.queue) FROM (SELECT DISTINCT blocked_jobs.queue FROM jobqueue.blocked_jobs) AS b;
    -- Buckets of keys that are full again, or have none any more; and the starts of the latter.
    DELETE FROM jobqueue.key_starts AS s WHERE NOT EXISTS (SELECT FROM jobqueue.queues AS q WHERE q.name = s.queue AND q.key_rate IS NOT NULL);
    DELETE FROM jobqueue.key_buckets AS b
     WHERE NOT EXISTS (SELECT FROM jobqueue.key_starts AS s WHERE s.queue = b.queue AND s.key = b.key)
       AND NOT EXISTS (SELECT FROM jobqueue.queues AS q
                        WHERE q.name = b.queue AND jobqueue.refilled(b.tokens, b.refilled_at, q.key_rate, coalesce(q.key_burst, greatest(1, q.key_rate)))
                              < coalesce(q.key_burst, greatest(1, q.key_rate)));
    RETURN dropped;
END $$;

-- A first set of partitions, so that a database prepared with psql alone is complete.
SELECT jobqueue.maintain(86400, 2592000);

COMMIT;
