"""The first example: jobs of kind "default" take a moment, and jobs of kind "flaky" fail now and then.

Start it with ``jobqueue serve examples.quickstart``. The command prints a curl command that submits
a job.
"""

import random
from typing import Any

import trio

import jobqueue

app = jobqueue.App()


@app.handler("default")
async def default(job: jobqueue.Job) -> dict[str, Any]:
    """Sleep for up to 0.1 s, and return the payload."""
    await trio.sleep(random.uniform(0.01, 0.1))
    return {"seen": job.payload, "attempt": job.attempt}


@app.handler("flaky", max_retries=10, backoff=jobqueue.Backoff(base=0.2, cap=5))
async def flaky(failure_rate: float = 0.3) -> str:
    """Fail with the given probability. Each failure is retried a little later."""
    await trio.sleep(random.uniform(0.01, 0.1))
    if random.random() < failure_rate:
        raise RuntimeError("bad luck, try again")
    return "done"
