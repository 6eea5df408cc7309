-- Nodes and the history of their counts.

-- One row per running node. A node's lease covers all of its claimed jobs, so a heartbeat is one write, however many
-- jobs run. The pages keep free space, and lease_until has no index, so each renewal is a HOT update.
CREATE TABLE IF NOT EXISTS jobqueue_internal.nodes (
    id           uuid        PRIMARY KEY,
    host         text        NOT NULL,
    pid          integer     NOT NULL,
    process      text        NOT NULL,   -- identifies the machine's boot and the process, so a restarted node recognizes its dead predecessor
    version      text        NOT NULL,
    queues       jsonb       NOT NULL,   -- {"queue": concurrency}
    started_at   timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    lease_until  timestamptz NOT NULL,
    activity     jsonb,                  -- {"queue": [succeeded jobs, failed attempts]} per second over the last minute; NULL: none
    schema_version integer   NOT NULL DEFAULT 1   -- the version of the schema that the node was written for
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);


-- Counts of all nodes together, in slots of 10, 60 and 300 seconds by the database's clock. These slots are kept for 1
-- hour, 6 hours and 1 day, so the table has about a thousand rows. The pages keep free space, so each node's update is
-- a HOT update.
CREATE TABLE IF NOT EXISTS jobqueue_internal.history (
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

-- Numbers of jobs that were submitted in SQL and are not in the history yet. No node counts these jobs. No function
-- updates a row, and only jobqueue_internal.record deletes rows, so an open transaction blocks nobody.
CREATE TABLE IF NOT EXISTS jobqueue_internal.sql_submissions (
    jobs integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
