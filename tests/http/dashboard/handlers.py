"""Handlers for the tests of the dashboard."""

from __future__ import annotations

from typing import Any

import trio

import jobqueue

app = jobqueue.App()


@app.handler("greet")
async def greet(name: str = "world") -> dict[str, str]:
    return {"greeting": f"Hello, {name}!"}


@app.handler("fail", max_retries=0)
async def fail(message: str = "as asked") -> None:
    raise ValueError(message)


@app.handler("fail-twice", max_retries=5, backoff=jobqueue.Backoff(base=0.01, cap=0.01))
async def fail_twice(job: jobqueue.Job) -> str:
    if job.attempt < 3:
        raise ConnectionError(f"attempt {job.attempt} met nobody")
    return "done"


async def _open(shelf: str) -> None:
    raise FileNotFoundError(f"no shelf {shelf}")


@app.handler("fail-in-groups", max_retries=0)
async def fail_in_groups() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_open, "north")
        nursery.start_soon(_open, "south")


@app.handler("report")
async def report(job: jobqueue.Job, fraction: float = 0.4, message: str = "page 12 of 30", checkpoint: Any = None) -> None:
    """Report progress, and run until cancelled."""
    job.progress(fraction, message)
    if checkpoint is not None:
        job.checkpoint(checkpoint)
    job.nursery.start_soon(trio.sleep_forever, name="a child of the report")
    await trio.sleep_forever()


@app.handler('<img src=x onerror="window.owned=1">')
async def hostile() -> None:
    """Run until cancelled, under a hostile name."""
    await trio.sleep_forever()
