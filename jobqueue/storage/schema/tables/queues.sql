-- Queues, their limits and lines, and schedules.

-- Only queues that were configured, or that a node has workers for, have a row. A queue without a row has the default
-- settings.
CREATE TABLE IF NOT EXISTS jobqueue_internal.queues (
    name           text        PRIMARY KEY,
    paused         boolean     NOT NULL DEFAULT false,
    fair           boolean     NOT NULL DEFAULT false,   -- true if a claim has taken jobs of groups from the queue, see jobqueue_internal.serve_lines
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
CREATE TABLE IF NOT EXISTS jobqueue_internal.queue_limits (
    queue         text             PRIMARY KEY,
    tokens        double precision,        -- number of tokens at the time refilled_at; NULL: the bucket is full
    refilled_at   timestamptz,
    counted_since timestamptz,             -- time of the first claim under max_running; NULL: none yet
    all_counted   boolean          NOT NULL DEFAULT false   -- true if every running job is marked as limited, so that an index can count the running jobs
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);


-- The lines of fair groups, see jobqueue_internal.take_turns. A queue has two lines: `common`, and `urgent` for jobs with a
-- priority. The columns contain the turns that the lines are serving, in seconds since 1970. When a claim finds the
-- lines empty, it sets both to NULL and starts a new epoch. Only claims update the rows, so a claim never waits for a
-- submitter's open transaction.
CREATE TABLE IF NOT EXISTS jobqueue_internal.fair_queues (
    queue  text    PRIMARY KEY,
    common numeric,
    urgent numeric,
    epoch  bigint  NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

-- The earliest turn for the next job of a group, in each line.
CREATE TABLE IF NOT EXISTS jobqueue_internal.fair_groups (
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
CREATE TABLE IF NOT EXISTS jobqueue_internal.schedules (
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
