"""Write logs: one line per event, as text to a terminal and as JSON to anything else.

Payloads, tokens and passwords are never logged. Logging never blocks and never raises. The calling thread renders the record,
because its values may change later. `log_writer.Writer` writes the line in another thread. In a node, all output to
`sys.stdout` and `sys.stderr` goes through the writer too.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TextIO

import msgspec
import structlog

from jobqueue.log_writer import Writer, flush

LEVELS = ("debug", "info", "warning", "error")

FLUSH_SECONDS = 0.5
"""Seconds to write the last lines when the process ends."""

MAX_TEXT = 1_000
MAX_TRACEBACK = 16_000
"""Maximum length of each value, and of the traceback, in a record that cannot be rendered normally, in characters."""

QUIET = ("asyncio", "hpack", "httpcore", "httpx", "hypercorn", "psycopg", "quart", "trio", "werkzeug")
"""Loggers of the libraries of the service. Only their warnings and errors are logged."""


class RunningJob(Protocol):
    """The fields of a job in log lines."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def queue(self) -> str: ...
    @property
    def attempt(self) -> int: ...


class JobFields(NamedTuple):
    """A `RunningJob` that can be sent to another process."""

    id: str
    kind: str
    queue: str
    attempt: int

    @classmethod
    def of(cls, job: RunningJob) -> JobFields:
        return cls(job.id, job.kind, job.queue, job.attempt)


running: ContextVar[RunningJob | None] = ContextVar("running", default=None)
"""The job whose handler or hook runs in this task (or a task that it started), thread or process."""


class Setup(NamedTuple):
    """How a node logs. The node passes it to its processes.

    Attributes:
        level: the lowest level that is logged.
        fields: fields of every line.
    """

    level: str
    fields: Mapping[str, Any]


setup: Setup | None = None
"""The argument of `take_over`; None in a process that is not a node."""

stdout: TextIO = sys.stdout
stderr: TextIO = sys.stderr
"""The streams for the messages of the node, even if handlers replace `sys.stdout` and `sys.stderr`."""

log = structlog.get_logger()

_writers: list[Writer] = []
"""The first writer writes to stderr. In a node, a second one writes to stdout if stdout is a different file."""

_processors: list[Any] = []
"""The processors that render a record. The user's module may configure other processors of structlog for its own lines."""


def job_fields() -> dict[str, Any]:
    """Return `job_id`, `kind`, `queue` and `attempt` of the running job; an empty dict outside of a job.

    Use it in your logging configuration: in a processor of structlog, or in a filter of `logging`.
    """
    job = running.get()
    return {} if job is None else {"job_id": job.id, "kind": job.kind, "queue": job.queue, "attempt": job.attempt}


def configure(level: str, *, patient: bool = False) -> None:
    """Log to stderr from this level up: as text to a terminal, as JSON to anything else."""
    _open_descriptors()
    if not _writers:
        _writers.append(Writer(os.dup(2), _summary, patient=patient))
        os.register_at_fork(after_in_child=_restart)
        atexit.register(_flush)
    _processors[:] = _chain(terminal=os.isatty(2))
    structlog.configure(
        processors=_processors,
        wrapper_class=_never_raising(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=_Lines,
        cache_logger_on_first_use=True,
    )


def take_over(to: Setup, *, patient: bool = False) -> None:
    """Route logs, prints and warnings of this process through the writer thread, so that they never block and never raise.

    Args:
        to: how to log.
        patient: see `log_writer.Writer`.
    """
    global setup, stdout, stderr  # noqa: PLW0603 - a process has one of each
    setup = to
    configure(to.level, patient=patient)
    _keep_own_loggers()
    if not os.path.sameopenfile(1, 2):
        _writers.append(Writer(os.dup(1), _summary, patient=patient))
    stdout = sys.stdout = _stream(sys.stdout, 1, _writers[-1])
    stderr = sys.stderr = _stream(sys.stderr, 2, _writers[0])
    logging.captureWarnings(capture=True)
    logging.getLogger().setLevel(to.level.upper())
    for name in QUIET:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


def adopt_root() -> None:
    """Log the records of `logging`, unless the user's module has given the root logger a handler.

    Call it after the import of the module. A handler with the defaults of `logging.basicConfig` does not count, because a call of
    `logging.info` creates such a handler.
    """
    root = logging.getLogger()
    if setup is not None and all(_is_default(handler) for handler in root.handlers):
        root.handlers[:] = [_Records()]


def exit_now(code: int) -> None:
    """Write the last log lines, and exit without running the exit handlers."""
    _flush()
    os._exit(code)


def dropped() -> int:
    """Return how many lines this process has dropped."""
    return sum(writer.dropped for writer in _writers)


def _open_descriptors() -> None:
    """Open closed standard descriptors. Otherwise, the next file or socket would get such a number, and receive log lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - stderr
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def _keep_own_loggers() -> None:
    """Bind the loggers of the service, so that `structlog.configure` in the user's module does not change them."""
    for name, module in list(sys.modules.items()):
        logger = vars(module).get("log") if name.startswith("jobqueue.") else None
        if isinstance(logger, type(log)):
            logger.bind()


def _restart() -> None:
    for writer in _writers:
        writer.restart_after_fork()


def _flush() -> None:
    if setup is not None:
        for stream in (stdout, stderr):
            with contextlib.suppress(ValueError):  # a handler has detached the stream
                stream.flush()
    flush(_writers, FLUSH_SECONDS)


def _put(text: str) -> None:
    _put_bytes(_writers[0], text.encode("utf-8", "backslashreplace") + b"\n")


def _put_bytes(writer: Writer, data: bytes) -> None:
    job = running.get()
    writer.put(data, None if job is None else job.id)


# How a line looks


def _chain(*, terminal: bool) -> list[Any]:
    form: list[Any]
    # By default, both renderers show the values of variables in tracebacks. This exposes payloads and takes a second per traceback.
    if terminal:
        form = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        form = [structlog.processors.ExceptionRenderer(tracebacks), _as_json]
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_fields,
        *form,
    ]


def _add_fields(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    if "job_id" not in event:  # a line with its own job_id may be about another job
        event = {**job_fields(), **event}
    return event if setup is None else {**setup.fields, **event}


_encoder = msgspec.json.Encoder(enc_hook=repr)


_line_ends = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})
"""Escapes for line ends that are valid in JSON strings, but that some readers treat as the end of a line."""


def _as_json(_: Any, __: str, event: dict[str, Any]) -> str:
    text = msgspec.json.format(_encoder.encode(event), indent=0).decode()
    return text if text.isascii() else text.translate(_line_ends)


def _render(level: str, event: dict[str, Any]) -> str:
    rendered: Any = event
    for processor in _processors:
        rendered = processor(None, level, rendered)
    return str(rendered)


def _summary(lines: int, reason: str, seconds: float) -> bytes:
    event = "log lines dropped: the log could not be written in time"
    return _render("warning", {"event": event, "lines": lines, "reason": reason, "seconds": round(seconds, 1)}).encode() + b"\n"


# The functions below never raise


def _contained(write: Callable[[], object], level: str, event: object, fields: Callable[[], dict[str, Any]]) -> None:
    """Write a record. If that raises, log its values as text. If that raises too, count the record as dropped."""
    try:
        write()
    except BaseException:  # noqa: BLE001, S110 - nothing is awaited here, so this is not a cancellation
        pass
    else:
        return
    try:
        # Not inside `except`: there, `sys.exception()` would be the error of `write`, not the one to log.
        _put(_render(level, _plain(event, fields())))
    except BaseException:  # noqa: BLE001 - as above
        try:
            _writers[0].drop(1, "a record cannot be rendered")
        except BaseException:  # noqa: BLE001 - at the recursion limit, where no call is possible
            _writers[0].dropped += 1


def _plain(event: object, fields: Mapping[str, Any]) -> dict[str, Any]:
    given = {**structlog.contextvars.get_contextvars(), **fields}
    info = given.pop("exc_info", None)
    if isinstance(info, tuple):
        info = next((part for part in info if isinstance(part, BaseException)), None)
    error = info if isinstance(info, BaseException) else None if info is None else sys.exception()
    plain = {_text(name): _text(value) for name, value in given.items()}
    if error is not None:
        plain["exception"] = _text("".join(traceback.format_exception(error)), MAX_TRACEBACK)
    return {**plain, "event": _text(event)}


def _text(value: object, limit: int = MAX_TEXT) -> str:
    try:
        text = value if type(value) is str else repr(value)
        return text[:limit].encode("utf-8", "backslashreplace").decode()
    except BaseException as error:  # noqa: BLE001 - as above
        return f"(cannot be rendered: {type(error).__name__})"


def _never_raising(lowest: int) -> type[structlog.typing.FilteringBoundLogger]:
    """Make the logger class of structlog. Its async methods, such as `ainfo`, also work under Trio."""
    base = structlog.make_filtering_bound_logger(lowest)
    levels = {name.lower(): level for name, level in logging.getLevelNamesMapping().items()}
    methods: dict[str, Any] = {}
    for name, level in {**levels, "msg": logging.INFO, "exception": logging.ERROR, "log": logging.CRITICAL}.items():
        if level >= lowest and hasattr(base, name):
            methods[name], methods[f"a{name}"] = _guarded(name, getattr(base, name))
    return type("NeverRaising", (base,), methods)


def _guarded(name: str, method: Callable[..., object]) -> tuple[Callable[..., None], Callable[..., Awaitable[None]]]:
    level = {"exception": "error", "log": "info", "msg": "info"}.get(name, name)
    implied = {"exc_info": True} if name == "exception" else {}

    def call(self: Any, event: object = None, *args: object, **fields: Any) -> None:
        def all_fields() -> dict[str, Any]:
            return {**self._context, **({"args": args} if args else {}), **implied, **fields}

        _contained(lambda: method(self, event, *args, **fields), level, event, all_fields)

    async def acall(self: Any, event: object = None, *args: object, **fields: Any) -> None:
        call(self, event, *args, **fields)

    return call, acall


class _Lines:
    """The output of structlog's loggers."""

    def msg(self, text: str) -> None:
        _put(text)

    debug = info = warn = warning = error = exception = critical = fatal = log = msg


class _Records(logging.Handler):
    """A handler of `logging` that renders records in the same format."""

    def __init__(self) -> None:
        super().__init__()
        remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        name_and_extra: list[Any] = [structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()]
        self.setFormatter(structlog.stdlib.ProcessorFormatter(processors=[*name_and_extra, remove_meta, *_processors]))

    def handle(self, record: logging.LogRecord) -> bool:
        # Do not take the handler's lock: a thread that renders a large record would hold the lock and block the other threads.
        if self.filter(record):
            self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        def fields() -> dict[str, Any]:
            return {"logger": record.name, "args": record.args, "exc_info": record.exc_info}

        _contained(lambda: _put(self.format(record)), record.levelname.lower(), record.msg, fields)


def _is_default(handler: logging.Handler) -> bool:
    if type(handler) is not logging.StreamHandler or handler.stream is not stderr or handler.formatter is None:
        return False
    return getattr(handler.formatter, "_fmt", None) == logging.BASIC_FORMAT and handler.formatter.datefmt is None


class _Stream(io.RawIOBase):
    """A stream to a writer. `close` does nothing, because a handler must not close the stream of the service."""

    def __init__(self, descriptor: int, writer: Writer) -> None:
        self._descriptor = descriptor
        self._writer = writer

    def close(self) -> None: ...

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        _put_bytes(self._writer, bytes(data))
        return len(data)


def _stream(replaced: TextIO | None, descriptor: int, writer: Writer) -> TextIO:
    encoding = "utf-8" if replaced is None else replaced.encoding
    raw: Any = _Stream(descriptor, writer)
    return io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=True)
