-- Counts over time.

-- Add two histograms. If one has fewer buckets, the missing buckets at its end count as 0.
CREATE OR REPLACE FUNCTION jobqueue_internal.merged(one integer[], other integer[]) RETURNS integer[]
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(array_agg(coalesce(b.one, 0) + coalesce(b.other, 0) ORDER BY b.place), '{}')
      FROM unnest(one, other) WITH ORDINALITY AS b (one, other, place)
$$;

-- Return the start of the slot that contains a time.
CREATE OR REPLACE FUNCTION jobqueue_internal.slot(step integer, moment timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE AS $$ SELECT date_bin(step * interval '1 second', moment, to_timestamp(0)) $$;

-- Count the jobs in each waiting state, the running jobs, and the dead jobs. Returns {"state": number of jobs}.
CREATE OR REPLACE FUNCTION jobqueue_internal.depth() RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('pending', (SELECT count(*) FROM jobqueue_internal.pending_jobs), 'scheduled', (SELECT count(*) FROM jobqueue_internal.scheduled_jobs),
                              'blocked', (SELECT count(*) FROM jobqueue_internal.blocked_jobs), 'inflight', (SELECT count(*) FROM jobqueue_internal.inflight_jobs),
                              'dead', (SELECT count(*) FROM jobqueue_internal.dead_jobs))
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
CREATE OR REPLACE FUNCTION jobqueue_internal.record(submitted bigint, completed bigint, failed bigint, dead bigint, waits integer[], runs integer[],
                                           sample boolean DEFAULT false)
RETURNS TABLE (next_in double precision, next_sample boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    slot constant timestamptz := jobqueue_internal.slot(10, clock_timestamp() - interval '10 seconds');
    began constant timestamptz := clock_timestamp();
    depth jsonb;
    counted_in double precision;
BEGIN
    IF sample THEN
        depth := jobqueue_internal.depth();
        counted_in := extract(epoch FROM clock_timestamp() - began);
    END IF;
    WITH written AS (
        -- The order of the rows is always the same, so that calls cannot deadlock.
        INSERT INTO jobqueue_internal.history AS h (step, at, submitted, completed, failed, dead, waits, runs, depth, counted_in)
        SELECT s.step, jobqueue_internal.slot(s.step, slot), record.submitted, record.completed, record.failed, record.dead, record.waits, record.runs,
               depth, counted_in
          FROM unnest('{10,60,300}'::integer[]) AS s (step)
            ON CONFLICT (step, at) DO UPDATE
           SET submitted = h.submitted + excluded.submitted, completed = h.completed + excluded.completed,
               failed = h.failed + excluded.failed, dead = h.dead + excluded.dead, waits = jobqueue_internal.merged(h.waits, excluded.waits),
               runs = jobqueue_internal.merged(h.runs, excluded.runs), depth = coalesce(excluded.depth, h.depth),
               counted_in = coalesce(excluded.counted_in, h.counted_in)
        RETURNING h.step, h.xmax = 0 AS made
    )
    SELECT written.made INTO next_sample FROM written WHERE written.step = 10;
    IF next_sample THEN
        WITH gone AS (
            DELETE FROM jobqueue_internal.sql_submissions RETURNING jobs
        ), noted AS (
            SELECT sum(gone.jobs) AS jobs FROM gone
        )
        UPDATE jobqueue_internal.history AS h SET submitted = h.submitted + noted.jobs
          FROM noted, unnest('{10,60,300}'::integer[]) AS s (step)
         WHERE noted.jobs > 0 AND h.step = s.step AND h.at = jobqueue_internal.slot(s.step, slot);
        DELETE FROM jobqueue_internal.history AS h
         WHERE h.at < slot - CASE h.step WHEN 10 THEN interval '1 hour' WHEN 60 THEN interval '6 hours' ELSE interval '1 day' END;
        next_sample := NOT EXISTS (
            SELECT FROM jobqueue_internal.history AS h
             WHERE h.step = 10 AND h.at + interval '10 seconds' + h.counted_in * interval '100 seconds' > slot + interval '20 seconds'
               AND h.at <= slot);   -- ignore slots from before the clock was set back
    END IF;
    next_in := extract(epoch FROM slot + interval '20 seconds' - clock_timestamp());
    RETURN NEXT;
END $$;
