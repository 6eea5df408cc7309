"""A durable job queue on PostgreSQL and Trio.

::

    import jobqueue

    app = jobqueue.App()

    @app.handler("greet")
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

Run it with ``jobqueue serve MODULE``. The documentation starts at README.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jobqueue._version import __version__

if TYPE_CHECKING:
    from jobqueue.client import Client as Client
    from jobqueue.client import SyncClient as SyncClient
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

_HOMES = {
    "App": "engine.handlers",
    "AttemptError": "job",
    "Backoff": "retry",
    "Client": "client",
    "Job": "job",
    "SyncClient": "client",
    "submit": "in_transaction",
    "submit_many": "in_transaction",
}
"""The module of each public name. Names of `errors` are not listed."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    So a program loads only the modules of the names that it uses. A service does not load the client, for example.
    """
    if name not in _HOMES and name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value
