"""Nodes without HTTP in the process of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

import jobqueue
from jobqueue import service
from jobqueue.admission import admit
from jobqueue.concurrency.stages import Stages, open_stages
from jobqueue.engine.operations import Operations
from jobqueue.job import Submission
from jobqueue.settings import Settings
from jobqueue.storage.postgres.store import PostgresStore
from tests.support.postgres import Database
from tests.support.waiting import until

AGAIN = 60.0
"""Seconds within which a part works again after its calls have stopped failing. Less than 5 on an idle machine."""


@asynccontextmanager
async def running_node(
    app: jobqueue.App, store: PostgresStore, *, poll_interval: float = 0.05, visibility_timeout: float = 2
) -> AsyncIterator[tuple[service.Engine, Operations, Stages]]:
    """Start a node like the service does, and shut it down."""
    settings = Settings(queues={"default": 4}, poll_interval=poll_interval, visibility_timeout=visibility_timeout, grace_period=1)
    async with open_stages() as stages, service.open_engine(app, settings, store) as engine:
        await service.start_engine(engine, stages, store.url)
        yield engine, service.operations(engine, settings, stopping=stages.stopping.is_set), stages
        await service._shut_down(engine, settings, stages, trio.Event())


@asynccontextmanager
async def echo_node(store: PostgresStore) -> AsyncIterator[tuple[service.Engine, Operations, Stages]]:
    """Start a node with the handler `echo` and a schedule for it, and shut it down."""
    async with running_node(echo_app(), store, poll_interval=0.2, visibility_timeout=10) as started:
        yield started


def echo_app() -> jobqueue.App:
    app = jobqueue.App()
    app.source = "tests"

    @app.handler("echo")
    async def echo(job: jobqueue.Job, text: str = "") -> str:
        if text:
            job.progress(0.5, text)
            await trio.sleep(1.3)
        return text

    app.periodic("* * * * * *", kind="echo", name="each second")
    return app


async def submit(node: Operations, **fields: Any) -> str:
    jobs = admit([Submission(kind="echo", **fields)])
    await node.submit(jobs)
    return jobs.ids[0]


async def ended(database: Database, job_id: str, seconds: float) -> None:
    sql = "SELECT count(*) FROM jobqueue.jobs WHERE id = %s AND state = 'succeeded'"
    await until(lambda: database.value(sql, job_id) == 1, "the job has succeeded", seconds)
