"""A durable job queue on PostgreSQL and Trio.

::

    import jobqueue

    app = jobqueue.App()

    @app.handler("greet")
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

``jobqueue serve MODULE`` runs it; README.md has the tour.
"""

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
