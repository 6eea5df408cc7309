"""Fixtures of the tests: real PostgreSQL servers, fresh databases, and the real service as a process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

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


STARTS_PROCESSES = re.compile(r"subprocess|command_line|run_jobqueue|run_module|hypothesis|state_machine|benchmarks|FailingStore")
"""Words in the modules that start processes or try many examples."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `fast` each test without PostgreSQL, in a module that starts no process and tries few examples."""
    fast: dict[Path, bool] = {}
    for item in items:
        if item.path not in fast:
            fast[item.path] = not STARTS_PROCESSES.search(item.path.read_text(encoding="utf-8"))
        if fast[item.path] and isinstance(item, pytest.Function) and not {"servers", "jobqueue_postgres"} & set(item.fixturenames):
            item.add_marker("fast")
