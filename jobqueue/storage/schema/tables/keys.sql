-- Concurrency keys, unique keys, and idempotency keys.

-- Concurrency keys to check: one row for each event that may have made room for a key or added a job to it. No function
-- updates a row, and only jobqueue_internal.admit deletes rows, so transactions do not wait for each other here.
CREATE TABLE IF NOT EXISTS jobqueue_internal.key_checks (
    queue text        NOT NULL,
    key   text        NOT NULL,
    at    timestamptz NOT NULL DEFAULT now(),
    timed boolean              -- true: check at the time `at`, not earlier. NULL: check at once, regardless of the clock
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

DO $$ BEGIN
    IF to_regclass('jobqueue_internal.key_checks_next') IS NULL THEN
        CREATE INDEX key_checks_next ON jobqueue_internal.key_checks (timed, at);
    END IF;
END $$;

-- Starts of jobs under a key_rate that have not been deducted from the key's bucket yet.
CREATE TABLE IF NOT EXISTS jobqueue_internal.key_starts (
    queue text        NOT NULL,
    key   text        NOT NULL,
    at    timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

DO $$ BEGIN
    IF to_regclass('jobqueue_internal.key_starts_key') IS NULL THEN
        CREATE INDEX key_starts_key ON jobqueue_internal.key_starts (queue, key, at);
    END IF;
END $$;

-- The token bucket of each key under a key_rate. A key without a row has a full bucket.
CREATE TABLE IF NOT EXISTS jobqueue_internal.key_buckets (
    queue       text             NOT NULL,
    key         text             NOT NULL,
    tokens      double precision NOT NULL,   -- number of tokens at the time refilled_at
    refilled_at timestamptz      NOT NULL,
    check_at    timestamptz,                 -- time of the latest check that waits for the next token
    PRIMARY KEY (queue, key)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);


-- The job of each key. In the scope 'idempotency', this is the job of the first submission with the key. It has the key
-- until expires_at, even after the job has ended. In the scope 'unique', a job has the key until it has finished.
-- Nothing is written when that job ends. Instead, the next submission with the key looks up the job, and takes over the
-- key if the job has ended. For unique keys, expires_at is the time to check whether the row is still needed.
CREATE TABLE IF NOT EXISTS jobqueue_internal.keys (
    scope       text        NOT NULL CHECK (scope IN ('idempotency', 'unique')),
    key         text        NOT NULL,
    job_id      uuid        NOT NULL,
    fingerprint text,                 -- hash of the submission, for an idempotency key
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (scope, key),
    CONSTRAINT key_length CHECK (length(key) BETWEEN 1 AND 200)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

DO $$ BEGIN
    IF to_regclass('jobqueue_internal.keys_expires_at') IS NULL THEN
        CREATE INDEX keys_expires_at ON jobqueue_internal.keys (expires_at);
    END IF;
END $$;
