"""The handlers of tests/running_handlers.py in a service that gives a request two seconds in all, and lets two watch jobs."""

from __future__ import annotations

from jobqueue.engine import watching
from jobqueue.http import limits
from tests.running_handlers import app

__all__ = ["app"]

limits.REQUEST_TIMEOUT = 2.0
watching.MAX_WATCHERS = 2
