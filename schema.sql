-- jobqueue: the database schema "jobqueue", with all its tables and functions.
--
-- Run this file with `psql -f schema.sql` or `jobqueue migrate`, or let `jobqueue serve` run it. The file is complete
-- and idempotent, runs in one transaction, and rejects a database that a newer jobqueue has migrated. It needs
-- PostgreSQL 14 or newer.
--
-- Each state has its own table. The table that holds a job's row determines the job's state:
--
--     scheduled_jobs --promote--> pending_jobs --claim--> inflight_jobs --finish--> finished_jobs | dead_jobs | scheduled_jobs
--                                      ^------ release, recover --------'
--
-- `expire` and `claim` move expired jobs from any waiting state to dead_jobs. A job with a concurrency key goes to
-- blocked_jobs wherever another job would go to pending_jobs. `admit` moves it to pending_jobs when its key has room.
--
-- Each arrow is one of the functions below. A call is one transaction, and moves a batch of jobs. For speed, a function
-- takes and returns a batch as one JSON document.
--
-- An id belongs to one job. SQL of a user can create a second row with the same id. When both rows reach the same
-- table, ON CONFLICT DO NOTHING drops the second row. Without this clause, an error would abort the whole batch, on
-- every node that tries it.

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

SET LOCAL client_min_messages = warning;
-- Do not depend on the session's settings. Names must resolve to PostgreSQL's own objects, even while PostgreSQL checks
-- function bodies.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
SET LOCAL plpgsql.extra_errors = '';

DO $$
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the database "%" has the encoding %, but jobqueue needs UTF8: create another one with CREATE DATABASE name ENCODING ''UTF8'' TEMPLATE template0',
            current_database(), current_setting('server_encoding');
    END IF;
END $$;

-- Two nodes that start at the same time must not both create objects. The lock's number is 'jobqueue' in ASCII, cut to
-- 63 bits.
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
        RAISE EXCEPTION 'the database has jobqueue schema version %, which is newer than version % of this schema.sql', found, this_version
            USING HINT = 'Upgrade jobqueue, or use another database.';
    ELSIF found IS NULL THEN
        INSERT INTO jobqueue.schema_version (version) VALUES (this_version);
    END IF;
END $$;

-- ------------------------------------------------------------------------------------------------------------------- tables

-- Only queues that were configured, or that a node has workers for, have a row. A queue without a row has the default
-- settings.
CREATE TABLE IF NOT EXISTS jobqueue.queues (
    name           text        PRIMARY KEY,
    paused         boolean     NOT NULL DEFAULT false,
    fair           boolean     NOT NULL DEFAULT false,   -- true if a claim has taken jobs of groups from the queue, see jobqueue.serve_lines
    aging_interval interval    NOT NULL DEFAULT '1 second'
                   CONSTRAINT aging_interval_range CHECK (aging_interval BETWEEN '0 seconds' AND '1 day'),  -- a longer interval would put ranks out of range
    created_at     timestamptz NOT NULL DEFAULT now(),
    -- Limits for all nodes together, set by jobqueue.configure. NULL means no limit, with two exceptions:
    -- key_max_running is then 1, and a burst is then the number of starts that the rate allows in one second.
    max_running     integer          CONSTRAINT max_running_range CHECK (max_running BETWEEN 1 AND 1000000),
    rate            double precision CONSTRAINT rate_range CHECK (rate BETWEEN 0.00001 AND 1000000),   -- starts per second
    burst           integer          CONSTRAINT burst_range CHECK (burst BETWEEN 1 AND 1000000),
    key_max_running integer          CONSTRAINT key_max_running_range CHECK (key_max_running BETWEEN 1 AND 1000000),
    key_rate        double precision CONSTRAINT key_rate_range CHECK (key_rate BETWEEN 0.00001 AND 1000000),
    key_burst       integer          CONSTRAINT key_burst_range CHECK (key_burst BETWEEN 1 AND 1000000)
);

-- The state of queues that have max_running or a rate. A claim locks the queue's row, so claims of such a queue run one
-- after the other. The first of these claims creates the row.
CREATE TABLE IF NOT EXISTS jobqueue.queue_limits (
    queue         text             PRIMARY KEY,
    tokens        double precision,        -- number of tokens at the time refilled_at; NULL: the bucket is full
    refilled_at   timestamptz,
    counted_since timestamptz,             -- time of the first claim under max_running; NULL: none yet
    all_counted   boolean          NOT NULL DEFAULT false   -- true if every running job is marked as limited, so that an index can count the running jobs
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- One row per running node. A node's lease covers all of its claimed jobs, so a heartbeat is one write, however many
-- jobs run. The pages keep free space, and lease_until has no index, so each renewal is a HOT update.
CREATE TABLE IF NOT EXISTS jobqueue.nodes (
    id           uuid        PRIMARY KEY,
    host         text        NOT NULL,
    pid          integer     NOT NULL,
    process      text        NOT NULL,   -- identifies the machine's boot and the process, so a restarted node recognizes its dead predecessor
    version      text        NOT NULL,
    queues       jsonb       NOT NULL,   -- {"queue": concurrency}
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    lease_until  timestamptz NOT NULL,
    activity     jsonb                   -- {"queue": [succeeded jobs, failed attempts]} per second over the last minute; NULL: none
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- rank = available_since - priority * aging_interval, and the smallest rank runs first. Waiting one aging_interval is
-- worth one point of priority. All jobs age at the same rate, so their order never changes. So an index on rank works
-- as a priority queue with aging.
CREATE TABLE IF NOT EXISTS jobqueue.pending_jobs (
    id              uuid             NOT NULL PRIMARY KEY,
    queue           text             NOT NULL,
    kind            text             NOT NULL,
    priority        integer          NOT NULL,
    rank            timestamptz      NOT NULL,
    payload         jsonb            NOT NULL,
    max_retries     integer,             -- NULL until the first claim sets it: the handler's value, or 3
    timeout         double precision,    -- seconds; NULL: the handler's timeout, or none
    attempt         integer          NOT NULL DEFAULT 0,   -- number of claims that count against max_retries, without refunded claims
    claims          integer          NOT NULL DEFAULT 0,   -- number of all claims so far; together with the id, it is the fencing token of a run
    created_at      timestamptz      NOT NULL,
    available_since timestamptz      NOT NULL,   -- created_at, or the first run_at; a retry does not change it
    errors          jsonb            NOT NULL DEFAULT '[]',
    options         jsonb,               -- options of the submission that are not columns, see jobqueue.with_options; NULL: none
    saved           jsonb,               -- progress and checkpoint that the handler stored; NULL: none
    admitted        boolean,             -- true if the job has a concurrency key, and jobqueue.admit admitted it; NULL if it has no key
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
-- This index covers only jobs with an expiry time, and rejects an expiry time that is not a number. See
-- jobqueue.expire.
CREATE INDEX IF NOT EXISTS pending_jobs_expire ON jobqueue.pending_jobs (((options -> 'expires_at')::double precision))
 WHERE options ? 'expires_at';
CREATE INDEX IF NOT EXISTS pending_jobs_key ON jobqueue.pending_jobs (queue, (options ->> 'concurrency_key')) WHERE admitted;

-- Jobs that wait for room under their concurrency key. The columns must stay the same as in pending_jobs.
CREATE TABLE IF NOT EXISTS jobqueue.blocked_jobs (
    LIKE jobqueue.pending_jobs INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (id),
    CONSTRAINT concurrency_key_length CHECK (length(options ->> 'concurrency_key') BETWEEN 1 AND 200)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS blocked_jobs_key ON jobqueue.blocked_jobs (queue, (options ->> 'concurrency_key'), rank);
CREATE INDEX IF NOT EXISTS blocked_jobs_expire ON jobqueue.blocked_jobs (((options -> 'expires_at')::double precision))
 WHERE options ? 'expires_at';

-- Concurrency keys to check: one row for each event that may have made room for a key or added a job to it. No function
-- updates a row, and only jobqueue.admit deletes rows, so transactions do not wait for each other here.
CREATE TABLE IF NOT EXISTS jobqueue.key_checks (
    queue text        NOT NULL,
    key   text        NOT NULL,
    at    timestamptz NOT NULL DEFAULT now(),
    timed boolean              -- true: check at the time `at`, not earlier. NULL: check at once, regardless of the clock
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

ALTER TABLE jobqueue.key_checks ADD COLUMN IF NOT EXISTS timed boolean;
DROP INDEX IF EXISTS jobqueue.key_checks_due;   -- an earlier version had only timed checks
CREATE INDEX IF NOT EXISTS key_checks_next ON jobqueue.key_checks (timed, at);

-- Starts of jobs under a key_rate that have not been deducted from the key's bucket yet.
CREATE TABLE IF NOT EXISTS jobqueue.key_starts (
    queue text        NOT NULL,
    key   text        NOT NULL,
    at    timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS key_starts_key ON jobqueue.key_starts (queue, key, at);

-- The token bucket of each key under a key_rate. A key without a row has a full bucket.
CREATE TABLE IF NOT EXISTS jobqueue.key_buckets (
    queue       text             NOT NULL,
    key         text             NOT NULL,
    tokens      double precision NOT NULL,   -- number of tokens at the time refilled_at
    refilled_at timestamptz      NOT NULL,
    check_at    timestamptz,                 -- time of the latest check that waits for the next token
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
CREATE INDEX IF NOT EXISTS scheduled_jobs_expire ON jobqueue.scheduled_jobs (((options -> 'expires_at')::double precision))
 WHERE options ? 'expires_at';

-- node_id has no index, because the table holds only claimed jobs, and few statements search by node.
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
    cancel_requested_at timestamptz,     -- time of the cancel request, see jobqueue.cancel; the job is never pending or scheduled again
    limited         boolean,             -- true if the job has a concurrency key, or its queue had max_running at the claim; else NULL
    blame           jsonb                -- {"error", "delay"} of a job that blocked its node, see jobqueue.surrender; NULL: the job did not block it
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE jobqueue.inflight_jobs ADD COLUMN IF NOT EXISTS blame jsonb;

-- With this index, a heartbeat finds the jobs that its node must cancel. The index is almost always empty.
CREATE INDEX IF NOT EXISTS inflight_jobs_cancel ON jobqueue.inflight_jobs (node_id) WHERE cancel_requested_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS inflight_jobs_limited ON jobqueue.inflight_jobs (queue, (options ->> 'concurrency_key')) WHERE limited;

-- Requests to cancel running jobs. The next heartbeat of any node marks the jobs and deletes the requests. All other
-- functions only insert rows. A function that makes a running job pending or scheduled again reads both the marks and
-- these rows. So it does not have to wait for a heartbeat, or for a lock that a heartbeat holds.
CREATE TABLE IF NOT EXISTS jobqueue.cancel_requests (
    job_id uuid NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- Finished jobs. They are partitioned by state, because each state has its own retention period. They are also
-- partitioned by day, so that retention can drop a partition instead of deleting a million rows.
CREATE TABLE IF NOT EXISTS jobqueue.finished_jobs (
    id              uuid             NOT NULL,
    queue           text             NOT NULL,
    kind            text             NOT NULL,
    priority        integer          NOT NULL,
    state           text             NOT NULL,
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
) PARTITION BY LIST (state);

CREATE INDEX IF NOT EXISTS finished_jobs_id ON jobqueue.finished_jobs (id);

CREATE TABLE IF NOT EXISTS jobqueue.succeeded_jobs PARTITION OF jobqueue.finished_jobs FOR VALUES IN ('succeeded')
    PARTITION BY RANGE (finished_at);
CREATE TABLE IF NOT EXISTS jobqueue.cancelled_jobs PARTITION OF jobqueue.finished_jobs FOR VALUES IN ('cancelled')
    PARTITION BY RANGE (finished_at);

-- The default partitions store jobs that finish on a day without a partition. Maintenance can be late, but a completion
-- must not fail for that reason.
CREATE TABLE IF NOT EXISTS jobqueue.succeeded_jobs_default PARTITION OF jobqueue.succeeded_jobs DEFAULT;
CREATE TABLE IF NOT EXISTS jobqueue.cancelled_jobs_default PARTITION OF jobqueue.cancelled_jobs DEFAULT;

-- Return the cause of a failure: a text that is the same for similar failures, so that they can be grouped. The text is
-- made from the last error in the job's history, or from the reason if there is none. "#" replaces the parts that
-- differ between failures: numbers, ids, addresses, tokens, times, quoted values, and the ends of paths. Parts that
-- distinguish causes stay: quoted names (an attribute, a column), status codes, error numbers, and the hosts of URLs.
--
-- The function reads the first 1,000 characters of the error or the reason, and returns up to 200 characters. The rules
-- apply to ASCII characters only, so the result does not depend on the database's locale. The result is stored with
-- dead jobs, so new rules require a new column. jobqueue/testing/causes.py does the same in Python.
CREATE OR REPLACE FUNCTION jobqueue.cause_of(errors jsonb, reason text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET standard_conforming_strings = on
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
    saved           jsonb,
    cause           text             GENERATED ALWAYS AS (jobqueue.cause_of(errors, reason)) STORED
);

-- Add the column to databases of earlier versions. The condition is necessary, because the statement locks and rewrites
-- the table.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'jobqueue.dead_jobs'::regclass AND attname = 'cause' AND NOT attisdropped) THEN
        ALTER TABLE jobqueue.dead_jobs ADD COLUMN cause text GENERATED ALWAYS AS (jobqueue.cause_of(errors, reason)) STORED;
    END IF;
END $$;

-- Each of these indexes provides an order for paging. With it, a filter that selects few jobs among many finds them
-- quickly.
CREATE INDEX IF NOT EXISTS dead_jobs_died_at ON jobqueue.dead_jobs (died_at, id);
CREATE INDEX IF NOT EXISTS dead_jobs_queue ON jobqueue.dead_jobs (queue, died_at, id);
CREATE INDEX IF NOT EXISTS dead_jobs_kind ON jobqueue.dead_jobs (kind, died_at, id);
-- The next index also contains every column that jobqueue.dead_causes reads.
CREATE INDEX IF NOT EXISTS dead_jobs_cause ON jobqueue.dead_jobs (cause, kind, queue, died_at, id);

-- The lines of fair groups, see jobqueue.take_turns. A queue has two lines: `common`, and `urgent` for jobs with a
-- priority. The columns contain the turns that the lines are serving, in seconds since 1970. When a claim finds the
-- lines empty, it sets both to NULL and starts a new epoch. Only claims update the rows, so a claim never waits for a
-- submitter's open transaction.
CREATE TABLE IF NOT EXISTS jobqueue.fair_queues (
    queue  text    PRIMARY KEY,
    common numeric,
    urgent numeric,
    epoch  bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- The earliest turn for the next job of a group, in each line.
CREATE TABLE IF NOT EXISTS jobqueue.fair_groups (
    queue  text    NOT NULL,
    name   text    NOT NULL,
    common numeric NOT NULL DEFAULT 0,
    urgent numeric NOT NULL DEFAULT 0,
    epoch  bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (queue, name)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Cron schedules. Nodes compute the ticks of an expression in Python, from the time of this database. They change
-- next_at by compare-and-set, so each tick gets one job, however many nodes compute it. The table has hundreds of rows,
-- or a few thousand at most. Every query reads the whole table, so next_at needs no index. Without an index, each
-- change of next_at is a HOT update.
CREATE TABLE IF NOT EXISTS jobqueue.schedules (
    name        text             PRIMARY KEY,
    source      text,                -- the module that declares it; NULL: created over HTTP or in SQL
    cron        text             NOT NULL,
    timezone    text             NOT NULL,
    missed      text             NOT NULL,   -- which of the due ticks get a job: one (the latest), skip (the ticks of the last minute), all
    kind        text             NOT NULL,
    payload     jsonb            NOT NULL,
    queue       text             NOT NULL,
    priority    integer          NOT NULL,
    max_retries integer,
    timeout     double precision,
    paused      boolean          NOT NULL DEFAULT false,
    next_at     timestamptz,         -- the first tick that is not processed yet; NULL: a node has to compute it, unless `error` is set
    last_at     timestamptz,         -- the last tick that got a job
    error       text,                -- why the schedule has no next tick
    created_at  timestamptz      NOT NULL DEFAULT now(),
    updated_at  timestamptz      NOT NULL DEFAULT now(),
    CONSTRAINT name_length CHECK (length(name) BETWEEN 1 AND 200),
    CONSTRAINT cron_length CHECK (length(cron) BETWEEN 1 AND 200),
    CONSTRAINT timezone_length CHECK (length(timezone) BETWEEN 1 AND 200),
    CONSTRAINT missed_known CHECK (missed IN ('one', 'skip', 'all')),
    CONSTRAINT kind_length CHECK (length(kind) BETWEEN 1 AND 200),
    CONSTRAINT queue_length CHECK (length(queue) BETWEEN 1 AND 200),
    CONSTRAINT priority_range CHECK (priority BETWEEN 0 AND 1000000),
    CONSTRAINT max_retries_range CHECK (max_retries BETWEEN 0 AND 1000),
    CONSTRAINT timeout_range CHECK (timeout > 0 AND timeout <= 604800),
    CONSTRAINT next_at_finite CHECK (isfinite(next_at))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- The job of each key. In the scope 'idempotency', this is the job of the first submission with the key. It has the key
-- until expires_at, even after the job has ended. In the scope 'unique', a job has the key until it has finished.
-- Nothing is written when that job ends. Instead, the next submission with the key looks up the job, and takes over the
-- key if the job has ended. For unique keys, expires_at is the time to check whether the row is still needed.
CREATE TABLE IF NOT EXISTS jobqueue.keys (
    scope       text        NOT NULL CHECK (scope IN ('idempotency', 'unique')),
    key         text        NOT NULL,
    job_id      uuid        NOT NULL,
    fingerprint text,                 -- hash of the submission, for an idempotency key
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (scope, key),
    CONSTRAINT key_length CHECK (length(key) BETWEEN 1 AND 200)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS keys_expires_at ON jobqueue.keys (expires_at);

-- Counts of all nodes together, in slots of 10, 60 and 300 seconds by the database's clock. These slots are kept for 1
-- hour, 6 hours and 1 day, so the table has about a thousand rows. The pages keep free space, so each node's update is
-- a HOT update.
CREATE TABLE IF NOT EXISTS jobqueue.history (
    step       integer     NOT NULL,               -- seconds
    at         timestamptz NOT NULL,               -- start of the slot
    submitted  bigint      NOT NULL,
    completed  bigint      NOT NULL,
    failed     bigint      NOT NULL,               -- attempts
    dead       bigint      NOT NULL,
    waits      integer[]   NOT NULL,               -- number of first attempts, by how long their jobs waited; jobqueue/durations.py has the bounds
    runs       integer[]   NOT NULL,               -- number of attempts, by their duration
    depth      jsonb,                              -- {"state": number of jobs} at the last count in the slot; NULL without a count
    counted_in double precision,                   -- seconds that the count took
    PRIMARY KEY (step, at)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Numbers of jobs that were submitted in SQL and are not in the history yet. (No node counts these jobs.) No function
-- updates a row, and only jobqueue.record deletes rows, so an open transaction blocks nobody.
CREATE TABLE IF NOT EXISTS jobqueue.sql_submissions (
    jobs integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- Set REPLICA IDENTITY FULL for each table without a primary key. Otherwise, with a publication of all tables,
-- PostgreSQL rejects updates and deletes in such a table. The full identity costs little, because each of these tables
-- is small, or has partitions that retention drops as a whole. jobqueue.maintain does the same for the partitions that
-- it creates.
DO $$
DECLARE
    keyless regclass;
BEGIN
    FOR keyless IN
        SELECT c.oid FROM pg_class AS c
         WHERE c.relnamespace = 'jobqueue'::regnamespace AND c.relkind IN ('r', 'p') AND c.relreplident = 'd'
           AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
    LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', keyless);
    END LOOP;
END $$;

-- ----------------------------------------------------------------------------------------------------------------- lookups

CREATE OR REPLACE VIEW jobqueue.jobs AS
    SELECT id, 'pending' AS state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL::timestamptz AS run_at, NULL::timestamptz AS claimed_at, NULL::timestamptz AS ended_at, NULL::uuid AS node_id,
           NULL::jsonb AS result, NULL::text AS reason, errors, options, saved, NULL::timestamptz AS cancel_requested_at
      FROM jobqueue.pending_jobs
    UNION ALL
    SELECT id, 'blocked', queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since,
           NULL, NULL, NULL, NULL, NULL, NULL, errors, options, saved, NULL
      FROM jobqueue.blocked_jobs
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

-- Return a document of a job in the form in which nodes and clients show it. A user's INSERT can store a document that
-- is nested a thousand levels deep. No reader could decode that document, or a list that contains it. So a text
-- replaces a document that is nested too deeply.
CREATE OR REPLACE FUNCTION jobqueue.shown(document jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN document @? 'strict $.**{110}' THEN '"nested too deeply to be shown"' ELSE document END
$$;

-- Return whether a job waits or runs. This is one statement, so a job that moves during the call is visible in exactly
-- one table.
CREATE OR REPLACE FUNCTION jobqueue.unfinished(job uuid) RETURNS boolean
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM jobqueue.pending_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue.inflight_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue.blocked_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue.scheduled_jobs AS j WHERE j.id = job);
END $$;

-- Create a version 7 UUID (RFC 9562, 5.7). The first 48 bits are milliseconds since 1970, so ids sort by creation.
-- PostgreSQL 18 has a built-in function for this, but older supported versions do not.
CREATE OR REPLACE FUNCTION jobqueue.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
        'hex')::uuid
$$;

-- Return a lower bound for the version 7 UUIDs that are created at this time, to the millisecond. Ids that were created
-- earlier are smaller.
CREATE OR REPLACE FUNCTION jobqueue.uuid7_from(moment timestamptz) RETURNS uuid
LANGUAGE sql STABLE AS $$
    SELECT rpad(lpad(to_hex(floor(least(greatest(extract(epoch FROM moment) * 1000, 0), 281474976710655))::bigint), 12, '0'), 32, '0')::uuid
$$;

-- Return the rank of a job in its queue. aging_interval is NULL for a queue without a row; then the default applies. If
-- the options contain a rank, the function returns that rank.
CREATE OR REPLACE FUNCTION jobqueue.rank_of(available_since timestamptz, priority integer, aging_interval interval, options jsonb)
RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT coalesce(to_timestamp((options -> 'rank')::double precision),
                    available_since - priority * coalesce(aging_interval, '1 second'::interval))
$$;

-- Notify listening nodes that a queue got jobs. The notification contains the best rank of these jobs, so a claim does
-- not have to search among better ranks.
CREATE OR REPLACE FUNCTION jobqueue.wake(queue text, rank timestamptz) RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue', extract(epoch FROM rank) || ' ' || queue) $$;

-- ------------------------------------------------------------------------------------------------------------------- checks
--
-- The service checks HTTP requests in Python. The functions below check the arguments of SQL calls. Both have the same
-- rules and the same messages, and a test compares them.

-- The rule of each field, by name; a field has the same rule in all functions. "is" names a check of jobqueue.fits, and
-- "from", "to", "but" and "of" are its bounds. "words" ends the message "<field> must be ...". "null": the field can be
-- null, which means the same as a missing field. "excludes" names a field that must not be given together with this
-- one. (The rules are in dollar quotes, where a backslash has the same meaning in every session.)
CREATE OR REPLACE FUNCTION jobqueue.rules() RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$ SELECT $rules${
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
}$rules$::jsonb $$;

-- Parse a time in the format of RFC 3339 with a UTC offset, in the years 1 to 9999. Returns NULL for any other text.
-- The function computes the time from the digits, so the time zone and the DateStyle of the session do not matter.
CREATE OR REPLACE FUNCTION jobqueue.instant(text text) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
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
END $$;

-- Return the message for an invalid payload; NULL for a valid one. A payload can be nested up to 100 levels deep, and
-- can have up to 1 MiB as JSON without spaces. An integer must fit into 64 bits or have at most 17 significant digits.
-- The second case is for floats: jsonb stores the float 1e20 as 100000000000000000000.
CREATE OR REPLACE FUNCTION jobqueue.payload_fault(payload jsonb) RETURNS text
LANGUAGE plpgsql STABLE AS $$
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
END $$;

-- Return whether a value satisfies a rule. A payload that takes less than 500 bytes as jsonb, and whose numbers fit
-- into 64 bits, needs no closer check. Such a payload cannot be too deep, because 100 levels take 800 bytes. It cannot
-- have more than 1 MiB as JSON, because even a number of 8 bytes has at most 16,383 digits after the point.
CREATE OR REPLACE FUNCTION jobqueue.fits(value jsonb, rule jsonb) RETURNS boolean
LANGUAGE sql STABLE AS $$
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
$$;

-- Raise an error if one of the objects has an unknown field, or a field that violates its rule. The error has the same
-- message that HTTP returns. The column of the error is the field. If there are several objects, the detail of the
-- error is the position of the object. `what` names the kind of object, such as "a job".
CREATE OR REPLACE FUNCTION jobqueue.refuse_unfit(objects jsonb, what text, known text[]) RETURNS void
LANGUAGE plpgsql STABLE AS $$
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
END $$;

-- ------------------------------------------------------------------------------------------------------------------- fair groups

-- Assign turns to jobs of groups by start-time fair queueing (Goyal, Vin, Cheng 1996). The rank is the virtual time of
-- this algorithm. `jobs` is an array of objects with key, queue, group, weight and priority. Returns {key: {"turn",
-- "rank"}}, in seconds since 1970. The caller adds these values to the options of the jobs.
--
-- In virtual time, a group's next job starts when the group's last job ends, but not before the current virtual time of
-- its line (see below). The current virtual time is the turn of the job that is served now. While no job waits, it is
-- the current time. A job takes one millisecond of virtual time, divided by its weight. So groups with a backlog get
-- shares by weight, and the first job of a group that was quiet is served next. When a claim finds the line empty, all
-- groups start again from the current time. So a group that used workers which no other group wanted has no
-- disadvantage later.
--
-- Jobs with a priority have their own line, so a group's urgent job does not wait behind the group's backlog. In both
-- lines, the rank is turn - priority * aging_interval, so these ranks are comparable with the ranks of all other jobs.
-- An urgent job also takes virtual time in the common line, so priorities do not increase a group's share.
--
-- The function locks the rows of the groups until the end of the transaction. If the transaction belongs to a user, it
-- can stay open for a long time. So a call that does not get a lock within 200 ms continues from the group's last
-- visible turn.
CREATE OR REPLACE FUNCTION jobqueue.take_turns(jobs jsonb) RETURNS jsonb
LANGUAGE plpgsql
SET lock_timeout = '200ms'   -- shorter than deadlock_timeout: if two transactions wait for each other's groups, neither is aborted
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = on    -- regardless of the caller's settings
SET enable_sort = on
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

-- Return whether jobs without a group need turns too. They need turns if a job that became available at this time would
-- wait behind a backlog of groups, because its rank comes from the clock. In that case, all jobs without a group count
-- as one more group, whose name is empty, so that they do not starve.
CREATE OR REPLACE FUNCTION jobqueue.lags(queue text, since timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM jobqueue.fair_queues AS f WHERE f.queue = lags.queue AND least(f.common, f.urgent) < extract(epoch FROM since))
$$;

-- Store which turns the lines of a queue are serving, or that a claim found the lines empty (`emptied`). Does nothing
-- while another claim is storing these values.
CREATE OR REPLACE FUNCTION jobqueue.serve_lines(queue text, common numeric, urgent numeric, emptied boolean) RETURNS void
LANGUAGE sql AS $$
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

-- ------------------------------------------------------------------------------------------------------------------- keys
--
-- For each concurrency key of a queue, pending_jobs and inflight_jobs together contain at most key_max_running jobs.
-- Only jobqueue.admit adds jobs of a key to these tables. On all nodes together, only one transaction at a time runs
-- this function, and the function counts the jobs after it has got the lock. So the limit is exact, and claims never
-- see the jobs over the limit. All other functions only remove jobs of a key, and then insert a check of the key into
-- key_checks.

-- Insert a row into blocked_jobs instead of pending_jobs if its job has a concurrency key and is not admitted. A
-- trigger calls this function, so it applies to every INSERT. (The trigger does not call it for jobs without options.
-- The condition of the trigger is short, because PostgreSQL parses it again for each statement.)
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
-- Run the trigger even in a session with session_replication_role = replica. This is safe for the subscriber of a
-- publication: it receives only admitted jobs, which the trigger leaves unchanged.
ALTER TABLE jobqueue.pending_jobs ENABLE ALWAYS TRIGGER block;

-- Notify listening nodes that keys need a check. A node does not need this notification for the checks that it inserts,
-- because it also runs these checks.
CREATE OR REPLACE FUNCTION jobqueue.wake_keys() RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue_keys', '') $$;

-- Insert a check for each key of a queue that has blocked jobs, for at most max_keys keys. This is necessary after the
-- queue's limits have changed. If there are more keys, each remaining key is checked when one of its jobs ends or
-- arrives.
CREATE OR REPLACE FUNCTION jobqueue.check_keys(queue text, max_keys integer DEFAULT 100000) RETURNS void
LANGUAGE sql AS $$
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

-- Return how many more jobs of a key can be admitted under the key's rate. This is the number of tokens in the key's
-- bucket, minus the admitted jobs that have not started yet. Without that subtraction, many late starts could come in a
-- burst. If the result is less than `wanted`, the function inserts a check for the time of the next token. Only
-- jobqueue.admit calls this function, under its lock.
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

-- Move these rows of blocked_jobs to pending_jobs. Returns the best rank of each queue that got jobs.
CREATE OR REPLACE FUNCTION jobqueue.admit_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
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

-- Run up to max_checks due checks of keys: move the blocked jobs with the best ranks to pending_jobs, as far as the
-- limits of their keys allow. Returns the number of checks and the best rank of each queue that got jobs, as {"queue":
-- seconds}. Also returns the seconds until the next check is due; NULL if there is none.
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

-- Return the seconds until the next check of a key is due; NULL: there is none.
CREATE OR REPLACE FUNCTION jobqueue.next_check() RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM jobqueue.key_checks AS n WHERE n.timed IS NULL) THEN 0
                ELSE (SELECT extract(epoch FROM t.at - clock_timestamp()) FROM jobqueue.key_checks AS t
                       WHERE t.timed ORDER BY t.timed, t.at LIMIT 1) END
$$;

-- ----------------------------------------------------------------------------------------------------------------- moves and burying

-- Move rows of a table to the dead letters, whatever their columns contain. Returns the jobs, as an array of {"id",
-- "queue", "kind", "attempt", "node_id", "reason"}.
--
-- verb, words: the operation that could not move the rows, and the error message of PostgreSQL. If both are NULL, the
-- jobs have expired. Expired jobs in inflight_jobs were claimed a moment ago, and that claim does not count as an
-- attempt.
--
-- The columns keep their values, even values that other tables reject, so that a person can read and repair them, and
-- run the job again. The function changes only names that are too long for an index, times that nodes cannot read, and
-- a history of errors that is not an array.
CREATE OR REPLACE FUNCTION jobqueue.bury(source text, places tid[], verb text DEFAULT NULL, words text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
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
END $$;

-- Move rows of a table with the function `mover`, which takes the ctids of the rows. First call it for all rows. If
-- PostgreSQL rejects a value in one of the rows, call it for each half, and so on. If it fails for a single row, move
-- that row to the dead letters. The caller must have locked the rows. Returns two arrays: "moved" has the result of
-- each successful call of `mover`, and "dead" has the dead jobs, as jobqueue.bury returns them.
--
-- Errors that are not about a value in a row, such as lock timeouts, cancellations and missing privileges, abort the
-- statement as usual.
CREATE OR REPLACE FUNCTION jobqueue.move(verb text, mover text, source text, places tid[], OUT moved jsonb, OUT dead jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp   -- names in the session's search_path must not cause errors that look like faults of rows
AS $$
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
END $$;

-- Combine several results of the form {"queue": seconds} into the best rank of each queue.
CREATE OR REPLACE FUNCTION jobqueue.best_of(ranks jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF jsonb_array_length(ranks) = 1 THEN
        RETURN ranks -> 0;
    END IF;
    RETURN (SELECT coalesce(jsonb_object_agg(q.queue, q.rank), '{}')
              FROM (SELECT e.key AS queue, min(e.value::numeric) AS rank
                      FROM jsonb_array_elements(ranks) AS r CROSS JOIN jsonb_each(r) AS e GROUP BY e.key) AS q);
END $$;

-- ------------------------------------------------------------------------------------------------------------------- submit

-- Convert jobs that were submitted in SQL to the form that submit_batch and the tables use. Times are in UTC. Fields
-- without a column are in "options". submit_batch ignores these fields outside of the options.
CREATE OR REPLACE FUNCTION jobqueue.with_options(jobs jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
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
$$;

DROP FUNCTION IF EXISTS jobqueue.refuse_expired(jsonb);

-- Reject a batch if one of its jobs has already expired, because that job would never start.
-- again: do not check jobs with an id, because they may have been submitted before.
CREATE OR REPLACE FUNCTION jobqueue.refuse_expired(jobs jsonb, present timestamptz, again boolean) RETURNS void
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
CREATE OR REPLACE FUNCTION jobqueue.fingerprint(job jsonb) RETURNS text
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
CREATE OR REPLACE FUNCTION jobqueue.unique_key_of(queue text, kind text, payload jsonb, options jsonb) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN options ? 'unique_key' THEN options ->> 'unique_key'
                WHEN options -> 'unique' = 'true' THEN
                    'sha256:' || encode(sha256(convert_to(jsonb_build_array(queue, kind, payload)::text, 'UTF8')), 'hex') END
$$;

-- Return the ids and keys of new jobs, in the order of the jobs. A job without an id gets a new id.
CREATE OR REPLACE FUNCTION jobqueue.keys_of(jobs jsonb)
RETURNS TABLE (place integer, id uuid, idempotency_key text, unique_key text)
LANGUAGE sql VOLATILE AS $$
    SELECT j.place::integer, coalesce(j.id, jobqueue.uuid7()), j.options ->> 'idempotency_key',
           jobqueue.unique_key_of(coalesce(j.queue, 'default'), coalesce(j.kind, 'default'), coalesce(j.payload, '{}'), j.options)
      FROM ROWS FROM (jsonb_to_recordset(jobs) AS (id uuid, queue text, kind text, payload jsonb, options jsonb))
           WITH ORDINALITY AS j (id, queue, kind, payload, options, place)
     ORDER BY j.place
$$;

-- Give a unique key to a job and return the job, or return the unfinished job that already has the key. The function
-- locks the row of the key only to change it, so a submission that only finds an existing job holds no lock. While the
-- row is locked, no other transaction can give the key to another job, so the second check of the holder is final.
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

DROP FUNCTION IF EXISTS jobqueue.prepare(jsonb, boolean, double precision);

-- Process the options of new jobs, in the transaction that submits them. Returns the jobs in the form in which the
-- caller stores them. If a job already exists, "existing" is the id of the existing job. The caller does not store the
-- new job, and returns that id. Callers need this function only for batches with such options.
-- present: the time of the submission.
CREATE OR REPLACE FUNCTION jobqueue.prepare(jobs jsonb, again boolean, key_ttl double precision, present timestamptz) RETURNS jsonb
LANGUAGE plpgsql AS $$
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
END $$;

-- Submit a batch of jobs. Both submit_many and the service call this function. Returns the ids, and the best rank of
-- each queue that got jobs, as {"queue": seconds}.
--
-- again: the batch may already have been committed, on a connection that broke before it reported the commit. Jobs
--        that exist in any state are not changed. The caller must know that the first connection's transaction has
--        ended.
-- wake:  notify listening nodes. Not needed by a node that will run the jobs itself.
-- node, wants, defaults: also claim jobs for this node in the same transaction, like jobqueue.claim. The claim can take
--        the new jobs even if their ranks are below the floor. `claimed` is its result; NULL if no claim was requested,
--        or if it failed.
-- key_ttl: how long an idempotency key is kept, in seconds.
-- uncounted: the jobs are submitted in SQL. No node counts them for the history, so this function records them. Their
--        transaction may have begun long ago, so their times are relative to the start of this call. For jobs from a
--        node, times are relative to the start of the transaction, because a claim in the same call uses that time too.
CREATE OR REPLACE FUNCTION jobqueue.submit_batch(jobs jsonb, again boolean DEFAULT false, wake boolean DEFAULT true,
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
END $$;

-- Submit a batch. `jobs` is an array of objects with the fields of jobqueue.submit, all optional. "delay" and
-- "expires_in", in seconds, can replace "run_at" and "expires_at". If a job with the same "id" exists in any state,
-- that job is not changed. Either all jobs are submitted or none. Returns the ids in the order of the array. If a key
-- already belongs to a job, the id of that job is returned instead.
--
-- Call it in your own transaction: the jobs exist if you commit, and do not exist if you roll back.
CREATE OR REPLACE FUNCTION jobqueue.submit_many(jobs jsonb) RETURNS uuid[]
LANGUAGE plpgsql
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
        PERFORM jobqueue.refuse_unfit(jobs, 'a job', '{kind,payload,queue,priority,max_retries,run_at,delay,timeout,expires_at,expires_in,group,weight,concurrency_key,unique,unique_key,idempotency_key,traceparent,tracestate,id}');
    END IF;
    IF jobs @? '$[*] ? (exists(@.run_at) || exists(@.expires_at) || exists(@.expires_in) || exists(@.group) || exists(@.weight) ||
                        exists(@.concurrency_key) || exists(@.unique) || exists(@.unique_key) || exists(@.idempotency_key) ||
                        exists(@.traceparent) || exists(@.tracestate))' THEN
        jobs := jobqueue.with_options(jobs);
    END IF;
    RETURN (SELECT b.ids FROM jobqueue.submit_batch(jobs, again => jobs @? '$[*].id ? (@ != null)', uncounted => true) AS b);
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
LANGUAGE sql
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

-- ------------------------------------------------------------------------------------------------------------------- nodes

-- Add a node with a lease of `lease` seconds. Each queue of the node gets a row, so that the queue can be shown and
-- paused.
CREATE OR REPLACE FUNCTION jobqueue.join_node(
    node uuid, host text, pid integer, process text, version text, queues jsonb, lease double precision
) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO jobqueue.queues (name) SELECT jsonb_object_keys(join_node.queues) ON CONFLICT (name) DO NOTHING;
    INSERT INTO jobqueue.nodes (id, host, pid, process, version, queues, lease_until)
    VALUES (node, join_node.host, join_node.pid, join_node.process, join_node.version, join_node.queues,
            now() + lease * interval '1 second')
$$;

-- Repair stored times after the server's clock was set back. Otherwise, no lease would expire, and no rate would allow
-- more jobs of a key, until the clock has caught up. Leases start again, so that the death of a node is noticed in
-- time. Keys that wait for a time are checked now, and then wait for the right time. A heartbeat in the future shows
-- that the clock was set back, because each node updates its heartbeat all the time.
CREATE OR REPLACE FUNCTION jobqueue.clock_was_set_back() RETURNS void
LANGUAGE plpgsql AS $$
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

-- Renew a node's lease by the database's clock, and store the node's activity. Returns the runs of this node that must
-- be cancelled, as [[id, claims], ...], so cancellation works without notifications and without another query. Returns
-- NULL if the lease is lost for good, and other nodes have the jobs. If the lease expired while the database was
-- unavailable, and no other node has ended it, the heartbeat renews it. So running jobs survive an outage.
CREATE OR REPLACE FUNCTION jobqueue.heartbeat(node uuid, lease double precision, activity jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql
SET enable_seqscan = off
SET jit = off   -- cancel_requests has no index. Before PostgreSQL 18, a disabled plan node adds a huge cost, which would
                -- start JIT: 30 ms each time
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

-- Release these rows of inflight_jobs. Returns how many jobs are pending again.
CREATE OR REPLACE FUNCTION jobqueue.leave_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
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

-- Remove a node: release all jobs that it still holds, refund their attempts, and delete its row. Jobs with a cancel
-- request end as cancelled. Jobs that blocked the node stay, and jobqueue.recover handles them. Returns the number of
-- released jobs.
CREATE OR REPLACE FUNCTION jobqueue.leave_node(node uuid) RETURNS integer
LANGUAGE plpgsql AS $$
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

-- Release the jobs of a stuck node on its behalf, like leave_node, except for the jobs that block the node. `blamed` is
-- an array of the runs of these jobs: {id, claims, error, delay}. Only jobqueue.recover records their failure, with
-- this error, because its caller also calls the hooks. Runs that have ended are not changed. Returns the number of
-- released jobs; NULL: the lease is lost already.
CREATE OR REPLACE FUNCTION jobqueue.surrender(node uuid, blamed jsonb) RETURNS integer
LANGUAGE plpgsql AS $$
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

-- End the lease of a node whose process is known to have died, so that other nodes recover its jobs at once.
CREATE OR REPLACE FUNCTION jobqueue.lose_node(node uuid) RETURNS void
LANGUAGE sql AS $$
    WITH lost AS (
        DELETE FROM jobqueue.nodes WHERE id = node RETURNING id
    )
    SELECT pg_notify('jobqueue_lost', id::text) FROM lost
$$;

-- Recover these rows of inflight_jobs. Returns an array of objects that have the columns of jobqueue.recover.
CREATE OR REPLACE FUNCTION jobqueue.recover_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
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

DROP FUNCTION IF EXISTS jobqueue.recover(integer, uuid);   -- an earlier version returned other columns

-- Recover the jobs of lost nodes. A job goes back to pending_jobs, with three exceptions. If its attempts are used up,
-- it goes to dead_jobs. (The claim has counted the attempt, so a job that kills its process cannot do so forever.) If
-- its cancellation was requested, it goes to finished_jobs. If it blocked its node, it goes to scheduled_jobs, see
-- surrender.
--
-- The function first deletes the rows of nodes whose leases have expired. From then on, the heartbeats of these nodes
-- fail. Then it recovers the jobs of all nodes without a row. If a claim of such a node commits in between, the next
-- call recovers the jobs of that claim. Rows are locked in id order with SKIP LOCKED, so a completion that is being
-- written takes precedence.
--
-- judge: the node on whose behalf expired leases are taken; NULL takes none. The judge must have a valid lease. If its
--        lease has expired too, the database or the judge was unavailable, and the other nodes may still be running.
CREATE OR REPLACE FUNCTION jobqueue.recover(max_jobs integer DEFAULT 1000, judge uuid DEFAULT NULL)
RETURNS TABLE (id uuid, queue text, kind text, attempt integer, node_id uuid, outcome text, reason text)
LANGUAGE plpgsql AS $$
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

-- ------------------------------------------------------------------------------------------------------------------- claim

-- Return for how many seconds a job with these options can still be started; NULL: without a time limit.
CREATE OR REPLACE FUNCTION jobqueue.seconds_left(options jsonb) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT (options -> 'expires_at')::double precision - date_part('epoch', now())
$$;

-- Return the options of a job in the form in which a claim returns them.
CREATE OR REPLACE FUNCTION jobqueue.timed(options jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN options ? 'expires_at' THEN options || jsonb_build_object('expires_in', jobqueue.seconds_left(options))
                ELSE options END
$$;

DROP FUNCTION IF EXISTS jobqueue.bury_expired(uuid[]);   -- jobqueue.bury replaces it

-- Notify listening nodes that jobs of a queue with max_running have ended. A node whose last claim got fewer jobs
-- because of the limit can claim again.
CREATE OR REPLACE FUNCTION jobqueue.freed(queue text) RETURNS void
LANGUAGE sql AS $$
    SELECT pg_notify('jobqueue_freed', q.name) FROM jobqueue.queues AS q WHERE q.name = freed.queue AND q.max_running IS NOT NULL
$$;

-- Return how many jobs a claim can take from a queue with a limit, and after how many seconds it can take more (NULL:
-- when some jobs end). The function locks the queue's limits until the end of the transaction, so that the count stays
-- correct. It waits for this lock for at most 100 ms, because a user can keep a transaction open that configures the
-- queue.
CREATE OR REPLACE FUNCTION jobqueue.allowance(queue text, wanted integer, OUT jobs integer, OUT again double precision)
LANGUAGE plpgsql
SET lock_timeout = '100ms'
SET enable_seqscan = on   -- needed while the index cannot count all jobs yet. Claims turn it off. Before PostgreSQL 18, a
                          -- disabled plan node adds a huge cost, which would start JIT: 100 ms each time
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

-- Return how many tokens are in a bucket now. A clock that was set back neither adds nor removes tokens.
CREATE OR REPLACE FUNCTION jobqueue.refilled(tokens double precision, refilled_at timestamptz, rate double precision, burst double precision)
RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT least(burst, coalesce(tokens + rate * greatest(0, extract(epoch FROM clock_timestamp() - refilled_at)::double precision), burst))
$$;

-- Deduct the claimed jobs from the queue's bucket, under the lock of jobqueue.allowance.
CREATE OR REPLACE FUNCTION jobqueue.spend(queue text, taken integer) RETURNS void
LANGUAGE sql AS $$
    UPDATE jobqueue.queue_limits AS l
       SET tokens = jobqueue.refilled(l.tokens, l.refilled_at, q.rate, coalesce(q.burst, greatest(1, q.rate))) - taken,
           refilled_at = clock_timestamp()
      FROM jobqueue.queues AS q
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
-- allow more when jobs of the queue end. "dead" contains the jobs whose rows cannot be claimed, as jobqueue.bury
-- returns them.
--
-- The settings fix the query plan: the table goes from empty to a million rows and back, so its statistics are never
-- right. The inner SELECT is in ARRAY(), so that PostgreSQL evaluates it only once. If a plan evaluated it again, the
-- claim would take more jobs than the limit allows.
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

-- ------------------------------------------------------------------------------------------------------------------- finish

-- Append an entry to a job's error history, which keeps the last ten entries. The function is STABLE because
-- jsonb_build_array is STABLE. If the function were IMMUTABLE, PostgreSQL would not inline it, and would call it for
-- each row.
CREATE OR REPLACE FUNCTION jobqueue.with_error(errors jsonb, error jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN error IS NULL THEN errors
                WHEN jsonb_typeof(errors) <> 'array' THEN jsonb_build_array(error)
                WHEN jsonb_array_length(errors) >= 10 THEN (errors - 0) || jsonb_build_array(error)
                ELSE errors || jsonb_build_array(error) END
$$;

-- Write the outcomes of a batch of runs in one transaction: move the row of each job to the table of its new state.
-- `outcomes` is an array of objects:
--
--     id, claims    identify the run. If no row of this node matches both, the outcome is stale and is dropped
--     outcome       succeeded -> finished (result)    dead -> dead (reason, error)
--                   retry -> scheduled in delay seconds (error), or dead after the last attempt
--                   snoozed -> scheduled in delay seconds, with the attempt refunded
--                   released -> pending, with the attempt refunded
--                   cancelled -> finished. Jobs with a cancel request also end as cancelled, not as scheduled or pending
--     saved         notes of the run that are not written yet
--
-- keep: false deletes jobs that succeeded instead of keeping them in finished_jobs.
--
-- Returns the positions (from 1) of the stale outcomes.
CREATE OR REPLACE FUNCTION jobqueue.finish(node uuid, outcomes jsonb, keep boolean DEFAULT true) RETURNS bigint[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET jit = off   -- for the same reason as in jobqueue.heartbeat; this matters when an attempt has failed
SET enable_seqscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off   -- a hash join would read the whole index of inflight_jobs, with all dead rows that an old transaction keeps
AS $$
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
END $$;

-- Write the notes (progress and checkpoint) of running jobs of this node: `notes` is an array of {id, claims, saved}.
-- Returns the ids of the jobs whose notes were written. The function skips runs that have ended. It also skips runs
-- whose row is locked, because most likely another call is writing their outcome, which includes the notes. So it waits
-- for no lock, and cannot deadlock with finish.
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

-- Return the time at which the next waiting job expires, in seconds since 1970; NULL: no waiting job expires.
CREATE OR REPLACE FUNCTION jobqueue.next_expiry() RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT least((SELECT (p.options -> 'expires_at')::double precision FROM jobqueue.pending_jobs AS p WHERE p.options ? 'expires_at'
                   ORDER BY (p.options -> 'expires_at')::double precision LIMIT 1),
                 (SELECT (b.options -> 'expires_at')::double precision FROM jobqueue.blocked_jobs AS b WHERE b.options ? 'expires_at'
                   ORDER BY (b.options -> 'expires_at')::double precision LIMIT 1),
                 (SELECT (s.options -> 'expires_at')::double precision FROM jobqueue.scheduled_jobs AS s WHERE s.options ? 'expires_at'
                   ORDER BY (s.options -> 'expires_at')::double precision LIMIT 1))
$$;

-- Move expired waiting jobs to the dead letters, up to max_jobs of each state. This is for jobs that no claim takes,
-- because their queue is paused or has no workers, or because they are due later. Returns the jobs as jobqueue.bury
-- does.
CREATE OR REPLACE FUNCTION jobqueue.expire(max_jobs integer DEFAULT 1000) RETURNS jsonb
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

-- Move these rows of scheduled_jobs to pending_jobs. Returns the best rank of each queue that got jobs.
CREATE OR REPLACE FUNCTION jobqueue.promote_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
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

-- Move up to max_jobs due jobs to pending_jobs, and expire jobs. Returns one row with:
--
--     promoted      the number of due jobs that were moved or died
--     best          the best rank of each queue that got jobs, as {"queue": seconds}
--     next_due      the seconds until the next job is due or expires; NULL: there is none
--     expired       the jobs that died because they have expired or cannot be moved, as jobqueue.bury returns them
--     next_check    the seconds until the next check of a key is due; the result contains it because every node calls this function anyway
CREATE OR REPLACE FUNCTION jobqueue.promote(max_jobs integer DEFAULT 1000)
RETURNS TABLE (promoted integer, best jsonb, next_due double precision, expired jsonb, next_check double precision)
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

-- ----------------------------------------------------------------------------------------------------------------- cancel and change

-- Cancel a waiting job. Returns false if the job is not waiting. keep: false deletes the job instead of keeping it in
-- cancelled_jobs. It searches the tables in the order in which jobs move, so it finds a job that moves during the call.
CREATE OR REPLACE FUNCTION jobqueue.cancel_waiting(job uuid, keep boolean) RETURNS boolean
LANGUAGE plpgsql AS $$
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

-- Cancel a job. A waiting job ends when your transaction commits. A running job is stopped about a second later, and
-- never runs again. Its state becomes 'cancelled', unless it succeeds or dies before that. Returns true if this call ends a
-- waiting job, or requests the end of a running job. Returns false if the job does not exist or has ended already.
-- Repeated calls change nothing.
--
-- For a running job, the function only stores a request. If it marked the job's row, it would lock the row, and the
-- job's node could not write outcomes until your transaction ends.
CREATE OR REPLACE FUNCTION jobqueue.cancel(job uuid, keep boolean DEFAULT true) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- Like jobqueue.cancel, but for a transaction that commits at once: it marks a running job and notifies its node. From
-- then on, every function that would make the job wait again ends the job instead.
CREATE OR REPLACE FUNCTION jobqueue.cancel_now(job uuid, keep boolean DEFAULT true) RETURNS boolean
LANGUAGE plpgsql AS $$
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

-- Process the requests of jobqueue.cancel. The function waits for no lock. If a job's row is locked, or if the job is
-- moving, the next call processes its request.
CREATE OR REPLACE FUNCTION jobqueue.cancel_requested() RETURNS void
LANGUAGE plpgsql
SET jit = off   -- for the same reason as in jobqueue.heartbeat
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

-- Return the options of a job that goes to the end of its line again, with a new turn.
CREATE OR REPLACE FUNCTION jobqueue.with_new_turn(options jsonb, queue text, priority integer) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT CASE WHEN options ? 'group' OR jobqueue.lags(queue, clock_timestamp())
                THEN coalesce(options, '{}') || (jobqueue.take_turns(jsonb_build_array(
                     jsonb_build_object('key', 'this', 'queue', queue, 'group', coalesce(options ->> 'group', ''),
                                        'weight', options -> 'weight', 'priority', priority))) -> 'this')
                ELSE options END
$$;

-- Change the priority of a waiting job, or its run_at, or both; NULL leaves a value unchanged. Returns false if the job
-- does not wait: it runs, a node has claimed it in advance, it has ended, or it does not exist.
--
-- A new priority gives the job a new rank, which includes the time that it has waited so far. A job of a group gets a
-- new turn. If run_at is in the future, the job becomes scheduled, as if it had been submitted with this run_at, and
-- its waiting time counts from run_at. If run_at is in the past, the job becomes available. Its waiting time then
-- counts from now, or from an earlier time at which it became available, as for a retry.
--
-- While your transaction is open, no node claims the job.
CREATE OR REPLACE FUNCTION jobqueue.change(job uuid, priority integer DEFAULT NULL, run_at timestamptz DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- ------------------------------------------------------------------------------------------------------------------- filters and lists

DROP FUNCTION IF EXISTS jobqueue.conditions(jsonb, text, text[]);

-- Return the conditions of a filter: each name, and its value as text. A condition that is null counts as missing.
-- Rejects unknown conditions, and an empty filter, which could select all jobs by mistake.
CREATE OR REPLACE FUNCTION jobqueue.conditions(filter jsonb, known text[]) RETURNS TABLE (name text, text text)
LANGUAGE plpgsql STABLE AS $$
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

-- Return the states that a filter selects, or all known states if it has no condition on the state.
CREATE OR REPLACE FUNCTION jobqueue.states_of(filter jsonb, known text[]) RETURNS text[]
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
CREATE OR REPLACE FUNCTION jobqueue.ids_like(text text) RETURNS uuid[]
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
-- whole id or the start of a version 7 id (see jobqueue.ids_like), it selects the jobs with these ids instead.
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
CREATE OR REPLACE FUNCTION jobqueue.walk(filter jsonb, states text[], before uuid, max_jobs integer, max_rows integer) RETURNS text
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
END $$;

-- List jobs that match a filter (see jobqueue.walk), latest id first, up to max_jobs, without payloads, results and
-- errors. Returns {"jobs": [...], "next": id}. The id is the "before" of the next page; null means that this is the
-- last page. The function reads at most max_rows jobs, so a page can be short or empty without being the last. Jobs
-- that are submitted in the meantime are not on later pages.
CREATE OR REPLACE FUNCTION jobqueue.list_jobs(filter jsonb DEFAULT '{"all": true}', max_jobs integer DEFAULT 100, before uuid DEFAULT NULL,
                                              max_rows integer DEFAULT 10000) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off   -- before PostgreSQL 18, a disabled plan node adds a huge cost, which would start JIT
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

-- Cancel these jobs if they are in one of these states. Skip waiting jobs whose rows are locked. Returns the number of
-- cancelled jobs, including the running jobs for which it stores a request.
CREATE OR REPLACE FUNCTION jobqueue.cancel_these(jobs uuid[], states text[], keep boolean) RETURNS integer
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

-- Cancel up to max_jobs jobs that match a filter, with one query of jobqueue.walk. Returns the number of jobs, and the
-- "before" of the next query; NULL: no jobs are left. New jobs have higher ids, so repeated calls come to an end.
-- dry_run: count the jobs, and change nothing.
CREATE OR REPLACE FUNCTION jobqueue.cancel_walk(filter jsonb, max_jobs integer, before uuid, keep boolean, dry_run boolean)
RETURNS TABLE (jobs integer, rest uuid)
LANGUAGE plpgsql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off
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

-- Cancel the jobs that match a filter (see jobqueue.walk), up to max_jobs, latest id first, except jobs that have
-- ended. Repeat the call until it returns 0. Returns the number of cancelled jobs. Waiting jobs have ended when your
-- transaction commits. Running jobs end about a second later, as with jobqueue.cancel.
-- max_jobs: NULL means no limit.
-- dry_run: only return how many it would cancel.
CREATE OR REPLACE FUNCTION jobqueue.cancel_jobs(filter jsonb, max_jobs integer DEFAULT 1000, keep boolean DEFAULT true,
                                                dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- ------------------------------------------------------------------------------------------------------------------- dead letters

-- Make these rows of dead_jobs pending. Returns the number of rows.
CREATE OR REPLACE FUNCTION jobqueue.redrive_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
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

-- Redrive dead jobs: make them pending again, with all their attempts, a new rank, and without their old expiry time. A
-- job stays dead if another job has its unique key, or is about to get that key. A job also stays dead if its row
-- cannot be moved; then its reason explains why. Returns the number of redriven jobs.
CREATE OR REPLACE FUNCTION jobqueue.redrive(jobs uuid[]) RETURNS integer
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

-- Redrive one dead job. Returns false if it is not dead. Raises JQ409 if another unfinished job has its unique key, or
-- if an open transaction is about to give the key to another job.
CREATE OR REPLACE FUNCTION jobqueue.retry(job uuid) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '100ms'
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

-- Delete a dead job permanently. Returns false if it is not dead.
CREATE OR REPLACE FUNCTION jobqueue.discard(job uuid) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (DELETE FROM jobqueue.dead_jobs WHERE id = job RETURNING id) SELECT EXISTS (SELECT FROM gone)
$$;

-- Convert a filter of dead jobs to an SQL condition on the rows of `dead_jobs AS d`. The filter is an object with any
-- of "queue", "kind", "group", "cause" (as jobqueue.dead_causes returns it), "reason" (a part of it), "died_before" and
-- "died_after" (times), or {"all": true}. All conditions must hold.
CREATE OR REPLACE FUNCTION jobqueue.dead_condition(filter jsonb) RETURNS text
LANGUAGE sql STABLE
SET DateStyle = 'ISO, YMD'   -- prints times with a numeric UTC offset; a name such as IST would be ambiguous
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

-- Lock and return the dead jobs that a filter selects, oldest first, up to max_jobs, without rows that other
-- transactions have locked.
CREATE OR REPLACE FUNCTION jobqueue.dead_matching(filter jsonb, max_jobs integer, condition text DEFAULT 'true') RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    found uuid[];
BEGIN
    EXECUTE format('SELECT array_agg(m.id) FROM (SELECT d.id FROM jobqueue.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at, d.id LIMIT %L'
                   ' FOR UPDATE SKIP LOCKED) AS m', jobqueue.dead_condition(filter), condition, max_jobs) INTO found;
    RETURN coalesce(found, '{}');
END $$;

-- Redrive dead jobs that match a filter, oldest first, up to max_jobs in one transaction. Repeat the call until it
-- returns 0. If the jobs can die again, use "died_before", so that the calls come to an end. Returns the number of
-- redriven jobs.
-- max_jobs: NULL means no limit.
-- dry_run: only return how many it would redrive.
CREATE OR REPLACE FUNCTION jobqueue.retry_dead(filter jsonb, max_jobs integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- Delete dead jobs that match a filter, oldest first, up to max_jobs in one transaction. Repeat the call until it
-- returns 0. Returns the number of deleted jobs.
-- max_jobs: NULL means no limit.
-- dry_run: only return how many it would delete.
CREATE OR REPLACE FUNCTION jobqueue.discard_dead(filter jsonb, max_jobs integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- List dead jobs that match a filter, latest first, up to max_jobs, with the text of their last error but without
-- payloads.
-- before, before_id: the died_at and id of the last job on the previous page.
CREATE OR REPLACE FUNCTION jobqueue.list_dead(filter jsonb, max_jobs integer DEFAULT 100, before timestamptz DEFAULT NULL,
                                              before_id uuid DEFAULT NULL) RETURNS SETOF jsonb
LANGUAGE plpgsql STABLE
SET DateStyle = 'ISO, YMD'
SET search_path = pg_catalog, pg_temp
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

-- Group the dead jobs that match a filter by queue, kind and cause, and list up to max_causes groups, largest first.
-- Returns {"causes": [...], "more": true if there are more groups}. Each cause is {"queue", "kind", "cause", "jobs",
-- "first_died_at", "last_died_at", "example": id of the latest job}.
--
-- If the filter has only conditions on queue, kind, cause and times, the query reads only the index dead_jobs_cause,
-- and no rows. It counts along the index, and looks up the first and the last job only for the groups that it returns.
CREATE OR REPLACE FUNCTION jobqueue.dead_causes(filter jsonb DEFAULT '{"all": true}', max_causes integer DEFAULT 100) RETURNS jsonb
LANGUAGE plpgsql STABLE
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
END $$;

-- ------------------------------------------------------------------------------------------------------------------- queues

-- Pause a queue on all nodes, or resume it. Running jobs continue; nodes release the jobs that they have claimed but
-- not started.
CREATE OR REPLACE FUNCTION jobqueue.pause(queue text, paused boolean DEFAULT true) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('queue', pause.queue, 'paused', pause.paused)), 'a queue', '{queue,paused}');
    INSERT INTO jobqueue.queues (name, paused) VALUES (pause.queue, pause.paused)
        ON CONFLICT (name) DO UPDATE SET paused = excluded.paused;
    SELECT CASE WHEN pause.paused THEN pg_notify('jobqueue_paused', pause.queue) ELSE jobqueue.wake(pause.queue, '-infinity') END
$$;

-- Configure a queue on all nodes: its aging interval, for new jobs, and its limits. NULL leaves a setting unchanged.
-- `clear` names settings to reset to their defaults:
--     SELECT jobqueue.configure('mail', rate => 5, clear => '{max_running}');
CREATE OR REPLACE FUNCTION jobqueue.configure(
    queue           text,
    aging_interval  interval         DEFAULT NULL,   -- the waiting time that is worth one point of priority
    max_running     integer          DEFAULT NULL,   -- jobs that run at the same time
    rate            double precision DEFAULT NULL,   -- starts per second
    burst           integer          DEFAULT NULL,   -- starts that are allowed at once after a time without starts
    key_max_running integer          DEFAULT NULL,   -- the same three limits, for each concurrency key
    key_rate        double precision DEFAULT NULL,
    key_burst       integer          DEFAULT NULL,
    clear           text[]           DEFAULT '{}'
) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- ------------------------------------------------------------------------------------------------------------------- schedules

-- Notify all nodes that schedules have changed.
CREATE OR REPLACE FUNCTION jobqueue.tell_of_schedules() RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue_schedules', '') $$;

-- Return the job that a schedule submits for a tick, in the form that submit_batch takes. tick: NULL for a job in
-- addition to the ticks.
CREATE OR REPLACE FUNCTION jobqueue.job_of(schedule jobqueue.schedules, tick timestamptz) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'kind', schedule.kind, 'payload', schedule.payload, 'queue', schedule.queue, 'priority', schedule.priority,
        'max_retries', schedule.max_retries, 'timeout', schedule.timeout,
        'options', jsonb_strip_nulls(jsonb_build_object(
            'schedule', schedule.name, 'scheduled_for', extract(epoch FROM tick)::double precision)))
$$;

-- Create or change a schedule:
--     SELECT jobqueue.schedule('nightly', '0 3 * * *', 'Europe/Berlin', kind => 'report');
-- After the commit, a node computes the next tick. If the expression and the time zone are unchanged, the schedule
-- keeps its next tick. The column "error" reports an expression or time zone that cannot be parsed. Returns whether the
-- schedule is new.
CREATE OR REPLACE FUNCTION jobqueue.schedule(
    name        text,
    cron        text,                              -- five fields, or six fields that begin with the seconds
    timezone    text             DEFAULT 'UTC',    -- an IANA name
    missed      text             DEFAULT 'one',    -- or 'skip', or 'all'
    kind        text             DEFAULT NULL,     -- default: the name of the schedule
    payload     jsonb            DEFAULT '{}',
    queue       text             DEFAULT 'default',
    priority    integer          DEFAULT 0,
    max_retries integer          DEFAULT NULL,
    timeout     double precision DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- Delete a schedule. Jobs that it has submitted stay. Returns false if no schedule has that name.
CREATE OR REPLACE FUNCTION jobqueue.unschedule(name text) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (DELETE FROM jobqueue.schedules AS s WHERE s.name = unschedule.name RETURNING s.name) SELECT EXISTS (SELECT FROM gone)
$$;

-- Pause a schedule, or resume it. A resumed schedule continues with the first tick after now, without the ticks of the
-- pause. Returns false if no schedule has that name.
CREATE OR REPLACE FUNCTION jobqueue.pause_schedule(name text, paused boolean DEFAULT true) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
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

-- Submit a schedule's job now, in addition to its ticks, even if the schedule is paused. Returns the job's id; NULL if
-- no schedule has that name.
CREATE OR REPLACE FUNCTION jobqueue.trigger_schedule(name text) RETURNS uuid
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1
AS $$
    SELECT b.ids[1]
      FROM jobqueue.schedules AS s
     CROSS JOIN LATERAL jobqueue.submit_batch(jsonb_build_array(jobqueue.job_of(s, NULL)), uncounted => true) AS b
     WHERE s.name = trigger_schedule.name
$$;

-- Make the stored schedules of one source equal to its declared schedules: create new ones, update changed ones, and
-- delete the others. If a schedule of another source, or one that was created over HTTP or in SQL, has a declared name,
-- change nothing. Returns such names and their owners.
CREATE OR REPLACE FUNCTION jobqueue.reconcile_schedules(source text, schedules jsonb) RETURNS TABLE (name text, owner text)
LANGUAGE plpgsql AS $$
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

-- Return up to max_schedules schedules that have due ticks, or whose first tick is not computed yet, as an array of
-- [name, cron, timezone, missed, next_at]. Also return the current time, from which nodes compute ticks, and the
-- seconds until the next tick of the other schedules (NULL: none).
CREATE OR REPLACE FUNCTION jobqueue.due_schedules(max_schedules integer DEFAULT 500)
RETURNS TABLE (at double precision, due jsonb, next_in double precision)
LANGUAGE sql STABLE AS $$
    SELECT extract(epoch FROM now())::double precision,
           (SELECT coalesce(jsonb_agg(jsonb_build_array(d.name, d.cron, d.timezone, d.missed,
                                                        extract(epoch FROM d.next_at)::double precision)), '[]')
              FROM (SELECT s.* FROM jobqueue.schedules AS s
                     WHERE NOT s.paused AND s.error IS NULL AND (s.next_at IS NULL OR s.next_at <= now())
                     ORDER BY s.next_at NULLS FIRST, s.name LIMIT max_schedules) AS d),
           (SELECT extract(epoch FROM min(s.next_at) - clock_timestamp())::double precision FROM jobqueue.schedules AS s
             WHERE NOT s.paused AND s.error IS NULL AND s.next_at > now())
$$;

-- Move schedules to their next ticks, and submit the jobs of the due ticks in the same transaction. `moves` is an array
-- of objects:
--
--     name, cron, timezone, missed, expected    the schedule as the node read it; a schedule that has changed or moved since is skipped
--     ticks      the times that get a job, in seconds
--     next_at    the first tick after these ticks, in seconds
--     error      why the schedule has no next tick; shown until the schedule is changed
--
-- It does not wait for moves by other nodes, nor for uncommitted changes. Returns the names of the moved schedules and
-- the best rank of each queue that got jobs. Also returns the seconds until the next tick of any schedule, except for
-- the skipped ones, and the numbers of submitted jobs, as [[queue, kind, jobs], ...].
CREATE OR REPLACE FUNCTION jobqueue.move_schedules(moves jsonb)
RETURNS TABLE (moved text[], best jsonb, next_in double precision, submitted jsonb)
LANGUAGE plpgsql AS $$
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

-- ------------------------------------------------------------------------------------------------------------------- history

-- Add two histograms. If one has fewer buckets, the missing buckets at its end count as 0.
CREATE OR REPLACE FUNCTION jobqueue.merged(one integer[], other integer[]) RETURNS integer[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(array_agg(coalesce(b.one, 0) + coalesce(b.other, 0) ORDER BY b.place), '{}')
      FROM unnest(one, other) WITH ORDINALITY AS b (one, other, place)
$$;

-- Return the start of the slot that contains a time.
CREATE OR REPLACE FUNCTION jobqueue.slot(step integer, moment timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE AS $$ SELECT date_bin(step * interval '1 second', moment, to_timestamp(0)) $$;

-- Count the jobs in each waiting state, the running jobs, and the dead jobs. Returns {"state": number of jobs}.
CREATE OR REPLACE FUNCTION jobqueue.depth() RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('pending', (SELECT count(*) FROM jobqueue.pending_jobs), 'scheduled', (SELECT count(*) FROM jobqueue.scheduled_jobs),
                              'blocked', (SELECT count(*) FROM jobqueue.blocked_jobs), 'inflight', (SELECT count(*) FROM jobqueue.inflight_jobs),
                              'dead', (SELECT count(*) FROM jobqueue.dead_jobs))
$$;

-- Add a node's counts since its last call to the slots that contain the latest full ten seconds, by this server's
-- clock. The first call for a slot also adds the jobs that were submitted in SQL, and deletes old slots. The result of
-- that call can also ask the node to count the depths in its next call.
--
-- sample: count the depths now, before any row is locked. The function requests this rarely, so that counting takes at
-- most 1 % of the time.
--
-- Returns the seconds until the current slot ends, when the node should call again, and whether that call should set
-- `sample`.
CREATE OR REPLACE FUNCTION jobqueue.record(submitted bigint, completed bigint, failed bigint, dead bigint, waits integer[], runs integer[],
                                           sample boolean DEFAULT false)
RETURNS TABLE (next_in double precision, next_sample boolean)
LANGUAGE plpgsql AS $$
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

-- ------------------------------------------------------------------------------------------------------------------- maintenance

-- Return the partitions of succeeded_jobs or cancelled_jobs, without the default partition, and their bounds.
CREATE OR REPLACE FUNCTION jobqueue.partitions(parent text) RETURNS TABLE (name text, since timestamptz, until timestamptz)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'   -- PostgreSQL prints the bounds in the DateStyle of the session
AS $$
    SELECT c.relname::text, CASE WHEN b.bounds[1] = 'MINVALUE' THEN '-infinity' ELSE trim('''' FROM b.bounds[1])::timestamptz END,
           CASE WHEN b.bounds[2] = 'MAXVALUE' THEN 'infinity' ELSE trim('''' FROM b.bounds[2])::timestamptz END
      FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
     CROSS JOIN LATERAL (SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') AS bounds) AS b
     WHERE i.inhparent = ('jobqueue.' || quote_ident(parent))::regclass AND b.bounds IS NOT NULL
$$;

DROP FUNCTION IF EXISTS jobqueue.maintain(double precision, double precision);   -- an earlier version returned a number

-- Create the partitions of finished jobs for today and the next two days, and drop partitions whose end is longer ago
-- than the retention period (keep_succeeded, keep_cancelled: seconds). If several nodes call this function at the same
-- time, one does the work, and the others return at once. If the function cannot lock a partition within 100 ms,
-- because an open transaction reads it, the next call tries again. The function must not wait longer, because
-- completions would wait behind its lock request.
--
-- Returns the number of dropped partitions, and a sentence for each failure. For example, a step fails if the role does
-- not own the tables, or if a view reads a partition. The other steps still run. Jobs of a day without a partition are
-- in the default partition, and jobqueue.prune deletes the jobs of partitions that cannot be dropped.
CREATE OR REPLACE FUNCTION jobqueue.maintain(keep_succeeded double precision, keep_cancelled double precision,
                                             OUT dropped integer, OUT failed text[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'
SET lock_timeout = '100ms'
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

-- Delete old jobs that retention cannot drop with a partition, up to max_jobs rows of each table. These are dead jobs
-- (oldest first), jobs that finished on a day without a partition, and jobs in partitions that jobqueue.maintain has
-- not dropped. The keep_* parameters are in seconds. Returns the number of rows.
--
-- A failure for one table does not affect the others. If a call deletes no rows and a table has failed, the call raises
-- the error of that table.
CREATE OR REPLACE FUNCTION jobqueue.prune(keep_succeeded double precision, keep_cancelled double precision, keep_dead double precision,
                                          max_jobs integer DEFAULT 1000) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'
AS $$
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
END $$;

-- Delete up to max_keys keys that are no longer needed, oldest first; keys of unfinished jobs are checked again a day
-- later. Returns the number of keys checked. Locked keys are skipped.
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

-- Create the first partitions, so that a database prepared with psql alone is complete. Nodes decide how long jobs are
-- kept, so this call drops only partitions that are over thirty years old.
SELECT jobqueue.maintain(1e9, 1e9);

COMMIT;
