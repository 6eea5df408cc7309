-- Return to the role that runs the script. Other statements may follow in the same transaction.
DO $$ BEGIN PERFORM set_config('role', current_setting('jobqueue.role_before'), true); END $$;
