"""The far side of a CPU-bound handler: what runs in the worker process around the user's function, and in part in threads.

Only JSON and texts cross back. What the handler returns passes the gate where it was made: the service neither unpickles nor
measures a result that is too large. What it raises becomes text there: an exception may not survive the way, and its class need not
exist here.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jobqueue import documents, logs, tracing
from jobqueue.errors import Discard, Retry, Snooze
from jobqueue.job import MAX_RESULT_BYTES

MAX_ERRORS_TOLD = 5
"""Errors of one group that an error's line names; its traceback has all."""


class HandlerFailed(Exception):
    """A handler in a process failed.

    Args:
        text: what happened.
        traceback: where; None when it did not raise.
        error_type: the class of what it raised, by name.
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
        trace: of its span, which is the service's; None without one.
        job: what log lines tell of it.

    Raises:
        Retry, Snooze, Discard: the handler's verdict, as the plain class.
        HandlerFailed: anything else that it raised, or a result that cannot be stored.
    """
    result: Any = None
    logs.adopt_root()  # the handler's module was imported to get the function
    logs.running.set(job)
    try:
        with tracing.continued(trace):
            result = function(**arguments)
        return documents.encode(result, limit=MAX_RESULT_BYTES)
    except documents.RefusedDocument as error:
        failure: Exception = HandlerFailed(unstorable(result, error), None)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it must get back
        failure = _sendable(error)
    raise failure  # here, where it has no context: what it came from need not survive the way


def in_list(function: Callable[[], Any]) -> list[Any]:
    """Call a function in a thread. Trio refuses a coroutine that a thread returns, but not one in a list."""
    return [function()]


def unstorable(result: object, error: documents.RefusedDocument) -> str:
    """Say why a result cannot be stored. A coroutine that nobody will await is closed, so that Python does not warn of it."""
    if not inspect.isawaitable(result):
        return f"the result cannot be stored as JSON: {error}"
    if inspect.iscoroutine(result):
        result.close()
    return (
        f"the handler returned something to await ({type(result).__name__}), which cannot be stored: await it in an async def,"
        " or run it before the handler returns (trio.run, asyncio.run)"
    )


def text_of(value: object) -> str:
    """The text of something of the user's, whose ``__str__`` may fail."""
    try:
        return str(value)
    except BaseException:  # noqa: BLE001 - nothing is awaited here, so this is no cancellation
        return "(it has no text: __str__ failed)"


def error_line(error: BaseException) -> str:
    """Say what was raised; of a group with several errors, how many, and the first of them."""
    if not isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}: {text_of(error)}"
    leaves = list(_leaves(error))
    told = [error_line(leaf) for leaf in leaves[:MAX_ERRORS_TOLD]]
    return f"{len(leaves)} errors: {'; '.join(told)}{'; ...' if len(leaves) > MAX_ERRORS_TOLD else ''}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _sendable(error: BaseException) -> Exception:
    cause = error
    while isinstance(cause, BaseExceptionGroup) and len(cause.exceptions) == 1:
        cause = cause.exceptions[0]
    match cause:
        case Snooze():
            delay: Any = getattr(cause, "delay", None)  # the executor says what is wrong with it
            return Snooze(delay)
        case Retry():
            return Retry(getattr(cause, "delay", None), text_of(getattr(cause, "reason", type(cause).__name__)))
        case Discard():
            return Discard(text_of(getattr(cause, "reason", type(cause).__name__)))
    return HandlerFailed(error_line(cause), "".join(traceback.format_exception(error)), tracing.error_type(cause))
