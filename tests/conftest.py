"""Fixtures of the tests: real PostgreSQL servers, fresh databases, and the real service as a process."""

from __future__ import annotations

import math
import multiprocessing.util
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import settings

from tests.support.fork_server import fork_server
from tests.support.postgres import SERVERS, Database, ServerPool
from tests.support.running import Bench
from tests.support.service import Effects, Service, Start
from tests.support.storage import Driver, open_driver

# Keep compiled modules, although many containers set this variable: each worker would compile all tests, and each service jobqueue.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# The tests connect to no public server. With the certificates of all authorities, each httpx.Client takes 36 ms of CPU time.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull

# Examples have no deadline, because their time depends more on the machine than on the code.
settings.register_profile("jobqueue", deadline=None)
settings.load_profile("jobqueue")

# pytest shows the log of a failed test. Tracebacks omit the values of variables, because writing them would take seconds.
structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])


@pytest.fixture(scope="session")
def servers() -> Iterator[ServerPool]:
    pool = ServerPool()
    yield pool
    pool.close()


@pytest.fixture
def database_url(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[str]:
    """A database on the embedded server. It has the schema, unless the test has the marker `no_schema`."""
    with servers.database("embedded", schema=request.node.get_closest_marker("no_schema") is None) as url:
        yield url


@pytest.fixture(params=sorted(SERVERS))
def any_database_url(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[str]:
    """A database on each server in `SERVERS`. It has the schema, unless the test has the marker `no_schema`."""
    with servers.database(request.param, schema=request.node.get_closest_marker("no_schema") is None) as url:
        yield url


def pytest_sessionfinish() -> None:
    if fork_server.cache_info().currsize:
        fork_server().close()


@pytest.fixture
def service(database_url: str) -> Iterator[Start]:
    """Start services on one database: ``service("examples.quickstart", "--queue", "default=8", env={...})``."""
    started: list[Service] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Service:
        started.append(Service([*arguments, "--port", "0", "--database-url", database_url], env or {}))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    return Effects(tmp_path / "effects")


@pytest.fixture
def start(service: Start, effects: Effects) -> Start:
    """Start a node that serves tests/handlers/plain.py."""

    def start(*arguments: str, module: str = "tests.handlers.plain") -> Service:
        return service(module, *arguments, env={"EFFECTS": str(effects.path)})

    return start


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as opened:
        yield opened


@pytest.fixture
def bench(service: Start, database: Database, tmp_path: Path) -> Iterator[Bench]:
    opened = Bench(service, database, tmp_path / "effects")
    yield opened
    for node in opened.on_ports:
        node.kill()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    connected = Database(database_url)
    yield connected
    connected.close()


@pytest.fixture
def sql(any_database_url: str) -> Iterator[Database]:
    database = Database(any_database_url)
    yield database
    database.close()


@pytest.fixture
async def driver(any_database_url: str) -> AsyncIterator[Driver]:
    async with open_driver(any_database_url) as opened:
        yield opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `fast` each test that uses no PostgreSQL and is not marked as `slow`.

    Each worker gets a span of the tests, and begins with its share of the long ones. So no long test is the last one.
    """
    for item in items:
        servers = {"servers", "jobqueue_postgres"} & set(getattr(item, "fixturenames", ()))
        if isinstance(item, pytest.Function) and not servers and not item.get_closest_marker("slow"):
            item.add_marker("fast")
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("long")]
    others = iter([item for item in items if not item.get_closest_marker("long")])
    shares = [long[worker::workers] for worker in range(workers)]
    span = math.ceil(len(items) / workers)
    items[:] = [item for share in shares for item in [*share, *islice(others, span - len(share))]]


running_fast_test: pytest.Item | None = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global running_fast_test  # noqa: PLW0603 - an audit hook has no other state
    running_fast_test = item if item.get_closest_marker("fast") else None
    try:
        return (yield)
    finally:
        running_fast_test = None


def reject_processes(event: str, _: object) -> None:
    """Fail a fast test that starts a process."""
    if event in STARTS and running_fast_test is not None:
        raise RuntimeError(f"{running_fast_test.nodeid} starts a process: mark it as slow")


STARTS = {"subprocess.Popen", "os.fork", "os.posix_spawn", "multiprocessing.spawn", "tests.fork_server"}
"""The audit events of a new process. The last two are raised here and in the fork server, because Python raises none for them."""

sys.addaudithook(reject_processes)


def spawn(*args: Any, start: Callable[..., int] = multiprocessing.util.spawnv_passfds) -> int:
    sys.audit("multiprocessing.spawn")
    return start(*args)


multiprocessing.util.spawnv_passfds = spawn
