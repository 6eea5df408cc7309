"""Handlers that fail in every way, and hooks that write their arguments to the file that EFFECTS names, as lines of JSON."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import trio

import jobqueue

app = jobqueue.App()


def tell(hook: str, job: jobqueue.Job, error: jobqueue.AttemptError) -> None:
    """Append one line, in one write, so that it survives the death of the process."""
    line = msgspec.json.encode({"hook": hook, "job": job, "error": error})
    with open(os.environ["EFFECTS"], "ab", buffering=0) as file:  # noqa: PTH123
        file.write(line + b"\n")


@app.on_dead
async def broken(job: jobqueue.Job, error: jobqueue.AttemptError) -> None:  # noqa: ARG001
    """The first of several hooks. Its error must not prevent the calls of the other hooks."""
    raise SystemExit("as asked")


@app.on_dead
async def died(job: jobqueue.Job, error: jobqueue.AttemptError) -> None:
    if isinstance(job.payload, dict) and job.payload.get("slow"):
        await trio.sleep(0.5)
    tell("died", job, error)


@app.on_dead
def died_in_a_thread(job: jobqueue.Job, error: jobqueue.AttemptError) -> None:
    tell("died_in_a_thread", job, error)


@app.on_retry
def again(job: jobqueue.Job, error: jobqueue.AttemptError) -> None:
    tell("again", job, error)


@app.handler("fail", max_retries=1, backoff=jobqueue.Backoff(base=0.01, cap=0.01))
async def fail(job: jobqueue.Job) -> None:
    raise RuntimeError(f"attempt {job.attempt} as asked")


@app.handler("fail-slowly", backoff=jobqueue.Backoff(base=60, cap=60))
async def fail_slowly() -> None:
    raise RuntimeError("come back later")


@app.handler("echo")
async def echo(job: jobqueue.Job) -> object:
    return job.payload


@app.handler("sleep")
async def sleep(seconds: float) -> None:
    await trio.sleep(seconds)


@app.handler("discard")
async def discard() -> None:
    raise jobqueue.Discard("no use")


@app.handler("time-out", timeout=0.2, max_retries=0)
async def time_out() -> None:
    await trio.sleep_forever()


@app.handler("process-dies", cpu=True, max_retries=0)
def process_dies() -> None:
    time.sleep(0.1)
    os._exit(3)


@app.handler("node-dies", max_retries=0)
async def node_dies() -> None:
    await trio.sleep(0.3)
    os._exit(9)


@app.handler("long-error")
async def long_error() -> None:
    raise RuntimeError("é" * 20_000)


@app.handler("compute", cpu=True)
def compute(until: Path | None = None) -> None:
    """Run until the file exists."""
    with open(os.environ["EFFECTS"], "ab", buffering=0) as file:  # noqa: PTH123
        file.write(b"{}\n")
    while until is not None and not until.exists():
        time.sleep(0.05)
