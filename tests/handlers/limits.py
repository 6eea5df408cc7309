"""Handlers for the tests of limits, and a queue that is declared in code."""

from __future__ import annotations

from pathlib import Path

import trio

import jobqueue

app = jobqueue.App()
app.queue("declared", max_running=2, rate=None, key_max_running=3, aging_interval=5)


@app.handler("nap")
async def nap(seconds: float = 0.01) -> None:
    await trio.sleep(seconds)


@app.handler("wait-for-file")
async def wait_for_file(path: str) -> None:
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - no event announces it
        await trio.sleep(0.02)
