"""Services in their own processes, for the tests of jobqueue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobqueue.testing import process
from tests.support import ROOT
from tests.support.fork_server import Forked, fork_server

process.START_TIMEOUT = 120.0  # longer than the default for users' tests, because a loaded machine may need it


class Service(process.ServiceProcess):
    """A running ``jobqueue serve``. It has more time to start and to end than in `ServiceProcess`, for loaded machines."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        super().__init__(arguments, env, cwd=ROOT)

    def stop(self, timeout: float = 120) -> int:
        return super().stop(timeout)

    def wait(self, timeout: float = 120) -> int:
        return super().wait(max(timeout, 60))

    def _start(self, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> Any:
        return fork_server().start(arguments, env) if Forked.can_have(env) else super()._start(arguments, env, cwd)
