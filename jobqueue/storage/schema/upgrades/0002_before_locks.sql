-- Version 2: the changes that lock what nodes and users read. They come last, so that the locks are short.
--
-- Lock: ACCESS EXCLUSIVE on jobqueue_internal.nodes, about 30 ms: heartbeats, claims, and submissions
DO $upgrade$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute AS a
                    WHERE a.attrelid = 'jobqueue_internal.nodes'::regclass AND a.attname = 'schema_version' AND NOT a.attisdropped) THEN
        ALTER TABLE jobqueue_internal.nodes ADD COLUMN schema_version integer NOT NULL DEFAULT 1;
    END IF;
END $upgrade$;
