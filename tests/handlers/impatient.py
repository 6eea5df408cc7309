"""The handlers of tests/handlers/plain.py, in a service that waits PATIENCE seconds for slow clients."""

from __future__ import annotations

import os

from jobqueue.http import limits
from tests.handlers.plain import app

__all__ = ["app"]

limits.HEADERS_TIMEOUT = limits.BODY_TIMEOUT = limits.SEND_TIMEOUT = float(os.environ["PATIENCE"])
