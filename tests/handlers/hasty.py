"""The handlers of tests/handlers/running.py, in a service with a request timeout of five seconds and at most two watchers."""

from __future__ import annotations

from jobqueue.engine import job_watcher, overview
from jobqueue.http import limits
from tests.handlers.running import app

__all__ = ["app"]

limits.REQUEST_TIMEOUT = 5.0
job_watcher.MAX_WATCHERS = 2
overview.MAX_PAGES = 2
overview.LOOK_INTERVAL = 0.5
