"""Handlers of every kind that log in every way, and hooks that do the same."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

import psycopg
import structlog
import trio

import jobqueue

app = jobqueue.App()

log = structlog.get_logger()


def speak(where: str) -> None:
    """Log in three ways."""
    log.info("from structlog", where=where)
    logging.info("from %s", "logging", extra={"where": where})  # noqa: LOG015 - as users do
    logging.getLogger("orders").debug("not to be seen")
    warnings.warn(f"from warnings in {where}", stacklevel=1)


@app.handler("async")
async def plain() -> None:
    speak("async")


@app.handler("wait")
async def wait() -> None:
    await trio.sleep_forever()


@app.handler("print")
async def printed(lines: int) -> None:
    for number in range(lines):
        print("printed", number)  # noqa: T201 - as users do
        print("printed", number, file=sys.stderr)  # noqa: T201


@app.handler("flood")
async def flood(lines: int) -> None:
    for number in range(lines):
        log.info("one of many", number=number, text="x" * 200)


@app.handler("vandalize", max_retries=0)
async def vandalize() -> None:
    """Damage the log as much as a handler can."""
    logging.shutdown()
    sys.stderr.close()
    sys.stdout.close()
    os.close(2)
    os.close(1)
    sys.stderr = sys.stdout = None  # type: ignore[assignment]


@app.handler("nursery")
async def nursery(job: jobqueue.Job) -> None:
    async def child() -> None:
        speak("nursery")

    job.nursery.start_soon(child)


@app.handler("thread")
def thread() -> None:
    speak("thread")


@app.handler("transactional")
def transactional(conn: psycopg.Connection[Any]) -> None:
    speak("transactional")
    conn.execute("SELECT 1")


@app.handler("process", cpu=True)
def process() -> None:
    speak("process")


@app.handler("dies in process", cpu=True, max_retries=0)
def dies_in_process() -> None:
    log.info("the last words")
    os.kill(os.getpid(), 9)


@app.handler("fail", max_retries=1, backoff=jobqueue.Backoff(base=0.01, cap=0.01))
async def fail(text: str = "as asked") -> None:
    raise RuntimeError(text)


@app.on_retry
async def on_retry(job: jobqueue.Job, error: jobqueue.AttemptError) -> None:  # noqa: ARG001
    speak("on_retry")


@app.on_dead
def on_dead(job: jobqueue.Job, error: jobqueue.AttemptError) -> None:  # noqa: ARG001
    speak("on_dead")
