"""The verbs of the store, one protocol per role. The parts of a node know only the roles that they use.

`jobqueue.storage.postgres` and `jobqueue.testing.memory_store` implement all roles. Each verb is one transaction. A batch is passed
or returned as one JSON document. Times are seconds on the database's clock.

All verbs raise `DatabaseUnavailable` if PostgreSQL cannot be reached, and `ConnectionLost` if the connection broke and the
transaction may or may not be committed.
"""

from __future__ import annotations

from typing import Protocol

from jobqueue.storage.roles.inspect import InspectStore
from jobqueue.storage.roles.run import RunStore
from jobqueue.storage.roles.schedule import ScheduleStore
from jobqueue.storage.roles.steer import SteerStore
from jobqueue.storage.roles.submit import SubmitStore
from jobqueue.storage.roles.upkeep import UpkeepStore


class Store(SubmitStore, RunStore, ScheduleStore, InspectStore, SteerStore, UpkeepStore, Protocol):
    """All roles of a store.

    Attributes:
        url: the database's libpq URL or connection string.
        schema: the name of the queue's schemas.
    """

    url: str
    schema: str

    def slow_calls(self) -> dict[str, float]:
        """Return the essential calls that have been running for several seconds, each with its seconds so far.

        Such a call shows that a backend does not reply, even before the call times out.
        """

    async def migrate(self) -> None:
        """Create or upgrade the schema if needed, and finish the upgrade if no older node runs; see `jobqueue.storage.schema`."""

    async def require_schema(self) -> None:
        """Check that the schema supports this version.

        Raises:
            SchemaVersionError: it does not, so the node must stop.
        """

    async def aclose(self) -> None:
        """Close all connections."""
