-- Dead jobs.

CREATE TABLE IF NOT EXISTS jobqueue_internal.dead_jobs (
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
    cause           text             GENERATED ALWAYS AS (jobqueue_internal.cause_of(errors, reason)) STORED
);

DO $$ BEGIN
    -- Each of these indexes provides an order for paging. With it, a filter that selects few jobs among many finds them
    -- quickly.
    IF to_regclass('jobqueue_internal.dead_jobs_died_at') IS NULL THEN
        CREATE INDEX dead_jobs_died_at ON jobqueue_internal.dead_jobs (died_at, id);
    END IF;
    IF to_regclass('jobqueue_internal.dead_jobs_queue') IS NULL THEN
        CREATE INDEX dead_jobs_queue ON jobqueue_internal.dead_jobs (queue, died_at, id);
    END IF;
    IF to_regclass('jobqueue_internal.dead_jobs_kind') IS NULL THEN
        CREATE INDEX dead_jobs_kind ON jobqueue_internal.dead_jobs (kind, died_at, id);
    END IF;
    -- The next index also contains every column that jobqueue.dead_causes reads.
    IF to_regclass('jobqueue_internal.dead_jobs_cause') IS NULL THEN
        CREATE INDEX dead_jobs_cause ON jobqueue_internal.dead_jobs (cause, kind, queue, died_at, id);
    END IF;
END $$;
