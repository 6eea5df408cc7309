-- Version 2: the changes that lock what nodes and users read. They come last, so that the locks are short.
--
-- Lock: ACCESS EXCLUSIVE on jobqueue_internal.nodes, about 30 ms: heartbeats, claims, and submissions
-- Lock: ACCESS EXCLUSIVE on jobqueue.jobs, about 30 ms: queries of this view
DO $upgrade$
BEGIN
    IF to_regclass('jobqueue_internal.jobs') IS NOT NULL THEN
        ALTER VIEW jobqueue_internal.jobs SET SCHEMA jobqueue;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute AS a
                    WHERE a.attrelid = 'jobqueue_internal.nodes'::regclass AND a.attname = 'schema_version' AND NOT a.attisdropped) THEN
        ALTER TABLE jobqueue_internal.nodes ADD COLUMN schema_version integer NOT NULL DEFAULT 1;
    END IF;
END $upgrade$;
