"""A real service for a test: its own process, its own database, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from jobqueue.engine.handlers import App
from jobqueue.testing.process import ServiceProcess

LOOK_AGAIN = 0.02
"""Seconds between two looks at a job that is waited for."""

HTTP_TIMEOUT = 30.0
"""Seconds for the answer to one request."""


class RunningService:
    """A running service; it ends with the test.

    Attributes:
        url: where it serves.
        database_url: its database, for SQL of the test's own.
    """

    def __init__(self, app: str | App, database_url: str, queues: Mapping[str, int]) -> None:
        module = app if isinstance(app, str) else _name_of(app)
        widths = [argument for name, width in queues.items() for argument in ("--queue", f"{name}={width}")]
        # A process, not a thread: signals, processes for CPU-bound handlers and the shutdown are what they are in production, and
        # nothing of it is left in the tests' interpreter.
        self._process = ServiceProcess(
            [module, "--port", "0", "--database-url", database_url, *widths],
            {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        )
        self.url = self._process.url
        self.database_url = database_url

    def submit(self, kind: str, payload: Any = None, **fields: Any) -> str:
        """Submit a job and return its id once it is committed.

        Args:
            kind: names the handler.
            payload: what JSON can say; None is ``{}``.
            fields: whatever else a job can ask for, as in ``POST /submit``.

        Raises:
            ValueError: the service refused it, for the reason in the message.
        """
        job_id: str = self._ask("/submit", {"kind": kind, "payload": payload, **fields})["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job as ``GET /jobs/{id}`` shows it."""
        job: dict[str, Any] = self._ask(f"/jobs/{job_id}")
        return job

    def wait(self, job_id: str, timeout: float = 30.0) -> dict[str, Any]:
        """Wait until a job has ended, and return it.

        Raises:
            TimeoutError: it has not ended after so many seconds; with the job and the service's log.
        """
        deadline = time.monotonic() + timeout
        while (job := self.job(job_id))["state"] not in ("succeeded", "dead", "cancelled"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ended after {timeout} s: {job}\n{self.log}")
            time.sleep(LOOK_AGAIN)
        return job

    def stop(self) -> int:
        """Shut the service down as SIGTERM does, and return its exit code, also when it has ended before."""
        return self._process.stop()

    @property
    def log(self) -> str:
        """What the service wrote to its log so far."""
        return self._process.log

    def close(self) -> None:
        """End the process, whatever state it is in."""
        self._process.kill()

    def _ask(self, path: str, document: Any = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        request = Request(self.url + path, body, {"Content-Type": "application/json"})  # noqa: S310 - http, as the service said
        try:
            with urlopen(request, timeout=HTTP_TIMEOUT) as answer:  # noqa: S310 - as above
                return json.load(answer)
        except HTTPError as error:
            with error:
                raise ValueError(f"{path}: {error.code} {error.read().decode()}") from None


def _name_of(app: App) -> str:
    """Find the module that has the app: another process can only import it."""
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is app and module.__name__ != "__main__":
                return f"{module.__name__}:{name}"
    raise ValueError("the service is a process of its own, which imports the app: no module has this one as a global")
