"""Validate the submissions of a test as the service validates requests, and adapt an app's handlers to tests."""

from __future__ import annotations

from typing import Any

import msgspec

from jobqueue.engine.handlers import App, Handler
from jobqueue.errors import InvalidJob
from jobqueue.fields import read
from jobqueue.job import Submission


def submission(kind: str, payload: Any, fields: dict[str, Any]) -> Submission:
    """Make a submission from a test's arguments.

    Raises:
        InvalidJob: a field is unknown, or its value is not valid; the message names the field.
    """
    made = read({"kind": kind, **fields}, Submission, what="a job", refuse=InvalidJob)
    made.payload = {} if payload is None else payload
    return made


class InThreads(App):
    """A copy of an app whose process handlers run in threads, so that a test can observe them and patch the objects that they use.

    Handlers that need a connection fail, because a test without a database cannot provide one.
    """

    def __init__(self, app: App) -> None:
        super().__init__()
        vars(self).update(vars(app))  # copy all attributes; the next line replaces the handlers
        self._handlers = {kind: _in_thread(handler) for kind, handler in app.handlers.items()}


def _in_thread(handler: Handler) -> Handler:
    if handler.connection is not None:
        return msgspec.structs.replace(handler, function=_without_database, connection=None)
    return msgspec.structs.replace(handler, mode="thread") if handler.mode == "process" else handler


def _without_database(**_: Any) -> None:
    raise TypeError("this handler needs a psycopg.Connection, but this test has no database: use the fixture jobqueue_service")
