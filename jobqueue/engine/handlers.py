"""The user's handlers: registered by kind, their signatures compiled once into decoders of payloads."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from jobqueue.engine.arguments import Decode, Field, Unconvertible, decoder
from jobqueue.engine.periodic import Schedules
from jobqueue.errors import HandlerError, InvalidQueueSetting
from jobqueue.fields import must_be
from jobqueue.job import MAX_NAME_LENGTH, MAX_RETRIES, MAX_TIMEOUT, ClaimedJob, Job, PathName, QueueSettings, queue_settings
from jobqueue.retry import DEFAULT_BACKOFF, Backoff
from jobqueue.timetable import CronSchedule, Missed

Mode = Literal["async", "thread", "process"]
Signature = tuple[dict[str, Any], Mapping[str, inspect.Parameter]]
Compiled = tuple[Callable[[ClaimedJob], dict[str, Any]], str | None]
"""What a function's parameters are annotated with, and the parameters."""

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
        connection: the parameter that receives the connection whose transaction completes the job; None without one.
        job_parameter: the argument that is the `Job`; None where the handler does not ask for it.
    """

    kind: str
    function: Callable[..., Any]
    mode: Mode
    timeout: float | None
    max_retries: int | None
    backoff: Backoff
    arguments: Callable[[ClaimedJob], dict[str, Any]]
    connection: str | None
    job_parameter: str | None


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """A function that is told what became of jobs.

    Attributes:
        name: for the log.
        is_async: whether it is called on the loop, or in a thread.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool


class App:
    """A set of handlers, by kind: what ``jobqueue serve MODULE`` serves.

    ::

        app = jobqueue.App()

        @app.handler("thumbnail", timeout=30, max_retries=5)
        def thumbnail(path: str, width: int = 256) -> dict[str, int]: ...

    Attributes:
        source: what ``jobqueue serve`` was given, which owns the schedules of this app; None for an app that nobody serves.
    """

    def __init__(self) -> None:
        self.source: str | None = None
        self._handlers: dict[str, Handler] = {}
        self._queues: dict[str, QueueSettings] = {}
        self._schedules = Schedules()
        self._on_dead: list[Hook] = []
        self._on_retry: list[Hook] = []

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The registered handlers by kind."""
        return self._handlers

    @property
    def schedules(self) -> list[CronSchedule]:
        """The declared schedules.

        Raises:
            HandlerError: one has no kind.
        """
        return self._schedules.declared()

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
        try:
            msgspec.convert(name, PathName)
        except msgspec.ValidationError:
            raise HandlerError(f"a queue's name must be {must_be(PathName)}, got {name!r}") from None
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

        The payload object's fields become keyword arguments, converted to the annotated types (msgspec's, pydantic models, and
        paths); fields that the function does not name are ignored. A parameter annotated `jobqueue.Job` receives the job. One
        annotated `psycopg.Connection`, of a plain def, receives a connection in a transaction that is committed together with the
        job's completion. What the function returns, as JSON, is the job's result.

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
            mode = _mode_of(kind, function, cpu=cpu)
            signature = _signature(kind, function)
            connection = _connection_parameter(kind, signature, mode)
            arguments, job_parameter = _compile(kind, signature, connection)
            self._handlers[kind] = Handler(
                kind=kind,
                function=function,
                mode=mode,
                timeout=timeout,
                max_retries=max_retries,
                backoff=backoff,
                arguments=arguments,
                connection=connection,
                job_parameter=job_parameter,
            )
            self._schedules.handled(function, kind)
            return function

        return register

    def periodic(
        self,
        cron: str,
        *,
        timezone: str = "UTC",
        missed: Missed = "one",
        kind: str | None = None,
        name: str | None = None,
        payload: Any = None,
        queue: str = "default",
        priority: int = 0,
        max_retries: int | None = None,
        timeout: float | None = None,
    ) -> Callable[[Function], Function]:
        """Submit a job by the clock: of the decorated handler's kind, or of `kind` (then a call by itself will do).

        However many nodes there are, each tick has one job. Its handler finds the tick's time in `Job.scheduled_for`.

        ::

            @app.periodic("0 3 * * *", timezone="Europe/Berlin")
            @app.handler("report")
            async def report(job: jobqueue.Job) -> None: ...

        Args:
            cron: minute, hour, day of the month, month, day of the week; with six fields, the first is the second.
            timezone: the IANA name of the time zone that it means.
            missed: when several ticks are due, as after a time without any node, submit a job for the latest ("one"), for those of
                the last minute ("skip"), or for each ("all").
            kind: of the jobs; the handler's.
            name: of the schedule; the kind. There is one of a name in a database.
            payload: of the jobs, as JSON has it; none is ``{}``.
            queue, priority, max_retries, timeout: of the jobs.

        Raises:
            HandlerError: a value cannot be, the name is taken, or it is not clear which kind is meant.
        """
        fields = {
            "cron": cron,
            "timezone": timezone,
            "missed": missed,
            "payload": payload,
            "queue": queue,
            "priority": priority,
            "max_retries": max_retries,
            "timeout": timeout,
        } | ({} if name is None else {"name": name})
        if kind is not None:
            self._schedules.declare({**fields, "kind": kind})
            return lambda function: function

        def register(function: Function) -> Function:
            kinds = [kind for kind, handler in self._handlers.items() if handler.function == function]
            self._schedules.declare_for(function, kinds, fields)
            return function

        return register

    @property
    def dead_hooks(self) -> Sequence[Hook]:
        """What `on_dead` registered."""
        return self._on_dead

    @property
    def retry_hooks(self) -> Sequence[Hook]:
        """What `on_retry` registered."""
        return self._on_retry

    def on_dead(self, function: Function) -> Function:
        """Have the decorated function called with ``(job: jobqueue.Job, error: jobqueue.AttemptError)`` when a job has died.

        It is called once that is committed, by the node that wrote it: also where the job was not started in time, or its node was
        lost. ``async def`` is called on the loop, ``def`` in a thread, each within 30 s. What it raises is logged and changes
        nothing. A crash between the commit and the call loses the call: what must not be missed is in the dead letters.

        Raises:
            HandlerError: it cannot be called so.
        """
        self._on_dead.append(_hook("on_dead", function))
        return function

    def on_retry(self, function: Function) -> Function:
        """Have the decorated function called as `on_dead` does, when an attempt has failed and the job will be tried again.

        Raises:
            HandlerError: it cannot be called so.
        """
        self._on_retry.append(_hook("on_retry", function))
        return function


def _hook(event: str, function: Callable[..., Any]) -> Hook:
    name = f"{event} {getattr(function, '__qualname__', function)!s}"
    if (reason := _not_a_function(function)) is not None:
        raise HandlerError(f"{name}: {reason}. A hook is a def or an async def, and @app.{event} has no parentheses")
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError) as error:
        raise HandlerError(f"{name}: a hook is called with (job, error): {error}") from None
    return Hook(name=name, function=function, is_async=_is_async(function))


def _not_a_function(function: Any) -> str | None:
    """Say why something is not a function that a node could call; None where it is one."""
    if isinstance(function, classmethod):
        return "a classmethod has no class yet in the class's body: register it below the class, as Class.method"
    if not callable(function):
        return f"a {type(function).__name__} cannot be called"
    if inspect.isclass(function):
        return f"{function.__name__} is a class: register a function, or an instance with __call__"
    called = _called(function)
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
        return "it is a generator, and nobody iterates over it: use def or async def with return"
    return None


def _called(function: Any) -> Any:
    """Return the def that a call ends up in, behind partials, methods, and objects with ``__call__``."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, staticmethod) or inspect.ismethod(function):
            function = function.__func__
        elif inspect.isroutine(function):
            return function
        else:
            function = type(function).__call__


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_called(function))


_NO_CONNECTION: dict[Mode, str] = {
    "async": "an async def runs on the loop, which its statements would block: write a plain def, which runs in a thread",
    "process": "with cpu=True the function runs in another process: write a plain def without it, which runs in a thread",
}


def _mode_of(kind: str, function: Callable[..., Any], *, cpu: bool) -> Mode:
    if (reason := _not_a_function(function)) is not None:
        raise HandlerError(f"{kind}: {reason}")
    if _is_async(function):
        if cpu:
            raise HandlerError(f"{kind}: cpu=True runs a function in a process, so it must be a plain def")
        return "async"
    if not cpu:
        return "thread"
    if not _importable(function):
        raise HandlerError(
            f"{kind}: cpu=True needs a function at the top of a module, where another process can import it. It cannot be a lambda,"
            " a method, a partial, an object, a function within a function, or one of an interactive session"
        )
    return "process"


def _importable(function: Callable[..., Any]) -> bool:
    if not (inspect.isfunction(function) or inspect.isbuiltin(function)) or not function.__qualname__.isidentifier():
        return False
    return function.__module__ != "__main__" or Path(getattr(sys.modules["__main__"], "__file__", None) or "").is_file()


def _compile(kind: str, signature: Signature, connection: str | None) -> Compiled:
    """Turn a signature into a function from a claimed job to keyword arguments, but for the one that takes the connection.

    Also returns the name of the one that is the job, if there is one.
    """
    hints, parameters = signature
    job_parameter: str | None = None
    fields: list[Field] = []
    for name, parameter in parameters.items():
        if name == connection:
            continue
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

    return arguments, job_parameter


def _decoder(kind: str, fields: list[Field]) -> Decode:
    try:
        return decoder(fields)
    except Unconvertible as error:
        raise HandlerError(f"{kind}: {error}") from error


def _signature(kind: str, function: Callable[..., Any]) -> Signature:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:
        raise HandlerError(f"{kind}: {error}: Python knows no parameters of it, so call it in a def of your own") from error
    hints = _hints(kind, function)
    for position, (name, parameter) in enumerate(parameters.items()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise HandlerError(
                f"{kind}: parameter {name!r} must be one that can be given by name. Name each field, or take a job: jobqueue.Job"
                " and read job.payload. The wrapper of a decorator needs @functools.wraps"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise HandlerError(f"{kind}: parameter {name!r} must be one that can be given by name: leave out the slash")
        if position == 0 and name in ("self", "cls") and name not in hints:
            raise HandlerError(
                f"{kind}: parameter {name!r} would be a field of the payload: a method is registered on its object, as in"
                f' app.handler("{kind}")(thing.{getattr(function, "__name__", "method")}), or made a staticmethod'
            )
    if (reason := _obstacle(function, parameters)) is not None:
        raise HandlerError(
            f"{kind}: the wrapper that a decorator put around the function cannot be called with its parameters by name: {reason}."
            " Let it take *args and **kwargs"
        )
    return hints, parameters


def _obstacle(function: Callable[..., Any], parameters: Iterable[str]) -> str | None:
    """Say why what is called does not take the parameters of the function that it wraps; None where it does, as far as is known."""
    try:
        own = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None  # a wrapper in C, such as lru_cache
    try:
        own.bind(**dict.fromkeys(parameters))
    except TypeError as error:
        return str(error)
    return None


def _hints(kind: str, function: Any) -> dict[str, Any]:
    """Return the annotations of the function whose signature this one's is."""
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isroutine(function) or hasattr(function, "__wrapped__")):
        function = type(function).__call__
    try:
        return get_type_hints(function, include_extras=True)
    except Exception as error:
        raise HandlerError(f"{kind}: the annotations cannot be resolved: {error}") from error


def _is_job(annotation: Any) -> bool:
    """Whether a parameter of this type receives the job: ``Job``, also as ``Job | None`` or ``Annotated[Job, ...]``."""
    return annotation is Job or (get_origin(annotation) in (Annotated, Union, UnionType) and Job in get_args(annotation))


def _connection_parameter(kind: str, signature: Signature, mode: Mode) -> str | None:
    """Return the name of the parameter that asks for a connection; None without one."""
    hints, parameters = signature
    asking = {name: cls for name in parameters if (cls := _connection_class(hints.get(name))) is not None}
    for name, cls in asking.items():
        if (cls.__module__, cls.__name__) != ("psycopg", "Connection"):
            asked = f"{cls.__module__}.{cls.__name__}"
            raise HandlerError(f"{kind}: parameter {name!r} asks for a {asked}; a handler can have a psycopg.Connection")
        if mode != "thread":
            raise HandlerError(f"{kind}: parameter {name!r} asks for a psycopg.Connection, but {_NO_CONNECTION[mode]}")
    if len(asking) > 1:
        raise HandlerError(f"{kind}: parameters {' and '.join(map(repr, asking))} ask for the connection: one is enough")
    return next(iter(asking), None)


def _connection_class(annotation: Any) -> type | None:
    """Return the class where a parameter is annotated with one of psycopg's connections, also with its rows, or None, beside it.

    psycopg is known by name: an application that has no such handler, and a process of a CPU-bound one, need not load it for that.
    """
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return next(filter(None, map(_connection_class, get_args(annotation))), None)
    cls = get_origin(annotation) or annotation
    of_psycopg = {base.__name__ for base in getattr(cls, "__mro__", ()) if base.__module__ == "psycopg"}
    return cls if isinstance(cls, type) and not of_psycopg.isdisjoint({"Connection", "AsyncConnection"}) else None
