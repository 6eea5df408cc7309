-- Pause and configure queues.

-- Pause a queue on all nodes, or resume it. Running jobs continue; nodes release the jobs that they have claimed but
-- not started.
CREATE OR REPLACE FUNCTION jobqueue.pause(queue text, paused boolean DEFAULT true) RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('queue', pause.queue, 'paused', pause.paused)), 'a queue', '{queue,paused}');
    INSERT INTO jobqueue_internal.queues (name, paused) VALUES (pause.queue, pause.paused)
        ON CONFLICT (name) DO UPDATE SET paused = excluded.paused;
    SELECT CASE WHEN pause.paused THEN pg_notify('jobqueue_paused', pause.queue) ELSE jobqueue_internal.wake(pause.queue, '-infinity') END
$$;

-- Configure a queue on all nodes: its aging interval, for new jobs, and its limits. NULL leaves a setting unchanged.
-- `clear` names settings to reset to their defaults:
--     SELECT jobqueue.configure('mail', rate => 5, clear => '{max_running}');
CREATE OR REPLACE FUNCTION jobqueue.configure(
    queue           text,
    aging_interval  interval         DEFAULT NULL,   -- the waiting time that is worth one point of priority
    max_running     integer          DEFAULT NULL,   -- jobs that run at the same time
    rate            double precision DEFAULT NULL,   -- starts per second
    burst           integer          DEFAULT NULL,   -- starts that are allowed at once after a time without starts
    key_max_running integer          DEFAULT NULL,   -- the same three limits, for each concurrency key
    key_rate        double precision DEFAULT NULL,
    key_burst       integer          DEFAULT NULL,
    clear           text[]           DEFAULT '{}'
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    settings constant text[] := '{aging_interval,max_running,rate,burst,key_max_running,key_rate,key_burst}';
    clear constant text[] := coalesce(configure.clear, '{}');
    old jobqueue_internal.queues;
    new jobqueue_internal.queues;
BEGIN
    PERFORM jobqueue_internal.refuse_unfit(jsonb_build_array(jsonb_build_object('queue', configure.queue) || jsonb_strip_nulls(jsonb_build_object(
        'aging_interval', extract(epoch FROM configure.aging_interval), 'max_running', configure.max_running, 'rate', configure.rate,
        'burst', configure.burst, 'key_max_running', configure.key_max_running, 'key_rate', configure.key_rate,
        'key_burst', configure.key_burst))), 'a queue', settings || 'queue'::text);
    IF NOT clear <@ settings THEN   -- also rejects NULL as an element
        RAISE check_violation USING COLUMN = 'clear', MESSAGE = 'clear must only name settings of a queue: ' || array_to_string(settings, ', ');
    END IF;
    INSERT INTO jobqueue_internal.queues (name) VALUES (configure.queue) ON CONFLICT (name) DO NOTHING;
    SELECT q.* INTO STRICT old FROM jobqueue_internal.queues AS q WHERE q.name = configure.queue FOR UPDATE;
    UPDATE jobqueue_internal.queues AS q SET
        aging_interval = coalesce(configure.aging_interval, CASE WHEN 'aging_interval' = ANY (clear) THEN '1 second' ELSE q.aging_interval END),
        max_running = coalesce(configure.max_running, CASE WHEN 'max_running' <> ALL (clear) THEN q.max_running END),
        rate = coalesce(configure.rate, CASE WHEN 'rate' <> ALL (clear) THEN q.rate END),
        burst = coalesce(configure.burst, CASE WHEN 'burst' <> ALL (clear) THEN q.burst END),
        key_max_running = coalesce(configure.key_max_running, CASE WHEN 'key_max_running' <> ALL (clear) THEN q.key_max_running END),
        key_rate = coalesce(configure.key_rate, CASE WHEN 'key_rate' <> ALL (clear) THEN q.key_rate END),
        key_burst = coalesce(configure.key_burst, CASE WHEN 'key_burst' <> ALL (clear) THEN q.key_burst END)
     WHERE q.name = configure.queue
    RETURNING q.* INTO new;
    -- A new limit has no earlier state: some running jobs may still be unmarked, and its bucket is full. A changed
    -- limit keeps its state.
    UPDATE jobqueue_internal.queue_limits AS l SET all_counted = false, counted_since = NULL
     WHERE l.queue = configure.queue AND old.max_running IS NULL AND new.max_running IS NOT NULL;
    UPDATE jobqueue_internal.queue_limits AS l SET tokens = NULL, refilled_at = NULL
     WHERE l.queue = configure.queue AND old.rate IS NULL AND new.rate IS NOT NULL;
    IF (old.max_running, old.rate, old.burst) IS DISTINCT FROM (new.max_running, new.rate, new.burst) THEN
        PERFORM pg_notify('jobqueue_freed', configure.queue);
    END IF;
    IF (old.key_max_running, old.key_rate, old.key_burst) IS DISTINCT FROM (new.key_max_running, new.key_rate, new.key_burst) THEN
        PERFORM jobqueue_internal.check_keys(configure.queue), jobqueue_internal.wake_keys();
    END IF;
END $$;
