"""The handler of the nodes whose latency is measured. Each job contains the time at which it was sent."""

import time

import trio

import jobqueue

app = jobqueue.App()


@app.handler("timed")
async def timed(sent: int, seconds: float = 0.0) -> int:
    """Sleep for `seconds` seconds. Return the time from `sent` to the start, in nanoseconds of CLOCK_MONOTONIC."""
    waited = time.monotonic_ns() - sent
    if seconds:
        await trio.sleep(seconds)
    return waited
