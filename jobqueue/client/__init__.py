"""Submit jobs over HTTP, wait for their results, and operate the service.

`Client` works on Trio and asyncio::

    from jobqueue import Client

    async with Client("http://127.0.0.1:8080") as client:
        job_id = await client.submit("thumbnail", {"path": "a.png"}, priority=5)
        result = await client.result(job_id, timeout=60)

`SyncClient` has the same methods for code without an event loop::

    with SyncClient("http://127.0.0.1:8080") as client:
        ids = client.submit_many({"kind": "thumbnail", "payload": {"path": path}} for path in paths)

Both clients retry a failed request for some time, but only if a retry is safe. Submissions carry
idempotency keys, so it is safe to retry them.
"""

from jobqueue.client.batches import Chunk
from jobqueue.client.clients import Client, SyncClient
from jobqueue.client.errors import JobCancelled, JobEnded, JobFailed, JobNotFound, NotFound, RequestRefused, Unreachable
from jobqueue.client.waiting import Event

__all__ = [
    "Chunk",
    "Client",
    "Event",
    "JobCancelled",
    "JobEnded",
    "JobFailed",
    "JobNotFound",
    "NotFound",
    "RequestRefused",
    "SyncClient",
    "Unreachable",
]
