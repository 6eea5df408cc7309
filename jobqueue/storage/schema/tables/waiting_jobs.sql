-- Pending, blocked, and scheduled jobs.

-- rank = available_since - priority * aging_interval, and the smallest rank runs first. Waiting one aging_interval is
-- worth one point of priority. All jobs age at the same rate, so their order never changes. So an index on rank works
-- as a priority queue with aging.
CREATE TABLE IF NOT EXISTS jobqueue_internal.pending_jobs (
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
    options         jsonb,               -- options of the submission that are not columns, see jobqueue_internal.with_options; NULL: none
    saved           jsonb,               -- progress and checkpoint that the handler stored; NULL: none
    admitted        boolean,             -- true if the job has a concurrency key, and jobqueue_internal.admit admitted it; NULL if it has no key
    CONSTRAINT kind_length CHECK (length(kind) BETWEEN 1 AND 200),
    CONSTRAINT queue_length CHECK (length(queue) BETWEEN 1 AND 200),
    CONSTRAINT priority_range CHECK (priority BETWEEN 0 AND 1000000),
    CONSTRAINT max_retries_range CHECK (max_retries BETWEEN 0 AND 1000),
    CONSTRAINT timeout_range CHECK (timeout > 0 AND timeout <= 604800),
    CONSTRAINT times_finite CHECK (isfinite(rank) AND isfinite(created_at) AND isfinite(available_since))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 20000);

-- CREATE INDEX IF NOT EXISTS waits for the writers of the table even if the index exists. So look for the index first,
-- here and for all other tables.
DO $$ BEGIN
    IF to_regclass('jobqueue_internal.pending_jobs_claim') IS NULL THEN
        CREATE INDEX pending_jobs_claim ON jobqueue_internal.pending_jobs (queue, rank);
    END IF;
    IF to_regclass('jobqueue_internal.pending_jobs_turn') IS NULL THEN
        CREATE INDEX pending_jobs_turn ON jobqueue_internal.pending_jobs (queue, (priority > 0), ((options -> 'turn')::numeric))
         WHERE options ? 'turn';
    END IF;
    IF to_regclass('jobqueue_internal.pending_jobs_group') IS NULL THEN
        CREATE INDEX pending_jobs_group ON jobqueue_internal.pending_jobs (queue, (options ->> 'group'), ((options -> 'turn')::numeric))
         WHERE options ? 'turn';
    END IF;
    -- This index covers only jobs with an expiry time, and rejects an expiry time that is not a number. See
    -- jobqueue_internal.expire.
    IF to_regclass('jobqueue_internal.pending_jobs_expire') IS NULL THEN
        CREATE INDEX pending_jobs_expire ON jobqueue_internal.pending_jobs (((options -> 'expires_at')::double precision))
         WHERE options ? 'expires_at';
    END IF;
    IF to_regclass('jobqueue_internal.pending_jobs_key') IS NULL THEN
        CREATE INDEX pending_jobs_key ON jobqueue_internal.pending_jobs (queue, (options ->> 'concurrency_key')) WHERE admitted;
    END IF;
END $$;

-- Jobs that wait for room under their concurrency key. The columns must stay the same as in pending_jobs.
CREATE TABLE IF NOT EXISTS jobqueue_internal.blocked_jobs (
    LIKE jobqueue_internal.pending_jobs INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (id),
    CONSTRAINT concurrency_key_length CHECK (length(options ->> 'concurrency_key') BETWEEN 1 AND 200)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

DO $$ BEGIN
    IF to_regclass('jobqueue_internal.blocked_jobs_key') IS NULL THEN
        CREATE INDEX blocked_jobs_key ON jobqueue_internal.blocked_jobs (queue, (options ->> 'concurrency_key'), rank);
    END IF;
    IF to_regclass('jobqueue_internal.blocked_jobs_expire') IS NULL THEN
        CREATE INDEX blocked_jobs_expire ON jobqueue_internal.blocked_jobs (((options -> 'expires_at')::double precision))
         WHERE options ? 'expires_at';
    END IF;
END $$;


CREATE TABLE IF NOT EXISTS jobqueue_internal.scheduled_jobs (
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

DO $$ BEGIN
    IF to_regclass('jobqueue_internal.scheduled_jobs_promote') IS NULL THEN
        CREATE INDEX scheduled_jobs_promote ON jobqueue_internal.scheduled_jobs (run_at);
    END IF;
    IF to_regclass('jobqueue_internal.scheduled_jobs_expire') IS NULL THEN
        CREATE INDEX scheduled_jobs_expire ON jobqueue_internal.scheduled_jobs (((options -> 'expires_at')::double precision))
         WHERE options ? 'expires_at';
    END IF;
END $$;
