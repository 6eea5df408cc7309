-- The public API: views, and the description of each object for \df+ and \dv+.
--
-- The functions are with the parts of their subjects. They run with the privileges of the schema's owner, so a role
-- needs only EXECUTE on a function, and none on a table. Their names, arguments, and results do not change: nodes and
-- applications of other versions call them.
--
-- Lock: ACCESS EXCLUSIVE on jobqueue.jobs, about 20 ms: queries of this view
-- Lock: ACCESS EXCLUSIVE on jobqueue.dead_jobs, about 20 ms: queries of this view
-- Lock: ACCESS EXCLUSIVE on jobqueue.queues, about 20 ms: queries of this view
-- Lock: ACCESS EXCLUSIVE on jobqueue.schedules, about 20 ms: queries of this view
-- Lock: ACCESS EXCLUSIVE on jobqueue.nodes, about 20 ms: queries of this view

CREATE OR REPLACE VIEW jobqueue.jobs AS
    SELECT id, state, queue, kind, priority, payload, max_retries, timeout, attempt, claims, created_at, available_since, run_at, claimed_at,
           ended_at, node_id, result, reason, errors, options, saved, cancel_requested_at
      FROM jobqueue_internal.jobs;

CREATE OR REPLACE VIEW jobqueue.dead_jobs AS
    SELECT id, queue, kind, priority, reason, payload, max_retries, timeout, attempt, claims, created_at, available_since, died_at,
           node_id, errors, options, saved, cause
      FROM jobqueue_internal.dead_jobs;

CREATE OR REPLACE VIEW jobqueue.queues AS
    SELECT name, paused, fair, aging_interval, created_at, max_running, rate, burst, key_max_running, key_rate, key_burst
      FROM jobqueue_internal.queues;

CREATE OR REPLACE VIEW jobqueue.schedules AS
    SELECT name, source, cron, timezone, missed, kind, payload, queue, priority, max_retries, timeout, paused, next_at, last_at, error,
           created_at, updated_at
      FROM jobqueue_internal.schedules;

CREATE OR REPLACE VIEW jobqueue.nodes AS
    SELECT id, host, pid, process, version, queues, started_at, heartbeat_at, lease_until, activity
      FROM jobqueue_internal.nodes;

DO $$
BEGIN
    IF (SELECT bool_and(pg_has_role(n.nspowner, 'USAGE')) FROM pg_namespace AS n WHERE n.nspname IN ('jobqueue', 'jobqueue_internal')) THEN
        COMMENT ON SCHEMA jobqueue IS 'The SQL API of jobqueue: functions to submit and manage jobs, and views to read them.';
        COMMENT ON SCHEMA jobqueue_internal IS 'The tables of jobqueue, and the functions that its nodes call. Use the schema jobqueue instead.';
    END IF;
END $$;

COMMENT ON VIEW jobqueue.jobs IS 'Every job in every state.';
COMMENT ON VIEW jobqueue.dead_jobs IS 'The dead jobs, with the reason and the cause.';
COMMENT ON VIEW jobqueue.queues IS 'The queues that were configured or that a node serves, with their limits.';
COMMENT ON VIEW jobqueue.schedules IS 'The cron schedules.';
COMMENT ON VIEW jobqueue.nodes IS 'The nodes, with their queues and leases.';

COMMENT ON FUNCTION jobqueue.submit IS 'Submit one job, and return its id. If a key already has a job, return the id of that job.';
COMMENT ON FUNCTION jobqueue.submit_many IS
    'Submit a JSON array of up to 100,000 jobs, and return their ids. Each object has the fields of submit, or id, delay, or expires_in.';
COMMENT ON FUNCTION jobqueue.list_jobs IS
    'Return a page of the jobs that a filter selects, the latest id first: {"jobs": [...], "next": id}. Pass next as before.';
COMMENT ON FUNCTION jobqueue.list_dead IS 'Return the dead jobs that a filter selects, the latest first.';
COMMENT ON FUNCTION jobqueue.dead_causes IS 'Group the dead jobs that a filter selects by cause: {"causes": [...], "more": boolean}.';
COMMENT ON FUNCTION jobqueue.change IS 'Change the priority or the time of a waiting job. Return false if the job is not waiting.';
COMMENT ON FUNCTION jobqueue.cancel IS
    'Cancel a job when the transaction commits. Return false if the job has ended or does not exist. keep => false deletes a waiting job.';
COMMENT ON FUNCTION jobqueue.cancel_jobs IS 'Cancel up to max_jobs jobs that a filter selects, and return their number. Call it until it returns 0.';
COMMENT ON FUNCTION jobqueue.retry IS 'Run a dead job again. Return false if the job is not dead.';
COMMENT ON FUNCTION jobqueue.retry_dead IS 'Run up to max_jobs dead jobs again that a filter selects, and return their number.';
COMMENT ON FUNCTION jobqueue.discard IS 'Delete a dead job. Return false if the job is not dead.';
COMMENT ON FUNCTION jobqueue.discard_dead IS 'Delete up to max_jobs dead jobs that a filter selects, and return their number.';
COMMENT ON FUNCTION jobqueue.configure IS
    'Configure a queue on all nodes. NULL leaves a setting unchanged. clear names the settings to reset to their defaults.';
COMMENT ON FUNCTION jobqueue.pause IS 'Pause a queue on all nodes, or resume it with paused => false. Running jobs continue.';
COMMENT ON FUNCTION jobqueue.schedule IS 'Create or change a cron schedule. Return whether it is new.';
COMMENT ON FUNCTION jobqueue.unschedule IS 'Delete a schedule. Return false if no schedule has this name.';
COMMENT ON FUNCTION jobqueue.pause_schedule IS 'Pause a schedule, or resume it with paused => false. Return false if no schedule has this name.';
COMMENT ON FUNCTION jobqueue.trigger_schedule IS
    'Submit a schedule''s job now, in addition to its ticks, and return the job''s id. Return NULL if no schedule has this name.';
