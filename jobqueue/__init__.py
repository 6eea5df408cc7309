"""A durable job queue on PostgreSQL and Trio.

::

    import jobqueue

    app = jobqueue.App()

    @app.handler("greet")
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

``jobqueue serve MODULE`` runs it; README.md has the tour.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

from jobqueue.engine.handlers import App
from jobqueue.errors import (
    Discard,
    HandlerError,
    InvalidJob,
    JobQueueError,
    PayloadTooLarge,
    Retry,
    Snooze,
    UnprocessableJob,
)
from jobqueue.in_transaction import submit, submit_many
from jobqueue.job import AttemptError, Job
from jobqueue.retry import Backoff

if TYPE_CHECKING:
    from jobqueue.client import Client as Client
    from jobqueue.client import SyncClient as SyncClient

__all__ = [
    "App",
    "AttemptError",
    "Backoff",
    "Discard",
    "HandlerError",
    "InvalidJob",
    "Job",
    "JobQueueError",
    "PayloadTooLarge",
    "Retry",
    "Snooze",
    "UnprocessableJob",
    "__version__",
    "submit",
    "submit_many",
]


def __getattr__(name: str) -> Any:
    """Load the clients when they are asked for: the service does without what they need."""
    if name in ("Client", "SyncClient"):
        from jobqueue import client  # noqa: PLC0415

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
