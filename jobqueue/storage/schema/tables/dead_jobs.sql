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

-- Each of these indexes provides an order for paging. With it, a filter that selects few jobs among many finds them
-- quickly.
CREATE INDEX IF NOT EXISTS dead_jobs_died_at ON jobqueue_internal.dead_jobs (died_at, id);
CREATE INDEX IF NOT EXISTS dead_jobs_queue ON jobqueue_internal.dead_jobs (queue, died_at, id);
CREATE INDEX IF NOT EXISTS dead_jobs_kind ON jobqueue_internal.dead_jobs (kind, died_at, id);
-- The next index also contains every column that jobqueue.dead_causes reads.
CREATE INDEX IF NOT EXISTS dead_jobs_cause ON jobqueue_internal.dead_jobs (cause, kind, queue, died_at, id);
