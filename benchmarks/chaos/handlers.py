"""The handlers of the nodes: one kind for each way in which a job can run and end.

Every run records its start and its end. A successful run returns its id, so the checker knows which of several runs the database
accepted.
"""

from __future__ import annotations

import ctypes
import time
from functools import partial

import psycopg
import trio

import jobqueue
from benchmarks.chaos.effects import Recorder, What, new_run

PERSISTENT = 40
"""Maximum number of retries for kinds that must succeed, even if faults end many of their runs."""

QUICK = jobqueue.Backoff(base=0.1, cap=1.0)

_libc = ctypes.PyDLL(None)
"""A C library whose functions do not release the GIL, unlike the functions of a `ctypes.CDLL`."""

app = jobqueue.App()
recorder = Recorder()

# Use a separate limiter, because recording must not wait for the service's own limiters.
_limiter = trio.CapacityLimiter(4)


async def record(run: str, job: jobqueue.Job, what: What) -> None:
    """Write a record without blocking the loop."""
    await trio.to_thread.run_sync(partial(recorder.write, run, job, what), limiter=_limiter)


@app.handler("async", max_retries=PERSISTENT, backoff=QUICK)
async def sleep(job: jobqueue.Job, seconds: float = 0.0) -> dict[str, str]:
    run = new_run()
    await record(run, job, "began")
    await trio.sleep(seconds)
    await record(run, job, "ended")
    return {"run": run}


@app.handler("thread", max_retries=PERSISTENT, backoff=QUICK)
def thread(job: jobqueue.Job, seconds: float = 0.0) -> dict[str, str]:
    run = new_run()
    recorder.write(run, job, "began")
    time.sleep(seconds)
    recorder.write(run, job, "ended")
    return {"run": run}


@app.handler("cpu", max_retries=PERSISTENT, backoff=QUICK, cpu=True)
def cpu(job: jobqueue.Job, seconds: float = 0.0) -> dict[str, str]:
    return thread(job, seconds)


@app.handler("transaction", max_retries=PERSISTENT, backoff=QUICK)
def transaction(job: jobqueue.Job, conn: psycopg.Connection, number: int, seconds: float = 0.0) -> dict[str, str]:
    run = new_run()
    recorder.write(run, job, "began")
    write(conn, job)
    time.sleep(seconds)
    if job.attempt == 1 and number % 4 == 0:
        recorder.write(run, job, "failed")
        raise RuntimeError("as asked")
    recorder.write(run, job, "ended")
    return {"run": run}


@app.handler("rollback", max_retries=1, backoff=QUICK)
def rollback(job: jobqueue.Job, conn: psycopg.Connection) -> None:
    run = new_run()
    recorder.write(run, job, "began")
    write(conn, job)
    recorder.write(run, job, "failed")
    raise RuntimeError("as always")


def write(conn: psycopg.Connection, job: jobqueue.Job) -> None:
    """Write a line that is committed only with the job's completion."""
    conn.execute("INSERT INTO chaos.written (job_id, attempt) VALUES (%s, %s)", (job.id, job.attempt))


@app.handler("flaky", max_retries=PERSISTENT, backoff=QUICK)
async def flaky(job: jobqueue.Job, failures: int = 1) -> dict[str, str]:
    run = new_run()
    await record(run, job, "began")
    if job.attempt <= failures:
        await record(run, job, "failed")
        raise RuntimeError("as asked")
    await record(run, job, "ended")
    return {"run": run}


@app.handler("snooze", max_retries=PERSISTENT, backoff=QUICK)
async def snooze(job: jobqueue.Job, seconds: float = 0.5) -> dict[str, str]:
    run = new_run()
    await record(run, job, "began")
    if time.time() < job.created_at.timestamp() + seconds:
        await record(run, job, "snoozed")
        raise jobqueue.Snooze(seconds / 2)
    await record(run, job, "ended")
    return {"run": run}


@app.handler("doomed", backoff=QUICK)
async def doomed(job: jobqueue.Job) -> None:
    run = new_run()
    await record(run, job, "began")
    await record(run, job, "failed")
    raise RuntimeError("as always")


@app.handler("discard", max_retries=PERSISTENT, backoff=QUICK)
async def discard(job: jobqueue.Job) -> None:
    run = new_run()
    await record(run, job, "began")
    await record(run, job, "discarded")
    raise jobqueue.Discard("as asked")


@app.handler("gil", max_retries=PERSISTENT, backoff=QUICK)
def gil(job: jobqueue.Job, seconds: float) -> dict[str, str]:
    """Stop all other threads of the node by holding the GIL, as a backtracking regular expression does."""
    run = new_run()
    recorder.write(run, job, "began")
    _libc.usleep(round(seconds * 1e6))
    recorder.write(run, job, "ended")
    return {"run": run}


@app.handler("gil on the loop", max_retries=PERSISTENT, backoff=QUICK)
async def gil_on_the_loop(job: jobqueue.Job, seconds: float) -> dict[str, str]:
    run = new_run()
    await record(run, job, "began")
    _libc.usleep(round(seconds * 1e6))
    await record(run, job, "ended")
    return {"run": run}


@app.handler("poisoned", max_retries=PERSISTENT, backoff=QUICK)
async def poisoned() -> None:
    raise jobqueue.Discard("a node could read this poisoned job")
