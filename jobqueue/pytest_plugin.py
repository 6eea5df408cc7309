"""The pytest fixtures that come with jobqueue. What they need is imported when a test asks for them, so that no other waits for it.

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
    """The URL of an embedded PostgreSQL that runs until the end of the tests; one for each process of pytest-xdist."""
    from jobqueue.testing import postgres  # noqa: PLC0415 - see above

    with postgres.directory() as directory, postgres.server(None, directory / "data") as url:
        yield url


@pytest.fixture
def jobqueue_service(jobqueue_postgres: str) -> Iterator[Callable[..., RunningService]]:
    """Start real services on a database of the test's own: ``jobqueue_service("myjobs", queues={"mail": 4})``.

    It takes the module, or its `jobqueue.App`, and how many jobs of each queue run at once. Several services of one test share the
    database. All of them end with the test, and the database with them.
    """
    from jobqueue.testing import postgres  # noqa: PLC0415 - see above
    from jobqueue.testing.service import RunningService  # noqa: PLC0415

    with postgres.database(jobqueue_postgres) as url, ExitStack() as running:

        def start(app: str | App, *, queues: Mapping[str, int] | None = None) -> RunningService:
            service = RunningService(app, url, {"default": 16} if queues is None else queues)
            running.callback(service.close)
            return service

        yield start
