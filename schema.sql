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
-- What waits too long goes from wherever it waits to dead_jobs: expire, claim.
-- A job with a concurrency key takes a way around: whatever would put it into pending_jobs puts it into blocked_jobs, and from there it
-- is admitted to pending_jobs when its key has room.
--
-- Every arrow is one function below and one transaction. Functions are called with batches, as one JSON document in and one out:
-- that is what makes them fast (ARCHITECTURE.md has the figures).
--
-- An id is one job. Where somebody's SQL made two rows of one, the row that arrives in a table gives way to the one that is there
-- (ON CONFLICT DO NOTHING): an error would end the batch, and every node in turn that tries it.

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

SET LOCAL client_min_messages = warning;
-- Whatever the session has: names and functions are PostgreSQL's own, and the checks of function bodies see them as they are meant.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
SET LOCAL plpgsql.extra_errors = '';

DO $$
BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'jobqueue needs a database with the encoding UTF8, and "%" has %: create another with CREATE DATABASE name ENCODING ''UTF8'' TEMPLATE template0',
            current_database(), current_setting('server_encoding');
    END IF;
END $$;

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
    fair           boolean     NOT NULL DEFAULT false,   -- jobs of groups have been claimed from it, see jobqueue.serve_lines
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
    lease_until  timestamptz NOT NULL,
    activity     jsonb                   -- {"queue": [jobs that succeeded, attempts that failed]} a second over its last minute; NULL: none
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
CREATE INDEX IF NOT EXISTS pending_jobs_turn ON jobqueue.pending_jobs (queue, (priority > 0), ((options -> 'turn')::numeric))
 WHERE options ? 'turn';
CREATE INDEX IF NOT EXISTS pending_jobs_group ON jobqueue.pending_jobs (queue, (options ->> 'group'), ((options -> 'turn')::numeric))
 WHERE options ? 'turn';
-- Of jobs that have a time to expire alone, and a gate for what is given as one. See jobqueue.expire.
CREATE INDEX IF NOT EXISTS pending_jobs_expire ON jobqueue.pending_jobs (((options -> 'expires_at')::double precision))
 WHERE options ? 'expires_at';
CREATE INDEX IF NOT EXISTS pending_jobs_key ON jobqueue.pending_jobs (queue, (options ->> 'concurrency_key')) WHERE admitted;

-- Jobs whose key may have no room. The columns are those of pending_jobs, and stay so.
CREATE TABLE IF NOT EXISTS jobqueue.blocked_jobs (
    LIKE jobqueue.pending_jobs INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (id),
    CONSTRAINT concurrency_key_length CHECK (length(options ->> 'concurrency_key') BETWEEN 1 AND 200)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX IF NOT EXISTS blocked_jobs_key ON jobqueue.blocked_jobs (queue, (options ->> 'concurrency_key'), rank);
CREATE INDEX IF NOT EXISTS blocked_jobs_expire ON jobqueue.blocked_jobs (((options -> 'expires_at')::double precision))
 WHERE options ? 'expires_at';

-- The keys to look at: one row for whatever may have made room for a key, or given it a job. Rows are only ever
-- inserted, but for jobqueue.admit, which takes them: nobody waits for anybody here.
CREATE TABLE IF NOT EXISTS jobqueue.key_checks (
    queue text        NOT NULL,
    key   text        NOT NULL,
    at    timestamptz NOT NULL DEFAULT now(),
    timed boolean              -- not before that time; NULL: at once, whatever the clock says
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

ALTER TABLE jobqueue.key_checks ADD COLUMN IF NOT EXISTS timed boolean;
DROP INDEX IF EXISTS jobqueue.key_checks_due;   -- an earlier version knew no other checks than timed ones
CREATE INDEX IF NOT EXISTS key_checks_next ON jobqueue.key_checks (timed, at);

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
CREATE INDEX IF NOT EXISTS scheduled_jobs_expire ON jobqueue.scheduled_jobs (((options -> 'expires_at')::double precision))
 WHERE options ? 'expires_at';

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
    cancel_requested_at timestamptz,     -- somebody asked for its end, see jobqueue.cancel: it does not go back from here
    limited         boolean,             -- it has a key, or was claimed under the queue's max_running; NULL: neither
    blame           jsonb                -- {"error", "delay"} of a job that held up its node, see jobqueue.surrender; NULL: it did not
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
ALTER TABLE jobqueue.inflight_jobs ADD COLUMN IF NOT EXISTS blame jsonb;

-- For each heartbeat: what of its own a node is to cancel. Almost always empty.
CREATE INDEX IF NOT EXISTS inflight_jobs_cancel ON jobqueue.inflight_jobs (node_id) WHERE cancel_requested_at IS NOT NULL;

CREATE INDEX IF NOT EXISTS inflight_jobs_limited ON jobqueue.inflight_jobs (queue, (options ->> 'concurrency_key')) WHERE limited;

-- Running jobs that somebody wants cancelled, until the next heartbeat of some node marks them. Rows are only ever inserted, but for that.
-- Whatever puts a running job back reads the mark and these rows, so it neither waits for the heartbeat nor for a lock that one holds.
CREATE TABLE IF NOT EXISTS jobqueue.cancel_requests (
    job_id uuid NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- By how they ended, since they are kept for different times, and by day, so that retention drops a partition and never deletes a
-- million rows.
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

-- Catch a finish on a day whose partition nobody made yet: bookkeeping may be late, a completion may not fail.
CREATE TABLE IF NOT EXISTS jobqueue.succeeded_jobs_default PARTITION OF jobqueue.succeeded_jobs DEFAULT;
CREATE TABLE IF NOT EXISTS jobqueue.cancelled_jobs_default PARTITION OF jobqueue.cancelled_jobs DEFAULT;

-- The cause of a failure: what it has in common with others, as a text to group by. It is the last error of a history, or else the reason, without
-- what differs from one failure to the next: numbers, ids, addresses, tokens, times, quoted values and the ends of paths are "#". What tells causes
-- apart stays: names that a message quotes (an attribute, a column), status codes and error numbers, the hosts of URLs.
--
-- It looks at the first 1,000 characters, and returns up to 200. Only ASCII is told apart, so that it does not depend on the database's locale. What
-- it returns is stored with dead jobs: other rules would need the column to be made anew. jobqueue/testing/causes.py has the same in Python.
CREATE OR REPLACE FUNCTION jobqueue.cause_of(errors jsonb, reason text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET standard_conforming_strings = on
AS $$
DECLARE
    message text := coalesce(nullif(errors -> -1 ->> 'error', ''), reason);
    kept constant text := chr(1);   -- stands before what is to stay as it is: control characters are not in the text any more
    cut constant text := chr(2);
    cause text := regexp_replace(left(message, 1000), '[\u0001-\u0020\u007f]+', ' ', 'g') || CASE WHEN length(message) > 1000 THEN cut ELSE '' END;
BEGIN
    -- The way of a URL, not its host.
    IF strpos(cause, '://') > 0 THEN
        cause := regexp_replace(cause, '([a-z]://[^ /?#"''<>(){}\[\],;|]+)[/?#][^ "''<>(){}\[\],;|]*', '\1/#', 'g');
    END IF;
    IF cause ~ '[''"]' THEN
        -- Quoted names of a program's parts, and what HTTP calls a status, stay; other quoted values do not. (The first look is for speed alone.)
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
    -- The values in the details of PostgreSQL's errors: Key (email)=(...) already exists.
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
        -- Long words with a digit in them, UUIDs among them; hexadecimal numbers.
        cause := regexp_replace(cause, '(?<![A-Za-z0-9_\u0001-])(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}', '#', 'g');
        cause := regexp_replace(cause,
            '(?<![A-Za-z0-9_\u0001])(?:0x[0-9A-Fa-f]+|(?=[0-9]*[A-Fa-f])(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{6,})(?![A-Za-z0-9_])', '#', 'g');
        -- Numbers; in a word (utf8, S3) only long ones.
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

-- Databases of before that have no causes. Only these: the table is written anew, and locked.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'jobqueue.dead_jobs'::regclass AND attname = 'cause' AND NOT attisdropped) THEN
        ALTER TABLE jobqueue.dead_jobs ADD COLUMN cause text GENERATED ALWAYS AS (jobqueue.cause_of(errors, reason)) STORED;
    END IF;
END $$;

-- Each is an order to page through, and the way to the few that a filter means among many.
CREATE INDEX IF NOT EXISTS dead_jobs_died_at ON jobqueue.dead_jobs (died_at, id);
CREATE INDEX IF NOT EXISTS dead_jobs_queue ON jobqueue.dead_jobs (queue, died_at, id);
CREATE INDEX IF NOT EXISTS dead_jobs_kind ON jobqueue.dead_jobs (kind, died_at, id);
-- The same, and all that jobqueue.dead_causes has to read.
CREATE INDEX IF NOT EXISTS dead_jobs_cause ON jobqueue.dead_jobs (cause, kind, queue, died_at, id);

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

-- Cron schedules: which job is submitted when. What an expression means is computed by the nodes, in Python, from this database's
-- clock; next_at moves by compare-and-set, so that each tick has one job, whoever else computes it too. Hundreds of rows, thousands
-- at most: they are read as a whole, and without an index on next_at each move is a HOT update.
CREATE TABLE IF NOT EXISTS jobqueue.schedules (
    name        text             PRIMARY KEY,
    source      text,                -- the module that declares it; NULL: made over HTTP or in SQL
    cron        text             NOT NULL,
    timezone    text             NOT NULL,
    missed      text             NOT NULL,   -- of several due ticks: one (the latest), skip (those of the last minute), all
    kind        text             NOT NULL,
    payload     jsonb            NOT NULL,
    queue       text             NOT NULL,
    priority    integer          NOT NULL,
    max_retries integer,
    timeout     double precision,
    paused      boolean          NOT NULL DEFAULT false,
    next_at     timestamptz,         -- the first tick that has not been looked at; NULL: a node computes it, unless there is an error
    last_at     timestamptz,         -- the last tick that got a job
    error       text,                -- why there is no next tick
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

-- What all nodes did, by slots of 10, 60 and 300 seconds of the database's clock, which are kept for an hour, six and a day: some thousand
-- rows. Pages keep room, so that a node's figures are a HOT update.
CREATE TABLE IF NOT EXISTS jobqueue.history (
    step       integer     NOT NULL,               -- seconds
    at         timestamptz NOT NULL,               -- when the slot began
    submitted  bigint      NOT NULL,
    completed  bigint      NOT NULL,
    failed     bigint      NOT NULL,               -- attempts
    dead       bigint      NOT NULL,
    waits      integer[]   NOT NULL,               -- first attempts, by how long their jobs had waited: jobqueue.durations has the bounds
    runs       integer[]   NOT NULL,               -- attempts, by how long they took
    depth      jsonb,                              -- {"state": jobs} as counted last; NULL: they were not
    counted_in double precision,                   -- the seconds that took
    PRIMARY KEY (step, at)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Jobs that were submitted in SQL and are not in the history yet, which no node knows of. Rows are only ever inserted, but for
-- jobqueue.record, which takes them: an open transaction holds up nobody.
CREATE TABLE IF NOT EXISTS jobqueue.sql_submissions (
    jobs integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- A publication of all tables refuses to update and delete rows that it cannot identify. Tables without a primary key are small, or lose rows
-- by the partition. jobqueue.maintain does the same with the partitions that it makes.
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

-- ------------------------------------------------------------------------------------------------------------- looking things up

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

-- A document of a job as nodes and their clients are shown it. No reader could take one that is nested a thousand levels deep, as somebody's own
-- INSERT can make it, and a list would be lost with it.
CREATE OR REPLACE FUNCTION jobqueue.shown(document jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN document @? 'strict $.**{110}' THEN '"nested too deeply to be shown"' ELSE document END
$$;

-- Whether a job is still to run, or runs. One statement, so that a job that moves meanwhile is seen in exactly one table.
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

-- A version 7 UUID (RFC 9562, 5.7): milliseconds since 1970 in the first 48 bits, so ids sort by creation. PostgreSQL has its own
-- from 18 on; ours is the same on every version that we support.
CREATE OR REPLACE FUNCTION jobqueue.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
        'hex')::uuid
$$;

-- The smallest version 7 UUID of a moment, to the millisecond: ids that were made before are smaller.
CREATE OR REPLACE FUNCTION jobqueue.uuid7_from(moment timestamptz) RETURNS uuid
LANGUAGE sql STABLE AS $$
    SELECT rpad(lpad(to_hex(floor(least(greatest(extract(epoch FROM moment) * 1000, 0), 281474976710655))::bigint), 12, '0'), 32, '0')::uuid
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

-- ------------------------------------------------------------------------------------------------------------------- checks
--
-- HTTP checks its input in Python, and SQL does so here. Both have the same rules and words; a test compares them.

-- The rule of each field, by name. A field has the same rule wherever it is given. "is" names a check of jobqueue.fits, and "from", "to",
-- "but" and "of" are its bounds. "words" ends the sentence "<field> must be ...". "null": the field may be null, which means not given.
-- "excludes" names a field that must not be given as well.
-- (In dollar quotes a backslash means the same in any session.)
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
    "traceparent":     {"is": "text", "null": true, "words": "a string, as W3C Trace Context has it; a malformed one is ignored"},
    "tracestate":      {"is": "text", "null": true, "words": "a string, as W3C Trace Context has it; a malformed one is ignored"},

    "name":            {"is": "string", "to": 200, "but": [".", ".."], "words": "a string of 1 to 200 characters, but not \".\" or \"..\""},
    "cron":            {"is": "string", "to": 200,
                        "words": "a string of 1 to 200 characters, such as \"*/5 * * * *\" for every five minutes"},
    "timezone":        {"is": "string", "to": 200, "words": "the name of a time zone, a string of 1 to 200 characters"},
    "missed":          {"is": "one", "of": ["one", "skip", "all"], "words": "one of \"one\", \"skip\" and \"all\""},
    "paused":          {"is": "boolean", "words": "true or false"},

    "aging_interval":  {"is": "number", "from": 0, "to": 86400, "words": "a number of seconds from 0 to 86400, or null for 1"},
    "max_running":     {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null for none"},
    "rate":            {"is": "number", "from": 0.00001, "to": 1000000, "words": "a number from 0.00001 to 1000000, or null for none"},
    "burst":           {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null for none"},
    "key_max_running": {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null for 1"},
    "key_rate":        {"is": "number", "from": 0.00001, "to": 1000000, "words": "a number from 0.00001 to 1000000, or null for none"},
    "key_burst":       {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null for none"},

    "text":            {"is": "string", "to": 200,
                        "words": "the beginning of an id, or a part of the error or the reason, a string of 1 to 200 characters"},
    "cause":           {"is": "string", "to": 200, "words": "a cause as GET /dead/causes has it, a string of 1 to 200 characters"},
    "reason":          {"is": "string", "to": 200, "words": "a part of the reason, a string of 1 to 200 characters"},
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

-- The time that a text names: RFC 3339, with its UTC offset, from the year 1 to 9999. NULL where it names none. A text is read by its
-- digits alone, so the time zone and the DateStyle of the session do not matter.
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

-- What is wrong with a payload; NULL: nothing. It may be nested 100 levels deep and have 1 MiB as JSON without spaces. Its integers have 64
-- bits, or 17 significant digits, as floats have: jsonb keeps 1e20 as 100000000000000000000.
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
        RETURN 'payload cannot be stored: nested more than 100 levels deep';
    END IF;
    IF payload @? 'strict $.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)' THEN
        FOR number IN SELECT jsonb_path_query(payload, 'strict $.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)') LOOP
            too_large := abs(number::numeric) > 1.7976931348623158e308;
            IF scale(number::numeric) = 0 AND (too_large OR length(rtrim(abs(number::numeric)::text, '0')) > 17) THEN
                RETURN format('payload cannot be taken: the integer %s does not fit into 64 bits: send it as a string', left(number::text, 40));
            ELSIF too_large THEN
                RETURN format('payload cannot be read: the number %s is out of range', left(number::text, 40));
            END IF;
        END LOOP;
    END IF;
    document := payload::text;
    size := octet_length(document);
    IF size > most AND size <= 1.5 * most + 1 THEN
        -- Without the spaces that jsonb writes after commas and colons: those outside of strings.
        document := regexp_replace(document, $string$"(?:[^"\\]|\\.)*"$string$, '', 'g');
        size := size - octet_length(document) + octet_length(replace(document, ' ', ''));
    END IF;
    IF size > most THEN
        RETURN format('the payload has %s bytes as JSON, %s are allowed', size, most);
    END IF;
    RETURN NULL;
END $$;

-- Whether a value is what a rule asks for. A payload under 500 bytes with numbers of 64 bits needs no closer look: 100 levels take 800 bytes, and
-- 500 bytes are at most 1 MiB of JSON, since a number of 8 bytes has up to 16,383 digits after the point.
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

-- Refuse objects of which one has a field that does not fit its rule, or that such an object does not have. The error has HTTP's sentence,
-- the field as the column, and, where there are several objects, the place in the detail. what: what such an object is, as "a job".
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
            format('%s has no ''%s''; it has %s', what, left(wrong.field, 64), array_to_string(known, ', '))
        WHEN wrong.rule ->> 'is' = 'payload' THEN jobqueue.payload_fault(wrong.value)
        WHEN jobqueue.fits(wrong.value, wrong.rule) THEN
            format('%s and %s exclude each other: give one of them', wrong.rule ->> 'excludes', wrong.field)
        ELSE format('%s must be %s', wrong.field, wrong.rule ->> 'words') END;
    IF jsonb_array_length(objects) > 1 THEN
        RAISE check_violation USING MESSAGE = words, COLUMN = left(wrong.field, 64), DETAIL = 'index ' || wrong.place - 1 || ' of the batch';
    END IF;
    RAISE check_violation USING MESSAGE = words, COLUMN = left(wrong.field, 64);
END $$;

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
    present constant numeric := extract(epoch FROM clock_timestamp());   -- a transaction that began long ago gets no better turn
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

-- Whether groups of a queue have a backlog behind which a job that became available at that time would wait, if it stood in line by the clock.
-- While they do, jobs without a group share the workers as one more group, whose name is the empty text: so they do not starve.
CREATE OR REPLACE FUNCTION jobqueue.lags(queue text, since timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM jobqueue.fair_queues AS f WHERE f.queue = lags.queue AND least(f.common, f.urgent) < extract(epoch FROM since))
$$;

-- Note where the lines of a queue are served, or that they were found empty. Where another claim does so at this moment, that will do.
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
-- Also in a session that has session_replication_role = replica. A subscriber gets admitted jobs only, which the trigger lets through.
ALTER TABLE jobqueue.pending_jobs ENABLE ALWAYS TRIGGER block;

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
            INSERT INTO jobqueue.key_checks (queue, key, at, timed) VALUES (key_allowance.queue, key_allowance.key, next_at, true);
        END IF;
    END IF;
    INSERT INTO jobqueue.key_buckets AS b (queue, key, tokens, refilled_at, check_at)
    VALUES (key_allowance.queue, key_allowance.key, tokens, present, next_at)
        ON CONFLICT ON CONSTRAINT key_buckets_pkey
        DO UPDATE SET tokens = excluded.tokens, refilled_at = excluded.refilled_at, check_at = excluded.check_at;
    RETURN allowed;
END $$;

-- Move these rows of blocked_jobs to pending. Returns the best rank of each queue that got jobs.
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
    places tid[];
    present timestamptz;   -- a variable, so that it bounds the scan of the index
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- Each statement must see what others committed before this transaction had the lock.
        RAISE EXCEPTION 'jobqueue.admit counts in READ COMMITTED only, not in %', current_setting('transaction_isolation');
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
            -- A row that somebody's transaction holds, to cancel it, is left out: nobody waits for that one.
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

-- The seconds until the next check of a key is due; NULL: there is none.
CREATE OR REPLACE FUNCTION jobqueue.next_check() RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM jobqueue.key_checks AS n WHERE n.timed IS NULL) THEN 0
                ELSE (SELECT extract(epoch FROM t.at - clock_timestamp()) FROM jobqueue.key_checks AS t
                       WHERE t.timed ORDER BY t.timed, t.at LIMIT 1) END
$$;

-- ------------------------------------------------------------------------------------------------------------------- burying

-- Move rows of a table to the dead letters, whatever their columns hold. Returns the jobs, as an array of
-- {"id", "queue", "kind", "attempt", "node_id", "reason"}.
--
-- verb, words: what could not move the rows, and PostgreSQL's words for it. NULL: the jobs have expired; where they were claimed a moment
-- ago, that claim does not count.
--
-- The columns keep what they hold, even what no other table takes: somebody may want to see it, repair it, and run the job again. Replaced
-- are names that an index cannot hold, times that no node can read, and a history of errors that is not an array.
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
        -- It is there already. From now on it says why, and lets others be the first to be tried again.
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
                   -- In the years that clients know: from 68 to 9892.
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

-- Move rows of a table by a function of their places, all of them at once. Where PostgreSQL refuses a value in one of them, move them by
-- halves, down to the row at fault, which goes to the dead letters. The caller has locked the rows. Returns an array of what each call of the
-- function returned as "moved", and what died as "dead", as jobqueue.bury has it.
--
-- Locks, cancellations, privileges, and whatever else is not about a value in a row, end the statement as they would without this.
CREATE OR REPLACE FUNCTION jobqueue.move(verb text, mover text, source text, places tid[], OUT moved jsonb, OUT dead jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp   -- so that a session's own names are not taken for faults of rows
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

-- The best rank of each queue among several such answers, each {"queue": seconds}.
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

-- Write jobs that somebody submits in SQL as submit_batch and the tables have them: times in UTC, and what is not a column in "options".
CREATE OR REPLACE FUNCTION jobqueue.with_options(jobs jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_agg((j.job - '{run_at,expires_at,expires_in,group,weight,concurrency_key,unique,unique_key,idempotency_key,traceparent,tracestate}'::text[])
                     || jsonb_strip_nulls(jsonb_build_object(
                            'run_at', to_jsonb(jobqueue.instant(j.job ->> 'run_at') AT TIME ZONE 'UTC') #>> '{}' || 'Z',
                            'options', nullif(o.options, '{}')))
                     ORDER BY j.place)
      FROM jsonb_array_elements(with_options.jobs) WITH ORDINALITY AS j (job, place)
     CROSS JOIN LATERAL (SELECT jsonb_strip_nulls(jsonb_build_object(
               'expires_at', extract(epoch FROM jobqueue.instant(j.job ->> 'expires_at')), 'expires_in', j.job -> 'expires_in',
               'group', j.job -> 'group', 'weight', j.job -> 'weight', 'concurrency_key', j.job -> 'concurrency_key',
               'unique', j.job -> 'unique', 'unique_key', j.job -> 'unique_key',
               'idempotency_key', j.job -> 'idempotency_key',
               -- As W3C Trace Context has them: what is malformed is ignored. No transaction fails for its trace.
               'traceparent', CASE WHEN j.job ->> 'traceparent'
                                        ~ '^(00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}|(?!00|ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?)$'
                                   THEN left(j.job ->> 'traceparent', 55) END,
               'tracestate', CASE WHEN j.job ->> 'tracestate' ~ '^[ -~]+$' AND length(j.job ->> 'tracestate') <= 512
                                  THEN j.job ->> 'tracestate' END)) AS options) AS o
$$;

DROP FUNCTION IF EXISTS jobqueue.refuse_expired(jsonb);

-- Refuse a batch with a job that is past its time already: it would never be started. again: a job with an id may have been submitted before.
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

-- What a submission asks for, as a hash: of the same job as HTTP and SQL each spell it, it is the same. Without the key itself, and
-- without what the database and the scheduler note among the options, and without the trace: who tries again does so in another span.
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
        CONTINUE WHEN NOT FOUND;  -- pruned in between
        IF holder <> job AND jobqueue.unfinished(holder) THEN
            RETURN holder;
        END IF;
        UPDATE jobqueue.keys AS k SET job_id = job, expires_at = clock_timestamp() + interval '1 day' WHERE k.scope = 'unique' AND k.key = unique_key;
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
    present constant timestamptz := clock_timestamp();
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

DROP FUNCTION IF EXISTS jobqueue.prepare(jsonb, boolean, double precision);

-- Do what the options of new jobs ask for, in the transaction that submits them; returns the jobs as they are to be stored. A job that is
-- there already has its id as "existing": it is not stored, and that id is returned for it. Not called for a batch without such options.
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
    -- A job that is not due yet takes its turn when it is, see jobqueue.promote.
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

-- What submit_many does, for the service. Returns the ids, and the best rank of each queue that got jobs, as {"queue": seconds}.
--
-- again: the same batch may already have been committed by a connection that broke before it could say so; jobs that exist in any
--        state are left alone. The caller must know that the first connection's transaction is over.
-- wake:  tell listening nodes. A node that will run the jobs itself need not.
-- node, wants, defaults: claim for this node in the same transaction, as jobqueue.claim does; of the new jobs also those below the floor.
--        Returns what was claimed; NULL where nothing was asked for, or the claim failed.
-- key_ttl: for how many seconds an idempotency key is known.
-- uncounted: somebody submits the jobs in SQL. No node counts them for the history, so they are noted here. Their transaction may be old, so their
--        times count from this call. Those of a node's jobs count from its transaction, because a claim that goes along has that time too.
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
    -- What else there may be among the options needs nothing done, a trace above all.
    IF EXISTS (SELECT FROM jobqueue.fair_queues AS f WHERE least(f.common, f.urgent) IS NOT NULL)
       OR jobs @? '$[*].options ? (exists(@.idempotency_key) || exists(@.unique_key) || exists(@.unique) || exists(@.group) ||
                                   exists(@.expires_in) || exists(@.expires_at))' THEN
        jobs := jobqueue.prepare(jobs, again, key_ttl, present);
    END IF;
    IF wake AND jobs @? '$[*].options.concurrency_key' THEN
        PERFORM jobqueue.wake_keys();
    END IF;
    -- Not a part of the statement below: to look among all jobs is to open each partition there is, needed or not.
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
                   id uuid, queue text, kind text, priority numeric, payload jsonb, max_retries numeric,   -- to JSON, 5.0 is the integer 5
                   timeout double precision, run_at timestamptz, delay double precision, options jsonb)) WITH ORDINALITY
               AS j (id, queue, kind, priority, payload, max_retries, timeout, run_at, delay, options, place)
    ), pending AS (
        INSERT INTO jobqueue.pending_jobs AS p
               (id, queue, kind, priority, rank, payload, max_retries, timeout, created_at, available_since, options)
        SELECT f.id, f.queue, f.kind, f.priority, jobqueue.rank_of(a.since, f.priority, q.aging_interval, f.options), f.payload, f.max_retries,
               f.timeout, present, a.since, f.options
          FROM given AS f
          LEFT JOIN jobqueue.queues AS q ON q.name = f.queue
          -- A microsecond apart each, so that a batch runs in the order that it was given in. A run_at in the past is now: it must
          -- not buy a better place than those have who waited.
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
            NULL;  -- a submission does not fail for it; the next claim meets the same, and says so
        END;
    END IF;
    RETURN NEXT;
END $$;

-- Submit a batch: jobs is an array of objects with the fields of jobqueue.submit (all optional), plus "delay" or "expires_in" in seconds
-- instead of "run_at" or "expires_at", and "id": a job whose id exists in any state is left alone. All or nothing. Returns the ids in the order
-- of the array: where a key says that a job is there already, the id of that one.
-- Call it in your own transaction: commit and the jobs exist, roll back and they never did.
CREATE OR REPLACE FUNCTION jobqueue.submit_many(jobs jsonb) RETURNS uuid[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1
AS $$
BEGIN
    IF jsonb_typeof(jobs) <> 'array' THEN
        RAISE check_violation USING COLUMN = 'jobs', MESSAGE = 'jobs must be a JSON array of jobs';
    ELSIF jsonb_array_length(jobs) > 100000 THEN
        RAISE check_violation USING COLUMN = 'jobs', MESSAGE = 'more than 100000 jobs in one batch: send it in parts';
    END IF;
    -- Almost every submission is one small job with small numbers and short names. This look passes such a job in a fifth of the time. In 200 bytes
    -- no name is too long, and a payload of less than 500 bytes is neither too large nor too deep. Whatever it does not pass is only looked at again.
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
    "group"     text             DEFAULT NULL,    -- those whose jobs share the workers fairly, such as a tenant
    weight      double precision DEFAULT NULL,    -- 1: the share of the group's next jobs
    idempotency_key text         DEFAULT NULL,    -- for a day, the same key is the same job
    unique_key  text             DEFAULT NULL,    -- at most one job of this key that is not finished
    "unique"    boolean          DEFAULT NULL,    -- at most one job of this queue, kind and payload that is not finished
    concurrency_key text         DEFAULT NULL,    -- such as an account: the queue's limits of keys hold for those that have the same
    traceparent text             DEFAULT NULL,    -- whose span its handler's is a child of, as W3C Trace Context has it
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

-- Repair what waits for a time, after the server's clock was set back: it would wait until the clock has caught up. A lease begins anew, so that
-- a node that died is noticed in time. Every key that waits for a time is looked at, and waits for the right one from then on. A heartbeat of
-- the future tells that there is something to repair: each node has one, and writes it all the time.
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

-- Renew a node's lease, by the database's clock, and note what it has been doing. Returns the runs of this node that somebody wants cancelled, as [[id, claims], ...]: so
-- no notification is needed for that, and no further query. NULL: the lease is lost for good, the node's jobs are somebody else's. A
-- lease that ran out while nobody took it (the database was away) is renewed: running jobs survive an outage.
CREATE OR REPLACE FUNCTION jobqueue.heartbeat(node uuid, lease double precision, activity jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql
SET enable_seqscan = off
SET jit = off   -- cancel_requests has no index, and before PostgreSQL 18 what is off has a cost that calls for JIT: 30 ms each time
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

-- Hand back these rows of inflight_jobs. Returns how many are pending again.
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

-- Leave: hand back whatever the node still holds, with the attempts refunded, and delete its row; what is to be cancelled ends as that.
-- Jobs that held up the node are left to recover. Returns the jobs handed back.
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

-- Take a stuck node's jobs from it, on its behalf: as leave_node, but for the jobs that hold it up. blamed is an array of {id, claims,
-- error, delay}. recover writes that these runs failed, with that error, since it calls the hooks as well. Runs that are over are left
-- alone. Returns the number of jobs handed back; NULL: the lease is lost already.
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

-- End the lease of a node whose process is known to have died, so that others recover its jobs at once.
CREATE OR REPLACE FUNCTION jobqueue.lose_node(node uuid) RETURNS void
LANGUAGE sql AS $$
    WITH lost AS (
        DELETE FROM jobqueue.nodes WHERE id = node RETURNING id
    )
    SELECT pg_notify('jobqueue_lost', id::text) FROM lost
$$;

-- Take back these rows of inflight_jobs. Returns the jobs as jobqueue.recover does, as an array of objects.
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

DROP FUNCTION IF EXISTS jobqueue.recover(integer, uuid);   -- an earlier version returns other columns

-- Take back the jobs of lost nodes: to pending, or to dead once their attempts are used up (the attempt was counted at the claim, so
-- a job that kills its process cannot do so for ever), or, where somebody asked for its cancellation, to finished. A job
-- that held up its node goes to scheduled, see surrender. A node whose lease ran out loses its row first; from then on its heartbeat
-- fails. The jobs to take are those of nodes without a row, so a claim that commits in between is found by the next call. Rows in id
-- order, SKIP LOCKED: a completion that is being written at this moment wins.
--
-- judge: a node that takes the lease of those whose time ran out; NULL spares them. After an outage of the database all have run out, so
--        the judge must hold its own: where it does not, the database was away, or the judge was.
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

-- How long a job with these options may still be started, in seconds; NULL: for ever.
CREATE OR REPLACE FUNCTION jobqueue.seconds_left(options jsonb) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT (options -> 'expires_at')::double precision - date_part('epoch', now())
$$;

-- The options of a job as its claim tells them.
CREATE OR REPLACE FUNCTION jobqueue.timed(options jsonb) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN options ? 'expires_at' THEN options || jsonb_build_object('expires_in', jobqueue.seconds_left(options))
                ELSE options END
$$;

DROP FUNCTION IF EXISTS jobqueue.bury_expired(uuid[]);   -- jobqueue.bury does what it did

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
SET enable_seqscan = on   -- until all are counted by index. It is off in a claim, and before PostgreSQL 18 what is off has a cost that
                          -- calls for JIT: a tenth of a second, each time
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
            -- Jobs that were claimed before there was the limit have no mark. The last such claim is over after its statement_timeout;
            -- from then on, when all that run have their mark, the index will do.
            SELECT count(*), count(i.limited) INTO running, marked FROM jobqueue.inflight_jobs AS i WHERE i.queue = allowance.queue;
            UPDATE jobqueue.queue_limits AS l
               SET counted_since = least(l.counted_since, clock_timestamp()),
                   all_counted = coalesce(l.counted_since < clock_timestamp(), false)
             WHERE l.queue = allowance.queue
               AND (l.counted_since IS NULL OR l.counted_since > clock_timestamp()   -- the same
                    OR running = marked AND l.counted_since < clock_timestamp() - interval '1 minute');
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
     WHERE l.queue = spend.queue AND q.name = l.queue AND q.rate IS NOT NULL AND taken > 0
$$;

-- Claim up to so many jobs of each queue, best rank first: wants is {"queue": [count, floor]}, defaults is {"kind": max_retries} of the
-- handlers of the node. A paused queue, or a node without a valid lease, gets nothing. Jobs of a rank below the floor (in seconds; null
-- for none) are not looked at: while an old transaction keeps dead rows from being removed, they lie there, in front of the living. Returns one JSON array of
-- [queue, id, kind, payload, priority, attempt, claims, max_retries, timeout, created_at, rank, waited], times in seconds; a job that has
-- options or saved notes has these two at the end. Where it has a time to expire, "expires_in" among the options says how long that is from
-- now on; if that is not above zero, the job is not claimed: it is among the dead letters by then.
-- Where a limit leaves a queue short, or a row cannot be claimed, it is an object instead. "jobs" is that array. "again" is
-- {"queue": seconds}: in how many seconds there may be more to claim, or null, when jobs of the queue end. "dead" are the jobs whose rows
-- cannot be claimed, as jobqueue.bury has them.
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
    asking uuid[];     -- the claimed jobs that have options
    late tid[];        -- those of them whose time is over
    twins boolean := false;   -- whether pending rows of jobs that run have been met
    rows tid[];        -- after an error: the rows that are left to be claimed one by one
    row_place tid[];   -- the one of them that is claimed now
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
                     WHERE p.ctid = ANY (coalesce(row_place, ARRAY(
                               SELECT c.ctid FROM jobqueue.pending_jobs AS c
                                WHERE c.queue = want.queue AND c.rank >= want.floor
                                  AND (NOT twins OR NOT EXISTS (SELECT FROM jobqueue.inflight_jobs AS i WHERE i.id = c.id OFFSET 0))
                                ORDER BY c.rank LIMIT most FOR UPDATE OF c SKIP LOCKED)))
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
                                THEN concat(coalesce(jobqueue.timed(t.options), 'null'), ',', coalesce(t.saved, 'null')) END), '],['),
                       count(*) < most, array_agg(t.id) FILTER (WHERE t.options IS NOT NULL)
                  INTO part, emptied, asking
                  FROM taken AS t;
                EXIT WHEN rows IS NULL;
                row_parts := row_parts || part;
                row_asking := row_asking || asking;
            EXCEPTION
                WHEN unique_violation THEN
                    -- A second row of a job that runs. It waits for the end of the run; to look out for one costs a tenth of a claim.
                    twins := true;
                WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR feature_not_supported THEN
                    -- As jobqueue.move does it; but these two statements are what makes a claim fast, so they are not behind a call.
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
        IF num_nonnulls(common, urgent) > 0 THEN   -- of the queue before; an assignment of NULL is a cast, which takes longer than to look
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
SET jit = off   -- as in jobqueue.heartbeat, where an attempt has failed
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
    -- Almost every outcome is a success: these by a statement of their own, without the joins and the branches of the others. Finished
    -- at the time of the statement: the transaction may be the handler's own, which began before the handler did.
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
                      -- Not by a function: in RETURNING it is not inlined, and a call costs a third of moving the row.
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
              -- An outcome that nobody knows is refused, since no partition has that state, and not swallowed.
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
        -- The node writes another outcome where this one cannot be stored. But a dead or a released job has none to choose.
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

-- When the next job that waits will expire, in seconds; NULL: none will.
CREATE OR REPLACE FUNCTION jobqueue.next_expiry() RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT least((SELECT (p.options -> 'expires_at')::double precision FROM jobqueue.pending_jobs AS p WHERE p.options ? 'expires_at'
                   ORDER BY (p.options -> 'expires_at')::double precision LIMIT 1),
                 (SELECT (b.options -> 'expires_at')::double precision FROM jobqueue.blocked_jobs AS b WHERE b.options ? 'expires_at'
                   ORDER BY (b.options -> 'expires_at')::double precision LIMIT 1),
                 (SELECT (s.options -> 'expires_at')::double precision FROM jobqueue.scheduled_jobs AS s WHERE s.options ? 'expires_at'
                   ORDER BY (s.options -> 'expires_at')::double precision LIMIT 1))
$$;

-- Move jobs that wait and whose time to be started is over to the dead letters, up to so many of each state: those that nobody claims,
-- since their queue is paused or has no workers, or they are due later. Returns them as jobqueue.bury does.
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

-- Move these rows of scheduled_jobs to pending. Returns the best rank of each queue that got jobs.
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

-- Move up to so many due jobs to pending, and have those expire whose time is over. Returns the jobs moved, the best rank of each queue
-- that got some, as {"queue": seconds}, the seconds until the next one is due or expires (NULL: none), the jobs that died (they expired, or
-- cannot be moved) as jobqueue.bury has them, and the seconds until the next check of a key is due: every node asks this now and then anyway.
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

-- ------------------------------------------------------------------------------------------------------------------- steering

-- Cancel a job that waits; false when it does not. keep: false lets go of it, instead of keeping it in cancelled_jobs. In the order in
-- which jobs move, so that one that moves meanwhile is looked for where it went.
CREATE OR REPLACE FUNCTION jobqueue.cancel_waiting(job uuid, keep boolean) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    gone jobqueue.blocked_jobs;   -- the columns of pending_jobs, and what there is of them in scheduled_jobs
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

-- Cancel a job. One that waits has ended when your transaction commits. One that runs will end within a second or so after that, in the
-- state cancelled unless it succeeds or dies before, and never runs again. Returns whether the job has ended by this or will; false when
-- it is not there any more, or has ended already. To ask again changes nothing.
--
-- Of a job that runs only the wish is written: a mark on its row would have the outcomes of its node wait for your transaction.
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

-- Do the same at once, in a transaction that is over at once: mark a job that runs, and tell its node. From then on whatever would put it
-- back ends it.
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

-- Do what was asked of jobqueue.cancel. It waits for no lock: a job whose row somebody holds is left for the next call, and so is one that
-- moves at this moment.
CREATE OR REPLACE FUNCTION jobqueue.cancel_requested() RETURNS void
LANGUAGE plpgsql
SET jit = off   -- as in jobqueue.heartbeat
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

-- The options of a job that goes to the end of the line again.
CREATE OR REPLACE FUNCTION jobqueue.with_new_turn(options jsonb, queue text, priority integer) RETURNS jsonb
LANGUAGE sql AS $$
    SELECT CASE WHEN options ? 'group' OR jobqueue.lags(queue, clock_timestamp())
                THEN coalesce(options, '{}') || (jobqueue.take_turns(jsonb_build_array(
                     jsonb_build_object('key', 'this', 'queue', queue, 'group', coalesce(options ->> 'group', ''),
                                        'weight', options -> 'weight', 'priority', priority))) -> 'this')
                ELSE options END
$$;

-- Change the priority of a job that waits, or when it may run, or both; NULL leaves it as it is. False when the job does not wait: it runs,
-- or a node has claimed it ahead, or it has ended, or is not there.
--
-- A new priority gives a new rank, with the time that the job has waited so far; a job of a group takes a new turn. A run_at in the future
-- makes the job scheduled, as if it had been submitted so: its waiting counts from then on. One that is past makes it available: its
-- waiting counts from now, or from when it had become available before, as that of a retry.
--
-- While your transaction is open nobody claims the job.
CREATE OR REPLACE FUNCTION jobqueue.change(job uuid, priority integer DEFAULT NULL, run_at timestamptz DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    gone jobqueue.blocked_jobs;   -- of a scheduled job, rank is its run_at
    state text;
    present constant timestamptz := clock_timestamp();
    put_off constant boolean := coalesce(change.run_at > present, false);
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'priority', change.priority, 'run_at', to_jsonb(change.run_at AT TIME ZONE 'UTC') #>> '{}' || 'Z'))), 'a change of a job', '{priority,run_at}');
    -- In the order in which jobs move, and twice: who changes the job at this moment writes a new row of it.
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
        -- One that is not admitted goes to blocked_jobs from here, with a check of its key.
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

-- The conditions of a filter by name, each as a text; null means not given. An unknown condition is refused by its name, and so is an empty filter:
-- nobody means all by saying nothing.
CREATE OR REPLACE FUNCTION jobqueue.conditions(filter jsonb, known text[]) RETURNS TABLE (name text, text text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    given constant jsonb := CASE jsonb_typeof(filter) WHEN 'object' THEN jsonb_strip_nulls(filter) || (filter - known)
                                                      ELSE coalesce(filter, 'null') END;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(given), 'a filter', known);
    IF given = '{}' THEN
        RAISE check_violation USING COLUMN = 'all', MESSAGE = 'the filter is empty: {"all": true} means all';
    END IF;
    RETURN QUERY SELECT m.key, m.value #>> '{}' FROM jsonb_each(given) AS m;
END $$;

-- The states that a filter asks for, of those that there are.
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

-- The first and the last of the ids that a text is, or is the beginning of; NULL where it is neither. A beginning has at least eight hexadecimal
-- digits, with dashes where ids have them or with none, and begins with 0, as ids of version 7 do until the year 2527. A whole id may be any.
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

-- A query for the jobs that a filter means, the latest id first, up to so many; before: an id, above which all have been looked at. A filter is
-- an object with any of "state" (one, or an array), "queue", "kind", "group", "concurrency_key", "text", "created_after" and "created_before"
-- (times), all of which have to hold, or {"all": true}.
--
-- A text is looked for in the reason and the message of the last error, whatever its case. But one that is a whole id, or the beginning of
-- an id of version 7, see jobqueue.ids_like, means the jobs of these ids.
--
-- It looks at no more than max_rows jobs, whatever the filter, along the indexes of ids: no other index is needed, which every job would
-- pay for. The last one that it may look at is in the result, wanted or not, as is_last: there it was cut short, and its id is the "before"
-- of the next. What has a row in the result is complete down to the last id, so pages have no job twice, and none is missed.
--
-- Ids are UUIDs of version 7, so they begin with a time, and that is the order. Times of a filter bound the ids as well, with a minute
-- to spare, so that a look far back begins there: what was created at that time, but has an id of another, is not found by time. That is a
-- job of a node whose clock is wrong by more than a minute, or one with an
-- id of its submitter's own that is no UUID of version 7; without times of a filter it is found, where its id stands.
CREATE OR REPLACE FUNCTION jobqueue.walk(filter jsonb, states text[], before uuid, max_jobs integer, max_rows integer) RETURNS text
LANGUAGE plpgsql STABLE
SET DateStyle = 'ISO, YMD'   -- in which a time means the same in any session, unlike with IST
AS $$
DECLARE
    asked record;
    ids text[] := '{true}';
    parts text[] := '{}';
    like_these uuid[];
    -- Which row a job is, for max_rows. To look for a text is to read the job's history from where it is stored: each 512 bytes of that are a row too.
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

-- Show jobs that match a filter, see jobqueue.walk, the latest id first, up to so many, without their payloads, results and errors. Returns
-- {"jobs": [...], "next": id}: the id is the "before" of the next page, null means that this is the last. At most max_rows jobs are
-- looked at: a page may be short, or empty, and not be the last. Jobs that come meanwhile are on none of the later pages.
CREATE OR REPLACE FUNCTION jobqueue.list_jobs(filter jsonb DEFAULT '{"all": true}', max_jobs integer DEFAULT 100, before uuid DEFAULT NULL,
                                              max_rows integer DEFAULT 10000) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET jit = off   -- before PostgreSQL 18 what is off has a cost that calls for it
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

-- Cancel those of some jobs that are in these states, but for those whose row somebody holds. Returns how many.
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
    -- As jobqueue.cancel does, and for its reasons.
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

-- Cancel the jobs that match a filter among those that one walk looks at, up to so many. Returns how many, and the "before" of the next walk;
-- NULL: there is nothing more. What comes meanwhile has a higher id, so walks end. dry_run: count them, and change nothing.
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
    -- Not again what somebody has asked for already.
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
    -- A row that is locked is about to move, most likely: claimed, promoted. What an open transaction holds is left out in the end.
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

-- Cancel the jobs that match a filter, see jobqueue.walk, up to so many, the latest id first; those that have ended are none of them. Repeat it
-- until it returns 0. Returns how many have ended when your transaction commits, or, where they run, will within a second or so after that, as
-- with jobqueue.cancel. dry_run: how many it would be; max_jobs NULL: of all.
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

-- Make these rows of dead_jobs pending. Returns how many they were.
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

-- Run dead jobs again (redrive), with all their attempts and a new place in line, and without the time to expire that they had. One whose
-- unique key another job has, or is about to have, is left where it is, and so is one whose row cannot be moved: its reason says why from
-- then on. Returns how many were run again.
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

-- Run a dead job again. Returns false when it is not dead. Raises JQ409 where another unfinished job has its unique key by now, or somebody's
-- transaction is about to give it to one.
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
            RAISE EXCEPTION 'the job % has the unique key of this one, and is not finished', holder
                USING ERRCODE = 'JQ409', COLUMN = 'unique_key';
        END IF;
    END IF;
    RETURN jobqueue.redrive_these(ARRAY(SELECT d.ctid FROM jobqueue.dead_jobs AS d WHERE d.id = job FOR UPDATE)) > '0';
EXCEPTION WHEN lock_not_available THEN
    RAISE EXCEPTION 'the job or its unique key is in a transaction that is not over yet: try again later'
        USING ERRCODE = 'JQ409', COLUMN = 'unique_key';
END $$;

-- Delete a dead job for good. Returns false when it is not dead.
CREATE OR REPLACE FUNCTION jobqueue.discard(job uuid) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (DELETE FROM jobqueue.dead_jobs WHERE id = job RETURNING id) SELECT EXISTS (SELECT FROM gone)
$$;

-- A filter of dead jobs as a condition on the rows of dead_jobs AS d. It is an object with any of "queue", "kind", "group", "cause" (as
-- jobqueue.dead_causes has it), "reason" (a part of it), "died_before" and "died_after" (times), all of which have to hold, or {"all": true}.
CREATE OR REPLACE FUNCTION jobqueue.dead_condition(filter jsonb) RETURNS text
LANGUAGE sql STABLE
SET DateStyle = 'ISO, YMD'   -- in which a time means the same in any session, unlike with IST
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

-- The dead jobs that a filter means, oldest first, up to so many; locked, and without those that somebody else has locked.
CREATE OR REPLACE FUNCTION jobqueue.dead_matching(filter jsonb, max_jobs integer, condition text DEFAULT 'true') RETURNS uuid[]
LANGUAGE plpgsql AS $$
DECLARE
    found uuid[];
BEGIN
    EXECUTE format('SELECT array_agg(m.id) FROM (SELECT d.id FROM jobqueue.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at, d.id LIMIT %L'
                   ' FOR UPDATE SKIP LOCKED) AS m', jobqueue.dead_condition(filter), condition, max_jobs) INTO found;
    RETURN coalesce(found, '{}');
END $$;

-- Run dead jobs that match a filter again, the oldest first, up to so many in one transaction: repeat it until it returns 0, with a
-- "died_before" where they may die again. Returns how many. dry_run: how many it would be; max_jobs NULL: of all.
CREATE OR REPLACE FUNCTION jobqueue.retry_dead(filter jsonb, max_jobs integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Not those whose unique key another job has: they would be found again and again.
    free constant text := '(d.options IS NULL OR NOT EXISTS (
        SELECT FROM jobqueue.keys AS k WHERE k.scope = ''unique'' AND k.job_id <> d.id AND jobqueue.unfinished(k.job_id)
           AND k.key = jobqueue.unique_key_of(d.queue, d.kind, d.payload, d.options)))';
    jobs integer;
BEGIN
    PERFORM jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('max_jobs', retry_dead.max_jobs, 'dry_run', retry_dead.dry_run)), 'a call', '{max_jobs,dry_run}');
    IF NOT dry_run THEN
        RETURN jobqueue.redrive(jobqueue.dead_matching(filter, max_jobs, free));
    END IF;
    -- Of several with one unique key it is one.
    EXECUTE format(
        'SELECT count(DISTINCT k.key) + count(*) FILTER (WHERE k.key IS NULL)'
        ' FROM (SELECT d.* FROM jobqueue.dead_jobs AS d WHERE %s AND %s ORDER BY d.died_at, d.id LIMIT %L) AS d'
        ' CROSS JOIN LATERAL (SELECT CASE WHEN d.options IS NOT NULL'
        ' THEN jobqueue.unique_key_of(d.queue, d.kind, d.payload, d.options) END AS key) AS k',
        jobqueue.dead_condition(filter), free, max_jobs) INTO jobs;
    RETURN jobs;
END $$;

-- Delete dead jobs that match a filter, the oldest first, up to so many in one transaction: repeat it until it returns 0. Returns how many.
-- dry_run: how many it would be; max_jobs NULL: of all.
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

-- Show dead jobs that match a filter, the latest first, up to so many, with the text of their last error but without their payloads.
-- before, before_id: the died_at and id of the last one on the page before.
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

-- Show dead jobs that match a filter in groups of one queue, kind and cause, the largest group first, up to so many. Returns
-- {"causes": [{"queue", "kind", "cause", "jobs", "first_died_at", "last_died_at", "example": id of the latest}], "more": whether there are more groups}.
--
-- With no other conditions than of these and of times it reads the index dead_jobs_cause, and no rows. It counts along the index, and looks at the
-- two ends of only those groups that it shows.
CREATE OR REPLACE FUNCTION jobqueue.dead_causes(filter jsonb DEFAULT '{"all": true}', max_causes integer DEFAULT 100) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_indexscan = off   -- of one kind or queue too, all is read along the one index: it is less than the rows of many
SET enable_hashagg = off
SET enable_sort = off
SET max_parallel_workers_per_gather = 0   -- workers would cost the service's jobs more than they save
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

-- Pause a queue on every node, or resume it. Running jobs go on; what nodes have claimed and not started they hand back.
CREATE OR REPLACE FUNCTION jobqueue.pause(queue text, paused boolean DEFAULT true) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jobqueue.refuse_unfit(jsonb_build_array(jsonb_build_object('queue', pause.queue, 'paused', pause.paused)), 'a queue', '{queue,paused}');
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
    IF NOT clear <@ settings THEN   -- nor is NULL one
        RAISE check_violation USING COLUMN = 'clear', MESSAGE = 'clear must be of ' || array_to_string(settings, ', ');
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

-- ------------------------------------------------------------------------------------------------------------------- schedules

-- Tell every node to look at the schedules.
CREATE OR REPLACE FUNCTION jobqueue.tell_of_schedules() RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue_schedules', '') $$;

-- The job that a schedule submits for a tick (NULL: for none), as submit_batch takes it.
CREATE OR REPLACE FUNCTION jobqueue.job_of(schedule jobqueue.schedules, tick timestamptz) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'kind', schedule.kind, 'payload', schedule.payload, 'queue', schedule.queue, 'priority', schedule.priority,
        'max_retries', schedule.max_retries, 'timeout', schedule.timeout,
        'options', jsonb_strip_nulls(jsonb_build_object(
            'schedule', schedule.name, 'scheduled_for', extract(epoch FROM tick)::double precision)))
$$;

-- Make a schedule, or change the one of that name: SELECT jobqueue.schedule('nightly', '0 3 * * *', 'Europe/Berlin', kind => 'report');
-- A node computes when it is next, from the commit on; one whose expression and time zone stay as they were goes on where it was. What
-- cannot be read is told in its column "error". Returns whether it is new.
CREATE OR REPLACE FUNCTION jobqueue.schedule(
    name        text,
    cron        text,                              -- five fields, or six with the second first
    timezone    text             DEFAULT 'UTC',    -- an IANA name
    missed      text             DEFAULT 'one',    -- or 'skip', or 'all'
    kind        text             DEFAULT NULL,     -- the name
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
    RETURNING s.xmax = 0 INTO made;   -- a row that nobody has updated
    PERFORM jobqueue.tell_of_schedules();
    RETURN made;
END $$;

-- Delete a schedule; the jobs that it has submitted stay. Returns false when there is none of that name.
CREATE OR REPLACE FUNCTION jobqueue.unschedule(name text) RETURNS boolean
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (DELETE FROM jobqueue.schedules AS s WHERE s.name = unschedule.name RETURNING s.name) SELECT EXISTS (SELECT FROM gone)
$$;

-- Pause a schedule, or resume it: then it goes on with the first tick after now, and those of the pause are gone. Returns false when
-- there is none of that name.
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

-- Submit a schedule's job now, paused or not, beside its ticks. Returns the job's id, NULL when there is no schedule of that name.
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

-- Make the schedules of one source those that it declares: new ones are made, changed ones changed, others of this source deleted.
-- Where a name is taken, by another source or by HTTP or SQL, nothing is done. Returns the names taken, and by whom.
CREATE OR REPLACE FUNCTION jobqueue.reconcile_schedules(source text, schedules jsonb) RETURNS TABLE (name text, owner text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    -- Nodes that start together do it one after the other.
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
     -- What is as it should be is not touched: somebody's transaction may hold it for an hour, and this node is to start.
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
     WHERE s.source = excluded.source;   -- where somebody's SQL took the name just now, it keeps it, and the next start says so
    PERFORM jobqueue.tell_of_schedules();
END $$;

-- Up to so many schedules that have due ticks, or whose first tick nobody has computed yet, as an array of [name, cron, timezone,
-- missed, next_at]; the time, which is what a node computes with; and the seconds until the next one of the others (NULL: none).
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

-- Move schedules on, and submit the jobs of their ticks in the same transaction. moves is an array of objects:
--
--     name, cron, timezone, missed, expected    what was looked at: a schedule that is another by now, or further, is left alone
--     ticks      the times that get a job, in seconds
--     next_at    the first tick after these, in seconds
--     error      why there is none, to be shown until somebody changes the schedule
--
-- Another node's moves, and a change that somebody has not committed yet, are not waited for. Returns the names of the schedules that
-- were moved, the best rank of each queue that got jobs, the seconds until the next tick of all but those that were left alone, and how many
-- jobs were submitted, as [[queue, kind, jobs], ...].
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

-- Two histograms as one; either may lack buckets at its end.
CREATE OR REPLACE FUNCTION jobqueue.merged(one integer[], other integer[]) RETURNS integer[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(array_agg(coalesce(b.one, 0) + coalesce(b.other, 0) ORDER BY b.place), '{}')
      FROM unnest(one, other) WITH ORDINALITY AS b (one, other, place)
$$;

-- The slot that a moment is in, by its beginning.
CREATE OR REPLACE FUNCTION jobqueue.slot(step integer, moment timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE AS $$ SELECT date_bin(step * interval '1 second', moment, to_timestamp(0)) $$;

-- How many jobs there are in each state that waits or runs, and dead ones, as {"state": jobs}.
CREATE OR REPLACE FUNCTION jobqueue.depth() RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('pending', (SELECT count(*) FROM jobqueue.pending_jobs), 'scheduled', (SELECT count(*) FROM jobqueue.scheduled_jobs),
                              'blocked', (SELECT count(*) FROM jobqueue.blocked_jobs), 'inflight', (SELECT count(*) FROM jobqueue.inflight_jobs),
                              'dead', (SELECT count(*) FROM jobqueue.dead_jobs))
$$;

-- Add what a node has counted since it was asked last to the slots of the ten seconds that are just over, by this server's clock. Who is the
-- first of a slot takes along what was submitted in SQL, lets old slots go, and is asked to count the depths the next time.
--
-- sample: count the depths now, before any row is locked. It is asked for so seldom that all counting takes 1 % of the time at the most.
--
-- Returns the seconds until the slot of now is over, which is when to call again, and whether with sample.
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
        -- In this order, whoever does it: nobody waits in a circle.
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
               AND h.at <= slot);   -- not one of before the clock was set back
    END IF;
    next_in := extract(epoch FROM slot + interval '20 seconds' - clock_timestamp());
    RETURN NEXT;
END $$;

-- ------------------------------------------------------------------------------------------------------------------- maintenance

-- The partitions of succeeded_jobs or cancelled_jobs, without the default one, and from when until when each is.
CREATE OR REPLACE FUNCTION jobqueue.partitions(parent text) RETURNS TABLE (name text, since timestamptz, until timestamptz)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'   -- PostgreSQL shows the bounds as the session has it
AS $$
    SELECT c.relname::text, CASE WHEN b.bounds[1] = 'MINVALUE' THEN '-infinity' ELSE trim('''' FROM b.bounds[1])::timestamptz END,
           CASE WHEN b.bounds[2] = 'MAXVALUE' THEN 'infinity' ELSE trim('''' FROM b.bounds[2])::timestamptz END
      FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
     CROSS JOIN LATERAL (SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') AS bounds) AS b
     WHERE i.inhparent = ('jobqueue.' || quote_ident(parent))::regclass AND b.bounds IS NOT NULL
$$;

DROP FUNCTION IF EXISTS jobqueue.maintain(double precision, double precision);   -- an earlier version returns a number

-- Make the partitions of finished jobs for today and the next two days, and drop those whose time ended so many seconds ago. Safe to call
-- from many nodes; one at a time does it, the others return at once. What it cannot lock at once, since somebody reads there in a
-- transaction that stays open, is left for the next time: behind a lock that waits, completions would wait.
--
-- Returns how many partitions it dropped, and what failed, as sentences: the role may not own the tables, or a view may read a partition.
-- What failed does no harm to the rest. Jobs of a day without a partition are in the default one, and jobqueue.prune deletes the jobs of
-- what cannot be dropped.
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
    -- Keys are looked at now and then whatever happened, such as to rows that somebody deleted by hand.
    PERFORM jobqueue.check_keys(b.queue) FROM (SELECT DISTINCT blocked_jobs.queue FROM jobqueue.blocked_jobs) AS b;
    -- Buckets of keys that are full again, or have none any more; and the starts of the latter.
    DELETE FROM jobqueue.key_starts AS s WHERE NOT EXISTS (SELECT FROM jobqueue.queues AS q WHERE q.name = s.queue AND q.key_rate IS NOT NULL);
    DELETE FROM jobqueue.key_buckets AS b
     WHERE NOT EXISTS (SELECT FROM jobqueue.key_starts AS s WHERE s.queue = b.queue AND s.key = b.key)
       AND NOT EXISTS (SELECT FROM jobqueue.queues AS q
                        WHERE q.name = b.queue AND jobqueue.refilled(b.tokens, b.refilled_at, q.key_rate, coalesce(q.key_burst, greatest(1, q.key_rate)))
                              < coalesce(q.key_burst, greatest(1, q.key_rate)));
    -- The partitions last: what they lock is locked until the end of the transaction.
    FOR part IN
        SELECT p.parent, p.parent || to_char(d.day, '_YYYYMMDD') AS name, d.day AT TIME ZONE 'UTC' AS since,
               (d.day + interval '1 day') AT TIME ZONE 'UTC' AS until
          FROM unnest('{succeeded_jobs,cancelled_jobs}'::text[]) AS p (parent)
         CROSS JOIN (SELECT date_trunc('day', now() AT TIME ZONE 'UTC') + n * interval '1 day' AS day FROM generate_series(0, 2) AS n) AS d
    LOOP
        -- Partitions that an earlier version, or somebody, made may begin at any time. This one is for the first gap that they leave.
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
                NULL;  -- completions that came before the partition of their day: they stay where they are until retention takes them
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

-- Delete what retention does not find in a partition that it can drop, up to so many rows of a table: dead jobs, the oldest first, what
-- finished on a day without a partition, and what is in a partition that jobqueue.maintain has not dropped. Returns how many rows.
--
-- What fails for one table leaves the others alone. When there is nothing more to delete elsewhere, its error is raised.
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
        -- By the name of the parent, where the role may have privileges that it has not on the partition; by its bounds, it is the only one read.
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
            words := format('cannot delete old jobs of %s: %s', part.name, SQLERRM);
        END;
    END LOOP;
    IF total = 0 AND words IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = state, MESSAGE = words;
    END IF;
    RETURN total;
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

-- A first set of partitions, so that a database prepared with psql alone is complete. How long jobs are kept is for the nodes to say: applied
-- again, this drops nothing of the last thirty years.
SELECT jobqueue.maintain(1e9, 1e9);

COMMIT;
