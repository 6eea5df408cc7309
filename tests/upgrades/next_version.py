"""A synthetic version 3 of the schema, with each kind of step. Run as a module, it migrates a database: DIRECTORY URL."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from jobqueue.storage import schema
from jobqueue.storage.connection import connect
from jobqueue.storage.schema import parts

BEFORE = """
-- Lock: ACCESS EXCLUSIVE on jobqueue_internal.queues, about 10 ms: claims
DO $$ BEGIN
    IF EXISTS (SELECT FROM jobqueue_internal.schema_version WHERE version = 2)
       AND NOT EXISTS (SELECT FROM jobqueue_internal.schema_version WHERE version = 3) THEN
        ALTER TABLE jobqueue_internal.queues ADD COLUMN remark text, ADD COLUMN rewrites integer NOT NULL DEFAULT 0;
        INSERT INTO jobqueue_internal.schema_version (version, oldest_node) VALUES (3, 2);
    END IF;
END $$;
"""

AUTOCOMMIT = """
SET search_path = pg_catalog, pg_temp;
SET lock_timeout = '50ms';

-- A rewrite in small transactions.
DO $$ BEGIN
    LOOP
        UPDATE jobqueue_internal.queues AS q SET remark = 'rewritten; ' || q.name, rewrites = q.rewrites + 1
         WHERE q.name IN (SELECT o.name FROM jobqueue_internal.queues AS o WHERE o.remark IS NULL ORDER BY o.name LIMIT 10);
        EXIT WHEN NOT FOUND;
        COMMIT;
        PERFORM pg_sleep(0.02);
    END LOOP;
END $$;

-- An index. An interrupted build leaves an invalid one.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_index AS i
                WHERE i.indexrelid = to_regclass('jobqueue_internal.queues_remark') AND NOT i.indisvalid) THEN
        DROP INDEX jobqueue_internal.queues_remark;
    END IF;
END $$;
SET lock_timeout = 0;   -- the build blocks no statement of a node, even while it waits
CREATE INDEX CONCURRENTLY IF NOT EXISTS queues_remark ON jobqueue_internal.queues (remark);
"""

AFTER = """
DO $$ BEGIN
    UPDATE jobqueue_internal.schema_version SET oldest_node = 3 WHERE version = 3;
END $$;
"""


def write(directory: Path) -> None:
    """Copy the parts of schema.sql, and add version 3."""
    shutil.copytree(str(parts.SOURCE), directory, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    prepare = directory / "prepare.sql"
    prepare.write_text(prepare.read_text().replace("this_version constant integer := 2;", "this_version constant integer := 3;"))
    for name, text in {"before_remark": BEFORE, "before_remark.autocommit": AUTOCOMMIT, "after_remark": AFTER}.items():
        (directory / "upgrades" / f"0003_{name}.sql").write_text(text)
    contents = directory / "schema.sql"
    include = r"\ir jobqueue/storage/schema/"
    text = contents.read_text()
    for before, step in [("api.sql", "0003_before_remark.sql"), ("unrecord", "0003_before_remark.autocommit.sql")]:
        text = text.replace(f"{include}{before}", f"{include}upgrades/{step}\n{include}{before}")
    contents.write_text(text)


def use(directory: Path) -> None:
    """Make this process one of version 3."""
    parts.SOURCE = directory
    schema.SCHEMA_VERSION = 3


if __name__ == "__main__":
    use(Path(sys.argv[1]))
    with connect(sys.argv[2], "migrate") as connection:
        schema.migrate(connection)
