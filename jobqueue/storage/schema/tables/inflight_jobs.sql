-- Running jobs.

-- node_id has no index, because the table holds only claimed jobs, and few statements search by node.
CREATE TABLE IF NOT EXISTS jobqueue_internal.inflight_jobs (
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
    blame           jsonb                -- {"error", "delay"} of a job that blocked its node, see jobqueue_internal.surrender; NULL: the job did not block it
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

DO $$ BEGIN
    -- With this index, a heartbeat finds the jobs that its node must cancel. The index is almost always empty.
    IF to_regclass('jobqueue_internal.inflight_jobs_cancel') IS NULL THEN
        CREATE INDEX inflight_jobs_cancel ON jobqueue_internal.inflight_jobs (node_id) WHERE cancel_requested_at IS NOT NULL;
    END IF;
    IF to_regclass('jobqueue_internal.inflight_jobs_limited') IS NULL THEN
        CREATE INDEX inflight_jobs_limited ON jobqueue_internal.inflight_jobs (queue, (options ->> 'concurrency_key')) WHERE limited;
    END IF;
END $$;

-- Requests to cancel running jobs. The next heartbeat of any node marks the jobs and deletes the requests. All other
-- functions only insert rows. A function that makes a running job pending or scheduled again reads both the marks and
-- these rows. So it does not have to wait for a heartbeat, or for a lock that a heartbeat holds.
CREATE TABLE IF NOT EXISTS jobqueue_internal.cancel_requests (
    job_id uuid NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);
