"""Logging never blocks and never raises, records name their job, and the log shows no values of variables."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobqueue import log_writer, logs
from jobqueue.log_writer import MAX_OF_JOBS, MAX_OF_ONE_JOB, MAX_WAITING, PER_LINE, Writer, flush
from tests.support import ROOT
from tests.support.postgres import Database
from tests.support.service import Service, Start, submit
from tests.support.waiting import wait_for

pytestmark = pytest.mark.slow

GAP = "log lines dropped: the log could not be written in time"


class Log:
    """A file with the log of this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("wb") as file:
            self.writer = Writer(os.dup(file.fileno()), logs._summary)

    def text(self) -> str:
        assert flush([self.writer], 60)
        return self.path.read_text()

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


def logged_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> Iterator[Log]:
    before = structlog.get_config()
    log = Log(tmp_path / "log")
    monkeypatch.setattr(logs, "_writers", [log.writer])
    monkeypatch.setattr(os, "isatty", lambda _: terminal)
    logs.configure("info")
    yield log
    structlog.configure(**before)


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def any_log(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    yield from logged_to(tmp_path, monkeypatch, terminal=request.param)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    yield from logged_to(tmp_path, monkeypatch, terminal=False)


def records_of(handler: logging.Handler) -> logging.Logger:
    """Return a logger of `logging` with one handler and no parent."""
    logger = logging.Logger("orders", logging.INFO)  # noqa: LOG001 - not to be found by its name
    logger.addHandler(handler)
    return logger


# ---------------------------------------------------------------------------------------------------------------- how lines look


def test_a_traceback_says_where_and_shows_no_values(any_log: Log) -> None:
    payload = {"password": "correct-horse"}
    try:
        [][len(payload)]
    except IndexError as error:
        structlog.get_logger().error("a hook failed", exc_info=error)
        records_of(logs._Records()).exception("a hook failed, too")
    written = any_log.text()
    assert "correct-horse" not in written
    assert written.count("IndexError") >= 2
    assert written.count("test_logs.py") >= 2


def test_a_record_of_logging_looks_like_ours(log: Log) -> None:
    logger = records_of(logs._Records())
    logger.info("order %d", 7, extra={"customer": "ä"})
    logger.debug("not from this level on")
    try:
        raise ValueError("as asked")  # noqa: TRY301
    except ValueError:
        logger.exception("failed")
    first, second = log.records()
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "order 7", "level": "info", "logger": "orders", "customer": "ä"}
    assert (second["event"], second["level"]) == ("failed", "error")
    assert second["exception"][0]["exc_value"] == "as asked"


async def test_the_async_methods_of_structlog_work_under_trio(log: Log) -> None:
    await structlog.get_logger().ainfo("said", number=1)
    await structlog.get_logger().adebug("not from this level on")
    await structlog.get_logger().aexception("failed")
    assert [(record["event"], record["level"]) for record in log.records()] == [("said", "info"), ("failed", "error")]


def test_structlog_in_the_users_module_can_use_rich() -> None:
    code = "import jobqueue.logs, structlog; print(type(structlog.dev.rich_traceback).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "RichTracebackFormatter\n"


def test_a_node_loads_nothing_that_only_the_other_commands_need() -> None:
    code = "import jobqueue.cli.serve, sys; print([name for name in ('httpx', 'anyio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ------------------------------------------------------------------------------------------------------------ nothing ever raises


class Hostile:
    """A value whose every method raises an error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error

    __str__ = __hash__ = __bool__ = __len__ = __iter__ = __repr__  # type: ignore[assignment]


class HostileError(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


class Odd(str):
    __slots__ = ()

    def __str__(self) -> str:
        return 7  # type: ignore[return-value] # noqa: PLE0307


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ring: list[Any] = []
ring.append(ring)

HOSTILE: list[Any] = [
    *(Hostile(error) for error in (ValueError(), MemoryError(), RecursionError(), SystemExit(), KeyboardInterrupt())),
    HostileError(),
    ExceptionGroup("several", [HostileError(), ValueError("\ud800")]),
    Odd("odd"),
    nested(100_000),
    ring,
    float("nan"),
    10**5_000,
    object,
    io.BytesIO(b"x"),
    memoryview(b"x"),
    "\ud800\udfff",
    "\0\x1b[31m\r\n",
]

hostile = st.integers(0, len(HOSTILE) - 1).map(lambda number: HOSTILE[number])
values = st.recursive(
    st.one_of(hostile, st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.datetimes(), st.uuids()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), inner)),
    max_leaves=5,
)


@pytest.mark.parametrize("terminal", [False, True])
@given(event=values, fields=st.dictionaries(st.text(), values, max_size=3), args=st.lists(values, max_size=2), name=st.text())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_makes_logging_raise_and_every_record_is_logged(  # noqa: PLR0917
    event: Any, fields: dict[str, Any], args: list[Any], name: str, terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for log in logged_to(tmp_path, monkeypatch, terminal=terminal):
        logger = structlog.get_logger()
        logger.info(event, *args, **{field: value for field, value in fields.items() if field not in ("self", "event")})
        logger.info("bound", value=event, exc_info=event)
        try:
            raise HostileError  # noqa: TRY301
        except HostileError:
            logger.exception("failed", value=event)
            logging_record = logging.LogRecord(name, logging.ERROR, "", 1, event, tuple(args), sys.exc_info())
        logging_record.__dict__.update({f"extra {field}": value for field, value in fields.items()})
        logs._Records().handle(logging_record)
        written = log.text()
        assert log.writer.dropped == 0
        if not terminal:
            assert len(written.splitlines()) == 4
            assert [json.loads(line)["level"] for line in written.splitlines()] == ["info", "info", "error", "error"]
            assert all("HostileError" in line for line in written.splitlines()[2:])


def test_a_wrong_number_of_arguments_is_logged_as_it_is(log: Log) -> None:
    structlog.get_logger().info("%s and %s", 1)
    records_of(logs._Records()).info("%d", "one")
    first, second = log.records()
    assert (first["event"], first["args"]) == ("%s and %s", "(1,)")
    assert (second["event"], second["args"]) == ("%d", "('one',)")


def test_at_the_limit_of_recursion_a_record_is_logged_or_counted(log: Log) -> None:
    logger = structlog.get_logger()
    tried = 0

    def deeper() -> None:
        nonlocal tried
        try:
            tried += 1
            logger.info("deep")
        except RecursionError:  # the call itself was one too many
            tried -= 1
            return
        deeper()

    with contextlib.suppress(RecursionError):
        deeper()
    written = [record for record in log.records() if record["event"] == "deep"]
    assert len(written) + log.writer.dropped >= tried > 500


def test_what_cannot_be_rendered_at_all_is_counted_and_reported(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(logs, "_render", broken)
        records_of(logs._Records()).info("%d", "x")
    assert flush([log.writer], 60)
    assert log.writer.dropped == 1
    [gap] = log.records()
    assert (gap["event"], gap["lines"], gap["reason"]) == (GAP, 1, "a record cannot be rendered")


# ------------------------------------------------------------------------------------------------ nothing waits, and all is counted


class Sink:
    """A pipe with a writer that logs into it; lines are numbers."""

    def __init__(self, *, blocking: bool = True) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.write_end, blocking)
        self.writer = Writer(self.write_end, lambda lines, reason, seconds: f"-{lines} {reason}\n".encode())  # noqa: ARG005

    def put(self, numbers: Any, size: int = 8, job_id: str | None = None) -> None:
        for number in numbers:
            self.writer.put(f"{number:<{size - 1}}\n".encode(), job_id)

    def fill(self) -> None:
        """Fill the pipe, so that the writer's thread waits in its write."""
        self.writer.put(b"x" * 200_000 + b"\n")
        wait_for(lambda: not select.select([], [self.write_end], [], 0)[1], "the pipe is full")

    def read(self) -> list[str]:
        """Read until all waiting lines are written."""
        os.set_blocking(self.read_end, True)
        received = bytearray()

        def read() -> None:
            while not received.endswith(b"END\n"):
                received.extend(os.read(self.read_end, 65536))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert flush([self.writer], 60)
        assert flush([self.writer], 60)  # the report of dropped lines
        os.write(self.write_end, b"END\n")
        reader.join(60)
        *lines, end = received.decode().splitlines()
        assert end == "END"
        return [line.strip() for line in lines if not line.startswith("xxx")]


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_keep_their_order_while_the_reader_is_slow(blocking: bool) -> None:
    sink = Sink(blocking=blocking)
    sink.put(range(20_000))
    assert sink.read() == [str(number) for number in range(20_000)]
    assert sink.writer.dropped == 0


def test_every_thread_keeps_the_order_of_its_lines_and_no_line_is_cut() -> None:
    sink = Sink()
    numbers = itertools.product(range(4), [range(2_000)])
    threads = [threading.Thread(target=lambda of=of, all_=all_: sink.put(f"{of} {n}" for n in all_)) for of, all_ in numbers]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = sink.read()
    assert len(lines) == 8_000
    for of in range(4):
        assert [line for line in lines if line.startswith(f"{of} ")] == [f"{of} {n}" for n in range(2_000)]


SIZE = 1024 - PER_LINE


def test_as_many_lines_wait_as_the_bound_says_and_the_gap_is_reported_in_its_place() -> None:
    sink = Sink()
    sink.fill()
    room = (MAX_WAITING - 200_001 - PER_LINE) // 1024
    sink.put(range(room), SIZE)
    assert sink.writer.dropped == 0
    sink.put(range(room, room + 100), SIZE)
    assert sink.writer.dropped == 100, "put does not wait: nobody reads yet"
    lines = sink.read()
    assert lines[:room] == [str(number) for number in range(room)]
    assert lines[room:] == ["-100 the reader of the log is too slow, or has stopped"]
    sink.put(["after"])
    assert sink.read() == ["after"]


def test_a_job_drops_its_own_lines_and_all_jobs_leave_room_for_the_service() -> None:
    sink = Sink()
    sink.fill()
    of_one = MAX_OF_ONE_JOB // 1024
    sink.put(range(of_one), SIZE, "first")
    assert sink.writer.dropped == 0
    sink.put(range(1_000), SIZE, "first")
    assert sink.writer.dropped == 1_000
    of_others = MAX_OF_JOBS // 1024 - of_one
    for number in range(of_others):
        sink.put([number], SIZE, f"job {number}")
    assert sink.writer.dropped == 1_000
    sink.put(["no room"], SIZE, "another job")
    assert sink.writer.dropped == 1_001
    sink.put(["from the service"], SIZE)
    assert sink.writer.dropped == 1_001
    assert "from the service" in sink.read()
    sink.put(range(of_one), SIZE, "first")  # its share is free again
    assert sink.writer.dropped == 1_001


@pytest.mark.parametrize("size", [1, 100, 10_000])
def test_waiting_lines_take_no_more_memory_than_the_bound(size: int) -> None:
    sink = Sink()
    sink.fill()
    line = b"x" * (size - 1)
    tracemalloc.start()
    try:
        while not sink.writer.dropped:
            sink.writer.put(line + b"\n")
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    sink.read()
    assert MAX_WAITING * 0.5 < taken < MAX_WAITING * 1.1


def test_a_reader_that_goes_away_is_reported_to_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = Writer(os.open(path, os.O_WRONLY), lambda lines, reason, _: f"-{lines} {reason}\n".encode())
    writer.put(b"0\n")
    assert flush([writer], 60)
    assert os.read(reader, 100) == b"0\n"
    os.close(reader)
    for number in range(1, 8):
        writer.put(b"%d\n" % number)
    assert flush([writer], 60)
    assert writer.dropped == 7
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.put(b"8\n")
    assert flush([writer], 60)
    assert os.read(reader, 100) == b"-7 Broken pipe\n8\n"
    os.close(reader)


def test_a_file_that_is_full_in_the_middle_of_a_line_goes_on_with_a_whole_one(tmp_path: Path) -> None:
    code = (
        "import os, resource, signal, sys\n"
        "from jobqueue.log_writer import Writer, flush\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "writer = Writer(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), lambda *gap: f'-{gap[0]} {gap[1]}\\n'.encode())\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (25, hard))\n"
        "for number in range(4): writer.put(b'line %04d\\n' % number)\n"
        "assert flush([writer], 60)\n"
        "assert writer.dropped == 2, writer.dropped\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))\n"
        "writer.put(b'line 0004\\n')\n"
        "assert flush([writer], 60)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], check=True, cwd=ROOT)
    assert (tmp_path / "log").read_text() == "line 0000\nline 0001\nline \n-2 File too large\nline 0004\n"


def test_a_full_device_takes_nothing_and_harms_nobody() -> None:
    writer = Writer(os.open("/dev/full", os.O_WRONLY), lambda *_: b"gap\n")
    for number in range(50):
        writer.put(b"%d\n" % number)
    assert flush([writer], 60)
    assert writer.dropped == 50


def test_flush_gives_up_on_a_stuck_reader() -> None:
    sink = Sink()
    sink.fill()
    began = time.monotonic()
    assert not flush([sink.writer], 0.3)
    assert time.monotonic() - began >= 0.3
    sink.read()


def test_a_patient_writer_has_written_a_line_when_put_returns_and_is_patient_once_with_a_stuck_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_end, write_end = os.pipe()
    writer = Writer(write_end, lambda *_: b"gap\n", patient=True)
    for number in range(100):
        writer.put(b"%d\n" % number)
        assert os.read(read_end, 100) == b"%d\n" % number
    with monkeypatch.context() as patched:
        patched.setattr(log_writer, "PATIENCE", 10.0)
        began = time.monotonic()
        writer.put(b"x" * 200_000)
        for number in range(100):
            writer.put(b"%d\n" % number)
        assert 10 <= time.monotonic() - began < 120, "with each line, it would be 1,000 s"
    received = b""
    while not received.endswith(b"99\n"):
        received += os.read(read_end, 65536)


def test_a_forked_child_writes_its_own_lines_once() -> None:
    code = (
        "import os, sys, warnings\n"
        "from jobqueue import logs\n"
        "logs.take_over(logs.Setup('info', {}))\n"
        "warnings.simplefilter('ignore')\n"
        "for number in range(200):\n"
        "  print('parent', number)\n"
        "  if number % 50 == 0 and os.fork() == 0:\n"
        "    print('child of', number); os._exit(0)\n"
        "for _ in range(4): os.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert sorted(lines) == sorted([*(f"parent {n}" for n in range(200)), *(f"child of {n}" for n in range(0, 200, 50))])


# ----------------------------------------------------------------------------------------------------------- whose line a line is

KINDS = ["async", "nursery", "thread", "transactional", "process", "fail"]


def parsed(node: Service) -> list[dict[str, Any]]:
    """Return the records of a service's log. Every line is JSON."""
    return [json.loads(line) for line in node.log_lines]


def test_every_record_of_every_sort_of_handler_carries_its_job(service: Start, database: Database) -> None:
    node = service("tests.handlers.logging", "--queue", "default=4")
    with httpx.Client(timeout=60) as client:
        ids = dict(zip(KINDS, submit(client, node, [{"kind": kind} for kind in KINDS]), strict=True))
        wait_for(lambda: database.states() == {"succeeded": 5, "dead": 1}, "all jobs have run")
        wait_for(lambda: sum("warnings in on_dead" in line for line in node.log_lines) > 0, "the hooks have run")
    assert node.stop() == 0
    records = parsed(node)
    wheres = {**{kind: (kind, 1) for kind in KINDS[:-1]}, "on_retry": ("fail", 1), "on_dead": ("fail", 2)}
    for where, (kind, attempt) in wheres.items():
        about = [record for record in records if record.get("where") == where or f"from warnings in {where}\n" in record["event"]]
        assert [(record["event"].split(":")[0], record["level"]) for record in about if "warnings" not in record["event"]] == [
            ("from structlog", "info"),
            ("from logging", "info"),
        ]
        assert [record["logger"] for record in about if "logger" in record] == ["root", "py.warnings"]
        for record in about:
            fields = {name: record.get(name) for name in ("job_id", "kind", "queue", "attempt")}
            assert fields == {"job_id": ids[kind], "kind": kind, "queue": "default", "attempt": attempt}, record
    assert not any("not to be seen" in record["event"] for record in records)
    assert not any(record.get("logger") in logs.QUIET for record in records)
    ours = [record for record in records if record["event"] in ("shutting down", "stopped", "node joined")]
    assert len(ours) == 3
    assert not any("job_id" in record for record in ours)


def test_lines_of_a_process_that_is_killed_are_there(service: Start, database: Database) -> None:
    node = service("tests.handlers.logging")
    with httpx.Client(timeout=60) as client:
        submit(client, node, {"kind": "dies in process"})
        wait_for(lambda: database.states() == {"dead": 1}, "the process has died")
    assert node.stop() == 0
    [last] = [record for record in parsed(node) if record["event"] == "the last words"]
    assert last["kind"] == "dies in process"


def test_with_several_processes_each_line_says_which_also_those_of_threads_and_cpu_bound_handlers(
    service: Start, database: Database
) -> None:
    node = service("tests.handlers.logging", "--processes", "2")
    with httpx.Client(timeout=60) as client:
        submit(client, node, [{"kind": kind} for kind in ("thread", "process")])
        wait_for(lambda: database.states() == {"succeeded": 2}, "all jobs have run")
    assert node.stop() == 0
    about_jobs = [record for record in parsed(node) if "job_id" in record]
    assert len(about_jobs) == 6
    assert all(record["process"] in (1, 2) for record in about_jobs)


def test_100_000_lines_of_a_handler_drop_no_line_of_the_service(service: Start, database: Database) -> None:
    node = service("tests.handlers.logging")
    with httpx.Client(timeout=60) as client:
        [flood, fail] = submit(client, node, [{"kind": "flood", "payload": {"lines": 100_000}}, {"kind": "fail"}])
        wait_for(lambda: database.states() == {"succeeded": 1, "dead": 1}, "both have run", seconds=300)
    assert node.stop() == 0
    records = parsed(node)
    numbers = [record["number"] for record in records if record["event"] == "one of many"]
    missing = sum(record["lines"] for record in records if record["event"] == GAP)
    assert numbers == sorted(set(numbers))
    assert len(numbers) + missing == 100_000
    assert [r["event"] for r in records if r.get("job_id") == fail and "logger" not in r and "where" not in r] == [
        "attempt failed",
        "job died",
    ]
    assert records[-1]["event"] == "stopped"
    assert flood


# ------------------------------------------------------------------------------------------------- a configuration of the user's


def run_node(*lines: str) -> tuple[list[str], int]:
    """Run the lines before `---` like a module that a node imports, and those after it like its handlers."""
    split = lines.index("---")
    start = ["import logging, logging.config, structlog, sys, warnings", "from jobqueue import logs", "import jobqueue.cli.serve"]
    code = [*start, "logs.take_over(logs.Setup('info', {}))", *lines[:split], "logs.adopt_root()", *lines[split + 1 :]]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], check=False, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.stderr.splitlines(), done.returncode


def test_logging_without_a_configuration_of_the_users() -> None:
    lines, _ = run_node(
        "logging.info('while it is imported')", "---", "logging.info('said')", "logging.debug('not')", "warnings.warn('w')"
    )
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(record["event"].split("\n")[0], record["logger"]) for record in records] == [
        ("said", "root"),
        ("<string>:9: UserWarning: w", "py.warnings"),
    ]


DICT_CONFIG = {
    "version": 1,
    "formatters": {"f": {"format": "mine %(message)s"}},
    "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}},
    "root": {"handlers": ["h"], "level": "INFO"},
}


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ("logging.basicConfig(level='DEBUG')", ['"event": "detail"', '"event": "said"']),
        ("logging.basicConfig(level='WARNING')", []),
        ("logging.basicConfig(format='mine %(message)s', level='DEBUG')", ["mine detail", "mine said"]),
        ("logging.basicConfig(stream=sys.stdout)", []),
        ("logging.getLogger('orders').addHandler(logging.NullHandler())", ['"event": "said"']),
        ("logging.getLogger('orders').setLevel('DEBUG')", ['"event": "detail"', '"event": "said"']),
        (f"logging.config.dictConfig({DICT_CONFIG})", ["mine said"]),
        ("logging.disable()", []),
    ],
)
def test_the_users_configuration_of_logging_holds_and_nothing_is_doubled(configuration: str, expected: list[str]) -> None:
    lines, code = run_node(
        configuration,
        "---",
        "log = logging.getLogger('orders')",
        "log.debug('detail'); log.info('said')",
        "jobqueue.service.log.info('of the service')",
    )
    assert code == 0
    *lines, last = lines
    assert json.loads(last)["event"] == "of the service"
    assert len(lines) == len(expected), lines
    assert all(part in line for part, line in zip(expected, lines, strict=True))


def test_the_users_configuration_of_structlog_is_for_the_users_lines() -> None:
    lines, code = run_node(
        "def broken(*_): raise ZeroDivisionError",
        "structlog.configure(processors=[broken])",
        "---",
        "jobqueue.service.log.info('of the service')",
        "factory = structlog.PrintLoggerFactory(sys.stderr)",
        "structlog.configure(processors=[structlog.processors.KeyValueRenderer()], logger_factory=factory)",
        "structlog.get_logger().info('mine')",
    )
    assert (code, json.loads(lines[0])["event"], lines[1:]) == (0, "of the service", ["event='mine'"])


def test_a_configuration_of_the_users_can_ask_for_the_job() -> None:
    lines, _ = run_node(
        "structlog.configure(processors=[lambda _, __, event: {**logs.job_fields(), **event}, structlog.processors.JSONRenderer()],"
        " logger_factory=structlog.PrintLoggerFactory(sys.stderr))",
        "---",
        "structlog.get_logger().info('idle')",
        "logs.running.set(logs.JobFields('7', 'greet', 'default', 1))",
        "structlog.get_logger().info('at work')",
    )
    assert [json.loads(line) for line in lines] == [
        {"event": "idle"},
        {"event": "at work", "job_id": "7", "kind": "greet", "queue": "default", "attempt": 1},
    ]


def test_libraries_are_as_quiet_as_before_below_a_warning() -> None:
    lines, _ = run_node(
        "---", "for name in logs.QUIET: logging.getLogger(name + '.x').info('chatter'); logging.getLogger(name).warning('!')"
    )
    assert [json.loads(line)["logger"] for line in lines] == list(logs.QUIET)


def test_every_logger_of_the_service_is_out_of_the_users_reach() -> None:
    code = (
        "import jobqueue.cli.serve, sys\n"
        "from jobqueue import logs\n"
        "logs.take_over(logs.Setup('info', {}))\n"
        "ours = [vars(module) for name, module in sys.modules.items() if name.startswith('jobqueue.')]\n"
        "loggers = [names['log'] for names in ours if 'log' in names]\n"
        "print(len(loggers), all('bind' in vars(logger) for logger in loggers))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    count, bound = done.stdout.split()
    modules = [path for path in (ROOT / "jobqueue").rglob("*.py") if path.parent.name != "keeper"]  # without users' code
    uses = [path for path in modules if "structlog.get_logger()" in path.read_text()]
    assert (int(count), bound) == (len(uses), "True")


# ------------------------------------------------------------------------------------------------------------- how a process ends


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("logs.exit_now(4)", 4),
        ("raise RuntimeError('the end')", 1),
        ("sys.stderr.close(); sys.exit(5)", 5),
    ],
)
def test_the_last_lines_are_there_however_the_process_ends(end: str, code: int) -> None:
    lines, found = run_node(
        "---", "for n in range(5_000): print(n, file=sys.stderr)", "print('no newline', end='', file=sys.stderr)", end
    )
    assert found == code
    assert lines[4_999:5_001] == ["4999", "no newline" + ("Traceback (most recent call last):" if "raise" in end else "")]
    assert ("RuntimeError: the end" in lines) == ("raise" in end)


@pytest.mark.parametrize("end", ["pass", "logs.exit_now(0)", "sys.exit(0)"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("state", ["stuck", "abandoned"])
def test_no_stream_keeps_the_process_or_changes_its_exit_code(end: str, stream: str, state: str) -> None:
    code = (
        "import sys\nfrom jobqueue import logs\nlogs.take_over(logs.Setup('info', {}))\n"
        f"for _ in range(1000): print('x' * 1000, file=sys.{stream})\n{end}\n"
    )
    read_end, write_end = os.pipe()
    if state == "abandoned":
        os.close(read_end)
    other = "stderr" if stream == "stdout" else "stdout"
    streams: dict[str, Any] = {stream: write_end, other: subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **streams)
    os.close(write_end)
    assert process.wait(60) == 0
    if state == "stuck":
        os.close(read_end)


def test_an_error_at_the_start_is_reported_and_has_its_exit_code(database_url: str) -> None:
    command = [sys.executable, "-m", "jobqueue", "serve", "no.such.module", "--database-url", database_url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (done.returncode, done.stderr.splitlines()[-1][:22]) == (1, "Error: module 'no.such")
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run(command, check=False, stdout=full, stderr=full, cwd=ROOT, timeout=300).returncode == 1


def test_each_write_fits_into_the_room_that_the_pipe_has_just_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = [100, 40, 70, 20]
    monkeypatch.setattr(Writer, "_find_room", lambda _: rooms.pop(0))
    _, descriptor = os.pipe()
    writer = Writer(descriptor, lambda *_: b"")
    writer._batch = [log_writer._Line(b"x" * size, None) for size in (30, 30, 30, 30, 50, 25)]
    assert [len(part) for part in writer._parts()] == [90, 30, 50, 25]
