-- Complete the tables: the trigger, the replica identities, and the first partitions.

-- Insert a job with a concurrency key into blocked_jobs instead of pending_jobs. Run the trigger even in a session with
-- session_replication_role = replica. This is safe for the subscriber of a publication, because it receives only admitted
-- jobs, which the trigger leaves unchanged. The statement locks the table, so it runs only if the trigger is missing.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = 'jobqueue_internal.pending_jobs'::regclass AND t.tgname = 'block' AND t.tgenabled = 'A') THEN
        CREATE OR REPLACE TRIGGER block BEFORE INSERT ON jobqueue_internal.pending_jobs FOR EACH ROW
            WHEN (NEW.options IS NOT NULL) EXECUTE FUNCTION jobqueue_internal.block();
        ALTER TABLE jobqueue_internal.pending_jobs ENABLE ALWAYS TRIGGER block;
    END IF;
END $$;

-- Set REPLICA IDENTITY FULL for each table without a primary key. Otherwise, with a publication of all tables,
-- PostgreSQL rejects updates and deletes in such a table. The full identity costs little, because each of these tables
-- is small, or has partitions that retention drops as a whole. The function jobqueue_internal.maintain does the same for
-- the partitions that it creates.
DO $$
DECLARE
    keyless regclass;
BEGIN
    FOR keyless IN
        SELECT c.oid FROM pg_class AS c
         WHERE c.relnamespace = 'jobqueue_internal'::regnamespace AND c.relkind IN ('r', 'p') AND c.relreplident = 'd'
           AND NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND i.indisprimary)
    LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', keyless);
    END LOOP;
END $$;

-- Event triggers of some hosting services enable and force row-level security on each new table. Without a policy, even
-- the owner of such a table sees no rows. Tables that have a policy are left alone.
DO $$
DECLARE
    closed regclass;
BEGIN
    FOR closed IN
        SELECT c.oid FROM pg_class AS c
         WHERE c.relnamespace = 'jobqueue_internal'::regnamespace AND (c.relrowsecurity OR c.relforcerowsecurity)
           AND NOT EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid)
    LOOP
        EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', closed);
    END LOOP;
END $$;

INSERT INTO jobqueue_internal.schema_version (version, oldest_node)
SELECT v.this, v.this FROM CAST(current_setting('jobqueue.this_version') AS integer) AS v (this)
 WHERE NOT EXISTS (SELECT FROM jobqueue_internal.schema_version);

INSERT INTO jobqueue_internal.identity (database, system_identifier)
SELECT c.database, c.system_identifier FROM jobqueue_internal.current_identity() AS c
 WHERE NOT EXISTS (SELECT FROM jobqueue_internal.identity);

-- Create the first partitions in a new database, so that a database prepared with psql alone is complete. Later, nodes
-- create partitions, which locks the table. Nodes decide how long jobs are kept, so this call drops only partitions that
-- are over thirty years old.
DO $$ BEGIN
    IF (SELECT count(*) FROM pg_inherits AS i WHERE i.inhparent = 'jobqueue_internal.succeeded_jobs'::regclass) = 1 THEN
        PERFORM jobqueue_internal.maintain(1e9, 1e9);
    END IF;
END $$;
