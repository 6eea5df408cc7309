-- Partitions and retention.

-- Return the partitions of succeeded_jobs or cancelled_jobs, without the default partition, and their bounds.
CREATE OR REPLACE FUNCTION jobqueue_internal.partitions(parent text) RETURNS TABLE (name text, since timestamptz, until timestamptz)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'   -- PostgreSQL prints the bounds in the DateStyle of the session
AS $$
    SELECT c.relname::text, CASE WHEN b.bounds[1] = 'MINVALUE' THEN '-infinity' ELSE trim('''' FROM b.bounds[1])::timestamptz END,
           CASE WHEN b.bounds[2] = 'MAXVALUE' THEN 'infinity' ELSE trim('''' FROM b.bounds[2])::timestamptz END
      FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
     CROSS JOIN LATERAL (SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM [(](.*)[)] TO [(](.*)[)]$') AS bounds) AS b
     WHERE i.inhparent = ('jobqueue_internal.' || quote_ident(parent))::regclass AND b.bounds IS NOT NULL
$$;

-- Create the partitions of finished jobs for today and the next two days, and drop partitions whose end is longer ago
-- than the retention period (keep_succeeded, keep_cancelled: seconds). If several nodes call this function at the same
-- time, one does the work, and the others return at once. If the function cannot lock a partition within 100 ms,
-- because an open transaction reads it, the next call tries again. The function must not wait longer, because
-- completions would wait behind its lock request.
--
-- Returns the number of dropped partitions, and a sentence for each failure. For example, a step fails if a view reads a
-- partition. The other steps still run. Jobs of a day without a partition are in the default partition, and
-- jobqueue_internal.prune deletes the jobs of partitions that cannot be dropped.
--
-- The function runs with the privileges of the tables' owner, so the role of a node needs no DDL.
CREATE OR REPLACE FUNCTION jobqueue_internal.maintain(keep_succeeded double precision, keep_cancelled double precision,
                                             OUT dropped integer, OUT failed text[])
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'
SET lock_timeout = '100ms'
AS $$
DECLARE
    part record;
    covered timestamptz;
BEGIN
    dropped := 0;
    failed := '{}';
    IF NOT pg_try_advisory_xact_lock(7669743430829532518) THEN
        RETURN;
    END IF;
    DELETE FROM jobqueue_internal.fair_groups WHERE ctid = ANY (ARRAY(
        SELECT g.ctid FROM jobqueue_internal.fair_groups AS g JOIN jobqueue_internal.fair_queues AS f ON f.queue = g.queue
         WHERE g.epoch < f.epoch OR greatest(g.common, g.urgent) < least(f.common, f.urgent)
         LIMIT 10000 FOR UPDATE OF g SKIP LOCKED));
    -- Check all keys from time to time, because rows may have been deleted by hand, for example.
    PERFORM jobqueue_internal.check_keys(b.queue) FROM (SELECT DISTINCT blocked_jobs.queue FROM jobqueue_internal.blocked_jobs) AS b;
    -- Delete the buckets that are full again. If a queue has no key_rate any more, delete the buckets and starts of its
    -- keys.
    DELETE FROM jobqueue_internal.key_starts AS s WHERE NOT EXISTS (SELECT FROM jobqueue_internal.queues AS q WHERE q.name = s.queue AND q.key_rate IS NOT NULL);
    DELETE FROM jobqueue_internal.key_buckets AS b
     WHERE NOT EXISTS (SELECT FROM jobqueue_internal.key_starts AS s WHERE s.queue = b.queue AND s.key = b.key)
       AND NOT EXISTS (SELECT FROM jobqueue_internal.queues AS q
                        WHERE q.name = b.queue AND jobqueue_internal.refilled(b.tokens, b.refilled_at, q.key_rate, coalesce(q.key_burst, greatest(1, q.key_rate)))
                              < coalesce(q.key_burst, greatest(1, q.key_rate)));
    -- Do the partitions last, because their locks are held until the end of the transaction.
    FOR part IN
        SELECT p.parent, p.parent || to_char(d.day, '_YYYYMMDD') AS name, d.day AT TIME ZONE 'UTC' AS since,
               (d.day + interval '1 day') AT TIME ZONE 'UTC' AS until
          FROM unnest('{succeeded_jobs,cancelled_jobs}'::text[]) AS p (parent)
         CROSS JOIN (SELECT date_trunc('day', now() AT TIME ZONE 'UTC') + n * interval '1 day' AS day FROM generate_series(0, 2) AS n) AS d
    LOOP
        -- Partitions that an earlier version or a user created may begin at any time. The new partition fills the first
        -- gap between them.
        LOOP
            SELECT max(x.until) INTO covered FROM jobqueue_internal.partitions(part.parent) AS x WHERE x.since <= part.since AND x.until > part.since;
            EXIT WHEN covered IS NULL;
            part.since := covered;
        END LOOP;
        part.until := least(part.until, (SELECT min(x.since) FROM jobqueue_internal.partitions(part.parent) AS x WHERE x.since > part.since));
        CONTINUE WHEN part.since >= part.until;
        IF to_regclass('jobqueue_internal.' || part.name) IS NOT NULL THEN
            part.name := part.name || to_char(part.since AT TIME ZONE 'UTC', '_HH24MISS');
        END IF;
        BEGIN
            EXECUTE format('CREATE TABLE jobqueue_internal.%I PARTITION OF jobqueue_internal.%I FOR VALUES FROM (%L) TO (%L)',
                           part.name, part.parent, part.since, part.until);
            -- Event triggers of some hosting services enable row-level security on each new table.
            EXECUTE format('ALTER TABLE jobqueue_internal.%I REPLICA IDENTITY FULL, DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', part.name);
        EXCEPTION
            WHEN check_violation THEN
                NULL;  -- jobs that finished before the partition of their day existed stay in the default partition until retention deletes them
            WHEN lock_not_available THEN
                RETURN;
            WHEN OTHERS THEN
                failed := failed || format('cannot create %s: %s', part.name, SQLERRM);
        END;
    END LOOP;
    FOR part IN
        SELECT p.name FROM (VALUES ('succeeded_jobs', keep_succeeded), ('cancelled_jobs', keep_cancelled)) AS k (parent, seconds)
         CROSS JOIN LATERAL jobqueue_internal.partitions(k.parent) AS p WHERE p.until < now() - k.seconds * interval '1 second'
    LOOP
        BEGIN
            EXECUTE format('DROP TABLE jobqueue_internal.%I', part.name);
            dropped := dropped + 1;
        EXCEPTION
            WHEN lock_not_available THEN
                RETURN;
            WHEN OTHERS THEN
                failed := failed || format('cannot drop %s: %s', part.name, SQLERRM);
        END;
    END LOOP;
END $$;

REVOKE ALL ON FUNCTION jobqueue_internal.maintain FROM PUBLIC;

-- Delete old jobs that retention cannot drop with a partition, up to max_jobs rows of each table. These are dead jobs
-- (oldest first), jobs that finished on a day without a partition, and jobs in partitions that jobqueue_internal.maintain has
-- not dropped. The keep_* parameters are in seconds. Returns the number of rows.
--
-- A failure for one table does not affect the others. If a call deletes no rows and a table has failed, the call raises
-- the error of that table.
CREATE OR REPLACE FUNCTION jobqueue_internal.prune(keep_succeeded double precision, keep_cancelled double precision, keep_dead double precision,
                                          max_jobs integer DEFAULT 1000) RETURNS integer
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET DateStyle = 'ISO, YMD'
AS $$
DECLARE
    part record;
    deleted integer;
    total integer := 0;
    state text;
    words text;
BEGIN
    FOR part IN
        WITH kept AS (
            SELECT k.parent, now() - k.seconds * interval '1 second' AS since
              FROM (VALUES ('succeeded_jobs', keep_succeeded), ('cancelled_jobs', keep_cancelled)) AS k (parent, seconds)
        )
        SELECT 'dead_jobs' AS name, 'died_at < ' || quote_literal(now() - keep_dead * interval '1 second') AS meant, 'ORDER BY died_at, id' AS first
        UNION ALL
        SELECT k.parent || '_default', 'finished_at < ' || quote_literal(k.since), '' FROM kept AS k
        UNION ALL
        -- Delete through the parent, because the role of a node has no privileges on the partition. The bounds limit
        -- the statement to that partition.
        SELECT k.parent, format('finished_at >= %L AND finished_at < %L', p.since, p.until), ''
          FROM kept AS k CROSS JOIN LATERAL jobqueue_internal.partitions(k.parent) AS p WHERE p.until < k.since
    LOOP
        BEGIN
            EXECUTE format('DELETE FROM jobqueue_internal.%1$I WHERE %2$s AND ctid = ANY (ARRAY('
                           'SELECT ctid FROM jobqueue_internal.%1$I WHERE %2$s %3$s LIMIT $1 FOR UPDATE SKIP LOCKED))', part.name, part.meant, part.first)
              USING max_jobs;
            GET DIAGNOSTICS deleted = ROW_COUNT;
            total := total + deleted;
        EXCEPTION WHEN OTHERS THEN
            state := SQLSTATE;
            words := format('cannot delete old jobs from %s: %s', part.name, SQLERRM);
        END;
    END LOOP;
    IF total = 0 AND words IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = state, MESSAGE = words;
    END IF;
    RETURN total;
END $$;

-- Delete up to max_keys keys that are no longer needed, oldest first; keys of unfinished jobs are checked again a day
-- later. Returns the number of keys checked. Locked keys are skipped.
CREATE OR REPLACE FUNCTION jobqueue_internal.prune_keys(max_keys integer DEFAULT 1000) RETURNS integer
LANGUAGE sql
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_sort = off
AS $$
    WITH old AS MATERIALIZED (
        SELECT k.scope, k.key, k.scope = 'unique' AND jobqueue_internal.unfinished(k.job_id) AS held FROM jobqueue_internal.keys AS k
         WHERE k.expires_at <= now() ORDER BY k.expires_at LIMIT max_keys FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM jobqueue_internal.keys AS k USING old WHERE NOT old.held AND k.scope = old.scope AND k.key = old.key
    ), kept AS (
        UPDATE jobqueue_internal.keys AS k SET expires_at = now() + interval '1 day' FROM old
         WHERE old.held AND k.scope = old.scope AND k.key = old.key
    )
    SELECT count(*)::integer FROM old
$$;
