"""Run commands to their end: modules with ``python -m``, and ``jobqueue`` with a real service or directly with its database."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.support import ROOT
from tests.support.fork_server import fork_server

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

Done = subprocess.CompletedProcess[str]


def environment(env: dict[str, str]) -> dict[str, str]:
    """Return the environment of a command. Only `env` defines the service, the token, and the database."""
    ours = {"JOBQUEUE_URL", "JOBQUEUE_TOKEN", "DATABASE_URL"}
    return {name: value for name, value in os.environ.items() if name not in ours} | env


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


def call(*arguments: str, code: int = 0, stdin: str = "", env: dict[str, str] | None = None) -> Done:
    """Run ``jobqueue`` to its end, and check its exit code."""
    done = fork_server().run(arguments, environment(env or {}), stdin=stdin, timeout=300)
    assert done.returncode == code, f"{arguments}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


class CommandLine:
    """Commands for the same service or database.

    Args:
        ways: the options that name the service or the database. If there are several ways, each command takes the next way.
    """

    def __init__(self, *ways: Sequence[str]) -> None:
        self._ways = itertools.cycle(ways)

    def __call__(self, *arguments: str, code: int = 0, stdin: str = "") -> Done:
        return call(*arguments, *next(self._ways), code=code, stdin=stdin)

    def text(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must succeed and print nothing but its result."""
        done = self(*arguments, stdin=stdin)
        assert done.stderr == ""
        return done.stdout

    def json(self, *arguments: str, code: int = 0, stdin: str = "") -> Any:
        """Run a command with --json, whose output must be one document."""
        return json.loads(self(*arguments, "--json", code=code, stdin=stdin).stdout)

    def lines(self, *arguments: str, code: int = 0, stdin: str = "") -> list[Any]:
        """Run a command with --json, whose output must be one document per line."""
        return [json.loads(line) for line in self(*arguments, "--json", code=code, stdin=stdin).stdout.splitlines()]
