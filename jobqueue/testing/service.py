"""Run a real service for a test, in its own process and with its own database, and send it HTTP requests."""

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
"""Seconds between two polls of `RunningService.wait`."""

HTTP_TIMEOUT = 30.0
"""Maximum seconds for one response."""


class RunningService:
    """A running service. It ends when the test ends.

    Attributes:
        url: its URL.
        database_url: its database, for the test's own SQL.
    """

    def __init__(self, app: str | App, database_url: str, queues: Mapping[str, int]) -> None:
        module = app if isinstance(app, str) else _name_of(app)
        widths = [argument for name, width in queues.items() for argument in ("--queue", f"{name}={width}")]
        # The service runs in a process, not in a thread. So signals, processes of CPU-bound handlers, and the shutdown work as in
        # production, and the service leaves no threads or state in the tests' interpreter.
        self._process = ServiceProcess(
            [module, "--port", "0", "--database-url", database_url, *widths],
            {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        )
        self.url = self._process.url
        self.database_url = database_url

    def submit(self, kind: str, payload: Any = None, **fields: Any) -> str:
        """Submit a job and return its id once it is committed.

        Args:
            kind: the handler's kind.
            payload: a value that JSON can represent; None means null.
            fields: other fields of ``POST /submit``.

        Raises:
            ValueError: the service rejected the job; the message contains the response.
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
            TimeoutError: the job has not ended within `timeout` seconds; the message contains the job and the service's log.
        """
        deadline = time.monotonic() + timeout
        while (job := self.job(job_id))["state"] not in ("succeeded", "dead", "cancelled"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the job has not ended within {timeout} s: {job}\n{self.log}")
            time.sleep(LOOK_AGAIN)
        return job

    def stop(self) -> int:
        """Shut the service down with SIGTERM and return its exit code. The service may already have ended."""
        return self._process.stop()

    @property
    def log(self) -> str:
        """The service's log so far."""
        return self._process.log

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()

    def _ask(self, path: str, document: Any = None) -> Any:
        body = None if document is None else json.dumps(document).encode()
        request = Request(self.url + path, body, {"Content-Type": "application/json"})  # noqa: S310 - the service's own http URL
        try:
            with urlopen(request, timeout=HTTP_TIMEOUT) as answer:  # noqa: S310 - as above
                return json.load(answer)
        except HTTPError as error:
            with error:
                raise ValueError(f"{path}: {error.code} {error.read().decode()}") from None


def _name_of(app: App) -> str:
    """Return the ``module:name`` of an app, from which another process can import it."""
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if value is app and module.__name__ != "__main__":
                return f"{module.__name__}:{name}"
    raise ValueError("no imported module has this app as a global variable: the service runs in another process and imports it")
