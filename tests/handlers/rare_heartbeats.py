"""The handlers of tests/handlers/running.py, on a node that renews its lease once an hour.

Such a node learns of cancellations from notifications alone.
"""

from __future__ import annotations

from jobqueue.engine import leases
from tests.handlers.running import app

__all__ = ["app"]

leases.LONGEST_INTERVAL = 3600  # seconds
