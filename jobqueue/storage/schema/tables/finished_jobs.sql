-- Succeeded and cancelled jobs.

-- Finished jobs. They are partitioned by state, because each state has its own retention period. They are also
-- partitioned by day, so that retention can drop a partition instead of deleting a million rows.
CREATE TABLE IF NOT EXISTS jobqueue_internal.finished_jobs (
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

DO $$ BEGIN
    IF to_regclass('jobqueue_internal.finished_jobs_id') IS NULL THEN
        CREATE INDEX finished_jobs_id ON jobqueue_internal.finished_jobs (id);
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS jobqueue_internal.succeeded_jobs PARTITION OF jobqueue_internal.finished_jobs FOR VALUES IN ('succeeded')
    PARTITION BY RANGE (finished_at);
CREATE TABLE IF NOT EXISTS jobqueue_internal.cancelled_jobs PARTITION OF jobqueue_internal.finished_jobs FOR VALUES IN ('cancelled')
    PARTITION BY RANGE (finished_at);

-- The default partitions store jobs that finish on a day without a partition. Maintenance can be late, but a completion
-- must not fail for that reason.
CREATE TABLE IF NOT EXISTS jobqueue_internal.succeeded_jobs_default PARTITION OF jobqueue_internal.succeeded_jobs DEFAULT;
CREATE TABLE IF NOT EXISTS jobqueue_internal.cancelled_jobs_default PARTITION OF jobqueue_internal.cancelled_jobs DEFAULT;
