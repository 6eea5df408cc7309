"""The handlers of tests/handlers/running.py, in a service with a request timeout of ten seconds and at most two watchers."""

from __future__ import annotations

from jobqueue.engine import job_watcher
from jobqueue.http import limits
from tests.handlers.running import app

__all__ = ["app"]

limits.REQUEST_TIMEOUT = 10.0
job_watcher.MAX_WATCHERS = 2
