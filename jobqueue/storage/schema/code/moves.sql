-- Move jobs between tables, and bury jobs that cannot be moved.

-- Move rows of a table to the dead letters, whatever their columns contain. Returns the jobs, as an array of {"id",
-- "queue", "kind", "attempt", "node_id", "reason"}.
--
-- verb, words: the operation that could not move the rows, and the error message of PostgreSQL. If both are NULL, the
-- jobs have expired. Expired jobs in inflight_jobs were claimed a moment ago, and that claim does not count as an
-- attempt.
--
-- The columns keep their values, even values that other tables reject, so that a person can read and repair them, and
-- run the job again. The function changes only names that are too long for an index, times that nodes cannot read, and
-- a history of errors that is not an array.
CREATE OR REPLACE FUNCTION jobqueue_internal.bury(source text, places tid[], verb text DEFAULT NULL, words text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    unmovable constant boolean := verb IS NOT NULL;
    told constant text := CASE WHEN unmovable THEN format('the %s cannot move this row: %s', verb, left(words, 500)) ELSE 'expired' END;
    claimed constant boolean := source = 'inflight_jobs';
    died jsonb;
BEGIN
    IF places = '{}' THEN
        RETURN '[]';
    END IF;
    IF source = 'dead_jobs' THEN
        -- The row is already a dead letter. Store the reason. Also set died_at to now, so that a redrive tries all
        -- other rows first.
        UPDATE jobqueue_internal.dead_jobs AS d SET reason = told, died_at = now() WHERE d.ctid = ANY (places);
        RETURN '[]';
    END IF;
    EXECUTE format($query$
        WITH gone AS (
            DELETE FROM jobqueue_internal.%1$I WHERE ctid = ANY ($1)
            RETURNING *, left(queue, 200) AS short_queue, left(kind, 200) AS short_kind,
                      CASE WHEN %3$L THEN greatest(attempt, 1) - 1 ELSE attempt END AS counted
        ), dead AS (
            INSERT INTO jobqueue_internal.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, died_at, node_id, errors, options, saved)
            SELECT g.id, g.short_queue, g.short_kind, g.priority, $2, g.payload, g.max_retries, g.timeout, g.counted, g.claims,
                   -- Clients can read times in the years 68 to 9892.
                   CASE WHEN g.created_at BETWEEN to_timestamp(-6e10) AND to_timestamp(2.5e11) THEN g.created_at ELSE now() END,
                   CASE WHEN g.available_since BETWEEN to_timestamp(-6e10) AND to_timestamp(2.5e11) THEN g.available_since ELSE now() END,
                   now(), %2$s, jobqueue_internal.with_error(CASE WHEN jsonb_typeof(g.errors) = 'array' THEN g.errors ELSE '[]' END,
                       CASE WHEN $3 THEN jsonb_build_object('attempt', g.attempt, 'at', now(), 'duration', 0, 'error', $2) END),
                   g.options, g.saved
              FROM gone AS g
                ON CONFLICT (id) DO NOTHING
        ), checks AS (
            INSERT INTO jobqueue_internal.key_checks (queue, key)
            SELECT g.queue, g.options ->> 'concurrency_key' FROM gone AS g WHERE %4$L AND g.options ->> 'concurrency_key' IS NOT NULL
        )
        SELECT jsonb_agg(jsonb_build_object('id', g.id, 'queue', g.short_queue, 'kind', g.short_kind, 'attempt', g.counted,
                                            'node_id', %2$s, 'reason', $2))
          FROM gone AS g
        $query$, source, CASE WHEN claimed AND unmovable THEN 'g.node_id' ELSE 'NULL::uuid' END, claimed AND NOT unmovable,
        source <> 'scheduled_jobs')
       INTO died USING places, told, unmovable;
    RETURN coalesce(died, '[]');
END $$;

-- Move rows of a table with the function `mover`, which takes the ctids of the rows. First call it for all rows. If
-- PostgreSQL rejects a value in one of the rows, call it for each half, and so on. If it fails for a single row, move
-- that row to the dead letters. The caller must have locked the rows. Returns two arrays: "moved" has the result of
-- each successful call of `mover`, and "dead" has the dead jobs, as jobqueue_internal.bury returns them.
--
-- Errors that are not about a value in a row, such as lock timeouts, cancellations and missing privileges, abort the
-- statement as usual.
CREATE OR REPLACE FUNCTION jobqueue_internal.move(verb text, mover text, source text, places tid[], OUT moved jsonb, OUT dead jsonb)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp   -- names in the session's search_path must not cause errors that look like faults of rows
AS $$
DECLARE
    half constant integer := cardinality(places) / 2;
    result jsonb;
    words text;
    one record;
    other record;
BEGIN
    moved := '[]';
    dead := '[]';
    IF places = '{}' THEN
        RETURN;
    END IF;
    BEGIN
        EXECUTE format('SELECT jobqueue_internal.%I($1)', mover) INTO result USING places;
        moved := jsonb_build_array(result);
        RETURN;
    EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded OR feature_not_supported THEN
        words := SQLERRM;
    END;
    IF half = 0 THEN
        dead := jobqueue_internal.bury(source, places, verb, words);
        RETURN;
    END IF;
    one := jobqueue_internal.move(verb, mover, source, places[:half]);
    other := jobqueue_internal.move(verb, mover, source, places[half + 1:]);
    moved := one.moved || other.moved;
    dead := one.dead || other.dead;
END $$;

-- Combine several results of the form {"queue": seconds} into the best rank of each queue.
CREATE OR REPLACE FUNCTION jobqueue_internal.best_of(ranks jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF jsonb_array_length(ranks) = 1 THEN
        RETURN ranks -> 0;
    END IF;
    RETURN (SELECT coalesce(jsonb_object_agg(q.queue, q.rank), '{}')
              FROM (SELECT e.key AS queue, min(e.value::numeric) AS rank
                      FROM jsonb_array_elements(ranks) AS r CROSS JOIN jsonb_each(r) AS e GROUP BY e.key) AS q);
END $$;
