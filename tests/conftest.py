"""Fixtures of the tests: real PostgreSQL servers, fresh databases, and the real service as a process."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from hypothesis import settings

from jobqueue.testing import process
from tests.support import postgres
from tests.support.fork_server import Forked, ForkServer
from tests.support.storage import Driver, open_driver

process.START_TIMEOUT = 120.0  # longer than the default for users' tests, because a loaded machine may need it

SERVERS = {"embedded": None}
"""The PostgreSQL servers to test with, by name: the embedded PostgreSQL, and the binaries that JOBQUEUE_TEST_POSTGRES names."""

for directory in filter(None, os.environ.get("JOBQUEUE_TEST_POSTGRES", "").split(os.pathsep)):
    SERVERS[f"PostgreSQL at {directory}"] = Path(directory)

SOAK = os.environ.get("JOBQUEUE_TEST_SOAK") == "1"
"""Whether to run the long form of some tests: thousands of clients, real limits, and all benchmarks."""


# Examples have no deadline, because their time depends more on the machine than on the code.
settings.register_profile("jobqueue", deadline=None)
settings.load_profile("jobqueue")

# pytest shows the log of a failed test. Tracebacks omit the values of variables, because writing them would take seconds.
structlog.configure(processors=[structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)])


class ServerPool:
    """Servers that start at their first use and run until the end of the tests."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}
        self._shared: dict[str, psycopg.Connection[Any]] = {}
        self._shared_urls: dict[str, str] = {}

    def url(self, name: str) -> str:
        if name not in self._urls:
            directory = self._stack.enter_context(postgres.directory())
            self._urls[name] = self._stack.enter_context(postgres.server(SERVERS[name], directory / "data"))
        return self._urls[name]

    def emptied(self, name: str) -> str:
        """Return the URL of a database with the schema and no rows. All tests of the store's verbs share it."""
        if name not in self._shared:
            url = self._stack.enter_context(postgres.database(self.url(name)))
            self._shared[name] = connection = self._stack.enter_context(psycopg.connect(url, autocommit=True))
            connection.execute((ROOT / "schema.sql").read_bytes())
            self._shared_urls[name] = url
        postgres.empty(self._shared[name])
        return self._shared_urls[name]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def servers() -> Iterator[ServerPool]:
    pool = ServerPool()
    yield pool
    pool.close()


@pytest.fixture
def database_url(servers: ServerPool) -> Iterator[str]:
    """An empty database on the embedded server."""
    with postgres.database(servers.url("embedded")) as url:
        yield url


@pytest.fixture(params=sorted(SERVERS))
def any_database_url(request: pytest.FixtureRequest, servers: ServerPool) -> Iterator[str]:
    """An empty database on each server in `SERVERS`."""
    with postgres.database(servers.url(request.param)) as url:
        yield url


ROOT = Path(__file__).parent.parent


def run_module(
    module: str, *arguments: str, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` to its end, in the project's root."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        check=False,
    )


def run_jobqueue(*arguments: str, env: dict[str, str] | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``jobqueue`` to its end, in the project's root."""
    return fork_server().run(arguments, {**os.environ, **(env or {})}, timeout=timeout)


@functools.cache
def fork_server() -> ForkServer:
    """Return the server that forks for the commands of these tests."""
    return ForkServer()


def pytest_sessionfinish() -> None:
    if fork_server.cache_info().currsize:
        fork_server().close()


class Service(process.ServiceProcess):
    """A running ``jobqueue serve``. It has more time to start and to end than in `ServiceProcess`, for loaded machines."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        super().__init__(arguments, env, cwd=ROOT)

    def stop(self, timeout: float = 120) -> int:
        return super().stop(timeout)

    def wait(self, timeout: float = 120) -> int:
        return super().wait(max(timeout, 60))

    def _start(self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> Any:
        return fork_server().start(arguments, env) if Forked.can_have(env) else super()._start(arguments, env, cwd)


@pytest.fixture
def service(database_url: str) -> Iterator[Callable[..., Service]]:
    """Start services on one database: ``service("examples.quickstart", "--queue", "default=8", env={...})``."""
    started: list[Service] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Service:
        started.append(Service([*arguments, "--port", "0", "--database-url", database_url], env or {}))
        return started[-1]

    yield start
    for one in started:
        one.kill()


class Database:
    """Plain SQL for a test's assertions."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = psycopg.connect(url, autocommit=True)

    def rows(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self._connection.execute(sql, params or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, sql: str, *params: Any) -> Any:
        [[value]] = self.rows(sql, *params)
        return value

    def states(self) -> dict[str, int]:
        """Return how many jobs are in each state."""
        return dict(self.rows("SELECT state, count(*) FROM jobqueue.jobs GROUP BY state"))

    def close(self) -> None:
        self._connection.close()


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
