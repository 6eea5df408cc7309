"""What the nodes serve whose latency is measured: jobs that know when they were sent, by a clock of the same machine."""

import time

import trio

import jobqueue

app = jobqueue.App()


@app.handler("timed")
async def timed(sent: int, seconds: float = 0.0) -> int:
    """Sleep for so long, and return how many nanoseconds of CLOCK_MONOTONIC passed between `sent` and the start."""
    waited = time.monotonic_ns() - sent
    if seconds:
        await trio.sleep(seconds)
    return waited
