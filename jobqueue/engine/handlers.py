"""Register the user's handlers by kind, and compile their signatures into payload decoders."""

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
from jobqueue.engine.declared_schedules import DeclaredSchedules
from jobqueue.errors import HandlerError, InvalidQueueSetting
from jobqueue.fields import must_be
from jobqueue.job import MAX_NAME_LENGTH, MAX_RETRIES, MAX_TIMEOUT, ClaimedJob, Job, PathName
from jobqueue.queue_settings import QueueSettings, queue_settings
from jobqueue.retry import DEFAULT_BACKOFF, Backoff
from jobqueue.timetable import CronSchedule, Missed

Mode = Literal["async", "thread", "process"]
Signature = tuple[dict[str, Any], Mapping[str, inspect.Parameter]]
Compiled = tuple[Callable[[ClaimedJob], dict[str, Any]], str | None]
"""A function that returns the keyword arguments of a claimed job, and the name of the parameter that receives the `Job`, if any."""

Function = TypeVar("Function", bound=Callable[..., Any])


class PayloadMismatch(ValueError):
    """The payload does not fit the handler's parameters. Retrying cannot help."""


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """A function that handles a kind, and the settings for its jobs.

    Attributes:
        mode: where the function runs: on the loop (async def), in a thread (def), or in a process (def, ``cpu=True``).
        timeout: seconds for one attempt; None means no limit. A job's own timeout takes precedence.
        max_retries: default for jobs without their own value; None means 3.
        arguments: returns the keyword arguments of one call; raises `PayloadMismatch`.
        connection: the parameter that receives the connection whose transaction completes the job; None without one.
        job_parameter: the parameter that receives the `Job`; None without one.
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
    """A function that is called when a job dies or is retried.

    Attributes:
        name: the hook's name in the log.
        is_async: whether the function runs on the loop; otherwise it runs in a thread.
    """

    name: str
    function: Callable[..., Any]
    is_async: bool


class App:
    """A set of handlers, by kind, which ``jobqueue serve MODULE`` serves.

    ::

        app = jobqueue.App()

        @app.handler("thumbnail", timeout=30, max_retries=5)
        def thumbnail(path: str, width: int = 256) -> dict[str, int]: ...

    Attributes:
        source: the argument of ``jobqueue serve``, under which this app's schedules are stored; None if the app is not served.
    """

    def __init__(self) -> None:
        self.source: str | None = None
        self._handlers: dict[str, Handler] = {}
        self._queues: dict[str, QueueSettings] = {}
        self._schedules = DeclaredSchedules()
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
            HandlerError: a schedule has no kind.
        """
        return self._schedules.declared()

    @property
    def queues(self) -> Mapping[str, QueueSettings]:
        """The declared settings by queue."""
        return self._queues

    def queue(self, name: str, **settings: float | None) -> None:
        """Declare a queue's settings for all nodes. They replace the stored settings each time a node starts.

        Args:
            name: the queue.
            **settings: ``aging_interval`` in seconds, ``max_running``, ``rate`` (per second),
                ``burst``, ``key_max_running``, ``key_rate``, ``key_burst``. These are the fields of
                `jobqueue.job.QueueSettings`. Omitted settings keep their stored value. None means
                no limit, or 1 for ``aging_interval`` and ``key_max_running``.

        Raises:
            HandlerError: the queue is already declared, or a setting is unknown or out of range.
        """
        try:
            msgspec.convert(name, PathName)
        except msgspec.ValidationError:
            raise HandlerError(f"a queue's name must be {must_be(PathName)}, got {name!r}") from None
        if name in self._queues:
            raise HandlerError(f"queue {name!r} is already declared: declare each queue once")
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

        The payload's fields become keyword arguments, converted to the annotated types. Annotate
        with types that msgspec supports, pydantic models, or paths. Fields without a parameter are
        ignored. A parameter of type `jobqueue.Job` receives the job.

        In a plain def, a parameter of type `psycopg.Connection` receives a connection in a
        transaction. This transaction also completes the job. The return value, as JSON, is the
        job's result.

        Args:
            kind: the name that callers use to submit jobs.
            timeout: seconds for one attempt.
            max_retries: attempts after the first one, for jobs without their own value.
            backoff: the delay before each retry.
            cpu: run in another process, which must be able to import the function by name.

        Raises:
            HandlerError: the kind already has a handler, a value is out of range, or the payload cannot fill the signature.
        """
        if not isinstance(kind, str) or not 1 <= len(kind) <= MAX_NAME_LENGTH:
            raise HandlerError(
                f'kind must be a string of 1 to {MAX_NAME_LENGTH} characters, got {kind!r}: write @app.handler("name")'
            )
        if kind in self._handlers:
            raise HandlerError(f"kind {kind!r} already has a handler: register each kind once")
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
        """At each tick of a cron schedule, submit a job of the decorated handler's kind, or of `kind`.

        With `kind`, you can also call `periodic` without decorating a function. Each tick submits one
        job, regardless of the number of nodes. The handler reads the tick's time from
        `Job.scheduled_for`.

        ::

            @app.periodic("0 3 * * *", timezone="Europe/Berlin")
            @app.handler("report")
            async def report(job: jobqueue.Job) -> None: ...

        Args:
            cron: minute, hour, day of the month, month, day of the week. With six fields, the first one is the second.
            timezone: the IANA name of the schedule's time zone.
            missed: which jobs to submit if several ticks are due, for example after all nodes were
                down: only the latest ("one"), only ticks of the last minute ("skip"), or all of
                them ("all").
            kind: the kind of the jobs; by default the kind of the handler.
            name: the schedule's name, unique in a database; by default the kind.
            payload: the jobs' payload, as a JSON value; by default ``{}``.
            queue, priority, max_retries, timeout: settings of the jobs.

        Raises:
            HandlerError: a value is invalid, the name is taken, or the kind is ambiguous.
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
        """The hooks registered with `on_dead`."""
        return self._on_dead

    @property
    def retry_hooks(self) -> Sequence[Hook]:
        """The hooks registered with `on_retry`."""
        return self._on_retry

    def on_dead(self, function: Function) -> Function:
        """Call the decorated function with ``(job: jobqueue.Job, error: jobqueue.AttemptError)`` when a job dies.

        The node that marks the job dead calls the hook after the commit. This includes jobs that
        did not start in time and jobs of lost nodes. An ``async def`` runs on the loop, a ``def``
        in a thread, each for at most 30 s. Errors of the hook are logged and have no other effect.

        A crash between the commit and the call loses the call. The dead letters are the reliable
        record.

        Raises:
            HandlerError: the function cannot be called with these arguments.
        """
        self._on_dead.append(_hook("on_dead", function))
        return function

    def on_retry(self, function: Function) -> Function:
        """Call the decorated function, as `on_dead` does, when an attempt fails and the job will be retried.

        Raises:
            HandlerError: the function cannot be called with these arguments.
        """
        self._on_retry.append(_hook("on_retry", function))
        return function


def _hook(event: str, function: Callable[..., Any]) -> Hook:
    name = f"{event} {getattr(function, '__qualname__', function)!s}"
    if (reason := _not_a_function(function)) is not None:
        raise HandlerError(f"{name}: {reason}. A hook must be a def or an async def, and @app.{event} takes no parentheses")
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError) as error:
        raise HandlerError(f"{name}: a hook must accept (job, error): {error}") from None
    return Hook(name=name, function=function, is_async=_is_async(function))


def _not_a_function(function: Any) -> str | None:
    """Return why a node cannot call this object; None if it can."""
    if isinstance(function, classmethod):
        return "a classmethod cannot be registered inside its class: register it below the class, as Class.method"
    if not callable(function):
        return f"a {type(function).__name__} is not callable: register a function"
    if inspect.isclass(function):
        return f"{function.__name__} is a class: register a function, or an instance with __call__"
    called = _called(function)
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
        return "it is a generator, which jobqueue does not iterate: use a def or async def that returns its result"
    return None


def _called(function: Any) -> Any:
    """Return the function that a call reaches, behind partials, methods, and objects with ``__call__``."""
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
    "async": "an async def runs on the Trio loop, which SQL statements would block: write a plain def, which runs in a thread",
    "process": "cpu=True runs the function in another process: remove cpu=True, and the function runs in a thread",
}


def _mode_of(kind: str, function: Callable[..., Any], *, cpu: bool) -> Mode:
    if (reason := _not_a_function(function)) is not None:
        raise HandlerError(f"{kind}: {reason}")
    if _is_async(function):
        if cpu:
            raise HandlerError(
                f"{kind}: cpu=True needs a plain def, not an async def, because the function runs in another process"
            )
        return "async"
    if not cpu:
        return "thread"
    if not _importable(function):
        raise HandlerError(
            f"{kind}: cpu=True needs a function at the top level of a module, where another process can import it."
            " It cannot be a lambda, a method, a partial, an object, a nested function, or a function of an interactive session"
        )
    return "process"


def _importable(function: Callable[..., Any]) -> bool:
    if not (inspect.isfunction(function) or inspect.isbuiltin(function)) or not function.__qualname__.isidentifier():
        return False
    return function.__module__ != "__main__" or Path(getattr(sys.modules["__main__"], "__file__", None) or "").is_file()


def _compile(kind: str, signature: Signature, connection: str | None) -> Compiled:
    """Compile a signature into a function that returns a claimed job's keyword arguments, without the connection.

    Also returns the name of the parameter that receives the job; None without one.
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
                raise HandlerError(f"{kind}: parameters {job_parameter!r} and {name!r} both receive the job, so remove one")
            job_parameter = name
        elif parameter.default is parameter.empty:
            fields.append((name, annotation))
        else:
            # If a field is missing, the function's own default applies. The default is neither copied nor converted.
            fields.append((name, Union[annotation, msgspec.UnsetType], msgspec.UNSET))  # noqa: UP007 - "|" needs a type on its left
    decode = _decoder(kind, fields)

    def arguments(claimed: ClaimedJob) -> dict[str, Any]:
        try:
            values = decode(claimed.payload)
            if job_parameter is not None:
                values[job_parameter] = Job.from_claim(claimed)
        except (msgspec.ValidationError, RecursionError) as error:
            raise PayloadMismatch(f"the payload does not fit the handler: {error}") from None
        except BaseException as error:  # user types may run code, such as __post_init__
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
        raise HandlerError(f"{kind}: {error}: Python cannot read its parameters, so wrap it in a def") from error
    hints = _hints(kind, function)
    for position, (name, parameter) in enumerate(parameters.items()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise HandlerError(
                f"{kind}: parameter {name!r} collects arguments, but each payload field needs a named parameter."
                " Name each field, or add job: jobqueue.Job and read job.payload. A decorator's wrapper needs @functools.wraps"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise HandlerError(
                f"{kind}: parameter {name!r} is positional-only, but payload fields are passed by name."
                " Remove the slash from the signature"
            )
        if position == 0 and name in ("self", "cls") and name not in hints:
            raise HandlerError(
                f"{kind}: parameter {name!r} would be a payload field. Register the method on its object, as in"
                f' app.handler("{kind}")(thing.{getattr(function, "__name__", "method")}), or make it a staticmethod'
            )
    if (reason := _obstacle(function, parameters)) is not None:
        raise HandlerError(
            f"{kind}: the decorator's wrapper does not accept the function's parameters by name: {reason}."
            " Let the wrapper take *args and **kwargs"
        )
    return hints, parameters


def _obstacle(function: Callable[..., Any], parameters: Iterable[str]) -> str | None:
    """Return why a wrapper does not accept the parameters of its wrapped function; None if it does, or if it has no signature."""
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
    """Return the annotations that belong to the function's signature."""
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isroutine(function) or hasattr(function, "__wrapped__")):
        function = type(function).__call__
    try:
        return get_type_hints(function, include_extras=True)
    except Exception as error:
        raise HandlerError(f"{kind}: the annotations cannot be resolved: {error}") from error


def _is_job(annotation: Any) -> bool:
    """Return whether a parameter of this type receives the job: ``Job``, ``Job | None`` or ``Annotated[Job, ...]``."""
    return annotation is Job or (get_origin(annotation) in (Annotated, Union, UnionType) and Job in get_args(annotation))


def _connection_parameter(kind: str, signature: Signature, mode: Mode) -> str | None:
    """Return the name of the parameter that receives a connection; None without one."""
    hints, parameters = signature
    asking = {name: cls for name in parameters if (cls := _connection_class(hints.get(name))) is not None}
    for name, cls in asking.items():
        if (cls.__module__, cls.__name__) != ("psycopg", "Connection"):
            asked = f"{cls.__module__}.{cls.__name__}"
            raise HandlerError(f"{kind}: parameter {name!r} has type {asked}; a handler can receive only a psycopg.Connection")
        if mode != "thread":
            raise HandlerError(f"{kind}: parameter {name!r} has type psycopg.Connection, but {_NO_CONNECTION[mode]}")
    if len(asking) > 1:
        raise HandlerError(f"{kind}: parameters {' and '.join(map(repr, asking))} receive the connection, so remove all but one")
    return next(iter(asking), None)


def _connection_class(annotation: Any) -> type | None:
    """Return the psycopg connection class that a parameter is annotated with; None for other annotations.

    Also finds the class in unions, in ``Annotated``, and with a row type. Compares names, so that
    only apps with such a handler need psycopg.
    """
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return next(filter(None, map(_connection_class, get_args(annotation))), None)
    cls = get_origin(annotation) or annotation
    of_psycopg = {base.__name__ for base in getattr(cls, "__mro__", ()) if base.__module__ == "psycopg"}
    return cls if isinstance(cls, type) and not of_psycopg.isdisjoint({"Connection", "AsyncConnection"}) else None
