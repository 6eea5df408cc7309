"""The first example: jobs of the kind "default" take a moment, and jobs of the kind "flaky" fail now and then.

Run it with ``jobqueue serve examples.quickstart``, and submit to it with curl: the command prints a line to try.
"""

import random
from typing import Any

import trio

import jobqueue

app = jobqueue.App()


@app.handler("default")
async def default(job: jobqueue.Job) -> dict[str, Any]:
    """Pretend to work for up to a tenth of a second, and say what was seen."""
    await trio.sleep(random.uniform(0.01, 0.1))
    return {"seen": job.payload, "attempt": job.attempt}


@app.handler("flaky", max_retries=10, backoff=jobqueue.Backoff(base=0.2, cap=5))
async def flaky(failure_rate: float = 0.3) -> str:
    """Fail as often as asked: each failure is tried again a little later."""
    await trio.sleep(random.uniform(0.01, 0.1))
    if random.random() < failure_rate:
        raise RuntimeError("bad luck, try again")
    return "done"
