"""A process that has loaded jobqueue and forks for each command that a test runs.

Loading takes most of the CPU time of a start, and the tests start a thousand commands. A forked process has its own signals, exit
code, output and environment, like any other. Tests of the interpreter's start run ``python -m jobqueue`` instead.

    server = ForkServer()
    process = server.start(["serve", "examples.quickstart"], os.environ)
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    server.close()
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import json
import math
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from tests.support import ROOT

MESSAGE_BYTES = 1 << 17
"""Maximum size of a message, in bytes. The longest message is a command with its environment."""

PR_SET_PDEATHSIG = 1


class ForkServer:
    """The tests' side of the server. When the tests end, in whatever way, the server and all its processes end too."""

    def __init__(self) -> None:
        self._commands, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def start(self, arguments: Sequence[str], env: Mapping[str, str]) -> Forked:
        """Run ``jobqueue`` with these arguments in the project's root, with pipes for its output."""
        (stdout, its_stdout), (stderr, its_stderr) = os.pipe(), os.pipe()
        with Path(os.devnull).open() as stdin, os.fdopen(its_stdout, "w") as out, os.fdopen(its_stderr, "w") as err:
            connection = self._fork(arguments, env, [stdin, out, err])
        return Forked(connection, os.fdopen(stdout), os.fdopen(stderr))

    def start_on(self, streams: Sequence[IO[Any] | int], arguments: Sequence[str], env: Mapping[str, str]) -> Forked:
        """Run ``jobqueue`` with these arguments in the project's root, and with these files as stdin, stdout and stderr."""
        return Forked(self._fork(arguments, env, streams))

    def run(
        self, arguments: Sequence[str], env: Mapping[str, str], *, stdin: str = "", stderr: int = subprocess.PIPE, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run ``jobqueue`` with these arguments in the project's root, and wait until it ends.

        Args:
            stderr: `subprocess.STDOUT` mixes the errors into the output.
        """
        with TemporaryFile("w+") as given, TemporaryFile("a+") as out, TemporaryFile("a+") as err:
            given.write(stdin)
            given.seek(0)
            process = Forked(self._fork(arguments, env, [given, out, out if stderr == subprocess.STDOUT else err]))
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(["jobqueue", *arguments], code, out.read(), err.read())

    def close(self) -> None:
        """End the server."""
        self._commands.close()
        self._process.wait(60)

    def _fork(self, arguments: Sequence[str], env: Mapping[str, str], streams: Sequence[IO[Any] | int]) -> socket.socket:
        sys.audit("tests.fork_server")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            order = json.dumps({"arguments": list(arguments), "env": dict(env)}).encode()
            files = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
            socket.send_fds(self._commands, [order], [theirs.fileno(), *files])
        return ours


@functools.cache
def fork_server() -> ForkServer:
    """Return the server that forks for the commands of these tests."""
    return ForkServer()


class Forked:
    """One process, with the interface of `subprocess.Popen`.

    Args:
        connection: receives the pid of the process, and later its exit code.
    """

    def __init__(self, connection: socket.socket, stdout: IO[str] | None = None, stderr: IO[str] | None = None) -> None:
        self._connection = connection
        self.stdout = stdout
        self.stderr = stderr
        self.pid = int(connection.recv(MESSAGE_BYTES))
        self.returncode: int | None = None
        self._lock = threading.Lock()

    @staticmethod
    def can_have(env: Mapping[str, str]) -> bool:
        """Return whether a forked process can have this environment: the interpreter reads some variables only at its start."""
        at_start = {name for name in env if name.startswith("PYTHON")} - {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE"}
        return all(os.environ.get(name) == env[name] for name in at_start)

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends and return the exit code."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            with self._lock:  # another thread may be waiting as well
                if self.returncode is None:
                    with suppress(BlockingIOError):
                        self.returncode = int(self._connection.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT))
                        self._connection.close()
                        break
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait until it ends, and return its output. The output must fit into the pipes."""
        assert self.stdout is not None
        assert self.stderr is not None
        self.wait(timeout)
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(commands: socket.socket) -> dict[str, Any]:
    """Fork for each command and report the exit codes. In the forked process, return the command."""
    server = os.getpid()
    running: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: the pid and the connection for the exit code
    with selectors.DefaultSelector() as selector:
        selector.register(commands, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not commands:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    pid, connection = running.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with connection, suppress(OSError):  # the test may have ended
                        connection.send(b"%d" % code)
                    continue
                order, files, _, _ = socket.recv_fds(commands, MESSAGE_BYTES, 4)
                if not order:
                    sys.exit()
                pid = os.fork()
                if pid == 0:
                    for stream, file in enumerate(files[1:]):
                        os.dup2(file, stream)
                    for file in [*files, *running]:
                        os.close(file)
                    for _, connection in running.values():
                        connection.close()
                    commands.close()
                    _end_with(server)
                    return json.loads(order)
                for file in files[1:]:
                    os.close(file)
                connection = socket.socket(fileno=files[0])
                connection.send(b"%d" % pid)
                ended = os.pidfd_open(pid)
                running[ended] = pid, connection
                selector.register(ended, selectors.EVENT_READ)


def _end_with(server: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != server:
        sys.exit("the tests are gone already")


def main() -> None:
    # Ignore Ctrl-C. The tests react to it, and then end this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    importlib.import_module("jobqueue.service")
    cli = importlib.import_module("jobqueue.cli")
    for command in cli.COMMANDS:
        importlib.import_module(f"jobqueue.cli.{command}")
    gc.freeze()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with SIGINT ignored
    os.environ.clear()
    os.environ.update(command["env"])
    sys.path[:0] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv[1:] = command["arguments"]
    runpy.run_module("jobqueue", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
