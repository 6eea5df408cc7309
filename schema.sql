-- jobqueue: the schemas of the database. This file is the table of contents.
--
-- Run it with `psql -f schema.sql`, or use `jobqueue migrate` or `jobqueue serve`, which run the same parts. The parts
-- run in one transaction. They create the schemas, upgrade version 1, or replace the functions of the same version. They
-- reject a database that a newer jobqueue has migrated. They need PostgreSQL 14 or newer.
--
-- `jobqueue` is the public API: functions and views for users. `jobqueue_internal` holds the tables and the functions
-- that only nodes call.
--
-- Each state has its own table. The table that holds a job's row determines the job's state:
--
--     scheduled_jobs --promote--> pending_jobs --claim--> inflight_jobs --finish--> finished_jobs | dead_jobs | scheduled_jobs
--                                      ^------ release, recover --------'
--
-- `expire` and `claim` move expired jobs from any waiting state to dead_jobs. A job with a concurrency key goes to
-- blocked_jobs wherever another job would go to pending_jobs. `admit` moves it to pending_jobs when its key has room.
--
-- Each arrow is one of the functions below. A call is one transaction, and moves a batch of jobs. For speed, a function
-- takes and returns a batch as one JSON document.
--
-- An id belongs to one job. SQL of a user can create a second row with the same id. When both rows reach the same
-- table, ON CONFLICT DO NOTHING drops the second row. Without this clause, an error would abort the whole batch, on
-- every node that tries it.

\set ON_ERROR_STOP on

BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

-- Check the database
\ir jobqueue/storage/schema/prepare.sql
-- Upgrade version 1
\ir jobqueue/storage/schema/upgrades/0002_before_two_schemas.sql
-- The two schemas and the version
\ir jobqueue/storage/schema/version.sql
-- The database that the queue belongs to
\ir jobqueue/storage/schema/identity.sql
-- The causes of failures
\ir jobqueue/storage/schema/code/causes.sql
-- Queues, their limits and lines, and schedules
\ir jobqueue/storage/schema/tables/queues.sql
-- Nodes and the history of their counts
\ir jobqueue/storage/schema/tables/nodes.sql
-- Pending, blocked, and scheduled jobs
\ir jobqueue/storage/schema/tables/waiting_jobs.sql
-- Running jobs
\ir jobqueue/storage/schema/tables/inflight_jobs.sql
-- Concurrency keys, unique keys, and idempotency keys
\ir jobqueue/storage/schema/tables/keys.sql
-- Succeeded and cancelled jobs
\ir jobqueue/storage/schema/tables/finished_jobs.sql
-- Dead jobs
\ir jobqueue/storage/schema/tables/dead_jobs.sql
-- All jobs
\ir jobqueue/storage/schema/tables/jobs.sql
-- Ids, ranks, and notifications
\ir jobqueue/storage/schema/code/lookups.sql
-- Check the arguments of SQL calls
\ir jobqueue/storage/schema/code/checks.sql
-- Fair groups: turns and lines
\ir jobqueue/storage/schema/code/fair_groups.sql
-- Concurrency keys: block, admit, and check
\ir jobqueue/storage/schema/code/concurrency_keys.sql
-- Move jobs between tables, and bury jobs that cannot be moved
\ir jobqueue/storage/schema/code/moves.sql
-- Options of new jobs, and their unique and idempotency keys
\ir jobqueue/storage/schema/code/submission_keys.sql
-- Submit jobs
\ir jobqueue/storage/schema/code/submit.sql
-- Nodes: join, heartbeat, leave, and recover the jobs of dead nodes
\ir jobqueue/storage/schema/code/nodes.sql
-- Claim jobs under the limits of their queues
\ir jobqueue/storage/schema/code/claim.sql
-- Write the outcomes and the notes of runs
\ir jobqueue/storage/schema/code/finish.sql
-- Promote scheduled jobs, and end expired ones
\ir jobqueue/storage/schema/code/promote.sql
-- Cancel and change jobs
\ir jobqueue/storage/schema/code/cancel.sql
-- Filter, list, and cancel many jobs
\ir jobqueue/storage/schema/code/lists.sql
-- Dead letters: redrive, discard, list, and group by cause
\ir jobqueue/storage/schema/code/dead_letters.sql
-- Pause and configure queues
\ir jobqueue/storage/schema/code/queues.sql
-- Cron schedules
\ir jobqueue/storage/schema/code/schedules.sql
-- Counts over time
\ir jobqueue/storage/schema/code/history.sql
-- Partitions and retention
\ir jobqueue/storage/schema/code/maintenance.sql
-- Kinds of roles, and their privileges
\ir jobqueue/storage/schema/code/privileges.sql
-- Complete the tables
\ir jobqueue/storage/schema/complete.sql
-- Upgrade version 1: changes that lock tables
\ir jobqueue/storage/schema/upgrades/0002_before_locks.sql
-- The views of the public API, and a description of each object
\ir jobqueue/storage/schema/api.sql
-- For nodes and applications of version 1
\ir jobqueue/storage/schema/compatibility.sql
-- The privileges of roles on new objects
\ir jobqueue/storage/schema/grants.sql
-- Return to the role that runs this script
\ir jobqueue/storage/schema/end.sql

COMMIT;

-- Each statement in its own transaction: delete the digests of the schema before
\ir jobqueue/storage/schema/unrecord.autocommit.sql
