"""Handlers that write into the table ``effects`` in the transaction that completes their jobs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psycopg

import jobqueue
from tests.handlers.plain import app as plain

app = jobqueue.App()
QUICK = jobqueue.Backoff(base=0.01, cap=0.05)

app.handler("echo")(plain.handlers["echo"].function)


def effect(conn: psycopg.Connection[Any], job: jobqueue.Job) -> None:
    conn.execute("INSERT INTO effects (job, attempt) VALUES (%s, %s)", (job.id, job.attempt))


@app.handler("write", max_retries=20, backoff=QUICK)
def write(job: jobqueue.Job, conn: psycopg.Connection[Any]) -> int:
    effect(conn, job)
    return job.attempt


@app.handler("touch-and-wait", timeout=1.0, backoff=jobqueue.Backoff(base=60, cap=60))
def touch_and_wait(job: jobqueue.Job, conn: psycopg.Connection[Any], flag: str) -> None:
    """Hold locks without running a statement until the file exists."""
    effect(conn, job)
    while not Path(flag).exists():
        time.sleep(0.02)
    effect(conn, job)


@app.handler("wait-for-lock")
def wait_for_lock(job: jobqueue.Job, conn: psycopg.Connection[Any], key: int = 1) -> None:
    """Run a statement that waits until the advisory lock is free."""
    effect(conn, job)
    conn.execute("SELECT pg_advisory_xact_lock(%s)", (key,))


@app.handler("die", max_retries=5, backoff=QUICK)
def die(job: jobqueue.Job, conn: psycopg.Connection[Any]) -> None:
    effect(conn, job)
    if job.attempt == 1:
        os._exit(9)
