"""The pytest fixtures of jobqueue. They import their modules on first use, so that other tests start faster.

::

    def test_an_order_is_confirmed(jobqueue_service):
        service = jobqueue_service("myjobs")
        job = service.wait(service.submit("confirm", {"order": 17}))
        assert job["state"] == "succeeded"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from jobqueue.engine.handlers import App
    from jobqueue.testing.service import RunningService


@pytest.fixture(scope="session")
def jobqueue_postgres() -> Iterator[str]:
    """Run an embedded PostgreSQL until the end of the tests, one per process of pytest-xdist; return its URL."""
    from jobqueue.testing import postgres  # noqa: PLC0415 - see above

    with postgres.directory() as directory, postgres.server(None, directory / "data") as url:
        yield url


@pytest.fixture
def jobqueue_service(jobqueue_postgres: str) -> Iterator[Callable[..., RunningService]]:
    """Start real services on a new database: ``jobqueue_service("myjobs", queues={"mail": 4})``.

    The arguments are the name of a module, or a `jobqueue.App`, and the concurrency of each queue. All services of a test share its
    database. The services and the database are removed after the test.
    """
    from jobqueue.testing import postgres  # noqa: PLC0415 - see above
    from jobqueue.testing.service import RunningService  # noqa: PLC0415

    with postgres.database(jobqueue_postgres) as url, ExitStack() as running:

        def start(app: str | App, *, queues: Mapping[str, int] | None = None) -> RunningService:
            service = RunningService(app, url, {"default": 16} if queues is None else queues)
            running.callback(service.close)
            return service

        yield start
