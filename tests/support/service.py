"""Services in their own processes, for the tests of jobqueue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

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


Start = Callable[..., Service]


class Effects:
    """The lines that the handlers of tests/handlers/plain.py wrote."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, what: str) -> list[tuple[str, int]]:
        """Return the (job id, attempt) of every line with this effect."""
        if not self.path.exists():
            return []
        split = (line.split() for line in self.path.read_text().splitlines())
        return [(job_id, int(attempt)) for kind, job_id, attempt in split if kind == what]

    def ids(self, what: str) -> list[str]:
        return [job_id for job_id, _ in self.lines(what)]


def submit(client: httpx.Client, node: Service, jobs: Any) -> Any:
    answer = client.post(f"{node.url}/submit", json=jobs)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    return body["ids"] if isinstance(jobs, list) else body["id"]


def pages(client: httpx.Client, url: str, query: str = "", limit: int = 2) -> list[dict[str, Any]]:
    """Return all jobs of a list, page by page."""
    jobs, after = [], ""
    for _ in range(1000):
        page = client.get(f"{url}?limit={limit}{query}{after}")
        assert page.status_code == 200, page.text
        jobs += page.json()["jobs"]
        if page.json()["next"] is None:
            return jobs
        after = f"&after={page.json()['next']}"
    raise AssertionError("the list does not end")
