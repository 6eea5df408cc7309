"""The user's handlers: registered by kind, their signatures compiled once into decoders of payloads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from jobqueue.errors import HandlerError, InvalidQueueSetting
from jobqueue.job import MAX_NAME_LENGTH, MAX_RETRIES, MAX_TIMEOUT, ClaimedJob, Job, QueueSettings, queue_settings
from jobqueue.retry import DEFAULT_BACKOFF, Backoff

Mode = Literal["async", "thread", "process"]
Function = TypeVar("Function", bound=Callable[..., Any])


class PayloadMismatch(ValueError):
    """A payload does not fit the handler's arguments; no retry can change that."""


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A function that serves a kind, and how its jobs are run.

    Attributes:
        mode: on the loop (async def), in a thread (def), or in a process (def, ``cpu=True``).
        timeout: seconds for one attempt; None for no bound. A job's own timeout goes first.
        max_retries: for jobs submitted without; None for the default of 3.
        arguments: make the keyword arguments of one call; raises `PayloadMismatch`.
    """

    kind: str
    function: Callable[..., Any]
    mode: Mode
    timeout: float | None
    max_retries: int | None
    backoff: Backoff
    arguments: Callable[[ClaimedJob], dict[str, Any]]


class App:
    """A set of handlers, by kind: what ``jobqueue serve MODULE`` serves.

    ::

        app = jobqueue.App()

        @app.handler("thumbnail", timeout=30, max_retries=5)
        def thumbnail(path: str, width: int = 256) -> dict[str, int]: ...
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._queues: dict[str, QueueSettings] = {}

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The registered handlers by kind."""
        return self._handlers

    @property
    def queues(self) -> Mapping[str, QueueSettings]:
        """The declared settings by queue."""
        return self._queues

    def queue(self, name: str, **settings: float | None) -> None:
        """Declare what holds for a queue on all nodes. It is set when a node starts, whatever was set in between by other means.

        Args:
            name: the queue.
            **settings: ``aging_interval`` in seconds, ``max_running``, ``rate`` (a second), ``burst``, ``key_max_running``,
                ``key_rate``, ``key_burst``: the fields of `jobqueue.job.QueueSettings`. One that is not given stays as it is in the
                database; None is no limit (and 1 for ``aging_interval`` and ``key_max_running``).

        Raises:
            HandlerError: the queue was declared already, or a setting is unknown or out of its range.
        """
        if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME_LENGTH:
            raise HandlerError(f"a queue's name has 1 to {MAX_NAME_LENGTH} characters")
        if name in self._queues:
            raise HandlerError(f"queue {name!r} is declared already")
        try:
            self._queues[name] = queue_settings(settings)
        except InvalidQueueSetting as error:
            raise HandlerError(f"queue {name!r}: {error}") from None

    def handler(
        self,
        kind: str,
        *,
        timeout: float | None = None,
        max_retries: int | None = None,
        backoff: Backoff = DEFAULT_BACKOFF,
        cpu: bool = False,
    ) -> Callable[[Function], Function]:
        """Register the decorated function for a kind of job.

        The payload object's fields become keyword arguments, converted to the annotated types (msgspec's rules); fields that the
        function does not name are ignored. A parameter annotated `jobqueue.Job` receives the job. What the function returns, as
        JSON, is the job's result.

        Args:
            kind: the name that submitters use.
            timeout: seconds for one attempt.
            max_retries: attempts after the first one, for jobs submitted without a number of their own.
            backoff: the delay before each retry.
            cpu: run in a process. The function must be importable by its name.

        Raises:
            HandlerError: the kind is taken, a value is out of range, or the signature cannot be filled from a payload.
        """
        if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_NAME_LENGTH:
            raise HandlerError(f'a kind is a name of 1 to {MAX_NAME_LENGTH} characters: write @app.handler("name")')
        if kind in self._handlers:
            raise HandlerError(f"kind {kind!r} already has a handler")
        if timeout is not None and not (isinstance(timeout, int | float) and 0 < timeout <= MAX_TIMEOUT):
            raise HandlerError(f"{kind}: timeout must be over 0 and at most {MAX_TIMEOUT:.0f} s, got {timeout!r}")
        if max_retries is not None and not (isinstance(max_retries, int) and 0 <= max_retries <= MAX_RETRIES):
            raise HandlerError(f"{kind}: max_retries must be an integer from 0 to {MAX_RETRIES}, got {max_retries!r}")
        if not isinstance(backoff, Backoff):
            raise HandlerError(f"{kind}: backoff must be a jobqueue.Backoff, got {backoff!r}")

        def register(function: Function) -> Function:
            self._handlers[kind] = Handler(
                kind=kind,
                function=function,
                mode=_mode_of(kind, function, cpu=cpu),
                timeout=timeout,
                max_retries=max_retries,
                backoff=backoff,
                arguments=_compile(kind, function),
            )
            return function

        return register


def _mode_of(kind: str, function: Callable[..., Any], *, cpu: bool) -> Mode:
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise HandlerError(f"{kind}: a generator cannot be a handler; use def or async def with return")
    if inspect.iscoroutinefunction(function):
        if cpu:
            raise HandlerError(f"{kind}: cpu=True runs a function in a process, so it must be a plain def")
        return "async"
    if not cpu:
        return "thread"
    if "<" in getattr(function, "__qualname__", "<"):
        raise HandlerError(f"{kind}: cpu=True needs a function at the top of a module, where another process can import it")
    return "process"


def _compile(kind: str, function: Callable[..., Any]) -> Callable[[ClaimedJob], dict[str, Any]]:
    """Turn a signature into a function from a claimed job to keyword arguments."""
    hints, parameters = _signature(kind, function)
    job_parameter: str | None = None
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise HandlerError(f"{kind}: parameter {name!r} must be one that can be given by name")
        annotation = hints.get(name, Job if name == "job" else Any)
        if _is_job(annotation):
            if job_parameter is not None:
                raise HandlerError(f"{kind}: parameters {job_parameter!r} and {name!r} both ask for the job: one is enough")
            job_parameter = name
        elif parameter.default is parameter.empty:
            fields.append((name, annotation))
        else:
            # Absent means absent: the function's own default applies, and is never copied or converted.
            fields.append((name, Union[annotation, msgspec.UnsetType], msgspec.UNSET))  # noqa: UP007 - "|" needs a type on its left
    decode = _decoder(kind, fields)

    def arguments(claimed: ClaimedJob) -> dict[str, Any]:
        try:
            values = decode(claimed.payload)
            if job_parameter is not None:
                values[job_parameter] = Job.from_claim(claimed)
        except (msgspec.ValidationError, RecursionError) as error:
            raise PayloadMismatch(f"the payload does not fit the handler: {error}") from None
        except BaseException as error:  # the user's types run code of their own (__post_init__)
            raise PayloadMismatch(f"the payload does not fit the handler: {type(error).__name__}") from error
        return values

    return arguments


def _signature(kind: str, function: Callable[..., Any]) -> tuple[dict[str, Any], Mapping[str, inspect.Parameter]]:
    try:
        return get_type_hints(function, include_extras=True), inspect.signature(function).parameters
    except Exception as error:
        raise HandlerError(f"{kind}: the annotations cannot be resolved: {error}") from error


def _is_job(annotation: Any) -> bool:
    """Whether a parameter of this type receives the job: ``Job``, also as ``Job | None`` or ``Annotated[Job, ...]``."""
    return annotation is Job or (get_origin(annotation) in (Annotated, Union, UnionType) and Job in get_args(annotation))


def _decoder(kind: str, fields: list[tuple[str, Any] | tuple[str, Any, Any]]) -> Callable[[msgspec.Raw], dict[str, Any]]:
    if not fields:
        return lambda payload: {}  # noqa: ARG005 - nothing is asked of the payload, so any will do
    try:
        struct = msgspec.defstruct("Payload", fields, kw_only=True)
        decoder = msgspec.json.Decoder(struct)
    except (TypeError, ValueError) as error:
        raise HandlerError(f"{kind}: a payload cannot be converted to this signature: {error}") from error
    names = struct.__struct_fields__

    def decode(payload: msgspec.Raw) -> dict[str, Any]:
        values = decoder.decode(payload)
        return {name: value for name in names if (value := getattr(values, name)) is not msgspec.UNSET}

    return decode
