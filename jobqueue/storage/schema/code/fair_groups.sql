-- Fair groups: turns and lines.

-- Assign turns to jobs of groups by start-time fair queueing (Goyal, Vin, Cheng 1996). The rank is the virtual time of
-- this algorithm. `jobs` is an array of objects with key, queue, group, weight and priority. Returns {key: {"turn",
-- "rank"}}, in seconds since 1970. The caller adds these values to the options of the jobs.
--
-- In virtual time, a group's next job starts when the group's last job ends, but not before the current virtual time of
-- its line (see below). The current virtual time is the turn of the job that is served now. While no job waits, it is
-- the current time. A job takes one millisecond of virtual time, divided by its weight. So groups with a backlog get
-- shares by weight, and the first job of a group that was quiet is served next. When a claim finds the line empty, all
-- groups start again from the current time. So a group that used workers which no other group wanted has no
-- disadvantage later.
--
-- Jobs with a priority have their own line, so a group's urgent job does not wait behind the group's backlog. In both
-- lines, the rank is turn - priority * aging_interval, so these ranks are comparable with the ranks of all other jobs.
-- An urgent job also takes virtual time in the common line, so priorities do not increase a group's share.
--
-- The function locks the rows of the groups until the end of the transaction. If the transaction belongs to a user, it
-- can stay open for a long time. So a call that does not get a lock within 200 ms continues from the group's last
-- visible turn.
CREATE OR REPLACE FUNCTION jobqueue_internal.take_turns(jobs jsonb) RETURNS jsonb
LANGUAGE plpgsql
SET lock_timeout = '200ms'   -- shorter than deadlock_timeout: if two transactions wait for each other's groups, neither is aborted
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = on    -- regardless of the caller's settings
SET enable_sort = on
AS $$
#variable_conflict use_column
DECLARE
    names text[] := ARRAY(SELECT DISTINCT jsonb_build_array(j.queue, j."group")::text
                            FROM jsonb_to_recordset(take_turns.jobs) AS j (queue text, "group" text) ORDER BY 1);
    present constant numeric := extract(epoch FROM clock_timestamp());   -- not now(): a transaction that began long ago must not get a better turn
    locked text[];
    turns jsonb;
BEGIN
    BEGIN
        INSERT INTO jobqueue_internal.fair_queues (queue) SELECT DISTINCT n::jsonb ->> 0 FROM unnest(names) AS n ORDER BY 1
            ON CONFLICT (queue) DO NOTHING;
        INSERT INTO jobqueue_internal.fair_groups (queue, name) SELECT n::jsonb ->> 0, n::jsonb ->> 1 FROM unnest(names) AS n ORDER BY n
            ON CONFLICT (queue, name) DO NOTHING;
        PERFORM FROM jobqueue_internal.fair_groups AS g WHERE (g.queue, g.name) IN (SELECT n::jsonb ->> 0, n::jsonb ->> 1 FROM unnest(names) AS n)
          ORDER BY g.queue, g.name FOR UPDATE;
    EXCEPTION WHEN lock_not_available THEN
        NULL;
    END;
    locked := ARRAY(
        SELECT jsonb_build_array(g.queue, g.name)::text FROM jobqueue_internal.fair_groups AS g
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
          LEFT JOIN jobqueue_internal.fair_queues AS f ON f.queue = q.queue
          LEFT JOIN jobqueue_internal.queues AS s ON s.name = q.queue
          LEFT JOIN LATERAL (SELECT (p.options -> 'turn')::numeric AS turn FROM jobqueue_internal.pending_jobs AS p
                              WHERE p.queue = q.queue AND (p.priority > 0) = false AND p.options ? 'turn'
                                AND (p.options -> 'turn')::numeric >= coalesce(f.common, 0)
                              ORDER BY (p.options -> 'turn')::numeric LIMIT 1) AS common ON true
          LEFT JOIN LATERAL (SELECT (p.options -> 'turn')::numeric AS turn FROM jobqueue_internal.pending_jobs AS p
                              WHERE p.queue = q.queue AND (p.priority > 0) = true AND p.options ? 'turn'
                                AND (p.options -> 'turn')::numeric >= coalesce(f.urgent, 0)
                              ORDER BY (p.options -> 'turn')::numeric LIMIT 1) AS urgent ON true
    ), groups AS MATERIALIZED (
        SELECT o.queue, o."group", l.aging, l.epoch, greatest(l.common, g.common, seen.turn) AS common,
               greatest(l.urgent, g.urgent) AS urgent
          FROM (SELECT DISTINCT given.queue, given."group", given.is_locked FROM given) AS o
          JOIN lines AS l ON l.queue = o.queue
          LEFT JOIN jobqueue_internal.fair_groups AS g ON g.queue = o.queue AND g.name = o."group" AND g.epoch = l.epoch
          LEFT JOIN LATERAL (SELECT (p.options -> 'turn')::numeric + 0.001 AS turn FROM jobqueue_internal.pending_jobs AS p
                              WHERE NOT o.is_locked AND p.queue = o.queue AND p.options ->> 'group' = o."group" AND p.options ? 'turn'
                              ORDER BY (p.options -> 'turn')::numeric DESC LIMIT 1) AS seen ON true
    ), placed AS MATERIALIZED (
        SELECT given.*, g.aging, g.epoch, g.common + sum(given.step) OVER line AS common,
               g.urgent + sum(CASE WHEN given.priority > 0 THEN given.step ELSE 0 END) OVER line AS urgent
          FROM given JOIN groups AS g ON g.queue = given.queue AND g."group" = given."group"
        WINDOW line AS (PARTITION BY given.queue, given."group" ORDER BY given.place)
    ), kept AS (
        UPDATE jobqueue_internal.fair_groups AS g SET common = p.common, urgent = p.urgent, epoch = p.epoch
          FROM (SELECT placed.queue, placed."group", placed.epoch, max(placed.common) AS common, max(placed.urgent) AS urgent
                  FROM placed WHERE placed.is_locked GROUP BY placed.queue, placed."group", placed.epoch) AS p
         WHERE g.queue = p.queue AND g.name = p."group" AND p.epoch IS NOT NULL
    )
    SELECT jsonb_object_agg(p.key, jsonb_build_object('turn', t.turn, 'rank', t.turn - p.priority * p.aging)) INTO turns
      FROM placed AS p
     CROSS JOIN LATERAL (SELECT round(CASE WHEN p.priority > 0 THEN p.urgent ELSE p.common END - p.step, 6) AS turn) AS t;
    RETURN turns;
END $$;

-- Return whether jobs without a group need turns too. They need turns if a job that became available at this time would
-- wait behind a backlog of groups, because its rank comes from the clock. In that case, all jobs without a group count
-- as one more group, whose name is empty, so that they do not starve.
CREATE OR REPLACE FUNCTION jobqueue_internal.lags(queue text, since timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM jobqueue_internal.fair_queues AS f WHERE f.queue = lags.queue AND least(f.common, f.urgent) < extract(epoch FROM since))
$$;

-- Store which turns the lines of a queue are serving, or that a claim found the lines empty (`emptied`). Does nothing
-- while another claim is storing these values.
CREATE OR REPLACE FUNCTION jobqueue_internal.serve_lines(queue text, common numeric, urgent numeric, emptied boolean) RETURNS void
LANGUAGE sql AS $$
    UPDATE jobqueue_internal.queues AS q SET fair = true
     WHERE q.name = (SELECT o.name FROM jobqueue_internal.queues AS o WHERE o.name = serve_lines.queue AND NOT o.fair FOR UPDATE SKIP LOCKED);
    UPDATE jobqueue_internal.fair_queues AS f
       SET common = CASE WHEN NOT emptied THEN greatest(f.common, serve_lines.common) END,
           urgent = CASE WHEN NOT emptied THEN greatest(f.urgent, serve_lines.urgent) END,
           epoch = f.epoch + emptied::integer
     WHERE f.queue = (SELECT o.queue FROM jobqueue_internal.fair_queues AS o
                       WHERE o.queue = serve_lines.queue
                         AND CASE WHEN emptied THEN num_nonnulls(o.common, o.urgent, serve_lines.common, serve_lines.urgent) > 0
                                  ELSE coalesce(serve_lines.common > o.common, serve_lines.common IS NOT NULL)
                                    OR coalesce(serve_lines.urgent > o.urgent, serve_lines.urgent IS NOT NULL) END
                         FOR UPDATE SKIP LOCKED)
$$;
