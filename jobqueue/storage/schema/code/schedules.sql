-- Cron schedules.

-- Notify all nodes that schedules have changed.
CREATE OR REPLACE FUNCTION jobqueue_internal.tell_of_schedules() RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue_schedules', '') $$;

-- Return the job that a schedule submits for a tick, in the form that submit_batch takes. tick: NULL for a job in
-- addition to the ticks.
CREATE OR REPLACE FUNCTION jobqueue_internal.job_of(schedule jobqueue_internal.schedules, tick timestamptz) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object(
        'kind', schedule.kind, 'payload', schedule.payload, 'queue', schedule.queue, 'priority', schedule.priority,
        'max_retries', schedule.max_retries, 'timeout', schedule.timeout,
        'options', jsonb_strip_nulls(jsonb_build_object(
            'schedule', schedule.name, 'scheduled_for', extract(epoch FROM tick)::double precision)))
$$;

-- Create or change a schedule:
--     SELECT jobqueue.schedule('nightly', '0 3 * * *', 'Europe/Berlin', kind => 'report');
-- After the commit, a node computes the next tick. If the expression and the time zone are unchanged, the schedule
-- keeps its next tick. The column "error" reports an expression or time zone that cannot be parsed. Returns whether the
-- schedule is new.
CREATE OR REPLACE FUNCTION jobqueue.schedule(
    name        text,
    cron        text,                              -- five fields, or six fields that begin with the seconds
    timezone    text             DEFAULT 'UTC',    -- an IANA name
    missed      text             DEFAULT 'one',    -- or 'skip', or 'all'
    kind        text             DEFAULT NULL,     -- default: the name of the schedule
    payload     jsonb            DEFAULT '{}',
    queue       text             DEFAULT 'default',
    priority    integer          DEFAULT 0,
    max_retries integer          DEFAULT NULL,
    timeout     double precision DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    made boolean;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object(
        'name', schedule.name, 'cron', schedule.cron, 'timezone', schedule.timezone, 'missed', schedule.missed, 'payload', schedule.payload,
        'queue', schedule.queue, 'priority', schedule.priority, 'max_retries', schedule.max_retries, 'timeout', schedule.timeout)
        || CASE WHEN schedule.kind IS NULL THEN '{}' ELSE jsonb_build_object('kind', schedule.kind) END),
        'a schedule', '{name,cron,timezone,missed,kind,payload,queue,priority,max_retries,timeout}');
    INSERT INTO jobqueue_internal.schedules AS s (name, cron, timezone, missed, kind, payload, queue, priority, max_retries, timeout)
    VALUES (schedule.name, schedule.cron, schedule.timezone, schedule.missed, coalesce(schedule.kind, schedule.name),
            coalesce(nullif(schedule.payload, 'null'), '{}'),
            schedule.queue, schedule.priority, schedule.max_retries, schedule.timeout)
        ON CONFLICT (name) DO UPDATE
       SET cron = excluded.cron, timezone = excluded.timezone, missed = excluded.missed, kind = excluded.kind,
           payload = excluded.payload, queue = excluded.queue, priority = excluded.priority, max_retries = excluded.max_retries,
           timeout = excluded.timeout, error = NULL, updated_at = now(),
           next_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.next_at END
    RETURNING s.xmax = 0 INTO made;   -- true for an inserted row
    PERFORM jobqueue_internal.tell_of_schedules();
    RETURN made;
END $$;

-- Delete a schedule. Jobs that it has submitted stay. Returns false if no schedule has that name.
CREATE OR REPLACE FUNCTION jobqueue.unschedule(name text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH gone AS (DELETE FROM jobqueue_internal.schedules AS s WHERE s.name = unschedule.name RETURNING s.name) SELECT EXISTS (SELECT FROM gone)
$$;

-- Pause a schedule, or resume it. A resumed schedule continues with the first tick after now, without the ticks of the
-- pause. Returns false if no schedule has that name.
CREATE OR REPLACE FUNCTION jobqueue.pause_schedule(name text, paused boolean DEFAULT true) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known boolean;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('paused', pause_schedule.paused)), 'a schedule', '{paused}');
    UPDATE jobqueue_internal.schedules AS s
       SET paused = pause_schedule.paused,
           next_at = CASE WHEN NOT pause_schedule.paused THEN s.next_at END,
           error = CASE WHEN NOT pause_schedule.paused THEN s.error END
     WHERE s.name = pause_schedule.name;
    known := FOUND;
    PERFORM jobqueue_internal.tell_of_schedules();
    RETURN known;
END $$;

-- Submit a schedule's job now, in addition to its ticks, even if the schedule is paused. Returns the job's id; NULL if
-- no schedule has that name.
CREATE OR REPLACE FUNCTION jobqueue.trigger_schedule(name text) RETURNS uuid
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 1
AS $$
    SELECT b.ids[1]
      FROM jobqueue_internal.schedules AS s
     CROSS JOIN LATERAL jobqueue_internal.submit_batch(jsonb_build_array(jobqueue_internal.job_of(s, NULL)), uncounted => true) AS b
     WHERE s.name = trigger_schedule.name
$$;

-- Make the stored schedules of one source equal to its declared schedules: create new ones, update changed ones, and
-- delete the others. If a schedule of another source, or one that was created over HTTP or in SQL, has a declared name,
-- change nothing. Returns such names and their owners.
CREATE OR REPLACE FUNCTION jobqueue_internal.reconcile_schedules(source text, schedules jsonb) RETURNS TABLE (name text, owner text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    -- Nodes that start together do this one after the other.
    PERFORM pg_advisory_xact_lock(7669743430829532519);
    RETURN QUERY
    SELECT s.name, s.source FROM jobqueue_internal.schedules AS s
     WHERE s.source IS DISTINCT FROM reconcile_schedules.source
       AND s.name IN (SELECT d ->> 'name' FROM jsonb_array_elements(reconcile_schedules.schedules) AS d)
     ORDER BY s.name;
    IF FOUND THEN
        RETURN;
    END IF;
    DELETE FROM jobqueue_internal.schedules AS s
     WHERE s.source = reconcile_schedules.source
       AND s.name NOT IN (SELECT d ->> 'name' FROM jsonb_array_elements(reconcile_schedules.schedules) AS d);
    INSERT INTO jobqueue_internal.schedules AS s (name, source, cron, timezone, missed, kind, payload, queue, priority, max_retries, timeout)
    SELECT d.name, reconcile_schedules.source, d.cron, d.timezone, d.missed, d.kind, d.payload, d.queue, d.priority, d.max_retries,
           d.timeout
      FROM jsonb_to_recordset(reconcile_schedules.schedules) AS d (name text, cron text, timezone text, missed text, kind text,
               payload jsonb, queue text, priority integer, max_retries integer, timeout double precision)
     -- Skip schedules that are correct already: an open transaction may lock a row for an hour, and this node must be
     -- able to start.
     WHERE NOT EXISTS (SELECT FROM jobqueue_internal.schedules AS s
                        WHERE (s.name, s.cron, s.timezone, s.missed, s.kind, s.payload, s.queue, s.priority, s.max_retries, s.timeout)
                              IS NOT DISTINCT FROM
                              (d.name, d.cron, d.timezone, d.missed, d.kind, d.payload, d.queue, d.priority, d.max_retries, d.timeout))
     ORDER BY d.name
        ON CONFLICT (name) DO UPDATE
       SET cron = excluded.cron, timezone = excluded.timezone, missed = excluded.missed, kind = excluded.kind,
           payload = excluded.payload, queue = excluded.queue, priority = excluded.priority, max_retries = excluded.max_retries,
           timeout = excluded.timeout, error = NULL, updated_at = now(),
           next_at = CASE WHEN (s.cron, s.timezone) = (excluded.cron, excluded.timezone) THEN s.next_at END
     WHERE s.source = excluded.source;   -- if a user's SQL has just created this name, that row stays, and the next start reports it
    PERFORM jobqueue_internal.tell_of_schedules();
END $$;

-- Return up to max_schedules schedules that have due ticks, or whose first tick is not computed yet, as an array of
-- [name, cron, timezone, missed, next_at]. Also return the current time, from which nodes compute ticks, and the
-- seconds until the next tick of the other schedules (NULL: none).
CREATE OR REPLACE FUNCTION jobqueue_internal.due_schedules(max_schedules integer DEFAULT 500)
RETURNS TABLE (at double precision, due jsonb, next_in double precision)
LANGUAGE sql STABLE AS $$
    SELECT extract(epoch FROM now())::double precision,
           (SELECT coalesce(jsonb_agg(jsonb_build_array(d.name, d.cron, d.timezone, d.missed,
                                                        extract(epoch FROM d.next_at)::double precision)), '[]')
              FROM (SELECT s.* FROM jobqueue_internal.schedules AS s
                     WHERE NOT s.paused AND s.error IS NULL AND (s.next_at IS NULL OR s.next_at <= now())
                     ORDER BY s.next_at NULLS FIRST, s.name LIMIT max_schedules) AS d),
           (SELECT extract(epoch FROM min(s.next_at) - clock_timestamp())::double precision FROM jobqueue_internal.schedules AS s
             WHERE NOT s.paused AND s.error IS NULL AND s.next_at > now())
$$;

-- Move schedules to their next ticks, and submit the jobs of the due ticks in the same transaction. `moves` is an array
-- of objects:
--
-- * name, cron, timezone, missed, expected: the schedule as the node read it; if it has changed since, it is skipped
-- * ticks: the times that get a job, in seconds
-- * next_at: the first tick after these ticks, in seconds
-- * error: the reason why the schedule has no next tick; it is shown until the schedule is changed
--
-- It does not wait for moves by other nodes, nor for uncommitted changes. Returns the names of the moved schedules and
-- the best rank of each queue that got jobs. Also returns the seconds until the next tick of any schedule, except for
-- the skipped ones, and the numbers of submitted jobs, as [[queue, kind, jobs], ...].
CREATE OR REPLACE FUNCTION jobqueue_internal.move_schedules(moves jsonb)
RETURNS TABLE (moved text[], best jsonb, next_in double precision, submitted jsonb)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    jobs jsonb;
BEGIN
    moved := ARRAY(
        SELECT s.name FROM jobqueue_internal.schedules AS s
          JOIN jsonb_to_recordset(moves) AS m (name text, cron text, timezone text, missed text, expected double precision)
            ON (m.name, m.cron, m.timezone, m.missed) = (s.name, s.cron, s.timezone, s.missed)
         WHERE NOT s.paused AND s.error IS NULL AND s.next_at IS NOT DISTINCT FROM to_timestamp(m.expected)
         ORDER BY s.name FOR UPDATE OF s SKIP LOCKED);
    UPDATE jobqueue_internal.schedules AS s
       SET next_at = to_timestamp(m.next_at), error = m.error,
           last_at = coalesce(to_timestamp((m.ticks ->> -1)::double precision), s.last_at)
      FROM jsonb_to_recordset(moves) AS m (name text, next_at double precision, ticks jsonb, error text)
     WHERE s.name = m.name AND s.name = ANY (moved);
    jobs := (SELECT jsonb_agg(jobqueue_internal.job_of(s, to_timestamp(t.tick::double precision)) ORDER BY t.tick::double precision, s.name)
               FROM jsonb_to_recordset(moves) AS m (name text, ticks jsonb)
               JOIN jobqueue_internal.schedules AS s ON s.name = m.name AND s.name = ANY (moved)
              CROSS JOIN LATERAL jsonb_array_elements_text(m.ticks) AS t (tick));
    best := '{}';
    IF jobs IS NOT NULL THEN
        best := (SELECT b.best FROM jobqueue_internal.submit_batch(jobs) AS b);
    END IF;
    submitted := (SELECT coalesce(jsonb_agg(jsonb_build_array(c.queue, c.kind, c.jobs)), '[]')
                    FROM (SELECT j ->> 'queue' AS queue, j ->> 'kind' AS kind, count(*) AS jobs FROM jsonb_array_elements(jobs) AS j
                           GROUP BY 1, 2) AS c);
    next_in := (SELECT extract(epoch FROM min(s.next_at) - clock_timestamp()) FROM jobqueue_internal.schedules AS s
                 WHERE NOT s.paused AND s.error IS NULL
                   AND (s.name = ANY (moved) OR s.name NOT IN (SELECT m ->> 'name' FROM jsonb_array_elements(moves) AS m)));
    RETURN NEXT;
END $$;
