"""A store in memory with the operations of schema.sql, on a clock that a test can control. For tests only.

The same tests run on this store and on PostgreSQL (`tests/storage/test_store.py`). Times are whole microseconds, as in PostgreSQL.
Each operation runs one Trio checkpoint, and then does all its work without another. So it is atomic like a transaction. A
cancellation takes effect before the work or not at all, as for work in a thread.
"""

from jobqueue.testing.memory_store.steer import MemorySteer
from jobqueue.testing.memory_store.upkeep import MemoryUpkeep


class MemoryStore(MemorySteer, MemoryUpkeep):
    """A store that keeps all jobs in dictionaries; see `State` for its arguments."""
