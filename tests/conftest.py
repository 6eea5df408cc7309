"""What the tests stand on: real PostgreSQL servers, fresh databases, and the real service as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests import postgres

SERVERS = {"embedded": None}
"""The PostgreSQL servers to test with, by name: the embedded one, and those whose binaries JOBQUEUE_TEST_POSTGRES names."""

for directory in filter(None, os.environ.get("JOBQUEUE_TEST_POSTGRES", "").split(os.pathsep)):
    SERVERS[f"PostgreSQL at {directory}"] = Path(directory)

SOAK = os.environ.get("JOBQUEUE_TEST_SOAK") == "1"
"""Whether the tests with thousands of clients have all of them, and the limits of the real service; otherwise some, and shorter."""

START_TIMEOUT = 30


class ServerPool:
    """Servers that run from their first use to the end of the tests."""

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
        """Return the URL of a database with the schema and no rows, the same one each time: for tests of the store's verbs."""
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
    """An empty database on each server that the storage is tested with."""
    with postgres.database(servers.url(request.param)) as url:
        yield url


ROOT = Path(__file__).parent.parent


def run_module(module: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` to its end, in the project's root."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        check=False,
    )


class Service:
    """A running ``jobqueue serve``, as a user would start it."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jobqueue", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
            cwd=ROOT,
        )
        self.url = ""
        self.banner: list[str] = []
        self.log_lines: list[str] = []
        self._log_reader = threading.Thread(target=self._read_log, daemon=True)
        self._log_reader.start()
        watchdog = threading.Timer(START_TIMEOUT, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.banner.append(line.rstrip("\n"))
            if line.startswith("  serving"):
                self.url = line.split()[1].rstrip(",")
            if line.startswith("  try"):
                break
        watchdog.cancel()
        assert self.url, f"the service did not start:\n{self.log}"

    @property
    def log(self) -> str:
        return "".join(self.log_lines)

    def stop(self, timeout: float = 40) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        self.wait(10)

    def wait(self, timeout: float = 60) -> int:
        """Wait for the end of the process by itself and return the exit code."""
        code = self.process.wait(timeout)
        self._log_reader.join(5)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log_lines.extend(self.process.stderr)


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
        """How many jobs are in each state."""
        return dict(self.rows("SELECT state, count(*) FROM jobqueue.jobs GROUP BY state"))

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    connected = Database(database_url)
    yield connected
    connected.close()
