"""The handler of jobqueue's worker, which counts its jobs like all other handlers: ``jobqueue serve jobqueue_handlers``.

Its options are in the environment variable BENCHMARK_SEEN, as JSON, because a service passes no options to its handlers.
"""

# mypy: disable-error-code="import-not-found"

import json
import os

from adapter import Seen

import jobqueue

app = jobqueue.App()

seen = Seen(**json.loads(os.environ["BENCHMARK_SEEN"]))


@app.handler("noop")
async def noop(job: jobqueue.Job) -> None:
    """Count the job."""
    seen(job.payload)
