"""An executor without a node: run one job, and look at its outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
import trio_parallel

from jobqueue import App, documents
from jobqueue.engine.executor import Executor, Run
from jobqueue.engine.progress import ProgressWriter
from jobqueue.engine.signals import Signals
from jobqueue.job import AttemptError, ClaimedJob, Outcome
from jobqueue.metrics import Metrics
from jobqueue.storage.handler_transactions import Transactions
from jobqueue.testing.memory_store import MemoryStore

LAST = {"attempt": 4, "max_retries": 3}


def claimed(payload: bytes | str = b"{}", **fields: Any) -> ClaimedJob:
    """Return a claimed job of the kind `test`, with this JSON as its payload."""
    job = {
        "queue": "default",
        "id": "0198c7a4-0000-7000-8000-000000000000",
        "kind": "test",
        "priority": 0,
        "attempt": 1,
        "claims": 7,
        "max_retries": 3,
        "timeout": None,
        "created_at": 1_900_000_000.0,
        "rank": 0.0,
        "waited": 0.0,
    }
    return ClaimedJob(payload=msgspec.Raw(payload), **{**job, **fields})


async def run_one(executor: Executor, job: ClaimedJob, begun: Callable[[Run], None] = lambda _: None) -> Outcome | None:
    """Run one job, and return the recorded outcome."""
    jobs, recorded = [job], []

    async def take(scope: trio.CancelScope) -> Run:
        if not jobs:
            raise trio.EndOfChannel
        run = Run(jobs.pop(), "node", scope)
        begun(run)
        return run

    async def record(_: Run, outcome: Outcome | None) -> None:
        recorded.append(outcome)

    with pytest.raises(trio.EndOfChannel):
        await executor.run_each(take, record)
    [outcome] = recorded
    return outcome


def no_transactions() -> Transactions:
    """The transactions of a node whose handlers use no connection."""
    return Transactions("", most=1, keep_finished=True)


class Runner:
    """An executor with its dependencies."""

    def __init__(self, processes: trio_parallel.WorkerContext) -> None:
        self.app = App()
        self.metrics = Metrics()
        self.process_limiter = trio.CapacityLimiter(1)
        self.notes = ProgressWriter(MemoryStore(), Signals())
        self.executor = Executor(
            self.app.handlers,
            self.metrics,
            threads=trio.CapacityLimiter(2),
            processes=processes,
            process_limiter=self.process_limiter,
            transactions=no_transactions(),
            notes=self.notes,
        )

    async def run(self, function: Callable[..., Any], *, job: dict[str, Any] | None = None, **options: Any) -> Outcome:
        """Register the function with these options, run one job with it, and return its outcome."""
        self.handle(function, **options)
        outcome = await self.execute(claimed(**(job or {})))
        assert outcome is not None
        assert (outcome.id, outcome.claims) == (claimed().id, claimed().claims)
        documents.encode(outcome)
        return outcome

    async def execute(self, job: ClaimedJob, begun: Callable[[Run], None] = lambda _: None) -> Outcome | None:
        return await run_one(self.executor, job, begun)

    def handle(self, function: Callable[..., Any], **options: Any) -> None:
        self.app.handler("test", **options)(function)


def error_of(outcome: Outcome) -> AttemptError:
    assert outcome.error is not None
    return outcome.error
