"""What a test submits goes through the same door as a request."""

from __future__ import annotations

from typing import Any

import msgspec

from jobqueue.engine.handlers import App, Handler
from jobqueue.errors import InvalidJob
from jobqueue.job import Submission


def submission(kind: str, payload: Any, fields: dict[str, Any]) -> Submission:
    """Make a submission of a test's arguments.

    Raises:
        InvalidJob: a field that jobs do not have, or a value that it cannot have; the message names it.
    """
    try:
        return msgspec.convert({"kind": kind, "payload": {} if payload is None else payload, **fields}, Submission)
    except msgspec.ValidationError as error:
        raise InvalidJob(str(error)) from None


class InThreads(App):
    """Another app's handlers, with those for processes in threads: a test sees what they do, and can replace what they use.

    Those that take a connection fail: there is no database whose transaction could complete their jobs.
    """

    def __init__(self, app: App) -> None:
        super().__init__()
        vars(self).update(vars(app))  # whatever else an app declares
        self._handlers = {kind: _in_thread(handler) for kind, handler in app.handlers.items()}


def _in_thread(handler: Handler) -> Handler:
    if handler.connection is not None:
        return msgspec.structs.replace(handler, function=_without_database, connection=None)
    return msgspec.structs.replace(handler, mode="thread") if handler.mode == "process" else handler


def _without_database(**_: Any) -> None:
    raise TypeError("this handler takes a psycopg.Connection, and there is no database here: use the fixture jobqueue_service")
