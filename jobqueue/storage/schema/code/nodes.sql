-- Nodes: join, heartbeat, leave, and recover the jobs of dead nodes.

-- Add a node with a lease of `lease` seconds. Each queue of the node gets a row, so that the queue can be shown and
-- paused.
CREATE OR REPLACE FUNCTION jobqueue_internal.join_node(
    node uuid, host text, pid integer, process text, version text, queues jsonb, lease double precision, schema_version integer DEFAULT 1
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobqueue_internal.queues (name) SELECT jsonb_object_keys(join_node.queues) ON CONFLICT (name) DO NOTHING;
    INSERT INTO jobqueue_internal.nodes (id, host, pid, process, version, queues, lease_until, schema_version)
    VALUES (node, join_node.host, join_node.pid, join_node.process, join_node.version, join_node.queues,
            now() + lease * interval '1 second', join_node.schema_version);
END $$;

-- Repair stored times after the server's clock was set back. Otherwise, no lease would expire, and no rate would allow
-- more jobs of a key, until the clock has caught up. Leases start again, so that the death of a node is noticed in
-- time. Keys that wait for a time are checked now, and then wait for the right time. A heartbeat in the future shows
-- that the clock was set back, because each node updates its heartbeat all the time.
CREATE OR REPLACE FUNCTION jobqueue_internal.clock_was_set_back() RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE jobqueue_internal.nodes AS n SET heartbeat_at = clock_timestamp(), lease_until = clock_timestamp() + (n.lease_until - n.heartbeat_at)
     WHERE n.id = ANY (ARRAY(SELECT o.id FROM jobqueue_internal.nodes AS o WHERE o.heartbeat_at > clock_timestamp() ORDER BY o.id FOR UPDATE SKIP LOCKED));
    UPDATE jobqueue_internal.key_buckets AS b SET check_at = NULL
     WHERE b.ctid = ANY (ARRAY(SELECT o.ctid FROM jobqueue_internal.key_buckets AS o WHERE o.check_at > clock_timestamp()
                                ORDER BY o.queue, o.key FOR UPDATE));
    UPDATE jobqueue_internal.key_checks AS c SET timed = NULL
     WHERE c.ctid = ANY (ARRAY(SELECT o.ctid FROM jobqueue_internal.key_checks AS o WHERE o.timed AND o.at > clock_timestamp() FOR UPDATE SKIP LOCKED));
    PERFORM jobqueue_internal.wake_keys();
END $$;

-- Renew a node's lease by the database's clock, and store the node's activity. Returns the runs of this node that must
-- be cancelled, as [[id, claims], ...], so cancellation works without notifications and without another query. Returns
-- NULL if the lease is lost for good, and other nodes have the jobs. If the lease expired while the database was
-- unavailable, and no other node has ended it, the heartbeat renews it. So running jobs survive an outage.
CREATE OR REPLACE FUNCTION jobqueue_internal.heartbeat(node uuid, lease double precision, activity jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql
SET enable_seqscan = off
SET jit = off   -- cancel_requests has no index. Before PostgreSQL 18, a disabled plan node adds a huge cost, which would
                -- start JIT: 30 ms each time
AS $$
BEGIN
    IF EXISTS (SELECT FROM jobqueue_internal.nodes AS n WHERE n.id = node AND n.heartbeat_at > clock_timestamp()) THEN
        PERFORM jobqueue_internal.clock_was_set_back();
    END IF;
    UPDATE jobqueue_internal.nodes AS n
       SET heartbeat_at = now(), lease_until = now() + lease * interval '1 second', activity = heartbeat.activity WHERE n.id = node;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF EXISTS (SELECT FROM jobqueue_internal.cancel_requests) THEN
        PERFORM jobqueue_internal.cancel_requested();
    END IF;
    RETURN (SELECT coalesce(jsonb_agg(jsonb_build_array(i.id, i.claims)), '[]')
              FROM jobqueue_internal.inflight_jobs AS i WHERE i.node_id = node AND i.cancel_requested_at IS NOT NULL);
END $$;

-- Release these rows of inflight_jobs. Returns how many jobs are pending again.
CREATE OR REPLACE FUNCTION jobqueue_internal.leave_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    released integer;
BEGIN
    WITH taken AS (
        DELETE FROM jobqueue_internal.inflight_jobs WHERE ctid = ANY (places) RETURNING *
    ), held AS (
        SELECT t.*, t.cancel_requested_at IS NOT NULL OR t.id IN (SELECT q.job_id FROM jobqueue_internal.cancel_requests AS q) AS unwanted
          FROM taken AS t
    ), cancelled AS (
        INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, errors, options, saved)
        SELECT h.id, h.queue, h.kind, h.priority, 'cancelled', h.payload, h.max_retries, h.timeout, h.attempt, h.claims, h.created_at,
               h.available_since, h.claimed_at, now(), h.node_id, h.errors, h.options, h.saved
          FROM held AS h WHERE h.unwanted
    ), checks AS (
        INSERT INTO jobqueue_internal.key_checks (queue, key)
        SELECT h.queue, h.options ->> 'concurrency_key' FROM held AS h
         WHERE h.unwanted AND h.options ->> 'concurrency_key' IS NOT NULL
    ), back AS (
        INSERT INTO jobqueue_internal.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT h.id, h.queue, h.kind, h.priority, jobqueue_internal.rank_of(h.available_since, h.priority, q.aging_interval, h.options), h.payload,
               h.max_retries, h.timeout, h.attempt - 1, h.claims, h.created_at, h.available_since, h.errors, h.options, h.saved
          FROM held AS h LEFT JOIN jobqueue_internal.queues AS q ON q.name = h.queue
         WHERE NOT h.unwanted
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue_internal.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM back GROUP BY queue) AS queues
    ), freed AS MATERIALIZED (
        SELECT count(jobqueue_internal.freed(queue)) FROM (SELECT DISTINCT queue FROM held WHERE limited) AS queues
    )
    SELECT (SELECT count(*) FROM held WHERE NOT unwanted),
           (SELECT count(jobqueue_internal.wake_keys()) FROM held WHERE options ? 'concurrency_key')
      INTO released FROM told CROSS JOIN freed;
    RETURN to_jsonb(released);
END $$;

-- Remove a node: release all jobs that it still holds, refund their attempts, and delete its row. Jobs with a cancel
-- request end as cancelled. Jobs that blocked the node stay, and jobqueue_internal.recover handles them. Returns the number of
-- released jobs.
CREATE OR REPLACE FUNCTION jobqueue_internal.leave_node(node uuid) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    places tid[];
    released integer;
BEGIN
    places := ARRAY(SELECT i.ctid FROM jobqueue_internal.inflight_jobs AS i WHERE i.node_id = node AND i.blame IS NULL ORDER BY i.id FOR UPDATE);
    SELECT sum(r.jobs::integer) INTO released
      FROM jsonb_array_elements_text((jobqueue_internal.move('hand-back', 'leave_these', 'inflight_jobs', places)).moved) AS r (jobs);
    DELETE FROM jobqueue_internal.nodes WHERE id = node;
    RETURN coalesce(released, 0);
END $$;

-- Release the jobs of a stuck node on its behalf, like leave_node, except for the jobs that block the node. `blamed` is
-- an array of the runs of these jobs: {id, claims, error, delay}. Only jobqueue_internal.recover records their failure, with
-- this error, because its caller also calls the hooks. Runs that have ended are not changed. Returns the number of
-- released jobs; NULL: the lease is lost already.
CREATE OR REPLACE FUNCTION jobqueue_internal.surrender(node uuid, blamed jsonb) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
    released integer;
BEGIN
    PERFORM FROM jobqueue_internal.nodes AS n WHERE n.id = node FOR UPDATE;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE jobqueue_internal.inflight_jobs AS i SET blame = jsonb_build_object('error', b.error, 'delay', b.delay)
      FROM jsonb_to_recordset(blamed) AS b (id uuid, claims integer, error text, delay double precision)
     WHERE i.id = b.id AND i.claims = b.claims AND i.node_id = node;
    released := jobqueue_internal.leave_node(node);
    PERFORM pg_notify('jobqueue_lost', node::text);
    RETURN released;
END $$;

-- End the lease of a node whose process is known to have died, so that other nodes recover its jobs at once.
CREATE OR REPLACE FUNCTION jobqueue_internal.lose_node(node uuid) RETURNS void
LANGUAGE sql AS $$
    WITH lost AS (
        DELETE FROM jobqueue_internal.nodes WHERE id = node RETURNING id
    )
    SELECT pg_notify('jobqueue_lost', id::text) FROM lost
$$;

-- Recover these rows of inflight_jobs. Returns an array of objects that have the columns of jobqueue_internal.recover.
CREATE OR REPLACE FUNCTION jobqueue_internal.recover_these(places tid[]) RETURNS jsonb
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    recovered jsonb;
BEGIN
    WITH lost AS (
        DELETE FROM jobqueue_internal.inflight_jobs AS i WHERE i.ctid = ANY (places) RETURNING i.*
    ), judged AS (
        SELECT lost.*, lost.attempt > lost.max_retries AS spent,
               lost.attempt <= lost.max_retries AND (lost.cancel_requested_at IS NOT NULL
                   OR lost.id IN (SELECT q.job_id FROM jobqueue_internal.cancel_requests AS q)) AS unwanted,
               jobqueue_internal.with_error(lost.errors, jsonb_build_object('attempt', lost.attempt, 'at', now(), 'node', lost.node_id,
                   'duration', greatest(0, round(extract(epoch FROM now() - lost.claimed_at), 6)),
                   'error', coalesce(lost.blame ->> 'error',
                                     'lease lost: the node that ran this attempt stopped renewing its lease'))) AS all_errors,
               coalesce('attempt ' || lost.attempt || ' of ' || lost.max_retries + 1 || ' failed: ' || (lost.blame ->> 'error'),
                        'lease lost ' || lost.attempt || ' times: the job may be killing its process') AS reason
          FROM lost
    ), dead AS (
        INSERT INTO jobqueue_internal.dead_jobs (id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at,
                                        available_since, died_at, node_id, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, j.reason, j.payload, j.max_retries, j.timeout, j.attempt, j.claims, j.created_at,
               j.available_since, now(), j.node_id, j.all_errors, j.options, j.saved
          FROM judged AS j WHERE j.spent
            ON CONFLICT (id) DO NOTHING
    ), cancelled AS (
        INSERT INTO jobqueue_internal.finished_jobs (id, queue, kind, priority, state, payload, max_retries, timeout, attempt, claims, created_at,
                                            available_since, claimed_at, finished_at, node_id, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, 'cancelled', j.payload, j.max_retries, j.timeout, j.attempt, j.claims, j.created_at,
               j.available_since, j.claimed_at, now(), j.node_id, j.all_errors, j.options, j.saved
          FROM judged AS j WHERE j.unwanted
    ), scheduled AS (
        INSERT INTO jobqueue_internal.scheduled_jobs (id, queue, kind, priority, run_at, payload, max_retries, timeout, attempt, claims, created_at,
                                             available_since, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, now() + (j.blame -> 'delay')::double precision * interval '1 second', j.payload,
               j.max_retries, j.timeout, j.attempt, j.claims, j.created_at, j.available_since, j.all_errors, j.options, j.saved
          FROM judged AS j WHERE j.blame IS NOT NULL AND NOT j.spent AND NOT j.unwanted
            ON CONFLICT (id) DO NOTHING
    ), back AS (
        INSERT INTO jobqueue_internal.pending_jobs
               (id, queue, kind, priority, rank, payload, max_retries, timeout, attempt, claims, created_at, available_since, errors, options, saved)
        SELECT j.id, j.queue, j.kind, j.priority, jobqueue_internal.rank_of(j.available_since, j.priority, q.aging_interval, j.options), j.payload,
               j.max_retries, j.timeout, j.attempt, j.claims, j.created_at, j.available_since, j.all_errors, j.options, j.saved
          FROM judged AS j LEFT JOIN jobqueue_internal.queues AS q ON q.name = j.queue
         WHERE NOT j.spent AND NOT j.unwanted AND j.blame IS NULL
            ON CONFLICT (id) DO NOTHING
        RETURNING queue, rank
    ), told AS MATERIALIZED (
        SELECT count(jobqueue_internal.wake(queue, rank)) FROM (SELECT queue, min(rank) AS rank FROM back GROUP BY queue) AS queues
    ), freed AS MATERIALIZED (
        SELECT count(jobqueue_internal.freed(queue)) FROM (SELECT DISTINCT queue FROM judged WHERE limited) AS queues
    ), checks AS (
        INSERT INTO jobqueue_internal.key_checks (queue, key)
        SELECT j.queue, j.options ->> 'concurrency_key' FROM judged AS j
         WHERE (j.spent OR j.unwanted OR j.blame IS NOT NULL) AND j.options ->> 'concurrency_key' IS NOT NULL
    )
    SELECT coalesce(jsonb_agg(jsonb_build_object('id', j.id, 'queue', j.queue, 'kind', j.kind, 'attempt', j.attempt, 'node_id', j.node_id,
               'outcome', CASE WHEN j.spent THEN 'dead' WHEN j.unwanted THEN 'cancelled'
                                WHEN j.blame IS NOT NULL THEN 'scheduled' ELSE 'pending' END,
               'reason', CASE WHEN j.spent THEN j.reason END)), '[]')
      INTO recovered FROM judged AS j CROSS JOIN told CROSS JOIN freed;
    RETURN recovered;
END $$;

-- Recover the jobs of lost nodes. A job goes back to pending_jobs, with three exceptions. If its attempts are used up,
-- it goes to dead_jobs. If its cancellation was requested, it goes to finished_jobs. If it blocked its node, it goes to
-- scheduled_jobs, see surrender. The claim has counted the attempt, so a job that kills its process dies in the end.
--
-- The function first deletes the rows of nodes whose leases have expired. From then on, the heartbeats of these nodes
-- fail. Then it recovers the jobs of all nodes without a row. If a claim of such a node commits in between, the next
-- call recovers the jobs of that claim. Rows are locked in id order with SKIP LOCKED, so a completion that is being
-- written takes precedence.
--
-- judge: the node on whose behalf expired leases are taken; NULL takes none. The judge must have a valid lease. If its
--        lease has expired too, the database or the judge was unavailable, and the other nodes may still be running.
CREATE OR REPLACE FUNCTION jobqueue_internal.recover(max_jobs integer DEFAULT 1000, judge uuid DEFAULT NULL)
RETURNS TABLE (id uuid, queue text, kind text, attempt integer, node_id uuid, outcome text, reason text)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    places tid[];
    results record;
BEGIN
    IF EXISTS (SELECT FROM jobqueue_internal.nodes AS n WHERE n.heartbeat_at > clock_timestamp()) THEN
        PERFORM jobqueue_internal.clock_was_set_back();
    END IF;
    DELETE FROM jobqueue_internal.nodes AS n
     WHERE n.lease_until <= now() AND EXISTS (SELECT FROM jobqueue_internal.nodes AS j WHERE j.id = judge AND j.lease_until > now());
    places := ARRAY(
        SELECT l.ctid FROM jobqueue_internal.inflight_jobs AS l
         WHERE NOT EXISTS (SELECT FROM jobqueue_internal.nodes AS n WHERE n.id = l.node_id)
         ORDER BY l.id LIMIT max_jobs FOR UPDATE OF l SKIP LOCKED);
    results := jobqueue_internal.move('recovery', 'recover_these', 'inflight_jobs', places);
    RETURN QUERY
    SELECT j.id, j.queue, j.kind, j.attempt, j.node_id, coalesce(j.outcome, 'dead'), j.reason
      FROM (SELECT jsonb_array_elements(results.moved) AS jobs UNION ALL SELECT results.dead) AS r
     CROSS JOIN jsonb_to_recordset(r.jobs)
                AS j (id uuid, queue text, kind text, attempt integer, node_id uuid, outcome text, reason text);
END $$;
