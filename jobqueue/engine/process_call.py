"""Run the user's function of a CPU-bound handler in a worker process. Some helpers also run in threads.

Only JSON and text return to the service. The worker process encodes the result, so that the service
never unpickles or measures a large result. It also converts exceptions to text, because some cannot
be pickled, or are of a class that the service does not know.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from jobqueue import documents, logs, tracing
from jobqueue.errors import Discard, Retry, Snooze
from jobqueue.exception_groups import leaves, unwrapped
from jobqueue.job import MAX_RESULT_BYTES

MAX_ERRORS_TOLD = 5
"""Maximum number of errors of one exception group that a message lists. The traceback contains all of them."""


class HandlerFailed(Exception):
    """A handler in a process failed.

    Args:
        text: the error as one line.
        traceback: its traceback; None if the handler did not raise.
        error_type: the name of the exception's class.
    """

    def __init__(self, text: str, traceback: str | None, error_type: str | None = None) -> None:
        super().__init__(text, traceback, error_type)
        self.text = text
        self.traceback = traceback
        self.error_type = error_type


def call_handler(
    function: Callable[..., Any], arguments: dict[str, Any], trace: Mapping[str, str] | None, job: logs.JobFields
) -> bytes:
    """Call the handler and return its result as a JSON document.

    Args:
        trace: the context of the service's span for the handler; None without one.
        job: the job's fields for log lines.

    Raises:
        Retry, Snooze, Discard: the handler's verdict, as an instance of the plain class.
        HandlerFailed: any other exception, or a result that cannot be stored.
    """
    result: Any = None
    logs.adopt_root()  # importing the handler's module may have changed the root logger
    logs.running.set(job)
    try:
        with tracing.continued(trace):
            result = function(**arguments)
        return documents.encode(result, limit=MAX_RESULT_BYTES)
    except documents.RefusedDocument as error:
        failure: Exception = HandlerFailed(unstorable(result, error), None)
    except BaseException as error:  # noqa: BLE001 - every error must reach the service
        failure = _sendable(error)
    raise failure  # raise it here, without a context, which might not be picklable


def in_list(function: Callable[[], Any]) -> list[Any]:
    """Call a function and return its result in a list. Trio lets a thread return a coroutine only inside of a list."""
    return [function()]


def unstorable(result: object, error: documents.RefusedDocument) -> str:
    """Return why a result cannot be stored. Closes a coroutine, so that Python does not warn that it was never awaited."""
    if not inspect.isawaitable(result):
        return f"the result cannot be stored as JSON: {error}"
    if inspect.iscoroutine(result):
        result.close()
    return (
        f"the handler returned an awaitable ({type(result).__name__}), which cannot be stored: await it in an async def,"
        " or run it before the handler returns (trio.run, asyncio.run)"
    )


def text_of(value: object) -> str:
    """Return the text of a user object, whose ``__str__`` may fail."""
    try:
        return str(value)
    except BaseException:  # noqa: BLE001 - nothing is awaited here, so this is not a cancellation
        return "(no text: __str__ failed)"


def error_line(error: BaseException) -> str:
    """Return an exception as one line. For a group, the line has the number of errors and the first errors."""
    if not isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}: {text_of(error)}"
    errors = list(leaves(error))
    told = [error_line(leaf) for leaf in errors[:MAX_ERRORS_TOLD]]
    return f"{len(errors)} errors: {'; '.join(told)}{'; ...' if len(errors) > MAX_ERRORS_TOLD else ''}"


def _sendable(error: BaseException) -> Exception:
    cause = unwrapped(error)
    match cause:
        case Snooze():
            delay: Any = getattr(cause, "delay", None)  # the executor reports an invalid delay
            return Snooze(delay)
        case Retry():
            return Retry(getattr(cause, "delay", None), text_of(getattr(cause, "reason", type(cause).__name__)))
        case Discard():
            return Discard(text_of(getattr(cause, "reason", type(cause).__name__)))
    return HandlerFailed(error_line(cause), "".join(traceback.format_exception(error)), tracing.error_type(cause))
