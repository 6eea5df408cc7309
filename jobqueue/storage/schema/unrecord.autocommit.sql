-- Delete the digests of the schema that `jobqueue migrate` or a node recorded before. They record new digests when they
-- find the comment empty. If a run stops before this statement, they find the old digests, and run all parts again.
COMMENT ON TABLE jobqueue_internal.schema_version IS NULL;
