"""The store in PostgreSQL. Most verbs call one SQL function of schema.sql."""

from __future__ import annotations

from jobqueue.storage.postgres.inspect import PostgresInspect
from jobqueue.storage.postgres.run import PostgresRun
from jobqueue.storage.postgres.schedule import PostgresSchedule
from jobqueue.storage.postgres.steer import PostgresSteer
from jobqueue.storage.postgres.submit import PostgresSubmit
from jobqueue.storage.postgres.upkeep import PostgresUpkeep


class PostgresStore(PostgresSubmit, PostgresRun, PostgresSchedule, PostgresInspect, PostgresSteer, PostgresUpkeep):
    """All roles of the store, on one set of connections."""
